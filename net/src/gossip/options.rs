//! The protocol's times and bounds, and what follows from them for a cluster's size.

use std::time::Duration;

/// Times and bounds. The defaults keep what the module's page promises for 3 to 100 nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// From one probe to the next. Every other probe goes to the next node of the ring.
    pub probe_interval: Duration,
    /// After this long without an answer helpers are asked. `<= probe_timeout`.
    pub direct_timeout: Duration,
    /// After this long without an answer, direct or through a helper, the target is suspected.
    pub probe_timeout: Duration,
    /// How many helpers.
    pub helpers: usize,
    /// From one round of news to the next, while there are any.
    pub news_interval: Duration,
    /// To how many nodes a round of news goes.
    pub fanout: usize,
    /// A suspect that several nodes cannot reach may be declared dead after this long, in clusters of up to 100
    /// nodes. `<= suspicion_max`.
    pub suspicion_min: Duration,
    /// The same for one that only one node cannot reach.
    pub suspicion_max: Duration,
    /// With this many confirmations the time is the shortest.
    pub confirmations: usize,
    /// From one round of asking witnesses to the next.
    pub doubt_interval: Duration,
    /// How many witnesses are asked in a round.
    pub doubt_fanout: usize,
    /// How many must concur (fewer, if fewer are there).
    pub witnesses: usize,
    /// The worst that a node may think of its own health; its times are stretched by 1 + its health.
    pub health_max: u32,
    /// A tick that comes later than this is late: what waits for others is given that much more time.
    pub late_after: Duration,
    /// From one full exchange to the next, at least.
    pub exchange_interval: Duration,
    /// And at least this for each member: so that the load does not grow with their number.
    pub exchange_interval_per_member: Duration,
    /// After this long without an answer a page is asked for again.
    pub exchange_timeout: Duration,
    /// How many bytes of records go into one page.
    pub exchange_bytes_max: usize,
    /// From one attempt to join to the next; and to the next exchange while exchanges find unknown nodes.
    pub join_interval: Duration,
    /// From one attempt to find a dead node or a silent seed alive to the next.
    pub reconnect_interval: Duration,
    /// Own vitals are published no more often than this.
    pub vitals_interval: Duration,
    /// And at least this for each member: the whole cluster's rate stays the same.
    pub vitals_interval_per_member: Duration,
    /// How long a dead or left node is remembered, so that old news do not bring it back.
    pub remember_gone: Duration,
    /// Most nodes in the table, gone ones included. More are refused.
    pub members_max: usize,
    /// How many bytes of news go into one message.
    pub news_bytes_max: usize,
    /// How many bytes of others' vitals go into one message.
    pub vitals_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(200),
            direct_timeout: Duration::from_millis(300),
            probe_timeout: Duration::from_millis(1000),
            helpers: 3,
            news_interval: Duration::from_millis(100),
            fanout: 3,
            suspicion_min: Duration::from_secs(2),
            suspicion_max: Duration::from_secs(12),
            confirmations: 3,
            doubt_interval: Duration::from_millis(200),
            doubt_fanout: 4,
            witnesses: 2,
            health_max: 8,
            late_after: Duration::from_millis(250),
            exchange_interval: Duration::from_secs(15),
            exchange_interval_per_member: Duration::from_millis(150),
            exchange_timeout: Duration::from_secs(1),
            exchange_bytes_max: 32 * 1024,
            join_interval: Duration::from_millis(500),
            reconnect_interval: Duration::from_secs(1),
            vitals_interval: Duration::from_secs(1),
            vitals_interval_per_member: Duration::from_millis(40),
            remember_gone: Duration::from_secs(3600),
            members_max: 4096,
            news_bytes_max: 1400,
            vitals_bytes_max: 600,
        }
    }
}

impl Options {
    /// How often one piece of news is sent on by each node, in a cluster of this many: lambda · log n, in which
    /// lambda is 4 and one more round stands for luck.
    pub fn retransmissions(&self, nodes: usize) -> u32 {
        4 + 4 * (nodes.max(1).ilog10() + 1)
    }

    /// How many confirmations make the time of a suspicion the shortest, in a cluster of this many.
    pub(super) fn confirmations_for(&self, nodes: usize) -> usize {
        if nodes < 3 { 0 } else { ((nodes - 2) / 2).clamp(1, self.confirmations) }
    }

    /// After how long a suspect may be declared dead that so many others, too, cannot reach (Lifeguard, section on
    /// local health aware suspicion: the time falls with the logarithm of the confirmations).
    pub(super) fn suspicion_timeout(&self, nodes: usize, confirmations: usize) -> Duration {
        let (min, max) = (self.suspicion_min_for(nodes), self.suspicion_max_for(nodes));
        let needed = self.confirmations_for(nodes);
        if confirmations >= needed {
            return min;
        }
        let spared =
            (max - min).as_secs_f64() * (confirmations as f64 + 1.0).ln() / (needed as f64 + 1.0).ln();
        (max - Duration::from_secs_f64(spared)).max(min)
    }

    /// Grows with the time that news need beyond 100 nodes.
    pub(super) fn suspicion_min_for(&self, nodes: usize) -> Duration {
        self.suspicion_min
            + self.suspicion_min / 8 * (nodes / 100).checked_ilog2().map_or(0, |doublings| doublings + 1)
    }

    pub(super) fn suspicion_max_for(&self, nodes: usize) -> Duration {
        self.suspicion_max.max(self.suspicion_min_for(nodes))
    }

    pub(super) fn exchange_interval_for(&self, nodes: usize) -> Duration {
        self.exchange_interval.max(self.exchange_interval_per_member * count(nodes))
    }

    pub(super) fn vitals_interval_for(&self, nodes: usize) -> Duration {
        self.vitals_interval.max(self.vitals_interval_per_member * count(nodes))
    }
}

fn count(nodes: usize) -> u32 {
    u32::try_from(nodes).unwrap_or(u32::MAX)
}
