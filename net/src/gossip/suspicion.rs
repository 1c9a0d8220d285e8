//! From a suspicion to a verdict: time to contradict, then witnesses.

use std::time::Duration;

use krita_runtime::Instant;

use super::Gossip;
use super::member::{ACCUSERS_MAX, NodeUuid, Record, State};
use super::message::Body;
use super::news::Via;
use super::probing::answer_to;

/// How far a node's own poor health may stretch the time in which it gives a verdict by itself.
const LONE_STRETCH_MAX: u32 = 3;

/// A member that is suspect.
#[derive(Clone, Debug)]
pub(super) struct Suspicion {
    /// In this incarnation of it.
    incarnation: u64,
    since: Instant,
    /// Who could not reach it. At most [`ACCUSERS_MAX`], nobody twice.
    accusers: Vec<NodeUuid>,
    /// This node's own health when the suspicion began: what came of it is not held against the suspect.
    health: u32,
    /// No witnesses are asked before.
    next_at: Instant,
    /// Named in the questions; 0: nobody was asked yet.
    sequence: u64,
    /// Who found it gone, too, since it was last heard.
    concurring: Vec<NodeUuid>,
    /// When a witness that did not find it gone last answered.
    denied_at: Option<Instant>,
}

impl Suspicion {
    pub(super) fn accusers(&self) -> &[NodeUuid] {
        &self.accusers
    }

    pub(super) fn heard(&mut self) {
        self.concurring.clear();
    }

    /// This much time did not count, since this node was not there.
    pub(super) fn postpone(&mut self, now: Instant, late: Duration) {
        self.since = (self.since + late).min(now);
        self.next_at = self.next_at + late;
    }
}

impl Gossip {
    /// Keeps suspicions equal to the members' states, after a record was merged. True: somebody new confirms one.
    pub(super) fn upkeep_suspicion(&mut self, record: &Record, via: Via) -> bool {
        let uuid = record.uuid;
        let Some(member) = self.table.get(uuid).filter(|member| member.state == State::Suspect) else {
            self.suspicions.remove(&uuid);
            return false;
        };
        let incarnation = member.incarnation;
        let known = self.suspicions.get(&uuid).is_some_and(|it| it.incarnation == incarnation);
        if !known {
            let suspicion = Suspicion {
                incarnation,
                since: self.now,
                accusers: Vec::new(),
                health: self.health.score(),
                next_at: self.now,
                sequence: 0,
                concurring: Vec::new(),
                denied_at: None,
            };
            self.suspicions.insert(uuid, suspicion);
        }
        if record.incarnation != incarnation || record.state != State::Suspect {
            return false;
        }
        let suspicion = self.suspicions.get_mut(&uuid).expect("it was there or has been made");
        let mut confirmed = false;
        for accuser in record.accusers.iter().filter(|accuser| **accuser != uuid) {
            if suspicion.accusers.len() < ACCUSERS_MAX && !suspicion.accusers.contains(accuser) {
                suspicion.accusers.push(*accuser);
                confirmed = true;
            }
        }
        if !known && via != Via::Sender && !record.accusers.contains(&self.own.uuid) {
            self.look_for_oneself(uuid);
        }
        confirmed
    }

    /// When a suspect may be doubted: after its time, and not soon after it was heard.
    fn doubt_at(&self, uuid: NodeUuid, suspicion: &Suspicion) -> Instant {
        let nodes = self.table.nodes();
        let confirmations = suspicion.accusers.len().saturating_sub(1);
        let after = suspicion.since + self.options.suspicion_timeout(nodes, confirmations);
        let heard_at = self.table.get(uuid).and_then(|member| member.heard_at);
        heard_at.map_or(after, |heard_at| after.max(heard_at + self.options.suspicion_min_for(nodes)))
    }

    /// When there is something to do about it.
    pub(super) fn suspicion_due(&self, uuid: NodeUuid, suspicion: &Suspicion) -> Instant {
        self.doubt_at(uuid, suspicion).max(suspicion.next_at)
    }

