//! One shard's replica on this core: its Raft state machine, the deterministic machine that commands are applied
//! to, and whoever waits for either.
//!
//! Raft decides what is committed, the store keeps it, the machine says what it means; this file is where the
//! three meet. It does no I/O itself: `emit` writes what [`Replica::ready`] gives, and calls back.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use futures_channel::oneshot;
use krita_engine::{ShardId, Store};
use krita_proto::error::ErrorCode;
use krita_proto::v1;
use krita_raft::{Change as RaftChange, Entry, Index, Raft, ReadOutcome, ReadToken, Ready, Term, Time};
use krita_runtime::{Instant, Notify, Runtime};

use crate::applying::FetchedVersions;
use crate::command::{self, WriteCommand};
use crate::divergence::Hashes;
use crate::failure::Failure;
use crate::machine::{self, Outcome};
use crate::membership::Belonging;
use crate::mending::Source;
use crate::meta;
use crate::meta::node_of;
use crate::meta::replicated::entry_of;
use crate::reads::{self, Confirmed, PendingRead};
use crate::request::{Action, Condition, KeyOperation, Write};
use crate::responder::Responder;
use crate::shard_machine::ShardMachine;
use crate::suspicion::Doubt;
use crate::wire::Payload;

/// Confirmed reads that wait until enough is applied. Those that wait to be confirmed Raft bounds.
const CONFIRMED_MAX: usize = 16 * 1024;

/// One replica.
///
/// Invariant: `applied <= apply_through`, and both only grow.
pub(crate) struct Replica<R: Runtime> {
    pub(crate) shard: u32,
    pub(crate) id: krita_raft::ReplicaId,
    /// Position among the logs of this core.
    pub(crate) log: usize,
    pub(crate) raft: Raft<Payload>,
    pub(crate) machine: ShardMachine,
    pub(crate) store: Store<R>,
    /// Where values are read.
    pub(crate) source: Rc<Source<R>>,
    /// Its state's hashes of late.
    pub(crate) hashes: Hashes,
    /// Whether it belongs to its group.
    pub(crate) belonging: Belonging,
    /// This node and core, as answers name them.
    pub(crate) served_by: v1::ServedBy,
    pub(crate) leader: Option<krita_raft::ReplicaId>,
    pub(crate) applied: Index,
    pub(crate) applied_term: Term,
    pub(crate) apply_through: Index,
    /// A read of entries or of versions to apply with is under way: applying waits.
    pub(crate) apply_paused: bool,
    /// How often versions were asked of the disk since an entry was applied.
    pub(crate) prefetches: u32,
    /// Versions that were fetched for the next entry alone.
    pub(crate) fetched_versions: Option<FetchedVersions>,
    /// Why this replica stopped for good: it met a command that it does not understand.
    pub(crate) stopped: Option<String>,
    /// Why this replica counts for nothing for now.
    pub(crate) doubt: Option<Doubt>,
    /// It has been suspect in this life: whatever it may have forgotten before is seen to.
    pub(crate) was_doubted: bool,
    /// The store does not know yet what `doubt` says.
    pub(crate) is_doubt_new: bool,
    /// A task has the store note `doubt`.
    pub(crate) is_recording_doubt: bool,
    /// Shards of the cluster.
    pub(crate) shard_count: u32,
    /// Highest log time given to a proposal, in milliseconds since 1970.
    log_time_ms: u64,
    proposals: VecDeque<Proposal>,
    reads: BTreeMap<u64, PendingRead>,
    /// Confirmed reads that wait until this index is applied.
    confirmed: VecDeque<(Index, PendingRead)>,
    next_token: u64,
    /// Already in the core's list of replicas that have output.
    pub(crate) is_dirty: bool,
    /// A snapshot is on its way in, and Raft's log is frozen for it.
    pub(crate) is_installing: bool,
    /// Another leader, or another term of it, is known since the snapshot began: nobody will continue it.
    pub(crate) is_install_superseded: bool,
    /// The snapshot is being swapped in: nothing may be written to the shard meanwhile.
    pub(crate) hold_output: bool,
    /// Told when `unflushed` has become 0.
    pub(crate) flushed: Notify,
    /// Readies whose records, or whose predecessors' records, are on their way to the disk.
    pub(crate) unflushed: usize,
    pub(crate) generation: u64,
    /// Not before then is leadership handed to where the placement wants it.
    pub(crate) balance_at: Instant,
    /// It has come to lead since leaderships were looked at last.
    pub(crate) has_just_won: bool,
}

