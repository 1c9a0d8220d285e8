//! Replicas that may have forgotten what they acknowledged: how they come to be suspect, that this is durable, and what
//! is said of it.
//!
//! A suspect counts for nothing in its group until a leader has healed it, which needs no command; see `krita_raft`.
//! One whose state is damaged is *quarantined* in addition: nothing is applied or read there before a snapshot has
//! replaced that state. A group of one has nobody to heal it: what it lost is reported as lost.

use std::rc::Rc;
use std::time::Duration;

use krita_engine::{ReadError, Store};
use krita_raft::Suspicion;
use krita_runtime::{Runtime, TaskClass};

use crate::core::Core;
use crate::meta::META_SHARD;
use crate::replica::{Replica, raft_time};

/// In front of a reason: the state of the replica is damaged, or good. The store's own reasons have neither.
const DAMAGED: &str = "damaged: ";
const FORGETFUL: &str = "forgetful: ";

/// Longest reason that is kept, in bytes.
const REASON_BYTES_MAX: usize = 400;

/// How long the store has, until it is asked again to note a suspicion.
const RECORD_RETRY: Duration = Duration::from_millis(200);

/// Why a replica is suspect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Doubt {
    /// Nothing is applied or read until a snapshot is installed.
    pub(crate) is_quarantined: bool,
    pub(crate) reason: String,
    /// The store has noted it.
    pub(crate) is_durable: bool,
}

impl Doubt {
    fn new(suspicion: Suspicion, reason: &str) -> Self {
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        let is_quarantined = suspicion == Suspicion::NeedsSnapshot;
        Self { is_quarantined, reason: reason[..end].to_owned(), is_durable: false }
    }

    /// What the store has noted, and whether it found the state damaged now.
    pub(crate) fn restored(text: &str, is_state_damaged: bool) -> Self {
        let (is_damaged, reason) = match text.strip_prefix(DAMAGED) {
            Some(reason) => (true, reason),
            None => (is_state_damaged, text.strip_prefix(FORGETFUL).unwrap_or(text)),
        };
        let suspicion = if is_damaged { Suspicion::NeedsSnapshot } else { Suspicion::Forgetful };
        Self { is_durable: true, ..Self::new(suspicion, reason) }
    }

    /// What the store is to note.
    pub(crate) fn text(&self) -> String {
        format!("{}{}", if self.is_quarantined { DAMAGED } else { FORGETFUL }, self.reason)
    }

    pub(crate) fn suspicion(&self) -> Suspicion {
        if self.is_quarantined { Suspicion::NeedsSnapshot } else { Suspicion::Forgetful }
    }
}

/// What the store is to note of a replica that has forgotten but whose state is good.
pub(crate) fn forgetful_text(reason: &str) -> String {
    Doubt::new(Suspicion::Forgetful, reason).text()
}

/// The hashes of the keys in a shard: with the shard's number, what a report of lost keys names.
pub(crate) fn key_range(shard: u32, shard_count: u32) -> String {
    if shard == META_SHARD.0 {
        return "members, shard map, settings and jobs of the cluster".to_owned();
    }
    let bound = |shard: u32| (u128::from(shard) << 64).div_ceil(u128::from(shard_count.max(1)));
    let (first, end) = (bound(shard.saturating_sub(1)), bound(shard));
    format!("keys whose XXH3-64 is {first:016x} to {:016x}", end.saturating_sub(1))
}

impl<R: Runtime> Core<R> {
    /// Makes the replica of a shard suspect, now and durably. Harmless if it is already.
    pub(crate) fn suspect(self: &Rc<Self>, shard: u32, suspicion: Suspicion, reason: &str) {
        self.with_replica(shard, |replica| {
            self.suspect_replica(replica, suspicion, reason);
        });
    }

    /// The same for a replica at hand. False: it is alone in its group, so that nobody can heal it, and goes on with
    /// what it can read; what it cannot is lost, and said to be.
    pub(crate) fn suspect_replica(
        self: &Rc<Self>,
        replica: &mut Replica<R>,
        suspicion: Suspicion,
        reason: &str,
    ) -> bool {
        if replica.is_alone() {
            if replica.doubt.is_none() {
                replica.doubt = Some(Doubt { is_durable: true, ..Doubt::new(Suspicion::Forgetful, reason) });
                self.tell_lost(replica);
            }
            return false;
        }
        if replica.is_quarantined() {
            return true;
        }
        tracing::error!(shard = replica.shard, reason, "this replica is suspect: {suspicion}");
        replica.raft.become_suspect(raft_time(self.runtime.now()), suspicion);
        replica.doubt = Some(Doubt::new(suspicion, reason));
        replica.was_doubted = true;
        replica.fail_confirmed();
        self.touch(replica);
        self.record_doubt(replica);
        true
    }

