//! Every kind of damage in every kind of file, on a leader and on a follower, at rest and under a running node: what
//! comes of it is asserted, and stands as a table in `docs/corruption.md`.
//!
//! `KRITA_BLESS=1` writes the table; `KRITA_CASE=LiveValue/Flipped/Leader/Running` runs one case alone, with the
//! nodes' logs on standard error (`RUST_LOG` filters them); `KRITA_CASE=LiveValue` runs all cases that begin so.

#![allow(clippy::disallowed_methods, reason = "this test reads and writes the document in the source tree")]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use krita_tests::corruption::{self, Case, Outcome, table};
use krita_tests::source::root;

/// How many cases run at a time, one on each thread.
const THREADS: usize = 2;

const SEED: u64 = 1;

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Runs a case; a panic inside is a failure like any other.
fn run(case: Case, shown: bool) -> Result<Outcome, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| corruption::run(case, SEED, shown)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown kind")))
    })
}

#[test]
fn damage_on_one_node_is_healed_or_refused_and_never_served() {
    let wanted = environment("KRITA_CASE");
    let is_wanted =
        |case: &Case| wanted.as_ref().is_none_or(|wanted| case.to_string().starts_with(wanted.as_str()));
    let cases: Vec<Case> = Case::all().into_iter().filter(is_wanted).collect();
    let shown = cases.len() == 1;
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let (failed, wrong) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(cases.len()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match run(*case, shown) {
                        Ok(outcome) => {
                            println!("{case}: {outcome:?}");
                            if let Some(objection) = outcome.objection(case) {
                                wrong.lock().expect("nobody panics with it").push(format!("{case}: {objection}"));
                            }
                            outcomes.lock().expect("nobody panics with it").insert(*case, outcome);
                        }
                        Err(violations) => {
                            println!(
                                "{case} failed:\n{violations}\nreplay it with\n  KRITA_CASE={case} cargo test -p \
                                 krita-tests --test corruption_matrix -- --nocapture"
                            );
                            failed.lock().expect("nobody panics with it").push(case.to_string());
                        }
                    }
                }
            });
        }
    });
    let (outcomes, failed) = (outcomes.into_inner().expect("whole"), failed.into_inner().expect("whole"));
    assert!(failed.is_empty(), "{} of {} cases failed: {failed:#?}", failed.len(), cases.len());
    if wanted.is_none() {
        hold_equal(&table::render(&outcomes));
    }
    let wrong = wrong.into_inner().expect("whole");
    assert!(wrong.is_empty(), "{} outcomes are not what they must be:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_state_that_differs_is_found_and_replaced() {
    for seed in SEED..SEED + 4 {
        let took = corruption::diverge(seed, environment("KRITA_SHOW").is_some());
        let (found, equal) = took.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        println!("seed {seed}: found after {found:.1?}, equal after {equal:.1?}");
    }
}

#[test]
fn a_replica_that_has_forgotten_stays_suspect_when_it_moves_to_another_log() {
    corruption::forget_and_move(SEED, environment("KRITA_SHOW").is_some())
        .unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// The document is what was found, or becomes it.
fn hold_equal(found: &str) {
    let path = root().join("docs/corruption.md");
    if environment("KRITA_BLESS").is_some() {
        std::fs::write(&path, found).expect("the document can be written");
    }
    let document = std::fs::read_to_string(&path).unwrap_or_default();
    let different: Vec<String> = found
        .lines()
        .zip(document.lines().chain(std::iter::repeat("")))
        .filter(|(found, document)| found != document)
        .map(|(found, document)| format!("found:    {found}\ndocument: {document}"))
        .collect();
    assert!(
        document == found,
        "docs/corruption.md is not what happens; KRITA_BLESS=1 writes it:\n{}",
        different.join("\n")
    );
}
