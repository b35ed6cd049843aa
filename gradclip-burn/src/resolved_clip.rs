//! A checked clip, resolved for a list of gradients. The kernels and the tensor operations both execute it.

use gradclip::operation::{ByNorm, Operation, Scope};
use gradclip::{NonFinite, NormType};

use crate::Error;
use crate::gradients::Gradient;

/// The options of a clip, and the limit of each segment of a list of gradients. A segment has one norm, one limit and
/// one record. It is a group, or a single gradient if each is clipped by its own norm.
#[derive(Clone, Debug)]
pub(crate) struct ResolvedClip {
    pub(crate) kind: ClipKind,
    /// The lower and the upper bound of each segment. The upper bound of a clip by norm is its limit.
    pub(crate) bounds: Vec<[f32; 2]>,
    /// The segment of each gradient.
    pub(crate) segment_of: Vec<usize>,
}

/// The kind of a clip, without its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ClipKind {
    /// A clip by norm. The limits are in [`ResolvedClip::bounds`], not in [`ByNorm::max_norm`].
    Norm(ByNorm),
    /// A clip by value.
    Clamp,
}

/// Rejects the operations and options that this package does not support.
pub(crate) fn check_supported(operation: &Operation) -> Result<(), Error> {
    let norm = match operation {
        Operation::Norm(norm) => norm,
        Operation::Clamp { .. } => return Ok(()),
        _ => return Err(Error::Unsupported { option: "an operation other than Norm and Clamp" }),
    };
    if norm.dynamic_loss_scale.is_some() {
        return Err(Error::Unsupported { option: "Clip::dynamic_loss_scale" });
    }
    match norm.scope {
        Scope::Global | Scope::Tensor | Scope::TensorRms | Scope::Supplied => Ok(()),
        Scope::Parameter { .. } => Err(Error::Unsupported { option: "Clip::by_parameter_norm" }),
        _ => Err(Error::Unsupported { option: "a scope other than Global, Tensor, TensorRms and Supplied" }),
    }
}

impl ResolvedClip {
    /// Resolves supported operations, one for each group, for a list of gradients.
    pub(crate) fn new(operations: &[Operation], gradients: &[Gradient]) -> Self {
        let bounds = |operation: &Operation, elements: usize| match *operation {
            Operation::Norm(norm) => [0.0, norm.limit_for(elements as u64)],
            Operation::Clamp { low, high } => [low, high],
            // `check_supported` rejects other operations.
            _ => [f32::NEG_INFINITY, f32::INFINITY],
        };
        let kind = match operations.first() {
            Some(Operation::Norm(norm)) => ClipKind::Norm(*norm),
            _ => ClipKind::Clamp,
        };
        let infos = || gradients.iter().map(|gradient| &gradient.info);
        let (bounds, segment_of) = match kind {
            ClipKind::Norm(norm) if !norm.scope.is_together() => (
                infos().map(|info| bounds(&operations[info.group], info.count)).collect(),
                (0..gradients.len()).collect(),
            ),
            _ => (
                operations.iter().map(|operation| bounds(operation, 1)).collect(),
                infos().map(|info| info.group).collect(),
            ),
        };
        Self { kind, bounds, segment_of }
    }

    /// Returns the number of segments.
    pub(crate) const fn segments(&self) -> usize {
        self.bounds.len()
    }

    /// Returns whether the clip changes gradients. If not, it only measures them.
    pub(crate) const fn writes_gradients(&self) -> bool {
        !matches!(self.kind, ClipKind::Norm(ByNorm { coefficient_only: true, .. }))
    }

    /// Returns whether each gradient has its own norm. If not, groups share one.
    pub(crate) const fn is_per_gradient(&self) -> bool {
        matches!(self.kind, ClipKind::Norm(norm) if !norm.scope.is_together())
    }

    /// Returns whether the clip has a limit that follows past norms.
    pub(crate) const fn keeps_histories(&self) -> bool {
        matches!(self.kind, ClipKind::Norm(ByNorm { z_clip: Some(_), .. }))
    }

    /// Returns whether the clip counts steps, or has a rule that needs the counts.
    pub(crate) const fn counts_steps(&self) -> bool {
        matches!(self.kind, ClipKind::Norm(norm) if norm.keeps_step_counts())
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
            ClipKind::Clamp => NormType::L2,
        }
    }

    /// Returns the policy for non-finite gradients.
    pub(crate) const fn non_finite(&self) -> NonFinite {
        match self.kind {
            ClipKind::Norm(norm) => norm.non_finite,
            ClipKind::Clamp => NonFinite::Propagate,
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
            "skip_above",
            "dynamic_loss_scale",
        ];
        assert_eq!(options, known);
    }
}
