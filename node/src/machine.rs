//! The replicated state machine of one shard (its deterministic part).

use bytes::Bytes;

use crate::command::WriteCommand;
use crate::sessions::Sessions;

/// What the machine asks of the storage index: versions, never values, so that applying never reads the disk.
pub trait KeyVersions {
    /// The key's version, `None` if it is absent.
    fn version(&self, key: &[u8]) -> Option<u64>;
}

/// The state of one shard that is not keys and values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    applied_index: u64,
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
    /// The key was there before.
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
        todo!()
    }

    /// Applies the command of the entry at `index`.
    pub fn apply(&mut self, index: u64, command: &WriteCommand, versions: &impl KeyVersions) -> Applied {
        let _ = (index, command, versions);
        todo!()
    }

    /// Rolling hash, equal on equal replicas.
    pub fn state_hash(&self) -> u64 {
        self.state_hash
    }

    /// The highest log time applied.
    pub fn log_time_ms(&self) -> u64 {
        self.log_time_ms
    }

    /// The index of the last command applied; 0 before the first.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// For a checkpoint or snapshot.
    pub fn encode(&self) -> Bytes {
        todo!()
    }

    /// Reads what [`Machine::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, MachineError> {
        let _ = bytes;
        todo!()
    }
}

/// Bytes that are no machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("state machine: {0}")]
pub struct MachineError(pub &'static str);
