//! Replicas of a shard compare themselves: each keeps the rolling hash of its state at some indexes, and the leader
//! asks the others for theirs. Equal replicas have equal hashes at equal indexes.
//!
//! A replica that differs from a majority is quarantined and filled anew. Where no majority agrees, it is only said.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use krita_proto::v1;
use krita_raft::{ReplicaId, Suspicion};
use krita_runtime::{Instant, Runtime};

use crate::core::Core;
use crate::failure::Failure;
use crate::meta::node_of;
use crate::replica::Replica;
use crate::responder::Responder;

/// How often a leader compares all its shards: a difference is found within a few times this.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);

/// How long a peer has to answer, and how long a comparison on demand tries again.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(2);
const VERIFY_RETRY: Duration = Duration::from_millis(50);

/// Hashes are kept of this many last indexes, and of as many multiples of this number before.
const RECENT: usize = 128;
const MARK_EVERY: u64 = 512;
const MARKS: usize = 32;

/// Shards that one message compares.
const SHARDS_MAX: usize = 4096;

/// The state hashes of one replica at its last indexes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Hashes {
    /// Without gaps.
    recent: VecDeque<(u64, u64)>,
    marks: VecDeque<(u64, u64)>,
}

impl Hashes {
    /// The state at `index`, the one behind the last noted.
    pub(crate) fn note(&mut self, index: u64, hash: u64) {
        push(&mut self.recent, RECENT, (index, hash));
        if index.is_multiple_of(MARK_EVERY) {
            push(&mut self.marks, MARKS, (index, hash));
        }
    }

    /// Another state has taken the place of what was noted.
    pub(crate) fn reset(&mut self, index: u64, hash: u64) {
        *self = Self::default();
        self.note(index, hash);
    }

    fn at(&self, index: u64) -> Option<u64> {
        let known = |list: &VecDeque<(u64, u64)>| {
            list.binary_search_by_key(&index, |(at, _)| *at).ok().map(|position| list[position].1)
        };
        known(&self.recent).or_else(|| known(&self.marks))
    }

    /// Where replicas that are not quite as far may meet: now, a little back, and further back.
    fn points(&self) -> Vec<(u64, u64)> {
        let marks = [self.marks.len().checked_sub(1), self.marks.len().checked_sub(4), Some(0)];
        let marks = marks.into_iter().flatten().filter_map(|position| self.marks.get(position));
        let mut points: Vec<_> =
            self.recent.back().into_iter().chain(self.recent.front()).chain(marks).copied().collect();
        points.sort_unstable();
        points.dedup();
        points
    }
}

fn push(list: &mut VecDeque<(u64, u64)>, length_max: usize, item: (u64, u64)) {
    if list.len() == length_max {
        list.pop_front();
    }
    list.push_back(item);
}

/// What a comparison at one index says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Verdict {
    Equal,
    /// These differ from what a majority of the group has.
    Minority {
        hash: u64,
        replicas: Vec<ReplicaId>,
    },
    /// They differ, and no majority agrees.
    Undecided,
}

/// Judges the hashes at one index of a group with so many voters.
fn judge(hashes: &[(ReplicaId, u64)], voters: usize) -> Verdict {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for (_, hash) in hashes {
        *counts.entry(*hash).or_default() += 1;
    }
    if counts.len() <= 1 {
        return Verdict::Equal;
    }
    match counts.iter().find(|(_, count)| **count * 2 > voters) {
        Some((hash, _)) => {
            let differ = hashes.iter().filter(|(_, other)| other != hash).map(|(replica, _)| *replica);
            Verdict::Minority { hash: *hash, replicas: differ.collect() }
        }
        None => Verdict::Undecided,
    }
}

/// What the replicas of one shard said: by index, then the hashes there.
type Said = BTreeMap<u64, Vec<(ReplicaId, u64)>>;

impl<R: Runtime> Core<R> {
    /// Compares the replicas of every shard that this core leads, again and again.
    pub(crate) async fn compare_replicas(self: Rc<Self>) {
        while !self.is_ending() {
            self.runtime.sleep(COMPARE_INTERVAL).await;
            let led = self.led_points(|_| true);
            for (shard, said) in self.ask_for_hashes(led).await {
                self.act_on(shard, &said).await;
            }
        }
    }

    /// The points of the shards that this core leads.
    fn led_points(&self, which: impl Fn(u32) -> bool) -> BTreeMap<u32, Said> {
        let guard = self.serving.borrow();
        let replicas = guard.as_ref().map(|serving| serving.replicas.values()).into_iter().flatten();
        let led = replicas.filter(|replica| replica.is_leader() && which(replica.shard));
        led.map(|replica| {
            let points = replica.hashes.points().into_iter();
            (replica.shard, points.map(|(index, hash)| (index, vec![(replica.id, hash)])).collect())
        })
        .take(SHARDS_MAX)
        .collect()
    }

