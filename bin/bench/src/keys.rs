//! Which key an operation is on: uniform, zipfian, latest, or most of them in one shard.
//!
//! The zipfian generator is that of Gray et al. ("Quickly generating billion-record synthetic databases", SIGMOD 1994),
//! with the constant that YCSB made usual (Cooper et al., SoCC 2010), 0.99. Popular keys are scattered over the
//! key space, so that they do not share a shard.

use std::rc::Rc;

use clap::ValueEnum;
use krita_proto::routing::shard_of;

use crate::values::{Random, Shape, mixed};

/// The skew of YCSB.
const THETA: f64 = 0.99;

/// Of a hundred operations of the hot-shard distribution, how many are on the hot shard.
const HOT_PERCENT: u64 = 90;

/// The hot shard.
const HOT_SHARD: u32 = 1;

/// How keys are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Distribution {
    /// Each key alike.
    Uniform,
    /// A few keys are much more popular, wherever they lie.
    Zipfian,
    /// The keys that were added last are the most popular.
    Latest,
    /// Nine of ten operations are on the keys of one shard.
    HotShard,
}

/// Precomputed once for all threads: sums over all keys take a while.
#[derive(Clone, Copy, Debug)]
pub struct Zipf {
    count: u64,
    zeta_of_count: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    /// Ranks 0 to `count`, exclusive; rank 0 is the most popular.
    pub fn new(count: u64) -> Self {
        let zeta = |count: u64| (1..=count).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let zeta_of_count = zeta(count);
        let eta = (1.0 - (2.0 / count as f64).powf(1.0 - THETA)) / (1.0 - zeta(2) / zeta_of_count);
        Self { count, zeta_of_count, alpha: 1.0 / (1.0 - THETA), eta }
    }

    /// A rank.
    pub fn rank(&self, random: &mut Random) -> u64 {
        let unit = random.unit();
        let scaled = unit * self.zeta_of_count;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(THETA) {
            return 1.min(self.count - 1);
        }
        let rank = self.count as f64 * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.count - 1)
    }
}

/// The keys of one thread: every `of`-th key number is its own, so that it knows what it wrote last.
#[derive(Clone, Debug)]
pub struct Keys {
    distribution: Distribution,
    thread: u64,
    threads: u64,
    /// How many of its own keys there are now; inserts add more.
    count: u64,
    zipf: Zipf,
    hot: Rc<[u64]>,
}

impl Keys {
    /// The share of `thread`, of `threads`, of `keys` keys. `shards` says how many shards the cluster has.
    pub fn new(
        distribution: Distribution,
        keys: u64,
        thread: u64,
        threads: u64,
        shape: &Shape,
        shards: u32,
    ) -> Self {
        let count = (keys.saturating_sub(thread)).div_ceil(threads).max(1);
        let own = |position: u64| position * threads + thread;
        let hot: Rc<[u64]> = match distribution {
            Distribution::HotShard => {
                let is_hot = |position: &u64| shard_of(&shape.key(own(*position)), shards) == HOT_SHARD;
                (0..count).filter(is_hot).collect()
            }
            Distribution::Uniform | Distribution::Zipfian | Distribution::Latest => Rc::new([]),
        };
        let zipf = match distribution {
            Distribution::Zipfian | Distribution::Latest => Zipf::new(count),
            Distribution::Uniform | Distribution::HotShard => Zipf::new(2),
        };
        Self { distribution, thread, threads, count, zipf, hot }
    }

    /// How many keys this thread has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The number of an own key.
    pub fn number(&self, position: u64) -> u64 {
        position * self.threads + self.thread
    }

    /// The position of a key among this thread's, if it is its own.
    pub fn position(&self, number: u64) -> Option<u64> {
        (number % self.threads == self.thread).then_some(number / self.threads)
    }

    /// The position of a key to work on.
    pub fn pick(&self, random: &mut Random) -> u64 {
        match self.distribution {
            Distribution::Uniform => random.below(self.count),
            Distribution::Zipfian => mixed(self.zipf.rank(random)) % self.count,
            Distribution::Latest => self.count - 1 - self.zipf.rank(random).min(self.count - 1),
            Distribution::HotShard if !self.hot.is_empty() && random.below(100) < HOT_PERCENT => {
                let at = random.below(self.hot.len() as u64);
                self.hot[usize::try_from(at).unwrap_or(0)]
            }
            Distribution::HotShard => random.below(self.count),
        }
    }

    /// The position of a key that is new.
    pub fn add(&mut self) -> u64 {
        self.count += 1;
        self.count - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape { keys: "14".parse().unwrap(), values: "16".parse().unwrap() }
    }

    fn picks(distribution: Distribution, count: u64) -> Vec<u64> {
        let keys = Keys::new(distribution, count, 0, 1, &shape(), 64);
        let mut random = Random::new(5);
        let mut times = vec![0; usize::try_from(count).unwrap()];
        for _ in 0..100_000 {
            times[usize::try_from(keys.pick(&mut random)).unwrap()] += 1;
        }
        times
    }

    #[test]
    fn each_distribution_has_its_skew() {
        let uniform = picks(Distribution::Uniform, 1_000);
        assert!(uniform.iter().all(|times| (40..220).contains(times)), "{uniform:?}");
        let mut zipfian = picks(Distribution::Zipfian, 1_000);
        zipfian.sort_unstable_by(|a, b| b.cmp(a));
        // The most popular of 1,000 ranks has 1 / zeta(1,000) of all, which is 12.9 %.
        assert!((12_000..16_500).contains(&zipfian[0]), "{}", zipfian[0]);
        let latest = picks(Distribution::Latest, 1_000);
        assert!(latest[999] > 10_000 && latest[..500].iter().sum::<u64>() < 15_000);
        let hot = picks(Distribution::HotShard, 10_000);
        let on_hot: u64 = (0..10_000)
            .filter(|number| shard_of(&shape().key(*number), 64) == HOT_SHARD)
            .map(|number| hot[usize::try_from(number).unwrap()])
            .sum();
        assert!((88_000..93_000).contains(&on_hot), "{on_hot}");
    }

    #[test]
    fn threads_share_the_keys_out() {
        let mut all: Vec<u64> = Vec::new();
        for thread in 0..3 {
            let keys = Keys::new(Distribution::Uniform, 100, thread, 3, &shape(), 64);
            for position in 0..keys.count() {
                let number = keys.number(position);
                assert_eq!(keys.position(number), Some(position));
                all.push(number);
            }
        }
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<u64>>());
    }
}
