//! When operations begin: at once after the last one (closed loop), or at times that were fixed beforehand (open loop).
//!
//! In an open loop an operation's time counts from when it was to begin, not from when a worker was free to begin it.
//! So the queue that forms behind a slow answer is in the figures: nothing is omitted because the load waited.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::values::Random;

/// How an open loop spaces its operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Arrivals {
    /// At equal distances.
    Constant,
    /// At random (a Poisson process), as from many people.
    Poisson,
}

/// The times at which one thread's operations begin.
#[derive(Debug)]
pub struct Schedule {
    next: Instant,
    mean: Duration,
    arrivals: Arrivals,
    random: Random,
    given: u64,
}

impl Schedule {
    /// From `start` on, `per_second` operations a second, which is above 0.
    pub fn new(start: Instant, per_second: f64, arrivals: Arrivals, random: Random) -> Self {
        let mean = Duration::from_secs_f64(1.0 / per_second);
        Self { next: start, mean, arrivals, random, given: 0 }
    }

    /// When the next operation is to begin. The past is caught up with, never skipped.
    pub fn take(&mut self) -> Instant {
        let due = self.next;
        self.given += 1;
        self.next += match self.arrivals {
            Arrivals::Constant => self.mean,
            // The unit lies below 1, so the logarithm is finite.
            Arrivals::Poisson => self.mean.mul_f64(-(1.0 - self.random.unit()).ln()),
        };
        due
    }

    /// How many operations were due by then and have not begun.
    pub fn behind(&self, now: Instant) -> u64 {
        let late = now.saturating_duration_since(self.next);
        (late.as_secs_f64() / self.mean.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_the_past_is_not_skipped() {
        let start = Instant::now();
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            let mut schedule = Schedule::new(start, 1_000.0, arrivals, Random::new(1));
            let mut last = start;
            for _ in 0..10_000 {
                let due = schedule.take();
                assert!(due >= last);
                last = due;
            }
            let seconds = last.duration_since(start).as_secs_f64();
            assert!((9.5..10.5).contains(&seconds), "{arrivals:?}: {seconds}");
            let behind = schedule.behind(schedule.next + Duration::from_secs(3));
            assert!((2_990..=3_010).contains(&behind), "{behind}");
        }
    }
}
