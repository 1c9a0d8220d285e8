//! The last block of a run: what the file consists of.

use krita_runtime::BLOCK_SIZE;

use super::envelope::BlockKind;
use crate::format::Reader;

/// Length of the footer's payload.
pub(crate) const FOOTER_BYTES: usize = 72;

/// Lengths are those of whole blocks. The parts follow each other in this order, from byte 0, without gaps; the
/// footer is one block behind them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Footer {
    /// What the checksums of all other blocks are seeded with, besides the nonce.
    pub(super) salt: u64,
    /// The fold over the data blocks' checksums: the others' are folded onto it.
    pub(super) data_root: u64,
    pub(super) items: u64,
    pub(super) tombstones: u64,
    pub(super) data_bytes: u64,
    pub(super) large_bytes: u64,
    pub(super) segments_bytes: u64,
    pub(super) filter_bytes: u64,
    pub(super) index_bytes: u64,
}

impl Footer {
    fn fields(&self) -> [u64; FOOTER_BYTES / 8] {
        [
            self.salt,
            self.data_root,
            self.items,
            self.tombstones,
            self.data_bytes,
            self.large_bytes,
            self.segments_bytes,
            self.filter_bytes,
            self.index_bytes,
        ]
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.fields().into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// The footer of a file of `length` bytes, if its parts fill it.
    pub(super) fn decode(bytes: &[u8], length: u64) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let footer = Self {
            salt: reader.u64()?,
            data_root: reader.u64()?,
            items: reader.u64()?,
            tombstones: reader.u64()?,
            data_bytes: reader.u64()?,
            large_bytes: reader.u64()?,
            segments_bytes: reader.u64()?,
            filter_bytes: reader.u64()?,
            index_bytes: reader.u64()?,
        };
        let parts = [
            footer.data_bytes,
            footer.large_bytes,
            footer.segments_bytes,
            footer.filter_bytes,
            footer.index_bytes,
            BLOCK_SIZE as u64,
        ];
        let sum = parts.into_iter().try_fold(0, u64::checked_add)?;
        let whole = parts.into_iter().all(|part| part.is_multiple_of(BLOCK_SIZE as u64));
        (reader.is_empty() && whole && sum == length && footer.tombstones <= footer.items).then_some(footer)
    }

    /// Where the part behind the data begins.
    pub(super) fn large_start(&self) -> u64 {
        self.data_bytes
    }

    /// Where the items with several extents end.
    pub(super) fn large_end(&self) -> u64 {
        self.data_bytes + self.large_bytes
    }

    /// Where the index, the last part before the footer, ends.
    pub(super) fn index_end(&self) -> u64 {
        self.filter_end() + self.index_bytes
    }

    fn filter_end(&self) -> u64 {
        self.large_end() + self.segments_bytes + self.filter_bytes
    }

    /// What kind of block may start here.
    pub(super) fn kind_at(&self, position: u64) -> BlockKind {
        let ends = [
            (self.data_bytes, BlockKind::Data),
            (self.large_end(), BlockKind::Large),
            (self.large_end() + self.segments_bytes, BlockKind::Segments),
            (self.filter_end(), BlockKind::Filter),
            (self.index_end(), BlockKind::Index),
        ];
        ends.into_iter().find(|(end, _)| position < *end).map_or(BlockKind::Footer, |(_, kind)| kind)
    }
}
