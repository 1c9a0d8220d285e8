//! A scan, some items at a time: the first is waited for, and those that have come with it are taken along.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use kritaclient::{Error, ErrorCode, ScanOptions, ShardVersion};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::call::Call;
use crate::convert::Reply;
use crate::handle::Connection;
use crate::process::Owned;

/// Most items that one step takes.
const ITEMS_MAX: usize = 256;

struct State {
    connection: Arc<Connection>,
    /// Until the first step.
    options: Option<ScanOptions>,
    scan: Option<kritaclient::Scan>,
    /// Came behind items that were good.
    failure: Option<Error>,
    versions: Versions,
}

/// A running scan. Dropping it ends it.
#[pyclass(frozen, module = "kritaclient._native")]
pub(crate) struct Scan {
    state: Owned<Arc<tokio::sync::Mutex<State>>>,
    versions: Versions,
}

/// What was known of the shards' versions after the last step.
type Versions = Arc<Mutex<BTreeMap<u32, ShardVersion>>>;

impl Scan {
    pub(crate) fn new(connection: &Owned<Arc<Connection>>, options: ScanOptions) -> Self {
        let versions = Versions::default();
        let state = State {
            connection: (**connection).clone(),
            options: Some(options),
            scan: None,
            failure: None,
            versions: versions.clone(),
        };
        Self { state: Owned::new(connection.process(), Arc::new(tokio::sync::Mutex::new(state))), versions }
    }
}

#[pymethods]
impl Scan {
    /// What each shard's items are as of: `(shard, applied index, first key, is newer, is stale)`.
    fn versions<'py>(&self, py: Python<'py>) -> Vec<(u32, u64, Bound<'py, PyBytes>, bool, bool)> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = versions.into_iter().map(|(shard, version)| {
            let start = PyBytes::new(py, &version.start);
            (shard, version.applied_index, start, version.is_newer, version.is_stale)
        });
        told.collect()
    }

    /// The next items in order of keys, at least one; none at the end.
    fn step(&self) -> PyResult<Call> {
        let process = self.state.process();
        if !process.is_this_one() {
            let message = "the scan belongs to the process that this one was forked from: begin a new one";
            return Err(PyRuntimeError::new_err(message));
        }
        let state = Arc::clone(&self.state);
        Ok(Call::new(process, async move { state.lock().await.step().await.map(Reply::Items) }))
    }
}

impl State {
    async fn step(&mut self) -> Result<Vec<kritaclient::ScanItem>, Error> {
        let items = self.items().await;
        if let Some(scan) = &self.scan {
            *self.versions.lock().unwrap_or_else(PoisonError::into_inner) = scan.versions().clone();
        }
        items
    }

    async fn items(&mut self) -> Result<Vec<kritaclient::ScanItem>, Error> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if let Some(options) = self.options.clone() {
            let scan = self.connection.client().await?.scan(options);
            (self.scan, self.options) = (Some(scan), None);
        }
        let no_scan = || Error::new(ErrorCode::Internal, "the scan did not begin");
        let scan = self.scan.as_mut().ok_or_else(no_scan)?;
        let mut items = match scan.next().await {
            Some(item) => vec![item?],
            None => return Ok(Vec::new()),
        };
        while items.len() < ITEMS_MAX {
            match ready_now(scan.next()) {
                Some(Some(Ok(item))) => items.push(item),
                Some(Some(Err(error))) => {
                    self.failure = Some(error);
                    break;
                }
                Some(None) | None => break,
            }
        }
        Ok(items)
    }
}

/// What a future gives without waiting. Its waker is lost, so it is for futures that are asked again from the start.
fn ready_now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
