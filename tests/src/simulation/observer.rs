//! Watches the nodes through their own status while they are being broken, and holds what they say against each
//! other: two leaders in one term, or two states at one index, are never right.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_proto::v1;
use krita_runtime::Clock;
use krita_runtime::sim::SimRuntime;

use super::client::node_status;
use super::cluster::CLUSTER_NAME;
use super::link::Link;
use super::workload::Scene;

const INTERVAL: Duration = Duration::from_millis(250);
const STATUS_TIMEOUT: Duration = Duration::from_millis(400);

/// What has been observed.
#[derive(Default)]
pub(crate) struct Observed {
    /// Node position that said it leads, by shard and term.
    leaders: BTreeMap<(u32, u64), usize>,
    /// State hash by shard and applied index.
    states: BTreeMap<(u32, u64), (u64, usize)>,
    /// Node position of the latest leader of each shard.
    pub(crate) leading: BTreeMap<u32, usize>,
    /// The latest term of each shard.
    pub(crate) terms: BTreeMap<u32, u64>,
    pub(crate) samples: u64,
}

impl Observed {
    /// Takes in what a node said; returns what cannot be.
    pub(crate) fn take(&mut self, node: usize, status: &v1::NodeStatusReply) -> Vec<String> {
        let mut wrong = Vec::new();
        self.samples += 1;
        for shard in &status.shards {
            let at = (shard.shard, shard.term);
            if shard.role == "leader" {
                let first = *self.leaders.entry(at).or_insert(node);
                if first != node {
                    wrong.push(format!(
                        "nodes {} and {} both lead shard {} in term {}",
                        first + 1,
                        node + 1,
                        shard.shard,
                        shard.term
                    ));
                }
                let newest = self.terms.entry(shard.shard).or_default();
                if shard.term >= *newest {
                    *newest = shard.term;
                    self.leading.insert(shard.shard, node);
                }
            }
            // A replica that knows its state to be damaged says so, and serves and counts nothing until it has another.
            let is_damaged = format!("shard {} is suspect and waits for a snapshot", shard.shard);
            if status.problems.iter().any(|problem| problem.contains(&is_damaged)) {
                continue;
            }
            let here = (shard.state_hash, node);
            let (hash, other) = *self.states.entry((shard.shard, shard.applied_index)).or_insert(here);
            if hash != shard.state_hash {
                wrong.push(format!(
                    "nodes {} and {} differ in shard {} at index {}",
                    other + 1,
                    node + 1,
                    shard.shard,
                    shard.applied_index
                ));
            }
            if shard.applied_index > shard.commit_index || shard.commit_index > shard.last_index {
                wrong.push(format!(
                    "node {} has applied {}, committed {} and logged {} of shard {}",
                    node + 1,
                    shard.applied_index,
                    shard.commit_index,
                    shard.last_index,
                    shard.shard
                ));
            }
        }
        wrong
    }
}

/// Asks every node again and again.
pub(crate) async fn observe(
    runtime: SimRuntime,
    addresses: Vec<String>,
    observed: Rc<RefCell<Observed>>,
    scene: Rc<Scene>,
) {
    let mut links: Vec<Option<Link>> = addresses.iter().map(|_| None).collect();
    while !scene.is_closed.get() {
        runtime.sleep(INTERVAL).await;
        for (node, address) in addresses.iter().enumerate() {
            let answer = node_status(&runtime, CLUSTER_NAME, address, &mut links[node], STATUS_TIMEOUT).await;
            if let Some(status) = answer {
                for wrong in observed.borrow_mut().take(node, &status) {
                    scene.violation(wrong);
                }
            }
        }
    }
}
