//! What whoever leads the meta group does, again and again: it holds what the nodes are like now against what the state
//! says, and proposes the difference. Runs on core 0 of every node; only the leader's does anything.
//!
//! Nothing here is state: what is proposed names the versions that it was decided on, so that a new leader, which sees
//! the same, may propose the same again.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use krita_raft::{FollowerStatus, ReplicationMode, Term};
use krita_runtime::{CoreId, Instant, Mesh, Runtime};

use crate::core::Core;
use crate::failure::Failure;
use crate::gossiping::Standing;
use crate::mesh::CoreMessage;
use crate::meta::{
    self, Command, Effect, FEATURE_MAX, META_SHARD, Member, MemberState, MetaState, NodeNumber, Setting,
    node_of,
};
use crate::meta_driving::Rounds;
use crate::planner::NodeView;

/// A node of which gossip knows nothing yet is down if it is not heard for this long; so long must a leader have led
/// before it says so of anybody.
const DOWN_AFTER: Duration = Duration::from_secs(4);

/// A replica of shard 0 that is no further behind than this many entries follows it.
const FOLLOWS_WITHIN: u64 = 100;

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
        let mut rounds = Rounds::default();
        while !self.is_ending() && !self.input.stop.is_set() {
            self.runtime.sleep(rounds.pause()).await;
            let Some((term, state)) = self.led_meta_state() else {
                (leading, rounds) = (None, Rounds::default());
                continue;
            };
            let now = self.runtime.now();
            let led = leading.filter(|led| led.term == term).unwrap_or(Leading { term, since: now });
            leading = Some(led);
            let health = self.health(&state, led.since);
            let commands = health_commands(&state, &health, self.runtime.wall_clock().0);
            let mut is_busy = false;
            for command in commands.into_iter().chain(feature_command(&state)) {
                is_busy |= self.try_command(&command).await;
            }
            is_busy |= self.follow_shards(&state, &mut rounds).await;
            is_busy |= self.drive_jobs(&state, &health, &mut rounds).await;
            // Before that, whoever has not been heard may only not have been heard yet.
            if led.since + DOWN_AFTER <= now {
                is_busy |= self.plan_when_due(&health, &mut rounds).await;
            }
            rounds.is_busy = is_busy;
        }
    }

    /// Proposes a command; true if it did something.
    pub(crate) async fn try_command(&self, command: &Command) -> bool {
        match self.propose_meta(command).await {
            Ok(Ok(effect)) => {
                tracing::info!(?command, ?effect, "the cluster's state changes");
                effect != Effect::Unchanged
            }
            Ok(Err(refusal)) => {
                tracing::debug!(?command, %refusal, "refused");
                false
            }
            Err(failure) => {
                tracing::debug!(?command, reason = failure.message, "not proposed");
                false
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
        self.reads_fall_back.set(state.settings().get(Setting::ReadFallback) != 0);
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

    /// How the members are, as far as this node can tell: the one place where that comes from. Who is up and who is
    /// down is what gossip says, which has asked others before it calls a node dead.
    pub(crate) fn health(&self, state: &MetaState, leads_since: Instant) -> Health {
        let guard = self.serving.borrow();
        let Some(serving) = guard.as_ref() else { return Health::new() };
        let (now, view) = (self.runtime.now(), self.gossiping.view());
        let own = serving.cluster.node_number;
        let status = serving.replicas.get(&META_SHARD.0).map(|replica| replica.raft.status());
        let mut health = Health::new();
        for member in state.members().filter(|member| member.state != MemberState::Retired) {
            let number = member.number;
            let is_heard = self.peers.heard_at(number.0).is_some_and(|at| now < at + DOWN_AFTER);
            let is_up = number.0 == own || is_up(view.standing(member.node.node_uuid), is_heard);
            if !is_up && now < leads_since + DOWN_AFTER {
                continue;
            }
            let room = match number.0 == own {
                true => self.peers.own_room(),
                false => self.peers.room_of(number.0, META_SHARD.0),
            };
            let follows_meta = number.0 == own
                || status.as_ref().is_some_and(|status| {
                    let here = |follower: &&FollowerStatus| node_of(follower.id) == number;
                    status.followers.iter().find(here).is_some_and(|follower| {
                        follower.is_caught_up
                            || (follower.mode == ReplicationMode::Pipeline
                                && follower.matched.0 + FOLLOWS_WITHIN > status.commit.0)
                    })
                });
            health.insert(number, NodeView { alive: is_up, full: room.is_full(), follows_meta });
        }
        health
    }
}

/// Whether a node is up, by what gossip says of it and by whether its connection is not silent.
fn is_up(standing: Option<Standing>, is_heard: bool) -> bool {
    standing.map_or(is_heard, |standing| standing.down_since().is_none())
}

/// How the members are. Who is missing has not been heard yet, and may be up or down.
pub(crate) type Health = BTreeMap<NodeNumber, NodeView>;

/// Says who has gone down and who is up again.
fn health_commands(state: &MetaState, health: &Health, now_ms: u64) -> Vec<Command> {
    let report = |member: &Member, down_since_ms: u64| Command::ReportDown {
        number: member.number,
        expected: member.version,
        down_since_ms,
    };
    let change = |member: &Member| match (health.get(&member.number)?.alive, member.down_since_ms) {
        (true, down) if down != 0 => Some(report(member, 0)),
        (false, 0) => Some(report(member, now_ms.max(1))),
        (true | false, _) => None,
    };
    state.members().filter_map(change).collect()
}

/// Raises the feature version to the highest in which every member takes part.
fn feature_command(state: &MetaState) -> Option<Command> {
    let (active, expected) = state.feature();
    let members = state.members().filter(|member| member.state != MemberState::Retired);
    let to = members.map(|member| member.node.feature_max).min()?.min(FEATURE_MAX);
    (to > active).then_some(Command::RaiseFeature { to, expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::tests::{apply, description, formed};
    use crate::meta::{NodeDescription, Version};

    fn view(alive: bool) -> NodeView {
        NodeView { alive, full: false, follows_meta: true }
    }

    #[test]
    fn gossip_says_who_is_down_and_silence_only_where_it_knows_nothing() {
        let since = Instant::default();
        for (standing, up) in [
            (Standing::Up { since }, true),
            (Standing::Suspect { since }, true),
            (Standing::Dead { since }, false),
            (Standing::Left { since }, false),
        ] {
            assert_eq!([true, false].map(|is_heard| is_up(Some(standing), is_heard)), [up; 2]);
        }
        assert_eq!([true, false].map(|is_heard| is_up(None, is_heard)), [true, false]);
    }

    #[test]
    fn only_what_differs_is_reported() {
        let mut state = formed(3, 8, 3);
        let health = Health::from([(NodeNumber(1), view(true)), (NodeNumber(2), view(false))]);
        let commands = health_commands(&state, &health, 500);
        let down = Command::ReportDown { number: NodeNumber(2), expected: Version(0), down_since_ms: 500 };
        assert_eq!(commands, [down], "nobody knows of node 3 yet");
        assert!(apply(&mut state, &commands[0]).is_ok());
        assert_eq!(health_commands(&state, &health, 900), []);
        let well = Health::from([(NodeNumber(2), view(true))]);
        let commands = health_commands(&state, &well, 900);
        assert!(apply(&mut state, &commands[0]).is_ok());
        assert!(!state.member(NodeNumber(2)).expect("a member").is_down());
    }

    #[test]
    fn the_feature_version_rises_once_everybody_knows_it() {
        let mut state = formed(2, 8, 3);
        for number in [1, 2] {
            assert_eq!(feature_command(&state), None, "node {number} has not said that it knows more");
            let node = NodeDescription { feature_max: FEATURE_MAX, ..description(number) };
            let expected = state.member(NodeNumber(number)).expect("a member").version;
            let update = Command::UpdateMember { number: NodeNumber(number), expected, node };
            apply(&mut state, &update).expect("accepted");
        }
        let raise = feature_command(&state).expect("all know it");
        apply(&mut state, &raise).expect("accepted");
        assert_eq!(state.feature().0, FEATURE_MAX);
        assert_eq!(feature_command(&state), None);
    }
}
