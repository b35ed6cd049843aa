//! The CPU path (stub).
