//! The cluster's own state on real processes: what an admin changes outlives the node that led it, every node tells it,
//! and an older data directory gains its replica of it.
//!
//! The commands must have been built with the profile of the tests; `cargo xtask test` does so. By itself:
//! `cargo build --profile test --workspace --bins && cargo test -p krita-tests --test meta_processes`.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::time::Duration;

use krita_tests::process::{Cluster, wait_until};
use kritaclient::ErrorCode;
use kritaclient::blocking::Client;
use kritaclient::v1::cluster_change::Change;
use kritaclient::v1::{ClusterLead, ClusterSetting, MetaSnapshot};

/// The number of the setting `moves_max`.
const MOVES_MAX: u32 = 5;

const LIMIT: Duration = Duration::from_secs(30);

fn read_until(client: &Client, what: &str, is_so: impl Fn(&MetaSnapshot) -> bool) -> MetaSnapshot {
    wait_until(what, LIMIT, || client.read_cluster(false).ok().filter(|state| is_so(state)))
        .unwrap_or_else(|error| panic!("{error}: {:?}", client.read_cluster(true)))
}

fn moves_max(state: &MetaSnapshot) -> Option<u64> {
    state.settings.iter().find(|setting| setting.setting == MOVES_MAX).map(|setting| setting.value)
}

fn set(value: u64) -> Change {
    Change::Setting(ClusterSetting { setting: MOVES_MAX, value })
}

/// The node that leads shard 0.
fn leader(cluster: &Cluster, client: &Client) -> u16 {
    let leads = |node: &u16| {
        let status = client.node_status(&cluster.address(*node)).ok();
        let shards = status.map(|status| status.shards).unwrap_or_default();
        shards.iter().any(|shard| shard.shard == 0 && shard.role == "leader")
    };
    wait_until("somebody leads shard 0", LIMIT, || cluster.numbers().find(leads)).expect("it elects")
}

#[test]
fn the_cluster_s_own_state_outlives_who_led_it() {
    let mut cluster = Cluster::start(3);
    let client = Client::connect(cluster.client_options()).expect("a client");
    let formed = read_until(&client, "all have said what they take part in", |state| {
        state.members.len() == 3 && state.feature >= 2
    });
    assert_eq!(formed.shards.len() as u32, 1 + client.cluster_status().expect("a map").shards.len() as u32);
    assert!(client.change_cluster(set(33)).expect("set").changed);
    let refused = client.change_cluster(set(0)).expect_err("out of bounds");
    assert_eq!(refused.code(), ErrorCode::InvalidArgument);

    let led = leader(&cluster, &client);
    cluster.kill(led);
    let down = |state: &MetaSnapshot| {
        state.members.iter().any(|member| member.node_number == u32::from(led) && member.down_since_ms != 0)
    };
    let state = read_until(&client, "it is known to be down", down);
    assert_eq!(moves_max(&state), Some(33));
    cluster.start_node(led);
    read_until(&client, "it is known to be up", |state| !down(state));

    // Who should lead a shard does, and every node's map says so.
    let map = client.cluster_status().expect("a map");
    let place = map.shards.iter().find(|place| place.leader_node != 0).expect("a shard with a leader");
    let node = *place.nodes.iter().find(|node| **node != place.leader_node).expect("three have it");
    let shard = place.shard;
    assert!(client.change_cluster(Change::Lead(ClusterLead { shard, node })).expect("chosen").changed);
    wait_until("it leads", LIMIT, || {
        let map = client.cluster_status().ok()?;
        map.shards.iter().any(|place| place.shard == shard && place.leader_node == node).then_some(())
    })
    .expect("it leads");

    for node in cluster.numbers() {
        cluster.kill(node);
    }
    for node in cluster.numbers() {
        cluster.start_node(node);
    }
    let state = read_until(&client, "it comes back", |state| state.epoch >= map.epoch);
    assert_eq!(moves_max(&state), Some(33));
}
