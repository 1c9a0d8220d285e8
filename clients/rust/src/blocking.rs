//! The client for programs without an executor: the same calls, which block.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::error::ErrorCode;
use tokio::runtime::Runtime;

use crate::error::{Error, Result};
use crate::options::Options;
use crate::types::{
    Deleted, Entry, MemberHealth, Operation, OperationOutcome, Read, ReadOptions, ScanItem, ScanOptions,
    ShardVersion, WriteOptions, Written,
};
use crate::v1;

/// See [`crate::Client`]; cheap to clone, usable from any thread. It has one thread of its own for the network.
/// Not for use inside an async task: there the calls panic.
#[derive(Clone, Debug)]
pub struct Client {
    client: crate::Client,
    runtime: Arc<Runtime>,
}

/// See [`crate::Scan`]; an iterator.
pub struct Scan {
    scan: crate::Scan,
    runtime: Arc<Runtime>,
}

impl Scan {
    /// See [`crate::Scan::versions`].
    pub fn versions(&self) -> &BTreeMap<u32, ShardVersion> {
        self.scan.versions()
    }
}

impl Iterator for Scan {
    type Item = Result<ScanItem>;

    fn next(&mut self) -> Option<Self::Item> {
        self.runtime.block_on(self.scan.next())
    }
}

impl Client {
    /// See [`crate::Client::connect`].
    pub fn connect(options: Options) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kritaclient")
            .enable_all()
            .build()
            .map_err(|error| Error::new(ErrorCode::Internal, format!("cannot start a thread: {error}")))?;
        let client = runtime.block_on(crate::Client::connect(options))?;
        Ok(Self { client, runtime: Arc::new(runtime) })
    }

    /// See [`crate::Client::with_timeout`].
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.with_timeout(timeout), runtime: self.runtime.clone() }
    }

    /// See [`crate::Client::put`].
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        self.runtime.block_on(self.client.put(key, value))
    }

    /// See [`crate::Client::put_with`].
    pub fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written> {
        self.runtime.block_on(self.client.put_with(key, value, options))
    }

    /// See [`crate::Client::get`].
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Entry>> {
        self.runtime.block_on(self.client.get(key))
    }

    /// See [`crate::Client::get_with`].
    pub fn get_with(&self, key: impl Into<Bytes>, options: ReadOptions) -> Result<Option<Entry>> {
        self.runtime.block_on(self.client.get_with(key, options))
    }

    /// See [`crate::Client::read_with`].
    pub fn read_with(&self, key: impl Into<Bytes>, options: ReadOptions) -> Result<Read> {
        self.runtime.block_on(self.client.read_with(key, options))
    }

    /// See [`crate::Client::get_many_with`].
    pub fn get_many_with(&self, keys: Vec<Bytes>, options: ReadOptions) -> Vec<Result<Option<Entry>>> {
        self.runtime.block_on(self.client.get_many_with(keys, options))
    }

    /// See [`crate::Client::delete`].
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<Deleted> {
        self.runtime.block_on(self.client.delete(key))
    }

    /// See [`crate::Client::delete_with`].
    pub fn delete_with(&self, key: impl Into<Bytes>, options: WriteOptions) -> Result<Deleted> {
        self.runtime.block_on(self.client.delete_with(key, options))
    }

    /// See [`crate::Client::batch`].
    pub fn batch(&self, operations: Vec<Operation>) -> Vec<Result<OperationOutcome>> {
        self.runtime.block_on(self.client.batch(operations))
    }

    /// See [`crate::Client::put_many`].
    pub fn put_many(&self, pairs: Vec<(Bytes, Bytes)>) -> Vec<Result<Written>> {
        self.runtime.block_on(self.client.put_many(pairs))
    }

    /// See [`crate::Client::get_many`].
    pub fn get_many(&self, keys: Vec<Bytes>) -> Vec<Result<Option<Entry>>> {
        self.runtime.block_on(self.client.get_many(keys))
    }

    /// See [`crate::Client::scan`].
    pub fn scan(&self, options: ScanOptions) -> Scan {
        // A scan keeps its fetches in tasks of the runtime, which it therefore keeps alive.
        Scan { scan: self.client.scan(options), runtime: self.runtime.clone() }
    }

    /// See [`crate::Client::list_keys`].
    pub fn list_keys(&self, prefix: impl Into<Bytes>) -> Scan {
        self.scan(ScanOptions::prefix(prefix).keys_only())
    }

    /// See [`crate::Client::cluster_status`].
    pub fn cluster_status(&self) -> Result<v1::ClusterStatusReply> {
        self.runtime.block_on(self.client.cluster_status())
    }

    /// See [`crate::Client::node_status`].
    pub fn node_status(&self, address: &str) -> Result<v1::NodeStatusReply> {
        self.runtime.block_on(self.client.node_status(address))
    }

    /// See [`crate::Client::order_shard`].
    pub fn order_shard(&self, order: v1::ShardOrder) -> Result<v1::ShardView> {
        self.runtime.block_on(self.client.order_shard(order))
    }

    /// See [`crate::Client::verify`].
    pub fn verify(&self, shard: u32) -> Result<v1::VerifyReply> {
        self.runtime.block_on(self.client.verify(shard))
    }

    /// See [`crate::Client::verify_all`].
    pub fn verify_all(&self, shards: Vec<u32>) -> Vec<(u32, Result<v1::VerifyReply>)> {
        self.runtime.block_on(self.client.verify_all(shards))
    }

    /// See [`crate::Client::read_cluster`].
    pub fn read_cluster(&self, without_shards: bool) -> Result<v1::MetaSnapshot> {
        self.runtime.block_on(self.client.read_cluster(without_shards))
    }

    /// See [`crate::Client::change_cluster`].
    pub fn change_cluster(&self, change: v1::cluster_change::Change) -> Result<v1::ClusterChangeReply> {
        self.runtime.block_on(self.client.change_cluster(change))
    }

    /// See [`crate::Client::scrub`].
    pub fn scrub(&self, address: &str) -> Result<()> {
        self.runtime.block_on(self.client.scrub(address))
    }

    /// See [`crate::Client::health`].
    pub fn health(&self) -> Result<Vec<MemberHealth>> {
        self.runtime.block_on(self.client.health())
    }
}
