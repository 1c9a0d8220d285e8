//! The seeded simulator: a whole cluster on one thread, in virtual time.
//!
//! A [`Simulation`] holds hosts; each has a disk, clocks and an address. [`Simulation::boot`] starts a node on
//! a host, on as many cores as wished; [`Simulation::spawn_on`] starts a client or a script. They run on
//! [`SimRuntime`], the simulator's [`crate::Runtime`], and cannot tell it from a machine, save that it is
//! unkind: which ready task runs next, how long everything takes, how bytes are cut into reads and writes, and
//! what a crash leaves of unflushed sectors are all drawn from the seed. The same seed replays the same run;
//! [`Simulation::trace_hash`] tells whether it did.
//!
//! Time is virtual: it jumps from event to event. A poll of a task takes a moment of it
//! ([`SimulationOptions::poll_time`]), so that a core can be busy.
//!
//! ```
//! use std::time::Duration;
//! use futures_util::io::{AsyncReadExt, AsyncWriteExt};
//! use krita_runtime::sim::{Simulation, SimulationOptions};
//! use krita_runtime::{Listener, Network};
//!
//! let simulation = Simulation::new(42, SimulationOptions::default());
//! let server = simulation.add_host("server");
//! let client = simulation.add_host("client");
//! simulation.boot(server, 1, |runtime, _mesh: krita_runtime::sim::SimMesh<()>| async move {
//!     let listener = runtime.listen("0.0.0.0:8080".parse().unwrap()).await.unwrap();
//!     let mut stream = listener.accept().await.unwrap();
//!     let mut question = [0; 4];
//!     stream.read_exact(&mut question).await.unwrap();
//!     stream.write_all(b"pong").await.unwrap();
//! });
//! let answer = simulation.block_on(client, |runtime| async move {
//!     let limit = Duration::from_secs(5);
//!     // The server may not listen yet.
//!     let mut stream = loop {
//!         match runtime.connect("server:8080", limit).await {
//!             Ok(stream) => break stream,
//!             Err(_) => krita_runtime::Clock::sleep(&runtime, Duration::from_millis(10)).await,
//!         }
//!     };
//!     stream.write_all(b"ping").await.unwrap();
//!     let mut answer = [0; 4];
//!     stream.read_exact(&mut answer).await.unwrap();
//!     answer
//! });
//! assert_eq!(&answer, b"pong");
//! ```
//!
//! # Faults of disks
//!
//! Each can be asked for ([`DiskControl`], on one host, now) and, where it says so, left to the seed with a chance
//! ([`DiskFaultOptions`], in [`DiskOptions::faults`] for all hosts or by [`DiskControl::set_faults`] for one). A
//! chance of zero, the default, draws nothing, so that switching one fault on leaves all other draws as they were.
//! [`Statistics`] counts those that made a difference.
//!
//! | fault | asked for | by chance |
//! |---|---|---|
//! | power cut: unflushed sectors and names kept, lost or torn | [`Simulation::crash`], [`CrashOptions`] | always |
//! | acknowledged flushes that were none | [`DiskControl::lie_about_syncs`] | |
//! | lost, misdirected, repeated write | [`DiskControl::strike_next_write`] | yes |
//! | failed write, leaving a mixture of sectors | [`DiskControl::fail_writes`] | yes |
//! | failed flush; the data is kept, forgotten or reverted | [`DiskControl::fail_syncs`], [`AfterFailedSync`] | yes |
//! | the file system turns read-only | [`DiskControl::remount_read_only`] | after a failure |
//! | failed read, once or lasting | [`DiskControl::fail_reads`], [`DiskControl::fail_reads_of`] | yes |
//! | flipped bit | [`DiskControl::flip_bit`], [`DiskControl::flip_byte`] | yes |
//! | zeroed or misplaced block | [`DiskControl::zero_block`], [`DiskControl::misplace_block`] | yes |
//! | truncated or deleted file | [`DiskControl::truncate`], [`DiskControl::remove`] | yes |
//! | full disk: new blocks and names refused, overwrites taken | [`DiskControl::set_capacity`] | capacity |
//! | slow disk | [`DiskControl::slow_by`], [`DiskControl::slow`] | [`DiskOptions::latency_factor`] |
//! | hung disk | [`DiskControl::hang_for`], [`DiskControl::hang`] | yes |
//! | read-only directory | [`DiskControl::set_read_only`] | |
//!
//! Damage at rest ([`DiskControl::damage_at_random`] for a place of the seed's choice) shows in the cache and on the
//! platter alike, and works under a running node. Direct I/O has no cache to hide it.
//!
//! A killed process keeps its locks for as long as the disk has operations of its, as under a real kernel: behind a
//! hung disk a restart finds the directory locked.
//!
//! # Map
//!
//! `world` holds the shared state and the event loop; `executor` tasks and cores; `host` processes, clocks,
//! crashes; `network` connections and links, `stream` what processes see of them; `storage` what is on a disk
//! and what a crash leaves, `disk` the operations, `faults` how they fail, `write_fault` how writes go astray,
//! `rot` damage at rest; `mesh` messages between cores; `runtime` the trait; [`control`] the faults on demand.

