//! `cargo xtask simulate`: the simulation of a whole cluster over a range of seeds.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::steps::cargo;

/// A range of seeds: from `from` up to but without `to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seeds {
    /// The first seed.
    pub(crate) from: u64,
    /// The seed after the last one; more than `from`.
    pub(crate) to: u64,
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse::<u64>().map_err(|error| format!("{digits:?}: {error}"));
        let (from, to) = text.split_once("..").ok_or("write a range as A..B")?;
        let (from, to) = (number(from)?, number(to)?);
        if from < to { Ok(Self { from, to }) } else { Err(format!("{text} holds no seed")) }
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

/// Runs the seeds; true if all pass. A failing seed prints the command that replays it.
pub(crate) fn run(root: &Path, seeds: Seeds, release: bool) -> bool {
    let mut arguments = vec!["test", "--package", "krita-tests", "--test", "cluster_simulation"];
    if release {
        arguments.push("--release");
    }
    arguments.extend(["--", "--nocapture"]);
    println!("seeds {seeds}");
    match cargo(root, &arguments).env("KRITA_SEEDS", seeds.to_string()).status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("cargo cannot be started: {error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_reads_as_it_prints() {
        let seeds: Seeds = "3..500".parse().expect("a range");
        assert_eq!((seeds, seeds.to_string()), (Seeds { from: 3, to: 500 }, "3..500".into()));
        for wrong in ["", "3", "5..5", "9..3", "-1..4", "a..b"] {
            assert!(wrong.parse::<Seeds>().is_err(), "{wrong}");
        }
    }
}
