//! Clips gradients in main memory, with the semantics of the GPU path.
//!
//! [`clip_grad_norm`] and [`clip_grad_value`] take f32 slices, as in PyTorch:
//!
//! ```
//! use gradclip::cpu;
//!
//! let mut gradients = [vec![3.0, 0.0], vec![4.0]];
//! let record = cpu::clip_grad_norm(&mut gradients, 1.0)?;
//! assert_eq!(record.total_norm, 5.0);
//! assert_eq!(gradients[1], [0.799_999_84]);
//! # Ok::<(), gradclip::Error>(())
//! ```
//!
//! [`clip`] takes gradients of any type and any [`Clip`]. [`clip_groups`] takes one clip per group:
//!
//! ```
//! use gradclip::cpu::{self, Gradient};
//! use gradclip::{Clip, NonFinite};
//! use half::bf16;
//!
//! let (mut body, mut head) = ([bf16::from_f32(3.0), bf16::from_f32(-4.0)], [12.0]);
//! let mut gradients = [Gradient::bf16(&mut body), Gradient::f32(&mut head).group(1)];
//! let clip = |max_norm| Clip::by_global_norm(max_norm).non_finite(NonFinite::Error);
//! let records = cpu::clip_groups(&mut gradients, &[clip(1.0), clip(15.0)])?;
//! assert_eq!([records[0].total_norm, records[1].total_norm], [5.0, 12.0]);
//! assert_eq!((body[0].to_f32(), head), (0.601_562_5, [12.0]));
//! # Ok::<(), gradclip::Error>(())
//! ```
//!
//! **Exactness.** Magnitudes and squares are summed in f64, in short chains. No finite f32 overflows or underflows
//! there. The L1 and L2 norms are the exact norms rounded to f32, except for rare ties that round the other way. For
//! any other p, elements are divided by the largest magnitude (the smallest for a negative p) before they are raised to
//! the power p, so that powers stay in range. Non-finite elements are detected by their bits. f16 and bf16 elements are
//! widened exactly, and rounded to nearest even after scaling.
//!
//! **Determinism.** The same gradients give the same bits for any number of threads, with or without the feature
//! `rayon`, and for any instruction set. There are two exceptions: the sign and the payload of a NaN depend on the
//! processor, and the last bits of a [`NormType::P`](crate::NormType::P) norm depend on the system's `pow`.
//!
//! **Cost.** Clips are bound by memory bandwidth. A norm reads every gradient once; if it exceeds the limit, scaling
//! reads and writes every gradient once. A clip by value reads every gradient once, and writes only the parts that
//! change. Only [`NormType::P`](crate::NormType::P) norms are bound by computation. With the feature `rayon` (on by
//! default), large inputs are distributed over the threads of the current rayon pool. AVX2 is used if the processor
//! supports it. About 100 bytes are allocated per gradient, and none per element.

// Modules import only modules from earlier lines:
//   elements, norm_sums
//   kernels, gradient
//   parallel
//   columns, reductions
//   tensor_stats
//   measurement, records
//   plan
mod columns;
mod elements;
mod gradient;
mod kernels;
mod measurement;
mod norm_sums;
mod parallel;
mod plan;
mod records;
mod reductions;
mod tensor_stats;
#[cfg(test)]
mod tests;

pub use gradient::{Gradient, Parameter};
pub use measurement::Measurement;
pub use plan::ClipPlan;
pub(crate) use plan::{first_error, measure_groups, update};
pub use tensor_stats::tensor_stats;

use crate::operation::check_stateless;
use crate::{Clip, ClipRecord, Error};
use kernels::Update;

/// Clips f32 gradients in place to a global L2 norm of at most `max_norm`, like `torch.nn.utils.clip_grad_norm_`.
/// Returns the record, which holds the norm before clipping. See [`Clip::by_global_norm`].
///
/// `gradients` may be a list of vectors or of slices. For another norm type, a loss scale or a policy for non-finite
/// gradients, call [`clip`].
///
/// ```
/// use gradclip::cpu;
///
/// let (mut weight, mut bias) = ([3.0, 0.0], [4.0]);
/// let record = cpu::clip_grad_norm(&mut [&mut weight[..], &mut bias], 10.0)?;
/// assert_eq!((record.total_norm, record.clipped()), (5.0, false));
/// # Ok::<(), gradclip::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::MaxNorm`] if `max_norm` is negative or NaN. The gradients are then untouched.
pub fn clip_grad_norm(gradients: &mut [impl AsMut<[f32]>], max_norm: f32) -> Result<ClipRecord, Error> {
    let records = clip(&mut as_gradients(gradients), Clip::by_global_norm(max_norm))?;
    Ok(records[0])
}

/// Clamps every element of f32 gradients to `[-clip_value, clip_value]` in place, like
/// `torch.nn.utils.clip_grad_value_`. See [`Clip::by_value`].
///
/// # Errors
///
/// [`Error::ClipValue`] if `clip_value` is negative or NaN. The gradients are then untouched.
pub fn clip_grad_value(gradients: &mut [impl AsMut<[f32]>], clip_value: f32) -> Result<(), Error> {
    clip(&mut as_gradients(gradients), Clip::by_value(clip_value))?;
    Ok(())
}

