//! `kritactl debug` as a command: its output over small logs, its exit codes, and that it leaves everything as it was.
//!
//! The logs are made by the store in the simulator from a fixed seed. The following writes what the commands print
//! now to `tests/golden/inspector`; read the difference before keeping it:
//! `KRITA_REWRITE=1 cargo test -p krita-tests --test inspector`. The command must have been built with the profile of
//! the tests; `cargo xtask test` does so.

#![allow(
    clippy::disallowed_methods,
    reason = "these tests write images to real files and run a command on them"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use krita_engine::{
    Batch, Change, CheckpointMeta, EntryRecord, HardState, Index, LogId, Options, ReplicaId, ShardId, Store,
    Term, open, value_checksum,
};
use krita_runtime::sim::{SimRuntime, Simulation, SimulationOptions};
use krita_tests::process::{Answer, Cluster, TestDirectory, command_path, run};

const DAMAGED: i32 = 11;
const SHARD: ShardId = ShardId(1);

/// Lays a small log out in a folder `log-000` of a fresh directory.
fn laid_out() -> TestDirectory {
    let simulation = Simulation::new(7, SimulationOptions::default());
    let host = simulation.add_host("node1");
    simulation.block_on(host, |runtime| async move {
        let options = Options {
            segment_bytes: 64 << 10,
            segments_spare: 1,
            batch_bytes_max: 36 << 10,
            piece_bytes: 16 << 10,
            reserve_bytes: 0,
            ..Options::new(PathBuf::from("/log-000"), LogId(0))
        };
        let (store, _) = open(runtime, options).await.unwrap();
        write_sample(&store).await;
    });
    simulation.run_for(Duration::from_secs(1));
    let directory = TestDirectory::new("inspector");
    let log = directory.path().join("log-000");
    fs::create_dir(&log).unwrap();
    let disk = simulation.disk(host);
    for path in disk.files().into_iter().filter(|path| path.starts_with("/log-000")) {
        let name = path.file_name().unwrap();
        fs::write(log.join(name), disk.read(&path).unwrap()).unwrap();
    }
    directory
}

async fn write_sample(store: &Store<SimRuntime>) {
    store.create_shard(SHARD, ReplicaId(11), CheckpointMeta::default()).await.unwrap();
    store.create_shard(ShardId(2), ReplicaId(21), CheckpointMeta::default()).await.unwrap();
    let mut batch = store.batch();
    batch.hard_state(ShardId(2), HardState { term: Term(3), vote: Some(9), commit: Index(0) });
    store.write(batch).await.unwrap();
    for index in 1..=6 {
        put(store, index, format!("key-{index}").into_bytes(), 7_000).await;
    }
    delete(store, 7, "key-3").await;
    let meta = CheckpointMeta { applied: Index(7), term: Term(1), ..CheckpointMeta::default() };
    store.checkpoint(SHARD, meta).await.unwrap();
    put(store, 8, vec![0xff, 0], 40_000).await;
    let mut batch = store.batch();
    batch.truncate_after(ShardId(2), Index(0));
    store.write(batch).await.unwrap();
}

fn entry(batch: &mut Batch, index: u64, payload: &Bytes) {
    batch.entry(SHARD, EntryRecord { index: Index(index), term: Term(1), kind: 0, payload: payload.clone() });
}

async fn put(store: &Store<SimRuntime>, index: u64, key: Vec<u8>, length: usize) {
    let value = vec![index as u8; length];
    let mut payload = value_checksum(&key, &value).to_le_bytes().to_vec();
    payload.extend_from_slice(&value);
    let payload = Bytes::from(payload);
    let mut batch = store.batch();
    entry(&mut batch, index, &payload);
    store.write(batch).await.unwrap();
    let payload_length = payload.len() as u32;
    let change = Change::Put { key: key.into(), payload_offset: 0, payload_length, value: None };
    store.apply(SHARD, Index(index), vec![change]);
}

async fn delete(store: &Store<SimRuntime>, index: u64, key: &'static str) {
    let mut batch = store.batch();
    entry(&mut batch, index, &Bytes::new());
    store.write(batch).await.unwrap();
    store.apply(SHARD, Index(index), vec![Change::Delete { key: Bytes::from_static(key.as_bytes()) }]);
}

fn kritactl(directory: &Path, arguments: &str) -> Answer {
    let mut command = Command::new(command_path("kritactl"));
    run(command.current_dir(directory).args(arguments.split_whitespace()), &[])
}

/// The first file of the log whose name begins like this.
fn file(directory: &Path, prefix: &str) -> String {
    let entries = fs::read_dir(directory.join("log-000")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    format!("log-000/{}", names.first().unwrap_or_else(|| panic!("a file {prefix}")))
}

fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/inspector").join(name);
    if std::env::var_os("KRITA_REWRITE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{name}: KRITA_REWRITE=1 writes what is printed now");
}

