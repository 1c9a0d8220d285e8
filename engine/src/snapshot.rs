//! Snapshots: reading one out of the last durable checkpoint, and installing one.

use std::cell::RefCell;
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;
use krita_runtime::{Runtime, TaskClass};

use crate::error::{LogError, ReadError};
use crate::gate::detached;
use crate::index::{IndexView, MergeCursor, ShardIndex};
use crate::inner::{Floor, Inner};
use crate::log::{Room, Work};
use crate::manifest::{ManifestChange, ReplayRecord, Settled, ShardRecord};
use crate::packed::{Packer, RelocatedValues};
use crate::publish::{NewRun, io_error, keep_on_error, write_meta};
use crate::run::{self, Entry, Run, RunIdentity, RunWriter, Use};
use crate::segment::Pin;
use crate::shard::{EntryPlace, Shard};
use crate::store::{close_shard, drain, reopen_on_error, retire_files};
use crate::types::{
    CheckpointMeta, EntryRecord, HardState, Index, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, Place, ReplicaId,
    ShardId, Slot, SnapshotItem, VALUE_CHECKSUM_BYTES, value_checksum,
};

/// Values that are read at once.
const READS_MAX: usize = 16;
/// An installation begins another run after so many keys: how many are to come is not known, and a run's filter is
/// made for a number of keys.
const RUN_ITEMS_MAX: u64 = 1 << 20;

/// A shard as of its last durable checkpoint, read item by item. While it lives, nothing that it needs is recycled,
/// and the entries behind the checkpoint stay readable as long as they are not too many.
pub struct SnapshotSource<R: Runtime> {
    inner: Rc<Inner<R>>,
    shard: ShardId,
    meta: CheckpointMeta,
    items_estimate: u64,
    /// The checkpoint's runs.
    view: IndexView<R>,
    /// The segments that their slots point into.
    _pin: Pin,
    /// The last key that was given.
    last: Option<Bytes>,
    state: Reading<R>,
    floor: u64,
}

enum Reading<R: Runtime> {
    /// Behind `last`.
    At(Box<Cursor<R>>),
    /// All was given.
    Ended,
    /// A read failed or was dropped.
    Lost,
}

struct Cursor<R: Runtime> {
    cursor: MergeCursor<R>,
    /// An item that did not fit any more.
    waiting: Option<(Bytes, Slot)>,
}

impl<R: Runtime> Cursor<R> {
    fn new(view: &IndexView<R>, after: Option<&Bytes>) -> Box<Self> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(&after[..]));
        Box::new(Self { cursor: view.cursor(from, Use::Merge), waiting: None })
    }
}

impl<R: Runtime> SnapshotSource<R> {
    pub(crate) fn open(inner: &Rc<Inner<R>>, shard: ShardId) -> Result<Self, ReadError> {
        let mut shards = inner.shards.borrow_mut();
        let state = shards.get_mut(&shard).ok_or(ReadError::UnknownShard(shard))?;
        state.check_whole()?;
        // Pins hold exactly what these runs need: an epoch, over the hours that sending may take, would hold back
        // every segment that dies meanwhile.
        let runs = state.index.runs().to_vec();
        let pin = inner.pins.pin(runs.iter().flat_map(|run| run.segments().keys().copied()));
        let index = ShardIndex::new(&inner.runtime, &Rc::default(), runs);
        let floor = inner.take_number();
        let segment = state.first_needed().map_or(inner.log.borrow().head.segment, |place| place.segment);
        inner.floors.borrow_mut().insert(floor, Floor { segment, snapshot_of: Some(shard) });
        state.hold(floor);
        let view = index.view();
        Ok(Self {
            inner: inner.clone(),
            shard,
            meta: state.checkpoint.clone(),
            items_estimate: index.items_estimate(),
            last: None,
            state: Reading::At(Cursor::new(&view, None)),
            view,
            _pin: pin,
            floor,
        })
    }

    /// What goes with the items: index, term, membership, sessions.
    pub fn meta(&self) -> &CheckpointMeta {
        &self.meta
    }

    /// About how many items there are in all: overwritten and deleted keys may count until runs are merged.
    pub fn items_estimate(&self) -> u64 {
        self.items_estimate
    }

