//! The simulated world of one group: clocks, network, disks, faults and clients, all driven by one seed.

mod amnesia;
mod chance;
mod checks;
mod faults;
mod members;
mod reigns;
mod totals;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use krita_raft::*;

use crate::common::{Disk, Machine, Replica};
use amnesia::{Amnesia, Plot};
use chance::Random;
use checks::Checks;
use members::Changes;
pub(crate) use totals::Totals;

const MILLISECOND: u64 = 1_000_000;
/// How long faults go on, and how long the healed group then has to agree.
const FAULTY: u64 = 30_000 * MILLISECOND;
const HEALED: u64 = 8_000 * MILLISECOND;

enum Event {
    Deliver(Message<Vec<u8>>),
    Tick,
    /// The oldest write of this life of the replica reaches its disk.
    WriteDone {
        life: u64,
    },
    Loaded {
        life: u64,
        to: ReplicaId,
        entries: Vec<Entry<Vec<u8>>>,
    },
    Snapshot {
        from: ReplicaId,
        machine: Machine,
    },
    Install {
        life: u64,
        from: ReplicaId,
        machine: Machine,
    },
    SnapshotAnswer {
        from: ReplicaId,
        installed: Option<Index>,
    },
    CoreDied {
        peer: ReplicaId,
    },
    Client,
    Fault,
    Restart,
    /// Nothing reaches this replica any more.
    Deafen,
    Plot(Plot),
    /// The flag of a suspect that is whole again goes.
    Trusted {
        life: u64,
    },
    /// The links of this replica are whole again.
    Join,
    /// Somebody wants the members changed.
    Change,
}

struct Node {
    /// `None` while it is down; then its disk is in `disk`.
    replica: Option<Replica>,
    disk: Disk,
    life: u64,
    paused_until: u64,
    clock_offset: u64,
    /// In thousandths of true time.
    clock_rate: u64,
    write_time: u64,
    write_busy: bool,
    proposals: Vec<(Term, Index, u64)>,
    reads: BTreeMap<ReadToken, u64>,
    reads_ready: Vec<(ReadToken, Index)>,
    /// As a leader it crashes with one of the first acknowledgements: what it committed by then must last.
    falls_with_a_reply: bool,
    /// What this replica had when it was whole last, if it is not: that much somebody may still count on.
    ghost: Option<Disk>,
    /// Earlier states of its disk.
    past: VecDeque<Disk>,
}

