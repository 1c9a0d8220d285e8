//! Turns a history without an explanation into a few lines that a person can follow.
//!
//! The earliest answer that cannot be explained is found by cutting the history off at an answer: what was not
//! answered by then is unknown, so a longer history only ever demands more. Around that answer the report shows
//! the end of the longest order that works and what gets stuck behind it.

use std::fmt;

use bytes::Bytes;

use super::register::{Problem, Register, Step};
use super::search::{Found, Longest, search, search_longest};
use super::{Limits, Violation};
use crate::history::{Action, Nanoseconds, Operation, escape};

/// Most operations shown of each kind.
const SHOWN_MAX: usize = 8;

/// Explains operations of one key, sorted by invocation, of which it is known that no order explains them.
pub(super) fn explain(key: &Bytes, operations: &[&Operation], limits: Limits) -> Violation {
    let until = first_unexplained(operations, limits);
    let problem = Problem::new(operations, until);
    let longest = search_longest(&problem, limits);
    let mut ordered = vec![false; problem.calls.len()];
    for &call in &longest.order {
        ordered[call] = true;
    }
    let operation = |call: usize| operations[problem.calls[call].source].clone();
    // What may come next: invoked before the first return that is left.
    let left = || (0..problem.calls.len()).filter(|&call| !ordered[call]);
    let first_return = left().filter_map(|call| problem.calls[call].responded_at).min();
    let next = left().filter(|&call| first_return.is_none_or(|at| problem.calls[call].invoked_at <= at));
    let (stuck, open): (Vec<usize>, Vec<usize>) =
        next.partition(|&call| problem.calls[call].responded_at.is_some());
    let culprit = operations
        .iter()
        .find(|operation| operation.responded_at == Some(until))
        .expect("the history was cut off at an answer");
    let skipped = longest.order.len().saturating_sub(SHOWN_MAX);
    let reason = |call: usize| why_not(problem.calls[call].step, longest.register).to_owned();
    Violation {
        key: key.clone(),
        operations: operations.len(),
        culprit: (*culprit).clone(),
        explained: longest.order[skipped..].iter().map(|&call| operation(call)).collect(),
        ordered: longest.order.len(),
        register: describe(operations, &problem, &longest),
        stuck: stuck.iter().take(SHOWN_MAX).map(|&call| (operation(call), reason(call))).collect(),
        open: open.iter().take(SHOWN_MAX).map(|&call| operation(call)).collect(),
    }
}

/// The time of the earliest answer up to which the operations have no explanation.
fn first_unexplained(operations: &[&Operation], limits: Limits) -> Nanoseconds {
    let known = |operation: &&Operation| Problem::new(&[operation], Nanoseconds::MAX).known() > 0;
    let mut answers: Vec<Nanoseconds> =
        operations.iter().filter(|operation| known(operation)).filter_map(|it| it.responded_at).collect();
    answers.sort_unstable();
    answers.dedup();
    // The first answer that fails is sought in [low, high]; the last one is known to fail.
    let (mut low, mut high) = (0, answers.len() - 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match search(&Problem::new(operations, answers[middle]), limits).0 {
            Found::Nothing => high = middle,
            Found::Order | Found::TooHard => low = middle + 1,
        }
    }
    answers[low]
}

/// The register at the end of the longest order, in words.
fn describe(operations: &[&Operation], problem: &Problem, longest: &Longest) -> String {
    let bound = if longest.register.exact { "" } else { "at least " };
    let version = longest.register.version;
    if longest.register.value.is_none() {
        return format!("absent, last changed at version {bound}{version}");
    }
    let written = longest.order.iter().rev().find_map(|&call| match problem.calls[call].step {
        Step::Put { .. } => match &operations[problem.calls[call].source].action {
            Action::Put { value, .. } => Some(escape(value)),
            Action::Get | Action::Delete { .. } => None,
        },
        Step::Read { .. } | Step::Delete { .. } | Step::Failed { .. } => None,
    });
    format!("at {}, version {bound}{version}", written.expect("only a put makes a value"))
}

fn why_not(step: Step, register: Register) -> &'static str {
    match (step.apply(register), step) {
        (Some(_), _) => "possible here, but then others have no explanation",
        (None, Step::Read { value, .. }) if value != register.value => "reads something else",
        (None, Step::Read { .. }) => "reads another version",
        (None, Step::Put { version, .. } | Step::Delete { version, .. })
            if version.is_some_and(|version| version > 0 && version <= register.version) =>
        {
            "its version is not above the register's"
        }
        (None, Step::Put { .. } | Step::Delete { .. }) => "its condition, or what it found, does not fit",
        (None, Step::Failed { .. }) => "its condition holds, or the version it met is another",
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "not linearizable: key {} ({} operations)", escape(&self.key), self.operations)?;
        writeln!(f, "  the earliest answer that nothing explains:")?;
        writeln!(f, "    {}", self.culprit)?;
        match self.ordered {
            0 => writeln!(f, "  nothing can come first")?,
            ordered => {
                let shown = self.explained.len();
                writeln!(
                    f,
                    "  the longest order that explains what came before (last {shown} of {ordered}):"
                )?;
            }
        }
        for operation in &self.explained {
            writeln!(f, "    {operation}")?;
        }
        writeln!(f, "  leaves the register {}; what may come next, but cannot:", self.register)?;
        for (operation, reason) in &self.stuck {
            writeln!(f, "    {operation}: {reason}")?;
        }
        if !self.open.is_empty() {
            writeln!(f, "  and these unknown writes do not help:")?;
        }
        for operation in &self.open {
            writeln!(f, "    {operation}")?;
        }
        Ok(())
    }
}
