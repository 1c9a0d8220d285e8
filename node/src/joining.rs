//! Joining: how a node that no record names becomes a member of a cluster that is there.
//!
//! The node asks a member, any, again and again until it is admitted; that one asks the leader of the meta group, whose
//! state decides (`meta/apply_members.rs`). Asking twice is joining once, by the uuid of the data directory. The number
//! that the node is given, and the record that others formed the cluster by, are durable before it takes part.
//! From then on it is a member like any other: what it holds, leaders bring to it (`membership`).
//!
//! A node joins if its configuration says so (`join`), or if it was to form a cluster with peers of which one says that
//! the cluster is formed, without this data directory: it came late, or was wiped. In the latter case its old self,
//! which holds promises that this one has forgotten, is retired by the same command that admits the new one.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use krita_proto::error::ErrorCode;
use krita_proto::routing::VALUE_BYTES_MAX;
use krita_proto::v1;
use krita_proto::v1::cluster_change::Change as Wire;
use krita_runtime::{CoreId, Mesh, Runtime, TaskClass};

use crate::cluster::Cluster;
use crate::core::{Core, NodeFailure};
use crate::failure::Failure;
use crate::identity::{self, ClusterRecord, Joined, NodeUuid};
use crate::mesh::CoreMessage;
use crate::meta::wire::{join_from_wire, node_to_wire};
use crate::meta::{META_SHARD, MetaState};
use crate::node::NodeLinks;
use crate::responder::Responder;

/// How far the clock of a node that joins may be from that of the member that it asks, in milliseconds.
const CLOCK_DIFFERENCE_MAX_MS: u64 = 30_000;

/// How often a node that is not admitted yet asks again, and how long an answer may take.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
const ASK_TIMEOUT: Duration = Duration::from_secs(6);

/// For how long the leader of shard 0 is not heard before others are asked who belongs to the cluster.
const OUT_OF_TOUCH: Duration = Duration::from_secs(2);

/// How long the leader of the meta group has, when a member asks it.
const LEADER_TIMEOUT: Duration = Duration::from_secs(4);

/// How long the member waits until it knows itself what that leader has decided, and how often it looks.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(1);
const FOLLOW_PAUSE: Duration = Duration::from_millis(10);

/// Rounds of asking between two lines in the log while nothing changes.
const LOG_EVERY: u32 = 20;

/// A node that was admitted.
pub(crate) struct Admitted {
    pub(crate) joined: Joined,
    /// The cluster's state as the leader of the meta group had it then, if it fitted the answer.
    pub(crate) state: Option<Arc<MetaState>>,
}

/// Checks what a node that wants to join says, apart from what the cluster's state decides.
fn check_join(join: &v1::Join, hello: &v1::NodeIdentity, now_ms: u64) -> Result<(), String> {
    let wire = join.join.clone().ok_or("the request names no node")?;
    let checked = join_from_wire(wire).map_err(|error| error.to_string())?;
    if hello.node_uuid != checked.node.node_uuid.0[..] {
        return Err("the request names another node than the hello".to_owned());
    }
    let difference = join.wall_clock_ms.abs_diff(now_ms);
    if difference > CLOCK_DIFFERENCE_MAX_MS {
        return Err(format!(
            "its clock is {difference} ms from this member's, more than {CLOCK_DIFFERENCE_MAX_MS}: set it, and \
             keep it right with chrony or systemd-timesyncd"
        ));
    }
    Ok(())
}

/// What an answer admits the node to, or why it is none.
fn read_reply(reply: &v1::JoinReply, cluster_name: &str) -> Result<Admitted, String> {
    if reply.node_number == 0 {
        return Err(reply.reason.clone());
    }
    let record = reply.record.as_ref().ok_or("its answer holds no record")?;
    let record = ClusterRecord::try_from(record).map_err(|invalid| invalid.to_string())?;
    if record.cluster_name != cluster_name {
        return Err(format!("it belongs to cluster \"{}\"", record.cluster_name));
    }
    let state = match reply.state.is_empty() {
        true => None,
        false => Some(Arc::new(MetaState::decode(&reply.state).map_err(|error| error.to_string())?)),
    };
    Ok(Admitted { joined: Joined { number: reply.node_number, record }, state })
}

