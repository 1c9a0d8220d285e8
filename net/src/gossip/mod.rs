//! Who is there, and how they do: SWIM with suspicion, incarnations, indirect probes and Lifeguard, as a pure state
//! machine.
//!
//! [`Gossip`] does no I/O and knows no clock: messages come in by [`Gossip::step`], time by [`Gossip::tick`] (due at
//! [`Gossip::next_tick`]); what it wants sent is taken by [`Gossip::take_messages`], what it has noticed by
//! [`Gossip::take_events`]. Randomness follows from a seed. Everything it holds is bounded.
//!
//! **Gossip proposes; only Raft decides.** Nothing here grants membership, moves a lease or counts for a commit: it
//! finds nodes, spreads addresses, load and health, and says who does not answer.
//!
//! # How it works
//!
//! - *Probes.* Five times a second a node pings another: in turn the next alive one on the ring of uuids (so that every
//!   node has one that watches it all the time, and a death is noticed within a bound that luck has no part in)
//!   and the next of a shuffled round (SWIM §4.3). Without an answer three helpers are asked to ping it, and
//!   answer with a nack if they cannot reach it either. Without any answer the target is *suspect*.
//! - *Suspicion.* A suspect is told first (Lifeguard's buddy system) and contradicts by raising its *incarnation*,
//!   which only it may do. Its time is long while one node alone cannot reach it, and shrinks with each that finds the
//!   same by itself; some of those who hear of a suspicion look at once.
//! - *Doubt.* When the time is over, the suspect is not declared dead yet: witnesses are asked. Whoever knows better
//!   says so, in the answer; two must have had it suspect for a while and heard nothing since. A node that hears
//!   nothing at all is thus kept from declaring everybody else dead: it finds no witness. (This is ours: it costs
//!   one round trip, and a wrong verdict needs three nodes to miss the same contradiction.)
//! - *Local health.* Failed probes without the helpers' nacks, being suspected, and late ticks stretch this node's own
//!   times up to ninefold. A late tick also gives everybody that much more time: what waits in the inbox was not heard.
//! - *News* ride on all messages, at most lambda · log n times each, those sent least often first; while there are
//!   any, three random nodes get a message of their own every 100 ms. Whoever passes on an old accusation is corrected.
//! - *Full exchange*, page by page, with the first node that answers, after a contact with one thought dead or
//!   unknown, and now and then with anybody. Dead nodes, and seeds that nobody answers at, are tried again each second:
//!   a healed partition finds itself.
//! - *The gone* are remembered for [`Options::remember_gone`], measured from their death wherever the news of it
//!   travel, so that they neither come back by old news nor are remembered for ever. Left (said by itself) outranks
//!   dead.
//! - A node is its uuid. A wiped node with an old name and address is another one; its old self does not answer there
//!   ([`Body::NotHere`]), and dies.
//!
//! Each node sends the same number of messages whatever the size of the cluster, and each message has a bounded size;
//! exchanges and published vitals get rarer as the cluster grows.
//!
//! # On connections
//!
//! A message is one one-way frame on a connection to the node, and is not answered by the connection but by another
//! message. One that finds no connection or a full queue, or whose connection breaks, is lost: that is all that
//! this state machine assumes of its transport. TCP and TLS repeat lost packets by themselves, so a lost
//! packet is a late message here, and a broken connection a lost one. A driver opens connections as messages
//! want them and keeps a bounded number, closing what was not used for longest; it may tell of a broken connection
//! by [`Gossip::suspect_connection`], which only makes the next probe come sooner.
//!
//! # Sources
//!
//! Das, Gupta, Motivala: SWIM (DSN 2002), §3 and §4. Dadgar, Phillips, Currey: Lifeguard (2017). Ours are the ring,
//! the doubt, and that late ticks count against oneself.
//!
//! # Example
//!
//! ```
//! use krita_net::gossip::{Cluster, Gossip, NodeUuid, Options, Profile, Start, State};
//! use krita_runtime::Instant;
//!
//! let node = |name: &str, byte| {
//!     let profile = Profile { node_id: name.into(), address: format!("{name}:8080"), ..Profile::default() };
//!     let cluster = Cluster { name: "demo".into(), id: None };
//!     let start = Start { cluster, uuid: NodeUuid([byte; 16]), profile, incarnation: 1, seed: u64::from(byte) };
//!     Gossip::new(Instant::from_nanoseconds(0), Options::default(), start).expect("the profile is fit")
//! };
//! let (mut one, mut two) = (node("one", 1), node("two", 2));
//! two.join(vec!["one:8080".into()]);
//! let now = two.next_tick();
//! two.tick(now);
//! for outgoing in two.take_messages() {
//!     one.step(now, NodeUuid([2; 16]), outgoing.message).expect("of the same cluster");
//! }
//! assert_eq!(one.members().next().map(|member| member.state), Some(State::Alive));
//! ```

