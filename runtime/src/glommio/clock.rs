//! The clocks of the real machine: boot time to measure with, wall time to show.

use crate::{Instant, WallTime};

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
