//! Settings of one replica, what it is restored from, and their validation.

use std::fmt;
use std::time::Duration;

use crate::configuration::Configuration;
use crate::membership::Membership;
use crate::suspect::Suspicion;
use crate::types::{HardState, Index, Position, ReplicaId, TermRun};

/// Settings of one replica. [`Config::new`] gives defaults for all but the id; validated by
/// [`Raft::new`](crate::Raft::new).
#[derive(Clone, Debug)]
pub struct Config {
    /// This replica.
    pub id: ReplicaId,
    /// T: a follower campaigns after a silence between T and 2 T, drawn anew each time, and keeps what it
    /// promised a leader for T after it last heard it.
    pub election_timeout: Duration,
    /// How often a leader speaks when it has nothing to say. Below half of `election_timeout`.
    pub heartbeat_interval: Duration,
    /// How long a quorum's answers to a round let the leader answer reads alone, counted from when the round was
    /// *sent*. `None`: leases off, every read confirms a quorum. Needs `check_quorum`.
    ///
    /// Invariant: `lease + clock_drift_max < election_timeout`.
    pub lease: Option<Duration>,
    /// By how much two nodes' clocks may drift apart within one `election_timeout`.
    pub clock_drift_max: Duration,
    /// Bytes of entries in one append, at least one entry.
    pub append_bytes_max: usize,
    /// Appends on their way to one follower.
    pub inflight_messages_max: usize,
    /// Bytes of entries on their way to one follower.
    pub inflight_bytes_max: usize,
    /// Bytes of durable entries kept in memory. What is not durable yet is kept in any case; it is bounded by
    /// `proposals_pending_bytes_max` on a leader and by the leader's in-flight window on a follower.
    pub entry_cache_bytes_max: usize,
    /// Proposed entries not yet committed.
    pub proposals_pending_max: usize,
    /// Bytes of proposed entries not yet committed; one entry is always allowed.
    pub proposals_pending_bytes_max: usize,
    /// Reads not yet answered.
    pub reads_pending_max: usize,
    /// The commit index is written along with entries once it has moved by this many.
    pub commit_record_interval: u64,
    /// An idle group falls silent after this long. `None`: never.
    pub quiesce_after: Option<Duration>,
    /// A leader whose own log writes have not become durable for this long hands over, or steps down.
    pub write_stall_max: Duration,
    /// Ask before campaigning, so that a replica that was cut off does not disturb the others.
    pub pre_vote: bool,
    /// A leader that has not heard a quorum for `election_timeout` steps down.
    pub check_quorum: bool,
    /// Seed of the election jitter; mixed with `id`, so that replicas may share it.
    pub jitter_seed: u64,
    /// Names this life of the replica: a random number, drawn anew at every start. It tells what was said before a
    /// replica lost its memory from what it says now, so no two lives may share it.
    pub boot: u64,
}

impl Config {
    /// Defaults for replica `id`.
    pub fn new(id: ReplicaId) -> Self {
        Config {
            id,
            election_timeout: Duration::from_millis(1000),
            heartbeat_interval: Duration::from_millis(100),
            lease: Some(Duration::from_millis(800)),
            clock_drift_max: Duration::from_millis(100),
            append_bytes_max: 1 << 20,
            inflight_messages_max: 64,
            inflight_bytes_max: 32 << 20,
            entry_cache_bytes_max: 4 << 20,
            proposals_pending_max: 16 << 10,
            proposals_pending_bytes_max: 64 << 20,
            reads_pending_max: 16 << 10,
            commit_record_interval: 256,
            quiesce_after: Some(Duration::from_secs(10)),
            write_stall_max: Duration::from_secs(5),
            pre_vote: true,
            check_quorum: true,
            jitter_seed: 0,
            boot: 0,
        }
    }

    /// The longest silence after which every follower campaigns: 2 T.
    pub fn election_timeout_max(&self) -> Duration {
        self.election_timeout * 2
    }

