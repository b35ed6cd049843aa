//! The reference (stub).
