//! The bytes of commands.
//!
//! Protobuf skips what it does not know, which in a replicated log would let replicas of two versions apply one
//! command in two ways. So a command counts only if this version would have written the very same bytes: an unknown
//! kind, an unknown field, an unknown number and a second spelling of the same command all stop the replica.

use bytes::Bytes;
use krita_proto::v1;
use krita_proto::v1::meta_command::Command as Wire;
use krita_proto::v1::meta_start_change::Enters as WireEnters;
use krita_raft::ReplicaId;
use prost::Message;

use crate::identity::{ClusterId, NodeUuid};
use crate::meta::access::{Grant, Rights};
use crate::meta::command::{Command, Enters, Join, StartChange};
use crate::meta::job::{JobState, Reason};
use crate::meta::map::{META_REPLICAS_MAX, Replica, Role};
use crate::meta::member::{MemberState, NodeDescription};
use crate::meta::settings::Setting;
use crate::meta::types::{FEATURE_MAX, JobNumber, NodeNumber, ShardNumber, Version};

/// Longest encoding of a command: a configuration of the meta group with all replicas that it may have.
pub const COMMAND_BYTES_MAX: usize = 64 * 1024;

// A replica takes 9 bytes for its id, 2 for its role and 2 around both.
const _: () = assert!(META_REPLICAS_MAX * 13 + 1024 < COMMAND_BYTES_MAX);

/// Why bytes are no command that this version can apply. In a committed entry each of them stops the replica.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// A newer version of Krita wrote this.
    #[error("the command needs feature version {0}, this version of Krita knows {FEATURE_MAX}")]
    Newer(u32),
    /// More bytes than a command takes.
    #[error("the command takes {0} bytes; one takes at most {COMMAND_BYTES_MAX}")]
    Length(usize),
    /// No protobuf message, or fields, kinds or numbers that this version does not know.
    #[error("the command is damaged or from another version: {0}")]
    Unknown(&'static str),
}

use CommandError::Unknown;

impl Command {
    /// The command's bytes.
    pub fn encode(&self) -> Bytes {
        v1::MetaCommand { feature: self.feature(), command: Some(to_wire(self)) }.encode_to_vec().into()
    }

    /// Reads a command.
    ///
    /// # Errors
    /// Bytes that [`Command::encode`] of this version would not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(CommandError::Length(bytes.len()));
        }
        let message = v1::MetaCommand::decode(bytes).map_err(|_| Unknown("it is no MetaCommand"))?;
        if message.feature > FEATURE_MAX {
            return Err(CommandError::Newer(message.feature));
        }
        let command = from_wire(message.command.ok_or(Unknown("its kind is not known"))?)?;
        if command.encode() != bytes {
            return Err(Unknown("it holds more than this version knows"));
        }
        Ok(command)
    }
}

fn to_wire(command: &Command) -> Wire {
    match command.clone() {
        Command::Join(join) => Wire::Join(v1::MetaJoin {
            cluster_name: join.cluster_name,
            cluster_id: join.cluster_id.map(ClusterId::to_bytes).unwrap_or_default(),
            node: Some(node_to_wire(&join.node)),
        }),
        Command::UpdateMember { number, expected, node } => Wire::UpdateMember(v1::MetaUpdateMember {
            node_number: number.0,
            expected: expected.0,
            node: Some(node_to_wire(&node)),
        }),
        Command::SetMemberState { number, expected, to } => Wire::SetMemberState(v1::MetaSetMemberState {
            node_number: number.0,
            expected: expected.0,
            state: to.number(),
        }),
        Command::ReportDown { number, expected, down_since_ms } => Wire::ReportDown(v1::MetaReportDown {
            node_number: number.0,
            expected: expected.0,
            down_since_ms,
        }),
        Command::RemoveMember { number, expected } => {
            Wire::RemoveMember(v1::MetaRemoveMember { node_number: number.0, expected: expected.0 })
        }
        Command::SetSetting { setting, value, expected } => {
            Wire::SetSetting(v1::MetaSetSetting { setting: setting.number(), value, expected: expected.0 })
        }
        Command::RaiseFeature { to, expected } => {
            Wire::RaiseFeature(v1::MetaRaiseFeature { to, expected: expected.0 })
        }
        Command::StartChange(start) => Wire::StartChange(start_to_wire(start)),
        Command::RecordConfiguration { shard, configuration_index, replicas } => {
            Wire::RecordConfiguration(v1::MetaRecordConfiguration {
                shard: shard.0,
                configuration_index,
                replicas: replicas.iter().map(replica_to_wire).collect(),
            })
        }
        Command::PreferLeader { shard, expected, replica } => Wire::PreferLeader(v1::MetaPreferLeader {
            shard: shard.0,
            expected: expected.0,
            replica_id: replica.0,
        }),
        Command::ReportProgress { job, expected, done } => {
            Wire::ReportProgress(v1::MetaReportProgress { job: job.0, expected: expected.0, done })
        }
        Command::CancelJob { job, expected } => {
            Wire::CancelJob(v1::MetaCancelJob { job: job.0, expected: expected.0 })
        }
        Command::FinishJob { job, expected, state, failure } => Wire::FinishJob(v1::MetaFinishJob {
            job: job.0,
            expected: expected.0,
            state: state.number(),
            failure,
        }),
        Command::PutRole { name, expected, grants } => Wire::PutRole(v1::MetaPutRole {
            name,
            expected: expected.0,
            grants: grants.iter().map(grant_to_wire).collect(),
        }),
        Command::DeleteRole { name, expected } => {
            Wire::DeleteRole(v1::MetaDeleteRole { name, expected: expected.0 })
        }
        Command::PutToken { name, expected, digest, roles } => Wire::PutToken(v1::MetaPutToken {
            name,
            expected: expected.0,
            digest: Bytes::copy_from_slice(&digest),
            roles,
        }),
        Command::DeleteToken { name, expected } => {
            Wire::DeleteToken(v1::MetaDeleteToken { name, expected: expected.0 })
        }
    }
}

