//! Moving what is alive out of one segment.
//!
//! ```text
//!   read the segment ──▶ keys that were written there ──▶ look them up, sorted ──▶ slots that still point there
//!                        (some thousands at a time)                                          │
//!   newest layer points elsewhere ◀── compare-and-set ◀── packed records, durable ◀── copy, in the segment's order
//! ```
//!
//! Where the segment itself cannot tell all its keys (a payload whose other pieces lie elsewhere, damage), the indexes
//! that have slots there are walked instead. Nothing is believed of the segment but what it says about keys, so a
//! pass that ends well has moved everything alive: a key can lose its place in the segment meanwhile, and none can gain
//! one, since a segment is not chosen while an installation or an unfinished payload has something in it. A value that
//! fails its checksum is not moved: the segment stays, and the damage is told.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;
use krita_runtime::{Instant, Runtime};

use super::choose;
use super::scan::{Assembled, Assembly, SegmentScan, Step};
use crate::error::{Corruption, Damage, LogError, ReadError};
use crate::format::Reader;
use crate::index::{Generation, IndexView, Relocated};
use crate::inner::Inner;
use crate::packed::{self, Packer};
use crate::record::{RecordHeader, RecordKind};
use crate::run::{Entry, Use};
use crate::types::{Extent, Extents, SegmentId, ShardId, Slot, VALUE_CHECKSUM_BYTES, value_checksum};

/// Keys that are looked up together, and bytes of such keys: some 20 MB of memory for keys of 16 bytes. Each round may
/// read the whole index once.
const ROUND_KEYS: usize = 256 << 10;
const ROUND_BYTES: usize = 16 << 20;
/// Keys of one call to an index.
const LOOKUP_KEYS: usize = 256;
/// With fewer items than this for each key that is looked up, walking the runs is cheaper than reading blocks at
/// random.
const WALK_ITEMS_PER_KEY: u64 = 128;
/// Values this close together are read at once, up to so many bytes.
const GAP_BYTES_MAX: u32 = 32 << 10;
const READ_BYTES_MAX: u32 = 512 << 10;
/// Bytes of values that are written together, and the longest record with several: a batch that holds one should not
/// delay the writes beside it by much.
const SLICE_BYTES: u64 = 512 << 10;
const RECORD_BYTES_MAX: usize = 128 << 10;
/// Bytes of batches that are looked through between two pauses.
const PAUSE_BYTES: u64 = 64 << 10;

/// Why a pass did not end well.
#[derive(Debug)]
pub(super) enum Failure {
    /// The store is being closed.
    Closed,
    /// The log does not take the copies.
    Log(LogError),
    /// An index cannot be read.
    Index(ShardId, ReadError),
    /// A value could not be read for a reason that may pass.
    Value(ReadError),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

/// A value that still lies in the segment.
struct Alive {
    shard: ShardId,
    key: Bytes,
    slot: Slot,
    generation: Generation,
}

/// What a pass did.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) values: u64,
    pub(super) bytes: u64,
    /// What the moved values count as alive, and what their copies take in the log.
    pub(super) alive_bytes: u64,
    pub(super) packed_bytes: u64,
    /// Values that were not moved because they are damaged.
    pub(super) damages: Vec<Damage>,
}

/// One pass over one segment.
pub(super) struct Pass<R: Runtime> {
    inner: Rc<Inner<R>>,
    segment: SegmentId,
    /// The first batch of the next life, if that is known: a scan that ends before it has met damage.
    end_sequence: Option<u64>,
    /// Copies on their way, with what they are copies of.
    packers: Vec<(ShardId, Packer, Vec<Alive>)>,
    packed_bytes: u64,
    outcome: Outcome,
    /// What is alive in the whole log, as it was found before the pass.
    alive: u64,
    /// When the present slice began, and what it has read and written; and that since the last pause.
    slice_began: Instant,
    slice_bytes: u64,
    bytes_at_pause: u64,
}

