//! One segment file: its header, its batches and their records, each checked in every way that the file alone allows.

use std::collections::BTreeMap;
use std::io;

use crate::format::{BLOCK, FORMAT_VERSION, Reader, SEGMENT_PREFIX, checksum, number_after};
use crate::inspect::finding::{Findings, Severity};
use crate::inspect::scan::{Scan, strays};
use crate::inspect::source::{ReadAt, Window};
use crate::record::RecordKind;
use crate::segment::{SEGMENT_BODY, SEGMENT_HEADER_BYTES, SEGMENT_MAGIC, SegmentHeader};
use crate::types::{HardState, Index, LogId, ReplicaId, SegmentId, ShardId, Term};

/// What is known of the log that a file should belong to. The manifest has it all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogContext {
    /// The seed of the log's checksums.
    pub nonce: u64,
    /// The log's number, if it is known.
    pub log: Option<LogId>,
    /// The length of its segment files, if it is known.
    pub segment_bytes: Option<u32>,
}

impl LogContext {
    /// Only the seed is known.
    pub fn with_nonce(nonce: u64) -> Self {
        Self { nonce, log: None, segment_bytes: None }
    }
}

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RecordName {
    /// An entry, or a piece of one.
    Entry,
    /// Entries behind `index` are gone.
    Truncation,
    /// Term, vote and commit.
    HardState,
    /// A value that was moved, or came with a snapshot.
    Relocated,
}

impl RecordName {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Entry => "entry",
            Self::Truncation => "truncation",
            Self::HardState => "hard state",
            Self::Relocated => "relocated value",
        }
    }
}

impl From<RecordKind> for RecordName {
    fn from(kind: RecordKind) -> Self {
        match kind {
            RecordKind::Entry => Self::Entry,
            RecordKind::Truncate => Self::Truncation,
            RecordKind::HardState => Self::HardState,
            RecordKind::Relocated => Self::Relocated,
        }
    }
}

/// One batch that passed every check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchInfo {
    /// The life it lies in.
    pub segment: SegmentId,
    /// Where it starts in its file.
    pub offset: u32,
    /// Header and records in bytes.
    pub length: u32,
    /// Zeros up to the next block.
    pub padding: u32,
    /// Its number.
    pub sequence: u64,
    /// Its own checksum, which the next batch names.
    pub checksum: u64,
    /// The checksum of the batch before.
    pub previous: u64,
    /// How many records.
    pub records: u32,
    /// It only proves that the batch before it was durable.
    pub is_seal: bool,
}

/// One record that passed every check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordInfo {
    /// What it is.
    pub name: RecordName,
    /// Raft's kind of entry; 0 in other records.
    pub entry_kind: u8,
    /// Whose it is.
    pub shard: ShardId,
    /// Which replica wrote it.
    pub replica: ReplicaId,
    /// The term of the entry or hard state.
    pub term: Term,
    /// The entry's index, the truncation's last surviving index, the relocated value's version.
    pub index: Index,
    /// Bytes of payload in this record.
    pub length: u32,
    /// Where in the whole payload this piece starts.
    pub piece_offset: u32,
    /// Length of the whole payload.
    pub total: u32,
    /// Where its header starts in the file.
    pub offset: u32,
    /// What a hard state says.
    pub hard_state: Option<HardState>,
}

impl RecordInfo {
    /// Whether the payload was written in pieces, of which this is one.
    pub fn is_piece(&self) -> bool {
        self.length != self.total
    }

    /// Whether the payload is complete with this record.
    pub fn is_last(&self) -> bool {
        u64::from(self.piece_offset) + u64::from(self.length) == u64::from(self.total)
    }
}

/// How many records there are, by what they are.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RecordCounts {
    /// Entries; one in pieces counts with its last piece.
    pub entries: u64,
    /// Truncations.
    pub truncations: u64,
    /// Hard states.
    pub hard_states: u64,
    /// Relocated values; one in pieces counts with its last piece.
    pub relocated: u64,
    /// Records that hold a piece of a longer payload.
    pub pieces: u64,
    /// Bytes of payload.
    pub payload_bytes: u64,
}

