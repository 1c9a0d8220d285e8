//! The leader of the meta group sees to it that shards become what the map's jobs want, and that the map follows what
//! they are: it asks the shards' leaders, has [`driver`] say what comes next, and proposes or orders that. Beside what
//! runs, it has [`planner`] say what else should.
//!
//! All of it follows from the state and from what the shards say now. An order that was lost, or sent by a leader that
//! is none any more, is made again by whoever leads next.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use krita_proto::v1;
use krita_proto::v1::OrderOutcome;
use krita_runtime::{Instant, Runtime};

use crate::core::Core;
use crate::failure::Failure;
use crate::meta::driver::{self, Next};
use crate::meta::{
    Enters, JobKind, JobNumber, META_SHARD, MetaState, NodeNumber, Reason, Setting, ShardNumber, Version,
    node_of,
};
use crate::meta_leader::Health;
use crate::planner::{self, Finding, Input, Plan, Step};

/// How often the leader looks around: while nothing happens, and while something does.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
const BUSY_INTERVAL: Duration = Duration::from_millis(100);

/// How long a shard's leader may take to say who is in its group, and to carry out an order.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
const ORDER_TIMEOUT: Duration = Duration::from_secs(4);

/// Shards without a job that are looked at in one round: an order that did not come from here shows then.
const FOLLOWED_MAX: usize = 16;

/// Jobs that are driven at a time, and steps of one of them in one round.
const DRIVEN_MAX: usize = 64;
const STEPS_MAX: usize = 8;

/// A plan takes a core's time: no more of it than one part in so many.
const PLAN_SHARE: u32 = 20;
const PLAN_INTERVAL: Duration = Duration::from_secs(1);

/// What a leader goes by from round to round. Losing it costs nothing but time.
#[derive(Default)]
pub(crate) struct Rounds {
    /// The last round did something.
    pub(crate) is_busy: bool,
    /// The shard after the last one that was looked at.
    next_shard: u32,
    /// The first of the jobs that are driven next.
    next_job: JobNumber,
    plan_at: Instant,
    /// What the last plan was made of, if it was empty.
    nothing_for: Option<(u64, Health)>,
    findings: Vec<Finding>,
}

impl Rounds {
    /// How long until the next round.
    pub(crate) fn pause(&self) -> Duration {
        if self.is_busy { BUSY_INTERVAL } else { IDLE_INTERVAL }
    }

    /// The next few of the shards that no job changes.
    fn shards_to_follow(&mut self, state: &MetaState) -> Vec<ShardNumber> {
        // The map has two shards at least, see `ShardMap`.
        let count = state.map().data_shards() + 1;
        let mut shards = Vec::new();
        for _ in 0..count.min(FOLLOWED_MAX as u32) {
            let shard = ShardNumber(self.next_shard % count);
            self.next_shard = (shard.0 + 1) % count;
            if state.map().shard(shard).is_some_and(|shard| shard.job.is_none()) {
                shards.push(shard);
            }
        }
        shards
    }

    /// The next few of the jobs that run, each in turn.
    fn jobs_to_drive(&mut self, state: &MetaState) -> Vec<JobNumber> {
        let running: Vec<JobNumber> =
            state.jobs().filter(|job| !job.state.has_ended()).map(|job| job.number).collect();
        let first = running.partition_point(|job| *job < self.next_job);
        let jobs: Vec<JobNumber> =
            running[first..].iter().chain(&running[..first]).take(DRIVEN_MAX).copied().collect();
        self.next_job = jobs.last().map_or(JobNumber(0), |last| JobNumber(last.0 + 1));
        jobs
    }
}

impl<R: Runtime> Core<R> {
    /// Has the map follow the configurations of a few shards that no job changes. True if it did.
    pub(crate) async fn follow_shards(self: &Rc<Self>, state: &MetaState, rounds: &mut Rounds) -> bool {
        let looks = rounds.shards_to_follow(state).into_iter().map(|shard| async move {
            let view = self.look_at_shard(shard, LOOK_TIMEOUT).await.ok()?;
            driver::follow(state, shard, &view)
        });
        let mut has_followed = false;
        for command in join_all(looks).await.into_iter().flatten() {
            has_followed |= self.try_command(&command).await;
        }
        has_followed
    }

    /// Brings jobs on. True if one of them came further.
    pub(crate) async fn drive_jobs(
        self: &Rc<Self>,
        state: &MetaState,
        health: &Health,
        rounds: &mut Rounds,
    ) -> bool {
        let driven = rounds.jobs_to_drive(state).into_iter().map(|job| self.drive_job(job, health));
        join_all(driven).await.contains(&true)
    }

