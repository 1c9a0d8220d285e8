//! Worlds in which replicas lose their memory: one that crashed comes back with an older disk, a shorter log, another
//! hard state, a damaged state machine or nothing at all, and knows that it may have forgotten something; one that runs
//! finds its state damaged. At any time these are a minority. Their chance is their own, so that the other worlds
//! stay as they are.

use std::collections::BTreeSet;

use krita_raft::*;

use super::chance::Random;
use super::{Event, MILLISECOND, Node, World};
use crate::common::Disk;

/// What drives such a world.
pub(super) struct Amnesia {
    chance: Random,
    /// These will certainly have lost their memory when they restart.
    forgetting: BTreeSet<ReplicaId>,
    /// What these say is long on its way: it will arrive when they have forgotten it.
    slow_to_be_heard: BTreeSet<ReplicaId>,
}

/// A step of a plot against the group: what makes a lost memory matter.
pub(super) enum Plot {
    /// It crashes and is back in a moment, without its memory.
    Forget,
    /// As that, and from then on it hears this replica, and nobody else.
    Defect { to: ReplicaId },
    /// It crashes, for longer.
    Fall,
    /// Nobody hears it, and it hears nobody.
    Isolate,
    /// All links are whole, and all disks quick.
    End,
}

/// Earlier states of a disk that are kept.
const PAST_MAX: usize = 6;

impl World {
    /// A world in which replicas lose their memory.
    pub(crate) fn forgetful(seed: u64, verbose: bool) -> Self {
        let mut world = World::new(seed, verbose);
        let chance = Random(seed.wrapping_mul(0xa076_1d64_78bd_642f));
        world.amnesia =
            Some(Amnesia { chance, forgetting: BTreeSet::new(), slow_to_be_heard: BTreeSet::new() });
        world
    }

    /// Keeps, now and then, what the disk holds, for it to come back one day.
    pub(super) fn remember(&mut self, id: ReplicaId) {
        let Some(amnesia) = &mut self.amnesia else { return };
        if self.healed || !amnesia.chance.chance(1) {
            return;
        }
        let node = self.nodes.get_mut(&id).unwrap();
        let image = node.disk().clone();
        node.past.push_back(image);
        if node.past.len() > PAST_MAX {
            node.past.pop_front();
        }
    }

    /// Whether one more may forget without more than a minority of voters having done so.
    fn may_be_suspect(&self, id: ReplicaId) -> bool {
        let suspects = |other: &&ReplicaId| **other != id && self.nodes[*other].disk().suspect.is_some();
        let may = |half: &BTreeSet<ReplicaId>| {
            let others = half.iter().filter(suspects).count();
            !half.contains(&id) || others < half.len().saturating_sub(1) / 2
        };
        self.in_force().iter().all(|present| may(&present.voters) && may(&present.voters_outgoing))
    }

    /// A replica that restarts may have lost some of what it had.
    pub(super) fn may_forget(&mut self, id: ReplicaId) {
        let allowed = self.may_be_suspect(id);
        let Some(amnesia) = self.amnesia.as_mut().filter(|_| !self.healed && allowed) else { return };
        let chance = &mut amnesia.chance;
        if !amnesia.forgetting.remove(&id) && !chance.chance(50) {
            return;
        }
        let node = self.nodes.get_mut(&id).unwrap();
        node.ghost.get_or_insert(node.disk.clone());
        let hard_states = [node.disk.hard_state, HardState::default()];
        let disk = &mut node.disk;
        disk.suspect = Some(disk.suspect.unwrap_or(Suspicion::Forgetful));
        match chance.below(5) {
            0 => *disk = Disk { has_run: true, suspect: Some(Suspicion::Forgetful), ..Disk::default() },
            1 | 2 if !node.past.is_empty() => {
                let image = node.past[chance.below(node.past.len() as u64) as usize].clone();
                let suspect = Some(image.suspect.unwrap_or(Suspicion::Forgetful));
                *disk = Disk { suspect, ..image };
                if chance.chance(60) {
                    disk.hard_state = hard_states[chance.below(2) as usize];
                }
            }
            3 => {
                disk.checkpoint.digest ^= 1;
                disk.suspect = Some(Suspicion::NeedsSnapshot);
            }
            _ => {
                let first = disk.checkpoint.applied.0;
                let after = first + chance.below(disk.last().0 - first + 1);
                disk.truncate(Index(after));
                disk.hard_state = hard_states[chance.below(2) as usize];
            }
        }
        self.totals.amnesias += 1;
        let told = format!("{id} has lost its memory: {:?} {:?}", disk.suspect, disk.hard_state);
        let told = format!("{told}, log {}..={}", disk.start.index, disk.last());
        self.say(|| told);
    }

