//! How a command ends that does not end well, and the exit code of each end. `kritaclient --help` has the table.
//!
//! A message is one line: what happened, and what to do about it.

use std::io::{self, Write};

use kritaclient::Error;

use crate::output::Style;

/// Why a command did not do what it was told. The exit codes of errors stand in the table of error codes.
#[derive(Debug)]
pub enum Failure {
    /// The cluster, or the way to it.
    Krita(Error),
    /// A long command was broken off by an error of the cluster.
    Interrupted {
        /// The error.
        error: Error,
        /// What has been done, and how to go on.
        done: String,
    },
    /// The key is absent.
    Absent,
    /// A member is not as it should be; what it is has been printed.
    Unhealthy,
    /// Files are damaged; what is has been printed.
    Damaged,
    /// It was refused, with the reason.
    Refused(String),
    /// It was asked for in a way that cannot be done; the text says how it can.
    Usage(String),
    /// Reading or printing.
    Io(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Krita(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Krita(error) | Self::Interrupted { error, .. } => error.exit_code(),
            Self::Absent => 3,
            Self::Unhealthy => 10,
            Self::Damaged => 11,
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            // Whoever read our output has read enough.
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Io(_) => 1,
        }
    }

    /// For stderr; `None` = nothing to say.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Krita(error) => Some(format!("{error}; {}", error.advice())),
            Self::Interrupted { error, done } => Some(format!("{error}; {done}")),
            Self::Absent => Some("the key is absent".to_owned()),
            Self::Unhealthy | Self::Damaged => None,
            Self::Refused(reason) | Self::Usage(reason) => Some(reason.clone()),
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Self::Io(error) => Some(error.to_string()),
        }
    }
}

/// Ends the process of `command` with what came of it.
pub fn finish(command: &str, result: Result<(), Failure>) -> ! {
    let code = match result {
        Ok(()) => 0,
        Err(failure) => {
            tell(command, &failure);
            failure.exit_code()
        }
    };
    // Not by return: a runtime that still resolves a name would be waited for.
    std::process::exit(code.into())
}

/// Writes why something was not done to stderr: one line.
pub fn tell(command: &str, failure: &Failure) {
    if let Some(message) = failure.message() {
        let stderr = io::stderr();
        let name = Style::of(&stderr).bad(command);
        // Whoever closed stderr does not want to know.
        let _closed = writeln!(&stderr, "{name}: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kritaclient::ErrorCode;

    #[test]
    fn exit_codes_follow_the_table() {
        for (failure, exit_code) in [
            (Failure::Krita(Error::new(ErrorCode::InvalidArgument, "")), 1),
            (Failure::Krita(Error::new(ErrorCode::WrongCluster, "")), 1),
            (Failure::Krita(Error::new(ErrorCode::ConditionFailed, "")), 1),
            (Failure::Krita(Error::new(ErrorCode::Unauthenticated, "")), 4),
            (Failure::Krita(Error::new(ErrorCode::PermissionDenied, "")), 4),
            (Failure::Krita(Error::new(ErrorCode::Unavailable, "")), 5),
            (Failure::Krita(Error::new(ErrorCode::DeadlineExceeded, "")), 5),
            (Failure::Krita(Error::new(ErrorCode::Overloaded, "")), 5),
            (Failure::Krita(Error::new(ErrorCode::UnknownOutcome, "")), 6),
            (Failure::Absent, 3),
            (Failure::Unhealthy, 10),
            (Failure::Damaged, 11),
            (Failure::Refused(String::new()), 1),
            (Failure::Usage(String::new()), 2),
            (Failure::Io(io::ErrorKind::BrokenPipe.into()), 0),
            (Failure::Io(io::ErrorKind::Other.into()), 1),
        ] {
            assert_eq!(failure.exit_code(), exit_code, "{failure:?}");
        }
    }
}
