//! What a replica has whatever its role: log, term, vote, promises, and the outbox from which a Ready is made.

use std::collections::{BTreeMap, VecDeque};

use crate::config::Config;
use crate::configuration::Configuration;
use crate::log::Log;
use crate::membership::{Membership, Memberships};
use crate::message::{Body, Message};
use crate::random::Random;
use crate::ready::{Change, LogLoad, ReadOutcome, Ready, SnapshotNeeded};
use crate::suspect::{Heal, Suspect};
use crate::types::{
    Entry, EntryKind, HardState, Index, Payload, Position, ReadyNumber, ReplicaId, Term, Time,
};

/// Records that were handed out and are not known to be durable.
struct Outstanding {
    number: ReadyNumber,
    /// The log is durable up to here once these records are; lowered when a truncation overtakes them.
    through: Index,
    term: Term,
    vote: Option<ReplicaId>,
    handed_at: Time,
}

/// What the next Ready will carry besides records.
struct Outbox<P> {
    messages: Vec<Message<P>>,
    messages_after: Vec<Message<P>>,
    reads: Vec<ReadOutcome>,
    log_loads: Vec<LogLoad>,
    snapshots: Vec<SnapshotNeeded>,
    changes: Vec<Change>,
}

impl<P> Default for Outbox<P> {
    fn default() -> Self {
        Outbox {
            messages: Vec::new(),
            messages_after: Vec::new(),
            reads: Vec::new(),
            log_loads: Vec::new(),
            snapshots: Vec::new(),
            changes: Vec::new(),
        }
    }
}

impl<P> Outbox<P> {
    fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.messages_after.is_empty()
            && self.reads.is_empty()
            && self.log_loads.is_empty()
            && self.snapshots.is_empty()
            && self.changes.is_empty()
    }
}

/// The part of a replica that every role works on.
pub(crate) struct Core<P> {
    pub(crate) config: Config,
    /// Changed only together with the log.
    memberships: Memberships,
    pub(crate) log: Log<P>,
    /// The newest moment that the driver told.
    pub(crate) now: Time,
    /// When a leader was last heard. Outlives changes of term: it stands for a promise to that leader.
    pub(crate) heard_at: Option<Time>,
    /// Having just started, this replica refuses votes until then.
    pub(crate) votes_refused_until: Time,
    /// A snapshot is being installed: the log takes nothing in.
    pub(crate) installing: Option<Position>,
    /// Set while this replica may have forgotten what it acknowledged.
    pub(crate) suspect: Option<Suspect>,
    /// How often this life has become suspect.
    pub(crate) suspicions: u64,
    /// The greatest [`Marks::doubts`] heard from the leader of this term.
    pub(crate) doubts_heard: u64,
    /// What a leader tells those that it holds, or held, for suspect: [`Marks::doubts`] and [`Marks::heal`].
    pub(crate) told: BTreeMap<ReplicaId, (u64, Option<Heal>)>,
    random: Random,
    term: Term,
    vote: Option<ReplicaId>,
    /// The newest (term, vote) known to be durable.
    durable_vote: (Term, Option<ReplicaId>),
    outbox: Outbox<P>,
    outstanding: VecDeque<Outstanding>,
    number: ReadyNumber,
    handed_hard_state: HardState,
    handed_apply_through: Index,
}

impl<P: Payload> Core<P> {
    pub(crate) fn new(
        config: Config,
        memberships: Memberships,
        log: Log<P>,
        hard_state: HardState,
        now: Time,
    ) -> Self {
        Core {
            random: Random::new(config.jitter_seed, config.id.0),
            term: hard_state.term,
            vote: hard_state.vote,
            durable_vote: (hard_state.term, hard_state.vote),
            handed_hard_state: hard_state,
            // What is committed already but not applied is told in the first Ready.
            handed_apply_through: log.applied(),
            config,
            memberships,
            log,
            now,
            heard_at: None,
            votes_refused_until: Time(0),
            installing: None,
            suspect: None,
            suspicions: 0,
            doubts_heard: 0,
            told: BTreeMap::new(),
            outbox: Outbox::default(),
            outstanding: VecDeque::new(),
            number: ReadyNumber(0),
        }
    }

    pub(crate) fn id(&self) -> ReplicaId {
        self.config.id
    }

    pub(crate) fn term(&self) -> Term {
        self.term
    }

    /// The configuration in force: the newest in the log.
    pub(crate) fn configuration(&self) -> &Configuration {
        &self.memberships.current().configuration
    }

    /// The configuration in force, and its entry.
    pub(crate) fn membership(&self) -> &Membership {
        self.memberships.current()
    }