/// Keys of one round, and what could not be attributed to keys.
#[derive(Default)]
struct Round {
    keys: BTreeMap<ShardId, Vec<Bytes>>,
    count: usize,
    bytes: usize,
}

impl Round {
    fn add(&mut self, shard: ShardId, key: &[u8]) {
        self.count += 1;
        self.bytes += key.len();
        // A copy: a slice would keep its whole window.
        self.keys.entry(shard).or_default().push(Bytes::copy_from_slice(key));
    }

    fn is_full(&self) -> bool {
        self.count >= ROUND_KEYS || self.bytes >= ROUND_BYTES
    }
}

impl<R: Runtime> Pass<R> {
    pub(super) fn new(
        inner: &Rc<Inner<R>>,
        segment: SegmentId,
        end_sequence: Option<u64>,
        alive: u64,
    ) -> Self {
        Self {
            inner: inner.clone(),
            segment,
            end_sequence,
            packers: Vec::new(),
            packed_bytes: 0,
            outcome: Outcome::default(),
            alive,
            slice_began: inner.runtime.now(),
            slice_bytes: 0,
            bytes_at_pause: 0,
        }
    }

    /// Moves everything alive, but for what is damaged. Not to be dropped in flight.
    pub(super) async fn run(mut self) -> Result<Outcome, Failure> {
        let _pin = self.inner.pins.pin([self.segment]);
        let holders = holders(&self.inner, self.segment);
        let mut walk: BTreeSet<ShardId> = BTreeSet::new();
        let mut tails: BTreeSet<ShardId> = BTreeSet::new();
        if !self.scan(&holders, &mut walk, &mut tails).await? {
            walk.clone_from(&holders);
        }
        for shard in tails.difference(&walk).copied().collect::<Vec<_>>() {
            let Some(view) = view(&self.inner, shard) else { continue };
            let keys = view.large_keys(self.segment).await;
            let keys = keys.map_err(|error| Failure::Index(shard, error))?;
            drop(view);
            self.round(BTreeMap::from([(shard, keys.into_iter().collect())])).await?;
        }
        for shard in walk {
            self.walk(shard).await?;
        }
        Ok(self.outcome)
    }

    /// Reads the segment and moves what the keys found there still have in it. False if not all of it could be read.
    async fn scan(
        &mut self,
        holders: &BTreeSet<ShardId>,
        walk: &mut BTreeSet<ShardId>,
        tails: &mut BTreeSet<ShardId>,
    ) -> Result<bool, Failure> {
        let Some(regions_of) = self.inner.options.regions_of else { return Ok(false) };
        let Some(mut scan) = SegmentScan::open(&self.inner, self.segment).await else { return Ok(false) };
        let mut assembly = Assembly::default();
        let mut round = Round::default();
        let ended_at = loop {
            let records = match scan.next().await {
                Step::End(sequence) => break sequence,
                Step::Records(records) => records,
            };
            for (header, payload) in records {
                self.slice_bytes += u64::from(header.length);
                if !holders.contains(&header.shard) {
                    continue;
                }
                match header.kind {
                    RecordKind::Truncate | RecordKind::HardState => {}
                    RecordKind::Relocated if header.piece_offset > 0 => {
                        tails.insert(header.shard);
                    }
                    RecordKind::Relocated => match packed::unpack(&payload, header.total) {
                        Some(items) => items.iter().for_each(|item| round.add(header.shard, &item.key)),
                        None => return Ok(false),
                    },
                    RecordKind::Entry => match assembly.add(&header, &payload) {
                        Assembled::More => {}
                        Assembled::Headless => {
                            walk.insert(header.shard);
                        }
                        Assembled::Whole(payload) => add_entry(&mut round, &header, &payload, regions_of),
                    },
                }
            }
            if round.is_full() {
                self.round(std::mem::take(&mut round).keys).await?;
            }
            self.rest(u64::from(READ_BYTES_MAX)).await?;
        };
        walk.extend(assembly.unfinished().map(|header| header.shard));
        self.round(round.keys).await?;
        Ok(self.end_sequence == Some(ended_at))
    }

