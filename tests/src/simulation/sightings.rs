//! What gossip makes of a running cluster: how soon a death is known to all, and that nobody who lives is declared
//! dead, whatever the network loses.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_proto::v1;
use krita_runtime::Clock;
use krita_runtime::sim::{HostId, Random, Simulation};

use super::client::node_status;
use super::cluster::{CLUSTER_NAME, Cluster};
use super::link::Link;
use super::plan::Plan;

/// How often every node is asked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the nodes said last, by position: of every node, by number, its state.
type Views = Rc<RefCell<Vec<Option<BTreeMap<u32, String>>>>>;

/// How long things took after a kill.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Noticed {
    /// Until no live node called it alive.
    pub suspect_after: Duration,
    /// Until all live nodes called it dead.
    pub dead_after: Duration,
}

/// A cluster in which gossip is looked at.
struct Scene {
    simulation: Simulation,
    cluster: Cluster,
    views: Views,
}

impl Scene {
    /// A cluster of so many nodes, in which all know all.
    fn formed(seed: u64, nodes: usize) -> Self {
        let mut plan = Plan::draw(&Random::new(seed ^ 0x676f_7373));
        plan.nodes = nodes;
        let simulation = Simulation::new(seed, plan.options());
        let cluster = Cluster::new(&simulation, &plan);
        let client = simulation.add_host("client");
        let views: Views = Rc::new(RefCell::new(vec![None; nodes]));
        for (position, address) in cluster.addresses().into_iter().enumerate() {
            cluster.boot(position);
            let views = views.clone();
            simulation.spawn_on(client, move |runtime| async move {
                let mut link: Option<Link> = None;
                loop {
                    let status =
                        node_status(&runtime, CLUSTER_NAME, &address, &mut link, Duration::from_secs(3))
                            .await;
                    views.borrow_mut()[position] = status.map(|status| states(&status));
                    runtime.sleep(LOOK_EVERY).await;
                }
            });
        }
        let scene = Self { simulation, cluster, views };
        let all_alive = |views: &[Option<BTreeMap<u32, String>>]| {
            let knows_all = |view: &BTreeMap<u32, String>| {
                view.len() == views.len() && view.values().all(|state| state == "alive")
            };
            views.iter().all(|view| view.as_ref().is_some_and(knows_all))
        };
        scene.until(Duration::from_secs(30), all_alive).expect("after the start all know all");
        scene
    }

    /// Lets time pass until `look` is content; how long that took.
    fn until(
        &self,
        limit: Duration,
        look: impl Fn(&[Option<BTreeMap<u32, String>>]) -> bool,
    ) -> Result<Duration, String> {
        let from = self.simulation.now();
        while !look(&self.views.borrow()) {
            if self.simulation.now() - from > limit {
                return Err(format!("not within {limit:?}: {:?}", self.views.borrow()));
            }
            self.simulation.run_for(Duration::from_millis(20));
        }
        Ok(self.simulation.now() - from)
    }

    /// What live nodes call the node of this position.
    fn calls(views: &[Option<BTreeMap<u32, String>>], position: usize) -> Vec<String> {
        let number = u32::try_from(position).expect("few") + 1;
        let others = views.iter().enumerate().filter(|(other, _)| *other != position);
        others
            .map(|(_, view)| view.as_ref().and_then(|view| view.get(&number).cloned()).unwrap_or_default())
            .collect()
    }
}

fn states(status: &v1::NodeStatusReply) -> BTreeMap<u32, String> {
    status.sightings.iter().map(|sighting| (sighting.node_number, sighting.state.clone())).collect()
}

/// Kills one node of a cluster; how soon the others knew.
///
/// # Errors
/// They did not know in time, or called another one dead.
pub fn kill_one(seed: u64, nodes: usize) -> Result<Noticed, String> {
    let scene = Scene::formed(seed, nodes);
    let victim = usize::try_from(seed).expect("small") % nodes;
    scene.cluster.kill(victim);
    let suspect_after = scene.until(Duration::from_secs(4), |views| {
        Scene::calls(views, victim).iter().all(|state| matches!(state.as_str(), "suspect" | "dead"))
    })?;
    let more = scene.until(Duration::from_secs(8), |views| {
        Scene::calls(views, victim).iter().all(|state| state == "dead")
    })?;
    // It is found again when it comes back, and leaves in good order.
    scene.cluster.boot(victim);
    scene.until(Duration::from_secs(20), |views| {
        Scene::calls(views, victim).iter().all(|state| state == "alive")
    })?;
    scene.cluster.stop(victim);
    scene.until(Duration::from_secs(10), |views| {
        Scene::calls(views, victim).iter().all(|state| state == "left")
    })?;
    Ok(Noticed { suspect_after, dead_after: suspect_after + more })
}

/// Loses much for a while, with a link cut in one direction; nobody may be called dead or have left.
///
/// # Errors
/// Somebody was.
pub fn lose_much(seed: u64, nodes: usize, loss: f64) -> Result<(), String> {
    let scene = Scene::formed(seed, nodes);
    let network = scene.simulation.network();
    network.set_loss_chance(loss);
    let hosts: Vec<HostId> = scene.cluster.nodes.iter().map(|node| node.host).collect();
    // The client's own way is good: it is no part of the cluster.
    let wrong = |views: &[Option<BTreeMap<u32, String>>]| {
        (0..nodes).any(|node| {
            Scene::calls(views, node).iter().any(|state| matches!(state.as_str(), "dead" | "left"))
        })
    };
    for round in 0..4 {
        let (from, to) = (hosts[round % nodes], hosts[(round + 1) % nodes]);
        network.partition_one_way(from, to);
        if scene.until(Duration::from_secs(8), wrong).is_ok() {
            return Err(format!("a live node was declared dead: {:?}", scene.views.borrow()));
        }
        network.heal(from, to);
        if scene.until(Duration::from_secs(7), wrong).is_ok() {
            return Err(format!("a live node was declared dead: {:?}", scene.views.borrow()));
        }
    }
    Ok(())
}
