//! What can go wrong.

use burn::tensor::{DType, ExecutionError};

/// Why gradients were not clipped, or what came of it not read. Gradients are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The limit of a norm is negative.
    #[error("the limit {given} is negative: a norm cannot be brought below 0")]
    MaxNorm {
        /// The limit.
        given: f32,
    },
    /// Bounds in the wrong order, or NaN.
    #[error("elements cannot be clamped to {low}..={high}")]
    Bounds {
        /// The lower bound.
        low: f32,
        /// The upper bound.
        high: f32,
    },
    /// A norm that this package does not measure.
    #[error("{given:?} is not measured here: only L1, L2 and Inf are")]
    NormType {
        /// The norm.
        given: gradclip::NormType,
    },
    /// What is added to a norm is negative, infinite or NaN.
    #[error("epsilon is {given}; it must be finite, and not negative")]
    Epsilon {
        /// The constant.
        given: f32,
    },
    /// A loss scale that cannot be undone.
    #[error("a loss scale of {given} cannot be undone: it must be positive, and its inverse finite")]
    LossScale {
        /// The scale.
        given: f32,
    },
    /// A gradient that cannot be measured or scaled.
    #[error("the gradient of {parameter} is of type {dtype:?}, which cannot be clipped")]
    Unsupported {
        /// The path of the parameter in its module.
        parameter: String,
        /// The type of its gradient's elements.
        dtype: DType,
    },
    /// A gradient is not finite, and the policy for that is [`NonFinite::Error`](gradclip::NonFinite::Error).
    #[error("the gradients are not finite{}", .parameter.as_ref().map(|p| format!(": {p} is the first of them")).unwrap_or_default())]
    NonFinite {
        /// The path of the first parameter with such a gradient; none if all are finite and only their norm is not.
        parameter: Option<String>,
    },
    /// The backend could not execute what it was given.
    #[error("the outcome of a clip could not be read")]
    Backend(#[source] ExecutionError),
}
