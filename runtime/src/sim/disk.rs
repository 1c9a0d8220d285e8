//! Disks as processes see them: operations that take time, overlap, fail, hang, and die with the power.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;

use super::host::Process;
use super::options::{CrashOptions, DiskOptions};
use super::random::Random;
use super::storage::{Inode, SECTOR_SIZE, Storage};
use super::world::{Action, World};
use crate::{BLOCK_SIZE, File, OpenOptions};

/// The file that carries the lock of a directory, as on a real machine.
const LOCK_FILE: &str = "lock";

/// What is added to the name of the file that is written first when a small file is replaced.
const TEMPORARY_SUFFIX: &str = ".new";

/// A host's disk.
pub(crate) struct DiskState {
    pub(crate) storage: RefCell<Storage>,
    pub(crate) options: RefCell<DiskOptions>,
    pub(crate) faults: RefCell<DiskFaults>,
    random: Random,
    /// Counts crashes: an operation of before a crash has no effect after it.
    generation: Cell<u64>,
    /// Writes that the device has and has not completed.
    writing: RefCell<BTreeMap<u64, Writing>>,
    /// Operations whose time has come while the disk hangs.
    hung: RefCell<Vec<Action>>,
    locks: RefCell<BTreeMap<PathBuf, u64>>,
}

/// What a test has switched on.
#[derive(Default)]
pub(crate) struct DiskFaults {
    pub(crate) delay: u64,
    pub(crate) hanging: bool,
    pub(crate) failing_reads: u32,
    pub(crate) failing_writes: u32,
    pub(crate) failing_syncs: u32,
    pub(crate) failing: bool,
    pub(crate) lying: bool,
    pub(crate) lose_next_write: bool,
    pub(crate) misdirect_next_write: Option<i64>,
}

struct Writing {
    inode: Rc<Inode>,
    position: u64,
    bytes: Rc<SimBuffer>,
}

/// What kind of work the device does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Read,
    Write,
    DurableWrite,
    Sync,
    DirectorySync,
    Directory,
}

impl DiskState {
    pub(crate) fn new(random: Random, options: DiskOptions) -> Self {
        Self {
            storage: RefCell::new(Storage::new(options.capacity_bytes)),
            options: RefCell::new(options),
            faults: RefCell::default(),
            random,
            generation: Cell::new(0),
            writing: RefCell::default(),
            hung: RefCell::default(),
            locks: RefCell::default(),
        }
    }

    /// Power is lost: writes in flight fare like unflushed ones.
    pub(crate) fn crash(&self, world: &World, options: CrashOptions) {
        self.generation.set(self.generation.get() + 1);
        // First, since a completion that is dropped takes its write off the list.
        let mut writing: Vec<_> = std::mem::take(&mut *self.writing.borrow_mut()).into_values().collect();
        self.hung.borrow_mut().clear();
        self.locks.borrow_mut().clear();
        while !writing.is_empty() {
            let write = writing.swap_remove(self.random.index(writing.len()));
            write.inode.write(write.position, &write.bytes);
        }
        let report = self.storage.borrow_mut().crash(&self.random, options);
        world.count(|statistics| {
            statistics.lost_writes += report.lost_writes;
            statistics.torn_writes += report.torn_writes;
            statistics.lost_directory_changes += report.lost_directory_changes;
        });
    }

    /// Gives up what a dead process had locked.
    pub(crate) fn unlock(&self, process: u64) {
        self.locks.borrow_mut().retain(|_, holder| *holder != process);
    }

    /// Lets what has hung complete.
    pub(crate) fn unhang(&self, world: &World) {
        self.faults.borrow_mut().hanging = false;
        for completion in std::mem::take(&mut *self.hung.borrow_mut()) {
            world.after(self.latency(Work::Write), completion);
        }
    }

    pub(crate) fn wipe(&self) {
        let capacity = self.options.borrow().capacity_bytes;
        *self.storage.borrow_mut() = Storage::new(capacity);
        self.generation.set(self.generation.get() + 1);
    }

