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
use crate::meta::replicated::command_of;
use crate::replica::{Answer, Replica};
use crate::shard_machine::ShardMachine;
use crate::wire::Payload;

/// Entries applied before other work of the core gets its turn.
const APPLY_SLICE: usize = 512;

/// How many entries, and about how many bytes of keys, are looked ahead for versions that the disk must give.
const WINDOW_ENTRIES_MAX: usize = 256;
const WINDOW_KEY_BYTES_MAX: usize = 1 << 20;

/// How often the store is asked in vain to learn versions before those of the next entry are fetched and kept here:
/// what is learnt may not fit the memory that the store sets aside for it.
const ATTEMPTS_MAX: u32 = 2;

/// How far applying got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Applied {
    /// All that may be applied is.
    All,
    /// The slice is used up.
    More,
    /// Entries from here on are no longer in memory: read them from the log.
    Load { from: Index, through: Index },
    /// The disk must be asked first.
    Wait(Wanted),
}

/// Versions that must come from the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// The store should learn those of these keys, which the next entries need.
    Learn(Vec<Bytes>),
    /// All that the next entry needs, to be kept for it. Sorted.
    Fetch(Vec<Bytes>),
}

/// Versions that were fetched for one entry. Nothing is applied between the fetching and the entry, so they are those
/// before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FetchedVersions {
    pub(crate) index: Index,
    /// By key, sorted.
    pub(crate) versions: Vec<(Bytes, Option<u64>)>,
}