mod exchange;
mod health;
mod member;
mod message;
mod news;
mod options;
mod probing;
mod random;
mod rumours;
mod suspicion;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use krita_runtime::Instant;

pub use member::{
    ACCUSERS_MAX, ADDRESS_BYTES_MAX, ClusterId, Health, INCARNATION_MAX, Member, NAME_BYTES_MAX, NodeUuid,
    Profile, Record, StampedVitals, State, Vitals, VitalsNews,
};
pub use message::{Body, Destination, Message, Outgoing, Page};
pub use options::Options;
pub use wire::{RECORDS_MAX, Unfit};

use exchange::Exchange;
use health::LocalHealth;
use probing::{Probe, Relay};
use random::Random;
use rumours::Rumours;
use suspicion::Suspicion;
use table::Table;

/// Most messages that wait to be taken; more are dropped, as if lost on the way.
const OUTGOING_MAX: usize = 4096;

/// Most events that wait to be taken; then the oldest is dropped and [`Event::Missed`] says so.
const EVENTS_MAX: usize = 8192;

/// Which cluster a node belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// Its name.
    pub name: Arc<str>,
    /// Its id; `None` as long as this node does not know it. It then takes on that of the first node it hears.
    pub id: Option<ClusterId>,
}

/// What a node starts with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start {
    /// Where it belongs.
    pub cluster: Cluster,
    /// Who it is.
    pub uuid: NodeUuid,
    /// What it says of itself.
    pub profile: Profile,
    /// At least 1. Higher than in earlier lives is better (a wall clock will do), but not needed: a node that
    /// hears of an earlier life goes above it.
    pub incarnation: u64,
    /// Random, another one for each node and life.
    pub seed: u64,
}

/// Why a message was not taken in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The names of the clusters differ.
    #[error("it belongs to cluster {0:?}")]
    OtherClusterName(Arc<str>),
    /// The clusters have one name and were made at different times.
    #[error("it belongs to another cluster of this name")]
    OtherClusterId,
    /// The connection belongs to another node than the message says.
    #[error("the message claims to come from another node than its connection")]
    NotTheSender,
    /// It is this node's own uuid: a seed that leads back here, or a copy of its data directory at work elsewhere.
    #[error("it comes from this node's own uuid (boot {boot_id:016x})")]
    Myself {
        /// The sender's boot: this one's own, or that of a copy.
        boot_id: u64,
    },
}

/// What was noticed. Hints: nothing decides by them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A node that was not known (any more).
    Joined {
        /// Who.
        uuid: NodeUuid,
        /// Another node of the same name, the newest if there are several: wiped, reformatted, or misnamed.
        namesake: Option<NodeUuid>,
    },
    /// Somebody cannot reach it.
    Suspected {
        /// Who.
        uuid: NodeUuid,
    },
    /// It was suspect, dead or left, and is not.
    AliveAgain {
        /// Who.
        uuid: NodeUuid,
        /// What it was.
        before: State,
    },
    /// It did not contradict in time.
    Died {
        /// Who.
        uuid: NodeUuid,
    },
    /// It said that it leaves.
    Left {
        /// Who.
        uuid: NodeUuid,
    },
    /// Its profile (it restarted, or moved) or its vitals are new.
    Updated {
        /// Who.
        uuid: NodeUuid,
        /// The profile is.
        profile: bool,
    },
    /// It has been gone for so long that nothing is known of it any more.
    Forgotten {
        /// Who.
        uuid: NodeUuid,
    },
    /// This node did not know its cluster's id: this is what the first node that answered says.
    ClusterFound {
        /// The id.
        id: ClusterId,
    },
    /// This node was called suspect, dead or left, or heard of an earlier life of its own, and contradicted.
    Contradicted {
        /// What it was called.
        state: State,
    },
    /// Events were not taken in time and are lost: look at all members.
    Missed,
}

/// How it goes, for health output.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Probes begun.
    pub probes: u64,
    /// Probes without an answer.
    pub probes_failed: u64,
    /// Suspicions raised by this node.
    pub accusations: u64,
    /// Nodes that this node declared dead.
    pub verdicts: u64,
    /// Times that this node contradicted what was said of it.
    pub contradictions: u64,
    /// Messages of other clusters or senders.
    pub refused: u64,
    /// Records without room in the table, or of nodes gone for too long.
    pub records_refused: u64,
    /// Messages dropped because nobody took them.
    pub dropped: u64,
    /// Ticks that came late.
    pub late_ticks: u64,
}

