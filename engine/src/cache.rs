//! The two caches of a log, each within a budget of bytes: values by where they lie in the log, and blocks of
//! runs by run and number.
//!
//! The policy is `quick_cache`'s, a relative of CLOCK-PRO and S3-FIFO: what comes new enters a cold queue and
//! moves to the hot ring only if it was asked for again before it fell out, so that a scan over everything
//! passes through and leaves the rest alone; what returns soon after it fell out becomes hot at once. With a
//! fixed hasher its decisions follow from the calls alone, and a simulation replays.

use bytes::Bytes;
use krita_runtime::FixedState;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::types::{Extent, value_checksum};

/// The first extent of a value's region: no two values share one.
type Place = Extent;

/// What an entry costs beside its bytes.
const ENTRY_BYTES: usize = 96;
/// Values up to this length are copied into the cache, so that they do not keep the buffer they came in alive.
pub const CACHE_COPY_BYTES_MAX: usize = 64 << 10;
/// Guess of an entry's mean cost: decides how many that fell out are remembered, nothing else.
const MEAN_BYTES: usize = 4 << 10;

/// What is cached under a key.
trait Cost {
    fn bytes(&self) -> usize;
}

#[derive(Clone)]
struct CostWeighter;

impl<K, V: Cost> Weighter<K, V> for CostWeighter {
    fn weight(&self, _: &K, value: &V) -> u64 {
        (value.bytes() + ENTRY_BYTES) as u64
    }
}

type Bounded<K, V> = Cache<K, V, CostWeighter, FixedState>;

fn bounded<K: Eq + std::hash::Hash, V: Cost>(budget: usize) -> Bounded<K, V> {
    let mut options = OptionsBuilder::new();
    options.estimated_items_capacity(budget / MEAN_BYTES + 16).weight_capacity(budget as u64);
    let options = options.build().expect("both capacities are given");
    Cache::with_options(options, CostWeighter, FixedState::default(), DefaultLifecycle::default())
}

#[derive(Clone)]
struct CachedValue {
    value: Bytes,
    checksum: u32,
}

impl Cost for CachedValue {
    fn bytes(&self) -> usize {
        self.value.len()
    }
}

/// Values with their checksums. See the module.
pub(crate) struct ValueCache {
    budget: usize,
    values: Bounded<Place, CachedValue>,
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
        Self { budget, values: bounded(budget) }
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        bytes_of(self.values.weight())
    }

    /// The value at `place`, checked against `key`.
    pub(crate) fn get(&mut self, place: Place, key: &[u8]) -> Lookup {
        let Some(cached) = self.values.get(&place) else { return Lookup::Miss };
        if value_checksum(key, &cached.value) != cached.checksum {
            return Lookup::Damaged;
        }
        Lookup::Hit(cached.value.clone())
    }

    /// Puts a value in, unless it is there or too large to be worth it.
    pub(crate) fn insert(&mut self, place: Place, key: &[u8], value: &Bytes) {
        if value.len() + ENTRY_BYTES > self.budget / 4 || self.values.peek(&place).is_some() {
            return;
        }
        let checksum = value_checksum(key, value);
        let value =
            if value.len() <= CACHE_COPY_BYTES_MAX { Bytes::copy_from_slice(value) } else { value.clone() };
        self.values.insert(place, CachedValue { value, checksum });
    }

    /// A value lies at another place now.
    pub(crate) fn moved(&mut self, from: Place, to: Place) {
        if let Some((_, value)) = self.values.remove(&from) {
            self.values.insert(to, value);
        }
    }
}

/// A block of a run: the number that the run got when it was opened, and the block's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct BlockKey {
    pub(crate) run: u32,
    pub(crate) block: u32,
}

impl Cost for Bytes {
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// Blocks of runs, checked when they were read. See the module.
pub(crate) struct BlockCache {
    budget: usize,
    blocks: Bounded<BlockKey, Bytes>,
}

impl BlockCache {
    pub(crate) fn new(budget: usize) -> Self {
        Self { budget, blocks: bounded(budget) }
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        bytes_of(self.blocks.weight())
    }

    pub(crate) fn get(&self, key: BlockKey) -> Option<Bytes> {
        self.blocks.get(&key).cloned()
    }

    /// Puts a block in, unless it is there or too large to be worth it. `block` keeps no larger buffer alive.
    pub(crate) fn insert(&mut self, key: BlockKey, block: Bytes) {
        if block.len() + ENTRY_BYTES <= self.budget / 4 && self.blocks.peek(&key).is_none() {
            self.blocks.insert(key, block);
        }
    }
}

/// A sum of lengths in memory.
fn bytes_of(weight: u64) -> usize {
    usize::try_from(weight).unwrap_or(usize::MAX)
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
        assert_eq!(cache.get(place(1900), b"k"), Lookup::Miss, "a scan passes through");
    }

    #[test]
    fn another_key_is_not_answered() {
        let mut cache = ValueCache::new(100_000);
        cache.insert(place(1), b"k", &Bytes::from_static(b"v"));
        assert_eq!(cache.get(place(1), b"other"), Lookup::Damaged);
    }

    #[test]
    fn a_cache_without_a_budget_keeps_nothing() {
        let mut cache = BlockCache::new(0);
        cache.insert(BlockKey { run: 1, block: 2 }, Bytes::from_static(b"block"));
        assert_eq!((cache.get(BlockKey { run: 1, block: 2 }), cache.bytes()), (None, 0));
    }
}
