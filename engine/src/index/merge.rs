//! Merging layers: the cursor over several of them, when runs are merged, and writing a run.
//!
//! # Policy
//!
//! Runs other than the oldest, the *base*, are *young*. There are at most [`YOUNG_MAX`] young runs at rest: one more,
//! and the newest ones are merged, as few as lie in front of a larger one. This is the binomial scheme of "Bigtable
//! Merge Compaction" (Mathieu, Staelin, Young, Yousefi 2014) driven by sizes alone: with K runs an item of n equal
//! flushes is rewritten at most d times where C(K + d, d) >= n. Once the young runs hold more than a quarter of the
//! base's bytes, everything is merged into a new base.
//!
//! Write amplification of the index, flush included: about 1 + d + 4 for an index that has reached its size, since a
//! quarter new drags a whole base along. A test measures 4.2 for an index of 16 flushes, 5.6 for 64, 7.7 for 1024.

use std::io;
use std::ops::{Bound, Range};
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use krita_runtime::Runtime;

use super::memtable::{Memtable, MemtableView, Slice};
use crate::error::ReadError;
use crate::run::{Entry, Run, RunCursor, RunIdentity, RunRecord, RunWriter, Use};

/// Most runs at rest beside the base.
pub(crate) const YOUNG_MAX: usize = 7;
/// The young runs hold at most this share of the base's bytes at rest: one in so many.
const BASE_SHARE: u64 = 4;
/// Keys that a cursor takes between two pauses, and from a memtable at once.
const STEPS: usize = 128;

/// Which neighbouring runs to merge now; sizes in bytes, newest first. None if all is well.
pub(crate) fn merge_plan(sizes: &[u64]) -> Option<Range<usize>> {
    let (base, young) = sizes.split_last()?;
    if young.iter().sum::<u64>() > base / BASE_SHARE {
        return Some(0..sizes.len());
    }
    if young.len() <= YOUNG_MAX {
        return None;
    }
    let mut merged = young[0];
    let mut count = 1;
    while let Some(next) = young.get(count).filter(|next| count < 2 || **next <= merged) {
        merged += next;
        count += 1;
    }
    Some(0..count)
}

/// One layer of a merge.
pub(super) struct Source<R: Runtime> {
    layer: Layer<R>,
    /// The next key of this layer, if it was read.
    head: Option<(Bytes, Entry)>,
    ended: bool,
}

enum Layer<R: Runtime> {
    /// The view is held as long as the cursor.
    View(MemtableView, MemtableWalk),
    Memtable(Rc<Memtable>, MemtableWalk),
    Run(Box<RunCursor<R>>),
}

/// How far a cursor came in a memtable.
struct MemtableWalk {
    from: Bound<Bytes>,
    items: std::vec::IntoIter<(Bytes, Entry)>,
    exhausted: bool,
}

impl MemtableWalk {
    fn new(from: Bound<&[u8]>) -> Self {
        Self { from: from.map(Bytes::copy_from_slice), items: Vec::new().into_iter(), exhausted: false }
    }

    /// The next item, and the walk's own position for `slice`, which gives more.
    fn next(&mut self, slice: impl Fn(Bound<&[u8]>) -> Slice) -> Option<(Bytes, Entry)> {
        loop {
            if let Some(item) = self.items.next() {
                return Some(item);
            }
            if self.exhausted {
                return None;
            }
            let slice = slice(self.from.as_ref().map(|key| &key[..]));
            match slice.last {
                Some(last) => self.from = Bound::Excluded(last),
                None => self.exhausted = true,
            }
            self.items = slice.items.into_iter();
        }
    }
}

impl<R: Runtime> Source<R> {
    pub(super) fn view(view: MemtableView, from: Bound<&[u8]>) -> Self {
        Self::new(Layer::View(view, MemtableWalk::new(from)))
    }

    /// A memtable that does not change any more.
    pub(super) fn memtable(memtable: &Rc<Memtable>, from: Bound<&[u8]>) -> Self {
        Self::new(Layer::Memtable(memtable.clone(), MemtableWalk::new(from)))
    }

    pub(super) fn run(cursor: RunCursor<R>) -> Self {
        Self::new(Layer::Run(Box::new(cursor)))
    }

