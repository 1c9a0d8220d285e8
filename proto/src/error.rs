//! Every way a request can end badly: one enum, one row each in `docs/protocol.md`.
//!
//! The number is stable for ever; the gRPC code, HTTP status and exit code follow from it, so that each front
//! door says the same thing.

/// The stable error codes of Krita.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum ErrorCode {
    /// The request is malformed or breaks a limit.
    InvalidArgument = 1,
    /// The cluster name, protocol version or cluster id is not this cluster's.
    WrongCluster = 2,
    /// The token is missing or unknown.
    Unauthenticated = 3,
    /// The token does not allow this.
    PermissionDenied = 4,
    /// The condition did not hold; nothing was applied.
    ConditionFailed = 5,
    /// Another node leads this shard; the hint names it. Nothing was applied.
    NotLeader = 6,
    /// No quorum or no leader is reachable. Nothing was applied.
    Unavailable = 7,
    /// The node has too much to do. Nothing was applied.
    Overloaded = 8,
    /// Out of room: disk, sessions. Nothing was applied.
    ResourceExhausted = 9,
    /// The deadline passed before a read could be served, or before a write was proposed. Nothing was applied.
    DeadlineExceeded = 10,
    /// The write may or may not have been, or be, applied.
    UnknownOutcome = 11,
    /// Data failed its checksum here and was not returned.
    Corruption = 12,
    /// The node is forming, starting or stopping. Nothing was applied.
    NotReady = 13,
    /// A bug or an unforeseen fault.
    Internal = 14,
}

/// One row of the error table.
#[derive(Clone, Copy, Debug)]
pub struct ErrorRow {
    /// Which error.
    pub code: ErrorCode,
    /// Its name on every front door.
    pub name: &'static str,
    /// The gRPC status code.
    pub grpc: u8,
    /// The HTTP status.
    pub http: u16,
    /// The exit code of the commands.
    pub exit: u8,
    /// Whether trying again may help, without a request id for writes.
    pub retryable: bool,
    /// What to do about it, in one line.
    pub advice: &'static str,
}

use ErrorCode as E;

/// The whole table, by number.
#[rustfmt::skip]
pub const ERRORS: [ErrorRow; 14] = [
    row(E::InvalidArgument,   "INVALID_ARGUMENT",    3, 400, 1, false, "correct the request; docs/protocol.md states the limits"),
    row(E::WrongCluster,      "WRONG_CLUSTER",       9, 421, 1, false, "check --cluster-name and the address"),
    row(E::Unauthenticated,   "UNAUTHENTICATED",    16, 401, 4, false, "give a valid token by --token or KRITA_TOKEN"),
    row(E::PermissionDenied,  "PERMISSION_DENIED",   7, 403, 4, false, "ask for a role that grants this"),
    row(E::ConditionFailed,   "CONDITION_FAILED",    9, 412, 1, false, "read the key again and decide anew"),
    row(E::NotLeader,         "NOT_LEADER",         14, 503, 5, true,  "ask the node that the hint names"),
    row(E::Unavailable,       "UNAVAILABLE",        14, 503, 5, true,  "try again; see kritaclient health-check --all"),
    row(E::Overloaded,        "OVERLOADED",          8, 429, 5, true,  "slow down and try again after the given time"),
    row(E::ResourceExhausted, "RESOURCE_EXHAUSTED",  8, 507, 5, true,  "make room, then try again"),
    row(E::DeadlineExceeded,  "DEADLINE_EXCEEDED",   4, 504, 5, true,  "try again, or with a longer deadline"),
    row(E::UnknownOutcome,    "UNKNOWN_OUTCOME",     2, 520, 6, false, "read the key to learn what happened"),
    row(E::Corruption,        "CORRUPTION",         15, 500, 1, true,  "try another replica; see the node's log"),
    row(E::NotReady,          "NOT_READY",          14, 503, 5, true,  "wait until the node serves"),
    row(E::Internal,          "INTERNAL",           13, 500, 1, false, "report it with the node's log"),
];

const fn row(
    code: ErrorCode,
    name: &'static str,
    grpc: u8,
    http: u16,
    exit: u8,
    retryable: bool,
    advice: &'static str,
) -> ErrorRow {
    ErrorRow { code, name, grpc, http, exit, retryable, advice }
}

// The table is indexed by number: row n holds code n + 1.
const _: () = {
    let mut position = 0;
    while position < ERRORS.len() {
        assert!(ERRORS[position].code as usize == position + 1);
        position += 1;
    }
};

impl ErrorCode {
    /// This code's row.
    pub const fn row(self) -> &'static ErrorRow {
        &ERRORS[self as usize - 1]
    }

    /// The name, as it is printed everywhere.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The code with this number; a number from a newer version is [`ErrorCode::Internal`].
    pub fn from_number(number: u32) -> Self {
        let position = (number as usize).wrapping_sub(1);
        ERRORS.get(position).map_or(Self::Internal, |row| row.code)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
