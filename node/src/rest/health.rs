//! Whether this process, this node and every member are well. Nobody needs a token to ask, so what everyone is told
//! names nodes and states only; addresses and problems are for those who show a good token.

use std::rc::Rc;

use krita_net::http::{OutgoingBody, Response, StatusCode};
use krita_runtime::Runtime;
use serde_json::{Map, Value, json};

use super::management::{MemberState, member_json, member_states, own_state};
use super::refusal::Refusal;
use super::{Call, answer};
use crate::core::Core;

/// `GET /livez`: this core answers, that is all.
pub(crate) fn live<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let mut body = Map::from_iter([("healthy".to_owned(), json!(true))]);
    if call.query.switch("verbose")? {
        body.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
        let uptime = core.runtime.now().since(core.started_at);
        body.insert("uptime_ms".to_owned(), json!(uptime.as_millis() as u64));
    }
    Ok(answer::json(StatusCode::OK, &Value::Object(body)))
}

/// `GET /readyz`: this node serves what is asked of it.
pub(crate) async fn ready<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let verbose = call.query.switch("verbose")?;
    let own = own_state(core).await;
    let mut body = Map::from_iter([
        ("healthy".to_owned(), json!(own.is_well())),
        ("state".to_owned(), json!(public_state(&own))),
    ]);
    if verbose {
        body.insert("checks".to_owned(), checks(&own));
        tell_problems(&own, call, &mut body);
    }
    Ok(answer::json(status(own.is_well()), &Value::Object(body)))
}

/// `GET /healthcheck`: this node's state.
pub(crate) async fn node<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let verbose = call.query.switch("verbose")?;
    let own = own_state(core).await;
    let mut body = Map::from_iter([
        ("healthy".to_owned(), json!(own.is_well())),
        ("node_id".to_owned(), json!(own.node_id)),
        ("state".to_owned(), json!(public_state(&own))),
    ]);
    if verbose {
        body.insert("checks".to_owned(), checks(&own));
    }
    tell_problems(&own, call, &mut body);
    Ok(answer::json(status(own.is_well()), &Value::Object(body)))
}

/// `GET /healthz`, `GET /cluster/healthcheck`: every member's state.
pub(crate) async fn cluster<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let states = member_states(core).await;
    let is_formed = core.serving.borrow().is_some();
    let healthy = is_formed && states.iter().all(MemberState::is_well);
    let members: Vec<Value> = states
        .iter()
        .map(|member| match call.is_known {
            true => member_json(member),
            false => json!({
                "node_id": member.node_id,
                "reachable": member.status.is_ok(),
                "state": public_state(member),
                "gossip": member.sighting.as_ref().map(|sighting| json!({
                    "state": sighting.state, "for_ms": sighting.for_ms,
                })),
            }),
        })
        .collect();
    Ok(answer::json(status(healthy), &json!({ "healthy": healthy, "members": members })))
}

fn status(is_well: bool) -> StatusCode {
    if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// A state without what only forming nodes add to it (names and addresses of those whom they wait for).
fn public_state(member: &MemberState) -> &str {
    let state = member.state();
    let end = state.find(':').unwrap_or(state.len());
    &state[..end]
}

/// What was looked at.
fn checks(own: &MemberState) -> Value {
    let Ok(status) = &own.status else {
        return json!([{ "name": "node", "ok": false, "detail": "its cores do not answer" }]);
    };
    let is_formed = status.node.as_ref().is_some_and(|node| node.node_number != 0);
    let connected = status.peers.iter().filter(|peer| peer.connected).count();
    let members = status.peers.len() + 1;
    let storage = status.storage.unwrap_or_default();
    json!([
        { "name": "formed", "ok": is_formed, "detail": if is_formed { "formed" } else { "not formed yet" } },
        {
            "name": "quorum",
            "ok": is_formed && (connected + 1) * 2 > members,
            "detail": format!("{} of {members} members", connected + 1),
        },
        {
            "name": "leaders",
            "ok": is_formed && status.shards_with_leader == status.shards_total,
            "detail": format!("{} of {} shards have one", status.shards_with_leader, status.shards_total),
        },
        { "name": "disk", "ok": !storage.full, "detail": if storage.full { "full" } else { "has room" } },
        {
            "name": "data",
            "ok": storage.shards_suspect == 0,
            "detail": format!("{} replicas wait to be healed", storage.shards_suspect),
        },
    ])
}

fn tell_problems(own: &MemberState, call: &Call<'_>, body: &mut Map<String, Value>) {
    if !call.is_known {
        return;
    }
    let problems = match &own.status {
        Ok(status) => status.problems.clone(),
        Err(problem) => vec![problem.clone()],
    };
    body.insert("problems".to_owned(), json!(problems));
}
