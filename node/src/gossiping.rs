//! Gossip in a running node: the state machine of [`krita_net::gossip`] on core 0, connections for its messages, and
//! what it says, shared with all cores as one immutable [`View`].
//!
//! Messages are one-way frames on connections of their own, from core 0 to core 0: behind a snapshot on a connection
//! that others use, an answer would come too late. A connection is opened when a message wants one, and the one
//! that was not used for longest is closed when there are too many. A message that finds no connection, or a full
//! queue, is lost, as the protocol expects.
//!
//! **Who is up, who is down, and since when** says [`View::standing`]. It is a hint: what follows from it is decided
//! by the meta group.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use krita_net::PeerLink;
use krita_net::gossip::{
    Cluster as GossipCluster, ClusterId, Destination, Event, Gossip, Health, Message, NodeUuid as GossipUuid,
    Options, Profile, Record, Start, State, Vitals,
};
use krita_proto::frame::Frame;
use krita_proto::v1;
use krita_runtime::{CoreId, Instant, Mesh, Runtime, TaskClass};

use crate::cluster::Cluster;
use crate::core::{Core, NodeFailure};
use crate::identity::NodeUuid;
use crate::mesh::CoreMessage;
use crate::meta::FEATURE_MAX;

/// Most connections for gossip at one time.
const LINKS_MAX: usize = 128;

/// Bytes of gossip that wait for one node before more is lost: old news are of no use.
const QUEUE_BYTES_MAX: usize = 256 << 10;

/// The longest and the shortest rest between two looks at the clock.
const REST_MAX: Duration = Duration::from_millis(100);
const REST_MIN: Duration = Duration::from_millis(5);

/// Vitals change all the time: what else is new is published at once, they as often as this.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(500);

/// Pings that only others get answers to are worth a word after this long.
const UNREACHED_MIN: Duration = Duration::from_secs(5);

/// How long a node that ends goes on to tell so.
const LEAVE_MAX: Duration = Duration::from_millis(800);

/// How a node is, as far as gossip knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It answers, in one life since then.
    Up {
        /// Since when this node has known so.
        since: Instant,
    },
    /// Somebody cannot reach it; it has some seconds to contradict.
    Suspect {
        /// Since when this node has known so.
        since: Instant,
    },
    /// It did not contradict, or was never heard.
    Dead {
        /// Since when it has been gone.
        since: Instant,
    },
    /// It said itself that it ends.
    Left {
        /// Since when it has been gone.
        since: Instant,
    },
}

impl Standing {
    /// Since when the node has been down; `None`: it is up, or has time yet to say so.
    pub(crate) fn down_since(self) -> Option<Instant> {
        match self {
            Self::Up { .. } | Self::Suspect { .. } => None,
            Self::Dead { since } | Self::Left { since } => Some(since),
        }
    }

    fn since(self) -> Instant {
        match self {
            Self::Up { since } | Self::Suspect { since } | Self::Dead { since } | Self::Left { since } => {
                since
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Up { .. } => "alive",
            Self::Suspect { .. } => "suspect",
            Self::Dead { .. } => "dead",
            Self::Left { .. } => "left",
        }
    }
}

/// One node as gossip knows it.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    pub(crate) standing: Standing,
    /// What it says of itself: name, number, address, zone, capacity, versions, boot.
    pub(crate) profile: Arc<Profile>,
    pub(crate) incarnation: u64,
    pub(crate) vitals: Vitals,
    /// Since when it has answered others only.
    pub(crate) unreached_since: Option<Instant>,
}

/// What gossip says of the cluster at one moment. Immutable; the same value on all cores.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// When this node began to gossip; `None`: it does not yet.
    started_at: Option<Instant>,
    /// Every node that is known, this one included, members or not.
    nodes: BTreeMap<NodeUuid, Sighting>,
}

impl View {
    /// Whether a node is up, and since when. `None`: gossip has not heard of it, which may be too early to mean
    /// anything.
    pub(crate) fn standing(&self, node: NodeUuid) -> Option<Standing> {
        self.nodes.get(&node).map(|sighting| sighting.standing)
    }

