//! The shard map: which arc of the ring is which shard, and which replicas a shard has.
//!
//! A shard's own Raft configuration rules; the map follows it, by the index that the configuration has in the shard's
//! log. What the map adds is the epoch, which grows with every change, and the replica that should lead.

use krita_raft::ReplicaId;

use crate::meta::types::{
    GENERATION_MAX, JobNumber, MEMBERS_MAX, META_SHARD, NodeNumber, ShardNumber, Version, generation_of,
    node_of, shard_of,
};

/// Most replicas of a data shard: seven voters, all of them being replaced at once.
pub(crate) const REPLICAS_MAX: usize = 14;

/// Most replicas of the meta group: every member holds one, and a few come and go.
pub(crate) const META_REPLICAS_MAX: usize = MEMBERS_MAX + REPLICAS_MAX;

/// What a replica counts for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Counts for every quorum.
    Voter,
    /// Receives the log and counts for none.
    Learner,
    /// In a joint configuration: counts in the new half only.
    Incoming,
    /// In a joint configuration: counts in the old half only.
    Outgoing,
}

impl Role {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Voter => 1,
            Self::Learner => 2,
            Self::Incoming => 3,
            Self::Outgoing => 4,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Voter, Self::Learner, Self::Incoming, Self::Outgoing]
            .into_iter()
            .find(|role| role.number() == number)
    }

    /// Whether it counts for the quorum that will be, once a joint configuration is left.
    pub fn votes_next(self) -> bool {
        match self {
            Self::Voter | Self::Incoming => true,
            Self::Learner | Self::Outgoing => false,
        }
    }

    /// Whether it counts for the quorum that was, before a joint configuration was entered.
    pub fn voted_before(self) -> bool {
        match self {
            Self::Voter | Self::Outgoing => true,
            Self::Learner | Self::Incoming => false,
        }
    }

    /// Whether it belongs to one half of a joint configuration alone.
    pub fn is_half(self) -> bool {
        match self {
            Self::Incoming | Self::Outgoing => true,
            Self::Voter | Self::Learner => false,
        }
    }
}

/// One replica of a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Replica {
    /// Never given again; tells the node.
    pub id: ReplicaId,
    /// What it counts for.
    pub role: Role,
}

impl Replica {
    /// The node that holds it.
    pub fn node(&self) -> NodeNumber {
        node_of(self.id)
    }
}

/// One shard, as the map knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shard {
    /// When it last changed.
    pub version: Version,
    /// Where, in the shard's own log, the configuration stands that `replicas` follows.
    pub configuration_index: u64,
    /// Where its arc of the ring begins; it ends where another begins. Of no meaning for the meta group.
    pub arc_start: u64,
    /// The last generation given to a replica. `generation_seen <= generation_given`.
    pub generation_given: u32,
    /// The highest generation that the configuration ever had: none at or below it can come back.
    pub generation_seen: u32,
    /// Sorted by id, on distinct nodes; at least one votes in each half.
    pub replicas: Vec<Replica>,
    /// A replica that votes, or will once a joint configuration is left.
    pub preferred_leader: ReplicaId,
    /// The job that changes it now.
    pub job: Option<JobNumber>,
}

impl Shard {
    /// The replica on a node.
    pub fn replica_on(&self, node: NodeNumber) -> Option<Replica> {
        self.replicas.iter().copied().find(|replica| replica.node() == node)
    }

    /// The replica with this id.
    pub fn replica(&self, id: ReplicaId) -> Option<Replica> {
        self.replicas.iter().copied().find(|replica| replica.id == id)
    }

    /// Whether two majorities are needed now.
    pub fn is_joint(&self) -> bool {
        self.replicas.iter().any(|replica| replica.role.is_half())
    }

    /// Those that vote once a joint configuration is left.
    pub fn voters(&self) -> impl Iterator<Item = Replica> + '_ {
        self.replicas.iter().copied().filter(|replica| replica.role.votes_next())
    }
}

