//! Looks into a run's file from front to back without opening it: for [`crate::inspect`].

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use krita_runtime::BLOCK_SIZE;

use super::block::{BlockCursor, Malformed};
use super::envelope::{BlockKind, Checked, check, claimed_bytes, content_seed, fold};
use super::footer::Footer;
use super::{Entry, RunIdentity, count_segments, decode_segments, parse_name};
use crate::format::{FORMAT_VERSION, Reader};
use crate::inspect::{Findings, LogContext, ReadAt, Window};
use crate::types::{Extent, Index, LogId, SegmentId, ShardId};

/// Longest block that is read: an item of a value in the smallest pieces, or a part of what is read whole.
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// Longest table of segments that is taken apart.
const SEGMENTS_BYTES_MAX: u64 = 64 << 20;

/// One item of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunItem<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The index of the entry that last changed it.
    pub version: Index,
    /// Where the region lies in the log; empty: the key was deleted.
    pub extents: &'a [Extent],
}

/// Is told every item in order. An error ends the inspection.
pub type VisitItem<'v> = dyn FnMut(RunItem<'_>) -> io::Result<()> + 'v;

/// What one run holds, and what is wrong with it. Lengths are those of whole blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunReport {
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
    /// The footer is valid. Without it no other block can be checked.
    pub is_valid: bool,
    /// Keys, tombstones included, as the footer says.
    pub items: u64,
    /// How many of them are tombstones.
    pub tombstones: u64,
    /// Valid blocks of items.
    pub data_blocks: u64,
    /// Bytes of items.
    pub data_bytes: u64,
    /// Bytes of items with several extents, repeated.
    pub large_bytes: u64,
    /// Bytes of the table of segments.
    pub segments_bytes: u64,
    /// Bytes of the filter.
    pub filter_bytes: u64,
    /// Bytes of the block index.
    pub index_bytes: u64,
    /// The fold over all blocks' checksums, which the manifest names.
    pub root: u64,
    /// The first key and the last.
    pub keys: Option<(Bytes, Bytes)>,
    /// Bytes of regions and keys in each life.
    pub segments: BTreeMap<SegmentId, u64>,
    /// What is wrong.
    pub findings: Findings,
}

/// Inspects one run.
///
/// # Errors
/// Those of reading and of `visit`.
pub fn inspect_run(
    file: &dyn ReadAt,
    name: &str,
    context: LogContext,
    visit: &mut VisitItem<'_>,
) -> io::Result<RunReport> {
    let mut window = Window::new(file)?;
    let length = window.file_length();
    let position = length.saturating_sub(BLOCK_SIZE as u64);
    let last = window.get(position, BLOCK_SIZE)?.to_vec();
    let identity = identity(&last, name, context);
    let mut report = RunReport {
        file: name.to_owned(),
        length,
        log: identity.log,
        shard: identity.shard,
        number: identity.number,
        is_valid: false,
        items: 0,
        tombstones: 0,
        data_blocks: 0,
        data_bytes: 0,
        large_bytes: 0,
        segments_bytes: 0,
        filter_bytes: 0,
        index_bytes: 0,
        root: 0,
        keys: None,
        segments: BTreeMap::new(),
        findings: Findings::default(),
    };
    let block = check(&last, position, &identity, identity.nonce);
    let block = block.filter(|block| block.content.kind == BlockKind::Footer);
    let footer = block.as_ref().and_then(|block| Footer::decode(block.content.payload, length));
    let (Some(block), Some(footer)) = (block, footer) else {
        report.findings.damage(name, position, without_footer(&last));
        return Ok(report);
    };
    report.is_valid = true;
    (report.items, report.tombstones) = (footer.items, footer.tombstones);
    (report.data_bytes, report.large_bytes) = (footer.data_bytes, footer.large_bytes);
    (report.segments_bytes, report.filter_bytes) = (footer.segments_bytes, footer.filter_bytes);
    report.index_bytes = footer.index_bytes;
    let walk = Walk { identity, footer, sums: Sums::default(), report: &mut report, visit };
    walk.run(&mut window, block.sum)?;
    Ok(report)
}

/// Whose the file should be: by its name and the log, else by what its footer says.
fn identity(footer: &[u8], name: &str, context: LogContext) -> RunIdentity {
    let mut reader = Reader::new(footer.get(14..).unwrap_or(&[]));
    let log = LogId(reader.u16().unwrap_or(0));
    let shard = ShardId(reader.u32().unwrap_or(0));
    let number = Reader::new(footer.get(24..).unwrap_or(&[])).u64().unwrap_or(0);
    let (shard, number) = parse_name(name.as_ref()).unwrap_or((shard, number));
    RunIdentity { log: context.log.unwrap_or(log), shard, number, nonce: context.nonce }
}

fn without_footer(block: &[u8]) -> String {
    let mut reader = Reader::new(block.get(8..).unwrap_or(&[]));
    match (reader.u32(), reader.u16()) {
        (Some(super::RUN_MAGIC), Some(version)) if version != FORMAT_VERSION => {
            format!("a footer of format version {version}, or damaged; this version reads {FORMAT_VERSION}")
        }
        (Some(super::RUN_MAGIC), Some(_)) => "the footer is damaged, or of another file".to_owned(),
        _ => "no footer: the file is cut short, or no run".to_owned(),
    }
}

