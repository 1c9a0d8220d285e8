//! A real cluster of three `kritad` processes on loopback, driven by `kritaclient`: what a user relies on, and
//! what must hold when processes are killed.
//!
//! The commands must have been built with the profile of the tests; `cargo xtask test` does so. By itself:
//! `cargo build --profile test --workspace --bins && cargo test -p krita-tests --test cluster_processes`.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use krita_tests::history::{Action, Condition, History, Outcome, Recorder};
use krita_tests::linearizability::assert_linearizable;
use krita_tests::process::{Answer, Cluster, Stopwatch, run, wait_until};

const OK: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const ABSENT: i32 = 3;
const DENIED: i32 = 4;
const UNAVAILABLE: i32 = 5;
const UNKNOWN_OUTCOME: i32 = 6;
const UNHEALTHY: i32 = 10;

/// Within what writes must resume when one of three nodes has died.
const RESUME_MAX: Duration = Duration::from_secs(3);

/// Within what a cluster serves again after all of its nodes were restarted.
const RECOVER_MAX: Duration = Duration::from_secs(10);

/// Longer than any command waits before it gives up by itself.
const DEADLINE_MAX: Duration = Duration::from_secs(20);

/// Keys that fall on different shards, so that any node leads the shard of some of them.
fn spread_keys(prefix: &str) -> Vec<String> {
    (0..8).map(|number| format!("{prefix}-{number}")).collect()
}

fn put_until_accepted(cluster: &Cluster, node: u16, key: &str, value: &str, limit: Duration) {
    let mut last = None;
    let accepted = wait_until("a put is accepted", limit, || {
        let answer = cluster.client(node, &["put", key, value]);
        let accepted = (answer.code == Some(OK)).then_some(());
        last = Some(answer);
        accepted
    });
    accepted.unwrap_or_else(|error| panic!("{key}: {error}; the last answer: {last:?}"));
}

fn get_until_served(cluster: &Cluster, node: u16, key: &str, limit: Duration) -> Answer {
    wait_until("a get is served", limit, || {
        let answer = cluster.client(node, &["get", key]);
        matches!(answer.code, Some(OK | ABSENT)).then_some(answer)
    })
    .unwrap_or_else(|error| panic!("{key}: {error}"))
}

#[test]
fn every_node_serves_every_command() {
    let mut cluster = Cluster::start(3);
    for node in cluster.numbers() {
        let (key, value) = (format!("fruit-{node}"), format!("value {node}"));
        cluster.client(node, &["put", &key, &value]).expect(OK);
    }
    for node in cluster.numbers() {
        for other in cluster.numbers() {
            let answer = cluster.client(node, &["get", &format!("fruit-{other}")]).expect(OK);
            assert_eq!(answer.text(), format!("value {other}"));
        }
        let keys = cluster.client(node, &["list-keys", "fruit-"]).expect(OK).text();
        assert_eq!(keys.lines().collect::<Vec<_>>(), ["fruit-1", "fruit-2", "fruit-3"]);
    }
    cluster.client(2, &["delete", "fruit-3"]).expect(OK);
    for node in cluster.numbers() {
        let absent = cluster.client(node, &["get", "fruit-3"]).expect(ABSENT);
        assert!(absent.stdout.is_empty(), "only data goes to stdout: {absent:?}");
    }
    binary_values_stay_what_they_are(&cluster);
    bad_callers_are_told(&cluster);
    strangers_disturb_nothing(&cluster);
    for node in cluster.numbers() {
        assert!(cluster.is_running(node), "node {node} has ended");
    }
    cluster.await_health(RECOVER_MAX);
}

fn binary_values_stay_what_they_are(cluster: &Cluster) {
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    cluster.client_with_input(1, &["put", "binary", "-"], &value).expect(OK);
    let answer = cluster.client(3, &["get", "binary", "-o", "raw"]).expect(OK);
    assert!(answer.stdout == value, "{} bytes came back, others than were put", answer.stdout.len());
    cluster.client_with_input(1, &["put", "empty", "-"], b"").expect(OK);
    assert!(cluster.client(2, &["get", "empty", "-o", "raw"]).expect(OK).stdout.is_empty());
}

fn bad_callers_are_told(cluster: &Cluster) {
    for node in cluster.numbers() {
        let (name, token) = (cluster.cluster_name(), cluster.token());
        let call = |name: &str, token: &str, arguments: &[&str]| {
            let answer = run(&mut cluster.client_command(node, name, token, arguments), &[]);
            assert!(answer.stdout.is_empty() && !answer.stderr.is_empty(), "{answer:?}");
            answer
        };
        call(name, "not-the-token", &["get", "fruit-1"]).expect(DENIED);
        call(name, "not-the-token", &["put", "fruit-1", "stolen"]).expect(DENIED);
        call("another-cluster", token, &["get", "fruit-1"]).expect(FAILED);
        call(name, token, &["fetch", "fruit-1"]).expect(USAGE);
        let oversize = "k".repeat(4097);
        call(name, token, &["put", &oversize, "v"]).expect(FAILED);
        assert_eq!(cluster.client(node, &["get", "fruit-1"]).expect(OK).text(), "value 1");
    }
}

