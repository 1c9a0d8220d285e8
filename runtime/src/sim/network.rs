//! What lies between hosts: which links are cut, how slow they are, and the connections that cross them.
//!
//! A connection is two pipes, one per direction. Bytes written enter a pipe as segments that arrive in order,
//! each after a latency of its own. A segment that arrives at a cut link waits there; it moves on some time
//! after the link heals, and if that takes too long the connection breaks, at its sender's end only: the other
//! end does not know, as in life.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;

use super::HostId;
use super::host::Process;
use super::options::{Latency, NetworkOptions};
use super::random::{Random, nanoseconds};
use super::stream::Backlog;
use super::world::World;

/// The network's own state.
pub(crate) struct NetworkState {
    pub(crate) options: RefCell<NetworkOptions>,
    pub(crate) random: Random,
    /// Directed links that carry nothing.
    pub(crate) cut: RefCell<BTreeSet<(HostId, HostId)>>,
    /// Hosts cut off from all others.
    pub(crate) isolated: RefCell<BTreeSet<HostId>>,
    pub(crate) link_latency: RefCell<BTreeMap<(HostId, HostId), Latency>>,
    pub(crate) connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    /// Streams on their way from one core to another.
    pub(crate) handoffs: RefCell<BTreeMap<u64, Detached>>,
}

/// A stream that is on no core: an end of a connection, and the process that owns it.
pub(crate) struct Detached {
    pub(crate) connection: Rc<Connection>,
    pub(crate) side: Side,
    pub(crate) process: u64,
}

/// A socket that some cores of a process listen on.
pub(crate) struct ListenerEntry {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
    pub(crate) process: u64,
    pub(crate) members: Vec<Rc<Backlog>>,
}

/// One of the two ends of a connection; also the pipe that carries bytes away from that end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Client, Self::Server];

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// A connection between two hosts (or one and itself).
pub(crate) struct Connection {
    pub(crate) id: u64,
    ends: [End; 2],
    state: RefCell<[Half; 2]>,
}

/// Where an end is.
pub(crate) struct End {
    pub(crate) host: HostId,
    pub(crate) process: u64,
    pub(crate) address: SocketAddr,
}

/// What an end knows, and the pipe that leads away from it.
pub(crate) struct Half {
    pub(crate) open: bool,
    /// What every further operation at this end gives, once received bytes are read.
    pub(crate) error: Option<io::ErrorKind>,
    pub(crate) read_waker: Option<Waker>,
    pub(crate) write_waker: Option<Waker>,
    /// Bytes that have arrived here and wait to be read.
    pub(crate) received: VecDeque<Bytes>,
    pub(crate) received_bytes: usize,
    pub(crate) end_of_stream: bool,
    /// Nothing more will be written here.
    pub(crate) finished: bool,
    in_flight: VecDeque<Segment>,
    in_flight_bytes: usize,
    /// Bytes that arrived at the other end while nothing could tell us so.
    unacknowledged: usize,
    window: usize,
    last_arrival: u64,
    /// A cut link has held up our bytes, or their acknowledgements, since then.
    stalled_since: Option<u64>,
    /// A reset is to reach this end as soon as anything can.
    reset_pending: bool,
}

struct Segment {
    arrives_at: u64,
    content: Content,
}

enum Content {
    Bytes(Bytes),
    Finish,
    Reset,
}

impl Half {
    fn new(window: usize) -> Self {
        Self {
            open: true,
            error: None,
            read_waker: None,
            write_waker: None,
            received: VecDeque::new(),
            received_bytes: 0,
            end_of_stream: false,
            finished: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            unacknowledged: 0,
            window,
            last_arrival: 0,
            stalled_since: None,
            reset_pending: false,
        }
    }

    /// Wakes whoever waits at this end.
    pub(crate) fn wake(&mut self) {
        for waker in [self.read_waker.take(), self.write_waker.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.write_waker.take() {
            waker.wake();
        }
    }

    fn fail(&mut self, error: io::ErrorKind) -> bool {
        let first = self.error.is_none() && self.open;
        self.error.get_or_insert(error);
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.stalled_since = None;
        self.wake();
        first
    }
}

impl Connection {
    pub(crate) fn end(&self, side: Side) -> &End {
        &self.ends[side as usize]
    }

    /// Calls `action` with the half at `side` and the one opposite.
    pub(crate) fn with<T>(&self, side: Side, action: impl FnOnce(&mut Half, &mut Half) -> T) -> T {
        let mut state = self.state.borrow_mut();
        let [client, server] = &mut *state;
        match side {
            Side::Client => action(client, server),
            Side::Server => action(server, client),
        }
    }

