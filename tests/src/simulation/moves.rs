//! Replicas that move while everything else happens: movers that order changes of the shards' groups, by chance,
//! several at a time and against each other, and order again what was ordered long ago.
//!
//! Checked: a shard has one configuration at each index of its log; no replica id is opened a second time, whatever
//! came late or was restarted with old data; and in the end each shard is where its leader says, and nowhere else.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use krita_proto::v1;
use krita_proto::v1::shard_order::Action;
use krita_proto::v1::{MemberRole, OrderOutcome};
use krita_runtime::Clock;
use kritaclient::core::call::CallKind;
use kritaclient::core::message::{Request, Response};

use super::checks::Statuses;
use super::client::Lane;
use super::workload::{Scene, Worker};

/// Movers of a run.
pub(crate) const MOVERS: usize = 2;

/// Voters that a shard is to have in the end.
const VOTERS: usize = 3;

/// Orders that a mover remembers, to send them again.
const REMEMBERED: usize = 48;

const PAUSE: Duration = Duration::from_millis(50);

/// Members by id, with their roles.
type Members = Vec<(u64, i32)>;

/// What the movers of a run share.
#[derive(Default)]
pub(crate) struct Moves {
    /// By shard: the last generation that was given to a replica.
    generations: RefCell<BTreeMap<u32, u64>>,
    /// By shard and index: the configuration there, as a leader said.
    configurations: RefCell<BTreeMap<(u32, u64), Members>>,
    /// By shard: what the leader said last.
    last: RefCell<BTreeMap<u32, v1::ShardView>>,
    /// No further moves.
    pub(crate) is_over: Cell<bool>,
    /// Movers at work.
    working: Cell<usize>,
    /// Orders that were carried out.
    pub(crate) done: Cell<u64>,
    /// Of them, those that changed who votes.
    pub(crate) swaps: Cell<u64>,
}

impl Moves {
    /// The id of a replica that was never there.
    fn new_replica(&self, shard: u32, node: u32) -> u64 {
        let mut generations = self.generations.borrow_mut();
        let generation = generations.entry(shard).or_default();
        *generation += 1;
        *generation << 36 | u64::from(shard) << 16 | u64::from(node)
    }

    /// Takes in what a leader says of its group.
    fn take(&self, scene: &Scene, view: &v1::ShardView) {
        let members: Members = view.members.iter().map(|member| (member.replica_id, member.role)).collect();
        let at = (view.shard, view.configuration_index);
        let mut configurations = self.configurations.borrow_mut();
        let known = configurations.entry(at).or_insert_with(|| members.clone());
        if *known != members {
            let (shard, index) = at;
            scene.violation(format!(
                "shard {shard} has two configurations at {index}: {known:?}, {members:?}"
            ));
        }
    }

    /// What must hold once all is at rest.
    pub(crate) fn check(&self, scene: &Scene, statuses: &Statuses) {
        for (shard, view) in self.last.borrow().iter() {
            let wanted: BTreeSet<u32> = view.members.iter().map(|member| member.node_number).collect();
            let holders =
                statuses.values().filter(|status| status.shards.iter().any(|at| at.shard == *shard));
            let found: BTreeSet<u32> =
                holders.filter_map(|status| status.node.as_ref()).map(|node| node.node_number).collect();
            if wanted != found {
                scene.violation(format!("shard {shard} is on {found:?}, its group on {wanted:?}"));
            }
        }
    }
}

/// Someone who orders moves.
pub(crate) struct Mover {
    scene: Rc<Scene>,
    lane: Lane,
    moves: Rc<Moves>,
    shards: u32,
    nodes: u32,
    remembered: Vec<v1::ShardOrder>,
}

impl Mover {
    pub(crate) fn new(scene: Rc<Scene>, lane: Lane, moves: Rc<Moves>, (shards, nodes): (u32, usize)) -> Self {
        let nodes = u32::try_from(nodes).expect("few");
        Self { scene, lane, moves, shards, nodes, remembered: Vec::new() }
    }

    /// Moves replicas about until it is over.
    pub(crate) async fn work(mut self) {
        self.moves.working.set(self.moves.working.get() + 1);
        while !self.moves.is_over.get() {
            let pause = self.lane.random.between(20, 900);
            self.lane.runtime.sleep(Duration::from_millis(pause)).await;
            if self.lane.random.chance(0.2) && !self.remembered.is_empty() {
                let old = self.remembered[self.lane.random.index(self.remembered.len())];
                self.order(old).await;
                continue;
            }
            let shard = 1 + u32::try_from(self.lane.random.below(u64::from(self.shards))).expect("few");
            self.step(shard).await;
        }
        self.moves.working.set(self.moves.working.get() - 1);
    }

