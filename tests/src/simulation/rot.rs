//! A node with a bad disk: in some worlds one node's disk damages files, loses, misplaces and repeats writes, cannot
//! read, is full, slow or stuck, now and then, among all the other faults. The other nodes' disks only lose power.

use std::path::Path;
use std::time::Duration;

use krita_runtime::BLOCK_SIZE;
use krita_runtime::sim::{Damage, DiskControl, DiskFaultOptions, Random};

/// Mean pause between two faults of the disk.
const CALM_MEAN_MS: u64 = 6_000;

/// Share of the worlds that have such a node, in percent.
const WORLDS_PERCENT: u64 = 50;

/// What a disk does at once, or for a while.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Damage(Damage),
    LostWrites,
    MisdirectedWrites,
    RepeatedWrites,
    FailedReads,
    UnreadableBlocks,
    Full,
    Slow,
    Hang,
}

/// Faults by how often they are drawn.
const WEIGHTS: [(Fault, u64); 13] = [
    (Fault::Damage(Damage::FlippedBit), 12),
    (Fault::Damage(Damage::ZeroedBlock), 6),
    (Fault::Damage(Damage::MisplacedBlock), 6),
    (Fault::Damage(Damage::TruncatedFile), 2),
    (Fault::Damage(Damage::DeletedFile), 2),
    (Fault::LostWrites, 4),
    (Fault::MisdirectedWrites, 4),
    (Fault::RepeatedWrites, 4),
    (Fault::FailedReads, 4),
    (Fault::UnreadableBlocks, 4),
    (Fault::Full, 4),
    (Fault::Slow, 4),
    (Fault::Hang, 3),
];

/// The node whose disk is bad, and what is drawn for it. Its draws are its own: worlds without one are as they would
/// be if there were none.
pub(crate) struct Rot {
    pub(crate) position: usize,
    random: Random,
}

/// What no fault hits, since nobody can give it back: who the node is.
fn spares(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    ["identity", "cluster", "ownership", "lock"].iter().any(|file| name.starts_with(file))
        || name.ends_with(".created")
}

impl Rot {
    /// Which node of this seed's world has a bad disk, if one has.
    pub(crate) fn draw(seed: u64, nodes: usize) -> Option<Self> {
        let random = Random::new(seed ^ 0x0062_6164_6469_736b);
        let has_one = random.below(100) < WORLDS_PERCENT;
        has_one.then(|| Self { position: random.index(nodes), random })
    }

    /// How long until the next fault.
    pub(crate) fn pause(&self) -> Duration {
        Duration::from_millis(self.random.between(CALM_MEAN_MS / 5, CALM_MEAN_MS * 9 / 5))
    }

    /// One fault. Returns how long it lasts.
    pub(crate) fn strike(&self, disk: &DiskControl) -> Duration {
        let fault = self.draw_fault();
        tracing::info!(?fault, node = self.position + 1, "the disk is bad");
        let faults = DiskFaultOptions { spares, ..DiskFaultOptions::default() };
        disk.set_faults(match fault {
            Fault::LostWrites => DiskFaultOptions { lost_write: 0.1, ..faults },
            Fault::MisdirectedWrites => DiskFaultOptions { misdirected_write: 0.1, ..faults },
            Fault::RepeatedWrites => DiskFaultOptions { duplicated_write: 0.1, ..faults },
            Fault::FailedReads => DiskFaultOptions { failed_read: 0.2, ..faults },
            Fault::UnreadableBlocks => DiskFaultOptions { unreadable_block: 0.1, ..faults },
            Fault::Damage(_) | Fault::Full | Fault::Slow | Fault::Hang => faults,
        });
        let duration = Duration::from_millis(self.random.between(200, 3_000));
        match fault {
            Fault::Damage(damage) => drop(disk.damage_at_random(damage)),
            Fault::Full => {
                let room = self.random.below(64) * BLOCK_SIZE as u64;
                disk.set_capacity(Some(disk.used_bytes() + room));
            }
            Fault::Slow => disk.slow_by(u32::try_from(self.random.between(5, 50)).expect("small")),
            Fault::Hang => disk.hang_for(duration),
            Fault::LostWrites
            | Fault::MisdirectedWrites
            | Fault::RepeatedWrites
            | Fault::FailedReads
            | Fault::UnreadableBlocks => {}
        }
        duration
    }

    fn draw_fault(&self) -> Fault {
        let total: u64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut ticket = self.random.below(total);
        for (fault, weight) in WEIGHTS {
            match ticket.checked_sub(weight) {
                Some(rest) => ticket = rest,
                None => return fault,
            }
        }
        unreachable!("the ticket is below the total")
    }
}

/// Ends what lasts. What is damaged stays damaged.
pub(crate) fn calm(disk: &DiskControl) {
    disk.set_faults(DiskFaultOptions::default());
    disk.set_capacity(None);
    disk.slow_by(1);
}
