//! The replica: what the driver calls, and which role answers.

use std::collections::BTreeMap;

use crate::config::{Config, ConfigError, Restored};
use crate::configuration::Configuration;
use crate::core::Core;
use crate::follower::Append;
use crate::leader::{Leader, Silence, Standing};
use crate::log::{Log, LogStart};
use crate::membership::{Membership, Memberships};
use crate::message::{Body, Message};
use crate::ready::{CampaignError, ProposeError, ReadError, Ready, SnapshotMeta, TransferError};
use crate::status::{RoleKind, Status};
use crate::suspect::Suspicion;
use crate::types::{
    Entry, HardState, Index, Payload, Position, ReadToken, ReadyNumber, ReplicaId, Round, Term, Time,
};

/// One replica of one group. See the crate's front page for the protocol and the contract.
pub struct Raft<P> {
    pub(crate) core: Core<P>,
    pub(crate) role: Role,
    /// The term that this replica led last.
    pub(crate) led_term: Term,
}

pub(crate) enum Role {
    Follower(Follower),
    Candidate(Candidate),
    /// Boxed: most replicas follow, and there are many.
    Leader(Box<Leader>),
}

pub(crate) struct Follower {
    pub(crate) leader: Option<ReplicaId>,
    pub(crate) election_due: Time,
    /// The group is silent: no election timer runs.
    pub(crate) quiesced: bool,
}

pub(crate) struct Candidate {
    pub(crate) votes: BTreeMap<ReplicaId, bool>,
    pub(crate) election_due: Time,
    /// It has entered a new term and asks for votes; otherwise it only asks whether it could win.
    pub(crate) is_real: bool,
}

impl<P: Payload> Raft<P> {
    /// A replica from its settings and what was restored. Commit starts at the greatest index that is provably
    /// committed: recorded, applied, or gone from the log; never beyond the last entry.
    pub fn new(config: Config, restored: Restored, now: Time) -> Result<Self, ConfigError> {
        config.validate()?;
        validate_restored(&restored)?;
        let mut hard_state = restored.hard_state;
        let mut commit = hard_state.commit.max(restored.applied).min(restored.last);
        if restored.suspect.is_some() {
            // What the log holds behind that may be what a truncation, forgotten since, had cut off.
            commit = restored.applied;
        }
        hard_state.commit = hard_state.commit.min(commit);
        if restored.log_start.term > hard_state.term {
            // A snapshot may be of a newer term than was ever written here; no vote was given in that one.
            hard_state = HardState { term: restored.log_start.term, vote: None, commit: hard_state.commit };
        }
        let log = Log::new(LogStart {
            start: restored.log_start,
            runs: restored.terms,
            last: restored.last,
            commit,
            applied: restored.applied,
            window_bytes_max: config.entry_cache_bytes_max,
        });
        let memberships = Memberships::new(restored.membership, restored.memberships_behind);
        let mut core = Core::new(config, memberships, log, hard_state, now);
        if let Some(suspicion) = restored.suspect {
            if core.log.last_term() > core.term() {
                core.set_term(core.log.last_term());
            }
            core.suspect(suspicion);
        }
        let sole = core.configuration().is_sole_voter(core.id());
        if restored.may_have_run_before && !sole {
            core.votes_refused_until = now.after(core.config.election_timeout_max());
        }
        let election_due = if sole || core.suspect.is_some() {
            // At once, to campaign or to knock.
            now
        } else if restored.may_have_run_before {
            core.soon_after(core.votes_refused_until)
        } else {
            core.next_election()
        };
        let role = Role::Follower(Follower { leader: None, election_due, quiesced: false });
        Ok(Raft { core, role, led_term: Term(0) })
    }

