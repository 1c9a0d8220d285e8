//! Stock gRPC clients, and hostile HTTP, on a real cluster of three nodes with TLS: Python's `grpcio` and Node's
//! `@grpc/grpc-js` as their registries give them, and raw sockets.
//!
//! What comes from PyPI and npm is fetched once and kept in `target/grpc-clients`; where it cannot be had, the part
//! that needs it says `SKIP` and why.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use krita_tests::process::Cluster;
use krita_tests::source::root;

/// What the Python client is made of. Newer ones work as well; these are known to.
const PYTHON_PACKAGES: [&str; 4] =
    ["grpcio-tools~=1.76", "grpcio-status", "grpcio-reflection", "grpcio-health-checking"];

const NODE_PACKAGES: [&str; 2] = ["@grpc/grpc-js@1", "@grpc/proto-loader@0.8"];

/// The published .proto files that clients need.
const PROTO_FILES: [&str; 2] = ["krita/v1/data.proto", "krita/v1/service.proto"];

fn tools() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let target = test.ancestors().nth(3).expect("a test stands in target/<profile>/deps");
    target.join("grpc-clients")
}

/// Runs a command to its end; what it said, if it failed.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Makes something once: into a fresh folder, which gets its name when it is whole.
fn made_once(name: &str, make: impl FnOnce(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let whole = tools().join(name);
    if whole.exists() {
        return Ok(whole);
    }
    let fresh = tools().join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).map_err(|error| error.to_string())?;
    let made = make(&fresh);
    let made = made.and_then(|()| std::fs::rename(&fresh, &whole).map_err(|error| error.to_string()));
    if made.is_err() {
        // Nothing depends on the half of it.
        let _ = std::fs::remove_dir_all(&fresh);
    }
    // Another test may have been faster.
    made.or_else(|error| whole.exists().then_some(()).ok_or(error)).map(|()| whole)
}

/// The folder of installed Python packages.
fn python_packages() -> Result<PathBuf, String> {
    made_once("python", |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
        run(pip.arg(folder).args(PYTHON_PACKAGES))
    })
}

/// The folder of installed Node packages.
fn node_packages() -> Result<PathBuf, String> {
    let folder = made_once("node", |folder| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
        run(npm.arg(folder).args(NODE_PACKAGES))
    })?;
    Ok(folder.join("node_modules"))
}

/// Generates the stubs as any user would.
fn python_stubs(packages: &Path, into: &Path) -> Result<(), String> {
    let mut protoc = Command::new("python3");
    protoc.env("PYTHONPATH", packages).args(["-m", "grpc_tools.protoc"]);
    protoc.arg(format!("-I{}", root().join("proto/proto").display()));
    protoc.arg(format!("--python_out={}", into.display()));
    protoc.arg(format!("--grpc_python_out={}", into.display()));
    run(protoc.args(PROTO_FILES))
}

/// The arguments that name the cluster.
fn names(cluster: &Cluster) -> [String; 3] {
    let ca = cluster.certificates().join("ca.crt").display().to_string();
    [ca, cluster.token().to_owned(), cluster.cluster_name().to_owned()]
}

/// Runs a client; its last line must be `done`. A line `kill` kills the last node.
fn drive(cluster: &mut Cluster, command: &mut Command) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the client starts");
    let mut words = child.stdin.take().expect("it is piped");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut last = String::new();
    for line in lines {
        last = line.expect("clients speak UTF-8");
        println!("{last}");
        if last == "kill" {
            cluster.kill(3);
            words.write_all(b"\n").expect("the client listens");
        }
    }
    let status = child.wait().expect("a child can be awaited");
    assert!(status.success() && last == "done", "{status}; the last line: {last:?}");
}

fn is_there(program: &str) -> bool {
    run(Command::new(program).arg("--version")).is_ok()
}

/// One cluster for all of it: starting one takes longer than any part.
#[test]
fn stock_clients_are_served_and_hostile_ones_disturb_nobody() {
    if !is_there("python3") {
        return println!("SKIP: there is no python3");
    }
    let mut cluster = Cluster::start(3);
    let addresses: Vec<String> = cluster.numbers().map(|node| cluster.address(node)).collect();

    let mut faults = Command::new("python3");
    faults.arg(root().join("tests/python/http_faults.py")).args(&names(&cluster)[..2]);
    faults.args(["127.0.0.1", &cluster.port(1).to_string()]);
    drive(&mut cluster, &mut faults);

    match node_packages() {
        Err(reason) => println!("SKIP: the client for Node.js cannot be had: {reason}"),
        Ok(packages) => {
            let mut client = Command::new("node");
            client.arg(root().join("tests/node/grpc_client.js")).arg(packages);
            client.arg(root().join("proto/proto")).args(names(&cluster)).args(&addresses);
            drive(&mut cluster, &mut client);
        }
    }

    // Last: it kills a node.
    match python_packages() {
        Err(reason) => println!("SKIP: the client for Python cannot be had: {reason}"),
        Ok(packages) => {
            let stubs = tools().join("stubs");
            std::fs::create_dir_all(&stubs).expect("target is writable");
            python_stubs(&packages, &stubs).expect("the published files compile");
            let mut client = Command::new("python3");
            client.env("PYTHONPATH", &packages).env("PYTHONDONTWRITEBYTECODE", OsStr::new("1"));
            client.arg(root().join("tests/python/grpc_client.py")).arg(&stubs);
            client.args(names(&cluster)).args(&addresses);
            drive(&mut cluster, &mut client);
        }
    }
}
