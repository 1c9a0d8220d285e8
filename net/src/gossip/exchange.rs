//! Finding others and telling them all: seeds, full exchanges page by page, and second looks at the gone.

use std::time::Duration;

use krita_runtime::Instant;

use super::member::{NodeUuid, Record, State};
use super::message::{Body, Destination, Page};
use super::news::Via;
use super::probing::answer_to;
use super::wire::RECORDS_MAX;
use super::{Event, Gossip};

/// How often a page is asked for before the exchange is given up.
const TRIES_MAX: u32 = 3;

/// How many seeds are tried at once.
const SEEDS_AT_ONCE: usize = 16;

/// An exchange that this node began. One at a time.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    with: NodeUuid,
    /// Of the page under way.
    sequence: u64,
    /// What is still wanted of the other's records.
    wanted: Option<Page>,
    /// What is still to be told of one's own.
    told: Option<Page>,
    /// Where the page after the one under way begins.
    told_next: Option<Page>,
    deadline: Instant,
    tries: u32,
    /// It has brought nodes that were not known.
    found: bool,
}

impl Exchange {
    pub(super) fn due(&self) -> Instant {
        self.deadline
    }

    pub(super) fn postpone(&mut self, late: Duration) {
        self.deadline = self.deadline + late;
    }
}

impl Gossip {
    /// Does what a message wants, and answers it; `first` goes along with the answer.
    pub(super) fn act_on(&mut self, sender: &Record, body: Body, first: &[NodeUuid]) {
        match body {
            Body::Ping { sequence, target } => self.on_ping(sender, sequence, target, first),
            Body::Doubt { sequence, subject, incarnation } => {
                self.on_doubt(sender, sequence, subject, incarnation, first);
            }
            Body::Exchange { sequence, records, wanted } => {
                self.learn_page(&records);
                if let Some(page) = wanted {
                    let (records, next) = self.page(page);
                    let next = next.and_then(|page| page.after);
                    self.send(answer_to(sender), Body::ExchangeReply { sequence, records, next }, first);
                } else {
                    let body = Body::ExchangeReply { sequence, records: Vec::new(), next: None };
                    self.send(answer_to(sender), body, first);
                }
            }
            Body::News => self.set_right(sender, first),
            Body::Ack { sequence, on_behalf_of } => {
                self.on_ack(sender, sequence, on_behalf_of);
                self.set_right(sender, first);
            }
            Body::PingFor { sequence, target, address } => {
                self.on_ping_for(sender, sequence, target, address);
                self.set_right(sender, first);
            }
            Body::Nack { sequence } => {
                self.on_nack(sender, sequence);
                self.set_right(sender, first);
            }
            Body::NotHere { sequence } => {
                self.on_not_here(sender, sequence);
                self.set_right(sender, first);
            }
            Body::ExchangeReply { sequence, records, next } => {
                self.on_exchange_reply(sender, sequence, &records, next);
                self.set_right(sender, first);
            }
            Body::DoubtReply { sequence, subject, incarnation, concurs } => {
                self.on_doubt_reply(sender, sequence, subject, incarnation, concurs);
                self.set_right(sender, first);
            }
        }
    }

    /// Tells a sender that gets no answer otherwise what it does not know: at most one message for each of its own.
    fn set_right(&mut self, sender: &Record, first: &[NodeUuid]) {
        let accused = self.table.get(sender.uuid).is_some_and(|member| member.state != sender.state);
        if accused || !first.is_empty() {
            self.send(answer_to(sender), Body::News, first);
        }
    }

    /// Looks for seeds that nobody answers at, and for those thought dead.
    pub(super) fn tick_reconnect(&mut self) {
        if self.now < self.next_reconnect {
            return;
        }
        let alone = self.table.nodes() == 1;
        let interval = if alone { self.options.join_interval } else { self.options.reconnect_interval };
        self.next_reconnect = self.now + interval;
        for uuid in self.table.forget(self.now, &self.options) {
            self.news.remove(uuid);
            self.vitals_news.remove(uuid);
            self.note(Event::Forgotten { uuid });
        }
        if self.own.state != State::Alive {
            return;
        }
        if alone {
            for _ in 0..self.seeds.len().min(SEEDS_AT_ONCE) {
                let address = self.seeds[self.next_seed % self.seeds.len()].clone();
                self.next_seed = self.next_seed.wrapping_add(1);
                self.look_at(address);
            }
        }
        let lost = self.lost_address();
        if let Some(address) = lost {
            self.look_at(address);
        }
    }

    /// A random address at which somebody should be and is not known to be.
    fn lost_address(&mut self) -> Option<String> {
        let there = |address: &str| {
            self.table.iter().any(|member| !member.state.is_gone() && member.profile.address == address)
        };
        let dead = self.table.iter().filter(|member| member.state == State::Dead);
        let dead = dead.map(|member| &member.profile.address);
        let own = &self.own.profile.address;
        let seeds = if self.table.nodes() > 1 { &self.seeds[..] } else { &[] };
        let mut lost: Vec<&String> =
            dead.chain(seeds).filter(|address| *address != own && !there(address)).collect();
        self.random.choose(&mut lost, 1);
        lost.pop().cloned()
    }