    /// Adds what the other replicas have at these points, as far as they answer.
    async fn ask_for_hashes(&self, mut said: BTreeMap<u32, Said>) -> BTreeMap<u32, Said> {
        let mut requests: BTreeMap<(u32, u16), (u32, v1::CompareHashes)> = BTreeMap::new();
        for (shard, points) in &said {
            for node in self.other_nodes(*shard) {
                let core = self.peers.core_of_shard(node, *shard).unwrap_or(0);
                let (_, request) = requests.entry((node, core)).or_insert((*shard, Default::default()));
                let point = |(index, hashes): (&u64, &Vec<(ReplicaId, u64)>)| v1::AppliedHash {
                    shard: *shard,
                    index: *index,
                    state_hash: hashes[0].1,
                };
                request.hashes.extend(points.iter().map(point));
            }
        }
        let asked = requests.into_iter().map(|((node, _), (shard, request))| async move {
            (node, self.peers.request(node, shard, &request, COMPARE_TIMEOUT).await)
        });
        for (node, reply) in futures_util::future::join_all(asked).await {
            let Ok(reply) = reply else { continue };
            for point in reply.hashes {
                let Some(replica) = self.replica_on(point.shard, node) else { continue };
                let at = said.get_mut(&point.shard).and_then(|said| said.get_mut(&point.index));
                if let Some(hashes) = at.filter(|hashes| hashes.iter().all(|(known, _)| *known != replica)) {
                    hashes.push((replica, point.state_hash));
                }
            }
        }
        said
    }

    fn other_nodes(&self, shard: u32) -> Vec<u32> {
        let guard = self.serving.borrow();
        let replica = guard.as_ref().and_then(|serving| serving.replicas.get(&shard));
        replica.map(|replica| replica.source.others.borrow().clone()).unwrap_or_default()
    }

    fn replica_on(&self, shard: u32, node: u32) -> Option<ReplicaId> {
        let guard = self.serving.borrow();
        guard.as_ref()?.replicas.get(&shard)?.member_on(node)
    }

    async fn act_on(self: &Rc<Self>, shard: u32, said: &Said) {
        let voters = self.with_replica(shard, |replica| replica.raft.configuration().all_voters().count());
        let Some(voters) = voters else { return };
        for (index, hashes) in said {
            match judge(hashes, voters) {
                Verdict::Equal => {}
                Verdict::Undecided => {
                    self.count_divergence();
                    tracing::error!(shard, index, ?hashes, "replicas differ, and no majority agrees");
                    return;
                }
                Verdict::Minority { hash, replicas } => {
                    self.count_divergence();
                    tracing::error!(shard, index, ?hashes, ?replicas, "replicas differ from the majority");
                    return self.quarantine(shard, *index, hash, &replicas).await;
                }
            }
        }
    }

    fn count_divergence(&self) {
        self.counters.divergences.set(self.counters.divergences.get() + 1);
    }

    /// Has the replicas that differ from the majority's hash filled anew.
    async fn quarantine(self: &Rc<Self>, shard: u32, index: u64, hash: u64, replicas: &[ReplicaId]) {
        let Some(own) = self.with_replica(shard, |replica| replica.id) else { return };
        let point = v1::AppliedHash { shard, index, state_hash: hash };
        for replica in replicas {
            if *replica == own {
                self.on_divergence(&point);
            } else {
                let node = node_of(*replica).0;
                let request = v1::CompareHashes { hashes: Vec::new(), diverged: vec![point] };
                if let Err(error) = self.peers.request(node, shard, &request, COMPARE_TIMEOUT).await {
                    // It will differ the next time, too.
                    tracing::warn!(shard, node, %error, "a replica that differs was not told");
                }
            }
        }
    }

    /// A majority has another state than this replica.
    fn on_divergence(self: &Rc<Self>, point: &v1::AppliedHash) {
        let differs =
            |replica: &Replica<R>| replica.hashes.at(point.index).is_some_and(|own| own != point.state_hash);
        self.with_replica(point.shard, |replica| {
            if differs(replica) {
                let reason = format!("its state differs from that of the majority at entry {}", point.index);
                self.suspect_replica(replica, Suspicion::NeedsSnapshot, &reason);
            }
        });
    }

