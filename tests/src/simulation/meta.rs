//! The meta group in a running cluster: it elects, keeps what it was told through deaths and power cuts, knows who is
//! down, and its map is the one that clients are told.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use krita_proto::v1;
use krita_proto::v1::cluster_change::Change;
use krita_runtime::Clock;
use krita_runtime::sim::{HostId, Random, SimRuntime, Simulation};
use kritaclient::core::connection::Greeting;
use kritaclient::core::message::{Request, Response};

use super::client::node_status;
use super::cluster::{CLUSTER_NAME, Cluster};
use super::link::Link;
use super::plan::Plan;

const PAUSE: Duration = Duration::from_millis(50);
const CALL: Duration = Duration::from_secs(3);

/// The setting that these runs set: how many changes may be under way.
const MOVES_MAX: u32 = 5;

/// A cluster without any other load.
struct Scene {
    simulation: Simulation,
    cluster: Cluster,
    client: HostId,
}

impl Scene {
    fn formed(seed: u64, nodes: usize) -> Self {
        let mut plan = Plan::draw(&Random::new(seed ^ 0x6d65_7461));
        plan.nodes = nodes;
        let simulation = Simulation::new(seed, plan.options());
        let cluster = Cluster::new(&simulation, &plan);
        let client = simulation.add_host("client");
        for position in 0..nodes {
            cluster.boot(position);
        }
        Self { simulation, cluster, client }
    }

    /// Runs a script of the client, which must come to its end in time.
    fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        what: &str,
        script: impl FnOnce(SimRuntime, Vec<String>) -> F + 'static,
    ) -> Result<T, String> {
        let (found, addresses) = (Rc::new(RefCell::new(None)), self.cluster.addresses());
        let told = found.clone();
        self.simulation.spawn_on(self.client, move |runtime| async move {
            let outcome = script(runtime, addresses).await;
            *told.borrow_mut() = Some(outcome);
        });
        let until = self.simulation.now() + Duration::from_secs(60);
        while found.borrow().is_none() && self.simulation.now() < until {
            self.simulation.run_for(Duration::from_millis(50));
        }
        found.take().ok_or_else(|| format!("not within a minute: {what}"))
    }

    /// Reads the cluster's state until it is as wished.
    fn read_until(
        &self,
        what: &'static str,
        is_so: impl Fn(&v1::MetaSnapshot) -> bool + 'static,
    ) -> Result<v1::MetaSnapshot, String> {
        self.run(what, move |runtime, addresses| async move {
            loop {
                let read = Request::ClusterRead(v1::ClusterRead::default());
                if let Response::ClusterRead(reply) = ask(&runtime, &addresses, &read).await {
                    let state = reply.state.unwrap_or_default();
                    if is_so(&state) {
                        return state;
                    }
                }
                runtime.sleep(PAUSE).await;
            }
        })
    }

    fn change(&self, what: &'static str, change: Change) -> Result<v1::ClusterChangeReply, String> {
        self.run(what, move |runtime, addresses| async move {
            let request = Request::ClusterChange(v1::ClusterChange { change: Some(change), timeout_ms: 0 });
            loop {
                if let Response::ClusterChange(reply) = ask(&runtime, &addresses, &request).await {
                    return reply;
                }
            }
        })
    }

    /// The position of the node that leads shard 0.
    fn leader(&self) -> Result<usize, String> {
        self.run("somebody leads shard 0", |runtime, addresses| async move {
            loop {
                for (position, address) in addresses.iter().enumerate() {
                    let status = node_status(&runtime, CLUSTER_NAME, address, &mut None, CALL).await;
                    let shards = status.map(|status| status.shards).unwrap_or_default();
                    if shards.iter().any(|shard| shard.shard == 0 && shard.role == "leader") {
                        return position;
                    }
                }
                runtime.sleep(PAUSE).await;
            }
        })
    }

    /// Waits until every node tells clients a map of at least this epoch, and returns what they tell.
    fn maps(&self, epoch: u64) -> Result<Vec<v1::ClusterStatusReply>, String> {
        self.run("every node tells the newest map", move |runtime, addresses| async move {
            let mut maps = Vec::new();
            for address in addresses {
                loop {
                    let status = Request::ClusterStatus(v1::ClusterStatus {});
                    match ask(&runtime, std::slice::from_ref(&address), &status).await {
                        Response::ClusterStatus(map) if map.epoch >= epoch => break maps.push(map),
                        _ => runtime.sleep(PAUSE).await,
                    }
                }
            }
            maps
        })
    }

    /// Every node's replica of shard 0 comes to the same.
    fn equal(&self) -> Result<(), String> {
        self.run("all replicas of shard 0 are equal", |runtime, addresses| async move {
            loop {
                let mut facts = Vec::new();
                for address in &addresses {
                    let status = node_status(&runtime, CLUSTER_NAME, address, &mut None, CALL).await;
                    let shards = status.map(|status| status.shards).unwrap_or_default();
                    let meta = shards.into_iter().find(|shard| shard.shard == 0);
                    facts.push(meta.map(|meta| (meta.applied_index, meta.state_hash)));
                }
                if facts.iter().all(|fact| fact.is_some() && *fact == facts[0]) {
                    return;
                }
                runtime.sleep(PAUSE).await;
            }
        })
    }
}

