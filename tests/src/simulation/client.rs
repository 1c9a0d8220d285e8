//! A client in the simulator: the client library's pure core (topology, sessions, retries), driven by simulated
//! streams and clocks as `krita-client` drives it by tokio.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use krita_proto::v1;
use krita_runtime::sim::{Random, SimRuntime};
use krita_runtime::{Clock, Instant};
use kritaclient::core::Moment;
use kritaclient::core::call::{Attempt, Call, CallKind, Next, Retry};
use kritaclient::core::connection::Greeting;
use kritaclient::core::message::{Request, Response};
use kritaclient::core::retry::{RetryBudget, RetryPolicy};
use kritaclient::core::session::{Sessions, Ticket};
use kritaclient::core::topology::{Target, Topology};
use kritaclient::{Error, ErrorCode};

use super::link::Link;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(600);
const STATUS_TIMEOUT: Duration = Duration::from_millis(600);
const SUSPICION_MS: u64 = 500;

/// What all lanes of one client share, as all calls of the real client do.
pub(crate) struct Shared {
    topology: Option<Topology>,
    sessions: Sessions,
    budget: RetryBudget,
    origin: Instant,
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub(crate) struct ClientOptions {
    pub(crate) cluster_name: String,
    pub(crate) nodes: Vec<String>,
    pub(crate) policy: RetryPolicy,
    /// How long a call may take in all.
    pub(crate) timeout: Duration,
}

/// One of a client's lanes: calls on it go one after the other, on connections of its own.
pub(crate) struct Lane {
    pub(crate) runtime: SimRuntime,
    pub(crate) random: Random,
    options: Rc<ClientOptions>,
    shared: Rc<RefCell<Shared>>,
    links: BTreeMap<(String, Option<u16>), Link>,
}

impl Shared {
    pub(crate) fn new(runtime: &SimRuntime) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            topology: None,
            sessions: Sessions::default(),
            budget: RetryBudget::new(Moment(0)),
            origin: runtime.now(),
        }))
    }
}

impl Lane {
    pub(crate) fn new(
        runtime: SimRuntime,
        random: Random,
        options: Rc<ClientOptions>,
        shared: Rc<RefCell<Shared>>,
    ) -> Self {
        Self { runtime, random, options, shared, links: BTreeMap::new() }
    }

