//! Requests on the cluster's own state: what an admin reads and changes, and what nodes say of themselves. They go
//! where a write to a shard goes: to the leader of shard 0, wherever that is.
//!
//! A request says what is wanted, not of which version: the leader makes the commands from the state that it has, and
//! makes them anew where the state has changed meanwhile.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use krita_proto::error::ErrorCode;
use krita_proto::routing::VALUE_BYTES_MAX;
use krita_proto::v1;
use krita_proto::v1::cluster_change::Change as Wire;
use krita_raft::ReplicaId;
use krita_runtime::{Instant, Mesh, Runtime};
use prost::Message;

use crate::core::Core;
use crate::failure::Failure;
use crate::meta::wire::{join_from_wire, node_from_wire};
use crate::meta::{
    Command, Effect, Enters, FEATURE_MAX, FEATURE_MIN, JobNumber, Join, META_SHARD, MemberState, MetaState,
    NodeDescription, NodeNumber, Reason, Refusal, Setting, Shard, ShardNumber, StartChange,
};
use crate::responder::Responder;

/// How often a change is made anew since the state has changed meanwhile.
const ATTEMPTS_MAX: u32 = 5;

/// How often a node looks whether the cluster knows it as it is, and how long the answer may take.
const DESCRIBE_INTERVAL: Duration = Duration::from_secs(2);
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A checked change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum MetaChange {
    /// Sets a setting.
    Setting(Setting, u64),
    /// Moves, adds or removes a replica.
    Move {
        /// Which shard.
        shard: ShardNumber,
        /// Who gives one up.
        from: Option<NodeNumber>,
        /// Who takes one.
        to: Option<NodeNumber>,
    },
    /// Drains, decommissions or calls back a member.
    Member(NodeNumber, MemberState),
    /// Cancels a job.
    Cancel(JobNumber),
    /// Has the replica on the node lead.
    Lead(ShardNumber, NodeNumber),
    /// Plans, and begins what is planned unless this says not to.
    Rebalance {
        /// Only tell.
        dry_run: bool,
    },
    /// A member is as it says now.
    Describe(NodeDescription),
    /// A node wants to be a member.
    Join(Join),
}

impl MetaChange {
    /// Checks what came over the wire.
    pub(crate) fn from_wire(wire: v1::ClusterChange) -> Result<Self, Failure> {
        let node = |number: u32| (number != 0).then_some(NodeNumber(number));
        let unknown = |_| Failure::invalid("the node is described in a way that this version does not know");
        match wire.change.ok_or_else(|| Failure::invalid("the change is empty or not known to this node"))? {
            Wire::Setting(set) => {
                let setting = Setting::from_number(set.setting)
                    .ok_or_else(|| Failure::invalid(format!("there is no setting {}", set.setting)))?;
                Ok(Self::Setting(setting, set.value))
            }
            Wire::Move(of) => {
                let (from, to) = (node(of.from_node), node(of.to_node));
                if from == to {
                    return Err(Failure::invalid("a move names who gives a replica, who takes one, or both"));
                }
                Ok(Self::Move { shard: ShardNumber(of.shard), from, to })
            }
            Wire::Drain(number) => Ok(Self::Member(NodeNumber(number), MemberState::Draining)),
            Wire::Decommission(number) => Ok(Self::Member(NodeNumber(number), MemberState::Decommissioning)),
            Wire::CallBack(number) => Ok(Self::Member(NodeNumber(number), MemberState::Active)),
            Wire::CancelJob(number) => Ok(Self::Cancel(JobNumber(number))),
            Wire::Lead(lead) => Ok(Self::Lead(ShardNumber(lead.shard), NodeNumber(lead.node))),
            Wire::Rebalance(rebalance) => Ok(Self::Rebalance { dry_run: rebalance.dry_run }),
            Wire::Describe(node) => node_from_wire(Some(node)).map(Self::Describe).map_err(unknown),
            Wire::Join(join) => join_from_wire(join).map(Self::Join).map_err(unknown),
        }
    }

