//! What a plan keeps besides records: the statistics of each tensor, and counts, norm histories and norm windows over
//! steps.

use bytemuck::{Pod, Zeroable};

pub use crate::auto_clip::NormWindow;
pub use crate::step_counts::{STEP_COUNTS_WGSL, StepCounts};
pub use crate::z_clip::NormHistory;

/// The WGSL declaration of [`TensorStats`], for a shader that binds
/// [`ClipPlan::tensor_stats_buffer`](crate::ClipPlan::tensor_stats_buffer).
pub const TENSOR_STATS_WGSL: &str = include_str!("../shaders/lib/tensor_stats.wgsl");

/// The statistics of one gradient, which show the layer that explodes, vanishes or is not finite.
///
/// They are those before clipping, without the loss scale. All fields are 0 for an unmeasured gradient, which is not read.
/// [`Clip::tensor_stats`](crate::Clip::tensor_stats) enables them.
///
/// On the device it is 16 bytes, four little-endian words in the order of the fields; [`TENSOR_STATS_WGSL`] declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct TensorStats {
    /// The norm of this gradient, of the clip's norm type. Infinite if it exceeds `f32::MAX`.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
    pub norm: f32,
    /// The largest absolute value of its elements; NaN if one of them is NaN.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
    pub max_magnitude: f32,
    /// The number of infinite and NaN elements, at most `u32::MAX`.
    pub non_finite: u32,
    /// The number of elements that are 0, of either sign, at most `u32::MAX`.
    pub zeros: u32,
}

impl TensorStats {
    /// The statistics of a plan before its first norm pass. The counts mark them: an element is not both zero and non-finite.
    pub(crate) const UNMEASURED: Self =
        Self { norm: f32::NAN, max_magnitude: f32::NAN, non_finite: u32::MAX, zeros: u32::MAX };

    /// Returns whether a norm pass wrote the statistics.
    pub(crate) fn is_measured(&self) -> bool {
        [self.non_finite, self.zeros] != [u32::MAX; 2]
    }
}
