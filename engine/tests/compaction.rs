//! Compaction of the log: how large it grows under overwriting, what a crash at any point of it leaves, what it does
//! with values of several extents and with damaged ones, and whom it waits for.

mod common;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use krita_engine::{
    CheckpointMeta, Damage, EntryRecord, Options, RecoveredShard, ReplicaId, ShardId, Slot, Statistics, Term,
    open,
};
use krita_runtime::Clock;
use krita_runtime::sim::Random;

const SHARDS: u32 = 3;

fn eager() -> Options {
    Options { compaction_factor: 1.0, ..options() }
}

fn with(options: Options, world: &World) -> (SimStore, Vec<RecoveredShard>) {
    let opened = world.simulation.block_on(world.host, |runtime| open(runtime, options));
    opened.unwrap_or_else(|error| panic!("the log opens: {error}"))
}

/// What the node does around a store: entries in order, checkpoints when they are due.
#[derive(Clone)]
struct Node {
    store: SimStore,
    state: Rc<std::cell::RefCell<State>>,
}

impl Node {
    fn create(options: Options, world: &World) -> Self {
        let (store, _) = with(options, world);
        let created = store.clone();
        world.run(async move {
            for shard in 1..=SHARDS {
                let replica = ReplicaId(u64::from(shard));
                created.create_shard(ShardId(shard), replica, CheckpointMeta::default()).await.unwrap();
            }
        });
        Self { store, state: Rc::default() }
    }

    /// Keys of all shards share one state: a key's first letter is its shard.
    fn shard(key: &[u8]) -> ShardId {
        ShardId(1 + u32::from(key[0]) % SHARDS)
    }

    async fn write(&self, operation: Operation) {
        self.write_all(vec![operation]).await;
    }

    /// Writes operations together, each as an entry, and applies them.
    async fn write_all(&self, operations: Vec<Operation>) {
        let mut entries: BTreeMap<ShardId, Vec<EntryRecord>> = BTreeMap::new();
        for operation in operations {
            let (Operation::Put(key, _) | Operation::Delete(key)) = &operation;
            let shard = Self::shard(key);
            let entries = entries.entry(shard).or_default();
            let index = self.store.last_index(shard).unwrap().0 + 1 + entries.len() as u64;
            entries.push(entry(index, 1, &[operation]));
        }
        let mut batch = self.store.batch();
        for (shard, entries) in &entries {
            entries.iter().for_each(|entry| batch.entry(*shard, entry.clone()));
        }
        self.store.write(batch).await.unwrap();
        for (shard, record) in
            entries.iter().flat_map(|(shard, entries)| entries.iter().map(|entry| (*shard, entry)))
        {
            let changes = changes(record.index, &record.payload, &mut self.state.borrow_mut(), false);
            self.store.apply(shard, record.index, changes);
        }
    }

    async fn checkpoint(&self, shard: ShardId) {
        let applied = self.store.applied(shard).unwrap();
        let meta = CheckpointMeta { applied, term: Term(1), ..CheckpointMeta::default() };
        self.store.checkpoint(shard, meta).await.unwrap();
    }

    async fn checkpoint_all(&self) {
        for shard in self.store.shards() {
            self.checkpoint(shard).await;
        }
    }

    async fn checkpoint_due(&self) {
        if let Some(shard) = self.store.checkpoint_due() {
            self.checkpoint(shard).await;
        }
    }

    async fn check(&self) {
        let mut found = State::new();
        for shard in self.store.shards() {
            found.extend(content(&self.store, shard).await);
        }
        let state = self.state.borrow().clone();
        assert_eq!(found.len(), state.len());
        assert!(found == state, "every value is what was written last");
    }
}

fn key(number: u64) -> String {
    format!("{}{number:05}", ['a', 'b', 'c'][(number % 3) as usize])
}

fn value(random: &Random, length: u64) -> Bytes {
    vec![random.next() as u8; length as usize].into()
}

fn segment_files(world: &World) -> u64 {
    world.files("segment-").len() as u64
}

/// What a steady overwrite came to.
struct Steady {
    files_max: u64,
    /// Bytes written to the log for each byte of a value that came in.
    amplification: f64,
    statistics: Statistics,
}

