//! Compaction of the log: moving what is alive out of segments that are mostly dead, so that they can be used again.
//!
//! One task for each store. [`choose`] says which segment and how fast, [`evacuate`] moves what is alive in it, and
//! `reclaim` knows when the segment may be used again: once what hides its slots is durable, and nobody is left who
//! may have seen one of them. A crash at any point loses work, and nothing else: until a checkpoint names the new
//! places, the old ones count, and are there.

mod choose;
mod evacuate;
mod scan;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_runtime::{Instant, Notify, Runtime, timeout};

use crate::error::ReadError;
use crate::inner::Inner;
use crate::segment::{SegmentFile, Segments};
use crate::types::{SegmentId, ShardId};
pub(crate) use choose::Layers;
use choose::{Candidate, Sizes};
use evacuate::{Failure, Outcome, Pass};

/// How long a segment is left alone after a pass that did not end well, and after one that met damage.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
const AFTER_DAMAGE: Duration = Duration::from_secs(60);
/// How often the task looks while something waits that nobody tells of: views that end, time that passes.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Shards that are asked between two pauses.
const SHARDS_AT_ONCE: usize = 8;

/// What the task remembers.
#[derive(Default)]
pub(crate) struct Compaction {
    /// Something may have changed.
    pub(crate) wake: Notify,
    /// Segments to leave alone until then.
    not_before: BTreeMap<SegmentId, Instant>,
    /// Where the batches of lives end whose next life is not there any more.
    ends: BTreeMap<SegmentId, u64>,
    /// The log is too large, and replay holds it back.
    wants_checkpoint: bool,
    /// What small values take in the log, in times of what they count as alive.
    overhead: choose::Overhead,
    /// What newer layers of indexes hide.
    pub(crate) hidden: choose::Hidden,
    /// While space is being freed: how large the log was at the last look.
    freeing: Option<Sizes>,
}

impl Compaction {
    /// Whether the shard whose replay starts first should be checkpointed, so that the log can shrink.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.wants_checkpoint
    }

    /// How near the log is to its bound with `used` bytes in segments that hold something, evacuated ones included;
    /// none while no space is being freed. What is alive is that of the last look, which may be a slow disk's whole
    /// slice of a pass ago; what is used is not.
    pub(crate) fn pressure(&self, used: u64) -> Option<f64> {
        let seen = self.freeing?;
        Some(Sizes { used, leaving: 0, ..seen }.pressure())
    }

    /// How many segments to keep ready ahead of the writer, of the `wanted` ones, with `used` bytes in segments: what
    /// waits unused takes its part of the bound, and near it writers wait for compaction in any case.
    pub(crate) fn spares(&self, wanted: usize, used: u64) -> usize {
        if self.pressure(used).is_some_and(|pressure| pressure > 1.0) { wanted.min(1) } else { wanted }
    }

    /// How long to hold up a write of so many bytes that is not compaction's own, with `used` bytes in segments.
    pub(crate) fn hold_up(&self, bytes: usize, used: u64) -> Duration {
        self.pressure(used).map_or(Duration::ZERO, |pressure| choose::hold_up(pressure, bytes))
    }
}

/// Runs until the store is closed.
pub(crate) async fn run<R: Runtime>(inner: Rc<Inner<R>>) {
    let wake = inner.compaction.borrow().wake.clone();
    while !inner.closed.get() {
        if inner.poisoned().is_none() {
            learn_ends(&inner).await;
            let (sizes, candidates) = survey(&inner).await;
            inner.statistics.borrow_mut().dead_bytes = sizes.used.saturating_sub(sizes.alive);
            trim(&inner, sizes).await;
            let is_urgent = inner.options.regions_of.is_some() && sizes.urgency() > 0.0;
            let is_due = is_urgent && !sizes.has_copies_enough();
            let victim = choose::victim(&candidates, sizes.segment).filter(|_| is_due);
            {
                let mut compaction = inner.compaction.borrow_mut();
                compaction.wants_checkpoint = victim.is_none() && (sizes.pressure() > 1.0 || sizes.is_over());
                // Writers wait only for what will give them space: a pass, or checkpoints.
                let is_held = inner.log.borrow().head.segment > inner.oldest_needed() || sizes.leaving > 0;
                let is_freeing = victim.is_some() || (compaction.wants_checkpoint && is_held);
                compaction.freeing = is_freeing.then_some(sizes);
            }
            if let Some(segment) = victim {
                evacuate(&inner, segment, sizes.alive).await;
                continue;
            }
        }
        if is_waiting(&inner) {
            // Either way it is time to look again.
            let _ = timeout(&inner.runtime, LOOK_AGAIN, wake.notified()).await;
            // A failure has poisoned the log.
            let _ = inner.reclaim().await;
        } else {
            wake.notified().await;
        }
    }
}

/// Whether something may happen that nobody tells of.
fn is_waiting<R: Runtime>(inner: &Inner<R>) -> bool {
    !inner.compaction.borrow().not_before.is_empty() || inner.reclaiming.borrow().is_waiting()
}

/// Bytes at most alive in each life, over all shards, and how many of them are about hidden by newer ones.
async fn alive<R: Runtime>(inner: &Inner<R>) -> (BTreeMap<SegmentId, u64>, u64) {
    let (mut alive, mut hidden) = (BTreeMap::new(), 0);
    let shards: Vec<ShardId> = inner.shards.borrow().keys().copied().collect();
    for shards in shards.chunks(SHARDS_AT_ONCE) {
        for shard in shards {
            if let Some(shard) = inner.shards.borrow().get(shard) {
                shard.index.add_segments(&mut alive);
                hidden += inner.compaction.borrow().hidden.estimate(shard.index.layers());
            }
        }
        inner.runtime.pause().await;
    }
    (alive, hidden)
}