    /// Lets time pass. Harmless when nothing is due; has nothing to do before [`Raft::next_tick`].
    pub fn tick(&mut self, now: Time) {
        self.core.set_now(now);
        let (due, paused) = (self.next_tick(), self.core.config.election_timeout);
        if self.core.now < due {
            return;
        }
        match &mut self.role {
            Role::Leader(leader) => {
                let standing = leader.tick(&mut self.core);
                self.keep_or_step_down(standing);
            }
            // This process was evidently stopped, and what the leader sent meanwhile may still be unread.
            Role::Follower(follower) if follower.leader.is_some() && self.core.now.since(due) > paused => {
                follower.election_due = self.core.next_election();
            }
            Role::Follower(_) | Role::Candidate(_) => self.election_due(),
        }
    }

    /// When [`Raft::tick`] next has something to do; [`Time::NEVER`] in a silent group.
    pub fn next_tick(&self) -> Time {
        match &self.role {
            Role::Follower(follower) if follower.quiesced => Time::NEVER,
            Role::Follower(_) if !self.core.has_election_timer() => Time::NEVER,
            Role::Follower(follower) => follower.election_due,
            Role::Candidate(candidate) => candidate.election_due,
            Role::Leader(leader) => leader.next_tick(),
        }
    }

    /// Takes in a message. What is not for this replica, or not from a member where only a member may speak, or
    /// malformed, is ignored.
    pub fn step(&mut self, now: Time, message: Message<P>) {
        self.core.set_now(now);
        if message.to != self.core.id() || message.from == self.core.id() {
            return;
        }
        if self.settle_term(&message) {
            self.dispatch(message);
        }
    }

    /// Enters a higher term, or answers a lower one. False if the message needs nothing more.
    fn settle_term(&mut self, message: &Message<P>) -> bool {
        let (from, term) = (message.from, message.term);
        match &message.body {
            Body::PreVote { .. } => return true,
            // Granted in the term that this replica would campaign in.
            Body::PreVoteReply { granted: true } => return term == self.core.term().next(),
            // Also in the current term: it may have been entered without hearing of the candidate.
            Body::Vote { transfer, .. } if term >= self.core.term() && self.ignores_vote(from, *transfer) => {
                return false;
            }
            // From whoever leads or would lead, by a configuration that may not have come here yet.
            Body::Vote { .. } | Body::Append { .. } | Body::Heartbeat { .. } | Body::Quiesce { .. } => {}
            // One that was removed has no say in what term it is.
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendReply { .. }
            | Body::HeartbeatReply { .. }
            | Body::TimeoutNow
            | Body::QuiesceReply { .. }
            | Body::Wake => {
                if term > self.core.term() && !self.core.may_belong(from) {
                    return false;
                }
            }
        }
        if term > self.core.term() {
            self.enter_term(term);
        } else if term < self.core.term() {
            self.answer_old_term(from, &message.body);
            return false;
        }
        true
    }

    /// A leader or candidate of an old term is told of the newer one; else it might never learn of it, since
    /// pre-votes leave terms alone.
    fn answer_old_term(&mut self, from: ReplicaId, body: &Body<P>) {
        match body {
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Quiesce { .. } => {
                self.core.send(from, Body::HeartbeatReply { round: Round(0) });
            }
            Body::Vote { .. } => self.core.send(from, Body::VoteReply { granted: false }),
            // From a suspect that has forgotten its term, most likely.
            Body::Wake => {
                if let Role::Leader(leader) = &mut self.role
                    && self.core.may_belong(from)
                {
                    leader.wake(&mut self.core);
                }
            }
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendReply { .. }
            | Body::HeartbeatReply { .. }
            | Body::TimeoutNow
            | Body::QuiesceReply { .. } => {}
        }
    }

