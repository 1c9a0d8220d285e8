//! One native connection on our runtime: a task that moves bytes for the client library's sans-IO conversation, and
//! hands answers to those who wait. What is asked within one round of the executor leaves in one write.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Buf;
use futures_channel::oneshot;
use futures_rustls::TlsConnector;
use futures_util::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use krita_proto::routing::{CORE_DOMAIN, server_name_for_core};
use krita_proto::v1;
use krita_runtime::glommio::GlommioRuntime;
use krita_runtime::{Network, Spawn, TaskClass, timeout};
use kritaclient::core::connection::{Connection, Event, Greeting};
use kritaclient::core::message::{Request, Response, ServerError};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use super::CONNECT_TIMEOUT;
use crate::target::Problem;

/// A byte stream, plain or TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

type Answered = Result<Response, ServerError>;

/// A connection that has said hello. Requests share it.
pub(super) struct Link {
    state: RefCell<State>,
    is_open: Cell<bool>,
}

struct State {
    connection: Connection,
    /// By correlation id.
    waiting: BTreeMap<u64, oneshot::Sender<Answered>>,
    waker: Option<Waker>,
}

/// Why there is no connection.
pub(super) enum ConnectFailure {
    /// Perhaps later.
    Unreachable(String),
    /// Never: a wrong token, cluster or certificate.
    Refused(String),
}

impl ConnectFailure {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Unreachable(text) | Self::Refused(text) => text,
        }
    }
}

impl Link {
    /// Connects and says hello.
    pub(super) async fn connect(
        runtime: &GlommioRuntime,
        address: &str,
        tls: Option<&Arc<ClientConfig>>,
        greeting: &Greeting,
    ) -> Result<(Rc<Self>, v1::HelloReply), ConnectFailure> {
        let connecting = Self::connect_unbounded(runtime, address, tls, greeting);
        match timeout(runtime, CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(ConnectFailure::Unreachable(format!("{address} does not answer"))),
        }
    }

    async fn connect_unbounded(
        runtime: &GlommioRuntime,
        address: &str,
        tls: Option<&Arc<ClientConfig>>,
        greeting: &Greeting,
    ) -> Result<(Rc<Self>, v1::HelloReply), ConnectFailure> {
        let unreachable =
            |error: std::io::Error| ConnectFailure::Unreachable(format!("cannot reach {address}: {error}"));
        let refused = |reason: String| ConnectFailure::Refused(format!("{address}: {reason}"));
        let tcp = runtime.connect(address, CONNECT_TIMEOUT).await.map_err(unreachable)?;
        let mut stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(tls) => {
                let core = greeting.core;
                let name = core.map_or_else(|| format!("any.{CORE_DOMAIN}"), server_name_for_core);
                let name = ServerName::try_from(name).expect("a fixed domain with a number is a name");
                let connected = TlsConnector::from(tls.clone()).connect(name, tcp).await;
                Box::new(connected.map_err(|error| refused(format!("the TLS handshake failed: {error}")))?)
            }
        };
        let mut connection = Connection::new(greeting);
        let hello = connection.outgoing().split();
        stream.write_all(&hello).await.map_err(unreachable)?;
        stream.flush().await.map_err(unreachable)?;
        let reply = loop {
            match connection.next_event() {
                Ok(Some(Event::Ready(reply))) => break reply,
                Ok(Some(Event::Answer { .. })) => {
                    return Err(refused("it answered before the hello".to_owned()));
                }
                Ok(None) => {}
                Err(error) => return Err(refused(error.to_string())),
            }
            let bytes = stream.read(connection.space()).await.map_err(unreachable)?;
            if bytes == 0 {
                return Err(refused("it closed the connection; does it want TLS?".to_owned()));
            }
            connection.received(bytes);
        };
        let state = State { connection, waiting: BTreeMap::new(), waker: None };
        let link = Rc::new(Self { state: RefCell::new(state), is_open: Cell::new(true) });
        let driven = link.clone();
        runtime.spawn(TaskClass::Foreground, "link", async move { driven.drive(stream).await });
        Ok((link, reply))
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open.get()
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn call(&self, request: &Request) -> Result<Answered, Problem> {
        if !self.is_open() {
            return Err(Problem::refused("NOT_CONNECTED"));
        }
        let (answer, answered) = oneshot::channel();
        let waker = {
            let mut state = self.state.borrow_mut();
            let sent = state.connection.send(request);
            let correlation = sent.map_err(|error| Problem::refused(format!("NOT_SENT ({error})")))?;
            state.waiting.insert(correlation, answer);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        answered.await.map_err(|_| Problem::unknown("CONNECTION_LOST"))
    }

    /// Moves bytes until the connection ends; those who wait then hear that it did.
    async fn drive(self: Rc<Self>, mut stream: Box<dyn Stream>) {
        let mut is_flushed = true;
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            state.poll(context, &mut stream, &mut is_flushed)
        })
        .await;
        self.is_open.set(false);
        self.state.borrow_mut().waiting.clear();
    }
}

impl State {
    /// Ready when the connection has ended.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut Box<dyn Stream>,
        is_flushed: &mut bool,
    ) -> Poll<()> {
        self.waker = Some(context.waker().clone());
        while !self.connection.outgoing().is_empty() {
            match Pin::new(&mut *stream).poll_write(context, self.connection.outgoing()) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(bytes)) => {
                    self.connection.outgoing().advance(bytes);
                    *is_flushed = false;
                }
                Poll::Pending => break,
            }
        }
        if !*is_flushed {
            match Pin::new(&mut *stream).poll_flush(context) {
                Poll::Ready(Ok(())) => *is_flushed = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        loop {
            match Pin::new(&mut *stream).poll_read(context, self.connection.space()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(bytes)) => self.connection.received(bytes),
            }
            loop {
                match self.connection.next_event() {
                    Ok(None) => break,
                    Ok(Some(Event::Answer { correlation, answer })) => {
                        if let Some(waiting) = self.waiting.remove(&correlation) {
                            // Whoever asked waits for it.
                            let _gone = waiting.send(answer);
                        }
                    }
                    Ok(Some(Event::Ready(_))) | Err(_) => return Poll::Ready(()),
                }
            }
        }
    }
}