    fn now(&self) -> Moment {
        let elapsed = self.runtime.now().since(self.shared.borrow().origin);
        Moment(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    async fn sleep_ms(&self, milliseconds: u64) {
        self.runtime.sleep(Duration::from_millis(milliseconds)).await;
    }

    /// Takes a request on a shard from its first attempt to its end.
    pub(crate) async fn run(
        &mut self,
        kind: CallKind,
        shard: u32,
        mut request: Request,
    ) -> Result<Response, Error> {
        let timeout_ms = u64::try_from(self.options.timeout.as_millis()).unwrap_or(u64::MAX);
        let mut call = Call::new(kind, self.options.policy, self.now(), timeout_ms);
        self.learn_topology(&mut call).await?;
        let mut ticket = None;
        if kind != CallKind::Read {
            ticket = Some(self.begin_write(shard, &call).await?);
        }
        let outcome = self.run_attempts(&mut call, shard, &mut request, &mut ticket).await;
        if let Some(ticket) = &ticket {
            self.shared.borrow_mut().sessions.end(ticket);
        }
        outcome
    }

    async fn run_attempts(
        &mut self,
        call: &mut Call,
        shard: u32,
        request: &mut Request,
        ticket: &mut Option<Ticket>,
    ) -> Result<Response, Error> {
        let mut avoid = None;
        loop {
            let now = self.now();
            let Some(attempt_ms) = call.attempt_ms(now) else { return Err(call.give_up(now)) };
            let target = {
                let shared = self.shared.borrow();
                if let Some(ticket) = ticket {
                    request.set_request_id(shared.sessions.request_id(ticket));
                }
                let topology = shared.topology.as_ref().expect("it was learnt");
                topology.target(shard, avoid, call.attempts(), now).expect("the shard exists")
            };
            request.set_timeout_ms(u32::try_from(attempt_ms - (attempt_ms / 8).min(200)).unwrap_or(1).max(1));
            match self.attempt(&target, request, Duration::from_millis(attempt_ms)).await {
                Ok(response) => {
                    self.succeeded(&target, &response, ticket.as_ref());
                    return Ok(response);
                }
                Err(attempt) => {
                    self.note_failure(&target, &attempt);
                    let retry = self.after_failure(call, attempt).await?;
                    avoid = retry.avoid.then_some(target.node_number);
                    if let Some(log_time_ms) = retry.new_session_at_ms
                        && let Some(refused) = ticket.take()
                    {
                        let now = self.now();
                        self.shared.borrow_mut().sessions.refused(&refused, log_time_ms, now);
                        self.shared.borrow_mut().sessions.end(&refused);
                        *ticket = Some(self.begin_write(shard, call).await?);
                    }
                }
            }
        }
    }

    async fn begin_write(&self, shard: u32, call: &Call) -> Result<Ticket, Error> {
        loop {
            let (now, random) = (self.now(), self.random.next());
            if let Some(ticket) = self.shared.borrow_mut().sessions.begin(shard, now, random) {
                return Ok(ticket);
            }
            if now >= call.deadline() {
                return Err(call.give_up(now));
            }
            self.sleep_ms(5).await;
        }
    }

    async fn attempt(
        &mut self,
        target: &Target,
        request: &Request,
        limit: Duration,
    ) -> Result<Response, Attempt> {
        let start = self.runtime.now();
        let key = (target.address.clone(), target.core);
        let mut kept = self.links.remove(&key);
        if let Some(link) = &mut kept
            && !link.is_open().await
        {
            kept = None;
        }
        let mut link = match kept {
            Some(link) => link,
            None => {
                let greeting = Greeting {
                    cluster_name: self.options.cluster_name.clone(),
                    token: String::new(),
                    core: target.core,
                    client_name: "simulation".to_owned(),
                };
                let opened =
                    Link::open(&self.runtime, &target.address, &greeting, limit.min(CONNECT_TIMEOUT)).await;
                let (link, log_time_ms) = opened.map_err(Attempt::NotSent)?;
                self.learn_log_time(log_time_ms);
                link
            }
        };
        let rest = limit.saturating_sub(self.runtime.now().since(start));
        let outcome = link.call(&self.runtime, request, rest).await;
        if link.is_open().await {
            self.links.insert(key, link);
        }
        outcome
    }

    fn learn_log_time(&self, log_time_ms: u64) {
        if log_time_ms != 0 {
            let now = self.now();
            self.shared.borrow_mut().sessions.learn_log_time(log_time_ms, now);
        }
    }

    fn succeeded(&self, target: &Target, response: &Response, ticket: Option<&Ticket>) {
        let mut shared = self.shared.borrow_mut();
        shared.budget.succeeded();
        if let Some(ticket) = ticket {
            shared.sessions.succeeded(ticket);
        }
        if let Some(topology) = &mut shared.topology {
            topology.clear_suspicion(target.node_number);
            if let Some(hint) = response.served_by() {
                topology.hint(hint);
            }
        }
    }

    fn note_failure(&self, target: &Target, attempt: &Attempt) {
        let now = self.now();
        let mut shared = self.shared.borrow_mut();
        match attempt {
            Attempt::Refused(error) => {
                if error.message.log_time_ms != 0 {
                    shared.sessions.learn_log_time(error.message.log_time_ms, now);
                }
                if let (Some(topology), Some(hint)) = (&mut shared.topology, &error.message.hint) {
                    topology.hint(hint);
                }
            }
            Attempt::NotSent(_) | Attempt::Lost(_) | Attempt::TimedOut => {
                if let Some(topology) = &mut shared.topology {
                    topology.suspect(target.node_number, now.after(SUSPICION_MS));
                }
            }
        }
    }

    /// Decides what follows a failed attempt, and waits until then.
    async fn after_failure(&mut self, call: &mut Call, attempt: Attempt) -> Result<Retry, Error> {
        let now = self.now();
        let retry = match call.failed(attempt, now, self.random.next()) {
            Next::Fail(error) => return Err(error),
            Next::Retry(retry) => retry,
        };
        let charged_ms = if retry.is_charged { self.shared.borrow_mut().budget.take(now) } else { 0 };
        let until = now.after(retry.pause_ms + charged_ms).min(call.deadline());
        if until > now {
            self.sleep_ms(until.since(now)).await;
        }
        if retry.refresh {
            // Without news the call goes on with what it knows.
            let _ = self.refresh().await;
        }
        Ok(retry)
    }

    async fn learn_topology(&mut self, call: &mut Call) -> Result<(), Error> {
        while self.shared.borrow().topology.is_none() {
            let now = self.now();
            if call.attempt_ms(now).is_none() {
                return Err(call.give_up(now));
            }
            if let Err(error) = self.refresh().await {
                self.sleep_ms(20).await;
                tracing::trace!(%error, "no map yet");
            }
        }
        Ok(())
    }

    /// Asks the members, and the nodes named at the start, for the map, until one answers.
    async fn refresh(&mut self) -> Result<(), Error> {
        let now = self.now();
        let rotation = self.random.next() as u32;
        let mut targets = self
            .shared
            .borrow()
            .topology
            .as_ref()
            .map_or_else(Vec::new, |known| known.informants(rotation, now));
        for address in &self.options.nodes {
            if targets.iter().all(|target| target.address != *address) {
                targets.push(Target { node_number: 0, address: address.clone(), core: None });
            }
        }
        let request = Request::ClusterStatus(v1::ClusterStatus {});
        for target in targets {
            if let Ok(Response::ClusterStatus(status)) = self.attempt(&target, &request, STATUS_TIMEOUT).await
            {
                let now = self.now();
                let mut shared = self.shared.borrow_mut();
                shared.sessions.learn_log_time(status.log_time_ms, now);
                match &mut shared.topology {
                    Some(topology) => topology.update(&status).expect("the map stays usable"),
                    empty => *empty = Some(Topology::new(&status).expect("a node that serves has a map")),
                }
                return Ok(());
            }
        }
        Err(Error::new(ErrorCode::Unavailable, "no node told the cluster's map"))
    }
}

/// Asks one node for its own state, on a connection of its own.
pub(crate) async fn node_status(
    runtime: &SimRuntime,
    cluster_name: &str,
    address: &str,
    link: &mut Option<Link>,
    limit: Duration,
) -> Option<v1::NodeStatusReply> {
    if let Some(kept) = link
        && !kept.is_open().await
    {
        *link = None;
    }
    let mut open = match link.take() {
        Some(open) => open,
        None => {
            let greeting = Greeting {
                cluster_name: cluster_name.to_owned(),
                token: String::new(),
                core: None,
                client_name: "observer".to_owned(),
            };
            Link::open(runtime, address, &greeting, limit).await.ok()?.0
        }
    };
    let request = Request::NodeStatus(v1::NodeStatus { shards: true });
    let answer = open.call(runtime, &request, limit).await;
    if open.is_open().await {
        *link = Some(open);
    }
    match answer {
        Ok(Response::NodeStatus(status)) => Some(*status),
        Ok(_) | Err(_) => None,
    }
}
