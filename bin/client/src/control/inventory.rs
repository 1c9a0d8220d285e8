//! `kritactl node` and `kritactl shard`: members and shards as the nodes know them.

use std::collections::BTreeMap;
use std::io::Write;

use kritaclient::{Error, MemberHealth, v1};
use serde_json::{Value, json};

use crate::connection::Target;
use crate::failure::Failure;
use crate::health::{ask, judge};
use crate::output::{Printer, Style};
use crate::print::{self, is_healthy, is_refusal};

/// Lists the members. A node that is not reached is among them.
pub(super) fn nodes(target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let members = ask(target, true)?;
    let seen = sightings(&members);
    let style = print.style();
    for member in &members {
        let gossip = seen.get(&member.node_number);
        let state = match &member.status {
            Ok(status) => status.state.clone(),
            Err(error) if is_refusal(error) => "unknown".to_owned(),
            Err(_) => "unreachable".to_owned(),
        };
        let version = member.status.as_ref().map(|status| status.version.clone()).unwrap_or_default();
        let shown = if is_healthy(member) { style.good(&state) } else { style.bad(&state) };
        let name = if member.node_id.is_empty() { "?" } else { &member.node_id };
        print.item(
            |out| {
                write!(out, "{}  {name}  {}  {shown}  {version}", member.node_number, member.address)?;
                match gossip {
                    Some(gossip) => writeln!(out, "  {}", sighting_text(gossip, style)),
                    None => writeln!(out),
                }
            },
            || {
                json!({
                    "node_number": member.node_number,
                    "node_id": member.node_id,
                    "address": member.address,
                    "state": state,
                    "healthy": is_healthy(member),
                    "version": version,
                    "gossip": gossip.map_or("unknown", |gossip| gossip.state.as_str()),
                    "gossip_for_ms": gossip.map_or(0, |gossip| gossip.for_ms),
                    "zone": gossip.map_or("", |gossip| gossip.zone.as_str()),
                    "capacity": gossip.map_or(0, |gossip| gossip.capacity),
                    "load_per_mille": gossip.map_or(0, |gossip| gossip.load_per_mille),
                    "stored_bytes": gossip.map_or(0, |gossip| gossip.stored_bytes),
                })
            },
        )?;
    }
    print.end_list()?;
    judge(&members)
}

/// What gossip says of each member, by number: the view of the first member that told one.
fn sightings(members: &[MemberHealth]) -> BTreeMap<u32, v1::NodeSighting> {
    let told = members.iter().filter_map(|member| member.status.as_ref().ok());
    let view = told.map(|status| &status.sightings).find(|sightings| !sightings.is_empty());
    let of_members = view.into_iter().flatten().filter(|sighting| sighting.node_number != 0);
    of_members.map(|sighting| (sighting.node_number, sighting.clone())).collect()
}

fn sighting_text(sighting: &v1::NodeSighting, style: Style) -> String {
    let state = match sighting.state.as_str() {
        "alive" => style.good("alive"),
        "suspect" | "unknown" => style.doubtful(&sighting.state),
        gone => style.bad(gone),
    };
    let zone = if sighting.zone.is_empty() { "-" } else { &sighting.zone };
    let seconds = sighting.for_ms / 1_000;
    format!("{state} for {seconds} s, zone {zone}, load {}/1000", sighting.load_per_mille)
}

/// Tells of one node, and of its connections.
pub(super) fn node(target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let members = ask(target, false)?;
    let style = print.style();
    let peers: Vec<v1::PeerStatus> = members
        .iter()
        .filter_map(|member| member.status.as_ref().ok())
        .flat_map(|status| status.peers.clone())
        .collect();
    let seen = sightings(&members);
    let mut value = print::health_value(&members);
    value["peers"] = peers.iter().map(|peer| peer_value(peer, seen.get(&peer.node_number))).collect();
    print.result(
        |out| {
            members.iter().try_for_each(|member| print::health_text(out, member, style))?;
            peers.iter().try_for_each(|peer| peer_text(out, peer, seen.get(&peer.node_number), style))
        },
        || value,
    )?;
    judge(&members)
}

fn peer_text(
    out: &mut dyn Write,
    peer: &v1::PeerStatus,
    gossip: Option<&v1::NodeSighting>,
    style: Style,
) -> std::io::Result<()> {
    let state = match peer.connected {
        true => style.good("connected"),
        false => style.bad("not connected"),
    };
    let name = if peer.node_id.is_empty() { "?" } else { &peer.node_id };
    write!(out, "    {name}  {}  {state}", peer.address)?;
    if let Some(gossip) = gossip {
        write!(out, "  {}", sighting_text(gossip, style))?;
    }
    if peer.problem.is_empty() { writeln!(out) } else { writeln!(out, "  {}", peer.problem) }
}

