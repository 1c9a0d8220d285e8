//! HTTP in the simulator: a whole cluster in plain text on one thread, a client that writes HTTP/1.1 and HTTP/2 by
//! hand, and the same run again from the same seed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use krita_node::config::{Sources, load};
use krita_node::{CoreMessage, NodeInput, StopSignal, run_core};
use krita_proto::frame::FrameMessage;
use krita_proto::v1;
use krita_runtime::sim::{HostId, SimHandoff, SimMesh, SimRuntime, SimStream, Simulation, SimulationOptions};
use krita_runtime::{Clock, Network, timeout};
use prost::Message;

const NODES: usize = 3;
const PORT: u16 = 8080;

fn address(node: usize) -> String {
    format!("node{node}:{PORT}")
}

fn boot(simulation: &Simulation, node: usize, host: HostId) {
    let peers: String = (1..=NODES).map(|number| format!("  - address: \"{}\"\n", address(number))).collect();
    let text = format!(
        "cluster_name: simulated\nnode_id: node{node}\npeers:\n{peers}data_directory: /data\nport: {PORT}\n\
         advertised_address: \"{}\"\ninsecure: true\nshards: 8\nsegment_bytes: 4MiB\n",
        address(node),
    );
    let sources = Sources { file: Some((Path::new("/krita.yaml"), &text)), ..Sources::default() };
    let config = load(sources).unwrap_or_else(|errors| panic!("the configuration: {errors}")).config;
    let input =
        Arc::new(NodeInput { config, certificates: None, boot_id: node as u64, stop: StopSignal::default() });
    let main = move |runtime: SimRuntime, mesh: SimMesh<CoreMessage<SimHandoff>>| {
        let input = input.clone();
        async move { run_core(runtime, mesh, input).await.unwrap_or_else(|failure| panic!("{failure}")) }
    };
    simulation.boot(host, 2, main);
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header field without compression.
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("short");
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// Nodes listen soon after their start.
async fn connect(runtime: &SimRuntime, node: usize) -> SimStream {
    for _ in 0..100 {
        if let Ok(stream) = runtime.connect(&address(node), Duration::from_secs(5)).await {
            return stream;
        }
        runtime.sleep(Duration::from_millis(100)).await;
    }
    panic!("node {node} does not listen");
}

/// A unary call, tried again until the cluster serves.
async fn call<M: Message, A: Message + Default>(
    runtime: &SimRuntime,
    node: usize,
    method: &str,
    request: &M,
) -> A {
    for _ in 0..100 {
        let mut stream = connect(runtime, node).await;
        let answer = call_once(&mut stream, method, request);
        if let Ok(Some(answer)) = timeout(runtime, Duration::from_secs(5), answer).await {
            return A::decode(&answer[..]).expect("nodes answer what they should");
        }
        runtime.sleep(Duration::from_millis(200)).await;
    }
    panic!("node {node} does not answer {method}");
}

/// The answer's message; none if the call failed.
async fn call_once<M: Message>(stream: &mut SimStream, method: &str, request: &M) -> Option<Vec<u8>> {
    let headers = [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", method),
        field(":authority", "node"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ];
    let message = request.encode_to_vec();
    let prefix = [&[0][..], &u32::try_from(message.len()).expect("short").to_be_bytes()].concat();
    let words = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &headers.concat()),
        frame(0, 1, 1, &[prefix, message].concat()),
    ];
    stream.write_all(&words.concat()).await.ok()?;
    let mut answer = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        let (kind, flags, number) = (head[3], head[4], head[8]);
        match (kind, number) {
            (0, 1) => answer.extend_from_slice(&payload),
            // The end of the stream, with headers: trailers. Without a message before, the call has failed.
            (1, 1) if flags & 1 != 0 => return answer.get(5..).map(<[u8]>::to_vec),
            // A reset, or the end of the connection.
            (3 | 7, _) => return None,
            _ => {}
        }
    }
}

async fn http1(runtime: &SimRuntime, node: usize, words: &str) -> String {
    let mut stream = connect(runtime, node).await;
    stream.write_all(words.as_bytes()).await.expect("nodes listen");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("nodes answer and close");
    String::from_utf8_lossy(&answer).into_owned()
}

