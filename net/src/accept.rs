//! The accepting side: from a fresh socket to a connection with its hello, or to the core that is wanted, or out.
//!
//! One port speaks everything, so the first bytes decide. Where TLS is on, the wanted core is read from the server
//! name of the ClientHello *before* the handshake: a TLS session cannot change cores, but a socket and the bytes
//! that were read from it can. Inside TLS, ALPN says what is spoken. Without TLS the hello itself says the core (HTTP
//! wishes for none). Whoever is refused is told so in the language
//! it spoke: an `Error` frame, an HTTP answer, a TLS alert.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_rustls::TlsStream;
use futures_util::io::{AsyncRead, AsyncReadExt};
use krita_proto::error::ErrorCode;
use krita_proto::frame::{self, Flags, FrameError, HELLO_BODY_BYTES_MAX, PROTOCOL_VERSION};
use krita_proto::routing::core_of_server_name;
use krita_proto::v1;
use krita_runtime::{CoreId, Instant, Stream, timeout};

use crate::NetRuntime;
use crate::connection::{Connection, ConnectionOptions, PeerFacts, ReceiveError, hello_reader};
use crate::http::{HttpConnection, HttpVersion};
use crate::tls::{self, TlsConfig};
use crate::transport::{Prefixed, Transport, linger, say_and_close};

/// Most bytes that are read before it is known what they are.
const PEEK_BYTES_MAX: usize = HELLO_BODY_BYTES_MAX + frame::HEADER_BYTES;

/// How a core accepts.
#[derive(Clone)]
pub struct AcceptOptions {
    /// Encrypts; `None` serves plain text.
    pub tls: Option<TlsConfig>,
    /// This core.
    pub core: CoreId,
    /// How many cores the node has. A wish for a core that does not exist is served here.
    pub cores: u16,
    /// From the first look to the hello.
    pub hello_timeout: Duration,
    /// The bounds of the connection.
    pub connection: ConnectionOptions,
}

impl AcceptOptions {
    /// The usual bounds: five seconds for the hello.
    pub fn new(tls: Option<TlsConfig>, core: CoreId, cores: u16) -> Self {
        let connection = ConnectionOptions {
            idle_timeout: Some(Duration::from_secs(600)),
            ..ConnectionOptions::default()
        };
        Self { tls, core, cores, hello_timeout: Duration::from_secs(5), connection }
    }
}

/// Where an accepted socket ended.
pub enum Accepted<R: NetRuntime> {
    /// It speaks the native protocol and is served by this core.
    Here(Box<Incoming<R>>),
    /// It speaks HTTP and is served by this core.
    Http(Box<HttpConnection<R>>),
    /// It asks for another core: detach the stream, send it there with the bytes, and accept it there.
    Elsewhere {
        /// The wanted core; it exists and is not this one.
        core: CoreId,
        /// The socket.
        stream: R::Stream,
        /// What was read from it already.
        received: Bytes,
    },
}

/// A connection whose hello waits for its answer: [`Connection::accept`] or [`Connection::refuse`].
pub struct Incoming<R: NetRuntime> {
    /// The connection.
    pub connection: Connection<R>,
    /// What the other side said of itself. Its token and cluster name have not been judged.
    pub hello: v1::Hello,
    /// The correlation id of the hello.
    pub correlation: u64,
}

/// A socket that was turned away. It has been told, and closed.
#[derive(Debug, thiserror::Error)]
#[error("connection from {} refused: {failure}", .peer.map_or("unknown".to_owned(), |peer| peer.to_string()))]
pub struct AcceptError {
    /// Who it was, for the log.
    pub peer: Option<SocketAddr>,
    /// Why.
    pub failure: AcceptFailure,
}

