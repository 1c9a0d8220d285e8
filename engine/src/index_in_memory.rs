//! The index of one shard: an ordered map from key to slot, in memory.
//!
//! A checkpoint must see the map as it was at one moment while applies go on. It walks the map in key order
//! with a cursor; whatever changes a key that the cursor has not reached yet first puts the key's old slot
//! aside, and the walk takes it from there:
//!
//! ```text
//!   keys   a  b  c │ d  e  f  g          old slots put aside:  e -> (none)   g -> slot 4
//!          written ▲ to be written       the walk goes on with:  d  f  g(slot 4)
//!                cursor
//! ```
//!
//! Runs on disk, for an index larger than memory, will take the place of the map below the newest changes.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::types::{SegmentId, Slot};

/// A shard's keys.
#[derive(Default)]
pub(crate) struct KeyIndex {
    slots: BTreeMap<Bytes, Slot>,
    /// How many extents of `slots` lie in each segment; never 0.
    segments: BTreeMap<SegmentId, u64>,
    capture: Option<Capture>,
}

/// A walk under way.
struct Capture {
    /// Every key up to here has been handed out.
    cursor: Option<Bytes>,
    /// Slots as they were at the start, of keys behind the cursor that have changed since.
    aside: BTreeMap<Bytes, Option<Slot>>,
}

impl Capture {
    fn keep(&mut self, key: &Bytes, old: Option<&Slot>) {
        if self.cursor.as_ref().is_none_or(|cursor| key > cursor) && !self.aside.contains_key(key) {
            self.aside.insert(key.clone(), old.cloned());
        }
    }
}

impl KeyIndex {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Slot> {
        self.slots.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Segments that a slot points into.
    pub(crate) fn segments(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.segments.keys().copied()
    }

    pub(crate) fn put(&mut self, key: Bytes, slot: Slot) {
        for extent in slot.region.as_slice() {
            *self.segments.entry(extent.segment).or_default() += 1;
        }
        let old = self.slots.insert(key.clone(), slot);
        self.changed(&key, old);
    }

    pub(crate) fn delete(&mut self, key: &Bytes) {
        let old = self.slots.remove(key);
        self.changed(key, old);
    }

    fn changed(&mut self, key: &Bytes, old: Option<Slot>) {
        if let Some(capture) = &mut self.capture {
            capture.keep(key, old.as_ref());
        }
        for extent in old.iter().flat_map(|slot| slot.region.as_slice()) {
            let count = self.segments.get_mut(&extent.segment).expect("every extent was counted");
            *count -= 1;
            if *count == 0 {
                self.segments.remove(&extent.segment);
            }
        }
    }

    /// Up to `items_max` keys from `start` to `end` (exclusive).
    pub(crate) fn scan(&self, start: &[u8], end: Option<&[u8]>, items_max: usize) -> Vec<(Bytes, Slot)> {
        if end.is_some_and(|end| end <= start) {
            return Vec::new();
        }
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.slots.range::<[u8], _>((Bound::Included(start), end));
        range.take(items_max).map(|(key, slot)| (key.clone(), slot.clone())).collect()
    }

    /// Starts a walk over the map as it is now. One at a time.
    pub(crate) fn start_capture(&mut self) {
        assert!(self.capture.is_none(), "one checkpoint per shard at a time");
        self.capture = Some(Capture { cursor: None, aside: BTreeMap::new() });
    }

    /// Ends the walk, finished or not.
    pub(crate) fn end_capture(&mut self) {
        self.capture = None;
    }

    /// The next keys of the walk, as they were when it started; empty at the end.
    pub(crate) fn next_captured(&mut self, items_max: usize) -> Vec<(Bytes, Slot)> {
        let Some(capture) = &mut self.capture else { return Vec::new() };
        let after = capture.cursor.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let mut live = self.slots.range::<Bytes, _>((after.clone(), Bound::Unbounded)).peekable();
        let mut aside = capture.aside.range::<Bytes, _>((after, Bound::Unbounded)).peekable();
        let mut items = Vec::new();
        let mut cursor = None;
        while items.len() < items_max {
            let take_aside = match (live.peek(), aside.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some((live_key, _)), Some((aside_key, _))) => aside_key <= live_key,
            };
            if !take_aside {
                let Some((key, slot)) = live.next() else { break };
                cursor = Some(key.clone());
                items.push((key.clone(), slot.clone()));
                continue;
            }
            let Some((key, old)) = aside.next() else { break };
            if live.peek().is_some_and(|(live_key, _)| *live_key == key) {
                live.next();
            }
            cursor = Some(key.clone());
            items.extend(old.clone().map(|slot| (key.clone(), slot)));
        }
        if let Some(cursor) = cursor {
            // What lies before the cursor is not needed again.
            let mut rest = capture.aside.split_off(&cursor);
            rest.remove(&cursor);
            capture.aside = rest;
            capture.cursor = Some(cursor);
        }
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Extent, Extents, Index};
    use proptest::prelude::*;

    fn slot(version: u64) -> Slot {
        let extent = Extent { segment: SegmentId(version % 5), offset: 64, length: 4 };
        Slot { version: Index(version), region: Extents::One(extent) }
    }

    proptest! {
        /// A walk in slices of any size sees the state at its start, whatever changes in between.
        #[test]
        fn a_walk_sees_the_start(
            before in proptest::collection::vec((0u8..40, any::<bool>()), 0..60),
            steps in proptest::collection::vec(
                (1usize..5, proptest::collection::vec((0u8..40, any::<bool>()), 0..6)),
                0..80,
            ),
        ) {
            let mut index = KeyIndex::default();
            let mut version = 0;
            let mut change = |index: &mut KeyIndex, key: u8, put: bool| {
                version += 1;
                let key = Bytes::copy_from_slice(&[key]);
                if put { index.put(key, slot(version)) } else { index.delete(&key) }
            };
            for (key, put) in before {
                change(&mut index, key, put);
            }
            let start = index.scan(&[], None, usize::MAX);
            index.start_capture();
            let mut seen = Vec::new();
            for (items, changes) in steps {
                seen.extend(index.next_captured(items));
                for (key, put) in changes {
                    change(&mut index, key, put);
                }
            }
            loop {
                let more = index.next_captured(7);
                if more.is_empty() { break }
                seen.extend(more);
            }
            prop_assert_eq!(seen, start);
            let mut counts: BTreeMap<SegmentId, u64> = BTreeMap::new();
            for (_, slot) in index.scan(&[], None, usize::MAX) {
                *counts.entry(slot.region.as_slice()[0].segment).or_default() += 1;
            }
            prop_assert_eq!(counts, index.segments);
        }
    }
}
