//! The manifest: which shards this log has, what each one's checkpoint is made of and where its replay starts.
//!
//! A file of frames, each whole blocks, chained like batches. The first frame of a file holds the whole state,
//! the others changes. When a file is full the next one is written, with the whole state of that moment, made
//! durable, and only then is the old one removed. Whatever a frame refers to is durable before the frame is
//! written, so publishing is one write.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::{File, OpenOptions, Runtime};

use crate::error::{Corruption, OpenError};
use crate::format::{
    BLOCK, FORMAT_VERSION, MANIFEST_PREFIX, MANIFEST_SEED, Reader, checksum, length_u32, number_after,
    padded, put_string,
};
use crate::gate::{Gate, Pass};
use crate::run::RunRecord;
use crate::types::{CheckpointMeta, HardState, Index, LogId, Place, ReplicaId, SegmentId, ShardId, Term};

/// Length of a frame's header.
pub(crate) const FRAME_HEADER_BYTES: usize = 64;
/// "KMAN".
pub(crate) const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"KMAN");
/// This frame holds the whole state and starts its file.
pub(crate) const FLAG_WHOLE: u32 = 1;
/// Shortest manifest file.
const FILE_BYTES_MIN: usize = 256 << 10;

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
}

/// Where the log takes over from the manifest. `replay.sequence <= hard_state_sequence + 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReplayRecord {
    pub(crate) hard_state: HardState,
    /// Hard states in batches up to this one are in `hard_state` already. This batch was durable.
    pub(crate) hard_state_sequence: u64,
    /// The first batch that may hold a record the shard still needs.
    pub(crate) replay: Place,
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
}

impl ManifestChange {
    fn encode(&self, out: &mut Vec<u8>) {
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
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        match reader.u8()? {
            1 => Some(Self::Put(Box::new(ShardRecord::decode(reader)?))),
            2 => Some(Self::Advance(ShardId(reader.u32()?), ReplayRecord::decode(reader)?)),
            3 => Some(Self::Remove(ShardId(reader.u32()?))),
            4 => Some(Self::Suspect(ShardId(reader.u32()?), decode_reason(reader)?)),
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
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let term = Term(reader.u64()?);
        let voted = reader.u8()? == 1;
        let vote = reader.u64()?;
        let hard_state = HardState { term, vote: voted.then_some(vote), commit: Index(reader.u64()?) };
        let hard_state_sequence = reader.u64()?;
        let sequence = reader.u64()?;
        let replay = Place { segment: SegmentId(reader.u64()?), sequence };
        Some(Self { hard_state, hard_state_sequence, replay })
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
        Some(Self { shard, replica, generation, applied, term, meta, runs, tail, suspect })
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

/// What never changes over a log's life; it stands in every frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogIdentity {
    pub(crate) log: LogId,
    /// The seed of all checksums outside the manifest.
    pub(crate) nonce: u64,
    pub(crate) segment_bytes: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHeader {
    pub(crate) identity: LogIdentity,
    pub(crate) number: u64,
    pub(crate) sequence: u64,
    pub(crate) previous: u64,
    pub(crate) offset: u32,
    pub(crate) flags: u32,
}

fn encode_frame(header: &FrameHeader, changes: &[ManifestChange]) -> (Vec<u8>, u64) {
    let mut out = vec![0; FRAME_HEADER_BYTES];
    out.extend_from_slice(&length_u32(changes.len()).to_le_bytes());
    for change in changes {
        change.encode(&mut out);
    }
    let length = length_u32(out.len());
    out[8..12].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    out[12..14].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[14..16].copy_from_slice(&header.identity.log.0.to_le_bytes());
    out[16..24].copy_from_slice(&header.number.to_le_bytes());
    out[24..32].copy_from_slice(&header.sequence.to_le_bytes());
    out[32..40].copy_from_slice(&header.previous.to_le_bytes());
    out[40..48].copy_from_slice(&header.identity.nonce.to_le_bytes());
    out[48..52].copy_from_slice(&header.identity.segment_bytes.to_le_bytes());
    out[52..56].copy_from_slice(&length.to_le_bytes());
    out[56..60].copy_from_slice(&header.offset.to_le_bytes());
    out[60..64].copy_from_slice(&header.flags.to_le_bytes());
    let sum = checksum(MANIFEST_SEED, &out[8..]);
    out[..8].copy_from_slice(&sum.to_le_bytes());
    out.resize(padded(out.len()), 0);
    (out, sum)
}

/// A frame that passed its checksum.
pub(crate) struct Frame {
    pub(crate) header: FrameHeader,
    pub(crate) checksum: u64,
    /// Unpadded.
    pub(crate) length: usize,
    pub(crate) changes: Vec<ManifestChange>,
}

/// Reads the frame at the front of `bytes`; none if it is torn, damaged or never was one.
pub(crate) fn decode_frame(bytes: &[u8]) -> Option<Frame> {
    let mut reader = Reader::new(bytes);
    let sum = reader.u64()?;
    if reader.u32()? != FRAME_MAGIC || reader.u16()? != FORMAT_VERSION {
        return None;
    }
    let log = LogId(reader.u16()?);
    let (number, sequence, previous) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let identity = LogIdentity { log, nonce: reader.u64()?, segment_bytes: reader.u32()? };
    let length = usize::try_from(reader.u32()?).ok()?;
    let header =
        FrameHeader { identity, number, sequence, previous, offset: reader.u32()?, flags: reader.u32()? };
    let covered = bytes.get(8..length)?;
    if length < FRAME_HEADER_BYTES || checksum(MANIFEST_SEED, covered) != sum {
        return None;
    }
    let mut body = Reader::new(bytes.get(FRAME_HEADER_BYTES..length)?);
    let count = body.u32()?;
    let changes = (0..count).map(|_| ManifestChange::decode(&mut body)).collect::<Option<Vec<_>>>()?;
    body.is_empty().then_some(Frame { header, checksum: sum, length, changes })
}

/// The version of a frame that is whole, and of another version than this one's.
fn other_version(bytes: &[u8]) -> Option<u16> {
    let mut reader = Reader::new(bytes);
    let (sum, magic, version) = (reader.u64()?, reader.u32()?, reader.u16()?);
    let length = usize::try_from(Reader::new(bytes.get(52..)?).u32()?).ok()?;
    let whole = checksum(MANIFEST_SEED, bytes.get(8..length)?) == sum;
    (magic == FRAME_MAGIC && version != FORMAT_VERSION && whole).then_some(version)
}

/// The open manifest of a log.
pub(crate) struct Manifest<R: Runtime> {
    directory: PathBuf,
    pub(crate) identity: LogIdentity,
    gate: Rc<Gate>,
    state: RefCell<State<R>>,
}

struct State<R: Runtime> {
    shards: BTreeMap<ShardId, ShardRecord>,
    file: R::File,
    number: u64,
    file_bytes: usize,
    offset: usize,
    sequence: u64,
    previous: u64,
}

/// The right to append a frame. Whoever holds it may build the frame from the current state.
pub(crate) struct Appender<'a, R: Runtime> {
    manifest: &'a Manifest<R>,
    _pass: Pass,
}

/// Makes a change; false if it names a shard that is not there.
pub(crate) fn apply(shards: &mut BTreeMap<ShardId, ShardRecord>, change: ManifestChange) -> bool {
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
    }
    true
}

impl<R: Runtime> Manifest<R> {
    pub(crate) fn path(directory: &Path, number: u64) -> PathBuf {
        directory.join(format!("{MANIFEST_PREFIX}{number}"))
    }

