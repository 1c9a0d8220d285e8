//! Krita by its native protocol, on the servers' own runtime: as a client library does, each request goes to the core
//! that leads its shard, over connections that the thread's workers share.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use krita_proto::error::ErrorCode;
use krita_proto::v1;
use krita_runtime::glommio::GlommioRuntime;
use krita_runtime::{Clock, Instant, Rng, Spawn, TaskClass};
use kritaclient::core::Moment;
use kritaclient::core::connection::Greeting;
use kritaclient::core::merge::{Merge, Merged};
use kritaclient::core::message::{Request as Wire, Response, ServerError};
use kritaclient::core::session::{LogClock, Sessions};
use kritaclient::core::topology::{Target as Place, Topology};
use rustls::ClientConfig;

use super::link::Link;
use super::{REQUEST_TIMEOUT, Reach};
use crate::Failure;
use crate::target::{Answer, Found, Problem, Request, Target};

/// Workers that share a session: fewer than a session's window, so that one always has room.
const WORKERS_PER_SESSION: usize = 128;

/// The connections to one core of one node.
struct Group {
    place: Place,
    slots: Vec<RefCell<Slot>>,
}

/// A place for a connection.
enum Slot {
    Open(Rc<Link>),
    /// A worker is connecting it.
    Connecting,
    Empty,
}

/// One thread's connections to a cluster.
pub struct Native {
    runtime: GlommioRuntime,
    reach: Reach,
    tls: Option<Arc<ClientConfig>>,
    started: Instant,
    topology: RefCell<Topology>,
    per_core: usize,
    groups: RefCell<BTreeMap<Place, Rc<Group>>>,
    /// Position = shard - 1; forgotten when the map changes.
    by_shard: RefCell<Vec<Option<Rc<Group>>>>,
    sessions: RefCell<Vec<Sessions>>,
    clock: RefCell<LogClock>,
    is_refreshing: Cell<bool>,
}

impl Native {
    /// Connects `connections`, spread over the cores that lead shards, at least one to each.
    ///
    /// # Errors
    /// The cluster cannot be reached, or refuses this client.
    pub async fn connect(runtime: GlommioRuntime, reach: Reach, connections: u32) -> Result<Self, Failure> {
        let tls = match &reach.ca_pem {
            None => None,
            Some(ca_pem) => {
                let tls = krita_net::tls::client_config(ca_pem);
                Some(tls.map_err(|error| Failure::new(error.to_string()))?)
            }
        };
        let mut failure = Failure::new("no node is named");
        let mut first = None;
        for address in &reach.nodes {
            let greeting = greeting(&reach, None);
            match Link::connect(&runtime, address, tls.as_ref(), &greeting).await {
                Ok(connected) => {
                    first = Some(connected);
                    break;
                }
                Err(reason) => failure = Failure::new(format!("cannot connect to {}", reason.text())),
            }
        }
        let (link, hello) = first.ok_or(failure)?;
        let failed = |reason: String| Failure::new(format!("cannot learn the shard map: {reason}"));
        let status = status(&link).await.map_err(|problem| failed(problem.name))?;
        let topology = Topology::new(&status).map_err(|error| failed(error.to_string()))?;
        let shards = topology.shard_count();
        let started = runtime.now();
        let mut clock = LogClock::default();
        clock.learn(hello.log_time_ms, Moment(0));
        let native = Self {
            runtime,
            reach,
            tls,
            started,
            topology: RefCell::new(topology),
            per_core: 1,
            groups: RefCell::default(),
            by_shard: RefCell::new(vec![None; shards as usize]),
            sessions: RefCell::default(),
            clock: RefCell::new(clock),
            is_refreshing: Cell::new(false),
        };
        native.connect_all(connections).await
    }

    async fn connect_all(mut self, connections: u32) -> Result<Self, Failure> {
        let shards = 1..=self.topology.borrow().shard_count();
        let places: std::collections::BTreeSet<Place> =
            shards.filter_map(|shard| self.topology.borrow().target(shard, None, 0, Moment(0))).collect();
        self.per_core = (connections as usize).div_ceil(places.len().max(1)).max(1);
        for place in places {
            let group = self.group(place);
            for slot in 0..group.slots.len() {
                if let Err(problem) = self.link(&group, slot).await {
                    return Err(Failure::new(format!("cannot connect: {}", problem.name)));
                }
            }
        }
        Ok(self)
    }

