//! From texts to checked values: reads `krita.yaml`, lays variables and flags over it, and judges every value
//! by the table of keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::Sources;
use super::keys::{KEYS, Key, Kind, nearest};

/// Prefix of the variables.
const VARIABLE_PREFIX: &str = "KRITA_";

/// Variables that are the client's and mean nothing to a node.
const VARIABLES_OF_CLIENTS: [&str; 3] = ["KRITA_HOST", "KRITA_OUTPUT", "KRITA_TIMEOUT_MS"];

/// Larger files are no configuration.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// The text of a value, and what a path in it is relative to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) relative_to: Option<PathBuf>,
}

/// Every key that has a value, checked by the table.
pub(super) struct Merged {
    pub(super) values: BTreeMap<&'static str, Given>,
    pub(super) warnings: Vec<String>,
}

/// Lays the sources over one another.
pub(super) fn merge(sources: Sources<'_>) -> Result<Merged, Vec<String>> {
    let folder = sources.file.and_then(|(path, _)| path.parent()).map(Path::to_owned);
    let mut values = BTreeMap::new();
    for key in &KEYS {
        if let Some(default) = key.default {
            let given = Given { text: default.to_owned(), relative_to: folder.clone() };
            values.insert(key.name, given);
        }
    }
    let mut merger = Merger { values, errors: Vec::new(), warnings: Vec::new() };
    for (name, text) in sources.fallbacks {
        merger.give_by_name(name, text, &format!("{name} as found"));
    }
    if let Some((path, text)) = sources.file {
        merger.give_file(path, text, folder.as_deref())?;
    }
    for (variable, text) in sources.environment {
        merger.give_variable(variable, text);
    }
    for (flag, text) in sources.flags {
        let name = flag.trim_start_matches('-').replace('-', "_");
        merger.give_by_name(&name, text, &format!("--{}", name.replace('_', "-")));
    }
    merger.finish(sources.file.map(|(path, _)| path))
}

