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
//! **Exactness.** Squares are summed in f64, where no finite f32 overflows or vanishes, along short chains: the norm
//! is the exact one rounded to f32, but for rare ties that fall the other way. Whether gradients are finite is read
//! from their bits.
//!
//! **Determinism.** The same gradients give the same bits for any number of threads, with the feature `rayon` or
//! without it, and for any instruction set. Only the sign and the payload of a NaN are the machine's choice.
//!
//! **Cost.** Memory bandwidth: a norm reads every gradient once, and where it exceeds the limit the scaling reads and
//! writes every gradient once; a clip by value reads every gradient once, and writes the parts that change.
//! With the feature `rayon` (a default) the work is spread over the threads of the current rayon pool, unless it is
//! too small to gain from it; AVX2 is used where the machine has it. Nothing is allocated per gradient or element.

mod kernels;
mod parallel;

use crate::clip::Operation;
use crate::{Clip, ClipRecord, Error};

/// Clips `gradients` in place. A clip by global norm returns its record; one by value measures nothing, and returns
/// `None`.
///
/// Where the coefficient is 1, or only the coefficient was asked for, nothing is written.
///
/// # Errors
///
/// The values of `clip` are not valid, as its constructors describe. The gradients are then untouched.
pub fn clip(gradients: &mut [&mut [f32]], clip: Clip) -> Result<Option<ClipRecord>, Error> {
    match clip.checked()? {
        Operation::GlobalNorm { max_norm, coefficient_only } => {
            let record = parallel::measure(gradients).record(max_norm);
            if record.clipped() && !coefficient_only {
                parallel::for_each(gradients, &|piece| kernels::scale(piece, record.clip_coef));
            }
            Ok(Some(record))
        }
        Operation::Clamp { low, high } => {
            parallel::for_each(gradients, &|piece| kernels::clamp(piece, low, high));
            Ok(None)
        }
    }
}

/// The record that a clip by global norm to `max_norm` would return. Writes nothing.
///
/// # Errors
///
/// [`Error::MaxNorm`] if `max_norm` is negative or NaN.
pub fn measure(gradients: &[&[f32]], max_norm: f32) -> Result<ClipRecord, Error> {
    Clip::by_global_norm(max_norm).checked()?;
    Ok(parallel::measure(gradients).record(max_norm))
}

/// The L2 norm of all gradients together, `sqrt(Σ g²)`; 0 if there are none. Infinite where it exceeds `f32::MAX` or
/// an element is infinite, NaN where an element is NaN.
#[must_use]
pub fn total_norm(gradients: &[&[f32]]) -> f32 {
    parallel::measure(gradients).norm()
}

/// How many threads the functions of this module use at most: those of the current rayon pool, or 1 without the
/// feature `rayon`.
#[must_use]
pub fn threads() -> usize {
    parallel::threads()
}

/// What one pass over some elements finds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    /// Σ g². Means nothing if an element is not finite.
    squares: f64,
    /// The largest |g|, as bits: the order of magnitudes is that of their bits, with infinity and then NaN on top.
    largest: u32,
}

impl Measured {
    const NOTHING: Self = Self { squares: 0.0, largest: 0 };

