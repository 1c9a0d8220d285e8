//! Relocated values: values that were moved within a log, or came in with a snapshot. One record holds many values
//! of one shard; only slots lead to them.
//!
//! ```text
//!   payload   count u32 │ key length u16, region length u32, version u64, key, region │ … │
//! ```
//!
//! A record with several values is never written in pieces; a value too long for that has a record of its own.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use krita_runtime::Runtime;

use crate::error::LogError;
use crate::format::{Reader, length_u32};
use crate::inner::Inner;
use crate::log::{Room, Work};
use crate::segment::Pin;
use crate::types::{Extents, Index, KEY_BYTES_MAX, ReplicaId, ShardId, Slot};

/// Length of what stands in front of the first value.
pub(crate) const PACKED_HEADER_BYTES: usize = 4;
/// Length of what stands in front of each value's key.
pub(crate) const PACKED_ITEM_BYTES: usize = 14;

/// One value's place inside the payload of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PackedItem {
    pub(crate) key: Bytes,
    pub(crate) version: Index,
    /// Where the region starts in the payload, and its length.
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// Builds the payload of one record.
pub(crate) struct Packer {
    payload: BytesMut,
    items: Vec<PackedItem>,
}

impl Default for Packer {
    fn default() -> Self {
        let mut payload = BytesMut::new();
        payload.put_u32_le(0);
        Self { payload, items: Vec::new() }
    }
}

impl Packer {
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether a value may be added without the payload growing beyond `bytes_max`. The first may always.
    pub(crate) fn fits(&self, key: &[u8], region_bytes: u64, bytes_max: usize) -> bool {
        let more = (PACKED_ITEM_BYTES + key.len()) as u64 + region_bytes;
        self.is_empty() || self.payload.len() as u64 + more <= bytes_max as u64
    }

    /// Adds a value by its region, the checksum included, which is given in parts.
    pub(crate) fn add(&mut self, key: &[u8], version: Index, region: &[&[u8]]) {
        let length = length_u32(region.iter().map(|part| part.len()).sum());
        self.payload.put_u16_le(u16::try_from(key.len()).expect("keys are bounded at the front door"));
        self.payload.put_u32_le(length);
        self.payload.put_u64_le(version.0);
        self.payload.put_slice(key);
        let offset = length_u32(self.payload.len());
        for part in region {
            self.payload.put_slice(part);
        }
        self.items.push(PackedItem { key: Bytes::copy_from_slice(key), version, offset, length });
    }

    pub(crate) fn finish(mut self) -> (Bytes, Vec<PackedItem>) {
        let count = length_u32(self.items.len());
        self.payload[..PACKED_HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
        (self.payload.freeze(), self.items)
    }
}

/// The values of a record's payload, or those that start in its first piece. None if it does not parse.
pub(crate) fn unpack(payload: &Bytes, total: u32) -> Option<Vec<PackedItem>> {
    let mut reader = Reader::new(payload);
    let count = reader.u32()?;
    let mut items = Vec::new();
    let mut position = PACKED_HEADER_BYTES;
    for _ in 0..count {
        let (key_bytes, length) = (usize::from(reader.u16()?), reader.u32()?);
        let version = Index(reader.u64()?);
        reader.take(key_bytes)?;
        let key_at = position + PACKED_ITEM_BYTES;
        let key = payload.slice(key_at..key_at + key_bytes);
        let offset = length_u32(key_at + key_bytes);
        let end = offset.checked_add(length).filter(|end| *end <= total)?;
        if key_bytes > KEY_BYTES_MAX {
            return None;
        }
        items.push(PackedItem { key, version, offset, length });
        if count > 1 {
            reader.take(usize::try_from(length).ok()?)?;
        }
        position = end as usize;
    }
    (position == total as usize).then_some(items)
}

/// Values that are durable at a new place. The segments are pinned until this is dropped: by then a slot leads
/// there, or nothing ever will.
pub(crate) struct RelocatedValues {
    pub(crate) slots: Vec<(Bytes, Slot)>,
    _pin: Pin,
}

impl<R: Runtime> Inner<R> {
    /// Longest payload of a record with several values.
    pub(crate) fn packed_bytes_max(&self) -> usize {
        self.options.piece_bytes as usize
    }

    /// Lines up one record of values that take the place of others; durable once the returned future is done. It may
    /// use the reserve of a full disk. The future may be dropped; the values are dead bytes then.
    pub(crate) fn relocate(
        self: &Rc<Self>,
        shard: ShardId,
        replica: ReplicaId,
        packer: Packer,
    ) -> impl Future<Output = Result<RelocatedValues, LogError>> + use<R> {
        self.relocate_in(Room::Reserve, shard, replica, packer)
    }

    /// The same for values that may be new.
    pub(crate) fn relocate_in(
        self: &Rc<Self>,
        room: Room,
        shard: ShardId,
        replica: ReplicaId,
        packer: Packer,
    ) -> impl Future<Output = Result<RelocatedValues, LogError>> + use<R> {
        let (payload, items) = packer.finish();
        assert!(items.len() < 2 || payload.len() <= self.packed_bytes_max(), "several values fit one piece");
        let placed: Rc<RefCell<Option<(Extents, Pin)>>> = Rc::default();
        let (told, pins) = (placed.clone(), self.staged.clone());
        let done = Rc::new(move |payload: Extents| {
            let pin = pins.pin(payload.as_slice().iter().map(|extent| extent.segment));
            *told.borrow_mut() = Some((payload, pin));
        });
        let submitted = match self.check_poison() {
            Ok(()) => {
                let work = Work::Relocated { payload, room, done };
                let submitted = self.log.borrow_mut().submit(vec![(shard, replica, work)], room);
                self.log_wake.notify();
                Ok(submitted)
            }
            Err(error) => Err(error),
        };
        async move {
            let ended = || LogError::Poisoned("the core has ended".to_owned());
            submitted?.await.unwrap_or_else(|_| Err(ended()))?;
            let (payload, pin) = placed.borrow_mut().take().ok_or_else(ended)?;
            let slots = items.into_iter().map(|item| {
                let region = payload.part(item.offset, item.length).expect("it was written whole");
                (item.key, Slot { version: item.version, region })
            });
            Ok(RelocatedValues { slots: slots.collect(), _pin: pin })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked() {
        let mut packer = Packer::default();
        packer.add(b"a", Index(7), &[b"sum1", b"value"]);
        packer.add(b"", Index(8), &[b"sum2"]);
        packer.add(b"long key", Index(9), &[b"sum3", &[5; 1000]]);
        let (payload, items) = packer.finish();
        assert_eq!(unpack(&payload, length_u32(payload.len())), Some(items.clone()));
        let part =
            |item: &PackedItem| payload.slice(item.offset as usize..(item.offset + item.length) as usize);
        assert_eq!(&part(&items[0])[..], b"sum1value");
        for cut in 0..payload.len() {
            assert_eq!(unpack(&payload.slice(..cut), length_u32(cut)), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_long_value_is_known_from_its_first_piece() {
        let mut packer = Packer::default();
        packer.add(b"key", Index(7), &[b"sum1", &[1; 5000]]);
        let (payload, items) = packer.finish();
        assert_eq!(unpack(&payload.slice(..100), length_u32(payload.len())), Some(items));
    }
}
