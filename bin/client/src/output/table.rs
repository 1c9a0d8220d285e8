//! Tables and raw lines, made from the JSON values of results.
//!
//! A list may have millions of rows: the first ones decide the widths of the columns, later ones that are wider push
//! their line out.

use std::io::{self, Write};

use serde_json::{Map, Value};
use unicode_width::UnicodeWidthStr;

use super::{Style, shown};

/// Rows that are held to find the widths of the columns.
const ROWS_HELD: usize = 1_000;

/// A column's width counts up to this: one long value must not push everything else out of sight.
const WIDTH_MAX: usize = 48;

/// Names of columns that come first, in this order; others follow by name.
const FIRST: [&str; 20] = [
    "check",
    "verdict",
    "op",
    "key",
    "key_base64",
    "value",
    "value_base64",
    "node_id",
    "node_number",
    "address",
    "shard",
    "version",
    "healthy",
    "state",
    "file",
    "path",
    "severity",
    "leader",
    "role",
    "name",
];

/// A table that grows.
#[derive(Default)]
pub(super) struct Table {
    columns: Vec<(String, usize)>,
    held: Vec<Map<String, Value>>,
    has_begun: bool,
}

impl Table {
    /// Adds a row.
    pub(super) fn add(&mut self, out: &mut dyn Write, row: &Value, style: Style) -> io::Result<()> {
        let row = match row {
            Value::Object(object) => object.clone(),
            other => Map::from_iter([("value".to_owned(), other.clone())]),
        };
        if self.has_begun {
            return self.line(out, &row);
        }
        self.held.push(row);
        if self.held.len() >= ROWS_HELD { self.begin(out, style) } else { Ok(()) }
    }

    /// Prints what is still held.
    pub(super) fn end(mut self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        if self.has_begun || self.held.is_empty() { Ok(()) } else { self.begin(out, style) }
    }

    fn begin(&mut self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let rows = std::mem::take(&mut self.held);
        self.columns = columns(&rows);
        self.has_begun = true;
        let titles: Vec<String> = self.columns.iter().map(|(name, _)| name.to_uppercase()).collect();
        let line = padded(titles.iter().map(String::as_str).zip(self.columns.iter().map(|column| column.1)));
        writeln!(out, "{}", style.strong(&line))?;
        rows.iter().try_for_each(|row| self.line(out, row))
    }

    fn line(&self, out: &mut dyn Write, row: &Map<String, Value>) -> io::Result<()> {
        let cells: Vec<(String, usize)> =
            self.columns.iter().map(|(name, width)| (cell(row.get(name)), *width)).collect();
        writeln!(out, "{}", padded(cells.iter().map(|(text, width)| (text.as_str(), *width))))
    }
}

/// The columns of these rows, with their widths. What is nested stays out of tables.
fn columns(rows: &[Map<String, Value>]) -> Vec<(String, usize)> {
    let mut widths = std::collections::BTreeMap::new();
    for row in rows {
        for (name, value) in row.iter().filter(|(_, value)| !is_nested(value)) {
            let width = widths.entry(name.clone()).or_insert(name.width());
            *width = (*width).max(cell(Some(value)).width().min(WIDTH_MAX));
        }
    }
    let rank = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
    let mut columns: Vec<(String, usize)> = widths.into_iter().collect();
    columns.sort_by(|a, b| (rank(&a.0), &a.0).cmp(&(rank(&b.0), &b.0)));
    columns
}

/// Objects, and lists of objects.
fn is_nested(value: &Value) -> bool {
    match value {
        Value::Object(_) => true,
        Value::Array(values) => values.iter().any(|value| value.is_object() || value.is_array()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => shown(text.as_bytes()).into_owned(),
        Some(Value::Array(values)) if values.iter().all(Value::is_string) => {
            let texts: Vec<String> = values.iter().map(|value| cell(Some(value))).collect();
            texts.join("; ")
        }
        Some(other) => other.to_string(),
    }
}

/// Cells side by side; nothing behind the last.
fn padded<'c>(cells: impl Iterator<Item = (&'c str, usize)>) -> String {
    let mut line = String::new();
    for (text, width) in cells {
        line.push_str(text);
        let missing = width.saturating_sub(text.width());
        line.extend(std::iter::repeat_n(' ', missing + 4));
    }
    line.truncate(line.trim_end_matches(' ').len());
    line
}

/// One result: its own fields as a row, and each list of rows in it as a table.
pub(super) fn whole(out: &mut dyn Write, value: &Value, style: Style) -> io::Result<()> {
    let Value::Object(object) = value else {
        let mut table = Table::default();
        for row in value.as_array().unwrap_or(&vec![value.clone()]) {
            table.add(out, row, style)?;
        }
        return table.end(out, style);
    };
    let mut is_first = true;
    if object.values().any(|value| !is_nested(value)) {
        let mut own = Table::default();
        own.add(out, value, style)?;
        own.end(out, style)?;
        is_first = false;
    }
    for (name, rows) in object {
        let rows = match rows {
            Value::Array(rows) if is_nested(value) && rows.iter().any(Value::is_object) => rows.clone(),
            Value::Object(_) => vec![rows.clone()],
            _other => continue,
        };
        if !is_first {
            writeln!(out)?;
        }
        is_first = false;
        writeln!(out, "{name}")?;
        let mut table = Table::default();
        for row in &rows {
            table.add(out, row, style)?;
        }
        table.end(out, style)?;
    }
    Ok(())
}

/// The fields of a result with tabs between; of a list of rows in it a line for each row instead.
pub(super) fn raw(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    let Value::Object(object) = value else { return writeln!(out, "{}", cell(Some(value))) };
    let lists: Vec<&Vec<Value>> =
        object.values().filter(|value| is_nested(value)).filter_map(Value::as_array).collect();
    if !lists.is_empty() {
        return lists.into_iter().flatten().try_for_each(|row| raw(out, row));
    }
    let cells: Vec<String> =
        columns(std::slice::from_ref(object)).iter().map(|(name, _)| cell(object.get(name))).collect();
    writeln!(out, "{}", cells.join("\t"))
}
