//! A crash at every point of a checkpoint, of a snapshot's installation, of a move and of a removal: the old
//! state or the new one, whole.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use krita_engine::{
    CheckpointMeta, EntryRecord, HardState, Index, LogError, RecoveredShard, ReplicaId, ShardId,
    SnapshotItem, Term, value_checksum,
};

const STEP: Duration = Duration::from_micros(60);

/// Prepares a world, starts `work`, cuts the power after 0, 1, 2 … steps until `work` came to its end first,
/// and lets `check` look at what is found; the last call is with the finished work.
fn at_every_point<W>(
    seed: u64,
    prepare: impl Fn(&World) -> SimStore,
    work: W,
    check: impl Fn(&World, SimStore, Vec<RecoveredShard>, bool),
) where
    W: AsyncFn(SimStore) + Clone + 'static,
{
    let mut points = 0;
    loop {
        let world = World::new(seed + points % 3);
        let store = prepare(&world);
        let done = std::rc::Rc::new(std::cell::Cell::new(false));
        let (task, running, finished) = (work.clone(), store.clone(), done.clone());
        world.simulation.spawn_on(world.host, move |_| async move {
            task(running).await;
            finished.set(true);
        });
        world.simulation.run_for(STEP * points as u32);
        let finished = done.get();
        drop(store);
        world.simulation.crash(world.host);
        let (store, shards) = world.open();
        check(&world, store, shards, finished);
        points += 1;
        if finished {
            break;
        }
    }
    assert!(points > 7, "{points} points are too few");
}

fn with_entries(world: &World) -> SimStore {
    let store = World::with_shard(world);
    let writer = store.clone();
    world.run(async move {
        for index in 1..=30 {
            write_and_apply(&writer, index, &[put(&format!("k{}", index % 7), vec![index as u8; 3_000])])
                .await;
            if index == 10 {
                checkpoint(&writer).await;
            }
        }
        let state = HardState { term: Term(1), vote: Some(2), commit: Index(30) };
        write_hard_state(&writer, SHARD, state).await;
    });
    store
}

fn index_and_log(world: &World, store: SimStore, shard: ShardId, last: Index) -> State {
    world.run(async move {
        let mut state = content(&store, shard).await;
        let from = store.applied(shard).unwrap().next();
        if from <= last {
            for entry in store.read_entries(shard, from, last, usize::MAX).await.unwrap() {
                let changes = changes(entry.index, &entry.payload, &mut state, false);
                store.apply(shard, entry.index, changes);
            }
        }
        assert_eq!(content(&store, shard).await, state);
        state
    })
}

#[test]
fn of_a_checkpoint() {
    at_every_point(
        10,
        with_entries,
        async |store| checkpoint(&store).await,
        |world, store, shards, done| {
            let shard = &shards[0];
            assert!([Index(10), Index(30)].contains(&shard.checkpoint.applied));
            assert!(!done || shard.checkpoint.applied == Index(30));
            assert_eq!(shard.hard_state, HardState { term: Term(1), vote: Some(2), commit: Index(30) });
            let state = index_and_log(world, store.clone(), SHARD, shard.last_index);
            assert_eq!(shard.last_index, Index(30));
            for (key, (version, value)) in &state {
                assert_eq!(*value, Bytes::from(vec![version.0 as u8; 3_000]), "{key:?}");
            }
            assert_eq!(state.len(), 7);
            world.simulation.run_for(Duration::from_millis(100));
            assert_eq!(world.files("run-").len() as u64, store.statistics().runs, "no orphan stays");
        },
    );
}

/// Enough checkpoints for runs to be merged, with deleted keys among them.
fn with_runs(world: &World) -> SimStore {
    let store = World::with_shard(world);
    let writer = store.clone();
    world.run(async move {
        let all: Vec<Operation> = (0..200).map(|number| put(&format!("key{number:03}"), "old")).collect();
        write_and_apply(&writer, 1, &all).await;
        checkpoint(&writer).await;
        for index in 2..=8 {
            write_and_apply(&writer, index, &changed_at(index)).await;
            checkpoint(&writer).await;
        }
    });
    store
}