/// What a replica is made from.
pub(crate) struct ReplicaParts<R: Runtime> {
    pub(crate) shard: u32,
    pub(crate) log: usize,
    pub(crate) raft: Raft<Payload>,
    pub(crate) machine: ShardMachine,
    pub(crate) source: Source<R>,
    pub(crate) now: Instant,
    pub(crate) served_by: v1::ServedBy,
    pub(crate) applied: Index,
    pub(crate) applied_term: Term,
    pub(crate) generation: u64,
    pub(crate) doubt: Option<Doubt>,
    pub(crate) shard_count: u32,
}

/// What waits to be applied.
struct Proposal {
    index: Index,
    term: Term,
    deadline: Instant,
    waiter: Waiter,
}

/// Who waits for it.
enum Waiter {
    /// Whoever sent a write.
    Write { responder: Responder, shape: AnswerShape },
    /// Someone on this core, with a command of the meta group.
    Meta(oneshot::Sender<Result<meta::Outcome, Failure>>),
}

impl Waiter {
    fn fail(self, failure: Failure) {
        match self {
            Self::Write { responder, .. } => responder.fail(&failure),
            // Whoever waits may have gone away: nothing to tell then.
            Self::Meta(sender) => drop(sender.send(Err(failure))),
        }
    }
}

/// How an entry ended, for whoever proposed it.
pub(crate) enum Answer {
    /// A write.
    Write(Outcome),
    /// A command of the meta group.
    Meta(meta::Outcome),
}

/// How a write is answered.
enum AnswerShape {
    /// By a WriteReply.
    Single,
    /// By a BatchReply with this many results; the gets among them by position.
    Batch { operations: usize, gets: Vec<(usize, Bytes)> },
}

impl AnswerShape {
    /// Where the write with this number stands among all operations of the request: gets are no part of the
    /// command, so it numbers writes alone.
    fn position(&self, write: u32) -> u32 {
        match self {
            Self::Single => write,
            Self::Batch { operations, gets } => {
                let is_write =
                    |position: &usize| gets.binary_search_by_key(position, |(get, _)| *get).is_err();
                let position = (0..*operations).filter(is_write).nth(write as usize);
                position.and_then(|position| u32::try_from(position).ok()).unwrap_or(write)
            }
        }
    }
}

/// The core's time in Raft's terms.
pub(crate) fn raft_time(now: Instant) -> Time {
    Time(now.as_nanoseconds())
}

impl<R: Runtime> Replica<R> {
    pub(crate) fn new(parts: ReplicaParts<R>) -> Self {
        let ReplicaParts {
            shard,
            log,
            raft,
            machine,
            source,
            now,
            served_by,
            applied,
            applied_term,
            generation,
            doubt,
            shard_count,
        } = parts;
        let mut hashes = Hashes::default();
        hashes.reset(applied.0, machine.state_hash());
        let log_time_ms = machine.log_time_ms();
        let id = raft.status().id;
        let replica = Self {
            belonging: Belonging::new(raft.applied_membership(), id, now),
            shard,
            id,
            log,
            raft,
            machine,
            store: source.store.clone(),
            source: Rc::new(source),
            hashes,
            served_by,
            leader: None,
            applied,
            applied_term,
            apply_through: applied,
            apply_paused: false,
            prefetches: 0,
            fetched_versions: None,
            stopped: None,
            was_doubted: doubt.is_some(),
            doubt,
            is_doubt_new: false,
            is_recording_doubt: false,
            shard_count,
            log_time_ms,
            proposals: VecDeque::new(),
            reads: BTreeMap::new(),
            confirmed: VecDeque::new(),
            next_token: 0,
            is_dirty: false,
            is_installing: false,
            is_install_superseded: false,
            hold_output: false,
            flushed: Notify::new(),
            unflushed: 0,
            generation,
            balance_at: Instant::default(),
            has_just_won: false,
        };
        replica.learn_others();
        replica
    }

