//! Where a request on a shard goes: to the replica on this core, over the mesh to the core that has it, or on to
//! the node that leads the shard. A request is passed on between nodes once at most.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_net::RequestError;
use krita_proto::error::ErrorCode;
use krita_proto::frame::{Frame, FrameKind};
use krita_proto::v1;
use krita_runtime::{CoreId, Mesh, MeshFull, Runtime, TaskClass};
use prost::Message as _;

use crate::core::Core;
use crate::failure::Failure;
use crate::mesh::{CoreMessage, RequestFromCore};
use crate::reads::{PendingRead, Read};
use crate::request::{ShardOperation, ShardRequest};
use crate::responder::{ReplySink, Responder};
use crate::unconfirmed::Unconfirmed;

/// The answer that a request of another core is owed: it goes back over the mesh.
pub(crate) struct MeshSink<R: Runtime> {
    pub(crate) core: Rc<Core<R>>,
    pub(crate) to: CoreId,
}

impl<R: Runtime> ReplySink for MeshSink<R> {
    fn reply(&self, ticket: u64, kind: FrameKind, body: Bytes) {
        self.core.send_to_core(self.to, CoreMessage::Reply { ticket, kind, body });
    }
}

impl<R: Runtime> Core<R> {
    /// Sees to it that the request is answered.
    pub(crate) fn route(self: &Rc<Self>, request: ShardRequest, responder: Responder) {
        match self.falls_back(&request) {
            true => self.read_or_fall_back(request, responder),
            false => self.dispatch(request, responder),
        }
    }

    /// Passes the request to whoever has its shard.
    pub(crate) fn dispatch(self: &Rc<Self>, request: ShardRequest, responder: Responder) {
        let owner = match self.serving.borrow().as_ref() {
            Some(serving) => serving.cluster.core_of(request.shard),
            None => return responder.fail(&self.not_serving()),
        };
        match owner {
            Some(core) if core == self.runtime.core() => self.submit(request, responder),
            Some(core) => self.pass_to_core(core, request, responder),
            None => self.pass_to_holder(request, responder),
        }
    }

    /// A request that another core passed on.
    pub(crate) fn on_request_from_core(self: &Rc<Self>, message: RequestFromCore) {
        let RequestFromCore { from, ticket, request } = message;
        let sink = Rc::new(MeshSink { core: self.clone(), to: from });
        let responder = Responder::new(sink, ticket, request.changes_data());
        self.submit(request, responder);
    }

    /// Hands the request to this core's replica, or on to the node that leads the shard.
    fn submit(self: &Rc<Self>, request: ShardRequest, responder: Responder) {
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else {
            return responder.fail(&self.not_serving());
        };
        let here = serving.replicas.get_mut(&request.shard).filter(|replica| !replica.belonging.is_leaving);
        let Some(replica) = here else {
            drop(guard);
            return self.pass_to_holder(request, responder);
        };
        let request = match self.answer_unconfirmed(replica, request) {
            Unconfirmed::No(request) => request,
            Unconfirmed::Held(scan) => return replica.serve_held(scan, responder),
            Unconfirmed::Released => return responder.message(&v1::ScanReply::default()),
            Unconfirmed::Any(operation) => return replica.serve_unconfirmed(operation, responder),
        };
        if !replica.is_leader() {
            let leader = replica.leader_node();
            let failure = replica.not_leader();
            drop(guard);
            return match leader.filter(|_| !request.forwarded) {
                Some(node) => self.forward(node, request, responder),
                None => responder.fail(&failure),
            };
        }
        let now = self.runtime.now();
        let deadline = now + request.timeout;
        match request.operation {
            ShardOperation::Get { key } => {
                replica.read(now, PendingRead { read: Read::Get { key, responder }, deadline });
            }
            ShardOperation::Scan(scan) => {
                replica.read(now, PendingRead { read: Read::Scan { scan, responder }, deadline });
            }
            ShardOperation::Verify => {
                let verify = self.clone().verify(replica.shard, deadline, responder);
                self.runtime.spawn(TaskClass::Foreground, "verify", verify);
                return;
            }
            ShardOperation::Order(order) => {
                let carry_out = self.clone().carry_out(replica.shard, order, deadline, responder);
                self.runtime.spawn(TaskClass::Foreground, "order", carry_out);
                return;
            }
            ShardOperation::MetaRead { without_shards } => {
                let read = self.clone().read_meta(without_shards, deadline, responder);
                self.runtime.spawn(TaskClass::Foreground, "meta-read", read);
                return;
            }
            ShardOperation::MetaChange(change) => {
                let changed = self.clone().change_meta(*change, responder);
                self.runtime.spawn(TaskClass::Foreground, "meta-change", changed);
                return;
            }
            ShardOperation::Write(write) => self.submit_write(replica, write, deadline, responder),
        }
        self.touch(replica);
    }

    fn pass_to_core(self: &Rc<Self>, to: CoreId, request: ShardRequest, responder: Responder) {
        let ticket = match self.tickets.borrow_mut().issue(responder) {
            Ok(ticket) => ticket,
            Err(responder) => {
                return responder.fail(&Failure::overloaded("too many requests wait for other cores"));
            }
        };
        let message =
            CoreMessage::Request(Box::new(RequestFromCore { from: self.runtime.core(), ticket, request }));
        if self.mesh.send(to, message).is_err()
            && let Some(responder) = self.tickets.borrow_mut().redeem(ticket)
        {
            // The message came back: nothing has seen it.
            responder.fail(&Failure::overloaded(format!("{to} has too much to do")));
        }
    }

