//! The state that all parts of a simulation share, its queue of events, and the loop that takes them in the
//! order of virtual time. Events at one instant come in random order, by the seed.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::Waker;

use super::HostId;
use super::executor::{Core, Executor};
use super::host::Host;
use super::network::NetworkState;
use super::options::SimulationOptions;
use super::random::Random;
use super::statistics::Statistics;

/// Everything there is. Parts are borrowed only for as long as no foreign code (a future, a destructor) runs.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) options: SimulationOptions,
    pub(crate) events: EventQueue,
    pub(crate) executor: Executor,
    pub(crate) hosts: RefCell<Vec<Rc<Host>>>,
    pub(crate) network: NetworkState,
    /// Draws for hosts, processes and crashes.
    pub(crate) random: Random,
    /// Number of the next process; also the next connection's and operation's.
    identifiers: Cell<u64>,
    statistics: RefCell<Statistics>,
    trace: Cell<u64>,
    now: Cell<u64>,
    events_at_now: Cell<u64>,
    running: Cell<bool>,
}

/// Something that is done to the world at its time.
pub(crate) type Action = Box<dyn FnOnce(&Rc<World>)>;

/// What happens at an instant.
pub(crate) enum Event {
    /// A core polls its next task.
    Core(Rc<Core>),
    /// A timer fires.
    Timer(Rc<TimerState>),
    /// Anything else.
    Call(Action),
}

/// A timer that some future waits for.
#[derive(Default)]
pub(crate) struct TimerState {
    pub(crate) fired: Cell<bool>,
    pub(crate) cancelled: Cell<bool>,
    pub(crate) waker: RefCell<Option<Waker>>,
}

impl World {
    pub(crate) fn new(seed: u64, options: SimulationOptions) -> Rc<Self> {
        let random = Random::new(seed);
        Rc::new(Self {
            seed,
            events: EventQueue::new(random.fork(1)),
            executor: Executor::new(random.fork(2)),
            hosts: RefCell::default(),
            network: NetworkState::new(random.fork(3), options.network.clone()),
            random: random.fork(4),
            identifiers: Cell::new(1),
            statistics: RefCell::default(),
            trace: Cell::new(seed),
            now: Cell::new(0),
            events_at_now: Cell::new(0),
            running: Cell::new(false),
            options,
        })
    }

    /// Virtual time, in nanoseconds since the beginning.
    pub(crate) fn now(&self) -> u64 {
        self.now.get()
    }

    pub(crate) fn next_identifier(&self) -> u64 {
        let identifier = self.identifiers.get();
        self.identifiers.set(identifier + 1);
        identifier
    }

    /// Calls `action` after `delay` nanoseconds.
    pub(crate) fn after(&self, delay: u64, action: impl FnOnce(&Rc<Self>) + 'static) {
        self.at(self.now() + delay, action);
    }

    /// Calls `action` at `time`, which must not be past.
    pub(crate) fn at(&self, time: u64, action: impl FnOnce(&Rc<Self>) + 'static) {
        self.schedule(time, Event::Call(Box::new(action)));
    }

