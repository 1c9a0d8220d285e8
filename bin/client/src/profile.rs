//! Profiles: folders as `init` and the demo lay them out, from which everything is taken that was not typed.
//!
//! ```text
//! admin.token   certs/ca.crt      the token and the authority: read by the client library
//! krita.yaml, or node1/krita.yaml the cluster's name and its nodes: read here
//! ```
//!
//! A profile is named by its folder, or by a name for `~/.config/krita/profiles/<name>`, or is `demo`. Without a name
//! the current folder is one, or what the demo left in it.

use std::path::{Path, PathBuf};

use kritaclient::Profile;
use kritaclient::profile::{CERTIFICATES_FOLDER, DEFAULT_PORT, DEMO_FOLDER, TOKEN_FILE};
use serde_yaml::Value;

use crate::failure::Failure;

/// The name of the demo's folder.
const DEMO: &str = "demo";

/// A node's configuration.
pub const CONFIG_FILE: &str = "krita.yaml";

/// What stands in the folder that `--profile` names, or in the current one.
///
/// # Errors
/// There is no such profile, or a file of it cannot be read.
pub fn find(name: Option<&str>, here: &Path) -> Result<Profile, Failure> {
    let folder = match name {
        None => here.to_owned(),
        Some(name) => folder_of(name, here)?,
    };
    let mut profile = Profile::of_folder(&folder)?;
    if let Some(config) = config_of(&folder) {
        let node = NodeFile::read(&config)?;
        profile.nodes = node.nodes();
        profile.cluster_name = node.text("cluster_name");
        profile.insecure = node.is_insecure();
        // Where the certificates lie elsewhere, the file says where.
        profile.certificates = profile.certificates.or_else(|| node.certificates());
    }
    Ok(profile)
}

/// The folder of a profile that was named.
fn folder_of(name: &str, here: &Path) -> Result<PathBuf, Failure> {
    let mut places = vec![here.join(name)];
    if name == DEMO {
        places.insert(0, here.join(DEMO_FOLDER));
    }
    places.extend(profiles_folder().map(|folder| folder.join(name)));
    let is_profile = |place: &&PathBuf| {
        place.join(TOKEN_FILE).is_file()
            || place.join(CERTIFICATES_FOLDER).is_dir()
            || place.join(DEMO_FOLDER).is_dir()
            || config_of(place).is_some()
    };
    places.iter().find(is_profile).cloned().ok_or_else(|| {
        let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        Failure::Usage(format!(
            "there is no profile \"{name}\": name a folder with {CONFIG_FILE}, {TOKEN_FILE} and \
             {CERTIFICATES_FOLDER}/ (looked for in {})",
            looked.join(" and ")
        ))
    })
}

/// The krita.yaml of the profile that is named, or of `here`; `None` if it has none.
///
/// # Errors
/// There is no such profile.
pub fn config(name: Option<&str>, here: &Path) -> Result<Option<PathBuf>, Failure> {
    let folder = match name {
        None => here.to_owned(),
        Some(name) => folder_of(name, here)?,
    };
    Ok(config_of(&folder))
}

/// Where named profiles lie.
fn profiles_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join("krita/profiles"))
}

/// The krita.yaml of a folder: its own, that of its first node, or the demo's.
fn config_of(folder: &Path) -> Option<PathBuf> {
    let demo = folder.join(DEMO_FOLDER);
    let places = [folder.join(CONFIG_FILE), folder.join("node1").join(CONFIG_FILE)];
    let places = places.into_iter().chain([demo.join("node1").join(CONFIG_FILE)]);
    places.into_iter().find(|path| path.is_file())
}

/// A node's krita.yaml, as far as clients care.
pub struct NodeFile {
    path: PathBuf,
    keys: Value,
}

impl NodeFile {
    /// Reads it.
    ///
    /// # Errors
    /// It cannot be read, or is no YAML.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::Refused(format!("cannot read {}: {error}", path.display())))?;
        let keys: Value = serde_yaml::from_str(&text)
            .map_err(|error| Failure::Refused(format!("{} is no YAML: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), keys })
    }

    /// A key's text; `None` if it is not there.
    pub fn text(&self, key: &str) -> Option<String> {
        match self.keys.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(truth) => Some(truth.to_string()),
            Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
        }
    }

    /// A key's path, which counts from the folder of the file.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(|path| self.beside(&path))
    }

    /// What lies beside the file.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }

    /// The nodes that it names; alone, the node itself.
    pub fn nodes(&self) -> Vec<String> {
        let peers = self.keys.get("peers").and_then(Value::as_sequence);
        let address = |peer: &Value| peer.get("address").unwrap_or(peer).as_str().map(str::to_owned);
        let nodes: Vec<String> = peers.into_iter().flatten().filter_map(address).collect();
        if !nodes.is_empty() {
            return nodes;
        }
        let port = self.text("port").and_then(|port| port.parse().ok()).unwrap_or(DEFAULT_PORT);
        vec![self.text("advertised_address").filter(|it| it != "auto").unwrap_or(format!("127.0.0.1:{port}"))]
    }

    /// Plain text was chosen.
    pub fn is_insecure(&self) -> bool {
        self.text("insecure").as_deref() == Some("true")
    }

    /// The folder of certificates that it names, if it is there.
    pub fn certificates(&self) -> Option<PathBuf> {
        self.path("tls_cert_path").filter(|folder| folder.join("ca.crt").is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NODE: &str =
        "cluster_name: \"c\"\nport: 9001\npeers:\n  - address: \"a:1\"\n  - address: \"b:2\"\n";

    #[test]
    fn what_init_and_the_demo_write_is_a_profile() {
        let here = std::env::temp_dir().join(format!("krita-cli-profile-{}", std::process::id()));
        let demo = here.join(DEMO_FOLDER);
        fs::create_dir_all(demo.join("node1")).unwrap();
        fs::create_dir_all(demo.join("certs")).unwrap();
        fs::write(demo.join("node1").join(CONFIG_FILE), NODE).unwrap();
        fs::write(demo.join("admin.token"), "demo\n").unwrap();
        fs::write(demo.join("certs/ca.crt"), "").unwrap();
        let here_text = here.display().to_string();
        for name in [None, Some("demo"), Some(here_text.as_str())] {
            let found = find(name, &here).unwrap();
            assert_eq!(found.nodes, ["a:1", "b:2"], "{name:?}");
            assert_eq!(found.cluster_name.as_deref(), Some("c"));
            assert_eq!(found.token.as_deref(), Some("demo"));
        }
        let alone = here.join("alone");
        fs::create_dir_all(alone.join("own-certs")).unwrap();
        fs::write(alone.join("own-certs/ca.crt"), "").unwrap();
        let text = "cluster_name: d\npeers: []\nport: 7\ntls_cert_path: own-certs\ninsecure: true\n";
        fs::write(alone.join(CONFIG_FILE), text).unwrap();
        let found = find(Some("alone"), &here).unwrap();
        assert_eq!((found.nodes, found.insecure), (vec!["127.0.0.1:7".to_owned()], true));
        assert_eq!(found.certificates, Some(alone.join("own-certs")));
        assert!(matches!(find(Some("nowhere"), &here), Err(Failure::Usage(_))));
        fs::write(alone.join(CONFIG_FILE), ":\n - {").unwrap();
        assert!(matches!(find(Some("alone"), &here), Err(Failure::Refused(_))));
        fs::remove_dir_all(&here).unwrap();
    }
}
