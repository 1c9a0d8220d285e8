//! What must hold in every run.

use std::collections::BTreeMap;

use krita_raft::*;

use crate::common::{Machine, Replica, membership_of};

/// What has been observed, against which everything later is held.
#[derive(Default)]
pub(crate) struct Checks {
    /// The newest configuration that anybody has applied.
    present: Configuration,
    /// By one of these what is committed was counted last.
    counted_by: Vec<Configuration>,
    leaders: BTreeMap<Term, ReplicaId>,
    /// Term of every entry that any replica has called committed, by index from 1.
    committed: Vec<Term>,
    /// How far each replica's commit index was compared.
    commit_checked: BTreeMap<ReplicaId, Index>,
    /// Up to here it was checked that a quorum of disks holds what is committed.
    durable_checked: usize,
    /// The payload of every applied command, by index.
    applied: BTreeMap<Index, Entry<Vec<u8>>>,
    /// (when it was answered, the greatest index that it showed), ascending in both.
    shown: Vec<(u64, Index)>,
    healed_at: u64,
    last_write: u64,
}

impl Checks {
    pub(crate) fn new(founded: &Configuration) -> Self {
        Checks { present: founded.clone(), counted_by: vec![founded.clone()], ..Checks::default() }
    }

    /// Election safety and leader completeness.
    pub(crate) fn elected(&mut self, term: Term, id: ReplicaId, raft: &Raft<Vec<u8>>) {
        let earlier = self.leaders.insert(term, id);
        assert!(earlier.is_none_or(|earlier| earlier == id), "{earlier:?} and {id} both lead term {term}");
        let status = raft.status();
        assert!(
            status.last.0 as usize >= self.committed.len(),
            "leader {id} of term {term} lacks what is committed"
        );
        for index in status.first.0..=self.committed.len() as u64 {
            let found = raft.term_of(Index(index));
            assert_eq!(
                found,
                Some(self.committed[index as usize - 1]),
                "leader {id} of term {term} differs at {index}"
            );
        }
    }

    /// Two replicas never call different entries committed.
    pub(crate) fn committed(&mut self, raft: &Raft<Vec<u8>>) {
        let status = raft.status();
        assert!(status.applied <= status.commit && status.commit <= status.last);
        let checked = self.commit_checked.insert(status.id, status.commit).unwrap_or(Index(0));
        for index in status.first.max(checked.next()).0..=status.commit.0 {
            let term = raft.term_of(Index(index)).expect("what is committed is in the log");
            match self.committed.get(index as usize - 1) {
                Some(known) => assert_eq!(*known, term, "{} commits another entry at {index}", status.id),
                None => {
                    assert_eq!(self.committed.len() as u64 + 1, index, "commits are seen in order");
                    self.committed.push(term);
                    // In force when this was counted: as of then, or a later one, which is in the log since.
                    let as_of =
                        raft.membership_as_of(status.commit).expect("it is not below what is applied");
                    self.counted_by = vec![as_of.configuration.clone(), raft.configuration().clone()];
                }
            }
        }
    }

    /// Whatever is committed is on the disks of a quorum, so that no crash loses it.
    pub(crate) fn durability(&mut self, holds: impl Fn(ReplicaId, Index, Term) -> bool) {
        if self.durable_checked == self.committed.len() {
            return;
        }
        for position in self.durable_checked..self.committed.len() {
            let (index, term) = (Index(position as u64 + 1), self.committed[position]);
            let held = |counted: &Configuration| counted.is_quorum(|id| holds(id, index, term));
            let held = self.counted_by.iter().any(held);
            assert!(held, "entry {index} of term {term} is called committed, but is not durable on a quorum");
        }
        self.durable_checked = self.committed.len();
    }

    /// Somebody has less than it once had: all that is committed is looked at again.
    pub(crate) fn durability_again(&mut self) {
        self.durable_checked = 0;
    }

    /// State-machine safety: everyone applies the same at each index.
    pub(crate) fn applied(&mut self, entry: &Entry<Vec<u8>>) {
        if let Some(known) = self.applied.get(&entry.index) {
            return assert_eq!(known, entry, "different entries are applied at {}", entry.index);
        }
        self.applied.insert(entry.index, entry.clone());
        if entry.kind == EntryKind::Configuration {
            self.reconfigured(membership_of(entry).configuration);
        }
    }

