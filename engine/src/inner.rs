//! What all parts of one open store share, and the care for segments: which are dead, which are spare.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use krita_runtime::{Notify, Runtime, TaskClass};

use crate::cache::ValueCache;
use crate::checkpoint::CheckpointIdentity;
use crate::epochs::Epochs;
use crate::error::LogError;
use crate::gate::Gate;
use crate::health::Damages;
use crate::log::Log;
use crate::manifest::{CheckpointFileRecord, Manifest, ManifestChange, ReplayRecord};
use crate::segment::{self, Pins, SegmentHeader, Segments};
use crate::shard::{CheckpointFile, Shard};
use crate::types::{Headroom, Options, Place, SegmentId, ShardId, Statistics};

/// One open store. Belongs to one core.
pub(crate) struct Inner<R: Runtime> {
    pub(crate) runtime: R,
    pub(crate) options: Options,
    pub(crate) shards: RefCell<BTreeMap<ShardId, Shard>>,
    /// One checkpoint, installation or removal per shard at a time.
    pub(crate) gates: RefCell<BTreeMap<ShardId, Rc<Gate>>>,
    pub(crate) log: RefCell<Log<R>>,
    pub(crate) log_wake: Notify,
    pub(crate) manifest: Manifest<R>,
    pub(crate) segments: RefCell<Segments<R>>,
    /// Making a segment.
    pub(crate) making: Rc<Gate>,
    pub(crate) maintenance_wake: Notify,
    pub(crate) pins: Pins,
    /// Who looks at an index, and since when.
    pub(crate) epochs: Rc<Epochs>,
    /// Installers with entries on disk: the log from there on must stay whole.
    pub(crate) floors: RefCell<BTreeMap<u64, SegmentId>>,
    pub(crate) cache: RefCell<ValueCache>,
    poison: RefCell<Option<String>>,
    /// The number for the next checkpoint file or floor.
    pub(crate) next_number: Cell<u64>,
    pub(crate) statistics: RefCell<Statistics>,
    /// Damage that nobody has taken yet.
    pub(crate) damages: Damages,
    /// Bytes free on the file system when that was last asked.
    pub(crate) available: Cell<u64>,
    /// The last handle is gone.
    pub(crate) closed: Cell<bool>,
    /// Tasks that may still change files of this log; told when one ends.
    tasks: Cell<u32>,
    task_ended: Notify,
}

/// The parts that recovery hands over.
pub(crate) struct Parts<R: Runtime> {
    pub(crate) shards: BTreeMap<ShardId, Shard>,
    pub(crate) log: Log<R>,
    pub(crate) manifest: Manifest<R>,
    pub(crate) segments: Segments<R>,
    pub(crate) pins: Pins,
    pub(crate) next_number: u64,
}

impl<R: Runtime> Inner<R> {
    pub(crate) fn new(runtime: R, options: Options, parts: Parts<R>) -> Rc<Self> {
        let cache = RefCell::new(ValueCache::new(options.value_cache_bytes));
        Rc::new(Self {
            runtime,
            options,
            shards: RefCell::new(parts.shards),
            gates: RefCell::default(),
            log: RefCell::new(parts.log),
            log_wake: Notify::new(),
            manifest: parts.manifest,
            segments: RefCell::new(parts.segments),
            making: Rc::new(Gate::default()),
            maintenance_wake: Notify::new(),
            pins: parts.pins,
            epochs: Rc::default(),
            floors: RefCell::default(),
            cache,
            poison: RefCell::new(None),
            next_number: Cell::new(parts.next_number),
            statistics: RefCell::default(),
            damages: Damages::default(),
            available: Cell::new(u64::MAX),
            closed: Cell::new(false),
            tasks: Cell::new(0),
            task_ended: Notify::new(),
        })
    }

    /// Starts a task that [`Inner::ended`] waits for.
    pub(crate) fn spawn(
        self: &Rc<Self>,
        class: TaskClass,
        name: &'static str,
        task: impl Future<Output = ()> + 'static,
    ) {
        self.tasks.set(self.tasks.get() + 1);
        let inner = self.clone();
        self.runtime.spawn(class, name, async move {
            task.await;
            inner.tasks.set(inner.tasks.get() - 1);
            inner.task_ended.notify();
        });
    }

    /// Waits until no task changes this log's files any more. They end once the last handle is gone.
    pub(crate) async fn ended(&self) {
        while self.tasks.get() > 0 {
            self.task_ended.notified().await;
        }
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.manifest.identity.nonce
    }

    pub(crate) fn segment_bytes(&self) -> u32 {
        self.manifest.identity.segment_bytes
    }

