//! Checkpoint files: a shard's index at one moment, sorted, in blocks, with the state machine's own part.
//!
//! Items first, then the meta data, then one block that says how much there was. A file is written whole,
//! flushed with its name, and only then published by the manifest, which keeps the checksum over all of it:
//! neither a torn file nor another checkpoint's blocks can be taken for this one.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use krita_runtime::{File, OpenOptions, Runtime};

use crate::error::{Corruption, ReadError};
use crate::format::{
    BLOCK, CHECKPOINT_PREFIX, FORMAT_VERSION, Reader, checksum, length_u32, padded, put_string,
};
use crate::manifest::CheckpointFileRecord;
use crate::types::{
    CheckpointMeta, Extent, Extents, Index, KEY_BYTES_MAX, LogId, SegmentId, ShardId, Slot, Term,
    VALUE_CHECKSUM_BYTES,
};

/// Length of a block's header.
pub(crate) const CHECKPOINT_HEADER_BYTES: usize = 48;
/// "KCHK".
pub(crate) const CHECKPOINT_MAGIC: u32 = u32::from_le_bytes(*b"KCHK");
/// Longest block, header and padding included.
pub(crate) const CHECKPOINT_BLOCK_MAX: usize = 64 << 10;
/// A block of items is closed once it is this long.
const BLOCK_FULL: usize = CHECKPOINT_BLOCK_MAX / 2;
/// Blocks are collected up to this length before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockKind {
    Items,
    Meta,
    End,
}

impl BlockKind {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Items => 1,
            Self::Meta => 2,
            Self::End => 3,
        }
    }
}

/// Who a file belongs to; every block names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CheckpointIdentity {
    pub(crate) log: LogId,
    pub(crate) shard: ShardId,
    pub(crate) number: u64,
    pub(crate) nonce: u64,
}

impl CheckpointIdentity {
    pub(crate) fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{CHECKPOINT_PREFIX}{}-{}", self.shard.0, self.number))
    }
}

/// The shard and number in a checkpoint's name.
pub(crate) fn parse_name(path: &Path) -> Option<(ShardId, u64)> {
    let (shard, number) = path.file_name()?.to_str()?.strip_prefix(CHECKPOINT_PREFIX)?.split_once('-')?;
    Some((ShardId(shard.parse().ok()?), number.parse().ok()?))
}

fn encode_item(out: &mut Vec<u8>, key: &[u8], slot: &Slot) {
    let key_length = u16::try_from(key.len()).expect("keys are bounded at the front door");
    let extents = slot.region.as_slice();
    out.extend_from_slice(&key_length.to_le_bytes());
    out.extend_from_slice(&u16::try_from(extents.len()).expect("pieces are not tiny").to_le_bytes());
    out.extend_from_slice(&slot.version.0.to_le_bytes());
    out.extend_from_slice(key);
    for extent in extents {
        out.extend_from_slice(&extent.segment.0.to_le_bytes());
        out.extend_from_slice(&extent.offset.to_le_bytes());
        out.extend_from_slice(&extent.length.to_le_bytes());
    }
}

fn decode_item(reader: &mut Reader<'_>) -> Option<(Bytes, Slot)> {
    let (key_length, extents) = (reader.u16()?, reader.u16()?);
    let version = Index(reader.u64()?);
    let key = Bytes::copy_from_slice(reader.take(usize::from(key_length))?);
    let extents = (0..extents)
        .map(|_| {
            let segment = SegmentId(reader.u64()?);
            Some(Extent { segment, offset: reader.u32()?, length: reader.u32()? })
        })
        .collect::<Option<Vec<_>>>()?;
    if extents.is_empty() || key.len() > KEY_BYTES_MAX {
        return None;
    }
    let slot = Slot { version, region: Extents::from_vec(extents) };
    (slot.region.length() >= u64::from(VALUE_CHECKSUM_BYTES)).then_some((key, slot))
}

/// Writes one checkpoint file from items in ascending order.
pub(crate) struct Writer<R: Runtime> {
    runtime: R,
    directory: PathBuf,
    identity: CheckpointIdentity,
    file: R::File,
    written: u64,
    collected: Vec<u8>,
    items: Vec<u8>,
    items_in_block: u32,
    items_total: u64,
    root: u64,
}

