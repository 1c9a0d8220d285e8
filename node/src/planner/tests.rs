//! What plans lead to when every step succeeds at once. Steps that fail are in `meta/tests/world.rs`.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::quota::{Holder, SCALE, shares, zone_replicas_max};
use super::{Finding, Input, NodeView, Plan, Step, plan};
use crate::meta::tests::{Dice, apply, description, formed, join, set_state};
use crate::meta::{
    Command, Effect, JobKind, JobState, META_SHARD, MemberState, MetaState, NodeNumber, Role, Setting,
    ShardNumber, replica_id,
};

const MINUTE_MS: u64 = 60_000;

struct Cluster {
    state: MetaState,
    views: BTreeMap<NodeNumber, NodeView>,
    now_ms: u64,
}

/// What settling took.
#[derive(Default, Debug)]
struct Settled {
    rounds: u32,
    /// Data replicas that were made, by node.
    entered: BTreeMap<NodeNumber, u64>,
    findings: Vec<Finding>,
}

impl Settled {
    fn moved(&self) -> u64 {
        self.entered.values().sum()
    }
}

impl Cluster {
    fn new(nodes: u32, shards: u32, factor: u32) -> Self {
        let state = formed(nodes, shards, factor);
        let mut cluster = Self { state, views: BTreeMap::new(), now_ms: 1_000_000 };
        for number in 1..=nodes {
            cluster.describe(number, "", 1);
        }
        cluster.set(Setting::MovesMax, 1024);
        cluster.set(Setting::MovesPerNodeMax, 256);
        cluster
    }

    fn describe(&mut self, number: u32, zone: &str, weight: u32) {
        let mut node = description(number);
        node.zone = zone.to_owned();
        node.weight = weight;
        let expected = self.state.member(NodeNumber(number)).expect("a member").version;
        let update = Command::UpdateMember { number: NodeNumber(number), expected, node };
        apply(&mut self.state, &update).expect("a good description");
        self.see(number, true);
    }

    fn see(&mut self, number: u32, alive: bool) {
        let view = NodeView { alive, full: false, follows_meta: alive };
        self.views.insert(NodeNumber(number), view);
    }

    fn set(&mut self, setting: Setting, value: u64) {
        let expected = self.state.settings().version(setting);
        apply(&mut self.state, &Command::SetSetting { setting, value, expected }).expect("a good value");
    }

    fn join(&mut self, number: u32, zone: &str, weight: u32) -> NodeNumber {
        let mut node = description(number);
        node.zone = zone.to_owned();
        node.weight = weight;
        match apply(&mut self.state, &join(node)) {
            Ok(Effect::Joined { number, .. }) => {
                self.see(number.0, true);
                number
            }
            outcome => panic!("{outcome:?}"),
        }
    }

    fn kill(&mut self, number: u32) {
        self.see(number, false);
        self.report(number, self.now_ms);
    }

    fn revive(&mut self, number: u32) {
        self.see(number, true);
        self.report(number, 0);
    }

    fn report(&mut self, number: u32, down_since_ms: u64) {
        let expected = self.state.member(NodeNumber(number)).expect("a member").version;
        let report = Command::ReportDown { number: NodeNumber(number), expected, down_since_ms };
        apply(&mut self.state, &report).expect("a member");
    }

    fn plan(&self) -> Plan {
        let (state, nodes, now_ms) = (&self.state, &self.views, self.now_ms);
        plan(&Input { state, nodes, now_ms, steps_max: 4096, core_of: None })
    }

