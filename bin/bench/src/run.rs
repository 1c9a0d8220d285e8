//! A run: for each number of clients the threads are started, the keys loaded once, and after a warm-up a window is
//! measured, second by second.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use krita_cli::progress::Progress;
use krita_runtime::glommio::{NodeOptions, block_on, preflight};
use kritaclient::blocking::Client;

use crate::arguments::{Arguments, Output, TargetName};
use crate::keys::{Distribution, Keys};
use crate::ledger::Ledger;
use crate::report::{self, Recorder, Row};
use crate::servers::Servers;
use crate::tally::{SharedTally, Tally};
use crate::target::Target;
use crate::targets::etcd::Etcd;
use crate::targets::grpc::KritaGrpc;
use crate::targets::native::Native;
use crate::targets::redis::Redis;
use crate::targets::rest::KritaRest;
use crate::targets::{Reach, on_tokio};
use crate::values::{Random, Shape};
use crate::worker::{Control, Plan, Thread, ThreadParts};
use crate::{Failure, plot};

/// How many shards the hot-shard distribution imagines where there are none.
const SHARDS_ELSEWHERE: u32 = 64;

/// How often the main thread looks how far a load is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// How long threads may take to end after the window, beside the requests that are under way.
const END_MAX: Duration = Duration::from_secs(60);

/// Measures and prints.
///
/// # Errors
/// The database cannot be reached, or answered a read with another value than was written.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    arguments.check()?;
    let (reach, shards) = reach(arguments)?;
    let servers = Servers { pids: arguments.pids()?, device: arguments.flush_device.clone() };
    let mut recorder = Recorder::start(arguments)?;
    let mut rows: Vec<Row> = Vec::new();
    for clients in &arguments.clients {
        let phase = Phase {
            arguments,
            reach: &reach,
            shards,
            clients: *clients,
            loads: rows.is_empty() && !arguments.no_load,
        };
        let row = phase.measure(&servers, &mut recorder)?;
        if arguments.output == Output::Table {
            report::table(&row, rows.is_empty(), arguments);
        }
        rows.push(row);
    }
    if arguments.output == Output::Json {
        report::json(&rows, arguments);
    }
    if let Some(path) = &arguments.plot {
        plot::draw(path, &rows, arguments)?;
    }
    let sum = |of: fn(&Tally) -> u64| rows.iter().map(|row| of(&row.tally)).sum::<u64>();
    match sum(Tally::wrong) {
        0 => Ok(()),
        wrong => Err(Failure::new(format!(
            "{wrong} reads were wrong: {} found bytes that nobody wrote, {} what had been replaced before they \
             began, {} nothing where something was written",
            sum(|tally| tally.foreign),
            sum(|tally| tally.stale),
            sum(|tally| tally.missing),
        ))),
    }
}

/// How the database is reached, and how many shards it has.
fn reach(arguments: &Arguments) -> Result<(Reach, u32), Failure> {
    if !arguments.target.is_krita() {
        let reach = Reach {
            nodes: arguments.endpoints.clone(),
            cluster_name: String::new(),
            token: String::new(),
            ca_pem: None,
        };
        return Ok((reach, SHARDS_ELSEWHERE));
    }
    if arguments.target == TargetName::Krita {
        preflight(&NodeOptions::default()).map_err(|error| Failure::new(error.to_string()))?;
    }
    let told = |failure: krita_cli::failure::Failure| Failure::new(failure.message().unwrap_or_default());
    let target = arguments.connection.target().map_err(told)?;
    let options = target.options().map_err(told)?;
    let said = |error: kritaclient::Error| Failure::new(format!("{error}\n{}", error.advice()));
    let mut reach = Reach::of(&options);
    let status = Client::connect(options).map_err(said)?.cluster_status().map_err(said)?;
    // All nodes share the load, whichever were named.
    reach.nodes = status.members.into_iter().map(|member| member.address).collect();
    Ok((reach, u32::try_from(status.shards.len()).unwrap_or(SHARDS_ELSEWHERE)))
}

/// What a thread says to the main thread.
enum Said {
    /// It is connected, and has loaded its keys.
    Ready,
    /// It has done its part, or cannot.
    Ended(Result<(), Failure>),
}

/// One number of clients.
struct Phase<'a> {
    arguments: &'a Arguments,
    reach: &'a Reach,
    shards: u32,
    clients: u32,
    loads: bool,
}

