//! The checker is itself checked: on small histories of known verdict, on every history of a correct simulated
//! register, on damaged copies of those, and against a naive search that tries all orders.

use bytes::Bytes;

use super::*;
use crate::history::{Action, Condition};

/// One operation: `call` is one of `put V`, `get V`, `get -`, `delete`, `cas OLD NEW`, `if N V` (put V if version
/// N); followed by what came out: `@N` (version), `!` (condition failed), `?` (unknown), `x` (not applied).
fn operation(client: u64, times: (u64, u64), call: &str) -> Operation {
    let words: Vec<&str> = call.split(' ').collect();
    let bytes = |word: &str| Bytes::copy_from_slice(word.as_bytes());
    let (last, arguments) = words.split_last().expect("a call has words");
    let version = last.strip_prefix('@').map(|digits| digits.parse().expect("a version"));
    let words = if version.is_some() || ["!", "?", "x"].contains(last) { arguments } else { &words };
    let action = match words {
        ["put", value] => Action::Put { value: bytes(value), condition: Condition::None },
        ["cas", old, new] => Action::Put { value: bytes(new), condition: Condition::IfValue(bytes(old)) },
        ["if", number, value] => {
            let version = number.parse().expect("a version");
            Action::Put { value: bytes(value), condition: Condition::IfVersion(version) }
        }
        ["delete"] => Action::Delete { condition: Condition::None },
        ["get", _] => Action::Get,
        other => panic!("not a call: {other:?}"),
    };
    let outcome = match (*last, words) {
        ("?", _) => Outcome::Unknown,
        ("x", _) => Outcome::NotApplied,
        ("!", _) => Outcome::ConditionFailed { current_version: None },
        (_, ["get", "-"]) => Outcome::Read { value: None, version },
        (_, ["get", value]) => Outcome::Read { value: Some(bytes(value)), version },
        _ => Outcome::Written { version, existed: None },
    };
    let (invoked_at, end) = times;
    let responded_at = (outcome != Outcome::Unknown).then_some(end);
    Operation { client, key: "k".into(), action, invoked_at, responded_at, outcome }
}

/// A history from lines `client from..to call`.
fn history(script: &str) -> History {
    let line = |line: &str| {
        let (client, rest) = line.trim().split_once(' ').expect("a client");
        let (times, call) = rest.split_once(' ').expect("times");
        let (from, to) = times.split_once("..").expect("a range of time");
        let number = |digits: &str| digits.parse().expect("a number");
        operation(number(client), (number(from), number(to)), call)
    };
    History { operations: script.lines().filter(|text| !text.trim().is_empty()).map(line).collect() }
}

#[track_caller]
fn legal(script: &str) {
    let history = history(script);
    let verdict = check(&history);
    assert!(matches!(verdict, Verdict::Linearizable(_)), "{verdict}");
    assert!(all_orders(&history), "the naive search disagrees");
}

#[track_caller]
fn illegal(script: &str) -> String {
    let history = history(script);
    let verdict = check(&history);
    assert!(matches!(verdict, Verdict::Violation(_)), "{verdict}");
    assert!(!all_orders(&history), "the naive search disagrees");
    verdict.to_string()
}

#[test]
fn nothing_and_one_after_another() {
    legal("");
    legal("0 0..1 get -\n 0 2..3 put a @1\n 0 4..5 get a @1\n 0 6..7 delete @2\n 0 8..9 get -");
}

#[test]
fn concurrent_operations_may_take_either_order() {
    legal("0 0..10 put a\n 1 0..10 put b\n 2 11..12 get a");
    legal("0 0..10 put a\n 1 0..10 put b\n 2 11..12 get b");
    legal("0 0..10 put a\n 1 2..3 get -\n 2 4..5 get a");
    illegal("0 0..10 put a\n 1 2..3 get a\n 2 4..5 get -");
}

#[test]
fn touching_operations_are_concurrent() {
    legal("0 0..5 put a\n 1 5..9 get -");
    illegal("0 0..5 put a\n 1 6..9 get -");
}

