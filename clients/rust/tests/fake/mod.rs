//! A cluster of pretended nodes on loopback: real sockets and frames, a map for a store, and faults by script.
//!
//! It keeps the contract of request ids (an id applies once and repeats its first answer), so that what a test sees
//! is what a client may rely on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use krita_proto::frame::{self, BODY_BYTES_MAX, Flags, Frame, FrameKind, FrameReader};
use krita_proto::routing::shard_of;
use kritaclient::{Client, ErrorCode, Options, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub(crate) const TOKEN: &str = "sesame";

/// What goes wrong with one request on data.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It is applied, and the connection closes before the answer.
    ApplyAndClose,
    /// The connection closes before it is applied.
    Close,
    /// It is not applied and not answered.
    Silence,
    /// It is not applied and refused.
    Refuse(v1::Error),
}

pub(crate) fn refusal(code: ErrorCode) -> v1::Error {
    v1::Error { code: code as u32, message: "by script".to_owned(), ..Default::default() }
}

/// The shard does not take the session.
pub(crate) fn session_refusal() -> v1::Error {
    v1::Error { log_time_ms: 5_000_000, ..refusal(ErrorCode::UnknownOutcome) }
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) shard_count: u32,
    /// By node number - 1.
    pub(crate) addresses: Vec<String>,
    /// Every shard's leader, as all nodes say.
    pub(crate) leader: u32,
    pub(crate) faults: VecDeque<Fault>,
    /// What happens to every request on data that no fault is left for.
    pub(crate) always: Option<Fault>,
    /// `(node, kind)` of each request on data, as it came.
    pub(crate) requests: Vec<(u32, FrameKind)>,
    pub(crate) request_ids: Vec<v1::RequestId>,
    pub(crate) applied: u64,
    pub(crate) data: BTreeMap<Bytes, (Bytes, u64)>,
    answers: BTreeMap<(u64, u64), v1::WriteReply>,
}

pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    nodes: Vec<JoinHandle<()>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.nodes.iter().for_each(JoinHandle::abort);
    }
}

impl Fake {
    pub(crate) async fn start(nodes: u32, shard_count: u32) -> Self {
        let world = Arc::new(Mutex::new(World { shard_count, leader: 1, ..World::default() }));
        let mut tasks = Vec::new();
        for number in 1..=nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            world.lock().unwrap().addresses.push(listener.local_addr().unwrap().to_string());
            tasks.push(tokio::spawn(accept(number, listener, world.clone())));
        }
        Self { world, nodes: tasks }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The node is gone: nobody listens, all its connections close.
    pub(crate) async fn kill(&mut self, number: u32) {
        let task = &mut self.nodes[number as usize - 1];
        task.abort();
        let _aborted = task.await;
    }

    pub(crate) fn options(&self) -> Options {
        let mut options = Options::new("fake", self.world().addresses.clone()).insecure().token(TOKEN);
        options.timeout = Duration::from_secs(5);
        options.retry.attempt_timeout = Duration::from_millis(300);
        options.retry.pause_min = Duration::from_millis(1);
        options.retry.pause_max = Duration::from_millis(20);
        options
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.options()).await.unwrap()
    }
}

async fn accept(number: u32, listener: TcpListener, world: Arc<Mutex<World>>) {
    // Dropped with this task, which ends the connections.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(serve(number, stream, world.clone()));
    }
}

async fn serve(number: u32, mut stream: TcpStream, world: Arc<Mutex<World>>) {
    let mut reader = FrameReader::new(BODY_BYTES_MAX);
    let mut outgoing = BytesMut::new();
    loop {
        while let Some(frame) = reader.next_frame().unwrap() {
            if !world.lock().unwrap().answer(number, &frame, &mut outgoing) {
                return;
            }
        }
        if stream.write_all_buf(&mut outgoing).await.is_err() {
            return;
        }
        match stream.read(reader.space()).await {
            Ok(bytes @ 1..) => reader.advance(bytes),
            Ok(0) | Err(_) => return,
        }
    }
}

