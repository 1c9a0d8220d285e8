//! The stores that are compared, behind one face.
//!
//! Each is used as its authors advise for small values that must be durable: one flush for each batch before it is
//! acknowledged, no compression (the values are random), and the same budget for its cache. What else is set stands
//! in `settings` of each, which every report repeats.

pub mod fjall;
pub mod krita;
pub mod redb;
#[cfg(feature = "rocksdb")]
pub mod rocksdb;

use std::error::Error;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::work::Put;

/// What ends a measurement: every error is told to the person at the terminal.
pub type Failure = Box<dyn Error>;

/// Which store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// Krita's engine: the log is the store.
    Krita,
    /// fjall: a log-structured merge tree in Rust.
    Fjall,
    /// fjall with values apart from its tree.
    FjallBlobs,
    /// redb: a copy-on-write B-tree in Rust.
    Redb,
    /// RocksDB: the log-structured merge tree.
    Rocksdb,
    /// RocksDB with values apart from its tree (BlobDB).
    RocksdbBlobs,
}

impl StoreKind {
    /// As it stands in tables, and in the names of directories.
    pub fn name(self) -> &'static str {
        match self {
            Self::Krita => "krita",
            Self::Fjall => "fjall",
            Self::FjallBlobs => "fjall-blobs",
            Self::Redb => "redb",
            Self::Rocksdb => "rocksdb",
            Self::RocksdbBlobs => "rocksdb-blobs",
        }
    }
}

/// The memory that a store may use, the same for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Budget {
    /// Bytes of cache for blocks and values.
    pub cache_bytes: u64,
    /// Bytes of writes that are gathered in memory before they are sorted to disk, where a store does that.
    pub memtable_bytes: u64,
}

/// Opens a store.
pub trait Opener {
    /// What it opens.
    type Store: Store;

    /// Opens the store in `directory`, or creates it. Ready on return: the next read is answered rightly.
    fn open(&self, directory: &Path, budget: Budget) -> impl Future<Output = Result<Self::Store, Failure>>;

    /// Lets time pass. Not every store has threads of its own that work meanwhile.
    fn wait(&self, duration: Duration) -> impl Future<Output = ()>;
}

/// An open store.
pub trait Store {
    /// Puts the whole batch; durable on return.
    fn write(&mut self, batch: Vec<Put>) -> impl Future<Output = Result<(), Failure>>;

    /// The value of a key.
    fn get(&self, key: &[u8]) -> impl Future<Output = Result<Option<Vec<u8>>, Failure>>;

    /// Bytes that were only written to have files of a size ready, once in a file's life.
    fn preparation_bytes(&self) -> u64 {
        0
    }

    /// Ends as a process does that is asked to: nothing of the store is in use on return.
    fn close(self) -> impl Future<Output = Result<(), Failure>>;
}
