//! The Python package as its users get it: a wheel that maturin builds, installed by pip into a fresh environment,
//! on a real cluster of three nodes with TLS. Its own tests stand in `clients/python/tests`; they run here.
//!
//! What comes from PyPI (maturin, mypy, pytest: `clients/python/tests/requirements.txt`) is fetched once and kept in
//! `target/python`; where it cannot be had, the tests say `SKIP`. The ordinary suite kills three leaders under 64
//! clients that count; `KRITA_LONG=1` makes it twenty.

#![allow(clippy::disallowed_methods, reason = "these tests build a package and speak to real processes")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use krita_proto::routing::shard_of;
use krita_tests::process::{Cluster, Stopwatch, TestDirectory, command_path, free_ports, wait_until};
use krita_tests::source::root;
use kritaclient::blocking::Client;
use kritaclient::{Condition, Entry, Error, WriteOptions};

/// How long building and fetching may take where nothing is there yet.
const PREPARE_MAX: Duration = Duration::from_secs(900);

/// How long the package's own tests may take.
const TESTS_MAX: Duration = Duration::from_secs(240);

/// How long a node may take to become healthy on a busy machine.
const HEALTH_MAX: Duration = Duration::from_secs(60);

/// How long the example may take: an attempt that hangs must not be the only one.
const EXAMPLE_MAX: Duration = Duration::from_secs(15);

/// Clients that count, in each language.
const COUNTERS: usize = 32;

/// Increments that the survivors of a kill must make before the next step.
const INCREMENTS_PER_KILL: u64 = 50;

/// The key that is counted up.
const KEY: &str = "python/counter";

/// Shards of a cluster, unless it is told otherwise.
const SHARDS: u32 = 64;

/// How often a leader is killed.
fn kills() -> usize {
    let long = std::env::var("KRITA_LONG").is_ok_and(|value| value == "1");
    if long { 20 } else { 3 }
}

/// Where everything of Python's is built and kept.
struct Workshop {
    base: PathBuf,
}

/// Runs a command to its end; what it said is in the error if it failed.
fn run(command: &mut Command, log: &Path, limit: Duration) -> Result<String, String> {
    let file = || File::create(log).map_err(|error| format!("{}: {error}", log.display()));
    let out = file()?;
    let error = |error: std::io::Error| format!("{command:?}: {error}");
    let copy = out.try_clone().map_err(error)?;
    let child = command.stdin(Stdio::null()).stdout(out).stderr(copy).spawn();
    let mut child = child.map_err(|error| format!("{command:?}: {error}"))?;
    let ended = wait_until("the command ends", limit, || child.try_wait().ok().flatten());
    if ended.is_err() {
        end(&mut child);
    }
    let said = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    match ended {
        Ok(status) if status.success() => Ok(said),
        Ok(status) => Err(format!("{command:?}: {status}\n{said}")),
        Err(error) => Err(format!("{command:?}: {error}\n{said}")),
    }
}

fn end(child: &mut Child) {
    // Either may fail only because the child has ended before.
    let _ = child.kill();
    let _ = child.wait();
}

