//! Nodes that come to a cluster that is there: new ones, wiped ones, and those that are refused.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use krita_node::config::{Sources, load};
use krita_node::{CoreMessage, NodeInput, StopSignal, run_core};
use krita_proto::v1;
use krita_runtime::Clock;
use krita_runtime::sim::{HostId, Random, SimHandoff, SimMesh, SimRuntime, Simulation};

use super::client::node_status;
use super::cluster::{CLUSTER_NAME, Cluster};
use super::link::Link;
use super::plan::Plan;

/// How often a node is asked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What nodes said last, by address.
type Statuses = Rc<RefCell<BTreeMap<String, v1::NodeStatusReply>>>;

/// A cluster to which nodes come.
pub struct Newcomers {
    simulation: Simulation,
    cluster: Cluster,
    client: HostId,
    statuses: Statuses,
}

impl Newcomers {
    /// A cluster of so many founders that serves.
    ///
    /// # Panics
    /// If it does not within a bound.
    pub fn formed(seed: u64, nodes: usize) -> Self {
        let mut plan = Plan::draw(&Random::new(seed ^ 0x6a6f_696e));
        plan.nodes = nodes;
        let simulation = Simulation::new(seed, plan.options());
        let cluster = Cluster::new(&simulation, &plan);
        let client = simulation.add_host("client");
        let newcomers = Self { simulation, cluster, client, statuses: Rc::default() };
        for position in 0..nodes {
            newcomers.cluster.boot(position);
            newcomers.watch(&newcomers.cluster.nodes[position].address);
        }
        let addresses = newcomers.cluster.addresses();
        newcomers
            .until(Duration::from_secs(30), |statuses| {
                addresses.iter().all(|it| statuses.get(it).is_some_and(|status| status.state == "serving"))
            })
            .expect("the founders serve");
        newcomers
    }

    /// Asks a node again and again how it is.
    fn watch(&self, address: &str) {
        let (statuses, address) = (self.statuses.clone(), address.to_owned());
        self.simulation.spawn_on(self.client, move |runtime| async move {
            let mut link: Option<Link> = None;
            loop {
                let limit = Duration::from_secs(2);
                let status = node_status(&runtime, CLUSTER_NAME, &address, &mut link, limit).await;
                match status {
                    Some(status) => statuses.borrow_mut().insert(address.clone(), status),
                    None => statuses.borrow_mut().remove(&address),
                };
                runtime.sleep(LOOK_EVERY).await;
            }
        });
    }

    /// Starts a node that is to join the cluster at its first founder, on a host of its own.
    pub fn start(&self, host: &str, cluster_name: &str, node_id: &str) -> Newcomer {
        let newcomer = Newcomer {
            host: self.simulation.add_host(host),
            address: format!("{host}:8080"),
            text: format!(
                "cluster_name: {cluster_name}\nnode_id: {node_id}\njoin:\n  - address: \"node1:8080\"\n\
                 data_directory: /data\nport: 8080\nadvertised_address: \"{host}:8080\"\ninsecure: true\n\
                 segment_bytes: 4MiB\nzone: z2\n"
            ),
        };
        self.boot(&newcomer);
        if cluster_name == CLUSTER_NAME {
            self.watch(&newcomer.address);
        }
        newcomer
    }

    /// Starts it, again if it has ended.
    pub fn boot(&self, newcomer: &Newcomer) {
        let sources =
            Sources { file: Some((Path::new("/krita.yaml"), &newcomer.text)), ..Sources::default() };
        let config = load(sources).unwrap_or_else(|errors| panic!("the configuration: {errors}")).config;
        let (boot_id, stop) = (self.simulation.random().next(), StopSignal::default());
        let input = Arc::new(NodeInput { config, certificates: None, boot_id, stop });
        let main = move |runtime: SimRuntime, mesh: SimMesh<CoreMessage<SimHandoff>>| {
            let input = input.clone();
            async move { run_core(runtime, mesh, input).await.unwrap_or_else(|failure| panic!("{failure}")) }
        };
        self.simulation.boot(newcomer.host, 2, main);
    }