    /// How many data shards the cluster has.
    pub fn shards(&self) -> u32 {
        self.topology.borrow().shard_count()
    }

    fn moment(&self) -> Moment {
        Moment(u64::try_from(self.runtime.now().since(self.started).as_millis()).unwrap_or(u64::MAX))
    }

    fn group(&self, place: Place) -> Rc<Group> {
        let new = || {
            let slots = (0..self.per_core).map(|_| RefCell::new(Slot::Empty)).collect();
            Rc::new(Group { place: place.clone(), slots })
        };
        self.groups.borrow_mut().entry(place.clone()).or_insert_with(new).clone()
    }

    fn group_of(&self, shard: u32) -> Result<Rc<Group>, Problem> {
        let position = shard as usize - 1;
        if let Some(group) = &self.by_shard.borrow()[position] {
            return Ok(group.clone());
        }
        let place = self.topology.borrow().target(shard, None, 0, self.moment());
        let group = self.group(place.ok_or_else(|| Problem::refused("NO_LEADER_KNOWN"))?);
        self.by_shard.borrow_mut()[position] = Some(group.clone());
        Ok(group)
    }

    /// A connection of a group, made anew if it has ended.
    async fn link(&self, group: &Group, slot: usize) -> Result<Rc<Link>, Problem> {
        match &*group.slots[slot].borrow() {
            Slot::Open(link) if link.is_open() => return Ok(link.clone()),
            Slot::Connecting => return Err(Problem::refused("NOT_CONNECTED")),
            Slot::Open(_) | Slot::Empty => {}
        }
        *group.slots[slot].borrow_mut() = Slot::Connecting;
        let greeting = greeting(&self.reach, group.place.core);
        let connected =
            Link::connect(&self.runtime, &group.place.address, self.tls.as_ref(), &greeting).await;
        match connected {
            Ok((link, _)) => {
                *group.slots[slot].borrow_mut() = Slot::Open(link.clone());
                Ok(link)
            }
            Err(_) => {
                *group.slots[slot].borrow_mut() = Slot::Empty;
                Err(Problem::refused("NOT_CONNECTED"))
            }
        }
    }

    /// Sends a request to the leader of its shard; what the answer says of leaders is learnt.
    async fn ask(
        &self,
        worker: u32,
        shard: u32,
        request: &Wire,
    ) -> Result<Result<Response, ServerError>, Problem> {
        let group = self.group_of(shard)?;
        let asked = match self.link(&group, worker as usize % group.slots.len()).await {
            Ok(link) => link.call(request).await,
            Err(problem) => Err(problem),
        };
        match &asked {
            Err(_) => self.refresh().await,
            Ok(Err(error)) if matches!(error.code, ErrorCode::NotLeader | ErrorCode::Unavailable) => {
                self.refresh().await;
            }
            Ok(Err(_)) => {}
            Ok(Ok(response)) => {
                if let Some(served_by) = response.served_by()
                    && (served_by.node_number != group.place.node_number
                        || group.place.core.is_some_and(|core| u32::from(core) != served_by.core))
                {
                    self.topology.borrow_mut().hint(served_by);
                    self.by_shard.borrow_mut()[shard as usize - 1] = None;
                }
            }
        }
        asked
    }

    /// Fetches the map from whoever has it; one worker at a time.
    async fn refresh(&self) {
        if self.is_refreshing.replace(true) {
            return;
        }
        let mut links = Vec::new();
        for group in self.groups.borrow().values() {
            if let Slot::Open(link) = &*group.slots[0].borrow()
                && link.is_open()
            {
                links.push(link.clone());
            }
        }
        for link in links {
            if let Ok(status) = status(&link).await {
                // A map of another cluster is not taken; its nodes then refuse what is asked.
                let _kept = self.topology.borrow_mut().update(&status);
                self.by_shard.borrow_mut().fill(None);
                break;
            }
        }
        self.is_refreshing.set(false);
    }

