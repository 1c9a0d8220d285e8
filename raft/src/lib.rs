//! Raft for one group, sans-IO: a pure state machine. (The prose that explains it stands here.)

mod config;
mod configuration;
mod core;
mod election;
mod follower;
mod leader;
mod log;
mod message;
mod progress;
mod raft;
mod random;
mod ready;
mod rounds;
mod status;
mod types;

pub use config::{Config, ConfigError, Restored};
pub use configuration::Configuration;
pub use message::{AppendAnswer, Body, Message};
pub use raft::Raft;
pub use ready::{
    CampaignError, Change, LogLoad, ProposeError, ReadError, ReadOutcome, Ready, SnapshotMeta,
    SnapshotNeeded, TransferError,
};
pub use status::{FollowerStatus, ReplicationMode, RoleKind, Status};
pub use types::{
    Entry, EntryKind, HardState, Index, Payload, Position, ReadToken, ReadyNumber, ReplicaId, Round, Term,
    TermRun, Time,
};
