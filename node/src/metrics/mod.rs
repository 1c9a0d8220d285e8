//! What a node counts, and how it is shown at `/metrics`.
//!
//! - [`table`]: every metric with its type, labels and help. Nothing else may be exposed.
//! - `CoreMetrics`, here: what a core counts itself, in plain cells: recording takes no lock and no allocation. Times
//!   go into histograms of fine resolution, which are cut into the fixed buckets of the table when they are read.
//! - [`sample`]: one core's figures as they cross the mesh, and their sum. [`scrape`]: asks all cores, and reads what
//!   the engine, Raft and the runtime count for themselves: they know nothing of metrics.
//! - [`text`]: the exposition format.
//!
//! Labels are bounded: kinds of requests, doors, error codes, cores, members, and shards only where they are asked for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use krita_proto::error::{ERRORS, ErrorCode};
use krita_proto::frame::FrameKind;
use krita_proto::v1;
use krita_runtime::Instant;
use prost::Message as _;

use self::sample::CoreSample;
use self::table::{BUCKETS_US, Id};

mod sample;
mod scrape;
mod table;
mod text;

pub(crate) use text::CONTENT_TYPE;

/// Slowest time that is told apart, in microseconds; slower ones count as this.
const SLOWEST_US: u64 = 60_000_000;

/// By which door a request came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Door {
    /// The native protocol.
    Native,
    /// gRPC and REST.
    Http,
    /// Another node, on behalf of a client of its own.
    Peer,
}

impl Door {
    const ALL: [Self; 3] = [Self::Native, Self::Http, Self::Peer];

    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Http => "http",
            Self::Peer => "peer",
        }
    }
}

/// Requests that are counted, one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Put,
    Delete,
    Get,
    Batch,
    Scan,
    Verify,
}

impl Operation {
    const ALL: [Self; 6] = [Self::Put, Self::Delete, Self::Get, Self::Batch, Self::Scan, Self::Verify];

    fn of(kind: FrameKind) -> Option<Self> {
        match kind {
            FrameKind::Put => Some(Self::Put),
            FrameKind::Delete => Some(Self::Delete),
            FrameKind::Get => Some(Self::Get),
            FrameKind::Batch => Some(Self::Batch),
            FrameKind::Scan => Some(Self::Scan),
            FrameKind::Verify => Some(Self::Verify),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Get => "get",
            Self::Batch => "batch",
            Self::Scan => "scan",
            Self::Verify => "verify",
        }
    }
}

/// Answers by code; the first place is for those without an error.
const CODES: usize = ERRORS.len() + 1;

/// Times of one kind.
struct Times {
    histogram: RefCell<Histogram<u64>>,
    sum_us: Cell<u64>,
}

impl Times {
    fn new() -> Self {
        // Two digits: a bucket's bound is met within one percent.
        let histogram = Histogram::new_with_bounds(1, SLOWEST_US, 2).expect("the bounds are in order");
        Self { histogram: RefCell::new(histogram), sum_us: Cell::new(0) }
    }

    fn record(&self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(SLOWEST_US).clamp(1, SLOWEST_US);
        self.histogram.borrow_mut().saturating_record(microseconds);
        self.sum_us.set(self.sum_us.get() + microseconds);
    }

    /// How many times lie in each bucket of the table, and behind the last.
    fn buckets(&self) -> Vec<u64> {
        let histogram = self.histogram.borrow();
        let mut buckets = vec![0; BUCKETS_US.len() + 1];
        for recorded in histogram.iter_recorded() {
            let time = recorded.value_iterated_to();
            // A slot stands for its highest value, which may lie just above the bound that its times met.
            let lowest = histogram.lowest_equivalent(time);
            let bucket = BUCKETS_US.partition_point(|bound| *bound < lowest);
            buckets[bucket] += recorded.count_at_value();
        }
        buckets
    }
}

/// What one core counts itself.
pub(crate) struct CoreMetrics {
    now: Box<dyn Fn() -> Instant>,
    /// By operation, door and code.
    requests: [[[Cell<u64>; CODES]; Door::ALL.len()]; Operation::ALL.len()],
    times: [Times; Operation::ALL.len()],
    in_flight: Cell<u64>,
    log_writes: Times,
    pub(crate) connections_accepted: Cell<u64>,
    pub(crate) connections_refused: Cell<u64>,
    pub(crate) raft_messages_sent: Cell<u64>,
    pub(crate) raft_messages_received: Cell<u64>,
    pub(crate) reads_fallen_back: Cell<u64>,
}

