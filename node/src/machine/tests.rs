//! Properties of the state machine: exactly-once above all.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::command::RequestId;
use crate::sessions::{
    REGISTER_WINDOW_MAX_MS, RESULT_BYTES_MAX, SEQUENCE_WINDOW, SESSION_TTL_MS, SESSIONS_MAX,
};

/// A storage index in miniature.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Index(BTreeMap<Bytes, (u64, Bytes)>);

impl KeyVersions for Index {
    fn version(&self, key: &[u8]) -> Option<u64> {
        self.0.get(key).map(|(version, _)| *version)
    }
}

/// A machine over its index, applying entry after entry.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Shard {
    machine: Machine,
    index: Index,
}

impl Shard {
    fn apply(&mut self, command: &WriteCommand) -> Applied {
        let at = self.machine.applied_index() + 1;
        let applied = self.machine.apply(at, command, &self.index);
        for change in &applied.changes {
            match change {
                Change::Put { key, value, .. } => self.index.0.insert(key.clone(), (at, value.clone())),
                Change::Delete { key } => self.index.0.remove(key),
            };
        }
        applied
    }

    fn restart(&mut self) {
        let bytes = self.machine.encode();
        assert!(bytes.len() <= MACHINE_BYTES_MAX);
        let decoded = Machine::decode(&bytes).expect("what was encoded decodes");
        assert_eq!(decoded, self.machine);
        assert_eq!(decoded.encode(), bytes);
        self.machine = decoded;
    }
}

const NOW: u64 = 1_800_000_000_000;

fn request(session: u64, sequence: u64) -> RequestId {
    RequestId { session, sequence, lowest_unacknowledged: 1, register_until_ms: NOW + 20_000 }
}

fn put(at_ms: u64, request: RequestId, key: &str) -> WriteCommand {
    let operation =
        Operation::put(Bytes::copy_from_slice(key.as_bytes()), Bytes::from_static(b"v"), Condition::None);
    WriteCommand::new(at_ms, request, vec![operation]).expect("valid")
}

fn applied(version: u64, existed: bool) -> Outcome {
    Outcome::Applied(vec![OperationOutcome { version, existed }])
}

#[test]
fn a_retry_returns_the_first_answer_and_changes_nothing() {
    let mut shard = Shard::default();
    assert_eq!(shard.apply(&put(NOW, request(7, 1), "a")).outcome, applied(1, false));
    assert_eq!(shard.apply(&put(NOW, RequestId::default(), "a")).outcome, applied(2, false));
    shard.restart();
    let retry = shard.apply(&put(NOW + 5, request(7, 1), "a"));
    assert_eq!(retry, Applied { outcome: applied(1, false), changes: Vec::new() });
    assert_eq!(shard.index.version(b"a"), Some(2));
}

/// An index that must not be asked for more than it is told.
struct Only<'a>(&'a [u8], Option<u64>);

impl KeyVersions for Only<'_> {
    fn version(&self, key: &[u8]) -> Option<u64> {
        assert_eq!(key, self.0, "a blind put asks nothing");
        self.1
    }
}

#[test]
fn only_conditions_and_deletes_look_at_what_was_there() {
    let key = Bytes::from_static;
    let operations = vec![
        Operation::put(key(b"blind"), key(b"1"), Condition::None),
        Operation::put(key(b"asked"), key(b"2"), Condition::IfVersion(3)),
    ];
    let command = WriteCommand::new(NOW, RequestId::default(), operations).expect("valid");
    let mut machine = Machine { applied_index: 8, ..Machine::new() };
    let applied = machine.apply(9, &command, &Only(b"asked", Some(3)));
    let put = OperationOutcome { version: 9, existed: false };
    assert_eq!(applied.outcome, Outcome::Applied(vec![put, put]), "a put never says what was there");
    let delete =
        WriteCommand::new(NOW, RequestId::default(), vec![Operation::delete(key(b"asked"), Condition::None)]);
    let applied = machine.apply(10, &delete.expect("valid"), &Only(b"asked", Some(9)));
    assert_eq!(applied.outcome, Outcome::Applied(vec![OperationOutcome { version: 10, existed: true }]));
}

