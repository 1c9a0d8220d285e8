//! The bounds of an HTTP connection, in one place.

use std::time::Duration;

use krita_proto::frame::BODY_BYTES_MAX;

/// How a core serves HTTP. The defaults are those that nodes run with.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Most bytes of one request's headers, its target included; more is answered 431 (HTTP/1.1) or a reset stream.
    pub header_bytes_max: usize,
    /// Most header fields of one HTTP/1.1 request. (HTTP/2 counts 32 bytes for each field towards the size.)
    pub headers_max: usize,
    /// Most bytes of one request's body.
    pub body_bytes_max: usize,
    /// From the first byte of an HTTP/1.1 request to the end of its headers.
    pub header_timeout: Duration,
    /// A body must go on within this time, and one second more for each
    /// [`FRAME_BYTES_PER_SECOND_MIN`](crate::connection::FRAME_BYTES_PER_SECOND_MIN) that it has brought in all.
    pub body_timeout: Duration,
    /// Ends an HTTP/1.1 connection without a request under way for this long.
    pub idle_timeout_http1: Duration,
    /// The same for HTTP/2 once it has made a request, whatever else it sends. Longer: gRPC clients keep
    /// connections for their next call.
    pub idle_timeout_http2: Duration,
    /// Ends a connection whose other side takes no byte of any answer for this long while some wait.
    pub stall_timeout: Duration,
    /// Most requests of one HTTP/2 connection that run at once.
    pub streams_max: u32,
    /// Ends a connection that gives up this many requests before they are answered, but for a few each second.
    pub resets_max: u32,
    /// While this many bytes of answers wait for one connection to take them, its further requests wait.
    pub outgoing_bytes_max: usize,
    /// Memory of the core for bodies of requests; what does not fit is refused as overload.
    pub core_incoming_bytes_max: usize,
    /// Memory of the core for answers above 64 KiB; what does not fit is refused as overload.
    pub core_outgoing_bytes_max: usize,
    /// After a stop, what is under way has this long.
    pub shutdown_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            header_bytes_max: 32 * 1024,
            headers_max: 100,
            body_bytes_max: BODY_BYTES_MAX + 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            idle_timeout_http1: Duration::from_secs(75),
            idle_timeout_http2: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(60),
            streams_max: 128,
            resets_max: 200,
            outgoing_bytes_max: 32 << 20,
            core_incoming_bytes_max: 128 << 20,
            core_outgoing_bytes_max: 128 << 20,
            shutdown_timeout: Duration::from_secs(2),
        }
    }
}
