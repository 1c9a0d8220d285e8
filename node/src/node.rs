//! A node from start to end: who it is, forming its cluster, giving each core its shards, and serving.
//!
//! Core 0 does what a node does once: it locks the data directory, forms the cluster, and says which core owns
//! what. Every core listens from the beginning, so that a node that is still forming can say so.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use krita_net::PeerLink;
use krita_proto::v1;
use krita_runtime::{CoreId, Mesh, Runtime, TaskClass};

use crate::cluster::{self, Cluster, META_LOG};
use crate::core::{Core, NodeFailure, NodeInput};
use crate::failure::Failure;
use crate::forming::{Forming, FormingOptions, Request, RequestBody};
use crate::identity::{self, Belonging, ClusterId, ClusterRecord, Identity, Joined};
use crate::joining::Admitted;
use crate::mesh::{CoreMessage, Serve};
use crate::meta::MetaState;
use crate::ownership;
use crate::replica_notes;
use crate::responder::Responder;

/// How long a start waits for the lock of the data directory, and how often it tries.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(15);
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// How often a node that forms asks again.
const FORMING_INTERVAL: Duration = Duration::from_millis(250);

/// How long a peer has to answer while forming.
const FORMING_TIMEOUT: Duration = Duration::from_secs(2);

/// How often forming's state goes to the log while nothing changes.
const FORMING_LOG_EVERY: u32 = 20;

/// Runs one core of a node until it is told to stop or cannot go on. Every core of the node calls this with the same
/// input.
///
/// # Errors
/// The node cannot start or must not go on; the process must exit with a failure, whatever the other cores do.
pub async fn run_core<R: Runtime>(
    runtime: R,
    mesh: R::Mesh<CoreMessage<R::Handoff>>,
    input: Arc<NodeInput>,
) -> Result<(), NodeFailure> {
    let identity = match runtime.core() {
        CoreId(0) => {
            let identity = claim_directory(&runtime, &input).await?;
            for core in (1..mesh.cores()).map(CoreId) {
                if mesh.send(core, CoreMessage::Identity(identity.clone())).is_err() {
                    return Err(NodeFailure(format!("{core} does not start")));
                }
            }
            identity
        }
        CoreId(_) => loop {
            if let CoreMessage::Identity(identity) = mesh.receive().await {
                break identity;
            }
        },
    };
    let core = Rc::new(Core::new(runtime, mesh, input, identity)?);
    core.start().await?;
    if core.is_first() {
        core.begin_forming().await?;
        let watch = core.clone();
        core.runtime.spawn(TaskClass::Background, "watch-quorum", watch.watch_quorum());
    }
    core.end().await
}

/// Takes the data directory for this process, and learns or decides who the node is.
async fn claim_directory<R: Runtime>(runtime: &R, input: &NodeInput) -> Result<Identity, NodeFailure> {
    let directory = &input.config.data_directory;
    let bad = |what: String| NodeFailure(format!("data directory {}: {what}", directory.display()));
    runtime
        .create_directory(directory)
        .await
        .map_err(|error| bad(format!("cannot be made: {error}; choose another with KRITA_DATA_DIRECTORY")))?;
    // The directory itself must survive a power cut, or all that is in it goes with it.
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        runtime
            .sync_directory(parent)
            .await
            .map_err(|error| bad(format!("cannot be made durable: {error}")))?;
    }
    // Somebody else's directory is refused before the lock leaves a file in it.
    let node_id = &input.config.node_id;
    let checked = identity::check_directory(runtime, directory, node_id).await;
    checked.map_err(|error| NodeFailure(error.to_string()))?;
    let locked = lock_directory(runtime, directory).await;
    locked.map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            bad("another kritad uses it; stop that one, or give this one its own data_directory".to_owned())
        }
        _ => bad(format!("cannot be locked: {error}")),
    })?;
    identity::load_or_create_identity(runtime, directory, node_id)
        .await
        .map_err(|error| NodeFailure(error.to_string()))
}