pub mod control;
mod disk;
mod executor;
mod faults;
mod host;
mod mesh;
mod network;
mod options;
mod random;
mod rot;
mod runtime;
mod statistics;
mod storage;
mod stream;
mod world;
mod write_fault;

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::{CoreId, TaskClass};
use host::{Host, ProcessKind};
use world::World;

pub use control::{DiskControl, NetworkControl};
pub use disk::{SimBuffer, SimFile};
pub use mesh::SimMesh;
pub use options::{
    CrashOptions, DiskFaultOptions, DiskOptions, Latency, NetworkOptions, SimulationOptions, Survival,
};
pub use random::Random;
pub use rot::{Damage, Damaged};
pub use runtime::SimRuntime;
pub use statistics::Statistics;
pub use storage::{AfterFailedSync, ReadFault};
pub use stream::{SimHandoff, SimListener, SimStream};
pub use write_fault::WriteFault;

/// Simulated time after which [`Simulation::block_on`] gives up.
const BLOCK_ON_LIMIT: Duration = Duration::from_secs(3600);

/// A machine of the simulation, a node's or a client's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub u16);

/// A simulated world. Everything in it is decided by the seed.
///
/// A clone is another handle to the same world, for scripts that break things from inside it. The world ends
/// with the first handle, not with its clones.
pub struct Simulation {
    world: Rc<World>,
    ends_world: bool,
}

impl Clone for Simulation {
    fn clone(&self) -> Self {
        Self { world: Rc::clone(&self.world), ends_world: false }
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        if self.ends_world {
            self.world.end();
        }
    }
}

impl Simulation {
    /// A world without hosts.
    pub fn new(seed: u64, options: SimulationOptions) -> Self {
        Self { world: World::new(seed, options), ends_world: true }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// Adds a host with an empty disk. Its name resolves to its address, 10.0.0.1 for the first.
    pub fn add_host(&self, name: &str) -> HostId {
        assert!(self.world.host_named(name).is_none(), "there is a host {name} already");
        let id = HostId(self.world.hosts.borrow().len() as u16);
        let host = Rc::new(Host::new(&self.world, id, name));
        self.world.hosts.borrow_mut().push(host);
        id
    }

    /// Starts a process on a host: `main` runs once on each core, with that core's runtime and mesh endpoint.
    /// A core ends when its `main` does, and all its tasks with it; a process ends with its last core. A
    /// second process on one host is allowed, and competes for ports and locks.
    pub fn boot<M, F, Fut>(&self, host: HostId, cores: u16, main: F)
    where
        M: Send + 'static,
        F: Fn(SimRuntime, SimMesh<M>) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        let world = &self.world;
        let process = world.start_process(&world.host(host), ProcessKind::Node, cores);
        let cores = process.cores.borrow().clone();
        let endpoints = SimMesh::connect(world, &cores, world.random.fork(process.id));
        for (core, endpoint) in cores.into_iter().zip(endpoints) {
            let future = main(SimRuntime::new(world, &core), endpoint);
            let ending = (Rc::clone(world), Rc::clone(&core));
            let until_end = async move {
                future.await;
                ending.0.end_core(&ending.1);
            };
            world.spawn(&core, TaskClass::Foreground, "main", Box::pin(until_end));
        }
    }

    /// A runtime of the host's script process: one core of its own beside the node's, for client workloads
    /// and tests of single parts. It dies with the host; after that, ask again.
    pub fn runtime(&self, host: HostId) -> SimRuntime {
        let world = &self.world;
        let host = world.host(host);
        let process = host.script().unwrap_or_else(|| world.start_process(&host, ProcessKind::Script, 1));
        let core = Rc::clone(&process.cores.borrow()[usize::from(CoreId(0).0)]);
        SimRuntime::new(world, &core)
    }

