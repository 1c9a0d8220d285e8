//! The command line of `kritaclient`: what can be typed, and where what was not typed comes from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
Without --token or KRITA_TOKEN the token is read from ./admin.token, else from ./.krita-demo/admin.token.
Without --tls-cert-path or KRITA_TLS_CERT_PATH the certificates are looked for in ./certs, else in ./.krita-demo/certs.
So the command works as it stands where `init` or the demo was run.

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
#[command(name = "kritaclient", version, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to reach the cluster. Allowed before and after the command.
#[derive(Args, Debug)]
pub(crate) struct ConnectionArguments {
    /// Any node of the cluster.
    #[arg(long, global = true, env = "KRITA_HOST", default_value = "localhost")]
    pub(crate) host: String,
    /// The node's port.
    #[arg(long, global = true, env = "KRITA_PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// The cluster's name; guards against talking to the wrong one.
    #[arg(long, global = true, env = "KRITA_CLUSTER_NAME", default_value = "mycluster")]
    pub(crate) cluster_name: String,
    /// Opaque; prefer the environment, where other users cannot see it.
    #[arg(long, global = true, env = "KRITA_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// A folder that holds ca.crt.
    #[arg(long, global = true, env = "KRITA_TLS_CERT_PATH", value_name = "FOLDER")]
    pub(crate) tls_cert_path: Option<PathBuf>,
    /// Plain text instead of TLS: anybody on the path reads and changes everything, the token included.
    #[arg(long, global = true, conflicts_with = "tls_cert_path")]
    pub(crate) insecure: bool,
    /// How long the command may take, retries included: seconds, or with a unit as in 500ms, 10s, 2m.
    #[arg(long, global = true, default_value = "10s", value_parser = parse_timeout)]
    pub(crate) timeout: Duration,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Output {
    /// For people: one line per result.
    Text,
    /// One JSON value per result; bytes that are not UTF-8 are base64 and marked as such.
    Json,
    /// Bytes as they are, nothing added; listed keys end with a zero byte.
    Raw,
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

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "want a number, as in 10s".to_owned())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        other => return Err(format!("unknown unit {other:?}; want ms, s or m")),
    };
    match milliseconds {
        Some(milliseconds @ 1..=600_000) => Ok(Duration::from_millis(milliseconds)),
        Some(_) | None => Err("want 1ms to 10m".to_owned()),
    }
}

/// Where the demo keeps what a client needs, below the current directory.
const DEMO_FOLDER: &str = ".krita-demo";

impl ConnectionArguments {
    /// `host:port`; an IPv6 address in brackets.
    pub(crate) fn address(&self) -> String {
        let is_bare_ipv6 = self.host.contains(':') && !self.host.starts_with('[');
        if is_bare_ipv6 {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The folder of certificates: as given, or of the profile in or below `here`.
    pub(crate) fn certificates(&self, here: &Path) -> Option<PathBuf> {
        if self.tls_cert_path.is_some() {
            return self.tls_cert_path.clone();
        }
        [here.join("certs"), here.join(DEMO_FOLDER).join("certs")]
            .into_iter()
            .find(|folder| folder.join("ca.crt").is_file())
    }

    /// The token: as given, or of the profile in or below `here`; empty = none.
    pub(crate) fn token(&self, here: &Path) -> std::io::Result<String> {
        if let Some(token) = &self.token {
            return Ok(token.clone());
        }
        let files = [here.join("admin.token"), here.join(DEMO_FOLDER).join("admin.token")];
        match files.iter().find(|file| file.is_file()) {
            None => Ok(String::new()),
            Some(file) => std::fs::read_to_string(file)
                .map(|token| token.trim().to_owned())
                .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", file.display()))),
        }
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

    #[test]
    fn timeouts_have_units() {
        for (text, milliseconds) in [("10", 10_000), ("10s", 10_000), ("500ms", 500), ("2m", 120_000)] {
            assert_eq!(parse_timeout(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn addresses_may_be_ipv6() {
        for (host, address) in [("::1", "[::1]:8080"), ("[::1]", "[::1]:8080"), ("node1", "node1:8080")] {
            let arguments = parse(&format!("get K --port 8080 --host {host}")).unwrap();
            assert_eq!(arguments.connection.address(), address);
        }
    }

    #[test]
    fn profiles_are_found_in_order_and_flags_win() {
        let here = std::env::temp_dir().join(format!("kritaclient-profile-{}", std::process::id()));
        let demo = here.join(DEMO_FOLDER);
        std::fs::create_dir_all(demo.join("certs")).unwrap();
        let mut bare = parse("get K").unwrap().connection;
        // Whatever the environment of this test says is not its subject.
        (bare.token, bare.tls_cert_path) = (None, None);
        assert_eq!((bare.token(&here).unwrap(), bare.certificates(&here)), (String::new(), None));
        std::fs::write(demo.join("admin.token"), "demo\n").unwrap();
        std::fs::write(demo.join("certs/ca.crt"), "").unwrap();
        assert_eq!(bare.token(&here).unwrap(), "demo");
        assert_eq!(bare.certificates(&here), Some(demo.join("certs")));
        std::fs::create_dir_all(here.join("certs")).unwrap();
        std::fs::write(here.join("admin.token"), "own").unwrap();
        std::fs::write(here.join("certs/ca.crt"), "").unwrap();
        assert_eq!(bare.token(&here).unwrap(), "own");
        assert_eq!(bare.certificates(&here), Some(here.join("certs")));
        let told = parse("get K --token T --tls-cert-path F").unwrap().connection;
        assert_eq!(told.token(&here).unwrap(), "T");
        assert_eq!(told.certificates(&here), Some("F".into()));
        std::fs::remove_dir_all(&here).unwrap();
    }
}
