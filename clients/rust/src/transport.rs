//! One connection over TCP and TLS, on tokio: a task that moves bytes for [`Connection`] and hands answers out.
//!
//! The TLS server name says which core shall serve the connection (`c<core>.node.krita.internal`); every node's
//! certificate is valid for all of them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use krita_proto::error::ErrorCode;
use krita_proto::frame::ALPN;
use krita_proto::routing::{CORE_DOMAIN, server_name_for_core};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::core::call::Attempt;
use crate::core::connection::{Connection, ConnectionError, Event, Greeting, IN_FLIGHT_MAX};
use crate::core::message::{Request, Response};
use crate::error::{Error, Result};
use crate::options::{Options, Security};

/// Requests that wait for a connection's task; more wait in their callers.
const QUEUE_MAX: usize = 256;

/// While this many bytes wait for the socket, no more requests are encoded.
const OUTGOING_BYTES_MAX: usize = 1024 * 1024;

/// A byte stream, plain or TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

struct Outgoing {
    request: Request,
    answer: oneshot::Sender<Result<Response, Attempt>>,
}

/// A connection that has said hello. Requests share it.
#[derive(Debug)]
pub(crate) struct Link {
    sender: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
    task: AbortHandle,
    /// The log time of the hello's answer until somebody has learnt it; then 0.
    log_time_ms: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    is_open: AtomicBool,
    opened: Instant,
    /// When the peer was last heard, in milliseconds since `opened`.
    heard_ms: AtomicU64,
}

impl Shared {
    fn elapsed_ms(&self) -> u64 {
        crate::core::retry::milliseconds(self.opened.elapsed())
    }
}

/// Makes connections to one cluster.
pub(crate) struct Connector {
    cluster_name: String,
    token: String,
    client_name: String,
    connect_timeout: Duration,
    tls: Option<TlsConnector>,
}

impl Connector {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let tls = match &options.security {
            Security::Tls { ca_pem } => Some(TlsConnector::from(tls_configuration(ca_pem)?)),
            Security::Insecure => None,
        };
        Ok(Self {
            cluster_name: options.cluster_name.clone(),
            token: options.token.clone(),
            client_name: options.client_name.clone(),
            connect_timeout: options.connect_timeout,
            tls,
        })
    }

    /// Connects and says hello. An error says nothing about any request: none was sent.
    pub(crate) async fn connect(&self, address: &str, core: Option<u16>) -> Result<Link> {
        match timeout(self.connect_timeout, self.connect_unbounded(address, core)).await {
            Ok(connected) => connected,
            Err(_) => {
                let waited = self.connect_timeout.as_millis();
                Err(unreachable_node(address, format!("no connection and hello within {waited} ms")))
            }
        }
    }

    async fn connect_unbounded(&self, address: &str, core: Option<u16>) -> Result<Link> {
        let tcp = TcpStream::connect(address).await.map_err(|error| unreachable_node(address, error))?;
        tcp.set_nodelay(true).map_err(|error| unreachable_node(address, error))?;
        let mut stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(connector) => {
                let name = core.map_or_else(|| format!("any.{CORE_DOMAIN}"), server_name_for_core);
                let name = ServerName::try_from(name).expect("a fixed domain with a number is a name");
                let tls = connector.connect(name, tcp).await;
                Box::new(tls.map_err(|error| tls_failure(address, &error))?)
            }
        };
        let greeting = Greeting {
            cluster_name: self.cluster_name.clone(),
            token: self.token.clone(),
            core,
            client_name: self.client_name.clone(),
        };
        let mut connection = Connection::new(&greeting);
        let log_time_ms = greet(&mut stream, &mut connection, address, self.tls.is_some()).await?;
        Ok(Link::start(stream, connection, log_time_ms))
    }
}

fn unreachable_node(address: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Unavailable, format!("cannot reach {address}: {reason}"))
}

fn misconfigured(address: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::WrongCluster, format!("{address}: {reason}"))
}