    /// Checks every relation that the fields' documentation states.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let nonzero = [
            ("heartbeat_interval", self.heartbeat_interval.is_zero()),
            ("append_bytes_max", self.append_bytes_max == 0),
            ("inflight_messages_max", self.inflight_messages_max == 0),
            ("inflight_bytes_max", self.inflight_bytes_max == 0),
            ("proposals_pending_max", self.proposals_pending_max == 0),
            ("proposals_pending_bytes_max", self.proposals_pending_bytes_max == 0),
            ("reads_pending_max", self.reads_pending_max == 0),
            ("commit_record_interval", self.commit_record_interval == 0),
            ("write_stall_max", self.write_stall_max.is_zero()),
        ];
        if let Some((field, _)) = nonzero.iter().find(|(_, zero)| *zero) {
            return Err(ConfigError::Zero { field });
        }
        if self.heartbeat_interval * 2 > self.election_timeout {
            return Err(ConfigError::HeartbeatTooSlow);
        }
        if let Some(lease) = self.lease {
            if !self.check_quorum {
                return Err(ConfigError::LeaseWithoutCheckQuorum);
            }
            if lease + self.clock_drift_max >= self.election_timeout {
                return Err(ConfigError::LeaseTooLong);
            }
        }
        Ok(())
    }
}

/// What a replica starts from: all of it durable.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The last hard state written; the default if none was.
    pub hard_state: HardState,
    /// The members as of `applied`, as the checkpoint has them.
    pub membership: Membership,
    /// What the configuration entries behind `applied` set, in order.
    pub memberships_behind: Vec<Membership>,
    /// The entry before the first one still in the log; the default if the log is whole.
    pub log_start: Position,
    /// The terms of the log after `log_start`, as runs: ascending, from `log_start.index + 1`; empty for an empty log.
    pub terms: Vec<TermRun>,
    /// Last index of the log; `log_start.index` for an empty one.
    pub last: Index,
    /// What the state machine holds already; `log_start.index <= applied <= last`.
    pub applied: Index,
    /// True unless this replica certainly has never run before. One that has may have helped a leader to a lease
    /// before it stopped, so it refuses votes, its own included, for one maximum election timeout.
    pub may_have_run_before: bool,
    /// Set if this replica may have forgotten something that it once acknowledged, or voted: the driver found its
    /// storage damaged, now or in an earlier life, and no [`Change::Whole`](crate::Change::Whole) has come since.
    pub suspect: Option<Suspicion>,
}

impl Restored {
    /// A replica that has never run: empty log, term 0. Votes at once.
    pub fn first_start(configuration: Configuration) -> Self {
        Restored {
            hard_state: HardState::default(),
            membership: Membership::first(configuration),
            memberships_behind: Vec::new(),
            log_start: Position::default(),
            terms: Vec::new(),
            last: Index(0),
            applied: Index(0),
            may_have_run_before: false,
            suspect: None,
        }
    }

    /// A replica that has never run and is to join a group that exists: it knows nobody. Whoever leads makes it a
    /// learner and fills it; until then it keeps still.
    pub fn first_start_to_join() -> Self {
        Restored::first_start(Configuration::default())
    }
}

/// Why a replica cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A bound or duration is zero.
    Zero {
        /// Which.
        field: &'static str,
    },
    /// `heartbeat_interval` is more than half of `election_timeout`.
    HeartbeatTooSlow,
    /// `lease + clock_drift_max >= election_timeout`.
    LeaseTooLong,
    /// A lease rests on the voters' silence, which `check_quorum` is part of.
    LeaseWithoutCheckQuorum,
    /// A learner that is a voter too, members but no voters, or too many.
    Configuration,
    /// What was restored contradicts itself.
    Restored {
        /// In what.
        problem: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Zero { field } => write!(formatter, "{field} must be greater than zero"),
            ConfigError::HeartbeatTooSlow => {
                formatter.write_str("heartbeat_interval must be at most half of election_timeout")
            }
            ConfigError::LeaseTooLong => {
                formatter.write_str("lease must be shorter than election_timeout less clock_drift_max")
            }
            ConfigError::LeaseWithoutCheckQuorum => formatter.write_str("a lease needs check_quorum"),
            ConfigError::Configuration => formatter
                .write_str("a group needs voters, not too many, and none of them may be a learner too"),
            ConfigError::Restored { problem } => {
                write!(formatter, "restored state is inconsistent: {problem}")
            }
        }
    }
}

impl std::error::Error for ConfigError {}
