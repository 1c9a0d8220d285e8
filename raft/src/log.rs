//! What a replica remembers of its log: the terms of all of it, and the entries of its newest part.
//!
//! ```text
//!   start        window start           durable      handed      last
//!     |               |                    |            |          |
//!  ---+---------------+--------------------+------------+----------+
//!  gone | on disk only | memory and disk   | on its way | not yet
//!       |              |                   | to disk    | handed out
//! ```
//!
//! `commit` may lie anywhere from `start` on, also beyond `durable`: others may hold what this disk does not yet.
//!
//! Invariants:
//!
//! 1. `start.index <= applied <= apply_through = min(commit, durable)`, `commit <= last`.
//! 2. `durable <= handed <= last`.
//! 3. The window holds a contiguous suffix of the log that ends at `last`, and everything above `durable`.
//! 4. Terms never decrease along the log; `runs` covers exactly `start.index + 1 ..= last`.
//! 5. A truncation never touches `commit` or below.
//! 6. `commit` and `apply_through` never decrease.

use std::collections::VecDeque;

use crate::types::{Entry, Index, Payload, Position, Term, TermRun};

pub(crate) struct Log<P> {
    start: Position,
    runs: VecDeque<TermRun>,
    window: VecDeque<Entry<P>>,
    window_bytes: usize,
    window_bytes_max: usize,
    last: Index,
    handed: Index,
    durable: Index,
    commit: Index,
    applied: Index,
    truncate_after: Option<Index>,
}

/// Where a log starts from.
pub(crate) struct LogStart {
    pub(crate) start: Position,
    pub(crate) runs: Vec<TermRun>,
    pub(crate) last: Index,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    pub(crate) window_bytes_max: usize,
}

impl<P: Payload> Log<P> {
    pub(crate) fn new(from: LogStart) -> Self {
        let log = Log {
            start: from.start,
            runs: from.runs.into(),
            window: VecDeque::new(),
            window_bytes: 0,
            window_bytes_max: from.window_bytes_max,
            last: from.last,
            handed: from.last,
            durable: from.last,
            commit: from.commit,
            applied: from.applied,
            truncate_after: None,
        };
        log.check();
        log
    }

    pub(crate) fn start(&self) -> Position {
        self.start
    }

    pub(crate) fn last(&self) -> Index {
        self.last
    }

    pub(crate) fn last_term(&self) -> Term {
        self.runs.back().map_or(self.start.term, |run| run.term)
    }

    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    pub(crate) fn commit(&self) -> Index {
        self.commit
    }

    pub(crate) fn applied(&self) -> Index {
        self.applied
    }

    /// Applying never runs ahead of this replica's own disk, whatever the others hold.
    pub(crate) fn apply_through(&self) -> Index {
        self.commit.min(self.durable)
    }

    /// The first index in memory; `last + 1` if none is.
    pub(crate) fn window_start(&self) -> Index {
        self.window.front().map_or(self.last.next(), |entry| entry.index)
    }

