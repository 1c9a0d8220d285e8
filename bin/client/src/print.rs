//! How each result looks: keys, values, versions, and how members are.

use std::io::{self, Write};

use kritaclient::{Deleted, Entry, Error, MemberHealth, ScanItem, Written, v1};
use serde_json::{Map, Value, json};

use crate::output::{Output, Printer, Style, insert_bytes, shown};

/// A value that was put.
///
/// # Errors
/// It cannot be written.
pub fn written(print: &mut Printer<'_>, written: Written) -> io::Result<()> {
    if print.output() == Output::Raw {
        return Ok(());
    }
    print.result(
        |out| writeln!(out, "OK version {}", written.version),
        || json!({ "version": written.version }),
    )
}

/// A key that was removed, or was absent already.
///
/// # Errors
/// It cannot be written.
pub fn deleted(print: &mut Printer<'_>, deleted: Deleted) -> io::Result<()> {
    if print.output() == Output::Raw {
        return Ok(());
    }
    let text = |out: &mut dyn Write| {
        if deleted.existed {
            writeln!(out, "OK version {}", deleted.version)
        } else {
            writeln!(out, "OK the key was absent")
        }
    };
    print.result(text, || json!({ "existed": deleted.existed, "version": deleted.version }))
}

/// What a write would have done.
///
/// # Errors
/// It cannot be written.
pub fn would(print: &mut Printer<'_>, what: &str, current_version: u64) -> io::Result<()> {
    let text = |out: &mut dyn Write| match current_version {
        0 => writeln!(out, "would {what}: the key is absent now"),
        version => writeln!(out, "would {what}: the key has version {version} now"),
    };
    print.result(text, || json!({ "dry_run": true, "would": what, "current_version": current_version }))
}

/// A value that was read.
///
/// # Errors
/// It cannot be written.
pub fn entry(print: &mut Printer<'_>, entry: &Entry) -> io::Result<()> {
    if print.output() == Output::Raw {
        return print.bytes(&entry.value);
    }
    let style = print.style();
    let text = |out: &mut dyn Write| {
        bytes(out, &entry.value, style)?;
        out.write_all(b"\n")
    };
    print.result(text, || {
        let mut object = Map::new();
        insert_bytes(&mut object, "value", &entry.value);
        object.insert("version".to_owned(), entry.version.into());
        Value::Object(object)
    })
}

/// One key of a list, with or without its value.
///
/// # Errors
/// It cannot be written.
pub fn scanned(print: &mut Printer<'_>, item: &ScanItem, has_value: bool) -> io::Result<()> {
    if print.output() == Output::Raw {
        print.bytes(&item.key)?;
        print.bytes(b"\0")?;
        return if has_value { print.bytes(&item.value).and_then(|()| print.bytes(b"\0")) } else { Ok(()) };
    }
    let style = print.style();
    let text = |out: &mut dyn Write| {
        bytes(out, &item.key, style)?;
        if has_value {
            out.write_all(b"\t")?;
            bytes(out, &item.value, style)?;
        }
        out.write_all(b"\n")
    };
    print.item(text, || {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", &item.key);
        if has_value {
            insert_bytes(&mut object, "value", &item.value);
        }
        object.insert("version".to_owned(), item.version.into());
        Value::Object(object)
    })
}

/// Bytes as they are; on a terminal without what would steer it.
fn bytes(out: &mut dyn Write, bytes: &[u8], style: Style) -> io::Result<()> {
    if !style.is_terminal() {
        return out.write_all(bytes);
    }
    // Line feeds and tabs are text.
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if number > 0 {
            out.write_all(b"\n")?;
        }
        for (number, cell) in line.split(|byte| *byte == b'\t').enumerate() {
            if number > 0 {
                out.write_all(b"\t")?;
            }
            out.write_all(shown(cell).as_bytes())?;
        }
    }
    Ok(())
}

/// Whether a member serves and has nothing to report.
pub fn is_healthy(member: &MemberHealth) -> bool {
    member.status.as_ref().is_ok_and(|status| {
        status.state == "serving"
            && status.problems.is_empty()
            && status.shards_with_leader == status.shards_total
    })
}

/// Whether a member refused to say how it is, which says nothing of its health.
pub fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Denied(_) | Error::Configuration(_))
}

/// How the members are, one each.
///
/// # Errors
/// It cannot be written.
pub fn health(print: &mut Printer<'_>, members: &[MemberHealth]) -> io::Result<()> {
    let style = print.style();
    print.result(
        |out| members.iter().try_for_each(|member| health_text(out, member, style)),
        || health_value(members),
    )
}

/// How all the members are, as a value.
pub(crate) fn health_value(members: &[MemberHealth]) -> Value {
    let healthy = members.iter().all(is_healthy);
    let members: Vec<_> = members.iter().map(member_value).collect();
    json!({ "healthy": healthy, "members": members })
}

