//! Configuration: `krita.yaml`, then `KRITA_*` variables, then flags.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::auth::TokenDigest;

/// A node's configuration, whole and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's name.
    pub cluster_name: String,
    /// This node's name.
    pub node_id: String,
    /// The initial members' addresses, this node's included; empty = single node.
    pub peers: Vec<String>,
    /// Where everything durable lives.
    pub data_directory: PathBuf,
    /// The one port.
    pub port: u16,
    /// The address to listen on.
    pub bind_address: std::net::SocketAddr,
    /// By which others reach this node (`host:port`); one of `peers` unless that is empty.
    pub advertised_address: String,
    /// The folder with `ca.crt`, `node.crt`, `node.key`; `None` = plain text (`insecure`).
    pub tls_cert_path: Option<PathBuf>,
    /// The admin token's digest; `None` = everyone may do everything (`insecure`).
    pub token_digest: Option<TokenDigest>,
    /// Plain text allowed.
    pub insecure: bool,
    /// Cores to use; `None` = as many as the machine gives.
    pub cores: Option<u16>,
    /// Data shards of a cluster that is formed anew.
    pub shards: u32,
    /// Wished replicas of a cluster that is formed anew.
    pub replication_factor: u32,
    /// Election time-out.
    pub election_timeout: Duration,
    /// Heartbeat interval.
    pub heartbeat_interval: Duration,
    /// Whether reads may rely on a leader's lease.
    pub leader_lease: bool,
    /// The clocks of two nodes run apart by at most this many percent.
    pub max_clock_drift_percent: u32,
    /// Size of a log segment.
    pub segment_bytes: u64,
    /// Budget of the value cache, over all cores of the node.
    pub value_cache_bytes: u64,
    /// A checkpoint is made once a log has grown by this much.
    pub checkpoint_after_bytes: u64,
    /// Deadline of a request that names none.
    pub request_timeout: Duration,
    /// Most connections of clients, over all cores.
    pub connections_max: u32,
    /// Where the log goes; `None` = standard error.
    pub log_file: Option<PathBuf>,
    /// Filter of the log, in the syntax of `RUST_LOG`.
    pub log_level: String,
}

/// Where configuration comes from, weakest first. Keys in `fallbacks` and `flags` are those of `krita.yaml`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// Weaker than the file: what the program found lying about (such as the `admin.token` beside the file).
    pub fallbacks: &'a [(String, String)],
    /// `krita.yaml`: its path and its text.
    pub file: Option<(&'a Path, &'a str)>,
    /// All environment variables, or only the `KRITA_*` ones; others are ignored.
    pub environment: &'a [(String, String)],
    /// Flags as (key, value); `-` in a key counts as `_`.
    pub flags: &'a [(String, String)],
}

/// A configuration and what a person should hear about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// To be logged as warnings.
    pub warnings: Vec<String>,
}

/// Everything that is wrong with a configuration; `Display` gives one line each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors(pub Vec<String>);

/// Reads, merges and checks.
///
/// # Errors
/// All that is wrong, each line saying where and what to do.
pub fn load(sources: Sources<'_>) -> Result<Loaded, ConfigErrors> {
    let _ = sources;
    todo!()
}

/// The text of docs/configuration.md.
pub fn reference() -> String {
    todo!()
}
