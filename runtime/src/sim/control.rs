//! Faults that a test switches on and off while its simulation runs.

use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::disk::DiskState;
use super::host::Host;
use super::network::{Connection, Side};
use super::random::nanoseconds;
use super::rot::{Damage, Damaged};
use super::storage::{AfterFailedSync, Inode, ReadFault, normalize};
use super::world::World;
use super::write_fault::WriteFault;
use super::{CrashOptions, DiskFaultOptions, HostId, Latency};
use crate::BLOCK_SIZE;

/// The network's switches.
#[derive(Clone)]
pub struct NetworkControl {
    pub(crate) world: Rc<World>,
}

impl NetworkControl {
    /// Cuts two hosts off from each other. Bytes on their way are held until [`Self::heal`]; a connection on
    /// which bytes have waited too long breaks at the side that sent them.
    pub fn partition(&self, a: HostId, b: HostId) {
        self.partition_one_way(a, b);
        self.partition_one_way(b, a);
    }

    /// Cuts one direction only.
    pub fn partition_one_way(&self, from: HostId, to: HostId) {
        self.world.network.cut.borrow_mut().insert((from, to));
    }

    /// Cuts a host off from every other, those added later included.
    pub fn isolate(&self, host: HostId) {
        self.world.network.isolated.borrow_mut().insert(host);
    }

    /// Ends the isolation of a host; links that were cut one by one stay cut.
    pub fn rejoin(&self, host: HostId) {
        self.world.network.isolated.borrow_mut().remove(&host);
        self.world.network_changed();
    }

    /// Mends both directions between two hosts; a host that is isolated stays so.
    pub fn heal(&self, a: HostId, b: HostId) {
        let network = &self.world.network;
        network.cut.borrow_mut().retain(|link| *link != (a, b) && *link != (b, a));
        self.world.network_changed();
    }

    /// Mends everything.
    pub fn heal_all(&self) {
        let network = &self.world.network;
        network.cut.borrow_mut().clear();
        network.isolated.borrow_mut().clear();
        self.world.network_changed();
    }

    /// The one-way delay of every link that has none of its own.
    pub fn set_latency(&self, latency: Latency) {
        self.world.network.options.borrow_mut().latency = latency;
    }

    /// The delay of one direction between two hosts; `None` for the default.
    pub fn set_link_latency(&self, from: HostId, to: HostId, latency: Option<Latency>) {
        let mut links = self.world.network.link_latency.borrow_mut();
        match latency {
            Some(latency) => links.insert((from, to), latency),
            None => links.remove(&(from, to)),
        };
    }

    /// The chance per write of a retransmission, which stalls the stream.
    pub fn set_loss_chance(&self, chance: f64) {
        self.world.network.options.borrow_mut().loss_chance = chance;
    }

    /// The chance per write of a reset after a part of its bytes.
    pub fn set_reset_chance(&self, chance: f64) {
        self.world.network.options.borrow_mut().reset_chance = chance;
    }

    /// Resets every connection between two hosts, in the middle of whatever is on its way; returns how many.
    pub fn reset_connections(&self, a: HostId, b: HostId) -> usize {
        let connections: Vec<_> = self.world.network.connections.borrow().values().cloned().collect();
        let between = |connection: &&Rc<Connection>| {
            let hosts = Side::BOTH.map(|side| connection.end(side).host);
            hosts == [a, b] || hosts == [b, a]
        };
        connections.iter().filter(between).map(|connection| self.world.reset_now(connection)).count()
    }

    /// The address of a host.
    pub fn address(&self, host: HostId) -> IpAddr {
        self.world.host(host).address
    }
}

/// One host's disk and its switches. It survives crashes and boots.
#[derive(Clone)]
pub struct DiskControl {
    pub(crate) world: Rc<World>,
    pub(crate) host: Rc<Host>,
}

impl DiskControl {
    /// Multiplies the delay of every operation; 1 for a healthy disk.
    pub fn slow_by(&self, factor: u32) {
        self.disk().options.borrow_mut().latency_factor = factor;
    }

    /// Adds a delay to every operation; zero for a healthy disk.
    pub fn slow(&self, delay: Duration) {
        self.disk().faults.borrow_mut().delay = nanoseconds(delay);
    }

    /// From now on no operation completes, until [`Self::unhang`].
    pub fn hang(&self) {
        self.disk().hang(&self.world);
    }