    /// The next items in key order: at least one, and no more than about `bytes_max` bytes of keys and values. Empty
    /// at the end. After an error, or if the future was dropped, every further call is an error until
    /// [`SnapshotSource::resume`].
    pub async fn next(&mut self, bytes_max: usize) -> Result<Vec<SnapshotItem>, ReadError> {
        let cursor = match std::mem::replace(&mut self.state, Reading::Lost) {
            Reading::At(cursor) => cursor,
            Reading::Ended => {
                self.state = Reading::Ended;
                return Ok(Vec::new());
            }
            Reading::Lost => return Err(ReadError::Closed),
        };
        let (inner, shard) = (self.inner.clone(), self.shard);
        let read = async move { read_items(&inner, shard, cursor, bytes_max).await };
        let read = detached(&self.inner.runtime, TaskClass::Background, "snapshot read", read).await;
        let (cursor, items) = read.unwrap_or(Err(ReadError::Closed))?;
        self.state = cursor.map_or(Reading::Ended, Reading::At);
        if let Some(item) = items.last() {
            self.last = Some(item.key.clone());
        }
        Ok(items)
    }

    /// Goes on behind a key, whatever was given before: the receiver has everything up to it. None: from the start.
    pub fn resume(&mut self, after: Option<Bytes>) {
        self.state = Reading::At(Cursor::new(&self.view, after.as_ref()));
        self.last = after;
    }

    /// The last key that was given.
    pub fn last_key(&self) -> Option<&Bytes> {
        self.last.as_ref()
    }
}

impl<R: Runtime> Drop for SnapshotSource<R> {
    fn drop(&mut self) {
        self.inner.floors.borrow_mut().remove(&self.floor);
        if let Some(state) = self.inner.shards.borrow_mut().get_mut(&self.shard) {
            state.release(self.floor, self.inner.options.entries_kept);
        }
        self.inner.maintenance_wake.notify();
    }
}

type ReadItems<R> = (Option<Box<Cursor<R>>>, Vec<SnapshotItem>);

async fn read_items<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    mut cursor: Box<Cursor<R>>,
    bytes_max: usize,
) -> Result<ReadItems<R>, ReadError> {
    let (mut chosen, mut bytes) = (Vec::new(), 0);
    let mut ended = false;
    loop {
        let next = match cursor.waiting.take() {
            Some(item) => Some(item),
            None => match cursor.cursor.next().await? {
                Some((key, Entry::Put(slot))) => Some((key, slot)),
                Some((_, Entry::Tombstone(_))) => continue,
                None => None,
            },
        };
        let Some((key, slot)) = next else {
            ended = true;
            break;
        };
        bytes += key.len() as u64 + slot.value_length();
        if !chosen.is_empty() && bytes > bytes_max as u64 {
            cursor.waiting = Some((key, slot));
            break;
        }
        chosen.push((key, slot));
    }
    let mut items = Vec::with_capacity(chosen.len());
    for slice in chosen.chunks(READS_MAX) {
        let reads = slice.iter().map(|(key, slot)| inner.read_value(shard, key, slot));
        for ((key, slot), read) in slice.iter().zip(join_all(reads).await) {
            let (checksum, value) = read?;
            items.push(SnapshotItem { key: key.clone(), version: slot.version, checksum, value });
        }
        inner.runtime.pause().await;
    }
    Ok(((!ended).then_some(cursor), items))
}

/// A snapshot on its way in. Until [`Installer::finish`] returns the shard is as it was; dropping the installer
/// abandons it. Its memory does not grow with the snapshot: values go to the log, slots into runs.
pub struct Installer<R: Runtime> {
    inner: Rc<Inner<R>>,
    shard: ShardId,
    replica: ReplicaId,
    /// None while a call is under way, and for ever after one that failed or was dropped.
    staged: Option<Box<Staged<R>>>,
    /// Holds back the log from the first added entry on.
    floor: Option<u64>,
    entries: Rc<RefCell<Vec<(Index, EntryPlace)>>>,
}

/// What there is of an installation.
struct Staged<R: Runtime> {
    inner: Rc<Inner<R>>,
    shard: ShardId,
    last_key: Option<Bytes>,
    items_expected: u64,
    writing: Option<Writing<R>>,
    /// Runs that are whole, in key order.
    runs: Vec<NewRun<R>>,
    /// Keeps the segments that their slots point into.
    pin: Pin,
}

