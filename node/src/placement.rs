//! Which nodes hold which shard: the static placement of a cluster, as a pure function.
//!
//! The 64-bit ring of xxh3 hashes is cut into `shard_count` equal arcs, numbered from 1 (see
//! `krita_proto::routing::shard_of`; shard 0 is the meta group and is not placed here). Each shard's replicas
//! go to the members that score highest for it in rendezvous hashing (Thaler and Ravishankar, "Using
//! name-based mappings to increase hit rates", 1998), so that a new node takes only its fair share. Chance
//! alone would leave some nodes a quarter fuller than others; a second pass moves the few replicas that bring
//! every load within a tenth of the average, or within one replica of it, each to where it scores best.
//!
//! Every node computes the same answer from the same cluster record: nothing here depends on the order of the
//! input, and all arithmetic is on integers.

use std::collections::{BTreeMap, VecDeque};

use twox_hash::XxHash3_64;

/// A node that may hold replicas. Weight and zone join here later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The number that the cluster gave the node, from 1.
    pub node_number: u32,
    /// The node's uuid; the scores depend on it alone.
    pub node_uuid: [u8; 16],
}

/// Where one shard lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardPlacement {
    /// The shard, from 1.
    pub shard: u32,
    /// Distinct nodes; the first is the preferred leader.
    pub replicas: Vec<PlacedReplica>,
}

/// One replica of a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PlacedReplica {
    /// The node that holds it.
    pub node_number: u32,
    /// See [`static_replica_id`].
    pub replica_id: u64,
}

/// The id of the replica of `shard` that the static placement puts on a node: the shard shifted left by 16
/// bits, or'ed with the node's number. Unique for ever, since the static placement gives a node at most one
/// replica of a shard, once. They are generation 0 of the ids that the meta group gives to replicas made later
/// ([`crate::meta::replica_id`]).
pub fn static_replica_id(shard: u32, node_number: u32) -> u64 {
    assert!((1..=NODE_NUMBER_MAX).contains(&node_number), "node numbers fit 16 bits");
    u64::from(shard) << 16 | u64::from(node_number)
}

/// The highest node number that a replica id has room for.
pub const NODE_NUMBER_MAX: u32 = u16::MAX as u32;

/// Places every shard on `min(replication_factor, members)` distinct members, the preferred leader first.
///
/// Loads (replicas per node) end within a tenth of the average or within one of it; leaders are spread as
/// evenly as the replicas allow.
///
/// # Panics
/// Without members, without a replication factor, or with a node number given twice: the cluster record has
/// been checked before.
pub fn place(members: &[Candidate], shard_count: u32, replication_factor: u32) -> Vec<ShardPlacement> {
    assert!(!members.is_empty() && replication_factor > 0, "a cluster has members and replicas");
    let mut members = members.to_vec();
    members.sort_by_key(|member| member.node_number);
    assert!(members.windows(2).all(|pair| pair[0].node_number < pair[1].node_number), "numbers are unique");
    let replicas = members.len().min(replication_factor as usize);

    let mut table = Table::by_score(&members, shard_count, replicas);
    table.balance_replicas();
    table.balance_leaders();
    table.into_placements(&members)
}

/// Positions in the sorted members, and shards as positions from 0.
struct Table {
    /// scores[shard][member]
    scores: Vec<Vec<u64>>,
    /// The members that hold each shard; the first leads.
    holders: Vec<Vec<usize>>,
    members: usize,
}

impl Table {
    fn by_score(members: &[Candidate], shard_count: u32, replicas: usize) -> Self {
        let mut scores = Vec::with_capacity(shard_count as usize);
        let mut holders = Vec::with_capacity(shard_count as usize);
        for shard in 1..=shard_count {
            let of_shard: Vec<u64> = members.iter().map(|member| score(shard, member)).collect();
            let mut ranking: Vec<usize> = (0..members.len()).collect();
            ranking.sort_by_key(|member| (std::cmp::Reverse(of_shard[*member]), *member));
            ranking.truncate(replicas);
            scores.push(of_shard);
            holders.push(ranking);
        }
        Self { scores, holders, members: members.len() }
    }

    fn loads(&self) -> Vec<usize> {
        let mut loads = vec![0; self.members];
        for member in self.holders.iter().flatten() {
            loads[*member] += 1;
        }
        loads
    }

