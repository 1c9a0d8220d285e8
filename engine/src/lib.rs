//! One core of storage.
