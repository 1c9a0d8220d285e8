//! The store: the handle through which a core uses one log.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::{Runtime, TaskClass};

use crate::compact;
use crate::error::{Damage, LogError, OpenError, ReadError};
use crate::gate::{Gate, Pass, detached};
use crate::index::{IndexView, ShardIndex};
use crate::inner::{self, Inner, Parts};
use crate::log::{self, Log, PIECE_BYTES_MIN, Room, Work};
use crate::manifest::{ManifestChange, MetaPlace, ShardRecord};
use crate::merging;
use crate::publish::write_meta;
use crate::read;
use crate::record::RECORD_HEADER_BYTES;
use crate::recovery;
use crate::run::{Entry, Now};
use crate::segment::SEGMENT_BODY;
use crate::shard::Shard;
use crate::snapshot::{Installer, SnapshotSource};
use crate::submission::{self, Batch};
use crate::types::{
    Change, CheckpointMeta, EntryRecord, HardState, Index, KEY_BYTES_MAX, Options, RecoveredShard, ReplicaId,
    ShardId, Slot, Statistics, Term, VALUE_CHECKSUM_BYTES, VersionNow,
};

/// Meta data up to this length stands in the manifest itself.
pub(crate) const INLINE_BYTES_MAX: usize = 16 << 10;

/// Opens the log in `options.directory`, or creates it if the directory has none, and brings it to the state
/// of the last acknowledged write. The shards come back in ascending order.
pub async fn open<R: Runtime>(
    runtime: R,
    options: Options,
) -> Result<(Store<R>, Vec<RecoveredShard>), OpenError> {
    check_options(&options)?;
    let task = (runtime.clone(), options.clone());
    let recovering = async move { recovery::recover(&task.0, &task.1).await };
    let recovered = detached(&runtime, TaskClass::Foreground, "recovery", recovering).await;
    let recovered = recovered
        .unwrap_or_else(|| Err(OpenError::Options("the core ended while the log was opened".to_owned())))?;
    let segment_bytes = recovered.manifest.identity.segment_bytes;
    if options.batch_bytes_max > segment_bytes - SEGMENT_BODY {
        let what = format!("batch_bytes_max does not fit this log's segments of {segment_bytes} bytes");
        return Err(OpenError::Options(what));
    }
    let mut shards = std::collections::BTreeMap::new();
    let mut files = Vec::new();
    for (id, (shard, record)) in recovered.shards {
        if let MetaPlace::File(file) = record.meta {
            files.push((id, file));
        }
        shards.insert(id, shard);
    }
    let told = shards.iter().map(|(id, shard)| shard.recovered(*id)).collect();
    let parts = Parts {
        shards,
        log: Log::new(recovered.head),
        manifest: recovered.manifest,
        segments: recovered.segments,
        epochs: recovered.epochs,
        run_caches: recovered.run_caches,
        next_number: recovered.next_number,
    };
    let directory = options.directory.clone();
    let inner = Inner::new(runtime, options, parts);
    for (id, record) in files {
        let file = inner.checkpoint_file(id, record);
        if let Some(shard) = inner.shards.borrow_mut().get_mut(&id) {
            shard.file = Some(file);
        }
    }
    for shard in inner.shards.borrow_mut().values_mut() {
        shard.note_lives(&inner.lives);
    }
    let failed = |error| OpenError::io(&directory, error);
    inner.manifest.remove_others(&inner.runtime).await.map_err(failed)?;
    for orphan in recovered.orphans {
        match inner.runtime.remove_file(&orphan).await {
            // An earlier handle of this process may still have been about to remove it.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
    }
    inner.runtime.sync_directory(&directory).await.map_err(failed)?;
    // From now on a damaged tail is known to have been durable.
    if !inner.log.borrow().head.sealed {
        log::seal(&inner).await;
        inner.check_poison().map_err(|error| failed(std::io::Error::other(error)))?;
    }
    inner.spawn(TaskClass::Foreground, "log writer", log::run(inner.clone()));
    inner.spawn(TaskClass::Background, "log maintenance", inner::maintain(inner.clone()));
    inner.spawn(TaskClass::Background, "run merging", merging::run(inner.clone()));
    inner.spawn(TaskClass::Background, "log compaction", compact::run(inner.clone()));
    Ok((Store { _handle: Rc::new(Handle { inner: inner.clone() }), inner }, told))
}

fn check_options(options: &Options) -> Result<(), OpenError> {
    let block = crate::format::BLOCK;
    let wrong = |what: &str| Err(OpenError::Options(what.to_owned()));
    if !options.segment_bytes.is_multiple_of(block) || !options.batch_bytes_max.is_multiple_of(block) {
        return wrong("segment_bytes and batch_bytes_max are multiples of 4096");
    }
    if (options.piece_bytes as usize) < PIECE_BYTES_MIN {
        return wrong("piece_bytes is at least 16384");
    }
    if u64::from(options.batch_bytes_max) < 2 * u64::from(options.piece_bytes) + u64::from(block) {
        return wrong("batch_bytes_max is at least twice piece_bytes and 4096");
    }
    if u64::from(options.segment_bytes) < u64::from(options.batch_bytes_max) + u64::from(SEGMENT_BODY) {
        return wrong("segment_bytes is at least batch_bytes_max and 4096");
    }
    Ok(())
}

/// Closes the store when the last handle of its users goes.
struct Handle<R: Runtime> {
    inner: Rc<Inner<R>>,
}

impl<R: Runtime> Drop for Handle<R> {
    fn drop(&mut self) {
        self.inner.closed.set(true);
        self.inner.log_wake.notify();
        self.inner.maintenance_wake.notify();
        self.inner.merging_wake.notify();
        self.inner.compaction.borrow().wake.notify();
    }
}

/// A shard to create: see [`Store::create_shards`].
#[derive(Clone, Debug)]
pub struct NewShard {
    /// Which shard.
    pub shard: ShardId,
    /// Which replica.
    pub replica: ReplicaId,
    /// Its first state: usually index 0 and the initial membership.
    pub meta: CheckpointMeta,
    /// Its first hard state.
    pub hard_state: HardState,
}

/// One open log with the shards in it. A cheap handle; belongs to one core. What is under way when the last
/// handle goes is finished first.
pub struct Store<R: Runtime> {
    pub(crate) inner: Rc<Inner<R>>,
    _handle: Rc<Handle<R>>,
}

impl<R: Runtime> Clone for Store<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), _handle: self._handle.clone() }
    }
}

