//! Completions for shells and man pages, made from the command line itself.

use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use serde_json::json;

use crate::failure::Failure;
use crate::output::Printer;

/// Prints the completions of a command for a shell.
///
/// # Errors
/// They cannot be written.
pub fn completions(mut command: Command, shell: Shell, print: &mut Printer<'_>) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, &name, &mut script);
    if print.output() == crate::output::Output::Raw {
        return Ok(print.bytes(&script)?);
    }
    let text = String::from_utf8_lossy(&script).into_owned();
    print.result(
        |out| out.write_all(&script),
        || json!({ "command": name, "shell": shell.to_string(), "script": text }),
    )?;
    Ok(())
}

/// Writes the man pages of a command and of its subcommands into a folder.
///
/// # Errors
/// They cannot be written.
pub fn manual(mut command: Command, folder: &Path, print: &mut Printer<'_>) -> Result<(), Failure> {
    command = command.disable_help_subcommand(true);
    command.build();
    let failed = |error: std::io::Error| {
        Failure::Refused(format!("cannot write man pages into {}: {error}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    for path in pages(&command, folder).map_err(failed)? {
        let shown = path.display().to_string();
        print.item(|out| writeln!(out, "{shown}"), || json!({ "path": shown }))?;
    }
    Ok(print.end_list()?)
}

/// One page for a command, and one for each below it.
fn pages(command: &Command, folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = vec![clap_mangen::Man::new(command.clone()).generate_to(folder)?];
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        paths.extend(pages(below, folder)?);
    }
    Ok(paths)
}
