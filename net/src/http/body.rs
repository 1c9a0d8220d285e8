//! The two kinds of body: [`IncomingBody`] is read from a connection, [`OutgoingBody`] is written to one. Both move in
//! pieces, with back-pressure, within bounds.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use krita_runtime::Instant;

use super::HeaderMap;
use super::monitor::{Active, Monitor};
use crate::connection::FRAME_BYTES_PER_SECOND_MIN;

/// Largest piece of an answer that is handed to a connection at once: HTTP/2 holds a piece that it was given, whatever
/// the other side's window is.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Memory for a body on the word of its announced length; beyond it memory follows what has really been sent.
const BODY_BYTES_ON_CREDIT: usize = 1024 * 1024;

/// Memory that the bodies of all requests of one core may hold. What [`IncomingBody::collect`] returns counts until
/// the last slice of it is dropped.
#[derive(Clone, Debug)]
pub struct BodyBudget {
    /// `used <= bytes_max`.
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl BodyBudget {
    /// A budget of this many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { used: Arc::default(), bytes_max }
    }

    /// Bytes that are held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn lease(&self) -> BodyLease {
        BodyLease { budget: self.clone(), bytes: 0 }
    }
}

/// A part of the budget; given back when dropped.
pub(super) struct BodyLease {
    budget: BodyBudget,
    bytes: usize,
}

impl BodyLease {
    /// Makes the lease at least this large; false if the budget does not allow it.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let fits = |used: usize| used.checked_add(more).filter(|sum| *sum <= self.budget.bytes_max);
        let taken = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if taken {
            self.bytes += more;
        }
        taken
    }
}

impl Drop for BodyLease {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A collected body with its part of the budget.
struct Leased {
    bytes: BytesMut,
    _lease: BodyLease,
}

impl AsRef<[u8]> for Leased {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why a body did not come whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is longer than it may be.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// It came too slowly.
    #[error("the body did not come in time")]
    Timeout,
    /// The bodies of this core's requests hold all the memory that they may.
    #[error("too many large requests at once")]
    Overloaded,
    /// The other side broke off, or broke the rules of HTTP.
    #[error("the body broke off: {0}")]
    Broken(#[from] hyper::Error),
}

/// What holds for the incoming bodies of one connection.
pub(super) struct BodyRules {
    pub(super) monitor: Rc<Monitor>,
    pub(super) budget: BodyBudget,
}

/// The body of a request, on its way in.
pub struct IncomingBody {
    inner: hyper::body::Incoming,
    rules: Rc<BodyRules>,
    /// When reading began; time that nobody reads does not count.
    began: Option<Instant>,
    received: usize,
}

impl IncomingBody {
    pub(super) fn new(inner: hyper::body::Incoming, rules: Rc<BodyRules>) -> Self {
        Self { inner, rules, began: None, received: 0 }
    }

    /// There is nothing (more) to read.
    pub fn is_end(&self) -> bool {
        self.inner.is_end_stream()
    }

    /// The length that the headers announce, if they do and it has not been read yet.
    pub fn announced_length(&self) -> Option<u64> {
        self.inner.size_hint().exact()
    }

    /// The next piece; `None` at the end. Trailers are dropped.
    ///
    /// # Errors
    /// See [`BodyError`]. After an error nothing more can be read.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, BodyError> {
        let monitor = self.rules.monitor.clone();
        let bytes_max = monitor.options.body_bytes_max;
        if self.announced_length().is_some_and(|length| length > bytes_max as u64) {
            return Err(BodyError::TooLarge(bytes_max));
        }
        let began = *self.began.get_or_insert_with(|| monitor.clock.now());
        loop {
            let seconds = (self.received / FRAME_BYTES_PER_SECOND_MIN) as u64;
            let deadline = began + monitor.options.body_timeout + Duration::from_secs(seconds);
            let mut alarm = None;
            let inner = &mut self.inner;
            let polled = poll_fn(|context| {
                if let Poll::Ready(frame) = Pin::new(&mut *inner).poll_frame(context) {
                    return Poll::Ready(Ok(frame));
                }
                // Most bodies are there already: no timer then.
                let left = || monitor.clock.sleep(deadline.since(monitor.clock.now()));
                alarm.get_or_insert_with(left).as_mut().poll(context).map(|()| Err(BodyError::Timeout))
            });
            let Some(frame) = polled.await?.transpose()? else { return Ok(None) };
            let Ok(data) = frame.into_data() else { continue };
            self.received += data.len();
            monitor.body_moved();
            if self.received > bytes_max {
                return Err(BodyError::TooLarge(bytes_max));
            }
            return Ok(Some(data));
        }
    }

