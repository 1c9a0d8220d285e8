//! A whole cluster in the simulator: nodes of several cores with faulty disks and a faulty network, clients that
//! retry as the real one does, and a nemesis that breaks everything that a cluster must survive. All of it follows
//! from one seed.
//!
//! Checked while it runs: no two leaders of a shard in one term, equal state at equal indexes, values that somebody
//! wrote, atomic batches, ordered scans, and that no node gives up unless its disk failed. Checked in the end: the
//! mended cluster serves again within a bound; the histories of all keys are linearizable, whatever outcomes stayed
//! unknown; counters count each certain increment once; all replicas are equal, also in what they serve.
//!
//! - [`run`]: one seed from its start to its verdict; [`Totals`]: what the seeds met together.
//! - `plan`: what is fixed before; `cluster`: the nodes; `nemesis`: the faults; `rot`: a node with a bad disk;
//!   `observer`: what nodes say meanwhile.
//! - `client`, `link`: the client library's core on simulated streams; `workload`, `data`: what clients do.
//! - `meta`: the meta group, by itself.
//! - `moves`: in [`run_with_moves`], replicas that come and go all the time.
//! - [`sightings`]: what gossip makes of a cluster.
//! - [`sightings`]: what gossip makes of a cluster; [`joining`]: nodes that come later.
//! - `trace`: what nodes say in their logs, counted.

pub(crate) mod checks;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod data;
pub mod joining;
mod link;
pub mod meta;
mod moves;
mod nemesis;
pub(crate) mod observer;
pub(crate) mod plan;
mod rot;
pub mod sightings;
mod totals;
pub(crate) mod trace;
pub(crate) mod workload;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use krita_runtime::sim::{HostId, Simulation};
use kritaclient::RetryPolicy;

use crate::history::Recorder;
use client::{ClientOptions, Lane, Shared};
use cluster::{CLUSTER_NAME, Cluster};
use data::Keys;
use moves::{MOVERS, Mover, Moves};
use nemesis::Nemesis;
use observer::Observed;
use plan::Plan;
use rot::Rot;
use trace::Heard;
use workload::{Counts, Scene, Worker};

pub use totals::{Report, Totals};

/// Within this time after everything has been mended every key can be read and written again.
const SERVES_WITHIN: Duration = Duration::from_secs(15);

/// Within this time after the last write all replicas are equal.
const EQUAL_WITHIN: Duration = Duration::from_secs(20);

/// The same where a disk was bad, and a replica may have to be made anew; or where one has missed its removal.
const HEALED_WITHIN: Duration = Duration::from_secs(60);

/// Within this time after everything has been mended all moves of replicas are over.
const MOVED_WITHIN: Duration = Duration::from_secs(60);

/// One run under way.
struct Run {
    seed: u64,
    simulation: Simulation,
    cluster: Rc<Cluster>,
    scene: Rc<Scene>,
    observed: Rc<RefCell<Observed>>,
    nemesis: Nemesis,
    /// In runs whose replicas move.
    moves: Option<Rc<Moves>>,
    clients: Vec<HostId>,
    options: Rc<ClientOptions>,
    heard: Heard,
}

/// Runs one seed. `shown`: the nodes' logs go to standard error, filtered by `RUST_LOG`.
///
/// # Errors
/// Everything that was wrong, as text.
pub fn run(seed: u64, shown: bool) -> Result<Report, String> {
    let heard = Heard::default();
    trace::listen(&heard, shown, || Run::new(seed, heard.clone(), false).finish())
}

/// The same with more nodes than a shard has replicas, and replicas that move between them all the time.
///
/// # Errors
/// Everything that was wrong, as text.
pub fn run_with_moves(seed: u64, shown: bool) -> Result<Report, String> {
    let heard = Heard::default();
    trace::listen(&heard, shown, || Run::new(seed, heard.clone(), true).finish())
}

