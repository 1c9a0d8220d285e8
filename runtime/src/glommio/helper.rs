//! Threads for calls that block: file system metadata on one, name resolution on another (a resolver may hang
//! for half a minute, which must not hold up a rename). Started on first use, one of each per process.

use std::io;
use std::sync::OnceLock;
use std::thread;

use futures_channel::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Jobs waiting for a thread, at most. More is an error to the caller: the disk or the resolver hangs.
const JOBS_MAX: usize = 1024;

static FILES: OnceLock<Helper> = OnceLock::new();
static NAMES: OnceLock<Helper> = OnceLock::new();

struct Helper {
    jobs: flume::Sender<Job>,
}

impl Helper {
    fn start(name: &str) -> Self {
        let (jobs, receiver) = flume::bounded::<Job>(JOBS_MAX);
        let spawned = thread::Builder::new().name(name.into()).spawn(move || {
            unpin_thread();
            while let Ok(job) = receiver.recv() {
                job();
            }
        });
        // Without the thread the receiver is gone, and every job is refused with an error.
        if let Err(error) = spawned {
            tracing::error!(name, %error, "cannot start a helper thread");
        }
        Self { jobs }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Whoever waited may have given up meanwhile; work that is still to start is then skipped.
            if !sender.is_canceled() {
                let _ = sender.send(work());
            }
        });
        self.jobs.try_send(job).map_err(|_| io::Error::other("too many blocking calls are waiting"))?;
        receiver.await.map_err(|_| io::Error::other("a blocking call ended without an answer"))?
    }
}

/// Runs a blocking file system call off the core. Dropping the future before the call has started skips it.
pub(crate) async fn files<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    FILES.get_or_init(|| Helper::start("krita-files")).run(work).await
}

/// Runs a name resolution off the core.
pub(crate) async fn names<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    NAMES.get_or_init(|| Helper::start("krita-names")).run(work).await
}

/// The processors that this process was given, recorded before any executor is pinned.
static PROCESSORS: OnceLock<libc::cpu_set_t> = OnceLock::new();

/// Remembers the calling thread's processors for the threads that helpers run on. Call before pinning.
pub(crate) fn remember_processors() {
    PROCESSORS.get_or_init(|| {
        // SAFETY: `cpu_set_t` is a plain bit set, for which all zeroes is a value; the kernel fills it within
        // the size given. On failure it stays empty, which `unpin_thread` takes as "leave it".
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
            set
        }
    });
}

/// A thread that a pinned executor started inherits its one processor, and would compete with it there.
pub(crate) fn unpin_thread() {
    if let Some(set) = PROCESSORS.get() {
        // SAFETY: the kernel reads the set within its size. An empty or outdated set is refused, and then the
        // thread stays where it is.
        unsafe {
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set);
        }
    }
}

/// The processors that this process may use, by number.
pub(crate) fn processors() -> Vec<usize> {
    let Some(set) = PROCESSORS.get() else { return Vec::new() };
    // SAFETY: `CPU_ISSET` reads the bit of a processor below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|processor| unsafe { libc::CPU_ISSET(*processor, set) }).collect()
}
