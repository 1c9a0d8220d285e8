//! Changing the configuration: what may be proposed, and what a leader does on the way from one to the next.
//!
//! A change of voters goes through a joint configuration (Ongaro and Ousterhout 2014, section 6): the leader appends
//! one in which a quorum is a majority of the old voters and one of the new; once that is committed, nobody can lead or
//! commit by the old majority alone, and the leader appends the new configuration by itself. Whoever leads
//! then does, so that no group stays between two configurations for want of an operator. A change of learners
//! alone is a single entry: the quorums before and after it are the same.
//!
//! Changing one voter at a time needs no joint configuration, since majorities that differ by one voter overlap; but
//! that saves one entry, and an even number of voters in between costs availability. There is one way here for all
//! changes.
//!
//! # Why a change is refused
//!
//! - *The present configuration is not committed, or is joint.* If two changes could be under way, the first and the
//!   last configuration need not have overlapping quorums.
//! - *The leader has not committed an entry of its own term.* Otherwise two leaders, one after the other, can each
//!   append a change to the same configuration and commit them by quorums that do not overlap (found by Ongaro in
//!   2015). The entry of its own term shows a quorum of the present configuration that no older change can be
//!   committed any more.
//! - *Somebody else has changed it.* A change names the entry that set the configuration which it means to change.
//! - *Those that are heard would be no quorum* of the next configuration, or may have forgotten something.
//! - *A learner is not caught up*, or may have forgotten something: see `catch_up.rs` and `suspect.rs`.
//!
//! # A leader that leaves
//!
//! A leader that is no voter in the new configuration first tries to hand over, while the configuration is still joint,
//! so that the new leader leaves it. If that fails it leaves it itself. It leads on until the entry without it is
//! committed, counting itself for nothing, and then asks the best voter to campaign and steps down (section 4.2.2
//! of Ongaro's thesis).
//!
//! # Those that are removed
//!
//! The leader goes on replicating to them for an election timeout after the removal is committed, so that they learn
//! of it and keep still. One that was not reached campaigns in vain: voters that hear a leader do not listen, its log
//! is too short for the others, it wakes no silent group, and its term is nobody's business ([`Raft::step`]). But a
//! vote is given also to a candidate that is not in the voter's own configuration, if its log is good: that
//! configuration may be the older one.

use std::collections::BTreeSet;
use std::fmt;

use crate::configuration::Configuration;
use crate::core::Core;
use crate::leader::{Leader, Standing};
use crate::progress::{Departing, Progress};
use crate::raft::{Raft, Role};
use crate::types::{EntryKind, Index, Payload, Position, ReplicaId, Term, Time};

/// What to change. The sets share no replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigurationChange {
    /// These become learners; they are no members yet. The id of a former member is never given again.
    pub add: BTreeSet<ReplicaId>,
    /// These learners become voters.
    pub promote: BTreeSet<ReplicaId>,
    /// These voters become learners.
    pub demote: BTreeSet<ReplicaId>,
    /// These voters and learners are members no more.
    pub remove: BTreeSet<ReplicaId>,
}

/// Why a change of the configuration was not taken. Nothing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigurationError {
    /// Ask the leader, if one is known.
    NotLeader {
        /// Who leads.
        leader: Option<ReplicaId>,
    },
    /// Leadership is being handed over; ask the new leader in a moment.
    Transferring,
    /// This leader has not committed an entry of its own term yet; come back in a moment.
    TermNotCommitted,
    /// The last change is not over: its entry is not committed, or its joint configuration not left.
    InProgress,
    /// The configuration is not the one that was meant: look at it again.
    Stale {
        /// The entry of the present one.
        set_by: Position,
    },
    /// The replica is not what the change takes it for (a member, a learner, a voter), or stands in it twice.
    Mismatch {
        /// Which.
        replica: ReplicaId,
    },
    /// Nothing would change.
    Nothing,
    /// Nobody would vote.
    NoVoterLeft,
    /// Those that are heard, and may be believed, would be no quorum: nothing could commit, not even the way back.
    NoQuorum,
    /// There would be more than [`VOTERS_MAX`](crate::VOTERS_MAX) voters or [`LEARNERS_MAX`](crate::LEARNERS_MAX)
    /// learners.
    TooManyMembers,
    /// The learner does not follow closely enough yet; come back when
    /// [`FollowerStatus::is_caught_up`](crate::FollowerStatus::is_caught_up).
    NotCaughtUp {
        /// Which.
        replica: ReplicaId,
    },
    /// The learner may have forgotten what it acknowledged, and must be whole first.
    Suspect {
        /// Which.
        replica: ReplicaId,
    },
}

impl ConfigurationChange {
    /// Adds a learner.
    pub fn add(id: ReplicaId) -> Self {
        ConfigurationChange { add: [id].into(), ..Self::default() }
    }

    /// Makes learners voters.
    pub fn promote(ids: impl IntoIterator<Item = ReplicaId>) -> Self {
        ConfigurationChange { promote: ids.into_iter().collect(), ..Self::default() }
    }

