//! The cluster of a corruption case: its data, its clients, the damage, and the wait for what comes of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::v1;
use krita_runtime::Clock;
use krita_runtime::sim::{DiskControl, HostId, Simulation};
use kritaclient::RetryPolicy;

use super::spot::{self, Spot, Target};
use super::{Case, Damage, GAP_MAX, HEALS_WITHIN, Moment, Outcome, Place, Role};
use crate::history::Recorder;
use crate::linearizability::{self, Verdict};
use crate::simulation::checks::{self, Statuses};
use crate::simulation::client::{ClientOptions, Lane, Shared};
use crate::simulation::cluster::{CLUSTER_NAME, Cluster, State};
use crate::simulation::data::{self, Keys, key_on};
use crate::simulation::observer::{self, Observed};
use crate::simulation::plan::Plan;
use crate::simulation::trace::Heard;
use crate::simulation::workload::{Counts, Part, Scene, Wish, Worker};

const SHARDS: u32 = 4;

/// The shard that is hit.
pub(super) const TARGET: u32 = 1;

/// Keys of each shard that are written once, in one batch: enough for several blocks of a run.
const SMALL_KEYS: usize = 100;

/// Writes of each shard's hot key, and how long the values are: together several segments.
const HOT_WRITES: usize = 14;
const HOT_BYTES: usize = 16 << 10;

/// Sessions that make a checkpoint's meta data long.
const SESSIONS: usize = 400;

/// How long clients work while the damage is there.
const LOAD: Duration = Duration::from_secs(4);

/// How often the damaged node is made to lead, and how many leaders are paused for that.
const LEADS_MAX: usize = 4;

/// How often a node that ends by itself is started again before it counts as refusing.
const RESTARTS_MAX: u32 = 3;

/// What is said when some key cannot be read or some shard not written.
pub(crate) const NOT_SERVED: &str = "not everything is served";

/// A running cluster and what is known of it.
pub(crate) struct World {
    pub(super) simulation: Simulation,
    pub(super) cluster: Rc<Cluster>,
    pub(super) scene: Rc<Scene>,
    observed: Rc<RefCell<Observed>>,
    client: HostId,
    options: Rc<ClientOptions>,
    shared: Rc<RefCell<Shared>>,
    heard: Heard,
    /// The value and version of the target's cold key.
    cold: Rc<RefCell<(Bytes, u64)>>,
    spot: Option<Spot>,
    /// Why processes of the damaged node ended by themselves.
    failures: Vec<String>,
    lanes: u64,
}

fn plan() -> Plan {
    Plan {
        nodes: 3,
        shards: SHARDS,
        cores_max: 1,
        leader_lease: true,
        segment_bytes: 256 << 10,
        checkpoint_after_bytes: 32 << 10,
        // Values come from the disk.
        value_cache_bytes: 0,
        clients: 1,
        lanes: 2,
        think_max: Duration::from_millis(20),
        attempt_timeout: Duration::from_millis(800),
        call_timeout: Duration::from_secs(3),
        value_bytes_max: 1 << 10,
        load: LOAD,
        calm_mean: LOAD,
    }
}

pub(super) fn cold_key(shard: u32) -> Bytes {
    key_on("cold", shard, SHARDS, 0)
}

fn hot_key(shard: u32) -> Bytes {
    key_on("hot", shard, SHARDS, 0)
}

/// Long keys, so that a few of them fill a block.
fn small_keys(shard: u32) -> Vec<Bytes> {
    let name = format!("small-{}-", "x".repeat(90));
    (0..SMALL_KEYS).map(|number| key_on(&name, shard, SHARDS, number)).collect()
}

impl World {
    pub(crate) fn new(seed: u64, heard: Heard) -> Self {
        let plan = plan();
        let simulation = Simulation::new(seed, plan.options());
        let cluster = Rc::new(Cluster::new(&simulation, &plan));
        let client = simulation.add_host("client");
        let keys = (1..=SHARDS).flat_map(|shard| {
            [cold_key(shard), hot_key(shard)].into_iter().chain(small_keys(shard)).collect::<Vec<_>>()
        });
        let scene = Rc::new(Scene {
            simulation: simulation.clone(),
            keys: Keys::of(keys.collect(), SHARDS),
            history: Recorder::new(),
            counts: Counts::default(),
            violations: RefCell::default(),
            is_over: Cell::new(false),
            is_closed: Cell::new(false),
            lanes: Cell::new(0),
            think_max: plan.think_max,
            value_bytes_max: plan.value_bytes_max,
        });
        let options = Rc::new(ClientOptions {
            cluster_name: CLUSTER_NAME.to_owned(),
            nodes: cluster.addresses(),
            policy: RetryPolicy { attempt_timeout: plan.attempt_timeout, ..RetryPolicy::default() },
            timeout: plan.call_timeout,
        });
        let shared = Shared::new(&simulation.runtime(client));
        Self {
            simulation,
            cluster,
            scene,
            observed: Rc::default(),
            client,
            options,
            shared,
            heard,
            cold: Rc::default(),
            spot: None,
            failures: Vec::new(),
            lanes: 0,
        }
    }

