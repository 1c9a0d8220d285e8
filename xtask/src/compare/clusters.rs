//! The servers of a comparison: started as child processes in folders of their own, ended with it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Options, Target};
use crate::steps;

/// How long a server may take until it answers.
const READY_MAX: Duration = Duration::from_secs(60);

/// Ports of one target: more than any of them needs.
const PORTS_EACH: u16 = 20;

/// Caches of one node: small enough for three of them beside two other databases, large enough for the keys.
const KRITA_KEYS: &str = "segment_bytes: \"16MiB\"\ndisk_reserve_bytes: \"256MiB\"\nmemtable_bytes: \"64MiB\"\n\
    block_cache_bytes: \"32MiB\"\nfilter_bytes: \"16MiB\"\nvalue_cache_bytes: \"64MiB\"\nlog_file: \"kritad.log\"\n";

/// A running cluster. Ends its processes when dropped.
pub(crate) struct Cluster {
    pub(crate) target: Target,
    /// How krita-bench reaches it.
    pub(crate) reach: Vec<String>,
    processes: Vec<Process>,
    /// Other targets' processes are this one's too: another door of the same cluster.
    shared_pids: Vec<u32>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It is about to be erased: how it ends matters to nobody.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Cluster {
    pub(crate) fn pids(&self) -> Vec<u32> {
        if self.processes.is_empty() {
            return self.shared_pids.clone();
        }
        self.processes.iter().map(|process| process.0.id()).collect()
    }
}

/// Makes a folder anew, and returns its full path.
pub(crate) fn empty_directory(directory: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("cannot make {}: {error}", directory.display());
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(failed)?;
    }
    fs::create_dir_all(directory).map_err(failed)?;
    directory.canonicalize().map_err(failed)
}

/// The block device under a folder, as `/proc/diskstats` names it.
pub(crate) fn device_of(directory: &Path) -> Option<String> {
    let number = fs::metadata(directory).ok()?.dev();
    // As glibc's `major` and `minor` take it apart.
    let major = (number >> 8) & 0xfff | (number >> 32) & !0xfff;
    let minor = number & 0xff | (number >> 12) & !0xff;
    let device = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // Flushes are counted for the whole disk.
    let whole = if device.join("partition").exists() { device.parent()?.to_owned() } else { device };
    Some(whole.file_name()?.to_str()?.to_owned())
}

/// Starts all that take part, and waits until they answer.
pub(crate) fn start(directory: &Path, programs: &Path, options: &Options) -> Result<Vec<Cluster>, String> {
    let mut started: Vec<Cluster> = Vec::new();
    for (position, target) in (0u16..).zip(&options.targets) {
        let port = options.base_port + position * PORTS_EACH;
        let folder = directory.join(target.name());
        let cluster = match target {
            Target::Krita | Target::KritaGrpc | Target::KritaRest => {
                let other = started.iter().find(|other| other.target <= Target::KritaRest);
                match other {
                    Some(other) => Cluster {
                        target: *target,
                        reach: other.reach.clone(),
                        processes: Vec::new(),
                        shared_pids: other.pids(),
                    },
                    None => start_krita(*target, &folder, programs, port, options)?,
                }
            }
            Target::Etcd => start_etcd(&folder, &options.etcd, port)?,
            Target::Redis => start_redis(&folder, &options.redis, port)?,
        };
        started.push(cluster);
    }
    Ok(started)
}

fn spawn(command: &mut Command, folder: &Path, package: &str) -> Result<Process, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| format!("cannot start {program} ({error}){package}");
    fs::create_dir_all(folder).map_err(failed)?;
    let log = fs::File::create(folder.join("output.log")).map_err(failed)?;
    let errors = log.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    command.spawn().map(Process).map_err(failed)
}

