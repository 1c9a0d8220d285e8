//! Scrubbing: a paced pass over all that a log holds, and what is damaged by what it hits.
//!
//! ```text
//!   runs, meta data ──────▶ a shard's state
//!   manifest ─────────────▶ written anew from memory
//!   segments: headers ────▶ written anew
//!             batches ──┬─▶ entries of replay: a checkpoint makes them unnecessary
//!                       ├─▶ values that the index leads to, each read once more: a peer has them
//!                       └─▶ dead bytes: nobody misses them
//! ```
//!
//! Everything is read in the background, slice by slice, with pauses that keep to the pace.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use krita_runtime::{File, Runtime, TaskClass};

use crate::batch::{self, BATCH_HEADER_BYTES, CheckedHeader};
use crate::checkpoint;
use crate::error::{Corruption, Damage, ReadError};
use crate::format::{BLOCK, length_u32, padded};
use crate::gate::detached;
use crate::health::index_damage;
use crate::inner::Inner;
use crate::log::Head;
use crate::manifest::ManifestChange;
use crate::record::RECORD_HEADER_BYTES;
use crate::salvage::write_header;
use crate::segment::{SEGMENT_BODY, SegmentFile, SegmentHeader};
use crate::store::Store;
use crate::types::{Extent, Index, SegmentId, ShardId, Slot};

/// Bytes that are read at once.
const SLICE_BYTES: usize = 256 << 10;
/// Keys that are looked at between two pauses.
const PAGE: usize = 256;
/// A pass ends early with this many damages: once they are mended the next finds the rest.
const DAMAGES_MAX: usize = 256;
/// Doubtful stretches of the log that are told apart; beyond this the rest of a segment counts as one.
const STRETCHES_MAX: usize = 1024;

/// Bytes of the log that are damaged, or may be.
struct Stretch {
    segment: SegmentId,
    from: u32,
    to: u32,
    /// The batches that are missing, if it is known that there are some.
    batches: Option<(u64, u64)>,
}

impl Stretch {
    fn hits(&self, extent: &Extent, before: u32) -> bool {
        let start = extent.offset.saturating_sub(before);
        self.segment == extent.segment && start < self.to && extent.offset + extent.length > self.from
    }
}

struct Pass<R: Runtime> {
    inner: Rc<Inner<R>>,
    bytes_per_second: u64,
    damages: Vec<Damage>,
    stretches: Vec<Stretch>,
}

impl<R: Runtime> Store<R> {
    /// Reads all that this log holds once, at most so fast: index, values, log, manifest. Says what is damaged and
    /// needs somebody's help, as [`Store::take_damages`] does too; what memory knows is mended on the way. With very
    /// many damages it ends early: scrub again once they are mended.
    pub async fn scrub(&self, bytes_per_second: u64) -> Vec<Damage> {
        let (bytes_per_second, inner) = (bytes_per_second.max(1), self.inner.clone());
        let mut pass = Pass { inner, bytes_per_second, damages: Vec::new(), stretches: Vec::new() };
        pass.states().await;
        pass.manifest().await;
        pass.segments().await;
        pass.entries().await;
        pass.values().await;
        for damage in &pass.damages {
            self.inner.report(damage.clone());
        }
        self.inner.statistics.borrow_mut().scrub_passes += 1;
        pass.damages
    }
}

impl<R: Runtime> Pass<R> {
    fn shards(&self) -> Vec<ShardId> {
        self.inner.shards.borrow().keys().copied().collect()
    }

    /// Whether to go on.
    fn goes_on(&self) -> bool {
        self.damages.len() < DAMAGES_MAX && !self.inner.closed.get()
    }

    async fn pause_for(&self, bytes: u64) {
        self.inner.statistics.borrow_mut().scrub_bytes += bytes;
        let nanoseconds = bytes.saturating_mul(1_000_000_000) / self.bytes_per_second;
        self.inner.runtime.sleep(Duration::from_nanos(nanoseconds)).await;
    }

    /// Every shard's runs and meta data.
    async fn states(&mut self) {
        for shard in self.shards() {
            let found = self.state(shard).await.err();
            if let Some(corruption) = found.as_ref().and_then(index_damage) {
                self.damages.push(Damage::State { shard, corruption });
            }
        }
    }

