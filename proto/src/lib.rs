//! Krita's wire: the published `.proto` files, their generated types, and the frame codec.
//!
//! Imports nothing of ours; no I/O. Every byte that leaves or enters a node in the native protocol is one of the
//! messages in [`v1`] inside one frame (see [`frame`]); [`routing`] is what client and server must agree on to
//! find a key. `docs/protocol.md` is the reader's side of all three.

pub mod error;
pub mod frame;
pub mod routing;

/// The messages of package `krita.v1`, generated from `proto/krita/v1/*.proto`.
#[allow(missing_docs, clippy::all, reason = "generated; the .proto files carry the documentation")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/krita.v1.rs"));
}
