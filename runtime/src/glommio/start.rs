//! Starting and joining the cores of a node.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ::glommio::{LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};

use super::network::ListenerRegistry;
use super::watchdog::{self, CoreBeat};
use super::{GlommioMesh, GlommioRuntime, NodeState, helper};
use crate::CoreId;

/// How to run a node's cores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeOptions {
    /// Executors to start, each on a thread of its own; at least 1.
    pub cores: u16,
    /// Pin core N to the Nth processor that the process may use. For a machine of one's own: beside other
    /// busy processes, pinned executors wait for their processor while another is free.
    pub pin: bool,
    /// Entries of each core's submission rings. 1,000 connections ran half again as fast at 1,024 as at 128.
    pub ring_depth: u32,
    /// Bytes of registered I/O memory per core; direct I/O beyond it takes ordinary memory.
    pub io_memory: usize,
    /// Messages that a core's mesh queue holds.
    pub mesh_queue_length: usize,
    /// How long an idle core looks for work before it parks; zero saves power. Takes effect only if pinned.
    pub spin_before_park: Duration,
    /// After this long without an empty run queue, I/O is polled in any case. Much shorter makes it likelier
    /// that an executor parks with work ready.
    pub preempt_after: Duration,
    /// The threads are called this, with the core's number.
    pub thread_name: String,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            cores: 1,
            pin: false,
            ring_depth: 1024,
            io_memory: 64 << 10,
            mesh_queue_length: 4096,
            spin_before_park: Duration::ZERO,
            preempt_after: Duration::from_millis(10),
            thread_name: "krita".into(),
        }
    }
}

/// A core could not start. The cores that did have been abandoned: end the process.
#[derive(Debug)]
pub struct StartError {
    core: CoreId,
    source: io::Error,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot start {}: {}", self.core, self.source)
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A task of a core panicked, which ended the core and everything on it.
#[derive(Debug)]
pub struct JoinError {
    /// The core that ended.
    pub core: CoreId,
    /// What the panic said.
    pub message: String,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended in a panic: {}", self.core, self.message)
    }
}

impl std::error::Error for JoinError {}

