//! The other nodes as this core sees them: a link to each of their cores, what waits to be sent there, and when
//! each core was last heard.
//!
//! All messages for one core of another node leave in one burst at the end of a round. A core that has nothing to
//! say sends an empty burst now and then; that stands in for the heartbeats of all idle groups between the two
//! cores, so that a stalled core is not covered by its neighbour.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use krita_net::connection::ConnectionOptions;
use krita_net::{ConnectOptions, LinkEvent, LinkState, PeerLink, PeerOptions, RequestError, TlsConfig};
use krita_proto::frame::{Frame, FrameKind, PROTOCOL_VERSION, RequestMessage};
use krita_proto::v1;
use krita_runtime::{Instant, Runtime};

use crate::cluster::Cluster;
use crate::core::NodeInput;
use crate::identity::{Member, NodeUuid};
use crate::log_memory::LogMemory;
use crate::meta::META_SHARD;
use crate::room::Room;

/// Messages that wait for one peer core within one round; beyond it they are dropped, as a network may.
const BURST_MESSAGES_MAX: usize = 65_536;

/// A burst holds this many bytes, or a single message, so that a frame stays within its limit.
const BURST_BYTES_MAX: usize = 4 << 20;

/// The most that a message takes beside its entries, and an entry beside its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 128;
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// Bytes queued to one core of a peer before bursts to it are dropped.
const PEER_QUEUE_BYTES_MAX: usize = 64 << 20;

/// How long making a connection to a peer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A core of another node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PeerCore {
    pub(crate) node_number: u32,
    pub(crate) core: u16,
}

/// What became of cores of other nodes.
pub(crate) struct PeerNews {
    /// The connection to them broke: what was on its way may be lost.
    pub(crate) lost: Vec<PeerCore>,
    /// Nothing has been heard of them for an election time-out.
    pub(crate) silent: Vec<PeerCore>,
}

/// The other nodes.
pub(crate) struct Peers<R: Runtime> {
    runtime: R,
    input: Arc<NodeInput>,
    tls: Option<TlsConfig>,
    /// Silence of a core after which its idle groups are woken.
    silence_max: Duration,
    keep_alive: Duration,
    /// What bursts say of this core's disk.
    own_room: Cell<Room>,
    /// And of its logs.
    log_marks: RefCell<Vec<v1::LogMark>>,
    /// Suspicions that this core is about to note.
    pub(crate) doubts_unsettled: Cell<u32>,
    state: Rc<RefCell<State<R>>>,
}

struct State<R: Runtime> {
    /// None until the cluster is formed.
    cluster: Option<Arc<Cluster>>,
    links: BTreeMap<PeerCore, PeerLink<R>>,
    outgoing: BTreeMap<PeerCore, Vec<v1::RaftMessage>>,
    directory: BTreeMap<u32, Directory>,
    heard: BTreeMap<PeerCore, Heard>,
    sent_at: BTreeMap<PeerCore, Instant>,
    /// Connections that were lost since the last tick.
    lost: Vec<PeerCore>,
    memory: LogMemory,
}

/// What a node said of its cores in its last hello.
struct Directory {
    cores: u16,
    /// By shard number less one; `u32::MAX`: no replica there.
    shard_cores: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Heard {
    at: Instant,
    boot_id: u64,
    room: Room,
    is_silent: bool,
}

impl<R: Runtime> Peers<R> {
    pub(crate) fn new(runtime: &R, input: &Arc<NodeInput>, tls: Option<TlsConfig>) -> Self {
        let config = &input.config;
        Self {
            runtime: runtime.clone(),
            input: input.clone(),
            tls,
            silence_max: config.election_timeout,
            keep_alive: config.heartbeat_interval,
            own_room: Cell::default(),
            log_marks: RefCell::default(),
            doubts_unsettled: Cell::new(0),
            state: Rc::new(RefCell::new(State {
                cluster: None,
                links: BTreeMap::new(),
                outgoing: BTreeMap::new(),
                directory: BTreeMap::new(),
                heard: BTreeMap::new(),
                sent_at: BTreeMap::new(),
                lost: Vec::new(),
                memory: LogMemory::default(),
            })),
        }
    }

    /// The cluster is formed: connect to every member.
    pub(crate) fn begin(&self, cluster: &Arc<Cluster>) {
        self.state.borrow_mut().cluster = Some(cluster.clone());
        for member in cluster.others() {
            self.link(PeerCore { node_number: member.number, core: 0 });
        }
    }