    /// All nodes that are known, members or not, this one included.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeUuid, &Sighting)> {
        self.nodes.iter().map(|(uuid, sighting)| (*uuid, sighting))
    }

    /// Where nodes answer that are not gone.
    pub(crate) fn live_addresses(&self) -> Vec<String> {
        let live = self.nodes.values().filter(|sighting| sighting.standing.down_since().is_none());
        live.map(|sighting| sighting.profile.address.clone()).collect()
    }

    /// For a status.
    fn to_wire(&self, now: Instant, cluster: &Cluster) -> Vec<v1::NodeSighting> {
        let mut sightings: Vec<v1::NodeSighting> =
            self.nodes().map(|(uuid, sighting)| sighting.to_wire(uuid, now)).collect();
        for sighting in &mut sightings {
            // Who is a member, the cluster knows better.
            let uuid = NodeUuid::from_bytes(&sighting.node_uuid);
            sighting.node_number = uuid.and_then(|uuid| cluster.number_of(uuid)).unwrap_or(0);
        }
        let unheard = cluster.members().filter(|member| !self.nodes.contains_key(&member.node_uuid));
        sightings.extend(unheard.map(|member| v1::NodeSighting {
            node_uuid: member.node_uuid.to_bytes(),
            node_number: member.number,
            node_id: member.node_id.clone(),
            address: member.address.clone(),
            state: "unknown".to_owned(),
            for_ms: self.started_at.map_or(0, |started_at| milliseconds(now.since(started_at))),
            ..Default::default()
        }));
        sightings.sort_by_key(|sighting| sighting.node_number);
        sightings
    }

    /// What a person should know: who answers others, but not this node.
    fn problems(&self, now: Instant) -> Vec<String> {
        let unreached = self.nodes.values().filter_map(|it| Some((it, now.since(it.unreached_since?))));
        let long =
            unreached.filter(|(it, long)| *long >= UNREACHED_MIN && it.standing.down_since().is_none());
        long.map(|(it, long)| {
            let (name, address, seconds) = (&it.profile.node_id, &it.profile.address, long.as_secs());
            format!("{name} at {address} answers others, but has not answered this node for {seconds} s")
        })
        .collect()
    }
}

impl Sighting {
    fn to_wire(&self, uuid: NodeUuid, now: Instant) -> v1::NodeSighting {
        let (profile, vitals) = (&self.profile, &self.vitals);
        v1::NodeSighting {
            node_uuid: uuid.to_bytes(),
            node_number: profile.node_number,
            node_id: profile.node_id.clone(),
            address: profile.address.clone(),
            state: self.standing.name().to_owned(),
            for_ms: milliseconds(now.since(self.standing.since())),
            incarnation: self.incarnation,
            boot_id: profile.boot_id,
            zone: profile.zone.clone(),
            capacity: profile.capacity,
            version: profile.software_version.clone(),
            feature_version: profile.feature_version,
            load_per_mille: vitals.load_per_mille,
            stored_bytes: vitals.stored_bytes,
            health: match vitals.health {
                Health::Well => "well",
                Health::Impaired => "impaired",
                Health::Failing => "failing",
            }
            .to_owned(),
            shard_map_epoch: vitals.shard_map_epoch,
            settings_epoch: vitals.settings_epoch,
            unreached_ms: self.unreached_since.map_or(0, |since| milliseconds(now.since(since))),
        }
    }
}

/// A core's part of gossip.
pub(crate) struct Gossiping<R: Runtime> {
    /// What is known, as last published by core 0.
    view: RefCell<Arc<View>>,
    /// Core 0 only, from when the node knows its cluster.
    running: RefCell<Option<Running<R>>>,
}

/// What core 0 holds.
struct Running<R: Runtime> {
    gossip: Gossip,
    links: BTreeMap<String, Link<R>>,
    own: NodeUuid,
    /// For hellos.
    identity: v1::NodeIdentity,
    started_at: Instant,
    /// Of each node: its state and boot, and since when they have been so.
    since: BTreeMap<GossipUuid, (State, u64, Instant)>,
    /// Something that others wait for is new.
    is_news: bool,
    published_at: Instant,
    /// Writes to logs that had been under way when the vitals were taken last.
    writes_ms: (Instant, u64),
}

struct Link<R: Runtime> {
    link: PeerLink<R>,
    used_at: Instant,
}

impl<R: Runtime> Gossiping<R> {
    pub(crate) fn new() -> Self {
        Self { view: RefCell::default(), running: RefCell::new(None) }
    }

    /// What gossip says now.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Takes up what core 0 has published.
    pub(crate) fn set_view(&self, view: Arc<View>) {
        *self.view.borrow_mut() = view;
    }
}

