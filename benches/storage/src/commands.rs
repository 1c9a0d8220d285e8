//! The measurements, each for all stores in turn.

use std::path::PathBuf;
use std::{fmt::Write, fs};

use serde_json::json;

use crate::phase::{ColdReads, Opened, Outcome, ReadCost, Resident, Task, Written};
use crate::plot::{self, Line};
use crate::report::{Report, bytes, number, ratio};
use crate::run::{Bench, Running, run_child, settings};
use crate::stores::{Budget, Failure, StoreKind};
use crate::work::Work;

const PROCESS_BYTES: &str = "process: bytes that the store's process sent to the device (/proc/self/io) until it was \
    at rest, zero-filling of new segments counted apart; device: bytes that the whole device took meanwhile, the file \
    system's journal and other processes included";

fn report(
    bench: &Bench,
    budget: Budget,
    title: String,
    columns: Vec<&'static str>,
) -> Result<Report, Failure> {
    let mut lines = Vec::new();
    for store in &bench.stores {
        lines.push(format!("{}: {}", store.name(), settings(*store, budget)?));
    }
    Ok(Report { title, notes: Vec::new(), settings: lines, columns, rows: Vec::new(), data: Vec::new() })
}

fn unexpected(outcome: &Outcome) -> Failure {
    format!("a phase told something else than was asked: {outcome:?}").into()
}

/// Overwrites keys uniformly, this many times as many as there are.
#[derive(Clone, Debug)]
pub struct Overwriting {
    /// Puts for each key, on average.
    pub rounds: f64,
    /// Looks at the disk for each round.
    pub samples_per_round: u64,
    /// Where the samples go.
    pub csv: Option<PathBuf>,
    /// Where the plot goes.
    pub png: Option<PathBuf>,
}

fn overwrite(
    bench: &Bench,
    store: StoreKind,
    work: Work,
    budget: Budget,
    how: &Overwriting,
) -> Result<(Written, Written), Failure> {
    let loaded = bench.load(store, work, budget)?;
    bench.spoil(store, work)?;
    let puts = (work.keys as f64 * how.rounds) as u64;
    let sample_every = (work.keys / how.samples_per_round.max(1)).max(1);
    eprintln!("{}: overwriting {} times", store.name(), number(puts));
    let outcome = run_child(&bench.phase(store, work, budget, Task::Overwrite { puts, sample_every }))?;
    bench.finish(store, work)?;
    let Outcome::Written(written) = outcome else { return Err(unexpected(&outcome)) };
    Ok((loaded, written))
}