    /// The members have changed: links to those that are no members any more, or live elsewhere now, end.
    pub(crate) fn follow(&self, cluster: &Arc<Cluster>) {
        let mut state = self.state.borrow_mut();
        let before = state.cluster.replace(cluster.clone());
        let moved = |node_number: u32| {
            let address = |cluster: &Arc<Cluster>| cluster.member(node_number).map(|member| member.address);
            before.as_ref().and_then(address) != address(cluster)
        };
        let gone: Vec<PeerCore> =
            state.links.keys().filter(|peer| moved(peer.node_number)).copied().collect();
        let gone: Vec<PeerLink<R>> = gone.iter().filter_map(|peer| state.links.remove(peer)).collect();
        state.heard.retain(|peer, _| cluster.member(peer.node_number).is_some());
        drop(state);
        for link in gone {
            link.stop();
        }
        for member in cluster.others() {
            self.link(PeerCore { node_number: member.number, core: 0 });
        }
    }

    /// A link to `address` for forming, before anybody has a number.
    pub(crate) fn forming_link(&self, address: &str, identity: v1::NodeIdentity) -> PeerLink<R> {
        let cluster_name = self.input.config.cluster_name.clone();
        let hello = move || hello(&cluster_name, identity.clone(), None);
        PeerLink::start(&self.runtime, PeerOptions::new(self.connect_options(address, 0), Rc::new(hello)))
    }

    /// A connection for gossip with whoever lives at `address`.
    pub(crate) fn gossip_link(
        &self,
        address: &str,
        identity: v1::NodeIdentity,
        outgoing_bytes_max: usize,
    ) -> PeerLink<R> {
        let cluster_name = self.input.config.cluster_name.clone();
        let hello = move || hello(&cluster_name, identity.clone(), None);
        let mut connect = self.connect_options(address, 0);
        connect.connection.outgoing_bytes_max = outgoing_bytes_max;
        PeerLink::start(&self.runtime, PeerOptions::new(connect, Rc::new(hello)))
    }

    /// Queues a message for whichever core of the node owns the shard.
    pub(crate) fn queue(&self, node_number: u32, message: v1::RaftMessage) {
        let mut state = self.state.borrow_mut();
        let core = state.core_of_shard(node_number, message.shard).unwrap_or(0);
        let queue = state.outgoing.entry(PeerCore { node_number, core }).or_default();
        if queue.len() < BURST_MESSAGES_MAX {
            queue.push(message);
        }
    }

    /// Sends what has been queued: one burst for each core of a peer (more only if it is very large).
    pub(crate) fn flush(&self) {
        let outgoing = std::mem::take(&mut self.state.borrow_mut().outgoing);
        for (peer, messages) in outgoing {
            let mut burst = Vec::new();
            let mut bytes = 0;
            for message in messages {
                let more = message_bytes(&message);
                if bytes + more > BURST_BYTES_MAX && !burst.is_empty() {
                    self.send_burst(peer, std::mem::take(&mut burst));
                    bytes = 0;
                }
                bytes += more;
                burst.push(message);
            }
            if !burst.is_empty() {
                self.send_burst(peer, burst);
            }
        }
    }

    fn send_burst(&self, peer: PeerCore, messages: Vec<v1::RaftMessage>) {
        let Some(link) = self.link(peer) else { return };
        let room = self.own_room.get();
        let burst = v1::RaftBurst {
            messages,
            from_core: u32::from(self.runtime.core().0),
            boot_id: self.input.boot_id,
            headroom: room.number(),
            free_bytes: room.free_bytes,
            logs: self.log_marks.borrow().clone(),
            unsettled: self.doubts_unsettled.get() > 0,
        };
        // A burst that cannot leave is lost, as on any network; Raft sends again.
        link.send_one_way(&burst);
        self.state.borrow_mut().sent_at.insert(peer, self.runtime.now());
    }

    /// Notes that a core of another node lives. True if it has started anew since it was last heard.
    pub(crate) fn on_heard(&self, peer: PeerCore, burst: &v1::RaftBurst) -> bool {
        let (boot_id, room) = (burst.boot_id, Room::from_burst(burst.headroom, burst.free_bytes));
        let heard = Heard { at: self.runtime.now(), boot_id, room, is_silent: false };
        let mut state = self.state.borrow_mut();
        if !burst.unsettled {
            state.memory.note(peer.node_number, boot_id, &burst.logs);
        }
        let before = state.heard.insert(peer, heard);
        before.is_some_and(|before| before.boot_id != boot_id)
    }

    /// The room on this core's disk, as last measured.
    pub(crate) fn own_room(&self) -> Room {
        self.own_room.get()
    }

    /// Sets what bursts say of this core's disk.
    pub(crate) fn set_own_room(&self, room: Room) {
        self.own_room.set(room);
    }

    /// Sets what bursts say of this core's logs.
    pub(crate) fn set_log_marks(&self, marks: Vec<v1::LogMark>) {
        *self.log_marks.borrow_mut() = marks;
    }

