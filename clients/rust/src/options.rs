//! How to reach a cluster, and how patient to be.

use std::path::Path;
use std::time::Duration;

use crate::core::retry::RetryPolicy;
use crate::error::{Error, Result};
use krita_proto::error::ErrorCode;

/// How connections are protected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Security {
    /// TLS 1.3; the cluster's certificate authority, as PEM.
    Tls {
        /// One or more certificates.
        ca_pem: Vec<u8>,
    },
    /// Plain text: anybody on the path reads and changes everything, the token included.
    Insecure,
}

/// How to reach a cluster. Start with [`Options::new`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Must be the cluster's.
    pub cluster_name: String,
    /// Nodes to ask first, `host:port`; any one that answers is enough.
    pub nodes: Vec<String>,
    /// Opaque; empty = none.
    pub token: String,
    /// How connections are protected.
    pub security: Security,
    /// How long a call may take, retries included, unless it says otherwise.
    pub timeout: Duration,
    /// How long connecting to one node may take, TLS and hello included.
    pub connect_timeout: Duration,
    /// When and how calls are retried.
    pub retry: RetryPolicy,
    /// Name and version for the server's log.
    pub client_name: String,
}

impl Options {
    /// For the cluster with this name, through any of `nodes` (`host:port`). TLS has no default authority: name
    /// one, or say [`Security::Insecure`].
    pub fn new(cluster_name: impl Into<String>, nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            cluster_name: cluster_name.into(),
            nodes: nodes.into_iter().map(Into::into).collect(),
            token: String::new(),
            security: Security::Tls { ca_pem: Vec::new() },
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            retry: RetryPolicy::default(),
            client_name: concat!("kritaclient-rust ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// With this token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = token.into();
        self
    }

    /// Trust the authority in `place/ca.crt`, or in `place` itself if that is a file.
    pub fn certificates(mut self, place: impl AsRef<Path>) -> Result<Self> {
        let place = place.as_ref();
        let path = if place.is_file() { place.to_owned() } else { place.join("ca.crt") };
        let ca_pem = std::fs::read(&path).map_err(|error| {
            Error::new(
                ErrorCode::WrongCluster,
                format!("cannot read the authority {}: {error}", path.display()),
            )
        })?;
        self.security = Security::Tls { ca_pem };
        Ok(self)
    }

    /// Plain text.
    pub fn insecure(mut self) -> Self {
        self.security = Security::Insecure;
        self
    }

    /// How long a call may take, retries included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}
