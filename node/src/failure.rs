//! How a request fails, before it becomes an `Error` frame: the code that callers act on, and what people read.

use krita_proto::error::ErrorCode;
use krita_proto::v1;

/// A request's bad end. Converted to [`v1::Error`] where it leaves the node.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// What the caller does next follows from this alone.
    pub(crate) code: ErrorCode,
    /// What happened, for people.
    pub(crate) message: String,
    /// Come back after this long, in milliseconds; 0 = no advice.
    pub(crate) retry_after_ms: u32,
    /// `ConditionFailed`: the key's version now.
    pub(crate) current_version: u64,
    /// `ConditionFailed`: which operation of the request.
    pub(crate) operation: u32,
    /// The leader, where it is known.
    pub(crate) hint: Option<v1::ServedBy>,
    /// The shard's log time in milliseconds since 1970, for a client whose session was refused; 0 = not told.
    pub(crate) log_time_ms: u64,
}

impl Failure {
    /// A failure with a code and a message alone.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after_ms: 0,
            current_version: 0,
            operation: 0,
            hint: None,
            log_time_ms: 0,
        }
    }

    /// The request breaks a rule or a limit.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// No quorum or leader can be reached; nothing was applied.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_ms: 50, ..Self::new(ErrorCode::Unavailable, message) }
    }

    /// Too much to do; nothing was applied.
    pub(crate) fn overloaded(message: impl Into<String>) -> Self {
        Self { retry_after_ms: 10, ..Self::new(ErrorCode::Overloaded, message) }
    }

    /// The write may or may not take effect.
    pub(crate) fn unknown_outcome(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::UnknownOutcome, message)
    }

    /// This node does not serve yet, or no longer.
    pub(crate) fn not_ready(message: impl Into<String>) -> Self {
        Self { retry_after_ms: 100, ..Self::new(ErrorCode::NotReady, message) }
    }

    /// The deadline passed before anything was proposed or read.
    pub(crate) fn deadline() -> Self {
        Self::new(ErrorCode::DeadlineExceeded, "the deadline passed; nothing was applied")
    }

    /// Nothing was applied, and an election may be all that is in the way.
    pub(crate) fn is_passing(&self) -> bool {
        match self.code {
            ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::NotReady => true,
            ErrorCode::InvalidArgument
            | ErrorCode::WrongCluster
            | ErrorCode::Unauthenticated
            | ErrorCode::PermissionDenied
            | ErrorCode::ConditionFailed
            | ErrorCode::Overloaded
            | ErrorCode::ResourceExhausted
            | ErrorCode::DeadlineExceeded
            | ErrorCode::UnknownOutcome
            | ErrorCode::Corruption
            | ErrorCode::Internal => false,
        }
    }

    /// Adds where the leader is.
    #[must_use]
    pub(crate) fn with_hint(self, hint: Option<v1::ServedBy>) -> Self {
        Self { hint, ..self }
    }

    /// What an Error frame says, from this node or from another.
    pub(crate) fn from_wire(error: v1::Error) -> Self {
        Self {
            code: ErrorCode::from_number(error.code),
            message: error.message,
            retry_after_ms: error.retry_after_ms,
            current_version: error.current_version,
            operation: error.operation,
            hint: error.hint,
            log_time_ms: error.log_time_ms,
        }
    }

    /// The body of an Error frame.
    pub(crate) fn to_wire(&self) -> v1::Error {
        v1::Error {
            code: self.code as u32,
            message: self.message.clone(),
            retry_after_ms: self.retry_after_ms,
            current_version: self.current_version,
            operation: self.operation,
            hint: self.hint,
            log_time_ms: self.log_time_ms,
        }
    }
}
