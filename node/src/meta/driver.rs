//! What comes next for a job: a pure function of the job, the map and what the shard's leader says.
//!
//! Whoever leads the meta group asks this for every job that runs, whenever it has news of the shard, and sends on what
//! it says. Nothing about a job's progress is kept anywhere but in the state and in the shard's own configuration, so a
//! new leader of the meta group goes on where the last one was; asking twice, or acting twice, does no harm:
//!
//! - Every order to a shard names the configuration that it changes, by its index: the shard's leader refuses it once
//!   the configuration is another (`docs/architecture.md`, "The meta group").
//! - The map is brought up to date first: nothing is ordered on top of a configuration that it does not know.
//!
//! The way of a change: the new replica is added as a learner; catches up; is promoted, and the old one demoted, in
//! one joint change, which the shard leaves by itself; the old one is removed. Where the old one leads, the leadership
//! moves first. Where it is the only voter, the new one is promoted beside it, takes the leadership, and then the old
//! one is demoted.

use krita_raft::ReplicaId;

use crate::meta::command::Command;
use crate::meta::job::{Change, Job, JobKind, JobState};
use crate::meta::map::{Replica, Role};
use crate::meta::state::MetaState;
use crate::meta::types::{NodeNumber, ShardNumber, node_of};

/// What the leader of a shard says of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardView {
    /// Where the configuration stands in the shard's own log. It is committed.
    pub configuration_index: u64,
    /// The configuration, sorted by id.
    pub replicas: Vec<Replica>,
    /// Who leads.
    pub leader: ReplicaId,
    /// The learners whose logs have kept up with the leader's for a round of catching up.
    pub caught_up: Vec<ReplicaId>,
}

/// What a shard's leader is to do. It does so only while the shard's configuration is the one with this index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardOrder {
    /// Which shard.
    pub shard: ShardNumber,
    /// The configuration that this changes.
    pub configuration_index: u64,
    /// What to do.
    pub action: ShardAction,
}

/// What a shard's leader can be told to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShardAction {
    /// Adds a new replica as a learner.
    AddLearner(ReplicaId),
    /// Makes a learner a voter and a voter a learner, both at once where both are given.
    Swap {
        /// A learner that has caught up.
        promote: Option<ReplicaId>,
        /// A voter that does not lead.
        demote: Option<ReplicaId>,
    },
    /// Takes a learner out of the group.
    RemoveLearner(ReplicaId),
    /// Hands the leadership to a voter.
    TransferLeader(ReplicaId),
}

/// What comes next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing, until something has changed.
    Wait(Waiting),
    /// Propose this in shard 0.
    Propose(Command),
    /// Send this to the shard's leader.
    Order(ShardOrder),
}

/// What a job waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Waiting {
    /// The shard's leader, which has not been heard.
    ForLeader,
    /// The new replica, which catches up.
    ForCatchUp,
    /// The shard, which leaves its joint configuration by itself.
    ForJointEnd,
    /// A voter that can take the leadership, or more live voters.
    ForVoters,
    /// Other jobs, which empty the node.
    ForOthers,
    /// Nothing: it has ended.
    HasEnded,
}

/// The command by which the map follows a shard's configuration, if it does not yet.
pub fn follow(state: &MetaState, shard: ShardNumber, view: &ShardView) -> Option<Command> {
    let known = state.map().shard(shard)?;
    (view.configuration_index > known.configuration_index).then(|| Command::RecordConfiguration {
        shard,
        configuration_index: view.configuration_index,
        replicas: view.replicas.clone(),
    })
}

/// What comes next for `job`. `view` is the newest that the shard's leader has said; `is_live` says which nodes answer
/// at this moment.
pub fn next(
    state: &MetaState,
    job: &Job,
    view: Option<&ShardView>,
    is_live: impl Fn(NodeNumber) -> bool,
) -> Next {
    if job.state.has_ended() {
        return Next::Wait(Waiting::HasEnded);
    }
    match job.kind {
        JobKind::Change(change) => {
            let Some(view) = view else { return Next::Wait(Waiting::ForLeader) };
            if let Some(command) = follow(state, change.shard, view) {
                return Next::Propose(command);
            }
            let shard = state.map().shard(change.shard).expect("a job's shard is in the map");
            if view.configuration_index < shard.configuration_index {
                // An older leader has spoken.
                return Next::Wait(Waiting::ForLeader);
            }
            ChangeDriver { state, job, change, view, is_live }.next()
        }
        JobKind::Drain(node) => {
            let (held, of_meta) = state.map().held_by(node);
            node_job_next(job, held - of_meta, true)
        }
        JobKind::Decommission(node) => {
            let (held, of_meta) = state.map().held_by(node);
            node_job_next(job, held - of_meta, false)
        }
    }
}

/// Tells how empty the node is; a drain ends when it is.
fn node_job_next(job: &Job, held: u64, ends: bool) -> Next {
    let done = job.total.saturating_sub(held);
    if held == 0 && ends {
        return Next::Propose(Command::FinishJob {
            job: job.number,
            expected: job.version,
            state: JobState::Done,
            failure: String::new(),
        });
    }
    if done > job.done {
        return Next::Propose(Command::ReportProgress { job: job.number, expected: job.version, done });
    }
    Next::Wait(Waiting::ForOthers)
}

struct ChangeDriver<'a, IsLive> {
    state: &'a MetaState,
    job: &'a Job,
    change: Change,
    view: &'a ShardView,
    is_live: IsLive,
}

