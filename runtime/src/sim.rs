//! The seeded simulator: a whole cluster on one thread, in virtual time.
