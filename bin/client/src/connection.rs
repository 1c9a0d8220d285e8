//! How to reach a cluster: the flags that all commands share, and where what was not typed comes from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use kritaclient::blocking::Client;
use kritaclient::{Error, ErrorCode, Options};

use crate::failure::Failure;

/// Where flags that were not typed come from, for the end of a command's help.
pub const PROFILE_HELP: &str = "\
Without --token or KRITA_TOKEN the token is read from ./admin.token, else from ./.krita-demo/admin.token.
Without --tls-cert-path or KRITA_TLS_CERT_PATH the certificates are looked for in ./certs, else in ./.krita-demo/certs.
So the command works as it stands where `init` or the demo was run.";

/// How to reach the cluster. Allowed before and after the command.
#[derive(Args, Debug)]
pub struct ConnectionArguments {
    /// Any node of the cluster.
    #[arg(long, global = true, env = "KRITA_HOST", default_value = "localhost")]
    pub host: String,
    /// The node's port.
    #[arg(long, global = true, env = "KRITA_PORT", default_value_t = 8080)]
    pub port: u16,
    /// The cluster's name; guards against talking to the wrong one.
    #[arg(long, global = true, env = "KRITA_CLUSTER_NAME", default_value = "mycluster")]
    pub cluster_name: String,
    /// Opaque; prefer the environment, where other users cannot see it.
    #[arg(long, global = true, env = "KRITA_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A folder that holds ca.crt.
    #[arg(long, global = true, env = "KRITA_TLS_CERT_PATH", value_name = "FOLDER")]
    pub tls_cert_path: Option<PathBuf>,
    /// Plain text instead of TLS: anybody on the path reads and changes everything, the token included.
    #[arg(long, global = true, conflicts_with = "tls_cert_path")]
    pub insecure: bool,
    /// How long the command may take, retries included: seconds, or with a unit as in 500ms, 10s, 2m.
    #[arg(long, global = true, default_value = "10s", value_parser = parse_timeout)]
    pub timeout: Duration,
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
    pub fn address(&self) -> String {
        let is_bare_ipv6 = self.host.contains(':') && !self.host.starts_with('[');
        if is_bare_ipv6 {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The folder of certificates: as given, or of the profile in or below `here`.
    pub fn certificates(&self, here: &Path) -> Option<PathBuf> {
        if self.tls_cert_path.is_some() {
            return self.tls_cert_path.clone();
        }
        [here.join("certs"), here.join(DEMO_FOLDER).join("certs")]
            .into_iter()
            .find(|folder| folder.join("ca.crt").is_file())
    }

    /// The token: as given, or of the profile in or below `here`; empty = none.
    pub fn token(&self, here: &Path) -> std::io::Result<String> {
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

/// Connects as the flags and the profile of the current folder say.
///
/// # Errors
/// No node was reached, or the flags contradict what is there.
pub fn connect(connection: &ConnectionArguments) -> Result<Client, Failure> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Bare {
        #[command(flatten)]
        connection: ConnectionArguments,
    }

    fn parse(line: &str) -> Result<Bare, clap::Error> {
        Bare::try_parse_from(std::iter::once("test").chain(line.split_whitespace()))
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
            let arguments = parse(&format!("--port 8080 --host {host}")).unwrap();
            assert_eq!(arguments.connection.address(), address);
        }
    }

    #[test]
    fn profiles_are_found_in_order_and_flags_win() {
        let here = std::env::temp_dir().join(format!("krita-profile-{}", std::process::id()));
        let demo = here.join(DEMO_FOLDER);
        std::fs::create_dir_all(demo.join("certs")).unwrap();
        let mut bare = parse("").unwrap().connection;
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
        let told = parse("--token T --tls-cert-path F").unwrap().connection;
        assert_eq!(told.token(&here).unwrap(), "T");
        assert_eq!(told.certificates(&here), Some("F".into()));
        std::fs::remove_dir_all(&here).unwrap();
    }
}
