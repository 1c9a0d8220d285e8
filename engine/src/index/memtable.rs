//! The newest part of a shard's index: what was applied since the last freeze, in memory, sorted by key.
//!
//! It is multi-version. A reader that needs one moment for longer than one poll (a scan, a checkpoint, a batch of
//! gets) takes a *view*, which is a number; what is overwritten while a view can still see it is put aside and
//! dropped when the last such view goes. Without views every key has one version, however often it is written.
//!
//! ```text
//!   moment        0     1     2     3     4 = now        views alive: 1 and 2
//!   key "a"       a0 ─────────────▶ a3 ────────▶         a0 is kept: views 1 and 2 see it. Its keeper is view 2
//!   key "b"       b0 ─▶ (dropped)   b1 ────────▶         nobody can see b0
//! ```
//!
//! Every version that was put aside has one *keeper*, the newest living view that sees it. When a keeper goes, each
//! of its versions gets an older view as keeper or is dropped: some at once, the rest a few with every write, so
//! that no single call takes long.

use std::cell::{Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::size_of;
use std::ops::Bound;
use std::rc::Rc;

use bytes::Bytes;

use crate::run::Entry;
use crate::types::{Extent, Extents, SegmentId, Slot};

/// Versions looked after at once when a view goes.
const RELEASED_AT_ONCE: usize = 256;
/// Versions looked after with every write: more than a write can put aside.
const RELEASED_PER_WRITE: usize = 8;

/// What a key costs beyond its bytes: the handle and its newest version, and a sixth for the tree's nodes.
const KEY_COST: usize = (size_of::<Bytes>() + size_of::<Newest>()) * 7 / 6;
/// What a version put aside costs: itself, and the note with its keeper.
const ASIDE_COST: usize = size_of::<Aside>() + size_of::<Bytes>();

/// A point in the order of a memtable's writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Moment(u64);

/// What a key maps to now, and since when.
struct Newest {
    since: Moment,
    entry: Entry,
}

/// What a key mapped to from `since` until before `until`.
struct Aside {
    since: Moment,
    until: Moment,
    entry: Entry,
}

/// The views of one moment.
#[derive(Default)]
struct Watch {
    views: usize,
    /// The keys of versions that these views keep, once for each version.
    keeps: Vec<Bytes>,
}

/// See the module.
pub(crate) struct Memtable {
    state: RefCell<State>,
}

struct State {
    newest: BTreeMap<Bytes, Newest>,
    /// In ascending order for each key; never empty.
    aside: BTreeMap<Bytes, Vec<Aside>>,
    /// The moment of the writes that come now; above every view's.
    now: Moment,
    /// Whether something was written at `now`.
    written: bool,
    watches: BTreeMap<Moment, Watch>,
    /// Versions whose keeper is gone, by the keeper's moment.
    released: VecDeque<(Moment, Bytes)>,
    bytes: usize,
    tombstones: usize,
    /// The keys whose newest value has several extents.
    large: BTreeSet<Bytes>,
    /// Bytes that the versions here have in each life; never 0.
    segments: BTreeMap<SegmentId, u64>,
}

impl Memtable {
    pub(crate) fn new() -> Self {
        Self {
            state: RefCell::new(State {
                newest: BTreeMap::new(),
                aside: BTreeMap::new(),
                now: Moment(1),
                written: false,
                watches: BTreeMap::new(),
                released: VecDeque::new(),
                bytes: 0,
                tombstones: 0,
                large: BTreeSet::new(),
                segments: BTreeMap::new(),
            }),
        }
    }

    /// Lets the key map to `entry` from now on. The key is copied: the bytes handed in may be part of a frame.
    pub(super) fn set(&self, key: &[u8], entry: Entry) {
        self.state.borrow_mut().set(key, entry);
    }

    /// What the key maps to now, as far as this memtable knows.
    pub(super) fn get(&self, key: &[u8]) -> Option<Entry> {
        self.state.borrow().newest.get(key).map(|newest| newest.entry.clone())
    }

    /// Looks at the next `steps_max` keys: what they mapped to at `moment`; without one, what they map to now.
    pub(super) fn slice(&self, from: Bound<&[u8]>, moment: Option<Moment>, steps_max: usize) -> Slice {
        let state = self.state.borrow();
        let mut slice = Slice { items: Vec::new(), last: None };
        let range = state.newest.range::<[u8], _>((from, Bound::Unbounded));
        for (key, newest) in range.take(steps_max) {
            slice.last = Some(key.clone());
            if let Some(entry) = state.seen(key, newest, moment) {
                slice.items.push((key.clone(), entry.clone()));
            }
        }
        slice
    }

    /// The keys whose value has several extents of which one lies in `segment`.
    pub(super) fn large_keys(&self, segment: SegmentId) -> Vec<Bytes> {
        let state = self.state.borrow();
        let large = state.large.iter().filter(|key| match &state.newest[&key[..]].entry {
            Entry::Put(slot) => slot.region.as_slice().iter().any(|extent| extent.segment == segment),
            Entry::Tombstone(_) => false,
        });
        large.cloned().collect()
    }

    /// How many keys there are, tombstones included.
    pub(crate) fn len(&self) -> usize {
        self.state.borrow().newest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state.borrow().newest.is_empty()
    }

    /// How many keys map to a tombstone.
    pub(crate) fn tombstones(&self) -> usize {
        self.state.borrow().tombstones
    }

    /// How many versions are there for old views only.
    #[cfg(test)]
    pub(super) fn versions_aside(&self) -> usize {
        self.state.borrow().aside.values().map(Vec::len).sum()
    }

    /// Counts everything anew and compares.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let state = self.state.borrow();
        let (mut bytes, mut segments) = (0, BTreeMap::new());
        let newest = state.newest.iter().map(|(key, newest)| (key, &newest.entry, KEY_COST + key.len()));
        let aside = state.aside.iter().flat_map(|(key, list)| list.iter().map(move |version| (key, version)));
        let aside = aside.map(|(key, version)| (key, &version.entry, ASIDE_COST));
        for (key, entry, cost) in newest.chain(aside) {
            bytes += cost + heap_bytes(entry);
            for (segment, length) in contributions(key, entry) {
                *segments.entry(segment).or_default() += length;
            }
        }
        assert_eq!((state.bytes, &state.segments), (bytes, &segments));
        let tombstones = state.newest.values().filter(|newest| is_tombstone(&newest.entry)).count();
        assert_eq!(state.tombstones, tombstones);
        let large = state.newest.iter().filter(|(_, newest)| is_large(&newest.entry)).map(|(key, _)| key);
        assert!(large.eq(&state.large));
        let kept: usize = state.watches.values().map(|watch| watch.keeps.len()).sum();
        let versions: usize = state.aside.values().map(Vec::len).sum();
        assert_eq!(kept + state.released.len(), versions, "every version put aside has one keeper");
    }

    /// Bytes of memory, versions for old views included.
    pub(crate) fn bytes(&self) -> usize {
        self.state.borrow().bytes
    }

    /// Bytes (key and region) that the versions here have in each life, those for old views included.
    pub(crate) fn segments(&self) -> Ref<'_, BTreeMap<SegmentId, u64>> {
        Ref::map(self.state.borrow(), |state| &state.segments)
    }

    fn release(&self, moment: Moment) {
        let mut state = self.state.borrow_mut();
        let watch = state.watches.get_mut(&moment).expect("a living view is watched");
        watch.views -= 1;
        if watch.views == 0 {
            let watch = state.watches.remove(&moment).unwrap_or_default();
            state.released.extend(watch.keeps.into_iter().map(|key| (moment, key)));
            state.look_after(RELEASED_AT_ONCE);
        }
    }
}

