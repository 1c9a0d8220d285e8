//! Room on disks: how much this node has, what its peers say of theirs, and what is refused when there is none.
//!
//! New values are refused by the leader, before they are in any log, once its own disk or those of too many followers
//! have nothing left beyond the reserve. A follower's disk that fills up alone stops nobody: it acknowledges nothing
//! more and catches up once it has room. Reads go on, and so do deletes, which make room.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_engine::Headroom;
use krita_proto::error::ErrorCode;
use krita_raft::{Configuration, ReplicaId, ReplicationMode};
use krita_runtime::{Instant, Runtime};

use crate::core::{Core, Serving};
use crate::failure::Failure;
use crate::meta::node_of;
use crate::replica::{Replica, raft_time};
use crate::request::{Action, Write};

/// How often room is measured: seldom while there is enough.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
const WATCH_INTERVAL_AMPLE: Duration = Duration::from_secs(1);

/// Leaderships that a full node gives away each time, and how long one that could not be given away is left alone.
const MOVES_MAX: usize = 16;
const MOVE_RETRY: Duration = Duration::from_secs(2);

/// The room on one core's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    pub(crate) headroom: Headroom,
    /// Of the file system, reserve included.
    pub(crate) free_bytes: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self { headroom: Headroom::Ample, free_bytes: u64::MAX }
    }
}

impl Room {
    pub(crate) fn is_full(self) -> bool {
        self.headroom == Headroom::Full
    }

    pub(crate) fn is_ample(self) -> bool {
        self.headroom == Headroom::Ample
    }

    /// What is left for a log that has so many segments ready: beyond them and the reserve.
    fn measured(free_bytes: u64, reserve_bytes: u64, segment_bytes: u64, segments_ready: u64) -> Self {
        let segments = free_bytes.saturating_sub(reserve_bytes) / segment_bytes.max(1) + segments_ready;
        let headroom = match segments {
            0 => Headroom::Full,
            1..=3 => Headroom::Low,
            _ => Headroom::Ample,
        };
        Self { headroom, free_bytes }
    }

    /// The headroom's number in a burst.
    pub(crate) fn number(self) -> u32 {
        match self.headroom {
            Headroom::Ample => 0,
            Headroom::Low => 1,
            Headroom::Full => 2,
        }
    }

    /// What a peer said of its room. A number that this version does not know stops nobody.
    pub(crate) fn from_burst(number: u32, free_bytes: u64) -> Self {
        let headroom = match number {
            1 => Headroom::Low,
            2 => Headroom::Full,
            _ => Headroom::Ample,
        };
        Self { headroom, free_bytes }
    }
}

/// The replicas whose full disks keep new values out; empty if there is room for them. The leader has to write them
/// itself, and a quorum has to have room.
fn in_the_way(
    configuration: &Configuration,
    leader: ReplicaId,
    is_full: impl Fn(ReplicaId) -> bool,
) -> Vec<ReplicaId> {
    let has_room = !is_full(leader) && configuration.is_quorum(|voter| !is_full(voter));
    match has_room {
        true => Vec::new(),
        false => configuration.all_voters().filter(|voter| is_full(*voter)).collect(),
    }
}

/// Tells a writer why there is no room, and what to do.
fn no_room(nodes: &BTreeMap<u32, Room>, reserve_bytes: u64) -> Failure {
    let full: Vec<String> = nodes
        .iter()
        .map(|(node, room)| format!("node {node} has {} free", mebibytes(room.free_bytes)))
        .collect();
    Failure::new(
        ErrorCode::ResourceExhausted,
        format!(
            "no room for new values: {}, of which disk_reserve_bytes keeps {}; add disk space there or delete keys. \
             Reads and deletes go on; nothing was applied",
            full.join(", "),
            mebibytes(reserve_bytes),
        ),
    )
}

