//! The JSON shapes of data. Keys and values are bytes: each has its text where it is UTF-8, and base64 always, so that
//! a person can read them and a program loses nothing.

use std::fmt;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use krita_proto::v1;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};

use super::refusal::Refusal;

/// A value longer than this has no text beside its base64, since escapes can make text six times as long.
pub(crate) const TEXT_BYTES_MAX: usize = 1024 * 1024;

/// Bytes as standard base64 with padding, written without a copy.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// The text of bytes, if they are text of bearable length.
fn text(bytes: &[u8]) -> Option<&str> {
    (bytes.len() <= TEXT_BYTES_MAX).then(|| std::str::from_utf8(bytes).ok()).flatten()
}

/// A key, its value (unless only keys were asked for) and its version.
#[derive(Serialize)]
pub(crate) struct Item<'a> {
    key: Option<&'a str>,
    key_base64: Base64<'a>,
    #[serde(flatten)]
    value: Option<Value<'a>>,
    version: u64,
}

/// A value in both of its forms.
#[derive(Serialize)]
pub(crate) struct Value<'a> {
    value: Option<&'a str>,
    value_base64: Base64<'a>,
}

impl<'a> Value<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { value: text(bytes), value_base64: Base64(bytes) }
    }
}

impl<'a> Item<'a> {
    /// An item; without a value if only keys were asked for.
    pub(crate) fn new(key: &'a [u8], value: Option<&'a [u8]>, version: u64) -> Self {
        Self { key: text(key), key_base64: Base64(key), value: value.map(Value::new), version }
    }
}

/// What was read of one operation of a batch.
#[derive(Serialize)]
pub(crate) struct GetResult<'a> {
    pub(crate) shard: u32,
    pub(crate) found: bool,
    pub(crate) version: u64,
    #[serde(flatten)]
    pub(crate) value: Option<Value<'a>>,
}

/// The body of a put in JSON.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutBody {
    value: Option<String>,
    value_base64: Option<String>,
    if_version: Option<u64>,
    if_value: Option<String>,
    if_value_base64: Option<String>,
}

/// The body of a batch.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchBody {
    pub(crate) operations: Vec<OperationBody>,
}

/// One operation of a batch.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OperationBody {
    Put(BatchPut),
    Delete(BatchDelete),
    Get(BatchGet),
}

/// Puts one key.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchPut {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    if_version: Option<u64>,
    if_value: Option<String>,
    if_value_base64: Option<String>,
}

/// Deletes one key.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchDelete {
    key: Option<String>,
    key_base64: Option<String>,
    if_version: Option<u64>,
    if_value: Option<String>,
    if_value_base64: Option<String>,
}

/// Reads one key.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchGet {
    key: Option<String>,
    key_base64: Option<String>,
}

impl PutBody {
    /// The value, and the condition that the body states.
    pub(crate) fn into_parts(self) -> Result<(Bytes, Option<v1::Condition>), Refusal> {
        let value = bytes_of("value", self.value, self.value_base64)?;
        Ok((value, condition(self.if_version, self.if_value, self.if_value_base64)?))
    }
}

impl OperationBody {
    /// The key, and the operation as native clients send it.
    pub(crate) fn into_operation(self) -> Result<(Bytes, v1::Operation), Refusal> {
        use v1::operation::Operation as Kind;
        let (key, operation) = match self {
            Self::Put(put) => {
                let key = bytes_of("key", put.key, put.key_base64)?;
                let value = bytes_of("value", put.value, put.value_base64)?;
                let condition = condition(put.if_version, put.if_value, put.if_value_base64)?;
                (key.clone(), Kind::Put(v1::OperationPut { key, value, condition }))
            }
            Self::Delete(delete) => {
                let key = bytes_of("key", delete.key, delete.key_base64)?;
                let condition = condition(delete.if_version, delete.if_value, delete.if_value_base64)?;
                (key.clone(), Kind::Delete(v1::OperationDelete { key, condition }))
            }
            Self::Get(get) => {
                let key = bytes_of("key", get.key, get.key_base64)?;
                (key.clone(), Kind::Get(v1::OperationGet { key }))
            }
        };
        Ok((key, v1::Operation { operation: Some(operation) }))
    }
}