    /// How many bytes fit into the pipe that leads away from `side`.
    pub(crate) fn room(&self, side: Side) -> usize {
        self.with(side, |here, there| {
            let kept = there.received_bytes.max(here.unacknowledged);
            here.window.saturating_sub(here.in_flight_bytes + kept)
        })
    }
}

impl NetworkState {
    pub(crate) fn new(random: Random, options: NetworkOptions) -> Self {
        Self {
            options: RefCell::new(options),
            random,
            cut: RefCell::default(),
            isolated: RefCell::default(),
            link_latency: RefCell::default(),
            connections: RefCell::default(),
            handoffs: RefCell::default(),
        }
    }

    /// A draw of the one-way delay between two hosts.
    pub(crate) fn delay(&self, from: HostId, to: HostId) -> u64 {
        let options = self.options.borrow();
        let link = self.link_latency.borrow().get(&(from, to)).copied();
        let default = if from == to { options.loopback_latency } else { options.latency };
        self.random.latency(link.unwrap_or(default)).max(1)
    }
}

impl World {
    /// Whether anything sent now from one host arrives at the other.
    pub(crate) fn reachable(&self, from: HostId, to: HostId) -> bool {
        if !self.host(to).powered.get() || !self.host(from).powered.get() {
            return false;
        }
        let network = &self.network;
        from == to
            || !(network.cut.borrow().contains(&(from, to))
                || network.isolated.borrow().contains(&from)
                || network.isolated.borrow().contains(&to))
    }

    /// Creates a connection whose two ends exist from now on.
    pub(crate) fn open_connection(&self, client: End, server: End) -> Rc<Connection> {
        let network = &self.network;
        let window = || {
            let options = network.options.borrow();
            network.random.between(options.window_bytes_min as u64, options.window_bytes_max as u64) as usize
        };
        let connection = Rc::new(Connection {
            id: self.next_identifier(),
            state: RefCell::new([Half::new(window()), Half::new(window())]),
            ends: [client, server],
        });
        network.connections.borrow_mut().insert(connection.id, Rc::clone(&connection));
        self.count(|statistics| statistics.connections += 1);
        connection
    }

    /// Takes bytes into the pipe that leads away from `side`. There must be room for them.
    pub(crate) fn send_bytes(self: &Rc<Self>, connection: &Rc<Connection>, side: Side, bytes: Bytes) {
        let network = &self.network;
        let reset = network.random.chance(network.options.borrow().reset_chance);
        let length = if reset { network.random.index(bytes.len() + 1) } else { bytes.len() };
        if length > 0 {
            self.send(connection, side, Content::Bytes(bytes.slice(..length)));
        }
        if reset {
            self.send(connection, side, Content::Reset);
        }
    }

    /// Half-closes: the other end reads an end of stream after all that was sent before.
    pub(crate) fn send_finish(self: &Rc<Self>, connection: &Rc<Connection>, side: Side) {
        let first = connection.with(side, |here, _| !std::mem::replace(&mut here.finished, true));
        if first {
            self.send(connection, side, Content::Finish);
        }
    }

    fn send(self: &Rc<Self>, connection: &Rc<Connection>, side: Side, content: Content) {
        let network = &self.network;
        let mut delay = network.delay(connection.end(side).host, connection.end(side.other()).host);
        let length = match &content {
            Content::Bytes(bytes) => bytes.len(),
            Content::Finish | Content::Reset => 0,
        };
        let options = network.options.borrow();
        if network.random.chance(options.loss_chance) {
            self.count(|statistics| statistics.retransmissions += 1);
            delay += network.random.latency(options.retransmission);
        }
        let transmission = options.nanoseconds_per_byte * length as u64 + 1;
        drop(options);
        let arrives_at = connection.with(side, |here, _| {
            here.last_arrival = (self.now() + delay).max(here.last_arrival) + transmission;
            here.in_flight.push_back(Segment { arrives_at: here.last_arrival, content });
            here.in_flight_bytes += length;
            here.last_arrival
        });
        let connection = Rc::clone(connection);
        self.at(arrives_at, move |world| world.deliver(&connection, side));
    }

