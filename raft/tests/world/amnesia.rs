//! Worlds in which replicas lose their memory: one that crashed comes back with an older disk, a shorter log, another
//! hard state, a damaged state machine or nothing at all, and knows that it may have forgotten something; one that runs
//! finds its state damaged. At any time these are a minority. Their chance is their own, so that the other worlds
//! stay as they are.

use krita_raft::*;

use super::chance::Random;
use super::{Event, MILLISECOND, World};
use crate::common::Disk;

/// Earlier states of a disk that are kept.
const PAST_MAX: usize = 6;

impl World {
    /// A world in which replicas lose their memory.
    pub(crate) fn forgetful(seed: u64, verbose: bool) -> Self {
        let mut world = World::new(seed, verbose);
        world.amnesia = Some(Random(seed.wrapping_mul(0xa076_1d64_78bd_642f)));
        world
    }

    /// Keeps, now and then, what the disk holds, for it to come back one day.
    pub(super) fn remember(&mut self, id: ReplicaId) {
        let Some(chance) = &mut self.amnesia else { return };
        if self.healed || !chance.chance(1) {
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
        let voters = self.configuration.voters.len();
        let suspects = |other: &&ReplicaId| **other != id && self.nodes[*other].disk().suspect.is_some();
        let others = self.configuration.voters.iter().filter(suspects).count();
        !self.configuration.is_voter(id) || others < voters.saturating_sub(1) / 2
    }

    /// A replica that restarts may have lost some of what it had.
    pub(super) fn may_forget(&mut self, id: ReplicaId) {
        let allowed = self.may_be_suspect(id);
        let Some(chance) = self.amnesia.as_mut().filter(|_| !self.healed && allowed) else { return };
        if !chance.chance(50) {
            return;
        }
        let node = self.nodes.get_mut(&id).unwrap();
        node.ghosts.push(node.disk.clone());
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
        let Some(chance) = self.amnesia.as_mut().filter(|_| !self.healed && allowed) else { return };
        let (happens, all) = (chance.chance(15), chance.chance(70));
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = node.replica.as_mut().filter(|_| happens) else { return };
        node.ghosts.push(replica.disk.clone());
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

    /// A suspect has become whole: it counts by what its disk holds, and by nothing else.
    pub(super) fn is_whole(&mut self, id: ReplicaId) {
        self.totals.healed += 1;
        let Some(chance) = &mut self.amnesia else { return };
        let delay = chance.below(300) * MILLISECOND;
        let node = self.nodes.get_mut(&id).unwrap();
        node.ghosts.clear();
        let life = node.life;
        self.checks.durability_again();
        self.at(delay, id, Event::Trusted { life });
    }
}
