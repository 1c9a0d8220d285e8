//! Runs: immutable sorted files of slots, the lower layers of a shard's index.
//!
//! A run is written once, front to back, flushed with its name, and only then published by the manifest, whose
//! record of it pins every byte. What a lookup needs beside one block of the file stays in memory: a filter that
//! says most of what is not there, and a compact index of the blocks. A point lookup reads at most one block.
//!
//! ```text
//!   │ data │ data │ … │ large │ segments │ filter │ index │ footer │
//!     │                 │       │                            └ what there is; pins the rest
//!     │                 │       └ bytes that the slots have in each life of the log
//!     │                 └ the items whose regions have several extents, once more
//!     └ items in key order, 4 KiB a block
//! ```
//!
//! Every block says whose it is and where it stands, and is checked whenever it is read from the disk. `root` in
//! the record is a fold over the checksums of all blocks; the footer holds the part of it that belongs to the data
//! blocks, so that opening a run proves the rest, and the salt by which each data block proves itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::{BLOCK_SIZE, Runtime, TaskClass};

use crate::cache::{BlockCache, BlockKey};
use crate::error::ReadError;
use crate::types::{Extents, Index, LogId, SegmentId, ShardId, Slot};

mod block;
mod blocks;
mod cursor;
mod envelope;
mod filter;
mod footer;
pub(crate) mod inspect;
mod source;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub(crate) use cursor::{RunCursor, Use};
#[cfg(test)]
pub(crate) use envelope::RUN_HEADER_BYTES;
pub(crate) use envelope::{BlockKind, RUN_MAGIC};
#[cfg(test)]
pub(crate) use footer::FOOTER_BYTES;
pub(crate) use writer::RunWriter;

use block::{BlockCursor, Varints};
use blocks::{Blocks, BlocksDecoder};
use envelope::{content_seed, fold};
use filter::Filter;
use footer::Footer;
use source::{Source, Walk};

/// How many blocks of an index are taken in without a pause.
const STEP_BLOCKS: usize = 1024;

/// Prefix of a run's file name: `run-<shard>-<number>`.
pub(crate) const RUN_PREFIX: &str = "run-";

/// What one layer of the index holds for a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// The key has this value.
    Put(Slot),
    /// The key was deleted by the entry with this index.
    Tombstone(Index),
}

impl Entry {
    /// The index of the log entry that made it so.
    pub(crate) fn version(&self) -> Index {
        match self {
            Self::Put(slot) => slot.version,
            Self::Tombstone(version) => *version,
        }
    }
}

/// Who a file belongs to; every block names it. A number is never given twice within a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RunIdentity {
    pub(crate) log: LogId,
    pub(crate) shard: ShardId,
    pub(crate) number: u64,
    /// The log's seed for checksums and filters.
    pub(crate) nonce: u64,
}

impl RunIdentity {
    pub(crate) fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{RUN_PREFIX}{}-{}", self.shard.0, self.number))
    }
}

/// The shard and number in a run's name.
pub(crate) fn parse_name(path: &Path) -> Option<(ShardId, u64)> {
    let (shard, number) = path.file_name()?.to_str()?.strip_prefix(RUN_PREFIX)?.split_once('-')?;
    Some((ShardId(shard.parse().ok()?), number.parse().ok()?))
}

/// What the manifest keeps of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RunRecord {
    /// The number in the file's name.
    pub(crate) number: u64,
    /// The file's length in bytes.
    pub(crate) length: u64,
    /// A fold over the checksums of all blocks: pins the content.
    pub(crate) root: u64,
    /// Keys, tombstones included.
    pub(crate) items: u64,
}

/// What memory alone knows of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Now {
    Found(Entry),
    Absent,
    /// A block must be read to know.
    Unknown,
}

/// What the runs of one log share in memory: the block cache, and the budget of the filters.
pub(crate) struct RunCaches {
    blocks: RefCell<BlockCache>,
    hits: Cell<u64>,
    misses: Cell<u64>,
    filter_bytes_max: usize,
    filter_bytes: Cell<usize>,
    /// Runs opened so far: what tells their blocks apart in the cache.
    opened: Cell<u32>,
}

