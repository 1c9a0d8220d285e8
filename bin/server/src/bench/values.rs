//! Keys and values that can be recognised: a value tells its key and its writing, and every byte of it follows.

use bytes::{BufMut, Bytes, BytesMut};

/// The writing that loads a key.
pub(super) const LOADED: u64 = 0;

/// A key's text.
pub(super) fn key(number: u32) -> Bytes {
    format!("bench:{number:08}").into()
}

/// The value of a key's writing: the writing, then a stream of bytes that both determine.
pub(super) fn value(key: u32, writing: u64, length: u32) -> Bytes {
    let length = length as usize;
    let mut value = BytesMut::with_capacity(length + 8);
    value.put_u64_le(writing);
    let mut state = writing ^ u64::from(key).rotate_left(32);
    while value.len() < length {
        state = mixed(state);
        value.put_u64_le(state);
    }
    value.truncate(length);
    value.freeze()
}

/// Which writing of the key a value is; `None` if it is none of that length.
pub(super) fn writing_of(key: u32, found: &[u8], length: u32) -> Option<u64> {
    let writing = u64::from_le_bytes(found.first_chunk::<8>().copied()?);
    (value(key, writing, length)[..] == *found).then_some(writing)
}

/// A step of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
fn mixed(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_recognised_and_nothing_else_is() {
        for length in [16, 100, 4096] {
            let made = value(7, 42, length);
            assert_eq!(made.len(), length as usize);
            assert_eq!(writing_of(7, &made, length), Some(42));
            assert_eq!(writing_of(8, &made, length), None);
            let mut torn = made.to_vec();
            torn[15] ^= 1;
            assert_eq!(writing_of(7, &torn, length), None);
            assert_eq!(writing_of(7, &made[..15], length), None);
        }
    }
}