impl State {
    fn set(&mut self, key: &[u8], entry: Entry) {
        self.look_after(RELEASED_PER_WRITE);
        let now = self.now;
        self.written = true;
        self.count(key, &entry);
        self.tombstones += usize::from(is_tombstone(&entry));
        let is_large = is_large(&entry);
        let Some(present) = self.newest.get_mut(key) else {
            self.bytes += KEY_COST + key.len() + heap_bytes(&entry);
            let key = Bytes::copy_from_slice(key);
            if is_large {
                self.large.insert(key.clone());
            }
            self.newest.insert(key, Newest { since: now, entry });
            return;
        };
        self.bytes += heap_bytes(&entry);
        let old = std::mem::replace(present, Newest { since: now, entry });
        self.tombstones -= usize::from(is_tombstone(&old.entry));
        if is_large {
            self.large.insert(Bytes::copy_from_slice(key));
        } else if !self.large.is_empty() {
            self.large.remove(key);
        }
        let keeper = self.watches.last_entry().filter(|watch| *watch.key() >= old.since);
        let Some(mut keeper) = keeper else {
            self.bytes -= heap_bytes(&old.entry);
            self.uncount(key, &old.entry);
            return;
        };
        let (shared, _) = self.newest.get_key_value(key).expect("the key was just there");
        keeper.get_mut().keeps.push(shared.clone());
        let aside = Aside { since: old.since, until: now, entry: old.entry };
        self.aside.entry(shared.clone()).or_default().push(aside);
        self.bytes += ASIDE_COST;
    }

