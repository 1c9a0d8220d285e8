//! A framed connection: one task receives, any task of the core sends.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::io::AsyncRead;
use krita_proto::error::ErrorCode;
use krita_proto::frame::{BODY_BYTES_MAX, Flags, Frame, FrameError, FrameReader, HELLO_BODY_BYTES_MAX};
use krita_proto::v1;
use krita_runtime::{Instant, TaskClass};

use crate::NetRuntime;
use crate::outgoing::{Ending, FrameSender, SendError, write_queued};
use crate::transport::{Transport, linger};
use crate::waiting::Alarm;

/// The bounds of a connection.
#[derive(Clone, Debug)]
pub struct ConnectionOptions {
    /// Largest frame body received once the hello is accepted.
    pub body_bytes_max: usize,
    /// A frame is not queued while this many bytes wait to be written.
    pub outgoing_bytes_max: usize,
    /// Ends a connection on which nothing moves in either direction for this long; `None` never does.
    pub idle_timeout: Option<Duration>,
    /// A frame that has begun must be whole within this time, and one second more for each
    /// [`FRAME_BYTES_PER_SECOND_MIN`] of its length.
    pub frame_timeout: Duration,
    /// Ends a connection whose other side takes no bytes for this long while some wait.
    pub stall_timeout: Duration,
}

/// The slowest that a large frame may arrive.
pub const FRAME_BYTES_PER_SECOND_MIN: usize = 256 * 1024;

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            body_bytes_max: BODY_BYTES_MAX,
            outgoing_bytes_max: 4 * 1024 * 1024,
            idle_timeout: None,
            frame_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
        }
    }
}

/// Why no further frame comes. All but [`ReceiveError::Frame`] with a recoverable error end the connection.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The other side closed the connection between two frames.
    #[error("closed by the other side")]
    Closed,
    /// The other side closed the connection within a frame.
    #[error("closed by the other side within a frame")]
    Truncated,
    /// This side closed it, or could not write to it.
    #[error("closed here: {0}")]
    Ended(Rc<str>),
    /// The stream failed.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no frame. What is recoverable has been answered already where this side was connected to, and
    /// is not returned there.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that only nodes may send came from something else.
    #[error("a {0} frame on a connection that is not a node's")]
    NotANode(krita_proto::frame::FrameKind),
    /// Nothing moved for the idle limit.
    #[error("idle for too long")]
    Idle,
    /// A frame began and did not become whole in time.
    #[error("a frame did not become whole in time")]
    FrameTimeout,
}

/// What is known of the other side of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PeerFacts {
    /// It may send frames of nodes.
    pub(crate) is_node: bool,
    /// It connected to us (rather than we to it).
    pub(crate) connected_to_us: bool,
}

/// A connection in one piece; see [`Connection::split`].
pub struct Connection<R: NetRuntime> {
    receiver: FrameReceiver<R>,
    sender: FrameSender,
}

impl<R: NetRuntime> Connection<R> {
    /// Starts the writer's task. `reader` may hold bytes that have been received already.
    pub(crate) fn start(
        runtime: &R,
        transport: Transport<R::Stream>,
        reader: FrameReader,
        facts: PeerFacts,
        options: &ConnectionOptions,
    ) -> Self {
        let now = runtime.now();
        let peer_address = transport.peer_address();
        let transport = Rc::new(RefCell::new(transport));
        let sender = FrameSender::new(options.outgoing_bytes_max, now);
        let writer = write_queued(runtime.clone(), transport.clone(), sender.clone(), options.stall_timeout);
        runtime.spawn(TaskClass::Foreground, "connection-writer", writer);
        let receiver = FrameReceiver {
            runtime: runtime.clone(),
            transport,
            reader,
            sender: sender.clone(),
            facts,
            peer_address,
            options: options.clone(),
            alarm: Alarm::default(),
            last_read: now,
            frame_started: now,
            bytes_read: Rc::new(Cell::new(0)),
        };
        Self { receiver, sender }
    }

    /// A connection over a plain stream without any hello: for tests and tools. Frames of nodes are allowed.
    pub fn plain(runtime: &R, stream: R::Stream, options: &ConnectionOptions) -> Self {
        let facts = PeerFacts { is_node: true, connected_to_us: false };
        let reader = FrameReader::new(options.body_bytes_max);
        Self::start(runtime, Transport::Plain(stream), reader, facts, options)
    }

    /// The other side is a node: its certificate says so, or, without TLS, its hello.
    pub fn peer_is_node(&self) -> bool {
        self.receiver.facts.is_node
    }

    /// Who is at the other end.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.receiver.peer_address
    }

    /// Answers the hello of an accepted connection, and from here on takes frames of full size.
    pub fn accept(&mut self, hello_correlation: u64, reply: &v1::HelloReply) -> Result<(), SendError> {
        self.sender.send(Flags::NONE, hello_correlation, reply)?;
        self.receiver.reader.set_body_bytes_max(self.receiver.options.body_bytes_max);
        Ok(())
    }

    /// Tells the other side why it is not served, sees to it that it can read that, and closes. Takes at most
    /// the stall limit and a second.
    pub async fn refuse(self, error: &v1::Error) {
        // A queue that is full or closed cannot carry the refusal: closing says enough then.
        let _ = self.sender.send(Flags::NONE, 0, error);
        self.finish("refused").await;
    }

    /// Writes what is queued, closes, and listens a moment longer, so that a reset does not overtake the last
    /// words.
    pub(crate) async fn finish(self, reason: &str) {
        self.sender.close(reason);
        self.sender.closed().await;
        let transport = &self.receiver.transport;
        linger(&self.receiver.runtime, |context, scratch| {
            Pin::new(&mut *transport.borrow_mut()).poll_read(context, scratch)
        })
        .await;
    }

    /// The two halves: one task receives; the sender may be cloned to any task of this core.
    ///
    /// Dropping the receiver closes the connection, after what is queued has been written.
    pub fn split(self) -> (FrameReceiver<R>, FrameSender) {
        (self.receiver, self.sender)
    }

    /// See [`FrameReceiver::receive`].
    pub async fn receive(&mut self) -> Result<Frame, ReceiveError> {
        self.receiver.receive().await
    }

    /// The sending half.
    pub fn sender(&self) -> &FrameSender {
        &self.sender
    }

    pub(crate) fn set_peer_is_node(&mut self, is_node: bool) {
        self.receiver.facts.is_node = is_node;
    }

    pub(crate) fn raise_frame_limit(&mut self) {
        self.receiver.reader.set_body_bytes_max(self.receiver.options.body_bytes_max);
    }
}

