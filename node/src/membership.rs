//! Replicas that come and go on this node.
//!
//! *They come* when the leader of a group first speaks to them: a replica id names its node, and one that is newer
//! than all that this node has had of the shard (`replica_notes`) is opened empty. It knows no members, so it neither
//! campaigns nor counts; its leader fills it by the log or by a snapshot.
//!
//! *They go* when a configuration without them is committed. A replica that applies its own removal goes by itself.
//! One that missed it, because it was down, cut off, or is silent for want of traffic, asks those who may know, and
//! goes when told. One that hears of a newer replica of its own node goes too: leaders add a replica to a node only
//! once the older one is out (`orders`).
//!
//! Nothing that is told can take a member away by mistake: who answers has applied the log up to or beyond the entry by
//! which the replica believes itself to be a member, and the configuration there, which is committed, is without it. So
//! that entry was cut off, or followed by one that removed the replica; and since ids never come back, it is out for
//! good. That it is gone is durable before its data goes, so that its votes and promises
//! cannot be forgotten and then be made anew: the id is never opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use krita_engine::LogError;
use krita_proto::v1;
use krita_proto::v1::raft_message::Body as Wire;
use krita_raft::ReplicaId;
use krita_runtime::{Instant, Runtime, TaskClass};

use crate::core::{Core, Serving};
use crate::failure::Failure;
use crate::meta::{node_of, shard_of};
use crate::open::{Opened, new_shard, recovered_fresh};
use crate::replica::Replica;
use crate::replica_notes::Note;
use crate::responder::Responder;

/// Replicas of one core that are being opened or dropped.
const CHANGING_MAX: usize = 16;

/// How long until what the disk refused is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// Between two looks whether a replica that goes has come to rest.
const REST_PAUSE: Duration = Duration::from_millis(5);

/// How often replicas that no leader speaks to ask about themselves.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// For how long no leader has spoken to them then; and to one that does not know itself to be a member, which asks
/// later, so that whoever adds it has had the time to do so.
const UNHEARD_FOR: Duration = Duration::from_secs(3);
const UNHEARD_FOR_AS_STRANGER: Duration = Duration::from_secs(30);

/// Every so many rounds those ask too whose group is at rest, as far as they know: they may not be in it any more.
const QUIET_ROUNDS: u64 = 6;

/// Nodes that are asked beside those that the replica knows to have its group, how long they have to answer, and how
/// many questions go in one message.
const STRANGERS_ASKED: usize = 3;
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const QUESTIONS_MAX: usize = 4096;

/// How far a replica has come in belonging to its group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Belonging {
    /// The index of the entry that set the membership which was looked at last.
    seen: krita_raft::Index,
    /// It was in an applied configuration.
    was_member: bool,
    /// When a leader last spoke to it.
    pub(crate) heard_at: Instant,
    /// It was removed, or never belonged, and is about to be dropped.
    pub(crate) is_leaving: bool,
}

impl Belonging {
    /// Of a replica that has just been brought to life.
    pub(crate) fn new(applied: &krita_raft::Membership, id: ReplicaId, now: Instant) -> Self {
        let was_member = applied.configuration.is_member(id);
        Self { seen: applied.set_by.index, was_member, heard_at: now, is_leaving: false }
    }
}

impl<R: Runtime> Replica<R> {
    /// Where the others are follows from who is in the group.
    pub(crate) fn learn_others(&self) {
        let members = self.raft.configuration().members();
        let mut nodes: Vec<u32> =
            members.into_iter().filter(|id| *id != self.id).map(|id| node_of(id).0).collect();
        nodes.sort_unstable();
        nodes.dedup();
        *self.source.others.borrow_mut() = nodes;
    }

    /// The member of the group that lives on a node.
    pub(crate) fn member_on(&self, node_number: u32) -> Option<ReplicaId> {
        let configuration = self.raft.configuration();
        let mut members = configuration.all_voters().chain(configuration.learners.iter().copied());
        members.find(|id| node_of(*id).0 == node_number)
    }

    /// The shard map has this epoch now.
    pub(crate) fn set_epoch(&mut self, epoch: u64) {
        self.served_by.epoch = epoch;
    }

