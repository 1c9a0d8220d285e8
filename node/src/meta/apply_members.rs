//! Applying what concerns members: joining, states, removal.

use crate::meta::command::Join;
use crate::meta::job::{JobKind, JobState};
use crate::meta::member::{Member, MemberState, NodeDescription, Tombstone, check_description};
use crate::meta::refusal::{Effect, Outcome, Refusal};
use crate::meta::settings::Setting;
use crate::meta::state::{MetaState, check_version, new_job};
use crate::meta::types::{
    JOBS_RUNNING_MAX, JobNumber, MEMBERS_MAX, META_SHARD, NodeNumber, Version, node_of,
};
use crate::placement::NODE_NUMBER_MAX;

impl MetaState {
    pub(crate) fn join(&mut self, at: Version, join: &Join) -> Outcome {
        let node = &join.node;
        if join.cluster_name != self.cluster_name {
            let (wanted, own) = (join.cluster_name.clone(), self.cluster_name.clone());
            return Err(Refusal::WrongClusterName { wanted, own });
        }
        if join.cluster_id.is_some_and(|id| id != self.cluster_id) {
            return Err(Refusal::WrongClusterId);
        }
        check_description(node)?;
        if let Some(number) = self.known_directory(node)? {
            return Ok(Effect::AlreadyMember { number });
        }
        self.check_features(node)?;
        let retired = self.old_self(node)?;
        self.check_address(node, retired)?;
        if self.members.len() >= MEMBERS_MAX {
            return Err(Refusal::Full("members"));
        }
        if self.nodes_numbered >= NODE_NUMBER_MAX {
            return Err(Refusal::Full("node numbers, of which none is given twice"));
        }
        if let Some(old) = retired {
            self.retire(at, old);
        }
        self.nodes_numbered += 1;
        let number = NodeNumber(self.nodes_numbered);
        let state = MemberState::Joining;
        let member = Member { number, version: at, state, down_since_ms: 0, node: node.clone() };
        self.members.insert(number, member);
        Ok(Effect::Joined { number, retired })
    }

    /// The member whose data directory this is, or why it can be none any more.
    fn known_directory(&self, node: &NodeDescription) -> Result<Option<NodeNumber>, Refusal> {
        if let Some(number) = self.removed_uuids.get(&node.node_uuid) {
            return Err(Refusal::DirectoryRemoved(*number));
        }
        let Some(member) = self.members.values().find(|member| member.node.node_uuid == node.node_uuid)
        else {
            return Ok(None);
        };
        if member.state == MemberState::Retired {
            return Err(Refusal::DirectoryRemoved(member.number));
        }
        if member.node.node_id != node.node_id {
            let (number, node_id) = (member.number, member.node.node_id.clone());
            return Err(Refusal::DirectoryRenamed { number, node_id });
        }
        Ok(Some(member.number))
    }

    fn check_features(&self, node: &NodeDescription) -> Result<(), Refusal> {
        let (lowest, highest, active) = (node.feature_min, node.feature_max, self.feature);
        if (lowest..=highest).contains(&active) {
            return Ok(());
        }
        Err(Refusal::VersionOutOfBounds { lowest, highest, active })
    }

    /// The member whose name the node has and whose data directory it has lost: it is at the same address, where no
    /// two processes can be, or has been seen to be down. Otherwise two nodes were given one name.
    fn old_self(&self, node: &NodeDescription) -> Result<Option<NodeNumber>, Refusal> {
        let holds_name =
            |member: &&Member| member.state != MemberState::Retired && member.node.node_id == node.node_id;
        let Some(old) = self.members.values().find(holds_name) else { return Ok(None) };
        if old.node.address == node.address || old.is_down() {
            return Ok(Some(old.number));
        }
        Err(Refusal::DuplicateNodeId { node_id: node.node_id.clone(), holder: old.number })
    }

    fn check_address(&self, node: &NodeDescription, except: Option<NodeNumber>) -> Result<(), Refusal> {
        let mut others = self
            .members
            .values()
            .filter(|member| member.state != MemberState::Retired && Some(member.number) != except);
        match others.find(|member| member.node.address == node.address) {
            Some(holder) => {
                Err(Refusal::AddressInUse { address: node.address.clone(), holder: holder.number })
            }
            None => Ok(()),
        }
    }

    fn retire(&mut self, at: Version, number: NodeNumber) {
        let member = self.members.get_mut(&number).expect("it was found by its name");
        member.state = MemberState::Retired;
        member.version = at;
        // A node that is to be emptied in order cannot be any more; a removal goes on.
        self.end_node_jobs(at, number, |kind| match kind {
            JobKind::Drain(_) => Some((JobState::Failed, "its data directory is gone")),
            JobKind::Decommission(_) | JobKind::Change(_) => None,
        });
    }

    pub(crate) fn update_member(
        &mut self,
        at: Version,
        number: NodeNumber,
        expected: Version,
        node: &NodeDescription,
    ) -> Outcome {
        let member = self.expect_member(number, expected)?;
        if member.state == MemberState::Retired || member.node.node_uuid != node.node_uuid {
            return Err(Refusal::DirectoryRemoved(number));
        }
        if member.node.node_id != node.node_id {
            return Err(Refusal::DirectoryRenamed { number, node_id: member.node.node_id.clone() });
        }
        if member.node == *node {
            return Ok(Effect::Unchanged);
        }
        check_description(node)?;
        self.check_features(node)?;
        self.check_address(node, Some(number))?;
        let member = self.members.get_mut(&number).expect("it was found above");
        member.node = node.clone();
        member.version = at;
        Ok(Effect::Changed)
    }