impl World {
    /// Whether the connection goes on.
    fn answer(&mut self, node: u32, frame: &Frame, out: &mut BytesMut) -> bool {
        let correlation = frame.correlation;
        match frame.kind {
            FrameKind::Hello => {
                let hello: v1::Hello = frame.decode().unwrap();
                if hello.token != TOKEN {
                    send(out, correlation, &refusal(ErrorCode::Unauthenticated));
                    return true;
                }
                let reply =
                    v1::HelloReply { protocol_version: 1, log_time_ms: 1_000_000, ..Default::default() };
                send(out, correlation, &reply);
                return true;
            }
            FrameKind::ClusterStatus => send(out, correlation, &self.status()),
            FrameKind::NodeStatus => {
                let node = v1::NodeIdentity { node_number: node, ..Default::default() };
                let state = "serving".to_owned();
                send(
                    out,
                    correlation,
                    &v1::NodeStatusReply { node: Some(node), state, ..Default::default() },
                );
            }
            _ => return self.data_request(node, frame, out),
        }
        true
    }

    fn data_request(&mut self, node: u32, frame: &Frame, out: &mut BytesMut) -> bool {
        self.requests.push((node, frame.kind));
        let correlation = frame.correlation;
        match self.faults.pop_front().or_else(|| self.always.clone()) {
            Some(Fault::ApplyAndClose) => {
                self.apply(node, frame, &mut BytesMut::new());
                false
            }
            Some(Fault::Close) => false,
            Some(Fault::Silence) => true,
            Some(Fault::Refuse(error)) => {
                send(out, correlation, &error);
                true
            }
            None if node != self.leader => {
                let hint = Some(self.served_by(1));
                send(out, correlation, &v1::Error { hint, ..refusal(ErrorCode::NotLeader) });
                true
            }
            None => {
                self.apply(node, frame, out);
                true
            }
        }
    }

    fn apply(&mut self, _node: u32, frame: &Frame, out: &mut BytesMut) {
        let correlation = frame.correlation;
        match frame.kind {
            FrameKind::Put => {
                let put: v1::Put = frame.decode().unwrap();
                let reply = self.write_once(put.request_id, |world, version| {
                    world.data.insert(put.key.clone(), (put.value.clone(), version)).is_some()
                });
                send(out, correlation, &reply);
            }
            FrameKind::Delete => {
                let delete: v1::Delete = frame.decode().unwrap();
                let reply =
                    self.write_once(delete.request_id, |world, _| world.data.remove(&delete.key).is_some());
                send(out, correlation, &reply);
            }
            FrameKind::Get => {
                let get: v1::Get = frame.decode().unwrap();
                let found = self.data.get(&get.key).cloned();
                let served_by = Some(self.served_by(1));
                let (value, version) = found.clone().unwrap_or_default();
                let reply =
                    v1::GetReply { found: found.is_some(), value, version, served_by, ..Default::default() };
                send(out, correlation, &reply);
            }
            FrameKind::Batch => self.batch(&frame.decode().unwrap(), correlation, out),
            FrameKind::Scan => self.scan(&frame.decode().unwrap(), correlation, out),
            other => panic!("a client does not send {other}"),
        }
    }

    fn write_once(
        &mut self,
        id: Option<v1::RequestId>,
        write: impl FnOnce(&mut Self, u64) -> bool,
    ) -> v1::WriteReply {
        let id = id.expect("every write carries an id");
        assert!(id.session != 0 && id.sequence >= id.lowest_unacknowledged && id.lowest_unacknowledged > 0);
        assert!(id.sequence - id.lowest_unacknowledged < kritaclient::core::session::WINDOW);
        self.request_ids.push(id);
        if let Some(first) = self.answers.get(&(id.session, id.sequence)) {
            return *first;
        }
        self.applied += 1;
        let version = self.applied;
        let existed = write(self, version);
        let reply = v1::WriteReply { version, existed, served_by: Some(self.served_by(1)) };
        self.answers.insert((id.session, id.sequence), reply);
        reply
    }

