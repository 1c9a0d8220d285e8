//! A store under random work, cut off at random moments, against a model that knows what was acknowledged.
//!
//! Each shard is driven by a task of its own. Whatever a shard was doing when the power went is in its model
//! as `doubt`: after the restart the store must hold the acknowledged state with some prefix of it, whole.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use krita_engine::{
    CheckpointMeta, EntryRecord, HardState, Index, LogError, RecoveredShard, ReplicaId, ShardId,
    SnapshotItem, Term, VersionNow, value_checksum,
};
use krita_runtime::sim::Random;

const SHARDS: u32 = 4;
/// Enough that an index is several runs, of which small ones are merged without the largest.
const KEYS: u64 = 500;
/// Keys that change often.
const KEYS_HOT: u64 = 24;

/// One shard, as far as it was acknowledged.
#[derive(Clone, Default)]
struct Known {
    replica: u64,
    hard: HardState,
    /// Entries behind `base`.
    base: u64,
    entries: Vec<EntryRecord>,
    applied: u64,
    /// The keys as of `applied`.
    state: State,
    checkpoint: CheckpointMeta,
    /// The keys as of the checkpoint.
    checkpoint_state: State,
}

#[derive(Clone)]
enum Step {
    Hard(HardState),
    Truncate(u64),
    Entry(EntryRecord),
}

/// What was under way.
#[derive(Clone)]
enum Doubt {
    Nothing,
    Steps(Vec<Step>),
    /// Checkpoint with the writes that went on meanwhile.
    Checkpoint(CheckpointMeta, State, Vec<Step>),
    /// A whole other state, or none.
    Replace(Option<Box<Known>>),
}

struct ShardModel {
    id: ShardId,
    known: Option<Known>,
    doubt: Doubt,
}

#[derive(Default, Debug)]
struct Counts {
    crashes: u64,
    entries: u64,
    truncations: u64,
    checkpoints: u64,
    installs: u64,
    removals: u64,
    replayed: u64,
    lost_tails: u64,
    recycled: u64,
    compacted: u64,
    moved: u64,
    large: u64,
    torn: u64,
    merges: u64,
    runs_max: u64,
    resumed: u64,
    unknown_versions: u64,
}

impl Known {
    fn last(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Hard(hard) => self.hard = *hard,
            Step::Truncate(index) => self.entries.truncate((index - self.base) as usize),
            Step::Entry(entry) => {
                self.entries.truncate((entry.index.0 - 1 - self.base) as usize);
                self.entries.push(entry.clone());
            }
        }
    }

    fn term_at(&self, index: u64) -> Term {
        match index.checked_sub(self.base + 1) {
            Some(position) => self.entries[position as usize].term,
            None => self.checkpoint.term,
        }
    }
}

fn value(random: &Random) -> Bytes {
    let length = match random.below(20) {
        0 => 0,
        1 => random.between(10_000, 50_000),
        2..=8 => random.between(1, 100),
        _ => random.between(100, 3_000),
    };
    vec![random.next() as u8; length as usize].into()
}

fn key(random: &Random) -> Bytes {
    let keys = if random.chance(0.5) { KEYS_HOT } else { KEYS };
    Bytes::from(format!("key{:03}", random.below(keys)))
}

fn new_entry(random: &Random, index: u64, term: u64) -> EntryRecord {
    // Now and then many keys at once, with small values.
    let many = random.chance(0.1);
    let operations: Vec<Operation> = (0..if many { 80 } else { random.below(4) })
        .map(|_| match random.below(5) {
            0 => Operation::Delete(key(random)),
            _ if many => Operation::Put(key(random), vec![random.next() as u8; 10].into()),
            _ => Operation::Put(key(random), value(random)),
        })
        .collect();
    EntryRecord { kind: random.below(3) as u8, ..entry(index, term, &operations) }
}