impl Run {
    fn new(seed: u64, heard: Heard, moves: bool) -> Self {
        let mut plan = Plan::draw(&krita_runtime::sim::Random::new(seed ^ 0x706c_616e));
        if moves {
            plan.nodes = 4 + usize::try_from(seed % 3).expect("few");
        }
        tracing::info!(?plan, "plan");
        let simulation = Simulation::new(seed, plan.options());
        let cluster = Rc::new(Cluster::new(&simulation, &plan));
        let clients: Vec<HostId> =
            (1..=2).map(|host| simulation.add_host(&format!("client{host}"))).collect();
        let scene = Rc::new(Scene {
            simulation: simulation.clone(),
            keys: Keys::new(plan.shards),
            history: Recorder::new(),
            counts: Counts::default(),
            violations: RefCell::default(),
            is_over: Cell::new(false),
            is_closed: Cell::new(false),
            lanes: Cell::new(0),
            think_max: plan.think_max,
            value_bytes_max: plan.value_bytes_max,
        });
        let observed = Rc::new(RefCell::new(Observed::default()));
        let rot = if moves { None } else { Rot::draw(seed, plan.nodes) };
        let nemesis = Nemesis::new(cluster.clone(), scene.clone(), observed.clone(), clients.clone(), rot);
        let options = Rc::new(ClientOptions {
            cluster_name: CLUSTER_NAME.to_owned(),
            nodes: cluster.addresses(),
            policy: RetryPolicy { attempt_timeout: plan.attempt_timeout, ..RetryPolicy::default() },
            timeout: plan.call_timeout,
        });
        Self {
            seed,
            simulation,
            cluster,
            scene,
            observed,
            nemesis,
            clients,
            options,
            heard,
            moves: moves.then(Rc::default),
        }
    }

    fn finish(mut self) -> Result<Report, String> {
        self.start();
        self.nemesis.run();
        if let Some(moves) = self.moves.clone() {
            moves.is_over.set(true);
            let extent = (self.cluster.plan.shards, self.cluster.nodes.len());
            self.demand(MOVED_WITHIN, "moves do not come to an end", |worker| {
                moves::finish(worker, moves, extent)
            });
        }
        self.demand(SERVES_WITHIN, "it does not serve again", checks::every_key_serves);
        self.scene.is_over.set(true);
        self.wait_for_lanes();
        self.read_from_everybody();
        let statuses = self.wait_for_equality();
        self.scene.is_closed.set(true);
        self.nemesis.settle(Duration::from_secs(1));
        if let Some(moves) = &self.moves {
            moves.check(&self.scene, &statuses);
        }
        checks::at_the_end(&self.scene, &self.heard, statuses, self.nemesis.bad_disk().is_some());
        let report = self.report();
        let violations = self.scene.violations.take();
        match violations.is_empty() {
            true => Ok(report),
            false => Err(violations.join("\n")),
        }
    }

    /// All nodes, clients and the observer.
    fn start(&self) {
        for position in 0..self.cluster.nodes.len() {
            self.cluster.boot(position);
        }
        for client in 0..self.cluster.plan.clients {
            let host = self.clients[client % self.clients.len()];
            let shared = Shared::new(&self.simulation.runtime(host));
            for lane in 0..self.cluster.plan.lanes {
                let number = (client * 10 + lane) as u64;
                let worker = self.worker(host, number, shared.clone());
                self.simulation.spawn_on(host, |_| worker.work());
            }
        }
        if let Some(moves) = &self.moves {
            let extent = (self.cluster.plan.shards, self.cluster.nodes.len());
            for mover in 0..MOVERS {
                let host = self.clients[mover % self.clients.len()];
                let runtime = self.simulation.runtime(host);
                let shared = Shared::new(&runtime);
                let lane = Lane::new(runtime, self.simulation.random(), self.options.clone(), shared);
                let mover = Mover::new(self.scene.clone(), lane, moves.clone(), extent);
                self.simulation.spawn_on(host, |_| mover.work());
            }
        }
        let (addresses, observed, scene) =
            (self.cluster.addresses(), self.observed.clone(), self.scene.clone());
        self.simulation
            .spawn_on(self.clients[0], |runtime| observer::observe(runtime, addresses, observed, scene));
    }

    fn worker(&self, host: HostId, number: u64, shared: Rc<RefCell<Shared>>) -> Worker {
        let runtime = self.simulation.runtime(host);
        let lane = Lane::new(runtime, self.simulation.random(), self.options.clone(), shared);
        Worker::new(self.scene.clone(), lane, number)
    }

