//! Tasks and cores. A core polls one of its ready tasks at a time, chosen by the seed; the poll takes a little
//! simulated time, in which the other cores go on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::host::Process;
use super::random::Random;
use super::world::{Event, World};
use crate::{CoreId, TaskClass};

/// One in so many choices between the classes falls on a background task.
const BACKGROUND_SHARE: u64 = 8;

/// Tasks remembered for the report of a failure.
const LATELY_POLLED_MAX: usize = 12;

/// One core of a process.
pub(crate) struct Core {
    pub(crate) process: Rc<Process>,
    pub(crate) id: CoreId,
    /// False once its main future has returned.
    pub(crate) running: Cell<bool>,
    /// How often this core has listened on a port of the system's choice.
    pub(crate) ephemeral_listens: Cell<usize>,
    foreground: RefCell<Vec<TaskId>>,
    background: RefCell<Vec<TaskId>>,
    /// An event for this core is in the queue.
    scheduled: Cell<bool>,
    /// The core is busy until then.
    free_at: Cell<u64>,
}

impl Core {
    pub(crate) fn new(process: Rc<Process>, id: CoreId) -> Self {
        Self {
            process,
            id,
            running: Cell::new(true),
            ephemeral_listens: Cell::new(0),
            foreground: RefCell::default(),
            background: RefCell::default(),
            scheduled: Cell::new(false),
            free_at: Cell::new(0),
        }
    }

    /// Whether tasks may run here: neither ended nor dead nor stopped.
    fn may_run(&self) -> bool {
        self.is_alive() && !self.process.host.paused.get()
    }

    /// Whether the core exists still.
    pub(crate) fn is_alive(&self) -> bool {
        self.running.get() && self.process.alive.get()
    }

    fn has_ready(&self) -> bool {
        !self.foreground.borrow().is_empty() || !self.background.borrow().is_empty()
    }

    fn choose(&self, random: &Random) -> Option<TaskId> {
        let mut foreground = self.foreground.borrow_mut();
        let mut background = self.background.borrow_mut();
        let from_background = match (foreground.is_empty(), background.is_empty()) {
            (true, true) => return None,
            (true, false) => true,
            (false, true) => false,
            (false, false) => random.below(BACKGROUND_SHARE) == 0,
        };
        let queue = if from_background { &mut *background } else { &mut *foreground };
        let chosen = random.index(queue.len());
        Some(queue.swap_remove(chosen))
    }

    fn forget_tasks(&self) {
        self.foreground.borrow_mut().clear();
        self.background.borrow_mut().clear();
    }
}

/// A task's place and which of the place's successive tasks it is: a stale waker wakes nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TaskId {
    index: u32,
    generation: u32,
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    /// Absent while it is polled.
    future: Option<LocalFuture>,
    core: Rc<Core>,
    class: TaskClass,
    name: &'static str,
    header: Arc<TaskHeader>,
    waker: Waker,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    task: Option<Task>,
}

/// What a waker holds of a task.
struct TaskHeader {
    id: TaskId,
    /// Already on a list of ready tasks.
    queued: AtomicBool,
    woken: Arc<WokenList>,
}

impl Wake for TaskHeader {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.woken.push_task(self.id);
        }
    }
}

/// What wakers and destructors, which cannot reach the world, leave for it. Wakers must be `Send` by type,
/// hence the lock; it is never contended.
#[derive(Default)]
pub(crate) struct WokenList {
    lists: Mutex<(Vec<TaskId>, Vec<u64>)>,
}

impl WokenList {
    fn push_task(&self, task: TaskId) {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).0.push(task);
    }

    pub(crate) fn push_handoff(&self, handoff: u64) {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).1.push(handoff);
    }

    pub(crate) fn take(&self) -> (Vec<TaskId>, Vec<u64>) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lists)
    }
}

/// All tasks of all hosts.
pub(crate) struct Executor {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    random: Random,
    pub(crate) woken: Arc<WokenList>,
    lately: RefCell<VecDeque<(Rc<Core>, &'static str)>>,
}

impl Executor {
    pub(crate) fn new(random: Random) -> Self {
        Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            random,
            woken: Arc::default(),
            lately: RefCell::default(),
        }
    }

    pub(crate) fn lately_polled(&self) -> String {
        let describe = |(core, name): &(Rc<Core>, &'static str)| {
            format!("{}/{}/{name}", core.process.host.name, core.id)
        };
        self.lately.borrow().iter().map(describe).collect::<Vec<_>>().join(", ")
    }

    /// Drops all tasks for which `condition` holds. Their destructors may call back.
    pub(crate) fn drop_tasks(&self, condition: impl Fn(&Core) -> bool) {
        let mut doomed = Vec::new();
        let mut slots = self.slots.borrow_mut();
        for (index, slot) in slots.iter_mut().enumerate() {
            if slot.task.as_ref().is_some_and(|task| condition(&task.core)) {
                doomed.extend(slot.task.take());
                slot.generation += 1;
                self.free.borrow_mut().push(index as u32);
            }
        }
        drop(slots);
        for task in &doomed {
            task.core.forget_tasks();
        }
        drop(doomed);
    }

