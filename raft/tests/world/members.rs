//! Worlds whose members change: somebody asks whoever leads for random changes, with fresh replicas, several at
//! once, also of the leader, also by a stale view, and often things go wrong right then. Those that were removed run
//! on with what they have, and are restarted with it. Their chance is their own, so that the other worlds stay as
//! they are.

use std::collections::BTreeSet;

use krita_raft::*;

use super::chance::Random;
use super::{Event, MILLISECOND, Node, World};
use crate::common::Disk;

/// Replicas that a world ever has, at most.
const NODES_MAX: usize = 14;

/// Voters that are wished for, at most.
const VOTERS_WISHED: usize = 5;

/// What drives such a world.
pub(super) struct Changes {
    chance: Random,
    interval: u64,
    /// A view of the configuration that may be old.
    remembered: Position,
}

impl World {
    /// A world whose members change; in every third replicas lose their memory too.
    pub(crate) fn changing(seed: u64, verbose: bool) -> Self {
        let mut chance = Random(seed.wrapping_mul(0x8ebc_6af0_9c88_c6e3));
        let mut world = match chance.chance(33) {
            true => World::forgetful(seed, verbose),
            false => World::new(seed, verbose),
        };
        let interval = [100, 400, 1500][chance.below(3) as usize];
        world.changes = Some(Changes { chance, interval, remembered: Position::default() });
        world.at(300 * MILLISECOND, ReplicaId(1), Event::Change);
        world
    }

    /// The configurations by which somebody goes, or will after a restart, and by which was counted last.
    pub(super) fn in_force(&self) -> Vec<Configuration> {
        let replicas = self.nodes.values().filter_map(|node| node.replica.as_ref());
        let present = replicas.map(|replica| replica.raft.configuration().clone());
        let on_disk = self.nodes.values().map(|node| node.disk().configuration());
        present.chain(on_disk).chain(self.checks.counted_by().iter().cloned()).collect()
    }

    /// Whether those that have lost their memory would be a minority of the new voters. A group that is not warned
    /// of them by a leader could not elect one.
    fn may_follow(&self, present: &Configuration, change: &ConfigurationChange) -> bool {
        let goes = |id: &&ReplicaId| !change.remove.contains(id) && !change.demote.contains(id);
        let voters: Vec<ReplicaId> =
            present.voters.iter().filter(goes).chain(&change.promote).copied().collect();
        let suspects = voters.iter().filter(|id| self.nodes[*id].disk().suspect.is_some()).count();
        suspects <= voters.len().saturating_sub(1) / 2
    }

    /// Whoever says that it leads is asked for a change.
    pub(super) fn change_members(&mut self) {
        let Some(changes) = self.changes.as_mut().filter(|_| !self.healed) else { return };
        let delay = 20 + changes.chance.below(changes.interval * 2);
        self.at(delay * MILLISECOND, ReplicaId(1), Event::Change);
        let leads = |node: &Node| {
            node.paused_until <= self.now
                && node.replica.as_ref().is_some_and(|replica| replica.raft.status().role == RoleKind::Leader)
        };
        let leaders: Vec<ReplicaId> =
            self.nodes.iter().filter(|(_, node)| leads(node)).map(|(id, _)| *id).collect();
        for leader in leaders {
            self.ask_for_change(leader);
        }
    }

    fn ask_for_change(&mut self, leader: ReplicaId) {
        let now = self.clock(leader);
        let Some(replica) = &self.nodes[&leader].replica else { return };
        let (membership, status) = (replica.raft.membership().clone(), replica.raft.status());
        let fresh = ReplicaId(self.nodes.len() as u64 + 1);
        let spare = self.spare(&membership.configuration);
        let Some(changes) = &mut self.changes else { return };
        let chance = &mut changes.chance;
        let mut change = draw_change(chance, leader, &membership.configuration, &status);
        let wants_learner = membership.configuration.learners.len() < 2 && chance.chance(40);
        let joins = wants_learner && spare.is_none() && self.nodes.len() < NODES_MAX;
        if wants_learner {
            change.add.extend(spare.or(joins.then_some(fresh)));
        }
        let expected = if chance.chance(5) { changes.remembered } else { membership.set_by };
        if chance.chance(30) {
            changes.remembered = membership.set_by;
        }
        let (trouble, kind) = (chance.chance(35), chance.below(4));
        if joins {
            self.join(fresh);
        }
        if !self.may_follow(&membership.configuration, &change) {
            return;
        }
        let Some(replica) = &mut self.nodes.get_mut(&leader).unwrap().replica else { return };
        match replica.raft.propose_configuration(now, &change, expected) {
            Ok((_, index)) => {
                assert_eq!(expected, membership.set_by, "a stale view changed the configuration");
                self.totals.changes += 1;
                self.say(|| format!("{leader} changes the members at {index}: {change:?}"));
                if trouble {
                    self.trouble(leader, kind);
                }
            }
            Err(error) => self.say(|| format!("{leader} does not change the members: {error}")),
        }
        self.pump(leader);
    }