    fn dispatch(&mut self, message: Message<P>) {
        let Message { from, term, body, marks, .. } = message;
        let core = &mut self.core;
        match (body, &mut self.role) {
            (Body::PreVote { last_index: index, last_term }, _) => {
                self.pre_vote(from, term, Position { index, term: last_term });
            }
            (Body::PreVoteReply { granted }, _) => self.vote_reply(from, granted, false, marks.life),
            (Body::Vote { last_index: index, last_term, .. }, _) => {
                self.vote(from, Position { index, term: last_term }, marks.life);
            }
            (Body::VoteReply { granted }, _) => self.vote_reply(from, granted, true, marks.life),
            (Body::Append { previous_index: index, previous_term, commit, entries, round }, _) => {
                let previous = Position { index, term: previous_term };
                self.append(from, Append { previous, commit, entries, round }, &marks);
            }
            (Body::AppendReply { round, answer }, Role::Leader(leader)) => {
                if leader.hear_marks(core, from, &marks, round) {
                    let standing = leader.append_reply(core, from, round, answer);
                    self.keep_or_step_down(standing);
                }
            }
            (Body::Heartbeat { commit, round }, _) => self.heartbeat(from, commit, round, &marks),
            (Body::HeartbeatReply { round }, Role::Leader(leader)) => {
                if leader.hear_marks(core, from, &marks, round) {
                    leader.heartbeat_reply(core, from, round);
                }
            }
            (Body::TimeoutNow, _) => self.timeout_now(from),
            (Body::Quiesce { last_index: index, last_term }, _) => {
                self.quiesce(from, Position { index, term: last_term }, &marks);
            }
            (Body::QuiesceReply { agreed }, Role::Leader(leader)) => {
                if leader.hear_marks(core, from, &marks, Round(0)) {
                    leader.quiesce_reply(core, from, agreed);
                }
            }
            (Body::Wake, _) if !core.may_belong(from) => {}
            (Body::Wake, Role::Leader(leader)) => leader.wake(core),
            (Body::Wake, Role::Follower(_)) => {
                self.wake_follower();
            }
            // Answers to a leader that this replica no longer is.
            (Body::AppendReply { .. } | Body::HeartbeatReply { .. } | Body::QuiesceReply { .. }, _) => {}
            (Body::Wake, Role::Candidate(_)) => {}
        }
    }

    fn keep_or_step_down(&mut self, standing: Standing) {
        match standing {
            Standing::Leads => {}
            Standing::StepsDown => self.become_follower(None),
        }
    }

    /// Appends a command if this replica leads. The answer names the entry: it is applied if an entry of that
    /// term is applied at that index, and never if one of another term is. Nothing is durable yet.
    pub fn propose(&mut self, now: Time, payload: P) -> Result<(Term, Index), ProposeError> {
        self.core.set_now(now);
        let leader = self.leader();
        match &mut self.role {
            Role::Leader(leading) => leading.propose(&mut self.core, payload),
            Role::Follower(_) | Role::Candidate(_) => Err(ProposeError::NotLeader { leader }),
        }
    }

    /// Asks for a linearizable read; the answer comes in [`Ready::reads`], by lease at once or after a quorum has
    /// confirmed a round that started after this call. A lease is judged by `now`, so `now` must be fresh.
    pub fn read(&mut self, now: Time, token: ReadToken) -> Result<(), ReadError> {
        self.core.set_now(now);
        let leader = self.leader();
        match &mut self.role {
            Role::Leader(leading) => leading.read(&mut self.core, token),
            Role::Follower(_) | Role::Candidate(_) => Err(ReadError::NotLeader { leader }),
        }
    }

    /// Hands leadership to `to`, once it holds the whole log. Proposals are refused meanwhile, and the lease is off.
    /// Given up after an election timeout; whether it worked shows in [`Ready::changes`].
    pub fn transfer_leadership(&mut self, now: Time, to: ReplicaId) -> Result<(), TransferError> {
        self.core.set_now(now);
        let leader = self.leader();
        let Role::Leader(leading) = &mut self.role else { return Err(TransferError::NotLeader { leader }) };
        // Not to one that is on its way out.
        if to == self.core.id() || !self.core.configuration().voters.contains(&to) {
            return Err(TransferError::NotAnotherVoter);
        }
        if leading.doubts(to) {
            return Err(TransferError::Suspect);
        }
        if leading.transfer.is_some() {
            return Err(TransferError::InProgress);
        }
        let standing = leading.transfer(&mut self.core, to);
        self.keep_or_step_down(standing);
        Ok(())
    }

