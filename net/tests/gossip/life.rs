//! Nodes that restart, are wiped, leave and are forgotten; clusters that must not mix; and lives at random.

use std::sync::Arc;
use std::time::Duration;

use krita_net::gossip::{
    Body, Cluster, ClusterId, Event, Gossip, Message, NodeUuid, Options, Profile, Record, Refusal,
    StampedVitals, Start, State,
};
use krita_runtime::Instant;

use crate::seeds;
use crate::world::{World, ms, secs};

#[test]
fn a_restarted_node_is_itself_again() {
    for seed in seeds(10) {
        for nodes in [2, 3, 10] {
            for pause in [ms(10), secs(2), secs(15)] {
                let mut world = World::formed(seed, nodes);
                world.kill(1);
                world.run(pause);
                // It remembers nothing of its incarnations.
                let seeds = vec![world.address(0)];
                world.boot(1, seeds, 1);
                let boot_id = world.gossip(1).own().profile.boot_id;
                let uuid = world.nodes[1].uuid;
                let is_new = |world: &World, by: usize| {
                    let gossip = world.nodes[by].gossip.as_ref().expect("it runs");
                    by == 1 || gossip.member(uuid).is_some_and(|member| member.profile.boot_id == boot_id)
                };
                let back = |world: &World| {
                    world.all_know_all() && world.running().iter().all(|by| is_new(world, *by))
                };
                let took = world.until(secs(5), back);
                assert!(took.is_some(), "KRITA_SEED={seed}: {nodes} nodes, {pause:?}");
                world.run(secs(20));
                assert!(back(&world), "KRITA_SEED={seed}: {nodes} nodes, {pause:?}: it stays");
                assert_eq!(world.wronged, [], "KRITA_SEED={seed}: {nodes} nodes, {pause:?}");
            }
        }
    }
}

#[test]
fn a_wiped_node_is_another_one() {
    for seed in seeds(10) {
        for pause in [ms(0), secs(1), secs(10)] {
            let mut world = World::formed(seed, 5);
            world.kill(2);
            world.run(pause);
            let seeds = vec![world.address(0)];
            let new = world.start_at(world.address(2), seeds);
            let (old_uuid, new_uuid) = (world.nodes[2].uuid, world.nodes[new].uuid);
            let settled =
                |world: &World| world.all_think(2, State::Dead) && world.all_think(new, State::Alive);
            let took = world.until(secs(6), settled);
            assert!(took.is_some(), "KRITA_SEED={seed}: after {pause:?}");
            world.run(secs(30));
            assert!(settled(&world), "KRITA_SEED={seed}: after {pause:?}: it stays so");
            assert_eq!(world.wronged, [], "KRITA_SEED={seed}: after {pause:?}");
            let joined = Event::Joined { uuid: new_uuid, namesake: Some(old_uuid) };
            assert!(
                world.noticed.iter().any(|noticed| noticed.event == joined),
                "the name is seen to be taken"
            );
        }
    }
}

#[test]
fn who_leaves_is_not_mourned() {
    for seed in seeds(10) {
        for nodes in [2, 3, 10, 50] {
            let mut world = World::formed(seed, nodes);
            let began = world.now;
            world.with(1, |now, gossip| gossip.leave(now));
            let told = world.until(secs(3), |world| {
                world.nodes[1].gossip.as_ref().is_some_and(Gossip::has_left)
                    && world.all_think(1, State::Left)
            });
            assert!(told.is_some(), "KRITA_SEED={seed}: {nodes} nodes");
            world.kill(1);
            world.run(secs(20));
            assert!(world.all_think(1, State::Left), "KRITA_SEED={seed}: {nodes} nodes: it stays left");
            let mourned = world.noticed.iter().filter(|noticed| noticed.at >= began);
            let mut mourned =
                mourned.filter(|it| matches!(it.event, Event::Died { .. } | Event::Suspected { .. }));
            assert!(mourned.next().is_none(), "KRITA_SEED={seed}: {nodes} nodes");
            let seeds = vec![world.address(0)];
            world.boot(1, seeds, 1);
            let took = world.until(secs(5), World::all_know_all);
            assert!(took.is_some(), "KRITA_SEED={seed}: {nodes} nodes: it comes again");
        }
    }
}