    async fn state(&self, shard: ShardId) -> Result<(), ReadError> {
        let inner = &self.inner;
        let (runs, file) = {
            let shards = inner.shards.borrow();
            let Some(state) = shards.get(&shard) else { return Ok(()) };
            state.check_whole()?;
            (state.index.runs().to_vec(), state.file.clone())
        };
        let directory = &inner.options.directory;
        let names = inner.runtime.list_directory(directory).await;
        for run in runs {
            run.verify(Some(self.bytes_per_second)).await?;
            inner.statistics.borrow_mut().scrub_bytes += run.record().length;
            let path = inner.run_identity(shard, run.record().number).path(directory);
            let is_named = names
                .as_ref()
                .map_or(true, |names| names.iter().any(|name| name.file_name() == path.file_name()));
            // A run that was merged away meanwhile may be gone.
            let is_current = inner
                .shards
                .borrow()
                .get(&shard)
                .is_some_and(|state| state.index.runs().iter().any(|present| Rc::ptr_eq(present, &run)));
            if !is_named && is_current {
                let what = "a run in use has no name any more".to_owned();
                return Err(Corruption { file: path, offset: 0, what, sequences: None }.into());
            }
        }
        if let Some(file) = file {
            let identity = inner.checkpoint_identity(shard, file.record.number);
            let task = inner.clone();
            let read = async move {
                checkpoint::read(&task.runtime, &task.options.directory, identity, file.record)
                    .await
                    .map(drop)
            };
            let read = detached(&inner.runtime, TaskClass::Background, "meta scrub", read).await;
            read.unwrap_or(Err(ReadError::Closed))?;
        }
        Ok(())
    }

    /// Memory knows what the manifest must say.
    async fn manifest(&self) {
        let inner = self.inner.clone();
        if inner.check_poison().is_err() {
            return;
        }
        let verify = async move {
            match inner.manifest.appender().await.verify(&inner.runtime).await {
                Ok(true) => {}
                Ok(false) => inner.statistics.borrow_mut().damages += 1,
                Err(error) => drop(inner.poison(format!("writing the manifest: {error}"))),
            }
        };
        detached(&self.inner.runtime, TaskClass::Background, "manifest scrub", verify).await;
    }

    /// Every batch of every segment.
    async fn segments(&mut self) {
        let inner = self.inner.clone();
        let lives: Vec<SegmentId> = inner.segments.borrow().used.keys().copied().collect();
        for missing in inner.manifest.lives().into_iter().filter(|life| !lives.contains(life)) {
            self.stretches.push(Stretch { segment: missing, from: 0, to: u32::MAX, batches: None });
        }
        for segment in lives {
            if !self.goes_on() {
                return;
            }
            let Some(file) = inner.segments.borrow().used.get(&segment).cloned() else { continue };
            let pin = inner.pins.pin([segment]);
            let end = {
                let Head { segment: head, offset, sequence, .. } = inner.log.borrow().head;
                (head == segment).then_some((offset, sequence))
            };
            let next = inner.segments.borrow().used.get(&SegmentId(segment.0 + 1)).cloned();
            let after = match (end, next) {
                (Some((_, sequence)), _) => Some(sequence),
                (None, Some(next)) => self.header(&next).await.map(|header| header.first_sequence),
                (None, None) => None,
            };
            let end = end.map_or(inner.segment_bytes(), |(offset, _)| offset);
            let reading = Reading { file, segment, buffer: BytesMut::new(), start: 0 };
            self.segment(reading, end, after).await;
            drop(pin);
        }
    }

    async fn header(&self, file: &SegmentFile<R>) -> Option<SegmentHeader> {
        let read = file.file.read_at(0, BLOCK as usize);
        let block =
            detached(&self.inner.runtime, TaskClass::Background, "segment scrub", read).await?.ok()?;
        SegmentHeader::decode(&block, self.inner.nonce()).filter(|header| header.file == file.number)
    }

