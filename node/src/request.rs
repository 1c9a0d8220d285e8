//! Requests on one shard: decoded from a frame and checked against the limits once, where they enter the node.
//! From here on the rest of the node trusts their shape.

use std::time::Duration;

use bytes::Bytes;
use krita_proto::frame::FrameKind;
use krita_proto::routing::{
    BATCH_OPERATIONS_MAX, ENTRY_BYTES_MAX, KEY_BYTES_MAX, SCAN_ITEMS_DEFAULT, SCAN_ITEMS_MAX, TIMEOUT_MS_MAX,
    VALUE_BYTES_MAX, shard_of,
};
use krita_proto::v1;
use prost::Message as _;

use crate::failure::Failure;
use crate::meta::META_SHARD;
use crate::meta_requests::MetaChange;
use crate::orders::Order;

/// Room in an entry for the command's own header, beyond keys and values.
const OPERATION_OVERHEAD_BYTES: usize = 64;

/// A checked request for one shard, with the frame it came in (for forwarding). Cheap to send to another core.
#[derive(Clone, Debug)]
pub(crate) struct ShardRequest {
    pub(crate) shard: u32,
    pub(crate) operation: ShardOperation,
    pub(crate) kind: FrameKind,
    pub(crate) body: Bytes,
    /// Another node sent it here already: it is not forwarded again.
    pub(crate) forwarded: bool,
    pub(crate) timeout: Duration,
    /// How fresh the answer of a read must be.
    pub(crate) consistency: v1::Consistency,
}

/// What is asked of the shard.
#[derive(Clone, Debug)]
pub(crate) enum ShardOperation {
    Write(Write),
    Get {
        key: Bytes,
    },
    Scan(Scan),
    /// Compare the replicas.
    Verify,
    /// Change the group, or tell who is in it.
    Order(Order),
    /// Read the cluster's own state.
    MetaRead {
        without_shards: bool,
    },
    /// Change the cluster's own state.
    MetaChange(Box<MetaChange>),
}

/// Changes to keys of one shard, all or none.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) operations: Vec<KeyOperation>,
    pub(crate) request_id: v1::RequestId,
    /// A Batch is answered by a BatchReply, Put and Delete by a WriteReply.
    pub(crate) is_batch: bool,
}

/// One operation of a write.
#[derive(Clone, Debug)]
pub(crate) struct KeyOperation {
    pub(crate) key: Bytes,
    pub(crate) action: Action,
    pub(crate) condition: Option<Condition>,
}

/// What happens to the key.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Put(Bytes),
    Delete,
    Get,
}

/// What must hold for the whole write to be applied.
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    /// The key's version is this; 0 = absent.
    Version(u64),
    /// The key is present with this value. Resolved to a version before the write is proposed.
    Value(Bytes),
}

/// One page of keys in order.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    pub(crate) start: Bytes,
    /// Exclusive; empty = to the last key.
    pub(crate) end: Bytes,
    pub(crate) items_max: usize,
    pub(crate) keys_only: bool,
    /// Names the scan that the page is part of; 0 = none.
    pub(crate) scan_id: u64,
    /// What the scan's earlier pages were of; 0 = not known.
    pub(crate) applied_index: u64,
    /// The shard is held still behind its last page, too.
    pub(crate) keep: bool,
    /// Nothing is read: what is held for the scan is not needed any more.
    pub(crate) release: bool,
}

impl ShardRequest {
    /// Decodes a data request. `None` if the kind is not one.
    pub(crate) fn decode(
        kind: FrameKind,
        body: &Bytes,
        forwarded: bool,
        shard_count: u32,
        timeout_default: Duration,
    ) -> Option<Result<Self, Failure>> {
        let decoded = match kind {
            FrameKind::Put => decode_put(body, shard_count),
            FrameKind::Delete => decode_delete(body, shard_count),
            FrameKind::Get => decode_get(body, shard_count),
            FrameKind::Batch => decode_batch(body, shard_count),
            FrameKind::Scan => decode_scan(body, shard_count),
            FrameKind::Verify => decode_verify(body, shard_count),
            FrameKind::ShardOrder => decode_order(body, shard_count),
            FrameKind::ClusterRead => decode_meta_read(body),
            FrameKind::ClusterChange => decode_meta_change(body),
            _ => return None,
        };
        Some(decoded.map(|Checked { shard, operation, timeout_ms, consistency }| Self {
            shard,
            operation,
            kind,
            body: body.clone(),
            forwarded,
            timeout: match timeout_ms {
                0 => timeout_default,
                milliseconds => Duration::from_millis(u64::from(milliseconds.min(TIMEOUT_MS_MAX))),
            },
            consistency,
        }))
    }