    /// Makes the manifest of a new log. Durable on return.
    pub(crate) async fn create(runtime: &R, directory: &Path, identity: LogIdentity) -> io::Result<Self> {
        let state = write_whole(runtime, directory, identity, 1, 1, 0, BTreeMap::new()).await?;
        Ok(Self::with(directory, identity, state))
    }

    fn with(directory: &Path, identity: LogIdentity, state: State<R>) -> Self {
        Self {
            directory: directory.to_owned(),
            identity,
            gate: Rc::new(Gate::default()),
            state: RefCell::new(state),
        }
    }

    /// Reads the manifest; none if there is none, or only the beginnings of a first one. Changes nothing.
    pub(crate) async fn load(runtime: &R, directory: &Path) -> Result<Option<Self>, OpenError> {
        let names = runtime.list_directory(directory).await.map_err(|e| OpenError::io(directory, e))?;
        let mut numbers: Vec<u64> =
            names.iter().filter_map(|name| number_after(name, MANIFEST_PREFIX)).collect();
        numbers.sort_unstable();
        while let Some(number) = numbers.pop() {
            let path = Self::path(directory, number);
            match load_file(runtime, &path, number).await? {
                Some((identity, state)) => return Ok(Some(Self::with(directory, identity, state))),
                // A crash while the file was being made: the one before it is still there and right.
                None if !numbers.is_empty() => {}
                None => {
                    let made_more = names.iter().any(|name| {
                        number > 1
                            || number_after(name, crate::format::SEGMENT_PREFIX).is_some()
                            || crate::checkpoint::parse_name(name).is_some()
                            || crate::run::parse_name(name).is_some()
                    });
                    if made_more {
                        return Err(damaged(&path, 0, "the manifest's first frame is invalid").into());
                    }
                }
            }
        }
        Ok(None)
    }

