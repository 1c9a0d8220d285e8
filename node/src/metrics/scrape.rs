//! How `/metrics` is answered: every core tells what it and the parts on it have counted, and the core that was asked
//! adds what holds for the node and the process.

use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use krita_engine::Statistics;
use krita_proto::frame::FrameKind;
use krita_raft::RoleKind;
use krita_runtime::{CoreId, Mesh, Runtime};
use prost::Message as _;

use super::sample::CoreSample;
use super::table::Id;
use super::text;
use crate::core::{Core, Serving};
use crate::mesh::NodeRequest;
use crate::replica::Replica;
use crate::responder::Responder;

/// Files of `/proc` that are read are shorter.
const PROCESS_FILE_BYTES_MAX: usize = 4096;

/// The kernel counts in hundredths of a second for all programs (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Pages of memory, as `/proc/self/statm` counts.
const PAGE_BYTES: u64 = 4096;

impl<R: Runtime> Core<R> {
    /// Everything that this node counts, as text.
    pub(crate) async fn metrics_text(self: &Rc<Self>, shards: bool) -> String {
        let mut whole = CoreSample::default();
        for core in (0..self.mesh.cores()).map(CoreId) {
            let part: Option<CoreSample> = self.ask_core(core, NodeRequest::CoreMetrics { shards }).await;
            // A core that does not answer has no lines: what is missing shows.
            whole.merge(part.unwrap_or_default());
        }
        let mut node = CoreSample::default();
        self.node_figures(&mut node);
        self.process_figures(&mut node).await;
        whole.merge(node);
        text::render(&whole)
    }

    /// Answers with this core's figures.
    pub(crate) fn answer_core_metrics(&self, shards: bool, responder: Responder) {
        let mut sample = CoreSample::default();
        self.metrics.sample(&mut sample);
        self.core_figures(&mut sample);
        if let Some(serving) = self.serving.borrow().as_ref() {
            shard_figures(serving, shards, &mut sample);
            for log in &serving.logs {
                storage_figures(&log.store.statistics(), &mut sample);
            }
        }
        // What crosses the mesh is no frame of the protocol: any kind that is no error will do.
        responder.body(FrameKind::NodeStatusReply, Bytes::from(sample.encode_to_vec()));
    }

    fn core_figures(&self, sample: &mut CoreSample) {
        let core = self.runtime.core().0.to_string();
        let figures = self.runtime.core_figures();
        sample.add_fraction(Id::CoreBusy, &[&core], figures.busy.as_secs_f64());
        sample.add(Id::CoreTasks, &[&core], figures.task_polls);
        sample.add(Id::CoreStalls, &[&core], figures.stalls);
        sample.add_fraction(Id::CoreStallLongest, &[&core], figures.stall_longest.as_secs_f64());
        sample.add(Id::Connections, &[&core], u64::from(self.connections.get()));
        sample.add(Id::ScanViews, &[], self.views.count() as u64);
        sample.add(Id::Repaired, &[], self.counters.values_repaired.get());
        sample.add(Id::Divergences, &[], self.counters.divergences.get());
        let guard = self.serving.borrow();
        let members = guard.as_ref().map(|serving| serving.cluster.clone());
        for member in members.iter().flat_map(|cluster| cluster.others()) {
            let state = self.peers.link_state(member.number);
            sample.add(Id::PeerConnections, &[&member.node_id], state.connections);
            sample.add(Id::PeerBurstsDropped, &[&member.node_id], state.bursts_dropped);
        }
    }

