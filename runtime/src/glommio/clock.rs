//! Time on the real machine: the boot-time clock to measure with, the wall clock to show, and sleeping.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::glommio::timer::Timer;

use crate::{Instant, WallTime};

/// How long a pause takes its task off the run queue. Any duration above zero does: what matters is that the
/// queue runs empty, which is when the executor polls for I/O.
pub(crate) const PAUSE: Duration = Duration::from_micros(1);

/// Nanoseconds since boot, suspend included. Read through the vDSO, without entering the kernel.
pub(crate) fn now() -> Instant {
    Instant::from_nanoseconds(read(libc::CLOCK_BOOTTIME))
}

/// Milliseconds since 1970.
pub(crate) fn wall_clock() -> WallTime {
    WallTime(read(libc::CLOCK_REALTIME) / 1_000_000)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the kernel to fill, and it is not kept beyond the call.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "clock {clock} exists on every supported kernel");
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Completes at a deadline that counts from its creation.
///
/// Glommio's timer enters itself into the timer wheel anew at each poll and forgets the entry before; polled
/// beside a busy future it would leave one entry per poll until the deadline. So it is polled once per waker.
pub(crate) struct Sleep {
    deadline: std::time::Instant,
    registered: Option<(Timer, Waker)>,
}

impl Sleep {
    pub(crate) fn new(duration: Duration) -> Self {
        let now = std::time::Instant::now();
        // A duration beyond the clock's range means "never"; thirty years is close enough.
        const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
        Self { deadline: now + duration.min(NEVER), registered: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let now = std::time::Instant::now();
        if now >= self.deadline {
            self.registered = None;
            return Poll::Ready(());
        }
        if self.registered.as_ref().is_some_and(|(_, waker)| waker.will_wake(context.waker())) {
            return Poll::Pending;
        }
        let mut timer = Timer::new(self.deadline - now);
        match Pin::new(&mut timer).poll(context) {
            Poll::Ready(_) => {
                self.registered = None;
                Poll::Ready(())
            }
            Poll::Pending => {
                self.registered = Some((timer, context.waker().clone()));
                Poll::Pending
            }
        }
    }
}