    pub(crate) fn take_number(&self) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        number
    }

    pub(crate) fn gate(&self, shard: ShardId) -> Rc<Gate> {
        self.gates.borrow_mut().entry(shard).or_default().clone()
    }

    pub(crate) fn checkpoint_identity(&self, shard: ShardId, number: u64) -> CheckpointIdentity {
        CheckpointIdentity { log: self.options.log, shard, number, nonce: self.nonce() }
    }

    /// Marks the log as failed, for ever, and gives the error to answer with.
    pub(crate) fn poison(&self, reason: String) -> LogError {
        let mut poison = self.poison.borrow_mut();
        if poison.is_none() {
            tracing::error!(log = %self.options.log, reason, "the log is poisoned");
        }
        let reason = poison.get_or_insert(reason).clone();
        drop(poison);
        self.log_wake.notify();
        LogError::Poisoned(reason)
    }

    pub(crate) fn poisoned(&self) -> Option<String> {
        self.poison.borrow().clone()
    }

    pub(crate) fn check_poison(&self) -> Result<(), LogError> {
        self.poisoned().map_or(Ok(()), |reason| Err(LogError::Poisoned(reason)))
    }

    /// The queue was dropped: what is durable is what will be.
    pub(crate) fn forget_queued(&self) {
        for shard in self.shards.borrow_mut().values_mut() {
            shard.last_queued = shard.last();
        }
    }

    /// Where the log takes over from a manifest frame that is written now.
    pub(crate) fn tail_now(&self, id: ShardId, shard: &Shard) -> ReplayRecord {
        let next = self.next_place();
        let needed = [shard.first_needed(), self.log.borrow().unfinished(id)].into_iter().flatten();
        ReplayRecord {
            hard_state: shard.hard_state,
            hard_state_sequence: next.sequence - 1,
            replay: needed.fold(next, Place::min),
        }
    }

    /// Where the next batch will be: nothing that is durable now lies there.
    pub(crate) fn next_place(&self) -> Place {
        let log = self.log.borrow();
        Place { sequence: log.durable_sequence() + 1, segment: log.head.segment }
    }

    /// Appends a frame to the manifest. `changes` is asked once it is this frame's turn. A failure poisons
    /// the log: what the manifest says after a restart is unknown.
    pub(crate) async fn publish(
        &self,
        changes: impl FnOnce() -> Vec<ManifestChange>,
    ) -> Result<(), LogError> {
        let appender = self.manifest.appender().await;
        self.check_poison()?;
        let changes = changes();
        if changes.is_empty() {
            return Ok(());
        }
        if let Err(error) = appender.append(&self.runtime, changes).await {
            return Err(self.poison(format!("writing the manifest: {error}")));
        }
        self.statistics.borrow_mut().manifest_frames += 1;
        Ok(())
    }

    /// A handle on a checkpoint file that is, or is about to be, the shard's.
    pub(crate) fn checkpoint_file(
        self: &Rc<Self>,
        shard: ShardId,
        record: CheckpointFileRecord,
    ) -> Rc<CheckpointFile> {
        let pin = self.pins.pin(record.segments.iter().copied());
        let inner = Rc::downgrade(self);
        let remove = Box::new(move |number| {
            let Some(inner) = inner.upgrade() else { return };
            let task = inner.clone();
            inner.spawn(TaskClass::Background, "checkpoint removal", async move {
                let path = task.checkpoint_identity(shard, number).path(&task.options.directory);
                // An orphan that stays is removed when the store is opened next.
                if let Err(error) = task.runtime.remove_file(&path).await {
                    tracing::warn!(path = %path.display(), %error, "an old checkpoint stays for now");
                }
            });
            inner.maintenance_wake.notify();
        });
        Rc::new(CheckpointFile { record, _pin: pin, retired: Cell::new(false), remove })
    }

    /// A segment for the writer: a spare one, a dead one, or a new one.
    pub(crate) async fn take_spare(self: &Rc<Self>) -> Result<segment::SegmentFile<R>, LogError> {
        loop {
            self.check_poison()?;
            if let Some(spare) = self.segments.borrow_mut().spare.pop_front() {
                return Ok(spare);
            }
            self.advance().await?;
            self.reclaim();
            if self.segments.borrow().spare.is_empty() {
                self.make_spare(1).await?;
            }
        }
    }

    /// See `Store::headroom`.
    pub(crate) fn headroom(&self) -> Headroom {
        let segment = u64::from(self.segment_bytes());
        let spare = self.segments.borrow().spare.len() as u64 * segment;
        let room = self.available.get().saturating_sub(self.options.reserve_bytes) + spare;
        match room / segment {
            0 => Headroom::Full,
            1..=3 => Headroom::Low,
            _ => Headroom::Ample,
        }
    }

    /// Makes one segment, unless there are `enough` by now.
    async fn make_spare(self: &Rc<Self>, enough: usize) -> Result<(), LogError> {
        let _pass = self.making.enter().await;
        if self.segments.borrow().spare.len() >= enough {
            return Ok(());
        }
        let (directory, length) = (&self.options.directory, self.segment_bytes());
        let available = self.runtime.available_bytes(directory).await;
        let available = available.map_err(|error| LogError::Io(error.to_string()))?;
        self.available.set(available);
        if available < u64::from(length) + self.options.reserve_bytes {
            return Err(LogError::DiskFull(format!("{available} bytes left in {}", directory.display())));
        }
        let file = {
            let mut segments = self.segments.borrow_mut();
            segments.next_file += 1;
            segments.next_file - 1
        };
        let header = SegmentHeader {
            log: self.options.log,
            file,
            segment: SegmentId(0),
            first_sequence: 0,
            previous: 0,
        };
        match segment::make(&self.runtime, directory, length, header, self.nonce()).await {
            Ok(spare) => {
                self.segments.borrow_mut().spare.push_back(spare);
                Ok(())
            }
            Err(error) => {
                // Without this the next opening removes it.
                let _ = self.runtime.remove_file(&Segments::<R>::path(directory, file)).await;
                Err(match error.kind() {
                    io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge => LogError::DiskFull(error.to_string()),
                    _ => LogError::Io(format!("making a segment: {error}")),
                })
            }
        }
    }

    /// Moves the start of replay forward for every shard whose recorded start holds back a whole segment for
    /// nothing: its hard state is carried over, and the records that it needs are later.
    async fn advance(&self) -> Result<(), LogError> {
        self.publish(|| {
            let shards = self.shards.borrow();
            let tails = shards.iter().filter_map(|(id, shard)| {
                let recorded = self.manifest.tail(*id)?;
                let now = self.tail_now(*id, shard);
                let gains = now.replay.segment > recorded.replay.segment && !shard.closing;
                gains.then_some(ManifestChange::Advance(*id, now))
            });
            tails.collect()
        })
        .await
    }

    /// Turns dead segments into spare ones. A segment is dead when every shard's replay starts behind it, no
    /// index, checkpoint, snapshot, installation or read points into it, and it is not being written.
    pub(crate) fn reclaim(&self) {
        let log = self.log.borrow();
        let mut oldest = log.head.segment;
        oldest = self.manifest.oldest_needed().map_or(oldest, |needed| needed.min(oldest));
        oldest = self.floors.borrow().values().copied().fold(oldest, SegmentId::min);
        let unfinished = log.unfinished_segments();
        let mut shards = self.shards.borrow_mut();
        let live: BTreeSet<SegmentId> = shards.values().flat_map(|shard| shard.index.segments()).collect();
        let mut segments = self.segments.borrow_mut();
        let dead: Vec<SegmentId> = segments
            .used
            .range(..oldest)
            .map(|(segment, _)| *segment)
            .filter(|segment| {
                !live.contains(segment) && !self.pins.is_pinned(*segment) && !unfinished.contains(segment)
            })
            .collect();
        for segment in dead {
            for shard in shards.values_mut() {
                shard.forget_segment(segment);
            }
            let file = segments.used.remove(&segment).expect("it was just listed");
            segments.spare.push_back(file);
            self.statistics.borrow_mut().segments_recycled += 1;
        }
    }
}

/// Keeps segments ready ahead of the writer. Runs until the store is closed.
pub(crate) async fn maintain<R: Runtime>(inner: Rc<Inner<R>>) {
    loop {
        if inner.closed.get() {
            return;
        }
        let head = inner.log.borrow().head.segment;
        if inner.poisoned().is_none() && inner.manifest.oldest_needed().is_some_and(|oldest| oldest < head) {
            // A failure has poisoned the log, which is said elsewhere.
            let _ = inner.advance().await;
        }
        inner.reclaim();
        while inner.poisoned().is_none()
            && !inner.closed.get()
            && inner.segments.borrow().spare.len() < inner.options.segments_spare
        {
            if let Err(error) = inner.make_spare(inner.options.segments_spare).await {
                tracing::warn!(log = %inner.options.log, %error, "no segment could be made ahead");
                break;
            }
        }
        inner.maintenance_wake.notified().await;
    }
}
