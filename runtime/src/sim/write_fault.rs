//! Writes that a device acknowledges and does not do as it was told: lost, misdirected, done twice. A test asks for
//! them one by one, or the seed decides.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::disk::{DiskState, SimBuffer, Work};
use super::faults::Refusal;
use super::random::nanoseconds;
use super::storage::{Inode, SECTOR_SIZE, normalize};
use super::world::World;
use crate::BLOCK_SIZE;

/// What becomes of a write that is acknowledged all the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteFault {
    /// It is forgotten.
    Lost,
    /// It lands this many blocks away in the same file.
    MovedBy(i64),
    /// It lands in this file from this block on, as far as that file goes.
    MovedTo(PathBuf, u64),
    /// It lands, and once more after this time, over whatever was written there meanwhile.
    RepeatedAfter(Duration),
    /// It lands, and also in this file from this block on, as far as that file goes.
    RepeatedAt(PathBuf, u64),
}

/// A [`WriteFault`] when its time has come.
enum Fate {
    Lost,
    Moved(Place),
    RepeatedAfter(u64),
    RepeatedAt(Place),
}

/// Where else a write lands.
struct Place {
    inode: Rc<Inode>,
    position: u64,
}

/// A write on its way.
#[derive(Clone)]
pub(crate) struct Write {
    pub(crate) inode: Rc<Inode>,
    pub(crate) position: u64,
    pub(crate) bytes: Rc<SimBuffer>,
}

impl Write {
    /// Whether it would change what can be read.
    fn matters(&self) -> bool {
        differs(&self.inode, self.position, &self.bytes)
    }

    fn land(&self, is_durable: bool) {
        land(&self.inode, self.position, &self.bytes, is_durable);
    }
}

fn differs(inode: &Inode, position: u64, bytes: &[u8]) -> bool {
    inode.read(position, bytes.len()) != bytes
}

fn land(inode: &Inode, position: u64, bytes: &[u8], is_durable: bool) {
    if bytes.is_empty() {
        return;
    }
    let before = inode.mark();
    inode.write(position, bytes);
    if is_durable {
        inode.sync_write(before + 1);
    }
}

impl Place {
    /// Puts there what the file has room for, at once on the platter: a device knows no cache. True if it changed
    /// anything.
    fn take(&self, bytes: &[u8]) -> bool {
        let room = self.inode.length().saturating_sub(self.position);
        let part = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let changed = differs(&self.inode, self.position, part);
        land(&self.inode, self.position, part, true);
        changed
    }
}

impl DiskState {
    /// The device is done with a write, in one way or another.
    pub(crate) fn complete_write(
        self: &Rc<Self>,
        world: &Rc<World>,
        work: Work,
        write: &Write,
    ) -> io::Result<()> {
        if let Err(refusal) = self.admit(world, work, Some(&write.inode)) {
            if matches!(refusal, Refusal::Failure) {
                self.leave_a_mixture(write);
            }
            return Err(refusal.into());
        }
        self.storage.borrow().check_space(&write.inode, write.position, write.bytes.len())?;
        let is_durable = work == Work::DurableWrite && !self.faults.borrow().lying;
        match self.fate_of(write) {
            None => write.land(is_durable),
            Some(Fate::Lost) => {
                world.count(|statistics| statistics.forgotten_writes += u64::from(write.matters()));
            }
            Some(Fate::Moved(place)) => {
                let counted = write.matters() | place.take(&write.bytes);
                world.count(|statistics| statistics.misdirected_writes += u64::from(counted));
            }
            Some(Fate::RepeatedAt(place)) => {
                write.land(is_durable);
                let counted = place.take(&write.bytes);
                world.count(|statistics| statistics.duplicated_writes += u64::from(counted));
            }
            Some(Fate::RepeatedAfter(delay)) => {
                write.land(is_durable);
                self.repeat_after(world, delay, write.clone());
            }
        }
        Ok(())
    }