/// Write amplification of the load and of uniform overwrites, with the space that each store then needs.
pub fn amplification(
    bench: &Bench,
    works: &[Work],
    budget: Budget,
    how: &Overwriting,
) -> Result<Report, Failure> {
    let title = format!(
        "Device bytes for each byte of keys and values: loading in no order, then {} overwrites of each key on \
         average, uniformly, a flush for every {} of them.",
        how.rounds, works[0].batch
    );
    let columns = vec![
        "store",
        "keys x value",
        "load: process",
        "load: device",
        "overwrite: process",
        "overwrite: device",
        "zero-fill",
        "puts/s",
        "space: most",
        "space: at rest",
    ];
    let mut report = report(bench, budget, title, columns)?;
    report.notes.push(PROCESS_BYTES.to_owned());
    report.notes.push("space: bytes given by the file system / live bytes".to_owned());
    let mut csv = String::from("store,keys,value_bytes,overwrites,seconds,disk_bytes,live_bytes\n");
    for work in works {
        let mut lines = Vec::new();
        for store in &bench.stores {
            let (loaded, written) = overwrite(bench, *store, *work, budget, how)?;
            let live = work.live_bytes();
            let most = written.samples.iter().map(|sample| sample.disk_bytes).max().unwrap_or(0);
            let net = |written: &Written| written.process_bytes.saturating_sub(written.preparation_bytes);
            let device = |written: &Written| match written.device_bytes {
                Some(bytes) => ratio(bytes.saturating_sub(written.preparation_bytes), written.user_bytes),
                None => "unknown".to_owned(),
            };
            report.rows.push(vec![
                store.name().to_owned(),
                format!("{} x {} B", number(work.keys), work.value_bytes),
                ratio(net(&loaded), loaded.user_bytes),
                device(&loaded),
                ratio(net(&written), written.user_bytes),
                device(&written),
                bytes(loaded.preparation_bytes + written.preparation_bytes),
                number((how.rounds * work.keys as f64 / written.seconds) as u64),
                ratio(most, live),
                ratio(written.disk_bytes, live),
            ]);
            for sample in &written.samples {
                let (puts, seconds, disk) = (sample.puts, sample.seconds, sample.disk_bytes);
                let (name, keys, value) = (store.name(), work.keys, work.value_bytes);
                writeln!(csv, "{name},{keys},{value},{puts},{seconds:.2},{disk},{live}")?;
            }
            let point = |puts: u64, disk: u64| (puts as f64 / work.keys as f64, disk as f64 / live as f64);
            let points = written.samples.iter().map(|sample| point(sample.puts, sample.disk_bytes)).collect();
            lines.push(Line { name: store.name().to_owned(), points });
            report.data.push(json!({ "store": store, "work": work, "load": loaded, "overwrite": written }));
        }
        if let Some(png) = &how.png {
            let title = format!(
                "Space amplification under uniform overwrite, {} keys with values of {} bytes",
                number(work.keys),
                work.value_bytes
            );
            plot::draw(&png_of(png, works, work), &title, &lines)?;
        }
    }
    if let Some(path) = &how.csv {
        fs::write(path, csv)?;
    }
    Ok(report)
}

/// One plot for each size of values: with several, the size stands in the file's name.
fn png_of(png: &std::path::Path, works: &[Work], work: &Work) -> PathBuf {
    if works.len() == 1 {
        return png.to_owned();
    }
    let stem = png.file_stem().unwrap_or_default().to_string_lossy();
    png.with_file_name(format!("{stem}-{}.png", work.value_bytes))
}

/// How long a store takes to be ready, after it was closed and after it was killed under load.
pub fn recovery(
    bench: &Bench,
    works: &[Work],
    budget: Budget,
    puts_before_kill: u64,
) -> Result<Report, Failure> {
    let title = format!(
        "From the start of opening to the first value read, nothing in the page cache: after a clean stop, and after \
         kill -9 behind {} overwrites.",
        number(puts_before_kill)
    );
    let columns =
        vec!["store", "keys x value", "clean: ready", "clean: read", "killed: ready", "killed: read"];
    let mut report = report(bench, budget, title, columns)?;
    report.notes.push("read: bytes that were fetched from the device until ready".to_owned());
    for work in works {
        for store in &bench.stores {
            bench.load(*store, *work, budget)?;
            let clean = opened(bench, *store, *work, budget)?;
            bench.spoil(*store, *work)?;
            churn_and_kill(bench, *store, *work, budget, puts_before_kill)?;
            let killed = opened(bench, *store, *work, budget)?;
            bench.finish(*store, *work)?;
            report.rows.push(vec![
                store.name().to_owned(),
                format!("{} x {} B", number(work.keys), work.value_bytes),
                format!("{:.2} s", clean.first_read_seconds),
                bytes(clean.read_bytes),
                format!("{:.2} s", killed.first_read_seconds),
                bytes(killed.read_bytes),
            ]);
            report.data.push(json!({ "store": store, "work": work, "clean": clean, "killed": killed }));
        }
    }
    Ok(report)
}

fn opened(bench: &Bench, store: StoreKind, work: Work, budget: Budget) -> Result<Opened, Failure> {
    eprintln!("{}: opening", store.name());
    match run_child(&bench.phase(store, work, budget, Task::Open))? {
        Outcome::Opened(opened) => Ok(opened),
        other => Err(unexpected(&other)),
    }
}