    /// Removes manifest files other than the current one.
    pub(crate) async fn remove_others(&self, runtime: &R) -> io::Result<()> {
        let current = self.state.borrow().number;
        for name in runtime.list_directory(&self.directory).await? {
            if number_after(&name, MANIFEST_PREFIX).is_some_and(|number| number != current) {
                let name = name.file_name().map(PathBuf::from).unwrap_or_default();
                runtime.remove_file(&self.directory.join(name)).await?;
            }
        }
        runtime.sync_directory(&self.directory).await
    }

    /// Makes sure that what was read is durable: after a kill it may be in the device's cache only.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        let file = self.state.borrow().file.clone();
        file.sync_data().await
    }

    /// The shards as of the last durable frame.
    pub(crate) fn shards(&self) -> BTreeMap<ShardId, ShardRecord> {
        self.state.borrow().shards.clone()
    }

    /// One shard's record.
    pub(crate) fn tail(&self, shard: ShardId) -> Option<ReplayRecord> {
        self.state.borrow().shards.get(&shard).map(|record| record.tail)
    }

    /// The segment where the replay of the shard that needs most of the log starts.
    pub(crate) fn oldest_needed(&self) -> Option<SegmentId> {
        self.state.borrow().shards.values().map(|record| record.tail.replay.segment).min()
    }

    /// Waits for the right to append.
    pub(crate) async fn appender(&self) -> Appender<'_, R> {
        Appender { manifest: self, _pass: self.gate.enter().await }
    }
}

impl<R: Runtime> Appender<'_, R> {
    /// Appends one frame. Durable on return; all changes of it or none survive a crash.
    pub(crate) async fn append(&self, runtime: &R, changes: Vec<ManifestChange>) -> io::Result<()> {
        let manifest = self.manifest;
        let (file, offset, header) = {
            let state = manifest.state.borrow();
            let header = FrameHeader {
                identity: manifest.identity,
                number: state.number,
                sequence: state.sequence,
                previous: state.previous,
                offset: length_u32(state.offset),
                flags: 0,
            };
            (state.file.clone(), state.offset, header)
        };
        let (frame, sum) = encode_frame(&header, &changes);
        if offset + frame.len() > manifest.state.borrow().file_bytes {
            return self.roll(runtime, header, changes).await;
        }
        let mut buffer = file.buffer(frame.len());
        buffer.copy_from_slice(&frame);
        file.write_at(buffer, offset as u64).await?;
        let mut state = manifest.state.borrow_mut();
        for change in changes {
            assert!(apply(&mut state.shards, change), "a manifest change names a shard that is there");
        }
        state.offset += frame.len();
        state.sequence += 1;
        state.previous = sum;
        Ok(())
    }

    /// Starts the next file with the state after `changes`.
    async fn roll(&self, runtime: &R, header: FrameHeader, changes: Vec<ManifestChange>) -> io::Result<()> {
        let manifest = self.manifest;
        let mut shards = manifest.shards();
        for change in changes {
            assert!(apply(&mut shards, change), "a manifest change names a shard that is there");
        }
        let number = header.number + 1;
        let (directory, identity) = (&manifest.directory, manifest.identity);
        let state =
            write_whole(runtime, directory, identity, number, header.sequence, header.previous, shards)
                .await?;
        // The old file goes before anything is appended to the new one: a stale manifest must never be the
        // only valid one.
        runtime.remove_file(&Manifest::<R>::path(directory, header.number)).await?;
        runtime.sync_directory(directory).await?;
        *manifest.state.borrow_mut() = state;
        Ok(())
    }
}

async fn write_whole<R: Runtime>(
    runtime: &R,
    directory: &Path,
    identity: LogIdentity,
    number: u64,
    sequence: u64,
    previous: u64,
    shards: BTreeMap<ShardId, ShardRecord>,
) -> io::Result<State<R>> {
    let changes: Vec<ManifestChange> =
        shards.values().map(|record| ManifestChange::Put(Box::new(record.clone()))).collect();
    let header = FrameHeader { identity, number, sequence, previous, offset: 0, flags: FLAG_WHOLE };
    let (frame, sum) = encode_frame(&header, &changes);
    let file_bytes = (frame.len() * 4).next_power_of_two().max(FILE_BYTES_MIN);
    let path = Manifest::<R>::path(directory, number);
    let file = runtime.open(&path, OpenOptions { write: true, create: true, durable_writes: false }).await?;
    let mut buffer = file.buffer(file_bytes);
    buffer.fill(0);
    buffer[..frame.len()].copy_from_slice(&frame);
    file.write_at(buffer, 0).await?;
    file.sync_data().await?;
    runtime.sync_directory(directory).await?;
    let file = runtime.open(&path, OPEN).await?;
    let offset = frame.len();
    Ok(State { shards, file, number, file_bytes, offset, sequence: sequence + 1, previous: sum })
}

