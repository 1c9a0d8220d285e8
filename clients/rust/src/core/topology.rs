//! Which node and core a shard's request goes to: the cluster's map as last heard, corrected by what answers say.
//!
//! The map may be stale at any time; then a request reaches a node that forwards it once, or refuses it with a
//! hint. So nothing here needs to be right for a call to be correct, only for it to be fast.

use std::collections::BTreeMap;

use bytes::Bytes;
use krita_proto::routing::{SHARDS_MAX, shard_of};
use krita_proto::v1;

use crate::core::Moment;

/// Where one request goes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Target {
    /// The node's number; 0 = not known.
    pub node_number: u32,
    /// `host:port`.
    pub address: String,
    /// The core that shall serve it; `None` = any.
    pub core: Option<u16>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    nodes: Vec<u32>,
    /// 0 = none known.
    leader: u32,
    core: Option<u16>,
}

/// The cluster as this client knows it.
#[derive(Clone, Debug)]
pub struct Topology {
    cluster_id: Bytes,
    epoch: u64,
    /// Epochs that hints have named; a greater one than `epoch` asks for a refresh, once.
    epoch_hinted: u64,
    members: BTreeMap<u32, String>,
    /// Position = shard number - 1.
    places: Vec<Place>,
    /// Nodes that failed lately, and until when they are asked last.
    suspects: BTreeMap<u32, Moment>,
}

/// A status that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TopologyError {
    /// It is another cluster of the same name.
    #[error("the node belongs to another cluster of the same name: it was erased and formed anew")]
    OtherCluster,
    /// It has no shards or members yet, or more than there can be.
    #[error("the node's map has {shards} shards and {members} members")]
    Unusable {
        /// How many shards it names.
        shards: usize,
        /// How many members it names.
        members: usize,
    },
}

impl Topology {
    /// The map in a status.
    pub fn new(status: &v1::ClusterStatusReply) -> Result<Self, TopologyError> {
        let mut topology = Self {
            cluster_id: status.cluster_id.clone(),
            epoch: 0,
            epoch_hinted: 0,
            members: BTreeMap::new(),
            places: Vec::new(),
            suspects: BTreeMap::new(),
        };
        topology.update(status)?;
        Ok(topology)
    }

    /// Takes over a newer status; an older epoch is ignored. A leader that the status does not know stays.
    pub fn update(&mut self, status: &v1::ClusterStatusReply) -> Result<(), TopologyError> {
        if status.cluster_id != self.cluster_id {
            return Err(TopologyError::OtherCluster);
        }
        let (shards, members) = (status.shards.len(), status.members.len());
        if shards == 0 || shards > SHARDS_MAX as usize || members == 0 {
            return Err(TopologyError::Unusable { shards, members });
        }
        if status.epoch < self.epoch {
            return Ok(());
        }
        self.epoch = status.epoch;
        self.epoch_hinted = self.epoch_hinted.max(status.epoch);
        self.members =
            status.members.iter().map(|member| (member.node_number, member.address.clone())).collect();
        self.places.resize(shards, Place::default());
        for (place, told) in self.places.iter_mut().zip(&status.shards) {
            place.nodes.clone_from(&told.nodes);
            if told.leader_node != 0 {
                place.leader = told.leader_node;
                place.core = core_from_plus_one(told.leader_core_plus_one);
            }
        }
        let members = &self.members;
        self.suspects.retain(|node, _| members.contains_key(node));
        Ok(())
    }

    /// How many data shards there are.
    pub fn shard_count(&self) -> u32 {
        // At most SHARDS_MAX, see `update`.
        self.places.len() as u32
    }

    /// The shard that holds a key.
    pub fn shard_of(&self, key: &[u8]) -> u32 {
        shard_of(key, self.shard_count())
    }

    /// The members' numbers and addresses.
    pub fn members(&self) -> impl Iterator<Item = (u32, &str)> {
        self.members.iter().map(|(number, address)| (*number, address.as_str()))
    }

