//! The planner: what to do next so that every shard has its replicas where they belong.
//!
//! A pure function of the meta group's state and of what is known of the nodes' health to a few bounded [`Step`]s. The
//! leader of the meta group calls it now and then and proposes the steps as commands; nothing is remembered between two
//! calls. Jobs that run already count as done, and a shard that one of them changes is left alone.
//!
//! The plan starts from where replicas are and changes what is wrong, in this order: shards that lost replicas, nodes
//! that leave, the number of replicas, zones, uneven loads, uneven leaderships. So nothing moves that need not:
//!
//! - A new place is chosen by weighted rendezvous hashing with bounded load: among the nodes that hold less than their
//!   share, in zones with room, the one that scores best for the shard (Thaler and Ravishankar, "Using name-based
//!   mappings to increase hit rates", 1998; weights by the logarithm of the hash, as in Schindelhauer and Schomaker,
//!   "Weighted distributed hash tables", 2005; the bound as in Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing
//!   with bounded loads", 2018).
//! - Loads may differ from their shares by a twentieth, or by one. Where one differs by more, single replicas go from
//!   the fullest to the emptiest. Each such move brings the sum of the squared differences down, so the plan comes to
//!   an end, and then says nothing more.
//!
//! A share is a node's part of all replicas by its weight, as far as zones and the number of shards allow ([`quota`]).
//!
//! A step never leaves a shard with fewer live voters than a majority, and never changes a shard twice at once. The
//! state machine checks the same again when the command is applied, since the plan may be old by then.
//!
//! What is deliberately absent: time (an argument), I/O, chance. Equal input gives an equal plan.

mod balance;
pub mod cores;
mod leaders;
mod meta_group;
mod quota;
mod repair;
mod score;
mod table;

use std::collections::BTreeMap;

use krita_raft::ReplicaId;

use crate::meta::{
    Command, JobKind, MemberState, MetaState, NodeNumber, Setting, ShardNumber, StartChange, Version,
};

use table::Table;

/// What is known of a node at this moment, from gossip.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeView {
    /// It answers.
    pub alive: bool,
    /// Its disk has no room for more replicas.
    pub full: bool,
    /// Its replica of the meta group has caught up.
    pub follows_meta: bool,
}

/// What a plan follows from.
pub struct Input<'a> {
    /// Members, map, settings and jobs.
    pub state: &'a MetaState,
    /// By node; one that is missing is not alive.
    pub nodes: &'a BTreeMap<NodeNumber, NodeView>,
    /// Log time, in milliseconds since 1970.
    pub now_ms: u64,
    /// Most steps of the plan.
    pub steps_max: usize,
    /// Which core of a node owns a shard, where that is known: leaderships are spread over cores, too.
    pub core_of: Option<&'a dyn Fn(ShardNumber, NodeNumber) -> Option<u16>>,
}

/// One bounded change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Changes a shard's replicas: a job (`krita_node::meta::driver`).
    Change(StartChange),
    /// Has another replica of the shard lead.
    PreferLeader {
        /// Which shard.
        shard: ShardNumber,
        /// Its version.
        expected: Version,
        /// Who should lead.
        replica: ReplicaId,
    },
    /// A member that joined follows the meta group now: it takes its share.
    Activate {
        /// Who.
        number: NodeNumber,
        /// Its version.
        expected: Version,
    },
    /// A member that leaves holds nothing any more.
    Remove {
        /// Who.
        number: NodeNumber,
        /// Its version.
        expected: Version,
    },
}

impl Step {
    /// The command that carries the step out, or begins it.
    pub fn command(&self) -> Command {
        match *self {
            Self::Change(start) => Command::StartChange(start),
            Self::PreferLeader { shard, expected, replica } => {
                Command::PreferLeader { shard, expected, replica }
            }
            Self::Activate { number, expected } => {
                Command::SetMemberState { number, expected, to: MemberState::Active }
            }
            Self::Remove { number, expected } => Command::RemoveMember { number, expected },
        }
    }
}

/// What the planner would like to do and cannot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Shards without a live majority: nothing can be done for them until nodes come back.
    WithoutQuorum {
        /// How many.
        shards: u64,
        /// One of them.
        first: ShardNumber,
    },
    /// Shards with a replica that is lost or leaving and that no node can take.
    NoRoom {
        /// How many.
        shards: u64,
        /// One of them.
        first: ShardNumber,
    },
    /// Fewer nodes than the replication factor.
    TooFewNodes {
        /// Nodes that hold data.
        nodes: u64,
        /// The replication factor.
        wanted: u64,
    },
    /// Nodes whose load stays off their share since no single move helps.
    Uneven {
        /// How many.
        nodes: u64,
    },
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// In the order in which to propose them.
    pub steps: Vec<Step>,
    /// For people.
    pub findings: Vec<Finding>,
    /// How many (shard, node) pairs were looked at: the work that the plan took, whatever the machine.
    pub operations: u64,
}

/// Plans.
pub fn plan(input: &Input<'_>) -> Plan {
    let mut steps = meta_group::steps(input);
    steps.truncate(input.steps_max);
    let mut table = Table::new(input, steps.len());
    leaders::leave_leaving_nodes(&mut table);
    repair::repair(&mut table);
    if input.state.settings().get(Setting::Balance) == 1 && !table.is_spent() {
        balance::balance(&mut table);
    }
    if !table.is_spent() {
        leaders::balance(&mut table);
    }
    let Table { steps: more, findings, operations, .. } = table;
    steps.extend(more);
    Plan { steps, findings, operations }
}

/// How many changes of data shards are under way.
fn changes_running(state: &MetaState) -> usize {
    let is_change = |kind: &JobKind| match kind {
        JobKind::Change(change) => change.shard != crate::meta::META_SHARD,
        JobKind::Drain(_) | JobKind::Decommission(_) => false,
    };
    state.jobs().filter(|job| !job.state.has_ended() && is_change(&job.kind)).count()
}

#[cfg(test)]
mod tests;
