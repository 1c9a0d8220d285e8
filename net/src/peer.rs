//! Connections to the cores of other nodes, kept alive.
//!
//! A [`PeerLink`] owns one outgoing connection from this core to one core of another node. It connects, and after
//! each loss connects again, with growing and jittered pauses. Two kinds of traffic share it: Raft's bursts, which
//! are dropped rather than queued without bound (Raft sends again), and requests, which are answered by
//! correlation id within a deadline.
//!
//! What the other node has to say by itself comes on its own link to us, never on this one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_channel::oneshot;
use krita_proto::error::ErrorCode;
use krita_proto::frame::{Flags, Frame, FrameError, FrameKind, FrameMessage, KindRole, RequestMessage};
use krita_proto::v1;
use krita_runtime::{Instant, TaskClass, timeout};

use crate::NetRuntime;
use crate::connect::{ConnectOptions, connect};
use crate::connection::{FrameReceiver, ReceiveError};
use crate::outgoing::{FrameSender, SendError};
use crate::waiting::Waiters;

/// A link that has held this long starts over with the shortest pause.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// What a link needs to know.
#[derive(Clone)]
pub struct PeerOptions {
    /// Where to, how, and the connection's bounds.
    pub connect: ConnectOptions,
    /// The hello of each new connection.
    pub hello: Rc<dyn Fn() -> v1::Hello>,
    /// Judges who answered; an error text ends the attempt and is shown as the link's problem.
    pub check: Rc<HelloCheck>,
    /// Told of each gain and loss. Runs on the link's task: it must be short, and may use the link.
    pub on_event: Rc<dyn Fn(LinkEvent)>,
    /// The first pause after a loss; it doubles up to `pause_max`.
    pub pause_min: Duration,
    /// The longest pause between attempts.
    pub pause_max: Duration,
    /// Most requests that await their answer.
    pub requests_max: usize,
}

/// Judges the answer to a hello; see [`PeerOptions::check`].
pub type HelloCheck = dyn Fn(&v1::HelloReply) -> Result<(), String>;

impl PeerOptions {
    /// The usual bounds, and no checks.
    pub fn new(connect: ConnectOptions, hello: Rc<dyn Fn() -> v1::Hello>) -> Self {
        Self {
            connect,
            hello,
            check: Rc::new(|_| Ok(())),
            on_event: Rc::new(|_| {}),
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_secs(1),
            requests_max: 4096,
        }
    }
}

/// What happens to a link.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// There is a connection; the other side's answer to our hello.
    Connected(Box<v1::HelloReply>),
    /// The connection has gone: bursts that were queued on it may not have arrived.
    Lost {
        /// Why, for people.
        problem: String,
    },
}

/// How a link does, for health output.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LinkState {
    /// There is a connection now.
    pub connected: bool,
    /// What went wrong last; empty while connected and before the first attempt has failed.
    pub problem: String,
    /// Connections made since the start.
    pub connections: u64,
    /// Bursts that were dropped because the link was down or its queue full.
    pub bursts_dropped: u64,
}

/// A request without an answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// It was not sent, so it has done nothing.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It was sent, and the connection was lost before the answer: it may have been carried out.
    #[error("no answer: {0}")]
    Lost(String),
    /// It was sent, and the deadline passed before the answer: it may be, or have been, carried out.
    #[error("no answer in time")]
    Timeout,
    /// The other side answered with an error.
    #[error("{}: {}", ErrorCode::from_number(.0.code), .0.message)]
    Refused(Box<v1::Error>),
    /// The answer is not what the request calls for.
    #[error("unfit answer: {0}")]
    Answer(#[from] FrameError),
}

/// One kept-alive connection to one core of one node. Cheap to clone; belongs to this core.
pub struct PeerLink<R: NetRuntime> {
    inner: Rc<Inner<R>>,
}