    /// Whether only nodes may ask for it.
    pub(crate) fn is_between_nodes(&self) -> bool {
        match self {
            Self::Describe(_) | Self::Join(_) => true,
            Self::Setting(..)
            | Self::Move { .. }
            | Self::Member(..)
            | Self::Cancel(_)
            | Self::Lead(..)
            | Self::Rebalance { .. } => false,
        }
    }

    /// The command by which this state becomes as wished; `None`: it is.
    fn command(&self, state: &MetaState) -> Result<Option<Command>, Failure> {
        let no_member = |number: &NodeNumber| Failure::invalid(format!("no member has the number {number}"));
        match self {
            Self::Setting(setting, value) => Ok(Some(Command::SetSetting {
                setting: *setting,
                value: *value,
                expected: state.settings().version(*setting),
            })),
            Self::Move { shard, from, to } => move_command(state, *shard, *from, *to),
            Self::Member(number, to) => {
                let member = state.member(*number).ok_or_else(|| no_member(number))?;
                let command = Command::SetMemberState { number: *number, expected: member.version, to: *to };
                Ok((member.state != *to).then_some(command))
            }
            Self::Cancel(number) => {
                let job = state.job(*number).filter(|job| !job.state.has_ended());
                let job = job.ok_or_else(|| Failure::invalid(format!("no job {number} is under way")))?;
                Ok(Some(Command::CancelJob { job: *number, expected: job.version }))
            }
            Self::Lead(number, node) => {
                let shard = shard_of(state, *number)?;
                let replica = replica_on(shard, *number, *node)?;
                let command = Command::PreferLeader { shard: *number, expected: shard.version, replica };
                Ok((shard.preferred_leader != replica).then_some(command))
            }
            Self::Describe(node) => {
                let mut members = state.members();
                let member = members.find(|member| member.node.node_uuid == node.node_uuid);
                let member = member.ok_or_else(|| Failure::invalid("the node is no member"))?;
                let command = Command::UpdateMember {
                    number: member.number,
                    expected: member.version,
                    node: node.clone(),
                };
                Ok((member.node != *node).then_some(command))
            }
            Self::Join(join) => Ok(Some(Command::Join(join.clone()))),
            Self::Rebalance { .. } => Ok(None),
        }
    }
}

fn shard_of(state: &MetaState, number: ShardNumber) -> Result<&Shard, Failure> {
    state.map().shard(number).ok_or_else(|| Failure::invalid("there is no such shard"))
}

fn replica_on(shard: &Shard, number: ShardNumber, node: NodeNumber) -> Result<ReplicaId, Failure> {
    let replica = shard.replica_on(node).map(|replica| replica.id);
    replica.ok_or_else(|| Failure::invalid(format!("node {node} has no replica of shard {number}")))
}

fn move_command(
    state: &MetaState,
    number: ShardNumber,
    from: Option<NodeNumber>,
    to: Option<NodeNumber>,
) -> Result<Option<Command>, Failure> {
    let shard = shard_of(state, number)?;
    let leaves = from.map(|from| replica_on(shard, number, from)).transpose()?;
    let enters = match to {
        None => Enters::Nobody,
        Some(to) => match shard.replica_on(to) {
            None => Enters::NewOn(to),
            Some(replica) if replica.role.votes_next() => {
                return Err(Failure::invalid(format!("node {to} has a replica of shard {number}")));
            }
            Some(replica) => Enters::Existing(replica.id),
        },
    };
    Ok(Some(Command::StartChange(StartChange {
        shard: number,
        expected: shard.version,
        enters,
        enters_as_learner: false,
        leaves,
        // Everybody follows the meta group.
        leaves_to_learner: number == META_SHARD,
        reason: Reason::Operator,
    })))
}

fn refused(refusal: &Refusal) -> Failure {
    let code = match refusal {
        Refusal::Version { .. } => ErrorCode::ConditionFailed,
        _ => ErrorCode::InvalidArgument,
    };
    Failure::new(code, refusal.to_string())
}

