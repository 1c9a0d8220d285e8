//! Whatever commands come, invariants hold, ids are not reused, and replaying the log gives the same bytes.

use std::collections::BTreeSet;

use krita_raft::ReplicaId;
use proptest::prelude::*;

use super::{Dice, description, formed, join, uuid};
use crate::meta::access::{Grant, Rights};
use crate::meta::map::{Replica, Role};
use crate::meta::state::MetaState;
use crate::meta::{
    Command, Enters, JobKind, JobNumber, JobState, MemberState, NodeNumber, Reason, Setting, ShardNumber,
    StartChange, Version, replica_id,
};

const STATES: [MemberState; 5] = [
    MemberState::Joining,
    MemberState::Active,
    MemberState::Draining,
    MemberState::Decommissioning,
    MemberState::Retired,
];

/// Draws commands that often fit the state.
struct Chaos {
    dice: Dice,
    nodes: u32,
}

impl Chaos {
    fn version(&mut self, version: Version) -> Version {
        if self.dice.chance(5) { Version(self.dice.below(50)) } else { version }
    }

    fn node(&mut self) -> NodeNumber {
        NodeNumber(1 + self.dice.below(u64::from(self.nodes) + 2) as u32)
    }

    fn shard(&mut self, state: &MetaState) -> ShardNumber {
        ShardNumber(self.dice.below(u64::from(state.map().data_shards()) + 1) as u32)
    }

    fn command(&mut self, state: &MetaState) -> Command {
        match self.dice.below(16) {
            0 => {
                self.nodes += 1;
                let mut node = description(1 + self.dice.below(12) as u32);
                node.node_uuid = if self.dice.chance(50) { node.node_uuid } else { uuid(100 + self.nodes) };
                node.zone = format!("z{}", self.dice.below(3));
                join(node)
            }
            1 | 2 => {
                let number = self.node();
                let version = state.member(number).map_or(Version(0), |member| member.version);
                let to = self.dice.pick(&STATES).expect("not empty");
                Command::SetMemberState { number, expected: self.version(version), to }
            }
            3 => {
                let number = self.node();
                let expected = state.member(number).map_or(Version(0), |member| member.version);
                match self.dice.below(3) {
                    0 => Command::RemoveMember { number, expected },
                    1 => Command::ReportDown { number, expected, down_since_ms: self.dice.below(3) },
                    _ => Command::UpdateMember { number, expected, node: description(number.0) },
                }
            }
            4 => {
                let setting = self.dice.pick(&Setting::ALL).expect("not empty");
                let (lowest, _, highest) = setting.bounds();
                let value = lowest + self.dice.below(highest - lowest + 2);
                Command::SetSetting { setting, value, expected: state.settings().version(setting) }
            }
            5..=7 => self.start(state),
            8..=11 => self.configuration(state),
            12 => {
                let shard = self.shard(state);
                let known = state.map().shard(shard).expect("drawn from the map");
                let replica = self.dice.pick(&known.replicas).expect("a shard has replicas").id;
                Command::PreferLeader { shard, expected: self.version(known.version), replica }
            }
            13 | 14 => self.job(state),
            _ => self.access(state),
        }
    }

    fn start(&mut self, state: &MetaState) -> Command {
        let shard = self.shard(state);
        let known = state.map().shard(shard).expect("drawn from the map");
        let existing = self.dice.pick(&known.replicas).expect("a shard has replicas").id;
        let enters = match self.dice.below(4) {
            0 => Enters::Nobody,
            1 => Enters::Existing(existing),
            _ => Enters::NewOn(self.node()),
        };
        let leaves = self.dice.pick(&known.replicas).map(|replica| replica.id);
        Command::StartChange(StartChange {
            shard,
            expected: self.version(known.version),
            enters,
            enters_as_learner: shard.0 == 0 && self.dice.chance(60),
            leaves: leaves.filter(|_| self.dice.chance(60)),
            leaves_to_learner: shard.0 == 0 && self.dice.chance(30),
            reason: Reason::Operator,
        })
    }

    /// What a shard might say: the aim of its job, part of the way, the way back, or nonsense.
    fn configuration(&mut self, state: &MetaState) -> Command {
        let running: Vec<ShardNumber> =
            state.map().shards().filter(|(_, shard)| shard.job.is_some()).map(|(number, _)| number).collect();
        let shard = self.dice.pick(&running).unwrap_or_else(|| self.shard(state));
        let known = state.map().shard(shard).expect("drawn from the map");
        let change = known.job.and_then(|job| state.job(job)).and_then(|job| match job.kind {
            JobKind::Change(change) => Some(change),
            JobKind::Drain(_) | JobKind::Decommission(_) => None,
        });
        let mut replicas = known.replicas.clone();
        match (change, self.dice.below(8)) {
            (Some(change), 0..=2) => replicas = change.target(&known.replicas),
            (Some(change), 3) => {
                let learner = |id| Replica { id, role: Role::Learner };
                replicas.extend(change.enters.filter(|id| known.replica(*id).is_none()).map(learner));
            }
            (Some(change), 4) => replicas.retain(|replica| Some(replica.id) != change.enters),
            (Some(_) | None, 5) => {
                let node = NodeNumber(1 + self.dice.below(u64::from(self.nodes)) as u32);
                let id = replica_id(shard, node, self.dice.below(6) as u32);
                replicas.push(Replica { id, role: Role::Voter });
            }
            (Some(_) | None, 6) => {
                let number = self.dice.below(replicas.len() as u64) as usize;
                replicas[number].role = Role::from_number(1 + self.dice.below(4) as u8).expect("1 to 4");
            }
            (Some(_) | None, _) => {}
        }
        replicas.sort_unstable();
        let configuration_index = known.configuration_index + self.dice.below(3);
        Command::RecordConfiguration { shard, configuration_index, replicas }
    }

