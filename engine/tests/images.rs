//! Disks as crashes and rot leave them, built by hand: what must be cut in silence, what makes a replica suspect and
//! what it keeps, and what must be refused; and that a refusal changes nothing.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use krita_engine::{
    CheckpointMeta, Damage, HardState, Index, LogError, LogId, OpenError, Options, ReadError, RecoveredShard,
    ReplicaId, ShardId, SnapshotItem, Term, value_checksum,
};

const SEGMENT: &str = "/data/log0/segment-1";

fn all_files(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = world.simulation.disk(world.host).files();
    files.into_iter().map(|path| (path.clone(), world.read(path))).collect()
}

/// The log opens, and the replica in it may have forgotten something; a crash and another opening change nothing.
fn suspect(world: &World, why: &str) -> RecoveredShard {
    let open = || {
        let (store, mut shards) = world.try_open().unwrap_or_else(|error| panic!("{why}: {error}"));
        drop(store);
        world.simulation.crash(world.host);
        shards.remove(0)
    };
    let shard = open();
    assert!(shard.suspect.is_some(), "{why}: it is suspect");
    assert_eq!(open(), shard, "{why}: found again");
    shard
}

/// Opening is refused because the manifest is lost, and leaves the disk as it is.
fn lost_manifest(world: &World, why: &str) {
    let before = all_files(world);
    match world.try_open() {
        Err(OpenError::ManifestLost(_)) => {}
        Err(error) => panic!("{why}: {error}"),
        Ok(_) => panic!("{why}: it was opened"),
    }
    assert!(before == all_files(world), "{why}: a refusal changes nothing");
}

/// Five entries of one key, each a batch of its own, nothing behind the last. The batches' offsets.
fn five_entries(world: &World) -> Vec<usize> {
    let store = create(world, unsealed());
    world.run(async move {
        for index in 1..=5 {
            let value = vec![index as u8; 5_000];
            write_entries(&store, SHARD, vec![entry(index, 1, &[put("k", value)])]).await;
        }
    });
    world.simulation.crash(world.host);
    batches(&world.read(SEGMENT))
}

#[test]
fn a_torn_last_batch_is_cut_in_silence() {
    // Every sector of the last batch in turn: zeros, as if it had never been written.
    let sectors = (5_000usize + 128).div_ceil(512);
    for sector in 0..sectors {
        let world = World::new(sector as u64);
        let offsets = five_entries(&world);
        assert_eq!(offsets.len(), 5);
        let at = offsets[4] + sector * 512;
        world.simulation.disk(world.host).overwrite(SEGMENT, at as u64, &[0; 512]);
        let (store, shards) = world.open();
        assert_eq!(shards[0].last_index, Index(4), "sector {sector}");
        // The same place is written anew, and what is behind it never comes back.
        world.run(async move {
            write_entries(&store, SHARD, vec![entry(5, 2, &[put("k", "new")])]).await;
        });
        world.simulation.crash(world.host);
        let (store, shards) = world.open();
        assert_eq!((shards[0].last_index, shards[0].terms.last()), (Index(5), Some(&(Index(5), Term(2)))));
        let entries = world
            .run(async move { store.read_entries(SHARD, Index(1), Index(5), usize::MAX).await })
            .unwrap();
        assert_eq!(entries.len(), 5);
    }
}

#[test]
fn a_batch_that_lost_everything_but_its_header_is_cut() {
    let world = World::new(1);
    let offsets = five_entries(&world);
    world.simulation.disk(world.host).overwrite(SEGMENT, offsets[4] as u64 + 512, &[0; 4608]);
    let (_, shards) = world.open();
    assert_eq!(shards[0].last_index, Index(4));
}