/// Every entry puts two keys and deletes one.
fn changed_at(index: u64) -> Vec<Operation> {
    let gone = Operation::Delete(Bytes::from(format!("key{:03}", index + 100)));
    vec![put(&format!("key{index:03}"), "new"), put(&format!("key{:03}", index % 3), "newest"), gone]
}

#[test]
fn of_checkpoints_and_merges_in_a_row() {
    let work = async |store: SimStore| {
        let (mut index, before) = (8, store.statistics().merges);
        while store.statistics().merges < before + 2 {
            index += 1;
            write_and_apply(&store, index, &changed_at(index)).await;
            checkpoint(&store).await;
        }
    };
    at_every_point(70, with_runs, work, |world, store, shards, done| {
        let (checkpointed, last) = (shards[0].checkpoint.applied, shards[0].last_index);
        assert!(checkpointed <= last && checkpointed >= Index(8));
        assert!(!done || checkpointed == last && last > Index(8));
        let state = index_and_log(world, store.clone(), SHARD, last);
        for number in 0..200 {
            let found = state.get(format!("key{number:03}").as_bytes());
            let expected = match number {
                number if (102..=100 + last.0).contains(&number) => None,
                0..=2 => Some("newest"),
                number if (2..=last.0).contains(&number) => Some("new"),
                _ => Some("old"),
            };
            assert_eq!(found.map(|(_, value)| &value[..]), expected.map(str::as_bytes), "key{number:03}");
        }
        world.simulation.run_for(Duration::from_millis(100));
        assert_eq!(world.files("run-").len() as u64, store.statistics().runs, "no orphan stays");
    });
}

fn snapshot_items() -> Vec<SnapshotItem> {
    (0..12u64)
        .map(|number| {
            let key = Bytes::from(format!("new{number:02}"));
            let value = Bytes::from(vec![100 + number as u8; if number == 5 { 40_000 } else { 4_000 }]);
            let checksum = value_checksum(&key, &value);
            SnapshotItem { key, version: Index(40 + number), checksum, value }
        })
        .collect()
}

fn new_meta() -> CheckpointMeta {
    let machine = Bytes::from(vec![5; 50_000]);
    CheckpointMeta { applied: Index(60), term: Term(2), machine, ..CheckpointMeta::default() }
}

const NEW_STATE: HardState = HardState { term: Term(2), vote: None, commit: Index(60) };

fn is_new(state: &State) {
    let items = snapshot_items();
    assert_eq!(state.len(), items.len());
    for item in items {
        assert_eq!(state[&item.key], (item.version, item.value));
    }
}

#[test]
fn of_an_installation() {
    let install = async |store: SimStore| {
        let mut installer = store.snapshot_installer(SHARD, REPLICA).await.unwrap();
        for part in snapshot_items().chunks(5) {
            installer.add(part.to_vec()).await.unwrap();
        }
        installer.finish(new_meta(), NEW_STATE).await.unwrap();
    };
    at_every_point(20, with_entries, install, |world, store, shards, done| {
        let shard = shards[0].clone();
        let state = index_and_log(world, store, SHARD, shard.last_index);
        match shard.checkpoint.applied {
            Index(10) => {
                assert!(!done);
                assert_eq!((shard.last_index, shard.hard_state.term), (Index(30), Term(1)));
                assert_eq!(state.len(), 7);
            }
            Index(60) => {
                assert_eq!((shard.last_index, shard.hard_state), (Index(60), NEW_STATE));
                assert_eq!(shard.checkpoint, new_meta());
                is_new(&state);
            }
            other => panic!("a checkpoint at {other}"),
        }
    });
}

