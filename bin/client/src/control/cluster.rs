//! `kritactl status`, `verify` and `scrub`: what is asked of running nodes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use kritaclient::{Error, MemberHealth, v1};
use serde_json::{Value, json};

use crate::connection::Target;
use crate::failure::Failure;
use crate::health::{ask, judge};
use crate::output::{Printer, Style};
use crate::print::{self, free_bytes};

/// Prints how every member is, and what its disk holds.
pub(super) fn status(target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let members = ask(target, true)?;
    let style = print.style();
    print.result(
        |out| {
            members.iter().try_for_each(|member| print::health_text(out, member, style))?;
            members.iter().try_for_each(|member| storage(out, member))
        },
        || print::health_value(&members),
    )?;
    judge(&members)
}

fn storage(out: &mut dyn Write, member: &MemberHealth) -> io::Result<()> {
    let Some(storage) = member.status.as_ref().ok().and_then(|status| status.storage.as_ref()) else {
        return Ok(());
    };
    let free = free_bytes(storage).map_or("unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
    let full = if storage.full { " (full: no new values)" } else { "" };
    writeln!(
        out,
        "{}  disk: {free} free{full}; scrubbed {} passes, {} MiB, {} logs now; {} damages, {} values mended, \
         {} divergences, {} shards suspect",
        member.node_id,
        storage.scrub_passes,
        storage.scrub_bytes >> 20,
        storage.logs_scrubbing,
        storage.damages,
        storage.values_repaired,
        storage.divergences,
        storage.shards_suspect
    )
}

/// What came of comparing a shard's replicas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Equal,
    /// Not all replicas told their state, and those that did are equal.
    Partial,
    Different,
}

fn verdict(reply: &v1::VerifyReply) -> Verdict {
    let mut known = reply.replicas.iter().filter(|replica| replica.known).map(|replica| replica.state_hash);
    let first = known.next();
    if known.any(|hash| Some(hash) != first) {
        Verdict::Different
    } else if reply.replicas.iter().all(|replica| replica.known) && !reply.replicas.is_empty() {
        Verdict::Equal
    } else {
        Verdict::Partial
    }
}

/// Compares the replicas of one shard, or of all.
pub(super) fn verify(target: &Target, shard: Option<u32>, print: &mut Printer<'_>) -> Result<(), Failure> {
    let client = target.client()?;
    let status = client.cluster_status()?;
    let names: BTreeMap<u32, &str> =
        status.members.iter().map(|member| (member.node_number, member.node_id.as_str())).collect();
    let shards = match shard {
        Some(shard) => vec![shard],
        None => status.shards.iter().map(|place| place.shard).collect(),
    };
    let verified = client.verify_all(shards);
    let count = |wanted: Verdict| {
        verified.iter().filter(|(_, reply)| reply.as_ref().is_ok_and(|it| verdict(it) == wanted)).count()
    };
    let (equal, different) = (count(Verdict::Equal), count(Verdict::Different));
    let open = verified.len() - equal - different;
    let style = print.style();
    print.result(
        |out| {
            for (shard, reply) in &verified {
                verified_text(out, *shard, reply, &names, style)?;
            }
            writeln!(out, "{equal} shards equal, {different} different, {open} not compared in full")
        },
        || {
            let shards: Vec<Value> =
                verified.iter().map(|(shard, reply)| verified_value(*shard, reply)).collect();
            json!({ "equal": equal, "different": different, "open": open, "shards": shards })
        },
    )?;
    let denied = verified.iter().find_map(|(_, reply)| match reply {
        Err(error @ (Error::Denied(_) | Error::Configuration(_) | Error::InvalidRequest(_))) => Some(error),
        Ok(_) | Err(_) => None,
    });
    match (different, open, denied) {
        (1.., _, _) => Err(Failure::Damaged),
        (0, _, Some(error)) => Err(error.clone().into()),
        (0, 1.., None) => Err(Failure::Unhealthy),
        (0, 0, None) => Ok(()),
    }
}

fn verified_text(
    out: &mut dyn Write,
    shard: u32,
    reply: &Result<v1::VerifyReply, Error>,
    names: &BTreeMap<u32, &str>,
    style: Style,
) -> io::Result<()> {
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return writeln!(out, "shard {shard}  not compared: {error}"),
    };
    let word = match verdict(reply) {
        // One line for what is well would drown what is not.
        Verdict::Equal => return Ok(()),
        Verdict::Partial => style.doubtful("partly compared"),
        Verdict::Different => style.bad("DIFFERENT"),
    };
    write!(out, "shard {shard}  {word} at index {}", reply.index)?;
    for replica in &reply.replicas {
        let name = names.get(&replica.node_number).copied().unwrap_or("?");
        match replica.known {
            true => write!(out, "  {name} {:#018x}", replica.state_hash)?,
            false => write!(out, "  {name} unknown")?,
        }
    }
    writeln!(out)
}

fn verified_value(shard: u32, reply: &Result<v1::VerifyReply, Error>) -> Value {
    match reply {
        Ok(reply) => {
            let replicas = reply.replicas.iter().map(|replica| {
                let hash = replica.known.then(|| format!("{:#018x}", replica.state_hash));
                json!({ "node_number": replica.node_number, "state_hash": hash })
            });
            let word = match verdict(reply) {
                Verdict::Equal => "equal",
                Verdict::Partial => "partial",
                Verdict::Different => "different",
            };
            json!({
                "shard": shard,
                "verdict": word,
                "index": reply.index,
                "replicas": replicas.collect::<Vec<_>>(),
            })
        }
        Err(error) => json!({ "shard": shard, "verdict": "open", "error": error.to_string() }),
    }
}

/// Has the named node, or every member, begin to check all that it stores.
pub(super) fn scrub(
    target: &Target,
    all: bool,
    dry_run: bool,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let client = target.client()?;
    let addresses = match all {
        true => client.cluster_status()?.members.into_iter().map(|member| member.address).collect(),
        false => vec![target.address()],
    };
    let mut failed = None;
    for address in addresses {
        let begun = if dry_run { client.node_status(&address).map(drop) } else { client.scrub(&address) };
        let error = begun.as_ref().err().map(ToString::to_string);
        let text = |out: &mut dyn Write| match (&error, dry_run) {
            (Some(error), _) => writeln!(out, "{address}  {error}"),
            (None, true) => writeln!(out, "{address}  would scrub"),
            (None, false) => writeln!(out, "{address}  scrubbing; kritactl status tells how it goes"),
        };
        print.item(text, || {
            let has_begun = begun.is_ok() && !dry_run;
            json!({ "address": address, "begun": has_begun, "dry_run": dry_run, "error": error })
        })?;
        failed = failed.or(begun.err());
    }
    print.end_list()?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_equal_only_if_every_replica_says_so() {
        let reply = |hashes: &[Option<u64>]| {
            let replicas = (1..).zip(hashes).map(|(node_number, hash)| v1::ReplicaHash {
                node_number,
                known: hash.is_some(),
                state_hash: hash.unwrap_or(0),
            });
            v1::VerifyReply { shard: 1, index: 5, replicas: replicas.collect(), equal: false }
        };
        for (hashes, expected) in [
            (&[Some(1), Some(1), Some(1)][..], Verdict::Equal),
            (&[Some(1), None, Some(1)], Verdict::Partial),
            (&[Some(1), None, Some(2)], Verdict::Different),
            (&[None, None], Verdict::Partial),
            (&[], Verdict::Partial),
        ] {
            assert_eq!(verdict(&reply(hashes)), expected, "{hashes:?}");
        }
    }
}
