//! What every core of a node knows of its cluster once it is formed: members, where each shard's replicas are,
//! and which core and log of this node own them. Fixed in this version of the product (the meta group will make
//! it live), therefore shared between cores as an immutable value.

use krita_proto::v1;
use krita_runtime::CoreId;

use crate::identity::{ClusterRecord, Identity, Member};
use crate::placement::{Candidate, ShardPlacement, place};

/// The cluster as this node sees it. Shards are numbered from 1; 0 is kept for the meta group.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) record: ClusterRecord,
    pub(crate) identity: Identity,
    /// This node's number in the record.
    pub(crate) node_number: u32,
    /// By shard number less one.
    pub(crate) placements: Vec<ShardPlacement>,
    /// By shard number less one: the log of this node that owns the shard, if the node has a replica of it.
    pub(crate) shard_logs: Vec<Option<u16>>,
    /// Logs in the data directory; at least as many as cores.
    pub(crate) logs_total: u16,
    pub(crate) cores: u16,
    pub(crate) boot_id: u64,
}

impl Cluster {
    /// How many data shards there are.
    pub(crate) fn shard_count(&self) -> u32 {
        self.record.shard_count
    }

    /// The core of this node that owns the shard; `None` if the node holds no replica of it.
    pub(crate) fn core_of(&self, shard: u32) -> Option<CoreId> {
        let log = *self.shard_logs.get(position(shard)?)?;
        log.map(|log| self.core_of_log(log))
    }

    /// The core that owns a log of this node.
    pub(crate) fn core_of_log(&self, log: u16) -> CoreId {
        CoreId(log % self.cores)
    }

    /// Where the shard's replicas are.
    pub(crate) fn placement(&self, shard: u32) -> Option<&ShardPlacement> {
        self.placements.get(position(shard)?)
    }

    /// The member with this number.
    pub(crate) fn member(&self, node_number: u32) -> Option<&Member> {
        self.record.member_by_number(node_number)
    }

    /// All members but this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Member> {
        self.record.members.iter().filter(|member| member.number != self.node_number)
    }

    /// For each shard the core of this node that owns it, in the form of `HelloReply.shard_cores`
    /// (`u32::MAX`: no replica here).
    pub(crate) fn shard_cores(&self) -> Vec<u32> {
        (1..=self.shard_count())
            .map(|shard| self.core_of(shard).map_or(u32::MAX, |core| u32::from(core.0)))
            .collect()
    }

    /// Who this node is, for a hello.
    pub(crate) fn identity(&self) -> v1::NodeIdentity {
        v1::NodeIdentity {
            node_id: self.identity.node_id.clone(),
            node_uuid: self.identity.node_uuid.to_bytes(),
            cluster_id: self.record.cluster_id.to_bytes(),
            node_number: self.node_number,
            advertised_address: self.member(self.node_number).map(|m| m.address.clone()).unwrap_or_default(),
            boot_id: self.boot_id,
        }
    }
}

/// Where every shard of a cluster lives: the same answer on every node.
pub(crate) fn placements(record: &ClusterRecord) -> Vec<ShardPlacement> {
    let candidates: Vec<Candidate> = record
        .members
        .iter()
        .map(|member| Candidate { node_number: member.number, node_uuid: member.node_uuid.0 })
        .collect();
    place(&candidates, record.shard_count, record.replication_factor)
}

fn position(shard: u32) -> Option<usize> {
    (shard as usize).checked_sub(1)
}
