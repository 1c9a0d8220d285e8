//! Applying what concerns shards: changes begin, configurations are followed, leaders are preferred.

use krita_raft::ReplicaId;

use crate::meta::command::{Enters, StartChange};
use crate::meta::job::{Change, JobKind};
use crate::meta::map::{REPLICAS_MAX, Replica, Role, Shard, configuration_fault};
use crate::meta::member::MemberState;
use crate::meta::refusal::{Effect, Outcome, Refusal};
use crate::meta::state::{MetaState, check_version, new_job};
use crate::meta::types::{
    GENERATION_MAX, JOBS_RUNNING_MAX, JobNumber, META_SHARD, NodeNumber, ShardNumber, Version, generation_of,
    node_of, replica_id,
};

impl MetaState {
    pub(crate) fn start_change(&mut self, at: Version, start: &StartChange) -> Outcome {
        let shard = self.expect_shard(start.shard, start.expected)?;
        if let Some(job) = shard.job {
            return Err(Refusal::ShardBusy(job));
        }
        let change = self.change(shard, start)?;
        self.check_quorum(shard, &change)?;
        if self.jobs_running() >= JOBS_RUNNING_MAX {
            return Err(Refusal::Full("jobs"));
        }
        self.jobs_numbered += 1;
        let job = JobNumber(self.jobs_numbered);
        self.jobs.insert(job, new_job(job, at, JobKind::Change(change), 0));
        let shard = &mut self.map.shards[start.shard.0 as usize];
        shard.job = Some(job);
        shard.version = at;
        if change.enters_new {
            shard.generation_given += 1;
        }
        Ok(Effect::JobStarted { job, enters: change.enters })
    }

    /// What the job will aim at, if that fits the shard as it is.
    fn change(&self, shard: &Shard, start: &StartChange) -> Result<Change, Refusal> {
        let refused = |what| Err(Refusal::Configuration { shard: start.shard, what });
        if shard.is_joint() {
            return refused("a change is under way in its own configuration");
        }
        let is_meta = start.shard == META_SHARD;
        if !is_meta && (start.enters_as_learner || start.leaves_to_learner) {
            return refused("only the meta group keeps learners");
        }
        let enters = match start.enters {
            Enters::Nobody if start.enters_as_learner => return refused("nobody enters"),
            Enters::Nobody => None,
            Enters::NewOn(node) => Some(self.new_replica(shard, start.shard, node)?),
            Enters::Existing(id) => {
                let is_learner = shard.replica(id).is_some_and(|replica| replica.role == Role::Learner);
                if !is_learner || start.enters_as_learner {
                    return refused("what is to be promoted is no learner");
                }
                self.check_receiver(start.shard, node_of(id))?;
                Some(id)
            }
        };
        match start.leaves.map(|id| shard.replica(id)) {
            None if enters.is_none() => return refused("nobody enters and nobody leaves"),
            None => {}
            Some(None) => return refused("what is to leave is not there"),
            Some(Some(leaving)) => {
                if enters == Some(leaving.id) {
                    return refused("a replica enters and leaves at once");
                }
                if start.leaves_to_learner && leaving.role == Role::Learner {
                    return refused("what is to be demoted is a learner already");
                }
            }
        }
        Ok(Change {
            shard: start.shard,
            enters,
            enters_new: matches!(start.enters, Enters::NewOn(_)),
            enters_as_learner: start.enters_as_learner,
            leaves: start.leaves,
            leaves_to_learner: start.leaves_to_learner,
            reason: start.reason,
            base_index: shard.configuration_index,
        })
    }

    fn new_replica(
        &self,
        shard: &Shard,
        number: ShardNumber,
        node: NodeNumber,
    ) -> Result<ReplicaId, Refusal> {
        self.check_receiver(number, node)?;
        let refused = |what| Err(Refusal::Configuration { shard: number, what });
        if shard.replica_on(node).is_some() {
            return refused("the node has a replica of the shard already");
        }
        if number != META_SHARD && shard.replicas.len() + 1 > REPLICAS_MAX {
            return refused("too many replicas");
        }
        if shard.generation_given >= GENERATION_MAX {
            return Err(Refusal::Full("generations of a shard's replicas"));
        }
        Ok(replica_id(number, node, shard.generation_given + 1))
    }

