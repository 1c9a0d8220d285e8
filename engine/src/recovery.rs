//! Opening a log: the manifest, the checkpoints that it names, then the log behind each shard's start of replay.
//!
//! The time that this takes grows with what was written since the checkpoints, not with the data.
//!
//! Nothing on disk is touched until all was read and judged. What is damaged makes the shards suspect that it hits, and
//! no others (`salvage`); only a log whose manifest is lost, or that is somebody else's, is refused.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use futures_util::stream::{self, StreamExt};
use krita_runtime::{File, Runtime};

use crate::chain::{End, Expected, Met, UsedSegment, Walker};
use crate::checkpoint::{self, CheckpointIdentity};
use crate::epochs::Epochs;
use crate::error::{Corruption, OpenError, ReadError};
use crate::format::{BLOCK, CHECKPOINT_PREFIX, MANIFEST_PREFIX, SEGMENT_PREFIX, number_after};
use crate::index::ShardIndex;
use crate::log::Head;
use crate::manifest::{LogIdentity, Manifest, MetaPlace, ShardRecord};
use crate::replay::Replaying;
use crate::run::{self, RUN_PREFIX, Run, RunCaches, RunIdentity, RunRecord};
use crate::salvage::{Judged, judge, write_header};
use crate::segment::{SEGMENT_OPEN, SegmentFile, SegmentHeader, Segments};
use crate::shard::Shard;
use crate::types::{CheckpointMeta, Options, Place, SegmentId, ShardId};

/// A shard's runs, newest first; or what is wrong with one of them.
type Opened<R> = Result<Vec<Rc<Run<R>>>, Corruption>;

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
    let newest_known = SegmentId(0);
    let recovery = Recovery { runtime, options, nonce, manifest, epochs, run_caches, newest_known };
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

/// A log being opened.
pub(crate) struct Recovery<'a, R: Runtime> {
    pub(crate) runtime: &'a R,
    pub(crate) options: &'a Options,
    pub(crate) nonce: u64,
    pub(crate) manifest: Manifest<R>,
    epochs: Rc<Epochs>,
    run_caches: Rc<RunCaches>,
    /// Segments that something durable points into are at most this new.
    newest_known: SegmentId,
}

/// Segment files by what they hold.
struct Found<R: Runtime> {
    used: BTreeMap<SegmentId, UsedSegment<R>>,
    spare: VecDeque<SegmentFile<R>>,
    /// Files whose header is invalid, and their lengths.
    doubtful: Vec<(SegmentFile<R>, u64)>,
    /// Files in use that are too short.
    short: Vec<SegmentFile<R>>,
    /// Valid headers to be written where an invalid one is.
    headers: Vec<(SegmentFile<R>, SegmentHeader)>,
    orphans: Vec<PathBuf>,
    next_file: u32,
}

