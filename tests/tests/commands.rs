//! `kritaclient` and `kritactl` against a real cluster: every command in every format, exit codes, profiles, colour,
//! prompts, and that what is interrupted goes on.
//!
//! The commands must have been built with the profile of the tests; `cargo xtask test` does so. By itself:
//! `cargo build --profile test --workspace --bins && cargo test -p krita-tests --test commands`.

#![allow(clippy::disallowed_methods, reason = "these tests speak to real processes")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use krita_tests::process::{Answer, Cluster, TestDirectory, command_path, free_ports, run, wait_until};
use serde_json::{Value, json};

const OK: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const ABSENT: i32 = 3;
const DENIED: i32 = 4;
const UNAVAILABLE: i32 = 5;
const UNHEALTHY: i32 = 10;

const FORMATS: [&str; 5] = ["text", "table", "json", "yaml", "raw"];

/// How often a command is run in each format until its exit codes are alike.
const ROUNDS_MAX: usize = 3;

/// Keys enough that removing or importing them takes several pieces.
const MANY: usize = 12_000;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster, the folder of its profile, and a folder for files.
struct World {
    cluster: Cluster,
    files: TestDirectory,
}

impl World {
    fn profile(&self) -> PathBuf {
        self.cluster.certificates().parent().expect("certificates stand in the profile").to_owned()
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// A command that knows the cluster by its profile alone.
    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = bare(name, arguments);
        command.current_dir(self.files.path()).arg("--profile").arg(self.profile());
        command
    }

    fn client(&self, arguments: &[&str]) -> Answer {
        run(&mut self.command("kritaclient", arguments), &[])
    }

    fn client_with_input(&self, arguments: &[&str], input: &[u8]) -> Answer {
        run(&mut self.command("kritaclient", arguments), input)
    }

    fn ctl(&self, arguments: &[&str]) -> Answer {
        run(&mut self.command("kritactl", arguments), &[])
    }

    /// How many keys begin like this, as `delete --dry-run` counts them.
    fn count(&self, prefix: &str) -> u64 {
        let answer = self.client(&["delete", "--prefix", prefix, "--dry-run", "-o", "json"]).expect(OK);
        json_of(&answer)["keys"].as_u64().expect("it counts")
    }
}

