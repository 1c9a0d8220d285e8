//! Connections: accepted, brought to the core they want, let in or refused, and then served frame by frame.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_net::{
    AcceptOptions, Accepted, FrameReceiver, FrameSender, Incoming, ReceiveError, SendError, accept,
};
use krita_proto::error::ErrorCode;
use krita_proto::frame::{BODY_BYTES_MAX, Flags, Frame, FrameKind, FrameMessage, PROTOCOL_VERSION};
use krita_proto::v1;
use krita_runtime::{Listener, Mesh, Notify, Runtime, TaskClass};

use crate::core::{Core, Serving};
use crate::failure::Failure;
use crate::identity::NodeUuid;
use crate::mesh::{CoreMessage, NodeRequest};
use crate::metrics::{self, Door};
use crate::peers::PeerCore;
use crate::request::ShardRequest;
use crate::responder::{ReplySink, Responder};

/// Requests of one connection that are being worked on; it is not read from while it has this many.
const REQUESTS_MAX: u32 = 4096;

/// Bytes of one connection's answers that wait for room in its outgoing queue; it is not read from while any do.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Frames taken from one connection before the others get their turn.
const FRAMES_PER_TURN: u32 = 64;

/// One connection's session.
struct Session {
    sender: FrameSender,
    answers: Rc<Answers>,
    sink: Rc<dyn ReplySink>,
    /// Set on a connection between nodes.
    node: Option<NodePeer>,
}

/// The node at the other end.
struct NodePeer {
    identity: v1::NodeIdentity,
    /// Its number, once this node knows the cluster and finds it to be a member.
    number: Cell<Option<u32>>,
    /// This core did not serve yet when it said hello, so that the answer lacked where the shards are.
    is_early: bool,
}

/// Who may use the connection for what.
enum Admission {
    Client,
    Node(v1::NodeIdentity),
}

/// Answers go to the connection's outgoing queue; what finds it full waits here for room, since one round may answer
/// more than the queue takes of a client that reads as fast as it can.
struct ConnectionSink<R: Runtime> {
    runtime: R,
    answers: Rc<Answers>,
}

/// The answers of one connection.
struct Answers {
    sender: FrameSender,
    /// Requests whose answer has not been queued yet.
    open: Cell<u32>,
    answered: Notify,
    waiting: RefCell<VecDeque<(u64, FrameKind, Bytes)>>,
    waiting_bytes: Cell<usize>,
    /// A task moves what waits into the queue.
    is_moving: Cell<bool>,
}

impl Answers {
    fn new(sender: FrameSender) -> Rc<Self> {
        Rc::new(Self {
            sender,
            open: Cell::new(0),
            answered: Notify::new(),
            waiting: RefCell::default(),
            waiting_bytes: Cell::new(0),
            is_moving: Cell::new(false),
        })
    }

    /// Whether the connection has as much to answer as it may.
    fn is_full(&self) -> bool {
        self.open.get() >= REQUESTS_MAX || !self.waiting.borrow().is_empty()
    }

    /// Queues an answer. False if there is no room for it now.
    fn queue(&self, correlation: u64, kind: FrameKind, body: &Bytes) -> bool {
        match self.sender.send_body(kind, Flags::NONE, correlation, body) {
            Ok(()) | Err(SendError::Closed(_)) => {}
            Err(SendError::Full) => return false,
            Err(SendError::Frame(error)) => {
                tracing::error!(%error, "an answer does not fit a frame");
                self.sender.close("an answer does not fit a frame");
            }
        }
        self.open.set(self.open.get().saturating_sub(1));
        self.answered.notify();
        true
    }

    /// Moves what waits into the queue as room comes. Ends soon if the connection does.
    async fn move_waiting(self: Rc<Self>) {
        loop {
            self.sender.room().await;
            let Some((correlation, kind, body)) = self.waiting.borrow_mut().pop_front() else { break };
            if self.queue(correlation, kind, &body) {
                self.waiting_bytes.set(self.waiting_bytes.get() - body.len());
            } else {
                self.waiting.borrow_mut().push_front((correlation, kind, body));
            }
        }
        self.is_moving.set(false);
        self.answered.notify();
    }
}

