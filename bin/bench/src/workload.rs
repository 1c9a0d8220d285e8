//! What is done: single operations, and the mixes A to F of YCSB (Cooper et al., "Benchmarking cloud serving systems
//! with YCSB", SoCC 2010) under their letters.

use clap::ValueEnum;

use crate::keys::Distribution;
use crate::values::Random;

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Workload {
    /// Replace values.
    Put,
    /// Read values.
    Get,
    /// As many of each.
    Mixed,
    /// Read keys in order.
    Scan,
    /// Replace many values at once.
    Batch,
    /// Read many values at once.
    BatchGet,
    /// Read a value, and replace it if nobody else did meanwhile.
    Cas,
    /// YCSB A: half reads, half updates.
    #[value(alias = "a")]
    YcsbA,
    /// YCSB B: 95 % reads, 5 % updates.
    #[value(alias = "b")]
    YcsbB,
    /// YCSB C: reads.
    #[value(alias = "c")]
    YcsbC,
    /// YCSB D: 95 % reads of what was added last, 5 % inserts.
    #[value(alias = "d")]
    YcsbD,
    /// YCSB E: 95 % scans of up to 100 keys, 5 % inserts.
    #[value(alias = "e")]
    YcsbE,
    /// YCSB F: half reads, half reads that are followed by an update.
    #[value(alias = "f")]
    YcsbF,
}

/// One kind of operation, which has a histogram of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// Reads a value.
    Read,
    /// Replaces a value.
    Update,
    /// Adds a key.
    Insert,
    /// Reads keys in order.
    Scan,
    /// Reads a value, then replaces it.
    ReadModifyWrite,
    /// Replaces many values.
    Batch,
    /// Reads many values.
    BatchGet,
    /// Reads a value and replaces it if it is still there.
    Swap,
}

impl Operation {
    /// All of them, in the order of their histograms.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Update,
        Self::Insert,
        Self::Scan,
        Self::ReadModifyWrite,
        Self::Batch,
        Self::BatchGet,
        Self::Swap,
    ];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "get",
            Self::Update => "put",
            Self::Insert => "insert",
            Self::Scan => "scan",
            Self::ReadModifyWrite => "read_modify_write",
            Self::Batch => "batch_put",
            Self::BatchGet => "batch_get",
            Self::Swap => "compare_and_swap",
        }
    }

    /// Its place in [`Operation::ALL`].
    pub fn position(self) -> usize {
        self as usize
    }
}

impl Workload {
    /// Its operations and their shares in percent, which add up to 100.
    pub fn mix(self) -> &'static [(Operation, u64)] {
        use Operation::{Batch, BatchGet, Insert, Read, ReadModifyWrite, Scan, Swap, Update};
        match self {
            Self::Put => &[(Update, 100)],
            Self::Get | Self::YcsbC => &[(Read, 100)],
            Self::Mixed | Self::YcsbA => &[(Read, 50), (Update, 50)],
            Self::Scan => &[(Scan, 100)],
            Self::Batch => &[(Batch, 100)],
            Self::BatchGet => &[(BatchGet, 100)],
            Self::Cas => &[(Swap, 100)],
            Self::YcsbB => &[(Read, 95), (Update, 5)],
            Self::YcsbD => &[(Read, 95), (Insert, 5)],
            Self::YcsbE => &[(Scan, 95), (Insert, 5)],
            Self::YcsbF => &[(Read, 50), (ReadModifyWrite, 50)],
        }
    }

    /// How it chooses keys unless told otherwise.
    pub fn distribution(self) -> Distribution {
        match self {
            Self::Put | Self::Get | Self::Mixed | Self::Scan | Self::Batch | Self::BatchGet | Self::Cas => {
                Distribution::Uniform
            }
            Self::YcsbA | Self::YcsbB | Self::YcsbC | Self::YcsbE | Self::YcsbF => Distribution::Zipfian,
            Self::YcsbD => Distribution::Latest,
        }
    }

    /// The next operation.
    pub fn pick(self, random: &mut Random) -> Operation {
        let mix = self.mix();
        if let [(only, _)] = mix {
            return *only;
        }
        let mut at = random.below(100);
        for (operation, share) in mix {
            match at.checked_sub(*share) {
                None => return *operation,
                Some(rest) => at = rest,
            }
        }
        mix[0].0
    }

    /// Its name, as typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
            Self::Scan => "scan",
            Self::Batch => "batch",
            Self::BatchGet => "batch-get",
            Self::Cas => "cas",
            Self::YcsbA => "ycsb-a",
            Self::YcsbB => "ycsb-b",
            Self::YcsbC => "ycsb-c",
            Self::YcsbD => "ycsb-d",
            Self::YcsbE => "ycsb-e",
            Self::YcsbF => "ycsb-f",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_are_whole_and_picked_by_their_shares() {
        for workload in Workload::value_variants() {
            assert_eq!(workload.mix().iter().map(|(_, share)| share).sum::<u64>(), 100);
            let typed = workload.to_possible_value().unwrap();
            assert!(typed.matches(workload.name(), false), "{}", workload.name());
            let mut random = Random::new(3);
            let picks: Vec<Operation> = (0..10_000).map(|_| workload.pick(&mut random)).collect();
            for (operation, share) in workload.mix() {
                let found = picks.iter().filter(|pick| *pick == operation).count() as u64;
                assert!(found.abs_diff(share * 100) < 300, "{workload:?} {operation:?}: {found}");
            }
        }
        for (position, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation.position(), position);
        }
    }
}
