//! What can go wrong, by what the caller does next: leave (poisoned, corruption), wait for space, or give up
//! one operation.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::types::{Index, ShardId, Slot};

/// Bytes on disk that are not what was written there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: corruption at byte {offset}: {what}", file.display())]
pub struct Corruption {
    /// The file.
    pub file: PathBuf,
    /// The first byte in doubt.
    pub offset: u64,
    /// What is wrong, for people.
    pub what: String,
    /// The batches in doubt, as log sequence numbers (first, last known), if it is the log that is damaged.
    pub sequences: Option<(u64, u64)>,
}

/// Damage found by [`crate::Store::scrub`] or by a read, by what mends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Damage {
    /// A value. Got from a peer, it is mended by [`crate::Store::repair_value`].
    Value {
        /// Whose.
        shard: ShardId,
        /// Which.
        key: Bytes,
        /// What the index holds of it.
        slot: Slot,
        /// Where.
        corruption: Corruption,
    },
    /// The state of a shard's last checkpoint: a run of its index, or its meta data. The replica must be filled anew
    /// by a snapshot.
    State {
        /// Whose.
        shard: ShardId,
        /// Where.
        corruption: Corruption,
    },
    /// A part of the log that the shard's next start would have to read. A checkpoint of the shard makes it
    /// unnecessary, unless entries are damaged that are not applied yet: then the replica is suspect.
    Log {
        /// Whose.
        shard: ShardId,
        /// The first and the last entry that cannot be read any more; none if no entry of this shard is damaged.
        entries: Option<(Index, Index)>,
        /// Where.
        corruption: Corruption,
    },
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The machine refused: retry or mend the machine.
    #[error("cannot open {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Acknowledged data is damaged. Nothing was changed on disk.
    #[error(transparent)]
    Corruption(#[from] Corruption),
    /// The manifest is damaged or missing, with segments beside it: what the log holds cannot be told. Nothing was
    /// changed on disk. Put the directory aside and start all its replicas anew, as suspects.
    #[error("the manifest is lost: {0}")]
    ManifestLost(Corruption),
    /// The directory holds something else: another log, or a format this version does not know.
    #[error("{}: {what}", path.display())]
    Mismatch {
        /// The file or directory.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// Less room is left than the reserve: nothing could be written, and not even compaction could free space.
    #[error(
        "{}: {available} bytes are free, but {needed} are to be kept in reserve; make room, or lower the reserve",
        path.display()
    )]
    NoRoom {
        /// The log's directory.
        path: PathBuf,
        /// Bytes free on its file system, ready segments of the log included.
        available: u64,
        /// See [`crate::Options::reserve_bytes`].
        needed: u64,
    },
    /// The options contradict each other.
    #[error("invalid options: {0}")]
    Options(String),
}

impl OpenError {
    /// What to say of a file of another version.
    pub(crate) fn other_version(version: u16) -> String {
        let ours = crate::format::FORMAT_VERSION;
        format!("it is of format version {version}; this version of Krita reads and writes {ours}")
    }

    pub(crate) fn io(path: &std::path::Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// Why something was not written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A write failed, now or before. Whether the data is on disk is unknown, and no later write of this
    /// log can succeed: give up leadership and leave.
    #[error("the log is poisoned: {0}")]
    Poisoned(String),
    /// No space for another segment or file. Entries of this write may be durable in part (a prefix per
    /// shard: ask [`crate::Store::last_index`]); later writes may succeed.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    /// The operating system refused, but the log is intact: only this operation failed.
    #[error("{0}")]
    Io(String),
    /// Bytes that the operation needed are damaged.
    #[error(transparent)]
    Corruption(#[from] Corruption),
    /// The shard is not (or no longer) in this store.
    #[error("{0} is not in this log")]
    UnknownShard(ShardId),
    /// A snapshot that is older than the shard, or whose items do not match their checksums or order.
    #[error("snapshot refused: {0}")]
    Refused(String),
}

/// Why something was not read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes are not what was written. They are never returned.
    #[error(transparent)]
    Corruption(#[from] Corruption),
    /// The device could not read.
    #[error("{}: {what}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The cause.
        what: String,
    },
    /// The shard is not in this store.
    #[error("{0} is not in this log")]
    UnknownShard(ShardId),
    /// These entries are behind the checkpoint and gone: send a snapshot.
    #[error("{shard} starts at {first}")]
    Compacted {
        /// The shard.
        shard: ShardId,
        /// The first entry that can still be read.
        first: Index,
    },
    /// The slot was replaced and its segment recycled since it was looked up: look it up again.
    #[error("the value has moved or was replaced")]
    Stale,
    /// The core is shutting down.
    #[error("the store is closed")]
    Closed,
}
