//! The model: a versioned register, and one key's operations in the form in which they are searched.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::history::{Action, Condition, Nanoseconds, Operation, Outcome};

/// A value, by its number within one [`Problem`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ValueId(u32);

impl ValueId {
    /// The number itself.
    pub(super) fn number(self) -> u64 {
        u64::from(self.0)
    }
}

/// All written values that no answer and no condition ever names: nobody can tell them apart.
const UNSEEN: ValueId = ValueId(0);

/// What the register holds after some operations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Register {
    /// The value; `None` = absent.
    pub(super) value: Option<ValueId>,
    /// The version of the last change if `exact`; otherwise the least that it can be.
    pub(super) version: u64,
    /// Whether `version` is the version, not only a lower bound.
    pub(super) exact: bool,
}

impl Register {
    /// Before the first operation.
    pub(super) const ABSENT: Self = Self { value: None, version: 0, exact: true };

    /// The register once it is known that its version is `version`; `None` if that cannot be.
    fn pinned(self, version: u64) -> Option<Self> {
        let possible = if self.exact { version == self.version } else { version >= self.version };
        possible.then_some(Self { version, exact: true, ..self })
    }

    /// The register after a change that made `version`, if the client was told.
    fn changed(self, value: Option<ValueId>, version: Option<u64>) -> Option<Self> {
        match version {
            Some(version) => (version > self.version).then_some(Self { value, version, exact: true }),
            None => Some(Self { value, version: self.version.saturating_add(1), exact: false }),
        }
    }
}

/// A condition over numbered values.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Requirement {
    None,
    Version(u64),
    Value(ValueId),
}

impl Requirement {
    /// The register, if the requirement holds for it, with what is known by that.
    fn met_by(self, register: Register) -> Option<Register> {
        match self {
            Self::None => Some(register),
            Self::Version(0) => register.value.is_none().then_some(register),
            Self::Version(version) => register.value.and_then(|_| register.pinned(version)),
            Self::Value(value) => (register.value == Some(value)).then_some(register),
        }
    }

    /// Whether the requirement may fail for the register.
    fn may_fail(self, register: Register) -> bool {
        match self {
            Self::None => false,
            Self::Version(0) => register.value.is_some(),
            Self::Version(version) => {
                register.value.is_none() || !register.exact || register.version != version
            }
            Self::Value(value) => register.value != Some(value),
        }
    }
}

/// One operation together with its answer: what it demands of the register, and what it makes of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Step {
    Read { value: Option<ValueId>, version: Option<u64> },
    Put { value: ValueId, requirement: Requirement, version: Option<u64>, existed: Option<bool> },
    Delete { requirement: Requirement, version: Option<u64>, existed: Option<bool> },
    Failed { requirement: Requirement, current_version: Option<u64> },
}

impl Step {
    /// The register after the operation, or `None` if the operation cannot have had this answer here.
    pub(super) fn apply(self, register: Register) -> Option<Register> {
        let existed_fits =
            |existed: Option<bool>| existed.is_none_or(|existed| existed == register.value.is_some());
        match self {
            Self::Read { value: None, .. } => register.value.is_none().then_some(register),
            Self::Read { value, version } if register.value == value => match version {
                Some(version) => register.pinned(version),
                None => Some(register),
            },
            Self::Read { .. } => None,
            Self::Put { value, requirement, version, existed } => {
                let register = requirement.met_by(register).filter(|_| existed_fits(existed))?;
                register.changed(Some(value), version)
            }
            Self::Delete { requirement, version, existed } => {
                let register = requirement.met_by(register).filter(|_| existed_fits(existed))?;
                match register.value {
                    Some(_) => register.changed(None, version),
                    // Nothing was there: nothing changes, and no version is made.
                    None => version.is_none_or(|version| version == 0).then_some(register),
                }
            }
            Self::Failed { requirement, current_version } => {
                if !requirement.may_fail(register)
                    || current_version.map(Requirement::Version) == Some(requirement)
                {
                    return None;
                }
                match current_version {
                    None => Some(register),
                    Some(0) => register.value.is_none().then_some(register),
                    Some(version) => register.value.and_then(|_| register.pinned(version)),
                }
            }
        }
    }

    /// The version that the register has right after the operation, if the answer states one.
    pub(super) fn stated_version(self) -> Option<u64> {
        let version = match self {
            Self::Read { value: None, .. } => None,
            Self::Read { version, .. } | Self::Put { version, .. } | Self::Delete { version, .. } => version,
            Self::Failed { current_version, .. } => current_version,
        };
        // 0 says that the key is absent, not when that came about.
        version.filter(|&version| version > 0)
    }

    /// Whether the operation only looks.
    pub(super) fn observes_only(self) -> bool {
        matches!(self, Self::Read { .. } | Self::Failed { .. })
    }
}

