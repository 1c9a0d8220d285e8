//! The loop, the same for every database: each worker has one operation at a time, and a thread has as many workers as
//! it has clients times their pipelining depth. All of a thread's state stands here, and belongs to it alone.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::keys::Keys;
use crate::ledger::{Ledger, Writing};
use crate::pace::{Arrivals, Schedule};
use crate::tally::SharedTally;
use crate::target::{Answer, Found, Problem, Request, Target};
use crate::values::{Random, Shape};
use crate::workload::{Operation, Workload};

/// Keys that are loaded in one request.
const LOAD_BATCH: u64 = 50;

/// Workers that load, for each thread.
const LOADERS: u32 = 16;

/// How often a load is tried again before the run is given up.
const LOAD_ATTEMPTS: u32 = 100;

/// The pause before it is, and after an operation that was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// How often a thread looks whether it may go on.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// What the main thread tells all threads, and what it reads meanwhile.
#[derive(Debug, Default)]
pub struct Control {
    /// Operations may begin.
    pub go: AtomicBool,
    /// No more shall.
    pub stop: AtomicBool,
    /// Keys that have been loaded.
    pub loaded: AtomicU64,
    /// Operations of an open loop that were due and had not begun when it ended.
    pub behind: AtomicU64,
}

/// What a thread is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The mix.
    pub workload: Workload,
    /// Lengths.
    pub shape: Shape,
    /// Items of a scan, at most.
    pub scan_items: u32,
    /// Operations of a batch.
    pub batch_size: u32,
    /// Workers of this thread.
    pub workers: u32,
}

/// What a thread of the load is made of.
#[derive(Debug)]
pub struct ThreadParts {
    /// What it is to do.
    pub plan: Plan,
    /// To which keys.
    pub keys: Keys,
    /// What it knows of them.
    pub ledger: Ledger,
    /// What it decides by.
    pub random: Random,
    /// Operations per second; `None`: a closed loop.
    pub rate: Option<f64>,
    /// How an open loop spaces them.
    pub arrivals: Arrivals,
    /// Where it counts.
    pub tally: Arc<SharedTally>,
    /// What it is told.
    pub control: Arc<Control>,
}

/// One thread of the load.
pub struct Thread<T> {
    target: T,
    plan: Plan,
    keys: RefCell<Keys>,
    ledger: RefCell<Ledger>,
    random: RefCell<Random>,
    rate: Option<f64>,
    arrivals: Arrivals,
    /// Of an open loop that has begun.
    schedule: RefCell<Option<Schedule>>,
    tally: Arc<SharedTally>,
    control: Arc<Control>,
    running: Cell<u32>,
}

impl<T: Target> Thread<T> {
    /// A thread that has connected to `target` and done nothing yet.
    pub fn new(target: T, parts: ThreadParts) -> Rc<Self> {
        let ThreadParts { plan, keys, ledger, random, rate, arrivals, tally, control } = parts;
        Rc::new(Self {
            target,
            plan,
            keys: RefCell::new(keys),
            ledger: RefCell::new(ledger),
            random: RefCell::new(random),
            rate,
            arrivals,
            schedule: RefCell::new(None),
            tally,
            control,
            running: Cell::new(0),
        })
    }

    /// Puts every own key once, so that reads find something and writes replace something.
    ///
    /// # Errors
    /// A key cannot be written, whatever the patience.
    pub async fn load(self: &Rc<Self>) -> Result<(), Problem> {
        let next = Rc::new(Cell::new(0));
        let failure = Rc::new(RefCell::new(None));
        self.running.set(LOADERS);
        for worker in 0..LOADERS {
            let (thread, next, failure) = (self.clone(), next.clone(), failure.clone());
            self.target.spawn(async move {
                if let Err(problem) = thread.load_part(worker, &next, &failure).await {
                    *failure.borrow_mut() = Some(problem);
                }
                thread.running.set(thread.running.get() - 1);
            });
        }
        self.all_ended().await;
        let failure = failure.borrow_mut().take();
        failure.map_or(Ok(()), Err)
    }

    async fn load_part(
        &self,
        worker: u32,
        next: &Cell<u64>,
        failure: &RefCell<Option<Problem>>,
    ) -> Result<(), Problem> {
        let count = self.keys.borrow().count();
        loop {
            let from = next.get();
            if from >= count || failure.borrow().is_some() {
                return Ok(());
            }
            let to = count.min(from + self.load_batch());
            next.set(to);
            let pairs: Vec<(Bytes, Bytes)> = (from..to)
                .map(|position| {
                    let number = self.keys.borrow().number(position);
                    let value = self.plan.shape.value(number, Ledger::loaded_number(number));
                    (self.plan.shape.key(number), value)
                })
                .collect();
            let mut attempts = 0;
            while let Err(problem) = self.target.perform(worker, Request::PutMany(pairs.clone())).await {
                attempts += 1;
                if attempts >= LOAD_ATTEMPTS {
                    return Err(problem);
                }
                self.target.sleep(REFUSED_PAUSE).await;
            }
            for position in from..to {
                self.ledger.borrow_mut().loaded(position);
            }
            self.control.loaded.fetch_add(to - from, Ordering::Relaxed);
        }
    }

