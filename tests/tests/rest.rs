//! REST on a real cluster of three nodes with TLS: what it promises of keys, conditions, scans, batches and health,
//! what bad input gets, and that the server is what its OpenAPI document says (by schemathesis, from PyPI).
//!
//! schemathesis is fetched once into `target/rest`; where it cannot be had, that test says `SKIP`.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use krita_tests::process::{Cluster, Stopwatch, wait_until};
use krita_tests::rest::{Response, Rest};
use krita_tests::source::root;
use serde_json::{Value, json};

/// The checker of OpenAPI documents, exactly.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// Examples of each operation in each phase.
const EXAMPLES: &str = "15";

#[test]
fn rest_keeps_its_promises() {
    let mut cluster = Cluster::start(3);
    let nodes: Vec<Rest> = cluster.numbers().map(|node| Rest::of(&cluster, node)).collect();
    keys_are_written_read_and_removed(&nodes);
    binary_keys_and_values_stay_what_they_are(&nodes);
    conditions_are_compare_and_swap(&nodes);
    races_lose_no_increment(&nodes);
    a_retry_applies_once(&nodes);
    scans_page_in_order_under_writes(&nodes);
    batches_answer_each_operation(&nodes);
    bad_input_is_told_and_disturbs_nobody(&nodes);
    strangers_are_refused_and_learn_nothing(&nodes);
    the_cluster_is_shown(&nodes);
    the_server_is_what_its_document_says(&cluster);
    health_follows_the_members(&mut cluster, &nodes);
}

fn keys_are_written_read_and_removed(nodes: &[Rest]) {
    let version = nodes[0].put("/v1/kv/colour", &[], b"blue").expect(200).version();
    for node in nodes {
        let read = node.get("/v1/kv/colour").expect(200);
        assert_eq!((read.body.as_slice(), read.version()), (&b"blue"[..], version));
        assert_eq!(read.header("content-type"), Some("application/octet-stream"));
        let form =
            node.call("GET", "/v1/kv/colour", &[("Accept", "application/json")], b"").expect(200).json();
        let wanted = json!({
            "key": "colour", "key_base64": "Y29sb3Vy", "value": "blue", "value_base64": "Ymx1ZQ==", "version": version,
        });
        assert_eq!(form, wanted);
        let head = node.call("HEAD", "/v1/kv/colour", &[], b"").expect(200);
        assert_eq!((head.version(), head.header("content-length")), (version, Some("4")));
        node.get("/v1/kv/colour?consistency=linearizable&timeout_ms=5000").expect(200);
        node.get("/v1/kv/colour?consistency=bounded").expect(400);
        node.call("GET", "/v1/kv/colour", &[("If-None-Match", &format!("\"{version}\""))], b"").expect(304);
        node.call("GET", "/v1/kv/colour", &[("Accept", "text/html")], b"").expect(406);
    }
    let json_body = br#"{"value_base64": "AP8="}"#;
    nodes[1].put("/v1/kv/colour", &[("Content-Type", "application/json")], json_body).expect(200);
    assert_eq!(nodes[2].get("/v1/kv/colour").expect(200).body, b"\0\xff");
    let deleted = nodes[2].call("DELETE", "/v1/kv/colour", &[], b"").expect(200).json();
    assert_eq!(deleted["existed"], true);
    assert_eq!(nodes[0].call("DELETE", "/v1/kv/colour", &[], b"").expect(200).json()["existed"], false);
    assert_error(&nodes[0].get("/v1/kv/colour"), 404, "NOT_FOUND");
}

