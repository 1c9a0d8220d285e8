//! The simulator's [`Runtime`]: a handle to one core of one simulated process.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::HostId;
use super::disk::{DiskAccess, SimFile};
use super::executor::Core;
use super::host::{Host, Process};
use super::mesh::SimMesh;
use super::random::nanoseconds;
use super::storage::normalize;
use super::stream::{SimHandoff, SimListener, SimStream};
use super::world::{Event, TimerState, World};
use crate::{
    Clock, CoreFigures, CoreId, Disk, Instant, Network, OpenOptions, Rng, Runtime, Spawn, TaskClass, WallTime,
};

/// One core of one process of a simulated host. When that process dies, the handle goes dead: what is asked
/// of it has no effect.
#[derive(Clone)]
pub struct SimRuntime {
    inner: Rc<Inner>,
}

struct Inner {
    world: Rc<World>,
    process: Rc<Process>,
    core: Rc<Core>,
}

impl SimRuntime {
    pub(crate) fn new(world: &Rc<World>, core: &Rc<Core>) -> Self {
        let process = Rc::clone(&core.process);
        Self { inner: Rc::new(Inner { world: Rc::clone(world), process, core: Rc::clone(core) }) }
    }

    /// The host that this runs on.
    pub fn host(&self) -> HostId {
        self.inner.process.host.id
    }

    /// Whether the core that this belongs to still exists.
    pub fn is_alive(&self) -> bool {
        self.inner.core.is_alive()
    }

    fn disk(&self) -> DiskAccess {
        DiskAccess { world: Rc::clone(&self.inner.world), process: Rc::clone(&self.inner.process) }
    }
}

impl Runtime for SimRuntime {
    type Mesh<M: Send + 'static> = SimMesh<M>;

    fn core(&self) -> CoreId {
        self.inner.core.id
    }

    fn core_figures(&self) -> CoreFigures {
        // Virtual time stands still while a task runs.
        CoreFigures::default()
    }
}

impl Clock for SimRuntime {
    fn now(&self) -> Instant {
        self.inner.process.monotonic(self.inner.world.now())
    }

    fn wall_clock(&self) -> WallTime {
        self.inner.process.host.wall_clock(self.inner.world.now())
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.inner.world.sleep(&self.inner.process.host, duration)
    }
}

impl Rng for SimRuntime {
    fn random_u64(&self) -> u64 {
        self.inner.process.random.next()
    }
}

impl Spawn for SimRuntime {
    fn spawn<F>(&self, class: TaskClass, name: &'static str, future: F)
    where
        F: Future<Output = ()> + 'static,
    {
        self.inner.world.spawn(&self.inner.core, class, name, Box::pin(future));
    }

    fn pause(&self) -> impl Future<Output = ()> + 'static {
        Pause { paused: false }
    }
}

impl Disk for SimRuntime {
    type File = SimFile;

    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<SimFile> {
        self.disk().open(normalize(path), options).await
    }

    async fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.disk().create_directory(normalize(path)).await
    }

    async fn list_directory(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk().list_directory(normalize(path)).await
    }

    async fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.disk().sync_directory(normalize(path)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk().rename(normalize(from), normalize(to)).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk().remove_file(normalize(path)).await
    }

    async fn read_small_file(&self, path: &Path, length_max: usize) -> io::Result<Vec<u8>> {
        self.disk().read_small_file(normalize(path), length_max).await
    }

    async fn replace_small_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.disk().replace_small_file(normalize(path), content.to_vec()).await
    }

    async fn lock_directory(&self, path: &Path) -> io::Result<()> {
        self.disk().lock_directory(normalize(path)).await
    }

    async fn available_bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk().available_bytes(normalize(path)).await
    }
}

impl Network for SimRuntime {
    type Stream = SimStream;
    type Listener = SimListener;
    type Handoff = SimHandoff;

    async fn listen(&self, address: SocketAddr) -> io::Result<SimListener> {
        self.inner.world.listen(&self.inner.core, address)
    }

    async fn connect(&self, address: &str, timeout: Duration) -> io::Result<SimStream> {
        let Inner { world, process, .. } = &*self.inner;
        Rc::clone(world).connect(Rc::clone(process), address.to_owned(), timeout).await
    }

    fn detach(&self, stream: SimStream) -> SimHandoff {
        stream.detach()
    }

    fn attach(&self, handoff: SimHandoff) -> io::Result<SimStream> {
        self.inner.world.attach(&self.inner.process, handoff)
    }
}

impl World {
    /// Completes once the host's clock has advanced by `duration`.
    pub(crate) fn sleep(self: &Rc<Self>, host: &Host, duration: Duration) -> Sleep {
        let lateness = self.random.latency(self.options.timer_lateness);
        let deadline = self.now() + host.true_duration(nanoseconds(duration)) + lateness;
        Sleep { world: Rc::clone(self), deadline, timer: None }
    }
}

/// A timer, registered at its first poll.
pub(crate) struct Sleep {
    world: Rc<World>,
    deadline: u64,
    timer: Option<Rc<TimerState>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let registered = match &self.timer {
            Some(timer) => Rc::clone(timer),
            None if self.deadline <= self.world.now() => return Poll::Ready(()),
            None => {
                let timer = Rc::new(TimerState::default());
                self.world.schedule(self.deadline, Event::Timer(Rc::clone(&timer)));
                self.timer = Some(Rc::clone(&timer));
                timer
            }
        };
        if registered.fired.get() {
            return Poll::Ready(());
        }
        let mut waker = registered.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => *waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take()
            && !timer.fired.get()
        {
            timer.cancelled.set(true);
            timer.waker.borrow_mut().take();
            self.world.events.note_cancelled();
        }
    }
}

struct Pause {
    paused: bool,
}

impl Future for Pause {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.paused, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
