//! The writer: one task that turns what lines up in the queue into batches, one write in flight at a time.
//!
//! While a write is in flight the next batch collects: group commit needs no timer. A batch takes whole
//! records from the front of the queue, and at most one piece of at most one large payload, so that a large
//! entry takes its share of every batch and holds up only its own shard.
//!
//! ```text
//!   queue   [a: 5][b: 9][a: 6][c: 3, 16 MiB][b: 10][c: 4] …          c: 4 waits for c: 3
//!   batch   │header│a: 5│b: 9│a: 6│b: 10│c: 3, piece 0│zeros│
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_channel::oneshot;
use krita_runtime::{File, Instant, Runtime, timeout};

use crate::batch::{self, BATCH_HEADER_BYTES, BatchHeader, FLAG_SEAL};
use crate::error::LogError;
use crate::format::{BLOCK, length_u32, padded};
use crate::inner::Inner;
use crate::record::{self, HARD_STATE_BYTES, RECORD_HEADER_BYTES, RecordHeader, RecordKind, record_bytes};
use crate::segment::{SEGMENT_BODY, SegmentFile, SegmentHeader};
use crate::shard::EntryPlace;
use crate::types::{
    EntryRecord, Extent, Extents, HardState, Index, Place, ReplicaId, SegmentId, ShardId, Term,
};

/// Pieces are not cut smaller than this to fit the end of a segment.
pub(crate) const PIECE_BYTES_MIN: usize = 16 << 10;

/// How often one looks whether entries still have to wait for compaction.
const HOLD_SLICE: Duration = Duration::from_millis(8);
/// Entries are not held up for less.
const HOLD_MIN: Duration = Duration::from_millis(1);

/// What waits in the queue.
pub(crate) enum Work {
    HardState(HardState),
    TruncateAfter(Index),
    Entry(EntryRecord),
    /// An entry of a shard that is not here yet; where it lies goes to the installer.
    StagedEntry(EntryRecord, Rc<dyn Fn(Index, EntryPlace)>),
    /// Values that were moved or came in with a snapshot; where they lie goes to who moved them.
    Relocated {
        payload: Bytes,
        room: Room,
        done: Rc<dyn Fn(Extents)>,
    },
    /// Everything before it in its shard is durable once its turn comes.
    Barrier,
}

impl Work {
    fn payload(&self) -> Bytes {
        match self {
            Self::Entry(entry) | Self::StagedEntry(entry, _) => entry.payload.clone(),
            Self::Relocated { payload, .. } => payload.clone(),
            Self::HardState(state) => Bytes::copy_from_slice(&record::encode_hard_state(state)),
            Self::TruncateAfter(_) | Self::Barrier => Bytes::new(),
        }
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Self::Entry(entry) | Self::StagedEntry(entry, _) => entry.payload.len(),
            Self::Relocated { payload, .. } => payload.len(),
            Self::HardState(_) => HARD_STATE_BYTES,
            Self::TruncateAfter(_) | Self::Barrier => 0,
        }
    }

    /// Whether it must not be written if what was before it in its shard was not.
    fn has_order(&self) -> bool {
        matches!(self, Self::Entry(_) | Self::StagedEntry(..))
    }

    /// Kind, entry kind, term and index of the record; none for a barrier.
    fn describe(&self) -> Option<(RecordKind, u8, Term, Index)> {
        match self {
            Self::Entry(entry) | Self::StagedEntry(entry, _) => {
                Some((RecordKind::Entry, entry.kind, entry.term, entry.index))
            }
            Self::Relocated { .. } => Some((RecordKind::Relocated, 0, Term(0), Index(0))),
            Self::HardState(state) => Some((RecordKind::HardState, 0, state.term, Index(0))),
            Self::TruncateAfter(index) => Some((RecordKind::Truncate, 0, Term(0), *index)),
            Self::Barrier => None,
        }
    }
}

/// Which part of the disk something may be written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// All but the reserve.
    Ordinary,
    /// The reserve too: for what frees space, or takes next to none.
    Reserve,
}