fn as_gradients(gradients: &mut [impl AsMut<[f32]>]) -> Vec<Gradient<'_>> {
    gradients.iter_mut().map(|gradient| Gradient::f32(gradient.as_mut())).collect()
}

/// Clips gradients in place. All must belong to group 0.
///
/// [`Clip::by_global_norm`] returns one record. [`Clip::by_norm`], [`Clip::by_rms`] and [`Clip::by_parameter_norm`]
/// return one record per gradient, or per [row](Gradient::rows), in the order of the gradients. A clip by value returns
/// none. Nothing is written if the factor is 1, or if the clip is [`Clip::coefficient_only`].
///
/// ```
/// use gradclip::cpu::{self, Gradient};
/// use gradclip::Clip;
///
/// let mut gradient = [3.0 * 1024.0, 4.0 * 1024.0];
/// let clip = Clip::by_global_norm(10.0).loss_scale(1024.0);
/// let records = cpu::clip(&mut [Gradient::f32(&mut gradient)], clip)?;
/// assert_eq!((records[0].total_norm, gradient), (5.0, [3.0, 4.0]));
/// # Ok::<(), gradclip::Error>(())
/// ```
///
/// # Errors
///
/// Those of [`Clip::checked`]; [`Error::GroupWithoutClip`] if a gradient belongs to another group; the errors of rows
/// and parameters (see [`Gradient`]); [`Error::NeedsPlan`] for an option whose results only a plan returns;
/// [`Error::NonFinite`] if gradients are not finite under [`NonFinite::Error`](crate::NonFinite::Error). The gradients
/// are then untouched.
pub fn clip(gradients: &mut [Gradient<'_>], clip: Clip) -> Result<Vec<ClipRecord>, Error> {
    clip_groups(gradients, &[clip])
}

/// Clips gradients in place, each with the clip of its [group](Gradient::group).
///
/// Clips by global norm return one record per group. The result is the same as clipping each group separately with
/// [`clip`].
///
/// # Errors
///
/// Those of [`clip`] for each clip; [`Error::GroupsDiffer`] if the clips differ in more than their limits. All
/// gradients are then untouched.
pub fn clip_groups(gradients: &mut [Gradient<'_>], clips: &[Clip]) -> Result<Vec<ClipRecord>, Error> {
    ClipPlan::of(check_stateless(clips)?).clip(gradients)
}

/// Clips gradients in place by `total_norm`, a norm that was measured elsewhere, like
/// `torch.nn.utils.clip_grads_with_norm_`. Returns the record. `clip` must be a [`Clip::by_supplied_norm`].
///
/// # Errors
///
/// Those of [`clip`]; [`Error::UnexpectedNorm`] for any other clip.
pub fn clip_with_norm(
    gradients: &mut [Gradient<'_>],
    clip: Clip,
    total_norm: f32,
) -> Result<ClipRecord, Error> {
    let records = ClipPlan::of(check_stateless(&[clip])?).clip_with_norm(gradients, total_norm)?;
    Ok(records[0])
}

/// Multiplies gradients in place by the factor of a record: the second half of a clip by norm, for parts of gradients
/// whose record is known. The record applies to all of `gradients`, regardless of their groups and rows.
///
/// Nothing is written if the [`factor`](ClipRecord::factor) is 1. [Unscaled](Gradient::unscaled) gradients are never
/// written.
pub fn scale(gradients: &mut [Gradient<'_>], record: &ClipRecord) {
    let Some(update) = Update::from_record(record) else { return };
    let elements = gradients.iter_mut().filter_map(Gradient::scaled_elements);
    parallel::update(&mut elements.map(|elements| (elements, update)).collect::<Vec<_>>());
}

/// Computes the record that [`clip_grad_norm`] would return. Writes nothing.
///
/// # Errors
///
/// [`Error::MaxNorm`] if `max_norm` is negative or NaN.
pub fn measure(gradients: &[impl AsRef<[f32]>], max_norm: f32) -> Result<ClipRecord, Error> {
    Clip::by_global_norm(max_norm).checked()?;
    Ok(records::from_slices(gradients, max_norm))
}

/// Computes the global L2 norm, `sqrt(Σ g²)`, like `torch.nn.utils.get_total_norm`. It is 0 without elements, NaN if an
/// element is NaN, and otherwise infinite if an element is infinite or the norm exceeds `f32::MAX`.
#[must_use]
pub fn total_norm(gradients: &[impl AsRef<[f32]>]) -> f32 {
    records::from_slices(gradients, f32::INFINITY).total_norm
}

/// Returns the maximum number of threads that this module uses: those of the current rayon pool, or 1 without the
/// feature `rayon`.
#[must_use]
pub fn threads() -> usize {
    parallel::threads()
}
