//! The protocol without I/O: usable on any executor, and the whole of this crate without the `tokio` feature.

pub mod retry;
