//! Shards held still for scans: a scan names itself, and its pages of one shard are read from one view of it.
//!
//! A view costs memory and disk while it is held (see [`PinnedView`]), so everything here is bounded: how many there
//! are on a core, how long each lives and may lie idle, and the memory that they keep. When the log needs space, old
//! views go at once: compaction waits for none of them longer than [`AGE_MAX_SHORT`]. A scan whose view has gone goes
//! on as of a later entry, and says so; so letting go of one is always safe.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_engine::{PinnedView, Store};
use krita_runtime::{Instant, Runtime};

use crate::mending::Source;
use crate::request::Scan;
use crate::unconfirmed::Wanted;

/// Views that one core holds.
const VIEWS_MAX: usize = 4096;

/// How long a view may wait for the next page, and how long it lives in all.
const IDLE_MAX: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = Duration::from_secs(300);

/// How long a view lives while writers are slowed down so that compaction can free space, and while the log has
/// reached its bound.
const AGE_MAX_TIGHT: Duration = Duration::from_secs(20);
const AGE_MAX_SHORT: Duration = Duration::from_secs(2);

/// Where compaction begins to slow writers down, and where the log has reached its bound.
const PRESSURE_TIGHT: f64 = 1.0;
const PRESSURE_SHORT: f64 = 2.0;

/// Memory that is there for the views of a core alone.
const HELD_BYTES_MAX: usize = 64 << 20;

/// When a core that is full of views takes the place of the one that has waited longest.
const IDLE_MIN: Duration = Duration::from_secs(10);

/// A scan's part in a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Part {
    shard: u32,
    scan_id: u64,
}

struct Held<R: Runtime> {
    view: Rc<PinnedView<R>>,
    store: Store<R>,
    /// A quorum confirmed it when it was taken.
    is_confirmed: bool,
    taken_at: Instant,
    used_at: Instant,
}

/// The views of one core.
pub(crate) struct Views<R: Runtime> {
    held: RefCell<BTreeMap<Part, Held<R>>>,
}

impl<R: Runtime> Views<R> {
    pub(crate) fn new() -> Self {
        Self { held: RefCell::default() }
    }

    /// Whether [`Self::find`] would find one.
    pub(crate) fn has(&self, shard: u32, scan: &Scan, wanted: Wanted) -> bool {
        let held = self.held.borrow();
        let found = held.get(&Part { shard, scan_id: scan.scan_id });
        found.is_some_and(|held| {
            let is_the_same = scan.applied_index == 0 || held.view.applied().0 == scan.applied_index;
            is_the_same && (held.is_confirmed || wanted == Wanted::Any)
        })
    }

    /// What is held for a scan, if it is what earlier pages were read from.
    pub(crate) fn find(
        &self,
        shard: u32,
        scan: &Scan,
        wanted: Wanted,
        now: Instant,
    ) -> Option<Rc<PinnedView<R>>> {
        if !self.has(shard, scan, wanted) {
            return None;
        }
        let mut held = self.held.borrow_mut();
        let found = held.get_mut(&Part { shard, scan_id: scan.scan_id })?;
        found.used_at = now;
        Some(found.view.clone())
    }

    /// Holds a view for the scan's next page, if there is room.
    pub(crate) fn hold(&self, source: &Source<R>, scan: &Scan, view: Rc<PinnedView<R>>, is_confirmed: bool) {
        let now = source.runtime.now();
        let part = Part { shard: source.shard.0, scan_id: scan.scan_id };
        let mut held = self.held.borrow_mut();
        if held.len() >= VIEWS_MAX && !held.contains_key(&part) {
            let oldest = held.iter().map(|(part, held)| (held.used_at, *part)).min();
            match oldest {
                Some((used_at, oldest)) if now.since(used_at) >= IDLE_MIN => held.remove(&oldest),
                // Those that are being read come first: this scan goes on without.
                Some(_) | None => return,
            };
        }
        let store = source.store.clone();
        held.insert(part, Held { view, store, is_confirmed, taken_at: now, used_at: now });
    }

    /// The scan needs it no longer.
    pub(crate) fn release(&self, shard: u32, scan_id: u64) {
        self.held.borrow_mut().remove(&Part { shard, scan_id });
    }

    /// The replica goes.
    pub(crate) fn release_shard(&self, shard: u32) {
        self.held.borrow_mut().retain(|part, _| part.shard != shard);
    }

    /// Lets go of what is old or idle, and of the oldest while they keep too much memory.
    pub(crate) fn expire(&self, now: Instant) {
        let mut held = self.held.borrow_mut();
        if held.is_empty() {
            return;
        }
        held.retain(|_, held| {
            now.since(held.used_at) <= IDLE_MAX
                && now.since(held.taken_at) <= age_max(held.store.space_pressure())
        });
        let mut bytes: usize = held.values().map(|held| held.view.bytes_held()).sum();
        while bytes > HELD_BYTES_MAX {
            let keeping = held.iter().filter(|(_, held)| held.view.bytes_held() > 0);
            let Some((_, oldest)) = keeping.map(|(part, held)| (held.taken_at, *part)).min() else { return };
            let gone = held.remove(&oldest);
            bytes -= gone.map_or(bytes, |gone| gone.view.bytes_held());
        }
    }

    /// How many are held.
    pub(crate) fn count(&self) -> usize {
        self.held.borrow().len()
    }
}

/// How long a view may live while the log is that short of space.
fn age_max(pressure: f64) -> Duration {
    if pressure >= PRESSURE_SHORT {
        AGE_MAX_SHORT
    } else if pressure > PRESSURE_TIGHT {
        AGE_MAX_TIGHT
    } else {
        AGE_MAX
    }
}
