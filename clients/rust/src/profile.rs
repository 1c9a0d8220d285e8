//! How to reach a cluster where the caller did not say all of it: the environment, and the folder in which `init` or
//! the demo was run. All clients share it: the commands, the Python package, and programs that ask for it.
//!
//! A [`Profile`] knows some parts and not others; `a.or(b)` takes from `b` what `a` does not know. The usual order
//! is what the caller typed, then `KRITA_*`, then the current folder, then the defaults:
//!
//! ```no_run
//! # #[cfg(feature = "tokio")]
//! # fn example() -> kritaclient::Result<()> {
//! let options = kritaclient::Profile { port: Some(8081), ..Default::default() }.completed()?.options()?;
//! let client = kritaclient::blocking::Client::connect(options)?;
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use krita_proto::error::ErrorCode;

use crate::error::{Error, Result};
use crate::options::Options;

/// Where the demo keeps what a client needs, below the folder it was run in.
pub const DEMO_FOLDER: &str = ".krita-demo";

/// The admin token's file, as `init` and the demo write it.
pub const TOKEN_FILE: &str = "admin.token";

/// The folder of certificates, as `init` and the demo write it.
pub const CERTIFICATES_FOLDER: &str = "certs";

/// The node that is asked if none is named.
pub const DEFAULT_HOST: &str = "localhost";

/// The port that is asked if none is named.
pub const DEFAULT_PORT: u16 = 8080;

/// The cluster that is meant if none is named.
pub const DEFAULT_CLUSTER_NAME: &str = "mycluster";

/// What is known of how to reach a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Profile {
    /// Nodes to ask first, `host:port`; empty = the host and port.
    pub nodes: Vec<String>,
    /// A node's name or address.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// The cluster's name.
    pub cluster_name: Option<String>,
    /// Opaque; `Some("")` = known to be none.
    pub token: Option<String>,
    /// A folder that holds `ca.crt`, or such a file.
    pub certificates: Option<PathBuf>,
    /// Plain text instead of TLS.
    pub insecure: bool,
    /// How long a call may take, retries included.
    pub timeout: Option<Duration>,
}

impl Profile {
    /// What the `KRITA_*` variables of this process say.
    ///
    /// # Errors
    /// A variable that is set does not parse.
    pub fn environment() -> Result<Self> {
        Self::of_variables(|name| std::env::var(name).ok())
    }