impl Workshop {
    fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    fn run<A: AsRef<OsStr>>(&self, program: &Path, arguments: &[A], name: &str) -> Result<String, String> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(root().join("clients/python"));
        command.env("CARGO_TARGET_DIR", self.path("build")).env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        run(&mut command, &self.path(&format!("{name}.log")), PREPARE_MAX)
    }

    /// What comes from PyPI, unless it is there.
    fn fetch(&self, python: &Path) -> Result<(), String> {
        let requirements = root().join("clients/python/tests/requirements.txt");
        let wanted = fs::read_to_string(&requirements).map_err(|error| error.to_string())?;
        let (tools, wheels, fetched) =
            (self.path("tools"), self.path("wheelhouse"), self.path("fetched.txt"));
        if fs::read_to_string(&fetched).is_ok_and(|before| before == wanted) {
            return Ok(());
        }
        self.run(python, &[OsStr::new("-m"), OsStr::new("venv"), tools.as_os_str()], "venv")?;
        let pip = tools.join("bin/pip");
        let from = |verb: &str| vec![verb.into(), "-q".into(), "-r".into(), requirements.clone()];
        self.run(&pip, &from("install"), "install")?;
        let mut download: Vec<PathBuf> = from("download");
        download.extend(["-d".into(), wheels]);
        self.run(&pip, &download, "download")?;
        fs::write(&fetched, wanted).map_err(|error| error.to_string())
    }

    /// Builds the wheel and installs it, with what its tests need, into a fresh environment; its Python.
    fn install(&self, python: &Path) -> Result<PathBuf, String> {
        let (fresh, wheels) = (self.path("fresh"), self.path("wheels"));
        for folder in [&fresh, &wheels] {
            if folder.exists() {
                fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            }
        }
        let mut build: Vec<PathBuf> =
            ["build", "--locked", "--compatibility", "linux", "--interpreter"].map(Into::into).to_vec();
        build.extend([python.into(), "--out".into(), wheels.clone()]);
        self.run(&self.path("tools/bin/maturin"), &build, "maturin")?;
        let venv = ["-m", "venv", "--without-pip"].map(PathBuf::from);
        self.run(python, &[&venv[..], std::slice::from_ref(&fresh)].concat(), "venv")?;
        let python = fresh.join("bin/python");
        let install: Vec<PathBuf> = vec![
            "--python".into(),
            python.clone(),
            "install".into(),
            "-q".into(),
            "--no-index".into(),
            "--find-links".into(),
            self.path("wheelhouse"),
            "--find-links".into(),
            wheels,
            "kritaclient".into(),
            "mypy".into(),
            "pytest".into(),
        ];
        self.run(&self.path("tools/bin/pip"), &install, "install")?;
        Ok(python)
    }
}

/// A Python that can make environments, 3.10 or newer.
fn find_python() -> Option<PathBuf> {
    let probe = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10)); ";
    ["python3", "python"].map(PathBuf::from).into_iter().find(|python| {
        let status = Command::new(python).args(["-c", probe]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    })
}

/// The Python of an environment in which the package is installed. `None` if this machine cannot have one; the reason
/// is printed then.
fn python() -> Option<PathBuf> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let prepared = PYTHON.get_or_init(|| {
        let python = find_python().ok_or("SKIP: no Python of 3.10 or newer that has venv")?;
        let workshop = Workshop { base: root().join("target/python") };
        fs::create_dir_all(&workshop.base).map_err(|error| error.to_string())?;
        let watch = Stopwatch::start();
        if let Err(error) = workshop.fetch(&python) {
            println!("{error}");
            return Err("SKIP: maturin, mypy and pytest cannot be fetched from PyPI".to_owned());
        }
        let installed = workshop.install(&python)?;
        println!("the wheel was built and installed in {:.1?}", watch.elapsed());
        Ok(installed)
    });
    match prepared {
        Ok(python) => Some(python.clone()),
        Err(reason) if reason.starts_with("SKIP") => {
            println!("{reason}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Tells a Python program of the cluster, as users tell theirs.
fn with_cluster<'a>(command: &'a mut Command, cluster: &Cluster) -> &'a mut Command {
    command.env("KRITA_HOST", "127.0.0.1").env("KRITA_PORT", cluster.port(1).to_string());
    command.env("KRITA_CLUSTER_NAME", cluster.cluster_name()).env("KRITA_TOKEN", cluster.token());
    command.env("KRITA_TLS_CERT_PATH", cluster.certificates())
}

#[test]
fn the_packages_own_tests_pass() {
    let Some(python) = python() else { return };
    let cluster = Cluster::start(3);
    let tests = root().join("clients/python/tests");
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "-p", "no:cacheprovider", "--durations=5"]).arg(&tests);
    command.env("PYTHONDONTWRITEBYTECODE", "1").current_dir(root().join("clients/python"));
    with_cluster(&mut command, &cluster);
    let log = root().join("target/python/pytest.log");
    match run(&mut command, &log, TESTS_MAX) {
        Ok(said) => println!("{said}"),
        Err(error) => panic!("{error}"),
    }
}

