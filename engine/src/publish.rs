//! Writing and publishing a checkpoint: the memtable becomes the newest run, and one frame of the manifest says so.
//!
//! ```text
//!   freeze the memtable ──▶ write it as a run ──▶ one frame: runs, meta data, where ──▶ swap in memory
//!   at meta.applied         durable, named        the log takes over; durable           retire what was replaced
//! ```
//!
//! A crash before the frame leaves an orphan file and the old checkpoint; after it, the new one. A memtable whose
//! writing failed stays part of the index, and the next checkpoint writes it first.

use std::cell::RefCell;
use std::rc::Rc;

use krita_runtime::Runtime;

use crate::checkpoint;
use crate::error::{LogError, ReadError};
use crate::gate::Pass;
use crate::index::{Memtable, RunInput, RunTarget, WriteError, write_run};
use crate::inner::Inner;
use crate::manifest::{ManifestChange, MetaPlace, ShardRecord};
use crate::run::{self, Run};
use crate::shard::CheckpointFile;
use crate::store::INLINE_BYTES_MAX;
use crate::types::{CheckpointMeta, SegmentId, ShardId};

/// A checkpoint whose state is fixed and not yet written.
pub(crate) struct Started {
    shard: ShardId,
    meta: CheckpointMeta,
    /// What the checkpoint holds beyond the runs, oldest first.
    memtables: Vec<Rc<Memtable>>,
    /// Evacuated segments whose slots these memtables hide.
    evacuated: Vec<SegmentId>,
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
    state.check_whole()?;
    assert_eq!(meta.applied, state.applied, "a checkpoint is of the last applied entry");
    let active = state.index.memtables().next().expect("there is always an active memtable");
    if !active.is_empty() {
        state.index.freeze();
    }
    let mut memtables: Vec<Rc<Memtable>> = state.index.memtables().skip(1).cloned().collect();
    memtables.reverse();
    let evacuated = inner.reclaiming.borrow().waiting_for(shard);
    Ok(Started { shard, meta, memtables, evacuated, _pass: pass })
}

/// A run that is durable and not yet published. Its file goes with it, unless it is kept.
pub(crate) struct NewRun<R: Runtime> {
    run: Option<Rc<Run<R>>>,
}

impl<R: Runtime> NewRun<R> {
    pub(crate) fn new(run: Option<Rc<Run<R>>>) -> Self {
        Self { run }
    }

    pub(crate) fn run(&self) -> Option<&Rc<Run<R>>> {
        self.run.as_ref()
    }

    /// It is published.
    pub(crate) fn keep(mut self) -> Option<Rc<Run<R>>> {
        self.run.take()
    }
}

impl<R: Runtime> Drop for NewRun<R> {
    fn drop(&mut self) {
        if let Some(run) = &self.run {
            run.retire();
        }
    }
}

/// Writes a run and opens it.
pub(crate) async fn new_run<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    input: RunInput<'_, R>,
    oldest: bool,
) -> Result<NewRun<R>, WriteError> {
    let identity = inner.run_identity(shard, inner.take_number());
    let directory = &inner.options.directory;
    let target = RunTarget { runtime: &inner.runtime, directory, identity, oldest };
    let made = match write_run(target, input).await {
        Ok(None) => return Ok(NewRun::new(None)),
        Ok(Some(record)) => {
            inner.statistics.borrow_mut().run_bytes_written += record.length;
            let opened = Run::open(&inner.runtime, directory, identity, record, &inner.run_caches).await;
            opened.map_err(WriteError::from)
        }
        Err(error) => Err(error),
    };
    if made.is_err() {
        run::remove_failed(&inner.runtime, directory, &identity).await;
    }
    made.map(|run| NewRun::new(Some(run)))
}

/// The meta data of a checkpoint, durable where the manifest can name it. A file goes with it, unless it is kept.
pub(crate) struct NewMeta {
    pub(crate) place: MetaPlace,
    file: Option<Rc<CheckpointFile>>,
}

impl NewMeta {
    /// It is published.
    pub(crate) fn keep(mut self) -> Option<Rc<CheckpointFile>> {
        self.file.take()
    }
}

impl Drop for NewMeta {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.retired.set(true);
        }
    }
}

