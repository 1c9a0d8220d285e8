//! What all parts of one open store share, and the care for segments: which are dead, which are spare.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use krita_runtime::{Notify, Runtime, TaskClass, timeout};

use crate::cache::ValueCache;
use crate::checkpoint::CheckpointIdentity;
use crate::compact::Compaction;
use crate::epochs::Epochs;
use crate::error::LogError;
use crate::gate::Gate;
use crate::health::Damages;
use crate::log::{Log, Room};
use crate::manifest::{Manifest, ManifestChange, MetaFileRecord, ReplayRecord, Settled};
use crate::reclaim::Reclaiming;
use crate::run::{RunCaches, RunIdentity};
use crate::segment::{self, Pins, SegmentHeader, Segments};
use crate::shard::{CheckpointFile, Shard};
use crate::types::{Headroom, Index, Options, Place, SegmentId, ShardId, Statistics};

/// How often the file system is asked for room while there was none for the next segment.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// One open store. Belongs to one core.
pub(crate) struct Inner<R: Runtime> {
    pub(crate) runtime: R,
    pub(crate) options: Options,
    pub(crate) shards: RefCell<BTreeMap<ShardId, Shard<R>>>,
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
    /// Where values lie that slots will lead to which no index has yet: compaction cannot know them.
    pub(crate) staged: Pins,
    /// Which segments the slots of runs point into, hidden by newer layers or not.
    pub(crate) lives: Pins,
    pub(crate) run_caches: Rc<RunCaches>,
    /// Runs may have to be merged.
    pub(crate) merging_wake: Notify,
    pub(crate) reclaiming: RefCell<Reclaiming>,
    pub(crate) compaction: RefCell<Compaction>,
    /// Who looks at an index, and since when.
    pub(crate) epochs: Rc<Epochs>,
    /// Installations with entries on disk, and snapshots being sent: the log from there on must stay whole.
    pub(crate) floors: RefCell<BTreeMap<u64, Floor>>,
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

/// Holds the log back from a segment on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    pub(crate) segment: SegmentId,
    /// For a snapshot being sent, whose: held only as long as it is not too much.
    pub(crate) snapshot_of: Option<ShardId>,
}