impl<R: Runtime> Writer<R> {
    pub(crate) async fn create(
        runtime: &R,
        directory: &Path,
        identity: CheckpointIdentity,
    ) -> io::Result<Self> {
        let options = OpenOptions { write: true, create: true, durable_writes: false };
        let file = runtime.open(&identity.path(directory), options).await?;
        Ok(Self {
            runtime: runtime.clone(),
            directory: directory.to_owned(),
            identity,
            file,
            written: 0,
            collected: Vec::new(),
            items: Vec::new(),
            items_in_block: 0,
            items_total: 0,
            root: identity.nonce,
        })
    }

    /// Adds items behind those added before.
    pub(crate) async fn add(&mut self, items: &[(Bytes, Slot)]) -> io::Result<()> {
        for (key, slot) in items {
            encode_item(&mut self.items, key, slot);
            self.items_in_block += 1;
            self.items_total += 1;
            if self.items.len() >= BLOCK_FULL {
                self.close_items();
            }
        }
        if self.collected.len() >= WRITE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    fn close_items(&mut self) {
        if self.items_in_block > 0 {
            let items = std::mem::take(&mut self.items);
            self.block(BlockKind::Items, self.items_in_block, &items);
            self.items_in_block = 0;
        }
    }

    fn block(&mut self, kind: BlockKind, count: u32, payload: &[u8]) {
        let end = CHECKPOINT_HEADER_BYTES + payload.len();
        assert!(end <= CHECKPOINT_BLOCK_MAX, "no item is that long");
        let position = self.written + self.collected.len() as u64;
        let mut block = vec![0; padded(end)];
        block[8..12].copy_from_slice(&CHECKPOINT_MAGIC.to_le_bytes());
        block[12..14].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[14..16].copy_from_slice(&self.identity.log.0.to_le_bytes());
        block[16..20].copy_from_slice(&self.identity.shard.0.to_le_bytes());
        block[20..24].copy_from_slice(&u32::from(kind.code()).to_le_bytes());
        block[24..32].copy_from_slice(&self.identity.number.to_le_bytes());
        block[32..40].copy_from_slice(&position.to_le_bytes());
        block[40..44].copy_from_slice(&length_u32(payload.len()).to_le_bytes());
        block[44..48].copy_from_slice(&count.to_le_bytes());
        block[CHECKPOINT_HEADER_BYTES..end].copy_from_slice(payload);
        let sum = checksum(self.identity.nonce, &block[8..end]);
        block[..8].copy_from_slice(&sum.to_le_bytes());
        self.root = checksum(self.root, &sum.to_le_bytes());
        self.collected.extend_from_slice(&block);
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

    /// Writes the meta data and the end; durable on return, the name included.
    pub(crate) async fn finish(
        mut self,
        meta: &CheckpointMeta,
        mut segments: Vec<SegmentId>,
    ) -> io::Result<CheckpointFileRecord> {
        self.close_items();
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&meta.applied.0.to_le_bytes());
        bytes.extend_from_slice(&meta.term.0.to_le_bytes());
        bytes.extend_from_slice(&meta.generation.to_le_bytes());
        put_string(&mut bytes, &meta.configuration);
        put_string(&mut bytes, &meta.machine);
        for part in bytes.chunks(CHECKPOINT_BLOCK_MAX - CHECKPOINT_HEADER_BYTES) {
            self.block(BlockKind::Meta, 0, part);
            if self.collected.len() >= WRITE_BYTES {
                self.flush().await?;
                self.runtime.pause().await;
            }
        }
        let total = self.items_total.to_le_bytes();
        self.block(BlockKind::End, 0, &total);
        self.flush().await?;
        self.file.sync_data().await?;
        self.runtime.sync_directory(&self.directory).await?;
        segments.sort_unstable();
        Ok(CheckpointFileRecord {
            number: self.identity.number,
            length: self.written,
            root: self.root,
            items: self.items_total,
            segments,
        })
    }
}

/// What one block gave.
pub(crate) enum Block {
    Items(Vec<(Bytes, Slot)>),
    /// Read on.
    Meta,
    /// The file was whole and is the one that the manifest knows.
    End(CheckpointMeta),
}

/// Reads one checkpoint file from front to back.
pub(crate) struct FileReader<R: Runtime> {
    file: R::File,
    path: PathBuf,
    identity: CheckpointIdentity,
    record: CheckpointFileRecord,
    position: u64,
    root: u64,
    items: u64,
    meta: Vec<u8>,
}

impl<R: Runtime> FileReader<R> {
    pub(crate) async fn open(
        runtime: &R,
        directory: &Path,
        identity: CheckpointIdentity,
        record: CheckpointFileRecord,
    ) -> Result<Self, ReadError> {
        let path = identity.path(directory);
        let file = match runtime.open(&path, OpenOptions::default()).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = "a checkpoint that the manifest names is missing".to_owned();
                return Err(Corruption { file: path, offset: 0, what, sequences: None }.into());
            }
            Err(error) => return Err(ReadError::Io { file: path, what: error.to_string() }),
        };
        let root = identity.nonce;
        Ok(Self { file, path, identity, record, position: 0, root, items: 0, meta: Vec::new() })
    }

    fn damaged(&self, what: &str) -> ReadError {
        let (file, offset) = (self.path.clone(), self.position);
        Corruption { file, offset, what: what.to_owned(), sequences: None }.into()
    }

    /// The next block. Not to be called behind [`Block::End`].
    pub(crate) async fn next(&mut self) -> Result<Block, ReadError> {
        let read = self.file.read_at(self.position, CHECKPOINT_BLOCK_MAX).await;
        let bytes = read.map_err(|e| ReadError::Io { file: self.path.clone(), what: e.to_string() })?;
        let Some((sum, kind, count, payload)) = self.parse(&bytes) else {
            return Err(self.damaged("an invalid block"));
        };
        self.root = checksum(self.root, &sum.to_le_bytes());
        let block = if kind == u32::from(BlockKind::Items.code()) {
            let mut reader = Reader::new(payload);
            let items = (0..count).map(|_| decode_item(&mut reader)).collect::<Option<Vec<_>>>();
            let Some(items) = items.filter(|_| reader.is_empty()) else {
                return Err(self.damaged("a block whose items do not parse"));
            };
            self.items += u64::from(count);
            Block::Items(items)
        } else if kind == u32::from(BlockKind::Meta.code()) {
            self.meta.extend_from_slice(payload);
            Block::Meta
        } else if kind == u32::from(BlockKind::End.code()) {
            let whole = self.position + padded(CHECKPOINT_HEADER_BYTES + payload.len()) as u64;
            let right =
                (whole, self.root, self.items) == (self.record.length, self.record.root, self.record.items);
            let meta = decode_meta(&self.meta).filter(|_| right);
            Block::End(meta.ok_or_else(|| self.damaged("not the checkpoint that the manifest names"))?)
        } else {
            return Err(self.damaged("a block of an unknown kind"));
        };
        self.position += padded(CHECKPOINT_HEADER_BYTES + payload.len()) as u64;
        Ok(block)
    }

    fn parse<'a>(&self, bytes: &'a [u8]) -> Option<(u64, u32, u32, &'a [u8])> {
        let mut reader = Reader::new(bytes);
        let sum = reader.u64()?;
        let magic = reader.u32()?;
        let (version, log) = (reader.u16()?, LogId(reader.u16()?));
        let shard = ShardId(reader.u32()?);
        let kind = reader.u32()?;
        let (number, position) = (reader.u64()?, reader.u64()?);
        let (length, count) = (reader.u32()?, reader.u32()?);
        let payload = reader.take(usize::try_from(length).ok()?)?;
        let covered = bytes.get(8..CHECKPOINT_HEADER_BYTES + payload.len())?;
        let mine = magic == CHECKPOINT_MAGIC
            && version == FORMAT_VERSION
            && (log, shard, number) == (self.identity.log, self.identity.shard, self.identity.number)
            && position == self.position;
        (mine && checksum(self.identity.nonce, covered) == sum).then_some((sum, kind, count, payload))
    }
}

fn decode_meta(bytes: &[u8]) -> Option<CheckpointMeta> {
    let mut reader = Reader::new(bytes);
    let (applied, term) = (Index(reader.u64()?), Term(reader.u64()?));
    let generation = reader.u64()?;
    let configuration = Bytes::copy_from_slice(reader.string()?);
    let machine = Bytes::copy_from_slice(reader.string()?);
    reader.is_empty().then_some(CheckpointMeta { applied, term, configuration, machine, generation })
}

// An item must fit into the room that a block has left when it is not yet full.
const _: () = assert!(
    BLOCK_FULL
        + 12
        + KEY_BYTES_MAX
        + 16 * (crate::types::PAYLOAD_BYTES_MAX / crate::log::PIECE_BYTES_MIN + 2)
        <= CHECKPOINT_BLOCK_MAX - CHECKPOINT_HEADER_BYTES
);
const _: () = assert!(CHECKPOINT_BLOCK_MAX.is_multiple_of(BLOCK as usize));
