//! What `kritactl` does. Its command line stands here; [`debug`] looks into files.

mod cluster;
pub mod debug;
mod files;
mod json;
mod lock;
mod text;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::connection::{ConnectionArguments, PROFILE_HELP};
use crate::failure::Failure;

const EXIT_CODES: &str = "\
Results go to stdout, messages to stderr. Exit codes:
   0  done; nothing is wrong
   1  failed: a file cannot be read, a node refused
   2  wrong usage
   4  not authenticated, or denied
   5  unavailable, or timed out
  10  unhealthy, or not all replicas could be compared
  11  damage was found, or replicas differ; what and where is printed";

const EXAMPLES: &str = "\
Examples:
  kritactl status --port 8080 --cluster-name krita-demo
  kritactl verify
  kritactl scrub --all
  kritactl debug log /var/lib/krita/data
  kritactl debug segment data/log-000/segment-3 --batch 812
  kritactl debug run data/log-000/run-5-17 --keys -o json";

/// Tells how a Krita cluster is, and what is in the files of a stopped node.
#[derive(Parser, Debug)]
#[command(name = "kritactl", version, after_help = format!("{EXAMPLES}\n\n{PROFILE_HELP}\n\n{EXIT_CODES}"))]
pub struct Arguments {
    /// How to reach the cluster.
    #[command(flatten, next_help_heading = "Connection")]
    pub connection: ConnectionArguments,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Form::Text)]
    pub output: Form,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Form {
    /// For people.
    Text,
    /// One JSON value per result; bytes that are not UTF-8 are base64 and marked as such.
    Json,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say how every member of the cluster is, and what its disk holds.
    Status,
    /// Compare the replicas of each shard with each other. Shards that are equal are counted, others shown.
    Verify {
        /// Only this shard.
        #[arg(long)]
        shard: Option<u32>,
    },
    /// Have the named node read and check everything that it stores, beginning now; damage is mended from peers.
    Scrub {
        /// Every member.
        #[arg(long)]
        all: bool,
    },
    /// Look into files, with every checksum verified and nothing written. The node must be stopped.
    #[command(subcommand)]
    Debug(Debug),
}

/// Which kind of file to look into.
#[derive(Subcommand, Debug)]
#[command(after_help = EXIT_CODES)]
pub enum Debug {
    /// A log's whole directory, as recovery would read it, or each log of a data directory.
    Log {
        /// The directory.
        #[command(flatten)]
        files: FileArguments,
        /// List every batch and record as well.
        #[arg(long)]
        records: bool,
    },
    /// One segment: batches and their records.
    Segment {
        /// The file.
        #[command(flatten)]
        files: FileArguments,
        /// List every batch and record as well.
        #[arg(long)]
        records: bool,
        /// List this batch and its records as well.
        #[arg(long, value_name = "SEQUENCE", conflicts_with = "records")]
        batch: Option<u64>,
    },
    /// One run: keys and where their values lie.
    Run {
        /// The file.
        #[command(flatten)]
        files: FileArguments,
        /// List every key as well.
        #[arg(long)]
        keys: bool,
    },
    /// The part of a checkpoint that has a file of its own.
    Checkpoint {
        /// The file.
        #[command(flatten)]
        files: FileArguments,
    },
    /// A manifest: which shards the log has, and what they refer to.
    Manifest {
        /// The file.
        #[command(flatten)]
        files: FileArguments,
        /// List every frame as well.
        #[arg(long)]
        frames: bool,
    },
}

/// Which files, and how they are read.
#[derive(Args, Debug)]
pub struct FileArguments {
    /// The file or directory.
    pub path: PathBuf,
    /// The seed of the log's checksums, decimal or as 0x..., if the manifest that holds it is lost.
    #[arg(long, value_parser = parse_nonce)]
    pub nonce: Option<u64>,
    /// Look although a node uses the files: what it writes meanwhile may look like damage.
    #[arg(long)]
    pub force: bool,
}

fn parse_nonce(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "want a number, as in 0x1f or 31".to_owned())
}

/// Does what was typed.
///
/// # Errors
/// What ends the command with another exit code than 0.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), Failure> {
    match &arguments.command {
        Command::Status => cluster::status(&arguments.connection, arguments.output, out),
        Command::Verify { shard } => cluster::verify(&arguments.connection, *shard, arguments.output, out),
        Command::Scrub { all } => cluster::scrub(&arguments.connection, *all, arguments.output, out),
        Command::Debug(command) => debug::run(command, arguments.output, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("kritactl").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_documented_forms_parse() {
        for line in [
            "status",
            "--host h --port 9 status -o json",
            "verify --shard 3",
            "scrub --all",
            "debug log d",
            "debug log d --records -o json --force --nonce 0xff",
            "debug segment s --batch 8",
            "debug run r --keys",
            "debug checkpoint c --nonce 12",
            "debug manifest m --frames",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
        for line in ["", "debug", "debug log", "debug disk d", "debug log d --nonce x", "status -o raw"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_nonce_is_decimal_or_hexadecimal() {
        assert_eq!((parse_nonce("31"), parse_nonce("0x1f")), (Ok(31), Ok(31)));
        assert!(parse_nonce("1f").is_err());
    }
}
