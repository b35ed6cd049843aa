//! Burn's training loop: a model whose steps begin with a clip, and what its dashboard shows of that.

mod clipping;
mod metrics;
mod steps;

pub use clipping::Clipping;
pub use metrics::{ClippedMetric, GradNormMetric};
