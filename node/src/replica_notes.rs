//! Which replicas this node holds, held, and must never hold again: a durable note of the newest replica of each shard.
//!
//! A log can lose a shard, and nothing in it tells a replica that was removed from one that was never there. So the
//! notes stand beside the logs. What is noted only rises: a newer generation takes the place of an older one, and a
//! replica that was removed stays removed. The order of two notes of one shard does not matter, therefore, nor in
//! which log's file they stand; after a shard has moved between logs the older file may still have its older note, and
//! the note is carried over before that file is written again.
//!
//! - A new replica is made in its log first, and noted as held before it says a word. If the power goes between the two
//!   it has promised nothing: it is dropped at the next start.
//! - A replica that was removed is noted as such before its data goes. From then on nothing brings that id back: no
//!   late message, no data that is found at a start.
//! - A replica that is noted as held and is not there has forgotten what it promised: it begins anew, as a suspect.
//!
//! The founders' replicas follow from the cluster's record; a node that never saw a replica come or go has no file.
//!
//! ```text
//! file `log-NNN.replicas`, little-endian
//! offset  size  field
//!      0     8  magic "KRITAREP"
//!      8     4  format version: 1
//!     12     4  CRC-32 over bytes 16 to the end
//!     16     4  number of notes
//!     20     9  for each shard of the log that has one, ascending: replica id (8), 1 held or 2 removed (1)
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use krita_raft::ReplicaId;
use krita_runtime::Runtime;

use crate::config::Config;
use crate::core::NodeFailure;
use crate::meta::{generation_of, shard_of};

const MAGIC: [u8; 8] = *b"KRITAREP";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 20;
const NOTE_BYTES: usize = 9;
const HELD: u8 = 1;
const REMOVED: u8 = 2;

/// As many notes as there may be shards.
const FILE_BYTES_MAX: usize = HEADER_BYTES + NOTE_BYTES * (krita_proto::routing::SHARDS_MAX as usize + 1);

/// How the file's name ends.
const FILE_SUFFIX: &str = ".replicas";

/// The newest replica of a shard that this node has had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Note {
    pub(crate) replica: ReplicaId,
    pub(crate) is_removed: bool,
}

impl Note {
    fn order(&self) -> (u32, bool) {
        (generation_of(self.replica), self.is_removed)
    }
}

/// The notes of a node, by shard.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct ReplicaNotes {
    by_shard: BTreeMap<u32, Note>,
}

impl ReplicaNotes {
    /// Takes a note in, unless a newer one is known.
    pub(crate) fn note(&mut self, note: Note) {
        let known = self.by_shard.entry(shard_of(note.replica).0).or_insert(note);
        if known.order() < note.order() {
            *known = note;
        }
    }

    /// Takes all of another's notes in.
    pub(crate) fn merge(&mut self, others: &Self) {
        others.by_shard.values().for_each(|note| self.note(*note));
    }

    /// The replica of the shard that this node is to hold.
    pub(crate) fn held(&self, shard: u32) -> Option<ReplicaId> {
        self.by_shard.get(&shard).filter(|note| !note.is_removed).map(|note| note.replica)
    }

    /// Whether a replica that a leader speaks to may be opened: it is newer than all that this node has had.
    pub(crate) fn may_open(&self, replica: ReplicaId) -> bool {
        let known = self.by_shard.get(&shard_of(replica).0);
        known.is_none_or(|known| generation_of(known.replica) < generation_of(replica))
    }

    /// The notes of these shards alone.
    pub(crate) fn of(&self, is_meant: impl Fn(u32) -> bool) -> Self {
        let meant = self.by_shard.iter().filter(|(shard, _)| is_meant(**shard));
        Self { by_shard: meant.map(|(shard, note)| (*shard, *note)).collect() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = u32::try_from(self.by_shard.len()).expect("as many as shards").to_le_bytes().to_vec();
        for note in self.by_shard.values() {
            body.extend_from_slice(&note.replica.0.to_le_bytes());
            body.push(if note.is_removed { REMOVED } else { HELD });
        }
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        file.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        file.extend_from_slice(&body);
        file
    }

    fn decode(file: &[u8]) -> Result<Self, &'static str> {
        let (header, notes) = file.split_first_chunk::<HEADER_BYTES>().ok_or("it is too short")?;
        if header[..8] != MAGIC {
            return Err("it is no file of replicas");
        }
        if header[8..12] != FORMAT_VERSION.to_le_bytes() {
            return Err("it has a format that this version does not know");
        }
        if header[12..16] != crc32fast::hash(&file[16..]).to_le_bytes() {
            return Err("its checksum does not match");
        }
        let count = u32::from_le_bytes([header[16], header[17], header[18], header[19]]);
        if notes.len() != count as usize * NOTE_BYTES {
            return Err("its length does not fit its content");
        }
        let mut decoded = Self::default();
        for note in notes.chunks_exact(NOTE_BYTES) {
            let (id, state) = note.split_first_chunk::<8>().ok_or("it is too short")?;
            let is_removed = match state {
                [HELD] => false,
                [REMOVED] => true,
                _ => return Err("it holds a note that this version does not know"),
            };
            decoded.note(Note { replica: ReplicaId(u64::from_le_bytes(*id)), is_removed });
        }
        Ok(decoded)
    }