#[test]
fn what_is_before_damage_with_a_valid_batch_behind_it_is_kept() {
    for victim in 0..4 {
        for byte in [0, 9, 17, 41, 50, 63, 64, 100, 200, 4_000, 5_100] {
            let world = World::new(victim as u64);
            let offsets = five_entries(&world);
            let at = offsets[victim] as u64 + byte;
            world.simulation.disk(world.host).flip_bit(SEGMENT, at, 3);
            let before = world.read(SEGMENT);
            let shard = suspect(&world, &format!("batch {victim}, byte {byte}"));
            assert_eq!(shard.last_index, Index(victim as u64));
            assert!(!shard.state_damaged);
            let reason = shard.suspect.unwrap();
            assert!(reason.contains(SEGMENT) && reason.contains(&offsets[victim].to_string()), "{reason}");
            assert!(world.read(SEGMENT) == before, "the damaged segment is not written");
        }
    }
}

#[test]
fn damage_of_everything_but_the_last_batch_is_still_found() {
    let world = World::new(1);
    let offsets = five_entries(&world);
    let zeros = vec![0; offsets[4] - offsets[0]];
    world.simulation.disk(world.host).overwrite(SEGMENT, offsets[0] as u64, &zeros);
    assert_eq!(suspect(&world, "four batches gone").last_index, Index(0));
}

#[test]
fn a_sealed_batch_is_known_to_have_been_durable() {
    for damaged in [2, 1] {
        let world = World::new(3);
        let store = create(&world, options());
        let writer = store.clone();
        world.run(async move { write_entries(&writer, SHARD, vec![entry(1, 1, &[put("k", "v")])]).await });
        world.simulation.run_for(Duration::from_millis(50));
        assert!(store.statistics().seals >= 1);
        drop(store);
        world.simulation.crash(world.host);
        let offsets = batches(&world.read(SEGMENT));
        let at = offsets[offsets.len() - damaged] as u64;
        world.simulation.disk(world.host).flip_bit(SEGMENT, at + 33, 1);
        if damaged == 2 {
            assert_eq!(suspect(&world, "the last batch before the seal").last_index, Index(0));
        } else {
            // The seal itself holds nothing: without it nothing is lost.
            let shard = world.open().1.remove(0);
            assert_eq!((shard.last_index, shard.suspect), (Index(1), None));
        }
    }
}

#[test]
fn a_later_hard_state_and_entries_that_follow_show_that_nothing_is_missing() {
    // The lost batch held another shard's entry; what this shard wrote behind it proves itself.
    let other = ShardId(2);
    let build = |world: &World, with_hard_state: bool, term_behind: u64| {
        let store = create(world, unsealed());
        world.run(async move {
            store.create_shard(other, REPLICA, CheckpointMeta::default()).await.unwrap();
            write_entries(&store, SHARD, vec![entry(1, 1, &[put("k", "1")])]).await;
            write_entries(&store, other, vec![entry(1, 1, &[put("k", "1")])]).await;
            write_entries(&store, SHARD, vec![entry(2, term_behind, &[put("k", "2")])]).await;
            if with_hard_state {
                let state = HardState { term: Term(term_behind), vote: Some(7), commit: Index(1) };
                write_hard_state(&store, SHARD, state).await;
            }
            write_entries(&store, SHARD, vec![entry(3, term_behind, &[put("k", "3")])]).await;
        });
        world.simulation.crash(world.host);
        let offsets = batches(&world.read(SEGMENT));
        world.simulation.disk(world.host).flip_bit(SEGMENT, offsets[1] as u64 + 70, 2);
    };
    for (with_hard_state, term_behind, sound, last) in
        [(true, 1, true, 3), (false, 1, false, 3), (true, 2, false, 1)]
    {
        let world = World::new(1);
        build(&world, with_hard_state, term_behind);
        for _ in 0..2 {
            let (store, shards) = world.open();
            assert_eq!(shards[0].suspect.is_none(), sound, "{with_hard_state} {term_behind}");
            assert_eq!(shards[0].last_index, Index(last));
            assert_eq!(
                shards[0].hard_state.vote,
                with_hard_state.then_some(7),
                "the later hard state counts"
            );
            assert!(shards[1].suspect.is_some(), "the other lost its entry");
            assert_eq!(shards[1].last_index, Index(0));
            drop(store);
            world.simulation.crash(world.host);
        }
        // It goes on behind the damage, and what comes then counts.
        let (store, _) = world.open();
        world.run(async move {
            write_entries(&store, SHARD, vec![entry(last + 1, 3, &[put("k", "4")])]).await;
            write_entries(&store, other, vec![entry(1, 3, &[put("k", "4")])]).await;
        });
        world.simulation.crash(world.host);
        let (_, shards) = world.open();
        assert_eq!(shards[0].last_index, Index(last + 1));
        assert_eq!(shards[1].last_index, Index(1));
        assert_eq!(shards[0].suspect.is_none(), sound);
    }
}

