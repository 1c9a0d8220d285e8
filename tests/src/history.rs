//! Histories: what clients asked of Krita, when, and what they were told.
//!
//! A [`Recorder`] notes the moment at which an operation is invoked and the moment at which its answer arrives.
//! The times are plain nanoseconds, virtual ones in the simulator and real ones in process tests, so the same
//! recorder serves both. The [`History`] it yields goes to [`crate::linearizability`], and can be kept as JSON
//! lines, one operation a line, to be looked at later.
//!
//! An operation that never got its answer stays *unknown*: the checker lets it take effect at any time after its
//! invocation, or never.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::{Map, Value as Json};

/// Nanoseconds since the start of the run, on one clock for all clients.
pub type Nanoseconds = u64;

/// What must hold for a write to be applied.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Condition {
    /// Nothing.
    None,
    /// The key's version is this; 0 = the key is absent.
    IfVersion(u64),
    /// The key is present with this value.
    IfValue(Bytes),
}

/// What a client asked for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Read the key. Only linearizable reads belong in a history.
    Get,
    /// Write the key.
    Put {
        /// The value; keep it short, for instance a number or a digest.
        value: Bytes,
        /// When to apply it.
        condition: Condition,
    },
    /// Remove the key.
    Delete {
        /// When to apply it.
        condition: Condition,
    },
}

/// What a client was told.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Outcome {
    /// A Get was answered.
    Read {
        /// The value; `None` = the key is absent.
        value: Option<Bytes>,
        /// The version that came with a value, if the client saw it.
        version: Option<u64>,
    },
    /// A Put or Delete was applied.
    Written {
        /// The version that the write made. `None` if the client did not see it, or if a Delete found nothing.
        version: Option<u64>,
        /// Whether the key was there before, if the client was told.
        existed: Option<bool>,
    },
    /// A condition did not hold; nothing was applied.
    ConditionFailed {
        /// The version that the key had instead (0 = absent), if the client was told.
        current_version: Option<u64>,
    },
    /// The operation certainly had no effect: refused, or failed before it was proposed. A failed Get, too.
    NotApplied,
    /// It may have taken effect, may do so at any time later, or never.
    Unknown,
}

/// One operation of one client on one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who asked. Only for reports: a client may have several operations in flight.
    pub client: u64,
    /// On which key.
    pub key: Bytes,
    /// What was asked.
    pub action: Action,
    /// When it was asked.
    pub invoked_at: Nanoseconds,
    /// When the answer was there; at least `invoked_at`. `None`, or an [`Outcome::Unknown`]: no bound.
    pub responded_at: Option<Nanoseconds>,
    /// The answer.
    pub outcome: Outcome,
}

/// All operations of one run, in the order of their invocation.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct History {
    /// The operations.
    pub operations: Vec<Operation>,
}

/// Which operation of a [`Recorder`] an answer belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an operation that is never completed counts as unknown"]
pub struct OperationId(usize);

