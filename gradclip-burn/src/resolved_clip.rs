//! A checked clip, resolved for a list of gradients. The kernels and the tensor operations both execute it.

use std::ops::Range;

use gradclip::operation::{ByNorm, Operation, Scope};
use gradclip::{NonFinite, NormType};

use crate::Error;
use crate::gradients::Gradient;

/// The options of a clip, and the limit of each segment of a list of gradients. A segment has one norm, one limit and
/// one record. It is a group; or a gradient or one of its rows or columns, if each is clipped by its own norm.
#[derive(Clone, Debug)]
pub(crate) struct ResolvedClip {
    pub(crate) kind: ClipKind,
    /// The lower and the upper bound of each segment. The upper bound of a clip by norm is its limit; for adaptive
    /// gradient clipping, the limit is relative to the norm of the parameter.
    pub(crate) bounds: Vec<[f32; 2]>,
    /// The segments of each gradient: one, or one per row or column.
    pub(crate) segments_of: Vec<Range<usize>>,
}

/// The kind of a clip, without its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ClipKind {
    /// A clip by norm. The limits are in [`ResolvedClip::bounds`], not in [`ByNorm::max_norm`].
    Norm(ByNorm),
    /// A clip by value.
    Clamp {
        /// The inverse of the loss scale, if there is one.
        inverse_scale: Option<f32>,
    },
}

/// Rejects the operations and options that this package does not support.
pub(crate) fn check_supported(operation: &Operation) -> Result<(), Error> {
    let norm = match operation {
        Operation::Norm(norm) => norm,
        Operation::Clamp { .. } => return Ok(()),
        _ => return Err(Error::Unsupported { option: "an operation other than Norm and Clamp" }),
    };
    match norm.scope {
        Scope::Global | Scope::Tensor | Scope::TensorRms | Scope::Parameter { .. } | Scope::Supplied => {
            Ok(())
        }
        _ => Err(Error::Unsupported {
            option: "a scope other than Global, Tensor, TensorRms, Parameter and Supplied",
        }),
    }
}

/// Returns whether operations, one per group, clip each gradient, row or column by its own norm.
pub(crate) fn is_per_gradient(operations: &[Operation]) -> bool {
    matches!(operations.first(), Some(Operation::Norm(norm)) if !norm.scope.is_together())
}

/// Returns whether operations, one per group, read the parameters.
pub(crate) fn reads_parameters(operations: &[Operation]) -> bool {
    matches!(operations.first(), Some(Operation::Norm(norm)) if matches!(norm.scope, Scope::Parameter { .. }))
}

impl ResolvedClip {
    /// Resolves supported operations, one for each group, for a list of gradients.
    pub(crate) fn new(operations: &[Operation], gradients: &[Gradient]) -> Self {
        let bounds = |operation: &Operation, elements: usize| match *operation {
            Operation::Norm(norm) => [0.0, norm.limit_for(elements as u64)],
            Operation::Clamp { low, high, .. } => [low, high],
            // `check_supported` rejects other operations.
            _ => [f32::NEG_INFINITY, f32::INFINITY],
        };
        let kind = match operations.first() {
            Some(Operation::Norm(norm)) => ClipKind::Norm(*norm),
            Some(Operation::Clamp { inverse_scale, .. }) => ClipKind::Clamp { inverse_scale: *inverse_scale },
            _ => ClipKind::Clamp { inverse_scale: None },
        };
        let infos = || gradients.iter().map(|gradient| &gradient.info);
        if is_per_gradient(operations) {
            let mut of_segments = Vec::with_capacity(gradients.len());
            let mut segments_of = Vec::with_capacity(gradients.len());
            for info in infos() {
                let first = of_segments.len();
                let units = info.split.units();
                let of_unit = bounds(&operations[info.group], info.count / units);
                of_segments.extend(std::iter::repeat_n(of_unit, units));
                segments_of.push(first..of_segments.len());
            }
            return Self { kind, bounds: of_segments, segments_of };
        }
        let bounds = operations.iter().map(|operation| bounds(operation, 1)).collect();
        Self { kind, bounds, segments_of: infos().map(|info| info.group..info.group + 1).collect() }
    }

    /// Returns the number of segments.
    pub(crate) const fn segments(&self) -> usize {
        self.bounds.len()
    }

    /// Returns whether the clip changes gradients. If not, it only measures them.
    pub(crate) const fn writes_gradients(&self) -> bool {
        !matches!(self.kind, ClipKind::Norm(ByNorm { coefficient_only: true, .. }))
    }

    /// Returns whether each gradient, row or column has its own norm. If not, groups share one.
    pub(crate) const fn is_per_gradient(&self) -> bool {
        matches!(self.kind, ClipKind::Norm(norm) if !norm.scope.is_together())
    }

    /// Returns whether the limits are relative to the norms of the parameters: adaptive gradient clipping.
    pub(crate) const fn reads_parameters(&self) -> bool {
        matches!(self.kind, ClipKind::Norm(ByNorm { scope: Scope::Parameter { .. }, .. }))
    }

    /// Returns the options of a clip by norm that keeps state from step to step.
    pub(crate) fn stateful(&self) -> Option<&ByNorm> {
        match &self.kind {
            ClipKind::Norm(norm)
                if norm.z_clip.is_some() || norm.auto_clip.is_some() || norm.keeps_step_counts() =>
            {
                Some(norm)
            }
            _ => None,
        }
    }

    /// Returns whether the outcome of the clip decides if the optimizer steps.
    pub(crate) const fn decides_step(&self) -> bool {
        matches!(
            self.kind,
            ClipKind::Norm(
                ByNorm { non_finite: NonFinite::Skip | NonFinite::Error, .. }
                    | ByNorm { skip_above: Some(_), .. }
            )
        )
    }

    /// Returns the norm type; L2 for a clip by value, which measures no norm.
    pub(crate) const fn norm_type(&self) -> NormType {
        match self.kind {
            ClipKind::Norm(norm) => norm.norm_type,
            ClipKind::Clamp { .. } => NormType::L2,
        }
    }

    /// Returns the policy for non-finite gradients.
    pub(crate) const fn non_finite(&self) -> NonFinite {
        match self.kind {
            ClipKind::Norm(norm) => norm.non_finite,
            ClipKind::Clamp { .. } => NonFinite::Propagate,
        }
    }
}

#[cfg(test)]
mod tests {
    use gradclip::Clip;

    use super::*;

    /// This package must support or reject every option of gradclip. The test fails if gradclip has a new option.
    #[test]
    fn every_option_of_a_clip_is_known() {
        let Operation::Norm(norm) = Clip::by_global_norm(1.0).checked().unwrap() else { panic!("by norm") };
        let text = format!("{norm:?}");
        let options = text.trim_start_matches("ByNorm { ").split(", ");
        let options: Vec<_> = options.filter_map(|option| option.split(':').next()).collect();
        let known = [
            "norm_type",
            "scope",
            "max_norm",
            "epsilon",
            "non_finite",
            "inverse_scale",
            "coefficient_only",
            "tensor_stats",
            "count_steps",
            "z_clip",
            "auto_clip",
            "skip_above",
            "dynamic_loss_scale",
        ];
        assert_eq!(options, known);
    }
}