impl RunCaches {
    /// `block_bytes` bounds the block cache, `filter_bytes` all filters together.
    pub(crate) fn new(block_bytes: usize, filter_bytes: usize) -> Rc<Self> {
        Rc::new(Self {
            blocks: RefCell::new(BlockCache::new(block_bytes)),
            hits: Cell::new(0),
            misses: Cell::new(0),
            filter_bytes_max: filter_bytes,
            filter_bytes: Cell::new(0),
            opened: Cell::new(0),
        })
    }

    /// Bytes of blocks in the cache.
    pub(crate) fn block_bytes(&self) -> usize {
        self.blocks.borrow().bytes()
    }

    /// Bytes of filters in memory: at most the budget.
    pub(crate) fn filter_bytes(&self) -> usize {
        self.filter_bytes.get()
    }

    /// Blocks that lookups and scans found in the cache since it was made.
    pub(crate) fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// Blocks that lookups and scans did not find there. Those that [`Run::get_now`] passes on count once, where
    /// they are read.
    pub(crate) fn misses(&self) -> u64 {
        self.misses.get()
    }

    fn cached(&self, key: BlockKey) -> Option<Bytes> {
        let block = self.blocks.borrow().get(key)?;
        self.hits.set(self.hits.get() + 1);
        Some(block)
    }

    fn keep(&self, key: BlockKey, block: Bytes) {
        self.misses.set(self.misses.get() + 1);
        self.blocks.borrow_mut().insert(key, block);
    }

    fn lease(self: &Rc<Self>, bytes: usize) -> Option<FilterLease> {
        let sum = self.filter_bytes.get().checked_add(bytes)?;
        (sum <= self.filter_bytes_max).then(|| {
            self.filter_bytes.set(sum);
            FilterLease { caches: self.clone(), bytes }
        })
    }
}

/// A filter's share of the budget, given back when it goes.
struct FilterLease {
    caches: Rc<RunCaches>,
    bytes: usize,
}

impl Drop for FilterLease {
    fn drop(&mut self) {
        self.caches.filter_bytes.set(self.caches.filter_bytes.get() - self.bytes);
    }
}

/// An open run. The file is removed when the last user lets go of a retired one.
pub(crate) struct Run<R: Runtime> {
    source: Source<R>,
    record: RunRecord,
    footer: Footer,
    seed: u64,
    blocks: Blocks,
    filter: Option<(Filter, FilterLease)>,
    segments: BTreeMap<SegmentId, u64>,
    caches: Rc<RunCaches>,
    opened: u32,
    retired: Cell<bool>,
}

impl<R: Runtime> Run<R> {
    /// Reads everything but the data blocks, all checked. A filter for which `caches` has no room is not kept:
    /// the run then knows nothing to be absent without reading, and is right all the same.
    pub(crate) async fn open(
        runtime: &R,
        directory: &Path,
        identity: RunIdentity,
        record: RunRecord,
        caches: &Rc<RunCaches>,
    ) -> Result<Rc<Self>, ReadError> {
        let source = Source::open(runtime, directory, identity, &record).await?;
        let (footer, footer_sum) = read_footer(&source, &record).await?;
        let seed = content_seed(identity.nonce, footer.salt);
        let lease = usize::try_from(footer.filter_bytes).ok().and_then(|bytes| caches.lease(bytes));
        let mut parts = Parts { root: footer.data_root, ..Parts::default() };
        let mut filter = lease.map(|lease| (Filter::empty(identity.nonce, lease.bytes), lease));
        let span = Walk {
            class: TaskClass::Background,
            start: footer.large_start(),
            end: footer.index_end(),
            seed,
            bytes_per_second: None,
        };
        let walk = source.walk(span, |position, block| {
            parts.root = fold(parts.root, block.sum);
            if block.content.kind != footer.kind_at(position) {
                return Err("a block of another kind than stands here");
            }
            match (block.content.kind, &mut filter) {
                (BlockKind::Segments, _) => parts.segments.extend_from_slice(block.content.payload),
                (BlockKind::Index, _) => parts.index.extend_from_slice(block.content.payload),
                (BlockKind::Filter, Some((filter, _))) => {
                    filter.decode(block.content.payload).ok_or("a part of no filter")?;
                }
                (BlockKind::Filter | BlockKind::Large | BlockKind::Data | BlockKind::Footer, _) => {}
            }
            Ok(())
        });
        walk.await?;
        if fold(parts.root, footer_sum) != record.root {
            return Err(source.damaged(footer.index_end(), "not the run that the manifest names"));
        }
        let malformed = |what| source.damaged(footer.large_end(), what);
        let segments = decode_segments(&parts.segments).ok_or_else(|| malformed("no table of segments"))?;
        let mut decoder = BlocksDecoder::new(parts.index).ok_or_else(|| malformed("no block index"))?;
        while decoder.step(STEP_BLOCKS).ok_or_else(|| malformed("a malformed block index"))? {
            runtime.pause().await;
        }
        let blocks =
            decoder.finish(footer.data_bytes).ok_or_else(|| malformed("an unfitting block index"))?;
        let opened = caches.opened.get();
        caches.opened.set(opened.wrapping_add(1));
        let (caches, retired) = (caches.clone(), Cell::new(false));
        Ok(Rc::new(Self { source, record, footer, seed, blocks, filter, segments, caches, opened, retired }))
    }