    /// This node has no replica of the shard: those that do know the leader.
    fn pass_to_holder(self: &Rc<Self>, request: ShardRequest, responder: Responder) {
        if request.forwarded {
            let failure = Failure::new(ErrorCode::NotLeader, "this node has no replica of the shard");
            return responder.fail(&failure);
        }
        let nodes = self.likely_holders(request.shard);
        let Some(mut nodes) = nodes else {
            return responder.fail(&Failure::invalid("there is no such shard"));
        };
        // Whoever can be reached, and is heard, first.
        nodes.sort_by_key(|node| (!self.peers.is_connected(*node), self.peers.is_silent(*node)));
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "forward", async move {
            core.forward_along(nodes, request, responder).await;
        });
    }

    /// The other nodes, those first that are most likely to lead the shard: the map's, those where it went from here,
    /// and then any, since the map may be behind. `None`: there is no such shard.
    fn likely_holders(&self, shard: u32) -> Option<Vec<u32>> {
        let guard = self.serving.borrow();
        let serving = guard.as_ref()?;
        serving.cluster.log_of(shard)?;
        let voting = serving.cluster.voting_nodes(shard);
        let departed = serving.departed.get(&shard).into_iter().flatten().copied();
        let others = serving.cluster.others().map(|member| member.number);
        let mut nodes: Vec<u32> = Vec::new();
        for node in voting.into_iter().chain(departed).chain(others) {
            if node != serving.cluster.node_number && !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        Some(nodes)
    }

    /// Asks a holder of the shard, and then whom it names as the leader. A holder that says it does not lead has
    /// done nothing, so asking on is safe.
    async fn forward_along(&self, nodes: Vec<u32>, request: ShardRequest, responder: Responder) {
        let mut wanted = nodes.first().copied();
        let mut others = nodes.into_iter().skip(1);
        let mut failure = Failure::unavailable("no node with a replica of the shard can be reached");
        let deadline = self.runtime.now() + limit(&request);
        for _ in 0..HOPS_MAX {
            let Some(node) = wanted.take().or_else(|| others.next()) else { break };
            let left = deadline.since(self.runtime.now());
            match self.peers.forward(node, request.shard, request.kind, &request.body, left).await {
                Ok(frame) => match refusal_hint(&frame) {
                    Some(hint) => {
                        failure = Failure::unavailable(format!("node {node} does not lead the shard"));
                        wanted = hint.filter(|hint| *hint != node);
                    }
                    None => return responder.body(frame.kind, frame.body),
                },
                Err(error) => {
                    failure = forward_failure(node, &error, request.changes_data());
                    if failure.code == ErrorCode::UnknownOutcome {
                        break;
                    }
                }
            }
        }
        responder.fail(&failure);
    }

    /// Passes the request to the node that leads the shard.
    fn forward(self: &Rc<Self>, node: u32, request: ShardRequest, responder: Responder) {
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "forward", async move {
            let sent =
                core.peers.forward(node, request.shard, request.kind, &request.body, limit(&request)).await;
            match sent {
                Ok(frame) => responder.body(frame.kind, frame.body),
                Err(error) => responder.fail(&forward_failure(node, &error, request.changes_data())),
            }
        });
    }

    /// Queues a message for a core; one that must not be lost waits in a task until there is room.
    pub(crate) fn send_to_core(self: &Rc<Self>, to: CoreId, message: CoreMessage<R::Handoff>) {
        if let Err(MeshFull(message)) = self.mesh.send(to, message) {
            let core = self.clone();
            self.runtime.spawn(TaskClass::Foreground, "mesh-retry", async move {
                let mut message = message;
                while let Err(MeshFull(back)) = core.mesh.send(to, message) {
                    message = back;
                    core.runtime.sleep(Duration::from_millis(1)).await;
                    if core.is_ending() {
                        return;
                    }
                }
            });
        }
    }
}

/// Nodes that a request is passed to, one after the other, until one leads the shard.
const HOPS_MAX: usize = 8;

/// The other node answers within the timeout; leave its answer a moment to arrive.
fn limit(request: &ShardRequest) -> Duration {
    request.timeout + Duration::from_millis(250)
}

/// If the frame says that its sender does not lead the shard: who does, if it knows.
fn refusal_hint(frame: &Frame) -> Option<Option<u32>> {
    if frame.kind != FrameKind::Error {
        return None;
    }
    let error = v1::Error::decode(frame.body.clone()).ok()?;
    match ErrorCode::from_number(error.code) {
        ErrorCode::NotLeader => Some(error.hint.map(|hint| hint.node_number)),
        _ => None,
    }
}

fn forward_failure(node: u32, error: &RequestError, changes_data: bool) -> Failure {
    let may_be_done = match error {
        RequestError::NotSent(_) => false,
        RequestError::Lost(_) | RequestError::Timeout | RequestError::Answer(_) => true,
        RequestError::Refused(_) => false,
    };
    match may_be_done && changes_data {
        true => Failure::unknown_outcome(format!("the answer of node {node} did not arrive: {error}")),
        false => Failure::unavailable(format!("node {node} cannot be reached: {error}")),
    }
}
