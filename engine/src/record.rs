//! The codec of records, the units inside a batch. Every record names its own place, shard, replica, term and
//! index and checks them together with its payload, so that it can be read and trusted alone.

use crate::format::{Reader, checksum, length_u32};
use crate::types::{HardState, Index, LogId, ReplicaId, SegmentId, ShardId, Term};

/// Length of a record's header.
pub(crate) const RECORD_HEADER_BYTES: usize = 64;
/// Length of a hard state's payload.
pub(crate) const HARD_STATE_BYTES: usize = 24;
/// Records start at multiples of this.
pub(crate) const RECORD_ALIGNMENT: usize = 8;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecordKind {
    /// An entry, or a piece of one.
    Entry,
    /// Entries behind `index` are gone.
    Truncate,
    /// Term, vote and commit.
    HardState,
    /// Values that were moved or came with a snapshot: only slots lead to them. See `packed`.
    Relocated,
}

impl RecordKind {
    pub(crate) const ALL: [Self; 4] = [Self::Entry, Self::Truncate, Self::HardState, Self::Relocated];

    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Truncate => 2,
            Self::HardState => 3,
            Self::Relocated => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// A record's header without its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    /// Raft's kind of entry; 0 in other records.
    pub(crate) entry_kind: u8,
    pub(crate) log: LogId,
    pub(crate) shard: ShardId,
    pub(crate) replica: ReplicaId,
    pub(crate) term: Term,
    /// The entry's index, the truncation's last surviving index; 0 in other records.
    pub(crate) index: Index,
    /// Bytes of payload in this record.
    pub(crate) length: u32,
    /// Where in the whole payload this piece starts.
    pub(crate) piece_offset: u32,
    /// Length of the whole payload; `piece_offset + length <= total`.
    pub(crate) total: u32,
    /// Where this header starts in its segment.
    pub(crate) offset: u32,
    pub(crate) segment: SegmentId,
}

/// Bytes that a record with this payload takes.
pub(crate) const fn record_bytes(payload: usize) -> usize {
    (RECORD_HEADER_BYTES + payload).next_multiple_of(RECORD_ALIGNMENT)
}

/// Writes a record to the front of `out`, which is exactly [`record_bytes`] long.
pub(crate) fn encode(out: &mut [u8], header: &RecordHeader, payload: &[u8], nonce: u64) {
    assert_eq!(length_u32(payload.len()), header.length, "a record's header tells its length");
    assert_eq!(out.len(), record_bytes(payload.len()));
    out[8] = header.kind.code();
    out[9] = header.entry_kind;
    out[10..12].copy_from_slice(&header.log.0.to_le_bytes());
    out[12..16].copy_from_slice(&header.shard.0.to_le_bytes());
    out[16..24].copy_from_slice(&header.replica.0.to_le_bytes());
    out[24..32].copy_from_slice(&header.term.0.to_le_bytes());
    out[32..40].copy_from_slice(&header.index.0.to_le_bytes());
    out[40..44].copy_from_slice(&header.length.to_le_bytes());
    out[44..48].copy_from_slice(&header.piece_offset.to_le_bytes());
    out[48..52].copy_from_slice(&header.total.to_le_bytes());
    out[52..56].copy_from_slice(&header.offset.to_le_bytes());
    out[56..64].copy_from_slice(&header.segment.0.to_le_bytes());
    let end = RECORD_HEADER_BYTES + payload.len();
    out[RECORD_HEADER_BYTES..end].copy_from_slice(payload);
    out[end..].fill(0);
    let sum = checksum(nonce, &out[8..end]);
    out[..8].copy_from_slice(&sum.to_le_bytes());
}

/// Reads the record at the front of `bytes`. None if it is not whole or fails its checksum; whether it is
/// the record that was looked for is the caller's question.
pub(crate) fn decode(bytes: &[u8], nonce: u64) -> Option<(RecordHeader, &[u8])> {
    let mut reader = Reader::new(bytes);
    let sum = reader.u64()?;
    let kind = reader.u8()?;
    let entry_kind = reader.u8()?;
    let log = LogId(reader.u16()?);
    let shard = ShardId(reader.u32()?);
    let replica = ReplicaId(reader.u64()?);
    let term = Term(reader.u64()?);
    let index = Index(reader.u64()?);
    let (length, piece_offset, total) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let offset = reader.u32()?;
    let segment = SegmentId(reader.u64()?);
    let payload = reader.take(usize::try_from(length).ok()?)?;
    let covered = bytes.get(8..RECORD_HEADER_BYTES + payload.len())?;
    if checksum(nonce, covered) != sum || piece_offset.checked_add(length)? > total {
        return None;
    }
    let kind = RecordKind::from_code(kind)?;
    let header = RecordHeader {
        kind,
        entry_kind,
        log,
        shard,
        replica,
        term,
        index,
        length,
        piece_offset,
        total,
        offset,
        segment,
    };
    Some((header, payload))
}

/// The payload of a hard-state record: whether there is a vote, the vote, the commit index. The term stands
/// in the header.
pub(crate) fn encode_hard_state(state: &HardState) -> [u8; HARD_STATE_BYTES] {
    let mut out = [0; HARD_STATE_BYTES];
    out[0] = u8::from(state.vote.is_some());
    out[8..16].copy_from_slice(&state.vote.unwrap_or(0).to_le_bytes());
    out[16..24].copy_from_slice(&state.commit.0.to_le_bytes());
    out
}

/// The opposite of [`encode_hard_state`].
pub(crate) fn decode_hard_state(term: Term, payload: &[u8]) -> Option<HardState> {
    let mut reader = Reader::new(payload);
    let voted = reader.take(8)?.first() == Some(&1);
    let vote = reader.u64()?;
    let commit = Index(reader.u64()?);
    reader.is_empty().then_some(HardState { term, vote: voted.then_some(vote), commit })
}
