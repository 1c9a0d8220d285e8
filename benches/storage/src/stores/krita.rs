//! Krita's engine as one log of one core, used as a node uses it: every put is an entry of its shard's log, a batch
//! of entries is one write with one flush, each entry is applied once it is durable, and a task checkpoints whichever
//! shard is due. Consensus, sessions and connections are left out.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_engine::{
    Change, CheckpointMeta, EntryRecord, HardState, Index, KeyRegion, LogId, NewShard, Options, ReadError,
    RecoveredShard, ReplicaId, ShardId, Slot, Term, VALUE_CHECKSUM_BYTES, open, value_checksum,
};
use krita_runtime::glommio::GlommioRuntime;
use krita_runtime::{Clock, Spawn, TaskClass};

use super::{Budget, Failure, Opener, Store};
use crate::work::{KEY_BYTES, Put};

/// Shards in the log: as many as a core has of 64 on a machine of four.
const SHARDS: u32 = 16;

/// How often the log is asked whether a checkpoint is due while none is, as a node does.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);

/// The term of all entries: nobody else leads.
const TERM: Term = Term(1);

/// In front of the key in an entry's payload: its length. A node's own header is longer by some 20 bytes.
const HEADER_BYTES: usize = 2;

/// Most bytes of entries that are read at once to apply them again.
const REPLAY_BYTES_MAX: usize = 4 << 20;

/// Opens Krita's engine on the executor of this thread.
pub struct OpenKrita {
    /// The core.
    pub runtime: GlommioRuntime,
}

/// An open log.
pub struct KritaStore {
    store: krita_engine::Store<GlommioRuntime>,
    runtime: GlommioRuntime,
    /// The last entry of each shard.
    last: Vec<Index>,
    is_ending: Rc<Cell<bool>>,
    has_ended: Rc<Cell<bool>>,
    failed: Rc<RefCell<Option<String>>>,
    segment_bytes: u64,
}

fn options(directory: &Path, budget: Budget) -> Result<Options, Failure> {
    let mut options = Options::new(directory.to_owned(), LogId(0));
    options.value_cache_bytes = usize::try_from(budget.cache_bytes / 2)?;
    options.block_cache_bytes = usize::try_from(budget.cache_bytes / 2)?;
    options.memtable_bytes = usize::try_from(budget.memtable_bytes)?;
    options.regions_of = Some(regions_of);
    Ok(options)
}

/// The shard of a key: the first digits of it, which are random.
fn shard_of(key: &[u8]) -> ShardId {
    let sum = key.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    ShardId((sum ^ (sum >> 16)) % SHARDS)
}

/// The payload of the entry that puts a key.
fn payload(put: &Put) -> Bytes {
    let mut payload = Vec::with_capacity(HEADER_BYTES + KEY_BYTES + 4 + put.value.len());
    payload.extend_from_slice(&(KEY_BYTES as u16).to_le_bytes());
    payload.extend_from_slice(&put.key);
    payload.extend_from_slice(&value_checksum(&put.key, &put.value).to_le_bytes());
    payload.extend_from_slice(&put.value);
    payload.into()
}

/// Where the key and its value lie in an entry's payload.
fn regions_of(_kind: u8, payload: &[u8]) -> Vec<KeyRegion> {
    let region = HEADER_BYTES + KEY_BYTES;
    let length = payload.len().saturating_sub(region);
    let region = KeyRegion {
        key_offset: HEADER_BYTES as u32,
        key_length: KEY_BYTES as u32,
        offset: region as u32,
        length: u32::try_from(length).unwrap_or(0),
    };
    if region.length < VALUE_CHECKSUM_BYTES { Vec::new() } else { vec![region] }
}

/// What an entry's payload does, when it is applied.
fn change(payload: &Bytes) -> Result<Change, Failure> {
    let region = HEADER_BYTES + KEY_BYTES;
    let value = region + VALUE_CHECKSUM_BYTES as usize;
    if payload.len() < value {
        return Err("an entry is shorter than what this program writes".into());
    }
    Ok(Change::Put {
        key: payload.slice(HEADER_BYTES..region),
        payload_offset: u32::try_from(region)?,
        payload_length: u32::try_from(payload.len() - region)?,
        value: Some(payload.slice(value..)),
    })
}

impl OpenKrita {
    /// What is set, in a few words.
    pub fn settings(budget: Budget) -> String {
        format!(
            "one log with {SHARDS} shards on one core; a write each (O_DIRECT, O_DSYNC), one entry per put; caches \
             for blocks and for values {} MiB each, memtables {} MiB, segments of 64 MiB; else as by default",
            budget.cache_bytes >> 21,
            budget.memtable_bytes >> 20
        )
    }
}

