//! The nodes of a run: their hosts, how they are started and ended, and how their processes ended by themselves.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use krita_node::config::{Config, Sources, load};
use krita_node::{CoreMessage, NodeInput, StopSignal, run_core};
use krita_runtime::Runtime;
use krita_runtime::sim::{HostId, Random, SimHandoff, SimMesh, SimRuntime, Simulation};

use super::plan::Plan;

pub(crate) const CLUSTER_NAME: &str = "simulated";
const PORT: u16 = 8080;

/// All nodes.
pub(crate) struct Cluster {
    pub(crate) simulation: Simulation,
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Node>,
    random: Random,
}

/// One node and its host.
pub(crate) struct Node {
    pub(crate) host: HostId,
    pub(crate) address: String,
    pub(crate) state: Cell<State>,
    stop: RefCell<StopSignal>,
    /// Why processes of this node gave up by themselves, and have not been asked about yet.
    failures: Rc<RefCell<Vec<String>>>,
    pub(crate) boots: Cell<u64>,
}

/// What a node is meant to be doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Up,
    Paused,
    /// It was told to end in good order.
    Stopping,
    Down,
}

impl Cluster {
    /// The hosts; nothing runs on them yet.
    pub(crate) fn new(simulation: &Simulation, plan: &Plan) -> Self {
        let node = |number: usize| Node {
            host: simulation.add_host(&format!("node{number}")),
            address: format!("node{number}:{PORT}"),
            state: Cell::new(State::Down),
            stop: RefCell::default(),
            failures: Rc::default(),
            boots: Cell::new(0),
        };
        Self {
            simulation: simulation.clone(),
            plan: plan.clone(),
            nodes: (1..=plan.nodes).map(node).collect(),
            random: simulation.random(),
        }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// Starts a node on a number of cores that may differ from the last.
    pub(crate) fn boot(&self, position: usize) {
        let cores = self.random.between(1, u64::from(self.plan.cores_max));
        self.boot_on(position, u16::try_from(cores).expect("few"));
    }

    /// Starts a node on this many cores.
    pub(crate) fn boot_on(&self, position: usize, cores: u16) {
        let node = &self.nodes[position];
        let stop = StopSignal::default();
        let input = Arc::new(NodeInput {
            config: self.config(position),
            certificates: None,
            boot_id: self.random.next(),
            stop: stop.clone(),
        });
        tracing::info!(node = position + 1, cores, "boot");
        *node.stop.borrow_mut() = stop;
        node.boots.set(node.boots.get() + 1);
        node.state.set(State::Up);
        let (failures, world, host) = (node.failures.clone(), self.simulation.clone(), node.host);
        let main = move |runtime: SimRuntime, mesh: SimMesh<CoreMessage<SimHandoff>>| {
            let (input, failures, world) = (input.clone(), failures.clone(), world.clone());
            async move {
                let core = runtime.core();
                if let Err(failure) = run_core(runtime, mesh, input).await {
                    failures.borrow_mut().push(format!("{core}: {failure}"));
                    // The process exits, whatever its other cores do.
                    world.kill(host);
                }
            }
        };
        self.simulation.boot(node.host, cores, main);
    }

    fn config(&self, position: usize) -> Config {
        let peers: String =
            self.nodes.iter().map(|node| format!("  - address: \"{}\"\n", node.address)).collect();
        let text = format!(
            "cluster_name: {CLUSTER_NAME}\nnode_id: node{}\npeers:\n{peers}data_directory: /data\nport: {PORT}\n\
             advertised_address: \"{}\"\ninsecure: true\nshards: {}\nleader_lease: {}\nsegment_bytes: 4MiB\n",
            position + 1,
            self.nodes[position].address,
            self.plan.shards,
            self.plan.leader_lease,
        );
        let sources = Sources { file: Some((Path::new("/krita.yaml"), &text)), ..Sources::default() };
        let mut config = load(sources).unwrap_or_else(|errors| panic!("the configuration: {errors}")).config;
        // Far below what is allowed, so that a minute of load turns logs over many times.
        config.segment_bytes = self.plan.segment_bytes;
        config.checkpoint_after_bytes = self.plan.checkpoint_after_bytes;
        config.value_cache_bytes = self.plan.value_cache_bytes;
        config
    }

    pub(crate) fn in_state(&self, state: State) -> Vec<usize> {
        (0..self.nodes.len()).filter(|position| self.nodes[*position].state.get() == state).collect()
    }

    /// The power goes.
    pub(crate) fn power_cut(&self, position: usize) {
        tracing::info!(node = position + 1, "power cut");
        self.nodes[position].state.set(State::Down);
        self.simulation.crash(self.nodes[position].host);
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, position: usize) {
        tracing::info!(node = position + 1, "kill");
        self.nodes[position].state.set(State::Down);
        self.simulation.kill(self.nodes[position].host);
    }

    /// SIGTERM.
    pub(crate) fn stop(&self, position: usize) {
        tracing::info!(node = position + 1, "stop");
        self.nodes[position].state.set(State::Stopping);
        self.nodes[position].stop.borrow().stop();
    }

    pub(crate) fn pause(&self, position: usize) {
        tracing::info!(node = position + 1, "pause");
        self.nodes[position].state.set(State::Paused);
        self.simulation.pause(self.nodes[position].host);
    }

    pub(crate) fn resume(&self, position: usize) {
        if self.nodes[position].state.get() == State::Paused {
            tracing::info!(node = position + 1, "resume");
            self.nodes[position].state.set(State::Up);
            self.simulation.resume(self.nodes[position].host);
        }
    }

    /// Why nodes gave up by themselves since the last call.
    pub(crate) fn take_failures(&self) -> Vec<(usize, String)> {
        let of_node = |(position, node): (usize, &Node)| {
            let failures = std::mem::take(&mut *node.failures.borrow_mut());
            failures.into_iter().map(move |failure| (position, failure)).collect::<Vec<_>>()
        };
        self.nodes.iter().enumerate().flat_map(of_node).collect()
    }
}
