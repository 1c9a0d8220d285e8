//! The meta group in whole clusters, in virtual time: what it was told outlives its leader and a power cut, it knows
//! who is down, and clients are told its map.

use krita_tests::simulation::meta::{move_by_hand, survive};

#[test]
fn what_the_meta_group_was_told_outlives_its_leader_and_a_power_cut() {
    for (seed, nodes) in [(3, 3), (4, 3), (5, 4), (6, 5)] {
        survive(seed, nodes).unwrap_or_else(|wrong| panic!("seed {seed}, {nodes} nodes: {wrong}"));
    }
}

#[test]
fn a_replica_that_a_person_moves_is_moved_and_every_map_follows() {
    for seed in [11, 12] {
        move_by_hand(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}
