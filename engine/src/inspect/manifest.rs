//! One manifest file: its frames, and the state of the log's shards that they add up to.

use std::io;

use crate::format::{
    BLOCK, FORMAT_VERSION, MANIFEST_PREFIX, MANIFEST_SEED, Reader, checksum, number_after, padded,
};
use crate::inspect::finding::Findings;
use crate::inspect::segment::LogContext;
use crate::inspect::source::{ReadAt, Window};
use crate::manifest::{
    self, FLAG_WHOLE, FRAME_HEADER_BYTES, FRAME_MAGIC, Frame, LogIdentity, ManifestChange, MetaPlace,
    ShardRecord,
};
use crate::manifest_record::Contents;
use crate::types::{HardState, Index, LogId, ReplicaId, SegmentId, ShardId, Term};

/// Longest frame that is read; none that Krita writes comes near.
const FRAME_BYTES_MAX: usize = 256 << 20;

/// What the manifest knows of a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardSummary {
    /// Which shard.
    pub shard: ShardId,
    /// Which replica of it.
    pub replica: ReplicaId,
    /// The ownership generation.
    pub generation: u64,
    /// The last entry that the checkpoint contains.
    pub applied: Index,
    /// Its term.
    pub term: Term,
    /// The hard state as of `hard_state_sequence`.
    pub hard_state: HardState,
    /// This batch was durable, and hard states up to it are in `hard_state`.
    pub hard_state_sequence: u64,
    /// The first batch that may hold a record which the shard still needs.
    pub replay_sequence: u64,
    /// The life in which that batch lies, or an earlier one.
    pub replay_segment: SegmentId,
    /// Where the checkpoint's meta data is.
    pub checkpoint: CheckpointSummary,
    /// The runs that make up its index, newest first.
    pub runs: Vec<RunSummary>,
    /// Why the replica may have forgotten what it acknowledged, if it may have.
    pub suspect: Option<String>,
}

/// A run of a shard's index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunSummary {
    /// Its file's name.
    pub file: String,
    /// The number in the name.
    pub number: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The checksum over all its blocks.
    pub root: u64,
    /// Keys, deleted ones included.
    pub items: u64,
}

/// Where the meta data of a shard's checkpoint is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CheckpointSummary {
    /// In the manifest.
    Inline {
        /// Length of the membership in bytes.
        configuration_bytes: u64,
        /// Length of the state machine's part in bytes.
        machine_bytes: u64,
    },
    /// In a file.
    File {
        /// Its name.
        file: String,
        /// Its length in bytes.
        length: u64,
        /// The checksum over all its blocks.
        root: u64,
    },
}

impl From<&ShardRecord> for ShardSummary {
    fn from(record: &ShardRecord) -> Self {
        let checkpoint = match &record.meta {
            MetaPlace::Inline { configuration, machine } => CheckpointSummary::Inline {
                configuration_bytes: configuration.len() as u64,
                machine_bytes: machine.len() as u64,
            },
            MetaPlace::File(file) => CheckpointSummary::File {
                file: format!("{}{}-{}", crate::format::CHECKPOINT_PREFIX, record.shard.0, file.number),
                length: file.length,
                root: file.root,
            },
        };
        let runs = record.runs.iter().map(|run| RunSummary {
            file: format!("{}{}-{}", crate::run::RUN_PREFIX, record.shard.0, run.number),
            number: run.number,
            length: run.length,
            root: run.root,
            items: run.items,
        });
        Self {
            shard: record.shard,
            replica: record.replica,
            generation: record.generation,
            applied: record.applied,
            term: record.term,
            hard_state: record.tail.hard_state,
            hard_state_sequence: record.tail.hard_state_sequence,
            replay_sequence: record.tail.replay.sequence,
            replay_segment: record.tail.replay.segment,
            checkpoint,
            runs: runs.collect(),
            suspect: record.suspect.clone(),
        }
    }
}

/// What a frame changes, by shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangeInfo {
    /// "put", "advance", "remove", "runs", "suspect" or "trusted".
    pub name: &'static str,
    /// Whose record.
    pub shard: ShardId,
}

impl ChangeInfo {
    /// None if it changes no shard.
    fn of(change: &ManifestChange) -> Option<Self> {
        let (name, shard) = match change {
            ManifestChange::Put(record) => ("put", record.shard),
            ManifestChange::Advance(shard, _) => ("advance", *shard),
            ManifestChange::Remove(shard) => ("remove", *shard),
            ManifestChange::Runs(shard, _) => ("runs", *shard),
            ManifestChange::Suspect(shard, Some(_)) => ("suspect", *shard),
            ManifestChange::Suspect(shard, None) => ("trusted", *shard),
            ManifestChange::Lives { .. } => return None,
        };
        Some(Self { name, shard })
    }
}

/// One valid frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameInfo {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length in bytes, without padding.
    pub length: u64,
    /// Its number, counted over all files.
    pub sequence: u64,
    /// It holds the whole state.
    pub is_whole: bool,
    /// What it changes of shards.
    pub changes: Vec<ChangeInfo>,
    /// Segments that it says were put to use.
    pub used: Vec<SegmentId>,
    /// Segments that it says are not in use any more.
    pub gone: Vec<SegmentId>,
}