    fn job(&mut self, state: &MetaState) -> Command {
        let running: Vec<JobNumber> =
            state.jobs().filter(|job| !job.state.has_ended()).map(|job| job.number).collect();
        let job = self.dice.pick(&running).unwrap_or(JobNumber(1));
        let version = state.job(job).map_or(Version(0), |job| job.version);
        let expected = self.version(version);
        match self.dice.below(5) {
            0 => Command::CancelJob { job, expected },
            1 => Command::ReportProgress { job, expected, done: self.dice.below(9) },
            2 => {
                let state = JobState::Failed;
                Command::FinishJob { job, expected, state, failure: "no room".to_owned() }
            }
            roll => {
                let state = if roll == 3 { JobState::Done } else { JobState::Cancelled };
                Command::FinishJob { job, expected, state, failure: String::new() }
            }
        }
    }

    fn access(&mut self, state: &MetaState) -> Command {
        let name = format!("name{}", self.dice.below(3));
        match self.dice.below(5) {
            0 => {
                let (to, expected) = state.feature();
                Command::RaiseFeature { to: to + 1, expected }
            }
            1 => {
                let prefix = vec![0; self.dice.below(300) as usize];
                let rights = Rights::from_bits(1 + self.dice.below(7) as u32).expect("1 to 7");
                let expected = state.role(&name).map_or(Version(0), |role| role.version);
                Command::PutRole { name, expected, grants: vec![Grant { key_prefix: prefix.into(), rights }] }
            }
            2 => {
                let expected = state.role(&name).map_or(Version(0), |role| role.version);
                Command::DeleteRole { name, expected }
            }
            3 => {
                let expected = state.token(&name).map_or(Version(0), |token| token.version);
                let roles = vec![format!("name{}", self.dice.below(3))];
                Command::PutToken { name, expected, digest: [self.dice.below(4) as u8; 32], roles }
            }
            _ => {
                let expected = state.token(&name).map_or(Version(0), |token| token.version);
                Command::DeleteToken { name, expected }
            }
        }
    }
}

/// All replicas that any shard has.
fn ids(state: &MetaState) -> BTreeSet<ReplicaId> {
    state.map().shards().flat_map(|(_, shard)| &shard.replicas).map(|replica| replica.id).collect()
}

/// What clients see of the map.
fn visible(state: &MetaState) -> Vec<(Vec<Replica>, ReplicaId)> {
    state.map().shards().map(|(_, shard)| (shard.replicas.clone(), shard.preferred_leader)).collect()
}

fn run(seed: u64, commands: usize) -> (u64, u64) {
    let mut dice = Dice::new(seed);
    let nodes = 1 + dice.below(5) as u32;
    let factor = 1 + dice.below(5) as u32;
    let first = formed(nodes, 1 + dice.below(6) as u32, factor);
    let (mut state, mut replayed) = (first.clone(), first);
    let mut chaos = Chaos { dice, nodes };
    let (mut gone, mut applied, mut moved) = (BTreeSet::new(), 0, 0);
    for index in (1..).take(commands) {
        let command = chaos.command(&state);
        let (ids_before, seen_before, epoch_before) = (ids(&state), visible(&state), state.map().epoch());
        let before = state.clone();
        let outcome = state.apply(index, &command);
        assert_eq!(state.fault(), None, "seed {seed}, after {command:?}: {outcome:?}");
        if outcome.is_err() {
            let mut expected = before;
            expected.pass(index);
            assert_eq!(state, expected, "what is refused changes nothing: {command:?}");
        } else {
            applied += 1;
        }
        let ids_now = ids(&state);
        gone.extend(ids_before.difference(&ids_now).copied());
        assert!(ids_now.is_disjoint(&gone), "seed {seed}: a replica is back after {command:?}");
        let changed = visible(&state) != seen_before;
        moved += u64::from(ids_now != ids_before);
        assert_eq!(state.map().epoch() > epoch_before, changed, "the epoch grows with the map");
        assert!(state.map().epoch() >= epoch_before);
        // A second replica applies the bytes, and is restored from a snapshot now and then.
        let copy = Command::decode(&command.encode()).expect("what is written can be read");
        assert_eq!(copy, command);
        assert_eq!(replayed.apply(index, &copy), outcome);
        if chaos.dice.chance(10) {
            let bytes = replayed.encode();
            replayed = MetaState::decode(&bytes).expect("what is written can be read");
            assert_eq!(replayed.encode(), bytes);
        }
    }
    assert_eq!(state.encode(), replayed.encode(), "seed {seed}");
    assert_eq!(state, replayed);
    (applied, moved)
}

#[test]
fn invariants_hold_after_any_commands() {
    let (mut applied, mut moved) = (0, 0);
    for seed in 0..300 {
        let (applied_here, moved_here) = run(seed, 150);
        applied += applied_here;
        moved += moved_here;
    }
    // The commands are worth something: many do change the state, and many the map.
    assert!(applied > 9_000, "{applied} applied");
    assert!(moved > 400, "{moved} moved");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_snapshots_are_refused_or_are_states(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = formed(3, 4, 3).encode().to_vec();
        let position = at.index(bytes.len());
        bytes[position] = to;
        if let Ok(state) = MetaState::decode(&bytes) {
            prop_assert_eq!(state.encode().to_vec(), bytes);
            prop_assert_eq!(state.fault(), None);
        }
    }

    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Command::decode(&bytes);
        let _ = MetaState::decode(&bytes);
    }
}
