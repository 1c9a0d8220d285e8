//! The HTTP front doors of a core: each request goes to gRPC or to REST, is let in by the rules of the native hello,
//! and asks the node by the same messages that native clients send.
//!
//! `admit_http` judges the token and the cluster's name; `ask` sends a message the way of a native frame and waits
//! for its answer. Neither face decodes, routes, reads or writes on its own.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_channel::oneshot;
use krita_net::http::{
    HeaderMap, HeaderValue, HttpConnection, HttpEnd, HttpOptions, HttpServer, HttpService, IncomingBody,
    OutgoingBody, Request, Response, header,
};
use krita_proto::error::ErrorCode;
use krita_proto::frame::{FrameKind, FrameMessage, RequestMessage};
use krita_proto::v1;
use krita_runtime::{Runtime, timeout};
use prost::Message as _;

use crate::core::Core;
use crate::failure::Failure;
use crate::grpc;
use crate::mesh::NodeRequest;
use crate::metrics::Door;
use crate::request::ShardRequest;
use crate::responder::{ReplySink, Responder};
use crate::rest;

/// The header (or gRPC metadata) that carries a token without `authorization: Bearer`.
pub(crate) const TOKEN_HEADER: &str = "token";

/// The header (or gRPC metadata) by which a caller may name the cluster that it means.
pub(crate) const CLUSTER_HEADER: &str = "krita-cluster";

/// How long an ending core waits for the last HTTP connections.
const DOORS_CLOSED_WITHIN: Duration = Duration::from_secs(2);

/// How long a request that was not applied because its shard had no leader is tried again here. (Native clients know
/// the members and try elsewhere; callers over HTTP have this node alone.)
const RETRY_WITHIN: Duration = Duration::from_millis(1_500);
const RETRY_INTERVAL: Duration = Duration::from_millis(25);

/// One core's answers to HTTP.
pub(crate) struct Doors<R: Runtime> {
    /// The core holds its doors, so they do not hold the core.
    core: Weak<Core<R>>,
}

impl<R: Runtime> HttpService for Doors<R> {
    fn call(&self, request: Request<IncomingBody>) -> impl Future<Output = Response<OutgoingBody>> + 'static {
        let core = self.core.upgrade();
        async move {
            match core {
                Some(core) if grpc::is_grpc(request.headers().get(header::CONTENT_TYPE)) => {
                    grpc::serve(core, request).await
                }
                Some(core) => rest::serve(core, request).await,
                None => rest::refused(Failure::not_ready("the node is stopping")),
            }
        }
    }

    fn overloaded(&self, content_type: Option<&HeaderValue>) -> Response<OutgoingBody> {
        match grpc::is_grpc(content_type) {
            true => grpc::overloaded(),
            false => rest::refused(Failure::overloaded("this core has as many HTTP requests as it may")),
        }
    }
}

/// An answer that a task of this core waits for.
struct TaskSink {
    answer: RefCell<Option<oneshot::Sender<(FrameKind, Bytes)>>>,
}

impl ReplySink for TaskSink {
    fn reply(&self, _ticket: u64, kind: FrameKind, body: Bytes) {
        if let Some(answer) = self.answer.borrow_mut().take() {
            // A task that no longer waits has lost its reader.
            let _ = answer.send((kind, body));
        }
    }
}

/// A request that is well-formed.
enum Asked {
    Shard(ShardRequest),
    Other { kind: FrameKind, body: Bytes },
}

impl Asked {
    fn timeout<R: Runtime>(&self, core: &Core<R>) -> Duration {
        match self {
            Self::Shard(request) => request.timeout,
            Self::Other { .. } => core.input.config.request_timeout,
        }
    }
}

impl<R: Runtime> Core<R> {
    /// Makes what serves this core's HTTP connections.
    pub(crate) fn open_doors(self: &Rc<Self>) {
        let doors = Doors { core: Rc::downgrade(self) };
        let server = HttpServer::new(self.runtime.clone(), doors, HttpOptions::default());
        // A core starts once.
        let _ = self.http.set(server);
    }

