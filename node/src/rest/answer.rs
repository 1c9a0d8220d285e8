//! The forms in which answers leave: JSON, bytes, and the headers that all of them share.

use bytes::Bytes;
use krita_net::http::{HeaderValue, OutgoingBody, Response, StatusCode, header};
use krita_proto::error::ErrorCode;
use serde::Serialize;
use serde_json::Value;

use super::refusal::Refusal;
use crate::failure::Failure;

/// The media types that REST speaks.
pub(crate) const JSON: &str = "application/json";
pub(crate) const BYTES: &str = "application/octet-stream";
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// An answer in JSON, ended by a line feed for people at terminals.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response<OutgoingBody> {
    let mut text = value.to_string();
    text.push('\n');
    bytes(status, JSON, Bytes::from(text))
}

/// An answer in JSON, written straight from a form that may be large.
pub(crate) fn serialized<T: Serialize>(
    status: StatusCode,
    form: &T,
) -> Result<Response<OutgoingBody>, Refusal> {
    let mut text = serde_json::to_vec(form).map_err(|error| {
        Failure::new(ErrorCode::Internal, format!("the answer cannot be written as JSON: {error}"))
    })?;
    text.push(b'\n');
    Ok(bytes(status, JSON, Bytes::from(text)))
}

/// An answer whose length is known, and said also where only the head is asked for.
pub(crate) fn bytes(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<OutgoingBody> {
    let length = HeaderValue::from(body.len());
    let mut response = with_body(status, media_type, OutgoingBody::full(body));
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response
}

/// An answer with a body of a type.
pub(crate) fn with_body(
    status: StatusCode,
    media_type: &'static str,
    body: OutgoingBody,
) -> Response<OutgoingBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    // What is stored here is nobody's to keep on the way, nor to be taken for a page.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A version as an entity tag.
pub(crate) fn etag(version: u64) -> HeaderValue {
    let mut tag = String::with_capacity(22);
    tag.push('"');
    tag.push_str(&version.to_string());
    tag.push('"');
    HeaderValue::from_str(&tag).expect("digits in quotes are a header's value")
}
