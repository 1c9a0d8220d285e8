//! A shard held still for a reader that comes back: a scan reads page after page of it while the shard goes on.

use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::Runtime;

use crate::error::ReadError;
use crate::index::IndexView;
use crate::inner::Inner;
use crate::store::Store;
use crate::types::{Index, ShardId, Slot};

/// A shard's keys as of one applied entry, see [`Store::pinned`]. The slots that it gives stay readable by
/// [`Store::value`] while it is held.
///
/// What it costs while it is held: what is overwritten stays in memory, a memtable that has become a run stays too
/// ([`PinnedView::bytes_held`]), and no segment that dies meanwhile is used again. So whoever holds one sees to it
/// that it is not for long, and lets go of it when [`Store::space_pressure`] says that space is short.
pub struct PinnedView<R: Runtime> {
    inner: Rc<Inner<R>>,
    shard: ShardId,
    applied: Index,
    view: IndexView<R>,
}

impl<R: Runtime> Store<R> {
    /// The shard as it is now, held still.
    pub fn pinned(&self, shard: ShardId) -> Result<PinnedView<R>, ReadError> {
        let view = self.view(shard)?;
        let applied = self.applied(shard).ok_or(ReadError::UnknownShard(shard))?;
        Ok(PinnedView { inner: self.inner.clone(), shard, applied, view })
    }

    /// How short the log is of space that compaction could free: up to 1, not at all; above, writers are slowed down;
    /// from 2 on, the bound of the log's size is reached.
    pub fn space_pressure(&self) -> f64 {
        self.inner.compaction.borrow().pressure(self.inner.used_bytes()).unwrap_or_default()
    }
}

impl<R: Runtime> PinnedView<R> {
    /// The last entry whose changes it sees.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Up to `items_max` keys from `start` to `end` (exclusive; none: to the last), in order.
    pub async fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        items_max: usize,
    ) -> Result<Vec<(Bytes, Slot)>, ReadError> {
        let found = self.view.scan(start, end, items_max).await;
        if let Err(error) = &found {
            self.inner.report_index(self.shard, error);
        }
        found
    }

    /// Bytes of memory that are there for this view and others like it alone, at most: 0 while the shard still has the
    /// memtables that the view sees.
    pub fn bytes_held(&self) -> usize {
        let shards = self.inner.shards.borrow();
        let now = shards.get(&self.shard).map(|shard| shard.index.generation());
        if now == Some(self.view.generation()) { 0 } else { self.view.memtable_bytes() }
    }
}