impl<R: Runtime> Store<R> {
    /// Lets go of the store and waits until nothing of it touches the log's files any more: the log may then be
    /// opened again. All other handles, and what was made from the store, must have been dropped.
    pub async fn close(self) {
        let inner = self.inner.clone();
        drop(self);
        inner.ended().await;
    }

    /// Creates shards with empty indexes and empty logs, all by one flush if their meta data is small.
    /// Durable on return, all or none. A shard that is here already is an error.
    pub async fn create_shards(&self, shards: Vec<NewShard>) -> Result<(), LogError> {
        let inner = self.inner.clone();
        let create = async move { create_shards(&inner, shards).await };
        self.detached(TaskClass::Foreground, "shard creation", create).await
    }

    /// Creates one shard; see [`Store::create_shards`].
    pub async fn create_shard(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        meta: CheckpointMeta,
    ) -> Result<(), LogError> {
        self.create_shards(vec![NewShard { shard, replica, meta, hard_state: HardState::default() }]).await
    }

    /// Takes a shard out of this log. Durable on return: it does not come back. Writes of the shard that are
    /// in the queue are finished first; later ones are refused.
    pub async fn remove_shard(&self, shard: ShardId) -> Result<(), LogError> {
        let inner = self.inner.clone();
        let remove = async move {
            let (_gate, _pass) = close_shard(&inner, shard).await?;
            let then = || {
                let removed = inner.shards.borrow_mut().remove(&shard);
                removed.into_iter().for_each(retire_files);
            };
            let published = inner.publish(|| vec![ManifestChange::Remove(shard)], then).await;
            reopen_on_error(&inner, shard, published)?;
            let waiting = inner.reclaiming.borrow().waiting_for(shard);
            inner.settled(shard, &waiting);
            inner.maintenance_wake.notify();
            Ok(())
        };
        self.detached(TaskClass::Foreground, "shard removal", remove).await
    }

