//! Epochs: when what was replaced may be thrown away.
//!
//! Whoever reads from a state of the index that may be replaced meanwhile (a view) enters the current epoch and stays
//! in it. A segment that the current state does not need any more may still be needed by them: it is used again once
//! everybody has left who entered before that was so.
//!
//! ```text
//!   epoch      0        1        2
//!              ├ scan ──┼────────┼──┤          segment 7 is dead at ▲ (epoch 0 closes):
//!              │        ├ get ┤  │             it waits for the scan, and not for the get
//!                       ▲ close() = 0
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The number of an epoch. Rises.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct EpochNumber(u64);

/// The epochs of one log.
#[derive(Default)]
pub(crate) struct Epochs {
    current: Cell<u64>,
    /// How many are in each epoch; never 0.
    inside: RefCell<BTreeMap<u64, u64>>,
}

impl Epochs {
    /// Enters the current epoch, until the guard is dropped.
    pub(crate) fn enter(self: &Rc<Self>) -> Epoch {
        let number = self.current.get();
        *self.inside.borrow_mut().entry(number).or_default() += 1;
        Epoch { epochs: self.clone(), number }
    }

    /// Closes the current epoch: whoever enters later sees what is so now.
    pub(crate) fn close(&self) -> EpochNumber {
        let number = self.current.get();
        self.current.set(number + 1);
        EpochNumber(number)
    }

    /// Whether everybody has left who entered in this closed epoch or before.
    pub(crate) fn has_passed(&self, epoch: EpochNumber) -> bool {
        debug_assert!(epoch.0 < self.current.get(), "only what is closed passes");
        self.inside.borrow().keys().next().is_none_or(|oldest| *oldest > epoch.0)
    }
}

/// A stay in an epoch.
pub(crate) struct Epoch {
    epochs: Rc<Epochs>,
    number: u64,
}

impl Drop for Epoch {
    fn drop(&mut self) {
        let mut inside = self.epochs.inside.borrow_mut();
        let count = inside.get_mut(&self.number).expect("everybody inside is counted");
        *count -= 1;
        if *count == 0 {
            inside.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_passes_once_all_who_entered_by_then_have_left() {
        let epochs = Rc::new(Epochs::default());
        let (first, second) = (epochs.enter(), epochs.enter());
        let closed = epochs.close();
        let later = epochs.enter();
        assert!(!epochs.has_passed(closed));
        drop(first);
        assert!(!epochs.has_passed(closed));
        drop(second);
        assert!(epochs.has_passed(closed), "who entered later does not count");
        drop(later);
        let empty = epochs.close();
        assert!(epochs.has_passed(empty));
    }
}
