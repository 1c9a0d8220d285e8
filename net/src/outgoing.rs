//! The write side of a connection: a bounded queue of encoded bytes and the one task that writes them.
//!
//! Frames are encoded straight into the queue. While one write is under way the next frames gather, and then go
//! out together in one write: under load a round of answers costs one system call and one TLS record chain,
//! without a timer and without waiting when there is no load.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::io::AsyncWrite;
use krita_proto::frame::{self, Flags, FrameError, FrameKind, FrameMessage};
use krita_runtime::{Instant, Notify};

use crate::NetRuntime;
use crate::transport::Transport;
use crate::waiting::{Alarm, Waiters};

/// A write buffer that has grown beyond this is given back once it is written.
const BUFFER_BYTES_KEPT: usize = 256 * 1024;

/// A frame that was not queued.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The queue holds as many bytes as it may; wait with [`FrameSender::room`], or drop the frame.
    #[error("the connection's outgoing queue is full")]
    Full,
    /// The connection is closing or closed.
    #[error("the connection is closed: {0}")]
    Closed(Rc<str>),
    /// The message does not fit a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Queues frames on a connection. Cheap to clone; belongs to the connection's core.
#[derive(Clone)]
pub struct FrameSender {
    queue: Rc<Queue>,
}

pub(crate) struct Queue {
    /// Encoded frames that no write has taken yet.
    waiting: RefCell<BytesMut>,
    /// Bytes of the write under way.
    writing: Cell<usize>,
    /// A frame is refused once `waiting + writing` reaches this; so one frame may stand over it.
    bytes_max: usize,
    phase: RefCell<Phase>,
    /// Wakes the writer.
    work: Notify,
    /// Who waits for room or for the end.
    changed: Waiters,
    bytes_written: Cell<u64>,
    last_write: Cell<Instant>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    Open,
    /// What is queued still goes out.
    Closing(Rc<str>),
    Closed(Rc<str>),
    /// Writing has failed; what the other side said before may still be read.
    Failed(Rc<str>),
}

/// How the write side ended.
pub(crate) struct Ending {
    pub(crate) reason: Rc<str>,
    /// Writing failed, rather than that this side closed.
    pub(crate) failed: bool,
}

impl FrameSender {
    pub(crate) fn new(bytes_max: usize, now: Instant) -> Self {
        Self {
            queue: Rc::new(Queue {
                waiting: RefCell::default(),
                writing: Cell::new(0),
                bytes_max,
                phase: RefCell::new(Phase::Open),
                work: Notify::new(),
                changed: Waiters::default(),
                bytes_written: Cell::new(0),
                last_write: Cell::new(now),
            }),
        }
    }

    /// Queues a frame with `message` as its body.
    pub fn send<M: FrameMessage>(
        &self,
        flags: Flags,
        correlation: u64,
        message: &M,
    ) -> Result<(), SendError> {
        self.queue(|waiting| frame::encode(waiting, flags, correlation, message))
    }

    /// Queues a frame whose body is encoded already.
    pub fn send_body(
        &self,
        kind: FrameKind,
        flags: Flags,
        correlation: u64,
        body: &[u8],
    ) -> Result<(), SendError> {
        self.queue(|waiting| frame::encode_body(waiting, kind, flags, correlation, body))
    }

    /// Waits until the queue accepts a frame (or is closed, which the next send then says).
    pub async fn room(&self) {
        poll_fn(|context| {
            if !self.is_open() || self.queued_bytes() < self.queue.bytes_max {
                return Poll::Ready(());
            }
            self.queue.changed.register(context);
            Poll::Pending
        })
        .await;
    }

    /// Waits for room, then queues. For senders that may be slowed down; the writer's stall limit bounds the wait.
    pub async fn send_when_room<M: FrameMessage>(
        &self,
        flags: Flags,
        correlation: u64,
        message: &M,
    ) -> Result<(), SendError> {
        loop {
            match self.send(flags, correlation, message) {
                Err(SendError::Full) => self.room().await,
                done => return done,
            }
        }
    }

    /// Bytes that have been queued and not been handed to the system.
    pub fn queued_bytes(&self) -> usize {
        self.queue.waiting.borrow().len() + self.queue.writing.get()
    }

    /// Bytes that have been handed to the system (before encryption).
    pub fn bytes_written(&self) -> u64 {
        self.queue.bytes_written.get()
    }

    /// Whether frames can still be queued.
    pub fn is_open(&self) -> bool {
        *self.queue.phase.borrow() == Phase::Open
    }

    /// Accepts no more frames; what is queued still goes out, then the stream is closed. The receiver ends with
    /// `reason` too. Later calls change nothing.
    pub fn close(&self, reason: &str) {
        let mut phase = self.queue.phase.borrow_mut();
        if *phase == Phase::Open {
            *phase = Phase::Closing(reason.into());
            drop(phase);
            self.queue.work.notify();
            self.queue.changed.wake_all();
        }
    }

