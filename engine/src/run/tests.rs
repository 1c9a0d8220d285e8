//! Runs against a model, and damaged ones.
