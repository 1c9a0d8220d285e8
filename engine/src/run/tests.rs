//! Runs against a model, what they cost, and damaged ones.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::sim::{HostId, SimRuntime, Simulation, SimulationOptions};
use krita_runtime::{BLOCK_SIZE, Clock, Disk};
use proptest::prelude::*;

use super::*;
use crate::error::Corruption;
use crate::types::{Extent, KEY_BYTES_MAX};

const DIRECTORY: &str = "/data/log0";
const IDENTITY: RunIdentity = RunIdentity { log: LogId(3), shard: ShardId(7), number: 42, nonce: 0x5eed };

type Model = BTreeMap<Bytes, Entry>;
type SimRun = Rc<Run<SimRuntime>>;

struct World {
    simulation: Simulation,
    host: HostId,
}

impl World {
    fn new(seed: u64) -> Self {
        let simulation = Simulation::new(seed, SimulationOptions::default());
        let host = simulation.add_host("node1");
        let world = Self { simulation, host };
        world.run(|runtime| async move { runtime.create_directory(Path::new(DIRECTORY)).await }).unwrap();
        world
    }

    fn run<F, Fut>(&self, main: F) -> Fut::Output
    where
        F: FnOnce(SimRuntime) -> Fut + 'static,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        self.simulation.block_on(self.host, main)
    }

    fn write(&self, identity: RunIdentity, model: &Model, items_expected: u64) -> RunRecord {
        let model = model.clone();
        let write = move |runtime: SimRuntime| async move {
            let directory = Path::new(DIRECTORY);
            let mut writer = RunWriter::create(&runtime, directory, identity, items_expected).await?;
            for (key, entry) in &model {
                writer.add(key, entry).await?;
            }
            writer.finish().await
        };
        self.run(write).unwrap()
    }

    fn open(&self, record: RunRecord, caches: &Rc<RunCaches>) -> Result<SimRun, ReadError> {
        let caches = caches.clone();
        self.run(move |runtime| async move {
            let directory = PathBuf::from(DIRECTORY);
            Run::open(&runtime, &directory, IDENTITY, record, &caches).await
        })
    }

    fn written(&self, model: &Model) -> (RunRecord, SimRun) {
        let record = self.write(IDENTITY, model, model.len() as u64);
        (record, self.open(record, &RunCaches::new(1 << 20, 1 << 30)).unwrap())
    }

    fn get(&self, run: &SimRun, key: &[u8]) -> Result<Option<Entry>, ReadError> {
        let (run, key) = (run.clone(), key.to_vec());
        self.run(move |_| async move { run.get(&key).await })
    }

    /// Everything from a bound on, at most `items_max` items.
    fn walk(
        &self,
        run: &SimRun,
        from: Bound<&[u8]>,
        purpose: Use,
        items_max: usize,
    ) -> Result<Vec<(Bytes, Entry)>, ReadError> {
        let mut cursor = run.cursor(from, purpose);
        self.run(move |_| async move {
            let mut items = Vec::new();
            while items.len() < items_max
                && let Some(item) = cursor.next().await?
            {
                items.push(item);
            }
            Ok(items)
        })
    }

    fn verify(&self, run: &SimRun) -> Result<(), ReadError> {
        let run = run.clone();
        self.run(move |_| async move { run.verify(None).await })
    }

    fn bytes(&self) -> Vec<u8> {
        self.simulation.disk(self.host).read(path()).unwrap()
    }

    fn reads(&self) -> u64 {
        self.simulation.statistics().disk_reads
    }
}

fn path() -> PathBuf {
    IDENTITY.path(Path::new(DIRECTORY))
}

fn extent(number: u64) -> Extent {
    let offset = (number.wrapping_mul(2_654_435_761) % (64 << 20)) as u32;
    Extent { segment: SegmentId(1 + number % 5), offset, length: 4 + (number % 3000) as u32 }
}

fn put(number: u64) -> Entry {
    Entry::Put(Slot { version: Index(number), region: Extents::One(extent(number)) })
}

fn large(number: u64, extents: u64) -> Entry {
    let region = Extents::from_vec((0..extents).map(|part| extent(number + part)).collect());
    Entry::Put(Slot { version: Index(number), region })
}

