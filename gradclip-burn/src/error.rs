//! What can go wrong.

use std::fmt;

use burn::tensor::{DType, ExecutionError};

/// Why gradients were not clipped, or what came of it not read. Gradients are as they were, if nothing else is said.
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
    /// A group to which no parameter of the module belongs: its function wants none, or only such as an earlier group has.
    #[error("no parameter of the module belongs to group {group}; its parameters are {}", list(parameters))]
    EmptyGroup {
        /// Which group: 1 is the first one that was added with [`GradClipper::group`](crate::GradClipper::group).
        group: usize,
        /// The paths of the parameters of the module.
        parameters: Vec<String>,
    },
    /// There is no gradient of any parameter of the module, though some require one: the gradients of another model, or a loss
    /// that does not depend on this one.
    #[error("{}; its parameters are {}", without_gradients(*given), list(parameters))]
    NoGradients {
        /// How many gradients there are.
        given: usize,
        /// The paths of the parameters of the module.
        parameters: Vec<String>,
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

fn without_gradients(given: usize) -> String {
    match given {
        0 => "there is no gradient of the module, though some of its parameters require one".to_owned(),
        1 => "the one gradient given is not of a parameter of the module".to_owned(),
        _ => format!("none of the {given} gradients given is of a parameter of the module"),
    }
}

/// The first of these paths, and how many more there are.
fn list(paths: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = paths[..paths.len().min(SHOWN)].join(", ");
    match paths.len() {
        0 => "none".to_owned(),
        more if more > SHOWN => format!("{shown} and {} more", more - SHOWN),
        _ => shown,
    }
}

/// A step of a [`ClippedOptimizer`](crate::ClippedOptimizer) that was not made: why not, and the module as it was before it.
///
/// Where the module is not needed any more, `?` turns it into its [`Error`].
pub struct StepError<M> {
    /// The module, as it was.
    pub module: M,
    /// Why there was no step.
    pub error: Error,
}

impl<M> fmt::Debug for StepError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<M> fmt::Display for StepError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<M> std::error::Error for StepError<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl<M> From<StepError<M>> for Error {
    fn from(failed: StepError<M>) -> Self {
        failed.error
    }
}