    /// Plans and carries out, until the plan is silent.
    fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        loop {
            let plan = self.plan();
            assert_eq!(plan, self.plan(), "the same input gives the same plan");
            settled.findings = plan.findings;
            if plan.steps.is_empty() {
                // Jobs that wait for others find that these have ended.
                self.complete(&mut settled);
                return settled;
            }
            self.check_one_change_each(&plan.steps);
            for step in &plan.steps {
                let index = self.state.applied_index() + 1;
                // What the planner proposes the state machine never refuses: it is safe.
                let outcome = self.state.apply(index, &step.command());
                assert!(outcome.is_ok(), "{step:?}: {outcome:?}");
            }
            self.complete(&mut settled);
            assert_eq!(self.state.fault(), None);
            settled.rounds += 1;
            assert!(settled.rounds < 400, "it converges");
        }
    }

    fn check_one_change_each(&self, steps: &[Step]) {
        let mut shards = BTreeSet::new();
        for step in steps {
            match step {
                Step::Change(start) => assert!(shards.insert(start.shard), "two changes of one shard"),
                Step::PreferLeader { shard, .. } => {
                    assert!(shards.insert(*shard), "two changes of one shard")
                }
                Step::Activate { .. } | Step::Remove { .. } => {}
            }
        }
    }

    fn complete(&mut self, settled: &mut Settled) {
        let running: Vec<_> = self.state.jobs().filter(|job| !job.state.has_ended()).cloned().collect();
        for job in running {
            let index = self.state.applied_index() + 1;
            match job.kind {
                JobKind::Change(change) => {
                    let shard = self.state.map().shard(change.shard).expect("a shard");
                    let replicas = change.target(&shard.replicas);
                    let configuration_index = shard.configuration_index + 4;
                    let record =
                        Command::RecordConfiguration { shard: change.shard, configuration_index, replicas };
                    self.state.apply(index, &record).expect("the aim of a job");
                    if let Some(enters) = change.enters.filter(|_| change.shard != META_SHARD) {
                        *settled.entered.entry(crate::meta::node_of(enters)).or_default() += 1;
                    }
                }
                JobKind::Drain(node) | JobKind::Decommission(node) => {
                    let (held, of_meta) = self.state.map().held_by(node);
                    if held > of_meta || matches!(job.kind, JobKind::Decommission(_)) {
                        continue;
                    }
                }
            }
            let (job, expected) = (job.number, self.state.job(job.number).expect("a job").version);
            let finish = Command::FinishJob { job, expected, state: JobState::Done, failure: String::new() };
            self.state.apply(self.state.applied_index() + 1, &finish).expect("its aim is reached");
        }
    }

    fn held(&self, number: u32) -> u64 {
        let (held, of_meta) = self.state.map().held_by(NodeNumber(number));
        held - of_meta
    }

    fn led(&self, number: u32) -> u64 {
        let leads = |shard: &&crate::meta::Shard| crate::meta::node_of(shard.preferred_leader).0 == number;
        self.state.map().shards().skip(1).filter(|(_, shard)| leads(shard)).count() as u64
    }

    /// Every shard has `replicas` voters on active nodes, loads are within a tenth (or one) of the shares, and so are
    /// leaderships; no zone holds more of a shard than it must.
    fn check_even(&self, replicas: usize) {
        let members: Vec<_> =
            self.state.members().filter(|member| member.state == MemberState::Active).collect();
        let zones: BTreeSet<&str> = members.iter().map(|member| member.node.zone.as_str()).collect();
        let zone_of = |zone: &str| zones.iter().position(|other| *other == zone).expect("listed");
        let holder = |member: &&crate::meta::Member| Holder {
            zone: zone_of(&member.node.zone),
            weight: u64::from(member.node.weight),
        };
        let holders: Vec<Holder> = members.iter().map(holder).collect();
        let data_shards = u64::from(self.state.map().data_shards());
        let in_zone = |zone: &str| members.iter().filter(|member| member.node.zone == zone).count() as u64;
        let zone_nodes: Vec<u64> = zones.iter().map(|zone| in_zone(zone)).collect();
        let zone_max = zone_replicas_max(&zone_nodes, replicas as u64);
        let shares = shares(&holders, data_shards, replicas as u64);
        for (member, share) in members.iter().zip(shares) {
            let held = self.held(member.number.0) * SCALE;
            let allowed = SCALE.max(share / 10);
            assert!(held.abs_diff(share) <= allowed, "node {} holds {held} of {share}", member.number);
        }
        for (number, shard) in self.state.map().shards().skip(1) {
            let voters: Vec<_> = shard.voters().collect();
            assert_eq!((voters.len(), shard.replicas.len()), (replicas, replicas), "shard {number}");
            let zone_of = |replica: &crate::meta::Replica| {
                self.state.member(replica.node()).expect("a member").node.zone.as_str()
            };
            for zone in &zones {
                let there = voters.iter().filter(|replica| zone_of(replica) == *zone).count();
                assert!(there as u64 <= zone_max, "shard {number} has {there} replicas in one zone");
            }
        }
    }
}