    async fn step(&mut self, shard: u32) {
        let Some(view) = self.look(shard).await else { return };
        let Some(action) = self.decide(&view) else { return };
        let configuration_index = view.configuration_index;
        let order = v1::ShardOrder { shard, configuration_index, action: Some(action), timeout_ms: 0 };
        if self.remembered.len() == REMEMBERED {
            self.remembered.remove(0);
        }
        self.remembered.push(order);
        self.order(order).await;
    }

    fn decide(&self, view: &v1::ShardView) -> Option<Action> {
        let random = &self.lane.random;
        if view.changing {
            return None;
        }
        let of = |role| view.members.iter().filter(move |member| member.role() == role).collect::<Vec<_>>();
        let (voters, learners) = (of(MemberRole::Voter), of(MemberRole::Learner));
        let any = |members: &[&v1::ShardMember]| members[random.index(members.len())].replica_id;
        if random.chance(0.1) {
            return Some(Action::TransferLeader(any(&voters)));
        }
        if learners.is_empty() {
            let is_full = voters.len() > VOTERS;
            return if is_full { Some(swap(0, any(&voters))) } else { self.add(view) };
        }
        let learner = learners[random.index(learners.len())];
        if random.chance(if learner.caught_up { 0.25 } else { 0.1 }) {
            return Some(Action::RemoveLearner(learner.replica_id));
        }
        if !learner.caught_up {
            return None;
        }
        if voters.len() < VOTERS || (voters.len() <= VOTERS && random.chance(0.15)) {
            return Some(swap(learner.replica_id, 0));
        }
        let leaves = any(&voters);
        // A leader that is demoted hands over by itself; mostly it is asked to before.
        match leaves == view.leader && random.chance(0.6) {
            true => Some(Action::TransferLeader(any(&voters))),
            false => Some(swap(learner.replica_id, leaves)),
        }
    }

    fn add(&self, view: &v1::ShardView) -> Option<Action> {
        let is_free = |node: &u32| view.members.iter().all(|member| member.node_number != *node);
        let free: Vec<u32> = (1..=self.nodes).filter(is_free).collect();
        if free.is_empty() {
            return None;
        }
        let node = free[self.lane.random.index(free.len())];
        Some(Action::AddLearner(self.moves.new_replica(view.shard, node)))
    }

    async fn look(&mut self, shard: u32) -> Option<v1::ShardView> {
        let look = Some(Action::Look(v1::ShardLook {}));
        self.send(v1::ShardOrder { shard, action: look, ..Default::default() }).await
    }

    async fn order(&mut self, order: v1::ShardOrder) {
        let is_swap = matches!(order.action, Some(Action::Swap(_)));
        let answer = self.send(order).await;
        if answer.is_some_and(|view| view.outcome() == OrderOutcome::Done) {
            self.moves.done.set(self.moves.done.get() + 1);
            self.moves.swaps.set(self.moves.swaps.get() + u64::from(is_swap));
        }
    }

    async fn send(&mut self, order: v1::ShardOrder) -> Option<v1::ShardView> {
        let shard = order.shard;
        match self.lane.run(CallKind::Read, shard, Request::ShardOrder(order)).await {
            Ok(Response::ShardView(view)) => {
                self.moves.take(&self.scene, &view);
                Some(view)
            }
            Ok(other) => panic!("an answer of the wrong kind: {other:?}"),
            Err(_) => None,
        }
    }

    /// What brings the group nearer to three voters and nobody else; `None`: nothing is left to do.
    fn tidy(&self, view: &v1::ShardView) -> Option<Action> {
        let of = |role| view.members.iter().filter(move |member| member.role() == role).collect::<Vec<_>>();
        let (voters, learners) = (of(MemberRole::Voter), of(MemberRole::Learner));
        match (voters.len(), learners.first()) {
            (VOTERS, None) => None,
            (count, Some(learner)) if count < VOTERS => Some(swap(learner.replica_id, 0)),
            (count, None) if count < VOTERS => self.add(view),
            (_, Some(learner)) => Some(Action::RemoveLearner(learner.replica_id)),
            (_, None) => {
                let leaves = voters.iter().find(|voter| voter.replica_id != view.leader);
                leaves.map(|voter| swap(0, voter.replica_id))
            }
        }
    }
}

fn swap(promote: u64, demote: u64) -> Action {
    Action::Swap(v1::ShardSwap { promote, demote })
}

