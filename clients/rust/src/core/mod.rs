//! The protocol without I/O: usable on any executor, and the whole of this crate without the `tokio` feature.
//!
//! | module | decides |
//! |---|---|
//! | [`message`] | what can be asked and answered, and which requests break a limit |
//! | [`connection`] | what bytes one connection sends, and what the bytes it receives mean |
//! | [`topology`] | which node and core a shard's request goes to |
//! | [`session`] | the request ids that make a retried write apply once |
//! | [`call`] | after each failed attempt: try again, when, under which id; or how the call ends |
//! | [`retry`] | how patient it is, and the budget that keeps retries from becoming a storm |
//! | [`batch`] | which operations travel together |
//! | [`merge`] | the order of a scan over all shards |
//!
//! None of it knows a clock, a socket or a random source: time and randomness are arguments, so that every
//! decision can be tested and replayed.

pub mod batch;
pub mod call;
pub mod connection;
pub mod merge;
pub mod message;
pub mod retry;
pub mod session;
pub mod topology;

/// A point in time: milliseconds since an origin that the caller chose once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// This long after.
    #[must_use]
    pub fn after(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds from `earlier` to here; 0 if it is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
