//! The manifest: which shards this log has, what each one's checkpoint is made of and where its replay starts.
//!
//! A file of frames, each whole blocks, chained like batches. The first frame of a file holds the whole state,
//! the others changes. When a file is full the next one is written, with the whole state of that moment, made
//! durable, and only then is the old one removed. Whatever a frame refers to is durable before the frame is
//! written, so publishing is one write.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use krita_runtime::{File, OpenOptions, Runtime};

use crate::error::{Corruption, OpenError};
use crate::format::{
    BLOCK, FORMAT_VERSION, MANIFEST_PREFIX, MANIFEST_SEED, Reader, checksum, length_u32, number_after, padded,
};
use crate::gate::{Gate, Pass};
use crate::manifest_record::Contents;
pub(crate) use crate::manifest_record::{
    ManifestChange, MetaFileRecord, MetaPlace, ReplayRecord, Settled, ShardRecord,
};
use crate::types::{LogId, SegmentId, ShardId};

/// Length of a frame's header.
pub(crate) const FRAME_HEADER_BYTES: usize = 64;
/// "KMAN".
pub(crate) const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"KMAN");
/// This frame holds the whole state and starts its file.
pub(crate) const FLAG_WHOLE: u32 = 1;
/// Shortest manifest file.
const FILE_BYTES_MIN: usize = 256 << 10;

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
    contents: Contents,
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

impl<R: Runtime> Manifest<R> {
    pub(crate) fn path(directory: &Path, number: u64) -> PathBuf {
        directory.join(format!("{MANIFEST_PREFIX}{number}"))
    }

    /// Makes the manifest of a new log. Durable on return.
    pub(crate) async fn create(runtime: &R, directory: &Path, identity: LogIdentity) -> io::Result<Self> {
        let state = write_whole(runtime, directory, identity, 1, 1, 0, Contents::default()).await?;
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

    /// Reads the manifest; none if there is none, or only the beginnings of a first one, and no other file of a log.
    /// Changes nothing.
    pub(crate) async fn load(runtime: &R, directory: &Path) -> Result<Option<Self>, OpenError> {
        let names = runtime.list_directory(directory).await.map_err(|e| OpenError::io(directory, e))?;
        let mut numbers: Vec<u64> =
            names.iter().filter_map(|name| number_after(name, MANIFEST_PREFIX)).collect();
        numbers.sort_unstable();
        // The first manifest is durable before any other file is made.
        let made_more = numbers.last().is_some_and(|number| *number > 1)
            || names.iter().any(|name| {
                number_after(name, crate::format::SEGMENT_PREFIX).is_some()
                    || crate::checkpoint::parse_name(name).is_some()
                    || crate::run::parse_name(name).is_some()
            });
        while let Some(number) = numbers.pop() {
            let path = Self::path(directory, number);
            match load_file(runtime, &path, number).await? {
                Some((identity, state)) => return Ok(Some(Self::with(directory, identity, state))),
                // A crash while the file was being made: the one before it is still there and right.
                None if !numbers.is_empty() => {}
                None if made_more => return Err(lost(&path, 0, "the manifest's first frame is invalid")),
                None => {}
            }
        }
        if made_more { Err(lost(directory, 0, "files of a log without a manifest")) } else { Ok(None) }
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
        self.state.borrow().contents.shards.clone()
    }

    /// One shard's record.
    pub(crate) fn tail(&self, shard: ShardId) -> Option<ReplayRecord> {
        self.state.borrow().contents.shards.get(&shard).map(|record| record.tail)
    }

    /// The segment where the replay of the shard that needs most of the log starts.
    pub(crate) fn oldest_needed(&self) -> Option<SegmentId> {
        self.state.borrow().contents.shards.values().map(|record| record.tail.replay.segment).min()
    }

    /// The segments in use, as of the last durable frame; later ones may be.
    pub(crate) fn lives(&self) -> BTreeSet<SegmentId> {
        self.state.borrow().contents.lives.clone()
    }

    pub(crate) fn lists(&self, segment: SegmentId) -> bool {
        self.state.borrow().contents.lives.contains(&segment)
    }

    /// See [`Contents::is_gone`].
    pub(crate) fn is_gone(&self, segment: SegmentId) -> bool {
        self.state.borrow().contents.is_gone(segment)
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
            assert!(state.contents.apply(change), "a manifest change names what is there");
        }
        state.offset += frame.len();
        state.sequence += 1;
        state.previous = sum;
        Ok(())
    }

