//! How well this node itself does, as far as it can tell from the others (Lifeguard's local health multiplier).
//!
//! A node that is slow hears answers late and finds everybody else dead. What it should have heard for certain (the
//! answers of helpers, its own ticks in time) tells it that the fault is its own; then it asks more slowly and waits
//! for longer.

use std::time::Duration;

/// 0: well. Each point stretches this node's times by their whole length once more.
#[derive(Clone, Debug)]
pub(super) struct LocalHealth {
    score: u32,
    max: u32,
}

impl LocalHealth {
    pub(super) fn new(max: u32) -> Self {
        Self { score: 0, max }
    }

    pub(super) fn score(&self) -> u32 {
        self.score
    }

    pub(super) fn better(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    pub(super) fn worse(&mut self, by: u32) {
        self.score = self.score.saturating_add(by).min(self.max);
    }

    pub(super) fn stretch(&self, time: Duration) -> Duration {
        time * (self.score + 1)
    }
}