/// One node's view of the cluster. See the [module](self).
#[derive(Clone, Debug)]
pub struct Gossip {
    options: Options,
    cluster: Cluster,
    /// Never goes back.
    now: Instant,
    random: Random,
    /// This node's own record; alive or left. Its incarnation only grows.
    own: Record,
    table: Table,
    /// Of nodes' standing, this node's own included.
    news: Rumours,
    /// Of others' vitals.
    vitals_news: Rumours,
    health: LocalHealth,
    /// By sequence. At most [`probing::PROBES_MAX`].
    probes: BTreeMap<u64, Probe>,
    /// By sequence. At most [`probing::RELAYS_MAX`].
    relays: BTreeMap<u64, Relay>,
    /// Exactly those members that are suspect.
    suspicions: BTreeMap<NodeUuid, Suspicion>,
    exchange: Option<Exchange>,
    /// When the last one ended.
    exchange_ended: Option<Instant>,
    seeds: Vec<String>,
    last_sequence: u64,
    probe_on_ring: bool,
    next_probe: Instant,
    next_news: Instant,
    next_exchange: Instant,
    next_reconnect: Instant,
    next_seed: usize,
    /// Own vitals that wait to be published, and when that may be.
    unpublished: Option<Vitals>,
    next_vitals: Instant,
    outgoing: Vec<Outgoing>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Gossip {
    /// A node that knows nobody.
    ///
    /// # Errors
    ///
    /// The profile is not fit to travel; see [`Profile::check`].
    pub fn new(now: Instant, options: Options, start: Start) -> Result<Self, &'static str> {
        start.profile.check()?;
        let mut random = Random::new(start.seed);
        let incarnation = start.incarnation.clamp(1, INCARNATION_MAX);
        let own = Record {
            uuid: start.uuid,
            incarnation,
            state: State::Alive,
            profile: Arc::new(start.profile),
            vitals: StampedVitals { incarnation, ..StampedVitals::default() },
            accusers: Vec::new(),
            gone_for: Duration::ZERO,
        };
        // Nodes that start together do not all speak at once.
        let offset = jitter(&mut random, options.probe_interval);
        Ok(Self {
            cluster: start.cluster,
            now,
            table: Table::new(start.uuid),
            own,
            news: Rumours::default(),
            vitals_news: Rumours::default(),
            health: LocalHealth::new(options.health_max),
            probes: BTreeMap::new(),
            relays: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            exchange: None,
            exchange_ended: None,
            seeds: Vec::new(),
            // So that answers to an earlier life do not fit.
            last_sequence: random.next() >> 16,
            probe_on_ring: false,
            next_probe: now + offset,
            next_news: now,
            next_exchange: now + jitter(&mut random, options.exchange_interval),
            next_reconnect: now,
            next_seed: 0,
            unpublished: None,
            next_vitals: now,
            outgoing: Vec::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            random,
            options,
        })
    }

    /// Takes in a message that came on a connection of that node.
    ///
    /// # Errors
    ///
    /// It belongs to another cluster, or not to its sender; nothing was taken in.
    pub fn step(&mut self, now: Instant, from: NodeUuid, message: Message) -> Result<(), Refusal> {
        self.now = self.now.max(now);
        if let Err(refusal) = self.admit(from, &message) {
            self.counters.refused += 1;
            return Err(refusal);
        }
        let Message { sender, news, vitals, body, .. } = message;
        let mut corrections = Vec::new();
        let contact = self.hear_sender(&sender, &mut corrections);
        for record in &news {
            self.learn(record, news::Via::News, &mut corrections);
        }
        for news in &vitals {
            self.learn_vitals(news);
        }
        self.act_on(&sender, body, &corrections);
        if contact {
            self.exchange_soon_with(sender.uuid);
        }
        Ok(())
    }

    /// Lets time pass. To be called at [`Gossip::next_tick`]; later is noticed, and sooner does nothing.
    pub fn tick(&mut self, now: Instant) {
        let late = now.since(self.next_tick());
        self.now = self.now.max(now);
        if late > self.options.late_after {
            self.counters.late_ticks += 1;
            self.health.worse(1);
            self.postpone(late);
        }
        self.tick_reconnect();
        if self.own.state == State::Alive {
            self.tick_probes();
            self.tick_suspicions();
        }
        self.tick_exchange();
        self.tick_vitals();
        self.tick_news();
    }

    /// When to call [`Gossip::tick`] next.
    pub fn next_tick(&self) -> Instant {
        let probes = self.probes.values().map(Probe::due);
        let relays = self.relays.values().map(Relay::due);
        let suspicions = self.suspicions.iter().map(|(uuid, suspicion)| self.suspicion_due(*uuid, suspicion));
        let timers = [
            Some(self.next_reconnect),
            (self.own.state == State::Alive).then_some(self.next_probe),
            Some(self.exchange.as_ref().map_or(self.next_exchange, Exchange::due)),
            self.unpublished.map(|_| self.next_vitals),
            (!self.news.is_empty()).then_some(self.next_news),
        ];
        let all = timers.into_iter().flatten();
        if self.own.state == State::Alive {
            all.chain(probes).chain(relays).chain(suspicions).min()
        } else {
            all.min()
        }
        .expect("there is always a next attempt to reconnect")
    }

