//! The command line of `kritaclient`: what can be typed.

use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use kritaclient::{Condition, Consistency};

use crate::connection::{ConnectionArguments, PROFILE_HELP};
use crate::failure::Failure;
use crate::output::{Output, base64_decoded};

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

const EXAMPLES: &str = "\
Examples:
  kritaclient put hello world
  kritaclient get hello
  kritaclient list-keys user: --limit 10 -o table
  kritaclient delete --prefix session: --dry-run
  kritaclient export backup.jsonl && kritaclient --profile other import backup.jsonl
  kritaclient shell";

/// Reads, writes and lists keys of a Krita cluster, and says how it is. Any node may be named: the client finds the
/// leaders by itself.
#[derive(Parser, Debug)]
#[command(
    name = "kritaclient",
    version,
    after_help = format!("{EXAMPLES}\n\n{PROFILE_HELP}\n\n{EXIT_CODES}")
)]
pub struct Arguments {
    /// How to reach the cluster.
    #[command(flatten)]
    pub connection: ConnectionArguments,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Set a key's value.
    #[command(after_help = "\
Examples:
  kritaclient put hello world
  kritaclient put photo --file photo.jpg
  date | kritaclient put now -
  kritaclient put lock mine --if-absent
  kritaclient put counter 8 --if-version 41")]
    Put(PutArguments),
    /// Print a key's value.
    #[command(after_help = "\
Examples:
  kritaclient get hello
  kritaclient get photo -o raw > photo.jpg
  kritaclient get counter -o json        (with its version, for --if-version)")]
    Get(GetArguments),
    /// Remove a key, or with --prefix all keys that begin alike.
    #[command(after_help = "\
Examples:
  kritaclient delete hello
  kritaclient delete counter --if-version 41
  kritaclient delete --prefix session: --dry-run
  kritaclient delete --prefix session: --yes

Interrupted, --prefix has removed some keys and not others; the same command goes on where it stopped.")]
    Delete(DeleteArguments),
    /// Print all keys, or those that begin with a prefix, in order.
    #[command(after_help = "\
Examples:
  kritaclient list-keys
  kritaclient list-keys user: --limit 10
  kritaclient list-keys --start-after user:0010 --limit 10     (the next ten)
  kritaclient list-keys -o raw | xargs -0 -n1 echo")]
    ListKeys(RangeArguments),
    /// Print keys with their values, in order.
    #[command(after_help = "\
Examples:
  kritaclient scan capital: -o table
  kritaclient scan --start user:0100 --end user:0200 -o json")]
    Scan(RangeArguments),
    /// Do many operations in one round trip for each shard; those on one shard all or none.
    #[command(after_help = "\
The operations are JSON objects, one a line, from a file or stdin; each may come with a condition, and each key once:
  {\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}
  {\"op\":\"put\",\"key\":\"b\",\"value_base64\":\"/w==\",\"if_absent\":true}
  {\"op\":\"delete\",\"key\":\"c\",\"if_version\":7}
  {\"op\":\"get\",\"key\":\"d\"}
One result for each operation, in order. The exit code is that of the first that failed.

Examples:
  kritaclient batch changes.jsonl
  echo '{\"op\":\"get\",\"key\":\"hello\"}' | kritaclient batch -o json")]
    Batch {
        /// The file; `-` is stdin.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Check the operations and count them, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Write keys and values to a file, one JSON object a line: binary-safe, for `import`.
    #[command(after_help = "\
Keys and values that are not UTF-8 are base64, as key_base64 and value_base64. The first line says what the file is, the
last one how many keys it has. Each shard is written as of one moment, or, if that takes minutes or the node is lost,
from some key on as of a later one; other writes go on meanwhile.
It is written to FILE.part and gets its name when it is complete; an interrupted one goes on with --resume.

Examples:
  kritaclient export backup.jsonl
  kritaclient export - --prefix user: | gzip > users.jsonl.gz
  kritaclient export backup.jsonl --resume")]
    Export {
        /// The file; `-` is stdout.
        file: PathBuf,
        /// Only keys that begin with this.
        #[arg(long, default_value = "", hide_default_value = true)]
        prefix: String,
        /// What becomes of an earlier attempt.
        #[command(flatten)]
        again: AgainArguments,
    },
    /// Put the keys and values of a file that `export` wrote, or of any file of such lines.
    #[command(after_help = "\
A file is checked whole before anything is put: each line, and that none is missing. What is there under the same keys
is replaced. How far it is stands in FILE.import-state, from which an interrupted import goes on with --resume.

Examples:
  kritaclient import backup.jsonl --dry-run
  kritaclient import backup.jsonl
  zcat users.jsonl.gz | kritaclient import -")]
    Import {
        /// The file; `-` is stdin.
        file: PathBuf,
        /// Check and count, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// What becomes of an earlier attempt.
        #[command(flatten)]
        again: AgainArguments,
    },
    /// Say how the named node is, or with --all every member of the cluster.
    #[command(after_help = "\
A node that is not reached is in the list, as unreachable (exit code 10). A refused token says nothing of health: it is
an error of its own (exit code 4).

Examples:
  kritaclient health-check
  kritaclient health-check --all -o table")]
    HealthCheck {
        /// Ask every member.
        #[arg(long)]
        all: bool,
    },
    /// Type commands at a prompt, with history; or run them from stdin.
    #[command(after_help = "\
At the prompt all commands of kritaclient work, without its name; `help` lists them, Ctrl-D ends. Commands from a pipe
are run until one fails, whose exit code is that of the shell.

Examples:
  kritaclient shell
  printf 'put a 1\\nget a\\n' | kritaclient shell")]
    Shell,
    /// Print completions for a shell.
    #[command(after_help = "\
Examples:
  source <(kritaclient completions bash)
  kritaclient completions zsh > ~/.zfunc/_kritaclient")]
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write man pages into a folder, one for each command.
    #[command(after_help = "Examples:\n  kritaclient manual /usr/local/share/man/man1")]
    Manual {
        /// The folder; made if it is not there.
        directory: PathBuf,
    },
}

/// What to put.
#[derive(Args, Debug)]
pub struct PutArguments {
    /// The key.
    pub key: String,
    /// The value; `-` reads it from stdin, byte by byte as it is.
    #[arg(allow_hyphen_values = true, required_unless_present = "file")]
    pub value: Option<String>,
    /// Read the value from a file, byte by byte as it is.
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub file: Option<PathBuf>,
    /// The key is base64 (RFC 4648), as it is printed where it is not UTF-8.
    #[arg(long)]
    pub base64: bool,
    /// Only if the key is absent.
    #[arg(long, conflicts_with_all = ["if_version", "if_value"])]
    pub if_absent: bool,
    /// When the put is applied.
    #[command(flatten)]
    pub condition: ConditionArguments,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// What to get.
#[derive(Args, Debug)]
pub struct GetArguments {
    /// The key.
    pub key: String,
    /// The key is base64 (RFC 4648).
    #[arg(long)]
    pub base64: bool,
    /// Fail (exit code 1) if the key's version is another.
    #[arg(long, value_name = "VERSION")]
    pub if_version: Option<u64>,
    /// How fresh the answer must be.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    pub consistency: Freshness,
}

/// How fresh a read must be.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freshness {
    /// It sees every write that ended before it began.
    Linearizable,
    /// The same; if no leader is reached in time, what any replica has.
    Available,
    /// What the replica that is asked has: it may be behind, and says where it is.
    Any,
}

impl Freshness {
    /// In the client's terms.
    pub fn consistency(self) -> Consistency {
        match self {
            Self::Linearizable => Consistency::Linearizable,
            Self::Available => Consistency::Available,
            Self::Any => Consistency::Any,
        }
    }
}

/// What to delete.
#[derive(Args, Debug)]
pub struct DeleteArguments {
    /// The key.
    #[arg(required_unless_present = "prefix")]
    pub key: Option<String>,
    /// Remove all keys that begin with this, over all shards, after asking; "" is every key.
    #[arg(long, conflicts_with_all = ["key", "if_version", "if_value"])]
    pub prefix: Option<String>,
    /// The key or prefix is base64 (RFC 4648).
    #[arg(long)]
    pub base64: bool,
    /// When the delete is applied.
    #[command(flatten)]
    pub condition: ConditionArguments,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Which keys.
#[derive(Args, Debug)]
pub struct RangeArguments {
    /// What the keys begin with.
    #[arg(default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// The first key, inclusive.
    #[arg(long, value_name = "KEY", conflicts_with = "start_after")]
    pub start: Option<String>,
    /// The key before the first: to go on behind the last one of an earlier list.
    #[arg(long, value_name = "KEY")]
    pub start_after: Option<String>,
    /// The end, exclusive.
    #[arg(long, value_name = "KEY")]
    pub end: Option<String>,
    /// At most this many.
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
    /// The prefix and keys are base64 (RFC 4648).
    #[arg(long)]
    pub base64: bool,
    /// How fresh what is read must be.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    pub consistency: Freshness,
}

/// What becomes of an earlier attempt.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct AgainArguments {
    /// Go on where an earlier attempt was interrupted.
    #[arg(long)]
    pub resume: bool,
    /// Begin anew, and forget an earlier attempt.
    #[arg(long, conflicts_with = "resume")]
    pub restart: bool,
}

/// When a write is applied.
#[derive(Args, Debug, Default)]
pub struct ConditionArguments {
    /// Only if the key's version is this; 0 = only if the key is absent.
    #[arg(long, value_name = "VERSION", conflicts_with = "if_value")]
    pub if_version: Option<u64>,
    /// Only if the key has this value.
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub if_value: Option<String>,
}

impl ConditionArguments {
    /// The condition that was typed.
    pub fn condition(&self, if_absent: bool) -> Condition {
        match (if_absent, &self.if_version, &self.if_value) {
            (true, _, _) => Condition::IfVersion(0),
            (false, Some(version), _) => Condition::IfVersion(*version),
            (false, None, Some(value)) => Condition::IfValue(value.clone().into()),
            (false, None, None) => Condition::None,
        }
    }
}

/// A key or prefix that was typed.
///
/// # Errors
/// It was said to be base64, and is not.
pub fn key_bytes(text: &str, base64: bool) -> Result<Bytes, Failure> {
    if !base64 {
        return Ok(text.to_owned().into());
    }
    match base64_decoded(text) {
        Ok(bytes) => Ok(bytes.into()),
        Err(reason) => Err(Failure::Usage(format!("\"{text}\" is {reason}"))),
    }
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
            "put K V --if-absent",
            "put K --file F",
            "get K",
            "get K --if-version 3",
            "get K --consistency any",
            "delete K",
            "delete --prefix P --yes",
            "list-keys",
            "list-keys P",
            "list-keys P --consistency available",
            "scan P --limit 3",
            "batch",
            "export F --resume",
            "import F --dry-run",
            "health-check --all",
            "shell",
        ] {
            for line in [format!("{flags} {command}"), format!("{command} {flags}")] {
                let arguments = parse(&line).unwrap_or_else(|error| panic!("{line}: {error:?}"));
                let connection = arguments.connection;
                assert_eq!((connection.host.as_deref(), connection.port), (Some("H"), Some(9)), "{line}");
                assert_eq!(connection.cluster_name.as_deref(), Some("C"), "{line}");
                assert_eq!(connection.token.as_deref(), Some("T"), "{line}");
            }
            for output in ["text", "table", "json", "yaml", "raw"] {
                assert!(parse(&format!("{command} -o {output}")).is_ok());
            }
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "",
            "put K",
            "put K V --file F",
            "put K V --if-absent --if-version 1",
            "get",
            "get A B",
            "delete",
            "delete K --prefix P",
            "delete --prefix P --if-version 3",
            "frobnicate",
            "get K --port 99999",
            "get K -o xml",
            "get K --timeout 0",
            "get K --timeout 5h",
            "put K V --if-version 1 --if-value x",
            "get K --insecure --tls-cert-path x",
            "list-keys --start a --start-after b",
            "import F --resume --restart",
            "completions csh",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn conditions_are_taken_over() {
        let version = ConditionArguments { if_version: Some(7), if_value: None };
        assert_eq!(version.condition(false), Condition::IfVersion(7));
        let value = ConditionArguments { if_version: None, if_value: Some("v".to_owned()) };
        assert_eq!(value.condition(false), Condition::IfValue("v".into()));
        assert_eq!(ConditionArguments::default().condition(true), Condition::IfVersion(0));
        assert_eq!(ConditionArguments::default().condition(false), Condition::None);
    }

    #[test]
    fn keys_may_be_base64() {
        assert_eq!(key_bytes("/w==", true).unwrap(), Bytes::from_static(&[0xff]));
        assert_eq!(key_bytes("/w==", false).unwrap(), Bytes::from_static(b"/w=="));
        assert!(matches!(key_bytes("w", true), Err(Failure::Usage(_))));
    }
}
