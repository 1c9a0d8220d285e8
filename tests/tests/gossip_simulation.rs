//! Gossip in whole clusters, in virtual time: a kill is suspected within 2 s and declared within 5 s by all, a node
//! that comes back is found, one that stops says so, and under loss no live node is declared dead.

use std::time::Duration;

use krita_tests::simulation::sightings::{kill_one, lose_much};

#[test]
fn a_kill_is_suspected_within_two_seconds_and_declared_within_five() {
    for (seed, nodes) in [(1, 3), (2, 3), (3, 4), (4, 5), (5, 7)] {
        let noticed =
            kill_one(seed, nodes).unwrap_or_else(|wrong| panic!("seed {seed}, {nodes} nodes: {wrong}"));
        println!("seed {seed}, {nodes} nodes: {noticed:?}");
        assert!(noticed.suspect_after < Duration::from_secs(2), "seed {seed}: {noticed:?}");
        assert!(noticed.dead_after < Duration::from_secs(5), "seed {seed}: {noticed:?}");
    }
}

#[test]
fn under_loss_no_live_node_is_declared_dead() {
    for (seed, nodes) in [(11, 3), (12, 4), (13, 5)] {
        lose_much(seed, nodes, 0.3).unwrap_or_else(|wrong| panic!("seed {seed}, {nodes} nodes: {wrong}"));
    }
}
