//! The async client on tokio.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::error::ErrorCode;

use crate::cluster::{Cluster, in_parallel, unexpected};
use crate::core::batch::{Group, Plan, detached, outcome, plan_atomic, plan_pieces};
use crate::core::call::{Call, CallKind};
use crate::core::message::{Request, Response, check_key, check_value, condition_to_wire};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::scan::Scan;
use crate::types::{
    Condition, Deleted, Entry, MemberHealth, Operation, OperationOutcome, Read, ReadOptions, ScanOptions,
    WriteOptions, Written,
};
use crate::v1;

/// Batches of one call that are on their way at once.
const BATCHES_AT_ONCE: usize = 128;

/// How long a member may take to say how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one node may take for what concerns the cluster's own state.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(6);

/// A connection to a cluster. Cheap to clone; usable from any task and thread of a tokio runtime.
///
/// Every call ends within its timeout; where a call has many parts, as [`Client::put_many`] and scans do, each part
/// has that time. Reads are linearizable unless asked otherwise, see [`crate::Consistency`]. A write that returns
/// `Ok` is durable on a majority.
#[derive(Clone)]
pub struct Client {
    cluster: Arc<Cluster>,
    /// Instead of the options', where a call says nothing.
    timeout: Option<Duration>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("cluster_name", &self.cluster.options.cluster_name)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the first of the nodes that answers and accepts the token. The cluster's map is fetched by the
    /// first call that needs it, so that a node which is still forming can be asked for its health.
    pub async fn connect(options: Options) -> Result<Self> {
        let cluster = Arc::new(Cluster::new(options)?);
        cluster.greet().await?;
        Ok(Self { cluster, timeout: None })
    }

