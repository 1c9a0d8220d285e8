//! A toy cluster that works through jobs while nodes die and come back, orders are lost, repeated and late, and the
//! meta group changes its leader: the driver and the planner bring it home, and no shard ever loses its quorum to a
//! step.
//!
//! Shards are modelled by their configuration alone. What is true of each lives in [`Group`]; the meta state learns it
//! only through the driver. A leader of the meta group that is replaced forgets everything but the state.

use std::collections::{BTreeMap, BTreeSet};

use krita_raft::ReplicaId;

use super::{Dice, description, formed, join, set_state};
use crate::meta::driver::{Next, ShardAction, ShardOrder, ShardView, follow, next};
use crate::meta::map::{Replica, Role};
use crate::meta::state::MetaState;
use crate::meta::{Command, JobKind, MemberState, NodeNumber, Setting, ShardNumber, generation_of, node_of};
use crate::planner::{Input, NodeView, plan};

/// One shard's Raft group, as far as configurations go.
#[derive(Clone)]
struct Group {
    index: u64,
    replicas: Vec<Replica>,
    leader: ReplicaId,
    caught_up: BTreeSet<ReplicaId>,
    /// Ids that were members and are not any more.
    gone: BTreeSet<ReplicaId>,
}

impl Group {
    fn voters(&self) -> Vec<Replica> {
        self.replicas.iter().copied().filter(|replica| replica.role.votes_next()).collect()
    }

    /// Whether a majority of each half lives.
    fn has_quorum(&self, live: impl Fn(NodeNumber) -> bool) -> bool {
        let half = |counts: fn(Role) -> bool| {
            let of_half = || self.replicas.iter().filter(|replica| counts(replica.role));
            of_half().filter(|replica| live(replica.node())).count() > of_half().count() / 2
        };
        half(Role::votes_next) && half(Role::voted_before)
    }

    fn set_role(&mut self, id: ReplicaId, role: Role) {
        let replica =
            self.replicas.iter_mut().find(|replica| replica.id == id).expect("a replica of the group");
        replica.role = role;
    }

    fn role(&self, id: ReplicaId) -> Option<Role> {
        self.replicas.iter().find(|replica| replica.id == id).map(|replica| replica.role)
    }
}

