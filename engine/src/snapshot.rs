//! Snapshots: reading one out of the last durable checkpoint, and installing one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;
use krita_runtime::{Runtime, TaskClass};

use crate::checkpoint::{Block, FileReader, Writer};
use crate::error::{LogError, ReadError};
use crate::gate::detached;
use crate::index_in_memory::KeyIndex;
use crate::inner::Inner;
use crate::log::Work;
use crate::manifest::{CheckpointFileRecord, CheckpointPlace, ManifestChange, ReplayRecord, ShardRecord};
use crate::packed::Packer;
use crate::publish::{SLICE_ITEMS, io_error, remove_failed, write_empty};
use crate::segment::Pin;
use crate::shard::{CheckpointFile, EntryPlace, Shard};
use crate::store::{close_shard, drain, reopen_on_error};
use crate::types::{
    CheckpointMeta, EntryRecord, HardState, Index, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, Place, ReplicaId,
    ShardId, Slot, SnapshotItem, VALUE_CHECKSUM_BYTES, value_checksum,
};

/// Values that are read at once.
const READS_MAX: usize = 16;

/// A shard as of its last durable checkpoint, read item by item. While it lives, nothing that it needs is
/// recycled.
pub struct SnapshotSource<R: Runtime> {
    inner: Rc<Inner<R>>,
    shard: ShardId,
    meta: CheckpointMeta,
    items_total: u64,
    /// None once the end was reached.
    cursor: Option<Cursor<R>>,
}

struct Cursor<R: Runtime> {
    reader: FileReader<R>,
    waiting: VecDeque<(Bytes, Slot)>,
    _file: Rc<CheckpointFile>,
}

impl<R: Runtime> SnapshotSource<R> {
    pub(crate) async fn open(inner: Rc<Inner<R>>, shard: ShardId) -> Result<Self, ReadError> {
        let (meta, file) = {
            let shards = inner.shards.borrow();
            let state = shards.get(&shard).ok_or(ReadError::UnknownShard(shard))?;
            (state.checkpoint.clone(), state.file.clone())
        };
        let Some(file) = file else {
            return Ok(Self { inner, shard, meta, items_total: 0, cursor: None });
        };
        let identity = inner.checkpoint_identity(shard, file.record.number);
        let (directory, record) = (inner.options.directory.clone(), file.record.clone());
        let items_total = record.items;
        let reader = FileReader::open(&inner.runtime, &directory, identity, record).await?;
        let cursor = Some(Cursor { reader, waiting: VecDeque::new(), _file: file });
        Ok(Self { inner, shard, meta, items_total, cursor })
    }

    /// What goes with the items: index, term, membership, sessions.
    pub fn meta(&self) -> &CheckpointMeta {
        &self.meta
    }

    /// How many items there are in all.
    pub fn items_total(&self) -> u64 {
        self.items_total
    }

    /// The next items in key order: at least one, and no more than about `bytes_max` bytes of keys and
    /// values. Empty at the end. After an error, or if the future is dropped, the source is spent: an empty
    /// answer before `items_total` items is not the end.
    pub async fn next(&mut self, bytes_max: usize) -> Result<Vec<SnapshotItem>, ReadError> {
        let Some(cursor) = self.cursor.take() else { return Ok(Vec::new()) };
        let (inner, shard) = (self.inner.clone(), self.shard);
        let read = async move { read_items(&inner, shard, cursor, bytes_max).await };
        let read = detached(&self.inner.runtime, TaskClass::Background, "snapshot read", read).await;
        let (cursor, items) = read.unwrap_or(Err(ReadError::Closed))?;
        self.cursor = cursor;
        Ok(items)
    }
}

type ReadItems<R> = (Option<Cursor<R>>, Vec<SnapshotItem>);

