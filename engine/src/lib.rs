//! One core's storage: a group-committed log that *is* the store.
//!
//! A value is written once, as part of the Raft entry that carried it. The index maps each key to the place of its
//! value in the log: a memtable for what is new, and below it immutable sorted runs on disk. Segments that are mostly
//! dead are emptied by moving what is alive in them. Nothing here knows elections or clients: the engine stores
//! entries, hard states and truncations of any number of shards, and keeps what their state machines applied.
//!
//! ```text
//!    write(batch)      apply(index, changes)      get, scan           value(slot)      checkpoint(meta)
//!        │                      │                     │                    │                  │
//!        ▼                      ▼                     ▼                    ▼                  ▼
//!   ┌─ log ───┐ durable ┌─ shard ──────────────────────────────────┐  ┌─ cache ─┐   ┌─ publish ───────┐
//!   │ queue,  │────────▶│ entries: where each lies                 │  │ values, │   │ memtable ─▶ run,│
//!   │ batches │         │ index: key ─▶ slot (version, where)      │  │ blocks  │   │ then one frame  │
//!   └────┬────┘         │   memtable ─ run-s-9 ─ run-s-7 ─ run-s-2 │  └────┬────┘   └────────┬────────┘
//!        │              └──────────────────────────────────────────┘       │ miss            │
//!        │ O_DIRECT, O_DSYNC, one write in flight                          ▼                 ▼
//!   ┌─ segments ─────────────────────────────────────────────────────────────────┐  ┌─ manifest ──────┐
//!   │ segment-1  │h│batch 1│batch 2│…│   segment-2 │h│batch 9│ … │    spare       │  │ shards, runs,   │
//!   └───────▲────────────────────────────────────────────────────────────────────┘  │ replay          │
//!           └ reclaim: used again once dead, or evacuated by compact                └─────────────────┘
//! ```
//!
//! What is durable when:
//!
//! - [`Store::write`] returns once the write that holds the last of its records is complete: full length, `O_DSYNC`.
//! - [`Store::apply`] changes memory only. After a restart the index is that of the last checkpoint, and the
//!   node applies the entries behind it again. It is blind: nobody asks what was there.
//! - [`Store::checkpoint`], [`Store::create_shards`], [`Store::remove_shard`] and [`Installer::finish`] take effect by
//!   one frame of the manifest, written after everything it refers to is durable: all or nothing.
//!
//! A failed write is final. The log is poisoned, everything after it fails with [`LogError::Poisoned`], and
//! the node leaves. What is damaged is never returned and never cut away: [`Corruption`] says where.
//!
//! One store belongs to one core; nothing here is shared between cores. `docs/disk_format.md` describes every
//! byte, the rules of recovery and each crash.
//!
//! # Example
//!
//! ```
//! use std::path::PathBuf;
//!
//! use bytes::Bytes;
//! use krita_engine::{
//!     Change, CheckpointMeta, EntryRecord, Index, LogId, Options, ReplicaId, ShardId, Term, open, value_checksum,
//! };
//! use krita_runtime::sim::{Simulation, SimulationOptions};
//!
//! let simulation = Simulation::new(1, SimulationOptions::default());
//! let host = simulation.add_host("node1");
//! simulation.block_on(host, |runtime| async move {
//!     let options = Options { segment_bytes: 16 << 20, ..Options::new(PathBuf::from("/data/log0"), LogId(0)) };
//!     let (store, shards) = open(runtime, options).await.unwrap();
//!     assert!(shards.is_empty());
//!     let shard = ShardId(1);
//!     store.create_shard(shard, ReplicaId(1), CheckpointMeta::default()).await.unwrap();
//!
//!     // The region of a value inside an entry's payload: its checksum, then itself.
//!     let mut payload = value_checksum(b"greeting", b"hello").to_le_bytes().to_vec();
//!     payload.extend_from_slice(b"hello");
//!     let (index, term) = (Index(1), Term(1));
//!     let mut batch = store.batch();
//!     batch.entry(shard, EntryRecord { index, term, kind: 0, payload: payload.into() });
//!     store.write(batch).await.unwrap();
//!
//!     let key = Bytes::from_static(b"greeting");
//!     let put = Change::Put { key, payload_offset: 0, payload_length: 9, value: None };
//!     store.apply(shard, index, vec![put]);
//!     let slot = store.get(shard, b"greeting").await.unwrap().unwrap();
//!     assert_eq!(slot.version, index);
//!     assert_eq!(&store.value(shard, b"greeting", &slot).await.unwrap()[..], b"hello");
//! });
//! ```

mod batch;
mod cache;
mod chain;
mod checkpoint;
mod compact;
mod epochs;
mod error;
mod format;
mod gate;
mod health;
mod index;
mod inner;
pub mod inspect;
mod log;
mod manifest;
mod manifest_record;
mod mark;
mod merging;
mod packed;
mod pinned;
mod publish;
mod read;
mod reclaim;
mod record;
mod recovery;
mod replay;
mod run;
mod salvage;
mod scrub;
mod segment;
mod shard;
mod snapshot;
mod store;
mod submission;
#[cfg(test)]
mod tests_format;
mod types;

pub use cache::CACHE_COPY_BYTES_MAX;
pub use error::{Corruption, Damage, LogError, OpenError, ReadError};
pub use mark::LogMark;
pub use pinned::PinnedView;
pub use snapshot::{Installer, SnapshotSource};
pub use store::{NewShard, Store, open};
pub use submission::Batch;
pub use types::{
    Change, CheckpointMeta, EntryRecord, Extent, Extents, HardState, Headroom, Index, KEY_BYTES_MAX,
    KeyRegion, LogId, Options, PAYLOAD_BYTES_MAX, RecoveredShard, RegionsOf, ReplicaId, SegmentId, ShardId,
    Slot, SnapshotItem, Statistics, Term, VALUE_CHECKSUM_BYTES, VersionNow, value_checksum,
};
