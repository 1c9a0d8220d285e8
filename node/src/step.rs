//! Raft messages from other nodes: to the replica they are for, here or on another core.

use std::collections::BTreeMap;
use std::rc::Rc;

use krita_proto::v1;
use krita_raft::{Body, EntryKind, Message};
use krita_runtime::{Mesh, Runtime};

use crate::command::{CommandError, WriteCommand};
use crate::core::{Core, Serving};
use crate::mesh::CoreMessage;
use crate::meta;
use crate::meta::replicated::command_bytes;
use crate::meta::{node_of, shard_of};
use crate::metrics;
use crate::peers::PeerCore;
use crate::replica::raft_time;
use crate::wire::{self, Payload};

impl<R: Runtime> Core<R> {
    /// Takes in the messages of one burst. `node_number` has been verified: a message whose sender lives on
    /// another node is dropped.
    pub(crate) fn step_messages(self: &Rc<Self>, node_number: u32, messages: Vec<v1::RaftMessage>) {
        let here = self.runtime.core();
        let now = raft_time(self.runtime.now());
        let mut elsewhere: BTreeMap<_, Vec<v1::RaftMessage>> = BTreeMap::new();
        let mut guard = self.serving.borrow_mut();
        let Some(serving) = guard.as_mut() else { return };
        for message in messages {
            match serving.cluster.core_of(message.shard) {
                Some(core) if core == here => self.step_message(serving, now, node_number, message),
                Some(core) => elsewhere.entry(core).or_default().push(message),
                None => {}
            }
        }
        drop(guard);
        for (core, messages) in elsewhere {
            // A full mesh loses them, as a network may.
            let _ = self.mesh.send(core, CoreMessage::Raft { node_number, messages });
        }
    }

    fn step_message(
        self: &Rc<Self>,
        serving: &mut Serving<R>,
        now: krita_raft::Time,
        node_number: u32,
        message: v1::RaftMessage,
    ) {
        let known = serving.replicas.get(&message.shard).map(|replica| replica.id.0);
        if known != Some(message.to) {
            return self.on_message_to_stranger(serving, node_number, &message);
        }
        let Some(replica) = serving.replicas.get_mut(&message.shard) else { return };
        let Some(message) = wire::decode(message) else { return };
        let is_from_there =
            node_of(message.from).0 == node_number && shard_of(message.from).0 == replica.shard;
        if !is_from_there || replica.stopped.is_some() || replica.belonging.is_leaving {
            return;
        }
        if matches!(message.body, Body::Append { .. } | Body::Heartbeat { .. } | Body::Quiesce { .. }) {
            replica.belonging.heard_at = self.runtime.now();
        }
        let verified = match replica.machine.meta_state() {
            Some(_) => verify_commands(&message).map_err(|error| error.to_string()),
            None => verify_values(&message).map_err(|error| error.to_string()),
        };
        if let Err(error) = verified {
            tracing::warn!(
                shard = replica.shard,
                node_number,
                error,
                "entries dropped: damaged on their way"
            );
            return;
        }
        metrics::count(&self.metrics.raft_messages_received);
        replica.raft.step(now, message);
        self.touch(replica);
    }

    /// A core of another node has started anew since it was last heard: it has forgotten what it led.
    pub(crate) fn on_peer_restart(&self, peer: PeerCore) {
        let now = self.runtime.now();
        let mut guard = self.serving.borrow_mut();
        if let Some(serving) = guard.as_mut() {
            self.on_core_death(serving, now, peer);
        }
    }
}

/// The same for commands of the meta group.
fn verify_commands(message: &Message<Payload>) -> Result<(), meta::CommandError> {
    let Body::Append { entries, .. } = &message.body else { return Ok(()) };
    let mut commands = entries.iter().filter(|entry| entry.kind == EntryKind::Command);
    commands.try_for_each(|entry| command_bytes(&entry.payload.0).map(|_| ()))
}

/// Checks every value against the checksum that was made where it entered the cluster, before it is written here. A
/// command that this version does not understand is let through: it is the state machine that stops at it.
fn verify_values(message: &Message<Payload>) -> Result<(), CommandError> {
    let Body::Append { entries, .. } = &message.body else { return Ok(()) };
    for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Command) {
        match WriteCommand::decode(&entry.payload.0) {
            Ok(command) => command.verify_values()?,
            Err(error) if error.from_newer_version() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
