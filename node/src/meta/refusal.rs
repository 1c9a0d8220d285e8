//! How a command ends: what it did, or why it did nothing.

use krita_raft::ReplicaId;

use crate::meta::member::MemberState;
use crate::meta::settings::Setting;
use crate::meta::types::{JobNumber, NodeNumber, ShardNumber, Version};

/// What applying a command did. A refused command changed nothing but the applied index.
pub type Outcome = Result<Effect, Refusal>;

/// What a command that was not refused did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The object has the command's index as its version now.
    Changed,
    /// All was so already.
    Unchanged,
    /// A node is a member now.
    Joined {
        /// Its number.
        number: NodeNumber,
        /// The member of the same name whose data directory this node no longer has.
        retired: Option<NodeNumber>,
    },
    /// The node was a member before.
    AlreadyMember {
        /// Its number.
        number: NodeNumber,
    },
    /// A job is under way.
    JobStarted {
        /// Its number.
        job: JobNumber,
        /// The replica that a change adds or promotes.
        enters: Option<ReplicaId>,
    },
}

/// Why a command did nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The object changed since the sender looked: look again.
    #[error("it has changed meanwhile: its version is {current}, not {expected}")]
    Version {
        /// What the sender expected.
        expected: Version,
        /// What it is; 0 = absent, or never changed.
        current: Version,
    },
    /// The cluster does not take part in the feature yet.
    #[error("this needs feature version {needed}; the cluster is at {active} until every node knows more")]
    Feature {
        /// What the command needs.
        needed: u32,
        /// What is in force.
        active: u32,
    },
    /// A field breaks a limit.
    #[error("{0}")]
    Invalid(&'static str),
    /// As many as there may be.
    #[error("there are as many as there may be: {0}")]
    Full(&'static str),
    /// The node means another cluster.
    #[error("the node means cluster \"{wanted}\", this is \"{own}\"")]
    WrongClusterName {
        /// What the node wants to join.
        wanted: String,
        /// This cluster.
        own: String,
    },
    /// The node belongs to a cluster of the same name that is not this one.
    #[error("the node belongs to another cluster of this name: its cluster id differs")]
    WrongClusterId,
    /// Another member has this name.
    #[error("node {holder} is called \"{node_id}\" already, and has not been seen to be down")]
    DuplicateNodeId {
        /// The name.
        node_id: String,
        /// Who has it.
        holder: NodeNumber,
    },
    /// Another member is at this address.
    #[error("node {holder} is at {address} already")]
    AddressInUse {
        /// The address.
        address: String,
        /// Who is there.
        holder: NodeNumber,
    },
    /// The data directory belongs to a member of another name or was removed.
    #[error(
        "this data directory was node {0} of this cluster and is not admitted again: give the node an empty one"
    )]
    DirectoryRemoved(NodeNumber),
    /// A data directory does not change its name.
    #[error("this data directory belongs to node {number}, \"{node_id}\"")]
    DirectoryRenamed {
        /// Whose it is.
        number: NodeNumber,
        /// Its name.
        node_id: String,
    },
    /// The software is too old or too new for the cluster.
    #[error("the node takes part in feature versions {lowest} to {highest}; the cluster is at {active}")]
    VersionOutOfBounds {
        /// The node's lowest.
        lowest: u32,
        /// The node's highest.
        highest: u32,
        /// The cluster's.
        active: u32,
    },
    /// No member has this number.
    #[error("there is no node {0}")]
    UnknownMember(NodeNumber),
    /// The state cannot follow the state that is.
    #[error("node {number} is {from:?} and cannot become {to:?}")]
    Transition {
        /// The member.
        number: NodeNumber,
        /// What it is.
        from: MemberState,
        /// What was asked.
        to: MemberState,
    },
    /// The member still holds replicas.
    #[error("node {number} still holds {replicas} replicas")]
    StillHolds {
        /// The member.
        number: NodeNumber,
        /// How many.
        replicas: u64,
    },
    /// Too few nodes would be left to hold all replicas.
    #[error("{left} active nodes would be left, which cannot hold {needed} replicas of each shard")]
    TooFewLeft {
        /// Active members without this one.
        left: u64,
        /// What the replication factor needs.
        needed: u64,
    },
    /// No setting has this number, or not this value.
    #[error("{} is {} to {}, not {value}", .setting.name(), .setting.bounds().0, .setting.bounds().2)]
    SettingValue {
        /// Which.
        setting: Setting,
        /// What was asked.
        value: u64,
    },
    /// No shard has this number.
    #[error("there is no shard {0}")]
    UnknownShard(ShardNumber),
    /// One change at a time.
    #[error("job {0} changes this shard already")]
    ShardBusy(JobNumber),
    /// The change does not fit the shard's configuration.
    #[error("shard {shard}: {what}")]
    Configuration {
        /// Which shard.
        shard: ShardNumber,
        /// What does not fit.
        what: &'static str,
    },
    /// Too few live voters before or after the change.
    #[error("shard {shard} would have {live} live voters where {quorum} are needed")]
    QuorumAtRisk {
        /// Which shard.
        shard: ShardNumber,
        /// Voters that are not known to be down.
        live: u64,
        /// A majority.
        quorum: u64,
    },
    /// The map knows a newer configuration of the shard.
    #[error("shard {shard} is known as of {known} already")]
    Stale {
        /// Which shard.
        shard: ShardNumber,
        /// The configuration index that the map follows.
        known: u64,
    },
    /// No job has this number, or none any more.
    #[error("there is no job {0}")]
    UnknownJob(JobNumber),
    /// The job cannot end like this now.
    #[error("job {job} cannot do this now: {why}")]
    Job {
        /// Which job.
        job: JobNumber,
        /// Why not.
        why: &'static str,
    },
    /// No role or token has this name.
    #[error("there is no {0} of this name")]
    UnknownName(&'static str),
    /// A token refers to the role.
    #[error("token \"{0}\" has this role")]
    RoleInUse(String),
}
