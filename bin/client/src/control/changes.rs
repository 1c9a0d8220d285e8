//! `kritactl node drain` and the like: what changes who is where. The leader of shard 0 carries it out; what takes time
//! is a job, which `kritactl job` follows.

use kritaclient::blocking::Client;
use kritaclient::v1;
use kritaclient::v1::cluster_change::Change;
use serde_json::json;

use super::NodeArguments;
use crate::confirm;
use crate::connection::Target;
use crate::failure::Failure;
use crate::output::Printer;

/// How a node is emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Emptying {
    /// It stays a member.
    Drain,
    /// It is removed then.
    Decommission,
}

impl Emptying {
    fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Decommission => "decommission",
        }
    }
}

/// The member that is named by its node id or its number.
pub(super) fn find_member<'a>(
    state: &'a v1::MetaSnapshot,
    named: &str,
) -> Result<&'a v1::MetaMember, Failure> {
    let is_called = |member: &&v1::MetaMember| member.node.as_ref().is_some_and(|node| node.node_id == named);
    // A retired one keeps its name until it is removed: the live one of that name is meant.
    let mut called: Vec<&v1::MetaMember> = state.members.iter().filter(is_called).collect();
    called.sort_by_key(|member| std::cmp::Reverse(member.node_number));
    let number = named.parse::<u32>().ok();
    let numbered = || state.members.iter().find(|member| Some(member.node_number) == number);
    called.first().copied().or_else(numbered).ok_or_else(|| {
        let names: Vec<String> =
            state.members.iter().map(|member| name_of(state, member.node_number)).collect();
        Failure::Refused(format!("no member is called {named}; there are {}", names.join(", ")))
    })
}

/// A member's name, for people.
pub(super) fn name_of(state: &v1::MetaSnapshot, number: u32) -> String {
    let member = state.members.iter().find(|member| member.node_number == number);
    let name = member.and_then(|member| member.node.as_ref()).map(|node| node.node_id.clone());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("node {number}"))
}

/// How many replicas a member holds, the meta group's aside.
fn replicas_on(state: &v1::MetaSnapshot, number: u32) -> usize {
    let holds =
        |shard: &&v1::MetaShard| shard.replica_ids.iter().any(|id| super::jobs::node_of(*id) == number);
    state.shards.iter().skip(1).filter(holds).count()
}

/// Drains or decommissions a node.
pub(super) fn empty(
    target: &Target,
    arguments: &NodeArguments,
    how: Emptying,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let client = target.client()?;
    let state = client.read_cluster(false)?;
    let number = find_member(&state, &arguments.node)?.node_number;
    let (name, replicas, verb) = (name_of(&state, number), replicas_on(&state, number), how.name());
    if arguments.dry_run {
        print.result(
            |out| writeln!(out, "would {verb} {name} (number {number}), which holds {replicas} replicas"),
            || json!({ "dry_run": true, "would": verb, "node_number": number, "replicas": replicas }),
        )?;
        return Ok(());
    }
    if !arguments.yes {
        confirm::confirm(&format!("{verb} {name} (number {number}), which holds {replicas} replicas"))?;
    }
    let change = match how {
        Emptying::Drain => Change::Drain(number),
        Emptying::Decommission => Change::Decommission(number),
    };
    begun(client, change, &format!("{verb} {name}"), print)
}

/// Calls a node back.
pub(super) fn call_back(target: &Target, node: &str, print: &mut Printer<'_>) -> Result<(), Failure> {
    let client = target.client()?;
    let state = client.read_cluster(true)?;
    let number = find_member(&state, node)?.node_number;
    begun(client, Change::CallBack(number), &format!("call back {}", name_of(&state, number)), print)
}

