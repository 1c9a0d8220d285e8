//! `shell`: commands at a prompt, with history and completion of their names, over one connection; or from a pipe.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};

use super::{Command, execute};
use crate::connection::Target;
use crate::failure::{Failure, tell};
use crate::output::{Output, Printer};

/// Lines that the history keeps.
const HISTORY_MAX: usize = 10_000;

/// A line of the shell: a command without the name of the program.
#[derive(Parser, Debug)]
#[command(
    name = "kritaclient",
    no_binary_name = true,
    disable_version_flag = true,
    help_template = "{subcommands}\n\n{options}\n\nhelp COMMAND tells more; exit or Ctrl-D ends.\n"
)]
struct Line {
    /// How results are printed.
    #[arg(short, long, global = true, value_enum)]
    output: Option<Output>,
    #[command(subcommand)]
    command: LineCommand,
}

#[derive(Subcommand, Debug)]
enum LineCommand {
    #[command(flatten)]
    Data(Command),
    /// Leave the shell.
    #[command(alias = "quit")]
    Exit,
}

/// What a line did.
enum Next {
    More,
    Exit,
}

/// Runs the shell.
pub(super) fn run(target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let output = print.output();
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return at_a_prompt(target, output, print);
    }
    for (number, line) in (1_u64..).zip(io::stdin().lock().lines()) {
        match one(&line?, target, output, print) {
            Ok(Next::More) => {}
            Ok(Next::Exit) => break,
            Err(Failure::Usage(reason)) => {
                return Err(Failure::Usage(format!("line {number}: {reason}")));
            }
            Err(failure) => return Err(failure),
        }
        print.flush()?;
    }
    Ok(())
}

fn at_a_prompt(target: &Target, output: Output, print: &mut Printer<'_>) -> Result<(), Failure> {
    let unusable = |error: ReadlineError| Failure::Refused(format!("the terminal cannot be used: {error}"));
    let config = Config::builder()
        .max_history_size(HISTORY_MAX)
        .map_err(unusable)?
        .history_ignore_dups(true)
        .map_err(unusable)?
        .history_ignore_space(true)
        .auto_add_history(true)
        .build();
    let mut editor: Editor<Words, FileHistory> = Editor::with_config(config).map_err(unusable)?;
    editor.set_helper(Some(Words::of_commands()));
    let history = history_file();
    if let Some(file) = &history {
        // The first time there is none.
        let _absent = editor.load_history(file);
    }
    let prompt = format!("{}> ", target.options()?.cluster_name);
    loop {
        print.flush()?;
        let line = match editor.readline(&prompt) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(unusable(error)),
        };
        match one(&line, target, output, print) {
            Ok(Next::More) => {}
            Ok(Next::Exit) => break,
            Err(failure) => {
                print.flush()?;
                tell("kritaclient", &failure);
            }
        }
    }
    if let Some(file) = &history
        && let Err(error) = editor.save_history(file)
    {
        return Err(Failure::Refused(format!("cannot keep the history in {}: {error}", file.display())));
    }
    Ok(())
}

fn one(line: &str, target: &Target, output: Output, print: &mut Printer<'_>) -> Result<Next, Failure> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(Next::More);
    }
    let words = shlex::split(line).ok_or_else(|| Failure::Usage("a quote is not closed".to_owned()))?;
    let line = match Line::try_parse_from(words) {
        Ok(line) => line,
        Err(error) if !error.use_stderr() => {
            print.bytes(error.to_string().as_bytes())?;
            return Ok(Next::More);
        }
        Err(error) => return Err(Failure::Usage(one_line(&error))),
    };
    print.set_output(line.output.unwrap_or(output));
    let result = match line.command {
        LineCommand::Data(command) => execute(&command, target, print).map(|()| Next::More),
        LineCommand::Exit => Ok(Next::Exit),
    };
    print.set_output(output);
    result
}

/// What clap says over several lines, as one: what is wrong, and its tips.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let told = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let parts: Vec<&str> = told.map(|line| line.trim_start_matches("error: ")).collect();
    parts.join("; ")
}

/// Where the history lies: `$XDG_STATE_HOME/krita/history`. Only its owner can read it.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))?;
    let folder = state.join("krita");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// Completes the names of commands.
struct Words(Vec<String>);

impl Words {
    fn of_commands() -> Self {
        let line = Line::command();
        let names = line.get_subcommands().map(|command| command.get_name().to_owned());
        let hidden = ["shell", "completions", "manual"];
        let mut words: Vec<String> = names.filter(|name| !hidden.contains(&name.as_str())).collect();
        words.push("help".to_owned());
        Self(words)
    }
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..position];
        let is_command = !begun.contains(char::is_whitespace) || begun.trim_start().starts_with("help ");
        let start = begun.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let fitting = self.0.iter().filter(|word| is_command && word.starts_with(&begun[start..]));
        Ok((start, fitting.cloned().collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Line, clap::Error> {
        Line::try_parse_from(shlex::split(line).unwrap())
    }

    #[test]
    fn lines_are_commands_without_the_name() {
        Line::command().debug_assert();
        for line in ["put 'a b' c", "get a -o json", "delete --prefix x --dry-run", "exit", "quit"] {
            assert!(words(line).is_ok(), "{line}: {:?}", words(line).err());
        }
    }

    #[test]
    fn a_wrong_line_is_told_in_one_line_with_what_was_meant() {
        let told = one_line(&words("list-kyes a").unwrap_err());
        assert!(
            told.starts_with("unrecognized subcommand 'list-kyes'") && told.contains("'list-keys'"),
            "{told}"
        );
        assert!(!told.contains('\n'));
        let help = words("help").unwrap_err();
        assert!(!help.use_stderr() && help.to_string().contains("list-keys"));
    }

    #[test]
    fn names_of_commands_are_completed() {
        let helper = Words::of_commands();
        let history = FileHistory::new();
        let complete = |line: &str| helper.complete(line, line.len(), &Context::new(&history)).unwrap();
        assert_eq!(complete("li"), (0, vec!["list-keys".to_owned()]));
        assert_eq!(complete("help sc"), (5, vec!["scan".to_owned()]));
        assert_eq!(complete("get li").1, Vec::<String>::new());
    }
}
