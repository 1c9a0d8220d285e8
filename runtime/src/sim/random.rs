//! The one source of chance in a simulation: a small generator that forks into independent streams, so that
//! the network's draws do not shift when a disk draws once more.

use std::cell::Cell;
use std::time::Duration;

use super::options::Latency;

/// A seeded generator: xoshiro256** by Blackman and Vigna, started by splitmix64 as its authors advise.
/// Draws through `&self`, since every part of the simulator shares it on one thread.
pub struct Random {
    state: Cell<[u64; 4]>,
}

impl Random {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut seed = seed;
        let mut state = [0; 4];
        for word in &mut state {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *word = mix(seed);
        }
        Self { state: Cell::new(state) }
    }

    /// A new generator whose draws are independent of this one's. `label` tells forks of one state apart.
    pub fn fork(&self, label: u64) -> Self {
        Self::new(self.next() ^ mix(label))
    }

    /// A new generator like [`Self::fork`]'s, without a draw from this one: what comes later can be given chance
    /// of its own and leaves all other draws as they were. The same state and label give the same generator.
    pub(crate) fn aside(&self, label: u64) -> Self {
        let state = self.state.get();
        Self::new(mix(state[0] ^ state[3].rotate_left(17)) ^ mix(label))
    }

    /// A uniformly distributed number.
    pub fn next(&self) -> u64 {
        let mut state = self.state.get();
        let result = state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = state[1] << 17;
        state[2] ^= state[0];
        state[3] ^= state[1];
        state[1] ^= state[2];
        state[0] ^= state[3];
        state[2] ^= shifted;
        state[3] = state[3].rotate_left(45);
        self.state.set(state);
        result
    }

    /// A number from 0 to `bound`, exclusive. `bound` must not be zero.
    pub fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below zero");
        // The high half of a 128-bit product: no division, and a bias too small to matter here.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// An index into something of `length` elements.
    pub fn index(&self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// A number from `low` to `high`, both inclusive.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "an empty range");
        match (high - low).checked_add(1) {
            Some(width) => low + self.below(width),
            None => self.next(),
        }
    }

    /// True with probability `chance` (0 to 1). Draws nothing when the outcome is certain.
    pub fn chance(&self, chance: f64) -> bool {
        if chance <= 0.0 {
            return false;
        }
        chance >= 1.0 || self.unit() < chance
    }

    /// A latency in nanoseconds: mostly near the low end, now and then near the high one.
    pub fn latency(&self, latency: Latency) -> u64 {
        let low = nanoseconds(latency.min);
        let high = nanoseconds(latency.max).max(low);
        if low == high {
            return low;
        }
        let unit = self.unit();
        low + ((high - low) as f64 * unit * unit * unit) as u64
    }

    /// Uniform from 0 to 1, exclusive.
    fn unit(&self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Whole nanoseconds of a duration, saturating after 584 years.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_draws() {
        let draws = |seed| (0..8).map(|_| Random::new(seed).next()).collect::<Vec<_>>();
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
    }

    #[test]
    fn forks_differ_by_label_and_do_not_disturb_each_other() {
        let parent = Random::new(1);
        let (left, right) = (parent.fork(1), parent.fork(2));
        let undisturbed = Random::new(1).fork(1);
        for _ in 0..100 {
            right.next();
        }
        assert_eq!(left.next(), undisturbed.next());
        assert_ne!(left.next(), right.next());
    }

    #[test]
    fn ranges_hold() {
        let random = Random::new(3);
        let latency = Latency::micros(10, 500);
        for _ in 0..10_000 {
            assert!(random.below(3) < 3);
            assert!((5..=9).contains(&random.between(5, 9)));
            assert!((10_000..=500_000).contains(&random.latency(latency)));
        }
        assert_eq!(random.latency(Latency::ZERO), 0);
        let heads = (0..10_000).filter(|_| random.chance(0.25)).count();
        assert!((2_300..2_700).contains(&heads), "{heads}");
    }
}
