//! What clients do, and what they are told: every call goes into the history as operations on single keys.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use krita_proto::v1;
use krita_runtime::Clock;
use krita_runtime::sim::Simulation;
use kritaclient::Error;
use kritaclient::core::call::CallKind;
use kritaclient::core::message::{Request, Response};

use super::client::Lane;
use super::data::{self, Keys};
use crate::history::{Action, Condition, OperationId, Outcome, Recorder, escape};

/// What all clients of a run share.
pub(crate) struct Scene {
    pub(crate) simulation: Simulation,
    pub(crate) keys: Keys,
    pub(crate) history: Recorder,
    pub(crate) counts: Counts,
    /// What no fault explains.
    pub(crate) violations: RefCell<Vec<String>>,
    /// No further calls.
    pub(crate) is_over: Cell<bool>,
    /// Nobody watches any more.
    pub(crate) is_closed: Cell<bool>,
    /// Lanes that still work.
    pub(crate) lanes: Cell<usize>,
    pub(crate) think_max: Duration,
    pub(crate) value_bytes_max: usize,
}

/// Calls by their end.
#[derive(Default, Debug)]
pub(crate) struct Counts {
    pub(crate) ok: Cell<u64>,
    pub(crate) refused: Cell<u64>,
    pub(crate) unavailable: Cell<u64>,
    pub(crate) unknown: Cell<u64>,
    pub(crate) increments: RefCell<std::collections::BTreeMap<Bytes, (u64, u64)>>,
}

impl Scene {
    pub(crate) fn violation(&self, text: String) {
        tracing::error!(text, "a violation");
        self.violations.borrow_mut().push(text);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.simulation.now().as_nanos()).unwrap_or(u64::MAX)
    }

    fn invoke(&self, client: u64, key: &Bytes, action: Action) -> OperationId {
        self.history.invoke(client, key.clone(), action, self.now())
    }

    fn complete(&self, operation: OperationId, outcome: Outcome) {
        self.history.complete(operation, outcome, self.now());
    }

    /// A found value as the history names it.
    fn read(&self, key: &Bytes, value: &Bytes, version: u64) -> Outcome {
        let name = data::name_of(key, value).unwrap_or_else(|wrong| {
            self.violation(wrong);
            Bytes::from_static(b"(nobody wrote it)")
        });
        Outcome::Read { value: Some(name), version: Some(version) }
    }

    /// What an error says of one operation.
    fn failed(&self, error: &Error) -> Outcome {
        let counts = &self.counts;
        let bump = |cell: &Cell<u64>| cell.set(cell.get() + 1);
        match error {
            Error::ConditionFailed { current_version, .. } => {
                bump(&counts.refused);
                Outcome::ConditionFailed { current_version: Some(*current_version) }
            }
            Error::UnknownOutcome(_) => {
                bump(&counts.unknown);
                Outcome::Unknown
            }
            Error::Unavailable(_) => {
                bump(&counts.unavailable);
                Outcome::NotApplied
            }
            other => {
                self.violation(format!("an error that nothing explains: {other}"));
                Outcome::NotApplied
            }
        }
    }

    fn succeeded(&self) {
        self.counts.ok.set(self.counts.ok.get() + 1);
    }
}

/// One lane of a client at work.
pub(crate) struct Worker {
    pub(crate) scene: Rc<Scene>,
    pub(crate) lane: Lane,
    /// The client's number in the history; lanes have numbers of their own.
    pub(crate) number: u64,
    values: u64,
}

/// A write condition before it has a form.
pub(crate) enum Wish {
    None,
    Version(u64),
    /// The whole value.
    Value(Bytes),
}

impl Wish {
    fn to_wire(&self) -> Option<v1::Condition> {
        use v1::condition::Condition as Wire;
        let condition = match self {
            Self::None => return None,
            Self::Version(version) => Wire::IfVersion(*version),
            Self::Value(value) => Wire::IfValue(value.clone()),
        };
        Some(v1::Condition { condition: Some(condition) })
    }

