//! The async client on tokio.
#![allow(clippy::unimplemented, unused_variables)]

use bytes::Bytes;

use crate::error::Result;
use crate::options::Options;
use crate::scan::Scan;
use crate::types::{
    Deleted, Entry, MemberHealth, Operation, OperationOutcome, ReadOptions, ScanOptions, WriteOptions,
    Written,
};
use crate::v1;

/// A connection to a cluster. Cheap to clone; usable from any task and thread.
#[derive(Clone)]
pub struct Client {}

impl Client {
    /// Connects to the first of the nodes that answers, and learns the cluster from it.
    pub async fn connect(options: Options) -> Result<Self> {
        unimplemented!()
    }

    /// Sets a key's value.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        unimplemented!()
    }

    /// Sets a key's value, with options.
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written> {
        unimplemented!()
    }

    /// Reads a key; `None` = absent.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Entry>> {
        unimplemented!()
    }

    /// Reads a key, with options.
    pub async fn get_with(&self, key: impl Into<Bytes>, options: ReadOptions) -> Result<Option<Entry>> {
        unimplemented!()
    }

    /// Removes a key.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Deleted> {
        unimplemented!()
    }

    /// Removes a key, with options.
    pub async fn delete_with(&self, key: impl Into<Bytes>, options: WriteOptions) -> Result<Deleted> {
        unimplemented!()
    }

    /// Many operations, grouped by shard and sent in parallel; atomic per shard. One result per operation, in order.
    pub async fn batch(&self, operations: Vec<Operation>) -> Vec<Result<OperationOutcome>> {
        unimplemented!()
    }

    /// Many puts without atomicity, in pieces of good size, for loading. One result per pair, in order.
    pub async fn put_many(&self, pairs: Vec<(Bytes, Bytes)>) -> Vec<Result<Written>> {
        unimplemented!()
    }

    /// Many gets, in pieces of good size. One result per key, in order.
    pub async fn get_many(&self, keys: Vec<Bytes>) -> Vec<Result<Option<Entry>>> {
        unimplemented!()
    }

    /// Keys and values of a range or prefix, ordered by key over all shards, fetched as they are read.
    pub fn scan(&self, options: ScanOptions) -> Scan {
        unimplemented!()
    }

    /// Keys that begin with `prefix`, in order.
    pub fn list_keys(&self, prefix: impl Into<Bytes>) -> Scan {
        unimplemented!()
    }

    /// Members and shards as the first node that answers knows them.
    pub async fn cluster_status(&self) -> Result<v1::ClusterStatusReply> {
        unimplemented!()
    }

    /// What the node at `address` says of itself.
    pub async fn node_status(&self, address: &str) -> Result<v1::NodeStatusReply> {
        unimplemented!()
    }

    /// What every member says of itself; one that does not answer is in the list, with the reason.
    pub async fn health(&self) -> Result<Vec<MemberHealth>> {
        unimplemented!()
    }
}