    /// Campaigns now, by an operator's wish, unless a leader may be relying on this replica's silence.
    pub fn campaign(&mut self, now: Time) -> Result<(), CampaignError> {
        self.core.set_now(now);
        if matches!(self.role, Role::Leader(_)) {
            return Err(CampaignError::AlreadyLeader);
        }
        if !self.core.may_lead() {
            return Err(CampaignError::NotVoter);
        }
        if self.core.suspect.is_some() {
            return Err(CampaignError::Suspect);
        }
        if self.core.is_promised() {
            return Err(CampaignError::Promised);
        }
        self.election_due();
        Ok(())
    }

    /// Gives leadership up at once, if this replica leads.
    pub fn step_down(&mut self, now: Time) {
        self.core.set_now(now);
        if matches!(self.role, Role::Leader(_)) {
            self.become_follower(None);
        }
    }

    /// What this replica holds was found damaged: from now on it counts for nothing, until a leader has healed it and
    /// [`Change::Whole`](crate::Change::Whole) says so. A leader asks its best follower to campaign and steps down.
    /// The driver makes the suspicion durable too, before it begins to install any snapshot; see
    /// [`Restored::suspect`].
    pub fn become_suspect(&mut self, now: Time, suspicion: Suspicion) {
        self.core.set_now(now);
        self.core.suspect(suspicion);
        match &mut self.role {
            Role::Leader(leader) => {
                leader.hand_over(&mut self.core);
                self.become_follower(None);
            }
            Role::Candidate(_) => self.become_follower(None),
            Role::Follower(_) => {}
        }
        self.knock();
    }

    /// Everything gathered since the last call, or nothing. What several calls of the other functions gathered goes
    /// out in one append per follower and one round of heartbeats: call this once per turn of the driver's loop.
    pub fn ready(&mut self) -> Option<Ready<P>> {
        if let Role::Leader(leader) = &mut self.role {
            let standing = leader.settle_configuration(&mut self.core);
            leader.flush(&mut self.core);
            self.keep_or_step_down(standing);
        }
        self.core.take_ready()
    }

    /// The records of this Ready, and of all before it, are durable.
    pub fn durable(&mut self, now: Time, ready: ReadyNumber) {
        self.core.set_now(now);
        self.core.set_durable(ready);
        match &mut self.role {
            Role::Follower(_) => self.try_to_heal(),
            Role::Candidate(_) => self.count_votes(),
            Role::Leader(leader) => leader.try_commit(&mut self.core),
        }
    }

    /// The state machine has applied everything up to `index`, which is at most [`Ready::apply_through`].
    pub fn applied(&mut self, index: Index) {
        self.core.set_applied(index);
    }

    /// Answers a [`LogLoad`](crate::LogLoad) with the entries as they stand in the log. Stale answers do nothing.
    pub fn log_loaded(&mut self, now: Time, to: ReplicaId, entries: Vec<Entry<P>>) {
        self.core.set_now(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.log_loaded(&mut self.core, to, Some(entries));
        }
    }

    /// A [`LogLoad`](crate::LogLoad) could not be answered; it is asked for again after the follower's next answer.
    pub fn log_load_failed(&mut self, now: Time, to: ReplicaId) {
        self.core.set_now(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.log_loaded(&mut self.core, to, None);
        }
    }

    /// The follower has installed a snapshot up to `index`, durably.
    pub fn snapshot_sent(&mut self, now: Time, to: ReplicaId, index: Index) {
        self.core.set_now(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.snapshot_done(&self.core, to, Some(index.min(self.core.log.last())));
        }
    }

