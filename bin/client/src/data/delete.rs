//! `delete --prefix`: removes all keys that begin alike, over all shards, piece by piece.
//!
//! It can be interrupted at any moment: what was removed is removed, and the same command goes on with the rest.

use bytes::Bytes;
use kritaclient::blocking::Client;
use kritaclient::{Error, Operation, OperationOutcome};
use serde_json::{Map, Value};

use super::arguments::DeleteArguments;
use super::keys::Patient;
use crate::confirm::{can_ask, confirm, nobody_to_ask};
use crate::connection::Target;
use crate::failure::Failure;
use crate::output::{Printer, insert_bytes, shown};
use crate::progress::Progress;

/// Keys that are removed in one round trip for each shard.
const PIECE_KEYS: usize = 1_000;

/// How often a piece is tried while nodes come and go; each time has the whole time-out.
const ATTEMPTS: usize = 5;

/// Removes them, or says how many there are.
pub(super) fn prefix(
    prefix: &Bytes,
    delete: &DeleteArguments,
    target: &Target,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let which = match prefix.is_empty() {
        true => "EVERY key of the cluster".to_owned(),
        false => format!("all keys that begin with \"{}\"", shown(prefix)),
    };
    if !delete.dry_run && !delete.yes && !can_ask() {
        return Err(nobody_to_ask(&format!("this deletes {which}")));
    }
    let client = target.client()?;
    if delete.dry_run {
        let keys = count(client, prefix)?;
        return Ok(report(print, "would delete", prefix, keys, delete.dry_run)?);
    }
    let mut total = None;
    if !delete.yes {
        let keys = count(client, prefix)?;
        confirm(&format!("delete {which}, {keys} at this moment"))?;
        total = Some(keys);
    }
    let keys = remove(client, prefix, total)?;
    Ok(report(print, "deleted", prefix, keys, delete.dry_run)?)
}

fn report(
    print: &mut Printer<'_>,
    verb: &str,
    prefix: &Bytes,
    keys: u64,
    dry_run: bool,
) -> std::io::Result<()> {
    print.result(
        |out| writeln!(out, "{verb} {keys} keys"),
        || {
            let mut object = Map::new();
            insert_bytes(&mut object, "prefix", prefix);
            object.insert("keys".to_owned(), keys.into());
            object.insert("dry_run".to_owned(), dry_run.into());
            Value::Object(object)
        },
    )
}

fn count(client: &Client, prefix: &Bytes) -> Result<u64, Failure> {
    let progress = Progress::of_unknown("counting");
    let mut keys = 0;
    for item in Patient::keys_of_prefix(client, prefix) {
        item?;
        keys += 1;
        progress.at(keys);
    }
    Ok(keys)
}

/// Returns how many were there and are gone.
fn remove(client: &Client, prefix: &Bytes, total: Option<u64>) -> Result<u64, Failure> {
    let progress = match total {
        Some(total) => Progress::of_keys("deleting", total),
        None => Progress::of_unknown("deleting"),
    };
    let mut removed = 0;
    let mut piece = Vec::with_capacity(PIECE_KEYS);
    let interrupted = |removed: u64, error: Error| Failure::Interrupted {
        error,
        done: format!("{removed} keys are deleted; the same command goes on with the rest"),
    };
    for item in Patient::keys_of_prefix(client, prefix) {
        piece.push(item.map_err(|error| interrupted(removed, error))?.key);
        if piece.len() == PIECE_KEYS {
            removed += remove_piece(client, &mut piece).map_err(|error| interrupted(removed, error))?;
            progress.at(removed);
        }
    }
    removed += remove_piece(client, &mut piece).map_err(|error| interrupted(removed, error))?;
    Ok(removed)
}

fn remove_piece(client: &Client, piece: &mut Vec<Bytes>) -> Result<u64, Error> {
    let mut removed = 0;
    let mut keys = std::mem::take(piece);
    for attempt in 1..=ATTEMPTS {
        let results = client.batch(keys.iter().cloned().map(Operation::delete).collect());
        let mut failed = None;
        let mut left = Vec::new();
        for (key, result) in keys.into_iter().zip(results) {
            match result {
                Ok(OperationOutcome::Deleted { existed }) => removed += u64::from(existed),
                Ok(OperationOutcome::Put(_) | OperationOutcome::Got(_)) => {}
                Err(error) => {
                    failed = Some(error);
                    left.push(key);
                }
            }
        }
        match failed {
            None => return Ok(removed),
            // To delete twice is to delete once, so an unknown outcome may be tried again as well.
            Some(Error::Unavailable(_) | Error::UnknownOutcome(_)) if attempt < ATTEMPTS => keys = left,
            Some(error) => return Err(error),
        }
    }
    Ok(removed)
}
