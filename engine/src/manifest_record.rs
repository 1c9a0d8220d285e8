//! What the manifest keeps of each shard and of the log's segments, the changes of it, and their codec.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::format::{Reader, length_u32, put_string};
use crate::run::RunRecord;
use crate::types::{CheckpointMeta, HardState, Index, Place, ReplicaId, SegmentId, ShardId, Term};

/// Where a checkpoint's meta data is: membership and the state machine's part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum MetaPlace {
    /// In the manifest itself.
    Inline {
        /// Membership.
        configuration: Bytes,
        /// The state machine's part.
        machine: Bytes,
    },
    /// In a file: it is too long for the manifest.
    File(MetaFileRecord),
}

/// What the manifest knows of a checkpoint file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MetaFileRecord {
    /// The number in its name.
    pub(crate) number: u64,
    /// Its length in bytes.
    pub(crate) length: u64,
    /// The checksum over all block checksums.
    pub(crate) root: u64,
}

/// All that the manifest knows of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ShardRecord {
    pub(crate) shard: ShardId,
    pub(crate) replica: ReplicaId,
    pub(crate) generation: u64,
    pub(crate) applied: Index,
    pub(crate) term: Term,
    pub(crate) meta: MetaPlace,
    /// The index as of `applied`, newest run first.
    pub(crate) runs: Vec<RunRecord>,
    pub(crate) tail: ReplayRecord,
    /// Why the replica may have forgotten what it acknowledged, if it may have.
    pub(crate) suspect: Option<String>,
    /// The checkpoint was found damaged: its files mean nothing any more, and stay until it is replaced.
    pub(crate) damaged: bool,
}

/// What was settled about a shard when its log was found damaged. `from <= to <= before`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Settled {
    /// Records in the batches `from..to` do not count.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// What is missing in the batches before this one is known to be missing.
    pub(crate) before: u64,
}

impl Settled {
    /// Whether records of this batch do not count.
    pub(crate) fn hides(&self, sequence: u64) -> bool {
        (self.from..self.to).contains(&sequence)
    }
}

/// Where the log takes over from the manifest. `replay.sequence <= hard_state_sequence + 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReplayRecord {
    pub(crate) hard_state: HardState,
    /// Hard states in batches up to this one are in `hard_state` already. This batch was durable.
    pub(crate) hard_state_sequence: u64,
    /// The first batch that may hold a record the shard still needs.
    pub(crate) replay: Place,
    /// Damage in the log from there on that is known.
    pub(crate) settled: Settled,
}

/// One change of the manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ManifestChange {
    /// The shard is now this.
    Put(Box<ShardRecord>),
    /// The shard's replay starts later.
    Advance(ShardId, ReplayRecord),
    /// The shard is gone.
    Remove(ShardId),
    /// The shard's runs are now these, newest first; they hold the same state.
    Runs(ShardId, Vec<RunRecord>),
    /// The shard's replica may have forgotten what it acknowledged, and why; or is whole again.
    Suspect(ShardId, Option<String>),
    /// Segments were put to use, or are about to be used again.
    Lives {
        /// In use from now on, ascending, and above all that were named before.
        used: Vec<SegmentId>,
        /// In use no longer.
        gone: Vec<SegmentId>,
    },
}

impl ManifestChange {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put(record) => {
                out.push(1);
                record.encode(out);
            }
            Self::Advance(shard, tail) => {
                out.push(2);
                out.extend_from_slice(&shard.0.to_le_bytes());
                tail.encode(out);
            }
            Self::Remove(shard) => {
                out.push(3);
                out.extend_from_slice(&shard.0.to_le_bytes());
            }
            Self::Suspect(shard, reason) => {
                out.push(4);
                out.extend_from_slice(&shard.0.to_le_bytes());
                put_reason(out, reason.as_deref());
            }
            Self::Runs(shard, runs) => {
                out.push(5);
                out.extend_from_slice(&shard.0.to_le_bytes());
                put_runs(out, runs);
            }
            Self::Lives { used, gone } => {
                out.push(6);
                put_lives(out, used);
                put_lives(out, gone);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        match reader.u8()? {
            1 => Some(Self::Put(Box::new(ShardRecord::decode(reader)?))),
            2 => Some(Self::Advance(ShardId(reader.u32()?), ReplayRecord::decode(reader)?)),
            3 => Some(Self::Remove(ShardId(reader.u32()?))),
            4 => Some(Self::Suspect(ShardId(reader.u32()?), decode_reason(reader)?)),
            6 => Some(Self::Lives { used: decode_lives(reader)?, gone: decode_lives(reader)? }),
            5 => Some(Self::Runs(ShardId(reader.u32()?), decode_runs(reader)?)),
            _ => None,
        }
    }
}

