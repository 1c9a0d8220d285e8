//! Where in a node's files the damage goes: finds a place of each kind in a data directory as it is, and damages it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use krita_engine::inspect::{
    LogReport, RecordName, SegmentItem, SegmentState, inspect_log, inspect_manifest,
};
use krita_runtime::BLOCK_SIZE;
use krita_runtime::sim::{DiskControl, ReadFault};

/// The directory of the only log of a node.
const LOG: &str = "/data/log-000";

/// What is damaged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// The header of the segment that is being written.
    SegmentHeader,
    /// An entry behind the checkpoint, with batches behind it.
    ReplayBatch,
    /// A value below the checkpoint that a key still has.
    LiveValue,
    /// The last batch with records; a seal proves that it was durable.
    LastBatch,
    /// The last batch, of a node that was killed before it sealed it: it looks torn.
    UnsealedBatch,
    /// A segment that waits to be used.
    Spare,
    /// The manifest's first frame, which holds the whole state as of when the file was made.
    ManifestFirst,
    /// The manifest's last frame.
    ManifestLast,
    /// A block of slots in a run.
    RunData,
    /// What a run has in each life of the log.
    RunSegments,
    /// The filter of a run.
    RunFilter,
    /// The index over a run's blocks.
    RunIndex,
    /// The footer of a run.
    RunFooter,
    /// The state machine's own part of a checkpoint.
    CheckpointMeta,
    /// Who the node is.
    Identity,
    /// Which cluster it belongs to.
    Cluster,
    /// Which log owns which shard.
    Ownership,
    /// That the shards of a log were created.
    Created,
}

impl Place {
    /// Every kind.
    pub const ALL: [Self; 18] = [
        Self::SegmentHeader,
        Self::ReplayBatch,
        Self::LiveValue,
        Self::LastBatch,
        Self::UnsealedBatch,
        Self::Spare,
        Self::ManifestFirst,
        Self::ManifestLast,
        Self::RunData,
        Self::RunSegments,
        Self::RunFilter,
        Self::RunIndex,
        Self::RunFooter,
        Self::CheckpointMeta,
        Self::Identity,
        Self::Cluster,
        Self::Ownership,
        Self::Created,
    ];

    /// As the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SegmentHeader => "segment header",
            Self::ReplayBatch => "batch that replay needs",
            Self::LiveValue => "live value below the checkpoint",
            Self::LastBatch => "last batch",
            Self::UnsealedBatch => "last batch, not sealed yet",
            Self::Spare => "spare segment",
            Self::ManifestFirst => "first frame of the manifest",
            Self::ManifestLast => "last frame of the manifest",
            Self::RunData => "run: data block",
            Self::RunSegments => "run: table of segments",
            Self::RunFilter => "run: filter",
            Self::RunIndex => "run: index",
            Self::RunFooter => "run: footer",
            Self::CheckpointMeta => "checkpoint: state machine",
            Self::Identity => "`identity`",
            Self::Cluster => "`cluster`",
            Self::Ownership => "`ownership`",
            Self::Created => "`log-000.created`",
        }
    }

    /// A whole file whose parts are not told apart, and that no peer can give back: it says who the node is.
    pub fn is_identity(self) -> bool {
        matches!(self, Self::Identity | Self::Cluster | Self::Ownership | Self::Created)
    }
}

/// What is done to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Damage {
    /// All bits of one byte are flipped.
    Flipped,
    /// The block holds zeros.
    Zeroed,
    /// The block holds another block's content.
    Misplaced,
    /// The file ends where the block began; a file of one block in its middle.
    Truncated,
    /// The file is gone.
    Missing,
    /// Reads of the block fail (`EIO`) until it is written.
    Unreadable,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Flipped, Self::Zeroed, Self::Misplaced, Self::Truncated, Self::Missing, Self::Unreadable];

    /// As the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flipped => "flipped byte",
            Self::Zeroed => "zeroed block",
            Self::Misplaced => "another block's content",
            Self::Truncated => "truncated",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable block",
        }
    }
}

/// What is known of the shard that is to be hit.
pub(crate) struct Target {
    pub(crate) shard: u32,
    /// The value of a key that was written once, long ago.
    pub(crate) cold_value: Bytes,
    pub(crate) cold_version: u64,
}

/// One byte of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Spot {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
}

