//! Who should lead: every node its share of leaderships, and every core of a node the same.
//!
//! What is planned is the preferred leader of the map; the shard's replicas see to it that it leads while it is well.

use std::collections::{BTreeMap, VecDeque};

use crate::meta::{MemberState, NodeNumber};
use crate::planner::quota::{SCALE, divide};
use crate::planner::table::{Table, band};

/// How many pairs of shards are tried to even out the cores of one node.
const CORE_SWAPS_TRIED_MAX: usize = 4096;

/// Most (shard, node) pairs looked at to even out leaderships in one plan.
const OPERATIONS_MAX: u64 = 20_000_000;

/// Nodes that leave hand off their leaderships at once.
pub(super) fn leave_leaving_nodes(table: &mut Table<'_>) {
    set_shares(table);
    for place in 0..table.places.len() {
        let leader = table.places[place].leader;
        if !is_free(table, place) || !is_leaving(table, leader) {
            continue;
        }
        let others =
            voters_now(table, place).into_iter().filter(|at| *at != leader && leads_well(table, *at));
        let least = others.min_by_key(|at| (table.nodes[*at as usize].leader_surplus(), *at));
        if let Some(to) = least {
            table.lead(place, to);
        }
    }
}

/// Evens out leaderships over nodes, then over the cores of each node.
pub(super) fn balance(table: &mut Table<'_>) {
    set_shares(table);
    let mut is_stuck = vec![false; table.nodes.len()];
    let operations_max = table.operations + OPERATIONS_MAX;
    while let Some((at, is_above)) = worst(table, &is_stuck) {
        if table.leads_enough() || table.operations > operations_max {
            return;
        }
        match chain(table, at, is_above) {
            Some(chain) => {
                for (place, to) in chain {
                    table.lead(place, to);
                }
            }
            None => is_stuck[at as usize] = true,
        }
    }
    if let Some(core_of) = table.input.core_of {
        balance_cores(table, core_of);
    }
}

/// Shares of leaderships by weight; nobody leads what it does not hold.
fn set_shares(table: &mut Table<'_>) {
    let weights: Vec<u64> = (0..table.nodes.len() as u32)
        .map(|at| if leads_well(table, at) { u64::from(table.nodes[at as usize].weight) } else { 0 })
        .collect();
    let room: Vec<u64> = table.nodes.iter().map(|node| node.replicas * SCALE).collect();
    let shares = divide(table.places.len() as u64 * SCALE, &weights, &room);
    for (node, share) in table.nodes.iter_mut().zip(shares) {
        node.leader_share = share as i64;
    }
}

fn leads_well(table: &Table<'_>, at: u32) -> bool {
    let node = &table.nodes[at as usize];
    node.holds && node.live
}

fn is_leaving(table: &Table<'_>, at: u32) -> bool {
    let member = table.state.member(table.nodes[at as usize].number);
    member.is_some_and(|member| match member.state {
        MemberState::Draining | MemberState::Decommissioning | MemberState::Retired => true,
        MemberState::Joining | MemberState::Active => false,
    })
}

/// Nothing changes the shard and a majority lives.
fn is_free(table: &Table<'_>, place: usize) -> bool {
    !table.places[place].is_busy && table.places[place].has_quorum
}

/// The voters that the shard has now; while nothing changes it these are its holders.
fn voters_now(table: &Table<'_>, place: usize) -> Vec<u32> {
    table.places[place].holders.clone()
}

fn worst(table: &Table<'_>, is_stuck: &[bool]) -> Option<(u32, bool)> {
    let mut worst = None;
    let mut excess_max = 0;
    for (at, node) in (0..).zip(&table.nodes) {
        let surplus = node.leader_surplus();
        let excess = surplus.abs() - band(node.leader_share);
        if excess > excess_max && leads_well(table, at) && !is_stuck[at as usize] {
            excess_max = excess;
            worst = Some((at, surplus > 0));
        }
    }
    worst
}

/// The shortest chain of (shard, new leader) by which leaderships pass from `start` to a node with fewer, or to
/// `start` from one with more; in the order in which each shard is led by who passes it on.
fn chain(table: &mut Table<'_>, start: u32, is_above: bool) -> Option<Vec<(usize, u32)>> {
    // reached[node] = (shard that moves, the node before it on the way from `start`)
    let mut reached: BTreeMap<u32, (usize, u32)> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        let mut ends: Vec<(i64, u32)> = Vec::new();
        for (place, next) in neighbours(table, at, is_above) {
            if next == start || reached.contains_key(&next) {
                continue;
            }
            reached.insert(next, (place, at));
            queue.push_back(next);
            let difference =
                table.nodes[start as usize].leader_surplus() - table.nodes[next as usize].leader_surplus();
            let difference = if is_above { difference } else { -difference };
            if difference > SCALE as i64 {
                ends.push((-difference, next));
            }
        }
        if let Some((_, end)) = ends.into_iter().min() {
            return Some(trace(&reached, start, end, is_above));
        }
    }
    None
}

