//! What is known of a node: records, and which of two counts.
//!
//! A [`Record`] travels; a [`Member`] is what a node holds. Of two records of one node the one with the higher
//! incarnation counts, and in one incarnation the higher [`State`]: a join of a lattice, so that it does not matter
//! in which order, or how often, records arrive.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use krita_runtime::Instant;

/// 16 random bytes that name one data directory, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeUuid(pub [u8; 16]);

impl fmt::Debug for NodeUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for NodeUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// 16 random bytes that name one cluster, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterId(pub [u8; 16]);

/// What a node says of itself and does not change within one incarnation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Profile {
    /// Its name. At most [`NAME_BYTES_MAX`].
    pub node_id: String,
    /// Given by the cluster, from 1; 0 before.
    pub node_number: u32,
    /// The address that others reach it by. At most [`ADDRESS_BYTES_MAX`].
    pub address: String,
    /// Where it stands, for placement. At most [`NAME_BYTES_MAX`].
    pub zone: String,
    /// What it can take relative to other nodes.
    pub capacity: u64,
    /// For people. At most [`NAME_BYTES_MAX`].
    pub software_version: String,
    /// The highest feature version that it understands.
    pub feature_version: u32,
    /// Random for each start of the process.
    pub boot_id: u64,
}

/// Longest name, zone or version, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest address, in bytes: a DNS name and a port.
pub const ADDRESS_BYTES_MAX: usize = 300;

impl Profile {
    /// Whether it may travel.
    pub fn check(&self) -> Result<(), &'static str> {
        let names = [&self.node_id, &self.zone, &self.software_version];
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
            return Err("a name, zone or version is too long");
        }
        if self.address.is_empty() || self.address.len() > ADDRESS_BYTES_MAX {
            return Err("an address is empty or too long");
        }
        Ok(())
    }
}

/// How a node finds itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum Health {
    /// All is well.
    #[default]
    Well,
    /// It works, with something that wants attention.
    Impaired,
    /// It cannot do a part of its work.
    Failing,
}

/// What changes all the time. Hints: nothing rests on them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Vitals {
    /// How busy it is, in thousandths of what it can take; may exceed 1000.
    pub load_per_mille: u32,
    /// What its logs hold.
    pub stored_bytes: u64,
    /// How it finds itself.
    pub health: Health,
    /// The epoch of the shard map that it follows.
    pub shard_map_epoch: u64,
    /// The epoch of the settings that it follows.
    pub settings_epoch: u64,
}

/// Vitals with their age: of two the one with the higher (incarnation, sequence) counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct StampedVitals {
    /// The node's incarnation when it published them.
    pub incarnation: u64,
    /// Counts what it published.
    pub sequence: u32,
    /// What it published.
    pub vitals: Vitals,
}

/// What a cluster thinks of a node. The order is that of [`Record`]s of one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum State {
    /// It answers, as far as anybody knows.
    Alive,
    /// Somebody could not reach it. It has time to contradict.
    Suspect,
    /// It did not contradict in time.
    Dead,
    /// It said itself that it leaves.
    Left,
}

impl State {
    /// Dead or left: nobody probes it any more.
    pub const fn is_gone(self) -> bool {
        matches!(self, Self::Dead | Self::Left)
    }
}

/// Highest incarnation that a peer may claim: a node can always go above it.
pub const INCARNATION_MAX: u64 = 1 << 62;

/// Most accusers that a record names.
pub const ACCUSERS_MAX: usize = 8;

/// What travels of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Who it is about.
    pub uuid: NodeUuid,
    /// Raised by that node only. `<= INCARNATION_MAX + 1`.
    pub incarnation: u64,
    /// In that incarnation.
    pub state: State,
    /// In that incarnation.
    pub profile: Arc<Profile>,
    /// The newest that are known.
    pub vitals: StampedVitals,
    /// Of a suspect: who could not reach it. At most [`ACCUSERS_MAX`].
    pub accusers: Vec<NodeUuid>,
    /// Of a dead or left node: for how long.
    pub gone_for: Duration,
}