impl Spot {
    /// The file's name without its directory.
    pub(crate) fn file_name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// A place of this kind on this disk, if there is one now.
pub(crate) fn find(disk: &DiskControl, place: Place, target: &Target) -> Option<Spot> {
    let small = |name: &str| {
        let path = PathBuf::from("/data").join(name);
        let length = disk.read(&path)?.len() as u64;
        Some(Spot { path, offset: length.saturating_sub(1).min(24) })
    };
    match place {
        Place::Identity => small("identity"),
        Place::Cluster => small("cluster"),
        Place::Ownership => small("ownership"),
        Place::Created => small("log-000.created"),
        Place::SegmentHeader
        | Place::ReplayBatch
        | Place::LiveValue
        | Place::LastBatch
        | Place::UnsealedBatch
        | Place::Spare
        | Place::ManifestFirst
        | Place::ManifestLast
        | Place::RunData
        | Place::RunSegments
        | Place::RunFilter
        | Place::RunIndex
        | Place::RunFooter
        | Place::CheckpointMeta => Image::of(disk)?.find(place, target),
    }
}

/// Whether the last batch of a log stands there without a seal behind it.
pub(crate) fn has_unsealed_batch(disk: &DiskControl) -> bool {
    Image::of(disk).is_some_and(|image| !image.is_sealed())
}

/// Damages the block of a spot. False if that changes nothing there.
pub(crate) fn damage(disk: &DiskControl, spot: &Spot, damage: Damage) -> bool {
    let before = disk.read(&spot.path).expect("it was just found");
    let block = spot.offset / BLOCK_SIZE as u64;
    match damage {
        Damage::Flipped => disk.flip_byte(&spot.path, spot.offset),
        Damage::Zeroed => disk.zero_block(&spot.path, block),
        Damage::Misplaced => {
            let Some(from) = another_block(disk, spot, &before) else { return false };
            disk.misplace_block((&from.0, from.1), (&spot.path, block));
        }
        Damage::Truncated => {
            let start = block * BLOCK_SIZE as u64;
            let length = if before.len() < BLOCK_SIZE { before.len() as u64 / 2 } else { start };
            disk.truncate(&spot.path, length);
        }
        Damage::Missing => disk.remove(&spot.path),
        Damage::Unreadable => {
            let start = block * BLOCK_SIZE as u64;
            disk.fail_reads_of(&spot.path, start..start + 1, ReadFault::UntilWritten);
            return true;
        }
    }
    disk.read(&spot.path) != Some(before)
}

/// Another block that holds something: of the same file if it has one, else of a file beside it.
fn another_block(disk: &DiskControl, spot: &Spot, content: &[u8]) -> Option<(PathBuf, u64)> {
    let here = (spot.offset / BLOCK_SIZE as u64) as usize;
    let blocks: Vec<&[u8]> = content.chunks(BLOCK_SIZE).collect();
    let is_other =
        |number: &usize| blocks[*number] != blocks[here] && blocks[*number].iter().any(|byte| *byte != 0);
    let below = (0..here).rev();
    if let Some(number) = below.chain(here + 1..blocks.len()).find(is_other) {
        return Some((spot.path.clone(), number as u64));
    }
    let is_beside = |path: &PathBuf| path.parent() == spot.path.parent() && *path != spot.path;
    let holds = |path: &PathBuf| {
        disk.read(path).is_some_and(|other| {
            let first = &other[..other.len().min(BLOCK_SIZE)];
            first.iter().any(|byte| *byte != 0) && first != blocks[here]
        })
    };
    disk.files().into_iter().find(|path| is_beside(path) && holds(path)).map(|path| (path, 0))
}

/// The files of a log as they are, and what the inspector says of them.
struct Image {
    files: BTreeMap<String, Vec<u8>>,
    report: LogReport,
    batches: Vec<Batch>,
}

/// A batch that is not a seal.
struct Batch {
    file: String,
    offset: u64,
    entries: Vec<Entry>,
}

struct Entry {
    shard: u32,
    index: u64,
    offset: u64,
    length: u64,
}

impl Image {
    fn of(disk: &DiskControl) -> Option<Self> {
        let mut files = BTreeMap::new();
        for path in disk.files() {
            if let Ok(name) = path.strip_prefix(LOG) {
                files.insert(name.to_string_lossy().into_owned(), disk.read(&path)?);
            }
        }
        let mut found: Vec<(u64, Batch)> = Vec::new();
        let report = inspect_log(&files, None, &mut |item| {
            match item {
                SegmentItem::Batch(batch) if !batch.is_seal => {
                    let entries = Vec::new();
                    let at = Batch { file: String::new(), offset: u64::from(batch.offset), entries };
                    found.push((batch.segment.0, at));
                }
                SegmentItem::Record(record, _) if record.name == RecordName::Entry => {
                    if let Some((_, batch)) = found.last_mut() {
                        batch.entries.push(Entry {
                            shard: record.shard.0,
                            index: record.index.0,
                            offset: u64::from(record.offset),
                            length: u64::from(record.length),
                        });
                    }
                }
                SegmentItem::Batch(_) | SegmentItem::Record(..) => {}
            }
            Ok(())
        })
        .expect("memory does not fail");
        let name_of = |life: u64| report.segments.iter().find(|segment| segment.segment.0 == life);
        let batches = found
            .into_iter()
            .filter_map(|(life, batch)| Some(Batch { file: name_of(life)?.file.clone(), ..batch }))
            .collect();
        Some(Self { files, report, batches })
    }