fn from_wire(wire: Wire) -> Result<Command, CommandError> {
    let (number, version, job) = (NodeNumber, Version, JobNumber);
    Ok(match wire {
        Wire::Join(m) => Command::Join(Join {
            cluster_name: m.cluster_name,
            cluster_id: cluster_id_from_wire(&m.cluster_id)?,
            node: node_from_wire(m.node)?,
        }),
        Wire::UpdateMember(m) => Command::UpdateMember {
            number: number(m.node_number),
            expected: version(m.expected),
            node: node_from_wire(m.node)?,
        },
        Wire::SetMemberState(m) => Command::SetMemberState {
            number: number(m.node_number),
            expected: version(m.expected),
            to: MemberState::from_number(m.state).ok_or(Unknown("a member's state"))?,
        },
        Wire::ReportDown(m) => Command::ReportDown {
            number: number(m.node_number),
            expected: version(m.expected),
            down_since_ms: m.down_since_ms,
        },
        Wire::RemoveMember(m) => {
            Command::RemoveMember { number: number(m.node_number), expected: version(m.expected) }
        }
        Wire::SetSetting(m) => Command::SetSetting {
            setting: Setting::from_number(m.setting).ok_or(Unknown("a setting"))?,
            value: m.value,
            expected: version(m.expected),
        },
        Wire::RaiseFeature(m) => Command::RaiseFeature { to: m.to, expected: version(m.expected) },
        Wire::StartChange(m) => Command::StartChange(start_from_wire(m)?),
        Wire::RecordConfiguration(m) => Command::RecordConfiguration {
            shard: ShardNumber(m.shard),
            configuration_index: m.configuration_index,
            replicas: m.replicas.iter().map(replica_from_wire).collect::<Result<_, _>>()?,
        },
        Wire::PreferLeader(m) => Command::PreferLeader {
            shard: ShardNumber(m.shard),
            expected: version(m.expected),
            replica: ReplicaId(m.replica_id),
        },
        Wire::ReportProgress(m) => {
            Command::ReportProgress { job: job(m.job), expected: version(m.expected), done: m.done }
        }
        Wire::CancelJob(m) => Command::CancelJob { job: job(m.job), expected: version(m.expected) },
        Wire::FinishJob(m) => Command::FinishJob {
            job: job(m.job),
            expected: version(m.expected),
            state: JobState::from_number(m.state).ok_or(Unknown("a job's state"))?,
            failure: m.failure,
        },
        Wire::PutRole(m) => Command::PutRole {
            name: m.name,
            expected: version(m.expected),
            grants: m.grants.into_iter().map(grant_from_wire).collect::<Result<_, _>>()?,
        },
        Wire::DeleteRole(m) => Command::DeleteRole { name: m.name, expected: version(m.expected) },
        Wire::PutToken(m) => Command::PutToken {
            name: m.name,
            expected: version(m.expected),
            digest: digest_from_wire(&m.digest)?,
            roles: m.roles,
        },
        Wire::DeleteToken(m) => Command::DeleteToken { name: m.name, expected: version(m.expected) },
    })
}