#[test]
fn conditions_of_a_batch_hold_together_or_nothing_is_applied() {
    let mut shard = Shard::default();
    shard.apply(&put(NOW, RequestId::default(), "a"));
    let key = Bytes::from_static;
    let batch = |second| {
        vec![
            Operation::put(key(b"b"), key(b"1"), Condition::IfVersion(0)),
            Operation::delete(key(b"a"), Condition::IfVersion(second)),
            Operation::delete(key(b"absent"), Condition::None),
        ]
    };
    let failing = WriteCommand::new(NOW, request(7, 1), batch(9)).expect("valid");
    let failed = Outcome::ConditionFailed { operation: 1, current_version: 1 };
    assert_eq!(shard.apply(&failing), Applied { outcome: failed.clone(), changes: Vec::new() });
    assert_eq!(shard.index.version(b"b"), None);
    // What failed stays failed for this request, whatever holds by now; a new request is judged anew.
    let holding = WriteCommand::new(NOW, request(7, 1), batch(1)).expect("valid");
    assert_eq!(shard.apply(&holding).outcome, failed);
    let holding = WriteCommand::new(NOW, request(7, 2), batch(1)).expect("valid");
    let outcome = |version, existed| OperationOutcome { version, existed };
    let applied = shard.apply(&holding);
    assert_eq!(
        applied.outcome,
        Outcome::Applied(vec![outcome(4, false), outcome(4, true), outcome(0, false)])
    );
    assert_eq!(applied.changes.len(), 2, "deleting what is absent changes nothing");
    assert_eq!(shard.apply(&holding).outcome, applied.outcome);
}

#[test]
fn an_unknown_session_is_registered_only_within_its_window() {
    let until = |register_until_ms| RequestId {
        session: 7,
        sequence: 1,
        lowest_unacknowledged: 1,
        register_until_ms,
    };
    for (register_until_ms, known) in [
        (0, false),
        (NOW - 1, false),
        (NOW, true),
        (NOW + REGISTER_WINDOW_MAX_MS, true),
        (NOW + REGISTER_WINDOW_MAX_MS + 1, false),
        (u64::MAX, false),
    ] {
        let mut shard = Shard::default();
        let outcome = shard.apply(&put(NOW, until(register_until_ms), "a")).outcome;
        let expected = if known { applied(1, false) } else { Outcome::SessionUnknown };
        assert_eq!(outcome, expected, "{register_until_ms}");
        assert_eq!(shard.machine.sessions().len(), usize::from(known));
    }
}

#[test]
fn below_the_watermark_and_beyond_the_window_nothing_is_applied() {
    let mut shard = Shard::default();
    for sequence in 1..=3 {
        shard.apply(&put(NOW, request(7, sequence), "a"));
    }
    let acknowledging = RequestId { lowest_unacknowledged: 3, ..request(7, 4) };
    assert_eq!(shard.apply(&put(NOW, acknowledging, "a")).outcome, applied(4, false));
    assert_eq!(shard.apply(&put(NOW, request(7, 3), "a")).outcome, applied(3, false));
    assert_eq!(shard.apply(&put(NOW, request(7, 2), "a")).outcome, Outcome::SessionUnknown);
    assert_eq!(shard.apply(&put(NOW, request(7, 0), "a")).outcome, Outcome::SessionUnknown);
    let far = request(7, 3 + SEQUENCE_WINDOW);
    assert_eq!(shard.apply(&put(NOW, far, "a")).outcome, Outcome::SequenceOutOfWindow);
    let last = request(7, 2 + SEQUENCE_WINDOW);
    assert!(matches!(shard.apply(&put(NOW, last, "a")).outcome, Outcome::Applied(_)));
    let dead = RequestId { lowest_unacknowledged: u64::MAX, ..request(7, u64::MAX) };
    assert!(matches!(shard.apply(&put(NOW, dead, "a")).outcome, Outcome::Applied(_)));
    shard.restart();
}

