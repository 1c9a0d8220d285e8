//! Real nodes on disks that fail: file systems that fill up, bytes that flip, files that go, directories that cannot
//! be written any more. Clients write meanwhile; nothing acknowledged may be lost, nothing wrong read, and the cluster
//! heals without a command.
//!
//! The file systems are small ones in image files, mounted for one test and gone with it, also when it fails. That
//! takes root; without it these tests say so and pass. The commands must have been built with the profile of the
//! tests; `cargo xtask test` does so.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes and file systems")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::error::ErrorCode;
use krita_tests::process::{Cluster, Stopwatch, TestDirectory, wait_until};
use kritaclient::blocking::Client;
use kritaclient::{Error, WriteOptions};

/// Within what something must have happened on a machine that has other things to do as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// Within what writes go on once there is room again, as promised.
const RESUME_MAX: Duration = Duration::from_secs(5);

/// What a busy machine may add to it.
const RESUME_TOLERATED: Duration = Duration::from_secs(10);

/// Threads that write, each its own keys.
const WRITERS: u64 = 4;

/// Keys of each of them.
const KEYS: u64 = 200;

const VALUE_BYTES: usize = 4 << 10;

/// The reserve of nodes on a small file system.
const RESERVE_BYTES: u64 = 16 << 20;

/// The same where three nodes share the disk, and so its reserve: each of their logs may need a segment of its own to
/// make room.
const SHARED_RESERVE_BYTES: u64 = 4 * RESERVE_BYTES;

const MIB: u64 = 1 << 20;

/// Runs a command of the system.
fn system(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("paths of tests are plain")
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Whether to go on; says why not.
fn can_mount(test: &str) -> bool {
    if !is_root() {
        println!("{test}: skipped: mounting a file system takes root");
    }
    is_root()
}

/// A small ext4 file system in an image file. Unmounted and removed when dropped.
struct SmallDisk {
    mount: PathBuf,
    // After the mount: the image lies in it.
    _home: TestDirectory,
}

impl SmallDisk {
    fn new(bytes: u64) -> Self {
        let home = TestDirectory::new("disk");
        let (image, mount) = (home.path().join("image"), home.path().join("mount"));
        let file = File::create(&image).expect("an image can be made");
        file.set_len(bytes).expect("an image can be sparse");
        fs::create_dir(&mount).expect("a mount point can be made");
        let made = system("mkfs.ext4", &["-q", "-F", "-m", "0", plain(&image)]);
        let mounted = made.and_then(|()| system("mount", &["-o", "loop", plain(&image), plain(&mount)]));
        mounted.unwrap_or_else(|error| panic!("{error}"));
        Self { mount, _home: home }
    }

    fn path(&self) -> &Path {
        &self.mount
    }

    /// Takes all room but so many bytes, until it is dropped.
    fn fill(&self, leave_bytes: u64) -> Ballast {
        let path = self.mount.join("ballast");
        let ballast = Ballast { path: path.clone() };
        let length = self.free_bytes().saturating_sub(leave_bytes);
        system("fallocate", &["-l", &length.to_string(), plain(&path)])
            .unwrap_or_else(|error| panic!("{error}"));
        ballast
    }

    fn free_bytes(&self) -> u64 {
        let output = Command::new("stat").args(["-f", "-c", "%a %S", plain(&self.mount)]).output();
        let text = String::from_utf8(output.expect("stat runs").stdout).expect("stat writes numbers");
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [blocks, block_bytes] = numbers[..] else { panic!("stat said {text:?}") };
        blocks * block_bytes
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that was killed may hold it for a moment longer.
        let unmounted = wait_until("it is unmounted", Duration::from_secs(10), || {
            system("umount", &[plain(&self.mount)]).ok()
        });
        if unmounted.is_err() {
            // It goes once nobody uses it any more.
            let _ = system("umount", &["-l", plain(&self.mount)]);
        }
    }
}

/// A file that takes room.
struct Ballast {
    path: PathBuf,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // If the file system is gone, so is the file.
        let _ = fs::remove_file(&self.path);
    }
}

/// A directory laid over itself, so that nothing can be created, changed or removed in it by its path.
struct ReadOnly {
    path: PathBuf,
}

