//! The seeded simulator: a whole cluster on one thread, in virtual time.

pub mod control;
mod options;
mod random;
mod statistics;

use std::cell::RefCell;

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

pub use control::{DiskControl, NetworkControl};
pub use options::{CrashOptions, DiskOptions, Latency, NetworkOptions, SimulationOptions, Survival};
pub use random::Random;
pub use statistics::Statistics;

/// A machine of the simulation, a node's or a client's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub u16);

/// A simulated world. Everything in it is decided by the seed.
pub struct Simulation {}

/// One core of one process of a simulated host.
#[derive(Clone)]
pub struct SimRuntime {}

/// A core's endpoint on its node's mesh.
pub struct SimMesh<M>(Rc<RefCell<Vec<M>>>);

#[allow(unused_variables)]
impl Simulation {
    /// A world without hosts.
    pub fn new(seed: u64, options: SimulationOptions) -> Self {
        unimplemented!()
    }
    /// The seed.
    pub fn seed(&self) -> u64 {
        unimplemented!()
    }
    /// Adds a host with an empty disk. Its name resolves to its address, 10.0.0.1 for the first.
    pub fn add_host(&self, name: &str) -> HostId {
        unimplemented!()
    }
    /// Starts a process on a host: `main` runs once on each core, with that core's runtime and mesh endpoint.
    /// A core ends when its `main` does, and all its tasks with it.
    pub fn boot<M, F, Fut>(&self, host: HostId, cores: u16, main: F)
    where
        M: Send + 'static,
        F: Fn(SimRuntime, SimMesh<M>) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        unimplemented!()
    }
    /// Starts a task in the host's script process: one core of its own beside the node's, for client workloads
    /// and tests of single parts. It dies with the host.
    pub fn spawn_on<F, Fut>(&self, host: HostId, main: F)
    where
        F: FnOnce(SimRuntime) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        unimplemented!()
    }
    /// Runs a future in the host's script process and the world with it, until it completes. Panics after an
    /// hour of simulated time, or if the host crashes.
    pub fn block_on<F, Fut>(&self, host: HostId, main: F) -> Fut::Output
    where
        F: FnOnce(SimRuntime) -> Fut,
        Fut: Future + 'static,
        Fut::Output: 'static,
    {
        unimplemented!()
    }
    /// Power loss: see [`CrashOptions`].
    pub fn crash(&self, host: HostId) {
        unimplemented!()
    }
    /// SIGKILL of all the host's processes: what was written stays, flushed or not.
    pub fn kill(&self, host: HostId) {
        unimplemented!()
    }
    /// Whether a process that [`Self::boot`] started has a core left on this host.
    pub fn is_running(&self, host: HostId) -> bool {
        unimplemented!()
    }
    /// SIGSTOP: the host's tasks do not run; time goes on.
    pub fn pause(&self, host: HostId) {
        unimplemented!()
    }
    /// SIGCONT.
    pub fn resume(&self, host: HostId) {
        unimplemented!()
    }
    /// Steps a host's wall clock, in milliseconds.
    pub fn step_wall_clock(&self, host: HostId, milliseconds: i64) {
        unimplemented!()
    }
    /// Sets the rate error of a host's clocks, in parts per million.
    pub fn set_clock_drift(&self, host: HostId, ppm: i32) {
        unimplemented!()
    }
    /// Lets simulated time pass.
    pub fn run_for(&self, duration: Duration) {
        unimplemented!()
    }
    /// Runs until `condition` holds (true) or `limit` has passed (false).
    pub fn run_until(&self, limit: Duration, condition: impl FnMut() -> bool) -> bool {
        unimplemented!()
    }
    /// Simulated time since the world's beginning.
    pub fn now(&self) -> Duration {
        unimplemented!()
    }
    /// A generator for the test's own decisions, from the same seed.
    pub fn random(&self) -> Random {
        unimplemented!()
    }
    /// The network's switches.
    pub fn network(&self) -> NetworkControl {
        unimplemented!()
    }
    /// A host's disk and its switches.
    pub fn disk(&self, host: HostId) -> DiskControl {
        unimplemented!()
    }
    /// What has happened so far.
    pub fn statistics(&self) -> Statistics {
        unimplemented!()
    }
    /// A hash of every scheduling decision so far: equal for equal seeds and equal programs.
    pub fn trace_hash(&self) -> u64 {
        unimplemented!()
    }
    /// The address of a port of a host.
    pub fn address(&self, host: HostId, port: u16) -> SocketAddr {
        unimplemented!()
    }
}
