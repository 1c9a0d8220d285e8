//! What a person would otherwise script: `cargo xtask test`, `simulate`, `planted` and `compare`.
//!
//! It needs cargo and a C compiler, and `planted` also git. It knows the workspace only by its folders and
//! commands, so that it builds before everything else does.

mod compare;
mod planted;
mod simulate;
mod steps;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use simulate::Seeds;

/// Krita's chores.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs everything that must hold before a change lands: format, clippy, all tests.
    Test {
        /// Also what takes long: 2,000 simulated seeds, and the planted bugs.
        #[arg(long)]
        long: bool,
    },
    /// Compares Krita with etcd and redis on this machine: takes turns, and writes one table.
    Compare(compare::Options),
    /// Runs the simulation of a whole cluster over a range of seeds.
    Simulate {
        /// Which seeds, from A up to but without B.
        #[arg(long, value_name = "A..B")]
        seeds: Seeds,
        /// Runs the planted bugs over these seeds instead: each must be caught.
        #[arg(long)]
        planted: bool,
        /// Optimise fully: slower to build, faster to run.
        #[arg(long)]
        release: bool,
    },
    /// Applies each of tests/planted/*.patch to a copy of the tree, and demands that a test fails.
    Planted {
        /// Which seeds, from A up to but without B; wins over a patch's own.
        #[arg(long, value_name = "A..B")]
        seeds: Option<Seeds>,
        /// Only patches whose name contains this.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Do not first prove that the tests pass without the bug.
        #[arg(long)]
        no_baseline: bool,
    },
}

fn main() -> ExitCode {
    let good = match Arguments::parse().command {
        Command::Test { long } => test::run(&root(), long),
        Command::Compare(options) => compare::run(&root(), &options),
        Command::Simulate { seeds, planted: false, release } => simulate::run(&root(), seeds, release),
        Command::Simulate { seeds, planted: true, .. } => {
            planted::run(&root(), planted::Options { seeds: Some(seeds), ..planted::Options::default() })
        }
        Command::Planted { seeds, only, no_baseline } => {
            planted::run(&root(), planted::Options { seeds, only, no_baseline })
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The root of the workspace.
fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate stands in the workspace");
    root.to_owned()
}
