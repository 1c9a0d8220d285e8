//! One HTTP connection under watch: what it owes the other side, what the other side owes it, and since when.
//!
//! The stream's adapter, the requests and the bodies of a connection note here what happens; the connection's own task
//! polls the monitor and ends what breaks a bound. Time is looked at only there.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use krita_runtime::{Clock, Instant};

use super::{HttpEnd, HttpOptions, HttpVersion};
use crate::waiting::Waiters;

/// Bytes of HTTP/2 that bring nothing forward (pings, settings, window updates, resets, headers that never end) that
/// one connection may send at once, and how many more each second. Anything that is brought forward renews it all. It
/// exceeds the connection's window, so that a body which waits for its reader is never taken for chatter.
const CHATTER_BYTES: u64 = 4 << 20;
const CHATTER_BYTES_PER_SECOND: u64 = 64 << 10;

/// What a connection reads before the others get their turn: thousands of small frames fit it.
const TURN_BYTES: usize = 64 << 10;

/// Requests that one connection may give up each second once it has used up [`HttpOptions::resets_max`].
const RESETS_PER_SECOND: u64 = 20;

/// A clock without its type, so that bodies have none.
pub(super) trait DynClock {
    fn now(&self) -> Instant;
    fn sleep(&self, duration: Duration) -> Timer;
}

pub(super) type Timer = Pin<Box<dyn Future<Output = ()>>>;

impl<C: Clock> DynClock for C {
    fn now(&self) -> Instant {
        Clock::now(self)
    }

    fn sleep(&self, duration: Duration) -> Timer {
        Box::pin(Clock::sleep(self, duration))
    }
}

/// An allowance that is used up and grows back with time.
struct Allowance {
    left: Cell<u64>,
    most: u64,
    per_second: u64,
    grown_at: Cell<Instant>,
}

impl Allowance {
    fn new(most: u64, per_second: u64, now: Instant) -> Self {
        Self { left: Cell::new(most), most, per_second, grown_at: Cell::new(now) }
    }

    fn renew(&self) {
        self.left.set(self.most);
    }

    /// Takes that much; what is not there leaves nothing.
    fn take(&self, amount: u64, now: Instant) {
        let seconds = now.since(self.grown_at.get()).as_secs();
        if seconds > 0 {
            self.grown_at.set(now);
            let grown = self.left.get().saturating_add(seconds.saturating_mul(self.per_second));
            self.left.set(grown.min(self.most));
        }
        self.left.set(self.left.get().saturating_sub(amount));
    }

    fn is_used_up(&self) -> bool {
        self.left.get() == 0
    }
}

/// See the module.
pub(super) struct Monitor {
    pub(super) clock: Rc<dyn DynClock>,
    pub(super) options: Rc<HttpOptions>,
    version: HttpVersion,
    /// Requests whose answer has not been sent to its end.
    active: Cell<u32>,
    /// There has been a request.
    is_used: Cell<bool>,
    /// Since when there has been none.
    idle_since: Cell<Instant>,
    /// HTTP/1.1: when the first byte of a request came whose headers are not whole.
    head_began: Cell<Option<Instant>>,
    /// Bytes of answers that wait for the other side.
    waiting_bytes: Cell<usize>,
    /// When it last took some, or when they began to wait.
    taken_at: Cell<Instant>,
    room: Waiters,
    chatter: Allowance,
    resets: Allowance,
    /// Bytes read since the connection's task was polled last.
    turn_bytes: Cell<usize>,
    task: RefCell<Option<Waker>>,
    timer: RefCell<Option<(Instant, Timer)>>,
}

impl Monitor {
    pub(super) fn new(clock: Rc<dyn DynClock>, options: Rc<HttpOptions>, version: HttpVersion) -> Self {
        let now = clock.now();
        let resets_max = options.resets_max;
        Self {
            clock,
            options,
            version,
            active: Cell::new(0),
            is_used: Cell::new(false),
            idle_since: Cell::new(now),
            // The first request is due at once.
            head_began: Cell::new((version == HttpVersion::One).then_some(now)),
            waiting_bytes: Cell::new(0),
            taken_at: Cell::new(now),
            room: Waiters::default(),
            chatter: Allowance::new(CHATTER_BYTES, CHATTER_BYTES_PER_SECOND, now),
            resets: Allowance::new(u64::from(resets_max), RESETS_PER_SECOND, now),
            turn_bytes: Cell::new(0),
            task: RefCell::default(),
            timer: RefCell::default(),
        }
    }

    /// The connection is polled.
    pub(super) fn begin_turn(&self) {
        self.turn_bytes.set(0);
    }

    /// It has read as much as it may before the core's other tasks get their turn.
    pub(super) fn is_turn_over(&self) -> bool {
        self.turn_bytes.get() >= TURN_BYTES
    }