    fn in_history(&self, key: &Bytes) -> Condition {
        match self {
            Self::None => Condition::None,
            Self::Version(version) => Condition::IfVersion(*version),
            Self::Value(value) => {
                Condition::IfValue(data::name_of(key, value).unwrap_or_else(|wrong| panic!("{wrong}")))
            }
        }
    }

    fn kind(&self) -> CallKind {
        CallKind::Write { condition_is_remembered: !matches!(self, Self::Value(_)) }
    }
}

/// What a read found: the value and its version; or that the key is absent.
pub(crate) type Found = Option<(Bytes, u64)>;

impl Worker {
    pub(crate) fn new(scene: Rc<Scene>, lane: Lane, number: u64) -> Self {
        scene.lanes.set(scene.lanes.get() + 1);
        Self { scene, lane, number, values: 0 }
    }

    /// Works until the scene is over.
    pub(crate) async fn work(mut self) {
        while !self.scene.is_over.get() {
            self.step().await;
            let think = self.scene.think_max.as_micros() as u64;
            let pause = Duration::from_micros(self.lane.random.below(think.max(1)));
            self.lane.runtime.sleep(pause).await;
        }
        self.scene.lanes.set(self.scene.lanes.get() - 1);
    }

    async fn step(&mut self) {
        let scene = self.scene.clone();
        let key = scene.keys.plain[self.lane.random.index(scene.keys.plain.len())].clone();
        match self.lane.random.below(100) {
            0..22 => drop(self.get(&key).await),
            22..44 => drop(self.put(&key, Wish::None).await),
            44..49 => drop(self.delete(&key, Wish::None).await),
            49..59 => self.compare_and_swap(&key, false).await,
            59..66 => self.compare_and_swap(&key, true).await,
            66..69 => drop(self.put(&key, Wish::Version(0)).await),
            69..72 => self.compare_and_delete(&key).await,
            72..82 => self.increment().await,
            82..87 => self.write_twins().await,
            87..91 => self.read_twins().await,
            91..95 => self.mixed_batch(&key).await,
            _ => {
                let shard = scene.keys.shard_of(&key);
                self.scan(shard).await;
            }
        }
    }

    fn new_value(&mut self, key: &Bytes) -> Bytes {
        self.values += 1;
        let random = &self.lane.random;
        let length = match random.below(20) {
            0 => random.below(24),
            1 => random.below(self.scene.value_bytes_max as u64 * 8),
            _ => random.below(self.scene.value_bytes_max as u64),
        };
        data::value(key, &format!("{}.{}", self.number, self.values), length as usize)
    }

    pub(crate) async fn get(&mut self, key: &Bytes) -> Result<Found, Error> {
        let scene = self.scene.clone();
        let operation = scene.invoke(self.number, key, Action::Get);
        let request = Request::Get(v1::Get { key: key.clone(), ..Default::default() });
        let answer = self.lane.run(CallKind::Read, scene.keys.shard_of(key), request).await;
        match answer {
            Ok(Response::Get(reply)) => {
                scene.succeeded();
                let found = reply.found.then_some((reply.value, reply.version));
                let outcome = match &found {
                    Some((value, version)) => scene.read(key, value, *version),
                    None => Outcome::Read { value: None, version: None },
                };
                scene.complete(operation, outcome);
                Ok(found)
            }
            Ok(other) => unreachable!("the connection matches kinds: {other:?}"),
            Err(error) => {
                scene.failed(&error);
                scene.complete(operation, Outcome::NotApplied);
                Err(error)
            }
        }
    }

    pub(crate) async fn put(&mut self, key: &Bytes, wish: Wish) -> Result<u64, Error> {
        let value = self.new_value(key);
        self.put_value(key, value, wish).await
    }

