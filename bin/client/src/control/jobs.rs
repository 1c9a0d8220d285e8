//! `kritactl job`: what the cluster is changing, how far it is, and how to stop it.

use std::io::Write;

use kritaclient::v1;
use kritaclient::v1::cluster_change::Change;
use kritaclient::v1::meta_job::Kind;
use serde_json::{Value, json};

use super::changes::{begun, name_of};
use crate::connection::Target;
use crate::failure::Failure;
use crate::output::{Output, Printer, Style};

/// The node of a replica id: generation, shard and node stand in it.
pub(super) fn node_of(replica_id: u64) -> u32 {
    (replica_id & 0xffff) as u32
}

/// What a job is about, as text and as its parts.
fn what(state: &v1::MetaSnapshot, job: &v1::MetaJob) -> (String, Value) {
    match &job.kind {
        Some(Kind::Change(change)) => {
            let node = |id: u64| (id != 0).then(|| name_of(state, node_of(id)));
            let (enters, leaves) = (node(change.enters), node(change.leaves));
            let way = match (&enters, &leaves) {
                (Some(to), Some(from)) => format!("from {from} to {to}"),
                (Some(to), None) => format!("one more on {to}"),
                (None, Some(from)) => format!("one less on {from}"),
                (None, None) => "nothing".to_owned(),
            };
            let reason = reason(change.reason);
            let text = format!("move shard {}: {way} ({reason})", change.shard);
            let shard = change.shard;
            let parts =
                json!({ "kind": "move", "shard": shard, "to": enters, "from": leaves, "reason": reason });
            (text, parts)
        }
        Some(Kind::Drain(number)) => {
            let name = name_of(state, *number);
            (format!("drain {name}"), json!({ "kind": "drain", "node": name }))
        }
        Some(Kind::Decommission(number)) => {
            let name = name_of(state, *number);
            (format!("decommission {name}"), json!({ "kind": "decommission", "node": name }))
        }
        None => ("something that this version does not know".to_owned(), json!({ "kind": "unknown" })),
    }
}

fn reason(number: u32) -> &'static str {
    match number {
        1 => "repair",
        2 => "node leaves",
        3 => "replication factor",
        4 => "zones",
        5 => "balance",
        6 => "meta group",
        7 => "leftover",
        8 => "asked for",
        _ => "unknown reason",
    }
}

fn state_name(job: &v1::MetaJob) -> &'static str {
    match job.state {
        1 => "running",
        2 => "cancelling",
        3 => "done",
        4 => "cancelled",
        5 => "failed",
        _ => "unknown",
    }
}

fn text(
    out: &mut dyn Write,
    state: &v1::MetaSnapshot,
    job: &v1::MetaJob,
    style: Style,
) -> std::io::Result<()> {
    let name = state_name(job);
    let shown = match name {
        "running" | "done" => style.good(name),
        "failed" => style.bad(name),
        _ => style.doubtful(name),
    };
    write!(out, "{}  {shown}  {}  {}/{}", job.job, what(state, job).0, job.done, job.total)?;
    if job.failure.is_empty() { writeln!(out) } else { writeln!(out, "  {}", job.failure) }
}

fn value(state: &v1::MetaSnapshot, job: &v1::MetaJob) -> Value {
    let (_, mut value) = what(state, job);
    value["job"] = job.job.into();
    value["state"] = state_name(job).into();
    value["done"] = job.done.into();
    value["total"] = job.total.into();
    value["failure"] = job.failure.clone().into();
    value
}

/// Lists the jobs.
pub(super) fn list(target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let state = target.client()?.read_cluster(true)?;
    let style = print.style();
    for job in &state.jobs {
        print.item(|out| text(out, &state, job, style), || value(&state, job))?;
    }
    if state.jobs.is_empty() && print.output() == Output::Text {
        print.bytes(b"no jobs\n")?;
    }
    print.end_list()?;
    Ok(())
}

/// Shows one job.
pub(super) fn show(target: &Target, number: u64, print: &mut Printer<'_>) -> Result<(), Failure> {
    let state = target.client()?.read_cluster(true)?;
    let Some(job) = state.jobs.iter().find(|job| job.job == number) else {
        return Err(Failure::Refused(format!("there is no job {number}, or it ended long ago")));
    };
    let style = print.style();
    print.result(|out| text(out, &state, job, style), || value(&state, job))?;
    Ok(())
}

/// Stops a job.
pub(super) fn cancel(target: &Target, number: u64, print: &mut Printer<'_>) -> Result<(), Failure> {
    begun(target.client()?, Change::CancelJob(number), &format!("cancel job {number}"), print)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_says_what_it_does() {
        let state = v1::MetaSnapshot {
            members: vec![v1::MetaMember {
                node_number: 2,
                node: Some(v1::MetaNode { node_id: "b".into(), ..Default::default() }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let change = v1::MetaChange {
            shard: 5,
            enters: (9 << 36) | (5 << 16) | 2,
            leaves: (5 << 16) | 3,
            reason: 8,
            ..Default::default()
        };
        let job = v1::MetaJob { job: 7, state: 1, kind: Some(Kind::Change(change)), ..Default::default() };
        assert_eq!(what(&state, &job).0, "move shard 5: from node 3 to b (asked for)");
        let value = value(&state, &job);
        assert_eq!(
            (&value["to"], &value["from"], &value["state"]),
            (&json!("b"), &json!("node 3"), &json!("running"))
        );
        let drain = v1::MetaJob { kind: Some(Kind::Drain(2)), state: 5, ..Default::default() };
        assert_eq!((what(&state, &drain).0.as_str(), state_name(&drain)), ("drain b", "failed"));
    }
}