const OPEN: OpenOptions = OpenOptions { write: true, create: false, durable_writes: true };

fn damaged(path: &Path, offset: usize, what: &str) -> Corruption {
    Corruption { file: path.to_owned(), offset: offset as u64, what: what.to_owned(), sequences: None }
}

/// Reads one manifest file. None if its first frame is not valid and no other frame is.
async fn load_file<R: Runtime>(
    runtime: &R,
    path: &Path,
    number: u64,
) -> Result<Option<(LogIdentity, State<R>)>, OpenError> {
    let failed = |error| OpenError::io(path, error);
    let file = runtime.open(path, OPEN).await.map_err(failed)?;
    let length = usize::try_from(file.length().await.map_err(failed)?).unwrap_or(usize::MAX);
    let bytes = file.read_at(0, length).await.map_err(failed)?;
    let later_frame = |from: usize, sequence: u64| {
        (from..bytes.len()).step_by(BLOCK as usize).find(|offset| {
            bytes.get(*offset..).and_then(decode_frame).is_some_and(|frame| {
                frame.header.number == number
                    && frame.header.offset as usize == *offset
                    && frame.header.sequence > sequence
            })
        })
    };
    let first = decode_frame(&bytes).filter(|frame| {
        frame.header.number == number && frame.header.offset == 0 && frame.header.flags & FLAG_WHOLE != 0
    });
    if let Some(version) = other_version(&bytes) {
        let what = format!("it is of format version {version}; this version of Krita reads {FORMAT_VERSION}");
        return Err(OpenError::Mismatch { path: path.to_owned(), what });
    }
    let Some(first) = first else {
        return match later_frame(0, 0) {
            Some(_) => Err(damaged(path, 0, "the first frame is invalid, with valid ones behind it").into()),
            None => Ok(None),
        };
    };
    let identity = first.header.identity;
    let mut shards = BTreeMap::new();
    let (mut offset, mut sequence, mut previous) = (0, first.header.sequence, first.header.previous);
    let mut next = Some(first);
    loop {
        let Some(frame) = next.take() else { break };
        let header = frame.header;
        let follows = header.identity == identity
            && header.number == number
            && header.offset as usize == offset
            && header.sequence == sequence
            && header.previous == previous;
        if !follows {
            break;
        }
        for change in frame.changes {
            if !apply(&mut shards, change) {
                return Err(damaged(path, offset, "a frame changes a shard that is not there").into());
            }
        }
        offset += padded(frame.length);
        sequence += 1;
        previous = frame.checksum;
        next = bytes.get(offset..).and_then(decode_frame);
    }
    if let Some(later) = later_frame(offset, sequence) {
        let what = format!("an invalid frame, with a valid one behind it at byte {later}");
        return Err(damaged(path, offset, &what).into());
    }
    let state = State { shards, file, number, file_bytes: bytes.len(), offset, sequence, previous };
    Ok(Some((identity, state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_survives_its_codec() {
        let tail = ReplayRecord {
            hard_state: HardState { term: Term(3), vote: Some(9), commit: Index(7) },
            hard_state_sequence: 12,
            replay: Place { segment: SegmentId(4), sequence: 11 },
        };
        let run = |number| RunRecord { number, length: 8192, root: 5, items: 6 };
        let record = |meta| ShardRecord {
            shard: ShardId(5),
            replica: ReplicaId(6),
            generation: 2,
            applied: Index(7),
            term: Term(3),
            meta,
            runs: vec![run(8), run(7)],
            tail,
            suspect: Some("why".to_owned()),
        };
        let inline =
            MetaPlace::Inline { configuration: Bytes::from_static(b"abc"), machine: Bytes::from_static(b"") };
        let file = MetaPlace::File(MetaFileRecord { number: 1, length: 8192, root: 77 });
        let changes = vec![
            ManifestChange::Put(Box::new(record(inline))),
            ManifestChange::Put(Box::new(record(file))),
            ManifestChange::Advance(ShardId(5), tail),
            ManifestChange::Suspect(ShardId(5), None),
            ManifestChange::Runs(ShardId(5), vec![run(9)]),
            ManifestChange::Remove(ShardId(5)),
        ];
        let identity = LogIdentity { log: LogId(1), nonce: 99, segment_bytes: 1 << 20 };
        let header = FrameHeader { identity, number: 1, sequence: 8, previous: 9, offset: 4096, flags: 0 };
        let (bytes, sum) = encode_frame(&header, &changes);
        let frame = decode_frame(&bytes).expect("a frame reads back");
        assert_eq!((frame.header, frame.checksum, frame.changes), (header, sum, changes));
        for position in 0..frame.length {
            let mut flipped = bytes.clone();
            flipped[position] ^= 4;
            assert!(decode_frame(&flipped).is_none(), "byte {position} is covered");
        }
    }
}