    /// The whole body, if it has at most `bytes_max` bytes (and no more than the connection allows at all). It counts
    /// towards the core's [`BodyBudget`] until the last slice of it is dropped.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub async fn collect(mut self, bytes_max: usize) -> Result<Bytes, BodyError> {
        let announced = usize::try_from(self.announced_length().unwrap_or(0)).unwrap_or(usize::MAX);
        if announced > bytes_max {
            return Err(BodyError::TooLarge(bytes_max));
        }
        let mut lease = self.rules.budget.lease();
        let mut bytes = BytesMut::new();
        let credit = announced.min(BODY_BYTES_ON_CREDIT);
        if !lease.grow_to(credit) {
            return Err(BodyError::Overloaded);
        }
        bytes.reserve(credit);
        while let Some(chunk) = self.chunk().await? {
            let length = bytes.len() + chunk.len();
            if length > bytes_max {
                return Err(BodyError::TooLarge(bytes_max));
            }
            if length > bytes.capacity() {
                let capacity = length.max(bytes.capacity() * 2).min(bytes_max);
                if !lease.grow_to(capacity) {
                    return Err(BodyError::Overloaded);
                }
                bytes.reserve(capacity - bytes.len());
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() {
            return Ok(Bytes::new());
        }
        Ok(Bytes::from_owner(Leased { bytes, _lease: lease }))
    }
}

impl fmt::Debug for IncomingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingBody").field("received", &self.received).finish_non_exhaustive()
    }
}

/// The body of an answer.
pub struct OutgoingBody {
    content: Content,
    /// Set once a connection has taken the body over.
    watched: Option<Watched>,
}

/// An answer counts towards its connection and its core until it has been sent or dropped.
struct Watched {
    active: Active,
    _lease: BodyLease,
}

enum Content {
    Whole { bytes: Bytes, trailers: Option<HeaderMap> },
    Channel(Receiver),
}

impl fmt::Debug for OutgoingBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingBody").field("waiting_bytes", &self.waiting_bytes()).finish_non_exhaustive()
    }
}

impl OutgoingBody {
    /// No body.
    pub fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// All of it at once.
    pub fn full(bytes: Bytes) -> Self {
        Self::new(Content::Whole { bytes, trailers: None })
    }

    /// All of it at once, and trailers.
    pub fn with_trailers(bytes: Bytes, trailers: HeaderMap) -> Self {
        Self::new(Content::Whole { bytes, trailers: Some(trailers) })
    }

    /// A body that is made while it is sent. [`BodySender::send`] waits for the other side: one piece at most waits.
    pub fn channel() -> (BodySender, Self) {
        let state = Rc::new(RefCell::new(Channel::default()));
        (BodySender { state: state.clone() }, Self::new(Content::Channel(Receiver { state })))
    }

    fn new(content: Content) -> Self {
        Self { content, watched: None }
    }

    /// From now on the body counts.
    pub(super) fn watch(&mut self, active: Active, lease: BodyLease) {
        active.monitor().waits(self.waiting_bytes());
        if let Content::Channel(receiver) = &self.content {
            receiver.state.borrow_mut().monitor = Some(active.monitor().clone());
        }
        self.watched = Some(Watched { active, _lease: lease });
    }

    /// Bytes that wait for the other side to take them.
    pub(super) fn waiting_bytes(&self) -> usize {
        match &self.content {
            Content::Whole { bytes, .. } => bytes.len(),
            Content::Channel(receiver) => receiver.state.borrow().queue.iter().map(Bytes::len).sum(),
        }
    }
}

