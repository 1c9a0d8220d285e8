//! [`Ready`]: everything a replica wants done, and in which order relative to durability. The whole I/O contract.

use std::fmt;

use crate::membership::Membership;
use crate::message::Message;
use crate::types::{Entry, HardState, Index, Position, ReadToken, ReadyNumber, ReplicaId, Term};

/// What a replica wants done, gathered since the last call of [`Raft::ready`](crate::Raft::ready).
///
/// The driver
///
/// 1. sends `messages`, at once if it likes: they are safe BEFORE anything here is durable;
/// 2. writes the records, in this order, as one unit that a crash leaves whole or not at all: `hard_state`,
///    `truncate_after`, `entries`;
/// 3. once they are durable, and those of every earlier Ready too, sends `messages_after` and calls
///    [`Raft::durable`](crate::Raft::durable) with `number`;
/// 4. applies entries up to `apply_through` whenever it likes and says so with
///    [`Raft::applied`](crate::Raft::applied);
/// 5. does the rest (`reads`, `log_loads`, `snapshots`, `changes`) whenever it likes, in order.
///
/// Several Readies may be outstanding. Their records are written in the order of their numbers.
#[derive(Clone, Debug)]
pub struct Ready<P> {
    /// Which Ready this is.
    pub number: ReadyNumber,
    /// To be written, if set. Term and vote must be DURABLE BEFORE `messages_after` go; the commit index is
    /// carried along for a quicker start and has no such need.
    pub hard_state: Option<HardState>,
    /// If set, every entry after this index is dropped from the log; part of the same unit as `entries`, which
    /// begin right behind it if there are any. Never below what is committed.
    pub truncate_after: Option<Index>,
    /// To be appended; contiguous. DURABLE BEFORE `messages_after` go.
    pub entries: Vec<Entry<P>>,
    /// May be sent BEFORE the records are durable: a leader's appends go out in parallel with its own write.
    pub messages: Vec<Message<P>>,
    /// May be sent only AFTER the records of this Ready, and of all before it, are durable: votes, requests for
    /// votes, acknowledgements of entries.
    pub messages_after: Vec<Message<P>>,
    /// The commit index. It may run ahead of this replica's own disk; do not apply by it.
    pub commit: Index,
    /// Entries up to here may be applied: committed, and durable here. Never decreases.
    pub apply_through: Index,
    /// Reads that are decided.
    pub reads: Vec<ReadOutcome>,
    /// Old entries that the leader needs from the log on disk; answer each with
    /// [`Raft::log_loaded`](crate::Raft::log_loaded) or [`Raft::log_load_failed`](crate::Raft::log_load_failed).
    pub log_loads: Vec<LogLoad>,
    /// Followers that need a snapshot; answer each with [`Raft::snapshot_sent`](crate::Raft::snapshot_sent) or
    /// [`Raft::snapshot_failed`](crate::Raft::snapshot_failed).
    pub snapshots: Vec<SnapshotNeeded>,
    /// What happened to leadership, and to the group, in order.
    pub changes: Vec<Change>,
}

impl<P> Ready<P> {
    /// Whether there is anything to write.
    pub fn has_records(&self) -> bool {
        self.hard_state.is_some() || self.truncate_after.is_some() || !self.entries.is_empty()
    }
}

/// What became of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Linearizable once the state machine has applied `index`.
    Done {
        /// The read.
        token: ReadToken,
        /// Serve it once applied >= this.
        index: Index,
    },
    /// Leadership ended before the read was confirmed; ask the new leader.
    Failed {
        /// The read.
        token: ReadToken,
    },
}

/// Entries that the leader needs from the log on disk. At most one outstanding per follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLoad {
    /// The follower they are for.
    pub to: ReplicaId,
    /// First index wanted.
    pub from: Index,
    /// Last index wanted; fewer will do, at least one.
    pub through: Index,
    /// Stop before this many bytes, but give at least one entry.
    pub bytes_max: usize,
}

/// A follower needs what is no longer in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotNeeded {
    /// The follower.
    pub to: ReplicaId,
}

