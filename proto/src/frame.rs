//! The frame codec of the native protocol. Pure: bytes in, frames out; it knows no socket and no clock.
//!
//! ```text
//! offset  size  field
//!      0     4  length of what follows this field, little-endian: 12 + body
//!      4     1  kind (FrameKind)
//!      5     1  flags (bit 0: forwarded once already)
//!      6     2  reserved, zero
//!      8     8  correlation id, little-endian; the answer repeats it
//!     16     -  body: the protobuf message of that kind
//! ```
//!
//! A reader owns one [`FrameReader`], lends its [`FrameReader::space`] to the socket, and takes all frames that
//! are complete. Bodies are slices of the read buffer: nothing is copied, and whoever keeps a small slice for
//! long keeps the whole buffer, so long-lived values are copied out by those who keep them. A writer appends
//! frames to one [`BytesMut`] with [`encode`] and writes that whole.
//!
//! ```
//! use krita_proto::frame::{self, FrameReader};
//! use krita_proto::v1::Get;
//!
//! let mut outgoing = bytes::BytesMut::new();
//! let get = Get { key: "colour".into(), ..Get::default() };
//! frame::encode(&mut outgoing, frame::Flags::NONE, 7, &get)?;
//!
//! let mut reader = FrameReader::new(frame::BODY_BYTES_MAX);
//! reader.feed(&outgoing);
//! let frame = reader.next_frame()?.expect("it is whole");
//! assert_eq!((frame.correlation, frame.decode::<Get>()?), (7, get));
//! # Ok::<(), frame::FrameError>(())
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::routing::ENTRY_BYTES_MAX;
use crate::v1;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 16;

/// Bytes of the header that the length field counts.
const HEADER_BYTES_COUNTED: usize = HEADER_BYTES - 4;

/// Largest body: an entry of [`ENTRY_BYTES_MAX`] and the messages around it.
pub const BODY_BYTES_MAX: usize = ENTRY_BYTES_MAX + 64 * 1024;

/// Largest body before the hello has been accepted: nobody has shown a token yet.
pub const HELLO_BODY_BYTES_MAX: usize = 64 * 1024;

/// The version of this protocol, as the hello states it.
pub const PROTOCOL_VERSION: u32 = 1;

/// The ALPN name of this protocol.
pub const ALPN: &[u8] = b"krita/1";

/// Size of a read buffer. Many small frames share one; a larger frame gets one of its own.
const BUFFER_BYTES: usize = 64 * 1024;

/// A read buffer with less room than this is replaced.
const SPACE_BYTES_MIN: usize = 4 * 1024;

/// A large frame gets this much memory at once; beyond it memory follows what has really been sent, by doubling.
const BUFFER_BYTES_ON_CREDIT: usize = 1024 * 1024;

// The length field must be able to say every body that we accept.
const _: () = assert!(BODY_BYTES_MAX + HEADER_BYTES_COUNTED < u32::MAX as usize);
const _: () = assert!(SPACE_BYTES_MIN >= HEADER_BYTES && HELLO_BODY_BYTES_MAX <= BODY_BYTES_MAX);

/// Kinds from here on are for nodes only.
const FIRST_KIND_BETWEEN_NODES: u8 = 64;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $role:ident;)*) => {
        /// What a frame carries. The numbers are stable for ever; `docs/protocol.md` holds the same table.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum FrameKind {
            $($(#[$doc])* $name = $number,)*
        }

        impl FrameKind {
            /// All kinds, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The kind with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The kind's name, which is its message's name too.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Only nodes may send it: a connection that has not shown itself to be a node's is closed for it.
            pub const fn is_between_nodes(self) -> bool {
                self as u8 >= FIRST_KIND_BETWEEN_NODES
            }

            /// What part the kind plays in a conversation.
            pub const fn role(self) -> KindRole {
                match self {
                    $(Self::$name => KindRole::$role,)*
                }
            }
        }

        $(impl FrameMessage for v1::$name {
            const KIND: FrameKind = FrameKind::$name;
        })*
    };
}

/// What part a kind plays in a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KindRole {
    /// Is answered by one frame with the same correlation id.
    Request,
    /// Answers a request.
    Reply,
    /// Is not answered; its correlation id is 0.
    OneWay,
}

