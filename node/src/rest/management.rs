//! The cluster as this node knows it, and the state of every node: read-only.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use krita_net::http::{OutgoingBody, Response, StatusCode};
use krita_proto::v1;
use krita_runtime::{Runtime, timeout};
use serde_json::{Value, json};

use super::answer;
use super::refusal::Refusal;
use crate::core::Core;

/// How long a member has to say how it is. All are asked at once.
const MEMBER_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What a member says of itself, or why nothing was heard of it.
pub(crate) struct MemberState {
    pub(crate) node_number: u32,
    pub(crate) node_id: String,
    pub(crate) address: String,
    pub(crate) status: Result<v1::NodeStatusReply, String>,
    /// What gossip has told this node of it.
    pub(crate) sighting: Option<v1::NodeSighting>,
}

impl MemberState {
    /// Whether it serves.
    pub(crate) fn is_well(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.state == "serving")
    }

    /// Its state in a word or two.
    pub(crate) fn state(&self) -> &str {
        self.status.as_ref().map_or("unreachable", |status| &status.state)
    }
}

/// `GET /v1/cluster`.
pub(crate) async fn cluster<R: Runtime>(core: &Rc<Core<R>>) -> Result<Response<OutgoingBody>, Refusal> {
    let status = core.ask(&v1::ClusterStatus {}).await?;
    let members = status.members.iter().map(|member| {
        json!({ "node_number": member.node_number, "node_id": member.node_id, "address": member.address })
    });
    let body = json!({
        "cluster_name": status.cluster_name,
        "cluster_id": hexadecimal(&status.cluster_id),
        "epoch": status.epoch,
        "log_time_ms": status.log_time_ms,
        "shards": status.shards.len(),
        "members": members.collect::<Vec<Value>>(),
    });
    Ok(answer::json(StatusCode::OK, &body))
}

/// `GET /v1/shards`.
pub(crate) async fn shards<R: Runtime>(core: &Rc<Core<R>>) -> Result<Response<OutgoingBody>, Refusal> {
    let status = core.ask(&v1::ClusterStatus {}).await?;
    let shards = status.shards.iter().map(|place| {
        json!({
            "shard": place.shard,
            "nodes": place.nodes,
            "leader_node": (place.leader_node != 0).then_some(place.leader_node),
            "leader_core": place.leader_core_plus_one.checked_sub(1),
        })
    });
    let body = json!({ "epoch": status.epoch, "shards": shards.collect::<Vec<Value>>() });
    Ok(answer::json(StatusCode::OK, &body))
}

/// `GET /v1/nodes`.
pub(crate) async fn nodes<R: Runtime>(core: &Rc<Core<R>>) -> Result<Response<OutgoingBody>, Refusal> {
    let members = member_states(core).await;
    let nodes: Vec<Value> = members.iter().map(member_json).collect();
    Ok(answer::json(StatusCode::OK, &json!({ "nodes": nodes })))
}

/// All that is known of a member, for those who hold a token.
pub(crate) fn member_json(member: &MemberState) -> Value {
    let status = match &member.status {
        Ok(status) => status,
        Err(problem) => {
            return json!({
                "node_number": member.node_number,
                "node_id": member.node_id,
                "address": member.address,
                "reachable": false,
                "state": member.state(),
                "problems": [problem],
                "gossip": member.sighting.as_ref().map(sighting_json),
            });
        }
    };
    json!({
        "node_number": member.node_number,
        "node_id": member.node_id,
        "address": member.address,
        "reachable": true,
        "state": status.state,
        "problems": status.problems,
        "version": status.version,
        "uptime_ms": status.uptime_ms,
        "cores": status.cores,
        "shards_total": status.shards_total,
        "shards_led": status.shards_led,
        "shards_with_leader": status.shards_with_leader,
        "storage": status.storage.as_ref().map(storage_json),
        "gossip": member.sighting.as_ref().map(sighting_json),
    })
}

fn sighting_json(sighting: &v1::NodeSighting) -> Value {
    json!({
        "state": sighting.state,
        "for_ms": sighting.for_ms,
        // Not every reader of JSON keeps 64 bits.
        "incarnation": sighting.incarnation.to_string(),
        "zone": sighting.zone,
        "capacity": sighting.capacity,
        "version": sighting.version,
        "feature_version": sighting.feature_version,
        "load_per_mille": sighting.load_per_mille,
        "stored_bytes": sighting.stored_bytes,
        "health": sighting.health,
        "shard_map_epoch": sighting.shard_map_epoch,
        "settings_epoch": sighting.settings_epoch,
        "unreached_ms": sighting.unreached_ms,
    })
}

fn storage_json(storage: &v1::StorageStatus) -> Value {
    json!({
        // All ones: not known.
        "free_bytes": (storage.free_bytes != u64::MAX).then_some(storage.free_bytes),
        "full": storage.full,
        "stored_bytes": storage.stored_bytes,
        "logs_scrubbing": storage.logs_scrubbing,
        "scrub_passes": storage.scrub_passes,
        "damages": storage.damages,
        "values_repaired": storage.values_repaired,
        "divergences": storage.divergences,
        "shards_suspect": storage.shards_suspect,
    })
}

/// Asks every member, this node first, how it is; takes [`MEMBER_TIMEOUT`] at most. A node that knows of no cluster yet
/// answers for itself alone.
pub(crate) async fn member_states<R: Runtime>(core: &Rc<Core<R>>) -> Vec<MemberState> {
    let others: Vec<(u32, String, String)> = match core.serving.borrow().as_ref() {
        None => Vec::new(),
        Some(serving) => serving
            .cluster
            .others()
            .map(|member| (member.number, member.node_id.clone(), member.address.clone()))
            .collect(),
    };
    let asking = others.into_iter().map(|(node_number, node_id, address)| async move {
        let request = v1::NodeStatus { shards: false };
        let answer = core.peers.request(node_number, 0, &request, MEMBER_TIMEOUT);
        let status = match timeout(&core.runtime, MEMBER_TIMEOUT, answer).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(no_answer()),
        };
        MemberState { node_number, node_id, address, status, sighting: None }
    });
    let (own, mut members) = futures_util::future::join(own_state(core), join_all(asking)).await;
    members.push(own);
    let sightings = core.serving.borrow().as_ref().map(|serving| core.sightings(&serving.cluster));
    for sighting in sightings.into_iter().flatten().filter(|sighting| sighting.node_number != 0) {
        if let Some(member) = members.iter_mut().find(|member| member.node_number == sighting.node_number) {
            member.sighting = Some(sighting);
        }
    }
    members.sort_by_key(|member| member.node_number);
    members
}

/// This node's own state.
pub(crate) async fn own_state<R: Runtime>(core: &Rc<Core<R>>) -> MemberState {
    let status =
        match timeout(&core.runtime, MEMBER_TIMEOUT, core.ask(&v1::NodeStatus { shards: false })).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(failure)) => Err(failure.message),
            Err(_) => Err(no_answer()),
        };
    let identity = status.as_ref().ok().and_then(|status| status.node.clone());
    let identity = identity.unwrap_or_else(|| core.bare_identity());
    MemberState {
        node_number: identity.node_number,
        node_id: identity.node_id,
        address: identity.advertised_address,
        status,
        sighting: None,
    }
}

fn no_answer() -> String {
    format!("no answer within {} ms", MEMBER_TIMEOUT.as_millis())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