    /// A write, under a request id.
    async fn write(
        &self,
        worker: u32,
        shard: u32,
        mut request: Wire,
    ) -> Result<Result<Response, ServerError>, Problem> {
        let session = worker as usize / WORKERS_PER_SESSION;
        let ticket = {
            let mut sessions = self.sessions.borrow_mut();
            if sessions.len() <= session {
                let now = self.moment();
                let log_time_ms = self.clock.borrow().estimate(now);
                sessions.resize_with(session + 1, || {
                    let mut new = Sessions::default();
                    new.learn_log_time(log_time_ms, now);
                    new
                });
            }
            sessions[session].begin(shard, self.moment(), self.runtime.random_u64())
        };
        let ticket = ticket.ok_or_else(|| Problem::refused("SESSION_FULL"))?;
        request.set_request_id(self.sessions.borrow()[session].request_id(&ticket));
        let asked = self.ask(worker, shard, &request).await;
        let sessions = &mut self.sessions.borrow_mut()[session];
        match &asked {
            Ok(Ok(_)) => sessions.succeeded(&ticket),
            Ok(Err(error)) if error.session_refused() => {
                sessions.refused(&ticket, error.message.log_time_ms, self.moment());
            }
            Ok(Err(_)) | Err(_) => {}
        }
        sessions.end(&ticket);
        asked
    }

    fn shard_of(&self, key: &[u8]) -> u32 {
        self.topology.borrow().shard_of(key)
    }

    /// Does something for each shard's part of a list at once, and all of it before it returns.
    async fn by_shard<I: Clone, A, F: Future<Output = Result<A, Problem>>>(
        &self,
        items: &[I],
        key: impl Fn(&I) -> &[u8],
        ask: impl Fn(u32, Vec<I>) -> F,
    ) -> Result<Vec<(Vec<usize>, A)>, Problem> {
        let mut parts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (position, item) in items.iter().enumerate() {
            parts.entry(self.shard_of(key(item))).or_default().push(position);
        }
        let asked = parts.iter().map(|(shard, positions)| {
            ask(*shard, positions.iter().map(|position| items[*position].clone()).collect())
        });
        let answers = join_all(asked).await;
        parts.into_values().zip(answers).map(|(positions, answer)| Ok((positions, answer?))).collect()
    }

    async fn scan(&self, worker: u32, start: Bytes, items: u32) -> Result<Answer, Problem> {
        let shards = self.shards();
        let mut merge = Merge::new(shards, &start);
        let mut found = Vec::new();
        // Each shard's fair part and some more: few pages are then too short, and little is read in vain.
        let items_max = items / shards * 2 + 4;
        loop {
            match merge.next_item() {
                Merged::End => return Ok(Answer::Items(found)),
                Merged::Item(item) => {
                    found.push((item.key, item.value));
                    if found.len() >= items as usize {
                        return Ok(Answer::Items(found));
                    }
                }
                Merged::Waiting => {
                    let fetches = merge.fetches();
                    let pages = join_all(fetches.iter().map(|fetch| {
                        let scan = v1::Scan {
                            shard: fetch.shard,
                            start: fetch.start.clone(),
                            items_max,
                            timeout_ms: timeout_ms(),
                            ..v1::Scan::default()
                        };
                        let shard = fetch.shard;
                        async move { self.ask(worker, shard, &Wire::Scan(scan)).await }
                    }));
                    for (fetch, page) in fetches.iter().zip(pages.await) {
                        let Response::Scan(page) = page?.map_err(|error| problem(&error))? else {
                            return Err(Problem::odd());
                        };
                        merge.page(fetch.shard, page).map_err(|_| Problem::odd())?;
                    }
                }
            }
        }
    }

    async fn get_many(&self, worker: u32, keys: &[Bytes]) -> Result<Answer, Problem> {
        let parts = self.by_shard(
            keys,
            |key| key,
            |shard, keys| async move {
                let get = |key| operation(v1::operation::Operation::Get(v1::OperationGet { key }));
                let operations = keys.into_iter().map(get).collect();
                let batch = v1::Batch {
                    shard,
                    operations,
                    request_id: None,
                    timeout_ms: timeout_ms(),
                    ..Default::default()
                };
                match self.ask(worker, shard, &Wire::Batch(batch)).await? {
                    Ok(Response::Batch(reply)) => Ok(reply.results),
                    Ok(_) => Err(Problem::odd()),
                    Err(error) => Err(problem(&error)),
                }
            },
        );
        let mut values = vec![None; keys.len()];
        for (positions, results) in parts.await? {
            for (position, result) in positions.into_iter().zip(results) {
                values[position] = result.existed.then_some(result.value);
            }
        }
        Ok(Answer::Values(values))
    }

