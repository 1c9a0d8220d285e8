//! Hosts and the processes on them: their clocks, how they start, and the ways in which they die.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use super::HostId;
use super::disk::DiskState;
use super::executor::Core;
use super::network::ListenerEntry;
use super::options::CrashOptions;
use super::random::{Random, nanoseconds};
use super::world::World;
use crate::{CoreId, Instant, WallTime};

/// The wall time at which every simulation begins: 2026-01-01 UTC, in milliseconds.
const WALL_CLOCK_START: u64 = 1_767_225_600_000;

/// A machine.
pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) paused: Cell<bool>,
    /// False from a crash to the next start of a process.
    pub(crate) powered: Cell<bool>,
    pub(crate) processes: RefCell<Vec<Rc<Process>>>,
    pub(crate) listeners: RefCell<Vec<ListenerEntry>>,
    pub(crate) next_port: Cell<u16>,
    pub(crate) disk: Rc<DiskState>,
    pub(crate) crash_options: Cell<CrashOptions>,
    clock: Cell<HostClock>,
    wall_clock_error_ms: Cell<i64>,
    random: Random,
}

/// A clock that runs at its own rate: local time is `local` at true time `at`.
#[derive(Clone, Copy)]
struct HostClock {
    at: u64,
    local: u64,
    ppm: i64,
}

impl HostClock {
    fn read(self, now: u64) -> u64 {
        self.local + scale(now - self.at, self.ppm)
    }
}

fn scale(duration: u64, ppm: i64) -> u64 {
    (i128::from(duration) * (1_000_000 + i128::from(ppm)) / 1_000_000) as u64
}

/// Whose process it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProcessKind {
    /// Started by `Simulation::boot`.
    Node,
    /// The host's process for the test's own tasks.
    Script,
}

/// A process on a host: what dies together.
pub(crate) struct Process {
    pub(crate) id: u64,
    pub(crate) kind: ProcessKind,
    pub(crate) host: Rc<Host>,
    pub(crate) alive: Cell<bool>,
    pub(crate) random: Random,
    pub(crate) cores: RefCell<Vec<Rc<Core>>>,
    /// The ports given to listeners that asked for any: the first such listener of every core shares the
    /// first of them, and so on.
    pub(crate) ephemeral_ports: RefCell<Vec<u16>>,
    /// What the monotonic clock showed at the start, and the host's local time then.
    origin: u64,
    started_local: u64,
}

impl Process {
    /// The monotonic clock of this process.
    pub(crate) fn monotonic(&self, now: u64) -> Instant {
        let local = self.host.clock.get().read(now);
        Instant::from_nanoseconds(self.origin + (local - self.started_local))
    }
}

impl Host {
    pub(crate) fn new(world: &World, id: HostId, name: &str) -> Self {
        let random = world.random.fork(u64::from(id.0));
        let drift = i64::from(world.options.clock_drift_ppm_max);
        let error = nanoseconds(world.options.wall_clock_error_max) / 1_000_000;
        let [_, _, high, low] = (u32::from(id.0) + 1).to_be_bytes();
        Self {
            id,
            name: name.to_owned(),
            address: IpAddr::from([10, 0, high, low]),
            paused: Cell::new(false),
            powered: Cell::new(true),
            processes: RefCell::default(),
            listeners: RefCell::default(),
            next_port: Cell::new(32_768),
            disk: Rc::new(DiskState::new(random.fork(1), world.options.disk.clone())),
            crash_options: Cell::new(world.options.crash),
            clock: Cell::new(HostClock {
                at: 0,
                local: 0,
                ppm: random.between(0, 2 * drift as u64) as i64 - drift,
            }),
            wall_clock_error_ms: Cell::new(random.between(0, 2 * error) as i64 - error as i64),
            random,
        }
    }

    pub(crate) fn wall_clock(&self, now: u64) -> WallTime {
        let shown = WALL_CLOCK_START + self.clock.get().read(now) / 1_000_000;
        WallTime(shown.saturating_add_signed(self.wall_clock_error_ms.get()))
    }

    pub(crate) fn step_wall_clock(&self, milliseconds: i64) {
        self.wall_clock_error_ms.set(self.wall_clock_error_ms.get() + milliseconds);
    }