    /// Bytes came in.
    pub(super) fn received(&self, bytes: usize) {
        self.turn_bytes.set(self.turn_bytes.get() + bytes);
        match self.version {
            HttpVersion::One if self.active.get() == 0 && self.head_began.get().is_none() => {
                self.head_began.set(Some(self.clock.now()));
            }
            HttpVersion::One => {}
            HttpVersion::Two => self.chatter.take(bytes as u64, self.clock.now()),
        }
    }

    /// A part of a request's body has been read.
    pub(super) fn body_moved(&self) {
        self.chatter.renew();
    }

    /// Bytes of an answer wait from now on.
    pub(super) fn waits(&self, bytes: usize) {
        if self.waiting_bytes.get() == 0 {
            self.taken_at.set(self.clock.now());
        }
        self.waiting_bytes.set(self.waiting_bytes.get() + bytes);
    }

    /// Bytes of an answer no longer wait: they have been taken, or dropped.
    pub(super) fn taken(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.waiting_bytes.set(self.waiting_bytes.get() - bytes);
        self.taken_at.set(self.clock.now());
        self.chatter.renew();
        self.room.wake_all();
    }

    /// Completes once fewer bytes of answers wait than may.
    pub(super) async fn room(&self) {
        poll_fn(|context| {
            if self.waiting_bytes.get() < self.options.outgoing_bytes_max {
                return Poll::Ready(());
            }
            self.room.register(context);
            Poll::Pending
        })
        .await;
    }

    /// Has the connection's task look again.
    pub(super) fn wake(&self) {
        if let Some(task) = self.task.borrow_mut().take() {
            task.wake();
        }
    }

    /// Ready when a bound is broken.
    pub(super) fn poll_broken(&self, context: &mut Context<'_>) -> Poll<HttpEnd> {
        self.task.borrow_mut().get_or_insert_with(|| context.waker().clone()).clone_from(context.waker());
        if self.chatter.is_used_up() {
            return Poll::Ready(HttpEnd::Chatter);
        }
        if self.resets.is_used_up() {
            return Poll::Ready(HttpEnd::Resets);
        }
        loop {
            let (deadline, end) = self.due();
            if deadline <= self.clock.now() {
                match end {
                    Some(end) => return Poll::Ready(end),
                    None => self.taken_at.set(self.clock.now()),
                }
                continue;
            }
            let mut timer = self.timer.borrow_mut();
            // A timer that fires too early only looks again; busy connections make one for many requests.
            if timer.as_ref().is_none_or(|(fires_at, _)| deadline < *fires_at) {
                *timer = Some((deadline, self.clock.sleep(deadline.since(self.clock.now()))));
            }
            let fired = timer.as_mut().is_some_and(|(_, timer)| timer.as_mut().poll(context).is_ready());
            if !fired {
                return Poll::Pending;
            }
            *timer = None;
        }
    }

    /// What is due next, and what the connection ends with then. `None`: nothing is, look again.
    fn due(&self) -> (Instant, Option<HttpEnd>) {
        let options = &self.options;
        let stalled_at = self.taken_at.get() + options.stall_timeout;
        if self.waiting_bytes.get() > 0 {
            return (stalled_at, Some(HttpEnd::Stalled));
        }
        if self.active.get() > 0 {
            return (stalled_at, None);
        }
        if let Some(began) = self.head_began.get() {
            return (began + options.header_timeout, Some(HttpEnd::SlowHeaders));
        }
        let idle_timeout = match self.version {
            HttpVersion::One => options.idle_timeout_http1,
            HttpVersion::Two if self.is_used.get() => options.idle_timeout_http2,
            HttpVersion::Two => options.idle_timeout_http1,
        };
        (self.idle_since.get() + idle_timeout, Some(HttpEnd::Idle))
    }
}

/// A request under way, until its answer has been sent or dropped.
pub(super) struct Active {
    monitor: Rc<Monitor>,
    is_answered: bool,
}

impl Active {
    pub(super) fn new(monitor: Rc<Monitor>) -> Self {
        monitor.active.set(monitor.active.get() + 1);
        monitor.is_used.set(true);
        monitor.head_began.set(None);
        monitor.chatter.renew();
        Self { monitor, is_answered: false }
    }

    pub(super) fn monitor(&self) -> &Rc<Monitor> {
        &self.monitor
    }

    /// There is an answer; from here on it is no reset that costs nothing.
    pub(super) fn answered(&mut self) {
        self.is_answered = true;
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let monitor = &self.monitor;
        let now = monitor.clock.now();
        if !self.is_answered {
            monitor.resets.take(1, now);
        }
        monitor.active.set(monitor.active.get() - 1);
        if monitor.active.get() == 0 {
            monitor.idle_since.set(now);
        }
        monitor.wake();
    }
}
