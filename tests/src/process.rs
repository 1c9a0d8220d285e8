//! Real `kritad` processes on loopback: started in directories of their own, killed by id, always cleaned up.