/// A node alone, as `init` lays it out, in a folder of its own. Dropping it ends it.
struct Node {
    process: Child,
    directory: TestDirectory,
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

impl Node {
    fn start(port: u16) -> Self {
        let directory = TestDirectory::new("python-snippet");
        let here = directory.path();
        let log = here.join("init.log");
        let mut init = Command::new(command_path("init"));
        init.args(["--port", &port.to_string(), "--no-examples"]).current_dir(here);
        run(&mut init, &log, HEALTH_MAX).unwrap_or_else(|error| panic!("{error}"));
        let log = File::create(here.join("kritad.log")).expect("a log can be written");
        let process = Command::new(command_path("kritad"))
            .current_dir(here)
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a file can be shared"))
            .stdout(log)
            .spawn();
        Self { process: process.expect("kritad starts"), directory }
    }

    /// What the node and the example said last, and whether the node still runs.
    fn explain(&mut self) -> String {
        let read = |name: &str| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        let (example, node) = (read("example.log"), read("kritad.log"));
        format!("{example}\nthe node's process: {:?}\n{node}", self.process.try_wait())
    }
}

/// The first Python example of a document.
fn snippet(document: &str) -> String {
    let text = fs::read_to_string(root().join(document)).expect("the document is there");
    let example = text.split("```python\n").nth(1).and_then(|rest| rest.split("```").next());
    example.unwrap_or_else(|| panic!("{document} has no Python example")).to_owned()
}

#[test]
fn the_example_of_the_front_page_runs_where_init_was_run() {
    let Some(python) = python() else { return };
    let documents = ["README.md", "clients/python/README.md"].map(snippet);
    assert_eq!(documents[0], documents[1], "the two documents show the same");
    assert!(documents[0].contains("KritaClient(host='localhost', port=8080, cluster_name='mycluster')"));
    // Word by word if its port is free on this machine; else only the port is another.
    let is_free = std::net::TcpListener::bind(("127.0.0.1", 8080)).is_ok();
    let port = if is_free { 8080 } else { free_ports(1) };
    let example = documents[0].replace("port=8080", &format!("port={port}"));
    let mut node = Node::start(port);
    let log = node.directory.path().join("example.log");
    let said = wait_until("the node serves", HEALTH_MAX, || {
        let mut command = Command::new(&python);
        for name in ["KRITA_HOST", "KRITA_PORT", "KRITA_CLUSTER_NAME", "KRITA_TOKEN", "KRITA_TLS_CERT_PATH"] {
            command.env_remove(name);
        }
        command.args(["-c", &example]).current_dir(node.directory.path());
        run(&mut command, &log, EXAMPLE_MAX).ok()
    });
    let said = said.unwrap_or_else(|error| panic!("{error}: {}", node.explain()));
    assert_eq!(said, "testvalue\n");
    println!("the example printed its value from port {port}");
}

/// One Rust client that counts. The value of the key says for each client how many of its increments are in it, so
/// that an unknown outcome becomes known: see `clients/python/tests/increments.py`, which does the same.
struct Counter {
    name: String,
    client: Client,
    acknowledged: u64,
    unknown: u64,
    /// An increment may have been applied, and may still be.
    is_pending: bool,
}

/// The count, and what is in it of each client.
fn parse(entry: Option<&Entry>) -> (u64, BTreeMap<String, u64>) {
    let Some(entry) = entry else { return (0, BTreeMap::new()) };
    let text = std::str::from_utf8(&entry.value).expect("counters are text");
    let mut words = text.split(' ');
    let count = words.next().and_then(|word| word.parse().ok()).expect("the count comes first");
    let of_client = |word: &str| {
        let (name, done) = word.split_once('=').expect("NAME=DONE");
        (name.to_owned(), done.parse().expect("a number"))
    };
    (count, words.map(of_client).collect())
}

impl Counter {
    fn run(mut self, is_done: &AtomicBool) -> (String, u64, u64) {
        while self.is_pending || !is_done.load(Ordering::Relaxed) {
            match self.increment() {
                // Where it is unavailable nothing was applied; a write that was pending still is.
                Ok(()) | Err(Error::Unavailable(_)) => {}
                Err(other) => panic!("no kill explains this error: {other}"),
            }
        }
        (self.name, self.acknowledged, self.unknown)
    }

