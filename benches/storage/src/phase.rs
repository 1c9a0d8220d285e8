//! What is measured, one phase to a process: memory, I/O and a kill then belong to one store alone.
//!
//! A phase runs in a child of this program and tells its outcome as one line of JSON on stdout.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::measure::{self, DeviceIo, ProcessIo};
use crate::stores::{Budget, Failure, Opener, Store, StoreKind};
use crate::work::{self, Choices, Model, Work};

/// How long a store may take to come to rest.
const SETTLE_MAX: Duration = Duration::from_secs(300);

/// A store that has written nothing for this long is at rest.
const QUIET: Duration = Duration::from_secs(2);

/// Reads that check the content after a phase that wrote.
const CHECKS: u64 = 1_000;

/// How often a process that is to be killed tells how far it is.
const CHURN_REPORT_PUTS: u64 = 1_000;

/// A phase, with all it needs to know.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Phase {
    /// Which store.
    pub store: StoreKind,
    /// The store's own directory.
    pub directory: PathBuf,
    /// Keys, values and batches.
    pub work: Work,
    /// The store's memory.
    pub budget: Budget,
    /// What to do.
    pub task: Task,
}

/// What to do in a phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Task {
    /// Put every key once, wait for rest, close.
    Load,
    /// Overwrite keys chosen uniformly, this many, and note the size on disk every so many puts.
    Overwrite {
        /// How many.
        puts: u64,
        /// Puts between two looks at the disk.
        sample_every: u64,
    },
    /// Overwrite until killed.
    Churn,
    /// Open with nothing cached, and read one key.
    Open,
    /// Open, read this many keys, and note what memory is resident.
    Memory {
        /// How many.
        gets: u64,
    },
    /// Open with nothing cached, and read this many keys that are there, and as many that are not.
    ColdReads {
        /// How many.
        gets: u64,
    },
}

/// The size on disk at one moment.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Overwrites so far.
    pub puts: u64,
    /// Since the first of them.
    pub seconds: f64,
    /// What the file system has given.
    pub disk_bytes: u64,
}

/// A phase that wrote.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Written {
    /// How long the writes took.
    pub seconds: f64,
    /// How long it then took until nothing was written any more.
    pub settle_seconds: f64,
    /// Bytes of keys and values.
    pub user_bytes: u64,
    /// Bytes that the process sent to the device, until rest.
    pub process_bytes: u64,
    /// Among them those that only made files ready for use, once in their life.
    pub preparation_bytes: u64,
    /// Bytes that the whole device took meanwhile, whoever wrote them.
    pub device_bytes: Option<u64>,
    /// Size on disk at rest.
    pub disk_bytes: u64,
    /// Size on disk over time.
    pub samples: Vec<Sample>,
}

/// A phase that opened.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// Until the store could be read.
    pub open_seconds: f64,
    /// Until the first value was read.
    pub first_read_seconds: f64,
    /// Bytes that were fetched from the device for it.
    pub read_bytes: u64,
}

/// A phase that looked at memory. All sizes are resident memory of the process's own less that before opening.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resident {
    /// Once the store was open.
    pub opened_bytes: u64,
    /// After reads.
    pub after_reads_bytes: u64,
}

/// What reads of one kind cost.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct ReadCost {
    /// Mean latency.
    pub mean_micros: f64,
    /// Median latency.
    pub p50_micros: u64,
    /// The latency that one in a hundred exceeds.
    pub p99_micros: u64,
    /// Bytes that the process fetched from the device, for each read.
    pub bytes_per_get: f64,
    /// Read requests that the whole device completed, for each read, whoever asked for them.
    pub device_reads_per_get: Option<f64>,
}

/// A phase that read from a cold store.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct ColdReads {
    /// Of keys that are there.
    pub hits: ReadCost,
    /// Of keys that are not.
    pub misses: ReadCost,
}

/// What a phase found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// See [`Written`].
    Written(Written),
    /// See [`Opened`].
    Opened(Opened),
    /// See [`Resident`].
    Resident(Resident),
    /// See [`ColdReads`].
    ColdReads(ColdReads),
    /// A churning process tells how many of its puts are acknowledged.
    Churned(u64),
}

/// Runs a phase to its end.
pub async fn run<O: Opener>(opener: &O, phase: &Phase) -> Result<Outcome, Failure> {
    match phase.task {
        Task::Load => load(opener, phase).await.map(Outcome::Written),
        Task::Overwrite { puts, sample_every } => {
            overwrite(opener, phase, puts, sample_every).await.map(Outcome::Written)
        }
        Task::Churn => churn(opener, phase).await,
        Task::Open => open(opener, phase).await.map(Outcome::Opened),
        Task::Memory { gets } => memory(opener, phase, gets).await.map(Outcome::Resident),
        Task::ColdReads { gets } => cold_reads(opener, phase, gets).await.map(Outcome::ColdReads),
    }
}

