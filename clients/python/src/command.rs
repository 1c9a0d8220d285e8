//! The command `kritaclient`, linked into the module, so that the package brings it wherever it is installed.

use std::ffi::OsString;

use krita_cli::data::{Arguments, run};
use pyo3::prelude::*;

/// Runs the command with these words, its name first, and ends the process with its exit code.
#[pyfunction]
pub(crate) fn run_command(py: Python<'_>, arguments: Vec<OsString>) {
    py.detach(|| {
        krita_cli::start::main_from(arguments, "kritaclient", |arguments: &Arguments| arguments.output, run)
    })
}
