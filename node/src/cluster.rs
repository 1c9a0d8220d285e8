//! What every core of a node knows of its cluster: members, where each shard's replicas are, and which core and log of
//! this node own them. An immutable value; when shard 0 has applied a change, another takes its place on every core
//! (`Core::publish_meta_state`). A node that follows late knows an older state: a shard's own configuration rules, and
//! whatever is done by the map is checked there.
//!
//! Shard 0, the meta group, always lives in log 0, and so on core 0, which speaks for the node: whoever looks for it
//! there needs no directory, and it never moves between logs.

use std::sync::Arc;

use krita_proto::v1;
use krita_raft::{Configuration, ReplicaId};
use krita_runtime::CoreId;

use crate::identity::{ClusterRecord, Identity, Member, NodeUuid};
use crate::meta::{self, JobKind, META_SHARD, MemberState, MetaState, NodeNumber, Role, ShardNumber};
use crate::placement::{Candidate, PlacedReplica, ShardPlacement, place};
use crate::replica_notes::{Note, ReplicaNotes};

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
    /// The newest state of the meta group that is applied here.
    pub(crate) state: Arc<MetaState>,
    /// Which replicas this node holds, and held, when it started.
    pub(crate) noted: Arc<ReplicaNotes>,
    /// By shard number: the log of this node that owns the shard, or would if the node had a replica of it.
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

    /// The core of this node that owns the shard, whether or not there is a replica; `None`: there is no such shard.
    pub(crate) fn core_of(&self, shard: u32) -> Option<CoreId> {
        self.log_of(shard).map(|log| self.core_of_log(log))
    }

    /// The log of this node that owns the shard, whether or not it holds a replica; `None`: there is no such shard.
    pub(crate) fn log_of(&self, shard: u32) -> Option<u16> {
        *self.shard_logs.get(shard as usize)?
    }

    /// The shards of one log of this node of which it held a replica when it started.
    pub(crate) fn shards_of(&self, log: u16) -> impl Iterator<Item = u32> {
        let owned = (0..).zip(&self.shard_logs).filter(move |(_, owner)| **owner == Some(log));
        owned.map(|(shard, _)| shard).filter(|shard| self.noted.held(*shard).is_some())
    }

    /// The core that owns a log of this node.
    pub(crate) fn core_of_log(&self, log: u16) -> CoreId {
        CoreId(log % self.cores)
    }

    /// The same with a newer state of the meta group; `None` if it is not newer.
    pub(crate) fn with_state(&self, state: &Arc<MetaState>) -> Option<Self> {
        let is_newer = state.applied_index() > self.state.applied_index();
        is_newer.then(|| Self { state: state.clone(), ..self.clone() })
    }

    /// Grows with every change of the shard map.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.map().epoch()
    }

    /// Where the shard's replicas were when the cluster was formed.
    pub(crate) fn first_placement(&self, shard: u32) -> Option<ShardPlacement> {
        self.genesis.map().shard(ShardNumber(shard)).map(|of| placement_of(shard, of))
    }

    /// The nodes whose replicas of the shard vote; whoever should lead comes first.
    pub(crate) fn voting_nodes(&self, shard: u32) -> Vec<u32> {
        let Some(of) = self.state.map().shard(ShardNumber(shard)) else { return Vec::new() };
        let mut voters: Vec<&meta::Replica> =
            of.replicas.iter().filter(|replica| replica.role != Role::Learner).collect();
        voters.sort_by_key(|replica| (replica.id != of.preferred_leader, replica.node()));
        voters.into_iter().map(|replica| replica.node().0).collect()
    }

    /// The replica that should lead the shard.
    pub(crate) fn preferred_leader(&self, shard: u32) -> Option<ReplicaId> {
        self.state.map().shard(ShardNumber(shard)).map(|of| of.preferred_leader)
    }

    /// The same, but `None` while a job takes that replica out of the group: it must not be given what it gives away.
    pub(crate) fn leader_to_be(&self, shard: u32) -> Option<ReplicaId> {
        let of = self.state.map().shard(ShardNumber(shard))?;
        let leaves = of.job.and_then(|job| self.state.job(job)).and_then(|job| match job.kind {
            JobKind::Change(change) => change.leaves,
            JobKind::Drain(_) | JobKind::Decommission(_) => None,
        });
        (leaves != Some(of.preferred_leader)).then_some(of.preferred_leader)
    }

    /// The members of a shard's group when it was made.
    pub(crate) fn first_configuration(&self, shard: u32) -> Option<Configuration> {
        if shard == META_SHARD.0 {
            return Some(first_meta_configuration(&self.genesis));
        }
        let placement = self.first_placement(shard)?;
        Some(Configuration::new(placement.replicas.iter().map(|replica| ReplicaId(replica.replica_id)), []))
    }

    /// Whether this node's replica was the only voter of the shard's group when that was made: nobody else can lead it
    /// with what it has.
    pub(crate) fn began_alone(&self, shard: u32) -> bool {
        let own = self.first_placement(shard).and_then(|placement| {
            placement.replicas.into_iter().find(|replica| replica.node_number == self.node_number)
        });
        let configuration = self.first_configuration(shard);
        configuration.zip(own).is_some_and(|(all, own)| all.is_sole_voter(ReplicaId(own.replica_id)))
    }

    /// The member with this number, unless its data directory is gone.
    pub(crate) fn member(&self, node_number: u32) -> Option<Member> {
        self.state.member(NodeNumber(node_number)).filter(|member| is_there(member)).map(as_member)
    }

    /// The number of the member with this data directory.
    pub(crate) fn number_of(&self, node_uuid: NodeUuid) -> Option<u32> {
        let mut members = self.state.members().filter(|member| is_there(member));
        members.find(|member| member.node.node_uuid == node_uuid).map(|member| member.number.0)
    }

    /// All members, by number.
    pub(crate) fn members(&self) -> impl Iterator<Item = Member> {
        self.state.members().filter(|member| is_there(member)).map(as_member)
    }

    /// All members but this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = Member> {
        self.members().filter(|member| member.number != self.node_number)
    }

    /// For each shard the core of this node that owns it, in the form of `HelloReply.shard_cores`.
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
            advertised_address: self
                .member(self.node_number)
                .map(|member| member.address)
                .unwrap_or_default(),
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

