//! How far a log is durable, in a form that others can remember: what tells a log that lost its end, and looks whole,
//! from one that has it.

use krita_runtime::Runtime;

use crate::store::Store;

/// A moment of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogMark {
    /// Random, drawn when the log's files were made: files made anew have another one.
    pub nonce: u64,
    /// The number of the last durable batch.
    pub sequence: u64,
}

impl<R: Runtime> Store<R> {
    /// How far this log is durable now.
    pub fn log_mark(&self) -> LogMark {
        LogMark { nonce: self.inner.nonce(), sequence: self.inner.log.borrow().durable_sequence() }
    }

    /// How far this log was durable when it was opened. Ask before anything is written.
    pub fn found_mark(&self) -> LogMark {
        // Opening a log may write a seal behind what it found.
        let (mark, written) = (self.log_mark(), self.statistics().batches);
        LogMark { sequence: mark.sequence.saturating_sub(written), ..mark }
    }
}
