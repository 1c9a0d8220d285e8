//! Colour: on terminals alone, and never against the user's will.

use std::env;
use std::io::IsTerminal;

/// Whether text may be coloured, and whether a person looks at it on a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    has_colour: bool,
    is_terminal: bool,
}

impl Style {
    /// For files and pipes.
    pub const PLAIN: Self = Self { has_colour: false, is_terminal: false };

    /// For what is written to this stream, as the environment wants it.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let wishes = Wishes {
            no_colour: is_set("NO_COLOR"),
            forced: env::var_os("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0"),
            dumb: env::var_os("TERM").is_some_and(|value| value == "dumb"),
        };
        Self::decided(stream.is_terminal(), wishes)
    }

    fn decided(is_terminal: bool, wishes: Wishes) -> Self {
        let has_colour = !wishes.no_colour && (wishes.forced || (is_terminal && !wishes.dumb));
        Self { has_colour, is_terminal }
    }

    /// Whether a person looks at it.
    pub fn is_terminal(self) -> bool {
        self.is_terminal
    }

    /// Whether text is coloured.
    pub fn has_colour(self) -> bool {
        self.has_colour
    }

    /// What is well.
    pub fn good(self, text: &str) -> String {
        self.wrapped("32", text)
    }

    /// What may need somebody.
    pub fn doubtful(self, text: &str) -> String {
        self.wrapped("33", text)
    }

    /// What is wrong.
    pub fn bad(self, text: &str) -> String {
        self.wrapped("1;31", text)
    }

    /// Headings and names.
    pub fn strong(self, text: &str) -> String {
        self.wrapped("1", text)
    }

    fn wrapped(self, code: &str, text: &str) -> String {
        if self.has_colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// What the environment says about colour: <https://no-color.org>, <https://bixense.com/clicolors>.
#[derive(Clone, Copy, Default)]
struct Wishes {
    no_colour: bool,
    forced: bool,
    dumb: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_needs_a_terminal_and_nobody_against_it() {
        let none = Wishes::default();
        let has = |is_terminal, wishes| Style::decided(is_terminal, wishes).good("x") != "x";
        assert!(has(true, none));
        assert!(!has(false, none));
        assert!(has(false, Wishes { forced: true, ..none }));
        assert!(!has(true, Wishes { dumb: true, ..none }));
        assert!(!has(true, Wishes { no_colour: true, forced: true, ..none }));
    }
}