    /// Looks keys up and moves what they still have in the segment.
    async fn round(&mut self, keys: BTreeMap<ShardId, Vec<Bytes>>) -> Result<(), Failure> {
        let mut alive = Vec::new();
        for (shard, mut keys) in keys {
            keys.sort_unstable();
            keys.dedup();
            let Some(view) = view(&self.inner, shard) else { continue };
            let slots = self.look_up(&view, keys).await.map_err(|error| Failure::Index(shard, error))?;
            let generation = view.generation();
            let here = slots.into_iter().filter(|(_, slot)| lies_in(slot, self.segment));
            alive.extend(here.map(|(key, slot)| Alive { shard, key, slot, generation }));
        }
        self.copy(alive).await
    }

    async fn look_up(&self, view: &IndexView<R>, keys: Vec<Bytes>) -> Result<Vec<(Bytes, Slot)>, ReadError> {
        let mut found = Vec::new();
        if view.run_items() / WALK_ITEMS_PER_KEY >= keys.len() as u64 {
            for keys in keys.chunks(LOOKUP_KEYS) {
                let slots = view.get_many(keys).await?;
                let slots = keys.iter().cloned().zip(slots);
                found.extend(slots.filter_map(|(key, slot)| Some((key, slot?))));
                self.inner.runtime.pause().await;
            }
            return Ok(found);
        }
        let Some(first) = keys.first() else { return Ok(found) };
        let mut cursor = view.cursor(Bound::Included(first), Use::Merge);
        let mut keys = keys.iter().peekable();
        while keys.peek().is_some() {
            let Some((key, entry)) = cursor.next().await? else { break };
            while keys.next_if(|wanted| **wanted < key).is_some() {}
            if keys.next_if(|wanted| **wanted == key).is_some()
                && let Entry::Put(slot) = entry
            {
                found.push((key, slot));
            }
        }
        Ok(found)
    }

    /// Walks a shard's whole index for slots that point into the segment.
    async fn walk(&mut self, shard: ShardId) -> Result<(), Failure> {
        let mut after: Option<Bytes> = None;
        loop {
            let mut alive = Vec::new();
            let from = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
            let Some(view) = view(&self.inner, shard) else { return Ok(()) };
            let generation = view.generation();
            let mut cursor = view.cursor(from, Use::Merge);
            let mut bytes = 0;
            let ended = loop {
                if alive.len() >= ROUND_KEYS || bytes >= ROUND_BYTES {
                    break false;
                }
                let next = cursor.next().await.map_err(|error| Failure::Index(shard, error))?;
                let Some((key, entry)) = next else { break true };
                after = Some(key.clone());
                match entry {
                    Entry::Put(slot) if lies_in(&slot, self.segment) => {
                        bytes += key.len();
                        alive.push(Alive { shard, key, slot, generation });
                    }
                    Entry::Put(_) | Entry::Tombstone(_) => {}
                }
            };
            drop((cursor, view));
            self.copy(alive).await?;
            if ended {
                return Ok(());
            }
        }
    }

    /// Copies values, and lets their keys point to the copies.
    async fn copy(&mut self, mut alive: Vec<Alive>) -> Result<(), Failure> {
        alive.sort_by_key(|alive| alive.slot.region.as_slice()[0].offset);
        let mut rest = alive.into_iter().peekable();
        while let Some(first) = rest.next() {
            let Extents::One(extent) = first.slot.region else {
                self.copy_alone(first).await?;
                continue;
            };
            let mut end = extent.offset + extent.length;
            let mut near = vec![(extent, first)];
            while let Some(next) = rest.peek() {
                let Extents::One(other) = next.slot.region else { break };
                let is_near = other.offset <= end.saturating_add(GAP_BYTES_MAX)
                    && other.offset + other.length - extent.offset <= READ_BYTES_MAX;
                if !is_near {
                    break;
                }
                end = end.max(other.offset + other.length);
                near.extend(rest.next().map(|next| (other, next)));
            }
            self.copy_near(extent.offset, end, near).await?;
        }
        self.write().await
    }

