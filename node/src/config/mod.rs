//! Configuration: `krita.yaml`, then `KRITA_*` variables, then flags, the later over the earlier.
//!
//! Pure: the program reads the file and the environment and passes texts in. All keys stand in one table
//! ([`KEYS`]), from which `docs/configuration.md` is made ([`reference`]). A configuration is taken whole or
//! refused whole, with everything that is wrong with it and what to do.

mod keys;
mod memory;
mod merge;
mod reference;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use keys::{KEYS, Key, Kind};
pub use reference::reference;

use crate::auth::TokenDigest;
use keys::{parse_bytes, split_address, split_addresses};
use merge::{Given, merge};

/// A node's configuration, whole and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's name.
    pub cluster_name: String,
    /// This node's name.
    pub node_id: String,
    /// The initial members' addresses, this node's included; empty = single node.
    pub peers: Vec<String>,
    /// Members of a cluster to join; empty = the node forms one, with `peers`.
    pub join: Vec<String>,
    /// Where everything durable lives.
    pub data_directory: PathBuf,
    /// The one port.
    pub port: u16,
    /// The address to listen on.
    pub bind_address: SocketAddr,
    /// By which others reach this node (`host:port`); one of `peers` unless that is empty.
    pub advertised_address: String,
    /// Where the node stands; replicas of a shard are spread over zones. Empty is a zone like any other.
    pub zone: String,
    /// Its share of the data in proportion to the other nodes' capacity.
    pub capacity: u32,
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
    /// A follower that hears no leader for this long, up to twice as long, seeks election.
    pub election_timeout: Duration,
    /// How often a leader speaks when it has nothing to say; at most half of `election_timeout`.
    pub heartbeat_interval: Duration,
    /// Whether a leader may answer reads alone while a quorum has lately heard it; see [`Config::lease`].
    pub leader_lease: bool,
    /// By how many percent two nodes' clocks may run apart; see [`Config::clock_drift_max`].
    pub max_clock_drift_percent: u32,
    /// `None` = the longest lease that leaves twice the drift.
    ///
    /// Invariant: `lease() + clock_drift_max() < election_timeout`.
    leader_lease_duration: Option<Duration>,
    /// Size of a log segment: a multiple of 1 MiB.
    pub segment_bytes: u64,
    /// What the file system must keep free for new values to be taken.
    pub disk_reserve_bytes: u64,
    /// Budget of all memtables, over all cores of the node.
    pub memtable_bytes: u64,
    /// Budget of the cache of index blocks, over all cores of the node.
    pub block_cache_bytes: u64,
    /// Budget of the runs' filters, over all cores of the node.
    pub filter_bytes: u64,
    /// Budget of the value cache, over all cores of the node.
    pub value_cache_bytes: u64,
    /// A core makes checkpoints once its log has grown by this much.
    pub checkpoint_after_bytes: u64,
    /// How fast everything stored is read and checked, over all cores of the node; 0 = only on demand.
    pub scrub_bytes_per_second: u64,
    /// Deadline of a request that names none.
    pub request_timeout: Duration,
    /// Most connections, over all cores.
    pub connections_max: u32,
    /// Where the log goes; `None` = standard error.
    pub log_file: Option<PathBuf>,
    /// Filter of the log, in the form of `RUST_LOG`.
    pub log_level: String,
    /// The text of every key, as merged: what [`Config::changed_keys`] compares.
    texts: Texts,
}

/// Holds secrets too, so `Debug` shows nothing.
#[derive(Clone)]
struct Texts(BTreeMap<&'static str, String>);

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Texts(hidden)")
    }
}

/// Where configuration comes from, weakest first. Keys in `fallbacks` and `flags` are those of `krita.yaml`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// Weaker than the file: what the program found lying about (such as the `admin.token` beside the file).
    pub fallbacks: &'a [(String, String)],
    /// `krita.yaml`: its path and its text.
    pub file: Option<(&'a Path, &'a str)>,
    /// The environment; what does not begin with `KRITA_` is ignored.
    pub environment: &'a [(String, String)],
    /// Flags as (key, value); `-` in a key counts as `_`.
    pub flags: &'a [(String, String)],
    /// The memory that the machine gives this process, in bytes: what budgets that are `auto` are shares of.
    pub memory_bytes: Option<u64>,
}

/// A configuration and what a person should hear about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// To be logged as warnings.
    pub warnings: Vec<String>,
}

/// Everything that is wrong with a configuration; `Display` gives a line for each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads, merges and checks.
///
/// # Errors
/// All that is wrong, each line saying where and what to do. Secrets are not shown.
pub fn load(sources: Sources<'_>) -> Result<Loaded, ConfigErrors> {
    let memory_bytes = sources.memory_bytes;
    let merged = merge(sources).map_err(ConfigErrors)?;
    let (texts, mut warnings) = (merged.values, merged.warnings);
    let mut errors = Vec::new();
    let config = assemble(&texts, memory_bytes, &mut errors, &mut warnings);
    if errors.is_empty() { Ok(Loaded { config, warnings }) } else { Err(ConfigErrors(errors)) }
}

