//! Statistics of each gradient.

use super::gradient::Gradient;
use super::kernels::ElementCounts;
use super::norm_sums::NormSums;
use super::parallel;
use super::reductions::StatsReduction;
use crate::float_modes::in_default_modes;
use crate::operation::{ByNorm, Operation};
use crate::{Clip, Error, TensorStats};

/// Measures the statistics of each gradient, with the norm type and the loss scale of `clip`. Writes nothing.
///
/// To clip the gradients as well, use a [`ClipPlan`](crate::cpu::ClipPlan) of a clip with
/// [`tensor_stats`](Clip::tensor_stats), which reads them only once.
///
/// # Errors
///
/// Those of [`Clip::checked`]; [`Error::NeedsNorm`] for a clip by value, which measures nothing; [`Error::NeedsPlan`]
/// for an option that needs a plan.
pub fn tensor_stats(gradients: &[Gradient<'_>], clip: Clip) -> Result<Vec<TensorStats>, Error> {
    let operation = clip.checked()?;
    let Operation::Norm(norm) = operation else {
        return Err(Error::NeedsNorm { what: "cpu::tensor_stats", clip: "a clip by value" });
    };
    Operation::Norm(ByNorm { tensor_stats: false, ..norm }).check_stateless()?;
    let measured = gradients.iter().enumerate().filter(|(_, gradient)| gradient.measured);
    let (indices, elements): (Vec<_>, Vec<_>) =
        measured.map(|(index, gradient)| (index, gradient.elements())).unzip();
    let mut stats = vec![TensorStats::default(); gradients.len()];
    let outputs = parallel::reduce(&elements, &StatsReduction(norm.norm_type));
    in_default_modes(|| {
        for (index, (sums, counts)) in indices.into_iter().zip(outputs) {
            stats[index] = from_sums(sums, counts, &norm);
        }
    });
    Ok(stats)
}

/// Computes the statistics of a gradient from its sums and counts.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the norm of f32 gradients is an f32; overflow is infinite"
)]
pub(super) fn from_sums(sums: NormSums, counts: ElementCounts, norm: &ByNorm) -> TensorStats {
    let saturate = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    TensorStats {
        norm: (sums.norm(norm.norm_type) * f64::from(norm.inverse_norm_scale())) as f32,
        max_magnitude: sums.max_magnitude() * norm.inverse_scale,
        non_finite: saturate(counts.non_finite),
        zeros: saturate(counts.zeros),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NormType;

    #[test]
    fn measures_each_gradient_by_itself() {
        let (mut a, mut b) = ([3.0, -0.0, 4.0], [f32::NAN, f32::INFINITY, 0.0, 1.0]);
        let (mut c, mut d) = ([half::bf16::from_f32(-8.0); 2], [f32::NAN]);
        let gradients = [
            Gradient::f32(&mut a),
            Gradient::f32(&mut b).group(7),
            Gradient::bf16(&mut c).unscaled(),
            Gradient::f32(&mut []),
            Gradient::f32(&mut d).unmeasured(),
        ];
        let clip = Clip::by_norm(1.0).norm_type(NormType::L1).loss_scale(2.0);
        let stats = tensor_stats(&gradients, clip).unwrap();
        assert_eq!(stats[0], TensorStats { norm: 3.5, max_magnitude: 2.0, non_finite: 0, zeros: 1 });
        assert!(stats[1].norm.is_nan() && stats[1].max_magnitude.is_nan());
        assert_eq!((stats[1].non_finite, stats[1].zeros), (2, 1));
        assert_eq!(stats[2], TensorStats { norm: 8.0, max_magnitude: 4.0, non_finite: 0, zeros: 0 });
        assert_eq!(stats[3..], [TensorStats::default(); 2], "an empty and an unmeasured gradient");
    }

    #[test]
    fn counts_across_chunks() {
        let mut gradient: Vec<f32> =
            (0..600_000_u32).map(|i| [0.0, 1.0, f32::INFINITY][i as usize % 3]).collect();
        let stats = tensor_stats(&[Gradient::f32(&mut gradient)], Clip::by_global_norm(1.0)).unwrap();
        assert_eq!((stats[0].non_finite, stats[0].zeros), (200_000, 200_000));
        let clip = Clip::by_global_norm(1.0).norm_type(NormType::P(0.0));
        assert_eq!(tensor_stats(&[Gradient::f32(&mut gradient)], clip).unwrap()[0].norm, 1.0);
    }

    #[test]
    fn rejects_a_clip_by_value_or_with_an_invalid_limit() {
        let needs_norm = Error::NeedsNorm { what: "cpu::tensor_stats", clip: "a clip by value" };
        assert_eq!(tensor_stats(&[], Clip::by_value(1.0)), Err(needs_norm));
        assert_eq!(tensor_stats(&[], Clip::by_norm(-1.0)), Err(Error::MaxNorm { given: -1.0 }));
    }
}
