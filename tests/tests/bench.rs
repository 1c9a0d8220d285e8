//! `krita-bench` on a real cluster: every workload and every door, with every value checked, and what it leaves behind.

#![allow(clippy::disallowed_methods, reason = "these tests run real processes")]

use std::process::Command;

use krita_tests::process::{Answer, Cluster, TestDirectory, command_path, run};
use serde_json::Value;

fn bench(cluster: &Cluster, words: &str) -> Answer {
    let mut command = Command::new(command_path("krita-bench"));
    command.args(["--host", "127.0.0.1", "--port", &cluster.port(1).to_string()]);
    command.args(["--cluster-name", cluster.cluster_name(), "--token", cluster.token()]);
    command.env("KRITA_TLS_CERT_PATH", cluster.certificates());
    command.args(["--seconds", "1", "--warm-up", "0", "--keys", "1000", "--quiet", "-o", "json"]);
    run(command.args(words.split_whitespace()), &[]).expect(0)
}

fn row(answer: &Answer) -> Value {
    let document: Value = serde_json::from_slice(&answer.stdout).expect("it prints JSON");
    document["rows"][0].clone()
}

#[test]
fn every_workload_and_door_reads_what_was_written() {
    let cluster = Cluster::start(3);
    let mut lines = vec![
        "put --clients 8".to_owned(),
        "mixed --clients 8 --pipeline 4 --threads 2 --value-size uniform:16-3000 --key-size 14*1,100*1"
            .to_owned(),
        "mixed --clients 4 --distribution hot-shard".to_owned(),
        "mixed --clients 4 --rate 300 --arrivals poisson".to_owned(),
    ];
    lines.extend(["scan", "batch", "batch-get", "cas"].map(|workload| format!("{workload} --clients 4")));
    lines.extend(["a", "b", "c", "d", "e", "f"].map(|letter| format!("ycsb-{letter} --clients 4")));
    for door in ["krita-grpc", "krita-rest"] {
        lines.extend(
            ["ycsb-a", "ycsb-e", "batch", "batch-get", "cas"]
                .map(|workload| format!("{workload} --clients 4 --target {door}")),
        );
    }
    for line in lines {
        let row = row(&bench(&cluster, &line));
        assert_eq!(row["values_wrong"], 0, "{line}: {row}");
        assert!(row["operations"].as_u64() > Some(0), "{line}: {row}");
        let reads = !line.starts_with("put") && !line.starts_with("batch ");
        assert_eq!(row["values_checked"].as_u64() > Some(0), reads, "{line}: {row}");
        assert!(row["p50_us"].as_u64() <= row["p999_us"].as_u64(), "{line}: {row}");
    }
}

#[test]
fn a_run_leaves_a_log_and_a_chart() {
    let cluster = Cluster::start(1);
    let directory = TestDirectory::new("bench");
    let (log, chart) = (directory.path().join("run.hlog"), directory.path().join("run.svg"));
    let line = format!("mixed --clients 2,4 --hdr-log {} --plot {}", log.display(), chart.display());
    bench(&cluster, &line);
    let log = std::fs::read_to_string(log).expect("the log is there");
    let intervals: Vec<&str> = log.lines().filter(|line| !line.starts_with('#')).collect();
    // A second of two operations, for each of two numbers of clients.
    assert_eq!(intervals.iter().filter(|line| line.starts_with("Tag=")).count(), 4, "{log}");
    assert!(log.contains("Tag=2-get,") && log.contains("Tag=4-put,"), "{log}");
    let chart = std::fs::read_to_string(chart).expect("the chart is there");
    assert!(chart.starts_with("<svg") && chart.contains("4 clients"), "no chart: {}", chart.len());
}