/// What one call of `write` waits for.
pub(crate) struct Submission {
    remaining: Cell<usize>,
    done: RefCell<Option<oneshot::Sender<Result<(), LogError>>>>,
}

impl Submission {
    fn answer(&self, result: Result<(), LogError>) {
        if let Some(done) = self.done.borrow_mut().take() {
            // An error means that nobody waits any more.
            let _ = done.send(result);
        }
    }

    fn one_done(&self) {
        self.remaining.set(self.remaining.get() - 1);
        if self.remaining.get() == 0 {
            self.answer(Ok(()));
        }
    }
}

/// One record's worth of work in the queue.
struct Item {
    room: Room,
    shard: ShardId,
    replica: ReplicaId,
    work: Work,
    submission: Rc<Submission>,
    /// Payload bytes that are durable, where, and the batch of the first.
    written: usize,
    extents: Vec<Extent>,
    first: Option<Place>,
}

impl Item {
    /// Whether it is written although entries are held up. `behind` collects the shards whose entries stay, with what
    /// has to follow them.
    fn passes(&self, behind: &mut BTreeSet<ShardId>) -> bool {
        let is_moved = matches!(self.work, Work::Relocated { .. });
        let stays = self.work.has_order() || (!is_moved && behind.contains(&self.shard));
        if stays {
            behind.insert(self.shard);
        }
        !stays
    }
}

/// Where the next batch goes.
pub(crate) struct Head<R: Runtime> {
    pub(crate) segment: SegmentId,
    pub(crate) file: SegmentFile<R>,
    pub(crate) offset: u32,
    /// The number of the next batch.
    pub(crate) sequence: u64,
    /// The checksum of the last one.
    pub(crate) previous: u64,
    /// Something behind the last batch proves that it was durable.
    pub(crate) sealed: bool,
}

/// The writer's state.
pub(crate) struct Log<R: Runtime> {
    pub(crate) head: Head<R>,
    queue: VecDeque<Item>,
    queue_bytes: usize,
    /// The payload that is being written in pieces.
    large: Option<Item>,
    /// When the entries that wait first had to.
    held_since: Option<Instant>,
    /// How long entries would have had to wait that did not.
    owed: Duration,
}

/// What is held up while compaction gets ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    /// Entries, and what must not overtake them.
    Entries,
    /// That is all there is; so long.
    All(Duration),
}

/// A record with its place in the batch being made.
struct Placed {
    /// None: the next piece of `Log::large`.
    item: Option<Item>,
    /// The part of the payload, and where the header goes.
    from: usize,
    length: usize,
    offset: u32,
}

impl<R: Runtime> Log<R> {
    pub(crate) fn new(head: Head<R>) -> Self {
        Self {
            head,
            queue: VecDeque::new(),
            queue_bytes: 0,
            large: None,
            held_since: None,
            owed: Duration::ZERO,
        }
    }

    /// The last batch that is durable.
    pub(crate) fn durable_sequence(&self) -> u64 {
        self.head.sequence - 1
    }

    pub(crate) fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// The first batch with a piece of an entry of `shard` that is not whole yet.
    pub(crate) fn unfinished(&self, shard: ShardId) -> Option<Place> {
        self.large.as_ref().filter(|item| item.shard == shard).and_then(|item| item.first)
    }

    /// Segments with pieces of what is not whole yet.
    pub(crate) fn unfinished_segments(&self) -> Vec<SegmentId> {
        let extents = self.large.iter().flat_map(|item| item.extents.iter());
        extents.map(|extent| extent.segment).collect()
    }

    /// Lines up work and gives what tells when all of it is durable. `room` is for its entries.
    pub(crate) fn submit(
        &mut self,
        works: Vec<(ShardId, ReplicaId, Work)>,
        room: Room,
    ) -> oneshot::Receiver<Result<(), LogError>> {
        let (sender, receiver) = oneshot::channel();
        let submission =
            Rc::new(Submission { remaining: Cell::new(works.len()), done: RefCell::new(Some(sender)) });
        if works.is_empty() {
            submission.answer(Ok(()));
        }
        for (shard, replica, work) in works {
            self.queue_bytes += work.payload_bytes() + RECORD_HEADER_BYTES;
            let submission = submission.clone();
            let room = match &work {
                Work::Entry(_) => room,
                Work::StagedEntry(..) => Room::Ordinary,
                Work::Relocated { room, .. } => *room,
                Work::HardState(_) | Work::TruncateAfter(_) | Work::Barrier => Room::Reserve,
            };
            let (extents, first) = (Vec::new(), None);
            let item = Item { room, shard, replica, work, submission, written: 0, extents, first };
            self.queue.push_back(item);
        }
        receiver
    }