    /// Takes over what the key says of this client; true if it told something new.
    fn learn(&mut self, done: &BTreeMap<String, u64>) -> bool {
        let mine = done.get(&self.name).copied().unwrap_or(0);
        if mine == self.acknowledged {
            return false;
        }
        let expected = self.is_pending && mine == self.acknowledged + 1;
        assert!(expected, "{}: {mine} in the key, {} acknowledged", self.name, self.acknowledged);
        (self.acknowledged, self.is_pending) = (mine, false);
        true
    }

    fn increment(&mut self) -> Result<(), Error> {
        let found = self.client.get(KEY)?;
        let (count, mut done) = parse(found.as_ref());
        if self.learn(&done) {
            return Ok(());
        }
        done.insert(self.name.clone(), self.acknowledged + 1);
        let parts: Vec<String> = done.iter().map(|(name, done)| format!("{name}={done}")).collect();
        let value = format!("{} {}", count + 1, parts.join(" "));
        let condition = Condition::IfVersion(found.map_or(0, |entry| entry.version));
        match self.client.put_with(KEY, value, WriteOptions { condition, ..WriteOptions::default() }) {
            Ok(_) => {
                self.acknowledged += 1;
                self.is_pending = false;
            }
            Err(Error::ConditionFailed { .. }) if self.is_pending => {
                // The key has moved on: whatever was pending was applied before that, or never will be.
                let found = self.client.get(KEY)?;
                self.learn(&parse(found.as_ref()).1);
                self.is_pending = false;
            }
            Err(Error::ConditionFailed { .. }) => {}
            Err(Error::UnknownOutcome(_)) => {
                self.unknown += 1;
                self.is_pending = true;
            }
            Err(other) => return Err(other),
        }
        Ok(())
    }
}

/// The Python half of the clients. Dropping it ends it.
struct PythonCounters {
    process: Child,
    log: PathBuf,
}

impl Drop for PythonCounters {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

impl PythonCounters {
    fn start(python: &Path, cluster: &Cluster) -> Self {
        let log = root().join("target/python/increments.log");
        let out = File::create(&log).expect("a log can be written");
        let mut command = Command::new(python);
        command.arg(root().join("clients/python/tests/increments.py")).args([KEY, &COUNTERS.to_string()]);
        command.stdin(Stdio::piped()).stderr(out.try_clone().expect("a file can be shared")).stdout(out);
        let process = with_cluster(&mut command, cluster).spawn().expect("Python starts");
        Self { process, log }
    }

