//! The seam between Krita and the machine it runs on.
//!
//! Everything above this crate is ordinary async code, generic over one trait, [`Runtime`], which is the sum
//! of what a core may ask of the world: a [`Clock`], a [`Disk`], a [`Network`], the [`Mesh`] to the other
//! cores of its node, random numbers ([`Rng`]) and tasks ([`Spawn`]). There are two implementations:
//!
//! - [`mod@glommio`]: the real machine. One executor per core over io_uring.
//! - [`sim`]: a seeded simulator. A whole cluster, with faulty disks and networks, on one thread in virtual
//!   time; the same seed replays the same run.
//!
//! What is deliberately absent above this crate: clocks, threads, files, sockets, random numbers and the
//! iteration order of a hash map. `clippy.toml` bans them and names the replacement.
//!
//! A `Runtime` value is a cheap handle that belongs to one core. Nothing here is `Send` but what crosses the
//! mesh; futures are `!Send` and run where they were spawned.

pub mod sim;
mod time;
mod wait;

#[cfg(feature = "glommio")]
pub mod glommio;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::io::{AsyncRead, AsyncWrite};

pub use time::{Instant, WallTime};
pub use wait::{Elapsed, Notify, timeout};

/// A hash map whose order depends on nothing but its keys: safe under replay, unlike std's default.
#[allow(clippy::disallowed_types)] // The one place that names it, to give it a fixed hasher.
pub type FixedHashMap<K, V> = std::collections::HashMap<K, V, FixedState>;

/// The hasher of [`FixedHashMap`]: xxh3 with a constant seed. Not for keys that an attacker may choose freely
/// in unbounded number.
pub type FixedState = std::hash::BuildHasherDefault<twox_hash::XxHash3_64>;

/// Alignment, in bytes, of every position, length and buffer that goes to a [`File`].
pub const BLOCK_SIZE: usize = 4096;

/// One core of a node: an index from 0 to the node's number of cores, exclusive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CoreId(pub u16);

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "core{}", self.0)
    }
}

/// All that a core may ask of the world. Cheap to clone; belongs to one core.
pub trait Runtime: Clock + Disk + Network + Rng + Spawn + Clone + 'static {
    /// The endpoint of this core on a mesh of messages `M`.
    type Mesh<M: Send + 'static>: Mesh<M>;

    /// Which core of the node this is.
    fn core(&self) -> CoreId;

    /// What this core's executor has counted since it started.
    fn core_figures(&self) -> CoreFigures;
}

/// What a core's executor counts. All of it is 0 where nothing is measured.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct CoreFigures {
    /// Time spent running tasks.
    pub busy: Duration,
    /// How often a task was run.
    pub task_polls: u64,
    /// How often the core did not answer its watchdog in time.
    pub stalls: u64,
    /// The longest that it took then.
    pub stall_longest: Duration,
}

/// Time. Two clocks: one to measure with, one to show to people.
pub trait Clock {
    /// Monotonic time since an arbitrary origin of this process, on a clock that runs through suspend
    /// (`CLOCK_BOOTTIME`): leases depend on that.
    fn now(&self) -> Instant;

    /// Wall-clock time. It may jump in both directions; nothing that must be right may depend on it.
    fn wall_clock(&self) -> WallTime;

    /// Completes once `duration` has passed.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;
}

/// Random numbers: from the system on the real machine, from the seed in the simulator.
pub trait Rng {
    /// A uniformly distributed number.
    fn random_u64(&self) -> u64;
}

/// How urgent a task is. Each class is a queue of its own with a share of the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskClass {
    /// Work that a request or the cluster's own life waits for.
    Foreground,
    /// Checkpoints, compaction, snapshots, scrubbing: few shares, in slices (see [`Spawn::pause`]).
    Background,
}

/// Tasks on this core.
pub trait Spawn {
    /// Starts a task on this core and detaches it. It ends when its future does, or with the core.
    /// `name` shows in stall reports.
    fn spawn<F>(&self, class: TaskClass, name: &'static str, future: F)
    where
        F: Future<Output = ()> + 'static;

    /// Lets other ready tasks and the I/O poll run. Call it after about 100 microseconds of work and after
    /// a bounded number of frames, requests or entries.
    fn pause(&self) -> impl Future<Output = ()> + 'static;
}

/// Files. All file data moves by direct I/O in aligned blocks; small whole files (identity, configuration)
/// have two calls of their own.
pub trait Disk {
    /// An open file.
    type File: File;

    /// Opens or creates a file. Creation is durable only after [`Disk::sync_directory`].
    fn open(&self, path: &Path, options: OpenOptions) -> impl Future<Output = io::Result<Self::File>>;

