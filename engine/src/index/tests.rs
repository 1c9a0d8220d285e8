//! The index against a plain map, with views held over freezes, flushes and merges; its memory; the merge policy.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::sim::{Simulation, SimulationOptions};
use krita_runtime::{Runtime, Spawn, TaskClass};
use proptest::prelude::*;

use super::memtable::{MemtableView, contributions};
use super::*;
use crate::run::{RunCaches, RunIdentity};
use crate::types::{Extent, LogId, ShardId};

type Model = BTreeMap<Bytes, Slot>;

const SHARD: ShardId = ShardId(3);

/// A slot that no other call gives; now and then one of several extents.
fn slot(number: u64, version: u64) -> Slot {
    let extent = |part: u64| Extent {
        segment: SegmentId(1 + (number + part) % 5),
        offset: u32::try_from(4096 + number * 64 + part * 16).expect("tests are short"),
        length: 8 + u32::try_from(number % 7).expect("a remainder is small"),
    };
    let extents = (0..if number.is_multiple_of(11) { 3 } else { 1 }).map(extent).collect();
    Slot { version: Index(version), region: Extents::from_vec(extents) }
}

fn key(number: u8) -> Bytes {
    let mut key = vec![number];
    key.resize(1 + usize::from(number % 9), b'k');
    key.into()
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Delete(u8),
    /// Looks a key up; the relocation comes with a later step.
    LookUp(u8),
    /// Relocates what was looked up.
    Relocate,
    Freeze,
    Flush,
    /// Merges as many runs from there on.
    Merge(usize, usize),
    MergeByPlan,
    View,
    /// A task walks the view while the steps go on.
    WalkInBackground(usize),
    DropView,
    Get(u8),
    GetMany(Vec<u8>),
    Scan(u8, Option<u8>, usize),
    Prefetch(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let number = || 0u8..24;
    prop_oneof![
        12 => number().prop_map(Step::Put),
        6 => number().prop_map(Step::Delete),
        4 => number().prop_map(Step::LookUp),
        4 => Just(Step::Relocate),
        3 => Just(Step::Freeze),
        3 => Just(Step::Flush),
        2 => (0usize..6, 1usize..5).prop_map(|(start, count)| Step::Merge(start, count)),
        1 => Just(Step::MergeByPlan),
        3 => Just(Step::View),
        2 => (1usize..9).prop_map(Step::WalkInBackground),
        2 => Just(Step::DropView),
        4 => number().prop_map(Step::Get),
        2 => proptest::collection::vec(number(), 0..9).prop_map(Step::GetMany),
        2 => (number(), proptest::option::of(number()), 0usize..30)
            .prop_map(|(start, end, items)| Step::Scan(start, end, items)),
        1 => proptest::collection::vec(number(), 0..9).prop_map(Step::Prefetch),
    ]
}

/// An index and what it should be.
struct Bench<R: Runtime> {
    runtime: R,
    directory: PathBuf,
    caches: Rc<RunCaches>,
    epochs: Rc<Epochs>,
    index: ShardIndex<R>,
    model: Model,
    number: u64,
    looked_up: Vec<(Bytes, Slot, Generation)>,
    views: Vec<(IndexView<R>, Model)>,
    walks: Rc<Cell<usize>>,
}

impl<R: Runtime> Bench<R> {
    async fn new(runtime: R) -> Self {
        let directory = Path::new("/data/log0").to_owned();
        runtime.create_directory(&directory).await.expect("a directory is made");
        let epochs = Rc::new(Epochs::default());
        Self {
            index: ShardIndex::new(&runtime, &epochs, Vec::new()),
            caches: RunCaches::new(1 << 20, 1 << 20),
            runtime,
            directory,
            epochs,
            model: Model::new(),
            number: 0,
            looked_up: Vec::new(),
            views: Vec::new(),
            walks: Rc::default(),
        }
    }

    fn take_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn put(&mut self, key: &[u8]) {
        let number = self.take_number();
        let slot = slot(number, number);
        self.index.put(key, slot.clone());
        self.model.insert(Bytes::copy_from_slice(key), slot);
    }

    fn delete(&mut self, key: &[u8]) {
        let version = Index(self.take_number());
        self.index.delete(key, version);
        self.model.remove(key);
    }

    /// Writes and opens a run; none if nothing was to be written.
    async fn write(&mut self, input: RunInput<'_, R>, oldest: bool) -> Option<Rc<Run<R>>> {
        let number = self.take_number();
        let identity = RunIdentity { log: LogId(0), shard: SHARD, number, nonce: 77 };
        let (runtime, directory) = (&self.runtime, &self.directory);
        let target = RunTarget { runtime, directory, identity, oldest };
        let record = write_run(target, input).await.expect("the disk is well")?;
        let run = Run::open(runtime, directory, identity, record, &self.caches).await;
        Some(run.expect("the run was just written"))
    }

    async fn flush(&mut self) {
        let Some(memtable) = self.index.memtables().skip(1).last().cloned() else { return };
        let oldest = self.index.runs().is_empty();
        let run = self.write(RunInput::Memtable(&memtable), oldest).await;
        self.index.flushed(&memtable, run);
    }

    async fn merge(&mut self, range: std::ops::Range<usize>) {
        let runs = self.index.runs();
        let old: Vec<_> = runs.iter().take(range.end).skip(range.start).cloned().collect();
        if old.is_empty() {
            return;
        }
        let oldest = range.start + old.len() == runs.len();
        let new = self.write(RunInput::Runs(&old), oldest).await;
        if oldest {
            assert_eq!(new.as_ref().map_or(0, |run| run.tombstones()), 0, "a base has no tombstones");
        }
        self.index.merged(&old, new);
    }

    /// The first relocation that was looked up, as compaction would finish it.
    async fn relocate(&mut self) {
        let Some((key, from, generation)) = self.looked_up.pop() else { return };
        let to = slot(self.take_number(), 0).region;
        let alive = self.model.get(&key) == Some(&from);
        let mut generation = generation;
        let outcome = loop {
            match self.index.relocate(&key, &from, to.clone(), generation) {
                Relocated::Ask => {
                    let view = self.index.view();
                    let again = view.get(&key).await.expect("the disk is well");
                    if again.as_ref() != Some(&from) {
                        break Relocated::Superseded;
                    }
                    generation = view.generation();
                }
                outcome => break outcome,
            }
        };
        assert_eq!(outcome == Relocated::Done, alive, "a relocation is a compare-and-set");
        if alive {
            self.model.insert(key, Slot { version: from.version, region: to });
        }
    }

    /// What memory says is right, as far as it says anything.
    fn check_now(&self, key: &[u8]) {
        match self.index.get_now(key) {
            Now::Found(Entry::Put(slot)) => assert_eq!(self.model.get(key), Some(&slot)),
            Now::Found(Entry::Tombstone(_)) | Now::Absent => assert_eq!(self.model.get(key), None),
            Now::Unknown => {}
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Put(number) => self.put(&key(number)),
            Step::Delete(number) => self.delete(&key(number)),
            Step::LookUp(number) => {
                let (key, view) = (key(number), self.index.view());
                if let Some(slot) = view.get(&key).await.expect("the disk is well") {
                    self.looked_up.push((key, slot, view.generation()));
                }
            }
            Step::Relocate => self.relocate().await,
            Step::Freeze => {
                self.index.freeze();
            }
            Step::Flush => self.flush().await,
            Step::Merge(start, count) => self.merge(start..start + count).await,
            Step::MergeByPlan => {
                let sizes: Vec<u64> = self.index.runs().iter().map(|run| run.record().length).collect();
                if let Some(range) = merge_plan(&sizes) {
                    self.merge(range).await;
                }
            }
            Step::View => self.views.push((self.index.view(), self.model.clone())),
            Step::WalkInBackground(page) => self.walk_in_background(page),
            Step::DropView => drop(self.views.pop()),
            Step::Get(number) => {
                let got = self.index.view().get(&key(number)).await.expect("the disk is well");
                assert_eq!(got.as_ref(), self.model.get(&key(number)));
            }
            Step::GetMany(numbers) => {
                let keys: Vec<Bytes> = numbers.into_iter().map(key).collect();
                let states = self.views.iter().map(|(view, model)| (view.clone(), model));
                for (view, model) in states.chain([(self.index.view(), &self.model)]) {
                    let got = view.get_many(&keys).await.expect("the disk is well");
                    let expected: Vec<_> = keys.iter().map(|key| model.get(key).cloned()).collect();
                    assert_eq!(got, expected);
                }
            }
            Step::Scan(start, end, items) => {
                let (start, end) = (key(start), end.map(key));
                let states = self.views.iter().map(|(view, model)| (view.clone(), model));
                for (view, model) in states.chain([(self.index.view(), &self.model)]) {
                    let got = view.scan(&start, end.as_deref(), items).await.expect("the disk is well");
                    let inside = |key: &Bytes| *key >= start && end.as_ref().is_none_or(|end| key < end);
                    let expected = model.iter().filter(|(key, _)| inside(key)).take(items);
                    let expected: Vec<_> = expected.map(|(key, slot)| (key.clone(), slot.clone())).collect();
                    assert_eq!(got, expected);
                }
            }
            Step::Prefetch(numbers) => {
                let keys: Vec<Bytes> = numbers.into_iter().map(key).collect();
                let prefetched = self.index.view().prefetch(keys.clone()).await.expect("the disk is well");
                assert!(self.index.remember(prefetched), "the runs did not change meanwhile");
                for key in keys {
                    assert_ne!(self.index.get_now(&key), Now::Unknown, "what was fetched is known");
                }
            }
        }
    }

    fn walk_in_background(&self, page: usize) {
        let (view, model, walks) = (self.index.view(), self.model.clone(), self.walks.clone());
        let runtime = self.runtime.clone();
        walks.set(walks.get() + 1);
        self.runtime.spawn(TaskClass::Background, "walk", async move {
            let (mut from, mut seen) = (Vec::new(), Vec::new());
            loop {
                let items = view.scan(&from, None, page).await.expect("the disk is well");
                let Some((last, _)) = items.last() else { break };
                from = last.to_vec();
                from.push(0);
                seen.extend(items);
                runtime.pause().await;
            }
            assert_eq!(seen, model.into_iter().collect::<Vec<_>>());
            walks.set(walks.get() - 1);
        });
    }

    /// Every layer's bytes in each life are what its entries have there, and the index adds them up.
    fn check_segments(&self) {
        let mut total: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for memtable in self.index.memtables() {
            memtable.check();
            for (segment, bytes) in memtable.segments().iter() {
                *total.entry(*segment).or_default() += bytes;
            }
        }
        for (segment, bytes) in self.index.runs().iter().flat_map(|run| run.segments()) {
            *total.entry(*segment).or_default() += bytes;
        }
        let mut segments = BTreeMap::new();
        self.index.add_segments(&mut segments);
        assert_eq!(segments, total);
        assert!((0..9).all(|number| {
            let segment = SegmentId(number);
            self.index.holds(segment) == segments.contains_key(&segment)
        }));
        let mut alive: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for (key, slot) in &self.model {
            for (segment, bytes) in contributions(key, &Entry::Put(slot.clone())) {
                *alive.entry(segment).or_default() += bytes;
            }
        }
        assert!(alive.iter().all(|(segment, bytes)| segments.get(segment) >= Some(bytes)), "an upper bound");
    }
}

fn simulate<F: Future<Output = ()> + 'static>(
    test: impl FnOnce(krita_runtime::sim::SimRuntime) -> F + 'static,
) {
    let simulation = Simulation::new(1, SimulationOptions::default());
    let host = simulation.add_host("node1");
    simulation.block_on(host, test);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is done in whatever order, the index is the map, and each view the map as it was.
    #[test]
    fn the_index_is_a_map(steps in proptest::collection::vec(step(), 1..160)) {
        simulate(|runtime| async move {
            let mut bench = Bench::new(runtime.clone()).await;
            for step in steps {
                bench.step(step).await;
                for number in 0..24 {
                    bench.check_now(&key(number));
                }
                bench.check_segments();
            }
            while bench.walks.get() > 0 {
                runtime.pause().await;
            }
            while let Some((view, model)) = bench.views.pop() {
                let got = view.scan(&[], None, usize::MAX).await.expect("the disk is well");
                assert_eq!(got, model.into_iter().collect::<Vec<_>>());
                drop(view);
                bench.check_segments();
            }
            assert!(bench.index.memtables().all(|memtable| memtable.versions_aside() == 0));
            assert!(bench.epochs.has_passed(bench.epochs.close()), "nobody is left inside");
        });
    }
}

