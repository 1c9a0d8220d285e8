//! Real processes that are killed under load, driven by the Rust client: a leader of a busy cluster again and again,
//! and all nodes at once behind a large load of text.
//!
//! The ordinary suite kills six leaders; `KRITA_LONG=1` makes it twenty. The commands must have been built with the
//! profile of the tests; `cargo xtask test` does so. By itself:
//! `cargo build --profile test --workspace --bins && cargo test -p krita-tests --test cluster_kills`.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::routing::shard_of;
use krita_tests::history::{Action, Condition, History, OperationId, Outcome, Recorder};
use krita_tests::linearizability::{Verdict, check};
use krita_tests::process::{Cluster, Stopwatch, wait_until};
use krita_tests::source::files;
use kritaclient::blocking::Client;
use kritaclient::{Entry, Error, MemberHealth, WriteOptions};

/// Within what writes must go on when one of three nodes has died.
const RESUME_MAX: Duration = Duration::from_secs(3);

/// What a machine that has more to do than to run this test may add to it before the test fails.
const RESUME_TOLERATED: Duration = Duration::from_secs(5);

/// Within what a node that was started again has caught up, on a busy machine.
const HEALTH_MAX: Duration = Duration::from_secs(60);

/// Keys of the load of text.
const TEXT_KEYS: usize = 100_000;

/// Shards of a cluster, unless it is told otherwise.
const SHARDS: u32 = 64;

/// Threads that work through the kills, each an operation at a time.
const WORKERS: u64 = 8;

/// Threads that count.
const COUNTERS: u64 = 3;

/// Keys that the workers share: few, so that they meet.
const KEYS: usize = 20;

/// Writes that the survivors acknowledge before the killed node comes back.
const WRITES_WITHOUT_THE_NODE: u64 = 300;

/// How often a leader is killed: as often as the ordinary suite has time for, or more with `KRITA_LONG=1`.
fn kills() -> usize {
    let long = std::env::var("KRITA_LONG").is_ok_and(|value| value == "1");
    if long { 20 } else { 6 }
}

fn client(cluster: &Cluster) -> Client {
    Client::connect(cluster.client_options()).unwrap_or_else(|error| panic!("{error}"))
}

/// Waits until every member serves all its shards and sees all the others.
fn await_health(client: &Client) {
    let is_healthy = |member: &MemberHealth| {
        member.status.as_ref().is_ok_and(|status| {
            status.state == "serving"
                && status.problems.is_empty()
                && status.shards_with_leader == status.shards_total
        })
    };
    let mut last = None;
    let healthy = wait_until("all members are healthy", HEALTH_MAX, || {
        let health = client.health();
        let healthy = health.as_ref().is_ok_and(|members| members.iter().all(is_healthy)).then_some(());
        last = Some(health);
        healthy
    });
    healthy.unwrap_or_else(|error| panic!("{error}; the last answer: {last:?}"));
}

/// Waits until all replicas of each shard have applied the same entries, and asserts that they hold the same.
fn assert_replicas_become_equal(cluster: &Cluster, client: &Client) {
    let mut last = BTreeMap::new();
    let equal = wait_until("all replicas have applied the same", HEALTH_MAX, || {
        // Shard to the states of its replicas, as (applied index, hash).
        let mut states: BTreeMap<u32, BTreeSet<(u64, u64)>> = BTreeMap::new();
        let mut replicas = 0;
        for node in cluster.numbers() {
            for shard in client.node_status(&cluster.address(node)).ok()?.shards {
                states.entry(shard.shard).or_default().insert((shard.applied_index, shard.state_hash));
                replicas += 1;
            }
        }
        let applied_the_same = states.values().all(|states| {
            states.iter().map(|(applied_index, _)| applied_index).collect::<BTreeSet<_>>().len() == 1
        });
        let complete = replicas == 3 * states.len() && !states.is_empty();
        last = states;
        (complete && applied_the_same).then_some(())
    });
    equal.unwrap_or_else(|error| panic!("{error}; the last states: {last:?}"));
    let differing: Vec<_> = last.iter().filter(|(_, states)| states.len() != 1).collect();
    assert!(differing.is_empty(), "replicas differ: {differing:?}");
}