    /// Whether entries are to be held up now, so that compaction gets ahead of them: those that wait for `hold_up`.
    /// Times too short for a clock are added up.
    fn hold(&mut self, now: Instant, hold_up: Duration) -> Option<Held> {
        // The pieces of what was begun must lie in batches in a row.
        let grows = self.large.is_none() && self.queue.iter().any(|item| item.work.has_order());
        if !grows || hold_up.is_zero() {
            (self.held_since, self.owed) = (None, Duration::ZERO);
            return None;
        }
        let owed = self.owed + hold_up;
        if self.held_since.is_none() && owed < HOLD_MIN {
            self.owed = owed;
            return None;
        }
        let until = *self.held_since.get_or_insert(now) + owed;
        if now >= until {
            (self.held_since, self.owed) = (None, Duration::ZERO);
            return None;
        }
        let mut behind: BTreeSet<ShardId> = BTreeSet::new();
        let passes = self.queue.iter().any(|item| item.passes(&mut behind));
        Some(if passes { Held::Entries } else { Held::All(until.since(now)) })
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.large.is_none()
    }

    fn fail_all(&mut self, error: &LogError) {
        self.queue_bytes = 0;
        for item in self.large.take().into_iter().chain(self.queue.drain(..)) {
            item.submission.answer(Err(error.clone()));
        }
    }

    /// Fails what may not use the reserve, and entries behind that in its shard. False if nothing is left.
    fn fail_ordinary(&mut self, error: &LogError) -> bool {
        let mut failed: BTreeSet<ShardId> = BTreeSet::new();
        let waiting: Vec<Item> = self.large.take().into_iter().chain(self.queue.drain(..)).collect();
        for item in waiting {
            let follows = item.work.has_order() && failed.contains(&item.shard);
            if item.room == Room::Reserve && !follows {
                // A large one that was begun is first, and begins anew: its pieces must lie in batches in a row.
                let item = Item { written: 0, extents: Vec::new(), first: None, ..item };
                self.queue.push_back(item);
                continue;
            }
            if item.work.has_order() {
                failed.insert(item.shard);
            }
            self.queue_bytes =
                self.queue_bytes.saturating_sub(item.work.payload_bytes() + RECORD_HEADER_BYTES);
            item.submission.answer(Err(error.clone()));
        }
        !self.queue.is_empty()
    }

    /// The last entry of a shard once the queue is durable, if it is `last` now.
    pub(crate) fn last_queued(&self, shard: ShardId, last: Index) -> Index {
        let items = self.large.iter().chain(&self.queue).filter(|item| item.shard == shard);
        items.fold(last, |last, item| match &item.work {
            Work::Entry(entry) => entry.index,
            Work::TruncateAfter(index) => last.min(*index),
            Work::StagedEntry(..) | Work::Relocated { .. } | Work::HardState(_) | Work::Barrier => last,
        })
    }