    async fn drive_job(self: &Rc<Self>, number: JobNumber, health: &Health) -> bool {
        let is_live = |node: NodeNumber| health.get(&node).is_some_and(|view| view.alive);
        let mut has_moved = false;
        for _ in 0..STEPS_MAX {
            let shard = self.led_meta_state().and_then(|(_, state)| match state.job(number)?.kind {
                JobKind::Change(change) => Some(change.shard),
                JobKind::Drain(_) | JobKind::Decommission(_) => None,
            });
            let view = match shard {
                Some(shard) => self.look_at_shard(shard, LOOK_TIMEOUT).await.ok(),
                None => None,
            };
            let Some((_, state)) = self.led_meta_state() else { break };
            let Some(job) = state.job(number) else { break };
            let is_done = match driver::next(&state, job, view.as_ref(), is_live) {
                Next::Wait(waiting) => {
                    tracing::debug!(job = number.0, ?waiting, "a job waits");
                    false
                }
                Next::Propose(command) => self.try_command(&command).await,
                Next::Order(order) => match self.order_shard(&order, ORDER_TIMEOUT).await {
                    Ok((_, outcome, reason)) => {
                        tracing::info!(job = number.0, ?order, ?outcome, reason, "ordered");
                        outcome == OrderOutcome::Done
                    }
                    Err(failure) => {
                        tracing::debug!(job = number.0, ?order, reason = failure.message, "not ordered");
                        false
                    }
                },
            };
            if !is_done {
                break;
            }
            has_moved = true;
        }
        has_moved
    }

    /// Plans if it is time to, and begins what is planned. True if something was begun.
    pub(crate) async fn plan_when_due(&self, health: &Health, rounds: &mut Rounds) -> bool {
        let began = self.runtime.now();
        let Some((_, state)) = self.led_meta_state().filter(|_| rounds.plan_at <= began) else {
            return false;
        };
        // Who is down may be down for too long a moment later; all else is in the state and in who answers.
        let is_anybody_down = state.members().any(|member| member.down_since_ms != 0);
        let basis = (state.applied_index(), health.clone());
        if !is_anybody_down && rounds.nothing_for.as_ref() == Some(&basis) {
            return false;
        }
        let mut plan = self.plan(&state, health);
        plan.steps.retain(begins_by_itself);
        let now = self.runtime.now();
        rounds.plan_at = now + PLAN_INTERVAL.max(now.since(began) * PLAN_SHARE);
        if plan.findings != rounds.findings {
            tracing::info!(findings = ?plan.findings, "what the planner cannot do");
            rounds.findings.clone_from(&plan.findings);
        }
        rounds.nothing_for = plan.steps.is_empty().then_some(basis);
        let mut has_begun = false;
        for step in &plan.steps {
            has_begun |= self.try_command(&step.command()).await;
        }
        has_begun
    }

    fn plan(&self, state: &MetaState, health: &Health) -> Plan {
        let cluster = self.serving.borrow().as_ref().map(|serving| serving.cluster.clone());
        let core_of = |shard: ShardNumber, node: NodeNumber| {
            let cluster = cluster.as_ref()?;
            match node.0 == cluster.node_number {
                true => cluster.core_of(shard.0).map(|core| core.0),
                false => self.peers.core_of_shard(node.0, shard.0),
            }
        };
        // Log time: no earlier than what the state has seen.
        let seen_ms = state.members().map(|member| member.down_since_ms).max().unwrap_or(0);
        planner::plan(&Input {
            state,
            nodes: health,
            now_ms: self.runtime.wall_clock().0.max(seen_ms),
            steps_max: usize::try_from(state.settings().get(Setting::MovesMax)).unwrap_or(usize::MAX),
            core_of: Some(&core_of),
        })
    }

    /// An admin wants the cluster balanced, now, whatever the settings say.
    pub(crate) async fn rebalance(&self, dry_run: bool) -> Result<v1::ClusterChangeReply, Failure> {
        let (_, state) =
            self.led_meta_state().ok_or_else(|| Failure::unavailable("the meta group has another leader"))?;
        let health = self.health(&state, Instant::default());
        let mut balanced = (*state).clone();
        balanced.settings.set.insert(Setting::Balance, (1, Version(0)));
        let plan = self.plan(&balanced, &health);
        let mut reply = v1::ClusterChangeReply {
            steps: plan.steps.iter().map(step_text).collect(),
            findings: plan.findings.iter().map(finding_text).collect(),
            ..Default::default()
        };
        if !dry_run {
            for step in &plan.steps {
                reply.changed |= self.try_command(&step.command()).await;
            }
        }
        Ok(reply)
    }
}

