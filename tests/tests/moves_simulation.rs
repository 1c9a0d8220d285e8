//! A whole cluster whose replicas move under load and faults; see `krita_tests::simulation::moves` for what is done and
//! checked beside all that the ordinary simulation checks.
//!
//! `KRITA_SEED=n` runs that seed alone, with the nodes' log on standard error; `KRITA_SEEDS=a..b` that range.

use std::panic::{AssertUnwindSafe, catch_unwind};

use krita_tests::simulation::{self, Report, Totals};

/// Seeds of the ordinary suite.
const SEEDS: std::ops::Range<u64> = 0..8;

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is no seed"))
}

fn seeds() -> std::ops::Range<u64> {
    let Some(range) = environment("KRITA_SEEDS") else { return SEEDS };
    let (from, to) = range.split_once("..").unwrap_or_else(|| panic!("write KRITA_SEEDS as A..B"));
    number(from)..number(to)
}

/// Runs a seed; a panic inside is a failure like any other.
fn run(seed: u64, shown: bool) -> Result<Report, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| simulation::run_with_moves(seed, shown)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown kind")))
    })
}

#[test]
fn replicas_move_and_the_cluster_keeps_its_promises() {
    if let Some(seed) = environment("KRITA_SEED") {
        match run(number(&seed), true) {
            Ok(report) => return println!("{report:#?}"),
            Err(violations) => panic!("seed {seed}:\n{violations}"),
        }
    }
    let (mut totals, mut failed) = (Totals::default(), Vec::new());
    for seed in seeds() {
        match run(seed, false) {
            Ok(report) => totals.add(&report),
            Err(violations) => {
                println!(
                    "seed {seed} failed:\n{violations}\nreplay it with\n  KRITA_SEED={seed} cargo test -p krita-tests \
                     --test moves_simulation -- --nocapture"
                );
                failed.push(seed);
            }
        }
    }
    println!("{totals}");
    assert!(failed.is_empty(), "seeds {failed:?} failed");
    if totals.seeds >= 8 {
        let sum = &totals.sum;
        assert!(sum.swaps >= totals.seeds, "replicas moved: {} swaps", sum.swaps);
        assert!(sum.opened >= totals.seeds && sum.dropped >= totals.seeds, "replicas came and went");
        assert!(sum.told_removed > 0, "some replica missed its removal");
    }
}

#[test]
fn a_seed_replays() {
    let [one, other] = [0, 1].map(|_| run(3, false).unwrap_or_else(|violations| panic!("{violations}")));
    assert_eq!(one, other);
}
