//! What the load cost the servers, as Linux counts it: processor time, memory, bytes written, flushes of a disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// The kernel counts in hundredths of a second for all programs (`USER_HZ`), on every platform that we run on.
const TICK: Duration = Duration::from_millis(10);

/// The processes to watch.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    /// All of them.
    pub pids: Vec<u32>,
    /// A device of `/proc/diskstats`.
    pub device: Option<String>,
}

/// All of the servers together, since they started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sample {
    /// Processor time; `None` if there are no processes, or one has gone.
    pub processor: Option<Duration>,
    /// Bytes in memory now.
    pub memory: Option<u64>,
    /// Bytes sent to disks.
    pub disk_written: Option<u64>,
    /// Flushes of the device, whoever asked for them.
    pub flushes: Option<u64>,
}

impl Servers {
    /// What there is to know now.
    pub fn sample(&self) -> Sample {
        Sample {
            processor: self
                .sum("stat", ticks_of)
                .map(|ticks| TICK * u32::try_from(ticks).unwrap_or(u32::MAX)),
            memory: self
                .sum("status", |status| kibibytes_of(status, "VmRSS:"))
                .map(|kibibytes| kibibytes << 10),
            disk_written: self.sum("io", |io| number_behind(io, "write_bytes: ")),
            flushes: self.device.as_ref().and_then(|device| {
                flushes_of(&fs::read_to_string(Path::new("/proc/diskstats")).ok()?, device)
            }),
        }
    }

    fn sum(&self, file: &str, of: impl Fn(&str) -> Option<u64>) -> Option<u64> {
        if self.pids.is_empty() {
            return None;
        }
        let mut sum = 0;
        for pid in &self.pids {
            sum += of(&fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?)?;
        }
        Some(sum)
    }
}

/// User and system time in a line of `/proc/<pid>/stat`: fields 14 and 15. The name, field 2, may hold anything.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn kibibytes_of(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn number_behind(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(field))?.trim().parse().ok()
}

/// Completed flushes of a device: field 19 of its line (the kernel's `iostats.rst` counts it as 16th behind the name).
fn flushes_of(diskstats: &str, device: &str) -> Option<u64> {
    let of_device = |line: &&str| line.split_whitespace().nth(2) == Some(device);
    diskstats.lines().find(of_device)?.split_whitespace().nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_as_they_are() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 500 25 0 0 20";
        assert_eq!(ticks_of(stat), Some(525));
        assert_eq!(ticks_of("7 (short) S"), None);
        assert_eq!(kibibytes_of("Name:\tx\nVmRSS:\t    1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(number_behind("rchar: 1\nwrite_bytes: 4096\n", "write_bytes: "), Some(4096));
        let diskstats = "254 1 vda1 1 2\n254 0 vda 13 3 67 20 10 8 65 36 0 17 24 6 1 4 1 3689579 303828\n";
        assert_eq!(flushes_of(diskstats, "vda"), Some(3_689_579));
        assert_eq!(flushes_of(diskstats, "sda"), None);
    }

    #[test]
    fn this_process_is_known() {
        let servers = Servers { pids: vec![std::process::id()], device: None };
        let sample = servers.sample();
        assert!(sample.processor.is_some() && sample.memory > Some(1 << 20));
        assert_eq!(Servers::default().sample(), Sample::default());
    }
}
