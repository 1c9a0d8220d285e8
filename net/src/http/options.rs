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
    /// Ends a connection without a request under way for this long, whatever else it sends.
    pub idle_timeout: Duration,
    /// Ends a connection whose other side takes no byte of any answer for this long while some wait.
    pub stall_timeout: Duration,
    /// Most requests of one HTTP/2 connection that run at once.
    pub streams_max: u32,
    /// Ends a connection with more than this many resets that cost the other side nothing.
    pub resets_max: usize,
    /// While this many bytes of answers wait for one connection to take them, its further answers wait unmade.
    pub outgoing_bytes_max: usize,
    /// After a stop, what is under way has this long.
    pub shutdown_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            header_bytes_max: 32 * 1024,
            headers_max: 100,
            body_bytes_max: BODY_BYTES_MAX,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(60),
            streams_max: 128,
            resets_max: 64,
            outgoing_bytes_max: 32 << 20,
            shutdown_timeout: Duration::from_secs(5),
        }
    }
}
