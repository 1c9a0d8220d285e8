//! What `kritaclient` does: keys and values. Its command line stands in [`arguments`].

pub mod arguments;
mod batch;
mod delete;
mod export;
mod import;
mod keys;
mod lines;
mod shell;
mod write;

use clap::CommandFactory;
use kritaclient::{Detail, Error, ErrorCode, Read, ReadOptions};

use crate::connection::Target;
use crate::documents;
use crate::failure::Failure;
use crate::health;
use crate::output::Printer;
use crate::print;

pub use arguments::{Arguments, Command};
use arguments::{GetArguments, key_bytes};

/// Does what was typed.
///
/// # Errors
/// What ends the command with another exit code than 0.
pub fn run(arguments: &Arguments, print: &mut Printer<'_>) -> Result<(), Failure> {
    match &arguments.command {
        Command::Completions { shell } => documents::completions(Arguments::command(), *shell, print),
        Command::Manual { directory } => documents::manual(Arguments::command(), directory, print),
        Command::Shell => shell::run(&arguments.connection.target()?, print),
        command => execute(command, &arguments.connection.target()?, print),
    }
}

/// Does one command over a connection that may be there already.
fn execute(command: &Command, target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    match command {
        Command::Put(put) => write::put(put, target, print),
        Command::Get(wanted) => get(wanted, target, print),
        Command::Delete(delete) => match &delete.prefix {
            Some(prefix) => delete::prefix(&key_bytes(prefix, delete.base64)?, delete, target, print),
            None => write::delete(delete, target, print),
        },
        Command::ListKeys(range) => keys::list(range, keys::What::Keys, target, print),
        Command::Scan(range) => keys::list(range, keys::What::Values, target, print),
        Command::Batch { file, dry_run } => batch::run(file, *dry_run, target, print),
        Command::Export { file, prefix, again } => export::run(file, prefix, *again, target, print),
        Command::Import { file, dry_run: true, .. } => import::check(file, print),
        Command::Import { file, again, dry_run: false } => import::run(file, *again, target, print),
        Command::HealthCheck { all } => health::check(target, *all, print),
        Command::Shell | Command::Completions { .. } | Command::Manual { .. } => {
            Err(Failure::Usage("this cannot be typed in the shell; Ctrl-D leaves it".to_owned()))
        }
    }
}

fn get(wanted: &GetArguments, target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let key = key_bytes(&wanted.key, wanted.base64)?;
    let options = ReadOptions { consistency: wanted.consistency.consistency(), timeout: None };
    let Read { entry, stale_at } = target.client()?.read_with(key, options)?;
    if let Some(applied_index) = stale_at {
        eprintln!("note: no quorum confirmed this; it is as of log entry {applied_index} of the key's shard");
    }
    let version = entry.as_ref().map_or(0, |entry| entry.version);
    if let Some(expected) = wanted.if_version.filter(|expected| *expected != version) {
        return Err(condition_failed(format!("the key has version {version}, not {expected}"), version));
    }
    Ok(print::entry(print, &entry.ok_or(Failure::Absent)?)?)
}

/// A condition that was found not to hold on this side.
fn condition_failed(message: String, current_version: u64) -> Failure {
    let detail = Detail { code: ErrorCode::ConditionFailed, message, retry_after: None };
    Error::ConditionFailed { current_version, operation: 0, detail }.into()
}
