//! How results look: text for people, tables, JSON and YAML for programs, raw bytes for pipes.
//!
//! A command hands a [`Printer`] its result twice over, as text and as a JSON value, and the printer takes what was
//! asked for; tables, YAML and raw lines are made from the value. So every command has every format.

mod bytes;
mod style;
mod table;

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;

pub use bytes::{base64_decoded, insert_bytes, shown};
pub use style::Style;
use table::Table;

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people: one line per result.
    Text,
    /// Columns with headings.
    Table,
    /// One JSON value per line; bytes that are not UTF-8 are base64, under a name that ends in _base64.
    Json,
    /// One YAML value, or a list; bytes as in JSON.
    Yaml,
    /// Nothing added: values byte by byte, listed keys with a zero byte behind each, other fields with tabs between.
    Raw,
}

impl Output {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Text, Self::Table, Self::Json, Self::Yaml, Self::Raw];
}

/// Prints the results of one command. Bounded: of a list it holds only the rows that decide the widths of a table.
pub struct Printer<'w> {
    out: &'w mut dyn Write,
    output: Output,
    style: Style,
    table: Table,
    items: u64,
}

impl<'w> Printer<'w> {
    /// Prints to `out`; `style` says whether that is a terminal.
    pub fn new(out: &'w mut dyn Write, output: Output, style: Style) -> Self {
        Self { out, output, style, table: Table::default(), items: 0 }
    }

    /// What was asked for.
    pub fn output(&self) -> Output {
        self.output
    }

    /// How text may be adorned.
    pub fn style(&self) -> Style {
        self.style
    }

    /// Prints in another format from now on.
    pub fn set_output(&mut self, output: Output) {
        self.output = output;
    }

    /// Prints one result of a command that has one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn result(
        &mut self,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        value: impl FnOnce() -> Value,
    ) -> io::Result<()> {
        match self.output {
            Output::Text => text(self.out),
            Output::Json => writeln!(self.out, "{}", value()),
            Output::Yaml => write!(self.out, "{}", yaml(&value())?),
            Output::Table => table::whole(self.out, &value(), self.style),
            Output::Raw => table::raw(self.out, &value()),
        }
    }

    /// Prints one result of many; [`Printer::end_list`] follows the last.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn item(
        &mut self,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        value: impl FnOnce() -> Value,
    ) -> io::Result<()> {
        self.items += 1;
        match self.output {
            Output::Text => text(self.out),
            Output::Json => writeln!(self.out, "{}", value()),
            // A list of one, again and again, is a list.
            Output::Yaml => write!(self.out, "{}", yaml(&Value::Array(vec![value()]))?),
            Output::Table => self.table.add(self.out, &value(), self.style),
            Output::Raw => table::raw(self.out, &value()),
        }
    }

    /// Ends a list of items, of which there may have been none.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn end_list(&mut self) -> io::Result<()> {
        let table = std::mem::take(&mut self.table);
        table.end(self.out, self.style)?;
        if std::mem::take(&mut self.items) == 0 && self.output == Output::Yaml {
            writeln!(self.out, "[]")?;
        }
        Ok(())
    }

    /// Prints bytes as they are, whatever the format.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Sends on what is still in memory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.end_table()?;
        self.out.flush()
    }

    /// A list that was broken off shows what it had.
    fn end_table(&mut self) -> io::Result<()> {
        self.items = 0;
        std::mem::take(&mut self.table).end(self.out, self.style)
    }
}

fn yaml(value: &Value) -> io::Result<String> {
    serde_yaml::to_string(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a list of these prints in a format.
    fn printed(output: Output, values: &[Value]) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, output, Style::PLAIN);
        for value in values {
            printer.item(|out| writeln!(out, "text"), || value.clone()).unwrap();
        }
        printer.end_list().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_list_reads_back_in_every_format() {
        let values = [json!({"key": "a", "version": 1}), json!({"key": "b\n\u{1b}", "version": 20})];
        let json: Vec<Value> =
            printed(Output::Json, &values).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(json, values);
        let yaml: Vec<Value> = serde_yaml::from_str(&printed(Output::Yaml, &values)).unwrap();
        assert_eq!(yaml, values);
        assert_eq!(printed(Output::Text, &values), "text\ntext\n");
        assert_eq!(printed(Output::Table, &values), "KEY        VERSION\na          1\nb\\n\\x1b    20\n");
        assert_eq!(printed(Output::Raw, &values[..1]), "a\t1\n");
    }

    #[test]
    fn a_list_of_nothing_is_a_list() {
        assert_eq!(printed(Output::Yaml, &[]), "[]\n");
        for output in [Output::Text, Output::Table, Output::Json, Output::Raw] {
            assert_eq!(printed(output, &[]), "");
        }
    }

    #[test]
    fn one_result_with_rows_in_it_shows_them_as_a_table() {
        let value = json!({"healthy": true, "members": [{"node_id": "n1", "problems": ["a", "b"]}]});
        let mut out = Vec::new();
        Printer::new(&mut out, Output::Table, Style::PLAIN).result(|_| Ok(()), || value).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HEALTHY\ntrue\n\nmembers\nNODE_ID    PROBLEMS\nn1         a; b\n"
        );
    }
}
