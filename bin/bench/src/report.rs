//! How results are told: a line per second, a table, JSON, and a log of histograms.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde_json::{Map, Value, json};

use crate::Failure;
use crate::arguments::Arguments;
use crate::servers::Sample;
use crate::tally::Tally;
use crate::workload::Operation;

/// The result of one number of clients.
#[derive(Clone, Debug)]
pub struct Row {
    /// How many there were.
    pub clients: u32,
    /// How long the window was.
    pub elapsed: Duration,
    /// What happened in it.
    pub tally: Tally,
    /// Operations of an open loop that were due and had not begun.
    pub behind: u64,
    /// Operations of each second.
    pub per_second: Vec<f64>,
    /// The servers when the window began.
    pub before: Sample,
    /// The servers when it ended.
    pub after: Sample,
    /// The most memory that they had in between, in bytes.
    pub memory_max: Option<u64>,
}

impl Row {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        // Exact up to 2^53 operations.
        self.tally.operations as f64 / self.elapsed.as_secs_f64()
    }

    /// Processor time of all servers for each operation, in microseconds.
    pub fn processor_us(&self) -> Option<f64> {
        let spent = self.after.processor?.saturating_sub(self.before.processor?);
        self.per_operation(spent.as_secs_f64() * 1e6)
    }

    fn per_operation(&self, amount: f64) -> Option<f64> {
        (self.tally.operations > 0).then(|| amount / self.tally.operations as f64)
    }

    /// Flushes of the device per second.
    pub fn flushes_per_second(&self) -> Option<f64> {
        let flushes = self.after.flushes?.saturating_sub(self.before.flushes?);
        Some(flushes as f64 / self.elapsed.as_secs_f64())
    }

    /// Bytes that all servers wrote for each byte of keys and values that was acknowledged.
    pub fn disk_bytes_per_user_byte(&self) -> Option<f64> {
        let written = self.after.disk_written?.saturating_sub(self.before.disk_written?);
        let user = self.tally.bytes_written;
        (user > 0).then(|| written as f64 / user as f64)
    }
}

fn shown(number: Option<f64>, digits: usize) -> String {
    number.map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
}

/// One line of the table, with its head above the first.
pub fn table(row: &Row, is_first: bool, arguments: &Arguments) {
    if is_first {
        println!(
            "{} on {}: {} keys, {} by {} bytes, {:?}, pipelining {}, {}, {} s each",
            arguments.workload.name(),
            arguments.target.name(),
            arguments.keys,
            arguments.key_size,
            arguments.value_size,
            arguments.distribution(),
            arguments.pipeline,
            arguments.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("{rate} per second")),
            arguments.seconds
        );
        println!(
            "{:>7}  {:>9}  {:>8}  {:>8}  {:>8}  {:>8}  {:>7}  {:>9}  {:>9}  {:>10}  {:>8}",
            "clients",
            "ops/s",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "max us",
            "errors",
            "CPU us/op",
            "flushes/s",
            "disk/user B",
            "MiB"
        );
    }
    let times = row.tally.times();
    println!(
        "{:>7}  {:>9.0}  {:>8}  {:>8}  {:>8}  {:>8}  {:>7}  {:>9}  {:>9}  {:>10}  {:>8}",
        row.clients,
        row.rate(),
        times.value_at_quantile(0.5),
        times.value_at_quantile(0.99),
        times.value_at_quantile(0.999),
        times.max(),
        row.tally.error_count(),
        shown(row.processor_us(), 1),
        shown(row.flushes_per_second(), 0),
        shown(row.disk_bytes_per_user_byte(), 2),
        shown(row.memory_max.map(|bytes| bytes as f64 / f64::from(1 << 20)), 0),
    );
    if arguments.workload.mix().len() > 1 {
        for operation in Operation::ALL {
            let Some(times) = row.tally.times_of(operation) else { continue };
            println!(
                "         {:>17}: {} times, p50 {} us, p99 {} us, p99.9 {} us",
                operation.name(),
                times.len(),
                times.value_at_quantile(0.5),
                times.value_at_quantile(0.99),
                times.value_at_quantile(0.999)
            );
        }
    }
    for (error, count) in &row.tally.errors {
        println!("         {error}: {count}");
    }
    if row.tally.conflicts > 0 {
        println!("         swaps that another writer forestalled: {}", row.tally.conflicts);
    }
    if row.behind > 0 {
        println!("         operations that were due and had not begun: {}", row.behind);
    }
}

/// Everything as one JSON value.
pub fn json(rows: &[Row], arguments: &Arguments) {
    println!("{}", document(rows, arguments));
}

/// The same as a value.
pub fn document(rows: &[Row], arguments: &Arguments) -> Value {
    let rows: Vec<Value> = rows.iter().map(|row| row_json(row, arguments)).collect();
    json!({
        "target": arguments.target.name(),
        "operation": arguments.workload.name(),
        "keys": arguments.keys,
        "key_size": arguments.key_size.to_string(),
        "value_size": arguments.value_size.to_string(),
        "distribution": format!("{:?}", arguments.distribution()),
        "pipeline": arguments.pipeline,
        "threads": arguments.threads,
        "rate": arguments.rate,
        "seconds": arguments.seconds,
        "rows": rows,
    })
}