#[test]
fn a_new_node_takes_its_share_and_nothing_else_moves() {
    for (nodes, shards) in [(3, 64), (3, 300), (5, 256), (9, 500), (19, 400)] {
        let mut cluster = Cluster::new(nodes, shards, 3);
        cluster.settle();
        let number = cluster.join(nodes + 1, "", 1);
        let settled = cluster.settle();
        cluster.check_even(3);
        let least = u64::from(shards) * 3 / u64::from(nodes + 1);
        assert_eq!(
            settled.entered.keys().collect::<Vec<_>>(),
            [&number],
            "all that moves goes to the new node"
        );
        assert!(settled.moved() <= least + least / 10, "{} moved, {least} would do", settled.moved());
        assert_eq!(cluster.settle().rounds, 0, "then it is silent");
    }
}

#[test]
fn a_heavy_node_takes_a_heavy_share() {
    let mut cluster = Cluster::new(4, 300, 1);
    cluster.settle();
    cluster.join(5, "", 4);
    let settled = cluster.settle();
    cluster.check_even(1);
    assert!((135..=165).contains(&cluster.held(5)), "half of all: {}", cluster.held(5));
    assert!(settled.moved() <= 165);
}

#[test]
fn a_cluster_of_one_grows_to_three_and_replicates() {
    let mut cluster = Cluster::new(1, 32, 3);
    assert!(cluster.settle().findings.contains(&Finding::TooFewNodes { nodes: 1, wanted: 3 }));
    cluster.join(2, "", 1);
    cluster.settle();
    cluster.check_even(2);
    cluster.join(3, "", 1);
    let settled = cluster.settle();
    assert_eq!(settled.findings, []);
    cluster.check_even(3);
    let meta = cluster.state.map().shard(META_SHARD).expect("shard 0");
    assert_eq!(meta.voters().count(), 3);
    let mut led: Vec<u64> = (1..=3).map(|number| cluster.led(number)).collect();
    led.sort_unstable();
    assert!(led[2] - led[0] <= 2, "{led:?}");
}

#[test]
fn a_dead_node_is_replaced_after_a_while_where_there_is_room() {
    let mut cluster = Cluster::new(5, 100, 3);
    cluster.settle();
    let lost = cluster.held(2);
    cluster.kill(2);
    cluster.now_ms += 4 * MINUTE_MS;
    assert_eq!(cluster.settle().moved(), 0, "it may come back");
    cluster.now_ms += 2 * MINUTE_MS;
    let settled = cluster.settle();
    assert_eq!(cluster.held(2), 0);
    assert!(settled.moved() <= lost + lost / 10, "{} moved for {lost}", settled.moved());
    assert_eq!(cluster.settle().rounds, 0);
    // It comes back empty-handed and takes its share again.
    cluster.revive(2);
    let settled = cluster.settle();
    assert_eq!(settled.entered.keys().collect::<Vec<_>>(), [&NodeNumber(2)]);
    cluster.check_even(3);
}

#[test]
fn without_room_a_dead_node_is_reported_and_nothing_is_given_up() {
    let mut cluster = Cluster::new(3, 20, 3);
    cluster.settle();
    cluster.kill(3);
    cluster.now_ms += 6 * MINUTE_MS;
    let settled = cluster.settle();
    assert_eq!(settled.moved(), 0);
    assert!(settled.findings.contains(&Finding::TooFewNodes { nodes: 2, wanted: 3 }));
    let found = |finding: &Finding| matches!(finding, Finding::NoRoom { shards: 20, first: ShardNumber(1) });
    assert!(settled.findings.iter().any(found), "{:?}", settled.findings);
    assert_eq!(cluster.held(3), 20, "the configuration still names it");
    cluster.join(4, "", 1);
    assert_eq!(cluster.settle().moved(), 20);
    assert_eq!((cluster.held(3), cluster.held(4)), (0, 20));
}

