//! Keys and values that can be recognised: a value tells its key and its writing, and every byte of it follows.

use bytes::{BufMut, Bytes, BytesMut};

use crate::sizes::Sizes;

/// Shortest key: its prefix and number.
pub const KEY_BYTES_MIN: u32 = 14;

/// Shortest value: a writing's number and a little that follows from it.
pub const VALUE_BYTES_MIN: u32 = 16;

/// Keys start with this, so that a range of them is known.
pub const KEY_PREFIX: &str = "bench:";

/// What a key's number and a writing become on the wire.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Lengths of keys.
    pub keys: Sizes,
    /// Lengths of values.
    pub values: Sizes,
}

impl Shape {
    /// The text of a key: `bench:`, eight digits, and `x` up to its length.
    pub fn key(&self, number: u64) -> Bytes {
        let length = self.keys.pick(mixed(number)) as usize;
        let mut key = format!("{KEY_PREFIX}{number:08}").into_bytes();
        key.resize(length.max(key.len()), b'x');
        key.into()
    }

    /// The number in a key's text; `None` if it is none of ours.
    pub fn number_of(&self, key: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(key).ok()?.strip_prefix(KEY_PREFIX)?;
        let number: u64 = text.trim_end_matches('x').parse().ok()?;
        (self.key(number)[..] == *key).then_some(number)
    }

    /// The value of a key's writing: the writing, then a stream of bytes that both determine.
    pub fn value(&self, key: u64, writing: u64) -> Bytes {
        let seed = mixed(writing ^ key.rotate_left(32));
        let length = self.values.pick(seed) as usize;
        let mut value = BytesMut::with_capacity(length + 8);
        value.put_u64_le(writing);
        let mut state = seed;
        while value.len() < length {
            state = mixed(state);
            value.put_u64_le(state);
        }
        value.truncate(length);
        value.freeze()
    }

    /// Which writing of the key a value is; `None` if it is none.
    pub fn writing_of(&self, key: u64, found: &[u8]) -> Option<u64> {
        let writing = u64::from_le_bytes(found.first_chunk::<8>().copied()?);
        (self.value(key, writing)[..] == *found).then_some(writing)
    }
}

/// A step of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub fn mixed(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}

/// A stream of random numbers that its seed determines.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(mixed(seed))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high bits of a product: without a division, and fair enough for a load.
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to 1, exclusive.
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_recognised_and_nothing_else_is() {
        for values in ["16", "100", "4096", "uniform:20-300", "16*1,1000*1"] {
            let shape = Shape { keys: "14".parse().unwrap(), values: values.parse().unwrap() };
            for writing in [0, 1, 42, u64::MAX] {
                let made = shape.value(7, writing);
                assert_eq!(shape.writing_of(7, &made), Some(writing), "{values}");
                assert_eq!(shape.writing_of(8, &made), None);
                let mut torn = made.to_vec();
                torn[15] ^= 1;
                assert_eq!(shape.writing_of(7, &torn), None);
                assert_eq!(shape.writing_of(7, &made[..made.len() - 1]), None);
            }
        }
    }

    #[test]
    fn a_key_tells_its_number() {
        for keys in ["14", "40", "uniform:14-64"] {
            let shape = Shape { keys: keys.parse().unwrap(), values: "16".parse().unwrap() };
            for number in [0, 7, 99_999_999] {
                assert_eq!(shape.number_of(&shape.key(number)), Some(number), "{keys}");
            }
            assert_eq!(shape.number_of(b"other:00000001"), None);
        }
        let shape = Shape { keys: "20".parse().unwrap(), values: "16".parse().unwrap() };
        assert_eq!(shape.key(5)[..], *b"bench:00000005xxxxxx");
        assert_eq!(shape.number_of(b"bench:00000005"), None, "a key of another length is another key");
    }
}