    pub(crate) fn set_drift(&self, now: u64, ppm: i32) {
        assert!(ppm.abs() < 500_000, "a clock that runs at less than half or more than 1.5 times its rate");
        let local = self.clock.get().read(now);
        self.clock.set(HostClock { at: now, local, ppm: i64::from(ppm) });
    }

    /// True time that passes while this host's clocks advance by at least `duration`.
    pub(crate) fn true_duration(&self, duration: u64) -> u64 {
        let rate = 1_000_000 + i128::from(self.clock.get().ppm);
        let exact = i128::from(duration) * 1_000_000 / rate + 2;
        u64::try_from(exact).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
    }

    /// The living script process, if there is one.
    pub(crate) fn script(&self) -> Option<Rc<Process>> {
        let processes = self.processes.borrow();
        processes.iter().find(|process| process.kind == ProcessKind::Script).cloned()
    }
}

impl World {
    /// Creates a process. It must be given cores before it can do anything.
    pub(crate) fn start_process(
        self: &Rc<Self>,
        host: &Rc<Host>,
        kind: ProcessKind,
        cores: u16,
    ) -> Rc<Process> {
        assert!(cores > 0, "a process without cores");
        let was_off = !host.powered.replace(true);
        let process = Rc::new(Process {
            id: self.next_identifier(),
            kind,
            host: Rc::clone(host),
            alive: Cell::new(true),
            random: host.random.fork(2),
            cores: RefCell::default(),
            ephemeral_ports: RefCell::default(),
            origin: host.random.between(1_000_000_000, 1 << 44),
            started_local: host.clock.get().read(self.now()),
        });
        *process.cores.borrow_mut() =
            (0..cores).map(|core| Rc::new(Core::new(Rc::clone(&process), CoreId(core)))).collect();
        host.processes.borrow_mut().push(Rc::clone(&process));
        if was_off {
            // Peers that still send to connections of before the crash shall hear of it.
            self.network_changed();
        }
        process
    }

    /// Ends a core whose main future has returned, and with the last core its process.
    pub(crate) fn end_core(self: &Rc<Self>, core: &Rc<Core>) {
        let process = &core.process;
        core.running.set(false);
        self.executor.drop_tasks(|other| std::ptr::eq(other, &**core));
        if process.cores.borrow().iter().all(|core| !core.running.get()) && process.alive.get() {
            self.close_connections(process);
            self.bury(process);
        }
    }

    /// All processes of a host die; the kernel lives and closes what they left open.
    pub(crate) fn kill_host(self: &Rc<Self>, host: &Rc<Host>) {
        self.count(|statistics| statistics.kills += 1);
        let processes = host.processes.borrow().clone();
        for process in &processes {
            self.close_connections(process);
            self.bury(process);
        }
        self.executor.drop_tasks(|core| Rc::ptr_eq(&core.process.host, host) && !core.process.alive.get());
        host.paused.set(false);
    }

    /// The host loses power.
    pub(crate) fn crash_host(self: &Rc<Self>, host: &Rc<Host>) {
        self.count(|statistics| statistics.crashes += 1);
        let options = host.crash_options.get();
        let processes = host.processes.borrow().clone();
        host.powered.set(false);
        for process in &processes {
            self.abandon_connections(process, options.reset_chance);
            self.bury(process);
        }
        host.disk.crash(self, options);
        self.executor.drop_tasks(|core| Rc::ptr_eq(&core.process.host, host));
        host.paused.set(false);
    }

    /// Marks a process dead and takes from the host what was its own. Its tasks may linger for a moment, but
    /// nothing they do has an effect any more.
    fn bury(&self, process: &Rc<Process>) {
        let host = &process.host;
        process.alive.set(false);
        host.processes.borrow_mut().retain(|other| !Rc::ptr_eq(other, process));
        host.listeners.borrow_mut().retain(|entry| entry.process != process.id);
        host.disk.unlock(process.id);
        // The cores refer to the process and the process to its cores.
        process.cores.borrow_mut().clear();
    }

    /// SIGCONT.
    pub(crate) fn resume_host(&self, host: &Host) {
        host.paused.set(false);
        for process in host.processes.borrow().iter() {
            for core in process.cores.borrow().iter() {
                self.schedule_core(core);
            }
        }
    }
}
