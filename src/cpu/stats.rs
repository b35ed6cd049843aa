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
