//! `krita-bench`: how many operations per second, how fast each, at what cost to the servers.

use std::process::ExitCode;

use clap::Parser;
use krita_bench::{Arguments, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("krita-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
