//! Jobs: what is under way, such that whoever leads the meta group next can go on with it.
//!
//! A job holds its aim, never how far it has come: that shows in the shard's configuration. [`super::driver`] says
//! what comes next.

use krita_raft::ReplicaId;

use crate::meta::map::{Replica, Role};
use crate::meta::types::{JobNumber, NodeNumber, ShardNumber, Version};

/// Why a shard is changed. Stable numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// A replica is lost, or its node has been down for too long.
    Repair,
    /// Its node gives away what it holds.
    Leaving,
    /// More or fewer replicas are wanted.
    ReplicationFactor,
    /// Two replicas are in one zone needlessly.
    Zones,
    /// Some nodes hold too much and others too little.
    Balance,
    /// The meta group needs a replica on every node and a few voters.
    MetaGroup,
    /// A learner that no job wants is left.
    Leftover,
    /// A person asked.
    Operator,
}

impl Reason {
    const ALL: [Self; 8] = [
        Self::Repair,
        Self::Leaving,
        Self::ReplicationFactor,
        Self::Zones,
        Self::Balance,
        Self::MetaGroup,
        Self::Leftover,
        Self::Operator,
    ];

    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Repair => 1,
            Self::Leaving => 2,
            Self::ReplicationFactor => 3,
            Self::Zones => 4,
            Self::Balance => 5,
            Self::MetaGroup => 6,
            Self::Leftover => 7,
            Self::Operator => 8,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.number() == number)
    }
}

/// What a change of a shard aims at. At least one replica enters or leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which shard.
    pub shard: ShardNumber,
    /// The replica to add or to promote.
    pub enters: Option<ReplicaId>,
    /// It was made for this job, and goes again if the job is cancelled.
    pub enters_new: bool,
    /// It remains a learner.
    pub enters_as_learner: bool,
    /// The replica to demote or to remove.
    pub leaves: Option<ReplicaId>,
    /// It remains, as a learner.
    pub leaves_to_learner: bool,
    /// Why.
    pub reason: Reason,
    /// The shard's configuration index when the job began: orders for it may still be under way until the
    /// configuration has changed, since each order names the configuration that it changes.
    pub base_index: u64,
}

impl Change {
    /// The shard's replicas once the aim is reached, from what they are now.
    pub fn target(&self, replicas: &[Replica]) -> Vec<Replica> {
        let mut target: Vec<Replica> = Vec::with_capacity(replicas.len() + 1);
        for replica in replicas {
            let role = if replica.role.votes_next() { Role::Voter } else { Role::Learner };
            let role = if Some(replica.id) == self.enters { self.entered_role() } else { role };
            if Some(replica.id) != self.leaves {
                target.push(Replica { id: replica.id, role });
            } else if self.leaves_to_learner {
                target.push(Replica { id: replica.id, role: Role::Learner });
            }
        }
        if let Some(id) = self.enters.filter(|id| replicas.iter().all(|replica| replica.id != *id)) {
            target.push(Replica { id, role: self.entered_role() });
        }
        target.sort_unstable();
        target
    }

    /// Whether the configuration is what the job wants.
    pub fn is_reached(&self, replicas: &[Replica]) -> bool {
        let role_of =
            |id: ReplicaId| replicas.iter().find(|replica| replica.id == id).map(|replica| replica.role);
        let entered = self.enters.is_none_or(|id| role_of(id) == Some(self.entered_role()));
        let left = self.leaves.is_none_or(|id| match role_of(id) {
            None => true,
            Some(Role::Learner) => self.leaves_to_learner,
            Some(Role::Voter | Role::Incoming | Role::Outgoing) => false,
        });
        entered && left && !replicas.iter().any(|replica| replica.role.is_half())
    }

    fn entered_role(&self) -> Role {
        if self.enters_as_learner { Role::Learner } else { Role::Voter }
    }
}

/// What a job does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobKind {
    /// Changes a shard's replicas.
    Change(Change),
    /// Empties a node that stays a member.
    Drain(NodeNumber),
    /// Empties a node and removes it.
    Decommission(NodeNumber),
}

/// Where a job stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum JobState {
    /// On its way.
    Running,
    /// To be undone, or finished if it is too late for that.
    Cancelling,
    /// Its aim is reached.
    Done,
    /// Undone.
    Cancelled,
    /// Undone, since it could not reach its aim.
    Failed,
}

impl JobState {
    const ALL: [Self; 5] = [Self::Running, Self::Cancelling, Self::Done, Self::Cancelled, Self::Failed];

    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Running => 1,
            Self::Cancelling => 2,
            Self::Done => 3,
            Self::Cancelled => 4,
            Self::Failed => 5,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }

    /// Whether nothing more will happen.
    pub fn has_ended(self) -> bool {
        match self {
            Self::Done | Self::Cancelled | Self::Failed => true,
            Self::Running | Self::Cancelling => false,
        }
    }
}

/// One job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Never given again.
    pub number: JobNumber,
    /// When it last changed.
    pub version: Version,
    /// What it does.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// Progress: bytes of a change, replicas of a drain. `done <= total`.
    pub done: u64,
    /// What `done` counts towards; 0 = not known.
    pub total: u64,
    /// Why it failed; otherwise empty.
    pub failure: String,
}
