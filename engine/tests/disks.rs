//! Disks that fail, fill up, or are used for long: what is answered, what goes on, and what never comes back.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use krita_engine::{
    CheckpointMeta, HardState, Headroom, Index, LogError, OpenError, Options, ReplicaId, ShardId, Term,
};

#[test]
fn a_failed_write_poisons_the_log_for_ever() {
    let world = World::new(1);
    let store = create(&world, unsealed());
    world.simulation.run_for(Duration::from_millis(200));
    world.simulation.disk(world.host).fail_writes(1);
    let writer = store.clone();
    world.run(async move {
        for index in 1..=3 {
            let mut batch = writer.batch();
            batch.entry(SHARD, entry(index.min(1), 1, &[put("k", "v")]));
            assert!(matches!(writer.write(batch).await, Err(LogError::Poisoned(_))));
        }
        assert_eq!(writer.last_index(SHARD), Some(Index(0)));
        let checkpointed = writer.checkpoint(SHARD, CheckpointMeta::default()).await;
        assert!(matches!(checkpointed, Err(LogError::Poisoned(_))));
    });
    assert!(store.poisoned().is_some());
    drop(store);
    world.simulation.kill(world.host);
    let (store, shards) = world.open();
    assert!(shards[0].last_index <= Index(1));
    assert_eq!(store.poisoned(), None);
}

