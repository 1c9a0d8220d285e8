//! How a node's memory is divided where the configuration says `auto`: shares of what the machine has, within bounds.

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a machine is taken to have if nobody says.
const MACHINE_BYTES_DEFAULT: u64 = GIB;

/// One budget: a share of the machine's memory, but not less or more than these.
struct Share {
    name: &'static str,
    divisor: u64,
    min: u64,
    max: u64,
}

/// Together at most three eighths; connections, Raft's entries and what is on its way need theirs.
const SHARES: [Share; 4] = [
    Share { name: "memtable_bytes", divisor: 16, min: 16 * MIB, max: 2 * GIB },
    Share { name: "block_cache_bytes", divisor: 8, min: 16 * MIB, max: 64 * GIB },
    Share { name: "filter_bytes", divisor: 16, min: 16 * MIB, max: 32 * GIB },
    Share { name: "value_cache_bytes", divisor: 8, min: 16 * MIB, max: 256 * GIB },
];

/// The bytes that `auto` stands for in this key, on a machine with that much memory.
pub(super) fn automatic(name: &str, machine_bytes: Option<u64>) -> u64 {
    let share =
        SHARES.iter().find(|share| share.name == name).expect("every key with auto bytes has a share");
    let bytes = machine_bytes.unwrap_or(MACHINE_BYTES_DEFAULT) / share.divisor;
    bytes.clamp(share.min, share.max) / MIB * MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_follows_the_machine_between_its_bounds() {
        assert_eq!(automatic("memtable_bytes", Some(16 * GIB)), GIB);
        assert_eq!(automatic("block_cache_bytes", Some(16 * GIB)), 2 * GIB);
        assert_eq!(automatic("filter_bytes", Some(16 * GIB)), GIB);
        assert_eq!(automatic("value_cache_bytes", Some(16 * GIB)), 2 * GIB);
        assert_eq!(automatic("memtable_bytes", None), 64 * MIB);
        for share in &SHARES {
            assert_eq!(automatic(share.name, Some(0)), share.min);
            assert_eq!(automatic(share.name, Some(u64::MAX)), share.max);
        }
    }
}