/// A random batch for a shard: as steps for the model.
fn random_steps(random: &Random, known: &Known, counts: &mut Counts) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut after = known.clone();
    let mut term = known.hard.term.0;
    if random.chance(0.3) {
        term += random.below(2);
        let vote = random.chance(0.5).then(|| random.below(5));
        let hard = HardState { term: Term(term), vote, commit: Index(after.applied) };
        steps.push(Step::Hard(hard));
        after.step(&steps[0]);
    }
    for _ in 0..random.below(6) {
        let step = match random.below(12) {
            0 if after.last() > after.applied => {
                counts.truncations += 1;
                Step::Truncate(random.between(after.applied, after.last() - 1))
            }
            1 if after.last() > after.applied => {
                counts.truncations += 1;
                Step::Entry(new_entry(random, random.between(after.applied + 1, after.last()), term))
            }
            _ => Step::Entry(new_entry(random, after.last() + 1, term)),
        };
        if let Step::Entry(entry) = &step {
            counts.entries += 1;
            counts.large += u64::from(entry.payload.len() > 16 << 10);
        }
        after.step(&step);
        steps.push(step);
    }
    steps
}

fn to_batch(store: &SimStore, shard: ShardId, steps: &[Step]) -> krita_engine::Batch {
    let mut batch = store.batch();
    for step in steps {
        match step {
            Step::Hard(hard) => batch.hard_state(shard, *hard),
            Step::Truncate(index) => batch.truncate_after(shard, Index(*index)),
            Step::Entry(entry) => batch.entry(shard, entry.clone()),
        }
    }
    batch
}

struct Driver {
    store: SimStore,
    random: Random,
    model: Rc<RefCell<ShardModel>>,
    counts: Rc<RefCell<Counts>>,
}

impl Driver {
    fn known(&self) -> Option<Known> {
        self.model.borrow().known.clone()
    }

    fn doubt(&self, doubt: Doubt) {
        self.model.borrow_mut().doubt = doubt;
    }

    /// What was under way is done.
    fn settle(&self, change: impl FnOnce(&mut Option<Known>)) {
        let mut model = self.model.borrow_mut();
        change(&mut model.known);
        model.doubt = Doubt::Nothing;
    }

    async fn run(self) {
        let id = self.model.borrow().id;
        loop {
            let Some(known) = self.known() else {
                self.create(id).await;
                continue;
            };
            match self.random.below(40) {
                0 => self.install(id, &known).await,
                1 if self.random.chance(0.2) => self.remove(id).await,
                2..=6 => self.checkpoint(id, &known).await,
                7..=11 => self.read(id, &known).await,
                12..=19 => self.apply(id),
                20 => self.snapshot(id, &known).await,
                _ => self.write(id, &known).await,
            }
        }
    }

    async fn create(&self, id: ShardId) {
        let fresh = Known {
            replica: self.random.below(1 << 30),
            checkpoint: CheckpointMeta {
                configuration: Bytes::from(vec![7; self.random.below(40) as usize * 1000]),
                ..CheckpointMeta::default()
            },
            ..Known::default()
        };
        self.doubt(Doubt::Replace(Some(Box::new(fresh.clone()))));
        let created = self.store.create_shard(id, ReplicaId(fresh.replica), fresh.checkpoint.clone());
        created.await.unwrap();
        self.settle(|known| *known = Some(fresh));
    }

    async fn remove(&self, id: ShardId) {
        self.doubt(Doubt::Replace(None));
        self.store.remove_shard(id).await.unwrap();
        self.settle(|known| *known = None);
        self.counts.borrow_mut().removals += 1;
    }