#[test]
fn a_stale_read_is_found_and_told() {
    let report = illegal("0 0..1 put a\n 0 2..3 put b\n 1 4..5 get a");
    assert!(report.contains("client 1 get k -> a [4 .. 5]: reads something else"), "{report}");
    assert!(report.contains("leaves the register at b, version at least 2"), "{report}");
}

#[test]
fn two_reads_may_not_go_back() {
    illegal("0 0..20 put a\n 1 1..2 get a\n 2 3..4 get -");
    illegal("0 0..1 put a\n 0 2..20 put b\n 1 3..4 get b\n 2 5..6 get a");
}

#[test]
fn a_lost_update_is_found() {
    illegal("0 0..1 put a\n 1 2..3 get -");
    illegal("0 0..1 put a\n 0 2..3 delete\n 1 4..5 get a");
}

#[test]
fn a_value_that_was_never_written_is_found() {
    illegal("0 0..1 get z");
    illegal("0 0..1 put a\n 1 0..9 get z");
    illegal("0 0..1 put z x\n 1 2..9 get z");
}

#[test]
fn an_unknown_write_may_appear_late_or_never() {
    legal("0 0..1 put a\n 1 2..3 put b ?\n 2 4..5 get a\n 2 6..7 get a\n 2 800..801 get b");
    legal("0 0..1 put a\n 1 2..3 put b ?\n 2 4..5 get a");
    legal("0 0..1 put a\n 1 2..3 delete ?\n 2 4..5 get a\n 2 6..7 get -");
    illegal("0 0..1 put a\n 2 4..5 get b\n 1 6..7 put b ?");
}

#[test]
fn an_unknown_write_does_not_disappear() {
    illegal("0 0..1 put a\n 1 2..3 put b ?\n 2 4..5 get b\n 2 6..7 get a");
    illegal("0 0..1 put a\n 1 2..3 delete ?\n 2 4..5 get -\n 2 6..7 get a");
}

#[test]
fn an_unknown_write_appears_only_once() {
    let back_again = "2 4..5 get b\n 0 6..7 put c\n 2 8..9 get c\n 2 10..11 get b";
    illegal(&format!("0 0..1 put a\n 1 2..3 put b ?\n {back_again}"));
    legal(&format!("0 0..1 put a\n 1 2..3 put b ?\n 3 2..3 put b ?\n {back_again}"));
}

#[test]
fn unknown_writes_may_build_on_each_other() {
    legal("0 0..1 put a ?\n 0 2..3 cas a b ?\n 0 4..5 cas b c ?\n 1 6..7 get -\n 1 8..9 get c");
    illegal("0 0..1 put a ?\n 0 2..3 cas b c ?\n 1 6..7 get c");
    legal("0 0..1 put a ?\n 1 2..3 put b ?\n 2 4..5 get b\n 2 6..7 get a");
}

#[test]
fn two_compare_and_swaps_from_one_value_do_not_both_succeed() {
    illegal("0 0..1 put a\n 1 2..9 cas a b\n 2 2..9 cas a c");
    legal("0 0..1 put a\n 1 2..9 cas a b\n 2 2..9 cas a c !");
    illegal("0 0..1 put a @4\n 1 2..9 if 4 b @5\n 2 2..9 if 4 c @6");
    illegal("1 2..9 if 0 b\n 2 2..9 if 0 c");
    legal("1 2..9 if 0 b\n 2 2..9 if 0 c !");
    legal("1 2..9 if 0 b\n 3 2..9 delete\n 2 2..9 if 0 c");
}

#[test]
fn a_condition_that_held_may_not_fail() {
    illegal("0 0..1 put a\n 1 2..3 cas a b !");
    illegal("0 0..1 if 0 a !");
    illegal("0 0..1 put a @3\n 0 2..3 if 3 b !");
    legal("0 0..1 put a @3\n 1 2..3 put z ?\n 0 2..3 if 3 b !");
}

#[test]
fn versions_never_go_back() {
    illegal("0 0..1 put a @5\n 0 2..3 put b @4");
    illegal("0 0..1 put a @5\n 0 2..3 put b @5");
    illegal("0 0..1 put a @5\n 0 2..3 delete @6\n 0 4..5 put a @6");
    legal("0 0..9 put a @5\n 1 0..9 put b @4\n 2 10..11 get a @5");
    illegal("0 0..9 put a @5\n 1 0..9 put b @4\n 2 10..11 get b @4");
}

