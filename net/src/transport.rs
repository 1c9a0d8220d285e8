//! What stands below the frames: a plain stream or a TLS session over one, and bytes that were read ahead.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_rustls::TlsStream;
use futures_util::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use krita_runtime::{Clock, Stream, timeout};

/// How long, and for how many bytes, a refused side is listened to, so that a reset does not overtake the refusal.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// Reads and throws away until the other side closes, within bounds.
pub(crate) async fn linger(
    clock: &impl Clock,
    mut poll_read: impl FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
) {
    let mut scratch = [0; 4096];
    let drain = async {
        let mut drained = 0;
        while drained < LINGER_BYTES_MAX {
            match poll_fn(|context| poll_read(context, &mut scratch)).await {
                Ok(0) | Err(_) => return,
                Ok(read) => drained += read,
            }
        }
    };
    // Past the limit the other side has had its chance.
    let _ = timeout(clock, LINGER, drain).await;
}

/// Tells the other side something in its own language, and closes. Best effort, within bounds.
pub(crate) async fn say_and_close<S: Stream>(clock: &impl Clock, mut stream: S, words: &[u8]) {
    let say = async {
        stream.write_all(words).await?;
        stream.flush().await?;
        stream.close().await
    };
    if let Ok(Ok(())) = timeout(clock, LINGER, say).await {
        linger(clock, |context, scratch| Pin::new(&mut stream).poll_read(context, scratch)).await;
    }
}

/// A stream whose first bytes have been read already: they come first again.
pub(crate) struct Prefixed<S> {
    prefix: Bytes,
    stream: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(prefix: Bytes, stream: S) -> Self {
        Self { prefix, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.prefix.len().min(buffer.len());
        self.prefix.copy_to_slice(&mut buffer[..length]);
        if self.prefix.is_empty() {
            // Lets the memory go.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// A connected stream, encrypted or not.
pub(crate) enum Transport<S> {
    /// Plain bytes.
    Plain(S),
    /// TLS, either side. Boxed: a session is large, and most code moves transports.
    Tls(Box<TlsStream<Prefixed<S>>>),
}

impl<S: Stream> Transport<S> {
    /// Who is at the other end.
    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_address(),
            Self::Tls(session) => session.get_ref().0.stream.peer_address(),
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(_) => true,
        }
    }
}

impl<S: Stream> AsyncRead for Transport<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(session) => Pin::new(session).poll_read(context, buffer),
        }
    }
}

impl<S: Stream> AsyncWrite for Transport<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(session) => Pin::new(session).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(session) => Pin::new(session).poll_flush(context),
        }
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_close(context),
            Self::Tls(session) => Pin::new(session).poll_close(context),
        }
    }
}