#[test]
fn the_dead_are_forgotten_everywhere_at_their_time() {
    for seed in seeds(6) {
        let mut world = World::new(seed);
        world.options.remember_gone = secs(40);
        for node in 0..6 {
            let seeds = if node == 0 { vec![] } else { vec![world.address(0)] };
            world.start(seeds);
        }
        world.run(secs(10));
        world.kill(3);
        world.run(secs(25));
        // Who comes now hears of the death, and must not begin to count anew.
        let seeds = vec![world.address(1)];
        let late = world.start(seeds);
        world.run(secs(5));
        assert_eq!(world.state(3, late), Some(State::Dead), "KRITA_SEED={seed}: it is told");
        let forgotten = |world: &World| world.running().iter().all(|by| world.state(3, *by).is_none());
        assert!(!forgotten(&world), "KRITA_SEED={seed}: not yet");
        world.run(secs(20));
        assert!(forgotten(&world), "KRITA_SEED={seed}: by all");
        world.run(secs(60));
        assert!(forgotten(&world), "KRITA_SEED={seed}: for good");
    }
}

#[test]
fn clusters_of_one_name_do_not_mix() {
    for seed in seeds(5) {
        let mut world = World::new(seed);
        for node in 0..6 {
            world.cluster_id = Some(ClusterId([1 + (node % 2) as u8; 16]));
            // Each names all.
            let seeds = (0..6).map(|it| world.address(it)).collect();
            world.start(seeds);
        }
        // One does not know yet where it belongs: it takes the first that answers, and stays there.
        world.cluster_id = None;
        let seeds = (0..6).map(|it| world.address(it)).collect();
        let undecided = world.start(seeds);
        world.run(secs(30));
        let taken = world.gossip(undecided).cluster().id.expect("it has found one");
        for by in 0..6 {
            for of in (0..6).filter(|of| *of != by) {
                let known = world.state(of, by) == Some(State::Alive);
                assert_eq!(known, by % 2 == of % 2, "KRITA_SEED={seed}: {by} knows {of}");
            }
            let of_it = taken == ClusterId([1 + (by % 2) as u8; 16]);
            assert_eq!(world.state(undecided, by) == Some(State::Alive), of_it, "KRITA_SEED={seed}: {by}");
        }
    }
}

fn lone(uuid: u8, now: Instant) -> Gossip {
    let start = Start {
        cluster: Cluster { name: "world".into(), id: Some(ClusterId([7; 16])) },
        uuid: NodeUuid([uuid; 16]),
        profile: profile(uuid),
        incarnation: 1,
        seed: u64::from(uuid),
    };
    Gossip::new(now, Options::default(), start).expect("a fit profile")
}

fn profile(uuid: u8) -> Profile {
    Profile { node_id: format!("n{uuid}"), address: format!("n{uuid}:1"), boot_id: 1, ..Profile::default() }
}

fn record(uuid: u8, incarnation: u64, state: State) -> Record {
    Record {
        uuid: NodeUuid([uuid; 16]),
        incarnation,
        state,
        profile: Arc::new(profile(uuid)),
        vitals: StampedVitals::default(),
        accusers: Vec::new(),
        gone_for: Duration::ZERO,
    }
}

fn message(from: u8, news: Vec<Record>) -> Message {
    Message {
        cluster_name: "world".into(),
        cluster_id: Some(ClusterId([7; 16])),
        sender: record(from, 1, State::Alive),
        news,
        vitals: Vec::new(),
        body: Body::News,
    }
}

#[test]
fn strangers_are_refused_and_change_nothing() {
    let now = Instant::from_nanoseconds(0);
    let mut gossip = lone(1, now);
    let mut other_name = message(2, vec![]);
    other_name.cluster_name = "elsewhere".into();
    let refused = gossip.step(now, NodeUuid([2; 16]), other_name);
    assert_eq!(refused, Err(Refusal::OtherClusterName("elsewhere".into())));
    let mut other_id = message(2, vec![]);
    other_id.cluster_id = Some(ClusterId([8; 16]));
    assert_eq!(gossip.step(now, NodeUuid([2; 16]), other_id), Err(Refusal::OtherClusterId));
    let forged = message(2, vec![]);
    assert_eq!(gossip.step(now, NodeUuid([3; 16]), forged), Err(Refusal::NotTheSender));
    let copied = message(1, vec![]);
    assert_eq!(gossip.step(now, NodeUuid([1; 16]), copied), Err(Refusal::Myself { boot_id: 1 }));
    assert_eq!(gossip.members().count(), 0);
    assert_eq!(gossip.counters().refused, 4);
}

