//! Serves HTTP connections: hyper reads and writes the protocol, our runtime gives it streams, tasks and time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, UNIX_EPOCH};

use ::http::{HeaderValue, Request, Response, header};
use futures_util::io::{AsyncRead, AsyncWriteExt};
use hyper::server::conn::{http1, http2};
use krita_runtime::{Instant, Notify, TaskClass, timeout};

use super::body::{BodyBudget, BodyRules, IncomingBody, OutgoingBody};
use super::monitor::{Active, DynClock, Monitor};
use super::stream::{HttpStream, SCRATCH_BYTES, Scratch};
use super::{HttpConnection, HttpEnd, HttpOptions, HttpPeer, HttpService, HttpVersion};
use crate::NetRuntime;
use crate::transport::linger;

/// How long a connection that is told to end without a fault has to say good-bye.
const FAREWELL: Duration = Duration::from_secs(1);

/// An answer below this size is not counted towards the core's memory for answers.
const SMALL_ANSWER_BYTES: usize = 64 * 1024;

/// HTTP/2: how much of one request's body, and of all of a connection's, may wait for its reader.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// HTTP/2: how much of one answer waits for the socket.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// HTTP/1.1: how much of a body is read at once.
const READ_BUFFER_BYTES: usize = 128 * 1024;

/// The HTTP side of one core.
pub struct HttpServer<R: NetRuntime, S: HttpService> {
    runtime: R,
    service: Rc<S>,
    options: Rc<HttpOptions>,
    incoming: BodyBudget,
    outgoing: BodyBudget,
    scratch: Scratch,
    date: RefCell<(u64, HeaderValue)>,
    connections: RefCell<BTreeMap<u64, Rc<Monitor>>>,
    connections_ever: Cell<u64>,
    is_closing: Cell<bool>,
    gone: Notify,
}

/// Takes a connection out of the list when it ends, however it does.
struct Listed<R: NetRuntime, S: HttpService> {
    server: Rc<HttpServer<R, S>>,
    number: u64,
}

impl<R: NetRuntime, S: HttpService> Drop for Listed<R, S> {
    fn drop(&mut self) {
        self.server.connections.borrow_mut().remove(&self.number);
        self.server.gone.notify();
    }
}