/// Ends all moves that are under way: three voters for each shard.
pub(crate) async fn finish(worker: Worker, moves: Rc<Moves>, (shards, nodes): (u32, usize)) {
    let scene = worker.scene.clone();
    let mut mover = Mover::new(scene.clone(), worker.lane, moves.clone(), (shards, nodes));
    // What they have ordered may still come.
    while moves.working.get() > 0 {
        mover.lane.runtime.sleep(PAUSE).await;
    }
    for shard in 1..=shards {
        loop {
            if let Some(view) = mover.look(shard).await.filter(|view| !view.changing) {
                let Some(action) = mover.tidy(&view) else {
                    moves.last.borrow_mut().insert(shard, view);
                    break;
                };
                let configuration_index = view.configuration_index;
                let order =
                    v1::ShardOrder { shard, configuration_index, action: Some(action), timeout_ms: 0 };
                mover.order(order).await;
            }
            mover.lane.runtime.sleep(PAUSE).await;
        }
    }
    scene.lanes.set(scene.lanes.get() - 1);
}

#[cfg(test)]
mod tests {
    use super::super::{Run, checks};
    use super::*;
    use crate::simulation::trace::{self, Heard};

    const LIMIT: Duration = Duration::from_secs(60);

    /// Goes on until the order is done, with the configuration as it is then.
    async fn insist(mover: &mut Mover, shard: u32, action: Action) -> v1::ShardView {
        loop {
            if let Some(view) = mover.look(shard).await {
                let configuration_index = view.configuration_index;
                let action = Some(action);
                let order = v1::ShardOrder { shard, configuration_index, action, timeout_ms: 0 };
                let answer = mover.send(order).await;
                if let Some(view) = answer.filter(|view| view.outcome() == OrderOutcome::Done) {
                    return view;
                }
            }
            mover.lane.runtime.sleep(PAUSE).await;
        }
    }

    /// Runs a script with a mover of its own, and returns what it comes to.
    fn script<T: 'static, F: Future<Output = T> + 'static>(
        run: &mut Run,
        of: impl FnOnce(Mover) -> F + 'static,
    ) -> T {
        let moves = run.moves.clone().expect("this run has movers");
        let extent = (run.cluster.plan.shards, run.cluster.nodes.len());
        let result = Rc::new(RefCell::new(None));
        let (scene, filled) = (run.scene.clone(), result.clone());
        run.demand(LIMIT, "the script does not end", |worker| async move {
            let outcome = of(Mover::new(scene.clone(), worker.lane, moves, extent)).await;
            *filled.borrow_mut() = Some(outcome);
            scene.lanes.set(scene.lanes.get() - 1);
        });
        result.take().expect("the script ends in time")
    }

    #[test]
    fn a_changed_group_outlives_a_restart_of_all_and_who_missed_its_removal_lets_go() {
        let heard = Heard::default();
        trace::listen(&heard, false, || {
            let mut run = Run::new(3, heard.clone(), true);
            (0..run.cluster.nodes.len()).for_each(|position| run.cluster.boot_on(position, 1));
            let (leaves, position) = script(&mut run, |mut mover| async move {
                let first = insist(&mut mover, 1, Action::Look(v1::ShardLook {})).await;
                let Some(add) = mover.add(&first) else { panic!("one node has no replica") };
                let Action::AddLearner(enters) = add else { panic!("it adds") };
                let view = insist(&mut mover, 1, Action::AddLearner(enters)).await;
                let leaves = view
                    .members
                    .iter()
                    .find(|member| member.role() == MemberRole::Voter && member.replica_id != view.leader);
                let leaves = *leaves.expect("there are three voters");
                insist(&mut mover, 1, swap(enters, leaves.replica_id)).await;
                (leaves.replica_id, leaves.node_number as usize - 1)
            });
            // It does not hear of its removal, and comes back with what it had.
            run.cluster.pause(position);
            let removed = script(&mut run, move |mut mover| async move {
                let view = insist(&mut mover, 1, Action::RemoveLearner(leaves)).await;
                mover.lane.runtime.sleep(Duration::from_secs(8)).await;
                view
            });
            (0..run.cluster.nodes.len()).for_each(|position| run.cluster.power_cut(position));
            let found = script(&mut run, |mut mover| async move {
                insist(&mut mover, 1, Action::Look(v1::ShardLook {})).await
            });
            assert_eq!(found.configuration_index, removed.configuration_index);
            let ids = |view: &v1::ShardView| {
                view.members.iter().map(|member| (member.replica_id, member.role)).collect::<Vec<_>>()
            };
            assert_eq!(ids(&found), ids(&removed));
            assert!(
                found.members.iter().all(|member| member.replica_id != leaves) && found.members.len() == 3
            );
            let statuses = run.wait_for_equality();
            assert_eq!(checks::difference(&statuses), None);
            assert_eq!((heard.story().opened, heard.story().dropped), (1, 1));
            assert_eq!(heard.story().told_removed, 1);
            assert!(run.scene.violations.take().is_empty());
        });
    }
}