/// What never changes over a log's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogIdentityInfo {
    /// The log's number.
    pub log: LogId,
    /// The seed of all checksums outside the manifest.
    pub nonce: u64,
    /// Length of its segment files in bytes.
    pub segment_bytes: u32,
}

impl From<LogIdentity> for LogIdentityInfo {
    fn from(identity: LogIdentity) -> Self {
        Self { log: identity.log, nonce: identity.nonce, segment_bytes: identity.segment_bytes }
    }
}

impl LogIdentityInfo {
    /// What the other files of the log are held against.
    pub fn context(&self) -> LogContext {
        LogContext { nonce: self.nonce, log: Some(self.log), segment_bytes: Some(self.segment_bytes) }
    }
}

/// What one manifest file holds, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestReport {
    /// The file's name.
    pub file: String,
    /// Its length in bytes.
    pub length: u64,
    /// Whose it is, by its first frame, or, if that is damaged, by the first valid one.
    pub identity: Option<LogIdentityInfo>,
    /// The first frame is valid: recovery would take this file if it has the highest number.
    pub is_valid: bool,
    /// How many valid frames are in the chain.
    pub frames: u64,
    /// Where the chain of frames ends.
    pub end: u64,
    /// The number that the next frame would have.
    pub next_sequence: u64,
    /// The segments in use as of the last valid frame, as far as they are recorded by then.
    pub lives: Vec<SegmentId>,
    /// The shards as of the last valid frame.
    pub shards: Vec<ShardSummary>,
    /// What is wrong.
    pub findings: Findings,
}

/// Is told every valid frame of the chain. An error ends the inspection.
pub type VisitFrame<'v> = dyn FnMut(&FrameInfo) -> io::Result<()> + 'v;

/// Inspects one manifest file.
///
/// # Errors
/// Those of reading and of `visit`.
pub fn inspect_manifest(
    file: &dyn ReadAt,
    name: &str,
    visit: &mut VisitFrame<'_>,
) -> io::Result<ManifestReport> {
    let window = Window::new(file)?;
    let report = ManifestReport {
        file: name.to_owned(),
        length: window.file_length(),
        identity: None,
        is_valid: false,
        frames: 0,
        end: 0,
        next_sequence: 0,
        lives: Vec::new(),
        shards: Vec::new(),
        findings: Findings::default(),
    };
    let number = number_after(name.as_ref(), MANIFEST_PREFIX);
    FrameScan { window, report, number, previous: 0 }.run(visit)
}

struct FrameScan<'f> {
    window: Window<'f>,
    report: ManifestReport,
    /// The number that the file should have; none if its name does not say.
    number: Option<u64>,
    previous: u64,
}

