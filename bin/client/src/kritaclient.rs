//! `kritaclient`: reads, writes and lists keys of a Krita cluster, and says how it is.
//!
//! Data goes to stdout and messages to stderr; the exit code says what happened (`kritaclient --help` has the
//! table). A thin main over [`krita_cli::data`].

use krita_cli::data::{Arguments, run};

fn main() {
    krita_cli::start::main("kritaclient", |arguments: &Arguments| arguments.output, run);
}
