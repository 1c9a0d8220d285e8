//! What a node says of itself: its own state, all cores together, and the cluster as it sees it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_channel::oneshot;
use krita_proto::frame::FrameKind;
use krita_proto::v1;
use krita_raft::RoleKind;
use krita_runtime::{CoreId, Mesh, Runtime, TaskClass, timeout};
use prost::Message;

use crate::cluster::Cluster;
use crate::core::{Core, Serving};
use crate::failure::Failure;
use crate::mesh::{CoreMessage, NodeRequest};
use crate::meta::META_SHARD;
use crate::replica::Replica;
use crate::responder::{ReplySink, Responder};
use crate::router::MeshSink;

/// How long the cores of one node have to answer each other.
const CORE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the node looks whether it has a quorum, and how often it says so while it has none.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const WATCH_LOG_EVERY: u32 = 5;

/// Someone on this core waits for the answer.
struct LocalSink(std::cell::RefCell<Option<oneshot::Sender<(FrameKind, Bytes)>>>);

impl ReplySink for LocalSink {
    fn reply(&self, _: u64, kind: FrameKind, body: Bytes) {
        if let Some(sender) = self.0.borrow_mut().take() {
            // Whoever asked may have given up.
            let _ = sender.send((kind, body));
        }
    }
}

impl<R: Runtime> Core<R> {
    /// Answers a request on the node: here if this is core 0, else through it.
    pub(crate) fn answer_node_request(self: &Rc<Self>, request: NodeRequest, responder: Responder) {
        if self.is_first() {
            return self.answer_as_first(request, responder);
        }
        self.pass_node_request(CoreId(0), request, responder);
    }

    fn pass_node_request(self: &Rc<Self>, to: CoreId, request: NodeRequest, responder: Responder) {
        let ticket = match self.tickets.borrow_mut().issue(responder) {
            Ok(ticket) => ticket,
            Err(responder) => {
                return responder.fail(&Failure::overloaded("too many requests wait for other cores"));
            }
        };
        let from = self.runtime.core();
        let message = CoreMessage::NodeRequest { from, ticket, request: Box::new(request) };
        self.send_to_core(to, message);
    }

    /// A request of another core, on the node or on this core's part of it.
    pub(crate) fn on_node_request_from_core(
        self: &Rc<Self>,
        from: CoreId,
        ticket: u64,
        request: NodeRequest,
    ) {
        let sink = Rc::new(MeshSink { core: self.clone(), to: from });
        self.answer_as_first(request, Responder::new(sink, ticket, false));
    }

    fn answer_as_first(self: &Rc<Self>, request: NodeRequest, responder: Responder) {
        match request {
            NodeRequest::Identify => self.answer_identify(responder),
            NodeRequest::Form { from, form } => self.answer_form(*from, *form, responder),
            NodeRequest::Join { from, join } => self.answer_join(&from, *join, responder),
            NodeRequest::CoreStatus { shards } => responder.message(&self.core_status(shards)),
            NodeRequest::CoreMetrics { shards } => self.answer_core_metrics(shards, responder),
            NodeRequest::CoreScrub => responder.message(&self.begin_scrub()),
            NodeRequest::Scrub => {
                let core = self.clone();
                self.runtime.spawn(TaskClass::Foreground, "scrub", async move {
                    responder.message(&core.begin_scrub_everywhere().await);
                });
            }
            NodeRequest::CoreLeaders => responder.message(&self.core_leaders()),
            NodeRequest::NodeStatus { shards } => {
                let core = self.clone();
                self.runtime.spawn(TaskClass::Foreground, "node-status", async move {
                    responder.message(&core.node_status(shards).await);
                });
            }
        }
    }