    /// Moves single replicas from the fullest to the emptiest node while either is out of bounds. Every move
    /// is between loads that differ by two or more, so the sum of their squares falls and the loop ends.
    fn balance_replicas(&mut self) {
        let mut loads = self.loads();
        let total: usize = loads.iter().sum();
        let low = (total / self.members).min((total * 9).div_ceil(self.members * 10));
        let high = total.div_ceil(self.members).max(total * 11 / (self.members * 10));
        loop {
            let fullest = (0..self.members).max_by_key(|member| (loads[*member], *member));
            let emptiest = (0..self.members).min_by_key(|member| (loads[*member], *member));
            let (Some(from), Some(to)) = (fullest, emptiest) else { return };
            if loads[from] <= high && loads[to] >= low {
                return;
            }
            assert!(loads[from] >= loads[to] + 2, "a load out of bounds is two from some other");
            // The fuller node holds more shards, so it holds one that the other does not.
            let shard = (0..self.holders.len())
                .filter(|shard| self.holders[*shard].contains(&from) && !self.holders[*shard].contains(&to))
                .max_by_key(|shard| (self.scores[*shard][to], *shard))
                .expect("the fuller node holds a shard that the emptier one does not");
            for member in &mut self.holders[shard] {
                if *member == from {
                    *member = to;
                }
            }
            loads[from] -= 1;
            loads[to] += 1;
        }
    }

    /// Passes leaderships along chains of shards from a node that leads the most to one that leads at least
    /// two fewer, until no such chain is left: then no other choice of leaders is more even.
    fn balance_leaders(&mut self) {
        let mut led = vec![0usize; self.members];
        for holders in &self.holders {
            led[holders[0]] += 1;
        }
        while let Some(chain) = self.leader_chain(&led) {
            for (shard, to) in chain {
                let position = self.holders[shard].iter().position(|member| *member == to);
                let position = position.expect("a chain passes a shard only to a holder");
                led[self.holders[shard][0]] -= 1;
                led[to] += 1;
                self.holders[shard].swap(0, position);
            }
        }
    }

    /// The shortest chain of (shard, new leader) from the busiest possible node, found breadth first.
    fn leader_chain(&self, led: &[usize]) -> Option<Vec<(usize, usize)>> {
        let mut starts: Vec<usize> = (0..self.members).collect();
        starts.sort_by_key(|member| (std::cmp::Reverse(led[*member]), *member));
        starts.into_iter().find_map(|start| self.leader_chain_from(start, led))
    }

    fn leader_chain_from(&self, start: usize, led: &[usize]) -> Option<Vec<(usize, usize)>> {
        // reached[member] = the shard that its leader passed on to reach the member.
        let mut reached: BTreeMap<usize, usize> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(from) = queue.pop_front() {
            if led[from] + 2 <= led[start] {
                let mut chain = Vec::new();
                let mut at = from;
                while at != start {
                    let shard = reached[&at];
                    chain.push((shard, at));
                    at = self.holders[shard][0];
                }
                return Some(chain);
            }
            for (shard, holders) in self.holders.iter().enumerate() {
                if holders[0] != from {
                    continue;
                }
                for to in &holders[1..] {
                    if *to != start && !reached.contains_key(to) {
                        reached.insert(*to, shard);
                        queue.push_back(*to);
                    }
                }
            }
        }
        None
    }

    fn into_placements(self, members: &[Candidate]) -> Vec<ShardPlacement> {
        let place = |(shard, holders): (u32, Vec<usize>)| ShardPlacement {
            shard,
            replicas: holders
                .into_iter()
                .map(|member| members[member].node_number)
                .map(|node_number| PlacedReplica {
                    node_number,
                    replica_id: static_replica_id(shard, node_number),
                })
                .collect(),
        };
        (1..).zip(self.holders).map(place).collect()
    }
}