    pub(crate) fn schedule(&self, time: u64, event: Event) {
        assert!(time >= self.now(), "an event in the past");
        self.events.push(time, event);
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Statistics)) {
        change(&mut self.statistics.borrow_mut());
    }

    pub(crate) fn statistics(&self) -> Statistics {
        *self.statistics.borrow()
    }

    /// Folds a decision into the trace hash.
    pub(crate) fn trace(&self, word: u64) {
        let mixed = (self.trace.get() ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.trace.set(mixed ^ (mixed >> 29));
    }

    pub(crate) fn trace_hash(&self) -> u64 {
        self.trace.get()
    }

    pub(crate) fn host(&self, host: HostId) -> Rc<Host> {
        Rc::clone(&self.hosts.borrow()[usize::from(host.0)])
    }

    pub(crate) fn host_at(&self, address: IpAddr) -> Option<Rc<Host>> {
        self.hosts.borrow().iter().find(|host| host.address == address).cloned()
    }

    pub(crate) fn host_named(&self, name: &str) -> Option<Rc<Host>> {
        self.hosts.borrow().iter().find(|host| host.name == name).cloned()
    }

    /// Runs events up to and including `end`, until `finished` holds. True if it does.
    pub(crate) fn run(self: &Rc<Self>, end: u64, mut finished: impl FnMut() -> bool) -> bool {
        assert!(!self.running.replace(true), "the simulation was run from inside one of its own tasks");
        let reset = ResetOnDrop(self);
        let held = loop {
            if finished() {
                break true;
            }
            if !self.step(end) {
                self.now.set(end);
                self.events_at_now.set(0);
                break false;
            }
        };
        drop(reset);
        held
    }

    /// Takes the next event, if one is due by `end`.
    fn step(self: &Rc<Self>, end: u64) -> bool {
        self.collect();
        let Some((time, event)) = self.events.pop(end) else {
            return false;
        };
        if time > self.now.replace(time) {
            self.events_at_now.set(0);
        }
        self.guard_against_livelock();
        self.count(|statistics| statistics.events += 1);
        self.trace(time);
        match event {
            Event::Core(core) => self.run_core(&core),
            Event::Timer(timer) => {
                if !timer.cancelled.get() {
                    timer.fired.set(true);
                    let waker = timer.waker.borrow_mut().take();
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
            }
            Event::Call(action) => action(self),
        }
        self.collect();
        true
    }

    /// Takes in what wakers and dropped handoffs have left.
    pub(crate) fn collect(self: &Rc<Self>) {
        loop {
            let (tasks, handoffs) = self.executor.woken.take();
            if tasks.is_empty() && handoffs.is_empty() {
                return;
            }
            for task in tasks {
                self.make_ready(task);
            }
            for handoff in handoffs {
                self.drop_handoff(handoff);
            }
        }
    }

    /// Ends the world. Tasks hold the world, and the world its tasks: this parts them.
    pub(crate) fn end(&self) {
        for host in self.hosts.borrow().iter() {
            for process in std::mem::take(&mut *host.processes.borrow_mut()) {
                process.alive.set(false);
                process.cores.borrow_mut().clear();
            }
            host.listeners.borrow_mut().clear();
        }
        self.executor.clear();
        self.events.clear();
        self.network.connections.borrow_mut().clear();
        self.network.handoffs.borrow_mut().clear();
    }

    fn guard_against_livelock(&self) {
        let events = self.events_at_now.get() + 1;
        self.events_at_now.set(events);
        if events > self.options.events_per_instant_max {
            panic!(
                "livelock: {events} events at {:.9} s (seed {}); lately polled: {}",
                self.now() as f64 / 1e9,
                self.seed,
                self.executor.lately_polled()
            );
        }
    }
}

struct ResetOnDrop<'a>(&'a World);

impl Drop for ResetOnDrop<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "simulation with seed {} failed at {:.6} s; lately polled: {}",
                self.0.seed,
                self.0.now() as f64 / 1e9,
                self.0.executor.lately_polled()
            );
        }
        self.0.running.set(false);
    }
}

/// Events by time; at one time, in random order.
pub(crate) struct EventQueue {
    heap: RefCell<BinaryHeap<Reverse<Entry>>>,
    random: Random,
    sequence: Cell<u64>,
    cancelled: Cell<usize>,
}

struct Entry {
    time: u64,
    tie: u32,
    sequence: u64,
    event: Event,
}

impl Entry {
    fn key(&self) -> (u64, u32, u64) {
        (self.time, self.tie, self.sequence)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl EventQueue {
    fn new(random: Random) -> Self {
        Self { heap: RefCell::default(), random, sequence: Cell::new(0), cancelled: Cell::new(0) }
    }

    fn push(&self, time: u64, event: Event) {
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        let tie = (self.random.next() >> 32) as u32;
        self.heap.borrow_mut().push(Reverse(Entry { time, tie, sequence, event }));
    }

    fn pop(&self, end: u64) -> Option<(u64, Event)> {
        let mut heap = self.heap.borrow_mut();
        if heap.peek()?.0.time > end {
            return None;
        }
        heap.pop().map(|Reverse(entry)| (entry.time, entry.event))
    }

    /// Notes that a timer in the queue has lost its meaning, and sweeps when too many have.
    pub(crate) fn note_cancelled(&self) {
        let cancelled = self.cancelled.get() + 1;
        self.cancelled.set(cancelled);
        let mut heap = self.heap.borrow_mut();
        if cancelled > 4096 && cancelled > heap.len() / 2 {
            self.cancelled.set(0);
            heap.retain(
                |Reverse(entry)| !matches!(&entry.event, Event::Timer(timer) if timer.cancelled.get()),
            );
        }
    }

    /// Forgets everything, at the end of the world.
    pub(crate) fn clear(&self) {
        let heap = std::mem::take(&mut *self.heap.borrow_mut());
        drop(heap);
    }
}