    /// Both together. In this order: an f64 sum depends on it.
    fn and(self, next: Self) -> Self {
        Self { squares: self.squares + next.squares, largest: self.largest.max(next.largest) }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the norm of f32 gradients is an f32; too large is infinite"
    )]
    fn norm(self) -> f32 {
        let max_magnitude = self.max_magnitude();
        if max_magnitude.is_finite() { self.squares.sqrt() as f32 } else { max_magnitude }
    }

    fn max_magnitude(self) -> f32 {
        f32::from_bits(self.largest)
    }

    fn record(self, max_norm: f32) -> ClipRecord {
        ClipRecord::new(self.norm(), self.max_magnitude(), max_norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;

    fn bits(gradients: &[impl AsRef<[f32]>]) -> Vec<u32> {
        gradients.iter().flat_map(AsRef::as_ref).map(|x| x.to_bits()).collect()
    }

    /// The record of a clip of one gradient by global norm to `max_norm`, and what became of the gradient.
    fn clipped<const N: usize>(mut gradient: [f32; N], max_norm: f32) -> (ClipRecord, [f32; N]) {
        let record = clip(&mut [&mut gradient], Clip::by_global_norm(max_norm)).unwrap().unwrap();
        (record, gradient)
    }

    #[test]
    fn clips_to_the_joint_norm() {
        let (mut a, mut b, mut none) = ([3.0, 0.0], [-4.0], []);
        let record = clip(&mut [&mut a, &mut none, &mut b], Clip::by_global_norm(2.5)).unwrap().unwrap();
        assert_eq!((record.total_norm, record.max_magnitude), (5.0, 4.0));
        assert!(record.clipped() && !record.non_finite());
        assert_eq!((a, b), ([3.0 * record.clip_coef, 0.0], [-4.0 * record.clip_coef]));
        assert!((reference::total_norm(&[&a, &b]) - 2.5).abs() < 2e-6);
    }

    #[test]
    fn leaves_what_is_within_the_limit() {
        let (record, gradient) = clipped([3.0, -0.0, 4.0, 1e-45], 5.1);
        assert_eq!(record.clip_coef, 1.0);
        assert!(!record.clipped());
        assert_eq!(bits(&[gradient]), bits(&[[3.0, -0.0, 4.0, 1e-45]]));
    }

    #[test]
    fn measures_without_writing() {
        let mut gradient = [3.0, 4.0];
        let record = measure(&[&gradient], 1.0).unwrap();
        let only = clip(&mut [&mut gradient], Clip::by_global_norm(1.0).coefficient_only()).unwrap();
        assert_eq!(only, Some(record));
        assert_eq!(gradient, [3.0, 4.0]);
        assert_eq!(clipped(gradient, 1.0).0, record);
        assert!(record.clipped());
    }

    #[test]
    fn squares_neither_overflow_nor_vanish() {
        let (record, gradient) = clipped([1e20, 1e20], 1.0);
        assert_eq!(record.total_norm, 1.414_213_6e20);
        assert!((reference::total_norm(&[&gradient]) - 1.0).abs() < 1e-6);
        assert_eq!(total_norm(&[&[1e-30]]), 1e-30);
        assert_eq!(total_norm(&[&[1e-45]]), 1e-45);
        assert_eq!(total_norm(&[&[1e-45; 9]]), 3.0 * 1e-45);
        assert_eq!(total_norm(&[&[f32::MAX]]), f32::MAX);
    }

    #[test]
    fn a_norm_beyond_f32_is_infinite() {
        let (record, gradient) = clipped([f32::MAX, -f32::MAX, 0.0], 1.0);
        assert!(record.non_finite());
        assert_eq!(
            (record.total_norm, record.max_magnitude, record.clip_coef),
            (f32::INFINITY, f32::MAX, 0.0)
        );
        assert_eq!(bits(&[gradient]), bits(&[[0.0, -0.0, 0.0]]));
    }

    #[test]
    fn infinities_zero_the_rest_and_become_nan() {
        let (record, gradient) = clipped([1.0, f32::NEG_INFINITY, -2.0], 1.0);
        assert_eq!((record.total_norm, record.max_magnitude), (f32::INFINITY, f32::INFINITY));
        assert!(record.clipped() && record.non_finite());
        assert!(gradient[1].is_nan());
        assert_eq!(bits(&[[gradient[0], gradient[2]]]), bits(&[[0.0, -0.0]]));
    }

    #[test]
    fn a_nan_poisons_everything() {
        let (record, gradient) = clipped([1.0, f32::INFINITY, -f32::NAN, 0.0], 1.0);
        assert!(record.total_norm.is_nan() && record.max_magnitude.is_nan() && record.clip_coef.is_nan());
        assert!(record.clipped() && record.non_finite());
        assert!(gradient.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn nothing_has_norm_zero() {
        for gradients in [&mut [][..], &mut [&mut [][..], &mut []]] {
            let record = clip(gradients, Clip::by_global_norm(1.0)).unwrap().unwrap();
            assert_eq!((record.total_norm, record.max_magnitude, record.clip_coef), (0.0, 0.0, 1.0));
            assert_eq!(clip(gradients, Clip::by_value(1.0)), Ok(None));
        }
    }

    #[test]
    fn a_limit_of_zero_zeroes_and_an_infinite_one_leaves() {
        assert_eq!(clipped([3.0, 4.0], 0.0).1, [0.0, 0.0]);
        assert_eq!(clipped([3.0, 4.0], f32::INFINITY).1, [3.0, 4.0]);
    }

    #[test]
    fn many_small_gradients_are_one() {
        let whole: Vec<f32> =
            (0..2000 * 613_u64).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 1000.0).collect();
        let mut parts = whole.clone();
        let mut parts: Vec<&mut [f32]> = parts.chunks_mut(613).collect();
        let record = clip(&mut parts, Clip::by_global_norm(1.0)).unwrap().unwrap();
        assert_eq!(record.total_norm, reference::scale(1.0, reference::total_norm(&[&whole])));
        assert_eq!(bits(&parts), bits(&[whole.iter().map(|x| x * record.clip_coef).collect::<Vec<_>>()]));

        clip(&mut parts, Clip::by_value(1e-4)).unwrap();
        let clamped = whole.iter().map(|x| reference::clamp(x * record.clip_coef, -1e-4, 1e-4));
        assert_eq!(bits(&parts), bits(&[clamped.collect::<Vec<_>>()]));
    }

    #[test]
    fn a_long_constant_gradient_keeps_its_precision() {
        assert_eq!(total_norm(&[&vec![0.1; 1 << 24]]), 4096.0 * 0.1);
    }

    #[test]
    fn errors_come_before_anything_is_written() {
        let mut gradient = [9.0];
        let negative = Error::MaxNorm { given: -1.0 };
        assert_eq!(clip(&mut [&mut gradient], Clip::by_global_norm(-1.0)), Err(negative.clone()));
        assert_eq!(measure(&[&gradient], -1.0), Err(negative));
        assert_eq!(clip(&mut [&mut gradient], Clip::by_value(-2.0)), Err(Error::ClipValue { given: -2.0 }));
        assert_eq!(gradient, [9.0]);
    }
}