proptest! {
    /// A memtable alone: views of any moment, dropped in any order, and exact counts at every step.
    #[test]
    fn a_memtable_keeps_what_views_need_and_no_more(
        steps in proptest::collection::vec((0u8..10, 0u8..8), 1..300),
    ) {
        let memtable = Rc::new(Memtable::new());
        let mut model: BTreeMap<Bytes, Entry> = BTreeMap::new();
        let mut views: Vec<(MemtableView, BTreeMap<Bytes, Entry>)> = Vec::new();
        for (number, (what, which)) in (1..).zip(steps) {
            match what {
                0 | 1 => views.push((MemtableView::new(&memtable), model.clone())),
                2 | 3 if !views.is_empty() => {
                    let position = usize::from(which) % views.len();
                    views.remove(position);
                }
                4 => {
                    memtable.set(&key(which), Entry::Tombstone(Index(number)));
                    model.insert(key(which), Entry::Tombstone(Index(number)));
                }
                _ => {
                    memtable.set(&key(which), Entry::Put(slot(number, number)));
                    model.insert(key(which), Entry::Put(slot(number, number)));
                }
            }
            memtable.check();
            for (view, model) in &views {
                for number in 0..8 {
                    assert_eq!(view.get(&key(number)).as_ref(), model.get(&key(number)));
                }
                let seen: BTreeMap<Bytes, Entry> = view.slice(Bound::Unbounded, 99).items.into_iter().collect();
                assert_eq!(&seen, model);
            }
        }
        views.clear();
        memtable.check();
        assert_eq!(memtable.versions_aside(), 0);
        assert_eq!(memtable.len(), model.len());
    }
}