    /// Replaces the file of a log, which holds the notes of its shards; durable on return.
    pub(crate) async fn store<R: Runtime>(
        &self,
        runtime: &R,
        config: &Config,
        log: u16,
    ) -> std::io::Result<()> {
        runtime.replace_small_file(&path(config, log), &self.encode()).await
    }
}

fn path(config: &Config, log: u16) -> PathBuf {
    config.data_directory.join(format!("log-{log:03}{FILE_SUFFIX}"))
}

/// What the files of a data directory note, by log.
///
/// # Errors
/// A file that cannot be read, or is damaged: without it nobody knows what must not come back.
pub(crate) async fn load<R: Runtime>(
    runtime: &R,
    config: &Config,
) -> Result<BTreeMap<u16, ReplicaNotes>, NodeFailure> {
    let directory = &config.data_directory;
    let files = runtime.list_directory(directory).await.map_err(|error| bad(directory, &error))?;
    let mut notes = BTreeMap::new();
    for name in files.iter().filter_map(|path| path.file_name()) {
        let name = name.to_string_lossy();
        let number = name.strip_prefix("log-").and_then(|rest| rest.strip_suffix(FILE_SUFFIX));
        let Some(log) = number.and_then(|number| number.parse().ok()) else { continue };
        let path = path(config, log);
        let file = runtime.read_small_file(&path, FILE_BYTES_MAX).await;
        let file = file.map_err(|error| bad(&path, &error))?;
        notes.insert(log, ReplicaNotes::decode(&file).map_err(|error| bad(&path, &error))?);
    }
    Ok(notes)
}

/// Sees to it that each log's own file has what is known of the log's shards beyond what follows from the cluster's
/// record (`founding`), before any log serves. A shard that was handed to another log has its note in the old log's
/// file alone, which is about to be written without it.
pub(crate) async fn carry_over<R: Runtime>(
    runtime: &R,
    config: &Config,
    files: &BTreeMap<u16, ReplicaNotes>,
    (known, founding): (&ReplicaNotes, &ReplicaNotes),
    log_of: impl Fn(u32) -> Option<u16>,
) -> Result<(), NodeFailure> {
    let mut lacking: BTreeMap<u16, ReplicaNotes> = BTreeMap::new();
    for (shard, note) in &known.by_shard {
        let Some(log) = log_of(*shard) else { continue };
        let is_there = [Some(founding), files.get(&log)]
            .into_iter()
            .flatten()
            .any(|notes| notes.by_shard.get(shard) == Some(note));
        if !is_there {
            lacking.entry(log).or_default().note(*note);
        }
    }
    for (log, mut notes) in lacking {
        files.get(&log).into_iter().for_each(|file| notes.merge(file));
        notes.store(runtime, config, log).await.map_err(|error| bad(&path(config, log), &error))?;
    }
    Ok(())
}

fn bad(path: &Path, what: &dyn std::fmt::Display) -> NodeFailure {
    NodeFailure(format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{NodeNumber, ShardNumber, replica_id};

    fn note(shard: u32, generation: u32, is_removed: bool) -> Note {
        Note { replica: replica_id(ShardNumber(shard), NodeNumber(3), generation), is_removed }
    }

    #[test]
    fn what_is_noted_only_rises_whatever_the_order() {
        let steps =
            [note(5, 0, false), note(5, 0, true), note(5, 2, false), note(5, 2, true), note(5, 7, false)];
        for last in 0..steps.len() {
            let (mut forward, mut backward) = (ReplicaNotes::default(), ReplicaNotes::default());
            steps[..=last].iter().for_each(|note| forward.note(*note));
            steps[..=last].iter().rev().for_each(|note| backward.note(*note));
            assert_eq!(forward, backward);
            let newest = steps[last];
            assert_eq!(forward.held(5), (!newest.is_removed).then_some(newest.replica));
            for generation in 0..=9 {
                let id = note(5, generation, false).replica;
                assert_eq!(forward.may_open(id), generation > generation_of(newest.replica), "{generation}");
            }
        }
        assert!(ReplicaNotes::default().may_open(note(1, 0, false).replica));
    }

    #[test]
    fn notes_survive_their_file_and_damage_is_seen() {
        let mut notes = ReplicaNotes::default();
        [note(0, 1, false), note(4, 0, true), note(9, 12, false)].into_iter().for_each(|one| notes.note(one));
        let file = notes.encode();
        assert_eq!(ReplicaNotes::decode(&file), Ok(notes.clone()));
        for position in 0..file.len() {
            let mut damaged = file.clone();
            damaged[position] ^= 1;
            assert!(ReplicaNotes::decode(&damaged).is_err(), "byte {position}");
            assert!(ReplicaNotes::decode(&file[..position]).is_err(), "cut at {position}");
        }
        assert_eq!(notes.of(|shard| shard == 4).by_shard.len(), 1);
    }
}
