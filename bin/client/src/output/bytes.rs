//! Bytes of keys and values among text: as they are if they are UTF-8, else base64 under another name.

use std::borrow::Cow;
use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

/// Bytes under `name` if they are UTF-8, else under `name_base64`: never a guess which one it is.
pub fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), BASE64_STANDARD.encode(bytes).into()),
    };
}

/// The bytes that base64 (RFC 4648, section 4, with padding) stands for.
///
/// # Errors
/// It is none.
pub fn base64_decoded(text: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(text).map_err(|error| format!("not base64: {error}"))
}

/// Bytes as a terminal may see them: what is not UTF-8 or would steer the terminal is shown as `\x1b` and the like.
pub fn shown(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(char::is_control)
    {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\n' => shown.push_str("\\n"),
                '\t' => shown.push_str("\\t"),
                '\r' => shown.push_str("\\r"),
                letter if letter.is_control() => escape(&mut shown, u32::from(letter)),
                letter => shown.push(letter),
            }
        }
        chunk.invalid().iter().for_each(|byte| escape(&mut shown, u32::from(*byte)));
    }
    Cow::Owned(shown)
}

fn escape(shown: &mut String, code: u32) {
    write!(shown, "\\x{code:02x}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_or_base64_and_say_which() {
        let mut object = Map::new();
        insert_bytes(&mut object, "a", b"text");
        insert_bytes(&mut object, "b", &[0xff, 0xfe, 0xfd]);
        assert_eq!(Value::Object(object), serde_json::json!({"a": "text", "b_base64": "//79"}));
        assert_eq!(base64_decoded("//79").unwrap(), [0xff, 0xfe, 0xfd]);
        for wrong in ["a", "//7", "//79=", "\u{e9}"] {
            assert!(base64_decoded(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_steers_a_terminal() {
        for (bytes, expected) in [
            (&b"plain"[..], "plain"),
            ("gr\u{fc}n".as_bytes(), "gr\u{fc}n"),
            (b"a\x1b[31m\n", "a\\x1b[31m\\n"),
            (b"\xff\x00", "\\xff\\x00"),
            ("\u{9b}".as_bytes(), "\\x9b"),
        ] {
            assert_eq!(shown(bytes), expected);
        }
    }
}
