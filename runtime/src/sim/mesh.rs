//! Messages between the cores of one process.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::executor::Core;
use super::random::Random;
use super::world::World;
use crate::{CoreId, Mesh, MeshFull};

/// A core's endpoint on its node's simulated mesh.
pub struct SimMesh<M> {
    core: CoreId,
    shared: Rc<Shared<M>>,
}

struct Shared<M> {
    world: Rc<World>,
    cores: Vec<Rc<Core>>,
    queues: Vec<Queue<M>>,
    /// When the last message from one core to another arrives: the next one must not overtake it.
    last_arrival: RefCell<BTreeMap<(CoreId, CoreId), u64>>,
    random: Random,
}

struct Queue<M> {
    arrived: RefCell<VecDeque<M>>,
    /// Messages arrived and on their way.
    occupied: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl<M: Send + 'static> SimMesh<M> {
    /// The endpoints of all cores.
    pub(crate) fn connect(world: &Rc<World>, cores: &[Rc<Core>], random: Random) -> Vec<Self> {
        let queue =
            || Queue { arrived: RefCell::default(), occupied: Cell::new(0), waker: RefCell::default() };
        let shared = Rc::new(Shared {
            world: Rc::clone(world),
            cores: cores.to_vec(),
            queues: cores.iter().map(|_| queue()).collect(),
            last_arrival: RefCell::default(),
            random,
        });
        cores.iter().map(|core| Self { core: core.id, shared: Rc::clone(&shared) }).collect()
    }

    fn queue(&self) -> &Queue<M> {
        &self.shared.queues[usize::from(self.core.0)]
    }
}

impl<M> Clone for SimMesh<M> {
    fn clone(&self) -> Self {
        Self { core: self.core, shared: Rc::clone(&self.shared) }
    }
}

impl<M: Send + 'static> Mesh<M> for SimMesh<M> {
    fn cores(&self) -> u16 {
        self.shared.cores.len() as u16
    }

    fn send(&self, to: CoreId, message: M) -> Result<(), MeshFull<M>> {
        let shared = &self.shared;
        let world = &shared.world;
        let target = &shared.cores[usize::from(to.0)];
        let queue = &shared.queues[usize::from(to.0)];
        if !target.is_alive() || queue.occupied.get() >= world.options.mesh_capacity {
            world.count(|statistics| statistics.mesh_refusals += 1);
            return Err(MeshFull(message));
        }
        world.count(|statistics| statistics.mesh_messages += 1);
        queue.occupied.set(queue.occupied.get() + 1);
        let earliest = world.now() + shared.random.latency(world.options.mesh_latency);
        let arrival = {
            let mut last = shared.last_arrival.borrow_mut();
            let last = last.entry((self.core, to)).or_default();
            *last = earliest.max(*last + 1);
            *last
        };
        let delivered = Rc::clone(shared);
        world.at(arrival, move |_| {
            let queue = &delivered.queues[usize::from(to.0)];
            queue.arrived.borrow_mut().push_back(message);
            if let Some(waker) = queue.waker.borrow_mut().take() {
                waker.wake();
            }
        });
        Ok(())
    }

    async fn receive(&self) -> M {
        poll_fn(|context| match self.try_receive() {
            Some(message) => Poll::Ready(message),
            None => {
                *self.queue().waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    fn try_receive(&self) -> Option<M> {
        let queue = self.queue();
        let message = queue.arrived.borrow_mut().pop_front()?;
        queue.occupied.set(queue.occupied.get() - 1);
        Some(message)
    }
}
