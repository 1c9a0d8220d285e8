//! A shard's state for a follower that fell behind the log: read from a checkpoint on one side, written beside the
//! old state and swapped in atomically on the other.
//!
//! The sender waits for each chunk's answer before it reads the next, so that neither side holds more than one.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use krita_engine::{CheckpointMeta, Installer, SnapshotItem, Store};
use krita_proto::routing::PAGE_BYTES_MAX;
use krita_proto::v1;
use krita_raft::{Index, Membership, Position, ReplicaId, SnapshotMeta, Term};
use krita_runtime::{Instant, Notify, Runtime, TaskClass};

use crate::core::Core;
use crate::failure::Failure;
use crate::meta::node_of;
use crate::open::checkpoint_meta;
use crate::replica::{Replica, raft_time};
use crate::responder::Responder;
use crate::shard_machine::{ShardMachine, ShardMachineError, machine_bytes_max};

/// How long one chunk may take from its sending to its answer.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes of a state machine's own part that travel in one message.
const MACHINE_PART_BYTES: usize = 8 << 20;

const _: () = assert!(MACHINE_PART_BYTES <= krita_proto::routing::VALUE_BYTES_MAX, "a frame has room for it");

/// Snapshots that a core takes in at a time.
const INCOMING_MAX: usize = 16;

/// A snapshot on its way in.
pub(crate) struct Incoming<R: Runtime> {
    shard: u32,
    /// Away while a chunk is being written.
    installer: Option<Installer<R>>,
    meta: SnapshotMeta,
    checkpoint: CheckpointMeta,
    machine: MachineParts,
    next_sequence: u64,
    items: u64,
    touched_at: Instant,
}

/// A state machine's own part, as it arrives.
struct MachineParts {
    bytes: BytesMut,
    bytes_total: usize,
}

impl MachineParts {
    /// The first part, of so many bytes in all (0: this is all). `None`: no machine of the shard is that long.
    fn begin(shard: u32, first: &[u8], bytes_total: u64) -> Option<Self> {
        let bytes_total = match bytes_total {
            0 => first.len(),
            total => usize::try_from(total).ok()?,
        };
        let fits = first.len() <= bytes_total && bytes_total <= machine_bytes_max(shard);
        fits.then(|| Self { bytes: BytesMut::from(first), bytes_total })
    }

    /// Another part. `None`: it is too long.
    fn add(&mut self, part: &[u8]) -> Option<()> {
        if part.len() > self.bytes_total - self.bytes.len() {
            return None;
        }
        self.bytes.extend_from_slice(part);
        Some(())
    }

    fn is_whole(&self) -> bool {
        self.bytes.len() == self.bytes_total
    }
}

impl<R: Runtime> Incoming<R> {
    pub(crate) fn shard(&self) -> u32 {
        self.shard
    }

    /// Nobody has continued it since; never while a chunk is being written.
    pub(crate) fn is_idle_since(&self, moment: Instant) -> bool {
        self.installer.is_some() && self.touched_at <= moment
    }
}

impl<R: Runtime> Core<R> {
    /// Sends the shard's last checkpoint to a follower, in the background, and tells Raft how it went.
    pub(crate) fn send_snapshot(self: &Rc<Self>, replica: &Replica<R>, to: ReplicaId) {
        let (core, shard, store) = (self.clone(), replica.shard, replica.store.clone());
        self.runtime.spawn(TaskClass::Background, "send-snapshot", async move {
            let sent = core.send_checkpoint(shard, &store, to).await;
            core.with_replica(shard, |replica| {
                let now = raft_time(core.runtime.now());
                match sent {
                    Ok(index) => replica.raft.snapshot_sent(now, to, index),
                    Err(reason) => {
                        tracing::info!(shard, to = to.0, reason, "snapshot not sent");
                        replica.raft.snapshot_failed(now, to);
                    }
                }
            });
        });
    }

