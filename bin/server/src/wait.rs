//! Waiting in commands that watch child processes, and hearing Ctrl-C meanwhile.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use krita_runtime::glommio::Signals;

/// How often a watched condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Lets a little time pass.
pub(crate) fn pause() {
    // The sender lives until the end, so that this can only time out.
    let (_sender, receiver) = mpsc::channel::<()>();
    let _timed_out = receiver.recv_timeout(LOOK_EVERY);
}

/// Why waiting ended without what was waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Vain {
    /// The time was over.
    Late,
    /// The user wants an end.
    Interrupted,
}

/// Looks again and again until there is something, for at most `limit`, or until a signal comes.
pub(crate) fn until<T>(
    limit: Duration,
    signals: Option<&Signals>,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, Vain> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if signals.is_some_and(|signals| signals.try_next().is_some()) {
            return Err(Vain::Interrupted);
        }
        if started.elapsed() >= limit {
            return Err(Vain::Late);
        }
        pause();
    }
}