/// `items` keys of 16 to 20 bytes, of which some are deleted and a few large.
fn model(items: u64) -> Model {
    let entry = |number: u64| match number % 50 {
        7 | 31 => Entry::Tombstone(Index(number)),
        13 => large(number, 2 + number % 7),
        _ => put(number),
    };
    let key = |number: u64| {
        Bytes::from(format!("user/{:011}{}", number * 7, "tail".split_at((number % 5) as usize).0))
    };
    (0..items).map(|number| (key(number), entry(number))).collect()
}

fn corruption<T>(result: Result<T, ReadError>, why: &str) -> Corruption {
    match result {
        Err(ReadError::Corruption(corruption)) => {
            assert_eq!(corruption.file, path(), "{why}");
            corruption
        }
        Err(error) => panic!("{why}: {error}"),
        Ok(_) => panic!("{why}: it passed"),
    }
}

fn entries() -> impl Strategy<Value = Entry> {
    let extent = (any::<u64>(), any::<u32>(), 4..u32::MAX).prop_map(|(segment, offset, length)| Extent {
        segment: SegmentId(segment),
        offset,
        length,
    });
    let region = prop_oneof![
        8 => extent.clone().prop_map(Extents::One),
        1 => proptest::collection::vec(extent, 1..400).prop_map(Extents::from_vec),
    ];
    prop_oneof![
        1 => any::<u64>().prop_map(|version| Entry::Tombstone(Index(version))),
        4 => (any::<u64>(), region).prop_map(|(version, region)| Entry::Put(Slot { version: Index(version), region })),
    ]
}

