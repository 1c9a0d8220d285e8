//! Properties of the command's codec.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn any_condition() -> impl Strategy<Value = Condition> {
    prop_oneof![Just(Condition::None), any::<u64>().prop_map(Condition::IfVersion)]
}

fn any_command() -> impl Strategy<Value = WriteCommand> {
    let change = (any_condition(), prop::option::of(vec(any::<u8>(), 0..300)));
    let operations = btree_map(vec(any::<u8>(), 1..40), change, 1..8);
    (any::<u64>(), any::<[u64; 4]>(), operations).prop_map(|(log_time_ms, request, operations)| {
        let [session, sequence, lowest_unacknowledged, register_until_ms] = request;
        let request = RequestId { session, sequence, lowest_unacknowledged, register_until_ms };
        let operations = operations.into_iter().map(|(key, (condition, value))| match value {
            Some(value) => Operation::put(key.into(), value.into(), condition),
            None => Operation::delete(key.into(), condition),
        });
        WriteCommand::new(log_time_ms, request, operations.collect()).expect("within the limits")
    })
}

fn key(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn one(operation: Operation) -> Result<WriteCommand, CommandError> {
    WriteCommand::new(0, RequestId::default(), vec![operation])
}

#[test]
fn the_bytes_are_those_of_the_table() {
    let request = RequestId { session: 2, sequence: 3, lowest_unacknowledged: 4, register_until_ms: 5 };
    let operations = vec![
        Operation::put(key("k"), key("value"), Condition::IfVersion(6)),
        Operation::delete(key("gone"), Condition::None),
    ];
    let bytes = WriteCommand::new(1, request, operations).expect("valid").encode();
    let mut expected = vec![1u8, 1];
    for number in [1u64, 2, 3, 4, 5] {
        expected.extend_from_slice(&number.to_le_bytes());
    }
    expected.extend_from_slice(&[2, 0]);
    expected.extend_from_slice(&[1, 1, 6, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    expected.extend_from_slice(b"k");
    expected.extend_from_slice(&[5, 0, 0, 0]);
    expected.extend_from_slice(&crc32fast::hash(b"\x01\0\0\0kvalue").to_le_bytes());
    expected.extend_from_slice(b"value");
    expected.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
    expected.extend_from_slice(b"gone");
    assert_eq!(bytes, expected);
}

#[test]
fn what_comes_from_a_newer_version_is_told_apart_from_damage() {
    let bytes = one(Operation::delete(key("k"), Condition::None)).expect("valid").encode();
    let with = |position: usize, byte: u8| {
        let mut bytes = bytes.to_vec();
        bytes[position] = byte;
        WriteCommand::decode(&bytes.into()).expect_err("altered")
    };
    assert_eq!(with(0, 2), CommandError::UnknownFormat(2));
    assert_eq!(with(1, 2), CommandError::UnknownKind(2));
    assert_eq!(with(44, 3), CommandError::UnknownOperation { operation: 0, kind: 3 });
    assert_eq!(with(45, 2), CommandError::UnknownCondition { operation: 0, condition: 2 });
    assert_eq!(with(46, 1), CommandError::StrayVersion(0));
    assert_eq!(with(42, 0), CommandError::TrailingBytes(13));
    for newer in [with(0, 2), with(1, 2), with(44, 3), with(45, 2)] {
        assert!(newer.from_newer_version());
    }
    assert!(!with(46, 1).from_newer_version());
}

#[test]
fn limits_hold_to_the_byte() {
    let key_of = |length: usize| Bytes::from(vec![b'k'; length]);
    assert!(one(Operation::delete(key_of(KEY_BYTES_MAX), Condition::None)).is_ok());
    for length in [0, KEY_BYTES_MAX + 1] {
        let refused = one(Operation::delete(key_of(length), Condition::None));
        assert_eq!(refused, Err(CommandError::KeyLength { operation: 0, length }));
    }
    let largest = Bytes::from(vec![0; VALUE_BYTES_MAX]);
    let whole = one(Operation::put(key_of(KEY_BYTES_MAX), largest, Condition::IfVersion(1))).expect("fits");
    assert!(whole.encode().len() <= ENTRY_BYTES_MAX);
    let length = VALUE_BYTES_MAX + 1;
    let refused = one(Operation::put(key("k"), Bytes::from(vec![0; length]), Condition::None));
    assert_eq!(refused, Err(CommandError::ValueLength { operation: 0, length }));
    let half = Bytes::from(vec![0; ENTRY_BYTES_MAX / 2]);
    let halves = ["a", "b"].map(|name| Operation::put(key(name), half.clone(), Condition::None));
    let refused = WriteCommand::new(0, RequestId::default(), halves.to_vec());
    assert!(matches!(refused, Err(CommandError::EntryLength(_))));
    assert_eq!(WriteCommand::new(0, RequestId::default(), Vec::new()), Err(CommandError::OperationCount(0)));
}

#[test]
fn a_key_may_occur_only_once() {
    let operations = ["b", "a", "b"].map(|name| Operation::delete(key(name), Condition::None)).to_vec();
    let refused = WriteCommand::new(0, RequestId::default(), operations);
    assert_eq!(refused, Err(CommandError::KeyTwice { operation: 2 }));
    let bytes = WriteCommand {
        log_time_ms: 0,
        request: RequestId::default(),
        operations: ["a", "a"].map(|name| Operation::delete(key(name), Condition::None)).to_vec(),
    }
    .encode();
    assert_eq!(WriteCommand::decode(&bytes), Err(CommandError::KeyTwice { operation: 1 }));
}

fn regions_lie_within(payload: &[u8]) -> bool {
    regions_of(payload).iter().all(|region| {
        region.key_offset as usize + region.key_length as usize <= payload.len()
            && region.length >= 4
            && region.offset as usize + region.length as usize <= payload.len()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn commands_survive_their_encoding_and_say_where_values_lie(command in any_command()) {
        let payload = command.encode();
        let decoded = WriteCommand::decode(&payload).expect("decodes");
        prop_assert_eq!(&decoded, &command);
        prop_assert_eq!(decoded.verify_values(), Ok(()));
        let mut regions = regions_of(&payload).into_iter();
        for operation in decoded.operations() {
            if let Action::Put(put) = &operation.action {
                let start = put.payload_offset() as usize;
                let region = &payload[start..start + put.payload_length() as usize];
                let checksum = value_checksum(&operation.key, &put.value).to_le_bytes();
                prop_assert_eq!(&region[..4], checksum.as_slice());
                prop_assert_eq!(&region[4..], put.value.as_ref());
                prop_assert_eq!(put.value.as_ptr(), region[4..].as_ptr(), "a slice, not a copy");
                let found = regions.next().expect("every put has its region");
                let key = &payload[found.key_offset as usize..][..found.key_length as usize];
                prop_assert_eq!(key, &operation.key[..]);
                prop_assert_eq!((found.offset, found.length), (put.payload_offset(), put.payload_length()));
            }
        }
        prop_assert_eq!(regions.next(), None);
    }

    #[test]
    fn a_cut_command_is_an_error(command in any_command(), at in any::<prop::sample::Index>()) {
        let payload = command.encode();
        prop_assert!(WriteCommand::decode(&payload.slice(..at.index(payload.len()))).is_err());
        let mut longer = payload.to_vec();
        longer.push(0);
        prop_assert_eq!(WriteCommand::decode(&longer.into()), Err(CommandError::TrailingBytes(1)));
    }

    /// One byte altered: an error, a value that fails its checksum, or another command that encodes to these bytes.
    #[test]
    fn an_altered_byte_never_panics(command in any_command(), at in any::<prop::sample::Index>(), change in 1..=255u8) {
        let mut bytes = command.encode().to_vec();
        let position = at.index(bytes.len());
        bytes[position] ^= change;
        let bytes = Bytes::from(bytes);
        prop_assert!(regions_lie_within(&bytes));
        if let Ok(decoded) = WriteCommand::decode(&bytes) {
            prop_assert_eq!(decoded.encode(), &bytes);
            let in_a_value = command.operations().iter().any(|operation| match &operation.action {
                Action::Put(put) => {
                    let start = put.payload_offset() as usize;
                    (start..start + put.payload_length() as usize).contains(&position)
                }
                Action::Delete => false,
            });
            if in_a_value {
                prop_assert!(decoded.verify_values().is_err());
            }
        }
    }

    #[test]
    fn garbage_never_panics(bytes in vec(any::<u8>(), 0..300)) {
        let _ = WriteCommand::decode(&Bytes::from(bytes.clone()));
        let mut versioned = vec![FORMAT_VERSION, KIND_WRITE];
        versioned.extend_from_slice(&bytes);
        prop_assert!(regions_of(&bytes).is_empty() || bytes[..2] == [FORMAT_VERSION, KIND_WRITE]);
        prop_assert!(regions_lie_within(&versioned));
        let _ = WriteCommand::decode(&versioned.into());
    }
}
