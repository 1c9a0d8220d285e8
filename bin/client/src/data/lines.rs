//! Keys and values as lines of JSON, for `export`, `import` and `batch`.
//!
//! ```text
//! {"krita_export":1,"cluster_name":"mycluster","prefix":""}
//! {"key":"a","value":"1","version":7}
//! {"key_base64":"/w==","value_base64":"AP8=","version":9}
//! {"krita_export_end":true,"keys":2}
//! ```

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::output::{base64_decoded, insert_bytes};

/// The version of what `export` writes.
const FORMAT: u64 = 1;

/// A line is at most this long: the largest value, if every byte of it were escaped, and its key.
const LINE_BYTES_MAX: u64 = 112 * 1024 * 1024;

/// What a line of an export says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// The first of an export.
    Header(Header),
    /// A key and its value.
    Pair(Bytes, Bytes),
    /// The last of an export: how many keys it has.
    End(u64),
}

/// What an export is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) cluster_name: String,
    pub(super) prefix: Bytes,
}

impl Header {
    /// Its line, without a line feed.
    pub(super) fn line(&self) -> String {
        let mut object = Map::new();
        object.insert("krita_export".to_owned(), FORMAT.into());
        object.insert("cluster_name".to_owned(), self.cluster_name.clone().into());
        insert_bytes(&mut object, "prefix", &self.prefix);
        Value::Object(object).to_string()
    }
}

/// The line of a key, without a line feed.
pub(super) fn pair_line(key: &[u8], value: &[u8], version: u64) -> String {
    let mut object = Map::new();
    insert_bytes(&mut object, "key", key);
    insert_bytes(&mut object, "value", value);
    object.insert("version".to_owned(), version.into());
    Value::Object(object).to_string()
}

/// The last line, without a line feed.
pub(super) fn end_line(keys: u64) -> String {
    json!({ "krita_export_end": true, "keys": keys }).to_string()
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(line: &[u8]) -> Result<Line, String> {
    let object = object(line)?;
    if let Some(format) = object.get("krita_export") {
        if format.as_u64() != Some(FORMAT) {
            return Err(format!("an export of format {format}; this command knows {FORMAT}"));
        }
        let cluster_name = object.get("cluster_name").and_then(Value::as_str).unwrap_or_default().to_owned();
        return Ok(Line::Header(Header {
            cluster_name,
            prefix: bytes_of(&object, "prefix")?.unwrap_or_default(),
        }));
    }
    if object.contains_key("krita_export_end") {
        let keys = object.get("keys").and_then(Value::as_u64);
        return keys.map(Line::End).ok_or_else(|| "the last line lacks the number of keys".to_owned());
    }
    let key = bytes_of(&object, "key")?.ok_or("no \"key\" or \"key_base64\"")?;
    let value = bytes_of(&object, "value")?.ok_or("no \"value\" or \"value_base64\"")?;
    Ok(Line::Pair(key, value))
}

/// A line as a JSON object.
///
/// # Errors
/// It is none.
pub(super) fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("no JSON object".to_owned()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

/// The bytes under `name`, or under `name_base64`.
///
/// # Errors
/// They are no text, or no base64, or there twice.
pub(super) fn bytes_of(object: &Map<String, Value>, name: &str) -> Result<Option<Bytes>, String> {
    let encoded_name = format!("{name}_base64");
    match (object.get(name), object.get(&encoded_name)) {
        (None, None) => Ok(None),
        (Some(Value::String(text)), None) => Ok(Some(text.clone().into())),
        (None, Some(Value::String(text))) => match base64_decoded(text) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(reason) => Err(format!("\"{encoded_name}\" is {reason}")),
        },
        (Some(_), Some(_)) => Err(format!("both \"{name}\" and \"{encoded_name}\"")),
        (Some(_), None) | (None, Some(_)) => Err(format!("\"{name}\" is no string")),
    }
}

/// Reads lines of bounded length, and knows where it is.
pub(super) struct Lines<R> {
    from: R,
    /// The number of the line that was read last, from 1.
    pub(super) number: u64,
    /// Bytes up to the end of that line.
    pub(super) offset: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// From here on, where the byte `offset` is.
    pub(super) fn new(from: R, offset: u64) -> Self {
        Self { from, number: 0, offset, line: Vec::new() }
    }

    /// The next line that is not empty, with its line feed if it has one; `None` at the end.
    ///
    /// # Errors
    /// It cannot be read, or is longer than any line can be.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            self.line.clear();
            let length = (&mut self.from).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)? as u64;
            if length == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.offset += length;
            if length == LINE_BYTES_MAX && !self.line.ends_with(b"\n") {
                return Err(io::Error::other(format!("longer than {} MiB", LINE_BYTES_MAX >> 20)));
            }
            if !self.line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(&self.line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let all: Vec<u8> = (0..=255).collect();
        let header = Header { cluster_name: "c".to_owned(), prefix: all.clone().into() };
        assert_eq!(parse(header.line().as_bytes()), Ok(Line::Header(header)));
        for (key, value) in [(&b"k"[..], &all[..]), (&all, b""), ("\u{1b}\n\"".as_bytes(), b"{}")] {
            let line = pair_line(key, value, 3);
            assert!(!line.contains('\n'));
            let pair = Line::Pair(key.to_vec().into(), value.to_vec().into());
            assert_eq!(parse(line.as_bytes()), Ok(pair));
        }
        assert_eq!(parse(end_line(7).as_bytes()), Ok(Line::End(7)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, reason) in [
            ("", "not JSON"),
            ("[]", "no JSON object"),
            ("{\"key\":\"a\"}", "no \"value\""),
            ("{\"value\":\"a\"}", "no \"key\""),
            ("{\"key\":1,\"value\":\"a\"}", "\"key\" is no string"),
            ("{\"key\":\"a\",\"key_base64\":\"\",\"value\":\"a\"}", "both"),
            ("{\"key_base64\":\"x\",\"value\":\"a\"}", "not base64"),
            ("{\"krita_export\":2}", "format 2"),
            ("{\"krita_export_end\":true}", "lacks the number"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn lines_know_where_they_are() {
        let mut lines = Lines::new(&b"one\n\n  \nfour"[..], 100);
        assert_eq!(lines.next().unwrap(), Some(&b"one\n"[..]));
        assert_eq!((lines.number, lines.offset), (1, 104));
        assert_eq!(lines.next().unwrap(), Some(&b"four"[..]));
        assert_eq!((lines.number, lines.offset), (4, 112));
        assert_eq!(lines.next().unwrap(), None);
    }
}
