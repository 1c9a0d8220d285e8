//! Writing a run.

use std::io;
use std::path::Path;

use krita_runtime::Runtime;

use super::{Entry, RunIdentity, RunRecord};

/// Writes one run from items in strictly ascending order of keys. Its futures are not to be dropped in flight.
pub(crate) struct RunWriter<R: Runtime> {
    runtime: R,
}

impl<R: Runtime> RunWriter<R> {
    /// `items_expected` sizes the filter: the number of items to come, or a bound that is not far above it.
    pub(crate) async fn create(
        runtime: &R,
        _directory: &Path,
        _identity: RunIdentity,
        _items_expected: u64,
    ) -> io::Result<Self> {
        Ok(Self { runtime: runtime.clone() })
    }

    /// Adds an item behind those added before.
    pub(crate) async fn add(&mut self, _key: &[u8], _entry: &Entry) -> io::Result<()> {
        Ok(())
    }

    /// Writes what is left; durable on return, the name included.
    pub(crate) async fn finish(self) -> io::Result<RunRecord> {
        self.runtime.pause().await;
        Err(io::ErrorKind::Unsupported.into())
    }
}
