//! What the engine's tests share: a small world with one host, options with small segments, a payload format,
//! and the loop over seeds.
// Each test crate uses a part of this.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use krita_engine::{
    Change, CheckpointMeta, EntryRecord, HardState, Index, KeyRegion, LogId, OpenError, Options, ReadError,
    RecoveredShard, ReplicaId, ShardId, Store, Term, open, value_checksum,
};
use krita_runtime::sim::{HostId, SimRuntime, Simulation, SimulationOptions};

pub type SimStore = Store<SimRuntime>;
pub type Opened = Result<(SimStore, Vec<RecoveredShard>), OpenError>;
/// A shard's keys: version and value.
pub type State = BTreeMap<Bytes, (Index, Bytes)>;

pub const BLOCK: usize = 4096;
pub const DIRECTORY: &str = "/data/log0";
pub const SHARD: ShardId = ShardId(1);
pub const REPLICA: ReplicaId = ReplicaId(11);

/// Small segments, so that a short test sees many lives of each.
pub fn options() -> Options {
    Options {
        segment_bytes: 128 << 10,
        segments_spare: 1,
        batch_bytes_max: 48 << 10,
        piece_bytes: 16 << 10,
        value_cache_bytes: 64 << 10,
        checkpoint_after_bytes: 64 << 10,
        replay_segments_max: 4,
        entries_kept: 8,
        seal_after: Duration::from_millis(1),
        reserve_bytes: 0,
        memtable_bytes: 16 << 10,
        block_cache_bytes: 16 << 10,
        snapshot_floor_bytes: 256 << 10,
        regions_of: Some(regions_of),
        compaction_factor: 0.5,
        ..Options::new(PathBuf::from(DIRECTORY), LogId(0))
    }
}

pub struct World {
    pub simulation: Simulation,
    pub host: HostId,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let simulation = Simulation::new(seed, SimulationOptions::default());
        let host = simulation.add_host("node1");
        Self { simulation, host }
    }

    pub fn try_open(&self) -> Opened {
        self.simulation.block_on(self.host, |runtime| open(runtime, options()))
    }

    pub fn open(&self) -> (SimStore, Vec<RecoveredShard>) {
        self.try_open().unwrap_or_else(|error| panic!("the log opens: {error}"))
    }

    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.simulation.block_on(self.host, |_| future)
    }

    /// A store with one fresh shard.
    pub fn with_shard(&self) -> SimStore {
        let (store, shards) = self.open();
        assert!(shards.is_empty());
        let created = store.clone();
        self.run(async move { created.create_shard(SHARD, REPLICA, CheckpointMeta::default()).await })
            .unwrap();
        store
    }

    pub fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let start = format!("{DIRECTORY}/{prefix}");
        let files = self.simulation.disk(self.host).files();
        files.into_iter().filter(|path| path.to_string_lossy().starts_with(&start)).collect()
    }

    pub fn read(&self, path: impl AsRef<Path>) -> Vec<u8> {
        self.simulation.disk(self.host).read(path).expect("the file is there")
    }
}