    fn find(&self, place: Place, target: &Target) -> Option<Spot> {
        match place {
            Place::SegmentHeader => {
                let used = self.report.segments.iter().filter(|file| file.state == SegmentState::Used);
                self.spot(&used.max_by_key(|segment| segment.segment.0)?.file, 26)
            }
            Place::Spare => {
                let mut segments = self.report.segments.iter();
                self.spot(&segments.find(|file| file.state == SegmentState::Spare)?.file, 26)
            }
            Place::UnsealedBatch if self.is_sealed() => None,
            Place::LastBatch | Place::UnsealedBatch => {
                let batch = self.batches.iter().rfind(|batch| !batch.entries.is_empty())?;
                self.spot(&batch.file, batch.offset + 70)
            }
            Place::ReplayBatch => self.replay_batch(target),
            Place::LiveValue => self.live_value(target),
            Place::ManifestFirst => self.spot(&self.report.manifest.as_ref()?.file, 42),
            Place::ManifestLast => {
                let name = &self.report.manifest.as_ref()?.file;
                let mut last = 0;
                let mut note = |frame: &krita_engine::inspect::FrameInfo| {
                    last = frame.offset;
                    Ok(())
                };
                inspect_manifest(&self.files[name], name, &mut note).expect("memory does not fail");
                self.spot(name, last + 42)
            }
            Place::RunData => self.block(b"KRUN", 1, target),
            Place::RunSegments => self.block(b"KRUN", 3, target),
            Place::RunFilter => self.block(b"KRUN", 4, target),
            Place::RunIndex => self.block(b"KRUN", 5, target),
            Place::RunFooter => self.block(b"KRUN", 6, target),
            Place::CheckpointMeta => self.block(b"KCHK", 2, target),
            Place::Identity | Place::Cluster | Place::Ownership | Place::Created => None,
        }
    }

    fn is_sealed(&self) -> bool {
        self.report.chain.is_none_or(|chain| chain.sealed)
    }

    fn spot(&self, file: &str, offset: u64) -> Option<Spot> {
        Some(Spot { path: PathBuf::from(LOG).join(file), offset })
    }

    fn applied(&self, shard: u32) -> u64 {
        let shards = self.report.manifest.iter().flat_map(|manifest| &manifest.shards);
        shards.filter(|found| found.shard.0 == shard).map(|found| found.applied.0).max().unwrap_or(0)
    }

    /// The first entry of the shard behind its checkpoint that is not in the last batch.
    fn replay_batch(&self, target: &Target) -> Option<Spot> {
        let applied = self.applied(target.shard);
        let (_, before_last) = self.batches.split_last()?;
        before_last.iter().find_map(|batch| {
            let mut entries = batch.entries.iter();
            let entry = entries.find(|entry| entry.shard == target.shard && entry.index > applied)?;
            self.spot(&batch.file, entry.offset + 64 + entry.length / 2)
        })
    }

    /// The newest copy of a value that the checkpoint covers.
    fn live_value(&self, target: &Target) -> Option<Spot> {
        if self.applied(target.shard) < target.cold_version {
            return None;
        }
        let mut used: Vec<_> =
            self.report.segments.iter().filter(|file| file.state == SegmentState::Used).collect();
        used.sort_unstable_by_key(|segment| std::cmp::Reverse(segment.segment.0));
        used.into_iter().find_map(|segment| {
            let content = &self.files[&segment.file];
            let at = memory_find(content, &target.cold_value)?;
            self.spot(&segment.file, (at + target.cold_value.len() / 2) as u64)
        })
    }

    /// The first block of a kind in the newest file of the shard that has one: `magic` stands at 8, the shard at 16,
    /// the kind at 20.
    fn block(&self, magic: &[u8; 4], kind: u32, target: &Target) -> Option<Spot> {
        let word = |block: &[u8], at: usize| {
            block.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
        };
        let prefixes = ["run-", "checkpoint-"].map(|prefix| format!("{prefix}{}-", target.shard));
        let mut names: Vec<(u64, &String)> = self
            .files
            .keys()
            .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .filter_map(|name| Some((name.rsplit('-').next()?.parse().ok()?, name)))
            .collect();
        names.sort_unstable();
        names.into_iter().rev().find_map(|(_, name)| {
            let mut blocks = self.files[name].chunks(BLOCK_SIZE);
            let is_it = |block: &[u8]| {
                block.get(8..12) == Some(magic)
                    && word(block, 16) == Some(target.shard)
                    && word(block, 20) == Some(kind)
            };
            let number = blocks.position(is_it)?;
            self.spot(name, number as u64 * BLOCK_SIZE as u64 + 50)
        })
    }
}

fn memory_find(content: &[u8], wanted: &[u8]) -> Option<usize> {
    // Values start with a name of their own, so that the first bytes tell them apart from almost everything.
    let first = *wanted.first()?;
    let starts = content.iter().enumerate().filter(|(_, byte)| **byte == first).map(|(at, _)| at);
    let mut hits = starts.filter(|at| content[*at..].starts_with(wanted));
    hits.next()
}