    /// A replica that runs, the leader most likely, finds its state damaged.
    pub(super) fn may_be_damaged(&mut self, id: ReplicaId) {
        let allowed = self.may_be_suspect(id);
        let now = self.clock(id);
        let Some(amnesia) = self.amnesia.as_mut().filter(|_| !self.healed && allowed) else { return };
        let chance = &mut amnesia.chance;
        let (happens, all) = (chance.chance(15), chance.chance(70));
        self.pump(id);
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = node.replica.as_mut().filter(|_| happens) else { return };
        // What is on its way to the disk may still be acknowledged.
        node.ghost.get_or_insert(replica.disk_soon());
        let suspicion = if all { Suspicion::NeedsSnapshot } else { Suspicion::Forgetful };
        let suspicion = if replica.disk.suspect == Some(Suspicion::NeedsSnapshot) {
            Suspicion::NeedsSnapshot
        } else {
            suspicion
        };
        if suspicion == Suspicion::NeedsSnapshot {
            replica.machine.digest ^= 2;
            replica.disk.checkpoint.digest ^= 2;
            node.proposals.clear();
            node.reads.clear();
            node.reads_ready.clear();
        }
        replica.disk.suspect = Some(suspicion);
        replica.raft.become_suspect(now, suspicion);
        self.totals.damages += 1;
        self.say(|| format!("{id} finds itself damaged: {suspicion:?}"));
        self.pump(id);
    }

    /// Begins a plot, sometimes, against whoever leads.
    pub(super) fn may_plot(&mut self) {
        let leads = |node: &Node| {
            node.replica.as_ref().is_some_and(|replica| replica.raft.status().role == RoleKind::Leader)
        };
        let Some(leader) = self.nodes.iter().find(|(_, node)| leads(node)).map(|(id, _)| *id) else { return };
        let Some(replica) = &self.nodes[&leader].replica else { return };
        let mut others = replica.raft.configuration().voters.clone();
        others.remove(&leader);
        let others: Vec<ReplicaId> = others.into_iter().collect();
        let Some(amnesia) = self.amnesia.as_mut().filter(|_| !self.healed) else { return };
        let chance = &mut amnesia.chance;
        if others.len() < 2 || !chance.chance(40) {
            return;
        }
        let first = chance.below(others.len() as u64) as usize;
        let others: Vec<ReplicaId> = others[first..].iter().chain(&others[..first]).copied().collect();
        let victims = &others[..others.len() / 2];
        match chance.chance(60) {
            true => self.plot_by_slow_disks(leader, victims),
            false => self.plot_by_transfer(leader, victims, others[others.len() - 1]),
        }
    }

    /// Entries commit by what the victims say, since the other disks are slow; then the victims forget, and the
    /// leader is gone.
    fn plot_by_slow_disks(&mut self, leader: ReplicaId, victims: &[ReplicaId]) {
        self.say(|| format!("a plot by slow disks against {leader}, {victims:?} will forget"));
        let Some(Amnesia { chance, slow_to_be_heard, .. }) = &mut self.amnesia else { return };
        let slow_leader = chance.chance(40);
        if chance.chance(50) {
            slow_to_be_heard.extend(victims);
        }
        for (id, node) in &mut self.nodes {
            let is_slow = !victims.contains(id) && (*id != leader || slow_leader);
            node.write_time = if is_slow { 300 + chance.below(2000) } else { 1 } * MILLISECOND;
        }
        let forget = 50 + chance.below(700);
        let fate = forget + chance.below(900);
        let (falls, is_cut) = (chance.chance(50), chance.chance(50));
        for victim in victims {
            self.at(forget * MILLISECOND, *victim, Event::Plot(Plot::Forget));
        }
        if falls {
            self.at(fate * MILLISECOND, leader, Event::Plot(Plot::Fall));
        } else if is_cut {
            self.at(fate * MILLISECOND, leader, Event::Plot(Plot::Isolate));
        }
        self.at(3000 * MILLISECOND, leader, Event::Plot(Plot::End));
    }

