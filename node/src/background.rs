//! What a core does by itself while it serves: ticks, checkpoints, handing leadership to where it belongs, and
//! ending in good order.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_engine::LogError;
use krita_raft::{ReplicaId, ReplicationMode, Suspicion, Term};
use krita_runtime::{Instant, Runtime};

use crate::core::{Core, Serving};
use crate::meta::node_of;
use crate::open::checkpoint_meta;
use crate::peers::PeerCore;
use crate::replica::{Replica, raft_time};

/// How often deadlines of waiting requests are looked at.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(50);

/// How often the log is asked whether a checkpoint is due.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);

/// How often leaders are looked at, and how many are moved each time.
const BALANCE_INTERVAL: Duration = Duration::from_millis(500);
const BALANCE_MOVES_MAX: usize = 4;

/// How long one that has just come to lead is left alone.
const BALANCE_AFTER: Duration = Duration::from_millis(2_500);

/// How long a leader that could not be moved is left alone: while a move is tried the shard takes no writes, and a
/// target with a hung disk looks well.
const BALANCE_RETRY: Duration = Duration::from_secs(15);

/// How long an ending node tries to hand its leaderships over.
const HAND_OFF_MAX: Duration = Duration::from_secs(3);

/// The same for a node whose log failed: others elect soon anyway, and nothing here can be promised any more.
const GIVE_UP_MAX: Duration = Duration::from_millis(500);

impl<R: Runtime> Core<R> {
    /// Lets time pass for every replica. It never waits for a disk.
    pub(crate) async fn tick(self: Rc<Self>) {
        let heartbeat = self.input.config.heartbeat_interval;
        let interval = (heartbeat / 4).clamp(Duration::from_millis(5), Duration::from_millis(50));
        let mut expire_at = self.runtime.now();
        while !self.is_ending() {
            self.runtime.sleep(interval).await;
            let now = self.runtime.now();
            let is_expire_due = now >= expire_at;
            if is_expire_due {
                expire_at = now + EXPIRE_INTERVAL;
            }
            self.tick_replicas(now, is_expire_due);
            if self.input.stop.is_set() {
                self.hand_off_and_finish().await;
            }
        }
    }

    fn tick_replicas(self: &Rc<Self>, now: Instant, is_expire_due: bool) {
        let news = self.peers.tick(now);
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else { return };
        let mut superseded = Vec::new();
        for replica in serving.replicas.values_mut().filter(|replica| !replica.belonging.is_leaving) {
            if replica.raft.next_tick() <= raft_time(now) {
                replica.raft.tick(raft_time(now));
                self.touch(replica);
            }
            if is_expire_due {
                replica.expire(now);
            }
            if replica.is_install_superseded {
                superseded.push(replica.shard);
            }
        }
        for lost in &news.lost {
            self.each_on_core(serving, *lost, |replica, id| {
                replica.raft.peer_unreachable(raft_time(now), id)
            });
        }
        for silent in &news.silent {
            self.on_core_death(serving, now, *silent);
        }
        drop(guard);
        if is_expire_due {
            self.views.expire(now);
        }
        if is_expire_due || !superseded.is_empty() {
            self.abandon_incoming(|incoming| {
                incoming.is_idle_since(now - INCOMING_IDLE_MAX) || superseded.contains(&incoming.shard())
            });
        }
    }

    /// A core of another node fell silent or started anew: groups that are idle and have their leader there must
    /// not wait for traffic to notice.
    pub(crate) fn on_core_death(&self, serving: &mut Serving<R>, now: Instant, dead: PeerCore) {
        self.each_on_core(serving, dead, |replica, id| replica.raft.peer_core_died(raft_time(now), id));
    }

    /// Tells every replica of this core something about its group's member on a core of another node. Where it is
    /// not known which core of that node owns the shard, any may be meant.
    fn each_on_core(
        &self,
        serving: &mut Serving<R>,
        peer: PeerCore,
        mut tell: impl FnMut(&mut Replica<R>, ReplicaId),
    ) {
        for replica in serving.replicas.values_mut() {
            let owner = self.peers.core_of_shard(peer.node_number, replica.shard);
            if owner.is_some_and(|owner| owner != peer.core) {
                continue;
            }
            if let Some(id) = replica.member_on(peer.node_number) {
                tell(replica, id);
                self.touch(replica);
            }
        }
    }

    /// Checkpoints whichever shard most needs it, one at a time, and without a rest while there is one: evacuated
    /// segments wait for the checkpoints of many shards.
    pub(crate) async fn checkpoint_when_due(self: Rc<Self>) {
        while !self.is_ending() {
            let logs = self.serving.borrow().as_ref().map_or(0, |serving| serving.logs.len());
            let mut is_any_due = false;
            for log in 0..logs {
                is_any_due |= self.checkpoint_log(log).await;
            }
            if !is_any_due {
                self.runtime.sleep(CHECKPOINT_INTERVAL).await;
            }
        }
    }

