//! What can be known of one gradient alone.

/// One gradient of several, by itself: what tells which layer explodes, vanishes or is not finite. It speaks of the
/// gradient before clipping and without its loss scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorStats {
    /// The norm of this gradient alone, of the clip's norm type. Infinite where it exceeds `f32::MAX`.
    pub norm: f32,
    /// The largest absolute value of its elements; NaN if one of them is NaN.
    pub max_magnitude: f32,
    /// How many elements are infinite or NaN.
    pub non_finite: u64,
    /// How many elements are 0, of either sign.
    pub zeros: u64,
}