    fn latency(&self, work: Work) -> u64 {
        let options = self.options.borrow();
        let latency = match work {
            Work::Read => self.random.latency(options.read_latency),
            Work::Write => self.random.latency(options.write_latency),
            Work::DurableWrite => {
                self.random.latency(options.write_latency) + self.random.latency(options.sync_latency)
            }
            Work::Sync | Work::DirectorySync => self.random.latency(options.sync_latency),
            Work::Directory => self.random.latency(options.directory_latency),
        };
        latency + self.faults.borrow().delay
    }

    /// Whether this operation is to fail, and counts it.
    fn admit(&self, world: &World, work: Work) -> io::Result<()> {
        let mut faults = self.faults.borrow_mut();
        let faults = &mut *faults;
        let countdown = match work {
            Work::Read => Some(&mut faults.failing_reads),
            Work::Write | Work::DurableWrite => Some(&mut faults.failing_writes),
            Work::Sync | Work::DirectorySync => Some(&mut faults.failing_syncs),
            Work::Directory => None,
        };
        world.count(|statistics| match work {
            Work::Read => statistics.disk_reads += 1,
            Work::Write | Work::DurableWrite => statistics.disk_writes += 1,
            Work::Sync => statistics.disk_syncs += 1,
            Work::DirectorySync => statistics.directory_syncs += 1,
            Work::Directory => {}
        });
        let counted = countdown.is_some_and(|count| {
            let failing = *count > 0;
            *count = count.saturating_sub(1);
            failing
        });
        if faults.failing || counted {
            return Err(input_output_error());
        }
        Ok(())
    }
}

/// `EIO`, as a kernel reports it.
fn input_output_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

/// A process's way to its host's disk.
#[derive(Clone)]
pub(crate) struct DiskAccess {
    pub(crate) world: Rc<World>,
    pub(crate) process: Rc<Process>,
}

/// What a future of an operation and its completion share.
struct Operation<T> {
    outcome: RefCell<Option<io::Result<T>>>,
    waker: RefCell<Option<Waker>>,
    /// The future was dropped, and by seed the device shall never have heard of the operation.
    withdrawn: Cell<bool>,
}

/// Notices a future dropped in flight.
struct InFlight<'a, T> {
    access: &'a DiskAccess,
    operation: Rc<Operation<T>>,
    finished: bool,
}

impl<T> Drop for InFlight<'_, T> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let world = &self.access.world;
        if self.access.process.alive.get() {
            world.count(|statistics| statistics.dropped_operations += 1);
        }
        self.operation.withdrawn.set(self.access.disk().random.chance(0.5));
    }
}

impl DiskAccess {
    fn disk(&self) -> &DiskState {
        &self.process.host.disk
    }

