//! The real machine: one glommio executor per core, over io_uring.