impl RecordCounts {
    pub(super) fn count(&mut self, record: &RecordInfo) {
        let whole = u64::from(record.is_last());
        match record.name {
            RecordName::Entry => self.entries += whole,
            RecordName::Truncation => self.truncations += 1,
            RecordName::HardState => self.hard_states += 1,
            RecordName::Relocated => self.relocated += whole,
        }
        self.pieces += u64::from(record.is_piece());
        self.payload_bytes += u64::from(record.length);
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.truncations += other.truncations;
        self.hard_states += other.hard_states;
        self.relocated += other.relocated;
        self.pieces += other.pieces;
        self.payload_bytes += other.payload_bytes;
    }
}

/// What the header says a segment file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentState {
    /// In a life: it has batches, or will have.
    Used,
    /// Ready for its first life.
    Spare,
    /// Its first block is zeros: it was being made when the node stopped.
    Unfinished,
    /// Its header is not one of this log.
    Invalid,
}

impl SegmentState {
    /// For people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Spare => "spare",
            Self::Unfinished => "unfinished",
            Self::Invalid => "invalid",
        }
    }
}

/// Batches in a file without a valid header, by their life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stray {
    /// The life they were written in.
    pub segment: SegmentId,
    /// The lowest number.
    pub first: u64,
    /// The highest number.
    pub last: u64,
    /// Where the one with the highest number starts.
    pub last_offset: u64,
}

/// What one segment file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// The file's name.
    pub file: String,
    /// Its length in bytes.
    pub length: u64,
    /// What its header says it is.
    pub state: SegmentState,
    /// The log that the header names.
    pub log: LogId,
    /// The life; 0 unless the file is in one.
    pub segment: SegmentId,
    /// The number of the first batch.
    pub first_sequence: u64,
    /// The checksum of the batch before the first, which is in the life before.
    pub previous: u64,
    /// Valid batches, seals included.
    pub batches: u64,
    /// Seals.
    pub seals: u64,
    /// The records of the valid batches.
    pub records: RecordCounts,
    /// The same by shard.
    pub shards: BTreeMap<ShardId, RecordCounts>,
    /// Bytes of padding behind the valid batches.
    pub padding_bytes: u64,
    /// Where the chain of batches ends.
    pub end: u64,
    /// The number that the next batch would have.
    pub next_sequence: u64,
    /// The checksum of the last batch; of the one before the life if there is none.
    pub last_checksum: u64,
    /// The last batch is a seal: the one before it was durable.
    pub sealed: bool,
    /// At the end of the chain stands what looks like the next batch, but is not whole: torn or damaged.
    pub torn: Option<String>,
    /// Batches that were found although the header is invalid.
    pub strays: Vec<Stray>,
}

impl SegmentSummary {
    fn new(file: &str, length: u64) -> Self {
        Self {
            file: file.to_owned(),
            length,
            state: SegmentState::Invalid,
            log: LogId(0),
            segment: SegmentId(0),
            first_sequence: 0,
            previous: 0,
            batches: 0,
            seals: 0,
            records: RecordCounts::default(),
            shards: BTreeMap::new(),
            padding_bytes: 0,
            end: 0,
            next_sequence: 0,
            last_checksum: 0,
            sealed: false,
            torn: None,
            strays: Vec::new(),
        }
    }
}

/// One valid thing in a segment, in the order of the file.
#[derive(Clone, Copy, Debug)]
pub enum SegmentItem<'a> {
    /// A batch. Its records follow.
    Batch(&'a BatchInfo),
    /// A record of the batch, and its payload.
    Record(&'a RecordInfo, &'a [u8]),
}

/// Is told every valid batch and record. An error ends the inspection.
pub type Visit<'v> = dyn FnMut(SegmentItem<'_>) -> io::Result<()> + 'v;

/// What one segment file holds, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentReport {
    /// What it holds.
    pub summary: SegmentSummary,
    /// What is wrong.
    pub findings: Findings,
}

