//! A replica that applied an entry otherwise than the others: its files are whole, its state is another.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_engine::{Change, CheckpointMeta, Index, LogId, Options, ShardId, Store};
use krita_runtime::sim::SimRuntime;

use super::Outcome;
use super::world::{TARGET, World, cold_key};

/// A difference is found within this time.
const FOUND_WITHIN: Duration = Duration::from_secs(60);

/// The fixed beginning of the state machine's part of a checkpoint: version, applied index, log time, state hash.
const APPLIED_INDEX: std::ops::Range<usize> = 1..9;
const STATE_HASH: std::ops::Range<usize> = 17..25;

impl World {
    /// See [`super::diverge`].
    pub(super) fn diverge(&mut self) -> Result<(Duration, Duration), String> {
        let leader = self.leader_of_target().ok_or("the target has no leader")?;
        let victim = (leader + 1) % self.cluster.nodes.len();
        self.write_behind_the_checkpoint(victim);
        self.cluster.kill(victim);
        self.settle(Duration::from_millis(200), Some(victim));
        self.forge(victim)?;
        self.cluster.boot(victim);
        let start = self.simulation.now();
        while !self.has_found_it() {
            if self.simulation.now() - start > FOUND_WITHIN {
                return Err("the difference is not found".to_owned());
            }
            self.settle(Duration::from_millis(500), None);
        }
        let found = self.simulation.now() - start;
        let outcome = self.wait_for_outcome(victim);
        // Whoever watches the cluster sees what nodes see.
        let seen = format!("differ in shard {TARGET} at");
        self.scene.violations.borrow_mut().retain(|violation| !violation.contains(&seen));
        match outcome {
            Outcome::Heals { restarts: 0 } => Ok((found, self.simulation.now() - start)),
            other => Err(format!("{other:?}")),
        }
    }

    /// Some leader has counted it.
    fn has_found_it(&mut self) -> bool {
        let storage = (0..self.cluster.nodes.len()).filter_map(|position| self.status_of(position)?.storage);
        storage.map(|storage| storage.divergences).sum::<u64>() > 0
    }

    /// Instead of what the first entry behind the checkpoint says, the node has deleted the cold key.
    fn forge(&mut self, victim: usize) -> Result<(), String> {
        let host = self.cluster.nodes[victim].host;
        let forged = Rc::new(RefCell::new(Err("the forger does not come to its end".to_owned())));
        let outcome = forged.clone();
        self.simulation.boot(host, 1, move |runtime: SimRuntime, _: krita_runtime::sim::SimMesh<()>| {
            let outcome = outcome.clone();
            async move { *outcome.borrow_mut() = forge(runtime).await }
        });
        self.settle(Duration::from_secs(1), Some(victim));
        self.simulation.kill(host);
        self.settle(Duration::from_millis(200), Some(victim));
        forged.replace(Ok(()))
    }
}

async fn forge(runtime: SimRuntime) -> Result<(), String> {
    let failed = |what: &dyn std::fmt::Display| what.to_string();
    let mut options = Options::new(Path::new("/data/log-000").to_owned(), LogId(0));
    // They fit the segments of this cluster, which are small.
    (options.batch_bytes_max, options.piece_bytes) = (64 << 10, 16 << 10);
    let (store, _) = krita_engine::open(runtime, options).await.map_err(|error| failed(&error))?;
    let target = ShardId(TARGET);
    let meta = next_meta(&store, target).ok_or("there is no entry behind the checkpoint")?;
    store.apply(target, meta.applied, vec![Change::Delete { key: cold_key(TARGET) }]);
    store.checkpoint(target, meta).await.map_err(|error| failed(&error))?;
    store.close().await;
    Ok(())
}

/// A checkpoint with one entry more than the last, and another state hash.
fn next_meta(store: &Store<SimRuntime>, shard: ShardId) -> Option<CheckpointMeta> {
    let mut meta = store.checkpoint_meta(shard)?;
    let applied = Index(store.applied(shard)?.0 + 1);
    meta.term = store.term_at(shard, applied)?;
    meta.applied = applied;
    let mut machine = meta.machine.to_vec();
    machine[APPLIED_INDEX].copy_from_slice(&applied.0.to_le_bytes());
    machine[STATE_HASH][0] ^= 1;
    meta.machine = Bytes::from(machine);
    Some(meta)
}