    /// Removes members.
    pub fn remove(ids: impl IntoIterator<Item = ReplicaId>) -> Self {
        ConfigurationChange { remove: ids.into_iter().collect(), ..Self::default() }
    }

    /// Makes learners voters, and removes members, at once.
    pub fn replace(
        removed: impl IntoIterator<Item = ReplicaId>,
        promoted: impl IntoIterator<Item = ReplicaId>,
    ) -> Self {
        ConfigurationChange { remove: removed.into_iter().collect(), ..Self::promote(promoted) }
    }

    /// What `present`, which is not joint, is to be changed to: joint if its voters change.
    pub(crate) fn apply(&self, present: &Configuration) -> Result<Configuration, ConfigurationError> {
        let mut seen = BTreeSet::new();
        let mut fits = |ids: &BTreeSet<ReplicaId>, fits: &dyn Fn(ReplicaId) -> bool| {
            let misfit = ids.iter().find(|id| !fits(**id) || !seen.insert(**id));
            misfit.map_or(Ok(()), |id| Err(ConfigurationError::Mismatch { replica: *id }))
        };
        fits(&self.add, &|id| !present.is_member(id))?;
        fits(&self.promote, &|id| present.learners.contains(&id))?;
        fits(&self.demote, &|id| present.voters.contains(&id))?;
        fits(&self.remove, &|id| present.is_member(id))?;
        if seen.is_empty() {
            return Err(ConfigurationError::Nothing);
        }
        let keeps = |id: &&ReplicaId| !self.remove.contains(id) && !self.demote.contains(id);
        let stays = |id: &&ReplicaId| !self.remove.contains(id) && !self.promote.contains(id);
        let voters: BTreeSet<ReplicaId> =
            present.voters.iter().filter(keeps).chain(&self.promote).copied().collect();
        let learners = present.learners.iter().filter(stays).chain(&self.add).chain(&self.demote);
        let learners: BTreeSet<ReplicaId> = learners.copied().collect();
        if voters.is_empty() {
            return Err(ConfigurationError::NoVoterLeft);
        }
        let voters_outgoing = if voters == present.voters { BTreeSet::new() } else { present.voters.clone() };
        let next = Configuration { voters, voters_outgoing, learners };
        if next.is_well_formed() { Ok(next) } else { Err(ConfigurationError::TooManyMembers) }
    }
}

impl<P: Payload> Raft<P> {
    /// Proposes a change of the configuration that the entry `expected` has set ([`Raft::membership`]). The answer
    /// names the first entry of the change; it is in force here at once. A change of voters has two: the leader of then
    /// appends the second by itself. It is over when [`Raft::applied_membership`] is not joint and as wished; and it
    /// has failed if that was set by another change.
    pub fn propose_configuration(
        &mut self,
        now: Time,
        change: &ConfigurationChange,
        expected: Position,
    ) -> Result<(Term, Index), ConfigurationError> {
        self.core.set_now(now);
        let leader = self.leader();
        match &mut self.role {
            Role::Leader(leading) => leading.propose_configuration(&mut self.core, change, expected),
            Role::Follower(_) | Role::Candidate(_) => Err(ConfigurationError::NotLeader { leader }),
        }
    }
}

impl Leader {
    fn propose_configuration<P: Payload>(
        &mut self,
        core: &mut Core<P>,
        change: &ConfigurationChange,
        expected: Position,
    ) -> Result<(Term, Index), ConfigurationError> {
        if self.transfer.is_some() {
            return Err(ConfigurationError::Transferring);
        }
        if !self.has_committed_in_term(core) {
            return Err(ConfigurationError::TermNotCommitted);
        }
        let present = core.membership();
        if present.set_by.index > core.log.commit() || present.configuration.is_joint() {
            return Err(ConfigurationError::InProgress);
        }
        if present.set_by != expected {
            return Err(ConfigurationError::Stale { set_by: present.set_by });
        }
        let next = change.apply(&present.configuration)?;
        for id in &change.promote {
            let Some(progress) = self.progress.get(id).filter(|progress| self.is_caught_up(core, progress))
            else {
                return Err(ConfigurationError::NotCaughtUp { replica: *id });
            };
            if progress.doubted.is_some() {
                return Err(ConfigurationError::Suspect { replica: *id });
            }
        }
        self.wake(core);
        let is_there = |id| id == core.id() || self.is_there(core, id);
        if !next.is_quorum(is_there) {
            return Err(ConfigurationError::NoQuorum);
        }
        Ok(self.append_configuration(core, &next))
    }

    /// From here on everything is counted by `next`.
    fn append_configuration<P: Payload>(
        &mut self,
        core: &mut Core<P>,
        next: &Configuration,
    ) -> (Term, Index) {
        let position = self.append(core, EntryKind::Configuration, P::from_bytes(next.encode()));
        self.follow_members(core, position.1);
        // Less may be needed now than before.
        self.confirm(core);
        self.try_commit(core);
        position
    }