/// Inspects one segment file on its own. Whether a torn end was acknowledged only the other files can tell, so here it
/// is a notice.
///
/// # Errors
/// Those of reading and of `visit`.
pub fn inspect_segment(
    file: &dyn ReadAt,
    name: &str,
    context: LogContext,
    visit: &mut Visit<'_>,
) -> io::Result<SegmentReport> {
    let mut findings = Findings::default();
    let summary = summarize(file, name, context, &mut findings, visit)?;
    if let Some(what) = &summary.torn {
        let sequences = Some((summary.next_sequence, summary.next_sequence));
        findings.note(Severity::Notice, name, summary.end, what.clone(), sequences);
    }
    if let Some(stray) = summary.strays.iter().max_by_key(|stray| stray.last) {
        let what = format!("an invalid segment header, with batches of {} behind it", stray.segment);
        findings.note(Severity::Damage, name, 0, what, Some((stray.first, stray.last)));
    }
    Ok(SegmentReport { summary, findings })
}

/// As [`inspect_segment`], but leaves the verdict on a torn end and on an invalid header to the caller.
pub(super) fn summarize(
    file: &dyn ReadAt,
    name: &str,
    context: LogContext,
    findings: &mut Findings,
    visit: &mut Visit<'_>,
) -> io::Result<SegmentSummary> {
    let mut window = Window::new(file)?;
    let mut summary = SegmentSummary::new(name, window.file_length());
    let block = window.get(0, BLOCK as usize)?;
    let Some(header) = SegmentHeader::decode(block, context.nonce) else {
        summary.state = invalid_header(block, name, context.nonce, findings);
        summary.strays = strays(&mut window, context)?;
        return Ok(summary);
    };
    check_block(block, &header, &summary, context, findings);
    summary.log = header.log;
    summary.segment = header.segment;
    (summary.first_sequence, summary.previous) = (header.first_sequence, header.previous);
    (summary.next_sequence, summary.last_checksum) = (header.first_sequence, header.previous);
    summary.end = u64::from(SEGMENT_BODY);
    summary.state = if header.segment == SegmentId(0) { SegmentState::Spare } else { SegmentState::Used };
    if summary.state == SegmentState::Used {
        Scan { window, context, summary: &mut summary, findings, visit }.run()?;
    }
    Ok(summary)
}

/// What a first block without a valid header is.
fn invalid_header(block: &[u8], name: &str, nonce: u64, findings: &mut Findings) -> SegmentState {
    if block.iter().all(|byte| *byte == 0) {
        findings.notice(name, 0, "no header: the file was being made");
        return SegmentState::Unfinished;
    }
    let mut reader = Reader::new(block);
    let (sum, magic, version) = (reader.u64(), reader.u64(), reader.u16());
    let covered = block.get(8..SEGMENT_HEADER_BYTES);
    let what = match (magic, version) {
        (Some(SEGMENT_MAGIC), Some(version)) if version != FORMAT_VERSION => {
            let whole = covered.is_some_and(|covered| Some(checksum(nonce, covered)) == sum);
            let doubt = if whole { "" } else { " (or the header is damaged)" };
            format!("format version {version}; this version reads {FORMAT_VERSION}{doubt}")
        }
        (Some(SEGMENT_MAGIC), _) => "the header fails its checksum, or the nonce is another log's".to_owned(),
        _ => "no segment header".to_owned(),
    };
    // Whether it matters depends on what stands behind it, which the caller judges.
    findings.notice(name, 0, what);
    SegmentState::Invalid
}

/// Whether a valid header is the one that should stand here.
fn check_block(
    block: &[u8],
    header: &SegmentHeader,
    summary: &SegmentSummary,
    context: LogContext,
    findings: &mut Findings,
) {
    let name = &summary.file;
    let log = context.log.unwrap_or(header.log);
    let number = number_after(name.as_ref(), SEGMENT_PREFIX).unwrap_or(u64::from(header.file));
    if (header.log, u64::from(header.file)) != (log, number) {
        findings.damage(name, 0, format!("the header of file {} of {} is here", header.file, header.log));
    }
    if let Some(segment_bytes) = context.segment_bytes
        && u64::from(segment_bytes) != summary.length
    {
        let what = format!("it is {} bytes long, not {segment_bytes}", summary.length);
        findings.damage(name, summary.length.min(u64::from(segment_bytes)), what);
    }
    let rest = block.get(SEGMENT_HEADER_BYTES..).unwrap_or(&[]);
    if let Some(position) = rest.iter().position(|byte| *byte != 0) {
        let offset = (SEGMENT_HEADER_BYTES + position) as u64;
        findings.notice(name, offset, "a byte behind the header that is not zero; nothing reads it");
    }
}