    fn new(layer: Layer<R>) -> Self {
        Self { layer, head: None, ended: false }
    }

    async fn fill(&mut self) -> Result<(), ReadError> {
        if self.head.is_some() || self.ended {
            return Ok(());
        }
        self.head = match &mut self.layer {
            Layer::View(view, walk) => walk.next(|from| view.slice(from, STEPS)),
            Layer::Memtable(memtable, walk) => walk.next(|from| memtable.slice(from, None, STEPS)),
            Layer::Run(cursor) => cursor.next().await?,
        };
        self.ended = self.head.is_none();
        Ok(())
    }
}

/// Walks several layers at once in key order; of a key's entries the newest layer's is given. Pauses now and then.
/// After an error it is of no more use.
pub(crate) struct MergeCursor<R: Runtime> {
    runtime: R,
    /// Newest first.
    sources: Vec<Source<R>>,
    steps: usize,
}

impl<R: Runtime> MergeCursor<R> {
    pub(super) fn new(runtime: &R, sources: Vec<Source<R>>) -> Self {
        Self { runtime: runtime.clone(), sources, steps: 0 }
    }

    /// The next key, tombstones included; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<(Bytes, Entry)>, ReadError> {
        if self.steps == 0 {
            // The first blocks of all layers are read at once.
            try_join_all(self.sources.iter_mut().map(Source::fill)).await?;
        } else if self.steps.is_multiple_of(STEPS) {
            self.runtime.pause().await;
        }
        self.steps += 1;
        for source in &mut self.sources {
            source.fill().await?;
        }
        let mut least: Option<usize> = None;
        for (position, source) in self.sources.iter().enumerate() {
            let Some((key, _)) = &source.head else { continue };
            let lesser = least.and_then(|least| self.sources[least].head.as_ref());
            if lesser.is_none_or(|(least_key, _)| key < least_key) {
                least = Some(position);
            }
        }
        let Some(least) = least else { return Ok(None) };
        let found = self.sources[least].head.take();
        if let Some((key, _)) = &found {
            for source in &mut self.sources[least + 1..] {
                source.head.take_if(|(other, _)| other == key);
            }
        }
        Ok(found)
    }
}

/// Where a run is written to.
pub(crate) struct RunTarget<'a, R: Runtime> {
    pub(crate) runtime: &'a R,
    pub(crate) directory: &'a Path,
    pub(crate) identity: RunIdentity,
    /// Nothing older lies below: tombstones are left out.
    pub(crate) oldest: bool,
}

/// What a run is written from.
pub(crate) enum RunInput<'a, R: Runtime> {
    /// A frozen memtable.
    Memtable(&'a Rc<Memtable>),
    /// Neighbouring runs, newest first.
    Runs(&'a [Rc<Run<R>>]),
}

/// Why a run was not written. What there is of its file is the caller's to remove.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// Writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A run that is part of the merge cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Writes a run, in slices, durably; none, and no file, if nothing is left to write. Not to be dropped in flight.
pub(crate) async fn write_run<R: Runtime>(
    target: RunTarget<'_, R>,
    input: RunInput<'_, R>,
) -> Result<Option<RunRecord>, WriteError> {
    let (sources, items) = match input {
        RunInput::Memtable(memtable) => {
            (vec![Source::memtable(memtable, Bound::Unbounded)], memtable.len() as u64)
        }
        RunInput::Runs(runs) => {
            let cursors = runs.iter().map(|run| Source::run(run.cursor(Bound::Unbounded, Use::Merge)));
            (cursors.collect(), runs.iter().map(|run| run.record().items).sum())
        }
    };
    let mut cursor = MergeCursor::new(target.runtime, sources);
    let mut writer = None;
    while let Some((key, entry)) = cursor.next().await? {
        if target.oldest && matches!(entry, Entry::Tombstone(_)) {
            continue;
        }
        let writer = match &mut writer {
            Some(writer) => writer,
            None => writer
                .insert(RunWriter::create(target.runtime, target.directory, target.identity, items).await?),
        };
        writer.add(&key, &entry).await?;
    }
    match writer {
        Some(writer) => Ok(Some(writer.finish().await?)),
        None => Ok(None),
    }
}