fn placement_of(shard: u32, of: &meta::Shard) -> ShardPlacement {
    let mut replicas: Vec<PlacedReplica> = of
        .replicas
        .iter()
        .map(|replica| PlacedReplica { node_number: replica.node().0, replica_id: replica.id.0 })
        .collect();
    replicas.sort_by_key(|replica| (replica.replica_id != of.preferred_leader.0, replica.node_number));
    ShardPlacement { shard, replicas }
}

/// A retired member's data directory is gone: nobody can be it any more.
fn is_there(member: &meta::Member) -> bool {
    member.state != MemberState::Retired
}

fn as_member(member: &meta::Member) -> Member {
    Member {
        number: member.number.0,
        node_id: member.node.node_id.clone(),
        node_uuid: member.node.node_uuid,
        address: member.node.address.clone(),
    }
}

fn first_meta_configuration(genesis: &MetaState) -> Configuration {
    let shard = genesis.map().shard(META_SHARD).expect("every map has the meta group");
    let of = |role: Role| shard.replicas.iter().filter(move |replica| replica.role == role);
    Configuration::new(of(Role::Voter).map(|replica| replica.id), of(Role::Learner).map(|replica| replica.id))
}

/// The replicas that a node holds when the cluster is formed.
pub(crate) fn founding_notes(genesis: &MetaState, node_number: u32) -> ReplicaNotes {
    let mut notes = ReplicaNotes::default();
    let replicas = genesis.map().shards().flat_map(|(_, shard)| &shard.replicas);
    for replica in replicas.filter(|replica| replica.node().0 == node_number) {
        notes.note(Note { replica: replica.id, is_removed: false });
    }
    notes
}
