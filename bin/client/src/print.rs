//! How results look: text for people, JSON for programs, raw bytes for pipes.

use std::io::{self, Write};

use clap::ValueEnum;
use kritaclient::{Deleted, Entry, MemberHealth, Written, v1};
use serde_json::{Map, Value, json};

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people: one line per result.
    Text,
    /// One JSON value per result; bytes that are not UTF-8 are base64 and marked as such.
    Json,
    /// Bytes as they are, nothing added; listed keys end with a zero byte.
    Raw,
}

/// A value that was put.
pub fn written(out: &mut impl Write, output: Output, written: Written) -> io::Result<()> {
    match output {
        Output::Text => writeln!(out, "OK version {}", written.version),
        Output::Json => line(out, &json!({ "version": written.version })),
        Output::Raw => Ok(()),
    }
}

/// A key that was removed, or was absent already.
pub fn deleted(out: &mut impl Write, output: Output, deleted: Deleted) -> io::Result<()> {
    match output {
        Output::Text if deleted.existed => writeln!(out, "OK version {}", deleted.version),
        Output::Text => writeln!(out, "OK the key was absent"),
        Output::Json => line(out, &json!({ "existed": deleted.existed, "version": deleted.version })),
        Output::Raw => Ok(()),
    }
}

/// A value that was read.
pub fn entry(out: &mut impl Write, output: Output, entry: &Entry) -> io::Result<()> {
    match output {
        Output::Text => {
            out.write_all(&entry.value)?;
            out.write_all(b"\n")
        }
        Output::Json => {
            let mut object = Map::new();
            insert_bytes(&mut object, "value", &entry.value);
            object.insert("version".to_owned(), entry.version.into());
            line(out, &Value::Object(object))
        }
        Output::Raw => out.write_all(&entry.value),
    }
}

/// One key of a list.
pub fn key(out: &mut impl Write, output: Output, key: &[u8], version: u64) -> io::Result<()> {
    match output {
        Output::Text => {
            out.write_all(key)?;
            out.write_all(b"\n")
        }
        Output::Json => {
            let mut object = Map::new();
            insert_bytes(&mut object, "key", key);
            object.insert("version".to_owned(), version.into());
            line(out, &Value::Object(object))
        }
        Output::Raw => {
            out.write_all(key)?;
            out.write_all(b"\0")
        }
    }
}

/// Whether a member serves and has nothing to report.
pub fn is_healthy(member: &MemberHealth) -> bool {
    member.status.as_ref().is_ok_and(|status| {
        status.state == "serving"
            && status.problems.is_empty()
            && status.shards_with_leader == status.shards_total
    })
}

/// How the members are, one each.
pub fn health(out: &mut impl Write, output: Output, members: &[MemberHealth]) -> io::Result<()> {
    match output {
        Output::Text | Output::Raw => members.iter().try_for_each(|member| health_text(out, member)),
        Output::Json => {
            let healthy = members.iter().all(is_healthy);
            let members: Vec<_> = members.iter().map(health_json).collect();
            line(out, &json!({ "healthy": healthy, "members": members }))
        }
    }
}

fn health_text(out: &mut impl Write, member: &MemberHealth) -> io::Result<()> {
    let name = if member.node_id.is_empty() { "?" } else { &member.node_id };
    let address = &member.address;
    match &member.status {
        Ok(status) => {
            let verdict = if is_healthy(member) { "healthy" } else { "unhealthy" };
            writeln!(
                out,
                "{name}  {address}  {verdict}  {}  leads {} of {} shards, {} with a leader",
                status.state, status.shards_led, status.shards_total, status.shards_with_leader
            )?;
            status.problems.iter().try_for_each(|problem| writeln!(out, "    {problem}"))
        }
        Err(error) => {
            writeln!(out, "{name}  {address}  unhealthy  unreachable")?;
            writeln!(out, "    {error}")
        }
    }
}

fn health_json(member: &MemberHealth) -> Value {
    let mut object = Map::new();
    object.insert("node_id".to_owned(), member.node_id.clone().into());
    object.insert("node_number".to_owned(), member.node_number.into());
    object.insert("address".to_owned(), member.address.clone().into());
    object.insert("healthy".to_owned(), is_healthy(member).into());
    let rest = match &member.status {
        Ok(status) => json!({
            "state": status.state,
            "shards_total": status.shards_total,
            "shards_led": status.shards_led,
            "shards_with_leader": status.shards_with_leader,
            "cores": status.cores,
            "uptime_ms": status.uptime_ms,
            "version": status.version,
            "problems": status.problems,
            "storage": status.storage.as_ref().map(storage_json),
        }),
        Err(error) => json!({ "state": "unreachable", "problems": [error.to_string()] }),
    };
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    Value::Object(object)
}

