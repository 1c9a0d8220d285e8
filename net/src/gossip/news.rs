//! Learning what others say, passing it on, and contradicting what is wrong about oneself.

use super::member::{INCARNATION_MAX, NodeUuid, Record, StampedVitals, State, VitalsNews};
use super::message::{Body, Destination, Message, Outgoing};
use super::{Event, Gossip, OUTGOING_MAX};

/// Most records that are told to somebody because of what it said.
const CORRECTIONS_MAX: usize = 8;

/// How often news that came by an exchange are sent on: whoever had them has told others.
const TIMES_AFTER_EXCHANGE: u32 = 2;

/// How a record came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Via {
    /// As the sender's own.
    Sender,
    /// Passed on, or found out here.
    News,
    /// In a page of an exchange.
    Exchange,
}

impl Gossip {
    /// Takes in what the sender says of itself. True: this is a contact with a node that was unknown or gone.
    pub(super) fn hear_sender(&mut self, sender: &Record, corrections: &mut Vec<NodeUuid>) -> bool {
        let before = self.table.get(sender.uuid).map(|member| member.state);
        self.learn(sender, Via::Sender, corrections);
        self.heard(sender.uuid);
        let after = self.table.get(sender.uuid).map(|member| member.state);
        before.is_none_or(State::is_gone) && after == Some(State::Alive)
    }

    /// That node lived just now.
    pub(super) fn heard(&mut self, uuid: NodeUuid) {
        self.table.heard(uuid, self.now);
        if let Some(suspicion) = self.suspicions.get_mut(&uuid) {
            suspicion.heard();
        }
    }

    /// Takes in a record. What the teller should know better is added to `corrections`.
    pub(super) fn learn(&mut self, record: &Record, via: Via, corrections: &mut Vec<NodeUuid>) {
        if record.uuid == self.own.uuid {
            self.hear_of_myself(record);
            return;
        }
        let merged = self.table.merge(self.now, record, &self.options, &mut self.random);
        let Some(change) = merged else {
            self.counters.records_refused += 1;
            return;
        };
        let member = self.table.get(record.uuid).expect("it was merged");
        let (uuid, state) = (member.uuid, member.state);
        // Whoever calls somebody worse than it is, or does not know how it is called itself.
        let wrong = change.stale && (record.state != State::Alive || via == Via::Sender);
        if wrong && corrections.len() < CORRECTIONS_MAX {
            corrections.push(uuid);
        }
        let confirmed = self.upkeep_suspicion(record, via);
        let unknown_and_gone = change.before.is_none() && state.is_gone();
        if (change.standing || change.profile || confirmed) && !unknown_and_gone {
            let times = self.options.retransmissions(self.table.nodes());
            let sent = if via == Via::Exchange { times.saturating_sub(TIMES_AFTER_EXCHANGE) } else { 0 };
            self.pass_on(uuid, sent);
        } else if change.vitals && via != Via::Exchange && !state.is_gone() {
            self.vitals_news.add(uuid, 0, &mut self.random);
        }
        if change.standing {
            self.note_standing(uuid, change.before, state);
        }
        let known = change.before.is_some();
        if known && (change.profile || change.vitals) {
            self.note(Event::Updated { uuid, profile: change.profile });
        }
    }

    fn note_standing(&mut self, uuid: NodeUuid, before: Option<State>, state: State) {
        match (before, state) {
            (None, State::Dead | State::Left) => {}
            (None, State::Alive | State::Suspect) => {
                let namesake = self.namesake(uuid);
                self.note(Event::Joined { uuid, namesake });
                if state == State::Suspect {
                    self.note(Event::Suspected { uuid });
                }
            }
            (Some(State::Alive), State::Alive) => {}
            (Some(before), State::Alive) => self.note(Event::AliveAgain { uuid, before }),
            (Some(State::Suspect), State::Suspect) => {}
            (Some(before), State::Suspect) => {
                if before.is_gone() {
                    self.note(Event::AliveAgain { uuid, before });
                }
                self.note(Event::Suspected { uuid });
            }
            (Some(State::Dead), State::Dead) => {}
            (Some(_), State::Dead) => self.note(Event::Died { uuid }),
            (Some(State::Left), State::Left) => {}
            (Some(_), State::Left) => self.note(Event::Left { uuid }),
        }
    }

    fn namesake(&self, uuid: NodeUuid) -> Option<NodeUuid> {
        let name = &self.table.get(uuid)?.profile.node_id;
        let others =
            self.table.iter().filter(|member| member.uuid != uuid && member.profile.node_id == *name);
        let newest = others.max_by_key(|member| (!member.state.is_gone(), member.incarnation, member.uuid));
        newest.map(|member| member.uuid).or((self.own.profile.node_id == *name).then_some(self.own.uuid))
    }

    pub(super) fn learn_vitals(&mut self, news: &VitalsNews) {
        if news.uuid != self.own.uuid && self.table.merge_vitals(news) {
            self.vitals_news.add(news.uuid, 0, &mut self.random);
            self.note(Event::Updated { uuid: news.uuid, profile: false });
        }
    }

    /// Contradicts what is not so, by going above it.
    fn hear_of_myself(&mut self, record: &Record) {
        let same_life = record.profile.boot_id == self.own.profile.boot_id;
        let said = (record.incarnation, record.state);
        let so = (self.own.incarnation, self.own.state);
        let nothing_new = if same_life { said <= so } else { record.incarnation < self.own.incarnation };
        if nothing_new {
            return;
        }
        self.counters.contradictions += 1;
        if matches!(record.state, State::Suspect | State::Dead) && same_life {
            self.health.worse(1);
        }
        self.note(Event::Contradicted { state: record.state });
        self.raise_incarnation(record.incarnation);
    }

