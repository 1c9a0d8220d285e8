//! The REST face of a node: `/v1/...` and the health pages, over the same request path as the native protocol.
//!
//! A request is matched against the table in `routes`, let in, its query checked against the same table, and then
//! turned into the message that a native client would send (`Core::ask_retrying`): limits, routing, conditions and
//! exactly-once are decided where they are for everyone. What this face adds is form:
//!
//! - `query`, `conditions`: what stands in the target and in the headers. `forms`: data as JSON.
//! - `kv`, `batch`, `scan`: data. `management`, `health`, `metrics`: the cluster.
//! - `answer`, `refusal`: what goes out. `openapi`: the table as a document.

use std::rc::Rc;

use bytes::Bytes;
use krita_net::http::{
    HeaderMap, HeaderValue, IncomingBody, Method, OutgoingBody, Request, Response, StatusCode, Uri, Version,
    header,
};
use krita_proto::error::ErrorCode;
use krita_proto::frame::BODY_BYTES_MAX;
use krita_runtime::Runtime;

use self::query::{Plus, Query, percent_decode};
use self::refusal::Refusal;
use self::routes::{Access, Endpoint, Matched, Operation};
use crate::core::Core;
use crate::doors::TOKEN_HEADER;
use crate::failure::Failure;

mod answer;
mod batch;
mod conditions;
mod forms;
mod health;
mod kv;
mod management;
mod metrics;
mod openapi;
mod query;
mod refusal;
mod routes;
mod scan;

/// A request that has been let in, and whose query is well formed.
pub(crate) struct Call<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: Query,
    /// The key as it stands in the path.
    key_text: &'a str,
    /// The caller gave a good token, or none is needed.
    pub(crate) is_known: bool,
}

impl Call<'_> {
    /// The key of the path.
    pub(crate) fn key(&self) -> Result<Bytes, Refusal> {
        let bytes = percent_decode(self.key_text, Plus::IsItself)?;
        self.query.key_encoding()?.decode(bytes, "the key")
    }
}

/// A body of at most this length that nobody wants is read to its end all the same, and thrown away piece by piece:
/// otherwise the connection would close while its sender still writes, and the answer be lost with it.
const DRAINED_BYTES_MAX: u64 = BODY_BYTES_MAX as u64;

/// The same for those who have shown no good token.
const DRAINED_OF_STRANGERS_BYTES_MAX: u64 = 64 * 1024;

/// Answers one request that is not gRPC.
pub(crate) async fn serve<R: Runtime>(
    core: Rc<Core<R>>,
    request: Request<IncomingBody>,
) -> Response<OutgoingBody> {
    let (head, body) = request.into_parts();
    let mut body = Some(body);
    let asked = Asked { method: &head.method, uri: &head.uri, headers: &head.headers };
    let mut response = match answer_request(&core, asked, &mut body).await {
        Ok(response) => response,
        Err(refusal) => refusal.response(),
    };
    if head.method == Method::HEAD {
        // HTTP/2 would send it.
        *response.body_mut() = OutgoingBody::empty();
    }
    let is_read = match body {
        Some(body) => {
            let is_stranger = response.status() == StatusCode::UNAUTHORIZED;
            let bytes_max = if is_stranger { DRAINED_OF_STRANGERS_BYTES_MAX } else { DRAINED_BYTES_MAX };
            drain(body, &head.headers, bytes_max).await
        }
        None => !matches!(response.status(), StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT),
    };
    if !is_read && head.version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads what is left of a body of bearable length, unless its sender waits to be told to go on; whether nothing is
/// left.
async fn drain(mut body: IncomingBody, headers: &HeaderMap, bytes_max: u64) -> bool {
    if body.is_end() {
        return true;
    }
    let is_bearable = body.announced_length().is_some_and(|length| length <= bytes_max);
    if !is_bearable || headers.contains_key(header::EXPECT) {
        return false;
    }
    loop {
        match body.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// The answer to a request that is not looked at any closer.
pub(crate) fn refused(failure: Failure) -> Response<OutgoingBody> {
    Refusal::from(failure).response()
}

/// The head of a request.
struct Asked<'a> {
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
}

async fn answer_request<R: Runtime>(
    core: &Rc<Core<R>>,
    asked: Asked<'_>,
    body: &mut Option<IncomingBody>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let Asked { method, uri, headers } = asked;
    let Matched { operation, key_text } = routes::find(uri.path(), method.as_str())?;
    let is_known = admit(core, operation, headers)?;
    let query = Query::parse(uri.query(), operation)?;
    let call = Call { headers, query, key_text, is_known };
    match operation.endpoint {
        Endpoint::GetKey => kv::get(core, &call).await,
        Endpoint::PutKey => kv::put(core, &call, body).await,
        Endpoint::DeleteKey => kv::delete(core, &call).await,
        Endpoint::Scan => scan::scan(core, &call).await,
        Endpoint::Batch => batch::batch(core, &call, body).await,
        Endpoint::Cluster => management::cluster(core).await,
        Endpoint::Nodes => management::nodes(core).await,
        Endpoint::Shards => management::shards(core).await,
        Endpoint::OpenApi => Ok(openapi::answer()),
        Endpoint::Metrics => metrics::metrics(core, &call).await,
        Endpoint::Live => health::live(core, &call),
        Endpoint::Ready => health::ready(core, &call).await,
        Endpoint::NodeHealth => health::node(core, &call).await,
        Endpoint::ClusterHealth => health::cluster(core, &call).await,
    }
}

/// Lets the caller in; whether it is known to hold a good token. Whoever shows a token wants it looked at: a bad one is
/// an error everywhere, and no sign of ill health.
fn admit<R: Runtime>(core: &Core<R>, operation: &Operation, headers: &HeaderMap) -> Result<bool, Refusal> {
    let failure = match core.admit_http(headers) {
        Ok(()) => return Ok(true),
        Err(failure) => failure,
    };
    let shows_token = headers.contains_key(header::AUTHORIZATION) || headers.contains_key(TOKEN_HEADER);
    let is_stranger = failure.code == ErrorCode::Unauthenticated && !shows_token;
    match operation.access == Access::Open && is_stranger {
        true => Ok(false),
        false => Err(failure.into()),
    }
}
