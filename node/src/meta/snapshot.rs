//! The whole state as bytes, for checkpoints and snapshots.
//!
//! Equal states are equal bytes, and bytes count only if this version would have written them: a snapshot from a newer
//! version stops the replica rather than lose what this one does not know.

use std::collections::BTreeMap;

use bytes::Bytes;
use krita_proto::v1;
use krita_proto::v1::meta_job::Kind as WireKind;
use krita_raft::ReplicaId;
use prost::Message;

use crate::identity::{ClusterId, NodeUuid};
use crate::meta::access::{Role as AccessRole, Token};
use crate::meta::job::{Change, Job, JobKind, JobState, Reason};
use crate::meta::map::{Replica, Role, Shard, ShardMap};
use crate::meta::member::{Member, MemberState, Tombstone};
use crate::meta::settings::{Setting, Settings};
use crate::meta::state::MetaState;
use crate::meta::types::{FEATURE_MAX, JobNumber, NodeNumber, ShardNumber, Version};
use crate::meta::wire::{
    CommandError, digest_from_wire, grant_from_wire, grant_to_wire, node_from_wire, node_to_wire,
    replica_or_none_from_wire, replica_or_none_to_wire,
};

/// Most bytes of an encoded state. A map of 131,072 shards of 14 replicas takes 24 MB, all tombstones, roles, tokens
/// and jobs that there may be 30 MB.
pub const META_BYTES_MAX: usize = 64 * 1024 * 1024;

const FORMAT: u32 = 1;

/// Why bytes are no state.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("meta snapshot: {0}")]
pub struct SnapshotError(pub &'static str);

impl From<CommandError> for SnapshotError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Unknown(what) => Self(what),
            CommandError::Newer(_) | CommandError::Length(_) => Self("it is from another version"),
        }
    }
}

impl MetaState {
    /// The state's bytes, at most [`META_BYTES_MAX`].
    pub fn encode(&self) -> Bytes {
        let bytes = to_wire(self).encode_to_vec();
        assert!(bytes.len() <= META_BYTES_MAX, "every list is bounded");
        bytes.into()
    }

    /// The state as a message.
    pub(crate) fn to_message(&self) -> v1::MetaSnapshot {
        to_wire(self)
    }

    /// Reads what [`MetaState::encode`] wrote.
    ///
    /// # Errors
    /// Anything else, a state that breaks an invariant included.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        if bytes.len() > META_BYTES_MAX {
            return Err(SnapshotError("it is too long"));
        }
        let message = v1::MetaSnapshot::decode(bytes).map_err(|_| SnapshotError("it is no MetaSnapshot"))?;
        if message.format != FORMAT || message.feature > FEATURE_MAX {
            return Err(SnapshotError("its format or feature version is unknown to this version"));
        }
        let state = from_wire(message)?;
        if let Some(fault) = state.fault() {
            return Err(SnapshotError(fault));
        }
        if state.encode() != bytes {
            return Err(SnapshotError("it holds more than this version knows"));
        }
        Ok(state)
    }
}

fn to_wire(state: &MetaState) -> v1::MetaSnapshot {
    v1::MetaSnapshot {
        format: FORMAT,
        cluster_name: state.cluster_name.clone(),
        cluster_id: state.cluster_id.to_bytes(),
        applied_index: state.applied_index,
        feature: state.feature,
        feature_version: state.feature_version.0,
        nodes_numbered: state.nodes_numbered,
        jobs_numbered: state.jobs_numbered,
        epoch: state.map.epoch,
        members: state.members.values().map(member_to_wire).collect(),
        tombstones: state.tombstones.values().map(tombstone_to_wire).collect(),
        shards: state.map.shards.iter().map(shard_to_wire).collect(),
        settings: state
            .settings
            .set
            .iter()
            .map(|(setting, (value, version))| v1::MetaSettingValue {
                setting: setting.number(),
                value: *value,
                version: version.0,
            })
            .collect(),
        jobs: state.jobs.values().map(job_to_wire).collect(),
        roles: state
            .roles
            .iter()
            .map(|(name, role)| v1::MetaRole {
                name: name.clone(),
                version: role.version.0,
                grants: role.grants.iter().map(grant_to_wire).collect(),
            })
            .collect(),
        tokens: state
            .tokens
            .iter()
            .map(|(name, token)| v1::MetaToken {
                name: name.clone(),
                version: token.version.0,
                digest: Bytes::copy_from_slice(&token.digest),
                roles: token.roles.clone(),
            })
            .collect(),
    }
}

