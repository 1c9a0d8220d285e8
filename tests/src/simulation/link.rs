//! One connection of a simulated client: the client library's own protocol core over a simulated stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use futures_util::io::{AsyncRead, AsyncWrite};
use krita_runtime::sim::{SimRuntime, SimStream};
use krita_runtime::{Network, timeout};
use kritaclient::core::call::Attempt;
use kritaclient::core::connection::{Connection, ConnectionError, Event, Greeting};
use kritaclient::core::message::{Request, Response};
use kritaclient::{Error, ErrorCode};

/// A connection whose hello has been accepted. It carries one request at a time; an answer that comes after its
/// request was given up is skipped.
pub(crate) struct Link {
    stream: SimStream,
    connection: Connection,
    /// Something was received since the last request was sent.
    is_heard: bool,
    is_broken: bool,
}

impl Link {
    /// Connects and says hello, within `limit`. Returns the node's log time too.
    pub(crate) async fn open(
        runtime: &SimRuntime,
        address: &str,
        greeting: &Greeting,
        limit: Duration,
    ) -> Result<(Self, u64), Error> {
        let unreachable = |reason: String| Error::new(ErrorCode::Unavailable, format!("{address}: {reason}"));
        let opening = async {
            let stream =
                runtime.connect(address, limit).await.map_err(|error| unreachable(error.to_string()))?;
            let connection = Connection::new(greeting);
            let mut link = Self { stream, connection, is_heard: false, is_broken: false };
            match link.next_event().await {
                Ok(Event::Ready(reply)) => Ok((link, reply.log_time_ms)),
                Ok(Event::Answer { .. }) => panic!("{address} answered before the hello"),
                Err(reason) => Err(unreachable(reason)),
            }
        };
        timeout(runtime, limit, opening).await.unwrap_or_else(|_| Err(unreachable("no hello in time".into())))
    }

    /// Sends a request and waits for its answer.
    pub(crate) async fn call(
        &mut self,
        runtime: &SimRuntime,
        request: &Request,
        limit: Duration,
    ) -> Result<Response, Attempt> {
        let correlation = match self.connection.send(request) {
            Ok(correlation) => correlation,
            Err(error) => {
                self.is_broken = true;
                return Err(Attempt::NotSent(Error::new(ErrorCode::Unavailable, error.to_string())));
            }
        };
        self.is_heard = false;
        let answered = async {
            loop {
                match self.next_event().await {
                    Ok(Event::Answer { correlation: of, answer }) if of == correlation => {
                        return answer.map_err(Attempt::Refused);
                    }
                    Ok(Event::Answer { .. } | Event::Ready(_)) => {}
                    Err(reason) => return Err(Attempt::Lost(reason)),
                }
            }
        };
        let outcome = timeout(runtime, limit, answered).await;
        outcome.unwrap_or_else(|_| {
            // Not a byte in all that time: the peer is gone, whatever the stream says.
            self.is_broken |= !self.is_heard;
            Err(Attempt::TimedOut)
        })
    }

    /// Whether another request may be sent on it, as far as is known by now.
    pub(crate) async fn is_open(&mut self) -> bool {
        if !self.is_broken {
            // Late answers are skipped, and an end that has arrived is noticed.
            poll_fn(|context| {
                while let Poll::Ready(Ok(_)) = self.poll_event(context) {}
                Poll::Ready(())
            })
            .await;
        }
        !self.is_broken
    }

    async fn next_event(&mut self) -> Result<Event, String> {
        poll_fn(|context| self.poll_event(context)).await
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, String>> {
        let moved = self.poll_move(context);
        if let Poll::Ready(Err(_)) = moved {
            self.is_broken = true;
        }
        moved
    }

    fn poll_move(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, String>> {
        loop {
            match self.connection.next_event() {
                Ok(Some(event)) => return Poll::Ready(Ok(event)),
                Ok(None) => {}
                Err(error @ ConnectionError::Refused(_)) => return Poll::Ready(Err(error.to_string())),
                Err(error) => panic!("a node broke the protocol: {error}"),
            }
            while !self.connection.outgoing().is_empty() {
                let stream = Pin::new(&mut self.stream);
                match stream.poll_write(context, self.connection.outgoing()) {
                    Poll::Ready(Ok(bytes)) => self.connection.outgoing().advance(bytes),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
                    Poll::Pending => break,
                }
            }
            if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(context) {
                return Poll::Ready(Err(error.to_string()));
            }
            match Pin::new(&mut self.stream).poll_read(context, self.connection.space()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err("closed by the node".to_owned())),
                Poll::Ready(Ok(bytes)) => {
                    self.is_heard = true;
                    self.connection.received(bytes);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.to_string())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