fn binary_keys_and_values_stay_what_they_are(nodes: &[Rest]) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let percent: String = every_byte.iter().map(|byte| format!("%{byte:02X}")).collect();
    let value: Vec<u8> = every_byte.iter().copied().cycle().take(300_000).collect();
    nodes[0].put(&format!("/v1/kv/{percent}"), &[], &value).expect(200);
    let base64 = base64url(&every_byte);
    let read = nodes[1].get(&format!("/v1/kv/{base64}?key_encoding=base64url")).expect(200);
    assert!(read.body == value, "{} bytes came back, others than were put", read.body.len());
    nodes[1].put("/v1/kv/a/b%20c/../d", &[], b"").expect(200);
    let listed = nodes[2].get("/v1/scan?prefix=a/&keys_only=true").expect(200).json();
    assert_eq!(listed["items"][0]["key"], "a/b c/../d");
    assert!(nodes[2].get("/v1/kv/a%2Fb%20c%2F..%2Fd").expect(200).body.is_empty());
    // A value of the largest size keeps a core of a busy machine long enough for its shards to change leaders, and then
    // nobody knows what came of it: putting it again is harmless.
    let largest = vec![7; 16 << 20];
    let put = wait_until("the largest value is put", Duration::from_secs(60), || {
        (nodes[0].put("/v1/kv/largest", &[], &largest).status == 200).then_some(())
    });
    put.unwrap_or_else(|error| panic!("{error}"));
    assert!(nodes[2].get("/v1/kv/largest").expect(200).body == largest);
    nodes[0].call("DELETE", "/v1/kv/largest", &[], b"").expect(200);
}

fn conditions_are_compare_and_swap(nodes: &[Rest]) {
    let target = "/v1/kv/account";
    let created = nodes[0].put(target, &[("If-None-Match", "*")], b"1").expect(200).version();
    let twice = nodes[1].put(target, &[("If-None-Match", "*")], b"2");
    assert_eq!(assert_error(&twice, 412, "CONDITION_FAILED")["current_version"], created);
    assert_eq!(twice.version(), created);
    let tag = format!("\"{created}\"");
    let second = nodes[1].put(target, &[("If-Match", &tag)], b"2").expect(200).version();
    assert!(second > created);
    nodes[2].put(target, &[("If-Match", &tag)], b"3").expect(412);
    nodes[2].call("DELETE", target, &[("If-Match", &tag)], b"").expect(412);
    let by_value = br#"{"value": "4", "if_value": "2"}"#;
    nodes[2].put(target, &[("Content-Type", "application/json")], by_value).expect(200);
    nodes[0].put(target, &[("Content-Type", "application/json")], by_value).expect(412);
    for bad in ["*", "4", "W/\"4\"", ""] {
        assert_error(&nodes[0].put(target, &[("If-Match", bad)], b"x"), 400, "INVALID_ARGUMENT");
    }
    assert_eq!(nodes[0].get(target).expect(200).body, b"4");
}

/// Clients on all nodes count one key up by compare-and-swap; no increment is lost or done twice.
fn races_lose_no_increment(nodes: &[Rest]) {
    const CLIENTS: usize = 6;
    const EACH: usize = 15;
    nodes[0].put("/v1/kv/counter", &[], b"0").expect(200);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let node = &nodes[client % nodes.len()];
            scope.spawn(move || {
                let mut connection = node.connect().expect("the node takes connections");
                let mut done = 0;
                while done < EACH {
                    let read =
                        connection.call("GET", "/v1/kv/counter", &[], b"").expect("an answer").expect(200);
                    let count: usize = String::from_utf8_lossy(&read.body).parse().expect("a number");
                    let tag = read.header("etag").expect("an entity tag").to_owned();
                    let next = (count + 1).to_string();
                    let put =
                        connection.call("PUT", "/v1/kv/counter", &[("If-Match", &tag)], next.as_bytes());
                    match put.expect("an answer") {
                        Response { status: 200, .. } => done += 1,
                        lost => drop(lost.expect(412)),
                    }
                }
            });
        }
    });
    assert_eq!(nodes[1].get("/v1/kv/counter").expect(200).body, (CLIENTS * EACH).to_string().as_bytes());
}