    pub(crate) fn term_of(&self, index: Index) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        if index < self.start.index || index > self.last {
            return None;
        }
        let after = self.runs.partition_point(|run| run.first <= index);
        Some(self.runs[after - 1].term)
    }

    pub(crate) fn contains(&self, position: Position) -> bool {
        self.term_of(position.index) == Some(position.term)
    }

    /// Whether a log that ends at `other` holds at least what this one does, so that its owner may lead.
    pub(crate) fn is_behind_or_equal(&self, other: Position) -> bool {
        (other.term, other.index) >= (self.last_term(), self.last)
    }

    /// The last position at or before `index` whose term is at most `term`. If (`index`, `term`) is where another
    /// log was found to differ, the two can agree no later than here; whole terms are skipped at a time.
    pub(crate) fn last_at_most(&self, index: Index, term: Term) -> Position {
        let mut end = self.last;
        for run in self.runs.iter().rev() {
            if run.term <= term && run.first <= index {
                return Position { index: end.min(index), term: run.term };
            }
            end = run.first.previous();
        }
        self.start
    }

    pub(crate) fn append(&mut self, entry: Entry<P>) {
        assert_eq!(entry.index, self.last.next(), "the log has no gaps");
        assert!(entry.term >= self.last_term(), "terms never decrease along the log");
        if self.runs.is_empty() || entry.term > self.last_term() {
            self.runs.push_back(TermRun { first: entry.index, term: entry.term });
        }
        self.last = entry.index;
        self.window_bytes += entry.cost();
        self.window.push_back(entry);
    }

    /// Drops everything after `after`.
    pub(crate) fn truncate(&mut self, after: Index) {
        assert!(
            after >= self.commit,
            "a truncation to {after} would touch what is committed ({})",
            self.commit
        );
        if after >= self.last {
            return;
        }
        while self.runs.back().is_some_and(|run| run.first > after) {
            self.runs.pop_back();
        }
        while self.window.back().is_some_and(|entry| entry.index > after) {
            self.window_bytes -= self.window.pop_back().map_or(0, |entry| entry.cost());
        }
        self.last = after;
        if self.handed > after {
            self.handed = after;
            self.truncate_after = Some(self.truncate_after.map_or(after, |earlier| earlier.min(after)));
        }
        self.durable = self.durable.min(after);
    }

    pub(crate) fn has_unhanded(&self) -> bool {
        self.handed < self.last || self.truncate_after.is_some()
    }

    /// What is to be written next: a truncation, then entries.
    pub(crate) fn take_unhanded(&mut self) -> (Option<Index>, Vec<Entry<P>>) {
        // The window holds everything above `durable`, and so above `handed`, without gaps.
        let unhanded = (self.last.0 - self.handed.0) as usize;
        let skip = self.window.len().saturating_sub(unhanded);
        let entries: Vec<Entry<P>> = self.window.range(skip..).cloned().collect();
        debug_assert!(entries.first().is_none_or(|entry| entry.index == self.handed.next()));
        assert_eq!(entries.len() as u64, self.last.0 - self.handed.0, "what is not handed out is in memory");
        self.handed = self.last;
        (self.truncate_after.take(), entries)
    }

    /// Everything handed out up to `through`, and not truncated since, is durable.
    pub(crate) fn set_durable(&mut self, through: Index) {
        assert!(through <= self.handed, "only what was handed out can be durable");
        self.durable = self.durable.max(through);
        self.evict();
    }

    fn evict(&mut self) {
        while self.window_bytes > self.window_bytes_max
            && self.window.front().is_some_and(|entry| entry.index <= self.durable)
        {
            self.window_bytes -= self.window.pop_front().map_or(0, |entry| entry.cost());
        }
    }

    /// Raises the commit index; lower values are old news. Returns whether it moved.
    pub(crate) fn set_commit(&mut self, commit: Index) -> bool {
        assert!(commit <= self.last, "commit {commit} is beyond the log's end {}", self.last);
        let moved = commit > self.commit;
        self.commit = self.commit.max(commit);
        moved
    }

    pub(crate) fn set_applied(&mut self, applied: Index) {
        assert!(applied >= self.applied, "applied goes back from {} to {applied}", self.applied);
        assert!(applied <= self.apply_through(), "applied {applied} runs ahead of {}", self.apply_through());
        self.applied = applied;
    }

    /// Entries from `from` on, at least one, up to `bytes_max` and the log's end; `None` if `from` is not in memory.
    pub(crate) fn slice(&self, from: Index, bytes_max: usize) -> Option<Vec<Entry<P>>> {
        if from < self.window_start() || from > self.last {
            return None;
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.from(from) {
            bytes += entry.cost();
            if !entries.is_empty() && bytes > bytes_max {
                break;
            }
            entries.push(entry.clone());
        }
        Some(entries)
    }

    /// The entries in memory from `from` on; none if `from` itself is not in memory.
    pub(crate) fn from(&self, from: Index) -> impl Iterator<Item = &Entry<P>> {
        let start = self.window_start();
        let skip = if from < start { self.window.len() } else { (from.0 - start.0) as usize };
        self.window.range(skip.min(self.window.len())..)
    }

    /// The prefix before `first` is gone, behind a durable checkpoint.
    pub(crate) fn truncate_before(&mut self, first: Index) {
        let index = first.previous();
        if index <= self.start.index {
            return;
        }
        assert!(
            index <= self.applied,
            "the log is truncated before {first}, but applied only to {}",
            self.applied
        );
        let term = self.term_of(index).expect("what is applied is in the log");
        self.start = Position { index, term };
        while self.runs.get(1).is_some_and(|run| run.first <= first) {
            self.runs.pop_front();
        }
        if self.last == index {
            self.runs.clear();
        } else if let Some(run) = self.runs.front_mut() {
            run.first = run.first.max(first);
        }
        while self.window.front().is_some_and(|entry| entry.index < first) {
            self.window_bytes -= self.window.pop_front().map_or(0, |entry| entry.cost());
        }
        self.check();
    }

    /// The whole log is replaced by a snapshot; the caller knows that what it drops is worth nothing.
    pub(crate) fn reset(&mut self, position: Position) {
        let index = position.index;
        *self = Log::new(LogStart {
            start: position,
            runs: Vec::new(),
            last: index,
            commit: index,
            applied: index,
            window_bytes_max: self.window_bytes_max,
        });
    }

    /// Asserts the invariants at the head of this file.
    pub(crate) fn check(&self) {
        assert!(self.start.index <= self.applied, "applied is behind the log's start");
        assert!(self.applied <= self.apply_through(), "applied is ahead of what may be applied");
        assert!(self.commit <= self.last, "commit is beyond the log's end");
        assert!(self.durable <= self.handed && self.handed <= self.last, "durable <= handed <= last");
        assert!(self.window_start() <= self.durable.next(), "what is not durable is in memory");
        let first_run = self.runs.front().map_or(self.last.next(), |run| run.first);
        assert_eq!(first_run, self.start.index.next(), "the terms of the whole log are known");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::EntryKind;

    fn entry(index: u64, term: u64) -> Entry<Vec<u8>> {
        Entry { term: Term(term), index: Index(index), kind: EntryKind::Command, payload: vec![0; 68] }
    }

    /// Terms 1 1 1 4 4 6 at 1..=6, nothing durable.
    fn sample() -> Log<Vec<u8>> {
        let mut log = Log::new(LogStart {
            start: Position::default(),
            runs: Vec::new(),
            last: Index(0),
            commit: Index(0),
            applied: Index(0),
            window_bytes_max: 250,
        });
        for (index, term) in [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 6)] {
            log.append(entry(index, term));
        }
        log
    }

    #[test]
    fn terms_are_known_by_runs() {
        let log = sample();
        let terms: Vec<u64> =
            (0..=6).map(|index| log.term_of(Index(index)).map_or(99, |term| term.0)).collect();
        assert_eq!(terms, [0, 1, 1, 1, 4, 4, 6]);
        assert_eq!(log.term_of(Index(7)), None);
    }

    #[test]
    fn a_conflict_skips_whole_terms() {
        let log = sample();
        let at = |index, term| log.last_at_most(Index(index), Term(term)).index.0;
        assert_eq!(at(6, 5), 5);
        assert_eq!(at(6, 3), 3);
        assert_eq!(at(2, 3), 2);
        assert_eq!(at(6, 0), 0);
    }

    #[test]
    fn a_truncation_takes_back_what_was_durable_and_is_told_once() {
        let mut log = sample();
        log.take_unhanded();
        log.set_durable(Index(6));
        log.truncate(Index(4));
        log.append(entry(5, 7));
        assert_eq!(log.durable(), Index(4));
        let (truncate_after, entries) = log.take_unhanded();
        assert_eq!(truncate_after, Some(Index(4)));
        assert_eq!(entries, [entry(5, 7)]);
        assert!(!log.has_unhanded());
        log.check();
    }

    #[test]
    fn the_window_is_bounded_but_keeps_what_is_not_durable() {
        let mut log = sample();
        log.take_unhanded();
        assert_eq!(log.window_start(), Index(1));
        log.set_durable(Index(6));
        assert_eq!(log.window_start(), Index(5));
        assert_eq!(log.slice(Index(4), 1000), None);
        assert_eq!(log.slice(Index(5), 1).map(|entries| entries.len()), Some(1));
        assert_eq!(log.slice(Index(5), 1000).map(|entries| entries.len()), Some(2));
        log.check();
    }

    #[test]
    fn only_what_was_not_handed_out_is_taken_however_much_the_window_holds() {
        let mut log = sample();
        assert_eq!(log.take_unhanded().1.len(), 6);
        assert_eq!(log.take_unhanded(), (None, Vec::new()));
        log.append(entry(7, 6));
        log.append(entry(8, 6));
        assert_eq!(log.take_unhanded().1, [entry(7, 6), entry(8, 6)], "behind what is not durable yet");
        log.set_durable(Index(8));
        log.append(entry(9, 6));
        assert_eq!(log.take_unhanded().1, [entry(9, 6)], "behind what was evicted");
    }

    #[test]
    fn a_prefix_goes_behind_what_is_applied() {
        let mut log = sample();
        log.take_unhanded();
        log.set_durable(Index(6));
        log.set_commit(Index(5));
        log.set_applied(Index(5));
        log.truncate_before(Index(5));
        assert_eq!(log.start(), Position { index: Index(4), term: Term(4) });
        assert_eq!(log.term_of(Index(3)), None);
        assert_eq!(log.term_of(Index(4)), Some(Term(4)));
        assert_eq!(log.term_of(Index(6)), Some(Term(6)));
        assert_eq!(log.last_at_most(Index(6), Term(1)).index, Index(4));
    }

    #[test]
    #[should_panic(expected = "would touch what is committed")]
    fn committed_entries_are_never_truncated() {
        let mut log = sample();
        log.set_commit(Index(5));
        log.truncate(Index(4));
    }
}