/// Fills a log with `segments` times a segment's bytes, and overwrites them uniformly `rounds` times.
fn overwrite(seed: u64, options: Options, segments: u64, value_bytes: u64, rounds: u64) -> Steady {
    let world = World::new(seed);
    let live = segments * u64::from(options.segment_bytes);
    let batch_bytes = u64::from(options.batch_bytes_max) * 5 / 8;
    let node = Node::create(options, &world);
    let random = world.simulation.random();
    let keys = live / (value_bytes + 6);
    let at_once = (batch_bytes / value_bytes).max(1);
    let (mut files_max, mut came) = (0, 0);
    let mut at_start = Statistics::default();
    for round in 0..=rounds {
        for first in (0..keys).step_by(at_once as usize) {
            let numbers =
                (first..first + at_once).map(|number| if round == 0 { number } else { random.below(keys) });
            let puts = numbers.map(|number| put(&key(number), value(&random, value_bytes))).collect();
            came += u64::from(round > 1) * at_once * value_bytes;
            let writer = node.clone();
            world.run(async move {
                writer.write_all(puts).await;
                writer.checkpoint_due().await;
            });
            files_max = files_max.max(segment_files(&world));
        }
        if round == 1 {
            at_start = node.store.statistics();
        }
    }
    let statistics = node.store.statistics();
    let written = (statistics.log_bytes - at_start.log_bytes) as f64;
    let moved = (statistics.relocated_bytes - at_start.relocated_bytes) as f64;
    let checked = node.clone();
    world.run(async move { checked.check().await });
    assert_eq!(node.store.take_damages(), []);
    let came = came as f64;
    println!(
        "{segments} segments alive, {value_bytes} bytes a value: {files_max} segments at most; {:.2} bytes written for \
         each that came, {:.2} of them moved; {} segments evacuated",
        written / came,
        moved / came,
        statistics.segments_compacted,
    );
    Steady { files_max, amplification: written / came, statistics }
}

#[test]
fn the_log_stays_below_twice_what_is_alive_and_four_segments() {
    for (seed, segments, value_bytes) in [(1, 16, 300), (2, 16, 3_000), (3, 40, 2_000)] {
        let steady =
            overwrite(seed, Options { compaction_factor: 1.5, ..options() }, segments, value_bytes, 6);
        assert!(steady.statistics.segments_compacted > 10);
        assert!(steady.files_max <= 2 * segments + 4, "{} segments", steady.files_max);
    }
}

/// A log twice as large as what is alive in it, with segments that are large beside their records.
#[test]
fn a_log_half_full_is_written_less_than_twice() {
    let options = Options {
        segment_bytes: 1 << 20,
        batch_bytes_max: 512 << 10,
        piece_bytes: 128 << 10,
        memtable_bytes: 256 << 10,
        checkpoint_after_bytes: 512 << 10,
        compaction_factor: 1.6,
        ..options()
    };
    let steady = overwrite(4, options, 24, 2_500, 5);
    assert!(steady.statistics.segments_compacted > 10);
    assert!(steady.files_max <= 2 * 24 + 4, "{} segments", steady.files_max);
    assert!(steady.amplification < 2.0);
}

/// Values so small that a log full of them cannot be packed to its bound.
/// Some time in which nothing is written and checkpoints are taken when they are due. How many segments were evacuated
/// since the log was opened.
fn settle(world: &World, node: &Node) -> u64 {
    for _ in 0..40 {
        let worker = node.clone();
        world.run(async move { worker.checkpoint_due().await });
        world.simulation.run_for(Duration::from_millis(250));
    }
    node.store.statistics().segments_compacted
}

/// What was moved hides what it is a copy of, and no more than that: else less would seem alive than is, and the log
/// too large for it.
#[test]
fn a_log_that_nobody_writes_to_comes_to_rest() {
    for (seed, tenths) in (1..).zip([10, 15, 19, 25, 32, 60]) {
        // Only what compaction needs makes checkpoints due.
        let options = Options {
            compaction_factor: 1.5,
            checkpoint_after_bytes: u64::MAX,
            memtable_bytes: 64 << 20,
            replay_segments_max: 16,
            ..options()
        };
        let world = World::new(seed);
        let keys = u64::from(options.segment_bytes) * tenths / 10 / (VALUE_BYTES + 6);
        let node = Node::create(options, &world);
        let (random, writer) = (world.simulation.random(), node.clone());
        world.run(async move {
            for _ in 0..3 * keys / AT_ONCE {
                let put = |_| put(&key(random.below(keys)), value(&random, VALUE_BYTES));
                writer.write_all((0..AT_ONCE).map(put).collect()).await;
                writer.checkpoint_due().await;
            }
        });
        let (first, second) = (settle(&world, &node), settle(&world, &node));
        assert_eq!(second, first, "{tenths} tenths of a segment are alive: segments evacuated meanwhile");
    }
    const VALUE_BYTES: u64 = 120;
    const AT_ONCE: u64 = 20;
}

