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

use bytes::Bytes;
use krita_proto::error::ErrorCode;
use krita_proto::routing::VALUE_BYTES_MAX;
use krita_proto::v1;
use krita_proto::v1::cluster_change::Change as Wire;
use krita_runtime::{CoreId, Mesh, Runtime, TaskClass};

use crate::core::{Core, NodeFailure};
use crate::failure::Failure;
use crate::identity::{self, ClusterRecord, Joined};
use crate::mesh::CoreMessage;
use crate::meta::MetaState;
use crate::meta::wire::{join_from_wire, node_to_wire};
use crate::node::NodeLinks;
use crate::responder::Responder;

/// How far the clock of a node that joins may be from that of the member that it asks, in milliseconds.
const CLOCK_DIFFERENCE_MAX_MS: u64 = 30_000;

/// How often a node that is not admitted yet asks again, and how long an answer may take.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
const ASK_TIMEOUT: Duration = Duration::from_secs(6);

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
    if record.member_by_number(reply.node_number).is_some() {
        return Err("it gave the number of a founder".to_owned());
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
        let (config, joined) = (&self.input.config, self.joined.borrow().clone());
        let request = v1::Join {
            join: Some(v1::MetaJoin {
                cluster_name: config.cluster_name.clone(),
                // Once it is a member of one, it never means another.
                cluster_id: joined.map(|joined| joined.record.cluster_id.to_bytes()).unwrap_or_default(),
                node: Some(node_to_wire(&self.own_description())),
            }),
            wall_clock_ms: self.runtime.wall_clock().0,
        };
        let deadline = self.runtime.now() + ASK_TIMEOUT;
        let reply =
            links.link(address).request(&request, deadline).await.map_err(|error| error.to_string())?;
        read_reply(&reply, &config.cluster_name)
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

    /// Core 0 of a node that joined, until its own replica of shard 0 or a member has told it that it is a member: after a
    /// restart it knows the founders alone.
    pub(crate) async fn learn_own_membership(self: Rc<Self>) {
        let links = NodeLinks::new(&self);
        while !self.is_ending() && !self.input.stop.is_set() && !self.knows_itself() {
            let mut addresses = self.input.config.join.clone();
            if let Some(serving) = self.serving.borrow().as_ref() {
                addresses.extend(serving.cluster.others().map(|member| member.address));
            }
            addresses.extend(self.gossiping.view().live_addresses());
            addresses.sort_unstable();
            addresses.dedup();
            addresses.retain(|address| *address != self.input.config.advertised_address);
            for address in &addresses {
                match self.ask_to_join(&links, address).await {
                    Ok(Admitted { state: Some(state), .. }) => self.adopt_meta_state(&state),
                    Ok(Admitted { state: None, .. }) => {}
                    Err(problem) => tracing::info!(address, problem, "membership not learnt yet"),
                }
                if self.knows_itself() {
                    break;
                }
            }
            self.runtime.sleep(ASK_INTERVAL).await;
        }
        links.stop();
    }

    fn knows_itself(&self) -> bool {
        let guard = self.serving.borrow();
        guard.as_ref().is_some_and(|it| it.cluster.member(it.cluster.node_number).is_some())
    }

    /// Goes by a state of the meta group that another member has told, if it is newer.
    fn adopt_meta_state(self: &Rc<Self>, state: &Arc<MetaState>) {
        let known = self.meta_state.borrow().as_ref().map_or(0, |known| known.applied_index());
        if state.applied_index() <= known {
            return;
        }
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
        if self.serving.borrow().is_none() {
            return responder.fail(&self.not_serving());
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
        let state = loop {
            let cluster = self.serving.borrow().as_ref().map(|serving| serving.cluster.clone());
            let cluster = cluster.ok_or_else(|| self.not_serving())?;
            if cluster.member(number).is_some() || self.runtime.now() >= until {
                break cluster;
            }
            self.runtime.sleep(FOLLOW_PAUSE).await;
        };
        let encoded = match state.member(number) {
            Some(_) => state.state.encode(),
            None => Bytes::new(),
        };
        let encoded = Some(encoded).filter(|encoded| encoded.len() <= VALUE_BYTES_MAX).unwrap_or_default();
        let record = Some((&state.record).into());
        Ok(v1::JoinReply { node_number: number, reason: String::new(), record, state: encoded })
    }
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
            (v1::JoinReply { node_number: 2, ..good.clone() }, "a founder's number"),
            (v1::JoinReply { record: None, ..good.clone() }, "no record"),
            (v1::JoinReply { state: vec![1, 2, 3].into(), ..good.clone() }, "no state"),
        ] {
            assert!(read_reply(&bad, "c").is_err(), "{why}");
        }
        assert!(read_reply(&good, "d").is_err(), "another cluster");
    }
}
