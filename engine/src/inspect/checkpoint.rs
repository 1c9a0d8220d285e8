//! One checkpoint file: the part of a checkpoint that is too long for the manifest.

use std::io;

use bytes::Bytes;

use crate::checkpoint::{
    BlockKind, CHECKPOINT_BLOCK_MAX, CHECKPOINT_HEADER_BYTES, CHECKPOINT_MAGIC, parse_name,
};
use crate::format::{FORMAT_VERSION, Reader, checksum, padded};
use crate::inspect::finding::Findings;
use crate::inspect::segment::LogContext;
use crate::inspect::source::{ReadAt, Window};
use crate::types::{Index, LogId, ShardId, Term};

/// Longest content that is taken apart; none that Krita writes comes near.
const CONTENT_BYTES_MAX: usize = 256 << 20;

/// What one checkpoint file holds, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckpointReport {
    /// The file's name.
    pub file: String,
    /// Its length in bytes.
    pub length: u64,
    /// The log it is of.
    pub log: LogId,
    /// The shard it is of.
    pub shard: ShardId,
    /// The number in its name.
    pub number: u64,
    /// The fold over all blocks' checksums, which the manifest names.
    pub root: u64,
    /// What it says, if all of it is there.
    pub meta: Option<MetaSummary>,
    /// What is wrong.
    pub findings: Findings,
}

/// What a checkpoint says beside the keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaSummary {
    /// The last entry that it contains.
    pub applied: Index,
    /// Its term.
    pub term: Term,
    /// The ownership generation.
    pub generation: u64,
    /// The membership as it was written; the node knows how to read it.
    pub configuration: Bytes,
    /// Length of the state machine's part in bytes.
    pub machine_bytes: u64,
}

/// Inspects one checkpoint file.
///
/// # Errors
/// Those of reading.
pub fn inspect_checkpoint(
    file: &dyn ReadAt,
    name: &str,
    context: LogContext,
) -> io::Result<CheckpointReport> {
    let mut window = Window::new(file)?;
    let (log, shard, number) = identity(window.get(0, CHECKPOINT_HEADER_BYTES)?, name, context);
    let mut report = CheckpointReport {
        file: name.to_owned(),
        length: window.file_length(),
        log,
        shard,
        number,
        root: context.nonce,
        meta: None,
        findings: Findings::default(),
    };
    let (mut position, mut content) = (0, Vec::new());
    loop {
        let bytes = window.get(position, CHECKPOINT_BLOCK_MAX)?;
        let (sum, kind, payload) = match block(bytes, &report, context.nonce, position) {
            Ok(block) => block,
            Err(what) => {
                report.findings.damage(name, position, what);
                return Ok(report);
            }
        };
        report.root = checksum(report.root, &sum.to_le_bytes());
        position += padded(CHECKPOINT_HEADER_BYTES + payload.len()) as u64;
        if kind == u32::from(BlockKind::End.code()) {
            break;
        }
        if content.len() <= CONTENT_BYTES_MAX {
            content.extend_from_slice(payload);
        }
    }
    if position != report.length {
        let what = format!("{} bytes behind the last block", report.length - position);
        report.findings.damage(name, position, what);
    }
    report.meta = decode_meta(&content);
    if report.meta.is_none() {
        report.findings.damage(name, 0, "its content does not parse");
    }
    Ok(report)
}

/// Whose the file should be: by its name and the log, else by what its first block says.
fn identity(head: &[u8], name: &str, context: LogContext) -> (LogId, ShardId, u64) {
    let mut reader = Reader::new(head.get(14..).unwrap_or(&[]));
    let log = LogId(reader.u16().unwrap_or(0));
    let shard = ShardId(reader.u32().unwrap_or(0));
    let number = Reader::new(head.get(24..).unwrap_or(&[])).u64().unwrap_or(0);
    let (shard, number) = parse_name(name.as_ref()).unwrap_or((shard, number));
    (context.log.unwrap_or(log), shard, number)
}

/// The checksum, kind and payload of the block at the front of `bytes`.
fn block<'a>(
    bytes: &'a [u8],
    report: &CheckpointReport,
    nonce: u64,
    position: u64,
) -> Result<(u64, u32, &'a [u8]), String> {
    let mut reader = Reader::new(bytes);
    let mut header = || {
        let (sum, magic) = (reader.u64()?, reader.u32()?);
        let (version, log, shard) = (reader.u16()?, LogId(reader.u16()?), ShardId(reader.u32()?));
        let (kind, number, stands_at) = (reader.u32()?, reader.u64()?, reader.u64()?);
        let length = usize::try_from(reader.u32()?).ok()?;
        reader.u32()?;
        Some((sum, magic, version, kind, length, (log, shard, number, stands_at)))
    };
    let Some((sum, magic, version, kind, length, identity)) = header() else {
        return Err("the file is cut short".to_owned());
    };
    let end = CHECKPOINT_HEADER_BYTES.saturating_add(length);
    let whole = bytes.get(8..end).is_some_and(|covered| checksum(nonce, covered) == sum);
    if magic != CHECKPOINT_MAGIC {
        return Err("no checkpoint block".to_owned());
    }
    if version != FORMAT_VERSION {
        let doubt = if whole { "" } else { ", or damaged" };
        return Err(format!("format version {version}{doubt}; this version reads {FORMAT_VERSION}"));
    }
    if !whole {
        return Err("an invalid block".to_owned());
    }
    if identity != (report.log, report.shard, report.number, position) {
        let (log, shard, number, stands_at) = identity;
        return Err(format!("the block of {log}, {shard}, file {number}, byte {stands_at}, is here"));
    }
    let known = [BlockKind::Meta, BlockKind::End].iter().any(|known| u32::from(known.code()) == kind);
    match bytes.get(CHECKPOINT_HEADER_BYTES..end).filter(|_| known) {
        Some(payload) => Ok((sum, kind, payload)),
        None => Err(format!("a block of unknown kind {kind}")),
    }
}

fn decode_meta(bytes: &[u8]) -> Option<MetaSummary> {
    let mut reader = Reader::new(bytes);
    let (applied, term, generation) = (Index(reader.u64()?), Term(reader.u64()?), reader.u64()?);
    let configuration = Bytes::copy_from_slice(reader.string()?);
    let machine_bytes = reader.string()?.len() as u64;
    reader.is_empty().then_some(MetaSummary { applied, term, generation, configuration, machine_bytes })
}
