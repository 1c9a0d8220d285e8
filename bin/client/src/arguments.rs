//! The command line of `kritaclient`: what can be typed.

use clap::{Args, Parser, Subcommand};
use krita_cli::connection::{ConnectionArguments, PROFILE_HELP};
use krita_cli::print::Output;

const EXIT_CODES: &str = "\
Data goes to stdout, messages to stderr. Exit codes:
   0  done
   1  failed
   2  wrong usage
   3  the key is absent
   4  not authenticated, or denied
   5  unavailable, or timed out: nothing was applied
   6  the outcome of the write is unknown
  10  unhealthy";

/// Reads, writes and lists keys of a Krita cluster, and says how it is. Any node may be named: the client finds the
/// leaders by itself.
#[derive(Parser, Debug)]
#[command(name = "kritaclient", version, after_help = format!("{PROFILE_HELP}\n\n{EXIT_CODES}"))]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Set a key's value.
    Put {
        /// The key.
        key: String,
        /// The value; `-` reads it from stdin, byte by byte as it is.
        #[arg(allow_hyphen_values = true)]
        value: String,
        #[command(flatten)]
        condition: ConditionArguments,
    },
    /// Print a key's value.
    Get {
        /// The key.
        key: String,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: String,
        #[command(flatten)]
        condition: ConditionArguments,
    },
    /// Print all keys, or those that begin with a prefix, in order.
    ListKeys {
        /// What the keys begin with.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Say how the named node is, or with --all every member of the cluster.
    HealthCheck {
        /// Ask every member.
        #[arg(long)]
        all: bool,
    },
}

/// When a write is applied.
#[derive(Args, Debug, Default)]
pub(crate) struct ConditionArguments {
    /// Only if the key's version is this; 0 = only if the key is absent.
    #[arg(long, value_name = "VERSION", conflicts_with = "if_value")]
    pub(crate) if_version: Option<u64>,
    /// Only if the key has this value.
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub(crate) if_value: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Arguments, ErrorKind> {
        let words = std::iter::once("kritaclient").chain(line.split_whitespace());
        Arguments::try_parse_from(words).map_err(|error| error.kind())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_documented_forms_parse_with_flags_before_and_after() {
        let flags = "--host H --port 9 --cluster-name C --token T";
        for command in [
            "put K V",
            "put K -",
            "put K -1",
            "get K",
            "delete K",
            "list-keys",
            "list-keys P",
            "health-check --all",
        ] {
            for line in [format!("{flags} {command}"), format!("{command} {flags}")] {
                let arguments = parse(&line).unwrap_or_else(|error| panic!("{line}: {error:?}"));
                let connection = arguments.connection;
                assert_eq!(connection.address(), "H:9", "{line}");
                assert_eq!(connection.cluster_name, "C", "{line}");
                assert_eq!(connection.token.as_deref(), Some("T"), "{line}");
            }
            for output in ["text", "json", "raw"] {
                assert!(parse(&format!("{command} -o {output}")).is_ok());
            }
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "",
            "put K",
            "get",
            "get A B",
            "frobnicate",
            "get K --port 99999",
            "get K -o xml",
            "get K --timeout 0",
            "get K --timeout 5h",
            "put K V --if-version 1 --if-value x",
            "get K --insecure --tls-cert-path x",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
