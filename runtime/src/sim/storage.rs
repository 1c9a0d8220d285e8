//! What is on a disk: names and files, each both as processes see it and as the platter holds it, and what
//! lies between the two, which a crash keeps, loses or tears by sectors. No time passes here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::options::{CrashOptions, Survival};
use super::random::Random;
use crate::BLOCK_SIZE;

mod damage;

pub use damage::ReadFault;

/// What a disk writes whole or not at all.
pub(crate) const SECTOR_SIZE: usize = 512;
const SECTORS_PER_BLOCK: usize = BLOCK_SIZE / SECTOR_SIZE;

type Block = Rc<[u8; BLOCK_SIZE]>;

/// The names and files of one disk.
pub(crate) struct Storage {
    /// Names as processes see them.
    current: BTreeMap<PathBuf, Entry>,
    /// Names on the platter.
    durable: BTreeMap<PathBuf, Entry>,
    /// Changes of names that are in the first and not in the second, in order.
    changes: Vec<Change>,
    pub(crate) capacity_bytes: Option<u64>,
    /// Blocks of all living files; files count themselves out when they are dropped.
    used_blocks: Rc<Cell<u64>>,
}

#[derive(Clone)]
enum Entry {
    Directory,
    File(Rc<Inode>),
}

#[derive(Clone)]
enum Change {
    Create(PathBuf, Entry),
    Rename(PathBuf, PathBuf, Rc<Inode>),
    Remove(PathBuf, Rc<Inode>),
}

/// A file, whatever its names.
pub(crate) struct Inode {
    content: RefCell<Content>,
    used_blocks: Rc<Cell<u64>>,
}

#[derive(Default)]
struct Content {
    blocks: BTreeMap<u64, Block>,
    length: u64,
    durable_blocks: BTreeMap<u64, Block>,
    durable_length: u64,
    /// What was written to each block since the last flush, in order.
    pending: BTreeMap<u64, Vec<Version>>,
    /// How the length grew since the last flush: (write, length).
    pending_lengths: Vec<(u64, u64)>,
    /// Number of the last write.
    writes: u64,
    /// Blocks that cannot be read.
    unreadable: BTreeMap<u64, ReadFault>,
}

struct Version {
    write: u64,
    /// Which of the write's blocks this is.
    ordinal: u64,
    block: Block,
}

/// What becomes of the data that a failed flush covered.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum AfterFailedSync {
    /// Block by block, by the seed: durable, durable with a later flush, or never durable though reads show it.
    #[default]
    BySeed,
    /// The kernel keeps it, and the next flush makes it durable.
    Kept,
    /// The kernel takes it for written: reads show it, no later flush makes it durable (ext4, XFS).
    Forgotten,
    /// The kernel drops it: reads show at once what was durable before (btrfs).
    Reverted,
}

/// What a crash did.
#[derive(Default)]
pub(crate) struct CrashReport {
    pub(crate) lost_writes: u64,
    pub(crate) torn_writes: u64,
    pub(crate) lost_directory_changes: u64,
}

/// How the unflushed writes of one file fare in one crash.
#[derive(Clone, Copy)]
enum Fate {
    LoseAll,
    KeepAll,
    /// Each write is kept or lost whole.
    PerWrite,
    /// Each write is kept up to some sector.
    Prefix,
    /// Each sector holds any of its versions.
    PerSector,
}

/// An absolute path without `.` and `..`.
pub(crate) fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

