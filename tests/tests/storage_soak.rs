//! One log of the engine on the real machine, overwritten and deleted from at full speed by a process that is killed
//! again and again: its disk use stays within the bound at all times, and its contents are those of the model.
//!
//! The process is this test program itself, started again with [`CHILD`] set. What it writes follows from the seed
//! alone: entry `index` of a shard always does the same. Thus the last index that a log has after a kill tells what
//! it must hold, key by key, and nothing that was acknowledged may lie behind it.
//!
//! The ordinary suite takes some 25 s; `KRITA_LONG=1` makes it 10 minutes over ten times as many keys.

#![allow(clippy::disallowed_methods, reason = "this test runs and kills a real process")]

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{LocalBoxFuture, poll_immediate};
use krita_engine::{
    Change, CheckpointMeta, EntryRecord, HardState, Index, KeyRegion, LogError, LogId, NewShard, Options,
    ReadError, RecoveredShard, ReplicaId, ShardId, Store, Term, VALUE_CHECKSUM_BYTES, open, value_checksum,
};
use krita_runtime::glommio::{GlommioRuntime, NodeOptions, block_on};
use krita_runtime::{Clock, Disk, Spawn, TaskClass};
use krita_tests::process::{Stopwatch, TestDirectory};
use serde_json::{Value, json};

/// Set for the process that is killed: what it needs to know, in JSON.
const CHILD: &str = "KRITA_SOAK_CHILD";

/// In front of what that process tells its parent; the test framework says things of its own.
const MARK: &str = "told: ";

/// The shards of the log.
const SHARDS: u32 = 8;

/// All entries are of this term.
const TERM: Term = Term(1);

/// Entries of one batch, over all shards.
const BATCH_ENTRIES: u64 = 64;

/// Batches under way at once.
const BATCHES_IN_FLIGHT: usize = 4;

/// One put of so many is of a value that is written in several pieces.
const LARGE_EVERY: u64 = 5_000;

/// How often the writer tells what it has done.
const TELL_INTERVAL: Duration = Duration::from_millis(40);

/// How often the log is asked whether a checkpoint is due.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(50);

/// A writer that says nothing for this long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The bound on disk use: so many times what is alive, and so many segments.
const LIVE_FACTOR: u64 = 2;
const SEGMENTS_ABOVE: u64 = 4;

/// How large the log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Scale {
    keys: u64,
    segment_bytes: u64,
    soak: Duration,
    /// A writer lives for this long at least, and up to four times as long.
    life: Duration,
}

impl Scale {
    fn of_this_run() -> Self {
        if std::env::var("KRITA_LONG").is_ok_and(|value| value == "1") {
            let (soak, life) = (Duration::from_secs(600), Duration::from_secs(5));
            Self { keys: 200_000, segment_bytes: 16 << 20, soak, life }
        } else {
            let (soak, life) = (Duration::from_secs(20), Duration::from_secs(1));
            Self { keys: 20_000, segment_bytes: 4 << 20, soak, life }
        }
    }

    fn bound(&self, live_bytes: u64) -> u64 {
        LIVE_FACTOR * live_bytes + SEGMENTS_ABOVE * self.segment_bytes
    }
}

/// A bijection of 64-bit numbers that leaves no order: the finalizer of SplitMix64.
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// What one entry does. It follows from its shard and index alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Operation {
    shard: u32,
    index: u64,
    key: u64,
    /// The length of the value that is put; none for a delete.
    value_length: Option<usize>,
}

impl Operation {
    fn at(scale: Scale, shard: u32, index: u64) -> Self {
        let chance = mix(mix(u64::from(shard) + 1) ^ index);
        let keys = scale.keys / u64::from(SHARDS);
        let more = mix(chance);
        let value_length = match more % 5 {
            0 => None,
            _ if (more >> 8).is_multiple_of(LARGE_EVERY) => Some(700_000),
            _ => Some(200 + (more >> 32) as usize % 1_800),
        };
        // The first entries fill the shard, so that the bound is put to the test at once.
        let (key, value_length) = match index - 1 {
            first if first < keys => (first, Some(value_length.unwrap_or(1_000))),
            _ => (chance % keys, value_length),
        };
        Self { shard, index, key, value_length }
    }

    fn key(&self) -> Bytes {
        key(self.shard, self.key)
    }