/// One batch of each kind of record, and where each lies.
fn every_kind(world: &World) -> Vec<(&'static str, usize)> {
    let store = create(world, unsealed());
    world.run(async move {
        write_entries(&store, SHARD, (1..=3).map(|index| entry(index, 1, &[put("k", "v")])).collect()).await;
        let state = HardState { term: Term(1), vote: Some(4), commit: Index(1) };
        write_hard_state(&store, SHARD, state).await;
        let mut batch = store.batch();
        batch.truncate_after(SHARD, Index(2));
        store.write(batch).await.unwrap();
        let mut installer = store.snapshot_installer(ShardId(2), ReplicaId(5)).await.unwrap();
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let checksum = value_checksum(&key, &value);
        let item = SnapshotItem { key, version: Index(9), checksum, value };
        installer.add(vec![item]).await.unwrap();
        write_entries(&store, SHARD, vec![entry(3, 1, &[put("k", vec![1; 40_000])])]).await;
        write_entries(&store, SHARD, vec![entry(4, 1, &[])]).await;
    });
    world.simulation.crash(world.host);
    let offsets = batches(&world.read(SEGMENT));
    let names = ["entries", "hard state", "truncation", "relocated", "piece 1", "piece 2", "piece 3", "last"];
    assert_eq!(offsets.len(), names.len());
    names.into_iter().zip(offsets).collect()
}

#[test]
fn a_flipped_bit_in_any_record_is_found() {
    let count = every_kind(&World::new(1)).len();
    for victim in 0..count - 1 {
        for byte in [64, 72, 75, 80, 88, 96, 104, 112, 120, 127] {
            let world = World::new(1);
            let (name, offset) = every_kind(&world)[victim];
            world.simulation.disk(world.host).flip_bit(SEGMENT, offset as u64 + byte, 0);
            suspect(&world, &format!("{name}, byte {byte}"));
        }
    }
    let world = World::new(1);
    every_kind(&world);
    let (_, shards) = world.open();
    assert_eq!((shards.len(), shards[0].last_index), (1, Index(4)), "unharmed, it opens");
    assert_eq!(shards[0].hard_state.vote, Some(4));
}

#[test]
fn swapped_and_misdirected_batches_are_found() {
    let world = World::new(1);
    let offsets = five_entries(&world);
    let segment = world.read(SEGMENT);
    let disk = world.simulation.disk(world.host);
    let length = offsets[2] - offsets[1];
    disk.overwrite(SEGMENT, offsets[1] as u64, &segment[offsets[2]..offsets[2] + length]);
    disk.overwrite(SEGMENT, offsets[2] as u64, &segment[offsets[1]..offsets[1] + length]);
    assert_eq!(suspect(&world, "two batches swapped").last_index, Index(1));

    for blocks in [1, 3, -1] {
        let world = World::new(2);
        let store = create(&world, unsealed());
        let writer = store.clone();
        world.run(async move {
            write_entries(&writer, SHARD, vec![entry(1, 1, &[put("a", "1")])]).await;
            write_entries(&writer, SHARD, vec![entry(2, 1, &[put("b", "2")])]).await;
        });
        // The spare segment is made by now: the next write is the log's.
        world.simulation.run_for(Duration::from_millis(200));
        world.simulation.disk(world.host).misdirect_next_write(blocks);
        world.run(async move {
            write_entries(&store, SHARD, vec![entry(3, 1, &[put("c", "3")])]).await;
            write_entries(&store, SHARD, vec![entry(4, 1, &[put("d", "4")])]).await;
        });
        world.simulation.crash(world.host);
        let shard = suspect(&world, &format!("a batch {blocks} blocks away"));
        assert_eq!(shard.last_index, Index(if blocks < 0 { 1 } else { 2 }));
    }

    let world = World::new(3);
    let store = create(&world, unsealed());
    world.simulation.run_for(Duration::from_millis(200));
    world.simulation.disk(world.host).lose_next_write();
    world.run(async move {
        write_entries(&store, SHARD, vec![entry(1, 1, &[put("c", "3")])]).await;
        write_entries(&store, SHARD, vec![entry(2, 1, &[put("d", "4")])]).await;
    });
    world.simulation.crash(world.host);
    assert_eq!(suspect(&world, "a lost batch").last_index, Index(0));
}