    /// Looks at the applied membership. True if that has just come to be one without this replica, which was in it.
    fn has_been_removed(&mut self) -> bool {
        let applied = self.raft.applied_membership();
        if applied.set_by.index == self.belonging.seen {
            return false;
        }
        let is_member = applied.configuration.is_member(self.id);
        self.belonging.seen = applied.set_by.index;
        let was_member = self.belonging.was_member;
        self.belonging.was_member |= is_member;
        was_member && !is_member
    }

    /// What to ask about this replica, if anything.
    fn question(&self, now: Instant, is_quiet_asked: bool) -> Option<v1::MembershipQuestion> {
        let membership = self.raft.membership();
        let is_member = membership.configuration.is_member(self.id);
        let unheard_for = if is_member { UNHEARD_FOR } else { UNHEARD_FOR_AS_STRANGER };
        // A leader whose group is not at rest is heard all the time.
        let is_alone = is_quiet_asked || self.leader.is_none() || !self.raft.status().quiesced;
        if self.is_leader()
            || self.belonging.is_leaving
            || !is_alone
            || now < self.belonging.heard_at + unheard_for
        {
            return None;
        }
        Some(v1::MembershipQuestion {
            shard: self.shard,
            replica_id: self.id.0,
            configuration_index: membership.set_by.index.0,
            is_member,
        })
    }

    /// Whether another replica of the group has been removed, as far as this one knows for certain.
    fn judge(&self, question: &v1::MembershipQuestion) -> Option<v1::RemovedReplica> {
        let applied = self.raft.applied_membership();
        let id = ReplicaId(question.replica_id);
        if self.belonging.is_leaving || self.is_quarantined() || applied.configuration.voters.is_empty() {
            return None;
        }
        let is_out = !applied.configuration.is_member(id)
            && match question.is_member {
                true => self.applied.0 >= question.configuration_index,
                // It may be about to be added: only the leader knows, unless it is changing something just now.
                false => self.is_leader() && self.raft.membership() == applied,
            };
        is_out.then_some(v1::RemovedReplica {
            shard: self.shard,
            replica_id: id.0,
            as_of_index: self.applied.0,
        })
    }
}

impl<R: Runtime> Core<R> {
    /// A message is for a replica that is not here. If that is a new one of this node, it is opened; the message is
    /// lost, and its leader will say it again.
    pub(crate) fn on_message_to_stranger(
        self: &Rc<Self>,
        serving: &mut Serving<R>,
        node_number: u32,
        message: &v1::RaftMessage,
    ) {
        let (to, from) = (ReplicaId(message.to), ReplicaId(message.from));
        let is_of_shard = shard_of(to).0 == message.shard && shard_of(from).0 == message.shard;
        let is_from_leader = matches!(message.body, Some(Wire::Append(_) | Wire::Heartbeat(_)));
        let is_ours = node_of(to).0 == serving.cluster.node_number && node_of(from).0 == node_number;
        if !is_of_shard
            || !is_from_leader
            || !is_ours
            || !serving.notes.may_open(to)
            || self.input.stop.is_set()
        {
            return;
        }
        if let Some(older) = serving.replicas.get_mut(&message.shard) {
            return self.retire(older, "its node has a newer replica of the shard");
        }
        let mut changing = self.changing.borrow_mut();
        if changing.len() < CHANGING_MAX && changing.insert(message.shard) {
            let core = self.clone();
            self.runtime.spawn(TaskClass::Foreground, "open-replica", async move {
                if let Err(reason) = core.open_joining(to).await {
                    tracing::warn!(
                        shard = shard_of(to).0,
                        replica = to.0,
                        reason,
                        "a new replica cannot be opened"
                    );
                    core.runtime.sleep(RETRY).await;
                }
                core.changing.borrow_mut().remove(&shard_of(to).0);
            });
        }
    }

