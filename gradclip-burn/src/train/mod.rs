//! Clipping in Burn's training loop: a wrapper for the model, and its metrics. A module imports only modules to its
//! left: `steps`, `metrics`, `clipping`.

mod clipping;
mod metrics;
mod steps;

pub use clipping::Clipping;
pub use metrics::{ClippedMetric, GradNormMetric};