    /// Whether only nodes may ask for it, of themselves.
    pub(crate) fn is_between_nodes(&self) -> bool {
        match &self.operation {
            ShardOperation::MetaChange(change) => change.is_between_nodes(),
            ShardOperation::Write(_)
            | ShardOperation::Get { .. }
            | ShardOperation::Scan(_)
            | ShardOperation::Verify
            | ShardOperation::Order(_)
            | ShardOperation::MetaRead { .. } => false,
        }
    }

    /// The same read with another consistency.
    pub(crate) fn with_consistency(mut self, wanted: v1::Consistency) -> Result<Self, Failure> {
        let (body, consistency) = (self.body.clone(), wanted as i32);
        let body = match self.kind {
            FrameKind::Get => {
                v1::Get { consistency, ..v1::Get::decode(body).map_err(malformed)? }.encode_to_vec()
            }
            FrameKind::Scan => {
                v1::Scan { consistency, ..v1::Scan::decode(body).map_err(malformed)? }.encode_to_vec()
            }
            FrameKind::Batch => {
                v1::Batch { consistency, ..v1::Batch::decode(body).map_err(malformed)? }.encode_to_vec()
            }
            other => return Err(Failure::invalid(format!("{other} has no consistency"))),
        };
        (self.body, self.consistency) = (body.into(), wanted);
        Ok(self)
    }

    /// Whether it only says that a scan has ended.
    pub(crate) fn is_release(&self) -> bool {
        matches!(&self.operation, ShardOperation::Scan(scan) if scan.release)
    }

    /// Whether it reads keys and changes nothing.
    pub(crate) fn is_read(&self) -> bool {
        match &self.operation {
            ShardOperation::Get { .. } | ShardOperation::Scan(_) => true,
            ShardOperation::Write(write) => !write.changes_data(),
            ShardOperation::Verify
            | ShardOperation::Order(_)
            | ShardOperation::MetaRead { .. }
            | ShardOperation::MetaChange(_) => false,
        }
    }

    /// Whether a lost answer leaves the outcome open.
    pub(crate) fn changes_data(&self) -> bool {
        match &self.operation {
            ShardOperation::Write(write) => write.changes_data(),
            ShardOperation::Get { .. } | ShardOperation::Scan(_) | ShardOperation::Verify => false,
            // Whoever repeats one does no harm.
            ShardOperation::Order(_) | ShardOperation::MetaRead { .. } => false,
            ShardOperation::MetaChange(_) => true,
        }
    }
}

impl Write {
    /// False for a batch of nothing but gets.
    pub(crate) fn changes_data(&self) -> bool {
        self.operations.iter().any(|operation| !matches!(operation.action, Action::Get))
    }
}

/// What a request's message says.
struct Checked {
    shard: u32,
    operation: ShardOperation,
    timeout_ms: u32,
    consistency: v1::Consistency,
}

impl Checked {
    fn new(shard: u32, operation: ShardOperation, timeout_ms: u32) -> Self {
        Self { shard, operation, timeout_ms, consistency: v1::Consistency::Linearizable }
    }
}

type Decoded = Result<Checked, Failure>;

/// A consistency of a newer client is none of ours: it must not be taken for another one.
fn consistency(number: i32) -> Result<v1::Consistency, Failure> {
    v1::Consistency::try_from(number)
        .map_err(|_| Failure::invalid(format!("consistency {number} is not known to this node")))
}