    /// The shards in this log, ascending.
    pub fn shards(&self) -> Vec<ShardId> {
        self.inner.shards.borrow().keys().copied().collect()
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new()
    }

    /// Writes a batch; durable on return. Calls may overlap: they line up, share writes where they fit, and
    /// keep their order within each shard. The order is that of the first polls. The future may be dropped;
    /// the write then goes on unobserved.
    ///
    /// Panics if an entry would leave a gap or replace an applied entry.
    pub async fn write(&self, batch: Batch) -> Result<(), LogError> {
        let inner = &self.inner;
        inner.check_poison()?;
        let room = if batch.frees_space { Room::Reserve } else { Room::Ordinary };
        let works = line_up(inner, batch)?;
        let done = inner.log.borrow_mut().submit(works, room);
        inner.log_wake.notify();
        done.await.unwrap_or_else(|_| Err(LogError::Poisoned("the core has ended".to_owned())))
    }

    /// Durable entries `from..=through` in order, at least one and then as many as fit `bytes_max` bytes of
    /// payload. Empty if `from` is behind the last.
    pub async fn read_entries(
        &self,
        shard: ShardId,
        from: Index,
        through: Index,
        bytes_max: usize,
    ) -> Result<Vec<EntryRecord>, ReadError> {
        read::entries(&self.inner, shard, from, through, bytes_max).await
    }

    fn with<T>(&self, shard: ShardId, ask: impl FnOnce(&Shard<R>) -> T) -> Option<T> {
        self.inner.shards.borrow().get(&shard).map(ask)
    }

    /// The first entry that can be read; one more than [`Store::last_index`] if there is none.
    pub fn first_index(&self, shard: ShardId) -> Option<Index> {
        self.with(shard, Shard::first)
    }

    /// The last durable entry.
    pub fn last_index(&self, shard: ShardId) -> Option<Index> {
        self.with(shard, Shard::last)
    }

    /// The term of a durable entry from `first_index - 1` on.
    pub fn term_at(&self, shard: ShardId, index: Index) -> Option<Term> {
        self.with(shard, |shard| shard.term_at(index)).flatten()
    }

    /// The durable hard state.
    pub fn hard_state(&self, shard: ShardId) -> Option<HardState> {
        self.with(shard, |shard| shard.hard_state)
    }

    /// The last entry that was applied to the index.
    pub fn applied(&self, shard: ShardId) -> Option<Index> {
        self.with(shard, |shard| shard.applied)
    }

    /// The meta data of the last durable checkpoint.
    pub fn checkpoint_meta(&self, shard: ShardId) -> Option<CheckpointMeta> {
        self.with(shard, |shard| shard.checkpoint.clone())
    }

