//! The codec of batches: what one write to the log is. A header, then records, then zeros to the next block.
//!
//! Batches are numbered without gaps over the log's whole life, and each names the checksum of the one before
//! it. Old bytes of a recycled segment carry a smaller number and another segment, so they are never taken
//! for new ones.

use crate::format::{FORMAT_VERSION, Reader, checksum};
use crate::types::{LogId, SegmentId};

/// Length of a batch's header.
pub(crate) const BATCH_HEADER_BYTES: usize = 64;
/// First of a batch's magic bytes: "KBAT".
pub(crate) const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"KBAT");
/// This batch only tells that the one before it is durable.
pub(crate) const FLAG_SEAL: u32 = 1;

/// A batch's header, but for its checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchHeader {
    pub(crate) log: LogId,
    pub(crate) segment: SegmentId,
    /// Where the batch starts in its segment.
    pub(crate) offset: u32,
    /// Header and records, without the padding.
    pub(crate) length: u32,
    pub(crate) sequence: u64,
    /// The header checksum of batch `sequence - 1`.
    pub(crate) previous: u64,
    pub(crate) records: u32,
    pub(crate) flags: u32,
}

/// Fills in the header of a batch whose records are in place. Returns the header's checksum, which the next
/// batch names.
pub(crate) fn seal_header(buffer: &mut [u8], header: &BatchHeader, nonce: u64) -> u64 {
    let length = usize::try_from(header.length).expect("a batch fits into memory");
    assert!(BATCH_HEADER_BYTES <= length && length <= buffer.len());
    buffer[length..].fill(0);
    let body = checksum(nonce, &buffer[BATCH_HEADER_BYTES..length]);
    buffer[8..16].copy_from_slice(&body.to_le_bytes());
    buffer[16..20].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
    buffer[20..22].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    buffer[22..24].copy_from_slice(&header.log.0.to_le_bytes());
    buffer[24..32].copy_from_slice(&header.segment.0.to_le_bytes());
    buffer[32..36].copy_from_slice(&header.offset.to_le_bytes());
    buffer[36..40].copy_from_slice(&header.length.to_le_bytes());
    buffer[40..48].copy_from_slice(&header.sequence.to_le_bytes());
    buffer[48..56].copy_from_slice(&header.previous.to_le_bytes());
    buffer[56..60].copy_from_slice(&header.records.to_le_bytes());
    buffer[60..64].copy_from_slice(&header.flags.to_le_bytes());
    let sum = checksum(nonce, &buffer[8..BATCH_HEADER_BYTES]);
    buffer[..8].copy_from_slice(&sum.to_le_bytes());
    sum
}

/// A header that passed its checksum, and what is needed to check and follow the batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CheckedHeader {
    pub(crate) header: BatchHeader,
    pub(crate) checksum: u64,
    pub(crate) body_checksum: u64,
}

/// Reads a header. None unless the bytes are a header of this format with a right checksum.
pub(crate) fn decode_header(bytes: &[u8], nonce: u64) -> Option<CheckedHeader> {
    let mut reader = Reader::new(bytes);
    let sum = reader.u64()?;
    let body_checksum = reader.u64()?;
    let (magic, version) = (reader.u32()?, reader.u16()?);
    // Most blocks are no headers: ask the cheap question first.
    if magic != BATCH_MAGIC || checksum(nonce, bytes.get(8..BATCH_HEADER_BYTES)?) != sum {
        return None;
    }
    let header = BatchHeader {
        log: LogId(reader.u16()?),
        segment: SegmentId(reader.u64()?),
        offset: reader.u32()?,
        length: reader.u32()?,
        sequence: reader.u64()?,
        previous: reader.u64()?,
        records: reader.u32()?,
        flags: reader.u32()?,
    };
    let valid = version == FORMAT_VERSION
        && usize::try_from(header.length).is_ok_and(|length| length >= BATCH_HEADER_BYTES);
    valid.then_some(CheckedHeader { header, checksum: sum, body_checksum })
}

/// Whether `body` (the batch without its header and padding) is what the header was written with.
pub(crate) fn body_matches(checked: &CheckedHeader, body: &[u8], nonce: u64) -> bool {
    checksum(nonce, body) == checked.body_checksum
}
