//! Which operations travel together: one group per shard, in the caller's order.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use krita_proto::routing::{BATCH_OPERATIONS_MAX, ENTRY_BYTES_MAX, shard_of};
use krita_proto::v1;

use crate::core::message::{check_key, check_value, condition_to_wire};
use crate::error::{Error, Result};
use crate::types::{Condition, Entry, Operation, OperationOutcome, Written};

/// Bytes that one operation takes beside its key and value, at most.
const OPERATION_OVERHEAD_BYTES: usize = 64;

/// Room in an entry for what is not an operation.
const ENTRY_OVERHEAD_BYTES: usize = 4 * 1024;

/// How large one group may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupLimit {
    /// Most operations.
    pub operations: usize,
    /// Most bytes.
    pub bytes: usize,
}

impl GroupLimit {
    /// What a shard takes as one atomic batch.
    pub const ATOMIC: Self =
        Self { operations: BATCH_OPERATIONS_MAX, bytes: ENTRY_BYTES_MAX - ENTRY_OVERHEAD_BYTES };
    /// A good size where atomicity is not asked for: large enough to cost little, small enough to delay nobody.
    pub const PIECE: Self = Self { operations: 512, bytes: 512 * 1024 };
}

/// Operations on one shard that travel as one batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// Which shard.
    pub shard: u32,
    /// Where each operation stood in the caller's list.
    pub positions: Vec<usize>,
    /// The operations, as many as `positions`.
    pub operations: Vec<v1::Operation>,
    /// Any of them changes something.
    pub has_writes: bool,
    /// Any of them depends on a value, which the leader decides before the entry is applied.
    pub has_value_conditions: bool,
    bytes: usize,
}

/// The operations in groups, and those that break a limit: `(position, why)`.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to send.
    pub groups: Vec<Group>,
    /// What not to send.
    pub refused: Vec<(usize, Error)>,
}

/// Groups operations that are atomic per shard: a shard whose operations do not fit one batch, or of which one
/// breaks a limit, is refused whole.
pub fn plan_atomic(operations: &[Operation], shard_count: u32) -> Plan {
    let mut by_shard: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (position, operation) in operations.iter().enumerate() {
        by_shard.entry(shard_of(operation.key(), shard_count)).or_default().push(position);
    }
    let mut plan = Plan::default();
    for (shard, positions) in by_shard {
        match atomic_group(shard, &positions, operations) {
            Ok(group) => plan.groups.push(group),
            Err(error) => {
                plan.refused.extend(positions.into_iter().map(|position| (position, error.clone())))
            }
        }
    }
    plan
}

fn atomic_group(shard: u32, positions: &[usize], operations: &[Operation]) -> Result<Group> {
    let mut group = Group::new(shard);
    let mut keys = BTreeSet::new();
    for &position in positions {
        let operation = &operations[position];
        if !keys.insert(operation.key()) {
            return Err(Error::invalid(format!(
                "operation {position} names a key that the batch has already"
            )));
        }
        let wire = to_wire(operation).map_err(|error| {
            Error::invalid(format!("operation {position} of the batch: {}", error.detail().message))
        })?;
        group.push(position, operation, wire);
    }
    if !group.fits(GroupLimit::ATOMIC) {
        return Err(Error::invalid(format!(
            "the batch has {} operations of {} bytes on shard {shard}; an atomic batch holds {} of {} bytes",
            group.operations.len(),
            group.bytes,
            GroupLimit::ATOMIC.operations,
            GroupLimit::ATOMIC.bytes,
        )));
    }
    Ok(group)
}

/// Groups operations into pieces of good size; each stands or falls alone. A key may come once.
pub fn plan_pieces(operations: &[Operation], shard_count: u32) -> Plan {
    let mut plan = Plan::default();
    let mut open: BTreeMap<u32, Group> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    for (position, operation) in operations.iter().enumerate() {
        if !keys.insert(operation.key()) {
            plan.refused.push((position, Error::invalid("the key came before in the same call")));
            continue;
        }
        let wire = match to_wire(operation) {
            Ok(wire) => wire,
            Err(error) => {
                plan.refused.push((position, error));
                continue;
            }
        };
        let shard = shard_of(operation.key(), shard_count);
        let group = open.entry(shard).or_insert_with(|| Group::new(shard));
        let is_full = group.operations.len() >= GroupLimit::PIECE.operations
            || group.bytes + operation_bytes(operation) > GroupLimit::PIECE.bytes;
        if is_full && !group.operations.is_empty() {
            plan.groups.push(std::mem::replace(group, Group::new(shard)));
        }
        group.push(position, operation, wire);
    }
    plan.groups.extend(open.into_values());
    plan
}

impl Group {
    fn new(shard: u32) -> Self {
        Self {
            shard,
            positions: Vec::new(),
            operations: Vec::new(),
            has_writes: false,
            has_value_conditions: false,
            bytes: 0,
        }
    }

