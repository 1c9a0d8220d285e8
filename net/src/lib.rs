//! Framed connections, TLS, the peer pool: how bytes become frames between nodes and with clients.
//!
//! Everything is generic over [`NetRuntime`], the part of `krita_runtime::Runtime` that a connection needs, and
//! belongs to one core. The ways in:
//!
//! - [`accept`](accept::accept) takes a socket that was just accepted: it finds out what speaks (TLS, native, HTTP,
//!   something else), which core is wanted, and ends with a [`Connection`] and its hello, or with the socket on
//!   its way to another core, or with a refusal that the other side can read.
//! - [`connect`](connect::connect) is the other side of it.
//! - [`PeerPool`] keeps connections to the cores of other nodes alive, carries Raft's one-way bursts and
//!   request/response exchanges with deadlines.
//!
//! [`http`] serves what speaks HTTP; [`gossip`] is a protocol of its own, without a socket.
//!
//! What is deliberately absent: who may do what. A token or a cluster's name in a hello is judged by the node,
//! which then answers with [`Connection::accept`] or [`Connection::refuse`]; a request over HTTP is judged by the
//! service that answers it.

pub mod accept;
pub mod certificates;
pub mod connect;
pub mod connection;
pub mod gossip;
pub mod http;
mod outgoing;
pub mod peer;
pub mod tls;
mod transport;
mod waiting;

use krita_runtime::{Clock, Network, Rng, Spawn};

pub use accept::{AcceptError, AcceptFailure, AcceptOptions, Accepted, Incoming, accept};
pub use connect::{ConnectError, ConnectOptions, connect};
pub use connection::{Connection, ConnectionOptions, FrameReceiver, ReceiveError};
pub use krita_proto::routing::{core_of_server_name, server_name_for_core};
pub use outgoing::{FrameSender, SendError};
pub use peer::{LinkEvent, LinkState, PeerLink, PeerOptions, PeerPool, RequestError};
pub use tls::{TlsConfig, TlsError};

/// What a connection asks of the world: every `krita_runtime::Runtime` gives it.
pub trait NetRuntime: Clock + Network + Rng + Spawn + Clone + 'static {}

impl<R: Clock + Network + Rng + Spawn + Clone + 'static> NetRuntime for R {}
