//! What the nodes say in their logs, counted: elections, snapshots, conflicts. In a replay of one seed the log is
//! printed too.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// What has been said so far. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Heard {
    inner: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    /// How often somebody became the leader of this shard in this term: more than once is two leaders.
    leads: BTreeMap<(u64, u64), u32>,
    snapshots_installed: u64,
    conflicts: u64,
    handoffs: u64,
    corruptions: u64,
    /// How often each replica was opened empty: a second time it would have forgotten.
    opened: BTreeMap<u64, u32>,
    dropped: u64,
    told_removed: u64,
}

/// Totals of [`Heard`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) elections: u64,
    pub(crate) snapshots_installed: u64,
    pub(crate) conflicts: u64,
    pub(crate) handoffs: u64,
    pub(crate) corruptions: u64,
    pub(crate) opened: u64,
    pub(crate) dropped: u64,
    pub(crate) told_removed: u64,
    /// Replicas that were opened empty more than once.
    pub(crate) opened_again: Vec<u64>,
    /// Shards and terms that had more than one leader.
    pub(crate) double_leaders: Vec<(u64, u64)>,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn story(&self) -> Story {
        let counts = self.lock();
        Story {
            elections: counts.leads.len() as u64,
            snapshots_installed: counts.snapshots_installed,
            conflicts: counts.conflicts,
            handoffs: counts.handoffs,
            corruptions: counts.corruptions,
            opened: counts.opened.len() as u64,
            dropped: counts.dropped,
            told_removed: counts.told_removed,
            opened_again: counts.opened.iter().filter(|(_, times)| **times > 1).map(|(id, _)| *id).collect(),
            double_leaders: counts.leads.iter().filter(|(_, times)| **times > 1).map(|(at, _)| *at).collect(),
        }
    }
}

impl Counts {
    fn take(&mut self, fields: &Fields) {
        match fields.message.as_str() {
            "leads" => *self.leads.entry((fields.shard, fields.term)).or_default() += 1,
            "installed a snapshot" => self.snapshots_installed += 1,
            "entries of another leader are replaced" => self.conflicts += 1,
            "more cores than logs: handing shards to new logs" => self.handoffs += 1,
            "corruption found by a read" => self.corruptions += 1,
            "opened a new replica, empty" => *self.opened.entry(fields.replica).or_default() += 1,
            "a replica that was removed is gone" => self.dropped += 1,
            "this replica goes" => self.told_removed += u64::from(fields.reason.contains("did not listen")),
            _ => {}
        }
    }
}

/// The fields that are looked at.
#[derive(Default)]
struct Fields {
    message: String,
    shard: u64,
    term: u64,
    replica: u64,
    reason: String,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "shard" => self.shard = value,
            "term" => self.term = value,
            "replica" => self.replica = value,
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "reason" {
            value.clone_into(&mut self.reason);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

struct Counter(Heard);

impl<S: Subscriber> Layer<S> for Counter {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.0.lock().take(&fields);
    }
}

/// Runs `body` and counts what the nodes say in it. `shown`: prints their log, filtered by `RUST_LOG`; each line says
/// which host, core and task speaks, and when.
pub(crate) fn listen<T>(heard: &Heard, shown: bool, body: impl FnOnce() -> T) -> T {
    let counter = Counter(heard.clone()).with_filter(LevelFilter::INFO);
    let counting = tracing_subscriber::registry().with(counter);
    if !shown {
        return tracing::subscriber::with_default(counting, body);
    }
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    // The simulator's span around each poll carries the host and the time.
    let filter = tracing_subscriber::EnvFilter::new(format!("{wanted},krita_runtime=trace"));
    let printer = tracing_subscriber::fmt::layer()
        .without_time()
        .with_ansi(false)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_filter(filter);
    tracing::subscriber::with_default(counting.with(printer), body)
}
