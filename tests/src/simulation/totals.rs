//! What runs met: a simulation in which nothing happens proves nothing.

use std::fmt;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one seed met.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Report {
            /// The seed.
            pub seed: u64,
            $($(#[$doc])* pub $name: u64,)*
            /// The simulation's trace hash: equal for equal runs.
            pub trace: u64,
        }

        /// What many seeds met together.
        #[derive(Clone, Debug, Default)]
        pub struct Totals {
            /// How many seeds.
            pub seeds: u64,
            /// Sums over all seeds.
            pub sum: Report,
            /// In how many seeds each was met at least once.
            pub met_in: Report,
            /// Seeds with an election, a conflict, a snapshot transfer, a crash and a torn write, all of them.
            pub eventful: u64,
        }

        impl Totals {
            /// Takes in one seed.
            pub fn add(&mut self, report: &Report) {
                self.seeds += 1;
                $(
                    self.sum.$name += report.$name;
                    self.met_in.$name += u64::from(report.$name > 0);
                )*
                self.eventful += u64::from(report.is_eventful());
            }
        }

        impl fmt::Display for Totals {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                writeln!(f, "{} seeds; {} of them with an election, a conflict, a snapshot transfer, a crash and a \
                    torn write", self.seeds, self.eventful)?;
                writeln!(f, "{:<20} {:>14} {:>10}", "", "total", "in seeds")?;
                $(writeln!(f, "{:<20} {:>14} {:>10}", stringify!($name).replace('_', " "), self.sum.$name,
                    self.met_in.$name)?;)*
                Ok(())
            }
        }
    };
}

counts! {
    /// Pairs of a shard and a term that had a leader.
    elections,
    /// Times that a replica cut entries which another leader's replaced.
    conflicts,
    /// Snapshots installed.
    snapshots,
    /// Starts of a node that handed shards to new logs.
    handoffs,
    /// Orders to shards that were carried out.
    moves,
    /// Of them, those that changed who votes.
    swaps,
    /// Replicas that were opened empty.
    opened,
    /// Replicas that were removed and dropped.
    dropped,
    /// Of them, those that had to be told.
    told_removed,
    /// Power cuts.
    crashes,
    /// Times that a node's processes were killed.
    kills,
    /// Worlds with a node whose disk is bad.
    bad_disks,
    /// Bits flipped, blocks zeroed or misplaced, files cut or removed by it.
    damages,
    /// Writes that it lost, misdirected or repeated.
    astray_writes,
    /// Reads that it failed.
    failed_reads,
    /// Writes that it had no room for.
    full_disks,
    /// Unflushed writes of which a power cut kept some sectors and lost others.
    torn_writes,
    /// Unflushed writes that a power cut lost whole.
    lost_writes,
    /// Connections reset.
    resets,
    /// Faults that the nemesis chose.
    faults,
    /// Nodes that gave up because their disk failed.
    failures,
    /// Calls that succeeded.
    ok,
    /// Calls whose condition did not hold.
    conditions_failed,
    /// Calls that failed without effect.
    unavailable,
    /// Calls with an unknown outcome.
    unknown,
    /// Answers of nodes to the observer.
    samples,
    /// Events of the simulation.
    events,
    /// Polls of tasks.
    polls,
}

impl Report {
    /// All that a standard seed should meet.
    pub fn is_eventful(&self) -> bool {
        self.elections > 0
            && self.conflicts > 0
            && self.snapshots > 0
            && self.crashes > 0
            && self.torn_writes > 0
    }
}