    /// Makes a replica that knows nothing, not even who its group is.
    async fn open_joining(self: &Rc<Self>, id: ReplicaId) -> Result<(), String> {
        let shard = shard_of(id).0;
        let place = || {
            let guard = self.serving.borrow();
            let serving = guard.as_ref()?;
            let log = serving.cluster.log_of(shard)?;
            let position = serving.logs.iter().position(|writer| writer.number == log)?;
            Some((serving.cluster.clone(), position, serving.logs[position].store.clone()))
        };
        let (cluster, position, store) = place().ok_or("its log is not open on this core")?;
        let new = new_shard(&cluster, id).ok_or("there is no such shard")?;
        let engine_shard = krita_engine::ShardId(shard);
        if !store.shards().contains(&engine_shard) {
            store.create_shards(vec![new.clone()]).await.map_err(|error| error.to_string())?;
        }
        self.note_replica(Note { replica: id, is_removed: false }).await.ok_or("the node ends")?;
        let opened = Opened { shard: recovered_fresh(&new), is_new: true };
        let replica =
            self.restore(&cluster, &store, position, opened, Vec::new()).map_err(|failure| failure.0)?;
        tracing::info!(shard, replica = id.0, "opened a new replica, empty");
        if let Some(serving) = self.serving.borrow_mut().as_mut() {
            serving.replicas.insert(shard, replica);
        }
        Ok(())
    }

    /// Notes durably which replica of a shard is held, or held no more. `None`: the node ended before.
    async fn note_replica(&self, note: Note) -> Option<()> {
        let shard = shard_of(note.replica).0;
        self.serving.borrow_mut().as_mut()?.notes.note(note);
        while self.is_noting.get() {
            self.runtime.sleep(REST_PAUSE).await;
        }
        self.is_noting.set(true);
        let noted = self.store_notes(shard).await;
        self.is_noting.set(false);
        noted
    }

    async fn store_notes(&self, shard: u32) -> Option<()> {
        while !self.is_ending() {
            let (log, notes) = {
                let guard = self.serving.borrow();
                let serving = guard.as_ref()?;
                let log = serving.cluster.log_of(shard)?;
                (log, serving.notes.of(|shard| serving.cluster.log_of(shard) == Some(log)))
            };
            match notes.store(&self.runtime, &self.input.config, log).await {
                Ok(()) => return Some(()),
                Err(error) => tracing::warn!(log, %error, "which replicas are here cannot be noted for now"),
            }
            self.runtime.sleep(RETRY).await;
        }
        None
    }

    /// Looks whether a replica has applied its own removal.
    pub(crate) fn watch_belonging(self: &Rc<Self>, replica: &mut Replica<R>) {
        if replica.has_been_removed() {
            self.retire(replica, "it was removed from its group");
        }
    }

    /// Has a replica that does not belong to its group drop its data, for good.
    pub(crate) fn retire(self: &Rc<Self>, replica: &mut Replica<R>, reason: &'static str) {
        let shard = replica.shard;
        if replica.belonging.is_leaving {
            return;
        }
        // Its place is taken until the data is gone; one that is being opened is not here yet.
        self.changing.borrow_mut().insert(shard);
        replica.belonging.is_leaving = true;
        tracing::info!(shard, replica = replica.id.0, reason, "this replica goes");
        let (core, id) = (self.clone(), replica.id);
        self.runtime.spawn(TaskClass::Foreground, "drop-replica", async move {
            if core.drop_replica(shard, id).await.is_some() {
                core.changing.borrow_mut().remove(&shard);
                tracing::info!(shard, replica = id.0, "a replica that was removed is gone");
            }
        });
    }

    /// `None`: the node ended before; the next start goes on from what was noted.
    async fn drop_replica(self: &Rc<Self>, shard: u32, id: ReplicaId) -> Option<()> {
        self.note_replica(Note { replica: id, is_removed: true }).await?;
        // What it has on its way to the log must not meet a log without it.
        loop {
            self.abandon_incoming(|incoming| incoming.shard() == shard);
            let is_busy = self.with_replica(shard, |replica| {
                replica.unflushed > 0 || replica.is_installing || replica.is_recording_doubt
            })?;
            if !is_busy {
                break;
            }
            if self.is_ending() {
                return None;
            }
            self.runtime.sleep(REST_PAUSE).await;
        }
        let store = {
            let mut guard = self.serving.borrow_mut();
            let serving = guard.as_mut()?;
            let mut replica = serving.replicas.remove(&shard)?;
            replica.fail_all(&Failure::unavailable("the replica was removed from its group"));
            self.views.release_shard(shard);
            serving.departed.insert(shard, replica.source.others.borrow().clone());
            replica.store.clone()
        };
        loop {
            match store.remove_shard(krita_engine::ShardId(shard)).await {
                Ok(()) | Err(LogError::UnknownShard(_)) => return Some(()),
                Err(error) => tracing::warn!(shard, %error, "a removed replica's data stays for now"),
            }
            if self.is_ending() || store.poisoned().is_some() {
                return None;
            }
            self.runtime.sleep(RETRY).await;
        }
    }

