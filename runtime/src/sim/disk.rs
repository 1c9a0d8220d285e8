//! Disks as processes see them: operations that take time, overlap, hang, and die with the power. How they fail is in
//! [`super::faults`] and [`super::write_fault`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;

use super::faults::{DiskFaults, Refusal};
use super::host::Process;
use super::options::{CrashOptions, DiskOptions};
use super::random::Random;
use super::storage::{Inode, Storage};
use super::world::{Action, World};
use super::write_fault::Write;
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
    pub(crate) random: Random,
    /// Draws for faults by chance, of which most disks have none.
    pub(crate) chance: Random,
    /// Counts crashes: an operation of before a crash has no effect after it.
    pub(crate) generation: Cell<u64>,
    /// Writes that the device has and has not completed.
    writing: RefCell<BTreeMap<u64, Write>>,
    /// Operations whose time has come while the disk hangs.
    hung: RefCell<Vec<Action>>,
    locks: RefCell<Locks>,
}

/// Who holds which directory, and for how long.
#[derive(Default)]
struct Locks {
    /// Holders: processes, dead ones too while the device still has operations of theirs.
    holders: BTreeMap<PathBuf, u64>,
    /// How many operations of each process the device has.
    in_flight: BTreeMap<u64, u64>,
    /// Processes that have died while the device had operations of theirs.
    departed: BTreeSet<u64>,
}

impl Locks {
    /// A process has died. A kernel ends it, and gives up its locks, once its last operation has ended.
    fn depart(&mut self, process: u64) {
        match self.in_flight.contains_key(&process) {
            true => {
                self.departed.insert(process);
            }
            false => self.holders.retain(|_, holder| *holder != process),
        }
    }

    /// An operation of a process has ended.
    fn land(&mut self, process: u64) {
        let Some(count) = self.in_flight.get_mut(&process) else { return };
        *count -= 1;
        if *count == 0 {
            self.in_flight.remove(&process);
            if self.departed.remove(&process) {
                self.holders.retain(|_, holder| *holder != process);
            }
        }
    }
}

