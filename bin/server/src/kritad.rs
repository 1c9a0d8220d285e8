//! `kritad`: runs a node of Krita; `kritad demo` runs a whole cluster, `kritad init` writes what a node needs.

use std::process::ExitCode;

use clap::Parser;
use krita_server::arguments::Arguments;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A wrong usage ends here, with exit code 2.
    krita_server::kritad(&Arguments::parse())
}