#[test]
fn tiny_values_are_not_moved_for_ever() {
    let world = World::new(5);
    let node = Node::create(Options { compaction_factor: 1.5, ..options() }, &world);
    let writer = node.clone();
    world.run(async move {
        for first in (0..40_000).step_by(200) {
            let puts: Vec<Operation> =
                (first..first + 200).map(|number| put(&key(3 * number), vec![7])).collect();
            let index = writer.store.last_index(Node::shard(b"a")).unwrap().0 + 1;
            let record = entry(index, 1, &puts);
            write_entries(&writer.store, Node::shard(b"a"), vec![record.clone()]).await;
            let changes = changes(record.index, &record.payload, &mut writer.state.borrow_mut(), false);
            writer.store.apply(Node::shard(b"a"), record.index, changes);
            writer.checkpoint_due().await;
        }
    });
    let (first, second) = (settle(&world, &node), settle(&world, &node));
    assert!(second - first <= 1, "{first} segments evacuated, and {second} a little later");
    let checked = node.clone();
    world.run(async move { checked.check().await });
}

#[test]
fn what_is_deleted_gives_its_space_back() {
    let world = World::new(4);
    let node = Node::create(eager(), &world);
    let random = world.simulation.random();
    let writer = node.clone();
    world.run(async move {
        for number in 0..600 {
            writer.write(put(&key(number), value(&random, 3_000))).await;
            writer.checkpoint_due().await;
        }
        for number in 0..600 {
            writer.write(Operation::Delete(key(number).into())).await;
        }
        for _ in 0..20 {
            writer.checkpoint_all().await;
        }
    });
    world.simulation.run_for(Duration::from_secs(3));
    assert!(segment_files(&world) <= 5, "{} segments for nothing", segment_files(&world));
}

/// A log of which most is dead, with some of what lives spread over it.
fn mostly_dead(world: &World, options: Options) -> Node {
    let node = Node::create(options, world);
    let random = world.simulation.random();
    let writer = node.clone();
    world.run(async move {
        for number in 0..300 {
            let number = if number % 6 == 0 { 100 + number } else { number % 7 };
            let length = if number == 106 || number == 250 { 60_000 } else { 2_500 };
            writer.write(put(&key(number), value(&random, length))).await;
        }
    });
    node
}

#[test]
fn a_crash_at_any_point_loses_nothing() {
    let (mut points, mut moved, mut used_again) = (0u32, 0, 0);
    loop {
        let world = World::new(70 + u64::from(points % 3));
        // First without, so that the crash comes while most is still to be moved.
        let node = mostly_dead(&world, Options { regions_of: None, ..eager() });
        let state = node.state.clone();
        world.run(async move {
            node.checkpoint_all().await;
            node.store.close().await;
        });
        let node = Node { store: with(eager(), &world).0, state };
        let (worker, done) = (node.clone(), Rc::new(std::cell::Cell::new(false)));
        let finished = done.clone();
        world.simulation.spawn_on(world.host, move |runtime| async move {
            while worker.store.statistics().segments_recycled < 6 {
                worker.checkpoint_due().await;
                runtime.sleep(Duration::from_micros(200)).await;
            }
            finished.set(true);
        });
        world.simulation.run_for(Duration::from_micros(130) * points);
        let (finished, statistics) = (done.get(), node.store.statistics());
        moved += u64::from(statistics.relocated_values > 0);
        used_again += u64::from(statistics.segments_recycled > 0);
        let state = node.state.clone();
        drop(node);
        world.simulation.crash(world.host);
        let node = Node { store: with(eager(), &world).0, state };
        world.run(async move {
            node.check().await;
            // The log goes on, and what is written now is there as well.
            node.write(put("a-late", vec![1; 2_000])).await;
            node.check().await;
        });
        points += 1;
        if finished {
            break;
        }
        assert!(points < 2_000, "compaction comes to an end");
    }
    println!("{points} points, {moved} of them with values moved, {used_again} with segments used again");
    assert!(moved > 40 && used_again > 10);
}

