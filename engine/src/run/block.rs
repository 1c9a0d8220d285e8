//! The codec of items in blocks.
//!
//! Keys share prefixes with their predecessors, except at every sixteenth item, a *restart*, whose place stands
//! at the end of the payload: a lookup bisects the restarts and reads on from one.
//!
//! ```text
//!   payload   item  item  …  item │ restart u16 │ … │ restart u16      as many as sixteens begun by the count
//!   item      shared │ suffix length × 4 + form │ suffix │ version │ region
//!   region    form 0: nothing, a tombstone; 1: one extent; 2: number of extents, extents
//!   extent    life │ offset │ length
//! ```
//!
//! All numbers are unsigned LEB128. Nothing here panics on any bytes; what cannot be is [`Malformed`].

use std::cmp::Ordering;
use std::ops::Bound;

use bytes::Bytes;
use krita_runtime::BLOCK_SIZE;

use super::Entry;
use super::envelope::{RUN_HEADER_BYTES, reopen};
use crate::format::padded;
use crate::log::PIECE_BYTES_MIN;
use crate::types::{
    Extent, Extents, Index, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX, SegmentId, Slot, VALUE_CHECKSUM_BYTES,
};

/// Items from one restart to the next.
const RESTART_ITEMS: u32 = 16;

const FORM_TOMBSTONE: u64 = 0;
const FORM_ONE: u64 = 1;
const FORM_MANY: u64 = 2;

/// Bytes that pass their checksum and are still no items: written by something else than this codec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Malformed;

// A restart fits its two bytes: no item is longer than a value in the smallest pieces under the longest key.
const _: () = assert!(
    64 + KEY_BYTES_MAX + 20 * (PAYLOAD_BYTES_MAX / PIECE_BYTES_MIN + 2) + BLOCK_SIZE <= u16::MAX as usize
);

/// Appends an unsigned LEB128 number.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes numbers and bytes off the front of a slice.
#[derive(Clone, Copy)]
pub(super) struct Varints<'a>(pub(super) &'a [u8]);

impl<'a> Varints<'a> {
    pub(super) fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for (position, byte) in self.0.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shifted = bits << (7 * position);
            if shifted >> (7 * position) != bits {
                return None;
            }
            value |= shifted;
            if byte & 0x80 == 0 {
                self.0 = &self.0[position + 1..];
                return Some(value);
            }
        }
        None
    }

    pub(super) fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()
    }

    fn narrow(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn extent(&mut self) -> Option<Extent> {
        let segment = SegmentId(self.number()?);
        let (offset, length) = (self.narrow()?, self.narrow()?);
        (length > 0).then_some(Extent { segment, offset, length })
    }

    fn entry(&mut self, form: u64) -> Option<Entry> {
        let version = Index(self.number()?);
        let region = match form {
            FORM_TOMBSTONE => return Some(Entry::Tombstone(version)),
            FORM_ONE => Extents::One(self.extent()?),
            FORM_MANY => {
                let count = self.length()?;
                // An extent takes three bytes at least: no more memory than the block justifies.
                if count < 2 || count > self.0.len() / 3 {
                    return None;
                }
                Extents::from_vec((0..count).map(|_| self.extent()).collect::<Option<Vec<_>>>()?)
            }
            _ => return None,
        };
        let whole = region.length() >= u64::from(VALUE_CHECKSUM_BYTES);
        whole.then_some(Entry::Put(Slot { version, region }))
    }

    fn head(&mut self) -> Option<Head<'a>> {
        let shared = self.length()?;
        let packed = self.number()?;
        let suffix = self.take(usize::try_from(packed >> 2).ok()?)?;
        let fits = shared.checked_add(suffix.len())? <= KEY_BYTES_MAX;
        fits.then_some(Head { shared, suffix, form: packed & 3 })
    }
}

/// An item up to its version.
struct Head<'a> {
    shared: usize,
    suffix: &'a [u8],
    form: u64,
}

