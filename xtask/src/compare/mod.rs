//! `cargo xtask compare`: Krita beside etcd and redis on this machine, each flushing before it acknowledges, under the
//! same loop (`krita-bench`), in runs that take turns, and one table of it all.
//!
//! Taking turns matters: a shared machine's speed drifts, and a drift must not look like a difference. Each figure is
//! the median of the rounds.

#![allow(clippy::disallowed_methods, reason = "it starts real servers in real folders")]

mod clusters;
mod rows;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use serde_json::Value;

use clusters::Cluster;
use rows::Row;

/// What is compared, and how.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256",
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: Vec<u32>,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    value_size: u32,
    /// How long each run is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// How often all take their turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// What takes part.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "krita,etcd,redis")]
    targets: Vec<Target>,
    /// Workloads of krita-bench.
    #[arg(long, value_delimiter = ',', default_value = "put,get")]
    operations: Vec<String>,
    /// Operations that each client has under way at once.
    #[arg(long, default_value_t = 1)]
    pipeline: u32,
    /// How many keys there are.
    #[arg(long, default_value_t = 100_000)]
    keys: u32,
    /// Krita's cores for each node.
    #[arg(long, default_value_t = 1)]
    cores: u16,
    /// Krita with TLS; the others speak plain text all the same.
    #[arg(long)]
    tls: bool,
    /// Where the servers keep their data; erased before and after.
    #[arg(long, value_name = "FOLDER")]
    directory: Option<PathBuf>,
    /// The first of the ports that are used.
    #[arg(long, default_value_t = 20_380)]
    base_port: u16,
    /// etcd's program.
    #[arg(long, default_value = "etcd", value_name = "PATH")]
    etcd: PathBuf,
    /// redis' program.
    #[arg(long, default_value = "redis-server", value_name = "PATH")]
    redis: PathBuf,
    /// A folder with kritad, init and krita-bench; without it they are built.
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
}

/// What takes part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub(crate) enum Target {
    /// Three nodes, by the native protocol.
    Krita,
    /// Three nodes, by gRPC.
    KritaGrpc,
    /// Three nodes, by REST.
    KritaRest,
    /// Three nodes.
    Etcd,
    /// One node, `appendfsync always`.
    Redis,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Krita => "krita",
            Self::KritaGrpc => "krita-grpc",
            Self::KritaRest => "krita-rest",
            Self::Etcd => "etcd",
            Self::Redis => "redis",
        }
    }
}

/// How the result is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON array of rows.
    Json,
}

/// Compares. False if anything failed; the reason has been printed.
pub(crate) fn run(root: &Path, options: &Options) -> bool {
    match compare(root, options) {
        Ok(rows) => {
            match options.output {
                Output::Table => rows::print_table(&rows),
                Output::Json => println!("{}", rows::json(&rows)),
            }
            true
        }
        Err(reason) => {
            eprintln!("{reason}");
            false
        }
    }
}

fn compare(root: &Path, options: &Options) -> Result<Vec<Row>, String> {
    let programs = programs(root, options)?;
    let directory = options.directory.clone().unwrap_or_else(|| root.join("target/compare"));
    let directory = clusters::empty_directory(&directory)?;
    let started = clusters::start(&directory, &programs, options)?;
    let device = clusters::device_of(&directory);
    if device.is_none() {
        eprintln!("flushes are not counted: {} is on no block device", directory.display());
    }
    let bench = Bench { program: programs.join("krita-bench"), device, options };
    let mut rows: Vec<Row> = Vec::new();
    for cluster in &started {
        eprintln!("loading {}", cluster.target.name());
        bench.run(cluster, "get", 16, true)?;
    }
    for round in 1..=options.rounds {
        for operation in &options.operations {
            for clients in &options.clients {
                for cluster in &started {
                    let name = cluster.target.name();
                    eprintln!("round {round} of {}: {name} {operation}, {clients} clients", options.rounds);
                    let result = bench.run(cluster, operation, *clients, false)?;
                    let key = (operation.as_str(), *clients, cluster.target);
                    rows::add(&mut rows, key, options.value_size, &result)?;
                }
            }
        }
    }
    drop(started);
    // What is left of the data is of no use to anybody.
    let _erased = std::fs::remove_dir_all(&directory);
    Ok(rows)
}

/// The folder of our programs, built if need be.
fn programs(root: &Path, options: &Options) -> Result<PathBuf, String> {
    if let Some(folder) = &options.programs {
        return folder.canonicalize().map_err(|error| format!("no {}: {error}", folder.display()));
    }
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(root).args(["build", "--release", "-p", "krita-server", "-p", "krita-bench"]);
    let built = build.stdout(Stdio::null()).status().map_err(|error| format!("no cargo: {error}"))?;
    if !built.success() {
        return Err("the programs do not build".to_owned());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release"))
}

struct Bench<'a> {
    program: PathBuf,
    device: Option<String>,
    options: &'a Options,
}

impl Bench<'_> {
    /// One run; the row of its result.
    fn run(&self, cluster: &Cluster, operation: &str, clients: u32, loads: bool) -> Result<Value, String> {
        let options = self.options;
        let pids: Vec<String> = cluster.pids().iter().map(u32::to_string).collect();
        let mut command = Command::new(&self.program);
        command.arg(operation).args([
            "--target",
            cluster.target.name(),
            "-o",
            "json",
            "--quiet",
            "--warm-up",
            "1",
        ]);
        command.args(["--clients", &clients.to_string(), "--pipeline", &options.pipeline.to_string()]);
        command.args(["--value-size", &options.value_size.to_string(), "--keys", &options.keys.to_string()]);
        command.args(["--server-pids", &pids.join(",")]).args(&cluster.reach);
        if loads {
            command.args(["--seconds", "1"]);
        } else {
            command.args(["--seconds", &options.seconds.to_string(), "--no-load"]);
        }
        if let Some(device) = &self.device {
            command.args(["--flush-device", device]);
        }
        let output = command.stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| format!("cannot run {}: {error}", self.program.display()))?;
        if !output.status.success() {
            return Err(format!("{} under {operation} failed", cluster.target.name()));
        }
        let result: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("krita-bench printed no JSON: {error}"))?;
        result.pointer("/rows/0").cloned().ok_or_else(|| "krita-bench printed no row".to_owned())
    }
}