/// Locks the data directory. A process that was killed keeps its lock until the disk has done with what it had asked
/// for: so a held lock is waited for, within a bound.
async fn lock_directory<R: Runtime>(runtime: &R, directory: &Path) -> std::io::Result<()> {
    let until = runtime.now() + LOCK_WAIT_MAX;
    let mut told = false;
    loop {
        match runtime.lock_directory(directory).await {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && runtime.now() < until => {
                if !told {
                    told = true;
                    tracing::warn!(
                        directory = %directory.display(),
                        wait_max = ?LOCK_WAIT_MAX,
                        "the data directory is locked by another process, or by one that was killed while its disk \
                         was busy: waiting for it"
                    );
                }
                runtime.sleep(LOCK_INTERVAL).await;
            }
            outcome => return outcome,
        }
    }
}

/// How a node came to its cluster.
enum Start {
    /// It is one of those that formed it.
    Formed(ClusterRecord),
    /// It came later.
    Joined(Admitted),
}

impl<R: Runtime> Core<R> {
    /// Forms or joins the cluster, in a task of its own, then lets every core serve.
    async fn begin_forming(self: &Rc<Self>) -> Result<(), NodeFailure> {
        let config = &self.input.config;
        let stored = identity::load_cluster(&self.runtime, &config.data_directory)
            .await
            .map_err(|error| NodeFailure(error.to_string()))?;
        let stored = match stored {
            None => {
                ownership::refuse_orphan_logs(&self.runtime, config, identity::CLUSTER_FILE).await?;
                None
            }
            Some(Belonging::Founder(state)) => Some(state),
            Some(Belonging::Joined(joined)) => {
                self.check_joined(&joined)?;
                *self.joined.borrow_mut() = Some(joined);
                None
            }
        };
        if stored.is_none() && (self.joined.borrow().is_some() || !config.join.is_empty()) {
            self.spawn_start();
            return Ok(());
        }
        let options = FormingOptions {
            cluster_name: config.cluster_name.clone(),
            advertised_address: config.advertised_address.clone(),
            initial_peers: config.peers.clone(),
            shard_count: config.shards,
            replication_factor: config.replication_factor,
        };
        let forming = Forming::new(options, self.identity.clone(), stored)
            .map_err(|error| NodeFailure(error.to_string()))?;
        *self.forming.borrow_mut() = Some(forming);
        self.spawn_start();
        Ok(())
    }

