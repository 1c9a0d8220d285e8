//! One core's storage: a group-committed log that is the store.

mod batch;
mod cache;
mod checkpoint;
mod error;
mod format;
mod gate;
mod index;
mod inner;
mod log;
mod manifest;
mod publish;
mod read;
mod record;
mod recovery;
mod segment;
mod shard;
mod snapshot;
mod store;
mod submission;
mod types;

pub use error::{Corruption, LogError, OpenError, ReadError};
pub use snapshot::{Installer, SnapshotSource};
pub use store::{NewShard, Store, open};
pub use submission::Batch;
pub use types::{
    Change, CheckpointMeta, EntryRecord, Extent, Extents, HardState, Index, KEY_BYTES_MAX, LogId, Options,
    PAYLOAD_BYTES_MAX, RecoveredShard, ReplicaId, SegmentId, ShardId, Slot, SnapshotItem, Statistics, Term,
    VALUE_CHECKSUM_BYTES, value_checksum,
};
