//! Gossip in a simulated world: how fast it finds and mourns, and whom it must never mourn.
//!
//! `KRITA_SEED=n` replays one seed of every test, `KRITA_SEEDS=n` or `a..b` runs many; `KRITA_LONG=1` loses messages
//! for an hour.

mod life;
mod properties;
mod world;

use krita_net::gossip::{Event, Health, State, Vitals};
use world::{Slowness, World, ms, secs};

/// The seeds of a test.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |text: &str| text.trim().parse::<u64>().expect("seeds are numbers");
    if let Ok(seed) = std::env::var("KRITA_SEED") {
        let seed = number(&seed);
        return seed..seed + 1;
    }
    match std::env::var("KRITA_SEEDS") {
        Ok(range) => match range.split_once("..") {
            Some((from, to)) => number(from)..number(to),
            None => 0..number(&range),
        },
        Err(_) => 0..usual,
    }
}

#[test]
fn who_knows_one_knows_all() {
    for seed in seeds(3) {
        for nodes in [2, 3, 10, 40, 100] {
            let mut world = World::new(seed);
            for node in 0..nodes {
                // A chain: each knows only the one that started before it.
                let seeds = if node == 0 { vec![] } else { vec![world.address(node - 1)] };
                world.start(seeds);
            }
            let took = world.until(secs(5), World::all_know_all);
            assert!(took.is_some(), "KRITA_SEED={seed}: {nodes} nodes in a chain");
        }
    }
}

#[test]
fn a_newcomer_knows_all_and_is_known_by_all() {
    for seed in seeds(5) {
        for nodes in [3, 30, 100] {
            let mut world = World::formed(seed, nodes);
            // Nobody answers at most of its seeds.
            let known = world.random.below(nodes as u64) as usize;
            let mut seeds: Vec<String> = (0..10).map(|it| format!("nobody-{it}:1")).collect();
            seeds.push(world.address(known));
            world.start(seeds);
            let took = world.until(secs(5), World::all_know_all);
            assert!(took.is_some(), "KRITA_SEED={seed}: one more than {nodes} nodes");
        }
    }
}

#[test]
fn a_kill_is_seen_by_all_in_time() {
    for nodes in [3, 4, 5, 7, 10, 20, 50, 100] {
        let (mut suspected_max, mut dead_max) = (ms(0), ms(0));
        for seed in seeds(10) {
            let mut world = World::formed(seed, nodes);
            let pause = ms(world.random.below(1000));
            world.run(pause);
            let victim = world.random.below(nodes as u64) as usize;
            world.kill(victim);
            let seen = |world: &World| {
                world.running().iter().all(|by| world.state(victim, *by) != Some(State::Alive))
            };
            let suspected = world.until(secs(10), seen).expect("suspected");
            let dead = world.until(secs(20), |world| world.all_think(victim, State::Dead)).expect("dead");
            let dead = suspected + dead;
            assert!(suspected <= secs(2), "KRITA_SEED={seed}: {nodes} nodes suspect after {suspected:?}");
            assert!(dead <= secs(5), "KRITA_SEED={seed}: {nodes} nodes declare dead after {dead:?}");
            assert_eq!(world.wronged, [], "KRITA_SEED={seed}");
            suspected_max = suspected_max.max(suspected);
            dead_max = dead_max.max(dead);
        }
        println!(
            "{nodes} nodes: suspected by all within {suspected_max:?}, dead for all within {dead_max:?}"
        );
    }
}

#[test]
fn many_deaths_at_once_are_seen() {
    for seed in seeds(10) {
        let mut world = World::formed(seed, 20);
        let dead: Vec<usize> = (0..6).map(|it| it * 3).collect();
        dead.iter().for_each(|node| world.kill(*node));
        let seen = |world: &World| dead.iter().all(|node| world.all_think(*node, State::Dead));
        let took = world.until(secs(20), seen);
        println!("seed {seed}: 6 of 20 are dead for all after {took:?}");
        assert!(took.is_some(), "KRITA_SEED={seed}");
        assert_eq!(world.wronged, [], "KRITA_SEED={seed}");
    }
}

