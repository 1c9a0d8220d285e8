//! A connection's bytes as hyper wants them, over the streams of our runtime.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::io::{AsyncRead, AsyncWrite};
use hyper::rt::ReadBufCursor;
use krita_runtime::Stream;

use super::monitor::Monitor;
use crate::transport::Transport;

/// Size of the buffer that all connections of a core read through.
pub(super) const SCRATCH_BYTES: usize = 64 * 1024;

/// One per core: bytes are in it only while one stream is polled.
pub(super) type Scratch = Rc<RefCell<Box<[u8]>>>;

/// See the module.
pub(super) struct HttpStream<S> {
    pub(super) transport: Transport<S>,
    /// Read already while it was found out what speaks; comes first.
    pub(super) received: Bytes,
    pub(super) monitor: Rc<Monitor>,
    pub(super) scratch: Scratch,
}

impl<S: Stream> hyper::rt::Read for HttpStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.monitor.is_turn_over() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !this.received.is_empty() {
            let length = this.received.len().min(buffer.remaining());
            buffer.put_slice(&this.received[..length]);
            this.received.advance(length);
            this.monitor.received(length);
            return Poll::Ready(Ok(()));
        }
        // hyper's buffer is not initialised, and saying how much of it we filled would be unsafe: a copy is not.
        let mut scratch = this.scratch.borrow_mut();
        let room = buffer.remaining().min(scratch.len());
        let polled = Pin::new(&mut this.transport).poll_read(context, &mut scratch[..room]);
        polled.map_ok(|length| {
            buffer.put_slice(&scratch[..length]);
            this.monitor.received(length);
        })
    }
}

impl<S: Stream> hyper::rt::Write for HttpStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_close(context)
    }
}