    /// Moves what is due from the pipe of `side` to the other end.
    fn deliver(self: &Rc<Self>, connection: &Rc<Connection>, side: Side) {
        let (from, to) = (connection.end(side).host, connection.end(side.other()).host);
        loop {
            let now = self.now();
            let due = connection.with(side, |here, _| {
                here.in_flight.front().is_some_and(|segment| segment.arrives_at <= now)
            });
            if !due {
                return;
            }
            if !self.reachable(from, to) {
                self.stall(connection, side);
                return;
            }
            let acknowledged = self.reachable(to, from);
            if !acknowledged {
                self.stall(connection, side);
            }
            let segment = connection.with(side, |here, _| here.in_flight.pop_front());
            let Some(segment) = segment else { return };
            match segment.content {
                Content::Bytes(bytes) => self.arrive(connection, side, bytes, acknowledged),
                Content::Finish => connection.with(side, |_, there| {
                    there.end_of_stream = true;
                    there.wake();
                }),
                Content::Reset => {
                    self.reset_end(connection, side.other());
                    // If it came from between the two, the sender does not know yet.
                    self.send_reset_to(connection, side);
                }
            }
        }
    }

    fn arrive(self: &Rc<Self>, connection: &Rc<Connection>, side: Side, bytes: Bytes, acknowledged: bool) {
        let length = bytes.len();
        self.count(|statistics| {
            statistics.segments += 1;
            statistics.bytes += length as u64;
        });
        let refused = connection.with(side, |here, there| {
            here.in_flight_bytes -= length;
            if !there.open || there.error.is_some() {
                return true;
            }
            if !acknowledged {
                here.unacknowledged += length;
            }
            there.received_bytes += length;
            there.received.push_back(bytes);
            if let Some(waker) = there.read_waker.take() {
                waker.wake();
            }
            false
        });
        if refused {
            self.send_reset_to(connection, side);
        }
    }

    /// The end opposite to `side` is gone and answers whatever comes with a reset.
    pub(crate) fn send_reset_to(self: &Rc<Self>, connection: &Rc<Connection>, side: Side) {
        let delay = self.network.delay(connection.end(side.other()).host, connection.end(side).host);
        let connection = Rc::clone(connection);
        self.after(delay, move |world| {
            if world.reachable(connection.end(side.other()).host, connection.end(side).host) {
                world.reset_end(&connection, side);
            } else {
                connection.with(side, |here, _| here.reset_pending = true);
            }
        });
    }

    /// A reset arrives at one end. What was received before can still be read.
    pub(crate) fn reset_end(&self, connection: &Connection, side: Side) {
        if connection.with(side, |here, _| here.fail(io::ErrorKind::ConnectionReset)) {
            self.count(|statistics| statistics.resets += 1);
        }
    }

    /// Resets both ends at once, after a random part of what is on its way has arrived.
    pub(crate) fn reset_now(&self, connection: &Connection) {
        for side in Side::BOTH {
            connection.with(side, |here, there| {
                let arriving = self.network.random.index(here.in_flight.len() + 1);
                for segment in here.in_flight.drain(..arriving) {
                    if let Content::Bytes(bytes) = segment.content {
                        let part = bytes.slice(..self.network.random.index(bytes.len() + 1));
                        let cut = part.len() < bytes.len();
                        if there.open && !part.is_empty() {
                            there.received_bytes += part.len();
                            there.received.push_back(part);
                        }
                        if cut {
                            break;
                        }
                    }
                }
            });
        }
        for side in Side::BOTH {
            self.reset_end(connection, side);
        }
    }

    /// The pipe of `side` is held up from now on, if it is not already, and breaks if that lasts.
    fn stall(self: &Rc<Self>, connection: &Rc<Connection>, side: Side) {
        let now = self.now();
        let first = connection.with(side, |here, _| {
            let first = here.stalled_since.is_none();
            here.stalled_since.get_or_insert(now);
            first && here.open
        });
        if !first {
            return;
        }
        let patience = self.network.random.latency(self.network.options.borrow().break_after);
        let connection = Rc::clone(connection);
        self.after(patience, move |world| {
            let broken = connection
                .with(side, |here, _| here.stalled_since == Some(now) && here.fail(io::ErrorKind::TimedOut));
            if broken {
                world.count(|statistics| statistics.breaks += 1);
            }
        });
    }