/// The first good answer of any of these nodes.
async fn ask(runtime: &SimRuntime, addresses: &[String], request: &Request) -> Response {
    loop {
        for address in addresses {
            let greeting = Greeting {
                cluster_name: CLUSTER_NAME.to_owned(),
                token: String::new(),
                core: None,
                client_name: "admin".to_owned(),
            };
            let Ok((mut link, _)) = Link::open(runtime, address, &greeting, CALL).await else { continue };
            if let Ok(response) = link.call(runtime, request, CALL).await {
                return response;
            }
        }
        runtime.sleep(PAUSE).await;
    }
}

fn moves_max(state: &v1::MetaSnapshot) -> Option<u64> {
    state.settings.iter().find(|setting| setting.setting == MOVES_MAX).map(|setting| setting.value)
}

fn down(state: &v1::MetaSnapshot) -> Vec<u32> {
    let down = state.members.iter().filter(|member| member.down_since_ms != 0);
    down.map(|member| member.node_number).collect()
}

/// What is told to the meta group outlives its leader and a power cut of all; who is down is known, and who is up
/// again.
///
/// # Errors
/// What went wrong.
pub fn survive(seed: u64, nodes: usize) -> Result<(), String> {
    let scene = Scene::formed(seed, nodes);
    let formed = scene.read_until("every member has said what it takes part in", move |state| {
        state.members.len() == nodes && state.feature >= 2
    })?;
    scene
        .change("a setting is set", Change::Setting(v1::ClusterSetting { setting: MOVES_MAX, value: 33 }))?;
    let leader = scene.leader()?;
    let number = u32::try_from(leader).expect("few") + 1;
    scene.cluster.kill(leader);
    let state = scene.read_until("who led is known to be down", move |state| down(state) == [number])?;
    if moves_max(&state) != Some(33) {
        return Err(format!("a setting was lost with the leader: {:?}", state.settings));
    }
    scene.cluster.boot(leader);
    scene.read_until("it is known to be up again", |state| down(state).is_empty())?;
    for position in 0..nodes {
        scene.cluster.power_cut(position);
    }
    scene.simulation.run_for(Duration::from_secs(1));
    for position in 0..nodes {
        scene.cluster.boot(position);
    }
    let state = scene.read_until("it comes back after a power cut", |state| down(state).is_empty())?;
    if moves_max(&state) != Some(33) || state.epoch < formed.epoch {
        return Err(format!("something was lost with the power: {:?}, {}", state.settings, state.epoch));
    }
    scene.maps(state.epoch)?;
    scene.equal()
}

/// Four nodes and three replicas: a person has a replica moved, and every node's map follows; then somebody else leads.
///
/// # Errors
/// What went wrong.
pub fn move_by_hand(seed: u64) -> Result<(), String> {
    let scene = Scene::formed(seed, 4);
    let formed = scene.read_until("it has formed", |state| state.members.len() == 4 && state.feature >= 2)?;
    let epoch = formed.epoch;
    let before = scene.maps(epoch)?.remove(0).shards.remove(0);
    let from_node = before.nodes[0];
    let to_node = (1..=4).find(|node| !before.nodes.contains(node)).expect("three of four have it");
    let job = scene.change("a move", Change::Move(v1::ClusterMove { shard: 1, from_node, to_node }))?.job;
    let state = scene.read_until("the move is done", move |state| {
        state.jobs.iter().any(|running| running.job == job && running.state == 3)
    })?;
    let mut wanted: Vec<u32> = before.nodes.iter().copied().filter(|node| *node != from_node).collect();
    wanted.push(to_node);
    wanted.sort_unstable();
    for map in scene.maps(state.epoch)? {
        let mut nodes = map.shards[0].nodes.clone();
        nodes.sort_unstable();
        if nodes != wanted || map.epoch <= epoch {
            return Err(format!("the map of epoch {} has shard 1 on {nodes:?}, not {wanted:?}", map.epoch));
        }
    }
    let node = wanted[0];
    scene.change("another leads", Change::Lead(v1::ClusterLead { shard: 1, node }))?;
    scene.run("it leads", move |runtime, addresses| async move {
        loop {
            let status = Request::ClusterStatus(v1::ClusterStatus {});
            if let Response::ClusterStatus(map) = ask(&runtime, &addresses, &status).await
                && map.shards[0].leader_node == node
            {
                return;
            }
            runtime.sleep(PAUSE).await;
        }
    })
}
