//! Damage that was found, and what is done about it: a value is got from a peer, put in its place again, and the reader
//! answered with it; a damaged state is replaced by a snapshot; a damaged part of the log is made unnecessary.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_engine::{Corruption, Damage, Index, ReadError, ShardId, Slot, Store, value_checksum};
use krita_proto::v1;
use krita_raft::Suspicion;
use krita_runtime::{Runtime, TaskClass};

use crate::core::Core;
use crate::failure::Failure;
use crate::open::checkpoint_meta;
use crate::peers::Peers;
use crate::responder::Responder;
use crate::views::Views;

/// How long one peer has to answer with a value.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a read waits before it looks again for a value that no peer gives at the moment.
const FETCH_PAUSE: Duration = Duration::from_millis(50);

/// Between looks at the damage that was found: what cannot be mended yet is found again and again.
const DAMAGE_INTERVAL: Duration = Duration::from_millis(100);

/// Losses that the status lists, at most; the log has them all.
const LOSSES_MAX: usize = 16;

/// Bytes of a key that a message shows.
const KEY_BYTES_SHOWN: usize = 64;

/// What has been found and done on a core since it started.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) values_repaired: Cell<u64>,
    pub(crate) divergences: Cell<u64>,
    /// What nobody else holds.
    pub(crate) losses: RefCell<Vec<String>>,
}

impl Counters {
    fn lose(&self, loss: String) {
        let mut losses = self.losses.borrow_mut();
        if losses.len() < LOSSES_MAX && !losses.contains(&loss) {
            losses.push(loss);
        }
    }
}

/// Where a replica's values come from: its store, and where that is damaged, a peer.
pub(crate) struct Source<R: Runtime> {
    pub(crate) runtime: R,
    pub(crate) store: Store<R>,
    pub(crate) shard: ShardId,
    pub(crate) peers: Rc<Peers<R>>,
    /// The nodes with the group's other replicas.
    pub(crate) others: RefCell<Vec<u32>>,
    pub(crate) counters: Rc<Counters>,
    /// What is held for scans.
    pub(crate) views: Rc<Views<R>>,
}

impl<R: Runtime> Source<R> {
    /// The value behind a slot. A damaged one is got from a peer, and mended here in the background.
    pub(crate) async fn value(self: &Rc<Self>, key: &[u8], slot: &Slot) -> Result<Bytes, ReadError> {
        let error = match self.store.value(self.shard, key, slot).await {
            Err(error @ (ReadError::Corruption(_) | ReadError::Io { .. })) => error,
            read => return read,
        };
        let value = match self.fetch(key, slot).await {
            Fetched::Value(value) => value,
            Fetched::Nowhere => return Err(error),
            Fetched::NotNow => {
                // A peer that is reached, or has applied more, will have it; or the key has a newer value by then.
                self.runtime.sleep(FETCH_PAUSE).await;
                return Err(ReadError::Stale);
            }
        };
        tracing::warn!(shard = self.shard.0, %error, "a damaged value was answered from a peer");
        let (source, key, slot, fetched) =
            (self.clone(), Bytes::copy_from_slice(key), slot.clone(), value.clone());
        self.runtime.spawn(TaskClass::Background, "repair", async move {
            source.repair(&key, &slot, fetched).await;
        });
        Ok(value)
    }

    /// Asks the peers one after the other for the value that a key had at the slot's version.
    async fn fetch(&self, key: &[u8], slot: &Slot) -> Fetched {
        let mut damaged = 0;
        let request =
            v1::FetchValue { shard: self.shard.0, key: Bytes::copy_from_slice(key), version: slot.version.0 };
        let others = self.others.borrow().clone();
        for node in &others {
            let reply = self.peers.request(*node, self.shard.0, &request, FETCH_TIMEOUT).await;
            match reply {
                Ok(reply) if reply.found && value_checksum(key, &reply.value) == reply.checksum => {
                    // A slice of the frame would keep all of it.
                    return Fetched::Value(Bytes::copy_from_slice(&reply.value));
                }
                Ok(reply) => damaged += usize::from(reply.damaged),
                Err(error) => tracing::debug!(node, %error, "a peer gives no value"),
            }
        }
        if damaged == others.len() { Fetched::Nowhere } else { Fetched::NotNow }
    }

