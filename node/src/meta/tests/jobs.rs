//! The way of a change, told step by step.

use super::{apply, formed};
use crate::meta::driver::{Next, ShardAction, ShardView, Waiting, next};
use crate::meta::map::{Replica, Role};
use crate::meta::refusal::{Effect, Refusal};
use crate::meta::state::MetaState;
use crate::meta::{
    Change, Command, Enters, JobKind, JobNumber, JobState, NodeNumber, Reason, ShardNumber, StartChange,
    Version, replica_id,
};

const SHARD: ShardNumber = ShardNumber(1);

/// One shard on nodes 1 to `voters` of four; a job moves the replica of node 1 to node 4.
struct Story {
    state: MetaState,
    view: ShardView,
}

impl Story {
    fn begin(voters: u32) -> Self {
        let mut state = formed(4, 1, voters);
        let id = |node| replica_id(SHARD, NodeNumber(node), 0);
        let replicas: Vec<Replica> =
            (1..=voters).map(|node| Replica { id: id(node), role: Role::Voter }).collect();
        state.map.shards[1].replicas = replicas.clone();
        state.map.shards[1].preferred_leader = id(1);
        let start = StartChange {
            shard: SHARD,
            expected: Version(0),
            enters: Enters::NewOn(NodeNumber(4)),
            enters_as_learner: false,
            leaves: Some(id(1)),
            leaves_to_learner: false,
            reason: Reason::Operator,
        };
        let started = apply(&mut state, &Command::StartChange(start));
        let enters = Some(replica_id(SHARD, NodeNumber(4), 1));
        assert_eq!(started, Ok(Effect::JobStarted { job: JobNumber(1), enters }));
        let again = apply(&mut state, &Command::StartChange(StartChange { expected: Version(1), ..start }));
        assert_eq!(again, Err(Refusal::ShardBusy(JobNumber(1))));
        Self {
            state,
            view: ShardView { configuration_index: 0, replicas, leader: id(1), caught_up: Vec::new() },
        }
    }

    fn next(&self) -> Next {
        let job = self.state.job(JobNumber(1)).expect("the job");
        // Whoever leads next reads the state from its bytes and finds the same.
        let successor = MetaState::decode(&self.state.encode()).expect("a state");
        let found = next(&self.state, job, Some(&self.view), |_| true);
        assert_eq!(found, next(&successor, job, Some(&self.view), |_| true));
        found
    }

    fn orders(&self, action: ShardAction) {
        match self.next() {
            Next::Order(order) => {
                assert_eq!(
                    (order.action, order.configuration_index),
                    (action, self.view.configuration_index)
                );
            }
            other => panic!("{action:?} was expected, not {other:?}"),
        }
    }

    /// The shard has another configuration; the map follows it first.
    fn becomes(&mut self, replicas: &[(u32, u32, Role)]) {
        let replica = |(node, generation, role): &(u32, u32, Role)| Replica {
            id: replica_id(SHARD, NodeNumber(*node), *generation),
            role: *role,
        };
        self.view.replicas = replicas.iter().map(replica).collect();
        self.view.replicas.sort_unstable();
        self.view.configuration_index += 5;
        match self.next() {
            Next::Propose(command @ Command::RecordConfiguration { .. }) => {
                assert_eq!(apply(&mut self.state, &command), Ok(Effect::Changed));
            }
            other => panic!("the map follows first, not {other:?}"),
        }
    }

    fn proposes(&mut self) -> Command {
        match self.next() {
            Next::Propose(command) => {
                assert_eq!(apply(&mut self.state, &command), Ok(Effect::Changed));
                command
            }
            other => panic!("a command was expected, not {other:?}"),
        }
    }

    fn job_state(&self) -> JobState {
        self.state.job(JobNumber(1)).expect("the job").state
    }

    fn cancel(&mut self) {
        let expected = self.state.job(JobNumber(1)).expect("the job").version;
        let cancel = Command::CancelJob { job: JobNumber(1), expected };
        assert_eq!(apply(&mut self.state, &cancel), Ok(Effect::Changed));
    }
}

use Role::{Incoming, Learner, Outgoing, Voter};

#[test]
fn a_replica_moves() {
    let mut story = Story::begin(3);
    let new = replica_id(SHARD, NodeNumber(4), 1);
    let old = replica_id(SHARD, NodeNumber(1), 0);
    let second = replica_id(SHARD, NodeNumber(2), 0);
    story.orders(ShardAction::AddLearner(new));
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter), (4, 1, Learner)]);
    assert_eq!(story.next(), Next::Wait(Waiting::ForCatchUp));
    story.view.caught_up = vec![new];
    story.orders(ShardAction::TransferLeader(second));
    story.view.leader = second;
    story.orders(ShardAction::Swap { promote: Some(new), demote: Some(old) });
    story.becomes(&[(1, 0, Outgoing), (2, 0, Voter), (3, 0, Voter), (4, 1, Incoming)]);
    assert_eq!(story.next(), Next::Wait(Waiting::ForJointEnd));
    assert_eq!(story.state.map().shard(SHARD).map(|shard| shard.preferred_leader), Some(new));
    story.becomes(&[(1, 0, Learner), (2, 0, Voter), (3, 0, Voter), (4, 1, Voter)]);
    story.orders(ShardAction::RemoveLearner(old));
    story.becomes(&[(2, 0, Voter), (3, 0, Voter), (4, 1, Voter)]);
    story.proposes();
    assert_eq!(story.job_state(), JobState::Done);
    assert_eq!(story.state.map().shard(SHARD).and_then(|shard| shard.job), None);
    assert_eq!(story.next(), Next::Wait(Waiting::HasEnded));
}

