//! Which segments are dead, and may be used again.
//!
//! A segment holds entries that replay needs, values that slots point to, and the rest. It may be used again once
//!
//! 1. every shard's recorded replay, every installation with entries on disk and every snapshot being sent whose
//!    receiver will ask for what follows start in a later one, and it is not being written;
//! 2. no slot of any layer of any index points into it; or it is *evacuated*: what was alive in it has been moved
//!    (compaction), and every slot that still points into it is hidden, durably, by a newer one;
//! 3. everybody has left who entered an epoch before 2 was so: views, that is;
//! 4. no read in flight, no snapshot being sent, no installation and no unfinished payload needs it.

use std::collections::{BTreeMap, BTreeSet};

use krita_runtime::Runtime;

use crate::epochs::EpochNumber;
use crate::inner::Inner;
use crate::types::{SegmentId, ShardId};

/// A segment from which everything alive has been moved.
struct Evacuation {
    /// Shards whose newer layers, which hide its slots, are not durable yet.
    waiting: BTreeSet<ShardId>,
    /// Closed when the last of them was.
    since: Option<EpochNumber>,
}

/// What is known of segments on their way to be used again.
pub(crate) struct Reclaiming {
    /// Segments that no layer needs, and the epoch that was closed when this was found.
    dead: BTreeMap<SegmentId, EpochNumber>,
    evacuated: BTreeMap<SegmentId, Evacuation>,
    /// The newest segment when the log was opened, and those that were there.
    opened_at: SegmentId,
    present: BTreeSet<SegmentId>,
}

impl Reclaiming {
    pub(crate) fn new(newest: SegmentId, present: impl Iterator<Item = SegmentId>) -> Self {
        let present = present.collect();
        Self { dead: BTreeMap::new(), evacuated: BTreeMap::new(), opened_at: newest, present }
    }

    /// Whether a segment was gone already when the log was opened: a slot that counts and leads there is damage.
    pub(crate) fn was_missing(&self, segment: SegmentId) -> bool {
        segment <= self.opened_at && !self.present.contains(&segment)
    }

    /// Evacuated segments that wait for a checkpoint of this shard.
    pub(crate) fn waiting_for(&self, shard: ShardId) -> Vec<SegmentId> {
        let waiting = self.evacuated.iter().filter(|(_, evacuation)| evacuation.waiting.contains(&shard));
        waiting.map(|(segment, _)| *segment).collect()
    }

    /// A shard whose checkpoint evacuated segments wait for.
    pub(crate) fn shard_due(&self) -> Option<ShardId> {
        self.evacuated.values().find_map(|evacuation| evacuation.waiting.first().copied())
    }

    /// Whether a segment is only held back by somebody who will leave.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.dead.is_empty() || self.evacuated.values().any(|evacuation| evacuation.since.is_some())
    }

    /// Evacuated segments that cannot be used again yet.
    pub(crate) fn evacuated_count(&self) -> u64 {
        self.evacuated.len() as u64
    }
}

impl<R: Runtime> Inner<R> {
    /// Everything alive in `segment` has been moved: for every key of it the newest layer points elsewhere. The
    /// segment is used again once that is durable.
    pub(crate) fn evacuated(&self, segment: SegmentId) {
        let shards = self.shards.borrow();
        let holders = shards.iter().filter(|(_, shard)| {
            let in_runs = shard.index.runs().iter().any(|run| run.segments().contains_key(&segment));
            in_runs || shard.index.memtables().any(|memtable| memtable.segments().contains_key(&segment))
        });
        let waiting: BTreeSet<ShardId> = holders.map(|(id, _)| *id).collect();
        let since = waiting.is_empty().then(|| self.epochs.close());
        self.reclaiming.borrow_mut().evacuated.insert(segment, Evacuation { waiting, since });
        self.maintenance_wake.notify();
    }

