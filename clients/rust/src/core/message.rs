//! What can be asked and answered on a connection, and the limits that are checked before anything is sent.

use bytes::BytesMut;
use krita_proto::error::ErrorCode;
use krita_proto::frame::{self, Flags, Frame, FrameError, FrameKind};
use krita_proto::routing::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use krita_proto::v1;

use crate::error::{Detail, Error, Result};
use crate::types::Condition;

/// One request.
#[derive(Clone, PartialEq, Debug)]
pub enum Request {
    /// Writes one key.
    Put(v1::Put),
    /// Removes one key.
    Delete(v1::Delete),
    /// Reads one key.
    Get(v1::Get),
    /// Many operations on one shard.
    Batch(v1::Batch),
    /// One page of a shard's keys.
    Scan(v1::Scan),
    /// Members and the shard map.
    ClusterStatus(v1::ClusterStatus),
    /// The node's own state.
    NodeStatus(v1::NodeStatus),
    /// Whether the replicas of a shard hold the same.
    Verify(v1::Verify),
    /// Has the node read and check all that it stores.
    Scrub(v1::Scrub),
    /// Reads the cluster's own state.
    ClusterRead(v1::ClusterRead),
    /// Changes the cluster's own state.
    ClusterChange(v1::ClusterChange),
    /// Changes a shard's group, or asks who is in it. Sending it again does no harm.
    ShardOrder(v1::ShardOrder),
}

