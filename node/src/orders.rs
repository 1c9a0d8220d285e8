//! Orders to a shard's leader: change who is in the group, move the leadership, or say who is there.
//!
//! An order is a compare-and-set: it names the configuration that it changes by the index of the entry that set it, so
//! it may be lost, repeated or late. Raft refuses what would be unsafe (`krita_raft::ConfigurationError`); here stand
//! the rules that Raft cannot know, since they are about what an id means:
//!
//! - The id of a new replica names this shard, and a node of the cluster that has no replica of it yet. So when a
//!   leader speaks to a newer replica of a node, the removal of the older one is committed.
//! - Its generation is above those of all members, so that no id comes back.
//!
//! What passes in a moment (another change, a hand-over, a leader that has just begun) is waited for within the order's
//! time; everything else is told to whoever ordered, who looks again and orders anew.

use std::rc::Rc;
use std::time::Duration;

use krita_proto::routing::TIMEOUT_MS_MAX;
use krita_proto::v1;
use krita_proto::v1::OrderOutcome;
use krita_raft::{
    Configuration, ConfigurationChange, ConfigurationError, Index, Membership, ReplicaId, TransferError,
};
use krita_runtime::{Instant, Runtime};

use crate::core::Core;
use crate::failure::Failure;
use crate::meta::driver::{ShardAction, ShardOrder, ShardView};
use crate::meta::{NodeNumber, Replica as Member, Role, ShardNumber, generation_of, node_of, shard_of};
use crate::replica::{Replica, raft_time};
use crate::responder::Responder;

/// How often an order that waits looks again.
const PAUSE: Duration = Duration::from_millis(10);

/// Orders that wait on one core.
const WAITING_MAX: u32 = 256;

/// A checked order for one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// Only say who is there.
    Look,
    /// Act on the configuration with this index.
    Act { configuration_index: u64, action: ShardAction },
}

impl Order {
    /// Checks what came over the wire.
    pub(crate) fn from_wire(wire: &v1::ShardOrder) -> Result<Self, Failure> {
        use v1::shard_order::Action;
        let id = |number: u64| match shard_of(ReplicaId(number)) == ShardNumber(wire.shard)
            && node_of(ReplicaId(number)).0 != 0
        {
            true => Ok(ReplicaId(number)),
            false => Err(Failure::invalid(format!("{number} is no replica id of shard {}", wire.shard))),
        };
        let optional = |number: u64| if number == 0 { Ok(None) } else { id(number).map(Some) };
        let action = match &wire.action {
            Some(Action::Look(_)) => return Ok(Self::Look),
            Some(Action::AddLearner(number)) => ShardAction::AddLearner(id(*number)?),
            Some(Action::Swap(swap)) => {
                let (promote, demote) = (optional(swap.promote)?, optional(swap.demote)?);
                if promote == demote {
                    return Err(Failure::invalid("a swap names a learner, a voter, or one of each"));
                }
                ShardAction::Swap { promote, demote }
            }
            Some(Action::RemoveLearner(number)) => ShardAction::RemoveLearner(id(*number)?),
            Some(Action::TransferLeader(number)) => ShardAction::TransferLeader(id(*number)?),
            None => return Err(Failure::invalid("the order is empty or not known to this node")),
        };
        Ok(Self::Act { configuration_index: wire.configuration_index, action })
    }
}

/// A look, or an order, as it goes over the wire.
fn to_wire(shard: ShardNumber, order: Order, timeout: Duration) -> v1::ShardOrder {
    use v1::shard_order::Action;
    let number = |id: Option<ReplicaId>| id.map_or(0, |id| id.0);
    let (configuration_index, action) = match order {
        Order::Look => (0, Action::Look(v1::ShardLook {})),
        Order::Act { configuration_index, action } => {
            let action = match action {
                ShardAction::AddLearner(id) => Action::AddLearner(id.0),
                ShardAction::Swap { promote, demote } => {
                    Action::Swap(v1::ShardSwap { promote: number(promote), demote: number(demote) })
                }
                ShardAction::RemoveLearner(id) => Action::RemoveLearner(id.0),
                ShardAction::TransferLeader(id) => Action::TransferLeader(id.0),
            };
            (configuration_index, action)
        }
    };
    let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).clamp(1, TIMEOUT_MS_MAX);
    v1::ShardOrder { shard: shard.0, configuration_index, action: Some(action), timeout_ms }
}