    /// Copies values that lie close together.
    async fn copy_near(&mut self, start: u32, end: u32, near: Vec<(Extent, Alive)>) -> Result<(), Failure> {
        self.slice_bytes += u64::from(end - start);
        let Ok(bytes) = self.inner.read_exact(self.segment, start, end - start).await else {
            // One of them may be at fault.
            for (_, alive) in near {
                self.copy_alone(alive).await?;
            }
            return Ok(());
        };
        for (extent, alive) in near {
            let at = (extent.offset - start) as usize;
            let region = bytes.slice(at..at + extent.length as usize);
            let value = region.get(VALUE_CHECKSUM_BYTES as usize..).unwrap_or_default();
            if Reader::new(&region).u32() == Some(value_checksum(&alive.key, value)) {
                self.pack(alive, &[&region]).await?;
            } else {
                // Read anew: only what the disk gives twice is damage.
                self.copy_alone(alive).await?;
            }
        }
        Ok(())
    }

    async fn copy_alone(&mut self, alive: Alive) -> Result<(), Failure> {
        self.slice_bytes += alive.slot.region.length();
        match self.inner.read_value(alive.shard, &alive.key, &alive.slot).await {
            Ok((sum, value)) => self.pack(alive, &[&sum.to_le_bytes(), &value]).await,
            Err(ReadError::Corruption(corruption)) => {
                self.damaged(alive, corruption);
                Ok(())
            }
            Err(ReadError::Io { what, .. }) => {
                let first = alive.slot.region.as_slice()[0];
                let corruption = self.inner.corruption(first.segment, first.offset, what);
                self.damaged(alive, corruption);
                Ok(())
            }
            Err(error) if self.is_current(&alive).await? => Err(Failure::Value(error)),
            // Replaced meanwhile, and another of its segments used again.
            Err(_) => Ok(()),
        }
    }

    /// Whether the key still has that slot.
    async fn is_current(&self, alive: &Alive) -> Result<bool, Failure> {
        let Some(view) = view(&self.inner, alive.shard) else { return Ok(false) };
        let slot = view.get(&alive.key).await.map_err(|error| Failure::Index(alive.shard, error))?;
        Ok(slot.as_ref() == Some(&alive.slot))
    }

    fn damaged(&mut self, alive: Alive, corruption: Corruption) {
        let Alive { shard, key, slot, .. } = alive;
        self.outcome.damages.push(Damage::Value { shard, key, slot, corruption });
    }

    /// Adds a value's region, given in parts, to the copies on their way.
    async fn pack(&mut self, alive: Alive, region: &[&[u8]]) -> Result<(), Failure> {
        let length = alive.slot.region.length();
        let bytes_max = RECORD_BYTES_MAX.min(self.inner.packed_bytes_max());
        let fits = |packer: &Packer| packer.fits(&alive.key, length, bytes_max);
        let mut open = self.packers.iter_mut().rev().filter(|(shard, _, _)| *shard == alive.shard);
        let position = match open.next() {
            Some((_, packer, list)) if fits(packer) => {
                packer.add(&alive.key, alive.slot.version, region);
                list.push(alive);
                None
            }
            Some(_) | None => Some(alive),
        };
        if let Some(alive) = position {
            let mut packer = Packer::default();
            packer.add(&alive.key, alive.slot.version, region);
            self.packers.push((alive.shard, packer, vec![alive]));
        }
        self.packed_bytes += length;
        if self.packed_bytes >= SLICE_BYTES { self.write().await } else { Ok(()) }
    }

