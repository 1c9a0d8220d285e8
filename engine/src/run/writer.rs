//! Writing a run: data blocks as they fill up, then what is known only at the end.
//!
//! Nothing refers to the file before the manifest does, so a crash on the way leaves an orphan, no more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use krita_runtime::{File, OpenOptions, Runtime};

use super::block::{BlockBuilder, put_varint};
use super::blocks::BlocksBuilder;
use super::envelope::{BlockKind, Envelope, PART_BYTES, content_seed, fold, seal};
use super::filter::{Filter, LINE_BYTES};
use super::footer::Footer;
use super::{Entry, RunIdentity, RunRecord, count_segments};
use crate::types::{KEY_BYTES_MAX, SegmentId};

/// Blocks are collected up to this length before they are written.
const WRITE_BYTES: usize = 256 << 10;
/// Lines of the filter in one block.
const FILTER_PART_LINES: usize = PART_BYTES / LINE_BYTES;

/// Writes one run from items in strictly ascending order of keys. Its futures are not to be dropped in flight.
pub(crate) struct RunWriter<R: Runtime> {
    runtime: R,
    directory: PathBuf,
    identity: RunIdentity,
    file: R::File,
    seed: u64,
    /// Bytes written; those collected follow.
    written: u64,
    collected: Vec<u8>,
    root: u64,
    footer: Footer,
    block: BlockBuilder,
    /// The last key of the last closed block.
    before: Option<Vec<u8>>,
    blocks: BlocksBuilder,
    filter: Filter,
    segments: BTreeMap<SegmentId, u64>,
    large: BlockBuilder,
    large_closed: Vec<(Vec<u8>, u32)>,
}

impl<R: Runtime> RunWriter<R> {
    /// `items_expected` sizes the filter: the number of items to come, or a bound not far above it. With more
    /// items than that the filter lets more pass; with fewer it takes less memory in the end.
    pub(crate) async fn create(
        runtime: &R,
        directory: &Path,
        identity: RunIdentity,
        items_expected: u64,
    ) -> io::Result<Self> {
        let path = identity.path(directory);
        // An attempt that failed may have left a longer file.
        match runtime.remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let options = OpenOptions { write: true, create: true, durable_writes: false };
        let file = runtime.open(&path, options).await?;
        let salt = runtime.random_u64();
        Ok(Self {
            runtime: runtime.clone(),
            directory: directory.to_owned(),
            identity,
            file,
            seed: content_seed(identity.nonce, salt),
            written: 0,
            collected: Vec::new(),
            root: identity.nonce,
            footer: Footer { salt, ..Footer::default() },
            block: BlockBuilder::default(),
            before: None,
            blocks: BlocksBuilder::default(),
            filter: Filter::new(identity.nonce, items_expected),
            segments: BTreeMap::new(),
            large: BlockBuilder::default(),
            large_closed: Vec::new(),
        })
    }