impl<R: NetRuntime> Clone for PeerLink<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<R: NetRuntime> {
    runtime: R,
    options: PeerOptions,
    state: RefCell<LinkState>,
    /// There while connected.
    sender: RefCell<Option<FrameSender>>,
    next_correlation: Cell<u64>,
    /// By correlation id; bounded by `requests_max`. All are of the present connection.
    awaiting: RefCell<BTreeMap<u64, oneshot::Sender<Result<Frame, RequestError>>>>,
    stopped: Cell<bool>,
    changed: Waiters,
}

impl<R: NetRuntime> PeerLink<R> {
    /// Starts connecting.
    pub fn start(runtime: &R, options: PeerOptions) -> Self {
        let inner = Rc::new(Inner {
            runtime: runtime.clone(),
            options,
            state: RefCell::default(),
            sender: RefCell::new(None),
            next_correlation: Cell::new(2),
            awaiting: RefCell::default(),
            stopped: Cell::new(false),
            changed: Waiters::default(),
        });
        runtime.spawn(TaskClass::Foreground, "peer-link", inner.clone().run());
        Self { inner }
    }

    /// How the link does.
    pub fn state(&self) -> LinkState {
        self.inner.state.borrow().clone()
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.inner.sender.borrow().is_some()
    }

    /// Bytes that wait to be written; 0 without a connection.
    pub fn queued_bytes(&self) -> usize {
        self.inner.sender.borrow().as_ref().map_or(0, FrameSender::queued_bytes)
    }

    /// Sends a message that is not answered, such as a [`v1::RaftBurst`]. False: it was dropped, because there is no
    /// connection or its queue is full.
    pub fn send_one_way<M: FrameMessage>(&self, message: &M) -> bool {
        debug_assert_eq!(M::KIND.role(), KindRole::OneWay);
        let sender = self.inner.sender.borrow();
        let sent = sender.as_ref().is_some_and(|sender| sender.send(Flags::NONE, 0, message).is_ok());
        if !sent {
            self.inner.state.borrow_mut().bursts_dropped += 1;
        }
        sent
    }

    /// Sends a request and waits for its answer, at most until `deadline`.
    ///
    /// While the link has never failed it waits for the first connection; once it is known to be down the request
    /// fails at once. Dropping the future forgets the answer, not the request.
    pub async fn request<Q: RequestMessage>(
        &self,
        request: &Q,
        deadline: Instant,
    ) -> Result<Q::Reply, RequestError> {
        let send = |sender: &FrameSender, correlation| sender.send(Flags::NONE, correlation, request);
        let frame = self.exchange(send, deadline).await?;
        frame.decode().map_err(RequestError::Answer)
    }

    /// Passes on a client's request as it came (it is flagged as forwarded) and gives the answer as it comes: a
    /// reply frame or an `Error` frame, with a correlation id of this link, which means nothing to the client.
    pub async fn forward(
        &self,
        kind: FrameKind,
        body: &Bytes,
        deadline: Instant,
    ) -> Result<Frame, RequestError> {
        let send =
            |sender: &FrameSender, correlation| sender.send_body(kind, Flags::FORWARDED, correlation, body);
        match self.exchange(send, deadline).await {
            Err(RequestError::Refused(error)) => Ok(Frame {
                kind: FrameKind::Error,
                flags: Flags::NONE,
                correlation: 0,
                body: prost::Message::encode_to_vec(&*error).into(),
            }),
            other => other,
        }
    }

    /// Closes the connection and connects no more. What is queued still goes out; awaited answers are lost.
    pub fn stop(&self) {
        self.inner.stopped.set(true);
        if let Some(sender) = &*self.inner.sender.borrow() {
            sender.close("the link is stopped");
        }
        self.inner.changed.wake_all();
    }

