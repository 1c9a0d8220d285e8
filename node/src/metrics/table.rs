//! Every metric: its name after Prometheus' conventions, type, labels and help. Base units are seconds and bytes; what
//! only grows ends in `_total`.

/// What a metric is, to Prometheus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Only grows, until the process ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Times, in the buckets of [`BUCKETS_US`].
    Histogram,
}

/// The bounds of all histograms, in microseconds.
pub(super) const BUCKETS_US: [u64; 17] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// One metric.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

/// Makes the enumeration of metrics and their table from one list.
macro_rules! metrics {
    ($($id:ident, $kind:ident, $name:literal, [$($label:literal),*], $help:literal;)*) => {
        /// The metrics, in the order of the table.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub(super) enum Id {
            $($id,)*
        }

        /// The table.
        pub(super) const METRICS: &[Metric] = &[
            $(Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help },)*
        ];

        impl Id {
            /// All of them, in order.
            pub(super) const ALL: &[Self] = &[$(Self::$id,)*];
        }
    };
}

#[rustfmt::skip]
metrics! {
    Requests, Counter, "krita_requests_total", ["operation", "door", "code"], "Requests on data that were answered; code is the error, or OK.";
    RequestTimes, Histogram, "krita_request_duration_seconds", ["operation"], "Time from a request's arrival at this node to its answer.";
    RequestsInFlight, Gauge, "krita_requests_in_flight", [], "Requests on data that have not been answered yet.";
    Connections, Gauge, "krita_connections", ["core"], "Open connections, those between nodes included.";
    ConnectionsAccepted, Counter, "krita_connections_accepted_total", [], "Connections that a core took in; one that moves counts on both.";
    ConnectionsRefused, Counter, "krita_connections_refused_total", [], "Connections that were closed at once because there were too many.";
    Shards, Gauge, "krita_shards", ["role"], "Replicas on this node, by their role in their group.";
    ShardsWithoutLeader, Gauge, "krita_shards_without_leader", [], "Replicas on this node that know no leader.";
    ShardsSuspect, Gauge, "krita_shards_suspect", [], "Replicas that may have forgotten what they acknowledged, and wait to be healed.";
    ShardsStopped, Gauge, "krita_shards_stopped", [], "Replicas that cannot go on.";
    RaftTerms, Gauge, "krita_raft_terms", [], "Sum of the terms of all replicas: every election adds to it.";
    RaftUncommitted, Gauge, "krita_raft_uncommitted_entries", [], "Entries behind the commit index of their replica.";
    RaftUnapplied, Gauge, "krita_raft_unapplied_entries", [], "Committed entries that are not applied yet.";
    ReadsFallenBack, Counter, "krita_reads_without_quorum_total", [], "Reads answered by one replica, as no leader confirmed them.";
    ScanViews, Gauge, "krita_scan_views", [], "Shards that are held still for scans.";
    RaftMessages, Counter, "krita_raft_messages_total", ["direction"], "Raft messages to and from replicas on other nodes.";
    LogWrites, Counter, "krita_log_writes_total", [], "Batches that were written to the log and flushed.";
    LogBytes, Counter, "krita_log_written_bytes_total", [], "Bytes written to the log, padding included.";
    LogWriteTimes, Histogram, "krita_log_write_duration_seconds", [], "Time of a batch's write and flush, the wait for room included.";
    LogQueue, Gauge, "krita_log_queue_bytes", [], "Bytes that wait in the log's write queue.";
    LogSegments, Gauge, "krita_log_segments", ["state"], "Segment files of the log.";
    LogSegmentsRecycled, Counter, "krita_log_segments_recycled_total", [], "Segments that were put to use again.";
    LogDead, Gauge, "krita_log_dead_bytes", [], "Bytes of the log that hold nothing alive, at least.";
    Checkpoints, Counter, "krita_checkpoints_total", [], "Checkpoints published.";
    ManifestFrames, Counter, "krita_manifest_frames_total", [], "Frames appended to manifests.";
    IndexRuns, Gauge, "krita_index_runs", [], "Sorted runs that make up the indexes.";
    IndexRunBytes, Gauge, "krita_index_run_bytes", [], "Bytes of the runs on disk.";
    IndexWritten, Counter, "krita_index_written_bytes_total", [], "Bytes of runs written, by checkpoints, merges and snapshots.";
    IndexMerges, Counter, "krita_index_merges_total", [], "Merges of runs.";
    IndexMemory, Gauge, "krita_index_memory_bytes", ["part"], "Memory of the indexes.";
    BlockCacheBytes, Gauge, "krita_block_cache_bytes", [], "Bytes in the cache of index blocks.";
    BlockCacheRequests, Counter, "krita_block_cache_requests_total", ["result"], "Index blocks that were wanted.";
    ValueCacheBytes, Gauge, "krita_value_cache_bytes", [], "Bytes in the cache of values.";
    ValueCacheRequests, Counter, "krita_value_cache_requests_total", ["result"], "Values that were wanted.";
    CompactedSegments, Counter, "krita_compaction_segments_total", [], "Segments from which everything alive was moved.";
    CompactedValues, Counter, "krita_compaction_values_total", [], "Values that compaction moved.";
    CompactedBytes, Counter, "krita_compaction_moved_bytes_total", [], "Bytes of the values that compaction moved.";
    ScrubBytes, Counter, "krita_scrub_read_bytes_total", [], "Bytes that scrubbing read and checked.";
    ScrubPasses, Counter, "krita_scrub_passes_total", [], "Passes of scrubbing over a log that have ended.";
    Damages, Counter, "krita_storage_damages_total", [], "Damages that were found, by scrubbing and by reads.";
    Repaired, Counter, "krita_storage_values_repaired_total", [], "Damaged values that were got from a peer and written anew.";
    Divergences, Counter, "krita_storage_divergences_total", [], "Times that replicas of a shard were found to differ.";
    DiskFree, Gauge, "krita_disk_free_bytes", [], "Bytes that are free on the file system of the data directory.";
    DiskFull, Gauge, "krita_disk_full", [], "1 while new values are refused for want of room.";
    PeerConnected, Gauge, "krita_peer_connected", ["peer"], "1 while there is a connection to this member.";
    PeerConnections, Counter, "krita_peer_connections_total", ["peer"], "Connections made to this member by one core.";
    PeerBurstsDropped, Counter, "krita_peer_bursts_dropped_total", ["peer"], "Bursts of Raft messages that found the link down or full.";
    CoreBusy, Counter, "krita_core_busy_seconds_total", ["core"], "Time that the core's executor spent running tasks.";
    CoreTasks, Counter, "krita_core_task_polls_total", ["core"], "Tasks that the core's executor ran, each as often as it ran.";
    CoreStalls, Counter, "krita_core_stalls_total", ["core"], "Times that the core did not answer its watchdog in time.";
    CoreStallLongest, Gauge, "krita_core_stall_longest_seconds", ["core"], "The longest time that the core did not answer its watchdog.";
    Cores, Gauge, "krita_cores", [], "Cores of this node.";
    Uptime, Gauge, "krita_uptime_seconds", [], "Time since this node started.";
    Serving, Gauge, "krita_node_serving", [], "1 while this node serves: its cluster is formed, and its logs are open.";
    BuildInfo, Gauge, "krita_build_info", ["version"], "1, with the version of this node.";
    NodeInfo, Gauge, "krita_node_info", ["cluster", "node"], "1, with the names of this node and its cluster.";
    ProcessCpu, Counter, "process_cpu_seconds_total", [], "Processor time of this process, user and system.";
    ProcessMemory, Gauge, "process_resident_memory_bytes", [], "Memory of this process.";
    ProcessVirtual, Gauge, "process_virtual_memory_bytes", [], "Address space of this process.";
    ProcessFiles, Gauge, "process_open_fds", [], "Open file descriptors of this process.";
    ProcessStart, Gauge, "process_start_time_seconds", [], "When this node started, in seconds since 1970.";
    ShardLeader, Gauge, "krita_shard_leader", ["shard"], "1 where this node leads the shard; only with detail=shards.";
    ShardTerm, Gauge, "krita_shard_term", ["shard"], "The shard's term here; only with detail=shards.";
    ShardCommit, Gauge, "krita_shard_commit_index", ["shard"], "The shard's commit index here; only with detail=shards.";
    ShardApplied, Gauge, "krita_shard_applied_index", ["shard"], "The index through which entries are applied here; only with detail=shards.";
    ShardKeys, Gauge, "krita_shard_keys", ["shard"], "About how many keys the shard has; only with detail=shards.";
}

impl Id {
    /// Its row.
    pub(super) fn metric(self) -> &'static Metric {
        &METRICS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        for Metric { name, kind, labels, help } in METRICS {
            let is_word = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            assert!(is_word(name) && labels.iter().all(|label| is_word(label)), "{name}");
            assert!(name.starts_with("krita_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(*kind != Kind::Histogram || name.ends_with("_duration_seconds"), "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '"']), "{name}: {help}");
            assert!(!labels.contains(&"le"), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
        assert!(BUCKETS_US.windows(2).all(|pair| pair[0] < pair[1]));
        for (place, id) in Id::ALL.iter().enumerate() {
            assert_eq!(*id as usize, place);
        }
    }
}