/// This many lines of the project's own files, each under a key of its own; from the first file again when they end.
fn real_text(count: usize) -> Vec<(Bytes, Bytes)> {
    let files = files(&[".rs", ".md", ".proto", ".toml", ".lock"]);
    let lines: Vec<(&str, &str)> =
        files.iter().flat_map(|file| file.text.lines().map(|line| (file.path.as_str(), line))).collect();
    let numbered = lines.iter().cycle().take(count).enumerate();
    let pairs = numbered.map(|(number, (path, line))| {
        (format!("text/{path}/{number:06}").into(), Bytes::copy_from_slice(line.as_bytes()))
    });
    pairs.collect()
}

#[test]
fn a_large_load_of_text_survives_the_death_of_all_nodes() {
    const PAIRS_AT_ONCE: usize = 5_000;
    let mut cluster = Cluster::start(3);
    let pairs = real_text(TEXT_KEYS);
    let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
    let loader = client(&cluster);
    let watch = Stopwatch::start();
    let mut versions = Vec::new();
    for piece in pairs.chunks(PAIRS_AT_ONCE) {
        let written = loader.put_many(piece.to_vec()).into_iter();
        versions.extend(written.map(|result| result.unwrap_or_else(|error| panic!("{error}")).version));
    }
    let loaded = watch.elapsed();
    // Right behind the last acknowledgement, all at once.
    for node in cluster.numbers() {
        cluster.kill(node);
    }
    let down = Stopwatch::start();
    for node in cluster.numbers() {
        cluster.start_node(node);
    }
    let reader =
        wait_until("a node answers again", HEALTH_MAX, || Client::connect(cluster.client_options()).ok());
    let reader = reader.unwrap_or_else(|error| panic!("{error}"));
    await_health(&reader);
    let recovered = down.elapsed();
    let watch = Stopwatch::start();
    for (piece, versions) in pairs.chunks(PAIRS_AT_ONCE).zip(versions.chunks(PAIRS_AT_ONCE)) {
        let keys = piece.iter().map(|(key, _)| key.clone()).collect();
        for (((key, value), version), found) in piece.iter().zip(versions).zip(reader.get_many(keys)) {
            let expected = Entry { value: value.clone(), version: *version };
            assert_eq!(found, Ok(Some(expected)), "{key:?}");
        }
    }
    let read = watch.elapsed();
    let listed: Vec<Bytes> =
        reader.list_keys("text/").map(|item| item.unwrap_or_else(|error| panic!("{error}")).key).collect();
    let expected: BTreeSet<&Bytes> = pairs.iter().map(|(key, _)| key).collect();
    assert!(listed.iter().eq(expected), "{} keys are listed, not those that were put", listed.len());
    println!(
        "{} keys, {bytes} bytes: put in {loaded:.2?}; all nodes killed, healthy again after {recovered:.2?}; \
         read back equal in {read:.2?}",
        pairs.len()
    );
}

/// What all threads of the busy cluster share.
struct Scene {
    clients: Vec<Client>,
    keys: Vec<String>,
    recorder: Recorder,
    watch: Stopwatch,
    is_done: AtomicBool,
    tally: Tally,
}

/// How operations ended.
#[derive(Default)]
struct Tally {
    reads: AtomicU64,
    writes: AtomicU64,
    conditions_failed: AtomicU64,
    unavailable: AtomicU64,
    unknown: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    fn text(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} reads and {} writes acknowledged, {} conditions failed, {} unavailable, {} unknown",
            of(&self.reads),
            of(&self.writes),
            of(&self.conditions_failed),
            of(&self.unavailable),
            of(&self.unknown)
        )
    }

    /// What an error says of a write; a read that fails certainly had no effect.
    ///
    /// # Panics
    /// If no kill explains the error.
    fn failed(&self, error: &Error) -> Outcome {
        match error {
            Error::ConditionFailed { current_version, .. } => {
                count(&self.conditions_failed);
                Outcome::ConditionFailed { current_version: Some(*current_version) }
            }
            Error::Unavailable(_) => {
                count(&self.unavailable);
                Outcome::NotApplied
            }
            Error::UnknownOutcome(_) => {
                count(&self.unknown);
                Outcome::Unknown
            }
            other => panic!("no kill explains this error: {other}"),
        }
    }
}