    /// Whether a member may be given a replica, or a vote.
    fn check_receiver(&self, shard: ShardNumber, node: NodeNumber) -> Result<(), Refusal> {
        let member = self.member(node).ok_or(Refusal::UnknownMember(node))?;
        let may = match member.state {
            MemberState::Active => true,
            MemberState::Joining | MemberState::Draining => shard == META_SHARD,
            MemberState::Decommissioning | MemberState::Retired => false,
        };
        if !may {
            return Err(Refusal::Configuration { shard, what: "the node takes no replicas in its state" });
        }
        if member.is_down() {
            return Err(Refusal::Configuration { shard, what: "the node is down" });
        }
        Ok(())
    }

    /// Before and after the change, a majority of the voters is not known to be down.
    fn check_quorum(&self, shard: &Shard, change: &Change) -> Result<(), Refusal> {
        let target = change.target(&shard.replicas);
        for replicas in [&shard.replicas, &target] {
            let voters = || replicas.iter().filter(|replica| replica.role.votes_next());
            let is_live =
                |replica: &&Replica| self.member(replica.node()).is_some_and(|member| !member.is_down());
            let live = voters().filter(is_live).count() as u64;
            let quorum = voters().count() as u64 / 2 + 1;
            if live < quorum {
                return Err(Refusal::QuorumAtRisk { shard: change.shard, live, quorum });
            }
        }
        Ok(())
    }

    pub(crate) fn record_configuration(
        &mut self,
        at: Version,
        number: ShardNumber,
        configuration_index: u64,
        replicas: &[Replica],
    ) -> Outcome {
        let shard = self.map.shard(number).ok_or(Refusal::UnknownShard(number))?;
        let known = shard.configuration_index;
        if configuration_index == known && shard.replicas == replicas {
            return Ok(Effect::Unchanged);
        }
        if configuration_index <= known {
            return Err(Refusal::Stale { shard: number, known });
        }
        if let Some(what) = configuration_fault(number, replicas) {
            return Err(Refusal::Configuration { shard: number, what });
        }
        let mut seen = shard.generation_seen;
        for id in replicas.iter().map(|replica| replica.id) {
            if shard.replica(id).is_some() {
                continue;
            }
            let generation = generation_of(id);
            if generation <= shard.generation_seen || generation > shard.generation_given {
                let what = "it names a replica that was never made, or is gone";
                return Err(Refusal::Configuration { shard: number, what });
            }
            let node = node_of(id);
            self.member(node).ok_or(Refusal::UnknownMember(node))?;
            seen = seen.max(generation);
        }
        let preferred_leader = self.preferred_after(shard, replicas);
        let shard = &mut self.map.shards[number.0 as usize];
        let is_seen = shard.replicas != replicas;
        shard.generation_seen = seen;
        shard.configuration_index = configuration_index;
        shard.replicas = replicas.to_vec();
        shard.preferred_leader = preferred_leader;
        shard.version = at;
        if is_seen {
            self.map.epoch += 1;
        }
        Ok(Effect::Changed)
    }

    /// Who should lead with these replicas: who should before; if that one has left, who took its place; otherwise
    /// the first that votes.
    fn preferred_after(&self, shard: &Shard, replicas: &[Replica]) -> ReplicaId {
        let votes =
            |id: &ReplicaId| replicas.iter().any(|replica| replica.id == *id && replica.role.votes_next());
        let before = shard.preferred_leader;
        if votes(&before) {
            return before;
        }
        let successor = shard.job.and_then(|job| self.job(job)).and_then(|job| match job.kind {
            JobKind::Change(change) if change.leaves == Some(before) => change.enters,
            JobKind::Change(_) | JobKind::Drain(_) | JobKind::Decommission(_) => None,
        });
        let first = || replicas.iter().find(|replica| replica.role.votes_next()).map(|replica| replica.id);
        successor.filter(votes).or_else(first).expect("a configuration without fault has voters")
    }

    pub(crate) fn prefer_leader(
        &mut self,
        at: Version,
        number: ShardNumber,
        expected: Version,
        replica: ReplicaId,
    ) -> Outcome {
        let shard = self.expect_shard(number, expected)?;
        if !shard.replica(replica).is_some_and(|replica| replica.role.votes_next()) {
            return Err(Refusal::Configuration { shard: number, what: "who should lead does not vote" });
        }
        if shard.preferred_leader == replica {
            return Ok(Effect::Unchanged);
        }
        let shard = &mut self.map.shards[number.0 as usize];
        shard.preferred_leader = replica;
        shard.version = at;
        self.map.epoch += 1;
        Ok(Effect::Changed)
    }

    fn expect_shard(&self, number: ShardNumber, expected: Version) -> Result<&Shard, Refusal> {
        let shard = self.map.shard(number).ok_or(Refusal::UnknownShard(number))?;
        check_version(expected, shard.version)?;
        Ok(shard)
    }
}