/// What the meta group takes from an answer; `None` if a role is unknown to this version.
fn view_of(wire: &v1::ShardView) -> Option<ShardView> {
    let member = |member: &v1::ShardMember| {
        let role = match member.role() {
            v1::MemberRole::Voter => Role::Voter,
            v1::MemberRole::Learner => Role::Learner,
            v1::MemberRole::Incoming => Role::Incoming,
            v1::MemberRole::Outgoing => Role::Outgoing,
            v1::MemberRole::Unspecified => return None,
        };
        Some(Member { id: ReplicaId(member.replica_id), role })
    };
    let caught_up = wire.members.iter().filter(|member| member.caught_up && !member.suspect);
    Some(ShardView {
        configuration_index: wire.configuration_index,
        replicas: wire.members.iter().map(member).collect::<Option<_>>()?,
        leader: ReplicaId(wire.leader),
        caught_up: caught_up
            .filter(|member| member.role() == v1::MemberRole::Learner)
            .map(|member| ReplicaId(member.replica_id))
            .collect(),
    })
}

/// What a replica counts for in a configuration; `None`: it is no member.
fn role_in(configuration: &Configuration, id: ReplicaId) -> Option<Role> {
    let is_in = configuration.voters.contains(&id);
    let is_out = configuration.voters_outgoing.contains(&id);
    match (is_in, is_out) {
        (true, false) if configuration.is_joint() => Some(Role::Incoming),
        (true, _) => Some(Role::Voter),
        (false, true) => Some(Role::Outgoing),
        (false, false) => configuration.learners.contains(&id).then_some(Role::Learner),
    }
}

fn wire_role(role: Role) -> v1::MemberRole {
    match role {
        Role::Voter => v1::MemberRole::Voter,
        Role::Learner => v1::MemberRole::Learner,
        Role::Incoming => v1::MemberRole::Incoming,
        Role::Outgoing => v1::MemberRole::Outgoing,
    }
}

/// Whether the configuration is as the action wishes it to be. `leader` leads.
fn is_reached(configuration: &Configuration, leader: Option<ReplicaId>, action: ShardAction) -> bool {
    let role = |id: ReplicaId| role_in(configuration, id);
    match action {
        ShardAction::AddLearner(id) => role(id).is_some(),
        ShardAction::Swap { promote, demote } => {
            promote.is_none_or(|id| role(id) == Some(Role::Voter))
                && demote.is_none_or(|id| matches!(role(id), Some(Role::Learner) | None))
        }
        ShardAction::RemoveLearner(id) => role(id).is_none(),
        ShardAction::TransferLeader(id) => leader == Some(id),
    }
}

/// The change of the configuration that an action is; `None` for one that is none.
fn change_of(action: ShardAction) -> Option<ConfigurationChange> {
    match action {
        ShardAction::AddLearner(id) => Some(ConfigurationChange::add(id)),
        ShardAction::Swap { promote, demote } => Some(ConfigurationChange {
            demote: demote.into_iter().collect(),
            ..ConfigurationChange::promote(promote)
        }),
        ShardAction::RemoveLearner(id) => Some(ConfigurationChange::remove([id])),
        ShardAction::TransferLeader(_) => None,
    }
}

/// Why an action must not even be tried in this configuration, though Raft would.
fn objection(
    configuration: &Configuration,
    action: ShardAction,
    is_node: impl Fn(NodeNumber) -> bool,
) -> Option<(OrderOutcome, String)> {
    match action {
        ShardAction::AddLearner(id) => {
            let node = node_of(id);
            if !is_node(node) {
                return Some((OrderOutcome::NodeUnknown, format!("node {node} is no member of the cluster")));
            }
            let members = configuration.members();
            if let Some(other) = members.iter().find(|member| node_of(**member) == node) {
                let reason = format!("node {node} has replica {other} already");
                return Some((OrderOutcome::Mismatch, reason));
            }
            let newest = members.iter().map(|member| generation_of(*member)).max().unwrap_or(0);
            (generation_of(id) <= newest).then(|| {
                let reason = format!("a new replica needs a generation above {newest}: ids never come back");
                (OrderOutcome::Mismatch, reason)
            })
        }
        ShardAction::RemoveLearner(id) => {
            let role = role_in(configuration, id);
            (role != Some(Role::Learner))
                .then(|| (OrderOutcome::Mismatch, format!("replica {id} is no learner of this group")))
        }
        ShardAction::Swap { .. } | ShardAction::TransferLeader(_) => None,
    }
}

/// How far an order is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// Nothing has been done yet.
    Waiting,
    /// The change whose first entry has this index is under way.
    Changing(Index),
    /// The leadership is being handed over.
    Transferring,
}

