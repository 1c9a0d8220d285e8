//! One core's figures at one moment, as they cross the mesh, and how those of all cores become one.

use super::Times;
use super::table::{Id, Kind};

/// A line of a metric: its labels' values, and its value or buckets.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Series {
    /// The place of the metric in the table.
    #[prost(uint32, tag = "1")]
    metric: u32,
    #[prost(string, repeated, tag = "2")]
    pub(super) labels: Vec<String>,
    /// Of a histogram: the sum of its times, in seconds.
    #[prost(double, tag = "3")]
    pub(super) value: f64,
    /// Of a histogram: how many times lie in each bucket, each time in one.
    #[prost(uint64, repeated, tag = "4")]
    pub(super) buckets: Vec<u64>,
}

/// All lines of a core.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CoreSample {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

impl CoreSample {
    /// Adds a line whose value is a whole number.
    pub(super) fn add(&mut self, id: Id, labels: &[&str], value: u64) {
        // Exact up to 2^53, as Prometheus has it.
        self.add_fraction(id, labels, value as f64);
    }

    /// Adds a line.
    pub(super) fn add_fraction(&mut self, id: Id, labels: &[&str], value: f64) {
        debug_assert_eq!(labels.len(), id.metric().labels.len(), "{}", id.metric().name);
        debug_assert_ne!(id.metric().kind, Kind::Histogram, "{}", id.metric().name);
        self.push(id, labels, value, Vec::new());
    }

    /// Adds a histogram's line.
    pub(super) fn add_times(&mut self, id: Id, labels: &[&str], times: &Times) {
        debug_assert_eq!(id.metric().kind, Kind::Histogram, "{}", id.metric().name);
        self.push(id, labels, times.sum_us.get() as f64 / 1e6, times.buckets());
    }

    fn push(&mut self, id: Id, labels: &[&str], value: f64, buckets: Vec<u64>) {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.series.push(Series { metric: id as u32, labels, value, buckets });
    }

    /// Takes in the lines of another core: those with the same labels become their sum.
    pub(super) fn merge(&mut self, other: Self) {
        self.series.extend(other.series);
        self.sort();
        self.series.dedup_by(|next, kept| {
            let is_same = next.metric == kept.metric && next.labels == kept.labels;
            if is_same {
                kept.value += next.value;
                for (kept, next) in kept.buckets.iter_mut().zip(&next.buckets) {
                    *kept += next;
                }
            }
            is_same
        });
    }

    fn sort(&mut self) {
        self.series.sort_by(|a, b| (a.metric, &a.labels).cmp(&(b.metric, &b.labels)));
    }

    /// The lines of a metric.
    pub(super) fn of(&self, id: Id) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| series.metric == id as u32)
    }

    /// The value of one line.
    #[cfg(test)]
    pub(super) fn value(&self, id: Id, labels: &[&str]) -> Option<f64> {
        self.of(id).find(|series| series.labels == labels).map(|series| series.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use std::time::Duration;

    #[test]
    fn cores_add_up_and_labels_keep_apart() {
        let core = |busy: f64| {
            let times = Times::new();
            times.record(Duration::from_micros(70));
            let mut sample = CoreSample::default();
            sample.add(Id::LogWrites, &[], 2);
            sample.add_fraction(Id::CoreBusy, &[if busy > 1.0 { "1" } else { "0" }], busy);
            sample.add_times(Id::LogWriteTimes, &[], &times);
            CoreSample::decode(&sample.encode_to_vec()[..]).unwrap()
        };
        let mut whole = core(0.5);
        whole.merge(core(1.5));
        assert_eq!(whole.value(Id::LogWrites, &[]), Some(4.0));
        assert_eq!(whole.value(Id::CoreBusy, &["0"]), Some(0.5));
        assert_eq!(whole.value(Id::CoreBusy, &["1"]), Some(1.5));
        let times = whole.of(Id::LogWriteTimes).next().unwrap();
        assert_eq!((times.buckets[1], times.buckets.iter().sum::<u64>()), (2, 2));
    }
}
