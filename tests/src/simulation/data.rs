//! The keys and values of a run. A value says who wrote it and carries filler that follows from that, so that a
//! value of another key, a torn or a mixed one is noticed whatever the history says.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use krita_proto::routing::shard_of;

/// The keys of a run.
#[derive(Debug)]
pub(crate) struct Keys {
    /// Written and read one by one, and in batches.
    pub(crate) plain: Vec<Bytes>,
    /// Pairs on one shard that are only ever written together, equal.
    pub(crate) twins: Vec<(Bytes, Bytes)>,
    /// Hold a number that is only ever increased by compare-and-swap.
    pub(crate) counters: Vec<Bytes>,
    /// All of them, by shard.
    pub(crate) by_shard: BTreeMap<u32, BTreeSet<Bytes>>,
    shard_count: u32,
}

impl Keys {
    /// A few keys on every shard.
    pub(crate) fn new(shard_count: u32) -> Self {
        let mut keys = Self {
            plain: Vec::new(),
            twins: Vec::new(),
            counters: Vec::new(),
            by_shard: BTreeMap::new(),
            shard_count,
        };
        for shard in 1..=shard_count {
            keys.plain.push(key_on("key", shard, shard_count, 0));
            keys.plain.push(key_on("key", shard, shard_count, 1));
            if shard % 2 == 1 {
                let twin = |which| key_on(which, shard, shard_count, 0);
                keys.twins.push((twin("left"), twin("right")));
            } else {
                keys.counters.push(key_on("counter", shard, shard_count, 0));
            }
        }
        keys.sort_by_shard();
        keys
    }

    /// Plain keys of one's own choice, without twins and counters.
    pub(crate) fn of(plain: Vec<Bytes>, shard_count: u32) -> Self {
        let mut keys =
            Self { plain, twins: Vec::new(), counters: Vec::new(), by_shard: BTreeMap::new(), shard_count };
        keys.sort_by_shard();
        keys
    }

    fn sort_by_shard(&mut self) {
        let twins = self.twins.iter().flat_map(|(left, right)| [left, right]);
        for key in self.plain.iter().chain(&self.counters).chain(twins) {
            self.by_shard.entry(shard_of(key, self.shard_count)).or_default().insert(key.clone());
        }
    }

    pub(crate) fn shard_of(&self, key: &[u8]) -> u32 {
        shard_of(key, self.shard_count)
    }

    /// Every key, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Bytes> {
        self.by_shard.values().flatten()
    }
}

/// The `skip`-th key with this name that lies on `shard`.
pub(crate) fn key_on(name: &str, shard: u32, shard_count: u32, skip: usize) -> Bytes {
    let fits = |key: &String| shard_of(key.as_bytes(), shard_count) == shard;
    let found = (0..).map(|number| format!("{name}{number}")).filter(fits).nth(skip);
    found.expect("the numbers do not end").into()
}

/// A value for `key` with a name that nobody else gives, of about `length` bytes.
pub(crate) fn value(key: &[u8], name: &str, length: usize) -> Bytes {
    let mut value = format!("{name}.{length}:").into_bytes();
    let start = u64::from(crc(key)) << 32 | u64::from(crc(&value));
    let mut state = start | 1;
    while value.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = state.to_le_bytes();
        let rest = (length - value.len()).min(bytes.len());
        value.extend_from_slice(&bytes[..rest]);
    }
    value.into()
}

/// What the history calls a value: its part before the filler.
///
/// # Errors
/// The value was never written to this key by anybody.
pub(crate) fn name_of(key: &[u8], found: &Bytes) -> Result<Bytes, String> {
    let wrong = || format!("key {:?} holds {} bytes that nobody wrote", key, found.len());
    let end = found.iter().position(|byte| *byte == b':').ok_or_else(wrong)?;
    let head = std::str::from_utf8(&found[..end]).map_err(|_| wrong())?;
    let (name, length) = head.rsplit_once('.').ok_or_else(wrong)?;
    let length: usize = length.parse().map_err(|_| wrong())?;
    if length > 1 << 24 || value(key, name, length) != found {
        return Err(wrong());
    }
    Ok(Bytes::copy_from_slice(head.as_bytes()))
}

fn crc(bytes: &[u8]) -> u32 {
    krita_proto::routing::value_checksum(bytes, b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_by_its_key_and_bytes() {
        let written = value(b"a", "1.2", 100);
        assert_eq!(written.len(), 100);
        assert_eq!(name_of(b"a", &written), Ok(Bytes::from_static(b"1.2.100")));
        assert!(name_of(b"b", &written).is_err(), "it is another key's");
        let mut torn = written.to_vec();
        torn[60] ^= 1;
        assert!(name_of(b"a", &torn.into()).is_err());
        assert!(name_of(b"a", &written.slice(..99)).is_err());
    }

    #[test]
    fn every_shard_has_keys_and_twins_share_theirs() {
        for shards in 1..10 {
            let keys = Keys::new(shards);
            assert_eq!(keys.by_shard.len(), shards as usize);
            assert!(keys.twins.iter().all(|(left, right)| keys.shard_of(left) == keys.shard_of(right)));
        }
    }
}
