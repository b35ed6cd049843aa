//! The structs in the buffers that kernels read, and the rules for their contents.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::loss_scale::LossScaleState;
use crate::operation::{ByNorm, Scope};
use crate::{AutoClip, DType, NonFinite, NormWindow};

/// A tile: the work of one workgroup. `Tile` of `tile.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tile {
    /// The slot of the window that has the elements.
    pub slot: u32,
    /// The index of the first element, from the start of the window.
    pub first: u32,
    /// The number of elements.
    pub count: u32,
    /// In the norm pass, the index of the partial to write; in an elementwise pass, that of the record or bounds to apply.
    pub target_index: u32,
}

/// A tile of a gradient whose columns have their own norms. `ColumnTile` of `column_tile.wgsl`. A table of tiles holds it as two
/// [`Tile`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ColumnTile {
    /// The slot of the window that has the elements.
    pub slot: u32,
    /// The index of the first element, from the start of the window.
    pub first: u32,
    /// In the norm pass, the number of columns of the block, at most [`WORKGROUP_SIZE`](super::WORKGROUP_SIZE); in the
    /// elementwise pass, the number of elements.
    pub count: u32,
    /// In the norm pass, the index of the partial of the first column; in the elementwise pass, that of the record of column 0.
    pub target_index: u32,
    /// The slot again.
    pub slot_again: u32,
    /// The number of columns of the gradient.
    pub columns: u32,
    /// In the norm pass, the number of rows of the block; in the elementwise pass, the column of the first element.
    pub extent: u32,
    /// In the norm pass, the distance between the partials of neighbouring columns.
    pub target_stride: u32,
}

/// A group, a gradient or a row, with its norm and its record. `Segment` of `segment.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Segment {
    /// The index of its first partial.
    pub first: u32,
    /// The number of its partials.
    pub count: u32,
    /// The limit of its norm.
    pub max_norm: f32,
}

impl Segment {
    /// A segment without partials or limit.
    pub const EMPTY: Self = Self { first: 0, count: 0, max_norm: f32::INFINITY };

    /// Creates a segment from the indices of its partials.
    ///
    /// # Panics
    ///
    /// If an index exceeds 32 bits.
    #[must_use]
    pub fn new(partials: &Range<usize>, max_norm: f32) -> Self {
        let number = |number: usize| u32::try_from(number).expect("partials are counted in 32 bits");
        Self { first: number(partials.start), count: number(partials.len()), max_norm }
    }
}

/// The parameters of a clip by norm. `NormParams` of `segment.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct NormParams {
    /// The loss scale; the first six fields are a [`LossScaleState`].
    pub scale: f32,
    /// The factor by which the loss scale grows.
    pub growth: f32,
    /// The factor by which the loss scale shrinks.
    pub backoff: f32,
    /// The least loss scale.
    pub scale_floor: f32,
    /// The number of good steps after which the loss scale grows; 0 for a fixed scale.
    pub interval: u32,
    /// The number of good steps since the loss scale last changed.
    pub good_steps: u32,
    /// The inverse of the loss scale.
    pub inverse_scale: f32,
    /// The constant that is added to the norm.
    pub epsilon: f32,
    /// The policy for non-finite gradients, a `POLICY_*` of `clip_coef.wgsl`.
    pub policy: u32,
    /// AGC: the smallest norm of a parameter.
    pub floor: f32,
    /// Z-clip: the weight of a new norm in the mean.
    pub rate: f32,
    /// Z-clip: the largest deviation from the mean, in standard deviations.
    pub threshold: f32,
    /// Z-clip: the number of steps without a limit.
    pub warm_up: u32,
    /// The norm above which a step is skipped; infinity for none.
    pub skip_above: f32,
    /// The number of steps in a row that [`skip_above`](Self::skip_above) skips, before it clips one instead.
    pub max_consecutive_skips: u32,
    /// Auto-clip: the percentile in whole steps of 2^-15 percent.
    pub percentile_steps: u32,
    /// Auto-clip: the rest of the percentile, in such steps; in `[0, 1)`.
    pub percentile_rest: f32,
}

/// The resolution of [`NormParams::percentile_steps`]. With it, the position of a percentile in the largest window fits 32 bits.
pub(crate) const PERCENTILE_STEPS_PER_PERCENT: f32 = 32768.0;

impl NormParams {
    /// The parameters of a checked clip.
    #[must_use]
    pub fn new(norm: &ByNorm) -> Self {
        let floor = if let Scope::Parameter { floor } = norm.scope { floor } else { 0.0 };
        let z_clip = norm.z_clip.unwrap_or_default();
        let scale = norm.dynamic_loss_scale.map_or(FIXED_SCALE, |scale| scale.state());
        let percentile = PERCENTILE_STEPS_PER_PERCENT * norm.auto_clip.unwrap_or_default().percentile;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a percentile is at most 100, and its fraction is kept separately"
        )]
        let percentile_steps = percentile as u32;
        Self {
            scale: scale.scale,
            growth: scale.growth,
            backoff: scale.backoff,
            scale_floor: scale.floor,
            interval: scale.interval,
            good_steps: scale.good_steps,
            inverse_scale: norm.inverse_scale,
            epsilon: norm.epsilon,
            policy: policy(norm.non_finite),
            floor,
            rate: 1.0 - z_clip.alpha,
            threshold: z_clip.z_threshold,
            warm_up: z_clip.warm_up,
            skip_above: norm.skip_above.map_or(f32::INFINITY, |skip| skip.norm),
            max_consecutive_skips: norm.skip_above.map_or(0, |skip| skip.max_consecutive),
            percentile_steps,
            percentile_rest: percentile.fract(),
        }
    }
}

