//! The replicated state machine of one shard: what committed commands do, and how they end.
//!
//! Every replica of a shard applies the same entries in the same order and must come to the same state, so
//! nothing here knows a clock, a disk or a random number. Time is the log time that entries carry. Keys and
//! values live in the storage engine; the machine asks for versions ([`KeyVersions`]) and answers with the
//! [`Change`]s that the engine's index must take up. What it keeps itself is small: sessions (see
//! [`crate::sessions`]), log time and a rolling hash by which replicas compare themselves. That is its part of a
//! checkpoint and of a snapshot.
//!
//! One command is atomic: all conditions are checked against the state before it, then all of its operations apply
//! or none. No key occurs twice in a command, so operations cannot see one another.

use bytes::{BufMut, Bytes, BytesMut};
use twox_hash::XxHash3_64;

use crate::command::{Action, Condition, Operation, RequestId, WriteCommand};
use crate::sessions::{Admission, SESSIONS_BYTES_MAX, Sessions, take, take_u64};

const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 3 * 8;

/// Most bytes that an encoded machine takes: it travels in one frame at the head of a snapshot.
pub const MACHINE_BYTES_MAX: usize = HEADER_BYTES + SESSIONS_BYTES_MAX;

const _: () = assert!(MACHINE_BYTES_MAX <= krita_proto::routing::VALUE_BYTES_MAX, "a frame has room for it");

/// What the machine asks of the storage index: versions, never values, and those only of keys of which
/// [`needs_version`] holds. Everything else is applied blindly, without a look at what was there.
pub trait KeyVersions {
    /// The key's version, `None` if it is absent.
    fn version(&self, key: &[u8]) -> Option<u64>;
}

/// The state of one shard that is not keys and values.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Machine {
    /// The index of the last command applied; it only rises.
    applied_index: u64,
    /// The highest log time of all commands applied: no later session's last use is above it.
    log_time_ms: u64,
    state_hash: u64,
    sessions: Sessions,
}

/// What applying a command did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The answer for the client.
    pub outcome: Outcome,
    /// What the index must take up, at version = the entry's index; empty unless something was applied.
    pub changes: Vec<Change>,
}

/// How a write ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Applied, now or when this request came first.
    Applied(Vec<OperationOutcome>),
    /// A condition did not hold; nothing was applied.
    ConditionFailed {
        /// Which operation, from 0.
        operation: u16,
        /// Its key's version; 0 = absent.
        current_version: u64,
    },
    /// The session is unknown or its result forgotten: this copy was not applied, an earlier one may have been.
    SessionUnknown,
    /// No room for another session or result; this copy was not applied.
    SessionsFull,
    /// Too far above the session's lowest unacknowledged sequence; this copy was not applied.
    SequenceOutOfWindow,
}

/// How one operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OperationOutcome {
    /// The index of this write; 0 for the delete of an absent key.
    pub version: u64,
    /// Of a delete: the key was there before. Of a put always false: nobody looked.
    pub existed: bool,
}

