//! Makes the certificate set of a cluster: a certificate authority, and a certificate for its nodes.
//!
//! One node certificate serves every node of a small or demonstration cluster; it names the hosts it was made for,
//! this machine, and the names of cores (`*.node.krita.internal`), by which clients ask for a core in TLS. Only
//! holders of such a certificate count as nodes. The keys come from the system's randomness, not from a runtime:
//! this runs in commands, never on a core.

use krita_proto::routing::CORE_DOMAIN;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// A certificate set as PEM text, by the names of its files.
#[derive(Clone)]
pub struct CertificateSet {
    /// `ca.crt`: what everyone trusts.
    pub ca_crt: String,
    /// `ca.key`: signs further certificates; keep it off the nodes.
    pub ca_key: String,
    /// `node.crt`.
    pub node_crt: String,
    /// `node.key`.
    pub node_key: String,
}

/// Makes a certificate set for nodes that are reached by `hosts` (names and IP addresses); this machine's own
/// (localhost, 127.0.0.1, ::1) are always among them. Valid from 2024 until 2124.
///
/// Fails if a host is not a valid DNS name.
pub fn generate(hosts: &[String]) -> Result<CertificateSet, rcgen::Error> {
    let mut ca = parameters("Krita certificate authority", &[])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

    let mut names =
        vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into(), format!("*.{CORE_DOMAIN}")];
    for host in hosts {
        if !names.contains(host) {
            names.push(host.clone());
        }
    }
    let mut node = parameters("Krita node", &names)?;
    node.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    node.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    node.use_authority_key_identifier_extension = true;
    let node_key = KeyPair::generate()?;
    let node_crt = node.signed_by(&node_key, &issuer)?;

    Ok(CertificateSet {
        ca_crt: issuer.pem(),
        ca_key: issuer.key().serialize_pem(),
        node_crt: node_crt.pem(),
        node_key: node_key.serialize_pem(),
    })
}

/// The common name of the authority and of its certificates must differ: curl and gRPC take equal ones for a
/// self-signed certificate.
fn parameters(common_name: &str, names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(names)?;
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Krita");
    distinguished.push(DnType::CommonName, common_name);
    parameters.distinguished_name = distinguished;
    parameters.not_before = date_time_ymd(2024, 1, 1);
    parameters.not_after = date_time_ymd(2124, 1, 1);
    Ok(parameters)
}
