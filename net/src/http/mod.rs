//! HTTP/1.1 and HTTP/2 on the one port: a connection becomes requests, and what answers them is an [`HttpService`].
//!
//! Nothing here knows keys, shards or tokens: the node gives the service and judges who may do what. What this part
//! sees to is that everything is bounded whoever is at the other end: headers by size, number and time, bodies by
//! size, time and the memory of the core ([`HttpOptions`]), streams of one connection, frames that cost the other
//! side nothing (resets, pings, settings, continuations), and answers that nobody takes.
//!
//! `server` drives hyper, which knows the protocols; `stream` gives it our streams; `monitor` holds one connection to
//! its bounds in time; `body` has the two kinds of body; `options` the bounds.

mod body;
mod monitor;
mod options;
mod server;
mod stream;

use std::future::Future;
use std::net::SocketAddr;

pub use self::body::{BodyBudget, BodyError, BodySender, IncomingBody, OutgoingBody, ReaderGone};
pub use self::options::HttpOptions;
pub use self::server::HttpServer;
use bytes::Bytes;

use crate::NetRuntime;
use crate::transport::Transport;

pub use ::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
};

/// What answers requests. One per core; it is called for each request, and many calls run at once.
///
/// A call that is dropped half-way means that the other side has gone: writes that were handed to a shard go on.
pub trait HttpService: 'static {
    /// Answers one request. The body may be left unread; it is then refused or drained within bounds.
    fn call(&self, request: Request<IncomingBody>) -> impl Future<Output = Response<OutgoingBody>> + 'static;

    /// Says that the answer was dropped because answers hold all the memory that they may: it can be asked for again.
    /// The answer must be small. `content_type` is the request's.
    fn overloaded(&self, content_type: Option<&HeaderValue>) -> Response<OutgoingBody>;
}

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HttpVersion {
    /// HTTP/1.1, and 1.0.
    One,
    /// HTTP/2.
    Two,
}

/// A connection that was found to speak HTTP: [`HttpServer::serve`] it.
pub struct HttpConnection<R: NetRuntime> {
    pub(crate) transport: Transport<R::Stream>,
    /// What was read from it already.
    pub(crate) received: Bytes,
    pub(crate) version: HttpVersion,
}

/// Why a connection ended other than in good order.
#[derive(Debug, thiserror::Error)]
pub enum HttpEnd {
    /// It broke the rules of HTTP, or the stream failed.
    #[error("HTTP failed: {0}")]
    Protocol(#[source] hyper::Error),
    /// The headers of a request were not whole in time.
    #[error("headers did not become whole in time")]
    SlowHeaders,
    /// It was idle for too long.
    #[error("idle for too long")]
    Idle,
    /// Nobody took the answers.
    #[error("answers were not taken in time")]
    Stalled,
    /// Frames that bring nothing forward.
    #[error("too many frames that bring nothing forward")]
    Chatter,
    /// Requests given up before they were answered.
    #[error("too many requests given up before they were answered")]
    Resets,
    /// The node stops, and something was still under way.
    #[error("the node stops")]
    Closing,
}

/// Where a request came from: in its extensions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HttpPeer {
    /// The other side's address, where it is known.
    pub address: Option<SocketAddr>,
    /// It came over TLS.
    pub is_encrypted: bool,
}