/// Whether a step is begun without anybody asking for it. What evens out, spreads, tidies or gives up replicas of data
/// shards waits for a request to rebalance: an admin may be changing shards by orders of their own.
fn begins_by_itself(step: &Step) -> bool {
    match step {
        Step::Change(start) => match start.reason {
            Reason::Repair | Reason::Leaving | Reason::MetaGroup | Reason::Operator => true,
            // As many replicas as are wanted is safety; one too many is not worth a surprise.
            Reason::ReplicationFactor => start.leaves.is_none() || start.shard == META_SHARD,
            Reason::Zones | Reason::Balance | Reason::Leftover => start.shard == META_SHARD,
        },
        Step::PreferLeader { .. } | Step::Activate { .. } | Step::Remove { .. } => true,
    }
}

fn step_text(step: &Step) -> String {
    match step {
        Step::Change(start) => {
            let enters = match start.enters {
                Enters::Nobody => String::new(),
                Enters::NewOn(node) => format!(", to node {node}"),
                Enters::Existing(id) => format!(", to node {}", node_of(id)),
            };
            let leaves = start.leaves.map(|id| format!(", from node {}", node_of(id)));
            format!("shard {}{}{enters}: {:?}", start.shard, leaves.unwrap_or_default(), start.reason)
        }
        Step::PreferLeader { shard, replica, .. } => {
            format!("shard {shard} is to be led by node {}", node_of(*replica))
        }
        Step::Activate { number, .. } => format!("node {number} takes its share"),
        Step::Remove { number, .. } => format!("node {number} is removed"),
    }
}

fn finding_text(finding: &Finding) -> String {
    match finding {
        Finding::WithoutQuorum { shards, first } => {
            format!("{shards} shards have no live majority, shard {first} among them")
        }
        Finding::NoRoom { shards, first } => {
            format!("no node can take a replica of {shards} shards, shard {first} among them")
        }
        Finding::TooFewNodes { nodes, wanted } => {
            format!("{nodes} nodes hold data, {wanted} replicas of each shard are wanted")
        }
        Finding::Uneven { nodes } => format!("no single move evens out {nodes} nodes"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::meta::tests::{apply, formed};
    use crate::meta::{Command, StartChange};

    #[test]
    fn replicas_that_are_missing_come_by_themselves() {
        let state = formed(4, 8, 3);
        let replica = state.map().shard(ShardNumber(1)).expect("shard 1").replicas[0].id;
        let step = |enters, leaves, reason| {
            let (shard, expected) = (ShardNumber(1), Version(0));
            let (enters_as_learner, leaves_to_learner) = (false, false);
            Step::Change(StartChange {
                shard,
                expected,
                enters,
                enters_as_learner,
                leaves,
                leaves_to_learner,
                reason,
            })
        };
        let new = Enters::NewOn(NodeNumber(4));
        assert!(begins_by_itself(&step(new, None, Reason::ReplicationFactor)));
        assert!(!begins_by_itself(&step(Enters::Nobody, Some(replica), Reason::ReplicationFactor)));
        assert!(begins_by_itself(&step(new, Some(replica), Reason::Repair)));
        assert!(!begins_by_itself(&step(new, Some(replica), Reason::Balance)));
    }

    #[test]
    fn every_shard_is_looked_at_in_turn_but_those_with_a_job() {
        let mut state = formed(4, 40, 3);
        let shard = state.map().shard(ShardNumber(7)).expect("shard 7");
        let to =
            (1..=4).map(NodeNumber).find(|node| shard.replica_on(*node).is_none()).expect("one has none");
        let start = Command::StartChange(StartChange {
            shard: ShardNumber(7),
            expected: shard.version,
            enters: Enters::NewOn(to),
            enters_as_learner: false,
            leaves: Some(shard.replicas[0].id),
            leaves_to_learner: false,
            reason: Reason::Operator,
        });
        apply(&mut state, &start).expect("accepted");
        let mut rounds = Rounds::default();
        let mut seen: BTreeMap<ShardNumber, usize> = BTreeMap::new();
        for _ in 0..41 {
            let shards = rounds.shards_to_follow(&state);
            assert!(shards.len() <= FOLLOWED_MAX);
            shards.into_iter().for_each(|shard| *seen.entry(shard).or_default() += 1);
        }
        assert_eq!(seen.len(), 40, "all but shard 7, the meta group among them");
        assert!(seen.values().all(|times| *times == FOLLOWED_MAX));
        assert_eq!(rounds.jobs_to_drive(&state), [JobNumber(1)]);
        assert_eq!(rounds.jobs_to_drive(&state), [JobNumber(1)]);
    }
}
