//! The leader: its view of the others, what it sends them, what commits, and which reads it may answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::Core;
use crate::message::{AppendAnswer, Body};
use crate::progress::Progress;
use crate::ready::{LogLoad, ProposeError, ReadError, ReadOutcome};
use crate::rounds::{Reads, Rounds};
use crate::status::{FollowerStatus, ReplicationMode};
use crate::types::{Entry, EntryKind, Index, Payload, ReadToken, ReplicaId, Round, Term, Time};

/// Leadership is being handed over.
pub(crate) struct Transfer {
    pub(crate) to: ReplicaId,
    pub(crate) deadline: Time,
    /// The target was told to campaign.
    pub(crate) told: bool,
}

/// How far the leader has come in falling silent.
pub(crate) enum Silence {
    /// It speaks.
    Awake,
    /// It has asked everyone; these have agreed.
    Asked { agreed: BTreeSet<ReplicaId>, since: Time },
    /// All have agreed: no heartbeats, no lease.
    Silent,
}

/// Whether a leader goes on being one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Standing {
    Leads,
    StepsDown,
}

pub(crate) struct Leader {
    /// Every other member, and for a moment those that have just been removed.
    pub(crate) progress: BTreeMap<ReplicaId, Progress>,
    /// The first entry of this leader's term. Nothing is committed by counting, and no read is served, below it.
    term_start: Index,
    pub(crate) rounds: Rounds,
    reads: Reads,
    /// (index, cost) of this leader's own entries that are not committed.
    pending: VecDeque<(Index, usize)>,
    pending_bytes: usize,
    pub(crate) transfer: Option<Transfer>,
    /// A target was told to campaign in this term. That message may arrive at any time, and voters heed it whatever
    /// they promised: no lease for the rest of the term.
    lease_forfeited: bool,
    /// It has tried to hand over because it is on its way out of the group.
    pub(crate) gave_way: bool,
    pub(crate) silence: Silence,
    idle_since: Time,
    heartbeat_due: Time,
}

