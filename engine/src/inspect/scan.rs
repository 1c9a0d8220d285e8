//! Follows the chain of batches through one segment, and takes it up again behind what is damaged.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use crate::batch::{self, BATCH_HEADER_BYTES, BATCH_MAGIC, CheckedHeader, FLAG_SEAL};
use crate::format::{BLOCK, FORMAT_VERSION, Reader, padded};
use crate::inspect::finding::{Findings, Severity};
use crate::inspect::segment::{BatchInfo, LogContext, RecordInfo, SegmentItem, SegmentSummary, Stray, Visit};
use crate::inspect::source::Window;
use crate::packed;
use crate::record::{self, RECORD_HEADER_BYTES, RecordHeader, RecordKind, record_bytes};
use crate::segment::SEGMENT_BODY;
use crate::types::{SegmentId, value_checksum};

/// Longest batch that is read; none that Krita writes comes near.
const BATCH_BYTES_MAX: u32 = 256 << 20;

/// Most lives that the batches of a file without header are told apart by.
const STRAYS_MAX: usize = 1_000;

/// One walk through a segment that is in a life. The summary's `end`, `next_sequence` and `last_checksum` are where it
/// has come to.
pub(super) struct Scan<'s, 'f, 'v> {
    pub(super) window: Window<'f>,
    pub(super) context: LogContext,
    pub(super) summary: &'s mut SegmentSummary,
    pub(super) findings: &'s mut Findings,
    pub(super) visit: &'s mut Visit<'v>,
}

/// What stands where the next batch should.
enum Next {
    /// The next batch, whole: its header and its bytes without padding.
    Batch(CheckedHeader, Vec<u8>),
    /// Not the next batch.
    Fault(Fault),
}

/// Why there is no next batch.
struct Fault {
    /// The first byte in doubt.
    offset: u64,
    /// What stands there, if it was meant to be the next batch.
    what: Option<String>,
}