impl<R: Runtime> ReplySink for ConnectionSink<R> {
    fn reply(&self, correlation: u64, kind: FrameKind, body: Bytes) {
        let answers = &self.answers;
        if answers.queue(correlation, kind, &body) {
            return;
        }
        let bytes = answers.waiting_bytes.get() + body.len();
        if bytes > WAITING_BYTES_MAX {
            // An answer that is lost would leave the client waiting: rather end the connection.
            return answers.sender.close("answers are not being read");
        }
        answers.waiting_bytes.set(bytes);
        answers.waiting.borrow_mut().push_back((correlation, kind, body));
        if !answers.is_moving.replace(true) {
            self.runtime.spawn(TaskClass::Foreground, "answers", answers.clone().move_waiting());
        }
    }
}

impl<R: Runtime> Core<R> {
    /// Accepts for as long as the core lives.
    pub(crate) async fn accept_connections(self: Rc<Self>, listener: R::Listener) {
        while !self.is_ending() {
            match listener.accept().await {
                Ok(stream) => self.admit(stream, Bytes::new()),
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    self.runtime.sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// Serves a socket in a task of its own. `received` was read from it by another core.
    pub(crate) fn admit(self: &Rc<Self>, stream: R::Stream, received: Bytes) {
        let connections_max = self.input.config.connections_max / u32::from(self.mesh.cores()).max(1);
        if self.connections.get() >= connections_max.max(1) {
            tracing::warn!(connections_max, "connection refused: this core has as many as it may");
            metrics::count(&self.metrics.connections_refused);
            return;
        }
        self.connections.set(self.connections.get() + 1);
        metrics::count(&self.metrics.connections_accepted);
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "connection", async move {
            core.serve_socket(stream, received).await;
            core.connections.set(core.connections.get() - 1);
        });
    }

    async fn serve_socket(self: &Rc<Self>, stream: R::Stream, received: Bytes) {
        let options = AcceptOptions::new(self.tls.clone(), self.runtime.core(), self.mesh.cores());
        match accept(&self.runtime, stream, received, &options).await {
            Ok(Accepted::Here(incoming)) => self.serve_incoming(*incoming).await,
            Ok(Accepted::Http(connection)) => self.serve_http(*connection).await,
            Ok(Accepted::Elsewhere { core, stream, received }) => {
                let handoff = self.runtime.detach(stream);
                self.send_to_core(core, CoreMessage::Connection { handoff, prefix: received });
            }
            Err(error) => tracing::info!("{error}"),
        }
    }

    async fn serve_incoming(self: &Rc<Self>, incoming: Incoming<R>) {
        let Incoming { mut connection, hello, correlation } = incoming;
        let admission = match self.judge(&hello) {
            Ok(admission) => admission,
            Err(failure) => {
                let peer = connection.peer_address();
                tracing::warn!(?peer, client = hello.client, "refused: {}", failure.message);
                connection.refuse(&failure.to_wire()).await;
                return;
            }
        };
        let is_early = self.serving.borrow().is_none();
        let is_node = matches!(admission, Admission::Node(_));
        if let (Admission::Node(identity), Some(remembered)) = (&admission, &hello.remembered) {
            self.hear_memory(identity, remembered);
        }
        if connection.accept(correlation, &self.hello_reply(is_node)).is_err() {
            return;
        }
        let (receiver, sender) = connection.split();
        let answers = Answers::new(sender.clone());
        let sink = Rc::new(ConnectionSink { runtime: self.runtime.clone(), answers: answers.clone() });
        let node = match admission {
            Admission::Client => None,
            Admission::Node(identity) => Some(NodePeer { identity, number: Cell::new(None), is_early }),
        };
        let session = Session { sender, answers, sink, node };
        self.serve_frames(receiver, session).await;
    }

    /// Who comes in, and as what.
    fn judge(&self, hello: &v1::Hello) -> Result<Admission, Failure> {
        let ours = &self.input.config.cluster_name;
        if hello.cluster_name != *ours {
            return Err(Failure::new(
                ErrorCode::WrongCluster,
                format!("this is cluster {ours:?}, not {:?}", hello.cluster_name),
            ));
        }
        let Some(node) = &hello.node else {
            return match self.authenticator.check(&hello.token) {
                Ok(_admin) => Ok(Admission::Client),
                Err(error) => Err(Failure::new(ErrorCode::Unauthenticated, error.to_string())),
            };
        };
        let cluster_id =
            self.serving.borrow().as_ref().map(|serving| serving.cluster.record.cluster_id.to_bytes());
        match cluster_id {
            Some(ours) if !node.cluster_id.is_empty() && node.cluster_id != ours => Err(Failure::new(
                ErrorCode::WrongCluster,
                format!("node {} belongs to another cluster of this name", node.node_id),
            )),
            _ => Ok(Admission::Node(node.clone())),
        }
    }

    fn hello_reply(&self, is_node: bool) -> v1::HelloReply {
        let guard = self.serving.borrow();
        let cluster = guard.as_ref().map(|serving| &serving.cluster);
        v1::HelloReply {
            protocol_version: PROTOCOL_VERSION,
            node: Some(cluster.map_or_else(|| self.bare_identity(), |cluster| cluster.identity())),
            core: u32::from(self.runtime.core().0),
            cores: u32::from(self.mesh.cores()),
            log_time_ms: self.log_time_ms(guard.as_ref()),
            shard_cores: cluster.filter(|_| is_node).map(|cluster| cluster.shard_cores()).unwrap_or_default(),
            frame_bytes_max: u32::try_from(BODY_BYTES_MAX).unwrap_or(u32::MAX),
        }
    }

    /// A time that no shard of this core has passed: from it a client derives until when its session may register.
    fn log_time_ms(&self, serving: Option<&Serving<R>>) -> u64 {
        let replicas = serving.map(|serving| serving.replicas.values()).into_iter().flatten();
        let highest = replicas.map(|replica| replica.machine.log_time_ms()).max();
        highest.unwrap_or(0).max(self.runtime.wall_clock().0)
    }

    /// Who this node is before it is a member of anything.
    pub(crate) fn bare_identity(&self) -> v1::NodeIdentity {
        v1::NodeIdentity {
            node_id: self.identity.node_id.clone(),
            node_uuid: self.identity.node_uuid.to_bytes(),
            cluster_id: Bytes::new(),
            node_number: 0,
            advertised_address: self.input.config.advertised_address.clone(),
            boot_id: self.input.boot_id,
        }
    }

    async fn serve_frames(self: &Rc<Self>, mut receiver: FrameReceiver<R>, session: Session) {
        let mut frames = 0;
        while !self.is_ending() {
            let frame = match receiver.receive().await {
                Ok(frame) => frame,
                Err(ReceiveError::Frame(error)) => match error.recoverable() {
                    Some(correlation) => {
                        let failure = Failure::invalid(error.to_string());
                        self.open_responder(&session, correlation, false).fail(&failure);
                        continue;
                    }
                    None => {
                        let peer = receiver.peer_address();
                        tracing::warn!(?peer, %error, "connection closed");
                        return;
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "connection ended");
                    return;
                }
            };
            self.on_frame(&session, frame);
            if session.node.is_none() {
                while session.answers.is_full() && session.sender.is_open() {
                    session.answers.answered.notified().await;
                }
                session.sender.room().await;
            }
            frames += 1;
            if frames == FRAMES_PER_TURN {
                frames = 0;
                self.runtime.pause().await;
            }
        }
    }

    fn open_responder(&self, session: &Session, correlation: u64, changes_data: bool) -> Responder {
        session.answers.open.set(session.answers.open.get() + 1);
        Responder::new(session.sink.clone(), correlation, changes_data)
    }

    fn on_frame(self: &Rc<Self>, session: &Session, frame: Frame) {
        if frame.kind == FrameKind::RaftBurst {
            return self.on_burst(session, frame);
        }
        if let (FrameKind::Gossip, Some(node)) = (frame.kind, &session.node) {
            return self.on_gossip(&node.identity, frame);
        }
        let shard_count = self.serving.borrow().as_ref().map(|serving| serving.cluster.shard_count());
        let decoded = ShardRequest::decode(
            frame.kind,
            &frame.body,
            frame.flags.is_forwarded(),
            shard_count.unwrap_or(1),
            self.input.config.request_timeout,
        );
        let open = |changes_data| {
            let door = if session.node.is_some() { Door::Peer } else { Door::Native };
            let responder = self.open_responder(session, frame.correlation, changes_data);
            responder.measured(self.metrics.begin(door, frame.kind))
        };
        match decoded {
            // How many shards there are is not known yet, so nothing can be said of the request itself.
            Some(_) if shard_count.is_none() => {
                open(false).fail(&self.not_serving());
            }
            Some(Ok(request)) if session.node.is_none() && request.is_between_nodes() => {
                let failure = Failure::new(ErrorCode::PermissionDenied, "only nodes ask for this");
                self.open_responder(session, frame.correlation, false).fail(&failure);
            }
            // A node asks for data only on behalf of a client whom it has let in itself.
            Some(Ok(request)) if session.node.is_some() && !self.may_forward(session, &request) => {
                let failure = Failure::new(
                    ErrorCode::PermissionDenied,
                    "a connection between nodes carries only what members of the cluster forward",
                );
                open(false).fail(&failure);
            }
            // Another node's connection is always read from: the groups' own messages come on it, too.
            Some(Ok(_)) if session.node.is_some() && session.answers.is_full() => {
                let failure = Failure::overloaded("too many requests of this node wait for their answers");
                open(false).fail(&failure);
            }
            Some(Ok(request)) => {
                let responder = open(request.changes_data());
                self.route(request, responder);
            }
            Some(Err(failure)) => {
                open(false).fail(&failure);
            }
            None => self.on_other_request(session, frame),
        }
    }

    /// Requests that are not about one shard's data.
    fn on_other_request(self: &Rc<Self>, session: &Session, frame: Frame) {
        let responder = self.open_responder(session, frame.correlation, false);
        let is_node = session.node.is_some();
        match frame.kind {
            FrameKind::ClusterStatus => self.answer_cluster_status(responder),
            FrameKind::NodeStatus => match frame.decode::<v1::NodeStatus>() {
                Ok(request) => {
                    self.answer_node_request(NodeRequest::NodeStatus { shards: request.shards }, responder);
                }
                Err(error) => responder.fail(&Failure::invalid(error.to_string())),
            },
            FrameKind::Identify if is_node => self.answer_node_request(NodeRequest::Identify, responder),
            FrameKind::Form if is_node => match (frame.decode::<v1::Form>(), &session.node) {
                (Ok(form), Some(node)) => {
                    let from = Box::new(node.identity.clone());
                    self.answer_node_request(NodeRequest::Form { from, form: Box::new(form) }, responder);
                }
                (Err(error), _) => responder.fail(&Failure::invalid(error.to_string())),
                (Ok(_), None) => responder.fail(&Failure::invalid("only nodes form clusters")),
            },
            FrameKind::Join => match (frame.decode::<v1::Join>(), &session.node) {
                (Ok(join), Some(node)) => {
                    let from = Box::new(node.identity.clone());
                    self.answer_node_request(NodeRequest::Join { from, join: Box::new(join) }, responder);
                }
                (Err(error), _) => responder.fail(&Failure::invalid(error.to_string())),
                (Ok(_), None) => responder.fail(&Failure::invalid("only nodes become members")),
            },
            FrameKind::SnapshotBegin if self.member_number(session).is_some() => {
                self.decode_and(frame, responder, Self::on_snapshot_begin);
            }
            FrameKind::SnapshotChunk if self.member_number(session).is_some() => {
                self.decode_and(frame, responder, Self::on_snapshot_chunk);
            }
            FrameKind::FetchValue if self.member_number(session).is_some() => {
                self.decode_and(frame, responder, Self::on_fetch_value);
            }
            FrameKind::CompareHashes if self.member_number(session).is_some() => {
                self.decode_and(frame, responder, Self::on_compare_hashes);
            }
            FrameKind::AskMembership if self.member_number(session).is_some() => {
                self.decode_and(frame, responder, Self::on_ask_membership);
            }
            FrameKind::Scrub => self.answer_node_request(NodeRequest::Scrub, responder),
            other => {
                responder.fail(&Failure::invalid(format!("{other} is no request that this node answers you")))
            }
        }
    }

    fn decode_and<M: FrameMessage>(
        self: &Rc<Self>,
        frame: Frame,
        responder: Responder,
        then: impl FnOnce(&Rc<Self>, M, Responder),
    ) {
        match frame.decode::<M>() {
            Ok(message) => then(self, message, responder),
            Err(error) => responder.fail(&Failure::invalid(error.to_string())),
        }
    }

    fn may_forward(&self, session: &Session, request: &ShardRequest) -> bool {
        request.forwarded && self.member_number(session).is_some()
    }

    /// The number of the node at the other end, if it is a member with the disk that the cluster knows.
    fn member_number(&self, session: &Session) -> Option<u32> {
        let node = session.node.as_ref()?;
        if let Some(number) = node.number.get().filter(|number| self.is_member(*number)) {
            return Some(number);
        }
        let number = self.number_of(&node.identity)?;
        node.number.set(Some(number));
        Some(number)
    }

    /// Whether the number is that of a member still: it is never given to another.
    fn is_member(&self, number: u32) -> bool {
        let guard = self.serving.borrow();
        guard.as_ref().is_some_and(|serving| serving.cluster.member(number).is_some())
    }

    /// Before anything else that the node says: what it remembers of this one's logs.
    fn hear_memory(self: &Rc<Self>, node: &v1::NodeIdentity, remembered: &v1::RememberedLogs) {
        let is_about_us = self
            .serving
            .borrow()
            .as_ref()
            .is_some_and(|serving| serving.cluster.node_number == remembered.node_number);
        if let Some(from) = self.number_of(node).filter(|_| is_about_us) {
            self.on_remembered(from, remembered);
        }
    }

    /// The number of a node, if it is a member with the disk that the cluster knows.
    fn number_of(&self, node: &v1::NodeIdentity) -> Option<u32> {
        let uuid = NodeUuid::from_bytes(&node.node_uuid)?;
        let guard = self.serving.borrow();
        guard.as_ref()?.cluster.number_of(uuid)
    }

    fn on_burst(self: &Rc<Self>, session: &Session, frame: Frame) {
        let Some(node_number) = self.member_number(session) else { return };
        if session.node.as_ref().is_some_and(|node| node.is_early) {
            // Now that this core serves, the other side should learn where the shards are.
            return session.sender.close("say hello again: this node serves now");
        }
        let burst = match frame.decode::<v1::RaftBurst>() {
            Ok(burst) => burst,
            Err(error) => return tracing::warn!(node_number, %error, "a burst does not decode"),
        };
        let core = u16::try_from(burst.from_core).unwrap_or(u16::MAX);
        let peer = PeerCore { node_number, core };
        if self.peers.on_heard(peer, &burst) {
            self.on_peer_restart(peer);
        }
        self.step_messages(node_number, burst.messages);
    }
}
