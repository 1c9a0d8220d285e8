//! Which nodes cannot talk to each other, as they say themselves, and which are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kritaclient::blocking::Client;
use kritaclient::{MemberHealth, Profile, v1};

use super::Check;

/// How long one question may take.
const ASK_MAX: Duration = Duration::from_secs(3);

/// Pings that only others got answers to count from here on, in milliseconds: a lost packet is no broken way.
const UNREACHED_MIN_MS: u64 = 5_000;

/// One check for each pair that is cut and each node that is gone; one for all if there is none. Nothing if no node
/// can be asked: that stands with the peers.
pub(super) fn checks(known: &Profile) -> Vec<Check> {
    let timed = Profile { timeout: Some(ASK_MAX), ..known.clone() };
    let asked = timed.options().ok().and_then(|options| Client::connect(options).ok());
    match asked.and_then(|client| client.health().ok()) {
        Some(members) => judge(&members),
        None => Vec::new(),
    }
}

fn judge(members: &[MemberHealth]) -> Vec<Check> {
    let told: Vec<(&MemberHealth, &v1::NodeStatusReply)> =
        members.iter().filter_map(|member| Some((member, member.status.as_ref().ok()?))).collect();
    if told.is_empty() {
        return Vec::new();
    }
    let gone = gone(&told);
    let mut checks: Vec<Check> = gone.values().cloned().collect();
    checks.extend(cuts(&told, &gone.keys().copied().collect()));
    if checks.is_empty() {
        let nodes = told.len();
        checks.push(Check::good("pairs", format!("{nodes} nodes say that they can talk to all others")));
    }
    checks
}

/// Nodes that gossip has found dead or that have left, by number.
fn gone(told: &[(&MemberHealth, &v1::NodeStatusReply)]) -> BTreeMap<u32, Check> {
    let mut gone = BTreeMap::new();
    for (teller, status) in told {
        let of_members = status.sightings.iter().filter(|sighting| sighting.node_number != 0);
        for sighting in of_members.filter(|sighting| matches!(sighting.state.as_str(), "dead" | "left")) {
            let (name, address, seconds) = (&sighting.node_id, &sighting.address, sighting.for_ms / 1_000);
            let state = &sighting.state;
            let found = format!("{name} at {address} is {state} since {seconds} s, says {}", teller.node_id);
            gone.entry(sighting.node_number)
                .or_insert_with(|| Check::bad("nodes", found, "start it, or see its log and its machine"));
        }
    }
    gone
}

/// Pairs of nodes of which one at least cannot reach the other. Both live.
fn cuts(told: &[(&MemberHealth, &v1::NodeStatusReply)], gone: &BTreeSet<u32>) -> Vec<Check> {
    // (from, to): names, and what the one says of the other.
    let mut cut: BTreeMap<(u32, u32), (String, String, String)> = BTreeMap::new();
    for (teller, status) in told {
        let mut note = |number: u32, name: &str, reason: String| {
            if number != 0 && !gone.contains(&number) {
                let names = (teller.node_id.clone(), name.to_owned(), reason);
                cut.entry((teller.node_number, number)).or_insert(names);
            }
        };
        for peer in status.peers.iter().filter(|peer| !peer.connected) {
            note(peer.node_number, &peer.node_id, peer.problem.clone());
        }
        for sighting in status.sightings.iter().filter(|it| it.unreached_ms >= UNREACHED_MIN_MS) {
            let seconds = sighting.unreached_ms / 1_000;
            note(
                sighting.node_number,
                &sighting.node_id,
                format!("others get answers, it has got none for {seconds} s"),
            );
        }
    }
    let mut checks = Vec::new();
    for ((from, to), (from_name, to_name, reason)) in &cut {
        let both = cut.contains_key(&(*to, *from));
        if both && from > to {
            // Told already, the other way round.
            continue;
        }
        let found = match both {
            true => format!("{from_name} and {to_name} cannot talk to each other: {reason}"),
            false => format!("{from_name} cannot talk to {to_name}, though the other way is open: {reason}"),
        };
        let advice = "look for a firewall, a route or a name that differs between the two";
        checks.push(Check::bad("pairs", found, advice));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::doctor::Verdict;

    fn member(number: u32, cut: &[u32], states: &[(u32, &str, u64)]) -> MemberHealth {
        let peer = |other: &u32| v1::PeerStatus {
            node_number: *other,
            node_id: format!("n{other}"),
            problem: "refused".into(),
            ..Default::default()
        };
        let sighting = |(other, state, unreached_ms): &(u32, &str, u64)| v1::NodeSighting {
            node_number: *other,
            node_id: format!("n{other}"),
            state: (*state).into(),
            unreached_ms: *unreached_ms,
            for_ms: 7_000,
            ..Default::default()
        };
        let status = v1::NodeStatusReply {
            peers: cut.iter().map(peer).collect(),
            sightings: states.iter().map(sighting).collect(),
            ..Default::default()
        };
        let node_id = format!("n{number}");
        MemberHealth { node_number: number, node_id, address: String::new(), status: Ok(status) }
    }

    fn found(members: &[MemberHealth]) -> Vec<String> {
        judge(members).into_iter().map(|check| check.found).collect()
    }

    #[test]
    fn a_pair_is_named_once_and_with_its_direction() {
        let all = [member(1, &[2], &[]), member(2, &[1], &[]), member(3, &[], &[])];
        assert_eq!(found(&all), ["n1 and n2 cannot talk to each other: refused"]);
        let one_way = [member(1, &[], &[]), member(2, &[], &[(1, "alive", 9_000)])];
        let told = found(&one_way);
        assert!(told.len() == 1 && told[0].starts_with("n2 cannot talk to n1, though"), "{told:?}");
        let lost = [member(1, &[], &[]), member(2, &[], &[(1, "alive", 900)])];
        assert_eq!(judge(&lost)[0].verdict, Verdict::Good);
    }

    #[test]
    fn a_dead_node_is_no_broken_pair() {
        let all = [member(1, &[3], &[(3, "dead", 0)]), member(2, &[3], &[(3, "dead", 0)])];
        assert_eq!(found(&all), ["n3 at  is dead since 7 s, says n1"]);
        assert!(judge(&[]).is_empty());
    }
}