struct World {
    seed: u64,
    dice: Dice,
    state: MetaState,
    groups: BTreeMap<ShardNumber, Group>,
    alive: BTreeMap<NodeNumber, bool>,
    now_ms: u64,
    /// Orders that are still on their way: they may arrive late, twice, or never.
    orders: Vec<ShardOrder>,
    faults: bool,
    next_node: u32,
    changes_done: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let nodes = 3 + dice.below(4) as u32;
        let state = formed(nodes, 4 + dice.below(12) as u32, 1 + 2 * dice.below(2) as u32);
        let group = |shard: &crate::meta::Shard| Group {
            index: 0,
            replicas: shard.replicas.clone(),
            leader: shard.preferred_leader,
            caught_up: BTreeSet::new(),
            gone: BTreeSet::new(),
        };
        let groups = state.map().shards().map(|(number, shard)| (number, group(shard))).collect();
        let alive = (1..=nodes).map(|number| (NodeNumber(number), true)).collect();
        let (now_ms, orders) = (1_000_000, Vec::new());
        let changes_done = 0;
        Self {
            seed,
            dice,
            state,
            groups,
            alive,
            now_ms,
            orders,
            faults: true,
            next_node: nodes,
            changes_done,
        }
    }

    fn live(&self, node: NodeNumber) -> bool {
        self.alive.get(&node).copied().unwrap_or(false)
    }

    fn apply(&mut self, command: &Command) -> bool {
        let index = self.state.applied_index() + 1;
        let applied = self.state.apply(index, command).is_ok();
        assert_eq!(self.state.fault(), None, "seed {}: {command:?}", self.seed);
        applied
    }

    fn step(&mut self) {
        self.now_ms += 2_000;
        if self.faults {
            self.fault();
        }
        self.notice_deaths();
        self.groups_go_on();
        self.deliver_orders();
        // A leader of the meta group plans and drives; while there is none, nothing happens.
        if !self.faults || self.dice.chance(80) {
            self.drive();
            self.plan();
        }
        self.groups_go_on();
    }

    fn fault(&mut self) {
        let nodes: Vec<NodeNumber> = self.alive.keys().copied().collect();
        let chosen = self.dice.pick(&nodes).expect("nodes");
        match self.dice.below(40) {
            0 | 1 if self.alive.values().filter(|alive| !**alive).count() == 0 => {
                self.alive.insert(chosen, false);
            }
            2..=4 => self.alive.values_mut().for_each(|alive| *alive = true),
            5 if self.next_node < 10 => {
                self.next_node += 1;
                let mut node = description(self.next_node);
                node.zone = ["", "b"][self.dice.below(2) as usize].to_owned();
                if self.apply(&join(node)) {
                    self.alive
                        .insert(NodeNumber(self.state.members().last().expect("it joined").number.0), true);
                }
            }
            6 => {
                let states = [MemberState::Draining, MemberState::Decommissioning, MemberState::Active];
                let to = self.dice.pick(&states).expect("three");
                if self.state.member(chosen).is_some() {
                    let _ = set_state(&mut self.state, chosen.0, to);
                }
            }
            7 => {
                let expected = self.state.settings().version(Setting::ReplicationFactor);
                let value = 1 + 2 * self.dice.below(3);
                self.apply(&Command::SetSetting { setting: Setting::ReplicationFactor, value, expected });
            }
            8 | 9 => {
                let running: Vec<_> = self.state.jobs().filter(|job| !job.state.has_ended()).collect();
                let cancel = running.first().map(|job| (job.number, job.version));
                if let Some((job, expected)) = cancel {
                    self.apply(&Command::CancelJob { job, expected });
                }
            }
            _ => {}
        }
    }

    /// Gossip declares the dead and the living, and Raft writes it down.
    fn notice_deaths(&mut self) {
        let members: Vec<_> = self.state.members().cloned().collect();
        for member in members {
            let down = !self.live(member.number);
            if down != (member.down_since_ms != 0) && self.dice.chance(60) {
                let down_since_ms = if down { self.now_ms } else { 0 };
                let (number, expected) = (member.number, member.version);
                self.apply(&Command::ReportDown { number, expected, down_since_ms });
            }
        }
    }

    /// Groups elect, catch up and leave joint configurations by themselves.
    fn groups_go_on(&mut self) {
        let alive = self.alive.clone();
        let live = |node: NodeNumber| alive.get(&node).copied().unwrap_or(false);
        for group in self.groups.values_mut() {
            if !group.has_quorum(live) {
                continue;
            }
            let leads = group.role(group.leader).is_some_and(Role::votes_next) && live(node_of(group.leader));
            if !leads {
                let voters: Vec<Replica> =
                    group.voters().into_iter().filter(|replica| live(replica.node())).collect();
                group.leader = self.dice.pick(&voters).expect("a quorum lives").id;
            }
            for replica in &group.replicas {
                if replica.role == Role::Learner && live(replica.node()) && self.dice.chance(50) {
                    group.caught_up.insert(replica.id);
                }
            }
            if group.replicas.iter().any(|replica| replica.role.is_half()) && self.dice.chance(50) {
                for replica in &mut group.replicas {
                    replica.role = if replica.role.votes_next() {
                        Role::Voter
                    } else if replica.role == Role::Outgoing {
                        Role::Learner
                    } else {
                        replica.role
                    };
                }
                group.index += 1;
            }
        }
    }

    fn deliver_orders(&mut self) {
        let mut later = Vec::new();
        for order in std::mem::take(&mut self.orders) {
            if self.faults && self.dice.chance(30) {
                later.push(order);
                continue;
            }
            if self.faults && self.dice.chance(15) {
                continue;
            }
            if self.faults && self.dice.chance(10) {
                later.push(order);
            }
            self.carry_out(order);
        }
        later.truncate(64);
        self.orders = later;
    }

    /// What a shard's leader does with an order.
    fn carry_out(&mut self, order: ShardOrder) {
        let alive = self.alive.clone();
        let live = |node: NodeNumber| alive.get(&node).copied().unwrap_or(false);
        let group = self.groups.get_mut(&order.shard).expect("a shard");
        let is_joint = group.replicas.iter().any(|replica| replica.role.is_half());
        if group.index != order.configuration_index
            || is_joint
            || !group.has_quorum(live)
            || !live(node_of(group.leader))
        {
            return;
        }
        let before = group.clone();
        match order.action {
            ShardAction::AddLearner(id) => {
                assert!(!group.gone.contains(&id), "seed {}: {id:?} comes back", self.seed);
                assert_eq!(group.role(id), None, "seed {}", self.seed);
                group.replicas.push(Replica { id, role: Role::Learner });
                group.replicas.sort_unstable();
            }
            ShardAction::Swap { promote, demote } => {
                assert!(promote.is_none_or(|id| group.caught_up.contains(&id)), "seed {}", self.seed);
                if demote == Some(group.leader) {
                    // It was elected again meanwhile: it hands over.
                    let stays = |replica: &Replica| {
                        replica.role == Role::Voter && Some(replica.id) != demote && live(replica.node())
                    };
                    let Some(heir) = group.replicas.iter().copied().find(stays) else { return };
                    group.leader = heir.id;
                }
                let both = promote.is_some() && demote.is_some();
                let (up, down) =
                    if both { (Role::Incoming, Role::Outgoing) } else { (Role::Voter, Role::Learner) };
                promote.into_iter().for_each(|id| group.set_role(id, up));
                demote.into_iter().for_each(|id| group.set_role(id, down));
            }
            ShardAction::RemoveLearner(id) => {
                assert_eq!(group.role(id), Some(Role::Learner), "seed {}", self.seed);
                group.replicas.retain(|replica| replica.id != id);
                group.caught_up.remove(&id);
                group.gone.insert(id);
            }
            ShardAction::TransferLeader(id) => {
                assert_eq!(group.role(id), Some(Role::Voter), "seed {}", self.seed);
                if live(node_of(id)) {
                    group.leader = id;
                }
                return;
            }
        }
        group.index += 1;
        // What was just done took no quorum from the shard. Deaths that the driver could not see are not its fault: it
        // saw the nodes as they are, at most a few moments ago.
        if !group.has_quorum(live) {
            let was_late = self.faults;
            assert!(was_late, "seed {}: {order:?} took the quorum of {:?}", self.seed, before.replicas);
            // A real group would not commit it; the change is not there.
            *group = before;
        }
    }

    fn view(&self, shard: ShardNumber) -> Option<ShardView> {
        let group = &self.groups[&shard];
        let speaks = group.has_quorum(|node| self.live(node)) && self.live(node_of(group.leader));
        speaks.then(|| ShardView {
            configuration_index: group.index,
            replicas: group.replicas.clone(),
            leader: group.leader,
            caught_up: group.caught_up.iter().copied().collect(),
        })
    }

    fn drive(&mut self) {
        let shards: Vec<ShardNumber> = self.groups.keys().copied().collect();
        for shard in shards {
            if let Some(command) = self.view(shard).and_then(|view| follow(&self.state, shard, &view)) {
                assert!(self.apply(&command), "seed {}: the map follows: {command:?}", self.seed);
            }
        }
        let running: Vec<_> =
            self.state.jobs().filter(|job| !job.state.has_ended()).map(|job| job.number).collect();
        for number in running {
            let job = self.state.job(number).expect("it runs").clone();
            let view = match job.kind {
                JobKind::Change(change) => self.view(change.shard),
                JobKind::Drain(_) | JobKind::Decommission(_) => None,
            };
            match next(&self.state, &job, view.as_ref(), |node| self.live(node)) {
                Next::Wait(_) => {}
                Next::Propose(command) => {
                    assert!(self.apply(&command), "seed {}: {command:?} of {job:?}", self.seed);
                    self.changes_done += u64::from(matches!(command, Command::FinishJob { .. }));
                }
                Next::Order(order) => self.orders.push(order),
            }
        }
    }

    fn plan(&mut self) {
        let view = |alive: bool| NodeView { alive, full: false, follows_meta: alive };
        let nodes: BTreeMap<NodeNumber, NodeView> =
            self.alive.iter().map(|(number, alive)| (*number, view(*alive))).collect();
        let (now_ms, steps_max) = (self.now_ms, 16);
        let steps =
            plan(&Input { state: &self.state, nodes: &nodes, now_ms, steps_max, core_of: None }).steps;
        for step in steps {
            // Gossip may know less than the state, then the state refuses.
            let applied = self.apply(&step.command());
            assert!(applied || self.faults, "seed {}: {step:?} is refused", self.seed);
        }
    }

    fn is_silent(&self) -> bool {
        // A node may have to wait for room before it is empty.
        let is_change = |kind: &JobKind| matches!(kind, JobKind::Change(_));
        let idle = self.state.jobs().all(|job| job.state.has_ended() || !is_change(&job.kind));
        let view = |alive: bool| NodeView { alive, full: false, follows_meta: alive };
        let nodes: BTreeMap<NodeNumber, NodeView> =
            self.alive.iter().map(|(number, alive)| (*number, view(*alive))).collect();
        let input =
            Input { state: &self.state, nodes: &nodes, now_ms: self.now_ms, steps_max: 16, core_of: None };
        let all_up = self.state.members().all(|member| member.down_since_ms == 0);
        idle && all_up && plan(&input).steps.is_empty()
    }
}