/// Keys of all sorts: near each other, alike at the front, long, empty.
fn keys() -> impl Strategy<Value = Bytes> {
    let long = (0u8..4, 0u8..3, 0usize..KEY_BYTES_MAX).prop_map(|(front, back, length)| {
        let mut key = vec![front; length];
        key.push(back);
        key
    });
    prop_oneof![
        4 => proptest::collection::vec(0u8..4, 0..6),
        4 => proptest::collection::vec(any::<u8>(), 0..24),
        4 => (0u32..500).prop_map(|number| format!("table/row/{number:06}/column").into_bytes()),
        1 => long,
    ]
    .prop_map(Bytes::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Lookups, walks from any bound in both ways, sums and large keys are those of a map.
    #[test]
    fn a_run_is_a_map(
        model in proptest::collection::btree_map(keys(), entries(), 0..700),
        others in proptest::collection::vec(keys(), 20),
        expected in 0u64..3000,
        filter_bytes in prop_oneof![Just(0), Just(1 << 20)],
        seed in any::<u64>(),
    ) {
        let world = World::new(seed);
        let record = world.write(IDENTITY, &model, expected);
        prop_assert_eq!(record.length, world.bytes().len() as u64);
        let caches = RunCaches::new(64 << 10, filter_bytes);
        let run = world.open(record, &caches).unwrap();
        prop_assert!(caches.filter_bytes() <= filter_bytes);
        for key in others.iter().chain(model.keys().step_by(1 + model.len() / 50)) {
            let now = run.get_now(key);
            let found = world.get(&run, key).unwrap();
            prop_assert_eq!(&found, &model.get(key).cloned());
            match now {
                Now::Found(entry) => prop_assert_eq!(Some(entry), found),
                Now::Absent => prop_assert_eq!(None, found),
                Now::Unknown => {}
            }
        }
        let bounds = others.iter().chain(model.keys().step_by(1 + model.len() / 5));
        let bounds = bounds.flat_map(|key| [Bound::Included(&key[..]), Bound::Excluded(&key[..])]);
        for from in bounds.chain([Bound::Unbounded]) {
            let right = model.range::<[u8], _>((from, Bound::Unbounded));
            let right: Vec<_> = right.map(|(key, entry)| (key.clone(), entry.clone())).collect();
            for purpose in [Use::Scan, Use::Merge] {
                prop_assert_eq!(&world.walk(&run, from, purpose, usize::MAX).unwrap(), &right);
            }
        }
        let mut segments = BTreeMap::new();
        let mut many: BTreeMap<SegmentId, Vec<(Bytes, Slot)>> = BTreeMap::new();
        for (key, entry) in &model {
            let Entry::Put(slot) = entry else { continue };
            for (number, extent) in slot.region.as_slice().iter().enumerate() {
                let key_bytes = if number == 0 { key.len() as u64 } else { 0 };
                *segments.entry(extent.segment).or_default() += u64::from(extent.length) + key_bytes;
                let large = many.entry(extent.segment).or_default();
                if slot.region.as_slice().len() > 1 && large.last().is_none_or(|(last, _)| last != key) {
                    large.push((key.clone(), slot.clone()));
                }
            }
        }
        prop_assert_eq!(run.segments(), &segments);
        for (segment, large) in many.into_iter().take(10) {
            let run = run.clone();
            let found = world.run(move |_| async move { run.large_keys(segment).await }).unwrap();
            prop_assert_eq!(found, large);
        }
        let tombstones = model.values().filter(|entry| matches!(entry, Entry::Tombstone(_))).count() as u64;
        prop_assert_eq!((run.tombstones(), run.record().items), (tombstones, model.len() as u64));
        world.verify(&run).unwrap();
        prop_assert_eq!(world.simulation.statistics().dropped_operations, 0);
    }

    /// Whatever a block's payload is, reading it ends without a panic.
    #[test]
    fn any_bytes_are_items_or_malformed(
        count in prop_oneof![0u32..40, any::<u32>()],
        payload in proptest::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..300),
        key in keys(),
    ) {
        let mut bytes = Vec::new();
        let content = envelope::Envelope { kind: BlockKind::Data, count, payload: &payload };
        envelope::seal(&mut bytes, 0, &IDENTITY, 1, &content);
        let _ = block::search(&bytes, &key);
        let mut cursor = BlockCursor::new(Bytes::from(bytes));
        let _ = cursor.seek(Bound::Included(&key));
        while let Ok(Some(_)) = cursor.next() {}
        let mut decoder = BlocksDecoder::new(payload.clone());
        while decoder.as_mut().and_then(|decoder| decoder.step(3)).unwrap_or(false) {}
        let blocks = decoder.and_then(|decoder| decoder.finish(u64::from(count) * BLOCK_SIZE as u64));
        let _ = blocks.map(|blocks| blocks.find(&key));
        let _ = decode_segments(&payload);
        let _ = Footer::decode(&payload, u64::from(count));
    }

    /// The block index gives the block of every key, whatever the keys.
    #[test]
    fn the_block_index_finds_every_block(
        keys in proptest::collection::btree_set(keys(), 1..300),
        others in proptest::collection::vec(keys(), 50),
        per_block in 1usize..5,
    ) {
        let keys: Vec<Bytes> = keys.into_iter().collect();
        let mut builder = blocks::BlocksBuilder::default();
        let mut before: Option<&Bytes> = None;
        for block in keys.chunks(per_block) {
            builder.add(before.map(|key| &key[..]), &block[0], BLOCK_SIZE);
            before = block.last();
        }
        let mut decoder = BlocksDecoder::new(builder.encode(keys.last().unwrap())).unwrap();
        while decoder.step(7).unwrap() {}
        let count = keys.len().div_ceil(per_block);
        let blocks = decoder.finish((count * BLOCK_SIZE) as u64).unwrap();
        prop_assert_eq!(blocks.count() as usize, count);
        for (number, key) in keys.iter().enumerate() {
            prop_assert_eq!(blocks.find(key), Some((number / per_block) as u32));
        }
        for key in &others {
            // The first key at or behind it must not lie in a block before the one that is found.
            let found = blocks.find_before(key).map_or(0, |block| block as usize * per_block);
            let at_or_behind = keys.partition_point(|other| other < key);
            prop_assert!(found <= at_or_behind);
        }
    }
}