    /// Runs `action` on the device after a latency, and gives back what it gives.
    async fn operate<T: 'static>(
        &self,
        work: Work,
        action: impl FnOnce(&DiskState, &World) -> io::Result<T> + 'static,
    ) -> io::Result<T> {
        if !self.process.alive.get() {
            return Err(io::Error::other("the process that held this file is dead"));
        }
        let operation = Rc::new(Operation {
            outcome: RefCell::new(None),
            waker: RefCell::default(),
            withdrawn: Cell::new(false),
        });
        let mut in_flight = InFlight { access: self, operation: Rc::clone(&operation), finished: false };
        let host = Rc::clone(&self.process.host);
        let generation = host.disk.generation.get();
        let completed = Rc::clone(&operation);
        let completion = move |world: &Rc<World>| {
            let disk = &host.disk;
            if disk.generation.get() != generation {
                return;
            }
            // A write that the device never heard of is still taken off its list.
            let outcome = if completed.withdrawn.get() {
                Err(io::ErrorKind::Interrupted.into())
            } else {
                action(disk, world)
            };
            if outcome.is_err() {
                world.count(|statistics| statistics.disk_errors += 1);
            }
            *completed.outcome.borrow_mut() = Some(outcome);
            if let Some(waker) = completed.waker.borrow_mut().take() {
                waker.wake();
            }
        };
        let host = Rc::clone(&self.process.host);
        self.world.after(self.disk().latency(work), move |world| {
            if host.disk.faults.borrow().hanging {
                host.disk.hung.borrow_mut().push(Box::new(completion));
            } else {
                completion(world);
            }
        });
        let outcome = poll_fn(|context| match operation.outcome.borrow_mut().take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                *operation.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await;
        in_flight.finished = true;
        outcome
    }

    /// An operation on names.
    async fn change<T: 'static>(
        &self,
        action: impl FnOnce(&mut Storage) -> io::Result<T> + 'static,
    ) -> io::Result<T> {
        self.operate(Work::Directory, move |disk, world| {
            disk.admit(world, Work::Directory)?;
            action(&mut disk.storage.borrow_mut())
        })
        .await
    }

    pub(crate) async fn open(&self, path: PathBuf, options: OpenOptions) -> io::Result<SimFile> {
        let inode = self
            .change(move |storage| match storage.file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && options.create => {
                    storage.create_file(&path)
                }
                found => found,
            })
            .await?;
        Ok(SimFile { access: self.clone(), inode, options })
    }

    pub(crate) async fn create_directory(&self, path: PathBuf) -> io::Result<()> {
        self.change(move |storage| storage.create_directory(&path)).await
    }

    pub(crate) async fn list_directory(&self, path: PathBuf) -> io::Result<Vec<PathBuf>> {
        self.change(move |storage| storage.list(&path)).await
    }

    pub(crate) async fn rename(&self, from: PathBuf, to: PathBuf) -> io::Result<()> {
        self.change(move |storage| storage.rename(&from, &to)).await
    }

    pub(crate) async fn remove_file(&self, path: PathBuf) -> io::Result<()> {
        self.change(move |storage| storage.remove(&path)).await
    }

    pub(crate) async fn available_bytes(&self, path: PathBuf) -> io::Result<u64> {
        self.change(move |storage| {
            storage.file(&path).map(drop).or_else(|_| storage.check_directory(&path))?;
            Ok(storage.available_bytes())
        })
        .await
    }

    pub(crate) async fn sync_directory(&self, path: PathBuf) -> io::Result<()> {
        self.operate(Work::DirectorySync, move |disk, world| {
            if let Err(error) = disk.admit(world, Work::DirectorySync) {
                disk.storage.borrow_mut().fail_sync_directory(&disk.random);
                return Err(error);
            }
            if disk.faults.borrow().lying {
                return disk.storage.borrow().check_directory(&path);
            }
            disk.storage.borrow_mut().sync_directory(&path)
        })
        .await
    }

    pub(crate) async fn read_small_file(&self, path: PathBuf, length_max: usize) -> io::Result<Vec<u8>> {
        let inode = self.change(move |storage| storage.file(&path)).await?;
        self.operate(Work::Read, move |disk, world| {
            disk.admit(world, Work::Read)?;
            if inode.length() > length_max as u64 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too long"));
            }
            Ok(inode.read(0, length_max).to_vec())
        })
        .await
    }

    /// The steps are those of a real disk, so that a crash may fall between any two of them.
    pub(crate) async fn replace_small_file(&self, path: PathBuf, content: Vec<u8>) -> io::Result<()> {
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(TEMPORARY_SUFFIX);
        let beside = path.with_file_name(name);
        let created = beside.clone();
        let inode = self.change(move |storage| storage.create_file(&created)).await?;
        if !content.is_empty() {
            self.write(Rc::clone(&inode), 0, SimBuffer(content), false).await?;
        }
        self.sync(inode).await?;
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        self.rename(beside, path).await?;
        self.sync_directory(directory).await
    }

    pub(crate) async fn lock_directory(&self, path: PathBuf) -> io::Result<()> {
        let process = self.process.id;
        self.operate(Work::Directory, move |disk, world| {
            disk.admit(world, Work::Directory)?;
            disk.storage.borrow().check_directory(&path)?;
            let mut locks = disk.locks.borrow_mut();
            if locks.contains_key(&path) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let file = path.join(LOCK_FILE);
            if disk.storage.borrow().file(&file).is_err() {
                disk.storage.borrow_mut().create_file(&file)?;
            }
            locks.insert(path, process);
            Ok(())
        })
        .await
    }

    async fn write(
        &self,
        inode: Rc<Inode>,
        position: u64,
        bytes: SimBuffer,
        durable: bool,
    ) -> io::Result<()> {
        let id = self.world.next_identifier();
        let bytes = Rc::new(bytes);
        let writing = Writing { inode: Rc::clone(&inode), position, bytes: Rc::clone(&bytes) };
        self.disk().writing.borrow_mut().insert(id, writing);
        let host = Rc::clone(&self.process.host);
        let listed = Listed { host, id };
        let work = if durable { Work::DurableWrite } else { Work::Write };
        self.operate(work, move |disk, world| {
            // The device has done with it, whichever way this ends.
            drop(listed);
            disk.complete_write(world, work, &inode, position, &bytes)
        })
        .await
    }

    async fn sync(&self, inode: Rc<Inode>) -> io::Result<()> {
        let mark = inode.mark();
        self.operate(Work::Sync, move |disk, world| {
            if let Err(error) = disk.admit(world, Work::Sync) {
                inode.fail_sync(mark, &disk.random);
                return Err(error);
            }
            if !disk.faults.borrow().lying {
                inode.sync(mark);
            }
            Ok(())
        })
        .await
    }
}