/// How a member is, as a line and one for each of its problems.
///
/// # Errors
/// It cannot be written.
pub fn health_text(out: &mut dyn Write, member: &MemberHealth, style: Style) -> io::Result<()> {
    let name = if member.node_id.is_empty() { "?" } else { &member.node_id };
    let name = style.strong(name);
    let address = &member.address;
    match &member.status {
        Ok(status) => {
            let verdict = if is_healthy(member) { style.good("healthy") } else { style.bad("unhealthy") };
            writeln!(
                out,
                "{name}  {address}  {verdict}  {}  leads {} of {} shards, {} with a leader",
                status.state, status.shards_led, status.shards_total, status.shards_with_leader
            )?;
            status.problems.iter().try_for_each(|problem| writeln!(out, "    {problem}"))
        }
        Err(error) if is_refusal(error) => {
            writeln!(out, "{name}  {address}  {}  it refuses to say", style.doubtful("unknown"))?;
            writeln!(out, "    {error}")
        }
        Err(error) => {
            writeln!(out, "{name}  {address}  {}  unreachable", style.bad("unhealthy"))?;
            writeln!(out, "    {error}")
        }
    }
}

fn member_value(member: &MemberHealth) -> Value {
    let mut object = Map::new();
    object.insert("node_id".to_owned(), member.node_id.clone().into());
    object.insert("node_number".to_owned(), member.node_number.into());
    object.insert("address".to_owned(), member.address.clone().into());
    let rest = match &member.status {
        Ok(status) => json!({
            "healthy": is_healthy(member),
            "state": status.state,
            "shards_total": status.shards_total,
            "shards_led": status.shards_led,
            "shards_with_leader": status.shards_with_leader,
            "cores": status.cores,
            "uptime_ms": status.uptime_ms,
            "version": status.version,
            "problems": status.problems,
            "storage": status.storage.as_ref().map(storage_value),
        }),
        Err(error) if is_refusal(error) => {
            json!({ "healthy": null, "state": "unknown", "problems": [error.to_string()] })
        }
        Err(error) => json!({ "healthy": false, "state": "unreachable", "problems": [error.to_string()] }),
    };
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    Value::Object(object)
}

fn storage_value(storage: &v1::StorageStatus) -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;
    use kritaclient::ErrorCode;

    fn printed(output: Output, print: impl FnOnce(&mut Printer<'_>) -> io::Result<()>) -> Vec<u8> {
        let mut out = Vec::new();
        print(&mut Printer::new(&mut out, output, Style::PLAIN)).unwrap();
        out
    }

    #[test]
    fn values_print_in_each_form() {
        let entry_of = |value: &'static [u8]| Entry { value: value.to_vec().into(), version: 7 };
        for (output, value, expected) in [
            (Output::Text, &b"v"[..], &b"v\n"[..]),
            (Output::Raw, b"v\xff\n", b"v\xff\n"),
            (Output::Json, b"v\n", b"{\"value\":\"v\\n\",\"version\":7}\n"),
            (Output::Json, b"\xff", b"{\"value_base64\":\"/w==\",\"version\":7}\n"),
            (Output::Yaml, b"v", b"value: v\nversion: 7\n"),
            (Output::Table, b"v", b"VALUE    VERSION\nv        7\n"),
        ] {
            assert_eq!(printed(output, |print| entry(print, &entry_of(value))), expected);
        }
        let item = ScanItem { key: "k".into(), value: "v".into(), version: 1 };
        for (output, has_value, expected) in [
            (Output::Raw, false, &b"k\0"[..]),
            (Output::Raw, true, b"k\0v\0"),
            (Output::Text, false, b"k\n"),
            (Output::Text, true, b"k\tv\n"),
        ] {
            assert_eq!(printed(output, |print| scanned(print, &item, has_value)), expected);
        }
        let version = Written { version: 3 };
        assert_eq!(printed(Output::Text, |print| written(print, version)), b"OK version 3\n");
        let gone = Deleted { existed: false, version: 0 };
        let json = printed(Output::Json, |print| deleted(print, gone));
        assert_eq!(json, b"{\"existed\":false,\"version\":0}\n");
    }

    fn member(status: Result<v1::NodeStatusReply, Error>) -> MemberHealth {
        MemberHealth { node_number: 1, node_id: "node1".to_owned(), address: "a:1".to_owned(), status }
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
        let well = member(Ok(serving.clone()));
        let headless = member(Ok(v1::NodeStatusReply { shards_with_leader: 63, ..serving.clone() }));
        let forming = member(Ok(v1::NodeStatusReply { state: "forming".to_owned(), ..serving }));
        let gone = member(Err(Error::new(ErrorCode::Unavailable, "no route")));
        assert_eq!([&well, &headless, &forming, &gone].map(is_healthy), [true, false, false, false]);
        let text = printed(Output::Text, |print| health(print, &[well, gone.clone()]));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "node1  a:1  healthy  serving  leads 20 of 64 shards, 64 with a leader\n\
             node1  a:1  unhealthy  unreachable\n    UNAVAILABLE: no route\n"
        );
        let json = printed(Output::Json, |print| health(print, &[gone]));
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["healthy"], false);
        assert_eq!(json["members"][0]["state"], "unreachable");
    }

    #[test]
    fn a_member_that_refuses_the_token_is_not_called_unhealthy() {
        let refused = member(Err(Error::new(ErrorCode::Unauthenticated, "who are you")));
        let text = printed(Output::Text, |print| health(print, std::slice::from_ref(&refused)));
        assert!(!String::from_utf8(text).unwrap().contains("unhealthy"));
        assert_eq!(member_value(&refused)["healthy"], Value::Null);
    }
}
