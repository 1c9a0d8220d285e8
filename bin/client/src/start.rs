//! How the commands begin and end: the same for all of them.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::failure::{Failure, finish};
use crate::output::{Output, Printer, Style};

/// Bytes of output that are held before they are written.
const OUT_BYTES: usize = 64 * 1024;

/// Parses the command line, does it, and ends the process with what came of it.
///
/// Results go to stdout, messages to stderr. A wrong usage ends here, with exit code 2.
pub fn main<A: Parser>(
    name: &str,
    output: fn(&A) -> Output,
    run: fn(&A, &mut Printer<'_>) -> Result<(), Failure>,
) -> ! {
    main_from(std::env::args_os(), name, output, run)
}

/// The same with a command line from elsewhere, its name first: the Python package brings `kritaclient` so.
pub fn main_from<A: Parser>(
    words: impl IntoIterator<Item = OsString>,
    name: &str,
    output: fn(&A) -> Output,
    run: fn(&A, &mut Printer<'_>) -> Result<(), Failure>,
) -> ! {
    let arguments = A::parse_from(words);
    log_to_stderr();
    let stdout = io::stdout();
    let style = Style::of(&stdout);
    let mut out = BufWriter::with_capacity(OUT_BYTES, stdout);
    let mut print = Printer::new(&mut out, output(&arguments), style);
    let result = run(&arguments, &mut print);
    // What was printed before a failure is still true.
    let result = result.and(print.flush().map_err(Failure::from));
    let result = result.and(out.flush().map_err(Failure::from));
    finish(name, result)
}

/// What `RUST_LOG` asks for goes to stderr, coloured only on a terminal.
fn log_to_stderr() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_ansi(Style::of(&io::stderr()).has_colour())
        .with_writer(io::stderr)
        .init();
}
