//! The store: the handle through which a core uses one log.

use std::marker::PhantomData;

use bytes::Bytes;
use krita_runtime::Runtime;

use crate::error::{LogError, OpenError, ReadError};
use crate::snapshot::{Installer, SnapshotSource};
use crate::submission::Batch;
use crate::types::{
    Change, CheckpointMeta, EntryRecord, HardState, Index, Options, RecoveredShard, ReplicaId, ShardId, Slot,
    Statistics, Term,
};

/// Opens the log in `options.directory`, or creates it if the directory has none, and brings it to the state
/// of the last acknowledged write. The shards come back in ascending order.
pub async fn open<R: Runtime>(
    _runtime: R,
    _options: Options,
) -> Result<(Store<R>, Vec<RecoveredShard>), OpenError> {
    unimplemented!()
}

/// A shard to create: see [`Store::create_shards`].
#[derive(Clone, Debug)]
pub struct NewShard {
    /// Which shard.
    pub shard: ShardId,
    /// Which replica.
    pub replica: ReplicaId,
    /// Its first state: usually index 0 and the initial membership.
    pub meta: CheckpointMeta,
    /// Its first hard state.
    pub hard_state: HardState,
}

/// One open log with the shards in it. A cheap handle; belongs to one core.
#[derive(Clone)]
pub struct Store<R: Runtime> {
    _runtime: PhantomData<R>,
}

#[allow(unused_variables)]
impl<R: Runtime> Store<R> {
    /// Creates shards with empty indexes and empty logs, all by one flush. Durable on return.
    pub async fn create_shards(&self, shards: Vec<NewShard>) -> Result<(), LogError> {
        unimplemented!()
    }

    /// Creates one shard; see [`Store::create_shards`].
    pub async fn create_shard(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        meta: CheckpointMeta,
    ) -> Result<(), LogError> {
        self.create_shards(vec![NewShard { shard, replica, meta, hard_state: HardState::default() }]).await
    }

    /// Takes a shard out of this log. Durable on return: it does not come back.
    pub async fn remove_shard(&self, shard: ShardId) -> Result<(), LogError> {
        unimplemented!()
    }

    /// The shards in this log, ascending.
    pub fn shards(&self) -> Vec<ShardId> {
        unimplemented!()
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new()
    }

    /// Writes a batch; durable on return. Calls may overlap: they line up, share writes where they fit, and
    /// keep their order within each shard. The future may be dropped; the write then goes on unobserved.
    pub async fn write(&self, batch: Batch) -> Result<(), LogError> {
        unimplemented!()
    }

    /// Durable entries `from..=through` in order, at least one and then as many as fit `bytes_max` bytes of
    /// payload. Empty if `from` is behind the last.
    pub async fn read_entries(
        &self,
        shard: ShardId,
        from: Index,
        through: Index,
        bytes_max: usize,
    ) -> Result<Vec<EntryRecord>, ReadError> {
        unimplemented!()
    }

    /// The first entry that can be read; one more than [`Store::last_index`] if there is none.
    pub fn first_index(&self, shard: ShardId) -> Option<Index> {
        unimplemented!()
    }

    /// The last durable entry.
    pub fn last_index(&self, shard: ShardId) -> Option<Index> {
        unimplemented!()
    }

    /// The term of a durable entry from `first_index - 1` on.
    pub fn term_at(&self, shard: ShardId, index: Index) -> Option<Term> {
        unimplemented!()
    }

    /// The durable hard state.
    pub fn hard_state(&self, shard: ShardId) -> Option<HardState> {
        unimplemented!()
    }

    /// The last entry that was applied to the index.
    pub fn applied(&self, shard: ShardId) -> Option<Index> {
        unimplemented!()
    }

    /// The meta data of the last durable checkpoint.
    pub fn checkpoint_meta(&self, shard: ShardId) -> Option<CheckpointMeta> {
        unimplemented!()
    }

    /// Applies what entry `index` did to the keys. The entry is durable here and follows the last applied
    /// one. An entry that changes no key is applied with no changes. In memory until a checkpoint.
    pub fn apply(&self, shard: ShardId, index: Index, changes: Vec<Change>) {
        unimplemented!()
    }

    /// What the index knows of a key.
    pub fn get(&self, shard: ShardId, key: &[u8]) -> Option<Slot> {
        unimplemented!()
    }

    /// The value behind a slot, from the cache or the disk; always checked.
    pub async fn value(&self, shard: ShardId, key: &[u8], slot: &Slot) -> Result<Bytes, ReadError> {
        unimplemented!()
    }

    /// Up to `items_max` keys from `start` to `end` (exclusive; none: to the last), in order.
    pub fn scan(
        &self,
        shard: ShardId,
        start: &[u8],
        end: Option<&[u8]>,
        items_max: usize,
    ) -> Vec<(Bytes, Slot)> {
        unimplemented!()
    }

    /// How many keys a shard has.
    pub fn keys(&self, shard: ShardId) -> u64 {
        unimplemented!()
    }

    /// Writes a checkpoint of the shard as it is at this call, when `meta.applied` must be the last applied
    /// entry; then frees the log before it. Durable on return. Writes and applies go on meanwhile.
    pub async fn checkpoint(&self, shard: ShardId, meta: CheckpointMeta) -> Result<(), LogError> {
        unimplemented!()
    }

    /// A shard that should be checkpointed now: the one with most log behind its checkpoint beyond the
    /// threshold, or the one that holds the oldest segment when recovery would have to read too many.
    pub fn checkpoint_due(&self) -> Option<ShardId> {
        unimplemented!()
    }

    /// Opens the last durable checkpoint of a shard for sending.
    pub async fn snapshot_source(&self, shard: ShardId) -> Result<SnapshotSource<R>, ReadError> {
        unimplemented!()
    }

    /// Starts to install a snapshot, of a shard that is here or is not.
    pub async fn snapshot_installer(
        &self,
        shard: ShardId,
        replica: ReplicaId,
    ) -> Result<Installer<R>, LogError> {
        unimplemented!()
    }

    /// Why the log is poisoned, if it is.
    pub fn poisoned(&self) -> Option<String> {
        unimplemented!()
    }

    /// Counters.
    pub fn statistics(&self) -> Statistics {
        unimplemented!()
    }
}