/// What one thread is started with.
struct Share {
    target: TargetName,
    reach: Reach,
    shards: u32,
    connections: u32,
    plan: Plan,
    distribution: Distribution,
    keys: u64,
    thread: u64,
    threads: u64,
    run: u32,
    seed: u64,
    rate: Option<f64>,
    arrivals: crate::pace::Arrivals,
    loads: bool,
    tally: Arc<SharedTally>,
    control: Arc<Control>,
    said: Sender<Said>,
}

/// The threads of a phase, as the main thread sees them.
struct Threads {
    control: Arc<Control>,
    tallies: Vec<Arc<SharedTally>>,
    said: Receiver<Said>,
    handles: Vec<JoinHandle<()>>,
}

impl Phase<'_> {
    /// A part of a number, as even as can be.
    fn part(whole: u32, thread: u32, threads: u32) -> u32 {
        whole / threads + u32::from(thread < whole % threads)
    }

    fn start(&self) -> Result<Threads, Failure> {
        let arguments = self.arguments;
        let threads = arguments.threads.min(self.clients);
        let run = getrandom::u32().map_err(|error| Failure::new(format!("no random numbers: {error}")))?;
        let seed = getrandom::u64().map_err(|error| Failure::new(format!("no random numbers: {error}")))?;
        let (said_sender, said) = channel();
        let control = Arc::new(Control::default());
        let mut started =
            Threads { control: control.clone(), tallies: Vec::new(), said, handles: Vec::new() };
        for thread in 0..threads {
            let tally = Arc::new(SharedTally::default());
            let clients = Self::part(self.clients, thread, threads);
            let share = Share {
                target: arguments.target,
                reach: self.reach.clone(),
                shards: self.shards,
                connections: arguments
                    .connections
                    .map_or(clients, |connections| Self::part(connections, thread, threads).max(1)),
                plan: Plan {
                    workload: arguments.workload,
                    shape: Shape { keys: arguments.key_size.clone(), values: arguments.value_size.clone() },
                    scan_items: arguments.scan_items,
                    batch_size: arguments.batch_size,
                    workers: clients * arguments.pipeline,
                },
                distribution: arguments.distribution(),
                keys: arguments.keys,
                thread: u64::from(thread),
                threads: u64::from(threads),
                run,
                seed: seed ^ u64::from(thread),
                rate: arguments.rate.map(|rate| rate / f64::from(threads)),
                arrivals: arguments.arrivals,
                loads: self.loads,
                tally: tally.clone(),
                control: control.clone(),
                said: said_sender.clone(),
            };
            let started_thread = std::thread::Builder::new().name(format!("bench-{thread}"));
            let handle = started_thread.spawn(move || share.run());
            let failed = |error| Failure::new(format!("cannot start a thread: {error}"));
            started.handles.push(handle.map_err(failed)?);
            started.tallies.push(tally);
        }
        Ok(started)
    }

    fn measure(&self, servers: &Servers, recorder: &mut Recorder) -> Result<Row, Failure> {
        let arguments = self.arguments;
        let threads = self.start()?;
        threads.wait_until_ready(self.loads.then_some(arguments.keys))?;
        threads.control.go.store(true, Ordering::Release);
        let mut whole = Tally::default();
        let begun = Instant::now();
        for second in 0..arguments.warm_up {
            threads.wait(begun + Duration::from_secs(u64::from(second) + 1))?;
            let stretch = threads.take();
            whole.add_proofs(&stretch);
            recorder.live(self.clients, None, &stretch);
        }
        whole.add_proofs(&threads.take());
        let before = servers.sample();
        let begun = Instant::now();
        let mut per_second = Vec::new();
        let mut memory_max = before.memory;
        for second in 0..arguments.seconds {
            let from = begun.elapsed();
            threads.wait(begun + Duration::from_secs(u64::from(second) + 1))?;
            let stretch = threads.take();
            let took = begun.elapsed().saturating_sub(from);
            recorder.live(self.clients, Some(second + 1), &stretch);
            recorder.record(self.clients, took, &stretch)?;
            per_second.push(stretch.operations as f64 / took.as_secs_f64());
            memory_max = memory_max.max(servers.sample().memory);
            whole.add(&stretch);
        }
        let elapsed = begun.elapsed();
        let after = servers.sample();
        threads.end()?;
        for tally in &threads.tallies {
            whole.add_proofs(&tally.take());
        }
        let behind = threads.control.behind.load(Ordering::Relaxed);
        let clients = self.clients;
        Ok(Row { clients, elapsed, tally: whole, behind, per_second, before, after, memory_max })
    }
}