    /// Keeps a view of every other member, and of those that were members until now. `next` is what a new one is sent
    /// first.
    pub(crate) fn follow_members<P: Payload>(&mut self, core: &Core<P>, next: Index) {
        let members = core.configuration().members();
        for id in members.iter().filter(|id| **id != core.id()) {
            let progress = self.progress.entry(*id).or_insert_with(|| Progress::new(next, core.now));
            progress.departing = None;
            if let Some((doubts, _)) = core.told.get(id) {
                // What it said before it was removed is not to be believed for that.
                progress.doubts = progress.doubts.max(*doubts);
            }
        }
        let removed_by = core.membership().set_by.index;
        for (id, progress) in &mut self.progress {
            if progress.departing.is_none() && !members.contains(id) {
                progress.departing = Some(Departing { removed_by, until: None });
            }
        }
    }

    /// Whether a member follows closely enough to become a voter.
    pub(crate) fn is_caught_up<P: Payload>(&self, core: &Core<P>, progress: &Progress) -> bool {
        let limit = core.config.election_timeout;
        progress.catch_up.is_close(core.now, limit) && core.now <= progress.heard_at.after(limit)
    }

    /// Whether a voter could be counted on now.
    fn is_there<P: Payload>(&self, core: &Core<P>, id: ReplicaId) -> bool {
        let is_heard = |one: &Progress| core.now <= one.heard_at.after(core.config.election_timeout);
        self.progress.get(&id).is_some_and(|one| one.doubted.is_none() && is_heard(one))
    }

    /// Looks how closely the members follow, and forgets those that have had time to learn that they are none.
    pub(crate) fn watch_members<P: Payload>(&mut self, core: &Core<P>) {
        let (commit, last, now) = (core.log.commit(), core.log.last(), core.now);
        for progress in self.progress.values_mut() {
            progress.catch_up.observe(progress.matched, last, now);
            if let Some(departing) = &mut progress.departing
                && departing.until.is_none()
                && departing.removed_by <= commit
            {
                departing.until = Some(now.after(core.config.election_timeout));
            }
        }
        let is_over = |departing: &Departing| departing.until.is_some_and(|until| until <= now);
        self.progress.retain(|_, progress| !progress.departing.as_ref().is_some_and(is_over));
    }

    /// Goes on with a change whose last entry is committed: leaves the joint configuration, or the group.
    pub(crate) fn settle_configuration<P: Payload>(&mut self, core: &mut Core<P>) -> Standing {
        let present = core.membership();
        if present.set_by.index > core.log.commit() || !self.has_committed_in_term(core) {
            return Standing::Leads;
        }
        if !present.configuration.is_joint() {
            if present.configuration.is_voter(core.id()) {
                return Standing::Leads;
            }
            self.hand_over(core);
            return Standing::StepsDown;
        }
        let stays = present.configuration.voters.contains(&core.id());
        if !stays
            && !std::mem::replace(&mut self.gave_way, true)
            && self.transfer.is_none()
            && let Some(to) = self.best_successor(core)
        {
            return self.transfer(core, to);
        }
        // While somebody takes over, the log stands still; the new leader goes on from here, or this one if it failed.
        if self.transfer.is_none() {
            let next = core.configuration().left();
            self.append_configuration(core, &next);
        }
        Standing::Leads
    }
}

impl fmt::Display for ConfigurationError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigurationError::NotLeader { leader: Some(leader) } => {
                write!(formatter, "not the leader; replica {leader} is")
            }
            ConfigurationError::NotLeader { leader: None } => {
                formatter.write_str("not the leader; none is known")
            }
            ConfigurationError::Transferring => formatter.write_str("leadership is being handed over"),
            ConfigurationError::TermNotCommitted => {
                formatter.write_str("the leader has not committed an entry of its own term yet")
            }
            ConfigurationError::InProgress => formatter.write_str("the last change is not over yet"),
            ConfigurationError::Stale { set_by } => {
                write!(formatter, "the configuration was changed, by entry {} since", set_by.index)
            }
            ConfigurationError::Mismatch { replica } => {
                write!(formatter, "replica {replica} is not what the change takes it for")
            }
            ConfigurationError::Nothing => formatter.write_str("nothing would change"),
            ConfigurationError::NoVoterLeft => formatter.write_str("nobody would vote"),
            ConfigurationError::NoQuorum => {
                formatter.write_str("those that can be reached and believed would be no quorum")
            }
            ConfigurationError::TooManyMembers => formatter.write_str("there would be too many members"),
            ConfigurationError::NotCaughtUp { replica } => {
                write!(formatter, "replica {replica} does not follow closely enough yet")
            }
            ConfigurationError::Suspect { replica } => {
                write!(formatter, "replica {replica} may have forgotten what it acknowledged")
            }
        }
    }
}

impl std::error::Error for ConfigurationError {}