fn a_retry_applies_once(nodes: &[Rest]) {
    let log_time = nodes[0].get("/v1/cluster").expect(200).json()["log_time_ms"].as_u64().expect("a time");
    let id = format!("session=c0ffee, sequence=1, register_until_ms={}", log_time + 20_000);
    let put = |node: &Rest, body: &[u8]| node.put("/v1/kv/once", &[("Krita-Request-Id", &id)], body);
    let first = put(&nodes[0], b"first").expect(200).version();
    nodes[1].put("/v1/kv/once", &[], b"between").expect(200);
    for node in nodes {
        assert_eq!(put(node, b"first").expect(200).version(), first, "the first answer, again");
    }
    assert_eq!(nodes[2].get("/v1/kv/once").expect(200).body, b"between");
    let unknown = nodes[0].put("/v1/kv/once", &[("Krita-Request-Id", "session=bad, sequence=1")], b"x");
    assert_error(&unknown, 520, "UNKNOWN_OUTCOME");
    assert_error(&nodes[0].put("/v1/kv/once", &[("Idempotency-Key", "k")], b"x"), 400, "INVALID_ARGUMENT");
    assert_eq!(nodes[2].get("/v1/kv/once").expect(200).body, b"between");
}

/// Pages follow each other in order and without gaps, on any node, while other keys of the range come and go.
fn scans_page_in_order_under_writes(nodes: &[Rest]) {
    let lasting: Vec<String> = (0..300).map(|number| format!("page/{number:04}")).collect();
    let puts: Vec<Value> = lasting
        .iter()
        .map(|key| json!({ "put": { "key": key, "value": format!("value of {key}") } }))
        .collect();
    post_batch(&nodes[0], &json!({ "operations": puts })).expect(200);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = nodes[1].connect().expect("the node takes connections");
            for number in (0..300).cycle() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let target = format!("/v1/kv/page/{number:04}-passing");
                connection.call("PUT", &target, &[], b"x").expect("an answer").expect(200);
                connection.call("DELETE", &target, &[], b"").expect("an answer").expect(200);
            }
        });
        let (mut found, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let node = &nodes[pages % nodes.len()];
            let page = node.get(&format!("/v1/scan?prefix=page/&limit=37{cursor}")).expect(200).json();
            for item in page["items"].as_array().expect("items") {
                let key = item["key"].as_str().expect("text").to_owned();
                if !key.ends_with("-passing") {
                    assert_eq!(item["value"], format!("value of {key}"));
                }
                found.push(key);
            }
            pages += 1;
            match page["cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        ended.store(true, Ordering::Relaxed);
        assert!(found.is_sorted_by(|one, next| one < next), "in order, and none twice");
        let found: BTreeSet<String> = found.into_iter().collect();
        assert!(lasting.iter().all(|key| found.contains(key)), "none is missing");
    });
    let accept = [("Accept", "application/x-ndjson")];
    let stream = nodes[2].call("GET", "/v1/scan?prefix=page/&keys_only=true", &accept, b"").expect(200);
    let lines: Vec<Value> =
        stream.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parse).collect();
    let end = &lines.last().expect("a last line")["end"];
    assert_eq!((&end["items"], &end["cursor"]), (&json!(lines.len() - 1), &Value::Null));
    let versions = end["versions"].as_array().expect("what each shard is as of");
    assert!(!versions.is_empty() && versions.iter().all(|version| version["stale"] == json!(false)));
    assert!(lines.len() > lasting.len());
    let elsewhere = nodes[0].get("/v1/scan?prefix=page/&limit=1").expect(200).json();
    let cursor = elsewhere["cursor"].as_str().expect("a cursor");
    assert_error(&nodes[0].get(&format!("/v1/scan?prefix=pag&cursor={cursor}")), 400, "INVALID_ARGUMENT");
}

fn batches_answer_each_operation(nodes: &[Rest]) {
    let all = json!({ "operations": [
        { "put": { "key": "batch/a", "value": "1" } },
        { "put": { "key_base64": "YmF0Y2gv/w==", "value_base64": "AP8=", "if_version": 0 } },
        { "get": { "key": "account" } },
        { "get": { "key": "batch/none" } },
        { "delete": { "key": "batch/none-either" } },
    ] });
    let reply = post_batch(&nodes[0], &all).expect(200).json();
    assert_eq!(reply["complete"], true);
    let results = reply["results"].as_array().expect("results");
    assert_eq!(results.len(), 5);
    assert!(results[0]["version"].as_u64() > Some(0));
    assert_eq!((&results[2]["found"], &results[2]["value"]), (&json!(true), &json!("4")));
    assert_eq!(results[3]["found"], false);
    assert_eq!(results[4]["existed"], false);
    assert_eq!(nodes[1].get("/v1/kv/batch/%FF").expect(200).body, b"\0\xff");
    // Again: the second finds its key there. What shares its shard fails with it, nothing else does.
    let again = post_batch(&nodes[1], &all).expect(207).json();
    assert_eq!(again["complete"], false);
    let shard = &again["results"][1]["shard"];
    for (position, result) in again["results"].as_array().expect("results").iter().enumerate() {
        let failed = &result["error"]["name"] == "CONDITION_FAILED";
        assert_eq!(failed, &result["shard"] == shard, "{position}: {result}");
        if failed {
            assert_eq!(result["error"]["operation"], 1);
        }
    }
}

