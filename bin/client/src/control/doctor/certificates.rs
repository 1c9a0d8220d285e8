//! The certificate set and the token: whether they are there, fit together, have not run out, and are secret.

use std::fs;
use std::path::Path;

use kritaclient::Profile;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

use super::{Check, Subject};

/// Below this a certificate's end is close.
const DAYS_MIN: i64 = 30;

const RENEW: &str =
    "make a new set with `init` in an empty folder, put it in place on each node, and restart them in turn";

pub(super) fn checks(subject: &Subject, known: &Profile) -> Vec<Check> {
    let mut checks = match &subject.certificates {
        _ if known.insecure => vec![Check::warning(
            "certificates",
            "plain text was chosen: anybody on the path reads and changes everything",
            "for trials on one machine only",
        )],
        None => vec![Check::bad(
            "certificates",
            "none are known",
            "name their folder with --tls-cert-path, or run this where `init` was run",
        )],
        Some(folder) => of_folder(folder, subject.is_node),
    };
    checks.push(match known.token.as_deref() {
        Some(token) if !token.is_empty() => Check::good("token", "there is one"),
        Some(_) | None => Check::warning(
            "token",
            "none is known: peers can be reached, but not asked",
            "give one with KRITA_TOKEN, or run this beside admin.token",
        ),
    });
    checks
}

fn of_folder(folder: &Path, is_node: bool) -> Vec<Check> {
    let read = |name: &str| {
        let path = folder.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(Check::bad("certificates", format!("{}: {error}", path.display()), RENEW)),
        }
    };
    // What a node of another machine keeps to itself is not missed here.
    let has_node = is_node || folder.join("node.crt").exists();
    let ca = match read("ca.crt") {
        Ok(ca) => ca,
        Err(check) => return vec![check],
    };
    let mut checks = vec![expiry(&folder.join("ca.crt"), &ca)];
    if !has_node {
        return checks;
    }
    let (certificate, key) = match (read("node.crt"), read("node.key")) {
        (Ok(certificate), Ok(key)) => (certificate, key),
        (certificate, key) => {
            checks.extend(certificate.err().into_iter().chain(key.err()));
            return checks;
        }
    };
    checks.push(expiry(&folder.join("node.crt"), &certificate));
    checks.push(match fits(&ca, &certificate, &key) {
        Ok(()) => Check::good("certificates", "node.crt is signed by ca.crt, and node.key is its key"),
        Err(reason) => Check::bad("certificates", reason, RENEW),
    });
    for name in ["node.key", "ca.key"] {
        checks.extend(secrecy(&folder.join(name)));
    }
    checks
}

fn expiry(path: &Path, pem: &[u8]) -> Check {
    let shown = path.display();
    let der = match CertificateDer::from_pem_slice(pem) {
        Ok(der) => der,
        Err(error) => return Check::bad("certificates", format!("{shown} is no PEM: {error}"), RENEW),
    };
    match parse_x509_certificate(&der) {
        Ok((_, certificate)) => judged(&shown.to_string(), &certificate, ASN1Time::now()),
        Err(error) => Check::bad("certificates", format!("{shown} does not parse: {error}"), RENEW),
    }
}

fn judged(shown: &str, certificate: &X509Certificate<'_>, now: ASN1Time) -> Check {
    let validity = certificate.validity();
    let days = (validity.not_after.timestamp() - now.timestamp()).div_euclid(24 * 60 * 60);
    let until = validity.not_after;
    if now < validity.not_before {
        let found = format!("{shown} is valid only from {} on", validity.not_before);
        return Check::bad("certificates", found, "set the clock, or wait");
    }
    match days {
        ..0 => Check::bad("certificates", format!("{shown} ran out on {until}"), RENEW),
        0..DAYS_MIN => {
            Check::warning("certificates", format!("{shown} runs out in {days} days ({until})"), RENEW)
        }
        DAYS_MIN.. => Check::good("certificates", format!("{shown} is valid for {days} days, until {until}")),
    }
}

/// Whether a node can show this certificate with this key to those who trust this authority.
fn fits(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<(), String> {
    let ca = CertificateDer::from_pem_slice(ca).map_err(|error| format!("ca.crt: {error}"))?;
    let leaf = CertificateDer::from_pem_slice(certificate).map_err(|error| format!("node.crt: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("node.key: {error}"))?;
    let (_, authority) = parse_x509_certificate(&ca).map_err(|error| format!("ca.crt: {error}"))?;
    let (_, parsed) = parse_x509_certificate(&leaf).map_err(|error| format!("node.crt: {error}"))?;
    parsed
        .verify_signature(Some(authority.public_key()))
        .map_err(|_| "node.crt is not signed by ca.crt".to_owned())?;
    let key = any_supported_type(&key).map_err(|error| format!("node.key: {error}"))?;
    let matching = CertifiedKey::new(vec![leaf.clone().into_owned()], key).keys_match();
    matching.map_err(|_| "node.key is not the key of node.crt".to_owned())
}

#[cfg(unix)]
fn secrecy(path: &Path) -> Option<Check> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        let found = format!("{} can be read by others (mode {mode:o})", path.display());
        Check::warning("certificates", found, format!("chmod 600 {}", path.display()))
    })
}

#[cfg(not(unix))]
fn secrecy(_path: &Path) -> Option<Check> {
    None
}