/// The receiving half of a connection.
pub struct FrameReceiver<R: NetRuntime> {
    runtime: R,
    transport: Rc<RefCell<Transport<R::Stream>>>,
    reader: FrameReader,
    sender: FrameSender,
    facts: PeerFacts,
    peer_address: Option<SocketAddr>,
    options: ConnectionOptions,
    alarm: Alarm,
    last_read: Instant,
    /// When the first byte of the frame in front arrived, if there is one.
    frame_started: Instant,
    bytes_read: Rc<Cell<u64>>,
}

impl<R: NetRuntime> FrameReceiver<R> {
    /// The next frame. After an error the connection is of no more use; drop it.
    ///
    /// Frames of unknown kind are answered with an error here, if the other side connected to us, and skipped.
    /// May be dropped at any point without losing bytes.
    pub async fn receive(&mut self) -> Result<Frame, ReceiveError> {
        loop {
            if let Some(frame) = self.try_next()? {
                return Ok(frame);
            }
            if self.read().await? == 0 {
                let whole = self.reader.pending_bytes() == 0;
                return Err(if whole { ReceiveError::Closed } else { ReceiveError::Truncated });
            }
        }
    }

    /// The next frame of those that have been read already, without waiting: take all of them, answer, and only
    /// then wait again, so that the answers of a round share one write.
    pub fn try_next(&mut self) -> Result<Option<Frame>, ReceiveError> {
        loop {
            match self.reader.next_frame() {
                Ok(Some(frame)) if frame.kind.is_between_nodes() && !self.facts.is_node => {
                    self.answer(
                        frame.correlation,
                        ErrorCode::PermissionDenied,
                        "this frame is for nodes only",
                    );
                    return Err(ReceiveError::NotANode(frame.kind));
                }
                Ok(Some(frame)) => {
                    self.frame_started = self.last_read;
                    return Ok(Some(frame));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.frame_started = self.last_read;
                    let correlation = error.recoverable().unwrap_or(0);
                    let skip = error.recoverable().is_some();
                    if !self.facts.connected_to_us {
                        return Err(error.into());
                    }
                    let told = self.answer(correlation, ErrorCode::InvalidArgument, &error.to_string());
                    if !skip || correlation == 0 || !told {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Who is at the other end.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.peer_address
    }

    /// The other side is a node.
    pub fn peer_is_node(&self) -> bool {
        self.facts.is_node
    }

    /// Bytes received (after decryption). The counter goes on counting in the handle that is returned.
    pub fn bytes_read(&self) -> Rc<Cell<u64>> {
        self.bytes_read.clone()
    }

    fn answer(&self, correlation: u64, code: ErrorCode, message: &str) -> bool {
        let error = v1::Error { code: code as u32, message: message.into(), ..Default::default() };
        self.sender.send(Flags::NONE, correlation, &error).is_ok()
    }

    /// Reads once. 0 is the end of the stream.
    async fn read(&mut self) -> Result<usize, ReceiveError> {
        poll_fn(|context| self.poll_read(context)).await
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, ReceiveError>> {
        let ended = self.sender.poll_ended(context);
        if let Poll::Ready(Ending { reason, failed: false }) = ended {
            return Poll::Ready(Err(ReceiveError::Ended(reason)));
        }
        let was_empty = self.reader.pending_bytes() == 0;
        let read = Pin::new(&mut *self.transport.borrow_mut()).poll_read(context, self.reader.space());
        if let Poll::Ready(read) = read {
            let read = read?;
            self.reader.advance(read);
            self.last_read = self.runtime.now();
            if was_empty {
                self.frame_started = self.last_read;
            }
            self.bytes_read.set(self.bytes_read.get() + read as u64);
            return Poll::Ready(Ok(read));
        }
        // Only now: why the other side takes nothing more may have been said before it went.
        if let Poll::Ready(Ending { reason, .. }) = ended {
            return Poll::Ready(Err(ReceiveError::Ended(reason)));
        }
        let (deadline, error) = if was_empty {
            let Some(idle) = self.options.idle_timeout else {
                return Poll::Pending;
            };
            (self.last_read.max(self.sender.last_write()) + idle, ReceiveError::Idle)
        } else {
            let seconds = self.reader.frame_bytes_announced().unwrap_or(0) / FRAME_BYTES_PER_SECOND_MIN;
            let allowed = self.options.frame_timeout + Duration::from_secs(seconds as u64);
            (self.frame_started + allowed, ReceiveError::FrameTimeout)
        };
        self.alarm.poll_passed(&self.runtime, deadline, context).map(|()| Err(error))
    }
}

impl<R: NetRuntime> Drop for FrameReceiver<R> {
    fn drop(&mut self) {
        self.sender.close("the receiver has ended");
    }
}

/// The reader of a connection before its hello.
pub(crate) fn hello_reader() -> FrameReader {
    FrameReader::new(HELLO_BODY_BYTES_MAX)
}