    async fn write(&self, id: ShardId, known: &Known) {
        let first = random_steps(&self.random, known, &mut self.counts.borrow_mut());
        let mut after = known.clone();
        first.iter().for_each(|step| after.step(step));
        let second = match self.random.chance(0.3) {
            true => random_steps(&self.random, &after, &mut self.counts.borrow_mut()),
            false => Vec::new(),
        };
        self.doubt(Doubt::Steps([first.clone(), second.clone()].concat()));
        let batches = [to_batch(&self.store, id, &first), to_batch(&self.store, id, &second)];
        let [one, two] = batches.map(|batch| self.store.write(batch));
        let (one, two) = futures_util::future::join(one, two).await;
        one.unwrap();
        two.unwrap();
        self.settle(|known| {
            let known = known.as_mut().unwrap();
            first.iter().chain(&second).for_each(|step| known.step(step));
        });
        let known = self.known().unwrap();
        assert_eq!(self.store.last_index(id), Some(Index(known.last())));
        assert_eq!(self.store.hard_state(id), Some(known.hard));
        assert_eq!(self.store.term_at(id, Index(known.last())), Some(known.term_at(known.last())));
    }

    fn apply(&self, id: ShardId) {
        let mut model = self.model.borrow_mut();
        let known = model.known.as_mut().unwrap();
        for _ in 0..self.random.below(6) {
            if known.applied == known.last() {
                break;
            }
            let entry = known.entries[(known.applied - known.base) as usize].clone();
            let warm = self.random.chance(0.3);
            let changes = changes(entry.index, &entry.payload, &mut known.state, warm);
            self.store.apply(id, entry.index, changes);
            known.applied += 1;
        }
    }

    async fn read(&self, id: ShardId, known: &Known) {
        let version = |key: &Bytes| known.state.get(key).map(|(version, _)| *version);
        let keys: Vec<Bytes> = (0..self.random.between(1, 5)).map(|_| key(&self.random)).collect();
        let all_keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let slots = self.store.get_many(id, &all_keys).await.unwrap();
        for (key, slot) in keys.iter().zip(slots) {
            assert_eq!(slot.map(|slot| slot.version), version(key));
        }
        let unknown = |key: &&Bytes| self.store.version_now(id, key) == VersionNow::Unknown;
        self.counts.borrow_mut().unknown_versions += keys.iter().filter(unknown).count() as u64;
        self.store.prefetch(id, keys.clone()).await.unwrap();
        for key in &keys {
            assert_eq!(self.store.version_now(id, key), VersionNow::Known(version(key)));
        }
        let (start, most) = (key(&self.random), self.random.between(1, 30) as usize);
        let page = self.store.scan(id, &start, Some(b"key4"), most).await.unwrap();
        let expected = known.state.range(start..).take_while(|(key, _)| key[..] < b"key4"[..]);
        let expected: Vec<_> =
            expected.take(most).map(|(key, (version, _))| (key.clone(), *version)).collect();
        let page: Vec<_> = page.into_iter().map(|(key, slot)| (key, slot.version)).collect();
        assert_eq!(page, expected);
        let key = key(&self.random);
        let slot = self.store.get(id, &key).await.unwrap();
        assert_eq!(
            slot.as_ref().map(|slot| slot.version),
            known.state.get(&key).map(|(version, _)| *version)
        );
        if let Some(slot) = slot {
            let value = self.store.value(id, &key, &slot).await.unwrap();
            assert_eq!(value, known.state[&key].1);
        }
        let first = self.store.first_index(id).unwrap();
        if first.0 <= known.last() {
            let from = self.random.between(first.0, known.last());
            let entries = self.store.read_entries(id, Index(from), Index(u64::MAX), 20_000).await.unwrap();
            assert!(!entries.is_empty());
            for entry in entries.iter().filter(|entry| entry.index.0 > known.base) {
                assert_eq!(*entry, known.entries[(entry.index.0 - known.base - 1) as usize]);
            }
        }
    }