    fn worker(&mut self) -> Worker {
        self.lanes += 1;
        let runtime = self.simulation.runtime(self.client);
        let lane = Lane::new(runtime, self.simulation.random(), self.options.clone(), self.shared.clone());
        Worker::new(self.scene.clone(), lane, self.lanes)
    }

    /// Lets a script run to its end. False if it takes longer than `limit`.
    fn script<F: Future<Output = ()> + 'static>(
        &mut self,
        limit: Duration,
        victim: Option<usize>,
        script: impl FnOnce(Worker) -> F,
    ) -> bool {
        let is_done = Rc::new(Cell::new(false));
        let (done, scene, script) = (is_done.clone(), self.scene.clone(), script(self.worker()));
        self.simulation.spawn_on(self.client, |_| async move {
            script.await;
            // A worker counts itself in and its script out.
            scene.lanes.set(scene.lanes.get() - 1);
            done.set(true);
        });
        let until = self.simulation.now() + limit;
        while !is_done.get() && self.simulation.now() < until {
            self.settle(Duration::from_millis(10), victim);
        }
        is_done.get()
    }

    /// Lets time pass. Only `victim` may end by itself.
    pub(super) fn settle(&mut self, duration: Duration, victim: Option<usize>) {
        self.simulation.run_for(duration);
        for (position, failure) in self.cluster.take_failures() {
            if Some(position) != victim {
                self.scene.violation(format!("node {} gave up: {failure}", position + 1));
            }
            self.failures.push(failure);
        }
    }

    fn is_gone(&self, position: usize) -> bool {
        !self.simulation.is_running(self.cluster.nodes[position].host)
    }

    /// Starts the cluster and gives it data: cold and small keys below the checkpoints, hot keys over several
    /// segments, a few writes behind the checkpoints.
    pub(crate) fn begin(&mut self, place: Place) {
        for position in 0..self.cluster.nodes.len() {
            self.cluster.boot(position);
        }
        let (addresses, observed, scene) =
            (self.cluster.addresses(), self.observed.clone(), self.scene.clone());
        self.simulation
            .spawn_on(self.client, |runtime| observer::observe(runtime, addresses, observed, scene));
        let cold = self.cold.clone();
        let filled = self.script(Duration::from_secs(60), None, |worker| fill(worker, cold));
        assert!(filled, "the cluster takes no data");
        if place == Place::CheckpointMeta {
            self.open_sessions();
        }
        self.settle(Duration::from_secs(2), None);
        // Behind the checkpoints: a few entries of each shard.
        self.script(Duration::from_secs(10), None, |mut worker| async move {
            for shard in (1..=SHARDS).chain(1..=SHARDS) {
                write_until_done(&mut worker, &hot_key(shard), 100).await;
            }
        });
        self.settle(Duration::from_millis(500), None);
    }

    /// So many sessions of the target that its state machine's part of a checkpoint takes a file of its own.
    fn open_sessions(&mut self) {
        let shared = self.shared.clone();
        for _ in 0..SESSIONS {
            self.shared = Shared::new(&self.simulation.runtime(self.client));
            let wrote = self.script(Duration::from_secs(10), None, |mut worker| async move {
                write_until_done(&mut worker, &hot_key(TARGET), 100).await;
            });
            assert!(wrote, "the cluster takes no sessions");
        }
        self.shared = shared;
        // Enough log behind the last checkpoint for another.
        self.script(Duration::from_secs(10), None, |mut worker| async move {
            for _ in 0..4 {
                write_until_done(&mut worker, &hot_key(TARGET), HOT_BYTES).await;
            }
        });
        self.settle(Duration::from_secs(2), None);
    }

    pub(super) fn leader_of_target(&self) -> Option<usize> {
        self.observed.borrow().leading.get(&TARGET).copied()
    }

    /// The whole case.
    pub(crate) fn play(&mut self, case: Case) -> Outcome {
        let leader = self.leader_of_target().expect("the target has a leader");
        let victim = match case.role {
            Role::Leader => leader,
            Role::Follower => (leader + 1) % self.cluster.nodes.len(),
        };
        if case.place == Place::ReplayBatch {
            self.write_behind_the_checkpoint(victim);
        }
        if case.moment == Moment::AtRest {
            if case.place == Place::UnsealedBatch {
                self.write_until(victim, spot::has_unsealed_batch);
            }
            self.cluster.kill(victim);
            self.settle(Duration::from_millis(200), Some(victim));
        }
        if !self.damage(case, victim) {
            return Outcome::Absent;
        }
        if case.moment == Moment::AtRest {
            self.cluster.boot(victim);
        }
        self.load(victim);
        let outcome = self.wait_for_outcome(victim);
        let Outcome::Heals { restarts } = outcome else { return outcome };
        if case.moment == Moment::AtRest {
            return Outcome::Heals { restarts };
        }
        // What was not found under the running node is found by the next start.
        self.cluster.kill(victim);
        self.settle(Duration::from_millis(200), Some(victim));
        self.cluster.boot(victim);
        match self.wait_for_outcome(victim) {
            Outcome::Heals { restarts: more } => Outcome::Heals { restarts: restarts + more },
            other => other,
        }
    }

    /// Writes to the target until the node's disk is as wanted, for a while at most.
    fn write_until(&mut self, victim: usize, is_as_wanted: impl Fn(&DiskControl) -> bool) {
        let disk = self.simulation.disk(self.cluster.nodes[victim].host);
        let writer = self.worker();
        let (is_over, scene) = (Rc::new(Cell::new(false)), self.scene.clone());
        let over = is_over.clone();
        self.simulation.spawn_on(self.client, |_| async move {
            let mut writer = writer;
            while !over.get() {
                write_until_done(&mut writer, &hot_key(TARGET), 300).await;
            }
            scene.lanes.set(scene.lanes.get() - 1);
        });
        self.settle(Duration::from_millis(100), None);
        for _ in 0..500 {
            if is_as_wanted(&disk) {
                break;
            }
            self.settle(Duration::from_micros(500), None);
        }
        is_over.set(true);
    }

    /// Writes to the target until the node's log has entries that its checkpoint does not cover: one may have come
    /// after the last write.
    pub(super) fn write_behind_the_checkpoint(&mut self, victim: usize) {
        let target = self.target();
        self.write_until(victim, move |disk| spot::find(disk, Place::ReplayBatch, &target).is_some());
    }

    fn target(&self) -> Target {
        let (cold_value, cold_version) = self.cold.borrow().clone();
        Target { shard: TARGET, cold_value, cold_version }
    }

    /// False if there is no such place, or nothing changes in it.
    fn damage(&mut self, case: Case, victim: usize) -> bool {
        let disk = self.simulation.disk(self.cluster.nodes[victim].host);
        let Some(spot) = spot::find(&disk, case.place, &self.target()) else { return false };
        tracing::info!(%case, node = victim + 1, path = %spot.path.display(), offset = spot.offset, "damaged");
        let changed = spot::damage(&disk, &spot, case.damage);
        self.spot = Some(spot);
        changed
    }

    pub(crate) fn damaged_file(&self) -> Option<String> {
        self.spot.as_ref().map(Spot::file_name)
    }

    /// Clients read and write all shards; no shard keeps them waiting for long.
    fn load(&mut self, victim: usize) {
        let gaps = Rc::new(Cell::new(Duration::ZERO));
        for shard in 1..=SHARDS {
            let (worker, gap) = (self.worker(), gaps.clone());
            self.simulation.spawn_on(self.client, |_| keep_busy(worker, shard, gap));
        }
        let until = self.simulation.now() + LOAD;
        while self.simulation.now() < until {
            self.settle(Duration::from_millis(100), Some(victim));
        }
        self.scene.is_over.set(true);
        let until = self.simulation.now() + GAP_MAX;
        while self.scene.lanes.get() > 0 && self.simulation.now() < until {
            self.settle(Duration::from_millis(100), Some(victim));
        }
        if self.scene.lanes.get() > 0 || gaps.get() > GAP_MAX {
            self.scene.violation(format!("a shard was not served for {:?}", gaps.get().max(GAP_MAX)));
        }
    }

    /// Waits until the damaged node is whole or has given up for good, starting it again when it ends.
    pub(super) fn wait_for_outcome(&mut self, victim: usize) -> Outcome {
        let mut restarts = 0;
        let (mut missing, mut has_served) = (String::new(), false);
        let until = self.simulation.now() + HEALS_WITHIN;
        while self.simulation.now() < until {
            if self.is_gone(victim) {
                if restarts == RESTARTS_MAX {
                    self.cluster.nodes[victim].state.set(State::Down);
                    let message = self.failures.last().cloned().unwrap_or_default();
                    self.everything_serves(victim);
                    return Outcome::Refuses { message };
                }
                restarts += 1;
                self.cluster.nodes[victim].state.set(State::Down);
                self.settle(Duration::from_millis(300), Some(victim));
                self.cluster.boot(victim);
            }
            self.settle(Duration::from_millis(500), Some(victim));
            match self.what_is_missing(victim) {
                None if has_served => return Outcome::Heals { restarts },
                None if !self.is_gone(victim) => {
                    self.everything_serves(victim);
                    self.serves_itself(victim);
                    has_served = true;
                }
                None => {}
                Some(what) => missing = what,
            }
        }
        self.everything_serves(victim);
        Outcome::StaysOut { what: missing }
    }

    /// What keeps the replicas from being equal and whole.
    fn what_is_missing(&mut self, victim: usize) -> Option<String> {
        let statuses = Rc::new(RefCell::new(Statuses::new()));
        let (found, addresses) = (statuses.clone(), self.cluster.addresses());
        let answered = self.script(Duration::from_secs(2), Some(victim), |worker| async move {
            checks::ask_everybody(&worker.lane.runtime, &addresses, &found).await;
        });
        match answered {
            true => checks::difference(&statuses.take()),
            false => Some("not all nodes say how they are".to_owned()),
        }
    }

    /// Every key can be read, every shard be written.
    fn everything_serves(&mut self, victim: usize) {
        let served = self.script(Duration::from_secs(15), Some(victim), read_and_write_all);
        if !served {
            self.scene.violation(NOT_SERVED.to_owned());
        }
    }

    /// The damaged node leads the target and serves it from its own disk. It may find damage only then, and step back
    /// until it is whole.
    fn serves_itself(&mut self, victim: usize) {
        for _ in 0..LEADS_MAX {
            self.make_lead(victim);
            self.everything_serves(victim);
            if self.leader_of_target() == Some(victim) {
                return;
            }
        }
    }

    /// Pauses whoever else leads the target, until the damaged node does.
    fn make_lead(&mut self, victim: usize) {
        for _ in 0..LEADS_MAX {
            let Some(leader) = self.leader_of_target().filter(|leader| *leader != victim) else { return };
            self.cluster.pause(leader);
            self.settle(Duration::from_millis(2_500), Some(victim));
            self.cluster.resume(leader);
            self.settle(Duration::from_millis(500), Some(victim));
        }
    }

    /// See [`super::forget_and_move`].
    pub(crate) fn forget_and_move(&mut self) {
        const VICTIM: usize = 0;
        for position in 0..self.cluster.nodes.len() {
            self.cluster.kill(position);
        }
        self.settle(Duration::from_millis(200), Some(VICTIM));
        let disk = self.simulation.disk(self.cluster.nodes[VICTIM].host);
        let target = Target { shard: TARGET, cold_value: Bytes::new(), cold_version: 0 };
        let spot = spot::find(&disk, Place::ManifestFirst, &target).expect("every log has a manifest");
        assert!(spot::damage(&disk, &spot, Damage::Missing), "it is gone");
        for cores in [1, 2] {
            self.cluster.boot_on(VICTIM, cores);
            self.settle(Duration::from_secs(3), Some(VICTIM));
            let suspects = self.suspects(VICTIM);
            // The meta group's is one of them.
            let replicas = SHARDS as usize + 1;
            if suspects != replicas {
                let what = format!("{suspects} of {replicas} replicas are suspect on {cores} cores");
                self.scene.violation(what);
            }
            self.cluster.kill(VICTIM);
            self.settle(Duration::from_millis(200), Some(VICTIM));
        }
        self.cluster.boot_on(VICTIM, 2);
        for position in 1..self.cluster.nodes.len() {
            self.cluster.boot_on(position, 1);
        }
        self.settle(Duration::from_secs(3), Some(VICTIM));
        match self.wait_for_outcome(VICTIM) {
            Outcome::Heals { restarts: 0 } => {}
            other => self.scene.violation(format!("{other:?}")),
        }
    }

    /// How many replicas of a node say that they are suspect.
    fn suspects(&mut self, position: usize) -> usize {
        let problems = self.status_of(position).map(|status| status.problems).unwrap_or_default();
        problems.iter().filter(|problem| problem.contains("is suspect")).count()
    }

    /// What a node says of itself, if it answers.
    pub(super) fn status_of(&mut self, position: usize) -> Option<v1::NodeStatusReply> {
        let statuses = Rc::new(RefCell::new(Statuses::new()));
        let (found, address) = (statuses.clone(), vec![self.cluster.addresses()[position].clone()]);
        self.script(Duration::from_secs(2), Some(position), |worker| async move {
            checks::ask_everybody(&worker.lane.runtime, &address, &found).await;
        });
        statuses.take().remove(&0)
    }

    /// Everything that must not have happened.
    pub(crate) fn judge(&mut self) -> Vec<String> {
        self.scene.is_closed.set(true);
        self.simulation.run_for(Duration::from_secs(1));
        let mut violations = self.scene.violations.take();
        // Clients try again and are told again.
        violations.sort_unstable();
        violations.dedup();
        for (shard, term) in self.heard.story().double_leaders {
            violations.push(format!("shard {shard} had two leaders in term {term}"));
        }
        match linearizability::check(&self.scene.history.history()) {
            Verdict::Linearizable(_) => {}
            verdict => violations.push(verdict.to_string()),
        }
        violations
    }
}

