//! What reads must find. Each writing of a key has a number; a read that begins after a writing was acknowledged must
//! find that writing, or one that did not end before it began.
//!
//! Writings of one key that overlap may take effect in any order, so they form a group: a writing joins the group if
//! another of it is still on its way, and begins a new one otherwise. Once any writing of a group is acknowledged, no
//! earlier group may be read any more. A writing whose outcome is not known stays on its way for ever: its key's
//! later reads are checked less sharply, but never wrongly.

use crate::values::{Shape, mixed};

/// What the loading of a key counts as.
const LOADED: u32 = 1;

/// What is known of one key's writings.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The last number given; 0 = the key was never written by this run.
    issued: u32,
    /// The first number of the group that is open, or was last.
    group: u32,
    /// No number below may be read.
    floor: u32,
    /// Writings of the group that have not ended.
    on_their_way: u32,
}

/// What a read that begins now may find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expectation {
    floor: u32,
}

/// A writing that has begun.
#[derive(Debug)]
#[must_use]
pub struct Writing {
    position: u64,
    sequence: u32,
    /// What goes into the value.
    pub number: u64,
}

/// How a read compares with what was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// As it must be.
    Right,
    /// Bytes that nobody wrote for this key.
    Foreign,
    /// A writing that a later one had replaced before the read began.
    Stale,
    /// Nothing, although it was written.
    Missing,
}

/// The keys of one thread.
#[derive(Debug)]
pub struct Ledger {
    /// Tells this run's writings from those of runs before.
    run: u32,
    keys: Vec<Known>,
}

impl Ledger {
    /// Nothing is known of `count` keys. `run` is random, one for all threads.
    pub fn new(run: u32, count: u64) -> Self {
        Self { run, keys: vec![Known::default(); usize::try_from(count).unwrap_or(usize::MAX)] }
    }

    /// The number of a loaded value: of every run the same, so that a load need not be repeated.
    pub fn loaded_number(key: u64) -> u64 {
        mixed(key) >> 32 << 32 | u64::from(LOADED)
    }

    fn known(&mut self, position: u64) -> &mut Known {
        let position = usize::try_from(position).unwrap_or(usize::MAX);
        if position >= self.keys.len() {
            self.keys.resize(position + 1, Known::default());
        }
        &mut self.keys[position]
    }

    /// The key was loaded by this run.
    pub fn loaded(&mut self, position: u64) {
        *self.known(position) = Known { issued: LOADED, group: LOADED, floor: LOADED, on_their_way: 0 };
    }

    /// A writing begins.
    pub fn begin(&mut self, position: u64) -> Writing {
        let run = u64::from(self.run) << 32;
        let known = self.known(position);
        known.issued = known.issued.max(LOADED) + 1;
        if known.on_their_way == 0 {
            known.group = known.issued;
        }
        known.on_their_way += 1;
        Writing { position, sequence: known.issued, number: run | u64::from(known.issued) }
    }

    /// It was acknowledged.
    pub fn acknowledged(&mut self, writing: Writing) {
        let known = self.known(writing.position);
        debug_assert!(writing.sequence >= known.group, "a group ends with its last writing");
        known.floor = known.floor.max(known.group);
        known.on_their_way -= 1;
    }

    /// It certainly did not happen.
    pub fn refused(&mut self, writing: Writing) {
        self.known(writing.position).on_their_way -= 1;
    }

    /// Nobody knows whether it happened, or whether it still will.
    pub fn lost(&mut self, writing: Writing) {
        // It stays on its way: see the head of this file.
        drop(writing);
    }

    /// What a read that begins now may find.
    pub fn expect(&mut self, position: u64) -> Expectation {
        Expectation { floor: self.known(position).floor }
    }