/// Counts one more.
pub(crate) fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl CoreMetrics {
    /// Nothing has been counted yet. `now` is the core's clock.
    pub(crate) fn new(now: impl Fn() -> Instant + 'static) -> Rc<Self> {
        Rc::new(Self {
            now: Box::new(now),
            requests: Default::default(),
            times: std::array::from_fn(|_| Times::new()),
            in_flight: Cell::new(0),
            log_writes: Times::new(),
            connections_accepted: Cell::new(0),
            connections_refused: Cell::new(0),
            raft_messages_sent: Cell::new(0),
            raft_messages_received: Cell::new(0),
            reads_fallen_back: Cell::new(0),
        })
    }

    /// A request has come in. `None` if it is of a kind that is not counted.
    pub(crate) fn begin(self: &Rc<Self>, door: Door, kind: FrameKind) -> Option<Measured> {
        let operation = Operation::of(kind)?;
        count(&self.in_flight);
        Some(Measured { metrics: self.clone(), door, operation, began: (self.now)() })
    }

    /// A batch of the log has been written and flushed.
    pub(crate) fn log_written(&self, began: Instant) {
        self.log_writes.record((self.now)().since(began));
    }

    fn sample(&self, sample: &mut CoreSample) {
        for operation in Operation::ALL {
            for door in Door::ALL {
                for (code, cell) in self.requests[operation as usize][door as usize].iter().enumerate() {
                    // An error that never happened has no series; that all went well has one from the start.
                    if cell.get() > 0 || code == 0 {
                        let labels = [operation.name(), door.name(), code_name(code)];
                        sample.add(Id::Requests, &labels, cell.get());
                    }
                }
            }
            sample.add_times(Id::RequestTimes, &[operation.name()], &self.times[operation as usize]);
        }
        sample.add(Id::RequestsInFlight, &[], self.in_flight.get());
        sample.add_times(Id::LogWriteTimes, &[], &self.log_writes);
        sample.add(Id::ConnectionsAccepted, &[], self.connections_accepted.get());
        sample.add(Id::ConnectionsRefused, &[], self.connections_refused.get());
        sample.add(Id::ReadsFallenBack, &[], self.reads_fallen_back.get());
        sample.add(Id::RaftMessages, &["sent"], self.raft_messages_sent.get());
        sample.add(Id::RaftMessages, &["received"], self.raft_messages_received.get());
    }
}

/// The name of a place among the codes.
fn code_name(place: usize) -> &'static str {
    match place.checked_sub(1) {
        None => "OK",
        Some(row) => ERRORS[row].name,
    }
}

fn place_of(code: ErrorCode) -> usize {
    ERRORS.iter().position(|row| row.code == code).map_or(0, |row| row + 1)
}

/// A request that is being worked on. It counts when it is answered.
pub(crate) struct Measured {
    metrics: Rc<CoreMetrics>,
    door: Door,
    operation: Operation,
    began: Instant,
}

impl Measured {
    /// It has been answered, with an encoded message of this kind.
    pub(crate) fn end(self, kind: FrameKind, body: &Bytes) {
        let metrics = &self.metrics;
        let place = match kind {
            // Errors are few; their body says which one it is.
            FrameKind::Error => {
                let code = v1::Error::decode(&body[..]).map_or(0, |error| error.code);
                place_of(ErrorCode::from_number(code))
            }
            _ => 0,
        };
        count(&metrics.requests[self.operation as usize][self.door as usize][place]);
        metrics.times[self.operation as usize].record((metrics.now)().since(self.began));
        metrics.in_flight.set(metrics.in_flight.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cut_into_the_buckets_of_the_table() {
        let times = Times::new();
        let (first, last) = (BUCKETS_US[0], BUCKETS_US[BUCKETS_US.len() - 1]);
        for microseconds in [1, first, first + first / 10, last, last * 2] {
            times.record(Duration::from_micros(microseconds));
        }
        let buckets = times.buckets();
        assert_eq!((buckets[0], buckets[1]), (2, 1));
        assert_eq!((buckets[BUCKETS_US.len() - 1], buckets[BUCKETS_US.len()]), (1, 1));
        assert_eq!(buckets.iter().sum::<u64>(), 5);
        for bound in BUCKETS_US {
            let times = Times::new();
            times.record(Duration::from_micros(bound));
            let bucket = times.buckets().iter().position(|count| *count == 1).unwrap();
            assert_eq!(BUCKETS_US[bucket], bound, "what meets a bound lies within it");
        }
    }

    #[test]
    fn a_million_requests_are_a_million() {
        let now = Cell::new(0);
        let metrics = CoreMetrics::new(move || {
            now.set(now.get() + 100_000);
            Instant::from_nanoseconds(now.get())
        });
        for _ in 0..1_000_000 {
            let measured = metrics.begin(Door::Native, FrameKind::Get);
            measured.unwrap().end(FrameKind::GetReply, &Bytes::new());
        }
        let mut sample = CoreSample::default();
        metrics.sample(&mut sample);
        assert_eq!(sample.value(Id::Requests, &["get", "native", "OK"]), Some(1e6));
        assert_eq!(metrics.times[Operation::Get as usize].buckets()[1], 1_000_000);
    }

    #[test]
    fn a_request_counts_once_when_it_is_answered() {
        let now = Rc::new(Cell::new(1_000));
        let clock = now.clone();
        let metrics = CoreMetrics::new(move || Instant::from_nanoseconds(clock.get()));
        let good = metrics.begin(Door::Native, FrameKind::Put).unwrap();
        let bad = metrics.begin(Door::Native, FrameKind::Put).unwrap();
        assert!(metrics.begin(Door::Native, FrameKind::ClusterStatus).is_none());
        assert_eq!(metrics.in_flight.get(), 2);
        now.set(now.get() + 3_000_000);
        good.end(FrameKind::WriteReply, &Bytes::new());
        let error = v1::Error { code: ErrorCode::Overloaded as u32, ..Default::default() };
        bad.end(FrameKind::Error, &error.encode_to_vec().into());
        let mut sample = CoreSample::default();
        metrics.sample(&mut sample);
        assert_eq!(sample.value(Id::Requests, &["put", "native", "OK"]), Some(1.0));
        assert_eq!(sample.value(Id::Requests, &["put", "native", "OVERLOADED"]), Some(1.0));
        assert_eq!(sample.value(Id::Requests, &["get", "native", "OK"]), Some(0.0));
        assert_eq!(sample.value(Id::RequestsInFlight, &[]), Some(0.0));
        assert_eq!(metrics.times[Operation::Put as usize].sum_us.get(), 6_000);
    }
}
