//! Probes: a ping, then helpers, then a suspicion; and pings on behalf of others.

use std::time::Duration;

use krita_runtime::Instant;

use super::member::{NodeUuid, Record, State};
use super::message::{Body, Destination};
use super::news::Via;
use super::{Gossip, jitter};

/// Most probes under way.
pub(super) const PROBES_MAX: usize = 64;

/// Most pings on behalf of others under way.
pub(super) const RELAYS_MAX: usize = 256;

/// A probe under way.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    target: NodeUuid,
    /// When helpers are asked; `None`: they have been.
    helpers_at: Option<Instant>,
    /// When it has failed.
    deadline: Instant,
    /// Who was asked and has not answered.
    silent: Vec<NodeUuid>,
    /// Whether anybody was there to be asked.
    had_helpers: bool,
}

impl Probe {
    pub(super) fn due(&self) -> Instant {
        self.helpers_at.map_or(self.deadline, |helpers_at| helpers_at.min(self.deadline))
    }

    pub(super) fn postpone(&mut self, late: Duration) {
        self.deadline = self.deadline + late;
        self.helpers_at = self.helpers_at.map(|at| at + late);
    }
}

/// A ping on behalf of another node.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    asker: NodeUuid,
    asker_sequence: u64,
    target: NodeUuid,
    /// When the asker is told that there is no answer; `None`: it has been.
    nack_at: Option<Instant>,
    /// When it is forgotten.
    deadline: Instant,
}

impl Relay {
    pub(super) fn due(&self) -> Instant {
        self.nack_at.map_or(self.deadline, |nack_at| nack_at.min(self.deadline))
    }
}

impl Gossip {
    /// Begins what is due, and ends what is overdue.
    pub(super) fn tick_probes(&mut self) {
        let now = self.now;
        let due: Vec<u64> = self.probes.iter().filter(|(_, it)| it.due() <= now).map(|it| *it.0).collect();
        for sequence in due {
            self.advance_probe(sequence);
        }
        let due: Vec<u64> = self.relays.iter().filter(|(_, it)| it.due() <= now).map(|it| *it.0).collect();
        for sequence in due {
            self.advance_relay(sequence);
        }
        if now >= self.next_probe {
            self.next_probe = now + self.health.stretch(self.options.probe_interval);
            self.probe_next();
        }
    }

    /// Every other probe goes to the next on the ring, the others to each in turn.
    fn probe_next(&mut self) {
        self.probe_on_ring = !self.probe_on_ring;
        let on_ring = if self.probe_on_ring { self.table.next_on_ring() } else { None };
        if on_ring.is_some_and(|target| self.start_probe(target)) {
            return;
        }
        if let Some(target) = self.table.next_in_turn(&mut self.random) {
            self.start_probe(target);
        }
    }

    /// Pings a member, unless it is being probed or too much is under way. True: it is being probed now.
    pub(super) fn start_probe(&mut self, target: NodeUuid) -> bool {
        if self.probes.len() >= PROBES_MAX || self.probes.values().any(|probe| probe.target == target) {
            return false;
        }
        let sequence = self.next_sequence();
        let probe = Probe {
            target,
            helpers_at: Some(self.now + self.health.stretch(self.options.direct_timeout)),
            deadline: self.now + self.health.stretch(self.options.probe_timeout),
            silent: Vec::new(),
            had_helpers: false,
        };
        self.probes.insert(sequence, probe);
        self.counters.probes += 1;
        self.send_to(target, Body::Ping { sequence, target: Some(target) }, &[]);
        true
    }

    fn advance_probe(&mut self, sequence: u64) {
        let Some(probe) = self.probes.get_mut(&sequence) else { return };
        let target = probe.target;
        if probe.deadline <= self.now {
            self.fail_probe(sequence);
        } else if probe.helpers_at.take().is_some() {
            let mut helpers = self.table.in_states(&[State::Alive]);
            helpers.retain(|helper| *helper != target);
            self.random.choose(&mut helpers, self.options.helpers);
            // The ping itself may have been lost.
            self.send_to(target, Body::Ping { sequence, target: Some(target) }, &[]);
            let Some(Destination { address, .. }) = self.destination(target) else { return };
            for helper in &helpers {
                self.send_to(*helper, Body::PingFor { sequence, target, address: address.clone() }, &[]);
            }
            if let Some(probe) = self.probes.get_mut(&sequence) {
                probe.had_helpers = !helpers.is_empty();
                probe.silent = helpers;
            }
        }
    }

    fn fail_probe(&mut self, sequence: u64) {
        let Some(probe) = self.probes.remove(&sequence) else { return };
        self.counters.probes_failed += 1;
        // Helpers that said at least that they got no answer show that this node hears well.
        let missed = if probe.had_helpers { probe.silent.len() } else { 1 };
        self.health.worse(u32::try_from(missed).unwrap_or(u32::MAX));
        self.accuse(probe.target);
    }

