//! One connection's conversation: the hello first, then requests pipelined and answered in any order.
//!
//! The owner moves bytes: what [`Connection::outgoing`] holds goes to the socket, what the socket gives goes to
//! [`Connection::space`] and [`Connection::received`], and [`Connection::next_event`] says what it meant. Any error
//! ends the connection; requests that are still in flight then have an unknown fate.

use std::collections::BTreeMap;

use bytes::BytesMut;
use krita_proto::frame::{
    self, BODY_BYTES_MAX, Flags, Frame, FrameError, FrameKind, FrameReader, PROTOCOL_VERSION,
};
use krita_proto::v1;

use crate::core::message::{Request, Response, ServerError};

/// Most requests in flight on one connection.
pub const IN_FLIGHT_MAX: usize = 1024;

/// The correlation id of the hello; requests count on from it.
const HELLO_CORRELATION: u64 = 1;

/// Who connects, and to what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// Must be the cluster's.
    pub cluster_name: String,
    /// Empty = none.
    pub token: String,
    /// The core that shall serve this connection; `None` = any.
    pub core: Option<u16>,
    /// Name and version for the server's log.
    pub client_name: String,
}

/// Something that the peer said.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The hello was accepted: requests may be sent.
    Ready(v1::HelloReply),
    /// A request was answered.
    Answer {
        /// What [`Connection::send`] returned.
        correlation: u64,
        /// The answer, good or bad.
        answer: Result<Response, ServerError>,
    },
}

/// Why a connection ended.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The peer refused the hello, or closed the connection with a reason.
    #[error("{}: {}", .0.code, .0.message.message)]
    Refused(ServerError),
    /// The peer's bytes are not this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer answered what was not asked.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
}

/// Why a request was not taken. Nothing was sent.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SendError {
    /// The hello has not been accepted yet.
    #[error("the connection is not ready")]
    NotReady,
    /// As many requests are in flight as a connection carries.
    #[error("too many requests are in flight on the connection")]
    Full,
    /// The request is larger than the peer accepts.
    #[error("the request has {bytes} bytes; the peer accepts {limit}")]
    TooLarge {
        /// Of the request's body.
        bytes: usize,
        /// What the peer accepts.
        limit: usize,
    },
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    reader: FrameReader,
    outgoing: BytesMut,
    ready: bool,
    /// The largest body that the peer accepts.
    body_bytes_max: usize,
    next_correlation: u64,
    /// Correlation id to the kind of its answer; at most [`IN_FLIGHT_MAX`].
    in_flight: BTreeMap<u64, FrameKind>,
}