fn post_batch(node: &Rest, body: &Value) -> Response {
    node.call("POST", "/v1/batch", &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

/// Method, target, headers, body, and the status that they get.
type BadRequest<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8], u16);

/// Whatever is wrong has its own answer; and while many send such things at once, others are served.
fn bad_input_is_told_and_disturbs_nobody(nodes: &[Rest]) {
    let json_type = [("Content-Type", "application/json")];
    let long_key = format!("/v1/kv/{}", "k".repeat(4097));
    let cases: &[BadRequest<'_>] = &[
        ("GET", "/nowhere", &[], b"", 404),
        ("GET", "/v1/kv", &[], b"", 404),
        ("GET", "/v1/kv/", &[], b"", 400),
        ("GET", "/v1/kv/%4", &[], b"", 400),
        ("GET", "/v1/kv/a?colour=blue", &[], b"", 400),
        ("GET", "/v1/kv/a?timeout_ms=0", &[], b"", 400),
        ("GET", "/v1/kv/a%3D?key_encoding=base64url", &[], b"", 400),
        ("PUT", &long_key, &[], b"", 400),
        ("PUT", "/v1/kv/a", &json_type, b"{\"value\": \"\xff\"}", 400),
        ("PUT", "/v1/kv/a", &json_type, b"{\"value_base64\": \"a\"}", 400),
        ("POST", "/v1/batch", &json_type, b"{\"operations\":\n [{]}", 400),
        ("POST", "/v1/batch", &[], b"{}", 415),
        ("POST", "/v1/kv/a", &[], b"", 405),
        ("GET", "/v1/scan?limit=10001", &[], b"", 400),
        ("GET", "/v1/scan?cursor=AQ", &[], b"", 400),
        ("GET", "/v1/scan?limit=1&limit=2", &[], b"", 400),
    ];
    for (method, target, headers, body, status) in cases {
        let answer = nodes[0].call(method, target, headers, body);
        assert_error(&answer, *status, "INVALID_ARGUMENT");
    }
    // Refused before it is read, and told even to those who send all of it first.
    let too_large = nodes[0].put("/v1/kv/large", &[], &vec![0; (16 << 20) + 1]);
    assert_error(&too_large, 413, "INVALID_ARGUMENT");
    let not_json = nodes[0].call("POST", "/v1/batch", &json_type, b"{\"operations\":\n [{]}").json();
    let message = not_json["error"]["message"].as_str().expect("a message");
    assert!(message.contains("line 2 column"), "{message}");
    assert_eq!(nodes[0].call("POST", "/v1/scan", &[], b"").expect(405).header("allow"), Some("GET, HEAD"));

    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    for (method, target, headers, body, _) in cases {
                        // How a flood fares is not the question.
                        let _ =
                            nodes[0].connect().and_then(|mut one| one.call(method, target, headers, body));
                    }
                    let half = b"PUT /v1/kv/half HTTP/1.1\r\nHost: krita\r\nContent-Length: 9\r\n\r\nha";
                    let _ = nodes[0].connect().and_then(|mut one| one.send(half));
                }
            });
        }
        let mut undisturbed = nodes[0].connect().expect("the node takes connections");
        for number in 0..100 {
            let value = number.to_string();
            undisturbed.call("PUT", "/v1/kv/calm", &[], value.as_bytes()).expect("an answer").expect(200);
            let read = undisturbed.call("GET", "/v1/kv/calm", &[], b"").expect("an answer").expect(200);
            assert_eq!(read.body, value.as_bytes());
        }
        ended.store(true, Ordering::Relaxed);
    });
    nodes[1].get("/v1/kv/half").expect(404);
}