    /// What this core remembers of the others' logs.
    pub(crate) fn memory(&self) -> LogMemory {
        self.state.borrow().memory.clone()
    }

    /// Takes up what was remembered before this process began.
    pub(crate) fn set_memory(&self, memory: LogMemory) {
        self.state.borrow_mut().memory = memory;
    }

    /// The room that the shard has on another node, as that last said.
    pub(crate) fn room_of(&self, node_number: u32, shard: u32) -> Room {
        let state = self.state.borrow();
        let core = state.core_of_shard(node_number, shard).unwrap_or(0);
        state.heard.get(&PeerCore { node_number, core }).map(|heard| heard.room).unwrap_or_default()
    }

    /// Keeps links to live cores warm, and returns what became of others since the last call.
    pub(crate) fn tick(&self, now: Instant) -> PeerNews {
        let mut state = self.state.borrow_mut();
        let lost = std::mem::take(&mut state.lost);
        let mut silent = Vec::new();
        for (peer, heard) in &mut state.heard {
            if !heard.is_silent && heard.at + self.silence_max <= now {
                heard.is_silent = true;
                silent.push(*peer);
            }
        }
        let quiet: Vec<PeerCore> = state
            .links
            .iter()
            .filter(|(peer, link)| {
                let sent_at = state.sent_at.get(peer).copied().unwrap_or_default();
                link.is_connected() && sent_at + self.keep_alive <= now
            })
            .map(|(peer, _)| *peer)
            .collect();
        drop(state);
        for peer in quiet {
            self.send_burst(peer, Vec::new());
        }
        PeerNews { lost, silent }
    }

    /// Whether any core of the node can be reached.
    pub(crate) fn is_connected(&self, node_number: u32) -> bool {
        let state = self.state.borrow();
        state.links.iter().any(|(peer, link)| peer.node_number == node_number && link.is_connected())
    }

    /// Whether every core of the node that was ever heard has been silent for an election time-out.
    pub(crate) fn is_silent(&self, node_number: u32) -> bool {
        let state = self.state.borrow();
        let mut cores = state.heard.iter().filter(|(peer, _)| peer.node_number == node_number);
        cores.all(|(_, heard)| heard.is_silent)
    }

    /// When any core of the node was last heard.
    pub(crate) fn heard_at(&self, node_number: u32) -> Option<Instant> {
        let state = self.state.borrow();
        let cores = state.heard.iter().filter(|(peer, _)| peer.node_number == node_number);
        cores.map(|(_, heard)| heard.at).max()
    }

    /// Whether every other member can be reached.
    pub(crate) fn all_connected(&self) -> bool {
        let cluster = self.state.borrow().cluster.clone();
        cluster.is_some_and(|cluster| cluster.others().all(|member| self.is_connected(member.number)))
    }

    /// The core that owns the shard on another node, as far as is known.
    pub(crate) fn core_of_shard(&self, node_number: u32, shard: u32) -> Option<u16> {
        self.state.borrow().core_of_shard(node_number, shard)
    }

    /// How the link to a node does: that of its first core speaks for it.
    pub(crate) fn link_state(&self, node_number: u32) -> LinkState {
        let state = self.state.borrow();
        state.links.get(&PeerCore { node_number, core: 0 }).map(PeerLink::state).unwrap_or_default()
    }

    /// Asks the core of a node that owns the shard.
    pub(crate) async fn request<Q: RequestMessage>(
        &self,
        node_number: u32,
        shard: u32,
        request: &Q,
        limit: Duration,
    ) -> Result<Q::Reply, RequestError> {
        let link = self.link_for_shard(node_number, shard)?;
        link.request(request, self.runtime.now() + limit).await
    }

    /// Passes on a client's request, flagged as forwarded.
    pub(crate) async fn forward(
        &self,
        node_number: u32,
        shard: u32,
        kind: FrameKind,
        body: &Bytes,
        limit: Duration,
    ) -> Result<Frame, RequestError> {
        let link = self.link_for_shard(node_number, shard)?;
        link.forward(kind, body, self.runtime.now() + limit).await
    }

    fn link_for_shard(&self, node_number: u32, shard: u32) -> Result<PeerLink<R>, RequestError> {
        let core = self.core_of_shard(node_number, shard).unwrap_or(0);
        self.link(PeerCore { node_number, core })
            .ok_or_else(|| RequestError::NotSent(format!("node {node_number} is no member")))
    }

    /// The link to a core of a member; made at its first use.
    fn link(&self, peer: PeerCore) -> Option<PeerLink<R>> {
        if let Some(link) = self.state.borrow().links.get(&peer) {
            return Some(link.clone());
        }
        let cluster = self.state.borrow().cluster.clone()?;
        let member = cluster.member(peer.node_number)?;
        let link = PeerLink::start(&self.runtime, self.member_options(&cluster, &member, peer));
        self.state.borrow_mut().links.insert(peer, link.clone());
        Some(link)
    }

