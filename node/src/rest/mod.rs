//! The REST face of a node: `/v1/...` and the health pages, over the same request path as the native protocol.

use std::rc::Rc;

use bytes::Bytes;
use krita_net::http::{HeaderValue, IncomingBody, OutgoingBody, Request, Response, StatusCode, header};
use krita_runtime::Runtime;

use crate::core::Core;

/// Answers one request that is not gRPC.
pub(crate) async fn serve<R: Runtime>(
    _core: Rc<Core<R>>,
    _request: Request<IncomingBody>,
) -> Response<OutgoingBody> {
    let body = Bytes::from_static(br#"{"error":{"code":1,"name":"INVALID_ARGUMENT","message":"no such path"}}"#);
    let mut response = Response::new(OutgoingBody::full(body));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
