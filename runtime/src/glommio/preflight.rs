//! What the machine must allow before a core can start, and how to mend it if it does not.
//!
//! Without this a refused start reads "Operation not permitted" and nothing else.

use std::fmt;
use std::fs;
use std::io;

use super::NodeOptions;
use super::signals::ignore_write_signals;

/// Linux 5.15 is the first long-term kernel with all that the ring needs.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// Open files without which a node could not serve: segments, connections, rings.
const FILES_MIN: u64 = 1024;

/// Glommio refuses to start below this.
const MEMLOCK_MIN: u64 = 512 << 10;

/// Locked bytes per entry of ring depth, over the three rings of an executor: measured 320 to 360.
const MEMLOCK_PER_RING_ENTRY: u64 = 384;

/// Each executor registers its I/O memory with three rings, and each registration counts.
const MEMLOCK_PER_IO_BYTE: u64 = 3;

/// The bit of CAP_IPC_LOCK, which lifts the limit of locked memory.
const CAP_IPC_LOCK: u32 = 14;

/// What was found, for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Preflight {
    /// The kernel's release.
    pub kernel: String,
    /// Bytes that may be locked now; `None` is no limit. The soft limit has been raised to the hard one.
    pub memlock: Option<u64>,
    /// Bytes that the node's rings will lock.
    pub memlock_needed: u64,
    /// Files that may be open now; the soft limit has been raised to the hard one.
    pub open_files: u64,
}

/// Why no core could start here. The message says what to do about it.
#[derive(Debug)]
pub enum PreflightError {
    /// The kernel is too old.
    Kernel {
        /// Its release.
        release: String,
    },
    /// The administrator switched io_uring off.
    UringDisabled {
        /// The value of `kernel.io_uring_disabled`.
        value: u8,
    },
    /// io_uring is refused, most likely by a container's seccomp profile.
    UringRefused {
        /// What the kernel answered.
        source: io::Error,
    },
    /// Too little memory may be locked.
    Memlock {
        /// Bytes that may be locked.
        limit: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// Too few files may be open.
    OpenFiles {
        /// Files that may be open.
        limit: u64,
    },
    /// A limit or the kernel's version could not be read or set.
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl fmt::Display for PreflightError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { release } => {
                let (major, minor) = KERNEL_MIN;
                write!(f, "Linux {release} is too old: Krita needs {major}.{minor} or newer")
            }
            Self::UringDisabled { value } => write!(
                f,
                "io_uring is switched off (kernel.io_uring_disabled = {value}). Fix: \
                 sysctl -w kernel.io_uring_disabled=0, and the same line in /etc/sysctl.d/ to keep it"
            ),
            Self::UringRefused { source } => write!(
                f,
                "io_uring is refused ({source}). In a container the seccomp profile does that. Fix: allow \
                 io_uring_setup, io_uring_enter and io_uring_register in the profile, or run with \
                 --security-opt seccomp=unconfined (Docker, Podman) or seccompProfile: Unconfined (Kubernetes)"
            ),
            Self::Memlock { limit, needed } => write!(
                f,
                "only {} KiB of memory may be locked, {} KiB are needed. Fix: LimitMEMLOCK=infinity in the \
                 systemd unit, --ulimit memlock=-1:-1 (Docker, Podman), or a memlock line for this user in \
                 /etc/security/limits.conf; or fewer cores or a smaller ring_depth",
                limit >> 10,
                needed.div_ceil(1 << 10)
            ),
            Self::OpenFiles { limit } => write!(
                f,
                "only {limit} files may be open, at least {FILES_MIN} are needed. Fix: LimitNOFILE=1048576 in \
                 the systemd unit, --ulimit nofile=1048576 (Docker, Podman), or ulimit -n"
            ),
            Self::System { action, source } => write!(f, "cannot {action}: {source}"),
        }
    }
}

impl std::error::Error for PreflightError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::UringRefused { source } | Self::System { source, .. } => Some(source),
            Self::Kernel { .. }
            | Self::UringDisabled { .. }
            | Self::Memlock { .. }
            | Self::OpenFiles { .. } => None,
        }
    }
}

