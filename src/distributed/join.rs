//! The joint norm of records, for reports.

use crate::float_modes::in_default_modes;
use crate::{ClipRecord, NormType};

/// Computes the joint norm of all gradients from the records of their parts. The order of the parts affects only rounding.
///
/// ```text
/// total_norm = (Σ norm^p)^(1/p)        the largest for p = ∞, the sum for p = 0, the smallest for p = -∞
/// ```
///
/// It is computed in f64 from [`norm_significand`](ClipRecord::norm_significand) and
/// [`norm_exponent`](ClipRecord::norm_exponent), so that it is right for a part whose norm exceeds f32. An empty list has the
/// norm 0, and a part without elements ([`ClipRecord::UNCLIPPED`]) adds nothing. A non-finite part makes the total non-finite:
/// NaN if a part is NaN or could not be measured ([`ClipRecord::FAILED`]). For p ≤ 0 the norm of non-finite
/// gradients may be finite, and so may the total; check [`ClipRecord::non_finite`] of each part. All parts must be measured
/// with the same norm type. Pass the total to [`ClipPlan::supply_norm`](crate::ClipPlan::supply_norm) of each part.
///
/// ```
/// use gradclip::{ClipRecord, NormType, cpu, distributed::join_norms};
///
/// let parts = [cpu::measure(&[&[3.0]], 1.0)?, ClipRecord::UNCLIPPED, cpu::measure(&[&[0.0, -4.0]], 1.0)?];
/// assert_eq!(join_norms(&parts, NormType::L2), 5.0);
/// assert!(join_norms([&parts[0], &ClipRecord::FAILED], NormType::L2).is_nan());
/// # Ok::<(), gradclip::Error>(())
/// ```
#[must_use]
pub fn join_norms<'a>(parts: impl IntoIterator<Item = &'a ClipRecord>, norm_type: NormType) -> f32 {
    let parts: Vec<_> = parts.into_iter().collect();
    in_default_modes(|| join(&parts, norm_type))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the norm of f32 gradients is an f32; too large is infinite"
)]
fn join(parts: &[&ClipRecord], norm_type: NormType) -> f32 {
    let norms: Vec<f64> = parts
        .iter()
        .filter(|part| part.norm_exponent != ClipRecord::EMPTY_EXPONENT)
        .map(|part| part.norm())
        .collect();
    if norms.iter().any(|norm| norm.is_nan()) {
        return f32::NAN;
    }
    let largest = norms.iter().copied().fold(0.0, f64::max);
    let smallest = norms.iter().copied().fold(f64::INFINITY, f64::min);
    if largest == 0.0 {
        return 0.0;
    }
    let p = f64::from(norm_type.p());
    // Powers of ratios to one of the norms stay in the range of f64.
    let reference = if p > 0.0 { largest } else { smallest };
    let total = match p {
        0.0 => norms.iter().sum(),
        _ if p.is_infinite() || reference == 0.0 || reference.is_infinite() => reference,
        _ => reference * norms.iter().map(|norm| (norm / reference).powf(p)).sum::<f64>().powf(1.0 / p),
    };
    total as f32
}
