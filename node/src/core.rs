//! One core of a node: what it holds, and how it starts and ends.
//!
//! ```text
//! connections ─▶ router ─▶ replica (raft + machine) ─▶ store
//!     ▲             │          │      ▲ durable          │
//!     └─ answers    ▼          ▼      │                  ▼
//!               mesh to     peers   emit: one log write, one burst to each peer
//!              other cores
//! ```
//!
//! Every task of a core runs on one thread, so state stands in `RefCell`s that are never borrowed across an
//! await. A task that touches a replica notes so with `touch`; `emit` then does the rest at the end of the round.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use krita_net::TlsConfig;
use krita_net::http::HttpServer;
use krita_runtime::{CoreId, Mesh, Notify, Runtime, TaskClass};

use crate::auth::Authenticator;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::doors::Doors;
use crate::emit::LogWriter;
use crate::failure::Failure;
use crate::forming::Forming;
use crate::gossiping::Gossiping;
use crate::identity::{Identity, Joined};
use crate::mending::Counters;
use crate::mesh::{CoreMessage, Serve};
use crate::meta::MetaState;
use crate::metrics::CoreMetrics;
use crate::peers::Peers;
use crate::replica::Replica;
use crate::replica_notes::ReplicaNotes;
use crate::responder::Responder;
use crate::snapshots::Incoming;
use crate::views::Views;

/// Requests of one core that wait for answers of others.
const TICKETS_MAX: usize = 16 * 1024;

/// What a node is started with: the same for all of its cores.
#[derive(Debug)]
pub struct NodeInput {
    /// The validated configuration.
    pub config: Config,
    /// The certificates, unless the node runs with `insecure`.
    pub certificates: Option<Certificates>,
    /// Random for each start of the process.
    pub boot_id: u64,
    /// Set to end the node in an orderly way.
    pub stop: StopSignal,
}

/// The certificate set of a node, as PEM.
#[derive(Clone)]
pub struct Certificates {
    /// `ca.crt`
    pub ca: Vec<u8>,
    /// `node.crt`
    pub certificate: Vec<u8>,
    /// `node.key`
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates(hidden)")
    }
}

/// Tells all cores of a node to hand off what they lead and end. May be set from any thread.
#[derive(Clone, Default, Debug)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// Asks the node to end.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why a node cannot start or go on. The process must exit with a failure.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NodeFailure(pub String);

/// One core's whole state.
pub(crate) struct Core<R: Runtime> {
    pub(crate) runtime: R,
    pub(crate) mesh: R::Mesh<CoreMessage<R::Handoff>>,
    pub(crate) input: Arc<NodeInput>,
    pub(crate) identity: Identity,
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) authenticator: Authenticator,
    pub(crate) peers: Rc<Peers<R>>,
    /// Who is up and who is down.
    pub(crate) gossiping: Gossiping<R>,
    pub(crate) counters: Rc<Counters>,
    pub(crate) metrics: Rc<CoreMetrics>,
    /// None until the cluster is formed and this core's logs are open.
    pub(crate) serving: RefCell<Option<Serving<R>>>,
    /// The last state of the meta group that core 0 has applied, for whoever does not serve yet.
    pub(crate) meta_state: RefCell<Option<Arc<MetaState>>>,
    /// Replicas that may have output; see `emit`.
    pub(crate) dirty: RefCell<Vec<u32>>,
    /// Something happened in this round.
    pub(crate) round: Notify,
    pub(crate) tickets: RefCell<Tickets>,
    /// Snapshots on their way in, by sender's id.
    pub(crate) incoming: RefCell<BTreeMap<u64, Incoming<R>>>,
    pub(crate) connections: Cell<u32>,
    /// Orders to shards that are being carried out here.
    pub(crate) orders_waiting: Cell<u32>,
    /// Shards whose replica is being opened or dropped; see `membership`.
    pub(crate) changing: RefCell<BTreeSet<u32>>,
    /// A task writes a file of replica notes.
    pub(crate) is_noting: Cell<bool>,
    /// What serves connections that speak HTTP; set when the core starts.
    pub(crate) http: OnceCell<Rc<HttpServer<R, Doors<R>>>>,
    /// Scans over all shards that run here; see `scanning`.
    pub(crate) scans: Cell<u32>,
    /// What this core's shards hold for scans.
    pub(crate) views: Rc<Views<R>>,
    /// The cluster's setting: reads that no leader confirms are answered by any replica.
    pub(crate) reads_fall_back: Cell<bool>,
    /// When it was last logged that a read was answered without a quorum.
    pub(crate) fell_back_at: Cell<Option<krita_runtime::Instant>>,
    /// What core 0 says of forming, for status: a state and its problems.
    pub(crate) forming_status: RefCell<(String, Vec<String>)>,
    /// Core 0 only: the cluster that this node has joined, if it came later than others formed it.
    pub(crate) joined: RefCell<Option<Joined>>,
    /// Core 0 only: this node is about to join, and accepts no record any more.
    pub(crate) is_joining: Cell<bool>,
    /// Core 0 only: how the cluster was or is being formed.
    pub(crate) forming: RefCell<Option<Forming>>,
    pub(crate) started_at: krita_runtime::Instant,
    failure: RefCell<Option<NodeFailure>>,
    ended: Cell<bool>,
    end: Notify,
}

