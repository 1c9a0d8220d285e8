//! The gRPC face of a node: `krita.v1.Krita`, health checking and reflection, over HTTP/2.
//!
//! The messages are those of the native protocol, so a request's bytes go to the node as they came and its answer's
//! bytes leave as they are: `data`. A batch and a scan over all shards have messages of their own; `batching` and
//! `scanning` stand behind them. `framing` knows gRPC's prefix and headers, `status` how a failure looks.
//!
//! What is deliberately absent: compression (a compressed message is UNIMPLEMENTED) and any logic of data.

mod cursor;
mod data;
mod framing;
mod health;
mod reflection;
mod status;

use std::rc::Rc;
use std::time::Duration;

use krita_net::http::{
    HeaderMap, HeaderValue, IncomingBody, Method, OutgoingBody, Request, Response, StatusCode, Version,
    header,
};
use krita_proto::frame::FrameKind;
use krita_runtime::{Instant, Runtime};

use self::status::Status;
use crate::core::Core;
use crate::failure::Failure;

/// The name of Krita's own service.
const KRITA_SERVICE: &str = "krita.v1.Krita";

/// How a gRPC request is told from any other.
pub(crate) const CONTENT_TYPE: &str = "application/grpc";

/// What a call has beside its messages.
struct Call<R: Runtime> {
    core: Rc<Core<R>>,
    headers: HeaderMap,
    /// When the caller stops waiting.
    deadline: Option<Instant>,
}

impl<R: Runtime> Call<R> {
    /// Whether the caller may use data.
    fn admit(&self) -> Result<(), Status> {
        self.core.admit_http(&self.headers).map_err(Status::from)
    }

    /// How long the caller still waits.
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.since(self.core.runtime.now()))
    }
}

/// Whether a request is gRPC, by its content type.
pub(crate) fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    let Some(rest) = content_type.and_then(|value| value.as_bytes().strip_prefix(CONTENT_TYPE.as_bytes()))
    else {
        return false;
    };
    matches!(rest.first(), None | Some(b'+' | b';'))
}

/// The answer to a call whose answer was dropped for want of memory.
pub(crate) fn overloaded() -> Response<OutgoingBody> {
    Status::from(Failure::overloaded("too many large answers wait to be taken")).trailers_only()
}

/// Answers one gRPC request.
pub(crate) async fn serve<R: Runtime>(
    core: Rc<Core<R>>,
    request: Request<IncomingBody>,
) -> Response<OutgoingBody> {
    let (head, body) = request.into_parts();
    // Whoever does not speak gRPC's HTTP cannot read its statuses either.
    if head.version != Version::HTTP_2 {
        return plain(StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    }
    if head.method != Method::POST {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let outcome = async {
        framing::check_encodings(&head.headers)?;
        let deadline = framing::timeout(&head.headers)?.map(|timeout| core.runtime.now() + timeout);
        let call = Call { core, headers: head.headers, deadline };
        answer(call, head.uri.path(), body).await
    };
    outcome.await.unwrap_or_else(|status: Status| status.trailers_only())
}

async fn answer<R: Runtime>(
    call: Call<R>,
    path: &str,
    body: IncomingBody,
) -> Result<Response<OutgoingBody>, Status> {
    match path {
        "/krita.v1.Krita/Put" => data::native(&call, FrameKind::Put, body).await,
        "/krita.v1.Krita/Get" => data::native(&call, FrameKind::Get, body).await,
        "/krita.v1.Krita/Delete" => data::native(&call, FrameKind::Delete, body).await,
        "/krita.v1.Krita/Status" => data::native(&call, FrameKind::ClusterStatus, body).await,
        "/krita.v1.Krita/NodeStatus" => data::native(&call, FrameKind::NodeStatus, body).await,
        "/krita.v1.Krita/Batch" => data::batch(&call, body).await,
        "/krita.v1.Krita/Scan" => data::scan(call, body).await,
        "/grpc.health.v1.Health/Check" => health::check(&call, body).await,
        "/grpc.health.v1.Health/Watch" => health::watch(call, body).await,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => reflection::answer(call, body),
        other => Err(Status::unimplemented(format!("this node has no method {other:?}"))),
    }
}

fn plain(status: StatusCode) -> Response<OutgoingBody> {
    let mut response = Response::new(OutgoingBody::empty());
    *response.status_mut() = status;
    response
}
