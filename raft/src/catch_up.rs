//! How closely a member follows: the rounds of catching up by which a leader tells when a learner may become a voter.
//!
//! A voter that lacks much of the log is worse than none: it counts in every quorum, and helps none. So a learner is
//! first filled in rounds (Ongaro's thesis, section 4.2.1). A round is to bring it everything that the log held when
//! the round began; what comes meanwhile is for the next. Rounds grow shorter if the member is faster than
//! the log grows. Once one took no longer than an election timeout, the pause that the change may cause is no
//! longer than an election. Unlike there, the number of rounds is not bounded, as nobody waits for them: whoever
//! proposes is refused until it is so, and decides when to give up.

use std::time::Duration;

use crate::types::{Index, Time};

#[derive(Clone, Debug)]
pub(crate) struct CatchUp {
    rounds: u64,
    /// The round under way: what it is to bring, and since when.
    round: Option<(Index, Time)>,
    /// How long the last complete round took.
    took: Option<Duration>,
}

impl CatchUp {
    /// The first round is to bring everything up to `last`.
    pub(crate) fn new(last: Index, now: Time) -> Self {
        CatchUp { rounds: 0, round: Some((last, now)), took: None }
    }

    /// The member is known to hold everything up to `matched`, of a log that ends at `last`.
    pub(crate) fn observe(&mut self, matched: Index, last: Index, now: Time) {
        if let Some((target, started)) = self.round
            && matched >= target
        {
            self.rounds += 1;
            self.took = Some(now.since(started));
            self.round = None;
        }
        if self.round.is_none() && matched < last {
            self.round = Some((last, now));
        } else if self.round.is_none() {
            // The next round would bring nothing, and so take no time.
            self.took = Some(Duration::ZERO);
        }
    }

    /// Nothing that was observed holds.
    pub(crate) fn start_over(&mut self, last: Index, now: Time) {
        *self = CatchUp { rounds: self.rounds, ..CatchUp::new(last, now) };
    }

    /// Whether the last round took no longer than `limit`, and the one under way has not either, so far.
    pub(crate) fn is_close(&self, now: Time, limit: Duration) -> bool {
        self.took.is_some_and(|took| took <= limit)
            && self.round.is_none_or(|(_, started)| now.since(started) <= limit)
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_nanos(10);

    #[test]
    fn a_member_is_close_after_a_short_round() {
        let mut rounds = CatchUp::new(Index(100), Time(0));
        rounds.observe(Index(60), Index(120), Time(20));
        assert!(!rounds.is_close(Time(20), LIMIT));
        rounds.observe(Index(100), Index(130), Time(30));
        assert!(!rounds.is_close(Time(30), LIMIT), "the first round took 30");
        rounds.observe(Index(130), Index(135), Time(38));
        assert!(rounds.is_close(Time(38), LIMIT) && rounds.is_close(Time(48), LIMIT));
        assert!(!rounds.is_close(Time(49), LIMIT), "the third round takes too long");
        rounds.observe(Index(135), Index(136), Time(60));
        assert!(!rounds.is_close(Time(60), LIMIT), "the third round took 22");
        rounds.observe(Index(136), Index(136), Time(91));
        assert!(rounds.is_close(Time(500), LIMIT), "it lacks nothing");
        assert_eq!(rounds.rounds(), 4);
    }
}