#[test]
fn without_quorum_nothing_is_touched() {
    let mut cluster = Cluster::new(6, 60, 3);
    cluster.settle();
    cluster.kill(1);
    cluster.kill(2);
    cluster.now_ms += 6 * MINUTE_MS;
    let both = |shard: &crate::meta::Shard| {
        shard.replica_on(NodeNumber(1)).is_some() && shard.replica_on(NodeNumber(2)).is_some()
    };
    let stuck: Vec<ShardNumber> = cluster
        .state
        .map()
        .shards()
        .skip(1)
        .filter(|(_, shard)| both(shard))
        .map(|(number, _)| number)
        .collect();
    assert!(!stuck.is_empty());
    let settled = cluster.settle();
    let expected = Finding::WithoutQuorum { shards: stuck.len() as u64, first: stuck[0] };
    assert!(settled.findings.contains(&expected), "{:?}", settled.findings);
    assert_eq!((cluster.held(1), cluster.held(2)), (stuck.len() as u64, stuck.len() as u64));
}

#[test]
fn a_drained_node_is_empty_and_can_be_called_back() {
    let mut cluster = Cluster::new(4, 80, 3);
    cluster.settle();
    set_state(&mut cluster.state, 3, MemberState::Draining).expect("it can be drained");
    let first = cluster.plan();
    let leads = |step: &Step| matches!(step, Step::PreferLeader { .. });
    assert_eq!(
        first.steps.iter().filter(|step| leads(step)).count() as u64,
        cluster.led(3),
        "leaders at once"
    );
    cluster.settle();
    assert_eq!((cluster.held(3), cluster.led(3)), (0, 0));
    assert!(cluster.state.jobs().all(|job| job.state == JobState::Done));
    set_state(&mut cluster.state, 3, MemberState::Active).expect("it can be called back");
    cluster.settle();
    cluster.check_even(3);
}

#[test]
fn a_decommissioned_node_is_removed_in_the_end_even_a_voter_of_the_meta_group() {
    let mut cluster = Cluster::new(5, 80, 3);
    cluster.settle();
    set_state(&mut cluster.state, 1, MemberState::Decommissioning).expect("it can leave");
    cluster.settle();
    assert!(cluster.state.member(NodeNumber(1)).is_none());
    assert_eq!(cluster.state.tombstones().map(|tombstone| tombstone.number.0).collect::<Vec<_>>(), [1]);
    let meta = cluster.state.map().shard(META_SHARD).expect("shard 0");
    assert_eq!((meta.voters().count(), meta.replicas.len()), (3, 4));
    cluster.check_even(3);
}

#[test]
fn a_wiped_node_replaces_its_old_self() {
    let mut cluster = Cluster::new(3, 40, 3);
    cluster.settle();
    let mut wiped = description(2);
    wiped.node_uuid = crate::meta::tests::uuid(200);
    let outcome = apply(&mut cluster.state, &join(wiped));
    assert!(matches!(outcome, Ok(Effect::Joined { number: NodeNumber(4), retired: Some(NodeNumber(2)) })));
    cluster.see(4, true);
    assert_eq!(cluster.settle().moved(), 40);
    assert!(cluster.state.member(NodeNumber(2)).is_none(), "the old self is a tombstone");
    cluster.check_even(3);
}

#[test]
fn the_replication_factor_grows_and_shrinks() {
    let mut cluster = Cluster::new(7, 140, 1);
    cluster.settle();
    for factor in [3, 5, 3, 1, 7, 2] {
        cluster.set(Setting::ReplicationFactor, factor);
        cluster.settle();
        cluster.check_even(factor as usize);
    }
}

#[test]
fn replicas_are_spread_over_zones() {
    let mut cluster = Cluster::new(9, 200, 3);
    for number in 1..=9 {
        cluster.describe(number, ["a", "b", "c"][number as usize % 3], 1 + number % 4);
    }
    cluster.settle();
    cluster.check_even(3);
    // Only two zones are left: still as even as can be, and spread again once the third is back.
    for number in [3, 6, 9] {
        cluster.describe(number, "b", 1);
    }
    cluster.settle();
    cluster.check_even(3);
    for number in [3, 6, 9] {
        cluster.describe(number, "d", 2);
    }
    cluster.settle();
    cluster.check_even(3);
}

