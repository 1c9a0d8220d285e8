//! One shard's state: where its entries lie, what is durable of it, and its index.
//!
//! ```text
//!        first          checkpoint.applied      applied          last
//!          │  kept for       │   behind the        │   not yet     │
//!          │  followers      │   checkpoint        │   applied     │
//!   ───────┼─────────────────┼─────────────────────┼───────────────┼──▶ index
//! ```

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use krita_runtime::Runtime;

use crate::error::Corruption;
use crate::index::ShardIndex;
use crate::manifest::{MetaFileRecord, Settled};
use crate::run::{Now, RunRecord};
use crate::segment::{Pin, Pins};
use crate::store::Store;
use crate::types::{
    CheckpointMeta, Extents, HardState, Index, Place, RecoveredShard, ReplicaId, SegmentId, ShardId, Term,
};

/// Where one durable entry is.
#[derive(Clone, Debug)]
pub(crate) struct EntryPlace {
    pub(crate) term: Term,
    pub(crate) kind: u8,
    /// The payload. A single extent may be empty; each has its record's header right before it.
    pub(crate) payload: Extents,
    /// The batch with its first record.
    pub(crate) place: Place,
}

/// The last durable checkpoint's file. Removed when the last user lets go, if a newer one is published.
pub(crate) struct CheckpointFile {
    pub(crate) record: MetaFileRecord,
    /// Told when the file is not needed any more.
    pub(crate) retired: Cell<bool>,
    pub(crate) remove: Box<dyn Fn(u64)>,
}

impl Drop for CheckpointFile {
    fn drop(&mut self) {
        if self.retired.get() {
            (self.remove)(self.record.number);
        }
    }
}

/// See the module. `first - 1 <= checkpoint.applied <= applied <= last`.
pub(crate) struct Shard<R: Runtime> {
    pub(crate) replica: ReplicaId,
    pub(crate) hard_state: HardState,
    pub(crate) checkpoint: CheckpointMeta,
    /// None if the checkpoint's meta data is in the manifest itself.
    pub(crate) file: Option<Rc<CheckpointFile>>,
    first: Index,
    /// The term of entry `first - 1`.
    before_term: Term,
    entries: VecDeque<EntryPlace>,
    /// Payload bytes behind the checkpoint.
    pub(crate) bytes_behind: u64,
    pub(crate) applied: Index,
    /// The last entry once everything in the queue is durable.
    pub(crate) last_queued: Index,
    /// Its runs are the durable checkpoint's; what was applied since is above them.
    pub(crate) index: ShardIndex<R>,
    /// For each run of the index, by number, the segments that its slots point into.
    lives: BTreeMap<u64, Pin>,
    /// Snapshots being sent: entries behind these stay readable.
    holds: BTreeMap<u64, Index>,
    /// Replay met an entry ahead of its turn; right only if a later record shows that it was truncated.
    pub(crate) gap: bool,
    /// The shard is being replaced or removed: no writes.
    pub(crate) closing: bool,
    /// Why this replica may have forgotten what it acknowledged. As durable.
    pub(crate) suspect: Option<String>,
    /// As the manifest's record has it.
    pub(crate) settled: Settled,
    /// What is wrong with the durable checkpoint, if something is: the index is empty then, and means nothing.
    pub(crate) damaged: Option<Corruption>,
}

impl<R: Runtime> Store<R> {
    /// The durable entries of this kind that can be read, in order. Memory knows them.
    pub fn entries_of_kind(&self, shard: ShardId, kind: u8) -> Vec<Index> {
        let shards = self.inner.shards.borrow();
        shards.get(&shard).map(|shard| shard.entries_of_kind(kind)).unwrap_or_default()
    }
}

impl<R: Runtime> Shard<R> {
    pub(crate) fn new(
        replica: ReplicaId,
        hard_state: HardState,
        checkpoint: CheckpointMeta,
        file: Option<Rc<CheckpointFile>>,
        index: ShardIndex<R>,
    ) -> Self {
        let applied = checkpoint.applied;
        Self {
            replica,
            hard_state,
            first: applied.next(),
            before_term: checkpoint.term,
            checkpoint,
            file,
            entries: VecDeque::new(),
            bytes_behind: 0,
            applied,
            last_queued: applied,
            index,
            lives: BTreeMap::new(),
            holds: BTreeMap::new(),
            gap: false,
            closing: false,
            suspect: None,
            settled: Settled::default(),
            damaged: None,
        }
    }

    /// Nothing is known of the keys of a shard whose checkpoint is damaged.
    pub(crate) fn check_whole(&self) -> Result<(), Corruption> {
        self.damaged.clone().map_or(Ok(()), Err)
    }

    /// What memory alone knows of a key.
    pub(crate) fn get_now(&self, key: &[u8]) -> Now {
        if self.damaged.is_some() { Now::Unknown } else { self.index.get_now(key) }
    }

    pub(crate) fn first(&self) -> Index {
        self.first
    }

    pub(crate) fn last(&self) -> Index {
        Index(self.first.0 + self.entries.len() as u64 - 1)
    }

    pub(crate) fn entry(&self, index: Index) -> Option<&EntryPlace> {
        let position = index.0.checked_sub(self.first.0)?;
        self.entries.get(usize::try_from(position).ok()?)
    }