    async fn exchange(
        &self,
        send: impl Fn(&FrameSender, u64) -> Result<(), SendError>,
        deadline: Instant,
    ) -> Result<Frame, RequestError> {
        let clock = &self.inner.runtime;
        let sent = timeout(clock, deadline.since(clock.now()), self.send_request(send)).await;
        let (_awaited, answer) =
            sent.unwrap_or_else(|_| Err(RequestError::NotSent("no connection or no room in time".into())))?;
        let frame = timeout(clock, deadline.since(clock.now()), answer)
            .await
            .map_err(|_| RequestError::Timeout)?
            .unwrap_or_else(|_| Err(RequestError::Lost("the link has ended".into())))?;
        if frame.kind == FrameKind::Error {
            return Err(RequestError::Refused(Box::new(frame.decode()?)));
        }
        Ok(frame)
    }

    /// Queues a request as soon as there is a connection with room. Nothing has been sent if it is dropped.
    async fn send_request(
        &self,
        send: impl Fn(&FrameSender, u64) -> Result<(), SendError>,
    ) -> Result<(Awaited<R>, oneshot::Receiver<Result<Frame, RequestError>>), RequestError> {
        let inner = &self.inner;
        loop {
            let sender = inner.first_connection().await.map_err(RequestError::NotSent)?;
            let correlation = inner.next_correlation.get();
            match send(&sender, correlation) {
                Err(SendError::Full) => sender.room().await,
                Err(error) => return Err(RequestError::NotSent(error.to_string())),
                Ok(()) => {
                    inner.next_correlation.set(correlation + 1);
                    let (give, take) = oneshot::channel();
                    inner.awaiting.borrow_mut().insert(correlation, give);
                    return Ok((Awaited { inner: inner.clone(), correlation }, take));
                }
            }
        }
    }
}

/// Forgets an awaited answer when its requester goes away.
struct Awaited<R: NetRuntime> {
    inner: Rc<Inner<R>>,
    correlation: u64,
}

impl<R: NetRuntime> Drop for Awaited<R> {
    fn drop(&mut self) {
        self.inner.awaiting.borrow_mut().remove(&self.correlation);
    }
}

impl<R: NetRuntime> Inner<R> {
    /// The connection; waits for it only as long as the link has no problem.
    async fn first_connection(&self) -> Result<FrameSender, String> {
        poll_fn(|context| {
            if let Some(sender) = &*self.sender.borrow() {
                if self.awaiting.borrow().len() >= self.options.requests_max {
                    return Poll::Ready(Err("too many requests await an answer".to_owned()));
                }
                return Poll::Ready(Ok(sender.clone()));
            }
            if self.stopped.get() {
                return Poll::Ready(Err("the link is stopped".to_owned()));
            }
            let problem = self.state.borrow().problem.clone();
            if !problem.is_empty() {
                return Poll::Ready(Err(problem));
            }
            self.changed.register(context);
            Poll::Pending
        })
        .await
    }

    async fn run(self: Rc<Self>) {
        let mut pause = self.options.pause_min;
        while !self.stopped.get() {
            let Some(problem) = self.unless_stopped(self.connect_once(&mut pause)).await else {
                break;
            };
            self.state.borrow_mut().problem = problem;
            self.changed.wake_all();
            if self.unless_stopped(self.runtime.sleep(self.jittered(pause))).await.is_none() {
                break;
            }
            pause = (pause * 2).min(self.options.pause_max);
        }
        self.disconnected("the link is stopped");
    }

    /// One connection from its start to its end; says what ended it.
    async fn connect_once(&self, pause: &mut Duration) -> String {
        let connected = connect(&self.runtime, &self.options.connect, (self.options.hello)()).await;
        let (connection, reply) = match connected {
            Ok(connected) => connected,
            Err(error) => return error.to_string(),
        };
        if let Err(problem) = (self.options.check)(&reply) {
            return problem;
        }
        let connected_at = self.runtime.now();
        let (receiver, sender) = connection.split();
        *self.sender.borrow_mut() = Some(sender);
        {
            let mut state = self.state.borrow_mut();
            state.connected = true;
            state.connections += 1;
            state.problem.clear();
        }
        self.changed.wake_all();
        (self.options.on_event)(LinkEvent::Connected(Box::new(reply)));
        let problem = self.receive_answers(receiver).await;
        if self.runtime.now().since(connected_at) >= STABLE_AFTER {
            *pause = self.options.pause_min;
        }
        self.disconnected(&problem);
        (self.options.on_event)(LinkEvent::Lost { problem: problem.clone() });
        problem
    }