impl<R: Runtime> Core<R> {
    /// Begins to gossip, on core 0, as soon as the node knows its cluster.
    pub(crate) fn begin_gossip(self: &Rc<Self>, cluster: &Cluster) -> Result<(), NodeFailure> {
        let config = &self.input.config;
        let now = self.runtime.now();
        let start = Start {
            cluster: GossipCluster {
                name: cluster.record.cluster_name.as_str().into(),
                id: Some(ClusterId(cluster.record.cluster_id.0)),
            },
            uuid: GossipUuid(self.identity.node_uuid.0),
            profile: Profile {
                node_id: self.identity.node_id.clone(),
                node_number: cluster.node_number,
                address: config.advertised_address.clone(),
                zone: config.zone.clone(),
                capacity: u64::from(config.capacity),
                software_version: env!("CARGO_PKG_VERSION").to_owned(),
                feature_version: FEATURE_MAX,
                boot_id: self.input.boot_id,
            },
            incarnation: self.runtime.wall_clock().0,
            seed: self.runtime.random_u64(),
        };
        let mut gossip = Gossip::new(now, Options::default(), start)
            .map_err(|what| NodeFailure(format!("this node cannot gossip: {what}")))?;
        let mut seeds: Vec<String> = cluster.others().map(|member| member.address.clone()).collect();
        seeds.extend(config.peers.iter().chain(&config.join).cloned());
        seeds.sort_unstable();
        seeds.dedup();
        gossip.join(seeds);
        *self.gossiping.running.borrow_mut() = Some(Running {
            gossip,
            links: BTreeMap::new(),
            own: self.identity.node_uuid,
            identity: cluster.identity(),
            started_at: now,
            since: BTreeMap::new(),
            is_news: true,
            published_at: now,
            writes_ms: (now, 0),
        });
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "gossip", core.gossip());
        Ok(())
    }

    /// Lets time pass for gossip, until the core ends.
    async fn gossip(self: Rc<Self>) {
        while !self.is_ending() {
            let now = self.runtime.now();
            let next = self.with_gossip(|running| {
                if running.gossip.next_tick() <= now {
                    running.gossip.tick(now);
                }
                running.gossip.next_tick()
            });
            self.after_gossip();
            let rest = next.map_or(REST_MAX, |next| next.since(now));
            self.runtime.sleep(rest.clamp(REST_MIN, REST_MAX)).await;
        }
    }

    /// Takes in a message of another node. Lost on any core but the first, whom all senders ask for.
    pub(crate) fn on_gossip(self: &Rc<Self>, from: &v1::NodeIdentity, frame: Frame) {
        let Some(from) = NodeUuid::from_bytes(&from.node_uuid) else { return };
        if self.gossiping.running.borrow().is_none() {
            return;
        }
        let message = match frame.decode::<v1::Gossip>().map(Message::from_wire) {
            Ok(Ok(message)) => message,
            Ok(Err(unfit)) => return tracing::warn!(%from, %unfit, "gossip refused"),
            Err(error) => return tracing::warn!(%from, %error, "gossip does not decode"),
        };
        let now = self.runtime.now();
        let taken = self.with_gossip(|running| running.gossip.step(now, GossipUuid(from.0), message));
        if let Some(Err(refusal)) = taken {
            tracing::debug!(%from, %refusal, "gossip refused");
        }
        self.after_gossip();
    }

    /// Sends what gossip wants to say, and publishes what it has noticed.
    fn after_gossip(self: &Rc<Self>) {
        let now = self.runtime.now();
        let Some((messages, events)) =
            self.with_gossip(|running| (running.gossip.take_messages(), running.gossip.take_events()))
        else {
            return;
        };
        for event in events {
            self.on_gossip_event(event);
        }
        for outgoing in messages {
            if let Some(link) = self.gossip_link(&outgoing.to) {
                // One that cannot leave is lost.
                link.send_one_way(&outgoing.message.to_wire());
            }
        }
        self.publish_view(now);
    }

    fn on_gossip_event(&self, event: Event) {
        let name = |uuid: GossipUuid| {
            let running = self.gossiping.running.borrow();
            let member = running.as_ref().and_then(|running| running.gossip.member(uuid));
            member.map_or_else(|| uuid.to_string(), |member| member.profile.node_id.clone())
        };
        let mut is_news = true;
        match event {
            Event::Joined { uuid, namesake: None } => tracing::info!(node = name(uuid), "gossip: found"),
            Event::Joined { uuid, namesake: Some(other) } => {
                tracing::warn!(node = name(uuid), %uuid, %other, "gossip: found under a name that another has");
            }
            Event::Suspected { uuid } => tracing::info!(node = name(uuid), "gossip: suspect"),
            Event::AliveAgain { uuid, before } => {
                tracing::info!(node = name(uuid), ?before, "gossip: alive again");
            }
            Event::Died { uuid } => {
                tracing::warn!(node = name(uuid), "gossip: dead");
                self.drop_gossip_link(uuid);
            }
            Event::Left { uuid } => {
                tracing::info!(node = name(uuid), "gossip: left");
                self.drop_gossip_link(uuid);
            }
            Event::Updated { profile, .. } => is_news = profile,
            Event::Contradicted { state } => {
                is_news = false;
                tracing::info!(?state, "gossip: contradicted what is said of this node");
            }
            Event::Forgotten { .. } | Event::ClusterFound { .. } | Event::Missed => {}
        }
        self.with_gossip(|running| running.is_news |= is_news);
    }

    /// A connection to a node that is gone may hang for long after it is back.
    fn drop_gossip_link(&self, uuid: GossipUuid) {
        let link = self.with_gossip(|running| {
            let address = running.gossip.member(uuid).map(|member| member.profile.address.clone())?;
            running.links.remove(&address)
        });
        if let Some(Some(dropped)) = link {
            dropped.link.stop();
        }
    }

    /// The connection to an address; made at its first use.
    fn gossip_link(&self, to: &Destination) -> Option<PeerLink<R>> {
        let now = self.runtime.now();
        let mut guard = self.gossiping.running.borrow_mut();
        let running = guard.as_mut()?;
        if let Some(known) = running.links.get_mut(&to.address) {
            known.used_at = now;
            return Some(known.link.clone());
        }
        if running.links.len() >= LINKS_MAX {
            let oldest = running.links.iter().min_by_key(|(_, link)| link.used_at)?.0.clone();
            running.links.remove(&oldest)?.link.stop();
        }
        let link = self.peers.gossip_link(&to.address, running.identity.clone(), QUEUE_BYTES_MAX);
        running.links.insert(to.address.clone(), Link { link: link.clone(), used_at: now });
        Some(link)
    }

    /// Gives all cores what is known, if something is new.
    fn publish_view(self: &Rc<Self>, now: Instant) {
        let view = self.with_gossip(|running| {
            let is_due = running.is_news || now.since(running.published_at) >= PUBLISH_INTERVAL;
            is_due.then(|| running.view(now))
        });
        let Some(Some(view)) = view else { return };
        let view = Arc::new(view);
        for core in (1..self.mesh.cores()).map(CoreId) {
            self.send_to_core(core, CoreMessage::GossipView(view.clone()));
        }
        self.gossiping.set_view(view);
    }

    /// Tells the others how this node does.
    pub(crate) fn tell_vitals(&self, status: &v1::NodeStatusReply) {
        let now = self.runtime.now();
        let storage = status.storage.unwrap_or_default();
        self.with_gossip(|running| {
            let load_per_mille = running.load(now, &storage);
            let vitals = Vitals {
                load_per_mille,
                stored_bytes: storage.stored_bytes,
                health: health_of(status, &storage),
                shard_map_epoch: self.serving.borrow().as_ref().map_or(0, |serving| serving.cluster.epoch()),
                settings_epoch: 0,
            };
            running.gossip.set_vitals(now, vitals);
        });
    }

    /// Tells the others that this node ends, so that they need not find out.
    pub(crate) fn begin_leaving(self: &Rc<Self>) {
        let now = self.runtime.now();
        self.with_gossip(|running| running.gossip.leave(now));
        self.after_gossip();
    }

    /// Waits until enough of them have been told, within a bound.
    pub(crate) async fn has_left(&self) {
        let deadline = self.runtime.now() + LEAVE_MAX;
        while self.runtime.now() < deadline
            && self.with_gossip(|running| !running.gossip.has_left()) == Some(true)
        {
            self.runtime.sleep(REST_MIN).await;
        }
    }

    /// What gossip says of every node, for a status.
    pub(crate) fn sightings(&self, cluster: &Cluster) -> Vec<v1::NodeSighting> {
        self.gossiping.view().to_wire(self.runtime.now(), cluster)
    }

    /// What gossip has to say of this node's own troubles.
    pub(crate) fn gossip_problems(&self) -> Vec<String> {
        self.gossiping.view().problems(self.runtime.now())
    }

    fn with_gossip<T>(&self, change: impl FnOnce(&mut Running<R>) -> T) -> Option<T> {
        self.gossiping.running.borrow_mut().as_mut().map(change)
    }
}