/// What is wrong with a configuration as such; `None` if nothing is.
pub(crate) fn configuration_fault(shard: ShardNumber, replicas: &[Replica]) -> Option<&'static str> {
    let replicas_max = if shard == META_SHARD { META_REPLICAS_MAX } else { REPLICAS_MAX };
    if replicas.len() > replicas_max {
        return Some("too many replicas");
    }
    if replicas.windows(2).any(|pair| pair[0].id >= pair[1].id) {
        return Some("replicas are not sorted by distinct ids");
    }
    if replicas.iter().any(|replica| shard_of(replica.id) != shard || replica.node().0 == 0) {
        return Some("a replica is not of this shard");
    }
    let mut nodes: Vec<NodeNumber> = replicas.iter().map(Replica::node).collect();
    nodes.sort_unstable();
    if nodes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Some("two replicas on one node");
    }
    let has_next = replicas.iter().any(|replica| replica.role.votes_next());
    let had_before = replicas.iter().any(|replica| replica.role.voted_before());
    if !has_next || !had_before {
        return Some("nobody votes");
    }
    None
}

/// All shards and the ring that they share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardMap {
    /// Grows with every change of what clients see: replicas, roles, preferred leaders.
    pub(crate) epoch: u64,
    /// By shard number; the first is the meta group.
    pub(crate) shards: Vec<Shard>,
    /// (where the arc begins, data shard), sorted; the first begins at 0.
    ring: Vec<(u64, ShardNumber)>,
}

impl ShardMap {
    /// Puts a map together, by shard number. `Err` says why it is none.
    pub(crate) fn new(epoch: u64, shards: Vec<Shard>) -> Result<Self, &'static str> {
        if shards.len() < 2 || shards.len() > crate::meta::types::MAP_SHARDS_MAX {
            return Err("number of shards out of range");
        }
        let mut ring: Vec<(u64, ShardNumber)> = (0..)
            .map(ShardNumber)
            .zip(&shards)
            .skip(1)
            .map(|(number, shard)| (shard.arc_start, number))
            .collect();
        ring.sort_unstable();
        if ring[0].0 != 0 || ring.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err("the arcs do not partition the ring");
        }
        for (number, shard) in (0..).map(ShardNumber).zip(&shards) {
            check_shard(number, shard)?;
        }
        Ok(Self { epoch, shards, ring })
    }

    /// Grows with every change of what clients see.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many data shards there are; they count from 1.
    pub fn data_shards(&self) -> u32 {
        // At most MAP_SHARDS_MAX.
        (self.shards.len() - 1) as u32
    }

    /// One shard.
    pub fn shard(&self, number: ShardNumber) -> Option<&Shard> {
        self.shards.get(number.0 as usize)
    }

    /// All shards with their numbers, the meta group first.
    pub fn shards(&self) -> impl Iterator<Item = (ShardNumber, &Shard)> {
        (0..).map(ShardNumber).zip(&self.shards)
    }

    /// The data shard whose arc holds a position of the ring.
    pub fn shard_at(&self, position: u64) -> ShardNumber {
        let after = self.ring.partition_point(|(start, _)| *start <= position);
        self.ring[after - 1].1
    }

    /// How many replicas of any shard a node holds, and how many of these are of the meta group.
    pub fn held_by(&self, node: NodeNumber) -> (u64, u64) {
        let holds = |shard: &&Shard| shard.replica_on(node).is_some();
        let meta = u64::from(self.shards[0].replica_on(node).is_some());
        (self.shards.iter().filter(holds).count() as u64, meta)
    }

    /// About how many bytes of memory the map takes.
    pub fn memory_bytes(&self) -> usize {
        let replicas: usize = self.shards.iter().map(|shard| shard.replicas.capacity()).sum();
        self.shards.capacity() * size_of::<Shard>()
            + replicas * size_of::<Replica>()
            + self.ring.capacity() * size_of::<(u64, ShardNumber)>()
    }
}

