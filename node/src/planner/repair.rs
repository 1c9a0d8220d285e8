//! What is wrong with single shards: lost replicas, leaving nodes, too few or too many replicas, zones.

use std::cmp::Reverse;

use crate::meta::{Reason, ShardNumber};
use crate::planner::Finding;
use crate::planner::quota::SCALE;
use crate::planner::score::score;
use crate::planner::table::{Table, band, leftover};

/// What a shard needs first, most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    ReplaceLost,
    ReplaceLeaving,
    Add,
    Remove,
    SpreadZones,
    Tidy,
}

/// Plans at most one change for each shard that needs one.
pub(super) fn repair(table: &mut Table<'_>) {
    let mut without_quorum = Count::default();
    let mut no_room = Count::default();
    let mut needs: Vec<(Need, usize, usize)> = Vec::new();
    for place in 0..table.places.len() {
        if table.places[place].is_busy {
            continue;
        }
        let Some(need) = need(table, place) else { continue };
        if table.places[place].has_quorum {
            needs.push((need, live_margin(table, place), place));
        } else {
            without_quorum.add(table.shard_number(place));
        }
    }
    needs.sort_unstable();
    for (need, _, place) in needs {
        if table.is_spent() {
            break;
        }
        if !meet(table, need, place) {
            no_room.add(table.shard_number(place));
        }
    }
    let found = |count: Count| count.first.map(|first| (count.shards, first));
    table
        .findings
        .extend(found(without_quorum).map(|(shards, first)| Finding::WithoutQuorum { shards, first }));
    table.findings.extend(found(no_room).map(|(shards, first)| Finding::NoRoom { shards, first }));
}

#[derive(Default)]
struct Count {
    shards: u64,
    first: Option<ShardNumber>,
}

impl Count {
    fn add(&mut self, shard: ShardNumber) {
        self.shards += 1;
        self.first.get_or_insert(shard);
    }
}

fn need(table: &Table<'_>, place: usize) -> Option<Need> {
    let holders = &table.places[place].holders;
    let node = |holder: &u32| &table.nodes[*holder as usize];
    if holders.iter().any(|holder| node(holder).lost) {
        return Some(Need::ReplaceLost);
    }
    if holders.iter().any(|holder| !node(holder).holds) {
        return Some(Need::ReplaceLeaving);
    }
    if holders.len() < table.wanted {
        return Some(Need::Add);
    }
    if holders.len() > table.wanted {
        return Some(Need::Remove);
    }
    if crowded_zone(table, place).is_some() {
        return Some(Need::SpreadZones);
    }
    leftover(table.state, table.shard_number(place)).map(|_| Need::Tidy)
}

/// Live voters beyond a majority.
fn live_margin(table: &Table<'_>, place: usize) -> usize {
    let holders = &table.places[place].holders;
    let live = holders.iter().filter(|holder| table.nodes[**holder as usize].live).count();
    live.saturating_sub(holders.len() / 2 + 1)
}

/// Plans what the shard needs; `false`: no node can take a replica.
fn meet(table: &mut Table<'_>, need: Need, place: usize) -> bool {
    match need {
        Need::ReplaceLost | Need::ReplaceLeaving => {
            let is_bad = |holder: &&u32| {
                let node = &table.nodes[**holder as usize];
                if need == Need::ReplaceLost { node.lost } else { !node.holds }
            };
            let bad = *table.places[place].holders.iter().find(is_bad).expect("it needs this");
            let reason = if need == Need::ReplaceLost { Reason::Repair } else { Reason::Leaving };
            if table.places[place].holders.len() > factor(table) && may_remove(table, place, bad) {
                table.change(place, Some(bad), None, reason);
                return true;
            }
            match choose(table, place, Some(bad)) {
                Some(to) => table.change(place, Some(bad), Some(to), reason),
                None => return false,
            }
        }
        Need::Add => match choose(table, place, None) {
            Some(to) => table.change(place, None, Some(to), Reason::ReplicationFactor),
            None => return false,
        },
        Need::Remove => {
            // Nodes that may come back are not reason enough to give replicas up.
            let surplus = table.places[place].holders.len() > factor(table);
            if let Some(from) = least_needed(table, place).filter(|_| surplus) {
                table.change(place, Some(from), None, Reason::ReplicationFactor);
            }
        }
        Need::SpreadZones => {
            let zone = crowded_zone(table, place).expect("it needs this");
            let in_zone = |holder: &&u32| table.nodes[**holder as usize].zone == zone;
            let holders = table.places[place].holders.iter().filter(in_zone);
            let fullest = holders.max_by_key(|holder| (table.nodes[**holder as usize].surplus(), **holder));
            let from = *fullest.expect("a crowded zone has holders");
            match choose_outside(table, place, from) {
                Some(to) => table.change(place, Some(from), Some(to), Reason::Zones),
                None => return false,
            }
        }
        Need::Tidy => {
            let learner = leftover(table.state, table.shard_number(place)).expect("it needs this");
            table.remove_leftover(place, learner);
        }
    }
    true
}

