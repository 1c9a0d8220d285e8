//! [`Status`]: a copy of what a replica knows, for operators, metrics and tests.

use crate::suspect::SuspectStatus;
use crate::types::{Index, Position, ReplicaId, Term, Time};

/// A role, without its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it could win.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// What a replica knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The replica.
    pub id: ReplicaId,
    /// Its role.
    pub role: RoleKind,
    /// Its term.
    pub term: Term,
    /// Whom it voted for in this term.
    pub vote: Option<ReplicaId>,
    /// Who leads, as far as it knows; itself if it does.
    pub leader: Option<ReplicaId>,
    /// First index still in the log.
    pub first: Index,
    /// Last index of the log.
    pub last: Index,
    /// Up to here the log is durable here.
    pub durable: Index,
    /// Commit index.
    pub commit: Index,
    /// Applied index.
    pub applied: Index,
    /// The group is silent.
    pub quiesced: bool,
    /// A leader's lease: reads before this moment need no quorum. `None`: none is held.
    pub lease_until: Option<Time>,
    /// To whom leadership is being handed.
    pub transferring_to: Option<ReplicaId>,
    /// The entry of the configuration in force; the default for the first.
    pub configuration_set_by: Position,
    /// Set while this replica may have forgotten what it acknowledged.
    pub suspect: Option<SuspectStatus>,
    /// A leader's view of the others; empty otherwise.
    pub followers: Vec<FollowerStatus>,
}

/// A leader's view of one other member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerStatus {
    /// Who.
    pub id: ReplicaId,
    /// Its log is durable and equal to ours up to here.
    pub matched: Index,
    /// What it is sent next.
    pub next: Index,
    /// How it is being replicated to.
    pub mode: ReplicationMode,
    /// Appends on their way.
    pub inflight: usize,
    /// When it was last heard.
    pub heard_at: Time,
    /// It says that it may have forgotten what it acknowledged, so it counts for nothing.
    pub suspect: bool,
    /// False: it was removed, and is still being told so.
    pub is_member: bool,
    /// It follows closely enough to be made a voter, see
    /// [`Raft::propose_configuration`](crate::Raft::propose_configuration).
    pub is_caught_up: bool,
    /// Rounds of catching up that it has completed under this leader.
    pub catch_up_rounds: u64,
}

/// How a leader replicates to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationMode {
    /// One append at a time, to find where the logs agree.
    Probe,
    /// Appends one behind the other without waiting.
    Pipeline,
    /// A snapshot is on its way; nothing else is sent.
    Snapshot,
}
