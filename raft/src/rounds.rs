//! Heartbeat rounds: what a lease and a confirmed read both rest on.
//!
//! A round starts at one moment of the leader's clock. Whatever is sent from then until the next round starts
//! carries its number, and an answer to it proves that the sender still followed the leader at some moment
//! after the round's start. So when a quorum has answered round r or a later one,
//!
//! - no other leader was elected before round r started: reads that arrived before that may be served;
//! - each voter of the quorum heard the leader after the start, and will help nobody else for an election
//!   timeout from then: the leader may answer alone until start + lease. Counting from the moment when an
//!   *answer* arrives instead would claim time that no voter has promised.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::{Index, ReadToken, Round, Time};

/// Rounds remembered at most. A quorum slower than this many rounds gives no lease.
const ROUNDS_MAX: usize = 64;

/// The rounds of one leader.
pub(crate) struct Rounds {
    newest: Round,
    /// When each started, oldest first.
    started: VecDeque<(Round, Time)>,
    /// Rounds up to here give no lease: since then the leader was silent or paused.
    void_through: Round,
}

impl Rounds {
    pub(crate) fn new() -> Self {
        Rounds { newest: Round(0), started: VecDeque::new(), void_through: Round(0) }
    }

    pub(crate) fn newest(&self) -> Round {
        self.newest
    }

    pub(crate) fn start(&mut self, now: Time) -> Round {
        self.newest = self.newest.next();
        self.started.push_back((self.newest, now));
        if self.started.len() > ROUNDS_MAX {
            self.started.pop_front();
        }
        self.newest
    }

    /// The lease that a quorum's answers to `confirmed` give.
    pub(crate) fn lease_until(&self, confirmed: Round, lease: Duration) -> Option<Time> {
        if confirmed <= self.void_through {
            return None;
        }
        let (_, started) = self.started.iter().find(|(round, _)| *round == confirmed)?;
        Some(started.after(lease))
    }

    /// Forgets the rounds before `confirmed`, which nothing will ask for again.
    pub(crate) fn forget_before(&mut self, confirmed: Round) {
        while self.started.front().is_some_and(|(round, _)| *round < confirmed) {
            self.started.pop_front();
        }
    }

    /// Ends the lease: only rounds that start from now on give one.
    pub(crate) fn void(&mut self) {
        self.void_through = self.newest;
    }
}

/// The reads that wait for a quorum's confirmation, batched by round: while one round is out, those that
/// arrive wait together for the next.
pub(crate) struct Reads {
    /// Arrived since the last round started.
    waiting: Vec<ReadToken>,
    /// Waiting for a quorum's answers to a round, with the index that they read at; by round, ascending.
    confirming: VecDeque<(Round, Index, Vec<ReadToken>)>,
    count: usize,
}

impl Reads {
    pub(crate) fn new() -> Self {
        Reads { waiting: Vec::new(), confirming: VecDeque::new(), count: 0 }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn wait(&mut self, token: ReadToken) {
        self.waiting.push(token);
        self.count += 1;
    }

    /// Whether a round should be started for the sake of reads alone.
    pub(crate) fn want_round(&self) -> bool {
        !self.waiting.is_empty() && self.confirming.is_empty()
    }

    /// A round has started: everything that arrived before it reads at `commit` once it is confirmed.
    pub(crate) fn round_started(&mut self, round: Round, commit: Index) {
        if !self.waiting.is_empty() {
            self.confirming.push_back((round, commit, std::mem::take(&mut self.waiting)));
        }
    }

    /// A quorum has answered `round` or a later one: these may be served, each from its index on.
    pub(crate) fn confirmed(&mut self, round: Round) -> Vec<(ReadToken, Index)> {
        let mut done = Vec::new();
        while self.confirming.front().is_some_and(|(needed, _, _)| *needed <= round) {
            if let Some((_, index, tokens)) = self.confirming.pop_front() {
                self.count -= tokens.len();
                done.extend(tokens.into_iter().map(|token| (token, index)));
            }
        }
        done
    }

    /// Everything that is not answered, to be failed.
    pub(crate) fn take_all(&mut self) -> Vec<ReadToken> {
        self.count = 0;
        let mut tokens: Vec<ReadToken> =
            std::mem::take(&mut self.confirming).into_iter().flat_map(|(_, _, tokens)| tokens).collect();
        tokens.append(&mut self.waiting);
        tokens
    }
}
