//! Many operations in one request: cut into one batch for each shard, as native clients do, and answered each by its
//! own result. What one shard did says nothing about another.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use krita_net::http::{IncomingBody, OutgoingBody, Response, StatusCode};
use krita_proto::error::ErrorCode;
use krita_proto::routing::{BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, shard_of};
use krita_proto::v1;
use krita_runtime::Runtime;
use serde::Serialize;

use super::forms::{self, BatchBody, GetResult, Value};
use super::kv::{JSON_BODY_BYTES_MAX, collect, require_json};
use super::refusal::Refusal;
use super::{Call, answer, conditions};
use crate::core::Core;
use crate::failure::Failure;

/// Parts that are on their way at once. The gets of each may answer with an entry's worth of bytes.
const PARTS_AT_ONCE: usize = 4;

/// Most bytes of values in one answer; gets beyond them are told to come by themselves.
const VALUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The operations of one shard, with their places in the request.
struct Part {
    shard: u32,
    positions: Vec<usize>,
    operations: Vec<v1::Operation>,
}

/// What an operation asks, to read its result by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Put,
    Delete,
    Get,
}

/// One operation's end.
enum Ended {
    Done(v1::OperationResult),
    Failed(Refusal),
}

/// `POST /v1/batch`.
pub(crate) async fn batch<R: Runtime>(
    core: &Rc<Core<R>>,
    call: &Call<'_>,
    body: IncomingBody,
) -> Result<Response<OutgoingBody>, Refusal> {
    require_json(call.headers)?;
    let request_id = conditions::request_id(call.headers)?;
    let timeout_ms = call.query.timeout_ms()?;
    let shard_count = core.serving.borrow().as_ref().map(|serving| serving.cluster.shard_count());
    let shard_count = shard_count.ok_or_else(|| core.not_serving())?;
    let body: BatchBody = forms::parse(&collect(body, JSON_BODY_BYTES_MAX).await?, "")?;
    let operations = check(body)?;
    let asked: Vec<Asked> = operations.iter().map(|(_, operation)| asked(operation)).collect();
    let shards: Vec<u32> = operations.iter().map(|(key, _)| shard_of(key, shard_count)).collect();
    let parts = cut(operations, &shards);
    let mut ended: Vec<Option<Ended>> = asked.iter().map(|_| None).collect();
    let answers = parts.into_iter().map(|Part { shard, positions, operations }| async move {
        let request = v1::Batch { shard, operations, request_id, timeout_ms };
        (positions, core.ask(&request).await)
    });
    let mut answers = futures_util::stream::iter(answers).buffered(PARTS_AT_ONCE);
    let mut value_bytes = 0;
    while let Some((positions, answer)) = answers.next().await {
        place(&mut ended, &positions, answer, &mut value_bytes);
    }
    write(&asked, &shards, &ended)
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
fn check(body: BatchBody) -> Result<Vec<(Bytes, v1::Operation)>, Refusal> {
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
        operations.push((key, operation));
    }
    Ok(operations)
}

/// One part for each shard, in the order of shards.
fn cut(operations: Vec<(Bytes, v1::Operation)>, shards: &[u32]) -> Vec<Part> {
    let mut placed: Vec<(u32, usize, v1::Operation)> = operations
        .into_iter()
        .zip(shards)
        .enumerate()
        .map(|(position, ((_, operation), shard))| (*shard, position, operation))
        .collect();
    placed.sort_by_key(|(shard, position, _)| (*shard, *position));
    let mut parts: Vec<Part> = Vec::new();
    for (shard, position, operation) in placed {
        match parts.last_mut().filter(|part| part.shard == shard) {
            Some(part) => {
                part.positions.push(position);
                part.operations.push(operation);
            }
            None => parts.push(Part { shard, positions: vec![position], operations: vec![operation] }),
        }
    }
    parts
}