    pub(crate) fn engine_shard(&self) -> ShardId {
        ShardId(self.shard)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.leader == Some(self.id)
    }

    /// The leader's node, as far as this replica knows.
    pub(crate) fn leader_node(&self) -> Option<u32> {
        Some(node_of(self.leader?).0)
    }

    /// Whether this is the only replica of its group: nobody else has what it has.
    pub(crate) fn is_alone(&self) -> bool {
        self.raft.configuration().is_sole_voter(self.id)
    }

    /// Whether nothing may be applied or read here before a snapshot has replaced the state.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.doubt.as_ref().is_some_and(|doubt| doubt.is_quarantined)
    }

    /// Proposes a write whose conditions are all on versions. The responder answers once it is applied.
    pub(crate) fn propose(
        &mut self,
        now: Instant,
        wall_ms: u64,
        write: Write,
        deadline: Instant,
        responder: Responder,
    ) {
        if let Some(reason) = &self.stopped {
            return responder.fail(&Failure::unavailable(reason.clone()));
        }
        let log_time_ms = self.log_time_ms.max(self.machine.log_time_ms()).max(wall_ms);
        let (command, shape) = match build_command(write, log_time_ms) {
            Ok(built) => built,
            Err(failure) => return responder.fail(&failure),
        };
        match self.raft.propose(raft_time(now), Payload(command.encode())) {
            Ok((term, index)) => {
                self.log_time_ms = log_time_ms;
                debug_assert!(self.proposals.back().is_none_or(|last| last.index < index));
                let waiter = Waiter::Write { responder, shape };
                self.proposals.push_back(Proposal { index, term, deadline, waiter });
            }
            Err(error) => responder.fail(&self.propose_failure(error)),
        }
    }

    /// Proposes a command of the meta group. The outcome comes once it is applied.
    pub(crate) fn propose_meta(
        &mut self,
        now: Instant,
        command: &meta::Command,
        deadline: Instant,
    ) -> oneshot::Receiver<Result<meta::Outcome, Failure>> {
        let (sender, receiver) = oneshot::channel();
        let waiter = Waiter::Meta(sender);
        assert!(self.machine.meta_state().is_some(), "only shard 0 takes commands of the meta group");
        if let Some(reason) = &self.stopped {
            waiter.fail(Failure::unavailable(reason.clone()));
            return receiver;
        }
        match self.raft.propose(raft_time(now), Payload(entry_of(command))) {
            Ok((term, index)) => self.proposals.push_back(Proposal { index, term, deadline, waiter }),
            Err(error) => waiter.fail(self.propose_failure(error)),
        }
        receiver
    }

    /// Asks Raft for a read; the answer comes once it is confirmed and applied.
    pub(crate) fn read(&mut self, now: Instant, read: PendingRead) {
        if let Some(reason) = &self.stopped {
            return read.fail(Failure::unavailable(reason.clone()));
        }
        if self.confirmed.len() >= CONFIRMED_MAX {
            return read
                .fail(Failure::overloaded("too many reads wait for what this shard still has to apply"));
        }
        self.next_token += 1;
        match self.raft.read(raft_time(now), ReadToken(self.next_token)) {
            Ok(()) => {
                self.reads.insert(self.next_token, read);
            }
            Err(krita_raft::ReadError::NotLeader { .. }) => read.fail(self.not_leader()),
            Err(krita_raft::ReadError::TooMuchPending) => {
                read.fail(Failure::overloaded("too many reads wait for this shard"));
            }
        }
    }

    /// What Raft wants done, if anything; its own parts of it are done here.
    pub(crate) fn ready(&mut self) -> Option<Ready<Payload>> {
        let ready = self.raft.ready()?;
        for change in &ready.changes {
            self.on_change(*change);
        }
        for outcome in &ready.reads {
            self.on_read(*outcome);
        }
        assert!(ready.apply_through >= self.apply_through, "what may be applied never shrinks");
        self.apply_through = ready.apply_through;
        Some(ready)
    }

    fn on_change(&mut self, change: RaftChange) {
        match change {
            RaftChange::BecameLeader { term } => {
                tracing::info!(shard = self.shard, term = term.0, "leads");
                self.leader = Some(self.id);
                self.has_just_won = true;
            }
            RaftChange::LostLeadership { term } => {
                tracing::info!(shard = self.shard, term = term.0, "no longer leads");
                if self.leader == Some(self.id) {
                    self.leader = None;
                }
                let failure = Failure::unknown_outcome("leadership was lost before the write was applied")
                    .with_hint(None);
                for proposal in self.proposals.drain(..) {
                    proposal.waiter.fail(failure.clone());
                }
            }
            RaftChange::LeaderKnown { leader, .. } => {
                self.leader = leader;
                self.is_install_superseded = self.is_installing && leader.is_some();
            }
            RaftChange::Membership { set_by } => {
                tracing::info!(shard = self.shard, set_by = set_by.index.0, "goes by another configuration");
                self.learn_others();
            }
            RaftChange::Whole { term } => {
                tracing::info!(shard = self.shard, term = term.0, "this replica is whole again");
                self.doubt = None;
                self.is_doubt_new = true;
            }
        }
    }

    fn on_read(&mut self, outcome: ReadOutcome) {
        match outcome {
            ReadOutcome::Done { token, index } => {
                let Some(read) = self.reads.remove(&token.0) else { return };
                match index <= self.applied {
                    true => self.serve(read),
                    false => self.confirmed.push_back((index, read)),
                }
            }
            ReadOutcome::Failed { token } => {
                if let Some(read) = self.reads.remove(&token.0) {
                    read.fail(self.not_leader());
                }
            }
        }
    }

    /// What was to be read here must be read elsewhere.
    pub(crate) fn fail_confirmed(&mut self) {
        for (_, read) in self.confirmed.drain(..) {
            read.fail(Failure::unavailable("this replica is suspect: ask again, another will lead"));
        }
    }

    fn serve(&self, read: PendingRead) {
        reads::serve(&self.source, self.served_by, Confirmed::Yes, read.read);
    }

    /// Answers whoever proposed at this index: with the outcome if it is their entry, with a failure if
    /// another leader's took its place.
    pub(crate) fn answer_proposal(&mut self, entry: &Entry<Payload>, outcome: Option<Answer>) {
        while self.proposals.front().is_some_and(|proposal| proposal.index <= entry.index) {
            let Some(proposal) = self.proposals.pop_front() else { return };
            let is_theirs = proposal.index == entry.index && proposal.term == entry.term;
            match (outcome.as_ref().filter(|_| is_theirs), proposal.waiter) {
                (Some(Answer::Write(outcome)), Waiter::Write { responder, shape }) => {
                    self.answer(responder, shape, outcome);
                }
                // Whoever waits may have gone away: nothing to tell then.
                (Some(Answer::Meta(outcome)), Waiter::Meta(sender)) => drop(sender.send(Ok(outcome.clone()))),
                (_, waiter) => waiter.fail(Failure::unavailable(
                    "another leader's entry took the write's place; it was not applied",
                )),
            }
        }
    }

    fn answer(&self, responder: Responder, shape: AnswerShape, outcome: &Outcome) {
        let results = match outcome {
            Outcome::Applied(results) => results,
            refused => return responder.fail(&self.refusal(refused, &shape)),
        };
        match shape {
            AnswerShape::Single => {
                let Some(result) = results.first() else {
                    return responder.fail(&Failure::new(ErrorCode::Internal, "no result"));
                };
                responder.message(&v1::WriteReply {
                    version: result.version,
                    existed: result.existed,
                    served_by: Some(self.served_by),
                });
            }
            AnswerShape::Batch { operations, gets } => {
                let results = batch_results(operations, &gets, results);
                let answer = reads::BatchGets { results, gets, responder };
                reads::complete_batch(&self.source, self.served_by, Confirmed::Yes, answer);
            }
        }
    }

    fn refusal(&self, outcome: &Outcome, shape: &AnswerShape) -> Failure {
        let failure = match outcome {
            Outcome::Applied(_) => Failure::new(ErrorCode::Internal, "not a refusal"),
            Outcome::ConditionFailed { operation, current_version } => Failure {
                current_version: *current_version,
                operation: shape.position(u32::from(*operation)),
                ..Failure::new(
                    ErrorCode::ConditionFailed,
                    format!("the key's version is {current_version}; nothing was applied"),
                )
            },
            Outcome::SessionUnknown => Failure::unknown_outcome(
                "the shard does not know this session or has forgotten this request; it was not applied now",
            ),
            Outcome::SessionsFull => Failure::new(
                ErrorCode::ResourceExhausted,
                "the shard has as many client sessions as it can hold; nothing was applied",
            ),
            Outcome::SequenceOutOfWindow => {
                Failure::invalid("too many requests of this session are unacknowledged; nothing was applied")
            }
        };
        // With UNKNOWN_OUTCOME the log time tells the client that this attempt was not applied.
        Failure { log_time_ms: self.machine.log_time_ms(), ..failure }
    }

    pub(crate) fn serve_confirmed(&mut self) {
        let mut waiting = VecDeque::new();
        for (index, read) in std::mem::take(&mut self.confirmed) {
            match index <= self.applied {
                true => self.serve(read),
                false => waiting.push_back((index, read)),
            }
        }
        self.confirmed = waiting;
    }

    /// Fails whoever has waited past their deadline.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.proposals.iter().any(|proposal| proposal.deadline <= now) {
            for proposal in std::mem::take(&mut self.proposals) {
                match proposal.deadline <= now {
                    true => proposal.waiter.fail(Failure::unknown_outcome(
                        "the deadline passed while the write was being replicated",
                    )),
                    false => self.proposals.push_back(proposal),
                }
            }
        }
        let late: Vec<u64> =
            self.reads.iter().filter(|(_, read)| read.deadline <= now).map(|(token, _)| *token).collect();
        for token in late {
            if let Some(read) = self.reads.remove(&token) {
                read.fail(Failure::unavailable("no quorum confirmed the read within its deadline"));
            }
        }
        if self.confirmed.iter().any(|(_, read)| read.deadline <= now) {
            for (index, read) in std::mem::take(&mut self.confirmed) {
                match read.deadline <= now {
                    true => read.fail(Failure::deadline()),
                    false => self.confirmed.push_back((index, read)),
                }
            }
        }
    }

    /// The store holds a snapshot now in place of what it had; the machine and Raft follow.
    pub(crate) fn take_snapshot(&mut self, now: Time, machine: ShardMachine, meta: krita_raft::SnapshotMeta) {
        if let Some(doubt) = self.doubt.as_mut().filter(|doubt| doubt.is_quarantined) {
            // What was here is gone, and with it its damage, even if that was newer.
            doubt.is_quarantined = false;
            self.is_doubt_new = true;
            self.apply_through = meta.position.index;
        } else {
            assert!(meta.position.index > self.applied, "a snapshot never takes a replica back");
        }
        self.machine = machine;
        self.applied = meta.position.index;
        self.applied_term = meta.position.term;
        // What is being fetched for the next entry was asked of the old state.
        (self.prefetches, self.fetched_versions) = (0, None);
        self.apply_through = self.apply_through.max(self.applied);
        self.hashes.reset(self.applied.0, self.machine.state_hash());
        self.raft.snapshot_installed(now, meta);
    }

    /// Fails whoever waits for anything of this replica, which is about to go.
    pub(crate) fn fail_all(&mut self, failure: &Failure) {
        let unknown = Failure::unknown_outcome(failure.message.clone());
        for proposal in self.proposals.drain(..) {
            proposal.waiter.fail(unknown.clone());
        }
        let confirmed = std::mem::take(&mut self.confirmed).into_iter().map(|(_, read)| read);
        for read in std::mem::take(&mut self.reads).into_values().chain(confirmed) {
            read.fail(failure.clone());
        }
    }

    /// Stops for good: nothing is applied or answered any more, so that this replica cannot diverge.
    pub(crate) fn stop(&mut self, reason: String) {
        let failure = Failure::unknown_outcome(reason.clone());
        for proposal in self.proposals.drain(..) {
            proposal.waiter.fail(failure.clone());
        }
        self.stopped = Some(reason);
    }

    /// The failure that says who leads.
    pub(crate) fn not_leader(&self) -> Failure {
        match self.leader_node().filter(|_| !self.is_leader()) {
            Some(node) => {
                Failure::new(ErrorCode::NotLeader, format!("node {node} leads shard {}", self.shard))
                    .with_hint(Some(v1::ServedBy {
                        shard: self.shard,
                        node_number: node,
                        core: 0,
                        epoch: self.served_by.epoch,
                    }))
            }
            None => Failure::unavailable(format!("no leader of shard {} is known", self.shard)),
        }
    }

    fn propose_failure(&self, error: krita_raft::ProposeError) -> Failure {
        match error {
            krita_raft::ProposeError::NotLeader { .. } => self.not_leader(),
            krita_raft::ProposeError::TooMuchPending => {
                Failure::overloaded(format!("too many writes wait for shard {}", self.shard))
            }
            krita_raft::ProposeError::Transferring => {
                Failure::unavailable("leadership of the shard is being handed over")
            }
        }
    }

    /// A write's or read's outcome that the shard remembers, if it has been applied before.
    pub(crate) fn remembered(&self, request: command::RequestId) -> Option<Outcome> {
        self.machine.remembered(request)
    }

    /// Answers a batch of nothing but gets, whose read has been confirmed.
    pub(crate) fn answer_reads(&self, write: Write, responder: Responder) {
        self.answer(responder, answer_shape(&write), &Outcome::Applied(Vec::new()));
    }

    /// Answers a write by an outcome that an earlier attempt had.
    pub(crate) fn answer_remembered(&self, write: &Write, responder: Responder, outcome: &Outcome) {
        self.answer(responder, answer_shape(write), outcome);
    }
}

