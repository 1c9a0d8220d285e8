//! Sessions: exactly-once for retried writes.

/// The sessions of one shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sessions;