    /// Applies what entry `index` did to the keys. The entry is durable here and follows the last applied
    /// one. An entry that changes no key is applied with no changes. In memory until a checkpoint.
    ///
    /// Panics if the entry is not durable, not the next one, or shorter than a change says.
    pub fn apply(&self, shard: ShardId, index: Index, changes: Vec<Change>) {
        let mut shards = self.inner.shards.borrow_mut();
        let shard = shards.get_mut(&shard).expect("entries are applied to shards of this log");
        assert_eq!(index, shard.applied.next(), "entries are applied one by one, in order");
        let payload =
            shard.entry(index).expect("an entry is durable here before it is applied").payload.clone();
        shard.applied = index;
        for change in changes {
            match change {
                Change::Put { key, payload_offset, payload_length, value } => {
                    assert!(key.len() <= KEY_BYTES_MAX && payload_length >= VALUE_CHECKSUM_BYTES);
                    let region = payload.part(payload_offset, payload_length);
                    let region = region.expect("a value lies inside the entry that carried it");
                    if let Some(value) = value {
                        let place = region.as_slice()[0];
                        self.inner.cache.borrow_mut().insert(place, &key, &value);
                    }
                    shard.index.put(&key, Slot { version: index, region });
                }
                Change::Delete { key } => shard.index.delete(&key, index),
            }
        }
    }

    /// What the index knows of a key, as of the first poll. Completes at the first poll if memory knows.
    pub async fn get(&self, shard: ShardId, key: &[u8]) -> Result<Option<Slot>, ReadError> {
        let known = self.with(shard, |shard| known_slot(shard.get_now(key)));
        match known.ok_or(ReadError::UnknownShard(shard))? {
            Some(slot) => Ok(slot),
            None => self.noting(shard, self.view(shard)?.get(key).await),
        }
    }

    /// Keeps the damage that a look into the index has found for whoever mends it.
    fn noting<T>(&self, shard: ShardId, outcome: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(error) = &outcome {
            self.inner.report_index(shard, error);
        }
        outcome
    }

    /// What the index knows of each key, all as of the first poll.
    pub async fn get_many(&self, shard: ShardId, keys: &[&[u8]]) -> Result<Vec<Option<Slot>>, ReadError> {
        // Mostly memory knows them all, and then nothing needs to be held still.
        let known = self.with(shard, |shard| keys.iter().map(|key| known_slot(shard.get_now(key))).collect());
        match known.ok_or(ReadError::UnknownShard(shard))? {
            Some(slots) => Ok(slots),
            None => self.noting(shard, self.view(shard)?.get_many(keys).await),
        }
    }

    pub(crate) fn view(&self, shard: ShardId) -> Result<IndexView<R>, ReadError> {
        let shards = self.inner.shards.borrow();
        let state = shards.get(&shard).ok_or(ReadError::UnknownShard(shard))?;
        state.check_whole()?;
        Ok(state.index.view())
    }

    /// A key's version, if memory knows it: for applying, which does not wait.
    pub fn version_now(&self, shard: ShardId, key: &[u8]) -> VersionNow {
        match self.with(shard, |shard| known_slot(shard.get_now(key))) {
            Some(Some(slot)) => VersionNow::Known(slot.map(|slot| slot.version)),
            Some(None) => VersionNow::Unknown,
            None => VersionNow::Known(None),
        }
    }

    /// Makes [`Store::version_now`] know these keys. What it knows is bounded: the latest few thousand keys, or
    /// 4 MiB of them.
    pub async fn prefetch(&self, shard: ShardId, keys: Vec<Bytes>) -> Result<(), ReadError> {
        loop {
            let prefetched = self.noting(shard, self.view(shard)?.prefetch(keys.clone()).await)?;
            let mut shards = self.inner.shards.borrow_mut();
            let state = shards.get_mut(&shard).ok_or(ReadError::UnknownShard(shard))?;
            // A checkpoint came in between, which is rare: its run may know the keys.
            if state.index.remember(prefetched) {
                return Ok(());
            }
        }
    }