impl<R: Runtime> Running<R> {
    fn view(&mut self, now: Instant) -> View {
        self.is_news = false;
        self.published_at = now;
        let mut nodes = BTreeMap::new();
        let mut since = BTreeMap::new();
        for member in self.gossip.members() {
            // A node that contradicts goes on living; one that has restarted begins a new life.
            let life = (member.state, member.profile.boot_id);
            let changed_at = match self.since.get(&member.uuid) {
                Some((state, boot_id, at)) if (*state, *boot_id) == life => *at,
                Some(_) | None => now,
            };
            let at = member.gone_at.unwrap_or(changed_at);
            since.insert(member.uuid, (life.0, life.1, changed_at));
            let sighting = Sighting {
                standing: standing(member.state, at),
                profile: member.profile.clone(),
                incarnation: member.incarnation,
                vitals: member.vitals.vitals,
                unreached_since: member.unreached_since,
            };
            nodes.insert(NodeUuid(member.uuid.0), sighting);
        }
        self.since = since;
        let own: &Record = self.gossip.own();
        let sighting = Sighting {
            standing: standing(own.state, self.started_at),
            profile: own.profile.clone(),
            incarnation: own.incarnation,
            vitals: own.vitals.vitals,
            unreached_since: None,
        };
        nodes.insert(self.own, sighting);
        View { started_at: Some(self.started_at), nodes }
    }

