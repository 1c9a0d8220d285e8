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
use crate::error::LogError;
use crate::inner::Inner;
use crate::manifest::ManifestChange;
use crate::types::{SegmentId, ShardId};

/// A segment from which everything alive has been moved.
struct Evacuation {
    /// Shards whose newer layers, which hide its slots, are not durable yet.
    waiting: BTreeSet<ShardId>,
    /// Closed when the last of them was.
    since: Option<EpochNumber>,
    /// What was alive, where it is now.
    copied_bytes: u64,
}

/// What is known of segments on their way to be used again.
#[derive(Default)]
pub(crate) struct Reclaiming {
    /// Segments that no layer needs, and the epoch that was closed when this was found.
    dead: BTreeMap<SegmentId, EpochNumber>,
    evacuated: BTreeMap<SegmentId, Evacuation>,
}

impl Reclaiming {
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

    /// What was moved out of evacuated segments that cannot be used again yet.
    pub(crate) fn copied_bytes(&self) -> u64 {
        self.evacuated.values().map(|evacuation| evacuation.copied_bytes).sum()
    }

    /// Evacuated segments that cannot be used again yet.
    pub(crate) fn evacuated_count(&self) -> u64 {
        self.evacuated.len() as u64
    }
}

impl<R: Runtime> Inner<R> {
    /// Everything alive in `segment` has been moved, and takes `copied_bytes` now: for every key of it the newest layer
    /// points elsewhere. The segment is used again once that is durable.
    pub(crate) fn evacuated(&self, segment: SegmentId, copied_bytes: u64) {
        let shards = self.shards.borrow();
        let holders = shards.iter().filter(|(_, shard)| {
            let in_runs = shard.index.runs().iter().any(|run| run.segments().contains_key(&segment));
            in_runs || shard.index.memtables().any(|memtable| memtable.segments().contains_key(&segment))
        });
        let waiting: BTreeSet<ShardId> = holders.map(|(id, _)| *id).collect();
        let since = waiting.is_empty().then(|| self.epochs.close());
        self.reclaiming.borrow_mut().evacuated.insert(segment, Evacuation { waiting, since, copied_bytes });
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

    /// Turns dead segments into spare ones. The manifest says first that they are not in use any more: a segment that
    /// it lists and no file holds is damage.
    pub(crate) async fn reclaim(&self) -> Result<(), LogError> {
        self.give_up_floors();
        if self.dead_segments().is_empty() {
            return Ok(());
        }
        let gone = || self.lives_change(&self.dead_segments()).into_iter().collect();
        self.publish(gone, || {}).await?;
        let dead = self.dead_segments();
        for segment in dead.into_iter().filter(|segment| self.manifest.is_gone(*segment)) {
            self.recycle(segment);
        }
        Ok(())
    }

    /// Names segments that were put to use, and of `gone` those that are not in use any more; none if the manifest
    /// knows.
    pub(crate) fn lives_change(&self, gone: &[SegmentId]) -> Option<ManifestChange> {
        let listed = self.manifest.lives();
        let segments = self.segments.borrow();
        let new = segments.used.keys().filter(|life| listed.last().is_none_or(|newest| *life > newest));
        let used: Vec<SegmentId> = new.copied().filter(|life| !gone.contains(life)).collect();
        let gone: Vec<SegmentId> = gone.iter().copied().filter(|life| listed.contains(life)).collect();
        (!used.is_empty() || !gone.is_empty()).then_some(ManifestChange::Lives { used, gone })
    }

    fn recycle(&self, segment: SegmentId) {
        for shard in self.shards.borrow_mut().values_mut() {
            shard.forget_segment(segment);
        }
        {
            let mut reclaiming = self.reclaiming.borrow_mut();
            reclaiming.dead.remove(&segment);
            reclaiming.evacuated.remove(&segment);
        }
        let mut segments = self.segments.borrow_mut();
        // A segment without a file has nothing to give.
        if let Some(file) = segments.used.remove(&segment) {
            segments.spare.push_back(file);
            self.statistics.borrow_mut().segments_recycled += 1;
        }
    }

    /// Segments that nothing and nobody needs.
    fn dead_segments(&self) -> Vec<SegmentId> {
        let oldest = self.oldest_needed();
        let unfinished = self.log.borrow().unfinished_segments();
        let shards = self.shards.borrow();
        let mut in_memory: BTreeSet<SegmentId> = BTreeSet::new();
        for memtable in shards.values().flat_map(|shard| shard.index.memtables()) {
            in_memory.extend(memtable.segments().keys().copied());
        }
        let mut candidates = self.manifest.lives();
        candidates.extend(self.segments.borrow().used.keys());
        let mut reclaiming = self.reclaiming.borrow_mut();
        let Reclaiming { dead, evacuated } = &mut *reclaiming;
        let mut closed = None;
        let mut free = Vec::new();
        for segment in candidates.range(..oldest).copied() {
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
        // What the manifest says is gone, and no file holds, is done with.
        dead.retain(|segment, _| candidates.contains(segment));
        evacuated.retain(|segment, _| candidates.contains(segment));
        free
    }
}