    /// The value behind a slot, from the cache or the disk; always checked. [`ReadError::Stale`]: the slot was
    /// replaced meanwhile, look it up again.
    pub async fn value(&self, shard: ShardId, key: &[u8], slot: &Slot) -> Result<Bytes, ReadError> {
        let read = read::value(&self.inner, shard, key, slot).await;
        let corruption = match &read {
            Err(ReadError::Corruption(corruption)) => corruption.clone(),
            Err(ReadError::Stale) => {
                let place = slot.region.as_slice()[0];
                let what = format!("{shard}: a key leads to {}, which is gone", place.segment);
                self.inner.corruption(place.segment, place.offset, what)
            }
            Ok(_) | Err(_) => return read,
        };
        // Who asks with an old slot is told that it is old; a place that the index still names is damage.
        if self.get(shard, key).await?.as_ref() == Some(slot) {
            let (key, slot) = (Bytes::copy_from_slice(key), slot.clone());
            self.inner.report(Damage::Value { shard, key, slot, corruption: corruption.clone() });
            return Err(corruption.into());
        }
        read
    }

    /// Up to `items_max` keys from `start` to `end` (exclusive; none: to the last), in order, as of the first
    /// poll.
    pub async fn scan(
        &self,
        shard: ShardId,
        start: &[u8],
        end: Option<&[u8]>,
        items_max: usize,
    ) -> Result<Vec<(Bytes, Slot)>, ReadError> {
        self.noting(shard, self.view(shard)?.scan(start, end, items_max).await)
    }

    /// About how many keys a shard has: overwritten ones may count several times until runs are merged.
    pub fn keys_estimate(&self, shard: ShardId) -> u64 {
        self.with(shard, |shard| shard.index.items_estimate()).unwrap_or(0)
    }

    /// Writes a checkpoint of the shard as it is at the first poll, when `meta.applied` must be the last
    /// applied entry; then frees the log before it. Durable on return. Writes and applies go on meanwhile.
    /// Refused while another checkpoint or an installation of the shard is under way.
    pub async fn checkpoint(&self, shard: ShardId, meta: CheckpointMeta) -> Result<(), LogError> {
        let started = crate::publish::start(&self.inner, shard, meta)?;
        let inner = self.inner.clone();
        let write = async move { crate::publish::run(&inner, started).await };
        self.detached(TaskClass::Background, "checkpoint", write).await
    }

    /// A shard that should be checkpointed now: the one with most log behind its checkpoint beyond the threshold;
    /// the one with the largest memtable if all together are too large; the one that holds the oldest segment when
    /// recovery would have to read too many; or one that keeps an evacuated segment from being used again.
    pub fn checkpoint_due(&self) -> Option<ShardId> {
        let inner = &self.inner;
        let head = inner.log.borrow().head.segment;
        let shards = inner.shards.borrow();
        let whole = || shards.iter().filter(|(_, shard)| shard.damaged.is_none());
        let able = || whole().filter(|(_, shard)| shard.applied > shard.checkpoint.applied);
        let largest = able().max_by_key(|(id, shard)| (shard.bytes_behind, std::cmp::Reverse(**id)));
        if let Some((id, shard)) = largest
            && shard.bytes_behind >= inner.options.checkpoint_after_bytes
        {
            return Some(*id);
        }
        let sizes = || whole().map(|(id, shard)| (shard.index.memtable_bytes(), std::cmp::Reverse(*id)));
        if sizes().map(|(bytes, _)| bytes).sum::<usize>() > inner.options.memtable_bytes {
            return sizes().max().map(|(_, id)| id.0);
        }
        let oldest = able().filter_map(|(id, shard)| Some((shard.first_needed()?.segment, *id))).min();
        // A log that is too large lets go of replay sooner.
        let is_over = inner.compaction.borrow().wants_checkpoint();
        let segments_max = if is_over { 1 } else { inner.options.replay_segments_max };
        let oldest = oldest.filter(|(segment, _)| head.0 - segment.0 >= segments_max);
        oldest.map(|(_, id)| id).or_else(|| inner.reclaiming.borrow().shard_due())
    }

    /// Opens the last durable checkpoint of a shard for sending.
    pub async fn snapshot_source(&self, shard: ShardId) -> Result<SnapshotSource<R>, ReadError> {
        SnapshotSource::open(&self.inner, shard)
    }

