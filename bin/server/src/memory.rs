//! How much memory this process may have: the machine's, or less where a control group bounds it.

use std::fs;
use std::path::Path;

/// Bytes of memory that budgets are shares of; `None` if the system does not say.
pub(crate) fn machine_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(total_of);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let bound = limit_files(&groups).iter().filter_map(|file| limit_of(Path::new(file))).min();
    match (machine, bound) {
        (Some(machine), Some(bound)) => Some(machine.min(bound)),
        (machine, bound) => machine.or(bound),
    }
}

/// The line "MemTotal:  16384 kB" of /proc/meminfo.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files that may hold a bound, from the lines "number:controllers:path" of /proc/self/cgroup. In a container the
/// path may be one of the host's, while the root holds the container's own bound.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = vec![
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if controllers.is_empty() {
            files.push(format!("/sys/fs/cgroup{path}/memory.max"));
        } else if controllers.split(',').any(|controller| controller == "memory") {
            files.push(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"));
        }
    }
    files
}

/// The bound in a file; none if it says "max".
fn limit_of(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_and_bounds_are_looked_for_in_both_hierarchies() {
        assert_eq!(total_of("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        let files = limit_files("12:cpu,memory:/user\n0::/system.slice/krita.service\n");
        assert!(files.contains(&"/sys/fs/cgroup/memory/user/memory.limit_in_bytes".to_owned()));
        assert!(files.contains(&"/sys/fs/cgroup/system.slice/krita.service/memory.max".to_owned()));
        assert!(machine_bytes().is_some_and(|bytes| bytes > 1 << 20), "this machine has memory");
    }
}