kinds! {
    /// The first frame of a connection.
    Hello = 1, Request;
    /// Accepts the hello.
    HelloReply = 2, Reply;
    /// Answers any request that did not end well; with correlation id 0 it ends the connection.
    Error = 3, Reply;
    /// Writes one key.
    Put = 10, Request;
    /// Answers a put or a delete.
    WriteReply = 11, Reply;
    /// Removes one key.
    Delete = 12, Request;
    /// Reads one key.
    Get = 14, Request;
    /// Answers a get.
    GetReply = 15, Reply;
    /// Many operations on one shard.
    Batch = 16, Request;
    /// Answers a batch.
    BatchReply = 17, Reply;
    /// One page of a shard's keys.
    Scan = 18, Request;
    /// Answers a scan.
    ScanReply = 19, Reply;
    /// Members and the shard map.
    ClusterStatus = 20, Request;
    /// Answers a cluster status.
    ClusterStatusReply = 21, Reply;
    /// One node's own state.
    NodeStatus = 22, Request;
    /// Answers a node status.
    NodeStatusReply = 23, Reply;
    /// Compares the replicas of one shard.
    Verify = 24, Request;
    /// Answers a verify.
    VerifyReply = 25, Reply;
    /// Begins to read and check all that a node stores.
    Scrub = 26, Request;
    /// Answers a scrub.
    ScrubReply = 27, Reply;
    /// Changes a shard's group, or asks who is in it.
    ShardOrder = 28, Request;
    /// Answers a shard order.
    ShardView = 29, Reply;
    /// Reads the cluster's own state.
    ClusterRead = 30, Request;
    /// Answers a cluster read.
    ClusterReadReply = 31, Reply;
    /// Changes the cluster's own state.
    ClusterChange = 32, Request;
    /// Answers a cluster change.
    ClusterChangeReply = 33, Reply;
    /// Raft messages of many groups, from one core to one core.
    RaftBurst = 64, OneWay;
    /// Who is there, and how they do.
    Gossip = 65, OneWay;
    /// Starts a snapshot of one shard.
    SnapshotBegin = 66, Request;
    /// Answers each frame of a snapshot.
    SnapshotReply = 67, Reply;
    /// A part of a snapshot.
    SnapshotChunk = 68, Request;
    /// Asks a node who it is, while a cluster forms.
    Identify = 70, Request;
    /// Answers an identify.
    IdentifyReply = 71, Reply;
    /// Proposes or fixes the cluster record.
    Form = 72, Request;
    /// Answers a form.
    FormReply = 73, Reply;
    /// Asks another replica for a value that is damaged here.
    FetchValue = 74, Request;
    /// Answers a fetch value.
    FetchValueReply = 75, Reply;
    /// Compares state hashes of many shards.
    CompareHashes = 76, Request;
    /// Answers a compare hashes.
    CompareHashesReply = 77, Reply;
    /// Asks whether replicas still belong to their groups.
    AskMembership = 78, Request;
    /// Answers an ask membership.
    AskMembershipReply = 79, Reply;
    /// Asks to be a member of the cluster.
    Join = 80, Request;
    /// Answers a join.
    JoinReply = 81, Reply;
}

impl std::fmt::Display for FrameKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A message that is the body of one kind of frame.
pub trait FrameMessage: Message + Default + 'static {
    /// The kind of frame that carries it.
    const KIND: FrameKind;
}

/// A message that is answered.
pub trait RequestMessage: FrameMessage {
    /// The message that answers it, unless an [`v1::Error`] does.
    type Reply: FrameMessage;
}

macro_rules! requests {
    ($($request:ident => $reply:ident,)*) => {
        $(impl RequestMessage for v1::$request {
            type Reply = v1::$reply;
        })*

        impl FrameKind {
            /// The kind that answers this one when all goes well; `None` for what is not a request.
            pub const fn reply(self) -> Option<Self> {
                match self {
                    $(Self::$request => Some(Self::$reply),)*
                    _ => None,
                }
            }
        }
    };
}