impl<R: Runtime> Core<R> {
    /// Answers with the cluster's state, once that is known to be no older than the request. This core leads shard 0,
    /// or did a moment ago.
    pub(crate) async fn read_meta(
        self: Rc<Self>,
        without_shards: bool,
        deadline: Instant,
        responder: Responder,
    ) {
        if let Err(failure) = self.barrier(META_SHARD.0, deadline).await {
            return responder.fail(&failure);
        }
        let Some((state, served_by)) = self.meta_here() else {
            return responder.fail(&Failure::not_ready("the meta group is not open here"));
        };
        let mut state = state.to_message();
        if without_shards {
            state.shards.clear();
        }
        for token in &mut state.tokens {
            token.digest.clear();
        }
        let reply = v1::ClusterReadReply { state: Some(state), served_by: Some(served_by) };
        if reply.encoded_len() > VALUE_BYTES_MAX {
            let message = "the cluster's state is too large for one answer: ask for it without the shards";
            return responder.fail(&Failure::new(ErrorCode::ResourceExhausted, message));
        }
        responder.message(&reply);
    }

    /// Carries out a change. This core leads shard 0, or did a moment ago.
    pub(crate) async fn change_meta(self: Rc<Self>, change: MetaChange, responder: Responder) {
        let changed = match change {
            MetaChange::Rebalance { dry_run } => self.rebalance(dry_run).await,
            change => self.carry_out_change(&change).await,
        };
        match changed {
            Ok(reply) => responder.message(&v1::ClusterChangeReply {
                applied_index: self.meta_here().map_or(0, |(state, _)| state.applied_index()),
                served_by: self.meta_here().map(|(_, served_by)| served_by),
                ..reply
            }),
            Err(failure) => responder.fail(&failure),
        }
    }

    async fn carry_out_change(&self, change: &MetaChange) -> Result<v1::ClusterChangeReply, Failure> {
        let mut last = Failure::unavailable("the meta group changes too fast: ask again");
        for _ in 0..ATTEMPTS_MAX {
            let (_, state) = self
                .led_meta_state()
                .ok_or_else(|| Failure::unavailable("the meta group has another leader"))?;
            let Some(command) = change.command(&state)? else {
                return Ok(v1::ClusterChangeReply::default());
            };
            match self.propose_meta(&command).await? {
                Ok(effect) => return Ok(reply_of(effect)),
                Err(refusal @ Refusal::Version { .. }) => last = refused(&refusal),
                Err(refusal) => return Err(refused(&refusal)),
            }
        }
        Err(last)
    }

    /// The state as this core's replica of shard 0 has it, and how answers name this core.
    fn meta_here(&self) -> Option<(Arc<MetaState>, v1::ServedBy)> {
        let guard = self.serving.borrow();
        let replica = guard.as_ref()?.replicas.get(&META_SHARD.0)?;
        Some((replica.machine.meta_state()?.clone(), replica.served_by))
    }

    /// Core 0: has the cluster know this node as it is: its address, cores and the versions that it takes part in.
    pub(crate) async fn describe_itself(self: Rc<Self>) {
        while !self.is_ending() && !self.input.stop.is_set() {
            self.runtime.sleep(DESCRIBE_INTERVAL).await;
            let Some(own) = self.changed_description() else { continue };
            let change = v1::ClusterChange {
                change: Some(Wire::Describe(crate::meta::wire::node_to_wire(&own))),
                timeout_ms: DESCRIBE_TIMEOUT.as_millis() as u32,
            };
            if let Err(failure) = self.ask(&change).await {
                tracing::debug!(reason = failure.message, "the cluster does not know this node as it is yet");
            }
        }
    }

    /// This node as it is, if the state that it knows has it otherwise.
    fn changed_description(&self) -> Option<NodeDescription> {
        let guard = self.serving.borrow();
        let cluster = &guard.as_ref()?.cluster;
        let known = &cluster.state.member(NodeNumber(cluster.node_number))?.node;
        let own = self.own_description();
        (own != *known).then_some(own)
    }

    /// This node as it describes itself to the cluster.
    pub(crate) fn own_description(&self) -> NodeDescription {
        let config = &self.input.config;
        NodeDescription {
            node_id: self.identity.node_id.clone(),
            node_uuid: self.identity.node_uuid,
            address: config.advertised_address.clone(),
            zone: config.zone.clone(),
            weight: config.capacity,
            cores: u32::from(self.mesh.cores()),
            feature_min: FEATURE_MIN,
            feature_max: FEATURE_MAX,
        }
    }
}

