//! One key: read, written, removed. The messages are those of native clients, and so are the answers.

use std::rc::Rc;

use bytes::Bytes;
use krita_net::http::{
    BodyError, HeaderMap, HeaderValue, IncomingBody, OutgoingBody, Response, StatusCode, header,
};
use krita_proto::error::ErrorCode;
use krita_proto::routing::VALUE_BYTES_MAX;
use krita_proto::v1;
use krita_runtime::Runtime;
use serde_json::json;

use super::Call;
use super::answer::{self, BYTES, JSON};
use super::conditions::{self, ReadConditions, ReadVerdict};
use super::forms::{self, Item, PutBody};
use super::refusal::Refusal;
use crate::core::Core;
use crate::failure::Failure;

/// Most bytes of a body in JSON: parsing one keeps the core from everything else.
pub(crate) const JSON_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Longest value that is shown in JSON, for the same reason.
const JSON_VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// On an answer that no quorum confirmed, and up to which log entry of its shard it is.
const STALE_HEADER: &str = "krita-stale";
const APPLIED_INDEX_HEADER: &str = "krita-applied-index";

/// `GET` and `HEAD /v1/kv/{key}`.
pub(crate) async fn get<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let consistency = call.query.consistency()? as i32;
    let form = conditions::negotiate(call.headers, &[BYTES, JSON])?;
    let conditions = ReadConditions::of(call.headers)?;
    let key = call.key()?;
    let request = v1::Get { key: key.clone(), timeout_ms: call.query.timeout_ms()?, consistency };
    let v1::GetReply { found, value, version, stale, applied_index, .. } =
        core.ask_retrying(&request).await?;
    // A key may be present at no version below 1.
    let found_version = if found { version } else { 0 };
    let mut response = match conditions.judge(found_version) {
        ReadVerdict::Failed => {
            let failure =
                Failure::new(ErrorCode::ConditionFailed, "the key does not have the wanted version");
            return Err(Failure { current_version: found_version, ..failure }.into());
        }
        _ if !found => return Err(Refusal::absent_key()),
        ReadVerdict::NotModified => answer::with_body(StatusCode::NOT_MODIFIED, BYTES, OutgoingBody::empty()),
        ReadVerdict::Answer if form == JSON => json_item(&key, &value, version)?,
        ReadVerdict::Answer => answer::bytes(StatusCode::OK, BYTES, value),
    };
    let headers = response.headers_mut();
    if stale {
        headers.insert(STALE_HEADER, HeaderValue::from_static("true"));
        headers.insert(APPLIED_INDEX_HEADER, HeaderValue::from(applied_index));
    }
    headers.insert(header::ETAG, answer::etag(version));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

fn json_item(key: &[u8], value: &[u8], version: u64) -> Result<Response<OutgoingBody>, Refusal> {
    if value.len() > JSON_VALUE_BYTES_MAX {
        let message = format!("a value of {} bytes comes as {BYTES} only", value.len());
        return Err(Refusal::with_status(StatusCode::NOT_ACCEPTABLE, message));
    }
    answer::serialized(StatusCode::OK, &Item::new(key, Some(value), version))
}

/// `PUT /v1/kv/{key}`.
pub(crate) async fn put<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
    body: &mut Option<IncomingBody>,
) -> Result<Response<OutgoingBody>, Refusal> {
    let condition = conditions::write_condition(call.headers)?;
    let request_id = conditions::request_id(call.headers)?;
    let timeout_ms = call.query.timeout_ms()?;
    let key = call.key()?;
    let (value, condition) = match conditions::is_json(call.headers) {
        false => (collect(body, VALUE_BYTES_MAX).await?, condition),
        true => {
            let advice = "; a value that is JSON itself is put as application/octet-stream";
            let parsed: PutBody = forms::parse(&collect(body, JSON_BODY_BYTES_MAX).await?, advice)?;
            let (value, stated) = parsed.into_parts()?;
            if condition.is_some() && stated.is_some() {
                return Err(Refusal::invalid("the condition stands in the headers and in the body"));
            }
            (value, condition.or(stated))
        }
    };
    let request = v1::Put { key, value, condition, request_id, timeout_ms };
    let reply = core.ask_retrying(&request).await?;
    let mut response = answer::json(StatusCode::OK, &json!({ "version": reply.version }));
    response.headers_mut().insert(header::ETAG, answer::etag(reply.version));
    Ok(response)
}

/// `DELETE /v1/kv/{key}`.
pub(crate) async fn delete<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
) -> Result<Response<OutgoingBody>, Refusal> {
    if call.headers.contains_key(header::IF_NONE_MATCH) {
        return Err(Refusal::invalid("a delete takes If-Match alone"));
    }
    let request = v1::Delete {
        key: call.key()?,
        condition: conditions::write_condition(call.headers)?,
        request_id: conditions::request_id(call.headers)?,
        timeout_ms: call.query.timeout_ms()?,
    };
    let reply = core.ask_retrying(&request).await?;
    Ok(answer::json(StatusCode::OK, &json!({ "existed": reply.existed, "version": reply.version })))
}

/// The whole body, or the status that says why not.
pub(crate) async fn collect(body: &mut Option<IncomingBody>, bytes_max: usize) -> Result<Bytes, Refusal> {
    let announced = body.as_ref().and_then(IncomingBody::announced_length);
    if announced.is_some_and(|length| length > bytes_max as u64) {
        // It stays where it is, for the connection to get rid of it.
        let message = format!("the body has more than {bytes_max} bytes");
        return Err(Refusal::with_status(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let body =
        body.take().ok_or_else(|| Failure::new(ErrorCode::Internal, "the body has been read before"))?;
    body.collect(bytes_max).await.map_err(|error| match &error {
        BodyError::TooLarge(_) => Refusal::with_status(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("{error}: too large for this request"),
        ),
        BodyError::Timeout => Refusal::with_status(StatusCode::REQUEST_TIMEOUT, error.to_string()),
        BodyError::Overloaded => Failure::overloaded(error.to_string()).into(),
        BodyError::Broken(_) => Refusal::invalid(error.to_string()),
    })
}

/// Whether the body is what a media type's schema describes; 415 where only JSON is taken.
pub(crate) fn require_json(headers: &HeaderMap) -> Result<(), Refusal> {
    match conditions::is_json(headers) {
        true => Ok(()),
        false => {
            let message = format!("the body must be {JSON}, and Content-Type must say so");
            Err(Refusal::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
        }
    }
}
