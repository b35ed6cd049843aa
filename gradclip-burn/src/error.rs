//! What can go wrong.

use burn::tensor::{DType, ExecutionError};

/// Why gradients were not clipped, or what came of it not read. Gradients are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options of a [`Clip`](gradclip::Clip) mean nothing, or those of two groups differ in more than their limits.
    #[error(transparent)]
    Clip(#[from] gradclip::Error),
    /// Something that gradclip can and this package cannot.
    #[error("{option} is not supported on Burn's tensors")]
    Unsupported {
        /// What was asked for.
        option: &'static str,
    },
    /// A gradient that cannot be measured or scaled.
    #[error("the gradient of {parameter} is of type {dtype:?}, which cannot be clipped")]
    Type {
        /// The path of the parameter in its module.
        parameter: String,
        /// The type of its gradient's elements.
        dtype: DType,
    },
    /// A gradient that was registered with another rank than its parameter has.
    ///
    /// Burn's container knows the rank of what it holds, and panics when asked for another; it cannot be asked which. So that
    /// panic is caught here, before anything is changed, which a panic hook sees, and which needs a build that unwinds.
    #[error("the gradient registered for {parameter} has not the rank {rank} of the parameter")]
    Rank {
        /// The path of the parameter in its module.
        parameter: String,
        /// Its rank.
        rank: usize,
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
