//! Taking the log's records into a shard, one by one in the order of the log, at start.

use krita_runtime::Runtime;

use crate::manifest::ShardRecord;
use crate::record::{self, RecordHeader, RecordKind};
use crate::shard::{EntryPlace, Shard};
use crate::types::{Extent, Extents, Index, Place};

/// What the scan knows of each shard.
pub(crate) struct Replaying<R: Runtime> {
    pub(crate) shard: Shard<R>,
    pub(crate) record: ShardRecord,
    /// An entry whose last pieces have not come yet.
    pub(crate) partial: Option<Partial>,
}

/// An entry with some of its pieces.
pub(crate) struct Partial {
    header: RecordHeader,
    extents: Vec<Extent>,
    written: u32,
    first: Place,
}

impl<R: Runtime> Replaying<R> {
    /// Takes in one record, in the order of the log.
    pub(crate) fn replay(
        &mut self,
        header: &RecordHeader,
        payload: &[u8],
        place: Place,
    ) -> Result<(), &'static str> {
        if header.kind == RecordKind::Relocated {
            return Ok(());
        }
        if header.replica != self.record.replica {
            return Err("a record of another replica");
        }
        match header.kind {
            RecordKind::Relocated => {}
            RecordKind::HardState => {
                let state = record::decode_hard_state(header.term, payload).ok_or("an invalid hard state")?;
                if place.sequence > self.record.tail.hard_state_sequence {
                    self.shard.hard_state = state;
                }
            }
            RecordKind::Truncate => {
                self.partial = None;
                self.shard.replay_truncate(header.index);
            }
            RecordKind::Entry => self.replay_entry(header, place)?,
        }
        Ok(())
    }

    fn replay_entry(&mut self, header: &RecordHeader, place: Place) -> Result<(), &'static str> {
        if header.index == Index(0) {
            return Err("an entry without an index");
        }
        let extent = Extent {
            segment: header.segment,
            offset: header.offset + record::RECORD_HEADER_BYTES as u32,
            length: header.length,
        };
        if header.piece_offset == 0 {
            let (extents, written) = (vec![extent], header.length);
            self.partial = Some(Partial { header: *header, extents, written, first: place });
        } else {
            let partial = self.partial.as_mut().ok_or("a piece without its first")?;
            let begun = &partial.header;
            let same = (begun.index, begun.term, begun.total) == (header.index, header.term, header.total);
            if !same || header.piece_offset != partial.written {
                return Err("a piece of another entry");
            }
            partial.extents.push(extent);
            partial.written += header.length;
        }
        let Some(partial) = self.partial.take_if(|partial| partial.written == partial.header.total) else {
            return Ok(());
        };
        let payload = Extents::from_vec(partial.extents);
        let entry = EntryPlace { term: header.term, kind: header.entry_kind, payload, place: partial.first };
        self.shard.replay(header.index, entry);
        Ok(())
    }
}
