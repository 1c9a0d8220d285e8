//! What the runs say of a few keys, fetched ahead so that applying can ask without I/O. Bounded; the oldest goes
//! first.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::Memtable;
use crate::run::Entry;

/// Most keys that are remembered.
pub(crate) const KEYS_MAX: usize = 4096;
/// Most bytes of such keys.
const BYTES_MAX: usize = 4 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Known {
    entries: BTreeMap<Bytes, Option<Entry>>,
    /// In the order in which they came.
    order: VecDeque<Bytes>,
    bytes: usize,
}

impl Known {
    /// What the runs hold for the key, if that is remembered.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<&Entry>> {
        self.entries.get(key).map(Option::as_ref)
    }

    pub(super) fn insert(&mut self, items: Vec<(Bytes, Option<Entry>)>) {
        for (key, entry) in items {
            if self.entries.insert(key.clone(), entry).is_none() {
                self.bytes += key.len();
                self.order.push_back(key);
            }
            while self.order.len() > KEYS_MAX || self.bytes > BYTES_MAX {
                let Some(oldest) = self.order.pop_front() else { break };
                self.bytes -= oldest.len();
                self.entries.remove(&oldest);
            }
        }
    }

    /// The memtable has become a run, newer than those that the entries came from.
    pub(super) fn flushed(&mut self, memtable: &Memtable) {
        for (key, entry) in &mut self.entries {
            if let Some(newer) = memtable.get(key) {
                *entry = Some(newer);
            }
        }
    }
}
