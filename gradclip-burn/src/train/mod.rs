//! Burn's training loop: a model whose gradients are clipped, and the metrics of its clips. Imports: `steps`, `metrics`,
//! `clipping`, in this order.

mod clipping;
mod metrics;
mod steps;

pub use clipping::Clipping;
pub use metrics::{ClippedMetric, GradNormMetric};