    pub(crate) fn report_down(
        &mut self,
        at: Version,
        number: NodeNumber,
        expected: Version,
        down_since_ms: u64,
    ) -> Outcome {
        self.expect_member(number, expected)?;
        let member = self.members.get_mut(&number).expect("it was found above");
        if member.down_since_ms == down_since_ms {
            return Ok(Effect::Unchanged);
        }
        member.down_since_ms = down_since_ms;
        member.version = at;
        Ok(Effect::Changed)
    }

    pub(crate) fn set_member_state(
        &mut self,
        at: Version,
        number: NodeNumber,
        expected: Version,
        to: MemberState,
    ) -> Outcome {
        let member = self.expect_member(number, expected)?;
        let from = member.state;
        if from == to {
            return Ok(Effect::Unchanged);
        }
        if !from.may_become(to) {
            return Err(Refusal::Transition { number, from, to });
        }
        let kind = match to {
            MemberState::Active => {
                if self.map.shards[META_SHARD.0 as usize].replica_on(number).is_none() {
                    return Err(Refusal::Configuration {
                        shard: META_SHARD,
                        what: "a member that is active follows the meta group",
                    });
                }
                None
            }
            MemberState::Draining => {
                self.check_left(number, 1)?;
                Some(JobKind::Drain(number))
            }
            MemberState::Decommissioning => {
                if from != MemberState::Joining {
                    self.check_left(number, self.settings.get(Setting::ReplicationFactor))?;
                }
                Some(JobKind::Decommission(number))
            }
            MemberState::Joining | MemberState::Retired => {
                unreachable!("may_become allows neither")
            }
        };
        if kind.is_some() && self.jobs_running() >= JOBS_RUNNING_MAX {
            return Err(Refusal::Full("jobs"));
        }
        self.end_node_jobs(at, number, |kind| match kind {
            JobKind::Drain(_) | JobKind::Decommission(_) => Some((JobState::Cancelled, "")),
            JobKind::Change(_) => None,
        });
        let member = self.members.get_mut(&number).expect("it was found above");
        member.state = to;
        member.version = at;
        match kind {
            Some(kind) => Ok(self.start_node_job(at, number, kind)),
            None => Ok(Effect::Changed),
        }
    }

    fn start_node_job(&mut self, at: Version, number: NodeNumber, kind: JobKind) -> Effect {
        self.jobs_numbered += 1;
        let job = JobNumber(self.jobs_numbered);
        let (held, of_meta) = self.map.held_by(number);
        self.jobs.insert(job, new_job(job, at, kind, held - of_meta));
        Effect::JobStarted { job, enters: None }
    }

    /// Refused if fewer than `needed` other members would hold data.
    fn check_left(&self, without: NodeNumber, needed: u64) -> Result<(), Refusal> {
        let others = |member: &&Member| member.number != without && member.state == MemberState::Active;
        let left = self.members.values().filter(others).count() as u64;
        if left < needed { Err(Refusal::TooFewLeft { left, needed }) } else { Ok(()) }
    }

    pub(crate) fn remove_member(&mut self, at: Version, number: NodeNumber, expected: Version) -> Outcome {
        let member = self.expect_member(number, expected)?;
        if !member.state.is_leaving() {
            let (from, to) = (member.state, MemberState::Decommissioning);
            return Err(Refusal::Transition { number, from, to });
        }
        let (replicas, _) = self.map.held_by(number);
        if replicas > 0 {
            return Err(Refusal::StillHolds { number, replicas });
        }
        let takes_one = |kind: &JobKind| match kind {
            JobKind::Change(change) => change.enters.is_some_and(|id| node_of(id) == number),
            JobKind::Drain(_) | JobKind::Decommission(_) => false,
        };
        let mut running = self.jobs.values().filter(|job| !job.state.has_ended());
        if let Some(job) = running.find(|job| takes_one(&job.kind)) {
            return Err(Refusal::Job { job: job.number, why: "it gives a replica to the node" });
        }
        self.end_node_jobs(at, number, |kind| match kind {
            JobKind::Decommission(_) => Some((JobState::Done, "")),
            JobKind::Drain(_) => Some((JobState::Cancelled, "")),
            JobKind::Change(_) => None,
        });
        let member = self.members.remove(&number).expect("it was found above");
        let NodeDescription { node_id, node_uuid, .. } = member.node;
        self.removed_uuids.insert(node_uuid, number);
        self.tombstones.insert(number, Tombstone { number, node_id, node_uuid, removed_at: at });
        Ok(Effect::Changed)
    }

    /// Ends the running jobs that empty a node, as `how` says.
    pub(crate) fn end_node_jobs(
        &mut self,
        at: Version,
        number: NodeNumber,
        how: impl Fn(&JobKind) -> Option<(JobState, &'static str)>,
    ) {
        for job in self.jobs.values_mut().filter(|job| !job.state.has_ended()) {
            let empties = match job.kind {
                JobKind::Drain(node) | JobKind::Decommission(node) => node == number,
                JobKind::Change(_) => false,
            };
            if let Some((state, failure)) = how(&job.kind).filter(|_| empties) {
                job.state = state;
                job.failure = failure.to_owned();
                job.version = at;
                if state == JobState::Done {
                    job.done = job.total;
                }
            }
        }
        self.forget_old_jobs();
    }

    pub(crate) fn expect_member(&self, number: NodeNumber, expected: Version) -> Result<&Member, Refusal> {
        let member = self.members.get(&number).ok_or(Refusal::UnknownMember(number))?;
        check_version(expected, member.version)?;
        Ok(member)
    }
}