/// A run set: the number of runs (u32), and each run.
fn put_runs(out: &mut Vec<u8>, runs: &[RunRecord]) {
    out.extend_from_slice(&length_u32(runs.len()).to_le_bytes());
    for run in runs {
        for field in [run.number, run.length, run.root, run.items] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }
}

fn decode_runs(reader: &mut Reader<'_>) -> Option<Vec<RunRecord>> {
    let count = reader.u32()?;
    let run = |reader: &mut Reader<'_>| {
        let (number, length) = (reader.u64()?, reader.u64()?);
        Some(RunRecord { number, length, root: reader.u64()?, items: reader.u64()? })
    };
    (0..count).map(|_| run(reader)).collect()
}

/// Lives: how many (u32), and each.
fn put_lives(out: &mut Vec<u8>, lives: &[SegmentId]) {
    out.extend_from_slice(&length_u32(lives.len()).to_le_bytes());
    for life in lives {
        out.extend_from_slice(&life.0.to_le_bytes());
    }
}

fn decode_lives(reader: &mut Reader<'_>) -> Option<Vec<SegmentId>> {
    let count = reader.u32()?;
    (0..count).map(|_| Some(SegmentId(reader.u64()?))).collect()
}

/// A reason: whether there is one (u8), and its text.
fn put_reason(out: &mut Vec<u8>, reason: Option<&str>) {
    out.push(u8::from(reason.is_some()));
    put_string(out, reason.unwrap_or_default().as_bytes());
}

fn decode_reason(reader: &mut Reader<'_>) -> Option<Option<String>> {
    let there = reader.u8()? == 1;
    let text = String::from_utf8_lossy(reader.string()?).into_owned();
    Some(there.then_some(text))
}

impl ReplayRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hard_state.term.0.to_le_bytes());
        out.push(u8::from(self.hard_state.vote.is_some()));
        out.extend_from_slice(&self.hard_state.vote.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&self.hard_state.commit.0.to_le_bytes());
        out.extend_from_slice(&self.hard_state_sequence.to_le_bytes());
        out.extend_from_slice(&self.replay.sequence.to_le_bytes());
        out.extend_from_slice(&self.replay.segment.0.to_le_bytes());
        for field in [self.settled.from, self.settled.to, self.settled.before] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let term = Term(reader.u64()?);
        let voted = reader.u8()? == 1;
        let vote = reader.u64()?;
        let hard_state = HardState { term, vote: voted.then_some(vote), commit: Index(reader.u64()?) };
        let hard_state_sequence = reader.u64()?;
        let sequence = reader.u64()?;
        let replay = Place { segment: SegmentId(reader.u64()?), sequence };
        let (from, to) = (reader.u64()?, reader.u64()?);
        let settled = Settled { from, to, before: reader.u64()? };
        Some(Self { hard_state, hard_state_sequence, replay, settled })
    }
}