    /// A failed write leaves any mixture of old and new sectors; sometimes it has grown the file.
    fn leave_a_mixture(&self, write: &Write) {
        let part = self.random.index(write.bytes.len() / SECTOR_SIZE + 1) * SECTOR_SIZE;
        let (inode, position) = (&write.inode, write.position);
        if part > 0 && self.storage.borrow().check_space(inode, position, part).is_ok() {
            inode.write_sectors(position, &write.bytes[..part], |_| self.random.chance(0.5));
        }
    }

    fn repeat_after(self: &Rc<Self>, world: &Rc<World>, delay: u64, write: Write) {
        let (disk, generation) = (Rc::clone(self), self.generation.get());
        world.after(delay, move |world| {
            if disk.generation.get() == generation && write.matters() {
                write.land(true);
                world.count(|statistics| statistics.duplicated_writes += 1);
            }
        });
    }

    /// What befalls this write: what a test asked for, or else what the seed wants.
    fn fate_of(&self, write: &Write) -> Option<Fate> {
        if let Some(fault) = self.take_next_write(&write.inode) {
            return Some(match fault {
                WriteFault::Lost => Fate::Lost,
                WriteFault::MovedBy(blocks) => {
                    let position = write.position.saturating_add_signed(blocks * BLOCK_SIZE as i64);
                    Fate::Moved(Place { inode: Rc::clone(&write.inode), position })
                }
                WriteFault::MovedTo(path, block) => Fate::Moved(self.place(&path, block)),
                WriteFault::RepeatedAfter(delay) => Fate::RepeatedAfter(nanoseconds(delay)),
                WriteFault::RepeatedAt(path, block) => Fate::RepeatedAt(self.place(&path, block)),
            });
        }
        let inode = Some(&*write.inode);
        if self.wants(|chances| chances.lost_write, inode) {
            return Some(Fate::Lost);
        }
        if self.wants(|chances| chances.misdirected_write, inode) {
            return self.draw_place(write).map(Fate::Moved);
        }
        if !self.wants(|chances| chances.duplicated_write, inode) {
            return None;
        }
        if self.chance.chance(0.5) {
            return self.draw_place(write).map(Fate::RepeatedAt);
        }
        let delay = self.options.borrow().faults.duplicate_delay;
        Some(Fate::RepeatedAfter(self.chance.latency(delay)))
    }

    fn take_next_write(&self, inode: &Inode) -> Option<WriteFault> {
        let mut faults = self.faults.borrow_mut();
        if faults.next_writes.is_empty() {
            return None;
        }
        let storage = self.storage.borrow();
        let path = storage.path_of(inode);
        let meant = |wanted: &Option<PathBuf>| wanted.is_none() || wanted.as_ref() == path;
        let first = faults.next_writes.iter().position(|(wanted, _)| meant(wanted))?;
        Some(faults.next_writes.remove(first).1)
    }

    /// Panics if there is no such file: the test that asked for it is wrong.
    fn place(&self, path: &Path, block: u64) -> Place {
        let found = self.storage.borrow().file(&normalize(path));
        let inode = found.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Place { inode, position: block * BLOCK_SIZE as u64 }
    }

    /// Another place for a write: half of the time in its own file.
    fn draw_place(&self, write: &Write) -> Option<Place> {
        let storage = self.storage.borrow();
        let spares = self.options.borrow().faults.spares;
        let mut files: Vec<&Rc<Inode>> = storage
            .named_files()
            .filter(|(path, inode)| inode.length() > 0 && !spares(path))
            .map(|(_, inode)| inode)
            .collect();
        if self.chance.chance(0.5) {
            files.retain(|inode| Rc::ptr_eq(inode, &write.inode));
        }
        if files.is_empty() {
            return None;
        }
        let inode = files[self.chance.index(files.len())];
        let block = self.chance.below(inode.length().div_ceil(BLOCK_SIZE as u64));
        let position = block * BLOCK_SIZE as u64;
        let is_elsewhere = !Rc::ptr_eq(inode, &write.inode) || position != write.position;
        is_elsewhere.then(|| Place { inode: Rc::clone(inode), position })
    }
}