struct Merger {
    values: BTreeMap<&'static str, Given>,
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Merger {
    fn give_file(&mut self, path: &Path, text: &str, folder: Option<&Path>) -> Result<(), Vec<String>> {
        let shown = path.display();
        if text.len() > FILE_BYTES_MAX {
            return Err(vec![format!(
                "{shown} is larger than {FILE_BYTES_MAX} bytes: it is no configuration file"
            )]);
        }
        let document = serde_yaml::from_str::<Value>(text).map_err(|error| {
            // The parser repeats the place behind its text; we put it in front, where editors find it.
            let said = error.to_string();
            match error.location() {
                Some(at) => vec![format!("{shown}:{}:{}: not valid YAML: {said}", at.line(), at.column())],
                None => vec![format!("{shown}: not valid YAML: {said}")],
            }
        })?;
        let mapping = match document {
            Value::Mapping(mapping) => mapping,
            Value::Null => return Ok(()),
            _ => return Err(vec![format!("{shown}:1:1: keys with values are wanted, such as port: 8080")]),
        };
        for (name, value) in &mapping {
            let Value::String(name) = name else {
                self.errors.push(format!("{shown}: a key must be a text, not {name:?}"));
                continue;
            };
            let at = place(path, text, name);
            let Some(key) = Key::by_name(name) else {
                self.errors.push(format!("{at}: unknown key {name}{}", hint(name)));
                continue;
            };
            match text_of(key, value) {
                Ok(text) => self.give(key, &text, &at, folder),
                Err(wanted) => self.errors.push(format!("{at}: {name} has the wrong form: give {wanted}")),
            }
        }
        Ok(())
    }

    fn give_variable(&mut self, variable: &str, text: &str) {
        let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else { return };
        if VARIABLES_OF_CLIENTS.contains(&variable) {
            return;
        }
        match Key::by_name(&name.to_ascii_lowercase()) {
            Some(key) => self.give(key, text, variable, None),
            // Other programs may have variables of this prefix, so this is no error.
            None => {
                self.warnings.push(format!("{variable} is no key of Krita's and is ignored{}", hint(name)))
            }
        }
    }

    fn give_by_name(&mut self, name: &str, text: &str, at: &str) {
        match Key::by_name(name) {
            Some(key) => self.give(key, text, at, None),
            None => self.errors.push(format!("{at}: unknown key {name}{}", hint(name))),
        }
    }

    fn give(&mut self, key: &'static Key, text: &str, at: &str, folder: Option<&Path>) {
        let text = text.trim();
        match key.check(text) {
            Ok(()) => {
                let given = Given { text: text.to_owned(), relative_to: folder.map(Path::to_owned) };
                self.values.insert(key.name, given);
            }
            Err(wanted) => {
                let shown = match key.kind {
                    Kind::Secret | Kind::Digest => "of the wrong form".to_owned(),
                    _ => format!("\"{}\"", text.escape_debug()),
                };
                self.errors.push(format!("{at}: {} is {shown}: give {wanted}", key.name));
                // What was given stands in, so that a key is not called missing too.
                self.values.entry(key.name).or_insert(Given { text: String::new(), relative_to: None });
            }
        }
    }

    fn finish(mut self, file: Option<&Path>) -> Result<Merged, Vec<String>> {
        for key in KEYS.iter().filter(|key| key.default.is_none() && !key.optional) {
            if !self.values.contains_key(key.name) {
                let place = file.map_or("krita.yaml".to_owned(), |path| path.display().to_string());
                self.errors.push(format!(
                    "{} is missing: set it in {place} or as {VARIABLE_PREFIX}{}; `init` writes a complete file",
                    key.name,
                    key.name.to_ascii_uppercase()
                ));
            }
        }
        if self.errors.is_empty() {
            Ok(Merged { values: self.values, warnings: self.warnings })
        } else {
            Err(self.errors)
        }
    }
}

fn hint(name: &str) -> String {
    match nearest(name) {
        Some(near) => format!("; did you mean {near}?"),
        None => "; docs/configuration.md lists all".to_owned(),
    }
}

/// The place of a top-level key: the parser keeps none.
fn place(path: &Path, text: &str, name: &str) -> String {
    let is_key = |line: &str| {
        let line = line.trim_start_matches(['"', '\'']);
        line.strip_prefix(name)
            .is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
    };
    match text.lines().position(is_key) {
        Some(line) => format!("{}:{}:1", path.display(), line + 1),
        None => path.display().to_string(),
    }
}

/// A YAML value as the text that a variable would hold; the error is what is wanted.
fn text_of(key: &Key, value: &Value) -> Result<String, String> {
    let quoted = || format!("{}, in quotes", key.form());
    match (key.kind, value) {
        (Kind::Addresses, Value::Sequence(items)) => {
            let texts: Option<Vec<&str>> = items.iter().map(address_of).collect();
            let texts = texts.filter(|texts| texts.iter().all(|text| !text.contains(',')));
            texts
                .map(|texts| texts.join(","))
                .ok_or("a list whose lines read: - address: \"host:port\"".to_owned())
        }
        (Kind::Addresses, Value::Null) => Ok(String::new()),
        (_, Value::String(text)) => Ok(text.clone()),
        // A name such as 1.10 or 007 would silently become another one.
        (Kind::Name | Kind::Secret | Kind::Digest | Kind::Text | Kind::Path, Value::Number(number)) => {
            if number.is_u64() && matches!(key.kind, Kind::Name) {
                Ok(number.to_string())
            } else {
                Err(quoted())
            }
        }
        (Kind::Name | Kind::Secret | Kind::Digest | Kind::Text | Kind::Path, Value::Bool(_)) => Err(quoted()),
        (_, Value::Number(number)) => Ok(number.to_string()),
        (_, Value::Bool(boolean)) => Ok(boolean.to_string()),
        (_, Value::Null) if key.optional => Ok(String::new()),
        (_, Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_)) => Err(key.form()),
    }
}

/// `address: "host:port"`, or the text alone.
fn address_of(item: &Value) -> Option<&str> {
    match item {
        Value::String(text) => Some(text),
        Value::Mapping(mapping) if mapping.len() == 1 => mapping.get("address")?.as_str(),
        _ => None,
    }
}