    /// Creates a directory and its missing parents.
    fn create_directory(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// The names in a directory, sorted.
    fn list_directory(&self, path: &Path) -> impl Future<Output = io::Result<Vec<PathBuf>>>;

    /// Makes creations, renames and removals in a directory durable.
    fn sync_directory(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Renames a file, replacing the target. Durable only after [`Disk::sync_directory`].
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file. Durable only after [`Disk::sync_directory`].
    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Reads a small file whole. `NotFound` if it is absent; `InvalidData` if it is longer than
    /// `length_max`.
    fn read_small_file(&self, path: &Path, length_max: usize) -> impl Future<Output = io::Result<Vec<u8>>>;

    /// Replaces a small file atomically and durably: written beside it, flushed, renamed, directory
    /// flushed. After a crash the file holds the old or the new content, whole.
    fn replace_small_file(&self, path: &Path, content: &[u8]) -> impl Future<Output = io::Result<()>>;

    /// Takes an exclusive lock on a directory for the life of the process; a second holder gets
    /// `WouldBlock`.
    fn lock_directory(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Bytes that this process could still write to the file system which holds `path`.
    fn available_bytes(&self, path: &Path) -> impl Future<Output = io::Result<u64>>;
}

/// How to open a file. The default opens an existing file for reading.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct OpenOptions {
    /// Allow writing.
    pub write: bool,
    /// Create the file if it is absent.
    pub create: bool,
    /// Every completed write is durable when its future completes (`O_DSYNC`).
    pub durable_writes: bool,
}

/// An open file, read and written by direct I/O.
///
/// In-flight operations must be awaited to their end, never dropped: the kernel still owns the buffer. The
/// engine runs them in tasks of their own where the caller may go away.
pub trait File: Clone + 'static {
    /// Memory that may be handed to the device.
    type Buffer: Deref<Target = [u8]> + DerefMut + 'static;

    /// Allocates a buffer of exactly `length` bytes (a multiple of [`BLOCK_SIZE`]). Its content is
    /// unspecified: write all of it.
    fn buffer(&self, length: usize) -> Self::Buffer;

    /// Writes the whole buffer at `position` (both multiples of [`BLOCK_SIZE`]). A short write is an error.
    /// Durable on return only if the file was opened with `durable_writes`.
    fn write_at(&self, buffer: Self::Buffer, position: u64)
    -> impl Future<Output = io::Result<()>> + 'static;

    /// Reads up to `length` bytes at any `position`, fewer only at the end of the file. Alignment is the
    /// implementation's business.
    fn read_at(&self, position: u64, length: usize) -> impl Future<Output = io::Result<Bytes>> + 'static;

    /// Makes all completed writes of this file durable (`fdatasync`). After an error nothing may be assumed
    /// of any write since the last success.
    fn sync_data(&self) -> impl Future<Output = io::Result<()>> + 'static;

    /// The file's length in bytes.
    fn length(&self) -> impl Future<Output = io::Result<u64>> + 'static;
}

/// Streams of bytes between nodes and from clients.
pub trait Network {
    /// A connected byte stream.
    type Stream: Stream;
    /// A listening socket.
    type Listener: Listener<Stream = Self::Stream>;
    /// A connected stream on its way to another core.
    type Handoff: Send + 'static;

    /// Listens on `address`. All cores of a node that listen on one address share one socket, each accepting
    /// its part of the connections; another process on the same address is an `AddrInUse` error.
    fn listen(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Listener>>;

    /// Connects to `host:port`; names are resolved anew at every call, off the core. Bounded by
    /// `timeout`.
    fn connect(&self, address: &str, timeout: Duration) -> impl Future<Output = io::Result<Self::Stream>>;

    /// Takes a stream off this core. No operation on it may be in flight.
    fn detach(&self, stream: Self::Stream) -> Self::Handoff;

    /// Puts a detached stream on this core.
    fn attach(&self, handoff: Self::Handoff) -> io::Result<Self::Stream>;
}

/// Accepts connections.
pub trait Listener: 'static {
    /// What it accepts.
    type Stream: Stream;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>>;

    /// The address listened on; the port is the real one if 0 was asked for.
    fn local_address(&self) -> SocketAddr;
}

/// A connected byte stream: ordered, reliable until it fails.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Who is at the other end.
    fn peer_address(&self) -> Option<SocketAddr>;
}

/// This core's endpoint on the mesh that connects all cores of a node.
pub trait Mesh<M: Send + 'static>: Clone + 'static {
    /// How many cores the node has.
    fn cores(&self) -> u16;

    /// Queues a message for a core. The queue is bounded: a full one gives the message back.
    fn send(&self, to: CoreId, message: M) -> Result<(), MeshFull<M>>;

    /// The next message for this core, in the order of each sender. Only one task may receive.
    fn receive(&self) -> impl Future<Output = M>;

    /// The next message if one is there.
    fn try_receive(&self) -> Option<M>;
}

/// The destination core's queue is full, or the core has ended; here is the message back.
#[derive(Debug)]
pub struct MeshFull<M>(pub M);