#[test]
fn versions_pin_what_is_read() {
    illegal("0 0..1 put a @5\n 0 2..3 get a @6");
    legal("0 0..1 put a @5\n 1 2..3 put a ?\n 0 2..3 get a @8\n 0 4..5 get a @8");
    illegal("0 0..1 put a @5\n 1 2..3 put a ?\n 0 2..3 get a @8\n 0 4..5 get a @9");
    illegal("0 0..1 put a @5\n 1 2..3 put a ?\n 0 2..3 get a @8\n 0 4..5 get a @5");
    legal("0 0..1 put a ?\n 0 2..3 if 7 b ?\n 0 4..5 get b @9");
    illegal("0 0..1 put a ?\n 0 2..3 if 7 b ?\n 0 4..5 get b @7");
}

#[test]
fn a_failed_condition_reports_a_version_that_was_there() {
    let met = |version| {
        let mut history = history("0 0..1 put a @5\n 0 2..3 if 9 b !");
        history.operations[1].outcome = Outcome::ConditionFailed { current_version: Some(version) };
        matches!(check(&history), Verdict::Linearizable(_))
    };
    assert!(met(5));
    assert!(!met(4) && !met(6) && !met(9) && !met(0));
}

#[test]
fn existence_is_believed() {
    let with = |script: &str, existed: bool| {
        let mut history = history(script);
        let last = history.operations.last_mut().expect("operations");
        last.outcome = Outcome::Written { version: None, existed: Some(existed) };
        matches!(check(&history), Verdict::Linearizable(_))
    };
    assert!(with("0 0..1 put a\n 0 2..3 delete", true) && !with("0 0..1 put a\n 0 2..3 delete", false));
    assert!(!with("0 2..3 delete", true) && with("0 2..3 delete", false));
    assert!(with("0 0..1 put a ?\n 0 2..3 delete", true) && with("0 0..1 put a ?\n 0 2..3 delete", false));
}

#[test]
fn keys_are_independent_and_the_wrong_one_is_named() {
    let mut all = history("0 0..1 put a\n 0 2..3 get a");
    let mut wrong = history("0 0..1 put a\n 0 2..3 get b");
    wrong.operations.iter_mut().for_each(|operation| operation.key = "wrong".into());
    all.operations.append(&mut wrong.operations);
    assert!(check(&all).to_string().starts_with("not linearizable: key wrong (2 operations)"));
}

#[test]
fn the_report_starts_at_the_earliest_answer_that_is_wrong() {
    let script: String = (0..50).map(|n| format!("0 {}..{} put v{n}\n", 10 * n, 10 * n + 1)).collect();
    let report = illegal(&format!("{script}1 95..96 get v9\n 1 305..306 get v12\n 1 495..496 get v3"));
    assert!(report.contains("nothing explains:\n    client 1 get k -> v12 [305 .. 306]"), "{report}");
    assert!(report.lines().count() < 20, "{report}");
}

#[test]
fn too_hard_is_said_not_guessed() {
    let limits = Limits { steps_max: 3, cache_entries_max: 10 };
    let script = "0 0..9 put a\n 1 0..9 put b\n 2 0..9 put c\n 3 10..11 get a";
    assert!(matches!(check_with(&history(script), limits), Verdict::Undetermined { operations: 4, .. }));
    let no_cache = Limits { cache_entries_max: 0, ..Limits::default() };
    assert!(matches!(check_with(&history(script), no_cache), Verdict::Linearizable(_)));
}

// Random histories.

/// A small generator of our own (SplitMix64): a failing seed is all that is needed to see the case again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What to generate.
#[derive(Clone, Copy)]
struct Shape {
    operations: u64,
    clients: u64,
    keys: u64,
    values: u64,
    unknown_percent: u64,
}