/// One change for the storage index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The key's value now lies in this entry.
    Put {
        /// The key.
        key: Bytes,
        /// Where `[checksum][value]` begins in the entry's payload.
        payload_offset: u32,
        /// The length of that region in bytes.
        payload_length: u32,
        /// The value.
        value: Bytes,
    },
    /// The key, which was there, is gone.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Machine {
    /// The machine of an empty shard.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies the command of the entry at `index`; `versions` is the index's state before it. The caller takes
    /// the changes up before it applies the next command.
    ///
    /// # Panics
    /// If `index` does not rise, or a key is newer than the entry: entries were applied out of order.
    pub fn apply(&mut self, index: u64, command: &WriteCommand, versions: &impl KeyVersions) -> Applied {
        assert!(index > self.applied_index, "entry {index} after {}", self.applied_index);
        self.applied_index = index;
        self.log_time_ms = self.log_time_ms.max(command.log_time_ms());
        self.mix(index, 0, &[]);

        let request = command.request();
        let operations = command.operations();
        match self.sessions.admit(request, operations.len(), self.log_time_ms) {
            Admission::Apply => {}
            Admission::Answer(outcome) => return Applied { outcome, changes: Vec::new() },
        }
        let applied = match evaluate(index, operations, versions) {
            Ok(results) => {
                let changes: Vec<Change> = operations
                    .iter()
                    .zip(&results)
                    .filter_map(|(operation, result)| change(operation, *result))
                    .collect();
                self.mix_changes(index, operations, &results);
                Applied { outcome: Outcome::Applied(results), changes }
            }
            Err(outcome) => Applied { outcome, changes: Vec::new() },
        };
        self.sessions.remember(request, index, &applied.outcome);
        applied
    }

    /// Rolling hash over the index of every command applied and over every change (key, version, the value's
    /// checksum or that it was deleted): equal on equal replicas at the same index.
    pub fn state_hash(&self) -> u64 {
        self.state_hash
    }

    /// The highest log time of all commands applied, in milliseconds since 1970. A leader stamps its commands
    /// with at least this.
    pub fn log_time_ms(&self) -> u64 {
        self.log_time_ms
    }

    /// The index of the last command applied; 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// The outcome that a request had when it was applied, if that is still remembered: for a leader that would
    /// otherwise judge a retry by what its own first attempt changed.
    pub fn remembered(&self, request: RequestId) -> Option<Outcome> {
        self.sessions.remembered(request)
    }

    /// The shard's sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The machine's part of a checkpoint or snapshot, at most [`MACHINE_BYTES_MAX`] bytes: format version (u8: 1),
    /// applied index, log time, state hash (u64 each, little-endian), then the sessions. Whoever stores or sends it
    /// adds the checksum.
    pub fn encode(&self) -> Bytes {
        let length = HEADER_BYTES + self.sessions.encoded_bytes();
        let mut out = BytesMut::with_capacity(length);
        out.put_u8(FORMAT_VERSION);
        out.put_u64_le(self.applied_index);
        out.put_u64_le(self.log_time_ms);
        out.put_u64_le(self.state_hash);
        self.sessions.encode(&mut out);
        assert_eq!(out.len(), length, "the sizes were computed first");
        out.freeze()
    }

    /// Reads what [`Machine::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, MachineError> {
        let mut rest = bytes;
        if take::<1>(&mut rest)? != [FORMAT_VERSION] {
            return Err(MachineError("its format is unknown to this version"));
        }
        let applied_index = take_u64(&mut rest)?;
        let log_time_ms = take_u64(&mut rest)?;
        let state_hash = take_u64(&mut rest)?;
        let sessions = Sessions::decode(&mut rest, log_time_ms)?;
        match rest {
            [] => Ok(Self { applied_index, log_time_ms, state_hash, sessions }),
            _ => Err(MachineError("bytes follow its end")),
        }
    }

    fn mix_changes(&mut self, index: u64, operations: &[Operation], results: &[OperationOutcome]) {
        for (operation, result) in operations.iter().zip(results) {
            if result.version != 0 {
                let what = match &operation.action {
                    Action::Put(put) => 1 << 32 | u64::from(put.checksum),
                    Action::Delete => 2 << 32,
                };
                self.mix(index, what, &operation.key);
            }
        }
    }

    fn mix(&mut self, index: u64, what: u64, key: &[u8]) {
        let mut fixed = [0u8; 16];
        fixed[..8].copy_from_slice(&index.to_le_bytes());
        fixed[8..].copy_from_slice(&what.to_le_bytes());
        self.state_hash = XxHash3_64::oneshot_with_seed(self.state_hash, &fixed);
        if !key.is_empty() {
            self.state_hash = XxHash3_64::oneshot_with_seed(self.state_hash, key);
        }
    }
}

/// Whether applying the operation depends on the version that its key has: a condition does, and so does a delete, of
/// which the client is told whether the key was there. An unconditional put is blind.
pub fn needs_version(operation: &Operation) -> bool {
    match (operation.condition, &operation.action) {
        (Condition::IfVersion(_), _) | (Condition::None, Action::Delete) => true,
        (Condition::None, Action::Put(_)) => false,
    }
}

/// Checks every condition, then says how each operation ends; an error is the first condition that fails.
fn evaluate(
    index: u64,
    operations: &[Operation],
    versions: &impl KeyVersions,
) -> Result<Vec<OperationOutcome>, Outcome> {
    let mut results = Vec::with_capacity(operations.len());
    for (position, operation) in operations.iter().enumerate() {
        let current = if needs_version(operation) { versions.version(&operation.key) } else { None };
        assert!(current.is_none_or(|version| (1..index).contains(&version)), "a version is an earlier index");
        let current_version = current.unwrap_or(0);
        match operation.condition {
            Condition::IfVersion(wanted) if wanted != current_version => {
                let position =
                    u16::try_from(position).expect("a command has at most OPERATIONS_MAX operations");
                return Err(Outcome::ConditionFailed { operation: position, current_version });
            }
            Condition::IfVersion(_) | Condition::None => {}
        }
        let existed = current.is_some();
        results.push(match &operation.action {
            // Never told, also where a condition has made it known: a put's answer must not depend on that.
            Action::Put(_) => OperationOutcome { version: index, existed: false },
            Action::Delete => OperationOutcome { version: if existed { index } else { 0 }, existed },
        });
    }
    Ok(results)
}

fn change(operation: &Operation, result: OperationOutcome) -> Option<Change> {
    let key = operation.key.clone();
    match &operation.action {
        Action::Put(put) => Some(Change::Put {
            key,
            payload_offset: put.payload_offset(),
            payload_length: put.payload_length(),
            value: put.value.clone(),
        }),
        Action::Delete if result.existed => Some(Change::Delete { key }),
        Action::Delete => None,
    }
}

/// Bytes that are no machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("state machine: {0}")]
pub struct MachineError(pub &'static str);

#[cfg(test)]
mod tests;
