//! A batch over any keys: cut into one batch for each shard, as native clients do, each answered by itself. What one
//! shard did says nothing about another.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use krita_proto::routing::{BATCH_OPERATIONS_MAX, ENTRY_BYTES_MAX, shard_of};
use krita_proto::v1;
use krita_proto::v1::key_outcome::Outcome;
use krita_proto::v1::operation::Operation as Kind;
use krita_runtime::Runtime;
use prost::Message as _;

use crate::core::Core;
use crate::failure::Failure;

/// Parts that are on their way at once; the gets of each may answer with an entry's worth of bytes.
const PARTS_AT_ONCE: usize = 64;
const PARTS_WITH_GETS_AT_ONCE: usize = 8;

/// The operations of one shard, with their places in the request.
#[derive(Default)]
struct Part {
    positions: Vec<usize>,
    operations: Vec<v1::Operation>,
}

/// Runs the batch. `limit` is how long the caller waits, beside what the request says.
///
/// # Errors
/// A request that no shard has seen: malformed, or on a node that does not serve. What shards answer is in the reply.
pub(crate) async fn batch<R: Runtime>(
    core: &Rc<Core<R>>,
    request: v1::KeyBatch,
    limit: Option<Duration>,
) -> Result<v1::KeyBatchReply, Failure> {
    let shard_count = core.serving.borrow().as_ref().map(|serving| serving.cluster.shard_count());
    let shard_count = shard_count.ok_or_else(|| core.not_serving())?;
    let v1::KeyBatch { operations, request_id, timeout_ms } = request;
    check(&operations)?;
    let has_gets = operations.iter().any(|operation| matches!(operation.operation, Some(Kind::Get(_))));
    let at_once = if has_gets { PARTS_WITH_GETS_AT_ONCE } else { PARTS_AT_ONCE };
    let mut outcomes: Vec<v1::KeyOutcome> = vec![v1::KeyOutcome::default(); operations.len()];
    let answers = cut(operations, shard_count).into_iter().map(|(shard, part)| async move {
        let Part { positions, operations } = part;
        let request = v1::Batch { shard, operations, request_id, timeout_ms, consistency: 0 };
        (shard, positions, core.ask_within(&request, limit).await)
    });
    let mut answers = futures_util::stream::iter(answers).buffer_unordered(at_once);
    let mut bytes = 0;
    while let Some((shard, positions, answer)) = answers.next().await {
        place(&mut outcomes, shard, &positions, answer.map(|answer| bounded(answer, &mut bytes)));
    }
    Ok(v1::KeyBatchReply { outcomes })
}

/// What would have the shards disagree about the request, found before any of them is asked.
fn check(operations: &[v1::Operation]) -> Result<(), Failure> {
    if operations.is_empty() || operations.len() > BATCH_OPERATIONS_MAX {
        let count = operations.len();
        return Err(Failure::invalid(format!(
            "a batch holds 1 to {BATCH_OPERATIONS_MAX} operations, this one {count}"
        )));
    }
    let keys: Option<Vec<&Bytes>> = operations.iter().map(key).collect();
    let Some(mut keys) = keys else {
        return Err(Failure::invalid("an operation of the batch is empty or not known to this node"));
    };
    keys.sort_unstable();
    match keys.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(Failure::invalid("a batch holds no key twice")),
        false => Ok(()),
    }
}

fn key(operation: &v1::Operation) -> Option<&Bytes> {
    match operation.operation.as_ref()? {
        Kind::Put(put) => Some(&put.key),
        Kind::Delete(delete) => Some(&delete.key),
        Kind::Get(get) => Some(&get.key),
    }
}

fn cut(operations: Vec<v1::Operation>, shard_count: u32) -> BTreeMap<u32, Part> {
    let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
    for (position, operation) in operations.into_iter().enumerate() {
        let shard = key(&operation).map_or(0, |key| shard_of(key, shard_count));
        let part = parts.entry(shard).or_default();
        part.positions.push(position);
        part.operations.push(operation);
    }
    parts
}

/// The outcomes of a part; a value that does not fit what is left of the reply is told to come by itself.
fn bounded(answer: v1::BatchReply, bytes: &mut usize) -> Vec<Outcome> {
    let results = answer.results.into_iter();
    let fitting = results.map(|result| {
        *bytes += result.encoded_len();
        match *bytes > ENTRY_BYTES_MAX && !result.value.is_empty() {
            true => {
                *bytes -= result.encoded_len();
                let message = "the values of the batch do not fit one answer: get this key by itself";
                Outcome::Error(Failure::invalid(message).to_wire())
            }
            false => Outcome::Result(result),
        }
    });
    fitting.collect()
}

fn place(
    outcomes: &mut [v1::KeyOutcome],
    shard: u32,
    positions: &[usize],
    answer: Result<Vec<Outcome>, Failure>,
) {
    match answer {
        Ok(results) => {
            for (position, outcome) in positions.iter().zip(results) {
                outcomes[*position] = v1::KeyOutcome { shard, outcome: Some(outcome) };
            }
        }
        Err(failure) => {
            let mut error = failure.to_wire();
            // From the place in the shard's part to the place in the request.
            let place = positions.get(error.operation as usize).copied().unwrap_or(0);
            error.operation = u32::try_from(place).unwrap_or(u32::MAX);
            for position in positions {
                outcomes[*position] = v1::KeyOutcome { shard, outcome: Some(Outcome::Error(error.clone())) };
            }
        }
    }
}