/// A command in an environment that says nothing of clusters and colours.
fn bare(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(command_path(name));
    for variable in ["PROFILE", "HOST", "PORT", "CLUSTER_NAME", "TOKEN", "TLS_CERT_PATH"] {
        command.env_remove(format!("KRITA_{variable}"));
    }
    command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").args(arguments);
    command
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

#[test]
fn commands_do_what_they_say_on_a_cluster() {
    let mut world = World { cluster: Cluster::start(3), files: TestDirectory::new("commands") };
    for number in 1..=3 {
        world.client(&["put", &format!("fruit-{number}"), &format!("value {number}")]).expect(OK);
    }
    conditions_and_values(&world);
    dry_runs_change_nothing(&world);
    what_is_exported_is_imported(&world);
    an_interrupted_import_goes_on(&world);
    an_interrupted_delete_goes_on(&world);
    nobody_is_asked_where_nobody_is(&world);
    exit_codes_follow_the_table(&world);
    the_shell_runs_lines(&world);
    colour_is_for_terminals(&world);
    every_client_command_has_every_format(&world);
    every_control_command_has_every_format(&world);
    a_lost_node_is_told_of(&mut world);
}

fn conditions_and_values(world: &World) {
    world.client(&["put", "lock", "mine", "--if-absent"]).expect(OK);
    let taken = world.client(&["put", "lock", "yours", "--if-absent"]).expect(FAILED);
    assert!(taken.stderr.contains("CONDITION_FAILED"), "{}", taken.stderr);
    let entry = json_of(&world.client(&["get", "lock", "-o", "json"]).expect(OK));
    let version = entry["version"].to_string();
    assert_eq!(entry["value"], "mine");
    world.client(&["get", "lock", "--if-version", &version]).expect(OK);
    world.client(&["get", "lock", "--if-version", "1000000"]).expect(FAILED);
    world.client(&["put", "lock", "ours", "--if-version", &version]).expect(OK);
    world.client(&["put", "lock", "theirs", "--if-value", "mine"]).expect(FAILED);
    world.client(&["delete", "lock", "--if-value", "ours"]).expect(OK);
    world.client(&["get", "lock"]).expect(ABSENT);
    let bytes: Vec<u8> = (0..=255).collect();
    fs::write(world.file("bytes"), &bytes).expect("it is writable");
    world.client(&["put", "from-file", "--file", &world.file("bytes")]).expect(OK);
    world.client_with_input(&["put", "from-stdin", "-"], &bytes).expect(OK);
    for key in ["from-file", "from-stdin"] {
        assert_eq!(world.client(&["get", key, "-o", "raw"]).expect(OK).stdout, bytes);
    }
    let batch =
        "{\"op\":\"put\",\"key_base64\":\"/w==\",\"value\":\"odd\"}\n{\"op\":\"get\",\"key\":\"fruit-1\"}\n";
    let answer = world.client_with_input(&["batch", "-o", "json"], batch.as_bytes()).expect(OK).text();
    let got: Value = serde_json::from_str(answer.lines().last().expect("two results")).expect("it is JSON");
    assert_eq!(got["value"], "value 1");
    assert_eq!(world.client(&["get", "/w==", "--base64"]).expect(OK).text(), "odd");
    world.client(&["delete", "/w==", "--base64"]).expect(OK);
    let page = world.client(&["list-keys", "fruit-", "--start-after", "fruit-1", "--limit", "1"]).expect(OK);
    assert_eq!(page.text(), "fruit-2");
    let both = world.client(&["scan", "fruit-", "--end", "fruit-3"]).expect(OK);
    assert_eq!(both.text(), "fruit-1\tvalue 1\nfruit-2\tvalue 2");
}

fn dry_runs_change_nothing(world: &World) {
    world.client(&["put", "never", "x", "--dry-run"]).expect(OK);
    world.client(&["put", "fruit-1", "x", "--if-absent", "--dry-run"]).expect(FAILED);
    world.client(&["delete", "fruit-1", "--dry-run"]).expect(OK);
    let batch = b"{\"op\":\"put\",\"key\":\"never\",\"value\":\"x\"}\n";
    world.client_with_input(&["batch", "--dry-run"], batch).expect(OK);
    let line = b"{\"key\":\"never\",\"value\":\"x\"}\n";
    world.client_with_input(&["import", "-", "--dry-run"], line).expect(OK);
    world.ctl(&["scrub", "--all", "--dry-run"]).expect(OK);
    world.client(&["get", "never"]).expect(ABSENT);
    assert_eq!(world.client(&["get", "fruit-1"]).expect(OK).text(), "value 1");
}

/// An export's pairs, without versions, which an import gives anew.
fn pairs(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("an export is text");
    let pairs = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("each line is JSON"));
    let pairs = pairs.map(|mut pair| {
        pair.as_object_mut().expect("each line is an object").remove("version");
        pair
    });
    pairs.collect()
}

fn what_is_exported_is_imported(world: &World) {
    // Keys and values that are no text, that look like lines, that steer terminals, that are empty.
    let odd = ["YmluL/8=", "YmluLwA=", "YmluLwo=", "YmluLxtbMzFt", "YmluL3sia2V5Ijox"];
    let mut lines: Vec<String> =
        odd.iter().map(|key| json!({"key_base64": key, "value_base64": "AP8K/w=="}).to_string()).collect();
    lines.push(json!({"key": "bin/empty", "value": ""}).to_string());
    lines.push(json!({"key": "bin/large", "value": "\u{1}\n\"".repeat(300_000)}).to_string());
    world.client_with_input(&["import", "-"], (lines.join("\n") + "\n").as_bytes()).expect(OK);
    let (first, second) = (world.file("first.jsonl"), world.file("second.jsonl"));
    let answer = world.client(&["export", &first, "--prefix", "bin/", "-o", "json"]).expect(OK);
    assert_eq!(json_of(&answer)["keys"], lines.len());
    world.client(&["export", &first, "--prefix", "bin/"]).expect(FAILED);
    let piped = world.client(&["export", "-", "--prefix", "bin/"]).expect(OK);
    assert!(piped.stdout == fs::read(&first).expect("it was written"), "both ways write the same");
    world.client(&["delete", "--prefix", "bin/", "--yes"]).expect(OK);
    assert_eq!(world.count("bin/"), 0);
    // Cut off, it is refused whole.
    let whole = fs::read(&first).expect("it was written");
    fs::write(world.file("cut.jsonl"), &whole[..whole.len() / 2]).expect("it is writable");
    let cut = world.client(&["import", &world.file("cut.jsonl")]).expect(FAILED);
    assert!(cut.stderr.contains("nothing was imported"), "{}", cut.stderr);
    assert_eq!(world.count("bin/"), 0);
    world.client(&["import", &first]).expect(OK);
    world.client(&["export", &second, "--prefix", "bin/"]).expect(OK);
    assert!(pairs(&first) == pairs(&second), "what comes back is what was exported");
    // An export that was interrupted in the middle of a line goes on to the same end.
    let whole = fs::read(&second).expect("it was written");
    let third = world.file("third.jsonl");
    let half = whole.iter().position(|byte| *byte == b'\n').expect("it has lines") + 20;
    fs::write(format!("{third}.part"), &whole[..half]).expect("it is writable");
    world.client(&["export", &third, "--prefix", "bin/"]).expect(FAILED);
    world.client(&["export", &third, "--prefix", "other/", "--resume"]).expect(FAILED);
    world.client(&["export", &third, "--prefix", "bin/", "--resume"]).expect(OK);
    assert!(fs::read(&third).expect("it was written") == whole, "the whole is the same");
}