requests! {
    Hello => HelloReply,
    Put => WriteReply,
    Delete => WriteReply,
    Get => GetReply,
    Batch => BatchReply,
    Scan => ScanReply,
    ClusterStatus => ClusterStatusReply,
    NodeStatus => NodeStatusReply,
    Verify => VerifyReply,
    Scrub => ScrubReply,
    SnapshotBegin => SnapshotReply,
    SnapshotChunk => SnapshotReply,
    Identify => IdentifyReply,
    Form => FormReply,
    FetchValue => FetchValueReply,
    CompareHashes => CompareHashesReply,
    ShardOrder => ShardView,
    ClusterRead => ClusterReadReply,
    ClusterChange => ClusterChangeReply,
    AskMembership => AskMembershipReply,
    Join => JoinReply,
}

/// The flags byte.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The request came from another node that does not lead the shard either: answer it here or refuse it.
    pub const FORWARDED: Self = Self(1);

    /// The byte on the wire.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether the request has been forwarded once already.
    pub const fn is_forwarded(self) -> bool {
        self.0 & Self::FORWARDED.0 != 0
    }

    const fn from_bits(bits: u8) -> Option<Self> {
        if bits & !Self::FORWARDED.0 == 0 { Some(Self(bits)) } else { None }
    }
}

/// One frame. The body is a slice of the buffer it was read into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What the body is.
    pub kind: FrameKind,
    /// How it came.
    pub flags: Flags,
    /// Chosen by who asks, repeated by who answers; 0 where nothing is answered.
    pub correlation: u64,
    /// The encoded message.
    pub body: Bytes,
}

impl Frame {
    /// The message, if the frame carries an `M`. `bytes` fields are slices of the frame.
    pub fn decode<M: FrameMessage>(&self) -> Result<M, FrameError> {
        if self.kind != M::KIND {
            return Err(FrameError::UnexpectedKind {
                expected: M::KIND,
                found: self.kind,
                correlation: self.correlation,
            });
        }
        M::decode(self.body.clone()).map_err(|source| FrameError::Undecodable {
            kind: self.kind,
            correlation: self.correlation,
            source,
        })
    }
}

/// Bytes that are no frame, or a frame that is not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The length field is smaller than a header.
    #[error("a frame of {length} bytes cannot hold its header; is this Krita's native protocol?")]
    TooShort {
        /// The length field.
        length: u32,
    },
    /// The body is larger than this side accepts at this point.
    #[error("a frame body of {length} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Bytes of the body.
        length: usize,
        /// The largest that is accepted.
        limit: usize,
    },
    /// The reserved field is not zero.
    #[error("the reserved field of a frame is {value:#06x}, not zero")]
    ReservedNotZero {
        /// What it is.
        value: u16,
    },
    /// The frame is whole, but of a kind that this version does not know. The next frame can be read.
    #[error("frame kind {kind} is not known to this version")]
    UnknownKind {
        /// The kind's number.
        kind: u8,
        /// The frame's correlation id.
        correlation: u64,
    },
    /// The frame is whole, but has flags that this version does not know. The next frame can be read.
    #[error("frame flags {flags:#04x} are not known to this version")]
    UnknownFlags {
        /// The flags byte.
        flags: u8,
        /// The frame's correlation id.
        correlation: u64,
    },
    /// The frame is whole, but of another kind than the conversation calls for.
    #[error("expected a frame of kind {expected}, found {found}")]
    UnexpectedKind {
        /// What was called for.
        expected: FrameKind,
        /// What came.
        found: FrameKind,
        /// The frame's correlation id.
        correlation: u64,
    },
    /// The frame is whole, but its body is not the message of its kind.
    #[error("the body of a {kind} frame does not decode: {source}")]
    Undecodable {
        /// The frame's kind.
        kind: FrameKind,
        /// The frame's correlation id.
        correlation: u64,
        /// What is wrong with it.
        source: prost::DecodeError,
    },
}

impl FrameError {
    /// The correlation id to answer with an error, if frames that follow can still be read; `None` if the stream
    /// is out of step and must be closed.
    pub const fn recoverable(&self) -> Option<u64> {
        match self {
            Self::TooShort { .. } | Self::TooLong { .. } | Self::ReservedNotZero { .. } => None,
            Self::UnknownKind { correlation, .. }
            | Self::UnknownFlags { correlation, .. }
            | Self::UnexpectedKind { correlation, .. }
            | Self::Undecodable { correlation, .. } => Some(*correlation),
        }
    }
}

