//! What the commands for Linux share: `kritad` and `init` are thin mains over these modules.
//!
//! - [`arguments`]: what can be typed. [`files`]: configuration, certificates and tokens on disk.
//! - [`node`]: runs a node in this process. [`log`]: where its log lines go. `memory`: what budgets are shares of.
//! - [`demo`] and [`init`] lay out folders (`layout`), run nodes as child processes (`children`) and load example
//!   data (`examples`).
//!
//! Only here, above all parts, may code touch files, processes and threads. The server process never uses tokio; the
//! commands that act as clients use the client library.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "commands read files, start processes and have threads; nodes inside them have only the runtime"
)]

pub mod arguments;
mod children;
pub mod demo;
mod examples;
pub mod files;
pub mod init;
mod layout;
pub mod log;
mod memory;
pub mod node;
mod wait;

use std::process::ExitCode;

use arguments::{Arguments, Command};

/// Why a command ends without success, for people: what is wrong, and what to do.
#[derive(Debug)]
pub struct Failure(pub String);

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Does what `kritad` was told.
pub fn kritad(arguments: &Arguments) -> ExitCode {
    let result = match &arguments.command {
        None => node::run(&arguments.node),
        Some(Command::Node(node)) => node::run(node),
        Some(Command::Demo(demo)) => demo::run(demo),
        Some(Command::Init(init)) => init::run(init),
    };
    finish("kritad", result)
}

/// The exit code of a command; the reason of a failure goes to stderr.
pub fn finish(command: &str, result: Result<(), Failure>) -> ExitCode {
    log::flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{command}: {failure}");
            ExitCode::FAILURE
        }
    }
}
