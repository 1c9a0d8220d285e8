//! redb: a copy-on-write B-tree in one file, buffered I/O, a cache of its own.

use std::path::Path;
use std::time::Duration;

use redb::{Database, Durability, ReadableDatabase, TableDefinition};

use super::{Budget, Failure, Opener, Store};
use crate::measure;
use crate::work::Put;

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("comparison");

/// Opens redb.
pub struct OpenRedb;

/// An open database with one table.
pub struct RedbStore {
    database: Database,
}

impl OpenRedb {
    /// What is set, in a few words.
    pub fn settings(&self, budget: Budget) -> String {
        format!(
            "a transaction each with Durability::Immediate; cache {} MiB, buffered I/O; else as by default (one-phase \
             commit, no quick repair)",
            budget.cache_bytes >> 20
        )
    }
}

impl Opener for OpenRedb {
    type Store = RedbStore;

    async fn open(&self, directory: &Path, budget: Budget) -> Result<RedbStore, Failure> {
        std::fs::create_dir_all(directory)?;
        let cache = usize::try_from(budget.cache_bytes)?;
        let database = Database::builder().set_cache_size(cache).create(directory.join("comparison.redb"))?;
        let transaction = database.begin_write()?;
        transaction.open_table(TABLE)?;
        transaction.commit()?;
        Ok(RedbStore { database })
    }

    async fn wait(&self, duration: Duration) {
        measure::sleep(duration);
    }
}

impl Store for RedbStore {
    async fn write(&mut self, puts: Vec<Put>) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for put in &puts {
                table.insert(&put.key[..], &put.value[..])?;
            }
        }
        Ok(transaction.commit()?)
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(TABLE)?;
        Ok(table.get(key)?.map(|value| value.value().to_vec()))
    }

    async fn close(self) -> Result<(), Failure> {
        Ok(self.database.close()?)
    }
}
