//! The plain data at the engine's boundary: identifiers, entries, hard state, options. Nothing here does I/O.

use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

macro_rules! number {
    ($(#[$meta:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number!(
    /// A shard of the keyspace; shard 0 is the meta group.
    ShardId(u32), "shard"
);
number!(
    /// One replica of a shard. A number is never given twice.
    ReplicaId(u64), "replica"
);
number!(
    /// A Raft term.
    Term(u64), "term"
);
number!(
    /// The position of an entry in its shard's log. The first entry has index 1.
    Index(u64), "index"
);
number!(
    /// One log of a node. A core owns one or more logs.
    LogId(u16), "log"
);
number!(
    /// One life of a segment file: a number that rises with every segment put to use and is never reused,
    /// although files are. What points into a recycled file therefore points nowhere, not at new bytes.
    SegmentId(u64), "segment"
);

impl Index {
    /// The index behind this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; zero stays zero.
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// How a store is opened. `Options::new` gives the defaults.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of this log alone. Created if absent. The caller holds the lock on the data directory,
    /// which also says that no write of an earlier process is in flight any more.
    pub directory: PathBuf,
    /// The number of this log. A directory with another log's files is refused.
    pub log: LogId,
    /// Length of a segment file in bytes: a multiple of 4 KiB, at least two batches of `batch_bytes_max`.
    /// Fixed when the log is created; later openings take the recorded one.
    pub segment_bytes: u32,
    /// How many ready (zero-filled or recycled) segments are kept ahead of the writer.
    pub segments_spare: usize,
    /// Most bytes in one write to the log, a multiple of 4 KiB and larger than `piece_bytes`.
    pub batch_bytes_max: u32,
    /// Longer payloads are written in pieces of this length, each in another batch, so that one large entry
    /// does not hold up the other shards.
    pub piece_bytes: u32,
    /// Budget of the value cache in bytes.
    pub value_cache_bytes: usize,
    /// A shard is due for a checkpoint with this many bytes of entries behind the last.
    pub checkpoint_after_bytes: u64,
    /// Most segments that a recovery should have to read: beyond it the shard that holds the oldest is due.
    pub replay_segments_max: u64,
    /// How many applied entries a shard keeps readable behind its checkpoint, for followers that lag a
    /// little. Best effort: never at the price of a segment, and forgotten at a restart.
    pub entries_kept: usize,
    /// How long the log must be idle before the seal is written behind the last batch.
    pub seal_after: Duration,
    /// Bytes of the file system that ordinary growth must leave free; below it growth answers `DiskFull`. What
    /// frees space may use them, and a log is not opened with less.
    pub reserve_bytes: u64,
    /// Budget of all memtables of the log together, in bytes: beyond it a shard is due for a checkpoint.
    pub memtable_bytes: usize,
    /// Budget of the cache of index blocks, in bytes.
    pub block_cache_bytes: usize,
    /// Budget of the runs' filters, in bytes; runs opened beyond it do without.
    pub filter_bytes: usize,
    /// While a snapshot is being sent, this many bytes of the log behind it are kept for the receiver.
    pub snapshot_floor_bytes: u64,
    /// What an entry's payload puts. Without it no live value is ever moved: a segment is used again only once
    /// all in it is dead.
    pub regions_of: Option<RegionsOf>,
    /// What the log may grow to, in times of what is alive in it, before live values are moved together.
    pub compaction_factor: f32,
    /// Most bytes per second that moving live values may read and write, each.
    pub compaction_bytes_per_second: u64,
}

/// Tells what an entry of this kind with this payload puts.
pub type RegionsOf = fn(kind: u8, payload: &[u8]) -> Vec<KeyRegion>;

/// A key and its value's region inside an entry's payload, in bytes from the payload's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyRegion {
    /// Where the key starts.
    pub key_offset: u32,
    /// Its length.
    pub key_length: u32,
    /// Where the region `[crc32 u32 LE][value]` starts.
    pub offset: u32,
    /// Its length.
    pub length: u32,
}

impl Options {
    /// The defaults for log `log` in `directory`.
    pub fn new(directory: PathBuf, log: LogId) -> Self {
        Self {
            directory,
            log,
            segment_bytes: 64 << 20,
            segments_spare: 2,
            batch_bytes_max: 4 << 20,
            piece_bytes: 1 << 20,
            value_cache_bytes: 64 << 20,
            checkpoint_after_bytes: 32 << 20,
            replay_segments_max: 8,
            entries_kept: 4096,
            seal_after: Duration::from_millis(10),
            reserve_bytes: 64 << 20,
            memtable_bytes: 64 << 20,
            block_cache_bytes: 64 << 20,
            filter_bytes: 256 << 20,
            snapshot_floor_bytes: 256 << 20,
            regions_of: None,
            compaction_factor: 1.25,
            compaction_bytes_per_second: 64 << 20,
        }
    }
}

/// What Raft must not forget of a shard besides its entries.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// Whom this replica voted for in `term`.
    pub vote: Option<u64>,
    /// Known to be committed, written lazily. After recovery: `checkpoint.applied <= commit <= last_index`.
    pub commit: Index,
}

