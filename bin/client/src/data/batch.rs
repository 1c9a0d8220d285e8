//! `batch`: many operations from a file, atomic on each shard, each with its own result.

use std::io::{self, BufRead, BufReader};
use std::path::Path;

use bytes::Bytes;
use kritaclient::{Condition, Error, Operation, OperationOutcome};
use serde_json::{Map, Value, json};

use super::lines::{Lines, bytes_of, object};
use super::write::open;
use crate::connection::Target;
use crate::failure::Failure;
use crate::output::{Printer, insert_bytes, shown};

/// Most operations of one call, and most bytes of its lines: it is held in memory.
const OPERATIONS_MAX: usize = 100_000;
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Does the operations of a file.
pub(super) fn run(
    file: &Path,
    dry_run: bool,
    target: &Target,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let operations = if file == Path::new("-") {
        read(io::stdin().lock(), "stdin")?
    } else {
        read(BufReader::new(open(file)?), &file.display().to_string())?
    };
    if dry_run {
        let writes = operations.iter().filter(|operation| operation.is_write()).count();
        let gets = operations.len() - writes;
        print.result(
            |out| writeln!(out, "would do {writes} writes and {gets} gets"),
            || json!({ "dry_run": true, "writes": writes, "gets": gets }),
        )?;
        return Ok(());
    }
    let results = target.client()?.batch(operations.clone());
    let mut failed = None;
    for (operation, result) in operations.iter().zip(results) {
        show(print, operation, &result)?;
        failed = failed.or(result.err());
    }
    print.end_list()?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn read(from: impl BufRead, name: &str) -> Result<Vec<Operation>, Failure> {
    let mut lines = Lines::new(from, 0);
    let mut operations = Vec::new();
    let refused = |number: u64, reason: &str| {
        Failure::Refused(format!("{name}, line {number}: {reason}; nothing was done"))
    };
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line.to_vec(),
            Ok(None) => return Ok(operations),
            Err(error) => return Err(refused(lines.number, &error.to_string())),
        };
        operations.push(parse(&line).map_err(|reason| refused(lines.number, &reason))?);
        if operations.len() > OPERATIONS_MAX || lines.offset > BYTES_MAX {
            let reason = format!(
                "more than {OPERATIONS_MAX} operations or {} MiB in one batch; for loading, use import",
                BYTES_MAX >> 20
            );
            return Err(refused(lines.number, &reason));
        }
    }
}

/// What an operation may say. A misspelt condition would be no condition.
const FIELDS: [&str; 9] = [
    "op",
    "key",
    "key_base64",
    "value",
    "value_base64",
    "if_absent",
    "if_version",
    "if_value",
    "if_value_base64",
];

fn parse(line: &[u8]) -> Result<Operation, String> {
    let object = object(line)?;
    if let Some(unknown) = object.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(format!("\"{unknown}\" is unknown; there are {}", FIELDS.join(", ")));
    }
    let key = bytes_of(&object, "key")?.ok_or("no \"key\" or \"key_base64\"")?;
    let value = bytes_of(&object, "value")?;
    let condition = condition(&object)?;
    match (object.get("op").and_then(Value::as_str), value) {
        (Some("put"), Some(value)) => Ok(Operation::Put { key, value, condition }),
        (Some("put"), None) => Err("a put needs \"value\" or \"value_base64\"".to_owned()),
        (Some("delete"), None) => Ok(Operation::Delete { key, condition }),
        (Some("get"), None) if condition == Condition::None => Ok(Operation::Get { key }),
        (Some("get"), None) => Err("a get takes no condition".to_owned()),
        (Some(op @ ("delete" | "get")), Some(_)) => Err(format!("a {op} takes no value")),
        (Some(_) | None, _) => Err("\"op\" is put, delete or get".to_owned()),
    }
}

fn condition(object: &Map<String, Value>) -> Result<Condition, String> {
    let absent = match object.get("if_absent") {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => return Err("\"if_absent\" is true or false".to_owned()),
    };
    let version = match object.get("if_version") {
        None => None,
        Some(version) => Some(version.as_u64().ok_or("\"if_version\" is a number")?),
    };
    match (absent, version, bytes_of(object, "if_value")?) {
        (false, None, None) => Ok(Condition::None),
        (true, None, None) => Ok(Condition::IfVersion(0)),
        (false, Some(version), None) => Ok(Condition::IfVersion(version)),
        (false, None, Some(value)) => Ok(Condition::IfValue(value)),
        (_, _, _) => Err("more than one condition".to_owned()),
    }
}