/// What a snapshot stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry it contains.
    pub position: Position,
    /// The members as of that entry, and what set them.
    pub membership: Membership,
}

/// Something happened to leadership, or to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This replica leads; proposals are welcome.
    BecameLeader {
        /// Its term.
        term: Term,
    },
    /// This replica led and does not any more. Proposals of `term` that have not been applied yet may or may not
    /// come to be: applying tells, by the term at their index.
    LostLeadership {
        /// The term that it led.
        term: Term,
    },
    /// Another replica is known to lead, or none is.
    LeaderKnown {
        /// The term of that.
        term: Term,
        /// Who.
        leader: Option<ReplicaId>,
    },
    /// Another configuration is in force here, see [`Raft::membership`](crate::Raft::membership): its entry was
    /// appended, or that of a later one cut off, or a snapshot was installed. Not necessarily committed.
    Membership {
        /// Its entry.
        set_by: Position,
    },
    /// This replica was suspect, and is whole again: what that rests on is durable here. The driver may forget the
    /// suspicion, durably, whenever it likes; a replica that starts as a suspect without need only heals again.
    Whole {
        /// The term in which it was healed.
        term: Term,
    },
}

/// Why a proposal was not taken. It is certain that it never will be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// Ask the leader, if one is known.
    NotLeader {
        /// Who leads.
        leader: Option<ReplicaId>,
    },
    /// The bound on uncommitted proposals is reached; come back when some have committed.
    TooMuchPending,
    /// Leadership is being handed over; ask the new leader in a moment.
    Transferring,
}

/// Why a read was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// Ask the leader, if one is known.
    NotLeader {
        /// Who leads.
        leader: Option<ReplicaId>,
    },
    /// The bound on unanswered reads is reached.
    TooMuchPending,
}

/// Why leadership cannot be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferError {
    /// Ask the leader, if one is known.
    NotLeader {
        /// Who leads.
        leader: Option<ReplicaId>,
    },
    /// The target is not another voter.
    NotAnotherVoter,
    /// Another transfer is under way.
    InProgress,
    /// The target is suspect and may not lead.
    Suspect,
}

/// Why a campaign was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignError {
    /// It leads already.
    AlreadyLeader,
    /// It is not a voter.
    NotVoter,
    /// It has heard a leader, or has started, too recently: it may have helped a leader to a lease.
    Promised,
    /// It is suspect: it may have forgotten what it acknowledged, or voted.
    Suspect,
}

impl fmt::Display for ProposeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProposeError::NotLeader { leader } => not_leader(formatter, *leader),
            ProposeError::TooMuchPending => formatter.write_str("too many proposals are not committed yet"),
            ProposeError::Transferring => formatter.write_str("leadership is being handed over"),
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::NotLeader { leader } => not_leader(formatter, *leader),
            ReadError::TooMuchPending => formatter.write_str("too many reads are not answered yet"),
        }
    }
}

impl fmt::Display for TransferError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransferError::NotLeader { leader } => not_leader(formatter, *leader),
            TransferError::NotAnotherVoter => formatter.write_str("the target is not another voter"),
            TransferError::InProgress => formatter.write_str("another transfer is under way"),
            TransferError::Suspect => {
                formatter.write_str("the target may have forgotten what it acknowledged")
            }
        }
    }
}

impl fmt::Display for CampaignError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            CampaignError::AlreadyLeader => "it leads already",
            CampaignError::NotVoter => "it is not a voter",
            CampaignError::Promised => "it has heard a leader, or has started, too recently",
            CampaignError::Suspect => "it may have forgotten what it acknowledged",
        })
    }
}

fn not_leader(formatter: &mut fmt::Formatter<'_>, leader: Option<ReplicaId>) -> fmt::Result {
    match leader {
        Some(leader) => write!(formatter, "not the leader; replica {leader} is"),
        None => formatter.write_str("not the leader; none is known"),
    }
}

impl std::error::Error for ProposeError {}
impl std::error::Error for ReadError {}
impl std::error::Error for TransferError {}
impl std::error::Error for CampaignError {}
