//! What `kritactl` does. Its command line stands here; [`debug`] looks into files, `doctor` at this machine and the
//! way to the others.

mod changes;
mod cluster;
pub mod debug;
mod doctor;
mod files;
mod inventory;
mod jobs;
mod json;
mod lock;
mod text;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::connection::{ConnectionArguments, PROFILE_HELP};
use crate::documents;
use crate::failure::Failure;
use crate::output::{Output, Printer};

const EXIT_CODES: &str = "\
Results go to stdout, messages to stderr. Exit codes:
   0  done; nothing is wrong
   1  failed: a file cannot be read, a node refused
   2  wrong usage
   4  not authenticated, or denied
   5  unavailable, or timed out
  10  unhealthy, not all replicas could be compared, or doctor found what must be mended
  11  damage was found, or replicas differ; what and where is printed";

const EXAMPLES: &str = "\
Examples:
  kritactl status
  kritactl doctor --config /etc/krita/krita.yaml
  kritactl node list -o table
  kritactl shard show 5
  kritactl node drain node3 --dry-run
  kritactl job list
  kritactl cluster rebalance --dry-run
  kritactl verify
  kritactl scrub --all --dry-run
  kritactl debug log /var/lib/krita/data
  kritactl debug segment data/log-000/segment-3 --batch 812
  kritactl debug run data/log-000/run-5-17 --keys -o json";

/// Tells how a Krita cluster is, and what is in the files of a stopped node.
#[derive(Parser, Debug)]
#[command(name = "kritactl", version, after_help = format!("{EXAMPLES}\n\n{PROFILE_HELP}\n\n{EXIT_CODES}"))]
pub struct Arguments {
    /// How to reach the cluster.
    #[command(flatten)]
    pub connection: ConnectionArguments,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say how every member of the cluster is, and what its disk holds.
    #[command(after_help = "Examples:\n  kritactl status\n  kritactl status -o json")]
    Status,
    /// Check this machine and the way to each peer: what would keep a node from starting, or from being heard.
    #[command(after_help = "\
Looks at: the kernel, io_uring, locked memory, open files, the disk of data_directory, certificates and their expiry,
the token, the clock beside the peers', and for each peer its name, its port and a hello with the token.
The limits are those of this process: run it as the node runs (as its user; under systemd, see systemctl show).
Exit code 10 if something must be mended.

Examples:
  kritactl doctor
  kritactl doctor --config /etc/krita/krita.yaml -o table")]
    Doctor {
        /// The node's configuration [default: krita.yaml of the profile or the current folder].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Look at members, and empty them.
    #[command(subcommand)]
    Node(Node),
    /// Look at shards, and move them.
    #[command(subcommand)]
    Shard(Shard),
    /// Look at what the cluster is changing, and stop it.
    #[command(subcommand)]
    Job(Job),
    /// Change the cluster as a whole.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Compare the replicas of each shard with each other. Shards that are equal are counted, others shown.
    #[command(after_help = "Examples:\n  kritactl verify\n  kritactl verify --shard 5 -o json")]
    Verify {
        /// Only this shard.
        #[arg(long)]
        shard: Option<u32>,
    },
    /// Have the named node read and check everything that it stores, beginning now; damage is mended from peers.
    #[command(after_help = "Examples:\n  kritactl scrub --host node2\n  kritactl scrub --all")]
    Scrub {
        /// Every member.
        #[arg(long)]
        all: bool,
        /// Say which nodes would, and let none begin.
        #[arg(long)]
        dry_run: bool,
    },
    /// Look into files, with every checksum verified and nothing written. The node must be stopped.
    #[command(subcommand)]
    Debug(Debug),
    /// Print completions for a shell.
    #[command(after_help = "\
Examples:
  source <(kritactl completions bash)
  kritactl completions zsh > ~/.zfunc/_kritactl")]
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write man pages into a folder, one for each command.
    #[command(after_help = "Examples:\n  kritactl manual /usr/local/share/man/man1")]
    Manual {
        /// The folder; made if it is not there.
        directory: PathBuf,
    },
}

/// What of the members.
#[derive(Subcommand, Debug)]
pub enum Node {
    /// List the members, one a line.
    List,
    /// Say how the named node is, and with whom it talks.
    Status,
    /// Have a node give its leaderships and replicas to others. It stays a member.
    #[command(
        after_help = "Examples:\n  kritactl node drain node3 --dry-run\n  kritactl node drain node3 --yes"
    )]
    Drain(NodeArguments),
    /// Have a node give its leaderships and replicas to others, and remove it then. Its data directory is of no use
    /// afterwards.
    #[command(after_help = "Examples:\n  kritactl node decommission node3 --yes")]
    Decommission(NodeArguments),
    /// Have a node that drains, or is being decommissioned, take its share again.
    #[command(after_help = "Examples:\n  kritactl node call-back node3")]
    CallBack {
        /// Its node_id or its number.
        node: String,
    },
}