/// Writes until it is certain that it was written; returns the version.
async fn write_until_done(worker: &mut Worker, key: &Bytes, bytes: usize) -> u64 {
    loop {
        let name = format!("w{}", worker.lane.random.next());
        let value = data::value(key, &name, bytes);
        if let Ok(version) = worker.put_value(key, value, Wish::None).await {
            return version;
        }
    }
}

/// The data of every case.
async fn fill(mut worker: Worker, cold: Rc<RefCell<(Bytes, u64)>>) {
    for shard in 1..=SHARDS {
        let key = cold_key(shard);
        write_until_done(&mut worker, &key, 1_000).await;
        if shard == TARGET {
            let found = worker.get(&key).await.ok().flatten();
            *cold.borrow_mut() = found.expect("it was written a moment ago");
        }
        let small = small_keys(shard);
        loop {
            let name = format!("s{}", worker.lane.random.next());
            let put = |key: &Bytes| Part::put(key.clone(), data::value(key, &name, 40), Wish::None);
            if worker.batch(small.iter().map(put).collect()).await.is_ok() {
                break;
            }
        }
    }
    for _ in 0..HOT_WRITES {
        for shard in 1..=SHARDS {
            write_until_done(&mut worker, &hot_key(shard), HOT_BYTES).await;
        }
    }
}

