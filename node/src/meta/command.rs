//! What the log of shard 0 can carry: every way in which the cluster's state changes.
//!
//! Each command that changes an object names the version that it expects the object to have, so that whoever decided on
//! an older view changes nothing. Commands are plain data, their bytes are in [`super::wire`], what they do in
//! [`super::state`].

use krita_raft::ReplicaId;

use crate::identity::ClusterId;
use crate::meta::access::Grant;
use crate::meta::job::{JobState, Reason};
use crate::meta::map::Replica;
use crate::meta::member::{MemberState, NodeDescription};
use crate::meta::settings::Setting;
use crate::meta::types::{JobNumber, NodeNumber, ShardNumber, Version};

/// One command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A node asks to become a member. Needs no version: joining twice is joining once.
    Join(Join),
    /// A member has another address, zone, weight, number of cores or version of software.
    UpdateMember {
        /// Who.
        number: NodeNumber,
        /// Its version.
        expected: Version,
        /// What it says of itself now; the same name and data directory.
        node: NodeDescription,
    },
    /// Activates, drains, decommissions or calls back a member.
    SetMemberState {
        /// Who.
        number: NodeNumber,
        /// Its version.
        expected: Version,
        /// The state to be.
        to: MemberState,
    },
    /// Gossip has declared a member dead, or alive again.
    ReportDown {
        /// Who.
        number: NodeNumber,
        /// Its version.
        expected: Version,
        /// The leader's log time, in milliseconds since 1970; 0 = it is up.
        down_since_ms: u64,
    },
    /// Makes a tombstone of a leaving member that holds nothing any more.
    RemoveMember {
        /// Who.
        number: NodeNumber,
        /// Its version.
        expected: Version,
    },
    /// Sets a setting.
    SetSetting {
        /// Which.
        setting: Setting,
        /// The value to be.
        value: u64,
        /// The setting's version.
        expected: Version,
    },
    /// Has the cluster take part in a newer feature version.
    RaiseFeature {
        /// Which.
        to: u32,
        /// The feature version's version.
        expected: Version,
    },
    /// Begins to change a shard's replicas.
    StartChange(StartChange),
    /// A shard's leader has told the shard's configuration. The index is its version.
    RecordConfiguration {
        /// Which shard.
        shard: ShardNumber,
        /// Where the configuration stands in the shard's own log.
        configuration_index: u64,
        /// All replicas, sorted by id.
        replicas: Vec<Replica>,
    },
    /// Says which replica should lead.
    PreferLeader {
        /// Which shard.
        shard: ShardNumber,
        /// Its version.
        expected: Version,
        /// A replica that votes.
        replica: ReplicaId,
    },
    /// Tells how far a job is.
    ReportProgress {
        /// Which job.
        job: JobNumber,
        /// Its version.
        expected: Version,
        /// Bytes or replicas.
        done: u64,
    },
    /// Asks a job to stop.
    CancelJob {
        /// Which job.
        job: JobNumber,
        /// Its version.
        expected: Version,
    },
    /// Ends a job. That it really has ended is checked against the map.
    FinishJob {
        /// Which job.
        job: JobNumber,
        /// Its version.
        expected: Version,
        /// Done, cancelled or failed.
        state: JobState,
        /// Failed: why.
        failure: String,
    },
    /// Makes or replaces a role.
    PutRole {
        /// Its name.
        name: String,
        /// Its version; 0 = it must be new.
        expected: Version,
        /// What it grants, sorted by prefix.
        grants: Vec<Grant>,
    },
    /// Removes a role that no token has.
    DeleteRole {
        /// Its name.
        name: String,
        /// Its version.
        expected: Version,
    },
    /// Makes or replaces a token.
    PutToken {
        /// Its name.
        name: String,
        /// Its version; 0 = it must be new.
        expected: Version,
        /// SHA-256 of the secret.
        digest: [u8; 32],
        /// Names of roles, sorted.
        roles: Vec<String>,
    },
    /// Revokes a token.
    DeleteToken {
        /// Its name.
        name: String,
        /// Its version.
        expected: Version,
    },
}

/// What a node that wants to join says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Join {
    /// The cluster that it means.
    pub cluster_name: String,
    /// The cluster that its data directory belongs to, if any.
    pub cluster_id: Option<ClusterId>,
    /// Who it is.
    pub node: NodeDescription,
}

/// The replica that a change adds or promotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enters {
    /// None.
    Nobody,
    /// A new one, on this node. Applying the command gives it its id.
    NewOn(NodeNumber),
    /// A learner that is there.
    Existing(ReplicaId),
}

/// Begins to change a shard's replicas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StartChange {
    /// Which shard.
    pub shard: ShardNumber,
    /// Its version.
    pub expected: Version,
    /// What is added or promoted.
    pub enters: Enters,
    /// It remains a learner.
    pub enters_as_learner: bool,
    /// What is demoted or removed.
    pub leaves: Option<ReplicaId>,
    /// It remains, as a learner.
    pub leaves_to_learner: bool,
    /// Why.
    pub reason: Reason,
}

impl Command {
    /// The feature version that the kind came with: it is refused until the cluster takes part in it, so no node
    /// ever meets a kind that it does not know.
    pub fn feature(&self) -> u32 {
        match self {
            Self::Join(_)
            | Self::UpdateMember { .. }
            | Self::SetMemberState { .. }
            | Self::ReportDown { .. }
            | Self::RemoveMember { .. }
            | Self::SetSetting { .. }
            | Self::RaiseFeature { .. }
            | Self::StartChange(_)
            | Self::RecordConfiguration { .. }
            | Self::PreferLeader { .. }
            | Self::ReportProgress { .. }
            | Self::CancelJob { .. }
            | Self::FinishJob { .. } => 1,
            Self::PutRole { .. }
            | Self::DeleteRole { .. }
            | Self::PutToken { .. }
            | Self::DeleteToken { .. } => 2,
        }
    }
}