/// Moves a replica, or adds or removes one.
pub(super) fn move_replica(
    target: &Target,
    shard: u32,
    from: Option<&str>,
    to: Option<&str>,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let client = target.client()?;
    let state = client.read_cluster(true)?;
    let number = |named: Option<&str>| match named {
        Some(named) => find_member(&state, named).map(|member| member.node_number),
        None => Ok(0),
    };
    let (from_node, to_node) = (number(from)?, number(to)?);
    let change = Change::Move(v1::ClusterMove { shard, from_node, to_node });
    begun(client, change, &format!("move shard {shard}"), print)
}

/// Has a replica lead.
pub(super) fn transfer_leader(
    target: &Target,
    shard: u32,
    to: &str,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let client = target.client()?;
    let state = client.read_cluster(true)?;
    let node = find_member(&state, to)?.node_number;
    let what = format!("have {} lead shard {shard}", name_of(&state, node));
    begun(client, Change::Lead(v1::ClusterLead { shard, node }), &what, print)
}

/// Asks for a change, and tells what came of it.
pub(super) fn begun(
    client: &Client,
    change: Change,
    what: &str,
    print: &mut Printer<'_>,
) -> Result<(), Failure> {
    let reply = client.change_cluster(change)?;
    print.result(
        |out| match (reply.changed, reply.job) {
            (false, _) => writeln!(out, "{what}: it is so already"),
            (true, 0) => writeln!(out, "{what}: done"),
            (true, job) => {
                writeln!(out, "{what}: job {job} has begun; kritactl job show {job} tells how it goes")
            }
        },
        || json!({ "changed": reply.changed, "job": (reply.job != 0).then_some(reply.job) }),
    )?;
    Ok(())
}

/// Plans, and begins what is planned.
pub(super) fn rebalance(target: &Target, dry_run: bool, print: &mut Printer<'_>) -> Result<(), Failure> {
    let change = Change::Rebalance(v1::ClusterRebalance { dry_run });
    let reply = target.client()?.change_cluster(change)?;
    print.result(
        |out| {
            let verb = if dry_run { "would begin" } else { "began" };
            reply.steps.iter().try_for_each(|step| writeln!(out, "{verb}: {step}"))?;
            reply.findings.iter().try_for_each(|finding| writeln!(out, "cannot: {finding}"))?;
            match reply.steps.len() {
                0 => writeln!(out, "nothing is to be done"),
                steps => writeln!(out, "{steps} steps"),
            }
        },
        || json!({ "dry_run": dry_run, "steps": reply.steps, "findings": reply.findings, "job": reply.job }),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> v1::MetaSnapshot {
        let member = |(number, name): (u32, &str)| v1::MetaMember {
            node_number: number,
            node: Some(v1::MetaNode { node_id: name.into(), ..Default::default() }),
            ..Default::default()
        };
        let shard = |ids: &[u64]| v1::MetaShard { replica_ids: ids.to_vec(), ..Default::default() };
        v1::MetaSnapshot {
            members: [(1, "a"), (2, "b"), (3, "7"), (4, "b")].map(member).to_vec(),
            shards: vec![shard(&[1, 2]), shard(&[(5 << 36) | (1 << 16) | 2, (1 << 16) | 1])],
            ..Default::default()
        }
    }

    #[test]
    fn a_member_is_found_by_name_first_and_by_number() {
        let state = state();
        let found = |named: &str| find_member(&state, named).map(|member| member.node_number);
        assert_eq!(found("a").expect("there"), 1);
        assert_eq!(found("2").expect("there"), 2);
        assert_eq!(found("7").expect("there"), 3, "a name that looks like a number");
        assert_eq!(found("b").expect("there"), 4, "the newer of one name: the older one was wiped");
        let told = found("c").expect_err("nobody").message().expect("a reason");
        assert!(told.contains("no member is called c; there are a, b, 7, b"), "{told}");
        assert_eq!((name_of(&state, 1), name_of(&state, 9)), ("a".to_owned(), "node 9".to_owned()));
    }

    #[test]
    fn replicas_are_counted_without_the_meta_group() {
        assert_eq!([1, 2, 3].map(|number| replicas_on(&state(), number)), [1, 1, 0]);
    }
}