/// The rendezvous score of a member for a shard: the highest ones hold it.
fn score(shard: u32, member: &Candidate) -> u64 {
    let mut bytes = [0u8; 20];
    bytes[..4].copy_from_slice(&shard.to_le_bytes());
    bytes[4..].copy_from_slice(&member.node_uuid);
    XxHash3_64::oneshot(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(seed: u64, count: u32) -> Vec<Candidate> {
        let uuid = |number: u32| {
            let low = XxHash3_64::oneshot_with_seed(seed, &number.to_le_bytes());
            let high = XxHash3_64::oneshot_with_seed(!seed, &number.to_le_bytes());
            (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
        };
        (1..=count).map(|number| Candidate { node_number: number, node_uuid: uuid(number) }).collect()
    }

    fn count(placements: &[ShardPlacement], node: u32, of: impl Fn(&ShardPlacement, u32) -> bool) -> usize {
        placements.iter().filter(|placement| of(placement, node)).count()
    }

    fn holds(placement: &ShardPlacement, node: u32) -> bool {
        placement.replicas.iter().any(|replica| replica.node_number == node)
    }

    fn leads(placement: &ShardPlacement, node: u32) -> bool {
        placement.replicas[0].node_number == node
    }

    #[test]
    fn three_nodes_hold_everything_and_lead_a_third_each() {
        let placements = place(&candidates(1, 3), 64, 3);
        assert_eq!(placements.len(), 64);
        let mut led: Vec<usize> = (1..=3).map(|node| count(&placements, node, leads)).collect();
        led.sort_unstable();
        assert_eq!(led, [21, 21, 22]);
        assert!((1..=3).all(|node| count(&placements, node, holds) == 64));
    }

    #[test]
    fn a_single_node_holds_and_leads_all() {
        let placements = place(&candidates(1, 1), 5, 3);
        let expected = |shard: u32| ShardPlacement {
            shard,
            replicas: vec![PlacedReplica { node_number: 1, replica_id: u64::from(shard) << 16 | 1 }],
        };
        assert_eq!(placements, (1..=5).map(expected).collect::<Vec<_>>());
    }

    #[test]
    fn the_answer_never_changes() {
        // Running clusters stand on this placement: another answer would be another place for their data.
        let text: Vec<String> = place(&candidates(1, 5), 4, 3)
            .iter()
            .map(|placement| {
                placement.replicas.iter().map(|replica| replica.node_number.to_string()).collect()
            })
            .collect();
        assert_eq!(text, GOLDEN);
    }

    const GOLDEN: [&str; 4] = ["231", "423", "543", "152"];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn replicas_are_distinct_loads_and_leaders_even(
            seed in any::<u64>(), nodes in 1..20u32, shards in 1..200u32, factor in 1..8u32,
        ) {
            let members = candidates(seed, nodes);
            let placements = place(&members, shards, factor);
            let replicas = factor.min(nodes) as usize;
            let mut ids = Vec::new();
            for (number, placement) in (1..).zip(&placements) {
                prop_assert_eq!(placement.shard, number);
                let mut holders: Vec<u32> = placement.replicas.iter().map(|replica| replica.node_number).collect();
                holders.sort_unstable();
                holders.dedup();
                prop_assert_eq!(holders.len(), replicas);
                prop_assert!(holders.iter().all(|node| (1..=nodes).contains(node)));
                ids.extend(placement.replicas.iter().map(|replica| replica.replica_id));
            }
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), shards as usize * replicas);
            // Whole numbers throughout: a load of exactly nine tenths is allowed. All are multiplied by `nodes`.
            let nodes_count = nodes as usize;
            let (total, total_led) = (shards as usize * replicas, shards as usize);
            for node in 1..=nodes {
                let off = (count(&placements, node, holds) * nodes_count).abs_diff(total);
                prop_assert!(off <= nodes_count.max(total / 10), "node {} of {} is off by {}", node, nodes, off);
                if replicas > 1 {
                    let off = (count(&placements, node, leads) * nodes_count).abs_diff(total_led);
                    prop_assert!(off <= nodes_count + total_led / 10, "node {} leads off by {}", node, off);
                }
            }
            let mut shuffled = members;
            shuffled.reverse();
            prop_assert_eq!(place(&shuffled, shards, factor), placements);
        }

        /// Consistent hashing: what moves when a node joins is little more than what the node takes.
        #[test]
        fn a_new_node_moves_about_its_fair_share(seed in any::<u64>(), nodes in 3..12u32) {
            let (shards, factor) = (256, 3);
            let before = place(&candidates(seed, nodes), shards, factor);
            let after = place(&candidates(seed, nodes + 1), shards, factor);
            let moved: usize = before.iter().zip(&after).map(|(before, after)| {
                after.replicas.iter().filter(|replica| !holds(before, replica.node_number)).count()
            }).sum();
            let fair = (shards * factor) as f64 / f64::from(nodes + 1);
            prop_assert!((moved as f64) < fair * 1.5, "moved {} where {} is fair", moved, fair);
        }
    }
}