/// The state of a loss scale that no rule changes, since its interval is 0.
const FIXED_SCALE: LossScaleState =
    LossScaleState { scale: 1.0, growth: 1.0, backoff: 1.0, floor: 1.0, interval: 0, good_steps: 0 };

/// A `POLICY_*` of `clip_coef.wgsl`. An error on the host is a skipped step on the device.
const fn policy(non_finite: NonFinite) -> u32 {
    match non_finite {
        NonFinite::Propagate => 0,
        NonFinite::Skip | NonFinite::Error => 1,
        NonFinite::Zero => 2,
        NonFinite::Poison => 3,
    }
}

/// Converts the norm windows of the records of an [`auto_clip`](crate::Clip::auto_clip) to the contents of
/// [`Buffer::NormWindows`](super::Buffer::NormWindows): for each record three words and as many norms as the window is long.
/// No window may hold more norms than that.
#[must_use]
pub fn norm_window_words(auto_clip: AutoClip, windows: &[NormWindow]) -> Vec<u32> {
    auto_clip.device_words(windows)
}

/// Converts the contents of [`Buffer::NormWindows`](super::Buffer::NormWindows) back to norm windows.
#[must_use]
pub fn norm_windows_of(words: &[u32]) -> Vec<NormWindow> {
    NormWindow::from_device_words(words)
}

/// The bounds of a clip by value. `Bounds` of `clamp_bits.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Bounds {
    /// The lower bound.
    pub low: f32,
    /// The upper bound.
    pub high: f32,
}

impl Bounds {
    /// Creates bounds for elements of a type; rounds them to it.
    #[must_use]
    pub fn new([low, high]: [f32; 2], dtype: DType) -> Self {
        Self { low: dtype.round(low), high: dtype.round(high) }
    }
}

/// The inverse of a loss scale, followed by the bounds of each group. `UnscaledBounds` of `unscale_clamp.wgsl`.
#[derive(Clone, Debug, PartialEq)]
pub struct UnscaledBounds(Vec<f32>);

impl UnscaledBounds {
    /// Creates the table for elements of a type. `bounds` has the bounds of each group, which are rounded to the type.
    #[must_use]
    pub fn new(inverse_scale: f32, bounds: &[[f32; 2]], dtype: DType) -> Self {
        let rounded = bounds.iter().map(|&bounds| Bounds::new(bounds, dtype));
        let numbers = rounded.flat_map(|Bounds { low, high }| [low, high]);
        Self(std::iter::once(inverse_scale).chain(numbers).collect())
    }

    /// Returns the contents of the buffer.
    #[must_use]
    pub fn numbers(&self) -> &[f32] {
        &self.0
    }
}

/// The largest tile, in elements.
pub(crate) const LARGEST_TILE: u64 = 1 << 16;

/// Returns the length of a tile, in elements, for gradients with `total` elements together. The last tile of a gradient may be
/// shorter.
///
/// Small sets have short tiles, so that there are workgroups for the whole GPU. Large sets have long tiles, so that the single
/// workgroup that reduces the partials has few of them. Either way, tables and partials of f32 gradients take less than 0.1 %
/// of the gradients' memory and 64 KiB.
#[must_use]
pub const fn tile_elements(total: u64) -> u64 {
    match total {
        0..=0x80_0000 => 1 << 12,
        0x80_0001..=0x4000_0000 => 1 << 14,
        _ => LARGEST_TILE,
    }
}

/// The most rows in a block of columns: chains of 16 terms for each of the 16 sums of an invocation.
const MOST_ROWS: u64 = 256;

/// The most elements in a block of several rows: 16 MiB of f32, which a binding of any WebGPU device holds.
const MOST_ELEMENTS: u64 = 1 << 22;

/// Returns the number of rows in a block of a gradient with `columns` columns, each of which has its own norm. It depends on
/// nothing else, so the order of additions does not either. A [`ColumnTile`] of the norm pass covers up to
/// [`WORKGROUP_SIZE`](super::WORKGROUP_SIZE) columns of a block.
#[must_use]
pub fn block_rows(columns: u64) -> u64 {
    let most = (MOST_ELEMENTS / columns.max(1)).clamp(1, MOST_ROWS);
    1 << most.ilog2()
}

/// Returns a grid of at least `workgroups` workgroups, in two dimensions if they exceed `max_per_dimension`. The rows are filled
/// evenly, so at most one workgroup for each row is idle.
#[must_use]
pub fn fold_grid(workgroups: usize, max_per_dimension: u32) -> [u32; 2] {
    let rows = workgroups.div_ceil(max_per_dimension as usize).max(1);
    [workgroups.div_ceil(rows), rows].map(|side| u32::try_from(side).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_fewer_rows_if_they_are_long() {
        let rows = [1, 2, 256, 16_384, 16_385, 1 << 21, 1 << 22, 1 << 40].map(block_rows);
        assert_eq!(rows, [256, 256, 256, 256, 128, 2, 1, 1]);
    }
}