impl<R: Runtime> Core<R> {
    /// Asks the members at these addresses, one after the other and again and again, until one says that this node is
    /// admitted, which is then durable. `None`: the node was told to stop.
    pub(crate) async fn join(self: &Rc<Self>, addresses: &[String]) -> Result<Option<Admitted>, NodeFailure> {
        let links = NodeLinks::new(self);
        let (mut rounds, mut last) = (0_u32, Vec::new());
        loop {
            let mut problems = Vec::new();
            for address in addresses {
                match self.ask_to_join(&links, address).await {
                    Ok(admitted) => {
                        self.note_joined(&admitted.joined).await?;
                        links.stop();
                        return Ok(Some(admitted));
                    }
                    Err(problem) => problems.push(format!("{address}: {problem}")),
                }
                if self.input.stop.is_set() {
                    links.stop();
                    self.stop_before_serving();
                    return Ok(None);
                }
            }
            if problems != last || rounds % LOG_EVERY == 0 {
                tracing::warn!(?problems, "not admitted to the cluster yet");
            }
            rounds += 1;
            let text = format!("joining: not admitted yet: {}", problems.join(", "));
            self.publish_forming(text, problems.clone());
            last = problems;
            self.runtime.sleep(ASK_INTERVAL).await;
        }
    }

    async fn ask_to_join(&self, links: &NodeLinks<R>, address: &str) -> Result<Admitted, String> {
        let config = &self.input.config;
        let known = self.serving.borrow().as_ref().map(|serving| serving.cluster.record.cluster_id);
        let request = v1::Join {
            join: Some(v1::MetaJoin {
                cluster_name: config.cluster_name.clone(),
                // Once it is a member of one, it never means another.
                cluster_id: known.map(|id| id.to_bytes()).unwrap_or_default(),
                node: Some(node_to_wire(&self.own_description())),
            }),
            wall_clock_ms: self.runtime.wall_clock().0,
        };
        let deadline = self.runtime.now() + ASK_TIMEOUT;
        let reply =
            links.link(address).request(&request, deadline).await.map_err(|error| error.to_string())?;
        let admitted = read_reply(&reply, &config.cluster_name)?;
        let namesake = admitted.joined.record.member_by_number(admitted.joined.number);
        match namesake.filter(|founder| founder.node_uuid != self.identity.node_uuid) {
            Some(founder) => Err(format!("it gave the number of another node, {}", founder.node_id)),
            None => Ok(admitted),
        }
    }

    async fn note_joined(&self, joined: &Joined) -> Result<(), NodeFailure> {
        tracing::info!(
            cluster = joined.record.cluster_name,
            node_number = joined.number,
            "admitted to the cluster"
        );
        identity::store_joined(&self.runtime, &self.input.config.data_directory, joined)
            .await
            .map_err(|error| NodeFailure(error.to_string()))?;
        *self.joined.borrow_mut() = Some(joined.clone());
        Ok(())
    }

    /// Core 0: asks others who belongs to the cluster, whenever its own replica of shard 0 cannot tell. After a restart
    /// that may have applied nothing yet, and so know the founders alone, while its group is among nodes that joined
    /// later: neither would ever hear the other. Whom to ask, gossip and the configuration say.
    pub(crate) async fn keep_in_touch(self: Rc<Self>) {
        let mut lost_since = None;
        while !self.is_ending() && !self.input.stop.is_set() {
            self.runtime.sleep(ASK_INTERVAL).await;
            let now = self.runtime.now();
            lost_since = match (self.is_in_touch(), lost_since) {
                (true, _) => None,
                (false, None) => Some(now),
                (false, Some(since)) if now < since + OUT_OF_TOUCH => Some(since),
                (false, Some(_)) => {
                    self.ask_who_belongs().await;
                    None
                }
            };
        }
    }