    /// What wants to be sent, in order.
    pub fn take_messages(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// What was noticed, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events).into()
    }

    /// Addresses to look for other nodes at: at once, and again while nobody answers there. They replace the last.
    pub fn join(&mut self, seeds: Vec<String>) {
        self.seeds = seeds;
        self.seeds.retain(|seed| *seed != self.own.profile.address);
        self.seeds.truncate(self.options.members_max);
        self.next_reconnect = self.now;
    }

    /// This node's cluster has this id.
    pub fn set_cluster_id(&mut self, id: ClusterId) {
        self.cluster.id = Some(id);
    }

    /// This node says something new of itself.
    ///
    /// # Errors
    ///
    /// The profile is not fit to travel; the old one stays.
    pub fn set_profile(&mut self, now: Instant, profile: Profile) -> Result<(), &'static str> {
        profile.check()?;
        self.now = self.now.max(now);
        if *self.own.profile != profile {
            self.own.profile = Arc::new(profile);
            self.raise_incarnation(self.own.incarnation);
        }
        Ok(())
    }

    /// How this node does. Published at its time: often in a small cluster, rarely in a large one.
    pub fn set_vitals(&mut self, now: Instant, vitals: Vitals) {
        self.now = self.now.max(now);
        if self.unpublished.is_none() {
            // A timer that is armed now was not due before.
            self.next_vitals = self.next_vitals.max(self.now);
        }
        self.unpublished = (vitals != self.own.vitals.vitals).then_some(vitals);
    }

    /// This node is about to stop for good or for a while: tell the others, so that they need not find out.
    pub fn leave(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if self.own.state == State::Alive {
            self.own.state = State::Left;
            self.tell_of_myself();
        }
    }

    /// It has told as many as it would.
    pub fn has_left(&self) -> bool {
        self.own.state == State::Left && (self.table.nodes() == 1 || !self.news.contains(self.own.uuid))
    }

    /// A connection to that node broke: look at it at once. Nothing is concluded from the break itself.
    pub fn suspect_connection(&mut self, now: Instant, uuid: NodeUuid) {
        self.now = self.now.max(now);
        if self.own.state == State::Alive
            && self.table.get(uuid).is_some_and(|member| !member.state.is_gone())
        {
            self.start_probe(uuid);
        }
    }

    /// All others that are known, gone ones included, by uuid.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.table.iter()
    }

    /// One of them.
    pub fn member(&self, uuid: NodeUuid) -> Option<&Member> {
        self.table.get(uuid)
    }

    /// What this node says of itself.
    pub fn own(&self) -> &Record {
        &self.own
    }

    /// Which cluster this node belongs to.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// 0: this node does well; each point stretches its times.
    pub fn local_health(&self) -> u32 {
        self.health.score()
    }

    /// How it goes.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn admit(&mut self, from: NodeUuid, message: &Message) -> Result<(), Refusal> {
        if message.cluster_name != self.cluster.name {
            return Err(Refusal::OtherClusterName(message.cluster_name.clone()));
        }
        if let (Some(own), Some(theirs)) = (self.cluster.id, message.cluster_id)
            && own != theirs
        {
            return Err(Refusal::OtherClusterId);
        }
        if message.sender.uuid != from {
            return Err(Refusal::NotTheSender);
        }
        if from == self.own.uuid {
            return Err(Refusal::Myself { boot_id: message.sender.profile.boot_id });
        }
        if let (None, Some(id)) = (self.cluster.id, message.cluster_id) {
            self.cluster.id = Some(id);
            self.note(Event::ClusterFound { id });
        }
        Ok(())
    }

    /// What others owe this node is not overdue if this node was not there to take it.
    fn postpone(&mut self, late: Duration) {
        let now = self.now;
        self.probes.values_mut().for_each(|probe| probe.postpone(late));
        self.suspicions.values_mut().for_each(|suspicion| suspicion.postpone(now, late));
        if let Some(exchange) = &mut self.exchange {
            exchange.postpone(late);
        }
    }

    fn note(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            if self.events.front() != Some(&Event::Missed) {
                self.events.pop_front();
                self.events.push_front(Event::Missed);
            }
        }
        self.events.push_back(event);
    }

    fn next_sequence(&mut self) -> u64 {
        self.last_sequence = self.last_sequence.wrapping_add(1);
        self.last_sequence
    }
}

/// A random part of a time.
fn jitter(random: &mut Random, time: Duration) -> Duration {
    time / 1024 * u32::try_from(random.below(1025)).expect("it is small")
}