/// What a core has once it serves.
pub(crate) struct Serving<R: Runtime> {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) logs: Vec<LogWriter<R>>,
    pub(crate) replicas: BTreeMap<u32, Replica<R>>,
    /// Which replicas of this core's shards are here and which must not come back.
    pub(crate) notes: ReplicaNotes,
    /// By shard: where the others were when its replica here was removed.
    pub(crate) departed: BTreeMap<u32, Vec<u32>>,
}

impl<R: Runtime> Core<R> {
    pub(crate) fn new(
        runtime: R,
        mesh: R::Mesh<CoreMessage<R::Handoff>>,
        input: Arc<NodeInput>,
        identity: Identity,
    ) -> Result<Self, NodeFailure> {
        let tls = match &input.certificates {
            None => None,
            Some(set) => Some(
                TlsConfig::from_pem(&set.ca, &set.certificate, &set.key)
                    .map_err(|error| NodeFailure(format!("the certificates cannot be used: {error}")))?,
            ),
        };
        let authenticator = match input.config.token_digest {
            Some(digest) => Authenticator::with_admin_token(digest),
            None => Authenticator::open(),
        };
        let peers = Rc::new(Peers::new(&runtime, &input, tls.clone()));
        let started_at = runtime.now();
        let clock = runtime.clone();
        Ok(Self {
            runtime,
            mesh,
            input,
            identity,
            tls,
            authenticator,
            peers,
            gossiping: Gossiping::new(),
            counters: Rc::default(),
            metrics: CoreMetrics::new(move || clock.now()),
            serving: RefCell::new(None),
            meta_state: RefCell::default(),
            dirty: RefCell::default(),
            round: Notify::new(),
            tickets: RefCell::default(),
            incoming: RefCell::default(),
            connections: Cell::new(0),
            orders_waiting: Cell::new(0),
            changing: RefCell::default(),
            is_noting: Cell::new(false),
            http: OnceCell::new(),
            scans: Cell::new(0),
            views: Rc::new(Views::new()),
            reads_fall_back: Cell::new(false),
            fell_back_at: Cell::new(None),
            forming_status: RefCell::new(("starting".to_owned(), Vec::new())),
            joined: RefCell::new(None),
            is_joining: Cell::new(false),
            forming: RefCell::new(None),
            started_at,
            failure: RefCell::new(None),
            ended: Cell::new(false),
            end: Notify::new(),
        })
    }