    async fn send_checkpoint(&self, shard: u32, store: &Store<R>, to: ReplicaId) -> Result<Index, String> {
        let about = self.with_replica(shard, |replica| {
            (replica.id, replica.raft.status().term, checkpoint_meta(replica))
        });
        let Some((from, term, fresh)) = about else {
            return Err("the shard is not open here any more".to_owned());
        };
        let node = node_of(to).0;
        let engine_shard = krita_engine::ShardId(shard);
        if store.checkpoint_meta(engine_shard).is_none_or(|meta| meta.applied.0 == 0) {
            store.checkpoint(engine_shard, fresh).await.map_err(|error| error.to_string())?;
        }
        let mut source = store.snapshot_source(engine_shard).await.map_err(|error| error.to_string())?;
        let meta = source.meta().clone();
        let snapshot = self.runtime.random_u64();
        let mut machine = meta.machine.clone();
        let machine_bytes = machine.len() as u64;
        let begin = v1::SnapshotBegin {
            shard,
            from: from.0,
            to: to.0,
            term: term.0,
            snapshot,
            index: meta.applied.0,
            index_term: meta.term.0,
            configuration: meta.configuration.clone(),
            machine: next_part(&mut machine),
            machine_bytes,
        };
        tracing::info!(
            shard,
            node,
            index = meta.applied.0,
            items_estimate = source.items_estimate(),
            "sending a snapshot"
        );
        let reply = self
            .peers
            .request(node, shard, &begin, CHUNK_TIMEOUT)
            .await
            .map_err(|error| error.to_string())?;
        if reply.installed {
            return Ok(Index(meta.applied.0));
        }
        let mut items_total = 0;
        for sequence in 0.. {
            let part = next_part(&mut machine);
            let items = match part.is_empty() {
                true => source.next(PAGE_BYTES_MAX).await.map_err(|error| error.to_string())?,
                false => Vec::new(),
            };
            let last = items.is_empty() && part.is_empty();
            items_total += items.len() as u64;
            let chunk = v1::SnapshotChunk {
                snapshot,
                sequence,
                items: items.into_iter().map(item_to_wire).collect(),
                last,
                items_total: if last { items_total } else { 0 },
                machine: part,
            };
            let reply = self.peers.request(node, shard, &chunk, CHUNK_TIMEOUT).await;
            let reply = reply.map_err(|error| error.to_string())?;
            if last {
                return match reply.installed {
                    true => Ok(Index(meta.applied.0)),
                    false => Err("the follower did not install it".to_owned()),
                };
            }
            self.runtime.pause().await;
        }
        unreachable!("a snapshot ends")
    }

