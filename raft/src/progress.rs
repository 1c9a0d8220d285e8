//! A leader's view of one other member, and how much it may be sent.

use std::collections::VecDeque;

use crate::catch_up::CatchUp;
use crate::healer::Doubted;
use crate::status::ReplicationMode;
use crate::types::{Index, Round, Time};

/// A member that was removed is replicated to for a moment more, so that it learns of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Departing {
    /// The entry without it.
    pub(crate) removed_by: Index,
    /// From then on it gets no more; set once that entry is committed.
    pub(crate) until: Option<Time>,
}

/// Invariants: `matched < next`; the in-flight indices ascend and lie in `matched + 1 ..= next - 1`.
pub(crate) struct Progress {
    /// The member's log is durable and equal to ours up to here; only ever from its own acknowledgements.
    pub(crate) matched: Index,
    /// What it is sent next.
    pub(crate) next: Index,
    pub(crate) mode: ReplicationMode,
    /// In `Probe`: an append is on its way; the next waits for an answer, or for a heartbeat's.
    pub(crate) waiting: bool,
    /// Old entries for it are being read from disk; nothing else is sent meanwhile.
    pub(crate) loading: bool,
    /// The newest round that it has answered.
    pub(crate) acknowledged: Round,
    /// When it was last heard, in this term.
    pub(crate) heard_at: Time,
    /// How often it was found to be suspect, or whole again, in this term.
    pub(crate) doubts: u64,
    /// It is suspect, and counts for nothing.
    pub(crate) doubted: Option<Doubted>,
    /// It asks for a snapshot only in answers to rounds after this one: older answers ask for one that it has got.
    pub(crate) snapshot_round: Round,
    /// How closely it follows.
    pub(crate) catch_up: CatchUp,
    /// It is no member any more, and is told so.
    pub(crate) departing: Option<Departing>,
    /// (last index, bytes) of the appends on their way, in `Pipeline`.
    inflight: VecDeque<(Index, usize)>,
    inflight_bytes: usize,
}

impl Progress {
    pub(crate) fn new(next: Index, now: Time) -> Self {
        Progress {
            matched: Index(0),
            next,
            mode: ReplicationMode::Probe,
            waiting: false,
            loading: false,
            acknowledged: Round(0),
            heard_at: now,
            doubts: 0,
            doubted: None,
            snapshot_round: Round(0),
            catch_up: CatchUp::new(next, now),
            departing: None,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    pub(crate) fn inflight(&self) -> usize {
        self.inflight.len()
    }

    /// What of `matched` counts towards a quorum.
    pub(crate) fn matched_counted(&self) -> Index {
        if self.doubted.is_some() { Index(0) } else { self.matched }
    }

    /// What of `acknowledged` counts towards a quorum.
    pub(crate) fn acknowledged_counted(&self) -> Round {
        if self.doubted.is_some() { Round(0) } else { self.acknowledged }
    }

    /// Whether the window of a pipelined member has room for another append.
    pub(crate) fn has_room(&self, messages_max: usize, bytes_max: usize) -> bool {
        self.inflight.len() < messages_max && self.inflight_bytes < bytes_max
    }

    /// An append up to `through` was sent.
    pub(crate) fn sent(&mut self, through: Index, bytes: usize) {
        match self.mode {
            ReplicationMode::Probe => self.waiting = true,
            ReplicationMode::Pipeline => {
                if through >= self.next {
                    self.next = through.next();
                    self.inflight.push_back((through, bytes));
                    self.inflight_bytes += bytes;
                }
            }
            ReplicationMode::Snapshot => unreachable!("nothing is appended while a snapshot is on its way"),
        }
    }

    /// The member acknowledged everything up to `matched`.
    pub(crate) fn accepted(&mut self, matched: Index) {
        self.matched = self.matched.max(matched);
        while self.inflight.front().is_some_and(|(through, _)| *through <= matched) {
            self.inflight_bytes -= self.inflight.pop_front().map_or(0, |(_, bytes)| bytes);
        }
        if self.mode == ReplicationMode::Probe && matched.next() >= self.next {
            self.mode = ReplicationMode::Pipeline;
            self.waiting = false;
        }
        self.next = self.next.max(self.matched.next());
    }

    /// Starts over from `next`, one append at a time.
    pub(crate) fn probe(&mut self, next: Index) {
        self.mode = ReplicationMode::Probe;
        self.next = next.max(self.matched.next());
        self.waiting = false;
        self.loading = false;
        self.inflight.clear();
        self.inflight_bytes = 0;
    }

    /// What it needs is gone from the log: nothing more until the snapshot's fate is known.
    pub(crate) fn snapshot(&mut self) {
        self.probe(self.next);
        self.mode = ReplicationMode::Snapshot;
    }
}