/// A run that is being written.
struct Writing<R: Runtime> {
    writer: RunWriter<R>,
    identity: RunIdentity,
    items: u64,
}

impl<R: Runtime> Drop for Staged<R> {
    fn drop(&mut self) {
        let Some(writing) = self.writing.take() else { return };
        let (inner, identity) = (self.inner.clone(), writing.identity);
        drop(writing);
        self.inner.spawn(TaskClass::Background, "unfinished run removal", async move {
            run::remove_failed(&inner.runtime, &inner.options.directory, &identity).await;
        });
    }
}

impl<R: Runtime> Staged<R> {
    fn check(&mut self, items: &[SnapshotItem]) -> Result<(), LogError> {
        for item in items {
            if self.last_key.as_ref().is_some_and(|last| *last >= item.key) {
                return Err(LogError::Refused("its keys are not in order".to_owned()));
            }
            if item.key.len() > KEY_BYTES_MAX || item.value.len() > PAYLOAD_BYTES_MAX {
                return Err(LogError::Refused("a key or value is too long".to_owned()));
            }
            if value_checksum(&item.key, &item.value) != item.checksum {
                return Err(LogError::Refused(format!("a value of {} is damaged", self.shard)));
            }
            // A copy: the key handed in may keep the whole frame alive that it came with.
            self.last_key = Some(Bytes::copy_from_slice(&item.key));
        }
        Ok(())
    }

    /// Writes items' values to the log, and their slots to a run.
    async fn add(&mut self, replica: ReplicaId, items: Vec<SnapshotItem>) -> Result<(), LogError> {
        self.check(&items)?;
        let inner = self.inner.clone();
        let mut packer = Packer::default();
        let mut written = Vec::new();
        for item in items {
            let region_bytes = u64::from(VALUE_CHECKSUM_BYTES) + item.value.len() as u64;
            if !packer.fits(&item.key, region_bytes, inner.packed_bytes_max()) {
                written.push(inner.relocate_in(
                    Room::Ordinary,
                    self.shard,
                    replica,
                    std::mem::take(&mut packer),
                ));
            }
            packer.add(&item.key, item.version, &[&item.checksum.to_le_bytes(), &item.value]);
        }
        if !packer.is_empty() {
            written.push(inner.relocate_in(Room::Ordinary, self.shard, replica, packer));
        }
        for relocated in join_all(written).await {
            self.add_slots(relocated?).await.map_err(|error| io_error("writing a run", &error))?;
        }
        Ok(())
    }

    async fn add_slots(&mut self, relocated: RelocatedValues) -> std::io::Result<()> {
        for (key, slot) in &relocated.slots {
            for extent in slot.region.as_slice() {
                self.pin.add(extent.segment);
            }
            if self.writing.as_ref().is_some_and(|writing| writing.items >= self.items_expected) {
                self.close_run().await?;
            }
            if self.writing.is_none() {
                let inner = &self.inner;
                let identity = inner.run_identity(self.shard, inner.take_number());
                let directory = &inner.options.directory;
                let writer =
                    RunWriter::create(&inner.runtime, directory, identity, self.items_expected).await?;
                self.writing = Some(Writing { writer, identity, items: 0 });
            }
            if let Some(writing) = &mut self.writing {
                writing.writer.add(key, &Entry::Put(slot.clone())).await?;
                writing.items += 1;
            }
        }
        Ok(())
    }

    /// Ends the run that is being written.
    async fn close_run(&mut self) -> std::io::Result<()> {
        let Some(Writing { writer, identity, .. }) = self.writing.take() else { return Ok(()) };
        let inner = self.inner.clone();
        let made = match writer.finish().await {
            Ok(record) => {
                inner.statistics.borrow_mut().run_bytes_written += record.length;
                let directory = &inner.options.directory;
                let opened = Run::open(&inner.runtime, directory, identity, record, &inner.run_caches).await;
                opened.map_err(|error| std::io::Error::other(error.to_string()))
            }
            Err(error) => Err(error),
        };
        if made.is_err() {
            run::remove_failed(&inner.runtime, &inner.options.directory, &identity).await;
        }
        self.runs.push(NewRun::new(Some(made?)));
        Ok(())
    }
}

