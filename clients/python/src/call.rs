//! One call: made, and not yet begun. A thread waits for it with the GIL released; or it runs on the network's
//! threads and its answer is handed to an asyncio loop.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kritaclient::{Error, ErrorCode};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::task::AbortHandle;

use crate::convert::{Reply, failure};
use crate::process::{Owned, Process};

/// How often a waiting thread looks for signals, Ctrl-C above all.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// How a call ends.
pub(crate) type Answer = Result<Reply, Error>;

type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A call that was made and has not begun. It begins, once, with `wait` or with `start`.
#[pyclass(frozen, generic, module = "kritaclient._native")]
pub(crate) struct Call {
    call: Mutex<Option<Owned<Running>>>,
}

impl Call {
    pub(crate) fn new(
        process: &'static Process,
        future: impl Future<Output = Answer> + Send + 'static,
    ) -> Self {
        let running: Running = Box::pin(future);
        Self { call: Mutex::new(Some(Owned::new(process, running))) }
    }

    fn take(&self) -> PyResult<(&'static Process, Running)> {
        let call = self.call.lock().unwrap_or_else(PoisonError::into_inner).take();
        let call = call.ok_or_else(|| PyRuntimeError::new_err("the call has begun already"))?;
        let process = call.process();
        let running = call.into_inner();
        let running = running.ok_or_else(|| PyRuntimeError::new_err("the call was made before a fork"))?;
        Ok((process, running))
    }
}

#[pymethods]
impl Call {
    /// Runs the call and waits for its end, with the GIL released.
    ///
    /// A signal handler that raises, as Ctrl-C does, ends the wait: what becomes of a write is then not known.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (process, mut running) = self.take()?;
        loop {
            let running = &mut running;
            let ended = py.detach(|| {
                let wait = async move { tokio::time::timeout(SIGNALS_EVERY, running).await };
                process.runtime.block_on(wait)
            });
            match ended {
                Ok(Ok(reply)) => return reply.into_python(py),
                Ok(Err(error)) => return Err(failure(py, &error)),
                Err(_not_yet) => py.check_signals()?,
            }
        }
    }

    /// Runs the call in the background; its answer goes to `future`, on the loop of `completions`.
    fn start(&self, completions: &Bound<'_, Completions>, future: Py<PyAny>) -> PyResult<Task> {
        let (process, running) = self.take()?;
        let mut promise =
            Promise { process, waiting: completions.get().waiting.clone(), future: Some(future) };
        let task = process.runtime.spawn(async move {
            let answer = running.await;
            promise.keep(answer);
        });
        Ok(Task { task: Owned::new(process, task.abort_handle()) })
    }
}

/// A call in the background.
#[pyclass(frozen, module = "kritaclient._native")]
pub(crate) struct Task {
    task: Owned<AbortHandle>,
}

#[pymethods]
impl Task {
    /// Gives the call up: it sends nothing more.
    fn abort(&self) {
        if self.task.process().is_this_one() {
            self.task.abort();
        }
    }
}

/// Sees to it that a future is answered, also if the call panics.
struct Promise {
    process: &'static Process,
    waiting: Arc<Waiting>,
    future: Option<Py<PyAny>>,
}

impl Promise {
    fn keep(&mut self, answer: Answer) {
        let Some(future) = self.future.take() else { return };
        let mut answers = self.waiting.answers();
        let is_first = answers.is_empty();
        answers.push((future, answer));
        drop(answers);
        // Who is not the first finds a loop that has been called and has not yet come.
        if is_first {
            self.process.wake(self.waiting.clone());
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // A call that was given up has a future that is done: the loop passes over it.
        self.keep(Err(Error::new(ErrorCode::UnknownOutcome, "the call ended without an answer")));
    }
}

/// The answers that one asyncio loop has not yet taken.
pub(crate) struct Waiting {
    /// `loop.call_soon_threadsafe`.
    schedule: Py<PyAny>,
    /// Bounded by the calls that the loop has under way.
    answers: Mutex<Vec<(Py<PyAny>, Answer)>>,
}

impl Waiting {
    fn answers(&self) -> MutexGuard<'_, Vec<(Py<PyAny>, Answer)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the loop take the answers that have come.
pub(crate) fn wake(py: Python<'_>, waiting: Arc<Waiting>) -> PyResult<()> {
    let schedule = waiting.schedule.clone_ref(py);
    let deliver = Bound::new(py, Completions { waiting })?.getattr("deliver")?;
    // The loop may be closed: then nobody waits for the answers.
    let _closed = schedule.call1(py, (deliver,));
    Ok(())
}

/// Hands answers to the futures of one asyncio loop.
#[pyclass(frozen, module = "kritaclient._native")]
pub(crate) struct Completions {
    waiting: Arc<Waiting>,
}

#[pymethods]
impl Completions {
    /// For the loop with this `call_soon_threadsafe`.
    #[new]
    fn new(schedule: Py<PyAny>) -> Self {
        Self { waiting: Arc::new(Waiting { schedule, answers: Mutex::default() }) }
    }

    /// Hands out all answers that have come. The loop is made to call it when there are some.
    fn deliver(&self, py: Python<'_>) -> PyResult<()> {
        let answers = std::mem::take(&mut *self.waiting.answers());
        for (future, answer) in answers {
            if future.call_method0(py, "done")?.is_truthy(py)? {
                continue;
            }
            let answer = match answer {
                Ok(reply) => reply.into_python(py),
                Err(error) => Err(failure(py, &error)),
            };
            match answer {
                Ok(value) => future.call_method1(py, "set_result", (value,))?,
                Err(error) => future.call_method1(py, "set_exception", (error.into_value(py),))?,
            };
        }
        Ok(())
    }
}
