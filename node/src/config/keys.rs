//! The one table of all configuration keys: type, unit, bounds, default, and what each is for.
//!
//! `krita.yaml`, `KRITA_*` variables and flags all bring texts; [`Key::check`] judges every one of them by
//! this table, and `docs/configuration.md` is made from it.

use krita_proto::routing::{NAME_BYTES_MAX, TIMEOUT_MS_MAX};

use crate::auth::TokenDigest;
use crate::identity::MEMBERS_MAX;

/// One configuration key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name in `krita.yaml`; in capitals behind `KRITA_` as a variable; with dashes as a flag.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// The value if nobody gives one; `None` = it must be given, or stays unset where `optional`.
    pub default: Option<&'static str>,
    /// Without default: may it stay unset?
    pub optional: bool,
    /// Whether a running node takes up a change; otherwise it needs a restart.
    pub dynamic: bool,
    /// One line for people.
    pub help: &'static str,
}

/// What a value looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Letters, digits, `.`, `_` and `-`.
    Name,
    /// Any text on one line.
    Text,
    /// A text that is never shown.
    Secret,
    /// The SHA-256 digest of a token.
    Digest,
    /// A file or folder; in `krita.yaml` relative to the folder of that file.
    Path,
    /// `host:port`, or `auto`.
    AddressOrAuto,
    /// An IP address, or `auto`.
    IpOrAuto,
    /// A list of `host:port`.
    Addresses,
    /// `true` or `false`.
    Boolean,
    /// A whole number.
    Integer {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A whole number, or `auto`.
    IntegerOrAuto {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A number of bytes, with KiB, MiB, GiB if wished.
    Bytes {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
    },
    /// `auto`, or such a number.
    BytesOrAuto {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
    },
}

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

const fn key(name: &'static str, kind: Kind, default: Option<&'static str>, help: &'static str) -> Key {
    Key { name, kind, default, optional: false, dynamic: false, help }
}

const fn dynamic(mut key: Key) -> Key {
    key.dynamic = true;
    key
}

const fn optional(mut key: Key) -> Key {
    key.optional = true;
    key
}

const fn integer(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Integer { min, max, unit }
}

/// Every key, in the order of the documentation.
#[rustfmt::skip]
pub const KEYS: [Key; 34] = [
    key("cluster_name", Kind::Name, None,
        "The cluster's name; a node or client of another cluster is refused."),
    key("node_id", Kind::Name, None,
        "This node's name, unique in the cluster; fixed once its data directory is made."),
    key("peers", Kind::Addresses, Some(""),
        "All nodes that form the cluster, this one included, the same list on each; empty: this node alone. As a \
         variable or flag: separated by commas."),
    key("join", Kind::Addresses, Some(""),
        "Members of a cluster that this node is to become a member of, one is enough; peers stays empty. Of no meaning \
         once the node is one."),
    key("data_directory", Kind::Path, None,
        "Where everything durable lives; one directory for each node."),
    key("port", integer(1, 65_535, "port"), Some("8080"),
        "The one port, for clients and nodes alike."),
    key("bind_address", Kind::IpOrAuto, Some("auto"),
        "The address to listen on. auto: that of advertised_address, so that a node known as 127.0.0.1 cannot be \
         reached from elsewhere; every address (0.0.0.0) if that is a host name."),
    key("advertised_address", Kind::AddressOrAuto, Some("auto"),
        "The address by which others reach this node, one of peers. auto: the only one of peers that has this port; \
         without peers, bind_address or 127.0.0.1."),
    optional(key("zone", Kind::Name, None,
        "Where this node stands, such as a rack or a data centre: replicas of a shard are spread over zones.")),
    key("capacity", integer(1, 1 << 20, "parts"), Some("100"),
        "What this node takes of the data, in proportion to the other nodes' capacity."),
    key("tls_cert_path", Kind::Path, Some("certs"),
        "The folder with ca.crt, node.crt and node.key."),
    optional(key("token", Kind::Secret, None,
        "The admin token itself; better keep only its digest, in token_sha256.")),
    optional(key("token_sha256", Kind::Digest, None,
        "SHA-256 of the admin token, in hexadecimal digits; what init writes.")),
    key("insecure", Kind::Boolean, Some("false"),
        "Plain text instead of TLS, and no token needed; for trials on one machine."),
    key("cores", Kind::IntegerOrAuto { min: 1, max: 1024, unit: "cores" }, Some("auto"),
        "Cores to use; auto: as many as the process may run on."),
    key("shards", integer(1, 4096, "shards"), Some("64"),
        "Shards of a cluster that is being formed; the same on each node. Later changes have no effect."),
    key("replication_factor", integer(1, 7, "replicas"), Some("3"),
        "Replicas of each shard in a cluster that is being formed, at most one for each node; the same on each \
         node. Later changes have no effect."),
    key("election_timeout_ms", integer(100, 60_000, "milliseconds"), Some("750"),
        "A follower that hears no leader for this long, up to twice as long, seeks election."),
    key("heartbeat_interval_ms", integer(10, 10_000, "milliseconds"), Some("100"),
        "How often a leader speaks when it has nothing to say; at most half of election_timeout_ms."),
    key("leader_lease", Kind::Boolean, Some("true"),
        "Leaders answer reads alone while a quorum has lately heard them; false: each read confirms the quorum."),
    key("leader_lease_ms", Kind::IntegerOrAuto { min: 1, max: 60_000, unit: "milliseconds" }, Some("auto"),
        "How long such a confirmation lasts; below election_timeout_ms less max_clock_drift_percent. auto: less \
         twice the drift."),
    key("max_clock_drift_percent", integer(1, 40, "percent"), Some("10"),
        "By how much the clocks of two nodes may run apart; leases depend on it."),
    key("segment_bytes", Kind::Bytes { min: 4 * MIB, max: GIB }, Some("64MiB"),
        "Size of one segment of the log, a multiple of 1 MiB; each core keeps some ready."),
    key("disk_reserve_bytes", Kind::Bytes { min: MIB, max: 1024 * GIB }, Some("256MiB"),
        "What the file system of data_directory keeps free: with less, new values are refused until space is made by \
         deletes, which may use it, or a larger disk; a node does not start with less. At least a segment for each \
         core, or a full disk makes no room."),
    key("memtable_bytes", Kind::BytesOrAuto { min: MIB, max: 1024 * GIB }, Some("auto"),
        "Memory for what was written of late, before it goes into sorted runs, over all cores; auto: a sixteenth of \
         the machine's, at least 16 MiB."),
    key("block_cache_bytes", Kind::BytesOrAuto { min: MIB, max: 1024 * GIB }, Some("auto"),
        "Memory for blocks of runs kept at hand, over all cores; auto: an eighth of the machine's, at least 16 MiB."),
    key("filter_bytes", Kind::BytesOrAuto { min: MIB, max: 1024 * GIB }, Some("auto"),
        "Memory for the filters that tell absent keys without a read, over all cores; auto: a sixteenth of the \
         machine's, at least 16 MiB. A key takes about 10 bits."),
    dynamic(key("value_cache_bytes", Kind::BytesOrAuto { min: 0, max: 1024 * GIB }, Some("auto"),
        "Memory for values kept at hand, over all cores; auto: an eighth of the machine's, at least 16 MiB.")),
    dynamic(key("checkpoint_after_bytes", Kind::Bytes { min: MIB, max: 1024 * GIB }, Some("256MiB"),
        "A core makes checkpoints once its log has grown by this much; more: fewer checkpoints, longer recovery.")),
    key("scrub_bytes_per_second", Kind::Bytes { min: 0, max: 1024 * GIB }, Some("8MiB"),
        "How fast a node reads and checks everything that it stores, over all cores, to find damage while it can be \
         mended; 0: only when told to."),
    dynamic(key("request_timeout_ms", integer(10, TIMEOUT_MS_MAX as u64, "milliseconds"), Some("5000"),
        "How long a request that names no time-out may take.")),
    dynamic(key("connections_max", integer(16, 1_000_000, "connections"), Some("10000"),
        "Most connections at one time, over all cores; further ones are closed at once.")),
    optional(key("log_file", Kind::Path, None,
        "Where log lines go; unset: standard error.")),
    dynamic(key("log_level", Kind::Text, Some("info"),
        "What to log, in the form of RUST_LOG, which takes precedence: error, warn, info, debug, trace, or by \
         target.")),
];

impl Key {
    /// The key with this name.
    pub fn by_name(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// What its values look like, for people.
    pub fn form(&self) -> String {
        match self.kind {
            Kind::Name => {
                format!("name: letters, digits, \".\", \"_\" and \"-\", at most {NAME_BYTES_MAX}")
            }
            Kind::Text => "text".to_owned(),
            Kind::Secret => "secret text".to_owned(),
            Kind::Digest => "64 hexadecimal digits".to_owned(),
            Kind::Path => "path".to_owned(),
            Kind::AddressOrAuto => "auto, or host:port".to_owned(),
            Kind::IpOrAuto => "auto, or an IP address".to_owned(),
            Kind::Addresses => format!("list of host:port, at most {MEMBERS_MAX}"),
            Kind::Boolean => "true or false".to_owned(),
            Kind::Integer { min, max, unit } => format!("{min} to {max} ({unit})"),
            Kind::IntegerOrAuto { min, max, unit } => format!("auto, or {min} to {max} ({unit})"),
            Kind::Bytes { min, max } => format!("{} to {} (bytes)", show_bytes(min), show_bytes(max)),
            Kind::BytesOrAuto { min, max } => {
                format!("auto, or {} to {} (bytes)", show_bytes(min), show_bytes(max))
            }
        }
    }

    /// Judges a text by the table; the error says what is wanted instead. An optional key may be empty.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        if self.optional && text.is_empty() {
            return Ok(());
        }
        let fits = match self.kind {
            Kind::Name => {
                let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
                (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(letter)
            }
            Kind::Text | Kind::Secret | Kind::Path => {
                !text.trim().is_empty() && !text.contains(['\n', '\r', '\0'])
            }
            Kind::Digest => TokenDigest::from_hex(text).is_ok(),
            Kind::AddressOrAuto => text == "auto" || is_address(text),
            Kind::IpOrAuto => text == "auto" || text.parse::<std::net::IpAddr>().is_ok(),
            Kind::Addresses => {
                let list = split_addresses(text);
                list.len() <= MEMBERS_MAX && list.iter().all(|address| is_address(address))
            }
            Kind::Boolean => matches!(text, "true" | "false"),
            Kind::Integer { min, max, .. } => within(text.parse().ok(), min, max),
            Kind::IntegerOrAuto { min, max, .. } => text == "auto" || within(text.parse().ok(), min, max),
            Kind::Bytes { min, max } => within(parse_bytes(text), min, max),
            Kind::BytesOrAuto { min, max } => text == "auto" || within(parse_bytes(text), min, max),
        };
        if fits { Ok(()) } else { Err(self.form()) }
    }
}

/// The key most like `name`, if one is like it at all.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let name: String = name.chars().take(64).collect::<String>().to_ascii_lowercase().replace('-', "_");
    let likely = |key: &&Key| {
        let distance = edit_distance(&name, key.name);
        (distance <= 2.max(key.name.len() / 3)).then_some((distance, key.name))
    };
    KEYS.iter().filter_map(|key| likely(&key)).min().map(|(_, name)| name)
}

/// How many letters must be put in, taken out or exchanged (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let exchanged = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = exchanged.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

pub(super) fn split_addresses(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|address| !address.is_empty()).map(str::to_owned).collect()
}

/// `host:port`, the host a name, an IPv4 address or an IPv6 address in brackets.
pub(super) fn split_address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0 && !text.ends_with('+'))?;
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').filter(|host| host.parse::<std::net::Ipv6Addr>().is_ok())?,
        None => host,
    };
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let named = (1..=253).contains(&host.len()) && host.bytes().all(letter);
    (named || bare.len() != host.len()).then_some((bare, port))
}

fn is_address(text: &str) -> bool {
    split_address(text).is_some()
}

fn within(number: Option<u64>, min: u64, max: u64) -> bool {
    number.is_some_and(|number| (min..=max).contains(&number))
}

pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let factor = match text[digits.len()..].trim_start() {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => MIB,
        "GiB" => GIB,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn show_bytes(bytes: u64) -> String {
    for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (1024, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    bytes.to_string()
}
