//! The end of a core's round: what the replicas that were touched want done is gathered, then emitted once, as one
//! write to the log and one burst to each peer.
//!
//! While a log write is in flight the next batch collects. That is all there is to group commit: no timer and no
//! tuning. Messages that must wait for the disk wait with the batch that carries their records.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_engine::{Batch, Headroom, LogError, LogMark, ReadError, Store};
use krita_raft::{Entry, EntryKind, Index, LogLoad, Message, Ready, ReadyNumber, Suspicion, Term};
use krita_runtime::{Instant, Runtime, TaskClass};

use crate::applying::{Applied, FetchedVersions, Wanted};
use crate::command;
use crate::core::{Core, Serving};
use crate::meta::{META_SHARD, node_of};
use crate::metrics;
use crate::replica::{Replica, raft_time};
use crate::scrubbing::Scrub;
use crate::wire::{self, Payload};

/// Rounds of one replica before the others get their turn.
const ROUNDS_MAX: usize = 8;

/// Bytes of entries read from the log at a time, to be applied or sent.
const LOAD_BYTES_MAX: usize = 1 << 20;

/// How often a write that found no room is tried again, and said to be.
const ROOM_RETRY: Duration = Duration::from_millis(200);
const ROOM_LOG_EVERY: u32 = 50;

/// How often a write is tried that the system refuses for another reason, such as too many open files.
const IO_ATTEMPTS_MAX: u32 = 25;

/// One log of this core, and what is on its way to it.
pub(crate) struct LogWriter<R: Runtime> {
    pub(crate) store: Store<R>,
    /// The number of the log.
    pub(crate) number: u16,
    /// How far it was durable when it was opened.
    pub(crate) found: LogMark,
    /// Its files were made anew at this start, in place of damaged or missing ones.
    pub(crate) was_replaced: bool,
    pub(crate) scrub: Scrub,
    /// What the next write will hold.
    batch: Batch,
    /// It holds new values: nothing that a full disk has room for.
    grows: bool,
    /// Who waits for the next write.
    waiting: Vec<Waiting>,
    /// A write is under way.
    writing_since: Option<Instant>,
    /// For how long writes that have ended were under way, all together.
    written_for: Duration,
}

/// A log as it was opened.
pub(crate) struct OpenedLog<R: Runtime> {
    pub(crate) store: Store<R>,
    pub(crate) number: u16,
    pub(crate) found: LogMark,
    pub(crate) was_replaced: bool,
}

/// A Ready that is durable once the batch is.
struct Waiting {
    shard: u32,
    number: ReadyNumber,
    messages_after: Vec<Message<Payload>>,
}

impl<R: Runtime> LogWriter<R> {
    pub(crate) fn new(opened: OpenedLog<R>) -> Self {
        let OpenedLog { store, number, found, was_replaced } = opened;
        let batch = store.batch();
        Self {
            store,
            number,
            found,
            was_replaced,
            scrub: Scrub::default(),
            batch,
            grows: false,
            waiting: Vec::new(),
            writing_since: None,
            written_for: Duration::ZERO,
        }
    }

