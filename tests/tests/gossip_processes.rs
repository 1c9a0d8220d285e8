//! Gossip between real processes: a node that is killed is found dead by the others, one that stops has left, and one
//! that comes back is alive.
//!
//! The commands must have been built with the profile of the tests; `cargo xtask test` does so.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::time::Duration;

use krita_tests::process::{Cluster, Stopwatch, wait_until};
use kritaclient::blocking::Client;

/// What it takes in virtual time is 5 s; a machine that runs other tests beside this one may need more.
const DEAD_MAX: Duration = Duration::from_secs(15);

/// How long a node that stops may take.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Waits until all `tellers` call the node so.
fn await_state(cluster: &Cluster, client: &Client, tellers: &[u16], node: u16, wanted: &str) -> Duration {
    let since = Stopwatch::start();
    let mut last = Vec::new();
    let reached = wait_until("gossip knows", DEAD_MAX, || {
        last = tellers
            .iter()
            .map(|teller| {
                let status = client.node_status(&cluster.address(*teller)).ok()?;
                let mut seen = status.sightings.into_iter();
                seen.find(|sighting| sighting.node_number == u32::from(node)).map(|sighting| sighting.state)
            })
            .collect();
        last.iter().all(|state| state.as_deref() == Some(wanted)).then_some(())
    });
    reached.unwrap_or_else(|error| panic!("node {node} is not {wanted}: {error}; the last: {last:?}"));
    since.elapsed()
}

#[test]
fn a_killed_node_is_dead_a_stopped_one_has_left_and_both_come_back() {
    let mut cluster = Cluster::start(3);
    let client = Client::connect(cluster.client_options()).expect("the cluster serves");
    for node in cluster.numbers() {
        await_state(&cluster, &client, &[1, 2, 3], node, "alive");
    }
    // Nodes are numbered by their addresses, and so are these.
    cluster.kill(3);
    let dead_after = await_state(&cluster, &client, &[1, 2], 3, "dead");
    println!("dead after {dead_after:?}");
    let listed = cluster.control(1, &["node", "list", "-o", "json"]).text();
    assert!(listed.contains("\"dead\""), "{listed}");
    cluster.start_node(3);
    await_state(&cluster, &client, &[1, 2, 3], 3, "alive");
    assert_eq!(cluster.stop(2, STOP_MAX), Some(0));
    await_state(&cluster, &client, &[1, 3], 2, "left");
    cluster.start_node(2);
    await_state(&cluster, &client, &[1, 2, 3], 2, "alive");
    cluster.await_health(DEAD_MAX);
}
