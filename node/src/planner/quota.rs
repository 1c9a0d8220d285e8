//! Shares: how many replicas each node should hold, by weight, as far as zones and the number of shards allow.
//!
//! A shard has at most one replica on a node, and no more in a zone than it must ([`zone_replicas_max`]). A node or
//! zone whose part by weight is above what it can hold gets what it can hold, and the others share the rest.

/// Shares are counted in parts of a replica.
pub(super) const SCALE: u64 = 1024;

/// A node, as far as shares go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) zone: usize,
    pub(super) weight: u64,
}

/// The most replicas of a shard that one zone must take: the least number with which all zones together hold
/// `replicas`. `zone_nodes`: how many nodes each zone has.
pub(super) fn zone_replicas_max(zone_nodes: &[u64], replicas: u64) -> u64 {
    let room = |most: u64| zone_nodes.iter().map(|nodes| most.min(*nodes)).sum::<u64>();
    (1..=replicas).find(|most| room(*most) >= replicas).unwrap_or(replicas.max(1))
}

/// The share of each node, times [`SCALE`], where every one of `shards` shards has `replicas` replicas.
pub(super) fn shares(holders: &[Holder], shards: u64, replicas: u64) -> Vec<u64> {
    let zones = holders.iter().map(|holder| holder.zone + 1).max().unwrap_or(0);
    let mut zone_nodes = vec![0u64; zones];
    let mut zone_weights = vec![0u64; zones];
    for holder in holders {
        zone_nodes[holder.zone] += 1;
        zone_weights[holder.zone] += holder.weight;
    }
    let most = zone_replicas_max(&zone_nodes, replicas);
    let zone_room: Vec<u64> = zone_nodes.iter().map(|nodes| most.min(*nodes) * shards * SCALE).collect();
    let of_zone = divide(replicas * shards * SCALE, &zone_weights, &zone_room);
    let mut shares = vec![0; holders.len()];
    for (zone, total) in of_zone.into_iter().enumerate() {
        let members: Vec<usize> = (0..holders.len()).filter(|node| holders[*node].zone == zone).collect();
        let weights: Vec<u64> = members.iter().map(|node| holders[*node].weight).collect();
        let room = vec![shards * SCALE; members.len()];
        for (node, share) in members.into_iter().zip(divide(total, &weights, &room)) {
            shares[node] = share;
        }
    }
    shares
}

/// Divides `total` by weight, none getting more than its room; what does not fit is left over.
pub(super) fn divide(total: u64, weights: &[u64], room: &[u64]) -> Vec<u64> {
    let mut parts = vec![0; weights.len()];
    let mut is_fixed: Vec<bool> = weights.iter().map(|weight| *weight == 0).collect();
    let mut rest = total;
    loop {
        let open: Vec<usize> = (0..weights.len()).filter(|at| !is_fixed[*at]).collect();
        let weight_sum: u64 = open.iter().map(|at| weights[*at]).sum();
        if open.is_empty() {
            return parts;
        }
        let part = |at: usize| {
            let part = u128::from(rest) * u128::from(weights[at]) / u128::from(weight_sum);
            u64::try_from(part).expect("a part is at most the whole")
        };
        let too_much: Vec<usize> = open.iter().copied().filter(|at| part(*at) > room[*at]).collect();
        if too_much.is_empty() {
            for at in open {
                parts[at] = part(at);
            }
            return parts;
        }
        for at in too_much {
            parts[at] = room[at];
            is_fixed[at] = true;
            rest -= room[at];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(holders: &[(usize, u64)], shards: u64, factor: u64) -> Vec<u64> {
        let holders: Vec<Holder> =
            holders.iter().map(|(zone, weight)| Holder { zone: *zone, weight: *weight }).collect();
        shares(&holders, shards, factor).into_iter().map(|share| (share + SCALE / 2) / SCALE).collect()
    }

    #[test]
    fn shares_follow_weights() {
        assert_eq!(replicas(&[(0, 1), (0, 1), (0, 2), (0, 4)], 80, 1), [10, 10, 20, 40]);
    }

    #[test]
    fn no_node_holds_a_shard_twice() {
        assert_eq!(replicas(&[(0, 1), (0, 1), (0, 8)], 100, 2), [50, 50, 100]);
        assert_eq!(replicas(&[(0, 1), (0, 5), (0, 8)], 100, 3), [100, 100, 100]);
    }

    #[test]
    fn every_zone_holds_one_replica_where_there_are_as_many() {
        assert_eq!(replicas(&[(0, 1), (1, 1), (1, 1), (2, 3), (2, 1)], 100, 3), [100, 50, 50, 75, 25]);
    }

    #[test]
    fn two_zones_share_three_replicas() {
        assert_eq!(replicas(&[(0, 1), (1, 1), (1, 1), (1, 1)], 90, 3), [90, 60, 60, 60]);
        assert_eq!(zone_replicas_max(&[1, 3], 3), 2);
        assert_eq!(zone_replicas_max(&[5], 3), 3);
        assert_eq!(zone_replicas_max(&[1, 1, 1, 1], 3), 1);
    }
}