impl ReadOnly {
    fn new(path: &Path) -> Self {
        let path = path.to_owned();
        let mount = |arguments: &[&str]| {
            system("mount", arguments).unwrap_or_else(|error| panic!("{error}"));
        };
        // Made aside, where nobody opens a file in the moment when it can still be written, then laid over the
        // directory: a mount of a mount that is read-only is read-only from the start.
        let aside = TestDirectory::new("read-only");
        mount(&["--bind", plain(&path), plain(aside.path())]);
        let read_only = Self { path };
        mount(&["-o", "remount,bind,ro", plain(aside.path())]);
        mount(&["--bind", plain(aside.path()), plain(&read_only.path)]);
        let unmounted = system("umount", &[plain(aside.path())]);
        unmounted.unwrap_or_else(|error| panic!("{error}"));
        read_only
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // Lazily: a process may have opened files through it.
        let _ = system("umount", &["-l", plain(&self.path)]);
    }
}

/// A bijection of 64-bit numbers that leaves no order: the finalizer of SplitMix64.
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// What is put at a key for the `generation`th time: its generation, then random bytes.
fn value(key: u64, generation: u64) -> Bytes {
    let mut bytes = generation.to_le_bytes().to_vec();
    let mut state = mix(key) ^ generation;
    while bytes.len() < VALUE_BYTES {
        state = state.wrapping_add(1);
        bytes.extend_from_slice(&mix(state).to_le_bytes());
    }
    bytes.into()
}

fn key(number: u64) -> String {
    format!("fault-{number:05}")
}

/// What is known of a key that one thread alone writes.
#[derive(Clone, Copy, Default, Debug)]
struct Known {
    /// The last put that was acknowledged.
    acknowledged: u64,
    /// The last put that was begun, and may have been applied.
    attempted: u64,
}

/// Writers at work, and what they know.
struct Scene {
    clients: Vec<Client>,
    known: Vec<Mutex<Known>>,
    is_done: AtomicBool,
    written: AtomicU64,
    no_room: AtomicU64,
    unavailable: AtomicU64,
    unknown: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn quick() -> WriteOptions {
    WriteOptions { timeout: Some(Duration::from_secs(3)), ..WriteOptions::default() }
}

impl Scene {
    fn new(cluster: &Cluster) -> Self {
        let client = |_| Client::connect(cluster.client_options()).unwrap_or_else(|error| panic!("{error}"));
        Self {
            clients: (0..WRITERS).map(client).collect(),
            known: (0..WRITERS * KEYS).map(|_| Mutex::default()).collect(),
            is_done: AtomicBool::new(false),
            written: AtomicU64::new(0),
            no_room: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }

    /// Puts the next generation of a key.
    fn put(&self, client: &Client, number: u64) -> Result<(), Error> {
        let known = &self.known[number as usize];
        let generation = {
            let mut known = known.lock().expect("no writer panics meanwhile");
            known.attempted += 1;
            known.attempted
        };
        let result = client.put_with(key(number), value(number, generation), quick());
        match &result {
            Ok(_) => {
                count(&self.written);
                known.lock().expect("no writer panics meanwhile").acknowledged = generation;
            }
            Err(error) if error.code() == ErrorCode::ResourceExhausted => count(&self.no_room),
            Err(Error::Unavailable(_)) => count(&self.unavailable),
            Err(Error::UnknownOutcome(_)) => count(&self.unknown),
            Err(error) => panic!("no fault explains this error: {error}"),
        }
        result.map(drop)
    }

    /// Writes its keys over and over until the scene is done.
    fn work(&self, writer: u64) {
        let client = &self.clients[writer as usize];
        for round in 0.. {
            if self.is_done.load(Ordering::Relaxed) {
                return;
            }
            // What is refused shows in the counters.
            let _ = self.put(client, writer * KEYS + round % KEYS);
        }
    }

    /// Runs `act` while the writers work.
    fn busy<T>(&self, act: impl FnOnce() -> T) -> T {
        self.is_done.store(false, Ordering::Relaxed);
        thread::scope(|scope| {
            // Threads end also if `act` panics.
            let _ending = Ending(&self.is_done);
            for writer in 0..WRITERS {
                scope.spawn(move || self.work(writer));
            }
            act()
        })
    }

    /// Waits until so many more writes are acknowledged.
    fn await_writes(&self, more: u64, limit: Duration) -> Duration {
        let watch = Stopwatch::start();
        let enough = self.written.load(Ordering::Relaxed) + more;
        let waited = wait_until("writes are acknowledged", limit, || {
            (self.written.load(Ordering::Relaxed) >= enough).then_some(())
        });
        waited.unwrap_or_else(|error| panic!("{error}: {}", self.text()));
        watch.elapsed()
    }

    /// Asserts that a key holds what was acknowledged for it, or what was put after it without an answer.
    fn check(&self, client: &Client, number: u64) {
        let before = *self.known[number as usize].lock().expect("no writer panics meanwhile");
        let found = wait_until("a read is answered", PATIENCE, || match client.get(key(number)) {
            Ok(found) => Some(found),
            Err(Error::Unavailable(_)) => None,
            Err(error) => panic!("{}: {error}", key(number)),
        });
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", key(number)));
        let after = *self.known[number as usize].lock().expect("no writer panics meanwhile");
        let Some(found) = found else {
            assert_eq!(before.acknowledged, 0, "{} is lost: {before:?}", key(number));
            return;
        };
        let generation = found.value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        assert!((before.acknowledged..=after.attempted).contains(&generation), "{generation} of {before:?}");
        assert!(found.value == value(number, generation), "{} has a wrong value", key(number));
    }

    fn check_all(&self) {
        (0..WRITERS * KEYS).for_each(|number| self.check(&self.clients[0], number));
    }

    fn text(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} writes acknowledged, {} without room, {} unavailable, {} unknown",
            of(&self.written),
            of(&self.no_room),
            of(&self.unavailable),
            of(&self.unknown)
        )
    }
}

