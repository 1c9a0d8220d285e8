//! The load generator: one loop for Krita by each of its doors, for etcd and for redis.
//!
//! - [`arguments`]: what can be typed. [`run`](mod@run): threads, load, warm-up, the measured window.
//! - [`worker`]: the loop itself, over a [`target::Target`]; [`targets`] are the drivers. [`pace`]: closed or open.
//! - [`workload`], [`keys`], [`sizes`]: what is done, to which keys, how large.
//! - [`values`], [`ledger`]: values that can be recognised, and what a read must find. Every value read is checked.
//! - [`tally`]: what happened. [`servers`]: what it cost the servers. [`report`], [`plot`]: how it is told.
//!
//! A client has as many operations under way as its pipelining depth, each begun when the one before has ended (closed
//! loop) or at a time that was fixed beforehand (open loop). Each thread owns a share of the keys, so that it knows
//! what it wrote last.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a command for people, with threads, clocks and files; what it measures has only the runtime"
)]

pub mod arguments;
pub mod keys;
pub mod ledger;
pub mod pace;
pub mod plot;
pub mod report;
pub mod run;
pub mod servers;
pub mod sizes;
pub mod tally;
pub mod target;
pub mod targets;
pub mod values;
pub mod worker;
pub mod workload;

pub use arguments::Arguments;
pub use run::run;

/// Why the run ends without success, for people: what is wrong, and what to do.
#[derive(Debug)]
pub struct Failure(pub String);

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}
