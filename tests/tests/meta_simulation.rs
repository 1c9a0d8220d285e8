//! The meta group in whole clusters, in virtual time: what it was told outlives its leader and a power cut, it knows
//! who is down, and clients are told its map.

use krita_tests::simulation::meta::survive;

#[test]
fn what_the_meta_group_was_told_outlives_its_leader_and_a_power_cut() {
    for (seed, nodes) in [(3, 3), (4, 3), (5, 4), (6, 5)] {
        survive(seed, nodes).unwrap_or_else(|wrong| panic!("seed {seed}, {nodes} nodes: {wrong}"));
    }
}
