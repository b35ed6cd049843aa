//! `NormSums`: the sum and the extremes that determine a norm.

use crate::NormType;

/// The partial sum of a norm over some elements, and the extremes of their magnitudes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NormSums {
    /// `Σ |g|`, `Σ g²`, or for any other p `Σ (|g| / scale)^p`. None leaves the range of f64. For the 0-norm, 1 or 0
    /// once a gradient is complete. Undefined if [`scale`](Self::scale) is not finite.
    pub(super) sum: f64,
    /// The bits of the largest |g|. Bits order like the magnitudes, with NaN above infinity.
    pub(super) largest: u32,
    /// The bits of the smallest |g|. Undefined for the L1 and the L2 norm.
    pub(super) smallest: u32,
}

impl NormSums {
    /// The sums of no elements.
    pub(super) const EMPTY: Self = Self { sum: 0.0, largest: 0, smallest: u32::MAX };

    /// Returns the magnitude that elements are divided by before they are raised to a power: the largest, or the
    /// smallest for a negative `p`. No scaled power exceeds 1, as in LAPACK's scaled sum of squares.
    pub(super) fn scale(self, p: f32) -> f64 {
        f32::from_bits(if p > 0.0 { self.largest } else { self.smallest }).into()
    }

    pub(super) fn max_magnitude(self) -> f32 {
        f32::from_bits(self.largest)
    }

    pub(super) fn non_finite(self) -> bool {
        !self.max_magnitude().is_finite()
    }

    /// Returns the norm. It is finite for finite elements: a norm beyond `f64::MAX` saturates.
    pub(super) fn norm(self, norm_type: NormType) -> f64 {
        let scale = self.scale(norm_type.p());
        match norm_type {
            _ if self == Self::EMPTY => 0.0,
            NormType::P(0.0) => self.sum,
            _ if self.max_magnitude().is_nan() => f64::NAN,
            // A scale of 0 or infinity outweighs all other elements.
            _ if scale == 0.0 || scale.is_infinite() => scale,
            NormType::L1 => self.sum,
            NormType::L2 => self.sum.sqrt(),
            NormType::Inf | NormType::P(f32::NEG_INFINITY) => scale,
            NormType::P(p) => (scale * self.sum.powf(f64::from(p).recip())).min(f64::MAX),
        }
    }

    /// Combines the sums with those of the elements that follow. The order matters, because sums are rounded.
    pub(super) fn combine(self, next: Self, norm_type: NormType) -> Self {
        let (largest, smallest) = (self.largest.max(next.largest), self.smallest.min(next.smallest));
        let both = Self { sum: self.sum + next.sum, largest, smallest };
        match norm_type {
            NormType::P(p) if p != 0.0 => {
                let scale = both.scale(p);
                Self { sum: self.rescaled_sum(scale, p) + next.rescaled_sum(scale, p), ..both }
            }
            _ => both,
        }
    }

    /// Converts the sum of powers to a new scale.
    fn rescaled_sum(self, scale: f64, p: f32) -> f64 {
        if self.sum == 0.0 { 0.0 } else { self.sum * (self.scale(p) / scale).powf(p.into()) }
    }

    /// Completes a gradient: the 0-norm counts gradients, not elements.
    pub(super) fn finish_gradient(self, norm_type: NormType) -> Self {
        match norm_type {
            NormType::P(0.0) => Self { sum: if self.largest == 0 { 0.0 } else { 1.0 }, ..self },
            _ => self,
        }
    }
}