fn run(seed: u64) -> u64 {
    let mut world = World::new(seed);
    for _ in 0..250 {
        world.step();
    }
    // The faults end; who was away comes back.
    world.faults = false;
    world.alive.values_mut().for_each(|alive| *alive = true);
    world.orders.clear();
    let mut rounds = 0;
    while !world.is_silent() {
        world.step();
        rounds += 1;
        let stuck: Vec<_> = world.state.jobs().filter(|job| !job.state.has_ended()).collect();
        assert!(rounds < 600, "seed {seed}: not home after {rounds} rounds: {stuck:?}");
    }
    let factor = world.state.settings().get(Setting::ReplicationFactor) as usize;
    let active = world.state.members().filter(|member| member.state == MemberState::Active).count();
    for (number, shard) in world.state.map().shards() {
        let group = &world.groups[&number];
        assert_eq!(shard.replicas, group.replicas, "seed {seed}: the map is true");
        assert_eq!(shard.configuration_index, group.index);
        assert!(group.has_quorum(|node| world.live(node)), "seed {seed}");
        assert!(shard.replicas.iter().all(|replica| generation_of(replica.id) <= shard.generation_seen));
        if number.0 > 0 && active >= factor {
            assert!(shard.voters().count() >= factor, "seed {seed}: {shard:?}");
        }
    }
    world.changes_done
}

#[test]
fn every_world_comes_home() {
    let changes: u64 = (0..150).map(run).sum();
    assert!(changes > 3_000, "{changes} jobs ended");
}
