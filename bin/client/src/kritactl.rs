//! `kritactl`: for those who run a cluster: how it is, and what is in the files of a stopped node.
//!
//! Results go to stdout and messages to stderr; the exit code says what happened (`kritactl --help` has the table).
//! A thin main over [`krita_cli::control`].

use std::io::{self, BufWriter};

use clap::Parser;
use krita_cli::control::{Arguments, run};
use krita_cli::failure::finish;

fn main() {
    // A wrong usage ends here, with exit code 2.
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .init();
    let mut out = BufWriter::new(io::stdout().lock());
    let result = run(&arguments, &mut out);
    finish("kritactl", &mut out, result)
}
