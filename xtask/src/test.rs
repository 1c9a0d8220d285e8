//! `cargo xtask test`: everything that must hold before a change lands.

use std::path::Path;
use std::process::Command;

use crate::planted;
use crate::simulate::{self, Seeds};
use crate::steps::{Steps, cargo};

/// Seeds of the simulation under `--long`.
const LONG_SEEDS: Seeds = Seeds { from: 0, to: 2_000 };

/// Runs all steps and prints a summary; true if all is well. Where the environment says `CI=true`, a test that
/// says `SKIP: reason` counts as failed.
pub(crate) fn run(root: &Path, long: bool) -> bool {
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let mut steps = Steps::default();
    steps.run("compiler", Command::new("cc").arg("--version").current_dir(root));
    steps.run("format", &mut cargo(root, &["fmt", "--all", "--check"]));
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    steps.run("clippy", &mut cargo(root, &clippy));
    // Process tests start these. Built with the profile of the tests, so that nothing is compiled twice.
    let commands = ["build", "--profile", "test", "--workspace", "--bins"];
    if steps.run("commands", &mut cargo(root, &commands)) {
        let tests = ["test", "--workspace", "--no-fail-fast", "--", "--show-output"];
        steps.run("tests", &mut cargo(root, &tests));
    } else {
        steps.not_run("tests", "the commands do not build");
    }
    if long {
        steps.work("simulate", || simulate::run(root, LONG_SEEDS, true));
        steps.work("planted", || planted::run(root, planted::Options::default()));
    }
    steps.summary(!in_ci)
}
