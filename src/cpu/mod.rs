//! Clipping on the CPU, with the meaning of the GPU path: for gradients in main memory, and for machines without a
//! GPU.
//!
//! ```
//! use gradclip::{Clip, cpu};
//!
//! let (mut weight, mut bias) = ([3.0, 0.0], [4.0]);
//! let record = cpu::clip(&mut [&mut weight, &mut bias], Clip::by_global_norm(1.0))?;
//! assert_eq!(record.unwrap().total_norm, 5.0);
//! assert_eq!(bias, [0.799_999_84]);
//! # Ok::<(), gradclip::Error>(())
//! ```
//!
//! [`clip_all`] takes gradients of any type, and [`clip_groups`] several limits at once:
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
//! **Exactness.** Magnitudes and squares are summed in f64, where no finite f32 overflows or vanishes, along short
//! chains: the L1 and L2 norms are the exact ones rounded to f32, but for rare ties that fall the other way. For another
//! p the powers are those of ratios to the largest magnitude, or the smallest if p is negative, so that they stay in
//! range, too. Whether gradients are finite is read from their bits. The elements of f16 and bf16 are widened exactly,
//! and rounded to nearest even once they have been scaled.
//!
//! **Determinism.** The same gradients give the same bits for any number of threads, with the feature `rayon` or
//! without it, and for any instruction set. Only the sign and the payload of a NaN are the machine's choice, and the
//! last bits of `pow`, in which [`NormType::P`](crate::NormType::P) is computed, the system's.
//!
//! **Cost.** Memory bandwidth: a norm reads every gradient once, and where it exceeds the limit the scaling reads and
//! writes every gradient once; a clip by value reads every gradient once, and writes the parts that change. Only
//! [`NormType::P`](crate::NormType::P) computes longer than it reads. With the feature `rayon` (a default) the work is
//! spread over the threads of the current rayon pool, unless it is too small to gain from it; AVX2 is used where
//! the machine has it. Some 100 bytes are allocated per gradient, and none per element.

mod element;
mod gradient;
mod kernels;
mod measured;
mod parallel;
mod plan;
mod records;
mod stats;
#[cfg(test)]
mod tests;

pub use gradient::{Gradient, Parameter};
pub use plan::{ClipPlan, Measurement, scale};
pub use stats::tensor_stats;

use crate::clip::{ByNorm, Operation, Scope};
use crate::operation::check_stateless;
use crate::{Clip, ClipRecord, Error};

/// Clips gradients in single precision in place. A clip by global norm returns its record; the others, for which there
/// is none or one per gradient, return `None`. See [`clip_all`].
///
/// # Errors
///
/// As [`clip_all`].
pub fn clip(gradients: &mut [&mut [f32]], clip: Clip) -> Result<Option<ClipRecord>, Error> {
    let mut gradients: Vec<Gradient<'_>> =
        gradients.iter_mut().map(|gradient| Gradient::f32(gradient)).collect();
    let records = clip_all(&mut gradients, clip)?;
    let global = matches!(clip.checked()?, Operation::Norm(ByNorm { scope: Scope::Global, .. }));
    Ok(records.first().copied().filter(|_| global))
}

/// Clips gradients in place, all of which belong to group 0.
///
/// A clip by global norm returns one record. [`Clip::by_norm`], [`Clip::by_rms`] and [`Clip::by_parameter_norm`] return one
/// for each gradient, or for each [row](Gradient::rows), in the order of the gradients. A clip by value returns none. Nothing
/// is written if the factor is 1 or the clip is [`Clip::coefficient_only`].
///
/// # Errors
///
/// The values of `clip` are not valid, as its constructors describe; [`Error::GroupWithoutClip`] if a gradient belongs to another
/// group; the errors of rows and parameters (see [`Gradient`]); [`Error::NeedsPlan`] for an option whose results only a plan
/// returns; or [`Error::NonFinite`] if that is the policy. The gradients are then untouched.
pub fn clip_all(gradients: &mut [Gradient<'_>], clip: Clip) -> Result<Vec<ClipRecord>, Error> {
    clip_groups(gradients, &[clip])
}

/// Clips gradients in place, each with the clip of its [group](Gradient::group).
///
/// Clips by global norm return one record per group, as separate calls would; otherwise this is as [`clip_all`].
///
/// # Errors
///
/// Those of [`clip_all`] for any of the clips, and [`Error::GroupsDiffer`] if they differ in more than their limits. All
/// gradients are then untouched.
pub fn clip_groups(gradients: &mut [Gradient<'_>], clips: &[Clip]) -> Result<Vec<ClipRecord>, Error> {
    ClipPlan::of(check_stateless(clips)?).clip(gradients)
}

/// Clips gradients in place by a norm that was measured elsewhere, for a [`Clip::by_supplied_norm`]. Returns the record.
///
/// # Errors
///
/// Those of [`clip_all`]; [`Error::UnexpectedNorm`] for any other clip.
pub fn clip_with_norm(
    gradients: &mut [Gradient<'_>],
    clip: Clip,
    total_norm: f32,
) -> Result<ClipRecord, Error> {
    let records = ClipPlan::of(check_stateless(&[clip])?).clip_with_norm(gradients, total_norm)?;
    Ok(records[0])
}

/// The record that a clip by global norm to `max_norm` would return. Writes nothing.
///
/// # Errors
///
/// [`Error::MaxNorm`] if `max_norm` is negative or NaN.
pub fn measure(gradients: &[&[f32]], max_norm: f32) -> Result<ClipRecord, Error> {
    Clip::by_global_norm(max_norm).checked()?;
    Ok(records::of_slices(gradients, max_norm))
}

/// The L2 norm of all gradients together, `sqrt(Σ g²)`; 0 if there are none. Infinite where it exceeds `f32::MAX` or
/// an element is infinite, NaN where an element is NaN.
#[must_use]
pub fn total_norm(gradients: &[&[f32]]) -> f32 {
    records::of_slices(gradients, f32::INFINITY).total_norm
}

/// How many threads the functions of this module use at most: those of the current rayon pool, or 1 without the
/// feature `rayon`.
#[must_use]
pub fn threads() -> usize {
    parallel::threads()
}