/// What of the shards.
#[derive(Subcommand, Debug)]
pub enum Shard {
    /// List the shards with their leaders and replicas, as the named node knows them.
    List,
    /// Show the replicas of one shard as each of their nodes tells them.
    Show {
        /// Which shard.
        shard: u32,
    },
    /// Move a replica of a shard from one node to another. Ends once the job has begun.
    #[command(after_help = "Examples:\n  kritactl shard move 5 --from node1 --to node4")]
    Move {
        /// Which shard.
        shard: u32,
        /// The node that gives its replica up; left out: one more replica.
        #[arg(long, value_name = "NODE", required_unless_present = "to")]
        from: Option<String>,
        /// The node that takes a replica; left out: one replica less.
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Have the replica on a node lead a shard, now and as long as it is well.
    #[command(after_help = "Examples:\n  kritactl shard transfer-leader 5 --to node2")]
    TransferLeader {
        /// Which shard.
        shard: u32,
        /// The node.
        #[arg(long, value_name = "NODE")]
        to: String,
    },
}

/// Which node, and how surely.
#[derive(Args, Debug)]
pub struct NodeArguments {
    /// Its node_id or its number.
    pub node: String,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// What of the jobs.
#[derive(Subcommand, Debug)]
pub enum Job {
    /// List the jobs under way, and the last that ended.
    List,
    /// Show one job.
    Show {
        /// Its number.
        job: u64,
    },
    /// Stop a job. What it has begun is undone, or finished where it is too late for that.
    #[command(after_help = "Examples:\n  kritactl job cancel 12")]
    Cancel {
        /// Its number.
        job: u64,
    },
}

/// What of the cluster.
#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    /// Plan, and begin what is planned, also where the setting balance says not to.
    #[command(after_help = "Examples:\n  kritactl cluster rebalance --dry-run\n  kritactl cluster rebalance")]
    Rebalance {
        /// Only tell what would be begun.
        #[arg(long)]
        dry_run: bool,
    },
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
pub fn run(arguments: &Arguments, print: &mut Printer<'_>) -> Result<(), Failure> {
    let target = || arguments.connection.target();
    match &arguments.command {
        Command::Status => cluster::status(&target()?, print),
        Command::Doctor { config } => doctor::run(config.as_deref(), &arguments.connection, print),
        Command::Node(Node::List) => inventory::nodes(&target()?, print),
        Command::Node(Node::Status) => inventory::node(&target()?, print),
        Command::Node(Node::Drain(node)) => changes::empty(&target()?, node, changes::Emptying::Drain, print),
        Command::Node(Node::Decommission(node)) => {
            changes::empty(&target()?, node, changes::Emptying::Decommission, print)
        }
        Command::Node(Node::CallBack { node }) => changes::call_back(&target()?, node, print),
        Command::Shard(Shard::Move { shard, from, to }) => {
            changes::move_replica(&target()?, *shard, from.as_deref(), to.as_deref(), print)
        }
        Command::Shard(Shard::TransferLeader { shard, to }) => {
            changes::transfer_leader(&target()?, *shard, to, print)
        }
        Command::Job(Job::List) => jobs::list(&target()?, print),
        Command::Job(Job::Show { job }) => jobs::show(&target()?, *job, print),
        Command::Job(Job::Cancel { job }) => jobs::cancel(&target()?, *job, print),
        Command::Cluster(ClusterCommand::Rebalance { dry_run }) => {
            changes::rebalance(&target()?, *dry_run, print)
        }
        Command::Shard(Shard::List) => inventory::shards(&target()?, print),
        Command::Shard(Shard::Show { shard }) => inventory::shard(&target()?, *shard, print),
        Command::Verify { shard } => cluster::verify(&target()?, *shard, print),
        Command::Scrub { all, dry_run } => cluster::scrub(&target()?, *all, *dry_run, print),
        Command::Debug(command) => debug::run(command, print),
        Command::Completions { shell } => documents::completions(Arguments::command(), *shell, print),
        Command::Manual { directory } => documents::manual(Arguments::command(), directory, print),
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
            "scrub --all --dry-run",
            "doctor --config krita.yaml",
            "node list",
            "node status --host h",
            "shard list -o table",
            "shard show 3",
            "node drain node3 --yes",
            "node decommission 3 --dry-run",
            "node call-back node3",
            "shard move 5 --from node1 --to 4",
            "shard move 5 --to node4",
            "shard transfer-leader 5 --to node2",
            "job list",
            "job show 1",
            "job cancel 1 -o json",
            "cluster rebalance --dry-run",
            "completions fish",
            "manual d",
            "debug log d",
            "debug log d --records -o json --force --nonce 0xff",
            "debug segment s --batch 8",
            "debug run r --keys",
            "debug checkpoint c --nonce 12",
            "debug manifest m --frames",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
        for line in [
            "",
            "debug",
            "debug log",
            "debug disk d",
            "debug log d --nonce x",
            "status -o xml",
            "shard show x",
            "node drain",
            "shard move 5",
            "shard transfer-leader 5",
            "job show x",
            "cluster",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_nonce_is_decimal_or_hexadecimal() {
        assert_eq!((parse_nonce("31"), parse_nonce("0x1f")), (Ok(31), Ok(31)));
        assert!(parse_nonce("1f").is_err());
    }
}
