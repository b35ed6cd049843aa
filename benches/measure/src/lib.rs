//! What the benchmarks of gradclip share: sets of gradients, what is done to them, devices, rooflines, timing, and tables.
//!
//! The command's `bench`, `benches/sweep.rs` and `benches/peers` measure with it. It is not published, and has no stable API.

#![allow(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "it is only for the packages of this repository"
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
pub mod table;
pub mod text;
pub mod timing;
