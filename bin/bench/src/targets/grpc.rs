//! Krita by gRPC, as any program that was made from its published service would speak to it.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use krita_proto::routing::CORE_DOMAIN;
use krita_proto::v1;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::native::unchanged;
use super::{CONNECT_TIMEOUT, Reach, within};
use crate::Failure;
use crate::target::{Answer, Found, Problem, Request, Target};

/// One thread's connections, spread over the nodes, which forward what they do not lead.
pub struct KritaGrpc {
    channels: Vec<Channel>,
    token: Option<MetadataValue<Ascii>>,
}

impl KritaGrpc {
    /// Connects.
    ///
    /// # Errors
    /// A node cannot be reached, or the token is no text for a header.
    pub async fn connect(reach: &Reach, connections: u32, thread: usize) -> Result<Self, Failure> {
        let mut channels = Vec::new();
        for number in 0..connections as usize {
            let address = reach.node(thread + number);
            let failed = |error: tonic::transport::Error| {
                Failure::new(format!("cannot connect to {address} by gRPC: {error}"))
            };
            let scheme = if reach.ca_pem.is_some() { "https" } else { "http" };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(failed)?;
            let mut endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
            if let Some(ca_pem) = &reach.ca_pem {
                let tls = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(ca_pem))
                    .domain_name(format!("any.{CORE_DOMAIN}"));
                endpoint = endpoint.tls_config(tls).map_err(failed)?;
            }
            channels.push(endpoint.connect().await.map_err(failed)?);
        }
        let token = match reach.token.as_str() {
            "" => None,
            token => {
                let header = format!("Bearer {token}").parse();
                Some(header.map_err(|_| Failure::new("the token is no text for a header"))?)
            }
        };
        Ok(Self { channels, token })
    }

    async fn client(&self, worker: u32) -> Result<Grpc<Channel>, Problem> {
        let channel = self.channels[worker as usize % self.channels.len()].clone();
        let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|_| Problem::refused("NOT_CONNECTED"))?;
        Ok(client)
    }

    fn request<Q>(&self, message: Q) -> tonic::Request<Q> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    async fn call<Q, A>(&self, worker: u32, path: &'static str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let client = self.client(worker).await;
        let mut client = client.map_err(|problem| Status::unavailable(problem.name))?;
        let codec: ProstCodec<Q, A> = ProstCodec::default();
        let answer = client.unary(self.request(message), PathAndQuery::from_static(path), codec).await;
        answer.map(tonic::Response::into_inner)
    }

    async fn scan(&self, worker: u32, start: Bytes, items: u32) -> Result<Answer, Problem> {
        let scan = v1::KeyScan { start, limit: u64::from(items), page_items: items, ..Default::default() };
        let codec: ProstCodec<v1::KeyScan, v1::KeyScanReply> = ProstCodec::default();
        let path = PathAndQuery::from_static("/krita.v1.Krita/Scan");
        let mut client = self.client(worker).await?;
        let stream = client.server_streaming(self.request(scan), path, codec).await;
        let mut stream = stream.map_err(|status| problem(&status))?.into_inner();
        let mut found = Vec::new();
        while let Some(page) = stream.message().await.map_err(|status| problem(&status))? {
            found.extend(page.items.into_iter().map(|item| (item.key, item.value)));
        }
        Ok(Answer::Items(found))
    }

    async fn batch(
        &self,
        worker: u32,
        operations: Vec<v1::operation::Operation>,
    ) -> Result<Vec<v1::OperationResult>, Problem> {
        let operation = |operation| v1::Operation { operation: Some(operation) };
        let operations = operations.into_iter().map(operation).collect();
        let batch = v1::KeyBatch { operations, ..Default::default() };
        let reply: v1::KeyBatchReply =
            self.call(worker, "/krita.v1.Krita/Batch", batch).await.map_err(|status| problem(&status))?;
        let result = |outcome: v1::KeyOutcome| match outcome.outcome {
            Some(v1::key_outcome::Outcome::Result(result)) => Ok(result),
            Some(v1::key_outcome::Outcome::Error(error)) => {
                Err(super::native::problem(&kritaclient::core::message::ServerError::new(error)))
            }
            None => Err(Problem::odd()),
        };
        reply.outcomes.into_iter().map(result).collect()
    }

    async fn perform_unbounded(&self, worker: u32, request: Request) -> Result<Answer, Problem> {
        use v1::operation::Operation as Kind;
        match request {
            Request::Put { key, value } => {
                let put = v1::Put { key, value, ..Default::default() };
                let reply: Result<v1::WriteReply, Status> =
                    self.call(worker, "/krita.v1.Krita/Put", put).await;
                reply.map(|_| Answer::Done).map_err(|status| problem(&status))
            }
            Request::Get { key } => {
                let get = v1::Get { key, ..Default::default() };
                let reply: Result<v1::GetReply, Status> = self.call(worker, "/krita.v1.Krita/Get", get).await;
                let reply = reply.map_err(|status| problem(&status))?;
                let found = Found { value: reply.value, version: reply.version };
                Ok(Answer::Value(reply.found.then_some(found)))
            }
            Request::Scan { start, items } => self.scan(worker, start, items).await,
            Request::PutMany(pairs) => {
                let put = |(key, value)| Kind::Put(v1::OperationPut { key, value, condition: None });
                self.batch(worker, pairs.into_iter().map(put).collect()).await.map(|_| Answer::Done)
            }
            Request::GetMany(keys) => {
                let get = |key| Kind::Get(v1::OperationGet { key });
                let results = self.batch(worker, keys.into_iter().map(get).collect()).await?;
                let value = |result: v1::OperationResult| result.existed.then_some(result.value);
                Ok(Answer::Values(results.into_iter().map(value).collect()))
            }
            Request::Swap { key, found, value } => {
                let condition = Some(unchanged(found.as_ref()));
                let put = v1::Put { key, value, condition, ..Default::default() };
                let reply: Result<v1::WriteReply, Status> =
                    self.call(worker, "/krita.v1.Krita/Put", put).await;
                match reply {
                    Ok(_) => Ok(Answer::Done),
                    // CONDITION_FAILED; the other one of that code is about the cluster's name.
                    Err(status) if status.code() == Code::FailedPrecondition => Ok(Answer::NotSwapped),
                    Err(status) => Err(problem(&status)),
                }
            }
        }
    }
}

/// Krita says by the code whether a write may have happened; all else (a broken stream) leaves it open.
fn problem(status: &Status) -> Problem {
    let is_known = matches!(
        status.code(),
        Code::ResourceExhausted | Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated
    );
    Problem { name: format!("{:?}", status.code()), is_unknown: !is_known }
}

impl Target for KritaGrpc {
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