    /// Goes above this incarnation, and tells everybody.
    pub(super) fn raise_incarnation(&mut self, above: u64) {
        debug_assert!(above <= INCARNATION_MAX + 1);
        self.own.incarnation = self.own.incarnation.max(above.saturating_add(1));
        // Those of an earlier life must not outrank this one's.
        self.own.vitals = StampedVitals { incarnation: self.own.incarnation, sequence: 0, ..self.own.vitals };
        self.tell_of_myself();
    }

    pub(super) fn tell_of_myself(&mut self) {
        self.pass_on(self.own.uuid, 0);
    }

    fn pass_on(&mut self, uuid: NodeUuid, sent: u32) {
        if self.news.is_empty() {
            // A timer that is armed now was not due before.
            self.next_news = self.next_news.max(self.now);
        }
        self.news.add(uuid, sent, &mut self.random);
    }

    /// Publishes own vitals when it is time.
    pub(super) fn tick_vitals(&mut self) {
        if self.now < self.next_vitals {
            return;
        }
        if let Some(vitals) = self.unpublished.take() {
            let sequence = self.own.vitals.sequence.saturating_add(1);
            self.own.vitals = StampedVitals { sequence, vitals, ..self.own.vitals };
            self.next_vitals = self.now + self.options.vitals_interval_for(self.table.nodes());
        }
    }

    /// While there are news, some random nodes get a message of their own.
    pub(super) fn tick_news(&mut self) {
        if self.now < self.next_news || self.news.is_empty() {
            return;
        }
        self.next_news = self.now + self.options.news_interval;
        let mut targets = self.table.in_states(&[State::Alive, State::Suspect]);
        self.random.choose(&mut targets, self.options.fanout);
        for uuid in targets {
            if !self.news.is_empty() {
                self.send_to(uuid, Body::News, &[]);
            }
        }
    }

    /// Where that member lives.
    pub(super) fn destination(&self, uuid: NodeUuid) -> Option<Destination> {
        let member = self.table.get(uuid)?;
        Some(Destination { address: member.profile.address.clone(), node: Some(uuid) })
    }

    pub(super) fn send_to(&mut self, uuid: NodeUuid, body: Body, first: &[NodeUuid]) {
        if let Some(to) = self.destination(uuid) {
            self.send(to, body, first);
        }
    }

    /// Sends a message, with as many news as fit; those about `first` in any case, and those about the receiver if it
    /// is not thought alive: it must be the first to know (Lifeguard's buddy system).
    pub(super) fn send(&mut self, to: Destination, body: Body, first: &[NodeUuid]) {
        if self.outgoing.len() >= OUTGOING_MAX {
            self.counters.dropped += 1;
            return;
        }
        // A page fills its message by itself.
        let has_page = matches!(body, Body::Exchange { .. } | Body::ExchangeReply { .. });
        let accused = to.node.filter(|uuid| self.table.get(*uuid).is_some_and(|it| it.state != State::Alive));
        let forced: Vec<NodeUuid> = accused.into_iter().chain(first.iter().copied()).collect();
        let news = self.pick_news(to.node, &forced, has_page);
        let vitals = if has_page { Vec::new() } else { self.pick_vitals(to.node) };
        self.outgoing.push(Outgoing {
            to,
            message: Message {
                cluster_name: self.cluster.name.clone(),
                cluster_id: self.cluster.id,
                sender: self.own.clone(),
                news,
                vitals,
                body,
            },
        });
    }

    fn pick_news(&mut self, to: Option<NodeUuid>, forced: &[NodeUuid], forced_only: bool) -> Vec<Record> {
        let times_max = self.options.retransmissions(self.table.nodes());
        let mut records: Vec<Record> = Vec::new();
        let mut told = vec![];
        for uuid in forced.iter().copied() {
            if !told.contains(&uuid)
                && let Some(record) = self.record_of(uuid)
            {
                told.push(uuid);
                records.push(record);
            }
        }
        if !forced_only {
            let mut room = self.options.news_bytes_max;
            for uuid in self.news.iter() {
                if uuid == self.own.uuid {
                    // It is in every message anyway.
                    told.push(uuid);
                    continue;
                }
                if told.contains(&uuid) || Some(uuid) == to {
                    continue;
                }
                let Some(record) = self.record_of(uuid) else { continue };
                let bytes = record.bytes_max();
                if bytes > room {
                    break;
                }
                room -= bytes;
                told.push(uuid);
                records.push(record);
            }
        }
        for uuid in told {
            self.news.sent(uuid, times_max);
        }
        records
    }

    fn pick_vitals(&mut self, to: Option<NodeUuid>) -> Vec<VitalsNews> {
        let count = self.options.vitals_bytes_max / VitalsNews::BYTES_MAX;
        let wanted = self.vitals_news.iter().filter(|uuid| Some(*uuid) != to).take(count);
        let picked: Vec<NodeUuid> = wanted.collect();
        let times_max = self.options.retransmissions(self.table.nodes()) / 2;
        for uuid in &picked {
            self.vitals_news.sent(*uuid, times_max);
        }
        let vitals_of = |uuid| Some(VitalsNews { uuid, vitals: self.table.get(uuid)?.vitals });
        picked.into_iter().filter_map(vitals_of).collect()
    }

    /// What this node tells of a member.
    pub(super) fn record_of(&self, uuid: NodeUuid) -> Option<Record> {
        let accusers = self.suspicions.get(&uuid).map(|suspicion| suspicion.accusers().to_vec());
        Some(self.table.get(uuid)?.record(self.now, accusers.unwrap_or_default()))
    }
}