fn strangers_are_refused_and_learn_nothing(nodes: &[Rest]) {
    for token in ["", "krita_wrong"] {
        let stranger = nodes[0].with_token(token);
        for target in ["/v1/kv/account", "/v1/scan", "/v1/cluster", "/v1/nodes", "/v1/shards"] {
            let refused = stranger.get(target);
            assert_error(&refused, 401, "UNAUTHENTICATED");
            assert!(refused.header("www-authenticate").is_some());
        }
        assert_error(&stranger.put("/v1/kv/account", &[], b"stolen"), 401, "UNAUTHENTICATED");
    }
    let nobody = nodes[0].with_token("");
    for target in ["/livez", "/readyz?verbose", "/healthz", "/healthcheck?verbose", "/cluster/healthcheck"] {
        let told = String::from_utf8(nobody.get(target).expect(200).body).expect("text");
        assert!(!told.contains("127.0.0.1") && !told.contains("problems"), "{target}: {told}");
        assert_error(&nodes[0].with_token("krita_wrong").get(target), 401, "UNAUTHENTICATED");
    }
    let elsewhere = nodes[0].call("GET", "/v1/kv/account", &[("Krita-Cluster", "another")], b"");
    assert_error(&elsewhere, 421, "WRONG_CLUSTER");
}

fn the_cluster_is_shown(nodes: &[Rest]) {
    let cluster = nodes[0].get("/v1/cluster").expect(200).json();
    assert_eq!(cluster["members"].as_array().map(Vec::len), Some(3));
    let shards = nodes[1].get("/v1/shards").expect(200).json();
    let shards = shards["shards"].as_array().expect("shards");
    assert_eq!(json!(shards.len()), cluster["shards"]);
    assert!(shards.iter().all(|shard| shard["nodes"].as_array().map(Vec::len) == Some(3)));
    let members = nodes[2].get("/v1/nodes").expect(200).json();
    let members = members["nodes"].as_array().expect("nodes");
    assert!(members.len() == 3 && members.iter().all(|member| member["state"] == "serving"), "{members:?}");
}

/// Every member is shown, also one that has gone; and what needs no quorum goes on without one.
fn health_follows_the_members(cluster: &mut Cluster, nodes: &[Rest]) {
    assert_eq!(nodes[0].get("/healthz").expect(200).json()["healthy"], true);
    cluster.kill(3);
    let sick = wait_until("the loss of a node shows", Duration::from_secs(10), || {
        let watch = Stopwatch::start();
        let health = nodes[0].get("/healthz");
        assert!(
            watch.elapsed() < Duration::from_secs(4),
            "told within 2 s, on a busy machine: {:?}",
            watch.elapsed()
        );
        (health.status == 503).then(|| health.json())
    });
    let sick = sick.unwrap_or_else(|error| panic!("{error}"));
    let members = sick["members"].as_array().expect("members");
    assert_eq!(members.len(), 3, "{sick}");
    let gone = members.iter().find(|member| member["node_id"] == "node3").expect("it is shown");
    assert_eq!((&gone["reachable"], &gone["state"]), (&json!(false), &json!("unreachable")));
    let ready = wait_until("the others serve", Duration::from_secs(20), || {
        (nodes[0].get("/readyz").status == 200).then_some(())
    });
    ready.unwrap_or_else(|error| panic!("{error}"));
    cluster.kill(2);
    let lost = wait_until("the loss of the quorum shows", Duration::from_secs(20), || {
        (nodes[0].get("/readyz").status == 503).then_some(())
    });
    lost.unwrap_or_else(|error| panic!("{error}"));
    nodes[0].get("/livez").expect(200);
    nodes[0].get("/v1/openapi.json").expect(200);
    let unavailable = nodes[0].get("/v1/kv/account?timeout_ms=1000");
    assert!(matches!(unavailable.status, 503 | 504), "{unavailable:?}");
    cluster.start_node(2);
    cluster.start_node(3);
    cluster.await_health(Duration::from_secs(60));
    assert_eq!(nodes[0].get("/v1/kv/account").expect(200).body, b"4");
}

