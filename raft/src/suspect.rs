//! Suspects: replicas that may have forgotten what they acknowledged, and how they become whole again.
//!
//! A disk that lost or damaged part of a log breaks the promise on which every quorum rests: that who acknowledged an
//! entry holds it, and who gave a vote remembers it. The remedy follows Alagappan et al., "Protocol-Aware Recovery for
//! Consensus-Based Storage" (FAST '18): such a replica counts for nothing until the group has given back what
//! mattered.
//!
//! # The rules
//!
//! The driver flags the replica, durably, when it finds the damage ([`Restored::suspect`](crate::Restored::suspect),
//! [`Raft::become_suspect`](crate::Raft::become_suspect)). From then on
//!
//! 1. it does not campaign, not even if asked to; it grants no vote; it does not lead, so it serves no read;
//! 2. it marks all it says ([`SuspectMark`]); where nobody speaks to it, it *knocks*, so that a silent leader wakes;
//! 3. it calls committed only what it has applied, and what the leader of its term has shown it to hold since;
//! 4. if its state is damaged ([`Suspicion::NeedsSnapshot`]), it appends and applies nothing before a snapshot has
//!    replaced both, however old that is.
//!
//! A leader that learns of it
//!
//! 5. forgets what it assumed of it, and finds anew what it holds;
//! 6. counts it neither for commits nor for rounds, so neither for reads nor for leases; does not hand over to it, and
//!    does not fall silent. (Check-quorum does count it: that asks who can be reached, not who can be believed.)
//! 7. *confirms*: it waits until every other voter that is not suspect itself has answered, in its term, a round that
//!    began after it had learnt of the last suspicion; and until an entry of its own term is committed. In a group
//!    whose members have changed those voters, itself included, must also hold an entry that it has appended after
//!    that. The suspects must be fewer than a majority in each half of the configuration. Then it tells each its
//!    commit index as [`Heal::through`].
//!
//! The suspect is whole when, in that leader's term, its log is durable and equal to the leader's up to there, and its
//! term is durable with a vote in it: if it has none, it votes for that leader. Then [`Change::Whole`] comes.
//!
//! # Why nothing committed is lost
//!
//! Call R the suspect, L the leader that heals it in term T, and C what it is told to hold. What R did before it
//! forgot
//! binds it in two ways; a suspect does nothing that could bind it further. Suppose first that R is the only suspect.
//!
//! *Votes.* R may have forgotten that it voted for some Y in a term above T. Y was then a candidate in that term,
//! whose
//! request left only once that term was durable at Y, before R forgot, so before L learnt of it. Y is a voter, and not
//! R. But Y answered, after that, a round of L in term T. So there was no such vote. In T itself R now has a vote,
//! for L
//! or as it remembered, and will not give another; and it ignores what is below.
//!
//! *Candidacies.* R may have forgotten that it campaigned in a term above T, which it enters again later, with another
//! log. Grants of a vote that answer the old request, or that old request itself, may still be on their way. They name
//! the life of R that asked ([`Marks::life`]); R counts none that another life asked for. If it had won, a majority of
//! voters would have been in that term and not have answered in T.
//!
//! *Entries.* R may have forgotten an entry e that it acknowledged to a leader K of term k. If e was, or will be,
//! committed with the help of that, then e lies at or below C in the log of L, so R has it back:
//!
//! - k > T: K has not answered in T afterwards, see above; so there was none.
//! - k < T: K has answered in T, so it leads no more, and what it committed it committed before. All of that is in the
//!   log of L, by the usual argument: the quorum of e and the quorum that elected L share a voter. If it is R, R voted
//!   after it had acknowledged e and before it forgot, as suspects do not vote. L has committed an entry of its own
//!   term, so all of it is at or below C.
//! - k = T: K is L. What it counted before it learnt of the suspicion is in C, which is read later. What R had said
//!   before it forgot and what arrives after that must not count; it would tell of entries that R has lost. So the
//!   leader numbers what it learns ([`Marks::doubts`]), the number goes with all it says to R, and R repeats it: an
//!   answer with an older number was given before R had heard it, and is ignored. The same holds for what R said
//!   as a suspect, once it is whole.
//!
//! The answers in T need not be durable at those who gave them. Should one forget T in an ordinary crash, it leads and
//! campaigns in no earlier term for that: what it once asked for there it asks for no more.
//!
//! An acknowledgement that L counts *before* it learns of anything is no trap: it is as if R had forgotten later.
//!
//! *Leases and reads.* What R promised K before it forgot, it may break only when it is whole, and then K has
//! answered in
//! T and leads no more; or K is L, which does not count R's earlier answers, and which R has heard since.
//!
//! *What R itself commits.* The commit index in R's hard state may be newer than its log: what stands at that index
//! may be
//! the tail of an old leader whose truncation is forgotten. A heartbeat on its way names what R had acknowledged
//! before. Hence rule 3. Once it is whole, its log is right up to C, and no such index exceeds C.
//!
//! # More than one
//!
//! A voter that is suspect too need not answer for R's sake, and its answer would prove little: it may have
//! forgotten that
//! it was Y, or K. But then it is so no longer. It leads and campaigns no more, and its old life's candidacy counts
//! for
//! nothing in a new one. If it had *won* above T, then by a majority, of which the suspects are not all: one voter
//! that is whole would have been in that term when L learnt of the last suspicion, and would not have answered in T
//! afterwards. This is why the suspects must be fewer than a majority. In a group of five two may be suspect at
//! once, and
//! are healed by the same confirmation. If a majority is suspect, something may be lost that nobody can name; then
//! nobody is healed and nothing commits, which is visible and which an operator must decide.
//!
//! # When the members change
//!
//! Y and K above are called voters, whom L asks. By another configuration than that of L somebody else may campaign or
//! lead, whom it does not ask: one that is promoted by an entry which L has not, or that L has removed and that does
//! not know it. So in a group whose members have ever changed, what the voters answer must show one thing more: that
//! they hold an entry e, which L has appended after it had learnt of the last suspicion. If nobody proposes one, L
//! appends an empty one.
//!
//! - A candidate Y above T from before L learnt of R does not hold e, since it takes nothing in T any more. Nor does it
//!   ever win, with R's forgotten vote or without. It needs a majority of the configuration that is in force at L,
//!   or of the old half of that, or else it lacks a configuration that is committed; and in each such majority there
//!   is a voter that is whole, holds e, and so refuses Y.
//! - A leader K above T from before that time had been elected by such a majority: one of its voters would not have
//!   taken e in T afterwards. So there was none.
//! - For a leader of a term below T see *Entries* above: what it may ever commit by what was acknowledged before L was
//!   elected is in the log of L, at or below C, also if that leader is not asked. A lease that rests on R's promise to
//!   it had ended when L, or a leader between them, was elected, by somebody other than R who had waited.
//!
//! A joint configuration commits and elects by majorities of both halves, but before it was entered by one alone: so
//! the bound holds in each half, and all voters of both are asked. A suspect is not promoted, but it may be removed; if
//! the others are enough to commit that, this is a cure too. The id of a replica that was removed does not come back;
//! if it does within a term all the same, the leader still knows the number of its doubts.
//!
//! # What happens meanwhile
//!
//! - *The leader changes while R heals.* What the old one said is void with its term; the next one learns of R from
//!   R's first answer, and confirms anew. R's flag stays.
//! - *R crashes while it heals.* The flag is durable. It comes back with another nonce, also if only its process
//!   died: what
//!   it acknowledged to the leader may be gone with more of its disk. The leader starts over, and a [`Heal`] that is
//!   still on its way names the old nonce and is ignored.
//! - *R is whole and crashes before the driver has cleared the flag.* It heals once more. Nothing is lost by caution.
//! - *R is suspect at run time, and acknowledgements of its earlier self are still waiting for its disk.* They count
//!   as what
//!   they are: said before.
//! - *Nobody leads.* The others elect without R, if they are a majority. In a group of two, or if another is down,
//!   they
//!   wait, unless there was a leader all along.
//! - *A group of one.* Nobody can heal it: [`SuspectStatus::can_heal`] says so, and it stays as it is.

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
    /// Its state, or its log, is damaged: nothing is applied, and nothing appended, until a snapshot has replaced
    /// both.
    NeedsSnapshot,
}

/// What goes with a message because replicas may forget. All of it is nothing in a healthy group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Of a request for a vote: the life of the candidate ([`Config::boot`](crate::Config::boot)); of its answer: the
    /// life that asked. 0 otherwise.
    pub life: u64,
    /// Of a leader's messages: how often it has learnt, in its term, that the receiver is suspect, or is not any
    /// more. Of
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
            Some(_) => !self.configuration().is_sole_voter(self.id()),
            None => self.may_lead(),
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
            can_heal: !self.configuration().is_sole_voter(self.id()),
        })
    }
}

impl<P: Payload> Raft<P> {
    /// A suspect makes itself heard: whoever leads, perhaps a silent group, speaks to it, and learns of it.
    pub(crate) fn knock(&mut self) {
        self.become_follower(None);
        let core = &mut self.core;
        let others: Vec<ReplicaId> =
            core.configuration().all_voters().filter(|id| *id != core.id()).collect();
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
