//! `cargo xtask planted`: do the tests catch bugs? Each patch in `tests/planted` plants one into a copy of the
//! tree, and the test that its header names must then fail, and must pass without it.
//!
//! A patch begins with `Bug: what is wrong` and `Caught-by: [NAME=VALUE]... cargo test ...`, then `diff --git`.

#![allow(clippy::disallowed_methods, reason = "it copies the real tree and times real processes")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::simulate::Seeds;
use crate::steps::{cargo, now};

/// Within how many seeds a bug must be caught.
const SEEDS: Seeds = Seeds { from: 0, to: 500 };

/// How long one test may run; a planted bug can also make it hang.
const TIME_MAX: Duration = Duration::from_secs(1_200);

/// What to run.
#[derive(Clone, Default, Debug)]
pub(crate) struct Options {
    /// Seeds that win over those of the patches.
    pub(crate) seeds: Option<Seeds>,
    /// Only patches whose name contains this.
    pub(crate) only: Option<String>,
    /// Do not prove that the tests pass without a bug.
    pub(crate) no_baseline: bool,
}

/// A test command out of a patch's header.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct TestCommand {
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

/// A patch's header.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Header {
    bug: String,
    caught_by: TestCommand,
}

/// Where the copy stands, and what is built from it.
struct Workbench {
    root: PathBuf,
    tree: PathBuf,
    target: PathBuf,
    logs: PathBuf,
}

/// How a test run ended.
enum Run {
    Passed,
    Failed { seed: Option<String> },
    DoesNotBuild,
    Hangs,
}

/// Runs every patch and prints a table; true if all bugs were caught.
pub(crate) fn run(root: &Path, options: Options) -> bool {
    match run_all(root, &options) {
        Ok(rows) => {
            println!("\n{:<36} {:<12} {:>8}  bug", "patch", "result", "seconds");
            for row in &rows {
                println!("{:<36} {:<12} {:>8.0}  {}", row.name, row.result, row.seconds, row.bug);
            }
            let caught = rows.iter().filter(|row| row.caught).count();
            println!("{caught} of {} planted bugs caught", rows.len());
            caught == rows.len() && !rows.is_empty()
        }
        Err(error) => {
            println!("planted: {error}");
            false
        }
    }
}

struct Row {
    name: String,
    bug: String,
    result: String,
    caught: bool,
    seconds: f64,
}

fn run_all(root: &Path, options: &Options) -> Result<Vec<Row>, String> {
    let bench = Workbench::new(root)?;
    let mut baselines: BTreeMap<TestCommand, bool> = BTreeMap::new();
    let mut rows = Vec::new();
    for path in patches(root, options)? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let Header { bug, mut caught_by } = header(&text).map_err(|error| format!("{name}: {error}"))?;
        caught_by.set_seeds(options.seeds);
        bench.copy_tree()?;
        if !options.no_baseline && !baselines.contains_key(&caught_by) {
            println!("without a bug: cargo {}", caught_by.arguments.join(" "));
            let passes = matches!(bench.test(&caught_by, "baseline")?, Run::Passed);
            baselines.insert(caught_by.clone(), passes);
        }
        println!("{name}: {bug}");
        let started = now();
        let (result, caught) = if baselines.get(&caught_by) == Some(&false) {
            ("fails anyway".to_owned(), false)
        } else if !bench.apply(&path)? {
            ("does not apply".to_owned(), false)
        } else {
            match bench.test(&caught_by, &name)? {
                Run::Passed => ("NOT CAUGHT".to_owned(), false),
                Run::Failed { seed: Some(seed) } => (format!("seed {seed}"), true),
                Run::Failed { seed: None } => ("caught".to_owned(), true),
                Run::DoesNotBuild => ("no build".to_owned(), false),
                Run::Hangs => ("hangs".to_owned(), false),
            }
        };
        println!("{name}: {result}");
        rows.push(Row { name, bug, result, caught, seconds: started.elapsed().as_secs_f64() });
    }
    Ok(rows)
}

fn patches(root: &Path, options: &Options) -> Result<Vec<PathBuf>, String> {
    let folder = root.join("tests/planted");
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "patch"));
    if let Some(only) = &options.only {
        paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(only)));
    }
    paths.sort();
    Ok(paths)
}

fn header(text: &str) -> Result<Header, String> {
    let head = || text.lines().take_while(|line| !line.starts_with("diff --git"));
    let field = |name: &str| {
        let value = head().find_map(|line| line.strip_prefix(name).map(str::trim));
        value.map(str::to_owned).ok_or_else(|| format!("no line `{name} ...` before the diff"))
    };
    let (bug, command) = (field("Bug:")?, field("Caught-by:")?);
    let mut words = command.split_whitespace().map(str::to_owned).peekable();
    let mut environment = Vec::new();
    while let Some((name, value)) = words.peek().and_then(|word| word.split_once('=')) {
        environment.push((name.to_owned(), value.trim_matches('"').to_owned()));
        words.next();
    }
    if words.next().as_deref() != Some("cargo") || words.peek().map(String::as_str) != Some("test") {
        return Err(format!("`Caught-by: {command}` is not a `cargo test`"));
    }
    Ok(Header { bug, caught_by: TestCommand { environment, arguments: words.collect() } })
}