    /// The index of a replica could not be read: if that is for what the device gave back, its state is damaged.
    pub(crate) fn on_index_error(self: &Rc<Self>, replica: &mut Replica<R>, error: &ReadError) -> bool {
        match error {
            ReadError::Corruption(_) | ReadError::Io { .. } => {
                self.suspect_replica(replica, Suspicion::NeedsSnapshot, &error.to_string())
            }
            ReadError::UnknownShard(_)
            | ReadError::Compacted { .. }
            | ReadError::Stale
            | ReadError::Closed => true,
        }
    }

    /// Says what is lost where nobody else holds it.
    pub(crate) fn tell_lost(&self, replica: &Replica<R>) {
        let Some(problem) = self.lost(replica) else { return };
        tracing::error!(shard = replica.shard, "{problem}");
    }

    /// What is lost of a replica that nobody can heal.
    pub(crate) fn lost(&self, replica: &Replica<R>) -> Option<String> {
        let doubt = replica.doubt.as_ref()?;
        if !replica.is_alone() {
            return None;
        }
        let status = replica.raft.status();
        Some(format!(
            "shard {} has no other replica: lost are {}, log entries {} to {} ({}); restore the data directory from \
             a backup, or remove it to begin anew",
            replica.shard,
            key_range(replica.shard, replica.shard_count),
            status.first,
            status.last,
            doubt.reason
        ))
    }

    /// One line for the node's status.
    pub(crate) fn doubt_problem(&self, replica: &Replica<R>) -> Option<String> {
        let doubt = replica.doubt.as_ref()?;
        self.lost(replica).or_else(|| {
            let remedy = if doubt.is_quarantined { "a snapshot" } else { "its leader" };
            Some(format!("shard {} is suspect and waits for {remedy}: {}", replica.shard, doubt.reason))
        })
    }

    /// Has the store note what is known of the replica now, whether it is suspect or no longer. One task at a time, so
    /// that what is known last is also what is noted last.
    pub(crate) fn record_doubt(self: &Rc<Self>, replica: &mut Replica<R>) {
        if std::mem::replace(&mut replica.is_recording_doubt, true) {
            return;
        }
        let (core, store, shard) = (self.clone(), replica.store.clone(), replica.shard);
        let unsettled = &self.peers.doubts_unsettled;
        unsettled.set(unsettled.get() + 1);
        self.runtime.spawn(TaskClass::Foreground, "record-doubt", async move {
            while !core.is_ending() && !core.has_recorded_doubt(shard, &store).await {}
            let unsettled = &core.peers.doubts_unsettled;
            unsettled.set(unsettled.get() - 1);
        });
    }

    /// Notes what is known now. True if that is done, and nothing else became known meanwhile.
    async fn has_recorded_doubt(&self, shard: u32, store: &Store<R>) -> bool {
        let engine_shard = krita_engine::ShardId(shard);
        let known = self.with_replica(shard, |replica| replica.doubt.as_ref().map(Doubt::text));
        let Some(known) = known else { return true };
        let recorded = match &known {
            _ if store.suspect(engine_shard) == known => Ok(()),
            Some(text) => store.mark_suspect(engine_shard, text).await,
            None => store.clear_suspect(engine_shard).await,
        };
        if let Err(error) = recorded {
            tracing::warn!(shard, %error, "a suspicion cannot be noted for now");
            self.runtime.sleep(RECORD_RETRY).await;
            // Where the log is lost to this process, the node ends.
            return store.poisoned().is_some();
        }
        let is_done = |replica: &mut Replica<R>| {
            let is_last = replica.doubt.as_ref().map(Doubt::text) == known;
            if is_last {
                replica.is_recording_doubt = false;
                if let Some(doubt) = &mut replica.doubt {
                    doubt.is_durable = true;
                }
            }
            is_last
        };
        self.with_replica(shard, is_done).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_what_is_restored() {
        for suspicion in [Suspicion::Forgetful, Suspicion::NeedsSnapshot] {
            let doubt = Doubt { is_durable: true, ..Doubt::new(suspicion, "its end is missing") };
            assert_eq!(Doubt::restored(&doubt.text(), false), doubt);
            assert_eq!(doubt.suspicion(), suspicion);
        }
        assert!(Doubt::restored("run-1-2: corruption at byte 4096", true).is_quarantined);
        assert!(!Doubt::restored("segment-1: corruption at byte 4096", false).is_quarantined);
        assert!(!Doubt::restored(&forgetful_text("lost"), false).is_quarantined);
        assert!(Doubt::new(Suspicion::Forgetful, &"é".repeat(400)).text().len() < 512);
    }

    #[test]
    fn the_range_of_a_shard_holds_the_hashes_of_its_keys() {
        assert_eq!(key_range(1, 1), "keys whose XXH3-64 is 0000000000000000 to ffffffffffffffff");
        assert_eq!(key_range(2, 4), "keys whose XXH3-64 is 4000000000000000 to 7fffffffffffffff");
        assert_eq!(key_range(3, 3), "keys whose XXH3-64 is aaaaaaaaaaaaaaab to ffffffffffffffff");
    }
}