fn from_wire(m: v1::MetaSnapshot) -> Result<MetaState, SnapshotError> {
    let shards = m.shards.into_iter().zip(0..);
    let shards = shards.map(|(shard, number)| shard_from_wire(ShardNumber(number), shard));
    let map = ShardMap::new(m.epoch, shards.collect::<Result<_, _>>()?).map_err(SnapshotError)?;
    let members = m.members.into_iter().map(member_from_wire).collect::<Result<BTreeMap<_, _>, _>>()?;
    let tombstones =
        m.tombstones.into_iter().map(tombstone_from_wire).collect::<Result<BTreeMap<_, _>, _>>()?;
    let removed_uuids: BTreeMap<NodeUuid, NodeNumber> =
        tombstones.values().map(|tombstone| (tombstone.node_uuid, tombstone.number)).collect();
    if removed_uuids.len() != tombstones.len() {
        return Err(SnapshotError("a data directory was removed twice"));
    }
    let mut settings = Settings::default();
    for set in m.settings {
        let setting = Setting::from_number(set.setting).filter(|setting| setting.allows(set.value));
        let setting = setting.ok_or(SnapshotError("a setting or its value is unknown"))?;
        settings.set.insert(setting, (set.value, Version(set.version)));
    }
    let mut roles = BTreeMap::new();
    for role in m.roles {
        let grants = role.grants.into_iter().map(grant_from_wire).collect::<Result<_, _>>()?;
        roles.insert(role.name, AccessRole { version: Version(role.version), grants });
    }
    let mut tokens = BTreeMap::new();
    for token in m.tokens {
        let digest = digest_from_wire(&token.digest)?;
        tokens.insert(token.name, Token { version: Version(token.version), digest, roles: token.roles });
    }
    Ok(MetaState {
        cluster_name: m.cluster_name,
        cluster_id: ClusterId::from_bytes(&m.cluster_id).ok_or(SnapshotError("a cluster id has 16 bytes"))?,
        applied_index: m.applied_index,
        feature: m.feature,
        feature_version: Version(m.feature_version),
        nodes_numbered: m.nodes_numbered,
        jobs_numbered: m.jobs_numbered,
        members,
        tombstones,
        removed_uuids,
        map,
        settings,
        jobs: m.jobs.into_iter().map(job_from_wire).collect::<Result<_, _>>()?,
        roles,
        tokens,
    })
}

fn member_to_wire(member: &Member) -> v1::MetaMember {
    v1::MetaMember {
        node_number: member.number.0,
        version: member.version.0,
        state: member.state.number(),
        down_since_ms: member.down_since_ms,
        node: Some(node_to_wire(&member.node)),
    }
}

fn member_from_wire(m: v1::MetaMember) -> Result<(NodeNumber, Member), SnapshotError> {
    let number = NodeNumber(m.node_number);
    let member = Member {
        number,
        version: Version(m.version),
        state: MemberState::from_number(m.state).ok_or(SnapshotError("a member's state is unknown"))?,
        down_since_ms: m.down_since_ms,
        node: node_from_wire(m.node)?,
    };
    Ok((number, member))
}

fn tombstone_to_wire(tombstone: &Tombstone) -> v1::MetaTombstone {
    v1::MetaTombstone {
        node_number: tombstone.number.0,
        node_id: tombstone.node_id.clone(),
        node_uuid: tombstone.node_uuid.to_bytes(),
        removed_at: tombstone.removed_at.0,
    }
}

fn tombstone_from_wire(m: v1::MetaTombstone) -> Result<(NodeNumber, Tombstone), SnapshotError> {
    let number = NodeNumber(m.node_number);
    let node_uuid = NodeUuid::from_bytes(&m.node_uuid).ok_or(SnapshotError("a uuid has 16 bytes"))?;
    Ok((number, Tombstone { number, node_id: m.node_id, node_uuid, removed_at: Version(m.removed_at) }))
}