fn tls_configuration(ca_pem: &[u8]) -> Result<Arc<rustls::ClientConfig>> {
    let invalid = |reason: String| Error::new(ErrorCode::WrongCluster, reason);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        let certificate =
            certificate.map_err(|error| invalid(format!("the authority is not PEM: {error}")))?;
        roots.add(certificate).map_err(|error| invalid(format!("the authority does not parse: {error}")))?;
    }
    if roots.is_empty() {
        return Err(invalid(
            "no certificate authority: name the folder that holds ca.crt (KRITA_TLS_CERT_PATH), or choose plain \
             text"
                .to_owned(),
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut configuration = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| invalid(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    configuration.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(configuration))
}

/// Whether a failed handshake is a matter of configuration, or of a node that stops.
fn tls_failure(address: &str, error: &std::io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(reason)) => misconfigured(
            address,
            format!(
                "its certificate is not accepted ({reason:?}): is this the cluster that the authority is of?"
            ),
        ),
        Some(rustls::Error::InvalidMessage(_)) => {
            misconfigured(address, "it does not speak TLS: does the node run with --insecure?")
        }
        Some(other) => misconfigured(address, format!("the TLS handshake failed: {other}")),
        None => unreachable_node(address, format!("the TLS handshake broke off: {error}")),
    }
}

/// Says hello; returns the node's log time.
async fn greet(
    stream: &mut Box<dyn Stream>,
    connection: &mut Connection,
    address: &str,
    is_tls: bool,
) -> Result<u64> {
    let broken = |error: std::io::Error| unreachable_node(address, format!("the hello broke off: {error}"));
    stream.write_all_buf(connection.outgoing()).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    loop {
        match connection.next_event() {
            Ok(Some(Event::Ready(reply))) => return Ok(reply.log_time_ms),
            Ok(Some(Event::Answer { .. })) => {
                return Err(misconfigured(address, "it answered a request before the hello"));
            }
            Ok(None) => {}
            Err(ConnectionError::Refused(error)) => return Err(error.to_error()),
            Err(ConnectionError::Frame(error)) => {
                let hint = if is_tls { "" } else { " (does it want TLS?)" };
                return Err(misconfigured(
                    address,
                    format!("it does not speak this protocol{hint}: {error}"),
                ));
            }
            Err(error @ ConnectionError::Protocol(_)) => return Err(misconfigured(address, error)),
        }
        let bytes = stream.read(connection.space()).await.map_err(broken)?;
        if bytes == 0 {
            let hint = if is_tls { "" } else { "; does it want TLS?" };
            return Err(unreachable_node(address, format!("it closed before it answered the hello{hint}")));
        }
        connection.received(bytes);
    }
}

impl Link {
    fn start(stream: Box<dyn Stream>, connection: Connection, log_time_ms: u64) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let opened = Instant::now();
        let shared = Arc::new(Shared { is_open: AtomicBool::new(true), opened, heard_ms: AtomicU64::new(0) });
        let driver = Driver {
            stream,
            connection,
            receiver,
            waiting: BTreeMap::new(),
            shared: shared.clone(),
            is_flushed: true,
            is_abandoned: false,
        };
        let task = tokio::spawn(driver.run()).abort_handle();
        Self { sender, shared, task, log_time_ms: AtomicU64::new(log_time_ms) }
    }

    /// Whether requests may be sent on it.
    pub(crate) fn is_open(&self) -> bool {
        self.shared.is_open.load(Ordering::Acquire)
    }

    /// The log time of the hello, to the first who asks.
    pub(crate) fn take_log_time(&self) -> Option<u64> {
        match self.log_time_ms.swap(0, Ordering::Relaxed) {
            0 => None,
            log_time_ms => Some(log_time_ms),
        }
    }

    /// Sends a request and waits for its answer, until `deadline`.
    pub(crate) async fn call(&self, request: Request, deadline: Instant) -> Result<Response, Attempt> {
        let began_ms = self.shared.elapsed_ms();
        let (answer, wait) = oneshot::channel();
        let not_sent = |reason: &str| Attempt::NotSent(Error::new(ErrorCode::Unavailable, reason));
        match timeout_at(deadline, self.sender.send(Outgoing { request, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(not_sent("the connection has just closed")),
            Err(_) => return Err(not_sent("the connection is full of requests that wait")),
        }
        match timeout_at(deadline, wait).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Attempt::Lost("closed by the peer or the network".to_owned())),
            Err(_) => {
                if self.shared.heard_ms.load(Ordering::Relaxed) < began_ms {
                    // Not a byte in all that time: the peer is gone, whatever TCP says.
                    self.close();
                }
                Err(Attempt::TimedOut)
            }
        }
    }

    fn close(&self) {
        self.shared.is_open.store(false, Ordering::Release);
        self.task.abort();
    }
}