/// Appends one frame with `message` as its body. The message is encoded in place, without a copy.
///
/// Fails with [`FrameError::TooLong`], and appends nothing, if the body exceeds [`BODY_BYTES_MAX`].
pub fn encode<M: FrameMessage>(
    outgoing: &mut BytesMut,
    flags: Flags,
    correlation: u64,
    message: &M,
) -> Result<(), FrameError> {
    encode_message(outgoing, M::KIND, flags, correlation, message)
}

/// [`encode`] for a caller that picks the kind itself.
pub fn encode_message(
    outgoing: &mut BytesMut,
    kind: FrameKind,
    flags: Flags,
    correlation: u64,
    message: &impl Message,
) -> Result<(), FrameError> {
    let body_bytes = message.encoded_len();
    put_header(outgoing, kind, flags, correlation, body_bytes)?;
    let end = outgoing.len() + body_bytes;
    message.encode_raw(outgoing);
    assert_eq!(outgoing.len(), end, "a message must be as long as it says");
    Ok(())
}

/// Appends a frame whose body is encoded already: a request that is passed on as it came.
pub fn encode_body(
    outgoing: &mut BytesMut,
    kind: FrameKind,
    flags: Flags,
    correlation: u64,
    body: &[u8],
) -> Result<(), FrameError> {
    put_header(outgoing, kind, flags, correlation, body.len())?;
    outgoing.extend_from_slice(body);
    Ok(())
}

/// Appends a header and makes room for the body.
fn put_header(
    outgoing: &mut BytesMut,
    kind: FrameKind,
    flags: Flags,
    correlation: u64,
    body_bytes: usize,
) -> Result<(), FrameError> {
    if body_bytes > BODY_BYTES_MAX {
        return Err(FrameError::TooLong { length: body_bytes, limit: BODY_BYTES_MAX });
    }
    outgoing.reserve(HEADER_BYTES + body_bytes);
    outgoing.put_u32_le((HEADER_BYTES_COUNTED + body_bytes) as u32);
    outgoing.put_u8(kind as u8);
    outgoing.put_u8(flags.bits());
    outgoing.put_u16_le(0);
    outgoing.put_u64_le(correlation);
    Ok(())
}

/// A header that is well formed; its kind and flags may be unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    body_bytes: usize,
    kind: u8,
    flags: u8,
    correlation: u64,
}

impl Header {
    /// Parses the front of `bytes`; `None` if more are needed. What is certainly wrong is refused as early as
    /// the bytes that show it are there.
    fn parse(bytes: &[u8], body_bytes_max: usize) -> Result<Option<Self>, FrameError> {
        let Some(length) = bytes.first_chunk().map(|length| u32::from_le_bytes(*length)) else {
            return Ok(None);
        };
        let Some(body_bytes) = (length as usize).checked_sub(HEADER_BYTES_COUNTED) else {
            return Err(FrameError::TooShort { length });
        };
        if body_bytes > body_bytes_max {
            return Err(FrameError::TooLong { length: body_bytes, limit: body_bytes_max });
        }
        let Some(&[_, _, _, _, kind, flags, reserved_low, reserved_high, ref correlation @ ..]) =
            bytes.first_chunk::<HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let reserved = u16::from_le_bytes([reserved_low, reserved_high]);
        if reserved != 0 {
            return Err(FrameError::ReservedNotZero { value: reserved });
        }
        Ok(Some(Self { body_bytes, kind, flags, correlation: u64::from_le_bytes(*correlation) }))
    }
}

/// Takes frames out of a stream of bytes.
///
/// Memory: one buffer of 64 KiB; while a larger frame arrives, at most twice what of it has arrived, or 1 MiB if
/// that is more, and never more than that frame (each rounded up by at most 4 KiB).
#[derive(Debug)]
pub struct FrameReader {
    /// Initialised memory; bytes `..filled` have been received and not been taken yet.
    buffer: BytesMut,
    /// `filled <= buffer.len()`.
    filled: usize,
    body_bytes_max: usize,
}