impl<R: NetRuntime, S: HttpService> HttpServer<R, S> {
    /// A server whose requests `service` answers.
    pub fn new(runtime: R, service: S, options: HttpOptions) -> Rc<Self> {
        Rc::new(Self {
            runtime,
            service: Rc::new(service),
            incoming: BodyBudget::new(options.core_incoming_bytes_max),
            outgoing: BodyBudget::new(options.core_outgoing_bytes_max),
            options: Rc::new(options),
            scratch: Rc::new(RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice())),
            date: RefCell::new((u64::MAX, HeaderValue::from_static(""))),
            connections: RefCell::default(),
            connections_ever: Cell::new(0),
            is_closing: Cell::new(false),
            gone: Notify::new(),
        })
    }

    /// The memory that requests' bodies hold.
    pub fn incoming(&self) -> &BodyBudget {
        &self.incoming
    }

    /// Tells every connection, also those that still come, to end what is under way and begin nothing new: GOAWAY in
    /// HTTP/2, `connection: close` in HTTP/1.1.
    pub fn close(&self) {
        self.is_closing.set(true);
        for monitor in self.connections.borrow().values() {
            monitor.wake();
        }
    }

    /// Completes when no connection is left. Only one task may wait.
    pub async fn closed(&self) {
        while !self.connections.borrow().is_empty() {
            self.gone.notified().await;
        }
    }

    /// Serves a connection to its end.
    ///
    /// # Errors
    /// [`HttpEnd`]: what the other side did wrong, or what failed.
    pub async fn serve(self: &Rc<Self>, connection: HttpConnection<R>) -> Result<(), HttpEnd> {
        let HttpConnection { transport, received, version } = connection;
        let clock: Rc<dyn DynClock> = Rc::new(self.runtime.clone());
        let monitor = Rc::new(Monitor::new(clock, self.options.clone(), version));
        let number = self.connections_ever.get();
        self.connections_ever.set(number + 1);
        self.connections.borrow_mut().insert(number, monitor.clone());
        let _listed = Listed { server: self.clone(), number };

        let rules = Rc::new(BodyRules { monitor: monitor.clone(), budget: self.incoming.clone() });
        let peer = HttpPeer { address: transport.peer_address(), is_encrypted: transport.is_encrypted() };
        let calls = Calls { server: self.clone(), rules, peer };
        let stream =
            HttpStream { transport, received, monitor: monitor.clone(), scratch: self.scratch.clone() };
        match version {
            HttpVersion::One => self.serve_http1(stream, calls, &monitor).await,
            HttpVersion::Two => self.serve_http2(stream, calls, &monitor).await,
        }
    }

    async fn serve_http1(
        &self,
        stream: HttpStream<R::Stream>,
        calls: Calls<R, S>,
        monitor: &Monitor,
    ) -> Result<(), HttpEnd> {
        let mut builder = http1::Builder::new();
        // Time limits are the monitor's.
        builder.header_read_timeout(None).auto_date_header(false).half_close(false).keep_alive(true);
        builder.max_headers(self.options.headers_max).max_header_size(self.options.header_bytes_max);
        builder.max_buf_size(READ_BUFFER_BYTES.max(self.options.header_bytes_max));
        let mut connection = builder.serve_connection(stream, calls);
        let mut watch = Watch::default();
        let outcome = poll_fn(|context| {
            monitor.begin_turn();
            loop {
                if watch.should_close(self, monitor) {
                    Pin::new(&mut connection).graceful_shutdown();
                }
                if let Poll::Ready(ended) = connection.poll_without_shutdown(context) {
                    return Poll::Ready(ended.map_err(HttpEnd::Protocol));
                }
                match watch.poll(self, monitor, context) {
                    Poll::Ready(Some(end)) => return Poll::Ready(Err(end)),
                    Poll::Ready(None) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        let mut stream = connection.into_parts().io;
        if matches!(outcome, Err(HttpEnd::Stalled)) {
            return outcome;
        }
        // What was answered to bad input must not be overtaken by a reset.
        let closed = timeout(&self.runtime, FAREWELL, stream.transport.close()).await;
        if matches!((&outcome, closed), (Err(_), Ok(Ok(())))) {
            linger(&self.runtime, |context, scratch| {
                Pin::new(&mut stream.transport).poll_read(context, scratch)
            })
            .await;
        }
        outcome
    }

    async fn serve_http2(
        &self,
        stream: HttpStream<R::Stream>,
        calls: Calls<R, S>,
        monitor: &Monitor,
    ) -> Result<(), HttpEnd> {
        let mut builder = http2::Builder::new(Tasks(self.runtime.clone()));
        let header_bytes_max = u32::try_from(self.options.header_bytes_max).unwrap_or(u32::MAX);
        let resets_max = usize::try_from(self.options.resets_max).unwrap_or(usize::MAX);
        builder
            .auto_date_header(false)
            .max_concurrent_streams(self.options.streams_max)
            .max_header_list_size(header_bytes_max)
            .max_pending_accept_reset_streams(resets_max)
            .max_local_error_reset_streams(resets_max)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES);
        let mut connection = std::pin::pin!(builder.serve_connection(stream, calls));
        let mut watch = Watch::default();
        poll_fn(|context| {
            monitor.begin_turn();
            loop {
                if watch.should_close(self, monitor) {
                    connection.as_mut().graceful_shutdown();
                }
                if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                    return Poll::Ready(ended.map_err(HttpEnd::Protocol));
                }
                match watch.poll(self, monitor, context) {
                    Poll::Ready(Some(end)) => return Poll::Ready(Err(end)),
                    Poll::Ready(None) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// The Date header of an answer, from the runtime's clock.
    fn date(&self) -> HeaderValue {
        let second = self.runtime.wall_clock().0 / 1000;
        let mut date = self.date.borrow_mut();
        if date.0 != second {
            // Formatting fails beyond the year 9999 only, by a panic: such a clock is told as its last second.
            let time = UNIX_EPOCH + Duration::from_secs(second.min(253_402_300_799));
            let text = httpdate::fmt_http_date(time);
            *date = (second, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("")));
        }
        date.1.clone()
    }
}

/// Whether a connection has been told to end, and until when it must have.
#[derive(Default)]
struct Watch {
    is_idle: bool,
    ends_at: Option<Instant>,
    farewell: Option<super::monitor::Timer>,
}

impl Watch {
    /// True once: when the connection is to be told that it ends.
    fn should_close<R: NetRuntime, S: HttpService>(
        &mut self,
        server: &HttpServer<R, S>,
        monitor: &Monitor,
    ) -> bool {
        if self.ends_at.is_some() || !(self.is_idle || server.is_closing.get()) {
            return false;
        }
        let left = if self.is_idle { FAREWELL } else { server.options.shutdown_timeout };
        self.ends_at = Some(monitor.clock.now() + left);
        self.farewell = Some(monitor.clock.sleep(left));
        true
    }

    /// Ready with an end, or with nothing when the connection is to be told that it ends.
    fn poll<R: NetRuntime, S: HttpService>(
        &mut self,
        server: &HttpServer<R, S>,
        monitor: &Monitor,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<HttpEnd>> {
        if let Some(farewell) = &mut self.farewell
            && farewell.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(if self.is_idle { HttpEnd::Idle } else { HttpEnd::Closing }));
        }
        if server.is_closing.get() && self.ends_at.is_none() {
            return Poll::Ready(None);
        }
        match monitor.poll_broken(context) {
            Poll::Ready(HttpEnd::Idle) if self.ends_at.is_none() => {
                self.is_idle = true;
                Poll::Ready(None)
            }
            // It has its farewell.
            Poll::Ready(HttpEnd::Idle) | Poll::Pending => Poll::Pending,
            Poll::Ready(end) => Poll::Ready(Some(end)),
        }
    }
}

/// hyper's tasks are tasks of the core.
#[derive(Clone)]
struct Tasks<R>(R);

impl<R: NetRuntime, F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Tasks<R> {
    fn execute(&self, future: F) {
        self.0.spawn(TaskClass::Foreground, "http-request", future);
    }
}

/// Hands the requests of one connection to the service.
struct Calls<R: NetRuntime, S: HttpService> {
    server: Rc<HttpServer<R, S>>,
    rules: Rc<BodyRules>,
    peer: HttpPeer,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<OutgoingBody>, Infallible>>>>;

impl<R: NetRuntime, S: HttpService> hyper::service::Service<Request<hyper::body::Incoming>> for Calls<R, S> {
    type Response = Response<OutgoingBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Answer {
        let server = self.server.clone();
        let mut active = Active::new(self.rules.monitor.clone());
        let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
        let mut request = request.map(|body| IncomingBody::new(body, self.rules.clone()));
        request.extensions_mut().insert(self.peer);
        Box::pin(async move {
            active.monitor().clone().room().await;
            let mut response = server.service.call(request).await;
            active.answered();
            let mut lease = server.outgoing.lease();
            let bytes = response.body().waiting_bytes();
            if bytes > SMALL_ANSWER_BYTES && !lease.grow_to(bytes) {
                response = server.service.overloaded(content_type.as_ref());
            }
            response.headers_mut().insert(header::DATE, server.date());
            response.body_mut().watch(active, lease);
            Ok(response)
        })
    }
}
