//! The inspector over images of small logs: what it says of sound ones, and that damage anywhere is found.
//!
//! The images are made by the store in the simulator from fixed seeds, so that every figure here follows from the code.

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use common::{
    Operation, REPLICA, SHARD, SimStore, State, World, checkpoint, entry, put, write_and_apply,
    write_hard_state,
};
use krita_engine::inspect::{
    LogContext, LogReport, SegmentItem, SegmentState, Severity, inspect_log, inspect_manifest,
    inspect_segment,
};
use krita_engine::{CheckpointMeta, HardState, Index, Options, ReplicaId, ShardId, Term, open};
use proptest::prelude::*;

type Image = BTreeMap<String, Vec<u8>>;

/// The smallest segments that there can be.
fn small() -> Options {
    Options { segment_bytes: 64 << 10, batch_bytes_max: 36 << 10, ..common::options() }
}

fn image(world: &World) -> Image {
    let disk = world.simulation.disk(world.host);
    let files = disk.files().into_iter().filter(|path| path.starts_with(common::DIRECTORY));
    let named = files.filter_map(|path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some((name, disk.read(&path)?))
    });
    named.collect()
}

/// A log with two shards, several lives and a checkpoint, at rest behind a seal.
fn sample(seed: u64) -> Image {
    let world = World::new(seed);
    let (store, _) = world.simulation.block_on(world.host, |runtime| open(runtime, small())).unwrap();
    let writer = store.clone();
    world.run(async move { write_sample(&writer).await });
    // Long enough for the seal and for what is tidied up in the background.
    world.simulation.run_for(Duration::from_secs(1));
    image(&world)
}

async fn write_sample(store: &SimStore) {
    store.create_shard(SHARD, REPLICA, CheckpointMeta::default()).await.unwrap();
    store.create_shard(ShardId(2), ReplicaId(21), CheckpointMeta::default()).await.unwrap();
    write_hard_state(store, ShardId(2), HardState { term: Term(3), vote: Some(9), commit: Index(0) }).await;
    for index in 1..=12 {
        let value = Bytes::from(vec![index as u8; 9_000]);
        write_and_apply(store, index, &[put(&format!("key-{index}"), value)]).await;
        if index == 6 {
            checkpoint(store).await;
        }
    }
    write_and_apply(store, 13, &[put("in pieces", vec![7; 40_000])]).await;
    let mut batch = store.batch();
    batch.entry(ShardId(2), entry(1, 3, &[put("other", "shard")]));
    batch.entry(ShardId(2), entry(2, 3, &[put("taken", "back")]));
    store.write(batch).await.unwrap();
    let mut batch = store.batch();
    batch.truncate_after(ShardId(2), Index(1));
    store.write(batch).await.unwrap();
}

fn inspect(image: &Image) -> LogReport {
    inspect_log(image, None, &mut |_| Ok(())).expect("memory can be read")
}

#[test]
fn a_sound_log_is_told_from_end_to_end() {
    let image = sample(7);
    let (mut batches, mut records) = (0, 0);
    let mut next = None;
    let report = inspect_log(&image, None, &mut |item| {
        match item {
            SegmentItem::Batch(batch) => {
                assert!(next.is_none_or(|next| next == batch.sequence), "batches come in the log's order");
                next = Some(batch.sequence + 1);
                batches += 1;
            }
            SegmentItem::Record(..) => records += 1,
        }
        Ok(())
    })
    .unwrap();
    assert!(!report.findings.damaged(), "{:?}", report.findings);
    let chain = report.chain.unwrap();
    assert!(chain.newest.0 >= 3 && chain.sealed);
    assert_eq!(batches, chain.last_sequence - chain.first_sequence + 1);
    let one = report.shards[&SHARD];
    assert_eq!((one.entries, one.truncations, one.hard_states), (13, 0, 0));
    assert!(one.pieces >= 3);
    let two = report.shards[&ShardId(2)];
    assert_eq!((two.entries, two.truncations, two.hard_states, two.pieces), (2, 1, 1, 0));
    let moved = one.relocated + two.relocated;
    let counted = one.entries + one.pieces - 1 + two.entries + two.truncations + two.hard_states + moved;
    assert_eq!(records, counted);
    let manifest = report.manifest.unwrap();
    let shard = manifest.shards.iter().find(|shard| shard.shard == SHARD).unwrap();
    assert_eq!((shard.applied, shard.replica), (Index(6), REPLICA));
}

