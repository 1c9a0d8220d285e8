//! What the cores of one node say to each other.

use std::sync::Arc;

use bytes::Bytes;
use krita_proto::frame::FrameKind;
use krita_proto::v1;
use krita_runtime::CoreId;

use crate::cluster::Cluster;
use crate::gossiping::View;
use crate::identity::Identity;
use crate::meta::MetaState;
use crate::request::ShardRequest;

/// One message between cores. `H` is a connection on its way to the core that its client wants.
#[derive(Debug)]
pub enum CoreMessage<H> {
    /// From core 0, first of all: who this node is.
    Identity(Identity),
    /// A socket for this core, with the bytes that were read to learn so.
    Connection {
        /// The detached stream.
        handoff: H,
        /// Bytes already read from it.
        prefix: Bytes,
    },
    /// A request on a shard of this core; answered by [`CoreMessage::Reply`] with the same ticket.
    Request(Box<RequestFromCore>),
    /// A request on the node or on another core's part of it; answered by [`CoreMessage::Reply`].
    NodeRequest {
        /// Who asks.
        from: CoreId,
        /// The asker's number for it.
        ticket: u64,
        /// What is asked.
        request: Box<NodeRequest>,
    },
    /// The answer to a request.
    Reply {
        /// The asker's number for the request.
        ticket: u64,
        /// The frame kind of the answer.
        kind: FrameKind,
        /// The answer's body.
        body: Bytes,
    },
    /// Raft messages for shards of this core that arrived at another.
    Raft {
        /// The node that sent them.
        node_number: u32,
        /// The messages.
        messages: Vec<v1::RaftMessage>,
    },
    /// What another node remembers of logs of this core.
    Remembered {
        /// The node that does.
        from: u32,
        /// What it remembers.
        remembered: Box<v1::RememberedLogs>,
    },
    /// What gossip says of the cluster now.
    GossipView(Arc<View>),
    /// The cluster is formed and this node's shards have their logs: open them and serve.
    Serve(Arc<Serve>),
    /// The state of the meta group that core 0 has applied.
    Meta(Arc<MetaState>),
    /// The node ends before it ever served.
    Finish,
    /// How forming goes, for whoever asks this core.
    FormingStatus {
        /// One line.
        state: String,
        /// With whom this node cannot talk, and why.
        problems: Vec<String>,
    },
}

/// A request on a shard, from the core that has the connection to the core that has the shard.
#[derive(Debug)]
pub struct RequestFromCore {
    pub(crate) from: CoreId,
    pub(crate) ticket: u64,
    pub(crate) request: ShardRequest,
}

/// A request that concerns no shard's data.
#[derive(Clone, Debug)]
pub enum NodeRequest {
    /// Forming: who are you? For core 0.
    Identify,
    /// Forming: accept this. For core 0.
    Form {
        /// Who asks, as its hello said.
        from: Box<v1::NodeIdentity>,
        /// What it asks.
        form: Box<v1::Form>,
    },
    /// A node wants to be a member. For core 0.
    Join {
        /// Who asks, as its hello said.
        from: Box<v1::NodeIdentity>,
        /// What it asks.
        join: Box<v1::Join>,
    },
    /// The node's state, all cores together. For core 0.
    NodeStatus {
        /// With each shard.
        shards: bool,
    },
    /// One core's part of the node's state.
    CoreStatus {
        /// With each shard.
        shards: bool,
    },
    /// What one core has counted.
    CoreMetrics {
        /// With each shard.
        shards: bool,
    },
    /// Begin to read and check all that is stored, on every core. For core 0.
    Scrub,
    /// The same for one core.
    CoreScrub,
    /// Which node leads each shard of this core: (shard, node) pairs in a ClusterStatusReply.
    CoreLeaders,
}

/// What a core needs to start serving.
#[derive(Debug)]
pub struct Serve {
    pub(crate) cluster: Cluster,
}
