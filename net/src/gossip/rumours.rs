//! What is still to be passed on: one entry for each node that there is news of, so that it cannot outgrow the table.
//! What was sent least often goes first; what was sent often enough is dropped.

use std::collections::{BTreeMap, BTreeSet};

use super::member::NodeUuid;
use super::random::Random;

/// News of one kind. Only who they are about is kept: what is sent is what is known at the time of sending.
#[derive(Clone, Default, Debug)]
pub(super) struct Rumours {
    sent: BTreeMap<NodeUuid, Key>,
    order: BTreeSet<(Key, NodeUuid)>,
}

/// How often it was sent, and a random number so that not all nodes send the same first.
type Key = (u32, u64);

impl Rumours {
    /// There is something new about this node; it counts as sent so often already.
    pub(super) fn add(&mut self, about: NodeUuid, sent: u32, random: &mut Random) {
        let key = (sent, random.next());
        if let Some(old) = self.sent.insert(about, key) {
            self.order.remove(&(old, about));
        }
        self.order.insert((key, about));
    }

    pub(super) fn remove(&mut self, about: NodeUuid) {
        if let Some(old) = self.sent.remove(&about) {
            self.order.remove(&(old, about));
        }
    }

    /// It was sent once more: forget it after so many times.
    pub(super) fn sent(&mut self, about: NodeUuid, times_max: u32) {
        let Some(&(sent, tie)) = self.sent.get(&about) else { return };
        self.remove(about);
        if sent + 1 < times_max {
            self.sent.insert(about, (sent + 1, tie));
            self.order.insert(((sent + 1, tie), about));
        }
    }

    pub(super) fn contains(&self, about: NodeUuid) -> bool {
        self.sent.contains_key(&about)
    }

    /// By how often they were sent.
    pub(super) fn iter(&self) -> impl Iterator<Item = NodeUuid> + '_ {
        self.order.iter().map(|&(_, about)| about)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}