    /// Serves a connection that speaks HTTP to its end.
    pub(crate) async fn serve_http(&self, connection: HttpConnection<R>) {
        let Some(server) = self.http.get() else { return };
        match server.serve(connection).await {
            Ok(()) => {}
            Err(end @ (HttpEnd::Protocol(_) | HttpEnd::Idle | HttpEnd::Closing)) => {
                tracing::debug!(%end, "HTTP connection ended");
            }
            Err(end) => tracing::info!(%end, "HTTP connection ended"),
        }
    }

    /// Tells HTTP clients that the node stops: what is under way is answered, nothing new is begun.
    pub(crate) fn begin_closing_doors(&self) {
        if let Some(server) = self.http.get() {
            server.close();
        }
    }

    /// Completes when no HTTP connection is left, or none should be waited for any longer.
    pub(crate) async fn doors_closed(&self) {
        if let Some(server) = self.http.get() {
            // Connections end themselves in time; this is for those whose tasks do not get to it.
            let _ = timeout(&self.runtime, DOORS_CLOSED_WITHIN, server.closed()).await;
        }
    }

    /// Whether a caller may come in, by the same rules as the native hello: `authorization: Bearer <token>` or
    /// `token: <token>`, and, if it is given, `krita-cluster: <name>`.
    pub(crate) fn admit_http(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let ours = &self.input.config.cluster_name;
        if let Some(theirs) = headers.get(CLUSTER_HEADER)
            && theirs.as_bytes() != ours.as_bytes()
        {
            let theirs = String::from_utf8_lossy(theirs.as_bytes());
            let message = format!("this is cluster {ours:?}, not {theirs:?}");
            return Err(Failure::new(ErrorCode::WrongCluster, message));
        }
        let token = token(headers).unwrap_or_default();
        match self.authenticator.check(token) {
            Ok(_admin) => Ok(()),
            Err(error) => Err(Failure::new(ErrorCode::Unauthenticated, error.to_string())),
        }
    }

    /// Asks the node as a native client would, once, and waits for the answer. The request's own `timeout_ms` bounds
    /// the wait (0 = the server's default).
    ///
    /// Dropping the future does not take a write back: it goes on, and its answer is dropped.
    pub(crate) async fn ask<M: RequestMessage>(self: &Rc<Self>, request: &M) -> Result<M::Reply, Failure> {
        let asked = self.decode_asked(M::KIND, Bytes::from(request.encode_to_vec()), None)?;
        decode_answer(self.ask_once(&asked, asked.timeout(self)).await?)
    }

    /// As [`Self::ask`], and again for a while where the shard has no leader that can be reached: an election hides
    /// behind it. What comes back as such an error has not been applied, so trying again is safe.
    pub(crate) async fn ask_retrying<M: RequestMessage>(
        self: &Rc<Self>,
        request: &M,
    ) -> Result<M::Reply, Failure> {
        self.ask_within(request, None).await
    }

    /// As [`Self::ask_retrying`], for a caller who waits no longer than `limit`.
    pub(crate) async fn ask_within<M: RequestMessage>(
        self: &Rc<Self>,
        request: &M,
        limit: Option<Duration>,
    ) -> Result<M::Reply, Failure> {
        decode_answer(self.ask_encoded(M::KIND, Bytes::from(request.encode_to_vec()), limit).await?)
    }

    /// As [`Self::ask_within`], with the encoded message of that kind, and the encoded answer.
    pub(crate) async fn ask_encoded(
        self: &Rc<Self>,
        kind: FrameKind,
        body: Bytes,
        limit: Option<Duration>,
    ) -> Result<Bytes, Failure> {
        let asked = self.decode_asked(kind, body, limit)?;
        let began = self.runtime.now();
        let until = began + asked.timeout(self);
        let retry_until = until.min(began + RETRY_WITHIN);
        loop {
            let now = self.runtime.now();
            match self.ask_once(&asked, until.since(now)).await {
                Err(failure) if failure.is_passing() && self.runtime.now() + RETRY_INTERVAL < retry_until => {
                    self.runtime.sleep(RETRY_INTERVAL).await;
                }
                outcome => return outcome,
            }
        }
    }

