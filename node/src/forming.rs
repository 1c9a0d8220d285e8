//! How fresh nodes form a cluster, once (pure).

use krita_proto::v1;

use crate::identity::{ClusterId, ClusterRecord, ClusterState, Identity};

/// What forming needs to know of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormingOptions {
    /// The cluster to be.
    pub cluster_name: String,
    /// By which others reach this node; must be one of `initial_peers`, unless that is empty.
    pub advertised_address: String,
    /// All nodes of the cluster to be, this one included; empty = this node alone.
    pub initial_peers: Vec<String>,
    /// Data shards.
    pub shard_count: u32,
    /// Wished replicas; a smaller cluster gets fewer.
    pub replication_factor: u32,
}

/// What to do next, in this order: persist, tell [`Forming::persisted`], then send.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Step {
    /// Store this durably before anything else, then call [`Forming::persisted`].
    pub persist: Option<ClusterState>,
    /// Then send these; answers come back by `on_identify_reply` and `on_form_reply`.
    pub requests: Vec<Request>,
}

/// A request to another node.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// To whom.
    pub address: String,
    /// What.
    pub body: RequestBody,
}

/// What to ask.
#[derive(Clone, PartialEq, Debug)]
pub enum RequestBody {
    /// Who are you, and are you empty?
    Identify,
    /// Accept this record, or learn that it is final.
    Form(v1::Form),
}

/// The answer to a `Form`: persist first, call [`Forming::persisted`], then reply.
#[derive(Clone, PartialEq, Debug)]
pub struct FormAnswer {
    /// Store this durably before the reply goes out. If that fails, reply nothing and stop.
    pub persist: Option<ClusterState>,
    /// The reply.
    pub reply: v1::FormReply,
}

/// Where forming stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FormingStatus {
    /// One line for people, such as "waiting for quorum 1/3 ...".
    pub text: String,
    /// With whom this node cannot talk or agree, and why; sorted by address.
    pub problems: Vec<String>,
}

/// Why forming cannot even begin: the configuration is to be corrected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct FormingError(pub String);

/// The forming of one cluster, as one node sees it.
#[derive(Clone, Debug)]
pub struct Forming {}

impl Forming {
    /// `stored` is what the data directory knows.
    ///
    /// # Errors
    /// The configuration contradicts itself or what is stored.
    pub fn new(
        options: FormingOptions,
        identity: Identity,
        stored: Option<ClusterState>,
    ) -> Result<Self, FormingError> {
        let _ = (options, identity, stored);
        todo!()
    }

    /// One round: call it at the start, after each answer that may change something, and about twice a second
    /// until [`Forming::formed`]. `fresh_cluster_id` is random and used only by the node that proposes.
    pub fn step(&mut self, fresh_cluster_id: ClusterId) -> Step {
        let _ = fresh_cluster_id;
        todo!()
    }

    /// The state that `step` or `on_form` asked to persist is durable.
    pub fn persisted(&mut self) {
        todo!()
    }

    /// The record, once it is final and durable here.
    pub fn formed(&self) -> Option<&ClusterRecord> {
        todo!()
    }

    /// An answer to Identify, or why there is none.
    pub fn on_identify_reply(&mut self, address: &str, reply: Result<&v1::IdentifyReply, String>) {
        let _ = (address, reply);
        todo!()
    }

    /// An answer to Form, or why there is none.
    pub fn on_form_reply(&mut self, address: &str, reply: Result<&v1::FormReply, String>) {
        let _ = (address, reply);
        todo!()
    }

    /// Answers another node's Identify. `boot_id` is this process's. Valid for ever, also once formed.
    pub fn on_identify(&self, boot_id: u64) -> v1::IdentifyReply {
        let _ = boot_id;
        todo!()
    }

    /// Answers another node's Form; `from` is who its hello said it is. Valid for ever, also once formed.
    pub fn on_form(&mut self, from: &v1::NodeIdentity, form: &v1::Form) -> FormAnswer {
        let _ = (from, form);
        todo!()
    }

    /// Where it stands, for people.
    pub fn status(&self) -> FormingStatus {
        todo!()
    }
}
