//! The plain values that the whole crate speaks in: terms, indices, replicas, times, entries.
//!
//! They are newtypes so that a term and an index, or an index and a count, cannot be swapped by accident.

use std::fmt;
use std::time::Duration;

macro_rules! number {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, formatter)
            }
        }
    };
}

number! {
    /// A term: at most one leader each. 0 before the first election.
    Term
}
number! {
    /// The position of an entry in the group's log, from 1. 0 is "before the first entry".
    Index
}
number! {
    /// One replica of one group. The cluster never gives a number twice, so that a message meant for a
    /// replica that is gone cannot reach its successor.
    ReplicaId
}
number! {
    /// A heartbeat round of one leader, from 1. 0 is "no round".
    Round
}
number! {
    /// The caller's name for a read; comes back in [`ReadOutcome`](crate::ReadOutcome).
    ReadToken
}
number! {
    /// The number of a [`Ready`](crate::Ready), from 1, without gaps.
    ReadyNumber
}

impl Term {
    /// The term after this one.
    pub fn next(self) -> Term {
        Term(self.0 + 1)
    }
}

impl Index {
    /// The index after this one.
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }

    /// The index before this one; 0 stays 0.
    pub fn previous(self) -> Index {
        Index(self.0.saturating_sub(1))
    }
}

impl Round {
    /// The round after this one.
    pub fn next(self) -> Round {
        Round(self.0 + 1)
    }
}

impl ReadyNumber {
    /// The number after this one.
    pub fn next(self) -> ReadyNumber {
        ReadyNumber(self.0 + 1)
    }
}

/// A moment on the node's monotonic clock, in nanoseconds. The clock must run on through suspend, since leases
/// are measured on it; its zero is arbitrary and moments of two nodes are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The end of time: nothing is ever due then.
    pub const NEVER: Time = Time(u64::MAX);

    /// This moment and `duration` more, [`Time::NEVER`] at most.
    pub fn after(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; nothing if it is later than this moment.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What an entry carries. The protocol copies it (so a copy should be cheap, as that of a counted buffer is) and
/// asks its length; of commands it wants nothing else. Only configurations it writes and reads itself. The default
/// value is the empty payload.
pub trait Payload: Clone + Default {
    /// Its length in bytes.
    fn length(&self) -> usize;

    /// The payload that consists of these bytes.
    fn from_bytes(bytes: Vec<u8>) -> Self;

    /// The bytes that it consists of.
    fn as_bytes(&self) -> &[u8];
}

impl Payload for Vec<u8> {
    fn length(&self) -> usize {
        self.len()
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        bytes
    }

    fn as_bytes(&self) -> &[u8] {
        self
    }
}

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// A command for the state machine.
    Command,
    /// The empty entry with which a leader opens its term. Committing it commits all before it. Another one may follow
    /// for the sake of a suspect, see `suspect.rs`.
    TermStart,
    /// The configuration that holds from this entry on, as [`Configuration::encode`](crate::Configuration::encode)
    /// writes it. It is in force on a replica from when it is appended there. The state machine has no part in it.
    Configuration,
}

/// One entry of the log. (index, term) names it uniquely in the whole group for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<P> {
    /// The term of the leader that made it.
    pub term: Term,
    /// Its position.
    pub index: Index,
    /// What it is for.
    pub kind: EntryKind,
    /// What it carries.
    pub payload: P,
}

/// What an entry costs in the budgets beside its payload, so that empty entries are not free.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 32;

impl<P: Payload> Entry<P> {
    /// Where it stands.
    pub fn position(&self) -> Position {
        Position { index: self.index, term: self.term }
    }

    /// What this entry counts for in every budget of bytes: its payload and a fixed overhead.
    pub fn cost(&self) -> usize {
        self.payload.length() + ENTRY_OVERHEAD_BYTES
    }
}

/// What must survive a crash beside the log.
///
/// Invariant: `term` never decreases; `vote` changes within a term only from `None`; `commit` never decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term this replica has taken part in.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<ReplicaId>,
    /// A commit index known to be true; written lazily, so usually behind the real one.
    pub commit: Index,
}

/// The last entry that a truncated prefix or a snapshot stands for: its index and term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Index of the entry.
    pub index: Index,
    /// Term of the entry.
    pub term: Term,
}

/// From `first` on, entries are of `term`, until the next run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    /// First index of the run.
    pub first: Index,
    /// Term of its entries.
    pub term: Term,
}