    fn push(&mut self, position: usize, operation: &Operation, wire: v1::Operation) {
        self.bytes += operation_bytes(operation);
        self.has_writes |= operation.is_write();
        self.has_value_conditions |= has_value_condition(operation);
        self.positions.push(position);
        self.operations.push(wire);
    }

    fn fits(&self, limit: GroupLimit) -> bool {
        self.operations.len() <= limit.operations && self.bytes <= limit.bytes
    }
}

fn condition_of(operation: &Operation) -> &Condition {
    match operation {
        Operation::Put { condition, .. } | Operation::Delete { condition, .. } => condition,
        Operation::Get { .. } => &Condition::None,
    }
}

fn has_value_condition(operation: &Operation) -> bool {
    match condition_of(operation) {
        Condition::IfValue(_) => true,
        Condition::None | Condition::IfVersion(_) => false,
    }
}

fn operation_bytes(operation: &Operation) -> usize {
    let value = match operation {
        Operation::Put { value, .. } => value.len(),
        Operation::Delete { .. } | Operation::Get { .. } => 0,
    };
    let condition = match condition_of(operation) {
        Condition::IfValue(value) => value.len(),
        Condition::None | Condition::IfVersion(_) => 0,
    };
    operation.key().len() + value + condition + OPERATION_OVERHEAD_BYTES
}

fn to_wire(operation: &Operation) -> Result<v1::Operation> {
    use v1::operation::Operation as Wire;
    check_key(operation.key())?;
    let wire = match operation {
        Operation::Put { key, value, condition } => {
            check_value(value)?;
            let condition = condition_to_wire(condition)?;
            Wire::Put(v1::OperationPut { key: key.clone(), value: value.clone(), condition })
        }
        Operation::Delete { key, condition } => {
            Wire::Delete(v1::OperationDelete { key: key.clone(), condition: condition_to_wire(condition)? })
        }
        Operation::Get { key } => Wire::Get(v1::OperationGet { key: key.clone() }),
    };
    Ok(v1::Operation { operation: Some(wire) })
}

/// What the server's result means for one operation.
pub fn outcome(operation: &v1::Operation, result: v1::OperationResult) -> OperationOutcome {
    use v1::operation::Operation as Wire;
    match &operation.operation {
        Some(Wire::Put(_)) => OperationOutcome::Put(Written { version: result.version }),
        Some(Wire::Delete(_)) => OperationOutcome::Deleted { existed: result.existed },
        Some(Wire::Get(_)) | None => OperationOutcome::Got(
            result.existed.then(|| Entry { value: detached(result.value), version: result.version }),
        ),
    }
}

/// Values up to this size are copied out of the read buffer before a caller may keep them for long.
const COPIED_BYTES_MAX: usize = 32 * 1024;

/// A value that does not keep a whole read buffer alive.
pub fn detached(value: Bytes) -> Bytes {
    if value.len() <= COPIED_BYTES_MAX { Bytes::copy_from_slice(&value) } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn puts(keys: &[u32], value_bytes: usize) -> Vec<Operation> {
        keys.iter().map(|key| Operation::put(key.to_string(), vec![0u8; value_bytes])).collect()
    }

    /// Every position is in exactly one place, and groups are of their shard, in order, with as many operations.
    fn check(plan: &Plan, operations: &[Operation], shard_count: u32) {
        let mut seen: Vec<_> = plan.refused.iter().map(|(position, _)| *position).collect();
        for group in &plan.groups {
            assert_eq!(group.positions.len(), group.operations.len());
            assert!(!group.positions.is_empty() && group.positions.is_sorted());
            for position in &group.positions {
                assert_eq!(shard_of(operations[*position].key(), shard_count), group.shard);
            }
            seen.extend(&group.positions);
        }
        seen.sort();
        assert_eq!(seen, (0..operations.len()).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn every_operation_is_planned_once(keys in prop::collection::vec(0u32..3000, 0..2000), shard_count in 1u32..9) {
            let operations = puts(&keys, 3);
            let pieces = plan_pieces(&operations, shard_count);
            check(&pieces, &operations, shard_count);
            prop_assert!(pieces.groups.iter().all(|group| group.fits(GroupLimit::PIECE)));
            check(&plan_atomic(&operations, shard_count), &operations, shard_count);
        }
    }

    #[test]
    fn an_atomic_group_is_refused_whole() {
        let too_large = puts(&(0..20).collect::<Vec<_>>(), 1024 * 1024);
        let plan = plan_atomic(&too_large, 1);
        assert_eq!((plan.groups.len(), plan.refused.len()), (0, 20));
        let twice = puts(&[1, 2, 1], 1);
        assert_eq!(plan_atomic(&twice, 1).refused.len(), 3);
        let pieces = plan_pieces(&twice, 1);
        assert_eq!((pieces.refused[0].0, pieces.groups.len()), (2, 1));
        assert!(plan_pieces(&too_large, 1).groups.len() >= 20, "each is a piece of its own");
    }
}