    /// One segment up to `end`. `after`: the batch with which the next one begins.
    async fn segment(&mut self, mut reading: Reading<R>, end: u32, after: Option<u64>) {
        let header = self.header(&reading.file).await.filter(|header| header.segment == reading.segment);
        let mut expected = header.map(|header| header.first_sequence);
        let mut position = SEGMENT_BODY;
        while position < end {
            let found = self.batch_at(&mut reading, position).await;
            let found = found
                .filter(|(checked, _)| expected.is_none_or(|expected| checked.header.sequence == expected));
            if let Some((checked, is_whole)) = found {
                if header.is_none() && position == SEGMENT_BODY && is_whole {
                    self.restore_header(&reading, &checked).await;
                }
                let next = position + length_u32(padded(checked.header.length as usize));
                let sequence = checked.header.sequence;
                if !is_whole {
                    self.doubt(reading.segment, position, next, Some((sequence, sequence)));
                }
                (position, expected) = (next, Some(sequence + 1));
                continue;
            }
            if after.is_some() && expected == after {
                return;
            }
            let from = position;
            let mut later = None;
            while position + BLOCK < end && later.is_none() {
                position += BLOCK;
                later = self.batch_at(&mut reading, position).await.filter(|(checked, _)| {
                    expected.is_none_or(|expected| checked.header.sequence > expected)
                });
            }
            let first = expected.unwrap_or(0);
            let Some((checked, _)) = later else {
                let batches = after.filter(|after| *after > first).map(|after| (first, after - 1));
                self.doubt(reading.segment, from, end, batches);
                return;
            };
            self.doubt(
                reading.segment,
                from,
                position,
                Some((first, checked.header.sequence.saturating_sub(1))),
            );
            expected = Some(checked.header.sequence);
        }
    }

    /// The batch of this life at a place, and whether its body is whole.
    async fn batch_at(&self, reading: &mut Reading<R>, position: u32) -> Option<(CheckedHeader, bool)> {
        let nonce = self.inner.nonce();
        let head = self.read(reading, position, BATCH_HEADER_BYTES).await?;
        let checked = batch::decode_header(&head, nonce)?;
        let header = checked.header;
        let here = (header.log, header.segment, header.offset);
        let fits = u64::from(position) + u64::from(header.length) <= u64::from(self.inner.segment_bytes());
        if here != (self.inner.options.log, reading.segment, position) || !fits {
            return None;
        }
        let body = self.read(reading, position, header.length as usize).await;
        let is_whole =
            body.is_some_and(|body| batch::body_matches(&checked, &body[BATCH_HEADER_BYTES..], nonce));
        Some((checked, is_whole))
    }

    /// Bytes of a segment; none if they cannot be read. What is before them is forgotten.
    async fn read(&self, reading: &mut Reading<R>, position: u32, length: usize) -> Option<Bytes> {
        let position = position as usize;
        if position < reading.start || position > reading.start + reading.buffer.len() {
            reading.buffer.clear();
            reading.start = position;
        }
        let passed = position - reading.start;
        drop(reading.buffer.split_to(passed));
        reading.start = position;
        while reading.buffer.len() < length {
            let at = (reading.start + reading.buffer.len()) as u64;
            let file = reading.file.file.clone();
            let read = async move { file.read_at(at, SLICE_BYTES).await };
            let read = detached(&self.inner.runtime, TaskClass::Background, "segment scrub", read).await?;
            let bytes = read.ok().filter(|bytes| !bytes.is_empty())?;
            self.pause_for(bytes.len() as u64).await;
            reading.buffer.extend_from_slice(&bytes);
        }
        Some(Bytes::copy_from_slice(&reading.buffer[..length]))
    }

    fn doubt(&mut self, segment: SegmentId, from: u32, to: u32, batches: Option<(u64, u64)>) {
        if let Some((first, last)) = batches {
            tracing::error!(log = %self.inner.options.log, %segment, from, to, first, last, "damaged batches");
        }
        let is_full = self.stretches.len() >= STRETCHES_MAX;
        match self.stretches.last_mut() {
            Some(last) if is_full && last.segment == segment => last.to = to,
            Some(_) | None => self.stretches.push(Stretch { segment, from, to, batches }),
        }
    }

    /// Writes a header again that its first batch proves.
    async fn restore_header(&self, reading: &Reading<R>, first: &CheckedHeader) {
        let (log, file, segment) = (self.inner.options.log, reading.file.number, reading.segment);
        let (first_sequence, previous) = (first.header.sequence, first.header.previous);
        let header = SegmentHeader { log, file, segment, first_sequence, previous };
        tracing::error!(%log, %segment, file, "a damaged segment header is written again");
        self.inner.statistics.borrow_mut().damages += 1;
        let (task, file) = (self.inner.clone(), reading.file.clone());
        let write = async move {
            if let Err(error) = write_header(&file, &header, task.nonce()).await {
                tracing::warn!(%segment, %error, "it stays damaged");
            }
        };
        detached(&self.inner.runtime, TaskClass::Background, "segment mending", write).await;
    }

