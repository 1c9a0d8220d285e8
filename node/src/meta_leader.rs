//! What whoever leads the meta group does, again and again: it holds what the nodes are like now against what the state
//! says, and proposes the difference. Runs on core 0 of every node; only the leader's does anything.
//!
//! Nothing here is state: what is proposed names the versions that it was decided on, so that a new leader, which sees
//! the same, may propose the same again.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use krita_raft::Term;
use krita_runtime::{CoreId, Instant, Mesh, Runtime};

use crate::core::Core;
use crate::failure::Failure;
use crate::mesh::CoreMessage;
use crate::meta::{self, Command, META_SHARD, Member, MetaState, NodeNumber};

/// How often the leader looks around.
const LEAD_INTERVAL: Duration = Duration::from_secs(1);

/// A node that is not heard for this long is down; so long must a leader have led before it says so of anybody.
const DOWN_AFTER: Duration = Duration::from_secs(4);

/// How long a command may take from its proposal to its outcome.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Since when this node leads the meta group.
#[derive(Clone, Copy, Debug)]
struct Leading {
    term: Term,
    since: Instant,
}

impl<R: Runtime> Core<R> {
    /// Leads the meta group whenever this node is its leader.
    pub(crate) async fn lead_meta_group(self: Rc<Self>) {
        let mut leading: Option<Leading> = None;
        while !self.is_ending() && !self.input.stop.is_set() {
            self.runtime.sleep(LEAD_INTERVAL).await;
            let Some((term, state)) = self.led_meta_state() else {
                leading = None;
                continue;
            };
            let now = self.runtime.now();
            let led = leading.filter(|led| led.term == term).unwrap_or(Leading { term, since: now });
            leading = Some(led);
            for command in self.health_commands(&state, led.since) {
                match self.propose_meta(&command).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(refusal)) => tracing::debug!(?command, %refusal, "refused"),
                    // Another leads, or nobody for now.
                    Err(_) => break,
                }
            }
        }
    }

    /// The state of the meta group and the term, if this node leads it.
    pub(crate) fn led_meta_state(&self) -> Option<(Term, Arc<MetaState>)> {
        let guard = self.serving.borrow();
        let replica = guard.as_ref()?.replicas.get(&META_SHARD.0).filter(|replica| replica.is_leader())?;
        Some((replica.raft.status().term, replica.machine.meta_state()?.clone()))
    }

    /// Core 0: if shard 0 has applied something since, every core takes it up.
    pub(crate) fn publish_meta_state(self: &Rc<Self>) {
        let state = {
            let guard = self.serving.borrow();
            let Some(serving) = guard.as_ref() else { return };
            let state = serving.replicas.get(&META_SHARD.0).and_then(|replica| replica.machine.meta_state());
            let known = serving.cluster.state.applied_index();
            state.filter(|state| state.applied_index() > known).cloned()
        };
        let Some(state) = state else { return };
        for core in (1..self.mesh.cores()).map(CoreId) {
            self.send_to_core(core, CoreMessage::Meta(state.clone()));
        }
        *self.meta_state.borrow_mut() = Some(state);
        self.take_meta_state();
    }

    /// Goes by the newest state of the meta group that core 0 has applied.
    pub(crate) fn take_meta_state(&self) {
        let mut guard = self.serving.borrow_mut();
        let (Some(serving), Some(state)) = (guard.as_mut(), self.meta_state.borrow().clone()) else { return };
        let Some(cluster) = serving.cluster.with_state(&state) else { return };
        let (cluster, epoch_before) = (Arc::new(cluster), serving.cluster.epoch());
        serving.cluster = cluster.clone();
        if cluster.epoch() != epoch_before {
            serving.replicas.values_mut().for_each(|replica| replica.set_epoch(cluster.epoch()));
        }
        drop(guard);
        self.peers.follow(&cluster);
    }

    /// Proposes a command of the meta group, and waits until it is applied here.
    ///
    /// # Errors
    /// This node does not lead, or it is not known what became of the command.
    pub(crate) async fn propose_meta(&self, command: &Command) -> Result<meta::Outcome, Failure> {
        let now = self.runtime.now();
        let proposed = self
            .with_replica(META_SHARD.0, |replica| replica.propose_meta(now, command, now + PROPOSE_TIMEOUT));
        let outcome = proposed.ok_or_else(|| Failure::not_ready("the meta group is not open here"))?;
        outcome.await.unwrap_or_else(|_| Err(Failure::unknown_outcome("the meta group closed")))
    }

    /// Says who has gone down and who is up again.
    fn health_commands(&self, state: &MetaState, leads_since: Instant) -> Vec<Command> {
        let now_ms = self.runtime.wall_clock().0.max(1);
        let heard = self.heard_nodes(leads_since);
        let report = |member: &Member, down_since_ms: u64| Command::ReportDown {
            number: member.number,
            expected: member.version,
            down_since_ms,
        };
        let change = |member: &Member| match (heard.get(&member.number), member.down_since_ms) {
            (Some(true), down) if down != 0 => Some(report(member, 0)),
            (Some(false), 0) => Some(report(member, now_ms)),
            (Some(_) | None, _) => None,
        };
        let commands = state.members().filter(|member| member.state != meta::MemberState::Retired);
        commands.filter_map(change).collect()
    }

    /// Which members are up (true) or down (false), as far as this node can tell: the one place where that comes from.
    fn heard_nodes(&self, leads_since: Instant) -> BTreeMap<NodeNumber, bool> {
        let guard = self.serving.borrow();
        let Some(serving) = guard.as_ref() else { return BTreeMap::new() };
        let now = self.runtime.now();
        let own = NodeNumber(serving.cluster.node_number);
        let mut heard = BTreeMap::from([(own, true)]);
        for member in serving.cluster.others() {
            let at = self.peers.heard_at(member.number);
            let is_up = at.is_some_and(|at| now < at + DOWN_AFTER);
            if is_up || leads_since + DOWN_AFTER <= now {
                heard.insert(NodeNumber(member.number), is_up);
            }
        }
        heard
    }
}