    /// Takes the next batch's records off the queue, entries only if they are not `held`. Empty if nothing fits into
    /// `capacity` bytes.
    fn collect(&mut self, capacity: usize, piece_bytes: usize, held: bool) -> (Vec<Placed>, usize) {
        let mut placed = Vec::new();
        let mut used = BATCH_HEADER_BYTES;
        let mut blocked: BTreeSet<ShardId> = self.large.iter().map(|item| item.shard).collect();
        let mut behind: BTreeSet<ShardId> = BTreeSet::new();
        let is_large = |item: &Item| item.work.payload_bytes() > piece_bytes;
        // Room for one piece, or small records could keep a large one waiting for ever.
        let has_large = self.large.is_some() || self.queue.iter().any(is_large);
        let room = if has_large { capacity.saturating_sub(record_bytes(piece_bytes)) } else { capacity };
        let mut position = 0;
        while let Some(item) = self.queue.get(position) {
            if (held && !item.passes(&mut behind)) || blocked.contains(&item.shard) {
                position += 1;
                continue;
            }
            if is_large(item) {
                blocked.insert(item.shard);
                if self.large.is_none() {
                    self.large = self.queue.remove(position);
                } else {
                    position += 1;
                }
                continue;
            }
            let length = item.work.payload_bytes();
            let bytes = if matches!(item.work, Work::Barrier) { 0 } else { record_bytes(length) };
            if used + bytes > room {
                break;
            }
            let item = self.queue.remove(position);
            placed.push(Placed { item, from: 0, length, offset: length_u32(used) });
            used += bytes;
        }
        if let Some(large) = &self.large {
            let left = large.work.payload_bytes() - large.written;
            let fits = capacity.saturating_sub(used + RECORD_HEADER_BYTES + record::RECORD_ALIGNMENT);
            let length = left.min(piece_bytes).min(fits);
            if length == left || length >= PIECE_BYTES_MIN {
                placed.push(Placed { item: None, from: large.written, length, offset: length_u32(used) });
                used += record_bytes(length);
            }
        }
        (placed, used)
    }
}

/// Runs until the store is closed, the queue is empty, and all other tasks of the log have ended: compaction may be in
/// the middle of a segment, and waits for its copies.
pub(crate) async fn run<R: Runtime>(inner: Rc<Inner<R>>) {
    loop {
        if let Some(reason) = inner.poisoned() {
            inner.log.borrow_mut().fail_all(&LogError::Poisoned(reason));
        }
        let (idle, sealed) = {
            let log = inner.log.borrow();
            (log.is_idle(), log.head.sealed || inner.poisoned().is_some())
        };
        if !idle {
            write_next(&inner).await;
        } else if inner.is_over() {
            return;
        } else if sealed {
            inner.log_wake.notified().await;
        } else if timeout(&inner.runtime, inner.options.seal_after, inner.log_wake.notified()).await.is_err()
        {
            seal(&inner).await;
        }
    }
}

/// Bytes that the next batch may take in the current segment.
fn capacity<R: Runtime>(inner: &Inner<R>) -> usize {
    let left = inner.segment_bytes() - inner.log.borrow().head.offset;
    left.min(inner.options.batch_bytes_max) as usize
}

async fn write_next<R: Runtime>(inner: &Rc<Inner<R>>) {
    let bytes = inner.log.borrow().queue_bytes().min(inner.options.batch_bytes_max as usize);
    let hold_up = inner.compaction.borrow().hold_up(bytes, inner.used_bytes());
    let held = inner.log.borrow_mut().hold(inner.runtime.now(), hold_up);
    if let Some(Held::All(left)) = held {
        // What comes meanwhile joins the batch; and compaction may be done, or have something to write.
        let _ = timeout(&inner.runtime, left.min(HOLD_SLICE), inner.log_wake.notified()).await;
        return;
    }
    let piece_bytes = inner.options.piece_bytes as usize;
    let capacity = capacity(inner);
    let (placed, used) = inner.log.borrow_mut().collect(capacity, piece_bytes, held.is_some());
    if placed.is_empty() {
        if let Err(error) = next_segment(inner, Room::Ordinary).await {
            no_segment(inner, error).await;
        }
        return;
    }
    if used > BATCH_HEADER_BYTES
        && let Err(error) = write_placed(inner, &placed, used, 0).await
    {
        inner.log.borrow_mut().fail_all(&error);
        for item in placed.into_iter().filter_map(|placed| placed.item) {
            item.submission.answer(Err(error.clone()));
        }
        return;
    }
    durable(inner, placed);
}