    /// Answers with the members and where each shard is led, as far as this node knows.
    pub(crate) fn answer_cluster_status(self: &Rc<Self>, responder: Responder) {
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "cluster-status", async move {
            match core.cluster_status().await {
                Ok(reply) => responder.message(&reply),
                Err(failure) => responder.fail(&failure),
            }
        });
    }

    async fn cluster_status(self: &Rc<Self>) -> Result<v1::ClusterStatusReply, Failure> {
        let cluster = self.serving.borrow().as_ref().map(|serving| serving.cluster.clone());
        let cluster: Arc<Cluster> = cluster.ok_or_else(|| self.not_serving())?;
        let mut leaders: BTreeMap<u32, u32> = BTreeMap::new();
        for core in 0..self.mesh.cores() {
            let part: Option<v1::ClusterStatusReply> =
                self.ask_core(CoreId(core), NodeRequest::CoreLeaders).await;
            let places = part.map(|part| part.shards).unwrap_or_default();
            leaders.extend(places.into_iter().map(|place| (place.shard, place.leader_node)));
        }
        let shards = (1..=cluster.shard_count()).map(|shard| {
            let leader_node = leaders.get(&shard).copied().unwrap_or(0);
            let leader_core = match leader_node == cluster.node_number {
                true => cluster.core_of(shard).map(|core| core.0),
                false => self.peers.core_of_shard(leader_node, shard),
            };
            v1::ShardPlace {
                shard,
                nodes: cluster.voting_nodes(shard),
                leader_node,
                leader_core_plus_one: leader_core.map_or(0, |core| u32::from(core) + 1),
            }
        });
        Ok(v1::ClusterStatusReply {
            cluster_name: cluster.record.cluster_name.clone(),
            cluster_id: cluster.record.cluster_id.to_bytes(),
            epoch: cluster.epoch(),
            members: cluster.members().map(|member| v1::Member::from(&member)).collect(),
            shards: shards.collect(),
            log_time_ms: self.runtime.wall_clock().0,
            sightings: self.sightings(&cluster),
        })
    }

    /// This core's part of the shard map.
    fn core_leaders(&self) -> v1::ClusterStatusReply {
        let guard = self.serving.borrow();
        let replicas = guard.as_ref().map(|serving| serving.replicas.values()).into_iter().flatten();
        let shards = replicas.map(|replica| v1::ShardPlace {
            shard: replica.shard,
            leader_node: replica.leader_node().unwrap_or(0),
            ..Default::default()
        });
        v1::ClusterStatusReply { shards: shards.collect(), ..Default::default() }
    }

    /// The node's state, all cores together.
    async fn node_status(self: &Rc<Self>, shards: bool) -> v1::NodeStatusReply {
        let mut whole = self.core_status(shards);
        for core in (0..self.mesh.cores()).map(CoreId).filter(|core| *core != self.runtime.core()) {
            let part: Option<v1::NodeStatusReply> =
                self.ask_core(core, NodeRequest::CoreStatus { shards }).await;
            let Some(part) = part else {
                whole.problems.push(format!("{core} does not answer"));
                continue;
            };
            whole.shards_total += part.shards_total;
            whole.shards_led += part.shards_led;
            whole.shards_with_leader += part.shards_with_leader;
            whole.shards.extend(part.shards);
            whole.problems.extend(part.problems);
            whole.storage = Some(add_storage(whole.storage.unwrap_or_default(), part.storage));
        }
        if let Some(serving) = self.serving.borrow().as_ref() {
            whole.sightings = self.sightings(&serving.cluster);
            whole.problems.extend(self.gossip_problems());
        }
        whole.shards.sort_by_key(|shard| shard.shard);
        // Every core sees the same trouble with a peer.
        whole.problems.sort();
        whole.problems.dedup();
        whole.state = self.state_text(&whole);
        whole
    }

    fn state_text(&self, whole: &v1::NodeStatusReply) -> String {
        let forming = self.forming_status.borrow().0.clone();
        if forming != "serving" {
            return forming;
        }
        if self.input.stop.is_set() {
            return "stopping".to_owned();
        }
        if whole.shards_with_leader == whole.shards_total {
            return "serving".to_owned();
        }
        let reached = 1 + whole.peers.iter().filter(|peer| peer.connected).count();
        let members = whole.peers.len() + 1;
        match reached * 2 > members {
            true => format!("electing leaders, {}/{} done", whole.shards_with_leader, whole.shards_total),
            false => format!("waiting for quorum {reached}/{members}"),
        }
    }

    /// This core's part of the node's state.
    fn core_status(&self, shards: bool) -> v1::NodeStatusReply {
        let guard = self.serving.borrow();
        let mut reply = v1::NodeStatusReply {
            node: Some(self.bare_identity()),
            cluster_name: self.input.config.cluster_name.clone(),
            state: self.forming_status.borrow().0.clone(),
            cores: u32::from(self.mesh.cores()),
            uptime_ms: self.runtime.now().since(self.started_at).as_millis() as u64,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        let Some(serving) = guard.as_ref() else {
            reply.problems = self.forming_status.borrow().1.clone();
            return reply;
        };
        reply.node = Some(serving.cluster.identity());
        reply.peers = serving.cluster.others().map(|member| self.peer_status(&member)).collect();
        let cut_off = reply.peers.iter().filter(|peer| !peer.connected);
        reply.problems = cut_off
            .map(|peer| format!("cannot talk to {} at {}: {}", peer.node_id, peer.address, peer.problem))
            .collect();
        if self.peers.own_room().is_full() {
            reply.problems.push("the disk is full: new values are refused".to_owned());
        }
        reply.problems.extend(self.counters.losses.borrow().iter().cloned());
        reply.storage = Some(self.storage_status(serving));
        for replica in serving.replicas.values() {
            // Who counts shards means those that hold data.
            if replica.shard != META_SHARD.0 {
                reply.shards_total += 1;
                reply.shards_led += u32::from(replica.is_leader());
                // One that is not in its group, or not yet, has none to miss.
                let is_voter = replica.raft.configuration().is_voter(replica.id);
                reply.shards_with_leader += u32::from(replica.leader.is_some() || !is_voter);
            }
            reply.problems.extend(replica.stopped.clone());
            reply.problems.extend(self.doubt_problem(replica));
            if shards {
                reply.shards.push(self.shard_status(replica));
            }
        }
        reply
    }

    fn storage_status(&self, serving: &Serving<R>) -> v1::StorageStatus {
        let room = self.peers.own_room();
        let mut status = v1::StorageStatus {
            free_bytes: room.free_bytes,
            full: room.is_full(),
            values_repaired: self.counters.values_repaired.get(),
            divergences: self.counters.divergences.get(),
            shards_suspect: serving.replicas.values().map(|replica| u32::from(replica.doubt.is_some())).sum(),
            ..Default::default()
        };
        for log in &serving.logs {
            let statistics = log.store.statistics();
            status.logs_scrubbing += u32::from(log.scrub.is_running.get());
            status.scrub_passes += statistics.scrub_passes;
            status.scrub_bytes += statistics.scrub_bytes;
            status.damages += statistics.damages;
            let segments = statistics.segments - statistics.segments_spare;
            status.stored_bytes += segments * self.input.config.segment_bytes + statistics.run_bytes;
            status.logs += 1;
            status.log_writes_ms += log.write_time(self.runtime.now()).as_millis() as u64;
        }
        status
    }

    fn peer_status(&self, member: &crate::identity::Member) -> v1::PeerStatus {
        let state = self.peers.link_state(member.number);
        v1::PeerStatus {
            node_number: member.number,
            node_id: member.node_id.clone(),
            address: member.address.clone(),
            connected: self.peers.is_connected(member.number),
            problem: state.problem,
        }
    }

    fn shard_status(&self, replica: &Replica<R>) -> v1::ShardStatus {
        let status = replica.raft.status();
        let checkpoint = replica.store.checkpoint_meta(replica.engine_shard());
        v1::ShardStatus {
            shard: replica.shard,
            core: u32::from(self.runtime.core().0),
            role: match status.role {
                RoleKind::Follower => "follower",
                RoleKind::PreCandidate => "pre-candidate",
                RoleKind::Candidate => "candidate",
                RoleKind::Leader => "leader",
            }
            .to_owned(),
            term: status.term.0,
            leader_node: replica.leader_node().unwrap_or(0),
            first_index: status.first.0,
            last_index: status.last.0,
            commit_index: status.commit.0,
            applied_index: replica.applied.0,
            checkpoint_index: checkpoint.map_or(0, |meta| meta.applied.0),
            state_hash: replica.machine.state_hash(),
            keys: replica.store.keys_estimate(replica.engine_shard()),
        }
    }

    /// Asks a core of this node, this one included. `None` if it does not answer in time.
    pub(crate) async fn ask_core<M: Message + Default>(
        self: &Rc<Self>,
        core: CoreId,
        request: NodeRequest,
    ) -> Option<M> {
        let (sender, receiver) = oneshot::channel();
        let sink = Rc::new(LocalSink(std::cell::RefCell::new(Some(sender))));
        let responder = Responder::new(sink, 0, false);
        match core == self.runtime.core() {
            true => self.answer_as_first(request, responder),
            false => self.pass_node_request(core, request, responder),
        }
        let (kind, body) = timeout(&self.runtime, CORE_TIMEOUT, receiver).await.ok()?.ok()?;
        if kind == FrameKind::Error {
            return None;
        }
        M::decode(body).ok()
    }

    /// Says in the log when the node lacks a quorum, and with whom it cannot talk, until it has one again.
    pub(crate) async fn watch_quorum(self: Rc<Self>) {
        let mut last = String::new();
        let mut rounds = 0;
        while !self.is_ending() {
            self.runtime.sleep(WATCH_INTERVAL).await;
            let status = self.node_status(false).await;
            self.tell_vitals(&status);
            rounds = if status.state == last { rounds + 1 } else { 0 };
            let is_well = status.state == "serving";
            if rounds == 0 || (!is_well && rounds % WATCH_LOG_EVERY == 0) {
                match (is_well, rounds) {
                    (true, _) => {
                        tracing::info!(shards = status.shards_total, led = status.shards_led, "serving")
                    }
                    // Every start goes through this; it is worth a warning only if it lasts.
                    (false, 0) => tracing::info!(problems = ?status.problems, "{}", status.state),
                    (false, _) => tracing::warn!(problems = ?status.problems, "{}", status.state),
                }
            }
            last = status.state;
        }
    }
}

/// What two cores of one node hold, together.
fn add_storage(one: v1::StorageStatus, other: Option<v1::StorageStatus>) -> v1::StorageStatus {
    let Some(other) = other else { return one };
    v1::StorageStatus {
        // One file system.
        free_bytes: one.free_bytes.min(other.free_bytes),
        full: one.full || other.full,
        logs_scrubbing: one.logs_scrubbing + other.logs_scrubbing,
        scrub_passes: one.scrub_passes + other.scrub_passes,
        scrub_bytes: one.scrub_bytes + other.scrub_bytes,
        damages: one.damages + other.damages,
        values_repaired: one.values_repaired + other.values_repaired,
        divergences: one.divergences + other.divergences,
        shards_suspect: one.shards_suspect + other.shards_suspect,
        stored_bytes: one.stored_bytes + other.stored_bytes,
        logs: one.logs + other.logs,
        log_writes_ms: one.log_writes_ms + other.log_writes_ms,
    }
}
