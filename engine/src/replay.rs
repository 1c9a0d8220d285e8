//! Taking the log's records into a shard, one by one in the order of the log, at start; also across damage.

use krita_runtime::Runtime;

use crate::chain::Gap;
use crate::error::Corruption;
use crate::manifest::ShardRecord;
use crate::record::{self, RecordHeader, RecordKind};
use crate::salvage::{Doubt, Facts};
use crate::shard::{EntryPlace, Shard};
use crate::types::{Extent, Extents, Index, Place};

/// What the walk over the log knows of each shard.
pub(crate) struct Replaying<R: Runtime> {
    pub(crate) shard: Shard<R>,
    pub(crate) record: ShardRecord,
    /// An entry whose last pieces have not come yet.
    partial: Option<Partial>,
    /// Batches were missing: pieces may come without their first.
    is_lossy: bool,
    /// Set once something of the shard may be missing.
    pub(crate) doubt: Option<Doubt>,
    /// Since when entries wait for a record that takes them back; see `Shard::gap`.
    pub(crate) ahead_since: Option<u64>,
}

/// An entry with some of its pieces.
struct Partial {
    header: RecordHeader,
    extents: Vec<Extent>,
    written: u32,
    first: Place,
}

impl<R: Runtime> Replaying<R> {
    pub(crate) fn new(shard: Shard<R>, record: ShardRecord) -> Self {
        Self { shard, record, partial: None, is_lossy: false, doubt: None, ahead_since: None }
    }

    fn facts(&self) -> Facts {
        Facts { applied: self.shard.checkpoint.applied, last: self.shard.last() }
    }

    /// Batches are missing, or cannot be read.
    pub(crate) fn meet(&mut self, gap: &Gap) {
        let tail = &self.record.tail;
        if gap.last < tail.replay.sequence {
            return;
        }
        self.partial = None;
        self.is_lossy = true;
        if gap.last < tail.settled.before {
            return;
        }
        let from = self.ahead_since.unwrap_or(gap.first).min(gap.first).max(tail.replay.sequence);
        let is_hard_state_known = gap.last <= tail.hard_state_sequence;
        match &mut self.doubt {
            Some(doubt) => doubt.again(from, is_hard_state_known, || self.shard.image()),
            None => {
                let (corruption, image) = (gap.corruption.clone(), self.shard.image());
                self.doubt = Some(Doubt::new(corruption, from, is_hard_state_known, image));
            }
        }
    }

    /// Takes in one record, in the order of the log.
    pub(crate) fn replay(&mut self, header: &RecordHeader, payload: &[u8], place: Place) {
        let tail = &self.record.tail;
        if place.sequence < tail.replay.sequence || tail.settled.hides(place.sequence) {
            return;
        }
        if let Err(what) = self.take(header, payload, place) {
            // No damage of the disk makes such records: whatever made them, this shard's are not to be trusted.
            let (file, offset) = (std::path::PathBuf::new(), u64::from(header.offset));
            let what = format!("{}: {what} in {}", self.record.shard, header.segment);
            let sequences = Some((place.sequence, place.sequence));
            let corruption = Corruption { file, offset, what, sequences };
            let image = self.shard.image();
            let doubt =
                self.doubt.get_or_insert_with(|| Doubt::new(corruption, place.sequence, false, image));
            doubt.is_hopeless = true;
        }
        self.ahead_since = if self.shard.gap { self.ahead_since.or(Some(place.sequence)) } else { None };
    }

    fn take(&mut self, header: &RecordHeader, payload: &[u8], place: Place) -> Result<(), &'static str> {
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
                    self.doubt.iter_mut().for_each(|doubt| doubt.is_hard_state_known = true);
                }
            }
            RecordKind::Truncate => {
                self.partial = None;
                let facts = self.facts();
                self.doubt.iter_mut().for_each(|doubt| doubt.truncated(header.index, facts));
                self.shard.replay_truncate(header.index);
            }
            RecordKind::Entry => self.take_entry(header, place)?,
        }
        Ok(())
    }

    fn take_entry(&mut self, header: &RecordHeader, place: Place) -> Result<(), &'static str> {
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
            let Some(partial) = self.partial.as_mut() else {
                return if self.is_lossy { Ok(()) } else { Err("a piece without its first") };
            };
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
        let (facts, before) = (self.facts(), self.shard.term_at(header.index.previous()));
        self.doubt.iter_mut().for_each(|doubt| doubt.entry(header.index, before == Some(header.term), facts));
        let payload = Extents::from_vec(partial.extents);
        let entry = EntryPlace { term: header.term, kind: header.entry_kind, payload, place: partial.first };
        self.shard.replay(header.index, entry);
        Ok(())
    }
}