/// schemathesis draws requests from the document, good ones and bad ones, and holds every answer against it.
fn the_server_is_what_its_document_says(cluster: &Cluster) {
    let directory = root().join("target/rest");
    let Some(checker) = schemathesis(&directory) else { return };
    let configuration = directory.join("schemathesis.toml");
    fs::write(&configuration, CHECKS).expect("target is writable");
    let mut command = Command::new(checker);
    command.current_dir(&directory).arg("--config-file").arg(&configuration);
    command.arg("run").arg(format!("https://{}/v1/openapi.json", cluster.address(1)));
    command.arg("--tls-verify").arg(cluster.certificates().join("ca.crt"));
    command.args(["-H", &format!("Authorization: Bearer {}", cluster.token()), "-n", EXAMPLES]);
    command.args(["--phases", "coverage,fuzzing", "--generation-deterministic", "--no-shrink", "--no-color"]);
    let answer = krita_tests::process::run(&mut command, b"");
    // A reproduction may hold a key of kilobytes.
    let said: Vec<String> = answer.text().lines().map(|line| line.chars().take(300).collect()).collect();
    assert_eq!(answer.code, Some(0), "{}\n{}", said.join("\n"), answer.stderr);
}

/// What an answer may be, beyond what the checker expects by itself. 404: keys that nobody has put. 412 and 520:
/// conditions and sessions that are drawn do not hold. 413 and 431: what is too large for HTTP is so before REST.
const CHECKS: &str = r#"
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 520]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", 404, 412, 429, 431, 520]
negative_data_rejection.expected-statuses = [400, 401, 404, 405, 406, 412, 413, 415, 429, 431]

# Headers whose schema is a pattern are drawn cut short (`"1` for `"1"`), against that pattern; and a cursor is
# opaque: one that is drawn is none.
[[operations]]
include-path-regex = "^/v1/(kv|batch|scan)"
checks.positive_data_acceptance.enabled = false

# These say with 503 that a shard is just being led by another node, as it may be at any time.
[[operations]]
include-path-regex = "^/(readyz|healthz)"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 503]
checks.positive_data_acceptance.expected-statuses = ["2xx", 503]
"#;

/// The checker in an environment of its own, made once; `None` if it cannot be had here.
fn schemathesis(directory: &Path) -> Option<PathBuf> {
    let environment = directory.join("environment");
    let checker = environment.join("bin/schemathesis");
    if checker.exists() {
        return Some(checker);
    }
    fs::create_dir_all(directory).expect("target is writable");
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&environment);
    let mut install = Command::new(environment.join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS]);
    for command in [&mut make, &mut install] {
        match command.output() {
            Ok(output) if output.status.success() => {}
            failed => {
                println!("SKIP: schemathesis cannot be had here: {failed:?}");
                return None;
            }
        }
    }
    Some(checker)
}

/// The one shape of errors.
#[track_caller]
fn assert_error(response: &Response, status: u16, name: &str) -> Value {
    assert_eq!(response.status, status, "{}", String::from_utf8_lossy(&response.body));
    assert_eq!(response.header("content-type"), Some("application/json"));
    let error = response.json()["error"].clone();
    assert_eq!(error["name"], name, "{error}");
    assert!(error["code"].is_u64() && error["message"].is_string() && error["action"].is_string(), "{error}");
    error
}

fn parse(line: &[u8]) -> Value {
    serde_json::from_slice(line).expect("each line is JSON")
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digits = |chunk: &[u8]| -> String {
        let bits =
            (0..3).fold(0_usize, |bits, at| bits << 8 | usize::from(chunk.get(at).copied().unwrap_or(0)));
        (0..=chunk.len()).map(|digit| char::from(ALPHABET[bits >> (18 - 6 * digit) & 63])).collect()
    };
    bytes.chunks(3).map(digits).collect()
}
