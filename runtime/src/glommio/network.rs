//! The network on the real machine: TCP, ready when the ring says so.
//!
//! Accepting and connecting wait for readiness and then make the system call at once, so that a caller may
//! give up at any time and no connection is lost in between.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream as StdStream, ToSocketAddrs};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use ::glommio::io::PollableFd;
use ::glommio::net::TcpStream;
use futures_util::io::{AsyncRead, AsyncWrite};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{GlommioRuntime, helper};
use crate::{Clock, Listener, Network, Stream, timeout};

/// Connections that wait to be accepted, at most; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// Sent data that stays unacknowledged this long ends the connection.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// A silent connection is probed after this long, and given up after as many probes more.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;

/// How long to wait before accepting again when the process has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// The sockets that the cores of one node listen on, each bound once. A socket closes with its last listener.
#[derive(Default)]
pub(crate) struct ListenerRegistry {
    sockets: Mutex<BTreeMap<(SocketAddr, u32), Weak<TcpListener>>>,
}

impl ListenerRegistry {
    /// The socket for `address`: the one that another core bound, or a new one. `turn` tells apart sockets
    /// whose port the system chooses: every core's first listen on port 0 means one socket, its second another.
    fn socket(&self, address: SocketAddr, turn: u32) -> io::Result<Arc<TcpListener>> {
        let mut sockets = self.sockets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(socket) = sockets.get(&(address, turn)).and_then(Weak::upgrade) {
            return Ok(socket);
        }
        let socket = Arc::new(bind(address)?);
        sockets.insert((address, turn), Arc::downgrade(&socket));
        Ok(socket)
    }
}

/// Binds without SO_REUSEPORT: with it two processes of one user would share a port in silence.
/// SO_REUSEADDR only lets a restart bind while old connections linger.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // So that 0.0.0.0 and [::] can be listened on beside each other, whatever the system's default.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A listening socket of a node, as one core uses it.
pub struct GlommioListener {
    listener: PollableFd<TcpListener>,
    address: SocketAddr,
    runtime: GlommioRuntime,
    /// Keeps the node's registry entry for other cores to find.
    _shared: Arc<TcpListener>,
}

impl Listener for GlommioListener {
    type Stream = GlommioStream;

    async fn accept(&self) -> io::Result<GlommioStream> {
        loop {
            match self.listener.get_ref().accept() {
                Ok((stream, peer)) => match prepare(&stream) {
                    Ok(()) => return Ok(GlommioStream::new(stream, Some(peer))),
                    // The peer is gone again already.
                    Err(error) => tracing::debug!(%peer, %error, "an accepted connection failed at once"),
                },
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.listener.readable().await?,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ if out_of_descriptors(&error) => {
                        // The connection stays in the backlog, so waiting for readiness would spin.
                        tracing::warn!(%error, "cannot accept: raise the limit of open files (LimitNOFILE)");
                        self.runtime.sleep(ACCEPT_RETRY).await;
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    fn local_address(&self) -> SocketAddr {
        self.address
    }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Sends at once, and notices a dead peer within [`UNACKNOWLEDGED_MAX`], busy or silent.
fn prepare(stream: &StdStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// A TCP connection.
pub struct GlommioStream {
    stream: TcpStream,
    peer: Option<SocketAddr>,
}

impl GlommioStream {
    fn new(stream: StdStream, peer: Option<SocketAddr>) -> Self {
        Self { stream: TcpStream::from(Socket::from(stream)), peer }
    }
}

impl Stream for GlommioStream {
    fn peer_address(&self) -> Option<SocketAddr> {
        self.peer
    }
}

impl AsyncRead for GlommioStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for GlommioStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_close(context) {
            // The other end was faster.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            poll => poll,
        }
    }
}

/// A connection on its way to another core. Dropping it closes the connection.
pub struct GlommioHandoff {
    descriptor: OwnedFd,
    peer: Option<SocketAddr>,
}

impl Network for GlommioRuntime {
    type Stream = GlommioStream;
    type Listener = GlommioListener;
    type Handoff = GlommioHandoff;

    async fn listen(&self, address: SocketAddr) -> io::Result<GlommioListener> {
        let turn = if address.port() == 0 {
            self.inner.ephemeral_listens.replace(self.inner.ephemeral_listens.get() + 1)
        } else {
            0
        };
        let shared = self.inner.node.listeners.socket(address, turn)?;
        Ok(GlommioListener {
            address: shared.local_addr()?,
            listener: PollableFd::new(shared.try_clone()?)?,
            runtime: self.clone(),
            _shared: shared,
        })
    }

    async fn connect(&self, address: &str, limit: Duration) -> io::Result<GlommioStream> {
        timeout(self, limit, connect(address)).await.unwrap_or_else(|_| {
            let message = format!("connecting to {address} took longer than {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        })
    }

    fn detach(&self, stream: GlommioStream) -> GlommioHandoff {
        let GlommioStream { stream, peer } = stream;
        // SAFETY: `into_raw_fd` gives up the descriptor, which is open and has no other owner.
        let descriptor = unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) };
        GlommioHandoff { descriptor, peer }
    }

    fn attach(&self, handoff: GlommioHandoff) -> io::Result<GlommioStream> {
        Ok(GlommioStream::new(StdStream::from(handoff.descriptor), handoff.peer))
    }
}

/// Tries every address of a name, in the resolver's order, and returns the first connection or the last error.
async fn connect(address: &str) -> io::Result<GlommioStream> {
    let addresses = match address.parse::<SocketAddr>() {
        Ok(literal) => vec![literal],
        Err(_) => {
            let name = address.to_owned();
            helper::names(move || Ok(name.to_socket_addrs()?.collect::<Vec<_>>())).await?
        }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
    for address in addresses {
        match connect_to(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(address: SocketAddr) -> io::Result<GlommioStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let socket = match socket.connect(&address.into()) {
        Ok(()) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            let pending = PollableFd::new(socket)?;
            pending.writable().await?;
            pending.into_inner()
        }
        Err(error) => return Err(error),
    };
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    let stream = StdStream::from(socket);
    // Fails if the connection is not established after all.
    let peer = stream.peer_addr()?;
    prepare(&stream)?;
    Ok(GlommioStream::new(stream, Some(peer)))
}