/// A stream of choices; nothing depends on which ones.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's multiplier; the upper bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// One thread at work; it has one operation under way at a time.
struct Worker<'a> {
    scene: &'a Scene,
    client: Client,
    number: u64,
    values: u64,
    choices: Choices,
}

impl<'a> Worker<'a> {
    fn new(scene: &'a Scene, number: u64) -> Self {
        let client = scene.clients[number as usize % scene.clients.len()].clone();
        Self { scene, client, number, values: 0, choices: Choices(number) }
    }

    fn work(mut self) {
        while !self.scene.is_done.load(Ordering::Relaxed) {
            let key = &self.scene.keys[self.choices.below(KEYS as u64) as usize];
            match self.choices.below(10) {
                0..3 => drop(self.get(key)),
                3..6 => drop(self.put(key, Condition::None)),
                6 => self.delete(key, Condition::None),
                7 => self.compare_and_swap(key, false),
                8 => self.compare_and_swap(key, true),
                _ => self.compare_and_delete(key),
            }
        }
    }

    fn invoke(&self, key: &str, action: Action) -> OperationId {
        self.scene.recorder.invoke(self.number, key.to_owned(), action, self.scene.watch.nanoseconds())
    }

    fn complete(&self, operation: OperationId, outcome: Outcome) {
        self.scene.recorder.complete(operation, outcome, self.scene.watch.nanoseconds());
    }

    /// `None` if it failed, else what was found.
    fn get(&self, key: &str) -> Option<Option<Entry>> {
        let operation = self.invoke(key, Action::Get);
        let found = self.client.get(key.to_owned());
        let outcome = match &found {
            Ok(entry) => {
                count(&self.scene.tally.reads);
                let entry = entry.as_ref();
                Outcome::Read {
                    value: entry.map(|entry| entry.value.clone()),
                    version: entry.map(|entry| entry.version),
                }
            }
            Err(error) => match self.scene.tally.failed(error) {
                Outcome::NotApplied => Outcome::NotApplied,
                other => panic!("a get ended as {other}: {error}"),
            },
        };
        self.complete(operation, outcome);
        found.ok()
    }

    /// Puts a value that nobody else puts; whether it was acknowledged.
    fn put(&mut self, key: &str, condition: Condition) -> bool {
        self.values += 1;
        let value = Bytes::from(format!("{}.{}", self.number, self.values));
        let options = options(&condition);
        let operation = self.invoke(key, Action::Put { value: value.clone(), condition });
        let written = self.client.put_with(key.to_owned(), value, options);
        let outcome = match &written {
            Ok(written) => {
                count(&self.scene.tally.writes);
                Outcome::Written { version: Some(written.version), existed: None }
            }
            Err(error) => self.scene.tally.failed(error),
        };
        self.complete(operation, outcome);
        written.is_ok()
    }

    fn delete(&mut self, key: &str, condition: Condition) {
        let options = options(&condition);
        let operation = self.invoke(key, Action::Delete { condition });
        let outcome = match self.client.delete_with(key.to_owned(), options) {
            Ok(deleted) => {
                count(&self.scene.tally.writes);
                let version = (deleted.version != 0).then_some(deleted.version);
                Outcome::Written { version, existed: Some(deleted.existed) }
            }
            Err(error) => self.scene.tally.failed(&error),
        };
        self.complete(operation, outcome);
    }

    fn compare_and_swap(&mut self, key: &str, by_value: bool) {
        let Some(found) = self.get(key) else { return };
        self.put(key, condition_on(found.as_ref(), by_value));
    }

    fn compare_and_delete(&mut self, key: &str) {
        let Some(Some(entry)) = self.get(key) else { return };
        let by_value = self.choices.below(2) == 0;
        self.delete(key, condition_on(Some(&entry), by_value));
    }
}

/// That the key is still as it was found.
fn condition_on(found: Option<&Entry>, by_value: bool) -> Condition {
    match found {
        None => Condition::IfVersion(0),
        Some(entry) if by_value => Condition::IfValue(entry.value.clone()),
        Some(entry) => Condition::IfVersion(entry.version),
    }
}