impl Record {
    /// An upper bound of what it takes in a message.
    pub(super) fn bytes_max(&self) -> usize {
        // Fixed parts: a uuid, six numbers of the profile and record, the vitals, tags and lengths.
        const FIXED: usize = 18 + 11 * 4 + 6 * 2 + 9 + 2 + 11 * 5 + 6 + 4 * 4 + 12;
        let profile = &self.profile;
        let texts = [&profile.node_id, &profile.address, &profile.zone, &profile.software_version];
        FIXED + texts.iter().map(|text| text.len()).sum::<usize>() + 18 * self.accusers.len()
    }
}

/// New vitals of a node that the receiver is thought to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VitalsNews {
    /// Whose.
    pub uuid: NodeUuid,
    /// What it published.
    pub vitals: StampedVitals,
}

impl VitalsNews {
    /// An upper bound of what it takes in a message.
    pub(super) const BYTES_MAX: usize = 18 + 11 * 4 + 6 * 2 + 6;
}

/// What a node holds of another.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who it is.
    pub uuid: NodeUuid,
    /// The highest that it is known to have had.
    pub incarnation: u64,
    /// In that incarnation.
    pub state: State,
    /// In that incarnation.
    pub profile: Arc<Profile>,
    /// The newest that are known.
    pub vitals: StampedVitals,
    /// When this node had a message from it last.
    pub heard_at: Option<Instant>,
    /// Since when it has been dead or left, if it is.
    pub gone_at: Option<Instant>,
    /// Since when it has answered others only: this node's own pings get no answer.
    pub unreached_since: Option<Instant>,
}

/// What a record changed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Change {
    /// Of what is said of the node before; `None`: it was unknown.
    pub(super) before: Option<State>,
    /// Incarnation or state.
    pub(super) standing: bool,
    pub(super) profile: bool,
    pub(super) vitals: bool,
    /// The record is older than what is known.
    pub(super) stale: bool,
}

impl Member {
    pub(super) fn new(now: Instant, record: &Record) -> Self {
        Self {
            uuid: record.uuid,
            incarnation: record.incarnation,
            state: record.state,
            profile: record.profile.clone(),
            vitals: record.vitals,
            heard_at: None,
            gone_at: record.state.is_gone().then(|| now - record.gone_for),
            unreached_since: None,
        }
    }

    /// Takes in what is newer. The order of calls does not matter, nor how often each is made.
    pub(super) fn merge(&mut self, now: Instant, record: &Record) -> Change {
        debug_assert_eq!(self.uuid, record.uuid);
        let mut change = Change { before: Some(self.state), ..Change::default() };
        let (known, told) = ((self.incarnation, self.state), (record.incarnation, record.state));
        let gone_at = record.state.is_gone().then(|| now - record.gone_for);
        change.stale = told < known;
        if told > known {
            change.standing = true;
            self.state = record.state;
            self.gone_at = gone_at;
        } else if told == known {
            self.gone_at = self.gone_at.min(gone_at);
        }
        // Within one incarnation a profile is one; should two differ all the same, everybody takes the same one.
        let newer = record.incarnation > self.incarnation;
        if newer || (record.incarnation == self.incarnation && record.profile > self.profile) {
            change.profile = record.profile != self.profile;
            self.profile = record.profile.clone();
        }
        self.incarnation = self.incarnation.max(record.incarnation);
        change.vitals = self.merge_vitals(record.vitals);
        change
    }

    /// Takes in vitals if they are newer; whether they were.
    pub(super) fn merge_vitals(&mut self, vitals: StampedVitals) -> bool {
        let newer = vitals > self.vitals;
        if newer {
            self.vitals = vitals;
        }
        newer
    }

    /// What this node tells others of it.
    pub(super) fn record(&self, now: Instant, accusers: Vec<NodeUuid>) -> Record {
        Record {
            uuid: self.uuid,
            incarnation: self.incarnation,
            state: self.state,
            profile: self.profile.clone(),
            vitals: self.vitals,
            accusers: if self.state == State::Suspect { accusers } else { Vec::new() },
            gone_for: self.gone_at.map_or(Duration::ZERO, |gone_at| now.since(gone_at)),
        }
    }
}
