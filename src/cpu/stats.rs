//! What is found in each gradient alone.

use super::gradient::{Elements, Gradient};
use super::kernels::{self, Counts};
use super::measured::Measured;
use super::parallel::{self, Reduction};
use crate::clip::{ByNorm, Operation};
use crate::float_state::in_default_modes;
use crate::{Clip, Error, NormType, TensorStats};

/// What each gradient is by itself, in the norm type and without the loss scale of `clip`. Writes nothing. Where the
/// gradients are clipped besides, a [`ClipPlan`](super::ClipPlan) of a clip with
/// [`tensor_stats`](Clip::tensor_stats) finds the same without reading them twice.
///
/// # Errors
///
/// The values of `clip` are not valid, or it is one by value, which measures nothing ([`Error::NeedsNorm`]);
/// [`Error::NeedsPlan`] for an option that needs a plan.
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
    let found = parallel::reduce(&elements, &Stats(norm.norm_type));
    in_default_modes(|| {
        for (index, found) in indices.into_iter().zip(found) {
            stats[index] = Stats::of(found, &norm);
        }
    });
    Ok(stats)
}

/// What a norm needs, and the counts.
pub(super) struct Stats(pub(super) NormType);

impl Stats {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the norm of f32 gradients is an f32; too large is infinite"
    )]
    pub(super) fn of((measured, counts): (Measured, Counts), norm: &ByNorm) -> TensorStats {
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        TensorStats {
            norm: (measured.norm(norm.norm_type) * f64::from(norm.inverse_norm_scale())) as f32,
            max_magnitude: measured.max_magnitude() * norm.inverse_scale,
            non_finite: count(counts.non_finite),
            zeros: count(counts.zeros),
        }
    }
}

impl Reduction for Stats {
    type Output = (Measured, Counts);

    const NOTHING: Self::Output = (Measured::NOTHING, Counts { non_finite: 0, zeros: 0 });

    fn pieces(&self, pieces: &[Elements<'_>]) -> Vec<Self::Output> {
        // A few at a time: the second read finds them in the cache.
        let few = pieces.chunks(4);
        few.flat_map(|pieces| self.0.pieces(pieces).into_iter().zip(kernels::count(pieces))).collect()
    }

    fn and(&self, (one, some): Self::Output, (next, more): Self::Output) -> Self::Output {
        let counts = Counts { non_finite: some.non_finite + more.non_finite, zeros: some.zeros + more.zeros };
        (self.0.and(one, next), counts)
    }

    fn gradient(&self, (measured, counts): Self::Output) -> Self::Output {
        (self.0.gradient(measured), counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gradient_by_itself() {
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
        assert_eq!(stats[3..], [TensorStats::default(); 2], "empty, and not read");
    }

    #[test]
    fn counts_across_pieces() {
        let mut gradient: Vec<f32> =
            (0..600_000_u32).map(|i| [0.0, 1.0, f32::INFINITY][i as usize % 3]).collect();
        let stats = tensor_stats(&[Gradient::f32(&mut gradient)], Clip::by_global_norm(1.0)).unwrap();
        assert_eq!((stats[0].non_finite, stats[0].zeros), (200_000, 200_000));
        let clip = Clip::by_global_norm(1.0).norm_type(NormType::P(0.0));
        assert_eq!(tensor_stats(&[Gradient::f32(&mut gradient)], clip).unwrap()[0].norm, 1.0);
    }

    #[test]
    fn of_a_clip_by_value_there_are_none() {
        let needs_norm = Error::NeedsNorm { what: "cpu::tensor_stats", clip: "a clip by value" };
        assert_eq!(tensor_stats(&[], Clip::by_value(1.0)), Err(needs_norm));
        assert_eq!(tensor_stats(&[], Clip::by_norm(-1.0)), Err(Error::MaxNorm { given: -1.0 }));
    }
}
