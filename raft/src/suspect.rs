//! Suspects: replicas that may have forgotten what they acknowledged, and how they become whole again.
//!
//! A disk that lost or damaged part of a log breaks the promise on which every quorum rests: that who acknowledged an
//! entry holds it, and who gave a vote remembers it. The remedy follows Alagappan et al., "Protocol-Aware Recovery for
//! Consensus-Based Storage" (FAST '18): such a replica counts for nothing until the group has given back what mattered.

use std::fmt;

use crate::core::Core;
use crate::message::Body;
use crate::raft::Raft;
use crate::ready::Change;
use crate::types::{Index, Payload, ReplicaId};

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
    /// Of a leader's messages: how often it has learnt, in its term, that the receiver is suspect, or is not any more. Of
    /// answers: the greatest such number that the sender has heard in this term.
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

/// What a suspect knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspect {
    suspicion: Suspicion,
    nonce: u64,
    /// The log is equal to that of this term's leader up to here, by what it sent in this term. Perhaps not durable.
    pub(crate) matched: Index,
    /// What this term's leader said that it must hold.
    heal_through: Option<Index>,
}

impl Suspect {
    /// What an earlier leader said is void: its term may be one that nobody else knows.
    pub(crate) fn enter_term(&mut self) {
        self.matched = Index(0);
        self.heal_through = None;
    }

    /// A snapshot has replaced log and state.
    pub(crate) fn replaced(&mut self, index: Index) {
        self.suspicion = Suspicion::Forgetful;
        self.matched = index;
    }
}

impl<P: Payload> Core<P> {
    /// Becomes suspect, or so once more.
    pub(crate) fn suspect(&mut self, suspicion: Suspicion) {
        self.suspicions += 1;
        self.forget_snapshots();
        let is_damaged = self.needs_snapshot() || suspicion == Suspicion::NeedsSnapshot;
        self.suspect = Some(Suspect {
            suspicion: if is_damaged { Suspicion::NeedsSnapshot } else { Suspicion::Forgetful },
            nonce: nonce(self.config.boot, self.suspicions),
            matched: Index(0),
            heal_through: None,
        });
    }

    /// Whether nothing may be appended or applied here before a snapshot is installed.
    pub(crate) fn needs_snapshot(&self) -> bool {
        self.suspect.is_some_and(|suspect| suspect.suspicion == Suspicion::NeedsSnapshot)
    }

    /// A suspect's timer reminds it to knock; but not where there is nobody to knock at.
    pub(crate) fn has_election_timer(&self) -> bool {
        match self.suspect {
            Some(_) => !self.configuration.is_sole_voter(self.id()),
            None => self.configuration.is_voter(self.id()),
        }
    }

    /// The leader of this term has shown that its log is equal to this one up to `index`.
    pub(crate) fn matches_leader(&mut self, index: Index) {
        if let Some(suspect) = &mut self.suspect {
            suspect.matched = suspect.matched.max(index);
        }
    }

    /// Takes in what goes with a message of this term's leader.
    pub(crate) fn hear_marks(&mut self, marks: &Marks) {
        self.doubts_heard = self.doubts_heard.max(marks.doubts);
        if let Some(suspect) = &mut self.suspect
            && let Some(heal) = marks.heal
            && heal.nonce == suspect.nonce
        {
            suspect.heal_through = Some(heal.through);
        }
    }

    /// What goes with a message.
    pub(crate) fn marks(&self, to: ReplicaId, body: &Body<P>) -> Marks {
        let (doubts, heal) = self.told.get(&to).copied().unwrap_or((self.doubts_heard, None));
        let mark = |suspect: &Suspect| SuspectMark {
            nonce: suspect.nonce,
            needs_snapshot: suspect.suspicion == Suspicion::NeedsSnapshot,
        };
        Marks {
            life: if matches!(body, Body::Vote { .. }) { self.config.boot } else { 0 },
            doubts,
            suspect: self.suspect.as_ref().map(mark),
            heal,
        }
    }

    pub(crate) fn suspect_status(&self) -> Option<SuspectStatus> {
        self.suspect.map(|suspect| SuspectStatus {
            suspicion: suspect.suspicion,
            heal_through: suspect.heal_through,
            can_heal: !self.configuration.is_sole_voter(self.id()),
        })
    }
}

impl<P: Payload> Raft<P> {
    /// A suspect makes itself heard: whoever leads, perhaps a silent group, speaks to it, and learns of it.
    pub(crate) fn knock(&mut self) {
        self.become_follower(None);
        let core = &mut self.core;
        let others: Vec<ReplicaId> = core.configuration.all_voters().filter(|id| *id != core.id()).collect();
        for to in others {
            core.send(to, Body::Wake);
        }
    }

    /// Becomes whole if all that it takes is durable here: the log, as far as the leader said, and the term with a
    /// vote in it, so that it cannot be given again.
    pub(crate) fn try_to_heal(&mut self) {
        let Some(leader) = self.leader() else { return };
        let core = &mut self.core;
        let Some(suspect) = core.suspect else { return };
        let Some(through) = suspect.heal_through else { return };
        let holds = suspect.matched >= through && core.log.durable() >= through;
        if !holds || core.installing.is_some() || core.needs_snapshot() {
            return;
        }
        core.log.set_commit(through);
        if core.vote().is_none() {
            core.set_vote(leader);
        }
        if core.vote_is_durable() {
            core.suspect = None;
            core.change(Change::Whole { term: core.term() });
        }
    }
}

/// A name for the `count`-th suspicion of a life: as unlikely to be given twice as the life's own.
fn nonce(boot: u64, count: u64) -> u64 {
    let mut mixed = boot ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 32)
}
