//! The plan's own picture of the cluster: where replicas will be once all that runs and all that has been planned is
//! done, and how full each node then is.

use std::collections::{BTreeMap, BTreeSet};

use krita_raft::ReplicaId;

use crate::meta::{
    Enters, JobKind, META_SHARD, MemberState, MetaState, NodeNumber, Reason, Role, Setting, ShardNumber,
    StartChange, node_of,
};
use crate::planner::quota::{Holder, SCALE, shares, zone_replicas_max};
use crate::planner::{Finding, Input, NodeView, Step, changes_running, score};

/// Most changes of preferred leaders in one plan: they cost little, but not nothing.
const LEADER_STEPS_MAX: usize = 256;

/// One member.
pub(super) struct Node {
    pub(super) number: NodeNumber,
    pub(super) zone: usize,
    pub(super) weight: u32,
    pub(super) seed: u64,
    /// It answers.
    pub(super) live: bool,
    /// What it holds may stay there.
    pub(super) holds: bool,
    /// It may be given more.
    pub(super) receives: bool,
    /// What it holds is lost, or counts as lost.
    pub(super) lost: bool,
    /// Its share of replicas, times SCALE.
    pub(super) share: i64,
    pub(super) replicas: u64,
    /// Its share of leaderships, times SCALE.
    pub(super) leader_share: i64,
    pub(super) leaders: u64,
    /// Jobs under way that it is part of, as source or target.
    pub(super) moves: u64,
}

impl Node {
    /// How far above its share it is, times SCALE.
    pub(super) fn surplus(&self) -> i64 {
        (self.replicas * SCALE) as i64 - self.share
    }

    pub(super) fn leader_surplus(&self) -> i64 {
        (self.leaders * SCALE) as i64 - self.leader_share
    }
}

/// How far a load may be from its share: a twentieth, or one.
pub(super) fn band(share: i64) -> i64 {
    (SCALE as i64).max(share / 20)
}

/// One data shard.
pub(super) struct Place {
    pub(super) seed: u64,
    /// Positions of the nodes that will hold a voter.
    pub(super) holders: Vec<u32>,
    /// The position in the nodes of who should lead.
    pub(super) leader: u32,
    /// Something changes it: a job, its own configuration, or this plan.
    pub(super) is_busy: bool,
    /// A majority of the voters that it has now is live.
    pub(super) has_quorum: bool,
}

/// See the module.
pub(super) struct Table<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) state: &'a MetaState,
    pub(super) nodes: Vec<Node>,
    /// By shard number less one.
    pub(super) places: Vec<Place>,
    /// For each node the shards (less one) that it held when the plan began: who has been moved since is busy.
    pub(super) held: Vec<Vec<u32>>,
    /// Replicas that each shard should have, and how many of them one zone may have.
    pub(super) wanted: usize,
    pub(super) zone_max: usize,
    pub(super) steps: Vec<Step>,
    pub(super) findings: Vec<Finding>,
    pub(super) operations: u64,
    changes_left: usize,
    leader_steps_left: usize,
    steps_left: usize,
    moves_per_node_max: u64,
}

impl<'a> Table<'a> {
    pub(super) fn new(input: &'a Input<'a>, steps_before: usize) -> Self {
        let state = input.state;
        let settings = state.settings();
        let nodes = nodes(input);
        let factor = settings.get(Setting::ReplicationFactor) as usize;
        let holding: Vec<&Node> = nodes.iter().filter(|node| node.holds).collect();
        let wanted = factor.min(holding.len());
        let zones = nodes.iter().map(|node| node.zone + 1).max().unwrap_or(0);
        let mut zone_nodes = vec![0; zones];
        for node in &holding {
            zone_nodes[node.zone] += 1;
        }
        let mut findings = Vec::new();
        if wanted < factor {
            findings.push(Finding::TooFewNodes { nodes: wanted as u64, wanted: factor as u64 });
        }
        let moves_max = settings.get(Setting::MovesMax) as usize;
        let steps_left = input.steps_max.saturating_sub(steps_before);
        let mut table = Self {
            input,
            state,
            held: vec![Vec::new(); nodes.len()],
            nodes,
            places: Vec::new(),
            wanted,
            zone_max: zone_replicas_max(&zone_nodes, wanted as u64) as usize,
            steps: Vec::new(),
            findings,
            operations: 0,
            changes_left: moves_max.saturating_sub(changes_running(state)),
            leader_steps_left: LEADER_STEPS_MAX,
            steps_left,
            moves_per_node_max: settings.get(Setting::MovesPerNodeMax),
        };
        table.place_shards();
        table.set_shares();
        table
    }

