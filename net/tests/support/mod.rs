//! A world of one thread for the tests of this crate: tasks, virtual time and in-memory streams.
//!
//! Smaller than the simulator and without its faults, and TLS may run on it: nothing here promises replay.

#![allow(dead_code, reason = "each test file uses its part")]

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::io::{AsyncRead, AsyncWrite};
use krita_runtime::{Clock, Instant, Listener, Network, Rng, Spawn, Stream, TaskClass, WallTime};

/// The world; a handle to it is the runtime of every task.
#[derive(Clone, Default)]
pub(crate) struct World {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    now: RefCell<u64>,
    next_timer: RefCell<u64>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    tasks: RefCell<Vec<Option<Task>>>,
    ready: Ready,
    random: RefCell<u64>,
    listeners: RefCell<BTreeMap<String, Rc<RefCell<Backlog>>>>,
    /// Bytes in flight in one direction, and most bytes per read and write.
    link: RefCell<Link>,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

type Ready = Arc<Mutex<VecDeque<usize>>>;

/// How new streams behave.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// Bytes that may be in flight in one direction.
    pub(crate) capacity: usize,
    /// Most bytes that one read or write moves.
    pub(crate) piece: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self { capacity: 256 * 1024, piece: usize::MAX }
    }
}

struct TaskWaker {
    task: usize,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap().push_back(self.task);
    }
}

/// The task number of `block_on`'s own future.
const MAIN: usize = usize::MAX;

impl World {
    /// A world of the given links.
    pub(crate) fn with_link(link: Link) -> Self {
        let world = Self::default();
        *world.inner.link.borrow_mut() = link;
        world
    }

    /// Runs until `future` completes. Time passes only when nothing can run.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let ready = self.inner.ready.clone();
        ready.lock().unwrap().push_back(MAIN);
        loop {
            let next = ready.lock().unwrap().pop_front();
            let Some(task) = next else {
                let timer = self.inner.timers.borrow_mut().pop_first();
                let ((at, _), waker) = timer.expect("everything waits and nothing will happen");
                *self.inner.now.borrow_mut() = at;
                waker.wake();
                continue;
            };
            let waker = Waker::from(Arc::new(TaskWaker { task, ready: ready.clone() }));
            let mut context = Context::from_waker(&waker);
            if task == MAIN {
                if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                    return output;
                }
                continue;
            }
            let taken = self.inner.tasks.borrow_mut()[task].take();
            if let Some(mut running) = taken
                && running.as_mut().poll(&mut context).is_pending()
            {
                self.inner.tasks.borrow_mut()[task] = Some(running);
            }
        }
    }

    /// A connected pair of streams.
    pub(crate) fn pair(&self) -> (MemoryStream, MemoryStream) {
        let link = *self.inner.link.borrow();
        let one = Arc::new(Mutex::new(Pipe::default()));
        let other = Arc::new(Mutex::new(Pipe::default()));
        let left = MemoryStream { incoming: one.clone(), outgoing: other.clone(), link, port: 1 };
        let right = MemoryStream { incoming: other, outgoing: one, link, port: 2 };
        (left, right)
    }

    /// Time that has passed.
    pub(crate) fn passed(&self) -> Duration {
        self.now().since_origin()
    }
}

impl Clock for World {
    fn now(&self) -> Instant {
        Instant::from_nanoseconds(*self.inner.now.borrow())
    }

    fn wall_clock(&self) -> WallTime {
        WallTime(*self.inner.now.borrow() / 1_000_000)
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let mut next = self.inner.next_timer.borrow_mut();
        *next += 1;
        let key = (*self.inner.now.borrow() + duration.as_nanos() as u64, *next);
        let timer = TimerEntry { inner: self.inner.clone(), key };
        poll_fn(move |context| {
            if *timer.inner.now.borrow() >= timer.key.0 {
                return Poll::Ready(());
            }
            timer.inner.timers.borrow_mut().insert(timer.key, context.waker().clone());
            Poll::Pending
        })
    }
}

/// One sleeper's place among the timers; it leaves with the sleeper.
struct TimerEntry {
    inner: Rc<Inner>,
    key: (u64, u64),
}

impl Drop for TimerEntry {
    fn drop(&mut self) {
        self.inner.timers.borrow_mut().remove(&self.key);
    }
}

impl Rng for World {
    fn random_u64(&self) -> u64 {
        let mut state = self.inner.random.borrow_mut();
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 16
    }
}

