//! What all calls of a client share: the map, the sessions, the budget and the connections; and the loop that takes
//! one call from its first attempt to its end.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::core::Moment;
use crate::core::call::{Attempt, Call, CallKind, Next, Retry};
use crate::core::message::{Request, Response};
use crate::core::retry::{RetryBudget, milliseconds};
use crate::core::session::{Sessions, Ticket};
use crate::core::topology::{Target, Topology};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::pool::Pool;
use crate::transport::Connector;
use crate::v1;
use krita_proto::error::ErrorCode;
use krita_proto::routing::TIMEOUT_MS_MAX;

/// How long one node may take to say what it knows of the cluster, or of itself.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long after one of the named nodes the next one is greeted, while none has answered.
const GREETING_STAGGER: Duration = Duration::from_millis(250);

/// How long a node that failed is asked last.
const SUSPICION_MS: u64 = 1_000;

/// What is shared by all clones of a client.
pub(crate) struct Cluster {
    pub(crate) options: Options,
    pool: Pool,
    origin: Instant,
    /// Spreads reads that any replica may answer over clients.
    preference: u32,
    state: Mutex<State>,
    /// One refresh at a time; whoever waited for it shares its result.
    refreshing: tokio::sync::Mutex<Refreshed>,
    /// A write has ended: there may be room in a session's window.
    write_ended: Notify,
}

#[derive(Default)]
struct Refreshed {
    last: Option<(Instant, Result<()>)>,
}

struct State {
    topology: Option<Topology>,
    sessions: Sessions,
    budget: RetryBudget,
    random: SplitMix,
}

/// Spreads pauses and choices; not for anything that must be unguessable (Steele et al., "Fast splittable
/// pseudorandom number generators", 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// 64 bits from the operating system.
pub(crate) fn unpredictable() -> Result<u64> {
    getrandom::u64().map_err(|error| {
        Error::new(ErrorCode::Internal, format!("the operating system gives no random bytes: {error}"))
    })
}

/// A write's ticket, ended when dropped: also if the caller drops the call half-way.
struct OpenTicket<'a> {
    cluster: &'a Cluster,
    ticket: Ticket,
}

impl Drop for OpenTicket<'_> {
    fn drop(&mut self) {
        self.cluster.state().sessions.end(&self.ticket);
        self.cluster.write_ended.notify_waiters();
    }
}

