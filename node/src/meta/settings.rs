//! The cluster's settings: typed, each with its bounds and its default.

use std::collections::BTreeMap;

use crate::meta::types::Version;

/// Every setting of the cluster. All are whole numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Setting {
    /// Replicas of each data shard; a smaller cluster has fewer.
    ReplicationFactor,
    /// A node that has been down for this long has its replicas rebuilt elsewhere, in milliseconds.
    ReplaceAfterMs,
    /// A voter of the meta group that has been down for this long gives its vote to another, in milliseconds.
    MetaReplaceAfterMs,
    /// Voters of the meta group; odd.
    MetaVoters,
    /// Changes of shards under way at one time in the whole cluster.
    MovesMax,
    /// The same on one node, as source or target.
    MovesPerNodeMax,
    /// Bytes a second that a node sends for moves; 0 = no limit.
    MoveBytesPerSecondMax,
    /// 0: a read without a quorum is an error; 1: it may be answered stale, and marked.
    ReadFallback,
    /// 0: replicas move for repair and on request only; 1: also to balance.
    Balance,
}

impl Setting {
    /// All of them, by number.
    pub const ALL: [Self; 9] = [
        Self::ReplicationFactor,
        Self::ReplaceAfterMs,
        Self::MetaReplaceAfterMs,
        Self::MetaVoters,
        Self::MovesMax,
        Self::MovesPerNodeMax,
        Self::MoveBytesPerSecondMax,
        Self::ReadFallback,
        Self::Balance,
    ];

    /// Stable for ever.
    pub fn number(self) -> u32 {
        match self {
            Self::ReplicationFactor => 1,
            Self::ReplaceAfterMs => 2,
            Self::MetaReplaceAfterMs => 3,
            Self::MetaVoters => 4,
            Self::MovesMax => 5,
            Self::MovesPerNodeMax => 6,
            Self::MoveBytesPerSecondMax => 7,
            Self::ReadFallback => 8,
            Self::Balance => 9,
        }
    }

    /// The setting with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.number() == number)
    }

    /// The name that people use.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReplicationFactor => "replication_factor",
            Self::ReplaceAfterMs => "replace_after_ms",
            Self::MetaReplaceAfterMs => "meta_replace_after_ms",
            Self::MetaVoters => "meta_voters",
            Self::MovesMax => "moves_max",
            Self::MovesPerNodeMax => "moves_per_node_max",
            Self::MoveBytesPerSecondMax => "move_bytes_per_second_max",
            Self::ReadFallback => "read_fallback",
            Self::Balance => "balance",
        }
    }

    /// The lowest value, the value of a cluster that has set none, and the highest value.
    pub fn bounds(self) -> (u64, u64, u64) {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        match self {
            Self::ReplicationFactor => (1, 3, 7),
            Self::ReplaceAfterMs => (1_000, 300_000, 30 * DAY_MS),
            Self::MetaReplaceAfterMs => (1_000, 30_000, 30 * DAY_MS),
            Self::MetaVoters => (1, 3, 7),
            Self::MovesMax => (1, 64, 1024),
            Self::MovesPerNodeMax => (1, 4, 256),
            Self::MoveBytesPerSecondMax => (0, 64 << 20, 1 << 40),
            Self::ReadFallback => (0, 0, 1),
            Self::Balance => (0, 1, 1),
        }
    }

    /// Whether the setting may have this value.
    pub fn allows(self, value: u64) -> bool {
        let (lowest, _, highest) = self.bounds();
        let odd_enough = self != Self::MetaVoters || value % 2 == 1;
        (lowest..=highest).contains(&value) && odd_enough
    }
}

/// The values of all settings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Only what was ever set.
    pub(crate) set: BTreeMap<Setting, (u64, Version)>,
}

impl Settings {
    /// The value in force.
    pub fn get(&self, setting: Setting) -> u64 {
        let (_, default, _) = setting.bounds();
        self.set.get(&setting).map_or(default, |(value, _)| *value)
    }

    /// When it was last set; 0 = never.
    pub fn version(&self, setting: Setting) -> Version {
        self.set.get(&setting).map_or(Version(0), |(_, version)| *version)
    }
}
