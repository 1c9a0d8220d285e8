//! Raft for one group, sans-IO.
