//! A small world for gossip: nodes, and a network between them that loses, delays and parts; all from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use krita_net::gossip::{
    Cluster, ClusterId, Event, Gossip, Message, NodeUuid, Options, Outgoing, Profile, Start, State,
};
use krita_proto::v1;
use krita_runtime::Instant;
use prost::Message as _;

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5DEE_CE66_D1CE_4E5B)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    pub(crate) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        low + Duration::from_nanos(self.below(u64::try_from((high - low).as_nanos()).expect("short") + 1))
    }
}

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How a node is slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slowness {
    /// Not at all.
    None,
    /// It takes in each message so much later; its clock ticks in time.
    Inbox(Duration, Duration),
    /// It stands still for so long, then runs for so long, and so on.
    Stutters { stands: Duration, runs: Duration },
}

pub(crate) struct Node {
    pub(crate) uuid: NodeUuid,
    pub(crate) address: String,
    pub(crate) gossip: Option<Gossip>,
    pub(crate) slowness: Slowness,
    life: u64,
    tick_at: Option<Instant>,
}

enum What {
    Tick { node: usize, life: u64 },
    Deliver { address: String, from: NodeUuid, message: Box<Message> },
}

/// What a node noticed, and when.
pub(crate) struct Noticed {
    pub(crate) at: Instant,
    pub(crate) event: Event,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) options: Options,
    pub(crate) nodes: Vec<Node>,
    pub(crate) random: Random,
    /// In thousandths.
    pub(crate) loss: u64,
    pub(crate) delay: (Duration, Duration),
    /// (from, to) of nodes that do not hear each other.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Whether messages pass through their bytes.
    pub(crate) through_bytes: bool,
    pub(crate) cluster_id: Option<ClusterId>,
    pub(crate) noticed: Vec<Noticed>,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) frame_bytes_max: usize,
    pub(crate) sent_by: BTreeMap<usize, u64>,
    /// Nodes that were declared dead while they lived: (when, by whom, who).
    pub(crate) wronged: Vec<(Instant, usize, usize)>,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    pending: BTreeMap<u64, What>,
    sequence: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Instant::from_nanoseconds(1_000_000_000),
            options: Options::default(),
            nodes: Vec::new(),
            random: Random::new(seed),
            loss: 0,
            delay: (ms(0), ms(4)),
            cut: BTreeSet::new(),
            through_bytes: true,
            cluster_id: Some(ClusterId([7; 16])),
            noticed: Vec::new(),
            messages: 0,
            bytes: 0,
            frame_bytes_max: 0,
            sent_by: BTreeMap::new(),
            wronged: Vec::new(),
            queue: BinaryHeap::new(),
            pending: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// A cluster of so many that know each other.
    pub(crate) fn formed(seed: u64, nodes: usize) -> Self {
        let mut world = Self::new(seed);
        for node in 0..nodes {
            let seeds = if node == 0 { Vec::new() } else { vec![world.address(0)] };
            world.start(seeds);
        }
        world.run(secs(12));
        assert!(world.all_know_all(), "seed {seed}: {nodes} nodes know each other after 12 s");
        world
    }

    pub(crate) fn address(&self, node: usize) -> String {
        format!("node-{node}.example.net:8080")
    }

    /// A fresh node, by its index.
    pub(crate) fn start(&mut self, seeds: Vec<String>) -> usize {
        let address = self.address(self.nodes.len());
        self.start_at(address, seeds)
    }

    /// A fresh node at an address that another may have had.
    pub(crate) fn start_at(&mut self, address: String, seeds: Vec<String>) -> usize {
        let node = self.nodes.len();
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&self.random.next().to_le_bytes());
        uuid[8..].copy_from_slice(&(node as u64).to_le_bytes());
        self.nodes.push(Node {
            uuid: NodeUuid(uuid),
            address,
            gossip: None,
            slowness: Slowness::None,
            life: 0,
            tick_at: None,
        });
        self.boot(node, seeds, 1);
        node
    }

    /// Starts a node that does not run, with its old disk.
    pub(crate) fn boot(&mut self, node: usize, seeds: Vec<String>, incarnation: u64) {
        let it = &self.nodes[node];
        assert!(it.gossip.is_none(), "it runs already");
        let start = Start {
            cluster: Cluster { name: "world".into(), id: self.cluster_id },
            uuid: it.uuid,
            profile: Profile {
                node_id: it.address.split('.').next().expect("it has a first part").to_owned(),
                node_number: u32::try_from(node).expect("few") + 1,
                address: it.address.clone(),
                zone: format!("zone-{}", node % 3),
                capacity: 100,
                software_version: "0.1.0".into(),
                feature_version: 1,
                boot_id: self.random.next(),
            },
            incarnation,
            seed: self.random.next(),
        };
        let mut gossip = Gossip::new(self.now, self.options.clone(), start).expect("a fit profile");
        gossip.join(seeds);
        self.nodes[node].gossip = Some(gossip);
        self.nodes[node].life += 1;
        self.nodes[node].tick_at = None;
        self.after(node);
    }

    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].gossip = None;
    }

    pub(crate) fn gossip(&mut self, node: usize) -> &mut Gossip {
        self.nodes[node].gossip.as_mut().expect("it runs")
    }

    /// Does something with a node, and takes what comes of it.
    pub(crate) fn with(&mut self, node: usize, act: impl FnOnce(Instant, &mut Gossip)) {
        let now = self.now;
        act(now, self.gossip(node));
        self.after(node);
    }

    /// Parts these nodes from all others, both ways.
    pub(crate) fn part(&mut self, side: &[usize]) {
        for from in 0..self.nodes.len() {
            for to in 0..self.nodes.len() {
                if side.contains(&from) != side.contains(&to) {
                    self.cut.insert((from, to));
                }
            }
        }
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].gossip.is_some()).collect()
    }

    pub(crate) fn index_of(&self, uuid: NodeUuid) -> Option<usize> {
        self.nodes.iter().position(|node| node.uuid == uuid)
    }

    /// What a node thinks of another.
    pub(crate) fn state(&self, of: usize, by: usize) -> Option<State> {
        let gossip = self.nodes[by].gossip.as_ref().expect("it runs");
        gossip.member(self.nodes[of].uuid).map(|member| member.state)
    }

    /// Every running node knows every other to be alive.
    pub(crate) fn all_know_all(&self) -> bool {
        let running = self.running();
        let knows = |by: usize, of: usize| by == of || self.state(of, by) == Some(State::Alive);
        running.iter().all(|by| running.iter().all(|of| knows(*by, *of)))
    }

    /// All running nodes think this of it.
    pub(crate) fn all_think(&self, of: usize, state: State) -> bool {
        self.running().into_iter().filter(|by| *by != of).all(|by| self.state(of, by) == Some(state))
    }

    /// Runs until it holds; how long that took.
    pub(crate) fn until(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Option<Duration> {
        let began = self.now;
        while self.now.since(began) <= limit {
            if holds(self) {
                return Some(self.now.since(began));
            }
            self.run(ms(20));
        }
        None
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(Reverse((at, sequence))) = self.queue.peek().copied() {
            if at > end {
                break;
            }
            self.queue.pop();
            self.now = self.now.max(at);
            let what = self.pending.remove(&sequence).expect("each is pending once");
            self.happen(what);
        }
        self.now = end;
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Tick { node, life } => {
                if self.nodes[node].life != life || self.nodes[node].gossip.is_none() {
                    return;
                }
                if let Some(at) = self.stands_until(node) {
                    self.push(at, What::Tick { node, life });
                    return;
                }
                self.nodes[node].tick_at = None;
                let now = self.now;
                if self.gossip(node).next_tick() <= now {
                    self.gossip(node).tick(now);
                }
                self.after(node);
            }
            What::Deliver { address, from, message } => {
                let Some(node) =
                    self.nodes.iter().position(|it| it.address == address && it.gossip.is_some())
                else {
                    return;
                };
                if let Some(at) = self.stands_until(node) {
                    // After waking the inbox is read in its order, before or after the clock is looked at.
                    self.push(at, What::Deliver { address, from, message });
                    return;
                }
                let now = self.now;
                let _ = self.gossip(node).step(now, from, *message);
                self.after(node);
            }
        }
    }

    /// Until when a stuttering node stands still, if it does.
    fn stands_until(&mut self, node: usize) -> Option<Instant> {
        let Slowness::Stutters { stands, runs } = self.nodes[node].slowness else { return None };
        let period = (stands + runs).as_nanos() as u64;
        let phase = self.now.as_nanoseconds() % period;
        let standing = (phase as u128) < stands.as_nanos();
        standing.then(|| {
            self.now + Duration::from_nanos(stands.as_nanos() as u64 - phase) + ms(self.random.below(3))
        })
    }

    /// Takes a node's messages and events, and sees to its next tick.
    fn after(&mut self, node: usize) {
        let outgoing = self.gossip(node).take_messages();
        for outgoing in outgoing {
            self.send(node, outgoing);
        }
        for event in self.gossip(node).take_events() {
            if let Event::Died { uuid } = event
                && let Some(dead) = self.index_of(uuid)
                && self.nodes[dead].gossip.is_some()
            {
                self.wronged.push((self.now, node, dead));
            }
            self.noticed.push(Noticed { at: self.now, event });
        }
        let next = self.gossip(node).next_tick().max(self.now);
        if self.nodes[node].tick_at.is_none_or(|at| next < at) {
            self.nodes[node].tick_at = Some(next);
            let life = self.nodes[node].life;
            self.push(next, What::Tick { node, life });
        }
    }

    fn send(&mut self, from: usize, outgoing: Outgoing) {
        let wire = outgoing.message.to_wire();
        let length = wire.encoded_len();
        self.messages += 1;
        self.bytes += length as u64;
        self.frame_bytes_max = self.frame_bytes_max.max(length);
        *self.sent_by.entry(from).or_default() += 1;
        let to = self.nodes.iter().position(|node| node.address == outgoing.to.address);
        if self.random.chance(self.loss) || to.is_none_or(|to| self.cut.contains(&(from, to))) {
            return;
        }
        let message = if self.through_bytes {
            let decoded =
                v1::Gossip::decode(wire.encode_to_vec().as_slice()).expect("it was encoded just now");
            Message::from_wire(decoded).expect("what we send is fit")
        } else {
            outgoing.message
        };
        let mut delay = self.random.between(self.delay.0, self.delay.1);
        if let Some(to) = to
            && let Slowness::Inbox(low, high) = self.nodes[to].slowness
        {
            delay += self.random.between(low, high);
        }
        let what = What::Deliver {
            address: outgoing.to.address,
            from: self.nodes[from].uuid,
            message: Box::new(message),
        };
        self.push(self.now + delay, what);
    }

    fn push(&mut self, at: Instant, what: What) {
        self.sequence += 1;
        self.pending.insert(self.sequence, what);
        self.queue.push(Reverse((at, self.sequence)));
    }
}