#[derive(Default)]
struct Sums {
    root: u64,
    items: u64,
    tombstones: u64,
    segments: BTreeMap<SegmentId, u64>,
    table: Vec<u8>,
    last_key: Option<Vec<u8>>,
}

struct Walk<'s, 'v> {
    identity: RunIdentity,
    footer: Footer,
    sums: Sums,
    report: &'s mut RunReport,
    visit: &'s mut VisitItem<'v>,
}

impl Walk<'_, '_> {
    fn run(mut self, window: &mut Window<'_>, footer_sum: u64) -> io::Result<()> {
        let seed = content_seed(self.identity.nonce, self.footer.salt);
        let (mut position, end) = (0, self.footer.index_end());
        let mut data_root = None;
        self.sums.root = self.identity.nonce;
        while position < end {
            if position >= self.footer.data_bytes {
                data_root.get_or_insert(self.sums.root);
            }
            let length = claimed_bytes(window.get(position, BLOCK_SIZE)?).filter(|it| *it <= BLOCK_BYTES_MAX);
            let bytes = match length {
                Some(length) => window.get(position, length)?,
                None => &[],
            };
            match check(bytes, position, &self.identity, seed) {
                Some(block) => {
                    self.take(position, &block)?;
                    position += block.bytes.len() as u64;
                }
                None => position = self.skip(window, position, end, seed)?,
            }
        }
        self.compare(data_root.unwrap_or(self.sums.root));
        self.report.root = fold(self.sums.root, footer_sum);
        Ok(())
    }

    fn damage(&mut self, position: u64, what: &str) {
        self.report.findings.damage(&self.report.file, position, what);
    }

    /// Notes damage and finds the next valid block.
    fn skip(&mut self, window: &mut Window<'_>, from: u64, end: u64, seed: u64) -> io::Result<u64> {
        let kind = self.footer.kind_at(from);
        let mut position = from + BLOCK_SIZE as u64;
        while position < end {
            let length = claimed_bytes(window.get(position, BLOCK_SIZE)?).filter(|it| *it <= BLOCK_BYTES_MAX);
            if let Some(length) = length
                && check(window.get(position, length)?, position, &self.identity, seed).is_some()
            {
                break;
            }
            position += BLOCK_SIZE as u64;
        }
        let until = position.min(end);
        let what = format!("an invalid block of the {kind:?} part; the next valid byte is {until}");
        self.damage(from, &what);
        Ok(until)
    }

    fn take(&mut self, position: u64, block: &Checked<'_>) -> io::Result<()> {
        self.sums.root = fold(self.sums.root, block.sum);
        if block.content.kind != self.footer.kind_at(position) {
            self.damage(position, "a block of another kind than stands here");
            return Ok(());
        }
        match block.content.kind {
            BlockKind::Data => self.take_items(position, block),
            BlockKind::Segments if self.footer.segments_bytes <= SEGMENTS_BYTES_MAX => {
                self.sums.table.extend_from_slice(block.content.payload);
                Ok(())
            }
            BlockKind::Segments
            | BlockKind::Large
            | BlockKind::Filter
            | BlockKind::Index
            | BlockKind::Footer => Ok(()),
        }
    }

    fn take_items(&mut self, position: u64, block: &Checked<'_>) -> io::Result<()> {
        self.report.data_blocks += 1;
        let mut cursor = BlockCursor::new(Bytes::copy_from_slice(block.bytes));
        loop {
            let entry = match cursor.next() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(()),
                Err(Malformed) => {
                    self.damage(position, "a block whose items do not parse");
                    return Ok(());
                }
            };
            let key = cursor.key();
            if self.sums.last_key.as_deref().is_some_and(|last| last >= key) {
                self.damage(position, "keys that do not ascend");
                return Ok(());
            }
            let first =
                self.report.keys.take().map_or_else(|| Bytes::copy_from_slice(key), |(first, _)| first);
            self.report.keys = Some((first, Bytes::copy_from_slice(key)));
            let last = self.sums.last_key.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            self.sums.items += 1;
            let version = entry.version();
            match &entry {
                Entry::Tombstone(_) => {
                    self.sums.tombstones += 1;
                    (self.visit)(RunItem { key, version, extents: &[] })?;
                }
                Entry::Put(slot) => {
                    count_segments(&mut self.sums.segments, key, &slot.region);
                    (self.visit)(RunItem { key, version, extents: slot.region.as_slice() })?;
                }
            }
        }
    }

    /// What the footer and the tables say against what was read, unless it is plain already that something is lost.
    fn compare(&mut self, data_root: u64) {
        let segments = std::mem::take(&mut self.sums.segments);
        if !self.report.findings.damaged() {
            let position = self.footer.index_end();
            if (self.sums.items, self.sums.tombstones) != (self.footer.items, self.footer.tombstones) {
                self.damage(position, "the footer counts other items than there are");
            }
            if data_root != self.footer.data_root {
                self.damage(position, "the footer names other data blocks");
            }
            let is_read = self.footer.segments_bytes <= SEGMENTS_BYTES_MAX;
            if is_read && decode_segments(&self.sums.table).as_ref() != Some(&segments) {
                self.damage(self.footer.large_end(), "the table of segments is not that of the items");
            }
        }
        self.report.segments = segments;
    }
}