fn options(condition: &Condition) -> WriteOptions {
    let condition = match condition {
        Condition::None => kritaclient::Condition::None,
        Condition::IfVersion(version) => kritaclient::Condition::IfVersion(*version),
        Condition::IfValue(value) => kritaclient::Condition::IfValue(value.clone()),
    };
    WriteOptions { condition, ..WriteOptions::default() }
}

/// A number that several threads count up by compare-and-swap.
struct Counter {
    key: &'static str,
    by_value: bool,
    acknowledged: AtomicU64,
    unknown: AtomicU64,
}

impl Counter {
    fn new(key: &'static str, by_value: bool) -> Self {
        Self { key, by_value, acknowledged: AtomicU64::new(0), unknown: AtomicU64::new(0) }
    }

    fn value(entry: Option<&Entry>) -> u64 {
        let text = entry.map(|entry| std::str::from_utf8(&entry.value).expect("counters are text"));
        text.map_or(0, |text| text.parse().expect("counters are numbers"))
    }

    fn increment(&self, client: &Client) {
        let Ok(found) = client.get(self.key) else { return };
        let next = (Self::value(found.as_ref()) + 1).to_string();
        let options = options(&condition_on(found.as_ref(), self.by_value));
        match client.put_with(self.key, next, options) {
            Ok(_) => count(&self.acknowledged),
            Err(Error::UnknownOutcome(_)) => count(&self.unknown),
            Err(Error::ConditionFailed { .. } | Error::Unavailable(_)) => {}
            Err(other) => panic!("no kill explains this error: {other}"),
        }
    }

    /// Asserts that every acknowledged increment counts, once, and that no other does, but for unknown ones.
    fn assert_exact(&self, client: &Client) {
        let found = client.get(self.key).unwrap_or_else(|error| panic!("{error}"));
        let value = Self::value(found.as_ref());
        let (acknowledged, unknown) =
            (self.acknowledged.load(Ordering::Relaxed), self.unknown.load(Ordering::Relaxed));
        println!("{}: {value}; {acknowledged} increments acknowledged, {unknown} unknown", self.key);
        assert!(acknowledged > 0, "{} was never counted up", self.key);
        assert!((acknowledged..=acknowledged + unknown).contains(&value), "{}: {value}", self.key);
    }
}

/// The node that leads the shard of this key, and all shards that it leads.
fn leader_of(cluster: &Cluster, client: &Client, key: &str) -> (u16, BTreeSet<u32>) {
    let wanted = shard_of(key.as_bytes(), SHARDS);
    let leader = wait_until("the key's shard has a leader", HEALTH_MAX, || {
        cluster.numbers().find_map(|node| {
            let shards = client.node_status(&cluster.address(node)).ok()?.shards;
            // Shard 0 holds no keys.
            let led = shards.iter().filter(|shard| shard.shard != 0 && shard.role == "leader");
            let led: BTreeSet<u32> = led.map(|shard| shard.shard).collect();
            led.contains(&wanted).then_some((node, led))
        })
    });
    leader.unwrap_or_else(|error| panic!("{error}"))
}

/// How long it took until writes were acknowledged again on the shards that a killed node led.
struct Recovery {
    shards: usize,
    /// On the first of them.
    first: Duration,
    /// On the last of them.
    last: Duration,
}

/// Puts a key on each of the shards at once, and waits for all acknowledgements.
fn recovery_of(scene: &Scene, shards: &BTreeSet<u32>, round: usize) -> Recovery {
    let since = Stopwatch::start();
    let took: Vec<Duration> = thread::scope(|scope| {
        let probes = shards.iter().map(|shard| {
            let key = key_on(*shard);
            let number = 1_000 * (round as u64 + 1) + u64::from(*shard);
            scope.spawn(move || {
                let accepted = Worker::new(scene, number).put(&key, Condition::None);
                assert!(accepted, "shard {shard}: a write that began after the kill was not acknowledged");
                since.elapsed()
            })
        });
        let probes: Vec<_> = probes.collect();
        probes.into_iter().map(|probe| probe.join().expect("writes go on after a kill")).collect()
    });
    let first = took.iter().min().expect("a leader leads a shard");
    let last = took.iter().max().expect("a leader leads a shard");
    Recovery { shards: shards.len(), first: *first, last: *last }
}