    fn value(&self) -> Option<Vec<u8>> {
        let length = self.value_length?;
        let mut state = mix(self.index ^ (u64::from(self.shard) << 48));
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            state = state.wrapping_add(1);
            bytes.extend_from_slice(&mix(state).to_le_bytes());
        }
        bytes.truncate(length);
        Some(bytes)
    }

    /// `[0][key]` for a delete, `[1][key][checksum][value]` for a put.
    fn payload(&self) -> Bytes {
        let key = self.key();
        let Some(value) = self.value() else { return [&[0], &key[..]].concat().into() };
        let checksum = value_checksum(&key, &value).to_le_bytes();
        [&[1], &key[..], &checksum[..], &value[..]].concat().into()
    }
}

const KEY_BYTES: usize = 16;
const REGION_AT: usize = 1 + KEY_BYTES;

fn key(shard: u32, number: u64) -> Bytes {
    let key = format!("{shard:02}-{number:013}");
    assert_eq!(key.len(), KEY_BYTES, "keys have one length");
    key.into()
}

fn regions_of(_kind: u8, payload: &[u8]) -> Vec<KeyRegion> {
    let length = payload.len().saturating_sub(REGION_AT) as u32;
    if payload.first() != Some(&1) || length < VALUE_CHECKSUM_BYTES {
        return Vec::new();
    }
    vec![KeyRegion { key_offset: 1, key_length: KEY_BYTES as u32, offset: REGION_AT as u32, length }]
}

/// What a payload says that an entry does.
fn changes(payload: &Bytes) -> Vec<Change> {
    let key = payload.slice(1..REGION_AT);
    match payload[0] {
        0 => vec![Change::Delete { key }],
        _ => {
            let payload_length = (payload.len() - REGION_AT) as u32;
            vec![Change::Put { key, payload_offset: REGION_AT as u32, payload_length, value: None }]
        }
    }
}

/// What the log must hold: for each shard the index of each key's last put.
struct Model {
    scale: Scale,
    shards: Vec<ShardModel>,
    live_bytes: u64,
}

#[derive(Default)]
struct ShardModel {
    applied: u64,
    keys: BTreeMap<u64, u64>,
}

impl Model {
    fn new(scale: Scale) -> Self {
        let shards = (0..SHARDS).map(|_| ShardModel::default()).collect();
        Self { scale, shards, live_bytes: 0 }
    }

    fn apply(&mut self, shard: u32) {
        let state = &mut self.shards[shard as usize];
        state.applied += 1;
        let operation = Operation::at(self.scale, shard, state.applied);
        let before = match operation.value_length {
            Some(length) => {
                self.live_bytes += (KEY_BYTES + length) as u64;
                state.keys.insert(operation.key, operation.index)
            }
            None => state.keys.remove(&operation.key),
        };
        if let Some(index) = before {
            let length = Operation::at(self.scale, shard, index).value_length.expect("it was a put");
            self.live_bytes -= (KEY_BYTES + length) as u64;
        }
    }
}

/// What a writer is told.
#[derive(Clone, Debug)]
struct Orders {
    directory: PathBuf,
    scale: Scale,
    /// For each shard the last entry whose acknowledgement the parent has heard.
    acknowledged: Vec<u64>,
    /// Check the contents and end.
    only_check: bool,
}

impl Orders {
    fn to_json(&self) -> String {
        let Scale { keys, segment_bytes, .. } = self.scale;
        json!({
            "directory": self.directory.to_str().expect("a plain path"),
            "keys": keys,
            "segment_bytes": segment_bytes,
            "acknowledged": self.acknowledged,
            "only_check": self.only_check,
        })
        .to_string()
    }

    /// The log's own directory: the lock lies above it.
    fn log_directory(&self) -> PathBuf {
        self.directory.join("log-000")
    }

    fn from_json(text: &str) -> Self {
        let value: Value = serde_json::from_str(text).expect("the parent writes JSON");
        let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {text}"));
        Self {
            directory: value["directory"].as_str().expect("a path").into(),
            scale: Scale {
                keys: number("keys"),
                segment_bytes: number("segment_bytes"),
                soak: Duration::ZERO,
                life: Duration::ZERO,
            },
            acknowledged: numbers(&value["acknowledged"]),
            only_check: value["only_check"].as_bool().expect("a flag"),
        }
    }
}

fn numbers(value: &Value) -> Vec<u64> {
    let items = value.as_array().expect("an array").iter();
    items.map(|item| item.as_u64().expect("a number")).collect()
}

