//! The frame codec of the native protocol.
//!
//! ```text
//! offset  size  field
//!      0     4  length of what follows this field, little-endian: 12 + body
//!      4     1  kind (FrameKind)
//!      5     1  flags (bit 0: forwarded once already)
//!      6     2  reserved, zero
//!      8     8  correlation id, little-endian; the answer repeats it
//!     16     -  body: the protobuf message of that kind
//! ```
