//! Processor time of other processes, as Linux counts it.

use std::fs;
use std::time::Duration;

/// The kernel counts in hundredths of a second for all programs (`USER_HZ`), on every platform that we run on.
const TICK: Duration = Duration::from_millis(10);

/// Processor time so far.
pub(super) struct ProcessorTime;

impl ProcessorTime {
    /// Of all these processes together; `None` if there are none, or one has gone.
    pub(super) fn of(pids: &[u32]) -> Option<Duration> {
        if pids.is_empty() {
            return None;
        }
        let ticks: Option<Vec<u32>> =
            pids.iter().map(|pid| ticks_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).collect();
        Some(TICK * ticks?.into_iter().sum::<u32>())
    }
}

/// User and system time in a line of `/proc/<pid>/stat`: fields 14 and 15. The name, field 2, may hold anything.
fn ticks_of(stat: &str) -> Option<u32> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 500 25 0 0 20";
        assert_eq!(ticks_of(stat), Some(525));
        assert_eq!(ticks_of("7 (short) S"), None);
    }
}
