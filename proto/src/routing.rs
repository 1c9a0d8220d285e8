//! What client and server must agree on without asking: the shard of a key, the checksum of an entry, the name
//! that a core has in TLS, and the limits.
//!
//! All of it is part of the protocol: a change here is a new protocol version.

use twox_hash::XxHash3_64;

/// Longest key, in bytes; the shortest has one.
pub const KEY_BYTES_MAX: usize = 4 * 1024;

/// Longest value, in bytes; it may be empty.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Largest log entry, in bytes: a value of [`VALUE_BYTES_MAX`] with its key, condition and request id, or a whole
/// batch. What stands around the value never needs more than 64 KiB.
pub const ENTRY_BYTES_MAX: usize = VALUE_BYTES_MAX + 64 * 1024;

/// Most operations in one batch.
pub const BATCH_OPERATIONS_MAX: usize = 10_000;

/// Most items in one page of a scan.
pub const SCAN_ITEMS_MAX: usize = 10_000;

/// Items in a page of a scan that asks for no number.
pub const SCAN_ITEMS_DEFAULT: usize = 1_000;

/// A page of a scan (or a chunk of a snapshot) ends once its keys and values reach this many bytes; a single item
/// may exceed it.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// Most shards of a cluster.
pub const SHARDS_MAX: u32 = 65_536;

/// Longest cluster name and node id, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Longest wait that a request may ask for, in milliseconds.
pub const TIMEOUT_MS_MAX: u32 = 600_000;

// A value with the longest key and its own copy as a condition does not fit an entry on purpose: the leader resolves
// `if_value` to a version before it proposes. What must fit is the longest key beside the longest value.
const _: () = assert!(KEY_BYTES_MAX + VALUE_BYTES_MAX + 1024 < ENTRY_BYTES_MAX);

/// Where a key stands on the 64-bit ring.
pub fn ring_position(key: &[u8]) -> u64 {
    XxHash3_64::oneshot(key)
}

/// The shard that holds `key`, from 1 to `shard_count` (shard 0 is the meta group and holds no keys).
///
/// The ring is cut into `shard_count` equal arcs; `shard_count` must not be zero.
pub fn shard_of(key: &[u8], shard_count: u32) -> u32 {
    assert!(shard_count > 0, "a cluster has at least one data shard");
    let scaled = u128::from(ring_position(key)) * u128::from(shard_count);
    // The quotient is below `shard_count`, so it fits.
    1 + (scaled >> 64) as u32
}

/// The checksum of an entry, made where it enters the cluster and checked before its value is ever returned:
/// CRC-32 (the IEEE polynomial) over the key's length as u32 little-endian, the key, the value.
pub fn value_checksum(key: &[u8], value: &[u8]) -> u32 {
    let key_length = u32::try_from(key.len()).expect("keys are at most KEY_BYTES_MAX long");
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&key_length.to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

/// The domain of the TLS names of cores. Every node's certificate is valid for all names right below it.
pub const CORE_DOMAIN: &str = "node.krita.internal";

/// The TLS server name by which a client asks for core `core` of the node that it connects to.
pub fn server_name_for_core(core: u16) -> String {
    format!("c{core}.{CORE_DOMAIN}")
}

/// The core that a TLS server name asks for; `None` if it names none.
pub fn core_of_server_name(name: &str) -> Option<u16> {
    let (label, domain) = name.split_once('.')?;
    if !domain.eq_ignore_ascii_case(CORE_DOMAIN) {
        return None;
    }
    let digits = label.strip_prefix(['c', 'C'])?;
    let canonical = !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'));
    if canonical { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_keys_fill_sixty_four_shards_evenly() {
        let mut keys_of_shard = [0u32; 65];
        for number in 0..1_000_000 {
            keys_of_shard[shard_of(format!("user:{number}").as_bytes(), 64) as usize] += 1;
        }
        assert_eq!(keys_of_shard[0], 0, "the meta group holds no keys");
        let fair = 1_000_000 / 64;
        for (shard, keys) in keys_of_shard.iter().enumerate().skip(1) {
            assert!(keys.abs_diff(fair) <= fair / 10, "shard {shard} holds {keys} of {fair}");
        }
    }

    #[test]
    fn the_ends_of_the_ring_belong_to_the_first_and_the_last_shard() {
        for count in [1, 3, 64, SHARDS_MAX] {
            for number in 0..1_000u32 {
                let shard = shard_of(&number.to_le_bytes(), count);
                assert!((1..=count).contains(&shard));
            }
        }
        assert_eq!(shard_of(b"anything", 1), 1);
    }

    #[test]
    fn positions_and_checksums_are_part_of_the_protocol() {
        // Published test vector of XXH3-64: the empty input with seed 0.
        assert_eq!(ring_position(b""), 0x2d06_8005_38d3_94c2);
        // The check value of CRC-32/ISO-HDLC holds for our polynomial.
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        assert_eq!(value_checksum(b"k", b"v"), crc32fast::hash(b"\x01\0\0\0kv"));
        assert_ne!(value_checksum(b"ab", b"c"), value_checksum(b"a", b"bc"), "the boundary counts");
    }

    #[test]
    fn names_of_cores_round_trip_and_nothing_else_is_one() {
        for core in [0, 1, 9, 10, 255, u16::MAX] {
            assert_eq!(core_of_server_name(&server_name_for_core(core)), Some(core));
        }
        for name in [
            "",
            "c1",
            "localhost",
            "c.node.krita.internal",
            "c01.node.krita.internal",
            "c+1.node.krita.internal",
            "c65536.node.krita.internal",
            "c1.node.krita.internal.example.org",
            "x.c1.node.krita.internal",
        ] {
            assert_eq!(core_of_server_name(name), None, "{name:?}");
        }
    }
}
