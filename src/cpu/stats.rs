//! What is found in each gradient alone.

use super::element::Element;
use super::gradient::{Elements, Gradient};
use super::kernels::{self, Counts};
use super::measured::Measured;
use super::parallel::{self, Reduction};
use crate::clip::Operation;
use crate::{Clip, Error, NormType, TensorStats};

/// What each gradient is by itself, in the norm type and without the loss scale of `clip`; whether it is measured and
/// scaled with others makes no difference. Writes nothing.
///
/// # Errors
///
/// The values of `clip` are not valid, or it is one by value, which measures nothing ([`Error::NothingMeasured`]).
pub fn tensor_stats(gradients: &[Gradient<'_>], clip: Clip) -> Result<Vec<TensorStats>, Error> {
    let Operation::Norm(norm) = clip.checked()? else {
        return Err(Error::NothingMeasured);
    };
    let elements: Vec<Elements<'_>> = gradients.iter().map(Gradient::elements).collect();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the norm of f32 gradients is an f32; too large is infinite"
    )]
    let stats = |(measured, Counts { non_finite, zeros }): (Measured, Counts)| TensorStats {
        norm: (measured.norm(norm.norm_type) * f64::from(norm.inverse_scale)) as f32,
        max_magnitude: measured.max_magnitude() * norm.inverse_scale,
        non_finite,
        zeros,
    };
    Ok(parallel::reduce(&elements, &Stats(norm.norm_type)).into_iter().map(stats).collect())
}

/// What a norm needs, and the counts.
struct Stats(NormType);

impl Reduction for Stats {
    type Output = (Measured, Counts);

    const NOTHING: Self::Output = (Measured::NOTHING, Counts { non_finite: 0, zeros: 0 });

    fn piece<E: Element>(&self, piece: &[E]) -> Self::Output {
        (self.0.piece(piece), kernels::count(piece))
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
        let mut c = [half::bf16::from_f32(-8.0); 2];
        let gradients = [
            Gradient::f32(&mut a).unmeasured(),
            Gradient::f32(&mut b).group(7),
            Gradient::bf16(&mut c).unscaled(),
            Gradient::f32(&mut []),
        ];
        let clip = Clip::by_norm(1.0).norm_type(NormType::L1).loss_scale(2.0);
        let stats = tensor_stats(&gradients, clip).unwrap();
        assert_eq!(stats[0], TensorStats { norm: 3.5, max_magnitude: 2.0, non_finite: 0, zeros: 1 });
        assert!(stats[1].norm.is_nan() && stats[1].max_magnitude.is_nan());
        assert_eq!((stats[1].non_finite, stats[1].zeros), (2, 1));
        assert_eq!(stats[2], TensorStats { norm: 8.0, max_magnitude: 4.0, non_finite: 0, zeros: 0 });
        assert_eq!(stats[3], TensorStats { norm: 0.0, max_magnitude: 0.0, non_finite: 0, zeros: 0 });
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
        assert_eq!(tensor_stats(&[], Clip::by_value(1.0)), Err(Error::NothingMeasured));
        assert_eq!(tensor_stats(&[], Clip::by_norm(-1.0)), Err(Error::MaxNorm { given: -1.0 }));
    }
}
