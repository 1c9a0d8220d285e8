//! What a seed decides before its run begins: the cluster, its clients, and how unkind the world is.

use std::time::Duration;

use krita_runtime::sim::{Latency, NetworkOptions, Random, SimulationOptions};

/// Everything that is fixed for one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) shards: u32,
    pub(crate) cores_max: u16,
    /// Whether leaders may answer reads by their lease.
    pub(crate) leader_lease: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) checkpoint_after_bytes: u64,
    pub(crate) value_cache_bytes: u64,
    pub(crate) clients: usize,
    pub(crate) lanes: usize,
    /// Longest pause of a client between two calls.
    pub(crate) think_max: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) call_timeout: Duration,
    /// How long values are, by how often: mostly short, now and then of several pieces.
    pub(crate) value_bytes_max: usize,
    /// How long clients work while the world is unkind.
    pub(crate) load: Duration,
    /// Mean pause between two faults.
    pub(crate) calm_mean: Duration,
}

impl Plan {
    pub(crate) fn draw(random: &Random) -> Self {
        Self {
            nodes: if random.chance(0.12) { 5 } else { 3 },
            shards: u32::try_from(random.between(4, 8)).expect("small"),
            cores_max: u16::try_from(random.between(1, 3)).expect("small"),
            leader_lease: random.chance(0.8),
            segment_bytes: 256 << 10,
            checkpoint_after_bytes: (24 << 10) << random.below(3),
            value_cache_bytes: [0, 64 << 10, 16 << 20][random.index(3)],
            clients: usize::try_from(random.between(3, 5)).expect("small"),
            lanes: usize::try_from(random.between(1, 3)).expect("small"),
            think_max: Duration::from_millis(random.between(30, 120)),
            attempt_timeout: Duration::from_millis(random.between(300, 1_500)),
            call_timeout: Duration::from_millis(random.between(1_500, 6_000)),
            value_bytes_max: [2 << 10, 4 << 10, 8 << 10][random.index(3)],
            load: Duration::from_secs(60),
            calm_mean: Duration::from_millis(random.between(1_500, 4_000)),
        }
    }

    /// The world without faults.
    pub(crate) fn options(&self) -> SimulationOptions {
        SimulationOptions {
            poll_time: Latency { min: Duration::from_micros(1), max: Duration::from_micros(20) },
            network: healthy_network(),
            ..SimulationOptions::default()
        }
    }
}

/// The network when nothing is being broken.
pub(crate) fn healthy_network() -> NetworkOptions {
    NetworkOptions { latency: Latency::micros(100, 2_000), ..NetworkOptions::default() }
}