    /// What a view of `moment` sees of a key; without one, what the key maps to now.
    fn seen<'a>(&'a self, key: &Bytes, newest: &'a Newest, moment: Option<Moment>) -> Option<&'a Entry> {
        let Some(moment) = moment.filter(|moment| newest.since > *moment) else { return Some(&newest.entry) };
        let aside = self.aside.get(key)?;
        let position = aside.partition_point(|version| version.until <= moment);
        aside.get(position).filter(|version| version.since <= moment).map(|version| &version.entry)
    }

    /// Finds a new keeper for up to `versions` of those that lost theirs, or drops them.
    fn look_after(&mut self, versions: usize) {
        for _ in 0..versions {
            let Some((gone, key)) = self.released.pop_front() else { return };
            let list = self.aside.get_mut(&key).expect("what has lost its keeper is still put aside");
            let position = list.partition_point(|version| version.until <= gone);
            let version = &list[position];
            assert!(version.since <= gone, "the keeper of a version sees it");
            // No view between `gone` and `until` lives: the keeper was the newest, and later views see later versions.
            if let Some((_, watch)) = self.watches.range_mut(version.since..gone).next_back() {
                watch.keeps.push(key);
                continue;
            }
            let version = list.remove(position);
            if list.is_empty() {
                self.aside.remove(&key);
            }
            self.bytes -= ASIDE_COST + heap_bytes(&version.entry);
            self.uncount(&key, &version.entry);
        }
    }

    fn count(&mut self, key: &[u8], entry: &Entry) {
        for (segment, bytes) in contributions(key, entry) {
            *self.segments.entry(segment).or_default() += bytes;
        }
    }

    fn uncount(&mut self, key: &[u8], entry: &Entry) {
        for (segment, bytes) in contributions(key, entry) {
            let count = self.segments.get_mut(&segment).expect("every version was counted");
            *count -= bytes;
            if *count == 0 {
                self.segments.remove(&segment);
            }
        }
    }
}

/// Part of a walk over a memtable.
pub(super) struct Slice {
    pub(super) items: Vec<(Bytes, Entry)>,
    /// The last key that was looked at; none at the end.
    pub(super) last: Option<Bytes>,
}

/// A memtable as it was when the view was taken.
pub(super) struct MemtableView {
    memtable: Rc<Memtable>,
    moment: Moment,
}

impl MemtableView {
    pub(super) fn new(memtable: &Rc<Memtable>) -> Self {
        let mut state = memtable.state.borrow_mut();
        if state.written {
            state.written = false;
            state.now = Moment(state.now.0 + 1);
        }
        let moment = Moment(state.now.0 - 1);
        state.watches.entry(moment).or_default().views += 1;
        Self { memtable: memtable.clone(), moment }
    }

    pub(super) fn memtable(&self) -> &Rc<Memtable> {
        &self.memtable
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Entry> {
        let state = self.memtable.state.borrow();
        let (key, newest) = state.newest.get_key_value(key)?;
        state.seen(key, newest, Some(self.moment)).cloned()
    }

    pub(super) fn slice(&self, from: Bound<&[u8]>, steps_max: usize) -> Slice {
        self.memtable.slice(from, Some(self.moment), steps_max)
    }
}

impl Clone for MemtableView {
    fn clone(&self) -> Self {
        let mut state = self.memtable.state.borrow_mut();
        state.watches.get_mut(&self.moment).expect("a living view is watched").views += 1;
        Self { memtable: self.memtable.clone(), moment: self.moment }
    }
}

impl Drop for MemtableView {
    fn drop(&mut self) {
        self.memtable.release(self.moment);
    }
}

fn is_tombstone(entry: &Entry) -> bool {
    matches!(entry, Entry::Tombstone(_))
}

/// Whether the entry's value has several extents.
fn is_large(entry: &Entry) -> bool {
    matches!(entry, Entry::Put(Slot { region: Extents::Many(_), .. }))
}

/// Memory of an entry beyond its own size: the extents, their counts, and the key's place among the large ones.
fn heap_bytes(entry: &Entry) -> usize {
    match entry {
        Entry::Put(Slot { region: Extents::Many(extents), .. }) => {
            extents.len() * size_of::<Extent>() + 2 * size_of::<usize>() + size_of::<Bytes>()
        }
        Entry::Put(Slot { region: Extents::One(_), .. }) | Entry::Tombstone(_) => 0,
    }
}

/// What a key's entry has in each life: its region there, and the key with the first extent.
pub(super) fn contributions<'a>(
    key: &'a [u8],
    entry: &'a Entry,
) -> impl Iterator<Item = (SegmentId, u64)> + 'a {
    let extents = match entry {
        Entry::Put(slot) => slot.region.as_slice(),
        Entry::Tombstone(_) => &[],
    };
    let keys = std::iter::once(key.len() as u64).chain(std::iter::repeat(0));
    extents.iter().zip(keys).map(|(extent, key)| (extent.segment, u64::from(extent.length) + key))
}
