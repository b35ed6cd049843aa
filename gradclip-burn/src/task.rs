//! What a clip is to do to these gradients: numbers, checked. Both ways of doing it read these.

use gradclip::operation::{ByNorm, Operation, Scope};
use gradclip::{NonFinite, NormType};

use crate::Error;

/// The work on some gradients.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) method: Method,
    /// The bounds of each segment: of each group, or of each gradient where each is clipped by itself. Of a clip by norm the
    /// upper one is the limit.
    pub(crate) segments: Vec<[f32; 2]>,
    /// The segment of each gradient.
    pub(crate) segment_of: Vec<usize>,
    /// Whether gradients are changed, not only measured.
    pub(crate) writes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Method {
    /// Its limit is one of the segments'.
    Norm(ByNorm),
    Clamp,
}

/// A gradient, as far as a task needs to know it.
pub(crate) struct Member {
    pub(crate) group: usize,
    pub(crate) elements: usize,
}

/// Refuses what gradclip can and this package cannot.
pub(crate) fn supported(operation: &Operation) -> Result<(), Error> {
    let norm = match operation {
        Operation::Norm(norm) => norm,
        Operation::Clamp { .. } => return Ok(()),
        _ => return Err(Error::Unsupported { option: "this clip" }),
    };
    match norm.scope {
        Scope::Global | Scope::Tensor | Scope::TensorRms => {}
        Scope::Parameter { .. } => return Err(Error::Unsupported { option: "Clip::by_parameter_norm" }),
        Scope::Supplied => return Err(Error::Unsupported { option: "Clip::by_supplied_norm" }),
        _ => return Err(Error::Unsupported { option: "this scope of a norm" }),
    }
    if norm.z_clip.is_some() {
        return Err(Error::Unsupported { option: "Clip::z_clip" });
    }
    if norm.count_steps {
        return Err(Error::Unsupported { option: "Clip::count_steps" });
    }
    Ok(())
}

impl Task {
    /// The task of these operations, one for each group, on these gradients.
    pub(crate) fn new(operations: &[Operation], members: &[Member]) -> Self {
        let bounds = |operation: &Operation, elements: u64| match *operation {
            Operation::Norm(norm) => [0.0, norm.limit_for(elements)],
            Operation::Clamp { low, high } => [low, high],
            // Refused above.
            _ => [f32::NEG_INFINITY, f32::INFINITY],
        };
        let method = match operations.first() {
            Some(Operation::Norm(norm)) => Method::Norm(*norm),
            _ => Method::Clamp,
        };
        let writes = !matches!(method, Method::Norm(ByNorm { coefficient_only: true, .. }));
        let (segments, segment_of) = match method {
            Method::Norm(ByNorm { scope: Scope::Tensor | Scope::TensorRms, .. }) => (
                members.iter().map(|own| bounds(&operations[own.group], own.elements as u64)).collect(),
                (0..members.len()).collect(),
            ),
            _ => (
                operations.iter().map(|operation| bounds(operation, 1)).collect(),
                members.iter().map(|own| own.group).collect(),
            ),
        };
        Self { method, segments, segment_of, writes }
    }

    pub(crate) const fn norm_type(&self) -> NormType {
        match self.method {
            Method::Norm(norm) => norm.norm_type,
            Method::Clamp => NormType::L2,
        }
    }

    /// What undoes the loss scale in gradients.
    pub(crate) const fn inverse_scale(&self) -> f32 {
        match self.method {
            Method::Norm(norm) => norm.inverse_scale,
            Method::Clamp => 1.0,
        }
    }

    pub(crate) const fn non_finite(&self) -> NonFinite {
        match self.method {
            Method::Norm(norm) => norm.non_finite,
            Method::Clamp => NonFinite::Propagate,
        }
    }

    /// Whether what is uploaded for the one serves the other. By bits: a bound may be a zero of either sign.
    #[cfg(feature = "wgpu")]
    pub(crate) fn same_numbers(&self, other: &Self) -> bool {
        let bits = |task: &Self| match task.method {
            Method::Norm(norm) => Some((norm.epsilon.to_bits(), norm.inverse_scale.to_bits(), norm.non_finite)),
            Method::Clamp => None,
        };
        let segments = || self.segments.iter().zip(&other.segments);
        bits(self) == bits(other)
            && self.segments.len() == other.segments.len()
            && segments().all(|(a, b)| a.map(f32::to_bits) == b.map(f32::to_bits))
    }
}

#[cfg(test)]
mod tests {
    use gradclip::Clip;

    use super::*;

    /// An option that gradclip gets must be carried out or refused here too. This notices one.
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
        ];
        assert_eq!(options, known);
    }
}
