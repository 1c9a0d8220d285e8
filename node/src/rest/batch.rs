//! Many operations in one request, each answered by its own result. How they are cut into batches of shards, and sent,
//! stands in `batching`.

use std::collections::BTreeSet;
use std::rc::Rc;

use krita_net::http::{IncomingBody, OutgoingBody, Response, StatusCode};
use krita_proto::routing::{BATCH_OPERATIONS_MAX, KEY_BYTES_MAX};
use krita_proto::v1;
use krita_runtime::Runtime;
use serde::Serialize;

use super::forms::{self, BatchBody, GetResult, Value};
use super::kv::{JSON_BODY_BYTES_MAX, collect, require_json};
use super::refusal::Refusal;
use super::{Call, answer, conditions};
use crate::batching;
use crate::core::Core;
use crate::failure::Failure;

/// What an operation asks, to read its result by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Put,
    Delete,
    Get,
}

/// `POST /v1/batch`.
pub(crate) async fn batch<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
    body: &mut Option<IncomingBody>,
) -> Result<Response<OutgoingBody>, Refusal> {
    require_json(call.headers)?;
    let request_id = conditions::request_id(call.headers)?;
    let timeout_ms = call.query.timeout_ms()?;
    let body: BatchBody = forms::parse(&collect(body, JSON_BODY_BYTES_MAX).await?, "")?;
    let operations = check(body)?;
    let asked: Vec<Asked> = operations.iter().map(asked).collect();
    let request = v1::KeyBatch { operations, request_id, timeout_ms };
    let reply = batching::batch(core, request, None).await?;
    write(&asked, &reply.outcomes)
}

fn asked(operation: &v1::Operation) -> Asked {
    use v1::operation::Operation as Kind;
    match operation.operation {
        Some(Kind::Put(_)) => Asked::Put,
        Some(Kind::Delete(_)) => Asked::Delete,
        Some(Kind::Get(_)) | None => Asked::Get,
    }
}

/// Everything that could make a shard refuse its part as malformed, found before any shard is asked.
fn check(body: BatchBody) -> Result<Vec<v1::Operation>, Refusal> {
    let count = body.operations.len();
    if count == 0 || count > BATCH_OPERATIONS_MAX {
        let message = format!("a batch holds 1 to {BATCH_OPERATIONS_MAX} operations, this one {count}");
        return Err(Refusal::invalid(message));
    }
    let mut operations = Vec::with_capacity(count);
    let mut keys = BTreeSet::new();
    for (position, operation) in body.operations.into_iter().enumerate() {
        let at = |message: &str| Refusal::invalid(format!("operation {position}: {message}"));
        let (key, operation) = operation.into_operation().map_err(|refusal| at(&refusal.failure.message))?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(at(&format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one {}", key.len())));
        }
        if !keys.insert(key.clone()) {
            return Err(at("a batch holds no key twice"));
        }
        operations.push(operation);
    }
    Ok(operations)
}

/// The answer's body.
#[derive(Serialize)]
struct Results<'a> {
    /// Everything was done.
    complete: bool,
    results: Vec<ResultForm<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ResultForm<'a> {
    Put { shard: u32, version: u64 },
    Delete { shard: u32, existed: bool },
    Get(GetResult<'a>),
    Failed { shard: u32, error: serde_json::Value },
}

fn write(asked: &[Asked], outcomes: &[v1::KeyOutcome]) -> Result<Response<OutgoingBody>, Refusal> {
    use v1::key_outcome::Outcome;
    let mut results = Vec::with_capacity(asked.len());
    for (asked, v1::KeyOutcome { shard, outcome }) in asked.iter().zip(outcomes) {
        let shard = *shard;
        results.push(match (asked, outcome) {
            (Asked::Put, Some(Outcome::Result(result))) => ResultForm::Put { shard, version: result.version },
            (Asked::Delete, Some(Outcome::Result(result))) => {
                ResultForm::Delete { shard, existed: result.existed }
            }
            (Asked::Get, Some(Outcome::Result(result))) => ResultForm::Get(GetResult {
                shard,
                found: result.existed,
                version: result.version,
                value: result.existed.then(|| Value::new(&result.value)),
            }),
            (_, Some(Outcome::Error(error))) => {
                let error = Refusal::from(Failure::from_wire(error.clone())).to_json();
                ResultForm::Failed { shard, error }
            }
            // The shard answered fewer operations than it was asked: whether they were done is not known.
            (_, None) => {
                let failure = Failure::unknown_outcome("this operation was not answered");
                ResultForm::Failed { shard, error: Refusal::from(failure).to_json() }
            }
        });
    }
    let complete = !results.iter().any(|result| matches!(result, ResultForm::Failed { .. }));
    let status = if complete { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    answer::serialized(status, &Results { complete, results })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use krita_proto::error::ErrorCode;

    fn parse(text: &str) -> Result<Vec<v1::Operation>, Refusal> {
        forms::parse::<BatchBody>(text.as_bytes(), "").and_then(check)
    }

    #[test]
    fn bad_operations_are_named_by_their_place() {
        let message = |text: &str| parse(text).unwrap_err().failure.message;
        assert!(message(r#"{"operations": []}"#).contains("1 to 10000"));
        let twice = r#"{"operations": [{"get": {"key": "a"}}, {"delete": {"key_base64": "YQ=="}}]}"#;
        assert!(message(twice).starts_with("operation 1: a batch holds no key twice"));
        let empty = r#"{"operations": [{"get": {"key": ""}}]}"#;
        assert!(message(empty).starts_with("operation 0: a key has 1"));
        assert!(parse(r#"{"operations": [{"get": {"key": "a"}, "put": {}}]}"#).is_err());
    }

    #[test]
    fn each_operation_has_its_own_result() {
        let result = v1::OperationResult { existed: true, version: 3, value: Bytes::from_static(b"x") };
        let failure = Failure { operation: 2, ..Failure::new(ErrorCode::ConditionFailed, "no") };
        let of = |outcome| v1::KeyOutcome { shard: 1, outcome: Some(outcome) };
        let done = [of(v1::key_outcome::Outcome::Result(result))];
        assert_eq!(write(&[Asked::Get], &done).unwrap().status(), StatusCode::OK);
        let failed = [v1::KeyOutcome::default(), of(v1::key_outcome::Outcome::Error(failure.to_wire()))];
        assert_eq!(write(&[Asked::Put, Asked::Get], &failed).unwrap().status(), StatusCode::MULTI_STATUS);
    }
}