/// One operation that takes part in the search.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) step: Step,
    pub(super) invoked_at: Nanoseconds,
    /// `None`: a write that may take effect at any time, or never.
    pub(super) responded_at: Option<Nanoseconds>,
    /// Its position in the operations that the problem was made from.
    pub(super) source: usize,
    /// For an unknown write: the unknown write with the same effect that was invoked just before it.
    pub(super) twin_before: Option<usize>,
}

/// One key's operations, in the order of their invocation, in the form in which they are searched.
pub(super) struct Problem {
    pub(super) calls: Vec<Call>,
}

impl Problem {
    /// The part of the operations (sorted by invocation) that had happened at the time `until`: what was not
    /// answered by then is unknown, and what certainly had no effect is left out.
    pub(super) fn new(operations: &[&Operation], until: Nanoseconds) -> Self {
        assert!(operations.is_sorted_by_key(|operation| operation.invoked_at));
        let numbers = Numbers::new(operations, until);
        let mut twins: BTreeMap<Step, usize> = BTreeMap::new();
        let mut calls: Vec<Call> = Vec::with_capacity(operations.len());
        for (source, operation) in operations.iter().enumerate() {
            if operation.invoked_at > until {
                break;
            }
            let answered = answered_at(operation, until);
            let Some(step) = numbers.step(operation, answered.is_some()) else { continue };
            let twin_before = match answered {
                Some(_) => None,
                None => twins.insert(step, calls.len()),
            };
            let invoked_at = operation.invoked_at;
            calls.push(Call { step, invoked_at, responded_at: answered, source, twin_before });
        }
        Self { calls }
    }

    /// How many of the operations have a known outcome, and so must be in the order.
    pub(super) fn known(&self) -> usize {
        self.calls.iter().filter(|call| call.responded_at.is_some()).count()
    }
}

/// When an operation was answered with a certain outcome, if it was by the time `until`.
fn answered_at(operation: &Operation, until: Nanoseconds) -> Option<Nanoseconds> {
    match operation.outcome {
        Outcome::Unknown => None,
        _ => operation.responded_at.filter(|&at| at <= until),
    }
}

/// Gives numbers to values.
struct Numbers<'a> {
    numbers: BTreeMap<&'a Bytes, ValueId>,
}

impl<'a> Numbers<'a> {
    /// Numbers the values that some answer or condition names.
    fn new(operations: &[&'a Operation], until: Nanoseconds) -> Self {
        let mut seen = BTreeSet::new();
        for operation in operations {
            if let Action::Put { condition: Condition::IfValue(value), .. }
            | Action::Delete { condition: Condition::IfValue(value) } = &operation.action
            {
                seen.insert(value);
            }
            if let (Outcome::Read { value: Some(value), .. }, Some(_)) =
                (&operation.outcome, answered_at(operation, until))
            {
                seen.insert(value);
            }
        }
        // Number 0 is taken.
        let numbers = seen.into_iter().zip(1..).map(|(value, number)| (value, ValueId(number))).collect();
        Self { numbers }
    }

    fn number(&self, value: &Bytes) -> ValueId {
        self.numbers.get(value).copied().unwrap_or(UNSEEN)
    }

    fn requirement(&self, condition: &Condition) -> Requirement {
        match condition {
            Condition::None => Requirement::None,
            Condition::IfVersion(version) => Requirement::Version(*version),
            Condition::IfValue(value) => Requirement::Value(self.number(value)),
        }
    }

    /// The operation as a step; `None` if it has no effect and says nothing.
    fn step(&self, operation: &Operation, answered: bool) -> Option<Step> {
        let outcome = if answered { &operation.outcome } else { &Outcome::Unknown };
        let (version, existed) = match (&operation.action, outcome) {
            (_, Outcome::NotApplied) | (Action::Get, Outcome::Unknown) => return None,
            (Action::Get, Outcome::Read { value, version }) => {
                let value = value.as_ref().map(|value| self.number(value));
                return Some(Step::Read { value, version: *version });
            }
            (
                Action::Put { condition, .. } | Action::Delete { condition },
                Outcome::ConditionFailed { current_version },
            ) => {
                let requirement = self.requirement(condition);
                return Some(Step::Failed { requirement, current_version: *current_version });
            }
            (Action::Put { .. } | Action::Delete { .. }, Outcome::Written { version, existed }) => {
                (*version, *existed)
            }
            (Action::Put { .. }, Outcome::Unknown) => (None, None),
            // An unknown delete that finds nothing changes nothing, so only one that finds something matters.
            (Action::Delete { .. }, Outcome::Unknown) => (None, Some(true)),
            (Action::Get, Outcome::Written { .. } | Outcome::ConditionFailed { .. })
            | (Action::Put { .. } | Action::Delete { .. }, Outcome::Read { .. }) => {
                panic!("an answer of the wrong kind: {operation}")
            }
        };
        match &operation.action {
            Action::Get => None,
            Action::Put { value, condition } => {
                let (value, requirement) = (self.number(value), self.requirement(condition));
                Some(Step::Put { value, requirement, version, existed })
            }
            Action::Delete { condition } => {
                Some(Step::Delete { requirement: self.requirement(condition), version, existed })
            }
        }
    }
}