    fn place_shards(&mut self) {
        let position: BTreeMap<NodeNumber, u32> =
            (0..).zip(&self.nodes).map(|(at, node)| (node.number, at)).collect();
        for (number, shard) in self.state.map().shards().skip(1) {
            let change = shard.job.and_then(|job| self.state.job(job)).and_then(|job| match job.kind {
                JobKind::Change(change) => Some(change),
                JobKind::Drain(_) | JobKind::Decommission(_) => None,
            });
            let target = change.map(|change| change.target(&shard.replicas));
            let replicas = target.as_ref().unwrap_or(&shard.replicas);
            let voters = replicas.iter().filter(|replica| replica.role.votes_next());
            let holders: Vec<u32> = voters.map(|replica| position[&replica.node()]).collect();
            for holder in &holders {
                self.nodes[*holder as usize].replicas += 1;
                self.held[*holder as usize].push(number.0 - 1);
            }
            let mut leader = shard.preferred_leader;
            if let Some(change) = change {
                for replica in change.enters.iter().chain(&change.leaves) {
                    self.nodes[position[&node_of(*replica)] as usize].moves += 1;
                }
                let leaves = change.leaves == Some(leader);
                leader = change.enters.filter(|_| leaves).unwrap_or(leader);
            }
            let leader = position[&node_of(leader)];
            let leader = if holders.contains(&leader) { leader } else { holders[0] };
            self.nodes[leader as usize].leaders += 1;
            let live = |replica: &crate::meta::Replica| self.nodes[position[&replica.node()] as usize].live;
            let now = shard.voters().count();
            let has_quorum = shard.voters().filter(live).count() > now / 2;
            let is_busy = shard.job.is_some() || shard.is_joint();
            let seed = score::seed(&number.0.to_le_bytes());
            self.places.push(Place { seed, holders, leader, is_busy, has_quorum });
        }
    }

    fn set_shares(&mut self) {
        let shards = self.places.len() as u64;
        let holding: Vec<usize> = (0..self.nodes.len()).filter(|at| self.nodes[*at].holds).collect();
        let holders: Vec<Holder> = holding
            .iter()
            .map(|at| Holder { zone: self.nodes[*at].zone, weight: u64::from(self.nodes[*at].weight) })
            .collect();
        for (at, share) in holding.iter().zip(shares(&holders, shards, self.wanted as u64)) {
            self.nodes[*at].share = share as i64;
        }
    }

    /// Whether the plan has as many steps as it may have.
    pub(super) fn is_spent(&self) -> bool {
        self.steps_left == 0 || self.changes_left == 0
    }

    /// Whether a node takes part in as many changes as it may.
    pub(super) fn is_saturated(&self, at: u32) -> bool {
        self.nodes[at as usize].moves >= self.moves_per_node_max
    }

    /// Whether the plan has as many changes of leaders as it may have.
    pub(super) fn leads_enough(&self) -> bool {
        self.leader_steps_left == 0 || self.steps_left == 0
    }

    pub(super) fn shard_number(&self, place: usize) -> ShardNumber {
        ShardNumber(place as u32 + 1)
    }

    /// How many replicas of a shard a zone will have, without the one on `except`.
    pub(super) fn in_zone(&self, place: usize, zone: usize, except: Option<u32>) -> usize {
        let holders = self.places[place].holders.iter().filter(|holder| Some(**holder) != except);
        holders.filter(|holder| self.nodes[**holder as usize].zone == zone).count()
    }

    /// Whether a shard's replica on `from` (or one more) may go to `to`, as far as nodes and zones go.
    pub(super) fn fits(&self, place: usize, from: Option<u32>, to: u32) -> bool {
        let node = &self.nodes[to as usize];
        if !node.receives || self.places[place].holders.contains(&to) {
            return false;
        }
        let shard = self.state.map().shard(self.shard_number(place)).expect("a place is a shard's");
        shard.replica_on(node.number).is_none()
            && (from.is_some_and(|from| self.nodes[from as usize].zone == node.zone)
                || self.in_zone(place, node.zone, from) < self.zone_max)
    }

