//! A connection to a cluster, made by the first call that needs it, and the calls that can be made on it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use kritaclient::{Client, Error, Options, Profile, ReadOptions, ScanOptions, Security, WriteOptions};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::sync::OnceCell;

use crate::call::Call;
use crate::convert::{Reply, condition, data, duration, failure, freshness, operation};
use crate::process::{Owned, Process};
use crate::scan::Scan;

/// What one process has of a client: connections, and sessions under which its writes count once.
pub(crate) struct Connection {
    options: Options,
    client: OnceCell<Client>,
}

impl Connection {
    /// The client, connected.
    pub(crate) async fn client(&self) -> Result<&Client, Error> {
        self.client.get_or_try_init(|| Client::connect(self.options.clone())).await
    }
}

/// How a cluster is reached, and the connection to it. Each method that returns a `Call` only makes the call.
#[pyclass(frozen, module = "kritaclient._native")]
pub(crate) struct Handle {
    options: Options,
    /// `None` = closed. Only ever locked with the GIL held, so that a forked child finds it open.
    current: Mutex<Option<Owned<Arc<Connection>>>>,
}

impl Handle {
    /// Runs `work` on this process's connection; after a fork that is a new one.
    fn on_connection<R>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Owned<Arc<Connection>>) -> R,
    ) -> PyResult<R> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = current.as_mut().ok_or_else(|| PyRuntimeError::new_err("the client is closed"))?;
        if !connection.process().is_this_one() {
            *connection = new_connection(py, self.options.clone())?;
        }
        Ok(work(connection))
    }

    fn call<F>(&self, py: Python<'_>, run: impl FnOnce(Client) -> F + Send + 'static) -> PyResult<Call>
    where
        F: Future<Output = Result<Reply, Error>> + Send,
    {
        self.on_connection(py, |connection| {
            let process = connection.process();
            let connection = Arc::clone(connection);
            Call::new(process, async move {
                let client = connection.client().await?.clone();
                run(client).await
            })
        })
    }
}

fn new_connection(py: Python<'_>, options: Options) -> PyResult<Owned<Arc<Connection>>> {
    let connection = Connection { options, client: OnceCell::new() };
    Ok(Owned::new(Process::current(py)?, Arc::new(connection)))
}

#[pymethods]
impl Handle {
    /// Says how the cluster is reached; what is not said comes from `KRITA_*` and the current folder.
    #[new]
    #[pyo3(signature = (*, nodes, host, port, cluster_name, token, ca_path, ca_pem, insecure, timeout))]
    #[expect(clippy::too_many_arguments, reason = "they have names where they are called")]
    fn new(
        py: Python<'_>,
        nodes: Vec<String>,
        host: Option<String>,
        port: Option<u16>,
        cluster_name: Option<String>,
        token: Option<String>,
        ca_path: Option<PathBuf>,
        ca_pem: Option<Vec<u8>>,
        insecure: bool,
        timeout: Option<f64>,
    ) -> PyResult<Self> {
        let timeout = duration(timeout)?;
        // An authority in hand makes looking for one needless; it takes its place below.
        let insecure = insecure || ca_pem.is_some();
        let profile =
            Profile { nodes, host, port, cluster_name, token, certificates: ca_path, insecure, timeout };
        let options = profile.completed().and_then(Profile::options);
        let mut options = options.map_err(|error| failure(py, &error))?;
        options.client_name = concat!("kritaclient-python ", env!("CARGO_PKG_VERSION")).to_owned();
        if let Some(ca_pem) = ca_pem {
            options.security = Security::Tls { ca_pem };
        }
        let connection = new_connection(py, options.clone())?;
        Ok(Self { options, current: Mutex::new(Some(connection)) })
    }

