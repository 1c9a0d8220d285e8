//! Counters that tell a test whether its simulation has met what it was written to meet.

/// What has happened in a simulation so far.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Statistics {
    /// Events taken from the queue.
    pub events: u64,
    /// Polls of tasks.
    pub polls: u64,
    /// Tasks started.
    pub tasks: u64,
    /// Messages taken by a mesh.
    pub mesh_messages: u64,
    /// Mesh messages refused because the queue was full or the core had ended.
    pub mesh_refusals: u64,
    /// Connections accepted into a backlog.
    pub connections: u64,
    /// Segments of bytes delivered.
    pub segments: u64,
    /// Bytes delivered.
    pub bytes: u64,
    /// Writes that took only a part of their bytes.
    pub short_writes: u64,
    /// Reads that gave only a part of what was there.
    pub short_reads: u64,
    /// Packets lost and sent again.
    pub retransmissions: u64,
    /// Connections reset, by chance, by a test or by a crash.
    pub resets: u64,
    /// Connections broken because their peer stayed unreachable.
    pub breaks: u64,
    /// Hosts crashed.
    pub crashes: u64,
    /// Hosts whose processes were killed.
    pub kills: u64,
    /// Reads from disks.
    pub disk_reads: u64,
    /// Writes to disks.
    pub disk_writes: u64,
    /// Flushes of files.
    pub disk_syncs: u64,
    /// Flushes of directories.
    pub directory_syncs: u64,
    /// Disk operations that failed because a test asked for it, or because the disk was full.
    pub disk_errors: u64,
    /// Unflushed writes that a crash lost whole.
    pub lost_writes: u64,
    /// Unflushed writes of which a crash kept some sectors and lost others.
    pub torn_writes: u64,
    /// Directory changes that a crash lost.
    pub lost_directory_changes: u64,
    /// Writes that a disk acknowledged and forgot, and that would have changed something.
    pub forgotten_writes: u64,
    /// Writes that landed in other blocks than they should have.
    pub misdirected_writes: u64,
    /// Writes that landed a second time and changed something by it.
    pub duplicated_writes: u64,
    /// Writes that failed because a fault was wanted.
    pub failed_writes: u64,
    /// Flushes, of files or directories, that failed because a fault was wanted.
    pub failed_syncs: u64,
    /// Reads that failed because a fault was wanted or a block cannot be read.
    pub failed_reads: u64,
    /// Bits (or bytes, where a test asked for a byte) flipped in files.
    pub flipped_bits: u64,
    /// Blocks zeroed that were not zeros.
    pub zeroed_blocks: u64,
    /// Blocks that were given another block's content.
    pub misplaced_blocks: u64,
    /// Files that lost their end.
    pub truncated_files: u64,
    /// Files removed behind everybody's back.
    pub deleted_files: u64,
    /// Operations refused because the disk was full.
    pub full_disk_refusals: u64,
    /// Operations refused because a directory or the file system was read-only.
    pub read_only_refusals: u64,
    /// Times that a disk began to hang.
    pub hangs: u64,
    /// File operations whose futures were dropped in flight: a bug in the caller, save in a crash.
    pub dropped_operations: u64,
}