#[test]
fn the_only_voter_moves_by_having_a_second_for_a_while() {
    let mut story = Story::begin(1);
    let new = replica_id(SHARD, NodeNumber(4), 1);
    let old = replica_id(SHARD, NodeNumber(1), 0);
    story.orders(ShardAction::AddLearner(new));
    story.becomes(&[(1, 0, Voter), (4, 1, Learner)]);
    story.view.caught_up = vec![new];
    story.orders(ShardAction::Swap { promote: Some(new), demote: None });
    story.becomes(&[(1, 0, Voter), (4, 1, Voter)]);
    story.orders(ShardAction::TransferLeader(new));
    story.view.leader = new;
    story.orders(ShardAction::Swap { promote: None, demote: Some(old) });
    story.becomes(&[(1, 0, Learner), (4, 1, Voter)]);
    story.orders(ShardAction::RemoveLearner(old));
    story.becomes(&[(4, 1, Voter)]);
    story.proposes();
    assert_eq!(story.job_state(), JobState::Done);
}

#[test]
fn a_cancelled_job_that_did_nothing_makes_late_orders_void_first() {
    let mut story = Story::begin(3);
    story.cancel();
    let expected = story.state.job(JobNumber(1)).expect("the job").version;
    let state = JobState::Cancelled;
    let early = Command::FinishJob { job: JobNumber(1), expected, state, failure: String::new() };
    assert!(matches!(apply(&mut story.state, &early), Err(Refusal::Job { .. })));
    let new = replica_id(SHARD, NodeNumber(4), 1);
    story.orders(ShardAction::AddLearner(new));
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter), (4, 1, Learner)]);
    story.orders(ShardAction::RemoveLearner(new));
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter)]);
    story.proposes();
    assert_eq!(story.job_state(), JobState::Cancelled);
}

#[test]
fn a_cancelled_job_takes_its_learner_back() {
    let mut story = Story::begin(3);
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter), (4, 1, Learner)]);
    story.cancel();
    story.orders(ShardAction::RemoveLearner(replica_id(SHARD, NodeNumber(4), 1)));
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter)]);
    story.proposes();
    assert_eq!(story.job_state(), JobState::Cancelled);
    // The id is spent: a configuration that names it again is not taken over.
    let ghost = replica_id(SHARD, NodeNumber(4), 1);
    let mut replicas = story.view.replicas.clone();
    replicas.push(Replica { id: ghost, role: Learner });
    let record = Command::RecordConfiguration { shard: SHARD, configuration_index: 99, replicas };
    assert!(matches!(apply(&mut story.state, &record), Err(Refusal::Configuration { .. })));
}

#[test]
fn once_the_new_replica_votes_a_cancelled_job_is_finished() {
    let mut story = Story::begin(3);
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter), (4, 1, Learner)]);
    story.becomes(&[(1, 0, Learner), (2, 0, Voter), (3, 0, Voter), (4, 1, Voter)]);
    story.cancel();
    story.orders(ShardAction::RemoveLearner(replica_id(SHARD, NodeNumber(1), 0)));
    story.becomes(&[(2, 0, Voter), (3, 0, Voter), (4, 1, Voter)]);
    story.proposes();
    assert_eq!(story.job_state(), JobState::Done);
}

#[test]
fn a_job_whose_node_dies_gives_up_and_says_why() {
    let mut story = Story::begin(3);
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter), (4, 1, Learner)]);
    let down = Command::ReportDown { number: NodeNumber(4), expected: Version(0), down_since_ms: 5 };
    assert_eq!(apply(&mut story.state, &down), Ok(Effect::Changed));
    assert!(matches!(story.proposes(), Command::CancelJob { .. }));
    story.orders(ShardAction::RemoveLearner(replica_id(SHARD, NodeNumber(4), 1)));
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter)]);
    story.proposes();
    assert_eq!(story.job_state(), JobState::Failed);
    let job = story.state.job(JobNumber(1)).expect("the job");
    assert!(!job.failure.is_empty());
    assert!(matches!(job.kind, JobKind::Change(Change { shard: SHARD, .. })));
}

#[test]
fn what_an_older_leader_says_moves_nothing() {
    let mut story = Story::begin(3);
    let before = story.view.clone();
    story.becomes(&[(1, 0, Voter), (2, 0, Voter), (3, 0, Voter), (4, 1, Learner)]);
    story.view = before;
    assert_eq!(story.next(), Next::Wait(Waiting::ForLeader));
    let stale = Command::RecordConfiguration {
        shard: SHARD,
        configuration_index: 3,
        replicas: story.view.replicas.clone(),
    };
    assert_eq!(apply(&mut story.state, &stale), Err(Refusal::Stale { shard: SHARD, known: 5 }));
}

#[test]
fn a_change_that_would_cost_the_quorum_is_refused() {
    let mut state = formed(3, 1, 3);
    for node in [2, 3] {
        let down = Command::ReportDown { number: NodeNumber(node), expected: Version(0), down_since_ms: 5 };
        assert!(apply(&mut state, &down).is_ok());
    }
    let remove = |node| {
        Command::StartChange(StartChange {
            shard: SHARD,
            expected: Version(0),
            enters: Enters::Nobody,
            enters_as_learner: false,
            leaves: Some(replica_id(SHARD, NodeNumber(node), 0)),
            leaves_to_learner: false,
            reason: Reason::Operator,
        })
    };
    let refused = Err(Refusal::QuorumAtRisk { shard: SHARD, live: 1, quorum: 2 });
    assert_eq!(apply(&mut state, &remove(3)), refused);
    assert_eq!(apply(&mut state, &remove(1)), refused);
}