#[test]
fn the_output_is_the_golden_one() {
    let directory = laid_out();
    let path = directory.path();
    let manifest = file(path, "manifest-");
    let run_file = file(path, "run-");
    let commands = [
        ("log.txt", "debug log log-000".to_owned()),
        ("segment.txt", "debug segment log-000/segment-1 --records".to_owned()),
        ("batch.txt", "debug segment log-000/segment-1 --batch 3".to_owned()),
        ("run.txt", format!("debug run {run_file} --keys")),
        ("run.json", format!("debug run {run_file} --keys -o json")),
        ("manifest.txt", format!("debug manifest {manifest} --frames")),
        ("log.json", "debug log log-000 --records -o json".to_owned()),
    ];
    for (name, arguments) in commands {
        let answer = kritactl(path, &arguments).expect(0);
        assert_eq!(answer.stderr, "", "{arguments}");
        golden(name, &String::from_utf8(answer.stdout).unwrap());
    }
}

#[test]
fn damage_has_its_own_exit_code_and_its_place() {
    let directory = laid_out();
    let path = directory.path();
    let segment = path.join("log-000/segment-1");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8_192 + 100] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    for command in ["debug log .", "debug log log-000", "debug segment log-000/segment-1"] {
        let answer = kritactl(path, command).expect(DAMAGED);
        let text = answer.text();
        let line = text.lines().find(|line| line.starts_with("DAMAGE ")).unwrap_or_else(|| panic!("{text}"));
        assert!(line.starts_with("DAMAGE segment-1 byte 8"), "{line}");
        assert!(text.ends_with("damaged in 1 place"), "{text}");
        let answer = kritactl(path, &format!("{command} -o json")).expect(DAMAGED);
        let report: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!((&report["sound"], &report["damages"]), (&false.into(), &1.into()));
        assert_eq!(report["findings"][0]["file"], "segment-1");
    }
    assert_eq!(fs::read(&segment).unwrap(), bytes, "nothing is mended");
}

#[test]
fn what_cannot_be_read_is_a_failure_with_its_name() {
    let directory = laid_out();
    let path = directory.path();
    fs::create_dir(path.join("empty")).unwrap();
    for (arguments, code, message) in [
        ("debug log nowhere", 1, "nowhere"),
        ("debug segment log-000", 1, "log-000"),
        ("debug segment nothing-here", 1, "nothing-here"),
        ("debug log empty", 1, "no log"),
        ("debug manifest log-000/segment-1 extra", 2, "extra"),
        ("debug", 2, "Usage"),
    ] {
        let answer = kritactl(path, arguments).expect(code);
        assert!(answer.stderr.contains(message), "{arguments}: {}", answer.stderr);
    }
    fs::copy(path.join("log-000/segment-1"), path.join("segment-1")).unwrap();
    let answer = kritactl(path, "debug segment segment-1").expect(1);
    assert!(answer.stderr.contains("--nonce"), "{}", answer.stderr);
    let manifest = kritactl(path, &format!("debug manifest {} -o json", file(path, "manifest-"))).expect(0);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.stdout).unwrap();
    let nonce = manifest["identity"]["nonce"].as_str().unwrap();
    kritactl(path, &format!("debug segment segment-1 --nonce {nonce}")).expect(0);
}

#[test]
fn a_directory_in_use_is_refused_unless_forced() {
    let directory = laid_out();
    let path = directory.path();
    let lock = fs::File::create(path.join("lock")).unwrap();
    kritactl(path, "debug log log-000").expect(0);
    lock.lock().unwrap();
    for command in ["debug log .", "debug log log-000", "debug segment log-000/segment-1"] {
        let answer = kritactl(path, command).expect(1);
        assert!(answer.stderr.contains("stop the node"), "{}", answer.stderr);
        let answer = kritactl(path, &format!("{command} --force")).expect(0);
        assert!(answer.stderr.contains("running node"), "{}", answer.stderr);
    }
}

#[test]
fn the_files_of_a_real_node_are_sound_once_it_has_stopped() {
    let mut cluster = Cluster::start(1);
    for number in 0..20 {
        cluster.client(1, &["put", &format!("key-{number}"), "value"]).expect(0);
    }
    let data = cluster.data_directory(1).to_owned();
    let folder = data.parent().expect("it lies in the node's folder").to_owned();
    let answer = kritactl(&folder, "debug log data").expect(1);
    assert!(answer.stderr.contains("running node uses it"), "{}", answer.stderr);
    cluster.kill(1);
    kritactl(&folder, "debug log data").expect(0);
    cluster.start_node(1);
    cluster.await_health(Duration::from_secs(30));
    assert_eq!(cluster.stop(1, Duration::from_secs(20)), Some(0));
    let answer = kritactl(&folder, "debug log data -o json").expect(0);
    let mut entries = 0;
    for line in answer.text().lines() {
        let report: serde_json::Value = serde_json::from_str(line).unwrap();
        entries += report["records"]["entries"].as_u64().unwrap();
    }
    assert!(entries >= 20, "{entries} entries of 20 puts");
}
