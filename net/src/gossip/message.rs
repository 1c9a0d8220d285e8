//! What nodes say to each other, as typed values. `wire` turns them into protobuf and back.

use std::sync::Arc;

use super::member::{ClusterId, NodeUuid, Record, VitalsNews};

/// A message of the protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Guards against talking to the wrong cluster.
    pub cluster_name: Arc<str>,
    /// Guards against a cluster that was made anew; `None` while the sender does not know its own.
    pub cluster_id: Option<ClusterId>,
    /// The sender's own record, as of now. Its state is alive or left.
    pub sender: Record,
    /// What the sender passes on.
    pub news: Vec<Record>,
    /// What the sender passes on of nodes that the receiver is thought to know.
    pub vitals: Vec<VitalsNews>,
    /// What it wants or answers.
    pub body: Body,
}

/// What a message wants or answers. `sequence` is the asker's number for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Nothing: the news are all.
    News,
    /// Are you there?
    Ping {
        /// Repeated in the answer.
        sequence: u64,
        /// Who is meant; `None`: whoever lives at that address.
        target: Option<NodeUuid>,
    },
    /// Yes.
    Ack {
        /// The ping's.
        sequence: u64,
        /// From a helper: who answered it.
        on_behalf_of: Option<NodeUuid>,
    },
    /// Ping that node for me.
    PingFor {
        /// Repeated in the answer.
        sequence: u64,
        /// Whom.
        target: NodeUuid,
        /// Where it is thought to live.
        address: String,
    },
    /// From a helper in time: it does not answer me either.
    Nack {
        /// The request's.
        sequence: u64,
    },
    /// Another node lives at this address now: the sender.
    NotHere {
        /// The ping's.
        sequence: u64,
    },
    /// A page of all records, for a page in return.
    Exchange {
        /// Repeated in the answer.
        sequence: u64,
        /// A page of what the sender knows.
        records: Vec<Record>,
        /// What it wants in return.
        wanted: Option<Page>,
    },
    /// A page in return.
    ExchangeReply {
        /// The request's.
        sequence: u64,
        /// The page.
        records: Vec<Record>,
        /// There are more behind this one.
        next: Option<NodeUuid>,
    },
    /// I am about to declare this node dead: is it gone for you, too?
    Doubt {
        /// Repeated in the answer.
        sequence: u64,
        /// Who is doubted.
        subject: NodeUuid,
        /// In which incarnation.
        incarnation: u64,
    },
    /// The answer of a witness.
    DoubtReply {
        /// The request's.
        sequence: u64,
        /// Who is doubted.
        subject: NodeUuid,
        /// In which incarnation.
        incarnation: u64,
        /// It has been suspect here for a while, too, and was not heard since.
        concurs: bool,
    },
}

/// Which page of the records, in the order of uuids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// Those behind this one; `None`: from the first.
    pub after: Option<NodeUuid>,
}

/// Where a message goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The address to reach it by.
    pub address: String,
    /// Who is meant to live there; `None`: whoever does.
    pub node: Option<NodeUuid>,
}

/// A message that wants to be sent. It may be lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Where to.
    pub to: Destination,
    /// What.
    pub message: Message,
}