pub(crate) struct World {
    random: Random,
    verbose: bool,
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: BTreeMap<usize, (ReplicaId, Event)>,
    nodes: BTreeMap<ReplicaId, Node>,
    /// What the group is founded with.
    configuration: Configuration,
    base: Config,
    loss: u64,
    /// In milliseconds, twice the mean.
    fault_interval: u64,
    delay_max: u64,
    cut: BTreeSet<(ReplicaId, ReplicaId)>,
    healed: bool,
    idle: bool,
    next_token: u64,
    checks: Checks,
    totals: Totals,
    /// Set in the worlds of short reigns.
    short_reigns: Option<Random>,
    /// Set in the worlds in which replicas lose their memory.
    amnesia: Option<Amnesia>,
    /// Set in the worlds whose members change.
    changes: Option<Changes>,
    lives: u64,
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let voters = [3, 3, 3, 5, 3, 2, 1][random.below(7) as usize];
        let learners = u64::from(random.chance(30));
        let configuration =
            Configuration::new((1..=voters).map(ReplicaId), (voters + 1..=voters + learners).map(ReplicaId));
        let mut base = Config::new(ReplicaId(0));
        base.jitter_seed = seed;
        base.append_bytes_max = [100, 400, 1 << 20][random.below(3) as usize];
        base.inflight_messages_max = [1, 4, 64][random.below(3) as usize];
        base.inflight_bytes_max = [200, 1000, 1 << 20][random.below(3) as usize];
        base.entry_cache_bytes_max = [0, 300, 1 << 20][random.below(3) as usize];
        base.commit_record_interval = [1, 8, 256][random.below(3) as usize];
        if random.chance(25) {
            base.lease = None;
        }
        base.quiesce_after = random.chance(60).then_some(Duration::from_millis(400));
        base.write_stall_max = Duration::from_secs(3);
        let short_reigns = reigns::draw(seed, &mut base);
        let mut world = World {
            short_reigns,
            amnesia: None,
            changes: None,
            lives: 0,
            verbose,
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes: BTreeMap::new(),
            checks: Checks::new(&configuration),
            configuration,
            base,
            fault_interval: [500, 2000, 5000][random.below(3) as usize],
            loss: [0, 2, 10][random.below(3) as usize],
            delay_max: [2, 10, 100][random.below(3) as usize] * MILLISECOND,
            cut: BTreeSet::new(),
            healed: false,
            idle: false,
            next_token: 0,
            totals: Totals::default(),
            random,
        };
        let members: Vec<ReplicaId> = world.configuration.members().into_iter().collect();
        for id in members {
            let node = Node {
                clock_offset: world.random.below(1 << 40),
                // Any two differ by less than `clock_drift_max` in an election timeout.
                clock_rate: 960 + world.random.below(80),
                write_time: [1, 3, 20][world.random.below(3) as usize] * MILLISECOND,
                ..Node::new(Disk::default())
            };
            world.nodes.insert(id, node);
            world.start(id);
            world.at(MILLISECOND, id, Event::Tick);
        }
        world.at(MILLISECOND, ReplicaId(1), Event::Client);
        world.at(500 * MILLISECOND, ReplicaId(1), Event::Fault);
        world
    }

    pub(crate) fn run(mut self) -> Totals {
        while let Some(Reverse((time, _, key))) = self.queue.pop() {
            if time > FAULTY && !self.healed {
                self.heal();
            }
            if time > FAULTY + HEALED {
                break;
            }
            let Some((id, event)) = self.events.remove(&key) else { continue };
            self.now = self.now.max(time);
            let paused_until = self.nodes[&id].paused_until;
            let is_outside = event.is_outside();
            if paused_until > self.now && !is_outside {
                let delay = paused_until - self.now;
                self.at(delay, id, event);
                continue;
            }
            self.handle(id, event);
            // Usually at once; sometimes input gathers first.
            if self.random.chance(75) {
                self.pump(id);
            }
            let nodes = &self.nodes;
            self.checks.durability(|id, index, term| nodes[&id].holds(index, term));
        }
        self.finish()
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>9.3} ms  {}", self.now as f64 / MILLISECOND as f64, text());
        }
    }

    fn at(&mut self, delay: u64, id: ReplicaId, event: Event) {
        self.sequence += 1;
        let key = self.sequence as usize;
        self.queue.push(Reverse((self.now + delay, self.sequence, key)));
        self.events.insert(key, (id, event));
    }

    fn clock(&self, id: ReplicaId) -> Time {
        let node = &self.nodes[&id];
        Time(node.clock_offset + self.now / 1000 * node.clock_rate)
    }

    fn start(&mut self, id: ReplicaId) {
        let now = self.clock(id);
        let mut config = self.base.clone();
        config.id = id;
        self.lives += 1;
        config.boot = self.lives;
        let is_founder = self.configuration.is_member(id);
        let configuration = if is_founder { self.configuration.clone() } else { Configuration::default() };
        let node = self.nodes.get_mut(&id).unwrap();
        if node.disk.suspect.is_some() && node.ghost.is_none() {
            // Whole, but its driver had not taken note of that.
            node.ghost = Some(node.disk.clone());
        }
        let replica = Replica::start(config, configuration, std::mem::take(&mut node.disk), now);
        node.replica = Some(replica);
        node.write_busy = false;
    }

    fn crash(&mut self, id: ReplicaId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = node.replica.take() else { return };
        node.disk = replica.disk;
        node.life += 1;
        node.proposals.clear();
        node.reads.clear();
        node.reads_ready.clear();
        self.totals.crashes += 1;
        self.say(|| format!("{id} crashes"));
        self.tell_core_died(id);
    }

    /// After a while the others learn that the core of `id` is gone, or not the one it was.
    fn tell_core_died(&mut self, id: ReplicaId) {
        let others: Vec<ReplicaId> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            let delay = (500 + self.random.below(1500)) * MILLISECOND;
            self.at(delay, other, Event::CoreDied { peer: id });
        }
    }

    fn handle(&mut self, id: ReplicaId, event: Event) {
        match event {
            Event::Client => return self.client(),
            Event::Fault => return self.fault(),
            Event::Change => return self.change_members(),
            Event::Plot(plot) => return self.plot(id, plot),
            Event::Join => return self.cut.retain(|(from, to)| *from != id && *to != id),
            Event::Deafen => {
                if !self.healed {
                    let others = self.nodes.keys().copied().filter(|other| *other != id);
                    self.cut.extend(others.map(|other| (other, id)));
                }
                return;
            }
            Event::Restart => {
                if self.nodes[&id].replica.is_none() {
                    self.say(|| format!("{id} restarts"));
                    self.may_forget(id);
                    self.start(id);
                    self.tell_core_died(id);
                }
                return;
            }
            Event::Tick => {
                let delay = (5 + self.random.below(10)) * MILLISECOND;
                self.at(delay, id, Event::Tick);
                self.remember(id);
            }
            Event::Deliver(_)
            | Event::Trusted { .. }
            | Event::WriteDone { .. }
            | Event::Loaded { .. }
            | Event::Snapshot { .. }
            | Event::Install { .. }
            | Event::SnapshotAnswer { .. }
            | Event::CoreDied { .. } => {}
        }
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).unwrap();
        let this_life = node.life;
        let Some(replica) = &mut node.replica else { return };
        match event {
            Event::Deliver(message) => {
                let is_reply = reigns::is_acknowledgement(&message);
                replica.raft.step(now, message);
                if is_reply && replica.raft.status().role == RoleKind::Leader {
                    self.may_fall(id);
                }
            }
            Event::Tick => {
                if now >= replica.raft.next_tick() {
                    replica.raft.tick(now);
                }
                let lag = self.random.chance(20);
                if !lag {
                    self.apply(id);
                }
            }
            Event::WriteDone { life } if life == this_life => {
                let write = replica.complete_write().expect("a write was on its way");
                replica.raft.durable(now, write.number);
                node.write_busy = false;
                self.send(write.messages_after);
                self.next_write(id);
            }
            Event::Loaded { life, to, entries } if life == this_life => {
                if entries.is_empty() {
                    replica.raft.log_load_failed(now, to);
                } else {
                    replica.raft.log_loaded(now, to, entries);
                }
            }
            Event::Snapshot { from, machine } => {
                if replica.raft.snapshot_begin(now, &machine.meta()) {
                    self.at(20 * MILLISECOND, id, Event::Install { life: this_life, from, machine });
                } else {
                    self.at(self.delay_max, from, Event::SnapshotAnswer { from: id, installed: None });
                }
            }
            Event::Install { life, from, machine } if life == this_life => self.install(id, from, machine),
            Event::SnapshotAnswer { from, installed: Some(index) } => {
                replica.raft.snapshot_sent(now, from, index)
            }
            Event::SnapshotAnswer { from, installed: None } => replica.raft.snapshot_failed(now, from),
            Event::CoreDied { peer } => {
                replica.raft.peer_core_died(now, peer);
                replica.raft.peer_unreachable(now, peer);
            }
            Event::Trusted { life } if life == this_life => replica.trusted(),
            Event::Trusted { .. }
            | Event::WriteDone { .. }
            | Event::Loaded { .. }
            | Event::Install { .. } => {}
            Event::Client
            | Event::Fault
            | Event::Change
            | Event::Plot(_)
            | Event::Restart
            | Event::Deafen
            | Event::Join => unreachable!("handled above"),
        }
    }

    fn install(&mut self, id: ReplicaId, from: ReplicaId, machine: Machine) {
        let (now, life) = (self.clock(id), self.nodes[&id].life);
        self.pump(id);
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = &mut node.replica else { return };
        if !replica.writes.is_empty() {
            return self.at(10 * MILLISECOND, id, Event::Install { life, from, machine });
        }
        if self.random.chance(10) {
            replica.raft.snapshot_abandoned(now);
            return self.at(MILLISECOND, from, Event::SnapshotAnswer { from: id, installed: None });
        }
        let index = machine.applied;
        replica.install(machine, now);
        self.totals.snapshots += 1;
        self.say(|| format!("{id} installs a snapshot of {index}"));
        self.at(self.delay_max, from, Event::SnapshotAnswer { from: id, installed: Some(index) });
    }

    /// Does what the replica wants done.
    fn pump(&mut self, id: ReplicaId) {
        loop {
            let node = self.nodes.get_mut(&id).unwrap();
            let Some(replica) = &mut node.replica else { return };
            let was_quiet = replica.raft.status().quiesced;
            let Some(mut ready) = replica.raft.ready() else {
                if was_quiet && replica.raft.status().role == RoleKind::Leader {
                    self.totals.silences += 1;
                }
                return;
            };
            self.totals.truncations += u64::from(ready.truncate_after.is_some());
            replica.take_records(&mut ready);
            let life = node.life;
            for change in &ready.changes {
                if let Change::BecameLeader { term } = change {
                    self.totals.elections += 1;
                    self.checks.elected(*term, id, &replica.raft);
                }
            }
            let whole = ready.changes.iter().any(|change| matches!(change, Change::Whole { .. }));
            let elected = ready.changes.iter().any(|change| matches!(change, Change::BecameLeader { .. }));
            self.checks.committed(&replica.raft);
            for outcome in &ready.reads {
                match outcome {
                    ReadOutcome::Done { token, index } => node.reads_ready.push((*token, *index)),
                    ReadOutcome::Failed { token } => {
                        node.reads.remove(token);
                    }
                }
            }
            let loads: Vec<(ReplicaId, Vec<Entry<Vec<u8>>>)> =
                ready.log_loads.iter().map(|load| (load.to, replica.load(load))).collect();
            if self.amnesia.is_some() && !ready.snapshots.is_empty() && replica.disk.checkpoint.applied.0 == 0
            {
                // Who is damaged needs a snapshot though the log is whole, so there may be none yet.
                replica.checkpoint(20);
            }
            let machine = replica.disk.checkpoint.clone();
            if self.verbose {
                for change in &ready.changes {
                    self.say(|| format!("{id} {change:?}"));
                }
            }
            if elected {
                self.begin_reign(id);
            }
            if whole {
                self.is_whole(id);
            }
            self.send(ready.messages);
            for (to, entries) in loads {
                self.totals.log_loads += 1;
                let delay = self.random.below(20) * MILLISECOND;
                self.at(delay, id, Event::Loaded { life, to, entries });
            }
            for needed in ready.snapshots {
                let lost = self.cut.contains(&(id, needed.to)) || machine.applied == Index(0);
                if lost {
                    let failed = Event::SnapshotAnswer { from: needed.to, installed: None };
                    self.at(200 * MILLISECOND, id, failed);
                } else {
                    let machine = machine.clone();
                    let delay = self.random.below(300) * MILLISECOND;
                    self.at(delay, needed.to, Event::Snapshot { from: id, machine });
                    // A snapshot whose answer is lost has failed after a while.
                    let failed = Event::SnapshotAnswer { from: needed.to, installed: None };
                    self.at(1500 * MILLISECOND, id, failed);
                }
            }
            self.next_write(id);
            if elected && !self.healed && self.random.chance(10) {
                self.crash_all_but(id);
            }
        }
    }

    /// One write is on its way at a time; those without records wait for nothing but their turn.
    fn next_write(&mut self, id: ReplicaId) {
        let now = self.clock(id);
        loop {
            let node = self.nodes.get_mut(&id).unwrap();
            let Some(replica) = &mut node.replica else { return };
            let Some(write) = replica.writes.front() else { return };
            if node.write_busy {
                return;
            }
            if write.has_records() {
                node.write_busy = true;
                let (life, time) = (node.life, node.write_time);
                let delay = time / 2 + self.random.below(time);
                return self.at(delay, id, Event::WriteDone { life });
            }
            let write = replica.complete_write().expect("it is at the front");
            replica.raft.durable(now, write.number);
            self.send(write.messages_after);
        }
    }

    fn send(&mut self, messages: Vec<Message<Vec<u8>>>) {
        for message in messages {
            let lost = self.cut.contains(&(message.from, message.to)) || self.random.chance(self.loss);
            if matches!(message.body, Body::TimeoutNow) {
                self.totals.transfers += 1;
            }
            if lost {
                continue;
            }
            let copies = if self.random.chance(self.loss.min(5)) { 2 } else { 1 };
            for _ in 0..copies {
                let mut delay = self.random.below(self.delay_max);
                if self.loss > 0 && self.random.chance(1) {
                    // A straggler: everything that is waited for is over when it comes.
                    delay += self.random.below(4_000) * MILLISECOND;
                }
                delay += self.lag(message.from);
                self.at(delay, message.to, Event::Deliver(message.clone()));
            }
        }
    }

    /// Applies what may be applied, answers the writes and reads that waited for it.
    fn apply(&mut self, id: ReplicaId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = &mut node.replica else { return };
        for entry in replica.apply() {
            self.checks.applied(&entry);
            let mine = |proposal: &(Term, Index, u64)| (proposal.0, proposal.1) == (entry.term, entry.index);
            if let Some((_, index, begun)) = node.proposals.iter().copied().find(mine) {
                self.totals.writes_acknowledged += 1;
                self.checks.write_acknowledged(index, begun, self.now);
            }
            node.proposals.retain(|(_, index, _)| *index > entry.index);
        }
        let machine = &replica.machine;
        let reads = std::mem::take(&mut node.reads_ready);
        let (served, waiting): (Vec<_>, Vec<_>) =
            reads.into_iter().partition(|(_, index)| *index <= machine.applied);
        node.reads_ready = waiting;
        for (token, _) in served {
            if let Some(begun) = node.reads.remove(&token) {
                self.totals.reads_done += 1;
                self.checks.read_done(machine.register, begun, self.now);
            }
        }
        // In the end a follower that forgot must be served from the log: no snapshot covers up for a leader that errs.
        let serves_from_log =
            self.amnesia.is_some() && self.healed && replica.disk.checkpoint.applied > Index(0);
        if self.random.chance(2) && !serves_from_log {
            let keep = [0, 3, 20][self.random.below(3) as usize];
            replica.checkpoint(keep);
        }
    }

    /// A client writes or reads at whoever says that it leads.
    fn client(&mut self) {
        let delay = match (self.idle, self.healed) {
            (true, _) => 300 + self.random.below(1500),
            (false, false) => 1 + self.random.below(30),
            // Those that fell behind have time to catch up.
            (false, true) => 200,
        };
        self.at(delay * MILLISECOND, ReplicaId(1), Event::Client);
        if self.random.chance(if self.idle { 30 } else { 1 }) {
            self.idle = !self.idle && !self.healed;
        }
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        for id in ids {
            let now = self.clock(id);
            let begun = self.now;
            let (writes, reads, token) = (self.random.chance(50), self.random.chance(60), self.next_token);
            let node = self.nodes.get_mut(&id).unwrap();
            let Some(replica) = &mut node.replica else { continue };
            if node.paused_until > self.now || replica.raft.status().role != RoleKind::Leader {
                continue;
            }
            if writes && let Ok((term, index)) = replica.raft.propose(now, token.to_le_bytes().repeat(4)) {
                node.proposals.push((term, index, begun));
            }
            let token = ReadToken(token);
            if reads && replica.raft.read(now, token).is_ok() {
                let leased = replica.raft.status().lease_until.is_some_and(|until| now < until);
                self.totals.reads_leased += u64::from(leased);
                node.reads.insert(token, begun);
            }
            self.next_token += 1;
            if self.random.chance(70) {
                self.pump(id);
                if self.random.chance(70) {
                    self.apply(id);
                }
            }
        }
    }

    fn heal(&mut self) {
        self.now = self.now.max(FAULTY);
        self.forget_last();
        self.say(|| "all is healed".to_string());
        self.healed = true;
        self.idle = false;
        self.cut.clear();
        self.loss = 0;
        self.delay_max = self.delay_max.min(2 * MILLISECOND);
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let node = self.nodes.get_mut(&id).unwrap();
            node.paused_until = 0;
            node.write_time = MILLISECOND;
            if node.replica.is_none() {
                self.start(id);
            }
            self.tell_core_died(id);
        }
        self.checks.healed_at(self.now);
    }

    fn finish(mut self) -> Totals {
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        for id in &ids {
            self.apply(*id);
        }
        for node in self.nodes.values() {
            self.say(|| format!("{:?}", node.replica.as_ref().map(|replica| replica.raft.status())));
        }
        let replicas = self.nodes.values().filter_map(|node| node.replica.as_ref());
        self.checks.finished(replicas, FAULTY + HEALED);
        self.totals.changes_over += u64::from(*self.checks.present() != self.configuration);
        self.totals
    }
}

impl Node {
    fn new(disk: Disk) -> Self {
        Node {
            replica: None,
            disk,
            life: 0,
            paused_until: 0,
            clock_offset: 0,
            clock_rate: 1000,
            write_time: MILLISECOND,
            write_busy: false,
            proposals: Vec::new(),
            reads: BTreeMap::new(),
            reads_ready: Vec::new(),
            falls_with_a_reply: false,
            ghost: None,
            past: VecDeque::new(),
        }
    }

    fn disk(&self) -> &Disk {
        self.replica.as_ref().map_or(&self.disk, |replica| &replica.disk)
    }

    fn holds(&self, index: Index, term: Term) -> bool {
        self.ghost.as_ref().unwrap_or(self.disk()).holds(index, term)
    }
}