    /// Closes the connections once the calls that are under way have ended.
    fn close(&self) {
        drop(self.current.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether `close` was called.
    #[getter]
    fn is_closed(&self) -> bool {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Where it asks first, for people.
    #[getter]
    fn description(&self) -> String {
        format!("{} at {}", self.options.cluster_name, self.options.nodes.join(", "))
    }

    /// Connects, if that has not happened yet.
    fn connect(&self, py: Python<'_>) -> PyResult<Call> {
        self.call(py, |_client| async { Ok(Reply::Nothing) })
    }

    /// Sets a key's value. Gives the version.
    fn put(
        &self,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        if_version: Option<u64>,
        if_value: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Call> {
        let (py, value, wanted) = (key.py(), data(value)?, condition(if_version, if_value)?);
        let (key, options) = (data(key)?, WriteOptions { condition: wanted, timeout: duration(timeout)? });
        self.call(
            py,
            move |client| async move { client.put_with(key, value, options).await.map(Reply::Written) },
        )
    }

    /// Reads a key. Gives the value, or `None`.
    fn get(&self, key: &Bound<'_, PyAny>, consistency: &str, timeout: Option<f64>) -> PyResult<Call> {
        let options = ReadOptions { timeout: duration(timeout)?, consistency: freshness(consistency)? };
        let (py, key) = (key.py(), data(key)?);
        self.call(py, move |client| async move { client.read_with(key, options).await.map(Reply::Read) })
    }

    /// Removes a key. Gives whether it was there.
    fn delete(
        &self,
        key: &Bound<'_, PyAny>,
        if_version: Option<u64>,
        if_value: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Call> {
        let (py, wanted) = (key.py(), condition(if_version, if_value)?);
        let (key, options) = (data(key)?, WriteOptions { condition: wanted, timeout: duration(timeout)? });
        self.call(py, move |client| async move { client.delete_with(key, options).await.map(Reply::Deleted) })
    }

    /// Reads many keys. Gives a list of values, `None` and exceptions.
    fn get_many(
        &self,
        py: Python<'_>,
        keys: Vec<Bound<'_, PyAny>>,
        consistency: &str,
        timeout: Option<f64>,
    ) -> PyResult<Call> {
        let keys = keys.iter().map(data).collect::<PyResult<Vec<_>>>()?;
        let options = ReadOptions { timeout: duration(timeout)?, consistency: freshness(consistency)? };
        self.call(py, move |client| async move {
            Ok(Reply::Entries(client.get_many_with(keys, options).await))
        })
    }

    /// Sets many keys. Gives a list of versions and exceptions.
    fn put_many(
        &self,
        py: Python<'_>,
        pairs: Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>,
        timeout: Option<f64>,
    ) -> PyResult<Call> {
        let pairs = pairs.iter().map(|(key, value)| Ok((data(key)?, data(value)?)));
        let pairs = pairs.collect::<PyResult<Vec<(Bytes, Bytes)>>>()?;
        let timeout = duration(timeout)?;
        self.call(py, move |client| async move {
            Ok(Reply::Versions(with_timeout(client, timeout).put_many(pairs).await))
        })
    }

    /// Runs many operations. Gives a list of `(version, existed, value)` and exceptions.
    fn batch(
        &self,
        py: Python<'_>,
        operations: Vec<Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Call> {
        let operations = operations.iter().map(operation).collect::<PyResult<Vec<_>>>()?;
        let timeout = duration(timeout)?;
        self.call(py, move |client| async move {
            Ok(Reply::Outcomes(with_timeout(client, timeout).batch(operations).await))
        })
    }

    /// Goes over keys in order.
    #[pyo3(signature = (*, prefix, start, end, keys_only, limit, page_items, consistency, timeout))]
    #[expect(clippy::too_many_arguments, reason = "they have names where they are called")]
    fn scan(
        &self,
        py: Python<'_>,
        prefix: Option<&Bound<'_, PyAny>>,
        start: Option<&Bound<'_, PyAny>>,
        end: Option<&Bound<'_, PyAny>>,
        keys_only: bool,
        limit: Option<u64>,
        page_items: u32,
        consistency: &str,
        timeout: Option<f64>,
    ) -> PyResult<Scan> {
        let whole = match prefix {
            Some(prefix) => ScanOptions::prefix(data(prefix)?),
            None => ScanOptions::default(),
        };
        let bound = |object: Option<&Bound<'_, PyAny>>| object.map_or(Ok(Bytes::new()), data);
        let (start, end) = (bound(start)?, bound(end)?);
        let options = ScanOptions {
            start: whole.start.clone().max(start),
            // An empty end is behind everything.
            end: if end.is_empty() || (!whole.end.is_empty() && whole.end < end) {
                whole.end.clone()
            } else {
                end
            },
            keys_only,
            limit,
            page_items,
            consistency: freshness(consistency)?,
            timeout: duration(timeout)?,
            ..whole
        };
        self.on_connection(py, |connection| Scan::new(connection, options))
    }

    /// How all members are. Gives a list of dictionaries.
    fn health(&self, py: Python<'_>) -> PyResult<Call> {
        self.call(py, |client| async move { client.health().await.map(Reply::Health) })
    }
}

fn with_timeout(client: Client, timeout: Option<std::time::Duration>) -> Client {
    match timeout {
        Some(timeout) => client.with_timeout(timeout),
        None => client,
    }
}
