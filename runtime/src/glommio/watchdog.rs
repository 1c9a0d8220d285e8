//! The watchdog: a thread that wakes every core from outside, and tells which of them stalls on what.
//!
//! Glommio may park an executor while tasks are ready, and then only an outside event wakes it. A wake
//! through a foreign waker is such an event. The beat is slow while a core idles, since nothing can be stuck
//! there, and fast while it works or owes an answer.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use super::{clock, helper};
use crate::{CoreId, Instant};

/// The beat while every core idles.
const BEAT_IDLE: Duration = Duration::from_millis(100);

/// The beat while a core works: the longest that a wrongly parked core stays so.
const BEAT_BUSY: Duration = Duration::from_millis(20);

/// An answer that takes longer is a stall: reported and counted.
const STALL: Duration = Duration::from_millis(200);

/// Polls of spawned tasks between two beats, from which a core counts as working.
const BUSY_POLLS: u64 = 8;

/// No task of ours is being polled.
const NO_TASK: u32 = u32::MAX;

/// What a core and the watchdog tell each other.
pub(crate) struct CoreBeat {
    core: CoreId,
    /// Wakes the answering task. It stays here when used: a wake that was taken in but not run yet must be
    /// followed by another, for between the two the executor may have parked.
    waker: Mutex<Option<Waker>>,
    /// Beats asked for and answered: `answered <= asked <= answered + 1`.
    asked: AtomicU64,
    answered: AtomicU64,
    /// Polls of spawned tasks so far.
    polls: AtomicU64,
    /// The task that is being polled, as an index into `names`.
    current: AtomicU32,
    names: Mutex<Vec<&'static str>>,
    ended: AtomicBool,
    stalls: AtomicU64,
    stall_longest_us: AtomicU64,
}

/// How one core fares, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoreHealth {
    /// Which core.
    pub core: CoreId,
    /// Beats that it answered.
    pub beats: u64,
    /// Times that it took longer than 200 ms to answer one.
    pub stalls: u64,
    /// The longest that it took, if longer than that.
    pub stall_longest: Duration,
}

impl CoreBeat {
    pub(crate) fn new(core: CoreId) -> Self {
        Self {
            core,
            waker: Mutex::new(None),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            polls: AtomicU64::new(0),
            current: AtomicU32::new(NO_TASK),
            names: Mutex::new(Vec::new()),
            ended: AtomicBool::new(false),
            stalls: AtomicU64::new(0),
            stall_longest_us: AtomicU64::new(0),
        }
    }

    pub(crate) fn add_name(&self, name: &'static str) -> u32 {
        let mut names = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        names.push(name);
        u32::try_from(names.len() - 1).expect("task names are literals: there are not that many")
    }

    /// Notes that a task is being polled; returns what was, for [`CoreBeat::leave`].
    pub(crate) fn enter(&self, name: u32) -> u32 {
        // Only the core itself writes, so no read-modify-write is needed.
        self.polls.store(self.polls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let before = self.current.load(Ordering::Relaxed);
        self.current.store(name, Ordering::Relaxed);
        before
    }

    pub(crate) fn leave(&self, before: u32) {
        self.current.store(before, Ordering::Relaxed);
    }

    /// The core runs no more; the watchdog leaves it alone.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        *self.waker() = None;
    }

    pub(crate) fn health(&self) -> CoreHealth {
        CoreHealth {
            core: self.core,
            beats: self.answered.load(Ordering::Relaxed),
            stalls: self.stalls.load(Ordering::Relaxed),
            stall_longest: Duration::from_micros(self.stall_longest_us.load(Ordering::Relaxed)),
        }
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn current_name(&self) -> &'static str {
        let index = self.current.load(Ordering::Relaxed);
        let names = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        usize::try_from(index).ok().and_then(|index| names.get(index)).copied().unwrap_or("none")
    }
}

/// The task on each core that answers the watchdog.
pub(crate) async fn answer(beat: Arc<CoreBeat>) {
    poll_fn(|context| {
        *beat.waker() = Some(context.waker().clone());
        beat.answered.store(beat.asked.load(Ordering::Acquire), Ordering::Release);
        Poll::<()>::Pending
    })
    .await;
}

/// What the watchdog knows of a core from beat to beat.
struct Watched {
    beat: Arc<CoreBeat>,
    asked_at: Instant,
    polls: u64,
    warned: bool,
}

/// Starts the watchdog of a node. It ends once every core has.
pub(crate) fn start(beats: &[Arc<CoreBeat>]) -> std::io::Result<()> {
    let mut cores: Vec<Watched> = beats
        .iter()
        .map(|beat| Watched { beat: Arc::clone(beat), asked_at: clock::now(), polls: 0, warned: false })
        .collect();
    thread::Builder::new().name("krita-watchdog".into()).spawn(move || {
        helper::unpin_thread();
        loop {
            cores.retain(|core| !core.beat.ended.load(Ordering::Acquire));
            if cores.is_empty() {
                return;
            }
            let mut busy = false;
            for core in &mut cores {
                busy |= core.visit();
            }
            thread::sleep(if busy { BEAT_BUSY } else { BEAT_IDLE });
        }
    })?;
    Ok(())
}

impl Watched {
    /// Asks for a beat, or chases the one that is owed. Returns whether the core should be seen again soon.
    fn visit(&mut self) -> bool {
        let now = clock::now();
        let asked = self.beat.asked.load(Ordering::Relaxed);
        let owed = self.beat.answered.load(Ordering::Acquire) < asked;
        if owed {
            self.chase(now.since(self.asked_at));
        } else {
            if self.warned {
                let duration = Duration::from_micros(self.beat.stall_longest_us.load(Ordering::Relaxed));
                tracing::warn!(core = %self.beat.core, longest = ?duration, "a stalled core goes on");
                self.warned = false;
            }
            self.asked_at = now;
            self.beat.asked.store(asked + 1, Ordering::Release);
        }
        // Owed or not: this is the wake that a wrongly parked executor needs.
        if let Some(waker) = self.beat.waker().as_ref() {
            waker.wake_by_ref();
        }
        let polls = self.beat.polls.load(Ordering::Relaxed);
        let worked = polls - self.polls > BUSY_POLLS;
        self.polls = polls;
        owed || worked
    }

    fn chase(&mut self, waiting: Duration) {
        if waiting < STALL {
            return;
        }
        let microseconds = u64::try_from(waiting.as_micros()).unwrap_or(u64::MAX);
        self.beat.stall_longest_us.fetch_max(microseconds, Ordering::Relaxed);
        if !self.warned {
            self.warned = true;
            self.beat.stalls.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                core = %self.beat.core,
                duration = ?waiting,
                task = self.beat.current_name(),
                "a core does not answer"
            );
        }
    }
}
