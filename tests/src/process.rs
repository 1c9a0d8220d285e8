//! Real `kritad` processes on loopback: started in directories of their own, killed by id, always cleaned up.
//!
//! A [`Cluster`] lets `kritad demo` lay out its folders once (`node1/` and so on, `certs/`, `admin.token`), then
//! runs each node as a child of the test, so that a test may kill and restart it. Only processes that were
//! started here are ever signalled. Clusters of one test program run one at a time: two cores are not many.
//!
//! The commands are those that were built next to the test program; `cargo xtask test` builds them first.

#![allow(clippy::disallowed_methods, reason = "this is the one place where tests touch the real machine")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kritaclient::Options;
use kritaclient::blocking::Client;

/// How long the start of a cluster may take, and its forming.
const START_MAX: Duration = Duration::from_secs(60);

/// How long any one command may take before it counts as hanging.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const POLL_EVERY: Duration = Duration::from_millis(10);

/// Waits, for at most `limit`, until `look` finds something. The only way to wait in tests.
///
/// # Errors
/// If the time is over; the text names what was waited for.
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T, String> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if started.elapsed() >= limit {
            return Err(format!("waited {limit:?} in vain until {what}"));
        }
        thread::sleep(POLL_EVERY);
    }
}

/// Real time for a [`crate::history::Recorder`].
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// What has passed.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// What has passed, in nanoseconds.
    pub fn nanoseconds(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).expect("tests end within centuries")
    }
}

/// The path of one of Krita's commands, built with the same profile as this test.
///
/// # Panics
/// If it has not been built.
pub fn command_path(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let profile = test.parent().and_then(Path::parent).expect("a test stands in target/<profile>/deps");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is missing: build it with `cargo build --profile test --workspace --bins`, or use \
         `cargo xtask test`",
        path.display()
    );
    path
}

/// A directory for one test: removed at its end, kept (and named) if the test fails.
#[derive(Debug)]
pub struct TestDirectory(PathBuf);

impl TestDirectory {
    /// A fresh directory.
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("krita-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("the directory for temporary files is writable");
        Self(path)
    }

    /// This one, which is there already.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("kept for inspection: {}", self.0.display());
        } else {
            // Nothing depends on it any more; the system clears temporary files sooner or later.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// The first of `count` neighbouring ports of loopback that are free at this moment.
pub fn free_ports(count: u16) -> u16 {
    // Below the ports that the system gives to outgoing connections; programs that run at once start apart.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = (std::process::id() % 500) as u16 * 20;
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let candidates = (0..600).map(|_| 20_000 + (spread + NEXT.fetch_add(count, Ordering::Relaxed)) % 12_000);
    candidates
        .into_iter()
        .find(|&base| (base..base + count).all(free))
        .expect("loopback has free ports between 20000 and 32000")
}

/// What a command answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its exit code; `None` if a signal ended it, or if it hung and was ended.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// Stdout as text without the line feed at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// Fails the test unless the exit code is this one.
    ///
    /// # Panics
    /// If it is another.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}, stderr: {}", self.text(), self.stderr);
        self
    }
}

/// Runs a command to its end, with `input` on its stdin, within a minute.
pub fn run(command: &mut Command, input: &[u8]) -> Answer {
    let started = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin was piped");
    let mut stdout = child.stdout.take().expect("stdout was piped");
    let mut stderr = child.stderr.take().expect("stderr was piped");
    // Three pipes at once: none of them may fill up and block the others.
    thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        let output = scope.spawn(move || read_all(&mut stdout));
        let errors = scope.spawn(move || read_all(&mut stderr));
        let ended = wait_until("the command ends", COMMAND_MAX, || child.try_wait().ok().flatten());
        if ended.is_err() {
            end(&mut child);
        }
        let code = ended.ok().and_then(|status| status.code());
        let stdout = output.join().expect("reading does not panic");
        let stderr = errors.join().expect("reading does not panic");
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Answer { code, stdout, stderr, took: started.elapsed() }
    })
}

fn read_all(pipe: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What came before an error is still worth showing.
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}

/// A cluster of real nodes on loopback. Dropping it ends them; if the test fails, their logs are printed.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Option<Child>>,
    /// Where each node keeps its data.
    data: Vec<PathBuf>,
    /// Settings that all nodes are started with, as variables.
    settings: Vec<(String, String)>,
    base_port: u16,
    cluster_name: String,
    token: String,
    // After the nodes: they write into it.
    directory: TestDirectory,
    _alone: MutexGuard<'static, ()>,
}

