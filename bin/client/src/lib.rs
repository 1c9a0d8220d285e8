//! What the commands for anywhere share: `kritaclient`, for data, and `kritactl`, for those who run a cluster.
//!
//! - [`start`]: how a command begins and ends. [`connection`], [`profile`]: how to reach a cluster, the same flags for
//!   both. [`failure`]: how a command ends that does not end well, with its exit code.
//! - [`output`]: results as text, tables, JSON, YAML and raw bytes. [`print`]: how each result looks. [`health`]: how
//!   members are. [`progress`], [`confirm`]: what is said to people on terminals alone.
//! - [`data`]: what `kritaclient` does. [`control`]: what `kritactl` does: how the cluster is, and looking into the
//!   files of a stopped node. [`documents`]: completions and man pages of both.
//!
//! Nothing here needs Linux or the server's executor; files are read with the engine's codecs. What `kritactl doctor`
//! asks the machine it asks Linux alone.
#![allow(clippy::disallowed_methods, reason = "commands for people read files and stdin")]

pub mod confirm;
pub mod connection;
pub mod control;
pub mod data;
pub mod documents;
pub mod failure;
pub mod health;
pub mod output;
pub mod print;
pub mod profile;
pub mod progress;
pub mod start;