/// Sets a flag when dropped.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All is as before: nodes healthy, replicas equal, every key right.
fn assert_healed(cluster: &Cluster, scene: &Scene) {
    cluster.await_health(PATIENCE);
    cluster.await_equal_replicas(&scene.clients[0], PATIENCE);
    scene.check_all();
    println!("{}", scene.text());
}

#[test]
fn full_disks_refuse_values_and_take_them_again_once_there_is_room() {
    /// The values that make the data grow.
    const GROWTH_BYTES: usize = 256 << 10;
    if !can_mount("full_disks") {
        return;
    }
    let disk = SmallDisk::new(768 * MIB);
    let home = TestDirectory::at(disk.path().join("cluster"));
    fs::create_dir(home.path()).expect("the small disk is writable");
    let reserve = SHARED_RESERVE_BYTES.to_string();
    let mut cluster = Cluster::start_in(home, 3, &[("KRITA_DISK_RESERVE_BYTES", &reserve)]);
    let scene = Scene::new(&cluster);
    let client = Client::connect(cluster.client_options()).unwrap_or_else(|error| panic!("{error}"));
    scene.busy(|| {
        scene.await_writes(2 * WRITERS * KEYS, PATIENCE);
        for number in 0..100 {
            client.put(format!("spare-{number}"), "x").unwrap_or_else(|error| panic!("{error}"));
        }
        let ballast = disk.fill(SHARED_RESERVE_BYTES / 2);
        // What is overwritten takes the place of what is dead; only more data needs more room.
        let mut grown = 0;
        let refused = wait_until("values are refused", PATIENCE, || {
            (0..16).find_map(|_| {
                grown += 1;
                let value = vec![7; GROWTH_BYTES];
                let refused = client.put_with(format!("grown-{grown}"), value, quick()).err()?;
                (refused.code() == ErrorCode::ResourceExhausted).then_some(refused)
            })
        });
        println!("{}", refused.unwrap_or_else(|error| panic!("{error}: {}", scene.text())));
        // Reads and deletes go on, of all shards.
        (0..WRITERS * KEYS).step_by(7).for_each(|number| scene.check(&client, number));
        for number in 0..100 {
            let deleted = client.delete(format!("spare-{number}"));
            assert!(deleted.unwrap_or_else(|error| panic!("{error}")).existed);
        }
        assert!(cluster.numbers().all(|node| cluster.is_running(node)), "a full disk ends no node");
        drop(ballast);
        let resumed = scene.await_writes(WRITERS * KEYS / 4, PATIENCE);
        println!("writes went on {resumed:.2?} after there was room again (wanted: {RESUME_MAX:?})");
        assert!(resumed <= RESUME_TOLERATED, "writes went on only after {resumed:.2?}");
    });
    assert_healed(&cluster, &scene);
}