#[test]
fn an_idle_session_is_forgotten_and_never_registered_again() {
    let mut shard = Shard::default();
    shard.apply(&put(NOW, request(7, 1), "a"));
    shard.apply(&put(NOW + SESSION_TTL_MS, RequestId::default(), "b"));
    assert_eq!(shard.apply(&put(NOW + SESSION_TTL_MS, request(7, 1), "a")).outcome, applied(1, false));
    let later = NOW + 2 * SESSION_TTL_MS + 1;
    assert_eq!(shard.apply(&put(later, request(7, 1), "a")).outcome, Outcome::SessionUnknown);
    assert!(shard.machine.sessions().is_empty());
    // A leader whose clock is behind cannot turn log time back.
    assert_eq!(shard.apply(&put(NOW, request(7, 1), "a")).outcome, Outcome::SessionUnknown);
    assert_eq!(shard.machine.log_time_ms(), later);
}

#[test]
fn a_full_table_refuses_newcomers_until_someone_expires() {
    let mut shard = Shard::default();
    for session in 1..=SESSIONS_MAX as u64 {
        shard.apply(&put(NOW, request(session, 1), "a"));
    }
    let newcomer = RequestId { session: u64::MAX, ..request(1, 1) };
    assert_eq!(shard.apply(&put(NOW, newcomer, "a")).outcome, Outcome::SessionsFull);
    assert!(matches!(shard.apply(&put(NOW, request(1, 2), "a")).outcome, Outcome::Applied(_)));
    assert_eq!(shard.machine.sessions().len(), SESSIONS_MAX);
    shard.restart();
    let later = NOW + SESSION_TTL_MS + 1;
    let newcomer = RequestId { register_until_ms: later + 1, ..newcomer };
    assert!(matches!(shard.apply(&put(later, newcomer, "a")).outcome, Outcome::Applied(_)));
    assert!(shard.machine.sessions().len() < SESSIONS_MAX);
}

#[test]
fn remembered_outcomes_take_bounded_room() {
    let mut shard = Shard::default();
    let many: Vec<Operation> = (0..10_000u32)
        .map(|number| Operation::delete(Bytes::copy_from_slice(&number.to_le_bytes()), Condition::None))
        .collect();
    let batch = |sequence| WriteCommand::new(NOW, request(7, sequence), many.clone()).expect("valid");
    let fits = (RESULT_BYTES_MAX / 10_019) as u64;
    for sequence in 1..=fits {
        assert!(matches!(shard.apply(&batch(sequence)).outcome, Outcome::Applied(_)));
    }
    assert_eq!(shard.apply(&batch(fits + 1)).outcome, Outcome::SessionsFull);
    shard.restart();
    let acknowledging = RequestId { lowest_unacknowledged: fits, ..request(7, fits + 1) };
    let outcome = shard.apply(&put(NOW, acknowledging, "a")).outcome;
    assert!(matches!(outcome, Outcome::Applied(_)), "acknowledging makes room");
    shard.restart();
}

/// One copy of a request as it arrives in the log.
#[derive(Clone, Debug)]
struct Copy {
    session: u64,
    sequence: u64,
    lowest_unacknowledged: u64,
    passes_ms: u64,
    conditional: bool,
    restart_before: bool,
}

fn any_copy() -> impl Strategy<Value = Copy> {
    let about_the_ttl = SESSION_TTL_MS - 20_000..SESSION_TTL_MS + 20_000;
    let passes = prop_oneof![8 => 0..3_000u64, 1 => 0..40_000u64, 1 => about_the_ttl];
    (0..4u64, 0..7u64, 0..5u64, passes, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        |(session, sequence, lowest_unacknowledged, passes_ms, conditional, restart_before)| Copy {
            session,
            sequence,
            lowest_unacknowledged,
            passes_ms,
            conditional,
            restart_before,
        },
    )
}

