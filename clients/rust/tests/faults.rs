//! The async client against pretended nodes: routing, failover, request ids, honest outcomes, batches and scans.
#![allow(clippy::disallowed_methods, missing_docs, reason = "a test on the machine's own clock and sockets")]

mod fake;

use std::time::{Duration, Instant};

use bytes::Bytes;
use kritaclient::{Client, Condition, Error, ErrorCode, Operation, OperationOutcome, ScanOptions};

use fake::{Fake, Fault, refusal, session_refusal};

#[tokio::test]
async fn a_key_is_put_read_and_removed() {
    let cluster = Fake::start(3, 4).await;
    let client = cluster.client().await;
    let written = client.put("k", "v").await.unwrap();
    let entry = client.get("k").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.version), (&b"v"[..], written.version));
    assert!(client.delete("k").await.unwrap().existed);
    assert!(!client.delete("k").await.unwrap().existed);
    assert_eq!(client.get("k").await.unwrap(), None);
    let world = cluster.world();
    assert!(world.requests.iter().all(|(node, _)| *node == world.leader), "straight to the leader");
}

#[tokio::test]
async fn a_hint_is_followed_and_remembered() {
    let cluster = Fake::start(3, 1).await;
    let client = cluster.client().await;
    client.get("k").await.unwrap();
    cluster.world().leader = 3;
    client.put("k", "v").await.unwrap();
    client.get("k").await.unwrap();
    let nodes: Vec<_> = cluster.world().requests.iter().map(|(node, _)| *node).collect();
    assert_eq!(nodes, [1, 1, 3, 3]);
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_applied_once() {
    let cluster = Fake::start(3, 1).await;
    let client = cluster.client().await;
    for fault in [Fault::ApplyAndClose, Fault::Close, Fault::Silence] {
        let before = cluster.world().applied;
        cluster.world().faults.push_back(fault.clone());
        let written = client.put("k", "v").await.unwrap();
        assert_eq!((written.version, cluster.world().applied), (before + 1, before + 1), "{fault:?}");
    }
}

#[tokio::test]
async fn a_refused_session_is_opened_anew_if_nothing_can_have_been_applied() {
    let cluster = Fake::start(1, 1).await;
    let client = cluster.client().await;
    client.put("k", "1").await.unwrap();
    cluster.world().faults.push_back(Fault::Refuse(session_refusal()));
    client.put("k", "2").await.unwrap();
    let world = cluster.world();
    assert_eq!(world.applied, 2);
    let [first, second] = world.request_ids[..] else { panic!("two were applied") };
    assert_ne!(first.session, second.session);
    assert!(second.register_until_ms > 5_000_000, "it learnt the log time of the refusal");
}

#[tokio::test]
async fn a_refused_session_after_a_lost_attempt_is_unknown() {
    let cluster = Fake::start(1, 1).await;
    let client = cluster.client().await;
    client.put("k", "1").await.unwrap();
    cluster.world().faults.extend([Fault::ApplyAndClose, Fault::Refuse(session_refusal())]);
    let error = client.put("k", "2").await.unwrap_err();
    assert!(matches!(error, Error::UnknownOutcome(_)), "{error}");
    client.put("k", "3").await.unwrap();
    assert_eq!(cluster.world().applied, 3, "the client goes on with another session");
}

#[tokio::test]
async fn a_lost_attempt_makes_later_refusals_unknown_but_not_reads() {
    let cluster = Fake::start(1, 1).await;
    let client = cluster.client().await;
    for code in [ErrorCode::PermissionDenied, ErrorCode::InvalidArgument] {
        cluster.world().faults.extend([Fault::ApplyAndClose, Fault::Refuse(refusal(code))]);
        assert!(matches!(client.put("k", "v").await, Err(Error::UnknownOutcome(_))), "{code}");
        cluster.world().faults.extend([Fault::Close, Fault::Refuse(refusal(code))]);
        assert_eq!(client.get("k").await.unwrap_err().code(), code);
        cluster.world().faults.push_back(Fault::Refuse(refusal(code)));
        assert_eq!(client.put("k", "v").await.unwrap_err().code(), code);
    }
}

#[tokio::test]
async fn without_a_quorum_calls_end_in_time_and_say_what_they_know() {
    let cluster = Fake::start(3, 1).await;
    let mut options = cluster.options();
    options.timeout = Duration::from_millis(500);
    let client = Client::connect(options).await.unwrap();
    let began = Instant::now();
    cluster.world().always = Some(Fault::Refuse(refusal(ErrorCode::Unavailable)));
    assert_eq!(client.put("k", "v").await.unwrap_err().code(), ErrorCode::Unavailable);
    assert_eq!(client.get("k").await.unwrap_err().code(), ErrorCode::Unavailable);
    cluster.world().always = Some(Fault::Silence);
    assert_eq!(client.put("k", "v").await.unwrap_err().code(), ErrorCode::UnknownOutcome);
    assert_eq!(client.get("k").await.unwrap_err().code(), ErrorCode::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(4));
    assert_eq!(cluster.world().applied, 0);
}

#[tokio::test]
async fn a_dead_leader_is_left_behind() {
    let mut cluster = Fake::start(3, 8).await;
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    cluster.kill(1).await;
    cluster.world().leader = 2;
    for number in 0..20 {
        client.put(format!("k{number}"), "v").await.unwrap();
    }
    assert_eq!(cluster.world().applied, 21);
    let late = cluster.client().await;
    assert!(late.get("k").await.unwrap().is_some(), "the first named node is dead, another is asked");
}

#[tokio::test]
async fn a_wrong_token_is_told_at_once() {
    let cluster = Fake::start(1, 1).await;
    let error = Client::connect(cluster.options().token("guess")).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    assert_eq!(error.exit_code(), 4);
}

#[tokio::test]
async fn plain_text_and_tls_do_not_mix() {
    let cluster = Fake::start(1, 1).await;
    let mut options = cluster.options();
    options.security = kritaclient::Security::Tls { ca_pem: b"nonsense".to_vec() };
    assert!(matches!(Client::connect(options).await, Err(Error::Configuration(_))));
}

#[tokio::test]
async fn a_thousand_writes_at_once_keep_the_window() {
    let cluster = Fake::start(1, 1).await;
    let client = cluster.client().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let client = client.clone();
        tasks.spawn(async move { client.put(format!("k{number}"), "v").await });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap().unwrap();
    }
    // The pretended node checks the window of each.
    let world = cluster.world();
    assert_eq!((world.applied, world.data.len()), (1000, 1000));
}

