//! How far a long command is: a line on stderr that changes, if that is a terminal, else nothing.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Tells of progress while it lives.
pub struct Progress(ProgressBar);

impl Progress {
    /// Of something whose end is known, counted in bytes.
    pub fn of_bytes(what: &'static str, total: u64) -> Self {
        Self::new(
            ProgressBar::new(total),
            "{msg}  {bar:30}  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} to go",
            what,
        )
    }

    /// Of keys whose number is known.
    pub fn of_keys(what: &'static str, total: u64) -> Self {
        Self::new(
            ProgressBar::new(total),
            "{msg}  {bar:30}  {human_pos} of {human_len} keys  {per_sec}",
            what,
        )
    }

    /// Of keys whose number is not known.
    pub fn of_unknown(what: &'static str) -> Self {
        Self::new(ProgressBar::no_length(), "{msg}  {human_pos} keys  {per_sec}", what)
    }

    fn new(bar: ProgressBar, template: &str, what: &'static str) -> Self {
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.set_style(ProgressStyle::with_template(template).expect("our templates are valid"));
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// It is this far.
    pub fn at(&self, position: u64) {
        self.0.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
