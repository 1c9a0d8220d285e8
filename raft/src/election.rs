//! Elections: asking for votes, and giving them.
//!
//! A voter that has heard a leader keeps still for an election timeout, whatever reaches it meanwhile, because that
//! leader may hold a lease that rests on it. The promise binds its own campaigns too, and outlives changes of term.
//! The one exception is an election that the leader asked for itself, having given up its lease for the term.

use std::collections::BTreeMap;

use crate::configuration::VoteResult;
use crate::leader::Leader;
use crate::message::Body;
use crate::raft::{Candidate, Follower, Raft, Role};
use crate::ready::Change;
use crate::types::{Payload, Position, ReplicaId, Term};

impl<P: Payload> Raft<P> {
    /// The election timer ran out.
    pub(crate) fn election_due(&mut self) {
        if self.core.suspect.is_some() {
            return self.knock();
        }
        let core = &mut self.core;
        // Of no use while it could not lead: it is no voter, its log is being replaced, its disk hangs.
        if !core.may_lead() || core.installing.is_some() || core.write_stalled() {
            self.become_follower(None);
        } else if core.is_promised() {
            // The timer is never shorter than a promise, but promises are also made without setting it.
            self.become_follower(None);
        } else if core.config.pre_vote && !core.configuration().is_sole_voter(core.id()) {
            self.become_pre_candidate();
        } else {
            self.become_candidate(false);
        }
    }

    fn become_pre_candidate(&mut self) {
        self.leave_role(None);
        let core = &mut self.core;
        let candidate = Candidate {
            votes: BTreeMap::from([(core.id(), true)]),
            election_due: core.next_election(),
            is_real: false,
        };
        self.role = Role::Candidate(candidate);
        let core = &mut self.core;
        let last = core.last_position();
        let others: Vec<ReplicaId> =
            core.configuration().all_voters().filter(|id| *id != core.id()).collect();
        for to in others {
            let body = Body::PreVote { last_index: last.index, last_term: last.term };
            core.send_in_term(to, core.term().next(), body);
        }
        self.count_votes();
    }

    /// Campaigns for real. The requests leave only once term and vote are durable, and the own vote counts only then.
    pub(crate) fn become_candidate(&mut self, transfer: bool) {
        self.leave_role(None);
        let core = &mut self.core;
        core.set_term(core.term().next());
        core.set_vote(core.id());
        self.role = Role::Candidate(Candidate {
            votes: BTreeMap::new(),
            election_due: core.next_election(),
            is_real: true,
        });
        let last = core.last_position();
        let others: Vec<ReplicaId> =
            core.configuration().all_voters().filter(|id| *id != core.id()).collect();
        for to in others {
            let body = Body::Vote { last_index: last.index, last_term: last.term, transfer };
            core.send_after(to, body);
        }
    }

    /// Follows `leader`, or waits for one, in the current term.
    pub(crate) fn become_follower(&mut self, leader: Option<ReplicaId>) {
        self.leave_role(leader);
        let election_due = self.core.next_election();
        self.role = Role::Follower(Follower { leader, election_due, quiesced: false });
    }

    fn become_leader(&mut self) {
        self.leave_role(Some(self.core.id()));
        let core = &mut self.core;
        assert!(core.suspect.is_none(), "a suspect does not lead");
        core.told.clear();
        core.change(Change::BecameLeader { term: core.term() });
        self.role = Role::Leader(Box::new(Leader::new(core)));
        self.core.log.check();
    }

    /// Says what ends with the current role, the known leader being `leader` from now on.
    fn leave_role(&mut self, leader: Option<ReplicaId>) {
        let known = self.leader();
        let core = &mut self.core;
        match &mut self.role {
            Role::Leader(leading) => {
                leading.fail_reads(core);
                core.told.clear();
                core.change(Change::LostLeadership { term: self.led_term });
            }
            Role::Follower(_) | Role::Candidate(_) => {}
        }
        if leader != known && leader != Some(core.id()) {
            core.change(Change::LeaderKnown { term: core.term(), leader });
        }
        if leader == Some(core.id()) {
            self.led_term = core.term();
        }
    }

    /// A message carries a higher term: enters it, with no leader known.
    pub(crate) fn enter_term(&mut self, term: Term) {
        self.core.set_term(term);
        self.become_follower(None);
    }

    /// The own vote became durable, or another's arrived.
    pub(crate) fn count_votes(&mut self) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        let core = &self.core;
        if candidate.is_real && core.own_vote_is_durable() {
            candidate.votes.insert(core.id(), true);
        }
        let is_real = candidate.is_real;
        match core.configuration().vote_result(|id| candidate.votes.get(&id).copied()) {
            VoteResult::Pending => {}
            VoteResult::Won if is_real => self.become_leader(),
            VoteResult::Won => self.become_candidate(false),
            VoteResult::Lost => self.become_follower(None),
        }
    }

    /// A vote counts only for the life that asked for it: an earlier one may have campaigned in the same term, with
    /// another log, and have forgotten it.
    pub(crate) fn vote_reply(&mut self, from: ReplicaId, granted: bool, is_real: bool, life: u64) {
        if is_real && life != self.core.config.boot {
            return;
        }
        if let Role::Candidate(candidate) = &mut self.role
            && candidate.is_real == is_real
        {
            candidate.votes.entry(from).or_insert(granted);
            self.count_votes();
        }
    }

    /// Somebody asks whether it could win; nothing changes here.
    pub(crate) fn pre_vote(&mut self, from: ReplicaId, term: Term, last: Position) {
        self.hear_candidate(from);
        let core = &mut self.core;
        // Not even a snapshot on its way in is a reason to refuse: its sender may be the one that died.
        let may_lead = core.log.is_behind_or_equal(last);
        let may_vote = core.suspect.is_none() && !core.is_promised();
        if term > core.term() && may_lead && may_vote && !matches!(self.role, Role::Leader(_)) {
            core.send_in_term(from, term, Body::PreVoteReply { granted: true });
        } else {
            core.send(from, Body::PreVoteReply { granted: false });
        }
    }

    /// Whether a request for a vote is to be ignored, without even entering its term.
    pub(crate) fn ignores_vote(&mut self, from: ReplicaId, transfer: bool) -> bool {
        if transfer {
            return false;
        }
        self.hear_candidate(from);
        // A leader hears itself.
        self.core.is_promised() || matches!(self.role, Role::Leader(_))
    }

    /// Somebody, in its life `life`, asks for a vote in the current term.
    pub(crate) fn vote(&mut self, from: ReplicaId, last: Position, life: u64) {
        let core = &mut self.core;
        let free = core.suspect.is_none() && core.vote().is_none_or(|vote| vote == from);
        let is_following = matches!(&self.role, Role::Follower(follower) if follower.leader.is_none());
        if free && is_following && core.log.is_behind_or_equal(last) {
            core.set_vote(from);
            core.answer_vote(from, true, life);
            let election_due = core.next_election();
            if let Role::Follower(follower) = &mut self.role {
                follower.election_due = election_due;
            }
        } else {
            core.answer_vote(from, false, life);
        }
    }
}