/// The task of one connection. Ends when the peer is gone, or when nobody holds the link and all is answered.
struct Driver {
    stream: Box<dyn Stream>,
    connection: Connection,
    receiver: mpsc::Receiver<Outgoing>,
    /// By correlation id; those in flight on `connection`.
    waiting: BTreeMap<u64, oneshot::Sender<Result<Response, Attempt>>>,
    shared: Arc<Shared>,
    is_flushed: bool,
    is_abandoned: bool,
}

impl Driver {
    async fn run(mut self) {
        let end = std::future::poll_fn(|context| self.poll(context)).await;
        self.shared.is_open.store(false, Ordering::Release);
        tracing::debug!(reason = end, "connection closed");
        // What was never encoded never left; what was in flight has an unknown fate.
        self.receiver.close();
        while let Ok(outgoing) = self.receiver.try_recv() {
            let error = Error::new(ErrorCode::Unavailable, format!("the connection has closed: {end}"));
            let _gone = outgoing.answer.send(Err(Attempt::NotSent(error)));
        }
        for answer in std::mem::take(&mut self.waiting).into_values() {
            let _gone = answer.send(Err(Attempt::Lost(end.clone())));
        }
    }

    /// Moves whatever can be moved; ready with the reason when the connection has ended.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<String> {
        loop {
            self.take_requests(context);
            if let Err(error) = self.write(context) {
                return Poll::Ready(error.to_string());
            }
            if self.is_abandoned && self.waiting.is_empty() {
                return Poll::Ready("nobody uses it any more".to_owned());
            }
            match self.read(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(reason)) => return Poll::Ready(reason),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn take_requests(&mut self, context: &mut Context<'_>) {
        while !self.is_abandoned
            && self.connection.in_flight() < IN_FLIGHT_MAX
            && self.connection.outgoing().len() < OUTGOING_BYTES_MAX
        {
            match self.receiver.poll_recv(context) {
                Poll::Ready(Some(outgoing)) => self.encode(outgoing),
                Poll::Ready(None) => self.is_abandoned = true,
                Poll::Pending => return,
            }
        }
    }

    fn encode(&mut self, outgoing: Outgoing) {
        if outgoing.answer.is_closed() {
            return;
        }
        match self.connection.send(&outgoing.request) {
            Ok(correlation) => {
                self.waiting.insert(correlation, outgoing.answer);
            }
            Err(error) => {
                let error = Error::invalid(error.to_string());
                let _gone = outgoing.answer.send(Err(Attempt::NotSent(error)));
            }
        }
    }

    fn write(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        while !self.connection.outgoing().is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, self.connection.outgoing()) {
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => {
                    self.connection.outgoing().advance(bytes);
                    self.is_flushed = false;
                    // Room again for requests that wait: they are taken on the next turn.
                    if self.connection.outgoing().is_empty() {
                        self.take_requests(context);
                    }
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        if !self.is_flushed {
            match Pin::new(&mut self.stream).poll_flush(context) {
                Poll::Ready(Ok(())) => self.is_flushed = true,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    fn read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), String>> {
        let mut buffer = ReadBuf::new(self.connection.space());
        match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
            Poll::Ready(Ok(())) => {}
        }
        let bytes = buffer.filled().len();
        if bytes == 0 {
            return Poll::Ready(Err("the peer closed it".to_owned()));
        }
        self.connection.received(bytes);
        self.shared.heard_ms.store(self.shared.elapsed_ms(), Ordering::Relaxed);
        loop {
            match self.connection.next_event() {
                Ok(None) => return Poll::Ready(Ok(())),
                Ok(Some(Event::Answer { correlation, answer })) => {
                    let Some(waiting) = self.waiting.remove(&correlation) else { continue };
                    // Whoever asked may have stopped waiting.
                    let _gone = waiting.send(answer.map_err(Attempt::Refused));
                }
                Ok(Some(Event::Ready(_))) => return Poll::Ready(Err("a second hello".to_owned())),
                Err(error) => return Poll::Ready(Err(error.to_string())),
            }
        }
    }
}