/// Where leaderships of `at` can go (or, if not `is_above`, whence they can come), with the shard that goes.
fn neighbours(table: &mut Table<'_>, at: u32, is_above: bool) -> Vec<(usize, u32)> {
    let mut found = Vec::new();
    let places = &table.held[at as usize];
    for place in places.iter().map(|place| *place as usize).filter(|place| is_free(table, *place)) {
        let leader = table.places[place].leader;
        if is_above && leader == at {
            let others =
                table.places[place].holders.iter().filter(|to| **to != at && leads_well(table, **to));
            found.extend(others.map(|to| (place, *to)));
        } else if !is_above && leader != at {
            found.push((place, leader));
        }
    }
    table.operations += places.len() as u64;
    found
}

fn trace(reached: &BTreeMap<u32, (usize, u32)>, start: u32, end: u32, is_above: bool) -> Vec<(usize, u32)> {
    let mut chain = Vec::new();
    let mut at = end;
    while at != start {
        let (place, before) = reached[&at];
        chain.push((place, if is_above { at } else { before }));
        at = before;
    }
    chain
}

/// Exchanges leaderships between nodes, one for one, where that evens out cores: each exchange lessens the sum of the
/// squares of what the cores lead.
fn balance_cores(
    table: &mut Table<'_>,
    core_of: &dyn Fn(crate::meta::ShardNumber, NodeNumber) -> Option<u16>,
) {
    let core = |table: &Table<'_>, place: usize, at: u32| {
        core_of(table.shard_number(place), table.nodes[at as usize].number)
    };
    let mut led: BTreeMap<(u32, u16), i64> = BTreeMap::new();
    for place in 0..table.places.len() {
        for at in table.places[place].holders.clone() {
            let leads = i64::from(table.places[place].leader == at);
            if let Some(core) = core(table, place, at) {
                *led.entry((at, core)).or_default() += leads;
            }
        }
    }
    let mut tried = 0;
    for at in 0..table.nodes.len() as u32 {
        while tried < CORE_SWAPS_TRIED_MAX && !table.leads_enough() {
            let of_node = || led.range((at, 0)..=(at, u16::MAX)).map(|((_, core), count)| (*count, *core));
            let (Some((most, full)), Some((least, idle))) = (of_node().max(), of_node().min()) else { break };
            if most - least < 2 {
                break;
            }
            let gives = |table: &Table<'_>, place: usize| {
                is_free(table, place)
                    && table.places[place].leader == at
                    && core(table, place, at) == Some(full)
            };
            let takes = |table: &Table<'_>, place: usize| {
                is_free(table, place)
                    && table.places[place].leader != at
                    && core(table, place, at) == Some(idle)
            };
            let of = |table: &Table<'_>, may: &dyn Fn(&Table<'_>, usize) -> bool| -> Vec<usize> {
                table.held[at as usize]
                    .iter()
                    .map(|place| *place as usize)
                    .filter(|place| may(table, *place))
                    .collect()
            };
            let (giving, taking) = (of(table, &gives), of(table, &takes));
            let mut swap = None;
            'search: for first in &giving {
                for second in &taking {
                    tried += 1;
                    let other = table.places[*second].leader;
                    let holds = table.places[*first].holders.contains(&other) && leads_well(table, other);
                    let (Some(gains), Some(loses)) =
                        (core(table, *first, other), core(table, *second, other))
                    else {
                        continue;
                    };
                    let there = led[&(other, gains)] - led[&(other, loses)];
                    if holds && (gains == loses || there < most - least - 2) {
                        swap = Some((*first, *second, other, gains, loses));
                        break 'search;
                    }
                    if tried >= CORE_SWAPS_TRIED_MAX {
                        break 'search;
                    }
                }
            }
            let Some((first, second, other, gains, loses)) = swap else { break };
            table.lead(first, other);
            table.lead(second, at);
            for (key, change) in
                [((at, full), -1), ((at, idle), 1), ((other, gains), 1), ((other, loses), -1)]
            {
                *led.entry(key).or_default() += change;
            }
        }
    }
}
