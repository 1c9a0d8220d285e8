//! Opening a log: the manifest, the checkpoints that it names, then the log behind each shard's start of replay.
//!
//! The time that this takes grows with what was written since the checkpoints, not with the data.
//!
//! The rule that everything hangs on. One batch is in flight at a time, so only the last can be torn:
//!
//! - an invalid batch with nothing valid behind it, here or in a later segment, was never acknowledged and is
//!   cut off;
//! - an invalid batch with a valid one behind it, or one that the manifest knows to have been durable, is
//!   corruption, and nothing on disk is touched.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use krita_runtime::{File, Runtime};

use crate::batch::{self, BATCH_HEADER_BYTES, CheckedHeader};
use crate::checkpoint::{self, CheckpointIdentity};
use crate::epochs::Epochs;
use crate::error::{Corruption, OpenError, ReadError};
use crate::format::{BLOCK, CHECKPOINT_PREFIX, MANIFEST_PREFIX, SEGMENT_PREFIX, number_after, padded};
use crate::index::ShardIndex;
use crate::log::Head;
use crate::manifest::{LogIdentity, Manifest, MetaPlace, ShardRecord};
use crate::record::{self, record_bytes};
use crate::replay::Replaying;
use crate::run::{self, RUN_PREFIX, Run, RunCaches, RunIdentity, RunRecord};
use crate::segment::{self, SEGMENT_BODY, SEGMENT_OPEN, SegmentFile, SegmentHeader, Segments};
use crate::shard::Shard;
use crate::types::{Options, Place, SegmentId, ShardId};

/// Bytes that the scan reads at once.
const WINDOW_BYTES: usize = 1 << 20;

/// Runs that are opened at once.
const RUNS_AT_ONCE: usize = 16;

/// What was found.
pub(crate) struct Recovered<R: Runtime> {
    pub(crate) manifest: Manifest<R>,
    pub(crate) segments: Segments<R>,
    pub(crate) head: Head<R>,
    /// Each shard with the manifest's record of it.
    pub(crate) shards: BTreeMap<ShardId, (Shard<R>, ShardRecord)>,
    pub(crate) epochs: Rc<Epochs>,
    pub(crate) run_caches: Rc<RunCaches>,
    pub(crate) next_number: u64,
    /// Files that nothing refers to.
    pub(crate) orphans: Vec<PathBuf>,
}

