//! `kritactl`: for those who run a cluster: how it is, and what is in the files of a stopped node.
//!
//! Results go to stdout and messages to stderr; the exit code says what happened (`kritactl --help` has the table).
//! A thin main over [`krita_cli::control`].

use krita_cli::control::{Arguments, run};

fn main() {
    krita_cli::start::main("kritactl", |arguments: &Arguments| arguments.output, run);
}