/// What a correct register would answer to concurrent clients: each operation takes effect at one random moment.
fn simulate(seed: u64, shape: Shape) -> History {
    let mut random = Random(seed);
    let mut free_at = vec![0; shape.clients as usize];
    let mut pending = Vec::new();
    for _ in 0..shape.operations {
        let client = random.below(shape.clients);
        let invoked_at = free_at[client as usize] + random.below(20);
        let effect_at = invoked_at + random.below(100);
        let responded_at = effect_at + random.below(100);
        free_at[client as usize] = responded_at + 1;
        let key = random.below(shape.keys);
        let kind = random.below(10);
        let value = Bytes::from(format!("v{}", random.below(shape.values)));
        let unknown = random.chance(shape.unknown_percent);
        // An unknown write happens much later, or never.
        let effect_at = match (unknown, random.below(3)) {
            (true, 0) => None,
            (true, 1) => Some(effect_at + 500),
            _ => Some(effect_at),
        };
        pending.push((effect_at, client, key, invoked_at, responded_at, kind, value, unknown));
    }
    pending.sort_by_key(|case| case.0);
    let mut registers: Vec<Option<(Bytes, u64)>> = vec![None; shape.keys as usize];
    let mut index = 0;
    let mut operations = Vec::new();
    for (effect_at, client, key, invoked_at, responded_at, kind, value, unknown) in pending {
        index += 1 + random.below(3);
        let register = &mut registers[key as usize];
        let current_version = register.as_ref().map_or(0, |(_, version)| *version);
        let condition = match random.below(4) {
            0 => Condition::IfVersion(if random.chance(60) { current_version } else { random.below(index) }),
            1 => Condition::IfValue(match register {
                Some((value, _)) if random.chance(60) => value.clone(),
                _ => Bytes::from(format!("v{}", random.below(shape.values))),
            }),
            _ => Condition::None,
        };
        let holds = match &condition {
            Condition::None => true,
            Condition::IfVersion(version) => *version == current_version,
            Condition::IfValue(value) => register.as_ref().is_some_and(|(current, _)| current == value),
        };
        let sees_version = random.chance(70);
        let seen = |version: u64| sees_version.then_some(version);
        let existed = sees_version.then_some(register.is_some());
        let action = match kind {
            0..4 => Action::Get,
            4..8 => Action::Put { value: value.clone(), condition },
            _ => Action::Delete { condition },
        };
        let outcome = match (&action, register.as_ref()) {
            (Action::Get, None) => Outcome::Read { value: None, version: None },
            (Action::Get, Some((value, version))) => {
                Outcome::Read { value: Some(value.clone()), version: seen(*version) }
            }
            (_, _) if !holds => Outcome::ConditionFailed { current_version: seen(current_version) },
            (Action::Put { .. }, _) => Outcome::Written { version: seen(index), existed },
            (Action::Delete { .. }, Some(_)) => Outcome::Written { version: seen(index), existed },
            (Action::Delete { .. }, None) => Outcome::Written { version: None, existed },
        };
        if let (Some(_), Outcome::Written { .. }) = (effect_at, &outcome) {
            match &action {
                Action::Put { .. } => *register = Some((value, index)),
                _ => *register = None,
            }
        }
        let (outcome, responded_at) = match unknown {
            true => (Outcome::Unknown, None),
            false => (outcome, Some(responded_at)),
        };
        let key = Bytes::from(format!("key{key}"));
        operations.push(Operation { client, key, action, invoked_at, responded_at, outcome });
    }
    operations.sort_by_key(|operation| operation.invoked_at);
    History { operations }
}

const SMALL: Shape = Shape { operations: 60, clients: 4, keys: 2, values: 3, unknown_percent: 10 };

#[test]
fn whatever_a_correct_register_does_passes() {
    for seed in 0..400 {
        let shape = Shape {
            operations: 20 + seed % 200,
            clients: 1 + seed % 9,
            keys: 1 + seed % 5,
            values: 1 + seed % 50,
            unknown_percent: seed % 40,
        };
        let verdict = check(&simulate(seed, shape));
        assert!(matches!(verdict, Verdict::Linearizable(_)), "seed {seed}: {verdict}");
    }
}

