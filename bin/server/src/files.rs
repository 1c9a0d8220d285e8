//! What a node finds on disk before it starts: its configuration, certificates and token.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use krita_node::Certificates;
use krita_node::config::{self, Config, Loaded, Sources};

use crate::Failure;
use crate::arguments::NodeArguments;

/// The configuration file where none is named.
pub const CONFIG_FILE: &str = "krita.yaml";

/// The admin token's file, beside the configuration.
pub const TOKEN_FILE: &str = "admin.token";

/// Loads the configuration from the file, the environment and the flags.
///
/// # Errors
/// What is wrong and what to do, one line each.
pub fn load_config(arguments: &NodeArguments) -> Result<Loaded, Failure> {
    let path = arguments.config.clone().unwrap_or_else(|| PathBuf::from(CONFIG_FILE));
    let text = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Failure::new(format!("cannot read {}: {error}", path.display()))),
    };
    let flags = arguments.keys().map_err(Failure)?;
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let token_file = path.with_file_name(TOKEN_FILE);
    let fallbacks = token_fallback(&token_file)?;
    let load = |fallbacks| {
        let file = text.as_deref().map(|text| (path.as_path(), text));
        let memory_bytes = crate::memory::machine_bytes();
        config::load(Sources { fallbacks, file, environment: &environment, flags: &flags, memory_bytes })
    };
    // The token that lies beside the file counts only where nothing else names one.
    let alone = load(&[]);
    let loaded = match &alone {
        Ok(loaded) if loaded.config.token_digest.is_some() => alone,
        Ok(_) | Err(_) if fallbacks.is_empty() => alone,
        Ok(_) | Err(_) => load(&fallbacks),
    };
    match loaded {
        Ok(loaded) => Ok(loaded),
        // Where the environment and the flags say everything, no file is needed.
        Err(_) if text.is_none() => Err(Failure::new(format!(
            "{} does not exist. Run `init` (`cargo run --bin init`, or `kritad init`) to write one, name another \
             with --config, or see a whole cluster at once with `kritad demo`",
            path.display()
        ))),
        Err(errors) => Err(Failure::new(format!("the configuration is refused:\n{errors}"))),
    }
}

fn token_fallback(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    match fs::read_to_string(path) {
        Ok(token) => Ok(vec![("token".to_owned(), token.trim().to_owned())]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Failure::new(format!("cannot read {}: {error}", path.display()))),
    }
}

/// Reads the certificates that the configuration names; `None` for plain text.
///
/// # Errors
/// Which file is missing and what to do.
pub fn load_certificates(config: &Config) -> Result<Option<Certificates>, Failure> {
    let Some(folder) = &config.tls_cert_path else { return Ok(None) };
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(|error| {
            Failure::new(format!(
                "cannot read the certificate file {}: {error}. Run `init` to make a set, or set tls_cert_path \
                 (KRITA_TLS_CERT_PATH) to the folder with ca.crt, node.crt and node.key; --insecure does without, \
                 for trials on one machine",
                path.display()
            ))
        })
    };
    Ok(Some(Certificates { ca: read("ca.crt")?, certificate: read("node.crt")?, key: read("node.key")? }))
}

/// Writes a file that must not exist yet; `secret` ones only their owner can read.
pub(crate) fn write_new(path: &Path, text: &str, secrecy: Secrecy) -> Result<(), Failure> {
    let mode = match secrecy {
        Secrecy::Public => 0o644,
        Secrecy::Secret => 0o600,
    };
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
}

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Secrecy {
    Public,
    Secret,
}

/// Makes a folder and its parents.
pub(crate) fn make_folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path)
        .map_err(|error| Failure::new(format!("cannot make the folder {}: {error}", path.display())))
}