/// The counters of a phase that writes, from its first moment.
struct Meter {
    started: Instant,
    process: ProcessIo,
    device: Option<DeviceIo>,
    preparation_bytes: u64,
}

impl Meter {
    /// `preparation_bytes` have been written in preparation before.
    fn start(phase: &Phase, preparation_bytes: u64) -> Result<Self, Failure> {
        Ok(Self {
            process: measure::process_io()?,
            device: measure::device_io(&phase.directory)?,
            preparation_bytes,
            started: Instant::now(),
        })
    }

    /// Waits for rest, and adds up.
    async fn finish<O: Opener>(
        self,
        opener: &O,
        phase: &Phase,
        store: &O::Store,
        puts: u64,
    ) -> Result<Written, Failure> {
        let seconds = self.started.elapsed().as_secs_f64();
        let settling = Instant::now();
        settle(opener, settling).await?;
        let device = measure::device_io(&phase.directory)?;
        let device_bytes = device.zip(self.device).map(|(now, then)| now.written_bytes - then.written_bytes);
        Ok(Written {
            seconds,
            settle_seconds: settling.elapsed().saturating_sub(QUIET).as_secs_f64(),
            user_bytes: phase.work.put_bytes(puts),
            process_bytes: measure::process_io()?.write_bytes.saturating_sub(self.process.write_bytes),
            preparation_bytes: store.preparation_bytes().saturating_sub(self.preparation_bytes),
            device_bytes,
            disk_bytes: measure::disk_bytes(&phase.directory)?,
            samples: Vec::new(),
        })
    }
}

/// Waits until the process has written nothing for a while.
async fn settle<O: Opener>(opener: &O, since: Instant) -> Result<(), Failure> {
    let mut last = measure::process_io()?.write_bytes;
    while since.elapsed() < SETTLE_MAX {
        opener.wait(QUIET).await;
        let now = measure::process_io()?.write_bytes;
        if now == last {
            return Ok(());
        }
        last = now;
    }
    Ok(())
}

async fn load<O: Opener>(opener: &O, phase: &Phase) -> Result<Written, Failure> {
    std::fs::create_dir_all(&phase.directory)?;
    let meter = Meter::start(phase, 0)?;
    let mut store = opener.open(&phase.directory, phase.budget).await?;
    for batch in work::load_batches(phase.work) {
        store.write(batch).await?;
    }
    let written = meter.finish(opener, phase, &store, phase.work.keys).await?;
    check(&store, &Model::loaded(phase.work)).await?;
    store.close().await?;
    Ok(written)
}

/// Reads keys and compares them with what they must be.
async fn check<S: Store>(store: &S, model: &Model) -> Result<(), Failure> {
    let mut choices = Choices::new(7);
    for _ in 0..CHECKS {
        let number = choices.below(model.keys());
        check_one(store.get(&work::key(number)).await?, number, model)?;
    }
    Ok(())
}

fn check_one(found: Option<Vec<u8>>, number: u64, model: &Model) -> Result<(), Failure> {
    match found {
        Some(value) if value == model.value(number) => Ok(()),
        Some(_) => Err(format!("key {number} has a wrong value").into()),
        None => Err(format!("key {number} is missing").into()),
    }
}

async fn overwrite<O: Opener>(
    opener: &O,
    phase: &Phase,
    puts: u64,
    sample_every: u64,
) -> Result<Written, Failure> {
    let mut store = opener.open(&phase.directory, phase.budget).await?;
    let mut model = Model::loaded(phase.work);
    let mut choices = Choices::new(1);
    let meter = Meter::start(phase, store.preparation_bytes())?;
    let started = meter.started;
    let sample = |puts| -> Result<Sample, Failure> {
        let disk_bytes = measure::disk_bytes(&phase.directory)?;
        Ok(Sample { puts, seconds: started.elapsed().as_secs_f64(), disk_bytes })
    };
    let mut samples = vec![sample(0)?];
    let (mut done, mut next_sample) = (0, sample_every);
    while done < puts {
        let count = phase.work.batch.min(puts - done);
        store.write(distinct(&mut choices, phase.work, count, &mut model)).await?;
        done += count;
        if done >= next_sample {
            samples.push(sample(done)?);
            next_sample += sample_every;
        }
    }
    let mut written = meter.finish(opener, phase, &store, puts).await?;
    samples.push(sample(done)?);
    written.samples = samples;
    check(&store, &model).await?;
    store.close().await?;
    Ok(written)
}

