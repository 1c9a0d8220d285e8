//! The value cache: values by where they lie in the log, within a budget of bytes.
//!
//! The policy is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a value
//! starts in a small queue and moves to the main one only if it was asked for again before it fell out, so a
//! scan over everything passes through the small queue and leaves the rest alone. A ghost list of places
//! that fell out lets a value that returns soon go to the main queue at once.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use krita_runtime::FixedHashMap;

use crate::types::{Extent, value_checksum};

/// The first extent of a value's region: no two values share one.
type Place = Extent;

/// What an entry costs beside its value.
const ENTRY_BYTES: usize = 96;
/// Values up to this length are copied, so that they do not keep the buffer they came in alive.
const COPY_BYTES_MAX: usize = 64 << 10;
/// Most uses that count.
const USES_MAX: u8 = 3;

struct Cached {
    value: Bytes,
    checksum: u32,
    uses: u8,
    main: bool,
}

/// See the module.
pub(crate) struct ValueCache {
    budget: usize,
    values: FixedHashMap<Place, Cached>,
    small: VecDeque<Place>,
    small_bytes: usize,
    main: VecDeque<Place>,
    main_bytes: usize,
    ghost: VecDeque<Place>,
    ghost_places: BTreeSet<Place>,
}

/// What the cache has to say about a value.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Lookup {
    Hit(Bytes),
    Miss,
    /// The bytes in memory are not those that were put in, or belong to another key.
    Damaged,
}

impl ValueCache {
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            budget,
            values: FixedHashMap::default(),
            small: VecDeque::new(),
            small_bytes: 0,
            main: VecDeque::new(),
            main_bytes: 0,
            ghost: VecDeque::new(),
            ghost_places: BTreeSet::new(),
        }
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        self.small_bytes + self.main_bytes
    }

    /// The value at `place`, checked against `key`.
    pub(crate) fn get(&mut self, place: Place, key: &[u8]) -> Lookup {
        let Some(cached) = self.values.get_mut(&place) else { return Lookup::Miss };
        if value_checksum(key, &cached.value) != cached.checksum {
            return Lookup::Damaged;
        }
        cached.uses = (cached.uses + 1).min(USES_MAX);
        Lookup::Hit(cached.value.clone())
    }

    /// Puts a value in, unless it is there or too large to be worth it.
    pub(crate) fn insert(&mut self, place: Place, key: &[u8], value: &Bytes) {
        let cost = value.len() + ENTRY_BYTES;
        if cost > self.budget / 4 || self.values.contains_key(&place) {
            return;
        }
        let checksum = value_checksum(key, value);
        let value = if value.len() <= COPY_BYTES_MAX { Bytes::copy_from_slice(value) } else { value.clone() };
        let main = self.ghost_places.remove(&place);
        self.values.insert(place, Cached { value, checksum, uses: 0, main });
        if main {
            self.main.push_back(place);
            self.main_bytes += cost;
        } else {
            self.small.push_back(place);
            self.small_bytes += cost;
        }
        while self.bytes() > self.budget {
            self.evict();
        }
    }

    fn evict(&mut self) {
        if self.small_bytes * 10 >= self.budget || self.main.is_empty() {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        let Some(place) = self.small.pop_front() else { return };
        let Some(cached) = self.values.get_mut(&place) else { return };
        let cost = cached.value.len() + ENTRY_BYTES;
        self.small_bytes -= cost;
        if cached.uses > 0 {
            cached.uses = 0;
            cached.main = true;
            self.main.push_back(place);
            self.main_bytes += cost;
            return;
        }
        self.values.remove(&place);
        self.ghost.push_back(place);
        self.ghost_places.insert(place);
        while self.ghost.len() > self.values.len().max(16) {
            if let Some(oldest) = self.ghost.pop_front() {
                self.ghost_places.remove(&oldest);
            }
        }
    }

    fn evict_main(&mut self) {
        let Some(place) = self.main.pop_front() else { return };
        let Some(cached) = self.values.get_mut(&place) else { return };
        debug_assert!(cached.main);
        if cached.uses > 0 {
            cached.uses -= 1;
            self.main.push_back(place);
            return;
        }
        self.main_bytes -= cached.value.len() + ENTRY_BYTES;
        self.values.remove(&place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SegmentId;

    fn place(number: u32) -> Place {
        Extent { segment: SegmentId(1), offset: number * 8, length: 4 }
    }

    #[test]
    fn stays_within_its_budget_and_survives_a_scan() {
        let mut cache = ValueCache::new(100_000);
        let value = Bytes::from(vec![7; 1000]);
        for hot in 0..20 {
            cache.insert(place(hot), b"k", &value);
            assert_eq!(cache.get(place(hot), b"k"), Lookup::Hit(value.clone()));
        }
        for cold in 100..2000 {
            cache.insert(place(cold), b"k", &value);
            assert!(cache.bytes() <= 100_000);
        }
        let kept = (0..20).filter(|hot| cache.get(place(*hot), b"k") == Lookup::Hit(value.clone())).count();
        assert_eq!(kept, 20, "values that were asked for twice outlive a scan");
        assert_eq!(cache.get(place(100), b"k"), Lookup::Miss);
    }

    #[test]
    fn another_key_is_not_answered() {
        let mut cache = ValueCache::new(100_000);
        cache.insert(place(1), b"k", &Bytes::from_static(b"v"));
        assert_eq!(cache.get(place(1), b"other"), Lookup::Damaged);
    }
}
