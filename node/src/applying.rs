//! Applying: what is committed and durable here goes through the state machine into the index, in order.
//!
//! The machine asks for the versions of some keys, and the index may have to ask the disk for them. Applying never
//! waits for that: it stops before the entry, and whoever drives the replica has the store learn the versions of all
//! keys that the next entries ask for, in one go, while other shards carry on.

use std::cell::Cell;

use bytes::Bytes;
use krita_engine::{ShardId, Store, VersionNow};
use krita_raft::{Entry, EntryKind, Index};
use krita_runtime::Runtime;

use crate::command::WriteCommand;
use crate::machine::{self, KeyVersions, needs_version};
use crate::replica::Replica;
use crate::wire::Payload;

/// Entries applied before other work of the core gets its turn.
const APPLY_SLICE: usize = 512;

/// How many entries, and about how many bytes of keys, are looked ahead for versions that the disk must give.
const WINDOW_ENTRIES_MAX: usize = 256;
const WINDOW_KEY_BYTES_MAX: usize = 1 << 20;

/// How often versions are asked for in vain before only the next entry's are: what was learnt for a window may not fit
/// the memory that the store sets aside for it.
const WINDOW_ATTEMPTS_MAX: u32 = 2;

/// How far applying got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Applied {
    /// All that may be applied is.
    All,
    /// The slice is used up.
    More,
    /// Entries from here on are no longer in memory: read them from the log.
    Load { from: Index, through: Index },
    /// The versions of these keys must come from the disk first.
    Prefetch(Vec<Bytes>),
}

/// The versions that one command's operations need, in the order in which the machine asks for them.
struct Known<'a> {
    versions: Vec<(&'a [u8], Option<u64>)>,
    next: Cell<usize>,
}

impl KeyVersions for Known<'_> {
    fn version(&self, key: &[u8]) -> Option<u64> {
        let next = self.next.replace(self.next.get() + 1);
        let (known, version) = self.versions[next];
        assert_eq!(known, key, "the machine asks in the order of the operations");
        version
    }
}

impl<R: Runtime> Replica<R> {
    /// Applies what may be applied, up to a slice, from the entries in memory.
    pub(crate) fn apply(&mut self) -> Applied {
        if self.apply_paused || self.hold_output || self.stopped.is_some() || self.is_quarantined() {
            return Applied::All;
        }
        let through = self.apply_through;
        let slice_end = Index((self.applied.0 + APPLY_SLICE as u64).min(through.0));
        let entries: Vec<Entry<Payload>> =
            self.raft.entries(self.applied.next(), slice_end).cloned().collect();
        let waits_for = self.apply_entries(&entries);
        if !waits_for.is_empty() {
            return Applied::Prefetch(waits_for);
        }
        if self.applied == through || self.stopped.is_some() {
            return Applied::All;
        }
        match self.applied == slice_end {
            true => Applied::More,
            false => Applied::Load { from: self.applied.next(), through },
        }
    }

    /// Applies these entries, which follow the last applied one and are committed and durable here. Stops early at one
    /// that needs versions from the disk; those keys come back, together with those of the entries behind it.
    pub(crate) fn apply_entries(&mut self, entries: &[Entry<Payload>]) -> Vec<Bytes> {
        let mut waits_for = Vec::new();
        let mut applied = 0;
        for (position, entry) in entries.iter().enumerate() {
            assert_eq!(entry.index, self.applied.next(), "entries are applied in order, each once");
            assert!(entry.index <= self.apply_through, "only committed and durable entries are applied");
            match self.apply_entry(entry) {
                Ok(true) => {}
                Ok(false) => {
                    waits_for = self.wanted_versions(&entries[position..]);
                    break;
                }
                Err(reason) => {
                    tracing::error!(shard = self.shard, index = entry.index.0, reason, "the replica stops");
                    self.stop(reason);
                    return Vec::new();
                }
            }
            self.applied = entry.index;
            self.applied_term = entry.term;
            self.hashes.note(entry.index.0, self.machine.state_hash());
            self.prefetches = 0;
            applied += 1;
        }
        if applied > 0 {
            self.raft.applied(self.applied);
            self.serve_confirmed();
        }
        waits_for
    }

    /// False: not applied, as the index does not know every version that it takes.
    fn apply_entry(&mut self, entry: &Entry<Payload>) -> Result<bool, String> {
        let shard = self.engine_shard();
        let index = krita_engine::Index(entry.index.0);
        let outcome = match entry.kind {
            EntryKind::Command => {
                let command = WriteCommand::decode(&entry.payload.0).map_err(|error| {
                    format!("entry {} of shard {} is not understood: {error}", entry.index, self.shard)
                })?;
                let Some(versions) = known_versions(&self.store, shard, &command) else { return Ok(false) };
                let applied = self.machine.apply(entry.index.0, &command, &versions);
                self.store.apply(shard, index, applied.changes.into_iter().map(engine_change).collect());
                Some(applied.outcome)
            }
            EntryKind::TermStart | EntryKind::Configuration => {
                self.store.apply(shard, index, Vec::new());
                None
            }
        };
        self.answer_proposal(entry, outcome);
        Ok(true)
    }

    /// The keys of which the entries need versions that the index does not know: of a whole window of them, since one
    /// trip to the disk serves them all.
    fn wanted_versions(&mut self, entries: &[Entry<Payload>]) -> Vec<Bytes> {
        self.prefetches += 1;
        let window = if self.prefetches > WINDOW_ATTEMPTS_MAX { 1 } else { WINDOW_ENTRIES_MAX };
        let mut keys: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        for entry in entries.iter().take(window).filter(|entry| entry.kind == EntryKind::Command) {
            if bytes > WINDOW_KEY_BYTES_MAX {
                break;
            }
            // The machine judges what does not decode, when its turn comes.
            let Ok(command) = WriteCommand::decode(&entry.payload.0) else { break };
            for operation in command.operations().iter().filter(|operation| needs_version(operation)) {
                if self.store.version_now(self.engine_shard(), &operation.key) == VersionNow::Unknown {
                    bytes += operation.key.len();
                    keys.push(operation.key.clone());
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// What the machine will ask of the index for this command; `None` if memory does not know all of it.
fn known_versions<'a, R: Runtime>(
    store: &Store<R>,
    shard: ShardId,
    command: &'a WriteCommand,
) -> Option<Known<'a>> {
    let asked = command.operations().iter().filter(|operation| needs_version(operation));
    let versions = asked.map(|operation| match store.version_now(shard, &operation.key) {
        VersionNow::Known(version) => Some((&operation.key[..], version.map(|version| version.0))),
        VersionNow::Unknown => None,
    });
    Some(Known { versions: versions.collect::<Option<_>>()?, next: Cell::new(0) })
}

/// What the machine changed, in the engine's terms. The key is copied: a slice of the frame would keep the
/// whole frame in memory for as long as the key lives.
fn engine_change(change: machine::Change) -> krita_engine::Change {
    match change {
        machine::Change::Put { key, payload_offset, payload_length, value } => krita_engine::Change::Put {
            key: Bytes::copy_from_slice(&key),
            payload_offset,
            payload_length,
            value: Some(Bytes::copy_from_slice(&value)),
        },
        machine::Change::Delete { key } => krita_engine::Change::Delete { key },
    }
}