#[tokio::test]
async fn a_batch_is_grouped_and_each_operation_has_its_result() {
    let cluster = Fake::start(3, 16).await;
    let client = cluster.client().await;
    let pairs =
        (0..5000).map(|number| (Bytes::from(format!("k{number:05}")), Bytes::from(format!("v{number}"))));
    let pairs: Vec<_> = pairs.collect();
    for result in client.put_many(pairs.clone()).await {
        result.unwrap();
    }
    assert!(cluster.world().requests.len() <= 32, "{} round trips", cluster.world().requests.len());
    let keys = pairs.iter().map(|(key, _)| key.clone()).collect();
    for (got, (_, value)) in client.get_many(keys).await.into_iter().zip(&pairs) {
        assert_eq!(got.unwrap().unwrap().value, *value);
    }
    let failing = Operation::Put { key: "c".into(), value: "x".into(), condition: Condition::IfVersion(3) };
    let results = client
        .batch(vec![
            Operation::get("k00007"),
            failing,
            Operation::get("absent"),
            Operation::put("", "no key"),
        ])
        .await;
    let OperationOutcome::Got(Some(entry)) = results[0].as_ref().unwrap() else { panic!("{results:?}") };
    assert_eq!(&entry.value[..], b"v7");
    let failed = results[1].as_ref().unwrap_err();
    assert!(matches!(failed, Error::ConditionFailed { current_version: 9, operation: 1, .. }), "{failed:?}");
    assert!(matches!(results[3], Err(Error::InvalidRequest(_))));
}

#[tokio::test]
async fn a_scan_is_in_order_over_all_shards_despite_faults() {
    let cluster = Fake::start(3, 7).await;
    let client = cluster.client().await;
    let keys: Vec<_> = (0..500).map(|number| Bytes::from(format!("p{number:04}"))).collect();
    let pairs = keys.iter().map(|key| (key.clone(), key.clone())).chain([("q".into(), "q".into())]);
    for result in client.put_many(pairs.collect()).await {
        result.unwrap();
    }
    cluster.world().faults.extend([
        Fault::Close,
        Fault::Silence,
        Fault::Refuse(refusal(ErrorCode::NotReady)),
    ]);
    let mut scan = client.scan(ScanOptions { page_items: 5, ..ScanOptions::prefix("p") });
    let mut got = Vec::new();
    while let Some(item) = scan.next().await {
        let item = item.unwrap();
        assert_eq!(item.key, item.value);
        got.push(item.key);
    }
    assert_eq!(got, keys);
    let mut few = client.scan(ScanOptions::prefix("").keys_only().limit(3));
    for key in &keys[..3] {
        assert_eq!(few.next().await.unwrap().unwrap().key, key);
    }
    assert!(few.next().await.is_none());
}

#[tokio::test]
async fn health_lists_the_member_that_is_gone() {
    let mut cluster = Fake::start(3, 1).await;
    let client = cluster.client().await;
    cluster.kill(2).await;
    let health = client.health().await.unwrap();
    let found: Vec<_> = health.iter().map(|member| (member.node_number, member.status.is_ok())).collect();
    assert_eq!(found, [(1, true), (2, false), (3, true)]);
    assert_eq!(client.cluster_status().await.unwrap().members.len(), 3);
}

#[test]
fn the_blocking_face_does_the_same() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cluster = runtime.block_on(Fake::start(3, 4));
    let client = kritaclient::blocking::Client::connect(cluster.options()).unwrap();
    for key in ["b", "a", "c"] {
        client.put(key, "v").unwrap();
    }
    let keys: Vec<_> = client.list_keys("").map(|item| item.unwrap().key).collect();
    assert_eq!(keys, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_named_node_that_says_nothing_holds_nobody_up() {
    let cluster = Fake::start(1, 1).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = cluster.options();
    options.nodes.insert(0, silent.local_addr().unwrap().to_string());
    let began = Instant::now();
    let client = Client::connect(options).await.unwrap();
    client.put("k", "v").await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    drop(silent);
}

#[tokio::test]
async fn a_client_with_another_timeout_shares_the_rest() {
    let cluster = Fake::start(1, 1).await;
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    cluster.world().always = Some(Fault::Silence);
    let began = Instant::now();
    let hasty = client.with_timeout(Duration::from_millis(50));
    assert_eq!(hasty.get("k").await.unwrap_err().code(), ErrorCode::DeadlineExceeded);
    let results = hasty.get_many(vec![Bytes::from("a"), Bytes::from("b")]).await;
    assert!(results.iter().all(Result::is_err));
    assert!(began.elapsed() < Duration::from_secs(2));
    cluster.world().always = None;
    assert!(client.get("k").await.unwrap().is_some());
}
