//! What the machine allows: the same that a node demands when it starts (`runtime/src/glommio/preflight.rs`), and
//! room on its disk.

use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::time::ASN1Time;

use super::{Check, Subject};

/// A clock before this is wrong: 2026-01-01, in seconds since 1970.
const CLOCK_MIN: u64 = 1_767_225_600;

pub(super) fn checks(subject: &Subject) -> Vec<Check> {
    let mut checks = vec![clock()];
    checks.extend(linux::checks(subject));
    checks
}

fn clock() -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let shown = i64::try_from(now).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
    let shown = shown.map_or_else(|| format!("{now} s since 1970"), |time| time.to_string());
    if now < CLOCK_MIN {
        return Check::bad(
            "clock",
            format!("it says {shown}, which is long past"),
            "set it, and keep it right with chrony or systemd-timesyncd",
        );
    }
    Check::good("clock", format!("{shown}; how far the peers' are from it stands below"))
}

#[cfg(not(target_os = "linux"))]
mod linux {
    //! Nodes run on Linux alone.

    use super::super::{Check, Subject};

    pub(super) fn checks(_subject: &Subject) -> Vec<Check> {
        vec![Check::unknown("system", "nodes run on Linux alone; here are clients only")]
    }
}

#[cfg(target_os = "linux")]
mod linux {
    //! What only Linux has.

    use std::fs;
    use std::path::Path;

    use rustix::process::{Resource, getrlimit};

    use super::super::{Check, Subject};

    const KERNEL_MIN: (u32, u32) = (5, 15);
    const FILES_MIN: u64 = 1_024;
    /// Connections are files, so a node for many clients wants more.
    const FILES_WANTED: u64 = 65_536;
    const MEMLOCK_MIN: u64 = 512 << 10;
    /// Of each core: its rings, and their buffers three times over.
    const MEMLOCK_PER_CORE: u64 = 1_024 * 384 + 3 * (64 << 10);
    /// The bit of CAP_IPC_LOCK, which lifts the limit of locked memory.
    const CAP_IPC_LOCK: u32 = 14;

    pub(super) fn checks(subject: &Subject) -> Vec<Check> {
        vec![kernel(), io_uring(), memlock(subject.cores), open_files(), disk(subject)]
    }

    fn kernel() -> Check {
        let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else {
            return Check::unknown("kernel", "its release cannot be read");
        };
        let release = release.trim();
        let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
        let mut number = || numbers.next()?.parse::<u32>().ok();
        let version = number().zip(number());
        let (major, minor) = KERNEL_MIN;
        match version {
            Some(version) if version < KERNEL_MIN => Check::bad(
                "kernel",
                format!("Linux {release}"),
                format!("a node needs {major}.{minor} or newer"),
            ),
            Some(_) => Check::good("kernel", format!("Linux {release}")),
            None => Check::unknown("kernel", format!("Linux {release}: no version that can be compared")),
        }
    }

    fn io_uring() -> Check {
        let Err(refused) = io_uring::IoUring::new(2) else {
            return Check::good("io_uring", "the kernel gives rings to this user");
        };
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
        match disabled.trim() {
            "1" | "2" => Check::bad(
                "io_uring",
                format!("it is switched off (kernel.io_uring_disabled = {})", disabled.trim()),
                "sysctl -w kernel.io_uring_disabled=0, and the same line in /etc/sysctl.d/ to keep it",
            ),
            _other => Check::bad(
                "io_uring",
                format!("it is refused ({refused}), as by a container's seccomp profile"),
                "allow io_uring_setup, io_uring_enter and io_uring_register, or run with \
                 --security-opt seccomp=unconfined",
            ),
        }
    }

    fn memlock(cores: u64) -> Check {
        let needed = cores.saturating_mul(MEMLOCK_PER_CORE).max(MEMLOCK_MIN);
        // A node raises the soft limit to the hard one by itself.
        let limit = getrlimit(Resource::Memlock).maximum;
        let advice = "LimitMEMLOCK=infinity in the systemd unit, --ulimit memlock=-1:-1 (Docker, Podman), or a \
                      memlock line in /etc/security/limits.conf";
        match limit {
            None => Check::good("memlock", "no limit"),
            Some(limit) if limit >= needed || (may_lock_any() && limit >= MEMLOCK_MIN) => Check::good(
                "memlock",
                format!("{} KiB may be locked, {cores} cores need {} KiB", limit >> 10, needed >> 10),
            ),
            Some(limit) => Check::bad(
                "memlock",
                format!("only {} KiB may be locked, {cores} cores need {} KiB", limit >> 10, needed >> 10),
                advice,
            ),
        }
    }

    fn may_lock_any() -> bool {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|capabilities| u64::from_str_radix(capabilities.trim(), 16).ok())
            .is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
    }

    fn open_files() -> Check {
        let advice =
            "LimitNOFILE=1048576 in the systemd unit, --ulimit nofile=1048576 (Docker, Podman), or ulimit -n";
        match getrlimit(Resource::Nofile).maximum {
            None => Check::good("open files", "no limit"),
            Some(limit) if limit < FILES_MIN => {
                Check::bad("open files", format!("only {limit}, at least {FILES_MIN} are needed"), advice)
            }
            Some(limit) if limit < FILES_WANTED => {
                Check::warning("open files", format!("{limit}, few for many connections"), advice)
            }
            Some(limit) => Check::good("open files", format!("{limit}")),
        }
    }

    fn disk(subject: &Subject) -> Check {
        let wanted = &subject.data_directory;
        // Before the first start it is not there yet: then what it will lie in counts.
        let whole = std::path::absolute(wanted).unwrap_or_else(|_| wanted.clone());
        let there = whole.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let shown = wanted.display();
        let found = match rustix::fs::statvfs(there) {
            Ok(found) => found,
            Err(error) => return Check::unknown("disk", format!("{shown}: {error}")),
        };
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let total = found.f_blocks.saturating_mul(found.f_frsize).max(1);
        let (free_mib, reserve_mib) = (free >> 20, subject.reserve_bytes >> 20);
        let text = format!("{shown}: {free_mib} MiB free of {} MiB", total >> 20);
        if free < subject.reserve_bytes {
            return Check::bad(
                "disk",
                format!("{text}, less than disk_reserve_bytes ({reserve_mib} MiB)"),
                "make room or take a larger disk: a node does not start with less",
            );
        }
        if free < 4 * subject.reserve_bytes || free < total / 10 {
            return Check::warning(
                "disk",
                format!("{text}; with less than {reserve_mib} MiB new values are refused"),
                "make room before that",
            );
        }
        Check::good("disk", text)
    }
}