    /// The snapshot did not arrive; it is asked for again after the follower's next answer.
    pub fn snapshot_failed(&mut self, now: Time, to: ReplicaId) {
        self.core.set_now(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.snapshot_done(&self.core, to, None);
        }
    }

    /// Receiver: whether to install this snapshot. False if it is old, or if the log holds its last entry already
    /// (its prefix is then known to be committed). A suspect whose state is damaged takes any, even one that is older
    /// than what it holds; its suspicion must be durable before. True freezes the log, so that nothing is appended
    /// that the installation would drop, until [`Raft::snapshot_installed`] or [`Raft::snapshot_abandoned`]; records
    /// of Readies handed out before must be written before the snapshot is.
    pub fn snapshot_begin(&mut self, now: Time, meta: &SnapshotMeta) -> bool {
        self.core.set_now(now);
        let position = meta.position;
        let is_damaged = self.core.needs_snapshot();
        if self.core.installing.is_some() || (position.index <= self.core.log.commit() && !is_damaged) {
            return false;
        }
        let leads = matches!(self.role, Role::Leader(_));
        if self.core.log.contains(position) && !is_damaged {
            if !leads {
                self.core.log.set_commit(position.index);
            }
            return false;
        }
        if leads {
            return false;
        }
        if position.term > self.core.term() {
            self.enter_term(position.term);
        } else if matches!(self.role, Role::Candidate(_)) {
            // It asked for votes with another log, and by another configuration.
            self.become_follower(None);
        }
        self.core.installing = Some(position);
        true
    }

    /// Receiver: the snapshot that was begun is durable, together with an empty log behind it.
    pub fn snapshot_installed(&mut self, now: Time, meta: SnapshotMeta) {
        self.core.set_now(now);
        assert_eq!(
            self.core.installing.take(),
            Some(meta.position),
            "a snapshot is begun before it is installed"
        );
        self.core.reset(meta.position, meta.membership);
    }

    /// Receiver: the snapshot that was begun will not be installed; nothing on disk has changed.
    pub fn snapshot_abandoned(&mut self, now: Time) {
        self.core.set_now(now);
        self.core.installing = None;
    }

    /// Everything before `first` was dropped from the log, behind a durable checkpoint.
    pub fn log_truncated_before(&mut self, first: Index) {
        self.core.log.truncate_before(first);
    }

    /// The connection to `peer` broke, or `peer` cannot be reached: what was on its way may be lost.
    pub fn peer_unreachable(&mut self, now: Time, peer: ReplicaId) {
        self.core.set_now(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.peer_unreachable(peer);
        }
    }

    /// Ends the silence of an idle group: its leader speaks again, a follower asks it to.
    pub fn wake(&mut self, now: Time) {
        self.core.set_now(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.wake(&mut self.core);
        } else if let Some(leader) = self.wake_follower() {
            self.core.send(leader, Body::Wake);
        }
    }

    /// The core that `peer` lives on is dead, or was started anew. If it led a silent group, the election timer
    /// starts; nothing else changes.
    pub fn peer_core_died(&mut self, now: Time, peer: ReplicaId) {
        self.core.set_now(now);
        if self.leader() == Some(peer) {
            self.wake_follower();
        }
    }

    /// Who leads, as far as this replica knows; itself if it does.
    pub fn leader(&self) -> Option<ReplicaId> {
        match &self.role {
            Role::Follower(follower) => follower.leader,
            Role::Candidate(_) => None,
            Role::Leader(_) => Some(self.core.id()),
        }
    }