    /// The membership as of `index`, which is not below what is applied.
    pub(crate) fn membership_as_of(&self, index: Index) -> &Membership {
        self.memberships.as_of(index)
    }

    /// Whether this replica may be needed as a leader.
    pub(crate) fn may_lead(&self) -> bool {
        self.memberships.may_lead(self.id(), self.log.commit())
    }

    /// Whether `id` belongs to the group, as far as this replica knows.
    pub(crate) fn may_belong(&self, id: ReplicaId) -> bool {
        self.memberships.may_belong(id, self.log.commit())
    }

    pub(crate) fn vote(&self) -> Option<ReplicaId> {
        self.vote
    }

    /// Time never goes back, even if a caller's does.
    pub(crate) fn set_now(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// Enters a new term, with no vote in it yet.
    pub(crate) fn set_term(&mut self, term: Term) {
        assert!(term > self.term, "the term goes back from {} to {term}", self.term);
        self.term = term;
        self.vote = None;
        self.doubts_heard = 0;
        if let Some(suspect) = &mut self.suspect {
            suspect.enter_term();
        }
    }

    /// Votes in the current term; once.
    pub(crate) fn set_vote(&mut self, candidate: ReplicaId) {
        assert!(self.vote.is_none_or(|vote| vote == candidate), "a vote is given once in a term");
        self.vote = Some(candidate);
    }

    /// Whether this replica's vote for itself in the current term is durable, so that it may be counted.
    pub(crate) fn own_vote_is_durable(&self) -> bool {
        self.vote_is_durable() && self.vote == Some(self.id())
    }

    /// Whether the current term, and the vote in it if there is one, are durable.
    pub(crate) fn vote_is_durable(&self) -> bool {
        self.durable_vote == (self.term, self.vote)
    }

    pub(crate) fn last_position(&self) -> Position {
        Position { index: self.log.last(), term: self.log.last_term() }
    }

    /// A moment between one and two election timeouts from now.
    pub(crate) fn next_election(&mut self) -> Time {
        let timeout = self.config.election_timeout;
        self.now.after(timeout).after(self.random.below(timeout))
    }

    /// A moment within one election timeout from `moment`.
    pub(crate) fn soon_after(&mut self, moment: Time) -> Time {
        moment.after(self.random.below(self.config.election_timeout))
    }

    /// Whether a leader may be relying on this replica's silence.
    pub(crate) fn is_promised(&self) -> bool {
        self.now < self.votes_refused_until
            || self.heard_at.is_some_and(|heard_at| self.now < heard_at.after(self.config.election_timeout))
    }

    /// Whether this replica's own writes hang.
    pub(crate) fn write_stalled(&self) -> bool {
        let stalled = |write: &Outstanding| self.now >= write.handed_at.after(self.config.write_stall_max);
        self.outstanding.front().is_some_and(stalled)
    }

    /// Appends to the log. A configuration is in force from here on; that it is one was checked before.
    pub(crate) fn append(&mut self, entry: Entry<P>) {
        if entry.kind == EntryKind::Configuration {
            let configuration = Configuration::decode(entry.payload.as_bytes());
            let configuration = configuration.expect("an entry is checked before it is appended");
            self.memberships.append(Membership { configuration, set_by: entry.position() });
            self.membership_changed();
        }
        self.log.append(entry);
    }

    /// Drops the log's tail; what of it is still on its way to disk counts for nothing, and what configurations it held
    /// are not in force any more.
    pub(crate) fn truncate(&mut self, after: Index) {
        self.log.truncate(after);
        self.clip_outstanding(after);
        if self.memberships.truncate(after) {
            self.membership_changed();
        }
    }

    fn membership_changed(&mut self) {
        let set_by = self.membership().set_by;
        self.change(Change::Membership { set_by });
    }

    pub(crate) fn set_applied(&mut self, index: Index) {
        self.log.set_applied(index);
        self.memberships.applied(index);
    }

    /// The log is replaced by a snapshot.
    pub(crate) fn reset(&mut self, position: Position, membership: Membership) {
        self.log.reset(position);
        if self.memberships.reset(membership) {
            self.membership_changed();
        }
        // Only a suspect's damaged state may give way to an older one.
        self.handed_apply_through = position.index;
        self.handed_hard_state.commit = self.handed_hard_state.commit.min(position.index);
        if let Some(suspect) = &mut self.suspect {
            suspect.replaced(position.index);
        }
        self.clip_outstanding(Index(0));
    }

    fn clip_outstanding(&mut self, after: Index) {
        for write in &mut self.outstanding {
            write.through = write.through.min(after);
        }
    }

    fn message(&self, to: ReplicaId, term: Term, body: Body<P>) -> Message<P> {
        assert_ne!(to, self.id(), "a replica does not write to itself");
        let marks = self.marks(to, &body);
        Message { from: self.id(), to, term, body, marks }
    }

    /// Sends in the current term, without waiting for durability.
    pub(crate) fn send(&mut self, to: ReplicaId, body: Body<P>) {
        self.send_in_term(to, self.term, body);
    }

    /// Sends in another term than the current one: pre-votes only.
    pub(crate) fn send_in_term(&mut self, to: ReplicaId, term: Term, body: Body<P>) {
        let message = self.message(to, term, body);
        self.outbox.messages.push(message);
    }

    /// Sends in the current term once everything said so far is durable.
    pub(crate) fn send_after(&mut self, to: ReplicaId, body: Body<P>) {
        let message = self.message(to, self.term, body);
        self.outbox.messages_after.push(message);
    }

    /// Answers a request for a vote by the life of the candidate that asked.
    pub(crate) fn answer_vote(&mut self, to: ReplicaId, granted: bool, life: u64) {
        let mut message = self.message(to, self.term, Body::VoteReply { granted });
        message.marks.life = life;
        if granted {
            self.outbox.messages_after.push(message);
        } else {
            self.outbox.messages.push(message);
        }
    }

    pub(crate) fn answer_read(&mut self, outcome: ReadOutcome) {
        self.outbox.reads.push(outcome);
    }

    pub(crate) fn load_log(&mut self, load: LogLoad) {
        self.outbox.log_loads.push(load);
    }

    pub(crate) fn need_snapshot(&mut self, to: ReplicaId) {
        self.outbox.snapshots.push(SnapshotNeeded { to });
    }

    /// Takes back the snapshots that were asked for: there is nothing good here to send.
    pub(crate) fn forget_snapshots(&mut self) {
        self.outbox.snapshots.clear();
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.outbox.changes.push(change);
    }

    /// The hard state to be written now, if any. Term and vote are written when they change; the commit index
    /// rides along, and with entries once it has moved far enough to be worth a record.
    fn take_hard_state(&mut self, has_entries: bool) -> Option<HardState> {
        let handed = self.handed_hard_state;
        let current = HardState { term: self.term, vote: self.vote, commit: self.log.commit() };
        assert!(current.term >= handed.term && current.commit >= handed.commit, "the hard state goes back");
        let voted = (current.term, current.vote) != (handed.term, handed.vote);
        let moved = current.commit.0 - handed.commit.0 >= self.config.commit_record_interval;
        if voted || (has_entries && moved) {
            self.handed_hard_state = current;
            Some(current)
        } else {
            None
        }
    }

    pub(crate) fn take_ready(&mut self) -> Option<Ready<P>> {
        self.log.check();
        let has_entries = self.log.has_unhanded();
        let hard_state = self.take_hard_state(has_entries);
        // Nothing more is applied to a damaged state.
        let apply_through =
            if self.needs_snapshot() { self.handed_apply_through } else { self.log.apply_through() };
        let applies = apply_through > self.handed_apply_through;
        if !has_entries && hard_state.is_none() && !applies && self.outbox.is_empty() {
            return None;
        }
        self.handed_apply_through = self.handed_apply_through.max(apply_through);
        let (truncate_after, entries) = self.log.take_unhanded();
        let outbox = std::mem::take(&mut self.outbox);
        self.number = self.number.next();
        let ready = Ready {
            number: self.number,
            hard_state,
            truncate_after,
            entries,
            messages: outbox.messages,
            messages_after: outbox.messages_after,
            commit: self.log.commit(),
            apply_through: self.handed_apply_through,
            reads: outbox.reads,
            log_loads: outbox.log_loads,
            snapshots: outbox.snapshots,
            changes: outbox.changes,
        };
        if ready.has_records() {
            self.outstanding.push_back(Outstanding {
                number: self.number,
                through: self.log.last(),
                term: self.term,
                vote: self.vote,
                handed_at: self.now,
            });
        }
        Some(ready)
    }

    /// The records of `number` and of all before it are durable.
    pub(crate) fn set_durable(&mut self, number: ReadyNumber) {
        assert!(number <= self.number, "only a Ready that was handed out can be durable");
        while self.outstanding.front().is_some_and(|write| write.number <= number) {
            if let Some(write) = self.outstanding.pop_front() {
                self.durable_vote = (write.term, write.vote);
                self.log.set_durable(write.through);
            }
        }
    }
}
