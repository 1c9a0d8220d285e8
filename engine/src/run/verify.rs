//! Reading all of a run against the manifest's record, for scrubbing.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::{Runtime, TaskClass};

use super::block::{BlockCursor, Malformed};
use super::envelope::{BlockKind, Checked, fold};
use super::source::Walk;
use super::{Entry, Run, count_segments, read_footer};
use crate::error::ReadError;
use crate::types::SegmentId;

/// What the data blocks come to.
struct Sums {
    root: u64,
    blocks: u32,
    items: u64,
    tombstones: u64,
    segments: BTreeMap<SegmentId, u64>,
    last_key: Option<Vec<u8>>,
}

impl<R: Runtime> Run<R> {
    /// Reads and checks the whole file against the record, in slices, in the background, at most this fast. The
    /// caller may go away.
    pub(crate) async fn verify(self: &Rc<Self>, bytes_per_second: Option<u64>) -> Result<(), ReadError> {
        let (footer, footer_sum) = read_footer(&self.source, &self.record).await?;
        let end = footer.index_end();
        if footer != self.footer {
            return Err(self.source.damaged(end, "another footer than when the run was opened"));
        }
        let mut sums = Sums {
            root: self.source.identity.nonce,
            blocks: 0,
            items: 0,
            tombstones: 0,
            segments: BTreeMap::new(),
            last_key: None,
        };
        let (class, seed) = (TaskClass::Background, self.seed);
        let span = Walk { class, start: 0, end: footer.data_bytes, seed, bytes_per_second };
        let walk = self.source.walk(span, |position, block| self.verify_block(&mut sums, position, block));
        walk.await?;
        let right = sums.root == footer.data_root
            && (sums.items, sums.tombstones) == (footer.items, footer.tombstones)
            && sums.segments == self.segments;
        if !right {
            return Err(self.source.damaged(0, "data that the footer does not describe"));
        }
        let mut root = sums.root;
        let span = Walk { class, start: footer.data_bytes, end, seed, bytes_per_second };
        let walk = self.source.walk(span, |_, block| {
            root = fold(root, block.sum);
            Ok(())
        });
        walk.await?;
        if fold(root, footer_sum) == self.record.root {
            Ok(())
        } else {
            Err(self.source.damaged(end, "not the run that the manifest names"))
        }
    }

    fn verify_block(&self, sums: &mut Sums, position: u64, block: &Checked<'_>) -> Result<(), &'static str> {
        sums.root = fold(sums.root, block.sum);
        let place = self.blocks.place(sums.blocks);
        if block.content.kind != BlockKind::Data || place != Some((position, block.bytes.len())) {
            return Err("not the data block that the index names");
        }
        let mut cursor = BlockCursor::new(Bytes::copy_from_slice(block.bytes));
        while let Some(entry) = cursor.next().map_err(|Malformed| "a block whose items do not parse")? {
            let key = cursor.key();
            if sums.last_key.as_deref().is_some_and(|last| last >= key) {
                return Err("keys that do not ascend");
            }
            if self.blocks.find(key) != Some(sums.blocks) {
                return Err("a key that the index does not lead to");
            }
            if self.filter.as_ref().is_some_and(|(filter, _)| !filter.may_hold(key)) {
                return Err("a key that the filter does not let through");
            }
            let last = sums.last_key.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            sums.items += 1;
            match &entry {
                Entry::Tombstone(_) => sums.tombstones += 1,
                Entry::Put(slot) => count_segments(&mut sums.segments, key, &slot.region),
            }
        }
        sums.blocks += 1;
        Ok(())
    }
}
