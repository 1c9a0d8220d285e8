//! Walking a run in key order.

use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;
use krita_runtime::{Runtime, TaskClass};

use super::block::{BlockCursor, Malformed};
use super::{Entry, Run};
use crate::error::ReadError;

/// Most bytes in one read of a merge.
const MERGE_BYTES: usize = 256 << 10;
/// Most bytes in one read of a scan, reached by doubling.
const SCAN_BYTES: usize = 64 << 10;

/// What a cursor is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    /// A scan that somebody waits for: uses and fills the block cache, reads ahead little at first.
    Scan,
    /// A merge: in the background, past the block cache, with long reads.
    Merge,
}

/// See the module. A cursor keeps its run, and thus its file.
pub(crate) struct RunCursor<R: Runtime> {
    run: Rc<Run<R>>,
    purpose: Use,
    /// The block that is read next.
    next: u32,
    /// Where to start in that block.
    from: Bound<Bytes>,
    block: Option<BlockCursor>,
    /// The last key of the blocks that are done with: what follows lies behind it.
    done: Option<Vec<u8>>,
    /// Bytes read for the blocks from `ahead_from` on.
    ahead: Bytes,
    ahead_from: u32,
    ahead_bytes: usize,
}

impl<R: Runtime> RunCursor<R> {
    pub(super) fn new(run: &Rc<Run<R>>, from: Bound<&[u8]>, purpose: Use) -> Self {
        let next = match from {
            Bound::Unbounded => 0,
            Bound::Included(key) | Bound::Excluded(key) => run.blocks.find_before(key).unwrap_or(0),
        };
        Self {
            run: run.clone(),
            purpose,
            next,
            from: from.map(Bytes::copy_from_slice),
            block: None,
            done: None,
            ahead: Bytes::new(),
            ahead_from: 0,
            ahead_bytes: match purpose {
                Use::Scan => 0,
                Use::Merge => MERGE_BYTES,
            },
        }
    }

    /// The next key and what the run has for it; None at the end, again and again. After an error it fails again.
    /// The caller may go away between two items, or while it waits for one.
    pub(crate) async fn next(&mut self) -> Result<Option<(Bytes, Entry)>, ReadError> {
        loop {
            if let Some(block) = &mut self.block {
                match block.next() {
                    Ok(Some(entry)) => return Ok(Some((Bytes::copy_from_slice(block.key()), entry))),
                    Ok(None) => {
                        self.done = Some(block.key().to_vec());
                        self.block = None;
                        self.next += 1;
                    }
                    Err(Malformed) => return Err(self.run.malformed(self.next)),
                }
            }
            if self.next >= self.run.blocks.count() {
                return Ok(None);
            }
            let bytes = self.load().await?;
            self.enter(bytes).map_err(|Malformed| self.run.malformed(self.next))?;
        }
    }

    /// Begins block `next`.
    fn enter(&mut self, bytes: Bytes) -> Result<(), Malformed> {
        let mut block = BlockCursor::new(bytes);
        if let Some(done) = &self.done {
            // Blocks ascend; to start behind the last key shows it if they do not.
            let first = block.peek_key()?;
            if first.is_none_or(|first| first <= done.as_slice()) {
                return Err(Malformed);
            }
        } else {
            block.seek(self.from.as_ref().map(|key| &key[..]))?;
        }
        self.block = Some(block);
        Ok(())
    }

    /// The bytes of block `next`, checked.
    async fn load(&mut self) -> Result<Bytes, ReadError> {
        let key = self.run.block_key(self.next);
        if self.purpose == Use::Scan
            && let Some(bytes) = self.run.caches.cached(key)
        {
            return Ok(bytes);
        }
        if let Some(bytes) = self.take_ahead()? {
            return Ok(bytes);
        }
        let (start, length) = self.run.place(self.next)?;
        let mut end = start + length as u64;
        let mut last = self.next;
        while let Some((position, length)) = self.run.blocks.place(last + 1)
            && position + length as u64 - start <= self.ahead_bytes as u64
        {
            end = position + length as u64;
            last += 1;
        }
        let class = match self.purpose {
            Use::Scan => TaskClass::Foreground,
            Use::Merge => TaskClass::Background,
        };
        let length = usize::try_from(end - start).unwrap_or(length);
        self.ahead = self.run.source.read(class, start, length).await?;
        self.ahead_from = self.next;
        if self.purpose == Use::Scan {
            self.ahead_bytes = (2 * length).min(SCAN_BYTES);
        }
        self.take_ahead()?.ok_or_else(|| self.run.malformed(self.next))
    }

    /// Block `next`, if its bytes were read ahead.
    fn take_ahead(&mut self) -> Result<Option<Bytes>, ReadError> {
        let Some(base) = self.run.blocks.start(self.ahead_from).filter(|_| self.next >= self.ahead_from)
        else {
            return Ok(None);
        };
        let (position, length) = self.run.place(self.next)?;
        let end = usize::try_from(position - base).ok().map(|offset| (offset, offset.saturating_add(length)));
        let Some((offset, end)) = end.filter(|(_, end)| *end <= self.ahead.len()) else { return Ok(None) };
        let bytes = self.ahead.slice(offset..end);
        self.run.check_data(self.next, &bytes)?;
        match self.purpose {
            // The cache gets its own: a block must not keep its neighbours in memory.
            Use::Scan => {
                let bytes = Bytes::copy_from_slice(&bytes);
                self.run.caches.keep(self.run.block_key(self.next), bytes.clone());
                Ok(Some(bytes))
            }
            Use::Merge => Ok(Some(bytes)),
        }
    }
}
