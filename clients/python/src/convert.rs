//! Python's arguments in, Python's values and exceptions out.

use std::time::Duration;

use bytes::Bytes;
use kritaclient::{
    Condition, Consistency, Deleted, Entry, Error, ErrorCode, MemberHealth, Operation, OperationOutcome, Read,
    ScanItem, Written,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMemoryView, PyString, PyTuple};

/// What a call returns when it succeeds.
pub(crate) enum Reply {
    Nothing,
    Written(Written),
    Read(Read),
    Deleted(Deleted),
    Versions(Vec<Result<Written, Error>>),
    Entries(Vec<Result<Option<Entry>, Error>>),
    Outcomes(Vec<Result<OperationOutcome, Error>>),
    Items(Vec<ScanItem>),
    Health(Vec<MemberHealth>),
}

/// Keys and values: text as UTF-8, and everything that is bytes.
pub(crate) fn data(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    if let Ok(text) = object.cast::<PyString>() {
        return Ok(Bytes::copy_from_slice(text.to_cow()?.as_bytes()));
    }
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(Bytes::copy_from_slice(bytes.as_bytes()));
    }
    if let Ok(bytes) = object.cast::<PyByteArray>() {
        return Ok(bytes.to_vec().into());
    }
    if object.is_instance_of::<PyMemoryView>() {
        let copied = object.call_method0(intern!(object.py(), "tobytes"))?;
        return Ok(Bytes::copy_from_slice(copied.cast::<PyBytes>()?.as_bytes()));
    }
    let name = object.get_type().name()?;
    Err(PyTypeError::new_err(format!("want str or bytes, not {name}")))
}

/// A condition on a write; at most one of the two.
pub(crate) fn condition(if_version: Option<u64>, if_value: Option<&Bound<'_, PyAny>>) -> PyResult<Condition> {
    match (if_version, if_value) {
        (None, None) => Ok(Condition::None),
        (Some(version), None) => Ok(Condition::IfVersion(version)),
        (None, Some(value)) => Ok(Condition::IfValue(data(value)?)),
        (Some(_), Some(_)) => Err(PyValueError::new_err("give if_version or if_value, not both")),
    }
}

/// How fresh a read must be.
pub(crate) fn freshness(name: &str) -> PyResult<Consistency> {
    match name {
        "linearizable" => Ok(Consistency::Linearizable),
        "available" => Ok(Consistency::Available),
        "any" => Ok(Consistency::Any),
        other => {
            let message = format!("consistency is linearizable, available or any, not {other:?}");
            Err(PyValueError::new_err(message))
        }
    }
}

/// Seconds, as Python counts time.
pub(crate) fn duration(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else { return Ok(None) };
    let invalid = || PyValueError::new_err("a timeout is a positive number of seconds");
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| invalid())?;
    if duration.is_zero() { Err(invalid()) } else { Ok(Some(duration)) }
}

/// One operation of a batch: `(kind, key, value, if_version, if_value)`, as `kritaclient._values` makes it.
pub(crate) fn operation(object: &Bound<'_, PyAny>) -> PyResult<Operation> {
    type Parts<'py> = (String, Bound<'py, PyAny>, Bound<'py, PyAny>, Option<u64>, Option<Bound<'py, PyAny>>);
    let (kind, key, value, if_version, if_value): Parts<'_> = object.extract()?;
    let key = data(&key)?;
    match kind.as_str() {
        "put" => Ok(Operation::Put {
            key,
            value: data(&value)?,
            condition: condition(if_version, if_value.as_ref())?,
        }),
        "delete" => Ok(Operation::Delete { key, condition: condition(if_version, if_value.as_ref())? }),
        "get" => Ok(Operation::Get { key }),
        other => Err(PyValueError::new_err(format!("there is no operation {other:?}"))),
    }
}

/// An object of the Python half, looked up once.
fn of_package<'py>(
    py: Python<'py>,
    place: &'static PyOnceLock<Py<PyAny>>,
    module: &str,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    let object = place.get_or_try_init(py, || py.import(module)?.getattr(name).map(Bound::unbind))?;
    Ok(object.bind(py))
}

/// A value as people see it: `kritaclient.Value`.
fn value(py: Python<'_>, entry: &Entry, stale_at: Option<u64>) -> PyResult<Py<PyAny>> {
    static VALUE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = of_package(py, &VALUE, "kritaclient._values", "Value")?;
    class.call1((PyBytes::new(py, &entry.value), entry.version, stale_at)).map(Bound::unbind)
}

fn optional_value(py: Python<'_>, entry: Option<&Entry>) -> PyResult<Py<PyAny>> {
    entry.map_or_else(|| Ok(py.None()), |entry| value(py, entry, None))
}

/// The exception for an error, of the class that belongs to its code.
pub(crate) fn failure(py: Python<'_>, error: &Error) -> PyErr {
    exception(py, error).map_or_else(|broken| broken, |exception| PyErr::from_value(exception))
}

fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    static MAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let make = of_package(py, &MAKE, "kritaclient.errors", "_from_code")?;
    let detail = error.detail();
    let retry_after = detail.retry_after.map(|pause| pause.as_secs_f64());
    let (current_version, operation) = match error {
        Error::ConditionFailed { current_version, operation, .. } => (*current_version, *operation),
        _others => (0, 0),
    };
    make.call1((detail.code as u32, detail.message.as_str(), retry_after, current_version, operation))
}

fn result_or_exception<T>(
    py: Python<'_>,
    result: Result<T, Error>,
    good: impl FnOnce(T) -> PyResult<Py<PyAny>>,
) -> PyResult<Py<PyAny>> {
    match result {
        Ok(found) => good(found),
        Err(error) => exception(py, &error).map(Bound::unbind),
    }
}

fn list<T>(py: Python<'_>, items: Vec<T>, convert: impl Fn(T) -> PyResult<Py<PyAny>>) -> PyResult<Py<PyAny>> {
    let items = items.into_iter().map(convert).collect::<PyResult<Vec<_>>>()?;
    Ok(PyList::new(py, items)?.into_any().unbind())
}

impl Reply {
    /// In Python's terms. Where operations have results of their own, a failed one's is its exception.
    pub(crate) fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let version = |written: Written| Ok(written.version.into_pyobject(py)?.into_any().unbind());
        match self {
            Self::Nothing => Ok(py.None()),
            Self::Written(written) => version(written),
            Self::Read(Read { entry: Some(entry), stale_at }) => value(py, &entry, stale_at),
            Self::Read(Read { entry: None, .. }) => Ok(py.None()),
            Self::Deleted(deleted) => Ok(deleted.existed.into_pyobject(py)?.to_owned().into_any().unbind()),
            Self::Versions(results) => list(py, results, |result| result_or_exception(py, result, version)),
            Self::Entries(results) => list(py, results, |result| {
                result_or_exception(py, result, |entry| optional_value(py, entry.as_ref()))
            }),
            Self::Outcomes(results) => list(py, results, |result| {
                result_or_exception(py, result, |outcome| self::outcome(py, outcome))
            }),
            Self::Items(items) => list(py, items, |item| {
                let parts = (PyBytes::new(py, &item.key), PyBytes::new(py, &item.value), item.version);
                Ok(parts.into_pyobject(py)?.into_any().unbind())
            }),
            Self::Health(members) => list(py, members, |member| health(py, &member)),
        }
    }
}

/// `(version, existed, value)`; what the operation does not tell is `None`.
fn outcome(py: Python<'_>, outcome: OperationOutcome) -> PyResult<Py<PyAny>> {
    let parts: Bound<'_, PyTuple> = match outcome {
        OperationOutcome::Put(written) => (written.version, None::<bool>, py.None()).into_pyobject(py)?,
        OperationOutcome::Deleted { existed } => (None::<u64>, existed, py.None()).into_pyobject(py)?,
        OperationOutcome::Got(entry) => {
            let version = entry.as_ref().map(|entry| entry.version);
            (version, entry.is_some(), optional_value(py, entry.as_ref())?).into_pyobject(py)?
        }
    };
    Ok(parts.into_any().unbind())
}

fn health(py: Python<'_>, member: &MemberHealth) -> PyResult<Py<PyAny>> {
    let told = PyDict::new(py);
    told.set_item("node_id", &member.node_id)?;
    told.set_item("address", &member.address)?;
    match &member.status {
        Ok(status) => {
            told.set_item("state", &status.state)?;
            told.set_item("problems", &status.problems)?;
            told.set_item("shards_led", status.shards_led)?;
            told.set_item("shards_with_leader", status.shards_with_leader)?;
            told.set_item("shards_total", status.shards_total)?;
            told.set_item("error", py.None())?;
        }
        Err(error) => told.set_item("error", exception(py, error)?)?,
    }
    Ok(told.into_any().unbind())
}

/// The table of errors: `(number, name, exit code, retryable, category, advice)` of each.
#[pyfunction]
pub(crate) fn error_table() -> Vec<(u32, &'static str, u8, bool, &'static str, &'static str)> {
    let rows =
        (1..).map(ErrorCode::from_number).zip(1..).take_while(|(code, number)| *code as u32 == *number);
    rows.map(|(code, number)| {
        let row = code.row();
        (number, row.name, row.exit, row.retryable, category(&Error::new(code, "")), row.advice)
    })
    .collect()
}

/// What the caller does next, as the Rust client sorts errors.
fn category(error: &Error) -> &'static str {
    match error {
        Error::InvalidRequest(_) => "InvalidRequest",
        Error::Configuration(_) => "Configuration",
        Error::Denied(_) => "Denied",
        Error::ConditionFailed { .. } => "Condition",
        Error::Unavailable(_) => "Unavailable",
        Error::UnknownOutcome(_) => "Unknown",
        Error::Failed(_) => "Failed",
        // The enum may grow; a new kind shows in the test that compares the table with the classes.
        _new => "New",
    }
}