/// The gets of a batch of nothing else, to be answered by [`reads::complete_batch`].
pub(crate) fn gets_of(write: &Write, responder: Responder) -> reads::BatchGets {
    let gets = write.operations.iter().map(|operation| operation.key.clone()).enumerate().collect();
    reads::BatchGets {
        results: vec![v1::OperationResult::default(); write.operations.len()],
        gets,
        responder,
    }
}

fn answer_shape(write: &Write) -> AnswerShape {
    if !write.is_batch {
        return AnswerShape::Single;
    }
    let gets =
        write.operations.iter().enumerate().filter_map(|(position, operation)| match operation.action {
            Action::Get => Some((position, operation.key.clone())),
            Action::Put(_) | Action::Delete => None,
        });
    AnswerShape::Batch { operations: write.operations.len(), gets: gets.collect() }
}

fn build_command(write: Write, log_time_ms: u64) -> Result<(WriteCommand, AnswerShape), Failure> {
    let shape = answer_shape(&write);
    let request = command::RequestId {
        session: write.request_id.session,
        sequence: write.request_id.sequence,
        lowest_unacknowledged: write.request_id.lowest_unacknowledged,
        register_until_ms: write.request_id.register_until_ms,
    };
    let operations = write.operations.into_iter().filter_map(command_operation).collect();
    let command = WriteCommand::new(log_time_ms, request, operations)
        .map_err(|error| Failure::invalid(error.to_string()))?;
    Ok((command, shape))
}

