//! How patient a client is: pauses that grow and differ, and a budget that keeps retries from becoming a storm.

use std::time::Duration;

use crate::core::Moment;

/// How calls are retried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// How long one attempt may take before the next one goes elsewhere.
    pub attempt_timeout: Duration,
    /// First pause between attempts; it doubles from one to the next.
    pub pause_min: Duration,
    /// Longest pause between attempts, but for one that the server asks for.
    pub pause_max: Duration,
    /// Most retries of one call, besides redirects that are followed at once.
    pub retries_max: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(2),
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_millis(500),
            retries_max: 1_000,
        }
    }
}

impl RetryPolicy {
    /// The pause before the retry that follows `pauses` earlier ones, in milliseconds: between a half and the whole
    /// of an exponentially growing bound, so that clients that failed together do not return together.
    pub fn pause_ms(&self, pauses: u32, random: u64) -> u64 {
        let grown = milliseconds(self.pause_min).saturating_mul(1 << pauses.min(20));
        let bound = grown.min(milliseconds(self.pause_max)).max(1);
        let half = bound / 2;
        half + random % (bound - half + 1)
    }
}

/// A duration in whole milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A token bucket for retries, shared by all calls of a client. A good answer earns a fraction of a retry and time
/// earns some, so that retries stay a bounded share of the load, while a small client is never stuck.
#[derive(Clone, Copy, Debug)]
pub struct RetryBudget {
    /// In thousandths of a retry; at most [`Self::CAPACITY`].
    tokens: u64,
    filled_at: Moment,
}

impl RetryBudget {
    const RETRY: u64 = 1_000;
    const CAPACITY: u64 = 1_000 * Self::RETRY;
    const PER_SUCCESS: u64 = Self::RETRY / 5;
    /// 200 retries per second.
    const PER_MILLISECOND: u64 = Self::RETRY / 5;

    /// A full budget.
    pub fn new(now: Moment) -> Self {
        Self { tokens: Self::CAPACITY, filled_at: now }
    }

    /// A call was answered well.
    pub fn succeeded(&mut self) {
        self.tokens = (self.tokens + Self::PER_SUCCESS).min(Self::CAPACITY);
    }

    /// Takes one retry out. Returns how long to wait before it may be sent, in milliseconds: 0 while the budget
    /// lasts.
    pub fn take(&mut self, now: Moment) -> u64 {
        let earned = now.since(self.filled_at).saturating_mul(Self::PER_MILLISECOND);
        self.filled_at = self.filled_at.max(now);
        self.tokens = self.tokens.saturating_add(earned).min(Self::CAPACITY);
        match self.tokens.checked_sub(Self::RETRY) {
            Some(rest) => {
                self.tokens = rest;
                0
            }
            None => {
                // Borrowed from the time to come: whoever asks next waits longer. `filled_at` may be ahead of now.
                let missing_ms = (Self::RETRY - self.tokens).div_ceil(Self::PER_MILLISECOND);
                self.tokens = 0;
                self.filled_at = self.filled_at.after(missing_ms);
                self.filled_at.since(now)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pauses_grow_within_their_bounds(pauses in 0u32..100, random: u64) {
            let policy = RetryPolicy::default();
            let pause = policy.pause_ms(pauses, random);
            let bound = (20u64 << pauses.min(20)).min(500);
            prop_assert!(pause >= bound / 2 && pause <= bound);
        }

        #[test]
        fn the_budget_bounds_the_rate_of_retries(arrivals in prop::collection::vec(0u64..20, 1..2000)) {
            let mut now = Moment(5);
            let mut budget = RetryBudget::new(now);
            let mut sent_at = Vec::new();
            for gap in arrivals {
                now = now.after(gap);
                sent_at.push(now.after(budget.take(now)));
            }
            sent_at.sort();
            for (count, at) in sent_at.iter().enumerate() {
                let allowed = 1_000 + at.since(Moment(5)) / 5;
                prop_assert!(count as u64 <= allowed, "{count} retries by {at:?}");
            }
        }
    }

    #[test]
    fn successes_earn_retries() {
        let mut budget = RetryBudget::new(Moment(0));
        for _ in 0..1_000 {
            assert_eq!(budget.take(Moment(0)), 0);
        }
        assert_eq!(budget.take(Moment(0)), 5);
        assert_eq!(budget.take(Moment(0)), 10);
        for _ in 0..5 {
            budget.succeeded();
        }
        assert_eq!(budget.take(Moment(0)), 0);
    }
}