impl<R: Runtime> Recovery<'_, R> {
    async fn run(mut self) -> Result<Recovered<R>, OpenError> {
        let mut found = self.find_segments().await?;
        self.identify(&mut found).await?;
        let mut replaying = self.load_checkpoints(self.manifest.shards()).await?;
        self.check_room(&found).await?;
        self.newest_known = self.newest_referred(&replaying);
        let end = self.scan(&found, &mut replaying).await?;
        let judged: Vec<Judged<R>> = replaying.into_values().map(judge).collect();
        let orphans = self.orphans(&judged, &mut found).await?;
        self.finish(found, end, judged, orphans).await
    }

    /// Segments that something durable points into are at most this new.
    pub(crate) fn newest_known(&self) -> SegmentId {
        self.newest_known
    }

    fn walker(&self) -> Walker<'_, R> {
        Walker {
            runtime: self.runtime,
            directory: &self.options.directory,
            log: self.options.log,
            nonce: self.nonce,
            segment_bytes: self.manifest.identity.segment_bytes,
        }
    }

    async fn find_segments(&self) -> Result<Found<R>, OpenError> {
        let directory = &self.options.directory;
        let names = self.runtime.list_directory(directory).await.map_err(|e| OpenError::io(directory, e))?;
        let mut found = Found {
            used: BTreeMap::new(),
            spare: VecDeque::new(),
            doubtful: Vec::new(),
            short: Vec::new(),
            headers: Vec::new(),
            orphans: Vec::new(),
            next_file: 1,
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
        let path = Segments::<R>::path(&self.options.directory, number);
        let failed = |error| OpenError::io(&path, error);
        let file = self.runtime.open(&path, SEGMENT_OPEN).await.map_err(failed)?;
        let length = file.length().await.map_err(failed)?;
        // What cannot be read is damaged.
        let block = file.read_at(0, BLOCK as usize).await.unwrap_or_default();
        let file = SegmentFile { number, file };
        if let Some(version) = SegmentHeader::other_version(&block, self.nonce) {
            let what = OpenError::other_version(version);
            return Err(OpenError::Mismatch { path, what });
        }
        let whole = length >= u64::from(self.manifest.identity.segment_bytes);
        // A header that names another file, or a life that another file has, was meant for another place.
        let header = SegmentHeader::decode(&block, self.nonce).filter(|header| {
            (header.log, header.file) == (self.options.log, number)
                && !found.used.contains_key(&header.segment)
        });
        let Some(header) = header else {
            found.doubtful.push((file, length));
            return Ok(());
        };
        if header.segment == SegmentId(0) || self.manifest.is_gone(header.segment) {
            if whole {
                found.spare.push_back(file);
            } else {
                found.orphans.push(path);
            }
            return Ok(());
        }
        if !whole {
            tracing::error!(path = %path.display(), length, segment = %header.segment, "a segment was cut short");
            found.short.push(file.clone());
        }
        found.used.insert(header.segment, UsedSegment { file, header: Some(header), length });
        Ok(())
    }

    /// Finds out what the files with invalid headers are: segments in use, or such that a crash left while they were
    /// made or put to use.
    async fn identify(&self, found: &mut Found<R>) -> Result<(), OpenError> {
        let lives = self.manifest.lives();
        let mut unknown = Vec::new();
        let is_whole = |length| length >= u64::from(self.manifest.identity.segment_bytes);
        for (file, length) in std::mem::take(&mut found.doubtful) {
            let identified = self.walker().identify(&file).await?;
            match identified {
                Some((segment, header))
                    if !self.manifest.is_gone(segment) && !found.used.contains_key(&segment) =>
                {
                    tracing::error!(log = %self.options.log, file = file.number, %segment, "a damaged segment header");
                    found.headers.extend(header.map(|header| (file.clone(), header)));
                    if !is_whole(length) {
                        found.short.push(file.clone());
                    }
                    found.used.insert(segment, UsedSegment { file, header, length });
                }
                Some(_) | None => unknown.push((file, is_whole(length))),
            }
        }
        let missing: Vec<SegmentId> =
            lives.into_iter().filter(|life| !found.used.contains_key(life)).collect();
        for segment in &missing {
            tracing::error!(log = %self.options.log, %segment, "no file holds a segment that is in use");
        }
        for (file, whole) in unknown {
            match (missing.is_empty(), whole) {
                (true, true) => found.spare.push_back(file),
                (true, false) => {
                    found.orphans.push(Segments::<R>::path(&self.options.directory, file.number));
                }
                // It may be what is missing: it stays aside.
                (false, true | false) => {}
            }
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

    /// Opens every shard's runs, some at once, and reads the meta data. No slot is read: the time that this takes
    /// grows with the runs' filters and block indexes.
    async fn load_checkpoints(
        &self,
        records: BTreeMap<ShardId, ShardRecord>,
    ) -> Result<BTreeMap<ShardId, Replaying<R>>, OpenError> {
        let sound = records.values().filter(|record| !record.damaged);
        let all = sound.flat_map(|record| record.runs.iter().map(|run| (record.shard, *run)));
        let all: Vec<(ShardId, RunRecord)> = all.collect();
        let opening = all.iter().map(|(shard, run)| async move {
            let (log, number, nonce) = (self.options.log, run.number, self.nonce);
            let identity = RunIdentity { log, shard: *shard, number, nonce };
            Run::open(self.runtime, &self.options.directory, identity, *run, &self.run_caches).await
        });
        // All of them come to their end, whatever fails: a read in flight is not dropped.
        let opened: Vec<_> = stream::iter(opening).buffered(RUNS_AT_ONCE).collect().await;
        let mut runs: BTreeMap<ShardId, Opened<R>> = BTreeMap::new();
        for ((shard, _), run) in all.iter().zip(opened) {
            let run = self.damage(run)?;
            let of_shard = runs.entry(*shard).or_insert_with(|| Ok(Vec::new()));
            match (of_shard.as_mut(), run) {
                (Ok(runs), Ok(run)) => runs.push(run),
                (Ok(_), Err(corruption)) => *of_shard = Err(corruption),
                (Err(_), _) => {}
            }
        }
        let mut replaying = BTreeMap::new();
        for (id, record) in records {
            let runs = runs.remove(&id).unwrap_or_else(|| Ok(Vec::new()));
            replaying.insert(id, self.load_checkpoint(record, runs).await?);
        }
        Ok(replaying)
    }

    async fn load_checkpoint(&self, record: ShardRecord, runs: Opened<R>) -> Result<Replaying<R>, OpenError> {
        let directory = &self.options.directory;
        let meta = match &record.meta {
            MetaPlace::Inline { .. } => Ok(record.inline_meta().unwrap_or_default()),
            MetaPlace::File(file) => {
                let (log, shard, number, nonce) = (self.options.log, record.shard, file.number, self.nonce);
                let identity = CheckpointIdentity { log, shard, number, nonce };
                self.damage(checkpoint::read(self.runtime, directory, identity, *file).await)?
            }
        };
        let known = (record.applied, record.term, record.generation);
        let corruption =
            |what: String| Corruption { file: directory.clone(), offset: 0, what, sequences: None };
        let meta = meta.and_then(|meta| {
            let right = (meta.applied, meta.term, meta.generation) == known;
            let what = || corruption(format!("the checkpoint of {} is not the published one", record.shard));
            if right { Ok(meta) } else { Err(what()) }
        });
        let mut damaged = record.damaged.then(|| {
            let since = record.suspect.as_deref().unwrap_or_default();
            corruption(format!("{} was found damaged: {since}", record.shard))
        });
        let (runs, meta) = match (runs, meta) {
            (Ok(runs), Ok(meta)) => (runs, meta),
            (Err(found), meta) => {
                damaged.get_or_insert(found);
                (Vec::new(), meta.unwrap_or_else(|_| known_meta(&record)))
            }
            (Ok(_), Err(found)) => {
                damaged.get_or_insert(found);
                (Vec::new(), known_meta(&record))
            }
        };
        let index = ShardIndex::new(self.runtime, &self.epochs, runs);
        let mut shard = Shard::new(record.replica, record.tail.hard_state, meta, None, index);
        shard.suspect.clone_from(&record.suspect);
        shard.settled = record.tail.settled;
        shard.damaged = damaged;
        Ok(Replaying::new(shard, record))
    }

    /// Tells damage, which hits one shard, from a machine that refuses.
    fn damage<T>(&self, read: Result<T, ReadError>) -> Result<Result<T, Corruption>, OpenError> {
        match read {
            Ok(read) => Ok(Ok(read)),
            Err(ReadError::Corruption(corruption)) => Ok(Err(corruption)),
            Err(ReadError::Io { file, what }) => {
                Err(OpenError::Io { path: file, source: io::Error::other(what) })
            }
            Err(
                error @ (ReadError::UnknownShard(_)
                | ReadError::Compacted { .. }
                | ReadError::Stale
                | ReadError::Closed),
            ) => Err(OpenError::io(&self.options.directory, io::Error::other(error.to_string()))),
        }
    }

    fn newest_referred(&self, shards: &BTreeMap<ShardId, Replaying<R>>) -> SegmentId {
        let replays = shards.values().map(|shard| shard.record.tail.replay.segment);
        let runs = shards.values().flat_map(|shard| shard.shard.index.runs());
        let slots = runs.filter_map(|run| run.segments().last_key_value().map(|(segment, _)| *segment));
        replays.chain(slots).chain(self.manifest.lives()).max().unwrap_or_default()
    }

    /// Follows the chain from the first segment that a shard needs to the end of the log.
    async fn scan(
        &self,
        found: &Found<R>,
        shards: &mut BTreeMap<ShardId, Replaying<R>>,
    ) -> Result<End, OpenError> {
        let tails = || shards.values().map(|shard| shard.record.tail);
        let newest = found.used.keys().next_back().copied().unwrap_or_default();
        let oldest = tails().map(|tail| tail.replay.segment).min().unwrap_or(newest);
        let durable =
            tails().map(|tail| tail.hard_state_sequence.max(tail.replay.sequence.saturating_sub(1)));
        let expected = Expected { oldest, newest: self.newest_known, sequence: durable.max().unwrap_or(0) };
        let mut visit = |met: Met<'_>| match met {
            Met::Gap(gap) => {
                tracing::error!(log = %self.options.log, corruption = %gap.corruption, "a part of the log is missing");
                shards.values_mut().for_each(|shard| shard.meet(gap));
            }
            Met::Batch(checked, records) => {
                let place = Place { sequence: checked.header.sequence, segment: checked.header.segment };
                for (record, payload) in records {
                    if let Some(shard) = shards.get_mut(&record.shard) {
                        shard.replay(record, payload, place);
                    }
                }
            }
        };
        self.walker().walk(&found.used, expected, &mut visit).await
    }

    async fn orphans(&self, shards: &[Judged<R>], found: &mut Found<R>) -> Result<Vec<PathBuf>, OpenError> {
        let directory = &self.options.directory;
        let names = self.runtime.list_directory(directory).await.map_err(|e| OpenError::io(directory, e))?;
        let mut orphans = std::mem::take(&mut found.orphans);
        for name in names {
            let judged = |shard| shards.iter().find(|judged| judged.record.shard == shard);
            let record = |shard| judged(shard).map(|judged| &judged.record);
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
        end: End,
        mut judged: Vec<Judged<R>>,
        orphans: Vec<PathBuf>,
    ) -> Result<Recovered<R>, OpenError> {
        let directory = &self.options.directory;
        let failed = |error| OpenError::io(directory, error);
        // After a kill the tail may be in the device's cache only. It is acted upon from now on.
        self.manifest.sync().await.map_err(failed)?;
        for segment in found.used.values().rev().take(2) {
            segment.file.file.sync_data().await.map_err(failed)?;
        }
        for file in &found.short {
            self.lengthen(file).await.map_err(failed)?;
        }
        for (file, header) in &found.headers {
            write_header(file, header, self.nonce).await.map_err(failed)?;
        }
        let mut segments = Segments {
            used: found.used.into_iter().map(|(id, segment)| (id, segment.file)).collect(),
            spare: found.spare,
            next_file: found.next_file,
        };
        let chain = end.chain;
        let head = match self.salvage(&mut segments, &end, &mut judged).await.map_err(failed)? {
            Some(head) => head,
            None => match segments.used.get(&chain.segment) {
                Some(file) => Head {
                    segment: chain.segment,
                    file: file.clone(),
                    offset: chain.offset,
                    sequence: chain.sequence,
                    previous: chain.previous,
                    sealed: false,
                },
                None => self.begin_life(&mut segments, SegmentId(1), 1, 0).await.map_err(failed)?,
            },
        };
        let shards: BTreeMap<_, _> =
            judged.into_iter().map(|judged| (judged.record.shard, (judged.shard, judged.record))).collect();
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
}

/// What the manifest alone knows of a checkpoint.
fn known_meta(record: &ShardRecord) -> CheckpointMeta {
    let (applied, term, generation) = (record.applied, record.term, record.generation);
    record.inline_meta().unwrap_or(CheckpointMeta { applied, term, generation, ..CheckpointMeta::default() })
}
