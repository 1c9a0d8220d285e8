//! What breaks the cluster: a schedule of faults and their ends, drawn from the seed as the run goes on. Every fault
//! ends, and every node that goes comes back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_runtime::sim::{HostId, Latency, Random};

use super::cluster::{Cluster, State};
use super::observer::Observed;
use super::plan::healthy_network;
use super::rot::{self, Rot};
use super::workload::Scene;

/// Something that is done at its time.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Another fault, whichever the seed draws.
    Strike,
    /// A fault that every run has.
    Must(Fault),
    Boot(usize),
    Resume(usize),
    HealNetwork,
    CalmNetwork,
    CalmDisk(usize),
    PowerCut(usize),
    /// Something that a bad disk does, and its end.
    Rot,
    CalmRot,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    PowerCutOne,
    PowerCutMajority,
    PowerCutAll,
    /// One node goes for so long that the others' logs no longer reach back to where it was.
    Away,
    Kill,
    Stop,
    Pause,
    /// A node that leads something is cut off from the others, not from its clients.
    CutOffLeader,
    CutOff,
    OneWay,
    Split,
    Resets,
    Lossy,
    SlowNetwork,
    SlowDisk,
    HangingDisk,
    FailingDisk,
    WallClock,
}

/// Faults by how often they are drawn.
const WEIGHTS: [(Fault, u64); 17] = [
    (Fault::PowerCutOne, 10),
    (Fault::PowerCutMajority, 4),
    (Fault::PowerCutAll, 3),
    (Fault::Kill, 6),
    (Fault::Stop, 3),
    (Fault::Pause, 7),
    (Fault::CutOffLeader, 9),
    (Fault::CutOff, 5),
    (Fault::OneWay, 6),
    (Fault::Split, 3),
    (Fault::Resets, 6),
    (Fault::Lossy, 5),
    (Fault::SlowNetwork, 4),
    (Fault::SlowDisk, 6),
    (Fault::HangingDisk, 3),
    (Fault::FailingDisk, 2),
    (Fault::WallClock, 2),
];

/// The one who breaks things.
pub(crate) struct Nemesis {
    cluster: Rc<Cluster>,
    scene: Rc<Scene>,
    observed: Rc<RefCell<Observed>>,
    clients: Vec<HostId>,
    random: Random,
    /// By time and order of scheduling.
    acts: BTreeMap<(Duration, u64), Act>,
    scheduled: u64,
    /// Nodes whose disk was told to fail, and that may therefore give up.
    excused: Vec<bool>,
    /// The node whose disk is bad, in worlds that have one.
    rot: Option<Rot>,
    pub(crate) counts: Counts,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) faults: u64,
    pub(crate) excused_failures: u64,
}

impl Nemesis {
    pub(crate) fn new(
        cluster: Rc<Cluster>,
        scene: Rc<Scene>,
        observed: Rc<RefCell<Observed>>,
        clients: Vec<HostId>,
        rot: Option<Rot>,
    ) -> Self {
        let random = cluster.simulation.random();
        let mut excused = vec![false; cluster.nodes.len()];
        if let Some(rot) = &rot {
            excused[rot.position] = true;
        }
        Self {
            cluster,
            scene,
            observed,
            clients,
            random,
            acts: BTreeMap::new(),
            scheduled: 0,
            excused,
            rot,
            counts: Counts::default(),
        }
    }

    /// The node whose disk is bad.
    pub(crate) fn bad_disk(&self) -> Option<usize> {
        self.rot.as_ref().map(|rot| rot.position)
    }