    async fn put_many(&self, worker: u32, pairs: &[(Bytes, Bytes)]) -> Result<Answer, Problem> {
        let parts = self.by_shard(
            pairs,
            |(key, _)| key,
            |shard, pairs| async move {
                let put = |(key, value)| {
                    operation(v1::operation::Operation::Put(v1::OperationPut { key, value, condition: None }))
                };
                let operations = pairs.into_iter().map(put).collect();
                let batch = v1::Batch {
                    shard,
                    operations,
                    request_id: None,
                    timeout_ms: timeout_ms(),
                    ..Default::default()
                };
                match self.write(worker, shard, Wire::Batch(batch)).await? {
                    Ok(_) => Ok(()),
                    Err(error) => Err(problem(&error)),
                }
            },
        );
        parts.await.map(|_| Answer::Done)
    }
}

fn operation(operation: v1::operation::Operation) -> v1::Operation {
    v1::Operation { operation: Some(operation) }
}

fn timeout_ms() -> u32 {
    u32::try_from(REQUEST_TIMEOUT.as_millis()).unwrap_or(u32::MAX)
}

fn greeting(reach: &Reach, core: Option<u16>) -> Greeting {
    Greeting {
        cluster_name: reach.cluster_name.clone(),
        token: reach.token.clone(),
        core,
        client_name: concat!("krita-bench ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

async fn status(link: &Link) -> Result<v1::ClusterStatusReply, Problem> {
    match link.call(&Wire::ClusterStatus(v1::ClusterStatus {})).await? {
        Ok(Response::ClusterStatus(status)) => Ok(status),
        Ok(_) => Err(Problem::odd()),
        Err(error) => Err(problem(&error)),
    }
}

pub(super) fn problem(error: &ServerError) -> Problem {
    if error.session_refused() {
        return Problem::refused("SESSION_REFUSED");
    }
    let is_unknown = match error.code {
        ErrorCode::UnknownOutcome | ErrorCode::Internal => true,
        ErrorCode::InvalidArgument
        | ErrorCode::WrongCluster
        | ErrorCode::Unauthenticated
        | ErrorCode::PermissionDenied
        | ErrorCode::ConditionFailed
        | ErrorCode::NotLeader
        | ErrorCode::Unavailable
        | ErrorCode::Overloaded
        | ErrorCode::ResourceExhausted
        | ErrorCode::DeadlineExceeded
        | ErrorCode::Corruption
        | ErrorCode::NotReady => false,
    };
    Problem { name: error.code.name().to_owned(), is_unknown }
}

/// The condition that a value is still the one that was found.
pub(super) fn unchanged(found: Option<&Found>) -> v1::Condition {
    let version = found.map_or(0, |found| found.version);
    v1::Condition { condition: Some(v1::condition::Condition::IfVersion(version)) }
}

impl Target for Native {
    async fn perform(&self, worker: u32, request: Request) -> Result<Answer, Problem> {
        match request {
            Request::Put { key, value } => {
                let shard = self.shard_of(&key);
                let put = v1::Put { key, value, timeout_ms: timeout_ms(), ..v1::Put::default() };
                match self.write(worker, shard, Wire::Put(put)).await? {
                    Ok(_) => Ok(Answer::Done),
                    Err(error) => Err(problem(&error)),
                }
            }
            Request::Get { key } => {
                let shard = self.shard_of(&key);
                let get = v1::Get { key, timeout_ms: timeout_ms(), ..Default::default() };
                match self.ask(worker, shard, &Wire::Get(get)).await? {
                    Ok(Response::Get(reply)) => {
                        let found = Found { value: reply.value, version: reply.version };
                        Ok(Answer::Value(reply.found.then_some(found)))
                    }
                    Ok(_) => Err(Problem::odd()),
                    Err(error) => Err(problem(&error)),
                }
            }
            Request::Scan { start, items } => self.scan(worker, start, items).await,
            Request::PutMany(pairs) => self.put_many(worker, &pairs).await,
            Request::GetMany(keys) => self.get_many(worker, &keys).await,
            Request::Swap { key, found, value } => {
                let shard = self.shard_of(&key);
                let condition = Some(unchanged(found.as_ref()));
                let put = v1::Put { key, value, condition, request_id: None, timeout_ms: timeout_ms() };
                match self.write(worker, shard, Wire::Put(put)).await? {
                    Ok(_) => Ok(Answer::Done),
                    Err(error) if error.code == ErrorCode::ConditionFailed => Ok(Answer::NotSwapped),
                    Err(error) => Err(problem(&error)),
                }
            }
        }
    }

    async fn sleep(&self, duration: Duration) {
        self.runtime.sleep(duration).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.runtime.spawn(TaskClass::Foreground, "load", task);
    }
}