fn times_json(times: &Histogram<u64>) -> Map<String, Value> {
    let fields = [
        ("operations", json!(times.len())),
        ("p50_us", json!(times.value_at_quantile(0.5))),
        ("p90_us", json!(times.value_at_quantile(0.9))),
        ("p99_us", json!(times.value_at_quantile(0.99))),
        ("p999_us", json!(times.value_at_quantile(0.999))),
        ("max_us", json!(times.max())),
        ("mean_us", json!(times.mean())),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn row_json(row: &Row, arguments: &Arguments) -> Value {
    let kinds: Map<String, Value> = Operation::ALL
        .into_iter()
        .filter_map(|kind| {
            Some((kind.name().to_owned(), Value::Object(times_json(row.tally.times_of(kind)?))))
        })
        .collect();
    let mut fields = times_json(&row.tally.times());
    let more = json!({
        "target": arguments.target.name(),
        "operation": arguments.workload.name(),
        "clients": row.clients,
        "value_size": arguments.value_size.to_string(),
        "ops_per_second": row.rate(),
        "by_operation": kinds,
        "errors": row.tally.errors,
        "conflicts": row.tally.conflicts,
        "behind": row.behind,
        "values_checked": row.tally.checked,
        "values_wrong": row.tally.wrong(),
        "bytes_written": row.tally.bytes_written,
        "bytes_read": row.tally.bytes_read,
        "server_cpu_us_per_op": row.processor_us(),
        "flushes_per_second": row.flushes_per_second(),
        "disk_bytes_per_user_byte": row.disk_bytes_per_user_byte(),
        "server_memory_bytes": row.memory_max,
    });
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    Value::Object(fields)
}

/// Tells of every second while it passes, and keeps it.
pub struct Recorder {
    is_quiet: bool,
    log: Option<HistogramLog>,
}

struct HistogramLog {
    file: BufWriter<File>,
    started: SystemTime,
    begun: std::time::Instant,
}

impl Recorder {
    /// Begins the log of histograms, if there is to be one.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub fn start(arguments: &Arguments) -> Result<Self, Failure> {
        let log = match &arguments.hdr_log {
            None => None,
            Some(path) => {
                let file = File::create(path)
                    .map_err(|error| Failure::new(format!("cannot make {}: {error}", path.display())))?;
                let (started, begun) = (SystemTime::now(), std::time::Instant::now());
                let mut log = HistogramLog { file: BufWriter::new(file), started, begun };
                log.head().map_err(|error| Failure::new(format!("cannot write the log: {error}")))?;
                Some(log)
            }
        };
        Ok(Self { is_quiet: arguments.quiet, log })
    }

    /// A line about the second that has passed; `second` is `None` while the clients warm up.
    pub fn live(&self, clients: u32, second: Option<u32>, stretch: &Tally) {
        if self.is_quiet {
            return;
        }
        let times = stretch.times();
        let when = second.map_or_else(|| "warm-up".to_owned(), |second| format!("{second} s"));
        eprintln!(
            "{clients:>5} clients  {when:>8}  {:>8} ops  p50 {:>6} us  p99 {:>7} us  max {:>8} us  {} errors",
            stretch.operations,
            times.value_at_quantile(0.5),
            times.value_at_quantile(0.99),
            times.max(),
            stretch.error_count()
        );
    }

    /// Keeps a second's histograms.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn record(&mut self, clients: u32, took: Duration, stretch: &Tally) -> Result<(), Failure> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append(clients, took, stretch)
            .map_err(|error| Failure::new(format!("cannot write the log: {error}")))
    }
}

impl HistogramLog {
    fn head(&mut self) -> Result<(), std::io::Error> {
        let since_epoch = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        writeln!(self.file, "#krita-bench, times in milliseconds, tags: clients and operation")?;
        writeln!(self.file, "#[StartTime: {:.3} (seconds since epoch)]", since_epoch.as_secs_f64())?;
        self.file.flush()
    }

    fn append(&mut self, clients: u32, took: Duration, stretch: &Tally) -> Result<(), String> {
        let from = self.begun.elapsed().saturating_sub(took);
        let mut serializer = V2DeflateSerializer::new();
        let mut builder = IntervalLogWriterBuilder::new();
        // The tools expect nanoseconds over a million; ours are microseconds.
        let builder = builder.with_max_value_divisor(1_000.0);
        let log = builder.begin_log_with(&mut self.file, &mut serializer);
        let mut log = log.map_err(|error| error.to_string())?;
        for operation in Operation::ALL {
            let Some(times) = stretch.times_of(operation) else { continue };
            let tag = format!("{clients}-{}", operation.name());
            let tag = Tag::new(&tag).ok_or("a tag has a character that tags have not")?;
            log.write_histogram(times, from, took, Some(tag)).map_err(|error| error.to_string())?;
        }
        self.file.flush().map_err(|error| error.to_string())
    }
}
