//! Health checking for what stands in front of nodes: no token is asked for, and nothing is told but whether the node
//! serves. It does while every shard that it holds has a leader that it hears.

use std::time::Duration;

use krita_net::http::{BodySender, IncomingBody, OutgoingBody, Response};
use krita_proto::grpc_health::health_check_response::ServingStatus;
use krita_proto::grpc_health::{HealthCheckRequest, HealthCheckResponse};
use krita_proto::v1;
use krita_runtime::{Runtime, TaskClass, timeout};

use super::framing::{frame, only, unary, with_body};
use super::status::Status;
use super::{Call, KRITA_SERVICE};
use crate::failure::Failure;

/// How often a watch looks whether the node stops, and every how many times at its state too.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
const STATE_EVERY: u32 = 4;

/// The services that have a state.
const SERVICES: [&str; 2] = ["", KRITA_SERVICE];

/// `Check`: the state now.
pub(super) async fn check<R: Runtime>(
    call: &Call<R>,
    body: IncomingBody,
) -> Result<Response<OutgoingBody>, Status> {
    let request = only::<HealthCheckRequest>(body).await?;
    if !SERVICES.contains(&request.service.as_str()) {
        return Err(Status::not_found("this node has no such service"));
    }
    let status = state(call).await as i32;
    Ok(unary(frame(&HealthCheckResponse { status })))
}

/// `Watch`: the state now and at each change, until the caller has enough or the node stops.
pub(super) async fn watch<R: Runtime>(
    call: Call<R>,
    body: IncomingBody,
) -> Result<Response<OutgoingBody>, Status> {
    let request = only::<HealthCheckRequest>(body).await?;
    let is_known = SERVICES.contains(&request.service.as_str());
    let (sender, body) = OutgoingBody::channel();
    let runtime = call.core.runtime.clone();
    runtime.spawn(TaskClass::Foreground, "grpc-watch", tell_changes(call, is_known, sender));
    Ok(with_body(body))
}

async fn tell_changes<R: Runtime>(call: Call<R>, is_known: bool, mut sender: BodySender) {
    let core = &call.core;
    let mut told = None;
    for round in 0u32.. {
        let is_stopping = core.input.stop.is_set() || core.is_ending();
        let state = match told {
            Some(told) if !is_stopping && round % STATE_EVERY != 0 => told,
            _ if is_known => state(&call).await,
            _ => ServingStatus::ServiceUnknown,
        };
        if told.replace(state) != Some(state)
            && sender.send(frame(&HealthCheckResponse { status: state as i32 })).await.is_err()
        {
            return;
        }
        if is_stopping {
            return sender.finish(Some(Status::from(Failure::not_ready("the node stops")).trailers()));
        }
        if call.left().is_some_and(|left| left.is_zero()) {
            return sender.finish(Some(Status::from(Failure::deadline()).trailers()));
        }
        let wait = call.left().map_or(WATCH_INTERVAL, |left| left.min(WATCH_INTERVAL));
        if timeout(&core.runtime, wait, sender.reader_gone()).await.is_ok() {
            return;
        }
    }
}

async fn state<R: Runtime>(call: &Call<R>) -> ServingStatus {
    if call.core.input.stop.is_set() {
        // Its other cores may have ended already.
        return ServingStatus::NotServing;
    }
    match call.core.ask(&v1::NodeStatus { shards: false }).await {
        Ok(status) if status.state == "serving" => ServingStatus::Serving,
        Ok(_) | Err(_) => ServingStatus::NotServing,
    }
}
