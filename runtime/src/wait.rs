//! Waiting on one core: a notification between tasks, and a time limit on a future. Neither is `Send`.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::Clock;

/// Wakes one waiting task of this core. A notification without a waiter is kept (one of them), so a task that
/// checks its queue and then waits misses nothing.
#[derive(Clone, Default)]
pub struct Notify {
    inner: Rc<NotifyInner>,
}

#[derive(Default)]
struct NotifyInner {
    notified: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Notify {
    /// A notification that has not happened yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the waiter, or lets the next wait return at once.
    pub fn notify(&self) {
        self.inner.notified.set(true);
        let waiter = self.inner.waiter.borrow_mut().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Completes at the next notification, and takes it. Only one task may wait.
    pub async fn notified(&self) {
        poll_fn(|context| {
            if self.inner.notified.take() {
                return Poll::Ready(());
            }
            *self.inner.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The time limit passed first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for Elapsed {}

/// Runs `future` for at most `limit`. On [`Elapsed`] the future is dropped: never wrap file I/O in this.
pub async fn timeout<C: Clock, F: Future>(
    clock: &C,
    limit: Duration,
    future: F,
) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = pin!(clock.sleep(limit));
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}