impl ShardRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.shard.0.to_le_bytes());
        out.extend_from_slice(&self.replica.0.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.applied.0.to_le_bytes());
        out.extend_from_slice(&self.term.0.to_le_bytes());
        self.tail.encode(out);
        put_reason(out, self.suspect.as_deref());
        out.push(u8::from(self.damaged));
        match &self.meta {
            MetaPlace::Inline { configuration, machine } => {
                out.push(0);
                put_string(out, configuration);
                put_string(out, machine);
            }
            MetaPlace::File(file) => {
                out.push(1);
                out.extend_from_slice(&file.number.to_le_bytes());
                out.extend_from_slice(&file.length.to_le_bytes());
                out.extend_from_slice(&file.root.to_le_bytes());
            }
        }
        put_runs(out, &self.runs);
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let shard = ShardId(reader.u32()?);
        let replica = ReplicaId(reader.u64()?);
        let generation = reader.u64()?;
        let applied = Index(reader.u64()?);
        let term = Term(reader.u64()?);
        let tail = ReplayRecord::decode(reader)?;
        let suspect = decode_reason(reader)?;
        let damaged = reader.u8()? == 1;
        let meta = match reader.u8()? {
            0 => MetaPlace::Inline {
                configuration: Bytes::copy_from_slice(reader.string()?),
                machine: Bytes::copy_from_slice(reader.string()?),
            },
            1 => {
                let (number, length) = (reader.u64()?, reader.u64()?);
                MetaPlace::File(MetaFileRecord { number, length, root: reader.u64()? })
            }
            _ => return None,
        };
        let runs = decode_runs(reader)?;
        Some(Self { shard, replica, generation, applied, term, meta, runs, tail, suspect, damaged })
    }

    /// The meta data that stands in the manifest itself.
    pub(crate) fn inline_meta(&self) -> Option<CheckpointMeta> {
        let MetaPlace::Inline { configuration, machine } = &self.meta else { return None };
        Some(CheckpointMeta {
            applied: self.applied,
            term: self.term,
            configuration: configuration.clone(),
            machine: machine.clone(),
            generation: self.generation,
        })
    }
}

/// All that the manifest says, as of a frame.
#[derive(Clone, Default, Debug)]
pub(crate) struct Contents {
    pub(crate) shards: BTreeMap<ShardId, ShardRecord>,
    /// Segments in use. The newest is never gone before a newer one is named: what is above it, and what is below and
    /// not named, can be told apart.
    pub(crate) lives: BTreeSet<SegmentId>,
}

impl Contents {
    /// Makes a change; false if it does not fit what there is.
    pub(crate) fn apply(&mut self, change: ManifestChange) -> bool {
        let shards = &mut self.shards;
        match change {
            ManifestChange::Put(record) => {
                shards.insert(record.shard, *record);
            }
            ManifestChange::Advance(shard, tail) => match shards.get_mut(&shard) {
                Some(record) => record.tail = tail,
                None => return false,
            },
            ManifestChange::Remove(shard) => return shards.remove(&shard).is_some(),
            ManifestChange::Runs(shard, runs) => match shards.get_mut(&shard) {
                Some(record) => record.runs = runs,
                None => return false,
            },
            ManifestChange::Suspect(shard, reason) => match shards.get_mut(&shard) {
                Some(record) => record.suspect = reason,
                None => return false,
            },
            ManifestChange::Lives { used, gone } => return self.change_lives(used, &gone),
        }
        true
    }

    fn change_lives(&mut self, used: Vec<SegmentId>, gone: &[SegmentId]) -> bool {
        for life in used {
            if self.lives.last().is_some_and(|newest| *newest >= life) {
                return false;
            }
            self.lives.insert(life);
        }
        let newest = self.lives.last().copied();
        gone.iter().all(|life| Some(*life) != newest && self.lives.remove(life))
    }

    /// The changes that make all of this out of nothing.
    pub(crate) fn changes(&self) -> Vec<ManifestChange> {
        let lives = ManifestChange::Lives { used: self.lives.iter().copied().collect(), gone: Vec::new() };
        let shards = self.shards.values().map(|record| ManifestChange::Put(Box::new(record.clone())));
        std::iter::once(lives).chain(shards).collect()
    }

    /// Whether a segment was in use, and is not any more: whoever still knows a place in it has to look again.
    pub(crate) fn is_gone(&self, segment: SegmentId) -> bool {
        self.lives.last().is_some_and(|newest| segment < *newest) && !self.lives.contains(&segment)
    }
}
