//! The errors of a clip and of an optimizer step.

use std::fmt;

use burn::tensor::{DType, ExecutionError};

/// The error of a clip, or of reading its outcome. Unless a variant says otherwise, the gradients are unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option of a [`Clip`](gradclip::Clip) is invalid, or the clips of two groups differ in more than their limits.
    #[error(transparent)]
    Clip(#[from] gradclip::Error),
    /// An option that gradclip supports and this package does not.
    #[error("{option} is not supported on Burn's tensors")]
    Unsupported {
        /// The option.
        option: &'static str,
    },
    /// A gradient whose elements are not floating-point numbers.
    #[error(
        "the gradient of {parameter} has dtype {dtype:?}, but only floating-point gradients can be clipped"
    )]
    Type {
        /// The path of the parameter in its module.
        parameter: String,
        /// The type of its gradient's elements.
        dtype: DType,
    },
    /// A gradient whose rank differs from its parameter's.
    ///
    /// Burn's container does not return the rank of a gradient, and panics on access with a different rank. This crate
    /// catches the panic before it changes anything. A panic hook still runs, and the build must unwind on a panic.
    #[error("the gradient of {parameter} has another rank than the parameter, whose rank is {rank}")]
    Rank {
        /// The path of the parameter in its module.
        parameter: String,
        /// Its rank.
        rank: usize,
    },
    /// A gradient whose shape differs from its parameter's, which
    /// [`Clip::by_parameter_norm`](gradclip::Clip::by_parameter_norm) reads.
    #[error(
        "the gradient of {parameter} has the shape {gradient:?}, but the parameter has the shape {expected:?}"
    )]
    Shape {
        /// The path of the parameter in its module.
        parameter: String,
        /// The shape of the gradient.
        gradient: Vec<usize>,
        /// The shape of the parameter.
        expected: Vec<usize>,
    },
    /// A gradient that [`GradClipper::rows`](crate::GradClipper::rows) and
    /// [`GradClipper::columns`](crate::GradClipper::columns) both select.
    #[error(
        "the gradient of {parameter}, with the shape {shape:?}, is selected by rows and by columns, but it can be split \
         into only one of the two"
    )]
    RowsAndColumns {
        /// The path of the parameter in its module.
        parameter: String,
        /// The shape of its gradient.
        shape: Vec<usize>,
    },
    /// A parameter whose elements are not floating-point numbers, for
    /// [`Clip::by_parameter_norm`](gradclip::Clip::by_parameter_norm).
    #[error(
        "{parameter} has dtype {dtype:?}, but only the norm of floating-point parameters can be measured"
    )]
    ParameterType {
        /// The path of the parameter in its module.
        parameter: String,
        /// The type of its elements.
        dtype: DType,
    },
    /// A group without a parameter: its filter matches no parameter of the module, or only parameters of earlier
    /// groups.
    #[error(
        "no parameter of the module belongs to group {group}; the module's parameters are {}",
        list(parameters)
    )]
    EmptyGroup {
        /// The index of the group. 1 is the first group added with [`GradClipper::group`](crate::GradClipper::group).
        group: usize,
        /// The paths of the parameters of the module.
        parameters: Vec<String>,
    },
    /// A container without a gradient of the module, although some parameters require one. Either it holds the
    /// gradients of another model, or the loss does not depend on the module.
    #[error("{}; the module's parameters are {}", without_gradients(*given), list(parameters))]
    NoGradients {
        /// The number of gradients in the container.
        given: usize,
        /// The paths of the parameters of the module.
        parameters: Vec<String>,
    },
    /// Non-finite gradients under [`NonFinite::Error`](gradclip::NonFinite::Error). Gradients of finite groups are
    /// clipped.
    #[error("{}", not_finite(parameter.as_deref()))]
    NonFinite {
        /// The path of the first parameter whose gradient holds an infinity or a NaN; `None` if only the norm is not
        /// finite.
        parameter: Option<String>,
    },
    /// [`Clip::by_supplied_norm`](gradclip::Clip::by_supplied_norm) without a norm.
    #[error("no norm was supplied, but Clip::by_supplied_norm needs one: call clip_with_norm")]
    NormNotSupplied,
    /// A supplied norm that is not one number.
    #[error("the supplied norm has {elements} elements, but it must be one number")]
    SuppliedNorm {
        /// The number of its elements.
        elements: usize,
    },
    /// Gradients of other parameters than in the step before, for a clip of each gradient by its own norm that keeps
    /// state: a norm history or step counts per gradient.
    #[error(
        "the clipper keeps state for the gradients of {}, but these are the gradients of {}",
        list(expected),
        list(given)
    )]
    OtherGradients {
        /// The paths of the parameters with a gradient in the step before.
        expected: Vec<String>,
        /// The paths of the parameters with a gradient in this step.
        given: Vec<String>,
    },
    /// The backend failed to execute the clip or to read back its outcome.
    #[error("reading back the outcome of the clip failed")]
    Backend(#[source] ExecutionError),
}

fn without_gradients(given: usize) -> String {
    match given {
        0 => "the container is empty, but parameters of the module require gradients".to_owned(),
        1 => "the only gradient in the container belongs to no parameter of the module".to_owned(),
        _ => format!("none of the {given} gradients in the container belongs to a parameter of the module"),
    }
}

fn not_finite(parameter: Option<&str>) -> String {
    match parameter {
        Some(parameter) => format!("the gradient of {parameter} is the first with an infinity or a NaN"),
        None => "the norm of the gradients is infinite or NaN".to_owned(),
    }
}

/// Lists the first paths and the number of the remaining ones.
fn list(paths: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = paths[..paths.len().min(SHOWN)].join(", ");
    match paths.len() {
        0 => "none".to_owned(),
        more if more > SHOWN => format!("{shown} and {} more", more - SHOWN),
        _ => shown,
    }
}

/// The error of a step of a [`ClippedOptimizer`](crate::ClippedOptimizer), with the unchanged module.
///
/// In functions that return [`Error`], `?` keeps the error and drops the module.
pub struct StepError<M> {
    /// The module, unchanged.
    pub module: M,
    /// The reason.
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