#[test]
fn the_naive_search_agrees_on_small_histories() {
    let (mut passed, mut failed) = (0, 0);
    for seed in 0..3_000 {
        let shape = Shape { operations: 9, keys: 1, unknown_percent: 20, ..SMALL };
        let mut history = simulate(seed, shape);
        let mut random = Random(seed ^ 0xfeed);
        let mut tries = if seed % 2 == 0 { 0 } else { 10 };
        while tries > 0 && !damage(&mut history, &mut random) {
            tries -= 1;
        }
        let expected = all_orders(&history);
        let verdict = check(&history);
        assert_eq!(matches!(verdict, Verdict::Linearizable(_)), expected, "seed {seed}: {verdict}");
        if expected { passed += 1 } else { failed += 1 }
    }
    assert!(passed > 1_000 && failed > 100, "{passed} passed, {failed} failed");
}

/// Lets one read of a present value answer with an older value of the same key; false if there is none such.
fn damage(history: &mut History, random: &mut Random) -> bool {
    let reads: Vec<usize> = (0..history.operations.len())
        .filter(|&position| {
            matches!(history.operations[position].outcome, Outcome::Read { value: Some(_), .. })
        })
        .collect();
    if reads.len() < 2 {
        return false;
    }
    let from = random.below(reads.len() as u64 - 1) as usize;
    let to = from + 1 + random.below((reads.len() - from - 1) as u64) as usize;
    let (from, to) = (&history.operations[reads[from]], &history.operations[reads[to]]);
    if from.key != to.key || from.outcome == to.outcome || from.responded_at >= Some(to.invoked_at) {
        return false;
    }
    let (outcome, target) =
        (from.outcome.clone(), reads.iter().position(|&read| history.operations[read] == *to));
    history.operations[reads[target.expect("it is one of them")]].outcome = outcome;
    true
}

#[test]
fn older_answers_are_mostly_found() {
    let (mut damaged, mut found) = (0, 0);
    for seed in 0..1_000 {
        // Values are unique, or an older answer may be as good as the right one.
        let mut history = simulate(seed, Shape { values: 1 << 40, unknown_percent: 5, ..SMALL });
        if damage(&mut history, &mut Random(!seed)) {
            damaged += 1;
            found += u64::from(matches!(check(&history), Verdict::Violation(_)));
        }
    }
    assert!(damaged > 200 && found * 100 >= damaged * 75, "{found} of {damaged} found");
}

#[test]
fn a_hundred_thousand_operations_take_seconds() {
    let shape = Shape { operations: 100_000, clients: 32, keys: 200, values: 1 << 40, unknown_percent: 2 };
    let history = simulate(7, shape);
    let effort = assert_linearizable(&history);
    assert!(effort.operations > 97_000 && effort.unknown > 500, "{effort:?}");
    assert!(effort.steps < 20_000_000, "{effort:?}");
}

#[test]
fn one_busy_key_with_many_unknown_writes_is_no_explosion() {
    let shape = Shape { operations: 5_000, clients: 16, keys: 1, values: 1 << 40, unknown_percent: 10 };
    let effort = assert_linearizable(&simulate(3, shape));
    assert!(effort.unknown > 200, "{effort:?}");
}

/// The definition itself: tries every order, and every choice of unknown writes. For a dozen operations at most.
fn all_orders(history: &History) -> bool {
    let mut operations: Vec<&Operation> = history.operations.iter().collect();
    operations.sort_by_key(|operation| operation.invoked_at);
    let problem = Problem::new(&operations, Nanoseconds::MAX);
    if problem.calls.len() > 14 {
        // Too many to try: such scripts stand on their own.
        return matches!(check(history), Verdict::Linearizable(_));
    }
    try_all(&problem, &mut vec![false; problem.calls.len()], register::Register::ABSENT)
}

fn try_all(problem: &Problem, ordered: &mut Vec<bool>, state: register::Register) -> bool {
    let left: Vec<usize> = (0..ordered.len()).filter(|&call| !ordered[call]).collect();
    let first_return = left.iter().filter_map(|&call| problem.calls[call].responded_at).min();
    let Some(first_return) = first_return else { return true };
    for call in left {
        if problem.calls[call].invoked_at > first_return {
            continue;
        }
        if let Some(after) = problem.calls[call].step.apply(state) {
            ordered[call] = true;
            let found = try_all(problem, ordered, after);
            ordered[call] = false;
            if found {
                return true;
            }
        }
    }
    false
}
