//! Walking a run in key order.

use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::Runtime;

use super::{Entry, Run};
use crate::error::ReadError;

/// What a cursor is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    /// A scan that somebody waits for: uses and fills the block cache, reads ahead little at first.
    Scan,
    /// A merge: in the background, past the block cache, with long reads.
    Merge,
}

/// See the module. A cursor keeps its run's file.
pub(crate) struct RunCursor<R: Runtime> {
    _run: Rc<Run<R>>,
}

impl<R: Runtime> RunCursor<R> {
    pub(super) fn new(run: &Rc<Run<R>>) -> Self {
        Self { _run: run.clone() }
    }

    /// The next key and what the run has for it; None at the end, again and again. The caller may go away.
    pub(crate) async fn next(&mut self) -> Result<Option<(Bytes, Entry)>, ReadError> {
        Err(ReadError::Closed)
    }
}