    pub(crate) async fn put_value(&mut self, key: &Bytes, value: Bytes, wish: Wish) -> Result<u64, Error> {
        let name = data::name_of(key, &value).unwrap_or_else(|wrong| panic!("{wrong}"));
        let action = Action::Put { value: name, condition: wish.in_history(key) };
        let request = Request::Put(v1::Put {
            key: key.clone(),
            value,
            condition: wish.to_wire(),
            request_id: None,
            timeout_ms: 0,
        });
        self.write(key, action, wish.kind(), request).await
    }

    async fn delete(&mut self, key: &Bytes, wish: Wish) -> Result<u64, Error> {
        let action = Action::Delete { condition: wish.in_history(key) };
        let request = Request::Delete(v1::Delete {
            key: key.clone(),
            condition: wish.to_wire(),
            request_id: None,
            timeout_ms: 0,
        });
        self.write(key, action, wish.kind(), request).await
    }

    async fn write(
        &mut self,
        key: &Bytes,
        action: Action,
        kind: CallKind,
        request: Request,
    ) -> Result<u64, Error> {
        let scene = self.scene.clone();
        let is_delete = matches!(action, Action::Delete { .. });
        let operation = scene.invoke(self.number, key, action);
        let answer = self.lane.run(kind, scene.keys.shard_of(key), request).await;
        match answer {
            Ok(Response::Write(reply)) => {
                scene.succeeded();
                let version = (reply.version != 0).then_some(reply.version);
                let existed = is_delete.then_some(reply.existed);
                scene.complete(operation, Outcome::Written { version, existed });
                Ok(reply.version)
            }
            Ok(other) => unreachable!("the connection matches kinds: {other:?}"),
            Err(error) => {
                let outcome = scene.failed(&error);
                scene.complete(operation, outcome);
                Err(error)
            }
        }
    }

    async fn compare_and_swap(&mut self, key: &Bytes, by_value: bool) {
        let Ok(found) = self.get(key).await else { return };
        let wish = match found {
            None => Wish::Version(0),
            Some((value, _)) if by_value => Wish::Value(value),
            Some((_, version)) => Wish::Version(version),
        };
        let _ = self.put(key, wish).await;
    }

    async fn compare_and_delete(&mut self, key: &Bytes) {
        let Ok(Some((value, version))) = self.get(key).await else { return };
        let by_value = self.lane.random.chance(0.5);
        let wish = if by_value { Wish::Value(value) } else { Wish::Version(version) };
        let _ = self.delete(key, wish).await;
    }

    async fn increment(&mut self) {
        let scene = self.scene.clone();
        if scene.keys.counters.is_empty() {
            return;
        }
        let key = scene.keys.counters[self.lane.random.index(scene.keys.counters.len())].clone();
        let Ok(found) = self.get(&key).await else { return };
        let count = found.as_ref().map_or(0, |(value, _)| count_of(value));
        let wish = match found {
            None => Wish::Version(0),
            Some((value, _)) if self.lane.random.chance(0.5) => Wish::Value(value),
            Some((_, version)) => Wish::Version(version),
        };
        let value = data::value(&key, &(count + 1).to_string(), 0);
        let outcome = self.put_value(&key, value, wish).await;
        let mut increments = scene.counts.increments.borrow_mut();
        let (certain, unknown) = increments.entry(key).or_default();
        match outcome {
            Ok(_) => *certain += 1,
            Err(Error::UnknownOutcome(_)) => *unknown += 1,
            Err(_) => {}
        }
    }

    fn twins(&self) -> Option<(Bytes, Bytes)> {
        let twins = &self.scene.keys.twins;
        (!twins.is_empty()).then(|| twins[self.lane.random.index(twins.len())].clone())
    }

    /// Writes or removes both of a pair, at once.
    async fn write_twins(&mut self) {
        let Some((left, right)) = self.twins() else { return };
        self.values += 1;
        let name = format!("{}.{}", self.number, self.values);
        let is_delete = self.lane.random.chance(0.15);
        let operations = [left, right].map(|key| match is_delete {
            true => Part::delete(key, Wish::None),
            false => Part::put(key.clone(), data::value(&key, &name, 40), Wish::None),
        });
        let _ = self.batch(operations.into()).await;
    }

