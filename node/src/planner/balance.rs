//! Uneven loads: single replicas go from the fullest node to the emptiest, until all are within their bounds.

use crate::meta::Reason;
use crate::planner::Finding;
use crate::planner::quota::SCALE;
use crate::planner::score::{mix, score};
use crate::planner::table::{Table, band};

/// Of how many shards that could move the best one is chosen.
const CANDIDATES_MAX: usize = 64;

/// How many shards of a node are looked at for one move.
const SHARDS_TRIED_MAX: usize = 4096;

/// How many other nodes are tried when the fullest and the emptiest cannot help each other.
const PARTNERS_MAX: usize = 64;

/// The same where a third node takes part.
const DETOURS_MAX: usize = 4;

/// See the module. Every move is between nodes whose surpluses differ by more than one, so that the sum of their
/// squares falls.
pub(super) fn balance(table: &mut Table<'_>) {
    let mut is_stuck = vec![false; table.nodes.len()];
    while !table.is_spent() {
        let Some((at, is_above)) = worst(table, &is_stuck) else { break };
        let moved = if is_above { relieve(table, at) } else { fill(table, at) };
        is_stuck[at as usize] = !moved;
    }
    let nodes = is_stuck.iter().filter(|stuck| **stuck).count() as u64;
    // While changes are under way, that some wait is no news.
    if nodes > 0 && table.nodes.iter().all(|node| node.moves == 0) {
        table.findings.push(Finding::Uneven { nodes });
    }
}

/// The node that is the furthest out of its bounds, and whether above them.
fn worst(table: &Table<'_>, is_stuck: &[bool]) -> Option<(u32, bool)> {
    let mut worst = None;
    let mut excess_max = 0;
    for (at, node) in (0..).zip(&table.nodes) {
        let surplus = node.surplus();
        let excess = surplus.abs() - band(node.share);
        let is_above = surplus > 0;
        let can = if is_above { gives(table, at) } else { takes(table, at) };
        if excess > excess_max && can && !is_stuck[at as usize] {
            excess_max = excess;
            worst = Some((at, is_above));
        }
    }
    worst
}

/// Its replicas may move to balance: it is neither leaving (that is repair) nor silent, nor part of as many changes as
/// it may be.
fn gives(table: &Table<'_>, at: u32) -> bool {
    let node = &table.nodes[at as usize];
    node.holds && node.live && !table.is_saturated(at)
}

fn takes(table: &Table<'_>, at: u32) -> bool {
    table.nodes[at as usize].receives && !table.is_saturated(at)
}

/// From above a share to below one. Two nodes on the same side must not help each other while those on the other side
/// are only busy: the replica would have to move twice.
fn helps(table: &Table<'_>, from: u32, to: u32) -> bool {
    let (from, to) = (table.nodes[from as usize].surplus(), table.nodes[to as usize].surplus());
    from > 0 && to < 0 && from - to > SCALE as i64
}

fn relieve(table: &mut Table<'_>, from: u32) -> bool {
    let partners = partners(table, from, |table, to| {
        (table.nodes[to as usize].receives && helps(table, from, to))
            .then(|| table.nodes[to as usize].surplus())
    });
    partners.iter().any(|to| move_one(table, from, *to))
        || partners.iter().take(DETOURS_MAX).any(|to| move_by_way(table, from, *to))
}

fn fill(table: &mut Table<'_>, to: u32) -> bool {
    let partners = partners(table, to, |table, from| {
        (gives(table, from) && helps(table, from, to)).then(|| -table.nodes[from as usize].surplus())
    });
    partners.iter().any(|from| move_one(table, *from, to))
        || partners.iter().take(DETOURS_MAX).any(|from| move_by_way(table, *from, to))
}

/// The nodes that can help, the best first.
fn partners(table: &mut Table<'_>, of: u32, key: impl Fn(&Table<'_>, u32) -> Option<i64>) -> Vec<u32> {
    let all = (0..table.nodes.len() as u32).filter(|at| *at != of);
    let mut keyed: Vec<(i64, u32)> = all.filter_map(|at| key(table, at).map(|key| (key, at))).collect();
    let most = PARTNERS_MAX.min(keyed.len());
    if most > 0 {
        keyed.select_nth_unstable(most - 1);
        keyed.truncate(most);
        keyed.sort_unstable();
    }
    table.operations += table.nodes.len() as u64;
    keyed.into_iter().map(|(_, at)| at).collect()
}

/// Moves the replica of `from` that scores best on `to`, of those that can move.
fn move_one(table: &mut Table<'_>, from: u32, to: u32) -> bool {
    match movable(table, from, to, None) {
        Some(place) => {
            table.change(place, Some(from), Some(to), Reason::Balance);
            true
        }
        None => false,
    }
}

/// Where no shard of `from` can go to `to`: one of `from` goes to a third node, and one of that node to `to`.
fn move_by_way(table: &mut Table<'_>, from: u32, to: u32) -> bool {
    let is_third =
        |table: &Table<'_>, at: u32| at != from && at != to && gives(table, at) && takes(table, at);
    let thirds: Vec<u32> =
        (0..table.nodes.len() as u32).filter(|at| is_third(table, *at)).take(PARTNERS_MAX).collect();
    for by_way in thirds {
        let Some(second) = movable(table, by_way, to, None) else { continue };
        let Some(first) = movable(table, from, by_way, Some(second)) else { continue };
        table.change(second, Some(by_way), Some(to), Reason::Balance);
        table.change(first, Some(from), Some(by_way), Reason::Balance);
        return true;
    }
    false
}

/// A shard whose replica on `from` may move to `to`. Begins at a place of its own for each pair, so that the replicas
/// of two nodes do not end up together more often than chance has it.
fn movable(table: &mut Table<'_>, from: u32, to: u32, except: Option<usize>) -> Option<usize> {
    let held = &table.held[from as usize];
    if held.is_empty() {
        return None;
    }
    let node = &table.nodes[to as usize];
    let start = (mix(table.nodes[from as usize].seed ^ node.seed) % held.len() as u64) as usize;
    let mut best = None;
    let mut candidates = 0;
    let mut operations = 0;
    for step in 0..held.len().min(SHARDS_TRIED_MAX) {
        let place = held[(start + step) % held.len()] as usize;
        operations += 1;
        let shard = &table.places[place];
        let is_free = !shard.is_busy && shard.has_quorum && Some(place) != except;
        if !is_free || !table.fits(place, Some(from), to) {
            continue;
        }
        candidates += 1;
        let key = (score(shard.seed, node.seed, node.weight), place);
        if best.is_none_or(|best| key < best) {
            best = Some(key);
        }
        if candidates == CANDIDATES_MAX {
            break;
        }
    }
    table.operations += operations;
    best.map(|(_, place)| place)
}