impl Cluster {
    pub(crate) fn new(options: Options) -> Result<Self> {
        if options.nodes.is_empty() {
            return Err(Error::invalid("no node is named: give at least one host:port"));
        }
        let connector = Connector::new(&options)?;
        let state = State {
            topology: None,
            sessions: Sessions::default(),
            budget: RetryBudget::new(Moment(0)),
            random: SplitMix(unpredictable()?),
        };
        Ok(Self {
            options,
            pool: Pool::new(connector),
            origin: Instant::now(),
            preference: unpredictable()? as u32,
            state: Mutex::new(state),
            refreshing: tokio::sync::Mutex::default(),
            write_ended: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half-done here: each use is one method call on a part.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        Moment(milliseconds(self.origin.elapsed()))
    }

    fn instant(&self, moment: Moment) -> Instant {
        self.origin + Duration::from_millis(moment.0)
    }

    pub(crate) fn timeout_ms(&self, timeout: Option<Duration>) -> u64 {
        milliseconds(timeout.unwrap_or(self.options.timeout)).clamp(1, u64::from(TIMEOUT_MS_MAX))
    }

    /// A call that begins now.
    pub(crate) fn call(&self, kind: CallKind, timeout: Option<Duration>) -> Call {
        Call::new(kind, self.options.retry, self.now(), self.timeout_ms(timeout))
    }

    /// Says hello to the first named node that answers. One that is slow to answer does not hold up the others.
    pub(crate) async fn greet(self: &Arc<Self>) -> Result<()> {
        let mut attempts = tokio::task::JoinSet::new();
        let mut untried = self.options.nodes.iter();
        let mut told = None;
        loop {
            match untried.next() {
                Some(address) => {
                    let (cluster, address) = (self.clone(), address.clone());
                    attempts.spawn(async move { cluster.pool.link(&address, None).await });
                }
                None if attempts.is_empty() => return Err(told.expect("there is at least one node")),
                None => {}
            }
            let patience = if untried.len() > 0 { GREETING_STAGGER } else { Duration::MAX };
            match tokio::time::timeout(patience, attempts.join_next()).await {
                Ok(Some(Ok(Ok(link)))) => {
                    self.learn_log_time(link.take_log_time());
                    return Ok(());
                }
                Ok(Some(Ok(Err(error)))) => told = Some(more_telling(told, error)),
                Ok(Some(Err(failure))) => std::panic::resume_unwind(failure.into_panic()),
                // None is under way, or the first ones take their time: the next one.
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Runs `read` on the map, which is fetched first if there is none.
    pub(crate) async fn with_topology<R>(&self, call: &mut Call, read: impl Fn(&Topology) -> R) -> Result<R> {
        loop {
            if let Some(topology) = &self.state().topology {
                return Ok(read(topology));
            }
            let now = self.now();
            if call.attempt_ms(now).is_none() {
                return Err(call.give_up(now));
            }
            if let Err(error) = self.refresh(call.deadline()).await {
                self.after_failure(call, Attempt::NotSent(error)).await?;
            }
        }
    }

    /// Takes a call on one shard from its first attempt to its end.
    pub(crate) async fn run(
        &self,
        mut call: Call,
        kind: CallKind,
        shard: u32,
        mut request: Request,
    ) -> Result<Response> {
        let is_write = kind != CallKind::Read;
        let mut ticket = if is_write { Some(self.begin_write(shard, &call).await?) } else { None };
        let mut avoid = None;
        loop {
            let now = self.now();
            let Some(attempt_ms) = call.attempt_ms(now) else { return Err(call.give_up(now)) };
            let target = self.prepare(&call, shard, avoid, ticket.as_ref(), &mut request, now);
            let Some(target) = target else {
                return Err(Error::new(ErrorCode::Internal, format!("the map has no shard {shard}")));
            };
            request.set_timeout_ms(server_timeout_ms(attempt_ms));
            let deadline = self.instant(now.after(attempt_ms));
            match self.attempt(&target, request.clone(), deadline).await {
                Ok(response) => {
                    self.succeeded(&target, &response, ticket.as_ref());
                    return Ok(response);
                }
                Err(attempt) => {
                    self.note_failure(&target, &attempt);
                    let retry = self.after_failure(&mut call, attempt).await?;
                    avoid = retry.avoid.then_some(target.node_number);
                    if let Some(log_time_ms) = retry.new_session_at_ms
                        && let Some(refused) = ticket.take()
                    {
                        let now = self.now();
                        self.state().sessions.refused(&refused.ticket, log_time_ms, now);
                        drop(refused);
                        ticket = Some(self.begin_write(shard, &call).await?);
                    }
                }
            }
        }
    }

    /// The state's part in an attempt: where it goes, and under which id.
    fn prepare(
        &self,
        call: &Call,
        shard: u32,
        avoid: Option<u32>,
        ticket: Option<&OpenTicket<'_>>,
        request: &mut Request,
        now: Moment,
    ) -> Option<Target> {
        let state = self.state();
        if let Some(open) = ticket {
            request.set_request_id(state.sessions.request_id(&open.ticket));
        }
        let topology = state.topology.as_ref()?;
        match request.takes_any() {
            true => {
                // The same replica for the same client and shard, so that a scan stays where it is held.
                let rotation = call.attempts().wrapping_add(self.preference).wrapping_add(shard);
                topology.target_of_any(shard, avoid, rotation, now)
            }
            false => topology.target(shard, avoid, call.attempts(), now),
        }
    }

    async fn attempt(
        &self,
        target: &Target,
        request: Request,
        deadline: Instant,
    ) -> Result<Response, Attempt> {
        let link = match tokio::time::timeout_at(deadline, self.pool.link(&target.address, target.core)).await
        {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return Err(Attempt::NotSent(error)),
            Err(_) => {
                let message = format!("cannot reach {}: no connection in time", target.address);
                return Err(Attempt::NotSent(Error::new(ErrorCode::Unavailable, message)));
            }
        };
        self.learn_log_time(link.take_log_time());
        link.call(request, deadline).await
    }

    fn learn_log_time(&self, log_time_ms: Option<u64>) {
        if let Some(log_time_ms) = log_time_ms {
            let now = self.now();
            self.state().sessions.learn_log_time(log_time_ms, now);
        }
    }

    /// A place in the shard's session; waits while its window is full.
    async fn begin_write(&self, shard: u32, call: &Call) -> Result<OpenTicket<'_>> {
        let random = unpredictable()?;
        loop {
            let mut ended = std::pin::pin!(self.write_ended.notified());
            // Registered before the look, so that no end is missed between the two.
            ended.as_mut().enable();
            let now = self.now();
            if let Some(ticket) = self.state().sessions.begin(shard, now, random) {
                return Ok(OpenTicket { cluster: self, ticket });
            }
            let deadline = self.instant(call.deadline());
            if tokio::time::timeout_at(deadline, ended).await.is_err() {
                return Err(call.give_up(self.now()));
            }
        }
    }

    fn succeeded(&self, target: &Target, response: &Response, ticket: Option<&OpenTicket<'_>>) {
        let mut state = self.state();
        state.budget.succeeded();
        if let Some(open) = ticket {
            state.sessions.succeeded(&open.ticket);
        }
        if let Some(topology) = &mut state.topology {
            topology.clear_suspicion(target.node_number);
            if let Some(hint) = response.served_by() {
                // A newer map is fetched by the next call that fails; this one went well.
                topology.hint(hint);
            }
        }
    }

    fn note_failure(&self, target: &Target, attempt: &Attempt) {
        let now = self.now();
        let mut state = self.state();
        match attempt {
            Attempt::Refused(error) => {
                if error.message.log_time_ms != 0 {
                    state.sessions.learn_log_time(error.message.log_time_ms, now);
                }
                if let (Some(topology), Some(hint)) = (&mut state.topology, &error.message.hint) {
                    topology.hint(hint);
                }
            }
            // The node may be back at once; the next attempt avoids it, no more.
            Attempt::Lost(_) => {}
            Attempt::NotSent(_) | Attempt::TimedOut => {
                if let Some(topology) = &mut state.topology {
                    topology.suspect(target.node_number, now.after(SUSPICION_MS));
                }
            }
        }
    }

    /// Decides what follows a failed attempt; if that is another one, waits until it may be sent.
    async fn after_failure(&self, call: &mut Call, attempt: Attempt) -> Result<Retry> {
        let now = self.now();
        let random = self.state().random.next();
        let next = call.failed(attempt, now, random);
        let attempts = call.attempts();
        let reason = call.last_failure().map(tracing::field::display);
        let retry = match next {
            Next::Fail(error) => {
                tracing::debug!(attempts, reason, %error, "a call has failed");
                return Err(error);
            }
            Next::Retry(retry) => retry,
        };
        tracing::debug!(
            attempts,
            reason,
            pause_ms = retry.pause_ms,
            "an attempt has failed; another follows"
        );
        let charged_ms = if retry.is_charged { self.state().budget.take(now) } else { 0 };
        let until = now.after(retry.pause_ms + charged_ms).min(call.deadline());
        if until > now {
            tokio::time::sleep_until(self.instant(until)).await;
        }
        if retry.refresh && self.state().topology.is_some() {
            // Without news the call goes on with what it knows.
            if let Err(error) = self.refresh(call.deadline()).await {
                tracing::debug!(%error, "the map could not be refreshed");
            }
        }
        Ok(retry)
    }

    /// Asks the members, and the nodes named at the start, for the map, until one answers.
    pub(crate) async fn refresh(&self, deadline: Moment) -> Result<()> {
        let began = Instant::now();
        let until = self.instant(deadline);
        let late = || Error::new(ErrorCode::DeadlineExceeded, "no node told the cluster's map in time");
        let mut refreshed = match tokio::time::timeout_at(until, self.refreshing.lock()).await {
            Ok(refreshed) => refreshed,
            Err(_) => return Err(late()),
        };
        if let Some((_, result)) = refreshed.last.as_ref().filter(|(at, _)| *at >= began) {
            return result.clone();
        }
        let result = match tokio::time::timeout_at(until, self.fetch_status()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error),
            // Not remembered: another caller may have more time.
            Err(_) => return Err(late()),
        };
        refreshed.last = Some((Instant::now(), result.clone()));
        result
    }

    /// The status that the first node that has one tells; the map is updated by it.
    pub(crate) async fn fetch_status(&self) -> Result<v1::ClusterStatusReply> {
        let mut told = None;
        for target in self.informants() {
            match self.status_of(&target).await {
                Ok(status) => return Ok(status),
                Err(error) => told = Some(more_telling(told, error)),
            }
        }
        Err(told.expect("there is at least one node"))
    }

    async fn status_of(&self, target: &Target) -> Result<v1::ClusterStatusReply> {
        let request = Request::ClusterStatus(v1::ClusterStatus {});
        let status = match self.ask(target, request, STATUS_TIMEOUT).await? {
            Response::ClusterStatus(status) => status,
            other => return Err(unexpected(&other)),
        };
        let now = self.now();
        let mut state = self.state();
        if status.log_time_ms != 0 {
            state.sessions.learn_log_time(status.log_time_ms, now);
        }
        let updated = match &mut state.topology {
            Some(topology) => topology.update(&status),
            empty => Topology::new(&status).map(|topology| *empty = Some(topology)),
        };
        updated.map_err(|error| Error::new(ErrorCode::NotReady, format!("{}: {error}", target.address)))?;
        drop(state);
        self.forget_strangers(&status);
        Ok(status)
    }

    fn forget_strangers(&self, status: &v1::ClusterStatusReply) {
        let nodes = &self.options.nodes;
        self.pool.retain(|address| {
            nodes.iter().any(|node| node == address)
                || status.members.iter().any(|member| member.address == address)
        });
    }

    fn informants(&self) -> Vec<Target> {
        let now = self.now();
        let mut state = self.state();
        let rotation = state.random.next() as u32;
        let mut targets =
            state.topology.as_ref().map_or_else(Vec::new, |known| known.informants(rotation, now));
        drop(state);
        let mut named: Vec<&String> = self.options.nodes.iter().collect();
        // One that has answered before is likely to answer again.
        named.sort_by_key(|address| !self.pool.is_open(address));
        for address in named {
            if targets.iter().all(|target| target.address != *address) {
                targets.push(Target { node_number: 0, address: address.clone(), core: None });
            }
        }
        targets
    }

    /// One request to one node, once.
    pub(crate) async fn ask(&self, target: &Target, request: Request, limit: Duration) -> Result<Response> {
        let address = &target.address;
        let outcome = self.attempt(target, request, Instant::now() + limit).await;
        outcome.map_err(|attempt| {
            self.note_failure(target, &attempt);
            match attempt {
                Attempt::Refused(error) => error.to_error(),
                Attempt::NotSent(error) => error,
                Attempt::Lost(reason) => Error::new(ErrorCode::Unavailable, format!("{address}: {reason}")),
                Attempt::TimedOut => {
                    let waited = limit.as_millis();
                    Error::new(
                        ErrorCode::DeadlineExceeded,
                        format!("{address} gave no answer in {waited} ms"),
                    )
                }
            }
        })
    }

    /// What the node at `address` says of itself.
    pub(crate) async fn node_status(&self, address: &str, limit: Duration) -> Result<v1::NodeStatusReply> {
        let target = Target { node_number: 0, address: address.to_owned(), core: None };
        let request = Request::NodeStatus(v1::NodeStatus { shards: true });
        match self.ask(&target, request, limit).await? {
            Response::NodeStatus(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the node at `address` begin to check all that it stores.
    pub(crate) async fn scrub(&self, address: &str, limit: Duration) -> Result<()> {
        let target = Target { node_number: 0, address: address.to_owned(), core: None };
        match self.ask(&target, Request::Scrub(v1::Scrub {}), limit).await? {
            Response::Scrub(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The cluster's own state, from whichever node can say it.
    pub(crate) async fn read_cluster(
        &self,
        without_shards: bool,
        limit: Duration,
    ) -> Result<v1::MetaSnapshot> {
        let mut told = None;
        let timeout_ms = server_timeout_ms(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        for target in self.informants() {
            let request = Request::ClusterRead(v1::ClusterRead { without_shards, timeout_ms });
            match self.ask(&target, request, limit).await {
                Ok(Response::ClusterRead(reply)) => return Ok(reply.state.unwrap_or_default()),
                Ok(other) => return Err(unexpected(&other)),
                Err(error) => told = Some(more_telling(told, error)),
            }
        }
        Err(told.expect("there is at least one node"))
    }

    /// Changes the cluster's own state, by way of the first node that takes the request. Asked of another node only
    /// while nothing was changed for certain.
    pub(crate) async fn change_cluster(
        &self,
        change: v1::cluster_change::Change,
        limit: Duration,
    ) -> Result<v1::ClusterChangeReply> {
        let mut told = None;
        let timeout_ms = server_timeout_ms(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        for target in self.informants() {
            let request = v1::ClusterChange { change: Some(change.clone()), timeout_ms };
            match self.ask(&target, Request::ClusterChange(request), limit).await {
                Ok(Response::ClusterChange(reply)) => return Ok(reply),
                Ok(other) => return Err(unexpected(&other)),
                Err(error) if matches!(error.code(), ErrorCode::Unavailable | ErrorCode::NotReady) => {
                    told = Some(more_telling(told, error));
                }
                Err(error) => return Err(error),
            }
        }
        Err(told.expect("there is at least one node"))
    }

    /// Compares the replicas of one shard.
    pub(crate) async fn verify(&self, shard: u32) -> Result<v1::VerifyReply> {
        let mut call = self.call(CallKind::Read, None);
        self.with_topology(&mut call, |_| ()).await?;
        let request = Request::Verify(v1::Verify { shard, timeout_ms: 0 });
        match self.run(call, CallKind::Read, shard, request).await? {
            Response::Verify(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn order_shard(&self, order: v1::ShardOrder) -> Result<v1::ShardView> {
        let mut call = self.call(CallKind::Read, None);
        self.with_topology(&mut call, |_| ()).await?;
        match self.run(call, CallKind::Read, order.shard, Request::ShardOrder(order)).await? {
            Response::ShardView(view) => Ok(view),
            other => Err(unexpected(&other)),
        }
    }
}

/// A good answer of another kind than was asked for. The connection matches kinds, so this is a bug.
pub(crate) fn unexpected(response: &Response) -> Error {
    Error::new(ErrorCode::Internal, format!("an answer of the wrong kind: {response:?}"))
}

/// The server gives up a little earlier than the client, so that its reason still arrives.
fn server_timeout_ms(attempt_ms: u64) -> u32 {
    let early = (attempt_ms / 8).min(200);
    u32::try_from(attempt_ms - early).unwrap_or(TIMEOUT_MS_MAX).clamp(1, TIMEOUT_MS_MAX)
}

/// Of two nodes' errors the one that tells the caller what to change.
fn more_telling(first: Option<Error>, second: Error) -> Error {
    let weight = |error: &Error| match error {
        Error::Denied(_) => 3,
        Error::Configuration(_) | Error::InvalidRequest(_) => 2,
        Error::Failed(_) | Error::UnknownOutcome(_) | Error::ConditionFailed { .. } => 1,
        Error::Unavailable(_) => 0,
    };
    match first {
        Some(first) if weight(&first) >= weight(&second) => first,
        Some(_) | None => second,
    }
}

/// Runs futures at the same time, at most `limit` of them, and gives their results in the order of the work.
pub(crate) async fn in_parallel<W, R, F>(
    work: Vec<W>,
    limit: usize,
    run: impl Fn(Arc<Cluster>, W) -> F,
    cluster: &Arc<Cluster>,
) -> Vec<R>
where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let mut results: Vec<Option<R>> = work.iter().map(|_| None).collect();
    let mut tasks = tokio::task::JoinSet::new();
    let mut work = work.into_iter().enumerate();
    loop {
        while tasks.len() < limit
            && let Some((position, item)) = work.next()
        {
            let future = run(cluster.clone(), item);
            tasks.spawn(async move { (position, future.await) });
        }
        match tasks.join_next().await {
            None => break,
            Some(Ok((position, result))) => results[position] = Some(result),
            Some(Err(failure)) => std::panic::resume_unwind(failure.into_panic()),
        }
    }
    results.into_iter().flatten().collect()
}