/// Answers those whose records have no place. What may use the reserve gets a segment out of it.
async fn no_segment<R: Runtime>(inner: &Rc<Inner<R>>, error: LogError) {
    let is_full = matches!(error, LogError::DiskFull(_));
    let some_left = is_full && inner.log.borrow_mut().fail_ordinary(&error);
    let failed = match some_left {
        true => next_segment(inner, Room::Reserve).await.err(),
        false if is_full => None,
        false => Some(error),
    };
    if let Some(error) = failed {
        inner.log.borrow_mut().fail_all(&error);
    }
    inner.forget_failed();
}

/// Writes a batch that says nothing but that the one before it is durable.
pub(crate) async fn seal<R: Runtime>(inner: &Rc<Inner<R>>) {
    if capacity(inner) < BLOCK as usize {
        // The header of the next segment says the same. Without space for one the log stays unsealed, which
        // loses nothing but the proof.
        if next_segment(inner, Room::Ordinary).await.is_err() {
            inner.log.borrow_mut().head.sealed = true;
        }
        return;
    }
    // A failure has poisoned the log.
    let _ = write_placed(inner, &[], BATCH_HEADER_BYTES, FLAG_SEAL).await;
}

/// Encodes and writes one batch; durable on return. A failure poisons the log.
async fn write_placed<R: Runtime>(
    inner: &Rc<Inner<R>>,
    placed: &[Placed],
    used: usize,
    flags: u32,
) -> Result<(), LogError> {
    let (file, header) = {
        let log = inner.log.borrow();
        let records = placed.iter().filter(|placed| placed.header_of(&log).is_some()).count();
        let header = BatchHeader {
            log: inner.options.log,
            segment: log.head.segment,
            offset: log.head.offset,
            length: length_u32(used),
            sequence: log.head.sequence,
            previous: log.head.previous,
            records: length_u32(records),
            flags,
        };
        (log.head.file.file.clone(), header)
    };
    let length = padded(used);
    let mut buffer = file.buffer(length);
    encode_records(inner, placed, &header, &mut buffer);
    let sum = batch::seal_header(&mut buffer, &header, inner.nonce());
    if let Err(error) = file.write_at(buffer, u64::from(header.offset)).await {
        return Err(inner.poison(format!("writing {}: {error}", header.segment)));
    }
    let mut log = inner.log.borrow_mut();
    log.head.offset += length_u32(length);
    log.head.sequence += 1;
    log.head.previous = sum;
    log.head.sealed = flags & FLAG_SEAL != 0;
    let mut statistics = inner.statistics.borrow_mut();
    statistics.batches += 1;
    statistics.log_bytes += length as u64;
    statistics.seals += u64::from(flags & FLAG_SEAL != 0);
    Ok(())
}

impl Placed {
    fn source<'a, R: Runtime>(&'a self, log: &'a Log<R>) -> Option<&'a Item> {
        self.item.as_ref().or(log.large.as_ref())
    }

    fn header_of<R: Runtime>(&self, log: &Log<R>) -> Option<RecordHeader> {
        let item = self.source(log)?;
        let (kind, entry_kind, term, index) = item.work.describe()?;
        Some(RecordHeader {
            kind,
            entry_kind,
            log: crate::types::LogId(0),
            shard: item.shard,
            replica: item.replica,
            term,
            index,
            length: length_u32(self.length),
            piece_offset: length_u32(self.from),
            total: length_u32(item.work.payload_bytes()),
            offset: 0,
            segment: SegmentId(0),
        })
    }
}

fn encode_records<R: Runtime>(inner: &Inner<R>, placed: &[Placed], batch: &BatchHeader, buffer: &mut [u8]) {
    let log = inner.log.borrow();
    for placed in placed {
        let (Some(header), Some(item)) = (placed.header_of(&log), placed.source(&log)) else { continue };
        let offset = batch.offset + placed.offset;
        let header = RecordHeader { log: batch.log, segment: batch.segment, offset, ..header };
        let payload = item.work.payload();
        let start = placed.offset as usize;
        let out = &mut buffer[start..start + record_bytes(placed.length)];
        record::encode(out, &header, &payload[placed.from..placed.from + placed.length], inner.nonce());
    }
}