/// Collects a history. Clones share it; it may be used from one thread (the simulator) or from many.
#[derive(Clone, Default, Debug)]
pub struct Recorder {
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl Recorder {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that an operation is about to be sent. Call it *before* anything leaves the client.
    pub fn invoke(
        &self,
        client: u64,
        key: impl Into<Bytes>,
        action: Action,
        now: Nanoseconds,
    ) -> OperationId {
        let mut operations = self.lock();
        operations.push(Operation {
            client,
            key: key.into(),
            action,
            invoked_at: now,
            responded_at: None,
            outcome: Outcome::Unknown,
        });
        OperationId(operations.len() - 1)
    }

    /// Notes an answer. Call it *after* the answer has arrived. Each operation is completed at most once.
    pub fn complete(&self, operation: OperationId, outcome: Outcome, now: Nanoseconds) {
        let mut operations = self.lock();
        let operation = &mut operations[operation.0];
        assert!(operation.responded_at.is_none(), "an operation is completed twice: {operation}");
        assert!(operation.invoked_at <= now, "an answer came before its question: {operation} at {now}");
        operation.responded_at = Some(now);
        operation.outcome = outcome;
    }

    /// How many operations were invoked so far.
    pub fn invoked(&self) -> usize {
        self.lock().len()
    }

    /// The history up to now; what is in flight is unknown.
    pub fn history(&self) -> History {
        let mut operations = self.lock().clone();
        operations.sort_by_key(|operation| operation.invoked_at);
        History { operations }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Operation>> {
        // A client thread that panicked left whole operations behind: the history is still good.
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    /// The history as JSON lines.
    pub fn to_json_lines(&self) -> String {
        let mut text = String::new();
        for operation in &self.operations {
            text.push_str(&operation_to_json(operation).to_string());
            text.push('\n');
        }
        text
    }

    /// Reads what [`History::to_json_lines`] wrote; the error names the line.
    pub fn from_json_lines(text: &str) -> Result<Self, String> {
        let mut operations = Vec::new();
        for (position, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let operation = serde_json::from_str::<Json>(line)
                .map_err(|error| error.to_string())
                .and_then(|json| operation_from_json(&json))
                .map_err(|error| format!("line {}: {error}", position + 1))?;
            operations.push(operation);
        }
        Ok(Self { operations })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} {} {}", self.client, self.action, escape(&self.key))?;
        write!(f, " -> {} [{} .. ", self.outcome, self.invoked_at)?;
        match self.responded_at {
            Some(at) => write!(f, "{at}]"),
            None => f.write_str("?]"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get => f.write_str("get"),
            Self::Put { value, condition } => write!(f, "put({}){condition}", escape(value)),
            Self::Delete { condition } => write!(f, "delete{condition}"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::IfVersion(version) => write!(f, " if version {version}"),
            Self::IfValue(value) => write!(f, " if value {}", escape(value)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |version: &Option<u64>| version.map_or(String::new(), |version| format!(" @{version}"));
        match self {
            Self::Read { value: Some(value), version } => write!(f, "{}{}", escape(value), at(version)),
            Self::Read { value: None, .. } => f.write_str("absent"),
            Self::Written { version, existed } => {
                let before = match existed {
                    Some(true) => " (was there)",
                    Some(false) => " (was absent)",
                    None => "",
                };
                write!(f, "ok{}{before}", at(version))
            }
            Self::ConditionFailed { current_version } => {
                write!(f, "condition failed{}", at(current_version))
            }
            Self::NotApplied => f.write_str("not applied"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Bytes as printable ASCII; anything else, and the backslash, as `\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if (b' '..=b'~').contains(&byte) && byte != b'\\' {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

fn unescape(text: &str) -> Result<Bytes, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digits = after.strip_prefix(b"x").and_then(|after| after.get(..2));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| format!("a broken escape in {text:?}"))?);
        rest = &after[3..];
    }
    Ok(bytes.into())
}

fn operation_to_json(operation: &Operation) -> Json {
    let mut line = Map::new();
    line.insert("client".into(), operation.client.into());
    line.insert("key".into(), escape(&operation.key).into());
    line.insert("invoked_at".into(), operation.invoked_at.into());
    line.insert("responded_at".into(), operation.responded_at.into());
    let mut condition_to_json = |condition: &Condition| match condition {
        Condition::None => {}
        Condition::IfVersion(version) => drop(line.insert("if_version".into(), (*version).into())),
        Condition::IfValue(value) => drop(line.insert("if_value".into(), escape(value).into())),
    };
    let action = match &operation.action {
        Action::Get => "get",
        Action::Put { value, condition } => {
            condition_to_json(condition);
            line.insert("put".into(), escape(value).into());
            "put"
        }
        Action::Delete { condition } => {
            condition_to_json(condition);
            "delete"
        }
    };
    line.insert("action".into(), action.into());
    let outcome = match &operation.outcome {
        Outcome::Read { value, version } => {
            line.insert("value".into(), value.as_ref().map(|value| escape(value)).into());
            line.insert("version".into(), (*version).into());
            "read"
        }
        Outcome::Written { version, existed } => {
            line.insert("version".into(), (*version).into());
            line.insert("existed".into(), (*existed).into());
            "written"
        }
        Outcome::ConditionFailed { current_version } => {
            line.insert("version".into(), (*current_version).into());
            "condition_failed"
        }
        Outcome::NotApplied => "not_applied",
        Outcome::Unknown => "unknown",
    };
    line.insert("outcome".into(), outcome.into());
    Json::Object(line)
}

fn operation_from_json(json: &Json) -> Result<Operation, String> {
    let text = |name: &str| json.get(name).and_then(Json::as_str);
    let number = |name: &str| json.get(name).and_then(Json::as_u64);
    let needed = |name: &str| number(name).ok_or_else(|| format!("no number {name:?}"));
    let bytes = |name: &str| text(name).map(unescape).transpose();
    let condition = match (number("if_version"), bytes("if_value")?) {
        (Some(version), None) => Condition::IfVersion(version),
        (None, Some(value)) => Condition::IfValue(value),
        (None, None) => Condition::None,
        (Some(_), Some(_)) => return Err("two conditions".into()),
    };
    let action = match text("action") {
        Some("get") => Action::Get,
        Some("put") => {
            Action::Put { value: bytes("put")?.ok_or("a put without its value in \"put\"")?, condition }
        }
        Some("delete") => Action::Delete { condition },
        other => return Err(format!("no such action: {other:?}")),
    };
    let outcome = match text("outcome") {
        Some("read") => Outcome::Read { value: bytes("value")?, version: number("version") },
        Some("written") => Outcome::Written {
            version: number("version"),
            existed: json.get("existed").and_then(Json::as_bool),
        },
        Some("condition_failed") => Outcome::ConditionFailed { current_version: number("version") },
        Some("not_applied") => Outcome::NotApplied,
        Some("unknown") => Outcome::Unknown,
        other => return Err(format!("no such outcome: {other:?}")),
    };
    Ok(Operation {
        client: needed("client")?,
        key: bytes("key")?.ok_or("no \"key\"")?,
        action,
        invoked_at: needed("invoked_at")?,
        responded_at: number("responded_at"),
        outcome,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_kind() -> History {
        let recorder = Recorder::new();
        let put =
            |value: &'static [u8], condition| Action::Put { value: Bytes::from_static(value), condition };
        let key = Bytes::from_static(b"k\\\x00\xff");
        let cases = [
            (Action::Get, Outcome::Read { value: None, version: None }),
            (Action::Get, Outcome::Read { value: Some("v".into()), version: Some(3) }),
            (put(b"\n\"", Condition::None), Outcome::Written { version: Some(7), existed: Some(false) }),
            (put(b"", Condition::IfVersion(0)), Outcome::ConditionFailed { current_version: Some(7) }),
            (
                Action::Delete { condition: Condition::IfValue("v".into()) },
                Outcome::Written { version: None, existed: Some(true) },
            ),
            (put(b"x", Condition::None), Outcome::NotApplied),
            (put(b"y", Condition::None), Outcome::Unknown),
        ];
        for (position, (action, outcome)) in cases.into_iter().enumerate() {
            let id = recorder.invoke(position as u64, key.clone(), action, 10 * position as u64);
            recorder.complete(id, outcome, 10 * position as u64 + 5);
        }
        let _in_flight = recorder.invoke(9, key, Action::Get, 100);
        recorder.history()
    }

    #[test]
    fn json_lines_keep_every_kind_of_operation() {
        let history = every_kind();
        let text = history.to_json_lines();
        assert_eq!(text.lines().count(), 8);
        assert_eq!(History::from_json_lines(&text), Ok(history));
    }

    #[test]
    fn a_broken_line_is_named() {
        let text = every_kind().to_json_lines().replace("\"get\"", "\"got\"");
        let error = History::from_json_lines(&text).expect_err("the line is broken");
        assert!(error.starts_with("line 1: "), "{error}");
    }

    #[test]
    fn what_is_in_flight_is_unknown() {
        let last = every_kind().operations.pop().expect("eight operations");
        assert_eq!((last.responded_at, last.outcome), (None, Outcome::Unknown));
    }

    #[test]
    fn many_threads_record_into_one_history() {
        let recorder = Recorder::new();
        std::thread::scope(|scope| {
            for client in 0..4 {
                let recorder = recorder.clone();
                scope.spawn(move || {
                    for step in 0..100 {
                        let id = recorder.invoke(client, "k", Action::Get, step);
                        recorder.complete(id, Outcome::NotApplied, step);
                    }
                });
            }
        });
        let history = recorder.history();
        assert_eq!(history.operations.len(), 400);
        assert!(history.operations.is_sorted_by_key(|operation| operation.invoked_at));
    }
}