/// A running node.
pub struct NodeHandle {
    ends: flume::Receiver<(CoreId, End)>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// How a core's thread ended.
enum End {
    MainReturned,
    Panicked(String),
    NeverStarted,
}

/// Starts one executor per core on its own thread, each running `main`. Returns when all have started, or the
/// first has failed to. A core ends when its `main` does; tasks that are left then are dropped or forgotten.
pub fn start<M, F, Fut>(options: NodeOptions, main: F) -> Result<NodeHandle, StartError>
where
    M: Send + 'static,
    F: Fn(GlommioRuntime, GlommioMesh<M>) -> Fut + Send + Clone + 'static,
    Fut: Future<Output = ()> + 'static,
{
    assert!(options.cores > 0, "a node has at least one core");
    helper::remember_processors();
    let node = new_node(options.cores);
    let first = |source| StartError { core: CoreId(0), source };
    watchdog::start(&node.beats).map_err(first)?;
    let processors = if options.pin { helper::processors() } else { Vec::new() };
    let (starts_sender, starts) = flume::unbounded();
    let (ends_sender, ends) = flume::unbounded();
    let mut threads = Vec::new();
    let meshes = GlommioMesh::endpoints(options.cores, options.mesh_queue_length);
    for (core, mesh) in (0..options.cores).map(CoreId).zip(meshes) {
        let (main, core_node) = (main.clone(), Arc::clone(&node));
        let (starts, ends) = (starts_sender.clone(), ends_sender.clone());
        let placement = placement_of(core, &processors);
        let core_options = options.clone();
        let name = format!("{}-{}", options.thread_name, core.0);
        let thread = thread::Builder::new().name(name).spawn(move || {
            let end =
                run_core(core, &core_options, placement, &core_node, &starts, |runtime| main(runtime, mesh));
            core_node.beats[usize::from(core.0)].end();
            // Nobody may be left to hear it.
            let _ = ends.send((core, end));
        });
        threads.push(thread.map_err(|source| abandon(&node, core, source))?);
    }
    for _ in 0..options.cores {
        match starts.recv().expect("every core reports its start or its failure") {
            Ok(()) => {}
            Err((core, source)) => return Err(abandon(&node, core, source)),
        }
    }
    Ok(NodeHandle { ends, threads })
}

fn new_node(cores: u16) -> Arc<NodeState> {
    let beats = (0..cores).map(|core| Arc::new(CoreBeat::new(CoreId(core)))).collect();
    Arc::new(NodeState { beats, listeners: ListenerRegistry::default() })
}

/// Lets the watchdog end although cores never started.
fn abandon(node: &NodeState, core: CoreId, source: io::Error) -> StartError {
    for beat in &node.beats {
        beat.end();
    }
    StartError { core, source }
}

fn placement_of(core: CoreId, processors: &[usize]) -> Placement {
    if processors.is_empty() {
        Placement::Unbound
    } else {
        Placement::Fixed(processors[usize::from(core.0) % processors.len()])
    }
}

/// One core, from its thread's first to its last moment.
fn run_core<Fut: Future<Output = ()> + 'static>(
    core: CoreId,
    options: &NodeOptions,
    placement: Placement,
    node: &Arc<NodeState>,
    starts: &flume::Sender<Result<(), (CoreId, io::Error)>>,
    main: impl FnOnce(GlommioRuntime) -> Fut,
) -> End {
    let executor = match new_executor(options, placement) {
        Ok(executor) => executor,
        Err(error) => {
            let _ = starts.send(Err((core, error)));
            return End::NeverStarted;
        }
    };
    // Nothing of the executor is used after a panic but its destructor.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        executor.run(async {
            let runtime = GlommioRuntime::new(core, Arc::clone(node));
            let _ = starts.send(Ok(()));
            main(runtime).await;
        });
    }));
    match outcome {
        Ok(()) => End::MainReturned,
        Err(panic) => {
            let message = message_of(panic.as_ref());
            tracing::error!(%core, message, "a task panicked, which ends its core");
            End::Panicked(message)
        }
    }
}

fn new_executor(options: &NodeOptions, placement: Placement) -> io::Result<LocalExecutor> {
    let ring_depth = usize::try_from(options.ring_depth).map_err(io::Error::other)?;
    let executor = LocalExecutorBuilder::new(placement)
        .ring_depth(ring_depth)
        .io_memory(options.io_memory)
        .spin_before_park(options.spin_before_park)
        .preempt_timer(options.preempt_after)
        // Not beside the executor on its one processor.
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()?;
    Ok(executor)
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}

impl NodeHandle {
    /// Waits until every core's main has ended. The first core to panic is an error at once: the others may
    /// wait for it for ever.
    pub fn join(self) -> Result<(), JoinError> {
        for _ in 0..self.threads.len() {
            match self.ends.recv() {
                Ok((core, End::Panicked(message))) => return Err(JoinError { core, message }),
                Ok((_, End::MainReturned | End::NeverStarted)) => {}
                Err(flume::RecvError::Disconnected) => break,
            }
        }
        for thread in self.threads {
            // It has reported its end; what is left is to be off the processor.
            let _ = thread.join();
        }
        Ok(())
    }
}

/// Runs one core without a mesh on the calling thread until `main` is done: for tools.
pub fn block_on<T, F, Fut>(options: NodeOptions, main: F) -> Result<T, StartError>
where
    F: FnOnce(GlommioRuntime) -> Fut,
    Fut: Future<Output = T>,
{
    helper::remember_processors();
    let core = CoreId(0);
    let failed = |source| StartError { core, source };
    let executor = new_executor(&options, Placement::Unbound).map_err(failed)?;
    let node = new_node(1);
    watchdog::start(&node.beats).map_err(failed)?;
    let _end = EndOnDrop(Arc::clone(&node.beats[0]));
    Ok(executor.run(async { main(GlommioRuntime::new(core, node)).await }))
}

/// Ends a beat however its core ends.
struct EndOnDrop(Arc<CoreBeat>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}