    /// Hands out answers until the connection ends.
    async fn receive_answers(&self, mut receiver: FrameReceiver<R>) -> String {
        loop {
            let frame = match receiver.receive().await {
                Ok(frame) => frame,
                Err(ReceiveError::Ended(reason)) => return reason.to_string(),
                Err(error) => return error.to_string(),
            };
            match frame.kind.role() {
                KindRole::Reply if frame.correlation == 0 => {
                    let said = frame.decode::<v1::Error>().map(|error| error.message);
                    return said.unwrap_or_else(|error| error.to_string());
                }
                KindRole::Reply => {
                    // Nobody waits for the answer to what has timed out.
                    if let Some(give) = self.awaiting.borrow_mut().remove(&frame.correlation) {
                        let _ = give.send(Ok(frame));
                    }
                }
                KindRole::Request | KindRole::OneWay => {
                    return format!("a {} frame came where only answers may", frame.kind);
                }
            }
        }
    }

    /// Ends what stood on the connection.
    fn disconnected(&self, problem: &str) {
        *self.sender.borrow_mut() = None;
        {
            let mut state = self.state.borrow_mut();
            state.connected = false;
            state.problem = problem.to_owned();
        }
        let awaiting = std::mem::take(&mut *self.awaiting.borrow_mut());
        for give in awaiting.into_values() {
            let _ = give.send(Err(RequestError::Lost(problem.to_owned())));
        }
        self.changed.wake_all();
    }

    /// Runs a future unless, or until, the link is stopped.
    async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|context| {
            if self.stopped.get() {
                return Poll::Ready(None);
            }
            self.changed.register(context);
            future.as_mut().poll(context).map(Some)
        })
        .await
    }

    /// Between half of the pause and all of it, so that peers do not come back in step.
    fn jittered(&self, pause: Duration) -> Duration {
        let half = pause / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(self.runtime.random_u64() % span)
    }
}

/// The links of this core, by node number and core.
pub struct PeerPool<R: NetRuntime> {
    runtime: R,
    links: RefCell<BTreeMap<(u32, u16), PeerLink<R>>>,
}

impl<R: NetRuntime> PeerPool<R> {
    /// An empty pool.
    pub fn new(runtime: &R) -> Self {
        Self { runtime: runtime.clone(), links: RefCell::default() }
    }

    /// The link to a core of a node, if it has been started.
    pub fn get(&self, node_number: u32, core: u16) -> Option<PeerLink<R>> {
        self.links.borrow().get(&(node_number, core)).cloned()
    }

    /// The link to a core of a node, started now if there is none.
    pub fn get_or_start(
        &self,
        node_number: u32,
        core: u16,
        options: impl FnOnce() -> PeerOptions,
    ) -> PeerLink<R> {
        let mut links = self.links.borrow_mut();
        let link =
            links.entry((node_number, core)).or_insert_with(|| PeerLink::start(&self.runtime, options()));
        link.clone()
    }

    /// Stops and forgets a link: the node has gone, has fewer cores, or another address.
    pub fn remove(&self, node_number: u32, core: u16) {
        if let Some(link) = self.links.borrow_mut().remove(&(node_number, core)) {
            link.stop();
        }
    }

    /// Stops and forgets all links.
    pub fn stop(&self) {
        for link in std::mem::take(&mut *self.links.borrow_mut()).into_values() {
            link.stop();
        }
    }

    /// How each link does, by node number and core.
    pub fn states(&self) -> Vec<((u32, u16), LinkState)> {
        self.links.borrow().iter().map(|(place, link)| (*place, link.state())).collect()
    }
}
