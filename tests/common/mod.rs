//! The harness of the tests: devices, gradients in guarded buffers, and clips of them on both paths.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod clip;
pub(crate) mod gpu;
pub(crate) mod numbers;
pub(crate) mod placement;
pub(crate) mod role;