    /// Starts to install a snapshot, of a shard that is here or is not.
    pub async fn snapshot_installer(
        &self,
        shard: ShardId,
        replica: ReplicaId,
    ) -> Result<Installer<R>, LogError> {
        self.inner.check_poison()?;
        Ok(Installer::new(self.inner.clone(), shard, replica))
    }

    /// Why the log is poisoned, if it is.
    pub fn poisoned(&self) -> Option<String> {
        self.inner.poisoned()
    }

    /// Counters.
    pub fn statistics(&self) -> Statistics {
        let inner = &self.inner;
        let (segments, shards) = (inner.segments.borrow(), inner.shards.borrow());
        let runs = || shards.values().flat_map(|shard| shard.index.runs());
        Statistics {
            segments: (segments.used.len() + segments.spare.len()) as u64,
            segments_spare: segments.spare.len() as u64,
            segments_evacuated: inner.reclaiming.borrow().evacuated_count(),
            cache_bytes: inner.cache.borrow().bytes() as u64,
            queue_bytes: inner.log.borrow().queue_bytes() as u64,
            runs: runs().count() as u64,
            run_bytes: runs().map(|run| run.record().length).sum(),
            run_memory_bytes: runs().map(|run| run.resident_bytes() as u64).sum(),
            filter_bytes: inner.run_caches.filter_bytes() as u64,
            memtable_bytes: shards.values().map(|shard| shard.index.memtable_bytes() as u64).sum(),
            block_cache_bytes: inner.run_caches.block_bytes() as u64,
            block_cache_hits: inner.run_caches.hits(),
            block_cache_misses: inner.run_caches.misses(),
            ..*inner.statistics.borrow()
        }
    }

    pub(crate) async fn detached<F>(
        &self,
        class: TaskClass,
        name: &'static str,
        future: F,
    ) -> Result<(), LogError>
    where
        F: Future<Output = Result<(), LogError>> + 'static,
    {
        let ended = || Err(LogError::Poisoned("the core has ended".to_owned()));
        detached(&self.inner.runtime, class, name, future).await.unwrap_or_else(ended)
    }
}

/// What memory tells of a key's slot; `None`: the disk must be asked.
fn known_slot(now: Now) -> Option<Option<Slot>> {
    match now {
        Now::Found(Entry::Put(slot)) => Some(Some(slot)),
        Now::Found(Entry::Tombstone(_)) | Now::Absent => Some(None),
        Now::Unknown => None,
    }
}

/// Checks a batch against the shards and turns it into work, in order.
fn line_up<R: Runtime>(inner: &Inner<R>, batch: Batch) -> Result<Vec<(ShardId, ReplicaId, Work)>, LogError> {
    let mut shards = inner.shards.borrow_mut();
    for id in batch.shards.keys() {
        match shards.get(id) {
            None => return Err(LogError::UnknownShard(*id)),
            Some(shard) if shard.closing => {
                return Err(LogError::Refused(format!("{id} is being replaced or removed")));
            }
            Some(_) => {}
        }
    }
    let mut works = Vec::new();
    for (id, changes) in batch.shards {
        let shard = shards.get_mut(&id).expect("every shard was just looked up");
        for change in changes {
            let work = match change {
                submission::Change::HardState(state) => Work::HardState(state),
                submission::Change::TruncateAfter(index) => {
                    assert!(index >= shard.applied, "an applied entry is never truncated");
                    shard.last_queued = shard.last_queued.min(index);
                    Work::TruncateAfter(index)
                }
                submission::Change::Entry(entry) => {
                    assert!(entry.index > shard.applied, "an applied entry is never replaced");
                    assert!(entry.index <= shard.last_queued.next(), "the log has no gaps");
                    shard.last_queued = entry.index;
                    Work::Entry(entry)
                }
            };
            works.push((id, shard.replica, work));
        }
    }
    Ok(works)
}