/// Finds a log, or makes one.
pub(crate) async fn recover<R: Runtime>(runtime: &R, options: &Options) -> Result<Recovered<R>, OpenError> {
    let directory = &options.directory;
    let failed = |error| OpenError::io(directory, error);
    runtime.create_directory(directory).await.map_err(failed)?;
    // The names of directories just made must last as well. Those further up may not be ours to open.
    for ancestor in directory.ancestors().skip(1).filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        match runtime.sync_directory(ancestor).await {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(OpenError::io(ancestor, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let manifest = match Manifest::load(runtime, directory).await? {
        Some(manifest) => manifest,
        None => {
            refuse_foreign(runtime, directory).await?;
            let identity = LogIdentity {
                log: options.log,
                nonce: runtime.random_u64(),
                segment_bytes: options.segment_bytes,
            };
            Manifest::create(runtime, directory, identity).await.map_err(failed)?
        }
    };
    if manifest.identity.log != options.log {
        let what = format!("it holds {}, not {}", manifest.identity.log, options.log);
        return Err(OpenError::Mismatch { path: directory.clone(), what });
    }
    let run_caches = RunCaches::new(options.block_cache_bytes, options.filter_bytes);
    let (nonce, epochs) = (manifest.identity.nonce, Rc::default());
    let recovery = Recovery { runtime, options, nonce, manifest, epochs, run_caches };
    recovery.run().await
}

/// A new log is made in an empty directory only: any other is somebody else's, or a log that lost its manifest.
async fn refuse_foreign<R: Runtime>(runtime: &R, directory: &Path) -> Result<(), OpenError> {
    let names = runtime.list_directory(directory).await.map_err(|error| OpenError::io(directory, error))?;
    let harmless = |name: &PathBuf| {
        // The beginnings of a first manifest, or what a new file system comes with.
        number_after(name, MANIFEST_PREFIX).is_some() || name.file_name().is_some_and(|it| it == "lost+found")
    };
    let is_of_a_log = |name: &&PathBuf| {
        [SEGMENT_PREFIX, CHECKPOINT_PREFIX, RUN_PREFIX].iter().any(|prefix| {
            let name = name.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.starts_with(prefix))
        })
    };
    if let Some(orphan) = names.iter().find(is_of_a_log) {
        let what = format!("no manifest is there, beside {}", orphan.display());
        let file = directory.join(format!("{MANIFEST_PREFIX}1"));
        return Err(OpenError::ManifestLost(Corruption { file, offset: 0, what, sequences: None }));
    }
    match names.into_iter().find(|name| !harmless(name)) {
        Some(name) => {
            let name = name.file_name().unwrap_or(name.as_os_str()).to_string_lossy().into_owned();
            let what = format!("it holds {name} but no manifest of a log: name an empty directory");
            Err(OpenError::Mismatch { path: directory.to_owned(), what })
        }
        None => Ok(()),
    }
}

struct Recovery<'a, R: Runtime> {
    runtime: &'a R,
    options: &'a Options,
    nonce: u64,
    manifest: Manifest<R>,
    epochs: Rc<Epochs>,
    run_caches: Rc<RunCaches>,
}

/// Segment files by what their headers say.
struct Found<R: Runtime> {
    used: BTreeMap<SegmentId, (SegmentFile<R>, SegmentHeader)>,
    spare: VecDeque<SegmentFile<R>>,
    /// Whole files whose header is invalid.
    doubtful: Vec<SegmentFile<R>>,
    orphans: Vec<PathBuf>,
    next_file: u32,
}

/// Where the chain of batches has come to.
struct Chain {
    segment: SegmentId,
    offset: u32,
    /// The next batch's number, and the checksum it must name.
    sequence: u64,
    previous: u64,
}

/// Reads a segment through a window.
struct Window<R: Runtime> {
    file: SegmentFile<R>,
    path: PathBuf,
    bytes: Bytes,
    start: usize,
}

impl<R: Runtime> Window<R> {
    /// `length` bytes at `offset`, fewer at the end of the file.
    async fn get(&mut self, offset: usize, length: usize) -> Result<Bytes, OpenError> {
        if offset < self.start || offset + length > self.start + self.bytes.len() {
            let want = length.max(WINDOW_BYTES);
            let read = self.file.file.read_at(offset as u64, want).await;
            self.bytes = read.map_err(|error| OpenError::io(&self.path, error))?;
            self.start = offset;
        }
        let from = offset - self.start;
        Ok(self.bytes.slice(from..(from + length).min(self.bytes.len())))
    }
}

impl<R: Runtime> Recovery<'_, R> {
    async fn run(self) -> Result<Recovered<R>, OpenError> {
        let mut found = self.find_segments().await?;
        let records = self.manifest.shards();
        self.adopt(&mut found, &records).await?;
        self.check_references(&found, &records)?;
        let mut replaying = self.load_checkpoints(records).await?;
        self.check_room(&found).await?;
        let chain = self.scan(&found, &mut replaying).await?;
        let shards = self.settle(&chain, replaying)?;
        let orphans = self.orphans(&shards, &mut found).await?;
        self.finish(found, chain, shards, orphans).await
    }

    fn path(&self, number: u32) -> PathBuf {
        Segments::<R>::path(&self.options.directory, number)
    }

    fn window(&self, file: &SegmentFile<R>) -> Window<R> {
        let path = self.path(file.number);
        Window { file: file.clone(), path, bytes: Bytes::new(), start: 0 }
    }

    fn damaged(&self, number: u32, offset: usize, what: String, sequences: Option<(u64, u64)>) -> OpenError {
        Corruption { file: self.path(number), offset: offset as u64, what, sequences }.into()
    }

    async fn find_segments(&self) -> Result<Found<R>, OpenError> {
        let directory = &self.options.directory;
        let names = self.runtime.list_directory(directory).await.map_err(|e| OpenError::io(directory, e))?;
        let mut found = Found {
            used: BTreeMap::new(),
            spare: VecDeque::new(),
            doubtful: Vec::new(),
            orphans: Vec::new(),
            next_file: 0,
        };
        for name in names {
            let Some(number) = number_after(&name, SEGMENT_PREFIX).and_then(|n| u32::try_from(n).ok()) else {
                continue;
            };
            found.next_file = found.next_file.max(number + 1);
            self.find_segment(number, &mut found).await?;
        }
        Ok(found)
    }

    async fn find_segment(&self, number: u32, found: &mut Found<R>) -> Result<(), OpenError> {
        let path = self.path(number);
        let failed = |error| OpenError::io(&path, error);
        let file = self.runtime.open(&path, SEGMENT_OPEN).await.map_err(failed)?;
        let length = file.length().await.map_err(failed)?;
        let block = file.read_at(0, BLOCK as usize).await.map_err(failed)?;
        let file = SegmentFile { number, file };
        let header = SegmentHeader::decode(&block, self.nonce);
        let whole = length == u64::from(self.manifest.identity.segment_bytes);
        match header {
            Some(header) if (header.log, header.file) != (self.options.log, number) => {
                let what = format!("the header of file {} of {} is here", header.file, header.log);
                return Err(self.damaged(number, 0, what, None));
            }
            Some(_) if !whole => {
                let what = format!("it is {length} bytes long");
                return Err(self.damaged(number, 0, what, None));
            }
            Some(header) if header.segment == SegmentId(0) => found.spare.push_back(file),
            Some(header) => {
                if found.used.insert(header.segment, (file, header)).is_some() {
                    let what = format!("{} is in two files", header.segment);
                    return Err(self.damaged(number, 0, what, None));
                }
            }
            // A crash while the file was being made, or put to use.
            None if whole => found.doubtful.push(file),
            None => found.orphans.push(path),
        }
        Ok(())
    }

    /// There must be as much room as the reserve, ready segments included.
    async fn check_room(&self, found: &Found<R>) -> Result<(), OpenError> {
        let path = self.options.directory.clone();
        let free = self.runtime.available_bytes(&path).await.map_err(|error| OpenError::io(&path, error))?;
        let ready = found.spare.len() as u64 * u64::from(self.manifest.identity.segment_bytes);
        let (available, needed) = (free.saturating_add(ready), self.options.reserve_bytes);
        if available < needed {
            return Err(OpenError::NoRoom { path, available, needed });
        }
        Ok(())
    }

    /// A segment with a damaged header that no replay needs may hold values still: its first batch tells its life. An
    /// earlier life, if a crash tore the header while the file was put to use, is known to be dead soon enough.
    async fn adopt(
        &self,
        found: &mut Found<R>,
        records: &BTreeMap<ShardId, ShardRecord>,
    ) -> Result<(), OpenError> {
        let starts = records.values().map(|record| record.tail.replay.segment);
        let Some(oldest) = starts.min() else { return Ok(()) };
        for file in std::mem::take(&mut found.doubtful) {
            let head = self.window(&file).get(SEGMENT_BODY as usize, BATCH_HEADER_BYTES).await?;
            let first =
                batch::decode_header(&head, self.nonce).map(|checked| checked.header).filter(|batch| {
                    let here = (batch.log, batch.offset) == (self.options.log, SEGMENT_BODY);
                    here && batch.segment < oldest && !found.used.contains_key(&batch.segment)
                });
            let Some(first) = first else {
                found.doubtful.push(file);
                continue;
            };
            let (file_number, segment) = (file.number, first.segment);
            tracing::warn!(log = %self.options.log, %segment, file_number, "a segment's header is damaged");
            let header = SegmentHeader {
                log: self.options.log,
                file: file.number,
                segment,
                first_sequence: first.sequence,
                previous: first.previous,
            };
            found.used.insert(segment, (file, header));
        }
        Ok(())
    }

    /// Every segment in which a replay starts must be there. Whether those are that slots point into is found out
    /// when they are read: runs may hold slots that newer ones hide, and whose segments were used again.
    fn check_references(
        &self,
        found: &Found<R>,
        records: &BTreeMap<ShardId, ShardRecord>,
    ) -> Result<(), OpenError> {
        for record in records.values() {
            let segment = record.tail.replay.segment;
            if !found.used.contains_key(&segment) {
                let what = format!("{} needs {segment}, which no file holds", record.shard);
                let file = self.options.directory.clone();
                return Err(Corruption { file, offset: 0, what, sequences: None }.into());
            }
        }
        Ok(())
    }

    /// Opens every shard's runs, some at once, and reads the meta data. No slot is read: the time that this takes
    /// grows with the runs' filters and block indexes.
    async fn load_checkpoints(
        &self,
        records: BTreeMap<ShardId, ShardRecord>,
    ) -> Result<BTreeMap<ShardId, Replaying<R>>, OpenError> {
        let all = records.values().flat_map(|record| record.runs.iter().map(|run| (record.shard, *run)));
        let all: Vec<(ShardId, RunRecord)> = all.collect();
        let opening = all.iter().map(|(shard, run)| async move {
            let (log, number, nonce) = (self.options.log, run.number, self.nonce);
            let identity = RunIdentity { log, shard: *shard, number, nonce };
            Run::open(self.runtime, &self.options.directory, identity, *run, &self.run_caches).await
        });
        // All of them come to their end, whatever fails: a read in flight is not dropped.
        let opened: Vec<_> = stream::iter(opening).buffered(RUNS_AT_ONCE).collect().await;
        let mut runs: BTreeMap<ShardId, Vec<Rc<Run<R>>>> = BTreeMap::new();
        for ((shard, _), run) in all.iter().zip(opened) {
            runs.entry(*shard).or_default().push(run.map_err(|error| self.open_error(error))?);
        }
        let mut replaying = BTreeMap::new();
        for (id, record) in records {
            let runs = runs.remove(&id).unwrap_or_default();
            replaying.insert(id, self.load_checkpoint(record, runs).await?);
        }
        Ok(replaying)
    }

    async fn load_checkpoint(
        &self,
        record: ShardRecord,
        runs: Vec<Rc<Run<R>>>,
    ) -> Result<Replaying<R>, OpenError> {
        let meta = match &record.meta {
            MetaPlace::Inline { .. } => record.inline_meta().unwrap_or_default(),
            MetaPlace::File(file) => {
                let (log, shard, number, nonce) = (self.options.log, record.shard, file.number, self.nonce);
                let identity = CheckpointIdentity { log, shard, number, nonce };
                let read = checkpoint::read(self.runtime, &self.options.directory, identity, *file).await;
                read.map_err(|error| self.open_error(error))?
            }
        };
        if (meta.applied, meta.term, meta.generation) != (record.applied, record.term, record.generation) {
            let file = self.options.directory.clone();
            let what = format!("the checkpoint of {} is not the published one", record.shard);
            return Err(Corruption { file, offset: 0, what, sequences: None }.into());
        }
        let index = ShardIndex::new(self.runtime, &self.epochs, runs);
        let mut shard = Shard::new(record.replica, record.tail.hard_state, meta, None, index);
        shard.suspect = record.suspect.clone();
        Ok(Replaying { shard, record, partial: None })
    }

    fn open_error(&self, error: ReadError) -> OpenError {
        match error {
            ReadError::Corruption(corruption) => corruption.into(),
            ReadError::Io { file, what } => OpenError::Io { path: file, source: io::Error::other(what) },
            ReadError::UnknownShard(_)
            | ReadError::Compacted { .. }
            | ReadError::Stale
            | ReadError::Closed => {
                OpenError::io(&self.options.directory, io::Error::other(error.to_string()))
            }
        }
    }

    /// Follows the chain from the first segment that a shard needs to the end of the log.
    async fn scan(
        &self,
        found: &Found<R>,
        shards: &mut BTreeMap<ShardId, Replaying<R>>,
    ) -> Result<Chain, OpenError> {
        let Some(newest) = found.used.keys().next_back().copied() else {
            let chain = Chain { segment: SegmentId(0), offset: 0, sequence: 1, previous: 0 };
            self.no_later_batch(found, &chain).await?;
            return Ok(chain);
        };
        let starts = shards.values().map(|shard| shard.record.tail.replay.segment);
        let oldest = starts.min().unwrap_or(newest);
        let mut chain: Option<Chain> = None;
        for number in oldest.0..=newest.0 {
            let id = SegmentId(number);
            let Some((file, header)) = found.used.get(&id) else {
                let what = format!("{id} is missing, with {newest} behind it");
                let file = self.options.directory.clone();
                return Err(Corruption { file, offset: 0, what, sequences: None }.into());
            };
            if let Some(before) = chain
                && (before.sequence, before.previous) != (header.first_sequence, header.previous)
            {
                let number = found.used[&before.segment].0.number;
                let what = format!("an invalid batch, with {id} behind it");
                let sequences = Some((before.sequence, header.first_sequence.saturating_sub(1)));
                return Err(self.damaged(number, before.offset as usize, what, sequences));
            }
            let mut next = Chain {
                segment: id,
                offset: SEGMENT_BODY,
                sequence: header.first_sequence,
                previous: header.previous,
            };
            self.scan_segment(file, &mut next, shards).await?;
            chain = Some(next);
        }
        let chain = chain.expect("the newest segment is in the range");
        self.no_later_batch(found, &chain).await?;
        Ok(chain)
    }

    async fn scan_segment(
        &self,
        file: &SegmentFile<R>,
        chain: &mut Chain,
        shards: &mut BTreeMap<ShardId, Replaying<R>>,
    ) -> Result<(), OpenError> {
        let mut window = self.window(file);
        while let Some((checked, batch)) = self.next_batch(&mut window, chain).await? {
            self.replay_batch(file.number, &checked, &batch, shards)?;
            chain.offset += padded(batch.len()) as u32;
            chain.sequence += 1;
            chain.previous = checked.checksum;
            self.runtime.pause().await;
        }
        Ok(())
    }

    /// The batch at the end of the chain, if it is there and whole.
    async fn next_batch(
        &self,
        window: &mut Window<R>,
        chain: &Chain,
    ) -> Result<Option<(CheckedHeader, Bytes)>, OpenError> {
        let segment_bytes = self.manifest.identity.segment_bytes;
        if chain.offset >= segment_bytes {
            return Ok(None);
        }
        let head = window.get(chain.offset as usize, BATCH_HEADER_BYTES).await?;
        let Some(checked) = batch::decode_header(&head, self.nonce) else { return Ok(None) };
        let header = checked.header;
        let follows = header.log == self.options.log
            && header.segment == chain.segment
            && header.offset == chain.offset
            && header.sequence == chain.sequence
            && header.previous == chain.previous
            && u64::from(header.offset) + u64::from(header.length) <= u64::from(segment_bytes);
        if !follows {
            return Ok(None);
        }
        let bytes = window.get(chain.offset as usize, header.length as usize).await?;
        let whole = bytes.len() == header.length as usize
            && batch::body_matches(&checked, &bytes[BATCH_HEADER_BYTES..], self.nonce);
        Ok(whole.then_some((checked, bytes)))
    }

    fn replay_batch(
        &self,
        number: u32,
        checked: &CheckedHeader,
        batch: &Bytes,
        shards: &mut BTreeMap<ShardId, Replaying<R>>,
    ) -> Result<(), OpenError> {
        let header = &checked.header;
        let place = Place { sequence: header.sequence, segment: header.segment };
        let mut position = BATCH_HEADER_BYTES;
        let sequences = Some((header.sequence, header.sequence));
        let damaged = |position: usize, what: &str| {
            let offset = header.offset as usize + position;
            self.damaged(number, offset, what.to_owned(), sequences)
        };
        for _ in 0..header.records {
            let decoded = batch.get(position..).and_then(|bytes| record::decode(bytes, self.nonce));
            let Some((record, payload)) = decoded else {
                return Err(damaged(position, "an invalid record in a valid batch"));
            };
            let here = (header.log, header.segment, header.offset as usize + position);
            if (record.log, record.segment, record.offset as usize) != here {
                return Err(damaged(position, "a record of another place"));
            }
            if let Some(shard) = shards.get_mut(&record.shard)
                && place.sequence >= shard.record.tail.replay.sequence
            {
                shard.replay(&record, payload, place).map_err(|what| damaged(position, what))?;
            }
            position += record_bytes(payload.len());
        }
        if position != batch.len() {
            return Err(damaged(position, "bytes behind the last record"));
        }
        Ok(())
    }

    /// The end of the chain is the end of the log only if no later batch exists anywhere.
    async fn no_later_batch(&self, found: &Found<R>, chain: &Chain) -> Result<(), OpenError> {
        if let Some((file, _)) = found.used.get(&chain.segment) {
            // The batch right at the end may be torn with its header whole; none behind it may be there.
            if let Some((_, later)) = self.find_batch(file, chain.offset, chain.sequence + 1).await? {
                let what = format!("an invalid batch, with batch {later} behind it");
                let sequences = Some((chain.sequence, later - 1));
                return Err(self.damaged(file.number, chain.offset as usize, what, sequences));
            }
        }
        for file in &found.doubtful {
            if let Some((offset, later)) = self.find_batch(file, SEGMENT_BODY, chain.sequence).await? {
                let what = format!("an invalid segment header, with batch {later} at byte {offset}");
                return Err(self.damaged(file.number, 0, what, Some((chain.sequence, later))));
            }
        }
        Ok(())
    }

    /// The first batch header from `offset` on that is at its place and has at least number `sequence`.
    async fn find_batch(
        &self,
        file: &SegmentFile<R>,
        offset: u32,
        sequence: u64,
    ) -> Result<Option<(usize, u64)>, OpenError> {
        let mut window = self.window(file);
        let end = self.manifest.identity.segment_bytes as usize;
        for position in (offset as usize..end).step_by(BLOCK as usize) {
            let head = window.get(position, BATCH_HEADER_BYTES).await?;
            let later = batch::decode_header(&head, self.nonce).filter(|checked| {
                checked.header.log == self.options.log
                    && checked.header.offset as usize == position
                    && checked.header.sequence >= sequence
            });
            if let Some(later) = later {
                return Ok(Some((position, later.header.sequence)));
            }
            if position.is_multiple_of(WINDOW_BYTES) {
                self.runtime.pause().await;
            }
        }
        Ok(None)
    }

    /// Checks each shard against what the manifest knows, and clamps what may run ahead.
    fn settle(
        &self,
        chain: &Chain,
        replaying: BTreeMap<ShardId, Replaying<R>>,
    ) -> Result<BTreeMap<ShardId, (Shard<R>, ShardRecord)>, OpenError> {
        let mut shards = BTreeMap::new();
        for (id, Replaying { mut shard, record, .. }) in replaying {
            let file = self.options.directory.clone();
            if record.tail.hard_state_sequence >= chain.sequence {
                let what = format!("the log ends before batch {}", record.tail.hard_state_sequence);
                let sequences = Some((chain.sequence, record.tail.hard_state_sequence));
                return Err(Corruption { file, offset: 0, what, sequences }.into());
            }
            if shard.gap {
                let what = format!("{id}: entries behind {} are missing", shard.last());
                return Err(Corruption { file, offset: 0, what, sequences: None }.into());
            }
            let commit = shard.hard_state.commit.max(shard.checkpoint.applied);
            shard.hard_state.commit = commit.min(shard.last());
            shard.last_queued = shard.last();
            shards.insert(id, (shard, record));
        }
        Ok(shards)
    }

    async fn orphans(
        &self,
        shards: &BTreeMap<ShardId, (Shard<R>, ShardRecord)>,
        found: &mut Found<R>,
    ) -> Result<Vec<PathBuf>, OpenError> {
        let directory = &self.options.directory;
        let names = self.runtime.list_directory(directory).await.map_err(|e| OpenError::io(directory, e))?;
        let mut orphans = std::mem::take(&mut found.orphans);
        for name in names {
            let record = |shard| shards.get(&shard).map(|(_, record)| record);
            let current = if let Some((shard, number)) = checkpoint::parse_name(&name) {
                record(shard).is_some_and(|record| match record.meta {
                    MetaPlace::File(file) => file.number == number,
                    MetaPlace::Inline { .. } => false,
                })
            } else if let Some((shard, number)) = run::parse_name(&name) {
                record(shard).is_some_and(|record| record.runs.iter().any(|run| run.number == number))
            } else {
                continue;
            };
            if !current {
                orphans.extend(name.file_name().map(|name| directory.join(name)));
            }
        }
        Ok(orphans)
    }

    /// From here on the disk may be changed.
    async fn finish(
        self,
        found: Found<R>,
        chain: Chain,
        shards: BTreeMap<ShardId, (Shard<R>, ShardRecord)>,
        orphans: Vec<PathBuf>,
    ) -> Result<Recovered<R>, OpenError> {
        let directory = &self.options.directory;
        let failed = |error| OpenError::io(directory, error);
        // After a kill the tail may be in the device's cache only. It is acted upon from now on.
        self.manifest.sync().await.map_err(failed)?;
        for (file, _) in found.used.values().rev().take(2) {
            file.file.sync_data().await.map_err(failed)?;
        }
        let mut spare = found.spare;
        spare.extend(found.doubtful);
        let mut segments = Segments {
            used: found.used.into_iter().map(|(id, (file, _))| (id, file)).collect(),
            spare,
            next_file: found.next_file.max(1),
        };
        let head = match segments.used.get(&chain.segment) {
            Some(file) => Head {
                segment: chain.segment,
                file: file.clone(),
                offset: chain.offset,
                sequence: chain.sequence,
                previous: chain.previous,
                sealed: false,
            },
            None => self.first_segment(&mut segments).await.map_err(failed)?,
        };
        let used_numbers = shards.values().flat_map(|(_, record)| {
            let meta = match record.meta {
                MetaPlace::File(file) => file.number,
                MetaPlace::Inline { .. } => 0,
            };
            record.runs.iter().map(|run| run.number).chain([meta])
        });
        let name = |path: &PathBuf| checkpoint::parse_name(path).or_else(|| run::parse_name(path));
        let orphan_numbers = orphans.iter().filter_map(name).map(|(_, number)| number);
        let next_number = used_numbers.chain(orphan_numbers).max().unwrap_or(0) + 1;
        let (manifest, epochs, run_caches) = (self.manifest, self.epochs, self.run_caches);
        Ok(Recovered { manifest, segments, head, shards, epochs, run_caches, next_number, orphans })
    }

    /// Puts the very first segment to use.
    async fn first_segment(&self, segments: &mut Segments<R>) -> io::Result<Head<R>> {
        let directory = &self.options.directory;
        let mut header = SegmentHeader {
            log: self.options.log,
            file: segments.next_file,
            segment: SegmentId(0),
            first_sequence: 0,
            previous: 0,
        };
        let file = match segments.spare.pop_front() {
            Some(file) => file,
            None => {
                segments.next_file += 1;
                let length = self.manifest.identity.segment_bytes;
                segment::make(self.runtime, directory, length, header, self.nonce).await?
            }
        };
        header = SegmentHeader { file: file.number, segment: SegmentId(1), first_sequence: 1, ..header };
        let mut block = file.file.buffer(BLOCK as usize);
        header.encode(&mut block, self.nonce);
        file.file.write_at(block, 0).await?;
        segments.used.insert(SegmentId(1), file.clone());
        let offset = SEGMENT_BODY;
        Ok(Head { segment: SegmentId(1), file, offset, sequence: 1, previous: 0, sealed: true })
    }
}