impl Threads {
    /// What all threads did since the last time.
    fn take(&self) -> Tally {
        let mut whole = Tally::default();
        for tally in &self.tallies {
            whole.add(&tally.take());
        }
        whole
    }

    /// Ends the run early if a thread cannot go on.
    fn hear(&self, timeout: Duration) -> Result<Option<Said>, Failure> {
        match self.said.recv_timeout(timeout) {
            Ok(Said::Ended(Err(failure))) => Err(self.abandon(failure)),
            Ok(said) => Ok(Some(said)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(self.abandon(Failure::new("a thread ended without a result")))
            }
        }
    }

    fn abandon(&self, failure: Failure) -> Failure {
        self.control.stop.store(true, Ordering::Release);
        self.control.go.store(true, Ordering::Release);
        failure
    }

    fn wait_until_ready(&self, loads: Option<u64>) -> Result<(), Failure> {
        let progress = loads.map(|keys| Progress::of_keys("loading", keys));
        let mut ready = 0;
        while ready < self.handles.len() {
            if let Some(Said::Ready) = self.hear(PROGRESS_INTERVAL)? {
                ready += 1;
            }
            if let Some(progress) = &progress {
                progress.at(self.control.loaded.load(Ordering::Relaxed));
            }
        }
        Ok(())
    }

    fn wait(&self, until: Instant) -> Result<(), Failure> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if let Some(Said::Ended(Ok(()))) = self.hear(left)? {
                return Err(self.abandon(Failure::new("a thread ended before its time")));
            }
        }
    }

    fn end(&self) -> Result<(), Failure> {
        self.control.stop.store(true, Ordering::Release);
        let until = Instant::now() + END_MAX;
        let mut ended = 0;
        while ended < self.handles.len() {
            let left = until.saturating_duration_since(Instant::now());
            match self.hear(left)? {
                Some(Said::Ended(_)) => ended += 1,
                Some(Said::Ready) => {}
                None => return Err(Failure::new("requests that were under way never ended")),
            }
        }
        Ok(())
    }
}

impl Share {
    fn run(self) {
        let said = self.said.clone();
        let result = match self.target {
            TargetName::Krita => self.on_our_runtime(),
            TargetName::KritaGrpc | TargetName::KritaRest | TargetName::Etcd | TargetName::Redis => {
                on_tokio(self.over_tokio())
            }
        };
        // The main thread may have given up.
        let _heard = said.send(Said::Ended(result));
    }

    fn on_our_runtime(self) -> Result<(), Failure> {
        let options = NodeOptions { thread_name: "bench".to_owned(), ..NodeOptions::default() };
        let done = block_on(options, async |runtime| {
            let target = Native::connect(runtime, self.reach.clone(), self.connections).await?;
            self.work(target).await
        });
        done.map_err(|error| Failure::new(error.to_string()))?
    }

    async fn over_tokio(self) -> Result<(), Failure> {
        let thread = usize::try_from(self.thread).unwrap_or(0);
        let (reach, connections) = (self.reach.clone(), self.connections);
        match self.target {
            TargetName::KritaGrpc => self.work(KritaGrpc::connect(&reach, connections, thread).await?).await,
            TargetName::KritaRest => {
                let workers = self.plan.workers;
                self.work(KritaRest::connect(reach, workers, thread).await?).await
            }
            TargetName::Etcd => self.work(Etcd::connect(&reach, connections, thread).await?).await,
            TargetName::Redis => self.work(Redis::connect(&reach, connections, thread).await?).await,
            TargetName::Krita => Err(Failure::new("the native driver has its own runtime")),
        }
    }

    async fn work<T: Target>(self, target: T) -> Result<(), Failure> {
        let shape = &self.plan.shape;
        let keys = Keys::new(self.distribution, self.keys, self.thread, self.threads, shape, self.shards);
        let ledger = Ledger::new(self.run, keys.count());
        let parts = ThreadParts {
            plan: self.plan,
            keys,
            ledger,
            random: Random::new(self.seed),
            rate: self.rate,
            arrivals: self.arrivals,
            tally: self.tally,
            control: self.control,
        };
        let thread = Thread::new(target, parts);
        if self.loads {
            thread.load().await.map_err(|problem| {
                Failure::new(format!("cannot load the keys: {}; does the database work?", problem.name))
            })?;
        }
        // Nobody listens if another thread has failed; then `stop` is set.
        let _heard = self.said.send(Said::Ready);
        thread.run().await;
        Ok(())
    }
}
