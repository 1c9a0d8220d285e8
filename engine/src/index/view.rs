//! A shard's index as it was at one moment.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use krita_runtime::Runtime;

use super::memtable::{Memtable, MemtableView};
use super::merge::{MergeCursor, Source};
use super::{Generation, Now};
use crate::epochs::Epoch;
use crate::error::ReadError;
use crate::run::{Entry, Run, Use};
use crate::types::{SegmentId, Slot};

/// Lookups of one call that may read at once.
const READS_AT_ONCE: usize = 16;

/// What the runs held for some keys.
pub(crate) struct Prefetched {
    pub(super) generation: Generation,
    pub(super) items: Vec<(Bytes, Option<Entry>)>,
}

/// See the module. Whatever happens to the index, the view goes on seeing the same. Its futures may be dropped.
pub(crate) struct IndexView<R: Runtime> {
    runtime: R,
    active: MemtableView,
    frozen: Rc<[Rc<Memtable>]>,
    runs: Rc<[Rc<Run<R>>]>,
    generation: Generation,
    /// Keeps the segments that slots seen here point into.
    _epoch: Rc<Epoch>,
}

impl<R: Runtime> Clone for IndexView<R> {
    fn clone(&self) -> Self {
        Self {
            runtime: self.runtime.clone(),
            active: self.active.clone(),
            frozen: self.frozen.clone(),
            runs: self.runs.clone(),
            generation: self.generation,
            _epoch: self._epoch.clone(),
        }
    }
}

impl<R: Runtime> IndexView<R> {
    pub(super) fn new(
        runtime: &R,
        epoch: Epoch,
        active: &Rc<Memtable>,
        frozen: Rc<[Rc<Memtable>]>,
        runs: Rc<[Rc<Run<R>>]>,
        generation: Generation,
    ) -> Self {
        let active = MemtableView::new(active);
        Self { runtime: runtime.clone(), active, frozen, runs, generation, _epoch: Rc::new(epoch) }
    }

    /// The generation of the index when the view was taken.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Bytes of memory of the memtables that it sees.
    pub(crate) fn memtable_bytes(&self) -> usize {
        let frozen = self.frozen.iter().map(|memtable| memtable.bytes()).sum::<usize>();
        self.active.memtable().bytes() + frozen
    }

    /// How many items the runs have, hidden ones included.
    pub(crate) fn run_items(&self) -> u64 {
        self.runs.iter().map(|run| run.record().items).sum()
    }

    /// The keys of values with several extents of which one lies in `segment`; some may be out of date.
    pub(crate) async fn large_keys(&self, segment: SegmentId) -> Result<BTreeSet<Bytes>, ReadError> {
        let mut keys = BTreeSet::new();
        for memtable in [self.active.memtable()].into_iter().chain(self.frozen.iter()) {
            keys.extend(memtable.large_keys(segment));
        }
        for run in self.runs.iter() {
            keys.extend(run.large_keys(segment).await?.into_iter().map(|(key, _)| key));
        }
        Ok(keys)
    }

    fn in_memtables(&self, key: &[u8]) -> Option<Entry> {
        self.active.get(key).or_else(|| self.frozen.iter().find_map(|memtable| memtable.get(key)))
    }

    /// What the key maps to. Without I/O, and at the first poll, if memory knows.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<Option<Slot>, ReadError> {
        let entry = match self.in_memtables(key) {
            Some(entry) => Some(entry),
            None => in_runs(&self.runs, key).await?,
        };
        Ok(entry.and_then(slot_of))
    }

    /// What each of the keys maps to, in their order.
    pub(crate) async fn get_many<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slot>>, ReadError> {
        let lookups = keys.iter().map(|key| self.get(key.as_ref()));
        stream::iter(lookups).buffered(READS_AT_ONCE).try_collect().await
    }

    /// Up to `items_max` keys from `start` to `end` (exclusive; none: to the last), in order.
    pub(crate) async fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        items_max: usize,
    ) -> Result<Vec<(Bytes, Slot)>, ReadError> {
        let mut items = Vec::new();
        if end.is_some_and(|end| end <= start) {
            return Ok(items);
        }
        let mut cursor = self.cursor(Bound::Included(start), Use::Scan);
        while items.len() < items_max {
            let Some((key, entry)) = cursor.next().await? else { break };
            if end.is_some_and(|end| &key[..] >= end) {
                break;
            }
            items.extend(slot_of(entry).map(|slot| (key, slot)));
        }
        Ok(items)
    }

    /// Walks all keys from a bound on, tombstones included.
    pub(crate) fn cursor(&self, from: Bound<&[u8]>, purpose: Use) -> MergeCursor<R> {
        let mut sources = vec![Source::view(self.active.clone(), from)];
        sources.extend(self.frozen.iter().map(|memtable| Source::memtable(memtable, from)));
        sources.extend(self.runs.iter().map(|run| Source::run(run.cursor(from, purpose))));
        MergeCursor::new(&self.runtime, sources)
    }

    /// Fetches what the runs hold for the keys, for [`super::ShardIndex::remember`].
    pub(crate) async fn prefetch(&self, keys: Vec<Bytes>) -> Result<Prefetched, ReadError> {
        let lookups = keys.into_iter().map(|key| async {
            let entry = in_runs(&self.runs, &key).await?;
            Ok::<_, ReadError>((key, entry))
        });
        let items = stream::iter(lookups).buffered(READS_AT_ONCE).try_collect().await?;
        Ok(Prefetched { generation: self.generation, items })
    }
}

/// The slot of an entry that is none of a deleted key.
pub(super) fn slot_of(entry: Entry) -> Option<Slot> {
    match entry {
        Entry::Put(slot) => Some(slot),
        Entry::Tombstone(_) => None,
    }
}

/// What the runs, newest first, hold for a key.
async fn in_runs<R: Runtime>(runs: &[Rc<Run<R>>], key: &[u8]) -> Result<Option<Entry>, ReadError> {
    for run in runs {
        match run.get_now(key) {
            Now::Found(entry) => return Ok(Some(entry)),
            Now::Absent => {}
            Now::Unknown => {
                if let Some(entry) = run.get(key).await? {
                    return Ok(Some(entry));
                }
            }
        }
    }
    Ok(None)
}

/// What memory knows of what the runs, newest first, hold for a key.
pub(super) fn in_runs_now<R: Runtime>(runs: &[Rc<Run<R>>], key: &[u8]) -> Now {
    let answers = runs.iter().map(|run| run.get_now(key));
    answers.into_iter().find(|now| *now != Now::Absent).unwrap_or(Now::Absent)
}