/// Checks that a node with these options can start, raises the soft limits of locked memory and open files to
/// the hard ones, and ignores SIGPIPE and SIGXFSZ. Call it first thing, before [`super::start`].
pub fn preflight(options: &NodeOptions) -> Result<Preflight, PreflightError> {
    ignore_write_signals().map_err(system("ignore SIGPIPE and SIGXFSZ"))?;
    let kernel = check_kernel()?;
    let memlock = raise_limit(libc::RLIMIT_MEMLOCK).map_err(system("raise the limit of locked memory"))?;
    let open_files = raise_limit(libc::RLIMIT_NOFILE).map_err(system("raise the limit of open files"))?;
    if open_files < FILES_MIN {
        return Err(PreflightError::OpenFiles { limit: open_files });
    }
    check_uring()?;
    let memlock_needed = memlock_needed(options);
    // The capability lifts the kernel's limit, but glommio compares its own minimum all the same.
    let needed_here = if may_lock_any() { MEMLOCK_MIN } else { memlock_needed };
    if memlock < needed_here {
        return Err(PreflightError::Memlock { limit: memlock, needed: needed_here });
    }
    Ok(Preflight {
        kernel,
        memlock: (memlock != libc::RLIM_INFINITY).then_some(memlock),
        memlock_needed,
        open_files,
    })
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> PreflightError {
    move |source| PreflightError::System { action, source }
}

/// Locked bytes that the rings of all cores take. Other processes of the same user count against the same
/// limit, so this is a lower bound.
fn memlock_needed(options: &NodeOptions) -> u64 {
    // Glommio rounds small I/O memory up to 64 KiB.
    let io_memory = u64::try_from(options.io_memory).unwrap_or(u64::MAX).max(64 << 10);
    let per_core = u64::from(options.ring_depth)
        .saturating_mul(MEMLOCK_PER_RING_ENTRY)
        .saturating_add(io_memory.saturating_mul(MEMLOCK_PER_IO_BYTE));
    per_core.saturating_mul(u64::from(options.cores)).max(MEMLOCK_MIN)
}

fn check_kernel() -> Result<String, PreflightError> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").map_err(system("read the kernel's version"))?;
    let release = release.trim().to_owned();
    match version_of(&release) {
        Some(version) if version < KERNEL_MIN => Err(PreflightError::Kernel { release }),
        // An unheard-of way to write versions is no reason to refuse: the ring itself is tried next.
        Some(_) | None => Ok(release),
    }
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn check_uring() -> Result<(), PreflightError> {
    let Err(source) = try_uring() else { return Ok(()) };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()
        .and_then(|value| value.trim().parse::<u8>().ok())
        .filter(|value| *value != 0);
    match disabled {
        Some(value) => Err(PreflightError::UringDisabled { value }),
        None => Err(PreflightError::UringRefused { source }),
    }
}

/// Sets up the smallest ring, and closes it again.
fn try_uring() -> io::Result<()> {
    /// The size of `struct io_uring_params`, which the kernel's interface fixes.
    const PARAMETERS_LENGTH: usize = 120;
    let mut parameters = [0_u64; PARAMETERS_LENGTH / 8];
    // SAFETY: the kernel reads and fills 120 bytes, which `parameters` has, aligned; zeroes ask for defaults.
    let descriptor = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, parameters.as_mut_ptr()) };
    let Ok(descriptor @ 0..) = i32::try_from(descriptor) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the descriptor was just made and has no other owner.
    unsafe { libc::close(descriptor) };
    Ok(())
}

/// Raises a soft limit to its hard limit, and returns what holds now.
fn raise_limit(resource: libc::__rlimit_resource_t) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure.
    if unsafe { libc::getrlimit(resource, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur != limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the kernel reads the structure. Raising the soft limit to the hard one needs no privilege.
        if unsafe { libc::setrlimit(resource, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

/// Whether the process has CAP_IPC_LOCK.
fn may_lock_any() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return false };
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|capabilities| u64::from_str_radix(capabilities.trim(), 16).ok())
        .is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version_of("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(version_of("6.8"), Some((6, 8)));
        assert!(version_of("5.4.0").unwrap() < KERNEL_MIN);
        assert!(version_of("6.1.55-talos").unwrap() > KERNEL_MIN);
        assert_eq!(version_of("unknown"), None);
    }

    #[test]
    fn locked_memory_grows_with_cores_depth_and_io_memory() {
        let one = memlock_needed(&NodeOptions::default());
        let two = memlock_needed(&NodeOptions { cores: 2, ..NodeOptions::default() });
        assert!(one >= MEMLOCK_MIN);
        assert_eq!(two, 2 * (1024 * MEMLOCK_PER_RING_ENTRY + 3 * (64 << 10)));
    }
}