/// Plain text, garbage, half a hello and silence on the TLS port. Each is refused or left waiting, and meanwhile
/// others are served.
fn strangers_disturb_nothing(cluster: &Cluster) {
    // A TLS record that promises 16 KiB and brings nothing; and bytes that are no TLS at all.
    let half_a_record = b"\x16\x03\x01\x40\x00\x01\x00".to_vec();
    let garbage: Vec<u8> =
        (0..65_536_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let openings = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), garbage, half_a_record, Vec::new()];
    let mut strangers = Vec::new();
    for node in cluster.numbers() {
        for _ in 0..8 {
            for opening in &openings {
                let mut stranger =
                    TcpStream::connect(("127.0.0.1", cluster.port(node))).expect("the port is open");
                // The node may close at any moment, also while this is written.
                let _ = stranger.write_all(opening);
                strangers.push((stranger, opening.starts_with(b"GET")));
            }
        }
    }
    for node in cluster.numbers() {
        cluster.client(node, &["put", "undisturbed", "yes"]).expect(OK);
        assert_eq!(cluster.client(node, &["get", "undisturbed"]).expect(OK).text(), "yes");
    }
    for (stranger, plain_text) in &mut strangers {
        if *plain_text {
            stranger.set_read_timeout(Some(DEADLINE_MAX)).expect("a time-out can be set");
            let mut answer = Vec::new();
            let closed = stranger.read_to_end(&mut answer);
            let waiting = closed.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!waiting, "a connection that is no TLS stays open");
        }
    }
}

#[test]
fn writes_resume_when_any_node_is_killed() {
    let mut cluster = Cluster::start(3);
    let keys = spread_keys("resume");
    for victim in cluster.numbers() {
        for key in &keys {
            cluster.client(victim, &["put", key, &format!("before-{victim}")]).expect(OK);
        }
        let survivor = victim % 3 + 1;
        cluster.kill(victim);
        let since = Stopwatch::start();
        // All at once: each waits for its own shard's new leader.
        thread::scope(|scope| {
            for key in &keys {
                let (cluster, value) = (&cluster, format!("after-{victim}"));
                scope.spawn(move || put_until_accepted(cluster, survivor, key, &value, DEADLINE_MAX));
            }
        });
        let took = since.elapsed();
        println!("node {victim} killed: all writes resumed after {took:?}");
        assert!(took <= RESUME_MAX, "node {victim} killed: writes resumed only after {took:?}");
        for key in &keys {
            let answer = cluster.client(survivor, &["get", key]).expect(OK);
            assert_eq!(answer.text(), format!("after-{victim}"));
        }
        cluster.client(survivor, &["health-check", "--all"]).expect(UNHEALTHY);
        cluster.start_node(victim);
        cluster.await_health(RECOVER_MAX);
    }
}

