//! `put` and `delete` of one key.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use kritaclient::{Condition, Entry, WriteOptions};

use super::arguments::{DeleteArguments, PutArguments, key_bytes};
use super::condition_failed;
use crate::connection::Target;
use crate::failure::Failure;
use crate::output::Printer;
use crate::print;

/// A value larger than this is no value; the client library knows the bound and says so.
const VALUE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Sets a key.
pub(super) fn put(put: &PutArguments, target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let key = key_bytes(&put.key, put.base64)?;
    let value = value_bytes(put)?;
    let options = WriteOptions { condition: put.condition.condition(put.if_absent), timeout: None };
    if put.dry_run {
        let what = format!("put {} bytes under {}", value.len(), put.key);
        return would(&what, key, &options.condition, target, print);
    }
    let written = target.client()?.put_with(key, value, options)?;
    Ok(print::written(print, written)?)
}

/// Removes a key.
pub(super) fn delete(
    delete: &DeleteArguments,
    target: &Target,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let name = delete.key.as_deref().unwrap_or_default();
    let key = key_bytes(name, delete.base64)?;
    let options = WriteOptions { condition: delete.condition.condition(false), timeout: None };
    if delete.dry_run {
        return would(&format!("delete {name}"), key, &options.condition, target, print);
    }
    let deleted = target.client()?.delete_with(key, options)?;
    Ok(print::deleted(print, deleted)?)
}

/// Says what a write would do, or why it would not.
fn would(
    what: &str,
    key: Bytes,
    condition: &Condition,
    target: &Target,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let current = target.client()?.get(key)?;
    let version = current.as_ref().map_or(0, |entry| entry.version);
    if !holds(condition, current.as_ref()) {
        let message = format!("would not {what}: the condition does not hold, the key has version {version}");
        return Err(condition_failed(message, version));
    }
    Ok(print::would(print, what, version)?)
}

fn holds(condition: &Condition, current: Option<&Entry>) -> bool {
    match condition {
        Condition::None => true,
        Condition::IfVersion(version) => *version == current.map_or(0, |entry| entry.version),
        Condition::IfValue(value) => current.is_some_and(|entry| entry.value == *value),
    }
}

/// The value as given, or all of a file or of stdin.
fn value_bytes(put: &PutArguments) -> Result<Bytes, Failure> {
    match (&put.file, put.value.as_deref().unwrap_or_default()) {
        (Some(path), _) => Ok(read_bounded(open(path)?)?),
        (None, "-") => Ok(read_bounded(io::stdin().lock())?),
        (None, value) => Ok(value.to_owned().into()),
    }
}

fn read_bounded(from: impl Read) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    // One byte more than a value may have: then the library says so.
    from.take(VALUE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

/// Opens a file that was named on the command line.
pub(super) fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| Failure::Refused(format!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_judges_as_a_node_does() {
        let entry = Entry { value: "v".into(), version: 7 };
        for (condition, with_entry, without) in [
            (Condition::None, true, true),
            (Condition::IfVersion(7), true, false),
            (Condition::IfVersion(0), false, true),
            (Condition::IfValue("v".into()), true, false),
            (Condition::IfValue("w".into()), false, false),
        ] {
            assert_eq!(holds(&condition, Some(&entry)), with_entry, "{condition:?}");
            assert_eq!(holds(&condition, None), without, "{condition:?}");
        }
    }
}
