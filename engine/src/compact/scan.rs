//! Reading a sealed segment batch by batch, to see whose values were written there.

use bytes::{Bytes, BytesMut};
use krita_runtime::{File, Runtime};

use crate::batch::{self, BATCH_HEADER_BYTES};
use crate::format::{BLOCK, padded};
use crate::inner::Inner;
use crate::record::{self, RECORD_HEADER_BYTES, RecordHeader, record_bytes};
use crate::segment::{SEGMENT_BODY, SegmentFile, SegmentHeader};
use crate::types::{PAYLOAD_BYTES_MAX, SegmentId};

/// Bytes of one read.
const WINDOW_BYTES: u32 = 1 << 20;

/// A walk over the batches of one life.
pub(super) struct SegmentScan<R: Runtime> {
    file: SegmentFile<R>,
    segment: SegmentId,
    nonce: u64,
    /// Where the next batch starts, and its number.
    position: u32,
    sequence: u64,
    end: u32,
    window: Bytes,
    window_start: u32,
}

/// What comes next in a segment.
pub(super) enum Step {
    /// A batch's records, each checked.
    Records(Vec<(RecordHeader, Bytes)>),
    /// No further batch follows; this would have been its number. It may be missing because of damage.
    End(u64),
}

/// The header of a life, if it can be read and is that of this life.
pub(super) async fn header<R: Runtime>(
    inner: &Inner<R>,
    file: &SegmentFile<R>,
    segment: SegmentId,
) -> Option<SegmentHeader> {
    let block = file.file.read_at(0, BLOCK as usize).await.ok()?;
    SegmentHeader::decode(&block, inner.nonce()).filter(|header| header.segment == segment)
}

impl<R: Runtime> SegmentScan<R> {
    /// None if the segment's header is damaged.
    pub(super) async fn open(inner: &Inner<R>, segment: SegmentId) -> Option<Self> {
        let file = inner.segments.borrow().used.get(&segment).cloned()?;
        let header = header(inner, &file, segment).await?;
        Some(Self {
            file,
            segment,
            nonce: inner.nonce(),
            position: SEGMENT_BODY,
            sequence: header.first_sequence,
            end: inner.segment_bytes(),
            window: Bytes::new(),
            window_start: 0,
        })
    }

    /// Bytes of the segment from `position` on, at least `length` of them if there are so many.
    async fn bytes(&mut self, length: u32) -> Option<Bytes> {
        let length = length.min(self.end - self.position);
        let in_window = self.position.checked_sub(self.window_start).map(|skip| skip as usize);
        if let Some(skip) = in_window
            && skip + length as usize <= self.window.len()
        {
            return Some(self.window.slice(skip..));
        }
        let want = length.max(WINDOW_BYTES).min(self.end - self.position);
        self.window = self.file.file.read_at(u64::from(self.position), want as usize).await.ok()?;
        self.window_start = self.position;
        (self.window.len() >= length as usize).then(|| self.window.clone())
    }

    pub(super) async fn next(&mut self) -> Step {
        let batch = self.batch().await;
        batch.map_or(Step::End(self.sequence), Step::Records)
    }

    async fn batch(&mut self) -> Option<Vec<(RecordHeader, Bytes)>> {
        if self.end - self.position < BLOCK {
            return None;
        }
        let front = self.bytes(BLOCK).await?;
        let checked = batch::decode_header(&front, self.nonce)?;
        let header = checked.header;
        let here = (header.segment, header.offset, header.sequence);
        if here != (self.segment, self.position, self.sequence) || header.length > self.end - self.position {
            return None;
        }
        let length = header.length as usize;
        let batch = self.bytes(header.length).await?.slice(..length);
        if !batch::body_matches(&checked, &batch[BATCH_HEADER_BYTES..], self.nonce) {
            return None;
        }
        let mut records = Vec::new();
        let mut at = BATCH_HEADER_BYTES;
        for _ in 0..header.records {
            let (found, payload) = record::decode(batch.get(at..)?, self.nonce)?;
            let payload = at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + payload.len();
            let place = (self.segment, self.position as usize + at);
            if (found.segment, found.offset as usize) != place {
                return None;
            }
            at += record_bytes(payload.len());
            records.push((found, batch.slice(payload)));
        }
        self.position += u32::try_from(padded(length)).ok()?;
        self.sequence += 1;
        Some(records)
    }
}

/// A payload that comes in pieces, as far as its pieces lie in this segment.
#[derive(Default)]
pub(super) struct Assembly {
    begun: Option<(RecordHeader, BytesMut)>,
}

/// What a piece completes.
pub(super) enum Assembled {
    /// This payload, whole.
    Whole(Bytes),
    /// Nothing yet.
    More,
    /// Earlier pieces lie elsewhere.
    Headless,
}

impl Assembly {
    /// Takes the next piece, or a whole payload.
    pub(super) fn add(&mut self, header: &RecordHeader, piece: &Bytes) -> Assembled {
        if header.length == header.total {
            return Assembled::Whole(piece.clone());
        }
        if header.piece_offset == 0 {
            // One that is still begun was given up by a crash: nothing leads to it.
            self.begun = Some((*header, BytesMut::from(&piece[..])));
            return Assembled::More;
        }
        let follows = |(begun, bytes): &(RecordHeader, BytesMut)| {
            let one = (begun.kind, begun.shard, begun.replica, begun.term, begun.index, begun.total);
            let other = (header.kind, header.shard, header.replica, header.term, header.index, header.total);
            one == other && bytes.len() == header.piece_offset as usize && bytes.len() <= PAYLOAD_BYTES_MAX
        };
        let Some((begun, mut bytes)) = self.begun.take_if(|begun| follows(begun)) else {
            return Assembled::Headless;
        };
        bytes.extend_from_slice(piece);
        if bytes.len() == header.total as usize {
            return Assembled::Whole(bytes.freeze());
        }
        self.begun = Some((begun, bytes));
        Assembled::More
    }

    /// The payload whose last pieces lie elsewhere.
    pub(super) fn unfinished(&self) -> Option<&RecordHeader> {
        self.begun.as_ref().map(|(header, _)| header)
    }
}