impl FrameScan<'_> {
    fn run(mut self, visit: &mut VisitFrame<'_>) -> io::Result<ManifestReport> {
        let first = self.frame_at(0)?.filter(|frame| {
            let header = &frame.header;
            let ours = self.number.is_none_or(|number| number == header.number);
            ours && header.offset == 0 && header.flags & FLAG_WHOLE != 0
        });
        let Some(first) = first else {
            self.without_first_frame()?;
            return Ok(self.report);
        };
        self.report.is_valid = true;
        self.report.identity = Some(first.header.identity.into());
        self.number = Some(first.header.number);
        (self.report.next_sequence, self.previous) = (first.header.sequence, first.header.previous);
        let identity = first.header.identity;
        let mut contents = Contents::default();
        let mut next = Some(first);
        while let Some(frame) = next.take().filter(|frame| self.follows(frame, identity)) {
            self.take(&frame, visit)?;
            for change in frame.changes {
                if !contents.apply(change) {
                    let what = "a frame changes what is not there";
                    self.report.findings.damage(&self.report.file, u64::from(frame.header.offset), what);
                }
            }
            next = self.frame_at(self.report.end)?;
        }
        self.report.lives = contents.lives.iter().copied().collect();
        self.report.shards = contents.shards.values().map(ShardSummary::from).collect();
        self.behind_the_end()?;
        Ok(self.report)
    }

    fn follows(&self, frame: &Frame, identity: LogIdentity) -> bool {
        let header = &frame.header;
        header.identity == identity
            && Some(header.number) == self.number
            && u64::from(header.offset) == self.report.end
            && header.sequence == self.report.next_sequence
            && header.previous == self.previous
    }

    fn take(&mut self, frame: &Frame, visit: &mut VisitFrame<'_>) -> io::Result<()> {
        let offset = self.report.end;
        let (mut used, mut gone) = (Vec::new(), Vec::new());
        for change in &frame.changes {
            if let ManifestChange::Lives { used: more, gone: less } = change {
                used.extend_from_slice(more);
                gone.extend_from_slice(less);
            }
        }
        visit(&FrameInfo {
            used,
            gone,
            offset,
            length: frame.length as u64,
            sequence: frame.header.sequence,
            is_whole: frame.header.flags & FLAG_WHOLE != 0,
            changes: frame.changes.iter().filter_map(ChangeInfo::of).collect(),
        })?;
        let whole = padded(frame.length);
        let padding = self.window.get(offset + frame.length as u64, whole - frame.length)?;
        if let Some(position) = padding.iter().position(|byte| *byte != 0) {
            let at = offset + (frame.length + position) as u64;
            let what = "a byte of padding that is not zero; nothing reads it";
            self.report.findings.notice(&self.report.file, at, what);
        }
        self.report.frames += 1;
        self.report.end += whole as u64;
        self.report.next_sequence = frame.header.sequence.saturating_add(1);
        self.previous = frame.checksum;
        Ok(())
    }

    /// The valid frame at `offset`.
    fn frame_at(&mut self, offset: u64) -> io::Result<Option<Frame>> {
        let head = self.window.get(offset, FRAME_HEADER_BYTES)?;
        let Some(length) = frame_length(head) else { return Ok(None) };
        Ok(manifest::decode_frame(self.window.get(offset, length)?))
    }

    /// The first frame from `from` on that is at its place and has a number above `sequence`.
    fn later_frame(&mut self, from: u64, sequence: Option<u64>) -> io::Result<Option<(u64, Frame)>> {
        let mut position = from;
        while position < self.report.length {
            let later = self.frame_at(position)?.filter(|frame| {
                self.number.is_none_or(|number| number == frame.header.number)
                    && u64::from(frame.header.offset) == position
                    && sequence.is_none_or(|sequence| frame.header.sequence > sequence)
            });
            if let Some(frame) = later {
                return Ok(Some((position, frame)));
            }
            position += u64::from(BLOCK);
        }
        Ok(None)
    }

    fn without_first_frame(&mut self) -> io::Result<()> {
        let why = self.why(0)?;
        match self.later_frame(0, None)? {
            Some((at, frame)) => {
                self.report.identity = Some(frame.header.identity.into());
                let why = why.map_or("no valid first frame".to_owned(), |(_, why)| why);
                let what = format!("{why}, with a valid frame behind it at byte {at}");
                self.report.findings.damage(&self.report.file, 0, what);
            }
            None => match why {
                Some((true, why)) => self.report.findings.damage(&self.report.file, 0, why),
                Some((false, _)) | None => {
                    let what = "no valid frame: the file was being made, or is damaged";
                    self.report.findings.notice(&self.report.file, 0, what);
                }
            },
        }
        Ok(())
    }

    fn behind_the_end(&mut self) -> io::Result<()> {
        let (end, sequence) = (self.report.end, self.report.next_sequence);
        let why = self.why(end)?;
        if let Some((at, _)) = self.later_frame(end, Some(sequence))? {
            let why = why.map_or("no valid frame".to_owned(), |(_, why)| why);
            let what = format!("{why}, with a valid frame behind it at byte {at}");
            self.report.findings.damage(&self.report.file, end, what);
        } else if let Some((is_damage, why)) = why {
            match is_damage {
                true => self.report.findings.damage(&self.report.file, end, why),
                false => {
                    self.report.findings.notice(&self.report.file, end, format!("{why}: torn or damaged"))
                }
            }
        }
        Ok(())
    }

    /// What stands at `offset` instead of a valid frame, and whether it is damage for certain; none if nothing was
    /// ever written there.
    fn why(&mut self, offset: u64) -> io::Result<Option<(bool, String)>> {
        let sequence = self.report.next_sequence;
        let head = self.window.get(offset, FRAME_HEADER_BYTES)?.to_vec();
        if head.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut reader = Reader::new(&head);
        let (sum, magic, version) = (reader.u64(), reader.u32(), reader.u16());
        let whole = match frame_length(&head) {
            Some(length) => {
                let covered = self.window.get(offset, length)?.get(8..).unwrap_or(&[]);
                Some(checksum(MANIFEST_SEED, covered)) == sum
            }
            None => false,
        };
        Ok(Some(match (whole, magic, version) {
            (true, Some(FRAME_MAGIC), Some(version)) if version != FORMAT_VERSION => {
                (true, format!("format version {version}; this version reads {FORMAT_VERSION}"))
            }
            (true, ..) => (true, "a frame that does not follow, or whose changes do not parse".to_owned()),
            (false, Some(FRAME_MAGIC), Some(version)) if version != FORMAT_VERSION => {
                (false, format!("an invalid frame, of format version {version}, or damaged"))
            }
            (false, ..) => (false, format!("an invalid frame where frame {sequence} should be")),
        }))
    }
}

/// The length that a frame's header claims, if it is one that can be.
fn frame_length(head: &[u8]) -> Option<usize> {
    let length = usize::try_from(Reader::new(head.get(52..56)?).u32()?).ok()?;
    (FRAME_HEADER_BYTES..=FRAME_BYTES_MAX).contains(&length).then_some(length)
}