fn peer_value(peer: &v1::PeerStatus, gossip: Option<&v1::NodeSighting>) -> Value {
    json!({
        "node_number": peer.node_number,
        "node_id": peer.node_id,
        "address": peer.address,
        "connected": peer.connected,
        "problem": peer.problem,
        "gossip": gossip.map_or("unknown", |gossip| gossip.state.as_str()),
        "gossip_for_ms": gossip.map_or(0, |gossip| gossip.for_ms),
    })
}

/// Names of the members, by number.
fn names(status: &v1::ClusterStatusReply) -> BTreeMap<u32, String> {
    status.members.iter().map(|member| (member.node_number, member.node_id.clone())).collect()
}

fn name(names: &BTreeMap<u32, String>, number: u32) -> String {
    match number {
        0 => "none".to_owned(),
        number => names.get(&number).cloned().unwrap_or_else(|| format!("node {number}")),
    }
}

/// Lists the shards.
pub(super) fn shards(target: &Target, print: &mut Printer<'_>) -> Result<(), Failure> {
    let status = target.client()?.cluster_status()?;
    let names = names(&status);
    let style = print.style();
    let mut has_leaders = true;
    for place in &status.shards {
        has_leaders &= place.leader_node != 0;
        let leader = name(&names, place.leader_node);
        let replicas: Vec<String> = place.nodes.iter().map(|number| name(&names, *number)).collect();
        let shown = if place.leader_node == 0 { style.bad(&leader) } else { leader.clone() };
        print.item(
            |out| writeln!(out, "{}  leader {shown}  replicas {}", place.shard, replicas.join(" ")),
            || json!({ "shard": place.shard, "leader": leader, "replicas": replicas }),
        )?;
    }
    print.end_list()?;
    if has_leaders { Ok(()) } else { Err(Failure::Unhealthy) }
}

/// Shows one shard's replicas as their nodes tell them.
pub(super) fn shard(target: &Target, shard: u32, print: &mut Printer<'_>) -> Result<(), Failure> {
    let client = target.client()?;
    let status = client.cluster_status()?;
    let Some(place) = status.shards.iter().find(|place| place.shard == shard) else {
        return Err(Failure::Refused(format!(
            "there is no shard {shard}; they are numbered 1 to {}",
            status.shards.len()
        )));
    };
    let names = names(&status);
    let style = print.style();
    let mut failed: Option<Error> = None;
    for member in status.members.iter().filter(|member| place.nodes.contains(&member.node_number)) {
        let node = name(&names, member.node_number);
        let replica = client
            .node_status(&member.address)
            .map(|status| status.shards.into_iter().find(|replica| replica.shard == shard));
        let value = match &replica {
            Ok(Some(replica)) => replica_value(&node, replica, &names),
            Ok(None) => json!({ "shard": shard, "node_id": node, "role": "none" }),
            Err(error) => json!({ "shard": shard, "node_id": node, "error": error.to_string() }),
        };
        let text = |out: &mut dyn Write| match &replica {
            Ok(Some(replica)) => replica_text(out, &node, replica),
            Ok(None) => writeln!(out, "{node}  no replica here"),
            Err(error) => writeln!(out, "{node}  {}", style.bad(&error.to_string())),
        };
        print.item(text, || value)?;
        failed = failed.or(replica.err());
    }
    print.end_list()?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn replica_text(out: &mut dyn Write, node: &str, replica: &v1::ShardStatus) -> std::io::Result<()> {
    writeln!(
        out,
        "{node}  {}  core {}  term {}  log {} to {}, committed {}, applied {}, checkpoint {}  {} keys  {:#018x}",
        replica.role,
        replica.core,
        replica.term,
        replica.first_index,
        replica.last_index,
        replica.commit_index,
        replica.applied_index,
        replica.checkpoint_index,
        replica.keys,
        replica.state_hash
    )
}

fn replica_value(node: &str, replica: &v1::ShardStatus, names: &BTreeMap<u32, String>) -> Value {
    json!({
        "shard": replica.shard,
        "node_id": node,
        "role": replica.role,
        "leader": name(names, replica.leader_node),
        "core": replica.core,
        "term": replica.term,
        "first_index": replica.first_index,
        "last_index": replica.last_index,
        "commit_index": replica.commit_index,
        "applied_index": replica.applied_index,
        "checkpoint_index": replica.checkpoint_index,
        "keys": replica.keys,
        // Not every reader of JSON keeps 64 bits.
        "state_hash": format!("{:#018x}", replica.state_hash),
    })
}
