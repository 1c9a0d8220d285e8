//! How a call can fail, sorted by what the caller does next.
//!
//! Every variant but [`Error::UnknownOutcome`] says that nothing was applied. That one says that the client could
//! not learn it within the deadline, and never guesses.

use std::time::Duration;

use krita_proto::error::ErrorCode;

/// Result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A call that did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Correct the request: it is malformed or breaks a limit. Nothing was applied.
    #[error("{0}")]
    InvalidRequest(Detail),
    /// Correct the configuration: wrong cluster, wrong address, TLS that does not fit. Nothing was applied.
    #[error("{0}")]
    Configuration(Detail),
    /// Get a valid token, or one that grants this. Nothing was applied.
    #[error("{0}")]
    Denied(Detail),
    /// Read the key again and decide anew: the condition did not hold. Nothing was applied.
    #[error("{detail}")]
    ConditionFailed {
        /// The key's version now; 0 = absent.
        current_version: u64,
        /// Which operation of the caller's batch failed, from 0; 0 for a single write.
        operation: usize,
        /// Code, message and advice.
        detail: Detail,
    },
    /// Try again later: no leader, overload, no room, or the deadline passed before it began. Nothing was applied.
    #[error("{0}")]
    Unavailable(Detail),
    /// Read the key to learn what happened: the write may have been applied, or may still be.
    #[error("{0}")]
    UnknownOutcome(Detail),
    /// Look at the node's log: damaged data or a bug. Nothing was applied.
    #[error("{0}")]
    Failed(Detail),
}

/// What stands behind an [`Error`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Detail {
    /// The stable code.
    pub code: ErrorCode,
    /// What happened, for people.
    pub message: String,
    /// Come back after this long, if the server said so.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl Error {
    /// The error for a code that carries nothing but a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::from_detail(Detail { code, message: message.into(), retry_after: None })
    }

    /// The variant that belongs to a code.
    pub fn from_detail(detail: Detail) -> Self {
        match detail.code {
            ErrorCode::InvalidArgument => Self::InvalidRequest(detail),
            ErrorCode::WrongCluster => Self::Configuration(detail),
            ErrorCode::Unauthenticated | ErrorCode::PermissionDenied => Self::Denied(detail),
            ErrorCode::ConditionFailed => Self::ConditionFailed { current_version: 0, operation: 0, detail },
            ErrorCode::NotLeader
            | ErrorCode::Unavailable
            | ErrorCode::Overloaded
            | ErrorCode::ResourceExhausted
            | ErrorCode::DeadlineExceeded
            | ErrorCode::NotReady => Self::Unavailable(detail),
            ErrorCode::UnknownOutcome => Self::UnknownOutcome(detail),
            ErrorCode::Corruption | ErrorCode::Internal => Self::Failed(detail),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// Code, message and advice.
    pub fn detail(&self) -> &Detail {
        match self {
            Self::InvalidRequest(detail)
            | Self::Configuration(detail)
            | Self::Denied(detail)
            | Self::ConditionFailed { detail, .. }
            | Self::Unavailable(detail)
            | Self::UnknownOutcome(detail)
            | Self::Failed(detail) => detail,
        }
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.detail().code
    }

    /// What to do about it, in one line.
    pub fn advice(&self) -> &'static str {
        self.code().row().advice
    }

    /// The exit code of a command that ends with this error.
    pub fn exit_code(&self) -> u8 {
        self.code().row().exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use krita_proto::error::ERRORS;

    #[test]
    fn every_code_has_one_variant_and_keeps_its_row() {
        for row in &ERRORS {
            let error = Error::new(row.code, "why");
            assert_eq!(error.code(), row.code);
            assert_eq!(error.exit_code(), row.exit);
            assert_eq!(error.advice(), row.advice);
            assert_eq!(error.to_string(), format!("{}: why", row.name));
        }
    }
}