fn storage_json(storage: &v1::StorageStatus) -> Value {
    json!({
        "free_bytes": free_bytes(storage),
        "full": storage.full,
        "logs_scrubbing": storage.logs_scrubbing,
        "scrub_passes": storage.scrub_passes,
        "scrub_bytes": storage.scrub_bytes,
        "damages": storage.damages,
        "values_repaired": storage.values_repaired,
        "divergences": storage.divergences,
        "shards_suspect": storage.shards_suspect,
    })
}

/// The bytes that a node's disk has free, if it knows.
pub(crate) fn free_bytes(storage: &v1::StorageStatus) -> Option<u64> {
    Some(storage.free_bytes).filter(|bytes| *bytes != u64::MAX)
}

/// One JSON value on a line.
pub(crate) fn line(out: &mut impl Write, value: &Value) -> io::Result<()> {
    writeln!(out, "{value}")
}

/// Bytes under `name` if they are UTF-8, else under `name_base64`: never a guess which one it is.
pub(crate) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), base64(bytes).into()),
    };
}

/// RFC 4648, section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        for digit in 0..4 {
            let is_padding = digit > chunk.len();
            let value = (bits >> (18 - 6 * digit)) as usize % 64;
            text.push(if is_padding { '=' } else { char::from(ALPHABET[value]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kritaclient::{Error, ErrorCode};

    fn printed(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Vec<u8> {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        out
    }

    #[test]
    fn base64_has_the_vectors_of_its_rfc() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn values_print_in_each_form() {
        let entry_of = |value: &'static [u8]| Entry { value: value.to_vec().into(), version: 7 };
        for (output, value, expected) in [
            (Output::Text, &b"v"[..], &b"v\n"[..]),
            (Output::Raw, b"v\xff\n", b"v\xff\n"),
            (Output::Json, b"v\n", b"{\"value\":\"v\\n\",\"version\":7}\n"),
            (Output::Json, b"\xff", b"{\"value_base64\":\"/w==\",\"version\":7}\n"),
        ] {
            assert_eq!(printed(|out| entry(out, output, &entry_of(value))), expected);
        }
        assert_eq!(printed(|out| key(out, Output::Raw, b"k", 1)), b"k\0");
        assert_eq!(printed(|out| key(out, Output::Text, b"k", 1)), b"k\n");
        assert_eq!(printed(|out| written(out, Output::Text, Written { version: 3 })), b"OK version 3\n");
        let gone = Deleted { existed: false, version: 0 };
        assert_eq!(printed(|out| deleted(out, Output::Json, gone)), b"{\"existed\":false,\"version\":0}\n");
    }

    #[test]
    fn unreachable_members_appear_and_are_unhealthy() {
        let serving = v1::NodeStatusReply {
            state: "serving".to_owned(),
            shards_total: 64,
            shards_led: 20,
            shards_with_leader: 64,
            ..Default::default()
        };
        let member = |status| MemberHealth {
            node_number: 1,
            node_id: "node1".to_owned(),
            address: "a:1".to_owned(),
            status,
        };
        let well = member(Ok(serving.clone()));
        let headless = member(Ok(v1::NodeStatusReply { shards_with_leader: 63, ..serving.clone() }));
        let forming = member(Ok(v1::NodeStatusReply { state: "forming".to_owned(), ..serving }));
        let gone = member(Err(Error::new(ErrorCode::Unavailable, "no route")));
        assert_eq!([&well, &headless, &forming, &gone].map(is_healthy), [true, false, false, false]);
        let text =
            String::from_utf8(printed(|out| health(out, Output::Text, &[well, gone.clone()]))).unwrap();
        assert_eq!(
            text,
            "node1  a:1  healthy  serving  leads 20 of 64 shards, 64 with a leader\n\
             node1  a:1  unhealthy  unreachable\n    UNAVAILABLE: no route\n"
        );
        let json: Value = serde_json::from_slice(&printed(|out| health(out, Output::Json, &[gone]))).unwrap();
        assert_eq!(json["healthy"], false);
        assert_eq!(json["members"][0]["state"], "unreachable");
    }
}
