//! Writes on the leader: conditions on values become conditions on versions, then the write is proposed.

use std::rc::Rc;

use futures_channel::oneshot;
use krita_proto::error::ErrorCode;
use krita_runtime::{Instant, Runtime, TaskClass};

use crate::command::RequestId;
use crate::core::Core;
use crate::failure::Failure;
use crate::reads::{self, PendingRead, Read};
use crate::replica::Replica;
use crate::request::{Condition, Write};
use crate::responder::Responder;

/// No key ever has this version.
const VERSION_NEVER: u64 = u64::MAX;

impl<R: Runtime> Core<R> {
    /// Takes a write to a shard that this core leads.
    pub(crate) fn submit_write(
        self: &Rc<Self>,
        replica: &mut Replica<R>,
        write: Write,
        deadline: Instant,
        responder: Responder,
    ) {
        if let Some(failure) = self.refusal_for_room(replica, &write) {
            // An earlier attempt may have been applied: then that is the answer.
            return match replica.remembered(request_id(&write)) {
                Some(outcome) => replica.answer_remembered(&write, responder, &outcome),
                None => responder.fail(&failure),
            };
        }
        let has_value_condition =
            write.operations.iter().any(|operation| matches!(operation.condition, Some(Condition::Value(_))));
        if has_value_condition || !write.changes_data() {
            let (core, shard) = (self.clone(), replica.shard);
            self.runtime.spawn(TaskClass::Foreground, "resolve-write", async move {
                core.resolve_and_propose(shard, write, deadline, responder).await;
            });
            return;
        }
        replica.propose(self.runtime.now(), self.runtime.wall_clock().0, write, deadline, responder);
    }

    /// Reads the keys that the write's conditions name, and proposes it if their values are as wanted: the
    /// version that had the wanted value becomes the condition, so that applying never reads a value.
    async fn resolve_and_propose(
        self: Rc<Self>,
        shard: u32,
        mut write: Write,
        deadline: Instant,
        responder: Responder,
    ) {
        if let Err(failure) = self.barrier(shard, deadline).await {
            return responder.fail(&failure);
        }
        if !write.changes_data() {
            self.with_replica(shard, |replica| replica.answer_reads(write, responder));
            return;
        }
        // An earlier attempt may have been applied: its own change must not fail its condition now.
        if let Some(outcome) =
            self.with_replica(shard, |replica| replica.remembered(request_id(&write))).flatten()
        {
            self.with_replica(shard, |replica| replica.answer_remembered(&write, responder, &outcome));
            return;
        }
        match self.resolve(shard, &mut write).await {
            Ok(()) => {}
            Err(failure) => return responder.fail(&failure),
        }
        let (now, wall_ms) = (self.runtime.now(), self.runtime.wall_clock().0);
        self.with_replica(shard, |replica| replica.propose(now, wall_ms, write, deadline, responder));
    }

    /// Turns conditions on values into conditions on versions. One that does not hold is answered right here; but
    /// if the request has a session, that must go on record, or a copy of it that is still on its way might yet be
    /// applied after its client was told that it was not. Then it becomes a condition that never holds.
    async fn resolve(&self, shard: u32, write: &mut Write) -> Result<(), Failure> {
        let source = self
            .with_replica(shard, |replica| replica.source.clone())
            .ok_or_else(|| Failure::not_ready("the shard is not open here"))?;
        for (position, operation) in write.operations.iter_mut().enumerate() {
            let Some(Condition::Value(wanted)) = &operation.condition else { continue };
            let found = reads::value_of(&source, &operation.key).await?;
            let (matches, version) = match &found {
                Some((value, version)) => (value == wanted, *version),
                None => (false, 0),
            };
            if !matches && write.request_id.session == 0 {
                return Err(Failure {
                    current_version: version,
                    operation: u32::try_from(position).unwrap_or(u32::MAX),
                    ..Failure::new(
                        ErrorCode::ConditionFailed,
                        "the key does not have the wanted value; nothing was applied",
                    )
                });
            }
            operation.condition = Some(Condition::Version(if matches { version } else { VERSION_NEVER }));
        }
        Ok(())
    }

    /// Waits until the shard has confirmed and applied everything acknowledged before this call.
    pub(crate) async fn barrier(&self, shard: u32, deadline: Instant) -> Result<(), Failure> {
        let (sender, receiver) = oneshot::channel();
        let now = self.runtime.now();
        let read = PendingRead { read: Read::Barrier(sender), deadline };
        self.with_replica(shard, |replica| replica.read(now, read))
            .ok_or_else(|| Failure::not_ready("the shard is not open here"))?;
        receiver.await.unwrap_or_else(|_| Err(Failure::unavailable("the shard closed")))
    }
}

fn request_id(write: &Write) -> RequestId {
    let id = &write.request_id;
    RequestId {
        session: id.session,
        sequence: id.sequence,
        lowest_unacknowledged: id.lowest_unacknowledged,
        register_until_ms: id.register_until_ms,
    }
}