impl Request {
    /// The kind of its frame.
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Put(_) => FrameKind::Put,
            Self::Delete(_) => FrameKind::Delete,
            Self::Get(_) => FrameKind::Get,
            Self::Batch(_) => FrameKind::Batch,
            Self::Scan(_) => FrameKind::Scan,
            Self::ClusterStatus(_) => FrameKind::ClusterStatus,
            Self::NodeStatus(_) => FrameKind::NodeStatus,
            Self::Verify(_) => FrameKind::Verify,
            Self::Scrub(_) => FrameKind::Scrub,
            Self::ClusterRead(_) => FrameKind::ClusterRead,
            Self::ClusterChange(_) => FrameKind::ClusterChange,
            Self::ShardOrder(_) => FrameKind::ShardOrder,
        }
    }

    /// Appends its frame.
    pub fn encode(&self, outgoing: &mut BytesMut, correlation: u64) -> Result<(), FrameError> {
        match self {
            Self::Put(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::Delete(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::Get(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::Batch(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::Scan(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::ClusterStatus(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::NodeStatus(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::Verify(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::Scrub(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::ClusterRead(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::ClusterChange(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
            Self::ShardOrder(message) => frame::encode(outgoing, Flags::NONE, correlation, message),
        }
    }

    /// Makes a write one that is applied once however often it is sent; nothing for a read.
    pub fn set_request_id(&mut self, id: v1::RequestId) {
        match self {
            Self::Put(message) => message.request_id = Some(id),
            Self::Delete(message) => message.request_id = Some(id),
            Self::Batch(message) => message.request_id = Some(id),
            Self::Get(_)
            | Self::Scan(_)
            | Self::ClusterStatus(_)
            | Self::NodeStatus(_)
            | Self::Verify(_)
            | Self::Scrub(_)
            | Self::ClusterRead(_)
            | Self::ClusterChange(_)
            | Self::ShardOrder(_) => {}
        }
    }

    /// Whether any replica may answer it.
    pub fn takes_any(&self) -> bool {
        let consistency = match self {
            Self::Get(message) => message.consistency,
            Self::Batch(message) => message.consistency,
            Self::Scan(message) => message.consistency,
            Self::Put(_)
            | Self::Delete(_)
            | Self::ClusterStatus(_)
            | Self::NodeStatus(_)
            | Self::Verify(_)
            | Self::Scrub(_)
            | Self::ClusterRead(_)
            | Self::ClusterChange(_)
            | Self::ShardOrder(_) => return false,
        };
        consistency == v1::Consistency::Any as i32
    }

    /// How long the server may take, in milliseconds; nothing for status requests.
    pub fn set_timeout_ms(&mut self, milliseconds: u32) {
        match self {
            Self::Put(message) => message.timeout_ms = milliseconds,
            Self::Delete(message) => message.timeout_ms = milliseconds,
            Self::Get(message) => message.timeout_ms = milliseconds,
            Self::Batch(message) => message.timeout_ms = milliseconds,
            Self::Scan(message) => message.timeout_ms = milliseconds,
            Self::Verify(message) => message.timeout_ms = milliseconds,
            Self::ClusterRead(message) => message.timeout_ms = milliseconds,
            Self::ClusterChange(message) => message.timeout_ms = milliseconds,
            Self::ShardOrder(message) => message.timeout_ms = milliseconds,
            Self::ClusterStatus(_) | Self::NodeStatus(_) | Self::Scrub(_) => {}
        }
    }
}

/// One good answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Response {
    /// To a put or a delete.
    Write(v1::WriteReply),
    /// To a get.
    Get(v1::GetReply),
    /// To a batch.
    Batch(v1::BatchReply),
    /// To a scan.
    Scan(v1::ScanReply),
    /// To a cluster status.
    ClusterStatus(v1::ClusterStatusReply),
    /// To a node status.
    NodeStatus(Box<v1::NodeStatusReply>),
    /// To a verify.
    Verify(v1::VerifyReply),
    /// To a scrub.
    Scrub(v1::ScrubReply),
    /// To a cluster read.
    ClusterRead(Box<v1::ClusterReadReply>),
    /// To a cluster change.
    ClusterChange(v1::ClusterChangeReply),
    /// To a shard order.
    ShardView(v1::ShardView),
}

impl Response {
    /// The answer in a frame of kind `expected`, which is the reply to what was asked.
    pub(crate) fn decode(expected: FrameKind, frame: &Frame) -> Result<Self, FrameError> {
        match expected {
            FrameKind::WriteReply => frame.decode().map(Self::Write),
            FrameKind::GetReply => frame.decode().map(Self::Get),
            FrameKind::BatchReply => frame.decode().map(Self::Batch),
            FrameKind::ScanReply => frame.decode().map(Self::Scan),
            FrameKind::ClusterStatusReply => frame.decode().map(Self::ClusterStatus),
            FrameKind::NodeStatusReply => frame.decode().map(Box::new).map(Self::NodeStatus),
            FrameKind::VerifyReply => frame.decode().map(Self::Verify),
            FrameKind::ScrubReply => frame.decode().map(Self::Scrub),
            FrameKind::ClusterReadReply => frame.decode().map(Box::new).map(Self::ClusterRead),
            FrameKind::ClusterChangeReply => frame.decode().map(Self::ClusterChange),
            FrameKind::ShardView => frame.decode().map(Self::ShardView),
            other => unreachable!("no request of a client is answered by a {other} frame"),
        }
    }

    /// Who leads the shard, where the answer shows it: whoever has answered, unless any replica might have.
    pub fn served_by(&self) -> Option<&v1::ServedBy> {
        match self {
            Self::Write(reply) => reply.served_by.as_ref(),
            Self::Get(reply) => reply.served_by.as_ref().filter(|_| !reply.stale),
            Self::Batch(reply) => reply.served_by.as_ref().filter(|_| !reply.stale),
            Self::Scan(reply) => reply.served_by.as_ref().filter(|_| !reply.stale && !reply.held),
            Self::ShardView(reply) => reply.served_by.as_ref(),
            // Where the cluster's own state is kept is nobody's business but the nodes'.
            Self::ClusterStatus(_)
            | Self::NodeStatus(_)
            | Self::Verify(_)
            | Self::Scrub(_)
            | Self::ClusterRead(_)
            | Self::ClusterChange(_) => None,
        }
    }
}

/// An answer that is an error.
#[derive(Clone, PartialEq, Debug)]
pub struct ServerError {
    /// The stable code.
    pub code: ErrorCode,
    /// The whole message.
    pub message: v1::Error,
}

impl ServerError {
    /// Reads the code.
    pub fn new(message: v1::Error) -> Self {
        Self { code: ErrorCode::from_number(message.code), message }
    }

    /// The shard does not know the session and may not register it any more: *this attempt* was not applied. An
    /// earlier attempt under the same id may have been.
    ///
    /// A server that refuses a session tells its log time; it tells it with no other unknown outcome.
    pub fn session_refused(&self) -> bool {
        self.code == ErrorCode::UnknownOutcome && self.message.log_time_ms != 0
    }

    /// As the error of a call.
    pub fn to_error(&self) -> Error {
        let detail = Detail {
            code: self.code,
            message: self.message.message.clone(),
            retry_after: match self.message.retry_after_ms {
                0 => None,
                milliseconds => Some(std::time::Duration::from_millis(milliseconds.into())),
            },
        };
        match Error::from_detail(detail) {
            Error::ConditionFailed { detail, .. } => Error::ConditionFailed {
                current_version: self.message.current_version,
                operation: self.message.operation as usize,
                detail,
            },
            other => other,
        }
    }
}

/// A key within the limits.
pub fn check_key(key: &[u8]) -> Result<()> {
    match key.len() {
        0 => Err(Error::invalid("the key is empty")),
        1..=KEY_BYTES_MAX => Ok(()),
        bytes => {
            Err(Error::invalid(format!("the key has {bytes} bytes; at most {KEY_BYTES_MAX} are allowed")))
        }
    }
}

/// A value within the limits.
pub fn check_value(value: &[u8]) -> Result<()> {
    match value.len() {
        0..=VALUE_BYTES_MAX => Ok(()),
        bytes => {
            Err(Error::invalid(format!("the value has {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed")))
        }
    }
}

/// A write's condition on the wire.
pub fn condition_to_wire(condition: &Condition) -> Result<Option<v1::Condition>> {
    use v1::condition::Condition as Wire;
    let wire = match condition {
        Condition::None => return Ok(None),
        Condition::IfVersion(version) => Wire::IfVersion(*version),
        Condition::IfValue(value) => {
            check_value(value)?;
            Wire::IfValue(value.clone())
        }
    };
    Ok(Some(v1::Condition { condition: Some(wire) }))
}