impl Config {
    /// How long a quorum's confirmation lets a leader answer reads alone, counted from when it was asked for; `None` =
    /// leases are off.
    pub fn lease(&self) -> Option<Duration> {
        let longest = self.election_timeout - 2 * self.clock_drift_max();
        self.leader_lease.then(|| self.leader_lease_duration.unwrap_or(longest))
    }

    /// By how much two nodes' clocks may drift apart within one `election_timeout`.
    pub fn clock_drift_max(&self) -> Duration {
        self.election_timeout * self.max_clock_drift_percent / 100
    }

    /// The keys whose values differ from `newer`, each with whether a running node may take up the change
    /// ([`Key::dynamic`]).
    pub fn changed_keys(&self, newer: &Config) -> Vec<&'static Key> {
        KEYS.iter().filter(|key| self.texts.0.get(key.name) != newer.texts.0.get(key.name)).collect()
    }
}

/// Values that the table has already checked, by key.
struct Values<'a> {
    given: &'a BTreeMap<&'static str, Given>,
    memory_bytes: Option<u64>,
}

impl Values<'_> {
    fn text(&self, name: &str) -> &str {
        self.given.get(name).map_or("", |given| given.text.as_str())
    }

    fn optional(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|text| !text.is_empty() && *text != "auto")
    }

    fn path(&self, name: &str) -> PathBuf {
        let given = &self.given[name];
        given
            .relative_to
            .as_ref()
            .map_or_else(|| PathBuf::from(&given.text), |folder| folder.join(&given.text))
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().expect("the table has checked it")
    }

    fn number_u32(&self, name: &str) -> u32 {
        u32::try_from(self.number(name)).expect("the table bounds it")
    }

    fn bytes(&self, name: &str) -> u64 {
        parse_bytes(self.text(name)).expect("the table has checked it")
    }

    /// Bytes of memory, or the share of the machine's that `auto` stands for.
    fn budget(&self, name: &str) -> u64 {
        match self.optional(name) {
            Some(text) => parse_bytes(text).expect("the table has checked it"),
            None => memory::automatic(name, self.memory_bytes),
        }
    }

    fn milliseconds(&self, name: &str) -> Duration {
        Duration::from_millis(self.number(name))
    }

    fn boolean(&self, name: &str) -> bool {
        self.text(name) == "true"
    }
}

fn assemble(
    given: &BTreeMap<&'static str, Given>,
    memory_bytes: Option<u64>,
    errors: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Config {
    let values = Values { given, memory_bytes };
    let port = u16::try_from(values.number("port")).expect("the table bounds it");
    let peers = split_addresses(values.text("peers"));
    let advertised_address = advertised(&values, &peers, port, errors);
    let join = split_addresses(values.text("join"));
    check_join(&join, &peers, &advertised_address, errors);
    let bind_address = bind(&values, &advertised_address, port);
    let insecure = values.boolean("insecure");
    check_election(&values, errors);
    let token_digest = token(&values, insecure, errors);
    let segment_bytes = values.bytes("segment_bytes");
    if !segment_bytes.is_multiple_of(1024 * 1024) {
        errors.push(format!("segment_bytes is {segment_bytes}: give a multiple of 1 MiB"));
    }
    if insecure {
        warnings.push(insecure_text(&values, bind_address));
    }
    Config {
        cluster_name: values.text("cluster_name").to_owned(),
        node_id: values.text("node_id").to_owned(),
        peers,
        join,
        data_directory: values.path("data_directory"),
        port,
        bind_address,
        advertised_address,
        zone: values.optional("zone").unwrap_or_default().to_owned(),
        capacity: values.number_u32("capacity"),
        tls_cert_path: (!insecure).then(|| values.path("tls_cert_path")),
        token_digest,
        insecure,
        cores: values.optional("cores").map(|cores| cores.parse().expect("the table has checked it")),
        shards: values.number_u32("shards"),
        replication_factor: values.number_u32("replication_factor"),
        election_timeout: values.milliseconds("election_timeout_ms"),
        heartbeat_interval: values.milliseconds("heartbeat_interval_ms"),
        leader_lease: values.boolean("leader_lease"),
        max_clock_drift_percent: values.number_u32("max_clock_drift_percent"),
        leader_lease_duration: values
            .optional("leader_lease_ms")
            .map(|_| values.milliseconds("leader_lease_ms")),
        segment_bytes,
        disk_reserve_bytes: values.bytes("disk_reserve_bytes"),
        memtable_bytes: values.budget("memtable_bytes"),
        block_cache_bytes: values.budget("block_cache_bytes"),
        filter_bytes: values.budget("filter_bytes"),
        value_cache_bytes: values.budget("value_cache_bytes"),
        checkpoint_after_bytes: values.bytes("checkpoint_after_bytes"),
        scrub_bytes_per_second: values.bytes("scrub_bytes_per_second"),
        request_timeout: values.milliseconds("request_timeout_ms"),
        connections_max: values.number_u32("connections_max"),
        log_file: values.optional("log_file").map(|_| values.path("log_file")),
        log_level: values.text("log_level").to_owned(),
        texts: Texts(given.iter().map(|(name, given)| (*name, given.text.clone())).collect()),
    }
}

fn check_join(join: &[String], peers: &[String], own: &str, errors: &mut Vec<String>) {
    if !join.is_empty() && !peers.is_empty() {
        errors.push(
            "join and peers are both given: a node joins a cluster that is there, or forms one with its peers"
                .to_owned(),
        );
    }
    if join.iter().any(|address| address == own) {
        errors.push(format!("join names {own}, this node itself: name members of the cluster"));
    }
}

/// Which of the peers this node is. Never a guess between two.
fn advertised(values: &Values<'_>, peers: &[String], port: u16, errors: &mut Vec<String>) -> String {
    let listed = peers.join(", ");
    for (position, peer) in peers.iter().enumerate() {
        if peers[..position].contains(peer) {
            errors.push(format!("peers names {peer} twice: name each node once"));
        }
    }
    if let Some(address) = values.optional("advertised_address") {
        if !peers.is_empty() && !peers.iter().any(|peer| peer == address) {
            errors.push(format!(
                "advertised_address {address} is not one of peers ({listed}): write it as it stands there, or add it"
            ));
        }
        return address.to_owned();
    }
    if peers.is_empty() {
        let host = values.optional("bind_address").and_then(|text| text.parse::<IpAddr>().ok());
        let host = host.filter(|host| !host.is_unspecified()).unwrap_or(Ipv4Addr::LOCALHOST.into());
        return SocketAddr::new(host, port).to_string();
    }
    let mine = |peer: &&String| split_address(peer).is_some_and(|(_, of_peer)| of_peer == port);
    let mut candidates = peers.iter().filter(mine);
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => only.clone(),
        (Some(_), Some(_)) => {
            errors.push(format!(
                "several of peers ({listed}) have port {port}: set advertised_address to the one that is this node"
            ));
            String::new()
        }
        (None, _) => {
            errors.push(format!(
                "none of peers ({listed}) has port {port}: set advertised_address to the one that is this node, \
                 or correct port"
            ));
            String::new()
        }
    }
}

