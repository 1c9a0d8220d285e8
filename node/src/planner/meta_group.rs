//! The meta group itself: every member follows it, a few vote, over zones; and who joins or leaves goes on.

use krita_raft::ReplicaId;

use crate::meta::{
    Enters, JobKind, META_SHARD, Member, MemberState, NodeNumber, Reason, Replica, Role, Setting, Shard,
    StartChange, node_of,
};
use crate::planner::score::{score, seed};
use crate::planner::table::is_lost;
use crate::planner::{Input, Step};

/// What shard 0 and the members need: at most one change of shard 0, and any number of members' states.
pub(super) fn steps(input: &Input<'_>) -> Vec<Step> {
    let group = Group { input, shard: input.state.map().shard(META_SHARD).expect("shard 0 is always there") };
    let mut steps: Vec<Step> = input.state.members().filter_map(|member| group.member_step(member)).collect();
    if group.shard.job.is_none() && !group.shard.is_joint() {
        steps.extend(group.lead().or_else(|| group.change().map(Step::Change)));
    }
    steps
}

struct Group<'a> {
    input: &'a Input<'a>,
    shard: &'a Shard,
}

impl<'a> Group<'a> {
    fn member_step(&self, member: &Member) -> Option<Step> {
        let (number, expected) = (member.number, member.version);
        let follows = self.input.nodes.get(&number).is_some_and(|view| view.alive && view.follows_meta);
        if member.state == MemberState::Joining && follows && self.shard.replica_on(number).is_some() {
            return Some(Step::Activate { number, expected });
        }
        let is_given = |kind: &JobKind| match kind {
            JobKind::Change(change) => change.enters.is_some_and(|id| node_of(id) == number),
            JobKind::Drain(_) | JobKind::Decommission(_) => false,
        };
        let mut running = self.input.state.jobs().filter(|job| !job.state.has_ended());
        let mut holds_nothing =
            || self.input.state.map().held_by(number).0 == 0 && !running.any(|job| is_given(&job.kind));
        (member.state.is_leaving() && holds_nothing()).then_some(Step::Remove { number, expected })
    }

