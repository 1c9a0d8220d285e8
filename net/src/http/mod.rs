//! HTTP/1.1 and HTTP/2 on the one port: a connection becomes requests, and what answers them is an [`HttpService`].
//!
//! Nothing here knows keys, shards or tokens: the node gives the service and judges who may do what. What this part
//! sees to is that everything is bounded whoever is at the other end: headers by size, number and time, bodies by
//! size, time and the memory of the core ([`HttpOptions`]), streams of one connection, frames that cost the other
//! side nothing (resets, pings, settings, continuations), and answers that nobody takes.
//!
//! `body` holds the two kinds of body; `options` the bounds.

mod body;
mod options;

use std::future::Future;
use std::net::SocketAddr;

pub use self::body::{BodyBudget, BodyError, BodySender, IncomingBody, OutgoingBody, ReaderGone};
pub use self::options::HttpOptions;
pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};

/// What answers requests. One per core; it is called for each request, and many calls run at once.
///
/// A call that is dropped half-way means that the other side has gone: writes that were handed to a shard go on.
pub trait HttpService: 'static {
    /// Answers one request. The body may be left unread; it is then refused or drained within bounds.
    fn call(
        &self,
        request: Request<IncomingBody>,
    ) -> impl Future<Output = Response<OutgoingBody>> + 'static;
}

/// Where a request came from: in its extensions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HttpPeer {
    /// The other side's address, where it is known.
    pub address: Option<SocketAddr>,
    /// It came over TLS.
    pub is_encrypted: bool,
}