/// Takes a durable batch's records into memory and answers whoever waited for them.
fn durable<R: Runtime>(inner: &Rc<Inner<R>>, placed: Vec<Placed>) {
    let mut answers = Vec::new();
    {
        let mut log = inner.log.borrow_mut();
        let segment = log.head.segment;
        // The head is behind the batch already; a batch of barriers alone was never written.
        let wrote = placed.iter().any(|placed| placed.header_of(&log).is_some());
        let place = Place { segment, sequence: log.head.sequence - u64::from(wrote) };
        let batch_offset = inner.last_batch_offset(&log, &placed);
        for mut placed in placed {
            let whole = placed.item.is_some();
            let Some(mut item) = placed.item.take().or_else(|| log.large.take()) else { continue };
            let offset = batch_offset + placed.offset + RECORD_HEADER_BYTES as u32;
            item.extents.push(Extent { segment, offset, length: length_u32(placed.length) });
            item.first.get_or_insert(place);
            item.written += placed.length;
            if !whole && item.written < item.work.payload_bytes() {
                log.large = Some(item);
                continue;
            }
            log.queue_bytes = log.queue_bytes.saturating_sub(item.work.payload_bytes() + RECORD_HEADER_BYTES);
            let first = item.first.unwrap_or(place);
            let (shard, submission) = (item.shard, item.submission.clone());
            inner.taken(shard, item.work, Extents::from_vec(item.extents), first);
            answers.push(submission);
        }
    }
    for submission in answers {
        submission.one_done();
    }
}

impl<R: Runtime> Inner<R> {
    /// Where the batch of `placed`, which the head has passed, starts in its segment.
    fn last_batch_offset(&self, log: &Log<R>, placed: &[Placed]) -> u32 {
        let end = placed.iter().filter(|placed| placed.header_of(log).is_some());
        let used = end.map(|placed| placed.offset as usize + record_bytes(placed.length)).max();
        log.head.offset - used.map_or(0, |used| length_u32(padded(used)))
    }

    /// A record is durable and whole.
    fn taken(&self, shard_id: ShardId, work: Work, payload: Extents, place: Place) {
        match work {
            Work::Barrier => {}
            Work::Relocated { done, .. } => done(payload),
            Work::StagedEntry(entry, done) => {
                done(entry.index, EntryPlace { term: entry.term, kind: entry.kind, payload, place });
            }
            Work::HardState(state) => {
                if let Some(shard) = self.shards.borrow_mut().get_mut(&shard_id) {
                    shard.hard_state = state;
                }
            }
            Work::TruncateAfter(index) => {
                if let Some(shard) = self.shards.borrow_mut().get_mut(&shard_id) {
                    shard.truncate_after(index);
                }
            }
            Work::Entry(entry) => {
                if let Some(shard) = self.shards.borrow_mut().get_mut(&shard_id) {
                    let place = EntryPlace { term: entry.term, kind: entry.kind, payload, place };
                    shard.append(entry.index, place);
                }
            }
        }
    }
}

/// Puts the next segment to use. Its header proves that the last batch of this one is durable.
pub(crate) async fn next_segment<R: Runtime>(inner: &Rc<Inner<R>>, room: Room) -> Result<(), LogError> {
    let spare = inner.take_spare(room).await?;
    let (segment, header) = {
        let log = inner.log.borrow();
        let segment = SegmentId(log.head.segment.0 + 1);
        let header = SegmentHeader {
            log: inner.options.log,
            file: spare.number,
            segment,
            first_sequence: log.head.sequence,
            previous: log.head.previous,
        };
        (segment, header)
    };
    let mut block = spare.file.buffer(BLOCK as usize);
    header.encode(&mut block, inner.nonce());
    if let Err(error) = spare.file.write_at(block, 0).await {
        return Err(inner.poison(format!("writing the header of {segment}: {error}")));
    }
    inner.segments.borrow_mut().used.insert(segment, spare.clone());
    {
        let mut log = inner.log.borrow_mut();
        log.head.segment = segment;
        log.head.file = spare;
        log.head.offset = SEGMENT_BODY;
        log.head.sealed = true;
    }
    inner.maintenance_wake.notify();
    Ok(())
}