    /// One configuration follows another only so that their quorums overlap.
    fn reconfigured(&mut self, next: Configuration) {
        let present = &self.present;
        let follows = match present.is_joint() {
            true => next == present.left(),
            false if next.is_joint() => next.voters_outgoing == present.voters,
            false => next.voters == present.voters,
        };
        assert!(follows, "{next:?} follows {present:?}");
        self.present = next;
    }

    /// By one of these what is committed was counted last.
    pub(crate) fn counted_by(&self) -> &[Configuration] {
        &self.counted_by
    }

    /// The group's configuration, as far as anybody has applied it.
    pub(crate) fn present(&self) -> &Configuration {
        &self.present
    }

    /// The greatest index that any operation answered before `moment` has shown.
    fn shown_before(&self, moment: u64) -> Index {
        let after = self.shown.partition_point(|(answered, _)| *answered < moment);
        after.checked_sub(1).map_or(Index(0), |position| self.shown[position].1)
    }

    fn show(&mut self, index: Index, now: u64) {
        let before = self.shown.last().map_or(Index(0), |(_, index)| *index);
        self.shown.push((now, index.max(before)));
    }

    /// A write takes effect after everything that was over when it began.
    pub(crate) fn write_acknowledged(&mut self, index: Index, begun: u64, now: u64) {
        let seen = self.shown_before(begun);
        assert!(index > seen, "a write at {index} was ordered before {seen}, which was over when it began");
        self.show(index, now);
        self.last_write = self.last_write.max(begun);
    }

    /// A read of the register shows everything that was over when it began. Every write has an index of its own, so
    /// that with [`Checks::write_acknowledged`] this is linearizability of the register.
    pub(crate) fn read_done(&mut self, register: Index, begun: u64, now: u64) {
        let seen = self.shown_before(begun);
        assert!(
            register >= seen,
            "a read returned the value of {register}, but {seen} was visible when it began"
        );
        self.show(register, now);
    }

    pub(crate) fn healed_at(&mut self, now: u64) {
        self.healed_at = now;
    }

    /// Log matching, and that the healed group serves and agrees.
    pub(crate) fn finished<'a>(&self, replicas: impl Iterator<Item = &'a Replica>, now: u64) {
        let replicas: Vec<&Replica> = replicas.collect();
        for (position, one) in replicas.iter().enumerate() {
            for other in &replicas[position + 1..] {
                if one.disk.suspect.is_none() && other.disk.suspect.is_none() {
                    log_matching(one, other);
                }
                let (left, right) = (&one.machine, &other.machine);
                // One that was removed may never be healed.
                let is_damaged = |replica: &Replica| replica.disk.suspect.is_some();
                if left.applied == right.applied && !is_damaged(one) && !is_damaged(other) {
                    let state = |machine: &Machine| (machine.digest, machine.register, machine.applied_term);
                    assert_eq!(state(left), state(right), "{} and {} differ in state", one.id, other.id);
                    // Who has just joined does not know the founders.
                    let is_known = |machine: &Machine| !machine.membership.configuration.voters.is_empty();
                    assert!(
                        !is_known(left) || !is_known(right) || left.membership == right.membership,
                        "{} and {} differ in members",
                        one.id,
                        other.id
                    );
                }
            }
        }
        let half = (self.healed_at + now) / 2;
        assert!(self.last_write > half, "the healed group takes no writes");
        assert!(!self.present.is_joint(), "the group stays between two configurations: {:?}", self.present);
        let is_member = |replica: &&Replica| self.present.is_member(replica.id);
        let replicas: Vec<&Replica> = replicas.into_iter().filter(is_member).collect();
        let greatest = replicas.iter().map(|replica| replica.machine.applied).max();
        for replica in &replicas {
            let behind = greatest.map_or(0, |greatest| greatest.0) - replica.machine.applied.0;
            assert!(replica.raft.status().suspect.is_none(), "{} stays suspect", replica.id);
            assert!(behind < 20, "{} stays {behind} entries behind: {:?}", replica.id, replica.raft.status());
        }
    }
}

/// Where two logs hold an entry of the same index and term, they are equal up to there.
fn log_matching(one: &Replica, other: &Replica) {
    let first = one.disk.start.index.max(other.disk.start.index).next();
    let last = one.disk.last().min(other.disk.last());
    let mut must_match = false;
    for index in (first.0..=last.0).rev() {
        let (Some(left), Some(right)) = (one.disk.entry(Index(index)), other.disk.entry(Index(index))) else {
            continue;
        };
        must_match |= left.term == right.term;
        if must_match {
            assert_eq!(left, right, "the logs of {} and {} do not match at {index}", one.id, other.id);
        }
    }
}
