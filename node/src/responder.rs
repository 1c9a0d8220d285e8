//! The answer to a request, owed exactly once, wherever the request came from: a connection of this core, or
//! another core over the mesh.

use std::rc::Rc;

use bytes::Bytes;
use krita_proto::frame::{FrameKind, FrameMessage};
use prost::Message;

use crate::failure::Failure;
use crate::metrics::Measured;

/// Where answers go: a connection's outgoing queue, or the mesh to the core that has the connection.
pub(crate) trait ReplySink {
    /// Queues one answer. Never blocks; an answer that no longer has a reader is dropped.
    fn reply(&self, ticket: u64, kind: FrameKind, body: Bytes);
}

/// The obligation to answer one request. Dropping it unanswered answers for it: a write's outcome is then
/// unknown, anything else failed.
pub(crate) struct Responder {
    sink: Option<Rc<dyn ReplySink>>,
    ticket: u64,
    /// The request may have changed data.
    changes_data: bool,
    /// Counts the answer, on requests that are counted here.
    measured: Option<Measured>,
}

impl Responder {
    /// Owes an answer under `ticket` (the frame's correlation id, or a number of the sink's own).
    pub(crate) fn new(sink: Rc<dyn ReplySink>, ticket: u64, changes_data: bool) -> Self {
        Self { sink: Some(sink), ticket, changes_data, measured: None }
    }

    /// Counts the answer under what was begun.
    #[must_use]
    pub(crate) fn measured(mut self, measured: Option<Measured>) -> Self {
        self.measured = measured;
        self
    }

    /// Answers with a message.
    pub(crate) fn message<M: FrameMessage>(self, message: &M) {
        self.body(M::KIND, Bytes::from(message.encode_to_vec()));
    }

    /// Answers with an encoded message.
    pub(crate) fn body(mut self, kind: FrameKind, body: Bytes) {
        self.answer(kind, body);
    }

    fn answer(&mut self, kind: FrameKind, body: Bytes) {
        if let Some(measured) = self.measured.take() {
            measured.end(kind, &body);
        }
        if let Some(sink) = self.sink.take() {
            sink.reply(self.ticket, kind, body);
        }
    }

    /// Answers with a failure.
    pub(crate) fn fail(self, failure: &Failure) {
        self.message(&failure.to_wire());
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.sink.is_some() {
            let failure = match self.changes_data {
                true => Failure::unknown_outcome("the node gave the request up before its outcome was known"),
                false => Failure::unavailable("the node gave the request up"),
            };
            let body = Bytes::from(failure.to_wire().encode_to_vec());
            self.answer(FrameKind::Error, body);
        }
    }
}