#[test]
fn a_damaged_value_is_never_returned() {
    let world = World::new(1);
    let store = World::with_shard(&world);
    let writer = store.clone();
    world.run(async move {
        for index in 1..=3 {
            write_and_apply(&writer, index, &[put(&format!("k{index}"), vec![index as u8; 6_000])]).await;
        }
        checkpoint(&writer).await;
    });
    let segment = world.read(SEGMENT);
    let at = segment.windows(100).position(|window| window == [2; 100]).unwrap();
    world.simulation.disk(world.host).flip_bit(SEGMENT, at as u64 + 50, 7);
    world.run(async move {
        let read = |key: &'static str| {
            let store = store.clone();
            async move {
                let slot = store.get(SHARD, key.as_bytes()).await.unwrap().unwrap();
                store.value(SHARD, key.as_bytes(), &slot).await
            }
        };
        assert!(read("k1").await.is_ok());
        assert!(matches!(read("k2").await, Err(ReadError::Corruption(_))));
        assert!(read("k3").await.is_ok());
        let entries = store.read_entries(SHARD, Index(2), Index(2), 1).await;
        assert!(matches!(entries, Err(ReadError::Corruption(_))));
        let mut source = store.snapshot_source(SHARD).await.unwrap();
        assert!(matches!(source.next(1 << 20).await, Err(ReadError::Corruption(_))));
        // Another key's value is not this key's, though its bytes are whole.
        let slot = store.get(SHARD, b"k3").await.unwrap().unwrap();
        assert!(matches!(store.value(SHARD, b"k1", &slot).await, Err(ReadError::Corruption(_))));
    });
}

/// A shard with a checkpoint whose run has several blocks.
fn checkpointed(world: &World) -> PathBuf {
    let store = World::with_shard(world);
    world.run(async move {
        let mut index = 0;
        for _ in 0..60 {
            let operations: Vec<Operation> =
                (0..50).map(|number| put(&format!("key-{index:05}-{number:030}"), "v")).collect();
            index += 1;
            write_and_apply(&store, index, &operations).await;
        }
        checkpoint(&store).await;
    });
    world.simulation.crash(world.host);
    world.files("run-").remove(0)
}

