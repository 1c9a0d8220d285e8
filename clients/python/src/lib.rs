//! The native half of the Python package `kritaclient`: the Rust client behind Python objects.
//!
//! | module | does |
//! |---|---|
//! | [`process`] | one network runtime per process; notices a fork |
//! | [`handle`] | a connection to a cluster, and the calls that can be made on it |
//! | [`call`] | one call: waited for with the GIL released, or run for an asyncio loop |
//! | [`scan`] | a scan, a few items at a time |
//! | [`convert`] | Python's arguments in, Python's values out |
//! | [`command`] | the command `kritaclient` |
//!
//! What people see is written in Python, in `python/kritaclient`: this module is private to it.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a client runs anywhere, with the machine's own threads")]

mod call;
mod command;
mod convert;
mod handle;
mod process;
mod scan;

use pyo3::prelude::*;

/// Private to the package `kritaclient`.
#[pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use crate::call::{Call, Completions, Task};
    #[pymodule_export]
    use crate::command::run_command;
    #[pymodule_export]
    use crate::convert::error_table;
    #[pymodule_export]
    use crate::handle::Handle;
    #[pymodule_export]
    use crate::scan::Scan;

    /// The version of the package.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
