//! Steps that run one command each, and the summary of how they ended.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a step ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// It succeeded.
    Pass,
    /// It failed, in words.
    Fail(String),
    /// It succeeded, but these parts said that they cannot run here.
    Skip(Vec<String>),
}

/// One step of a summary.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    name: String,
    ending: Ending,
    took: Duration,
}

/// Runs steps one after another and remembers how they ended.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<Step>,
    failures: Failures,
}

/// What failing tests printed, to be said again at the end: it stands far above.
#[derive(Debug, Default)]
struct Failures {
    lines: Vec<String>,
    is_inside: bool,
}

impl Failures {
    /// A failing test's first lines say what it saw, its last ones what it wanted; this many are kept in all.
    const LINES_MAX: usize = 2_000;

    /// Takes the next line of a test run. What failed stands between `failures:` and the result.
    fn take(&mut self, line: &str) {
        self.is_inside = match line.trim_end() {
            "failures:" => true,
            line if line.starts_with("test result:") => false,
            _ => self.is_inside,
        };
        if self.is_inside && self.lines.len() < Self::LINES_MAX {
            self.lines.push(line.to_owned());
        }
    }
}

impl Steps {
    /// Runs a command as a step. What it prints is passed on; lines that begin with `SKIP: ` count as skips.
    pub(crate) fn run(&mut self, name: &str, command: &mut Command) -> bool {
        println!("\n==> {name}: {}", describe(command));
        let started = now();
        let ending = follow(command, &mut std::io::stdout(), &mut self.failures);
        self.note(name, ending, started)
    }

    /// Runs a step that is not a command.
    pub(crate) fn work(&mut self, name: &str, work: impl FnOnce() -> bool) -> bool {
        println!("\n==> {name}");
        let started = now();
        let ending = if work() { Ending::Pass } else { Ending::Fail("see above".into()) };
        self.note(name, ending, started)
    }

    fn note(&mut self, name: &str, ending: Ending, started: Instant) -> bool {
        let good = !matches!(ending, Ending::Fail(_));
        self.done.push(Step { name: name.into(), ending, took: started.elapsed() });
        good
    }

    /// Notes a step that was not run because of another's failure.
    pub(crate) fn not_run(&mut self, name: &str, reason: &str) {
        let ending = Ending::Fail(format!("not run: {reason}"));
        self.done.push(Step { name: name.into(), ending, took: Duration::ZERO });
    }

    /// Prints one line for each step. True if none failed, and, where skips are not allowed, none was skipped.
    pub(crate) fn summary(&self, skips_allowed: bool) -> bool {
        self.failures.lines.iter().for_each(|line| println!("{line}"));
        println!("\nsummary");
        let mut good = true;
        for Step { name, ending, took } in &self.done {
            let (word, remark) = match ending {
                Ending::Pass => ("PASS", String::new()),
                Ending::Fail(reason) => ("FAIL", reason.clone()),
                Ending::Skip(reasons) => ("SKIP", reasons.join("; ")),
            };
            println!("{word}  {:>7.1} s  {name:<12} {remark}", took.as_secs_f64());
            good &= match ending {
                Ending::Pass => true,
                Ending::Fail(_) => false,
                Ending::Skip(_) => skips_allowed,
            };
        }
        let took: Duration = self.done.iter().map(|step| step.took).sum();
        println!("{}  {:>7.1} s  in all", if good { "PASS" } else { "FAIL" }, took.as_secs_f64());
        good
    }
}

/// A cargo command in the workspace.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    // Cargo says which cargo it is, so that a pinned toolchain stays the same one.
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root);
    command
}

/// The one place that reads the clock: steps are timed for people.
#[allow(clippy::disallowed_methods, reason = "no Runtime here: a step's duration is for people")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A pause between two looks at a server that starts, within its bound.
#[allow(clippy::disallowed_methods, reason = "no Runtime here: other programs are waited for")]
pub(crate) fn rest(duration: Duration) {
    std::thread::sleep(duration);
}

fn describe(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), value?.display())))
        .collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    words.push(program.display().to_string());
    words.extend(command.get_args().map(|argument| argument.display().to_string()));
    words.join(" ")
}

/// Runs a command, copies its lines to `display` and notes what failed.
fn follow(command: &mut Command, display: &mut impl Write, failures: &mut Failures) -> Ending {
    let mut child = match command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => return Ending::Fail(format!("cannot be started: {error}")),
    };
    let output = child.stdout.take().expect("the output was piped");
    let mut skips = Vec::new();
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some(reason) = line.trim_start().strip_prefix("SKIP: ") {
            skips.push(reason.to_owned());
        }
        failures.take(&line);
        // A display that went away does not stop the step.
        let _ = writeln!(display, "{line}");
    }
    match child.wait() {
        Ok(status) if status.success() && skips.is_empty() => Ending::Pass,
        Ok(status) if status.success() => Ending::Skip(skips),
        Ok(status) => Ending::Fail(status.to_string()),
        Err(error) => Ending::Fail(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a shell script ends as a step. Its lines go nowhere: they would count as this test's own.
    fn shell(script: &str) -> Ending {
        follow(Command::new("sh").args(["-c", script]), &mut std::io::sink(), &mut Failures::default())
    }

    #[test]
    fn a_step_passes_fails_or_skips() {
        assert_eq!(shell("echo fine"), Ending::Pass);
        assert_eq!(shell("echo 'SKIP: no disk'"), Ending::Skip(vec!["no disk".into()]));
        assert!(matches!(shell("echo 'SKIP: x'; exit 3"), Ending::Fail(_)));
        assert!(matches!(
            follow(&mut Command::new("no-such-program"), &mut std::io::sink(), &mut Failures::default()),
            Ending::Fail(_)
        ));
    }

    #[test]
    fn what_failed_is_kept_to_be_said_again() {
        let mut failures = Failures::default();
        let script = "echo successes:; echo fine; echo failures:; echo '---- this stdout ----'; echo why; \
                      echo 'test result: FAILED'; echo behind";
        let ending = follow(Command::new("sh").args(["-c", script]), &mut std::io::sink(), &mut failures);
        assert_eq!(ending, Ending::Pass);
        assert_eq!(failures.lines, ["failures:", "---- this stdout ----", "why"]);
    }

    #[test]
    fn a_skip_fails_where_skips_are_not_allowed() {
        let mut steps = Steps::default();
        assert!(steps.note("fine", Ending::Pass, now()));
        assert!(steps.summary(false));
        assert!(steps.note("half", Ending::Skip(vec!["no disk".into()]), now()));
        assert!(steps.summary(true) && !steps.summary(false));
        assert!(!steps.note("bad", Ending::Fail("broken".into()), now()));
        assert!(!steps.summary(true));
    }
}