/// Everything a checkpoint holds beside the index itself.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct CheckpointMeta {
    /// The last entry that the checkpoint contains; 0 for a fresh shard.
    pub applied: Index,
    /// The term of that entry.
    pub term: Term,
    /// The membership as of `applied`, opaque here.
    pub configuration: Bytes,
    /// The state machine's own part (sessions, state hash, log time), opaque here.
    pub machine: Bytes,
    /// The ownership generation: with a shard found in two logs, the higher one owns it. Decided above.
    pub generation: u64,
}

/// One entry of a shard's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryRecord {
    /// Its index.
    pub index: Index,
    /// The term it was proposed in.
    pub term: Term,
    /// Raft's kind of entry, opaque here.
    pub kind: u8,
    /// At most [`PAYLOAD_BYTES_MAX`] bytes.
    pub payload: Bytes,
}

/// Longest payload of an entry: 16 MiB for the user's data and 64 KiB for what surrounds it.
pub const PAYLOAD_BYTES_MAX: usize = (16 << 20) + (64 << 10);

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// A shard as it was found on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredShard {
    /// Which shard.
    pub shard: ShardId,
    /// Which replica of it lives here.
    pub replica: ReplicaId,
    /// Its hard state; `commit` is clamped to what is here.
    pub hard_state: HardState,
    /// The checkpoint that the index was loaded from; `applied` is 0 if there was none yet.
    pub checkpoint: CheckpointMeta,
    /// The terms of the entries behind the checkpoint, run-length coded: each pair is the first index of a
    /// run and its term.
    pub terms: Vec<(Index, Term)>,
    /// The last entry; equal to `checkpoint.applied` if none is behind it.
    pub last_index: Index,
    /// Why this replica may have forgotten what it acknowledged, if it may have; see
    /// [`crate::Store::mark_suspect`].
    pub suspect: Option<String>,
    /// The state as of the checkpoint is damaged or missing; `suspect` says how. Reads of its keys, checkpoints and
    /// snapshots of the shard are refused until a snapshot, of whatever index, has been installed. `checkpoint` tells
    /// index and term; its configuration and machine part may be empty. The entries behind it are what was found.
    pub state_damaged: bool,
}

/// What memory knows of a key's version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VersionNow {
    /// The index of the entry that last changed the key; none if it is absent.
    Known(Option<Index>),
    /// It is on disk: see [`crate::Store::prefetch`].
    Unknown,
}

/// How much room is left on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Headroom {
    /// Enough for several segments.
    Ample,
    /// Little: a good time to slow down.
    Low,
    /// None beyond the reserve: what makes the log grow will be refused.
    Full,
}

/// What an entry did to one key, told to the index by [`crate::Store::apply`]. The entry's index becomes the
/// key's version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The key now has the value that lies in the entry's payload.
    Put {
        /// The key.
        key: Bytes,
        /// Where in the payload the region `[crc32 u32 LE][value]` starts.
        payload_offset: u32,
        /// The length of the region: the value's length and 4.
        payload_length: u32,
        /// The value, if it should be in the cache.
        value: Option<Bytes>,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// A run of bytes in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Extent {
    /// The segment's life.
    pub segment: SegmentId,
    /// Where in the file it starts, in bytes.
    pub offset: u32,
    /// Its length in bytes; never 0.
    pub length: u32,
}

/// Where a region of bytes lies: one extent, or several for what was written in pieces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Extents {
    /// The usual case.
    One(Extent),
    /// In order; never empty.
    Many(Rc<[Extent]>),
}

impl Extents {
    pub(crate) fn from_vec(extents: Vec<Extent>) -> Self {
        debug_assert!(!extents.is_empty());
        match extents.as_slice() {
            [one] => Self::One(*one),
            _ => Self::Many(extents.into()),
        }
    }

