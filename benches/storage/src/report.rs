//! Tables for people and JSON for programs, of the same rows.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::stores::Failure;

/// A finished command: what was done, with what settings, and what was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was measured, in a sentence.
    pub title: String,
    /// What a reader must know of each figure.
    pub notes: Vec<String>,
    /// What is set for each store.
    pub settings: Vec<String>,
    /// The names of the columns.
    pub columns: Vec<&'static str>,
    /// The rows, as they stand in the table.
    pub rows: Vec<Vec<String>>,
    /// All that was found, unrounded.
    pub data: Vec<Value>,
}

impl Report {
    /// The report as a table that also is Markdown.
    pub fn text(&self) -> String {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: &[&str]| {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} "));
            format!("|{}|\n", padded.collect::<Vec<_>>().join("|"))
        };
        let mut text = format!("{}\n\n{}", self.title, line(&self.columns));
        let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        text += &line(&rules.iter().map(String::as_str).collect::<Vec<_>>());
        for row in &self.rows {
            text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
        }
        text.push('\n');
        for note in self.notes.iter().chain(&self.settings) {
            text += &format!("- {note}\n");
        }
        text
    }

    /// Prints the table, and writes the JSON if a path is given.
    pub fn publish(&self, json: Option<&Path>) -> Result<(), Failure> {
        println!("{}", self.text());
        if let Some(path) = json {
            fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        }
        Ok(())
    }
}

/// Bytes, in the unit that fits.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

/// A ratio of bytes.
pub fn ratio(bytes: u64, of: u64) -> String {
    format!("{:.2}", bytes as f64 / of.max(1) as f64)
}

/// A number with separated thousands.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!((number(0).as_str(), number(1_234_567).as_str()), ("0", "1,234,567"));
        assert_eq!((bytes(512).as_str(), bytes(3 << 19).as_str()), ("512 B", "1.5 MiB"));
        assert_eq!(ratio(3, 2), "1.50");
    }

    #[test]
    fn a_table_lines_up() {
        let report = Report {
            title: "Title".into(),
            notes: vec!["note".into()],
            settings: Vec::new(),
            columns: vec!["a", "long"],
            rows: vec![vec!["wide".into(), "1".into()]],
            data: Vec::new(),
        };
        let expected = "Title\n\n| a    | long |\n| ---- | ---- |\n| wide | 1    |\n\n- note\n";
        assert_eq!(report.text(), expected);
    }
}