fn mebibytes(bytes: u64) -> String {
    match bytes {
        u64::MAX => "little".to_owned(),
        bytes => format!("{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
    }
}

fn puts_something(write: &Write) -> bool {
    write.operations.iter().any(|operation| matches!(operation.action, Action::Put(_)))
}

impl<R: Runtime> Core<R> {
    /// Why a write must not be proposed now for want of room; `None` if it may be.
    pub(crate) fn refusal_for_room(&self, replica: &Replica<R>, write: &Write) -> Option<Failure> {
        if !puts_something(write) {
            return None;
        }
        let room = |id: ReplicaId| match id == replica.id {
            true => self.peers.own_room(),
            false => self.peers.room_of(node_of(id).0, replica.shard),
        };
        let full = in_the_way(replica.raft.configuration(), replica.id, |id| room(id).is_full());
        if full.is_empty() {
            return None;
        }
        let nodes = full.iter().map(|id| (node_of(*id).0, room(*id))).collect();
        Some(no_room(&nodes, self.input.config.disk_reserve_bytes))
    }

    /// Keeps an eye on the room that this core has, tells the peers and the log, and gives leaderships away while there
    /// is none.
    pub(crate) async fn watch_room(self: Rc<Self>) {
        let mut was_full = false;
        while !self.is_ending() {
            let room = self.measure_room().await;
            self.peers.set_own_room(room);
            self.check_logs();
            if room.is_full() != was_full {
                was_full = room.is_full();
                self.tell_room(room);
            }
            if room.is_full() {
                self.give_leaderships_away(self.runtime.now());
            }
            self.runtime.sleep(if room.is_ample() { WATCH_INTERVAL_AMPLE } else { WATCH_INTERVAL }).await;
        }
    }

    /// The room of the log that has least. The logs know what they have ready, but not when somebody else takes or
    /// frees space.
    async fn measure_room(&self) -> Room {
        let config = &self.input.config;
        let Ok(free_bytes) = self.runtime.available_bytes(&config.data_directory).await else {
            return self.peers.own_room();
        };
        let guard = self.serving.borrow();
        let logs = guard.as_ref().map(|serving| serving.logs.iter()).into_iter().flatten();
        let ready = logs.map(|log| log.store.statistics().segments_spare).min().unwrap_or(0);
        Room::measured(free_bytes, config.disk_reserve_bytes, config.segment_bytes, ready)
    }

    /// Whether what is already in some log, and waits for room here, may use the reserve: half of it is for that, the
    /// other half for what frees space.
    pub(crate) async fn may_use_reserve(&self) -> bool {
        let free_bytes = self.runtime.available_bytes(&self.input.config.data_directory).await;
        free_bytes.is_ok_and(|free_bytes| free_bytes > self.input.config.disk_reserve_bytes / 2)
    }

    /// A log may also fail where no write of a replica waits for it.
    fn check_logs(&self) {
        let guard = self.serving.borrow();
        let logs = guard.as_ref().map(|serving| serving.logs.iter()).into_iter().flatten();
        if let Some(reason) = logs.filter_map(|log| log.store.poisoned()).next()
            && !self.has_failed()
        {
            self.give_up(format!("log failed: {reason}"));
        }
    }

    fn tell_room(&self, room: Room) {
        let (free_bytes, reserve_bytes) = (room.free_bytes, self.input.config.disk_reserve_bytes);
        let directory = self.input.config.data_directory.display();
        match room.is_full() {
            true => tracing::error!(
                %directory,
                free_bytes,
                reserve_bytes,
                "the disk is full: new values are refused until space is made or keys are deleted"
            ),
            false => tracing::info!(%directory, free_bytes, "the disk has room again"),
        }
    }

    /// Whoever has room should lead.
    fn give_leaderships_away(&self, now: Instant) {
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else { return };
        let Serving { replicas, .. } = serving;
        let led = replicas.values_mut().filter(|replica| replica.is_leader() && now >= replica.balance_at);
        for replica in led.take(MOVES_MAX) {
            replica.balance_at = now + MOVE_RETRY;
            let Some(to) = self.best_with_room(replica) else { continue };
            if replica.raft.transfer_leadership(raft_time(now), to).is_ok() {
                tracing::info!(shard = replica.shard, to = to.0, "leadership goes where there is room");
                self.touch(replica);
            }
        }
    }

    fn best_with_room(&self, replica: &Replica<R>) -> Option<ReplicaId> {
        let status = replica.raft.status();
        let able = status.followers.iter().filter(|follower| {
            let node = node_of(follower.id).0;
            follower.mode == ReplicationMode::Pipeline
                && replica.raft.configuration().voters.contains(&follower.id)
                && self.peers.is_connected(node)
                && !self.peers.room_of(node, replica.shard).is_full()
        });
        able.max_by_key(|follower| follower.matched).map(|follower| follower.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_leader_or_quorum_keeps_new_values_out_and_a_full_follower_does_not() {
        let [a, b, c] = [1, 2, 3].map(ReplicaId);
        let three = Configuration::new([a, b, c], []);
        let way = |full: &[ReplicaId]| in_the_way(&three, a, |id| full.contains(&id));
        assert_eq!(way(&[]), []);
        assert_eq!(way(&[b]), [], "two of three have room");
        assert_eq!(way(&[a]), [a], "the leader writes it too");
        assert_eq!(way(&[b, c]), [b, c]);
        let alone = Configuration::new([a], []);
        assert_eq!(in_the_way(&alone, a, |_| true), [a]);
    }

    #[test]
    fn the_refusal_names_the_node_the_bytes_and_what_to_do() {
        let room = Room { headroom: Headroom::Full, free_bytes: 3 << 19 };
        let failure = no_room(&BTreeMap::from([(7, room)]), 64 << 20);
        assert_eq!((failure.code, failure.retry_after_ms), (ErrorCode::ResourceExhausted, 0));
        for part in ["node 7 has 1.5 MiB free", "64.0 MiB", "add disk", "delete keys", "nothing was applied"]
        {
            assert!(failure.message.contains(part), "{}", failure.message);
        }
    }

    #[test]
    fn room_is_what_is_free_beyond_the_reserve_and_what_is_ready() {
        let measured = |free: u64, ready: u64| Room::measured(free << 20, 64 << 20, 4 << 20, ready).headroom;
        assert_eq!(measured(1024, 0), Headroom::Ample);
        assert_eq!(measured(64 + 4, 0), Headroom::Low);
        assert_eq!(measured(64 + 3, 0), Headroom::Full);
        assert_eq!(measured(3, 0), Headroom::Full);
        assert_eq!(measured(3, 2), Headroom::Low, "what is ready can be written");
    }

    #[test]
    fn room_survives_a_burst() {
        for headroom in [Headroom::Ample, Headroom::Low, Headroom::Full] {
            let room = Room { headroom, free_bytes: 5 };
            assert_eq!(Room::from_burst(room.number(), 5), room);
        }
        assert!(!Room::from_burst(9, 0).is_full(), "of a newer version");
    }
}
