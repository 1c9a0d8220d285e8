//! Which segment to evacuate next, and how fast. Pure: everything is an argument.
//!
//! What is alive in a segment is known from above only: newer layers of an index hide slots of older ones, which
//! count until runs are merged. How much that is in all is estimated from what merges found ([`Hidden`]); the young
//! runs are at most a quarter of the base at rest, so what is left of the error is small where memtables are. A log
//! that may grow to `factor` = 1.25 times of what is held for alive stays below twice what is truly so.
//!
//! ```text
//!   used   ──────────┬───────────────┬───────────────┬──────────▶
//!                  start           start          factor x alive
//!                  moves           moves without   + two segments: writes are
//!                  politely        rest            held up in earnest
//!   urgency          0               1               2
//! ```
//!
//! The victim is the segment with the least alive: under a uniform overwrite of a log that is two thirds alive, victims
//! are about two fifths alive, and every byte is written about 1.7 times.

use std::time::Duration;

use crate::types::SegmentId;

/// A segment of which more than this is alive is not worth moving.
const ALIVE_SHARE_MAX: f64 = 0.9;
/// The shortest part of its time that compaction works while there is something to gain.
const URGENCY_MIN: f64 = 0.1;
/// How fast others may make the log grow where they begin to be held up, in bytes a second, how much slower for every
/// unit of pressure more, and how long one write is held up at most.
const GROWTH: f64 = (256 << 20) as f64;
const GROWTH_FALL: f64 = 4.0;
const HOLD_UP_MAX: Duration = Duration::from_secs(4);
/// Copies that may be there beside what they replace: so large a part of what is alive, beside one segment.
const COPIES_SHARE: f64 = 1.0 / 32.0;
/// The longest pause: the store may be closed meanwhile.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Sizes of a log, in bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Sizes {
    pub(crate) segment: u64,
    /// Segments that hold something, the one being written included; not those that are evacuated.
    pub(crate) used: u64,
    /// Evacuated ones that cannot be used again yet.
    pub(crate) leaving: u64,
    /// What was moved out of those.
    pub(crate) copies: u64,
    /// Segment files that wait to be used.
    pub(crate) spare: u64,
    /// At most this is alive in the used ones.
    pub(crate) alive: u64,
    /// What the log may grow to, in times of `alive`.
    pub(crate) factor: f64,
}

impl Sizes {
    /// What may be used: the segment being written and one more, and `factor` times what is alive.
    fn allowed(&self) -> f64 {
        self.alive as f64 * self.factor + 2.0 * self.segment as f64
    }

    /// How urgent it is to free segments: 0 and less, not at all; 1, as fast as the disk can; 2, the bound is reached.
    pub(crate) fn urgency(&self) -> f64 {
        self.urgency_at(self.used)
    }

    /// The same for who makes the log grow: what is evacuated takes space until it is used again.
    pub(crate) fn pressure(&self) -> f64 {
        self.urgency_at(self.used + self.leaving)
    }

    fn urgency_at(&self, used: u64) -> f64 {
        // What may be used without moving anything is what makes moving cheap: the start lies close to the bound.
        let span = self.segment as f64 / 2.0 + self.alive as f64 / 32.0;
        2.0 + (used as f64 - self.allowed()) / span
    }

    /// Whether there are so many copies whose originals' segments cannot be used again yet that making more would only
    /// make the log larger: checkpoints come first.
    pub(crate) fn has_copies_enough(&self) -> bool {
        self.copies as f64 >= self.segment as f64 + self.alive as f64 * COPIES_SHARE
    }

    /// Whether all files together are so many that replay must let go of segments, too.
    pub(crate) fn is_over(&self) -> bool {
        (self.used + self.leaving + self.spare) as f64 > self.allowed() + self.segment as f64
    }
}

/// What values take in the log beyond their keys and themselves, learnt from those that were moved. For values of a
/// few bytes it is more than they are; a log of such is larger than its bound however it is packed, and moving them
/// again and again would gain nothing.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Overhead(f64);

impl Default for Overhead {
    fn default() -> Self {
        Self(1.0)
    }
}

impl Overhead {
    /// Overhead up to here is part of what the log may use in any case.
    const FREE: f64 = 1.1;
    /// Fewer bytes than these say little.
    const BYTES_MIN: u64 = 4096;

    /// Values that count as `alive` bytes took `packed`.
    pub(crate) fn learn(&mut self, alive: u64, packed: u64) {
        if alive >= Self::BYTES_MIN {
            let seen = (packed as f64 / alive as f64 / Self::FREE).max(1.0);
            self.0 += (seen - self.0) / 2.0;
        }
    }

    /// What `alive` bytes take.
    pub(crate) fn apply(&self, alive: u64) -> u64 {
        (alive as f64 * self.0) as u64
    }
}