    /// Whether the leader of shard 0 is heard, and this node a member by what is known here.
    fn is_in_touch(&self) -> bool {
        let guard = self.serving.borrow();
        let Some(serving) = guard.as_ref() else { return true };
        let is_member = serving.cluster.member(serving.cluster.node_number).is_some();
        let replica = serving.replicas.get(&META_SHARD.0);
        is_member && replica.is_some_and(|replica| replica.is_leader() || replica.leader_node().is_some())
    }

    async fn ask_who_belongs(self: &Rc<Self>) {
        let config = &self.input.config;
        let mut addresses = [config.join.as_slice(), config.peers.as_slice()].concat();
        if let Some(serving) = self.serving.borrow().as_ref() {
            addresses.extend(serving.cluster.others().map(|member| member.address));
        }
        addresses.extend(self.gossiping.view().live_addresses());
        addresses.sort_unstable();
        addresses.dedup();
        addresses.retain(|address| *address != config.advertised_address);
        let links = NodeLinks::new(self);
        for address in &addresses {
            if self.is_in_touch() || self.is_ending() || self.input.stop.is_set() {
                break;
            }
            match self.ask_to_join(&links, address).await {
                Ok(Admitted { state: Some(state), .. }) => self.adopt_meta_state(&state),
                Ok(Admitted { state: None, .. }) => {}
                Err(problem) => tracing::debug!(address, problem, "who belongs to the cluster is not learnt"),
            }
        }
        links.stop();
    }

    /// Goes by a state of the meta group that another member has told, if it is newer.
    fn adopt_meta_state(self: &Rc<Self>, state: &Arc<MetaState>) {
        let known = self.meta_state.borrow().as_ref().map_or(0, |known| known.applied_index());
        if state.applied_index() <= known {
            return;
        }
        tracing::info!(applied = state.applied_index(), "another member has told who belongs to the cluster");
        for core in (1..self.mesh.cores()).map(CoreId) {
            self.send_to_core(core, CoreMessage::Meta(state.clone()));
        }
        *self.meta_state.borrow_mut() = Some(state.clone());
        self.take_meta_state();
    }

    /// Another node asks to be admitted. On core 0.
    pub(crate) fn answer_join(
        self: &Rc<Self>,
        hello: &v1::NodeIdentity,
        join: v1::Join,
        responder: Responder,
    ) {
        let Some(cluster) = self.serving.borrow().as_ref().map(|serving| serving.cluster.clone()) else {
            return responder.fail(&self.not_serving());
        };
        let is_same =
            join.join.as_ref().is_some_and(|join| join.cluster_id == cluster.record.cluster_id.to_bytes());
        let member = NodeUuid::from_bytes(&hello.node_uuid).and_then(|uuid| cluster.number_of(uuid));
        // One of us, who wants to know who the others are: that may be what keeps shard 0 from having a leader.
        if let Some(number) = member.filter(|_| is_same) {
            return responder.message(&admission(&cluster, number));
        }
        if let Err(reason) = check_join(&join, hello, self.runtime.wall_clock().0) {
            return responder.message(&refuse(&hello.node_id, reason));
        }
        let (core, name) = (self.clone(), hello.node_id.clone());
        self.runtime.spawn(TaskClass::Foreground, "join", async move {
            match core.admit_node(join).await {
                Ok(reply) => responder.message(&reply),
                Err(failure) if failure.code == ErrorCode::InvalidArgument => {
                    responder.message(&refuse(&name, failure.message));
                }
                Err(failure) => responder.fail(&failure),
            }
        });
    }

