//! What a simulated world is like when nothing is being broken on purpose. Faults that a test switches on and
//! off while it runs are in [`super::control`].

use std::path::Path;
use std::time::Duration;

/// A range of delays. Draws are skewed: mostly near `min`, now and then near `max`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Latency {
    /// The shortest delay.
    pub min: Duration,
    /// The longest delay; at least `min`.
    pub max: Duration,
}

impl Latency {
    /// No delay at all.
    pub const ZERO: Self = Self { min: Duration::ZERO, max: Duration::ZERO };

    /// Always the same delay.
    pub const fn fixed(delay: Duration) -> Self {
        Self { min: delay, max: delay }
    }

    /// A range in microseconds.
    pub const fn micros(min: u64, max: u64) -> Self {
        Self { min: Duration::from_micros(min), max: Duration::from_micros(max) }
    }

    /// A range in milliseconds.
    pub const fn millis(min: u64, max: u64) -> Self {
        Self { min: Duration::from_millis(min), max: Duration::from_millis(max) }
    }
}

/// The options of a simulation. The default is a healthy local network with quick disks.
#[derive(Clone, Debug)]
pub struct SimulationOptions {
    /// Simulated time that one poll of a task takes on its core. Zero is allowed.
    pub poll_time: Latency,
    /// How late timers fire.
    pub timer_lateness: Latency,
    /// Bound on the rate error of every host's monotonic clock, in parts per million, either way.
    pub clock_drift_ppm_max: u32,
    /// Bound on the initial error of every host's wall clock, either way.
    pub wall_clock_error_max: Duration,
    /// More events than this at one instant are a livelock: the simulation panics and names the tasks.
    pub events_per_instant_max: u64,
    /// Delay of a message between two cores of a node.
    pub mesh_latency: Latency,
    /// Messages that may wait for one core before its mesh queue is full.
    pub mesh_capacity: usize,
    /// The network at the start.
    pub network: NetworkOptions,
    /// Every host's disk at the start.
    pub disk: DiskOptions,
    /// What a crash does to the crashed host's disk and connections.
    pub crash: CrashOptions,
}

impl Default for SimulationOptions {
    fn default() -> Self {
        Self {
            poll_time: Latency { min: Duration::from_nanos(100), max: Duration::from_micros(5) },
            timer_lateness: Latency::micros(0, 100),
            clock_drift_ppm_max: 200,
            wall_clock_error_max: Duration::from_secs(2),
            events_per_instant_max: 100_000,
            mesh_latency: Latency::micros(1, 30),
            mesh_capacity: 4096,
            network: NetworkOptions::default(),
            disk: DiskOptions::default(),
            crash: CrashOptions::default(),
        }
    }
}

/// The network when nothing is broken.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// One-way delay between two hosts.
    pub latency: Latency,
    /// One-way delay within a host.
    pub loopback_latency: Latency,
    /// Time that a stream needs per byte, in nanoseconds: 1 is 8 Gbit/s.
    pub nanoseconds_per_byte: u64,
    /// Bytes that may be on their way or unread in one direction of a stream; drawn per stream between the
    /// two. A full window blocks the writer.
    pub window_bytes_min: usize,
    /// The upper bound of the window.
    pub window_bytes_max: usize,
    /// Chance that a write takes only a part of what it was given.
    pub short_write_chance: f64,
    /// Chance that a read gives only a part of what is there.
    pub short_read_chance: f64,
    /// Chance per write that a packet is lost and sent again after `retransmission`.
    pub loss_chance: f64,
    /// How long a lost packet holds up its stream.
    pub retransmission: Latency,
    /// Chance per write that the connection is reset after a part of its bytes.
    pub reset_chance: f64,
    /// How long a peer may stay unreachable, with bytes on their way to it, before a connection breaks.
    pub break_after: Latency,
    /// How often a connect that gets no answer is tried again, within its time limit.
    pub connect_retry: Duration,
    /// Connections that may wait on one core for an accept.
    pub backlog_max: usize,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            latency: Latency::micros(50, 1_000),
            loopback_latency: Latency::micros(5, 50),
            nanoseconds_per_byte: 1,
            window_bytes_min: 16 << 10,
            window_bytes_max: 1 << 20,
            short_write_chance: 0.1,
            short_read_chance: 0.1,
            loss_chance: 0.001,
            retransmission: Latency::millis(20, 400),
            reset_chance: 0.0,
            break_after: Latency::millis(8_000, 20_000),
            connect_retry: Duration::from_secs(1),
            backlog_max: 1024,
        }
    }
}