/// A batch of overwrites, no key twice.
fn distinct(choices: &mut Choices, work: Work, count: u64, model: &mut Model) -> Vec<work::Put> {
    let mut numbers = std::collections::BTreeSet::new();
    while (numbers.len() as u64) < count.min(work.keys) {
        numbers.insert(choices.below(work.keys));
    }
    numbers.into_iter().map(|number| model.overwrite(number)).collect()
}

async fn churn<O: Opener>(opener: &O, phase: &Phase) -> Result<Outcome, Failure> {
    let mut store = opener.open(&phase.directory, phase.budget).await?;
    let mut model = Model::loaded(phase.work);
    let mut choices = Choices::new(2);
    let (mut done, mut told) = (0, 0);
    loop {
        store.write(distinct(&mut choices, phase.work, phase.work.batch, &mut model)).await?;
        done += phase.work.batch;
        if done >= told + CHURN_REPORT_PUTS {
            told = done;
            tell(&Outcome::Churned(done))?;
        }
    }
}

/// Writes an outcome for the process that started this one.
pub fn tell(outcome: &Outcome) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(outcome)?)?;
    Ok(out.flush()?)
}

async fn open<O: Opener>(opener: &O, phase: &Phase) -> Result<Opened, Failure> {
    measure::forget_cached(&phase.directory)?;
    let io = measure::process_io()?;
    let started = Instant::now();
    let store = opener.open(&phase.directory, phase.budget).await?;
    let open_seconds = started.elapsed().as_secs_f64();
    let found = store.get(&work::key(0)).await?;
    let first_read_seconds = started.elapsed().as_secs_f64();
    let read_bytes = measure::process_io()?.read_bytes - io.read_bytes;
    if found.is_none_or(|value| value.len() != phase.work.value_bytes) {
        return Err("the first key is not as it was put".into());
    }
    store.close().await?;
    Ok(Opened { open_seconds, first_read_seconds, read_bytes })
}

async fn memory<O: Opener>(opener: &O, phase: &Phase, gets: u64) -> Result<Resident, Failure> {
    let before = measure::resident_bytes()?;
    let store = opener.open(&phase.directory, phase.budget).await?;
    opener.wait(QUIET).await;
    let opened_bytes = measure::resident_bytes()?.saturating_sub(before);
    let mut choices = Choices::new(3);
    for _ in 0..gets {
        let number = choices.below(phase.work.keys);
        let found = store.get(&work::key(number)).await?;
        found.ok_or_else(|| format!("key {number} is missing"))?;
    }
    let after_reads_bytes = measure::resident_bytes()?.saturating_sub(before);
    store.close().await?;
    Ok(Resident { opened_bytes, after_reads_bytes })
}

async fn cold_reads<O: Opener>(opener: &O, phase: &Phase, gets: u64) -> Result<ColdReads, Failure> {
    measure::forget_cached(&phase.directory)?;
    let store = opener.open(&phase.directory, phase.budget).await?;
    // What opening has read may lie in the page cache.
    measure::forget_cached(&phase.directory)?;
    let mut choices = Choices::new(4);
    let there: Vec<u64> = (0..gets).map(|_| choices.below(phase.work.keys)).collect();
    let hits = read_all(&store, phase, &there, true).await?;
    let absent: Vec<u64> = there.iter().map(|number| number + phase.work.keys).collect();
    let misses = read_all(&store, phase, &absent, false).await?;
    store.close().await?;
    Ok(ColdReads { hits, misses })
}

/// Reads keys one after the other; each must be as it was first put, or absent.
async fn read_all<S: Store>(
    store: &S,
    phase: &Phase,
    numbers: &[u64],
    are_there: bool,
) -> Result<ReadCost, Failure> {
    let mut latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    let process = measure::process_io()?;
    let device = measure::device_io(&phase.directory)?;
    let mut wrong = 0;
    for number in numbers {
        let started = Instant::now();
        let found = store.get(&work::key(*number)).await?;
        latencies.saturating_record(u64::try_from(started.elapsed().as_micros())?.max(1));
        let expected = are_there.then(|| work::value(*number, 0, phase.work.value_bytes));
        wrong += u64::from(found != expected);
    }
    if wrong > 0 {
        return Err(format!("{wrong} reads found what they should not").into());
    }
    let gets = numbers.len() as f64;
    let read_bytes = measure::process_io()?.read_bytes - process.read_bytes;
    let device = measure::device_io(&phase.directory)?.zip(device);
    Ok(ReadCost {
        mean_micros: latencies.mean(),
        p50_micros: latencies.value_at_quantile(0.5),
        p99_micros: latencies.value_at_quantile(0.99),
        bytes_per_get: read_bytes as f64 / gets,
        device_reads_per_get: device.map(|(now, then)| (now.reads - then.reads) as f64 / gets),
    })
}