impl Spawn for World {
    fn spawn<F: Future<Output = ()> + 'static>(&self, _class: TaskClass, _name: &'static str, future: F) {
        let mut tasks = self.inner.tasks.borrow_mut();
        self.inner.ready.lock().unwrap().push_back(tasks.len());
        tasks.push(Some(Box::pin(future)));
    }

    fn pause(&self) -> impl Future<Output = ()> + 'static {
        let mut paused = false;
        poll_fn(move |context| {
            if std::mem::replace(&mut paused, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }
}

#[derive(Default)]
struct Backlog {
    streams: VecDeque<MemoryStream>,
    waker: Option<Waker>,
}

/// A listening socket; dropping it refuses further connections.
pub(crate) struct MemoryListener {
    world: World,
    address: SocketAddr,
    backlog: Rc<RefCell<Backlog>>,
}

impl Listener for MemoryListener {
    type Stream = MemoryStream;

    async fn accept(&self) -> io::Result<MemoryStream> {
        poll_fn(|context| {
            let mut backlog = self.backlog.borrow_mut();
            if let Some(stream) = backlog.streams.pop_front() {
                return Poll::Ready(Ok(stream));
            }
            backlog.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn local_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.world.inner.listeners.borrow_mut().remove(&self.address.to_string());
    }
}

impl Network for World {
    type Stream = MemoryStream;
    type Listener = MemoryListener;
    type Handoff = MemoryStream;

    async fn listen(&self, address: SocketAddr) -> io::Result<MemoryListener> {
        let backlog = Rc::new(RefCell::new(Backlog::default()));
        self.inner.listeners.borrow_mut().insert(address.to_string(), backlog.clone());
        Ok(MemoryListener { world: self.clone(), address, backlog })
    }

    async fn connect(&self, address: &str, _timeout: Duration) -> io::Result<MemoryStream> {
        let listeners = self.inner.listeners.borrow();
        let Some(backlog) = listeners.get(address) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (near, far) = self.pair();
        let mut backlog = backlog.borrow_mut();
        backlog.streams.push_back(far);
        if let Some(waker) = backlog.waker.take() {
            waker.wake();
        }
        Ok(near)
    }

    fn detach(&self, stream: MemoryStream) -> MemoryStream {
        stream
    }

    fn attach(&self, handoff: MemoryStream) -> io::Result<MemoryStream> {
        Ok(handoff)
    }
}

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    ended: bool,
    reader_gone: bool,
    writes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// One end of an in-memory stream.
pub(crate) struct MemoryStream {
    incoming: Arc<Mutex<Pipe>>,
    outgoing: Arc<Mutex<Pipe>>,
    link: Link,
    port: u16,
}

impl MemoryStream {
    /// How many writes the other side has made.
    pub(crate) fn writes_received(&self) -> impl Fn() -> usize + use<> {
        let incoming = self.incoming.clone();
        move || incoming.lock().unwrap().writes
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        let mut outgoing = self.outgoing.lock().unwrap();
        outgoing.ended = true;
        outgoing.wake();
        drop(outgoing);
        let mut incoming = self.incoming.lock().unwrap();
        incoming.reader_gone = true;
        incoming.wake();
    }
}

impl Stream for MemoryStream {
    fn peer_address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from(([192, 0, 2, 1], self.port)))
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        assert!(!buffer.is_empty(), "a read into nothing looks like the end");
        let mut pipe = self.incoming.lock().unwrap();
        if pipe.bytes.is_empty() {
            if pipe.ended {
                return Poll::Ready(Ok(0));
            }
            pipe.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = buffer.len().min(pipe.bytes.len()).min(self.link.piece);
        for (place, byte) in buffer.iter_mut().zip(pipe.bytes.drain(..length)) {
            *place = byte;
        }
        pipe.wake();
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.outgoing.lock().unwrap();
        if pipe.reader_gone || pipe.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(self.link.capacity - pipe.bytes.len()).min(self.link.piece);
        if length == 0 {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        pipe.bytes.extend(&bytes[..length]);
        pipe.writes += 1;
        pipe.wake();
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.outgoing.lock().unwrap();
        pipe.ended = true;
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl World {
    /// Lets what is ready run: listeners start to listen.
    pub(crate) async fn sleep_a_moment(&self) {
        self.sleep(Duration::from_millis(1)).await;
    }
}