    /// Asks witnesses about those whose time is over.
    pub(super) fn tick_suspicions(&mut self) {
        let due = self.suspicions.iter().filter(|(uuid, it)| self.suspicion_due(**uuid, it) <= self.now);
        let due: Vec<NodeUuid> = due.map(|(uuid, _)| *uuid).collect();
        for uuid in due {
            self.doubt(uuid);
        }
    }

    fn doubt(&mut self, subject: NodeUuid) {
        let mut others = self.table.in_states(&[State::Alive, State::Suspect]);
        others.retain(|uuid| *uuid != subject);
        let nodes = self.table.nodes();
        let Some(suspicion) = self.suspicions.get(&subject) else { return };
        // Without anybody to ask, or without any answer, this node decides alone, and takes its time.
        let (patience, stretch) = if others.is_empty() {
            (self.options.suspicion_min_for(nodes), suspicion.health + 1)
        } else {
            (self.options.suspicion_max_for(nodes), (suspicion.health + 1).min(LONE_STRETCH_MAX))
        };
        let quiet_since = suspicion.denied_at.map_or(suspicion.since, |denied| denied.max(suspicion.since));
        let alone_at = quiet_since + patience * stretch;
        if self.now >= alone_at {
            self.declare_dead(subject);
            return;
        }
        let incarnation = suspicion.incarnation;
        let next_at = if others.is_empty() { alone_at } else { self.now + self.options.doubt_interval };
        let sequence = if suspicion.sequence == 0 { self.next_sequence() } else { suspicion.sequence };
        let suspicion = self.suspicions.get_mut(&subject).expect("it was there");
        suspicion.next_at = next_at;
        suspicion.sequence = sequence;
        self.random.choose(&mut others, self.options.doubt_fanout);
        for witness in others {
            self.send_to(witness, Body::Doubt { sequence, subject, incarnation }, &[subject]);
        }
        self.start_probe(subject);
    }

    /// Answers as a witness.
    pub(super) fn on_doubt(
        &mut self,
        sender: &Record,
        sequence: u64,
        subject: NodeUuid,
        incarnation: u64,
        first: &[NodeUuid],
    ) {
        if subject == self.own.uuid {
            // The record that came along has been contradicted already; the answer says so.
            self.send(answer_to(sender), Body::News, first);
            return;
        }
        let found_gone = self.table.get(subject).is_some_and(|member| match member.state {
            State::Dead | State::Left => member.incarnation >= incarnation,
            State::Alive => false,
            State::Suspect => self.suspicions.get(&subject).is_some_and(|suspicion| {
                let for_long = self.now.since(suspicion.since) * 2 >= self.options.suspicion_min;
                let heard = member.heard_at.is_some_and(|heard_at| heard_at >= suspicion.since);
                suspicion.incarnation >= incarnation && for_long && !heard
            }),
        });
        let body = Body::DoubtReply { sequence, subject, incarnation, concurs: found_gone };
        self.send(answer_to(sender), body, first);
    }

    pub(super) fn on_doubt_reply(
        &mut self,
        sender: &Record,
        sequence: u64,
        subject: NodeUuid,
        incarnation: u64,
        concurs: bool,
    ) {
        let now = self.now;
        let others = self.table.nodes().saturating_sub(2);
        let witnesses = self.options.witnesses.min(others).max(1);
        let Some(suspicion) = self.suspicions.get_mut(&subject) else { return };
        if suspicion.sequence != sequence || sequence == 0 || suspicion.incarnation != incarnation {
            return;
        }
        if !concurs {
            suspicion.denied_at = Some(now);
            return;
        }
        if sender.uuid != subject && !suspicion.concurring.contains(&sender.uuid) {
            suspicion.concurring.push(sender.uuid);
        }
        let concurring = suspicion.concurring.len();
        let over = self.suspicions.get(&subject).is_some_and(|it| self.doubt_at(subject, it) <= now);
        if concurring >= witnesses && over && self.own.state == State::Alive {
            self.declare_dead(subject);
        }
    }

    fn declare_dead(&mut self, subject: NodeUuid) {
        let Some(member) = self.table.get(subject) else { return };
        let mut record = member.record(self.now, Vec::new());
        record.state = State::Dead;
        self.counters.verdicts += 1;
        self.learn(&record, Via::News, &mut Vec::new());
    }
}