    /// The entries of this kind that are still here.
    pub(crate) fn entries_of_kind(&self, kind: u8) -> Vec<Index> {
        let numbered = (self.first.0..).zip(&self.entries);
        numbered.filter(|(_, entry)| entry.kind == kind).map(|(index, _)| Index(index)).collect()
    }

    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index.next() == self.first {
            return Some(self.before_term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// The first batch that holds an entry behind the checkpoint.
    pub(crate) fn first_needed(&self) -> Option<Place> {
        self.entry(self.checkpoint.applied.next()).map(|entry| entry.place)
    }

    /// Removes every entry behind `index`, which is not below the applied one.
    pub(crate) fn truncate_after(&mut self, index: Index) {
        assert!(index >= self.applied, "an applied entry is committed, and never truncated");
        while self.last() > index {
            let entry = self.entries.pop_back().expect("last is behind first");
            self.bytes_behind -= entry.payload.length();
        }
    }

    /// Takes in a durable entry; one that is there is replaced, and what follows it is gone.
    pub(crate) fn append(&mut self, index: Index, entry: EntryPlace) {
        if index <= self.last() {
            self.truncate_after(index.previous());
        }
        assert_eq!(index, self.last().next(), "the log has no gaps");
        self.bytes_behind += entry.payload.length();
        self.entries.push_back(entry);
    }

    /// The entries, at start, for [`Shard::restore`].
    pub(crate) fn image(&self) -> VecDeque<EntryPlace> {
        self.entries.clone()
    }

    /// Goes back to what the entries were.
    pub(crate) fn restore(&mut self, entries: VecDeque<EntryPlace>) {
        self.bytes_behind = entries.iter().map(|entry| entry.payload.length()).sum();
        self.entries = entries;
    }

    /// [`Shard::append`] for an entry found in the log at start, when records from before the checkpoint, or
    /// truncated later, still pass by.
    pub(crate) fn replay(&mut self, index: Index, entry: EntryPlace) {
        if index > self.last().next() {
            self.gap = true;
            return;
        }
        self.replay_truncate(index.previous());
        if index > self.checkpoint.applied {
            self.append(index, entry);
        }
    }

    /// [`Shard::truncate_after`] at start.
    pub(crate) fn replay_truncate(&mut self, index: Index) {
        if index <= self.last() {
            self.gap = false;
        }
        self.truncate_after(index.max(self.checkpoint.applied));
    }

    /// A newer checkpoint is durable. Of the entries that it covers up to `kept` stay readable. Returns the
    /// file that it replaces.
    pub(crate) fn checkpointed(
        &mut self,
        meta: CheckpointMeta,
        file: Option<Rc<CheckpointFile>>,
        kept: usize,
    ) -> Option<Rc<CheckpointFile>> {
        assert!(self.checkpoint.applied <= meta.applied && meta.applied <= self.applied);
        let mut index = self.checkpoint.applied.next();
        while index <= meta.applied {
            self.bytes_behind -= self.entry(index).map_or(0, |entry| entry.payload.length());
            index = index.next();
        }
        self.checkpoint = meta;
        self.drop_unkept(kept);
        std::mem::replace(&mut self.file, file)
    }

    /// Forgets entries that the checkpoint covers, but for `kept` and for those that a snapshot's receiver will
    /// ask for.
    fn drop_unkept(&mut self, kept: usize) {
        let held = self.holds.values().min().map_or(Index(u64::MAX), |after| after.next());
        while self.first.0 + (kept as u64) <= self.checkpoint.applied.0 && self.first < held {
            self.drop_first();
        }
    }

    /// Keeps entries behind the present checkpoint until [`Shard::release`].
    pub(crate) fn hold(&mut self, number: u64) {
        self.holds.insert(number, self.checkpoint.applied);
    }

    pub(crate) fn release(&mut self, number: u64, kept: usize) {
        if self.holds.remove(&number).is_some() {
            self.drop_unkept(kept);
        }
    }

    /// The runs of the durable checkpoint, newest first, as the manifest names them.
    pub(crate) fn run_records(&self) -> Vec<RunRecord> {
        self.index.runs().iter().map(|run| *run.record()).collect()
    }

    /// Notes which segments the runs of the index point into, after these have changed.
    pub(crate) fn note_lives(&mut self, lives: &Pins) {
        let runs = self.index.runs();
        self.lives.retain(|number, _| runs.iter().any(|run| run.record().number == *number));
        for run in runs {
            let pin = || lives.pin(run.segments().keys().copied());
            self.lives.entry(run.record().number).or_insert_with(pin);
        }
    }

    fn drop_first(&mut self) {
        assert!(self.first <= self.checkpoint.applied, "only what the checkpoint covers may go");
        let entry = self.entries.pop_front().expect("entries reach beyond the checkpoint");
        self.before_term = entry.term;
        self.first = self.first.next();
    }

    /// Forgets entries that were kept beyond need up to `segment`, which is about to be used again.
    pub(crate) fn forget_segment(&mut self, segment: SegmentId) {
        while self.first <= self.checkpoint.applied
            && self.entries.front().is_some_and(|entry| entry.place.segment <= segment)
        {
            self.drop_first();
        }
    }

    /// What the node is told at start.
    pub(crate) fn recovered(&self, shard: ShardId) -> RecoveredShard {
        let mut terms: Vec<(Index, Term)> = Vec::new();
        let mut index = self.first;
        for entry in &self.entries {
            if terms.last().is_none_or(|(_, term)| *term != entry.term) {
                terms.push((index, entry.term));
            }
            index = index.next();
        }
        RecoveredShard {
            shard,
            replica: self.replica,
            hard_state: self.hard_state,
            checkpoint: self.checkpoint.clone(),
            terms,
            last_index: self.last(),
            suspect: self.suspect.clone(),
            state_damaged: self.damaged.is_some(),
        }
    }
}