/// Waits until all work of a shard that is in the queue is durable.
pub(crate) async fn drain<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    replica: ReplicaId,
) -> Result<(), LogError> {
    inner.check_poison()?;
    let done = inner.log.borrow_mut().submit(vec![(shard, replica, Work::Barrier)], Room::Reserve);
    inner.log_wake.notify();
    done.await.unwrap_or_else(|_| Err(LogError::Poisoned("the core has ended".to_owned())))
}

/// Keeps new writes off a shard and waits for the old ones.
pub(crate) async fn close_shard<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
) -> Result<(Rc<Gate>, Pass), LogError> {
    let gate = inner.gate(shard);
    let pass = gate.enter().await;
    let replica = match inner.shards.borrow_mut().get_mut(&shard) {
        Some(state) => {
            state.closing = true;
            state.replica
        }
        None => return Err(LogError::UnknownShard(shard)),
    };
    let drained = drain(inner, shard, replica).await;
    reopen_on_error(inner, shard, drained)?;
    Ok((gate, pass))
}

/// Lets a shard be written again when what closed it failed.
pub(crate) fn reopen_on_error<R: Runtime, T>(
    inner: &Inner<R>,
    shard: ShardId,
    result: Result<T, LogError>,
) -> Result<T, LogError> {
    if result.is_err()
        && let Some(shard) = inner.shards.borrow_mut().get_mut(&shard)
    {
        shard.closing = false;
    }
    result
}

async fn create_shards<R: Runtime>(inner: &Rc<Inner<R>>, shards: Vec<NewShard>) -> Result<(), LogError> {
    let mut passes = Vec::new();
    let mut metas = Vec::new();
    for new in &shards {
        passes.push(inner.gate(new.shard).enter().await);
        if inner.shards.borrow().contains_key(&new.shard) {
            return Err(LogError::Refused(format!("{} is here already", new.shard)));
        }
        // An abandoned installation may still be on its way to the disk.
        drain(inner, new.shard, new.replica).await?;
        metas.push(write_meta(inner, new.shard, &new.meta).await?);
    }
    let made = RefCell::new(Some(metas));
    let states = RefCell::new(Vec::new());
    let changes = || {
        let (mut changes, made) = (Vec::new(), made.borrow());
        for (new, meta) in shards.iter().zip(made.iter().flatten()) {
            let index = ShardIndex::new(&inner.runtime, &inner.epochs, Vec::new());
            let shard = Shard::new(new.replica, new.hard_state, new.meta.clone(), None, index);
            let record = ShardRecord {
                shard: new.shard,
                replica: new.replica,
                generation: new.meta.generation,
                applied: new.meta.applied,
                term: new.meta.term,
                meta: meta.place.clone(),
                runs: Vec::new(),
                tail: inner.tail_now(new.shard, &shard),
                suspect: None,
                damaged: false,
            };
            changes.push(ManifestChange::Put(Box::new(record)));
            states.borrow_mut().push((new.shard, shard));
        }
        changes
    };
    let then = || {
        for ((id, mut shard), meta) in states.take().into_iter().zip(made.take().into_iter().flatten()) {
            shard.file = meta.keep();
            inner.shards.borrow_mut().insert(id, shard);
        }
    };
    let published = inner.publish(changes, then).await;
    if published.is_err() {
        // The manifest may name them all the same: they stay, and the next opening decides.
        made.take().into_iter().flatten().for_each(|meta| drop(meta.keep()));
    }
    published?;
    drop(passes);
    Ok(())
}

/// The files of a shard that is gone, or replaced: they go when their last user does.
pub(crate) fn retire_files<R: Runtime>(shard: Shard<R>) {
    if let Some(file) = &shard.file {
        file.retired.set(true);
    }
    for run in shard.index.runs() {
        run.retire();
    }
}

// A record of the largest undivided payload, its batch's header and a piece of another fit one batch.
const _: () = assert!(crate::batch::BATCH_HEADER_BYTES + 2 * (RECORD_HEADER_BYTES + 8) <= 4096);