fn condition(
    version: Option<u64>,
    value: Option<String>,
    value_base64: Option<String>,
) -> Result<Option<v1::Condition>, Refusal> {
    use v1::condition::Condition as Kind;
    let has_value = value.is_some() || value_base64.is_some();
    let condition = match version {
        Some(_) if has_value => return Err(Refusal::invalid("if_version and if_value exclude each other")),
        Some(version) => Kind::IfVersion(version),
        None if has_value => Kind::IfValue(bytes_of("if_value", value, value_base64)?),
        None => return Ok(None),
    };
    Ok(Some(v1::Condition { condition: Some(condition) }))
}

/// Bytes that are given either as text or as base64.
fn bytes_of(name: &str, text: Option<String>, base64: Option<String>) -> Result<Bytes, Refusal> {
    match (text, base64) {
        (Some(text), None) => Ok(Bytes::from(text)),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map(Bytes::from)
            .map_err(|error| Refusal::invalid(format!("{name}_base64 is not base64: {error}"))),
        (Some(_), Some(_)) => Err(Refusal::invalid(format!("{name} and {name}_base64 exclude each other"))),
        (None, None) => Err(Refusal::invalid(format!("{name} or {name}_base64 is missing"))),
    }
}

/// Parses a body; the error names line and column.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8], advice: impl fmt::Display) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::invalid(format!("the body is not the JSON that is wanted: {error}{advice}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn items_are_readable_and_lose_nothing() {
        let item = |key: &[u8], value| serde_json::to_value(Item::new(key, value, 7)).unwrap();
        assert_eq!(
            item(b"k", Some(b"blue")),
            json!({ "key": "k", "key_base64": "aw==", "value": "blue", "value_base64": "Ymx1ZQ==", "version": 7 })
        );
        assert_eq!(
            item(b"\xff", Some(b"\0\xff")),
            json!({ "key": null, "key_base64": "/w==", "value": null, "value_base64": "AP8=", "version": 7 })
        );
        assert_eq!(item(b"k", None), json!({ "key": "k", "key_base64": "aw==", "version": 7 }));
    }

    #[test]
    fn bodies_state_each_thing_once() {
        let put = |text: &str| parse::<PutBody>(text.as_bytes(), "").and_then(PutBody::into_parts);
        assert_eq!(put(r#"{"value": "é"}"#).unwrap(), (Bytes::from("é"), None));
        assert_eq!(put(r#"{"value_base64": "AP8="}"#).unwrap().0, b"\0\xff"[..]);
        let condition = put(r#"{"value": "a", "if_version": 0}"#).unwrap().1.unwrap().condition;
        assert_eq!(condition, Some(v1::condition::Condition::IfVersion(0)));
        for bad in [
            "{}",
            r#"{"value": "a", "value_base64": "YQ=="}"#,
            r#"{"value_base64": "YQ"}"#,
            r#"{"value_base64": "A-_="}"#,
            r#"{"value": "a", "if_version": 1, "if_value": "b"}"#,
            r#"{"value": "a", "if_version": -1}"#,
            r#"{"value": 1}"#,
            r#"{"value": "a", "values": 1}"#,
            r#"{"value": "a", "value": "b"}"#,
        ] {
            assert!(put(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_json_is_named_by_line_and_column() {
        let error = parse::<BatchBody>(b"{\"operations\": [\n  {\"puts\": {}}]}", "").unwrap_err();
        assert!(error.failure.message.contains("at line 2 column"), "{}", error.failure.message);
        let invalid = parse::<PutBody>(b"{\"value\": \"\xff\"}", "").unwrap_err();
        assert!(invalid.failure.message.contains("line 1 column"), "{}", invalid.failure.message);
    }
}
