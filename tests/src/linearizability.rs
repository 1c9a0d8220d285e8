//! Decides whether a history is linearizable: whether some order of its operations, in which each takes effect at
//! one moment between its invocation and its answer, explains every answer.
//!
//! Keys are independent registers, so each key is searched by itself (Herlihy & Wing 1990: linearizability is
//! local). The search is Wing & Gong's ("Testing and verifying concurrent objects", 1993): choose an operation that
//! no unordered operation precedes in real time, apply it to the register, go on, and undo on a dead end. Lowe's
//! memoization ("Testing for linearizability", 2017) keeps it fast: a set of ordered operations together with the
//! register they lead to is never entered twice. Lists of calls and returns as in P-compositional checkers
//! (Horn & Kroening 2015) make choosing and undoing cheap. The search keeps its own stack.
//!
//! The register has a value and a version. The version grows with every change, also over a delete. A write whose
//! version no client saw leaves a register whose version is only known to be *at least* something; the next answer
//! that states a version pins it.
//!
//! Unknown outcomes are writes without an end: they may take effect at any time after their invocation, or never.
//! Two observations keep them from exploding the search, and lose nothing:
//!
//! - An unknown write that the next operation does not need is moved behind that operation, or, if it is
//!   overwritten by it, left out. So it is only ever tried right before an operation that fails without it.
//! - Of unknown writes with the same effect the one invoked first can take the place of any other.

mod register;
mod report;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use crate::history::{History, Nanoseconds, Operation, Outcome, escape};
use register::Problem;
use search::Found;

/// How much work one key may cost. Reaching a limit never turns into a wrong verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most operations tried for one key; past it the key is [`Verdict::Undetermined`].
    pub steps_max: u64,
    /// Most remembered dead ends for one key; past it the search goes on without remembering more.
    pub cache_entries_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps_max: 50_000_000, cache_entries_max: 4_000_000 }
    }
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every key's history has an explanation.
    Linearizable(Effort),
    /// One key's history has none. The first such key in key order.
    Violation(Box<Violation>),
    /// No key was found wrong, but this one exceeded [`Limits::steps_max`].
    Undetermined {
        /// The key.
        key: Bytes,
        /// How many operations it has.
        operations: usize,
    },
}

/// What a check cost.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Effort {
    /// Keys checked.
    pub keys: usize,
    /// Operations that took part: all but those that certainly had no effect.
    pub operations: usize,
    /// Of these, writes with an unknown outcome.
    pub unknown: usize,
    /// Operations tried in all.
    pub steps: u64,
}

/// Why a key's history is not linearizable. Its `Display` is a report of a few lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The key.
    pub key: Bytes,
    /// How many operations on the key take part.
    pub operations: usize,
    /// The earliest answer after which no explanation is left.
    pub culprit: Operation,
    /// The end of the longest order that explains all before: the last few of `ordered` operations.
    pub explained: Vec<Operation>,
    /// How many operations that order has.
    pub ordered: usize,
    /// The register after it, in words.
    pub register: String,
    /// What might come next but cannot, each with its reason.
    pub stuck: Vec<(Operation, String)>,
    /// Writes with an unknown outcome that are still open, at most a few.
    pub open: Vec<Operation>,
}

/// Checks a history with the default limits. Every key is absent at its beginning.
pub fn check(history: &History) -> Verdict {
    check_with(history, Limits::default())
}

/// Checks a history. Every key is absent at its beginning.
pub fn check_with(history: &History, limits: Limits) -> Verdict {
    let mut keys: BTreeMap<&Bytes, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        if let (Outcome::Unknown, None) | (_, Some(_)) = (&operation.outcome, operation.responded_at) {
            keys.entry(&operation.key).or_default().push(operation);
        } else {
            panic!("an answer without its time: {operation}");
        }
    }
    let mut effort = Effort::default();
    let mut undetermined = None;
    for (key, mut operations) in keys {
        operations.sort_by_key(|operation| operation.invoked_at);
        let problem = Problem::new(&operations, Nanoseconds::MAX);
        effort.keys += 1;
        effort.operations += problem.calls.len();
        effort.unknown += problem.calls.len() - problem.known();
        let (found, steps) = search::search(&problem, limits);
        effort.steps += steps;
        match found {
            Found::Order => {}
            Found::Nothing => return Verdict::Violation(Box::new(report::explain(key, &operations, limits))),
            Found::TooHard if undetermined.is_none() => {
                let (key, operations) = (key.clone(), problem.calls.len());
                undetermined = Some(Verdict::Undetermined { key, operations });
            }
            Found::TooHard => {}
        }
    }
    undetermined.unwrap_or(Verdict::Linearizable(effort))
}

/// Checks a history and panics with the report unless it is linearizable.
///
/// # Panics
/// If it is not, or if that cannot be decided within the default limits.
#[track_caller]
pub fn assert_linearizable(history: &History) -> Effort {
    match check(history) {
        Verdict::Linearizable(effort) => effort,
        verdict => panic!("{verdict}"),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linearizable(effort) => write!(
                f,
                "linearizable: {} operations ({} unknown) on {} keys in {} steps",
                effort.operations, effort.unknown, effort.keys, effort.steps
            ),
            Self::Violation(violation) => violation.fmt(f),
            Self::Undetermined { key, operations } => write!(
                f,
                "undetermined: key {} with {operations} operations takes too many steps; use more keys, fewer \
                 clients or fewer unknown outcomes per key",
                escape(key)
            ),
        }
    }
}