/// Not a test by itself: the process that [`contents_and_disk_use_survive_kills`] kills runs here.
#[test]
fn writer_of_the_soak() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let orders = Orders::from_json(&text);
    let main = |runtime| async move { Writer::open(runtime, &orders).await.run(&orders).await };
    block_on(NodeOptions::default(), main).expect("an executor starts");
}

fn options(orders: &Orders) -> Options {
    Options {
        segment_bytes: u32::try_from(orders.scale.segment_bytes).expect("segments are small"),
        batch_bytes_max: 1 << 20,
        piece_bytes: 256 << 10,
        value_cache_bytes: 1 << 20,
        block_cache_bytes: 1 << 20,
        memtable_bytes: 4 << 20,
        checkpoint_after_bytes: orders.scale.segment_bytes,
        regions_of: Some(regions_of),
        ..Options::new(orders.log_directory(), LogId(0))
    }
}

/// An entry and its payload, on their way to the disk.
type Entries = Vec<(u32, u64, Bytes)>;
type Flight = LocalBoxFuture<'static, Result<(), LogError>>;

struct Writer {
    store: Store<GlommioRuntime>,
    runtime: GlommioRuntime,
    model: Model,
    /// The last entry of each shard that was handed to the log.
    submitted: Vec<u64>,
    in_flight: VecDeque<(Entries, Flight)>,
    log_directory: PathBuf,
}

impl Writer {
    /// Opens the log, applies what lies behind its checkpoints, and checks what it holds.
    async fn open(runtime: GlommioRuntime, orders: &Orders) -> Self {
        runtime.create_directory(&orders.directory).await.expect("the directory is writable");
        // The process before this one may still have writes in flight, for as long as its lock is there.
        while let Err(error) = runtime.lock_directory(&orders.directory).await {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
            runtime.sleep(Duration::from_millis(5)).await;
        }
        let (store, shards) =
            open(runtime.clone(), options(orders)).await.unwrap_or_else(|error| panic!("{error}"));
        if shards.is_empty() {
            let new = (0..SHARDS).map(|shard| NewShard {
                shard: ShardId(shard),
                replica: ReplicaId(u64::from(shard) + 1),
                meta: CheckpointMeta::default(),
                hard_state: HardState { term: TERM, vote: Some(1), commit: Index(0) },
            });
            store.create_shards(new.collect()).await.unwrap_or_else(|error| panic!("{error}"));
        }
        let mut writer = Self {
            store,
            runtime,
            model: Model::new(orders.scale),
            submitted: vec![0; SHARDS as usize],
            in_flight: VecDeque::new(),
            log_directory: orders.log_directory(),
        };
        for shard in &shards {
            writer.apply_again(shard).await;
        }
        for (shard, acknowledged) in (0..).zip(&orders.acknowledged) {
            let last = writer.submitted[shard as usize];
            assert!(last >= *acknowledged, "shard {shard} lost entries: {last} of {acknowledged} are left");
        }
        writer
    }

    async fn apply_again(&mut self, shard: &RecoveredShard) {
        let (id, last) = (shard.shard, shard.last_index);
        assert_eq!(shard.suspect, None, "a kill makes nothing suspect");
        let mut next = shard.checkpoint.applied.next();
        while next <= last {
            let entries = self.store.read_entries(id, next, last, 4 << 20).await;
            for entry in entries.unwrap_or_else(|error| panic!("{error}")) {
                self.store.apply(id, entry.index, changes(&entry.payload));
                next = entry.index.next();
            }
        }
        (0..last.0).for_each(|_| self.model.apply(id.0));
        self.submitted[id.0 as usize] = last.0;
    }

    /// Compares all that the log holds with the model.
    async fn check(&self) {
        const PAGE: usize = 1_000;
        for (shard, state) in (0..).zip(&self.model.shards) {
            let mut expected = state.keys.iter();
            let mut start: Vec<u8> = Vec::new();
            loop {
                let page = self.store.scan(ShardId(shard), &start, None, PAGE).await;
                let page = page.unwrap_or_else(|error| panic!("{error}"));
                for (found, slot) in &page {
                    let (number, index) = expected.next().expect("no key but those of the model");
                    let wanted = key(shard, *number);
                    assert_eq!((found, slot.version.0), (&wanted, *index), "shard {shard}");
                    let value = self.value(ShardId(shard), found).await;
                    let operation = Operation::at(self.model.scale, shard, *index);
                    assert!(value.as_deref() == operation.value().as_deref(), "{found:?} has a wrong value");
                }
                match page.last() {
                    Some((last, _)) if page.len() == PAGE => start = [&last[..], &[0]].concat(),
                    _ => break,
                }
            }
            assert_eq!(expected.next(), None, "shard {shard} lacks a key");
        }
    }