    /// Judges what a read found.
    pub fn judge(
        &mut self,
        shape: &Shape,
        position: u64,
        key: u64,
        expectation: Expectation,
        found: Option<&[u8]>,
    ) -> Verdict {
        let Some(found) = found else {
            return if expectation.floor > 0 { Verdict::Missing } else { Verdict::Right };
        };
        let Some(number) = shape.writing_of(key, found) else { return Verdict::Foreign };
        let sequence = if number == Self::loaded_number(key) {
            LOADED
        } else if number >> 32 == u64::from(self.run) {
            number as u32
        } else {
            // Another run's: right as long as this one has written nothing.
            0
        };
        if sequence > self.known(position).issued.max(LOADED) {
            return Verdict::Foreign;
        }
        if sequence < expectation.floor { Verdict::Stale } else { Verdict::Right }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        shape: Shape,
        ledger: Ledger,
    }

    impl World {
        fn new() -> Self {
            let shape = Shape { keys: "14".parse().unwrap(), values: "32".parse().unwrap() };
            let mut ledger = Ledger::new(9, 10);
            ledger.loaded(3);
            Self { shape, ledger }
        }

        fn judge(&mut self, expectation: Expectation, number: u64) -> Verdict {
            let value = self.shape.value(3, number);
            self.ledger.judge(&self.shape, 3, 3, expectation, Some(&value))
        }
    }

    #[test]
    fn an_acknowledged_writing_replaces_what_was_before() {
        let mut world = World::new();
        let loaded = Ledger::loaded_number(3);
        let early = world.ledger.expect(3);
        let first = world.ledger.begin(3);
        let number = first.number;
        let during = world.ledger.expect(3);
        assert_eq!(world.judge(during, loaded), Verdict::Right);
        assert_eq!(world.judge(during, number), Verdict::Right);
        world.ledger.acknowledged(first);
        let late = world.ledger.expect(3);
        assert_eq!(world.judge(late, number), Verdict::Right);
        assert_eq!(world.judge(late, loaded), Verdict::Stale);
        assert_eq!(world.judge(early, loaded), Verdict::Right, "a read that began before may find it");
        assert_eq!(world.judge(late, number + 1), Verdict::Foreign, "nobody wrote that yet");
        assert_eq!(world.ledger.judge(&world.shape, 3, 3, late, None), Verdict::Missing);
        assert_eq!(world.ledger.judge(&world.shape, 3, 3, late, Some(b"short")), Verdict::Foreign);
    }

    #[test]
    fn writings_that_overlap_may_end_in_any_order() {
        let mut world = World::new();
        let (one, two) = (world.ledger.begin(3), world.ledger.begin(3));
        let numbers = [one.number, two.number];
        world.ledger.acknowledged(two);
        world.ledger.acknowledged(one);
        let expectation = world.ledger.expect(3);
        for number in numbers {
            assert_eq!(world.judge(expectation, number), Verdict::Right);
        }
        assert_eq!(world.judge(expectation, Ledger::loaded_number(3)), Verdict::Stale);
        let three = world.ledger.begin(3);
        world.ledger.acknowledged(three);
        let expectation = world.ledger.expect(3);
        assert_eq!(world.judge(expectation, numbers[1]), Verdict::Stale);
    }

    #[test]
    fn a_lost_writing_may_happen_at_any_time() {
        let mut world = World::new();
        let lost = world.ledger.begin(3);
        let number = lost.number;
        world.ledger.lost(lost);
        let next = world.ledger.begin(3);
        world.ledger.acknowledged(next);
        let expectation = world.ledger.expect(3);
        assert_eq!(world.judge(expectation, number), Verdict::Right);
        assert_eq!(world.judge(expectation, Ledger::loaded_number(3)), Verdict::Stale);
    }

    #[test]
    fn a_run_that_loaded_nothing_takes_what_it_finds() {
        let mut world = World::new();
        let value = world.shape.value(4, 77 << 32 | 5);
        let expectation = world.ledger.expect(4);
        assert_eq!(world.ledger.judge(&world.shape, 4, 4, expectation, Some(&value)), Verdict::Right);
        assert_eq!(world.ledger.judge(&world.shape, 4, 4, expectation, None), Verdict::Right);
    }
}
