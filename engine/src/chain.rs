//! Following the chain of batches over a log's segments, at start; also over what is missing in it.
//!
//! One batch is in flight at a time, so only the last can be torn. An invalid batch with nothing valid behind it,
//! here or in a later segment, was never acknowledged, and the chain ends before it. Anything else that is missing is
//! a *gap*: an invalid batch with a valid one behind it, a segment without its file, or an end that comes before what
//! the manifest knows to have been durable. The walk tells of it and goes on behind it.
//!
//! ```text
//!   segment 4  │h│ 17 │ 18 │ ?? │ 21 │    segment 5 has no file    segment 6  │h│ 30 │ 31 │ torn
//!                            └ gap 19..20  └ gap 22..29                        end: 32 ┘
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use krita_runtime::{File, Runtime};

use crate::batch::{self, BATCH_HEADER_BYTES, CheckedHeader};
use crate::error::{Corruption, OpenError};
use crate::format::{BLOCK, length_u32, padded};
use crate::record::{self, RecordHeader, record_bytes};
use crate::segment::{SEGMENT_BODY, SegmentFile, SegmentHeader, Segments};
use crate::types::{LogId, SegmentId};

/// Bytes that are read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// Batches that are missing or damaged.
#[derive(Clone, Debug)]
pub(crate) struct Gap {
    pub(crate) first: u64,
    /// The last of them; `u64::MAX` if all that follow are.
    pub(crate) last: u64,
    pub(crate) corruption: Corruption,
}

/// Where the chain of batches has come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    /// The next batch's number, and the checksum it must name.
    pub(crate) sequence: u64,
    pub(crate) previous: u64,
}

/// A segment file and the life that it holds.
pub(crate) struct UsedSegment<R: Runtime> {
    pub(crate) file: SegmentFile<R>,
    /// None: it is invalid, and the life is known from the batches.
    pub(crate) header: Option<SegmentHeader>,
    /// How much of the file is there.
    pub(crate) length: u64,
}

/// A batch's records.
type Records<'b> = Vec<(RecordHeader, &'b [u8])>;

