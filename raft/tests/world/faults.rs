//! What goes wrong in the simulated world: crashes, pauses, cut links, slow disks, operators' whims.

use krita_raft::*;

use super::{Event, MILLISECOND, World};

impl World {
    fn pick(&mut self) -> ReplicaId {
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        // Leaders are the more interesting victims.
        let leader = ids.iter().copied().find(|id| {
            self.nodes[id]
                .replica
                .as_ref()
                .is_some_and(|replica| replica.raft.status().role == RoleKind::Leader)
        });
        match leader {
            Some(leader) if self.random.chance(50) => leader,
            _ => ids[self.random.below(ids.len() as u64) as usize],
        }
    }

    pub(super) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let delay = (50 + self.random.below(self.fault_interval)) * MILLISECOND;
        self.at(delay, ReplicaId(1), Event::Fault);
        let id = self.pick();
        self.may_be_damaged(id);
        self.may_plot();
        let until = (100 + self.random.below(4000)) * MILLISECOND;
        match self.random.below(20) {
            10 => self.crash_all_but(id),
            11 | 12 => self.bridge(id),
            0 | 1 => {
                self.crash(id);
                self.at(until, id, Event::Restart);
            }
            2 => {
                for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                    self.crash(id);
                    let restart = until / 4 + self.random.below(200) * MILLISECOND;
                    self.at(restart, id, Event::Restart);
                }
            }
            3 => {
                self.say(|| format!("{id} is paused for {} ms", until / MILLISECOND));
                self.nodes.get_mut(&id).unwrap().paused_until = self.now + until;
                if until > 1000 * MILLISECOND {
                    self.tell_core_died(id);
                }
            }
            4 | 5 => self.cut_links(id),
            6 | 13..16 => {
                self.say(|| "links are whole".to_string());
                self.cut.clear();
            }
            7 => {
                let node = self.nodes.get_mut(&id).unwrap();
                node.write_time = [1, 3, 20, 200, 2500][self.random.below(5) as usize] * MILLISECOND;
            }
            8 | 16..19 => {
                let now = self.clock(id);
                let to = ReplicaId(1 + self.random.below(self.nodes.len() as u64));
                if let Some(replica) = &mut self.nodes.get_mut(&id).unwrap().replica {
                    let _ = replica.raft.transfer_leadership(now, to);
                    self.pump(id);
                }
            }
            _ => {
                let now = self.clock(id);
                let campaigns = self.random.chance(50);
                if let Some(replica) = &mut self.nodes.get_mut(&id).unwrap().replica {
                    if campaigns {
                        let _ = replica.raft.campaign(now);
                    } else {
                        replica.raft.step_down(now);
                    }
                    self.pump(id);
                }
            }
        }
    }

    /// Cuts off `id`, likely the leader, and restarts all others at once: none remembers what it promised.
    pub(super) fn crash_all_but(&mut self, id: ReplicaId) {
        self.say(|| format!("{id} is cut off and all others crash"));
        for other in self.nodes.keys().copied().filter(|other| *other != id).collect::<Vec<_>>() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
            self.crash(other);
            let restart = self.random.below(50) * MILLISECOND;
            self.at(restart, other, Event::Restart);
        }
    }

    /// Cuts `id`, likely the leader, from one other both ways; later nobody reaches it any more, though it still
    /// reaches some.
    fn bridge(&mut self, id: ReplicaId) {
        let other = ReplicaId(1 + self.random.below(self.nodes.len() as u64));
        if other == id {
            return;
        }
        self.say(|| format!("{id} and {other} are cut from each other, and soon all from {id}"));
        self.cut.insert((id, other));
        self.cut.insert((other, id));
        let delay = (1000 + self.random.below(1200)) * MILLISECOND;
        self.at(delay, id, Event::Deafen);
    }

    /// Cuts a replica off, or some links in one direction or both.
    fn cut_links(&mut self, id: ReplicaId) {
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        let whole = self.random.chance(60);
        for other in ids.iter().copied().filter(|other| *other != id) {
            if whole || self.random.chance(50) {
                self.cut.insert((id, other));
                if whole || self.random.chance(60) {
                    self.cut.insert((other, id));
                }
                // The pair of cores notices.
                self.at(1000 * MILLISECOND, other, Event::CoreDied { peer: id });
                self.at(1000 * MILLISECOND, id, Event::CoreDied { peer: other });
            }
        }
        self.say(|| format!("cut: {:?}", self.cut));
    }
}
