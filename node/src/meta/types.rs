//! The small types and the bounds of the meta group.

use std::fmt;

use krita_raft::ReplicaId;

use crate::placement::NODE_NUMBER_MAX;

/// Most members at one time; the cluster record has the same bound.
pub(crate) const MEMBERS_MAX: usize = crate::identity::MEMBERS_MAX;

/// Most shards of a map, shard 0 included. More than the protocol allows a cluster to begin with, so that shards may
/// be split one day.
pub(crate) const MAP_SHARDS_MAX: usize = 1 << 17;

/// Most jobs under way at one time.
pub(crate) const JOBS_RUNNING_MAX: usize = 2048;

/// How many ended jobs are remembered.
pub(crate) const JOBS_ENDED_MAX: usize = 256;

/// Longest name of a node, zone, role or token, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = krita_proto::routing::NAME_BYTES_MAX;

/// Longest address, in bytes: a DNS name and a port.
pub(crate) const ADDRESS_BYTES_MAX: usize = 262;

/// Longest text of why a job failed, in bytes.
pub(crate) const FAILURE_BYTES_MAX: usize = 256;

/// The feature version that this software can take part in at most, and therefore the newest kinds of commands that
/// it knows. 1: members, map, settings, jobs. 2: roles and tokens.
pub const FEATURE_MAX: u32 = 2;

/// The lowest feature version that this software can take part in.
pub const FEATURE_MIN: u32 = 1;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A member's number, from 1. Never given twice.
    NodeNumber(u32)
}
number! {
    /// A shard's number. 0 is the meta group; data shards count from 1.
    ShardNumber(u32)
}
number! {
    /// A job's number, from 1. Never given twice.
    JobNumber(u64)
}
number! {
    /// The index, in shard 0's log, of the command that last changed an object. 0: the object is absent, or has been
    /// as it is since the cluster was formed.
    Version(u64)
}

/// The shard of the meta group.
pub const META_SHARD: ShardNumber = ShardNumber(0);

const NODE_BITS: u32 = 16;
const SHARD_BITS: u32 = 20;
const GENERATION_BITS: u32 = 28;

/// The last generation of replicas that a shard can have. A change a second would reach it after eight years.
pub(crate) const GENERATION_MAX: u32 = (1 << GENERATION_BITS) - 1;

const _: () = {
    assert!(NODE_BITS + SHARD_BITS + GENERATION_BITS == 64);
    assert!(NODE_NUMBER_MAX < 1 << NODE_BITS && MAP_SHARDS_MAX <= 1 << SHARD_BITS);
};

/// The id of a replica: its shard's generation, its shard and its node. Every replica that the meta group makes has a
/// generation of its own, from 1, so no id is ever given twice; the ids of the static placement are those of
/// generation 0.
pub fn replica_id(shard: ShardNumber, node: NodeNumber, generation: u32) -> ReplicaId {
    assert!((1..=NODE_NUMBER_MAX).contains(&node.0), "node numbers fit 16 bits");
    assert!((shard.0 as usize) < MAP_SHARDS_MAX && generation <= GENERATION_MAX, "both are bounded");
    let (generation, shard, node) = (u64::from(generation), u64::from(shard.0), u64::from(node.0));
    ReplicaId(generation << (SHARD_BITS + NODE_BITS) | shard << NODE_BITS | node)
}

/// The node that a replica lives on.
pub fn node_of(replica: ReplicaId) -> NodeNumber {
    NodeNumber((replica.0 & ((1 << NODE_BITS) - 1)) as u32)
}

/// The shard that a replica is of.
pub fn shard_of(replica: ReplicaId) -> ShardNumber {
    ShardNumber((replica.0 >> NODE_BITS & ((1 << SHARD_BITS) - 1)) as u32)
}

/// A replica's generation within its shard.
pub fn generation_of(replica: ReplicaId) -> u32 {
    (replica.0 >> (SHARD_BITS + NODE_BITS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::static_replica_id;

    #[test]
    fn a_replica_id_tells_shard_node_and_generation() {
        for (shard, node, generation) in [(0, 1, 0), (1, 65_535, 1), (131_071, 7, GENERATION_MAX)] {
            let id = replica_id(ShardNumber(shard), NodeNumber(node), generation);
            assert_eq!((shard_of(id).0, node_of(id).0, generation_of(id)), (shard, node, generation));
        }
    }

    #[test]
    fn static_replicas_are_generation_zero() {
        for (shard, node) in [(1, 1), (64, 3), (65_536, 65_535)] {
            let id = replica_id(ShardNumber(shard), NodeNumber(node), 0);
            assert_eq!(id.0, static_replica_id(shard, node));
        }
    }
}
