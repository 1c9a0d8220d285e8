//! Waiting on one core: tasks that wait for one thing to change, and an alarm that is cheap to move.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use krita_runtime::{Clock, Instant};

/// Tasks that wait for the same change; all are woken, and each looks again for itself.
#[derive(Default)]
pub(crate) struct Waiters {
    wakers: RefCell<Vec<Waker>>,
}

impl Waiters {
    /// Wakes this task at the next change. Each task is listed once.
    pub(crate) fn register(&self, context: &Context<'_>) {
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
    }

    /// Wakes all of them.
    pub(crate) fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
        for waker in wakers {
            waker.wake();
        }
    }
}

/// A deadline that moves with every read or write. The timer behind it is set anew only when it fires early or
/// would fire late, so that a busy connection costs about one timer per time limit, not one per message.
#[derive(Default)]
pub(crate) struct Alarm {
    timer: Option<(Instant, Timer)>,
}

type Timer = Pin<Box<dyn Future<Output = ()>>>;

impl Alarm {
    /// Ready once `deadline` has passed.
    pub(crate) fn poll_passed(
        &mut self,
        clock: &impl Clock,
        deadline: Instant,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let late = self.timer.as_ref().is_none_or(|(fires_at, _)| deadline < *fires_at);
            if late {
                let timer = clock.sleep(deadline.since(clock.now()));
                self.timer = Some((deadline, Box::pin(timer)));
            }
            let Some((fires_at, timer)) = &mut self.timer else {
                return Poll::Pending;
            };
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            let passed = deadline <= *fires_at || deadline <= clock.now();
            self.timer = None;
            if passed {
                return Poll::Ready(());
            }
        }
    }
}