    /// An answer said who serves a shard. Returns whether the map should be refreshed: the hint names a newer map,
    /// or a node that this one lacks.
    pub fn hint(&mut self, hint: &v1::ServedBy) -> bool {
        let is_newer = hint.epoch > self.epoch_hinted;
        self.epoch_hinted = self.epoch_hinted.max(hint.epoch);
        let Some(place) = self.places.get_mut((hint.shard as usize).wrapping_sub(1)) else { return is_newer };
        if hint.node_number == 0 {
            return is_newer;
        }
        place.leader = hint.node_number;
        place.core = u16::try_from(hint.core).ok();
        // Another node has just heard it: if it is gone all the same, the next attempt suspects it again.
        self.suspects.remove(&hint.node_number);
        is_newer || !self.members.contains_key(&hint.node_number)
    }

    /// A node did not answer: ask it last until `until`.
    pub fn suspect(&mut self, node_number: u32, until: Moment) {
        if self.members.contains_key(&node_number) {
            self.suspects.insert(node_number, until);
        }
    }

    /// A node answered.
    pub fn clear_suspicion(&mut self, node_number: u32) {
        self.suspects.remove(&node_number);
    }

    /// Where the next attempt for `shard` goes: the leader, if it is known, not suspect and not `avoid`; else
    /// another replica, by `rotation`; else any other member, which forwards; else whoever there is.
    pub fn target(&self, shard: u32, avoid: Option<u32>, rotation: u32, now: Moment) -> Option<Target> {
        let place = self.places.get((shard as usize).wrapping_sub(1))?;
        let is_fit = |node: u32| {
            Some(node) != avoid
                && self.members.contains_key(&node)
                && self.suspects.get(&node).is_none_or(|until| now >= *until)
        };
        if is_fit(place.leader) {
            return self.target_at(place.leader, place.core);
        }
        let replicas = place.nodes.iter().copied().filter(|node| self.members.contains_key(node));
        let others = self.members.keys().copied().filter(|node| !place.nodes.contains(node));
        let fit = pick(replicas.clone().filter(|node| is_fit(*node)), rotation)
            .or_else(|| pick(others.filter(|node| is_fit(*node)), rotation))
            .or_else(|| pick(replicas, rotation))
            .or_else(|| pick(self.members.keys().copied(), rotation))?;
        let core = if fit == place.leader { place.core } else { None };
        self.target_at(fit, core)
    }

    /// Where the next attempt for `shard` goes if any replica may answer: one that is not suspect and not `avoid`, by
    /// `rotation`; else as [`Topology::target`].
    pub fn target_of_any(
        &self,
        shard: u32,
        avoid: Option<u32>,
        rotation: u32,
        now: Moment,
    ) -> Option<Target> {
        let place = self.places.get((shard as usize).wrapping_sub(1))?;
        let fit = place.nodes.iter().copied().filter(|node| {
            Some(*node) != avoid
                && self.members.contains_key(node)
                && self.suspects.get(node).is_none_or(|until| now >= *until)
        });
        match pick(fit, rotation) {
            Some(node) => self.target_at(node, if node == place.leader { place.core } else { None }),
            None => self.target(shard, avoid, rotation, now),
        }
    }

    fn target_at(&self, node_number: u32, core: Option<u16>) -> Option<Target> {
        let address = self.members.get(&node_number)?.clone();
        Some(Target { node_number, address, core })
    }

    /// All members, those that are not suspect first, from `rotation` on: whom to ask for a newer map.
    pub fn informants(&self, rotation: u32, now: Moment) -> Vec<Target> {
        let mut targets: Vec<_> =
            self.members.keys().filter_map(|node| self.target_at(*node, None)).collect();
        if !targets.is_empty() {
            let middle = rotation as usize % targets.len();
            targets.rotate_left(middle);
        }
        targets
            .sort_by_key(|target| self.suspects.get(&target.node_number).is_some_and(|until| now < *until));
        targets
    }
}

fn core_from_plus_one(core_plus_one: u32) -> Option<u16> {
    u16::try_from(core_plus_one.checked_sub(1)?).ok()
}

