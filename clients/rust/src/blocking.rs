//! The client for programs without an executor: the same calls, which block.
#![allow(clippy::unimplemented, unused_variables)]

use bytes::Bytes;

use crate::error::Result;
use crate::options::Options;
use crate::types::{
    Deleted, Entry, MemberHealth, Operation, OperationOutcome, ReadOptions, ScanItem, ScanOptions,
    WriteOptions, Written,
};
use crate::v1;

/// See [`crate::Client`]. Not for use inside an async task.
#[derive(Clone)]
pub struct Client {}

/// See [`crate::Scan`]; an iterator.
pub struct Scan {}

impl Iterator for Scan {
    type Item = Result<ScanItem>;

    fn next(&mut self) -> Option<Self::Item> {
        unimplemented!()
    }
}

impl Client {
    /// See [`crate::Client::connect`].
    pub fn connect(options: Options) -> Result<Self> {
        unimplemented!()
    }

    /// See [`crate::Client::put`].
    pub fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Written> {
        unimplemented!()
    }

    /// See [`crate::Client::put_with`].
    pub fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written> {
        unimplemented!()
    }

    /// See [`crate::Client::get`].
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Entry>> {
        unimplemented!()
    }

    /// See [`crate::Client::get_with`].
    pub fn get_with(&self, key: impl Into<Bytes>, options: ReadOptions) -> Result<Option<Entry>> {
        unimplemented!()
    }

    /// See [`crate::Client::delete`].
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<Deleted> {
        unimplemented!()
    }

    /// See [`crate::Client::delete_with`].
    pub fn delete_with(&self, key: impl Into<Bytes>, options: WriteOptions) -> Result<Deleted> {
        unimplemented!()
    }

    /// See [`crate::Client::batch`].
    pub fn batch(&self, operations: Vec<Operation>) -> Vec<Result<OperationOutcome>> {
        unimplemented!()
    }

    /// See [`crate::Client::put_many`].
    pub fn put_many(&self, pairs: Vec<(Bytes, Bytes)>) -> Vec<Result<Written>> {
        unimplemented!()
    }

    /// See [`crate::Client::get_many`].
    pub fn get_many(&self, keys: Vec<Bytes>) -> Vec<Result<Option<Entry>>> {
        unimplemented!()
    }

    /// See [`crate::Client::scan`].
    pub fn scan(&self, options: ScanOptions) -> Scan {
        unimplemented!()
    }

    /// See [`crate::Client::list_keys`].
    pub fn list_keys(&self, prefix: impl Into<Bytes>) -> Scan {
        unimplemented!()
    }

    /// See [`crate::Client::cluster_status`].
    pub fn cluster_status(&self) -> Result<v1::ClusterStatusReply> {
        unimplemented!()
    }

    /// See [`crate::Client::health`].
    pub fn health(&self) -> Result<Vec<MemberHealth>> {
        unimplemented!()
    }
}