#[test]
fn a_lookup_reads_one_block_or_none() {
    let world = World::new(1);
    let model = model(20_000);
    let record = world.write(IDENTITY, &model, 20_000);
    // Room for the blocks of a part of the run only.
    let caches = RunCaches::new(64 << 10, 1 << 20);
    let run = world.open(record, &caches).unwrap();
    let mut read = 0;
    let keys: Vec<_> = model.keys().collect();
    for number in 0..200 {
        let key = keys[number * 7_919 % keys.len()];
        let (before, known) = (world.reads(), run.get_now(key));
        assert_eq!(world.get(&run, key).unwrap().as_ref(), model.get(key));
        let reads = world.reads() - before;
        assert_eq!(reads, u64::from(known == Now::Unknown), "{known:?}");
        read += reads;
        assert_eq!(run.get_now(key), Now::Found(model[key].clone()), "the block is in the cache");
        assert!(caches.block_bytes() <= 64 << 10);
    }
    assert!(read > 100, "{read}");
    let mut passed = 0;
    for number in 0..20_000 {
        let key = format!("user/{:011}x", number * 7);
        let before = world.reads();
        match run.get_now(key.as_bytes()) {
            Now::Found(entry) => panic!("{key}: {entry:?}"),
            Now::Absent => {}
            Now::Unknown => {
                passed += 1;
                assert_eq!(world.get(&run, key.as_bytes()).unwrap(), None);
            }
        }
        assert!(world.reads() - before <= 1);
    }
    assert!(passed <= 300, "{passed} of 20,000 absent keys were read for");
}

#[test]
fn memory_per_key_is_small() {
    let world = World::new(2);
    let (record, run) = world.written(&model(200_000));
    let per_key = run.resident_bytes() as f64 / 200_000.0;
    assert!(per_key <= 2.0, "{per_key} bytes a key");
    assert!(record.length / 200_000 <= 40, "{} bytes on disk", record.length);
    let before = world.reads();
    world.verify(&run).unwrap();
    assert!(world.reads() - before <= record.length / (256 << 10) + 5, "long reads");
}

#[test]
fn filters_stay_within_their_budget() {
    let world = World::new(3);
    let model = model(2_000);
    let record = world.write(IDENTITY, &model, 2_000);
    let caches = RunCaches::new(1 << 20, 5_000);
    let first = world.open(record, &caches).unwrap();
    let taken = caches.filter_bytes();
    assert!((2_500..=5_000).contains(&taken), "{taken}");
    let second = world.open(record, &caches).unwrap();
    assert_eq!(caches.filter_bytes(), taken, "no room for another");
    assert!(second.resident_bytes() + 2_000 < first.resident_bytes());
    assert_eq!(first.get_now(b"user/00000000001"), Now::Absent);
    assert_eq!(second.get_now(b"user/00000000001"), Now::Unknown);
    assert_eq!(world.get(&second, b"user/00000000001").unwrap(), None);
    drop(first);
    assert_eq!(caches.filter_bytes(), 0);
    assert_eq!(second.get_now(b"a"), Now::Absent, "before all keys");
    assert_eq!(second.get_now(b"z"), Now::Absent, "behind all keys");
}

#[test]
fn walks_for_merges_leave_the_cache_alone_and_scans_read_ahead() {
    let world = World::new(4);
    let model = model(30_000);
    let record = world.write(IDENTITY, &model, 30_000);
    let caches = RunCaches::new(4 << 20, 1 << 20);
    let run = world.open(record, &caches).unwrap();
    let before = world.reads();
    assert_eq!(world.walk(&run, Bound::Unbounded, Use::Merge, usize::MAX).unwrap().len(), 30_000);
    assert_eq!(caches.block_bytes(), 0);
    assert!(world.reads() - before <= record.length / (240 << 10) + 1);
    let before = world.reads();
    assert_eq!(world.walk(&run, Bound::Unbounded, Use::Scan, 10).unwrap().len(), 10);
    assert_eq!((world.reads() - before, caches.block_bytes() / BLOCK_SIZE), (1, 1));
    assert_eq!(world.walk(&run, Bound::Unbounded, Use::Scan, usize::MAX).unwrap().len(), 30_000);
    assert!(world.reads() - before <= record.length / (60 << 10) + 6);
    let before = world.reads();
    assert_eq!(world.walk(&run, Bound::Unbounded, Use::Scan, usize::MAX).unwrap().len(), 30_000);
    assert_eq!(world.reads(), before, "all of it is in the cache");
}

