//! The timers of a core: all its sleeps and pauses, over two timers of glommio's.
//!
//! Glommio 0.12 keeps up to 256 timers exactly. With one more it changes, for good, to a wheel of 1 ms steps
//! in which a timer that is due within the current step waits a whole turn, 256 ms, while the executor spins;
//! besides, it looks at every timer in every round. So it never sees more than two: one for the sleep that is
//! due first, and one for all pauses.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ::glommio::timer::Timer;

/// How long a pause takes its task off the run queue: just long enough that glommio's timer is entered, and
/// over before the executor, having found its queues empty, would park. It polls for I/O in between.
const PAUSE: Duration = Duration::from_nanos(200);

/// A duration beyond the clock's range means "never"; thirty years is close enough.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Deadlines are unique by the number that follows them.
type Key = (Instant, u64);

/// What waits on one core.
#[derive(Default)]
pub(crate) struct Timers {
    sleeping: RefCell<BTreeMap<Key, Waker>>,
    next_number: Cell<u64>,
    /// The task that runs [`Timers::drive_sleeps`].
    sleep_driver: RefCell<Option<Waker>>,
    /// What glommio's timer is set to; `armed <= every key of sleeping` whenever no driver wake is on its way.
    armed: Cell<Option<Instant>>,
    /// Woken after the next poll for I/O.
    pausing: RefCell<Vec<Waker>>,
    /// The task that runs [`Timers::drive_pauses`], while it has nothing to do.
    pause_driver: RefCell<Option<Waker>>,
}

impl Timers {
    /// Completes `duration` from now.
    pub(crate) fn sleep(self: &Rc<Self>, duration: Duration) -> Sleep {
        let number = self.next_number.replace(self.next_number.get() + 1);
        let deadline = Instant::now() + duration.min(NEVER);
        Sleep { timers: Rc::clone(self), key: (deadline, number), registered: false }
    }

    /// Completes after the executor has polled for I/O and run what else is ready.
    pub(crate) fn pause(self: &Rc<Self>) -> impl Future<Output = ()> + 'static {
        let timers = Rc::clone(self);
        let mut paused = false;
        poll_fn(move |context| {
            if mem::replace(&mut paused, true) {
                // Woken by something else in between, it has let others run too.
                return Poll::Ready(());
            }
            timers.pausing.borrow_mut().push(context.waker().clone());
            let driver = timers.pause_driver.borrow_mut().take();
            if let Some(driver) = driver {
                driver.wake();
            }
            Poll::Pending
        })
    }

    /// Starts the two tasks that serve sleeps and pauses, for as long as the core runs.
    pub(crate) fn start(self: &Rc<Self>) {
        ::glommio::spawn_local(Rc::clone(self).drive_sleeps()).detach();
        ::glommio::spawn_local(Rc::clone(self).drive_pauses()).detach();
    }

    async fn drive_sleeps(self: Rc<Self>) {
        let mut timer: Option<Timer> = None;
        poll_fn(|context| {
            self.set_sleep_driver(context.waker());
            loop {
                while let Some(waker) = self.take_due(Instant::now()) {
                    waker.wake();
                }
                let first = self.sleeping.borrow().first_key_value().map(|((deadline, _), _)| *deadline);
                let Some(first) = first else {
                    self.armed.set(None);
                    timer = None;
                    return Poll::<()>::Pending;
                };
                let now = Instant::now();
                // An earlier setting does no harm: it brings us here once for nothing.
                if self.armed.get().is_some_and(|armed| now < armed && armed <= first) {
                    return Poll::Pending;
                }
                self.armed.set(Some(first));
                let new = timer.insert(Timer::new(first.saturating_duration_since(now)));
                if Pin::new(new).poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    async fn drive_pauses(self: Rc<Self>) {
        loop {
            poll_fn(|context| {
                if !self.pausing.borrow().is_empty() {
                    return Poll::Ready(());
                }
                *self.pause_driver.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            let pausing = mem::take(&mut *self.pausing.borrow_mut());
            wait_one_round(PAUSE).await;
            pausing.into_iter().for_each(Waker::wake);
        }
    }

    fn take_due(&self, now: Instant) -> Option<Waker> {
        let mut sleeping = self.sleeping.borrow_mut();
        let first = sleeping.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn set_sleep_driver(&self, waker: &Waker) {
        let mut driver = self.sleep_driver.borrow_mut();
        if !driver.as_ref().is_some_and(|driver| driver.will_wake(waker)) {
            *driver = Some(waker.clone());
        }
    }

    fn wake_sleep_driver(&self) {
        // Before its first poll there is none, and that poll sees everything.
        if let Some(driver) = self.sleep_driver.borrow().as_ref() {
            driver.wake_by_ref();
        }
    }
}

/// Completes once the executor has been through its poll for I/O. Nothing but the timer wakes the task that
/// waits here, and timers are looked at in the poll.
async fn wait_one_round(mut pause: Duration) {
    let mut entered = false;
    while !entered {
        let mut timer = Timer::new(pause);
        poll_fn(|context| {
            let poll = Pin::new(&mut timer).poll(context);
            entered |= poll.is_pending();
            poll.map(drop)
        })
        .await;
        // Ready at once means that the pause was over before the timer was looked at. Once, that may be chance:
        // the thread was off its processor. But the allocator can be in a state in which making a timer takes
        // longer than the pause each time, and with the same pause this would never end.
        pause *= 2;
    }
}

/// Completes at its deadline. See [`Timers::sleep`].
pub(crate) struct Sleep {
    timers: Rc<Timers>,
    key: Key,
    /// Whether it has been entered; the entry is gone once it is due.
    registered: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.key.0 <= Instant::now() {
            return Poll::Ready(());
        }
        let mut sleeping = self.timers.sleeping.borrow_mut();
        let entry = sleeping.entry(self.key).or_insert_with(|| context.waker().clone());
        if !entry.will_wake(context.waker()) {
            *entry = context.waker().clone();
        }
        drop(sleeping);
        self.registered = true;
        if self.timers.armed.get().is_none_or(|armed| self.key.0 < armed) {
            self.timers.wake_sleep_driver();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if self.registered {
            self.timers.sleeping.borrow_mut().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::glommio::LocalExecutorBuilder;

    #[test]
    fn a_pause_that_is_over_too_soon_is_made_longer() {
        let executor = LocalExecutorBuilder::default().make().expect("io_uring works where these tests run");
        // No timer is made and looked at within a nanosecond.
        executor.run(wait_one_round(Duration::from_nanos(1)));
    }
}