#[test]
fn a_disk_full_of_data_gets_room_by_deletes() {
    /// Data is put until there is no room, in batches of so many values.
    const BATCH: u64 = 64;
    if !can_mount("a_disk_full_of_data") {
        return;
    }
    let disk = SmallDisk::new(400 * MIB);
    let home = TestDirectory::at(disk.path().join("cluster"));
    fs::create_dir(home.path()).expect("the small disk is writable");
    let reserve = SHARED_RESERVE_BYTES.to_string();
    let cluster = Cluster::start_in(home, 3, &[("KRITA_DISK_RESERVE_BYTES", &reserve)]);
    let client = Client::connect(cluster.client_options()).unwrap_or_else(|error| panic!("{error}"));
    let pair = |number: u64| (Bytes::from(key(number)), value(number, 1));
    let mut count = 0;
    let refused = wait_until("the disk is full", 2 * PATIENCE, || {
        let written = client.put_many((count..count + BATCH).map(pair).collect());
        match written.into_iter().find_map(Result::err) {
            None => {
                count += BATCH;
                None
            }
            Some(error) if error.code() == ErrorCode::ResourceExhausted => Some(error),
            Some(Error::Unavailable(_) | Error::UnknownOutcome(_)) => None,
            Some(error) => panic!("no full disk explains this error: {error}"),
        }
    });
    println!("{count} values of {VALUE_BYTES} bytes: {}", refused.unwrap_or_else(|error| panic!("{error}")));
    // Two of three go, and the values of the batch that was refused.
    let kept = |number: u64| number.is_multiple_of(3) && number < count;
    for number in (0..count + BATCH).filter(|number| !kept(*number)) {
        let deleted = wait_until("a delete is taken", PATIENCE, || client.delete(key(number)).ok());
        deleted.unwrap_or_else(|error| panic!("{}: {error}", key(number)));
    }
    let watch = Stopwatch::start();
    let resumed = wait_until("compaction has made room", PATIENCE, || client.put("probe", "x").ok());
    resumed.unwrap_or_else(|error| panic!("{error}, with {} bytes free", disk.free_bytes()));
    println!("writes went on {:.2?} after the last delete", watch.elapsed());
    for number in 0..count + BATCH {
        let found = client.get(key(number)).unwrap_or_else(|error| panic!("{}: {error}", key(number)));
        let expected = kept(number).then(|| value(number, 1));
        assert!(found.map(|entry| entry.value) == expected, "{} is not as it was left", key(number));
    }
    cluster.await_health(PATIENCE);
    cluster.await_equal_replicas(&client, PATIENCE);
}

#[test]
fn one_full_disk_of_three_stops_nobody() {
    if !can_mount("one_full_disk") {
        return;
    }
    let disk = SmallDisk::new(400 * MIB);
    let reserve = RESERVE_BYTES.to_string();
    let home = TestDirectory::new("cluster");
    let mut cluster = Cluster::start_in(home, 3, &[("KRITA_DISK_RESERVE_BYTES", &reserve)]);
    cluster.stop(1, PATIENCE);
    let moved = disk.path().join("data");
    let copied = system("cp", &["-a", plain(cluster.data_directory(1)), plain(&moved)]);
    copied.unwrap_or_else(|error| panic!("{error}"));
    cluster.set_data_directory(1, moved);
    cluster.start_node(1);
    cluster.await_health(PATIENCE);
    let scene = Scene::new(&cluster);
    scene.busy(|| {
        scene.await_writes(WRITERS * KEYS, PATIENCE);
        let ballast = disk.fill(RESERVE_BYTES / 2);
        // Its leaderships go to the others; then writes are as before.
        let resumed = scene.await_writes(4 * WRITERS * KEYS, PATIENCE);
        println!("{} writes within {resumed:.2?} of the disk being full", 4 * WRITERS * KEYS);
        let before = scene.no_room.load(Ordering::Relaxed);
        scene.await_writes(2 * WRITERS * KEYS, PATIENCE);
        assert_eq!(scene.no_room.load(Ordering::Relaxed), before, "two disks of three have room");
        assert!(cluster.is_running(1), "a full disk ends no node");
        drop(ballast);
        scene.await_writes(WRITERS * KEYS, PATIENCE);
    });
    assert_healed(&cluster, &scene);
}

