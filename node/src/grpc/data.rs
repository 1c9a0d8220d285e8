//! The methods of `krita.v1.Krita`.

use krita_net::http::{BodySender, HeaderMap, IncomingBody, OutgoingBody, Response};
use krita_proto::frame::FrameKind;
use krita_proto::v1;
use krita_runtime::{Runtime, TaskClass, timeout};

use super::Call;
use super::cursor::{Mark, range};
use super::framing::{self, frame, framed, only, only_message, unary};
use super::status::Status;
use crate::batching;
use crate::failure::Failure;
use crate::scanning::{Page, PageSize, Scanner};

/// Items of a page that the caller does not limit, and most that it may ask for.
const PAGE_ITEMS_DEFAULT: usize = 500;
const PAGE_ITEMS_MAX: usize = 10_000;

/// A page ends at this many bytes; a single item may exceed it.
const PAGE_BYTES_MAX: usize = 256 * 1024;

/// A method whose messages are those of the native protocol: they pass as they are.
pub(super) async fn native<R: Runtime>(
    call: &Call<R>,
    kind: FrameKind,
    body: IncomingBody,
) -> Result<Response<OutgoingBody>, Status> {
    call.admit()?;
    let request = only_message(body).await?;
    let answer = call.core.ask_encoded(kind, request, call.left()).await?;
    Ok(unary(framed(&answer)))
}

/// Many operations on any keys.
pub(super) async fn batch<R: Runtime>(
    call: &Call<R>,
    body: IncomingBody,
) -> Result<Response<OutgoingBody>, Status> {
    call.admit()?;
    let request = only::<v1::KeyBatch>(body).await?;
    let reply = batching::batch(&call.core, request, call.left()).await?;
    Ok(unary(frame(&reply)))
}

/// A running scan and what it still owes.
struct Stream<R: Runtime> {
    call: Call<R>,
    scanner: Scanner<R>,
    mark: Mark,
    scan_id: u64,
    size: PageSize,
    /// Items that may still be sent.
    left: u64,
}

/// Keys in order over all shards.
pub(super) async fn scan<R: Runtime>(
    call: Call<R>,
    body: IncomingBody,
) -> Result<Response<OutgoingBody>, Status> {
    call.admit()?;
    let request = only::<v1::KeyScan>(body).await?;
    let (range, mark) = range(&request, call.core.runtime.random_u64())?;
    let scan_id = range.scan.id;
    let items_max = match request.page_items as usize {
        0 => PAGE_ITEMS_DEFAULT,
        items => items.min(PAGE_ITEMS_MAX),
    };
    let left = if request.limit == 0 { u64::MAX } else { request.limit };
    let scanner = Scanner::new(&call.core, range)?;
    let size = PageSize { items_max, bytes_max: PAGE_BYTES_MAX };
    let mut stream = Stream { call, scanner, mark, scan_id, size, left };
    // The first page before the answer begins: what refuses the whole scan shall be its only status.
    let first = stream.next().await?;
    let (sender, body) = OutgoingBody::channel();
    let runtime = stream.call.core.runtime.clone();
    runtime.spawn(TaskClass::Foreground, "grpc-scan", stream.send_all(first, sender));
    Ok(framing::with_body(body))
}

impl<R: Runtime> Stream<R> {
    async fn next(&mut self) -> Result<Page, Status> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let size = PageSize { items_max: self.size.items_max.min(left), ..self.size };
        let runtime = self.call.core.runtime.clone();
        let left = self.call.left();
        let next = self.scanner.next_page(size);
        let page = match left {
            // Nothing of it is file I/O: the pages are read by tasks of their shards.
            Some(left) => timeout(&runtime, left, next).await.unwrap_or_else(|_| Err(Failure::deadline()))?,
            None => next.await?,
        };
        Ok(page)
    }

    /// Sends page after page, and the status at the end. Ends early if nobody listens any more.
    async fn send_all(mut self, first: Page, mut sender: BodySender) {
        let mut page = first;
        let trailers = loop {
            let Page { items, more, versions } = page;
            self.left -= items.len() as u64;
            let cursor = match items.last() {
                Some(last) if more => self.mark.cursor_behind(self.scan_id, &last.key),
                Some(_) | None => bytes::Bytes::new(),
            };
            let message = frame(&v1::KeyScanReply { items, cursor, versions });
            match self.send(&mut sender, message).await {
                Sent::Taken => {}
                Sent::Gone => return,
                Sent::TooLate => break Status::from(Failure::deadline()).trailers(),
            }
            if !more {
                self.scanner.release();
                break Status::ok_trailers();
            }
            if self.left == 0 {
                break Status::ok_trailers();
            }
            page = match self.next().await {
                Ok(page) => page,
                Err(status) => break status.trailers(),
            };
        };
        finish(sender, trailers);
    }

    async fn send(&self, sender: &mut BodySender, message: bytes::Bytes) -> Sent {
        let sent = match self.call.left() {
            Some(left) => timeout(&self.call.core.runtime, left, sender.send(message)).await,
            None => Ok(sender.send(message).await),
        };
        match sent {
            Ok(Ok(())) => Sent::Taken,
            Ok(Err(_)) => Sent::Gone,
            Err(_) => Sent::TooLate,
        }
    }
}

enum Sent {
    Taken,
    Gone,
    TooLate,
}

fn finish(sender: BodySender, trailers: HeaderMap) {
    sender.finish(Some(trailers));
}