/// The replica comes back without its state: nothing of its keys is answered, and the file stays aside until a snapshot
/// has replaced it.
fn state_damaged(world: &World, path: &PathBuf, why: &str) {
    let shard = suspect(world, why);
    assert!(shard.state_damaged, "{why}");
    assert_eq!(shard.last_index, shard.checkpoint.applied);
    let was_there = world.files("").contains(path);
    let (store, _) = world.open();
    assert_eq!(world.files("").contains(path), was_there, "{why}: the file stays");
    world.run(async move {
        assert!(matches!(store.get(SHARD, b"k").await, Err(ReadError::Corruption(_))));
        assert!(matches!(store.scan(SHARD, b"", None, 1).await, Err(ReadError::Corruption(_))));
        assert!(store.snapshot_source(SHARD).await.is_err());
        assert!(store.clear_suspect(SHARD).await.is_err());
        let refused = store.checkpoint(SHARD, store.checkpoint_meta(SHARD).unwrap()).await;
        assert!(matches!(refused, Err(LogError::Corruption(_))));
        // An older state than the one that was lost heals it.
        let mut installer = store.snapshot_installer(SHARD, REPLICA).await.unwrap();
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"healed"));
        let checksum = value_checksum(&key, &value);
        installer.add(vec![SnapshotItem { key, version: Index(1), checksum, value }]).await.unwrap();
        let meta = CheckpointMeta { applied: Index(1), term: Term(1), ..CheckpointMeta::default() };
        installer.finish(meta, store.hard_state(SHARD).unwrap()).await.unwrap();
        assert!(store.suspect(SHARD).is_some(), "whether it is whole is decided above");
        store.clear_suspect(SHARD).await.unwrap();
        assert_eq!(content(&store, SHARD).await.len(), 1);
    });
    world.simulation.crash(world.host);
    let (store, shards) = world.open();
    assert_eq!((shards[0].last_index, &shards[0].suspect, shards[0].state_damaged), (Index(1), &None, false));
    assert!(!world.files("").contains(path), "{why}: what was damaged is gone");
    world.run(async move { assert_eq!(content(&store, SHARD).await.len(), 1) });
    world.simulation.crash(world.host);
}

/// Where the data blocks of a run end, by its footer.
fn data_end(run: &[u8]) -> usize {
    let footer = run.len() - BLOCK + 48;
    u64::from_le_bytes(run[footer + 32..footer + 40].try_into().unwrap()) as usize
}

#[test]
fn a_run_that_is_damaged_behind_its_data_takes_the_shards_state_with_it() {
    let run = {
        let world = World::new(1);
        let path = checkpointed(&world);
        world.read(path)
    };
    let (data, blocks) = (data_end(&run) / BLOCK, run.len() / BLOCK);
    assert!(data >= 8 && blocks > data + 2, "{data} of {blocks}");
    for block in data..blocks {
        let world = World::new(1);
        let path = checkpointed(&world);
        world.simulation.disk(world.host).flip_bit(&path, (block * BLOCK) as u64 + 40, 2);
        state_damaged(&world, &path, &format!("block {block} of a run"));
    }
    // Cut short, or gone.
    let world = World::new(1);
    let path = checkpointed(&world);
    world.simulation.disk(world.host).truncate(&path, (blocks as u64 - 1) * BLOCK as u64);
    state_damaged(&world, &path, "a run without its end");
    let world = World::new(1);
    let path = checkpointed(&world);
    world.simulation.disk(world.host).remove(&path);
    state_damaged(&world, &path, "a missing run");
}

