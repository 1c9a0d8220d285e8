//! What a caller hands to the log in one go: entries, truncations and hard states of any shards.

use std::collections::BTreeMap;

use crate::types::{EntryRecord, HardState, Index, PAYLOAD_BYTES_MAX, ShardId};

/// One change of a shard's log, in the order in which it must reach the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    HardState(HardState),
    TruncateAfter(Index),
    Entry(EntryRecord),
}

/// Changes of any shards that are written together. Within a shard their order is kept, except that the last
/// hard state goes first: whoever finds an entry on disk finds the term under which it was taken, too.
///
/// After a crash each shard has a prefix of its changes; only [`crate::Store::write`] returning tells that all
/// are there.
#[derive(Clone, Default, Debug)]
pub struct Batch {
    pub(crate) shards: BTreeMap<ShardId, Vec<Change>>,
    bytes: usize,
    pub(crate) frees_space: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that the entries of this batch free space or take next to none: deletes, configurations. They may use
    /// the reserve of a full disk ([`crate::Options::reserve_bytes`]).
    pub fn frees_space(&mut self) {
        self.frees_space = true;
    }

    /// Adds an entry. One with an index that the log has already cuts the log there first.
    pub fn entry(&mut self, shard: ShardId, entry: EntryRecord) {
        assert!(entry.payload.len() <= PAYLOAD_BYTES_MAX, "the front door bounds what an entry holds");
        assert!(entry.index > Index(0), "entries start at index 1");
        self.bytes += entry.payload.len() + crate::record::RECORD_HEADER_BYTES;
        self.shards.entry(shard).or_default().push(Change::Entry(entry));
    }

    /// Replaces the shard's hard state. The last one of a batch counts.
    pub fn hard_state(&mut self, shard: ShardId, state: HardState) {
        let changes = self.shards.entry(shard).or_default();
        if let Some(Change::HardState(present)) = changes.first_mut() {
            *present = state;
            return;
        }
        changes.insert(0, Change::HardState(state));
        self.bytes += crate::record::RECORD_HEADER_BYTES + crate::record::HARD_STATE_BYTES;
    }

    /// Removes every entry behind `index`.
    pub fn truncate_after(&mut self, shard: ShardId, index: Index) {
        self.bytes += crate::record::RECORD_HEADER_BYTES;
        self.shards.entry(shard).or_default().push(Change::TruncateAfter(index));
    }

    /// About how many bytes this adds to the log.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }
}
