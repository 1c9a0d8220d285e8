//! The databases that can be put under load, one driver each.

pub mod etcd;
pub mod grpc;
mod link;
pub mod native;
pub mod redis;
pub mod rest;

use std::future::Future;
use std::time::Duration;

use kritaclient::{Options, Security};

use crate::Failure;

/// How a driver reaches its database.
#[derive(Clone, Debug)]
pub struct Reach {
    /// `host:port` of every node.
    pub nodes: Vec<String>,
    /// The cluster's name; Krita only.
    pub cluster_name: String,
    /// The token; Krita only.
    pub token: String,
    /// The authority as PEM; `None`: plain text.
    pub ca_pem: Option<Vec<u8>>,
}

impl Reach {
    /// As a client of Krita would.
    pub fn of(options: &Options) -> Self {
        Self {
            nodes: options.nodes.clone(),
            cluster_name: options.cluster_name.clone(),
            token: options.token.clone(),
            ca_pem: match &options.security {
                Security::Tls { ca_pem } => Some(ca_pem.clone()),
                Security::Insecure => None,
            },
        }
    }

    /// The node of one of many connections: they are spread evenly. `thread` makes threads begin elsewhere.
    fn node(&self, number: usize) -> &str {
        &self.nodes[number % self.nodes.len()]
    }
}

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connecting may take: with many clients the handshakes queue up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The answer, or a problem if it took too long.
async fn within<T>(
    future: impl Future<Output = Result<T, crate::target::Problem>>,
) -> Result<T, crate::target::Problem> {
    match tokio::time::timeout(REQUEST_TIMEOUT, future).await {
        Ok(result) => result,
        Err(_) => Err(crate::target::Problem::unknown("TIMEOUT")),
    }
}

/// Runs one thread's work on tokio, with tasks that stay on the thread.
///
/// # Errors
/// The executor cannot start, or what the work says.
pub fn on_tokio<R>(work: impl Future<Output = Result<R, Failure>>) -> Result<R, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("cannot start an executor: {error}")))?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}
