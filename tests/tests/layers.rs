//! The walls between the parts of Krita: who may depend on whom, and who may touch the machine.
//!
//! `bin → node → {engine, net, raft} → {runtime, proto}`; clients stand aside with `proto` alone. Only
//! `runtime/src/glommio` names glommio, clocks, files, sockets and threads; `unsafe` stands only in `runtime`.
//! Test code may look at the machine; product code above the runtime may not, or a run would not replay.

use std::collections::BTreeMap;

use krita_tests::source::{SourceFile, assert_none, files, names};

/// For each crate the crates of ours that it may depend on, and why no others.
const MAY_DEPEND_ON: [(&str, &[&str], &str); 13] = [
    ("proto", &[], "the wire is read by everyone, so it drags nothing along"),
    ("runtime", &[], "the seam knows the machine, and nothing of Krita"),
    ("raft", &[], "consensus is replayed and tested on its own"),
    ("engine", &["runtime"], "storage knows shards and records, but no elections and no peers"),
    ("net", &["proto", "runtime"], "connections know frames, but neither storage nor consensus"),
    ("node", &["engine", "net", "proto", "raft", "runtime"], "a node is all parts together, but no client"),
    ("clients/rust", &["proto"], "clients run anywhere: they speak the protocol, and see no server"),
    (
        "clients/python",
        &["client", "cli"],
        "the Python package is the Rust client and its command, in Python's terms",
    ),
    (
        "bin/client",
        &["client", "engine", "proto"],
        "thin mains over the client library and the codecs of files",
    ),
    ("bin/server", &["client", "net", "node", "proto", "runtime"], "mains are thin: the work is in node"),
    ("bin/bench", &["cli", "client", "net", "proto", "runtime"], "a load is a client: it sees no server"),
    ("tests", &["client", "engine", "net", "node", "proto", "raft", "runtime"], "tests see everything"),
    ("xtask", &[], "it builds the rest, so it cannot need it"),
];

/// Crates in which no async runtime but ours may stand.
const ON_OUR_RUNTIME: [&str; 6] = ["proto", "runtime", "raft", "engine", "net", "node"];

/// The dependencies that a manifest names, with the section they stand in.
fn dependencies(manifest: &SourceFile) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in manifest.text.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = header.to_owned();
            if let Some((parent, name)) = header.rsplit_once('.').filter(|it| it.0.ends_with("dependencies"))
            {
                found.push((parent.to_owned(), name.to_owned()));
            }
        } else if section.ends_with("dependencies")
            && !line.starts_with('#')
            && let Some((name, _)) = line.split_once('=')
        {
            let name = name.split('.').next().expect("a split has a first part").trim();
            found.push((section.clone(), name.trim_matches('"').to_owned()));
        }
    }
    found
}

fn manifests() -> BTreeMap<String, SourceFile> {
    let crate_of = |file: SourceFile| {
        let folder = file.path.strip_suffix("/Cargo.toml")?.to_owned();
        Some((folder, file))
    };
    files(&["Cargo.toml"]).into_iter().filter_map(crate_of).collect()
}

#[test]
fn crates_depend_downward_only() {
    let manifests = manifests();
    let mut findings = Vec::new();
    for (folder, allowed, reason) in MAY_DEPEND_ON {
        let manifest = manifests.get(folder).unwrap_or_else(|| panic!("{folder} has no Cargo.toml"));
        for (section, name) in dependencies(manifest) {
            let Some(ours) = name.strip_prefix("krita-") else { continue };
            if !allowed.contains(&ours) {
                findings.push(format!("{folder}/Cargo.toml: [{section}] names {name}: {reason}"));
            }
        }
    }
    for folder in manifests.keys().filter(|folder| !folder.starts_with("benches")) {
        if !MAY_DEPEND_ON.iter().any(|(known, ..)| known == folder) {
            findings.push(format!("{folder}: a new crate; add its row to tests/tests/layers.rs"));
        }
    }
    assert_none(&findings);
}

#[test]
fn raft_depends_on_nothing() {
    let manifest = &manifests()["raft"];
    let findings: Vec<String> = dependencies(manifest)
        .into_iter()
        .filter(|(section, _)| !section.ends_with("dev-dependencies"))
        .map(|(_, name)| format!("raft/Cargo.toml names {name}: consensus is std only, hand it plain data"))
        .collect();
    assert_none(&findings);
}

