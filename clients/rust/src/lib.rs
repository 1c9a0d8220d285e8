//! The Rust client of Krita.