    /// Whether a segment is on its way already.
    pub(crate) fn is_evacuated(&self, segment: SegmentId) -> bool {
        self.reclaiming.borrow().evacuated.contains_key(&segment)
    }

    /// What a shard had in memory when `segments` were evacuated is durable, or the shard is gone.
    pub(crate) fn settled(&self, shard: ShardId, segments: &[SegmentId]) {
        let mut reclaiming = self.reclaiming.borrow_mut();
        for segment in segments {
            let Some(evacuation) = reclaiming.evacuated.get_mut(segment) else { continue };
            evacuation.waiting.remove(&shard);
            if evacuation.waiting.is_empty() && evacuation.since.is_none() {
                evacuation.since = Some(self.epochs.close());
            }
        }
    }

    /// The oldest segment that replay, an installation, a snapshot's receiver or the writer needs.
    pub(crate) fn oldest_needed(&self) -> SegmentId {
        let mut oldest = self.log.borrow().head.segment;
        oldest = self.manifest.oldest_needed().map_or(oldest, |needed| needed.min(oldest));
        self.floors.borrow().values().map(|floor| floor.segment).fold(oldest, SegmentId::min)
    }

    /// Gives up what is kept of the log for snapshots being sent where that has become too much.
    fn give_up_floors(&self) {
        let head = self.log.borrow().head.segment;
        let segments_max = (self.options.snapshot_floor_bytes / u64::from(self.segment_bytes())).max(1);
        let given_up: Vec<(u64, ShardId)> = {
            let mut floors = self.floors.borrow_mut();
            let too_much = floors.extract_if(.., |_, floor| {
                floor.snapshot_of.is_some() && head.0 - floor.segment.0 > segments_max
            });
            too_much.filter_map(|(number, floor)| Some((number, floor.snapshot_of?))).collect()
        };
        for (number, shard) in given_up {
            tracing::info!(log = %self.options.log, %shard, "a snapshot takes too long to keep the log for it");
            if let Some(state) = self.shards.borrow_mut().get_mut(&shard) {
                state.release(number, self.options.entries_kept);
            }
        }
    }

    /// Turns dead segments into spare ones.
    pub(crate) fn reclaim(&self) {
        self.give_up_floors();
        let oldest = self.oldest_needed();
        let unfinished = self.log.borrow().unfinished_segments();
        let mut shards = self.shards.borrow_mut();
        let mut in_memory: BTreeSet<SegmentId> = BTreeSet::new();
        for memtable in shards.values().flat_map(|shard| shard.index.memtables()) {
            in_memory.extend(memtable.segments().keys().copied());
        }
        let mut segments = self.segments.borrow_mut();
        let mut reclaiming = self.reclaiming.borrow_mut();
        let Reclaiming { dead, evacuated, .. } = &mut *reclaiming;
        let mut closed = None;
        let mut free = Vec::new();
        for segment in segments.used.range(..oldest).map(|(segment, _)| *segment) {
            let since = match evacuated.get(&segment) {
                Some(evacuation) => evacuation.since,
                None if self.lives.is_pinned(segment) || in_memory.contains(&segment) => {
                    dead.remove(&segment);
                    None
                }
                None => {
                    let found = || *closed.get_or_insert_with(|| self.epochs.close());
                    Some(*dead.entry(segment).or_insert_with(found))
                }
            };
            let is_held = self.pins.is_pinned(segment) || self.staged.is_pinned(segment);
            let unused = !is_held && !unfinished.contains(&segment);
            if unused && since.is_some_and(|since| self.epochs.has_passed(since)) {
                free.push(segment);
            }
        }
        for segment in free {
            for shard in shards.values_mut() {
                shard.forget_segment(segment);
            }
            dead.remove(&segment);
            evacuated.remove(&segment);
            let file = segments.used.remove(&segment).expect("it was just listed");
            segments.spare.push_back(file);
            self.statistics.borrow_mut().segments_recycled += 1;
        }
    }
}