#[test]
fn of_a_move_into_this_log() {
    const MOVED: ShardId = ShardId(2);
    let entries: Vec<EntryRecord> =
        (61..64).map(|index| entry(index, 2, &[put(&format!("moved{index}"), vec![7; 9_000])])).collect();
    let arrive = async move |store: SimStore| {
        let mut installer = store.snapshot_installer(MOVED, ReplicaId(8)).await.unwrap();
        installer.add(snapshot_items()).await.unwrap();
        installer.entries(entries.clone()).await.unwrap();
        installer.finish(new_meta(), NEW_STATE).await.unwrap();
        write_entries(&store, MOVED, vec![entry(64, 2, &[])]).await;
    };
    at_every_point(30, with_entries, arrive, |world, store, shards, done| {
        assert_eq!(shards[0].last_index, Index(30));
        let Some(moved) = shards.get(1) else {
            assert!(!done);
            return;
        };
        assert_eq!((moved.shard, moved.replica), (MOVED, ReplicaId(8)));
        assert!(moved.last_index >= Index(63), "with its entries or not at all");
        let state = index_and_log(world, store, MOVED, moved.last_index);
        assert_eq!(state.len(), 15);
    });
}

#[test]
fn of_a_removal() {
    let remove = async |store: SimStore| {
        store.remove_shard(SHARD).await.unwrap();
        let fresh = CheckpointMeta { generation: 5, ..CheckpointMeta::default() };
        store.create_shard(SHARD, ReplicaId(99), fresh).await.unwrap();
    };
    at_every_point(40, with_entries, remove, |world, store, shards, done| {
        assert!(!done || shards[0].replica == ReplicaId(99));
        let Some(shard) = shards.first() else { return };
        if shard.replica == ReplicaId(99) {
            assert_eq!((shard.last_index, shard.hard_state), (Index(0), HardState::default()));
            assert_eq!(shard.checkpoint.generation, 5);
            assert_eq!(store.keys_estimate(SHARD), 0, "nothing of the old replica revives");
        } else {
            assert_eq!(index_and_log(world, store, SHARD, shard.last_index).len(), 7);
        }
    });
}

#[test]
fn stale_and_damaged_snapshots_are_refused() {
    let world = World::new(50);
    let store = with_entries(&world);
    world.run(async move {
        let mut items = snapshot_items();
        items[3].checksum ^= 1;
        let mut installer = store.snapshot_installer(SHARD, REPLICA).await.unwrap();
        assert!(matches!(installer.add(items).await, Err(LogError::Refused(_))));
        for applied in [5, 30] {
            let installer = store.snapshot_installer(SHARD, REPLICA).await.unwrap();
            let meta = CheckpointMeta { applied: Index(applied), ..new_meta() };
            assert!(matches!(installer.finish(meta, NEW_STATE).await, Err(LogError::Refused(_))));
        }
        write_entries(&store, SHARD, vec![entry(31, 1, &[])]).await;
        assert_eq!(store.last_index(SHARD), Some(Index(31)), "it goes on as before");
    });
}

#[test]
fn a_snapshot_being_read_keeps_what_it_needs() {
    let world = World::new(60);
    let store = with_entries(&world);
    world.run(async move {
        checkpoint(&store).await;
        let before = content(&store, SHARD).await;
        let mut source = store.snapshot_source(SHARD).await.unwrap();
        let mut items = source.next(1).await.unwrap();
        let mut index = 30;
        while store.statistics().segments_recycled < 5 {
            index += 1;
            write_and_apply(&store, index, &[put(&format!("k{}", index % 7), vec![0; 3_000])]).await;
            if index % 10 == 0 {
                checkpoint(&store).await;
            }
        }
        loop {
            let more = source.next(5_000).await.unwrap();
            if more.is_empty() {
                break;
            }
            items.extend(more);
        }
        let read: State = items.into_iter().map(|item| (item.key, (item.version, item.value))).collect();
        assert_eq!(read, before);
    });
}
