//! Filters: what says of most keys that are not in a run that they are not, from memory.
//!
//! A Bloom filter in lines of 64 bytes (Putze, Sanders, Singler: "Cache-, hash- and space-efficient Bloom
//! filters", WEA 2007): one hash of the key chooses a line and some bits in it, so that a question costs one
//! line of the processor's cache. With ten bits a key about one key in a hundred that is not there may be. The
//! hash is seeded with the log's nonce: nobody can prepare keys that all pass.

use std::ops::Range;

use crate::format::checksum;

/// Bytes of a line.
pub(super) const LINE_BYTES: usize = 64;
const LINE_BITS: u64 = 8 * LINE_BYTES as u64;
/// Bits a key.
const KEY_BITS: u64 = 10;
/// Bits that are set for a key; each takes nine bits of a hash.
const PROBES: u32 = 6;
/// A filter made for more keys than came can be folded in half this often.
const FOLDS: u32 = 4;

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line([u64; LINE_BYTES / 8]);

/// See the module. Without lines, everything may be there.
pub(super) struct Filter {
    nonce: u64,
    lines: Vec<Line>,
}

/// The line that a hash chooses among `lines`: half the number, half the answer, which is why folding works.
fn line_of(hash: u64, lines: usize) -> usize {
    // The product of two numbers below 2^32, without its low half, is below `lines`.
    (((hash >> 32) * lines as u64) >> 32) as usize
}

/// The bits of a key within its line: word and mask.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut bits = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..PROBES).map(move |_| {
        let bit = bits >> 55;
        bits <<= 9;
        ((bit >> 6) as usize, 1 << (bit & 63))
    })
}

fn lines_for(items: u64) -> u64 {
    items.saturating_mul(KEY_BITS).div_ceil(LINE_BITS)
}

impl Filter {
    /// An empty filter for up to `items` keys.
    pub(super) fn new(nonce: u64, items: u64) -> Self {
        let lines =
            lines_for(items.max(1)).next_multiple_of(1 << FOLDS).min(u64::from(u32::MAX) >> FOLDS << FOLDS);
        let lines = usize::try_from(lines).expect("less than 2^32");
        Self { nonce, lines: vec![Line::default(); lines] }
    }

    pub(super) fn add(&mut self, key: &[u8]) {
        let hash = checksum(self.nonce, key);
        let line = line_of(hash, self.lines.len());
        for (word, mask) in probes(hash) {
            self.lines[line].0[word] |= mask;
        }
    }

    /// False only for a key that was never added.
    pub(super) fn may_hold(&self, key: &[u8]) -> bool {
        let hash = checksum(self.nonce, key);
        let Some(line) = self.lines.get(line_of(hash, self.lines.len())) else { return true };
        probes(hash).all(|(word, mask)| line.0[word] & mask != 0)
    }

    /// Gives up the room that `items` keys, all that came, do not need.
    pub(super) fn shrink(&mut self, items: u64) {
        while self.lines.len().is_multiple_of(2) && lines_for(items.max(1)) <= self.lines.len() as u64 / 2 {
            self.lines = self
                .lines
                .chunks(2)
                .map(|pair| Line(std::array::from_fn(|word| pair[0].0[word] | pair[1].0[word])))
                .collect();
        }
    }

    /// Bytes of memory, and on disk.
    pub(super) fn bytes(&self) -> usize {
        self.lines.capacity() * LINE_BYTES
    }

    pub(super) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// A part of the filter as it goes to the disk.
    pub(super) fn encode(&self, lines: Range<usize>) -> Vec<u8> {
        self.lines[lines].iter().flat_map(|line| line.0).flat_map(u64::to_le_bytes).collect()
    }

    /// A filter without lines, to which the parts from the disk are added: lines for no more than `bytes`.
    pub(super) fn empty(nonce: u64, bytes: usize) -> Self {
        Self { nonce, lines: Vec::with_capacity(bytes / LINE_BYTES) }
    }

    /// Adds a part from the disk behind those added before, if it can be one.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> Option<()> {
        let lines = bytes.len() / LINE_BYTES;
        if !bytes.len().is_multiple_of(LINE_BYTES) || self.lines.len() + lines > self.lines.capacity() {
            return None;
        }
        for bytes in bytes.chunks_exact(LINE_BYTES) {
            let mut line = Line::default();
            for (word, bytes) in line.0.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().ok()?);
            }
            self.lines.push(line);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(from: u32, to: u32) -> impl Iterator<Item = Vec<u8>> {
        (from..to).map(|number| format!("user/{number:010}").into_bytes())
    }

    fn false_positives(filter: &Filter) -> usize {
        keys(1 << 30, (1 << 30) + 100_000).filter(|key| filter.may_hold(key)).count()
    }

    #[test]
    fn one_in_a_hundred_is_let_through() {
        let mut filter = Filter::new(7, 100_000);
        keys(0, 100_000).for_each(|key| filter.add(&key));
        assert!(keys(0, 100_000).all(|key| filter.may_hold(&key)), "nothing that is there is denied");
        assert!(filter.bytes() <= 100_000 * 10 / 8 + 64 * 16, "{}", filter.bytes());
        let passed = false_positives(&filter);
        assert!((300..1_300).contains(&passed), "{passed} of 100,000");
    }

    #[test]
    fn a_filter_made_too_large_is_folded() {
        let mut filter = Filter::new(7, 1_000_000);
        keys(0, 100_000).for_each(|key| filter.add(&key));
        filter.shrink(100_000);
        assert!(filter.bytes() <= 100_000 * 10 / 8 * 2, "{}", filter.bytes());
        assert!(keys(0, 100_000).all(|key| filter.may_hold(&key)));
        assert!(false_positives(&filter) <= 1_300);
        let mut decoded = Filter::empty(7, filter.bytes());
        decoded.decode(&filter.encode(0..100)).unwrap();
        decoded.decode(&filter.encode(100..filter.lines())).unwrap();
        assert!(keys(0, 100_000).all(|key| decoded.may_hold(&key)));
        assert_eq!(false_positives(&decoded), false_positives(&filter));
    }

    #[test]
    fn any_bytes_are_a_filter_or_none() {
        for length in 0..200 {
            let mut filter = Filter::empty(1, 1024);
            assert!(filter.may_hold(b"key"), "nothing is known");
            let decoded = filter.decode(&vec![0; length]);
            assert_eq!(decoded.is_some(), length % LINE_BYTES == 0);
            assert_eq!(filter.may_hold(b"key"), length == 0 || decoded.is_none());
        }
    }
}