/// Applies what lies behind the checkpoints, as a node does after a start.
/// Compaction may be in the middle of a segment, with copies on their way to the log.
#[test]
fn a_log_can_be_closed_at_any_point_of_a_pass() {
    let mut moved = 0;
    for point in 0..200 {
        let world = World::new(90 + u64::from(point % 3));
        let node = mostly_dead(&world, Options { regions_of: None, ..eager() });
        let state = node.state.clone();
        world.run(async move {
            node.checkpoint_all().await;
            node.store.close().await;
        });
        let node = Node { store: with(eager(), &world).0, state };
        world.simulation.run_for(Duration::from_micros(37) * point);
        moved += u64::from(node.store.statistics().relocated_values > 0);
        let (state, closed) = (node.state.clone(), Rc::new(std::cell::Cell::new(false)));
        let done = closed.clone();
        world.simulation.spawn_on(world.host, move |_| async move {
            node.store.close().await;
            done.set(true);
        });
        world.simulation.run_for(Duration::from_secs(5));
        assert!(closed.get(), "the log is closed in the end, {point} steps after it was opened");
        let node = Node { store: with(eager(), &world).0, state };
        world.run(async move {
            replay(&node).await;
            node.check().await;
        });
    }
    println!("values had been moved at {moved} of the points");
    assert!(moved > 0);
}

async fn replay(node: &Node) {
    for shard in node.store.shards() {
        let (from, last) = (node.store.applied(shard).unwrap().next(), node.store.last_index(shard).unwrap());
        if from > last {
            continue;
        }
        for entry in node.store.read_entries(shard, from, last, usize::MAX).await.unwrap() {
            let changes = changes(entry.index, &entry.payload, &mut State::new(), false);
            node.store.apply(shard, entry.index, changes);
        }
    }
}

#[test]
fn values_of_several_extents_are_moved() {
    let world = World::new(90);
    let node = Node::create(eager(), &world);
    let random = world.simulation.random();
    let writer = node.clone();
    world.run(async move {
        // Large values that stay, each across several batches, some across segments; and much that dies between.
        for round in 0..12u64 {
            writer.write(put(&key(1_000 + round), value(&random, 70_000 + round * 4_000))).await;
            for _ in 0..20 {
                writer.write(put(&key(random.below(5)), value(&random, 8_000))).await;
            }
            writer.checkpoint_due().await;
        }
        let before = first_segments(&writer).await;
        for _ in 0..40 {
            for _ in 0..20 {
                writer.write(put(&key(random.below(5)), value(&random, 8_000))).await;
                writer.checkpoint_due().await;
            }
            let after = first_segments(&writer).await;
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            if moved >= 8 {
                writer.checkpoint_all().await;
                writer.check().await;
                return;
            }
        }
        panic!("large values are not moved");
    });
}

/// Where the large values start.
async fn first_segments(node: &Node) -> Vec<u64> {
    let mut segments = Vec::new();
    for number in 1_000..1_012 {
        let key = key(number);
        let slot = node.store.get(Node::shard(key.as_bytes()), key.as_bytes()).await.unwrap().unwrap();
        segments.push(slot.region.as_slice()[0].segment.0);
    }
    segments
}

