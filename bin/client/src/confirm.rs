//! Asks before something that cannot be undone: on a terminal only. A script says `--yes`.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Whether there is somebody to ask.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// The refusal where nobody can be asked.
pub fn nobody_to_ask(what: &str) -> Failure {
    Failure::Usage(format!(
        "{what}: confirm with --yes, or look first with --dry-run (there is no terminal to ask on)"
    ))
}

/// Asks whether `what` shall be done.
///
/// # Errors
/// It shall not, or there is nobody to ask.
pub fn confirm(what: &str) -> Result<(), Failure> {
    if !can_ask() {
        return Err(nobody_to_ask(what));
    }
    let mut stderr = io::stderr();
    write!(stderr, "{what}? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Refused("nothing was changed".to_owned())),
    }
}
