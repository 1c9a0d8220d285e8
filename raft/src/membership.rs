//! Which configuration is in force, by which entry, and which were before it: a configuration counts from the moment
//! when its entry is appended, and no longer than that entry stays in the log.
//!
//! A replica uses the newest configuration in its log, committed or not (Ongaro's thesis, section 4.1). Were it to wait
//! for the commit, a leader could count by one configuration while the next leader is elected by another that has no
//! voter in common with it. The price is that an entry which is cut off takes its configuration with it, so the ones
//! before it are kept back to what is applied.

use std::collections::VecDeque;

use crate::configuration::Configuration;
use crate::types::{Index, Position, ReplicaId};

/// A configuration, and the entry that set it. Both together never come again, so that who wants to change a
/// configuration names the one that is meant by its entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The members.
    pub configuration: Configuration,
    /// The entry that set it; the default for the one that a group was created with, or that a replica which is to
    /// join starts with.
    pub set_by: Position,
}

impl Membership {
    /// What a group is created with.
    pub fn first(configuration: Configuration) -> Self {
        Membership { configuration, set_by: Position::default() }
    }

    /// The canonical bytes, for checkpoints and snapshots: those of the configuration, then, unless it is the first,
    /// index and term of its entry, each a u64, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.configuration.encode();
        if self.set_by != Position::default() {
            bytes.extend_from_slice(&self.set_by.index.0.to_le_bytes());
            bytes.extend_from_slice(&self.set_by.term.0.to_le_bytes());
        }
        bytes
    }

    /// The membership behind its canonical bytes; `None` if they are anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (configuration, rest) = Configuration::decode_prefix(bytes)?;
        if rest.is_empty() {
            return Some(Membership::first(configuration));
        }
        let (index, rest) = rest.split_first_chunk::<8>()?;
        let (term, rest) = rest.split_first_chunk::<8>()?;
        let set_by = Position {
            index: Index(u64::from_le_bytes(*index)),
            term: crate::types::Term(u64::from_le_bytes(*term)),
        };
        let is_canonical = rest.is_empty() && set_by != Position::default();
        is_canonical.then_some(Membership { configuration, set_by })
    }
}

/// The memberships of a log, from the one as of what is applied to the one in force.
///
/// Invariants: never empty; `set_by.index` ascends strictly; the first is at or below what is applied.
pub(crate) struct Memberships {
    known: VecDeque<Membership>,
}

impl Memberships {
    pub(crate) fn new(applied: Membership, behind: Vec<Membership>) -> Self {
        let mut known = VecDeque::from(behind);
        known.push_front(applied);
        Memberships { known }
    }

    /// The one in force.
    pub(crate) fn current(&self) -> &Membership {
        self.known.back().expect("there is always one")
    }

    /// The one as of the entry at `index`, which is not below what is applied.
    pub(crate) fn as_of(&self, index: Index) -> &Membership {
        let after = self.known.partition_point(|membership| membership.set_by.index <= index);
        &self.known[after.saturating_sub(1)]
    }

    /// Its entry is appended.
    pub(crate) fn append(&mut self, membership: Membership) {
        assert!(membership.set_by.index > self.current().set_by.index, "entries are appended in order");
        self.known.push_back(membership);
    }

    /// The log's tail is cut off. Whether another one is in force now.
    pub(crate) fn truncate(&mut self, after: Index) -> bool {
        let before = self.known.len();
        while self.known.len() > 1 && self.current().set_by.index > after {
            self.known.pop_back();
        }
        self.known.len() != before
    }

    /// What was before `applied` is not asked for again.
    pub(crate) fn applied(&mut self, applied: Index) {
        while self.known.get(1).is_some_and(|next| next.set_by.index <= applied) {
            self.known.pop_front();
        }
    }

    /// A snapshot has replaced the log. Whether another one is in force now.
    pub(crate) fn reset(&mut self, membership: Membership) -> bool {
        let differs = *self.current() != membership;
        self.known.clear();
        self.known.push_back(membership);
        differs
    }

    /// Those that may turn out to be the group's: the one as of `commit`, and all behind it.
    fn possible(&self, commit: Index) -> impl Iterator<Item = &Configuration> {
        let after = self.known.partition_point(|membership| membership.set_by.index <= commit);
        self.known.range(after.saturating_sub(1)..).map(|membership| &membership.configuration)
    }

    /// Whether `id` may be needed as a leader: it votes, or would if what is not known to be committed were cut off.
    /// One that holds the entry that removes it may be the only one that does, and so the only one that can lead; it
    /// does not count itself (Ongaro's thesis, section 4.2.2).
    pub(crate) fn may_lead(&self, id: ReplicaId, commit: Index) -> bool {
        self.possible(commit).any(|configuration| configuration.is_voter(id))
    }

    /// Whether `id` belongs to the group, or would if what is not known to be committed were cut off.
    pub(crate) fn may_belong(&self, id: ReplicaId, commit: Index) -> bool {
        self.possible(commit).any(|configuration| configuration.is_member(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Term;

    fn membership(index: u64, voters: &[u64]) -> Membership {
        let configuration = Configuration::new(voters.iter().map(|id| ReplicaId(*id)), []);
        Membership { configuration, set_by: Position { index: Index(index), term: Term(index.min(1)) } }
    }

    #[test]
    fn the_newest_is_in_force_and_goes_with_its_entry() {
        let mut known = Memberships::new(membership(0, &[1]), vec![membership(4, &[1, 2])]);
        known.append(membership(7, &[2]));
        assert_eq!(known.current(), &membership(7, &[2]));
        assert_eq!(known.as_of(Index(6)), &membership(4, &[1, 2]));
        assert!(known.may_lead(ReplicaId(1), Index(6)) && !known.may_lead(ReplicaId(1), Index(7)));
        assert!(!known.truncate(Index(7)) && known.truncate(Index(6)));
        assert_eq!(known.current(), &membership(4, &[1, 2]));
        known.applied(Index(5));
        assert_eq!(known.as_of(Index(5)), &membership(4, &[1, 2]));
        assert_eq!(known.known.len(), 1);
    }

    #[test]
    fn a_membership_survives_its_bytes_and_nothing_else_is_one() {
        for membership in [membership(0, &[1, 1 << 40]), membership(9, &[3]), Membership::default()] {
            let bytes = membership.encode();
            assert_eq!(Membership::decode(&bytes), Some(membership));
            for length in 1..bytes.len() {
                let cut = Membership::decode(&bytes[..length]);
                assert!(cut.is_none_or(|cut| cut.encode() == bytes[..length]), "cut at {length}");
            }
            assert_eq!(Membership::decode(&[&bytes[..], &[0]].concat()), None);
        }
        let padded = [membership(0, &[1]).encode(), vec![0; 16]].concat();
        assert_eq!(Membership::decode(&padded), None, "there is one way to write it");
    }
}