    /// How much of the time since the last call logs were being written, in thousandths.
    fn load(&mut self, now: Instant, storage: &v1::StorageStatus) -> u32 {
        let (before, written_before) = self.writes_ms;
        self.writes_ms = (now, storage.log_writes_ms);
        let elapsed = milliseconds(now.since(before)) * u64::from(storage.logs.max(1));
        let written = storage.log_writes_ms.saturating_sub(written_before);
        u32::try_from(written * 1_000 / elapsed.max(1)).unwrap_or(u32::MAX)
    }
}

fn standing(state: State, since: Instant) -> Standing {
    match state {
        State::Alive => Standing::Up { since },
        State::Suspect => Standing::Suspect { since },
        State::Dead => Standing::Dead { since },
        State::Left => Standing::Left { since },
    }
}

fn health_of(status: &v1::NodeStatusReply, storage: &v1::StorageStatus) -> Health {
    if storage.full {
        Health::Failing
    } else if status.state != "serving" || storage.shards_suspect > 0 {
        Health::Impaired
    } else {
        Health::Well
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_nanoseconds(seconds * 1_000_000_000)
    }

    fn sighting(standing: Standing, unreached_since: Option<Instant>) -> Sighting {
        let profile = Profile { node_id: "n2".into(), address: "b:8080".into(), ..Profile::default() };
        let (profile, vitals) = (Arc::new(profile), Vitals::default());
        Sighting { standing, profile, incarnation: 1, vitals, unreached_since }
    }

    #[test]
    fn a_suspect_is_not_down() {
        for (standing, down) in [
            (Standing::Up { since: at(1) }, None),
            (Standing::Suspect { since: at(1) }, None),
            (Standing::Dead { since: at(1) }, Some(at(1))),
            (Standing::Left { since: at(1) }, Some(at(1))),
        ] {
            assert_eq!(standing.down_since(), down);
        }
    }

    #[test]
    fn a_broken_pair_is_a_problem_after_a_while() {
        let up = Standing::Up { since: at(1) };
        let view = |standing| View {
            started_at: Some(at(0)),
            nodes: BTreeMap::from([(NodeUuid([1; 16]), sighting(standing, Some(at(5))))]),
        };
        assert!(view(up).problems(at(9)).is_empty());
        let problems = view(up).problems(at(11));
        assert!(problems.len() == 1 && problems[0].contains("n2 at b:8080 answers others"), "{problems:?}");
        assert!(view(Standing::Dead { since: at(8) }).problems(at(11)).is_empty());
    }
}
