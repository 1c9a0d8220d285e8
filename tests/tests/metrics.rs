//! `/metrics` on a real cluster of three nodes: clean by `promtool` (Debian's package prometheus), let in by token, and
//! exact: after known work each count has grown by what was done.
//!
//! Where `promtool` cannot be had, that part says `SKIP`.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::process::Command;
use std::time::Duration;

use krita_tests::process::{Cluster, run, wait_until};
use krita_tests::rest::Rest;

const PUTS: u32 = 30;
const GETS: u32 = 50;

/// How long elections may go on on a busy machine.
const SETTLED_MAX: Duration = Duration::from_secs(30);

/// The lines of all nodes.
struct Scrape(Vec<String>);

impl Scrape {
    fn of(nodes: &[Rest]) -> Self {
        let text =
            |node: &Rest| String::from_utf8(node.get("/metrics").expect(200).body).expect("text is UTF-8");
        Self(
            nodes.iter().flat_map(|node| text(node).lines().map(str::to_owned).collect::<Vec<_>>()).collect(),
        )
    }

    /// The sum of the lines of a metric that have all of these labels.
    fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let of_metric = |line: &&String| {
            let rest = line.strip_prefix(metric);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        let with_labels = |line: &&String| labels.iter().all(|label| line.contains(label));
        let value = |line: &String| line.rsplit(' ').next().and_then(|it| it.parse::<f64>().ok());
        self.0.iter().filter(of_metric).filter(with_labels).filter_map(value).sum()
    }
}

#[test]
fn metrics_are_clean_and_exact() {
    let cluster = Cluster::start(3);
    let nodes: Vec<Rest> = cluster.numbers().map(|node| Rest::of(&cluster, node)).collect();
    promtool_finds_nothing(&nodes[0]);
    strangers_learn_nothing(&nodes[0]);
    what_is_done_is_counted(&cluster, &nodes);
    the_cluster_is_seen_whole(&nodes);
    shards_are_shown_on_demand(&nodes[0]);
}

fn promtool_finds_nothing(node: &Rest) {
    let answer = node.get("/metrics?detail=shards").expect(200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    if Command::new("promtool").arg("--version").output().is_err() {
        println!("SKIP: promtool is not installed: Debian's package prometheus has it");
        return;
    }
    let checked = run(Command::new("promtool").args(["check", "metrics"]), &answer.body);
    let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), checked.stderr);
    assert_eq!((checked.code, said.trim()), (Some(0), ""));
}

fn strangers_learn_nothing(node: &Rest) {
    node.with_token("").get("/metrics").expect(401);
    node.with_token("wrong").get("/metrics").expect(401);
    node.get("/metrics?detail=all").expect(400);
    node.get("/metrics?shards").expect(400);
}

fn what_is_done_is_counted(cluster: &Cluster, nodes: &[Rest]) {
    let before = Scrape::of(nodes);
    for number in 0..PUTS {
        let node = &nodes[number as usize % nodes.len()];
        node.put(&format!("/v1/kv/metrics-{number}"), &[], b"value").expect(200);
    }
    for number in 0..GETS {
        let node = &nodes[number as usize % nodes.len()];
        let key = number % PUTS;
        node.get(&format!("/v1/kv/metrics-{key}")).expect(200);
    }
    nodes[0].put("/v1/kv/metrics-0", &[("If-None-Match", "*")], b"other").expect(412);
    nodes[1].call("DELETE", "/v1/kv/metrics-1", &[], b"").expect(200);
    cluster.client(1, &["put", "metrics-native", "value"]).expect(0);
    let after = Scrape::of(nodes);
    let grown = |metric: &str, labels: &[&str]| after.sum(metric, labels) - before.sum(metric, labels);
    let requests = "krita_requests_total";
    let labels = |operation, code| [operation, "door=\"http\"", code];
    assert_eq!(grown(requests, &labels("operation=\"put\"", "code=\"OK\"")), f64::from(PUTS));
    assert_eq!(grown(requests, &labels("operation=\"put\"", "code=\"CONDITION_FAILED\"")), 1.0);
    assert_eq!(grown(requests, &labels("operation=\"get\"", "code=\"OK\"")), f64::from(GETS));
    assert_eq!(grown(requests, &labels("operation=\"delete\"", "code=\"OK\"")), 1.0);
    assert_eq!(grown(requests, &["operation=\"put\"", "door=\"native\"", "code=\"OK\""]), 1.0);
    for operation in ["operation=\"put\"", "operation=\"get\"", "operation=\"delete\""] {
        let times = grown("krita_request_duration_seconds_count", &[operation]);
        assert_eq!(times, grown(requests, &[operation]), "every answer has its time: {operation}");
        assert_eq!(times, grown("krita_request_duration_seconds_bucket", &[operation, "le=\"+Inf\""]));
    }
    assert_eq!(after.sum("krita_requests_in_flight", &[]), 0.0);
    // Every put was flushed by two nodes at least, and none of it by more than one write for each.
    assert!(grown("krita_log_writes_total", &[]) >= 2.0);
    assert!(grown("krita_log_write_duration_seconds_count", &[]) >= 2.0);
    assert!(grown("krita_raft_messages_total", &["sent"]) >= f64::from(PUTS));
    assert_eq!(after.sum("krita_node_serving", &[]), 3.0);
    assert!(after.sum("krita_core_busy_seconds_total", &[]) > 0.0);
    assert!(after.sum("process_resident_memory_bytes", &[]) > f64::from(1 << 20));
    assert!(after.sum("process_open_fds", &[]) > 10.0);
}

/// On a busy machine leaders are elected anew now and then.
fn the_cluster_is_seen_whole(nodes: &[Rest]) {
    let look = || {
        let scrape = Scrape::of(nodes);
        let leads = scrape.sum("krita_shards", &["leader"]);
        let is_led = leads == scrape.sum("krita_shards", &[]) / 3.0;
        let is_whole = is_led && scrape.sum("krita_shards_without_leader", &[]) == 0.0;
        (is_whole && leads >= 64.0 && scrape.sum("krita_peer_connected", &[]) == 6.0).then_some(())
    };
    wait_until("every shard has one leader, every node its peers", SETTLED_MAX, look).expect("in time");
}

fn shards_are_shown_on_demand(node: &Rest) {
    let lines = |target: &str| {
        let text = String::from_utf8(node.get(target).expect(200).body).expect("text is UTF-8");
        text.lines().filter(|line| line.starts_with("krita_shard_commit_index{")).count()
    };
    assert_eq!(lines("/metrics"), 0);
    assert!(lines("/metrics?detail=shards") >= 64);
}