#[test]
fn everything_is_there_after_all_nodes_were_killed() {
    let mut cluster = Cluster::start(3);
    let keys: Vec<String> = (0..40).map(|number| format!("kept-{number:02}")).collect();
    for (key, node) in keys.iter().zip((1..=3).cycle()) {
        cluster.client(node, &["put", key, &format!("value of {key}")]).expect(OK);
    }
    cluster.client(1, &["delete", "kept-07"]).expect(OK);
    for round in 0..2 {
        for node in cluster.numbers() {
            cluster.kill(node);
        }
        let since = Stopwatch::start();
        for node in cluster.numbers() {
            cluster.start_node(node);
        }
        let first = get_until_served(&cluster, 1, "kept-00", RECOVER_MAX);
        println!("round {round}: served again after {:?}", since.elapsed());
        assert_eq!(first.expect(OK).text(), "value of kept-00");
        cluster.await_health(RECOVER_MAX);
        for (key, node) in keys.iter().zip((1..=3).cycle()) {
            let answer = cluster.client(node, &["get", key]);
            match key.as_str() {
                "kept-07" => drop(answer.expect(ABSENT)),
                _ => assert_eq!(answer.expect(OK).text(), format!("value of {key}")),
            }
        }
        let listed = cluster.client(2, &["list-keys", "kept-"]).expect(OK).text();
        let expected: BTreeSet<&str> =
            keys.iter().map(String::as_str).filter(|key| *key != "kept-07").collect();
        assert_eq!(listed.lines().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn a_minority_says_unavailable() {
    let mut cluster = Cluster::start(3);
    cluster.client(1, &["put", "quorum", "before"]).expect(OK);
    cluster.kill(2);
    cluster.kill(3);
    // The survivor may lead, and serve reads until its lease is over; it soon learns that it is alone.
    let alone = wait_until("the survivor knows that it is alone", DEADLINE_MAX, || {
        let answer = cluster.client(1, &["get", "quorum", "--timeout", "2s"]);
        (answer.code == Some(UNAVAILABLE)).then_some(())
    });
    alone.unwrap_or_else(|error| panic!("{error}"));
    for arguments in [&["get", "quorum"][..], &["put", "quorum", "after"], &["delete", "quorum"]] {
        let arguments = [arguments, &["--timeout", "2s"]].concat();
        let answer = cluster.client(1, &arguments).expect(UNAVAILABLE);
        assert!(answer.stdout.is_empty() && !answer.stderr.is_empty(), "{answer:?}");
        assert!(answer.took <= Duration::from_secs(4), "{arguments:?} took {:?}", answer.took);
    }
    cluster.client(1, &["health-check", "--all"]).expect(UNHEALTHY);
    assert!(cluster.is_running(1), "the survivor has ended");
    cluster.start_node(2);
    let read = get_until_served(&cluster, 1, "quorum", RECOVER_MAX);
    assert_eq!(read.expect(OK).text(), "before", "what was UNAVAILABLE was not applied");
    put_until_accepted(&cluster, 2, "quorum", "again", RECOVER_MAX);
}

#[test]
fn a_node_stops_cleanly_when_asked() {
    let mut cluster = Cluster::start(3);
    cluster.client(1, &["put", "polite", "yes"]).expect(OK);
    assert_eq!(cluster.stop(1, Duration::from_secs(10)), Some(0));
    put_until_accepted(&cluster, 2, "polite", "still", RESUME_MAX);
    cluster.start_node(1);
    cluster.await_health(RECOVER_MAX);
    assert_eq!(cluster.client(1, &["get", "polite"]).expect(OK).text(), "still");
}

#[test]
fn a_history_under_kills_is_linearizable() {
    let mut cluster = Cluster::start(3);
    let (recorder, watch, done) = (Recorder::new(), Stopwatch::start(), AtomicBool::new(false));
    let names = spread_keys("history");
    for victim in [1, 2, 3, 1] {
        done.store(false, Ordering::Relaxed);
        let victims_until = recorder.invoked() + 60;
        cluster.kill(victim);
        thread::scope(|scope| {
            for client in 0..4 {
                let (cluster, recorder, done, names) = (&cluster, &recorder, &done, &names);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        one_operation(cluster, recorder, watch, client, &names[..4]);
                    }
                });
            }
            let worked = wait_until("the clients have worked", 3 * DEADLINE_MAX, || {
                (recorder.invoked() >= victims_until).then_some(())
            });
            done.store(true, Ordering::Relaxed);
            worked.unwrap_or_else(|error| panic!("{error}"));
        });
        cluster.start_node(victim);
        cluster.await_health(RECOVER_MAX);
    }
    let history = recorder.history();
    println!("{:?} over {:?}", outcomes(&history), watch.elapsed());
    println!("{:?}", assert_linearizable(&history));
}

/// A get or a put of a value that nobody else writes, through whichever node comes next.
fn one_operation(cluster: &Cluster, recorder: &Recorder, watch: Stopwatch, client: u64, keys: &[String]) {
    let number = recorder.invoked() as u64;
    // Spreads keys, nodes and kinds; nothing depends on how.
    let choice = (number + 7 * client).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let key = &keys[(choice % keys.len() as u64) as usize];
    let node = (choice / 7 % 3) as u16 + 1;
    if (choice / 64).is_multiple_of(2) {
        let id = recorder.invoke(client, key.clone(), Action::Get, watch.nanoseconds());
        let answer = cluster.client(node, &["get", key]);
        let outcome = match answer.code {
            Some(OK) => Outcome::Read { value: Some(answer.text().into()), version: None },
            Some(ABSENT) => Outcome::Read { value: None, version: None },
            Some(UNAVAILABLE) => Outcome::NotApplied,
            code => panic!("a get ended with {code:?}: {answer:?}"),
        };
        recorder.complete(id, outcome, watch.nanoseconds());
    } else {
        let value = format!("{client}-{number}");
        let action = Action::Put { value: value.clone().into(), condition: Condition::None };
        let id = recorder.invoke(client, key.clone(), action, watch.nanoseconds());
        let answer = cluster.client(node, &["put", key, &value]);
        let outcome = match answer.code {
            Some(OK) => Outcome::Written { version: None, existed: None },
            Some(UNAVAILABLE) => Outcome::NotApplied,
            Some(UNKNOWN_OUTCOME) => Outcome::Unknown,
            code => panic!("a put ended with {code:?}: {answer:?}"),
        };
        recorder.complete(id, outcome, watch.nanoseconds());
    }
}

/// How many operations were served, refused, unknown.
fn outcomes(history: &History) -> (usize, usize, usize) {
    let count = |wanted: fn(&Outcome) -> bool| {
        history.operations.iter().filter(|operation| wanted(&operation.outcome)).count()
    };
    let served = |outcome: &Outcome| matches!(outcome, Outcome::Read { .. } | Outcome::Written { .. });
    (
        count(served),
        count(|outcome| *outcome == Outcome::NotApplied),
        count(|outcome| *outcome == Outcome::Unknown),
    )
}
