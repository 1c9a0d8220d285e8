//! Applying what concerns jobs: progress, cancelling, ending.

use crate::meta::job::{Change, Job, JobKind, JobState};
use crate::meta::map::{Role, Shard};
use crate::meta::member::MemberState;
use crate::meta::refusal::{Effect, Outcome, Refusal};
use crate::meta::state::{MetaState, check_version};
use crate::meta::types::{FAILURE_BYTES_MAX, JobNumber, META_SHARD, NodeNumber, Version};

impl MetaState {
    pub(crate) fn report_progress(
        &mut self,
        at: Version,
        number: JobNumber,
        expected: Version,
        done: u64,
    ) -> Outcome {
        self.expect_running(number, expected)?;
        let job = self.jobs.get_mut(&number).expect("it was found above");
        if job.done == done {
            return Ok(Effect::Unchanged);
        }
        job.done = done;
        job.total = job.total.max(done);
        job.version = at;
        Ok(Effect::Changed)
    }

    /// A change is undone by its driver; a node that is being emptied is called back at once.
    pub(crate) fn cancel_job(&mut self, at: Version, number: JobNumber, expected: Version) -> Outcome {
        let job = self.expect_running(number, expected)?;
        match job.kind {
            JobKind::Change(_) => {
                if job.state == JobState::Cancelling {
                    return Ok(Effect::Unchanged);
                }
                let job = self.jobs.get_mut(&number).expect("it was found above");
                job.state = JobState::Cancelling;
                job.version = at;
            }
            JobKind::Drain(node) | JobKind::Decommission(node) => self.call_back(at, number, node)?,
        }
        Ok(Effect::Changed)
    }

    fn call_back(&mut self, at: Version, job: JobNumber, node: NodeNumber) -> Result<(), Refusal> {
        let follows = self.map.shards[META_SHARD.0 as usize].replica_on(node).is_some();
        let member = self.members.get_mut(&node).ok_or(Refusal::UnknownMember(node))?;
        if member.state == MemberState::Retired {
            return Err(Refusal::Job { job, why: "the node's data directory is gone" });
        }
        member.state = if follows { MemberState::Active } else { MemberState::Joining };
        member.version = at;
        self.end_node_jobs(at, node, |kind| match kind {
            JobKind::Drain(_) | JobKind::Decommission(_) => Some((JobState::Cancelled, "")),
            JobKind::Change(_) => None,
        });
        Ok(())
    }

    pub(crate) fn finish_job(
        &mut self,
        at: Version,
        number: JobNumber,
        expected: Version,
        (state, failure): (JobState, &str),
    ) -> Outcome {
        let job = self.expect_running(number, expected)?;
        if failure.len() > FAILURE_BYTES_MAX || (state == JobState::Failed) == failure.is_empty() {
            return Err(Refusal::Invalid("a job that failed says why, in at most 256 bytes; no other does"));
        }
        if let Some(why) = self.cannot_end(job, state) {
            return Err(Refusal::Job { job: number, why });
        }
        if let JobKind::Change(change) = job.kind {
            let shard = &mut self.map.shards[change.shard.0 as usize];
            shard.job = None;
            shard.version = at;
        }
        let job = self.jobs.get_mut(&number).expect("it was found above");
        job.state = state;
        job.version = at;
        job.failure = failure.to_owned();
        if state == JobState::Done {
            job.done = job.total;
        }
        self.forget_old_jobs();
        Ok(Effect::Changed)
    }

    /// Why a job cannot end so; `None`: it can.
    fn cannot_end(&self, job: &Job, state: JobState) -> Option<&'static str> {
        match (job.kind, state) {
            (_, JobState::Running | JobState::Cancelling) => Some("this is no end"),
            (JobKind::Change(change), JobState::Done) => {
                let shard = &self.map.shards[change.shard.0 as usize];
                (!change.is_reached(&shard.replicas)).then_some("its aim is not reached")
            }
            (JobKind::Change(change), JobState::Cancelled | JobState::Failed) => {
                if job.state != JobState::Cancelling {
                    return Some("it was not cancelled");
                }
                not_undone(&change, &self.map.shards[change.shard.0 as usize])
            }
            (JobKind::Drain(node), JobState::Done) => {
                let (held, of_meta) = self.map.held_by(node);
                (held > of_meta).then_some("the node is not empty")
            }
            (JobKind::Decommission(_), JobState::Done) => Some("it ends when the node is removed"),
            (JobKind::Drain(_) | JobKind::Decommission(_), JobState::Cancelled | JobState::Failed) => {
                Some("a node is called back by cancelling the job")
            }
        }
    }

    fn expect_running(&self, number: JobNumber, expected: Version) -> Result<&Job, Refusal> {
        let job = self.jobs.get(&number).ok_or(Refusal::UnknownJob(number))?;
        if job.state.has_ended() {
            return Err(Refusal::UnknownJob(number));
        }
        check_version(expected, job.version)?;
        Ok(job)
    }
}

/// Why a change cannot count as undone; `None`: the shard is as if it had never begun.
///
/// Where a new replica was made, an order to add it may be on its way until the configuration has changed, since orders
/// name the configuration that they change. Until then the job may not end: the replica could appear on a node that
/// has been removed meanwhile. Other orders name replicas that are there, and come to nothing worse than a
/// configuration that the planner will change again.
fn not_undone(change: &Change, shard: &Shard) -> Option<&'static str> {
    if change.enters_new && shard.configuration_index <= change.base_index {
        return Some("an order for it may be on its way: the configuration has not changed since");
    }
    if shard.is_joint() {
        return Some("the configuration is joint");
    }
    let entered = change.enters.and_then(|id| shard.replica(id)).map(|replica| replica.role);
    match entered {
        None => None,
        Some(Role::Learner) if !change.enters_new => None,
        Some(Role::Learner | Role::Voter | Role::Incoming | Role::Outgoing) => {
            Some("the replica that enters is there")
        }
    }
}
