//! The health of what is stored: damage that was found, mending single values, replicas that may have forgotten,
//! and room.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::{Notify, Runtime, TaskClass};

use crate::error::{Corruption, Damage, LogError, ReadError};
use crate::index::Relocated;
use crate::inner::Inner;
use crate::manifest::ManifestChange;
use crate::packed::Packer;
use crate::salvage::REASON_BYTES_MAX;
use crate::store::Store;
use crate::types::{Headroom, Index, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, ShardId, Slot, value_checksum};

/// Damages that are kept until they are taken.
const DAMAGES_MAX: usize = 256;

/// Damage that was found, until somebody takes it.
#[derive(Default)]
pub(crate) struct Damages {
    found: RefCell<Vec<Damage>>,
    told: Notify,
}

impl Damages {
    /// Keeps what was not known yet; false otherwise, or if there is too much.
    pub(crate) fn add(&self, damage: Damage) -> bool {
        let mut found = self.found.borrow_mut();
        if found.len() >= DAMAGES_MAX || found.contains(&damage) {
            return false;
        }
        found.push(damage);
        self.told.notify();
        true
    }

    /// A value was mended.
    fn mended(&self, shard: ShardId, key: &[u8], slot: &Slot) {
        self.found.borrow_mut().retain(|damage| match damage {
            Damage::Value { shard: damaged, key: at, slot: was, .. } => {
                (*damaged, &at[..], was) != (shard, key, slot)
            }
            Damage::State { .. } | Damage::Log { .. } => true,
        });
    }
}

impl<R: Runtime> Inner<R> {
    /// Keeps damage for whoever mends it.
    pub(crate) fn report(&self, damage: Damage) {
        if self.damages.add(damage) {
            self.statistics.borrow_mut().damages += 1;
        }
    }

    /// Keeps damage of an entry, if a start would miss it.
    pub(crate) fn report_entry(&self, shard: ShardId, index: Index, corruption: &Corruption) {
        let checkpoint = self.shards.borrow().get(&shard).map(|state| state.checkpoint.applied);
        if checkpoint.is_some_and(|applied| index > applied) {
            let (entries, corruption) = (Some((index, index)), corruption.clone());
            self.report(Damage::Log { shard, entries, corruption });
        }
    }

    /// Keeps the damage that a look into the index has found, if that is what has failed it. A block that the device
    /// does not read is as good as damaged.
    pub(crate) fn report_index(&self, shard: ShardId, error: &ReadError) {
        if let Some(corruption) = index_damage(error) {
            self.report(Damage::State { shard, corruption });
        }
    }
}

/// The damage of an index or a meta file that a read has met.
pub(crate) fn index_damage(error: &ReadError) -> Option<Corruption> {
    match error {
        ReadError::Corruption(corruption) => Some(corruption.clone()),
        ReadError::Io { file, what } => {
            Some(Corruption { file: file.clone(), offset: 0, what: what.clone(), sequences: None })
        }
        ReadError::UnknownShard(_) | ReadError::Compacted { .. } | ReadError::Stale | ReadError::Closed => {
            None
        }
    }
}

impl<R: Runtime> Store<R> {
    /// The damage that reads and scrubbing have found since this was last asked; at most some hundreds are kept. What
    /// is not mended is found again.
    pub fn take_damages(&self) -> Vec<Damage> {
        self.inner.damages.found.take()
    }

    /// Waits until there is damage to take. For one task.
    pub async fn damaged(&self) {
        while self.inner.damages.found.borrow().is_empty() {
            self.inner.damages.told.notified().await;
        }
    }

    /// Remembers, durably, that this replica may have forgotten what it acknowledged, until
    /// [`Store::clear_suspect`]: [`crate::RecoveredShard::suspect`] tells it after a restart.
    pub async fn mark_suspect(&self, shard: ShardId, reason: &str) -> Result<(), LogError> {
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        self.set_suspect(shard, Some(reason[..end].to_owned())).await
    }