/// Why a socket was turned away.
#[derive(Debug, thiserror::Error)]
pub enum AcceptFailure {
    /// Nothing, or not enough, came in time.
    #[error("no hello within the time limit")]
    Timeout,
    /// It closed before its hello was whole.
    #[error("closed before its hello was whole")]
    Closed,
    /// The socket failed.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
    /// Native plain text, but this port wants TLS.
    #[error("plain text on a port that requires TLS")]
    PlainText,
    /// TLS, but this port serves plain text.
    #[error("TLS on a port that serves plain text")]
    Encrypted,
    /// HTTP in plain text, but this port wants TLS.
    #[error("plain HTTP on a port that requires TLS")]
    Http,
    /// None of the languages of this port.
    #[error("bytes that are no protocol of this port")]
    Garbage,
    /// The handshake failed: a foreign certificate, no common version.
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    /// The bytes where the hello should be are no frame, or the frame is not a hello.
    #[error("no hello: {0}")]
    Hello(#[source] ReceiveError),
    /// Another version of the native protocol.
    #[error("native protocol version {0} is not served")]
    Version(u32),
    /// It calls itself a node, but has shown no certificate of one.
    #[error("a node must show a node's certificate")]
    NotANode,
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstBytes {
    /// Too few to say.
    Undecided,
    /// A TLS handshake record.
    Tls,
    /// A native frame of a size that a hello may have.
    Native,
    /// An HTTP/1.1 request.
    Http1,
    /// HTTP/2's preface.
    Http2,
    /// Nothing that this port speaks.
    Garbage,
}

/// Tells from the first bytes what the other side speaks. No two languages share a beginning: a native hello is
/// short, so the third and fourth byte of its length are 0 or nearly, where TLS has its version and HTTP has letters.
pub fn classify(bytes: &[u8]) -> FirstBytes {
    const METHODS: [&[u8]; 9] =
        [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE "];
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
    if let [0x16, 0x03, 1..=4, ..] = bytes {
        return FirstBytes::Tls;
    }
    if METHODS.iter().any(|method| bytes.starts_with(method)) {
        return FirstBytes::Http1;
    }
    if bytes.starts_with(PREFACE) {
        return FirstBytes::Http2;
    }
    let Some(length) = bytes.first_chunk().map(|length| u32::from_le_bytes(*length) as usize) else {
        return FirstBytes::Undecided;
    };
    if (frame::HEADER_BYTES - 4..=PEEK_BYTES_MAX - 4).contains(&length) {
        return match bytes.get(6..8) {
            Some([0, 0]) => FirstBytes::Native,
            Some(_) => FirstBytes::Garbage,
            None => FirstBytes::Undecided,
        };
    }
    if PREFACE.starts_with(bytes) || METHODS.iter().any(|method| method.starts_with(bytes)) {
        return FirstBytes::Undecided;
    }
    FirstBytes::Garbage
}

/// Takes a socket as far as its hello. `received` holds bytes that another core read from it already; it is empty
/// for a socket that was just accepted.
///
/// Ends within the hello time limit and, if the other side must be told why it is refused, about two seconds more.
/// Memory is bounded by the hello's size. Run it in a task of its own, so that one silent socket delays no other.
pub async fn accept<R: NetRuntime>(
    runtime: &R,
    mut stream: R::Stream,
    received: Bytes,
    options: &AcceptOptions,
) -> Result<Accepted<R>, AcceptError> {
    let peer = stream.peer_address();
    let error = |failure| AcceptError { peer, failure };
    let deadline = runtime.now() + options.hello_timeout;
    let mut received = BytesMut::from(received);
    let peek = peek(&mut stream, &mut received, options.tls.is_some());
    let peeked = within(runtime, deadline, peek).await.map_err(error)?;
    let (wanted, speech) = match peeked {
        Peeked::Wants(core, speech) => (core, speech),
        Peeked::Refuse(failure, words) => {
            say_and_close(runtime, stream, &words).await;
            return Err(error(failure));
        }
    };
    if let Some(core) = wanted
        && core != options.core
        && core.0 < options.cores
    {
        return Ok(Accepted::Elsewhere { core, stream, received: received.freeze() });
    }
    let incoming = match (&options.tls, speech) {
        (Some(tls), _) => {
            let session = async {
                let stream = Prefixed::new(received.freeze(), stream);
                Ok(tls.acceptor().accept(stream).into_fallible().await)
            };
            match within(runtime, deadline, session).await.map_err(error)? {
                Ok(session) => {
                    let Encrypted { session, received, speech } =
                        within(runtime, deadline, hear(session.into())).await.map_err(error)?;
                    match speech {
                        Speech::Native => native_encrypted(runtime, session, &received, options),
                        Speech::Http(version) => {
                            let transport = Transport::Tls(Box::new(session));
                            return Ok(http(transport, received, version));
                        }
                    }
                }
                Err((source, mut stream)) => {
                    // The alert has been sent; see that it can be read.
                    linger(runtime, |context, scratch| Pin::new(&mut stream).poll_read(context, scratch))
                        .await;
                    return Err(error(AcceptFailure::Tls(source)));
                }
            }
        }
        (None, Speech::Http(version)) => {
            return Ok(http(Transport::Plain(stream), received.freeze(), version));
        }
        (None, Speech::Native) => {
            let mut reader = hello_reader();
            reader.feed(&received);
            let transport = Transport::Plain(stream);
            // Who may call itself a node is settled with the hello.
            let facts = PeerFacts { is_node: true, connected_to_us: true };
            Connection::start(runtime, transport, reader, facts, &options.connection)
        }
    };
    let incoming = take_hello(runtime, incoming, deadline, options.tls.is_some()).await.map_err(error)?;
    Ok(Accepted::Here(Box::new(incoming)))
}

fn http<R: NetRuntime>(
    transport: Transport<R::Stream>,
    received: Bytes,
    version: HttpVersion,
) -> Accepted<R> {
    Accepted::Http(Box::new(HttpConnection { transport, received, version }))
}

/// What is spoken, inside TLS where there is TLS.
#[derive(Clone, Copy)]
enum Speech {
    Native,
    Http(HttpVersion),
}

/// What a look at the first bytes says.
enum Peeked {
    /// A language of this port; perhaps a wish for a core. What is spoken inside TLS shows only later.
    Wants(Option<CoreId>, Speech),
    /// Not served; what to tell it.
    Refuse(AcceptFailure, Vec<u8>),
}

/// Reads until it is clear what speaks and which core it wants. All that is read stays in `received`.
async fn peek<S: Stream>(
    stream: &mut S,
    received: &mut BytesMut,
    with_tls: bool,
) -> Result<Peeked, AcceptFailure> {
    let mut scratch = [0; 4096];
    let mut client_hello = ClientHello::default();
    loop {
        let looked = match (classify(received), with_tls) {
            (FirstBytes::Undecided, _) => None,
            (FirstBytes::Tls, true) => client_hello.look(received),
            (FirstBytes::Native, false) => look_at_hello(received),
            (FirstBytes::Tls, false) => {
                // A fatal handshake_failure alert.
                Some(Peeked::Refuse(AcceptFailure::Encrypted, vec![0x15, 3, 3, 0, 2, 2, 40]))
            }
            (FirstBytes::Native, true) => {
                Some(Peeked::Refuse(AcceptFailure::PlainText, error_frame("this port requires TLS")))
            }
            (FirstBytes::Http1, false) => Some(Peeked::Wants(None, Speech::Http(HttpVersion::One))),
            (FirstBytes::Http2, false) => Some(Peeked::Wants(None, Speech::Http(HttpVersion::Two))),
            (FirstBytes::Http1 | FirstBytes::Http2, true) => {
                Some(Peeked::Refuse(AcceptFailure::Http, http_refusal()))
            }
            (FirstBytes::Garbage, _) => Some(Peeked::Refuse(AcceptFailure::Garbage, Vec::new())),
        };
        if let Some(looked) = looked {
            return Ok(looked);
        }
        if received.len() >= PEEK_BYTES_MAX {
            return Ok(Peeked::Refuse(AcceptFailure::Garbage, Vec::new()));
        }
        let read = stream.read(&mut scratch).await?;
        if read == 0 {
            return Err(AcceptFailure::Closed);
        }
        received.extend_from_slice(&scratch[..read]);
    }
}

/// The wish in a plain hello, once it is whole. What is wrong with it is said later, by the connection.
fn look_at_hello(received: &[u8]) -> Option<Peeked> {
    let mut reader = hello_reader();
    reader.feed(received);
    let wanted = match reader.next_frame() {
        Ok(None) => return None,
        Ok(Some(frame)) => frame.decode::<v1::Hello>().ok().and_then(|hello| {
            let core = hello.wanted_core_plus_one.checked_sub(1)?;
            u16::try_from(core).ok().map(CoreId)
        }),
        Err(_) => None,
    };
    Some(Peeked::Wants(wanted, Speech::Native))
}

/// Reads a ClientHello out of the received bytes.
#[derive(Default)]
struct ClientHello {
    acceptor: rustls::server::Acceptor,
    taken: usize,
}

impl ClientHello {
    /// The wish in its server name, once it is whole.
    fn look(&mut self, received: &[u8]) -> Option<Peeked> {
        let mut rest = &received[self.taken..];
        while !rest.is_empty() {
            if let Err(source) = self.acceptor.read_tls(&mut rest) {
                return Some(Peeked::Refuse(AcceptFailure::Tls(source), Vec::new()));
            }
            self.taken = received.len() - rest.len();
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let wanted = hello.server_name().and_then(core_of_server_name).map(CoreId);
                    return Some(Peeked::Wants(wanted, Speech::Native));
                }
                Err((error, mut alert)) => {
                    let mut words = Vec::new();
                    // Writing to a vector does not fail.
                    let _ = alert.write_all(&mut words);
                    if words.is_empty() {
                        // A fatal decode_error alert.
                        words = vec![0x15, 3, 3, 0, 2, 2, 50];
                    }
                    return Some(Peeked::Refuse(AcceptFailure::Tls(io::Error::other(error)), words));
                }
            }
        }
        None
    }
}

/// A TLS session, what was read from it, and what it speaks.
struct Encrypted<S> {
    session: TlsStream<Prefixed<S>>,
    received: Bytes,
    speech: Speech,
}

/// What is spoken inside TLS: what ALPN agreed on, or, without ALPN, what the first bytes are.
async fn hear<S: Stream>(mut session: TlsStream<Prefixed<S>>) -> Result<Encrypted<S>, AcceptFailure> {
    let agreed = match session.get_ref().1.alpn_protocol() {
        None => None,
        Some(tls::ALPN_HTTP1) => Some(Speech::Http(HttpVersion::One)),
        Some(tls::ALPN_HTTP2) => Some(Speech::Http(HttpVersion::Two)),
        // The handshake agrees on nothing that the configuration does not list.
        Some(_) => Some(Speech::Native),
    };
    if let Some(speech) = agreed {
        return Ok(Encrypted { session, received: Bytes::new(), speech });
    }
    let mut received = BytesMut::new();
    let mut scratch = [0; 4096];
    let speech = loop {
        match classify(&received) {
            FirstBytes::Undecided => {}
            FirstBytes::Native => break Speech::Native,
            FirstBytes::Http1 => break Speech::Http(HttpVersion::One),
            FirstBytes::Http2 => break Speech::Http(HttpVersion::Two),
            FirstBytes::Tls | FirstBytes::Garbage => return Err(AcceptFailure::Garbage),
        }
        let read = session.read(&mut scratch).await?;
        if read == 0 {
            return Err(AcceptFailure::Closed);
        }
        received.extend_from_slice(&scratch[..read]);
    };
    Ok(Encrypted { session, received: received.freeze(), speech })
}

fn native_encrypted<R: NetRuntime>(
    runtime: &R,
    session: TlsStream<Prefixed<R::Stream>>,
    received: &[u8],
    options: &AcceptOptions,
) -> Connection<R> {
    let facts = PeerFacts { is_node: tls::peer_is_node(&session), connected_to_us: true };
    let mut reader = hello_reader();
    reader.feed(received);
    let transport = Transport::Tls(Box::new(session));
    Connection::start(runtime, transport, reader, facts, &options.connection)
}

/// Waits for the hello and checks what can be checked without knowing the cluster.
async fn take_hello<R: NetRuntime>(
    runtime: &R,
    mut connection: Connection<R>,
    deadline: Instant,
    with_tls: bool,
) -> Result<Incoming<R>, AcceptFailure> {
    let receive = async { connection.receive().await.map_err(AcceptFailure::Hello) };
    let frame = match within(runtime, deadline, receive).await {
        Ok(frame) => frame,
        Err(AcceptFailure::Hello(ReceiveError::Closed)) => return Err(AcceptFailure::Closed),
        Err(failure) => {
            connection.finish("no hello").await;
            return Err(failure);
        }
    };
    let correlation = frame.correlation;
    let hello: v1::Hello = match frame.decode() {
        Ok(hello) => hello,
        Err(error) => return Err(refuse_hello(connection, error).await),
    };
    if hello.protocol_version != PROTOCOL_VERSION {
        let message = format!("this node speaks version {PROTOCOL_VERSION} of the native protocol");
        connection.refuse(&refusal(ErrorCode::WrongCluster, message)).await;
        return Err(AcceptFailure::Version(hello.protocol_version));
    }
    let says_node = hello.node.is_some();
    if says_node && with_tls && !connection.peer_is_node() {
        let message = AcceptFailure::NotANode.to_string();
        connection.refuse(&refusal(ErrorCode::PermissionDenied, message)).await;
        return Err(AcceptFailure::NotANode);
    }
    // A certificate alone makes no node: commands that run beside a node may use its certificate.
    connection.set_peer_is_node(says_node);
    Ok(Incoming { connection, hello, correlation })
}

async fn refuse_hello<R: NetRuntime>(connection: Connection<R>, error: FrameError) -> AcceptFailure {
    connection.refuse(&refusal(ErrorCode::InvalidArgument, error.to_string())).await;
    AcceptFailure::Hello(error.into())
}

async fn within<R: NetRuntime, T>(
    runtime: &R,
    deadline: Instant,
    future: impl Future<Output = Result<T, AcceptFailure>>,
) -> Result<T, AcceptFailure> {
    let limit = deadline.since(runtime.now());
    timeout(runtime, limit, future).await.unwrap_or(Err(AcceptFailure::Timeout))
}

fn refusal(code: ErrorCode, message: String) -> v1::Error {
    v1::Error { code: code as u32, message, ..Default::default() }
}

fn error_frame(message: &str) -> Vec<u8> {
    let mut words = BytesMut::new();
    let error = refusal(ErrorCode::InvalidArgument, message.to_owned());
    frame::encode(&mut words, Flags::NONE, 0, &error).expect("a short message fits a frame");
    words.to_vec()
}

fn http_refusal() -> Vec<u8> {
    let text = "this port requires TLS\n";
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}
