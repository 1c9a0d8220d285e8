//! The block index of a run: which block holds a key, in as little memory as it takes.
//!
//! Between the last key of one block and the first of the next the shortest key that separates them is kept: a
//! prefix of the latter. Neighbouring separators begin alike, so in memory they lie in groups behind what all of
//! a group begin with, all in one buffer:
//!
//! ```text
//!   bytes    │ user/00 │ 01 │ 0173 │ 02 │ …  │ user/1 │ 1 │ 2 │ …
//!              prefix    separators of group 0
//! ```
//!
//! On disk: the last key of the run, the number of blocks, and for each its length in units of 4 KiB and its
//! separator, which says how much it shares with the one before; lengths and numbers as unsigned LEB128.

use std::cmp::Ordering;

use krita_runtime::BLOCK_SIZE;

use super::block::{Varints, put_varint, shared_prefix};
use crate::types::KEY_BYTES_MAX;

/// Separators in a group.
const GROUP: usize = 32;

/// Collects the index while a run is written.
#[derive(Default)]
pub(super) struct BlocksBuilder {
    encoded: Vec<u8>,
    count: u32,
    separator: Vec<u8>,
}

impl BlocksBuilder {
    /// A block behind the others: `before` is the last key in front of it, if there is one, `first` its first,
    /// `bytes` its length in the file.
    pub(super) fn add(&mut self, before: Option<&[u8]>, first: &[u8], bytes: usize) {
        let length = before.map_or(first.len(), |before| shared_prefix(before, first) + 1);
        let separator = &first[..length];
        let shared = shared_prefix(&self.separator, separator);
        put_varint(&mut self.encoded, (bytes / BLOCK_SIZE) as u64);
        put_varint(&mut self.encoded, shared as u64);
        put_varint(&mut self.encoded, (length - shared) as u64);
        self.encoded.extend_from_slice(&separator[shared..]);
        self.separator.clear();
        self.separator.extend_from_slice(separator);
        self.count += 1;
    }

    /// What goes to the disk.
    pub(super) fn encode(&self, last_key: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded.len() + last_key.len() + 16);
        put_varint(&mut out, last_key.len() as u64);
        out.extend_from_slice(last_key);
        put_varint(&mut out, u64::from(self.count));
        out.extend_from_slice(&self.encoded);
        out
    }
}

/// Neighbouring separators.
struct Group {
    /// Where the prefix starts in `bytes`; the separators' own parts follow it.
    start: usize,
    prefix: u32,
}

/// Makes an index of its bytes, in steps.
pub(super) struct BlocksDecoder {
    encoded: Vec<u8>,
    offset: usize,
    left: usize,
    separator: Vec<u8>,
    group: Vec<Vec<u8>>,
    units: u32,
    blocks: Blocks,
}

impl BlocksDecoder {
    pub(super) fn new(encoded: Vec<u8>) -> Option<Self> {
        let mut reader = Varints(&encoded);
        let length = reader.length().filter(|length| *length <= KEY_BYTES_MAX)?;
        let last_key = reader.take(length)?.into();
        let left = reader.length()?;
        let offset = encoded.len() - reader.0.len();
        let blocks =
            Blocks { last_key, bytes: Vec::new(), groups: Vec::new(), ends: Vec::new(), units: vec![0] };
        let (separator, group) = (Vec::new(), Vec::new());
        Some(Self { encoded, offset, left, separator, group, units: 0, blocks })
    }

    /// Takes in up to `blocks_max` blocks. False at the end, None if the bytes are no index.
    pub(super) fn step(&mut self, blocks_max: usize) -> Option<bool> {
        let mut reader = Varints(self.encoded.get(self.offset..)?);
        for _ in 0..self.left.min(blocks_max) {
            let units = u32::try_from(reader.number()?).ok().filter(|units| *units > 0)?;
            let (shared, length) = (reader.length()?, reader.length()?);
            let suffix = reader.take(length)?;
            let first = self.blocks.units.len() == 1;
            let ascends = self.separator.get(shared..)? < suffix || first;
            if !ascends || shared + suffix.len() > KEY_BYTES_MAX {
                return None;
            }
            self.separator.truncate(shared);
            self.separator.extend_from_slice(suffix);
            self.units = self.units.checked_add(units)?;
            self.blocks.units.push(self.units);
            self.group.push(self.separator.clone());
            if self.group.len() == GROUP {
                self.blocks.add_group(&self.group)?;
                self.group.clear();
            }
        }
        self.left -= self.left.min(blocks_max);
        self.offset = self.encoded.len() - reader.0.len();
        Some(self.left > 0)
    }

