//! Runs: immutable sorted files of slots, the lower layers of a shard's index.
//!
//! A run is written once, front to back, flushed with its name, and only then published by the manifest, whose
//! record of it pins every byte. What a lookup needs beside one block of the file stays in memory: a filter that
//! says most of what is not there, and a compact index of the blocks. A point lookup reads at most one block.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::Runtime;

use crate::error::ReadError;
use crate::types::{Index, LogId, SegmentId, ShardId, Slot};

pub(crate) mod cursor;
pub(crate) mod writer;

pub(crate) use cursor::{RunCursor, Use};
pub(crate) use writer::RunWriter;

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
    filter_bytes_max: usize,
    filter_bytes: Cell<usize>,
}

impl RunCaches {
    /// `block_bytes` bounds the block cache, `filter_bytes` all filters together.
    pub(crate) fn new(_block_bytes: usize, filter_bytes: usize) -> Rc<Self> {
        Rc::new(Self { filter_bytes_max: filter_bytes, filter_bytes: Cell::new(0) })
    }

    /// Bytes of blocks in the cache.
    pub(crate) fn block_bytes(&self) -> usize {
        0
    }

    /// Bytes of filters in memory: at most the budget.
    pub(crate) fn filter_bytes(&self) -> usize {
        self.filter_bytes.get().min(self.filter_bytes_max)
    }
}

/// An open run. The file is removed when the last user lets go of a retired one.
pub(crate) struct Run<R: Runtime> {
    runtime: R,
    record: RunRecord,
    segments: BTreeMap<SegmentId, u64>,
    retired: Cell<bool>,
}

impl<R: Runtime> Run<R> {
    /// Reads everything but the data blocks, all checked. A filter for which `caches` has no room is not kept:
    /// the run then knows nothing to be absent without reading, and is right all the same.
    pub(crate) async fn open(
        _runtime: &R,
        _directory: &Path,
        _identity: RunIdentity,
        _record: RunRecord,
        _caches: &Rc<RunCaches>,
    ) -> Result<Rc<Self>, ReadError> {
        Err(ReadError::Closed)
    }

    /// What filter, block index and cached blocks know of a key. No I/O.
    pub(crate) fn get_now(&self, _key: &[u8]) -> Now {
        Now::Unknown
    }

    /// What this run has for a key: at most one read. The caller may go away.
    pub(crate) async fn get(self: &Rc<Self>, _key: &[u8]) -> Result<Option<Entry>, ReadError> {
        Err(ReadError::Closed)
    }

    /// Walks the run in key order from a bound.
    pub(crate) fn cursor(self: &Rc<Self>, _from: Bound<&[u8]>, _purpose: Use) -> RunCursor<R> {
        RunCursor::new(self)
    }

    /// Bytes of regions and keys that this run's slots have in each life, shadowed by newer layers or not.
    pub(crate) fn segments(&self) -> &BTreeMap<SegmentId, u64> {
        &self.segments
    }

    /// The keys and slots, in order, whose region has several extents of which one lies in `segment`. Reads a
    /// part of the file that only such keys make long.
    pub(crate) async fn large_keys(
        self: &Rc<Self>,
        _segment: SegmentId,
    ) -> Result<Vec<(Bytes, Slot)>, ReadError> {
        Err(ReadError::Closed)
    }

    /// Bytes of memory that this run takes, cached blocks aside.
    pub(crate) fn resident_bytes(&self) -> usize {
        0
    }

    /// How many of the items are tombstones.
    pub(crate) fn tombstones(&self) -> u64 {
        0
    }

    pub(crate) fn record(&self) -> &RunRecord {
        &self.record
    }

    /// Reads and checks the whole file against the record, in slices, in the background.
    pub(crate) async fn verify(self: &Rc<Self>) -> Result<(), ReadError> {
        self.runtime.pause().await;
        Err(ReadError::Closed)
    }

    /// A newer state is published without this run: the file goes when the last user of it does.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
    }
}
