//! A lock between tasks of one core that may be held over an await, and a way to run I/O so that its caller
//! may go away.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;

use futures_channel::oneshot;
use krita_runtime::{Spawn, TaskClass};

/// One holder at a time, in the order of asking.
#[derive(Default)]
pub(crate) struct Gate {
    held: Cell<bool>,
    waiting: RefCell<VecDeque<oneshot::Sender<Pass>>>,
}

impl Gate {
    /// Waits for the gate.
    pub(crate) async fn enter(self: &Rc<Self>) -> Pass {
        loop {
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            let (sender, receiver) = oneshot::channel();
            self.waiting.borrow_mut().push_back(sender);
            if let Ok(pass) = receiver.await {
                return pass;
            }
        }
    }

    /// The gate, if nobody holds it.
    pub(crate) fn try_enter(self: &Rc<Self>) -> Option<Pass> {
        (!self.held.replace(true)).then(|| Pass { gate: Some(self.clone()) })
    }
}

/// The right to be inside a gate, until it is dropped.
pub(crate) struct Pass {
    gate: Option<Rc<Gate>>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Some(gate) = self.gate.take() else { return };
        loop {
            let next = gate.waiting.borrow_mut().pop_front();
            let Some(next) = next else {
                gate.held.set(false);
                return;
            };
            // Handed over while still held. A waiter that went away gives it back, without this drop.
            match next.send(Pass { gate: Some(gate.clone()) }) {
                Ok(()) => return,
                Err(mut refused) => refused.gate = None,
            }
        }
    }
}

/// Runs `future` in a task of its own and waits for it: dropping the wait does not drop I/O in flight. None
/// if the core ends first.
pub(crate) async fn detached<S, F>(
    runtime: &S,
    class: TaskClass,
    name: &'static str,
    future: F,
) -> Option<F::Output>
where
    S: Spawn,
    F: Future + 'static,
    F::Output: 'static,
{
    let (sender, receiver) = oneshot::channel();
    runtime.spawn(class, name, async move {
        // An error means that nobody waits any more.
        let _ = sender.send(future.await);
    });
    receiver.await.ok()
}
