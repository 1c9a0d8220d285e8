//! The meta group: what shard 0 replicates, as a pure value, and what its leader does next.
//!
//! Members, the shard map, settings, jobs, roles and tokens, and the feature version of the cluster are one
//! [`MetaState`]. It changes by [`Command`]s alone, which are entries of shard 0's log:
//!
//! - **Optimistic.** Every object has a [`Version`], the index of the command that changed it last. A command names
//!   the version that it expects and changes nothing if it is another. There are no locks and no sessions: a command
//!   that was applied twice is refused the second time.
//! - **Deterministic.** Applying knows no clock, no chance and no hash order, so replicas that applied the same
//!   entries hold the same bytes. Times in commands are log times.
//! - **Closed.** A command of a kind that this version does not know is not skipped: the replica stops ([`wire`]). New
//!   kinds wait for the cluster's feature version, which rises only once every member knows them.
//!
//! Gossip proposes and Raft decides: that a node is down, or what configuration a shard has, becomes true here only
//! as a command. A shard's own Raft configuration rules and the map follows it, ordered by the index that the
//! configuration has in the shard's log.
//!
//! ```text
//! planner(state, health) ──► StartChange ──► job in the state ──► driver(job, configuration seen) ──► order to the
//!      ▲                                                                   │                          shard's leader
//!      └────────────── the map, followed by RecordConfiguration ◄──────────┴──────────────────────────────┘
//! ```
//!
//! Replica ids tell their shard, node and generation ([`replica_id`]). A shard gives every generation once, and a
//! configuration is taken over only if what is new in it is of a generation never seen in the shard before: no id
//! lives twice.
//!
//! What is deliberately absent: I/O, time, and knowledge of who leads. [`replicated`] is the seam to the group
//! that replicates it.

mod access;
mod apply_access;
mod apply_jobs;
mod apply_members;
mod apply_shards;
mod command;
pub mod driver;
mod job;
mod map;
mod member;
mod refusal;
pub(crate) mod replicated;
mod settings;
mod snapshot;
mod state;
mod types;
pub mod wire;

#[cfg(test)]
pub(crate) mod tests;

pub use access::{Grant, Rights, Role as AccessRole, Token};
pub use command::{Command, Enters, Join, StartChange};
pub use job::{Change, Job, JobKind, JobState, Reason};
pub use map::{Replica, Role, Shard, ShardMap, equal_arc_start};
pub use member::{Member, MemberState, NodeDescription, Tombstone};
pub use refusal::{Effect, Outcome, Refusal};
pub use settings::{Setting, Settings};
pub use snapshot::{META_BYTES_MAX, SnapshotError};
pub use state::MetaState;
pub use types::{
    FEATURE_MAX, FEATURE_MIN, JobNumber, META_SHARD, NodeNumber, ShardNumber, Version, generation_of,
    node_of, replica_id, shard_of,
};
pub use wire::CommandError;