impl FetchedVersions {
    fn of(&self, key: &[u8]) -> Option<Option<u64>> {
        let position = self.versions.binary_search_by(|(known, _)| known[..].cmp(key)).ok()?;
        Some(self.versions[position].1)
    }
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
        if let Some(wanted) = self.apply_entries(&entries) {
            return Applied::Wait(wanted);
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
    /// that needs versions from the disk, and says which.
    pub(crate) fn apply_entries(&mut self, entries: &[Entry<Payload>]) -> Option<Wanted> {
        let mut waits_for = None;
        let mut applied = 0;
        for (position, entry) in entries.iter().enumerate() {
            assert_eq!(entry.index, self.applied.next(), "entries are applied in order, each once");
            assert!(entry.index <= self.apply_through, "only committed and durable entries are applied");
            match self.apply_entry(entry) {
                Ok(true) => {}
                Ok(false) => {
                    waits_for = Some(self.wanted_versions(&entries[position..]));
                    break;
                }
                Err(reason) => {
                    tracing::error!(shard = self.shard, index = entry.index.0, reason, "the replica stops");
                    self.stop(reason);
                    return None;
                }
            }
            self.applied = entry.index;
            self.applied_term = entry.term;
            self.hashes.note(entry.index.0, self.machine.state_hash());
            self.prefetches = 0;
            self.fetched_versions = None;
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
        let (number, payload) = (self.shard, &entry.payload.0);
        let unknown = |error: &dyn std::fmt::Display| {
            format!("entry {} of shard {number} is not understood: {error}", entry.index)
        };
        let outcome = match (entry.kind, &mut self.machine) {
            (EntryKind::Command, ShardMachine::Keys(machine)) => {
                let command = WriteCommand::decode(payload).map_err(|error| unknown(&error))?;
                let fetched = self.fetched_versions.as_ref().filter(|fetched| fetched.index == entry.index);
                let Some(versions) = known_versions(&self.store, shard, &command, fetched) else {
                    return Ok(false);
                };
                let applied = machine.apply(entry.index.0, &command, &versions);
                // Who leads is who is asked: the cache is for the values that are read here.
                let is_read_here = self.leader == Some(self.id);
                let changes = applied.changes.into_iter().map(|change| engine_change(change, is_read_here));
                self.store.apply(shard, index, changes.collect());
                Some(Answer::Write(applied.outcome))
            }
            (EntryKind::Command, ShardMachine::Meta(machine)) => {
                let command = command_of(payload).map_err(|error| unknown(&error))?;
                let outcome = machine.apply(entry.index.0, &command);
                self.store.apply(shard, index, Vec::new());
                Some(Answer::Meta(outcome))
            }
            (EntryKind::TermStart | EntryKind::Configuration, machine) => {
                if let ShardMachine::Meta(machine) = machine {
                    machine.pass(entry.index.0);
                }
                self.store.apply(shard, index, Vec::new());
                None
            }
        };
        self.answer_proposal(entry, outcome);
        Ok(true)
    }

    /// The versions that entries need and the index does not know: those of a whole window, since one trip to the disk
    /// serves them all; or of the first entry alone, if that has been tried before.
    fn wanted_versions(&mut self, entries: &[Entry<Payload>]) -> Wanted {
        self.prefetches += 1;
        let is_alone = self.prefetches > ATTEMPTS_MAX;
        let window = if is_alone { 1 } else { WINDOW_ENTRIES_MAX };
        let mut keys: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        for entry in entries.iter().take(window).filter(|entry| entry.kind == EntryKind::Command) {
            if bytes > WINDOW_KEY_BYTES_MAX {
                break;
            }
            // The machine judges what does not decode, when its turn comes.
            let Ok(command) = WriteCommand::decode(&entry.payload.0) else { break };
            for operation in command.operations().iter().filter(|operation| needs_version(operation)) {
                let known = self.store.version_now(self.engine_shard(), &operation.key);
                if is_alone || known == VersionNow::Unknown {
                    bytes += operation.key.len();
                    keys.push(operation.key.clone());
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        match is_alone {
            true => Wanted::Fetch(keys),
            false => Wanted::Learn(keys),
        }
    }
}

/// What the machine will ask of the index for this command; `None` if memory does not know all of it.
fn known_versions<'a, R: Runtime>(
    store: &Store<R>,
    shard: ShardId,
    command: &'a WriteCommand,
    fetched: Option<&FetchedVersions>,
) -> Option<Known<'a>> {
    let asked = command.operations().iter().filter(|operation| needs_version(operation));
    let versions = asked.map(|operation| {
        let key = &operation.key[..];
        if let Some(version) = fetched.and_then(|fetched| fetched.of(key)) {
            return Some((key, version));
        }
        match store.version_now(shard, key) {
            VersionNow::Known(version) => Some((key, version.map(|version| version.0))),
            VersionNow::Unknown => None,
        }
    });
    Some(Known { versions: versions.collect::<Option<_>>()?, next: Cell::new(0) })
}

/// What the machine changed, in the engine's terms. The index copies keys, and the cache small values. A large one that
/// is `cached` is copied here: a slice of the frame would keep the whole frame in memory for as long as the value is.
fn engine_change(change: machine::Change, cached: bool) -> krita_engine::Change {
    match change {
        machine::Change::Put { key, payload_offset, payload_length, value } => {
            let value = cached.then(|| match value.len() <= krita_engine::CACHE_COPY_BYTES_MAX {
                true => value,
                false => Bytes::copy_from_slice(&value),
            });
            krita_engine::Change::Put { key, payload_offset, payload_length, value }
        }
        machine::Change::Delete { key } => krita_engine::Change::Delete { key },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_goes_to_the_cache_only_where_it_is_read_and_never_keeps_a_large_frame() {
        let value_of = |length: usize, cached: bool| {
            let frame = Bytes::from(vec![7; length + 1]);
            let (key, value) = (Bytes::from_static(b"k"), frame.slice(1..));
            let change = machine::Change::Put { key, payload_offset: 0, payload_length: 4, value };
            let krita_engine::Change::Put { value, .. } = engine_change(change, cached) else {
                panic!("a put stays one");
            };
            let points_into_frame =
                value.as_ref().map(|value| frame.as_ptr_range().contains(&value.as_ptr()));
            (value.map(|value| value.len()), points_into_frame)
        };
        let small = krita_engine::CACHE_COPY_BYTES_MAX;
        assert_eq!(value_of(small, false), (None, None));
        assert_eq!(value_of(small, true), (Some(small), Some(true)), "the cache makes the only copy");
        assert_eq!(value_of(small + 1, true), (Some(small + 1), Some(false)));
    }

    #[test]
    fn fetched_versions_tell_absent_keys_from_unknown_ones() {
        let key = Bytes::from_static;
        let versions = vec![(key(b"a"), Some(3)), (key(b"c"), None)];
        let fetched = FetchedVersions { index: Index(9), versions };
        assert_eq!(fetched.of(b"a"), Some(Some(3)));
        assert_eq!(fetched.of(b"c"), Some(None), "absent");
        assert_eq!(fetched.of(b"b"), None, "not asked for");
    }

    #[test]
    fn the_machine_is_told_what_was_known_in_the_order_of_its_questions() {
        let versions = vec![(&b"a"[..], Some(3)), (&b"b"[..], None)];
        let known = Known { versions, next: Cell::new(0) };
        assert_eq!((known.version(b"a"), known.version(b"b")), (Some(3), None));
    }
}
