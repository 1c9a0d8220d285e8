//! Who began when. A segment may be used again only when nobody is left who may have seen a slot that pointed
//! into it; whoever looks at an index for longer than one poll holds an epoch, and so says since when.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A number that rises with every step of compaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Epoch(u64);

/// The epochs of one store. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Epochs {
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    now: Cell<u64>,
    /// How many hold each epoch; never 0.
    held: RefCell<BTreeMap<u64, u64>>,
}

impl Epochs {
    /// Holds the present epoch until the guard goes.
    pub(crate) fn enter(&self) -> EpochGuard {
        let epoch = self.state.now.get();
        *self.state.held.borrow_mut().entry(epoch).or_default() += 1;
        EpochGuard { state: self.state.clone(), epoch }
    }

    /// Begins the next epoch: whoever enters from now on holds it or a later one.
    pub(crate) fn advance(&self) -> Epoch {
        self.state.now.set(self.state.now.get() + 1);
        Epoch(self.state.now.get())
    }

    /// Whether nobody is left who entered before `epoch`.
    pub(crate) fn is_past(&self, epoch: Epoch) -> bool {
        self.state.held.borrow().first_key_value().is_none_or(|(oldest, _)| *oldest >= epoch.0)
    }
}

/// Holds an epoch.
pub(crate) struct EpochGuard {
    state: Rc<State>,
    epoch: u64,
}

impl Clone for EpochGuard {
    fn clone(&self) -> Self {
        *self.state.held.borrow_mut().entry(self.epoch).or_default() += 1;
        Self { state: self.state.clone(), epoch: self.epoch }
    }
}

impl Drop for EpochGuard {
    fn drop(&mut self) {
        let mut held = self.state.held.borrow_mut();
        let count = held.get_mut(&self.epoch).expect("held epochs are counted");
        *count -= 1;
        if *count == 0 {
            held.remove(&self.epoch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_past_once_all_from_before_it_are_gone() {
        let epochs = Epochs::default();
        let early = epochs.enter();
        let clone = early.clone();
        let epoch = epochs.advance();
        let late = epochs.enter();
        assert!(!epochs.is_past(epoch));
        drop(early);
        assert!(!epochs.is_past(epoch));
        drop(clone);
        assert!(epochs.is_past(epoch));
        assert!(!epochs.is_past(epochs.advance()));
        drop(late);
        assert!(epochs.is_past(epochs.advance()));
    }
}