    /// Runs a script of a client of its own, which must come to its end within `limit`.
    fn demand<F: Future<Output = ()> + 'static>(
        &mut self,
        limit: Duration,
        otherwise: &str,
        script: impl FnOnce(Worker) -> F,
    ) {
        let host = self.clients[1];
        let shared = Shared::new(&self.simulation.runtime(host));
        let worker = self.worker(host, 900, shared);
        let is_done = Rc::new(Cell::new(false));
        let (done, script) = (is_done.clone(), script(worker));
        self.simulation.spawn_on(host, |_| async move {
            script.await;
            done.set(true);
        });
        let until = self.simulation.now() + limit;
        while !is_done.get() && self.simulation.now() < until {
            self.nemesis.settle(Duration::from_millis(100));
        }
        if !is_done.get() {
            self.scene.violation(format!("{otherwise} within {limit:?}"));
        }
    }

    fn wait_for_lanes(&mut self) {
        let until = self.simulation.now() + self.cluster.plan.call_timeout + Duration::from_secs(5);
        while self.scene.lanes.get() > 0 && self.simulation.now() < until {
            self.nemesis.settle(Duration::from_millis(100));
        }
        if self.scene.lanes.get() > 0 {
            self.scene.violation("a call of a client does not end".to_owned());
        }
    }

    /// With each node in turn out of the way, so that every replica has to serve what it holds. Where a disk is bad,
    /// only its node: without another one, what the bad disk holds may have to be healed first.
    fn read_from_everybody(&mut self) {
        let bad = self.nemesis.bad_disk();
        for position in (0..self.cluster.nodes.len()).filter(|node| bad.is_none_or(|bad| bad == *node)) {
            self.cluster.pause(position);
            self.demand(SERVES_WITHIN, "with one node paused it does not serve", checks::everything_is_read);
            self.cluster.resume(position);
        }
    }

    fn wait_for_equality(&mut self) -> checks::Statuses {
        let takes_long = self.nemesis.bad_disk().is_some() || self.moves.is_some();
        let within = if takes_long { HEALED_WITHIN } else { EQUAL_WITHIN };
        let until = self.simulation.now() + within;
        loop {
            let statuses = Rc::new(RefCell::new(checks::Statuses::new()));
            let (found, addresses) = (statuses.clone(), self.cluster.addresses());
            self.demand(Duration::from_secs(5), "not all nodes say how they are", |worker| async move {
                checks::ask_everybody(&worker.lane.runtime, &addresses, &found).await;
            });
            let statuses = statuses.take();
            if checks::difference(&statuses).is_none() || self.simulation.now() > until {
                return statuses;
            }
            self.nemesis.settle(Duration::from_millis(200));
        }
    }

    fn report(&self) -> Report {
        let (story, world, counts) = (self.heard.story(), self.simulation.statistics(), &self.scene.counts);
        Report {
            seed: self.seed,
            elections: story.elections,
            conflicts: story.conflicts,
            snapshots: story.snapshots_installed,
            handoffs: story.handoffs,
            moves: self.moves.as_ref().map_or(0, |moves| moves.done.get()),
            swaps: self.moves.as_ref().map_or(0, |moves| moves.swaps.get()),
            opened: story.opened,
            dropped: story.dropped,
            told_removed: story.told_removed,
            crashes: world.crashes,
            kills: world.kills,
            bad_disks: u64::from(self.nemesis.bad_disk().is_some()),
            damages: world.flipped_bits
                + world.zeroed_blocks
                + world.misplaced_blocks
                + world.truncated_files
                + world.deleted_files,
            astray_writes: world.forgotten_writes + world.misdirected_writes + world.duplicated_writes,
            failed_reads: world.failed_reads,
            full_disks: world.full_disk_refusals,
            torn_writes: world.torn_writes,
            lost_writes: world.lost_writes,
            resets: world.resets,
            faults: self.nemesis.counts.faults,
            failures: self.nemesis.counts.excused_failures,
            ok: counts.ok.get(),
            conditions_failed: counts.refused.get(),
            unavailable: counts.unavailable.get(),
            unknown: counts.unknown.get(),
            samples: self.observed.borrow().samples,
            events: world.events,
            polls: world.polls,
            trace: self.simulation.trace_hash(),
        }
    }
}