    /// The index, if all was taken in and the blocks fill `data_bytes`.
    pub(super) fn finish(mut self, data_bytes: u64) -> Option<Blocks> {
        let mut blocks = self.blocks;
        blocks.add_group(&std::mem::take(&mut self.group))?;
        blocks.bytes.shrink_to_fit();
        blocks.groups.shrink_to_fit();
        blocks.ends.shrink_to_fit();
        blocks.units.shrink_to_fit();
        let fills = u64::from(self.units) * BLOCK_SIZE as u64 == data_bytes;
        let whole = self.left == 0 && self.offset == self.encoded.len();
        (fills && whole && *blocks.last_key >= *self.separator).then_some(blocks)
    }
}

/// See the module.
pub(super) struct Blocks {
    last_key: Box<[u8]>,
    bytes: Vec<u8>,
    groups: Vec<Group>,
    /// Where each separator ends, counted from the end of its group's prefix.
    ends: Vec<u32>,
    /// Where each block starts, in units; one more for the end of the last.
    units: Vec<u32>,
}

impl Blocks {
    fn add_group(&mut self, separators: &[Vec<u8>]) -> Option<()> {
        let (Some(first), Some(last)) = (separators.first(), separators.last()) else { return Some(()) };
        // They ascend: what the outer two share, all share.
        let prefix = shared_prefix(first, last);
        self.groups.push(Group { start: self.bytes.len(), prefix: u32::try_from(prefix).ok()? });
        self.bytes.extend_from_slice(&first[..prefix]);
        let mut end = 0;
        for separator in separators {
            let own = &separator[prefix..];
            self.bytes.extend_from_slice(own);
            end += u32::try_from(own.len()).ok()?;
            self.ends.push(end);
        }
        Some(())
    }

    /// How many blocks there are.
    pub(super) fn count(&self) -> u32 {
        // As many as ends of them, and those are u32.
        (self.units.len() - 1) as u32
    }

    /// Where a block starts in the file, and its length.
    pub(super) fn place(&self, block: u32) -> Option<(u64, usize)> {
        let (start, end) = (self.start(block)?, self.start(block + 1)?);
        Some((start, usize::try_from(end - start).ok()?))
    }

    /// Where a block starts in the file; the number of blocks gives the end of the last.
    pub(super) fn start(&self, block: u32) -> Option<u64> {
        self.units.get(block as usize).map(|units| u64::from(*units) * BLOCK_SIZE as u64)
    }

    /// The only block that may hold a key; none for what lies outside the keys of the run.
    pub(super) fn find(&self, key: &[u8]) -> Option<u32> {
        if *key > *self.last_key {
            return None;
        }
        self.find_before(key)
    }

    /// The last block that starts at or before a key; none if the key lies before all.
    pub(super) fn find_before(&self, key: &[u8]) -> Option<u32> {
        let (mut low, mut high) = (0, self.groups.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.starts_by(middle, key) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let group = low.checked_sub(1)?;
        let first = group * GROUP;
        let last = (first + GROUP).min(self.ends.len());
        let prefix = self.prefix(&self.groups[group]);
        let Some(rest) = key.strip_prefix(prefix) else {
            // It is not before the group and yet not like it: it is behind all of it.
            return u32::try_from(last - 1).ok();
        };
        let (mut low, mut high) = (first + 1, last);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.own(group, middle) <= rest {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        u32::try_from(low - 1).ok()
    }

    fn prefix(&self, group: &Group) -> &[u8] {
        &self.bytes[group.start..group.start + group.prefix as usize]
    }

    /// What a separator has behind its group's prefix.
    fn own(&self, group: usize, separator: usize) -> &[u8] {
        let base = self.groups[group].start + self.groups[group].prefix as usize;
        let start = if separator == group * GROUP { 0 } else { self.ends[separator - 1] };
        &self.bytes[base + start as usize..base + self.ends[separator] as usize]
    }

    /// Whether the first separator of a group is not above a key.
    fn starts_by(&self, group: usize, key: &[u8]) -> bool {
        let prefix = self.prefix(&self.groups[group]);
        let (front, rest) = key.split_at(prefix.len().min(key.len()));
        match prefix.cmp(front) {
            Ordering::Less => true,
            Ordering::Equal => self.own(group, group * GROUP) <= rest,
            Ordering::Greater => false,
        }
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.last_key.len()
            + self.bytes.capacity()
            + self.groups.capacity() * size_of::<Group>()
            + (self.ends.capacity() + self.units.capacity()) * size_of::<u32>()
    }
}