    /// The same client, connections and all, whose calls may take this long where they say nothing else.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { cluster: self.cluster.clone(), timeout: Some(timeout) }
    }

    /// A call that begins now.
    fn call(&self, kind: CallKind, timeout: Option<Duration>) -> Call {
        self.cluster.call(kind, timeout.or(self.timeout))
    }

    /// Sets a key's value.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.put_with(key, value, WriteOptions::default()).await
    }

    /// Sets a key's value, with options.
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written> {
        let (key, value) = (key.into(), value.into());
        check_key(&key)?;
        check_value(&value)?;
        let condition = condition_to_wire(&options.condition)?;
        let request = v1::Put { key: key.clone(), value, condition, request_id: None, timeout_ms: 0 };
        let reply = self.write(&key, Request::Put(request), &options).await?;
        Ok(Written { version: reply.version })
    }

    /// Reads a key; `None` = absent.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Entry>> {
        self.get_with(key, ReadOptions::default()).await
    }

    /// Reads a key, with options.
    pub async fn get_with(&self, key: impl Into<Bytes>, options: ReadOptions) -> Result<Option<Entry>> {
        self.read_with(key, options).await.map(|read| read.entry)
    }

    /// Reads a key, with options, and says whether a quorum has confirmed the answer.
    pub async fn read_with(&self, key: impl Into<Bytes>, options: ReadOptions) -> Result<Read> {
        let key = key.into();
        check_key(&key)?;
        let mut call = self.call(CallKind::Read, options.timeout);
        let shard = self.cluster.with_topology(&mut call, |topology| topology.shard_of(&key)).await?;
        let request =
            Request::Get(v1::Get { key, timeout_ms: 0, consistency: options.consistency.to_wire() });
        match self.cluster.run(call, CallKind::Read, shard, request).await? {
            Response::Get(reply) => Ok(Read {
                entry: reply.found.then(|| Entry { value: detached(reply.value), version: reply.version }),
                stale_at: reply.stale.then_some(reply.applied_index),
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes a key. Deleting an absent key is no error.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Deleted> {
        self.delete_with(key, WriteOptions::default()).await
    }

    /// Removes a key, with options.
    pub async fn delete_with(&self, key: impl Into<Bytes>, options: WriteOptions) -> Result<Deleted> {
        let key = key.into();
        check_key(&key)?;
        let condition = condition_to_wire(&options.condition)?;
        let request = v1::Delete { key: key.clone(), condition, request_id: None, timeout_ms: 0 };
        let reply = self.write(&key, Request::Delete(request), &options).await?;
        Ok(Deleted { existed: reply.existed, version: reply.version })
    }

    async fn write(&self, key: &[u8], request: Request, options: &WriteOptions) -> Result<v1::WriteReply> {
        let condition_is_remembered = match options.condition {
            Condition::None | Condition::IfVersion(_) => true,
            Condition::IfValue(_) => false,
        };
        let kind = CallKind::Write { condition_is_remembered };
        let mut call = self.call(kind, options.timeout);
        let shard = self.cluster.with_topology(&mut call, |topology| topology.shard_of(key)).await?;
        match self.cluster.run(call, kind, shard, request).await? {
            Response::Write(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Many operations, grouped by shard and sent in parallel. Atomic per shard: of the operations on one shard all
    /// are applied, or none. One result per operation, in order; if a shard's part fails, each of its operations
    /// carries the reason. A key may come once.
    pub async fn batch(&self, operations: Vec<Operation>) -> Vec<Result<OperationOutcome>> {
        self.grouped(operations, plan_atomic, ReadOptions::default()).await
    }

    /// Many puts in pieces of good size, for loading: each piece stands or falls alone. One result per pair, in
    /// order. A key may come once.
    pub async fn put_many(&self, pairs: Vec<(Bytes, Bytes)>) -> Vec<Result<Written>> {
        let operations = pairs.into_iter().map(|(key, value)| Operation::put(key, value)).collect();
        let results = self.grouped(operations, plan_pieces, ReadOptions::default()).await;
        let written = results.into_iter().map(|result| match result? {
            OperationOutcome::Put(written) => Ok(written),
            OperationOutcome::Deleted { .. } | OperationOutcome::Got(_) => Err(mixed_up()),
        });
        written.collect()
    }

    /// Many gets in pieces of good size. One result per key, in order; each piece is read at one moment. A key may
    /// come once.
    pub async fn get_many(&self, keys: Vec<Bytes>) -> Vec<Result<Option<Entry>>> {
        self.get_many_with(keys, ReadOptions::default()).await
    }

    /// The same with options, which hold for each piece.
    pub async fn get_many_with(&self, keys: Vec<Bytes>, options: ReadOptions) -> Vec<Result<Option<Entry>>> {
        let operations = keys.into_iter().map(Operation::get).collect();
        let results = self.grouped(operations, plan_pieces, options).await;
        let entries = results.into_iter().map(|result| match result? {
            OperationOutcome::Got(entry) => Ok(entry),
            OperationOutcome::Put(_) | OperationOutcome::Deleted { .. } => Err(mixed_up()),
        });
        entries.collect()
    }

    async fn grouped(
        &self,
        operations: Vec<Operation>,
        plan: fn(&[Operation], u32) -> Plan,
        options: ReadOptions,
    ) -> Vec<Result<OperationOutcome>> {
        let mut call = self.call(CallKind::Read, None);
        let planned =
            self.cluster.with_topology(&mut call, |topology| plan(&operations, topology.shard_count())).await;
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => return operations.iter().map(|_| Err(error.clone())).collect(),
        };
        let options = ReadOptions { timeout: options.timeout.or(self.timeout), ..options };
        let send = move |cluster, group| send_group(cluster, group, options);
        let sent = in_parallel(plan.groups, BATCHES_AT_ONCE, send, &self.cluster).await;
        let mut results: BTreeMap<usize, Result<OperationOutcome>> =
            plan.refused.into_iter().map(|(position, error)| (position, Err(error))).collect();
        results.extend(sent.into_iter().flatten());
        assert_eq!(results.len(), operations.len(), "each operation has one result");
        results.into_values().collect()
    }

    /// Keys and values of a range or prefix, ordered by key over all shards, fetched as they are read. Each shard's
    /// part is that shard as of one log entry, see [`Scan::versions`]: a shard is held still for the scan, within
    /// bounds of time and memory; beyond them the scan goes on as of a later entry, and says so.
    ///
    /// Memory: at most two pages per shard, see [`ScanOptions::page_items`].
    pub fn scan(&self, options: ScanOptions) -> Scan {
        let timeout = options.timeout.or(self.timeout);
        Scan::new(self.cluster.clone(), ScanOptions { timeout, ..options })
    }

    /// Keys that begin with `prefix`, in order.
    pub fn list_keys(&self, prefix: impl Into<Bytes>) -> Scan {
        self.scan(ScanOptions::prefix(prefix).keys_only())
    }

    /// Members and shards as the first node that answers knows them.
    pub async fn cluster_status(&self) -> Result<v1::ClusterStatusReply> {
        self.cluster.fetch_status().await
    }

    /// What the node at `address` says of itself, its shards included.
    pub async fn node_status(&self, address: &str) -> Result<v1::NodeStatusReply> {
        self.cluster.node_status(address, HEALTH_TIMEOUT).await
    }

    /// Changes who is in a shard's group, moves its leadership, or asks who is there, as `docs/protocol.md` tells; its
    /// leader answers. An order that is sent again is carried out once. Needs the admin's token.
    pub async fn order_shard(&self, order: v1::ShardOrder) -> Result<v1::ShardView> {
        self.cluster.order_shard(order).await
    }

    /// Compares the replicas of a shard with each other, at one index that all of them have applied, if they all get
    /// there within the call's time.
    pub async fn verify(&self, shard: u32) -> Result<v1::VerifyReply> {
        self.cluster.verify(shard).await
    }

    /// The same for all these shards, in their order, several at once.
    pub async fn verify_all(&self, shards: Vec<u32>) -> Vec<(u32, Result<v1::VerifyReply>)> {
        let verify = |cluster: Arc<Cluster>, shard: u32| async move { (shard, cluster.verify(shard).await) };
        let mut verified = in_parallel(shards, BATCHES_AT_ONCE, verify, &self.cluster).await;
        verified.sort_by_key(|(shard, _)| *shard);
        verified
    }

    /// The cluster's own state, no older than this call: members, shard map, settings and jobs.
    pub async fn read_cluster(&self, without_shards: bool) -> Result<v1::MetaSnapshot> {
        self.cluster.read_cluster(without_shards, ADMIN_TIMEOUT).await
    }

    /// Changes the cluster's own state: a setting, a job to begin or to cancel, who should lead. An error has changed
    /// nothing, unless it says that the outcome is unknown; asking again does no harm then.
    pub async fn change_cluster(&self, change: v1::cluster_change::Change) -> Result<v1::ClusterChangeReply> {
        self.cluster.change_cluster(change, ADMIN_TIMEOUT).await
    }

    /// Has the node at `address` read and check everything that it stores, beginning now. Its status tells how it goes.
    pub async fn scrub(&self, address: &str) -> Result<()> {
        self.cluster.scrub(address, HEALTH_TIMEOUT).await
    }

    /// What every member says of itself, by node number. A member that does not answer is in the list, with the
    /// reason. While the cluster has not formed, the nodes named in the options and their peers stand for it.
    ///
    /// Fails only where no node can be asked at all because the token or the configuration is refused.
    pub async fn health(&self) -> Result<Vec<MemberHealth>> {
        let members = match self.cluster.fetch_status().await {
            Ok(status) => status
                .members
                .into_iter()
                .map(|member| (member.address, (member.node_number, member.node_id)))
                .collect(),
            Err(error @ (Error::Denied(_) | Error::Configuration(_))) => return Err(error),
            Err(_) => self.named_nodes_and_peers().await?,
        };
        let mut health =
            in_parallel(members.into_iter().collect(), BATCHES_AT_ONCE, ask_health, &self.cluster).await;
        health.sort_by(|a, b| (a.node_number, &a.address).cmp(&(b.node_number, &b.address)));
        Ok(health)
    }

    /// Address to number and name, of all nodes that can be found without a map.
    async fn named_nodes_and_peers(&self) -> Result<BTreeMap<String, (u32, String)>> {
        let mut found = BTreeMap::new();
        for address in self.cluster.options.nodes.clone() {
            match self.cluster.node_status(&address, HEALTH_TIMEOUT).await {
                Ok(status) => {
                    let node = status.node.unwrap_or_default();
                    // The node may be named by another address than it gives to others; one line is enough.
                    let is_named = node.advertised_address.is_empty();
                    let address = if is_named { address } else { node.advertised_address };
                    found.insert(address, (node.node_number, node.node_id));
                    for peer in status.peers {
                        found.entry(peer.address).or_insert((peer.node_number, peer.node_id));
                    }
                }
                Err(error @ (Error::Denied(_) | Error::Configuration(_))) => return Err(error),
                Err(_) => {
                    found.entry(address).or_insert((0, String::new()));
                }
            }
        }
        Ok(found)
    }
}

async fn ask_health(cluster: Arc<Cluster>, member: (String, (u32, String))) -> MemberHealth {
    let (address, (node_number, node_id)) = member;
    let status = cluster.node_status(&address, HEALTH_TIMEOUT).await;
    MemberHealth { node_number, node_id, address, status }
}

/// Sends one group; one result per operation, with its position in the caller's list.
async fn send_group(
    cluster: Arc<Cluster>,
    group: Group,
    options: ReadOptions,
) -> Vec<(usize, Result<OperationOutcome>)> {
    let Group { shard, positions, operations, has_writes, has_value_conditions, .. } = group;
    let kind = if has_writes {
        CallKind::Write { condition_is_remembered: !has_value_conditions }
    } else {
        CallKind::Read
    };
    let call = cluster.call(kind, options.timeout);
    let request = Request::Batch(v1::Batch {
        shard,
        operations: operations.clone(),
        request_id: None,
        timeout_ms: 0,
        consistency: options.consistency.to_wire(),
    });
    let error = match cluster.run(call, kind, shard, request).await {
        Ok(Response::Batch(reply)) if reply.results.len() == operations.len() => {
            let outcomes =
                operations.iter().zip(reply.results).map(|(operation, result)| outcome(operation, result));
            return positions.into_iter().zip(outcomes.map(Ok)).collect();
        }
        Ok(other) => unexpected(&other),
        Err(error) => in_callers_terms(error, &positions),
    };
    positions.into_iter().map(|position| (position, Err(error.clone()))).collect()
}

/// The server counts operations within the group, the caller over the whole batch.
fn in_callers_terms(error: Error, positions: &[usize]) -> Error {
    match error {
        Error::ConditionFailed { current_version, operation, detail } => {
            let operation = positions.get(operation).copied().unwrap_or(operation);
            Error::ConditionFailed { current_version, operation, detail }
        }
        other => other,
    }
}

fn mixed_up() -> Error {
    Error::new(ErrorCode::Internal, "the result is of another operation than was asked for")
}