/// What one look at the replica made of an order.
enum Step {
    /// This is how it ended.
    Over(OrderOutcome, String),
    /// Not yet, and why.
    Wait(OrderOutcome, String),
    /// This replica does not lead.
    NotLeader(Failure),
}

impl Step {
    fn done() -> Self {
        Self::Over(OrderOutcome::Done, String::new())
    }

    fn of_refusal(error: ConfigurationError, failure: impl FnOnce() -> Failure) -> Self {
        let reason = error.to_string();
        match error {
            ConfigurationError::NotLeader { .. } => Self::NotLeader(failure()),
            ConfigurationError::Transferring => Self::Wait(OrderOutcome::Transferring, reason),
            ConfigurationError::TermNotCommitted => Self::Wait(OrderOutcome::TermNotCommitted, reason),
            ConfigurationError::InProgress => Self::Wait(OrderOutcome::InProgress, reason),
            ConfigurationError::Stale { .. } => Self::Over(OrderOutcome::Stale, reason),
            ConfigurationError::Mismatch { .. }
            | ConfigurationError::Nothing
            | ConfigurationError::NoVoterLeft => Self::Over(OrderOutcome::Mismatch, reason),
            ConfigurationError::NoQuorum => Self::Over(OrderOutcome::NoQuorum, reason),
            ConfigurationError::TooManyMembers => Self::Over(OrderOutcome::TooMany, reason),
            ConfigurationError::NotCaughtUp { .. } => Self::Over(OrderOutcome::NotCaughtUp, reason),
            ConfigurationError::Suspect { .. } => Self::Over(OrderOutcome::Suspect, reason),
        }
    }
}

impl<R: Runtime> Replica<R> {
    /// Brings an order one step on. Harmless to call again.
    fn step_order(
        &mut self,
        now: Instant,
        (configuration_index, action): (u64, ShardAction),
        progress: &mut Progress,
        is_node: impl Fn(NodeNumber) -> bool,
    ) -> Step {
        let applied = self.raft.applied_membership().clone();
        let is_settled = *self.raft.membership() == applied && !applied.configuration.is_joint();
        if is_settled && is_reached(&applied.configuration, self.leader, action) {
            return Step::done();
        }
        if !self.is_leader() {
            return Step::NotLeader(self.not_leader());
        }
        match *progress {
            Progress::Changing(_) if !is_settled => {
                return Step::Wait(OrderOutcome::InProgress, "the change is not committed yet".to_owned());
            }
            Progress::Changing(_) | Progress::Transferring | Progress::Waiting => {}
        }
        if is_settled && applied.set_by.index.0 != configuration_index {
            let reason = format!("the configuration is that of entry {}", applied.set_by.index);
            return Step::Over(OrderOutcome::Stale, reason);
        }
        if let Some((outcome, reason)) =
            objection(&applied.configuration, action, is_node).filter(|_| is_settled)
        {
            return Step::Over(outcome, reason);
        }
        self.start_order(now, action, &applied, progress)
    }

    fn start_order(
        &mut self,
        now: Instant,
        action: ShardAction,
        applied: &Membership,
        progress: &mut Progress,
    ) -> Step {
        let Some(change) = change_of(action) else { return self.start_transfer(now, action, progress) };
        match self.raft.propose_configuration(raft_time(now), &change, applied.set_by) {
            Ok((_, index)) => {
                tracing::info!(shard = self.shard, index = index.0, ?action, "changes its members");
                *progress = Progress::Changing(index);
                Step::Wait(OrderOutcome::InProgress, "the change is not committed yet".to_owned())
            }
            Err(error) => Step::of_refusal(error, || self.not_leader()),
        }
    }

    fn start_transfer(&mut self, now: Instant, action: ShardAction, progress: &mut Progress) -> Step {
        let ShardAction::TransferLeader(to) = action else { return Step::done() };
        let wait = |reason: &str| Step::Wait(OrderOutcome::Transferring, reason.to_owned());
        match self.raft.transfer_leadership(raft_time(now), to) {
            Ok(()) if *progress == Progress::Waiting => {
                tracing::info!(shard = self.shard, to = to.0, "leadership goes where it was ordered to");
                *progress = Progress::Transferring;
                wait("leadership is being handed over")
            }
            Ok(()) | Err(TransferError::InProgress) => wait("leadership is being handed over"),
            Err(TransferError::NotLeader { .. }) => Step::NotLeader(self.not_leader()),
            Err(error @ TransferError::NotAnotherVoter) => {
                Step::Over(OrderOutcome::Mismatch, format!("replica {to}: {error}"))
            }
            Err(error @ TransferError::Suspect) => {
                Step::Over(OrderOutcome::Suspect, format!("replica {to}: {error}"))
            }
        }
    }