    /// Fewer keys where they are long, so that one request stays below a few hundred kibibytes.
    fn load_batch(&self) -> u64 {
        (256 * 1024 / u64::from(self.plan.shape.values.bounds().1).max(1)).clamp(1, LOAD_BATCH)
    }

    /// Works until told to stop, and until the last operation has ended.
    pub async fn run(self: &Rc<Self>) {
        while !self.control.go.load(Ordering::Acquire) {
            self.target.sleep(POLL_INTERVAL).await;
        }
        if let Some(rate) = self.rate {
            let random = Random::new(self.random.borrow_mut().draw());
            *self.schedule.borrow_mut() = Some(Schedule::new(Instant::now(), rate, self.arrivals, random));
        }
        self.running.set(self.plan.workers);
        for worker in 0..self.plan.workers {
            let thread = self.clone();
            self.target.spawn(async move {
                thread.work(worker).await;
                thread.running.set(thread.running.get() - 1);
            });
        }
        while !self.control.stop.load(Ordering::Acquire) {
            self.target.sleep(POLL_INTERVAL).await;
        }
        if let Some(schedule) = &*self.schedule.borrow() {
            self.control.behind.fetch_add(schedule.behind(Instant::now()), Ordering::Relaxed);
        }
        self.all_ended().await;
    }

    async fn all_ended(&self) {
        while self.running.get() > 0 {
            self.target.sleep(POLL_INTERVAL).await;
        }
    }