    /// The same from any source of variables. An empty one counts as not set.
    ///
    /// # Errors
    /// A variable that is set does not parse.
    pub fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let port = match variable("KRITA_PORT") {
            None => None,
            Some(text) => {
                let invalid = || Error::invalid(format!("KRITA_PORT is {text:?}: want a number up to 65535"));
                Some(text.parse().map_err(|_| invalid())?)
            }
        };
        Ok(Self {
            host: variable("KRITA_HOST"),
            port,
            cluster_name: variable("KRITA_CLUSTER_NAME"),
            token: variable("KRITA_TOKEN"),
            certificates: variable("KRITA_TLS_CERT_PATH").map(PathBuf::from),
            ..Self::default()
        })
    }

    /// What `init` or the demo left in `folder`: the token, and where the certificates are. What is there comes
    /// before what is in the demo's folder below.
    ///
    /// # Errors
    /// The token's file is there and cannot be read.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let places = [folder.to_owned(), folder.join(DEMO_FOLDER)];
        let token_file = places.iter().map(|place| place.join(TOKEN_FILE)).find(|file| file.is_file());
        let token = match token_file {
            None => None,
            Some(file) => {
                let unreadable = |error| configuration(format!("cannot read {}: {error}", file.display()));
                Some(std::fs::read_to_string(&file).map_err(unreadable)?.trim().to_owned())
            }
        };
        let certificates = places.iter().map(|place| place.join(CERTIFICATES_FOLDER));
        let certificates = certificates.into_iter().find(|place| place.join("ca.crt").is_file());
        Ok(Self { token, certificates, ..Self::default() })
    }

    /// This, and what it does not know from `below`. Whoever names plain text is given no certificates, and whoever
    /// names a host or a port no list of nodes.
    #[must_use]
    pub fn or(self, below: Self) -> Self {
        let names_nodes = !self.nodes.is_empty() || self.host.is_some() || self.port.is_some();
        let insecure = self.insecure || (below.insecure && self.certificates.is_none());
        Self {
            nodes: if names_nodes { self.nodes } else { below.nodes },
            host: self.host.or(below.host),
            port: self.port.or(below.port),
            cluster_name: self.cluster_name.or(below.cluster_name),
            token: self.token.or(below.token),
            certificates: if self.insecure { None } else { self.certificates.or(below.certificates) },
            insecure,
            timeout: self.timeout.or(below.timeout),
        }
    }

    /// This, and what it does not know from the environment, then from the current folder.
    ///
    /// # Errors
    /// A variable does not parse, or a file that is there cannot be read.
    pub fn completed(self) -> Result<Self> {
        // What is known already is not looked up: a file that nobody needs may be unreadable.
        let known = self.or(Self::environment()?);
        let is_complete = known.token.is_some() && (known.insecure || known.certificates.is_some());
        if is_complete { Ok(known) } else { Ok(known.or(Self::of_folder(Path::new("."))?)) }
    }

    /// `host:port` of the node that is named; an IPv6 address in brackets.
    pub fn address(&self) -> String {
        let host = self.host.as_deref().unwrap_or(DEFAULT_HOST);
        let port = self.port.unwrap_or(DEFAULT_PORT);
        let is_bare_ipv6 = host.contains(':') && !host.starts_with('[');
        if is_bare_ipv6 { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Options to connect with; what is not known is as the defaults say.
    ///
    /// # Errors
    /// There is neither an authority nor the wish to do without, or it cannot be read.
    pub fn options(self) -> Result<Options> {
        let nodes = if self.nodes.is_empty() { vec![self.address()] } else { self.nodes };
        let cluster_name = self.cluster_name.unwrap_or_else(|| DEFAULT_CLUSTER_NAME.to_owned());
        let mut options = Options::new(cluster_name, nodes).token(self.token.unwrap_or_default());
        if let Some(timeout) = self.timeout {
            options.connect_timeout = options.connect_timeout.min(timeout);
            options.timeout = timeout;
        }
        match (self.insecure, self.certificates) {
            (true, _) => Ok(options.insecure()),
            (false, Some(certificates)) => options.certificates(certificates),
            (false, None) => Err(configuration(
                "no certificates: name their folder (KRITA_TLS_CERT_PATH), run this where `init` or the demo was \
                 run, or choose plain text",
            )),
        }
    }
}

fn configuration(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::WrongCluster, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Security;

    fn variables(set: &'static [(&'static str, &'static str)]) -> Result<Profile> {
        Profile::of_variables(|name| {
            let found = set.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_are_read_and_empty_ones_are_not_set() {
        let read = variables(&[("KRITA_HOST", "h"), ("KRITA_PORT", "9"), ("KRITA_TOKEN", "")]).unwrap();
        assert_eq!((read.address(), read.token), ("h:9".to_owned(), None));
        let error = variables(&[("KRITA_PORT", "many")]).unwrap_err();
        assert!(matches!(error, Error::InvalidRequest(_)), "{error}");
    }

    #[test]
    fn what_is_told_comes_before_what_is_found() {
        let told = Profile { host: Some("told".into()), ..Profile::default() };
        let below = Profile {
            nodes: vec!["found:1".into()],
            port: Some(9),
            token: Some("t".into()),
            certificates: Some("c".into()),
            ..Profile::default()
        };
        let both = told.or(below.clone());
        assert_eq!((both.address(), both.nodes.len()), ("told:9".to_owned(), 0));
        assert_eq!((both.token.as_deref(), both.certificates), (Some("t"), Some("c".into())));
        let plain = Profile { insecure: true, ..Profile::default() }.or(below.clone());
        assert_eq!((plain.insecure, plain.certificates), (true, None));
        let found_plain = below.or(Profile { insecure: true, ..Profile::default() });
        assert!(
            !found_plain.insecure,
            "an authority that was told is not given up for plain text that was found"
        );
    }

    #[test]
    fn addresses_may_be_ipv6() {
        for (host, address) in [("::1", "[::1]:8080"), ("[::1]", "[::1]:8080"), ("node1", "node1:8080")] {
            assert_eq!(Profile { host: Some(host.into()), ..Profile::default() }.address(), address);
        }
        assert_eq!(Profile::default().address(), "localhost:8080");
    }

    #[test]
    fn folders_are_searched_in_order() {
        let here = std::env::temp_dir().join(format!("krita-client-profile-{}", std::process::id()));
        let demo = here.join(DEMO_FOLDER);
        std::fs::create_dir_all(demo.join(CERTIFICATES_FOLDER)).unwrap();
        assert_eq!(Profile::of_folder(&here).unwrap(), Profile::default());
        let no_authority = Profile::of_folder(&here).unwrap().options().unwrap_err();
        assert!(matches!(no_authority, Error::Configuration(_)), "{no_authority}");
        std::fs::write(demo.join(TOKEN_FILE), "demo\n").unwrap();
        std::fs::write(demo.join("certs/ca.crt"), "authority").unwrap();
        let found = Profile::of_folder(&here).unwrap();
        assert_eq!((found.token.as_deref(), found.certificates), (Some("demo"), Some(demo.join("certs"))));
        std::fs::create_dir_all(here.join(CERTIFICATES_FOLDER)).unwrap();
        std::fs::write(here.join(TOKEN_FILE), "own").unwrap();
        std::fs::write(here.join("certs/ca.crt"), "authority").unwrap();
        let found = Profile::of_folder(&here).unwrap();
        assert_eq!((found.token.as_deref(), &found.certificates), (Some("own"), &Some(here.join("certs"))));
        for certificates in [here.join("certs"), here.join("certs/ca.crt")] {
            let profile = Profile { certificates: Some(certificates), ..Profile::default() };
            let options = profile.options().unwrap();
            assert_eq!(options.security, Security::Tls { ca_pem: b"authority".to_vec() });
        }
        std::fs::remove_dir_all(&here).unwrap();
    }
}
