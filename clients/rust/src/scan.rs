//! A scan over all shards, ordered by key, fetched page by page as it is read.

use crate::error::Result;
use crate::types::ScanItem;

/// A running scan. Dropping it ends it.
pub struct Scan {}

impl Scan {
    /// The next item in order of keys; `None` at the end. After an error the scan has ended.
    #[allow(clippy::unimplemented)]
    pub async fn next(&mut self) -> Option<Result<ScanItem>> {
        unimplemented!()
    }
}
