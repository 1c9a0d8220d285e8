//! Faults that a test switches on and off while its simulation runs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{CrashOptions, HostId, Latency};

/// The network's switches.
pub struct NetworkControl {}

#[allow(unused_variables)]
impl NetworkControl {
    /// Cuts two hosts off from each other. Bytes on their way are held until [`Self::heal`]; a connection on
    /// which bytes have waited too long breaks at the side that sent them.
    pub fn partition(&self, a: HostId, b: HostId) {
        unimplemented!()
    }
    /// Cuts one direction only.
    pub fn partition_one_way(&self, from: HostId, to: HostId) {
        unimplemented!()
    }
    /// Cuts a host off from every other, those added later included.
    pub fn isolate(&self, host: HostId) {
        unimplemented!()
    }
    /// Mends both directions between two hosts.
    pub fn heal(&self, a: HostId, b: HostId) {
        unimplemented!()
    }
    /// Mends everything.
    pub fn heal_all(&self) {
        unimplemented!()
    }
    /// The one-way delay of every link that has none of its own.
    pub fn set_latency(&self, latency: Latency) {
        unimplemented!()
    }
    /// The delay of one direction between two hosts; `None` for the default.
    pub fn set_link_latency(&self, from: HostId, to: HostId, latency: Option<Latency>) {
        unimplemented!()
    }
    /// The chance per write of a retransmission, which stalls the stream.
    pub fn set_loss_chance(&self, chance: f64) {
        unimplemented!()
    }
    /// The chance per write of a reset after a part of its bytes.
    pub fn set_reset_chance(&self, chance: f64) {
        unimplemented!()
    }
    /// Resets every connection between two hosts, in the middle of whatever is on its way; returns how many.
    pub fn reset_connections(&self, a: HostId, b: HostId) -> usize {
        unimplemented!()
    }
    /// The address of a host.
    pub fn address(&self, host: HostId) -> IpAddr {
        unimplemented!()
    }
}

/// One host's disk and its switches. It survives crashes and boots.
pub struct DiskControl {}

#[allow(unused_variables)]
impl DiskControl {
    /// Adds a delay to every operation; zero for a healthy disk.
    pub fn slow(&self, delay: Duration) {
        unimplemented!()
    }
    /// From now on no operation completes, until [`Self::unhang`].
    pub fn hang(&self) {
        unimplemented!()
    }
    /// Lets operations complete again, those in flight included.
    pub fn unhang(&self) {
        unimplemented!()
    }
    /// The next `count` reads fail.
    pub fn fail_reads(&self, count: u32) {
        unimplemented!()
    }
    /// The next `count` writes fail, leaving any mixture of old and new sectors.
    pub fn fail_writes(&self, count: u32) {
        unimplemented!()
    }
    /// The next `count` flushes (of files or directories) fail. What they should have flushed is durable or
    /// not by seed, and no later flush mends it.
    pub fn fail_syncs(&self, count: u32) {
        unimplemented!()
    }
    /// Whether every operation fails.
    pub fn fail_all(&self, failing: bool) {
        unimplemented!()
    }
    /// The most bytes that files may take; beyond it writes fail with `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        unimplemented!()
    }
    /// Acknowledges flushes and durable writes from now on without making anything durable.
    pub fn lie_about_syncs(&self, lying: bool) {
        unimplemented!()
    }
    /// The next write succeeds and is forgotten.
    pub fn lose_next_write(&self) {
        unimplemented!()
    }
    /// The next write succeeds and lands `blocks` blocks away from where it should, in the same file.
    pub fn misdirect_next_write(&self, blocks: i64) {
        unimplemented!()
    }
    /// Flips one bit of a file, in the cache and on the platter. Panics if the file has no such byte.
    pub fn flip_bit(&self, path: impl AsRef<Path>, offset: u64, bit: u8) {
        unimplemented!()
    }
    /// Replaces bytes of a file, in the cache and on the platter, extending it if need be.
    pub fn overwrite(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
        unimplemented!()
    }
    /// Cuts a file, in the cache and on the platter.
    pub fn truncate(&self, path: impl AsRef<Path>, length: u64) {
        unimplemented!()
    }
    /// Removes a file durably.
    pub fn remove(&self, path: impl AsRef<Path>) {
        unimplemented!()
    }
    /// All files as a process sees them now, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        unimplemented!()
    }
    /// A file as a process sees it now.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        unimplemented!()
    }
    /// A file as the worst crash would leave it: without anything unflushed.
    pub fn read_durable(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        unimplemented!()
    }
    /// Bytes taken by files.
    pub fn used_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// What the next crashes of this host do.
    pub fn set_crash_options(&self, options: CrashOptions) {
        unimplemented!()
    }
    /// Erases the disk: the host must not be running.
    pub fn wipe(&self) {
        unimplemented!()
    }
}