    /// From now on no operation completes, for a while.
    pub fn hang_for(&self, duration: Duration) {
        self.host.disk.hang_for(&self.world, nanoseconds(duration));
    }

    /// Lets operations complete again, those in flight included.
    pub fn unhang(&self) {
        self.disk().unhang(&self.world);
    }

    /// The next `count` reads fail.
    pub fn fail_reads(&self, count: u32) {
        self.disk().faults.borrow_mut().failing_reads = count;
    }

    /// The next `count` writes fail, leaving any mixture of old and new sectors.
    pub fn fail_writes(&self, count: u32) {
        self.disk().faults.borrow_mut().failing_writes = count;
    }

    /// The next `count` flushes (of files or directories) fail. Of what a file's failed flush covered, some is
    /// durable, some is not yet, and some never will be though reads go on showing it, all by seed.
    pub fn fail_syncs(&self, count: u32) {
        self.disk().faults.borrow_mut().failing_syncs = count;
    }

    /// What becomes of the data that failed flushes of files cover, from now on.
    pub fn after_failed_syncs(&self, after: AfterFailedSync) {
        self.disk().faults.borrow_mut().after_failed_sync = after;
    }

    /// Makes reads fail that touch a range of bytes of a file, in whole blocks. It outlives crashes, not the file.
    pub fn fail_reads_of(&self, path: impl AsRef<Path>, bytes: Range<u64>, fault: ReadFault) {
        self.inode(path.as_ref()).make_unreadable(bytes, fault);
    }

    /// Makes all of a file readable again.
    pub fn mend_reads_of(&self, path: impl AsRef<Path>) {
        self.inode(path.as_ref()).make_readable();
    }

    /// How often the disk misbehaves by itself from now on.
    pub fn set_faults(&self, faults: DiskFaultOptions) {
        self.disk().options.borrow_mut().faults = faults;
    }

    /// Whether names in a directory (not in those below it) can change: creations, renames and removals fail with
    /// `PermissionDenied`, while files that are there are read and written as before.
    pub fn set_read_only(&self, directory: impl AsRef<Path>, read_only: bool) {
        let (mut faults, path) = (self.disk().faults.borrow_mut(), normalize(directory.as_ref()));
        match read_only {
            true => faults.read_only_directories.insert(path),
            false => faults.read_only_directories.remove(&path),
        };
    }

    /// Whether the whole file system is read-only: every write, flush and change of names fails with
    /// `ReadOnlyFilesystem`. A crash ends it.
    pub fn remount_read_only(&self, read_only: bool) {
        self.disk().faults.borrow_mut().read_only = read_only;
    }

    /// Whether every operation fails.
    pub fn fail_all(&self, failing: bool) {
        self.disk().faults.borrow_mut().failing = failing;
    }

