//! What must hold in the end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_proto::v1;
use krita_runtime::Clock;
use krita_runtime::sim::SimRuntime;

use super::client::node_status;
use super::cluster::CLUSTER_NAME;
use super::trace::Heard;
use super::workload::{Scene, Wish, Worker, count_of};
use crate::history::{Action, Outcome, escape};
use crate::linearizability::{self, Verdict};

/// What every node says of itself, by its position.
pub(crate) type Statuses = BTreeMap<usize, v1::NodeStatusReply>;

const PAUSE: Duration = Duration::from_millis(50);

/// Reads and writes every plain key, and reads the others, until each has succeeded.
pub(crate) async fn every_key_serves(mut worker: Worker) {
    let scene = worker.scene.clone();
    for key in &scene.keys.plain {
        while worker.put(key, Wish::None).await.is_err() {
            worker.lane.runtime.sleep(PAUSE).await;
        }
    }
    read_all(&mut worker).await;
    scene.lanes.set(scene.lanes.get() - 1);
}

/// Reads every key, and scans every shard.
pub(crate) async fn everything_is_read(mut worker: Worker) {
    let scene = worker.scene.clone();
    read_all(&mut worker).await;
    for shard in scene.keys.by_shard.keys() {
        worker.scan(*shard).await;
    }
    scene.lanes.set(scene.lanes.get() - 1);
}

async fn read_all(worker: &mut Worker) {
    let scene = worker.scene.clone();
    for key in scene.keys.all() {
        while worker.get(key).await.is_err() {
            worker.lane.runtime.sleep(PAUSE).await;
        }
    }
}

/// Every node's own status.
pub(crate) async fn ask_everybody(
    runtime: &SimRuntime,
    addresses: &[String],
    statuses: &Rc<RefCell<Statuses>>,
) {
    for (position, address) in addresses.iter().enumerate() {
        let limit = Duration::from_secs(1);
        loop {
            let answer = node_status(runtime, CLUSTER_NAME, address, &mut None, limit).await;
            if let Some(status) = answer {
                statuses.borrow_mut().insert(position, status);
                break;
            }
            runtime.sleep(PAUSE).await;
        }
    }
}

/// What keeps the replicas from being equal and whole, if anything does.
pub(crate) fn difference(statuses: &Statuses) -> Option<String> {
    let problems =
        statuses.iter().flat_map(|(node, status)| status.problems.iter().map(move |text| (node, text)));
    for (node, problem) in problems {
        if problem.contains("suspect") {
            return Some(format!("node {}: {problem}", node + 1));
        }
    }
    let mut by_shard: BTreeMap<u32, Vec<(usize, &v1::ShardStatus)>> = BTreeMap::new();
    for (node, status) in statuses {
        for shard in &status.shards {
            by_shard.entry(shard.shard).or_default().push((*node, shard));
        }
    }
    // How many keys there are is an estimate, and each replica has its own.
    let facts = |shard: &v1::ShardStatus| {
        (shard.last_index, shard.commit_index, shard.applied_index, shard.state_hash)
    };
    for (shard, replicas) in &by_shard {
        // Everybody follows the meta group.
        if replicas.len() != if *shard == 0 { statuses.len() } else { 3 } {
            return Some(format!("shard {shard} has {} replicas", replicas.len()));
        }
        let (first, first_status) = replicas[0];
        for (node, status) in replicas {
            if facts(status) != facts(first_status) {
                return Some(format!(
                    "the replicas of shard {shard} differ: node {} has {first_status:?}, node {} has {status:?}",
                    first + 1,
                    node + 1
                ));
            }
        }
    }
    by_shard.is_empty().then(|| "no node has any shard".to_owned())
}

/// All that is judged when nothing moves any more.
pub(crate) fn at_the_end(scene: &Scene, heard: &Heard, statuses: Statuses, had_a_bad_disk: bool) {
    if let Some(difference) = difference(&statuses) {
        scene.violation(difference);
    }
    for (shard, term) in heard.story().double_leaders {
        scene.violation(format!("shard {shard} had two leaders in term {term}"));
    }
    for replica in heard.story().opened_again {
        scene.violation(format!("replica {replica} was opened empty twice"));
    }
    if heard.story().corruptions > 0 && !had_a_bad_disk {
        scene.violation("a read found corruption, and nothing was corrupted".to_owned());
    }
    check_history(scene);
}

fn check_history(scene: &Scene) {
    let history = scene.history.history();
    match linearizability::check(&history) {
        Verdict::Linearizable(effort) => {
            tracing::info!(
                operations = effort.operations,
                unknown = effort.unknown,
                steps = effort.steps,
                "judged"
            );
        }
        verdict => scene.violation(verdict.to_string()),
    }
    for (key, (certain, unknown)) in scene.counts.increments.borrow().iter() {
        let last = history.operations.iter().rev().find_map(|operation| match &operation.outcome {
            Outcome::Read { value, .. } if operation.key == *key && operation.action == Action::Get => {
                Some(value.as_ref().map_or(0, count_of))
            }
            _ => None,
        });
        let Some(last) = last else { continue };
        if last < *certain || last > certain + unknown {
            scene.violation(format!(
                "counter {} stands at {last} after {certain} certain and {unknown} unknown increments",
                escape(key)
            ));
        }
    }
}