/// How much older layers of an index hold that newer ones hide, learnt from merges of whole indexes: a key in a newer
/// layer may be new, or may hide a slot, and only a merge tells.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Hidden {
    /// None before the first such merge: then every key is taken to hide as much as a key of the oldest layer has,
    /// which at worst makes compaction look for what is not there.
    bytes_per_item: Option<f64>,
}

/// What is known of one index: its oldest layer, and the keys above it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Layers {
    pub(crate) items_above: u64,
    pub(crate) oldest_items: u64,
    /// Of slots.
    pub(crate) oldest_bytes: u64,
}

impl Hidden {
    /// A merge of `items` keys with the layer below them turned `before` bytes of slots into `after`.
    pub(crate) fn learn(&mut self, items: u64, before: u64, after: u64) {
        if items > 0 {
            let seen = before.saturating_sub(after) as f64 / items as f64;
            let known = self.bytes_per_item.unwrap_or(seen);
            self.bytes_per_item = Some(known + (seen - known) / 2.0);
        }
    }

    /// What the keys above the oldest layer of an index hide of it.
    pub(crate) fn estimate(&self, layers: Layers) -> u64 {
        let average = layers.oldest_bytes as f64 / layers.oldest_items.max(1) as f64;
        let hidden = layers.items_above as f64 * self.bytes_per_item.unwrap_or(average);
        (hidden as u64).min(layers.oldest_bytes)
    }
}

/// A segment that may be evacuated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Candidate {
    pub(crate) segment: SegmentId,
    /// At most this is alive in it, in bytes.
    pub(crate) alive: u64,
}

/// The segment to evacuate: the one with the least alive, of equals the oldest; none if too much is alive in all.
pub(crate) fn victim(candidates: &[Candidate], segment_bytes: u64) -> Option<SegmentId> {
    let worth = |candidate: &&Candidate| (candidate.alive as f64) <= segment_bytes as f64 * ALIVE_SHARE_MAX;
    let least = candidates.iter().filter(worth).min_by_key(|candidate| (candidate.alive, candidate.segment));
    least.map(|candidate| candidate.segment)
}

/// How long to rest after a slice of work that took `took` and moved `bytes`. The more urgent, the less; and a slice
/// that took long because others use the disk is followed by a long rest. Never faster than `bytes_per_second`, until
/// the log is about to outgrow its bound: then without rest, since dead bytes are made faster than they are cleared.
pub(crate) fn pause(took: Duration, bytes: u64, urgency: f64, bytes_per_second: u64) -> Duration {
    if urgency >= 1.0 {
        return Duration::ZERO;
    }
    let urgency = urgency.max(URGENCY_MIN);
    let polite = took.mul_f64((1.0 - urgency) / urgency);
    let least = Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64);
    polite.max(least.saturating_sub(took)).min(PAUSE_MAX)
}