    /// What holds for the node as a whole.
    fn node_figures(&self, sample: &mut CoreSample) {
        let config = &self.input.config;
        let room = self.peers.own_room();
        let guard = self.serving.borrow();
        sample.add(Id::Serving, &[], u64::from(guard.is_some()));
        if let Some(serving) = guard.as_ref() {
            sample.add(Id::DiskFree, &[], room.free_bytes);
            sample.add(Id::DiskFull, &[], u64::from(room.is_full()));
            for member in serving.cluster.others() {
                let connected = self.peers.is_connected(member.number);
                sample.add(Id::PeerConnected, &[&member.node_id], u64::from(connected));
            }
            let node_id = serving.cluster.identity().node_id;
            sample.add(Id::NodeInfo, &[&config.cluster_name, &node_id], 1);
        }
        let uptime = self.runtime.now().since(self.started_at);
        sample.add(Id::Cores, &[], u64::from(self.mesh.cores()));
        sample.add_fraction(Id::Uptime, &[], uptime.as_secs_f64());
        sample.add(Id::BuildInfo, &[env!("CARGO_PKG_VERSION")], 1);
        let started_ms = self.runtime.wall_clock().0.saturating_sub(uptime.as_millis() as u64);
        sample.add_fraction(Id::ProcessStart, &[], started_ms as f64 / 1e3);
    }

    /// What Linux counts of this process; nothing where there is none.
    async fn process_figures(&self, sample: &mut CoreSample) {
        let read = |path| self.runtime.read_small_file(Path::new(path), PROCESS_FILE_BYTES_MAX);
        if let Some(seconds) = read("/proc/self/stat").await.ok().and_then(|stat| processor_seconds(&stat)) {
            sample.add_fraction(Id::ProcessCpu, &[], seconds);
        }
        if let Some((all, resident)) = read("/proc/self/statm").await.ok().and_then(|statm| memory(&statm)) {
            sample.add(Id::ProcessVirtual, &[], all);
            sample.add(Id::ProcessMemory, &[], resident);
        }
        if let Ok(files) = self.runtime.list_directory(Path::new("/proc/self/fd")).await {
            sample.add(Id::ProcessFiles, &[], files.len() as u64);
        }
    }
}