#[test]
fn limits_hold() {
    let mut cluster = Cluster::new(3, 100, 3);
    cluster.settle();
    cluster.set(Setting::MovesMax, 10);
    cluster.set(Setting::MovesPerNodeMax, 4);
    for number in 4..=8 {
        cluster.join(number, "", 1);
    }
    loop {
        let plan = cluster.plan();
        let changes = |step: &&Step| matches!(step, Step::Change(start) if start.shard != META_SHARD);
        assert!(plan.steps.iter().filter(changes).count() <= 10);
        let mut of_node: BTreeMap<NodeNumber, u32> = BTreeMap::new();
        for step in &plan.steps {
            if let Step::Change(start) = step
                && start.shard != META_SHARD
                && let crate::meta::Enters::NewOn(node) = start.enters
            {
                *of_node.entry(node).or_default() += 1;
            }
        }
        assert!(of_node.values().all(|count| *count <= 4), "{of_node:?}");
        if plan.steps.is_empty() {
            break;
        }
        for step in &plan.steps {
            let index = cluster.state.applied_index() + 1;
            cluster.state.apply(index, &step.command()).expect("safe");
        }
        let started = plan.steps.iter().filter(changes).count();
        let more = cluster.plan();
        let more = more.steps.iter().filter(changes).count();
        assert!(started + more <= 10, "running changes count: {started} and {more}");
        cluster.complete(&mut Settled::default());
    }
    cluster.check_even(3);
}

#[test]
fn leftover_learners_are_removed() {
    let mut cluster = Cluster::new(4, 4, 3);
    cluster.settle();
    let shard = cluster.state.map().shards[1].clone();
    let free = (1..=4).find(|node| shard.replica_on(NodeNumber(*node)).is_none()).expect("four nodes");
    cluster.state.map.shards[1].generation_given += 1;
    let generation = shard.generation_given + 1;
    let mut replicas = shard.replicas.clone();
    let id = replica_id(ShardNumber(1), NodeNumber(free), generation);
    replicas.push(crate::meta::Replica { id, role: Role::Learner });
    replicas.sort_unstable();
    let configuration_index = shard.configuration_index + 1;
    let record = Command::RecordConfiguration { shard: ShardNumber(1), configuration_index, replicas };
    apply(&mut cluster.state, &record).expect("a learner more");
    cluster.settle();
    cluster.check_even(3);
}

#[test]
fn leaderships_spread_over_cores() {
    let mut cluster = Cluster::new(3, 96, 3);
    cluster.settle();
    let core_of = |shard: ShardNumber, node: NodeNumber| {
        Some((super::score::mix(u64::from(shard.0) << 32 | u64::from(node.0)) % 4) as u16)
    };
    let spread = |cluster: &Cluster| {
        let mut led: BTreeMap<(u32, u16), u32> =
            (1..=3).flat_map(|node| (0..4).map(move |core| ((node, core), 0))).collect();
        for (number, shard) in cluster.state.map().shards().skip(1) {
            let node = crate::meta::node_of(shard.preferred_leader);
            *led.entry((node.0, core_of(number, node).expect("known"))).or_default() += 1;
        }
        (led.values().max().copied().unwrap_or(0), led.values().min().copied().unwrap_or(0))
    };
    let before = spread(&cluster);
    let mut rounds = 0;
    loop {
        let (state, nodes, now_ms) = (&cluster.state, &cluster.views, cluster.now_ms);
        let plan = plan(&Input { state, nodes, now_ms, steps_max: 64, core_of: Some(&core_of) });
        if plan.steps.is_empty() {
            break;
        }
        for step in &plan.steps {
            let index = cluster.state.applied_index() + 1;
            cluster.state.apply(index, &step.command()).expect("safe");
        }
        rounds += 1;
        assert!(rounds < 100, "it converges");
    }
    let after = spread(&cluster);
    assert!(after.0 - after.1 <= 3 && after.0 - after.1 <= before.0 - before.1, "{before:?} then {after:?}");
    let led: Vec<u64> = (1..=3).map(|number| cluster.led(number)).collect();
    assert!(led.iter().all(|led| led.abs_diff(32) <= 2), "{led:?}");
}

