//! The follower: what it takes from its leader, and how it falls silent with it.

use crate::configuration::Configuration;
use crate::message::{AppendAnswer, Body};
use crate::raft::{Raft, Role};
use crate::suspect::Marks;
use crate::types::{Entry, EntryKind, Index, Payload, Position, ReplicaId, Round, Term};

/// An append, taken apart.
pub(crate) struct Append<P> {
    pub(crate) previous: Position,
    pub(crate) commit: Index,
    pub(crate) entries: Vec<Entry<P>>,
    pub(crate) round: Round,
}

impl<P: Payload> Append<P> {
    /// Contiguous from `previous`, terms ascending, none beyond the sender's, each configuration one that this version
    /// understands. Anything else is not from a leader.
    fn is_well_formed(&self, term: Term) -> bool {
        let mut before = self.previous;
        for entry in &self.entries {
            if entry.index != before.index.next() || entry.term < before.term {
                return false;
            }
            let is_configuration = entry.kind == EntryKind::Configuration;
            if is_configuration && Configuration::decode(entry.payload.as_bytes()).is_none() {
                return false;
            }
            before = entry.position();
        }
        before.term <= term
    }
}

impl<P: Payload> Raft<P> {
    /// The leader of the current term speaks. False if it cannot be the leader.
    pub(crate) fn hear_leader(&mut self, from: ReplicaId, marks: &Marks) -> bool {
        match &self.role {
            // Two leaders in a term: the sender is not what it says.
            Role::Leader(_) => return false,
            Role::Follower(follower) if follower.leader == Some(from) => {}
            Role::Follower(follower) if follower.leader.is_some() => return false,
            Role::Follower(_) | Role::Candidate(_) => self.become_follower(Some(from)),
        }
        self.core.heard_at = Some(self.core.now);
        self.core.hear_marks(marks);
        let election_due = self.core.next_election();
        if let Role::Follower(follower) = &mut self.role {
            follower.election_due = election_due;
            follower.quiesced = false;
        }
        true
    }

    pub(crate) fn append(&mut self, from: ReplicaId, append: Append<P>, marks: &Marks) {
        if !append.is_well_formed(self.core.term()) || !self.hear_leader(from, marks) {
            return;
        }
        let core = &mut self.core;
        if core.installing.is_some() {
            return;
        }
        let round = append.round;
        if core.needs_snapshot() {
            // The answer's mark asks for one.
            core.send(from, Body::HeartbeatReply { round });
            return;
        }
        self.append_to_log(from, append);
        self.try_to_heal();
    }

    fn append_to_log(&mut self, from: ReplicaId, append: Append<P>) {
        let core = &mut self.core;
        let round = append.round;
        let previous = append.previous;
        if previous.index < core.log.commit() {
            // Old news. What is committed is equal everywhere, so it can be acknowledged at once.
            let matched = core.log.commit();
            core.matches_leader(matched);
            core.send_after(from, Body::AppendReply { round, answer: AppendAnswer::Accepted { matched } });
            return;
        }
        if !core.log.contains(previous) {
            let hint = core.log.last_at_most(previous.index.min(core.log.last()), previous.term);
            let answer = AppendAnswer::Rejected {
                rejected_index: previous.index,
                hint_index: hint.index,
                hint_term: hint.term,
            };
            core.send(from, Body::AppendReply { round, answer });
            return;
        }
        let matched = Index(previous.index.0 + append.entries.len() as u64);
        for entry in append.entries {
            match core.log.term_of(entry.index) {
                Some(term) if term == entry.term => {}
                Some(_) => {
                    core.truncate(entry.index.previous());
                    core.append(entry);
                }
                None => core.append(entry),
            }
        }
        core.matches_leader(matched);
        core.log.set_commit(append.commit.min(matched));
        core.send_after(from, Body::AppendReply { round, answer: AppendAnswer::Accepted { matched } });
    }

    pub(crate) fn heartbeat(&mut self, from: ReplicaId, commit: Index, round: Round, marks: &Marks) {
        if !self.hear_leader(from, marks) {
            return;
        }
        let core = &mut self.core;
        if core.installing.is_none() {
            // The leader never names more than this replica has acknowledged to it. A suspect may have forgotten
            // that, and goes by what it has acknowledged since.
            let known = core.suspect.as_ref().map_or(core.log.last(), |suspect| suspect.matched);
            core.log.set_commit(commit.min(known));
        }
        self.try_to_heal();
        self.core.send(from, Body::HeartbeatReply { round });
    }

    pub(crate) fn timeout_now(&mut self, from: ReplicaId) {
        let core = &self.core;
        let able = core.may_lead() && core.installing.is_none() && core.suspect.is_none();
        if able && self.leader() == Some(from) && !matches!(self.role, Role::Leader(_)) {
            self.become_candidate(true);
        }
    }

    pub(crate) fn quiesce(&mut self, from: ReplicaId, last: Position, marks: &Marks) {
        if !self.hear_leader(from, marks) {
            return;
        }
        let core = &mut self.core;
        let able = core.installing.is_none() && core.suspect.is_none();
        let agreed = able && core.last_position() == last && core.log.durable() == last.index;
        if agreed {
            // The leader asks only when everything is committed.
            core.log.set_commit(last.index);
            if let Role::Follower(follower) = &mut self.role {
                follower.quiesced = true;
            }
        }
        core.send(from, Body::QuiesceReply { agreed });
    }

    /// Somebody wants to campaign. If the group is silent, its leader is not to blame for that: it gets time to
    /// speak again before anyone here helps to replace it. One that was removed, and has not heard of it, wakes nobody:
    /// it would do so for ever.
    pub(crate) fn hear_candidate(&mut self, from: ReplicaId) {
        if !self.core.may_belong(from) {
            return;
        }
        match &mut self.role {
            Role::Leader(leader) => leader.wake(&mut self.core),
            Role::Follower(follower) if follower.quiesced => {
                self.core.heard_at = Some(self.core.now);
                follower.quiesced = false;
                follower.election_due = self.core.next_election();
            }
            Role::Follower(_) | Role::Candidate(_) => {}
        }
    }

    /// Starts the election timer of a silent group's follower. Returns its leader if it was silent.
    pub(crate) fn wake_follower(&mut self) -> Option<ReplicaId> {
        let Role::Follower(follower) = &mut self.role else { return None };
        if !std::mem::take(&mut follower.quiesced) {
            return None;
        }
        follower.election_due = self.core.next_election();
        follower.leader
    }
}
