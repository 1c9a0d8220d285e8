//! Who is in the group, and what a quorum of it is.
//!
//! A joint configuration has two sets of voters, and a quorum of it is a majority of each: for votes, commits,
//! confirmed reads and leases alike (Ongaro and Ousterhout 2014, section 6). Everything that counts replicas
//! goes through this file, so that no place can forget the second majority.

use std::collections::BTreeSet;

use crate::types::ReplicaId;

/// Voters in one half of a configuration, at most.
pub const VOTERS_MAX: usize = 31;
/// Learners, at most.
pub const LEARNERS_MAX: usize = 4096;

/// The members of a group.
///
/// Invariants: `learners` shares no member with `voters`; `voters` is empty only if all is: nothing is known. So starts
/// a replica that is to join a group; the entry that makes it a member tells it who the others are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Who votes and counts; in a joint configuration, the incoming half.
    pub voters: BTreeSet<ReplicaId>,
    /// The outgoing half of a joint configuration; empty otherwise.
    pub voters_outgoing: BTreeSet<ReplicaId>,
    /// Who receives the log but neither votes nor counts; in a joint configuration, of the incoming half. Who is in
    /// the outgoing half too votes until the joint configuration is left, and is demoted then.
    pub learners: BTreeSet<ReplicaId>,
}

/// Where an election stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteResult {
    /// A quorum granted.
    Won,
    /// No quorum can grant any more.
    Lost,
    /// Open.
    Pending,
}

impl Configuration {
    /// A plain configuration of these voters and learners.
    pub fn new(
        voters: impl IntoIterator<Item = ReplicaId>,
        learners: impl IntoIterator<Item = ReplicaId>,
    ) -> Self {
        Configuration {
            voters: voters.into_iter().collect(),
            voters_outgoing: BTreeSet::new(),
            learners: learners.into_iter().collect(),
        }
    }

    /// Whether `id` votes, in either half.
    pub fn is_voter(&self, id: ReplicaId) -> bool {
        self.voters.contains(&id) || self.voters_outgoing.contains(&id)
    }

    /// Whether two majorities are needed.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether `id` is the one and only voter.
    pub fn is_sole_voter(&self, id: ReplicaId) -> bool {
        self.all_voters().eq([id])
    }

    /// Every voter of both halves, once, in order.
    pub fn all_voters(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.voters.union(&self.voters_outgoing).copied()
    }

    /// Whether `id` is a voter, in either half, or a learner.
    pub fn is_member(&self, id: ReplicaId) -> bool {
        self.is_voter(id) || self.learners.contains(&id)
    }

    /// What a joint configuration becomes when it is left: its incoming half.
    pub fn left(&self) -> Configuration {
        Configuration { voters_outgoing: BTreeSet::new(), ..self.clone() }
    }

    /// Whether the invariants hold, and there are not too many members.
    pub fn is_well_formed(&self) -> bool {
        let is_known = !self.voters.is_empty() || (!self.is_joint() && self.learners.is_empty());
        let is_bounded = self.voters.len().max(self.voters_outgoing.len()) <= VOTERS_MAX
            && self.learners.len() <= LEARNERS_MAX;
        is_known && is_bounded && self.learners.is_disjoint(&self.voters)
    }

    /// The canonical bytes, in which a configuration stands in an entry: three lists (voters, outgoing voters,
    /// learners), each a u16 count and that many ascending u64 replica ids, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.is_well_formed(), "a configuration is checked before it is written");
        let mut bytes = Vec::new();
        for list in [&self.voters, &self.voters_outgoing, &self.learners] {
            let count = u16::try_from(list.len()).expect("bounded above");
            bytes.extend_from_slice(&count.to_le_bytes());
            for id in list {
                bytes.extend_from_slice(&id.0.to_le_bytes());
            }
        }
        bytes
    }

    /// The configuration of an entry behind its canonical bytes; `None` if they are anything else, or nobody votes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (configuration, rest) = Self::decode_prefix(bytes)?;
        (rest.is_empty() && !configuration.voters.is_empty()).then_some(configuration)
    }

    /// As [`Configuration::decode`], with the bytes behind it; also one of which nothing is known.
    pub(crate) fn decode_prefix(mut bytes: &[u8]) -> Option<(Self, &[u8])> {
        let mut list = || {
            let (count, rest) = bytes.split_first_chunk::<2>()?;
            bytes = rest;
            let mut ids: BTreeSet<ReplicaId> = BTreeSet::new();
            for _ in 0..u16::from_le_bytes(*count) {
                let (id, rest) = bytes.split_first_chunk::<8>()?;
                bytes = rest;
                let id = ReplicaId(u64::from_le_bytes(*id));
                if ids.last().is_some_and(|last| *last >= id) {
                    return None;
                }
                ids.insert(id);
            }
            Some(ids)
        };
        let configuration = Configuration { voters: list()?, voters_outgoing: list()?, learners: list()? };
        configuration.is_well_formed().then_some((configuration, bytes))
    }

    /// Every member, voters and learners, once, in order.
    pub fn members(&self) -> BTreeSet<ReplicaId> {
        self.all_voters().chain(self.learners.iter().copied()).collect()
    }

    /// Whether those for whom `holds` is true are a quorum.
    pub fn is_quorum(&self, mut holds: impl FnMut(ReplicaId) -> bool) -> bool {
        self.quorum_value(|id| u8::from(holds(id))) == 1
    }

    /// Whether every majority, of either half, holds somebody for whom `holds` is true.
    pub(crate) fn meets_every_majority(&self, holds: impl Fn(ReplicaId) -> bool) -> bool {
        let meets = |half: &BTreeSet<ReplicaId>| {
            let without = half.iter().filter(|id| !holds(**id)).count();
            half.is_empty() || without <= half.len() / 2
        };
        meets(&self.voters) && meets(&self.voters_outgoing)
    }

    /// The greatest value that a quorum has reached: each voter has reached `value_of(voter)` and everything below.
    pub fn quorum_value<T: Ord + Copy>(&self, mut value_of: impl FnMut(ReplicaId) -> T) -> T {
        let incoming = majority_value(&self.voters, &mut value_of);
        if self.is_joint() {
            incoming.min(majority_value(&self.voters_outgoing, &mut value_of))
        } else {
            incoming
        }
    }

    pub(crate) fn vote_result(&self, vote_of: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
        if self.is_quorum(|id| vote_of(id) == Some(true)) {
            VoteResult::Won
        } else if self.is_quorum(|id| vote_of(id) != Some(false)) {
            VoteResult::Pending
        } else {
            VoteResult::Lost
        }
    }
}