impl Storage {
    pub(crate) fn new(capacity_bytes: Option<u64>) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Entry::Directory)]);
        Self {
            current: root.clone(),
            durable: root,
            changes: Vec::new(),
            capacity_bytes,
            used_blocks: Rc::default(),
        }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_blocks.get() * BLOCK_SIZE as u64
    }

    pub(crate) fn available_bytes(&self) -> u64 {
        self.capacity_bytes.unwrap_or(1 << 42).saturating_sub(self.used_bytes())
    }

    pub(crate) fn file(&self, path: &Path) -> io::Result<Rc<Inode>> {
        match self.current.get(path) {
            Some(Entry::File(inode)) => Ok(Rc::clone(inode)),
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(crate) fn durable_file(&self, path: &Path) -> Option<Rc<Inode>> {
        match self.durable.get(path) {
            Some(Entry::File(inode)) => Some(Rc::clone(inode)),
            Some(Entry::Directory) | None => None,
        }
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let is_file = |(path, entry): (&PathBuf, &Entry)| match entry {
            Entry::File(_) => Some(path.clone()),
            Entry::Directory => None,
        };
        self.current.iter().filter_map(is_file).collect()
    }

    pub(crate) fn check_directory(&self, path: &Path) -> io::Result<()> {
        match self.current.get(path) {
            Some(Entry::Directory) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Creates an empty file in place of whatever file had the name.
    pub(crate) fn create_file(&mut self, path: &Path) -> io::Result<Rc<Inode>> {
        self.check_directory(&parent(path))?;
        self.check_space_for_a_name()?;
        if self.current.contains_key(path) {
            self.remove(path)?;
        }
        let content = RefCell::default();
        let inode = Rc::new(Inode { content, used_blocks: Rc::clone(&self.used_blocks) });
        self.create(path, Entry::File(Rc::clone(&inode)));
        Ok(inode)
    }

    fn create(&mut self, path: &Path, entry: Entry) {
        self.current.insert(path.to_owned(), entry.clone());
        self.changes.push(Change::Create(path.to_owned(), entry));
    }

    pub(crate) fn create_directory(&mut self, path: &Path) -> io::Result<()> {
        let ancestors: Vec<&Path> = path.ancestors().collect();
        for ancestor in ancestors.into_iter().rev() {
            match self.current.get(ancestor) {
                Some(Entry::Directory) => {}
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    self.check_space_for_a_name()?;
                    self.create(ancestor, Entry::Directory);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.check_directory(path)?;
        let children = self.current.keys().filter(|child| child.parent() == Some(path));
        Ok(children.filter_map(|child| child.file_name()).map(PathBuf::from).collect())
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.file(from)?;
        self.check_directory(&parent(to))?;
        if let Some(Entry::Directory) = self.current.get(to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.current.remove(from);
        self.current.insert(to.to_owned(), Entry::File(Rc::clone(&inode)));
        self.changes.push(Change::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    pub(crate) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let inode = self.file(path)?;
        self.current.remove(path);
        self.changes.push(Change::Remove(path.to_owned(), inode));
        Ok(())
    }

    /// Makes the changes of names in a directory durable; a rename into or out of it as a whole.
    pub(crate) fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        self.check_directory(path)?;
        for change in std::mem::take(&mut self.changes) {
            let concerned = match &change {
                Change::Create(name, _) | Change::Remove(name, _) => parent(name) == path,
                Change::Rename(from, to, _) => parent(from) == path || parent(to) == path,
            };
            if concerned {
                self.apply(change);
            } else {
                self.changes.push(change);
            }
        }
        Ok(())
    }

    /// A failed flush of a directory: some of its changes are durable now, by seed; the rest wait on.
    pub(crate) fn fail_sync_directory(&mut self, random: &Random) {
        for change in std::mem::take(&mut self.changes) {
            if random.chance(0.5) {
                self.apply(change);
            } else {
                self.changes.push(change);
            }
        }
    }

    fn apply(&mut self, change: Change) {
        let is = |entry: Option<&Entry>, inode: &Rc<Inode>| match entry {
            Some(Entry::File(file)) => Rc::ptr_eq(file, inode),
            _ => false,
        };
        match change {
            Change::Create(path, entry) => {
                self.durable.insert(path, entry);
            }
            Change::Rename(_, to, inode) => {
                // One file has one name: every earlier one goes.
                self.durable.retain(|_, entry| !is(Some(entry), &inode));
                self.durable.insert(to, Entry::File(inode));
            }
            Change::Remove(path, inode) => {
                if is(self.durable.get(&path), &inode) {
                    self.durable.remove(&path);
                }
            }
        }
    }

    /// Loses power. Handles of before are void: the survivors are new files.
    pub(crate) fn crash(&mut self, random: &Random, options: CrashOptions) -> CrashReport {
        let mut report = CrashReport::default();
        let prefix_only = random.chance(0.5);
        let mut cut = false;
        for change in std::mem::take(&mut self.changes) {
            let keep = match options.directory_changes {
                Survival::All => true,
                Survival::Nothing => false,
                // Half of the crashes are those of a journal, which keeps a prefix of what was done.
                Survival::Random if prefix_only => {
                    cut = cut || random.chance(0.3);
                    !cut
                }
                Survival::Random => random.chance(0.5),
            };
            if keep {
                self.apply(change);
            } else {
                report.lost_directory_changes += 1;
            }
        }
        self.used_blocks = Rc::default();
        let mut survivors = BTreeMap::new();
        for (path, entry) in std::mem::take(&mut self.durable) {
            // Sorted order visits a directory before what is in it.
            let kept = path == Path::new("/") || survivors.contains_key(&parent(&path));
            let entry = match entry {
                _ if !kept => continue,
                Entry::Directory => Entry::Directory,
                Entry::File(inode) => {
                    let content =
                        inode.content.borrow().survive(random, options.unsynced_sectors, &mut report);
                    self.used_blocks.set(self.used_blocks.get() + content.blocks.len() as u64);
                    let used_blocks = Rc::clone(&self.used_blocks);
                    Entry::File(Rc::new(Inode { content: RefCell::new(content), used_blocks }))
                }
            };
            survivors.insert(path, entry);
        }
        self.current = survivors.clone();
        self.durable = survivors;
        report
    }

    /// A new file or directory needs a block to stand in, though it is not counted as used.
    fn check_space_for_a_name(&self) -> io::Result<()> {
        match self.available_bytes() < BLOCK_SIZE as u64 {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    /// Whether `length` bytes at `position` still fit on the disk.
    pub(crate) fn check_space(&self, inode: &Inode, position: u64, length: usize) -> io::Result<()> {
        let blocks = &inode.content.borrow().blocks;
        let range = block_range(position, length);
        let new = range.clone().count() - blocks.range(range).count();
        if (new * BLOCK_SIZE) as u64 > self.available_bytes() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

fn block_range(position: u64, length: usize) -> std::ops::Range<u64> {
    let block = BLOCK_SIZE as u64;
    position / block..(position + length as u64).div_ceil(block)
}

impl Inode {
    pub(crate) fn length(&self) -> u64 {
        self.content.borrow().length
    }

    /// The highest write so far: what a flush that starts now will make durable.
    pub(crate) fn mark(&self) -> u64 {
        self.content.borrow().writes
    }

    /// Up to `length` bytes at `position`.
    pub(crate) fn read(&self, position: u64, length: usize) -> Bytes {
        let content = self.content.borrow();
        read_blocks(&content.blocks, content.length, position, length)
    }

    /// The whole file as it is on the platter.
    pub(crate) fn read_durable(&self) -> Bytes {
        let content = self.content.borrow();
        let length = content.durable_length;
        read_blocks(&content.durable_blocks, length, 0, length as usize)
    }

    /// Writes into the cache. `position` is aligned; a last partial block is filled up with zeros beyond the
    /// file's end.
    pub(crate) fn write(&self, position: u64, bytes: &[u8]) {
        self.write_sectors(position, bytes, |_| true);
    }

    /// Writes those sectors for which `kept` holds: what a failed write may leave.
    pub(crate) fn write_sectors(&self, position: u64, bytes: &[u8], mut kept: impl FnMut(usize) -> bool) {
        let mut content = self.content.borrow_mut();
        let content = &mut *content;
        content.writes += 1;
        let write = content.writes;
        for (ordinal, (number, part)) in
            block_range(position, bytes.len()).zip(bytes.chunks(BLOCK_SIZE)).enumerate()
        {
            let mut block = content.blocks.get(&number).map_or([0; BLOCK_SIZE], |block| **block);
            for (sector, source) in part.chunks(SECTOR_SIZE).enumerate() {
                if kept(ordinal * SECTORS_PER_BLOCK + sector) {
                    block[sector * SECTOR_SIZE..][..source.len()].copy_from_slice(source);
                }
            }
            if content.unreadable.get(&number) == Some(&ReadFault::UntilWritten) {
                content.unreadable.remove(&number);
            }
            let block = Rc::new(block);
            if content.blocks.insert(number, Rc::clone(&block)).is_none() {
                self.used_blocks.set(self.used_blocks.get() + 1);
            }
            let version = Version { write, ordinal: ordinal as u64, block };
            content.pending.entry(number).or_default().push(version);
        }
        let end = position + bytes.len() as u64;
        if end > content.length {
            content.length = end;
            content.pending_lengths.push((write, end));
        }
    }

    /// Makes every write up to `mark` durable.
    pub(crate) fn sync(&self, mark: u64) {
        let mut content = self.content.borrow_mut();
        let content = &mut *content;
        content.pending.retain(|number, versions| {
            let done = versions.partition_point(|version| version.write <= mark);
            if let Some(last) = versions.drain(..done).next_back() {
                content.durable_blocks.insert(*number, last.block);
            }
            !versions.is_empty()
        });
        let done = content.pending_lengths.partition_point(|(write, _)| *write <= mark);
        if let Some((_, length)) = content.pending_lengths.drain(..done).next_back() {
            content.durable_length = length;
        }
    }

    /// Makes one write durable, and in its blocks what was written before it.
    pub(crate) fn sync_write(&self, write: u64) {
        let mut content = self.content.borrow_mut();
        let content = &mut *content;
        content.pending.retain(|number, versions| {
            if let Some(at) = versions.iter().position(|version| version.write == write)
                && let Some(version) = versions.drain(..=at).next_back()
            {
                content.durable_blocks.insert(*number, version.block);
            }
            !versions.is_empty()
        });
        let length = content.pending_lengths.iter().find(|(grown_by, _)| *grown_by == write);
        if let Some((_, length)) = length {
            content.durable_length = content.durable_length.max(*length);
            let durable = content.durable_length;
            content.pending_lengths.retain(|(_, length)| *length > durable);
        }
    }

    /// A flush fails. By seed: some blocks never become durable, though the cache goes on showing them; the others
    /// do now or are left for a later flush.
    pub(crate) fn fail_sync(&self, mark: u64, random: &Random, after: AfterFailedSync) {
        match after {
            AfterFailedSync::BySeed => self.fail_sync_by_seed(mark, random),
            AfterFailedSync::Kept => {}
            AfterFailedSync::Forgotten => self.forget_pending(mark),
            AfterFailedSync::Reverted => {
                self.forget_pending(mark);
                let mut content = self.content.borrow_mut();
                let content = &mut *content;
                let used_before = content.blocks.len() as u64;
                content.blocks = content.durable_blocks.clone();
                for (number, versions) in &content.pending {
                    if let Some(last) = versions.last() {
                        content.blocks.insert(*number, Rc::clone(&last.block));
                    }
                }
                self.used_blocks.set(self.used_blocks.get() - used_before + content.blocks.len() as u64);
            }
        }
    }

    /// What was written up to `mark` and is not durable never will be, as far as later flushes go.
    fn forget_pending(&self, mark: u64) {
        self.content.borrow_mut().pending.retain(|_, versions| {
            versions.retain(|version| version.write > mark);
            !versions.is_empty()
        });
    }

    fn fail_sync_by_seed(&self, mark: u64, random: &Random) {
        let mut content = self.content.borrow_mut();
        content.pending.retain(|_, versions| {
            if random.chance(0.5) {
                versions.retain(|version| version.write > mark);
            }
            !versions.is_empty()
        });
        drop(content);
        if random.chance(0.5) {
            self.sync(mark);
        }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let blocks = self.content.get_mut().blocks.len() as u64;
        self.used_blocks.set(self.used_blocks.get() - blocks);
    }
}

fn read_blocks(blocks: &BTreeMap<u64, Block>, file_length: u64, position: u64, length: usize) -> Bytes {
    let end = file_length.min(position.saturating_add(length as u64));
    if position >= end {
        return Bytes::new();
    }
    let mut bytes = BytesMut::with_capacity((end - position) as usize);
    let mut at = position;
    while at < end {
        let offset = (at % BLOCK_SIZE as u64) as usize;
        let part = (BLOCK_SIZE - offset).min((end - at) as usize);
        match blocks.get(&(at / BLOCK_SIZE as u64)) {
            Some(block) => bytes.extend_from_slice(&block[offset..offset + part]),
            None => bytes.resize(bytes.len() + part, 0),
        }
        at += part as u64;
    }
    bytes.freeze()
}

impl Content {
    /// What is left of the file after a crash.
    fn survive(&self, random: &Random, survival: Survival, report: &mut CrashReport) -> Self {
        let fate = match survival {
            Survival::All => Fate::KeepAll,
            Survival::Nothing => Fate::LoseAll,
            Survival::Random => match random.below(6) {
                0 => Fate::LoseAll,
                1 => Fate::KeepAll,
                2 => Fate::PerWrite,
                3 => Fate::Prefix,
                _ => Fate::PerSector,
            },
        };
        // For each unflushed write: its sectors, those kept, and the first one lost if its fate is a prefix.
        let mut tallies: BTreeMap<u64, Tally> = BTreeMap::new();
        for version in self.pending.values().flatten() {
            tallies.entry(version.write).or_default().sectors += SECTORS_PER_BLOCK as u64;
        }
        for tally in tallies.values_mut() {
            tally.limit = match fate {
                Fate::LoseAll => 0,
                Fate::KeepAll | Fate::PerSector => tally.sectors,
                Fate::PerWrite => tally.sectors * random.below(2),
                Fate::Prefix => random.between(0, tally.sectors),
            };
        }
        let mut blocks = self.durable_blocks.clone();
        for (number, versions) in &self.pending {
            let mut block = blocks.get(number).map_or([0; BLOCK_SIZE], |block| **block);
            for sector in 0..SECTORS_PER_BLOCK {
                let last = match fate {
                    Fate::PerSector => random.index(versions.len() + 1),
                    Fate::LoseAll | Fate::KeepAll | Fate::PerWrite | Fate::Prefix => versions.len(),
                };
                for version in &versions[..last] {
                    let Some(tally) = tallies.get_mut(&version.write) else { continue };
                    if version.ordinal * SECTORS_PER_BLOCK as u64 + (sector as u64) < tally.limit {
                        tally.kept += 1;
                        let range = sector * SECTOR_SIZE..(sector + 1) * SECTOR_SIZE;
                        block[range.clone()].copy_from_slice(&version.block[range]);
                    }
                }
            }
            blocks.insert(*number, Rc::new(block));
        }
        for tally in tallies.values() {
            report.lost_writes += u64::from(tally.kept == 0);
            report.torn_writes += u64::from(tally.kept > 0 && tally.kept < tally.sectors);
        }
        let length = match fate {
            Fate::LoseAll => self.durable_length,
            Fate::KeepAll => self.length,
            Fate::PerWrite | Fate::Prefix | Fate::PerSector => {
                match random.index(self.pending_lengths.len() + 1) {
                    0 => self.durable_length,
                    chosen => self.pending_lengths[chosen - 1].1,
                }
            }
        };
        blocks.retain(|number, _| number * (BLOCK_SIZE as u64) < length);
        Self {
            durable_blocks: blocks.clone(),
            blocks,
            length,
            durable_length: length,
            unreadable: self.unreadable.clone(),
            ..Self::default()
        }
    }
}

#[derive(Default)]
struct Tally {
    sectors: u64,
    limit: u64,
    kept: u64,
}