    /// Breaks things for as long as the plan says, then mends everything.
    pub(crate) fn run(&mut self) {
        let simulation = self.cluster.simulation.clone();
        let (start, load) = (simulation.now(), self.cluster.plan.load);
        let end = start + load;
        self.schedule(Duration::from_millis(500), Act::Strike);
        // In any run: a node that is away for long, a leader that is cut off with clients, a loss of power under load.
        let sometime = |random: &Random, from: u64, to: u64| load * random.between(from, to) as u32 / 100;
        for (from, to, fault) in [
            (5, 40, Fault::Away),
            (5, 45, Fault::CutOffLeader),
            (50, 90, Fault::CutOffLeader),
            (20, 60, Fault::PowerCutMajority),
            (60, 95, Fault::PowerCutOne),
        ] {
            let when = sometime(&self.random, from, to);
            self.schedule(when, Act::Must(fault));
        }
        if let Some(rot) = &self.rot {
            let pause = rot.pause();
            self.schedule(pause, Act::Rot);
        }
        while let Some((at, act)) = self.acts.pop_first().map(|((at, _), act)| (at, act)) {
            if at >= end {
                break;
            }
            self.wait_until(at);
            self.act(act);
        }
        self.wait_until(end);
        self.mend();
    }

    /// Lets time pass; a node that gives up meanwhile must have a reason, and is started again.
    pub(crate) fn wait_until(&mut self, until: Duration) {
        let simulation = self.cluster.simulation.clone();
        loop {
            let now = simulation.now();
            if now >= until {
                return;
            }
            simulation.run_for((until - now).min(Duration::from_millis(250)));
            self.tend();
        }
    }

    fn tend(&mut self) {
        for (position, failure) in self.cluster.take_failures() {
            if self.excused[position] {
                self.counts.excused_failures += 1;
            } else {
                self.scene.violation(format!("node {} gave up: {failure}", position + 1));
            }
        }
        for position in 0..self.cluster.nodes.len() {
            let node = &self.cluster.nodes[position];
            let is_gone = matches!(node.state.get(), State::Up | State::Stopping)
                && !self.cluster.simulation.is_running(node.host);
            if is_gone {
                node.state.set(State::Down);
                self.cluster.simulation.disk(node.host).fail_writes(0);
                let pause = self.between(200, 2_000);
                self.schedule(pause, Act::Boot(position));
            }
        }
    }

    /// Ends every fault.
    fn mend(&mut self) {
        self.acts.clear();
        self.heal_network();
        self.calm_network();
        self.calm_rot();
        for position in 0..self.cluster.nodes.len() {
            self.calm_disk(position);
            self.cluster.resume(position);
        }
        for position in self.cluster.in_state(State::Down) {
            self.cluster.boot(position);
        }
        tracing::info!("all is mended");
    }

    /// Starts whatever is down: for the time after [`Nemesis::run`].
    pub(crate) fn settle(&mut self, duration: Duration) {
        let until = self.cluster.simulation.now() + duration;
        self.wait_until(until);
        self.acts.clear();
        for position in self.cluster.in_state(State::Down) {
            self.cluster.boot(position);
        }
    }

    fn schedule(&mut self, after: Duration, act: Act) {
        self.scheduled += 1;
        self.acts.insert((self.cluster.simulation.now() + after, self.scheduled), act);
    }