    /// At the end of the world: breaks the cycle of tasks that hold the world that holds them.
    pub(crate) fn clear(&self) {
        self.lately.borrow_mut().clear();
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        if std::thread::panicking() {
            // A destructor that panics now would abort before the first panic is reported.
            std::mem::forget(slots);
        }
    }
}

impl World {
    /// Starts a task. On a core that has ended it is dropped at once.
    pub(crate) fn spawn(
        self: &Rc<Self>,
        core: &Rc<Core>,
        class: TaskClass,
        name: &'static str,
        future: LocalFuture,
    ) {
        if !core.is_alive() {
            drop(future);
            return;
        }
        self.count(|statistics| statistics.tasks += 1);
        let executor = &self.executor;
        let mut slots = executor.slots.borrow_mut();
        let free = executor.free.borrow_mut().pop();
        let index = free.unwrap_or_else(|| {
            slots.push(Slot::default());
            (slots.len() - 1) as u32
        });
        let slot = &mut slots[index as usize];
        let id = TaskId { index, generation: slot.generation };
        let woken = Arc::clone(&executor.woken);
        let header = Arc::new(TaskHeader { id, queued: AtomicBool::new(false), woken });
        let waker = Waker::from(Arc::clone(&header));
        waker.wake_by_ref();
        slot.task = Some(Task { future: Some(future), core: Rc::clone(core), class, name, header, waker });
    }

    /// Puts a woken task on its core's list.
    pub(crate) fn make_ready(&self, id: TaskId) {
        let slots = self.executor.slots.borrow();
        let Some(slot) = slots.get(id.index as usize) else { return };
        let Some(task) = slot.task.as_ref().filter(|_| slot.generation == id.generation) else { return };
        match task.class {
            TaskClass::Foreground => task.core.foreground.borrow_mut().push(id),
            TaskClass::Background => task.core.background.borrow_mut().push(id),
        }
        self.schedule_core(&task.core);
    }

    /// Makes sure that a core with ready tasks will run.
    pub(crate) fn schedule_core(&self, core: &Rc<Core>) {
        if core.has_ready() && core.may_run() && !core.scheduled.replace(true) {
            let time = self.now().max(core.free_at.get());
            self.schedule(time, Event::Core(Rc::clone(core)));
        }
    }

    /// Polls one task of a core.
    pub(crate) fn run_core(self: &Rc<Self>, core: &Rc<Core>) {
        core.scheduled.set(false);
        if !core.may_run() {
            return;
        }
        let executor = &self.executor;
        let Some(id) = core.choose(&executor.random) else { return };
        let Some((mut future, waker, name)) = self.take_for_poll(id) else {
            self.schedule_core(core);
            return;
        };
        self.trace(u64::from(id.index) << 16 | u64::from(core.id.0));
        self.count(|statistics| statistics.polls += 1);
        self.remember(core, name);
        let span = tracing::trace_span!(
            "task",
            host = core.process.host.name,
            core = core.id.0,
            name,
            at = self.now() as f64 / 1e9
        );
        let outcome = span.in_scope(|| future.as_mut().poll(&mut Context::from_waker(&waker)));
        core.free_at.set(self.now() + executor.random.latency(self.options.poll_time));
        self.put_back(id, future, outcome);
        self.collect();
        self.schedule_core(core);
    }

    fn take_for_poll(&self, id: TaskId) -> Option<(LocalFuture, Waker, &'static str)> {
        let mut slots = self.executor.slots.borrow_mut();
        let slot = &mut slots[id.index as usize];
        let task = slot.task.as_mut().filter(|_| slot.generation == id.generation)?;
        task.header.queued.store(false, Ordering::Relaxed);
        Some((task.future.take()?, task.waker.clone(), task.name))
    }

    fn put_back(&self, id: TaskId, future: LocalFuture, outcome: Poll<()>) {
        let mut slots = self.executor.slots.borrow_mut();
        let slot = &mut slots[id.index as usize];
        if slot.generation != id.generation {
            // The host crashed, or the core ended, from inside this very poll.
            drop(slots);
            drop(future);
            return;
        }
        match outcome {
            Poll::Pending => {
                if let Some(task) = slot.task.as_mut() {
                    task.future = Some(future);
                }
            }
            Poll::Ready(()) => {
                let task = slot.task.take();
                slot.generation += 1;
                self.executor.free.borrow_mut().push(id.index);
                drop(slots);
                drop(future);
                drop(task);
            }
        }
    }

    fn remember(&self, core: &Rc<Core>, name: &'static str) {
        let mut lately = self.executor.lately.borrow_mut();
        if lately.len() == LATELY_POLLED_MAX {
            lately.pop_front();
        }
        lately.push_back((Rc::clone(core), name));
    }
}
