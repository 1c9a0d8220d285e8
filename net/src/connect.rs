//! The connecting side: TCP, TLS where configured, hello.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::frame::{Flags, FrameError, FrameKind, PROTOCOL_VERSION};
use krita_proto::v1;
use krita_runtime::timeout;

use crate::NetRuntime;
use crate::connection::{Connection, ConnectionOptions, PeerFacts, ReceiveError, hello_reader};
use crate::outgoing::SendError;
use crate::tls::{self, TlsConfig, TlsError};
use crate::transport::{Prefixed, Transport};

/// The hello's correlation id; the first request may use the next.
const HELLO_CORRELATION: u64 = 1;

/// Where to connect to, and how.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `host:port`; names are resolved at each call.
    pub address: String,
    /// The core that shall serve the connection; `None` for any.
    pub core: Option<u16>,
    /// Encrypts, verifies the other side and shows our certificate; `None` is plain text.
    pub tls: Option<TlsConfig>,
    /// Bounds the whole of it: resolving, connecting, handshake and hello.
    pub timeout: Duration,
    /// The bounds of the connection.
    pub connection: ConnectionOptions,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// The address cannot be reached.
    #[error("cannot connect: {0}")]
    Io(io::Error),
    /// The TLS handshake failed: a foreign certificate, a server without TLS.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The address names nothing that TLS could verify.
    #[error(transparent)]
    Name(#[from] TlsError),
    /// The connection ended before the hello was answered.
    #[error("the hello was not answered: {0}")]
    Receive(#[from] ReceiveError),
    /// The hello could not be sent.
    #[error("the hello was not sent: {0}")]
    Send(#[from] SendError),
    /// The other side answered with an error.
    #[error("refused: {}", .0.message)]
    Refused(Box<v1::Error>),
}

/// Connects and says hello. The version and the wanted core of `hello` are filled in here.
pub async fn connect<R: NetRuntime>(
    runtime: &R,
    options: &ConnectOptions,
    hello: v1::Hello,
) -> Result<(Connection<R>, v1::HelloReply), ConnectError> {
    let limit = options.timeout;
    timeout(runtime, limit, connect_unbounded(runtime, options, hello))
        .await
        .unwrap_or(Err(ConnectError::Timeout))
}

async fn connect_unbounded<R: NetRuntime>(
    runtime: &R,
    options: &ConnectOptions,
    mut hello: v1::Hello,
) -> Result<(Connection<R>, v1::HelloReply), ConnectError> {
    let stream = runtime.connect(&options.address, options.timeout).await.map_err(ConnectError::Io)?;
    let transport = match &options.tls {
        None => Transport::Plain(stream),
        Some(tls) => {
            let name = tls::server_name(&options.address, options.core)?;
            let stream = Prefixed::new(Bytes::new(), stream);
            let session = tls.connector().connect(name, stream).await.map_err(ConnectError::Tls)?;
            Transport::Tls(Box::new(session.into()))
        }
    };
    // Whom we connected to ourselves is what its certificate says; what it sends is answers.
    let facts = PeerFacts { is_node: true, connected_to_us: false };
    let mut connection = Connection::start(runtime, transport, hello_reader(), facts, &options.connection);
    hello.protocol_version = PROTOCOL_VERSION;
    hello.wanted_core_plus_one = options.core.map_or(0, |core| u32::from(core) + 1);
    connection.sender().send(Flags::NONE, HELLO_CORRELATION, &hello)?;
    let frame = connection.receive().await?;
    if frame.kind == FrameKind::Error {
        let error = frame.decode().map_err(ReceiveError::Frame)?;
        return Err(ConnectError::Refused(Box::new(error)));
    }
    let reply = frame.decode::<v1::HelloReply>().map_err(ReceiveError::Frame)?;
    if frame.correlation != HELLO_CORRELATION {
        let (expected, found) = (FrameKind::HelloReply, frame.kind);
        let error = FrameError::UnexpectedKind { expected, found, correlation: frame.correlation };
        return Err(ReceiveError::Frame(error).into());
    }
    connection.raise_frame_limit();
    Ok((connection, reply))
}