    fn between(&self, low_ms: u64, high_ms: u64) -> Duration {
        Duration::from_millis(self.random.between(low_ms, high_ms))
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Strike => {
                let fault = self.draw();
                self.strike(fault);
                let mean = self.cluster.plan.calm_mean.as_millis() as u64;
                let pause = self.between(mean / 5, mean * 9 / 5);
                self.schedule(pause, Act::Strike);
            }
            Act::Must(fault) => self.strike(fault),
            Act::Boot(position) => self.boot(position),
            Act::Resume(position) => self.cluster.resume(position),
            Act::HealNetwork => self.heal_network(),
            Act::CalmNetwork => self.calm_network(),
            Act::CalmDisk(position) => self.calm_disk(position),
            Act::PowerCut(position) => self.power_cut(position, 100, 4_000),
            Act::Rot => self.rot(),
            Act::CalmRot => self.calm_rot(),
        }
    }

    fn rot(&mut self) {
        let Some(rot) = &self.rot else { return };
        let disk = self.cluster.simulation.disk(self.cluster.nodes[rot.position].host);
        let (lasts, pause) = (rot.strike(&disk), rot.pause());
        self.schedule(lasts, Act::CalmRot);
        self.schedule(lasts + pause, Act::Rot);
    }

    fn calm_rot(&self) {
        if let Some(rot) = &self.rot {
            rot::calm(&self.cluster.simulation.disk(self.cluster.nodes[rot.position].host));
        }
    }

    fn boot(&mut self, position: usize) {
        if self.cluster.nodes[position].state.get() != State::Down {
            return;
        }
        self.cluster.boot(position);
        if self.random.chance(0.15) {
            // The power goes again while it recovers.
            let soon = self.between(1, 400);
            self.schedule(soon, Act::PowerCut(position));
        }
    }

    fn draw(&self) -> Fault {
        let total: u64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut ticket = self.random.below(total);
        for (fault, weight) in WEIGHTS {
            match ticket.checked_sub(weight) {
                Some(rest) => ticket = rest,
                None => return fault,
            }
        }
        unreachable!("the ticket is below the total")
    }

    fn strike(&mut self, fault: Fault) {
        tracing::info!(?fault, "strikes");
        self.counts.faults += 1;
        let all = self.cluster.nodes.len();
        match fault {
            Fault::PowerCutOne => self.power_cut_some(1),
            Fault::PowerCutMajority => self.power_cut_some(all / 2 + 1),
            Fault::PowerCutAll => self.power_cut_some(all),
            Fault::Away => self.away(),
            Fault::Kill => self.with_one_up(|this, position| {
                this.cluster.kill(position);
                let pause = this.between(50, 3_000);
                this.schedule(pause, Act::Boot(position));
            }),
            Fault::Stop => self.with_one_up(|this, position| this.cluster.stop(position)),
            Fault::Pause => self.with_one_up(|this, position| {
                this.cluster.pause(position);
                let pause = this.between(100, 5_000);
                this.schedule(pause, Act::Resume(position));
            }),
            Fault::CutOffLeader | Fault::CutOff | Fault::OneWay | Fault::Split => self.partition(fault),
            Fault::Resets | Fault::Lossy | Fault::SlowNetwork => self.disturb_network(fault),
            Fault::SlowDisk | Fault::HangingDisk | Fault::FailingDisk => self.disturb_disk(fault),
            Fault::WallClock => self.with_one_up(|this, position| {
                let milliseconds = this.random.between(0, 6_000) as i64 - 3_000;
                this.cluster.simulation.step_wall_clock(this.cluster.nodes[position].host, milliseconds);
            }),
        }
    }

    fn with_one_up(&mut self, action: impl FnOnce(&mut Self, usize)) {
        let up = self.cluster.in_state(State::Up);
        if !up.is_empty() {
            let position = up[self.random.index(up.len())];
            action(self, position);
        }
    }

    fn power_cut_some(&mut self, count: usize) {
        let mut victims = self.cluster.in_state(State::Up);
        victims.extend(self.cluster.in_state(State::Paused));
        while victims.len() > count {
            victims.remove(self.random.index(victims.len()));
        }
        // Mostly while their disks are busy, so that writes are torn.
        let is_busy = self.random.chance(0.75);
        let delay = self.between(50, 400);
        for position in victims {
            if is_busy {
                let slowness = self.between(20, 120);
                self.cluster.simulation.disk(self.cluster.nodes[position].host).slow(slowness);
                self.schedule(delay, Act::PowerCut(position));
            } else {
                self.power_cut(position, 100, 4_000);
            }
        }
    }

    fn power_cut(&mut self, position: usize, low_ms: u64, high_ms: u64) {
        if self.cluster.nodes[position].state.get() == State::Down {
            return;
        }
        self.cluster.power_cut(position);
        self.calm_disk(position);
        let pause = self.between(low_ms, high_ms);
        self.schedule(pause, Act::Boot(position));
    }

    fn away(&mut self) {
        let is_cut = self.random.chance(0.5);
        self.with_one_up(|this, position| match is_cut {
            true => this.power_cut(position, 10_000, 18_000),
            false => {
                this.cluster.kill(position);
                let pause = this.between(10_000, 18_000);
                this.schedule(pause, Act::Boot(position));
            }
        });
    }

    fn partition(&mut self, fault: Fault) {
        let network = self.cluster.simulation.network();
        let hosts: Vec<HostId> = self.cluster.nodes.iter().map(|node| node.host).collect();
        let victim = match fault {
            Fault::CutOffLeader => {
                let leading: Vec<usize> = self.observed.borrow().leading.values().copied().collect();
                match leading.is_empty() {
                    true => self.random.index(hosts.len()),
                    false => leading[self.random.index(leading.len())],
                }
            }
            _ => self.random.index(hosts.len()),
        };
        let others: Vec<HostId> = hosts.iter().copied().filter(|host| *host != hosts[victim]).collect();
        match fault {
            Fault::OneWay => {
                let outward = self.random.chance(0.5);
                let is_partial = self.random.chance(0.4);
                for other in others.iter().take(if is_partial { 1 } else { others.len() }) {
                    match outward {
                        true => network.partition_one_way(hosts[victim], *other),
                        false => network.partition_one_way(*other, hosts[victim]),
                    }
                }
            }
            Fault::Split => {
                // A bridge: two that cannot talk to each other, and others that talk to both.
                network.partition(hosts[victim], others[self.random.index(others.len())]);
            }
            _ => {
                for other in &others {
                    network.partition(hosts[victim], *other);
                }
                if matches!(fault, Fault::CutOff) && self.random.chance(0.5) {
                    for client in &self.clients {
                        network.partition(hosts[victim], *client);
                    }
                }
            }
        }
        let pause = self.between(500, 7_000);
        self.schedule(pause, Act::HealNetwork);
    }

    fn disturb_network(&mut self, fault: Fault) {
        let network = self.cluster.simulation.network();
        match fault {
            Fault::Resets => {
                let hosts: Vec<HostId> = self
                    .cluster
                    .nodes
                    .iter()
                    .map(|node| node.host)
                    .chain(self.clients.iter().copied())
                    .collect();
                let victim = self.cluster.nodes[self.random.index(self.cluster.nodes.len())].host;
                for host in hosts {
                    if self.random.chance(0.7) {
                        network.reset_connections(victim, host);
                    }
                }
                network.set_reset_chance(0.01);
            }
            Fault::Lossy => network.set_loss_chance(0.05),
            _ => network.set_latency(Latency::millis(1, self.random.between(20, 250))),
        }
        let pause = self.between(500, 4_000);
        self.schedule(pause, Act::CalmNetwork);
    }

    fn disturb_disk(&mut self, fault: Fault) {
        let delay = self.between(5, 150);
        let failing = u32::try_from(self.random.between(1, 3)).expect("few");
        let is_sync = self.random.chance(0.3);
        self.with_one_up(|this, position| {
            let disk = this.cluster.simulation.disk(this.cluster.nodes[position].host);
            match fault {
                Fault::SlowDisk => disk.slow(delay),
                Fault::HangingDisk => disk.hang(),
                _ => {
                    this.excused[position] = true;
                    match is_sync {
                        true => disk.fail_syncs(failing),
                        false => disk.fail_writes(failing),
                    }
                }
            }
            let pause = this.between(300, 4_000);
            this.schedule(pause, Act::CalmDisk(position));
        });
    }

    fn heal_network(&self) {
        self.cluster.simulation.network().heal_all();
    }

    fn calm_network(&self) {
        let (network, healthy) = (self.cluster.simulation.network(), healthy_network());
        network.set_latency(healthy.latency);
        network.set_loss_chance(healthy.loss_chance);
        network.set_reset_chance(healthy.reset_chance);
    }

    fn calm_disk(&self, position: usize) {
        let disk = self.cluster.simulation.disk(self.cluster.nodes[position].host);
        disk.slow(Duration::ZERO);
        disk.unhang();
        disk.fail_writes(0);
        disk.fail_syncs(0);
    }
}