#[test]
fn a_hot_key_has_one_version() {
    let memtable = Rc::new(Memtable::new());
    let view = MemtableView::new(&memtable);
    memtable.set(b"hot", Entry::Put(slot(1, 1)));
    let bytes = memtable.bytes();
    for number in 0..1_000_000u64 {
        let number = 1 + number % 10;
        memtable.set(b"hot", Entry::Put(slot(number, number)));
    }
    assert_eq!((memtable.len(), memtable.versions_aside(), memtable.bytes()), (1, 0, bytes));
    assert_eq!(view.get(b"hot"), None);
    drop(view);
    // A view for every write, gone before the next: one version again, and never more than two.
    for number in 1..100_000u64 {
        let view = MemtableView::new(&memtable);
        let number = 1 + number % 10;
        memtable.set(b"hot", Entry::Put(slot(number, number)));
        assert!(memtable.versions_aside() <= 1);
        drop(view);
    }
    assert_eq!((memtable.versions_aside(), memtable.bytes()), (0, bytes));
    memtable.check();
}

#[test]
fn what_a_view_held_goes_in_slices() {
    let memtable = Rc::new(Memtable::new());
    let name = |number: u32| number.to_be_bytes();
    (0..5000).for_each(|number| memtable.set(&name(number), Entry::Put(slot(1, 1))));
    let view = MemtableView::new(&memtable);
    (0..5000).for_each(|number| memtable.set(&name(number), Entry::Put(slot(2, 2))));
    assert_eq!(memtable.versions_aside(), 5000);
    drop(view);
    let left = memtable.versions_aside();
    assert!(0 < left && left < 5000, "some at once, not all: {left}");
    (0..1000).for_each(|_| memtable.set(b"other", Entry::Put(slot(3, 3))));
    assert_eq!(memtable.versions_aside(), 0);
    memtable.check();
}