    fn decode_asked(&self, kind: FrameKind, body: Bytes, limit: Option<Duration>) -> Result<Asked, Failure> {
        let shard_count = self.serving.borrow().as_ref().map(|serving| serving.cluster.shard_count());
        let timeout = self.input.config.request_timeout;
        match ShardRequest::decode(kind, &body, false, shard_count.unwrap_or(1), timeout) {
            Some(_) if shard_count.is_none() => Err(self.not_serving()),
            Some(Ok(request)) => {
                let timeout = limit.map_or(request.timeout, |limit| limit.min(request.timeout));
                Ok(Asked::Shard(ShardRequest { timeout, ..request }))
            }
            Some(Err(failure)) => Err(failure),
            None => Ok(Asked::Other { kind, body }),
        }
    }

    /// The answer to a request as it is, in a frame's kind and body.
    pub(crate) async fn answer_to(
        self: &Rc<Self>,
        request: ShardRequest,
    ) -> Result<(FrameKind, Bytes), Failure> {
        let (sender, receiver) = oneshot::channel();
        let sink = Rc::new(TaskSink { answer: RefCell::new(Some(sender)) });
        let responder = Responder::new(sink, 0, request.changes_data());
        self.dispatch(request, responder);
        // A responder that is dropped answers by itself, so the channel is never closed without an answer.
        receiver.await.map_err(|_| Failure::unavailable("the node gave the request up"))
    }

    async fn ask_once(self: &Rc<Self>, asked: &Asked, left: Duration) -> Result<Bytes, Failure> {
        let (sender, receiver) = oneshot::channel();
        let sink = Rc::new(TaskSink { answer: RefCell::new(Some(sender)) });
        let responder = |changes_data| Responder::new(sink.clone(), 0, changes_data);
        match asked {
            Asked::Shard(request) => {
                let request = ShardRequest { timeout: left, ..request.clone() };
                let measured = self.metrics.begin(Door::Http, request.kind);
                let responder = responder(request.changes_data()).measured(measured);
                self.route(request, responder);
            }
            Asked::Other { kind, body } => self.submit_other(*kind, body, responder(false)),
        }
        drop(sink);
        // A responder that is dropped answers by itself, so the channel is never closed without an answer.
        let (kind, body) =
            receiver.await.map_err(|_| Failure::unavailable("the node gave the request up"))?;
        match kind {
            FrameKind::Error => Err(decode_failure(&body)),
            _ => Ok(body),
        }
    }

    /// Requests that are not about one shard's data.
    fn submit_other(self: &Rc<Self>, kind: FrameKind, body: &Bytes, responder: Responder) {
        match kind {
            FrameKind::ClusterStatus => self.answer_cluster_status(responder),
            FrameKind::NodeStatus => match v1::NodeStatus::decode(body.clone()) {
                Ok(request) => {
                    self.answer_node_request(NodeRequest::NodeStatus { shards: request.shards }, responder);
                }
                Err(error) => responder.fail(&Failure::invalid(error.to_string())),
            },
            FrameKind::Scrub => self.answer_node_request(NodeRequest::Scrub, responder),
            other => {
                responder.fail(&Failure::invalid(format!("{other} is no request that clients may make")))
            }
        }
    }
}

fn decode_answer<M: FrameMessage>(body: Bytes) -> Result<M, Failure> {
    M::decode(body).map_err(|error| {
        Failure::new(ErrorCode::Internal, format!("the node's own answer does not decode: {error}"))
    })
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    bearer.or_else(|| headers.get(TOKEN_HEADER)?.to_str().ok())
}

pub(crate) fn decode_failure(body: &Bytes) -> Failure {
    match v1::Error::decode(body.clone()) {
        Ok(error) => Failure::from_wire(error),
        Err(error) => Failure::new(ErrorCode::Internal, format!("an error that does not decode: {error}")),
    }
}