    /// Waits until all that was queued has been written, or never will be.
    pub async fn closed(&self) {
        poll_fn(|context| {
            if matches!(*self.queue.phase.borrow(), Phase::Closed(_) | Phase::Failed(_)) {
                return Poll::Ready(());
            }
            self.queue.changed.register(context);
            Poll::Pending
        })
        .await;
    }

    /// When bytes were last handed to the system.
    pub(crate) fn last_write(&self) -> Instant {
        self.queue.last_write.get()
    }

    /// Why the connection ended, if it did; else this task is woken when it does.
    pub(crate) fn poll_ended(&self, context: &Context<'_>) -> Poll<Ending> {
        match &*self.queue.phase.borrow() {
            Phase::Open => {
                self.queue.changed.register(context);
                Poll::Pending
            }
            Phase::Closing(reason) | Phase::Closed(reason) => {
                Poll::Ready(Ending { reason: reason.clone(), failed: false })
            }
            Phase::Failed(reason) => Poll::Ready(Ending { reason: reason.clone(), failed: true }),
        }
    }

    fn queue(&self, encode: impl FnOnce(&mut BytesMut) -> Result<(), FrameError>) -> Result<(), SendError> {
        match &*self.queue.phase.borrow() {
            Phase::Open => {}
            Phase::Closing(reason) | Phase::Closed(reason) | Phase::Failed(reason) => {
                return Err(SendError::Closed(reason.clone()));
            }
        }
        if self.queued_bytes() >= self.queue.bytes_max {
            return Err(SendError::Full);
        }
        encode(&mut self.queue.waiting.borrow_mut())?;
        self.queue.work.notify();
        Ok(())
    }
}

/// Writes all that is queued until the connection closes or fails. One task per connection.
pub(crate) async fn write_queued<R: NetRuntime>(
    runtime: R,
    transport: Rc<RefCell<Transport<R::Stream>>>,
    sender: FrameSender,
    stall_timeout: Duration,
) {
    let mut writer = Writer { runtime, transport, stall_timeout, alarm: Alarm::default() };
    let queue = &sender.queue;
    let outcome = write_until_closed(&mut writer, queue).await;
    let ended = match (outcome, &*queue.phase.borrow()) {
        (Err(error), _) => Phase::Failed(format!("writing failed: {error}").into()),
        (Ok(()), Phase::Closing(reason)) => Phase::Closed(reason.clone()),
        (Ok(()), Phase::Open | Phase::Closed(_) | Phase::Failed(_)) => {
            unreachable!("the writer ends well only when it was told to")
        }
    };
    // A stream that has failed cannot be closed any better, and nothing waits for the answer.
    let _ = writer.step(|transport, context| transport.poll_close(context)).await;
    *queue.phase.borrow_mut() = ended;
    *queue.waiting.borrow_mut() = BytesMut::new();
    queue.writing.set(0);
    queue.changed.wake_all();
}

async fn write_until_closed<R: NetRuntime>(writer: &mut Writer<R>, queue: &Queue) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        std::mem::swap(&mut buffer, &mut *queue.waiting.borrow_mut());
        if buffer.is_empty() {
            if *queue.phase.borrow() != Phase::Open {
                return Ok(());
            }
            queue.work.notified().await;
            continue;
        }
        queue.writing.set(buffer.len());
        writer.write_all(&buffer, queue).await?;
        writer.step(|transport, context| transport.poll_flush(context)).await?;
        queue.last_write.set(writer.runtime.now());
        queue.writing.set(0);
        buffer.clear();
        if buffer.capacity() > BUFFER_BYTES_KEPT {
            buffer = BytesMut::new();
        }
        queue.changed.wake_all();
    }
}

struct Writer<R: NetRuntime> {
    runtime: R,
    transport: Rc<RefCell<Transport<R::Stream>>>,
    stall_timeout: Duration,
    alarm: Alarm,
}

impl<R: NetRuntime> Writer<R> {
    async fn write_all(&mut self, mut bytes: &[u8], queue: &Queue) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.step(|transport, context| transport.poll_write(context, bytes)).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
            queue.writing.set(bytes.len());
            queue.bytes_written.set(queue.bytes_written.get() + written as u64);
        }
        Ok(())
    }

    /// One step of writing: fails if the other side takes nothing for as long as the stall limit.
    async fn step<T>(
        &mut self,
        mut poll: impl FnMut(Pin<&mut Transport<R::Stream>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> io::Result<T> {
        let mut deadline = None;
        poll_fn(|context| {
            if let Poll::Ready(done) = poll(Pin::new(&mut *self.transport.borrow_mut()), context) {
                return Poll::Ready(done);
            }
            let deadline = *deadline.get_or_insert_with(|| self.runtime.now() + self.stall_timeout);
            self.alarm
                .poll_passed(&self.runtime, deadline, context)
                .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the other side takes no bytes")))
        })
        .await
    }
}