    /// The extents in order.
    pub fn as_slice(&self) -> &[Extent] {
        match self {
            Self::One(extent) => std::slice::from_ref(extent),
            Self::Many(extents) => extents,
        }
    }

    /// The length of all together.
    pub fn length(&self) -> u64 {
        self.as_slice().iter().map(|extent| u64::from(extent.length)).sum()
    }

    /// The part that starts `offset` bytes in and is `length` long, if it lies within.
    pub fn part(&self, offset: u32, length: u32) -> Option<Self> {
        let (mut skip, mut want) = (offset, length);
        let mut parts = Vec::new();
        for extent in self.as_slice() {
            if want == 0 {
                break;
            }
            if skip >= extent.length {
                skip -= extent.length;
                continue;
            }
            let take = (extent.length - skip).min(want);
            parts.push(Extent { segment: extent.segment, offset: extent.offset + skip, length: take });
            want -= take;
            skip = 0;
        }
        (want == 0 && !parts.is_empty()).then(|| Self::from_vec(parts))
    }
}

/// What the index knows of a key. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// The index of the entry that last changed the key.
    pub version: Index,
    /// Where the region `[crc32 u32 LE][value]` lies.
    pub region: Extents,
}

impl Slot {
    /// The length of the value in bytes.
    pub fn value_length(&self) -> u64 {
        self.region.length() - u64::from(VALUE_CHECKSUM_BYTES)
    }
}

/// Length of the checksum in front of every stored value.
pub const VALUE_CHECKSUM_BYTES: u32 = 4;

/// The checksum of a (key, value), made where the value enters the cluster and checked before it is
/// returned: crc32 over the key's length (u32 LE), the key and the value.
pub fn value_checksum(key: &[u8], value: &[u8]) -> u32 {
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

/// One key of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotItem {
    /// The key.
    pub key: Bytes,
    /// The index of the entry that last changed it.
    pub version: Index,
    /// See [`value_checksum`].
    pub checksum: u32,
    /// The value.
    pub value: Bytes,
}

/// Counters of one store since it was opened, and sizes as of now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Statistics {
    /// Batches written to the log, seals included. Each was one flush.
    pub batches: u64,
    /// Bytes written to the log, padding included.
    pub log_bytes: u64,
    /// Seal batches among `batches`.
    pub seals: u64,
    /// Checkpoints published, installs included.
    pub checkpoints: u64,
    /// Frames appended to the manifest.
    pub manifest_frames: u64,
    /// Segment files, spare ones included.
    pub segments: u64,
    /// Segments put to use again with old bytes in them.
    pub segments_recycled: u64,
    /// Segments ready for use.
    pub segments_spare: u64,
    /// Bytes in the value cache.
    pub cache_bytes: u64,
    /// Values that the cache had.
    pub cache_hits: u64,
    /// Values that had to be read.
    pub cache_misses: u64,
    /// Bytes that wait in the write queue.
    pub queue_bytes: u64,
    /// Merges of runs published.
    pub merges: u64,
    /// Those among them that left older runs as they were.
    pub merges_partial: u64,
    /// Bytes of runs written, by checkpoints, merges and installations.
    pub run_bytes_written: u64,
    /// Runs that make up the indexes.
    pub runs: u64,
    /// Their bytes on disk.
    pub run_bytes: u64,
    /// Bytes of memory of their filters and block indexes.
    pub run_memory_bytes: u64,
    /// Bytes of the filters among it.
    pub filter_bytes: u64,
    /// Bytes of memory of all memtables.
    pub memtable_bytes: u64,
    /// Bytes in the cache of index blocks.
    pub block_cache_bytes: u64,
    /// Index blocks that the cache had.
    pub block_cache_hits: u64,
    /// Index blocks that had to be read.
    pub block_cache_misses: u64,
    /// Evacuated segments that cannot be used again yet.
    pub segments_evacuated: u64,
    /// Segments from which everything alive was moved.
    pub segments_compacted: u64,
    /// Values moved, and their bytes.
    pub relocated_values: u64,
    /// See `relocated_values`.
    pub relocated_bytes: u64,
    /// Bytes of the log, evacuated segments aside, that hold nothing alive: at least so many.
    pub dead_bytes: u64,
    /// Bytes that scrubbing has read.
    pub scrub_bytes: u64,
    /// Passes that scrubbing has ended.
    pub scrub_passes: u64,
    /// Damages found, by scrubbing and by reads.
    pub damages: u64,
}

/// A batch, and a segment at or before which it begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Place {
    pub(crate) sequence: u64,
    pub(crate) segment: SegmentId,
}