/// Bytes of a file, and what must come of damage there.
struct Stretch {
    file: String,
    bytes: Range<u64>,
    expected: Expected,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Expected {
    /// It was durable, and is known to have been.
    Damage,
    /// Nothing can prove that it was durable, or nothing needs it.
    Notice,
    /// Nothing was written there, or what was is dead.
    Nothing,
}

/// Every byte of the image.
fn stretches(image: &Image) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    let report = inspect(image);
    let manifest = report.manifest.as_ref().unwrap();
    let needed = manifest.shards.iter().map(|shard| shard.replay_segment).min().unwrap();
    let newest = report.chain.unwrap().newest;
    for segment in &report.segments {
        let mut add = |from: u64, to: u64, expected| {
            stretches.push(Stretch { file: segment.file.clone(), bytes: from..to, expected });
        };
        let is_named = report.runs.iter().any(|run| run.segments.contains_key(&segment.segment));
        let is_needed = segment.state == SegmentState::Used && (segment.segment >= needed || is_named);
        add(0, 48, if is_needed { Expected::Damage } else { Expected::Notice });
        add(
            48,
            4096,
            if segment.state == SegmentState::Used || segment.state == SegmentState::Spare {
                Expected::Notice
            } else {
                Expected::Nothing
            },
        );
        let bytes = &image[&segment.file];
        inspect_segment(bytes, &segment.file, report.context.unwrap(), &mut |item| {
            if let SegmentItem::Batch(batch) = item {
                let end = batch.offset + batch.length;
                let is_last = batch.segment == newest && u64::from(end + batch.padding) == segment.end;
                let expected = if is_last { Expected::Notice } else { Expected::Damage };
                add(batch.offset.into(), end.into(), expected);
                add(end.into(), (end + batch.padding).into(), Expected::Notice);
            }
            Ok(())
        })
        .unwrap();
        add(segment.end.max(4096), segment.length, Expected::Nothing);
    }
    let runs = report.runs.iter().map(|run| (&run.file, run.length));
    let checkpoints = report.checkpoints.iter().map(|checkpoint| (&checkpoint.file, checkpoint.length));
    for (file, length) in runs.chain(checkpoints) {
        stretches.push(Stretch { file: file.clone(), bytes: 0..length, expected: Expected::Damage });
    }
    let bytes = &image[&manifest.file];
    inspect_manifest(bytes, &manifest.file, &mut |frame| {
        let (file, end) = (manifest.file.clone(), frame.offset + frame.length);
        let is_last = frame.sequence + 1 == manifest.next_sequence && frame.offset > 0;
        let expected = if is_last { Expected::Notice } else { Expected::Damage };
        stretches.push(Stretch { file: file.clone(), bytes: frame.offset..end, expected });
        let whole = end.next_multiple_of(4096);
        stretches.push(Stretch { file, bytes: end..whole, expected: Expected::Notice });
        Ok(())
    })
    .unwrap();
    // A manifest is never used again: where its next frame would begin nothing but zeros stands.
    let next = manifest.end + 64;
    for (bytes, expected) in
        [(manifest.end..next, Expected::Notice), (next..manifest.length, Expected::Nothing)]
    {
        stretches.push(Stretch { file: manifest.file.clone(), bytes, expected });
    }
    stretches
}