    /// Has the leader of the meta group, whichever node that is, admit the node; it decides by the cluster's state.
    async fn admit_node(self: &Rc<Self>, join: v1::Join) -> Result<v1::JoinReply, Failure> {
        let change = v1::ClusterChange {
            change: join.join.map(Wire::Join),
            timeout_ms: LEADER_TIMEOUT.as_millis() as u32,
        };
        let number = self.ask(&change).await?.node_number;
        if number == 0 {
            return Err(Failure::unavailable("the meta group has given the node no number"));
        }
        tracing::info!(number, "a node is a member");
        let until = self.runtime.now() + FOLLOW_TIMEOUT;
        let cluster = loop {
            let cluster = self.serving.borrow().as_ref().map(|serving| serving.cluster.clone());
            let cluster = cluster.ok_or_else(|| self.not_serving())?;
            if cluster.member(number).is_some() || self.runtime.now() >= until {
                break cluster;
            }
            self.runtime.sleep(FOLLOW_PAUSE).await;
        };
        Ok(admission(&cluster, number))
    }
}

/// What a member is told: its number, how the cluster was formed, and the state of it as it is known here.
fn admission(cluster: &Cluster, number: u32) -> v1::JoinReply {
    let state = cluster.member(number).map(|_| cluster.state.encode()).unwrap_or_default();
    let state = Some(state).filter(|state| state.len() <= VALUE_BYTES_MAX).unwrap_or_default();
    let record = Some((&cluster.record).into());
    v1::JoinReply { node_number: number, reason: String::new(), record, state }
}

fn refuse(name: &str, reason: String) -> v1::JoinReply {
    tracing::warn!(node = name, reason, "a node that wants to join is refused");
    v1::JoinReply { reason, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::tests::formed;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn hello(uuid: u8) -> v1::NodeIdentity {
        v1::NodeIdentity { node_uuid: vec![uuid; 16].into(), ..Default::default() }
    }

    fn join(uuid: u8, wall_clock_ms: u64) -> v1::Join {
        let node =
            v1::MetaNode { node_id: "n9".into(), node_uuid: vec![uuid; 16].into(), ..Default::default() };
        let join = v1::MetaJoin { cluster_name: "c".into(), node: Some(node), ..Default::default() };
        v1::Join { join: Some(join), wall_clock_ms }
    }

    #[test]
    fn who_asks_must_be_who_it_says_and_know_the_time() {
        assert!(check_join(&join(9, NOW_MS + 29_000), &hello(9), NOW_MS).is_ok());
        let late = check_join(&join(9, NOW_MS - 31_000), &hello(9), NOW_MS).expect_err("its clock is off");
        assert!(late.contains("31000 ms"), "{late}");
        assert!(check_join(&join(9, NOW_MS), &hello(8), NOW_MS).is_err(), "another node");
        assert!(check_join(&v1::Join::default(), &hello(8), NOW_MS).is_err(), "nobody");
        let mut odd = join(9, NOW_MS);
        odd.join.as_mut().expect("it is there").cluster_id = vec![1; 3].into();
        assert!(check_join(&odd, &hello(9), NOW_MS).is_err(), "no cluster id");
    }

    #[test]
    fn an_answer_is_checked_before_it_is_believed() {
        let members = (1..=2).map(|number| v1::Member {
            node_number: number,
            node_id: format!("n{number}"),
            node_uuid: vec![number as u8; 16].into(),
            address: format!("h{number}:8080"),
        });
        let record = v1::ClusterRecord {
            cluster_name: "c".into(),
            cluster_id: vec![7; 16].into(),
            members: members.collect(),
            shard_count: 8,
            replication_factor: 2,
        };
        let state = formed(3, 8, 3).encode();
        let good = v1::JoinReply { node_number: 3, reason: String::new(), record: Some(record), state };
        let admitted = read_reply(&good, "c").expect("it fits");
        assert_eq!(admitted.joined.number, 3);
        assert!(admitted.state.is_some());
        for (bad, why) in [
            (v1::JoinReply { node_number: 0, reason: "no".into(), ..good.clone() }, "refused"),
            (v1::JoinReply { record: None, ..good.clone() }, "no record"),
            (v1::JoinReply { state: vec![1, 2, 3].into(), ..good.clone() }, "no state"),
        ] {
            assert!(read_reply(&bad, "c").is_err(), "{why}");
        }
        assert!(read_reply(&good, "d").is_err(), "another cluster");
    }
}