fn reply_of(effect: Effect) -> v1::ClusterChangeReply {
    let changed = v1::ClusterChangeReply { changed: true, ..Default::default() };
    match effect {
        Effect::Changed => changed,
        Effect::Unchanged => v1::ClusterChangeReply::default(),
        Effect::Joined { number, .. } => v1::ClusterChangeReply { node_number: number.0, ..changed },
        Effect::AlreadyMember { number } => {
            v1::ClusterChangeReply { node_number: number.0, ..Default::default() }
        }
        Effect::JobStarted { job, .. } => v1::ClusterChangeReply { job: job.0, ..changed },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::tests::{apply, formed};

    fn wire(change: Wire) -> v1::ClusterChange {
        v1::ClusterChange { change: Some(change), timeout_ms: 0 }
    }

    fn checked(change: Wire) -> MetaChange {
        MetaChange::from_wire(wire(change)).expect("a change")
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_it_is_proposed() {
        let refused = |change: Wire| MetaChange::from_wire(wire(change)).expect_err("refused").code;
        let setting = v1::ClusterSetting { setting: 999, value: 1 };
        assert_eq!(refused(Wire::Setting(setting)), ErrorCode::InvalidArgument);
        assert_eq!(refused(Wire::Move(v1::ClusterMove::default())), ErrorCode::InvalidArgument);
        assert!(MetaChange::from_wire(v1::ClusterChange::default()).is_err());
        let state = formed(4, 8, 3);
        for change in [Wire::Drain(9), Wire::CancelJob(1), Wire::Lead(v1::ClusterLead { shard: 99, node: 1 })]
        {
            assert!(checked(change).command(&state).is_err());
        }
    }

    #[test]
    fn a_move_names_the_replicas_that_the_map_has_now() {
        let mut state = formed(4, 8, 3);
        let shard = state.map().shard(ShardNumber(1)).expect("shard 1").clone();
        let from = shard.replicas[0].node();
        let to =
            (1..=4).map(NodeNumber).find(|node| shard.replica_on(*node).is_none()).expect("one has none");
        let moved = checked(Wire::Move(v1::ClusterMove { shard: 1, from_node: from.0, to_node: to.0 }));
        let command = moved.command(&state).expect("it can be").expect("it is to be done");
        let effect = apply(&mut state, &command).expect("accepted");
        assert!(matches!(effect, Effect::JobStarted { job: JobNumber(1), .. }), "{effect:?}");
        assert_eq!(reply_of(effect).job, 1);
        let back = checked(Wire::Move(v1::ClusterMove { shard: 1, from_node: to.0, to_node: 0 }));
        assert!(back.command(&state).is_err(), "the map does not have it yet");
        let cancel = checked(Wire::CancelJob(1)).command(&state).expect("it runs").expect("to be done");
        assert!(apply(&mut state, &cancel).is_ok());
    }

    #[test]
    fn what_is_so_already_needs_no_command() {
        let mut state = formed(3, 8, 3);
        let node = state.member(NodeNumber(2)).expect("a member").node.clone();
        assert_eq!(MetaChange::Describe(node.clone()).command(&state).expect("a member"), None);
        let newer = MetaChange::Describe(NodeDescription { cores: 7, ..node });
        let command = newer.command(&state).expect("a member").expect("to be done");
        assert!(apply(&mut state, &command).is_ok());
        assert_eq!(newer.command(&state).expect("a member"), None);
        let drain = checked(Wire::Drain(2));
        let command = drain.command(&state).expect("a member").expect("to be done");
        assert!(apply(&mut state, &command).is_ok());
        assert_eq!(drain.command(&state).expect("a member"), None, "it drains");
        let leader = state.map().shard(ShardNumber(1)).expect("shard 1").preferred_leader;
        let lead = v1::ClusterLead { shard: 1, node: crate::meta::node_of(leader).0 };
        assert_eq!(checked(Wire::Lead(lead)).command(&state).expect("a replica"), None);
    }
}