#[test]
fn a_reader_may_go_away() {
    let world = World::new(5);
    let (_, run) = world.written(&model(5_000));
    let reader = run.clone();
    world.run(move |_| async move {
        let key = model(5_000).keys().nth(2_500).unwrap().clone();
        let mut get = Box::pin(reader.get(&key));
        assert!(futures_util::poll!(&mut get).is_pending());
        drop(get);
        let mut cursor = reader.cursor(Bound::Unbounded, Use::Merge);
        assert!(futures_util::poll!(Box::pin(cursor.next())).is_pending());
        // What was begun for the one that went away is done anew.
        assert_eq!(cursor.next().await.unwrap().unwrap(), model(1).pop_first().unwrap());
    });
    assert_eq!(world.simulation.statistics().dropped_operations, 0);
}

#[test]
fn a_retired_run_goes_with_its_last_user() {
    let world = World::new(6);
    let (_, run) = world.written(&model(1_000));
    let cursor = run.cursor(Bound::Unbounded, Use::Scan);
    run.retire();
    drop(run);
    let disk = world.simulation.disk(world.host);
    assert!(disk.files().contains(&path()));
    world.run(move |runtime| async move {
        drop(cursor);
        runtime.sleep(std::time::Duration::from_secs(1)).await;
    });
    assert!(!disk.files().contains(&path()));
}

#[test]
fn a_run_without_items() {
    let world = World::new(7);
    let (record, run) = world.written(&Model::new());
    assert_eq!((record.items, run.get_now(b""), run.get_now(b"k")), (0, Now::Absent, Now::Absent));
    assert_eq!(world.walk(&run, Bound::Unbounded, Use::Scan, 1).unwrap(), []);
    world.verify(&run).unwrap();
}

/// All that can be asked of a damaged file: each answer is right or says that it is damaged, and whoever reads all
/// of it is told.
fn right_or_damaged(world: &World, record: RunRecord, model: &Model, why: &str) {
    let run = match world.open(record, &RunCaches::new(1 << 20, 1 << 20)) {
        Ok(run) => run,
        error => {
            corruption(error, why);
            return;
        }
    };
    corruption(world.verify(&run), why);
    match world.walk(&run, Bound::Unbounded, Use::Merge, usize::MAX) {
        Ok(items) => assert!(items.into_iter().eq(model.clone()), "{why}"),
        error => {
            corruption(error, why);
        }
    }
    for (key, entry) in model.iter().step_by(model.len() / 6) {
        match world.get(&run, key) {
            Ok(read) => assert_eq!(read.as_ref(), Some(entry), "{why}"),
            error => {
                corruption(error, why);
            }
        }
    }
}

#[test]
fn every_flipped_byte_is_found() {
    let world = World::new(8);
    let model = model(300);
    let record = world.write(IDENTITY, &model, 300);
    let length = world.bytes().len() as u64;
    assert!((6..12).contains(&(length / BLOCK_SIZE as u64)), "{length}");
    let disk = world.simulation.disk(world.host);
    for at in (0..length).filter(|at| at % 4096 < 64 || at % 7 == 0) {
        disk.flip_bit(path(), at, (at % 8) as u8);
        right_or_damaged(&world, record, &model, &format!("byte {at}"));
        disk.flip_bit(path(), at, (at % 8) as u8);
    }
    let run = world.open(record, &RunCaches::new(0, 0)).unwrap();
    world.verify(&run).unwrap();
}