    /// Adds an item behind those added before. Mostly memory; a write now and then.
    pub(crate) async fn add(&mut self, key: &[u8], entry: &Entry) -> io::Result<()> {
        assert!(key.len() <= KEY_BYTES_MAX, "keys are bounded at the front door");
        assert!(self.footer.items == 0 || self.last_key() < key, "a run's keys ascend");
        if !self.block.add(key, entry) {
            self.close_data();
            assert!(self.block.add(key, entry), "an empty block takes any item");
        }
        self.filter.add(key);
        self.footer.items += 1;
        match entry {
            Entry::Tombstone(_) => self.footer.tombstones += 1,
            Entry::Put(slot) => {
                count_segments(&mut self.segments, key, &slot.region);
                if slot.region.as_slice().len() > 1 {
                    self.add_large(key, entry);
                }
            }
        }
        if self.collected.len() >= WRITE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    fn add_large(&mut self, key: &[u8], entry: &Entry) {
        if !self.large.add(key, entry) {
            self.large_closed.push(self.large.take());
            assert!(self.large.add(key, entry), "an empty block takes any item");
        }
    }

    /// The key added last; empty before the first.
    fn last_key(&self) -> &[u8] {
        self.block.last_key()
    }

    fn close_data(&mut self) {
        if self.block.is_empty() {
            return;
        }
        let (payload, count) = self.block.take();
        let bytes = self.seal(BlockKind::Data, count, &payload);
        self.blocks.add(self.before.as_deref(), self.block.first_key(), bytes);
        let before = self.before.get_or_insert_default();
        before.clear();
        before.extend_from_slice(self.block.last_key());
    }

    /// Appends a block; its length in the file.
    fn seal(&mut self, kind: BlockKind, count: u32, payload: &[u8]) -> usize {
        let seed = match kind {
            BlockKind::Footer => self.identity.nonce,
            BlockKind::Data
            | BlockKind::Large
            | BlockKind::Segments
            | BlockKind::Filter
            | BlockKind::Index => self.seed,
        };
        let content = Envelope { kind, count, payload };
        let before = self.collected.len();
        let sum = seal(&mut self.collected, self.written, &self.identity, seed, &content);
        self.root = fold(self.root, sum);
        self.collected.len() - before
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.collected.is_empty() {
            return Ok(());
        }
        let mut buffer = self.file.buffer(self.collected.len());
        buffer.copy_from_slice(&self.collected);
        let position = self.written;
        self.written += self.collected.len() as u64;
        self.collected.clear();
        self.file.write_at(buffer, position).await
    }

    /// Writes a part that is read whole; its length in the file.
    async fn part(&mut self, kind: BlockKind, bytes: &[u8]) -> io::Result<u64> {
        let mut length = 0;
        for part in bytes.chunks(PART_BYTES) {
            length += self.seal(kind, 0, part) as u64;
            self.flush_full().await?;
        }
        Ok(length)
    }

    async fn flush_full(&mut self) -> io::Result<()> {
        if self.collected.len() >= WRITE_BYTES {
            self.flush().await?;
            self.runtime.pause().await;
        }
        Ok(())
    }

    /// Writes what is left; durable on return, the name included.
    pub(crate) async fn finish(mut self) -> io::Result<RunRecord> {
        self.close_data();
        self.footer.data_root = self.root;
        self.footer.data_bytes = self.written + self.collected.len() as u64;
        self.runtime.pause().await;
        self.finish_large().await?;
        let segments = encode_segments(&self.segments);
        self.footer.segments_bytes = self.part(BlockKind::Segments, &segments).await?;
        self.filter.shrink(self.footer.items);
        self.finish_filter().await?;
        let index = self.blocks.encode(self.last_key());
        self.footer.index_bytes = self.part(BlockKind::Index, &index).await?;
        let footer = self.footer.encode();
        self.seal(BlockKind::Footer, 0, &footer);
        self.flush().await?;
        self.file.sync_data().await?;
        self.runtime.sync_directory(&self.directory).await?;
        let (number, items) = (self.identity.number, self.footer.items);
        Ok(RunRecord { number, length: self.written, root: self.root, items })
    }

    async fn finish_large(&mut self) -> io::Result<()> {
        if !self.large.is_empty() {
            self.large_closed.push(self.large.take());
        }
        for (payload, count) in std::mem::take(&mut self.large_closed) {
            self.footer.large_bytes += self.seal(BlockKind::Large, count, &payload) as u64;
            self.flush_full().await?;
        }
        Ok(())
    }

    async fn finish_filter(&mut self) -> io::Result<()> {
        self.filter.shrink(self.footer.items);
        let lines = if self.footer.items == 0 { 0 } else { self.filter.lines() };
        for start in (0..lines).step_by(FILTER_PART_LINES) {
            let part = self.filter.encode(start..lines.min(start + FILTER_PART_LINES));
            self.footer.filter_bytes += self.seal(BlockKind::Filter, 0, &part) as u64;
            self.flush_full().await?;
        }
        Ok(())
    }
}

/// The number of lives, and each: how far it lies behind the one before, and its bytes.
fn encode_segments(segments: &BTreeMap<SegmentId, u64>) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, segments.len() as u64);
    let mut before = 0;
    for (segment, bytes) in segments {
        put_varint(&mut out, segment.0 - before);
        put_varint(&mut out, *bytes);
        before = segment.0;
    }
    out
}