fn pick(nodes: impl Iterator<Item = u32> + Clone, rotation: u32) -> Option<u32> {
    let count = nodes.clone().count();
    if count == 0 {
        return None;
    }
    let mut nodes = nodes;
    nodes.nth(rotation as usize % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(1_000);

    fn status(epoch: u64, leaders: &[u32]) -> v1::ClusterStatusReply {
        v1::ClusterStatusReply {
            epoch,
            members: (1..=4)
                .map(|number| v1::Member {
                    node_number: number,
                    address: format!("n{number}"),
                    ..Default::default()
                })
                .collect(),
            shards: leaders
                .iter()
                .zip(1..)
                .map(|(leader, shard)| v1::ShardPlace {
                    shard,
                    nodes: vec![1, 2, 3],
                    leader_node: *leader,
                    leader_core_plus_one: 2,
                })
                .collect(),
            ..Default::default()
        }
    }

    fn node(topology: &Topology, avoid: Option<u32>, rotation: u32) -> u32 {
        topology.target(1, avoid, rotation, NOW).unwrap().node_number
    }

    #[test]
    fn the_leader_and_its_core_are_asked_first() {
        let topology = Topology::new(&status(1, &[2, 3])).unwrap();
        let target = topology.target(1, None, 0, NOW).unwrap();
        assert_eq!(target, Target { node_number: 2, address: "n2".into(), core: Some(1) });
        assert_eq!(topology.target(3, None, 0, NOW), None, "there is no such shard");
    }

    #[test]
    fn failing_nodes_are_asked_last_and_forgiven_later() {
        let mut topology = Topology::new(&status(1, &[2])).unwrap();
        topology.suspect(2, NOW.after(10));
        assert_eq!([node(&topology, None, 0), node(&topology, None, 1)], [1, 3]);
        assert_eq!(node(&topology, Some(1), 0), 3);
        topology.suspect(1, NOW.after(10));
        topology.suspect(3, NOW.after(10));
        assert_eq!(node(&topology, None, 0), 4, "a member without a replica forwards");
        topology.suspect(4, NOW.after(10));
        assert!([1, 2, 3].contains(&node(&topology, None, 0)), "all suspect: still somebody is asked");
        assert_eq!(topology.target(1, None, 0, NOW.after(10)).unwrap().node_number, 2);
    }

    #[test]
    fn hints_correct_the_map_and_ask_for_a_refresh_once() {
        let mut topology = Topology::new(&status(5, &[2])).unwrap();
        let hint = |node_number, epoch| v1::ServedBy { shard: 1, node_number, core: 0, epoch };
        assert!(!topology.hint(&hint(3, 5)));
        assert_eq!(node(&topology, None, 0), 3);
        assert!(topology.hint(&hint(3, 6)), "a newer map exists");
        assert!(!topology.hint(&hint(3, 6)), "asked once");
        assert!(topology.hint(&hint(9, 6)), "an unknown node");
        assert!([1, 2, 3].contains(&node(&topology, None, 0)));
        topology.suspect(3, NOW.after(10));
        topology.hint(&hint(3, 6));
        assert_eq!(node(&topology, None, 0), 3, "who is named a leader is not suspect");
        assert!(!topology.hint(&v1::ServedBy { shard: 77, ..hint(1, 6) }));
    }

    #[test]
    fn an_older_map_and_another_cluster_change_nothing() {
        let mut topology = Topology::new(&status(5, &[2])).unwrap();
        topology.update(&status(4, &[3])).unwrap();
        assert_eq!(node(&topology, None, 0), 2);
        topology.update(&status(5, &[0])).unwrap();
        assert_eq!(node(&topology, None, 0), 2, "who knows no leader does not unseat one");
        let other = v1::ClusterStatusReply { cluster_id: "x".into(), ..status(9, &[1]) };
        assert_eq!(topology.update(&other), Err(TopologyError::OtherCluster));
        assert!(Topology::new(&status(1, &[])).is_err());
    }
}
