//! `kritad demo`: a cluster of real nodes on this machine, as child processes, with example data.
//!
//! ```text
//! .krita-demo/
//!   admin.token  certs/           for clients; kritaclient finds them here by itself
//!   node1/ node2/ node3/          krita.yaml, data/, kritad.log, kritad.pid
//!   examples.loaded               the example data has been loaded once
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use krita_node::config::{self, Config, Sources};
use krita_runtime::glommio::{Signals, signals};

use crate::Failure;
use crate::arguments::DemoArguments;
use crate::children::{NodeProcess, NodeStart, stop_all};
use crate::examples::{self, LocalCluster};
use crate::files::{CONFIG_FILE, Secrecy, write_new};
use crate::layout::{self, NodeFile, check_ports};
use crate::wait::{self, Vain};

const CLUSTER_NAME: &str = "krita-demo";
const DEFAULT_NODES: u16 = 3;
const DEFAULT_BASE_PORT: u16 = 8080;
const DEFAULT_DIRECTORY: &str = ".krita-demo";
const LOADED_FILE: &str = "examples.loaded";

/// How long the cluster may take to become healthy. It takes a second or two.
const READY_MAX: Duration = Duration::from_secs(30);

/// Small segments, so that a demo takes little disk; two cores, so that shards over cores are real.
const MORE_KEYS: &str = "# Small, for a demonstration.\n\
    cores: 2\n\
    segment_bytes: \"4MiB\"\n\
    checkpoint_after_bytes: \"16MiB\"\n\
    disk_reserve_bytes: \"32MiB\"\n\
    memtable_bytes: \"16MiB\"\n\
    block_cache_bytes: \"16MiB\"\n\
    filter_bytes: \"16MiB\"\n\
    value_cache_bytes: \"32MiB\"\n\
    log_file: \"kritad.log\"\n";

/// Runs the demo until Ctrl-C.
///
/// # Errors
/// It cannot start, or every node has ended.
pub fn run(arguments: &DemoArguments) -> Result<(), Failure> {
    let started = Instant::now();
    let signals = signals().map_err(|error| Failure::new(format!("cannot take over Ctrl-C: {error}")))?;
    let demo = Demo::plan(arguments)?;
    check_ports(&demo.ports, "--base-port")?;
    let token = demo.lay_out()?;
    let mut nodes = Vec::new();
    let result = demo.serve(&mut nodes, &token, &signals, started);
    println!("stopping");
    let killed = stop_all(&mut nodes);
    if !killed.is_empty() {
        eprintln!("killed, as they did not stop in time: {}", killed.join(", "));
    }
    println!("stopped; the data stays in {}", demo.directory.display());
    result
}

struct Demo {
    directory: PathBuf,
    ports: Vec<u16>,
}

impl Demo {
    /// What this run consists of: as asked, as it was before, or as usual.
    fn plan(arguments: &DemoArguments) -> Result<Self, Failure> {
        let directory = arguments.directory.clone();
        let before = ports_before(&directory)?;
        let nodes = arguments.nodes.unwrap_or(before.map_or(DEFAULT_NODES, |(_, nodes)| nodes));
        let base_port = arguments.base_port.unwrap_or(before.map_or(DEFAULT_BASE_PORT, |(port, _)| port));
        if let Some((port, count)) = before.filter(|before| *before != (base_port, nodes)) {
            return Err(Failure::new(format!(
                "{} holds a demo of {count} nodes from port {port} on. Run it as it was (without --nodes and \
                 --base-port), choose another --directory, or erase it: rm -r {}",
                directory.display(),
                shown(&directory)
            )));
        }
        Ok(Self { directory, ports: (0..nodes).map(|number| base_port + number).collect() })
    }

    fn folder(&self, number: usize) -> PathBuf {
        self.directory.join(format!("node{number}"))
    }

    fn lay_out(&self) -> Result<String, Failure> {
        layout::certificates(&self.directory)?;
        let token = layout::admin_token(&self.directory)?;
        for (number, port) in (1..).zip(&self.ports) {
            let folder = self.folder(number);
            if !folder.join(CONFIG_FILE).exists() {
                let file = NodeFile {
                    cluster_name: CLUSTER_NAME,
                    node_id: format!("node{number}"),
                    port: *port,
                    ports: self.ports.clone(),
                    data_directory: "data",
                    tls_cert_path: "../certs",
                    token: token.digest(),
                    more: MORE_KEYS,
                };
                file.write(&folder)?;
            }
        }
        Ok(token.text)
    }

    /// Starts the nodes, makes all ready, and waits for the end.
    fn serve(
        &self,
        nodes: &mut Vec<NodeProcess>,
        token: &str,
        signals: &Signals,
        started: Instant,
    ) -> Result<(), Failure> {
        println!("starting {} nodes; their state is kept in {}", self.ports.len(), self.directory.display());
        for number in 1..=self.ports.len() {
            let folder = self.folder(number);
            nodes.push(NodeProcess::start(&NodeStart {
                name: format!("node{number}"),
                config: &folder.join(CONFIG_FILE),
                pid_file: Some(folder.join("kritad.pid")),
                output: Some(folder.join("kritad.log")),
                set: &[],
            })?);
        }
        let certificates = self.directory.join(layout::CERTIFICATES_FOLDER);
        let cluster =
            LocalCluster { name: CLUSTER_NAME, ports: &self.ports, certificates: &certificates, token };
        let healthy = cluster.await_health(READY_MAX, signals, || self.fail_on_end(nodes));
        let client = match healthy {
            Ok(client) => client?,
            Err(Vain::Interrupted) => return Ok(()),
            Err(Vain::Late) => {
                return Err(Failure::new(format!(
                    "the cluster is not healthy after {} s; look into {}",
                    READY_MAX.as_secs(),
                    self.directory.join("node*/kritad.log").display()
                )));
            }
        };
        let loaded = self.directory.join(LOADED_FILE);
        if !loaded.exists() {
            let count = examples::load(&client)?;
            write_new(&loaded, "", Secrecy::Public)?;
            println!("loaded {count} example keys");
        }
        drop(client);
        println!("ready\n");
        println!("{}", self.next_steps(started));
        self.watch(nodes, signals)
    }