#[test]
fn old_news_do_not_raise_the_dead() {
    let now = Instant::from_nanoseconds(0);
    let mut gossip = lone(1, now);
    let from = NodeUuid([2; 16]);
    let mut tell = |record: Record| {
        gossip.step(now, from, message(2, vec![record])).expect("it is taken in");
        let member = gossip.member(NodeUuid([3; 16])).expect("it is known");
        (member.incarnation, member.state)
    };
    assert_eq!(tell(record(3, 5, State::Alive)), (5, State::Alive));
    assert_eq!(tell(record(3, 5, State::Suspect)), (5, State::Suspect));
    assert_eq!(tell(record(3, 5, State::Alive)), (5, State::Suspect), "only the suspect contradicts");
    assert_eq!(tell(record(3, 6, State::Alive)), (6, State::Alive), "by a higher incarnation");
    assert_eq!(tell(record(3, 5, State::Dead)), (6, State::Alive), "that is over");
    assert_eq!(tell(record(3, 6, State::Dead)), (6, State::Dead));
    assert_eq!(tell(record(3, 6, State::Suspect)), (6, State::Dead));
    assert_eq!(tell(record(3, 4, State::Alive)), (6, State::Dead));
    assert_eq!(tell(record(3, 6, State::Left)), (6, State::Left), "it went by itself");
    assert_eq!(tell(record(3, 6, State::Dead)), (6, State::Left));
    assert_eq!(tell(record(3, 7, State::Alive)), (7, State::Alive), "it has started again");
}

#[test]
fn whoever_is_called_dead_contradicts() {
    let now = Instant::from_nanoseconds(0);
    let mut gossip = lone(1, now);
    let from = NodeUuid([2; 16]);
    for (called, incarnation) in [(State::Suspect, 1), (State::Dead, 5), (State::Left, 9)] {
        let before = gossip.own().incarnation;
        gossip.step(now, from, message(2, vec![record(1, incarnation, called)])).expect("it is taken in");
        assert_eq!(gossip.own().incarnation, incarnation.max(before) + 1);
        assert_eq!(gossip.own().state, State::Alive);
    }
    let before = gossip.own().incarnation;
    gossip.step(now, from, message(2, vec![record(1, 3, State::Dead)])).expect("it is taken in");
    assert_eq!(gossip.own().incarnation, before, "that was contradicted before");
    // An earlier life that is as far as this one.
    let mut earlier = record(1, before, State::Alive);
    earlier.profile = Arc::new(Profile { boot_id: 77, ..profile(1) });
    gossip.step(now, from, message(2, vec![earlier])).expect("it is taken in");
    assert_eq!(gossip.own().incarnation, before + 1);
}

/// Kills, restarts, newcomers, leaves, partitions, losses and delays at random; then quiet, and all agree on the truth.
#[test]
fn after_any_life_all_agree_on_the_truth() {
    for seed in seeds(40) {
        let mut world = World::new(seed);
        let nodes = 2 + world.random.below(12) as usize;
        for node in 0..nodes {
            let seeds = if node == 0 { vec![] } else { vec![world.address(0), world.address(node - 1)] };
            world.start(seeds);
            let pause = ms(world.random.below(800));
            world.run(pause);
        }
        for _ in 0..40 {
            one_thing(&mut world);
            let pause = ms(world.random.below(4000));
            world.run(pause);
        }
        world.cut.clear();
        (world.loss, world.delay) = (0, (ms(0), ms(4)));
        if world.running().is_empty() {
            continue;
        }
        // Those that know nobody any more are told where somebody is.
        let somebody = world.address(world.running()[0]);
        for node in world.running() {
            let seeds = vec![somebody.clone()];
            world.with(node, |_, gossip| gossip.join(seeds));
        }
        world.run(secs(60));
        let running = world.running();
        for by in &running {
            for of in (0..world.nodes.len()).filter(|of| of != by) {
                let state = world.state(of, *by);
                let alive = state == Some(State::Alive);
                assert_eq!(alive, running.contains(&of), "KRITA_SEED={seed}: {by} thinks {of} {state:?}");
                assert_ne!(state, Some(State::Suspect), "KRITA_SEED={seed}: {by} still suspects {of}");
            }
        }
    }
}

fn one_thing(world: &mut World) {
    let count = world.nodes.len() as u64;
    let node = world.random.below(count) as usize;
    let runs = world.nodes[node].gossip.is_some();
    match world.random.below(10) {
        0 | 1 if runs => world.kill(node),
        2 if runs => {
            world.with(node, |now, gossip| gossip.leave(now));
            world.run(secs(1));
            world.kill(node);
        }
        0..=3 if !runs => {
            let somebody = world.random.below(count) as usize;
            let seeds = vec![world.address(somebody)];
            world.boot(node, seeds, 1);
        }
        4 if world.nodes.len() < 25 => {
            let seeds = vec![world.address(node)];
            world.start(seeds);
        }
        5 => {
            let side: Vec<usize> = (0..world.nodes.len()).filter(|_| world.random.chance(400)).collect();
            world.part(&side);
        }
        6 => world.cut.clear(),
        7 => world.loss = world.random.below(300),
        8 => world.delay = (ms(0), ms(1 + world.random.below(200))),
        _ => world.loss = 0,
    }
}