impl Scan<'_, '_, '_> {
    /// Walks to the end of the chain.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            match self.next()? {
                Next::Batch(checked, bytes) => self.take(&checked, &bytes)?,
                Next::Fault(fault) => {
                    if !self.resume(&fault)? {
                        self.summary.torn = fault.what;
                        return Ok(());
                    }
                }
            }
        }
    }

    fn next(&mut self) -> io::Result<Next> {
        let offset = self.summary.end;
        let head = self.window.get(offset, BATCH_HEADER_BYTES)?;
        let fault = |what: Option<String>| Ok(Next::Fault(Fault { offset, what }));
        let Some(checked) = batch::decode_header(head, self.context.nonce) else {
            let what =
                resembles(head, self.summary).then(|| invalid_header(head, self.summary.next_sequence));
            return fault(what);
        };
        let header = checked.header;
        let summary = &*self.summary;
        if header.sequence < summary.next_sequence {
            // From an earlier life of the file: the chain ends here.
            return fault(None);
        }
        let place = (header.log, header.segment, u64::from(header.offset));
        if place != (summary.log, summary.segment, offset) {
            let (log, segment) = (header.log, header.segment);
            let what = format!("a batch of {log}, {segment}, byte {}, is here", header.offset);
            return fault(Some(what));
        }
        if (header.sequence, header.previous) != (summary.next_sequence, summary.last_checksum) {
            return fault(Some(format!("batch {} does not follow the one before", header.sequence)));
        }
        let end = offset + u64::from(header.length);
        if end > summary.length || header.length > BATCH_BYTES_MAX {
            return fault(Some(format!("batch {} is longer than there is room", header.sequence)));
        }
        let bytes = self.window.get(offset, header.length as usize)?.to_vec();
        if !batch::body_matches(&checked, bytes.get(BATCH_HEADER_BYTES..).unwrap_or(&[]), self.context.nonce)
        {
            return Ok(Next::Fault(self.body_fault(&checked, &bytes)));
        }
        Ok(Next::Batch(checked, bytes))
    }

    /// Which record of a batch with an invalid body is the first invalid one.
    fn body_fault(&self, checked: &CheckedHeader, bytes: &[u8]) -> Fault {
        let header = &checked.header;
        let mut position = BATCH_HEADER_BYTES;
        for _ in 0..header.records {
            match self.record(checked, bytes, position) {
                Ok((_, payload)) => position += record_bytes(payload.len()),
                Err(what) => {
                    let offset = self.summary.end + position as u64;
                    let what = format!("batch {} is not whole: {what}", header.sequence);
                    return Fault { offset, what: Some(what) };
                }
            }
        }
        let what = format!("batch {} is not whole, though each of its records is", header.sequence);
        Fault { offset: self.summary.end, what: Some(what) }
    }

    fn record<'b>(
        &self,
        checked: &CheckedHeader,
        bytes: &'b [u8],
        position: usize,
    ) -> Result<(RecordHeader, &'b [u8]), String> {
        let header = &checked.header;
        let front = bytes.get(position..).unwrap_or(&[]);
        let Some((record, payload)) = record::decode(front, self.context.nonce) else {
            return Err(invalid_record(front));
        };
        let here = (header.log, header.segment, u64::from(header.offset) + position as u64);
        if (record.log, record.segment, u64::from(record.offset)) != here {
            let (segment, offset) = (record.segment, record.offset);
            return Err(format!("a record of {}, {segment}, byte {offset}, is here", record.log));
        }
        Ok((record, payload))
    }

    /// Counts a whole batch and tells of it.
    fn take(&mut self, checked: &CheckedHeader, bytes: &[u8]) -> io::Result<()> {
        let header = &checked.header;
        let whole = padded(bytes.len());
        let info = BatchInfo {
            segment: header.segment,
            offset: header.offset,
            length: header.length,
            padding: u32::try_from(whole - bytes.len()).unwrap_or(0),
            sequence: header.sequence,
            checksum: checked.checksum,
            previous: header.previous,
            records: header.records,
            is_seal: header.flags & FLAG_SEAL != 0,
        };
        (self.visit)(SegmentItem::Batch(&info))?;
        self.take_records(checked, bytes)?;
        self.check_padding(&info)?;
        let summary = &mut *self.summary;
        summary.batches += 1;
        summary.seals += u64::from(info.is_seal);
        summary.padding_bytes += u64::from(info.padding);
        summary.sealed = info.is_seal;
        summary.last_checksum = checked.checksum;
        summary.next_sequence = header.sequence.saturating_add(1);
        summary.end += whole as u64;
        Ok(())
    }

    fn take_records(&mut self, checked: &CheckedHeader, bytes: &[u8]) -> io::Result<()> {
        let header = &checked.header;
        let sequences = Some((header.sequence, header.sequence));
        let mut position = BATCH_HEADER_BYTES;
        for _ in 0..header.records {
            let (record, payload) = match self.record(checked, bytes, position) {
                Ok(found) => found,
                Err(what) => {
                    let what = format!("{what}, in a valid batch");
                    let offset = u64::from(header.offset) + position as u64;
                    self.findings.note(Severity::Damage, &self.summary.file, offset, what, sequences);
                    return Ok(());
                }
            };
            let info = record_info(&record, payload);
            self.summary.records.count(&info);
            self.summary.shards.entry(info.shard).or_default().count(&info);
            if record.kind == RecordKind::Relocated && !info.is_piece() {
                self.check_values(&info, payload, sequences);
            }
            (self.visit)(SegmentItem::Record(&info, payload))?;
            position += record_bytes(payload.len());
        }
        if position != bytes.len() {
            let offset = u64::from(header.offset) + position as u64;
            let what = "bytes behind the last record of a batch";
            self.findings.note(Severity::Damage, &self.summary.file, offset, what, sequences);
        }
        Ok(())
    }

    /// The values of a whole record of relocated ones, each against its own checksum.
    fn check_values(&mut self, info: &RecordInfo, payload: &[u8], sequences: Option<(u64, u64)>) {
        let start = u64::from(info.offset) + RECORD_HEADER_BYTES as u64;
        let mut damage = |offset: u64, what: String| {
            self.findings.note(Severity::Damage, &self.summary.file, offset, what, sequences);
        };
        let Some(items) = packed::unpack(&Bytes::copy_from_slice(payload), info.total) else {
            return damage(start, "relocated values that do not parse".to_owned());
        };
        for item in items {
            let region =
                payload.get(item.offset as usize..).and_then(|rest| rest.get(..item.length as usize));
            let (sum, value) = region.unwrap_or(&[]).split_at_checked(4).unwrap_or((&[], &[]));
            if sum != value_checksum(&item.key, value).to_le_bytes() {
                let what = format!("the value of \"{}\" fails its checksum", item.key.escape_ascii());
                damage(start + u64::from(item.offset), what);
            }
        }
    }

    fn check_padding(&mut self, info: &BatchInfo) -> io::Result<()> {
        let offset = u64::from(info.offset) + u64::from(info.length);
        let padding = self.window.get(offset, info.padding as usize)?;
        if let Some(position) = padding.iter().position(|byte| *byte != 0) {
            let what = "a byte of padding that is not zero; nothing reads it";
            self.findings.notice(&self.summary.file, offset + position as u64, what);
        }
        Ok(())
    }

    /// Looks for a later batch behind a fault. If there is one, the fault is damage, and the walk goes on there.
    fn resume(&mut self, fault: &Fault) -> io::Result<bool> {
        let summary = &*self.summary;
        let found = find_batch(&mut self.window, self.context.nonce, summary.end, |checked, position| {
            let header = &checked.header;
            let at_its_place = header.log == summary.log && u64::from(header.offset) == position;
            at_its_place && header.sequence > summary.next_sequence
        })?;
        let Some((offset, later)) = found else { return Ok(false) };
        let header = later.header;
        let sequences = Some((summary.next_sequence, header.sequence - 1));
        let what = fault.what.clone().unwrap_or_else(|| "no valid batch".to_owned());
        let what = format!("{what}, with batch {} behind it at byte {offset}", header.sequence);
        self.findings.note(Severity::Damage, &summary.file, fault.offset, what, sequences);
        if header.segment != summary.segment {
            return Ok(false);
        }
        self.summary.end = offset;
        self.summary.next_sequence = header.sequence;
        self.summary.last_checksum = header.previous;
        Ok(true)
    }
}