/// The parts that recovery hands over.
pub(crate) struct Parts<R: Runtime> {
    pub(crate) shards: BTreeMap<ShardId, Shard<R>>,
    pub(crate) log: Log<R>,
    pub(crate) manifest: Manifest<R>,
    pub(crate) segments: Segments<R>,
    pub(crate) epochs: Rc<Epochs>,
    pub(crate) run_caches: Rc<RunCaches>,
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
            pins: Pins::default(),
            staged: Pins::default(),
            lives: Pins::default(),
            run_caches: parts.run_caches,
            merging_wake: Notify::new(),
            reclaiming: RefCell::default(),
            compaction: RefCell::default(),
            epochs: parts.epochs,
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
            // The writer goes last.
            inner.log_wake.notify();
        });
    }

    /// Whether the last handle is gone, and no task but the writer is left that could still give it something to do.
    pub(crate) fn is_over(&self) -> bool {
        self.closed.get() && self.tasks.get() <= 1
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

    /// What segments take that hold something, evacuated ones included.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.segments.borrow().used.len() as u64 * u64::from(self.segment_bytes())
    }

    /// How many segments to keep ready ahead of the writer now.
    pub(crate) fn spares_wanted(&self) -> usize {
        self.compaction.borrow().spares(self.options.segments_spare, self.used_bytes())
    }

    pub(crate) fn take_number(&self) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        number
    }

    pub(crate) fn gate(&self, shard: ShardId) -> Rc<Gate> {
        self.gates.borrow_mut().entry(shard).or_default().clone()
    }

    pub(crate) fn run_identity(&self, shard: ShardId, number: u64) -> RunIdentity {
        RunIdentity { log: self.options.log, shard, number, nonce: self.nonce() }
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

    /// A part of the queue was dropped: what is durable, and what is still in the queue, is what will be.
    pub(crate) fn forget_failed(&self) {
        let log = self.log.borrow();
        for (id, shard) in self.shards.borrow_mut().iter_mut() {
            shard.last_queued = log.last_queued(*id, shard.last());
        }
    }

    /// Where the log takes over from a manifest frame that is written now.
    pub(crate) fn tail_now(&self, id: ShardId, shard: &Shard<R>) -> ReplayRecord {
        self.tail_behind(id, shard, shard.checkpoint.applied)
    }

    /// The same for a frame that also makes a checkpoint at `applied` count.
    pub(crate) fn tail_behind(&self, id: ShardId, shard: &Shard<R>, applied: Index) -> ReplayRecord {
        let next = self.next_place();
        let first = shard.entry(applied.next()).map(|entry| entry.place);
        let needed = [first, self.log.borrow().unfinished(id)].into_iter().flatten();
        let replay = needed.fold(next, Place::min);
        let behind = replay.sequence >= shard.settled.before;
        let settled = if behind { Settled::default() } else { shard.settled };
        ReplayRecord { hard_state: shard.hard_state, hard_state_sequence: next.sequence - 1, replay, settled }
    }

    /// Where the next batch will be: nothing that is durable now lies there.
    pub(crate) fn next_place(&self) -> Place {
        let log = self.log.borrow();
        Place { sequence: log.durable_sequence() + 1, segment: log.head.segment }
    }

    /// Appends a frame to the manifest. `changes` is asked once it is this frame's turn; `then` follows at once when
    /// the frame is durable, before any other. A failure poisons the log: what the manifest says after a restart is
    /// unknown. Without changes nothing is written, and `then` is not called: false.
    pub(crate) async fn publish(
        &self,
        changes: impl FnOnce() -> Vec<ManifestChange>,
        then: impl FnOnce(),
    ) -> Result<bool, LogError> {
        let appender = self.manifest.appender().await;
        self.check_poison()?;
        let changes = changes();
        if changes.is_empty() {
            return Ok(false);
        }
        if let Err(error) = appender.append(&self.runtime, changes).await {
            return Err(self.poison(format!("writing the manifest: {error}")));
        }
        self.statistics.borrow_mut().manifest_frames += 1;
        then();
        Ok(true)
    }

    /// A handle on a checkpoint file that is, or is about to be, the shard's.
    pub(crate) fn checkpoint_file(
        self: &Rc<Self>,
        shard: ShardId,
        record: MetaFileRecord,
    ) -> Rc<CheckpointFile> {
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
        Rc::new(CheckpointFile { record, retired: Cell::new(false), remove })
    }

    /// A segment for the writer: a spare one, a dead one, or a new one.
    pub(crate) async fn take_spare(self: &Rc<Self>, room: Room) -> Result<segment::SegmentFile<R>, LogError> {
        loop {
            self.check_poison()?;
            if let Some(spare) = self.segments.borrow_mut().spare.pop_front() {
                return Ok(spare);
            }
            self.advance().await?;
            self.reclaim().await?;
            if self.segments.borrow().spare.is_empty() {
                self.make_spare(1, room).await?;
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
    async fn make_spare(self: &Rc<Self>, enough: usize, room: Room) -> Result<(), LogError> {
        let _pass = self.making.enter().await;
        if self.segments.borrow().spare.len() >= enough {
            return Ok(());
        }
        let (directory, length) = (&self.options.directory, self.segment_bytes());
        let available = self.runtime.available_bytes(directory).await;
        let available = available.map_err(|error| LogError::Io(error.to_string()))?;
        self.available.set(available);
        let reserve = match room {
            Room::Ordinary => self.options.reserve_bytes,
            Room::Reserve => 0,
        };
        if available < u64::from(length) + reserve {
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
    /// nothing: its hard state is carried over, and the records that it needs are later. Also names segments that were
    /// put to use.
    pub(crate) async fn advance(&self) -> Result<(), LogError> {
        self.publish(
            || {
                let shards = self.shards.borrow();
                let tails = shards.iter().filter_map(|(id, shard)| {
                    let recorded = self.manifest.tail(*id)?;
                    let now = self.tail_now(*id, shard);
                    let gains = now.replay.segment > recorded.replay.segment && !shard.closing;
                    gains.then_some(ManifestChange::Advance(*id, now))
                });
                self.lives_change(&[]).into_iter().chain(tails).collect()
            },
            || {},
        )
        .await
        .map(drop)
    }
}

/// Keeps segments ready ahead of the writer. Runs until the store is closed.
pub(crate) async fn maintain<R: Runtime>(inner: Rc<Inner<R>>) {
    let mut was_short = false;
    loop {
        if inner.closed.get() {
            return;
        }
        let head = inner.log.borrow().head.segment;
        let behind = inner.manifest.oldest_needed().is_some_and(|oldest| oldest < head);
        if inner.poisoned().is_none() && (behind || !inner.manifest.lists(head)) {
            // A failure has poisoned the log, which is said elsewhere.
            let _ = inner.advance().await;
        }
        if inner.poisoned().is_none() {
            // Likewise.
            let _ = inner.reclaim().await;
        }
        inner.compaction.borrow().wake.notify();
        let mut is_short = false;
        let spares = inner.spares_wanted();
        while inner.poisoned().is_none()
            && !inner.closed.get()
            && inner.segments.borrow().spare.len() < spares
        {
            if let Err(error) = inner.make_spare(spares, Room::Ordinary).await {
                if !was_short {
                    tracing::warn!(log = %inner.options.log, %error, "no segment could be made ahead");
                }
                is_short = true;
                break;
            }
        }
        was_short = is_short;
        if is_short {
            // Nobody tells when there is room again on the file system: look from time to time.
            let _ = timeout(&inner.runtime, ROOM_INTERVAL, inner.maintenance_wake.notified()).await;
        } else {
            inner.maintenance_wake.notified().await;
        }
    }
}