impl Opener for OpenKrita {
    type Store = KritaStore;

    async fn open(&self, directory: &Path, budget: Budget) -> Result<KritaStore, Failure> {
        let options = options(directory, budget)?;
        let segment_bytes = u64::from(options.segment_bytes);
        let (store, mut shards) = open(self.runtime.clone(), options).await?;
        if shards.is_empty() {
            let new = (0..SHARDS).map(|shard| NewShard {
                shard: ShardId(shard),
                replica: ReplicaId(u64::from(shard) + 1),
                meta: CheckpointMeta::default(),
                hard_state: HardState { term: TERM, vote: Some(1), commit: Index(0) },
            });
            store.create_shards(new.collect()).await?;
        }
        shards.sort_by_key(|shard| shard.shard);
        let mut last = vec![Index(0); SHARDS as usize];
        for shard in &shards {
            apply_again(&store, shard).await?;
            last[shard.shard.0 as usize] = shard.last_index;
        }
        let opened = KritaStore {
            store,
            runtime: self.runtime.clone(),
            last,
            is_ending: Rc::default(),
            has_ended: Rc::default(),
            failed: Rc::default(),
            segment_bytes,
        };
        opened.spawn_checkpoints();
        Ok(opened)
    }

    async fn wait(&self, duration: Duration) {
        self.runtime.sleep(duration).await;
    }
}

/// Applies what lies behind the checkpoint, as a node does with what is committed.
async fn apply_again(
    store: &krita_engine::Store<GlommioRuntime>,
    shard: &RecoveredShard,
) -> Result<(), Failure> {
    let mut next = shard.checkpoint.applied.next();
    while next <= shard.last_index {
        let entries = store.read_entries(shard.shard, next, shard.last_index, REPLAY_BYTES_MAX).await?;
        for entry in entries {
            store.apply(shard.shard, entry.index, vec![change(&entry.payload)?]);
            next = entry.index.next();
        }
    }
    Ok(())
}

impl KritaStore {
    fn spawn_checkpoints(&self) {
        let (store, runtime) = (self.store.clone(), self.runtime.clone());
        let (is_ending, has_ended) = (self.is_ending.clone(), self.has_ended.clone());
        let failed = self.failed.clone();
        let task = async move {
            while !is_ending.get() {
                let due = store.checkpoint_due();
                let Some((shard, applied)) = due.and_then(|shard| Some((shard, store.applied(shard)?))) else {
                    runtime.sleep(CHECKPOINT_INTERVAL).await;
                    continue;
                };
                let meta = CheckpointMeta { applied, term: TERM, ..CheckpointMeta::default() };
                if let Err(error) = store.checkpoint(shard, meta).await {
                    failed.replace(Some(error.to_string()));
                    break;
                }
            }
            drop(store);
            has_ended.set(true);
        };
        self.runtime.spawn(TaskClass::Background, "checkpoints", task);
    }

    /// What the index knows of a key.
    async fn slot(&self, shard: ShardId, key: &[u8]) -> Result<Option<Slot>, Failure> {
        Ok(self.store.get(shard, key).await?)
    }
}

impl Store for KritaStore {
    async fn write(&mut self, puts: Vec<Put>) -> Result<(), Failure> {
        if let Some(failed) = self.failed.borrow().as_ref() {
            return Err(format!("a checkpoint failed: {failed}").into());
        }
        let mut batch = self.store.batch();
        let mut written = Vec::with_capacity(puts.len());
        for put in &puts {
            let shard = shard_of(&put.key);
            let index = self.last[shard.0 as usize].next();
            self.last[shard.0 as usize] = index;
            let payload = payload(put);
            batch.entry(shard, EntryRecord { index, term: TERM, kind: 0, payload: payload.clone() });
            written.push((shard, index, payload));
        }
        self.store.write(batch).await?;
        for (shard, index, payload) in written {
            self.store.apply(shard, index, vec![change(&payload)?]);
        }
        Ok(())
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        let shard = shard_of(key);
        loop {
            let Some(slot) = self.slot(shard, key).await? else { return Ok(None) };
            match self.store.value(shard, key, &slot).await {
                Ok(value) => return Ok(Some(value.to_vec())),
                // The value was moved meanwhile.
                Err(ReadError::Stale) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn preparation_bytes(&self) -> u64 {
        // Every file was filled with zeros once; recycled ones were not filled again.
        self.store.statistics().segments * self.segment_bytes
    }

    async fn close(self) -> Result<(), Failure> {
        self.is_ending.set(true);
        while !self.has_ended.get() {
            self.runtime.sleep(Duration::from_millis(1)).await;
        }
        self.store.close().await;
        Ok(())
    }
}
