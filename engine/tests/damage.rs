//! Every kind of damage at every kind of place of a log, at random: whatever is struck, no wrong value is ever
//! returned, sound shards are exactly right, suspects say so, values are mended, and a crash while a damaged log is
//! opened changes nothing.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::*;
use krita_engine::{
    CheckpointMeta, Damage, EntryRecord, HardState, Index, OpenError, ReadError, RecoveredShard, ReplicaId,
    ShardId, Term, open,
};
use krita_runtime::sim::{Damage as Blow, Damaged, Random};

const SHARDS: u32 = 4;

/// What a shard was told, all of it acknowledged.
#[derive(Clone, Default)]
struct Model {
    entries: Vec<EntryRecord>,
    hard_state: HardState,
}

impl Model {
    fn last(&self) -> Index {
        Index(self.entries.len() as u64)
    }

    fn state(&self) -> State {
        let mut state = State::new();
        for entry in &self.entries {
            changes(entry.index, &entry.payload, &mut state, false);
        }
        state
    }
}

fn operations(random: &Random) -> Vec<Operation> {
    let key = || Bytes::from(format!("key{:03}", random.below(60)));
    let count = random.between(1, 4);
    let operation = |_| match random.below(8) {
        0 => Operation::Delete(key()),
        1 => Operation::Put(key(), vec![random.next() as u8; random.between(17_000, 40_000) as usize].into()),
        _ => Operation::Put(key(), vec![random.next() as u8; random.between(1, 2_500) as usize].into()),
    };
    (0..count).map(operation).collect()
}

/// A log with shards in all stages, after a crash: values in old segments, runs, meta files, entries behind.
fn build(world: &World, random: &Random) -> Vec<Model> {
    let (store, shards) = world.open();
    assert!(shards.is_empty());
    let mut models = vec![Model::default(); SHARDS as usize];
    let rounds = random.between(20, 90);
    let shards = (0..SHARDS).map(|id| (ShardId(id + 1), ReplicaId(u64::from(id) + 11)));
    let shards: Vec<(ShardId, ReplicaId)> = shards.collect();
    let created = (store.clone(), shards.clone());
    world.run(async move {
        for (shard, replica) in created.1 {
            created.0.create_shard(shard, replica, CheckpointMeta::default()).await.unwrap();
        }
    });
    for round in 0..rounds {
        let mut batch = store.batch();
        let mut applied = Vec::new();
        for (position, (shard, _)) in shards.iter().enumerate() {
            // Some shards fall silent early.
            if random.below(3) == 0 || (position == 3 && round > rounds / 3) {
                continue;
            }
            let model = &mut models[position];
            let term = Term(1 + round / 40);
            let record = EntryRecord { term, ..entry(model.last().0 + 1, 1, &operations(random)) };
            batch.entry(*shard, record.clone());
            if random.below(3) == 0 {
                let vote = random.chance(0.5).then(|| random.below(5));
                model.hard_state = HardState { term, vote, commit: Index(0) };
                batch.hard_state(*shard, model.hard_state);
            }
            model.entries.push(record.clone());
            applied.push((*shard, record));
        }
        let checkpointed = (random.below(9) == 0).then(|| random.below(u64::from(SHARDS)) as usize);
        let (writer, machine_bytes) = (store.clone(), if random.chance(0.3) { 40_000 } else { 10 });
        let ids: Vec<ShardId> = shards.iter().map(|(shard, _)| *shard).collect();
        world.run(async move {
            writer.write(batch).await.unwrap();
            for (shard, record) in applied {
                let changes = changes(record.index, &record.payload, &mut State::new(), false);
                writer.apply(shard, record.index, changes);
            }
            if let Some(position) = checkpointed {
                take_checkpoint(&writer, ids[position], machine_bytes).await;
            }
        });
    }
    // The log falls idle, and says so.
    world.simulation.run_for(Duration::from_millis(700));
    drop(store);
    world.simulation.crash(world.host);
    models
}

async fn take_checkpoint(store: &SimStore, shard: ShardId, machine_bytes: usize) {
    let applied = store.applied(shard).unwrap();
    let term = store.term_at(shard, applied).unwrap_or_default();
    let machine = Bytes::from(vec![9; machine_bytes]);
    let configuration = Bytes::from_static(b"members");
    let meta = CheckpointMeta { applied, term, configuration, machine, generation: 0 };
    store.checkpoint(shard, meta).await.unwrap();
}

/// What of a recovered shard must not depend on how often it was tried.
fn outcome(shards: &[RecoveredShard]) -> Vec<RecoveredShard> {
    let without_words = |shard: &RecoveredShard| RecoveredShard {
        suspect: shard.suspect.as_ref().map(|_| String::new()),
        ..shard.clone()
    };
    shards.iter().map(without_words).collect()
}

