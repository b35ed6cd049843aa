//! `TensorStats`: the statistics of one gradient.

use bytemuck::{Pod, Zeroable};

/// The WGSL declaration of [`TensorStats`], for a shader of yours that binds
/// [`ClipPlan::tensor_stats_buffer`](crate::ClipPlan::tensor_stats_buffer).
pub const TENSOR_STATS_WGSL: &str = include_str!("../shaders/lib/tensor_stats.wgsl");

/// The statistics of one gradient, which show the layer that explodes, vanishes or is not finite. They are those before clipping,
/// without the loss scale. All fields are 0 for an unmeasured gradient, which is not read.
///
/// On the device it is 16 bytes, four little-endian words in the order of the fields; [`TENSOR_STATS_WGSL`] declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct TensorStats {
    /// The norm of this gradient, of the clip's norm type. Infinite if it exceeds `f32::MAX`.
    pub norm: f32,
    /// The largest absolute value of its elements; NaN if one of them is NaN.
    pub max_magnitude: f32,
    /// The number of infinite and NaN elements, at most `u32::MAX`.
    pub non_finite: u32,
    /// The number of elements that are 0, of either sign, at most `u32::MAX`.
    pub zeros: u32,
}

impl TensorStats {
    /// The statistics of a plan until its first norm pass. No gradient has these: a magnitude has no sign.
    pub(crate) const UNMEASURED: Self = Self {
        norm: f32::NAN,
        max_magnitude: f32::from_bits(u32::MAX),
        non_finite: u32::MAX,
        zeros: u32::MAX,
    };

    /// Whether they come from a norm pass.
    pub(crate) fn is_measured(&self) -> bool {
        self.max_magnitude.to_bits() != Self::UNMEASURED.max_magnitude.to_bits()
    }
}