    fn batch(&mut self, batch: &v1::Batch, correlation: u64, out: &mut BytesMut) {
        use v1::operation::Operation as Wire;
        let keys = batch.operations.iter().map(|operation| match operation.operation.as_ref().unwrap() {
            Wire::Put(put) => (&put.key, put.condition.is_some()),
            Wire::Delete(delete) => (&delete.key, delete.condition.is_some()),
            Wire::Get(get) => (&get.key, false),
        });
        let keys: Vec<_> = keys.collect();
        let distinct: BTreeSet<_> = keys.iter().map(|(key, _)| *key).collect();
        assert_eq!(distinct.len(), keys.len());
        assert!(keys.iter().all(|(key, _)| shard_of(key, self.shard_count) == batch.shard));
        // Every condition in these tests is one that does not hold.
        if let Some(operation) = keys.iter().position(|(_, has_condition)| *has_condition) {
            let operation = operation as u32;
            let error = v1::Error { operation, current_version: 9, ..refusal(ErrorCode::ConditionFailed) };
            return send(out, correlation, &error);
        }
        let mut results = Vec::new();
        for operation in &batch.operations {
            results.push(match operation.operation.clone().unwrap() {
                Wire::Put(put) => {
                    self.applied += 1;
                    self.data.insert(put.key, (put.value, self.applied));
                    v1::OperationResult { version: self.applied, existed: false, value: Bytes::new() }
                }
                Wire::Delete(delete) => {
                    let existed = self.data.remove(&delete.key).is_some();
                    v1::OperationResult { version: 0, existed, value: Bytes::new() }
                }
                Wire::Get(get) => match self.data.get(&get.key).cloned() {
                    Some((value, version)) => v1::OperationResult { version, existed: true, value },
                    None => v1::OperationResult::default(),
                },
            });
        }
        send(out, correlation, &v1::BatchReply { results, ..Default::default() });
    }

    fn scan(&mut self, scan: &v1::Scan, correlation: u64, out: &mut BytesMut) {
        let mut items: Vec<_> = self
            .data
            .range(scan.start.clone()..)
            .filter(|(key, _)| scan.end.is_empty() || **key < scan.end)
            .filter(|(key, _)| shard_of(key, self.shard_count) == scan.shard)
            .take(scan.items_max as usize + 1)
            .map(|(key, (value, version))| {
                let value = if scan.keys_only { Bytes::new() } else { value.clone() };
                v1::ScanItem { key: key.clone(), value, version: *version }
            })
            .collect();
        let more = items.len() > scan.items_max as usize;
        items.truncate(scan.items_max as usize);
        send(out, correlation, &v1::ScanReply { items, more, ..Default::default() });
    }

    fn status(&self) -> v1::ClusterStatusReply {
        let members = self.addresses.iter().zip(1..).map(|(address, node_number)| v1::Member {
            node_number,
            node_id: format!("node{node_number}"),
            address: address.clone(),
            ..Default::default()
        });
        let nodes: Vec<u32> = (1..=self.addresses.len() as u32).collect();
        let shards = (1..=self.shard_count).map(|shard| v1::ShardPlace {
            shard,
            nodes: nodes.clone(),
            leader_node: self.leader,
            leader_core_plus_one: 1,
        });
        v1::ClusterStatusReply {
            epoch: 1,
            members: members.collect(),
            shards: shards.collect(),
            ..Default::default()
        }
    }

    fn served_by(&self, shard: u32) -> v1::ServedBy {
        v1::ServedBy { shard, node_number: self.leader, core: 0, epoch: 1 }
    }
}

fn send<M: frame::FrameMessage>(out: &mut BytesMut, correlation: u64, message: &M) {
    frame::encode(out, Flags::NONE, correlation, message).unwrap();
}