    async fn checkpoint(&self, id: ShardId, known: &Known) {
        let meta = CheckpointMeta {
            applied: Index(known.applied),
            term: known.term_at(known.applied),
            configuration: Bytes::from(vec![1; self.random.below(100) as usize]),
            machine: Bytes::from(vec![2; self.random.below(100_000) as usize]),
            generation: known.checkpoint.generation + 1,
        };
        let mut known = known.clone();
        let doubt = |steps: Vec<Step>| Doubt::Checkpoint(meta.clone(), known.state.clone(), steps);
        self.doubt(doubt(Vec::new()));
        let checkpoint = self.store.checkpoint(id, meta.clone());
        let steps = random_steps(&self.random, &known, &mut self.counts.borrow_mut());
        let meanwhile = async {
            // Behind the first poll of the checkpoint, which fixes its state.
            self.doubt(doubt(steps.clone()));
            self.store.write(to_batch(&self.store, id, &steps)).await.unwrap();
            {
                let mut model = self.model.borrow_mut();
                let known = model.known.as_mut().unwrap();
                steps.iter().for_each(|step| known.step(step));
                model.doubt = doubt(Vec::new());
            }
            self.apply(id);
        };
        let (result, ()) = futures_util::future::join(checkpoint, meanwhile).await;
        result.unwrap();
        let state = std::mem::take(&mut known.state);
        self.settle(|known| {
            let known = known.as_mut().unwrap();
            known.checkpoint = meta;
            known.checkpoint_state = state;
        });
        self.counts.borrow_mut().checkpoints += 1;
    }

    async fn snapshot(&self, id: ShardId, known: &Known) {
        let mut source = self.store.snapshot_source(id).await.unwrap();
        assert_eq!(*source.meta(), known.checkpoint);
        let mut state = State::new();
        loop {
            let items = source.next(self.random.between(1, 30_000) as usize).await.unwrap();
            if items.is_empty() {
                break;
            }
            if self.random.chance(0.1) {
                // The connection broke: the receiver has everything up to some key.
                let last = items[self.random.below(items.len() as u64) as usize].key.clone();
                source.resume(Some(last.clone()));
                self.counts.borrow_mut().resumed += 1;
                assert_eq!(source.last_key(), Some(&last));
            }
            for item in items {
                assert_eq!(value_checksum(&item.key, &item.value), item.checksum);
                state.insert(item.key, (item.version, item.value));
            }
        }
        assert!(source.items_estimate() >= state.len() as u64 / 2 || state.len() < 4);
        assert_eq!(state, known.checkpoint_state);
    }

    async fn install(&self, id: ShardId, known: &Known) {
        let applied = known.last() + self.random.between(1, 50);
        let term = Term(known.hard.term.0 + 1);
        let mut state = State::new();
        for _ in 0..self.random.below(2 * KEYS_HOT) {
            state.insert(key(&self.random), (Index(self.random.between(1, applied)), value(&self.random)));
        }
        let meta = CheckpointMeta {
            applied: Index(applied),
            term,
            configuration: Bytes::from_static(b"installed"),
            machine: Bytes::from(vec![3; self.random.below(30_000) as usize]),
            generation: known.checkpoint.generation,
        };
        let new = Known {
            replica: known.replica,
            hard: HardState { term, vote: None, commit: Index(applied) },
            base: applied,
            entries: Vec::new(),
            applied,
            state: state.clone(),
            checkpoint: meta.clone(),
            checkpoint_state: state.clone(),
        };
        let mut installer = self.store.snapshot_installer(id, ReplicaId(known.replica)).await.unwrap();
        let items: Vec<SnapshotItem> = state
            .into_iter()
            .map(|(key, (version, value))| {
                let checksum = value_checksum(&key, &value);
                SnapshotItem { key, version, checksum, value }
            })
            .collect();
        for part in items.chunks(self.random.between(1, 10) as usize) {
            installer.add(part.to_vec()).await.unwrap();
            if self.random.chance(0.02) {
                return;
            }
        }
        self.doubt(Doubt::Replace(Some(Box::new(new.clone()))));
        match installer.finish(meta, new.hard).await {
            Ok(()) => {}
            Err(LogError::Refused(what)) => panic!("a newer snapshot is not refused: {what}"),
            Err(error) => panic!("{error}"),
        }
        self.settle(|known| *known = Some(new));
        self.counts.borrow_mut().installs += 1;
    }
}