fn decode_put(body: &Bytes, shard_count: u32) -> Decoded {
    let put = v1::Put::decode(body.clone()).map_err(malformed)?;
    check_key(&put.key)?;
    check_value(&put.value)?;
    let shard = shard_of(&put.key, shard_count);
    let operation =
        KeyOperation { key: put.key, action: Action::Put(put.value), condition: condition(put.condition)? };
    Ok(Checked::new(shard, single(operation, put.request_id), put.timeout_ms))
}

fn decode_delete(body: &Bytes, shard_count: u32) -> Decoded {
    let delete = v1::Delete::decode(body.clone()).map_err(malformed)?;
    check_key(&delete.key)?;
    let shard = shard_of(&delete.key, shard_count);
    let operation =
        KeyOperation { key: delete.key, action: Action::Delete, condition: condition(delete.condition)? };
    Ok(Checked::new(shard, single(operation, delete.request_id), delete.timeout_ms))
}

fn decode_get(body: &Bytes, shard_count: u32) -> Decoded {
    let get = v1::Get::decode(body.clone()).map_err(malformed)?;
    check_key(&get.key)?;
    let (shard, consistency) = (shard_of(&get.key, shard_count), consistency(get.consistency)?);
    let operation = ShardOperation::Get { key: get.key };
    Ok(Checked { consistency, ..Checked::new(shard, operation, get.timeout_ms) })
}

fn decode_batch(body: &Bytes, shard_count: u32) -> Decoded {
    let batch = v1::Batch::decode(body.clone()).map_err(malformed)?;
    check_shard(batch.shard, shard_count)?;
    if batch.operations.is_empty() || batch.operations.len() > BATCH_OPERATIONS_MAX {
        return Err(Failure::invalid(format!(
            "a batch holds 1 to {BATCH_OPERATIONS_MAX} operations, this one {}",
            batch.operations.len()
        )));
    }
    let mut entry_bytes = 0;
    let mut operations = Vec::with_capacity(batch.operations.len());
    for wire in batch.operations {
        let operation = batch_operation(wire)?;
        if shard_of(&operation.key, shard_count) != batch.shard {
            return Err(Failure::invalid(format!("a key of the batch is not in shard {}", batch.shard)));
        }
        entry_bytes += operation.key.len() + OPERATION_OVERHEAD_BYTES;
        if let Action::Put(value) = &operation.action {
            entry_bytes += value.len();
        }
        operations.push(operation);
    }
    if entry_bytes > ENTRY_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "a batch holds at most {ENTRY_BYTES_MAX} bytes, this one {entry_bytes}"
        )));
    }
    check_distinct(&operations)?;
    let write = Write { operations, request_id: batch.request_id.unwrap_or_default(), is_batch: true };
    let consistency = consistency(batch.consistency)?;
    if consistency != v1::Consistency::Linearizable && write.changes_data() {
        return Err(Failure::invalid("a batch that changes data is linearizable"));
    }
    let operation = ShardOperation::Write(write);
    Ok(Checked { consistency, ..Checked::new(batch.shard, operation, batch.timeout_ms) })
}

fn batch_operation(wire: v1::Operation) -> Result<KeyOperation, Failure> {
    use v1::operation::Operation as Kind;
    let operation = match wire.operation {
        Some(Kind::Put(put)) => {
            check_value(&put.value)?;
            KeyOperation {
                key: put.key,
                action: Action::Put(put.value),
                condition: condition(put.condition)?,
            }
        }
        Some(Kind::Delete(delete)) => {
            KeyOperation { key: delete.key, action: Action::Delete, condition: condition(delete.condition)? }
        }
        Some(Kind::Get(get)) => KeyOperation { key: get.key, action: Action::Get, condition: None },
        None => return Err(Failure::invalid("an operation of the batch is empty or not known to this node")),
    };
    check_key(&operation.key)?;
    Ok(operation)
}

