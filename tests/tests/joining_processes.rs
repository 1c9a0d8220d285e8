//! A cluster that grows, on real processes: one node takes in two others, and has them hold what it holds, so that it
//! is not missed when it dies. Nobody says more than where the one node is.
//!
//! The commands must have been built with the profile of the tests; `cargo xtask test` does so.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::time::Duration;

use krita_tests::process::{Cluster, wait_until};
use kritaclient::blocking::Client;
use kritaclient::v1::MetaSnapshot;

/// Shards with data; each gets two replicas more.
const SHARDS: u32 = 8;

const KEYS: u32 = 200;

/// It takes seconds; a machine with much else to do may need far longer.
const LIMIT: Duration = Duration::from_secs(120);

/// How many replicas of each shard vote.
fn voters(state: &MetaSnapshot) -> Vec<usize> {
    let voters = |roles: &[u8]| roles.iter().filter(|role| **role == VOTER).count();
    state.shards.iter().map(|shard| voters(&shard.roles)).collect()
}

/// The number of the role in a map.
const VOTER: u8 = 1;

#[test]
fn a_cluster_of_one_grows_to_three_and_does_not_miss_the_first() {
    let mut cluster = Cluster::start_alone(SHARDS, 3);
    let client = Client::connect(cluster.client_options()).expect("it serves");
    for number in 0..KEYS {
        client.put(format!("key-{number}"), format!("value {number}")).expect("written");
    }
    assert_eq!(voters(&client.read_cluster(false).expect("told")), [1; 1 + SHARDS as usize]);
    cluster.add_node();
    cluster.add_node();
    let mut last = None;
    let grown = wait_until("each shard has three voters", LIMIT, || {
        last = client.read_cluster(false).ok();
        (voters(last.as_ref()?) == [3; 1 + SHARDS as usize]).then_some(())
    });
    grown.unwrap_or_else(|error| panic!("{error}: {last:?}"));
    let client = Client::connect(cluster.client_options()).expect("it serves");
    cluster.await_equal_replicas(&client, LIMIT);
    cluster.await_health(LIMIT);

    cluster.kill(1);
    for number in 0..KEYS {
        let value = wait_until("a key is read without the first node", LIMIT, || {
            client.get(format!("key-{number}")).ok()
        });
        let value = value.unwrap_or_else(|error| panic!("key {number}: {error}"));
        assert_eq!(value.map(|entry| entry.value), Some(format!("value {number}").into()));
    }
    client.put("after", "it").expect("the others are a quorum");

    // A node that joined knows after a restart who it is, also where nobody is there who formed the cluster.
    cluster.kill(2);
    cluster.start_node(2);
    let served = wait_until("it serves again", LIMIT, || client.get("after").ok().flatten());
    served.unwrap_or_else(|error| panic!("{error}"));
    cluster.start_node(1);
    cluster.await_health(LIMIT);
    cluster.await_equal_replicas(&client, LIMIT);
}
