//! The corruption matrix: a three-node cluster with data, one damage to one place of one node's files, and what comes
//! of it.
//!
//! A [`Case`] names the place, the damage, the role of the node with respect to the shard that is hit, and the moment:
//! at rest, before a start, or under the running node. Whatever the case, clients never read a wrong value and never
//! miss an acknowledged one (their histories are judged), every shard goes on being served, and no other node minds.
//! The [`Outcome`] says what the damaged node makes of it: it heals without a command, or refuses to run and names
//! the file. `docs/corruption.md` is the table of outcomes.
//!
//! - `divergence`: a state that differs although no byte is damaged; `spot`: where the damage goes; `world`: the
//!   cluster and what its clients know; [`table`]: the document.

mod divergence;
mod spot;
pub mod table;
mod world;

use std::fmt;
use std::time::Duration;

pub use spot::{Damage, Place};

use crate::simulation::trace::{self, Heard};
use world::World;

/// Within this virtual time after the damage the replicas are equal again, or the node has refused to run.
pub(crate) const HEALS_WITHIN: Duration = Duration::from_secs(60);

/// Nobody waits longer for a shard than this while a node is damaged.
pub(crate) const GAP_MAX: Duration = Duration::from_secs(10);

/// What the damaged node is to the shard that is hit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// It leads the shard.
    Leader,
    /// It follows.
    Follower,
}

/// When the damage happens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Moment {
    /// After the node was killed, before it is started again.
    AtRest,
    /// While it runs; some time later it is killed and started again.
    Running,
}

/// One damage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Case {
    /// What is damaged.
    pub place: Place,
    /// What is done to it.
    pub damage: Damage,
    /// On which node.
    pub role: Role,
    /// When.
    pub moment: Moment,
}

impl Case {
    /// Every case.
    pub fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for place in Place::ALL {
            for damage in Damage::ALL {
                for role in [Role::Leader, Role::Follower] {
                    for moment in [Moment::AtRest, Moment::Running] {
                        // What is not sealed yet is so for a moment only.
                        if place == Place::UnsealedBatch && moment == Moment::Running {
                            continue;
                        }
                        cases.push(Self { place, damage, role, moment });
                    }
                }
            }
        }
        cases
    }
}

/// `SegmentHeader/Flipped/Leader/AtRest`: what `KRITA_CASE` takes.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}/{:?}/{:?}", self.place, self.damage, self.role, self.moment)
    }
}

/// What the damaged node made of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// There is no such place, or the damage changed nothing.
    Absent,
    /// All replicas are equal again, and the node serves from its own disk.
    Heals {
        /// How often the node ended by itself on the way and was started again, as an init system would.
        restarts: u32,
    },
    /// The node does not run until somebody has looked: what it says names the file.
    Refuses {
        /// What it says.
        message: String,
    },
    /// Clients are told that a value is damaged, though other replicas have it.
    ReadsFail,
    /// The node runs, and is no full member of its groups for as long as it was watched.
    StaysOut {
        /// What is missing.
        what: String,
    },
}

impl Outcome {
    /// What is wrong with it, if it is not what a case must come to: what peers can give back is healed, what says who
    /// the node is is never made up.
    pub fn objection(&self, case: &Case) -> Option<String> {
        let place = case.place;
        let must_refuse = place.is_identity() && place != Place::Created;
        match self {
            Self::Heals { .. } if must_refuse => Some("the node made up who it is".to_owned()),
            Self::Heals { restarts } if *restarts > 1 => Some(format!("it took {restarts} restarts")),
            Self::Heals { .. } => None,
            // The marker is an empty file.
            Self::Absent if place == Place::Created => None,
            Self::Absent => Some("there is no such place in this cluster's files".to_owned()),
            Self::Refuses { .. } if must_refuse => None,
            Self::Refuses { message } => Some(format!("the node refuses to run: {message}")),
            Self::ReadsFail => Some("clients are told of damage that other replicas do not have".to_owned()),
            Self::StaysOut { what } => Some(format!("the node is not whole: {what}")),
        }
    }
}

/// A replica that has forgotten what it promised is not believed for having moved. Its log is lost while the other
/// nodes are away; it comes back suspect, and still is after a start with more cores, which moves half of its shards to
/// another log. Then the others come back and heal it.
///
/// # Errors
/// What is wrong, as text.
pub fn forget_and_move(seed: u64, shown: bool) -> Result<(), String> {
    let heard = Heard::default();
    trace::listen(&heard, shown, || {
        let mut world = World::new(seed, heard.clone());
        world.begin(Place::ManifestFirst);
        world.forget_and_move();
        let violations = world.judge();
        if violations.is_empty() { Ok(()) } else { Err(violations.join("\n")) }
    })
}

/// A replica whose state differs from the others', as after a mistake in our code: no checksum can tell. It is found
/// within a minute, told, quarantined and filled anew, and nobody reads what it had. Returns how long it took, in
/// virtual time, until it was found and until the replicas were equal.
///
/// # Errors
/// What is wrong, as text.
pub fn diverge(seed: u64, shown: bool) -> Result<(Duration, Duration), String> {
    let heard = Heard::default();
    trace::listen(&heard, shown, || {
        let mut world = World::new(seed, heard.clone());
        world.begin(Place::ManifestFirst);
        let found = world.diverge();
        let violations = world.judge();
        if violations.is_empty() { found } else { Err(violations.join("\n")) }
    })
}

/// Runs one case. `shown`: the nodes' logs go to standard error, filtered by `RUST_LOG`.
///
/// # Errors
/// What must never happen, as text.
pub fn run(case: Case, seed: u64, shown: bool) -> Result<Outcome, String> {
    let heard = Heard::default();
    trace::listen(&heard, shown, || {
        let mut world = World::new(seed, heard.clone());
        world.begin(case.place);
        let mut outcome = world.play(case);
        let mut violations = world.judge();
        if violations.iter().any(|violation| violation.contains("CORRUPTION:")) {
            // An honest answer, but not what three replicas are for.
            outcome = Outcome::ReadsFail;
            violations
                .retain(|violation| !violation.contains("CORRUPTION:") && violation != world::NOT_SERVED);
        }
        if let Outcome::Refuses { message } = &outcome
            && let Some(file) = world.damaged_file()
            && !message.contains(&file)
        {
            violations.push(format!("the node refuses without naming {file}: {message}"));
        }
        match violations.is_empty() {
            true => Ok(outcome),
            false => Err(violations.join("\n")),
        }
    })
}
