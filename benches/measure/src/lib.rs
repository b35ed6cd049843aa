//! Shared benchmark code: gradient sets, operations, devices, rooflines, timing and report tables.
//!
//! `gradclip bench`, `benches/sweep.rs` and `benches/peers` use it. The crate is not published and its API is not
//! stable.

#![allow(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "only packages of this repository use this crate"
)]

pub mod bytes;
pub mod cpu_bench;
pub mod data;
pub mod device;
pub mod gpu_bench;
pub mod machine;
pub mod ops;
pub mod report;
pub mod roofline;
pub mod sets;
pub mod statistics;
pub mod step;
pub mod table;
pub mod text;
pub mod timing;