/// User and system time in `/proc/<pid>/stat`: fields 14 and 15. The name, field 2, may hold anything.
fn processor_seconds(stat: &[u8]) -> Option<f64> {
    let (_, behind_name) = std::str::from_utf8(stat).ok()?.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// Address space and memory in `/proc/<pid>/statm`, in bytes.
fn memory(statm: &[u8]) -> Option<(u64, u64)> {
    let mut fields = std::str::from_utf8(statm).ok()?.split_whitespace();
    let all: u64 = fields.next()?.parse().ok()?;
    let resident: u64 = fields.next()?.parse().ok()?;
    Some((all * PAGE_BYTES, resident * PAGE_BYTES))
}

/// The names of roles, in the order of their counts.
const ROLES: [(RoleKind, &str); 4] = [
    (RoleKind::Leader, "leader"),
    (RoleKind::Follower, "follower"),
    (RoleKind::Candidate, "candidate"),
    (RoleKind::PreCandidate, "pre_candidate"),
];

fn shard_figures<R: Runtime>(serving: &Serving<R>, detail: bool, sample: &mut CoreSample) {
    let mut roles = [0; ROLES.len()];
    let (mut terms, mut uncommitted, mut unapplied) = (0, 0, 0);
    for replica in serving.replicas.values() {
        let status = replica.raft.status();
        for ((role, _), count) in ROLES.iter().zip(&mut roles) {
            *count += u64::from(*role == status.role);
        }
        terms += status.term.0;
        uncommitted += status.last.0.saturating_sub(status.commit.0);
        unapplied += status.commit.0.saturating_sub(replica.applied.0);
        if detail {
            detail_figures(replica, sample);
        }
    }
    for ((_, role), count) in ROLES.iter().zip(roles) {
        sample.add(Id::Shards, &[role], count);
    }
    let those = |is: fn(&Replica<R>) -> bool| serving.replicas.values().filter(|it| is(it)).count() as u64;
    sample.add(Id::ShardsWithoutLeader, &[], those(|replica| replica.leader.is_none()));
    sample.add(Id::ShardsSuspect, &[], those(|replica| replica.doubt.is_some()));
    sample.add(Id::ShardsStopped, &[], those(|replica| replica.stopped.is_some()));
    sample.add(Id::RaftTerms, &[], terms);
    sample.add(Id::RaftUncommitted, &[], uncommitted);
    sample.add(Id::RaftUnapplied, &[], unapplied);
}

fn detail_figures<R: Runtime>(replica: &Replica<R>, sample: &mut CoreSample) {
    let status = replica.raft.status();
    let shard = replica.shard.to_string();
    sample.add(Id::ShardLeader, &[&shard], u64::from(replica.is_leader()));
    sample.add(Id::ShardTerm, &[&shard], status.term.0);
    sample.add(Id::ShardCommit, &[&shard], status.commit.0);
    sample.add(Id::ShardApplied, &[&shard], replica.applied.0);
    sample.add(Id::ShardKeys, &[&shard], replica.store.keys_estimate(replica.engine_shard()));
}

/// One log's figures. Every counter of the engine is named here, so that a new one is not forgotten.
fn storage_figures(statistics: &Statistics, sample: &mut CoreSample) {
    let Statistics {
        batches,
        log_bytes,
        seals: _,
        checkpoints,
        manifest_frames,
        segments,
        segments_recycled,
        segments_spare,
        cache_bytes,
        cache_hits,
        cache_misses,
        queue_bytes,
        merges,
        merges_partial: _,
        run_bytes_written,
        runs,
        run_bytes,
        run_memory_bytes,
        filter_bytes,
        memtable_bytes,
        block_cache_bytes,
        block_cache_hits,
        block_cache_misses,
        segments_evacuated,
        segments_compacted,
        relocated_values,
        relocated_bytes,
        dead_bytes,
        scrub_bytes,
        scrub_passes,
        damages,
    } = *statistics;
    let in_use = segments.saturating_sub(segments_spare).saturating_sub(segments_evacuated);
    let block_indexes = run_memory_bytes.saturating_sub(filter_bytes);
    for (id, labels, value) in [
        (Id::LogWrites, &[][..], batches),
        (Id::LogBytes, &[], log_bytes),
        (Id::LogQueue, &[], queue_bytes),
        (Id::LogSegments, &["used"], in_use),
        (Id::LogSegments, &["spare"], segments_spare),
        (Id::LogSegments, &["evacuated"], segments_evacuated),
        (Id::LogSegmentsRecycled, &[], segments_recycled),
        (Id::LogDead, &[], dead_bytes),
        (Id::Checkpoints, &[], checkpoints),
        (Id::ManifestFrames, &[], manifest_frames),
        (Id::IndexRuns, &[], runs),
        (Id::IndexRunBytes, &[], run_bytes),
        (Id::IndexWritten, &[], run_bytes_written),
        (Id::IndexMerges, &[], merges),
        (Id::IndexMemory, &["memtables"], memtable_bytes),
        (Id::IndexMemory, &["filters"], filter_bytes),
        (Id::IndexMemory, &["block_indexes"], block_indexes),
        (Id::BlockCacheBytes, &[], block_cache_bytes),
        (Id::BlockCacheRequests, &["hit"], block_cache_hits),
        (Id::BlockCacheRequests, &["miss"], block_cache_misses),
        (Id::ValueCacheBytes, &[], cache_bytes),
        (Id::ValueCacheRequests, &["hit"], cache_hits),
        (Id::ValueCacheRequests, &["miss"], cache_misses),
        (Id::CompactedSegments, &[], segments_compacted),
        (Id::CompactedValues, &[], relocated_values),
        (Id::CompactedBytes, &[], relocated_bytes),
        (Id::ScrubBytes, &[], scrub_bytes),
        (Id::ScrubPasses, &[], scrub_passes),
        (Id::Damages, &[], damages),
    ] {
        sample.add(id, labels, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_as_they_are() {
        let stat = b"7 (a) b) S 1 2 3 4 5 6 7 8 9 10 500 25 0 0 20";
        assert_eq!(processor_seconds(stat), Some(5.25));
        assert_eq!(processor_seconds(b"7 (short) S"), None);
        assert_eq!(memory(b"300 20 3 4\n"), Some((300 * 4096, 20 * 4096)));
        assert_eq!(memory(b""), None);
    }
}
