//! Checkpoint files: the part of a checkpoint that is not its runs, when it is too long for the manifest: the
//! membership and the state machine's own part.
//!
//! A file is written whole, flushed with its name, and only then published by the manifest, which keeps the
//! checksum over all of it: neither a torn file nor another checkpoint's blocks can be taken for this one.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use krita_runtime::{File, OpenOptions, Runtime};

use crate::error::{Corruption, ReadError};
use crate::format::{
    BLOCK, CHECKPOINT_PREFIX, FORMAT_VERSION, Reader, checksum, length_u32, padded, put_string,
};
use crate::manifest::MetaFileRecord;
use crate::types::{CheckpointMeta, Index, LogId, ShardId, Term};

/// Length of a block's header.
pub(crate) const CHECKPOINT_HEADER_BYTES: usize = 48;
/// "KCHK".
pub(crate) const CHECKPOINT_MAGIC: u32 = u32::from_le_bytes(*b"KCHK");
/// Longest block, header and padding included.
pub(crate) const CHECKPOINT_BLOCK_MAX: usize = 64 << 10;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BlockKind {
    Meta,
    End,
}

impl BlockKind {
    pub(crate) const fn code(self) -> u8 {
        match self {
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

fn put_block(out: &mut Vec<u8>, identity: &CheckpointIdentity, kind: BlockKind, payload: &[u8]) -> u64 {
    let end = CHECKPOINT_HEADER_BYTES + payload.len();
    assert!(end <= CHECKPOINT_BLOCK_MAX, "what is written is cut into blocks");
    let mut block = vec![0; padded(end)];
    block[8..12].copy_from_slice(&CHECKPOINT_MAGIC.to_le_bytes());
    block[12..14].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    block[14..16].copy_from_slice(&identity.log.0.to_le_bytes());
    block[16..20].copy_from_slice(&identity.shard.0.to_le_bytes());
    block[20..24].copy_from_slice(&u32::from(kind.code()).to_le_bytes());
    block[24..32].copy_from_slice(&identity.number.to_le_bytes());
    block[32..40].copy_from_slice(&(out.len() as u64).to_le_bytes());
    block[40..44].copy_from_slice(&length_u32(payload.len()).to_le_bytes());
    block[CHECKPOINT_HEADER_BYTES..end].copy_from_slice(payload);
    let sum = checksum(identity.nonce, &block[8..end]);
    block[..8].copy_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&block);
    sum
}

/// Writes a checkpoint file; durable on return, the name included.
pub(crate) async fn write<R: Runtime>(
    runtime: &R,
    directory: &Path,
    identity: CheckpointIdentity,
    meta: &CheckpointMeta,
) -> io::Result<MetaFileRecord> {
    let mut content = Vec::new();
    content.extend_from_slice(&meta.applied.0.to_le_bytes());
    content.extend_from_slice(&meta.term.0.to_le_bytes());
    content.extend_from_slice(&meta.generation.to_le_bytes());
    put_string(&mut content, &meta.configuration);
    put_string(&mut content, &meta.machine);
    let path = identity.path(directory);
    let file = runtime.open(&path, OpenOptions { write: true, create: true, durable_writes: false }).await?;
    let mut blocks = Vec::new();
    let mut root = identity.nonce;
    for part in content.chunks(CHECKPOINT_BLOCK_MAX - CHECKPOINT_HEADER_BYTES) {
        let sum = put_block(&mut blocks, &identity, BlockKind::Meta, part);
        root = checksum(root, &sum.to_le_bytes());
        runtime.pause().await;
    }
    let sum = put_block(&mut blocks, &identity, BlockKind::End, &[]);
    root = checksum(root, &sum.to_le_bytes());
    for (number, part) in blocks.chunks(CHECKPOINT_BLOCK_MAX).enumerate() {
        let mut buffer = file.buffer(part.len());
        buffer.copy_from_slice(part);
        file.write_at(buffer, (number * CHECKPOINT_BLOCK_MAX) as u64).await?;
    }
    file.sync_data().await?;
    runtime.sync_directory(directory).await?;
    Ok(MetaFileRecord { number: identity.number, length: blocks.len() as u64, root })
}

/// Reads a checkpoint file: whole, and the one that the manifest knows.
pub(crate) async fn read<R: Runtime>(
    runtime: &R,
    directory: &Path,
    identity: CheckpointIdentity,
    record: MetaFileRecord,
) -> Result<CheckpointMeta, ReadError> {
    let path = identity.path(directory);
    let damaged = |position: u64, what: &str| {
        ReadError::from(Corruption {
            file: path.clone(),
            offset: position,
            what: what.to_owned(),
            sequences: None,
        })
    };
    let failed = |error: io::Error| ReadError::Io { file: path.clone(), what: error.to_string() };
    let file = match runtime.open(&path, OpenOptions::default()).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damaged(0, "a checkpoint that the manifest names is missing"));
        }
        Err(error) => return Err(failed(error)),
    };
    let (mut position, mut root, mut content) = (0, identity.nonce, Vec::new());
    loop {
        let bytes = file.read_at(position, CHECKPOINT_BLOCK_MAX).await.map_err(failed)?;
        let block = parse(&bytes, &identity, position);
        let (sum, kind, payload) = block.ok_or_else(|| damaged(position, "an invalid block"))?;
        root = checksum(root, &sum.to_le_bytes());
        content.extend_from_slice(payload);
        position += padded(CHECKPOINT_HEADER_BYTES + payload.len()) as u64;
        if kind == u32::from(BlockKind::End.code()) {
            break;
        }
        if position > record.length {
            return Err(damaged(position, "it is longer than the manifest says"));
        }
    }
    let right = (position, root) == (record.length, record.root);
    let meta = decode_meta(&content).filter(|_| right);
    meta.ok_or_else(|| damaged(0, "not the checkpoint that the manifest names"))
}

/// A block's checksum, kind and payload.
fn parse<'a>(bytes: &'a [u8], identity: &CheckpointIdentity, expected: u64) -> Option<(u64, u32, &'a [u8])> {
    let mut reader = Reader::new(bytes);
    let (sum, magic) = (reader.u64()?, reader.u32()?);
    let (version, log) = (reader.u16()?, LogId(reader.u16()?));
    let (shard, kind) = (ShardId(reader.u32()?), reader.u32()?);
    let (number, position) = (reader.u64()?, reader.u64()?);
    let (length, zero) = (reader.u32()?, reader.u32()?);
    let payload = reader.take(usize::try_from(length).ok()?)?;
    let covered = bytes.get(8..CHECKPOINT_HEADER_BYTES + payload.len())?;
    let mine = magic == CHECKPOINT_MAGIC
        && version == FORMAT_VERSION
        && (log, shard, number) == (identity.log, identity.shard, identity.number)
        && [BlockKind::Meta, BlockKind::End].iter().any(|known| u32::from(known.code()) == kind)
        && (position, zero) == (expected, 0);
    (mine && checksum(identity.nonce, covered) == sum).then_some((sum, kind, payload))
}

fn decode_meta(bytes: &[u8]) -> Option<CheckpointMeta> {
    let mut reader = Reader::new(bytes);
    let (applied, term) = (Index(reader.u64()?), Term(reader.u64()?));
    let generation = reader.u64()?;
    let configuration = Bytes::copy_from_slice(reader.string()?);
    let machine = Bytes::copy_from_slice(reader.string()?);
    reader.is_empty().then_some(CheckpointMeta { applied, term, configuration, machine, generation })
}

const _: () = assert!(CHECKPOINT_BLOCK_MAX.is_multiple_of(BLOCK as usize));
