//! What happened: the record that a clip leaves behind, whose layout Rust and WGSL share.

use bytemuck::{Pod, Zeroable};

use crate::clip::clip_coef;

/// The WGSL declaration of the record: `struct ClipRecord` and its flag constants, for a shader of yours that binds
/// [`ClipPlan::record_buffer`](crate::ClipPlan::record_buffer).
///
/// ```wgsl
/// @group(0) @binding(0) var<uniform> record: ClipRecord;
/// // ... gradient * record.clip_coef
/// ```
pub const RECORD_WGSL: &str = include_str!("../shaders/record.wgsl");

/// The outcome of a clip by global norm.
///
/// On the device it is 16 bytes, four words in this order, each little-endian: `total_norm: f32` at offset 0,
/// `clip_coef: f32` at 4, `max_magnitude: f32` at 8, `flags: u32` at 12. [`RECORD_WGSL`] declares it for shaders.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ClipRecord {
    /// The L2 norm of all gradients together, before clipping. Infinite where it exceeds `f32::MAX`.
    pub total_norm: f32,
    /// The factor that brings the gradients to the limit; exactly 1 where they are within it.
    pub clip_coef: f32,
    /// The largest absolute value of any element: the infinity norm. NaN if any element is NaN.
    pub max_magnitude: f32,
    flags: u32,
}

impl ClipRecord {
    const CLIPPED: u32 = 1;
    const NON_FINITE: u32 = 2;

    /// The record before anything has been measured: a scale pass that reads it changes nothing.
    pub(crate) const UNCLIPPED: Self = Self { total_norm: 0.0, clip_coef: 1.0, max_magnitude: 0.0, flags: 0 };

    /// The record of gradients with this norm and largest magnitude, clipped to `max_norm`.
    pub(crate) fn new(total_norm: f32, max_magnitude: f32, max_norm: f32) -> Self {
        let clip_coef = clip_coef(total_norm, max_norm);
        let clipped = if clip_coef == 1.0 { 0 } else { Self::CLIPPED };
        let non_finite = if total_norm.is_finite() { 0 } else { Self::NON_FINITE };
        Self { total_norm, clip_coef, max_magnitude, flags: clipped | non_finite }
    }

    /// Its fields and their offsets, for the test that compares them with those of the shaders.
    #[cfg(test)]
    pub(crate) fn layout() -> Vec<(String, usize)> {
        use std::mem::offset_of;
        let offsets = [
            ("total_norm", offset_of!(Self, total_norm)),
            ("clip_coef", offset_of!(Self, clip_coef)),
            ("max_magnitude", offset_of!(Self, max_magnitude)),
            ("flags", offset_of!(Self, flags)),
        ];
        offsets.map(|(name, offset)| (name.to_owned(), offset)).to_vec()
    }

    /// Whether the coefficient differs from 1: the gradients exceed the limit, or are not finite.
    #[must_use]
    pub const fn clipped(&self) -> bool {
        self.flags & Self::CLIPPED != 0
    }

    /// Whether the norm is infinite or NaN: a gradient holds an infinity or a NaN, or (where
    /// [`max_magnitude`](Self::max_magnitude) is finite) the norm of finite gradients exceeds `f32::MAX`.
    #[must_use]
    pub const fn non_finite(&self) -> bool {
        self.flags & Self::NON_FINITE != 0
    }
}
