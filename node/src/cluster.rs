//! What every core of a node knows of its cluster once it is formed: members, where each shard's replicas are,
//! and which core and log of this node own them. An immutable value that cores share.
//!
//! Shard 0, the meta group, always lives in log 0, and so on core 0, which speaks for the node: whoever looks for it
//! there needs no directory, and it never moves between logs.

use std::sync::Arc;

use krita_proto::v1;
use krita_raft::{Configuration, ReplicaId};
use krita_runtime::CoreId;

use crate::identity::{ClusterRecord, Identity, Member};
use crate::meta::{META_SHARD, MetaState, Role};
use crate::placement::{Candidate, PlacedReplica, ShardPlacement, place};

/// The log of every node that holds the meta group.
pub(crate) const META_LOG: u16 = 0;

/// The cluster as this node sees it. Data shards are numbered from 1; 0 is the meta group.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) record: ClusterRecord,
    pub(crate) identity: Identity,
    /// This node's number in the record.
    pub(crate) node_number: u32,
    /// The state of the meta group when the cluster was formed: it follows from the record.
    pub(crate) genesis: Arc<MetaState>,
    /// By shard number; the first is the meta group's.
    pub(crate) placements: Vec<ShardPlacement>,
    /// By shard number: the log of this node that owns the shard, if the node has a replica of it.
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
        self.log_of(shard).map(|log| self.core_of_log(log))
    }

    /// The log of this node that owns the shard; `None` if the node holds no replica of it.
    pub(crate) fn log_of(&self, shard: u32) -> Option<u16> {
        *self.shard_logs.get(shard as usize)?
    }

    /// The shards of one log of this node.
    pub(crate) fn shards_of(&self, log: u16) -> impl Iterator<Item = u32> {
        let owned = (0..).zip(&self.shard_logs).filter(move |(_, owner)| **owner == Some(log));
        owned.map(|(shard, _)| shard)
    }

    /// The core that owns a log of this node.
    pub(crate) fn core_of_log(&self, log: u16) -> CoreId {
        CoreId(log % self.cores)
    }

    /// Where the shard's replicas are.
    pub(crate) fn placement(&self, shard: u32) -> Option<&ShardPlacement> {
        self.placements.get(shard as usize)
    }

    /// The members of a shard's group when it was made.
    pub(crate) fn first_configuration(&self, shard: u32) -> Option<Configuration> {
        if shard == META_SHARD.0 {
            return Some(first_meta_configuration(&self.genesis));
        }
        let placement = self.placement(shard)?;
        Some(Configuration::new(placement.replicas.iter().map(|replica| ReplicaId(replica.replica_id)), []))
    }

    /// Whether this node's replica was the only voter of the shard's group when that was made: nobody else can lead it
    /// with what it has.
    pub(crate) fn began_alone(&self, shard: u32) -> bool {
        let own = self.placement(shard).and_then(|placement| {
            placement.replicas.iter().find(|replica| replica.node_number == self.node_number)
        });
        let configuration = self.first_configuration(shard);
        configuration.zip(own).is_some_and(|(all, own)| all.is_sole_voter(ReplicaId(own.replica_id)))
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

/// Where every data shard of a cluster lives when it is formed: the same answer on every node.
pub(crate) fn placements(record: &ClusterRecord) -> Vec<ShardPlacement> {
    let candidates: Vec<Candidate> = record
        .members
        .iter()
        .map(|member| Candidate { node_number: member.number, node_uuid: member.node_uuid.0 })
        .collect();
    place(&candidates, record.shard_count, record.replication_factor)
}

/// Where the meta group lives when the cluster is formed: on every member.
pub(crate) fn meta_placement(genesis: &MetaState) -> ShardPlacement {
    let shard = genesis.map().shard(META_SHARD).expect("every map has the meta group");
    let mut replicas: Vec<PlacedReplica> = shard
        .replicas
        .iter()
        .map(|replica| PlacedReplica { node_number: replica.node().0, replica_id: replica.id.0 })
        .collect();
    replicas.sort_by_key(|replica| (replica.replica_id != shard.preferred_leader.0, replica.node_number));
    ShardPlacement { shard: META_SHARD.0, replicas }
}

fn first_meta_configuration(genesis: &MetaState) -> Configuration {
    let shard = genesis.map().shard(META_SHARD).expect("every map has the meta group");
    let of = |role: Role| shard.replicas.iter().filter(move |replica| replica.role == role);
    Configuration::new(of(Role::Voter).map(|replica| replica.id), of(Role::Learner).map(|replica| replica.id))
}