/// What kind of work the device does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
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
            chance: random.aside(1),
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
        *self.locks.borrow_mut() = Locks::default();
        // The file system is mounted anew.
        self.faults.borrow_mut().read_only = false;
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

    /// Gives up what a dead process had locked, as soon as the device has none of its operations any more.
    pub(crate) fn unlock(&self, process: u64) {
        self.locks.borrow_mut().depart(process);
    }

    /// From now on nothing completes. Returns the number of this hang.
    pub(crate) fn hang(&self, world: &World) -> u64 {
        let mut faults = self.faults.borrow_mut();
        faults.hanging = true;
        faults.hangs += 1;
        world.count(|statistics| statistics.hangs += 1);
        faults.hangs
    }

    /// Hangs for a while, unless somebody ends it before.
    pub(crate) fn hang_for(self: &Rc<Self>, world: &World, duration: u64) {
        let (disk, hang) = (Rc::clone(self), self.hang(world));
        world.after(duration, move |world| {
            let is_this = disk.faults.borrow().hangs == hang && disk.faults.borrow().hanging;
            if is_this {
                disk.unhang(world);
            }
        });
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
        *self.locks.borrow_mut() = Locks::default();
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
        latency * u64::from(options.latency_factor) + self.faults.borrow().delay
    }
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
        action: impl FnOnce(&Rc<DiskState>, &Rc<World>) -> io::Result<T> + 'static,
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
        let at_the_device = AtTheDevice::new(&self.process);
        let completion = move |world: &Rc<World>| {
            // Dropped in the end, or without the completion ever running.
            let _at_the_device = at_the_device;
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
            if let Err(error) = &outcome {
                let is_full = u64::from(error.kind() == io::ErrorKind::StorageFull);
                world.count(|statistics| {
                    statistics.disk_errors += 1;
                    statistics.full_disk_refusals += is_full;
                });
            }
            disk.rot(world);
            *completed.outcome.borrow_mut() = Some(outcome);
            if let Some(waker) = completed.waker.borrow_mut().take() {
                waker.wake();
            }
        };
        let host = Rc::clone(&self.process.host);
        if self.disk().wants(|chances| chances.hang, None) && !self.disk().faults.borrow().hanging {
            let time = self.disk().options.borrow().faults.hang_time;
            self.process.host.disk.hang_for(&self.world, self.disk().chance.latency(time));
        }
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
        action: impl FnOnce(&DiskState, &World) -> io::Result<T> + 'static,
    ) -> io::Result<T> {
        self.operate(Work::Directory, move |disk, world| {
            disk.admit(world, Work::Directory, None)?;
            action(disk, world)
        })
        .await
    }

    pub(crate) async fn open(&self, path: PathBuf, options: OpenOptions) -> io::Result<SimFile> {
        let inode = self
            .change(move |disk, world| {
                let found = disk.storage.borrow().file(&path);
                match found {
                    Err(error) if error.kind() == io::ErrorKind::NotFound && options.create => {
                        disk.check_names(world, path.parent())?;
                        disk.storage.borrow_mut().create_file(&path)
                    }
                    found => {
                        disk.check_opening(world, options.write)?;
                        found
                    }
                }
            })
            .await?;
        Ok(SimFile { access: self.clone(), inode, options })
    }

    pub(crate) async fn create_directory(&self, path: PathBuf) -> io::Result<()> {
        self.change(move |disk, world| {
            if disk.storage.borrow().check_directory(&path).is_ok() {
                return Ok(());
            }
            let is_there = |ancestor: &&Path| disk.storage.borrow().check_directory(ancestor).is_ok();
            let nearest = path.ancestors().skip(1).find(is_there);
            disk.check_names(world, nearest)?;
            disk.storage.borrow_mut().create_directory(&path)
        })
        .await
    }

    pub(crate) async fn list_directory(&self, path: PathBuf) -> io::Result<Vec<PathBuf>> {
        self.change(move |disk, _| disk.storage.borrow().list(&path)).await
    }

    pub(crate) async fn rename(&self, from: PathBuf, to: PathBuf) -> io::Result<()> {
        self.change(move |disk, world| {
            disk.check_names(world, from.parent().into_iter().chain(to.parent()))?;
            disk.storage.borrow_mut().rename(&from, &to)
        })
        .await
    }

    pub(crate) async fn remove_file(&self, path: PathBuf) -> io::Result<()> {
        self.change(move |disk, world| {
            disk.check_names(world, path.parent())?;
            disk.storage.borrow_mut().remove(&path)
        })
        .await
    }

    pub(crate) async fn available_bytes(&self, path: PathBuf) -> io::Result<u64> {
        self.change(move |disk, _| {
            let storage = disk.storage.borrow();
            storage.file(&path).map(drop).or_else(|_| storage.check_directory(&path))?;
            Ok(storage.available_bytes())
        })
        .await
    }

    pub(crate) async fn sync_directory(&self, path: PathBuf) -> io::Result<()> {
        self.operate(Work::DirectorySync, move |disk, world| {
            if let Err(refusal) = disk.admit(world, Work::DirectorySync, None) {
                if matches!(refusal, Refusal::Failure) {
                    disk.storage.borrow_mut().fail_sync_directory(&disk.random);
                }
                return Err(refusal.into());
            }
            if disk.faults.borrow().lying {
                return disk.storage.borrow().check_directory(&path);
            }
            disk.storage.borrow_mut().sync_directory(&path)
        })
        .await
    }

    pub(crate) async fn read_small_file(&self, path: PathBuf, length_max: usize) -> io::Result<Vec<u8>> {
        let inode = self.change(move |disk, _| disk.storage.borrow().file(&path)).await?;
        self.operate(Work::Read, move |disk, world| {
            disk.admit(world, Work::Read, Some(&inode))?;
            disk.check_readable(world, &inode, 0, length_max)?;
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
        let inode = self
            .change(move |disk, world| {
                disk.check_names(world, created.parent())?;
                disk.storage.borrow_mut().create_file(&created)
            })
            .await?;
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
            disk.admit(world, Work::Directory, None)?;
            disk.storage.borrow().check_directory(&path)?;
            let mut locks = disk.locks.borrow_mut();
            if locks.holders.contains_key(&path) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let file = path.join(LOCK_FILE);
            let is_there = disk.storage.borrow().file(&file).is_ok();
            match is_there {
                true => disk.check_opening(world, true)?,
                false => {
                    disk.check_names(world, [&*path])?;
                    disk.storage.borrow_mut().create_file(&file)?;
                }
            }
            locks.holders.insert(path, process);
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
        let write = Write { inode, position, bytes: Rc::new(bytes) };
        self.disk().writing.borrow_mut().insert(id, write.clone());
        let host = Rc::clone(&self.process.host);
        let listed = Listed { host, id };
        let work = if durable { Work::DurableWrite } else { Work::Write };
        self.operate(work, move |disk, world| {
            // The device has done with it, whichever way this ends.
            drop(listed);
            disk.complete_write(world, work, &write)
        })
        .await
    }

    async fn sync(&self, inode: Rc<Inode>) -> io::Result<()> {
        let mark = inode.mark();
        self.operate(Work::Sync, move |disk, world| {
            if let Err(refusal) = disk.admit(world, Work::Sync, Some(&inode)) {
                if matches!(refusal, Refusal::Failure) {
                    inode.fail_sync(mark, &disk.random, disk.faults.borrow().after_failed_sync);
                }
                return Err(refusal.into());
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

/// Counts an operation that the device has, until its completion has run or will never run.
struct AtTheDevice(Rc<Process>);

impl AtTheDevice {
    fn new(process: &Rc<Process>) -> Self {
        *process.host.disk.locks.borrow_mut().in_flight.entry(process.id).or_default() += 1;
        Self(Rc::clone(process))
    }
}

impl Drop for AtTheDevice {
    fn drop(&mut self) {
        self.0.host.disk.locks.borrow_mut().land(self.0.id);
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
                    disk.admit(world, Work::Read, Some(&inode))?;
                    disk.check_readable(world, &inode, position, length)?;
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
            file.access.change(move |_, _| Ok(inode.length())).await
        }
    }
}