#[test]
fn a_full_disk_is_an_error_until_there_is_space() {
    let world = World::new(1);
    let store = World::with_shard(&world);
    world.simulation.run_for(Duration::from_millis(100));
    let disk = world.simulation.disk(world.host);
    disk.set_capacity(Some(disk.used_bytes()));
    let writer = store.clone();
    let full = world.run(async move {
        for index in 1..100 {
            let mut batch = writer.batch();
            batch.entry(SHARD, entry(index, 1, &[put(&format!("k{index}"), vec![1; 12_000])]));
            match writer.write(batch).await {
                Ok(()) => {
                    let record = entry(index, 1, &[put(&format!("k{index}"), vec![1; 12_000])]);
                    let changes = changes(record.index, &record.payload, &mut State::new(), false);
                    writer.apply(SHARD, record.index, changes);
                }
                Err(LogError::DiskFull(_)) => return index,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the disk was never full")
    });
    assert_eq!(store.poisoned(), None);
    disk.set_capacity(None);
    let writer = store.clone();
    world.run(async move {
        assert_eq!(writer.last_index(SHARD), Some(Index(full - 1)));
        assert_eq!(content(&writer, SHARD).await.len() as u64, full - 1, "reads go on");
        write_and_apply(&writer, full, &[put("again", "space")]).await;
    });
    drop(store);
    world.simulation.crash(world.host);
    assert_eq!(world.open().1[0].last_index, Index(full));
}

#[test]
fn what_frees_space_may_use_the_reserve() {
    let world = World::new(2);
    let with_reserve = || Options { reserve_bytes: 600 << 10, segments_spare: 0, ..options() };
    let store = create(&world, with_reserve());
    let disk = world.simulation.disk(world.host);
    disk.set_capacity(Some(disk.used_bytes() + (700 << 10)));
    let writer = store.clone();
    world.run(async move {
        let write = |index: u64, frees: bool, operations: Vec<Operation>| {
            let mut batch = writer.batch();
            if frees {
                batch.frees_space();
            }
            batch.entry(SHARD, entry(index, 1, &operations));
            writer.write(batch)
        };
        let mut index = 1;
        let full = loop {
            match write(index, false, vec![put("k", vec![1; 12_000])]).await {
                Ok(()) => index += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, LogError::DiskFull(_)), "{full}");
        assert_eq!(writer.headroom(), Headroom::Full);
        assert_eq!(writer.statistics().queue_bytes, 0);
        // One that frees space goes through; one behind it that does not, and what follows that one, do not.
        let small = || vec![Operation::Delete(Bytes::from_static(b"k"))];
        let (first, second, third) = (
            write(index, true, small()),
            write(index + 1, false, vec![put("k", vec![1; 47_000])]),
            write(index + 2, true, small()),
        );
        let (first, second, third) = futures_util::future::join3(first, second, third).await;
        first.unwrap();
        assert!(second.is_err() == third.is_err(), "no gap: {second:?}, {third:?}");
        let last = writer.last_index(SHARD).unwrap();
        assert_eq!(last, Index(if second.is_ok() { index + 2 } else { index }));
        assert_eq!(writer.statistics().queue_bytes, 0);
        // A shard may still be made and removed.
        writer.create_shard(ShardId(2), ReplicaId(1), CheckpointMeta::default()).await.unwrap();
        writer.remove_shard(ShardId(2)).await.unwrap();
        assert_eq!(writer.poisoned(), None);
    });
    let last = store.last_index(SHARD).unwrap();
    drop(store);
    world.simulation.crash(world.host);
    match open_with(&world, with_reserve()) {
        Err(OpenError::NoRoom { available, needed, .. }) => assert!(available < needed),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("there is less room than the reserve"),
    }
    world.simulation.disk(world.host).set_capacity(None);
    let (store, shards) = open_with(&world, with_reserve()).unwrap();
    assert_eq!(shards[0].last_index, last);
    world
        .run(async move { write_entries(&store, SHARD, vec![entry(last.0 + 1, 1, &[put("a", "b")])]).await });
}

#[test]
fn a_large_entry_does_not_hold_up_another_shard() {
    let world = World::new(1);
    let large = || Options { segment_bytes: 8 << 20, ..unsealed() };
    let store = create(&world, large());
    let writer = store.clone();
    let big = vec![9; 3 << 20];
    let expected = big.clone();
    world.run(async move {
        writer.create_shard(ShardId(2), ReplicaId(1), CheckpointMeta::default()).await.unwrap();
        let mut batch = writer.batch();
        batch.entry(SHARD, entry(1, 1, &[put("big", big)]));
        batch.entry(SHARD, entry(2, 1, &[put("after", "big")]));
        let slow = writer.write(batch);
        let quick = async {
            let before = writer.statistics().batches;
            write_entries(&writer, ShardId(2), vec![entry(1, 1, &[put("small", "v")])]).await;
            assert!(writer.statistics().batches - before <= 2, "the small one goes with the next batch");
            assert_eq!(writer.last_index(SHARD), Some(Index(0)));
        };
        let (slow, ()) = futures_util::future::join(slow, quick).await;
        slow.unwrap();
        assert!(writer.statistics().batches > 100);
    });
    world.simulation.crash(world.host);
    let (store, shards) = open_with(&world, large()).unwrap();
    assert_eq!(shards[0].last_index, Index(2));
    world.run(async move {
        let entries = store.read_entries(SHARD, Index(1), Index(2), usize::MAX).await.unwrap();
        for entry in &entries {
            let changes = changes(entry.index, &entry.payload, &mut State::new(), false);
            store.apply(SHARD, entry.index, changes);
        }
        let slot = store.get(SHARD, b"big").await.unwrap().unwrap();
        assert!(slot.region.as_slice().len() > 100);
        assert_eq!(store.value(SHARD, b"big", &slot).await.unwrap(), Bytes::from(expected));
        checkpoint(&store).await;
    });
    world.simulation.crash(world.host);
    let (store, _) = open_with(&world, large()).unwrap();
    world.run(async move {
        let mut source = store.snapshot_source(SHARD).await.unwrap();
        assert_eq!(source.next(usize::MAX).await.unwrap().len(), 2);
    });
}

#[test]
fn old_bytes_of_a_recycled_segment_never_come_back() {
    let mut with_old_bytes = 0;
    for seed in 0..20 {
        let world = World::new(seed);
        let store = World::with_shard(&world);
        let writer = store.clone();
        let last = world.run(async move {
            let (mut index, mut more) = (0, 1 + seed);
            while more > 0 {
                index += 1;
                write_and_apply(&writer, index, &[put("k", vec![index as u8; 1_000])]).await;
                if index % 20 == 0 {
                    checkpoint(&writer).await;
                }
                more -= u64::from(writer.statistics().segments_recycled >= 6);
            }
            index
        });
        drop(store);
        world.simulation.crash(world.host);
        with_old_bytes += u64::from(world.files("segment-").into_iter().any(|path| {
            // Whole batches of an earlier life right where the newest segment's chain ends.
            let segment = world.read(path);
            let number = |offset: usize| segment[offset + 24..offset + 32].to_vec();
            batches(&segment).windows(2).any(|pair| number(pair[0]) > number(pair[1]))
        }));
        let (store, shards) = world.open();
        assert_eq!(shards[0].last_index, Index(last));
        assert!(store.statistics().segments <= 8, "dead segments are used again");
        let state = world.run(async move {
            let from = store.applied(SHARD).unwrap().next();
            if from <= Index(last) {
                for entry in store.read_entries(SHARD, from, Index(last), usize::MAX).await.unwrap() {
                    let changes = changes(entry.index, &entry.payload, &mut State::new(), false);
                    store.apply(SHARD, entry.index, changes);
                }
            }
            content(&store, SHARD).await
        });
        assert_eq!(state[&b"k"[..]], (Index(last), Bytes::from(vec![last as u8; 1_000])));
    }
    assert!(with_old_bytes >= 10, "the case was met {with_old_bytes} times");
}

#[test]
fn hard_states_outlive_the_segments_they_were_written_to() {
    let world = World::new(4);
    let store = World::with_shard(&world);
    let writer = store.clone();
    let vote = HardState { term: Term(9), vote: Some(3), commit: Index(0) };
    world.run(async move {
        writer.create_shard(ShardId(2), ReplicaId(1), CheckpointMeta::default()).await.unwrap();
        write_hard_state(&writer, ShardId(2), vote).await;
        let mut index = 0;
        while writer.statistics().segments_recycled < 6 {
            index += 1;
            write_and_apply(&writer, index, &[put("k", vec![1; 1_000])]).await;
            if index % 20 == 0 {
                checkpoint(&writer).await;
            }
        }
    });
    drop(store);
    world.simulation.crash(world.host);
    assert_eq!(world.open().1[1].hard_state, vote);
}

#[test]
fn the_manifest_starts_a_new_file_and_drops_the_old() {
    let world = World::new(4);
    let store = World::with_shard(&world);
    let writer = store.clone();
    world.run(async move {
        for index in 1..=150 {
            write_and_apply(&writer, index, &[put("k", vec![index as u8; 100])]).await;
            checkpoint(&writer).await;
        }
    });
    drop(store);
    world.simulation.crash(world.host);
    let (_, shards) = world.open();
    assert_eq!(shards[0].checkpoint.applied, Index(150));
    let manifests = world.files("manifest-");
    assert_eq!(manifests.len(), 1);
    assert_ne!(manifests[0], PathBuf::from("/data/log0/manifest-1"));
    assert!(world.files("run-").len() <= 9, "old runs are merged and removed");
}
