//! How a disk fails: what a test has switched on, what the seed decides by [`DiskFaultOptions`], and what both do to
//! a single operation. A fault that is off draws no random numbers.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{DiskState, Work};
use super::options::DiskFaultOptions;
use super::storage::{AfterFailedSync, Inode, ReadFault};
use super::world::World;
use super::write_fault::WriteFault;
use crate::BLOCK_SIZE;

/// What a test has switched on.
#[derive(Default)]
pub(crate) struct DiskFaults {
    pub(crate) delay: u64,
    pub(crate) hanging: bool,
    /// Counts hangs, so that the end of one does not end a later one.
    pub(crate) hangs: u64,
    pub(crate) failing_reads: u32,
    pub(crate) failing_writes: u32,
    pub(crate) failing_syncs: u32,
    pub(crate) after_failed_sync: AfterFailedSync,
    pub(crate) failing: bool,
    pub(crate) lying: bool,
    /// What the next writes suffer: each takes the first that is meant for its file, or for any.
    pub(crate) next_writes: Vec<(Option<PathBuf>, WriteFault)>,
    /// The whole file system takes no changes.
    pub(crate) read_only: bool,
    /// Directories whose names do not change.
    pub(crate) read_only_directories: BTreeSet<PathBuf>,
}

/// Why an operation does not happen.
pub(crate) enum Refusal {
    /// `EIO`.
    Failure,
    /// `EROFS`.
    ReadOnly,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Failure => input_output_error(),
            Refusal::ReadOnly => read_only_error(),
        }
    }
}

/// `EIO`, as a kernel reports it.
pub(crate) fn input_output_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

/// `EROFS`.
fn read_only_error() -> io::Error {
    io::Error::from_raw_os_error(30)
}

/// `EACCES`.
fn forbidden_error() -> io::Error {
    io::Error::from_raw_os_error(13)
}

impl DiskState {
    /// Whether chance wants this, on this file. Draws nothing if there is no chance.
    pub(crate) fn wants(&self, of: impl Fn(&DiskFaultOptions) -> f64, inode: Option<&Inode>) -> bool {
        let chance = of(&self.options.borrow().faults);
        if chance <= 0.0 {
            return false;
        }
        let path = inode.and_then(|inode| self.storage.borrow().path_of(inode).cloned());
        let spared = path.is_some_and(|path| (self.options.borrow().faults.spares)(&path));
        !spared && self.chance.chance(chance)
    }

    /// Whether this operation is to fail, and counts it.
    pub(crate) fn admit(&self, world: &World, work: Work, inode: Option<&Inode>) -> Result<(), Refusal> {
        world.count(|statistics| match work {
            Work::Read => statistics.disk_reads += 1,
            Work::Write | Work::DurableWrite => statistics.disk_writes += 1,
            Work::Sync => statistics.disk_syncs += 1,
            Work::DirectorySync => statistics.directory_syncs += 1,
            Work::Directory => {}
        });
        let asked = self.take_countdown(work);
        let is_change = matches!(work, Work::Write | Work::DurableWrite | Work::Sync | Work::DirectorySync);
        if is_change && self.faults.borrow().read_only {
            world.count(|statistics| statistics.read_only_refusals += 1);
            return Err(Refusal::ReadOnly);
        }
        let by_chance = !asked
            && match work {
                Work::Read => self.wants(|chances| chances.failed_read, inode),
                Work::Write | Work::DurableWrite => self.wants(|chances| chances.failed_write, inode),
                Work::Sync | Work::DirectorySync => self.wants(|chances| chances.failed_sync, inode),
                Work::Directory => false,
            };
        if by_chance && is_change && self.wants(|chances| chances.read_only_after_failure, inode) {
            self.faults.borrow_mut().read_only = true;
        }
        if !asked && !by_chance {
            return Ok(());
        }
        world.count(|statistics| match work {
            Work::Read => statistics.failed_reads += 1,
            Work::Write | Work::DurableWrite => statistics.failed_writes += 1,
            Work::Sync | Work::DirectorySync => statistics.failed_syncs += 1,
            Work::Directory => {}
        });
        Err(Refusal::Failure)
    }

    /// Whether a test has asked for this operation to fail.
    fn take_countdown(&self, work: Work) -> bool {
        let mut faults = self.faults.borrow_mut();
        let faults = &mut *faults;
        let countdown = match work {
            Work::Read => Some(&mut faults.failing_reads),
            Work::Write | Work::DurableWrite => Some(&mut faults.failing_writes),
            Work::Sync | Work::DirectorySync => Some(&mut faults.failing_syncs),
            Work::Directory => None,
        };
        let counted = countdown.is_some_and(|count| {
            let failing = *count > 0;
            *count = count.saturating_sub(1);
            failing
        });
        faults.failing || counted
    }

    /// Whether names in these directories may change now.
    pub(crate) fn check_names<'a>(
        &self,
        world: &World,
        directories: impl IntoIterator<Item = &'a Path>,
    ) -> io::Result<()> {
        let faults = self.faults.borrow();
        let error = if faults.read_only {
            read_only_error()
        } else if directories.into_iter().any(|path| faults.read_only_directories.contains(path)) {
            forbidden_error()
        } else {
            return Ok(());
        };
        world.count(|statistics| statistics.read_only_refusals += 1);
        Err(error)
    }

    /// Whether a file may be opened like this.
    pub(crate) fn check_opening(&self, world: &World, for_writing: bool) -> io::Result<()> {
        match for_writing {
            true => self.check_names(world, []),
            false => Ok(()),
        }
    }

    /// Whether these bytes can be read, by the state of their blocks and by chance.
    pub(crate) fn check_readable(
        &self,
        world: &World,
        inode: &Inode,
        position: u64,
        length: usize,
    ) -> io::Result<()> {
        if self.wants(|chances| chances.unreadable_block, Some(inode)) && position < inode.length() {
            let start = position - position % BLOCK_SIZE as u64;
            inode.make_unreadable(start..start + 1, ReadFault::UntilWritten);
        }
        if inode.check_readable(position, length) {
            return Ok(());
        }
        world.count(|statistics| statistics.failed_reads += 1);
        Err(input_output_error())
    }
}