    fn member_options(&self, cluster: &Arc<Cluster>, member: &Member, peer: PeerCore) -> PeerOptions {
        let (name, identity) = (self.input.config.cluster_name.clone(), cluster.identity());
        // The state holds the link, so the link must not hold the state.
        let state = Rc::downgrade(&self.state);
        let remembered =
            move || state.upgrade().and_then(|state| state.borrow().memory.tell(peer.node_number));
        let mut options = PeerOptions::new(
            self.connect_options(&member.address, peer.core),
            Rc::new(move || hello(&name, identity.clone(), remembered())),
        );
        let (wanted, cluster_id) = (member.clone(), cluster.record.cluster_id);
        options.check = Rc::new(move |reply| check_reply(&wanted, &cluster_id.to_bytes(), reply));
        let state = Rc::downgrade(&self.state);
        options.on_event = Rc::new(move |event| {
            if let Some(state) = state.upgrade() {
                state.borrow_mut().on_event(peer, event);
            }
        });
        options
    }

    fn connect_options(&self, address: &str, core: u16) -> ConnectOptions {
        ConnectOptions {
            address: address.to_owned(),
            core: Some(core),
            tls: self.tls.clone(),
            timeout: CONNECT_TIMEOUT,
            connection: ConnectionOptions {
                outgoing_bytes_max: PEER_QUEUE_BYTES_MAX,
                ..ConnectionOptions::default()
            },
        }
    }
}

impl<R: Runtime> State<R> {
    fn core_of_shard(&self, node_number: u32, shard: u32) -> Option<u16> {
        if shard == META_SHARD.0 {
            // It lives in the first log of every node.
            return Some(0);
        }
        let directory = self.directory.get(&node_number)?;
        let core = u16::try_from(*directory.shard_cores.get((shard as usize).checked_sub(1)?)?).ok()?;
        (core < directory.cores).then_some(core)
    }

    fn on_event(&mut self, peer: PeerCore, event: LinkEvent) {
        match event {
            LinkEvent::Connected(reply) => {
                tracing::debug!(node = peer.node_number, core = peer.core, "connected");
                let cores = u16::try_from(reply.cores).unwrap_or(u16::MAX);
                // One that does not serve yet has no logs to hold it against.
                if let Some(node) = reply.node.as_ref().filter(|_| !reply.shard_cores.is_empty()) {
                    self.memory.was_told(peer.node_number, node.boot_id);
                }
                self.directory.insert(peer.node_number, Directory { cores, shard_cores: reply.shard_cores });
            }
            LinkEvent::Lost { problem } => {
                tracing::info!(node = peer.node_number, core = peer.core, problem, "connection lost");
                self.lost.push(peer);
            }
        }
    }
}

/// The hello of a connection between nodes.
fn hello(
    cluster_name: &str,
    identity: v1::NodeIdentity,
    remembered: Option<v1::RememberedLogs>,
) -> v1::Hello {
    v1::Hello {
        protocol_version: PROTOCOL_VERSION,
        cluster_name: cluster_name.to_owned(),
        token: String::new(),
        wanted_core_plus_one: 0,
        node: Some(identity),
        client: concat!("kritad ", env!("CARGO_PKG_VERSION")).to_owned(),
        remembered,
    }
}

/// Whoever answers at a member's address must be that member, with the disk that the cluster knows.
fn check_reply(member: &Member, cluster_id: &Bytes, reply: &v1::HelloReply) -> Result<(), String> {
    let Some(node) = &reply.node else {
        return Err("it does not say who it is".to_owned());
    };
    match NodeUuid::from_bytes(&node.node_uuid) {
        Some(uuid) if uuid == member.node_uuid => {}
        _ => {
            return Err(format!(
                "{} at {} is not the node that the cluster knows: its data directory was lost or replaced",
                node.node_id, member.address
            ));
        }
    }
    if !node.cluster_id.is_empty() && node.cluster_id != *cluster_id {
        return Err(format!("{} at {} belongs to another cluster", node.node_id, member.address));
    }
    Ok(())
}

/// About what a message takes in a frame; no less.
fn message_bytes(message: &v1::RaftMessage) -> usize {
    match &message.body {
        Some(v1::raft_message::Body::Append(append)) => {
            let entries = append.entries.iter().map(|entry| entry.payload.len() + ENTRY_OVERHEAD_BYTES);
            MESSAGE_OVERHEAD_BYTES + entries.sum::<usize>()
        }
        _ => MESSAGE_OVERHEAD_BYTES,
    }
}
