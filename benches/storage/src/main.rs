//! Krita's engine beside fjall, redb and RocksDB on the same work, one command for each question.
//!
//! ```text
//! cargo run --release -- amplification --csv space.csv --png space.png   # write and space amplification
//! cargo run --release -- recovery --keys 1000000,10000000
//! cargo run --release -- memory --keys 1000000,10000000
//! cargo run --release -- cold-reads --keys 10000000
//! ```
//!
//! Every store gets the same keys, values and batches (`work`), the same memory (`--cache-mib`, `--memtable-mib`) and
//! one flush for each batch. Each phase runs in a process of its own (`phase`), so that memory and I/O belong to one
//! store. Leave the machine alone meanwhile: latencies and what is counted for the whole device depend on it.

#![allow(clippy::disallowed_methods, reason = "this program measures the real machine")]

mod commands;
mod measure;
mod phase;
mod plot;
mod report;
mod run;
mod stores;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use commands::Overwriting;
use run::Bench;
use stores::{Budget, Failure, StoreKind};
use work::Work;

/// Krita's engine beside fjall, redb and RocksDB on the same work.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Bytes written and bytes taken on disk for each byte of the user, over time, under uniform overwrite.
    Amplification {
        #[command(flatten)]
        common: Common,
        /// Overwrites of each key, on average.
        #[arg(long, default_value_t = 4.0)]
        rounds: f64,
        /// Write the size on disk over time to this file.
        #[arg(long)]
        csv: Option<PathBuf>,
        /// Draw it to this file; with several sizes of values one plot each.
        #[arg(long)]
        png: Option<PathBuf>,
    },
    /// Time until the first read after a clean stop, and after a kill.
    Recovery {
        #[command(flatten)]
        common: Common,
        /// Overwrites before the kill.
        #[arg(long, default_value_t = 100_000)]
        puts_before_kill: u64,
    },
    /// Resident memory for each key.
    Memory {
        #[command(flatten)]
        common: Common,
        /// Reads before the second look.
        #[arg(long, default_value_t = 100_000)]
        gets: u64,
    },
    /// Latency and I/O of reads from a store just opened.
    ColdReads {
        #[command(flatten)]
        common: Common,
        /// Reads of each kind.
        #[arg(long, default_value_t = 10_000)]
        gets: u64,
    },
    /// One phase of the above; its parent process writes the argument.
    #[command(hide = true)]
    Phase {
        /// The phase, in JSON.
        phase: String,
    },
}

#[derive(Args, Debug)]
struct Common {
    /// Stores to compare.
    #[arg(long, value_enum, value_delimiter = ',', default_values = DEFAULT_STORES)]
    stores: Vec<StoreKind>,
    /// Numbers of keys.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000])]
    keys: Vec<u64>,
    /// Lengths of values in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [100])]
    value_bytes: Vec<usize>,
    /// Writes for each flush in measured phases.
    #[arg(long, default_value_t = 64)]
    batch: u64,
    /// Writes for each flush while keys are first put.
    #[arg(long, default_value_t = 1_000)]
    load_batch: u64,
    /// Cache of each store, in MiB.
    #[arg(long, default_value_t = 64)]
    cache_mib: u64,
    /// Memtables of each store that has them, in MiB.
    #[arg(long, default_value_t = 64)]
    memtable_mib: u64,
    /// Where the stores are laid out; needs room for the largest, several times over.
    #[arg(long, default_value = "target/comparison")]
    directory: PathBuf,
    /// Keep loaded stores for the next command with the same work.
    #[arg(long)]
    keep: bool,
    /// Also write all figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[cfg(feature = "rocksdb")]
const DEFAULT_STORES: [&str; 4] = ["krita", "fjall", "redb", "rocksdb"];
#[cfg(not(feature = "rocksdb"))]
const DEFAULT_STORES: [&str; 3] = ["krita", "fjall", "redb"];

impl Common {
    fn bench(&self) -> Bench {
        Bench { directory: self.directory.clone(), stores: self.stores.clone(), keep: self.keep }
    }

    fn works(&self) -> Vec<Work> {
        let (batch, load_batch) = (self.batch, self.load_batch);
        let of = |keys: u64| {
            let work = move |value_bytes: &usize| Work { keys, value_bytes: *value_bytes, batch, load_batch };
            self.value_bytes.iter().map(work)
        };
        self.keys.iter().flat_map(|keys| of(*keys)).collect()
    }

    fn budget(&self) -> Budget {
        Budget { cache_bytes: self.cache_mib << 20, memtable_bytes: self.memtable_mib << 20 }
    }
}

fn run_command(command: Command) -> Result<(), Failure> {
    match command {
        Command::Amplification { common, rounds, csv, png } => {
            let how = Overwriting { rounds, samples_per_round: 50, csv, png };
            let report = commands::amplification(&common.bench(), &common.works(), common.budget(), &how)?;
            report.publish(common.json.as_deref())
        }
        Command::Recovery { common, puts_before_kill } => {
            let (works, budget) = (common.works(), common.budget());
            let report = commands::recovery(&common.bench(), &works, budget, puts_before_kill)?;
            report.publish(common.json.as_deref())
        }
        Command::Memory { common, gets } => {
            let report = commands::memory(&common.bench(), &common.works(), common.budget(), gets)?;
            report.publish(common.json.as_deref())
        }
        Command::ColdReads { common, gets } => {
            let report = commands::cold_reads(&common.bench(), &common.works(), common.budget(), gets)?;
            report.publish(common.json.as_deref())
        }
        Command::Phase { phase } => run::run_here(&serde_json::from_str(&phase)?),
    }
}

fn main() -> ExitCode {
    match run_command(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("krita-storage-comparison: {error}");
            ExitCode::FAILURE
        }
    }
}