#[test]
fn truncated_swapped_and_older_files_are_found() {
    let world = World::new(9);
    let model = model(2_000);
    let disk = world.simulation.disk(world.host);
    let older = world.write(IDENTITY, &model, 2_000);
    let older_bytes = world.bytes();
    let record = world.write(IDENTITY, &model, 2_000);
    let bytes = world.bytes();
    assert_eq!(older_bytes.len(), bytes.len(), "the same items, written twice");
    assert_ne!(older.root, record.root);
    let (unit, caches) = (BLOCK_SIZE, RunCaches::new(0, 0));
    for blocks in 0..bytes.len() / unit {
        disk.truncate(path(), (blocks * unit) as u64);
        corruption(world.open(record, &caches), "a shorter file");
    }
    disk.overwrite(path(), 0, &bytes);
    world.verify(&world.open(record, &caches).unwrap()).unwrap();
    // Whole blocks of the older file, and of elsewhere in this one.
    for block in 0..bytes.len() / unit {
        let place = block * unit..(block + 1) * unit;
        let other = (block + 1) % (bytes.len() / unit) * unit;
        for wrong in [&older_bytes[place.clone()], &bytes[other..other + unit]] {
            disk.overwrite(path(), place.start as u64, wrong);
            right_or_damaged(&world, record, &model, &format!("block {block}"));
        }
        disk.overwrite(path(), place.start as u64, &bytes[place]);
    }
    // The older file whole, and another shard's and another log's.
    disk.overwrite(path(), 0, &older_bytes);
    corruption(world.open(record, &caches), "an older file");
    let others = [
        RunIdentity { shard: ShardId(8), ..IDENTITY },
        RunIdentity { number: 43, ..IDENTITY },
        RunIdentity { log: LogId(4), number: 44, ..IDENTITY },
        RunIdentity { nonce: 1, number: 45, ..IDENTITY },
    ];
    for other in others {
        let foreign = world.write(other, &model, 2_000);
        let bytes = disk.read(other.path(Path::new(DIRECTORY))).unwrap();
        disk.overwrite(path(), 0, &bytes);
        corruption(world.open(RunRecord { number: 42, ..foreign }, &caches), "another file");
    }
    disk.remove(path());
    let missing = corruption(world.open(record, &caches), "no file");
    assert_eq!(missing.offset, 0);
}

#[test]
fn failed_reads_and_writes_are_errors_of_the_machine() {
    let world = World::new(10);
    let model = model(3_000);
    let (record, run) = world.written(&model);
    let disk = world.simulation.disk(world.host);
    let key = model.keys().nth(5).unwrap();
    disk.fail_reads(1);
    assert!(matches!(world.get(&run, key), Err(ReadError::Io { .. })));
    assert_eq!(world.get(&run, key).unwrap().as_ref(), model.get(key), "the next one is right");
    disk.fail_reads(1);
    assert!(matches!(world.open(record, &RunCaches::new(0, 0)), Err(ReadError::Io { .. })));
    let other = RunIdentity { number: 50, ..IDENTITY };
    disk.fail_writes(1);
    let failed = world.run(move |runtime| async move {
        let directory = Path::new(DIRECTORY);
        let mut writer = RunWriter::create(&runtime, directory, other, 1).await.unwrap();
        writer.add(b"key", &put(1)).await.unwrap();
        let failed = writer.finish().await;
        remove_failed(&runtime, directory, &other).await;
        failed
    });
    assert!(failed.is_err());
    assert!(!disk.files().contains(&other.path(Path::new(DIRECTORY))));
}

#[test]
fn a_finished_run_survives_a_crash() {
    let world = World::new(11);
    let model = model(5_000);
    let record = world.write(IDENTITY, &model, 5_000);
    world.simulation.crash(world.host);
    let run = world.open(record, &RunCaches::new(0, 1 << 20)).unwrap();
    world.verify(&run).unwrap();
}

#[test]
fn verifying_keeps_to_its_pace() {
    let world = World::new(12);
    let (record, run) = world.written(&model(50_000));
    let before = world.simulation.now();
    world.run(move |_| async move { run.verify(Some(1 << 20)).await }).unwrap();
    let took = world.simulation.now() - before;
    assert!(took.as_millis() as u64 >= record.length * 990 / (1 << 20), "{took:?}");
}

#[test]
fn names() {
    assert_eq!(path(), PathBuf::from("/data/log0/run-7-42"));
    assert_eq!(parse_name(&path()), Some((ShardId(7), 42)));
    for name in ["run-7", "run--1", "run-7-x", "checkpoint-7-42", "run-7-42-1", ""] {
        assert_eq!(parse_name(Path::new(name)), None, "{name}");
    }
}