#[test]
fn damage_at_every_byte_is_found_or_in_what_nothing_reads() {
    let mut image = sample(7);
    let sound = inspect(&image);
    let stretches = stretches(&image);
    let covered: u64 = stretches.iter().map(|it| it.bytes.end - it.bytes.start).sum();
    let total: usize = image.values().map(Vec::len).sum();
    assert_eq!(covered, total as u64, "every byte has its expectation");
    for Stretch { file, bytes, expected } in stretches {
        // All of what is short; of long payloads and empty bodies enough to meet each kind of place.
        let step = if bytes.end - bytes.start <= 512 { 1 } else { 61 };
        let head = bytes.start..(bytes.start + 160).min(bytes.end);
        for offset in head.chain(bytes.clone().step_by(step)) {
            let at = offset as usize;
            let bit = 1 << (offset % 8);
            image.get_mut(&file).unwrap()[at] ^= bit;
            let report = inspect(&image);
            image.get_mut(&file).unwrap()[at] ^= bit;
            let damages = report.findings.count(Severity::Damage);
            let what = format!("{file} byte {offset}: {expected:?}, found {:?}", report.findings);
            match expected {
                Expected::Damage => assert!(damages > 0, "{what}"),
                Expected::Notice => assert!(damages == 0 && report.findings != sound.findings, "{what}"),
                Expected::Nothing => assert_eq!(report.findings, sound.findings, "{what}"),
            }
        }
    }
}

#[test]
fn damage_names_the_file_the_byte_and_the_batches() {
    let mut image = sample(3);
    let report = inspect(&image);
    let segment = report.segments[1].clone();
    let mut places = Vec::new();
    inspect_segment(&image[&segment.file], &segment.file, report.context.unwrap(), &mut |item| {
        match item {
            SegmentItem::Batch(batch) => places.push((batch.sequence, u64::from(batch.offset), 0)),
            SegmentItem::Record(record, _) => places.last_mut().unwrap().2 = u64::from(record.offset),
        }
        Ok(())
    })
    .unwrap();
    let (sequence, _, record) = places[0];
    image.get_mut(&segment.file).unwrap()[record as usize + 70] ^= 1;
    let report = inspect(&image);
    let found = report.findings.iter().find(|it| it.severity == Severity::Damage).unwrap();
    assert_eq!((found.file.as_str(), found.offset), (segment.file.as_str(), record));
    assert_eq!(found.sequences, Some((sequence, sequence)));
    assert_eq!(
        report.findings.count(Severity::Damage),
        1,
        "the walk goes on behind it: {:?}",
        report.findings
    );
    let after = report.segments.iter().find(|it| it.segment == segment.segment).unwrap();
    assert_eq!(after.batches + 1, segment.batches);
}

#[test]
fn missing_and_shortened_files_are_found() {
    let sound = sample(5);
    for (name, bytes) in &sound {
        let mut image = sound.clone();
        image.remove(name);
        let report = inspect(&image);
        let is_spare =
            inspect(&sound).segments.iter().any(|it| it.file == *name && it.state == SegmentState::Spare);
        assert_eq!(report.findings.damaged(), !is_spare, "without {name}: {:?}", report.findings);
        for length in (0..bytes.len()).step_by(4096) {
            image.insert(name.clone(), bytes[..length].to_vec());
            let report = inspect(&image);
            // An empty or blank segment is one that was being made: if its life is needed, that is missing. A manifest
            // may be short of its empty end.
            let is_manifest = name.starts_with("manifest-");
            let may_pass = is_manifest || is_spare;
            assert!(report.findings.damaged() || may_pass, "{name} cut to {length}: {:?}", report.findings);
        }
    }
}

#[test]
fn a_log_without_manifest_is_read_with_its_nonce() {
    let mut image = sample(5);
    let sound = inspect(&image);
    image.retain(|name, _| !name.starts_with("manifest-"));
    let blind = inspect(&image);
    assert!(blind.findings.damaged() && blind.segments.is_empty());
    let nonce = sound.context.unwrap().nonce;
    let report = inspect_log(&image, Some(nonce), &mut |_| Ok(())).unwrap();
    assert_eq!(report.segments, sound.segments);
    let other = inspect_log(&image, Some(nonce ^ 1), &mut |_| Ok(())).unwrap();
    assert!(other.segments.iter().all(|it| it.state == SegmentState::Invalid));
}