/// Reads and writes one shard until the scene is over, and notes the longest time without a success.
async fn keep_busy(mut worker: Worker, shard: u32, longest: Rc<Cell<Duration>>) {
    let small = small_keys(shard);
    let mut last = worker.lane.runtime.now();
    while !worker.scene.is_over.get() {
        let key = match worker.lane.random.below(4) {
            0 => cold_key(shard),
            1 => hot_key(shard),
            _ => small[worker.lane.random.index(small.len())].clone(),
        };
        let is_write = key == hot_key(shard) && worker.lane.random.chance(0.5);
        let served = match is_write {
            true => worker.put(&key, Wish::None).await.is_ok(),
            false => worker.get(&key).await.is_ok(),
        };
        let now = worker.lane.runtime.now();
        longest.set(longest.get().max(now.since(last)));
        if served {
            last = now;
        }
        let think = Duration::from_millis(worker.lane.random.between(5, 40));
        worker.lane.runtime.sleep(think).await;
    }
    worker.scene.lanes.set(worker.scene.lanes.get() - 1);
}

async fn read_and_write_all(mut worker: Worker) {
    for shard in 1..=SHARDS {
        write_until_done(&mut worker, &hot_key(shard), 200).await;
        for key in
            [cold_key(shard), hot_key(shard)].into_iter().chain(small_keys(shard).into_iter().step_by(9))
        {
            while worker.get(&key).await.is_err() {}
        }
        worker.scan(shard).await;
    }
}