async fn read_items<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    mut cursor: Cursor<R>,
    bytes_max: usize,
) -> Result<ReadItems<R>, ReadError> {
    let (mut chosen, mut bytes) = (Vec::new(), 0);
    let mut ended = false;
    while !ended {
        match cursor.waiting.pop_front() {
            Some((key, slot)) => {
                bytes += key.len() as u64 + slot.value_length();
                if !chosen.is_empty() && bytes > bytes_max as u64 {
                    cursor.waiting.push_front((key, slot));
                    break;
                }
                chosen.push((key, slot));
            }
            None => match cursor.reader.next().await? {
                Block::Items(items) => cursor.waiting.extend(items),
                Block::Meta => {}
                Block::End(_) => ended = true,
            },
        }
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

/// A snapshot on its way in. Until [`Installer::finish`] returns the shard is as it was; dropping the
/// installer abandons it.
pub struct Installer<R: Runtime> {
    inner: Rc<Inner<R>>,
    shard: ShardId,
    replica: ReplicaId,
    last_key: Option<Bytes>,
    /// Holds back the log from the first added entry on.
    floor: Option<u64>,
    staged: Rc<RefCell<Staged>>,
}

/// What is durable of an installation.
struct Staged {
    slots: BTreeMap<Bytes, Slot>,
    entries: Vec<(Index, EntryPlace)>,
    pin: Pin,
}

impl<R: Runtime> Installer<R> {
    pub(crate) fn new(inner: Rc<Inner<R>>, shard: ShardId, replica: ReplicaId) -> Self {
        let pin = inner.pins.pin([]);
        let staged = Staged { slots: BTreeMap::new(), entries: Vec::new(), pin };
        let staged = Rc::new(RefCell::new(staged));
        Self { inner, shard, replica, last_key: None, floor: None, staged }
    }

    /// Writes items, in ascending key order over all calls, to the log. Their checksums are checked first.
    pub async fn add(&mut self, items: Vec<SnapshotItem>) -> Result<(), LogError> {
        self.inner.check_poison()?;
        let mut packer = Packer::default();
        let mut written = Vec::new();
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
            let region_bytes = u64::from(VALUE_CHECKSUM_BYTES) + item.value.len() as u64;
            if !packer.fits(&item.key, region_bytes, self.inner.packed_bytes_max()) {
                written.push(self.inner.relocate(self.shard, self.replica, std::mem::take(&mut packer)));
            }
            packer.add(&item.key, item.version, &[&item.checksum.to_le_bytes(), &item.value]);
        }
        if !packer.is_empty() {
            written.push(self.inner.relocate(self.shard, self.replica, packer));
        }
        for relocated in join_all(written).await {
            let relocated = relocated?;
            let mut staged = self.staged.borrow_mut();
            for (key, slot) in relocated.slots.iter().cloned() {
                for extent in slot.region.as_slice() {
                    staged.pin.add(extent.segment);
                }
                staged.slots.insert(key, slot);
            }
        }
        Ok(())
    }

    async fn submit(&self, works: Vec<(ShardId, ReplicaId, Work)>) -> Result<(), LogError> {
        let done = self.inner.log.borrow_mut().submit(works);
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
            self.inner.floors.borrow_mut().insert(floor, segment);
            self.floor = Some(floor);
            // An abandoned installation may still be on its way to the disk.
            drain(&self.inner, self.shard, self.replica).await?;
        }
        let mut works = Vec::with_capacity(entries.len());
        for entry in entries {
            let staged = self.staged.clone();
            let done: Rc<dyn Fn(Index, EntryPlace)> =
                Rc::new(move |index, place| staged.borrow_mut().entries.push((index, place)));
            works.push((self.shard, self.replica, Work::StagedEntry(entry, done)));
        }
        self.submit(works).await
    }

    /// Replaces the shard by what was added, atomically and durably: index, checkpoint, hard state, and an
    /// empty log behind (but for [`Installer::entries`]). A crash anywhere leaves the old or the new state.
    /// Writes to the shard are refused meanwhile. A snapshot that is not ahead of what is applied here, or
    /// comes with an older term, is refused.
    pub async fn finish(self, meta: CheckpointMeta, hard_state: HardState) -> Result<(), LogError> {
        let runtime = self.inner.runtime.clone();
        let finish = async move { finish(&self, meta, hard_state).await };
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

async fn finish<R: Runtime>(
    installer: &Installer<R>,
    meta: CheckpointMeta,
    hard_state: HardState,
) -> Result<(), LogError> {
    let (inner, shard) = (&installer.inner, installer.shard);
    let present = inner.shards.borrow().contains_key(&shard);
    let _pass = if present {
        close_shard(inner, shard).await?.1
    } else {
        let pass = inner.gate(shard).enter().await;
        drain(inner, shard, installer.replica).await?;
        pass
    };
    let result = replace(installer, meta, hard_state).await;
    reopen_on_error(inner, shard, result)
}

fn check<R: Runtime>(
    installer: &Installer<R>,
    meta: &CheckpointMeta,
    hard_state: &HardState,
) -> Result<(), LogError> {
    let shards = installer.inner.shards.borrow();
    if let Some(state) = shards.get(&installer.shard)
        && (meta.applied <= state.applied || hard_state.term < state.hard_state.term)
    {
        return Err(LogError::Refused(format!(
            "{} is at {} of {}, the snapshot at {} of {}",
            installer.shard, state.applied, state.hard_state.term, meta.applied, hard_state.term
        )));
    }
    let staged = installer.staged.borrow();
    let mut next = meta.applied.next();
    for (index, _) in &staged.entries {
        if *index != next {
            return Err(LogError::Refused("its entries leave a gap".to_owned()));
        }
        next = next.next();
    }
    Ok(())
}

async fn replace<R: Runtime>(
    installer: &Installer<R>,
    meta: CheckpointMeta,
    hard_state: HardState,
) -> Result<(), LogError> {
    let (inner, id) = (&installer.inner, installer.shard);
    check(installer, &meta, &hard_state)?;
    let (place, file) = if installer.staged.borrow().slots.is_empty() {
        write_empty(inner, id, &meta).await?
    } else {
        let record = write_staged(installer, &meta).await?;
        let file = inner.checkpoint_file(id, record.clone());
        (CheckpointPlace::File(record), Some(file))
    };
    let entries = std::mem::take(&mut installer.staged.borrow_mut().entries);
    let first_entry = entries.first().map(|(_, entry)| entry.place);
    let record_meta = meta.clone();
    let suspect = inner.shards.borrow().get(&id).and_then(|state| state.suspect.clone());
    inner
        .publish(|| {
            let next = inner.next_place();
            let tail = ReplayRecord {
                hard_state,
                hard_state_sequence: next.sequence - 1,
                replay: first_entry.into_iter().fold(next, Place::min),
            };
            vec![ManifestChange::Put(Box::new(ShardRecord {
                shard: id,
                replica: installer.replica,
                generation: record_meta.generation,
                applied: record_meta.applied,
                term: record_meta.term,
                place,
                tail,
                // Whether an installation makes it whole again is decided above: the flag stays until then.
                suspect: suspect.clone(),
            }))]
        })
        .await?;
    let mut index = KeyIndex::default();
    let slots = std::mem::take(&mut installer.staged.borrow_mut().slots);
    for (key, slot) in slots {
        index.put(key, slot);
    }
    let mut state = Shard::new(installer.replica, hard_state, meta, file, index);
    for (index, entry) in entries {
        state.append(index, entry);
    }
    state.last_queued = state.last();
    state.suspect = suspect;
    let old = inner.shards.borrow_mut().insert(id, state);
    if let Some(file) = old.and_then(|old| old.file) {
        file.retired.set(true);
    }
    inner.statistics.borrow_mut().checkpoints += 1;
    inner.maintenance_wake.notify();
    Ok(())
}

async fn write_staged<R: Runtime>(
    installer: &Installer<R>,
    meta: &CheckpointMeta,
) -> Result<CheckpointFileRecord, LogError> {
    let (inner, id) = (&installer.inner, installer.shard);
    let number = inner.take_number();
    let identity = inner.checkpoint_identity(id, number);
    let items: Vec<(Bytes, Slot)> = {
        let staged = installer.staged.borrow();
        staged.slots.iter().map(|(key, slot)| (key.clone(), slot.clone())).collect()
    };
    let extents = items.iter().flat_map(|(_, slot)| slot.region.as_slice());
    let segments: BTreeSet<_> = extents.map(|extent| extent.segment).collect();
    let write = async {
        let mut writer = Writer::create(&inner.runtime, &inner.options.directory, identity).await?;
        for slice in items.chunks(SLICE_ITEMS) {
            writer.add(slice).await?;
            inner.runtime.pause().await;
        }
        writer.finish(meta, segments.into_iter().collect()).await
    };
    match write.await {
        Ok(record) => Ok(record),
        Err(error) => {
            remove_failed(inner, id, number).await;
            Err(io_error("writing a checkpoint", &error))
        }
    }
}