/// The states that a shard may be in after a crash.
fn possible(model: &ShardModel) -> Vec<Option<Known>> {
    let Some(known) = &model.known else {
        let other = match &model.doubt {
            Doubt::Replace(other) => other.as_deref().cloned(),
            Doubt::Nothing | Doubt::Steps(_) | Doubt::Checkpoint(..) => None,
        };
        return vec![None, other];
    };
    let prefixes = |base: &Known, steps: &[Step]| {
        let mut states = vec![base.clone()];
        for step in steps {
            let mut next = states.last().unwrap().clone();
            next.step(step);
            states.push(next);
        }
        states
    };
    let states = match &model.doubt {
        Doubt::Nothing => vec![known.clone()],
        Doubt::Steps(steps) => prefixes(known, steps),
        Doubt::Replace(other) => return vec![Some(known.clone()), other.as_deref().cloned()],
        Doubt::Checkpoint(meta, state, steps) => {
            let mut new = known.clone();
            new.checkpoint = meta.clone();
            new.checkpoint_state = state.clone();
            [prefixes(known, steps), prefixes(&new, steps)].concat()
        }
    };
    states.into_iter().map(Some).collect()
}

async fn matches(store: &SimStore, found: &RecoveredShard, known: &Known) -> Result<(), String> {
    let mut expected = known.hard;
    expected.commit = expected.commit.max(known.checkpoint.applied).min(Index(known.last()));
    if found.hard_state != expected {
        return Err(format!("hard state {:?}, expected {expected:?}", found.hard_state));
    }
    if (found.replica.0, found.last_index.0) != (known.replica, known.last()) {
        return Err(format!("last {:?}, expected {}", found.last_index, known.last()));
    }
    if found.checkpoint != known.checkpoint {
        return Err(format!(
            "checkpoint at {}, expected {}",
            found.checkpoint.applied, known.checkpoint.applied
        ));
    }
    let mut next = found.checkpoint.applied.next();
    while next <= found.last_index {
        let entries = store.read_entries(found.shard, next, found.last_index, 50_000).await;
        for entry in entries.map_err(|error| error.to_string())? {
            if entry != known.entries[(entry.index.0 - known.base - 1) as usize] {
                return Err(format!("entry {} differs", entry.index));
            }
            let run = found.terms.iter().rev().find(|(first, _)| *first <= entry.index);
            assert_eq!(run.map(|(_, term)| *term), Some(entry.term));
            next = next.next();
        }
    }
    let state = content(store, found.shard).await;
    if state != known.checkpoint_state {
        return Err(format!("the index differs from the checkpoint at {}", known.checkpoint.applied));
    }
    Ok(())
}

/// Checks what came back, settles the doubts, and brings the index up to where it was.
async fn verify(
    store: SimStore,
    found: Vec<RecoveredShard>,
    models: Vec<Rc<RefCell<ShardModel>>>,
    counts: Rc<RefCell<Counts>>,
) {
    let found: BTreeMap<ShardId, RecoveredShard> =
        found.into_iter().map(|shard| (shard.shard, shard)).collect();
    for model in models {
        let (id, states) = (model.borrow().id, possible(&model.borrow()));
        let count = states.len();
        let mut reasons = Vec::new();
        let mut settled = None;
        // The latest possible state first.
        for (position, state) in states.into_iter().enumerate().rev() {
            match (&state, found.get(&id)) {
                (None, None) => settled = Some(state),
                (Some(known), Some(found)) => match matches(&store, found, known).await {
                    Ok(()) => settled = Some(state),
                    Err(reason) => reasons.push(reason),
                },
                (Some(_), None) => reasons.push("the shard is missing".to_owned()),
                (None, Some(_)) => reasons.push("a removed shard is here".to_owned()),
            }
            if settled.is_some() {
                counts.borrow_mut().lost_tails += u64::from(position + 1 < count);
                break;
            }
        }
        let Some(mut settled) = settled else {
            panic!("{id}: what came back is none of {count} possible states: {reasons:#?}");
        };
        if let Some(known) = &mut settled {
            let mut state = known.checkpoint_state.clone();
            let mut index = known.checkpoint.applied.0 + 1;
            while index <= known.applied {
                let entry = &known.entries[(index - known.base - 1) as usize];
                let changes = changes(entry.index, &entry.payload, &mut state, false);
                store.apply(id, entry.index, changes);
                counts.borrow_mut().replayed += 1;
                index += 1;
            }
            assert_eq!(state, known.state);
            assert_eq!(content(&store, id).await, state);
            // The commit index may have been raised to the checkpoint.
            known.hard = found[&id].hard_state;
        }
        let mut model = model.borrow_mut();
        model.known = settled;
        model.doubt = Doubt::Nothing;
    }
}

