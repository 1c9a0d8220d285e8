//! Suspects: replicas that may have forgotten what they acknowledged, and how they become whole again.
//!
//! A disk that lost or damaged part of a log breaks the promise on which every quorum rests: that who acknowledged an
//! entry holds it, and who gave a vote remembers it. The remedy follows Alagappan et al., "Protocol-Aware Recovery for
//! Consensus-Based Storage" (FAST '18): such a replica counts for nothing until the group has given back what mattered.

use std::fmt;

use crate::types::Index;

/// What is wrong with a suspect, and so what it takes to make it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// It may have forgotten entries, votes and terms; the log and state that it has left are good.
    Forgetful,
    /// Its state, or its log, is damaged: nothing is applied, and nothing appended, until a snapshot has replaced both.
    NeedsSnapshot,
}

/// What goes with a message because replicas may forget. All of it is nothing in a healthy group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Of a request for a vote: the life of the candidate ([`Config::boot`](crate::Config::boot)); of its answer: the
    /// life that asked. 0 otherwise.
    pub life: u64,
    /// Of a leader's messages: how often it has learnt, in its term, that the receiver is suspect. Of answers: the
    /// greatest such number that the sender has heard in this term.
    pub doubts: u64,
    /// The sender is suspect.
    pub suspect: Option<SuspectMark>,
    /// A leader tells the receiver, which is suspect, what it takes to be whole.
    pub heal: Option<Heal>,
}

/// How a suspect shows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspectMark {
    /// Names this suspicion: no other one of this replica has the same, in any of its lives.
    pub nonce: u64,
    /// See [`Suspicion::NeedsSnapshot`].
    pub needs_snapshot: bool,
}

/// What a suspect must hold durably, of the log of the leader that says so and in its term, to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heal {
    /// The suspicion that this is about.
    pub nonce: u64,
    /// All that was ever committed with this replica's help lies at or below.
    pub through: Index,
}

/// What a suspect knows of its own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspectStatus {
    /// What is wrong.
    pub suspicion: Suspicion,
    /// What the leader of this term said that it must hold; `None`: no leader has confirmed that yet.
    pub heal_through: Option<Index>,
    /// False in a group of one: there is nobody to heal it from, and what is lost is lost.
    pub can_heal: bool,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Suspicion::Forgetful => "it may have forgotten what it acknowledged",
            Suspicion::NeedsSnapshot => "its state is damaged",
        })
    }
}
