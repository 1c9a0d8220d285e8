//! `kritaclient`: reads, writes and lists keys of a Krita cluster, and says how it is.
//!
//! Data goes to stdout and messages to stderr; the exit code says what happened (`kritaclient --help` has the
//! table). A thin main: what it does is in the library `kritaclient`.
#![allow(clippy::disallowed_methods, reason = "a command for people reads files and stdin")]

mod arguments;
mod print;

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Parser;
use kritaclient::blocking::Client;
use kritaclient::{Condition, Error, ErrorCode, MemberHealth, Options, WriteOptions};

use crate::arguments::{Arguments, Command, ConditionArguments, ConnectionArguments, Output};

/// A value from stdin larger than this is no value.
const VALUE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How a command ends that does not end well. The exit codes of errors stand in the table of error codes.
#[derive(Debug)]
enum Failure {
    /// The cluster, or the way to it.
    Krita(Error),
    /// The key is absent.
    Absent,
    /// A member is not as it should be; what it is has been printed.
    Unhealthy,
    /// Reading or printing.
    Io(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Krita(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Krita(error) => error.exit_code(),
            Self::Absent => 3,
            Self::Unhealthy => 10,
            // Whoever read our output has read enough.
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Io(_) => 1,
        }
    }

    /// For stderr; `None` = nothing to say.
    fn message(&self) -> Option<String> {
        match self {
            Self::Krita(error) => Some(format!("{error}\n{}", error.advice())),
            Self::Absent => Some("the key is absent".to_owned()),
            Self::Unhealthy => None,
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Self::Io(error) => Some(error.to_string()),
        }
    }
}

fn main() -> ExitCode {
    // A wrong usage ends here, with exit code 2.
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .init();
    let mut out = BufWriter::new(io::stdout().lock());
    let result = run(&arguments, &mut out).and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What was printed before the failure is still true.
            let _closed = out.flush();
            if let Some(message) = failure.message() {
                let _closed = writeln!(io::stderr(), "kritaclient: {message}");
            }
            // Not by return: a runtime that still resolves a name would be waited for.
            std::process::exit(failure.exit_code().into())
        }
    }
}

fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), Failure> {
    let output = arguments.connection.output;
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
        Command::HealthCheck { all } => health_check(&arguments.connection, *all, output, out)?,
    }
    Ok(())
}

fn health_check(
    connection: &ConnectionArguments,
    all: bool,
    output: Output,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let address = connection.address();
    let members = match connect(connection) {
        Ok(client) if all => client.health()?,
        Ok(client) => vec![member(&address, client.node_status(&address))?],
        Err(Failure::Krita(error)) => vec![member(&address, Err(error))?],
        Err(other) => return Err(other),
    };
    if let Some(refused) = members.iter().find_map(refusal) {
        print::health(out, output, &members)?;
        return Err(refused.clone().into());
    }
    print::health(out, output, &members)?;
    let all_healthy = !members.is_empty() && members.iter().all(print::is_healthy);
    if all_healthy { Ok(()) } else { Err(Failure::Unhealthy) }
}

/// One node asked directly. Only what says something of its health is its state; the rest is the caller's error.
fn member(
    address: &str,
    status: Result<kritaclient::v1::NodeStatusReply, Error>,
) -> Result<MemberHealth, Failure> {
    if let Err(error) = &status
        && !matches!(error, Error::Unavailable(_))
    {
        return Err(error.clone().into());
    }
    let node = status.as_ref().ok().and_then(|status| status.node.clone()).unwrap_or_default();
    Ok(MemberHealth {
        node_number: node.node_number,
        node_id: node.node_id,
        address: address.to_owned(),
        status,
    })
}

/// A member that refused the token says nothing of its health.
fn refusal(member: &MemberHealth) -> Option<&Error> {
    member.status.as_ref().err().filter(|error| matches!(error, Error::Denied(_)))
}

fn connect(connection: &ConnectionArguments) -> Result<Client, Failure> {
    let here = Path::new(".");
    let mut options = Options::new(connection.cluster_name.clone(), [connection.address()])
        .token(connection.token(here)?)
        .timeout(connection.timeout);
    options.connect_timeout = options.connect_timeout.min(connection.timeout);
    let options = if connection.insecure {
        options.insecure()
    } else {
        let Some(folder) = connection.certificates(here) else {
            return Err(Failure::Krita(Error::new(
                ErrorCode::WrongCluster,
                "no certificates: name their folder by --tls-cert-path or KRITA_TLS_CERT_PATH, run this where `init` \
                 or the demo was run, or choose --insecure",
            )));
        };
        options.certificates(folder)?
    };
    Ok(Client::connect(options)?)
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
    fn exit_codes_follow_the_table() {
        for (failure, exit_code) in [
            (Failure::Krita(Error::new(ErrorCode::InvalidArgument, "")), 1),
            (Failure::Krita(Error::new(ErrorCode::WrongCluster, "")), 1),
            (Failure::Krita(Error::new(ErrorCode::ConditionFailed, "")), 1),
            (Failure::Krita(Error::new(ErrorCode::Unauthenticated, "")), 4),
            (Failure::Krita(Error::new(ErrorCode::PermissionDenied, "")), 4),
            (Failure::Krita(Error::new(ErrorCode::Unavailable, "")), 5),
            (Failure::Krita(Error::new(ErrorCode::DeadlineExceeded, "")), 5),
            (Failure::Krita(Error::new(ErrorCode::Overloaded, "")), 5),
            (Failure::Krita(Error::new(ErrorCode::UnknownOutcome, "")), 6),
            (Failure::Absent, 3),
            (Failure::Unhealthy, 10),
            (Failure::Io(io::ErrorKind::BrokenPipe.into()), 0),
            (Failure::Io(io::ErrorKind::Other.into()), 1),
        ] {
            assert_eq!(failure.exit_code(), exit_code, "{failure:?}");
        }
    }

    #[test]
    fn a_refused_token_is_no_statement_about_health() {
        let denied = Error::new(ErrorCode::Unauthenticated, "who are you");
        assert!(matches!(member("a", Err(denied)), Err(Failure::Krita(Error::Denied(_)))));
        let gone = Error::new(ErrorCode::Unavailable, "no route");
        assert!(member("a", Err(gone)).is_ok_and(|member| !print::is_healthy(&member)));
    }

    #[test]
    fn conditions_are_taken_over() {
        let version = ConditionArguments { if_version: Some(0), if_value: None };
        assert_eq!(write_options(&version).condition, Condition::IfVersion(0));
        let value = ConditionArguments { if_version: None, if_value: Some("v".to_owned()) };
        assert_eq!(write_options(&value).condition, Condition::IfValue("v".into()));
        assert_eq!(write_options(&ConditionArguments::default()), WriteOptions::default());
    }
}