fn bind(values: &Values<'_>, advertised_address: &str, port: u16) -> SocketAddr {
    let configured = values.optional("bind_address").and_then(|text| text.parse::<IpAddr>().ok());
    let known_as = || match split_address(advertised_address)?.0 {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        host => host.parse::<IpAddr>().ok(),
    };
    SocketAddr::new(configured.or_else(known_as).unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port)
}

/// The relations between the times that leadership rests on.
fn check_election(values: &Values<'_>, errors: &mut Vec<String>) {
    let election_ms = values.number("election_timeout_ms");
    let heartbeat_ms = values.number("heartbeat_interval_ms");
    let percent = values.number("max_clock_drift_percent");
    if heartbeat_ms * 2 > election_ms {
        errors.push(format!(
            "heartbeat_interval_ms is {heartbeat_ms}, more than half of election_timeout_ms ({election_ms}): a single \
             lost heartbeat would start an election; lower it or raise election_timeout_ms"
        ));
    }
    // Without leader_lease_ms the lease is election_timeout less twice the drift, which is at least one percent.
    if let Some(lease_ms) = values.optional("leader_lease_ms").map(|_| values.number("leader_lease_ms"))
        && values.boolean("leader_lease")
        && lease_ms * 100 + election_ms * percent >= election_ms * 100
    {
        errors.push(format!(
            "leader_lease_ms is {lease_ms}, not below election_timeout_ms ({election_ms}) less {percent} % of clock \
             drift ({}): two leaders could answer reads at one time; lower it, or set it to auto",
            election_ms * (100 - percent) / 100,
        ));
    }
}

fn token(values: &Values<'_>, insecure: bool, errors: &mut Vec<String>) -> Option<TokenDigest> {
    let of_token = values.optional("token").map(|token| TokenDigest::of(token.trim()));
    let of_hex = values.optional("token_sha256").and_then(|hex| TokenDigest::from_hex(hex).ok());
    match (of_token, of_hex) {
        (Some(token), Some(digest)) if token != digest => {
            errors
                .push("token and token_sha256 belong to different tokens: give only one of them".to_owned());
            None
        }
        (None, None) if !insecure => {
            errors.push(
                "no token: put admin.token beside the file (`init` does), or set KRITA_TOKEN or token_sha256; \
                 insecure: true does without, for trials on one machine"
                    .to_owned(),
            );
            None
        }
        (token, digest) => token.or(digest),
    }
}

fn insecure_text(values: &Values<'_>, bind_address: SocketAddr) -> String {
    let whom = if bind_address.ip().is_loopback() { "on this machine" } else { "who reaches this port" };
    let token = values.optional("token").or(values.optional("token_sha256"));
    let may = if token.is_some() {
        "can read the traffic, tokens included"
    } else {
        "may read and change all data"
    };
    format!("insecure: true: no TLS; everyone {whom} {may}")
}

#[cfg(test)]
mod tests;