    /// What a start would miss.
    async fn entries(&mut self) {
        self.advance_past().await;
        for shard in self.shards() {
            let (doubtful, behind) = self.doubtful_entries(shard);
            let mut damaged: Option<(Index, Index)> = None;
            let mut found = None;
            for index in doubtful {
                if let Err(ReadError::Corruption(corruption)) =
                    crate::read::entries(&self.inner, shard, index, index, 1).await
                {
                    damaged = Some((damaged.map_or(index, |(first, _)| first), index));
                    found = found.or(Some(corruption));
                }
            }
            if let Some(corruption) = found.or(behind) {
                self.damages.push(Damage::Log { shard, entries: damaged, corruption });
            }
        }
    }

    /// Entries behind the checkpoint that lie in doubtful stretches; and whether replay passes over missing batches.
    fn doubtful_entries(&self, id: ShardId) -> (Vec<Index>, Option<Corruption>) {
        let shards = self.inner.shards.borrow();
        let (Some(state), Some(tail)) = (shards.get(&id), self.inner.manifest.tail(id)) else {
            return (Vec::new(), None);
        };
        let mut doubtful = Vec::new();
        let mut index = state.checkpoint.applied.next();
        while let Some(entry) = state.entry(index) {
            let mut extents = entry.payload.as_slice().iter();
            let header_bytes = RECORD_HEADER_BYTES as u32;
            if extents.any(|extent| self.stretches.iter().any(|stretch| stretch.hits(extent, header_bytes))) {
                doubtful.push(index);
            }
            index = index.next();
        }
        let passes = self.stretches.iter().find_map(|stretch| {
            let (first, last) = stretch.batches?;
            let needed = last >= tail.replay.sequence && last >= tail.settled.before;
            let what = || format!("batches {first} to {last} are damaged");
            let corruption = || self.inner.corruption(stretch.segment, stretch.from, what());
            needed.then(|| Corruption { sequences: Some((first, last)), ..corruption() })
        });
        (doubtful, passes)
    }

    /// Shards that need nothing of the damaged batches say so in the manifest.
    async fn advance_past(&self) {
        let Some(last) = self.stretches.iter().filter_map(|stretch| Some(stretch.batches?.1)).max() else {
            return;
        };
        let inner = self.inner.clone();
        let advance = async move {
            let changes = || {
                let shards = inner.shards.borrow();
                let able = shards.iter().filter_map(|(id, shard)| {
                    let (recorded, now) = (inner.manifest.tail(*id)?, inner.tail_now(*id, shard));
                    let gains =
                        recorded.replay.sequence <= last && now.replay.sequence > last && !shard.closing;
                    gains.then_some(ManifestChange::Advance(*id, now))
                });
                able.collect()
            };
            // A failure has poisoned the log.
            drop(inner.publish(changes, || {}).await);
        };
        detached(&self.inner.runtime, TaskClass::Background, "advance", advance).await;
    }

    /// Values in doubtful stretches.
    async fn values(&mut self) {
        if self.stretches.is_empty() {
            return;
        }
        for shard in self.shards() {
            // Damage of the index is told by then.
            let _ = self.values_of(shard).await;
        }
    }

    async fn values_of(&mut self, shard: ShardId) -> Result<(), ReadError> {
        let mut from = Vec::new();
        loop {
            let view = {
                let shards = self.inner.shards.borrow();
                let Some(state) = shards.get(&shard).filter(|state| state.damaged.is_none()) else {
                    return Ok(());
                };
                if !self.stretches.iter().any(|stretch| state.index.holds(stretch.segment)) {
                    return Ok(());
                }
                state.index.view()
            };
            let page = view.scan(&from, None, PAGE).await?;
            drop(view);
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = last.to_vec();
            from.push(0);
            for (key, slot) in page {
                if !self.goes_on() {
                    return Ok(());
                }
                let mut extents = slot.region.as_slice().iter();
                if extents.any(|extent| self.stretches.iter().any(|stretch| stretch.hits(extent, 0))) {
                    self.value(shard, key, slot).await?;
                }
            }
            self.inner.runtime.pause().await;
        }
    }

    async fn value(&mut self, shard: ShardId, key: Bytes, slot: Slot) -> Result<(), ReadError> {
        let length = slot.region.length();
        match crate::read::uncached(&self.inner, shard, &key, &slot).await {
            Err(ReadError::Corruption(corruption)) => {
                self.damages.push(Damage::Value { shard, key, slot, corruption });
            }
            Ok(_) | Err(ReadError::Stale) => {}
            Err(error) => return Err(error),
        }
        self.pause_for(length).await;
        Ok(())
    }
}

/// A segment being read.
struct Reading<R: Runtime> {
    file: SegmentFile<R>,
    segment: SegmentId,
    buffer: BytesMut,
    start: usize,
}