/// What the client saw, and the run's fingerprint.
fn run(seed: u64) -> (Vec<String>, u64) {
    let simulation = Simulation::new(seed, SimulationOptions::default());
    for node in 1..=NODES {
        let host = simulation.add_host(&format!("node{node}"));
        boot(&simulation, node, host);
    }
    let client = simulation.add_host("client");
    let seen = simulation.block_on(client, |runtime| async move {
        let mut seen = Vec::new();
        for number in 0..12usize {
            let (key, node) = (format!("key/{number}"), number % NODES + 1);
            let put = v1::Put { key: key.clone().into(), value: "value".into(), ..Default::default() };
            let put: v1::WriteReply = call(&runtime, node, "/krita.v1.Krita/Put", &put).await;
            let get = v1::Get { key: key.into(), ..Default::default() };
            let got: v1::GetReply = call(&runtime, number % 2 + 1, "/krita.v1.Krita/Get", &get).await;
            assert_eq!((got.found, &got.value[..], got.version), (true, &b"value"[..], put.version));
            seen.push(format!("{} {:?}", v1::WriteReply::KIND, put.version));
        }
        let scan = v1::KeyScan { prefix: "key/".into(), ..Default::default() };
        let page: v1::KeyScanReply = call(&runtime, 2, "/krita.v1.Krita/Scan", &scan).await;
        let keys: Vec<_> = page.items.iter().map(|item| item.key.clone()).collect();
        assert!(keys.len() == 12 && keys.is_sorted(), "{keys:?}");
        let answer = http1(&runtime, 1, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        let answer = http1(&runtime, 3, "GET / HTTP/1.1\r\nno colon\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        seen.push(answer);
        seen
    });
    (seen, simulation.trace_hash())
}

#[test]
fn http_is_served_in_the_simulator_and_a_seed_replays() {
    for seed in [1, 2] {
        let first = run(seed);
        assert_eq!(first.0.len(), 13);
        assert_eq!(first, run(seed), "seed {seed} replays");
    }
}

/// Writes all keys of the scans below.
async fn put_all(runtime: &SimRuntime, value: &'static str) {
    let operations = (0..KEYS).map(|number| v1::Operation {
        operation: Some(v1::operation::Operation::Put(v1::OperationPut {
            key: format!("s/{number:02}").into(),
            value: value.into(),
            condition: None,
        })),
    });
    let batch = v1::KeyBatch { operations: operations.collect(), ..Default::default() };
    for _ in 0..100 {
        let reply: v1::KeyBatchReply = call(runtime, 1, "/krita.v1.Krita/Batch", &batch).await;
        let is_good =
            |outcome: &v1::KeyOutcome| matches!(outcome.outcome, Some(v1::key_outcome::Outcome::Result(_)));
        if reply.outcomes.iter().all(is_good) {
            return;
        }
        // A shard that has no leader yet.
        runtime.sleep(Duration::from_millis(200)).await;
    }
    panic!("the keys cannot be written");
}

const KEYS: usize = 40;

async fn page(runtime: &SimRuntime, node: usize, cursor: &[u8]) -> v1::KeyScanReply {
    let cursor = cursor.to_vec().into();
    let scan = v1::KeyScan { prefix: "s/".into(), limit: 8, page_items: 8, cursor, ..Default::default() };
    call(runtime, node, "/krita.v1.Krita/Scan", &scan).await
}

/// Runs a client against a cluster of its own.
fn with_cluster<F: Future<Output = ()> + 'static>(seed: u64, main: impl FnOnce(SimRuntime) -> F + 'static) {
    let simulation = Simulation::new(seed, SimulationOptions::default());
    for node in 1..=NODES {
        let host = simulation.add_host(&format!("node{node}"));
        boot(&simulation, node, host);
    }
    let client = simulation.add_host("client");
    // Leaders are where they shall be by then: what a scan holds does not go with them.
    simulation.block_on(client, |runtime| async move {
        put_all(&runtime, "first").await;
        runtime.sleep(Duration::from_secs(60)).await;
    });
    simulation.block_on(client, main);
}

#[test]
fn pages_of_a_scan_see_each_shard_as_of_one_entry_while_everything_is_overwritten() {
    with_cluster(3, |runtime| async move {
        put_all(&runtime, "old").await;
        let mut reply = page(&runtime, 1, b"").await;
        let mut versions = reply.versions.clone();
        let mut seen = reply.items.clone();
        for node in [2, 3, 1, 2] {
            put_all(&runtime, "new").await;
            let gone = v1::Delete { key: "s/39".into(), ..Default::default() };
            let _: v1::WriteReply = call(&runtime, node, "/krita.v1.Krita/Delete", &gone).await;
            reply = page(&runtime, node, &reply.cursor).await;
            versions.extend(reply.versions.clone());
            seen.extend(reply.items.clone());
        }
        assert!(reply.cursor.is_empty(), "that was the last page");
        assert_eq!(seen.len(), KEYS);
        assert!(seen.is_sorted_by(|a, b| a.key < b.key));
        assert!(seen.iter().all(|item| &item.value[..] == b"old"), "of one entry");
        assert!(versions.iter().all(|version| !version.newer && !version.stale));
        for version in &versions {
            let same = versions.iter().filter(|other| other.shard == version.shard);
            assert!(same.clone().all(|other| other.applied_index == version.applied_index));
        }
        let shards: std::collections::BTreeSet<u32> = versions.iter().map(|version| version.shard).collect();
        assert_eq!(shards.len(), 8, "every shard's is stated");
    });
}

#[test]
fn a_scan_whose_time_is_over_goes_on_as_of_a_later_entry_and_says_so() {
    with_cluster(4, |runtime| async move {
        put_all(&runtime, "old").await;
        let first = page(&runtime, 1, b"").await;
        put_all(&runtime, "new").await;
        // Longer than anything is held for a scan that asks for nothing.
        runtime.sleep(Duration::from_secs(90)).await;
        let second = page(&runtime, 2, &first.cursor).await;
        assert!(second.items.iter().all(|item| &item.value[..] == b"new"));
        assert_eq!(second.items.first().map(|item| item.key.clone()), Some("s/08".into()));
        assert_eq!(second.versions.len(), 8);
        for version in &second.versions {
            let before = first.versions.iter().find(|before| before.shard == version.shard);
            let before = before.expect("the first page has stated every shard's");
            assert!(version.newer && version.applied_index > before.applied_index, "{version:?}");
        }
    });
}

#[test]
fn a_read_that_takes_any_replica_is_answered_without_a_leader_and_says_as_of_what() {
    let simulation = Simulation::new(5, SimulationOptions::default());
    let mut hosts = Vec::new();
    for node in 1..=NODES {
        let host = simulation.add_host(&format!("node{node}"));
        boot(&simulation, node, host);
        hosts.push(host);
    }
    let client = simulation.add_host("client");
    simulation.block_on(client, |runtime| async move { put_all(&runtime, "here").await });
    // Two of three go: nobody leads any more, once the last lease has ended.
    simulation.network().isolate(hosts[1]);
    simulation.network().isolate(hosts[2]);
    simulation.block_on(client, |runtime| async move {
        runtime.sleep(Duration::from_secs(10)).await;
        let get = |consistency: v1::Consistency| v1::Get {
            key: "s/07".into(),
            timeout_ms: 2_000,
            consistency: consistency as i32,
        };
        for consistency in [v1::Consistency::Any, v1::Consistency::Available] {
            let got: v1::GetReply = call(&runtime, 1, "/krita.v1.Krita/Get", &get(consistency)).await;
            assert!(got.found && got.stale && got.applied_index >= got.version, "{got:?}");
            assert_eq!(&got.value[..], b"here");
        }
        let mut stream = connect(&runtime, 1).await;
        let refused = get(v1::Consistency::Linearizable);
        assert!(
            call_once(&mut stream, "/krita.v1.Krita/Get", &refused).await.is_none(),
            "no quorum, no answer"
        );
        let scan = v1::KeyScan {
            prefix: "s/".into(),
            consistency: v1::Consistency::Any as i32,
            ..Default::default()
        };
        let page: v1::KeyScanReply = call(&runtime, 1, "/krita.v1.Krita/Scan", &scan).await;
        assert_eq!(page.items.len(), KEYS);
        assert!(page.versions.iter().all(|version| version.stale));
    });
}
