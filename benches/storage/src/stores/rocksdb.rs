//! RocksDB: the log-structured merge tree that others are measured by.

use std::path::Path;
use std::time::Duration;

use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteBatch, WriteOptions};

use super::{Budget, Failure, Opener, Store};
use crate::measure;
use crate::work::Put;

/// Opens RocksDB, with or without values apart from the tree.
pub struct OpenRocksdb {
    /// Values lie in blob files, which are collected when their tables are compacted.
    pub blobs: bool,
}

/// An open database.
pub struct RocksdbStore {
    database: DB,
}

impl OpenRocksdb {
    /// What is set, in a few words.
    pub fn settings(&self, budget: Budget) -> String {
        let blobs =
            if self.blobs { ", values of 64 bytes and more in blob files with collection" } else { "" };
        format!(
            "a WriteBatch each with sync; block cache {} MiB, write buffers 2 of {} MiB, bloom filter of 10 bits, 2 \
             background jobs, no compression, direct I/O for reads, flushes and compaction{blobs}; else as by default",
            budget.cache_bytes >> 20,
            budget.memtable_bytes >> 21
        )
    }
}

impl Opener for OpenRocksdb {
    type Store = RocksdbStore;

    async fn open(&self, directory: &Path, budget: Budget) -> Result<RocksdbStore, Failure> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::None);
        options.set_max_background_jobs(2);
        options.set_write_buffer_size(usize::try_from(budget.memtable_bytes / 2)?);
        options.set_use_direct_reads(true);
        options.set_use_direct_io_for_flush_and_compaction(true);
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(usize::try_from(budget.cache_bytes)?));
        table.set_bloom_filter(10.0, false);
        options.set_block_based_table_factory(&table);
        if self.blobs {
            options.set_enable_blob_files(true);
            options.set_min_blob_size(64);
            options.set_enable_blob_gc(true);
        }
        Ok(RocksdbStore { database: DB::open(&options, directory)? })
    }

    async fn wait(&self, duration: Duration) {
        measure::sleep(duration);
    }
}

impl Store for RocksdbStore {
    async fn write(&mut self, puts: Vec<Put>) -> Result<(), Failure> {
        let mut batch = WriteBatch::default();
        for put in &puts {
            batch.put(put.key, &put.value);
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.database.write_opt(batch, &options)?)
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.database.get(key)?)
    }

    async fn close(self) -> Result<(), Failure> {
        self.database.cancel_all_background_work(true);
        Ok(())
    }
}