    /// Pings whoever lives there.
    fn look_at(&mut self, address: String) {
        let sequence = self.next_sequence();
        self.send(Destination { address, node: None }, Body::Ping { sequence, target: None }, &[]);
    }

    /// There was a contact with a node that was unknown or gone: it may know others that are not known here.
    pub(super) fn exchange_soon_with(&mut self, uuid: NodeUuid) {
        if self.own.state == State::Alive && self.exchange.is_none() {
            // The first contact of all need not wait; later ones must not follow too closely on each other.
            let pause = self.options.join_interval;
            if self.exchange_ended.is_none_or(|ended| self.now.since(ended) >= pause) {
                self.begin_exchange(uuid);
            }
        }
    }

    pub(super) fn tick_exchange(&mut self) {
        match &mut self.exchange {
            Some(exchange) if exchange.deadline <= self.now => {
                exchange.tries += 1;
                if exchange.tries < TRIES_MAX {
                    self.send_page();
                } else {
                    let found = exchange.found;
                    self.end_exchange(found);
                }
            }
            Some(_) => {}
            None if self.now >= self.next_exchange => {
                let mut partners = self.table.in_states(&[State::Alive]);
                self.random.choose(&mut partners, 1);
                match partners.pop() {
                    Some(with) => self.begin_exchange(with),
                    None => self.end_exchange(false),
                }
            }
            None => {}
        }
    }

    fn begin_exchange(&mut self, with: NodeUuid) {
        let all = Some(Page { after: None });
        self.exchange = Some(Exchange {
            with,
            sequence: 0,
            wanted: all,
            told: all,
            told_next: None,
            deadline: self.now,
            tries: 0,
            found: false,
        });
        self.send_page();
    }

    /// Sends the page that is due, for the first time or again.
    fn send_page(&mut self) {
        let sequence = self.next_sequence();
        let Some(exchange) = &self.exchange else { return };
        let (with, wanted) = (exchange.with, exchange.wanted);
        let (records, told_next) = exchange.told.map_or((Vec::new(), None), |page| self.page(page));
        let deadline = self.now + self.health.stretch(self.options.exchange_timeout);
        if let Some(exchange) = &mut self.exchange {
            exchange.sequence = sequence;
            exchange.told_next = told_next;
            exchange.deadline = deadline;
        }
        self.send_to(with, Body::Exchange { sequence, records, wanted }, &[]);
    }

    fn on_exchange_reply(
        &mut self,
        sender: &Record,
        sequence: u64,
        records: &[Record],
        next: Option<NodeUuid>,
    ) {
        let of_this = |it: &Exchange| it.sequence == sequence && it.with == sender.uuid;
        if !self.exchange.as_ref().is_some_and(of_this) {
            return;
        }
        let found = self.learn_page(records);
        let Some(exchange) = &mut self.exchange else { return };
        exchange.found |= found;
        exchange.tries = 0;
        exchange.told = exchange.told_next;
        // Pages only go forward, or there would be no end.
        let forward = next.filter(|next| exchange.wanted.is_some_and(|page| page.after < Some(*next)));
        exchange.wanted = forward.map(|next| Page { after: Some(next) });
        if exchange.wanted.is_some() || exchange.told.is_some() {
            self.send_page();
        } else {
            let found = exchange.found;
            self.end_exchange(found);
        }
    }

    /// As long as exchanges find unknown nodes the next one follows soon.
    fn end_exchange(&mut self, found: bool) {
        self.exchange = None;
        self.exchange_ended = Some(self.now);
        let interval = if found {
            self.options.join_interval
        } else {
            self.options.exchange_interval_for(self.table.nodes())
        };
        self.next_exchange = self.after_about(interval);
    }

    /// True: it told of nodes that were not known to be there.
    fn learn_page(&mut self, records: &[Record]) -> bool {
        let before = self.table.nodes();
        for record in records {
            self.learn(record, Via::Exchange, &mut Vec::new());
        }
        self.table.nodes() > before
    }

    /// A page of all records, and where the next begins.
    fn page(&self, page: Page) -> (Vec<Record>, Option<Page>) {
        let mut records: Vec<Record> = Vec::new();
        let mut room = self.options.exchange_bytes_max;
        for member in self.table.behind(page.after) {
            let Some(record) = self.record_of(member.uuid) else { continue };
            let bytes = record.bytes_max();
            if (bytes > room && !records.is_empty()) || records.len() >= RECORDS_MAX {
                let last = records.last().map(|record| record.uuid);
                return (records, Some(Page { after: last }));
            }
            room = room.saturating_sub(bytes);
            records.push(record);
        }
        (records, None)
    }
}
