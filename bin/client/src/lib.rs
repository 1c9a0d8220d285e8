//! What the commands for anywhere share: `kritaclient`, for data, and `kritactl`, for those who run a cluster.
//!
//! - [`connection`]: how to reach a cluster, the same flags for both. [`failure`]: how a command ends, with its
//!   exit code.
//! - [`print`]: values as text and as JSON. [`health`]: how members are.
//! - [`control`]: what `kritactl` does: status, and looking into the files of a stopped node.
//!
//! Nothing here needs Linux or the server's executor; files are read with the engine's codecs.
#![allow(clippy::disallowed_methods, reason = "commands for people read files and stdin")]

pub mod connection;
pub mod control;
pub mod failure;
pub mod health;
pub mod print;