    /// Tells them to stop, and takes what each acknowledged: `(name, acknowledged, unknown)`.
    fn stop(mut self) -> Vec<(String, u64, u64)> {
        let mut stdin = self.process.stdin.take().expect("stdin was piped");
        stdin.flush().expect("a pipe flushes");
        drop(stdin);
        let status =
            wait_until("the Python clients end", HEALTH_MAX, || self.process.try_wait().ok().flatten());
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        assert!(status.is_ok_and(|status| status.success()), "{said}");
        let of_line = |line: &str| {
            let mut words = line.split(' ');
            let name = words.next().expect("a name").to_owned();
            let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
            (name, number(), number())
        };
        said.lines().map(of_line).collect()
    }
}

/// The node that leads the shard of the key.
fn leader(cluster: &Cluster, client: &Client) -> u16 {
    let wanted = shard_of(KEY.as_bytes(), SHARDS);
    let leader = wait_until("the key's shard has a leader", HEALTH_MAX, || {
        cluster.numbers().find(|node| {
            let status = client.node_status(&cluster.address(*node));
            let shards = status.map(|status| status.shards).unwrap_or_default();
            shards.iter().any(|shard| shard.shard == wanted && shard.role == "leader")
        })
    });
    leader.unwrap_or_else(|error| panic!("{error}"))
}

/// Kills the leader of the key again and again; each time the clients must go on before it comes back.
fn kill_leaders(cluster: &mut Cluster, observer: &Client) {
    let counted = || observer.get(KEY).ok().map(|entry| parse(entry.as_ref()).0);
    // From here on, or from where it stood when it could first be read.
    let goes_on = || {
        let from = wait_until("the count can be read", HEALTH_MAX, counted);
        let enough = from.unwrap_or_else(|error| panic!("{error}")) + INCREMENTS_PER_KILL;
        let went = wait_until("the clients count", HEALTH_MAX, || counted().filter(|count| *count >= enough));
        went.unwrap_or_else(|error| panic!("{error}"));
    };
    for kill in 1..=kills() {
        goes_on();
        let victim = leader(cluster, observer);
        let watch = Stopwatch::start();
        cluster.kill(victim);
        goes_on();
        println!(
            "kill {kill}: node {victim}; {INCREMENTS_PER_KILL} increments later after {:.2?}",
            watch.elapsed()
        );
        cluster.start_node(victim);
        cluster.await_health(HEALTH_MAX);
    }
}

#[test]
fn increments_of_64_clients_survive_the_death_of_leaders() {
    let Some(python) = python() else { return };
    let mut cluster = Cluster::start(3);
    let observer = Client::connect(cluster.client_options()).unwrap_or_else(|error| panic!("{error}"));
    let is_done = AtomicBool::new(false);
    let pythons = PythonCounters::start(&python, &cluster);
    let watch = Stopwatch::start();
    let acknowledged = thread::scope(|scope| {
        let _ending = Ending(&is_done);
        let rusts: Vec<_> = (0..COUNTERS)
            .map(|number| {
                let mut options = cluster.client_options();
                if number % 2 == 1 {
                    // Impatient: its deadline passes while leaders are elected.
                    options.timeout = Duration::from_millis(500);
                }
                let client = Client::connect(options).unwrap_or_else(|error| panic!("{error}"));
                let name = format!("rust-{number}");
                let counter = Counter { name, client, acknowledged: 0, unknown: 0, is_pending: false };
                let is_done = &is_done;
                scope.spawn(move || counter.run(is_done))
            })
            .collect();
        kill_leaders(&mut cluster, &observer);
        is_done.store(true, Ordering::Relaxed);
        let mut all = pythons.stop();
        all.extend(rusts.into_iter().map(|rust| rust.join().expect("a Rust client counts to its end")));
        all
    });
    let found = observer.get(KEY).unwrap_or_else(|error| panic!("{error}"));
    let (count, done) = parse(found.as_ref());
    let sum: u64 = acknowledged.iter().map(|(_, acknowledged, _)| acknowledged).sum();
    let unknown: u64 = acknowledged.iter().map(|(.., unknown)| unknown).sum();
    println!(
        "{} kills in {:.1?}: {sum} increments acknowledged to {} clients, {unknown} unknown outcomes that became known",
        kills(),
        watch.elapsed(),
        acknowledged.len(),
    );
    assert_eq!(count, sum, "the counter is what was acknowledged");
    for (name, acknowledged, _) in acknowledged {
        assert_eq!(done.get(&name).copied().unwrap_or(0), acknowledged, "{name}");
    }
}

/// Sets a flag when dropped: threads end also if the one that directs them panics.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
