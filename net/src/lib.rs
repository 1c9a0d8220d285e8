//! Framed connections, TLS, the peer pool.
