//! What this node counts, for Prometheus.

use std::rc::Rc;

use bytes::Bytes;
use krita_net::http::{OutgoingBody, Response, StatusCode};
use krita_runtime::Runtime;

use super::refusal::Refusal;
use super::{Call, answer};
use crate::core::Core;
use crate::metrics::CONTENT_TYPE;

/// `GET /metrics`.
pub(crate) async fn metrics<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let shards = match call.query.text("detail")? {
        None => false,
        Some("shards") => true,
        Some(other) => {
            return Err(Refusal::invalid(format!("detail is shards, or not given; not {other:?}")));
        }
    };
    let text = core.metrics_text(shards).await;
    Ok(answer::bytes(StatusCode::OK, CONTENT_TYPE, Bytes::from(text)))
}