    /// Reads the file back. If it is not what was written, the next file is written from memory: false.
    pub(crate) async fn verify(&self, runtime: &R) -> io::Result<bool> {
        let manifest = self.manifest;
        let (path, header) = {
            let state = manifest.state.borrow();
            let (number, sequence, previous) = (state.number, state.sequence, state.previous);
            let offset = length_u32(state.offset);
            let header =
                FrameHeader { identity: manifest.identity, number, sequence, previous, offset, flags: 0 };
            (Manifest::<R>::path(&manifest.directory, number), header)
        };
        let found = match load_file::<R>(runtime, &path, header.number).await {
            Err(OpenError::Io { source, .. }) if source.kind() != io::ErrorKind::NotFound => {
                return Err(source);
            }
            Err(_) | Ok(None) => None,
            Ok(Some((_, found))) => Some((found.offset, found.sequence, found.previous)),
        };
        if found == Some((header.offset as usize, header.sequence, header.previous)) {
            return Ok(true);
        }
        tracing::error!(path = %path.display(), "the manifest is damaged, and written anew");
        self.roll(runtime, header, Vec::new()).await?;
        Ok(false)
    }

    /// Starts the next file with the state after `changes`.
    async fn roll(&self, runtime: &R, header: FrameHeader, changes: Vec<ManifestChange>) -> io::Result<()> {
        let manifest = self.manifest;
        let mut contents = manifest.state.borrow().contents.clone();
        for change in changes {
            assert!(contents.apply(change), "a manifest change names what is there");
        }
        let number = header.number + 1;
        let (directory, identity) = (&manifest.directory, manifest.identity);
        let state =
            write_whole(runtime, directory, identity, number, header.sequence, header.previous, contents)
                .await?;
        // The old file goes before anything is appended to the new one: a stale manifest must never be the
        // only valid one.
        match runtime.remove_file(&Manifest::<R>::path(directory, header.number)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        runtime.sync_directory(directory).await?;
        *manifest.state.borrow_mut() = state;
        Ok(())
    }
}

/// Length of a file whose first frame takes so many bytes, padding included.
fn file_bytes(first_frame: usize) -> usize {
    (first_frame * 4).next_power_of_two().max(FILE_BYTES_MIN)
}

async fn write_whole<R: Runtime>(
    runtime: &R,
    directory: &Path,
    identity: LogIdentity,
    number: u64,
    sequence: u64,
    previous: u64,
    contents: Contents,
) -> io::Result<State<R>> {
    let changes = contents.changes();
    let header = FrameHeader { identity, number, sequence, previous, offset: 0, flags: FLAG_WHOLE };
    let (frame, sum) = encode_frame(&header, &changes);
    let file_bytes = file_bytes(frame.len());
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
    Ok(State { contents, file, number, file_bytes, offset, sequence: sequence + 1, previous: sum })
}

const OPEN: OpenOptions = OpenOptions { write: true, create: false, durable_writes: true };

fn lost(path: &Path, offset: usize, what: &str) -> OpenError {
    let (file, offset) = (path.to_owned(), offset as u64);
    OpenError::ManifestLost(Corruption { file, offset, what: what.to_owned(), sequences: None })
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
        let what = OpenError::other_version(version);
        return Err(OpenError::Mismatch { path: path.to_owned(), what });
    }
    let Some(first) = first else {
        return match later_frame(0, 0) {
            Some(_) => Err(lost(path, 0, "the first frame is invalid, with valid ones behind it")),
            None => Ok(None),
        };
    };
    // The file was written in full before it counted.
    if bytes.len() < file_bytes(padded(first.length)) {
        return Ok(None);
    }
    let identity = first.header.identity;
    let mut contents = Contents::default();
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
            if !contents.apply(change) {
                return Err(lost(path, offset, "a frame changes what is not there"));
            }
        }
        offset += padded(frame.length);
        sequence += 1;
        previous = frame.checksum;
        next = bytes.get(offset..).and_then(decode_frame);
    }
    if let Some(later) = later_frame(offset, sequence) {
        let what = format!("an invalid frame, with a valid one behind it at byte {later}");
        return Err(lost(path, offset, &what));
    }
    let state = State { contents, file, number, file_bytes: bytes.len(), offset, sequence, previous };
    Ok(Some((identity, state)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::run::RunRecord;
    use crate::types::{HardState, Index, Place, ReplicaId, Term};

    #[test]
    fn every_change_survives_its_codec() {
        let tail = ReplayRecord {
            hard_state: HardState { term: Term(3), vote: Some(9), commit: Index(7) },
            hard_state_sequence: 12,
            replay: Place { segment: SegmentId(4), sequence: 11 },
            settled: Settled { from: 3, to: 5, before: 9 },
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
            damaged: true,
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
            ManifestChange::Lives { used: vec![SegmentId(7), SegmentId(9)], gone: vec![SegmentId(3)] },
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