    /// Makes the copies on their way durable, and lets the keys point to them.
    async fn write(&mut self) -> Result<(), Failure> {
        let packers = std::mem::take(&mut self.packers);
        self.slice_bytes += std::mem::take(&mut self.packed_bytes);
        let mut lists = Vec::new();
        let mut written = Vec::new();
        for (shard, packer, list) in packers {
            let Some(replica) = self.inner.shards.borrow().get(&shard).map(|state| state.replica) else {
                continue;
            };
            written.push(self.inner.relocate(shard, replica, packer));
            lists.push(list);
        }
        for (list, copies) in lists.into_iter().zip(join_all(written).await) {
            let copies = copies?;
            for (position, (alive, (_, to))) in list.iter().zip(&copies.slots).enumerate() {
                if self.point_to(alive, &to.region).await? {
                    let bytes = to.region.length();
                    self.outcome.values += 1;
                    self.outcome.bytes += bytes;
                    self.outcome.alive_bytes += bytes + alive.key.len() as u64;
                    self.outcome.packed_bytes += bytes + (alive.key.len() + packed::PACKED_ITEM_BYTES) as u64;
                }
                if position % LOOKUP_KEYS == LOOKUP_KEYS - 1 {
                    self.inner.runtime.pause().await;
                }
            }
        }
        self.rest(SLICE_BYTES).await
    }

    /// The compare-and-set. False if the key has changed meanwhile.
    async fn point_to(&self, alive: &Alive, to: &Extents) -> Result<bool, Failure> {
        let mut generation = alive.generation;
        loop {
            let relocated = self
                .inner
                .shards
                .borrow_mut()
                .get_mut(&alive.shard)
                .map(|state| state.index.relocate(&alive.key, &alive.slot, to.clone(), generation));
            match relocated {
                Some(Relocated::Done) => {
                    let (from, to) = (alive.slot.region.as_slice()[0], to.as_slice()[0]);
                    self.inner.cache.borrow_mut().moved(from, to);
                    return Ok(true);
                }
                Some(Relocated::Superseded) | None => return Ok(false),
                Some(Relocated::Ask) => {}
            }
            let Some(view) = view(&self.inner, alive.shard) else { return Ok(false) };
            let slot = view.get(&alive.key).await.map_err(|error| Failure::Index(alive.shard, error))?;
            if slot.as_ref() != Some(&alive.slot) {
                return Ok(false);
            }
            generation = view.generation();
        }
    }

    /// Rests once a slice of so many bytes is done.
    async fn rest(&mut self, slice: u64) -> Result<(), Failure> {
        if self.inner.closed.get() {
            return Err(Failure::Closed);
        }
        if self.slice_bytes < slice {
            if self.slice_bytes - self.bytes_at_pause >= PAUSE_BYTES {
                self.bytes_at_pause = self.slice_bytes;
                self.inner.runtime.pause().await;
            }
            return Ok(());
        }
        let took = self.inner.runtime.now().since(self.slice_began);
        let rate = self.inner.options.compaction_bytes_per_second;
        let sizes = super::sizes(&self.inner, self.alive);
        self.inner.compaction.borrow_mut().freeing = Some(sizes);
        self.inner.runtime.sleep(choose::pause(took, self.slice_bytes, sizes.urgency(), rate)).await;
        (self.slice_bytes, self.bytes_at_pause) = (0, 0);
        self.slice_began = self.inner.runtime.now();
        Ok(())
    }
}

fn add_entry(round: &mut Round, header: &RecordHeader, payload: &Bytes, regions_of: crate::types::RegionsOf) {
    for region in regions_of(header.entry_kind, payload) {
        let start = region.key_offset as usize;
        let key = payload.get(start..start + region.key_length as usize);
        key.into_iter().for_each(|key| round.add(header.shard, key));
    }
}

fn view<R: Runtime>(inner: &Inner<R>, shard: ShardId) -> Option<IndexView<R>> {
    inner.shards.borrow().get(&shard).map(|state| state.index.view())
}

fn lies_in(slot: &Slot, segment: SegmentId) -> bool {
    slot.region.as_slice().iter().any(|extent| extent.segment == segment)
}

/// The shards of which some layer has slots in a segment.
fn holders<R: Runtime>(inner: &Inner<R>, segment: SegmentId) -> BTreeSet<ShardId> {
    let shards = inner.shards.borrow();
    let holders = shards.iter().filter(|(_, shard)| shard.index.holds(segment));
    holders.map(|(id, _)| *id).collect()
}