/// The body was given up by its maker: the stream is reset, or the connection closed, so that nobody takes the part
/// that was sent for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer was given up half-way")]
pub struct GivenUp;

impl http_body::Body for OutgoingBody {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        let polled = match &mut self.content {
            Content::Whole { bytes, trailers } if bytes.is_empty() => {
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Content::Whole { bytes, .. } => {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Content::Channel(receiver) => receiver.state.borrow_mut().poll_frame(context),
        };
        if let (Poll::Ready(Some(Ok(frame))), Some(watched)) = (&polled, &self.watched) {
            watched.active.monitor().taken(frame.data_ref().map_or(0, Bytes::len));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole { bytes, trailers } => bytes.is_empty() && trailers.is_none(),
            Content::Channel(receiver) => receiver.state.borrow().is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
            Content::Channel(_) => SizeHint::default(),
        }
    }
}

impl Drop for OutgoingBody {
    fn drop(&mut self) {
        if let Some(watched) = &self.watched {
            watched.active.monitor().taken(self.waiting_bytes());
        }
    }
}

/// What stands between a [`BodySender`] and its body.
#[derive(Default)]
struct Channel {
    monitor: Option<Rc<Monitor>>,
    queue: VecDeque<Bytes>,
    ending: Option<Ending>,
    /// The connection has dropped the body.
    reader_gone: bool,
    reader: Option<Waker>,
    sender: Option<Waker>,
}

enum Ending {
    Finished(Option<HeaderMap>),
    GivenUp,
    /// All has been taken.
    Taken,
}

impl Channel {
    fn is_end(&self) -> bool {
        self.queue.is_empty() && matches!(self.ending, Some(Ending::Finished(None) | Ending::Taken))
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        if let Some(front) = self.queue.front_mut() {
            let piece = front.split_to(front.len().min(PIECE_BYTES_MAX));
            if front.is_empty() {
                self.queue.pop_front();
                wake(&mut self.sender);
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match self.ending.take() {
            None => {
                self.reader = Some(context.waker().clone());
                Poll::Pending
            }
            Some(ending) => {
                self.ending = Some(Ending::Taken);
                Poll::Ready(match ending {
                    Ending::Finished(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
                    Ending::Finished(None) | Ending::Taken => None,
                    Ending::GivenUp => Some(Err(GivenUp)),
                })
            }
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

struct Receiver {
    state: Rc<RefCell<Channel>>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.reader_gone = true;
        state.queue.clear();
        wake(&mut state.sender);
    }
}

/// The other side has gone: make no more of the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("nobody reads the answer any more")]
pub struct ReaderGone;

/// Makes a body while it is sent. Dropping it without [`BodySender::finish`] gives the body up, so that the other side
/// sees that it is not whole.
pub struct BodySender {
    state: Rc<RefCell<Channel>>,
}

impl BodySender {
    /// Queues a piece, and waits until the other side has begun to take it whole.
    ///
    /// # Errors
    /// [`ReaderGone`], also while it waits.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), ReaderGone> {
        if !bytes.is_empty() {
            let mut state = self.state.borrow_mut();
            if state.reader_gone {
                return Err(ReaderGone);
            }
            if let Some(monitor) = &state.monitor {
                monitor.waits(bytes.len());
            }
            state.queue.push_back(bytes);
            wake(&mut state.reader);
        }
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.reader_gone {
                return Poll::Ready(Err(ReaderGone));
            }
            if state.queue.is_empty() {
                return Poll::Ready(Ok(()));
            }
            state.sender = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Completes when the other side has gone, or has taken the body to its end.
    pub async fn reader_gone(&mut self) {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.reader_gone {
                return Poll::Ready(());
            }
            state.sender = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The body is whole; trailers, if there are any, end it.
    pub fn finish(self, trailers: Option<HeaderMap>) {
        let mut state = self.state.borrow_mut();
        state.ending = Some(Ending::Finished(trailers));
        wake(&mut state.reader);
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if state.ending.is_none() {
            state.ending = Some(Ending::GivenUp);
            wake(&mut state.reader);
        }
    }
}