fn check_shard(number: ShardNumber, shard: &Shard) -> Result<(), &'static str> {
    if let Some(fault) = configuration_fault(number, &shard.replicas) {
        return Err(fault);
    }
    if shard.generation_given > GENERATION_MAX || shard.generation_seen > shard.generation_given {
        return Err("a shard's generations are out of order");
    }
    if shard.replicas.iter().any(|replica| generation_of(replica.id) > shard.generation_seen) {
        return Err("a replica's generation was never seen");
    }
    let leads = shard.replica(shard.preferred_leader);
    if !leads.is_some_and(|replica| replica.role.votes_next()) {
        return Err("the preferred leader does not vote");
    }
    Ok(())
}

/// Where the arc of a shard begins when the ring is cut into equal ones: the same cut as
/// `krita_proto::routing::shard_of`.
pub fn equal_arc_start(shard: ShardNumber, data_shards: u32) -> u64 {
    assert!((1..=data_shards).contains(&shard.0), "data shards count from 1");
    // The first position whose product with `data_shards` reaches `shard - 1` times 2^64.
    let start = (u128::from(shard.0 - 1) << 64).div_ceil(u128::from(data_shards));
    u64::try_from(start).expect("shard - 1 is below the number of shards")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::types::replica_id;

    fn equal_map(data_shards: u32) -> ShardMap {
        let shard = |number: u32| {
            let id = replica_id(ShardNumber(number), NodeNumber(1), 0);
            Shard {
                version: Version(0),
                configuration_index: 1,
                arc_start: if number == 0 { 0 } else { equal_arc_start(ShardNumber(number), data_shards) },
                generation_given: 0,
                generation_seen: 0,
                replicas: vec![Replica { id, role: Role::Voter }],
                preferred_leader: id,
                job: None,
            }
        };
        ShardMap::new(1, (0..=data_shards).map(shard).collect()).expect("a map")
    }

    #[test]
    fn equal_arcs_are_those_of_the_protocol() {
        for data_shards in [1, 2, 3, 7, 64, 1000, 65_536] {
            let map = equal_map(data_shards);
            for number in 0..5_000u32 {
                let key = number.to_le_bytes();
                let position = krita_proto::routing::ring_position(&key);
                let expected = krita_proto::routing::shard_of(&key, data_shards);
                assert_eq!(map.shard_at(position).0, expected);
            }
        }
    }

    #[test]
    fn the_edges_of_arcs_belong_to_the_shard_that_the_protocol_says() {
        for data_shards in [1, 2, 3, 7, 10, 65_535] {
            let map = equal_map(data_shards);
            let of = |position: u64| 1 + ((u128::from(position) * u128::from(data_shards)) >> 64) as u32;
            for shard in 1..=data_shards {
                let start = equal_arc_start(ShardNumber(shard), data_shards);
                for position in [start.saturating_sub(1), start, start.saturating_add(1), u64::MAX] {
                    assert_eq!(map.shard_at(position).0, of(position));
                }
            }
        }
    }

    #[test]
    fn a_configuration_has_voters_on_distinct_nodes() {
        let replica = |node, generation, role| Replica {
            id: replica_id(ShardNumber(1), NodeNumber(node), generation),
            role,
        };
        let fault = |replicas: &[Replica]| configuration_fault(ShardNumber(1), replicas);
        assert_eq!(fault(&[replica(1, 0, Role::Voter), replica(2, 0, Role::Learner)]), None);
        assert_eq!(fault(&[replica(1, 0, Role::Outgoing), replica(2, 0, Role::Incoming)]), None);
        assert_eq!(fault(&[replica(1, 0, Role::Learner)]), Some("nobody votes"));
        assert_eq!(fault(&[replica(1, 0, Role::Incoming)]), Some("nobody votes"));
        assert_eq!(fault(&[]), Some("nobody votes"));
        let twice = [replica(1, 0, Role::Voter), replica(1, 1, Role::Voter)];
        assert_eq!(fault(&twice), Some("two replicas on one node"));
        assert_eq!(
            configuration_fault(ShardNumber(2), &[replica(1, 0, Role::Voter)]),
            Some("a replica is not of this shard")
        );
    }
}