    async fn work(&self, worker: u32) {
        while !self.control.stop.load(Ordering::Acquire) {
            let Some(begun) = self.begin().await else { return };
            let operation = self.plan.workload.pick(&mut self.random.borrow_mut());
            match self.perform(worker, operation).await {
                Ok(()) => self.tally.lock().record(operation, begun.elapsed()),
                Err(problem) => {
                    self.tally.lock().error(&problem.name);
                    self.target.sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }

    /// When the next operation begins, once that time has come; `None`: the run ends before it.
    async fn begin(&self) -> Option<Instant> {
        let due = match &mut *self.schedule.borrow_mut() {
            None => return Some(Instant::now()),
            Some(schedule) => schedule.take(),
        };
        loop {
            let early = due.saturating_duration_since(Instant::now());
            if early.is_zero() {
                return Some(due);
            }
            // In pieces, so that a slow rate ends in time too.
            self.target.sleep(early.min(Duration::from_millis(50))).await;
            if self.control.stop.load(Ordering::Acquire) {
                return None;
            }
        }
    }

    fn pick(&self) -> u64 {
        self.keys.borrow().pick(&mut self.random.borrow_mut())
    }

    fn number(&self, position: u64) -> u64 {
        self.keys.borrow().number(position)
    }

    async fn perform(&self, worker: u32, operation: Operation) -> Result<(), Problem> {
        match operation {
            Operation::Read => self.read(worker, self.pick()).await.map(|_| ()),
            Operation::Update => self.write(worker, self.pick()).await,
            Operation::Insert => {
                let position = self.keys.borrow_mut().add();
                self.write(worker, position).await
            }
            Operation::ReadModifyWrite => {
                let position = self.pick();
                self.read(worker, position).await?;
                self.write(worker, position).await
            }
            Operation::Swap => self.swap(worker, self.pick()).await,
            Operation::Scan => self.scan(worker, self.pick()).await,
            Operation::Batch => self.write_many(worker).await,
            Operation::BatchGet => self.read_many(worker).await,
        }
    }

    async fn read(&self, worker: u32, position: u64) -> Result<Option<Found>, Problem> {
        let number = self.number(position);
        let expectation = self.ledger.borrow_mut().expect(position);
        let key = self.plan.shape.key(number);
        let Answer::Value(found) = self.target.perform(worker, Request::Get { key }).await? else {
            return Err(Problem::odd());
        };
        let value = found.as_ref().map(|found| &found.value[..]);
        let shape = &self.plan.shape;
        let verdict = self.ledger.borrow_mut().judge(shape, position, number, expectation, value);
        let mut tally = self.tally.lock();
        tally.judged(verdict);
        tally.bytes_read += value.map_or(0, |value| value.len() as u64);
        drop(tally);
        Ok(found)
    }

    /// Ends a writing as its request ended.
    fn end(&self, writing: Writing, bytes: usize, result: &Result<Answer, Problem>) {
        let mut ledger = self.ledger.borrow_mut();
        match result {
            Ok(Answer::NotSwapped) => ledger.refused(writing),
            Ok(_) => {
                ledger.acknowledged(writing);
                self.tally.lock().bytes_written += bytes as u64;
            }
            Err(problem) if problem.is_unknown => ledger.lost(writing),
            Err(_) => ledger.refused(writing),
        }
    }

    async fn write(&self, worker: u32, position: u64) -> Result<(), Problem> {
        let number = self.number(position);
        let writing = self.ledger.borrow_mut().begin(position);
        let (key, value) = (self.plan.shape.key(number), self.plan.shape.value(number, writing.number));
        let bytes = key.len() + value.len();
        let result = self.target.perform(worker, Request::Put { key, value }).await;
        self.end(writing, bytes, &result);
        result.map(|_| ())
    }

    async fn swap(&self, worker: u32, position: u64) -> Result<(), Problem> {
        let found = self.read(worker, position).await?;
        let number = self.number(position);
        let writing = self.ledger.borrow_mut().begin(position);
        let (key, value) = (self.plan.shape.key(number), self.plan.shape.value(number, writing.number));
        let bytes = key.len() + value.len();
        let result = self.target.perform(worker, Request::Swap { key, found, value }).await;
        self.end(writing, bytes, &result);
        if result? == Answer::NotSwapped {
            self.tally.lock().conflicts += 1;
        }
        Ok(())
    }

    /// Different own keys.
    fn pick_many(&self) -> Vec<u64> {
        let most = u64::from(self.plan.batch_size).min(self.keys.borrow().count());
        let mut positions = BTreeSet::new();
        while (positions.len() as u64) < most {
            let picked = self.pick();
            // A skewed choice repeats itself: then the next key that is free.
            let count = self.keys.borrow().count();
            let free = (0..count).map(|step| (picked + step) % count).find(|it| !positions.contains(it));
            positions.extend(free);
        }
        positions.into_iter().collect()
    }

    async fn write_many(&self, worker: u32) -> Result<(), Problem> {
        let mut writings = Vec::new();
        let mut pairs = Vec::new();
        for position in self.pick_many() {
            let number = self.number(position);
            let writing = self.ledger.borrow_mut().begin(position);
            pairs.push((self.plan.shape.key(number), self.plan.shape.value(number, writing.number)));
            writings.push(writing);
        }
        let lengths: Vec<usize> = pairs.iter().map(|(key, value)| key.len() + value.len()).collect();
        let mut result = self.target.perform(worker, Request::PutMany(pairs)).await;
        if let Err(problem) = &mut result {
            // Some shards may have taken their part.
            problem.is_unknown = true;
        }
        for (writing, bytes) in writings.into_iter().zip(lengths) {
            self.end(writing, bytes, &result);
        }
        result.map(|_| ())
    }

    async fn read_many(&self, worker: u32) -> Result<(), Problem> {
        let positions = self.pick_many();
        let expected: Vec<_> =
            positions.iter().map(|position| self.ledger.borrow_mut().expect(*position)).collect();
        let keys = positions.iter().map(|position| self.plan.shape.key(self.number(*position))).collect();
        let Answer::Values(values) = self.target.perform(worker, Request::GetMany(keys)).await? else {
            return Err(Problem::odd());
        };
        if values.len() != positions.len() {
            return Err(Problem::odd());
        }
        for ((position, expectation), value) in positions.into_iter().zip(expected).zip(values) {
            let number = self.number(position);
            let shape = &self.plan.shape;
            let verdict =
                self.ledger.borrow_mut().judge(shape, position, number, expectation, value.as_deref());
            let mut tally = self.tally.lock();
            tally.judged(verdict);
            tally.bytes_read += value.map_or(0, |value| value.len() as u64);
        }
        Ok(())
    }

    async fn scan(&self, worker: u32, position: u64) -> Result<(), Problem> {
        let most = u64::from(self.plan.scan_items);
        let items = self.random.borrow_mut().below(most) + 1;
        let start = self.plan.shape.key(self.number(position));
        // The own keys that the scan may meet; the others are other threads', and judged by their bytes alone.
        let expected: Vec<_> = (position..position + items)
            .map(|position| (position, self.ledger.borrow_mut().expect(position)))
            .collect();
        let request = Request::Scan { start: start.clone(), items: u32::try_from(items).unwrap_or(1) };
        let Answer::Items(found) = self.target.perform(worker, request).await? else {
            return Err(Problem::odd());
        };
        let is_sorted = found.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !is_sorted || found.first().is_some_and(|(first, _)| *first < start) || found.len() as u64 > items
        {
            return Err(Problem::odd());
        }
        for (key, value) in found {
            let Some(number) = self.plan.shape.number_of(&key) else { continue };
            let own = self.keys.borrow().position(number);
            let own = own.and_then(|own| expected.iter().find(|(position, _)| *position == own));
            let shape = &self.plan.shape;
            let verdict = match own {
                Some((position, expectation)) => {
                    self.ledger.borrow_mut().judge(shape, *position, number, *expectation, Some(&value))
                }
                None if shape.writing_of(number, &value).is_some() => crate::ledger::Verdict::Right,
                None => crate::ledger::Verdict::Foreign,
            };
            let mut tally = self.tally.lock();
            tally.judged(verdict);
            tally.bytes_read += (key.len() + value.len()) as u64;
        }
        Ok(())
    }
}
