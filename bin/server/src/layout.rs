//! What `demo` and `init` lay out: certificates, the admin token, and a krita.yaml for each node.
//!
//! Nothing that exists is ever replaced: it may be in use.

use std::fs;
use std::path::{Path, PathBuf};

use krita_net::certificates;
use krita_node::auth::{TOKEN_RANDOM_BYTES, Token, TokenDigest};

use crate::Failure;
use crate::files::{CONFIG_FILE, Secrecy, TOKEN_FILE, make_folder, write_new};

/// The folder of certificates.
pub(crate) const CERTIFICATES_FOLDER: &str = "certs";

/// Makes a certificate set in `folder/certs`, or leaves the one that is there. True if it was made.
pub(crate) fn certificates(folder: &Path) -> Result<bool, Failure> {
    let certs = folder.join(CERTIFICATES_FOLDER);
    let names = ["ca.crt", "node.crt", "node.key"];
    let missing: Vec<&str> = names.into_iter().filter(|name| !certs.join(name).exists()).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    if missing.len() < names.len() {
        return Err(Failure::new(format!(
            "{} lacks {}: put it back, or move the folder away so that a whole new set can be made",
            certs.display(),
            missing.join(", ")
        )));
    }
    let set = certificates::generate(&[])
        .map_err(|error| Failure::new(format!("cannot make certificates: {error}")))?;
    make_folder(&certs)?;
    write_new(&certs.join("ca.key"), &set.ca_key, Secrecy::Secret)?;
    write_new(&certs.join("ca.crt"), &set.ca_crt, Secrecy::Public)?;
    write_new(&certs.join("node.key"), &set.node_key, Secrecy::Secret)?;
    write_new(&certs.join("node.crt"), &set.node_crt, Secrecy::Public)?;
    Ok(true)
}

/// The admin token of a folder.
pub(crate) struct AdminToken {
    pub(crate) text: String,
    pub(crate) is_new: bool,
}

impl AdminToken {
    pub(crate) fn digest(&self) -> TokenDigest {
        TokenDigest::of(&self.text)
    }
}

/// Makes `folder/admin.token`, or reads the one that is there.
pub(crate) fn admin_token(folder: &Path) -> Result<AdminToken, Failure> {
    let path = folder.join(TOKEN_FILE);
    if path.exists() {
        let text = fs::read_to_string(&path)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
        return Ok(AdminToken { text: text.trim().to_owned(), is_new: false });
    }
    let mut random = [0; TOKEN_RANDOM_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::new(format!("the system gives no random numbers: {error}")))?;
    let text = Token::generate(&random).reveal().to_owned();
    write_new(&path, &format!("{text}\n"), Secrecy::Secret)?;
    Ok(AdminToken { text, is_new: true })
}

/// What stands in a node's krita.yaml.
pub(crate) struct NodeFile<'a> {
    pub(crate) cluster_name: &'a str,
    pub(crate) node_id: String,
    pub(crate) port: u16,
    /// Ports of all nodes on this machine; one: the node is alone.
    pub(crate) ports: Vec<u16>,
    pub(crate) data_directory: &'a str,
    pub(crate) tls_cert_path: &'a str,
    pub(crate) token: TokenDigest,
    /// Further lines, as they stand in the file.
    pub(crate) more: &'a str,
}

impl NodeFile<'_> {
    /// Writes it into a folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<PathBuf, Failure> {
        make_folder(folder)?;
        let path = folder.join(CONFIG_FILE);
        write_new(&path, &self.text(), Secrecy::Public)?;
        Ok(path)
    }

    fn text(&self) -> String {
        let peers = if self.ports.len() > 1 {
            let lines = self.ports.iter().map(|port| format!("  - address: \"127.0.0.1:{port}\"\n"));
            format!(
                "# All nodes of the cluster, this one included; the same list on each.\npeers:\n{}",
                lines.collect::<String>()
            )
        } else {
            "# No peers: this node is a cluster by itself.\npeers: []\n".to_owned()
        };
        format!(
            "# A node of Krita. All keys: docs/configuration.md. KRITA_* variables and flags win over this file.\n\
             cluster_name: \"{}\"\n\
             node_id: \"{}\"\n\
             {peers}\
             # Paths are relative to this file.\n\
             data_directory: \"{}\"\n\
             port: {}\n\
             # ca.crt, node.crt and node.key.\n\
             tls_cert_path: \"{}\"\n\
             # SHA-256 of the token in admin.token; the token itself is not needed here.\n\
             token_sha256: \"{}\"\n\
             {}",
            self.cluster_name,
            self.node_id,
            self.data_directory,
            self.port,
            self.tls_cert_path,
            self.token.to_hex(),
            self.more,
        )
    }
}

/// Fails if something listens on one of the ports already.
pub(crate) fn check_ports(ports: &[u16], flag: &str) -> Result<(), Failure> {
    for port in ports {
        if let Err(error) = std::net::TcpListener::bind(("127.0.0.1", *port)) {
            return Err(Failure::new(format!(
                "port {port} cannot be used ({error}): another program listens there, perhaps another node or demo. \
                 Stop it, or choose other ports with {flag}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use krita_node::config::{Sources, load};

    #[test]
    fn what_is_written_is_a_valid_configuration() {
        for ports in [vec![8080], vec![8080, 8081, 8082]] {
            let file = NodeFile {
                cluster_name: "mycluster",
                node_id: "node1".to_owned(),
                port: 8080,
                ports: ports.clone(),
                data_directory: "data",
                tls_cert_path: "../certs",
                token: TokenDigest::of("x"),
                more: "cores: 2\n",
            };
            let text = file.text();
            let sources =
                Sources { file: Some((Path::new("node1/krita.yaml"), &text)), ..Sources::default() };
            let config = load(sources).unwrap().config;
            assert_eq!(config.peers.len(), if ports.len() == 1 { 0 } else { 3 });
            assert_eq!(config.data_directory, Path::new("node1/data"));
            assert_eq!((config.cores, config.token_digest), (Some(2), Some(TokenDigest::of("x"))));
        }
    }
}
