//! When and how calls are retried.

use std::time::Duration;

/// How calls are retried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// How long one attempt may take before the next one goes elsewhere.
    pub attempt_timeout: Duration,
    /// First pause between attempts; it doubles from one to the next.
    pub pause_min: Duration,
    /// Longest pause between attempts.
    pub pause_max: Duration,
    /// Most attempts of one call.
    pub attempts_max: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(2),
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_millis(500),
            attempts_max: 64,
        }
    }
}