    /// Reads both of a pair at once: they must be equal.
    async fn read_twins(&mut self) {
        let Some((left, right)) = self.twins() else { return };
        let parts = vec![Part::get(left.clone()), Part::get(right.clone())];
        let Ok(results) = self.batch(parts).await else { return };
        let name = |key: &Bytes, result: &v1::OperationResult| {
            result.existed.then(|| (data::name_of(key, &result.value).ok(), result.version))
        };
        let same = name(&left, &results[0]) == name(&right, &results[1]);
        if !same {
            self.scene.violation(format!(
                "a batch was not atomic: {} is at {} and {} at {}",
                escape(&left),
                results[0].version,
                escape(&right),
                results[1].version
            ));
        }
    }

    /// A batch of a get, a put and perhaps a condition on another key of the shard.
    async fn mixed_batch(&mut self, key: &Bytes) {
        let scene = self.scene.clone();
        let shard = scene.keys.shard_of(key);
        let others: Vec<&Bytes> = scene
            .keys
            .plain
            .iter()
            .filter(|other| *other != key && scene.keys.shard_of(other) == shard)
            .collect();
        let other = others[self.lane.random.index(others.len())].clone();
        let value = self.new_value(key);
        let mut wish = Wish::None;
        if self.lane.random.chance(0.6) {
            let Ok(found) = self.get(key).await else { return };
            wish = match found {
                Some((value, _)) if self.lane.random.chance(0.5) => Wish::Value(value),
                found => Wish::Version(found.map_or(0, |(_, version)| version)),
            };
        }
        let parts = vec![Part::get(other), Part::put(key.clone(), value, wish)];
        let _ = self.batch(parts).await;
    }

    pub(crate) async fn batch(&mut self, parts: Vec<Part>) -> Result<Vec<v1::OperationResult>, Error> {
        let scene = self.scene.clone();
        let shard = scene.keys.shard_of(&parts[0].key);
        let operations: Vec<OperationId> =
            parts.iter().map(|part| scene.invoke(self.number, &part.key, part.action())).collect();
        let request = Request::Batch(v1::Batch {
            shard,
            operations: parts.iter().map(Part::to_wire).collect(),
            ..Default::default()
        });
        let by_value = parts.iter().any(|part| matches!(part.wish, Wish::Value(_)));
        let kind = match parts.iter().all(|part| matches!(part.change, Change::Get)) {
            true => CallKind::Read,
            false => CallKind::Write { condition_is_remembered: !by_value },
        };
        match self.lane.run(kind, shard, request).await {
            Ok(Response::Batch(reply)) => {
                scene.succeeded();
                for ((part, operation), result) in parts.iter().zip(operations).zip(&reply.results) {
                    scene.complete(operation, part.outcome(&scene, result));
                }
                if reply.results.len() != parts.len() {
                    scene.violation(format!(
                        "{} results for {} operations",
                        reply.results.len(),
                        parts.len()
                    ));
                }
                Ok(reply.results)
            }
            Ok(other) => unreachable!("the connection matches kinds: {other:?}"),
            Err(error) => {
                self.batch_failed(&parts, operations, &error);
                Err(error)
            }
        }
    }

    fn batch_failed(&self, parts: &[Part], operations: Vec<OperationId>, error: &Error) {
        let scene = &self.scene;
        let outcome = scene.failed(error);
        let culprit = match error {
            Error::ConditionFailed { operation, .. } => Some(*operation),
            _ => None,
        };
        if let Some(culprit) = culprit
            && parts.get(culprit).is_none_or(|part| matches!(part.wish, Wish::None))
        {
            scene.violation(format!("operation {culprit} of a batch is blamed, which has no condition"));
        }
        for (position, (part, operation)) in parts.iter().zip(operations).enumerate() {
            let of_part = match (&part.change, culprit) {
                (Change::Get, _) => Outcome::NotApplied,
                (_, Some(culprit)) if culprit != position => Outcome::NotApplied,
                _ => outcome.clone(),
            };
            scene.complete(operation, of_part);
        }
    }