/// Takes a write off the device's list when its completion has run, or will never run.
struct Listed {
    host: Rc<super::host::Host>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.host.disk.writing.borrow_mut().remove(&self.id);
    }
}

impl DiskState {
    fn complete_write(
        &self,
        world: &World,
        work: Work,
        inode: &Inode,
        position: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        if let Err(error) = self.admit(world, work) {
            // A failed write leaves any mixture of old and new sectors; sometimes it has grown the file.
            let part = self.random.index(bytes.len() / SECTOR_SIZE + 1) * SECTOR_SIZE;
            if part > 0 && self.storage.borrow().check_space(inode, position, part).is_ok() {
                inode.write_sectors(position, &bytes[..part], |_| self.random.chance(0.5));
            }
            return Err(error);
        }
        self.storage.borrow().check_space(inode, position, bytes.len())?;
        let (lost, misdirected) = {
            let mut faults = self.faults.borrow_mut();
            (std::mem::take(&mut faults.lose_next_write), faults.misdirect_next_write.take())
        };
        if lost {
            return Ok(());
        }
        let position = match misdirected {
            Some(blocks) => position.saturating_add_signed(blocks * BLOCK_SIZE as i64),
            None => position,
        };
        let before = inode.mark();
        inode.write(position, bytes);
        if work == Work::DurableWrite && !self.faults.borrow().lying {
            inode.sync_write(before + 1);
        }
        Ok(())
    }
}

/// An open simulated file.
#[derive(Clone)]
pub struct SimFile {
    access: DiskAccess,
    inode: Rc<Inode>,
    options: OpenOptions,
}

/// A buffer for a simulated device. It starts out filled with rubbish, since its content is unspecified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SimBuffer(Vec<u8>);

impl Deref for SimBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for SimBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl File for SimFile {
    type Buffer = SimBuffer;

    fn buffer(&self, length: usize) -> SimBuffer {
        assert!(length > 0 && length.is_multiple_of(BLOCK_SIZE), "a buffer of {length} bytes is not aligned");
        SimBuffer(vec![0xd5; length])
    }

    fn write_at(&self, buffer: SimBuffer, position: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let file = self.clone();
        async move {
            if !position.is_multiple_of(BLOCK_SIZE as u64) || !buffer.len().is_multiple_of(BLOCK_SIZE) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            if !file.options.write {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            if buffer.is_empty() {
                return Ok(());
            }
            file.access.write(Rc::clone(&file.inode), position, buffer, file.options.durable_writes).await
        }
    }

    fn read_at(&self, position: u64, length: usize) -> impl Future<Output = io::Result<Bytes>> + 'static {
        let file = self.clone();
        async move {
            let inode = Rc::clone(&file.inode);
            file.access
                .operate(Work::Read, move |disk, world| {
                    disk.admit(world, Work::Read)?;
                    Ok(inode.read(position, length))
                })
                .await
        }
    }

    fn sync_data(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let file = self.clone();
        async move { file.access.sync(Rc::clone(&file.inode)).await }
    }

    fn length(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        let file = self.clone();
        async move {
            let inode = Rc::clone(&file.inode);
            file.access.change(move |_| Ok(inode.length())).await
        }
    }
}