/// Puts the results of one shard in their places.
fn place(
    ended: &mut [Option<Ended>],
    positions: &[usize],
    answer: Result<v1::BatchReply, Failure>,
    value_bytes: &mut usize,
) {
    let results = match answer {
        Ok(reply) if reply.results.len() == positions.len() => reply.results,
        Ok(reply) => {
            let message = format!("{} results for {} operations", reply.results.len(), positions.len());
            return fail(ended, positions, Failure::new(ErrorCode::Internal, message));
        }
        Err(failure) => return fail(ended, positions, failure),
    };
    for (position, result) in positions.iter().zip(results) {
        *value_bytes += result.value.len();
        ended[*position] = Some(match *value_bytes > VALUE_BYTES_MAX && !result.value.is_empty() {
            false => Ended::Done(result),
            true => {
                *value_bytes -= result.value.len();
                let message = "the values of all gets do not fit one answer: get this key by itself";
                Ended::Failed(Refusal::invalid(message))
            }
        });
    }
}

/// The whole part has failed; what names an operation of the part shall name one of the request.
fn fail(ended: &mut [Option<Ended>], positions: &[usize], failure: Failure) {
    let operation = positions.get(failure.operation as usize).copied().unwrap_or_default();
    let operation = u32::try_from(operation).unwrap_or(u32::MAX);
    let refusal = Refusal::from(Failure { operation, ..failure });
    for position in positions {
        ended[*position] = Some(Ended::Failed(refusal.clone()));
    }
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

fn write(
    asked: &[Asked],
    shards: &[u32],
    ended: &[Option<Ended>],
) -> Result<Response<OutgoingBody>, Refusal> {
    let mut complete = true;
    let results = asked.iter().zip(shards).zip(ended).map(|((asked, shard), ended)| {
        let shard = *shard;
        match (asked, ended) {
            (Asked::Put, Some(Ended::Done(result))) => ResultForm::Put { shard, version: result.version },
            (Asked::Delete, Some(Ended::Done(result))) => {
                ResultForm::Delete { shard, existed: result.existed }
            }
            (Asked::Get, Some(Ended::Done(result))) => ResultForm::Get(GetResult {
                shard,
                found: result.existed,
                version: result.version,
                value: result.existed.then(|| Value::new(&result.value)),
            }),
            (_, Some(Ended::Failed(refusal))) => {
                complete = false;
                ResultForm::Failed { shard, error: refusal.to_json() }
            }
            (_, None) => {
                complete = false;
                let failure = Failure::new(ErrorCode::Internal, "this operation was not answered");
                ResultForm::Failed { shard, error: Refusal::from(failure).to_json() }
            }
        }
    });
    let results: Vec<ResultForm<'_>> = results.collect();
    let status = if complete { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    answer::serialized(status, &Results { complete, results })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<(Bytes, v1::Operation)>, Refusal> {
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
    fn results_come_back_to_their_places() {
        let operations = parse(
            r#"{"operations": [{"put": {"key": "a", "value": "1"}}, {"get": {"key": "b"}}, {"delete": {"key": "c"}}]}"#,
        )
        .unwrap();
        let parts = cut(operations, &[2, 1, 2]);
        let cuts: Vec<_> = parts.iter().map(|part| (part.shard, part.positions.clone())).collect();
        assert_eq!(cuts, [(1, vec![1]), (2, vec![0, 2])]);
        let mut ended: Vec<Option<Ended>> = vec![None, None, None];
        let failure = Failure { operation: 1, ..Failure::new(ErrorCode::ConditionFailed, "no") };
        let mut value_bytes = VALUE_BYTES_MAX;
        place(&mut ended, &[0, 2], Err(failure), &mut value_bytes);
        let result = v1::OperationResult { existed: true, version: 3, value: Bytes::from_static(b"x") };
        place(
            &mut ended,
            &[1],
            Ok(v1::BatchReply { results: vec![result], served_by: None }),
            &mut value_bytes,
        );
        let Some(Ended::Failed(refusal)) = &ended[0] else { panic!("the part failed") };
        assert_eq!(refusal.failure.operation, 2, "the delete is operation 2 of the request");
        assert!(matches!(&ended[1], Some(Ended::Failed(_))), "its value did not fit any more");
    }
}