/// The first batch header from `from` on that `accept` takes; it is told the header and where it stands.
fn find_batch(
    window: &mut Window<'_>,
    nonce: u64,
    from: u64,
    mut accept: impl FnMut(&CheckedHeader, u64) -> bool,
) -> io::Result<Option<(u64, CheckedHeader)>> {
    let mut position = from;
    while position < window.file_length() {
        let head = window.get(position, BATCH_HEADER_BYTES)?;
        if let Some(checked) = batch::decode_header(head, nonce).filter(|checked| accept(checked, position)) {
            return Ok(Some((position, checked)));
        }
        position += u64::from(BLOCK);
    }
    Ok(None)
}

/// The batches of a file whose header is invalid, by life.
pub(super) fn strays(window: &mut Window<'_>, context: LogContext) -> io::Result<Vec<Stray>> {
    let mut strays: BTreeMap<SegmentId, Stray> = BTreeMap::new();
    find_batch(window, context.nonce, u64::from(SEGMENT_BODY), |checked, position| {
        let header = &checked.header;
        let ours = context.log.is_none_or(|log| log == header.log);
        if ours && u64::from(header.offset) == position && strays.len() < STRAYS_MAX {
            let (segment, sequence) = (header.segment, header.sequence);
            let new = Stray { segment, first: sequence, last: sequence, last_offset: position };
            let stray = strays.entry(segment).or_insert(new);
            stray.first = stray.first.min(sequence);
            if sequence >= stray.last {
                (stray.last, stray.last_offset) = (sequence, position);
            }
        }
        false
    })?;
    Ok(strays.into_values().collect())
}

/// Whether the bytes of an invalid header are those of the batch that is due, but for a few. Old bytes of a recycled
/// file name another life and a smaller number.
fn resembles(head: &[u8], summary: &SegmentSummary) -> bool {
    let field = |from: usize, to: usize| head.get(from..to).unwrap_or(&[]);
    let offset = u32::try_from(summary.end).unwrap_or(u32::MAX);
    let life = field(24, 32) == summary.segment.0.to_le_bytes();
    let sequence = field(40, 48) == summary.next_sequence.to_le_bytes();
    let others = [
        field(16, 20) == BATCH_MAGIC.to_le_bytes(),
        field(32, 36) == offset.to_le_bytes(),
        field(48, 56) == summary.last_checksum.to_le_bytes(),
    ];
    let matching = others.into_iter().chain([life, sequence]).filter(|matches| *matches).count();
    (life || sequence) && matching >= 3
}

fn invalid_header(head: &[u8], sequence: u64) -> String {
    let mut reader = Reader::new(head.get(20..).unwrap_or(&[]));
    match reader.u16() {
        Some(version) if version != FORMAT_VERSION => {
            format!("batch {sequence}: an invalid header, of format version {version}, or damaged")
        }
        Some(_) | None => format!("batch {sequence}: an invalid header"),
    }
}

/// What can be said of a record that does not decode.
fn invalid_record(front: &[u8]) -> String {
    if front.len() < RECORD_HEADER_BYTES {
        return "a record that is cut short".to_owned();
    }
    let mut reader = Reader::new(&front[12..]);
    let shard = reader.u32().unwrap_or(0);
    let index = Reader::new(&front[32..]).u64().unwrap_or(0);
    format!("an invalid record, of shard {shard} at {index} if that is not damaged too")
}

fn record_info(record: &RecordHeader, payload: &[u8]) -> RecordInfo {
    let is_hard_state = record.kind == RecordKind::HardState;
    let hard_state = is_hard_state.then(|| record::decode_hard_state(record.term, payload)).flatten();
    RecordInfo {
        name: record.kind.into(),
        entry_kind: record.entry_kind,
        shard: record.shard,
        replica: record.replica,
        term: record.term,
        index: record.index,
        length: record.length,
        piece_offset: record.piece_offset,
        total: record.total,
        offset: record.offset,
        hard_state,
    }
}
