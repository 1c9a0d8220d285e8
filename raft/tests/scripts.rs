//! Golden scripts: one group, driven one event a line, told as a story.
//!
//! A script in `tests/scripts` is a sequence of `> command` lines, each followed by what happens then. Replicas
//! are numbers; every replica has its own clock, and a disk that writes at once unless it is held. Messages wait on
//! their links until they are delivered. `KRITA_REWRITE=1 cargo test -p krita-raft --test scripts` writes what
//! happens now into the scripts; read the difference before you commit it.
//!
//! | command | meaning |
//! |---|---|
//! | `group 3 [learners=1] [lease=off] [pre_vote=off] [quiesce=1s] [cache=0]` | a new group, first start |
//! | `tick 1 200ms`, `time 200ms` | the clock of one, or of all, goes on, and it is ticked |
//! | `elect 1` | its clock goes on beyond its election timer, then all messages are delivered |
//! | `expire 1` | its clock goes on beyond its election timer |
//! | `propose 1 text`, `read 1 7`, `transfer 1 2`, `campaign 1`, `step_down 1`, `wake 1`, `core_died 2 1` | calls |
//! | `deliver`, `deliver 1->2`, `drop 1->2` | all messages until none is left; those on one link now |
//! | `cut 1 2`, `heal` | messages between two are lost from now on; no more |
//! | `hold 1`, `durable 1`, `release 1` | its disk stops; finishes what waits; is quick again |
//! | `forget 3 after=2 votes`, `forget 3 all`, `forget 3 state` | while down, its disk loses that; it is suspect |
//! | `suspect 2 memory`, `suspect 2 state` | while it runs, it finds that its memory or its state is damaged |
//! | `crash 3`, `restart 3`, `checkpoint 1`, `snapshot 1->3` | as they say; a checkpoint drops the log before it |
//! | `checkpoint 1 3`, `snapshot 1->3 unheard` | but for so many entries; its sender does not hear of it |
//! | `join 4` | a new replica that knows nobody |
//! | `change 1 add=4`, `change 1 promote=4 remove=1,2 demote=3 [expected=5@1]` | it is asked to change the members |
//! | `status` | a line for each |
// A test runner reads and writes its scripts.
#![allow(clippy::disallowed_methods)]

mod common;
mod story;

use std::fmt::Write as _;
use std::path::Path;

use story::Story;

/// The script again, with what happens now under each command.
fn run(script: &str) -> String {
    let mut story = Story::default();
    let mut told = String::new();
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(told, "{line}").unwrap();
            for event in story.command(command) {
                writeln!(told, "  {event}").unwrap();
            }
        } else if !line.starts_with("  ") {
            writeln!(told, "{line}").unwrap();
        }
    }
    told
}

#[test]
fn every_script_tells_its_story() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 15, "the scripts are gone");
    let mut differing = Vec::new();
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let script = std::fs::read_to_string(&path).unwrap();
        let run = std::panic::catch_unwind(|| run(&script));
        let Ok(told) = run else {
            differing.push(name);
            continue;
        };
        if told == script {
            continue;
        }
        if std::env::var_os("KRITA_REWRITE").is_some() {
            std::fs::write(&path, told).unwrap();
            continue;
        }
        for (expected, found) in
            script.lines().zip(told.lines()).filter(|(expected, found)| expected != found).take(5)
        {
            eprintln!("{name}: expected `{expected}`, found `{found}`");
        }
        differing.push(name);
    }
    for name in &differing {
        eprintln!("script {name} differs");
    }
    assert!(differing.is_empty(), "scripts differ: {differing:?}");
}