    /// The group as far as it is committed and applied here.
    pub(crate) fn view(&self, outcome: OrderOutcome, reason: String) -> v1::ShardView {
        let (status, applied) = (self.raft.status(), self.raft.applied_membership());
        let member = |id: ReplicaId| {
            let follower = status.followers.iter().find(|follower| follower.id == id);
            let role = role_in(&applied.configuration, id).expect("it is a member");
            v1::ShardMember {
                replica_id: id.0,
                node_number: node_of(id).0,
                role: wire_role(role).into(),
                caught_up: id == self.id || follower.is_some_and(|follower| follower.is_caught_up),
                matched: if id == self.id {
                    status.durable.0
                } else {
                    follower.map_or(0, |one| one.matched.0)
                },
                suspect: match id == self.id {
                    true => status.suspect.is_some(),
                    false => follower.is_some_and(|follower| follower.suspect),
                },
            }
        };
        v1::ShardView {
            shard: self.shard,
            configuration_index: applied.set_by.index.0,
            configuration_term: applied.set_by.term.0,
            members: applied.configuration.members().into_iter().map(member).collect(),
            leader: self.leader.map_or(0, |leader| leader.0),
            term: status.term.0,
            changing: self.raft.membership() != applied || applied.configuration.is_joint(),
            outcome: outcome.into(),
            reason,
            served_by: Some(self.served_by),
        }
    }
}

impl<R: Runtime> Core<R> {
    /// Asks the leader of a shard who is in its group, wherever it is.
    pub(crate) async fn look_at_shard(
        self: &Rc<Self>,
        shard: ShardNumber,
        limit: Duration,
    ) -> Result<ShardView, Failure> {
        self.send_order(shard, Order::Look, limit).await.map(|(view, _, _)| view)
    }

    /// Sends an order to the leader of its shard, wherever that is: what it says of its group then, how the order
    /// ended, and why. A failure changes nothing that sending the order again would not set right.
    pub(crate) async fn order_shard(
        self: &Rc<Self>,
        order: &ShardOrder,
        limit: Duration,
    ) -> Result<(ShardView, OrderOutcome, String), Failure> {
        let ShardOrder { shard, configuration_index, action } = *order;
        self.send_order(shard, Order::Act { configuration_index, action }, limit).await
    }

    async fn send_order(
        self: &Rc<Self>,
        shard: ShardNumber,
        order: Order,
        limit: Duration,
    ) -> Result<(ShardView, OrderOutcome, String), Failure> {
        let answer = self.ask(&to_wire(shard, order, limit)).await?;
        let unknown = || Failure::unavailable("the shard's leader says what this version does not know");
        let view = view_of(&answer).ok_or_else(unknown)?;
        Ok((view, answer.outcome(), answer.reason))
    }

    /// Carries out an order to a shard that this core leads, or led a moment ago.
    pub(crate) async fn carry_out(
        self: Rc<Self>,
        shard: u32,
        order: Order,
        deadline: Instant,
        responder: Responder,
    ) {
        if self.orders_waiting.get() >= WAITING_MAX {
            return responder.fail(&Failure::overloaded("too many orders to shards wait on this core"));
        }
        self.orders_waiting.set(self.orders_waiting.get() + 1);
        let answer = self.follow_order(shard, order, deadline).await;
        self.orders_waiting.set(self.orders_waiting.get() - 1);
        match answer {
            Ok(view) => responder.message(&view),
            Err(failure) => responder.fail(&failure),
        }
    }

    async fn follow_order(
        self: &Rc<Self>,
        shard: u32,
        order: Order,
        deadline: Instant,
    ) -> Result<v1::ShardView, Failure> {
        let gone = || Failure::unavailable("the shard is not open here any more");
        let Order::Act { configuration_index, action } = order else {
            let view = self.with_replica(shard, |replica| replica.view(OrderOutcome::Done, String::new()));
            return view.ok_or_else(gone);
        };
        let mut progress = Progress::Waiting;
        loop {
            let now = self.runtime.now();
            let step = self.with_order(shard, |replica, is_node| {
                let step = replica.step_order(now, (configuration_index, action), &mut progress, is_node);
                match step {
                    Step::Over(outcome, reason) => Some(Ok(replica.view(outcome, reason))),
                    Step::Wait(outcome, reason) if now + PAUSE >= deadline => {
                        Some(Ok(replica.view(outcome, reason)))
                    }
                    Step::Wait(..) => None,
                    // It may just have learnt that it leads no more, and not yet that the order is why.
                    Step::NotLeader(_) if progress == Progress::Transferring && now + PAUSE < deadline => {
                        None
                    }
                    Step::NotLeader(failure) => Some(Err(failure)),
                }
            });
            match step {
                Some(Some(answer)) => return answer,
                Some(None) => self.runtime.sleep(PAUSE).await,
                None => return Err(gone()),
            }
        }
    }