    fn spawn_start(self: &Rc<Self>) {
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "form", async move {
            if let Err(failure) = core.form_and_serve().await {
                core.fail(failure.0);
            }
        });
    }

    /// The configuration must not mean another cluster than the data directory.
    fn check_joined(&self, joined: &Joined) -> Result<(), NodeFailure> {
        let (own, wanted) = (&joined.record.cluster_name, &self.input.config.cluster_name);
        if own == wanted {
            return Ok(());
        }
        Err(NodeFailure(format!(
            "the data directory belongs to cluster \"{own}\", but cluster_name is \"{wanted}\": correct cluster_name \
             or data_directory"
        )))
    }

    async fn form_and_serve(self: &Rc<Self>) -> Result<(), NodeFailure> {
        let joined = self.joined.borrow().clone();
        let start = match joined {
            Some(joined) => Some(Start::Joined(Admitted { joined, state: None })),
            None if self.forming.borrow().is_none() => self.join_from_start().await?,
            None => self.form().await?,
        };
        let cluster = match start {
            None => return Ok(()),
            Some(Start::Formed(record)) => {
                let own = record.member_by_uuid(self.identity.node_uuid).ok_or_else(|| {
                    NodeFailure("this data directory is no member of the cluster that it names".to_owned())
                })?;
                let number = own.number;
                self.take_shares(record, number, None).await?
            }
            Some(Start::Joined(Admitted { joined, state })) => {
                self.take_shares(joined.record, joined.number, state).await?
            }
        };
        self.begin_gossip(&cluster)?;
        let serve = Arc::new(Serve { cluster });
        for core in (1..self.mesh.cores()).map(CoreId) {
            self.send_to_core(core, CoreMessage::Serve(serve.clone()));
        }
        self.begin_serving(serve);
        let core = self.clone();
        self.runtime.spawn(TaskClass::Background, "keep-in-touch", core.keep_in_touch());
        Ok(())
    }

    /// Joins the cluster that the configuration names.
    async fn join_from_start(self: &Rc<Self>) -> Result<Option<Start>, NodeFailure> {
        let addresses = self.input.config.join.clone();
        Ok(self.join(&addresses).await?.map(Start::Joined))
    }

    /// Until the cluster is formed: one round after the other. `None`: the node was told to stop.
    async fn form(self: &Rc<Self>) -> Result<Option<Start>, NodeFailure> {
        let links = Rc::new(NodeLinks::new(self));
        let mut rounds = 0;
        let mut last = String::new();
        loop {
            if let Some(record) = self.forming_step(&links).await? {
                tracing::info!(
                    cluster = record.cluster_name,
                    members = record.members.len(),
                    "cluster formed"
                );
                return Ok(Some(Start::Formed(record)));
            }
            // From here on no record is accepted: nothing is awaited between the look and the note.
            let formed = self.with_forming(|forming| forming.formed_without_this_node());
            if !formed.is_empty() {
                self.is_joining.set(true);
                links.stop();
                tracing::info!(members = ?formed, "the cluster is formed without this data directory: joining it");
                return Ok(self.join(&formed).await?.map(Start::Joined));
            }
            let status = self.with_forming(|forming| forming.status());
            if status.text != last || rounds % FORMING_LOG_EVERY == 0 {
                tracing::info!(problems = ?status.problems, "{}", status.text);
                last.clone_from(&status.text);
            }
            rounds += 1;
            self.publish_forming(status.text, status.problems);
            if self.input.stop.is_set() {
                self.stop_before_serving();
                return Ok(None);
            }
            self.runtime.sleep(FORMING_INTERVAL).await;
        }
    }

    /// One round of forming: persist what must be, then ask whom must be asked. The record, once it is final; whoever
    /// must then be told so is told in the background, and learns it by asking if that fails.
    async fn forming_step(
        self: &Rc<Self>,
        links: &Rc<NodeLinks<R>>,
    ) -> Result<Option<ClusterRecord>, NodeFailure> {
        let fresh = ClusterId::random(&self.runtime);
        let step = self.with_forming(|forming| forming.step(fresh));
        if let Some(state) = &step.persist {
            self.persist_cluster(state).await?;
        }
        if let Some(record) = self.with_forming(|forming| forming.formed().cloned()) {
            let links = links.clone();
            self.runtime.spawn(TaskClass::Foreground, "tell-formed", async move {
                links.ask_all(step.requests).await;
                links.stop();
            });
            return Ok(Some(record));
        }
        links.ask_all(step.requests).await;
        Ok(self.with_forming(|forming| forming.formed().cloned()))
    }

    async fn persist_cluster(&self, state: &identity::ClusterState) -> Result<(), NodeFailure> {
        identity::store_cluster(&self.runtime, &self.input.config.data_directory, state)
            .await
            .map_err(|error| NodeFailure(error.to_string()))?;
        self.with_forming(Forming::persisted);
        Ok(())
    }

    /// What this node has of the cluster's shards, and which of its cores owns which.
    async fn take_shares(
        &self,
        record: ClusterRecord,
        node_number: u32,
        state: Option<Arc<MetaState>>,
    ) -> Result<Cluster, NodeFailure> {
        let placements = cluster::placements(&record);
        let genesis = Arc::new(MetaState::formed(&record, &placements));
        let founding = cluster::founding_notes(&genesis, node_number);
        let files = replica_notes::load(&self.runtime, &self.input.config).await?;
        let mut noted = founding.clone();
        files.values().for_each(|notes| noted.merge(notes));
        let has_replica: Vec<bool> =
            (1..=record.shard_count).map(|shard| noted.held(shard).is_some()).collect();
        let cores = self.mesh.cores();
        let ownership = ownership::prepare(&self.runtime, &self.input.config, &has_replica, cores).await?;
        let shard_logs: Vec<Option<u16>> =
            std::iter::once(Some(META_LOG)).chain(ownership.shard_logs).collect();
        let log_of = |shard: u32| shard_logs.get(shard as usize).copied().flatten();
        replica_notes::carry_over(&self.runtime, &self.input.config, &files, (&noted, &founding), log_of)
            .await?;
        Ok(Cluster {
            record,
            identity: self.identity.clone(),
            node_number,
            state: state.unwrap_or_else(|| genesis.clone()),
            genesis,
            noted: Arc::new(noted),
            shard_logs,
            logs_total: ownership.logs_total,
            cores,
            boot_id: self.input.boot_id,
        })
    }

    pub(crate) fn publish_forming(self: &Rc<Self>, state: String, problems: Vec<String>) {
        for core in (1..self.mesh.cores()).map(CoreId) {
            self.send_to_core(
                core,
                CoreMessage::FormingStatus { state: state.clone(), problems: problems.clone() },
            );
        }
        *self.forming_status.borrow_mut() = (state, problems);
    }

    pub(crate) fn stop_before_serving(self: &Rc<Self>) {
        for core in (1..self.mesh.cores()).map(CoreId) {
            self.send_to_core(core, CoreMessage::Finish);
        }
        self.finish();
    }

    pub(crate) fn with_forming<T>(&self, change: impl FnOnce(&mut Forming) -> T) -> T {
        change(self.forming.borrow_mut().as_mut().expect("core 0 has forming from its start"))
    }

    /// Another node asks who this one is.
    pub(crate) fn answer_identify(&self, responder: Responder) {
        let boot_id = self.input.boot_id;
        if let Some(joined) = &*self.joined.borrow() {
            let node = v1::NodeIdentity {
                cluster_id: joined.record.cluster_id.to_bytes(),
                node_number: joined.number,
                ..self.bare_identity()
            };
            let (record, formed) = (Some((&joined.record).into()), true);
            let reply = v1::IdentifyReply { node: Some(node), initial_peers: Vec::new(), record, formed };
            return responder.message(&reply);
        }
        match self.forming.borrow().as_ref() {
            Some(forming) => responder.message(&forming.on_identify(boot_id)),
            None => responder.fail(&Failure::not_ready("the node is starting")),
        }
    }

    /// Another node proposes or fixes the cluster's record.
    pub(crate) fn answer_form(self: &Rc<Self>, from: v1::NodeIdentity, form: v1::Form, responder: Responder) {
        if self.forming.borrow().is_none() {
            return responder.fail(&Failure::not_ready("the node is starting, or does not form its cluster"));
        }
        let core = self.clone();
        self.runtime.spawn(TaskClass::Foreground, "answer-form", async move {
            if core.is_joining.get() {
                let reason = "joins a cluster that is formed".to_owned();
                return responder.message(&v1::FormReply { accepted: false, reason });
            }
            let answer = core.with_forming(|forming| forming.on_form(&from, &form));
            if let Some(state) = &answer.persist
                && let Err(failure) = core.persist_cluster(state).await
            {
                // What is on disk is not known: promise nothing.
                core.fail(failure.0);
                return;
            }
            responder.message(&answer.reply);
        });
    }
}