#[test]
fn a_damaged_value_is_not_moved_but_told_and_mended() {
    let world = World::new(100);
    let node = Node::create(Options { regions_of: None, ..eager() }, &world);
    let random = world.simulation.random();
    let (writer, values) = (node.clone(), random.fork(1));
    let (key, victim): (String, Slot) = world.run(async move {
        for number in 0..200 {
            let number = if number < 8 { 500 + number } else { number % 5 };
            writer.write(put(&self::key(number), value(&values, 2_500))).await;
        }
        writer.checkpoint_all().await;
        let key = self::key(503);
        let slot = writer.store.get(Node::shard(key.as_bytes()), key.as_bytes()).await.unwrap().unwrap();
        (key, slot)
    });
    let (shard, state) = (Node::shard(key.as_bytes()), node.state.clone());
    let closing = node.store.clone();
    drop(node);
    world.run(async move { closing.close().await });
    // The first segment of all lies in the first file.
    let extent = victim.region.as_slice()[0];
    assert_eq!(extent.segment.0, 1);
    let path = format!("{DIRECTORY}/segment-1");
    let path = if world.files("segment-1").iter().any(|file| *file == *path) {
        path
    } else {
        format!("{DIRECTORY}/segment-0")
    };
    world.simulation.disk(world.host).flip_bit(&path, u64::from(extent.offset) + 100, 3);

    let (store, _) = with(eager(), &world);
    let node = Node { store, state: state.clone() };
    let worker = node.clone();
    world.run(async move {
        replay(&worker).await;
        for number in 0..200 {
            worker.write(put(&self::key(number % 5), vec![9; 2_500])).await;
            worker.checkpoint_due().await;
        }
    });
    world.simulation.run_for(Duration::from_secs(10));
    let damages = node.store.take_damages();
    let [Damage::Value { shard: damaged_shard, key: damaged_key, slot, .. }] = damages.as_slice() else {
        panic!("one value is damaged: {damages:?}");
    };
    assert_eq!((*damaged_shard, &damaged_key[..], slot), (shard, key.as_bytes(), &victim));
    let (worker, mended) = (node.clone(), state.borrow()[key.as_bytes()].1.clone());
    let (slot, name) = (victim.clone(), key.clone());
    world.run(async move {
        // The others have been moved; this one is where it was, and is refused.
        let found = worker.store.get(shard, name.as_bytes()).await.unwrap().unwrap();
        assert_eq!(found, slot);
        assert!(worker.store.value(shard, name.as_bytes(), &slot).await.is_err());
        let other = self::key(504);
        let other = worker.store.get(Node::shard(other.as_bytes()), other.as_bytes()).await.unwrap().unwrap();
        assert_ne!(other.region.as_slice()[0].segment.0, 1, "what is whole was moved");
        assert!(worker.store.repair_value(shard, name.as_bytes(), &slot, mended).await.unwrap());
        worker.check().await;
    });
    let compacted = node.store.statistics().segments_compacted;
    world.simulation.run_for(Duration::from_secs(130));
    assert!(node.store.statistics().segments_compacted > compacted, "the mended segment is evacuated");
    assert_eq!(node.store.take_damages(), []);
}

#[test]
fn a_snapshot_being_sent_keeps_what_was_moved() {
    let world = World::new(110);
    let node = mostly_dead(&world, Options { regions_of: None, ..eager() });
    let state = node.state.clone();
    let closing = node.clone();
    drop(node);
    world.run(async move {
        closing.checkpoint_all().await;
        closing.store.close().await;
    });
    let (store, _) = with(eager(), &world);
    let node = Node { store, state };
    let mut sources = Vec::new();
    for shard in 1..=SHARDS {
        let store = node.store.clone();
        sources.push(world.run(async move { store.snapshot_source(ShardId(shard)).await.unwrap() }));
    }
    let expected = node.state.borrow().clone();
    let worker = node.clone();
    world.run(async move {
        for number in 0..300 {
            worker.write(put(&key(number % 7), vec![3; 2_500])).await;
            worker.checkpoint_due().await;
        }
        worker.checkpoint_all().await;
    });
    world.simulation.run_for(Duration::from_secs(5));
    assert!(node.store.statistics().segments_compacted > 3);
    let sent = world.run(async move {
        let mut sent = State::new();
        for mut source in sources {
            loop {
                let items = source.next(4_000).await.unwrap();
                if items.is_empty() {
                    break;
                }
                sent.extend(items.into_iter().map(|item| (item.key, (item.version, item.value))));
            }
        }
        sent
    });
    assert!(sent == expected, "the snapshot is what it was when it was opened");
    let before = node.store.statistics().segments_evacuated;
    let worker = node.clone();
    world.run(async move { worker.checkpoint_all().await });
    world.simulation.run_for(Duration::from_secs(5));
    let after = node.store.statistics().segments_evacuated;
    assert!(after < before || after == 0, "{before} waited for the snapshot, {after} still do");
}