    /// [`Core::with_replica`] for an order, which needs to know who is a node.
    fn with_order<T>(
        &self,
        shard: u32,
        step: impl FnOnce(&mut Replica<R>, &dyn Fn(NodeNumber) -> bool) -> T,
    ) -> Option<T> {
        let cluster = self.serving.borrow().as_ref()?.cluster.clone();
        self.with_replica(shard, |replica| step(replica, &|node| cluster.member(node.0).is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::replica_id;

    fn id(node: u32, generation: u32) -> ReplicaId {
        replica_id(ShardNumber(5), NodeNumber(node), generation)
    }

    fn three() -> Configuration {
        Configuration::new([id(1, 0), id(2, 0), id(3, 0)], [])
    }

    #[test]
    fn orders_and_views_survive_the_wire() {
        for action in [
            ShardAction::AddLearner(id(4, 1)),
            ShardAction::Swap { promote: Some(id(4, 1)), demote: Some(id(1, 0)) },
            ShardAction::Swap { promote: None, demote: Some(id(1, 0)) },
            ShardAction::RemoveLearner(id(1, 0)),
            ShardAction::TransferLeader(id(2, 0)),
        ] {
            let order = Order::Act { configuration_index: 9, action };
            let wire = to_wire(ShardNumber(5), order, Duration::from_secs(3));
            assert_eq!(Order::from_wire(&wire).expect("valid"), order);
            let elsewhere = v1::ShardOrder { shard: 6, ..wire };
            assert!(Order::from_wire(&elsewhere).is_err(), "an id of another shard");
        }
        let nobody =
            Order::Act { configuration_index: 9, action: ShardAction::Swap { promote: None, demote: None } };
        assert!(Order::from_wire(&to_wire(ShardNumber(5), nobody, PAUSE)).is_err());
        assert!(Order::from_wire(&v1::ShardOrder { shard: 5, ..Default::default() }).is_err());
        let look = to_wire(ShardNumber(5), Order::Look, PAUSE);
        assert_eq!(Order::from_wire(&look).expect("valid"), Order::Look);
    }

    #[test]
    fn a_new_replica_needs_a_node_of_its_own_and_a_new_generation() {
        let refused = |id| objection(&three(), ShardAction::AddLearner(id), |node| node.0 <= 5);
        assert_eq!(refused(id(4, 1)), None);
        assert_eq!(refused(id(6, 1)).expect("refused").0, OrderOutcome::NodeUnknown);
        assert_eq!(refused(id(3, 1)).expect("refused").0, OrderOutcome::Mismatch, "node 3 has one");
        assert_eq!(refused(id(4, 0)).expect("refused").0, OrderOutcome::Mismatch, "an old generation");
        let remove = |id| objection(&three(), ShardAction::RemoveLearner(id), |_| true);
        assert_eq!(remove(id(1, 0)).expect("refused").0, OrderOutcome::Mismatch, "a voter is demoted first");
    }

    #[test]
    fn what_was_ordered_is_seen_to_be_there() {
        let swap = ShardAction::Swap { promote: Some(id(4, 1)), demote: Some(id(1, 0)) };
        let before = Configuration::new([id(1, 0), id(2, 0), id(3, 0)], [id(4, 1)]);
        let after = Configuration::new([id(2, 0), id(3, 0), id(4, 1)], [id(1, 0)]);
        assert!(!is_reached(&before, None, swap) && is_reached(&after, None, swap));
        let joint = Configuration { voters_outgoing: before.voters.clone(), ..after.clone() };
        assert_eq!(role_in(&joint, id(4, 1)), Some(Role::Incoming));
        assert_eq!(role_in(&joint, id(1, 0)), Some(Role::Outgoing));
        assert_eq!(role_in(&joint, id(2, 0)), Some(Role::Voter));
        assert!(is_reached(&three(), None, ShardAction::RemoveLearner(id(4, 1))));
        assert!(!is_reached(&before, None, ShardAction::RemoveLearner(id(4, 1))));
        assert!(is_reached(&three(), Some(id(2, 0)), ShardAction::TransferLeader(id(2, 0))));
    }
}