    /// Remembers, durably, that this replica is whole again.
    pub async fn clear_suspect(&self, shard: ShardId) -> Result<(), LogError> {
        self.set_suspect(shard, None).await
    }

    /// Why this replica is suspect, if it is. As durable.
    pub fn suspect(&self, shard: ShardId) -> Option<String> {
        self.inner.shards.borrow().get(&shard).and_then(|shard| shard.suspect.clone())
    }

    async fn set_suspect(&self, shard: ShardId, reason: Option<String>) -> Result<(), LogError> {
        let inner = self.inner.clone();
        let set = async move {
            // Not while the shard's record in the manifest is being replaced.
            let gate = inner.gate(shard);
            let _pass = gate.enter().await;
            match inner.shards.borrow().get(&shard) {
                None => return Err(LogError::UnknownShard(shard)),
                Some(state) if reason.is_none() => state.check_whole()?,
                Some(_) => {}
            }
            let changes = || vec![ManifestChange::Suspect(shard, reason.clone())];
            let then = || {
                if let Some(state) = inner.shards.borrow_mut().get_mut(&shard) {
                    state.suspect = reason.clone();
                }
            };
            inner.publish(changes, then).await.map(drop)
        };
        self.detached(TaskClass::Foreground, "suspicion", set).await
    }

    /// How much room is left.
    pub fn headroom(&self) -> Headroom {
        self.inner.headroom()
    }

    /// Puts a value got from a peer in the place of the damaged one that `slot` leads to, with the same version:
    /// nothing changes for whoever reads the key. It lasts from the shard's next checkpoint on; a restart before
    /// that finds the damage again. False if the key has changed meanwhile and needs no mending.
    ///
    /// The caller knows that the value is that of this key and version.
    pub async fn repair_value(
        &self,
        shard: ShardId,
        key: &[u8],
        slot: &Slot,
        value: Bytes,
    ) -> Result<bool, LogError> {
        let (inner, key, slot) = (self.inner.clone(), Bytes::copy_from_slice(key), slot.clone());
        let done = Rc::new(std::cell::Cell::new(false));
        let told = done.clone();
        let repair = async move { repair(&inner, shard, key, slot, value, &done).await };
        self.detached(TaskClass::Background, "repair", repair).await?;
        Ok(told.get())
    }
}

async fn repair<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    key: Bytes,
    slot: Slot,
    value: Bytes,
    done: &Rc<std::cell::Cell<bool>>,
) -> Result<(), LogError> {
    inner.check_poison()?;
    let replica = inner.shards.borrow().get(&shard).map(|state| state.replica);
    let replica = replica.ok_or(LogError::UnknownShard(shard))?;
    if key.len() > KEY_BYTES_MAX || value.len() > PAYLOAD_BYTES_MAX {
        return Err(LogError::Refused("a key or value is too long".to_owned()));
    }
    let mut packer = Packer::default();
    packer.add(&key, slot.version, &[&value_checksum(&key, &value).to_le_bytes(), &value]);
    let relocated = inner.relocate(shard, replica, packer).await?;
    let Some((_, to)) = relocated.slots.first() else { return Ok(()) };
    loop {
        let view = inner.shards.borrow().get(&shard).map(|state| state.index.view());
        let view = view.ok_or(LogError::UnknownShard(shard))?;
        let present = view.get(&key).await.map_err(|error| match error {
            ReadError::Corruption(corruption) => corruption.into(),
            error => LogError::Io(error.to_string()),
        })?;
        if present.as_ref() != Some(&slot) {
            return Ok(());
        }
        let mut shards = inner.shards.borrow_mut();
        let state = shards.get_mut(&shard).ok_or(LogError::UnknownShard(shard))?;
        match state.index.relocate(&key, &slot, to.region.clone(), view.generation()) {
            Relocated::Done => {
                inner.damages.mended(shard, &key, &slot);
                done.set(true);
                return Ok(());
            }
            Relocated::Superseded => return Ok(()),
            Relocated::Ask => {}
        }
    }
}