/// How many bytes two keys have in common at the front.
pub(super) fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn encode(out: &mut Vec<u8>, shared: usize, key: &[u8], entry: &Entry) {
    let suffix = &key[shared..];
    let form = match entry {
        Entry::Tombstone(_) => FORM_TOMBSTONE,
        Entry::Put(slot) => match &slot.region {
            Extents::One(_) => FORM_ONE,
            Extents::Many(extents) if extents.len() == 1 => FORM_ONE,
            Extents::Many(_) => FORM_MANY,
        },
    };
    put_varint(out, shared as u64);
    put_varint(out, (suffix.len() as u64) << 2 | form);
    out.extend_from_slice(suffix);
    put_varint(out, entry.version().0);
    let Entry::Put(slot) = entry else { return };
    let extents = slot.region.as_slice();
    if form == FORM_MANY {
        put_varint(out, extents.len() as u64);
    }
    for extent in extents {
        put_varint(out, extent.segment.0);
        put_varint(out, u64::from(extent.offset));
        put_varint(out, u64::from(extent.length));
    }
}

/// Collects the items of one block.
#[derive(Default)]
pub(super) struct BlockBuilder {
    items: Vec<u8>,
    restarts: Vec<u16>,
    count: u32,
    /// A block is one unit long; only one whose first item alone is longer takes as many as that item needs.
    payload_max: usize,
    first: Vec<u8>,
    last: Vec<u8>,
    item: Vec<u8>,
}

impl BlockBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first key in the block.
    pub(super) fn first_key(&self) -> &[u8] {
        &self.first
    }

    /// The last key in the block, also once it has been taken.
    pub(super) fn last_key(&self) -> &[u8] {
        &self.last
    }

    /// Adds an item behind the others, if the block has room for it; an empty block always has.
    pub(super) fn add(&mut self, key: &[u8], entry: &Entry) -> bool {
        let restart = self.count.is_multiple_of(RESTART_ITEMS);
        let shared = if restart { 0 } else { shared_prefix(&self.last, key) };
        self.item.clear();
        encode(&mut self.item, shared, key, entry);
        let restarts = self.restarts.len() + usize::from(restart);
        if !self.is_empty() && self.items.len() + self.item.len() + 2 * restarts > self.payload_max {
            return false;
        }
        if restart {
            let offset = u16::try_from(self.items.len()).expect("only a block's first item is long");
            self.restarts.push(offset);
        }
        if self.is_empty() {
            self.payload_max = padded(RUN_HEADER_BYTES + self.item.len() + 2) - RUN_HEADER_BYTES;
            self.first.clear();
            self.first.extend_from_slice(key);
        }
        self.items.extend_from_slice(&self.item);
        self.last.clear();
        self.last.extend_from_slice(key);
        self.count += 1;
        true
    }

    /// The payload and the number of items; the builder is empty then.
    pub(super) fn take(&mut self) -> (Vec<u8>, u32) {
        let mut payload = std::mem::take(&mut self.items);
        for restart in self.restarts.drain(..) {
            payload.extend_from_slice(&restart.to_le_bytes());
        }
        (payload, std::mem::take(&mut self.count))
    }
}

/// A view of a block's items.
#[derive(Clone, Copy)]
struct Items<'a> {
    items: &'a [u8],
    restarts: &'a [u8],
    count: u32,
}

impl<'a> Items<'a> {
    /// `block` is whole, header included, and was checked when it was read.
    fn of(block: &'a [u8]) -> Result<Self, Malformed> {
        let (count, payload) = reopen(block).ok_or(Malformed)?;
        let restarts = 2 * count.div_ceil(RESTART_ITEMS) as usize;
        let items = payload.len().checked_sub(restarts).ok_or(Malformed)?;
        let (items, restarts) = payload.split_at(items);
        Ok(Self { items, restarts, count })
    }

    fn restart(&self, number: usize) -> Option<usize> {
        let bytes = self.restarts.get(2 * number..2 * number + 2)?;
        Some(usize::from(u16::from_le_bytes(bytes.try_into().ok()?)))
    }

    /// The last restart whose key is not above `key`; the first if there is none.
    fn restart_before(&self, key: &[u8]) -> Result<usize, Malformed> {
        // The first restart is never asked: restarts below `low` are not above the key, those from `high` are.
        let (mut low, mut high) = (1, (self.restarts.len() / 2).max(1));
        while low < high {
            let middle = low + (high - low) / 2;
            let offset = self.restart(middle).ok_or(Malformed)?;
            let head = Varints(self.items.get(offset..).ok_or(Malformed)?).head().ok_or(Malformed)?;
            if head.suffix <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low - 1)
    }
}

