//! Streams, listeners and connecting, as a process sees them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::io::{AsyncRead, AsyncWrite};

use super::HostId;
use super::executor::{Core, WokenList};
use super::host::{Host, Process};
use super::network::{Connection, Detached, End, ListenerEntry, Side};
use super::world::World;
use crate::{Listener, Stream};

/// A simulated connection's end. Dropping it closes the connection as a kernel would.
pub struct SimStream {
    world: Rc<World>,
    process: Rc<Process>,
    side: Side,
    /// Absent once the stream was detached.
    connection: Option<Rc<Connection>>,
}

impl SimStream {
    fn new(world: &Rc<World>, process: &Rc<Process>, connection: Rc<Connection>, side: Side) -> Self {
        Self { world: Rc::clone(world), process: Rc::clone(process), side, connection: Some(connection) }
    }

    fn connection(&self) -> io::Result<&Rc<Connection>> {
        if !self.process.alive.get() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.connection.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    pub(crate) fn detach(mut self) -> SimHandoff {
        let world = Rc::clone(&self.world);
        let id = world.next_identifier();
        if let Some(connection) = self.connection.take() {
            let detached = Detached { connection, side: self.side, process: self.process.id };
            world.network.handoffs.borrow_mut().insert(id, detached);
        }
        SimHandoff { id, attached: false, dropped: Arc::clone(&world.executor.woken) }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let connection = self.connection()?;
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let network = &self.world.network;
        let short_read_chance = network.options.borrow().short_read_chance;
        connection.with(self.side, |here, there| {
            if here.received_bytes == 0 {
                if let Some(error) = here.error {
                    return Poll::Ready(Err(error.into()));
                }
                if here.end_of_stream {
                    return Poll::Ready(Ok(0));
                }
                here.read_waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            let mut length = buffer.len().min(here.received_bytes);
            if length > 1 && network.random.chance(short_read_chance) {
                length = network.random.between(1, length as u64 - 1) as usize;
                self.world.count(|statistics| statistics.short_reads += 1);
            }
            let mut filled = 0;
            while filled < length {
                let Some(front) = here.received.front_mut() else { break };
                let part = front.len().min(length - filled);
                front.copy_to_slice(&mut buffer[filled..filled + part]);
                filled += part;
                if front.is_empty() {
                    here.received.pop_front();
                }
            }
            here.received_bytes -= filled;
            if let Some(waker) = there.write_waker.take() {
                waker.wake();
            }
            Poll::Ready(Ok(filled))
        })
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let connection = self.connection()?;
        let room = connection.room(self.side);
        let network = &self.world.network;
        let ready = connection.with(self.side, |here, _| {
            if let Some(error) = here.error {
                return Poll::Ready(Err(io::Error::from(error)));
            }
            if here.finished {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if room == 0 && !bytes.is_empty() {
                here.write_waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Ok(bytes.len().min(room)))
        });
        let mut length = match ready {
            Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) | Poll::Pending => return ready,
            Poll::Ready(Ok(length)) => length,
        };
        if length > 1 && network.random.chance(network.options.borrow().short_write_chance) {
            length = network.random.between(1, length as u64 - 1) as usize;
        }
        if length < bytes.len() {
            self.world.count(|statistics| statistics.short_writes += 1);
        }
        self.world.send_bytes(connection, self.side, Bytes::copy_from_slice(&bytes[..length]));
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = self.connection()?;
        Poll::Ready(
            connection.with(self.side, |here, _| here.error.map_or(Ok(()), |error| Err(error.into()))),
        )
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = self.connection()?;
        if connection.with(self.side, |here, _| here.error.is_none()) {
            self.world.send_finish(connection, self.side);
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for SimStream {
    fn peer_address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(|connection| connection.end(self.side.other()).address)
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.process.alive.get()
        {
            self.world.close_end(&connection, self.side);
        }
    }
}

/// A stream between two cores. Dropped, it closes the connection.
pub struct SimHandoff {
    id: u64,
    attached: bool,
    dropped: Arc<WokenList>,
}

impl Drop for SimHandoff {
    fn drop(&mut self) {
        if !self.attached {
            self.dropped.push_handoff(self.id);
        }
    }
}

/// A simulated listening socket's share on one core.
pub struct SimListener {
    world: Rc<World>,
    process: Rc<Process>,
    backlog: Rc<Backlog>,
}

/// Connections that wait for one core to accept them.
pub(crate) struct Backlog {
    core: u16,
    address: SocketAddr,
    waiting: RefCell<VecDeque<Rc<Connection>>>,
    waker: RefCell<Option<Waker>>,
    closed: Cell<bool>,
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<SimStream> {
        poll_fn(|context| {
            if self.backlog.closed.get() || !self.process.alive.get() {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            if let Some(connection) = self.backlog.waiting.borrow_mut().pop_front() {
                return Poll::Ready(Ok(SimStream::new(&self.world, &self.process, connection, Side::Server)));
            }
            *self.backlog.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn local_address(&self) -> SocketAddr {
        self.backlog.address
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.backlog.closed.set(true);
        if !self.process.alive.get() {
            return;
        }
        let mut listeners = self.process.host.listeners.borrow_mut();
        for entry in listeners.iter_mut() {
            entry.members.retain(|member| !Rc::ptr_eq(member, &self.backlog));
        }
        listeners.retain(|entry| !entry.members.is_empty());
        drop(listeners);
        for connection in std::mem::take(&mut *self.backlog.waiting.borrow_mut()) {
            self.world.close_end(&connection, Side::Server);
        }
    }
}

/// A connect under way.
struct Attempt {
    process: Rc<Process>,
    from: HostId,
    to: HostId,
    target: SocketAddr,
    /// Nobody waits for the outcome any more, or it is there.
    over: Cell<bool>,
    outcome: RefCell<Option<io::Result<SimStream>>>,
    waker: RefCell<Option<Waker>>,
}

impl Attempt {
    fn conclude(&self, outcome: io::Result<SimStream>) {
        self.over.set(true);
        *self.outcome.borrow_mut() = Some(outcome);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Ends the attempt with the future that waits for it.
struct GiveUp(Rc<Attempt>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.over.set(true);
    }
}

impl World {
    pub(crate) fn listen(self: &Rc<Self>, core: &Core, address: SocketAddr) -> io::Result<SimListener> {
        let (process, id) = (&core.process, core.id.0);
        let host = &process.host;
        let own = |ip: IpAddr| ip.is_unspecified() || ip.is_loopback() || ip == host.address;
        if !own(address.ip()) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = if address.port() == 0 { self.ephemeral_port(core) } else { address.port() };
        let address = SocketAddr::new(address.ip(), port);
        let backlog = Rc::new(Backlog {
            core: id,
            address,
            waiting: RefCell::default(),
            waker: RefCell::default(),
            closed: Cell::new(false),
        });
        let mut listeners = host.listeners.borrow_mut();
        let overlaps = |entry: &ListenerEntry| {
            entry.port == port
                && (entry.ip == address.ip() || entry.ip.is_unspecified() || address.ip().is_unspecified())
        };
        match listeners.iter_mut().find(|entry| overlaps(entry)) {
            Some(entry) => {
                let shared = entry.process == process.id && entry.ip == address.ip();
                if !shared || entry.members.iter().any(|member| member.core == id) {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                entry.members.push(Rc::clone(&backlog));
            }
            None => listeners.push(ListenerEntry {
                ip: address.ip(),
                port,
                process: process.id,
                members: vec![Rc::clone(&backlog)],
            }),
        }
        drop(listeners);
        Ok(SimListener { world: Rc::clone(self), process: Rc::clone(process), backlog })
    }

    /// The port for a core's next listener that asked for any.
    fn ephemeral_port(&self, core: &Core) -> u16 {
        let turn = core.ephemeral_listens.get();
        core.ephemeral_listens.set(turn + 1);
        let mut ports = core.process.ephemeral_ports.borrow_mut();
        while ports.len() <= turn {
            ports.push(self.take_port(core.process.host.id));
        }
        ports[turn]
    }

    /// Connects, in at most `timeout`.
    pub(crate) async fn connect(
        self: Rc<Self>,
        process: Rc<Process>,
        address: String,
        timeout: Duration,
    ) -> io::Result<SimStream> {
        let target = self.resolve(&process.host, &address)?;
        let mut limit = std::pin::pin!(self.sleep(&process.host, timeout));
        let own = target.ip().is_loopback() || target.ip() == process.host.address;
        let to = if own { Some(Rc::clone(&process.host)) } else { self.host_at(target.ip()) };
        let attempt = GiveUp(Rc::new(Attempt {
            from: process.host.id,
            to: to.as_ref().map_or(process.host.id, |host| host.id),
            process,
            target,
            over: Cell::new(false),
            outcome: RefCell::default(),
            waker: RefCell::default(),
        }));
        if to.is_some() {
            // To an address that nobody has, packets go and nothing comes back.
            self.knock(&attempt.0, 0);
        }
        poll_fn(|context| {
            if let Some(outcome) = attempt.0.outcome.borrow_mut().take() {
                return Poll::Ready(outcome);
            }
            *attempt.0.waker.borrow_mut() = Some(context.waker().clone());
            limit.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
        })
        .await
    }

    fn resolve(&self, from: &Host, address: &str) -> io::Result<SocketAddr> {
        if let Ok(address) = address.parse() {
            return Ok(address);
        }
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("not host:port: {address}"));
        let (name, port) = address.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().map_err(|_| invalid())?;
        let ip = match name {
            "localhost" => Some(from.address),
            name => self.host_named(name).map(|host| host.address),
        };
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("unknown host: {name}"));
        Ok(SocketAddr::new(ip.ok_or_else(unknown)?, port))
    }

    /// The first packet goes out, after `wait`.
    fn knock(self: &Rc<Self>, attempt: &Rc<Attempt>, wait: u64) {
        let delay = wait + self.network.delay(attempt.from, attempt.to);
        let attempt = Rc::clone(attempt);
        self.after(delay, move |world| {
            if attempt.over.get() {
                return;
            }
            if !world.reachable(attempt.from, attempt.to) {
                return world.knock(&attempt, world.connect_retry());
            }
            match world.admit(&attempt) {
                Ok(Some(connection)) => world.answer(&attempt, Ok(connection), 0),
                Ok(None) => world.knock(&attempt, world.connect_retry()),
                Err(error) => world.answer(&attempt, Err(error), 0),
            }
        });
    }

    /// The target's kernel takes the connection into some core's backlog; `None` if that is full.
    fn admit(&self, attempt: &Attempt) -> Result<Option<Rc<Connection>>, io::ErrorKind> {
        let host = self.host(attempt.to);
        let listeners = host.listeners.borrow();
        let matches = |entry: &&ListenerEntry| {
            entry.port == attempt.target.port()
                && (entry.ip.is_unspecified() || entry.ip == attempt.target.ip())
        };
        let entry = listeners.iter().find(matches).ok_or(io::ErrorKind::ConnectionRefused)?;
        let member = &entry.members[self.network.random.index(entry.members.len())];
        if member.waiting.borrow().len() >= self.network.options.borrow().backlog_max {
            return Ok(None);
        }
        let client_ip = self.host(attempt.from).address;
        let client = End {
            host: attempt.from,
            process: attempt.process.id,
            address: SocketAddr::new(client_ip, self.take_port(attempt.from)),
        };
        let server = End { host: attempt.to, process: entry.process, address: attempt.target };
        let connection = self.open_connection(client, server);
        self.trace(connection.id << 16 | u64::from(member.core));
        member.waiting.borrow_mut().push_back(Rc::clone(&connection));
        if let Some(waker) = member.waker.borrow_mut().take() {
            waker.wake();
        }
        Ok(Some(connection))
    }

    /// The target's answer goes back, after `wait`.
    fn answer(
        self: &Rc<Self>,
        attempt: &Rc<Attempt>,
        answer: Result<Rc<Connection>, io::ErrorKind>,
        wait: u64,
    ) {
        let delay = wait + self.network.delay(attempt.to, attempt.from);
        let attempt = Rc::clone(attempt);
        self.after(delay, move |world| {
            let wanted = !attempt.over.get() && attempt.process.alive.get();
            if wanted && !world.reachable(attempt.to, attempt.from) {
                return world.answer(&attempt, answer, world.connect_retry());
            }
            match answer {
                Ok(connection) if wanted => {
                    let stream = SimStream::new(world, &attempt.process, connection, Side::Client);
                    attempt.conclude(Ok(stream));
                }
                // The kernel of a client that has gone resets what comes for it.
                Ok(connection) => world.close_end(&connection, Side::Client),
                Err(error) if wanted => attempt.conclude(Err(error.into())),
                Err(_) => {}
            }
        });
    }

    pub(crate) fn attach(
        self: &Rc<Self>,
        process: &Rc<Process>,
        mut handoff: SimHandoff,
    ) -> io::Result<SimStream> {
        let taken = self.network.handoffs.borrow_mut().remove(&handoff.id);
        let Detached { connection, side, process: owner } = taken.ok_or(io::ErrorKind::NotConnected)?;
        handoff.attached = true;
        assert_eq!(owner, process.id, "a stream was handed to another process");
        Ok(SimStream::new(self, process, connection, side))
    }
}