impl Connection {
    /// A connection that is about to say hello.
    pub fn new(greeting: &Greeting) -> Self {
        let hello = v1::Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster_name: greeting.cluster_name.clone(),
            token: greeting.token.clone(),
            wanted_core_plus_one: greeting.core.map_or(0, |core| u32::from(core) + 1),
            node: None,
            client: greeting.client_name.clone(),
            remembered: None,
        };
        let mut outgoing = BytesMut::new();
        frame::encode(&mut outgoing, Flags::NONE, HELLO_CORRELATION, &hello)
            .expect("names and tokens are far smaller than the largest frame");
        Self {
            reader: FrameReader::new(BODY_BYTES_MAX),
            outgoing,
            ready: false,
            body_bytes_max: BODY_BYTES_MAX,
            next_correlation: HELLO_CORRELATION + 1,
            in_flight: BTreeMap::new(),
        }
    }

    /// Appends a request to what is to be sent; its answer carries the returned correlation id.
    pub fn send(&mut self, request: &Request) -> Result<u64, SendError> {
        if !self.ready {
            return Err(SendError::NotReady);
        }
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return Err(SendError::Full);
        }
        let before = self.outgoing.len();
        let correlation = self.next_correlation;
        let encoded = request.encode(&mut self.outgoing, correlation);
        let bytes = match encoded {
            Ok(()) => self.outgoing.len() - before - frame::HEADER_BYTES,
            Err(FrameError::TooLong { length, .. }) => length,
            Err(other) => unreachable!("encoding fails by length alone, not by: {other}"),
        };
        if bytes > self.body_bytes_max {
            self.outgoing.truncate(before);
            return Err(SendError::TooLarge { bytes, limit: self.body_bytes_max });
        }
        self.next_correlation += 1;
        let expected = request.kind().reply().expect("a client sends requests only");
        self.in_flight.insert(correlation, expected);
        Ok(correlation)
    }

    /// Requests that have been sent and not been answered.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What is to be written to the socket; take from the front what was written.
    pub fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Where the next bytes from the socket go; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.reader.space()
    }

    /// So many bytes have been read into [`Connection::space`].
    pub fn received(&mut self, bytes: usize) {
        self.reader.advance(bytes);
    }

    /// What the received bytes mean; `None` = more are needed.
    pub fn next_event(&mut self) -> Result<Option<Event>, ConnectionError> {
        match self.reader.next_frame()? {
            None => Ok(None),
            Some(frame) if self.ready => self.answer(&frame).map(Some),
            Some(frame) => self.greeted(&frame).map(Some),
        }
    }

    fn greeted(&mut self, frame: &Frame) -> Result<Event, ConnectionError> {
        if frame.kind == FrameKind::Error {
            return Err(ConnectionError::Refused(ServerError::new(frame.decode()?)));
        }
        let reply: v1::HelloReply = frame.decode()?;
        if reply.protocol_version != PROTOCOL_VERSION {
            return Err(ConnectionError::Protocol(format!(
                "it speaks version {} and this client version {PROTOCOL_VERSION}",
                reply.protocol_version
            )));
        }
        if reply.frame_bytes_max != 0 {
            self.body_bytes_max = BODY_BYTES_MAX.min(reply.frame_bytes_max as usize);
        }
        self.ready = true;
        Ok(Event::Ready(reply))
    }

    fn answer(&mut self, frame: &Frame) -> Result<Event, ConnectionError> {
        let correlation = frame.correlation;
        if correlation == 0 && frame.kind == FrameKind::Error {
            return Err(ConnectionError::Refused(ServerError::new(frame.decode()?)));
        }
        let Some(expected) = self.in_flight.remove(&correlation) else {
            return Err(ConnectionError::Protocol(format!(
                "a {} frame answers the unknown correlation id {correlation}",
                frame.kind
            )));
        };
        let answer = if frame.kind == FrameKind::Error {
            Err(ServerError::new(frame.decode()?))
        } else {
            Ok(Response::decode(expected, frame)?)
        };
        Ok(Event::Answer { correlation, answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use krita_proto::error::ErrorCode;

    fn greeting() -> Greeting {
        Greeting {
            cluster_name: "c".to_owned(),
            token: "t".to_owned(),
            core: Some(0),
            client_name: "test".to_owned(),
        }
    }

    fn feed<M: frame::FrameMessage>(connection: &mut Connection, correlation: u64, message: &M) {
        let mut bytes = BytesMut::new();
        frame::encode(&mut bytes, Flags::NONE, correlation, message).unwrap();
        // Byte by byte: no boundary of a read means anything.
        for byte in bytes {
            connection.space()[0] = byte;
            connection.received(1);
        }
    }

    fn ready() -> Connection {
        let mut connection = Connection::new(&greeting());
        connection.outgoing().clear();
        let reply = v1::HelloReply { protocol_version: 1, frame_bytes_max: 1000, ..Default::default() };
        feed(&mut connection, HELLO_CORRELATION, &reply);
        assert_eq!(connection.next_event(), Ok(Some(Event::Ready(reply))));
        connection
    }

    fn get(key: &'static str) -> Request {
        Request::Get(v1::Get { key: key.into(), timeout_ms: 5, consistency: 0 })
    }

    #[test]
    fn the_hello_is_this_to_the_byte() {
        let mut connection = Connection::new(&greeting());
        let expected =
            b"\x1c\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\x08\x01\x12\x01c\x1a\x01t\x20\x01\x32\x04test";
        assert_eq!(&connection.outgoing()[..], expected);
        assert_eq!(connection.send(&get("k")), Err(SendError::NotReady));
    }

    #[test]
    fn answers_come_in_any_order() {
        let mut connection = ready();
        let [first, second] = [get("a"), get("b")].map(|request| connection.send(&request).unwrap());
        let reply = v1::GetReply { found: true, value: "v".into(), ..Default::default() };
        feed(&mut connection, second, &reply);
        let error = v1::Error { code: ErrorCode::NotLeader as u32, ..Default::default() };
        feed(&mut connection, first, &error);
        let answer = Ok(Response::Get(reply));
        assert_eq!(connection.next_event(), Ok(Some(Event::Answer { correlation: second, answer })));
        let answer = Err(ServerError::new(error));
        assert_eq!(connection.next_event(), Ok(Some(Event::Answer { correlation: first, answer })));
        assert_eq!((connection.next_event(), connection.in_flight()), (Ok(None), 0));
    }

    #[test]
    fn a_peer_that_breaks_the_protocol_is_left() {
        let mut strange = ready();
        feed(&mut strange, 99, &v1::GetReply::default());
        assert!(matches!(strange.next_event(), Err(ConnectionError::Protocol(_))));

        let mut mismatched = ready();
        let correlation = mismatched.send(&get("k")).unwrap();
        feed(&mut mismatched, correlation, &v1::WriteReply::default());
        assert!(matches!(mismatched.next_event(), Err(ConnectionError::Frame(_))));

        let mut closing = ready();
        feed(&mut closing, 0, &v1::Error { code: ErrorCode::NotReady as u32, ..Default::default() });
        assert!(matches!(closing.next_event(), Err(ConnectionError::Refused(_))));

        let mut other_version = Connection::new(&greeting());
        feed(&mut other_version, HELLO_CORRELATION, &v1::HelloReply::default());
        assert!(matches!(other_version.next_event(), Err(ConnectionError::Protocol(_))));

        let mut no_krita = Connection::new(&greeting());
        let page = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        no_krita.space()[..page.len()].copy_from_slice(page);
        no_krita.received(page.len());
        assert!(matches!(no_krita.next_event(), Err(ConnectionError::Frame(_))));
    }

    #[test]
    fn what_is_in_flight_and_what_is_sent_are_bounded() {
        let mut connection = ready();
        let large = Request::Put(v1::Put { value: vec![0; 2000].into(), ..Default::default() });
        assert!(matches!(connection.send(&large), Err(SendError::TooLarge { limit: 1000, .. })));
        assert!(connection.outgoing().is_empty(), "nothing of it is sent");
        for _ in 0..IN_FLIGHT_MAX {
            connection.send(&get("k")).unwrap();
        }
        assert_eq!(connection.send(&get("k")), Err(SendError::Full));
    }
}