    /// Links have healed, or a host has come back: whatever waits there moves on.
    pub(crate) fn network_changed(self: &Rc<Self>) {
        let connections: Vec<_> = self.network.connections.borrow().values().cloned().collect();
        for connection in connections {
            for side in Side::BOTH {
                let (here, there) = (connection.end(side).host, connection.end(side.other()).host);
                let forth = self.reachable(here, there);
                let back = self.reachable(there, here);
                if back && connection.with(side, |here, _| std::mem::take(&mut here.reset_pending)) {
                    self.send_reset_to(&connection, side);
                }
                let stalled = connection.with(side, |here, _| {
                    if forth && back {
                        here.unacknowledged = 0;
                        here.wake_writer();
                        here.stalled_since.take().is_some()
                    } else {
                        forth && here.stalled_since.is_some()
                    }
                });
                if stalled {
                    self.resend(&connection, side);
                }
            }
        }
    }

    fn resend(self: &Rc<Self>, connection: &Rc<Connection>, side: Side) {
        let delay = self.network.random.latency(self.network.options.borrow().retransmission).max(1);
        let at = self.now() + delay;
        connection.with(side, |here, _| {
            for segment in &mut here.in_flight {
                segment.arrives_at = segment.arrives_at.max(at);
            }
            here.last_arrival = here.last_arrival.max(at);
        });
        let connection = Rc::clone(connection);
        self.at(at, move |world| world.deliver(&connection, side));
    }

    /// A stream is dropped: the kernel sends a reset if bytes were left unread, else an end of stream.
    pub(crate) fn close_end(self: &Rc<Self>, connection: &Rc<Connection>, side: Side) {
        if !connection.with(side, |here, _| here.open) {
            return;
        }
        let (reset, both_closed) = connection.with(side, |here, there| {
            here.open = false;
            (!here.received.is_empty() && here.error.is_none(), !there.open)
        });
        connection.with(side, |here, _| {
            here.received.clear();
            here.received_bytes = 0;
        });
        if both_closed {
            self.network.connections.borrow_mut().remove(&connection.id);
        } else if reset {
            self.send(connection, side, Content::Reset);
        } else if connection.with(side, |here, _| here.error.is_none()) {
            self.send_finish(connection, side);
        }
    }

    /// A handoff was dropped before any core attached it.
    pub(crate) fn drop_handoff(self: &Rc<Self>, handoff: u64) {
        let handoff = self.network.handoffs.borrow_mut().remove(&handoff);
        if let Some(detached) = handoff {
            self.close_end(&detached.connection, detached.side);
        }
    }

    fn connections_of(&self, process: &Process) -> Vec<(Rc<Connection>, Side)> {
        let connections = self.network.connections.borrow();
        let ends = connections.values().flat_map(|connection| Side::BOTH.map(|side| (connection, side)));
        ends.filter(|(connection, side)| {
            connection.end(*side).process == process.id && connection.with(*side, |here, _| here.open)
        })
        .map(|(connection, side)| (Rc::clone(connection), side))
        .collect()
    }

    /// A process has ended in whatever way: its kernel closes its connections.
    pub(crate) fn close_connections(self: &Rc<Self>, process: &Process) {
        for (connection, side) in self.connections_of(process) {
            self.close_end(&connection, side);
        }
    }

    /// A host has lost power: its connections are gone. A peer hears a reset now (from whatever stands for the
    /// host: a switch, a hypervisor), or nothing until it sends and the host is up again.
    pub(crate) fn abandon_connections(self: &Rc<Self>, process: &Process, reset_chance: f64) {
        for (connection, side) in self.connections_of(process) {
            connection.with(side, |here, _| {
                here.open = false;
                here.in_flight.clear();
                here.in_flight_bytes = 0;
                here.received.clear();
                here.received_bytes = 0;
            });
            if connection.with(side, |_, there| !there.open) {
                self.network.connections.borrow_mut().remove(&connection.id);
            } else if self.network.random.chance(reset_chance) {
                let delay = self.network.delay(connection.end(side).host, connection.end(side.other()).host);
                self.after(delay, move |world| world.reset_end(&connection, side.other()));
            }
        }
    }

    /// A port for a client's end, or for a listener that asked for any.
    pub(crate) fn take_port(&self, host: HostId) -> u16 {
        let host = self.host(host);
        loop {
            let port = host.next_port.get();
            host.next_port.set(port.checked_add(1).unwrap_or(32_768));
            if !host.listeners.borrow().iter().any(|entry| entry.port == port) {
                return port;
            }
        }
    }

    /// How long to wait before a connect is tried again.
    pub(crate) fn connect_retry(&self) -> u64 {
        nanoseconds(self.network.options.borrow().connect_retry).max(1)
    }
}
