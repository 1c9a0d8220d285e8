//! The index of one shard: an ordered map from key to slot, larger than memory, as layers of which the newest that
//! knows a key decides.
//!
//! ```text
//!   newest   active memtable     put, delete, relocate
//!      │     frozen memtables    being written as runs
//!      │     runs                immutable files, merged now and then
//!   oldest   base run            no tombstones: nothing lies below that they could hide
//! ```
//!
//! Applying is blind: nobody asks what a key was before. The *layer* decides, never the version: a value that
//! compaction moved keeps its version, and only its newer layer tells that its new place counts.
//!
//! A [`IndexView`] is the whole index as of one moment, for as long as it is held. [`merge`] decides when runs are
//! merged, and writes runs. Nothing here publishes anything: who calls [`ShardIndex::flushed`] or
//! [`ShardIndex::merged`] has made the new run durable and named it in the manifest.

mod known;
mod memtable;
mod merge;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::rc::Rc;

use krita_runtime::Runtime;

use crate::compact::Layers;
use crate::epochs::Epochs;
use crate::run::{Entry, Now, Run};
use crate::types::{Extents, Index, SegmentId, Slot};

use known::Known;
pub(crate) use memtable::Memtable;
pub(crate) use merge::{MergeCursor, RunInput, RunTarget, WriteError, merge_plan, write_run};
pub(crate) use view::{IndexView, Prefetched};

/// Changes whenever what the runs alone say of some key may have changed: with a flush, not with a merge, which changes
/// no answer. No two indexes share one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Generation {
    index: u64,
    flushes: u64,
}

/// What became of a relocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Relocated {
    /// The key maps to the new place now.
    Done,
    /// The key no longer maps to the old place: the copy is dead.
    Superseded,
    /// The runs have changed since the lookup, and memory alone cannot tell: look the key up again.
    Ask,
}

/// See the module.
pub(crate) struct ShardIndex<R: Runtime> {
    runtime: R,
    epochs: Rc<Epochs>,
    active: Rc<Memtable>,
    /// Newest first.
    frozen: Rc<[Rc<Memtable>]>,
    /// Newest first.
    runs: Rc<[Rc<Run<R>>]>,
    generation: Generation,
    known: Known,
}

impl<R: Runtime> ShardIndex<R> {
    /// An index of these runs, newest first. `epochs` are the store's: views hold them.
    pub(crate) fn new(runtime: &R, epochs: &Rc<Epochs>, runs: Vec<Rc<Run<R>>>) -> Self {
        Self {
            runtime: runtime.clone(),
            epochs: epochs.clone(),
            active: Rc::new(Memtable::new()),
            frozen: Rc::new([]),
            runs: runs.into(),
            generation: Generation { index: runtime.random_u64(), flushes: 0 },
            known: Known::default(),
        }
    }

    /// The key has this value from now on.
    pub(crate) fn put(&mut self, key: &[u8], slot: Slot) {
        self.active.set(key, Entry::Put(slot));
    }

    /// The key is gone from now on, deleted by the entry `version`.
    pub(crate) fn delete(&mut self, key: &[u8], version: Index) {
        self.active.set(key, Entry::Tombstone(version));
    }

    /// Moves a key's value to another place, if the key still maps to the place of `from`; the version stays.
    /// `looked_up` is the generation at which a lookup gave `from`.
    pub(crate) fn relocate(
        &mut self,
        key: &[u8],
        from: &Slot,
        to: Extents,
        looked_up: Generation,
    ) -> Relocated {
        let version = match self.in_memtables(key) {
            Some(Entry::Put(slot)) if slot.region == from.region => slot.version,
            Some(Entry::Put(_) | Entry::Tombstone(_)) => return Relocated::Superseded,
            // The runs say what they said then.
            None if looked_up == self.generation => from.version,
            None => match self.get_now(key) {
                Now::Found(Entry::Put(slot)) if slot.region == from.region => slot.version,
                Now::Found(Entry::Put(_) | Entry::Tombstone(_)) | Now::Absent => {
                    return Relocated::Superseded;
                }
                Now::Unknown => return Relocated::Ask,
            },
        };
        self.active.set(key, Entry::Put(Slot { version, region: to }));
        Relocated::Done
    }

    /// What memory alone knows of a key; what is found may be a tombstone.
    pub(crate) fn get_now(&self, key: &[u8]) -> Now {
        if let Some(entry) = self.in_memtables(key) {
            return Now::Found(entry);
        }
        match self.known.get(key) {
            Some(Some(entry)) => Now::Found(entry.clone()),
            Some(None) => Now::Absent,
            None => view::in_runs_now(&self.runs, key),
        }
    }

    fn in_memtables(&self, key: &[u8]) -> Option<Entry> {
        self.active.get(key).or_else(|| self.frozen.iter().find_map(|memtable| memtable.get(key)))
    }

