//! The Rust client of Krita: shard-aware, failing over, with honest outcomes.
//!
#![cfg_attr(feature = "tokio", doc = "```no_run")]
#![cfg_attr(feature = "tokio", doc = include_str!("../examples/front_page.rs"))]
#![cfg_attr(feature = "tokio", doc = "```")]
//!
//! A write ends in one of three ways: applied (`Ok`), not applied (any [`Error`] but one), or
//! [`Error::UnknownOutcome`]: the deadline passed while the client did not know. Retries carry a request id and are
//! applied once.
//!
//! [`core`] is the protocol without I/O, for other executors; [`Client`] is async on tokio; [`blocking`] needs no
//! executor of the caller's.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a client runs anywhere, with the machine's own clock and files"
)]

pub mod core;
mod error;
mod options;
pub mod profile;
mod types;

#[cfg(feature = "tokio")]
pub mod blocking;
#[cfg(feature = "tokio")]
mod client;
#[cfg(feature = "tokio")]
mod cluster;
#[cfg(feature = "tokio")]
mod pool;
#[cfg(feature = "tokio")]
mod scan;
#[cfg(feature = "tokio")]
mod transport;

#[cfg(feature = "tokio")]
pub use client::Client;
pub use core::retry::RetryPolicy;
pub use error::{Detail, Error, Result};
pub use krita_proto::error::ErrorCode;
/// The published messages, as status calls return them.
pub use krita_proto::v1;
pub use options::{Options, Security};
pub use profile::Profile;
#[cfg(feature = "tokio")]
pub use scan::Scan;
pub use types::{
    Condition, Consistency, Deleted, Entry, MemberHealth, Operation, OperationOutcome, Read, ReadOptions,
    ScanItem, ScanOptions, ShardVersion, WriteOptions, Written,
};
