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

/// The messages of gRPC's health checking, `grpc.health.v1`.
#[allow(missing_docs, clippy::all, reason = "generated; the .proto files carry the documentation")]
pub mod grpc_health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// The messages of gRPC's reflection, `grpc.reflection.v1`; `v1alpha` has the same.
#[allow(missing_docs, clippy::all, reason = "generated; the .proto files carry the documentation")]
pub mod grpc_reflection {
    include!(concat!(env!("OUT_DIR"), "/grpc.reflection.v1.rs"));
}

/// An encoded `google.protobuf.FileDescriptorSet`: the files of all gRPC services, each after those that it imports.
pub const GRPC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/services.bin"));