    /// The index as of now, for as long as the view is held. Cheap; what is overwritten meanwhile stays in memory.
    pub(crate) fn view(&self) -> IndexView<R> {
        IndexView::new(
            &self.runtime,
            self.epochs.enter(),
            &self.active,
            self.frozen.clone(),
            self.runs.clone(),
            self.generation,
        )
    }

    /// Which memtables there are: another one after each flush.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Remembers what was fetched from the runs, so that [`ShardIndex::get_now`] knows it. False if the runs have
    /// changed since: fetch it again. At most [`known::KEYS_MAX`] keys are remembered, the latest ones.
    pub(crate) fn remember(&mut self, prefetched: Prefetched) -> bool {
        let fresh = prefetched.generation == self.generation;
        if fresh {
            self.known.insert(prefetched.items);
        }
        fresh
    }

    /// Ends the active memtable and begins a new one. What was active stays part of the index until
    /// [`ShardIndex::flushed`].
    pub(crate) fn freeze(&mut self) -> Rc<Memtable> {
        let frozen = std::mem::replace(&mut self.active, Rc::new(Memtable::new()));
        self.frozen = std::iter::once(&frozen).chain(self.frozen.iter()).cloned().collect();
        frozen
    }

    /// The oldest frozen memtable has become the newest run, durably; none if there was nothing to write.
    pub(crate) fn flushed(&mut self, memtable: &Rc<Memtable>, run: Option<Rc<Run<R>>>) {
        let (last, rest) = self.frozen.split_last().expect("what is flushed was frozen");
        assert!(Rc::ptr_eq(last, memtable), "memtables are flushed in the order of their freezing");
        self.known.flushed(memtable);
        self.frozen = rest.into();
        self.runs = run.iter().chain(self.runs.iter()).cloned().collect();
        self.generation.flushes += 1;
    }

    /// `old`, which are neighbours in this order, have become one run, durably; none if nothing was left. What
    /// any key maps to is as before.
    pub(crate) fn merged(&mut self, old: &[Rc<Run<R>>], new: Option<Rc<Run<R>>>) {
        let first = old.first().expect("a merge has inputs");
        let start = self.runs.iter().position(|run| Rc::ptr_eq(run, first));
        let start = start.expect("what was merged is part of the index");
        let (newer, rest) = self.runs.split_at(start);
        let (merged, older) = rest.split_at(old.len());
        assert!(merged.iter().zip(old).all(|(one, other)| Rc::ptr_eq(one, other)), "neighbours are merged");
        self.runs = newer.iter().chain(new.iter()).chain(older).cloned().collect();
    }

    /// Newest first.
    pub(crate) fn runs(&self) -> &[Rc<Run<R>>] {
        &self.runs
    }

    /// The memtables: the active one, then the frozen ones, newest first.
    pub(crate) fn memtables(&self) -> impl Iterator<Item = &Rc<Memtable>> {
        std::iter::once(&self.active).chain(self.frozen.iter())
    }

    /// Bytes of memory of all memtables.
    pub(crate) fn memtable_bytes(&self) -> usize {
        self.memtables().map(|memtable| memtable.bytes()).sum()
    }

    /// About how many keys there are: keys in several layers count several times.
    pub(crate) fn items_estimate(&self) -> u64 {
        let (mut puts, mut tombstones) = (0, 0);
        for memtable in self.memtables() {
            tombstones += memtable.tombstones() as u64;
            puts += (memtable.len() - memtable.tombstones()) as u64;
        }
        for run in self.runs.iter() {
            tombstones += run.tombstones();
            puts += run.record().items - run.tombstones();
        }
        puts.saturating_sub(tombstones)
    }

    /// Adds the bytes (keys and regions) that the slots of all layers have in each life: an upper bound of what is
    /// alive there, since newer layers may hide slots of older ones. A life that is not named holds nothing alive.
    pub(crate) fn add_segments(&self, total: &mut BTreeMap<SegmentId, u64>) {
        for memtable in self.memtables() {
            for (segment, bytes) in memtable.segments().iter() {
                *total.entry(*segment).or_default() += bytes;
            }
        }
        for (segment, bytes) in self.runs.iter().flat_map(|run| run.segments()) {
            *total.entry(*segment).or_default() += bytes;
        }
    }

    /// The oldest run, and how many keys lie above it.
    pub(crate) fn layers(&self) -> Layers {
        let Some((oldest, young)) = self.runs.split_last() else { return Layers::default() };
        let in_memory: usize = self.memtables().map(|memtable| memtable.len()).sum();
        Layers {
            items_above: in_memory as u64 + young.iter().map(|run| run.record().items).sum::<u64>(),
            oldest_items: oldest.record().items,
            oldest_bytes: oldest.segments().values().sum(),
        }
    }

    /// Whether some layer has a slot in a life.
    pub(crate) fn holds(&self, segment: SegmentId) -> bool {
        self.memtables().any(|memtable| memtable.segments().contains_key(&segment))
            || self.runs.iter().any(|run| run.segments().contains_key(&segment))
    }
}