    async fn repair(&self, key: &[u8], slot: &Slot, value: Bytes) {
        match self.store.repair_value(self.shard, key, slot, value).await {
            Ok(true) => {
                self.counters.values_repaired.set(self.counters.values_repaired.get() + 1);
                tracing::info!(
                    shard = self.shard.0,
                    key = shown(key),
                    "a damaged value was mended from a peer"
                );
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(shard = self.shard.0, %error, "a value cannot be mended for now"),
        }
    }

    /// Mends a value that scrubbing or a read found damaged.
    async fn mend(&self, key: &[u8], slot: &Slot, corruption: &Corruption) {
        let fetched = self.fetch(key, slot).await;
        if let Fetched::Value(value) = fetched {
            return self.repair(key, slot, value).await;
        }
        let Index(version) = slot.version;
        let what = format!("the value of key {} (log entry {version}) of {}", shown(key), self.shard);
        if matches!(fetched, Fetched::Nowhere) {
            tracing::error!(%corruption, "{what} is lost: no other node holds it");
            self.counters.lose(format!("{what} is lost: {corruption}"));
        } else {
            tracing::warn!(%corruption, "{what} is damaged, and no peer gives it now");
        }
    }
}

/// What peers gave for a damaged value.
enum Fetched {
    Value(Bytes),
    /// Every other replica has it damaged too, or there is none.
    Nowhere,
    /// Some replica was not reached, or does not have that version: it may be behind, or ahead.
    NotNow,
}

/// A key for people: its text, or its bytes.
fn shown(key: &[u8]) -> String {
    format!("\"{}\"", key[..key.len().min(KEY_BYTES_SHOWN)].escape_ascii())
}

impl<R: Runtime> Core<R> {
    /// Sees to the damage that is found in one log, for as long as the core lives.
    pub(crate) async fn watch_damages(self: Rc<Self>, store: Store<R>) {
        while !self.is_ending() {
            store.damaged().await;
            for damage in store.take_damages() {
                self.on_damage(&store, damage).await;
            }
            self.runtime.sleep(DAMAGE_INTERVAL).await;
        }
    }

    async fn on_damage(self: &Rc<Self>, store: &Store<R>, damage: Damage) {
        match damage {
            Damage::Value { shard, key, slot, corruption } => {
                let source = self.with_replica(shard.0, |replica| replica.source.clone());
                if let Some(source) = source {
                    source.mend(&key, &slot, &corruption).await;
                }
            }
            Damage::State { shard, corruption } => {
                self.suspect(shard.0, Suspicion::NeedsSnapshot, &corruption.to_string());
            }
            Damage::Log { shard, entries, corruption } => {
                tracing::error!(%shard, ?entries, %corruption, "a part of the log is damaged");
                let last = entries.map_or(Index(0), |(_, last)| last);
                let meta = self.with_replica(shard.0, |replica| {
                    if last.0 > replica.applied.0 {
                        self.suspect_replica(replica, Suspicion::NeedsSnapshot, &corruption.to_string());
                    }
                    let is_sound = !replica.hold_output && !replica.is_quarantined();
                    is_sound.then(|| checkpoint_meta(replica))
                });
                let Some(meta) = meta.flatten() else { return };
                // From then on a start does not read that part.
                if let Err(error) = store.checkpoint(shard, meta).await {
                    tracing::warn!(%shard, %error, "the damaged part of the log is still needed");
                }
            }
        }
    }

    /// Another replica of a shard asks for a value that it cannot read.
    pub(crate) fn on_fetch_value(self: &Rc<Self>, request: v1::FetchValue, responder: Responder) {
        let shard = ShardId(request.shard);
        let store = self.with_replica(request.shard, |replica| {
            // What is applied is committed, so a version names one value; but damage must not spread.
            (!replica.is_quarantined()).then(|| replica.store.clone())
        });
        let Some(store) = store.flatten() else {
            return responder.fail(&Failure::not_ready("the shard is not open here"));
        };
        self.runtime.spawn(TaskClass::Foreground, "fetch-value", async move {
            let mut reply = v1::FetchValueReply::default();
            if let Ok(Some(slot)) = store.get(shard, &request.key).await
                && slot.version.0 == request.version
            {
                match store.value(shard, &request.key, &slot).await {
                    Ok(value) => {
                        let checksum = value_checksum(&request.key, &value);
                        reply = v1::FetchValueReply { found: true, value, checksum, damaged: false };
                    }
                    Err(error) => reply.damaged = matches!(error, ReadError::Corruption(_)),
                }
            }
            responder.message(&reply);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_in_part_and_losses_are_bounded() {
        assert_eq!(shown(b"a\0\"b"), "\"a\\x00\\\"b\"");
        assert_eq!(shown(&[b'k'; 100]).len(), KEY_BYTES_SHOWN + 2);
        let counters = Counters::default();
        for number in 0..100 {
            counters.lose(format!("value {}", number % 50));
        }
        assert_eq!(counters.losses.borrow().len(), LOSSES_MAX);
    }
}
