//! Members: who belongs to the cluster, in which state, and who no longer does.

use crate::identity::NodeUuid;
use crate::meta::refusal::Refusal;
use crate::meta::types::{ADDRESS_BYTES_MAX, NAME_BYTES_MAX, NodeNumber, Version};

/// Largest weight of a member.
pub(crate) const WEIGHT_MAX: u32 = 1 << 20;

/// What a founder counts for until it says what it does: the default of the setting `capacity`, so that nothing moves
/// when it says so.
pub(crate) const WEIGHT_DEFAULT: u32 = 100;

/// What a node says of itself when it joins or starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeDescription {
    /// Its name.
    pub node_id: String,
    /// Its data directory.
    pub node_uuid: NodeUuid,
    /// Where others reach it.
    pub address: String,
    /// Replicas of a shard are spread over zones; the empty name is a zone like any other.
    pub zone: String,
    /// Its share of replicas against the others'; `1..=WEIGHT_MAX`.
    pub weight: u32,
    /// How many cores it runs on; at least 1.
    pub cores: u32,
    /// The feature versions that its software can take part in: `1 <= feature_min <= feature_max`.
    pub feature_min: u32,
    /// See `feature_min`.
    pub feature_max: u32,
}

/// Where a member stands between joining and removal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MemberState {
    /// Admitted; it follows the meta group soon, and holds no data yet.
    Joining,
    /// It holds its share.
    Active,
    /// It gives its leaderships and replicas away and stays a member. Can be called back.
    Draining,
    /// It gives its leaderships and replicas away and is then removed. Can be called back until then.
    Decommissioning,
    /// Its data directory is gone: what it held is lost, it is removed once replicas elsewhere have taken over, and
    /// nothing brings it back.
    Retired,
}

impl MemberState {
    /// The state's number in commands and snapshots.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Joining => 1,
            Self::Active => 2,
            Self::Draining => 3,
            Self::Decommissioning => 4,
            Self::Retired => 5,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [Self::Joining, Self::Active, Self::Draining, Self::Decommissioning, Self::Retired]
            .into_iter()
            .find(|state| state.number() == number)
    }

    /// Whether the member is on its way out of the cluster.
    pub fn is_leaving(self) -> bool {
        match self {
            Self::Decommissioning | Self::Retired => true,
            Self::Joining | Self::Active | Self::Draining => false,
        }
    }

    /// Whether a member may be put from this state into `to` by command. Retired follows from a join alone.
    pub(crate) fn may_become(self, to: Self) -> bool {
        match (self, to) {
            (Self::Joining | Self::Draining | Self::Decommissioning, Self::Active)
            | (Self::Active, Self::Draining)
            | (Self::Joining | Self::Active | Self::Draining, Self::Decommissioning) => true,
            (_, Self::Joining | Self::Active | Self::Draining | Self::Decommissioning | Self::Retired) => {
                false
            }
        }
    }
}

/// One member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Given once, never again.
    pub number: NodeNumber,
    /// When it last changed.
    pub version: Version,
    /// See [`MemberState`].
    pub state: MemberState,
    /// Since when it has been seen to be down, in log time (milliseconds since 1970); 0 = it is up.
    pub down_since_ms: u64,
    /// Who it is.
    pub node: NodeDescription,
}

impl Member {
    /// Whether it counts as unable to vote now: seen to be down, or gone for good.
    pub fn is_down(&self) -> bool {
        self.down_since_ms != 0 || self.state == MemberState::Retired
    }
}

/// What is kept of a removed member, for ever: its number and its uuid are never admitted again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tombstone {
    /// The number it had.
    pub number: NodeNumber,
    /// The name it had; free for others.
    pub node_id: String,
    /// Its data directory.
    pub node_uuid: NodeUuid,
    /// When it was removed.
    pub removed_at: Version,
}

/// Checks what a node says of itself, apart from who else is there.
pub(crate) fn check_description(node: &NodeDescription) -> Result<(), Refusal> {
    let invalid = |what| Err(Refusal::Invalid(what));
    if node.node_id.is_empty() || node.node_id.len() > NAME_BYTES_MAX {
        return invalid("a node id has 1 to 128 bytes");
    }
    if node.address.is_empty() || node.address.len() > ADDRESS_BYTES_MAX {
        return invalid("an address has 1 to 262 bytes");
    }
    if node.zone.len() > NAME_BYTES_MAX {
        return invalid("a zone has at most 128 bytes");
    }
    if node.weight == 0 || node.weight > WEIGHT_MAX {
        return invalid("a weight is 1 to 1048576");
    }
    if node.cores == 0 || node.cores > u32::from(u16::MAX) {
        return invalid("a node has 1 to 65535 cores");
    }
    if node.feature_min == 0 || node.feature_min > node.feature_max {
        return invalid("feature versions count from 1, the lowest first");
    }
    Ok(())
}