    /// A leader offers a snapshot.
    pub(crate) fn on_snapshot_begin(self: &Rc<Self>, begin: v1::SnapshotBegin, responder: Responder) {
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "snapshot-begin", async move {
            match core.begin_incoming(begin).await {
                Ok(reply) => responder.message(&reply),
                Err(failure) => responder.fail(&failure),
            }
        });
    }

    async fn begin_incoming(&self, begin: v1::SnapshotBegin) -> Result<v1::SnapshotReply, Failure> {
        let membership = Membership::decode(&begin.configuration)
            .ok_or_else(|| Failure::invalid("the snapshot's membership does not decode"))?;
        let machine = MachineParts::begin(begin.shard, &begin.machine, begin.machine_bytes)
            .ok_or_else(|| Failure::invalid("the snapshot's state machine is too long"))?;
        if machine.is_whole() {
            // Before anything is begun for it.
            ShardMachine::decode(begin.shard, &machine.bytes).map_err(no_machine)?;
        }
        let position = Position { index: Index(begin.index), term: Term(begin.index_term) };
        let meta = SnapshotMeta { position, membership };
        self.abandon_incoming(|incoming| incoming.shard() == begin.shard);
        if self.incoming.borrow().len() >= INCOMING_MAX {
            return Err(Failure::overloaded("as many snapshots as this core can take are on their way in"));
        }
        let now = raft_time(self.runtime.now());
        let taken = self.with_replica(begin.shard, |replica| {
            let is_here = replica.id == ReplicaId(begin.to) && !replica.belonging.is_leaving;
            if !is_here || replica.is_installing {
                return None;
            }
            if replica.doubt.as_ref().is_some_and(|doubt| !doubt.is_durable) {
                return None;
            }
            if replica.applied >= position.index && !replica.is_quarantined() {
                // Older than what is here: as good as installed.
                return Some(Err(v1::SnapshotReply { accepted: 0, installed: true }));
            }
            replica.raft.snapshot_begin(now, &meta).then(|| {
                replica.is_installing = true;
                replica.is_install_superseded = false;
                Ok((replica.store.clone(), replica.generation))
            })
        });
        let (store, generation) = match taken.flatten() {
            Some(Ok(taken)) => taken,
            Some(Err(reply)) => return Ok(reply),
            None => return Err(Failure::unavailable("the replica does not take this snapshot")),
        };
        let installer = store
            .snapshot_installer(krita_engine::ShardId(begin.shard), krita_engine::ReplicaId(begin.to))
            .await;
        let installer = match installer {
            Ok(installer) => installer,
            Err(error) => {
                self.give_up_install(begin.shard);
                return Err(Failure::unavailable(error.to_string()));
            }
        };
        let checkpoint = CheckpointMeta {
            applied: krita_engine::Index(begin.index),
            term: krita_engine::Term(begin.index_term),
            configuration: begin.configuration,
            machine: Bytes::new(),
            generation,
        };
        let incoming = Incoming {
            shard: begin.shard,
            installer: Some(installer),
            meta,
            checkpoint,
            machine,
            next_sequence: 0,
            items: 0,
            touched_at: self.runtime.now(),
        };
        self.incoming.borrow_mut().insert(begin.snapshot, incoming);
        Ok(v1::SnapshotReply::default())
    }

    /// The next part of a snapshot.
    pub(crate) fn on_snapshot_chunk(self: &Rc<Self>, chunk: v1::SnapshotChunk, responder: Responder) {
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "snapshot-chunk", async move {
            let snapshot = chunk.snapshot;
            match core.take_chunk(chunk).await {
                Ok(reply) => responder.message(&reply),
                Err(failure) => {
                    core.abandon_snapshot(snapshot);
                    responder.fail(&failure);
                }
            }
        });
    }

    async fn take_chunk(&self, chunk: v1::SnapshotChunk) -> Result<v1::SnapshotReply, Failure> {
        let unknown = || Failure::invalid("there is no such snapshot on its way in");
        let mut installer = {
            let mut incoming = self.incoming.borrow_mut();
            let incoming = incoming.get_mut(&chunk.snapshot).ok_or_else(unknown)?;
            if incoming.next_sequence != chunk.sequence {
                return Err(Failure::invalid(format!("chunk {} is out of order", chunk.sequence)));
            }
            incoming.next_sequence += 1;
            incoming.items += chunk.items.len() as u64;
            if incoming.machine.add(&chunk.machine).is_none() {
                return Err(Failure::invalid(
                    "the snapshot's state machine is longer than it was said to be",
                ));
            }
            incoming.touched_at = self.runtime.now();
            incoming.installer.take().ok_or_else(|| Failure::invalid("one chunk at a time"))?
        };
        let items: Vec<SnapshotItem> = chunk.items.into_iter().map(item_from_wire).collect();
        if !items.is_empty() {
            installer.add(items).await.map_err(|error| Failure::unavailable(error.to_string()))?;
        }
        if chunk.last {
            let incoming = self.incoming.borrow_mut().remove(&chunk.snapshot).ok_or_else(unknown)?;
            return self.install(incoming, installer, chunk.items_total).await;
        }
        let mut incoming = self.incoming.borrow_mut();
        let incoming = incoming.get_mut(&chunk.snapshot).ok_or_else(unknown)?;
        incoming.installer = Some(installer);
        incoming.touched_at = self.runtime.now();
        Ok(v1::SnapshotReply { accepted: incoming.next_sequence, installed: false })
    }

    /// Everything has arrived: make it the shard's state, durably, and then tell Raft.
    async fn install(
        &self,
        incoming: Incoming<R>,
        installer: Installer<R>,
        items_total: u64,
    ) -> Result<v1::SnapshotReply, Failure> {
        let Incoming { shard, meta, mut checkpoint, machine, next_sequence, items, .. } = incoming;
        if items != items_total {
            self.give_up_install(shard);
            return Err(Failure::invalid(format!("{items} items arrived of {items_total}")));
        }
        // Bytes that are missing do not decode either.
        checkpoint.machine = machine.bytes.freeze();
        let machine = match ShardMachine::decode(shard, &checkpoint.machine) {
            Ok(machine) => machine,
            Err(error) => {
                self.give_up_install(shard);
                return Err(no_machine(error));
            }
        };
        // Nothing may be written to the shard while its state is replaced: hold its output, let what is on its
        // way to the disk arrive.
        let flushed = self.with_replica(shard, |replica| {
            replica.hold_output = true;
            replica.flushed.clone()
        });
        let Some(flushed) = flushed else { return Err(Failure::not_ready("the shard closed")) };
        self.wait_until_flushed(shard, &flushed).await;
        let hard_state = self.with_replica(shard, |replica| {
            let status = replica.raft.status();
            krita_engine::HardState {
                term: krita_engine::Term(status.term.0),
                vote: status.vote.map(|vote| vote.0),
                commit: krita_engine::Index(match replica.is_quarantined() {
                    true => meta.position.index.0,
                    false => status.commit.0.max(meta.position.index.0),
                }),
            }
        });
        let Some(hard_state) = hard_state else { return Err(Failure::not_ready("the shard closed")) };
        let finished = installer.finish(checkpoint, hard_state).await;
        let now = raft_time(self.runtime.now());
        self.with_replica(shard, |replica| {
            replica.hold_output = false;
            replica.is_installing = false;
            replica.is_install_superseded = false;
            match &finished {
                Ok(()) => replica.take_snapshot(now, machine, meta.clone()),
                Err(_) => replica.raft.snapshot_abandoned(now),
            }
        });
        match finished {
            Ok(()) => {
                tracing::info!(shard, index = meta.position.index.0, items, "installed a snapshot");
                Ok(v1::SnapshotReply { accepted: next_sequence, installed: true })
            }
            Err(error) => Err(Failure::unavailable(error.to_string())),
        }
    }

    async fn wait_until_flushed(&self, shard: u32, flushed: &Notify) {
        while self.with_replica(shard, |replica| replica.unflushed > 0).unwrap_or(false) {
            flushed.notified().await;
        }
    }

    fn abandon_snapshot(&self, snapshot: u64) {
        if let Some(incoming) = self.incoming.borrow_mut().remove(&snapshot) {
            self.give_up_install(incoming.shard);
        }
    }

    /// Gives up the snapshots on their way in that `which` picks, unless a chunk of them is being written.
    pub(crate) fn abandon_incoming(&self, which: impl Fn(&Incoming<R>) -> bool) {
        let abandoned: Vec<u64> = self
            .incoming
            .borrow()
            .iter()
            .filter(|(_, incoming)| incoming.installer.is_some() && which(incoming))
            .map(|(snapshot, _)| *snapshot)
            .collect();
        for snapshot in abandoned {
            self.abandon_snapshot(snapshot);
        }
    }

    fn give_up_install(&self, shard: u32) {
        let now = raft_time(self.runtime.now());
        self.with_replica(shard, |replica| {
            if replica.is_installing {
                replica.is_installing = false;
                replica.is_install_superseded = false;
                replica.hold_output = false;
                replica.raft.snapshot_abandoned(now);
            }
        });
    }
}