static ONE_CLUSTER_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Cluster {
    /// Lays out, starts and awaits a cluster of this many nodes.
    ///
    /// # Panics
    /// If it does not become healthy in time.
    pub fn start(nodes: u16) -> Self {
        Self::start_in(TestDirectory::new("cluster"), nodes, &[])
    }

    /// The same in a directory of the test's choice, with settings (`("KRITA_...", value)`) of its own.
    ///
    /// # Panics
    /// If it does not become healthy in time.
    pub fn start_in(directory: TestDirectory, nodes: u16, settings: &[(&str, &str)]) -> Self {
        let mut cluster = Self::lay_out(directory, nodes, nodes, settings);
        for node in 1..=nodes {
            cluster.start_node(node);
        }
        cluster.await_health(START_MAX);
        cluster
    }

    /// A cluster of one node with this many empty shards, to which nodes may be added: see [`Cluster::add_node`].
    ///
    /// # Panics
    /// If it does not become healthy in time.
    pub fn start_alone(shards: u32, nodes_max: u16) -> Self {
        let shards = shards.to_string();
        let mut cluster =
            Self::lay_out(TestDirectory::new("growth"), 1, nodes_max, &[("KRITA_SHARDS", &shards)]);
        // What the demo has made there has more shards.
        let fresh = cluster.directory.path().join("node1/fresh");
        cluster.set_data_directory(1, fresh);
        cluster.start_node(1);
        cluster.await_health(START_MAX);
        cluster
    }

    /// Lays out folders, with ports for this many nodes; starts nothing.
    fn lay_out(directory: TestDirectory, nodes: u16, nodes_max: u16, settings: &[(&str, &str)]) -> Self {
        // A test that failed leaves nothing behind that another could trip over.
        let alone = ONE_CLUSTER_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let base_port = free_ports(nodes_max);
        lay_out(directory.path(), nodes, base_port);
        let configuration = read_text(&directory.path().join("node1/krita.yaml"));
        let cluster_name = configuration
            .lines()
            .find_map(|line| line.strip_prefix("cluster_name:"))
            .map(|name| name.trim().trim_matches('"').to_owned())
            .expect("krita.yaml names the cluster");
        let token = read_text(&directory.path().join("admin.token")).trim().to_owned();
        Self {
            nodes: (0..nodes).map(|_| None).collect(),
            data: (1..=nodes).map(|node| directory.path().join(format!("node{node}/data"))).collect(),
            settings: settings.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            base_port,
            cluster_name,
            token,
            directory,
            _alone: alone,
        }
    }

    /// Starts a further node, which joins the cluster by way of the first one; its number here.
    ///
    /// # Panics
    /// If its folder cannot be written.
    pub fn add_node(&mut self) -> u16 {
        let node = u16::try_from(self.nodes.len() + 1).expect("clusters are small");
        let first = read_text(&self.directory.path().join("node1/krita.yaml"));
        let is_shared = |line: &&str| {
            ["node_id:", "port:", "peers:", "  - address:"].iter().all(|key| !line.starts_with(key))
        };
        let shared: Vec<&str> = first.lines().filter(is_shared).collect();
        let text = format!(
            "{}\nnode_id: \"node{node}\"\nport: {}\njoin:\n  - address: \"{}\"\n",
            shared.join("\n"),
            self.port(node),
            self.address(1)
        );
        let folder = self.directory.path().join(format!("node{node}"));
        fs::create_dir_all(&folder).expect("the test's directory is writable");
        fs::write(folder.join("krita.yaml"), text).expect("the test's directory is writable");
        self.nodes.push(None);
        self.data.push(folder.join("data"));
        self.start_node(node);
        node
    }

    /// The numbers of all nodes, from 1.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        1..=u16::try_from(self.nodes.len()).expect("clusters are small")
    }

    /// A node's port.
    pub fn port(&self, node: u16) -> u16 {
        self.base_port + node - 1
    }

    /// A node's address as clients name it.
    pub fn address(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.port(node))
    }

    /// How the Rust client reaches the cluster, as its administrator, through any of its nodes.
    ///
    /// # Panics
    /// If the certificates are gone.
    pub fn client_options(&self) -> Options {
        let nodes = self.numbers().map(|node| self.address(node));
        let options = Options::new(&self.cluster_name, nodes).token(&self.token);
        options.certificates(self.certificates()).expect("the demo has made certificates")
    }

    /// The name that guards against talking to the wrong cluster.
    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// The administrator's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The folder with the certificates that clients need.
    pub fn certificates(&self) -> PathBuf {
        self.directory.path().join("certs")
    }

    /// Where a node keeps its data.
    pub fn data_directory(&self, node: u16) -> &Path {
        &self.data[usize::from(node) - 1]
    }

    /// Lets a node keep its data elsewhere from its next start on. What is there is not moved.
    pub fn set_data_directory(&mut self, node: u16, directory: PathBuf) {
        self.data[usize::from(node) - 1] = directory;
    }

    /// Starts a node that is not running.
    ///
    /// # Panics
    /// If it is running.
    pub fn start_node(&mut self, node: u16) {
        let folder = self.directory.path().join(format!("node{node}"));
        let mut command = Command::new(command_path("kritad"));
        command.current_dir(&folder).stdin(Stdio::null());
        command.env("KRITA_TLS_CERT_PATH", self.certificates());
        command.env("KRITA_DATA_DIRECTORY", self.data_directory(node));
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        log_to(&mut command, &folder.join("test.log"));
        let slot = &mut self.nodes[usize::from(node) - 1];
        assert!(slot.is_none(), "node {node} is running");
        *slot = Some(command.spawn().expect("kritad starts"));
    }

    /// Ends a node at once, as a crash of its process would (SIGKILL).
    ///
    /// # Panics
    /// If it is not running.
    pub fn kill(&mut self, node: u16) {
        let mut child = self.nodes[usize::from(node) - 1].take().expect("the node is running");
        let status = child.try_wait().expect("a child can be asked");
        assert!(status.is_none(), "node {node} had ended by itself: {status:?}");
        end(&mut child);
    }

    /// Asks a node to stop (SIGTERM), and waits for it; its exit code.
    ///
    /// # Panics
    /// If it is not running, or does not stop in time.
    pub fn stop(&mut self, node: u16, limit: Duration) -> Option<i32> {
        let slot = &mut self.nodes[usize::from(node) - 1];
        let child = slot.as_mut().expect("the node is running");
        signal("TERM", &child.id().to_string());
        let ended = wait_until("the node stops", limit, || child.try_wait().ok().flatten());
        let status = ended.unwrap_or_else(|error| panic!("{error}"));
        *slot = None;
        status.code()
    }

    /// The exit code of a node that has ended by itself; `Some(None)` if a signal ended it. It may then be started
    /// again.
    pub fn ended(&mut self, node: u16) -> Option<Option<i32>> {
        let slot = &mut self.nodes[usize::from(node) - 1];
        let status = slot.as_mut()?.try_wait().ok().flatten()?;
        *slot = None;
        Some(status.code())
    }

    /// Whether a node's process runs.
    pub fn is_running(&mut self, node: u16) -> bool {
        let child = self.nodes[usize::from(node) - 1].as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits until all nodes call themselves healthy.
    ///
    /// # Panics
    /// If they do not within `limit`.
    pub fn await_health(&self, limit: Duration) {
        let mut last = None;
        let healthy = wait_until("all nodes are healthy", limit, || {
            let answer = self.client(1, &["health-check", "--all"]);
            let healthy = (answer.code == Some(0)).then_some(());
            last = Some(answer);
            healthy
        });
        healthy.unwrap_or_else(|error| panic!("{error}; the last answer: {last:?}"));
    }

    /// Waits until all replicas of each shard have applied the same entries, and asserts that they hold the same.
    ///
    /// # Panics
    /// If they do not within `limit`, or differ.
    pub fn await_equal_replicas(&self, client: &Client, limit: Duration) {
        let mut last = BTreeMap::new();
        let equal = wait_until("all replicas have applied the same", limit, || {
            // Shard to the states of its replicas, as (applied index, hash).
            let mut states: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
            for node in self.numbers() {
                for shard in client.node_status(&self.address(node)).ok()?.shards {
                    states.entry(shard.shard).or_default().push((shard.applied_index, shard.state_hash));
                }
            }
            let complete = states.values().all(|states| states.len() == self.nodes.len());
            let applied_the_same =
                states.values().all(|states| states.iter().all(|state| state.0 == states[0].0));
            let done = complete && applied_the_same && !states.is_empty();
            last = states;
            done.then_some(())
        });
        equal.unwrap_or_else(|error| panic!("{error}; the last states: {last:?}"));
        let differing: Vec<_> =
            last.iter().filter(|(_, states)| states.iter().any(|state| *state != states[0])).collect();
        assert!(differing.is_empty(), "replicas differ: {differing:?}");
    }

    /// Runs `kritaclient` against one node.
    pub fn client(&self, node: u16, arguments: &[&str]) -> Answer {
        run(&mut self.client_command(node, &self.cluster_name, &self.token, arguments), &[])
    }

    /// Runs `kritactl` against one node.
    pub fn control(&self, node: u16, arguments: &[&str]) -> Answer {
        let mut command = Command::new(command_path("kritactl"));
        command.args(["--host", "127.0.0.1", "--port", &self.port(node).to_string()]);
        command.args(["--cluster-name", &self.cluster_name, "--token", &self.token]).args(arguments);
        command.env("KRITA_TLS_CERT_PATH", self.certificates());
        run(&mut command, &[])
    }

    /// Runs `kritaclient` against one node, with `input` on its stdin.
    pub fn client_with_input(&self, node: u16, arguments: &[&str], input: &[u8]) -> Answer {
        run(&mut self.client_command(node, &self.cluster_name, &self.token, arguments), input)
    }

    /// The command line of `kritaclient`, with a cluster name and a token that may be wrong.
    pub fn client_command(&self, node: u16, cluster: &str, token: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(command_path("kritaclient"));
        command.args(["--host", "127.0.0.1", "--port", &self.port(node).to_string()]);
        command.args(["--cluster-name", cluster, "--token", token]).args(arguments);
        command.env("KRITA_TLS_CERT_PATH", self.certificates());
        command
    }

    fn print_logs(&self) {
        for node in self.numbers() {
            let folder = self.directory.path().join(format!("node{node}"));
            for name in ["test.log", "kritad.log"] {
                print_end(&folder.join(name), 60);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            end(child);
        }
        if thread::panicking() {
            self.print_logs();
        }
    }
}

/// Lets `kritad demo` write folders, certificates and token, load its examples, and stop.
fn lay_out(directory: &Path, nodes: u16, base_port: u16) {
    let log = directory.join("demo.log");
    let mut command = Command::new(command_path("kritad"));
    command.args(["demo", "--nodes", &nodes.to_string(), "--base-port", &base_port.to_string()]);
    command.arg("--directory").arg(directory).current_dir(directory).stdin(Stdio::null());
    // A group of its own: whatever becomes of it, its nodes go with it.
    command.process_group(0);
    log_to(&mut command, &log);
    let mut demo = command.spawn().expect("kritad starts");
    let ready = wait_until("the demo is ready", START_MAX, || {
        let ended = demo.try_wait().ok().flatten().map(|status| Err(format!("the demo ended: {status}")));
        let ready = read_text(&log).lines().any(|line| line.trim() == "ready");
        ended.or(ready.then_some(Ok(())))
    });
    let ready = ready.and_then(|ready| ready);
    // As Ctrl-C does; then, whether it obeyed or not, nothing of it may be left.
    signal("INT", &demo.id().to_string());
    let stopped = wait_until("the demo stops", START_MAX, || demo.try_wait().ok().flatten());
    signal("KILL", &format!("-{}", demo.id()));
    end(&mut demo);
    if let Err(error) = ready.and(stopped.map(drop)) {
        print_end(&log, 100);
        panic!("{error}");
    }
}

fn log_to(command: &mut Command, path: &Path) {
    let log = OpenOptions::new().create(true).append(true).open(path).expect("a log can be written");
    let clone: File = log.try_clone().expect("a file can be shared");
    command.stdout(log).stderr(clone);
}

/// Ends a child of ours and takes note of its end, so that no zombie stays.
fn end(child: &mut Child) {
    // Either may fail only because the child has ended before.
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal to a process, or, with a minus in front, to a group. Without unsafe code only a shell can.
fn signal(name: &str, process: &str) {
    let script = format!("kill -s {name} -- {process}");
    // It may have ended before: then there is nothing to signal.
    let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
}

fn read_text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn print_end(path: &Path, lines_max: usize) {
    let text = read_text(path);
    let lines: Vec<&str> = text.lines().collect();
    println!("--- {} (last {lines_max} lines)", path.display());
    for line in &lines[lines.len().saturating_sub(lines_max)..] {
        println!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_what_is_found_or_with_the_time() {
        let mut looks = 0;
        let found = wait_until("the third look", Duration::from_secs(10), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found, Ok(3));
        let never = wait_until("never", Duration::from_millis(20), || None::<()>);
        assert_eq!(never, Err("waited 20ms in vain until never".into()));
    }

    #[test]
    fn a_command_answers_with_all_it_says() {
        let mut command = Command::new("sh");
        let answer = run(command.args(["-c", "cat; echo bad >&2; exit 3"]), b"in\x00put\n").expect(3);
        assert_eq!((answer.stdout.as_slice(), answer.stderr.as_str()), (&b"in\x00put\n"[..], "bad\n"));
    }

    #[test]
    fn a_large_input_blocks_nothing() {
        let input = vec![b'x'; 1 << 20];
        assert_eq!(run(&mut Command::new("cat"), &input).expect(0).stdout, input);
    }

    #[test]
    fn ports_are_free_and_differ() {
        let (first, second) = (free_ports(3), free_ports(3));
        assert!(first.abs_diff(second) >= 3, "{first} {second}");
        assert!(TcpListener::bind(("127.0.0.1", first + 2)).is_ok());
    }

    #[test]
    fn a_directory_goes_with_its_test() {
        let directory = TestDirectory::new("unit");
        let path = directory.path().to_owned();
        fs::write(path.join("x"), "x").expect("it is writable");
        drop(directory);
        assert!(!path.exists());
    }
}