    /// What filter, block index and cached blocks know of a key. No I/O.
    pub(crate) fn get_now(&self, key: &[u8]) -> Now {
        let Some(block) = self.locate(key) else { return Now::Absent };
        let Some(bytes) = self.caches.cached(self.block_key(block)) else { return Now::Unknown };
        match block::search(&bytes, key) {
            Ok(Some(entry)) => Now::Found(entry),
            Ok(None) => Now::Absent,
            // Whoever reads on is told what is wrong.
            Err(block::Malformed) => Now::Unknown,
        }
    }

    /// What this run has for a key: at most one read, none for a block in the cache. The caller may go away.
    pub(crate) async fn get(self: &Rc<Self>, key: &[u8]) -> Result<Option<Entry>, ReadError> {
        let Some(block) = self.locate(key) else { return Ok(None) };
        let bytes = self.block(block).await?;
        block::search(&bytes, key).map_err(|block::Malformed| self.malformed(block))
    }

    /// The block that a key would be in, unless memory knows that the run does not have it.
    fn locate(&self, key: &[u8]) -> Option<u32> {
        let passes = self.filter.as_ref().is_none_or(|(filter, _)| filter.may_hold(key));
        if passes { self.blocks.find(key) } else { None }
    }

    fn block_key(&self, block: u32) -> BlockKey {
        BlockKey { run: self.opened, block }
    }

    /// A data block, whole and checked, from the cache or the disk; in the cache afterwards.
    async fn block(&self, block: u32) -> Result<Bytes, ReadError> {
        if let Some(bytes) = self.caches.cached(self.block_key(block)) {
            return Ok(bytes);
        }
        let (position, length) = self.place(block)?;
        let bytes = self.source.read(TaskClass::Foreground, position, length).await?;
        self.check_data(block, &bytes)?;
        self.caches.keep(self.block_key(block), bytes.clone());
        Ok(bytes)
    }

    /// Checks the bytes read for a data block.
    fn check_data(&self, block: u32, bytes: &[u8]) -> Result<(), ReadError> {
        let (position, length) = self.place(block)?;
        let checked = self.source.check(bytes, position, self.seed)?;
        if checked.content.kind == BlockKind::Data && checked.bytes.len() == length {
            Ok(())
        } else {
            Err(self.source.damaged(position, "not the data block that the index names"))
        }
    }

    fn place(&self, block: u32) -> Result<(u64, usize), ReadError> {
        // Blocks come from the index itself: that one is missing is not for the disk to decide.
        self.blocks.place(block).ok_or_else(|| self.malformed(block))
    }

    fn malformed(&self, block: u32) -> ReadError {
        self.source.damaged(self.blocks.start(block).unwrap_or_default(), "a block whose items do not parse")
    }

    /// Walks the run in key order from a bound.
    pub(crate) fn cursor(self: &Rc<Self>, from: Bound<&[u8]>, purpose: Use) -> RunCursor<R> {
        RunCursor::new(self, from, purpose)
    }

    /// Bytes of regions and keys that this run's slots have in each life, shadowed by newer layers or not. The key
    /// counts where the region begins.
    pub(crate) fn segments(&self) -> &BTreeMap<SegmentId, u64> {
        &self.segments
    }