fn many_lines(prefix: &str) -> String {
    (0..MANY).map(|number| format!("{{\"key\":\"{prefix}{number:06}\",\"value\":\"{number}\"}}\n")).collect()
}

/// Starts a command, and kills it (SIGKILL) as soon as something is seen. True if it was still running then.
fn interrupted(mut command: Command, what: &str, mut seen: impl FnMut() -> bool) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("the command starts");
    let waited = wait_until(what, PATIENCE, || seen().then_some(()));
    let was_running = matches!(child.try_wait(), Ok(None));
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().expect("a child can be waited for");
    waited.unwrap_or_else(|error| panic!("{error}"));
    was_running
}

fn an_interrupted_import_goes_on(world: &World) {
    let file = world.file("many.jsonl");
    fs::write(&file, many_lines("many/")).expect("it is writable");
    let state = format!("{file}.import-state");
    let was_running = interrupted(world.command("kritaclient", &["import", &file]), "a piece is put", || {
        Path::new(&state).exists()
    });
    println!("import killed while running: {was_running}; {} keys of {MANY} are there", world.count("many/"));
    if was_running {
        world.client(&["import", &file]).expect(FAILED);
        let answer = world.client(&["import", &file, "--resume", "-o", "json"]).expect(OK);
        assert_eq!(json_of(&answer)["keys"], MANY);
    }
    assert!(!Path::new(&state).exists(), "an import that is done leaves nothing behind");
    assert_eq!(world.count("many/"), MANY as u64);
}

fn an_interrupted_delete_goes_on(world: &World) {
    world.client(&["put", "many0", "a neighbour"]).expect(OK);
    let delete = ["delete", "--prefix", "many/", "--yes"];
    let was_running = interrupted(world.command("kritaclient", &delete), "the first keys are gone", || {
        world.client(&["get", "many/000000"]).code == Some(ABSENT)
    });
    let left = world.count("many/");
    println!("delete killed while running: {was_running}; {left} of {MANY} keys are left");
    assert!(left < MANY as u64);
    let answer = world.client(&["delete", "--prefix", "many/", "--yes", "-o", "json"]).expect(OK);
    assert_eq!(json_of(&answer)["keys"].as_u64(), Some(left));
    assert_eq!(world.count("many/"), 0);
    assert_eq!(world.client(&["get", "many0"]).expect(OK).text(), "a neighbour");
}

fn nobody_is_asked_where_nobody_is(world: &World) {
    let refused = world.client(&["delete", "--prefix", "fruit-"]).expect(USAGE);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    let yes = world.client_with_input(&["delete", "--prefix", "fruit-"], b"y\n").expect(USAGE);
    assert!(yes.stdout.is_empty(), "an answer from a pipe is no answer: {yes:?}");
    assert_eq!(world.count("fruit-"), 3);
}