/// A disk when nothing is broken.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Delay of a read.
    pub read_latency: Latency,
    /// Delay of a write; of a durable write, added to `sync_latency`.
    pub write_latency: Latency,
    /// Delay of a flush.
    pub sync_latency: Latency,
    /// Delay of an operation on directories and names.
    pub directory_latency: Latency,
    /// Every delay is multiplied by this: 1 for a healthy disk.
    pub latency_factor: u32,
    /// Bytes that the files of one host may take together; `None` for no limit.
    pub capacity_bytes: Option<u64>,
    /// How often the disk misbehaves by itself.
    pub faults: DiskFaultOptions,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            read_latency: Latency::micros(60, 800),
            write_latency: Latency::micros(20, 400),
            sync_latency: Latency::micros(100, 2_000),
            directory_latency: Latency::micros(5, 200),
            latency_factor: 1,
            capacity_bytes: None,
            faults: DiskFaultOptions::default(),
        }
    }
}

/// How often a disk misbehaves by itself. Chances are from 0 to 1; by default all are 0, and what has no chance
/// draws no random numbers: a fault that is switched on leaves the draws of everything else as they were.
///
/// What power cuts do is in [`CrashOptions`].
#[derive(Clone, Debug)]
pub struct DiskFaultOptions {
    /// Per write: it is acknowledged and forgotten.
    pub lost_write: f64,
    /// Per write: it is acknowledged and lands in other blocks, of the same file or of another.
    pub misdirected_write: f64,
    /// Per write: it lands, and lands again, either in the same place after [`Self::duplicate_delay`], over
    /// whatever was written there in the meantime, or at once somewhere else.
    pub duplicated_write: f64,
    /// How late a write lands for the second time.
    pub duplicate_delay: Latency,
    /// Per write: it fails with `EIO`, leaving any mixture of old and new sectors.
    pub failed_write: f64,
    /// Per flush of a file or directory: it fails with `EIO`, after which the data may be durable, may become so
    /// later, or never will be.
    pub failed_sync: f64,
    /// Per failed write or flush by chance: the file system turns read-only and stays so, as ext4 does when its
    /// journal aborts, until the host loses power or [`super::DiskControl::remount_read_only`] ends it.
    pub read_only_after_failure: f64,
    /// Per read: it fails with `EIO` once.
    pub failed_read: f64,
    /// Per read: the first block that was asked for cannot be read any more until it is written.
    pub unreadable_block: f64,
    /// Per operation: a bit of some file flips.
    pub flipped_bit: f64,
    /// Per operation: a block of some file is zeros.
    pub zeroed_block: f64,
    /// Per operation: a block of some file holds what belongs in another block, of the same file or of another.
    pub misplaced_block: f64,
    /// Per operation: some file loses its end.
    pub truncated_file: f64,
    /// Per operation: some file is gone.
    pub deleted_file: f64,
    /// Per operation: the disk hangs for [`Self::hang_time`].
    pub hang: f64,
    /// How long a hang by chance lasts.
    pub hang_time: Latency,
    /// Files that none of the above (but for hangs) hits.
    pub spares: fn(&Path) -> bool,
}

impl Default for DiskFaultOptions {
    fn default() -> Self {
        Self {
            lost_write: 0.0,
            misdirected_write: 0.0,
            duplicated_write: 0.0,
            duplicate_delay: Latency::millis(0, 2_000),
            failed_write: 0.0,
            failed_sync: 0.0,
            read_only_after_failure: 0.0,
            failed_read: 0.0,
            unreadable_block: 0.0,
            flipped_bit: 0.0,
            zeroed_block: 0.0,
            misplaced_block: 0.0,
            truncated_file: 0.0,
            deleted_file: 0.0,
            hang: 0.0,
            hang_time: Latency::millis(1_000, 60_000),
            spares: |_| false,
        }
    }
}

/// Which of the things that were never made durable survive a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survival {
    /// Decided by the seed, one by one: the adversary.
    Random,
    /// All of them.
    All,
    /// None of them.
    Nothing,
}

/// What a crash (a loss of power) does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CrashOptions {
    /// Sectors of 512 bytes that were written, or were being written, but not flushed.
    pub unsynced_sectors: Survival,
    /// Creations, renames and removals whose directory was not flushed.
    pub directory_changes: Survival,
    /// Chance, per connection, that the peer hears of the crash by a reset; otherwise it hears nothing.
    pub reset_chance: f64,
}

impl Default for CrashOptions {
    fn default() -> Self {
        Self { unsynced_sectors: Survival::Random, directory_changes: Survival::Random, reset_chance: 0.5 }
    }
}