#[test]
fn a_damaged_data_block_of_a_run_is_never_believed() {
    let data = {
        let world = World::new(1);
        let path = checkpointed(&world);
        data_end(&world.read(path)) / BLOCK
    };
    for block in (0..data).step_by(5) {
        let world = World::new(1);
        let path = checkpointed(&world);
        world.simulation.disk(world.host).flip_bit(&path, (block * BLOCK) as u64 + 1000, 2);
        let (store, _) = world.open();
        world.run(async move {
            let mut damaged = 0;
            for index in 0..60 {
                for number in (0..50).step_by(3) {
                    let key = format!("key-{index:05}-{number:030}");
                    match store.get(SHARD, key.as_bytes()).await {
                        Ok(slot) => assert_eq!(slot.unwrap().version, Index(index + 1), "{key}"),
                        Err(ReadError::Corruption(corruption)) => {
                            assert_eq!(corruption.file, path);
                            assert_eq!(corruption.offset, (block * BLOCK) as u64);
                            damaged += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            assert!(damaged > 0, "block {block} is met");
            assert!(store.scan(SHARD, b"", None, usize::MAX).await.is_err());
            assert!(store.get(SHARD, b"key-absent").await.is_ok());
            let found = store.scrub(u64::MAX).await;
            assert!(found.iter().any(|damage| matches!(damage, Damage::State { shard: SHARD, .. })));
        });
    }
}

#[test]
fn a_damaged_meta_file_takes_the_shards_state_with_it() {
    let with_file = |world: &World| {
        let store = World::with_shard(world);
        world.run(async move {
            write_and_apply(&store, 1, &[put("k", "v")]).await;
            let meta = CheckpointMeta {
                applied: Index(1),
                term: Term(1),
                machine: Bytes::from(vec![5; 200_000]),
                ..CheckpointMeta::default()
            };
            store.checkpoint(SHARD, meta).await.unwrap();
        });
        world.simulation.crash(world.host);
        world.files("checkpoint-").remove(0)
    };
    let world = World::new(1);
    let path = with_file(&world);
    let blocks = world.read(&path).len() / BLOCK;
    assert!(blocks > 48);
    for block in (0..blocks).step_by(7).chain([blocks - 1]) {
        let world = World::new(1);
        let path = with_file(&world);
        world.simulation.disk(world.host).flip_bit(&path, (block * BLOCK) as u64 + 40, 2);
        state_damaged(&world, &path, &format!("checkpoint block {block}"));
    }
    world.simulation.disk(world.host).truncate(&path, (blocks as u64 - 1) * BLOCK as u64);
    state_damaged(&world, &path, "a checkpoint without its end");
    let world = World::new(1);
    let path = with_file(&world);
    world.simulation.disk(world.host).remove(&path);
    state_damaged(&world, &path, "a missing checkpoint");
}

#[test]
fn a_damaged_manifest_is_lost_or_falls_back_to_what_was_published() {
    let path = "/data/log0/manifest-1";
    let world = World::new(1);
    checkpointed(&world);
    // Frame 0: empty; frame 1: the shard; later ones: advances and the checkpoint.
    let frames = (0..16).filter(|frame| world.read(path)[frame * BLOCK + 8..][..4] == *b"KMAN").count();
    assert!(frames >= 3);
    for frame in 0..frames - 1 {
        let world = World::new(1);
        checkpointed(&world);
        world.simulation.disk(world.host).flip_bit(path, (frame * BLOCK) as u64 + 20, 1);
        lost_manifest(&world, &format!("manifest frame {frame}"));
    }
    // The last frame may have been torn. The segments and the file that the one before needs are gone or
    // there: either way nothing is lost in silence.
    world.simulation.disk(world.host).flip_bit(path, ((frames - 1) * BLOCK) as u64 + 20, 1);
    match world.try_open() {
        Ok((_, shards)) => assert!(shards[0].last_index == Index(60) || shards[0].suspect.is_some()),
        Err(error) => panic!("{error}"),
    }
}

/// A checkpoint, and entries behind it in a later segment: the first segment holds values, and nothing to replay.
fn behind_the_first_segment(world: &World) -> SimStore {
    let store = World::with_shard(world);
    let writer = store.clone();
    world.run(async move {
        write_and_apply(&writer, 1, &[put("first", vec![1; 3_000])]).await;
        for index in 2..=12 {
            write_and_apply(&writer, index, &[put(&format!("k{index:02}"), vec![1; 20_000])]).await;
        }
        checkpoint(&writer).await;
        write_and_apply(&writer, 13, &[put("last", vec![2; 3_000])]).await;
    });
    store
}

#[test]
fn values_of_a_lost_segment_are_damaged_and_the_others_are_not() {
    for damage in 0..2 {
        let world = World::new(1);
        drop(behind_the_first_segment(&world));
        world.simulation.crash(world.host);
        let disk = world.simulation.disk(world.host);
        match damage {
            0 => disk.remove(SEGMENT),
            _ => disk.overwrite(SEGMENT, 0, &[0; 2 * BLOCK]),
        }
        let (store, shards) = world.open();
        assert_eq!(shards[0].last_index, Index(13));
        world.run(async move {
            let slot = store.get(SHARD, b"first").await.unwrap().unwrap();
            assert!(matches!(store.value(SHARD, b"first", &slot).await, Err(ReadError::Corruption(_))));
            let mut source = store.snapshot_source(SHARD).await.unwrap();
            assert!(matches!(source.next(1 << 20).await, Err(ReadError::Corruption(_))));
            assert!(matches!(source.next(1 << 20).await, Err(ReadError::Closed)), "it does not end here");
            let slot = store.get(SHARD, b"k12").await.unwrap().unwrap();
            assert_eq!(store.value(SHARD, b"k12", &slot).await.unwrap().len(), 20_000);
            // Mended from a peer, it is read again; so it is after a restart.
            let slot = store.get(SHARD, b"first").await.unwrap().unwrap();
            let value = Bytes::from(vec![1; 3_000]);
            assert!(store.repair_value(SHARD, b"first", &slot, value.clone()).await.unwrap());
            assert!(!store.repair_value(SHARD, b"first", &slot, value.clone()).await.unwrap(), "once");
            let mended = store.get(SHARD, b"first").await.unwrap().unwrap();
            assert_eq!(mended.version, slot.version);
            assert_eq!(store.value(SHARD, b"first", &mended).await.unwrap(), value);
        });
    }
}

#[test]
fn a_segment_whose_header_alone_is_damaged_keeps_its_values() {
    let world = World::new(1);
    drop(behind_the_first_segment(&world));
    world.simulation.crash(world.host);
    world.simulation.disk(world.host).flip_bit(SEGMENT, 25, 1);
    let (store, _) = world.open();
    world.run(async move {
        let slot = store.get(SHARD, b"first").await.unwrap().unwrap();
        assert_eq!(store.value(SHARD, b"first", &slot).await.unwrap().len(), 3_000);
    });
}

#[test]
fn a_missing_or_cut_segment_that_replay_needs_costs_what_was_in_it() {
    for (damage, last) in [(0, 0), (1, 5), (2, 5), (3, 2), (4, 2), (5, 2), (6, 0)] {
        let world = World::new(1);
        let offsets = five_entries(&world);
        let disk = world.simulation.disk(world.host);
        match damage {
            0 => disk.remove(SEGMENT),
            // The batches tell which segment it is.
            1 => disk.flip_bit(SEGMENT, 25, 1),
            // Nothing was in what was cut off.
            2 => disk.truncate(SEGMENT, 64 << 10),
            3 => disk.truncate(SEGMENT, offsets[2] as u64),
            4 => disk.truncate(SEGMENT, offsets[2] as u64 + 5_000),
            5 => disk.truncate(SEGMENT, offsets[2] as u64 + 1),
            _ => disk.truncate(SEGMENT, 0),
        }
        let shard = if last == 5 {
            let (store, mut shards) = world.open();
            drop(store);
            world.simulation.crash(world.host);
            shards.remove(0)
        } else {
            suspect(&world, &format!("segment damage {damage}"))
        };
        assert_eq!((shard.last_index, shard.suspect.is_none()), (Index(last), last == 5), "damage {damage}");
    }
}

#[test]
fn a_missing_manifest_is_lost() {
    let world = World::new(1);
    checkpointed(&world);
    world.simulation.disk(world.host).remove("/data/log0/manifest-1");
    lost_manifest(&world, "no manifest");
    let world = World::new(1);
    checkpointed(&world);
    world.simulation.disk(world.host).truncate("/data/log0/manifest-1", 2 * BLOCK as u64);
    lost_manifest(&world, "a manifest without its end");
}

#[test]
fn another_logs_directory_is_refused() {
    let world = World::new(1);
    five_entries(&world);
    let other = Options { log: LogId(7), ..options() };
    assert!(matches!(open_with(&world, other), Err(OpenError::Mismatch { .. })));
}
