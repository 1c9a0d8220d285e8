//! Worlds in which leaders reign shortly: cut off at birth, or fallen with one of the first acknowledgements, and their
//! log travels entry by entry. What figure 8 of the Raft paper needs is then common: an entry of an earlier term that a
//! majority holds, and a rival with a later one. Their chance is their own, so that the other worlds stay as they are.

use krita_raft::*;

use super::chance::Random;
use super::{Event, MILLISECOND, World};

/// Decides whether this seed's world is one of short reigns.
pub(super) fn draw(seed: u64, base: &mut Config) -> Option<Random> {
    let mut chance = Random(seed.wrapping_mul(0x9e6c_63d0_876a_9f55));
    let short_reigns = chance.chance(33).then_some(chance);
    if short_reigns.is_some() {
        base.append_bytes_max = 1;
        base.inflight_messages_max = 1;
    }
    short_reigns
}

/// Whether a follower says that it holds entries.
pub(super) fn is_acknowledgement(message: &Message<Vec<u8>>) -> bool {
    matches!(message.body, Body::AppendReply { answer: AppendAnswer::Accepted { .. }, .. })
}

impl Event {
    /// Happens whether or not the replica's process is paused.
    pub(super) fn is_outside(&self) -> bool {
        matches!(
            self,
            Event::Client
                | Event::Fault
                | Event::Change
                | Event::Plot(_)
                | Event::Restart
                | Event::Deafen
                | Event::Join
        )
    }
}

impl World {
    /// Cuts the new leader off before anybody hears of it, or lets it fall soon.
    pub(super) fn begin_reign(&mut self, id: ReplicaId) {
        let Some(chance) = self.short_reigns.as_mut().filter(|_| !self.healed) else { return };
        let (is_cut_off, falls) = (chance.chance(50), chance.chance(90));
        let joins = (1000 + chance.below(1500)) * MILLISECOND;
        if is_cut_off {
            self.say(|| format!("{id} is cut off at birth"));
            let others = self.nodes.keys().copied().filter(|other| *other != id);
            self.cut.extend(others.flat_map(|other| [(id, other), (other, id)]));
            self.at(joins, id, Event::Join);
        }
        self.nodes.get_mut(&id).unwrap().falls_with_a_reply = falls && !is_cut_off;
    }

    /// A leader that has taken in an acknowledgement acts on it, and may crash then.
    pub(super) fn may_fall(&mut self, id: ReplicaId) {
        let Some(chance) = self.short_reigns.as_mut().filter(|_| !self.healed) else { return };
        if !self.nodes[&id].falls_with_a_reply || !chance.chance(40) {
            return;
        }
        let restart = (1500 + chance.below(2500)) * MILLISECOND;
        self.nodes.get_mut(&id).unwrap().falls_with_a_reply = false;
        self.pump(id);
        self.apply(id);
        self.crash(id);
        self.at(restart, id, Event::Restart);
    }
}
