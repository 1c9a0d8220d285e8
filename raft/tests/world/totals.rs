//! What happened in a simulated run, counted.

/// What happened in a run, or in many.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) elections: u64,
    pub(crate) crashes: u64,
    pub(crate) writes_acknowledged: u64,
    pub(crate) reads_done: u64,
    pub(crate) reads_leased: u64,
    pub(crate) snapshots: u64,
    pub(crate) truncations: u64,
    pub(crate) silences: u64,
    pub(crate) transfers: u64,
    pub(crate) log_loads: u64,
    pub(crate) amnesias: u64,
    pub(crate) damages: u64,
    pub(crate) healed: u64,
    pub(crate) changes: u64,
    pub(crate) changes_over: u64,
    pub(crate) joins: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Totals) {
        self.elections += other.elections;
        self.crashes += other.crashes;
        self.writes_acknowledged += other.writes_acknowledged;
        self.reads_done += other.reads_done;
        self.reads_leased += other.reads_leased;
        self.snapshots += other.snapshots;
        self.truncations += other.truncations;
        self.silences += other.silences;
        self.transfers += other.transfers;
        self.log_loads += other.log_loads;
        self.amnesias += other.amnesias;
        self.damages += other.damages;
        self.healed += other.healed;
        self.changes += other.changes;
        self.changes_over += other.changes_over;
        self.joins += other.joins;
    }
}