    /// Starts a task in the host's script process (see [`Self::runtime`]).
    pub fn spawn_on<F, Fut>(&self, host: HostId, main: F)
    where
        F: FnOnce(SimRuntime) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        let runtime = self.runtime(host);
        let future = main(runtime.clone());
        crate::Spawn::spawn(&runtime, TaskClass::Foreground, "script", future);
    }

    /// Runs a future in the host's script process and the world with it, until it completes. Panics after an
    /// hour of simulated time, or when the host dies.
    pub fn block_on<F, Fut>(&self, host: HostId, main: F) -> Fut::Output
    where
        F: FnOnce(SimRuntime) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        let output = Rc::new(RefCell::new(None));
        let result = Rc::clone(&output);
        let runtime = self.runtime(host);
        let future = main(runtime.clone());
        crate::Spawn::spawn(&runtime, TaskClass::Foreground, "script", async move {
            let value = future.await;
            *result.borrow_mut() = Some(value);
        });
        self.run_until(BLOCK_ON_LIMIT, || output.borrow().is_some() || !runtime.is_alive());
        let value = output.borrow_mut().take();
        let seed = self.seed();
        value.unwrap_or_else(|| match runtime.is_alive() {
            true => panic!("the future did not complete within {BLOCK_ON_LIMIT:?} (seed {seed})"),
            false => panic!("the host died under the future that was waited for (seed {seed})"),
        })
    }

    /// Power loss: all tasks are gone at once; what was not flushed is kept, lost or torn by sectors (see
    /// [`CrashOptions`]). The host stays off until a process is started on it.
    pub fn crash(&self, host: HostId) {
        self.world.crash_host(&self.world.host(host));
    }

    /// SIGKILL of all the host's processes: what was written stays, flushed or not, and peers see their
    /// connections closed or reset.
    pub fn kill(&self, host: HostId) {
        self.world.kill_host(&self.world.host(host));
    }

    /// Whether a process that [`Self::boot`] started has a core left on this host.
    pub fn is_running(&self, host: HostId) -> bool {
        let host = self.world.host(host);
        let processes = host.processes.borrow();
        processes.iter().any(|process| process.kind == ProcessKind::Node)
    }

    /// SIGSTOP: the host's tasks do not run; time goes on, timers come due, bytes arrive.
    pub fn pause(&self, host: HostId) {
        self.world.host(host).paused.set(true);
    }

    /// SIGCONT.
    pub fn resume(&self, host: HostId) {
        self.world.resume_host(&self.world.host(host));
    }

    /// Steps a host's wall clock, in milliseconds.
    pub fn step_wall_clock(&self, host: HostId, milliseconds: i64) {
        self.world.host(host).step_wall_clock(milliseconds);
    }

    /// Sets the rate error of a host's clocks, in parts per million.
    pub fn set_clock_drift(&self, host: HostId, ppm: i32) {
        self.world.host(host).set_drift(self.world.now(), ppm);
    }

    /// Lets simulated time pass.
    pub fn run_for(&self, duration: Duration) {
        self.run_until(duration, || false);
    }

    /// Runs until `condition` holds (true) or `limit` has passed (false). The condition is tried after every
    /// event: keep it cheap.
    pub fn run_until(&self, limit: Duration, condition: impl FnMut() -> bool) -> bool {
        let end = self.world.now().saturating_add(random::nanoseconds(limit));
        self.world.run(end, condition)
    }

    /// Simulated time since the world's beginning.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.world.now())
    }

    /// A generator for the test's own decisions, from the same seed. Each call gives another one.
    pub fn random(&self) -> Random {
        self.world.random.fork(0)
    }

    /// The network's switches.
    pub fn network(&self) -> NetworkControl {
        NetworkControl { world: Rc::clone(&self.world) }
    }

    /// A host's disk and its switches.
    pub fn disk(&self, host: HostId) -> DiskControl {
        DiskControl { world: Rc::clone(&self.world), host: self.world.host(host) }
    }

    /// What has happened so far.
    pub fn statistics(&self) -> Statistics {
        self.world.statistics()
    }

    /// A hash of every scheduling decision so far: equal for equal seeds and equal programs.
    pub fn trace_hash(&self) -> u64 {
        self.world.trace_hash()
    }

    /// The address of a port of a host.
    pub fn address(&self, host: HostId, port: u16) -> SocketAddr {
        SocketAddr::new(self.world.host(host).address, port)
    }
}