fn name(operation: &Operation) -> &'static str {
    match operation {
        Operation::Put { .. } => "put",
        Operation::Delete { .. } => "delete",
        Operation::Get { .. } => "get",
    }
}

fn show(
    print: &mut Printer<'_>,
    operation: &Operation,
    result: &Result<OperationOutcome, Error>,
) -> io::Result<()> {
    let (op, key) = (name(operation), operation.key());
    let style = print.style();
    let words = match result {
        Ok(OperationOutcome::Put(written)) => format!("OK version {}", written.version),
        Ok(OperationOutcome::Deleted { existed: true }) => "OK".to_owned(),
        Ok(OperationOutcome::Deleted { existed: false }) => "OK the key was absent".to_owned(),
        Ok(OperationOutcome::Got(Some(entry))) => shown(&entry.value).into_owned(),
        Ok(OperationOutcome::Got(None)) => "absent".to_owned(),
        Err(error) => style.bad(&error.to_string()),
    };
    print.item(|out| writeln!(out, "{op}  {}  {words}", shown(key)), || value(op, key, result))
}

fn value(op: &str, key: &Bytes, result: &Result<OperationOutcome, Error>) -> Value {
    let mut object = Map::new();
    object.insert("op".to_owned(), op.into());
    insert_bytes(&mut object, "key", key);
    match result {
        Ok(OperationOutcome::Put(written)) => {
            object.insert("version".to_owned(), written.version.into());
        }
        Ok(OperationOutcome::Deleted { existed }) => {
            object.insert("existed".to_owned(), (*existed).into());
        }
        Ok(OperationOutcome::Got(entry)) => {
            object.insert("existed".to_owned(), entry.is_some().into());
            if let Some(entry) = entry {
                insert_bytes(&mut object, "value", &entry.value);
                object.insert("version".to_owned(), entry.version.into());
            }
        }
        Err(error) => {
            object.insert("error".to_owned(), error.code().name().into());
            object.insert("message".to_owned(), error.detail().message.clone().into());
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_lines_are_operations() {
        for (line, expected) in [
            (r#"{"op":"put","key":"a","value":"1"}"#, Operation::put("a", "1")),
            (r#"{"op":"get","key_base64":"/w=="}"#, Operation::get(&[0xff][..])),
            (
                r#"{"op":"put","key":"b","value_base64":"/w==","if_absent":true}"#,
                Operation::Put {
                    key: "b".into(),
                    value: Bytes::from_static(&[0xff]),
                    condition: Condition::IfVersion(0),
                },
            ),
            (
                r#"{"op":"delete","key":"c","if_version":7}"#,
                Operation::Delete { key: "c".into(), condition: Condition::IfVersion(7) },
            ),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(expected), "{line}");
        }
    }

    #[test]
    fn what_would_be_misread_is_refused() {
        for (line, reason) in [
            (r#"{"op":"put","key":"a","value":"1","if_verison":1}"#, "unknown"),
            (r#"{"op":"put","key":"a"}"#, "needs"),
            (r#"{"op":"move","key":"a"}"#, "put, delete or get"),
            (r#"{"op":"get","key":"a","if_version":1}"#, "no condition"),
            (r#"{"op":"delete","key":"a","value":""}"#, "no value"),
            (r#"{"op":"delete","key":"a","if_version":-1}"#, "a number"),
            (r#"{"op":"delete","key":"a","if_version":1,"if_value":"b"}"#, "more than one"),
            (r#"{"op":"delete"}"#, "no \"key\""),
        ] {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
        let Err(Failure::Refused(reason)) = read(&b"{\"op\":\"get\",\"key\":\"a\"}\nx\n"[..], "f") else {
            panic!("a wrong line is refused");
        };
        assert!(reason.starts_with("f, line 2: not JSON"), "{reason}");
    }
}
