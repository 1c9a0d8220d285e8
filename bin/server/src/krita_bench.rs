//! `krita-bench`: how many operations per second, how fast each, at what cost in processor time.

use std::process::ExitCode;

use clap::Parser;
use krita_server::bench::{self, BenchArguments};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    krita_server::finish("krita-bench", bench::run(&BenchArguments::parse()))
}