    /// SIGKILL.
    pub fn kill(&self, newcomer: &Newcomer) {
        self.simulation.kill(newcomer.host);
    }

    /// Kills founders and newcomers by chance, one at a time and each for a moment, and starts them again.
    pub fn crash_about(&self, newcomers: &[&Newcomer], times: usize) {
        let random = self.simulation.random();
        for _ in 0..times {
            self.run(Duration::from_millis(random.between(50, 1_500)));
            let founders = self.cluster.nodes.len();
            let victim = random.index(founders + newcomers.len());
            let newcomer = victim.checked_sub(founders).map(|position| newcomers[position]);
            match newcomer {
                None => self.cluster.kill(victim),
                Some(newcomer) => self.kill(newcomer),
            }
            self.run(Duration::from_millis(random.between(10, 2_000)));
            match newcomer {
                None => self.cluster.boot(victim),
                Some(newcomer) => self.boot(newcomer),
            }
        }
    }

    /// Lets time pass.
    pub fn run(&self, time: Duration) {
        self.simulation.run_for(time);
    }

    /// Kills a founder, and starts it again after a pause.
    pub fn restart_founder(&self, position: usize, pause: Duration) {
        self.cluster.kill(position);
        self.run(pause);
        self.cluster.boot(position);
    }

    /// Kills a founder, erases its disk, and starts it with the configuration that it had.
    pub fn wipe_founder(&self, position: usize) {
        self.cluster.kill(position);
        self.simulation.disk(self.cluster.nodes[position].host).wipe();
        self.cluster.boot(position);
    }

    /// Waits until all of these nodes know exactly these members (by number: node id) and hear all of them.
    ///
    /// # Errors
    /// They do not within a bound.
    pub fn await_members(&self, tellers: &[&str], members: &[(u32, &str)]) -> Result<Duration, String> {
        let wanted: BTreeMap<u32, String> =
            members.iter().map(|(number, name)| (*number, (*name).to_owned())).collect();
        self.until(Duration::from_secs(30), |statuses| {
            tellers.iter().all(|teller| {
                statuses.get(*teller).is_some_and(|status| {
                    let of_members = status.sightings.iter().filter(|it| it.node_number != 0);
                    let known: BTreeMap<u32, String> = of_members
                        .filter(|it| it.state == "alive")
                        .map(|it| (it.node_number, it.node_id.clone()))
                        .collect();
                    known == wanted && status.peers.len() + 1 == wanted.len() && status.state == "serving"
                })
            })
        })
    }

    /// What a node says of itself.
    pub fn state_of(&self, newcomer: &Newcomer) -> String {
        self.statuses.borrow().get(&newcomer.address).map(|status| status.state.clone()).unwrap_or_default()
    }

    fn until(
        &self,
        limit: Duration,
        look: impl Fn(&BTreeMap<String, v1::NodeStatusReply>) -> bool,
    ) -> Result<Duration, String> {
        let from = self.simulation.now();
        while !look(&self.statuses.borrow()) {
            if self.simulation.now() - from > limit {
                let shown: Vec<String> = self.statuses.borrow().iter().map(shown).collect();
                return Err(format!("not within {limit:?}: {shown:?}"));
            }
            self.simulation.run_for(Duration::from_millis(20));
        }
        Ok(self.simulation.now() - from)
    }
}

fn shown((address, status): (&String, &v1::NodeStatusReply)) -> String {
    let seen: Vec<String> = status
        .sightings
        .iter()
        .map(|it| format!("{} {} {} at {}", it.node_number, it.node_id, it.state, it.address))
        .collect();
    format!("{address}: {} with {} peers, sees {seen:?}", status.state, status.peers.len())
}

/// A node that came later.
pub struct Newcomer {
    host: HostId,
    /// Where it is.
    pub address: String,
    text: String,
}
