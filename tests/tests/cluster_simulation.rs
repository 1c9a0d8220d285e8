//! A whole cluster from many seeds; see `krita_tests::simulation` for what happens in each and what is checked.
//!
//! A failing seed prints the command that replays it. `KRITA_SEED=n` runs that seed alone, with the nodes' log on
//! standard error (`RUST_LOG` filters it); `KRITA_SEEDS=a..b` runs that range, `b` not included.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use krita_tests::simulation::{self, Report, Totals};

/// Seeds of the ordinary suite.
const SEEDS: std::ops::Range<u64> = 0..24;

/// Seeds that found a bug once; the ordinary suite always runs them.
const REGRESSIONS: &[u64] = &[
    // A first start cut short before its shards were made, then a start with more cores: refused for ever.
    2319,
];

/// How many run at a time, one on each thread.
const THREADS: usize = 2;

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn seeds() -> Vec<u64> {
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is no seed"));
    match environment("KRITA_SEEDS") {
        Some(range) => {
            let (from, to) = range.split_once("..").unwrap_or_else(|| panic!("write KRITA_SEEDS as A..B"));
            (number(from)..number(to)).collect()
        }
        None => REGRESSIONS.iter().copied().chain(SEEDS.filter(|seed| !REGRESSIONS.contains(seed))).collect(),
    }
}

/// Runs a seed; a panic inside is a failure like any other.
fn run(seed: u64, shown: bool) -> Result<Report, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| simulation::run(seed, shown)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown kind")))
    })
}

#[test]
fn the_cluster_keeps_its_promises_in_every_seed() {
    if let Some(seed) = environment("KRITA_SEED") {
        let seed = seed.parse().unwrap_or_else(|_| panic!("{seed:?} is no seed"));
        match run(seed, true) {
            Ok(report) => return println!("{report:#?}"),
            Err(violations) => panic!("seed {seed}:\n{violations}"),
        }
    }
    let seeds = seeds();
    let (next, totals, failed) = (AtomicU64::new(0), Mutex::new(Totals::default()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    match run(*seed, false) {
                        Ok(report) => totals.lock().expect("nobody panics with it").add(&report),
                        Err(violations) => {
                            println!(
                                "seed {seed} failed:\n{violations}\nreplay it with\n  KRITA_SEED={seed} cargo test -p \
                                 krita-tests --test cluster_simulation -- --nocapture"
                            );
                            failed.lock().expect("nobody panics with it").push(*seed);
                        }
                    }
                }
            });
        }
    });
    let (totals, failed) = (totals.into_inner().expect("whole"), failed.into_inner().expect("whole"));
    println!("{totals}");
    assert!(failed.is_empty(), "{} of {} seeds failed: {failed:?}", failed.len(), seeds.len());
    if seeds.len() >= 16 {
        let sum = &totals.sum;
        for (what, count) in [
            ("election", sum.elections),
            ("conflict", sum.conflicts),
            ("snapshot transfer", sum.snapshots),
            ("crash", sum.crashes),
            ("torn write", sum.torn_writes),
            ("reset", sum.resets),
            ("handoff", sum.handoffs),
            ("unknown outcome", sum.unknown),
        ] {
            assert!(count > 0, "no seed met a single {what}");
        }
        assert!(totals.eventful * 2 > totals.seeds, "most seeds meet all of it");
    }
}