fn exit_codes_follow_the_table(world: &World) {
    let nobody = free_ports(1).to_string();
    for (arguments, code, word) in [
        (&["get", "absent"][..], ABSENT, "absent"),
        (&["get", "fruit-1", "--token", "wrong"], DENIED, "KRITA_TOKEN"),
        (&["health-check", "--all", "--token", "wrong"], DENIED, "KRITA_TOKEN"),
        (&["get", "fruit-1", "--cluster-name", "other"], FAILED, "--cluster-name"),
        (
            &["get", "fruit-1", "--host", "127.0.0.1", "--port", &nobody, "--timeout", "1s"],
            UNAVAILABLE,
            "try again",
        ),
        (&["get", "fruit-1", "--profile", "nowhere"], USAGE, "nowhere"),
        (&["get", "not base64", "--base64"], USAGE, "base64"),
        (&["put", "a", "--file", "nowhere"], FAILED, "nowhere"),
        (&["import", "nowhere"], FAILED, "nowhere"),
        (&["import", "-", "--resume"], USAGE, "stdin"),
    ] {
        // The flags that are typed last win over the harness' own profile, where they may be given once only.
        let mut command = match arguments.contains(&"--profile") {
            true => bare("kritaclient", arguments),
            false => world.command("kritaclient", arguments),
        };
        let answer = run(command.current_dir(world.files.path()), &[]).expect(code);
        assert!(answer.stdout.is_empty(), "{answer:?}");
        assert!(answer.stderr.contains(word), "{arguments:?}: {}", answer.stderr);
        assert_eq!(answer.stderr.lines().count(), 1, "one line says it: {}", answer.stderr);
    }
    let wrong = world.client(&["list-kyes"]).expect(USAGE);
    assert!(wrong.stderr.contains("'list-keys'"), "what was meant is said: {}", wrong.stderr);
    let wrong = world.client(&["list-keys", "--limti", "3"]).expect(USAGE);
    assert!(wrong.stderr.contains("'--limit'"), "{}", wrong.stderr);
}

fn the_shell_runs_lines(world: &World) {
    let lines = "put shell-key 'a b'\n# a comment\n\nget shell-key -o json\nget absent\nput never x\n";
    let answer = world.client_with_input(&["shell"], lines.as_bytes()).expect(ABSENT);
    let text = answer.text();
    let got: Value = serde_json::from_str(text.lines().last().expect("two results")).expect("it is JSON");
    assert_eq!(got["value"], "a b");
    world.client(&["get", "never"]).expect(ABSENT);
    let wrong = world.client_with_input(&["shell"], b"get fruit-1\nput\n").expect(USAGE);
    assert!(wrong.stderr.contains("line 2"), "{}", wrong.stderr);
}