fn decode_scan(body: &Bytes, shard_count: u32) -> Decoded {
    let scan = v1::Scan::decode(body.clone()).map_err(malformed)?;
    check_shard(scan.shard, shard_count)?;
    if scan.start.len() > KEY_BYTES_MAX + 1 || scan.end.len() > KEY_BYTES_MAX + 1 {
        return Err(Failure::invalid("a bound of the scan is longer than a key can be"));
    }
    let items_max = match scan.items_max as usize {
        0 => SCAN_ITEMS_DEFAULT,
        items => items.min(SCAN_ITEMS_MAX),
    };
    let consistency = consistency(scan.consistency)?;
    let v1::Scan { shard, start, end, keys_only, timeout_ms, scan_id, applied_index, keep, release, .. } =
        scan;
    let page = Scan { start, end, items_max, keys_only, scan_id, applied_index, keep, release };
    Ok(Checked { consistency, ..Checked::new(shard, ShardOperation::Scan(page), timeout_ms) })
}

fn decode_verify(body: &Bytes, shard_count: u32) -> Decoded {
    let verify = v1::Verify::decode(body.clone()).map_err(malformed)?;
    check_shard(verify.shard, shard_count)?;
    Ok(Checked::new(verify.shard, ShardOperation::Verify, verify.timeout_ms))
}

fn decode_order(body: &Bytes, shard_count: u32) -> Decoded {
    let order = v1::ShardOrder::decode(body.clone()).map_err(malformed)?;
    // The meta group's members change like any other's.
    if order.shard != META_SHARD.0 {
        check_shard(order.shard, shard_count)?;
    }
    Ok(Checked::new(order.shard, ShardOperation::Order(Order::from_wire(&order)?), order.timeout_ms))
}

fn decode_meta_read(body: &Bytes) -> Decoded {
    let read = v1::ClusterRead::decode(body.clone()).map_err(malformed)?;
    let operation = ShardOperation::MetaRead { without_shards: read.without_shards };
    Ok(Checked::new(META_SHARD.0, operation, read.timeout_ms))
}

fn decode_meta_change(body: &Bytes) -> Decoded {
    let change = v1::ClusterChange::decode(body.clone()).map_err(malformed)?;
    let timeout_ms = change.timeout_ms;
    let operation = ShardOperation::MetaChange(Box::new(MetaChange::from_wire(change)?));
    Ok(Checked::new(META_SHARD.0, operation, timeout_ms))
}

fn single(operation: KeyOperation, request_id: Option<v1::RequestId>) -> ShardOperation {
    let request_id = request_id.unwrap_or_default();
    ShardOperation::Write(Write { operations: vec![operation], request_id, is_batch: false })
}

fn condition(wire: Option<v1::Condition>) -> Result<Option<Condition>, Failure> {
    use v1::condition::Condition as Kind;
    match wire {
        None => Ok(None),
        Some(v1::Condition { condition: Some(Kind::IfVersion(version)) }) => {
            Ok(Some(Condition::Version(version)))
        }
        Some(v1::Condition { condition: Some(Kind::IfValue(value)) }) => {
            check_value(&value)?;
            Ok(Some(Condition::Value(value)))
        }
        // A condition of a newer client must never be taken for none.
        Some(v1::Condition { condition: None }) => {
            Err(Failure::invalid("the condition is empty or not known to this node"))
        }
    }
}

fn check_key(key: &[u8]) -> Result<(), Failure> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "a key has 1 to {KEY_BYTES_MAX} bytes, this one {}",
            key.len()
        )));
    }
    Ok(())
}

fn check_value(value: &[u8]) -> Result<(), Failure> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "a value has at most {VALUE_BYTES_MAX} bytes, this one {}",
            value.len()
        )));
    }
    Ok(())
}

fn check_shard(shard: u32, shard_count: u32) -> Result<(), Failure> {
    if shard == 0 || shard > shard_count {
        return Err(Failure::invalid(format!("shards are numbered 1 to {shard_count}; there is no {shard}")));
    }
    Ok(())
}

fn check_distinct(operations: &[KeyOperation]) -> Result<(), Failure> {
    let mut keys: Vec<&[u8]> = operations.iter().map(|operation| &operation.key[..]).collect();
    keys.sort_unstable();
    match keys.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(Failure::invalid("a batch holds no key twice")),
        false => Ok(()),
    }
}

fn malformed(error: prost::DecodeError) -> Failure {
    Failure::invalid(format!("the request does not decode: {error}"))
}