fn factor(table: &Table<'_>) -> usize {
    table.state.settings().get(crate::meta::Setting::ReplicationFactor) as usize
}

/// A zone with more replicas of the shard than any zone must have, if another has room.
fn crowded_zone(table: &Table<'_>, place: usize) -> Option<usize> {
    let holders = &table.places[place].holders;
    let zone_of = |holder: &u32| table.nodes[*holder as usize].zone;
    let (count, zone) = holders
        .iter()
        .map(|holder| (table.in_zone(place, zone_of(holder), None), zone_of(holder)))
        .max_by_key(|(count, zone)| (*count, Reverse(*zone)))?;
    let elsewhere = |to: u32| table.nodes[to as usize].zone != zone && table.fits(place, None, to);
    (count > table.zone_max && (0..table.nodes.len() as u32).any(elsewhere)).then_some(zone)
}

/// Who should take a replica of the shard, in place of the one on `leaves` or as one more.
///
/// Among those below their share the one that scores best; failing these, among those within their bounds; failing
/// these, who is the least above. A node in a crowded zone comes last.
fn choose(table: &mut Table<'_>, place: usize, leaves: Option<u32>) -> Option<u32> {
    best(table, place, |table, to| table.fits(place, leaves, to)).or_else(|| {
        // No zone has room: better two in one zone than one too few.
        let node_is_free = |table: &Table<'_>, to: u32| {
            let node = &table.nodes[to as usize];
            let shard = table.state.map().shard(table.shard_number(place)).expect("a place is a shard's");
            node.receives
                && !table.places[place].holders.contains(&to)
                && shard.replica_on(node.number).is_none()
        };
        best(table, place, node_is_free)
    })
}

fn choose_outside(table: &mut Table<'_>, place: usize, from: u32) -> Option<u32> {
    let zone = table.nodes[from as usize].zone;
    best(table, place, |table, to| table.nodes[to as usize].zone != zone && table.fits(place, Some(from), to))
}

fn best(table: &mut Table<'_>, place: usize, may: impl Fn(&Table<'_>, u32) -> bool) -> Option<u32> {
    let shard_seed = table.places[place].seed;
    let mut best: Option<((u8, i64, u64, u32), u32)> = None;
    for to in 0..table.nodes.len() as u32 {
        let node = &table.nodes[to as usize];
        let after = node.surplus() + SCALE as i64;
        let tier = if after <= 0 { 0 } else { 1 + u8::from(after > band(node.share)) };
        if !node.receives || best.is_some_and(|((best_tier, ..), _)| best_tier < tier) {
            continue;
        }
        let above = if tier == 2 { after } else { 0 };
        let key = (tier, above, score(shard_seed, node.seed, node.weight), to);
        // Asked last, since it costs the most.
        if best.is_none_or(|(best_key, _)| key < best_key) && may(table, to) {
            best = Some((key, to));
        }
    }
    table.operations += table.nodes.len() as u64;
    best.map(|(_, to)| to)
}

/// The replica that the shard can best do without: in the zone with the most, on the node that is the most above its
/// share, not the leader's if another will do; and only if a live majority is left.
fn least_needed(table: &Table<'_>, place: usize) -> Option<u32> {
    let key = |holder: &u32| {
        let node = &table.nodes[*holder as usize];
        let leads = table.places[place].leader == *holder;
        (!node.live, table.in_zone(place, node.zone, None), node.surplus() - i64::from(leads), *holder)
    };
    let holders = table.places[place].holders.iter().copied();
    holders.filter(|holder| may_remove(table, place, *holder)).max_by_key(key)
}

fn may_remove(table: &Table<'_>, place: usize, holder: u32) -> bool {
    let others = || table.places[place].holders.iter().filter(|other| **other != holder);
    let live = others().filter(|other| table.nodes[**other as usize].live).count();
    others().count() > 0 && live > others().count() / 2
}
