//! The header in front of every block of a run, and the checks behind it.
//!
//! ```text
//!   0 checksum   8 magic   12 version   14 log   16 shard   20 kind   24 number   32 position   40 length   44 count
//!   48 payload, then zeros to the next 4096
//! ```
//!
//! The checksum covers everything behind it, the zeros too. Its seed is the file's own: made of the log's nonce
//! and of a random *salt* that the writer drew, so that a block which an earlier attempt at a file of this name
//! left in this place does not pass. Only the footer, which holds the salt, has the log's nonce as its seed.

use krita_runtime::BLOCK_SIZE;

use super::RunIdentity;
use crate::format::{FORMAT_VERSION, Reader, checksum, length_u32, padded};
use crate::types::{LogId, ShardId};

/// Length of a block's header.
pub(crate) const RUN_HEADER_BYTES: usize = 48;
/// "KRUN".
pub(crate) const RUN_MAGIC: u32 = u32::from_le_bytes(*b"KRUN");
/// Longest payload of a block behind the data: the parts of a run that are read whole are cut at it.
pub(super) const PART_BYTES: usize = (64 << 10) - RUN_HEADER_BYTES;

/// What a block holds. The kinds stand in a file in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum BlockKind {
    /// Items.
    Data,
    /// The items with several extents once more.
    Large,
    /// Bytes in each life.
    Segments,
    /// The filter's bits.
    Filter,
    /// Where the data blocks start, by key.
    Index,
    /// What the file consists of; the last block.
    Footer,
}

impl BlockKind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Data, Self::Large, Self::Segments, Self::Filter, Self::Index, Self::Footer];

    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Data => 1,
            Self::Large => 2,
            Self::Segments => 3,
            Self::Filter => 4,
            Self::Index => 5,
            Self::Footer => 6,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// The seed of all blocks but the footer.
pub(super) fn content_seed(nonce: u64, salt: u64) -> u64 {
    checksum(nonce, &salt.to_le_bytes())
}

/// The next value of the fold that ends as the root.
pub(super) fn fold(root: u64, sum: u64) -> u64 {
    checksum(root, &sum.to_le_bytes())
}

/// Appends a block to `out`, which starts at `base` in the file. Returns its checksum.
pub(super) fn seal(
    out: &mut Vec<u8>,
    base: u64,
    identity: &RunIdentity,
    seed: u64,
    content: &Envelope<'_>,
) -> u64 {
    let start = out.len();
    let position = base + start as u64;
    let end = start + padded(RUN_HEADER_BYTES + content.payload.len());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&RUN_MAGIC.to_le_bytes());
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&identity.log.0.to_le_bytes());
    out.extend_from_slice(&identity.shard.0.to_le_bytes());
    out.extend_from_slice(&content.kind.code().to_le_bytes());
    out.extend_from_slice(&identity.number.to_le_bytes());
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&length_u32(content.payload.len()).to_le_bytes());
    out.extend_from_slice(&content.count.to_le_bytes());
    debug_assert_eq!(out.len() - start, RUN_HEADER_BYTES);
    out.extend_from_slice(content.payload);
    out.resize(end, 0);
    let sum = checksum(seed, &out[start + 8..end]);
    out[start..start + 8].copy_from_slice(&sum.to_le_bytes());
    sum
}

/// What a block holds.
pub(super) struct Envelope<'a> {
    pub(super) kind: BlockKind,
    /// Items in a block of items, else 0.
    pub(super) count: u32,
    pub(super) payload: &'a [u8],
}

/// A block found whole and in its place.
pub(super) struct Checked<'a> {
    pub(super) content: Envelope<'a>,
    pub(super) sum: u64,
    /// All of it: header, payload and zeros.
    pub(super) bytes: &'a [u8],
}

/// The length in the file that a block's header claims, which needs no more than the header.
pub(super) fn claimed_bytes(bytes: &[u8]) -> Option<usize> {
    let length = Reader::new(bytes.get(40..44)?).u32()?;
    Some(padded(RUN_HEADER_BYTES + usize::try_from(length).ok()?))
}

/// The block that starts at `position` in the file and at the front of `bytes`, if all of it is there, is this
/// run's and is undamaged.
pub(super) fn check<'a>(
    bytes: &'a [u8],
    position: u64,
    identity: &RunIdentity,
    seed: u64,
) -> Option<Checked<'a>> {
    let length = claimed_bytes(bytes)?;
    let bytes = bytes.get(..length)?;
    let mut reader = Reader::new(bytes);
    let sum = reader.u64()?;
    let magic = reader.u32()?;
    let (version, log) = (reader.u16()?, LogId(reader.u16()?));
    let shard = ShardId(reader.u32()?);
    let kind = reader.u32()?;
    let (number, stands_at) = (reader.u64()?, reader.u64()?);
    let (payload, count) = (reader.u32()?, reader.u32()?);
    let payload = reader.take(usize::try_from(payload).ok()?)?;
    let mine = magic == RUN_MAGIC
        && version == FORMAT_VERSION
        && (log, shard, number) == (identity.log, identity.shard, identity.number)
        && stands_at == position
        && checksum(seed, &bytes[8..]) == sum;
    let kind = BlockKind::from_code(kind).filter(|_| mine)?;
    Some(Checked { content: Envelope { kind, count, payload }, sum, bytes })
}

/// Items and payload of a block that was checked when it was read.
pub(super) fn reopen(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut reader = Reader::new(bytes.get(40..)?);
    let (length, count) = (reader.u32()?, reader.u32()?);
    Some((count, reader.take(usize::try_from(length).ok()?)?))
}

const _: () = assert!((PART_BYTES + RUN_HEADER_BYTES).is_multiple_of(BLOCK_SIZE));
