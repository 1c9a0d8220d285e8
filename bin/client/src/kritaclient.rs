//! `kritaclient`: reads, writes and lists keys of a Krita cluster, and says how it is.
//!
//! Data goes to stdout and messages to stderr; the exit code says what happened (`kritaclient --help` has the
//! table). A thin main: what it does is in the library `kritaclient`.
#![allow(clippy::disallowed_methods, reason = "a command for people reads files and stdin")]

mod arguments;

use std::io::{self, BufWriter, Read, Write};

use bytes::Bytes;
use clap::Parser;
use krita_cli::connection::connect;
use krita_cli::failure::{Failure, finish};
use krita_cli::{health, print};
use kritaclient::{Condition, WriteOptions};

use crate::arguments::{Arguments, Command, ConditionArguments};

/// A value from stdin larger than this is no value.
const VALUE_BYTES_MAX: u64 = 16 * 1024 * 1024;

fn main() {
    // A wrong usage ends here, with exit code 2.
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .init();
    let mut out = BufWriter::new(io::stdout().lock());
    let result = run(&arguments, &mut out);
    finish("kritaclient", &mut out, result)
}

fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), Failure> {
    let output = arguments.output;
    match &arguments.command {
        Command::Put { key, value, condition } => {
            let value = value_bytes(value)?;
            let client = connect(&arguments.connection)?;
            let written = client.put_with(key.clone(), value, write_options(condition))?;
            print::written(out, output, written)?;
        }
        Command::Get { key } => {
            let client = connect(&arguments.connection)?;
            let entry = client.get(key.clone())?.ok_or(Failure::Absent)?;
            print::entry(out, output, &entry)?;
        }
        Command::Delete { key, condition } => {
            let client = connect(&arguments.connection)?;
            let deleted = client.delete_with(key.clone(), write_options(condition))?;
            print::deleted(out, output, deleted)?;
        }
        Command::ListKeys { prefix } => {
            let client = connect(&arguments.connection)?;
            for item in client.list_keys(prefix.clone()) {
                let item = item?;
                print::key(out, output, &item.key, item.version)?;
            }
        }
        Command::HealthCheck { all } => health::check(&arguments.connection, *all, output, out)?,
    }
    Ok(())
}

fn write_options(condition: &ConditionArguments) -> WriteOptions {
    let condition = match (&condition.if_version, &condition.if_value) {
        (Some(version), _) => Condition::IfVersion(*version),
        (None, Some(value)) => Condition::IfValue(value.clone().into()),
        (None, None) => Condition::None,
    };
    WriteOptions { condition, timeout: None }
}

/// The value as given, or all of stdin.
fn value_bytes(value: &str) -> io::Result<Bytes> {
    if value != "-" {
        return Ok(value.to_owned().into());
    }
    let mut bytes = Vec::new();
    // One byte more than a value may have: then the library says so.
    io::stdin().lock().take(VALUE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_taken_over() {
        let version = ConditionArguments { if_version: Some(0), if_value: None };
        assert_eq!(write_options(&version).condition, Condition::IfVersion(0));
        let value = ConditionArguments { if_version: None, if_value: Some("v".to_owned()) };
        assert_eq!(write_options(&value).condition, Condition::IfValue("v".into()));
        assert_eq!(write_options(&ConditionArguments::default()), WriteOptions::default());
    }
}