/// The command of a request is the same in each of its copies but for log time and acknowledgements. A
/// session's limit for registration never changes.
fn command_of(copy: &Copy, now_ms: u64) -> WriteCommand {
    let request = RequestId {
        session: copy.session,
        sequence: copy.sequence,
        lowest_unacknowledged: copy.lowest_unacknowledged,
        register_until_ms: NOW + copy.session * 15_000,
    };
    let key = Bytes::from(format!("key{}", copy.sequence % 3));
    let value = Bytes::from(format!("{}/{}", copy.session, copy.sequence));
    let condition = if copy.conditional { Condition::IfVersion(copy.sequence) } else { Condition::None };
    let operation = match copy.sequence % 4 {
        3 => Operation::delete(key, condition),
        _ => Operation::put(key, value, condition),
    };
    WriteCommand::new(now_ms, request, vec![operation]).expect("valid")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Copies of requests arrive in any order and number, over any time, with acknowledgements that may even
    /// be wrong, across restarts from a checkpoint: none is applied twice, and no two answers contradict.
    #[test]
    fn a_request_is_applied_at_most_once(copies in vec(any_copy(), 1..120)) {
        let mut shard = Shard::default();
        let mut twin = Shard::default();
        let mut now_ms = NOW;
        let mut answers: BTreeMap<(u64, u64), Outcome> = BTreeMap::new();
        for copy in &copies {
            if copy.restart_before {
                shard.restart();
            }
            now_ms += copy.passes_ms;
            let command = command_of(copy, now_ms);
            let applied = shard.apply(&command);
            prop_assert_eq!(&applied, &twin.apply(&command), "a restart must not show");
            if copy.session == 0 {
                continue;
            }
            let request = (copy.session, copy.sequence);
            let earlier = answers.get(&request);
            if !applied.changes.is_empty() {
                prop_assert!(earlier.is_none(), "{:?} was applied after it was answered {:?}", request, earlier);
            }
            match &applied.outcome {
                Outcome::Applied(_) | Outcome::ConditionFailed { .. } => {
                    let first = answers.entry(request).or_insert_with(|| applied.outcome.clone());
                    prop_assert_eq!(&*first, &applied.outcome);
                }
                Outcome::SessionUnknown | Outcome::SessionsFull | Outcome::SequenceOutOfWindow => {}
            }
        }
        prop_assert_eq!(shard, twin);
    }

    #[test]
    fn equal_logs_make_equal_hashes_and_different_ones_do_not(copies in vec(any_copy(), 1..30), other in any_copy()) {
        let run = |copies: &[Copy]| {
            let mut shard = Shard::default();
            for copy in copies {
                shard.apply(&command_of(&Copy { session: 0, ..copy.clone() }, NOW));
            }
            shard
        };
        let shard = run(&copies);
        prop_assert_eq!(shard.machine.state_hash(), run(&copies).machine.state_hash());
        let mut altered = copies.clone();
        *altered.last_mut().expect("not empty") = other;
        let altered = run(&altered);
        prop_assert_eq!(shard.index == altered.index, shard.machine.state_hash() == altered.machine.state_hash());
    }

    #[test]
    fn damaged_machines_never_panic(
        copies in vec(any_copy(), 0..40),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        length in any::<prop::sample::Index>(),
    ) {
        let mut shard = Shard::default();
        for copy in &copies {
            shard.apply(&command_of(copy, NOW));
        }
        let whole = shard.machine.encode();
        let mut bytes = whole.to_vec();
        let position = at.index(bytes.len());
        bytes[position] = byte;
        if let Ok(machine) = Machine::decode(&bytes) {
            prop_assert_eq!(machine.encode(), bytes, "one machine has one encoding");
        }
        prop_assert!(Machine::decode(&whole[..length.index(whole.len())]).is_err());
    }

    #[test]
    fn garbage_is_no_machine(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Machine::decode(&bytes);
        let mut versioned = vec![FORMAT_VERSION];
        versioned.extend_from_slice(&bytes);
        let _ = Machine::decode(&versioned);
    }
}
