//! What a machine can check about how our code reads, so that reviews can be about design. Each finding says what
//! to do instead.

#![allow(clippy::disallowed_methods, reason = "this test looks at the real source tree")]

use std::path::Path;

use krita_tests::source::{SourceFile, assert_none, files, names, root};

/// Most lines of a file in front of its unit tests.
const LINES_MAX: usize = 700;

/// Most characters of a line of Rust.
const WIDTH_MAX: usize = 120;

/// The same in a file that lays out a table by hand.
const TABLE_WIDTH_MAX: usize = 150;

/// Files that may sleep, each with its reason.
const MAY_SLEEP: [(&str, &str); 4] = [
    (
        "benches/storage/src/measure.rs",
        "it waits for stores that work in threads of their own to come to rest",
    ),
    ("tests/src/process.rs", "wait_until polls a process, within a bound: the one place where tests wait"),
    ("xtask/src/steps.rs", "`compare` polls servers that it has started, within a bound"),
    ("xtask/src/planted.rs", "it polls a test with a planted bug, which may hang, within a bound"),
];

fn rust() -> Vec<SourceFile> {
    files(&[".rs"])
}

#[test]
fn every_file_says_what_it_is_for() {
    let opens = |file: &SourceFile| file.text.starts_with("//! ") || file.text.starts_with("#!/");
    let findings: Vec<String> = rust()
        .iter()
        .filter(|file| !opens(file))
        .map(|file| format!("{}:1: open with `//!`: what the file is for, and its place", file.path))
        .collect();
    assert_none(&findings);
}

#[test]
fn files_fit_a_head() {
    let mut findings = Vec::new();
    for file in rust() {
        let unit_tests = file.path.ends_with("/tests.rs") || file.path.contains("/src/tests/");
        let lines = file.lines_before_tests().len();
        if lines > LINES_MAX && !unit_tests {
            let path = file.path;
            findings.push(format!("{path}: {lines} lines without tests: split it, {LINES_MAX} are enough"));
        }
    }
    assert_none(&findings);
}

#[test]
fn nothing_is_left_for_later() {
    // Spelled in halves, so that this file does not find itself.
    let macros = [
        (concat!("to", "do!"), "write it, or leave it out"),
        (concat!("unimple", "mented!"), "write it, or return a typed error"),
        (concat!("db", "g!"), "use tracing, or nothing"),
    ];
    let marks = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("TO", "DO")];
    let mut findings = Vec::new();
    for file in rust() {
        for (number, line) in file.code() {
            for (name, instead) in macros.iter().filter(|(name, _)| line.contains(name)) {
                findings.push(format!("{}:{number}: {name}: {instead}", file.path));
            }
        }
    }
    for file in files(&[".rs", ".md", ".proto", ".toml", ".yaml", ".ci/run"]) {
        for (number, line) in (1..).zip(file.text.lines()) {
            for mark in marks.iter().filter(|mark| names(line, mark)) {
                findings.push(format!("{}:{number}: {mark}: open an issue instead, or do it now", file.path));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn tests_are_neither_ignored_nor_asleep() {
    let ignored = concat!("#[ign", "ore]");
    let sleeps = [concat!("thread::sl", "eep"), concat!("thread::pa", "rk_timeout")];
    let mut findings = Vec::new();
    for file in rust() {
        let path = &file.path;
        let may_sleep = MAY_SLEEP.iter().any(|(allowed, _)| allowed == path);
        for (number, line) in file.code() {
            if line.contains(ignored) {
                findings
                    .push(format!("{path}:{number}: ignored: give a reason with its issue, or delete it"));
            }
            if !may_sleep && sleeps.iter().any(|sleep| line.contains(sleep)) && !path.starts_with("runtime/")
            {
                let instead = "krita_tests::process::wait_until (a bounded poll), or virtual time";
                findings.push(format!("{path}:{number}: a sleep: use {instead}"));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn text_is_clean() {
    let machine =
        [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];
    let mut findings = Vec::new();
    for file in files(&[".rs", ".md", ".toml", ".proto", ".yaml", ".yml", ".cff", ".sh", ".ci/run"]) {
        let path = &file.path;
        let lays_out_a_table = file.text.contains("#[rustfmt::skip]");
        let width_max = if lays_out_a_table { TABLE_WIDTH_MAX } else { WIDTH_MAX };
        if !file.text.ends_with('\n') || file.text.ends_with("\n\n") {
            findings.push(format!("{path}: end the file with one line feed"));
        }
        for (number, line) in (1..).zip(file.text.lines()) {
            if line.contains('\t') {
                findings.push(format!("{path}:{number}: a tab: use spaces"));
            }
            if line.ends_with([' ', '\r']) {
                findings.push(format!("{path}:{number}: trailing space: delete it"));
            }
            if path.ends_with(".rs") && line.chars().count() > width_max {
                findings.push(format!("{path}:{number}: longer than {width_max}: break the line"));
            }
            if let Some(place) = machine.iter().find(|place| line.contains(*place)) {
                findings.push(format!("{path}:{number}: a path of one machine ({place}): make it relative"));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn nothing_depends_on_chance() {
    let select = concat!("sele", "ct!");
    let excepted = ["clients/", "bin/client/", "tests/", "xtask/"];
    let fixed = |path: &str, line: &str| path == "runtime/src/lib.rs" && line.contains("FixedState");
    let mut findings = Vec::new();
    for file in rust() {
        let path = &file.path;
        for (number, line) in file.code() {
            let line = line.as_str();
            if line.contains(select) && !line.contains(concat!("tokio::sele", "ct!")) {
                let instead = "select_biased!, or poll by hand: the order must not be random";
                findings.push(format!("{path}:{number}: {select} is random: use {instead}"));
            }
            let hashed = names(line, "HashMap") || names(line, "HashSet");
            if hashed && !excepted.iter().any(|start| path.starts_with(start)) && !fixed(path, line) {
                let instead = "BTreeMap, or krita_runtime::FixedHashMap";
                findings
                    .push(format!("{path}:{number}: a hash order that differs by process: use {instead}"));
            }
        }
    }
    assert_none(&findings);
}

/// The targets of a Markdown text's links, with their line numbers; code blocks are left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split(')').next().expect("a split has a first part");
            let target = target.split_whitespace().next().unwrap_or_default();
            found.push((number, target.to_owned()));
        }
    }
    found
}

#[test]
fn links_between_documents_resolve() {
    let mut findings = Vec::new();
    for file in files(&[".md"]) {
        for (number, target) in links(&file.text) {
            let outside =
                ["http://", "https://", "mailto:", "#"].iter().any(|start| target.starts_with(start));
            let target = target.split('#').next().expect("a split has a first part");
            if outside || target.is_empty() {
                continue;
            }
            let folder = Path::new(&file.path).parent().expect("a file stands in a folder");
            let there = match target.strip_prefix('/') {
                Some(from_root) => root().join(from_root),
                None => root().join(folder).join(target),
            };
            if !there.exists() {
                findings.push(format!("{}:{number}: {target} does not exist: correct the link", file.path));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn links_are_found() {
    let text = "[a](b.md#c) and [d](https://e)\n```\n[no](no)\n```\n![f](g.png \"title\")\n";
    let found: Vec<String> = links(text).into_iter().map(|(_, target)| target).collect();
    assert_eq!(found, ["b.md#c", "https://e", "g.png"]);
}