#[test]
fn scanning_over_tombstones_lets_others_run() {
    simulate(|runtime| async move {
        let mut bench = Bench::new(runtime.clone()).await;
        for number in 0..20_000u32 {
            bench.delete(&number.to_be_bytes());
        }
        bench.put(b"\xff");
        let turns = Rc::new(Cell::new(0));
        let (told, other) = (turns.clone(), runtime.clone());
        runtime.spawn(TaskClass::Foreground, "other", async move {
            loop {
                told.set(told.get() + 1);
                other.pause().await;
            }
        });
        let found = bench.index.view().scan(&[], None, 1).await.expect("there is no disk in it");
        assert_eq!(found.len(), 1);
        assert!(turns.get() > 50, "others had {} turns", turns.get());
    });
}

#[test]
fn relocation_asks_when_memory_cannot_tell() {
    simulate(|runtime| async move {
        let mut bench = Bench::new(runtime).await;
        bench.put(b"k");
        let from = bench.model[&b"k"[..]].clone();
        let generation = bench.index.view().generation();
        bench.index.freeze();
        bench.flush().await;
        let to = slot(99, 0).region;
        let outcome = bench.index.relocate(b"k", &from, to.clone(), generation);
        // The block may be in memory; if it is not, only a lookup can tell.
        assert_ne!(outcome, Relocated::Superseded);
        if outcome == Relocated::Ask {
            let generation = bench.index.view().generation();
            assert_eq!(bench.index.relocate(b"k", &from, to.clone(), generation), Relocated::Done);
        }
        let moved = bench.index.view().get(b"k").await.expect("the disk is well");
        assert_eq!(moved, Some(Slot { version: from.version, region: to.clone() }));
        let generation = bench.index.view().generation();
        assert_eq!(bench.index.relocate(b"k", &from, to, generation), Relocated::Superseded);
    });
}