    /// Has replicas that no leader speaks to ask whether they still belong to their groups.
    pub(crate) async fn ask_whether_removed(self: Rc<Self>) {
        for round in 1_u64.. {
            self.runtime.sleep(ASK_INTERVAL).await;
            if self.is_ending() {
                return;
            }
            let requests = self.membership_requests(round.is_multiple_of(QUIET_ROUNDS));
            let asked = requests.into_iter().map(|((node, _), (shard, request))| {
                let core = self.clone();
                async move { core.peers.request(node, shard, &request, ASK_TIMEOUT).await }
            });
            for reply in futures_util::future::join_all(asked).await.into_iter().flatten() {
                reply.removed.iter().for_each(|removed| self.on_told_removed(removed));
            }
        }
    }

    /// By node and core: a shard there, and the questions.
    fn membership_requests(&self, is_quiet_asked: bool) -> BTreeMap<(u32, u16), (u32, v1::AskMembership)> {
        let now = self.runtime.now();
        let guard = self.serving.borrow();
        let mut requests: BTreeMap<(u32, u16), (u32, v1::AskMembership)> = BTreeMap::new();
        let Some(serving) = guard.as_ref() else { return requests };
        let members: Vec<u32> = serving.cluster.others().map(|member| member.number).collect();
        for replica in serving.replicas.values() {
            let Some(question) = replica.question(now, is_quiet_asked) else { continue };
            let mut nodes: BTreeSet<u32> = replica.source.others.borrow().iter().copied().collect();
            // Those that it knows may have left the group, too.
            let start = self.runtime.random_u64() as usize;
            let strangers = members.iter().cycle().skip(start % members.len().max(1)).take(members.len());
            nodes.extend(
                strangers.copied().filter(|node| self.peers.is_connected(*node)).take(STRANGERS_ASKED),
            );
            for node in nodes {
                let core = self.peers.core_of_shard(node, replica.shard).unwrap_or(0);
                let (_, request) =
                    requests.entry((node, core)).or_insert((replica.shard, Default::default()));
                if request.questions.len() < QUESTIONS_MAX {
                    request.questions.push(question);
                }
            }
        }
        requests
    }

    /// Another node's replicas ask whether they have been removed.
    pub(crate) fn on_ask_membership(self: &Rc<Self>, asked: v1::AskMembership, responder: Responder) {
        let guard = self.serving.borrow();
        let judge = |question: &v1::MembershipQuestion| {
            guard.as_ref()?.replicas.get(&question.shard)?.judge(question)
        };
        let removed = asked.questions.iter().take(QUESTIONS_MAX).filter_map(judge).collect();
        responder.message(&v1::AskMembershipReply { removed });
    }

    /// Someone knows that a replica has been removed. It may have learnt more than it asked with, meanwhile.
    fn on_told_removed(self: &Rc<Self>, removed: &v1::RemovedReplica) {
        let now = self.runtime.now();
        self.with_replica(removed.shard, |replica| {
            let membership = replica.raft.membership();
            let is_newer = !membership.configuration.is_member(replica.id)
                || membership.set_by.index.0 <= removed.as_of_index;
            let is_heard = now < replica.belonging.heard_at + UNHEARD_FOR;
            if replica.id.0 == removed.replica_id && is_newer && !is_heard && !replica.is_leader() {
                self.retire(replica, "it was removed from its group while it did not listen");
            }
        });
    }
}