    /// Takes the checkpoint that is due, if there is one. False also if it could not be taken: later, then.
    async fn checkpoint_log(self: &Rc<Self>, log: usize) -> bool {
        let store = self.serving.borrow().as_ref().map(|serving| serving.logs[log].store.clone());
        let Some(store) = store else { return false };
        let Some(shard) = store.checkpoint_due() else { return false };
        let meta = self
            .with_replica(shard.0, |replica| {
                // Also of a replica that has stopped: what it has applied is sound, and it must not keep the
                // others' checkpoints from being taken.
                (!replica.hold_output).then(|| checkpoint_meta(replica))
            })
            .flatten();
        let Some(meta) = meta else { return false };
        if let Err(error) = store.checkpoint(shard, meta).await {
            // The log keeps what the checkpoint would have freed; a poisoned log ends the node by itself.
            tracing::warn!(shard = shard.0, %error, "checkpoint failed");
            if let LogError::Corruption(corruption) = &error {
                self.suspect(shard.0, Suspicion::NeedsSnapshot, &corruption.to_string());
            }
            return false;
        }
        self.with_replica(shard.0, |replica| self.tell_first_index(replica));
        true
    }

    /// Moves leaderships to where the placement wants them, a few at a time, once the target is well.
    pub(crate) async fn balance_leaders(self: Rc<Self>) {
        self.campaign_where_preferred().await;
        while !self.is_ending() && !self.input.stop.is_set() {
            self.runtime.sleep(BALANCE_INTERVAL).await;
            let now = self.runtime.now();
            let mut guard = self.serving.borrow_mut();
            let Some(serving) = guard.as_mut() else { continue };
            let Serving { cluster, replicas, .. } = serving;
            let mut moves = 0;
            for replica in replicas.values_mut().filter(|replica| replica.is_leader()) {
                let Some(to) = cluster.leader_to_be(replica.shard) else { continue };
                let preferred = node_of(to).0;
                if std::mem::take(&mut replica.has_just_won) {
                    // It may lead by somebody's wish, who is about to go on.
                    replica.balance_at = replica.balance_at.max(now + BALANCE_AFTER);
                }
                if to == replica.id || moves == BALANCE_MOVES_MAX || now < replica.balance_at {
                    continue;
                }
                if is_caught_up(replica, to)
                    && self.peers.is_connected(preferred)
                    // A disk that is nearly full is full again soon: leaderships would go to and fro.
                    && self.peers.room_of(preferred, replica.shard).is_ample()
                    && replica.raft.transfer_leadership(raft_time(now), to).is_ok()
                {
                    moves += 1;
                    replica.balance_at = now + BALANCE_RETRY;
                    self.touch(replica);
                }
            }
        }
    }

    /// At the very first start nobody leads anything: whoever should lead a shard asks at once.
    async fn campaign_where_preferred(self: &Rc<Self>) {
        let deadline = self.runtime.now() + self.input.config.election_timeout;
        while self.runtime.now() < deadline && !self.peers.all_connected() {
            self.runtime.sleep(Duration::from_millis(10)).await;
        }
        let now = raft_time(self.runtime.now());
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else { return };
        let Serving { cluster, replicas, .. } = serving;
        for replica in replicas.values_mut().filter(|replica| replica.leader.is_none()) {
            let is_preferred = cluster.preferred_leader(replica.shard) == Some(replica.id);
            if is_preferred && replica.raft.campaign(now).is_ok() {
                self.touch(replica);
            }
        }
    }

    /// Gives every leadership to another node, as far as that goes in a bounded time, and ends the core.
    async fn hand_off_and_finish(self: &Rc<Self>) {
        let limit = if self.has_failed() { GIVE_UP_MAX } else { HAND_OFF_MAX };
        self.begin_closing_doors();
        self.begin_leaving();
        let deadline = self.runtime.now() + limit;
        let mut given = BTreeMap::new();
        while self.runtime.now() < deadline && !self.is_ending() {
            let led = self.hand_off(self.runtime.now(), &mut given);
            if led == 0 {
                break;
            }
            self.runtime.sleep(Duration::from_millis(20)).await;
            self.tick_replicas(self.runtime.now(), false);
        }
        self.has_left().await;
        // Let the last answers leave.
        self.runtime.pause().await;
        self.runtime.sleep(Duration::from_millis(50)).await;
        self.doors_closed().await;
        self.finish();
    }

    /// Starts a transfer of each leadership that can be given away; returns how many this core still holds. One
    /// that comes back stays: where all nodes end at once, they would hand it round and round. `given` holds the
    /// term in which each was first given away.
    fn hand_off(&self, now: Instant, given: &mut BTreeMap<u32, Term>) -> usize {
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else { return 0 };
        let mut led = 0;
        for (shard, replica) in serving.replicas.iter_mut().filter(|(_, replica)| replica.is_leader()) {
            let status = replica.raft.status();
            if given.get(shard).is_some_and(|term| *term != status.term) {
                continue;
            }
            let best = status
                .followers
                .iter()
                .filter(|follower| follower.mode == ReplicationMode::Pipeline)
                .filter(|follower| replica.raft.configuration().voters.contains(&follower.id))
                .filter(|follower| self.peers.is_connected(node_of(follower.id).0))
                .max_by_key(|follower| follower.matched);
            if let Some(best) = best {
                led += 1;
                given.insert(*shard, status.term);
                // Already under way is as good.
                let _ = replica.raft.transfer_leadership(raft_time(now), best.id);
                self.touch(replica);
            }
        }
        led
    }
}

/// A snapshot on its way in that nobody continues for this long is given up.
const INCOMING_IDLE_MAX: Duration = Duration::from_secs(5);

fn is_caught_up<R: Runtime>(replica: &Replica<R>, to: ReplicaId) -> bool {
    let status = replica.raft.status();
    status.transferring_to.is_none()
        && status.followers.iter().any(|follower| {
            follower.id == to
                && follower.mode == ReplicationMode::Pipeline
                && follower.matched.0 + 1_000 > status.last.0
        })
}