#[test]
fn lost_messages_kill_nobody() {
    let time = secs(if std::env::var_os("KRITA_LONG").is_some() { 3600 } else { 150 });
    for (loss, nodes, count) in
        [(50, 3, 4), (50, 10, 2), (300, 3, 4), (300, 5, 3), (300, 10, 2), (300, 30, 1)]
    {
        let (mut accusations, mut seconds) = (0, 0);
        for seed in seeds(count) {
            let mut world = World::new(seed);
            (world.loss, world.through_bytes) = (loss, false);
            for node in 0..nodes {
                let seeds = if node == 0 { vec![] } else { vec![world.address(0)] };
                world.start(seeds);
            }
            let joined = world.until(secs(15), |world| {
                let running = world.running();
                let known = |of: &usize, by: &usize| of == by || world.state(*of, *by).is_some();
                running.iter().all(|by| running.iter().all(|of| known(of, by)))
            });
            assert!(joined.is_some(), "KRITA_SEED={seed}: {nodes} nodes find each other");
            world.run(time);
            seconds += time.as_secs();
            assert_eq!(world.wronged, [], "KRITA_SEED={seed}: {nodes} nodes at {loss} per mille");
            accusations += (0..nodes).map(|node| world.gossip(node).counters().accusations).sum::<u64>();
        }
        println!("{nodes} nodes, {loss} per mille lost, {seconds} s: {accusations} accusations, no death");
    }
}

/// Whoever is wronged is slow itself.
#[test]
fn the_slow_do_not_bury_the_others() {
    let kinds = [
        Slowness::Inbox(ms(400), ms(2000)),
        Slowness::Inbox(secs(3), secs(8)),
        Slowness::Stutters { stands: secs(3), runs: ms(60) },
        Slowness::Stutters { stands: secs(9), runs: ms(200) },
        Slowness::Stutters { stands: secs(40), runs: secs(10) },
    ];
    for seed in seeds(2) {
        for nodes in [3, 5, 20] {
            for kind in kinds {
                let mut world = World::formed(seed, nodes);
                world.through_bytes = false;
                let slow = nodes.div_ceil(5);
                (0..slow).for_each(|node| world.nodes[node].slowness = kind);
                world.run(secs(120));
                let buried = world.wronged.iter().find(|(_, _, dead)| *dead >= slow);
                assert_eq!(buried, None, "KRITA_SEED={seed}: {nodes} nodes, {slow} slow: {kind:?}");
            }
        }
    }
}

#[test]
fn a_node_with_a_fifth_of_a_core_lives() {
    for seed in seeds(6) {
        for nodes in [3, 5, 20] {
            let mut world = World::formed(seed, nodes);
            world.nodes[1].slowness = Slowness::Stutters { stands: ms(400), runs: ms(100) };
            world.run(secs(300));
            assert_eq!(world.wronged, [], "KRITA_SEED={seed}: {nodes} nodes");
        }
    }
}

#[test]
fn a_slow_network_kills_nobody() {
    for seed in seeds(3) {
        for nodes in [3, 10] {
            let mut world = World::formed(seed, nodes);
            (world.delay, world.loss, world.through_bytes) = ((ms(150), ms(250)), 50, false);
            world.run(secs(200));
            assert_eq!(world.wronged, [], "KRITA_SEED={seed}: {nodes} nodes");
            world.kill(0);
            let took = world.until(secs(20), |world| world.all_think(0, State::Dead));
            println!("seed {seed}: {nodes} nodes at 200 ms: dead after {took:?}");
            assert!(took.is_some(), "KRITA_SEED={seed}: {nodes} nodes");
        }
    }
}

/// Messages and bytes per node and second.
fn load(nodes: usize) -> (f64, f64) {
    let mut world = World::new(1);
    world.through_bytes = false;
    for node in 0..nodes {
        let seeds = if node == 0 { vec![] } else { vec![world.address(0)] };
        world.start(seeds);
    }
    let formed = world.until(secs(60), World::all_know_all).expect("formed");
    let busy_for = |world: &mut World, seconds: u64| {
        for _ in 0..seconds {
            for node in 0..nodes {
                let load_per_mille = u32::try_from(world.random.below(1000)).expect("small");
                let vitals = Vitals { load_per_mille, health: Health::Well, ..Vitals::default() };
                world.with(node, |now, gossip| gossip.set_vitals(now, vitals));
            }
            world.run(secs(1));
        }
    };
    busy_for(&mut world, 10);
    let (messages, bytes) = (world.messages, world.bytes);
    busy_for(&mut world, 15);
    let per = |count: u64| count as f64 / nodes as f64 / 15.0;
    let (messages, bytes) = (per(world.messages - messages), per(world.bytes - bytes));
    let largest = world.frame_bytes_max;
    println!(
        "{nodes} nodes: formed in {formed:?}; {messages:.1} messages, {bytes:.0} bytes per node and second"
    );
    assert!(largest <= 40 * 1024, "the largest message has {largest} bytes");
    assert_eq!(world.wronged, []);
    (messages, bytes)
}