    /// For how long writes were under way until now, all together.
    pub(crate) fn write_time(&self, now: Instant) -> Duration {
        self.written_for + self.writing_since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

impl<R: Runtime> Core<R> {
    /// Notes that a replica may have output; the end of this round takes it.
    pub(crate) fn touch(&self, replica: &mut Replica<R>) {
        if !replica.is_dirty {
            replica.is_dirty = true;
            self.dirty.borrow_mut().push(replica.shard);
            self.round.notify();
        }
    }

    /// Emits at the end of every round, for as long as the core lives.
    pub(crate) async fn emit_rounds(self: Rc<Self>) {
        loop {
            self.round.notified().await;
            self.emit();
            if !self.dirty.borrow().is_empty() {
                // A replica with much to do has more; others first.
                self.runtime.pause().await;
            }
        }
    }

    fn emit(self: &Rc<Self>) {
        let dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else { return };
        let is_meta = dirty.contains(&META_SHARD.0);
        for shard in dirty {
            self.emit_replica(serving, shard);
        }
        for log in 0..serving.logs.len() {
            self.start_write(serving, log);
        }
        drop(guard);
        if is_meta {
            self.publish_meta_state();
        }
        self.peers.flush();
    }

    fn emit_replica(self: &Rc<Self>, serving: &mut Serving<R>, shard: u32) {
        let Serving { replicas, logs, .. } = serving;
        let Some(replica) = replicas.get_mut(&shard) else { return };
        replica.is_dirty = false;
        if replica.hold_output || replica.belonging.is_leaving {
            return;
        }
        self.bring_to_rest(replica, logs);
        self.watch_belonging(replica);
    }

    fn bring_to_rest(self: &Rc<Self>, replica: &mut Replica<R>, logs: &mut [LogWriter<R>]) {
        for _ in 0..ROUNDS_MAX {
            while let Some(ready) = replica.ready() {
                self.take_ready(replica, &mut logs[replica.log], ready);
            }
            if std::mem::take(&mut replica.is_doubt_new) {
                self.record_doubt(replica);
            }
            let before = replica.applied;
            match replica.apply() {
                Applied::All if replica.applied == before => return,
                Applied::All | Applied::More => {}
                Applied::Load { from, through } => {
                    self.load_to_apply(replica, from, through);
                    return;
                }
                Applied::Wait(wanted) => {
                    self.fetch_to_apply(replica, wanted);
                    return;
                }
            }
        }
        // Still not at rest: others first.
        self.touch(replica);
    }

    fn take_ready(self: &Rc<Self>, replica: &mut Replica<R>, log: &mut LogWriter<R>, ready: Ready<Payload>) {
        let has_records = ready.has_records();
        let shard = replica.engine_shard();
        if let Some(hard_state) = ready.hard_state {
            // A crash may leave the hard state of a batch without the truncation and entries that go with it. It
            // must not call committed what is not here yet, or the log's old tail would pass for it.
            let commit = hard_state.commit.min(ready.apply_through);
            let hard_state = krita_raft::HardState { commit, ..hard_state };
            log.batch.hard_state(shard, engine_hard_state(hard_state));
        }
        if let Some(index) = ready.truncate_after {
            tracing::info!(shard = replica.shard, after = index.0, "entries of another leader are replaced");
            log.batch.truncate_after(shard, krita_engine::Index(index.0));
        }
        let is_ample = self.peers.own_room().headroom == Headroom::Ample;
        for entry in ready.entries {
            // Nobody asks while there is room.
            log.grows |= is_ample || puts_something(&entry);
            log.batch.entry(shard, engine_entry(entry));
        }
        self.send_all(replica, ready.messages);
        if has_records || replica.unflushed > 0 {
            replica.unflushed += 1;
            log.waiting.push(Waiting {
                shard: replica.shard,
                number: ready.number,
                messages_after: ready.messages_after,
            });
        } else {
            replica.raft.durable(raft_time(self.runtime.now()), ready.number);
            self.send_all(replica, ready.messages_after);
        }
        for load in ready.log_loads {
            self.load_to_send(replica, load);
        }
        for needed in ready.snapshots {
            self.send_snapshot(replica, needed.to);
        }
    }

    fn send_all(&self, replica: &Replica<R>, messages: Vec<Message<Payload>>) {
        for message in messages {
            metrics::count(&self.metrics.raft_messages_sent);
            self.peers.queue(node_of(message.to).0, wire::encode(replica.shard, message));
        }
    }

    fn start_write(self: &Rc<Self>, serving: &mut Serving<R>, position: usize) {
        let log = &mut serving.logs[position];
        if log.writing_since.is_some() || log.waiting.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut log.batch, log.store.batch());
        let grows = std::mem::take(&mut log.grows);
        let waiting = std::mem::take(&mut log.waiting);
        log.writing_since = Some(self.runtime.now());
        let (core, store) = (self.clone(), log.store.clone());
        self.runtime.spawn(TaskClass::Foreground, "log-write", async move {
            let began = core.runtime.now();
            let written = match batch.is_empty() {
                true => Ok(()),
                false => {
                    let written = core.write_once_there_is_room(&store, &batch, grows).await;
                    core.metrics.log_written(began);
                    written
                }
            };
            core.on_written(position, waiting, written);
        });
    }

    /// Writes a batch, and for want of room again and again until there is some. Nothing that waits for the batch is
    /// acknowledged meanwhile, and what comes behind it collects. A part of it may have been written before: writing an
    /// entry anew replaces it by itself.
    ///
    /// What frees space may use the reserve. So may, in part, new values that were taken before the disk was known to
    /// be full: others wait behind them.
    async fn write_once_there_is_room(
        &self,
        store: &Store<R>,
        batch: &Batch,
        grows: bool,
    ) -> Result<(), LogError> {
        for attempt in 0_u32.. {
            let mut batch = batch.clone();
            if !grows || (attempt > 0 && self.may_use_reserve().await) {
                batch.frees_space();
            }
            let refused = match store.write(batch).await {
                Err(LogError::DiskFull(reason)) => reason,
                Err(LogError::Io(reason)) if attempt < IO_ATTEMPTS_MAX => reason,
                written => return written,
            };
            if attempt % ROOM_LOG_EVERY == 0 {
                tracing::warn!(reason = refused, "the log cannot be written for now");
            }
            self.runtime.sleep(ROOM_RETRY).await;
            if self.is_ending() {
                break;
            }
        }
        Err(LogError::DiskFull("the node ended before there was room".to_owned()))
    }

    /// A write has completed: what waited for it is durable, or the log is lost to this process.
    fn on_written(self: &Rc<Self>, position: usize, waiting: Vec<Waiting>, written: Result<(), LogError>) {
        match written {
            Ok(()) => {}
            Err(LogError::DiskFull(_)) => return,
            Err(error) => {
                // What is on disk is unknown now; nothing that waited may be acknowledged, ever, and the log stays as
                // it is: its writer remains in flight.
                return self.give_up(format!("log write failed: {error}"));
            }
        }
        // What is acknowledged now must not leave without it.
        self.publish_log_marks();
        let now = raft_time(self.runtime.now());
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else { return };
        let log = &mut serving.logs[position];
        log.written_for = log.write_time(self.runtime.now());
        log.writing_since = None;
        for Waiting { shard, number, messages_after } in waiting {
            let Some(replica) = serving.replicas.get_mut(&shard) else { continue };
            replica.unflushed -= 1;
            if replica.unflushed == 0 {
                replica.flushed.notify();
            }
            replica.raft.durable(now, number);
            self.send_all(replica, messages_after);
            self.touch(replica);
        }
        self.round.notify();
    }

    /// Reads committed entries that are no longer in memory, and applies them.
    fn load_to_apply(self: &Rc<Self>, replica: &mut Replica<R>, from: Index, through: Index) {
        replica.apply_paused = true;
        let (core, store, shard) = (self.clone(), replica.store.clone(), replica.shard);
        self.runtime.spawn(TaskClass::Foreground, "load-to-apply", async move {
            let entries = read_entries(&store, shard, from, through, LOAD_BYTES_MAX).await;
            core.with_replica(shard, |replica| {
                replica.apply_paused = false;
                match entries {
                    // A snapshot is replacing what the store holds, or has already: asked for again if need be.
                    _ if replica.hold_output || replica.is_quarantined() => {}
                    // Or a snapshot has replaced the log while it was read.
                    Ok(entries) if replica.applied.next() == from => {
                        if let Some(wanted) = replica.apply_entries(&entries) {
                            core.fetch_to_apply(replica, wanted);
                        }
                    }
                    Ok(_) => {}
                    Err(LoadError::Unreadable(reason)) if replica.applied.next() == from => {
                        if !core.suspect_replica(replica, Suspicion::NeedsSnapshot, &reason) {
                            replica.stop(reason);
                        }
                    }
                    Err(LoadError::Unknown(reason)) if replica.applied.next() == from => replica.stop(reason),
                    Err(_) => {}
                }
            });
        });
    }

    /// Has the store learn versions of keys from the disk, and goes on applying. Should it have forgotten them again by
    /// then, because the shard's runs have changed, the replica asks again.
    fn fetch_to_apply(self: &Rc<Self>, replica: &mut Replica<R>, wanted: Wanted) {
        replica.apply_paused = true;
        let (core, store, shard) = (self.clone(), replica.store.clone(), replica.shard);
        let from = replica.applied.next();
        self.runtime.spawn(TaskClass::Foreground, "fetch-to-apply", async move {
            let engine_shard = krita_engine::ShardId(shard);
            let fetched = match wanted {
                Wanted::Learn(keys) => store.prefetch(engine_shard, keys).await.map(|()| None),
                Wanted::Fetch(keys) => versions_of(&store, engine_shard, keys, from).await.map(Some),
            };
            core.with_replica(shard, |replica| {
                replica.apply_paused = false;
                match fetched {
                    Ok(versions) if replica.applied.next() == from && replica.prefetches > 0 => {
                        replica.fetched_versions = versions;
                    }
                    // A snapshot is replacing what the store holds, or has already: nothing is missing any more.
                    Err(error) if !replica.hold_output && replica.applied.next() == from => {
                        if !core.on_index_error(replica, &error) {
                            replica.stop(format!("the index of shard {shard} cannot be read: {error}"));
                        }
                    }
                    Ok(_) | Err(_) => {}
                }
            });
        });
    }

    /// Reads entries for a follower that lags behind what is in memory.
    fn load_to_send(self: &Rc<Self>, replica: &Replica<R>, load: LogLoad) {
        let (core, store, shard) = (self.clone(), replica.store.clone(), replica.shard);
        self.runtime.spawn(TaskClass::Foreground, "load-to-send", async move {
            let entries = read_entries(&store, shard, load.from, load.through, load.bytes_max).await;
            core.with_replica(shard, |replica| {
                let now = raft_time(core.runtime.now());
                match entries {
                    Ok(entries) if !entries.is_empty() => replica.raft.log_loaded(now, load.to, entries),
                    // What nobody can be sent any more would not survive a restart here either.
                    Err(LoadError::Unreadable(reason)) => {
                        core.suspect_replica(replica, Suspicion::NeedsSnapshot, &reason);
                    }
                    Ok(_) | Err(_) => {
                        // The log keeps what it can, and may have let go of more since Raft was last told. Raft
                        // must know, or it would ask for the same in vain instead of sending a snapshot.
                        core.tell_first_index(replica);
                        replica.raft.log_load_failed(now, load.to);
                    }
                }
            });
        });
    }

    /// Tells Raft where the log on disk begins.
    pub(crate) fn tell_first_index(&self, replica: &mut Replica<R>) {
        let Some(first) = replica.store.first_index(replica.engine_shard()) else { return };
        let first = Index(first.0);
        // A snapshot may have replaced the shard a moment ago; its log begins later than Raft knows yet.
        if first <= replica.applied.next() {
            replica.raft.log_truncated_before(first);
        }
    }

    /// Runs `change` on a replica of this core, if it is here, and notes that it may have output.
    pub(crate) fn with_replica<T>(&self, shard: u32, change: impl FnOnce(&mut Replica<R>) -> T) -> Option<T> {
        let mut guard = self.serving.borrow_mut();
        let replica = guard.as_mut()?.replicas.get_mut(&shard)?;
        let result = change(replica);
        self.touch(replica);
        Some(result)
    }
}

/// The versions that keys have before the entry at `index`.
async fn versions_of<R: Runtime>(
    store: &Store<R>,
    shard: krita_engine::ShardId,
    keys: Vec<Bytes>,
    index: Index,
) -> Result<FetchedVersions, ReadError> {
    let slots = store.get_many(shard, &keys.iter().map(|key| &key[..]).collect::<Vec<_>>()).await?;
    let versions = slots.into_iter().map(|slot| slot.map(|slot| slot.version.0));
    Ok(FetchedVersions { index, versions: keys.into_iter().zip(versions).collect() })
}

/// Why entries could not be read.
enum LoadError {
    /// The device does not give back what was written.
    Unreadable(String),
    /// They are not of this version.
    Unknown(String),
    /// They are not there, or not for now.
    Gone,
}

async fn read_entries<R: Runtime>(
    store: &Store<R>,
    shard: u32,
    from: Index,
    through: Index,
    bytes_max: usize,
) -> Result<Vec<Entry<Payload>>, LoadError> {
    let engine_shard = krita_engine::ShardId(shard);
    let (from, through) = (krita_engine::Index(from.0), krita_engine::Index(through.0));
    let records =
        store.read_entries(engine_shard, from, through, bytes_max).await.map_err(|error| match error {
            ReadError::Corruption(_) | ReadError::Io { .. } => LoadError::Unreadable(error.to_string()),
            ReadError::UnknownShard(_)
            | ReadError::Compacted { .. }
            | ReadError::Stale
            | ReadError::Closed => LoadError::Gone,
        })?;
    records.into_iter().map(raft_entry).collect::<Result<_, _>>().map_err(LoadError::Unknown)
}

fn puts_something(entry: &Entry<Payload>) -> bool {
    entry.kind == EntryKind::Command && !command::regions_of(&entry.payload.0).is_empty()
}

fn raft_entry(record: krita_engine::EntryRecord) -> Result<Entry<Payload>, String> {
    let kind = wire::kind_of(u32::from(record.kind))
        .ok_or_else(|| format!("entry {} has kind {}, unknown to this version", record.index, record.kind))?;
    Ok(Entry {
        term: Term(record.term.0),
        index: Index(record.index.0),
        kind,
        payload: Payload(record.payload),
    })
}

fn engine_entry(entry: Entry<Payload>) -> krita_engine::EntryRecord {
    krita_engine::EntryRecord {
        index: krita_engine::Index(entry.index.0),
        term: krita_engine::Term(entry.term.0),
        kind: wire::kind_number(entry.kind),
        payload: entry.payload.0,
    }
}

/// Raft's hard state in the engine's terms.
pub(crate) fn engine_hard_state(state: krita_raft::HardState) -> krita_engine::HardState {
    krita_engine::HardState {
        term: krita_engine::Term(state.term.0),
        vote: state.vote.map(|vote| vote.0),
        commit: krita_engine::Index(state.commit.0),
    }
}
