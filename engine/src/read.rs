//! Reading values and entries out of the log. Everything is checked before it is returned; segments that are
//! being read are pinned.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use krita_runtime::{File, Runtime, TaskClass};

use crate::cache::Lookup;
use crate::error::{Corruption, ReadError};
use crate::format::Reader;
use crate::gate::detached;
use crate::inner::Inner;
use crate::record::{self, RECORD_HEADER_BYTES, RecordHeader, RecordKind};
use crate::segment::Segments;
use crate::shard::EntryPlace;
use crate::types::{
    EntryRecord, Extent, Index, ReplicaId, SegmentId, ShardId, Slot, VALUE_CHECKSUM_BYTES, value_checksum,
};

/// Records of one shard that lie this close together are read at once.
const GAP_BYTES_MAX: u32 = 32 << 10;
/// Most bytes in one read of several records.
const RUN_BYTES_MAX: u32 = 1 << 20;

impl<R: Runtime> Inner<R> {
    pub(crate) fn corruption(&self, segment: SegmentId, offset: u32, what: String) -> Corruption {
        let number = self.segments.borrow().used.get(&segment).map_or(u32::MAX, |file| file.number);
        Corruption {
            file: Segments::<R>::path(&self.options.directory, number),
            offset: u64::from(offset),
            what,
            sequences: None,
        }
    }

    /// Reads bytes of a segment, all of them. The caller pins the segment and is not dropped meanwhile.
    pub(crate) async fn read_exact(
        &self,
        segment: SegmentId,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, ReadError> {
        let Some(file) = self.segments.borrow().used.get(&segment).cloned() else {
            if self.manifest.is_gone(segment) {
                return Err(ReadError::Stale);
            }
            return Err(self.corruption(segment, offset, format!("no file holds {segment}")).into());
        };
        let read = file.file.read_at(u64::from(offset), length as usize).await;
        let bytes = read.map_err(|error| ReadError::Io {
            file: Segments::<R>::path(&self.options.directory, file.number),
            what: error.to_string(),
        })?;
        if bytes.len() != length as usize {
            return Err(self.corruption(segment, offset, "the segment is too short".to_owned()).into());
        }
        Ok(bytes)
    }

    /// Reads a slot's value with its checksum, past the cache.
    pub(crate) async fn read_value(
        &self,
        shard: ShardId,
        key: &[u8],
        slot: &Slot,
    ) -> Result<(u32, Bytes), ReadError> {
        let region = match slot.region.as_slice() {
            [one] => self.read_exact(one.segment, one.offset, one.length).await?,
            many => {
                let mut all = BytesMut::new();
                for extent in many {
                    all.extend_from_slice(
                        &self.read_exact(extent.segment, extent.offset, extent.length).await?,
                    );
                }
                all.freeze()
            }
        };
        let stored = Reader::new(&region).u32();
        let value = region.slice((VALUE_CHECKSUM_BYTES as usize).min(region.len())..);
        if stored != Some(value_checksum(key, &value)) {
            let first = slot.region.as_slice()[0];
            let what = format!("{shard}: the value of a key at {} fails its checksum", slot.version);
            return Err(self.corruption(first.segment, first.offset, what).into());
        }
        Ok((stored.unwrap_or_default(), value))
    }
}

/// See `Store::value`.
pub(crate) async fn value<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    key: &[u8],
    slot: &Slot,
) -> Result<Bytes, ReadError> {
    let place = slot.region.as_slice()[0];
    let cached = inner.cache.borrow_mut().get(place, key);
    match cached {
        Lookup::Hit(value) => {
            inner.statistics.borrow_mut().cache_hits += 1;
            return Ok(value);
        }
        Lookup::Damaged => {
            let what = format!("{shard}: a cached value does not match its key and checksum");
            return Err(inner.corruption(place.segment, place.offset, what).into());
        }
        Lookup::Miss => inner.statistics.borrow_mut().cache_misses += 1,
    }
    let (task, slot, key) = (inner.clone(), slot.clone(), Bytes::copy_from_slice(key));
    let pin = inner.pins.pin(slot.region.as_slice().iter().map(|extent| extent.segment));
    let read = async move {
        let (_, value) = task.read_value(shard, &key, &slot).await?;
        task.cache.borrow_mut().insert(place, &key, &value);
        drop(pin);
        Ok(value)
    };
    detached(&inner.runtime, TaskClass::Foreground, "value read", read)
        .await
        .unwrap_or(Err(ReadError::Closed))
}

/// Reads a value from the disk whatever the cache has.
pub(crate) async fn uncached<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    key: &[u8],
    slot: &Slot,
) -> Result<(u32, Bytes), ReadError> {
    let (task, slot, key) = (inner.clone(), slot.clone(), Bytes::copy_from_slice(key));
    let pin = inner.pins.pin(slot.region.as_slice().iter().map(|extent| extent.segment));
    let read = async move {
        let read = task.read_value(shard, &key, &slot).await;
        drop(pin);
        read
    };
    detached(&inner.runtime, TaskClass::Background, "value scrub", read)
        .await
        .unwrap_or(Err(ReadError::Closed))
}

