//! Weighted rendezvous scores, in whole numbers.
//!
//! With u a hash of (shard, node) read as a fraction, the node with the least -log(u) / weight wins in proportion to
//! its weight, and a change of one node's weight moves shards to or from that node alone.

use twox_hash::XxHash3_64;

/// Bits behind the point of a logarithm.
const FRACTION_BITS: u32 = 26;

/// What a shard or a node contributes to the hash of a pair.
pub(super) fn seed(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The least score wins.
pub(super) fn score(shard_seed: u64, node_seed: u64, weight: u32) -> u64 {
    let negative_log = (64 << FRACTION_BITS) - log2(mix(shard_seed ^ node_seed.rotate_left(32)));
    (negative_log << 20) / u64::from(weight)
}

/// The finalizer of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// log2(x) with [`FRACTION_BITS`] behind the point, to within a hundredth; rises with x. 0 for 0.
fn log2(x: u64) -> u64 {
    if x == 0 {
        return 0;
    }
    let exponent = 63 - x.leading_zeros();
    let normal = x << (63 - exponent);
    let fraction = normal << 1 >> (64 - FRACTION_BITS);
    // log2(1 + f) is about f + 0.3431 f (1 - f).
    let one = 1u64 << FRACTION_BITS;
    let bend = (fraction * (one - fraction)) >> FRACTION_BITS;
    (u64::from(exponent) << FRACTION_BITS) + fraction + bend * 3431 / 10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_near_and_rises() {
        for x in (1..100_000u64).chain((1..64).map(|bit| 1 << bit)).chain([u64::MAX]) {
            let near = log2(x) as f64 / (1u64 << FRACTION_BITS) as f64;
            assert!((near - (x as f64).log2()).abs() < 0.01, "{x}: {near}");
        }
        assert!((1..100_000u64).all(|x| log2(x) <= log2(x + 1)));
    }

    #[test]
    fn weights_are_shares_of_wins() {
        let weights = [1u32, 1, 2, 4];
        let mut wins = [0u32; 4];
        for shard in 0..80_000u32 {
            let shard_seed = seed(&shard.to_le_bytes());
            let of = |node: usize| score(shard_seed, seed(&[node as u8; 16]), weights[node]);
            let winner = (0..4).min_by_key(|node| of(*node)).expect("four nodes");
            wins[winner] += 1;
        }
        for (weight, wins) in weights.iter().zip(wins) {
            let fair = weight * 10_000;
            assert!(wins.abs_diff(fair) < fair / 20, "{wins} wins of weight {weight}");
        }
    }
}
