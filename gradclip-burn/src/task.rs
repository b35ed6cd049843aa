//! What a clip is to do: numbers, checked. Both ways of doing it read these.

use gradclip::{NonFinite, NormType};

use crate::device::Norm;

/// The options of a clip that a step needs.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) method: Method,
    /// The bounds of each group. Of a clip by norm the upper one is the limit.
    pub(crate) groups: Vec<[f32; 2]>,
    pub(crate) epsilon: f32,
    pub(crate) non_finite: NonFinite,
    /// What undoes the loss scale. Positive and finite.
    pub(crate) inverse_scale: f32,
    /// Whether each gradient gets statistics besides.
    pub(crate) tensor_stats: bool,
    /// Whether gradients are changed, not only measured.
    pub(crate) writes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Norm(Norm),
    Clamp,
}

impl Task {
    pub(crate) const fn norm_type(&self) -> NormType {
        match self.method {
            Method::Norm(Norm::L1) => NormType::L1,
            Method::Norm(Norm::Inf) => NormType::Inf,
            Method::Norm(Norm::L2) | Method::Clamp => NormType::L2,
        }
    }

    /// A `POLICY_*` of `conclude.wgsl`.
    pub(crate) const fn policy(&self) -> u32 {
        match self.non_finite {
            NonFinite::Propagate => 0,
            NonFinite::Skip | NonFinite::Error => 1,
            NonFinite::Zero => 2,
            NonFinite::Poison => 3,
        }
    }

    /// Whether what is uploaded for the one serves the other. By bits: a limit may be NaN.
    pub(crate) fn same_numbers(&self, other: &Self) -> bool {
        let bits = |task: &Self| {
            let groups: Vec<_> = task.groups.iter().map(|bounds| bounds.map(f32::to_bits)).collect();
            (groups, task.epsilon.to_bits(), task.inverse_scale.to_bits(), task.policy())
        };
        matches!(self.method, Method::Clamp) == matches!(other.method, Method::Clamp)
            && bits(self) == bits(other)
    }
}