    /// A node that ends while the cluster starts will not get better by waiting.
    fn fail_on_end(&self, nodes: &mut [NodeProcess]) -> Result<(), Failure> {
        for (number, node) in (1..).zip(nodes) {
            if let Some(status) = node.newly_ended() {
                let log = self.folder(number).join("kritad.log");
                return Err(Failure::new(format!(
                    "{} has ended ({status}):\n{}\nAll of it: {}",
                    node.name,
                    last_lines(&log),
                    log.display()
                )));
            }
        }
        Ok(())
    }

    /// Until Ctrl-C; tells of nodes that end.
    fn watch(&self, nodes: &mut [NodeProcess], signals: &Signals) -> Result<(), Failure> {
        let mut running = nodes.len();
        let look = || {
            for (number, node) in (1..).zip(nodes.iter_mut()) {
                if let Some(status) = node.newly_ended() {
                    running -= 1;
                    println!(
                        "{} has ended ({status}). To start it again:\n  {}",
                        node.name,
                        self.restart(number)
                    );
                }
            }
            None::<()>
        };
        match wait::until(Duration::MAX, Some(signals), look) {
            Ok(()) | Err(Vain::Interrupted | Vain::Late) => Ok(()),
        }
    }

    fn restart(&self, number: usize) -> String {
        let folder = self.folder(number);
        format!(
            "{} --config {} --pid-file {}",
            command_line("kritad"),
            shown(&folder.join(CONFIG_FILE)),
            shown(&folder.join("kritad.pid"))
        )
    }

    fn next_steps(&self, started: Instant) -> String {
        let port = self.ports[0];
        let mut client =
            format!("{} --port {port} --cluster-name {CLUSTER_NAME}", command_line("kritaclient"));
        let directory = shown(&self.directory);
        // By itself kritaclient looks into this folder first, then into the demo's usual one.
        let has_own = ["admin.token", "certs"].iter().any(|name| Path::new(name).exists());
        if has_own || self.directory != Path::new(DEFAULT_DIRECTORY) {
            client = format!(
                "{client} --tls-cert-path {directory}/certs --token \"$(cat {directory}/admin.token)\""
            );
        }
        // The last one: the commands above name the first.
        let victim = self.ports.len();
        let kill_text = if victim >= 3 {
            "Each node leads some of the shards, as health-check shows. Kill one, and everything goes on"
        } else {
            "Kill a node, start it again, and find everything that was written"
        };
        let (first, last) = (port, port + self.ports.len() as u16 - 1);
        format!(
            "{} nodes serve on 127.0.0.1, ports {first} to {last}, after {:.1} s. \
             In a second terminal, in this folder:\n\
             \n\
             read a key         {client} get capital:France\n\
             write one          {client} put hello world\n\
             list some          {client} list-keys capital:\n\
             how is everyone    {client} health-check --all\n\
             \n\
             {kill_text}:\n\
             kill a leader      kill -9 $(cat {directory}/node{victim}/kritad.pid)\n\
             start it again     {}\n\
             \n\
             stop               Ctrl-C here; the data stays, and the same command brings it back\n\
             erase              rm -r {directory}",
            self.ports.len(),
            started.elapsed().as_secs_f64(),
            self.restart(victim),
        )
    }
}

/// The first port and the number of nodes of the demo that a folder holds.
fn ports_before(directory: &Path) -> Result<Option<(u16, u16)>, Failure> {
    let path = directory.join("node1").join(CONFIG_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let read = |path: &Path| -> Result<Config, Failure> {
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
        let loaded = config::load(Sources { file: Some((path, &text)), ..Sources::default() });
        loaded.map(|loaded| loaded.config).map_err(|errors| Failure::new(errors.to_string()))
    };
    let config = read(&path)?;
    let nodes = u16::try_from(config.peers.len().max(1)).unwrap_or(u16::MAX);
    Ok(Some((config.port, nodes)))
}

/// How a command of ours is typed here: through cargo if this one was, else by its path.
pub(crate) fn command_line(command: &str) -> String {
    let this = std::env::current_exe().unwrap_or_default();
    let folder = this.parent().unwrap_or(Path::new(""));
    if std::env::var_os("CARGO").is_some() {
        let profile = if folder.ends_with("release") { " --release" } else { "" };
        return format!("cargo run -q{profile} --bin {command} --");
    }
    let beside = folder.join(command);
    if beside.exists() { shown(&beside) } else { command.to_owned() }
}

/// A path as a shell takes it.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+,@".contains(letter);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// The end of a log, for a message.
pub(crate) fn last_lines(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