    async fn value(&self, shard: ShardId, key: &[u8]) -> Option<Bytes> {
        loop {
            let slot = self.store.get(shard, key).await.unwrap_or_else(|error| panic!("{error}"))?;
            match self.store.value(shard, key, &slot).await {
                Ok(value) => return Some(value),
                // It was moved meanwhile.
                Err(ReadError::Stale) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Checks, then writes until killed.
    async fn run(mut self, orders: &Orders) {
        self.check().await;
        self.tell("checked");
        if orders.only_check {
            return;
        }
        let failed = self.spawn_checkpoints();
        let mut tell_at = self.runtime.now();
        loop {
            while self.in_flight.len() < BATCHES_IN_FLIGHT {
                self.submit().await;
            }
            self.complete_one().await;
            if let Some(failed) = failed.borrow().as_ref() {
                panic!("a checkpoint failed: {failed}");
            }
            if self.runtime.now() >= tell_at {
                self.tell("writing");
                tell_at = self.runtime.now() + TELL_INTERVAL;
            }
        }
    }

    fn tell(&self, state: &str) {
        let acknowledged: Vec<u64> = self.model.shards.iter().map(|shard| shard.applied).collect();
        let live_bytes = self.model.live_bytes;
        let seen = self.store.statistics();
        let segments = json!({
            "all": seen.segments,
            "spare": seen.segments_spare,
            "evacuated": seen.segments_evacuated,
            "dead_bytes": seen.dead_bytes,
        });
        // What is alive and what is used must be of one moment.
        let usage = usage(&self.log_directory);
        let line = json!({
            "state": state,
            "acknowledged": acknowledged,
            "live_bytes": live_bytes,
            "segments": segments,
            "usage": usage,
        });
        println!("{MARK}{line}");
    }

    /// Hands a batch to the log.
    async fn submit(&mut self) {
        let mut batch = self.store.batch();
        let mut entries = Entries::new();
        for at in 0..BATCH_ENTRIES {
            let shard = (at % u64::from(SHARDS)) as u32;
            let last = &mut self.submitted[shard as usize];
            *last += 1;
            let payload = Operation::at(self.model.scale, shard, *last).payload();
            entries.push((shard, *last, payload.clone()));
            let (index, kind) = (Index(*last), 0);
            batch.entry(ShardId(shard), EntryRecord { index, term: TERM, kind, payload });
        }
        let store = self.store.clone();
        let mut flight: Flight = Box::pin(async move { store.write(batch).await });
        // The first poll takes the place in the queue.
        let refused = poll_immediate(&mut flight).await;
        assert!(refused.is_none(), "the log refuses entries: {refused:?}");
        self.in_flight.push_back((entries, flight));
    }

    async fn complete_one(&mut self) {
        let Some((entries, flight)) = self.in_flight.pop_front() else { return };
        flight.await.unwrap_or_else(|error| panic!("{error}"));
        for (shard, index, payload) in entries {
            self.store.apply(ShardId(shard), Index(index), changes(&payload));
            self.model.apply(shard);
            assert_eq!(self.model.shards[shard as usize].applied, index, "entries are applied in order");
        }
    }

    fn spawn_checkpoints(&self) -> Rc<RefCell<Option<String>>> {
        let (store, runtime) = (self.store.clone(), self.runtime.clone());
        let failed = Rc::new(RefCell::new(None));
        let told = failed.clone();
        let task = async move {
            loop {
                let Some(shard) = store.checkpoint_due() else {
                    runtime.sleep(CHECKPOINT_INTERVAL).await;
                    continue;
                };
                let applied = store.applied(shard).expect("a shard that is due is here");
                let meta = CheckpointMeta { applied, term: TERM, ..CheckpointMeta::default() };
                if let Err(error) = store.checkpoint(shard, meta).await {
                    told.replace(Some(error.to_string()));
                    return;
                }
            }
        };
        self.runtime.spawn(TaskClass::Background, "checkpoints", task);
        failed
    }
}

/// A writer, as its parent sees it. Dropping it kills it.
struct Running {
    child: Child,
    lines: Receiver<Value>,
}

impl Running {
    fn start(orders: &Orders) -> Self {
        let program = std::env::current_exe().expect("a running program has a path");
        let mut command = Command::new(program);
        command.args(["--exact", "writer_of_the_soak", "--nocapture", "--test-threads=1"]);
        command.env(CHILD, orders.to_json()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program starts again");
        let stdout = child.stdout.take().expect("stdout was piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The framework begins the first line.
                let told = line.split_once(MARK).and_then(|(_, json)| serde_json::from_str(json).ok());
                if let Some(told) = told
                    && sender.send(told).is_err()
                {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// What it tells next; none if it has ended.
    fn next(&self) -> Option<Value> {
        match self.lines.recv_timeout(SILENCE_MAX) {
            Ok(told) => Some(told),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the writer has said nothing for {SILENCE_MAX:?}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For each kind of file in a directory (what stands in front of the first `-`): how many there are, and the bytes that
/// the file system has given to them.
type Usage = BTreeMap<String, (u64, u64)>;

fn usage(directory: &Path) -> Usage {
    let mut usage = Usage::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // A file may go while one looks.
        let Ok(metadata) = entry.metadata() else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = name.split('-').next().unwrap_or_default().to_owned();
        let (files, bytes) = usage.entry(kind).or_default();
        *files += 1;
        *bytes += metadata.blocks() * 512;
    }
    usage
}

/// What the soak has seen.
#[derive(Default, Debug)]
struct Seen {
    kills: u64,
    samples: u64,
    /// The largest share of the bound that was in use, with what was then in use, the bytes alive, and the log's own
    /// account of its segments.
    worst: (f64, Usage, u64, Value),
    over: u64,
}

impl Seen {
    /// Judges what the writer told of the disk. True if more than the bound is used.
    fn sample(&mut self, scale: Scale, told: &Value) -> bool {
        let usage: Usage =
            serde_json::from_value(told["usage"].clone()).expect("a writer tells what is used");
        let live_bytes = told["live_bytes"].as_u64().expect("a number");
        let disk_bytes: u64 = usage.values().map(|(_, bytes)| bytes).sum();
        let share = disk_bytes as f64 / scale.bound(live_bytes) as f64;
        self.samples += 1;
        self.over += u64::from(share > 1.0);
        if share > self.worst.0 {
            self.worst = (share, usage, live_bytes, told["segments"].clone());
        }
        share > 1.0
    }
}

#[test]
fn contents_and_disk_use_survive_kills() {
    let scale = Scale::of_this_run();
    let directory = TestDirectory::new("soak");
    let mut orders = Orders {
        directory: directory.path().join("data"),
        scale,
        acknowledged: vec![0; SHARDS as usize],
        only_check: false,
    };
    let watch = Stopwatch::start();
    let mut seen = Seen::default();
    while watch.elapsed() < scale.soak {
        let life = scale.life * u32::try_from(1 + mix(seen.kills) % 4).expect("a small number");
        let running = Running::start(&orders);
        let mut since = None;
        loop {
            let told = running.next().expect("a writer goes on until it is killed");
            let since = *since.get_or_insert_with(Stopwatch::start);
            orders.acknowledged = numbers(&told["acknowledged"]);
            if seen.sample(scale, &told) {
                println!(
                    "{:.2?} after the start of life {}: {}",
                    since.elapsed(),
                    seen.kills,
                    told["segments"]
                );
            }
            if since.elapsed() >= life {
                break;
            }
        }
        drop(running);
        seen.kills += 1;
    }
    orders.only_check = true;
    let mut running = Running::start(&orders);
    let told = running.next().expect("the contents are those of the model");
    let live_bytes = told["live_bytes"].as_u64().expect("a number");
    seen.sample(scale, &told);
    assert!(running.child.wait().is_ok_and(|status| status.success()), "the last check ends well");
    let entries: u64 = orders.acknowledged.iter().sum();
    let (share, worst_usage, worst_live, worst_segments) = &seen.worst;
    println!(
        "{:.0?}: {} kills, {entries} entries, {} looks at the disk, {} above the bound; {live_bytes} bytes alive at \
         the end; at worst {:.0} % of the bound, with {worst_live} alive: {worst_usage:?} {worst_segments}",
        watch.elapsed(),
        seen.kills,
        seen.samples,
        seen.over,
        100.0 * share
    );
    assert_eq!(seen.over, 0, "of {} looks so many found the disk use above the bound", seen.samples);
}