fn start_to_wire(start: StartChange) -> v1::MetaStartChange {
    v1::MetaStartChange {
        shard: start.shard.0,
        expected: start.expected.0,
        enters: match start.enters {
            Enters::Nobody => None,
            Enters::NewOn(node) => Some(WireEnters::NewOnNode(node.0)),
            Enters::Existing(replica) => Some(WireEnters::Existing(replica.0)),
        },
        enters_as_learner: start.enters_as_learner,
        leaves: replica_or_none_to_wire(start.leaves),
        leaves_to_learner: start.leaves_to_learner,
        reason: start.reason.number(),
    }
}

fn start_from_wire(m: v1::MetaStartChange) -> Result<StartChange, CommandError> {
    Ok(StartChange {
        shard: ShardNumber(m.shard),
        expected: Version(m.expected),
        enters: match m.enters {
            None => Enters::Nobody,
            Some(WireEnters::NewOnNode(node)) => Enters::NewOn(NodeNumber(node)),
            Some(WireEnters::Existing(replica)) => Enters::Existing(ReplicaId(replica)),
        },
        enters_as_learner: m.enters_as_learner,
        leaves: replica_or_none_from_wire(m.leaves),
        leaves_to_learner: m.leaves_to_learner,
        reason: Reason::from_number(m.reason).ok_or(Unknown("a reason"))?,
    })
}

pub(crate) fn node_to_wire(node: &NodeDescription) -> v1::MetaNode {
    v1::MetaNode {
        node_id: node.node_id.clone(),
        node_uuid: node.node_uuid.to_bytes(),
        address: node.address.clone(),
        zone: node.zone.clone(),
        weight: node.weight,
        cores: node.cores,
        feature_min: node.feature_min,
        feature_max: node.feature_max,
    }
}

/// What a node that wants to join says.
pub(crate) fn join_from_wire(join: v1::MetaJoin) -> Result<Join, CommandError> {
    match from_wire(Wire::Join(join))? {
        Command::Join(join) => Ok(join),
        _ => Err(Unknown("it is no join")),
    }
}

pub(crate) fn node_from_wire(node: Option<v1::MetaNode>) -> Result<NodeDescription, CommandError> {
    let node = node.ok_or(Unknown("no node is described"))?;
    Ok(NodeDescription {
        node_id: node.node_id,
        node_uuid: NodeUuid::from_bytes(&node.node_uuid).ok_or(Unknown("a uuid has 16 bytes"))?,
        address: node.address,
        zone: node.zone,
        weight: node.weight,
        cores: node.cores,
        feature_min: node.feature_min,
        feature_max: node.feature_max,
    })
}

fn cluster_id_from_wire(bytes: &[u8]) -> Result<Option<ClusterId>, CommandError> {
    match bytes {
        [] => Ok(None),
        bytes => ClusterId::from_bytes(bytes).map(Some).ok_or(Unknown("a cluster id has 16 bytes")),
    }
}

fn replica_to_wire(replica: &Replica) -> v1::MetaReplica {
    v1::MetaReplica { replica_id: replica.id.0, role: u32::from(replica.role.number()) }
}

fn replica_from_wire(replica: &v1::MetaReplica) -> Result<Replica, CommandError> {
    let role = u8::try_from(replica.role).ok().and_then(Role::from_number);
    Ok(Replica { id: ReplicaId(replica.replica_id), role: role.ok_or(Unknown("a role"))? })
}

pub(crate) fn replica_or_none_to_wire(replica: Option<ReplicaId>) -> u64 {
    replica.map_or(0, |replica| replica.0)
}

pub(crate) fn replica_or_none_from_wire(replica: u64) -> Option<ReplicaId> {
    (replica != 0).then_some(ReplicaId(replica))
}

pub(crate) fn grant_to_wire(grant: &Grant) -> v1::MetaGrant {
    v1::MetaGrant { key_prefix: grant.key_prefix.clone(), rights: grant.rights.bits() }
}

pub(crate) fn grant_from_wire(grant: v1::MetaGrant) -> Result<Grant, CommandError> {
    let rights = Rights::from_bits(grant.rights).ok_or(Unknown("rights"))?;
    // A copy of its own: a slice would keep the whole frame in memory.
    Ok(Grant { key_prefix: Bytes::copy_from_slice(&grant.key_prefix), rights })
}

pub(crate) fn digest_from_wire(digest: &[u8]) -> Result<[u8; 32], CommandError> {
    digest.try_into().map_err(|_| Unknown("a digest has 32 bytes"))
}