fn colour_is_for_terminals(world: &World) {
    let coloured = |variables: &[(&str, &str)]| {
        let mut command = world.command("kritaclient", &["health-check", "--all"]);
        let answer = run(command.envs(variables.iter().copied()), &[]).expect(OK);
        answer.stdout.contains(&0x1b)
    };
    assert!(!coloured(&[]), "a pipe is no terminal");
    assert!(coloured(&[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
}

/// What each command is run with. The names are those of the man pages.
type Row<'a> = (&'static str, Vec<&'a str>, &'a [u8]);

/// Runs each command in each format, and looks whether the format is one and the exit code the same.
fn in_every_format(world: &World, program: &str, rows: &[Row<'_>]) {
    for row in rows {
        // A leadership that moves between two of the formats changes what is said of the cluster, not of the format.
        let alike = (0..ROUNDS_MAX).any(|_| codes_by_format(world, program, row).len() == 1);
        assert!(alike, "{}: the format does not change what comes of it", row.0);
    }
}

/// Runs one command in each format, looks whether each is one, and returns the exit codes.
fn codes_by_format(
    world: &World,
    program: &str,
    (name, arguments, input): &Row<'_>,
) -> BTreeSet<Option<i32>> {
    let run_in = |format: &str| {
        let arguments = [arguments, &["-o", format][..]].concat();
        let answer = run(&mut world.command(program, &arguments), input);
        assert!(!answer.stdout.contains(&0x1b), "{name} -o {format}: colour in a pipe");
        is_in_format(name, format, &answer);
        answer.code
    };
    FORMATS.into_iter().map(run_in).collect()
}

/// Looks whether these are all commands that there are, by the man pages.
fn no_command_is_left_out(world: &World, program: &str, rows: &[&[Row<'_>]], others: &[&str]) {
    let manual = world.file("manual");
    run(&mut bare(program, &["manual", &manual]), &[]).expect(OK);
    let pages = fs::read_dir(&manual).expect("the manual was written");
    let names = pages.map(|page| page.expect("it can be listed").file_name().to_string_lossy().into_owned());
    let names: BTreeSet<String> = names
        .filter_map(|name| Some(name.strip_prefix(&format!("{program}-"))?.strip_suffix(".1")?.to_owned()))
        // Commands that only hold others.
        .filter(|name| !["cluster", "debug", "job", "node", "shard"].contains(&name.as_str()))
        .collect();
    let tried = rows.iter().flat_map(|rows| rows.iter()).map(|row| row.0).chain(others.iter().copied());
    let tried: BTreeSet<String> = tried.map(str::to_owned).collect();
    assert_eq!(names, tried, "each command is tried in each format");
}

fn is_in_format(name: &str, format: &str, answer: &Answer) {
    let text = answer.text();
    let what = format!("{program} -o {format}: {answer:?}", program = name);
    if answer.code != Some(OK) && text.is_empty() {
        return assert!(!answer.stderr.is_empty(), "a refusal has a reason: {what}");
    }
    // A write that was acknowledged has nothing to add in raw form.
    assert!(!text.is_empty() || (format == "raw" && ["put", "delete"].contains(&name)), "{what}");
    match format {
        "json" => text.lines().for_each(|line| {
            serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {what}"));
        }),
        "yaml" => {
            let value: Value = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {what}"));
            assert!(value.is_object() || value.is_array(), "{what}");
        }
        "table" => {
            let title = text.lines().next().expect("a table has a line");
            assert!(!title.chars().any(char::is_lowercase), "headings are capitals: {what}");
        }
        _text_or_raw => {}
    }
}

fn every_client_command_has_every_format(world: &World) {
    let (export, manual) = (world.file("format.jsonl"), world.file("pages"));
    world.client(&["export", &export, "--prefix", "fruit-"]).expect(OK);
    let batch = b"{\"op\":\"get\",\"key\":\"fruit-1\"}\n{\"op\":\"get\",\"key\":\"absent\"}\n";
    let rows: [Row<'_>; 12] = [
        ("put", vec!["put", "format", "v"], b""),
        ("get", vec!["get", "format"], b""),
        ("delete", vec!["delete", "format-gone"], b""),
        ("list-keys", vec!["list-keys", "fruit-"], b""),
        ("scan", vec!["scan", "fruit-"], b""),
        ("batch", vec!["batch"], batch),
        ("export", vec!["export", &export, "--prefix", "fruit-", "--restart"], b""),
        ("import", vec!["import", &export], b""),
        ("health-check", vec!["health-check", "--all"], b""),
        ("shell", vec!["shell"], b"get fruit-1\n"),
        ("completions", vec!["completions", "bash"], b""),
        ("manual", vec!["manual", &manual], b""),
    ];
    no_command_is_left_out(world, "kritaclient", &[&rows], &[]);
    in_every_format(world, "kritaclient", &rows);
    let listed = |format| world.client(&["list-keys", "fruit-", "-o", format]).expect(OK);
    assert_eq!(listed("raw").stdout, b"fruit-1\0fruit-2\0fruit-3\0");
    let json: Vec<Value> =
        listed("json").text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let yaml: Vec<Value> = serde_yaml::from_str(&listed("yaml").text()).expect("YAML");
    assert_eq!(json, yaml);
    assert_eq!(listed("table").text().lines().count(), 4);
}

fn every_control_command_has_every_format(world: &World) {
    let log = world.cluster.data_directory(1).join("log-000");
    let file = |prefix: &str| {
        let names = fs::read_dir(&log).expect("the node has a log");
        let names = names.map(|name| name.expect("it can be listed").path());
        let mut names: Vec<PathBuf> = names
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
            .collect();
        names.sort();
        names.first().unwrap_or(&log.join(prefix)).display().to_string()
    };
    // Files of a running node: what it writes meanwhile may look like damage, so only those that it wrote once.
    let (manifest, segment) = (file("manifest-"), file("segment-"));
    let (log, manual) = (log.display().to_string(), world.file("pages"));
    // These are refused alike in every format, for the node is running: see tests/inspector.rs for what they print.
    for arguments in
        [["debug", "log", &log], ["debug", "segment", &segment], ["debug", "manifest", &manifest]]
    {
        for format in FORMATS {
            let answer = world.ctl(&[&arguments[..], &["-o", format]].concat()).expect(FAILED);
            assert!(answer.stderr.contains("--force"), "{answer:?}");
        }
    }
    let rows: [Row<'_>; 20] = [
        ("status", vec!["status"], b""),
        ("doctor", vec!["doctor"], b""),
        ("node-list", vec!["node", "list"], b""),
        ("node-status", vec!["node", "status"], b""),
        ("node-drain", vec!["node", "drain", "node3", "--dry-run"], b""),
        ("node-decommission", vec!["node", "decommission", "3", "--dry-run"], b""),
        ("cluster-rebalance", vec!["cluster", "rebalance", "--dry-run"], b""),
        ("shard-list", vec!["shard", "list"], b""),
        ("shard-show", vec!["shard", "show", "1"], b""),
        // Refused alike: each of the three nodes has a replica already.
        ("shard-move", vec!["shard", "move", "1", "--from", "node1", "--to", "node2"], b""),
        ("verify", vec!["verify", "--shard", "1"], b""),
        ("scrub", vec!["scrub", "--dry-run"], b""),
        ("debug-log", vec!["debug", "log", &log, "--force"], b""),
        ("debug-segment", vec!["debug", "segment", &segment, "--force"], b""),
        ("debug-manifest", vec!["debug", "manifest", &manifest, "--force"], b""),
        ("debug-run", vec!["debug", "run", &manifest, "--force"], b""),
        ("debug-checkpoint", vec!["debug", "checkpoint", &manifest, "--force"], b""),
        ("completions", vec!["completions", "zsh"], b""),
        ("manual", vec!["manual", &manual], b""),
        // A node that serves already is called back for nothing.
        ("node-call-back", vec!["node", "call-back", "node3"], b""),
    ];
    // Behind all that asks how the cluster is: from here on leaderships move.
    let moving: [Row<'_>; 3] = [
        ("job-list", vec!["job", "list"], b""),
        ("job-show", vec!["job", "show", "1"], b""),
        ("shard-transfer-leader", vec!["shard", "transfer-leader", "1", "--to", "node2"], b""),
    ];
    no_command_is_left_out(world, "kritactl", &[&rows, &moving], &["job-cancel"]);
    in_every_format(world, "kritactl", &rows);
    doctor_looks_at_everything(world);
    jobs_are_listed_and_cancelled_in_every_format(world);
    in_every_format(world, "kritactl", &moving);
    changes_that_cannot_be_are_refused(world);
}

fn jobs_are_listed_and_cancelled_in_every_format(world: &World) {
    let listed = |format| world.ctl(&["job", "list", "-o", format]).expect(OK).text();
    assert_eq!(["text", "table", "json", "yaml"].map(listed), ["no jobs", "", "", "[]"]);
    for (number, format) in (1..).zip(FORMATS) {
        // Nobody can take what the node holds, so the job does not end by itself.
        let drain = json_of(&world.ctl(&["node", "drain", "node3", "--yes", "-o", "json"]).expect(OK));
        assert_eq!((&drain["changed"], &drain["job"]), (&json!(true), &json!(number)));
        let job = json_of(&world.ctl(&["job", "show", &number.to_string(), "-o", "json"]).expect(OK));
        assert_eq!(
            (&job["kind"], &job["node"], &job["state"]),
            (&json!("drain"), &json!("node3"), &json!("running"))
        );
        let cancelled = world.ctl(&["job", "cancel", &number.to_string(), "-o", format]).expect(OK);
        is_in_format("job-cancel", format, &cancelled);
        let again = world.ctl(&["job", "cancel", &number.to_string(), "-o", format]).expect(FAILED);
        assert!(again.stderr.contains("no job"), "{again:?}");
    }
    let jobs = listed("json");
    let jobs: Vec<Value> = jobs.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(jobs.len(), FORMATS.len());
    assert!(jobs.iter().all(|job| job["state"] == "cancelled"), "{jobs:?}");
}

fn changes_that_cannot_be_are_refused(world: &World) {
    for (arguments, code, word) in [
        (&["node", "drain", "node3"][..], USAGE, "--yes"),
        (&["node", "decommission", "node3"], USAGE, "--yes"),
        (&["node", "drain", "nobody", "--yes"], FAILED, "there are node1, node2, node3"),
        (&["node", "drain", "nobody", "--dry-run"], FAILED, "no member is called nobody"),
        (&["node", "call-back", "9"], FAILED, "no member is called 9"),
        (&["job", "show", "99"], FAILED, "there is no job 99"),
        (&["job", "cancel", "99"], FAILED, "no job 99"),
        (&["shard", "transfer-leader", "99999", "--to", "node1"], FAILED, "no such shard"),
        (&["shard", "move", "1", "--from", "node1", "--to", "node1"], FAILED, "who gives a replica"),
        (&["shard", "move", "1", "--from", "node1", "--to", "node2"], FAILED, "has a replica of shard 1"),
    ] {
        let answer = world.ctl(arguments).expect(code);
        assert!(answer.stdout.is_empty() && answer.stderr.contains(word), "{arguments:?}: {answer:?}");
    }
}

fn doctor_looks_at_everything(world: &World) {
    let doctor = world.ctl(&["doctor", "-o", "yaml"]).expect(OK);
    let checks: Vec<Value> = serde_yaml::from_str(&doctor.text()).expect("YAML");
    for name in
        ["kernel", "io_uring", "memlock", "open files", "disk", "clock", "certificates", "token", "peer"]
    {
        let found: Vec<&Value> = checks.iter().filter(|check| check["check"] == name).collect();
        assert!(!found.is_empty(), "doctor looks at {name}");
    }
    assert_eq!(checks.iter().filter(|check| check["check"] == "peer").count(), 3);
}

/// The profile names all nodes, so that losing the first is no loss of the way.
fn a_lost_node_is_told_of(world: &mut World) {
    world.cluster.kill(1);
    let served = wait_until("the others serve", PATIENCE, || {
        (world.client(&["get", "fruit-1"]).code == Some(OK)).then_some(())
    });
    served.unwrap_or_else(|error| panic!("{error}"));
    let health = json_of(&world.client(&["health-check", "--all", "-o", "json"]).expect(UNHEALTHY));
    let members = health["members"].as_array().expect("a list").clone();
    assert_eq!(members.len(), 3, "a node that is not reached is in the list");
    assert_eq!(members[0]["state"], "unreachable");
    let nodes = world.ctl(&["node", "list"]).expect(UNHEALTHY).text();
    assert_eq!(nodes.lines().filter(|line| line.contains("unreachable")).count(), 1, "{nodes}");
    let doctor = world.ctl(&["doctor"]).expect(UNHEALTHY).text();
    let gone = world.cluster.address(1);
    assert!(doctor.lines().any(|line| line.starts_with("bad") && line.contains(&gone)), "{doctor}");
    // With nobody left, all that the profile names are unreachable, which is a state and no failure to look.
    world.cluster.kill(2);
    world.cluster.kill(3);
    let health = json_of(&world.client(&["health-check", "--all", "-o", "json"]).expect(UNHEALTHY));
    assert_eq!(health["members"].as_array().map(Vec::len), Some(3));
}

#[test]
fn without_a_cluster_the_commands_still_explain_themselves() {
    for (program, commands) in [
        ("kritaclient", &["put", "get", "delete", "list-keys", "scan", "batch", "export", "import"][..]),
        ("kritactl", &["status", "doctor", "verify", "scrub"]),
    ] {
        let help = run(&mut bare(program, &["--help"]), &[]).expect(OK).text();
        assert!(help.contains("Exit codes") && help.contains("Examples"), "{help}");
        for command in commands {
            let help = run(&mut bare(program, &[command, "--help"]), &[]).expect(OK).text();
            assert!(help.contains(&format!("  {program} {command}")), "an example: {help}");
        }
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let script = run(&mut bare(program, &["completions", shell]), &[]).expect(OK).text();
            assert!(script.contains(program) && script.contains(commands[0]), "{shell}");
        }
    }
    let empty = TestDirectory::new("empty");
    let answer = run(bare("kritaclient", &["get", "a"]).current_dir(empty.path()), &[]).expect(FAILED);
    assert!(
        answer.stderr.contains("certificates") && answer.stderr.lines().count() == 1,
        "{}",
        answer.stderr
    );
}