/// What a block, whole and checked, has for a key.
pub(super) fn search(block: &[u8], key: &[u8]) -> Result<Option<Entry>, Malformed> {
    let items = Items::of(block)?;
    if items.count == 0 {
        return Ok(None);
    }
    let restart = items.restart_before(key)?;
    let offset = items.restart(restart).ok_or(Malformed)?;
    let mut reader = Varints(items.items.get(offset..).ok_or(Malformed)?);
    // How much the item read last, which is below the key, has in common with it.
    let mut common = 0;
    while !reader.0.is_empty() {
        let head = reader.head().ok_or(Malformed)?;
        match head.shared.cmp(&common) {
            // It differs from the key where the one before it does: below it, too.
            Ordering::Greater => {}
            // It rose above the key where the one before it still was like it.
            Ordering::Less => return Ok(None),
            Ordering::Equal => {
                let rest = &key[common..];
                match head.suffix.cmp(rest) {
                    Ordering::Equal => return reader.entry(head.form).map(Some).ok_or(Malformed),
                    Ordering::Greater => return Ok(None),
                    Ordering::Less => common += shared_prefix(head.suffix, rest),
                }
            }
        }
        reader.entry(head.form).ok_or(Malformed)?;
    }
    Ok(None)
}

/// Walks the items of one block.
pub(super) struct BlockCursor {
    block: Bytes,
    offset: usize,
    /// Items read so far.
    read: u32,
    key: Vec<u8>,
    /// An item that a seek found, to be given next.
    found: Option<Entry>,
}

impl BlockCursor {
    /// `block` is whole, header included, and was checked when it was read.
    pub(super) fn new(block: Bytes) -> Self {
        Self { block, offset: 0, read: 0, key: Vec::new(), found: None }
    }

    /// The key of the item that [`BlockCursor::next`] gave last.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// The next item's entry; its key is [`BlockCursor::key`]. Fails again and again at one that is malformed.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Malformed> {
        if let Some(entry) = self.found.take() {
            return Ok(Some(entry));
        }
        let items = Items::of(&self.block)?;
        if self.read == items.count {
            return if self.offset == items.items.len() { Ok(None) } else { Err(Malformed) };
        }
        let mut reader = Varints(items.items.get(self.offset..).ok_or(Malformed)?);
        let head = reader.head().filter(|head| head.shared <= self.key.len()).ok_or(Malformed)?;
        let restarts = self.read.is_multiple_of(RESTART_ITEMS);
        if restarts && head.shared != 0 {
            return Err(Malformed);
        }
        let entry = reader.entry(head.form).ok_or(Malformed)?;
        self.key.truncate(head.shared);
        self.key.extend_from_slice(head.suffix);
        self.offset = items.items.len() - reader.0.len();
        self.read += 1;
        Ok(Some(entry))
    }

    /// The key of the next item, which is not consumed.
    pub(super) fn peek_key(&mut self) -> Result<Option<&[u8]>, Malformed> {
        self.found = self.next()?;
        Ok(self.found.is_some().then_some(&self.key[..]))
    }

    /// Goes to the first item within the bound: [`BlockCursor::next`] gives it.
    pub(super) fn seek(&mut self, from: Bound<&[u8]>) -> Result<(), Malformed> {
        let key = match from {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => return Ok(()),
        };
        let items = Items::of(&self.block)?;
        if items.count == 0 {
            return Ok(());
        }
        let restart = items.restart_before(key)?;
        self.offset = items.restart(restart).ok_or(Malformed)?;
        self.read = u32::try_from(restart).map_err(|_| Malformed)? * RESTART_ITEMS;
        while let Some(entry) = self.next()? {
            let within = match from {
                Bound::Included(key) => self.key() >= key,
                Bound::Excluded(key) => self.key() > key,
                Bound::Unbounded => true,
            };
            if within {
                self.found = Some(entry);
                break;
            }
        }
        Ok(())
    }
}