impl TestCommand {
    /// Sets the seeds: the given ones, or else the header's own, or else the default.
    fn set_seeds(&mut self, seeds: Option<Seeds>) {
        let fixed = self.environment.iter().any(|(name, _)| name == "KRITA_SEEDS" || name == "KRITA_SEED");
        if let Some(seeds) = seeds.or((!fixed).then_some(SEEDS)) {
            self.environment.retain(|(name, _)| name != "KRITA_SEEDS" && name != "KRITA_SEED");
            self.environment.push(("KRITA_SEEDS".into(), seeds.to_string()));
        }
    }

    /// The arguments that only build.
    fn build_arguments(&self) -> Vec<&str> {
        let until_tests = self.arguments.iter().take_while(|argument| *argument != "--");
        until_tests.map(String::as_str).chain(["--no-run"]).collect()
    }
}

impl Workbench {
    fn new(root: &Path) -> Result<Self, String> {
        let base = root.join("target/planted");
        let bench = Self {
            root: root.to_owned(),
            tree: base.join("tree"),
            target: base.join("target"),
            logs: base.join("logs"),
        };
        for folder in [&bench.tree, &bench.logs] {
            fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        Ok(bench)
    }

    /// Makes the copy equal to the tree. Files that are equal already keep their times, so that little is rebuilt.
    fn copy_tree(&self) -> Result<(), String> {
        copy_folder(&self.root, &self.tree).map_err(|error| format!("copying the tree: {error}"))
    }

    fn apply(&self, patch: &Path) -> Result<bool, String> {
        let mut command = Command::new("git");
        command.args(["apply", "--whitespace=nowarn"]).arg(patch).current_dir(&self.tree);
        // The copy is no repository, and stands inside one that must not be looked at.
        command.env("GIT_CEILING_DIRECTORIES", self.tree.parent().expect("the copy stands in a folder"));
        command.status().map(|status| status.success()).map_err(|error| format!("git: {error}"))
    }

    fn test(&self, command: &TestCommand, name: &str) -> Result<Run, String> {
        let log = self.logs.join(format!("{name}.log"));
        if !matches!(self.cargo(command, &command.build_arguments(), &log)?, Some(true)) {
            return Ok(Run::DoesNotBuild);
        }
        let arguments: Vec<&str> = command.arguments.iter().map(String::as_str).collect();
        match self.cargo(command, &arguments, &log)? {
            Some(true) => Ok(Run::Passed),
            Some(false) => Ok(Run::Failed { seed: failing_seed(&log) }),
            None => Ok(Run::Hangs),
        }
    }

    /// Whether cargo succeeded; `None` if it had to be ended.
    fn cargo(&self, command: &TestCommand, arguments: &[&str], log: &Path) -> Result<Option<bool>, String> {
        let output = || File::create(log).map_err(|error| format!("{}: {error}", log.display()));
        let output = output()?;
        let errors = output.try_clone().map_err(|error| error.to_string())?;
        let mut process = cargo(&self.tree, arguments);
        process.env("CARGO_TARGET_DIR", &self.target).envs(command.environment.iter().cloned());
        process.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let child = process.spawn().map_err(|error| format!("cargo: {error}"))?;
        Ok(wait_at_most(child, TIME_MAX))
    }
}

/// Whether the process succeeded; `None` if it took too long and was ended.
fn wait_at_most(mut child: Child, limit: Duration) -> Option<bool> {
    let started = now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if started.elapsed() < limit => std::thread::park_timeout(Duration::from_millis(100)),
            Ok(None) | Err(_) => {
                // With cargo the tests that it started, which are its process group. They may have ended by
                // themselves in this moment: then there is nothing to end.
                let group = format!("kill -s KILL -- -{}", child.id());
                let _ = Command::new("sh").args(["-c", &group]).status();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// The seed in the first `KRITA_SEED=n` that a failing test printed.
fn failing_seed(log: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(log).ok()?).into_owned();
    let (_, after) = text.split_once("KRITA_SEED=")?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    let left_out = |name: &str| name == "target" || (name.starts_with('.') && name != ".cargo");
    let mut names = Vec::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if left_out(&name.to_string_lossy()) {
            continue;
        }
        let (source, copy) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            copy_folder(&source, &copy)?;
        } else {
            let content = fs::read(&source)?;
            if fs::read(&copy).ok().as_ref() != Some(&content) {
                fs::write(&copy, content)?;
            }
        }
        names.push(name);
    }
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        let gone = !names.contains(&entry.file_name());
        if gone && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if gone {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read() {
        let text =
            "Bug: votes are forgotten\nCaught-by: KRITA_SEEDS=0..50 cargo test -p a -- b\n\ndiff --git x y\n";
        let mut header = header(text).expect("a header");
        assert_eq!(header.bug, "votes are forgotten");
        assert_eq!(header.caught_by.arguments, ["test", "-p", "a", "--", "b"]);
        assert_eq!(header.caught_by.build_arguments(), ["test", "-p", "a", "--no-run"]);
        header.caught_by.set_seeds(None);
        assert_eq!(header.caught_by.environment, [("KRITA_SEEDS".to_owned(), "0..50".to_owned())]);
        header.caught_by.set_seeds(Some(Seeds { from: 1, to: 2 }));
        assert_eq!(header.caught_by.environment, [("KRITA_SEEDS".to_owned(), "1..2".to_owned())]);
    }

    #[test]
    fn a_broken_header_is_refused() {
        assert!(header("Bug: x\ndiff --git a b\nCaught-by: cargo test\n").is_err());
        assert!(header("Bug: x\nCaught-by: rm -r x\n").is_err());
        assert!(header("Caught-by: cargo test\n").is_err());
    }
}