    /// Reads a whole shard. Each key is read at some moment of the call.
    pub(crate) async fn scan(&mut self, shard: u32) {
        let scene = self.scene.clone();
        let keys = &scene.keys.by_shard[&shard];
        let operations: Vec<OperationId> =
            keys.iter().map(|key| scene.invoke(self.number, key, Action::Get)).collect();
        let request = Request::Scan(v1::Scan { shard, ..Default::default() });
        match self.lane.run(CallKind::Read, shard, request).await {
            Ok(Response::Scan(reply)) => {
                scene.succeeded();
                if !reply.items.is_sorted_by(|one, next| one.key < next.key) {
                    scene.violation("a scan is out of order".to_owned());
                }
                if let Some(item) = reply.items.iter().find(|item| !keys.contains(&item.key)) {
                    scene.violation(format!("a scan finds {}, which nobody wrote", escape(&item.key)));
                }
                for (key, operation) in keys.iter().zip(operations) {
                    let found = reply.items.iter().find(|item| item.key == *key);
                    let outcome = match found {
                        Some(item) => scene.read(key, &item.value, item.version),
                        None if reply.more => Outcome::NotApplied,
                        None => Outcome::Read { value: None, version: None },
                    };
                    scene.complete(operation, outcome);
                }
            }
            Ok(other) => unreachable!("the connection matches kinds: {other:?}"),
            Err(error) => {
                scene.failed(&error);
                for operation in operations {
                    scene.complete(operation, Outcome::NotApplied);
                }
            }
        }
    }
}

/// One operation of a batch.
pub(crate) struct Part {
    key: Bytes,
    change: Change,
    wish: Wish,
}

enum Change {
    Get,
    Put(Bytes),
    Delete,
}

impl Part {
    fn get(key: Bytes) -> Self {
        Self { key, change: Change::Get, wish: Wish::None }
    }

    pub(crate) fn put(key: Bytes, value: Bytes, wish: Wish) -> Self {
        Self { key, change: Change::Put(value), wish }
    }

    fn delete(key: Bytes, wish: Wish) -> Self {
        Self { key, change: Change::Delete, wish }
    }

    fn action(&self) -> Action {
        let condition = self.wish.in_history(&self.key);
        match &self.change {
            Change::Get => Action::Get,
            Change::Put(value) => {
                let value = data::name_of(&self.key, value).unwrap_or_else(|wrong| panic!("{wrong}"));
                Action::Put { value, condition }
            }
            Change::Delete => Action::Delete { condition },
        }
    }

    fn to_wire(&self) -> v1::Operation {
        use v1::operation::Operation as Wire;
        let (key, condition) = (self.key.clone(), self.wish.to_wire());
        let operation = match &self.change {
            Change::Get => Wire::Get(v1::OperationGet { key }),
            Change::Put(value) => Wire::Put(v1::OperationPut { key, value: value.clone(), condition }),
            Change::Delete => Wire::Delete(v1::OperationDelete { key, condition }),
        };
        v1::Operation { operation: Some(operation) }
    }

    fn outcome(&self, scene: &Scene, result: &v1::OperationResult) -> Outcome {
        match &self.change {
            Change::Get if result.existed => scene.read(&self.key, &result.value, result.version),
            Change::Get => Outcome::Read { value: None, version: None },
            // A put is blind: it does not say what was there.
            Change::Put(_) => Outcome::Written { version: Some(result.version), existed: None },
            Change::Delete => {
                let version = (result.existed && result.version != 0).then_some(result.version);
                Outcome::Written { version, existed: Some(result.existed) }
            }
        }
    }
}

/// The number in a counter's value.
pub(crate) fn count_of(value: &Bytes) -> u64 {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let number = text.split('.').next().and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no number in {text:?}"))
}
