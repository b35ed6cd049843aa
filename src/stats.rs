//! What can be known of one gradient alone.

use bytemuck::{Pod, Zeroable};

/// The WGSL declaration of [`TensorStats`], for a shader of yours that binds
/// [`ClipPlan::tensor_stats_buffer`](crate::ClipPlan::tensor_stats_buffer).
pub const TENSOR_STATS_WGSL: &str = include_str!("../shaders/tensor_stats.wgsl");

/// One gradient of several, by itself: what tells which layer explodes, vanishes or is not finite. It speaks of the
/// gradient before clipping and without its loss scale. Of an unmeasured gradient, which is not read, all is 0.
///
/// On the device it is 16 bytes, four little-endian words in the order of the fields; [`TENSOR_STATS_WGSL`] declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct TensorStats {
    /// The norm of this gradient alone, of the clip's norm type. Infinite where it exceeds `f32::MAX`.
    pub norm: f32,
    /// The largest absolute value of its elements; NaN if one of them is NaN.
    pub max_magnitude: f32,
    /// How many elements are infinite or NaN; `u32::MAX` if more.
    pub non_finite: u32,
    /// How many elements are 0, of either sign; `u32::MAX` if more.
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
