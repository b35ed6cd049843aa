//! What one pass over some elements finds, and the norm that follows from it.

use super::gradient::Elements;
use super::kernels;
use super::parallel::Reduction;
use crate::NormType;

/// What one pass over some elements finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    /// `Σ |g|`, `Σ g²`, or for another p `Σ (|g| / unit)^p`, where nothing leaves the range of f64. Once a gradient is
    /// complete, the 0-norm has its 1 or 0 here. Means nothing where [`unit`](Self::unit) is not a finite number.
    pub(super) sum: f64,
    /// The largest |g|, as bits: the order of magnitudes is that of their bits, with infinity and then NaN on top.
    pub(super) largest: u32,
    /// The smallest |g|, as bits. Means nothing to the norms that are sums of |g| or g².
    pub(super) smallest: u32,
}

impl Measured {
    pub(super) const NOTHING: Self = Self { sum: 0.0, largest: 0, smallest: u32::MAX };

    /// The magnitude that dominates a norm: no power of a ratio to it is greater than 1.
    pub(super) fn unit(self, p: f32) -> f64 {
        f32::from_bits(if p > 0.0 { self.largest } else { self.smallest }).into()
    }

    pub(super) fn max_magnitude(self) -> f32 {
        f32::from_bits(self.largest)
    }

    pub(super) fn non_finite(self) -> bool {
        !self.max_magnitude().is_finite()
    }

    /// The norm of what was measured. That of finite elements is finite: the largest f64 where it exceeds even that.
    pub(super) fn norm(self, norm_type: NormType) -> f64 {
        let unit = self.unit(norm_type.p());
        match norm_type {
            _ if self == Self::NOTHING => 0.0,
            NormType::P(0.0) => self.sum,
            _ if self.max_magnitude().is_nan() => f64::NAN,
            // Zero and infinity outweigh whatever stands beside them.
            _ if unit == 0.0 || unit.is_infinite() => unit,
            NormType::L1 => self.sum,
            NormType::L2 => self.sum.sqrt(),
            NormType::Inf | NormType::P(f32::NEG_INFINITY) => unit,
            NormType::P(p) => (unit * self.sum.powf(f64::from(p).recip())).min(f64::MAX),
        }
    }

    /// The sum as one of ratios to another unit.
    fn sum_in(self, unit: f64, p: f32) -> f64 {
        if self.sum == 0.0 { 0.0 } else { self.sum * (self.unit(p) / unit).powf(p.into()) }
    }
}

impl Reduction for NormType {
    type Output = Measured;

    const NOTHING: Measured = Measured::NOTHING;

    fn pieces(&self, pieces: &[Elements<'_>]) -> Vec<Measured> {
        kernels::measure(pieces, *self)
    }

    fn and(&self, one: Measured, next: Measured) -> Measured {
        let (largest, smallest) = (one.largest.max(next.largest), one.smallest.min(next.smallest));
        let both = Measured { sum: one.sum + next.sum, largest, smallest };
        match *self {
            Self::P(p) if p != 0.0 => {
                let unit = both.unit(p);
                Measured { sum: one.sum_in(unit, p) + next.sum_in(unit, p), ..both }
            }
            _ => both,
        }
    }

    /// The 0-norm counts gradients, not elements.
    fn gradient(&self, measured: Measured) -> Measured {
        match self {
            Self::P(0.0) => Measured { sum: if measured.largest == 0 { 0.0 } else { 1.0 }, ..measured },
            _ => measured,
        }
    }
}
