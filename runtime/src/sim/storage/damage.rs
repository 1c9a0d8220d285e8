//! What can befall a file without anybody writing to it: bytes that change, blocks that cannot be read, ends and
//! names that go missing. It hits the cache and the platter alike, and leaves alone what is durable and what is not.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::{io, mem};

use super::{BLOCK_SIZE, Change, Entry, Inode, Storage};

/// How reads of a block fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadFault {
    /// The next read fails, those after it do not.
    Once,
    /// Reads fail until the block is written: the device then puts another in its place.
    UntilWritten,
    /// Reads fail whatever is done.
    Forever,
}

impl Inode {
    /// Replaces bytes behind everybody's back, durably, extending the file if need be.
    pub(crate) fn overwrite(&self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = offset - offset % BLOCK_SIZE as u64;
        let end = offset + bytes.len() as u64;
        let mut patched = vec![0; (end - start) as usize];
        let before = self.read(start, patched.len());
        patched[..before.len()].copy_from_slice(&before);
        patched[(offset - start) as usize..].copy_from_slice(bytes);
        self.write(start, &patched);
        let mark = self.mark();
        self.sync(mark);
    }

    /// Changes the bytes from `offset` on that the file has, wherever they stand: in the cache, on the platter, and
    /// in what is between. `change` gets a byte and its place in the range. True if any byte that can be read now
    /// is another than before.
    pub(crate) fn patch(&self, offset: u64, length: usize, change: impl Fn(usize, u8) -> u8) -> bool {
        let mut content = self.content.borrow_mut();
        let content = &mut *content;
        let end = content.length.min(offset + length as u64);
        let mut changed = false;
        let mut at = offset;
        while at < end {
            let number = at / BLOCK_SIZE as u64;
            let first = (at % BLOCK_SIZE as u64) as usize;
            let bytes = first..(first + (end - at) as usize).min(BLOCK_SIZE);
            let apply = |block: &mut [u8; BLOCK_SIZE]| {
                for (index, byte) in block[bytes.clone()].iter_mut().enumerate() {
                    *byte = change((at - offset) as usize + index, *byte);
                }
            };
            if let Some(block) = content.blocks.get_mut(&number) {
                let before = Rc::clone(block);
                apply(Rc::make_mut(block));
                changed |= before != *block;
            }
            if let Some(block) = content.durable_blocks.get_mut(&number) {
                apply(Rc::make_mut(block));
            }
            for version in content.pending.get_mut(&number).into_iter().flatten() {
                apply(Rc::make_mut(&mut version.block));
            }
            at += bytes.len() as u64;
        }
        changed
    }

    /// Cuts or extends the file, durably.
    pub(crate) fn truncate(&self, length: u64) {
        let mut content = self.content.borrow_mut();
        let content = &mut *content;
        let blocks = length.div_ceil(BLOCK_SIZE as u64);
        let before = content.blocks.len();
        content.blocks.retain(|number, _| *number < blocks);
        self.used_blocks.set(self.used_blocks.get() - (before - content.blocks.len()) as u64);
        content.pending.clear();
        content.pending_lengths.clear();
        if let Some(block) = content.blocks.get_mut(&(length / BLOCK_SIZE as u64)) {
            Rc::make_mut(block)[(length % BLOCK_SIZE as u64) as usize..].fill(0);
        }
        content.durable_blocks = content.blocks.clone();
        content.length = length;
        content.durable_length = length;
    }

    /// Makes reads of any block of a range of bytes fail.
    pub(crate) fn make_unreadable(&self, range: Range<u64>, fault: ReadFault) {
        let block = BLOCK_SIZE as u64;
        let blocks = range.start / block..range.end.div_ceil(block);
        self.content.borrow_mut().unreadable.extend(blocks.map(|number| (number, fault)));
    }

    /// Makes every block readable again.
    pub(crate) fn make_readable(&self) {
        self.content.borrow_mut().unreadable.clear();
    }

    /// Whether these bytes can be read now.
    pub(crate) fn check_readable(&self, position: u64, length: usize) -> bool {
        let mut content = self.content.borrow_mut();
        if content.unreadable.is_empty() {
            return true;
        }
        let block = BLOCK_SIZE as u64;
        let range = position / block..position.saturating_add(length as u64).div_ceil(block);
        let hit: Vec<(u64, ReadFault)> =
            content.unreadable.range(range).map(|(number, fault)| (*number, *fault)).collect();
        for (number, fault) in &hit {
            if *fault == ReadFault::Once {
                content.unreadable.remove(number);
            }
        }
        hit.is_empty()
    }

    /// How many blocks have been written.
    pub(crate) fn block_count(&self) -> usize {
        self.content.borrow().blocks.len()
    }

    /// The position of a block that was written, by its rank among them.
    pub(crate) fn block_at(&self, rank: usize) -> Option<u64> {
        self.content.borrow().blocks.keys().nth(rank).map(|number| number * BLOCK_SIZE as u64)
    }
}

impl Storage {
    /// Removes a file beyond recall.
    pub(crate) fn erase(&mut self, path: &Path) -> io::Result<()> {
        self.remove(path)?;
        let changes = mem::take(&mut self.changes);
        for change in changes {
            match &change {
                Change::Create(name, _) | Change::Remove(name, _) if name == path => self.apply(change),
                Change::Create(..) | Change::Remove(..) | Change::Rename(..) => self.changes.push(change),
            }
        }
        Ok(())
    }

    /// All files and their names as processes see them, in the order of their names.
    pub(crate) fn named_files(&self) -> impl Iterator<Item = (&PathBuf, &Rc<Inode>)> {
        self.current.iter().filter_map(|(path, entry)| match entry {
            Entry::File(inode) => Some((path, inode)),
            Entry::Directory => None,
        })
    }

    /// The name of a file, if it still has one.
    pub(crate) fn path_of(&self, inode: &Inode) -> Option<&PathBuf> {
        self.named_files().find(|(_, file)| std::ptr::eq(&raw const ***file, inode)).map(|(path, _)| path)
    }
}
