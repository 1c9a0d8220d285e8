//! Snapshots: reading one out of the last durable checkpoint, and installing one.

use krita_runtime::Runtime;

use crate::error::{LogError, ReadError};
use crate::store::Store;
use crate::types::{CheckpointMeta, EntryRecord, HardState, SnapshotItem};

/// A shard as of its last durable checkpoint, read item by item. While it lives, nothing that it needs is
/// recycled.
pub struct SnapshotSource<R: Runtime> {
    meta: CheckpointMeta,
    items_total: u64,
    _store: Store<R>,
}

impl<R: Runtime> SnapshotSource<R> {
    /// What goes with the items: index, term, membership, sessions.
    pub fn meta(&self) -> &CheckpointMeta {
        &self.meta
    }

    /// How many items there are in all.
    pub fn items_total(&self) -> u64 {
        self.items_total
    }

    /// The next items in key order: at least one, and no more than about `bytes_max` bytes of keys and
    /// values. Empty at the end.
    pub async fn next(&mut self, _bytes_max: usize) -> Result<Vec<SnapshotItem>, ReadError> {
        unimplemented!()
    }
}

/// A snapshot on its way in. Until [`Installer::finish`] returns the shard is as it was; dropping the
/// installer abandons it.
pub struct Installer<R: Runtime> {
    _store: Store<R>,
}

impl<R: Runtime> Installer<R> {
    /// Writes items, in ascending key order over all calls, to the log. Their checksums are checked first.
    pub async fn add(&mut self, _items: Vec<SnapshotItem>) -> Result<(), LogError> {
        unimplemented!()
    }

    /// Adds entries behind the snapshot, in order from `meta.applied + 1`: for a shard that moves here from
    /// another log of this node and is not in this store yet.
    pub async fn entries(&mut self, _entries: Vec<EntryRecord>) -> Result<(), LogError> {
        unimplemented!()
    }

    /// Replaces the shard by what was added, atomically and durably: index, checkpoint, hard state, and an
    /// empty log behind (but for [`Installer::entries`]). A crash anywhere leaves the old or the new state.
    /// The caller writes nothing to the shard meanwhile.
    pub async fn finish(self, _meta: CheckpointMeta, _hard_state: HardState) -> Result<(), LogError> {
        unimplemented!()
    }
}
