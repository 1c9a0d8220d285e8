//! What a node is: shards on cores, requests on their way to them, and the life of the node around them.
//!
//! A node runs [`run_core`] once on each of its cores. Everything is ordinary async code, generic over
//! [`krita_runtime::Runtime`]: the same code runs over io_uring and, a whole cluster at a time, in the simulator. Read
//! in this order:
//!
//! - `core`: one core's state, with a picture of what flows where; `node`: start, forming, end; `open`: logs and
//!   replicas come to life.
//! - `server`, `request`, `router`, `responder`: a request's way in, to its shard, and its answer's way out.
//! - `doors`, `grpc`, `rest`, `scanning`, `batching`: the same requests over HTTP.
//! - `replica`: where Raft, the store and the state machine meet; `applying`, `writes`, `reads`; `emit`: the end of
//!   each round, one log write and one burst to each peer; `step`, `peers`, `wire`: messages between nodes;
//!   `snapshots`.
//! - `orders`: changes of a shard's group; `membership`, `replica_notes`: replicas that come and go.
//! - `joining`: how a node becomes a member of a cluster that is there.
//! - `gossiping`: who is up and who is down, and since when.
//! - `room`: full disks. `suspicion`, `lost_logs`, `log_memory`, `mending`, `scrubbing`, `divergence`: damage, how it
//!   is found and what is done about it.
//! - Pure leaves: [`command`], [`machine`], [`sessions`], [`placement`], [`forming`], [`config`], [`auth`].
//! - Pure, and not called by anything yet: [`meta`], what shard 0 will replicate; [`planner`], what its leader will do.
//!
//! What is deliberately absent: clocks, threads, sockets and files (they come from the runtime), and any lock: what a
//! core owns, only its thread touches.

mod applying;
pub mod auth;
mod background;
mod batching;
mod cluster;
pub mod command;
pub mod config;
mod core;
mod divergence;
mod doors;
mod emit;
mod failure;
pub mod forming;
mod gossiping;
mod grpc;
pub mod identity;
mod joining;
mod log_memory;
mod lost_logs;
pub mod machine;
mod membership;
mod mending;
mod mesh;
pub mod meta;
mod meta_driving;
mod meta_leader;
mod meta_requests;
mod metrics;
mod node;
mod open;
mod orders;
mod ownership;
mod peers;
pub mod placement;
pub mod planner;
mod reads;
mod replica;
mod replica_notes;
mod request;
mod responder;
mod rest;
mod room;
mod router;
mod scanning;
mod scrubbing;
mod server;
pub mod sessions;
mod shard_machine;
mod snapshots;
mod status;
mod step;
mod suspicion;
mod unconfirmed;
mod views;
mod wire;
mod writes;

pub use crate::core::{Certificates, NodeFailure, NodeInput, StopSignal};
pub use mesh::CoreMessage;
pub use node::run_core;
