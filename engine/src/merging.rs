//! Merging runs in the background, so that a lookup meets few of them.
//!
//! A merge changes no answer. It is written like a checkpoint's run and published by a frame that names the shard's
//! runs; the list is taken anew at the frame's turn, since checkpoints may have added runs in front meanwhile.

use std::cell::RefCell;
use std::rc::Rc;

use krita_runtime::Runtime;

use crate::error::LogError;
use crate::index::{RunInput, WriteError, merge_plan};
use crate::inner::Inner;
use crate::manifest::ManifestChange;
use crate::publish::{NewRun, new_run, write_error};
use crate::run::Run;
use crate::types::ShardId;

/// Merges runs while the plan says so. Runs until the store is closed.
pub(crate) async fn run<R: Runtime>(inner: Rc<Inner<R>>) {
    // Shards whose last merge failed wait for the next wake: for a checkpoint, that is.
    let mut failed: Vec<ShardId> = Vec::new();
    loop {
        if inner.closed.get() {
            return;
        }
        let due = if inner.poisoned().is_some() { None } else { due(&inner, &failed) };
        let Some((shard, runs, oldest)) = due else {
            failed.clear();
            inner.merging_wake.notified().await;
            continue;
        };
        if let Err(error) = merge(&inner, shard, &runs, oldest).await {
            tracing::warn!(log = %inner.options.log, %shard, %error, "runs could not be merged");
            failed.push(shard);
        }
    }
}

type Due<R> = (ShardId, Vec<Rc<Run<R>>>, bool);

/// Runs to merge: those of the shard with most runs among all that are due.
fn due<R: Runtime>(inner: &Inner<R>, failed: &[ShardId]) -> Option<Due<R>> {
    let shards = inner.shards.borrow();
    let able =
        shards.iter().filter(|(id, shard)| !shard.closing && shard.damaged.is_none() && !failed.contains(id));
    let due = able.filter_map(|(id, shard)| {
        let sizes: Vec<u64> = shard.index.runs().iter().map(|run| run.record().length).collect();
        Some((sizes.len(), *id, merge_plan(&sizes)?))
    });
    let (count, shard, range) = due.max_by_key(|(count, id, _)| (*count, std::cmp::Reverse(*id)))?;
    let oldest = range.end == count;
    let runs = shards.get(&shard)?.index.runs().get(range)?.to_vec();
    Some((shard, runs, oldest))
}

async fn merge<R: Runtime>(
    inner: &Rc<Inner<R>>,
    shard: ShardId,
    runs: &[Rc<Run<R>>],
    oldest: bool,
) -> Result<(), LogError> {
    let made = new_run(inner, shard, RunInput::Runs(runs), oldest).await;
    let made = made.map_err(|error| {
        if let WriteError::Read(error) = &error {
            inner.report_index(shard, error);
        }
        write_error("merging runs", error)
    })?;
    if oldest {
        let bytes = |run: &Rc<Run<R>>| run.segments().values().sum::<u64>();
        let (before, after) = (runs.iter().map(bytes).sum(), made.run().map_or(0, bytes));
        let young = runs.split_last().map_or(&[][..], |(_, young)| young);
        let items = young.iter().map(|run| run.record().items).sum();
        inner.compaction.borrow_mut().hidden.learn(items, before, after);
    }
    let made = RefCell::new(Some(made));
    let changes = || {
        let shards = inner.shards.borrow();
        // The shard may have been removed or replaced.
        let Some(state) = shards.get(&shard).filter(|_| inner.manifest.tail(shard).is_some()) else {
            return Vec::new();
        };
        let present = state.index.runs();
        let Some(start) = present.iter().position(|run| Rc::ptr_eq(run, &runs[0])) else { return Vec::new() };
        let same = present[start..].iter().zip(runs).filter(|(one, other)| Rc::ptr_eq(one, other));
        if same.count() < runs.len() {
            return Vec::new();
        }
        let new = made.borrow().as_ref().and_then(|made| made.run().map(|run| *run.record()));
        let (newer, older) = (&present[..start], &present[start + runs.len()..]);
        let records = newer.iter().map(|run| *run.record()).chain(new);
        let records = records.chain(older.iter().map(|run| *run.record())).collect();
        vec![ManifestChange::Runs(shard, records)]
    };
    let then = || {
        let mut shards = inner.shards.borrow_mut();
        let Some(state) = shards.get_mut(&shard) else { return };
        let new = made.take().and_then(NewRun::keep);
        state.index.merged(runs, new);
        state.note_lives(&inner.lives);
        for run in runs {
            run.retire();
        }
    };
    let published = inner.publish(changes, then).await;
    if published.is_err() {
        // The manifest may name it all the same: it stays, and the next opening decides.
        drop(made.take().and_then(NewRun::keep));
    }
    if published? {
        let mut statistics = inner.statistics.borrow_mut();
        statistics.merges += 1;
        statistics.merges_partial += u64::from(!oldest);
        drop(statistics);
        inner.maintenance_wake.notify();
    }
    Ok(())
}