/// Puts the meta data of a checkpoint where the manifest can name it.
pub(crate) async fn write_meta<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    meta: &CheckpointMeta,
) -> Result<NewMeta, LogError> {
    if meta.configuration.len() + meta.machine.len() <= INLINE_BYTES_MAX {
        let (configuration, machine) = (meta.configuration.clone(), meta.machine.clone());
        return Ok(NewMeta { place: MetaPlace::Inline { configuration, machine }, file: None });
    }
    let identity = inner.checkpoint_identity(shard, inner.take_number());
    let directory = &inner.options.directory;
    match checkpoint::write(&inner.runtime, directory, identity, meta).await {
        Ok(record) => {
            let file = Some(inner.checkpoint_file(shard, record));
            Ok(NewMeta { place: MetaPlace::File(record), file })
        }
        Err(error) => {
            // What stays is an orphan.
            let _ = inner.runtime.remove_file(&identity.path(directory)).await;
            Err(io_error("writing a checkpoint", &error))
        }
    }
}

/// Writes and publishes it.
pub(crate) async fn run<R: Runtime>(inner: &Rc<Inner<R>>, started: Started) -> Result<(), LogError> {
    let shard = started.shard;
    let mut bottom = inner.shards.borrow().get(&shard).is_none_or(|state| state.index.runs().is_empty());
    let mut new_runs = Vec::new();
    for memtable in &started.memtables {
        let made = new_run(inner, shard, RunInput::Memtable(memtable), bottom).await;
        let made = made.map_err(|error| write_error("writing a checkpoint", error))?;
        bottom &= made.run().is_none();
        new_runs.push(made);
    }
    let meta = write_meta(inner, shard, &started.meta).await?;
    // Looked at by the first closure, taken by the second.
    let made = RefCell::new(Some((new_runs, meta)));
    let changes = || {
        let (shards, made) = (inner.shards.borrow(), made.borrow());
        let (Some(state), Some((new_runs, meta))) = (shards.get(&shard), made.as_ref()) else {
            return Vec::new();
        };
        let new = new_runs.iter().rev().filter_map(NewRun::run).map(|run| *run.record());
        vec![ManifestChange::Put(Box::new(ShardRecord {
            shard,
            replica: state.replica,
            generation: started.meta.generation,
            applied: started.meta.applied,
            term: started.meta.term,
            meta: meta.place.clone(),
            // The present runs: they may have been merged meanwhile.
            runs: new.chain(state.run_records()).collect(),
            tail: inner.tail_behind(shard, state, started.meta.applied),
            suspect: state.suspect.clone(),
            damaged: false,
        }))]
    };
    let then = || {
        let mut shards = inner.shards.borrow_mut();
        let (Some(state), Some((new_runs, meta))) = (shards.get_mut(&shard), made.take()) else { return };
        for (memtable, new_run) in started.memtables.iter().zip(new_runs) {
            state.index.flushed(memtable, new_run.keep());
        }
        state.note_lives(&inner.lives);
        let kept = inner.options.entries_kept;
        if let Some(old) = state.checkpointed(started.meta.clone(), meta.keep(), kept) {
            old.retired.set(true);
        }
    };
    let published = inner.publish(changes, then).await;
    keep_on_error(&published, made);
    if !published? {
        return Err(LogError::UnknownShard(shard));
    }
    inner.settled(shard, &started.evacuated);
    inner.statistics.borrow_mut().checkpoints += 1;
    inner.maintenance_wake.notify();
    inner.merging_wake.notify();
    Ok(())
}

/// When writing the manifest failed it may name the new files all the same: they stay, and the next opening decides.
pub(crate) fn keep_on_error<R: Runtime>(
    published: &Result<bool, LogError>,
    made: RefCell<Option<(Vec<NewRun<R>>, NewMeta)>>,
) {
    if published.is_err()
        && let Some((runs, meta)) = made.take()
    {
        runs.into_iter().for_each(|run| drop(run.keep()));
        drop(meta.keep());
    }
}

/// A failure to write a run.
pub(crate) fn write_error(what: &str, error: WriteError) -> LogError {
    match error {
        WriteError::Io(error) => io_error(what, &error),
        WriteError::Read(ReadError::Corruption(corruption)) => corruption.into(),
        WriteError::Read(error) => LogError::Io(format!("{what}: {error}")),
    }
}

/// A failure outside the log and the manifest.
pub(crate) fn io_error(what: &str, error: &std::io::Error) -> LogError {
    match error.kind() {
        std::io::ErrorKind::StorageFull
        | std::io::ErrorKind::QuotaExceeded
        | std::io::ErrorKind::FileTooLarge => LogError::DiskFull(format!("{what}: {error}")),
        _ => LogError::Io(format!("{what}: {error}")),
    }
}