fn start_krita(
    target: Target,
    folder: &Path,
    programs: &Path,
    port: u16,
    options: &Options,
) -> Result<Cluster, String> {
    let ports: Vec<u16> = (0..3).map(|number| port + number).collect();
    let peers: String = ports.iter().map(|port| format!("  - address: \"127.0.0.1:{port}\"\n")).collect();
    fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let security = if options.tls {
        let mut init = Command::new(programs.join("init"));
        init.current_dir(folder).args(["--no-examples", "--cluster-name", "compare"]);
        let done =
            init.stdout(Stdio::null()).status().map_err(|error| format!("cannot run init: {error}"))?;
        if !done.success() {
            return Err("init failed".to_owned());
        }
        let written = fs::read_to_string(folder.join("krita.yaml")).unwrap_or_default();
        let digest = written.lines().find(|line| line.starts_with("token_sha256:")).unwrap_or_default();
        format!("tls_cert_path: \"../certs\"\n{digest}\n")
    } else {
        "insecure: true\n".to_owned()
    };
    let mut processes = Vec::new();
    for (number, port) in (1..).zip(&ports) {
        let node = folder.join(format!("node{number}"));
        fs::create_dir_all(&node).map_err(|error| format!("cannot make {}: {error}", node.display()))?;
        let text = format!(
            "cluster_name: \"compare\"\nnode_id: \"node{number}\"\npeers:\n{peers}data_directory: \"data\"\n\
             port: {port}\ncores: {}\n{security}{KRITA_KEYS}",
            options.cores
        );
        fs::write(node.join("krita.yaml"), text)
            .map_err(|error| format!("cannot write krita.yaml: {error}"))?;
        let mut command = Command::new(programs.join("kritad"));
        command.current_dir(&node);
        processes.push(spawn(&mut command, &node, "")?);
    }
    let mut reach: Vec<String> =
        ["--cluster-name", "compare", "--host", "127.0.0.1", "--port"].map(str::to_owned).into();
    reach.push(port.to_string());
    if options.tls {
        let token = fs::read_to_string(folder.join("admin.token")).unwrap_or_default();
        let certificates = folder.join("certs").display().to_string();
        let more = ["--token", token.trim(), "--tls-cert-path", &certificates];
        reach.extend(more.map(str::to_owned));
    } else {
        reach.push("--insecure".to_owned());
        for port in &ports {
            wait_for(*port, b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", " 200 ")?;
        }
    }
    for port in ports {
        wait_for(port, b"", "")?;
    }
    Ok(Cluster { target, reach, processes, shared_pids: Vec::new() })
}

fn start_etcd(folder: &Path, program: &Path, port: u16) -> Result<Cluster, String> {
    let numbers = [0, 1, 2];
    let client = |number: u16| format!("http://127.0.0.1:{}", port + number);
    let peer = |number: u16| format!("http://127.0.0.1:{}", port + 10 + number);
    let all = numbers.map(|number| format!("n{number}={}", peer(number))).join(",");
    let mut processes = Vec::new();
    for number in numbers {
        let node = folder.join(format!("n{number}"));
        let mut command = Command::new(program);
        command.args(["--name", &format!("n{number}"), "--data-dir", "data"]);
        command.args(["--listen-client-urls", &client(number), "--advertise-client-urls", &client(number)]);
        command.args(["--listen-peer-urls", &peer(number), "--initial-advertise-peer-urls", &peer(number)]);
        command.args(["--initial-cluster", &all, "--initial-cluster-state", "new"]);
        // Its default of 2 GiB is soon reached, since it keeps every version.
        command.args(["--quota-backend-bytes", "8589934592", "--log-level", "error"]);
        fs::create_dir_all(&node).map_err(|error| format!("cannot make {}: {error}", node.display()))?;
        command.current_dir(&node);
        let package = "; it is Debian's package etcd-server, or name it with --etcd";
        processes.push(spawn(&mut command, &node, package)?);
    }
    for number in numbers {
        let request = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        wait_for(port + number, request, "\"health\":\"true\"")?;
    }
    let endpoints = numbers.map(|number| format!("127.0.0.1:{}", port + number)).join(",");
    let reach = vec!["--endpoints".to_owned(), endpoints];
    Ok(Cluster { target: Target::Etcd, reach, processes, shared_pids: Vec::new() })
}

fn start_redis(folder: &Path, program: &Path, port: u16) -> Result<Cluster, String> {
    fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let mut command = Command::new(program);
    command.current_dir(folder).args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "always"]);
    let package = "; it is Debian's package redis-server, or name it with --redis";
    let processes = vec![spawn(&mut command, folder, package)?];
    wait_for(port, b"PING\r\n", "+PONG")?;
    let reach = vec!["--endpoints".to_owned(), format!("127.0.0.1:{port}")];
    Ok(Cluster { target: Target::Redis, reach, processes, shared_pids: Vec::new() })
}

/// Waits until what listens on a port answers `request` with `wanted`.
fn wait_for(port: u16, request: &[u8], wanted: &str) -> Result<(), String> {
    let until = steps::now() + READY_MAX;
    loop {
        if answers(port, request, wanted) == Some(true) {
            return Ok(());
        }
        if steps::now() > until {
            return Err(format!(
                "nothing serves on port {port}; see output.log and kritad.log of its folder"
            ));
        }
        steps::rest(Duration::from_millis(100));
    }
}

fn answers(port: u16, request: &[u8], wanted: &str) -> Option<bool> {
    let address = ([127, 0, 0, 1], port).into();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    if wanted.is_empty() {
        return Some(true);
    }
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while let Ok(bytes @ 1..) = stream.read(&mut part) {
        answer.extend_from_slice(&part[..bytes]);
        if String::from_utf8_lossy(&answer).contains(wanted) {
            return Some(true);
        }
    }
    Some(false)
}
