//! One group in a simulated world, from a seed: messages are delayed, lost, duplicated and reordered; links are cut;
//! disks are slow and hang; replicas crash and lose what was not durable, are paused, and have clocks that drift.
//!
//! Checked all along: election safety, leader completeness, state-machine safety, that what commits is durable on
//! a quorum, and that reads and writes of a register are linearizable; in the end, log matching, and that the
//! healed group agrees and serves.
//!
//! In worlds of its own, replicas also lose their memory (`world/amnesia.rs`), and the members change
//! (`world/members.rs`): then it is also checked that there is one configuration, of which each follows the one before
//! by a quorum of both.
//!
//! A failing seed prints the command that replays it. `KRITA_SEED=n` runs that seed alone, with its story on standard
//! error; `KRITA_SEEDS=n` runs the first n.

mod common;
mod world;

use world::{Totals, World};

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Runs the seeds that the environment asks for, or the first `seeds`. What happened, if it was many.
fn run(test: &str, seeds: u64, world: fn(u64, bool) -> World) -> Option<(u64, Totals)> {
    if let Some(seed) = environment("KRITA_SEED") {
        let totals = world(seed, true).run();
        eprintln!("seed {seed}: {totals:?}");
        return None;
    }
    let seeds = environment("KRITA_SEEDS").unwrap_or(seeds);
    let mut totals = Totals::default();
    for seed in 1..=seeds {
        let run = std::panic::catch_unwind(|| world(seed, false).run());
        match run {
            Ok(of_seed) => totals.add(&of_seed),
            Err(panic) => {
                eprintln!(
                    "seed {seed} failed; replay it with\n  \
                     KRITA_SEED={seed} cargo test -p krita-raft --test simulated_group {test}"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{seeds} seeds: {totals:?}");
    Some((seeds, totals))
}

#[test]
fn the_group_is_safe_in_every_seed() {
    let run = run("the_group_is_safe_in_every_seed", 600, World::new);
    let Some((seeds, totals)) = run else { return };
    // A world in which nothing happens proves nothing.
    assert!(totals.elections > seeds && totals.crashes > seeds && totals.reads_done > seeds * 10);
    assert!(totals.snapshots > seeds / 10 && totals.truncations > seeds / 20 && totals.silences > seeds / 20);
    assert!(totals.reads_leased > seeds && totals.transfers > seeds / 10 && totals.log_loads > seeds / 10);
}

#[test]
fn a_group_whose_members_forget_is_safe_in_every_seed() {
    let run = run("a_group_whose_members_forget_is_safe_in_every_seed", 400, World::forgetful);
    let Some((seeds, totals)) = run else { return };
    assert!(totals.elections > seeds && totals.reads_done > seeds * 10 && totals.silences > seeds / 20);
    assert!(totals.amnesias > seeds / 2 && totals.damages > seeds / 10 && totals.healed > seeds / 2);
}

#[test]
fn a_group_whose_members_change_is_safe_in_every_seed() {
    let run = run("a_group_whose_members_change_is_safe_in_every_seed", 600, World::changing);
    let Some((seeds, totals)) = run else { return };
    assert!(totals.elections > seeds && totals.reads_done > seeds * 10 && totals.crashes > seeds);
    assert!(totals.joins > seeds && totals.changes > seeds * 5 && totals.changes_over > seeds / 2);
}