#[test]
fn another_format_version_is_named() {
    let image = sample(5);
    let context = inspect(&image).context.unwrap();
    let mut segment = image["segment-1"].clone();
    segment[16] = 77;
    let report = inspect_segment(&segment, "segment-1", context, &mut |_| Ok(())).unwrap();
    assert!(report.findings.iter().any(|it| it.what.contains("format version 77")), "{:?}", report.findings);
    let name = image.keys().find(|name| name.starts_with("manifest-")).unwrap();
    let mut manifest = image[name].clone();
    manifest[12] = 77;
    let report = inspect_manifest(&manifest, name, &mut |_| Ok(())).unwrap();
    assert!(!report.is_valid);
}

#[test]
fn a_log_that_was_compacted_and_killed_is_sound() {
    let mut recycled = 0;
    for seed in 0..12 {
        let world = World::new(seed);
        let options = || Options { compaction_factor: 1.0, ..common::options() };
        for kill in 0..4 {
            let (store, shards) =
                world.simulation.block_on(world.host, move |runtime| open(runtime, options())).unwrap();
            let is_new = shards.is_empty();
            let last = shards.first().map_or(0, |shard| shard.last_index.0);
            let writer = store.clone();
            recycled += world.run(async move {
                if is_new {
                    writer.create_shard(SHARD, REPLICA, CheckpointMeta::default()).await.unwrap();
                } else {
                    let from = writer.applied(SHARD).unwrap().next();
                    if from.0 <= last {
                        for entry in writer.read_entries(SHARD, from, Index(last), usize::MAX).await.unwrap()
                        {
                            let done = common::changes(entry.index, &entry.payload, &mut State::new(), false);
                            writer.apply(SHARD, entry.index, done);
                        }
                    }
                }
                for step in 0..250 {
                    let number = last + step + 1;
                    // Most writes hit few keys; some keys stay as they are for long.
                    let key =
                        format!("key-{}", if number.is_multiple_of(9) { number % 400 } else { number % 7 });
                    let operation = match number % 13 {
                        0 => Operation::Delete(key.into()),
                        length => put(&key, vec![number as u8; 300 * length as usize]),
                    };
                    write_and_apply(&writer, number, &[operation]).await;
                    if number.is_multiple_of(30 + seed) {
                        checkpoint(&writer).await;
                    }
                }
                writer.statistics().segments_recycled
            });
            drop(store);
            world.simulation.run_for(Duration::from_millis(kill * 7));
            world.simulation.crash(world.host);
            let report = inspect(&image(&world));
            assert!(!report.findings.damaged(), "seed {seed}, kill {kill}: {:?}", report.findings);
        }
    }
    assert!(recycled > 20, "{recycled} segments were used again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bytes are: no panic, and bounded work.
    #[test]
    fn any_bytes_are_looked_at(
        bytes in proptest::collection::vec(any::<u8>(), 0..20_000),
        nonce in any::<u64>(),
        name in prop_oneof![Just("segment-1"), Just("manifest-1"), Just("segment-"), Just("x"), Just("checkpoint-1-1")],
    ) {
        inspect_segment(&bytes, name, LogContext::with_nonce(nonce), &mut |_| Ok(())).unwrap();
        inspect_manifest(&bytes, name, &mut |_| Ok(())).unwrap();
        let image = Image::from([(name.to_owned(), bytes)]);
        inspect_log(&image, Some(nonce), &mut |_| Ok(())).unwrap();
    }

    /// Damage of many kinds at once in a real log.
    #[test]
    fn any_damage_is_looked_at(
        seed in 0_u64..4,
        wounds in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u64>()),
            1..12,
        ),
    ) {
        let mut image = sample(seed);
        let names: Vec<String> = image.keys().cloned().collect();
        for (file, place, word) in wounds {
            let bytes = image.get_mut(file.get(&names)).unwrap();
            let place = place.index(bytes.len() / 8) * 8;
            bytes[place..place + 8].copy_from_slice(&word.to_le_bytes());
        }
        inspect(&image);
    }
}