impl<R: Runtime> Installer<R> {
    pub(crate) fn new(inner: Rc<Inner<R>>, shard: ShardId, replica: ReplicaId) -> Self {
        let staged = Staged {
            inner: inner.clone(),
            shard,
            last_key: None,
            items_expected: RUN_ITEMS_MAX,
            writing: None,
            runs: Vec::new(),
            pin: inner.staged.pin([]),
        };
        Self { inner, shard, replica, staged: Some(Box::new(staged)), floor: None, entries: Rc::default() }
    }

    /// About how many items are to come ([`SnapshotSource::items_estimate`]), if that is known: better than a guess.
    pub fn expect_items(&mut self, items: u64) {
        if let Some(staged) = &mut self.staged {
            staged.items_expected = items.clamp(1024, 16 * RUN_ITEMS_MAX);
        }
    }

    /// The last key that was added: an interrupted transfer goes on behind it. None also after an addition that
    /// failed or was dropped; the installation can only be abandoned then.
    pub fn last_key(&self) -> Option<&Bytes> {
        self.staged.as_ref().and_then(|staged| staged.last_key.as_ref())
    }

    /// Writes items, in ascending key order over all calls, to the log. Their checksums are checked first. After an
    /// error, or if the future was dropped, the installation can only be abandoned.
    pub async fn add(&mut self, items: Vec<SnapshotItem>) -> Result<(), LogError> {
        self.inner.check_poison()?;
        let mut staged = self.staged.take().ok_or_else(broken)?;
        let replica = self.replica;
        let add = async move { staged.add(replica, items).await.map(|()| staged) };
        let added = detached(&self.inner.runtime, TaskClass::Background, "snapshot items", add).await;
        let ended = || Err(LogError::Poisoned("the core has ended".to_owned()));
        self.staged = Some(added.unwrap_or_else(ended)?);
        Ok(())
    }

    async fn submit(&self, works: Vec<(ShardId, ReplicaId, Work)>) -> Result<(), LogError> {
        let done = self.inner.log.borrow_mut().submit(works, Room::Ordinary);
        self.inner.log_wake.notify();
        done.await.unwrap_or_else(|_| Err(LogError::Poisoned("the core has ended".to_owned())))
    }

    /// Adds entries behind the snapshot, in order from `meta.applied + 1`: for a shard that moves here from
    /// another log of this node and is not in this store yet.
    pub async fn entries(&mut self, entries: Vec<EntryRecord>) -> Result<(), LogError> {
        if self.inner.shards.borrow().contains_key(&self.shard) {
            return Err(LogError::Refused(format!("{} is here already", self.shard)));
        }
        if self.floor.is_none() {
            let floor = self.inner.take_number();
            let segment = self.inner.log.borrow().head.segment;
            self.inner.floors.borrow_mut().insert(floor, Floor { segment, snapshot_of: None });
            self.floor = Some(floor);
            // An abandoned installation may still be on its way to the disk.
            drain(&self.inner, self.shard, self.replica).await?;
        }
        let mut works = Vec::with_capacity(entries.len());
        for entry in entries {
            let entries = self.entries.clone();
            let done: Rc<dyn Fn(Index, EntryPlace)> =
                Rc::new(move |index, place| entries.borrow_mut().push((index, place)));
            works.push((self.shard, self.replica, Work::StagedEntry(entry, done)));
        }
        self.submit(works).await
    }

    /// Replaces the shard by what was added, atomically and durably: index, checkpoint, hard state, and an
    /// empty log behind (but for [`Installer::entries`]). A crash anywhere leaves the old or the new state.
    /// Writes to the shard are refused meanwhile. A snapshot that is not ahead of what is applied here, or
    /// comes with an older term, is refused.
    pub async fn finish(mut self, meta: CheckpointMeta, hard_state: HardState) -> Result<(), LogError> {
        let runtime = self.inner.runtime.clone();
        let staged = self.staged.take().ok_or_else(broken)?;
        let finish = async move { finish(&self, staged, meta, hard_state).await };
        detached(&runtime, TaskClass::Background, "snapshot installation", finish)
            .await
            .unwrap_or_else(|| Err(LogError::Poisoned("the core has ended".to_owned())))
    }
}

impl<R: Runtime> Drop for Installer<R> {
    fn drop(&mut self) {
        if let Some(floor) = self.floor {
            self.inner.floors.borrow_mut().remove(&floor);
        }
        self.inner.maintenance_wake.notify();
    }
}