fn shard_to_wire(shard: &Shard) -> v1::MetaShard {
    let position = shard.replicas.iter().position(|replica| replica.id == shard.preferred_leader);
    v1::MetaShard {
        version: shard.version.0,
        configuration_index: shard.configuration_index,
        arc_start: shard.arc_start,
        generation_given: shard.generation_given,
        generation_seen: shard.generation_seen,
        replica_ids: shard.replicas.iter().map(|replica| replica.id.0).collect(),
        roles: shard.replicas.iter().map(|replica| replica.role.number()).collect::<Vec<u8>>().into(),
        // At most META_REPLICAS_MAX.
        preferred_leader: position.expect("the preferred leader is a replica") as u32,
        job: shard.job.map_or(0, |job| job.0),
    }
}

fn shard_from_wire(number: ShardNumber, m: v1::MetaShard) -> Result<Shard, SnapshotError> {
    if m.replica_ids.len() != m.roles.len() {
        return Err(SnapshotError("a shard's replicas and roles differ in number"));
    }
    let mut replicas = Vec::with_capacity(m.replica_ids.len());
    for (id, role) in m.replica_ids.iter().zip(&m.roles) {
        let role = Role::from_number(*role).ok_or(SnapshotError("a role is unknown"))?;
        replicas.push(Replica { id: ReplicaId(*id), role });
    }
    let leader = m.replica_ids.get(m.preferred_leader as usize);
    if number.0 == 0 && m.arc_start != 0 {
        return Err(SnapshotError("the meta group has no arc"));
    }
    Ok(Shard {
        version: Version(m.version),
        configuration_index: m.configuration_index,
        arc_start: m.arc_start,
        generation_given: m.generation_given,
        generation_seen: m.generation_seen,
        preferred_leader: ReplicaId(*leader.ok_or(SnapshotError("a shard's leader is no replica of it"))?),
        replicas,
        job: (m.job != 0).then_some(JobNumber(m.job)),
    })
}

fn job_to_wire(job: &Job) -> v1::MetaJob {
    v1::MetaJob {
        job: job.number.0,
        version: job.version.0,
        state: job.state.number(),
        done: job.done,
        total: job.total,
        failure: job.failure.clone(),
        kind: Some(match job.kind {
            JobKind::Change(change) => WireKind::Change(v1::MetaChange {
                shard: change.shard.0,
                enters: replica_or_none_to_wire(change.enters),
                enters_new: change.enters_new,
                enters_as_learner: change.enters_as_learner,
                leaves: replica_or_none_to_wire(change.leaves),
                leaves_to_learner: change.leaves_to_learner,
                reason: change.reason.number(),
                base_index: change.base_index,
            }),
            JobKind::Drain(node) => WireKind::Drain(node.0),
            JobKind::Decommission(node) => WireKind::Decommission(node.0),
        }),
    }
}

fn job_from_wire(m: v1::MetaJob) -> Result<(JobNumber, Job), SnapshotError> {
    let kind = match m.kind.ok_or(SnapshotError("a job's kind is unknown"))? {
        WireKind::Change(change) => JobKind::Change(Change {
            shard: ShardNumber(change.shard),
            enters: replica_or_none_from_wire(change.enters),
            enters_new: change.enters_new,
            enters_as_learner: change.enters_as_learner,
            leaves: replica_or_none_from_wire(change.leaves),
            leaves_to_learner: change.leaves_to_learner,
            reason: Reason::from_number(change.reason).ok_or(SnapshotError("a reason is unknown"))?,
            base_index: change.base_index,
        }),
        WireKind::Drain(node) => JobKind::Drain(NodeNumber(node)),
        WireKind::Decommission(node) => JobKind::Decommission(NodeNumber(node)),
    };
    let number = JobNumber(m.job);
    let job = Job {
        number,
        version: Version(m.version),
        kind,
        state: JobState::from_number(m.state).ok_or(SnapshotError("a job's state is unknown"))?,
        done: m.done,
        total: m.total,
        failure: m.failure,
    };
    Ok((number, job))
}
