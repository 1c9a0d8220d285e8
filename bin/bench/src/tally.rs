//! What happened: times by kind of operation, ends that were no answers, and what reads proved.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::ledger::Verdict;
use crate::workload::Operation;

/// Slowest time that is told apart, in microseconds.
const SLOWEST_US: u64 = 60_000_000;

/// Counts of one stretch of time.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Times of operations that went well, in microseconds, by [`Operation::position`].
    times: Vec<Option<Histogram<u64>>>,
    /// Operations that went well.
    pub operations: u64,
    /// Other ends, by name.
    pub errors: BTreeMap<String, u64>,
    /// Swaps that another writer forestalled.
    pub conflicts: u64,
    /// Keys and values that were written and acknowledged, in bytes.
    pub bytes_written: u64,
    /// Keys and values that were read, in bytes.
    pub bytes_read: u64,
    /// Values that were read and checked.
    pub checked: u64,
    /// Reads that found bytes that nobody wrote.
    pub foreign: u64,
    /// Reads that found what had been replaced.
    pub stale: u64,
    /// Reads that did not find what was written.
    pub missing: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            times: vec![None; Operation::ALL.len()],
            operations: 0,
            errors: BTreeMap::new(),
            conflicts: 0,
            bytes_written: 0,
            bytes_read: 0,
            checked: 0,
            foreign: 0,
            stale: 0,
            missing: 0,
        }
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, SLOWEST_US, 3).expect("the bounds are in order")
}

impl Tally {
    /// An operation went well.
    pub fn record(&mut self, operation: Operation, took: Duration) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(SLOWEST_US).max(1);
        self.times[operation.position()].get_or_insert_with(new_histogram).saturating_record(microseconds);
        self.operations += 1;
    }

    /// An operation ended otherwise.
    pub fn error(&mut self, name: &str) {
        match self.errors.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                self.errors.insert(name.to_owned(), 1);
            }
        }
    }

    /// A value was read.
    pub fn judged(&mut self, verdict: Verdict) {
        self.checked += 1;
        match verdict {
            Verdict::Right => {}
            Verdict::Foreign => self.foreign += 1,
            Verdict::Stale => self.stale += 1,
            Verdict::Missing => self.missing += 1,
        }
    }

    /// Reads that were not as they must be.
    pub fn wrong(&self) -> u64 {
        self.foreign + self.stale + self.missing
    }

    /// All errors.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds another stretch.
    pub fn add(&mut self, other: &Self) {
        for (own, others) in self.times.iter_mut().zip(&other.times) {
            if let Some(others) = others {
                own.get_or_insert_with(new_histogram).add(others).expect("all have the same bounds");
            }
        }
        for (name, count) in &other.errors {
            *self.errors.entry(name.clone()).or_default() += count;
        }
        self.operations += other.operations;
        self.conflicts += other.conflicts;
        self.bytes_written += other.bytes_written;
        self.bytes_read += other.bytes_read;
        self.add_proofs(other);
    }

    /// Adds what reads proved, which counts at any time.
    pub fn add_proofs(&mut self, other: &Self) {
        self.checked += other.checked;
        self.foreign += other.foreign;
        self.stale += other.stale;
        self.missing += other.missing;
    }

    /// The times of one kind of operation.
    pub fn times_of(&self, operation: Operation) -> Option<&Histogram<u64>> {
        self.times[operation.position()].as_ref()
    }

    /// The times of all operations.
    pub fn times(&self) -> Histogram<u64> {
        let mut all = new_histogram();
        for times in self.times.iter().flatten() {
            all.add(times).expect("all have the same bounds");
        }
        all
    }
}

/// A tally that a worker thread writes and the main thread takes once a second.
#[derive(Debug, Default)]
pub struct SharedTally(Mutex<Tally>);

impl SharedTally {
    /// To count in. Never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, Tally> {
        // Counts are counts, whatever happened to whoever held it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted since the last time.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *self.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_add_up() {
        let shared = SharedTally::default();
        shared.lock().record(Operation::Read, Duration::from_micros(100));
        shared.lock().error("OVERLOADED");
        shared.lock().judged(Verdict::Stale);
        let mut whole = shared.take();
        shared.lock().record(Operation::Update, Duration::from_micros(300));
        shared.lock().error("OVERLOADED");
        whole.add(&shared.take());
        assert_eq!((whole.operations, whole.error_count(), whole.wrong()), (2, 2, 1));
        assert_eq!((whole.times().len(), whole.times().max()), (2, 300));
        assert_eq!(whole.times_of(Operation::Read).map(Histogram::len), Some(1));
        assert!(whole.times_of(Operation::Scan).is_none());
        assert_eq!(shared.take().operations, 0);
    }
}
