//! `init`: makes an empty folder one from which `kritad` starts, with example data.
//!
//! What is there already stays as it is, so that it may be run again at any time.

use std::fs;
use std::path::Path;
use std::time::Duration;

use krita_runtime::glommio::{Signals, signals};

use crate::Failure;
use crate::arguments::{InitArguments, NodeArguments};
use crate::children::{NodeProcess, NodeStart, stop_all};
use crate::demo::command_line;
use crate::examples::{self, LocalCluster};
use crate::files::{CONFIG_FILE, TOKEN_FILE, load_config};
use crate::layout::{self, AdminToken, NodeFile, check_ports};
use crate::wait::Vain;

/// Where nodes keep their data, beside their krita.yaml.
const DATA_DIRECTORY: &str = "krita-data";

/// How long the nodes may take to become healthy.
const READY_MAX: Duration = Duration::from_secs(30);

/// Lays out the current directory.
///
/// # Errors
/// Something cannot be written, a port is in use, or the nodes do not start.
pub fn run(arguments: &InitArguments) -> Result<(), Failure> {
    let here = Path::new("");
    let ports: Vec<u16> = (0..arguments.nodes).map(|number| arguments.port + number).collect();
    let folders: Vec<String> = if ports.len() == 1 {
        vec![String::new()]
    } else {
        (1..=ports.len()).map(|number| format!("node{number}")).collect()
    };
    let is_there = |folder: &String| here.join(folder).join(CONFIG_FILE).exists();
    let has_data = |folder: &String| here.join(folder).join(DATA_DIRECTORY).exists();
    let is_new = !folders.iter().any(is_there) && !folders.iter().any(has_data);
    let loads = is_new && !arguments.no_examples;
    if loads {
        check_ports(&ports, "--port")?;
    }
    if layout::certificates(here)? {
        println!("made      certs/");
    } else {
        println!("kept      certs/");
    }
    let token = admin_token(here, &folders)?;
    for ((number, folder), port) in (1..).zip(&folders).zip(&ports) {
        let path = here.join(folder).join(CONFIG_FILE);
        if path.exists() {
            println!("kept      {}", path.display());
            continue;
        }
        let file = NodeFile {
            cluster_name: &arguments.cluster_name,
            node_id: format!("node{number}"),
            port: *port,
            ports: ports.clone(),
            data_directory: DATA_DIRECTORY,
            tls_cert_path: if folder.is_empty() { "certs" } else { "../certs" },
            token: token.digest(),
            more: "",
        };
        println!("made      {}", file.write(&here.join(folder))?.display());
    }
    if loads {
        let signals = signals().map_err(|error| Failure::new(format!("cannot take over Ctrl-C: {error}")))?;
        load_examples(arguments, &folders, &ports, &token, &signals)?;
    } else if !arguments.no_examples {
        println!("kept      the data as it is: there was a node here before");
    }
    println!("\n{}", next_steps(arguments, &folders));
    Ok(())
}

/// Makes the token, unless a krita.yaml is there that knows another one by its digest alone.
fn admin_token(here: &Path, folders: &[String]) -> Result<AdminToken, Failure> {
    let names_digest = |folder: &String| {
        let path = here.join(folder).join(CONFIG_FILE);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| line.trim_start().starts_with("token"))
    };
    if !here.join(TOKEN_FILE).exists() && folders.iter().any(names_digest) {
        return Err(Failure::new(format!(
            "{TOKEN_FILE} is gone, and {CONFIG_FILE} holds only the token's digest. Put the file back; or, for a new \
             token, remove the line token_sha256 from {CONFIG_FILE} and run init again"
        )));
    }
    let token = layout::admin_token(here)?;
    println!("{}      {TOKEN_FILE}", if token.is_new { "made" } else { "kept" });
    Ok(token)
}

/// Runs the nodes for a moment to put the example data into them.
fn load_examples(
    arguments: &InitArguments,
    folders: &[String],
    ports: &[u16],
    token: &AdminToken,
    signals: &Signals,
) -> Result<(), Failure> {
    let mut nodes = Vec::new();
    for folder in folders {
        let config = Path::new(folder).join(CONFIG_FILE);
        nodes.push(NodeProcess::start(&NodeStart {
            name: if folder.is_empty() { "the node".to_owned() } else { folder.clone() },
            config: &config,
            pid_file: None,
            output: None,
            set: &["log_level=error"],
        })?);
    }
    let certificates = Path::new(layout::CERTIFICATES_FOLDER);
    let cluster = LocalCluster { name: &arguments.cluster_name, ports, certificates, token: &token.text };
    let healthy = cluster.await_health(READY_MAX, signals, || {
        match nodes.iter_mut().find_map(|node| Some((node.newly_ended()?, node.name.clone()))) {
            Some((status, name)) => Err(Failure::new(format!("{name} has ended ({status}); see above"))),
            None => Ok(()),
        }
    });
    let loaded = match healthy {
        Ok(client) => client.and_then(|client| examples::load(&client)),
        Err(Vain::Interrupted) => Err(Failure::new("interrupted; the example data is not loaded")),
        Err(Vain::Late) => {
            Err(Failure::new("the node does not become healthy; the example data is not loaded"))
        }
    };
    let killed = stop_all(&mut nodes);
    if !killed.is_empty() {
        eprintln!("killed, as they did not stop in time: {}", killed.join(", "));
    }
    println!("loaded    {} example keys", loaded?);
    Ok(())
}

fn next_steps(arguments: &InitArguments, folders: &[String]) -> String {
    let kritad = command_line("kritad");
    // What stands in the file, which may be the user's own, rules over what this command would have written.
    let first = Path::new(&folders[0]).join(CONFIG_FILE);
    let (port, cluster_name) =
        match load_config(&NodeArguments { config: Some(first), ..NodeArguments::default() }) {
            Ok(loaded) => (loaded.config.port, loaded.config.cluster_name),
            Err(_) => (arguments.port, arguments.cluster_name.clone()),
        };
    let client = format!("{} --port {port} --cluster-name {cluster_name}", command_line("kritaclient"));
    let starts: Vec<String> = folders
        .iter()
        .map(|folder| {
            if folder.is_empty() {
                kritad.trim_end_matches(" --").to_owned()
            } else {
                format!("{kritad} --config {folder}/{CONFIG_FILE}")
            }
        })
        .collect();
    let (start, where_to) = if starts.len() == 1 {
        ("start the node", "")
    } else {
        ("start the nodes", ", each in a terminal of its own")
    };
    format!(
        "{start}{where_to}:\n  {}\nthen, in another terminal in this folder:\n  {client} get capital:France\n  \
         {client} put hello world\n  {client} health-check --all",
        starts.join("\n  ")
    )
}