    /// Starts what runs for the core's whole life.
    pub(crate) async fn start(self: &Rc<Self>) -> Result<(), NodeFailure> {
        let address = self.input.config.bind_address;
        let listener = self.runtime.listen(address).await.map_err(|error| {
            NodeFailure(format!("cannot listen on {address}: {error}; is another node running there?"))
        })?;
        self.open_doors();
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "accept", core.accept_connections(listener));
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "emit", core.emit_rounds());
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "mesh", core.receive_from_cores());
        Ok(())
    }

    /// Ends the node because it cannot go on safely.
    pub(crate) fn fail(&self, reason: String) {
        self.note_failure(reason);
        self.finish();
    }

    /// Has every core of this node give up what it leads, and then ends the node because it cannot go on safely.
    pub(crate) fn give_up(&self, reason: String) {
        self.note_failure(reason);
        self.input.stop.stop();
    }

    fn note_failure(&self, reason: String) {
        if self.failure.borrow().is_none() {
            tracing::error!(reason, "this node gives up");
            *self.failure.borrow_mut() = Some(NodeFailure(reason));
        }
    }

    /// Whether this core ends because it cannot go on.
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// Ends the core in good order.
    pub(crate) fn finish(&self) {
        self.ended.set(true);
        self.end.notify();
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ended.get()
    }

    /// Completes when the core ends, with the reason if it failed.
    pub(crate) async fn end(&self) -> Result<(), NodeFailure> {
        self.end.notified().await;
        match self.failure.borrow().clone() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Whether this is the core that forms the cluster and speaks for the node.
    pub(crate) fn is_first(&self) -> bool {
        self.runtime.core() == CoreId(0)
    }

    /// Why a request cannot be served yet.
    pub(crate) fn not_serving(&self) -> Failure {
        Failure::not_ready(format!("this node does not serve yet: {}", self.forming_status.borrow().0))
    }

    async fn receive_from_cores(self: Rc<Self>) {
        while !self.is_ending() {
            let message = self.mesh.receive().await;
            self.on_core_message(message);
        }
    }

    fn on_core_message(self: &Rc<Self>, message: CoreMessage<R::Handoff>) {
        match message {
            CoreMessage::Identity(_) => {}
            CoreMessage::Connection { handoff, prefix } => match self.runtime.attach(handoff) {
                Ok(stream) => self.admit(stream, prefix),
                Err(error) => tracing::warn!(%error, "a connection was lost between cores"),
            },
            CoreMessage::Request(request) => self.on_request_from_core(*request),
            CoreMessage::NodeRequest { from, ticket, request } => {
                self.on_node_request_from_core(from, ticket, *request);
            }
            CoreMessage::Reply { ticket, kind, body } => {
                if let Some(responder) = self.tickets.borrow_mut().redeem(ticket) {
                    responder.body(kind, body);
                }
            }
            CoreMessage::Raft { node_number, messages } => self.step_messages(node_number, messages),
            CoreMessage::Remembered { from, remembered } => self.on_remembered(from, &remembered),
            CoreMessage::GossipView(view) => self.gossiping.set_view(view),
            CoreMessage::Serve(serve) => self.begin_serving(serve),
            CoreMessage::Meta(state) => {
                *self.meta_state.borrow_mut() = Some(state);
                self.take_meta_state();
            }
            CoreMessage::Finish => self.finish(),
            CoreMessage::FormingStatus { state, problems } => {
                *self.forming_status.borrow_mut() = (state, problems);
            }
        }
    }

    /// Opens this core's logs and starts to take part, in a task of its own.
    pub(crate) fn begin_serving(self: &Rc<Self>, serve: Arc<Serve>) {
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "open", async move {
            if let Err(failure) = core.open(Arc::new(serve.cluster.clone())).await {
                core.fail(failure.0);
            }
        });
    }
}

/// Requests that other cores are to answer, by number.
#[derive(Default)]
pub(crate) struct Tickets {
    next: u64,
    open: BTreeMap<u64, Responder>,
}

impl Tickets {
    /// A number for the request; gives the responder back if too many are open.
    pub(crate) fn issue(&mut self, responder: Responder) -> Result<u64, Responder> {
        if self.open.len() >= TICKETS_MAX {
            return Err(responder);
        }
        self.next += 1;
        self.open.insert(self.next, responder);
        Ok(self.next)
    }

    /// The responder behind a number, once.
    pub(crate) fn redeem(&mut self, ticket: u64) -> Option<Responder> {
        self.open.remove(&ticket)
    }
}
