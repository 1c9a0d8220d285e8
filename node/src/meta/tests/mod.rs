//! Tests of the meta group's state: what they share.

mod jobs;
mod members;
mod properties;
mod world;

use crate::identity::{ClusterId, ClusterRecord, Member as RecordMember, NodeUuid};
use crate::meta::member::NodeDescription;
use crate::meta::state::MetaState;
use crate::meta::{Command, FEATURE_MAX, Join, MemberState, NodeNumber, Outcome, Version};
use crate::placement::{Candidate, place};

/// Small, seeded, good enough to choose test cases.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let bound = from.len() as u64;
        (bound > 0).then(|| from[self.below(bound) as usize].clone())
    }
}

pub(crate) fn uuid(number: u32) -> NodeUuid {
    let mut bytes = [7; 16];
    bytes[..8].copy_from_slice(&Dice::new(u64::from(number)).next().to_le_bytes());
    NodeUuid(bytes)
}

pub(crate) const CLUSTER: ClusterId = ClusterId([9; 16]);

pub(crate) fn record(nodes: u32, shards: u32, replication_factor: u32) -> ClusterRecord {
    let member = |number: u32| RecordMember {
        number,
        node_id: format!("n{number}"),
        node_uuid: uuid(number),
        address: format!("10.0.0.{number}:7400"),
    };
    ClusterRecord {
        cluster_name: "colours".to_owned(),
        cluster_id: CLUSTER,
        members: (1..=nodes).map(member).collect(),
        shard_count: shards,
        replication_factor: replication_factor.min(nodes),
    }
}

/// A cluster just formed.
pub(crate) fn formed(nodes: u32, shards: u32, replication_factor: u32) -> MetaState {
    let record = record(nodes, shards, replication_factor);
    let candidates: Vec<Candidate> = record
        .members
        .iter()
        .map(|member| Candidate { node_number: member.number, node_uuid: member.node_uuid.0 })
        .collect();
    MetaState::formed(&record, &place(&candidates, shards, record.replication_factor))
}

pub(crate) fn description(number: u32) -> NodeDescription {
    NodeDescription {
        node_id: format!("n{number}"),
        node_uuid: uuid(number),
        address: format!("10.0.0.{number}:7400"),
        zone: String::new(),
        weight: 1,
        cores: 4,
        feature_min: 1,
        feature_max: FEATURE_MAX,
    }
}

pub(crate) fn join(node: NodeDescription) -> Command {
    Command::Join(Join { cluster_name: "colours".to_owned(), cluster_id: None, node })
}

/// Applies a command at the next index, through its bytes.
pub(crate) fn apply(state: &mut MetaState, command: &Command) -> Outcome {
    let command = Command::decode(&command.encode()).expect("what is written can be read");
    let outcome = state.apply(state.applied_index() + 1, &command);
    assert_eq!(state.fault(), None, "after {command:?}");
    outcome
}

pub(crate) fn version_of(state: &MetaState, node: u32) -> Version {
    state.member(NodeNumber(node)).expect("a member").version
}

pub(crate) fn set_state(state: &mut MetaState, node: u32, to: MemberState) -> Outcome {
    let expected = version_of(state, node);
    apply(state, &Command::SetMemberState { number: NodeNumber(node), expected, to })
}