impl FrameReader {
    /// A reader that accepts bodies of up to `body_bytes_max` bytes (capped to [`BODY_BYTES_MAX`]). It allocates
    /// with the first byte.
    pub fn new(body_bytes_max: usize) -> Self {
        let mut reader = Self { buffer: BytesMut::new(), filled: 0, body_bytes_max: 0 };
        reader.set_body_bytes_max(body_bytes_max);
        reader
    }

    /// Changes the limit for the frames from here on: raised after the hello.
    pub fn set_body_bytes_max(&mut self, body_bytes_max: usize) {
        self.body_bytes_max = body_bytes_max.min(BODY_BYTES_MAX);
    }

    /// Where to read the next bytes to; never empty. Say with [`FrameReader::advance`] how many there were.
    pub fn space(&mut self) -> &mut [u8] {
        let needed = self.frame_bytes_announced().unwrap_or(0);
        let room = self.buffer.len() - self.filled;
        let must_replace = if needed > self.buffer.len() {
            // A large frame: a buffer of its own at once, more of it as it fills.
            room == 0 || self.buffer.len() < BUFFER_BYTES_ON_CREDIT
        } else {
            // The frame in front fits; unless it is still incomplete, want room for a good read.
            needed <= self.filled && room < SPACE_BYTES_MIN
        };
        if must_replace {
            self.replace_buffer(needed);
        }
        &mut self.buffer[self.filled..]
    }

    /// `bytes` more bytes of what [`FrameReader::space`] gave have been received.
    pub fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.buffer.len() - self.filled, "more received than there was space for");
        self.filled += bytes;
    }

    /// Copies received bytes in: for bytes that came with the stream, and for tests. Unbounded in memory by
    /// itself: feed it what is bounded.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let length = space.len().min(bytes.len());
            space[..length].copy_from_slice(&bytes[..length]);
            self.advance(length);
            bytes = &bytes[length..];
        }
    }

    /// The next whole frame; `None` if more bytes are needed.
    ///
    /// After an error that is [`FrameError::recoverable`] the frame is gone and the next one can be taken; after
    /// any other the same error comes again.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let received = &self.buffer[..self.filled];
        let Some(header) = Header::parse(received, self.body_bytes_max)? else {
            return Ok(None);
        };
        let frame_bytes = HEADER_BYTES + header.body_bytes;
        if received.len() < frame_bytes {
            return Ok(None);
        }
        let body = self.buffer.split_to(frame_bytes).freeze().split_off(HEADER_BYTES);
        self.filled -= frame_bytes;
        let Header { kind, flags, correlation, .. } = header;
        let kind = FrameKind::from_number(kind).ok_or(FrameError::UnknownKind { kind, correlation })?;
        let flags = Flags::from_bits(flags).ok_or(FrameError::UnknownFlags { flags, correlation })?;
        Ok(Some(Frame { kind, flags, correlation, body }))
    }

    /// Bytes received that are part of a frame which is not complete (or has not been taken).
    pub fn pending_bytes(&self) -> usize {
        self.filled
    }

    /// How long the frame in front is with its header, once its header has been received and is sound.
    pub fn frame_bytes_announced(&self) -> Option<usize> {
        let header = Header::parse(&self.buffer[..self.filled], self.body_bytes_max).ok()??;
        Some(HEADER_BYTES + header.body_bytes)
    }

    /// Bytes of memory held for reading.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// A new buffer with what was received, and room: for a frame of `needed` bytes if that is large.
    fn replace_buffer(&mut self, needed: usize) {
        let on_credit = needed.min((self.filled * 2).max(BUFFER_BYTES_ON_CREDIT));
        let length = on_credit.max(BUFFER_BYTES).max(self.filled + SPACE_BYTES_MIN);
        let mut buffer = BytesMut::zeroed(length);
        buffer[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
        self.buffer = buffer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_in_order_and_each_request_has_its_reply() {
        for pair in FrameKind::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for &kind in FrameKind::ALL {
            assert_eq!(FrameKind::from_number(kind as u8), Some(kind));
            assert_eq!(kind.reply().is_some(), kind.role() == KindRole::Request, "{kind}");
            if let Some(reply) = kind.reply() {
                assert_eq!(reply.role(), KindRole::Reply);
            }
        }
    }
}