#[test]
fn work_grows_with_what_is_wrong() {
    let (nodes, shards) = (60, 3_000);
    let mut cluster = Cluster::new(nodes, shards, 3);
    cluster.settle();
    let silent = cluster.plan();
    assert!(silent.operations <= 4 * u64::from(nodes), "{} operations for nothing", silent.operations);
    cluster.join(nodes + 1, "", 1);
    let settled = cluster.plan();
    assert!(!settled.steps.is_empty());
    // A share of 148 replicas: for each all nodes and a few shards are looked at.
    cluster.settle();
    cluster.kill(1);
    cluster.now_ms += 6 * MINUTE_MS;
    let repair = cluster.plan();
    let lost = cluster.held(1);
    assert!(repair.operations <= 2 * lost * u64::from(nodes), "{} for {lost} lost", repair.operations);
}

/// A random story of a cluster; after each event it settles, and then is silent.
fn story(seed: u64) {
    let mut dice = Dice::new(seed);
    let nodes = 3 + dice.below(6) as u32;
    let factor = 1 + dice.below(4);
    let mut cluster = Cluster::new(nodes, 20 + dice.below(60) as u32, factor as u32);
    cluster.set(Setting::ReplicationFactor, factor);
    let mut next = nodes;
    for _ in 0..8 {
        let members: Vec<u32> = cluster.state.members().map(|member| member.number.0).collect();
        let chosen = dice.pick(&members).expect("a cluster has members");
        match dice.below(7) {
            0 | 1 => {
                next += 1;
                let zone = ["", "a", "b"][dice.below(3) as usize];
                let mut node = description(next);
                (node.zone, node.weight) = (zone.to_owned(), 1 + dice.below(3) as u32);
                if let Ok(Effect::Joined { number, .. }) = apply(&mut cluster.state, &join(node)) {
                    cluster.see(number.0, true);
                }
            }
            2 => {
                let to = [MemberState::Draining, MemberState::Decommissioning, MemberState::Active];
                let to = dice.pick(&to).expect("three");
                let _ = set_state(&mut cluster.state, chosen, to);
            }
            3 => cluster.kill(chosen),
            4 | 5 => {
                for number in members {
                    cluster.revive(number);
                }
            }
            _ => cluster.set(Setting::ReplicationFactor, 1 + dice.below(5)),
        }
        cluster.now_ms += dice.below(8) * MINUTE_MS;
        cluster.settle();
        let again = cluster.settle();
        assert_eq!(again.rounds, 0);
    }
    for number in cluster.state.members().map(|member| member.number.0).collect::<Vec<_>>() {
        cluster.revive(number);
    }
    cluster.settle();
    let active = cluster.state.members().filter(|member| member.state == MemberState::Active).count();
    let factor = cluster.state.settings().get(Setting::ReplicationFactor) as usize;
    let draining = cluster
        .state
        .members()
        .any(|member| member.state != MemberState::Active && cluster.held(member.number.0) > 0);
    if active >= factor && !draining {
        let replicas = |shard: &crate::meta::Shard| shard.voters().count();
        assert!(
            cluster.state.map().shards().skip(1).all(|(_, shard)| replicas(shard) == factor),
            "seed {seed}"
        );
    }
}

#[test]
fn every_story_settles() {
    for seed in 0..120 {
        story(seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn shares_are_within_a_tenth(
        weights in prop::collection::vec(1..5u32, 4..14), zones in 1..6usize, factor in 1..5u32, shards in 200..400u32,
    ) {
        let mut cluster = Cluster::new(weights.len() as u32, shards, factor);
        for (number, weight) in (1..).zip(&weights) {
            cluster.describe(number, &format!("z{}", number as usize % zones), *weight);
        }
        cluster.set(Setting::ReplicationFactor, u64::from(factor));
        cluster.settle();
        cluster.check_even(factor as usize);
    }
}
