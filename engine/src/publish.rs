//! Writing and publishing a checkpoint.

use std::rc::Rc;

use krita_runtime::Runtime;

use crate::checkpoint::Writer;
use crate::error::LogError;
use crate::gate::Pass;
use crate::inner::Inner;
use crate::manifest::{CheckpointFileRecord, CheckpointPlace, ManifestChange, ShardRecord};
use crate::segment::Pin;
use crate::shard::CheckpointFile;
use crate::store::INLINE_BYTES_MAX;
use crate::types::{CheckpointMeta, SegmentId, ShardId};

/// Items that one slice of work takes.
pub(crate) const SLICE_ITEMS: usize = 128;

/// A checkpoint whose state is fixed and not yet written.
pub(crate) struct Started {
    shard: ShardId,
    meta: CheckpointMeta,
    segments: Vec<SegmentId>,
    number: u64,
    /// Keeps the segments that the state points into.
    _pin: Pin,
    _pass: Pass,
}

/// Fixes the state that the checkpoint is of.
pub(crate) fn start<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    meta: CheckpointMeta,
) -> Result<Started, LogError> {
    inner.check_poison()?;
    let busy = || LogError::Refused(format!("{shard} is being checkpointed, replaced or removed"));
    let pass = inner.gate(shard).try_enter().ok_or_else(busy)?;
    let mut shards = inner.shards.borrow_mut();
    let state = shards.get_mut(&shard).ok_or(LogError::UnknownShard(shard))?;
    assert_eq!(meta.applied, state.applied, "a checkpoint is of the last applied entry");
    let segments: Vec<SegmentId> = state.index.segments().collect();
    state.index.start_capture();
    let pin = inner.pins.pin(segments.iter().copied());
    Ok(Started { shard, meta, segments, number: inner.take_number(), _pin: pin, _pass: pass })
}

/// Writes and publishes it.
pub(crate) async fn run<R: Runtime>(inner: &Rc<Inner<R>>, started: Started) -> Result<(), LogError> {
    let written = write(inner, &started).await;
    if let Some(state) = inner.shards.borrow_mut().get_mut(&started.shard) {
        state.index.end_capture();
    }
    let record = match written {
        Ok(record) => record,
        Err(error) => {
            remove_failed(inner, started.shard, started.number).await;
            return Err(io_error("writing a checkpoint", &error));
        }
    };
    let (shard, meta) = (started.shard, started.meta.clone());
    let file = inner.checkpoint_file(shard, record.clone());
    let published = inner
        .publish(|| {
            let shards = inner.shards.borrow();
            let Some(state) = shards.get(&shard) else { return Vec::new() };
            // The record is of the log behind the new checkpoint, which only counts once this is durable.
            let behind = state.entry(meta.applied.next()).map(|entry| entry.place);
            let mut tail = inner.tail_now(shard, state);
            let next = inner.next_place();
            tail.replay = behind.into_iter().chain(inner.log.borrow().unfinished(shard)).fold(next, Ord::min);
            vec![ManifestChange::Put(Box::new(ShardRecord {
                shard,
                replica: state.replica,
                generation: meta.generation,
                applied: meta.applied,
                term: meta.term,
                place: CheckpointPlace::File(record),
                tail,
                suspect: state.suspect.clone(),
            }))]
        })
        .await;
    published?;
    let mut shards = inner.shards.borrow_mut();
    if let Some(state) = shards.get_mut(&shard) {
        let kept = inner.options.entries_kept;
        if let Some(old) = state.checkpointed(started.meta.clone(), Some(file), kept) {
            old.retired.set(true);
        }
    }
    drop(shards);
    inner.statistics.borrow_mut().checkpoints += 1;
    inner.maintenance_wake.notify();
    Ok(())
}

async fn write<R: Runtime>(inner: &Rc<Inner<R>>, started: &Started) -> std::io::Result<CheckpointFileRecord> {
    let identity = inner.checkpoint_identity(started.shard, started.number);
    let mut writer = Writer::create(&inner.runtime, &inner.options.directory, identity).await?;
    loop {
        let items = match inner.shards.borrow_mut().get_mut(&started.shard) {
            Some(state) => state.index.next_captured(SLICE_ITEMS),
            None => Vec::new(),
        };
        if items.is_empty() {
            break;
        }
        writer.add(&items).await?;
        inner.runtime.pause().await;
    }
    writer.finish(&started.meta, started.segments.clone()).await
}

/// Where the checkpoint of a shard without keys goes.
pub(crate) async fn write_empty<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    meta: &CheckpointMeta,
) -> Result<(CheckpointPlace, Option<Rc<CheckpointFile>>), LogError> {
    if meta.configuration.len() + meta.machine.len() <= INLINE_BYTES_MAX {
        let (configuration, machine) = (meta.configuration.clone(), meta.machine.clone());
        return Ok((CheckpointPlace::Inline { configuration, machine }, None));
    }
    let number = inner.take_number();
    let identity = inner.checkpoint_identity(shard, number);
    let write = async {
        let writer = Writer::create(&inner.runtime, &inner.options.directory, identity).await?;
        writer.finish(meta, Vec::new()).await
    };
    match write.await {
        Ok(record) => {
            let file = inner.checkpoint_file(shard, record.clone());
            Ok((CheckpointPlace::File(record), Some(file)))
        }
        Err(error) => {
            remove_failed(inner, shard, number).await;
            Err(io_error("writing a checkpoint", &error))
        }
    }
}

/// Removes what is left of a checkpoint that could not be written; what stays is an orphan.
pub(crate) async fn remove_failed<R: Runtime>(inner: &Inner<R>, shard: ShardId, number: u64) {
    let path = inner.checkpoint_identity(shard, number).path(&inner.options.directory);
    let _ = inner.runtime.remove_file(&path).await;
}

/// A failure outside the log and the manifest.
pub(crate) fn io_error(what: &str, error: &std::io::Error) -> LogError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            LogError::DiskFull(format!("{what}: {error}"))
        }
        _ => LogError::Io(format!("{what}: {error}")),
    }
}
