//! How results look.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::arguments::BenchArguments;
use super::client::Tally;

/// The result of one number of clients.
pub(super) struct Row {
    pub(super) clients: u32,
    pub(super) seconds: f64,
    pub(super) tally: Tally,
    /// Processor time of all servers within the window.
    pub(super) server_time: Option<Duration>,
}

impl Row {
    fn operations(&self) -> u64 {
        self.tally.times.len()
    }

    fn per_second(&self) -> f64 {
        // Exact up to 2^53 operations.
        self.operations() as f64 / self.seconds
    }

    fn server_us(&self) -> Option<f64> {
        let operations = self.operations();
        let time = self.server_time.filter(|_| operations > 0)?;
        Some(time.as_secs_f64() * 1e6 / operations as f64)
    }

    fn errors(&self) -> u64 {
        self.tally.errors.values().sum()
    }
}

/// One line of the table, with its head above the first.
pub(super) fn text(row: &Row, is_first: bool, arguments: &BenchArguments) {
    if is_first {
        println!(
            "{}, {} keys, values of {} bytes, {} s each",
            arguments.workload.name(),
            arguments.keys,
            arguments.value_bytes,
            arguments.seconds
        );
        println!(
            "{:>7}  {:>9}  {:>8}  {:>8}  {:>8}  {:>8}  {:>6}  {:>10}",
            "clients", "ops/s", "p50 us", "p99 us", "p99.9 us", "max us", "errors", "CPU us/op"
        );
    }
    let times = &row.tally.times;
    println!(
        "{:>7}  {:>9.0}  {:>8}  {:>8}  {:>8}  {:>8}  {:>6}  {:>10}",
        row.clients,
        row.per_second(),
        times.value_at_quantile(0.5),
        times.value_at_quantile(0.99),
        times.value_at_quantile(0.999),
        times.max(),
        row.errors(),
        row.server_us().map_or("-".to_owned(), |us| format!("{us:.1}")),
    );
    for (error, count) in &row.tally.errors {
        println!("         {error}: {count}");
    }
}

/// Everything as one JSON value.
pub(super) fn json(rows: &[Row], arguments: &BenchArguments) {
    let results: Vec<Value> = rows.iter().map(row_json).collect();
    let whole = json!({
        "workload": arguments.workload.name(),
        "keys": arguments.keys,
        "value_bytes": arguments.value_bytes,
        "seconds": arguments.seconds,
        "results": results,
    });
    println!("{whole}");
}

fn row_json(row: &Row) -> Value {
    let times = &row.tally.times;
    let errors: Map<String, Value> =
        row.tally.errors.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
    json!({
        "clients": row.clients,
        "operations": row.operations(),
        "operations_per_second": row.per_second(),
        "p50_us": times.value_at_quantile(0.5),
        "p99_us": times.value_at_quantile(0.99),
        "p999_us": times.value_at_quantile(0.999),
        "max_us": times.max(),
        "errors": errors,
        "values_checked": row.tally.checked,
        "values_wrong": row.tally.wrong,
        "server_cpu_us_per_operation": row.server_us(),
    })
}