/// What the walk meets.
pub(crate) enum Met<'a> {
    /// A whole batch with its records; each with where it starts in the batch.
    Batch(&'a CheckedHeader, &'a [(RecordHeader, &'a [u8])]),
    Gap(&'a Gap),
}

/// What is known of a log beside its segments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// The first segment to read.
    pub(crate) oldest: SegmentId,
    /// At least these were put to use, and written durably.
    pub(crate) newest: SegmentId,
    pub(crate) sequence: u64,
}

/// How the walk ended.
pub(crate) struct End {
    /// Segment 0: there is no segment at all.
    pub(crate) chain: Chain,
    /// The end of the log is lost, not only its middle.
    pub(crate) open: bool,
    /// No batch with a higher number was seen or is known of.
    pub(crate) sequence_max: u64,
}

/// Who walks over which log.
pub(crate) struct Walker<'a, R: Runtime> {
    pub(crate) runtime: &'a R,
    pub(crate) directory: &'a Path,
    pub(crate) log: LogId,
    pub(crate) nonce: u64,
    pub(crate) segment_bytes: u32,
}

/// A later batch of a damaged segment.
#[derive(Default)]
struct Later {
    /// The first whole one: where, and its header.
    whole: Option<(u32, CheckedHeader)>,
    /// The highest number in any header that is at its place.
    sequence_max: u64,
}

/// Reads a segment through a window.
struct Window<R: Runtime> {
    file: SegmentFile<R>,
    path: PathBuf,
    bytes: Bytes,
    start: usize,
}

impl<R: Runtime> Window<R> {
    /// `length` bytes at `offset`, fewer at the end of the file. Blocks that the device cannot read come as zeros.
    async fn get(&mut self, offset: usize, length: usize) -> Result<Bytes, OpenError> {
        if offset < self.start || offset + length > self.start + self.bytes.len() {
            let want = length.max(WINDOW_BYTES);
            self.bytes = match self.file.file.read_at(offset as u64, want).await {
                Ok(bytes) => bytes,
                Err(_) => self.get_blocks(offset, want).await?,
            };
            self.start = offset;
        }
        let from = offset - self.start;
        Ok(self.bytes.slice(from..(from + length).min(self.bytes.len())))
    }

    async fn get_blocks(&self, offset: usize, length: usize) -> Result<Bytes, OpenError> {
        let file = &self.file.file;
        let end = file.length().await.map_err(|error| OpenError::io(&self.path, error))?;
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(offset + length);
        let mut all = Vec::new();
        for position in (offset..end).step_by(BLOCK as usize) {
            let want = (end - position).min(BLOCK as usize);
            match file.read_at(position as u64, want).await {
                Ok(bytes) => all.extend_from_slice(&bytes),
                Err(error) => {
                    tracing::error!(path = %self.path.display(), position, %error, "an unreadable block");
                    all.resize(all.len() + want, 0);
                }
            }
        }
        Ok(all.into())
    }
}

impl<R: Runtime> Walker<'_, R> {
    pub(crate) fn path(&self, number: u32) -> PathBuf {
        Segments::<R>::path(self.directory, number)
    }

    fn window(&self, file: &SegmentFile<R>) -> Window<R> {
        Window { file: file.clone(), path: self.path(file.number), bytes: Bytes::new(), start: 0 }
    }

    /// Walks from the first segment that is needed to the end of the log.
    pub(crate) async fn walk(
        &self,
        segments: &BTreeMap<SegmentId, UsedSegment<R>>,
        expected: Expected,
        visit: &mut dyn FnMut(Met<'_>),
    ) -> Result<End, OpenError> {
        let nothing = Chain { segment: SegmentId(0), offset: 0, sequence: 1, previous: 0 };
        let mut chain: Option<Chain> = None;
        let mut sequence_max = expected.sequence;
        let mut is_cut = false;
        for (id, segment) in segments.range(expected.oldest..) {
            let Some(mut next) = self.enter(chain, *id, segment, expected.oldest, visit) else { continue };
            let after = segments.range(SegmentId(id.0 + 1)..).find_map(|(_, segment)| segment.header);
            let seen = self.walk_segment(&segment.file, &mut next, after, visit).await?;
            sequence_max = sequence_max.max(seen);
            // What was cut off from the newest segment may have held batches, unless the chain ended before.
            is_cut = segment.length < u64::from(self.segment_bytes)
                && (seen >= next.sequence || u64::from(next.offset + BLOCK) > segment.length);
            chain = Some(next);
        }
        let chain = chain.unwrap_or(nothing);
        // The batch right at the end may be torn with its header whole; none behind it may be there.
        let open = is_cut
            || sequence_max > chain.sequence
            || expected.sequence >= chain.sequence
            || expected.newest > chain.segment;
        if open {
            let what =
                format!("the log ends before batch {}, with {} the newest", sequence_max, expected.newest);
            let corruption = self.damaged(
                segments.get(&chain.segment),
                chain.offset,
                what,
                (chain.sequence, sequence_max),
            );
            visit(Met::Gap(&Gap { first: chain.sequence, last: u64::MAX, corruption }));
        }
        Ok(End { chain, open, sequence_max: sequence_max.max(chain.sequence - 1) })
    }

    fn damaged(
        &self,
        segment: Option<&UsedSegment<R>>,
        offset: u32,
        what: String,
        sequences: (u64, u64),
    ) -> Corruption {
        let file = segment.map_or(self.directory.to_owned(), |segment| self.path(segment.file.number));
        Corruption { file, offset: u64::from(offset), what, sequences: Some(sequences) }
    }

    /// Where the chain goes on in a segment; none if it does not belong to it.
    fn enter(
        &self,
        chain: Option<Chain>,
        id: SegmentId,
        segment: &UsedSegment<R>,
        oldest: SegmentId,
        visit: &mut dyn FnMut(Met<'_>),
    ) -> Option<Chain> {
        let start =
            |sequence, previous| Some(Chain { segment: id, offset: SEGMENT_BODY, sequence, previous });
        let (sequence, previous) = chain.map_or((0, 0), |chain| (chain.sequence, chain.previous));
        let Some(header) = segment.header else {
            // Its first batch follows, or the walk finds the gap.
            return start(sequence, previous);
        };
        let follows = (sequence, previous) == (header.first_sequence, header.previous);
        if follows || (chain.is_none() && id == oldest) {
            return start(header.first_sequence, header.previous);
        }
        let last = header.first_sequence.saturating_sub(1).max(sequence);
        let what = match chain {
            Some(chain) => format!("behind {} batches are missing before {id}", chain.segment),
            None => format!("no file holds {oldest}"),
        };
        let corruption = self.damaged(Some(segment), 0, what, (sequence, last));
        visit(Met::Gap(&Gap { first: sequence, last, corruption }));
        (header.first_sequence >= sequence).then(|| start(header.first_sequence, header.previous)).flatten()
    }

    /// Walks to the end of a segment, over gaps. `after` is the header of the next one: where it is reached nothing is
    /// missing here. Gives the highest number seen in a batch that was not reached.
    async fn walk_segment(
        &self,
        file: &SegmentFile<R>,
        chain: &mut Chain,
        after: Option<SegmentHeader>,
        visit: &mut dyn FnMut(Met<'_>),
    ) -> Result<u64, OpenError> {
        let mut window = self.window(file);
        loop {
            while let Some((checked, batch)) = self.next_batch(&mut window, chain).await? {
                match self.records(&checked, &batch) {
                    Ok(records) => visit(Met::Batch(&checked, &records)),
                    Err((position, what)) => {
                        let sequence = chain.sequence;
                        let offset = u64::from(chain.offset) + position as u64;
                        let sequences = Some((sequence, sequence));
                        let corruption = Corruption { file: window.path.clone(), offset, what, sequences };
                        visit(Met::Gap(&Gap { first: sequence, last: sequence, corruption }));
                    }
                }
                chain.offset += length_u32(padded(batch.len()));
                chain.sequence += 1;
                chain.previous = checked.checksum;
                self.runtime.pause().await;
            }
            if after.is_some_and(|after| {
                (after.first_sequence, after.previous) == (chain.sequence, chain.previous)
            }) {
                return Ok(0);
            }
            let later = self.later(&mut window, chain).await?;
            let Some((offset, checked)) = later.whole else { return Ok(later.sequence_max) };
            let (first, last) =
                (chain.sequence, checked.header.sequence.saturating_sub(1).max(chain.sequence));
            let what =
                format!("invalid bytes, with batch {} behind them at byte {offset}", checked.header.sequence);
            let at = u64::from(chain.offset);
            let corruption =
                Corruption { file: window.path.clone(), offset: at, what, sequences: Some((first, last)) };
            visit(Met::Gap(&Gap { first, last, corruption }));
            let (sequence, previous) = (checked.header.sequence, checked.header.previous);
            *chain = Chain { offset, sequence, previous, ..*chain };
        }
    }

    /// The batch at the end of the chain, if it is there and whole.
    async fn next_batch(
        &self,
        window: &mut Window<R>,
        chain: &Chain,
    ) -> Result<Option<(CheckedHeader, Bytes)>, OpenError> {
        let batch = self.whole_batch(window, chain.segment, chain.offset).await?;
        Ok(batch.filter(|(checked, _)| {
            (checked.header.sequence, checked.header.previous) == (chain.sequence, chain.previous)
        }))
    }

    /// The batch of this life at this place, if it is there and whole.
    async fn whole_batch(
        &self,
        window: &mut Window<R>,
        segment: SegmentId,
        offset: u32,
    ) -> Result<Option<(CheckedHeader, Bytes)>, OpenError> {
        if offset >= self.segment_bytes {
            return Ok(None);
        }
        let head = window.get(offset as usize, BATCH_HEADER_BYTES).await?;
        let Some(checked) = self.header_at(&head, offset) else { return Ok(None) };
        let header = checked.header;
        let end = u64::from(header.offset) + u64::from(header.length);
        if header.segment != segment || end > u64::from(self.segment_bytes) {
            return Ok(None);
        }
        let bytes = window.get(offset as usize, header.length as usize).await?;
        let whole = bytes.len() == header.length as usize
            && batch::body_matches(&checked, &bytes[BATCH_HEADER_BYTES..], self.nonce);
        Ok(whole.then_some((checked, bytes)))
    }

    fn header_at(&self, head: &[u8], offset: u32) -> Option<CheckedHeader> {
        let checked = batch::decode_header(head, self.nonce)?;
        (checked.header.log == self.log && checked.header.offset == offset).then_some(checked)
    }

    /// A batch's records, each proven to be this batch's; or where it is damaged, and how.
    fn records<'b>(&self, checked: &CheckedHeader, batch: &'b [u8]) -> Result<Records<'b>, (usize, String)> {
        let header = &checked.header;
        let mut position = BATCH_HEADER_BYTES;
        let mut records = Vec::new();
        let damaged = |position: usize, what: &str| (position, what.to_owned());
        for _ in 0..header.records {
            let decoded = batch.get(position..).and_then(|bytes| record::decode(bytes, self.nonce));
            let (record, payload) =
                decoded.ok_or_else(|| damaged(position, "an invalid record in a valid batch"))?;
            let here = (header.log, header.segment, header.offset as usize + position);
            if (record.log, record.segment, record.offset as usize) != here {
                return Err(damaged(position, "a record of another place"));
            }
            position += record_bytes(payload.len());
            records.push((record, payload));
        }
        if position == batch.len() {
            Ok(records)
        } else {
            Err(damaged(position, "bytes behind the last record"))
        }
    }

    /// What is behind the end of the chain in its segment.
    async fn later(&self, window: &mut Window<R>, chain: &Chain) -> Result<Later, OpenError> {
        let mut later = Later::default();
        for offset in (chain.offset..self.segment_bytes).step_by(BLOCK as usize) {
            let head = window.get(offset as usize, BATCH_HEADER_BYTES).await?;
            if (offset as usize).is_multiple_of(WINDOW_BYTES) {
                self.runtime.pause().await;
            }
            let Some(checked) = self.header_at(&head, offset) else { continue };
            if checked.header.sequence < chain.sequence {
                continue;
            }
            later.sequence_max = later.sequence_max.max(checked.header.sequence);
            if let Some((checked, _)) = self.whole_batch(window, chain.segment, offset).await? {
                later.whole = Some((offset, checked));
                break;
            }
        }
        Ok(later)
    }

    /// The life of a file whose header is invalid, as its batches tell it: the newest that any of them names. Also the
    /// header, if the first batch is whole.
    pub(crate) async fn identify(
        &self,
        file: &SegmentFile<R>,
    ) -> Result<Option<(SegmentId, Option<SegmentHeader>)>, OpenError> {
        let mut window = self.window(file);
        let mut newest: Option<SegmentId> = None;
        for offset in (SEGMENT_BODY..self.segment_bytes).step_by(BLOCK as usize) {
            let head = window.get(offset as usize, BATCH_HEADER_BYTES).await?;
            if (offset as usize).is_multiple_of(WINDOW_BYTES) {
                self.runtime.pause().await;
            }
            if head.len() < BATCH_HEADER_BYTES {
                break;
            }
            newest = newest.max(self.header_at(&head, offset).map(|checked| checked.header.segment));
        }
        let Some(segment) = newest else { return Ok(None) };
        let first = self.whole_batch(&mut window, segment, SEGMENT_BODY).await?;
        let header = first.map(|(checked, _)| SegmentHeader {
            log: self.log,
            file: file.number,
            segment,
            first_sequence: checked.header.sequence,
            previous: checked.header.previous,
        });
        Ok(Some((segment, header)))
    }
}