/// Takes the next part of a state machine's own part; empty once all is taken.
fn next_part(machine: &mut Bytes) -> Bytes {
    machine.split_to(machine.len().min(MACHINE_PART_BYTES))
}

fn no_machine(error: ShardMachineError) -> Failure {
    Failure::invalid(format!("the snapshot's state machine does not decode: {error}"))
}

fn item_to_wire(item: SnapshotItem) -> v1::SnapshotItem {
    v1::SnapshotItem { key: item.key, version: item.version.0, value: item.value, checksum: item.checksum }
}

fn item_from_wire(item: v1::SnapshotItem) -> SnapshotItem {
    SnapshotItem {
        key: item.key,
        version: krita_engine::Index(item.version),
        checksum: item.checksum,
        value: item.value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::MACHINE_BYTES_MAX;

    #[test]
    fn a_machine_in_parts_is_whole_again_and_no_longer_than_it_may_be() {
        let whole: Bytes = (0..3 * MACHINE_PART_BYTES + 5).map(|byte| byte as u8).collect();
        let mut rest = whole.clone();
        let mut parts = MachineParts::begin(0, &next_part(&mut rest), whole.len() as u64).expect("it fits");
        let mut messages = 1;
        while !rest.is_empty() {
            assert!(!parts.is_whole());
            parts.add(&next_part(&mut rest)).expect("it fits");
            messages += 1;
        }
        assert!(parts.is_whole() && parts.bytes == whole);
        assert_eq!(messages, 4);
        assert_eq!(parts.add(&[1]), None, "more than was said");
        assert!(MachineParts::begin(1, &[], MACHINE_BYTES_MAX as u64 + 1).is_none());
        assert!(MachineParts::begin(1, &[7; 9], 8).is_none());
        assert!(MachineParts::begin(1, &[7; 9], 0).expect("all of it").is_whole());
    }
}