fn check_shard(found: &RecoveredShard, model: &Model, blows: &[Damaged]) {
    let why = format!("{} {blows:?}", found.shard);
    assert!(found.last_index <= model.last(), "{why}");
    for (index, term) in &found.terms {
        assert_eq!(model.entries[index.0 as usize - 1].term, *term, "{why}");
    }
    if found.suspect.is_none() {
        assert_eq!(found.last_index, model.last(), "{why}: a sound shard has everything");
        let hard = (found.hard_state.term, found.hard_state.vote);
        assert_eq!(hard, (model.hard_state.term, model.hard_state.vote), "{why}");
    }
    assert!(!found.state_damaged || found.suspect.is_some(), "{why}");
}

/// Applies what is behind the checkpoint and holds all that is read against the model; values that fail are mended.
async fn check_content(store: SimStore, found: RecoveredShard, model: Model, mended: bool) {
    let shard = found.shard;
    let mut model = model;
    model.entries.truncate(found.last_index.0 as usize);
    let from = store.applied(shard).unwrap().next();
    if from <= found.last_index && !mended {
        for entry in store.read_entries(shard, from, found.last_index, usize::MAX).await.unwrap() {
            assert_eq!(entry.payload, model.entries[entry.index.0 as usize - 1].payload);
            store.apply(shard, entry.index, changes(entry.index, &entry.payload, &mut State::new(), false));
        }
    }
    let state = model.state();
    for number in 0..60 {
        let key = Bytes::from(format!("key{number:03}"));
        let slot = match store.get(shard, &key).await {
            Ok(slot) => slot,
            Err(ReadError::Corruption(_)) => continue,
            Err(error) => panic!("{error}"),
        };
        let expected = state.get(&key);
        assert_eq!(
            slot.as_ref().map(|slot| slot.version),
            expected.map(|(version, _)| *version),
            "{shard} {key:?}"
        );
        let (Some(slot), Some((_, expected))) = (slot, expected) else { continue };
        match store.value(shard, &key, &slot).await {
            Ok(value) => assert_eq!(value, expected),
            Err(ReadError::Corruption(_)) => assert!(!mended, "{shard} {key:?}"),
            Err(error) => panic!("{shard} {key:?}: {error}"),
        }
    }
    match store.scan(shard, b"", None, usize::MAX).await {
        Ok(items) => assert!(
            items
                .into_iter()
                .map(|(key, slot)| (key, slot.version))
                .eq(state.iter().map(|(key, (version, _))| (key.clone(), *version)))
        ),
        Err(ReadError::Corruption(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Mends what a scrub finds, until it finds nothing that can be mended without another replica's state.
async fn mend(store: SimStore, models: Vec<Model>) {
    for round in 0.. {
        let damages = store.scrub(u64::MAX).await;
        let mut mended = 0;
        for damage in damages {
            match damage {
                Damage::Value { shard, key, slot, .. } => {
                    let state = models[shard.0 as usize - 1].entries[slot.version.0 as usize - 1].clone();
                    let mut at_version = State::new();
                    changes(state.index, &state.payload, &mut at_version, false);
                    let value = at_version[&key].1.clone();
                    assert!(store.repair_value(shard, &key, &slot, value.clone()).await.unwrap());
                    let slot = store.get(shard, &key).await.unwrap().unwrap();
                    assert_eq!(store.value(shard, &key, &slot).await.unwrap(), value);
                    mended += 1;
                }
                Damage::Log { shard, .. } => {
                    take_checkpoint(&store, shard, 10).await;
                    mended += 1;
                }
                Damage::State { .. } => {}
            }
        }
        if mended == 0 {
            return;
        }
        assert!(round < 20, "there is an end to it");
    }
}

fn strike(world: &World, random: &Random, count: u64) -> Vec<Damaged> {
    let disk = world.simulation.disk(world.host);
    let blow = |_| disk.damage_at_random(Blow::ALL[random.below(Blow::ALL.len() as u64) as usize]);
    (0..count).filter_map(blow).collect()
}

/// A world with a damaged log: the same for the same seed.
fn struck(seed: u64) -> (World, Random, Vec<Model>, Vec<Damaged>) {
    let (world, random) = (World::new(seed), Random::new(seed));
    let models = build(&world, &random);
    let count = 1 + u64::from(seed % 4 == 3);
    let blows = strike(&world, &random, count);
    (world, random, models, blows)
}

/// Starts to open the log and cuts the power, at some moments.
fn interrupted(world: &World, random: &Random) {
    for _ in 0..random.between(1, 3) {
        world.simulation.spawn_on(world.host, |runtime| async move {
            drop(open(runtime, options()).await);
        });
        world.simulation.run_for(Duration::from_micros(random.below(12_000)));
        world.simulation.crash(world.host);
    }
}

#[derive(Default, Debug)]
struct Counts {
    lost: u64,
    sound: u64,
    suspects: u64,
    states: u64,
}

#[test]
fn damage_costs_what_it_hits_and_nothing_else() {
    let mut counts = Counts::default();
    for_seeds("damage", 120, |seed| {
        let (world, _, models, blows) = struck(seed);
        let manifest_hit = blows.iter().any(|blow| blow.path.to_string_lossy().contains("manifest-"));
        let opened = world.try_open();
        let (store, shards) = match opened {
            Ok(opened) => opened,
            Err(OpenError::ManifestLost(_)) if manifest_hit => {
                counts.lost += 1;
                return;
            }
            Err(error) => panic!("{blows:?}: {error}"),
        };
        assert_eq!(shards.len(), models.len(), "{blows:?}");
        for (found, model) in shards.iter().zip(&models) {
            check_shard(found, model, &blows);
            counts.suspects += u64::from(found.suspect.is_some());
            counts.states += u64::from(found.state_damaged);
            counts.sound += u64::from(found.suspect.is_none());
        }
        let (checked, all, known) = (store.clone(), shards.clone(), models.clone());
        world.run(async move {
            for (found, model) in all.into_iter().zip(known) {
                check_content(checked.clone(), found, model, false).await;
            }
        });
        let (mending, known) = (store.clone(), models.clone());
        world.run(async move { mend(mending, known).await });
        let (checked, all, known) = (store.clone(), shards.clone(), models.clone());
        world.run(async move {
            for (found, model) in all.into_iter().zip(known) {
                check_content(checked.clone(), found, model, true).await;
            }
        });
        // It can be written on, and what was sound stays so.
        drop(store);
        world.simulation.crash(world.host);
        let (_, again) = world.open();
        for (one, other) in shards.iter().zip(&again) {
            assert_eq!(one.last_index, other.last_index, "{blows:?}");
            assert_eq!(one.suspect.is_some(), other.suspect.is_some(), "{blows:?}");
            assert_eq!(one.hard_state.vote, other.hard_state.vote, "{blows:?}");
        }
    });
    println!("{counts:?}");
}

#[test]
fn a_crash_while_a_damaged_log_is_opened_changes_nothing() {
    for_seeds("damage", 60, |seed| {
        let seed = seed + 1_000;
        let (world, _, _, blows) = struck(seed);
        let straight = world.try_open().map(|(_, shards)| outcome(&shards));
        let (world, random, _, same) = struck(seed);
        assert_eq!(blows, same, "the same world");
        interrupted(&world, &random);
        match (straight, world.try_open()) {
            (Ok(one), Ok((_, other))) => assert_eq!(one, outcome(&other), "{blows:?}"),
            (Err(OpenError::ManifestLost(_)), Err(OpenError::ManifestLost(_))) => {}
            (one, other) => panic!("{blows:?}: {one:?} and {:?}", other.map(|(_, shards)| shards)),
        }
    });
}

#[test]
fn what_scrubbing_mends_under_a_running_log_is_whole_after_a_restart() {
    let kinds = [Blow::FlippedBit, Blow::ZeroedBlock, Blow::MisplacedBlock];
    let (mut states, mut whole) = (0, 0);
    for_seeds("damage", 80, |seed| {
        let (world, random) = (World::new(seed), Random::new(seed));
        let models = build(&world, &random);
        let (store, shards) = world.open();
        let (replaying, known) = (store.clone(), shards.clone());
        world.run(async move {
            for shard in known {
                let from = replaying.applied(shard.shard).unwrap().next();
                if from <= shard.last_index {
                    let entries =
                        replaying.read_entries(shard.shard, from, shard.last_index, usize::MAX).await;
                    for entry in entries.unwrap() {
                        let changes = changes(entry.index, &entry.payload, &mut State::new(), false);
                        replaying.apply(shard.shard, entry.index, changes);
                    }
                }
            }
        });
        let disk = world.simulation.disk(world.host);
        let blows: Vec<Damaged> = (0..random.between(1, 4))
            .filter_map(|_| disk.damage_at_random(kinds[random.below(3) as usize]))
            .collect();
        let (mending, known) = (store.clone(), models.clone());
        world.run(async move {
            mend(mending.clone(), known).await;
            // Mended values last from the next checkpoint on.
            for shard in mending.shards() {
                take_checkpoint(&mending, shard, 10).await;
            }
        });
        let damaged: Vec<ShardId> = world
            .run({
                let store = store.clone();
                async move { store.scrub(u64::MAX).await }
            })
            .into_iter()
            .map(|damage| match damage {
                Damage::State { shard, .. } => shard,
                other => panic!("{blows:?}: {other:?} is left"),
            })
            .collect();
        states += damaged.len();
        drop(store);
        world.simulation.crash(world.host);
        let (store, again) = world.open();
        assert_eq!(again.len(), models.len(), "{blows:?}");
        for (found, model) in again.iter().zip(&models) {
            if damaged.contains(&found.shard) {
                continue;
            }
            assert_eq!(found.suspect, None, "{blows:?}");
            check_shard(found, model, &blows);
            whole += 1;
            let (store, found, model) = (store.clone(), found.clone(), model.clone());
            world.run(async move {
                check_content(store.clone(), found.clone(), model.clone(), false).await;
                // Everything is read, nothing fails.
                check_content(store, found, model, true).await;
            });
        }
    });
    println!("{whole} whole, {states} states");
}