fn broken() -> LogError {
    LogError::Refused("an earlier part of it could not be added".to_owned())
}

async fn finish<R: Runtime>(
    installer: &Installer<R>,
    mut staged: Box<Staged<R>>,
    meta: CheckpointMeta,
    hard_state: HardState,
) -> Result<(), LogError> {
    let (inner, shard) = (&installer.inner, installer.shard);
    staged.close_run().await.map_err(|error| io_error("writing a run", &error))?;
    let present = inner.shards.borrow().contains_key(&shard);
    let _pass = if present {
        close_shard(inner, shard).await?.1
    } else {
        let pass = inner.gate(shard).enter().await;
        drain(inner, shard, installer.replica).await?;
        pass
    };
    let result = replace(installer, staged, meta, hard_state).await;
    reopen_on_error(inner, shard, result)
}

fn check<R: Runtime>(
    installer: &Installer<R>,
    meta: &CheckpointMeta,
    hard_state: &HardState,
) -> Result<(), LogError> {
    let shards = installer.inner.shards.borrow();
    if let Some(state) = shards.get(&installer.shard)
        // A suspect's state may be damaged, and then gives way to an older one that is whole.
        && ((meta.applied <= state.applied && state.suspect.is_none())
            || hard_state.term < state.hard_state.term)
    {
        return Err(LogError::Refused(format!(
            "{} is at {} of {}, the snapshot at {} of {}",
            installer.shard, state.applied, state.hard_state.term, meta.applied, hard_state.term
        )));
    }
    let mut next = meta.applied.next();
    for (index, _) in installer.entries.borrow().iter() {
        if *index != next {
            return Err(LogError::Refused("its entries leave a gap".to_owned()));
        }
        next = next.next();
    }
    Ok(())
}

async fn replace<R: Runtime>(
    installer: &Installer<R>,
    mut staged: Box<Staged<R>>,
    meta: CheckpointMeta,
    hard_state: HardState,
) -> Result<(), LogError> {
    let (inner, id) = (&installer.inner, installer.shard);
    check(installer, &meta, &hard_state)?;
    let new_meta = write_meta(inner, id, &meta).await?;
    let entries = installer.entries.take();
    let first_entry = entries.first().map(|(_, entry)| entry.place);
    let suspect = inner.shards.borrow().get(&id).and_then(|state| state.suspect.clone());
    let made = RefCell::new(Some((std::mem::take(&mut staged.runs), new_meta)));
    let changes = || {
        let made = made.borrow();
        let Some((runs, new_meta)) = made.as_ref() else { return Vec::new() };
        let next = inner.next_place();
        let tail = ReplayRecord {
            hard_state,
            hard_state_sequence: next.sequence - 1,
            replay: first_entry.into_iter().fold(next, Place::min),
            settled: Settled::default(),
        };
        vec![ManifestChange::Put(Box::new(ShardRecord {
            shard: id,
            replica: installer.replica,
            generation: meta.generation,
            applied: meta.applied,
            term: meta.term,
            meta: new_meta.place.clone(),
            runs: runs.iter().filter_map(NewRun::run).map(|run| *run.record()).collect(),
            tail,
            // Whether an installation makes the replica whole again is decided above: the flag stays until then.
            suspect: suspect.clone(),
            damaged: false,
        }))]
    };
    let then = || {
        let Some((runs, new_meta)) = made.take() else { return };
        let runs = runs.into_iter().filter_map(NewRun::keep).collect();
        let index = ShardIndex::new(&inner.runtime, &inner.epochs, runs);
        let mut state = Shard::new(installer.replica, hard_state, meta.clone(), new_meta.keep(), index);
        for (index, entry) in entries {
            state.append(index, entry);
        }
        state.last_queued = state.last();
        state.suspect = suspect.clone();
        state.note_lives(&inner.lives);
        let old = inner.shards.borrow_mut().insert(id, state);
        old.into_iter().for_each(retire_files);
    };
    let published = inner.publish(changes, then).await;
    keep_on_error(&published, made);
    published?;
    let waiting = inner.reclaiming.borrow().waiting_for(id);
    inner.settled(id, &waiting);
    inner.statistics.borrow_mut().checkpoints += 1;
    inner.maintenance_wake.notify();
    inner.merging_wake.notify();
    Ok(())
}
