//! fjall: a log-structured merge tree with a journal, several threads, buffered I/O.

use std::path::Path;
use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use super::{Budget, Failure, Opener, Store};
use crate::measure;
use crate::work::Put;

/// Opens fjall, with or without values apart from the tree.
pub struct OpenFjall {
    /// Values lie in blob files, which are collected by share of dead bytes.
    pub blobs: bool,
}

/// An open database with one keyspace.
pub struct FjallStore {
    database: Database,
    keyspace: Keyspace,
}

impl OpenFjall {
    /// What is set, in a few words.
    pub fn settings(&self, budget: Budget) -> String {
        let blobs = if self.blobs { ", values of 64 bytes and more in blob files" } else { "" };
        format!(
            "a batch each with PersistMode::SyncData; 2 threads, cache {} MiB, memtables {} MiB, no compression, \
             buffered I/O{blobs}; else as by default",
            budget.cache_bytes >> 20,
            budget.memtable_bytes >> 20
        )
    }
}

impl Opener for OpenFjall {
    type Store = FjallStore;

    async fn open(&self, directory: &Path, budget: Budget) -> Result<FjallStore, Failure> {
        let database =
            Database::builder(directory).cache_size(budget.cache_bytes).worker_threads(2).open()?;
        let blobs = self.blobs;
        let keyspace = database.keyspace("comparison", || {
            let options = KeyspaceCreateOptions::default().max_memtable_size(budget.memtable_bytes / 2);
            // Values of 100 bytes would not be separated by default.
            let separation = KvSeparationOptions::default().separation_threshold(64);
            options.with_kv_separation(blobs.then_some(separation))
        })?;
        Ok(FjallStore { database, keyspace })
    }

    async fn wait(&self, duration: Duration) {
        measure::sleep(duration);
    }
}

impl Store for FjallStore {
    async fn write(&mut self, puts: Vec<Put>) -> Result<(), Failure> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for put in puts {
            batch.insert(&self.keyspace, put.key, put.value);
        }
        Ok(batch.commit()?)
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.keyspace.get(key)?.map(|value| value.to_vec()))
    }

    async fn close(self) -> Result<(), Failure> {
        self.database.persist(PersistMode::SyncAll)?;
        Ok(())
    }
}
