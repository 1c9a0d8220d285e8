//! What a node is.
