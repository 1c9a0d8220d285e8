//! The real machine: one glommio executor per core, over io_uring.
//!
//! This is the only place that names glommio, clocks, threads, files and sockets. What glommio 0.12 does that
//! callers must not meet is dealt with here, each where it arises:
//!
//! - An executor may park although tasks are ready (an event that lands between its poll and its first task is
//!   taken for idleness). [`watchdog`] wakes every core from outside, and reports stalls.
//! - I/O is polled only when the run queues are empty or a timer preempts. [`Spawn::pause`] empties
//!   the queues.
//! - A panic ends one executor and nobody hears of it. [`start`](fn@start) has each core report its end.
//! - More than 256 timers make it spin and each of them late, and a timer that is polled again registers
//!   itself again. [`timers`] shows it two in all.
//! - A listener of glommio's shares its port with strangers, and file sizes go by path. [`network`] and
//!   [`disk`] use descriptors.
//!
//! Threads: one per core, one watchdog, one helper for blocking file system calls, one for name resolution
//! (started by the first name that is not a literal address), and one for signals if asked for.

mod clock;
mod disk;
mod helper;
mod mesh;
mod network;
mod preflight;
mod random;
mod signals;
mod start;
mod timers;
mod watchdog;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::glommio::{Latency, Shares, TaskQueueHandle};

use crate::{CoreFigures, CoreId, Instant, Rng, Runtime, Spawn, TaskClass, WallTime};

pub use disk::{GlommioBuffer, GlommioFile};
pub use mesh::GlommioMesh;
pub use network::{GlommioHandoff, GlommioListener, GlommioStream};
pub use preflight::{Preflight, PreflightError, preflight};
pub use signals::{Signal, Signals, signals};
pub use start::{JoinError, NodeHandle, NodeOptions, StartError, block_on, start};
pub use watchdog::CoreHealth;

use network::ListenerRegistry;
use timers::Timers;
use watchdog::CoreBeat;

/// Shares of the core for work that somebody waits for. Glommio's own queue, in which a core's main runs too,
/// has this many; the background queue gets a tenth.
const BACKGROUND_SHARES: usize = 100;

/// The handle of one core. Cheap to clone; must stay on its core.
#[derive(Clone)]
pub struct GlommioRuntime {
    inner: Rc<CoreState>,
}

struct CoreState {
    core: CoreId,
    foreground: TaskQueueHandle,
    background: TaskQueueHandle,
    random: random::Source,
    timers: Rc<Timers>,
    names: RefCell<BTreeMap<&'static str, u32>>,
    node: Arc<NodeState>,
    ephemeral_listens: std::cell::Cell<u32>,
}

/// What the cores of a node share.
pub(crate) struct NodeState {
    pub(crate) beats: Vec<Arc<CoreBeat>>,
    pub(crate) listeners: ListenerRegistry,
}

impl GlommioRuntime {
    /// The handle for the executor that runs on this thread, which becomes `core` of `node`.
    fn new(core: CoreId, node: Arc<NodeState>) -> Self {
        let executor = ::glommio::executor();
        let foreground = executor.current_task_queue();
        // Never `Latency::Matters`: it made executors park for good with work ready.
        let background = executor.create_task_queue(
            Shares::Static(BACKGROUND_SHARES),
            Latency::NotImportant,
            "background",
        );
        let beat = Arc::clone(&node.beats[usize::from(core.0)]);
        let timers = Rc::new(Timers::default());
        timers.start();
        let runtime = Self {
            inner: Rc::new(CoreState {
                core,
                foreground,
                background,
                random: random::Source::new(),
                timers,
                names: RefCell::new(BTreeMap::new()),
                node,
                ephemeral_listens: std::cell::Cell::new(0),
            }),
        };
        ::glommio::spawn_local(watchdog::answer(beat)).detach();
        runtime
    }

    /// How each core of the node fares: beats answered, stalls and the longest of them.
    pub fn health(&self) -> Vec<CoreHealth> {
        self.inner.node.beats.iter().map(|beat| beat.health()).collect()
    }

    fn beat(&self) -> &Arc<CoreBeat> {
        &self.inner.node.beats[usize::from(self.inner.core.0)]
    }

    fn name_index(&self, name: &'static str) -> u32 {
        *self.inner.names.borrow_mut().entry(name).or_insert_with(|| self.beat().add_name(name))
    }
}

impl Runtime for GlommioRuntime {
    type Mesh<M: Send + 'static> = GlommioMesh<M>;

    fn core(&self) -> CoreId {
        self.inner.core
    }

    fn core_figures(&self) -> CoreFigures {
        let executor = ::glommio::executor().executor_stats();
        let health = self.beat().health();
        CoreFigures {
            busy: executor.total_runtime(),
            task_polls: executor.tasks_executed(),
            stalls: health.stalls,
            stall_longest: health.stall_longest,
        }
    }
}

impl crate::Clock for GlommioRuntime {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn wall_clock(&self) -> WallTime {
        clock::wall_clock()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.inner.timers.sleep(duration)
    }
}

impl Rng for GlommioRuntime {
    fn random_u64(&self) -> u64 {
        self.inner.random.next()
    }
}

impl Spawn for GlommioRuntime {
    fn spawn<F>(&self, class: TaskClass, name: &'static str, future: F)
    where
        F: Future<Output = ()> + 'static,
    {
        let index = self.name_index(name);
        let beat = Arc::clone(self.beat());
        let named = async move {
            let mut future = pin!(future);
            poll_fn(|context| {
                let before = beat.enter(index);
                let poll = future.as_mut().poll(context);
                beat.leave(before);
                poll
            })
            .await;
        };
        let queue = match class {
            TaskClass::Foreground => self.inner.foreground,
            TaskClass::Background => self.inner.background,
        };
        ::glommio::spawn_local_into(named, queue).expect("the core's two queues live as long as it").detach();
    }

    fn pause(&self) -> impl Future<Output = ()> + 'static {
        self.inner.timers.pause()
    }
}
