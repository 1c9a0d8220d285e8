//! The command line of `krita-bench`.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use krita_net::TlsConfig;

use crate::Failure;

/// Measures a cluster: a closed loop of clients, each with one request in flight over a connection of its own.
#[derive(Parser, Debug)]
#[command(name = "krita-bench", version)]
pub struct BenchArguments {
    /// What the clients do.
    #[arg(value_enum)]
    pub(crate) workload: Workload,
    /// Any node of the cluster.
    #[arg(long, env = "KRITA_HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The node's port.
    #[arg(long, env = "KRITA_PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// The cluster's name.
    #[arg(long, env = "KRITA_CLUSTER_NAME", default_value = "krita-demo")]
    pub(crate) cluster_name: String,
    /// Without it, admin.token here or in .krita-demo is used.
    #[arg(long, env = "KRITA_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The folder with ca.crt, node.crt and node.key; without it, certs here or in .krita-demo.
    #[arg(long, env = "KRITA_TLS_CERT_PATH", value_name = "FOLDER")]
    pub(crate) tls_cert_path: Option<PathBuf>,
    /// Plain text instead of TLS.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Numbers of clients, measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256",
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) clients: Vec<u32>,
    /// How long each is measured, after a second to warm up.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,
    /// Bytes of each value.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub(crate) value_bytes: u32,
    /// How many keys there are.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10_000..=10_000_000))]
    pub(crate) keys: u32,
    /// Process ids of all servers, for their processor time; without it, those of the demo here.
    #[arg(long, value_delimiter = ',')]
    pub(crate) server_pids: Vec<u32>,
    /// How results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Workload {
    /// Replace values.
    Put,
    /// Read values.
    Get,
    /// As many of each.
    Mixed,
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Output {
    /// A table.
    Text,
    /// One JSON value.
    Json,
}

const DEMO_FOLDER: &str = ".krita-demo";

impl BenchArguments {
    pub(super) fn token(&self) -> Result<String, Failure> {
        if let Some(token) = &self.token {
            return Ok(token.clone());
        }
        let files = [PathBuf::from("admin.token"), Path::new(DEMO_FOLDER).join("admin.token")];
        match files.iter().find(|file| file.is_file()) {
            None => Ok(String::new()),
            Some(file) => fs::read_to_string(file)
                .map(|token| token.trim().to_owned())
                .map_err(|error| Failure::new(format!("cannot read {}: {error}", file.display()))),
        }
    }

    /// The folder of certificates; `None` = plain text.
    pub(super) fn certificates(&self) -> Result<Option<PathBuf>, Failure> {
        if self.insecure {
            return Ok(None);
        }
        let folders = [PathBuf::from("certs"), Path::new(DEMO_FOLDER).join("certs")];
        let found = || folders.into_iter().find(|folder| folder.join("ca.crt").is_file());
        self.tls_cert_path.clone().or_else(found).map(Some).ok_or_else(|| {
            Failure::new("no certificates: give --tls-cert-path, or --insecure for a cluster in plain text")
        })
    }

    pub(super) fn tls(&self, folder: &Path) -> Result<TlsConfig, Failure> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))
        };
        TlsConfig::from_pem(&read("ca.crt")?, &read("node.crt")?, &read("node.key")?)
            .map_err(|error| Failure::new(error.to_string()))
    }

    /// The servers' processes: as given, or those of the demo here; none: processor time is not shown.
    pub(super) fn server_pids(&self) -> Result<Vec<u32>, Failure> {
        if !self.server_pids.is_empty() {
            return Ok(self.server_pids.clone());
        }
        let Ok(folders) = fs::read_dir(DEMO_FOLDER) else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        for folder in folders.flatten() {
            let Ok(text) = fs::read_to_string(folder.path().join("kritad.pid")) else { continue };
            let pid = text.trim().parse();
            pids.push(
                pid.map_err(|_| Failure::new(format!("{} has no process id", folder.path().display())))?,
            );
        }
        Ok(pids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        BenchArguments::command().debug_assert();
        let line = "krita-bench --clients 1,64,256 --seconds 10 --value-bytes 100 put -o json";
        let arguments = BenchArguments::parse_from(line.split(' '));
        assert_eq!((arguments.clients, arguments.output), (vec![1, 64, 256], Output::Json));
    }
}