impl<IsLive: Fn(NodeNumber) -> bool> ChangeDriver<'_, IsLive> {
    fn next(&self) -> Next {
        if self.view.replicas.iter().any(|replica| replica.role.is_half()) {
            return Next::Wait(Waiting::ForJointEnd);
        }
        if self.change.is_reached(&self.view.replicas) {
            return self.finish(JobState::Done, "");
        }
        let enters = self.change.enters.map(|id| (id, self.role(id)));
        // Once the new replica votes, going on is the shortest way to a good configuration.
        let is_committed = matches!(enters, Some((_, Some(Role::Voter))));
        if self.job.state == JobState::Cancelling && !is_committed {
            return self.undo();
        }
        match enters {
            Some((id, _)) if !is_committed && self.cannot_take(id) => {
                Next::Propose(Command::CancelJob { job: self.job.number, expected: self.job.version })
            }
            Some((id, None)) if self.change.enters_new => self.order(ShardAction::AddLearner(id)),
            // It was there when the job began, and somebody has removed it.
            Some((_, None)) => {
                Next::Propose(Command::CancelJob { job: self.job.number, expected: self.job.version })
            }
            Some((id, Some(Role::Learner))) if !self.change.enters_as_learner => self.promote(id),
            Some((_, Some(Role::Learner | Role::Voter | Role::Incoming | Role::Outgoing))) | None => {
                self.leave()
            }
        }
    }

    fn promote(&self, enters: ReplicaId) -> Next {
        if !self.view.caught_up.contains(&enters) {
            return Next::Wait(Waiting::ForCatchUp);
        }
        let leaving = self.change.leaves.filter(|id| self.role(*id) == Some(Role::Voter));
        let Some(leaves) = leaving else {
            return self.swap(Some(enters), None);
        };
        if self.view.leader != leaves {
            return self.swap(Some(enters), Some(leaves));
        }
        match self.heir(leaves) {
            Some(heir) => self.order(ShardAction::TransferLeader(heir)),
            // It is the only voter that lives: the new one takes its place beside it first.
            None => self.swap(Some(enters), None),
        }
    }

    fn leave(&self) -> Next {
        let Some(leaves) = self.change.leaves else { return Next::Wait(Waiting::ForVoters) };
        match self.role(leaves) {
            Some(Role::Learner) => self.order(ShardAction::RemoveLearner(leaves)),
            Some(Role::Voter) if self.view.leader == leaves => match self.heir(leaves) {
                Some(heir) => self.order(ShardAction::TransferLeader(heir)),
                None => Next::Wait(Waiting::ForVoters),
            },
            Some(Role::Voter) => self.swap(None, Some(leaves)),
            Some(Role::Incoming | Role::Outgoing) | None => Next::Wait(Waiting::ForJointEnd),
        }
    }

    /// Changes who votes, unless that would leave fewer live voters than a majority.
    fn swap(&self, promote: Option<ReplicaId>, demote: Option<ReplicaId>) -> Next {
        let votes = |replica: &&Replica| match replica.role {
            Role::Voter => Some(replica.id) != demote,
            Role::Learner => Some(replica.id) == promote,
            Role::Incoming | Role::Outgoing => false,
        };
        let voters = || self.view.replicas.iter().filter(votes);
        let live = voters().filter(|replica| (self.is_live)(replica.node())).count();
        if live < voters().count() / 2 + 1 {
            return Next::Wait(Waiting::ForVoters);
        }
        self.order(ShardAction::Swap { promote, demote })
    }

    fn undo(&self) -> Next {
        match self.change.enters {
            Some(enters) if self.change.enters_new && self.role(enters).is_some() => {
                self.order(ShardAction::RemoveLearner(enters))
            }
            // The order to add it may still be on its way. Adding it and taking it away makes that one void.
            Some(enters)
                if self.change.enters_new && self.view.configuration_index <= self.change.base_index =>
            {
                self.order(ShardAction::AddLearner(enters))
            }
            // What leaves has left the voters already: that is not undone but finished.
            Some(_) | None => match self.change.leaves {
                Some(leaves) if self.change.enters.is_none() && self.role(leaves) == Some(Role::Learner) => {
                    self.leave()
                }
                Some(_) | None => self.give_up(),
            },
        }
    }

    fn give_up(&self) -> Next {
        match self.change.enters {
            Some(enters) if self.cannot_take(enters) => {
                self.finish(JobState::Failed, "the node that was to take a replica cannot")
            }
            Some(_) | None => self.finish(JobState::Cancelled, ""),
        }
    }

    /// The node of the replica that enters has been declared down, or is on its way out itself.
    fn cannot_take(&self, enters: ReplicaId) -> bool {
        let member = self.state.member(node_of(enters));
        member.is_none_or(|member| member.is_down() || member.state.is_leaving())
    }

    /// A live voter other than `leaves` that can lead; the preferred one first.
    fn heir(&self, leaves: ReplicaId) -> Option<ReplicaId> {
        let preferred = self.state.map().shard(self.change.shard).map(|shard| shard.preferred_leader);
        let can = |replica: &&Replica| {
            replica.role == Role::Voter && replica.id != leaves && (self.is_live)(replica.node())
        };
        let candidates = || self.view.replicas.iter().filter(can).map(|replica| replica.id);
        candidates().find(|id| Some(*id) == preferred).or_else(|| candidates().next())
    }

    fn role(&self, id: ReplicaId) -> Option<Role> {
        self.view.replicas.iter().find(|replica| replica.id == id).map(|replica| replica.role)
    }

    fn order(&self, action: ShardAction) -> Next {
        let (shard, configuration_index) = (self.change.shard, self.view.configuration_index);
        Next::Order(ShardOrder { shard, configuration_index, action })
    }

    fn finish(&self, state: JobState, failure: &str) -> Next {
        Next::Propose(Command::FinishJob {
            job: self.job.number,
            expected: self.job.version,
            state,
            failure: failure.to_owned(),
        })
    }
}
