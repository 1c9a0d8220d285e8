//! Nodes that come to a cluster that is there, in virtual time: a new one is a member soon, also after a restart; a
//! cluster that began with one node grows; a wiped one comes back under a new number; who does not fit is refused with
//! the reason, and disturbs nobody.

use std::time::Duration;

use krita_tests::simulation::joining::Newcomers;

#[test]
fn a_new_node_becomes_a_member_and_stays_one() {
    for seed in [1, 2] {
        let world = Newcomers::formed(seed, 3);
        let newcomer = world.start("node4", "simulated", "node4");
        let all = ["node1:8080", "node2:8080", "node3:8080", "node4:8080"];
        let members = [(1, "node1"), (2, "node2"), (3, "node3"), (4, "node4")];
        let took = world.await_members(&all, &members).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        println!("seed {seed}: a member after {took:?}");
        world.kill(&newcomer);
        world.run(Duration::from_secs(8));
        world.boot(&newcomer);
        world.run(Duration::from_secs(3));
        world.await_members(&all, &members).unwrap_or_else(|wrong| panic!("seed {seed}, again: {wrong}"));
    }
}

#[test]
fn a_cluster_of_one_grows_to_three() {
    let world = Newcomers::formed(3, 1);
    let newcomers = ["node2", "node3"].map(|name| world.start(name, "simulated", name));
    // Whoever asks first has the lower number.
    let all = ["node1:8080", "node2:8080", "node3:8080"];
    let grown = |second, third| world.await_members(&all, &[(1, "node1"), (2, second), (3, third)]);
    let is_known = || grown("node2", "node3").or_else(|_| grown("node3", "node2"));
    is_known().unwrap_or_else(|wrong| panic!("all three are members: {wrong}"));
    // Its record names itself alone, but its group is among all three.
    for (position, pause) in [(0, 1), (0, 20)] {
        world.run(Duration::from_secs(5));
        world.restart_founder(position, Duration::from_secs(pause));
        is_known().unwrap_or_else(|wrong| panic!("after a restart of the founder: {wrong}"));
    }
    newcomers.iter().for_each(|newcomer| world.kill(newcomer));
    world.restart_founder(0, Duration::from_secs(1));
    newcomers.iter().for_each(|newcomer| world.boot(newcomer));
    is_known().unwrap_or_else(|wrong| panic!("after a restart of all: {wrong}"));
}

/// Whoever dies on the way, each of them is a member once: the numbers are the next two, and no more are given.
#[test]
fn two_join_at_once_while_nodes_crash() {
    for seed in seeds() {
        let world = Newcomers::formed(seed, 3);
        let newcomers = ["node4", "node5"].map(|name| world.start(name, "simulated", name));
        world.crash_about(&newcomers.each_ref(), 6);
        let all = ["node1:8080", "node2:8080", "node3:8080", "node4:8080", "node5:8080"];
        let members = |fourth, fifth| [(1, "node1"), (2, "node2"), (3, "node3"), (4, fourth), (5, fifth)];
        let joined = world
            .await_members(&all, &members("node4", "node5"))
            .or_else(|_| world.await_members(&all, &members("node5", "node4")));
        joined.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

/// `KRITA_SEEDS=a..b` or the ordinary ones.
fn seeds() -> std::ops::Range<u64> {
    let range = std::env::var("KRITA_SEEDS").ok().filter(|range| !range.is_empty());
    let Some((from, to)) = range.as_deref().and_then(|range| range.split_once("..")) else { return 10..16 };
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} is no seed"));
    number(from)..number(to)
}

#[test]
fn a_wiped_node_comes_back_as_another_and_its_old_self_is_retired() {
    let world = Newcomers::formed(4, 3);
    world.wipe_founder(2);
    let all = ["node1:8080", "node2:8080", "node3:8080"];
    let members = [(1, "node1"), (2, "node2"), (4, "node3")];
    world.await_members(&all, &members).unwrap_or_else(|wrong| panic!("{wrong}"));
}

#[test]
fn who_does_not_fit_is_refused_with_the_reason() {
    let world = Newcomers::formed(5, 3);
    let twin = world.start("twin", "simulated", "node2");
    world.start("stranger", "elsewhere", "node9");
    world.run(Duration::from_secs(5));
    let state = world.state_of(&twin);
    assert!(state.contains("not admitted yet") && state.contains("called \"node2\" already"), "{state}");
    let founders = ["node1:8080", "node2:8080", "node3:8080"];
    let members = [(1, "node1"), (2, "node2"), (3, "node3")];
    world.await_members(&founders, &members).unwrap_or_else(|wrong| panic!("{wrong}"));
}