/// An entry to read.
struct Wanted {
    index: Index,
    entry: EntryPlace,
}

/// One record of an entry to read.
struct Piece {
    wanted: usize,
    extent: Extent,
    piece_offset: u32,
}

/// See `Store::read_entries`.
pub(crate) async fn entries<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard_id: ShardId,
    from: Index,
    through: Index,
    bytes_max: usize,
) -> Result<Vec<EntryRecord>, ReadError> {
    let (replica, wanted) = {
        let shards = inner.shards.borrow();
        let shard = shards.get(&shard_id).ok_or(ReadError::UnknownShard(shard_id))?;
        if from < shard.first() {
            return Err(ReadError::Compacted { shard: shard_id, first: shard.first() });
        }
        let mut wanted = Vec::new();
        let (mut index, mut bytes) = (from, 0);
        while let Some(entry) = shard.entry(index).filter(|_| index <= through) {
            bytes += entry.payload.length();
            if !wanted.is_empty() && bytes > bytes_max as u64 {
                break;
            }
            wanted.push(Wanted { index, entry: entry.clone() });
            index = index.next();
        }
        (shard.replica, wanted)
    };
    let extents = wanted.iter().flat_map(|wanted| wanted.entry.payload.as_slice());
    let pin = inner.pins.pin(extents.map(|extent| extent.segment));
    let task = inner.clone();
    let read = async move {
        let result = read_wanted(&task, shard_id, replica, wanted).await;
        drop(pin);
        result
    };
    detached(&inner.runtime, TaskClass::Foreground, "entry read", read)
        .await
        .unwrap_or(Err(ReadError::Closed))
}

async fn read_wanted<R: Runtime>(
    inner: &Inner<R>,
    shard: ShardId,
    replica: ReplicaId,
    wanted: Vec<Wanted>,
) -> Result<Vec<EntryRecord>, ReadError> {
    let mut pieces = Vec::new();
    for (position, wanted) in wanted.iter().enumerate() {
        let mut piece_offset = 0;
        for extent in wanted.entry.payload.as_slice() {
            pieces.push(Piece { wanted: position, extent: *extent, piece_offset });
            piece_offset += extent.length;
        }
    }
    let mut payloads: Vec<Vec<Bytes>> = wanted.iter().map(|_| Vec::new()).collect();
    let header_bytes = RECORD_HEADER_BYTES as u32;
    let mut rest = pieces.as_slice();
    while let Some(first) = rest.first() {
        let start = first.extent.offset - header_bytes;
        let mut end = first.extent.offset + first.extent.length;
        let mut count = 1;
        for next in &rest[1..] {
            let next_end = next.extent.offset + next.extent.length;
            let near = next.extent.segment == first.extent.segment
                && next.extent.offset >= end + header_bytes
                && next.extent.offset - end <= GAP_BYTES_MAX
                && next_end - start <= RUN_BYTES_MAX;
            if !near {
                break;
            }
            end = next_end;
            count += 1;
        }
        let run = inner.read_exact(first.extent.segment, start, end - start).await?;
        let (together, others) = rest.split_at(count);
        for piece in together {
            let at = (piece.extent.offset - header_bytes - start) as usize;
            let length = RECORD_HEADER_BYTES + piece.extent.length as usize;
            let record = run.slice(at..at + length);
            let wanted = &wanted[piece.wanted];
            let expected = RecordHeader {
                kind: RecordKind::Entry,
                entry_kind: wanted.entry.kind,
                log: inner.options.log,
                shard,
                replica,
                term: wanted.entry.term,
                index: wanted.index,
                length: piece.extent.length,
                piece_offset: piece.piece_offset,
                total: u32::try_from(wanted.entry.payload.length()).unwrap_or(u32::MAX),
                offset: piece.extent.offset - header_bytes,
                segment: piece.extent.segment,
            };
            if record::decode(&record, inner.nonce()).is_none_or(|(header, _)| header != expected) {
                let what = format!("{shard}: the record of entry {} is damaged", wanted.index);
                let corruption = inner.corruption(expected.segment, expected.offset, what);
                inner.report_entry(shard, wanted.index, &corruption);
                return Err(corruption.into());
            }
            payloads[piece.wanted].push(record.slice(RECORD_HEADER_BYTES..));
        }
        rest = others;
    }
    let entries = wanted.into_iter().zip(payloads).map(|(wanted, mut parts)| {
        let payload = if parts.len() == 1 { parts.remove(0) } else { parts.concat().into() };
        EntryRecord { index: wanted.index, term: wanted.entry.term, kind: wanted.entry.kind, payload }
    });
    Ok(entries.collect())
}
