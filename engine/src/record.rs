//! The codec of records, the units inside a batch.

/// Length of a record's header.
pub const RECORD_HEADER_BYTES: usize = 64;
/// Length of a hard state's payload.
pub const HARD_STATE_BYTES: usize = 24;