/// How long to hold up a write of so many bytes of others while segments are evacuated, so that dead bytes are not made
/// faster than they are cleared.
pub(crate) fn hold_up(pressure: f64, bytes: usize) -> Duration {
    if pressure <= 1.0 {
        return Duration::ZERO;
    }
    let rate = GROWTH / GROWTH_FALL.powf((pressure - 1.0).min(10.0));
    Duration::from_secs_f64(bytes as f64 / rate).min(HOLD_UP_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEGMENT: u64 = 1 << 20;

    fn sizes(used: u64, alive: u64) -> Sizes {
        Sizes { segment: SEGMENT, used, leaving: 0, copies: 0, spare: 2 * SEGMENT, alive, factor: 1.5 }
    }

    proptest! {
        #[test]
        fn the_least_alive_goes_first(alive in proptest::collection::vec(0u64..SEGMENT + 1, 0..40)) {
            let candidates: Vec<Candidate> = (1..).zip(&alive)
                .map(|(segment, alive)| Candidate { segment: SegmentId(segment), alive: *alive })
                .collect();
            let chosen = victim(&candidates, SEGMENT);
            let least = candidates.iter().map(|candidate| candidate.alive).min();
            match chosen {
                None => prop_assert!(least.is_none_or(|least| least > SEGMENT * 9 / 10)),
                Some(segment) => {
                    let position = candidates.iter().position(|candidate| Some(candidate.alive) == least);
                    prop_assert_eq!(Some(segment), position.map(|position| candidates[position].segment));
                }
            }
        }

        #[test]
        fn pauses_are_bounded_and_fall_with_urgency(
            took in 0u64..10_000_000, bytes in 0u64..1 << 24, one in -1.0f64..3.0, other in -1.0f64..3.0,
        ) {
            let took = Duration::from_micros(took);
            let (calm, urgent) = if one < other { (one, other) } else { (other, one) };
            let rate = 64 << 20;
            prop_assert!(pause(took, bytes, urgent, rate) <= pause(took, bytes, calm, rate));
            prop_assert!(pause(took, bytes, calm, rate) <= PAUSE_MAX);
            let least = Duration::from_secs_f64(bytes as f64 / rate as f64).min(PAUSE_MAX);
            prop_assert!(urgent >= 1.0 || took + pause(took, bytes, urgent, rate) >= least, "not faster than the rate");
            prop_assert!(urgent < 1.0 || pause(took, bytes, urgent, rate).is_zero());
        }

        #[test]
        fn more_use_is_more_urgent(used in 1u64..1000, alive in 0u64..1000) {
            let (used, alive) = (used * SEGMENT, alive * SEGMENT);
            let now = sizes(used, alive);
            prop_assert!(now.urgency() < sizes(used + SEGMENT, alive).urgency());
            prop_assert!(!now.is_over() || now.urgency() > 0.0, "what is over the bound is urgent");
            prop_assert!(sizes(alive + SEGMENT, alive).urgency() <= 0.0, "a log that is all alive is left alone");
            let bound = sizes(alive * 15 / 10 + 2 * SEGMENT, alive);
            prop_assert!((bound.urgency() - 2.0).abs() < 1e-3);
            prop_assert!(hold_up(now.urgency(), 4096).is_zero() == (now.urgency() <= 1.0));
            prop_assert!(hold_up(now.urgency(), 4096) <= hold_up(now.urgency() + 0.1, 4096));
            prop_assert!(hold_up(now.urgency(), 1 << 30) <= HOLD_UP_MAX);
        }
    }

    #[test]
    fn what_newer_layers_hide_is_learnt_and_bounded() {
        let above = |items_above| Layers { items_above, oldest_items: 10_000, oldest_bytes: 1 << 20 };
        let mut hidden = Hidden::default();
        assert_eq!(hidden.estimate(above(1_000)), (1 << 20) / 10, "each may hide one");
        (0..10).for_each(|_| hidden.learn(100, 50_000, 45_000));
        assert_eq!(hidden.estimate(above(1_000)), 50_000, "every key hid fifty bytes");
        assert_eq!(hidden.estimate(above(1_000_000)), 1 << 20, "no more than there is");
        (0..20).for_each(|_| hidden.learn(100, 40_000, 40_000));
        assert!(hidden.estimate(above(1_000)) < 100, "keys are new now");
        hidden.learn(0, 10, 0);
    }

    /// A log in numbers: overwritten uniformly, with the victim chosen as above. Tells how often a byte is written, and
    /// how many segments there were at most.
    fn overwrite(live_segments: u64, rounds: u64, shadowed: f64) -> (f64, u64) {
        const SLOTS: u64 = 64;
        let keys = live_segments * SLOTS;
        let mut place: Vec<u64> = (0..keys).map(|key| key / SLOTS).collect();
        let mut alive: std::collections::BTreeMap<u64, u64> =
            (0..live_segments).map(|id| (id, SLOTS)).collect();
        let (mut head, mut fill, mut seed) = (live_segments, 0u64, 88172645463325252u64);
        let (mut written, mut moved, mut used_max) = (0u64, 0u64, 0u64);
        alive.insert(head, 0);
        let mut put = |key: u64, place: &mut Vec<u64>, alive: &mut std::collections::BTreeMap<u64, u64>| {
            *alive.get_mut(&place[key as usize]).expect("every place is counted") -= 1;
            place[key as usize] = head;
            *alive.get_mut(&head).expect("the head is counted") += 1;
            fill += 1;
            if fill == SLOTS {
                head += 1;
                fill = 0;
                alive.insert(head, 0);
            }
            head
        };
        for _ in 0..rounds * keys {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let head = put(seed % keys, &mut place, &mut alive);
            written += 1;
            loop {
                alive.retain(|id, count| *id == head || *count > 0);
                let bytes = |slots: u64| slots * SEGMENT / SLOTS;
                let used = alive.len() as u64 * SEGMENT;
                // What is known is more than what is so.
                let known = |slots: u64| ((bytes(slots) as f64) * shadowed) as u64;
                let sizes = sizes(used, known(keys));
                if sizes.urgency() <= 0.0 {
                    break;
                }
                let candidates: Vec<Candidate> = alive
                    .range(..head)
                    .map(|(id, count)| Candidate { segment: SegmentId(*id), alive: known(*count) })
                    .collect();
                let Some(SegmentId(victim)) = victim(&candidates, SEGMENT) else { break };
                for key in 0..keys {
                    if place[key as usize] == victim {
                        put(key, &mut place, &mut alive);
                        moved += 1;
                    }
                }
            }
            used_max = used_max.max(alive.len() as u64);
        }
        ((written + moved) as f64 / written as f64, used_max)
    }

    #[test]
    fn a_uniform_overwrite_stays_within_twice_what_is_alive() {
        for (live, shadowed) in [(4, 1.0), (20, 1.0), (20, 1.25), (40, 1.2)] {
            let (amplification, used_max) = overwrite(live, 8, shadowed);
            println!(
                "{live} segments alive, known as {shadowed} times: written {amplification:.2} times, used {used_max}"
            );
            // Two spare segments are not in it.
            assert!(used_max <= 2 * live + 2, "{used_max} segments for {live}");
            assert!(amplification < 2.2);
        }
    }
}
