//! TLS 1.3: the configuration of a node, made from the three files of its certificate folder, and what a finished
//! handshake says about the other side.
//!
//! A client is verified only if it shows a certificate; a node must show one (see [`certificate_is_a_nodes`]).
//! rustls takes its randomness and the date from the system: nothing of this runs in the simulator.

use std::sync::Arc;

use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use krita_proto::frame::ALPN;
use krita_proto::routing::server_name_for_core;
use rustls::client::{Resumption, verify_server_name};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// The names of the files in a certificate folder.
pub const CA_CERTIFICATE_FILE: &str = "ca.crt";
/// The node's certificate chain.
pub const NODE_CERTIFICATE_FILE: &str = "node.crt";
/// The node's private key.
pub const NODE_KEY_FILE: &str = "node.key";

/// The ALPN names of the HTTP front doors.
pub(crate) const ALPN_HTTP2: &[u8] = b"h2";
pub(crate) const ALPN_HTTP1: &[u8] = b"http/1.1";

/// A certificate set that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not the PEM that it should be.
    #[error("{file}: {source}")]
    Pem {
        /// Which file of the folder.
        file: &'static str,
        /// What is wrong with it.
        source: rustls_pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    /// The certificates and the key do not fit together, or are not supported.
    #[error("the certificates cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The authority cannot be used to verify clients.
    #[error("{CA_CERTIFICATE_FILE} cannot verify clients: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// An address to connect to names no host that TLS could verify.
    #[error("{0:?} is no host that a certificate could name")]
    HostName(String),
}

/// TLS as a node uses it, both sides. Cheap to clone. Each core makes its own, so that cores share no lock.
#[derive(Clone)]
pub struct TlsConfig {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl TlsConfig {
    /// From the content of `ca.crt`, `node.crt` and `node.key`.
    pub fn from_pem(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let roots = Arc::new(roots(ca)?);
        let chain = certificates(NODE_CERTIFICATE_FILE, certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|source| TlsError::Pem { file: NODE_KEY_FILE, source })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        server.alpn_protocols = vec![ALPN.to_vec(), ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        // Nodes reconnect rarely, and every node has the same name for its core 0: a ticket of one node would be
        // shown to another.
        client.resumption = Resumption::disabled();
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.server.clone().into()
    }

    pub(crate) fn connector(&self) -> TlsConnector {
        self.client.clone().into()
    }
}

/// A client's configuration that verifies servers against `ca` (the content of `ca.crt`) and shows no certificate.
pub fn client_config(ca: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(client))
}

fn certificates(file: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let parsed = parsed.map_err(|source| TlsError::Pem { file, source })?;
    if parsed.is_empty() { Err(TlsError::Empty(file)) } else { Ok(parsed) }
}

fn roots(ca: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CA_CERTIFICATE_FILE, ca)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// The name to verify and to ask for: a core's, or, for any core, the host of `address` (`host:port`).
pub(crate) fn server_name(address: &str, core: Option<u16>) -> Result<ServerName<'static>, TlsError> {
    let name = match core {
        Some(core) => server_name_for_core(core),
        None => {
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            host.trim_start_matches('[').trim_end_matches(']').to_owned()
        }
    };
    ServerName::try_from(name.clone()).map_err(|_| TlsError::HostName(name))
}

/// Whether the other side of a finished handshake is a node: it has shown a certificate of our authority that is
/// valid for the names of cores. (The chain has been verified in the handshake.)
pub(crate) fn peer_is_node<S>(session: &TlsStream<S>) -> bool {
    let (_, connection) = session.get_ref();
    let first = connection.peer_certificates().and_then(|chain| chain.first());
    first.is_some_and(certificate_is_a_nodes)
}

/// Whether a certificate is valid for the names of cores, which only nodes' certificates are.
pub fn certificate_is_a_nodes(certificate: &CertificateDer<'_>) -> bool {
    let Ok(name) = ServerName::try_from(server_name_for_core(0)) else {
        return false;
    };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| verify_server_name(&certificate, &name).is_ok())
}