fn majority_value<T: Ord + Copy>(
    voters: &BTreeSet<ReplicaId>,
    value_of: &mut impl FnMut(ReplicaId) -> T,
) -> T {
    let mut values: Vec<T> = voters.iter().map(|id| value_of(*id)).collect();
    assert!(!values.is_empty(), "a group has at least one voter");
    values.sort_unstable_by(|a, b| b.cmp(a));
    // The k-th greatest with k = majority: that many voters have reached it.
    values[voters.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> BTreeSet<ReplicaId> {
        numbers.iter().map(|number| ReplicaId(*number)).collect()
    }

    #[test]
    fn a_majority_is_more_than_half() {
        for (count, reached, expected) in [
            (1, 0, false),
            (1, 1, true),
            (2, 1, false),
            (3, 1, false),
            (3, 2, true),
            (4, 2, false),
            (5, 3, true),
        ] {
            let configuration = Configuration::new((1..=count).map(ReplicaId), []);
            assert_eq!(configuration.is_quorum(|id| id.0 <= reached), expected, "{reached} of {count}");
        }
    }

    #[test]
    fn a_joint_quorum_is_two_majorities() {
        let configuration = Configuration {
            voters: ids(&[1, 2, 3]),
            voters_outgoing: ids(&[3, 4, 5]),
            learners: BTreeSet::new(),
        };
        assert!(!configuration.is_quorum(|id| id.0 <= 3));
        assert!(configuration.is_quorum(|id| id.0 == 1 || id.0 == 3 || id.0 == 5));
        assert_eq!(configuration.quorum_value(|id| 10 * id.0), 20);
        let votes = |id: ReplicaId| match id.0 {
            1 | 2 => Some(true),
            4 | 5 => Some(false),
            _ => None,
        };
        assert_eq!(configuration.vote_result(votes), VoteResult::Lost);
    }

    #[test]
    fn a_configuration_survives_its_bytes_and_nothing_else_is_one() {
        let joint = Configuration {
            voters: ids(&[1, 1 << 40]),
            voters_outgoing: ids(&[1, 7]),
            learners: ids(&[7, 8]),
        };
        let bytes = joint.encode();
        assert_eq!(Configuration::decode(&bytes), Some(joint));
        for length in 0..bytes.len() {
            assert_eq!(Configuration::decode(&bytes[..length]), None, "cut at {length}");
        }
        assert_eq!(Configuration::decode(&[0; 6]), None, "an entry names voters");
        let one = |id: u64| id.to_le_bytes().to_vec();
        let descending = [vec![2, 0], one(2), one(1), vec![0; 4]].concat();
        assert_eq!(Configuration::decode(&descending), None, "ids ascend");
        let both = [vec![1, 0], one(2), vec![0, 0], vec![1, 0], one(2)].concat();
        assert_eq!(Configuration::decode(&both), None, "a learner is no voter");
        let crowd: Vec<u8> = (1..=40_u64).flat_map(u64::to_le_bytes).collect();
        assert_eq!(Configuration::decode(&[vec![40, 0], crowd, vec![0; 4]].concat()), None, "too many");
    }

    #[test]
    fn learners_do_not_count() {
        let configuration = Configuration::new([ReplicaId(1), ReplicaId(2)], [ReplicaId(3)]);
        assert!(!configuration.is_quorum(|id| id.0 != 1));
        assert_eq!(configuration.members(), ids(&[1, 2, 3]));
    }
}
