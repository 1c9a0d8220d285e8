//! The work that every store is given: the same keys, values and batches in the same order.
//!
//! A key is the sixteen hexadecimal digits of a mixed number: keys of one length that arrive in no order. A value is
//! a stream of random bytes that depends on the key's number and on how often it was written, so that nothing can be
//! compressed, and every read can be checked without remembering what was written but for its generation.

use serde::{Deserialize, Serialize};

/// Length of every key in bytes.
pub const KEY_BYTES: usize = 16;

/// How much of what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Work {
    /// How many keys there are.
    pub keys: u64,
    /// Length of every value in bytes.
    pub value_bytes: usize,
    /// Writes that are acknowledged by one flush while the measured work goes on.
    pub batch: u64,
    /// Writes that are acknowledged by one flush while the keys are first put.
    pub load_batch: u64,
}

impl Work {
    /// The bytes that the store holds for its user when every key is there.
    pub fn live_bytes(&self) -> u64 {
        self.keys * (KEY_BYTES + self.value_bytes) as u64
    }

    /// The bytes of this many puts.
    pub fn put_bytes(&self, puts: u64) -> u64 {
        puts * (KEY_BYTES + self.value_bytes) as u64
    }
}

/// One put of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Put {
    /// The key.
    pub key: [u8; KEY_BYTES],
    /// Its new value.
    pub value: Vec<u8>,
}

/// A bijection of 64-bit numbers that leaves no order: the finalizer of SplitMix64.
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The key with this number.
pub fn key(number: u64) -> [u8; KEY_BYTES] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mixed = mix(number);
    std::array::from_fn(|at| DIGITS[(mixed >> (60 - 4 * at)) as usize & 15])
}

/// The value that key `number` has after it was written `generation` times more.
pub fn value(number: u64, generation: u32, length: usize) -> Vec<u8> {
    let mut state = mix(number) ^ mix(u64::from(generation) << 32);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_add(1);
        bytes.extend_from_slice(&mix(state).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A stream of numbers that is the same in every run.
#[derive(Clone, Debug)]
pub struct Choices(u64);

impl Choices {
    /// The stream with this seed.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next number below `bound`, which is small against 2^32.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        // The upper half times the bound, as Lemire's method does; the bias is far below what is measured here.
        ((u128::from(mix(self.0)) * u128::from(bound)) >> 64) as u64
    }
}

/// How often each key has been written: all that is needed to know what a store must hold.
#[derive(Clone, Debug)]
pub struct Model {
    work: Work,
    generations: Vec<u32>,
}

impl Model {
    /// Every key has been put once.
    pub fn loaded(work: Work) -> Self {
        let keys = usize::try_from(work.keys).expect("the model of all keys fits into memory");
        Self { work, generations: vec![0; keys] }
    }

    /// How many keys there are.
    pub fn keys(&self) -> u64 {
        self.work.keys
    }

    /// Overwrites one key, and tells with what.
    pub fn overwrite(&mut self, number: u64) -> Put {
        let generation = &mut self.generations[number as usize];
        *generation += 1;
        Put { key: key(number), value: value(number, *generation, self.work.value_bytes) }
    }

    /// What a read of this key must find.
    pub fn value(&self, number: u64) -> Vec<u8> {
        value(number, self.generations[number as usize], self.work.value_bytes)
    }
}

/// The puts of the first load, batch by batch.
pub fn load_batches(work: Work) -> impl Iterator<Item = Vec<Put>> {
    (0..work.keys.div_ceil(work.load_batch)).map(move |batch| {
        let first = batch * work.load_batch;
        let end = work.keys.min(first + work.load_batch);
        (first..end)
            .map(|number| Put { key: key(number), value: value(number, 0, work.value_bytes) })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_have_no_order() {
        let keys: Vec<_> = (0..1000).map(key).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        assert_ne!(keys, sorted);
        sorted.dedup();
        assert_eq!(sorted.len(), 1000);
    }

    #[test]
    fn values_tell_their_generation() {
        assert_eq!(value(7, 1, 100).len(), 100);
        assert_ne!(value(7, 0, 100), value(7, 1, 100));
        assert_ne!(value(7, 0, 100), value(8, 0, 100));
    }

    #[test]
    fn a_load_puts_every_key_once() {
        let work = Work { keys: 1001, value_bytes: 8, batch: 1, load_batch: 100 };
        let puts: Vec<Put> = load_batches(work).flatten().collect();
        assert_eq!(puts.len(), 1001);
        assert_eq!(puts[1000].key, key(1000));
    }
}