    /// A replica that runs, knows nobody and was never a member.
    fn spare(&self, configuration: &Configuration) -> Option<ReplicaId> {
        let knows_nobody = |node: &Node| {
            node.replica.as_ref().is_some_and(|replica| {
                replica.raft.configuration().voters.is_empty() && replica.raft.status().last == Index(0)
            })
        };
        let mut spare = self.nodes.iter().filter(|(_, node)| knows_nobody(node)).map(|(id, _)| *id);
        spare.find(|id| !configuration.is_member(*id))
    }

    /// A fresh replica that knows nobody.
    fn join(&mut self, id: ReplicaId) {
        let Some(changes) = &mut self.changes else { return };
        let chance = &mut changes.chance;
        let node = Node {
            clock_offset: chance.below(1 << 40),
            clock_rate: 960 + chance.below(80),
            write_time: [1, 3, 20][chance.below(3) as usize] * MILLISECOND,
            ..Node::new(Disk::default())
        };
        self.totals.joins += 1;
        self.nodes.insert(id, node);
        self.start(id);
        self.at(MILLISECOND, id, Event::Tick);
    }

    /// Something goes wrong while the change is young.
    fn trouble(&mut self, leader: ReplicaId, kind: u64) {
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        let Some(changes) = &mut self.changes else { return };
        let chance = &mut changes.chance;
        let later = (500 + chance.below(3000)) * MILLISECOND;
        match kind {
            0 => {
                // Its entry may have got away, or not.
                let speaks = chance.chance(60);
                if speaks {
                    self.pump(leader);
                }
                self.crash(leader);
                self.at(later, leader, Event::Restart);
            }
            1 => {
                self.pump(leader);
                let others = ids.into_iter().filter(|other| *other != leader);
                self.cut.extend(others.flat_map(|other| [(leader, other), (other, leader)]));
                self.at(later, leader, Event::Join);
            }
            2 => {
                // Two camps, by chance.
                let camp: BTreeSet<ReplicaId> = ids.iter().copied().filter(|_| chance.chance(50)).collect();
                self.say(|| format!("{camp:?} are cut from the others"));
                for one in &ids {
                    for other in ids.iter().filter(|other| camp.contains(one) != camp.contains(other)) {
                        self.cut.insert((*one, *other));
                    }
                }
            }
            _ => {
                let victim = ids[chance.below(ids.len() as u64) as usize];
                self.crash(victim);
                self.at(later, victim, Event::Restart);
            }
        }
    }
}

/// A change that may make sense.
fn draw_change(
    chance: &mut Random,
    leader: ReplicaId,
    present: &Configuration,
    status: &Status,
) -> ConfigurationChange {
    let mut change = ConfigurationChange::default();
    let close = |id: &ReplicaId| status.followers.iter().any(|one| one.id == *id && one.is_caught_up);
    for learner in &present.learners {
        if close(learner) && chance.chance(70) {
            change.promote.insert(*learner);
        } else if chance.chance(5) {
            change.remove.insert(*learner);
        }
    }
    let voters = present.voters.len() + change.promote.len();
    let too_many = voters.saturating_sub(VOTERS_WISHED);
    for voter in &present.voters {
        let goes = change.remove.len() < too_many || chance.chance(10);
        let leads = *voter == leader;
        if goes && (!leads || chance.chance(50)) && change.remove.len() + change.demote.len() + 1 < voters {
            match chance.chance(80) {
                true => change.remove.insert(*voter),
                false => change.demote.insert(*voter),
            };
        }
    }
    change
}