/// The files of a node's data whose names begin so, largest first.
fn files_of(cluster: &Cluster, node: u16, prefix: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for log in fs::read_dir(cluster.data_directory(node)).expect("a node has a data directory").flatten() {
        for file in fs::read_dir(log.path()).into_iter().flatten().flatten() {
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            if file.file_name().to_string_lossy().starts_with(prefix) {
                files.push((std::cmp::Reverse(length), file.path()));
            }
        }
    }
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

/// Flips a bit in so many blocks of a file that hold something. Returns how many there were to choose from.
fn flip_bits(path: &Path, flips: u64) -> std::io::Result<u64> {
    const BLOCK: usize = 4096;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut block = [0; BLOCK];
    let mut used = Vec::new();
    for start in (0..length.saturating_sub(BLOCK as u64 - 1)).step_by(BLOCK) {
        file.read_exact_at(&mut block, start)?;
        if block.iter().any(|byte| *byte != 0) {
            used.push(start);
        }
    }
    for flip in 0..flips.min(used.len() as u64) {
        let start = used[(mix(flip ^ length) % used.len() as u64) as usize];
        file.read_exact_at(&mut block, start)?;
        let at = block.iter().rposition(|byte| *byte != 0).unwrap_or(0) / 2;
        file.write_all_at(&[block[at] ^ 4], start + at as u64)?;
    }
    file.sync_all()?;
    Ok(used.len() as u64)
}

/// A cluster whose values have been written often enough that they lie in segments, runs and checkpoints.
fn busy_cluster() -> (Cluster, Scene) {
    let settings = [
        // No value is served from memory for long.
        ("KRITA_VALUE_CACHE_BYTES", "0"),
        ("KRITA_CHECKPOINT_AFTER_BYTES", "4MiB"),
    ];
    let cluster = Cluster::start_in(TestDirectory::new("cluster"), 3, &settings);
    let scene = Scene::new(&cluster);
    scene.busy(|| scene.await_writes(10 * WRITERS * KEYS, 2 * PATIENCE));
    (cluster, scene)
}

#[test]
fn flipped_bits_under_a_running_node_are_never_read_and_heal() {
    let (mut cluster, scene) = busy_cluster();
    for prefix in ["segment-", "run-", "checkpoint-"] {
        for path in files_of(&cluster, 2, prefix).iter().take(4) {
            match flip_bits(path, 3) {
                Ok(used) => println!("flipped 3 bits among {used} used blocks of {}", path.display()),
                // The node may just have removed it.
                Err(error) => println!("{}: {error}", path.display()),
            }
        }
        scene.check_all();
        scene.busy(|| scene.await_writes(WRITERS * KEYS, PATIENCE));
        scene.check_all();
    }
    // Whatever it found, it is there again, or after a restart.
    if cluster.ended(2).is_none() {
        cluster.kill(2);
    }
    cluster.start_node(2);
    assert_healed(&cluster, &scene);
}

#[test]
fn files_that_are_gone_cost_nothing_but_time() {
    let (mut cluster, scene) = busy_cluster();
    for prefix in ["run-", "checkpoint-", "segment-"] {
        let Some(path) = files_of(&cluster, 3, prefix).into_iter().next() else { continue };
        println!("removing {}", path.display());
        fs::remove_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        scene.busy(|| scene.await_writes(WRITERS * KEYS, PATIENCE));
        scene.check_all();
        // The node may have noticed and left, or not; then it starts without the file.
        if cluster.ended(3).is_none() {
            cluster.kill(3);
        }
        cluster.start_node(3);
        assert_healed(&cluster, &scene);
    }
}

#[test]
fn a_directory_that_cannot_be_written_costs_one_node_at_most() {
    if !can_mount("a_directory_that_cannot_be_written") {
        return;
    }
    let (mut cluster, scene) = busy_cluster();
    let directory = cluster.data_directory(1).join("log-000");
    let read_only = ReadOnly::new(&directory);
    scene.busy(|| scene.await_writes(10 * WRITERS * KEYS, 2 * PATIENCE));
    scene.check_all();
    match cluster.ended(1) {
        Some(code) => assert_ne!(code, Some(0), "a node that gives up says so in its exit code"),
        None => cluster.kill(1),
    }
    // A start is refused, and does not spoil anything.
    cluster.start_node(1);
    let refused = wait_until("the node refuses to start", PATIENCE, || cluster.ended(1));
    assert!(matches!(refused, Ok(Some(code)) if code != 0), "{refused:?}");
    drop(read_only);
    cluster.start_node(1);
    assert_healed(&cluster, &scene);
}

#[test]
fn a_file_system_can_be_filled_and_goes_away() {
    if !can_mount("a_file_system_can_be_filled") {
        return;
    }
    let disk = SmallDisk::new(32 * MIB);
    let path = disk.path().to_owned();
    let ballast = disk.fill(MIB);
    assert!(disk.free_bytes() <= MIB);
    drop(ballast);
    assert!(disk.free_bytes() > 8 * MIB);
    let read_only = ReadOnly::new(disk.path());
    assert!(File::create(path.join("new")).and_then(|mut file| file.write_all(b"x")).is_err());
    drop(read_only);
    assert!(File::create(path.join("new")).is_ok());
    drop(disk);
    assert!(!path.exists());
}
