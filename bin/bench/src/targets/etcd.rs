//! etcd, by its gRPC API (v3). The few messages that are needed are written down here, with the numbers of etcd's
//! `rpc.proto`. Reads are linearizable, which is its default.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{CONNECT_TIMEOUT, Reach, within};
use crate::Failure;
use crate::target::{Answer, Found, Problem, Request, Target};

/// etcd refuses more operations in one transaction by default.
const TRANSACTION_OPERATIONS_MAX: usize = 128;

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
    #[prost(int64, tag = "3")]
    limit: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(oneof = "RequestOpKind", tags = "1, 2")]
    request: Option<RequestOpKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum RequestOpKind {
    #[prost(message, tag = "1")]
    Range(RangeRequest),
    #[prost(message, tag = "2")]
    Put(PutRequest),
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseOp {
    #[prost(message, optional, tag = "1")]
    range: Option<RangeResponse>,
}

/// A comparison of a key's last revision; `result` 0 means equal, `target` 2 the revision of the last change.
#[derive(Clone, PartialEq, prost::Message)]
struct Compare {
    #[prost(int32, tag = "1")]
    result: i32,
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    key: Bytes,
    #[prost(int64, tag = "6")]
    mod_revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnResponse {
    #[prost(bool, tag = "2")]
    succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    responses: Vec<ResponseOp>,
}

/// One thread's connections to an etcd cluster, spread over its nodes.
pub struct Etcd {
    channels: Vec<Channel>,
}

impl Etcd {
    /// Connects. Plain text only.
    ///
    /// # Errors
    /// A node cannot be reached.
    pub async fn connect(reach: &Reach, connections: u32, thread: usize) -> Result<Self, Failure> {
        let mut channels = Vec::new();
        for number in 0..connections as usize {
            let address = reach.node(thread + number);
            let failed = |error: tonic::transport::Error| {
                Failure::new(format!("cannot connect to etcd at {address}: {error}"))
            };
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(failed)?;
            let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
            channels.push(endpoint.connect().await.map_err(failed)?);
        }
        Ok(Self { channels })
    }

    async fn call<Q, A>(&self, worker: u32, path: &'static str, message: Q) -> Result<A, Problem>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let channel = self.channels[worker as usize % self.channels.len()].clone();
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|_| Problem::refused("NOT_CONNECTED"))?;
        let path = PathAndQuery::from_static(path);
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let answer = client.unary(tonic::Request::new(message), path, codec).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            let name = format!("{:?}", status.code());
            Problem { name, is_unknown: true }
        })
    }

    async fn range(&self, worker: u32, range: RangeRequest) -> Result<Vec<KeyValue>, Problem> {
        let answer: RangeResponse = self.call(worker, "/etcdserverpb.KV/Range", range).await?;
        Ok(answer.kvs)
    }

    async fn transaction(&self, worker: u32, transaction: TxnRequest) -> Result<TxnResponse, Problem> {
        self.call(worker, "/etcdserverpb.KV/Txn", transaction).await
    }

    async fn perform_unbounded(&self, worker: u32, request: Request) -> Result<Answer, Problem> {
        match request {
            Request::Put { key, value } => {
                let _: PutResponse =
                    self.call(worker, "/etcdserverpb.KV/Put", PutRequest { key, value }).await?;
                Ok(Answer::Done)
            }
            Request::Get { key } => {
                let found = self.range(worker, RangeRequest { key, ..Default::default() }).await?;
                let found = found.into_iter().next();
                Ok(Answer::Value(found.map(|pair| Found {
                    value: pair.value,
                    version: u64::try_from(pair.mod_revision).unwrap_or(0),
                })))
            }
            Request::Scan { start, items } => {
                // One zero byte as the end means: to the last key.
                let range_end = Bytes::from_static(&[0]);
                let range = RangeRequest { key: start, range_end, limit: i64::from(items) };
                let found = self.range(worker, range).await?;
                Ok(Answer::Items(found.into_iter().map(|pair| (pair.key, pair.value)).collect()))
            }
            Request::PutMany(pairs) => {
                for part in pairs.chunks(TRANSACTION_OPERATIONS_MAX) {
                    let put =
                        |(key, value): &(Bytes, Bytes)| PutRequest { key: key.clone(), value: value.clone() };
                    let success = part.iter().map(|pair| operation(RequestOpKind::Put(put(pair)))).collect();
                    self.transaction(worker, TxnRequest { compare: Vec::new(), success }).await?;
                }
                Ok(Answer::Done)
            }
            Request::GetMany(keys) => self.get_many(worker, &keys).await,
            Request::Swap { key, found, value } => {
                let mod_revision = found.map_or(0, |found| i64::try_from(found.version).unwrap_or(0));
                let compare = vec![Compare { result: 0, target: 2, key: key.clone(), mod_revision }];
                let success = vec![operation(RequestOpKind::Put(PutRequest { key, value }))];
                let answer = self.transaction(worker, TxnRequest { compare, success }).await?;
                Ok(if answer.succeeded { Answer::Done } else { Answer::NotSwapped })
            }
        }
    }

    async fn get_many(&self, worker: u32, keys: &[Bytes]) -> Result<Answer, Problem> {
        let mut values = Vec::new();
        for part in keys.chunks(TRANSACTION_OPERATIONS_MAX) {
            let range = |key: &Bytes| RangeRequest { key: key.clone(), ..Default::default() };
            let success = part.iter().map(|key| operation(RequestOpKind::Range(range(key)))).collect();
            let answer = self.transaction(worker, TxnRequest { compare: Vec::new(), success }).await?;
            values.extend(answer.responses.into_iter().map(|response| {
                response.range.and_then(|range| range.kvs.into_iter().next()).map(|pair| pair.value)
            }));
        }
        Ok(Answer::Values(values))
    }
}

fn operation(request: RequestOpKind) -> RequestOp {
    RequestOp { request: Some(request) }
}

impl Target for Etcd {
    async fn perform(&self, worker: u32, request: Request) -> Result<Answer, Problem> {
        within(self.perform_unbounded(worker, request)).await
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }
}