    /// Plans a change: the picture shows it as done; the step is given if the limits allow.
    pub(super) fn change(&mut self, place: usize, leaves: Option<u32>, enters: Option<u32>, reason: Reason) {
        let number = self.shard_number(place);
        let shard = self.state.map().shard(number).expect("a place is a shard's");
        let on = |at: u32| shard.replica_on(self.nodes[at as usize].number).map(|replica| replica.id);
        let start = StartChange {
            shard: number,
            expected: shard.version,
            enters: enters.map_or(Enters::Nobody, |at| Enters::NewOn(self.nodes[at as usize].number)),
            enters_as_learner: false,
            leaves: leaves.and_then(on),
            leaves_to_learner: false,
            reason,
        };
        self.give_change(start, &leaves.into_iter().chain(enters).collect::<Vec<u32>>());
        self.places[place].is_busy = true;
        if let Some(at) = leaves {
            self.nodes[at as usize].replicas -= 1;
            self.places[place].holders.retain(|holder| *holder != at);
        }
        if let Some(at) = enters {
            self.nodes[at as usize].replicas += 1;
            self.places[place].holders.push(at);
        }
        let leader = self.places[place].leader;
        if !self.places[place].holders.contains(&leader) {
            let next = enters.unwrap_or(self.places[place].holders[0]);
            self.nodes[leader as usize].leaders -= 1;
            self.nodes[next as usize].leaders += 1;
            self.places[place].leader = next;
        }
    }

    /// Plans to take a learner away that no job wants.
    pub(super) fn remove_leftover(&mut self, place: usize, learner: ReplicaId) {
        let number = self.shard_number(place);
        let expected = self.state.map().shard(number).expect("a place is a shard's").version;
        let start = StartChange {
            shard: number,
            expected,
            enters: Enters::Nobody,
            enters_as_learner: false,
            leaves: Some(learner),
            leaves_to_learner: false,
            reason: Reason::Leftover,
        };
        self.give_change(start, &[]);
        self.places[place].is_busy = true;
    }

    fn give_change(&mut self, start: StartChange, nodes: &[u32]) {
        // A lost node has nothing to do in its own replacement.
        let is_counted = |at: &&u32| !self.nodes[**at as usize].lost;
        let counted: Vec<usize> = nodes.iter().filter(is_counted).map(|at| *at as usize).collect();
        let has_room = counted.iter().all(|at| self.nodes[*at].moves < self.moves_per_node_max);
        if self.is_spent() || !has_room {
            return;
        }
        for at in counted {
            self.nodes[at].moves += 1;
        }
        self.changes_left -= 1;
        self.steps_left -= 1;
        self.steps.push(Step::Change(start));
    }

    /// Plans that another voter should lead.
    pub(super) fn lead(&mut self, place: usize, to: u32) {
        let number = self.shard_number(place);
        let shard = self.state.map().shard(number).expect("a place is a shard's");
        let replica = shard.replica_on(self.nodes[to as usize].number);
        let replica = replica.expect("only who holds a voter now is to lead").id;
        if self.leader_steps_left > 0 && self.steps_left > 0 {
            self.leader_steps_left -= 1;
            self.steps_left -= 1;
            self.steps.push(Step::PreferLeader { shard: number, expected: shard.version, replica });
        }
        let from = self.places[place].leader;
        self.nodes[from as usize].leaders -= 1;
        self.nodes[to as usize].leaders += 1;
        self.places[place].leader = to;
        self.places[place].is_busy = true;
    }
}

/// All members, with what may be done with each.
fn nodes(input: &Input<'_>) -> Vec<Node> {
    let state = input.state;
    let zones: BTreeSet<&str> = state.members().map(|member| member.node.zone.as_str()).collect();
    let replace_after = state.settings().get(Setting::ReplaceAfterMs);
    let node = |member: &crate::meta::Member| {
        let view = input.nodes.get(&member.number).copied().unwrap_or_default();
        let lost = is_lost(input, member, replace_after);
        let live = view.alive && !member.is_down();
        let active = member.state == MemberState::Active;
        Node {
            number: member.number,
            zone: zones.iter().position(|zone| *zone == member.node.zone).expect("it is among them"),
            weight: member.node.weight,
            seed: score::seed(&member.node.node_uuid.0),
            live,
            holds: active && !lost,
            receives: receives(member, view),
            lost,
            share: 0,
            replicas: 0,
            leader_share: 0,
            leaders: 0,
            moves: 0,
        }
    };
    state.members().map(node).collect()
}

/// Whether what a member holds counts as lost: its data directory is gone, or it has been down for too long.
pub(super) fn is_lost(input: &Input<'_>, member: &crate::meta::Member, after_ms: u64) -> bool {
    let down_for = input.now_ms.saturating_sub(member.down_since_ms);
    member.state == MemberState::Retired || (member.down_since_ms != 0 && down_for >= after_ms)
}

fn receives(member: &crate::meta::Member, view: NodeView) -> bool {
    member.state == MemberState::Active && !member.is_down() && view.alive && !view.full
}

/// Learners of a data shard: none belongs there but while a job brings it.
pub(super) fn leftover(state: &MetaState, shard: ShardNumber) -> Option<ReplicaId> {
    assert!(shard != META_SHARD, "the meta group keeps learners");
    let shard = state.map().shard(shard)?;
    shard.replicas.iter().find(|replica| replica.role == Role::Learner).map(|replica| replica.id)
}