/// A get is no part of a command: it is answered from the index after the command has been applied.
fn command_operation(operation: KeyOperation) -> Option<command::Operation> {
    let condition = match operation.condition {
        None => command::Condition::None,
        Some(Condition::Version(version)) => command::Condition::IfVersion(version),
        Some(Condition::Value(_)) => unreachable!("conditions on values are resolved before proposing"),
    };
    match operation.action {
        Action::Put(value) => Some(command::Operation::put(operation.key, value, condition)),
        Action::Delete => Some(command::Operation::delete(operation.key, condition)),
        Action::Get => None,
    }
}

/// Spreads the results of the writes over all operations of a batch; gets are filled in later.
fn batch_results(
    operations: usize,
    gets: &[(usize, Bytes)],
    written: &[machine::OperationOutcome],
) -> Vec<v1::OperationResult> {
    let mut written = written.iter();
    let mut gets = gets.iter().map(|(position, _)| *position).peekable();
    (0..operations)
        .map(|position| {
            if gets.next_if_eq(&position).is_some() {
                return v1::OperationResult::default();
            }
            written.next().map_or_else(v1::OperationResult::default, |result| v1::OperationResult {
                version: result.version,
                existed: result.existed,
                value: Bytes::new(),
            })
        })
        .collect()
}
