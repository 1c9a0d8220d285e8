//! How to reach a cluster: the flags that all commands share, and where what was not typed comes from.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use kritaclient::blocking::Client;
use kritaclient::{Options, Profile};

use crate::failure::Failure;
use crate::profile;

/// Where flags that were not typed come from, for the end of a command's help.
pub const PROFILE_HELP: &str = "\
What is not typed comes from the environment (KRITA_*), then from the profile: the folder that --profile names, else
the current one if `init` was run in it, else what the demo left in it (.krita-demo): its admin.token, certs/ca.crt, and
krita.yaml for the cluster's name and nodes. So the commands work as they stand where `init` or the demo was run.
--profile takes a folder, a name for ~/.config/krita/profiles/NAME, or demo.";

/// How to reach the cluster. Allowed before and after the command.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArguments {
    /// A folder that `init` or the demo laid out, or its name.
    #[arg(long, global = true, env = "KRITA_PROFILE", value_name = "FOLDER|NAME")]
    pub profile: Option<String>,
    /// Any node of the cluster [default: the profile's nodes, else localhost].
    #[arg(long, global = true, env = "KRITA_HOST")]
    pub host: Option<String>,
    /// The node's port [default: the profile's, else 8080].
    #[arg(long, global = true, env = "KRITA_PORT")]
    pub port: Option<u16>,
    /// The cluster's name; guards against talking to the wrong one [default: the profile's, else mycluster].
    #[arg(long, global = true, env = "KRITA_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// Opaque; prefer the environment or a profile, where other users cannot see it.
    #[arg(long, global = true, env = "KRITA_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A folder that holds ca.crt.
    #[arg(long, global = true, env = "KRITA_TLS_CERT_PATH", value_name = "FOLDER")]
    pub tls_cert_path: Option<PathBuf>,
    /// Plain text instead of TLS: anybody on the path reads and changes everything, the token included.
    #[arg(long, global = true, conflicts_with = "tls_cert_path")]
    pub insecure: bool,
    /// How long a call may take, retries included: seconds, or with a unit as in 500ms, 10s, 2m.
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

impl ConnectionArguments {
    /// All that is known of the way to the cluster: what was typed or stands in the environment, then the profile
    /// that was named, or that `here` is.
    ///
    /// # Errors
    /// The profile that was named is none, or a file of it cannot be read.
    pub fn known(&self, here: &Path) -> Result<Profile, Failure> {
        let typed = Profile {
            nodes: Vec::new(),
            host: self.host.clone(),
            port: self.port,
            cluster_name: self.cluster_name.clone(),
            token: self.token.clone(),
            certificates: self.tls_cert_path.clone(),
            insecure: self.insecure,
            timeout: Some(self.timeout),
        };
        let names_a_node = typed.host.is_some() || typed.port.is_some();
        let mut found = match profile::find(self.profile.as_deref(), here) {
            Ok(found) => found,
            // What was not asked for need not be sound, if all was typed.
            Err(_) if self.profile.is_none() && typed.token.is_some() && names_a_node => Profile::default(),
            Err(failure) => return Err(failure),
        };
        // Plain text was chosen for the profile's own nodes, not for others.
        found.insecure &= !names_a_node;
        Ok(typed.or(found))
    }

    /// The way to the cluster.
    ///
    /// # Errors
    /// The profile that was named is none, or a file of it cannot be read.
    pub fn target(&self) -> Result<Target, Failure> {
        Ok(Target { known: self.known(Path::new(""))?, client: OnceCell::new() })
    }
}

/// A cluster, to which a connection is made when it is first needed.
pub struct Target {
    known: Profile,
    client: OnceCell<Client>,
}

impl Target {
    /// The node that was named, or the first of the profile's.
    pub fn address(&self) -> String {
        self.known.nodes.first().cloned().unwrap_or_else(|| self.known.address())
    }

    /// All nodes that are known without asking.
    pub fn addresses(&self) -> Vec<String> {
        if self.known.nodes.is_empty() { vec![self.known.address()] } else { self.known.nodes.clone() }
    }

    /// What the client library connects with.
    ///
    /// # Errors
    /// There is no authority, or it cannot be read.
    pub fn options(&self) -> Result<Options, Failure> {
        if !self.known.insecure && self.known.certificates.is_none() {
            return Err(Failure::Refused(
                "no certificates: run this where `init` or the demo was run, name such a folder with --profile, or \
                 the folder of ca.crt with --tls-cert-path (KRITA_TLS_CERT_PATH), or choose --insecure"
                    .to_owned(),
            ));
        }
        let mut options = self.known.clone().options()?;
        options.client_name = concat!("kritaclient-commands ", env!("CARGO_PKG_VERSION")).to_owned();
        Ok(options)
    }

    /// The connection; made by the first call.
    ///
    /// # Errors
    /// No node was reached, or the flags contradict what is there.
    pub fn client(&self) -> Result<&Client, Failure> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Client::connect(self.options()?)?;
        Ok(self.client.get_or_init(|| client))
    }
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

    fn parse(line: &str) -> ConnectionArguments {
        let words = std::iter::once("test").chain(line.split_whitespace());
        let mut connection = Bare::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).connection;
        // Whatever the environment of this test says is not its subject.
        if !line.contains("--tls") {
            connection.tls_cert_path = None;
        }
        connection
    }

    #[test]
    fn timeouts_have_units() {
        for (text, milliseconds) in [("10", 10_000), ("10s", 10_000), ("500ms", 500), ("2m", 120_000)] {
            assert_eq!(parse_timeout(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_was_typed_wins_over_the_profile() {
        let here = std::env::temp_dir().join(format!("krita-cli-connection-{}", std::process::id()));
        std::fs::create_dir_all(here.join("certs")).unwrap();
        std::fs::write(here.join("admin.token"), "own").unwrap();
        std::fs::write(here.join("certs/ca.crt"), "").unwrap();
        std::fs::write(here.join("krita.yaml"), "cluster_name: c\npeers: [{address: \"a:1\"}]\n").unwrap();
        let found = parse("").known(&here).unwrap();
        assert_eq!((found.nodes.clone(), found.cluster_name.as_deref()), (vec!["a:1".into()], Some("c")));
        assert_eq!((found.token.as_deref(), found.certificates), (Some("own"), Some(here.join("certs"))));
        let told = parse("--port 9 --cluster-name d --token T --tls-cert-path F").known(&here).unwrap();
        assert_eq!((told.nodes.len(), told.address()), (0, "localhost:9".to_owned()));
        assert_eq!((told.cluster_name.as_deref(), told.token.as_deref()), (Some("d"), Some("T")));
        assert_eq!(told.certificates, Some("F".into()));
        std::fs::write(here.join("krita.yaml"), "cluster_name: c\ninsecure: true\nport: 5\n").unwrap();
        assert!(parse("").known(&here).unwrap().insecure);
        assert!(!parse("--host h").known(&here).unwrap().insecure, "plain text goes to no other node");
        std::fs::remove_dir_all(&here).unwrap();
    }
}