/// A key that falls on this one of the shards.
fn key_on(shard: u32) -> String {
    let mut keys = (0..).map(|number| format!("probe-{number}"));
    keys.find(|key| shard_of(key.as_bytes(), SHARDS) == shard).expect("keys spread over all shards")
}

/// Kills a leader this many times while others work; how writes recovered, for each kill.
fn kill_leaders(cluster: &mut Cluster, scene: &Scene, kills: usize) -> Vec<Recovery> {
    let observer = client(cluster);
    let mut recoveries = Vec::new();
    for round in 0..kills {
        let (victim, led) = leader_of(cluster, &observer, &scene.keys[round % KEYS]);
        cluster.kill(victim);
        let recovery = recovery_of(scene, &led, round);
        println!(
            "kill {}: node {victim}, leader of {} shards; writes on them after {:.2?}, on all after {:.2?} \
             (wanted: {RESUME_MAX:?})",
            round + 1,
            recovery.shards,
            recovery.first,
            recovery.last
        );
        let enough = scene.tally.writes() + WRITES_WITHOUT_THE_NODE;
        let worked =
            wait_until("the survivors work", HEALTH_MAX, || (scene.tally.writes() >= enough).then_some(()));
        worked.unwrap_or_else(|error| panic!("{error}"));
        cluster.start_node(victim);
        await_health(&observer);
        recoveries.push(recovery);
    }
    recoveries
}

/// Sets a flag when dropped: threads end also if the one that directs them panics.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_busy_cluster_survives_the_death_of_its_leaders() {
    let mut cluster = Cluster::start(3);
    let scene = Scene {
        clients: (0..4).map(|_| client(&cluster)).collect(),
        keys: (0..KEYS).map(|number| format!("busy-{number}")).collect(),
        recorder: Recorder::new(),
        watch: Stopwatch::start(),
        is_done: AtomicBool::new(false),
        tally: Tally::default(),
    };
    let counters = [Counter::new("counter-by-version", false), Counter::new("counter-by-value", true)];
    let recoveries = thread::scope(|scope| {
        let ending = Ending(&scene.is_done);
        for number in 0..WORKERS {
            let worker = Worker::new(&scene, number);
            scope.spawn(move || worker.work());
        }
        for number in 0..COUNTERS {
            let (scene, counters) = (&scene, &counters);
            scope.spawn(move || {
                let client = &scene.clients[number as usize];
                while !scene.is_done.load(Ordering::Relaxed) {
                    counters.iter().for_each(|counter| counter.increment(client));
                }
            });
        }
        let recoveries = kill_leaders(&mut cluster, &scene, kills());
        drop(ending);
        recoveries
    });
    let took = scene.watch.elapsed();
    let worst = recoveries.iter().map(|recovery| recovery.last).max().expect("a leader was killed");
    let worst_first = recoveries.iter().map(|recovery| recovery.first).max().expect("a leader was killed");
    println!("{} kills in {took:.2?}: {}", recoveries.len(), scene.tally.text());
    println!(
        "worst recovery: first shard {worst_first:.2?}, all shards {worst:.2?} (wanted: {RESUME_MAX:?})"
    );
    let observer = client(&cluster);
    counters.iter().for_each(|counter| counter.assert_exact(&observer));
    assert_replicas_become_equal(&cluster, &observer);
    assert_explained(&scene.recorder.history());
    assert!(worst <= RESUME_TOLERATED, "writes went on only after {worst:.2?}");
}

/// Asserts that the history is linearizable; keeps it for inspection if it is not.
fn assert_explained(history: &History) {
    let watch = Stopwatch::start();
    let verdict = check(history);
    println!("{verdict}, checked in {:.2?}", watch.elapsed());
    if !matches!(verdict, Verdict::Linearizable(_)) {
        let path = std::env::temp_dir().join(format!("krita-history-{}.jsonl", std::process::id()));
        fs::write(&path, history.to_json_lines()).expect("the directory for temporary files is writable");
        panic!("the history is kept in {}", path.display());
    }
}