    /// The leader hands over, and does not hear that it worked; then the victims, who did, forget it, and hear the
    /// old leader alone.
    fn plot_by_transfer(&mut self, leader: ReplicaId, victims: &[ReplicaId], heir: ReplicaId) {
        self.say(|| format!("a plot by transfer from {leader} to {heir}, {victims:?} will forget"));
        let now = self.clock(leader);
        for node in self.nodes.values_mut() {
            node.write_time = MILLISECOND;
        }
        if let Some(replica) = &mut self.nodes.get_mut(&leader).unwrap().replica {
            let _ = replica.raft.transfer_leadership(now, heir);
        }
        self.pump(leader);
        let Some(Amnesia { chance, .. }) = &mut self.amnesia else { return };
        let isolate = chance.below(1 + 2 * self.delay_max / MILLISECOND);
        let defect = isolate + 50 + chance.below(300);
        self.at(isolate * MILLISECOND, leader, Event::Plot(Plot::Isolate));
        for victim in victims {
            self.at(defect * MILLISECOND, *victim, Event::Plot(Plot::Defect { to: leader }));
        }
        self.at((defect + 2000) * MILLISECOND, leader, Event::Plot(Plot::End));
    }

    /// Before all is healed, a follower loses its memory: its leader, which stays, must learn that.
    pub(super) fn forget_last(&mut self) {
        let follows = |node: &Node| {
            node.replica.as_ref().is_some_and(|replica| replica.raft.status().role == RoleKind::Follower)
        };
        let followers: Vec<ReplicaId> =
            self.nodes.iter().filter(|(_, node)| follows(node)).map(|(id, _)| *id).collect();
        let Some(amnesia) = &mut self.amnesia else { return };
        if followers.is_empty() || amnesia.chance.chance(30) {
            return;
        }
        let victim = followers[amnesia.chance.below(followers.len() as u64) as usize];
        amnesia.forgetting.insert(victim);
        self.crash(victim);
        self.may_forget(victim);
    }

    /// A step of a plot comes to pass.
    pub(super) fn plot(&mut self, id: ReplicaId, plot: Plot) {
        if self.healed {
            return;
        }
        let others: Vec<ReplicaId> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        match plot {
            Plot::Forget | Plot::Defect { .. } => {
                let Some(amnesia) = &mut self.amnesia else { return };
                amnesia.forgetting.insert(id);
                amnesia.slow_to_be_heard.remove(&id);
                let restart = 1 + amnesia.chance.below(8);
                self.crash(id);
                self.at(restart * MILLISECOND, id, Event::Restart);
                if let Plot::Defect { to } = plot {
                    self.cut.extend(others.into_iter().flat_map(|other| [(id, other), (other, id)]));
                    self.cut.remove(&(id, to));
                    self.cut.remove(&(to, id));
                }
            }
            Plot::Fall => {
                self.crash(id);
                self.at(2000 * MILLISECOND, id, Event::Restart);
            }
            Plot::Isolate => {
                self.cut.extend(others.into_iter().flat_map(|other| [(id, other), (other, id)]));
            }
            Plot::End => {
                self.say(|| "the plot is over".to_string());
                self.cut.clear();
                for node in self.nodes.values_mut() {
                    node.write_time = MILLISECOND;
                }
            }
        }
    }

    /// How much longer than usual a message is on its way.
    pub(super) fn lag(&mut self, from: ReplicaId) -> u64 {
        let amnesia = self.amnesia.as_mut().filter(|amnesia| amnesia.slow_to_be_heard.contains(&from));
        amnesia.map_or(0, |amnesia| amnesia.chance.below(600) * MILLISECOND)
    }

    /// A suspect has become whole: it counts by what its disk holds, and by nothing else.
    pub(super) fn is_whole(&mut self, id: ReplicaId) {
        self.totals.healed += 1;
        let Some(amnesia) = &mut self.amnesia else { return };
        let delay = amnesia.chance.below(300) * MILLISECOND;
        let node = self.nodes.get_mut(&id).unwrap();
        node.ghost = None;
        let life = node.life;
        self.checks.durability_again();
        self.at(delay, id, Event::Trusted { life });
    }
}