impl Leader {
    /// Opens the term with an entry of its own.
    pub(crate) fn new<P: Payload>(core: &mut Core<P>) -> Self {
        let next = core.log.last().next();
        let mut leader = Leader {
            progress: BTreeMap::new(),
            term_start: next,
            rounds: Rounds::new(),
            reads: Reads::new(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            transfer: None,
            lease_forfeited: false,
            gave_way: false,
            silence: Silence::Awake,
            idle_since: core.now,
            heartbeat_due: core.now.after(core.config.heartbeat_interval),
        };
        leader.follow_members(core, next);
        leader.rounds.start(core.now);
        leader.append(core, EntryKind::TermStart, P::default());
        leader
    }

    pub(crate) fn append<P: Payload>(
        &mut self,
        core: &mut Core<P>,
        kind: EntryKind,
        payload: P,
    ) -> (Term, Index) {
        let (term, index) = (core.term(), core.log.last().next());
        let entry = Entry { term, index, kind, payload };
        self.pending_bytes += entry.cost();
        self.pending.push_back((index, entry.cost()));
        core.append(entry);
        self.idle_since = core.now;
        (term, index)
    }

    pub(crate) fn propose<P: Payload>(
        &mut self,
        core: &mut Core<P>,
        payload: P,
    ) -> Result<(Term, Index), ProposeError> {
        if self.transfer.is_some() {
            return Err(ProposeError::Transferring);
        }
        let too_many = self.pending.len() >= core.config.proposals_pending_max;
        let bytes = self.pending_bytes.saturating_add(payload.length());
        let too_large = !self.pending.is_empty() && bytes > core.config.proposals_pending_bytes_max;
        if too_many || too_large {
            return Err(ProposeError::TooMuchPending);
        }
        self.wake(core);
        Ok(self.append(core, EntryKind::Command, payload))
    }

    // ---- reads ---------------------------------------------------------------------------------------------

    pub(crate) fn read<P: Payload>(&mut self, core: &mut Core<P>, token: ReadToken) -> Result<(), ReadError> {
        if self.reads.count() >= core.config.reads_pending_max {
            return Err(ReadError::TooMuchPending);
        }
        self.wake(core);
        self.idle_since = core.now;
        let alone = core.configuration().is_sole_voter(core.id());
        let leased = self.lease_until(core).is_some_and(|until| core.now < until);
        if self.has_committed_in_term(core) && (alone || leased) {
            core.answer_read(ReadOutcome::Done { token, index: core.log.commit() });
        } else {
            self.reads.wait(token);
        }
        Ok(())
    }

    /// Until an entry of its own term is committed, a leader does not know what its predecessors committed.
    pub(crate) fn has_committed_in_term<P: Payload>(&self, core: &Core<P>) -> bool {
        core.log.commit() >= self.term_start
    }

    pub(crate) fn lease_until<P: Payload>(&self, core: &Core<P>) -> Option<Time> {
        let lease = core.config.lease?;
        let silent = matches!(self.silence, Silence::Silent);
        if silent || self.lease_forfeited || self.transfer.is_some() {
            return None;
        }
        self.rounds.lease_until(self.confirmed_round(core), lease)
    }

    /// The newest round that a quorum has answered.
    fn confirmed_round<P: Payload>(&self, core: &Core<P>) -> Round {
        let newest = self.rounds.newest();
        core.configuration().quorum_value(|id| {
            if id == core.id() {
                newest
            } else {
                self.progress.get(&id).map_or(Round(0), Progress::acknowledged_counted)
            }
        })
    }

    fn acknowledge_round<P: Payload>(&mut self, core: &mut Core<P>, from: ReplicaId, round: Round) {
        let newest = self.rounds.newest();
        let Some(progress) = self.progress.get_mut(&from) else { return };
        progress.heard_at = core.now;
        if round > progress.acknowledged && round <= newest {
            progress.acknowledged = round;
            self.confirm(core);
            self.confirm_doubts(core);
        }
    }

    /// Answers the reads whose round a quorum has answered.
    pub(crate) fn confirm<P: Payload>(&mut self, core: &mut Core<P>) {
        let confirmed = self.confirmed_round(core);
        self.rounds.forget_before(confirmed);
        for (token, index) in self.reads.confirmed(confirmed) {
            core.answer_read(ReadOutcome::Done { token, index });
        }
    }

    pub(crate) fn fail_reads<P: Payload>(&mut self, core: &mut Core<P>) {
        for token in self.reads.take_all() {
            core.answer_read(ReadOutcome::Failed { token });
        }
    }

    // ---- time ----------------------------------------------------------------------------------------------

    pub(crate) fn next_tick(&self) -> Time {
        match self.silence {
            Silence::Silent => Time::NEVER,
            Silence::Awake | Silence::Asked { .. } if self.progress.is_empty() => Time::NEVER,
            Silence::Awake | Silence::Asked { .. } => self.heartbeat_due,
        }
    }

    pub(crate) fn tick<P: Payload>(&mut self, core: &mut Core<P>) -> Standing {
        if core.now < self.next_tick() {
            return Standing::Leads;
        }
        if core.now.since(self.heartbeat_due) > core.config.election_timeout {
            self.woke_from_pause(core);
        }
        self.heartbeat_due = core.now.after(core.config.heartbeat_interval);
        self.watch_members(core);
        if core.config.check_quorum && !self.hears_quorum(core) {
            return Standing::StepsDown;
        }
        if self.check_transfer(core) == Standing::StepsDown {
            return Standing::StepsDown;
        }
        if self.may_fall_silent(core) {
            self.ask_for_silence(core);
        } else {
            if matches!(self.silence, Silence::Asked { .. }) {
                self.silence = Silence::Awake;
                self.idle_since = core.now;
            }
            self.beat(core, true);
        }
        Standing::Leads
    }

    /// The process was evidently stopped. What the clock says of the lease is true in any case; but the others are
    /// not to blame for the silence, and get an election timeout to be heard.
    fn woke_from_pause<P: Payload>(&mut self, core: &mut Core<P>) {
        self.rounds.void();
        for progress in self.progress.values_mut() {
            progress.heard_at = core.now;
        }
    }

    fn hears_quorum<P: Payload>(&self, core: &Core<P>) -> bool {
        core.configuration().is_quorum(|id| {
            id == core.id()
                || self
                    .progress
                    .get(&id)
                    .is_some_and(|progress| core.now <= progress.heard_at.after(core.config.election_timeout))
        })
    }

    /// Starts a round and tells it to the voters, or to all members.
    fn beat<P: Payload>(&mut self, core: &mut Core<P>, learners_too: bool) {
        let round = self.rounds.start(core.now);
        if self.has_committed_in_term(core) {
            self.reads.round_started(round, core.log.commit());
        }
        for (id, progress) in &self.progress {
            if learners_too || core.configuration().is_voter(*id) {
                let commit = core.log.commit().min(progress.matched);
                core.send(*id, Body::Heartbeat { commit, round });
            }
        }
        // A sole voter is its own quorum.
        self.confirm(core);
    }

    /// What is due before a Ready is made: a round for the reads gathered since the last, and appends.
    pub(crate) fn flush<P: Payload>(&mut self, core: &mut Core<P>) {
        if self.reads.want_round() && self.has_committed_in_term(core) {
            self.beat(core, false);
        }
        let ids: Vec<ReplicaId> = self.progress.keys().copied().collect();
        for id in ids {
            self.replicate(core, id);
        }
    }

    // ---- replication ---------------------------------------------------------------------------------------

    /// Sends `to` all that its mode and window allow.
    fn replicate<P: Payload>(&mut self, core: &mut Core<P>, to: ReplicaId) {
        let (messages_max, bytes_max) = (core.config.inflight_messages_max, core.config.inflight_bytes_max);
        loop {
            let Some(progress) = self.progress.get(&to) else { return };
            let ready = match progress.mode {
                ReplicationMode::Probe => !progress.waiting && progress.matched < core.log.last(),
                ReplicationMode::Pipeline => {
                    progress.next <= core.log.last() && progress.has_room(messages_max, bytes_max)
                }
                ReplicationMode::Snapshot => false,
            };
            if !ready || progress.loading || !self.append_next(core, to) {
                return;
            }
        }
    }

    /// Sends the append that is next for `to`; false if it must be loaded, or a snapshot is needed.
    fn append_next<P: Payload>(&mut self, core: &mut Core<P>, to: ReplicaId) -> bool {
        let Some(progress) = self.progress.get_mut(&to) else { return false };
        let next = progress.next;
        if core.log.term_of(next.previous()).is_none() {
            progress.snapshot();
            core.need_snapshot(to);
            return false;
        }
        let entries = match core.log.slice(next, core.config.append_bytes_max) {
            Some(entries) => entries,
            // A probe finds where the logs agree; it is not worth a read from disk, nor is there any at the end.
            None if progress.mode == ReplicationMode::Probe => Vec::new(),
            None => {
                progress.loading = true;
                let through = core.log.window_start().previous();
                let bytes_max = core.config.append_bytes_max;
                core.load_log(LogLoad { to, from: next, through, bytes_max });
                return false;
            }
        };
        self.send_append(core, to, entries)
    }

    fn send_append<P: Payload>(&mut self, core: &mut Core<P>, to: ReplicaId, entries: Vec<Entry<P>>) -> bool {
        let Some(progress) = self.progress.get_mut(&to) else { return false };
        let previous_index = progress.next.previous();
        let Some(previous_term) = core.log.term_of(previous_index) else { return false };
        let through = Index(previous_index.0 + entries.len() as u64);
        let bytes = entries.iter().map(Entry::cost).sum();
        progress.sent(through, bytes);
        let (commit, round) = (core.log.commit(), self.rounds.newest());
        core.send(to, Body::Append { previous_index, previous_term, commit, entries, round });
        true
    }

    pub(crate) fn log_loaded<P: Payload>(
        &mut self,
        core: &mut Core<P>,
        to: ReplicaId,
        entries: Option<Vec<Entry<P>>>,
    ) {
        let Some(progress) = self.progress.get_mut(&to) else { return };
        if !std::mem::take(&mut progress.loading) || progress.mode != ReplicationMode::Pipeline {
            return;
        }
        let Some(entries) = entries else {
            // Asked for again after its next answer.
            let next = progress.matched.next();
            progress.probe(next);
            progress.waiting = true;
            return;
        };
        let mut expected = (progress.next.0..).zip(&entries);
        let fits = expected.all(|(index, entry)| {
            entry.index.0 == index && core.log.term_of(entry.index) == Some(entry.term)
        });
        if fits && !entries.is_empty() && core.log.term_of(progress.next.previous()).is_some() {
            self.send_append(core, to, entries);
        }
    }

    pub(crate) fn append_reply<P: Payload>(
        &mut self,
        core: &mut Core<P>,
        from: ReplicaId,
        round: Round,
        answer: AppendAnswer,
    ) -> Standing {
        self.acknowledge_round(core, from, round);
        let Some(progress) = self.progress.get_mut(&from) else { return Standing::Leads };
        match answer {
            AppendAnswer::Accepted { matched } if matched <= core.log.last() => {
                if progress.mode == ReplicationMode::Snapshot && core.log.term_of(matched).is_some() {
                    // It has caught up by other means than the snapshot that it was thought to need.
                    progress.probe(matched.next());
                }
                if matched > progress.matched {
                    self.idle_since = core.now;
                }
                progress.accepted(matched);
                progress.catch_up.observe(progress.matched, core.log.last(), core.now);
                self.try_commit(core);
                self.check_transfer(core)
            }
            AppendAnswer::Accepted { .. } => Standing::Leads,
            AppendAnswer::Rejected { rejected_index, hint_index, hint_term } => {
                let current = match progress.mode {
                    ReplicationMode::Probe => rejected_index.next() == progress.next,
                    ReplicationMode::Pipeline => rejected_index < progress.next,
                    ReplicationMode::Snapshot => false,
                };
                if !current || rejected_index <= progress.matched {
                    return Standing::Leads;
                }
                let next = match progress.mode {
                    // Something on the way was lost; what was acknowledged still holds.
                    ReplicationMode::Pipeline => progress.matched.next(),
                    ReplicationMode::Probe | ReplicationMode::Snapshot => {
                        core.log.last_at_most(hint_index, hint_term).index.next().min(rejected_index)
                    }
                };
                progress.probe(next);
                Standing::Leads
            }
        }
    }

    pub(crate) fn heartbeat_reply<P: Payload>(&mut self, core: &mut Core<P>, from: ReplicaId, round: Round) {
        self.acknowledge_round(core, from, round);
        let Some(progress) = self.progress.get_mut(&from) else { return };
        match progress.mode {
            ReplicationMode::Probe => {
                progress.waiting = false;
                if progress.matched >= core.log.last() {
                    self.send_append(core, from, Vec::new());
                }
            }
            // An empty append behind all that was sent: if something was lost, it will be rejected.
            ReplicationMode::Pipeline if progress.matched.next() < progress.next => {
                self.send_append(core, from, Vec::new());
            }
            ReplicationMode::Pipeline | ReplicationMode::Snapshot => {}
        }
    }

    /// Raises the commit index to what a quorum holds durably, this replica counting as any other. Only an entry of
    /// the leader's own term commits by being counted (Ongaro and Ousterhout 2014, section 5.4.2); all before it
    /// commits with it.
    pub(crate) fn try_commit<P: Payload>(&mut self, core: &mut Core<P>) {
        let held = core.configuration().quorum_value(|id| {
            if id == core.id() {
                core.log.durable()
            } else {
                self.progress.get(&id).map_or(Index(0), Progress::matched_counted)
            }
        });
        if held > core.log.commit() && core.log.term_of(held) == Some(core.term()) {
            core.log.set_commit(held);
            while self.pending.front().is_some_and(|(index, _)| *index <= held) {
                self.pending_bytes -= self.pending.pop_front().map_or(0, |(_, bytes)| bytes);
            }
            self.confirm_doubts(core);
        }
    }

    /// What was on its way to `peer` may be lost.
    pub(crate) fn peer_unreachable(&mut self, peer: ReplicaId) {
        if let Some(progress) = self.progress.get_mut(&peer)
            && progress.mode == ReplicationMode::Pipeline
        {
            progress.probe(progress.matched.next());
            progress.waiting = true;
        }
    }

    /// A snapshot is installed, up to this index, or it has failed. In neither case is the next one sent before the
    /// follower was asked what it holds: it may have got this one although the answer was lost.
    pub(crate) fn snapshot_done<P: Payload>(
        &mut self,
        core: &Core<P>,
        to: ReplicaId,
        installed: Option<Index>,
    ) {
        let newest = self.rounds.newest();
        if let Some(progress) = self.progress.get_mut(&to)
            && progress.mode == ReplicationMode::Snapshot
        {
            let next = installed.unwrap_or(core.log.start().index).next();
            progress.probe(next);
            if installed.is_some() {
                progress.snapshot_round = newest;
            }
            // Not at once: if it failed, then again after the follower's next answer.
            progress.waiting = installed.is_none();
        }
    }

    // ---- transfer ------------------------------------------------------------------------------------------

    pub(crate) fn transfer<P: Payload>(&mut self, core: &mut Core<P>, to: ReplicaId) -> Standing {
        self.wake(core);
        let deadline = core.now.after(core.config.election_timeout);
        self.transfer = Some(Transfer { to, deadline, told: false });
        self.check_transfer(core)
    }

    /// Tells the target to campaign once it holds the whole log; gives up at the deadline. A leader whose own
    /// writes hang begins a transfer by itself, and steps down if that leads nowhere.
    fn check_transfer<P: Payload>(&mut self, core: &mut Core<P>) -> Standing {
        let stalled = core.write_stalled();
        if self.transfer.as_ref().is_some_and(|transfer| core.now >= transfer.deadline) {
            self.transfer = None;
            if stalled {
                return Standing::StepsDown;
            }
        }
        if stalled && self.transfer.is_none() {
            let Some(to) = self.best_successor(core) else { return Standing::StepsDown };
            let deadline = core.now.after(core.config.election_timeout);
            self.transfer = Some(Transfer { to, deadline, told: false });
        }
        if let Some(transfer) = &mut self.transfer
            && !transfer.told
            && self
                .progress
                .get(&transfer.to)
                .is_some_and(|target| target.matched_counted() == core.log.last())
        {
            transfer.told = true;
            self.lease_forfeited = true;
            core.send(transfer.to, Body::TimeoutNow);
        }
        Standing::Leads
    }

    /// Asks the best follower to campaign, as this replica is about to step down.
    pub(crate) fn hand_over<P: Payload>(&mut self, core: &mut Core<P>) {
        if let Some(to) = self.best_successor(core) {
            core.send(to, Body::TimeoutNow);
        }
    }

    /// The other voter, not a suspect nor on its way out, that holds most of the log.
    pub(crate) fn best_successor<P: Payload>(&self, core: &Core<P>) -> Option<ReplicaId> {
        let able =
            |id, progress: &Progress| core.configuration().voters.contains(id) && progress.doubted.is_none();
        let voters = self.progress.iter().filter(|(id, progress)| able(*id, progress));
        voters.max_by_key(|(_, progress)| (progress.matched, progress.heard_at)).map(|(id, _)| *id)
    }

    // ---- silence -------------------------------------------------------------------------------------------

    /// Everything is replicated everywhere, committed, applied, and nobody has wanted anything for long enough.
    fn may_fall_silent<P: Payload>(&self, core: &Core<P>) -> bool {
        let Some(quiesce_after) = core.config.quiesce_after else { return false };
        let last = core.log.last();
        let long_enough = match &self.silence {
            // Asked in vain for too long: speak again, and start over.
            Silence::Asked { since, .. } => core.now < since.after(core.config.election_timeout),
            Silence::Awake | Silence::Silent => core.now >= self.idle_since.after(quiesce_after),
        };
        long_enough
            && self.transfer.is_none()
            && !core.configuration().is_joint()
            && self.reads.count() == 0
            && core.log.durable() == last
            && core.log.applied() == last
            && self.progress.values().all(|progress| progress.matched_counted() == last)
    }

    fn ask_for_silence<P: Payload>(&mut self, core: &mut Core<P>) {
        if !matches!(self.silence, Silence::Asked { .. }) {
            self.silence = Silence::Asked { agreed: BTreeSet::new(), since: core.now };
        }
        let last = core.last_position();
        for id in self.progress.keys() {
            core.send(*id, Body::Quiesce { last_index: last.index, last_term: last.term });
        }
    }

    pub(crate) fn quiesce_reply<P: Payload>(&mut self, core: &mut Core<P>, from: ReplicaId, agrees: bool) {
        let Some(progress) = self.progress.get_mut(&from) else { return };
        progress.heard_at = core.now;
        let Silence::Asked { agreed, .. } = &mut self.silence else { return };
        if !agrees {
            self.idle_since = core.now;
            self.speak(core);
            return;
        }
        agreed.insert(from);
        if self.progress.keys().all(|id| agreed.contains(id)) {
            self.silence = Silence::Silent;
            self.rounds.void();
        }
    }

    /// Ends the silence, or the wish for it.
    pub(crate) fn wake<P: Payload>(&mut self, core: &mut Core<P>) {
        match self.silence {
            Silence::Awake => {}
            Silence::Asked { .. } | Silence::Silent => {
                self.idle_since = core.now;
                self.speak(core);
            }
        }
    }

    fn speak<P: Payload>(&mut self, core: &mut Core<P>) {
        self.silence = Silence::Awake;
        // Nobody was expected to be heard meanwhile.
        for progress in self.progress.values_mut() {
            progress.heard_at = core.now;
        }
        self.heartbeat_due = core.now.after(core.config.heartbeat_interval);
        self.beat(core, true);
    }

    pub(crate) fn follower_statuses<P: Payload>(&self, core: &Core<P>) -> Vec<FollowerStatus> {
        let status = |(id, progress): (&ReplicaId, &Progress)| FollowerStatus {
            id: *id,
            matched: progress.matched,
            next: progress.next,
            mode: progress.mode,
            inflight: progress.inflight(),
            heard_at: progress.heard_at,
            suspect: progress.doubted.is_some(),
            is_member: progress.departing.is_none(),
            is_caught_up: self.is_caught_up(core, progress),
            catch_up_rounds: progress.catch_up.rounds(),
        };
        self.progress.iter().map(status).collect()
    }
}