    /// A leader compares: answers with the hashes that are known here, and takes in what it has found.
    pub(crate) fn on_compare_hashes(self: &Rc<Self>, request: v1::CompareHashes, responder: Responder) {
        for point in &request.diverged {
            self.on_divergence(point);
        }
        let guard = self.serving.borrow();
        let own = |point: &v1::AppliedHash| {
            let replica = guard.as_ref()?.replicas.get(&point.shard)?;
            let known = replica.hashes.at(point.index).filter(|_| !replica.is_quarantined())?;
            Some(v1::AppliedHash { state_hash: known, ..*point })
        };
        let hashes = request.hashes.iter().filter_map(own).collect();
        responder.message(&v1::CompareHashesReply { hashes });
    }

    /// Compares the replicas of one shard that this core leads, at an index that as many as possible have.
    pub(crate) async fn verify(self: Rc<Self>, shard: u32, deadline: Instant, responder: Responder) {
        let others = self.other_nodes(shard).len();
        let mut best: Option<(u64, Vec<(ReplicaId, u64)>)> = None;
        loop {
            let said = self.ask_for_hashes(self.led_points(|led| led == shard)).await.remove(&shard);
            let Some(said) = said else {
                return responder.fail(&Failure::unavailable("the shard's leader has changed"));
            };
            self.act_on(shard, &said).await;
            let met = said.into_iter().max_by_key(|(index, hashes)| (hashes.len(), *index));
            if met.as_ref().map(|met| met.1.len()) > best.as_ref().map(|best| best.1.len()) {
                best = met;
            }
            let is_whole = best.as_ref().is_some_and(|(_, hashes)| hashes.len() > others);
            if is_whole || self.runtime.now() + VERIFY_RETRY >= deadline {
                break;
            }
            self.runtime.sleep(VERIFY_RETRY).await;
        }
        let (index, hashes) = best.unwrap_or_default();
        let members = self.with_replica(shard, |replica| replica.raft.configuration().members());
        let members = members.unwrap_or_default();
        let replicas: Vec<v1::ReplicaHash> = members
            .iter()
            .map(|id| {
                let known = hashes.iter().find(|(replica, _)| replica == id);
                v1::ReplicaHash {
                    node_number: node_of(*id).0,
                    known: known.is_some(),
                    state_hash: known.map_or(0, |(_, hash)| *hash),
                }
            })
            .collect();
        let equal = judge(&hashes, members.len()) == Verdict::Equal;
        responder.message(&v1::VerifyReply { shard, index, replicas, equal });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_decides_and_a_tie_does_not() {
        let said = |hashes: &[u64]| {
            let replicas = (1..).map(ReplicaId);
            replicas.zip(hashes.iter().copied()).collect::<Vec<_>>()
        };
        assert_eq!(judge(&said(&[5, 5, 5]), 3), Verdict::Equal);
        assert_eq!(judge(&said(&[5]), 3), Verdict::Equal, "the others do not answer");
        let minority = Verdict::Minority { hash: 5, replicas: vec![ReplicaId(2)] };
        assert_eq!(judge(&said(&[5, 6, 5]), 3), minority);
        assert_eq!(judge(&said(&[5, 6]), 3), Verdict::Undecided, "one does not answer");
        assert_eq!(judge(&said(&[5, 6, 7]), 3), Verdict::Undecided);
        let leader = Verdict::Minority { hash: 6, replicas: vec![ReplicaId(1)] };
        assert_eq!(judge(&said(&[5, 6, 6]), 3), leader, "the leader is not more right than others");
    }

    #[test]
    fn hashes_are_known_lately_and_at_marks_before() {
        let mut hashes = Hashes::default();
        for index in 1..=3 * MARK_EVERY {
            hashes.note(index, index * 7);
        }
        let last = 3 * MARK_EVERY;
        for known in [last, last - RECENT as u64 + 1, MARK_EVERY, 2 * MARK_EVERY] {
            assert_eq!(hashes.at(known), Some(known * 7), "{known}");
        }
        for unknown in [0, 1, last + 1, last - RECENT as u64] {
            assert_eq!(hashes.at(unknown), None, "{unknown}");
        }
        assert!(hashes.points().iter().all(|(index, hash)| hashes.at(*index) == Some(*hash)));
        hashes.reset(9, 1);
        assert_eq!(hashes.points(), [(9, 1)]);
    }

    #[test]
    fn a_long_history_takes_bounded_memory() {
        let mut hashes = Hashes::default();
        for index in 1..100 * MARK_EVERY {
            hashes.note(index, index);
        }
        assert_eq!((hashes.recent.len(), hashes.marks.len()), (RECENT, MARKS));
        assert!(hashes.points().len() <= 5);
    }
}