/// How large the log is, with `alive` bytes in it.
fn sizes<R: Runtime>(inner: &Inner<R>, alive: u64) -> Sizes {
    let segment = u64::from(inner.segment_bytes());
    let segments = inner.segments.borrow();
    let leaving = segments.used.keys().filter(|segment| inner.is_evacuated(**segment)).count() as u64;
    Sizes {
        segment,
        used: (segments.used.len() as u64 - leaving) * segment,
        leaving: leaving * segment,
        copies: inner.reclaiming.borrow().copied_bytes(),
        spare: segments.spare.len() as u64 * segment,
        alive,
        factor: f64::from(inner.options.compaction_factor),
    }
}

/// How large the log is, and what may be evacuated.
async fn survey<R: Runtime>(inner: &Inner<R>) -> (Sizes, Vec<Candidate>) {
    let (alive, hidden) = alive(inner).await;
    let (oldest, now) = (inner.oldest_needed(), inner.runtime.now());
    let unfinished = inner.log.borrow().unfinished_segments();
    let mut compaction = inner.compaction.borrow_mut();
    compaction.not_before.retain(|_, until| *until > now);
    let segments = inner.segments.borrow();
    // Of everything that any layer points to, also where it was moved from: that is hidden, and counts among it.
    let everything: u64 = alive.values().map(|alive| compaction.overhead.apply(*alive)).sum();
    let mut total = 0;
    let mut candidates = Vec::new();
    for segment in segments.used.keys().copied().filter(|segment| !inner.is_evacuated(*segment)) {
        let alive = compaction.overhead.apply(alive.get(&segment).copied().unwrap_or(0));
        total += alive;
        // Without anything alive it is used again without a pass.
        // Slots that no index has yet may lead there once an installation is done, or a payload whole.
        let is_open = inner.staged.is_pinned(segment) || unfinished.contains(&segment);
        if segment < oldest && alive > 0 && !is_open && !compaction.not_before.contains_key(&segment) {
            candidates.push(Candidate { segment, alive });
        }
    }
    let hidden = compaction.overhead.apply(hidden);
    (sizes(inner, everything.saturating_sub(hidden).min(total)), candidates)
}

/// Notes where each life ends while the next one's header, which tells it, is there.
async fn learn_ends<R: Runtime>(inner: &Inner<R>) {
    let unknown: Vec<(SegmentId, SegmentFile<R>)> = {
        let segments = inner.segments.borrow();
        let mut compaction = inner.compaction.borrow_mut();
        compaction.ends.retain(|segment, _| segments.used.contains_key(segment));
        let next = |segment: &SegmentId| SegmentId(segment.0 + 1);
        let unknown = segments.used.keys().filter(|segment| !compaction.ends.contains_key(segment));
        unknown.filter_map(|segment| Some((*segment, segments.used.get(&next(segment))?.clone()))).collect()
    };
    for (segment, file) in unknown {
        if let Some(header) = scan::header(inner, &file, SegmentId(segment.0 + 1)).await {
            inner.compaction.borrow_mut().ends.insert(segment, header.first_sequence);
        }
    }
}

async fn evacuate<R: Runtime>(inner: &Rc<Inner<R>>, segment: SegmentId, alive: u64) {
    let end = inner.compaction.borrow().ends.get(&segment).copied();
    let (left_alone, why) = match Pass::new(inner, segment, end, alive).run().await {
        Ok(Outcome { values, bytes, alive_bytes, packed_bytes, damages }) => {
            inner.compaction.borrow_mut().overhead.learn(alive_bytes, packed_bytes);
            let mut statistics = inner.statistics.borrow_mut();
            statistics.relocated_values += values;
            statistics.relocated_bytes += bytes;
            statistics.segments_compacted += u64::from(damages.is_empty());
            drop(statistics);
            if damages.is_empty() {
                inner.evacuated(segment, packed_bytes);
                return;
            }
            let why = format!("{} values are damaged", damages.len());
            damages.into_iter().for_each(|damage| inner.report(damage));
            (AFTER_DAMAGE, why)
        }
        Err(Failure::Closed) => return,
        Err(Failure::Log(error)) => (AFTER_FAILURE, error.to_string()),
        Err(Failure::Value(error)) => (AFTER_FAILURE, error.to_string()),
        Err(Failure::Index(shard, error)) => {
            inner.report_index(shard, &error);
            let left_alone =
                if matches!(error, ReadError::Corruption(_)) { AFTER_DAMAGE } else { AFTER_FAILURE };
            (left_alone, error.to_string())
        }
    };
    tracing::warn!(log = %inner.options.log, %segment, why, "a segment could not be evacuated");
    inner.compaction.borrow_mut().not_before.insert(segment, inner.runtime.now() + left_alone);
}

/// Removes spare segment files that are more than will be needed soon.
async fn trim<R: Runtime>(inner: &Rc<Inner<R>>, before: Sizes) {
    while inner.poisoned().is_none() && sizes(inner, before.alive).is_over() {
        let file = {
            let spares = inner.spares_wanted();
            let mut segments = inner.segments.borrow_mut();
            if segments.spare.len() <= spares {
                return;
            }
            segments.spare.pop_back()
        };
        let Some(file) = file else { return };
        let path = Segments::<R>::path(&inner.options.directory, file.number);
        drop(file);
        // What stays is a spare again when the log is opened next.
        if let Err(error) = inner.runtime.remove_file(&path).await {
            tracing::warn!(path = %path.display(), %error, "a segment that is not needed stays");
            return;
        }
    }
}
