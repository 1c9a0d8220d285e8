//! What a node is.

pub mod auth;
pub mod command;
pub mod config;
pub mod forming;
pub mod identity;
pub mod machine;
pub mod placement;
pub mod sessions;