/// Runs the policy over flushes and tells how often each byte was written, flushes included. `distinct` bounds how
/// large everything merged can be.
fn write_amplification(flushes: u64, flush_bytes: u64, distinct: u64) -> (f64, usize) {
    let mut runs: Vec<u64> = Vec::new();
    let (mut written, mut runs_max) = (0, 0);
    for _ in 0..flushes {
        runs.insert(0, flush_bytes);
        written += flush_bytes;
        while let Some(range) = merge_plan(&runs) {
            let merged = runs.drain(range).sum::<u64>().min(distinct);
            written += merged;
            runs.insert(0, merged);
        }
        runs_max = runs_max.max(runs.len());
    }
    (written as f64 / (flushes * flush_bytes) as f64, runs_max)
}

#[test]
fn the_index_is_rewritten_seldom() {
    // An index of a given number of flushes that has reached its size, and then sees as much again 20 times over.
    for (size, at_most) in [(1, 3.0), (16, 5.0), (64, 6.0), (256, 7.0), (1024, 8.0)] {
        let (amplification, runs) = write_amplification(size * 20 + 400, 4 << 20, size * (4 << 20));
        println!("an index of {size} flushes: every byte is written {amplification:.2} times, {runs} runs");
        assert!(amplification <= at_most, "{size} flushes: {amplification}");
        assert!(runs <= 8);
    }
}

proptest! {
    /// The policy comes to rest, and at rest the runs are few and the young ones small.
    #[test]
    fn merging_comes_to_rest(sizes in proptest::collection::vec(1u64..1 << 40, 0..40)) {
        let mut runs = sizes;
        let mut merges = 0;
        let before = runs.len();
        while let Some(range) = merge_plan(&runs) {
            prop_assert!(range.len() >= 2 && range.end <= runs.len(), "a merge makes fewer runs");
            let start = range.start;
            let merged = runs.drain(range).sum();
            runs.insert(start, merged);
            merges += 1;
        }
        prop_assert!(merges <= before);
        prop_assert!(runs.len() <= 8);
        if let Some((base, young)) = runs.split_last() {
            prop_assert!(young.iter().sum::<u64>() <= base / 4);
        }
    }
}