    /// The keys and slots, in order, whose region has several extents of which one lies in `segment`. Reads a
    /// part of the file that only such keys make long.
    pub(crate) async fn large_keys(
        self: &Rc<Self>,
        segment: SegmentId,
    ) -> Result<Vec<(Bytes, Slot)>, ReadError> {
        let mut large = Vec::new();
        let span = Walk {
            class: TaskClass::Background,
            start: self.footer.large_start(),
            end: self.footer.large_end(),
            seed: self.seed,
            bytes_per_second: None,
        };
        let walk = self.source.walk(span, |_, block| {
            let mut cursor = BlockCursor::new(Bytes::copy_from_slice(block.bytes));
            while let Some(entry) = cursor.next().map_err(|block::Malformed| "malformed items")? {
                if let Entry::Put(slot) = entry
                    && slot.region.as_slice().iter().any(|extent| extent.segment == segment)
                {
                    large.push((Bytes::copy_from_slice(cursor.key()), slot));
                }
            }
            Ok(())
        });
        walk.await?;
        Ok(large)
    }

    /// Bytes of memory that this run takes, cached blocks aside.
    pub(crate) fn resident_bytes(&self) -> usize {
        let filter = self.filter.as_ref().map_or(0, |(filter, _)| filter.bytes());
        size_of::<Self>()
            + filter
            + self.blocks.bytes()
            + self.segments.len() * 2 * size_of::<(SegmentId, u64)>()
    }

    /// How many of the items are tombstones.
    pub(crate) fn tombstones(&self) -> u64 {
        self.footer.tombstones
    }

    pub(crate) fn record(&self) -> &RunRecord {
        &self.record
    }

    /// A newer state is published without this run: the file goes when the last user of it does.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
    }
}

impl<R: Runtime> Drop for Run<R> {
    fn drop(&mut self) {
        if !self.retired.get() {
            return;
        }
        let (runtime, path) = (self.source.runtime.clone(), self.source.path.clone());
        self.source.runtime.spawn(TaskClass::Background, "run removal", async move {
            // An orphan that stays is removed when the store is opened next.
            if let Err(error) = runtime.remove_file(&path).await {
                tracing::warn!(path = %path.display(), %error, "an old run stays for now");
            }
        });
    }
}

/// Removes what is left of a run that could not be written or published; what stays is an orphan.
pub(crate) async fn remove_failed<R: Runtime>(runtime: &R, directory: &Path, identity: &RunIdentity) {
    let path = identity.path(directory);
    match runtime.remove_file(&path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "an unfinished run stays for now");
        }
        Ok(()) | Err(_) => {}
    }
}

/// What opening gathers from the blocks behind the data.
#[derive(Default)]
struct Parts {
    root: u64,
    segments: Vec<u8>,
    index: Vec<u8>,
}

async fn read_footer<R: Runtime>(source: &Source<R>, record: &RunRecord) -> Result<(Footer, u64), ReadError> {
    let unit = BLOCK_SIZE as u64;
    let position = record.length.checked_sub(unit).filter(|position| position.is_multiple_of(unit));
    let position =
        position.ok_or_else(|| source.damaged(0, "no run has the length that the manifest says"))?;
    let bytes = source.read(TaskClass::Background, position, BLOCK_SIZE).await?;
    let block = source.check(&bytes, position, source.identity.nonce)?;
    let footer = Footer::decode(block.content.payload, record.length)
        .filter(|footer| block.content.kind == BlockKind::Footer && footer.items == record.items);
    let footer = footer.ok_or_else(|| source.damaged(position, "not the run that the manifest names"))?;
    Ok((footer, block.sum))
}

/// Counts an item's region and key among the bytes of each life.
fn count_segments(segments: &mut BTreeMap<SegmentId, u64>, key: &[u8], region: &Extents) {
    let mut key_bytes = key.len() as u64;
    for extent in region.as_slice() {
        *segments.entry(extent.segment).or_default() +=
            u64::from(extent.length) + std::mem::take(&mut key_bytes);
    }
}

fn decode_segments(bytes: &[u8]) -> Option<BTreeMap<SegmentId, u64>> {
    let mut reader = Varints(bytes);
    let count = reader.length()?;
    let mut segments = BTreeMap::new();
    let mut segment: u64 = 0;
    for _ in 0..count {
        segment = segment.checked_add(reader.number()?)?;
        segments.insert(SegmentId(segment), reader.number()?);
    }
    (reader.0.is_empty() && segments.len() == count).then_some(segments)
}