#[test]
fn only_the_runtime_brings_an_executor() {
    let mut findings = Vec::new();
    for (folder, manifest) in manifests() {
        for (section, name) in dependencies(&manifest) {
            if name.starts_with("glommio") && folder != "runtime" {
                findings.push(format!("{folder}/Cargo.toml: [{section}] names {name}: use krita-runtime"));
            }
            if name.starts_with("tokio") && ON_OUR_RUNTIME.contains(&folder.as_str()) {
                findings.push(format!("{folder}/Cargo.toml: [{section}] names {name}: use krita-runtime"));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn unsafe_stands_only_in_the_runtime() {
    let mut findings = Vec::new();
    for (folder, manifest) in manifests() {
        if folder != "runtime" && !manifest.text.contains("[lints]\nworkspace = true") {
            findings
                .push(format!("{folder}/Cargo.toml: add `[lints] workspace = true`, which forbids unsafe"));
        }
    }
    for file in files(&[".rs"]).iter().filter(|file| !file.path.starts_with("runtime/")) {
        for (number, line) in file.code() {
            if names(&line, "unsafe") {
                let path = &file.path;
                findings.push(format!("{path}:{number}: unsafe: move it into runtime, with its reason"));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn only_the_runtime_names_glommio() {
    let mut findings = Vec::new();
    for file in files(&[".rs"]) {
        let path = &file.path;
        let in_glommio = path == "runtime/src/glommio.rs" || path.starts_with("runtime/src/glommio/");
        let is_main =
            ["bin/server/", "bin/bench/", "tests/", "benches/"].iter().any(|it| path.starts_with(it));
        for (number, line) in file.product_code() {
            let through_seam = line.contains("krita_runtime::glommio");
            let declares = path == "runtime/src/lib.rs" && line.trim() == "pub mod glommio;";
            let allowed = in_glommio || declares || (is_main && through_seam);
            if names(&line, "glommio") && !allowed {
                let advice = "be generic over krita_runtime::Runtime; only mains choose";
                findings.push(format!("{path}:{number}: glommio: {advice}"));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn product_code_does_not_name_the_simulator() {
    let mut findings = Vec::new();
    for file in files(&[".rs"]) {
        let path = &file.path;
        if path.starts_with("runtime/") || path.starts_with("tests/") {
            continue;
        }
        for (number, line) in file.product_code() {
            if line.contains("krita_runtime::sim") {
                let advice = "be generic over krita_runtime::Runtime";
                findings.push(format!("{path}:{number}: the simulator in product code: {advice}"));
            }
        }
    }
    assert_none(&findings);
}

/// What only the glommio half of the runtime may name, and what to use instead.
const MACHINE: [(&str, &str); 14] = [
    ("thread::spawn", "Spawn; helper threads live in runtime"),
    ("thread::scope", "Spawn; helper threads live in runtime"),
    ("thread::Builder", "Spawn; helper threads live in runtime"),
    ("thread::sleep", "Clock::sleep"),
    ("std::fs", "Disk"),
    ("fs::File", "Disk"),
    ("TcpStream", "Network"),
    ("TcpListener", "Network"),
    ("UdpSocket", "Network"),
    ("ToSocketAddrs", "Network::connect, which resolves names off the core"),
    ("std::time::Instant", "krita_runtime::Instant and Clock::now"),
    ("SystemTime", "Clock::wall_clock"),
    ("std::env", "the configuration, which the mains hand down"),
    ("std::process", "an error that the main turns into an exit code"),
];

#[test]
fn product_code_does_not_touch_the_machine() {
    let mut findings = Vec::new();
    for file in files(&[".rs"]) {
        let path = &file.path;
        let excepted = ["bin/", "clients/", "tests/", "xtask/", "benches/", "runtime/src/glommio"];
        if excepted.iter().any(|start| path.starts_with(start)) || path.ends_with("build.rs") {
            continue;
        }
        for (number, line) in file.product_code() {
            for (name, instead) in MACHINE {
                if names(&line, name) {
                    findings.push(format!("{path}:{number}: {name}: use {instead}"));
                }
            }
        }
    }
    assert_none(&findings);
}