fn run_seed(seed: u64, counts: &Rc<RefCell<Counts>>) {
    let world = World::new(seed);
    let random = world.simulation.random();
    let models: Vec<_> = (1..=SHARDS)
        .map(|id| ShardModel { id: ShardId(id), known: None, doubt: Doubt::Nothing })
        .map(|model| Rc::new(RefCell::new(model)))
        .collect();
    for round in 0..6 {
        let (store, found) = world.open();
        world.run(verify(store.clone(), found, models.clone(), counts.clone()));
        for model in &models {
            let driver = Driver {
                store: store.clone(),
                random: random.fork(round * 100 + u64::from(model.borrow().id.0)),
                model: model.clone(),
                counts: counts.clone(),
            };
            world.simulation.spawn_on(world.host, |_| driver.run());
        }
        world.simulation.run_for(Duration::from_micros(random.between(1_000, 400_000)));
        assert_eq!(store.poisoned(), None);
        match random.below(4) {
            0 => {
                // A process is gone, and its lock on the directory free, once its writes in flight have ended.
                world.simulation.kill(world.host);
                world.simulation.run_for(Duration::from_millis(20));
            }
            _ => world.simulation.crash(world.host),
        }
        let statistics = store.statistics();
        counts.borrow_mut().recycled += statistics.segments_recycled;
        counts.borrow_mut().compacted += statistics.segments_compacted;
        counts.borrow_mut().moved += statistics.relocated_values;
        counts.borrow_mut().merges += statistics.merges;
        let runs_max = counts.borrow().runs_max.max(statistics.runs);
        counts.borrow_mut().runs_max = runs_max;
        counts.borrow_mut().crashes += 1;
        drop(store);
        // A crash while the log is being opened.
        if random.chance(0.3) {
            world.simulation.spawn_on(world.host, |runtime| async move {
                let _ = krita_engine::open(runtime, options()).await;
            });
            world.simulation.run_for(Duration::from_micros(random.between(100, 20_000)));
            world.simulation.crash(world.host);
        }
    }
    let (store, found) = world.open();
    world.run(verify(store, found, models, counts.clone()));
    counts.borrow_mut().torn += world.simulation.statistics().torn_writes;
}

#[test]
fn a_store_is_what_was_acknowledged() {
    let counts = Rc::new(RefCell::new(Counts::default()));
    for_seeds("model", 200, |seed| run_seed(seed, &counts));
    println!("{:?}", counts.borrow());
    if std::env::var("KRITA_SEED").is_err() {
        let counts = counts.borrow();
        let all = [counts.truncations, counts.checkpoints, counts.installs, counts.removals, counts.replayed];
        let more =
            [counts.lost_tails, counts.recycled, counts.compacted, counts.moved, counts.large, counts.torn];
        let runs = [counts.merges, counts.resumed, counts.unknown_versions];
        assert!(
            all.iter().chain(&more).chain(&runs).all(|count| *count > 0),
            "something never happened: {counts:?}"
        );
    }
}