    /// The most bytes that files may take; beyond it writes fail with `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().options.borrow_mut().capacity_bytes = bytes;
        self.disk().storage.borrow_mut().capacity_bytes = bytes;
    }

    /// Acknowledges flushes and durable writes from now on without making anything durable.
    pub fn lie_about_syncs(&self, lying: bool) {
        self.disk().faults.borrow_mut().lying = lying;
    }

    /// The next write that is not spoken for, of one file or of any, is acknowledged and suffers this. Several may
    /// wait for their writes.
    pub fn strike_next_write(&self, path: Option<&Path>, fault: WriteFault) {
        self.disk().faults.borrow_mut().next_writes.push((path.map(normalize), fault));
    }

    /// The next write succeeds and is forgotten.
    pub fn lose_next_write(&self) {
        self.strike_next_write(None, WriteFault::Lost);
    }

    /// The next write succeeds and lands `blocks` blocks away from where it should, in the same file.
    pub fn misdirect_next_write(&self, blocks: i64) {
        self.strike_next_write(None, WriteFault::MovedBy(blocks));
    }

    /// Flips one bit of a file, wherever it stands: in the cache, on the platter, in what is between. Works at rest
    /// and under a running node. Panics if the file has no such byte.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) {
        self.flip(path.as_ref(), offset, 1 << bit);
    }

    /// Flips all bits of a byte of a file, like [`Self::flip_bit`].
    pub fn flip_byte(&self, path: impl AsRef<Path>, offset: u64) {
        self.flip(path.as_ref(), offset, 0xff);
    }

    fn flip(&self, path: &Path, offset: u64, mask: u8) {
        let inode = self.inode(path);
        let byte = inode.read(offset, 1);
        assert_eq!(byte.len(), 1, "{} has no byte {offset}", path.display());
        if !inode.patch(offset, 1, |_, byte| byte ^ mask) {
            // A hole in the file: it holds no block yet.
            inode.overwrite(offset, &[byte[0] ^ mask]);
        }
        self.world.count(|statistics| statistics.flipped_bits += 1);
    }

    /// Zeros a block of a file, wherever it stands. Panics if the file ends before it.
    pub fn zero_block(&self, path: impl AsRef<Path>, block: u64) {
        let inode = self.inode(path.as_ref());
        let position = block * BLOCK_SIZE as u64;
        assert!(position < inode.length(), "{} has no block {block}", path.as_ref().display());
        let changed = inode.patch(position, BLOCK_SIZE, |_, _| 0);
        self.world.count(|statistics| statistics.zeroed_blocks += u64::from(changed));
    }

    /// Gives a block of a file the content of another block, of the same file or of another, as a misdirected write
    /// would have. Panics if there are no such blocks.
    pub fn misplace_block(&self, from: (impl AsRef<Path>, u64), to: (impl AsRef<Path>, u64)) {
        let source = self.inode(from.0.as_ref()).read(from.1 * BLOCK_SIZE as u64, BLOCK_SIZE);
        assert!(!source.is_empty(), "{} has no block {}", from.0.as_ref().display(), from.1);
        let (inode, position) = (self.inode(to.0.as_ref()), to.1 * BLOCK_SIZE as u64);
        assert!(position < inode.length(), "{} has no block {}", to.0.as_ref().display(), to.1);
        let content = |index: usize| source.get(index).copied().unwrap_or(0);
        let changed = inode.patch(position, BLOCK_SIZE, |index, _| content(index));
        self.world.count(|statistics| statistics.misplaced_blocks += u64::from(changed));
    }

    /// Damages some file, by the seed, that [`DiskFaultOptions::spares`] does not spare. `None` if there is none in
    /// which it shows.
    pub fn damage_at_random(&self, damage: Damage) -> Option<Damaged> {
        self.disk().damage(&self.world, damage)
    }

    /// Replaces bytes of a file, in the cache and on the platter, extending it if need be.
    pub fn overwrite(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
        self.inode(path.as_ref()).overwrite(offset, bytes);
    }

    /// Cuts a file, in the cache and on the platter.
    pub fn truncate(&self, path: impl AsRef<Path>, length: u64) {
        let inode = self.inode(path.as_ref());
        let is_shorter = u64::from(length < inode.length());
        inode.truncate(length);
        self.world.count(|statistics| statistics.truncated_files += is_shorter);
    }

    /// Removes a file durably. A process that has it open goes on reading and writing it.
    pub fn remove(&self, path: impl AsRef<Path>) {
        self.world.count(|statistics| statistics.deleted_files += 1);
        let outcome = self.disk().storage.borrow_mut().erase(&normalize(path.as_ref()));
        outcome.unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()));
    }

    /// All files as a process sees them now, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.disk().storage.borrow().files()
    }

    /// A file as a process sees it now.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let inode = self.disk().storage.borrow().file(&normalize(path.as_ref())).ok()?;
        Some(inode.read(0, inode.length() as usize).to_vec())
    }

    /// A file as the worst crash would leave it: without anything unflushed.
    pub fn read_durable(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let inode = self.disk().storage.borrow().durable_file(&normalize(path.as_ref()))?;
        Some(inode.read_durable().to_vec())
    }

    /// Bytes taken by files. A removed file takes its space until nobody has it open and its directory was
    /// flushed: until then a crash may bring it back.
    pub fn used_bytes(&self) -> u64 {
        self.disk().storage.borrow().used_bytes()
    }

    /// Bytes that could still be written to new blocks.
    pub fn available_bytes(&self) -> u64 {
        self.disk().storage.borrow().available_bytes()
    }

    /// What the next crashes of this host do.
    pub fn set_crash_options(&self, options: CrashOptions) {
        self.host.crash_options.set(options);
    }

    /// Erases the disk: the host must not be running.
    pub fn wipe(&self) {
        assert!(self.host.processes.borrow().is_empty(), "{} still runs", self.host.name);
        self.disk().wipe();
    }

    fn disk(&self) -> &DiskState {
        &self.host.disk
    }

    fn inode(&self, path: &Path) -> Rc<Inode> {
        let found = self.disk().storage.borrow().file(&normalize(path));
        found.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}