    fn member(&self, replica: &Replica) -> &'a Member {
        self.input.state.member(replica.node()).expect("the map names members only")
    }

    fn voters(&self) -> impl Iterator<Item = &'a Replica> {
        self.shard.replicas.iter().filter(|replica| replica.role == Role::Voter)
    }

    fn is_live(&self, node: NodeNumber) -> bool {
        let is_down = self.input.state.member(node).is_none_or(Member::is_down);
        !is_down && self.input.nodes.get(&node).is_some_and(|view| view.alive)
    }

    /// Whether a voter is to be replaced.
    fn is_bad(&self, replica: &Replica) -> bool {
        let member = self.member(replica);
        let after_ms = self.input.state.settings().get(Setting::MetaReplaceAfterMs);
        member.state.is_leaving() || is_lost(self.input, member, after_ms)
    }

    /// Learners that could vote: the best first, by how few voters their zone has and then by rendezvous.
    fn candidates(&self, without: Option<ReplicaId>) -> Vec<&'a Replica> {
        let may = |replica: &&Replica| {
            let member = self.member(replica);
            let view = self.input.nodes.get(&member.number).copied().unwrap_or_default();
            let is_well = view.alive && view.follows_meta && !member.is_down();
            replica.role == Role::Learner && member.state == MemberState::Active && is_well
        };
        let mut candidates: Vec<&Replica> = self.shard.replicas.iter().filter(may).collect();
        candidates.sort_by_key(|replica| {
            let member = self.member(replica);
            let in_zone = self.voters_in(&member.node.zone, without);
            (in_zone, score(seed(b"meta"), seed(&member.node.node_uuid.0), 1), replica.id)
        });
        candidates
    }

    fn voters_in(&self, zone: &str, without: Option<ReplicaId>) -> usize {
        let counts =
            |replica: &&Replica| Some(replica.id) != without && self.member(replica).node.zone == zone;
        self.voters().filter(counts).count()
    }

    fn lead(&self) -> Option<Step> {
        let preferred = self.shard.replica(self.shard.preferred_leader)?;
        let leads_well = |replica: &Replica| self.member(replica).state == MemberState::Active;
        if leads_well(&preferred) {
            return None;
        }
        let heir = self.voters().find(|replica| leads_well(replica) && self.is_live(replica.node()))?;
        Some(Step::PreferLeader { shard: META_SHARD, expected: self.shard.version, replica: heir.id })
    }

    fn change(&self) -> Option<StartChange> {
        let voters = self.voters().count();
        let live = self.voters().filter(|replica| self.is_live(replica.node())).count();
        if live < voters / 2 + 1 {
            return None;
        }
        self.replace_voter()
            .or_else(|| self.follow())
            .or_else(|| self.count_voters(voters, live))
            .or_else(|| self.spread_voters())
            .or_else(|| self.remove_learner())
    }

    fn replace_voter(&self) -> Option<StartChange> {
        let bad = self.voters().find(|replica| self.is_bad(replica))?;
        let stays = !self.member(bad).state.is_leaving();
        if let Some(next) = self.candidates(Some(bad.id)).first() {
            return Some(self.swap(Some(next.id), Some(bad.id), stays));
        }
        // Nobody can take the vote: it goes all the same, if those who are left can do without.
        let left: Vec<&Replica> = self.voters().filter(|replica| replica.id != bad.id).collect();
        let live = left.iter().filter(|replica| self.is_live(replica.node())).count();
        let may = self.member(bad).state.is_leaving() && live > left.len() / 2;
        may.then(|| self.swap(None, Some(bad.id), false))
    }

    /// Every member has a replica.
    fn follow(&self) -> Option<StartChange> {
        let lacks = |member: &&Member| {
            let stays = !member.state.is_leaving() && !member.is_down();
            stays && self.is_live(member.number) && self.shard.replica_on(member.number).is_none()
        };
        let member = self.input.state.members().find(lacks)?;
        Some(StartChange {
            shard: META_SHARD,
            expected: self.shard.version,
            enters: Enters::NewOn(member.number),
            enters_as_learner: true,
            leaves: None,
            leaves_to_learner: false,
            reason: Reason::MetaGroup,
        })
    }

    /// As many voters as are wanted, or the largest odd number of members that are well.
    fn count_voters(&self, voters: usize, live: usize) -> Option<StartChange> {
        let settings = self.input.state.settings();
        let well = |member: &&Member| {
            member.state == MemberState::Active
                && !is_lost(self.input, member, settings.get(Setting::MetaReplaceAfterMs))
        };
        let members = self.input.state.members().filter(well).count();
        let odd = if members % 2 == 0 { members.saturating_sub(1) } else { members };
        let wanted = (settings.get(Setting::MetaVoters) as usize).min(odd).max(1);
        if voters < wanted {
            let next = self.candidates(None).first().copied()?;
            return Some(self.swap(Some(next.id), None, true));
        }
        if voters > wanted {
            let spare = self.voters().max_by_key(|replica| {
                let zone = &self.member(replica).node.zone;
                let leads = replica.id == self.shard.preferred_leader;
                (!self.is_live(replica.node()), !leads, self.voters_in(zone, None), replica.id)
            })?;
            let left = live - usize::from(self.is_live(spare.node()));
            let wanted_not_to_fall =
                self.is_bad(spare) || voters > settings.get(Setting::MetaVoters) as usize;
            return (wanted_not_to_fall && left > (voters - 1) / 2)
                .then(|| self.swap(None, Some(spare.id), true));
        }
        None
    }

    fn spread_voters(&self) -> Option<StartChange> {
        let crowded = |replica: &&Replica| self.voters_in(&self.member(replica).node.zone, None) > 1;
        let from = self
            .voters()
            .filter(crowded)
            .max_by_key(|replica| (replica.id != self.shard.preferred_leader, replica.id))?;
        let is_empty = |replica: &&&Replica| self.voters_in(&self.member(replica).node.zone, None) == 0;
        let candidates = self.candidates(Some(from.id));
        let to = candidates.iter().find(is_empty)?;
        Some(self.swap(Some(to.id), Some(from.id), true))
    }

    fn remove_learner(&self) -> Option<StartChange> {
        let may_go = |replica: &&Replica| {
            let member = self.member(replica);
            let (held, of_meta) = self.input.state.map().held_by(member.number);
            replica.role == Role::Learner && member.state.is_leaving() && held == of_meta
        };
        let gone = self.shard.replicas.iter().find(may_go)?;
        Some(self.swap(None, Some(gone.id), false))
    }

    fn swap(
        &self,
        enters: Option<ReplicaId>,
        leaves: Option<ReplicaId>,
        leaves_to_learner: bool,
    ) -> StartChange {
        StartChange {
            shard: META_SHARD,
            expected: self.shard.version,
            enters: enters.map_or(Enters::Nobody, Enters::Existing),
            enters_as_learner: false,
            leaves,
            leaves_to_learner: leaves_to_learner && leaves.is_some(),
            reason: Reason::MetaGroup,
        }
    }
}