/// Links to nodes by address, while nobody has a number.
pub(crate) struct NodeLinks<R: Runtime> {
    core: Rc<Core<R>>,
    links: RefCell<std::collections::BTreeMap<String, PeerLink<R>>>,
}

impl<R: Runtime> NodeLinks<R> {
    pub(crate) fn new(core: &Rc<Core<R>>) -> Self {
        Self { core: core.clone(), links: RefCell::default() }
    }

    /// The link to an address; made at its first use.
    pub(crate) fn link(&self, address: &str) -> PeerLink<R> {
        let mut links = self.links.borrow_mut();
        let link = links
            .entry(address.to_owned())
            .or_insert_with(|| self.core.peers.forming_link(address, self.core.bare_identity()));
        link.clone()
    }

    async fn ask_all(&self, requests: Vec<Request>) {
        let asked = requests.into_iter().map(|request| self.ask(request));
        futures_util::future::join_all(asked).await;
    }

    async fn ask(&self, request: Request) {
        let link = self.link(&request.address);
        let deadline = self.core.runtime.now() + FORMING_TIMEOUT;
        match request.body {
            RequestBody::Identify => {
                let reply = link.request(&v1::Identify {}, deadline).await.map_err(|error| error.to_string());
                self.core.with_forming(|forming| {
                    forming.on_identify_reply(&request.address, reply.as_ref().map_err(Clone::clone))
                });
            }
            RequestBody::Form(form) => {
                let reply = link.request(&form, deadline).await.map_err(|error| error.to_string());
                self.core.with_forming(|forming| {
                    forming.on_form_reply(&request.address, reply.as_ref().map_err(Clone::clone))
                });
            }
        }
    }

    pub(crate) fn stop(&self) {
        for link in self.links.borrow().values() {
            link.stop();
        }
    }
}