    /// Tells the others, and the accused first, that this node cannot reach it.
    fn accuse(&mut self, target: NodeUuid) {
        let Some(member) = self.table.get(target).filter(|member| !member.state.is_gone()) else { return };
        let mut record = member.record(self.now, Vec::new());
        record.state = State::Suspect;
        record.accusers = vec![self.own.uuid];
        self.counters.accusations += 1;
        self.learn(&record, Via::News, &mut Vec::new());
        self.send_to(target, Body::News, &[]);
    }

    /// Answers a ping, if this is the node that was meant.
    pub(super) fn on_ping(
        &mut self,
        sender: &Record,
        sequence: u64,
        target: Option<NodeUuid>,
        first: &[NodeUuid],
    ) {
        let body = if target.is_none_or(|target| target == self.own.uuid) {
            Body::Ack { sequence, on_behalf_of: None }
        } else {
            Body::NotHere { sequence }
        };
        self.send(answer_to(sender), body, first);
    }

    pub(super) fn on_ack(&mut self, sender: &Record, sequence: u64, on_behalf_of: Option<NodeUuid>) {
        let answered = on_behalf_of.unwrap_or(sender.uuid);
        if self.probes.get(&sequence).is_some_and(|probe| probe.target == answered) {
            self.probes.remove(&sequence);
            self.health.better();
            self.heard(answered);
            self.table.reached(answered, on_behalf_of.is_none(), self.now);
        } else if on_behalf_of.is_none()
            && self.relays.get(&sequence).is_some_and(|relay| relay.target == sender.uuid)
            && let Some(relay) = self.relays.remove(&sequence)
        {
            let Relay { asker, asker_sequence, target, .. } = relay;
            let body = Body::Ack { sequence: asker_sequence, on_behalf_of: Some(target) };
            // The asker may hold it suspect: what it says of itself goes along.
            self.send_to(asker, body, &[target]);
        }
    }

    /// Pings for another node.
    pub(super) fn on_ping_for(&mut self, sender: &Record, sequence: u64, target: NodeUuid, address: String) {
        if target == self.own.uuid || self.relays.len() >= RELAYS_MAX {
            return;
        }
        let own_sequence = self.next_sequence();
        let relay = Relay {
            asker: sender.uuid,
            asker_sequence: sequence,
            target,
            nack_at: Some(self.now + self.options.direct_timeout * 2 / 3),
            deadline: self.now + self.options.probe_timeout,
        };
        self.relays.insert(own_sequence, relay);
        let to = Destination { address, node: Some(target) };
        self.send(to, Body::Ping { sequence: own_sequence, target: Some(target) }, &[]);
    }

    fn advance_relay(&mut self, sequence: u64) {
        let Some(relay) = self.relays.get_mut(&sequence) else { return };
        let (asker, asker_sequence) = (relay.asker, relay.asker_sequence);
        let nack = relay.nack_at.take().is_some();
        if relay.deadline <= self.now {
            self.relays.remove(&sequence);
        }
        if nack {
            self.send_to(asker, Body::Nack { sequence: asker_sequence }, &[]);
        }
    }

    pub(super) fn on_nack(&mut self, sender: &Record, sequence: u64) {
        if let Some(probe) = self.probes.get_mut(&sequence) {
            probe.silent.retain(|helper| *helper != sender.uuid);
        }
    }

    /// Another node lives where the target was thought to live: no need to wait for the target.
    pub(super) fn on_not_here(&mut self, sender: &Record, sequence: u64) {
        let lives_there = |target| {
            let member = self.table.get(target);
            member.is_some_and(|member| member.profile.address == sender.profile.address)
        };
        let target = self.probes.get(&sequence).map(|probe| probe.target);
        if let Some(target) = target.filter(|target| lives_there(*target)) {
            self.probes.remove(&sequence);
            self.accuse(target);
        }
    }

    /// A confirmation or a denial, soon, from some of those who hear of a suspicion: so many that the suspect's load
    /// stays the same in a large cluster.
    pub(super) fn look_for_oneself(&mut self, suspect: NodeUuid) {
        const LOOKERS: usize = 6;
        let others = self.table.nodes().saturating_sub(2);
        if self.own.state == State::Alive && self.random.below(others.max(1)) < LOOKERS {
            self.start_probe(suspect);
        }
    }

    /// When to do again what is done at about that interval.
    pub(super) fn after_about(&mut self, interval: Duration) -> Instant {
        self.now + interval * 3 / 4 + jitter(&mut self.random, interval / 2)
    }
}

/// Where an answer goes.
pub(super) fn answer_to(sender: &Record) -> Destination {
    Destination { address: sender.profile.address.clone(), node: Some(sender.uuid) }
}
