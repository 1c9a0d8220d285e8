//! One network runtime per process, shared by all clients in it, never ended: the process ends it.
//!
//! A forked child has none of its parent's threads, and must not touch its parent's connections: whatever was sent
//! on them would be mixed with what the parent sends, and a request id used by both would make one's write count
//! for the other's. So everything here remembers which process made it; in another one it is left alone, neither
//! used nor dropped, and made anew where it is needed.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::Runtime;

use crate::call::{Waiting, wake};

/// Threads that move bytes and encrypt; each call is otherwise run by the thread that waits for it.
const NETWORK_THREADS: usize = 2;

/// What all clients of one process share.
pub(crate) struct Process {
    id: u32,
    pub(crate) runtime: Runtime,
    /// To the thread that wakes asyncio loops. It alone waits for the GIL: a busy interpreter delays no network.
    wakes: mpsc::Sender<Wake>,
    /// That thread, until it has been ended.
    waker: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread is told that wakes asyncio loops.
enum Wake {
    /// Wake the loop of these calls.
    Loop(Arc<Waiting>),
    /// End: the interpreter will.
    End,
}

/// Only ever locked by a thread that holds the GIL, as a thread that forks does: so a child never finds it locked.
static CURRENT: Mutex<Option<&'static Process>> = Mutex::new(None);

impl Process {
    /// This process's; made if it has none yet.
    pub(crate) fn current(py: Python<'_>) -> PyResult<&'static Self> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = current.filter(|process| process.is_this_one()) {
            return Ok(process);
        }
        let cannot =
            |error: std::io::Error| PyRuntimeError::new_err(format!("cannot start a thread: {error}"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .thread_name("kritaclient")
            .enable_all()
            .build()
            .map_err(cannot)?;
        let (wakes, wanted) = mpsc::channel();
        let name = thread::Builder::new().name("kritaclient-wake".to_owned());
        let waker = name.spawn(move || wake_loops(&wanted)).map_err(cannot)?;
        // Never dropped: Python offers no moment for it at which all of its objects are gone.
        let waker = Mutex::new(Some(waker));
        let process: &'static Self =
            Box::leak(Box::new(Self { id: std::process::id(), runtime, wakes, waker }));
        *current = Some(process);
        drop(current);
        py.import("atexit")?.call_method1("register", (wrap_pyfunction!(end_wakes, py)?,))?;
        Ok(process)
    }

    /// Whether it belongs to the process that asks, and not to one that it was forked from.
    pub(crate) fn is_this_one(&self) -> bool {
        self.id == std::process::id()
    }

    /// Has the loop of these calls be woken.
    pub(crate) fn wake(&self, waiting: Arc<Waiting>) {
        // The thread is gone only when the interpreter is about to be.
        let _gone = self.wakes.send(Wake::Loop(waiting));
    }
}

/// Ends the thread that wakes asyncio loops. Python calls it when it exits: no loop runs any more, and a thread that
/// was in the midst of a call into the interpreter while that is taken down would end the process with an error.
#[pyfunction]
fn end_wakes(py: Python<'_>) {
    let current = *CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(process) = current.filter(|process| process.is_this_one()) else { return };
    let waker = process.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(waker) = waker else { return };
    let _gone = process.wakes.send(Wake::End);
    // It may wait for the GIL.
    py.detach(|| {
        // If it has panicked it is gone as well.
        let _ended = waker.join();
    });
}

fn wake_loops(wanted: &mpsc::Receiver<Wake>) {
    while let Ok(Wake::Loop(waiting)) = wanted.recv() {
        match Python::try_attach(|py| wake(py, waiting)) {
            Some(Ok(())) => {}
            // Out of memory, or the interpreter is ending.
            Some(Err(_)) | None => return,
        }
    }
}

/// A value that only its own process drops: in a forked child its locks may be held by threads that are not there.
pub(crate) struct Owned<T> {
    process: &'static Process,
    value: Option<T>,
}

impl<T> Owned<T> {
    pub(crate) fn new(process: &'static Process, value: T) -> Self {
        Self { process, value: Some(value) }
    }

    /// The process that made it.
    pub(crate) fn process(&self) -> &'static Process {
        self.process
    }

    /// The value, if this process made it.
    pub(crate) fn into_inner(mut self) -> Option<T> {
        if self.process.is_this_one() { self.value.take() } else { None }
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is taken out only by value")
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.process.is_this_one() {
            std::mem::forget(self.value.take());
        }
    }
}