#[test]
fn the_load_of_a_node_does_not_grow_with_the_cluster() {
    let loads = [10, 50, 100, 250, 500].map(load);
    for (messages, bytes) in loads {
        assert!(messages <= 25.0, "{messages} messages per node and second");
        assert!(bytes <= 16_000.0, "{bytes} bytes per node and second");
    }
    let ((few, _), (many, _)) = (loads[0], loads[4]);
    assert!(many <= few * 1.2, "500 nodes: {many} messages per node and second, 10 nodes: {few}");
}

#[test]
fn nobody_is_alone_with_a_broken_link() {
    for seed in seeds(10) {
        for nodes in [3, 4, 10] {
            let mut world = World::formed(seed, nodes);
            // Two that do not hear each other; where there are more, one that does not hear a third.
            world.cut = [(0, 1), (1, 0)].into();
            if nodes > 3 {
                world.cut.insert((2, 0));
            }
            world.noticed.clear();
            world.run(secs(120));
            assert_eq!(world.wronged, [], "KRITA_SEED={seed}: {nodes} nodes");
            // Helpers reach whom the link does not.
            let mut suspected = world.noticed.iter().filter(|it| matches!(it.event, Event::Suspected { .. }));
            assert!(suspected.next().is_none(), "KRITA_SEED={seed}: {nodes} nodes");
        }
    }
}

/// One alone hears nobody; two can confirm each other, and still lack a second witness.
#[test]
fn the_few_find_no_witnesses() {
    for seed in seeds(10) {
        for side in [vec![0], vec![0, 1]] {
            let mut world = World::formed(seed, 5);
            world.part(&side);
            world.run(secs(10));
            let others = || (0..5).filter(|node| !side.contains(node));
            let mourned = |by: usize| side.iter().all(|of| world.state(*of, by) == Some(State::Dead));
            assert!(others().all(mourned), "KRITA_SEED={seed}: the many mourn {side:?}");
            let by_few = world.wronged.iter().find(|(_, by, _)| side.contains(by));
            assert_eq!(by_few, None, "KRITA_SEED={seed}: {side:?} have no witness");
            world.cut.clear();
            let took = world.until(secs(5), World::all_know_all);
            assert!(took.is_some(), "KRITA_SEED={seed}: {side:?} are back");
        }
    }
}

#[test]
fn a_healed_partition_finds_itself() {
    for seed in seeds(6) {
        for nodes in [4, 10, 50] {
            let mut world = World::formed(seed, nodes);
            let side: Vec<usize> = (0..nodes / 2).collect();
            world.part(&side);
            let parted = |world: &World| {
                let apart = |by: &usize, of: &usize| side.contains(by) != side.contains(of);
                let dead = |by: &usize, of: &usize| world.state(*of, *by) == Some(State::Dead);
                let all = world.running();
                all.iter().all(|by| all.iter().all(|of| !apart(by, of) || dead(by, of)))
            };
            let took = world.until(secs(60), parted);
            assert!(took.is_some(), "KRITA_SEED={seed}: {nodes} nodes: each half mourns the other");
            world.run(secs(30));
            world.cut.clear();
            let took = world.until(secs(5), World::all_know_all);
            println!("seed {seed}: {nodes} nodes: healed after {took:?}");
            assert!(took.is_some(), "KRITA_SEED={seed}: {nodes} nodes");
            let own_death = |event: &Event| matches!(event, Event::Contradicted { state: State::Dead });
            assert!(world.noticed.iter().any(|noticed| own_death(&noticed.event)));
        }
    }
}