    /// What this replica knows.
    pub fn status(&self) -> Status {
        let core = &self.core;
        let (role, quiesced) = match &self.role {
            Role::Follower(follower) => (RoleKind::Follower, follower.quiesced),
            Role::Candidate(candidate) if candidate.is_real => (RoleKind::Candidate, false),
            Role::Candidate(_) => (RoleKind::PreCandidate, false),
            Role::Leader(leader) => (RoleKind::Leader, matches!(leader.silence, Silence::Silent)),
        };
        let leader = match &self.role {
            Role::Leader(leader) => Some(leader),
            Role::Follower(_) | Role::Candidate(_) => None,
        };
        Status {
            id: core.id(),
            role,
            term: core.term(),
            vote: core.vote(),
            leader: self.leader(),
            first: core.log.start().index.next(),
            last: core.log.last(),
            durable: core.log.durable(),
            commit: core.log.commit(),
            applied: core.log.applied(),
            quiesced,
            lease_until: leader.and_then(|leader| leader.lease_until(core)),
            transferring_to: leader.and_then(|leader| leader.transfer.as_ref()).map(|transfer| transfer.to),
            configuration_set_by: core.membership().set_by,
            suspect: core.suspect_status(),
            followers: leader.map_or(Vec::new(), |leader| leader.follower_statuses(core)),
        }
    }

    /// The members, by the newest configuration in the log, committed or not.
    pub fn configuration(&self) -> &Configuration {
        self.core.configuration()
    }

    /// The configuration in force, and the entry that set it: what a change of it has to name.
    pub fn membership(&self) -> &Membership {
        self.core.membership()
    }

    /// The membership as of what was applied last, by [`Raft::applied`]: committed, and what belongs into a checkpoint
    /// of the state machine as it stands then.
    pub fn applied_membership(&self) -> &Membership {
        self.core.membership_as_of(self.core.log.applied())
    }

    /// The membership as of the entry at `index`; `None` if that is below what is applied, or beyond the log's end.
    pub fn membership_as_of(&self, index: Index) -> Option<&Membership> {
        let known = self.core.log.applied() <= index && index <= self.core.log.last();
        known.then(|| self.core.membership_as_of(index))
    }

    /// The term of the entry at `index`, if the log reaches there.
    pub fn term_of(&self, index: Index) -> Option<Term> {
        self.core.log.term_of(index)
    }

    /// The entries from `from` to `through` as far as they are in memory: contiguous from `from`, or none if `from`
    /// itself must be read from the log on disk.
    pub fn entries(&self, from: Index, through: Index) -> impl Iterator<Item = &Entry<P>> {
        self.core.log.from(from).take_while(move |entry| entry.index <= through)
    }
}

fn validate_restored(restored: &Restored) -> Result<(), ConfigError> {
    let behind = &restored.memberships_behind;
    let are_well_formed = behind.iter().all(|one| one.configuration.is_well_formed());
    if !restored.membership.configuration.is_well_formed() || !are_well_formed {
        return Err(ConfigError::Configuration);
    }
    let problem = |problem| Err(ConfigError::Restored { problem });
    let start = restored.log_start;
    if restored.membership.set_by.index > restored.applied {
        return problem("the membership must be that of what is applied");
    }
    let mut set_by = restored.applied;
    for membership in behind {
        if membership.set_by.index <= set_by || membership.set_by.index > restored.last {
            return problem("the memberships behind what is applied must ascend along the log");
        }
        set_by = membership.set_by.index;
    }
    if restored.applied < start.index || restored.applied > restored.last {
        return problem("applied must lie within the log");
    }
    if restored.terms.is_empty() != (restored.last == start.index) {
        return problem("the terms must cover the log");
    }
    if restored.terms.first().is_some_and(|run| run.first != start.index.next()) {
        return problem("the terms must begin behind the log's start");
    }
    let mut before = (start.index, start.term);
    for run in &restored.terms {
        if run.first <= before.0 || run.term < before.1 || run.first > restored.last {
            return problem("the terms must ascend along the log");
        }
        before = (run.first, run.term);
    }
    if before.1 > restored.hard_state.term.max(start.term) && restored.suspect.is_none() {
        return problem("the log holds a newer term than the hard state");
    }
    Ok(())
}