/// What an entry does.
#[derive(Clone, Debug)]
pub enum Operation {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

pub fn encode(operations: &[Operation]) -> Bytes {
    let mut out = vec![operations.len() as u8];
    for operation in operations {
        let (tag, key) = match operation {
            Operation::Put(key, _) => (1, key),
            Operation::Delete(key) => (0, key),
        };
        out.push(tag);
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(key);
        if let Operation::Put(key, value) = operation {
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(&value_checksum(key, value).to_le_bytes());
            out.extend_from_slice(value);
        }
    }
    out.into()
}

/// What an entry's payload puts.
pub fn regions_of(_kind: u8, payload: &[u8]) -> Vec<KeyRegion> {
    let puts = changes(Index(0), &Bytes::copy_from_slice(payload), &mut State::new(), false);
    let region = |change| match change {
        Change::Put { key, payload_offset, payload_length, .. } => {
            let key_length = key.len() as u32;
            let key_offset = payload_offset - 4 - key_length;
            Some(KeyRegion { key_offset, key_length, offset: payload_offset, length: payload_length })
        }
        Change::Delete { .. } => None,
    };
    puts.into_iter().filter_map(region).collect()
}

/// The changes of an entry, for the store, and what they do to `state`.
pub fn changes(index: Index, payload: &Bytes, state: &mut State, warm: bool) -> Vec<Change> {
    let mut position = 1;
    let mut changes = Vec::new();
    for _ in 0..payload.first().copied().unwrap_or(0) {
        let tag = payload[position];
        let length = u16::from_le_bytes(payload[position + 1..position + 3].try_into().unwrap()) as usize;
        position += 3;
        let key = payload.slice(position..position + length);
        position += length;
        if tag == 0 {
            state.remove(&key);
            changes.push(Change::Delete { key });
            continue;
        }
        let length = u32::from_le_bytes(payload[position..position + 4].try_into().unwrap()) as usize;
        position += 4;
        let value = payload.slice(position + 4..position + 4 + length);
        state.insert(key.clone(), (index, value.clone()));
        changes.push(Change::Put {
            key,
            payload_offset: position as u32,
            payload_length: 4 + length as u32,
            value: warm.then_some(value),
        });
        position += 4 + length;
    }
    changes
}

pub fn entry(index: u64, term: u64, operations: &[Operation]) -> EntryRecord {
    EntryRecord { index: Index(index), term: Term(term), kind: 0, payload: encode(operations) }
}

pub fn put(key: &str, value: impl Into<Bytes>) -> Operation {
    Operation::Put(Bytes::copy_from_slice(key.as_bytes()), value.into())
}

/// Writes one entry and applies it.
pub async fn write_and_apply(store: &SimStore, index: u64, operations: &[Operation]) {
    let record = entry(index, 1, operations);
    let mut batch = store.batch();
    batch.entry(SHARD, record.clone());
    store.write(batch).await.unwrap();
    let changes = changes(record.index, &record.payload, &mut State::new(), false);
    store.apply(SHARD, record.index, changes);
}

pub async fn write_entries(store: &SimStore, shard: ShardId, entries: Vec<EntryRecord>) {
    let mut batch = store.batch();
    for entry in entries {
        batch.entry(shard, entry);
    }
    store.write(batch).await.unwrap();
}

pub async fn write_hard_state(store: &SimStore, shard: ShardId, state: HardState) {
    let mut batch = store.batch();
    batch.hard_state(shard, state);
    store.write(batch).await.unwrap();
}

pub async fn checkpoint(store: &SimStore) {
    let meta = CheckpointMeta {
        applied: store.applied(SHARD).unwrap(),
        term: Term(1),
        configuration: Bytes::from_static(b"members"),
        machine: Bytes::from_static(b"sessions"),
        generation: 0,
    };
    store.checkpoint(SHARD, meta).await.unwrap();
}

/// Every key with its value, read back from the store.
pub async fn content(store: &SimStore, shard: ShardId) -> State {
    let mut state = State::new();
    for (key, slot) in store.scan(shard, b"", None, usize::MAX).await.unwrap() {
        let mut slot = slot;
        let value = loop {
            match store.value(shard, &key, &slot).await {
                Ok(value) => break value,
                // Moved since the scan, and its segment used again.
                Err(ReadError::Stale) => slot = store.get(shard, &key).await.unwrap().expect("it was moved"),
                Err(error) => panic!("{shard}: {error}"),
            }
        };
        state.insert(key, (slot.version, value));
    }
    state
}

/// Runs `test` for many seeds; the environment's KRITA_SEED alone, or KRITA_SEEDS of them.
pub fn for_seeds(name: &str, count: u64, mut test: impl FnMut(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("KRITA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KRITA_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("replay with: KRITA_SEED={seed} cargo test -p krita-engine --test {name}");
            resume_unwind(panic);
        }
    }
}

/// No seal unless a test asks for one.
pub fn unsealed() -> Options {
    Options { seal_after: Duration::from_secs(10_000), ..options() }
}

pub fn open_with(world: &World, options: Options) -> Opened {
    world.simulation.block_on(world.host, |runtime| open(runtime, options))
}

/// A store with one fresh shard, opened with these options.
pub fn create(world: &World, options: Options) -> SimStore {
    let (store, _) = open_with(world, options).unwrap();
    let created = store.clone();
    world.run(async move { created.create_shard(SHARD, REPLICA, CheckpointMeta::default()).await }).unwrap();
    store
}

/// Where the batches of a segment start, by walking their headers.
pub fn batches(segment: &[u8]) -> Vec<usize> {
    let mut offsets = Vec::new();
    let mut offset = BLOCK;
    while segment.get(offset + 16..offset + 20) == Some(b"KBAT") {
        offsets.push(offset);
        let length = u32::from_le_bytes(segment[offset + 36..offset + 40].try_into().unwrap());
        offset += (length as usize).next_multiple_of(BLOCK);
    }
    offsets
}