fn churn_and_kill(
    bench: &Bench,
    store: StoreKind,
    work: Work,
    budget: Budget,
    puts: u64,
) -> Result<(), Failure> {
    eprintln!("{}: overwriting until killed", store.name());
    let mut running = Running::start(&bench.phase(store, work, budget, Task::Churn))?;
    loop {
        match running.next()? {
            Outcome::Churned(done) if done < puts => {}
            Outcome::Churned(_) => return running.kill(),
            other => return Err(unexpected(&other)),
        }
    }
}

/// Resident memory for each key.
pub fn memory(bench: &Bench, works: &[Work], budget: Budget, gets: u64) -> Result<Report, Failure> {
    let title = format!(
        "Resident memory (RssAnon of /proc, less that of the process before opening): just opened, and after {} \
         random reads.",
        number(gets)
    );
    let columns =
        vec!["store", "keys x value", "opened", "per key", "after reads", "less cache budget, per key"];
    let mut report = report(bench, budget, title, columns)?;
    for work in works {
        for store in &bench.stores {
            bench.load(*store, *work, budget)?;
            eprintln!("{}: looking at memory", store.name());
            let outcome = run_child(&bench.phase(*store, *work, budget, Task::Memory { gets }))?;
            bench.finish(*store, *work)?;
            let Outcome::Resident(resident) = outcome else { return Err(unexpected(&outcome)) };
            let Resident { opened_bytes, after_reads_bytes } = resident;
            let per_key = |bytes: u64| format!("{:.2} B", bytes as f64 / work.keys as f64);
            report.rows.push(vec![
                store.name().to_owned(),
                format!("{} x {} B", number(work.keys), work.value_bytes),
                bytes(opened_bytes),
                per_key(opened_bytes),
                bytes(after_reads_bytes),
                per_key(after_reads_bytes.saturating_sub(budget.cache_bytes)),
            ]);
            report.data.push(json!({ "store": store, "work": work, "resident": resident }));
        }
    }
    Ok(report)
}

/// Reads of what is not in memory, one after the other.
pub fn cold_reads(bench: &Bench, works: &[Work], budget: Budget, gets: u64) -> Result<Report, Failure> {
    let title = format!(
        "{} reads of random keys that are there, then as many of keys that are not, one at a time, from a store just \
         opened with nothing in the page cache.",
        number(gets)
    );
    let columns = vec![
        "store",
        "keys x value",
        "hit: mean",
        "p50",
        "p99",
        "read",
        "device reads",
        "miss: mean",
        "p99",
        "read",
        "device reads",
    ];
    let mut report = report(bench, budget, title, columns)?;
    report.notes.push(
        "read: bytes for each get that the process fetched from the device (/proc/self/io); device reads: requests \
         for each get that the whole device completed (/sys), other processes included"
            .to_owned(),
    );
    report.notes.push(
        "krita and rocksdb read with O_DIRECT; fjall and redb through the page cache, which warms up as they read"
            .to_owned(),
    );
    for work in works {
        for store in &bench.stores {
            bench.load(*store, *work, budget)?;
            eprintln!("{}: reading cold", store.name());
            let outcome = run_child(&bench.phase(*store, *work, budget, Task::ColdReads { gets }))?;
            bench.finish(*store, *work)?;
            let Outcome::ColdReads(ColdReads { hits, misses }) = outcome else {
                return Err(unexpected(&outcome));
            };
            let reads = |cost: &ReadCost| match cost.device_reads_per_get {
                Some(reads) => format!("{reads:.2}"),
                None => "unknown".to_owned(),
            };
            report.rows.push(vec![
                store.name().to_owned(),
                format!("{} x {} B", number(work.keys), work.value_bytes),
                format!("{:.0} µs", hits.mean_micros),
                format!("{} µs", hits.p50_micros),
                format!("{} µs", hits.p99_micros),
                bytes(hits.bytes_per_get as u64),
                reads(&hits),
                format!("{:.1} µs", misses.mean_micros),
                format!("{} µs", misses.p99_micros),
                bytes(misses.bytes_per_get as u64),
                reads(&misses),
            ]);
            report.data.push(json!({ "store": store, "work": work, "hits": hits, "misses": misses }));
        }
    }
    Ok(report)
}
