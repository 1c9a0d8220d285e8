//! The command line of `krita-bench`.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use krita_cli::connection::{ConnectionArguments, PROFILE_HELP};
use kritaclient::profile::DEMO_FOLDER;

use crate::Failure;
use crate::keys::Distribution;
use crate::pace::Arrivals;
use crate::sizes::Sizes;
use crate::values::{KEY_BYTES_MIN, VALUE_BYTES_MIN};
use crate::workload::Workload;

/// Longest key that Krita takes.
const KEY_BYTES_MAX: u32 = 4096;

/// Longest value of a load.
const VALUE_BYTES_MAX: u32 = 1 << 20;

/// Puts a database under load and says how it does. Every value that is read is checked.
#[derive(Parser, Debug)]
#[command(name = "krita-bench", version, after_help = PROFILE_HELP)]
pub struct Arguments {
    /// What the clients do.
    #[arg(value_enum)]
    pub workload: Workload,
    /// What they do it to.
    #[arg(long, value_enum, default_value_t = TargetName::Krita)]
    pub target: TargetName,
    /// How Krita is reached.
    #[command(flatten)]
    pub connection: ConnectionArguments,
    /// The nodes of etcd, or redis: host:port, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT")]
    pub endpoints: Vec<String>,
    /// Numbers of clients, measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256",
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: Vec<u32>,
    /// Operations that each client has under way at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub pipeline: u32,
    /// Connections that the clients share; without it, one each. Native clients have at least one to each core.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub connections: Option<u32>,
    /// Threads that the clients run on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Operations per second in all (open loop): they begin on time, however slow the answers are.
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// How an open loop spaces them.
    #[arg(long, value_enum, default_value_t = Arrivals::Constant)]
    pub arrivals: Arrivals,
    /// How long is measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// How long the clients run before anything counts.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub warm_up: u32,
    /// How many keys there are.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..=50_000_000))]
    pub keys: u64,
    /// How keys are chosen; without it, as the workload has it.
    #[arg(long, value_enum)]
    pub distribution: Option<Distribution>,
    /// Bytes of keys: a number, uniform:LEAST-MOST, or LENGTH*WEIGHT,LENGTH*WEIGHT.
    #[arg(long, default_value = "14")]
    pub key_size: Sizes,
    /// Bytes of values, likewise.
    #[arg(long, default_value = "100", visible_alias = "value-bytes")]
    pub value_size: Sizes,
    /// Most items of a scan; each has 1 to that many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub scan_items: u32,
    /// Operations of a batch.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub batch_size: u32,
    /// Use the keys that are there.
    #[arg(long)]
    pub no_load: bool,
    /// Process ids of all servers, for what it cost them; without it, those of the demo here.
    #[arg(long, value_delimiter = ',')]
    pub server_pids: Vec<u32>,
    /// The block device whose flushes are counted, as in /proc/diskstats; the whole machine's count.
    #[arg(long, value_name = "DEVICE")]
    pub flush_device: Option<String>,
    /// How results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Every second's histogram, as a log of HdrHistogram.
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,
    /// A chart of the times by percentile, and of the rate over time, as SVG.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// No line per second.
    #[arg(short, long)]
    pub quiet: bool,
}

/// What is put under load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TargetName {
    /// Krita by its native protocol.
    Krita,
    /// Krita by gRPC.
    KritaGrpc,
    /// Krita by REST.
    KritaRest,
    /// etcd by gRPC.
    Etcd,
    /// redis by RESP.
    Redis,
}

impl TargetName {
    /// Its name, as typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Krita => "krita",
            Self::KritaGrpc => "krita-grpc",
            Self::KritaRest => "krita-rest",
            Self::Etcd => "etcd",
            Self::Redis => "redis",
        }
    }

    /// Whether it is Krita, by whichever door.
    pub fn is_krita(self) -> bool {
        match self {
            Self::Krita | Self::KritaGrpc | Self::KritaRest => true,
            Self::Etcd | Self::Redis => false,
        }
    }
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    #[value(alias = "text")]
    Table,
    /// One JSON value.
    Json,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=10_000_000.0).contains(&rate) => Ok(rate),
        Ok(_) | Err(_) => Err("want 0.1 to 10000000 operations per second".to_owned()),
    }
}

impl Arguments {
    /// What clap cannot check.
    ///
    /// # Errors
    /// Two parts of the command line do not go together.
    pub fn check(&self) -> Result<(), Failure> {
        self.key_size.within(KEY_BYTES_MIN, KEY_BYTES_MAX, "keys").map_err(Failure::new)?;
        self.value_size.within(VALUE_BYTES_MIN, VALUE_BYTES_MAX, "values").map_err(Failure::new)?;
        if self.target == TargetName::Redis && self.workload.mix().iter().any(|(it, _)| it.name() == "scan") {
            return Err(Failure::new("redis has no ordered scan: choose another workload for it"));
        }
        if !self.target.is_krita() && self.endpoints.is_empty() {
            return Err(Failure::new("name the nodes with --endpoints host:port,host:port"));
        }
        if self.keys < u64::from(self.threads) {
            return Err(Failure::new("there are fewer keys than threads"));
        }
        Ok(())
    }

    /// How keys are chosen.
    pub fn distribution(&self) -> Distribution {
        self.distribution.unwrap_or_else(|| self.workload.distribution())
    }

    /// The servers' processes: as given, or those of the demo here; none: what it cost them is not shown.
    ///
    /// # Errors
    /// A file of the demo names no process.
    pub fn pids(&self) -> Result<Vec<u32>, Failure> {
        if !self.server_pids.is_empty() || !self.target.is_krita() {
            return Ok(self.server_pids.clone());
        }
        let Ok(folders) = std::fs::read_dir(Path::new(DEMO_FOLDER)) else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        for folder in folders.flatten() {
            let Ok(text) = std::fs::read_to_string(folder.path().join("kritad.pid")) else { continue };
            let pid = text.trim().parse();
            let invalid = |_| Failure::new(format!("{} has no process id", folder.path().display()));
            pids.push(pid.map_err(invalid)?);
        }
        // A demo that has ended leaves its files: then nothing is known.
        pids.retain(|pid| Path::new(&format!("/proc/{pid}")).exists());
        Ok(pids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Arguments {
        Arguments::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let line = "krita-bench --clients 1,64,256 --seconds 10 --value-size uniform:16-200 ycsb-a -o json";
        let arguments = parse(line);
        assert_eq!((&arguments.clients[..], arguments.output), (&[1, 64, 256][..], Output::Json));
        assert_eq!(arguments.distribution(), Distribution::Zipfian);
        arguments.check().unwrap();
        assert_eq!(parse("krita-bench put --distribution hot-shard").distribution(), Distribution::HotShard);
        for (line, reason) in [
            ("krita-bench put --value-size 8", "values have"),
            ("krita-bench put --key-size 5000", "keys have"),
            ("krita-bench ycsb-e --target redis --endpoints a:1", "no ordered scan"),
            ("krita-bench put --target etcd", "--endpoints"),
        ] {
            let failure = parse(line).check().unwrap_err();
            assert!(failure.0.contains(reason), "{line}: {failure}");
        }
    }
}
