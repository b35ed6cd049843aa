//! `ClipRecord`: the outcome of a clip, with one layout for Rust and WGSL.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use crate::extended::{Extended, nearest_f32, power_of_two};
use crate::operation::ByNorm;
use crate::{Error, GradientId, NonFinite};

/// The WGSL declaration of the record, for a shader that binds [`ClipPlan::record_buffer`](crate::ClipPlan::record_buffer):
/// `struct ClipRecord`, its flag constants, and `clip_record_scaled`, which multiplies an element by the factor.
///
/// ```wgsl
/// @group(0) @binding(0) var<storage, read> record: ClipRecord;
/// // ... clip_record_scaled(record, gradient)
/// ```
///
/// `gradient * record.factor` gives the same result if the factor is at least `2^-126`. It is smaller only if the norm exceeds
/// the limit `2^126` times or more. f32 then holds few or no bits of the factor, and a device may flush it to 0.
pub const CLIP_RECORD_WGSL: &str = include_str!("../shaders/lib/clip_record.wgsl");

/// The outcome of a clip by a norm.
///
/// On the device it is 40 bytes, ten little-endian words in the order of the fields below; [`CLIP_RECORD_WGSL`] declares
/// it for shaders. All norms are those of the gradients without their loss scale.
#[derive(Clone, Copy, PartialEq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(C)]
pub struct ClipRecord {
    /// The norm before clipping. Infinite if it exceeds `f32::MAX`; [`norm_significand`](Self::norm_significand) and
    /// [`norm_exponent`](Self::norm_exponent) then hold its value.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
    pub total_norm: f32,
    /// The coefficient that brings the gradients to the limit; exactly 1 if they are within it. Subnormal or 0 if the norm is
    /// more than `2^126` times the limit.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
    pub clip_coef: f32,
    /// The factor that multiplies every element: [`clip_coef`](Self::clip_coef) times the inverse of the loss scale, or the
    /// value that the policy for non-finite gradients sets. Below `2^-126` it has lost bits, and the elements are multiplied
    /// by [`factor_significand`](Self::factor_significand) and [`factor_exponent`](Self::factor_exponent) instead.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
    pub factor: f32,
    /// The largest absolute value of any element: the infinity norm. NaN if any element is NaN.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
    pub max_magnitude: f32,
    flags: u32,
    first_non_finite: u32,
    /// The norm as `norm_significand · 2^norm_exponent`, also if [`total_norm`](Self::total_norm) exceeds the range of f32. The
    /// significand is 0, infinite, NaN, or in `[1, 2)`.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
    pub norm_significand: f32,
    /// See [`norm_significand`](Self::norm_significand). [`EMPTY_EXPONENT`](Self::EMPTY_EXPONENT), with a significand of 0, if
    /// no element was measured.
    pub norm_exponent: i32,
    /// The factor as `factor_significand · 2^factor_exponent`, also if [`factor`](Self::factor) is below the normal range of
    /// f32. The magnitude of the significand is 0, NaN, or in `[1, 2)`.
    #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
    pub factor_significand: f32,
    /// See [`factor_significand`](Self::factor_significand). 0 if the significand is 0 or NaN.
    pub factor_exponent: i32,
}

/// The measurement from which a record is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormMeasurement {
    /// The norm, still scaled by the loss scale. NaN or infinite only if an element is.
    pub(crate) norm: f64,
    pub(crate) max_magnitude: f32,
    pub(crate) first_non_finite: Option<u32>,
    /// Whether no element was measured.
    pub(crate) empty: bool,
}

/// The outcome of a clip by norm that another package executed. [`record`](Self::record) makes it a [`ClipRecord`].
///
/// The numbers are those that the package computed, so that the record reports what it applied.
#[derive(Clone, Copy, Debug)]
pub struct NormOutcome {
    /// The norm before clipping, without the loss scale.
    pub total_norm: f32,
    /// The coefficient that brings the gradients to the limit.
    pub clip_coef: f32,
    /// The factor that multiplied every element.
    pub factor: f32,
    /// The largest absolute value of any element, without the loss scale.
    pub max_magnitude: f32,
    /// The index of the first gradient that holds an infinity or a NaN.
    pub first_non_finite: Option<usize>,
    /// The norm, also if it exceeds f32. It is `None` if no element was measured.
    pub exact_norm: Option<f64>,
    /// The factor, also if it is below the normal range of f32.
    pub exact_factor: f64,
    /// Whether the step is skipped because its norm exceeds [`Clip::skip_above`](crate::Clip::skip_above). The factor is then 1.
    pub skipped: bool,
    /// Whether the elements are not finite although the [dynamic loss scale](crate::Clip::dynamic_loss_scale) is at its floor.
    pub scale_at_floor: bool,
}

impl NormOutcome {
    /// Builds the record under a policy for non-finite gradients. Gradients count as non-finite if
    /// [`first_non_finite`](Self::first_non_finite) is an index, [`clip_coef`](Self::clip_coef) is NaN, or
    /// [`exact_norm`](Self::exact_norm) is infinite or NaN, as a supplied norm may be.
    #[must_use]
    pub fn record(&self, policy: NonFinite) -> ClipRecord {
        let non_finite = self.first_non_finite.is_some()
            || self.clip_coef.is_nan()
            || self.exact_norm.is_some_and(|norm| !norm.is_finite());
        let norm = Extended::of(self.exact_norm.unwrap_or_default());
        let factor = Extended::of(self.exact_factor);
        let record = ClipRecord {
            total_norm: self.total_norm,
            clip_coef: self.clip_coef,
            factor: self.factor,
            max_magnitude: self.max_magnitude,
            flags: ClipRecord::flags(self.clip_coef, non_finite, policy)
                | if self.skipped { ClipRecord::SKIP } else { 0 }
                | if self.scale_at_floor { ClipRecord::SCALE_AT_FLOOR } else { 0 },
            first_non_finite: 0,
            norm_significand: norm.significand,
            norm_exponent: self.exact_norm.map_or(ClipRecord::EMPTY_EXPONENT, |_| norm.exponent),
            factor_significand: factor.significand,
            factor_exponent: factor.exponent,
        };
        record.with_first_non_finite(self.first_non_finite)
    }
}

impl ClipRecord {
    const CLIPPED: u32 = 1;
    const NON_FINITE: u32 = 2;
    const SKIP: u32 = 4;
    const ZERO: u32 = 8;
    const UNMEASURED: u32 = 16;
    const NORM_MISSING: u32 = 32;
    const SCALE_AT_FLOOR: u32 = 64;
    const PART_MISSING: u32 = 128;
    const NO_GRADIENT: u32 = u32::MAX;

    /// The [`norm_exponent`](Self::norm_exponent) of a record of no elements. It distinguishes the norm of no elements from the
    /// norm 0 of zeros, which makes a joint norm of a negative p 0; [`join_norms`](crate::distributed::join_norms) skips the former.
    pub const EMPTY_EXPONENT: i32 = i32::MIN;

    /// The record before the first measurement: a scale pass or an optimizer that reads it changes nothing. It is also the
    /// record of a shard without gradients, which adds nothing to a joint norm.
    pub const UNCLIPPED: Self = Self {
        total_norm: 0.0,
        clip_coef: 1.0,
        factor: 1.0,
        max_magnitude: 0.0,
        flags: 0,
        first_non_finite: Self::NO_GRADIENT,
        norm_significand: 0.0,
        norm_exponent: Self::EMPTY_EXPONENT,
        factor_significand: 1.0,
        factor_exponent: 0,
    };

    /// The bits of a norm that does not exist: `NO_NORM` of `clip_coef.wgsl`.
    pub(crate) const NO_NORM: u32 = u32::MAX;

    /// The record of a plan before its first norm pass: [`UNCLIPPED`](Self::UNCLIPPED) with a flag that marks it, and without a norm
    /// that could be copied.
    pub(crate) const NOTHING_MEASURED: Self =
        Self { total_norm: f32::from_bits(Self::NO_NORM), flags: Self::UNMEASURED, ..Self::UNCLIPPED };

    /// The record of a shard that could not be measured, for example because its device was lost. It makes the joint norm NaN,
    /// so that every device applies its policy for non-finite gradients.
    pub const FAILED: Self = Self {
        total_norm: f32::NAN,
        clip_coef: f32::NAN,
        factor: f32::NAN,
        max_magnitude: f32::NAN,
        flags: Self::CLIPPED | Self::NON_FINITE,
        first_non_finite: Self::NO_GRADIENT,
        norm_significand: f32::NAN,
        norm_exponent: 0,
        factor_significand: f32::NAN,
        factor_exponent: 0,
    };

    /// Builds the record from a measurement and a limit. The limit of AGC may exceed f32.
    pub(crate) fn new(measured: NormMeasurement, norm: &ByNorm, limit: f64) -> Self {
        let mut unscaled = measured.norm * f64::from(norm.inverse_norm_scale());
        if measured.norm.is_finite() {
            unscaled = unscaled.min(f64::MAX);
        }
        let extended_norm = Extended::of(unscaled);
        let (coef, clip_coef) = clip_coef(extended_norm, Extended::of(limit), norm.epsilon);
        // A NaN limit makes the coefficient NaN.
        let non_finite = !unscaled.is_finite() || clip_coef.is_nan() || measured.first_non_finite.is_some();
        let scaled_coef = coef.times(Extended::of(norm.inverse_scale.into()));
        let factor = match norm.non_finite {
            _ if !non_finite => scaled_coef,
            NonFinite::Propagate => scaled_coef,
            NonFinite::Skip | NonFinite::Error => Extended::ONE,
            NonFinite::Zero => Extended::of(0.0),
            NonFinite::Poison => Extended::of(f64::NAN),
        };
        Self {
            total_norm: nearest_f32(unscaled),
            clip_coef,
            factor: nearest_f32(factor.value()),
            max_magnitude: measured.max_magnitude * norm.inverse_scale,
            flags: Self::flags(clip_coef, non_finite, norm.non_finite),
            first_non_finite: measured.first_non_finite.unwrap_or(Self::NO_GRADIENT),
            norm_significand: extended_norm.significand,
            norm_exponent: if measured.empty { Self::EMPTY_EXPONENT } else { extended_norm.exponent },
            factor_significand: factor.significand,
            factor_exponent: factor.exponent,
        }
    }

    /// Returns the record of the same step, skipped.
    pub(crate) const fn skipped(self) -> Self {
        let factor = Extended::ONE;
        Self {
            factor: 1.0,
            factor_significand: factor.significand,
            factor_exponent: factor.exponent,
            flags: self.flags | Self::SKIP,
            ..self
        }
    }

    /// Returns the record of the same step, marked: the loss scale is at its floor.
    pub(crate) const fn with_scale_at_floor(self) -> Self {
        Self { flags: self.flags | Self::SCALE_AT_FLOOR, ..self }
    }

    fn flags(clip_coef: f32, non_finite: bool, policy: NonFinite) -> u32 {
        let clipped = if clip_coef == 1.0 { 0 } else { Self::CLIPPED };
        let not_finite = match policy {
            _ if !non_finite => 0,
            NonFinite::Skip | NonFinite::Error => Self::NON_FINITE | Self::SKIP,
            NonFinite::Zero => Self::NON_FINITE | Self::ZERO,
            NonFinite::Propagate | NonFinite::Poison => Self::NON_FINITE,
        };
        clipped | not_finite
    }

    /// Returns the norm, also if it exceeds f32.
    pub(crate) fn norm(&self) -> f64 {
        Extended { significand: self.norm_significand, exponent: self.norm_exponent }.value()
    }

    /// Returns the factor if it is below the normal range of f32.
    pub(crate) fn factor_below_f32(&self) -> Option<f64> {
        let factor = Extended { significand: self.factor_significand, exponent: self.factor_exponent };
        (factor.exponent < f32::MIN_EXP - 1).then(|| factor.value())
    }

    /// Returns whether the coefficient differs from 1: the gradients exceed the limit, or are not finite.
    #[must_use]
    pub const fn clipped(&self) -> bool {
        self.flags & Self::CLIPPED != 0
    }

    /// Returns whether a gradient holds an infinity or a NaN. If [`first_non_finite`](Self::first_non_finite) is `None`, a supplied
    /// norm or the norm of a parameter is infinite or NaN, or the limit is NaN. A norm of finite gradients that exceeds
    /// `f32::MAX` does not count as non-finite.
    #[must_use]
    pub const fn non_finite(&self) -> bool {
        self.flags & Self::NON_FINITE != 0
    }

    /// Returns whether this step must be skipped: the gradients are not finite, and the policy is [`NonFinite::Skip`] or
    /// [`NonFinite::Error`]; or the norm exceeds [`Clip::skip_above`](crate::Clip::skip_above). An optimizer's shader reads it from
    /// the flags.
    #[must_use]
    pub const fn skip(&self) -> bool {
        self.flags & Self::SKIP != 0
    }

    /// Returns whether the gradients overflowed although the [dynamic loss scale](crate::Clip::dynamic_loss_scale) is at its floor. If
    /// this happens at many steps, the scale is not the cause: stop the training and look for another cause.
    #[must_use]
    pub const fn scale_at_floor(&self) -> bool {
        self.flags & Self::SCALE_AT_FLOOR != 0
    }

    /// Returns whether all elements were set to 0: the gradients are not finite, and the policy is [`NonFinite::Zero`].
    #[must_use]
    pub const fn zeroed(&self) -> bool {
        self.flags & Self::ZERO != 0
    }

    /// Returns the index of the first gradient that holds an infinity or a NaN.
    #[must_use]
    pub const fn first_non_finite(&self) -> Option<usize> {
        match self.first_non_finite {
            Self::NO_GRADIENT => None,
            index => Some(index as usize),
        }
    }

    /// Checks that a norm pass wrote the record.
    pub(crate) fn check_measured(&self) -> Result<(), Error> {
        match self.flags {
            flags if flags & Self::PART_MISSING != 0 => {
                Err(Error::PartMissing { gradient: GradientId::from(self.first_non_finite as usize) })
            }
            flags if flags & Self::NORM_MISSING != 0 => Err(Error::NormNotSupplied),
            flags if flags & Self::UNMEASURED != 0 => Err(Error::NothingMeasured),
            _ => Ok(()),
        }
    }

    /// Builds the error of [`NonFinite::Error`] for record `index` of `records`. `label` maps the index of a gradient to its
    /// label.
    pub(crate) fn non_finite_error<'a>(
        &self,
        index: usize,
        records: usize,
        label: impl FnOnce(usize) -> Option<&'a str>,
    ) -> Error {
        Error::NonFinite {
            gradient: self.first_non_finite().map(|gradient| GradientId::new(gradient, label(gradient))),
            total_norm: self.total_norm,
            record: (records > 1).then_some(index),
        }
    }

    /// Returns the same record for another list of the gradients: `index_of` maps an old index to the new one.
    pub(crate) fn reindexed(self, index_of: impl FnOnce(usize) -> usize) -> Self {
        self.with_first_non_finite(self.first_non_finite().map(index_of))
    }

    #[expect(clippy::cast_possible_truncation, reason = "no memory holds a list of 2³² gradients")]
    fn with_first_non_finite(self, index: Option<usize>) -> Self {
        Self { first_non_finite: index.map_or(Self::NO_GRADIENT, |index| index as u32), ..self }
    }

    /// Returns the fields and their offsets, for the test that compares them with the shaders.
    #[cfg(test)]
    pub(crate) fn layout() -> Vec<(String, usize)> {
        use std::mem::offset_of;
        let offsets = [
            ("total_norm", offset_of!(Self, total_norm)),
            ("clip_coef", offset_of!(Self, clip_coef)),
            ("factor", offset_of!(Self, factor)),
            ("max_magnitude", offset_of!(Self, max_magnitude)),
            ("flags", offset_of!(Self, flags)),
            ("first_non_finite", offset_of!(Self, first_non_finite)),
            ("norm_significand", offset_of!(Self, norm_significand)),
            ("norm_exponent", offset_of!(Self, norm_exponent)),
            ("factor_significand", offset_of!(Self, factor_significand)),
            ("factor_exponent", offset_of!(Self, factor_exponent)),
        ];
        offsets.map(|(name, offset)| (name.to_owned(), offset)).to_vec()
    }
}

/// Shows each flag by name, and `first_non_finite` as an `Option`.
#[expect(clippy::missing_fields_in_debug, reason = "each flag is shown by name")]
impl fmt::Debug for ClipRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClipRecord")
            .field("total_norm", &self.total_norm)
            .field("clip_coef", &self.clip_coef)
            .field("factor", &self.factor)
            .field("max_magnitude", &self.max_magnitude)
            .field("clipped", &self.clipped())
            .field("non_finite", &self.non_finite())
            .field("skip", &self.skip())
            .field("zeroed", &self.zeroed())
            .field("scale_at_floor", &self.scale_at_floor())
            .field("first_non_finite", &self.first_non_finite())
            .field("norm_significand", &self.norm_significand)
            .field("norm_exponent", &self.norm_exponent)
            .field("factor_significand", &self.factor_significand)
            .field("factor_exponent", &self.factor_exponent)
            .finish()
    }
}

/// Returns the coefficient that scales a norm to at most the limit, and the same rounded to f32.
///
/// The operations are those of PyTorch, in its order: add epsilon, take the reciprocal, multiply, clamp to 1. (A division
/// instead differs by one unit in the last place in a quarter of the cases.) Each is rounded to the precision of f32, but not
/// to its range. NaN stays NaN. If norm plus epsilon is less than a normal f32, the coefficient is 1 and no reciprocal is
/// taken.
fn clip_coef(norm: Extended, limit: Extended, epsilon: f32) -> (Extended, f32) {
    // The f64 sum of two f32 is precise enough that rounding it once more changes nothing.
    let sum = Extended::of(norm.value() + f64::from(epsilon));
    let is_below_normal = sum.value() < f64::from(f32::MIN_POSITIVE) && !limit.significand.is_nan();
    let product = f64::from(sum.significand.recip()) * f64::from(limit.significand);
    let coef = Extended::of(product).shifted(limit.exponent - sum.exponent);
    // Not `min`, which would turn NaN into 1.
    if is_below_normal || coef.value() > 1.0 {
        return (Extended::ONE, 1.0);
    }
    // Rounded once, even if it is subnormal.
    (coef, nearest_f32(product * power_of_two(limit.exponent - sum.exponent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_of_another_package_becomes_its_record() {
        let outcome = NormOutcome {
            total_norm: f32::INFINITY,
            clip_coef: 0.0,
            factor: 0.0,
            max_magnitude: 3e38,
            first_non_finite: None,
            exact_norm: Some(2.0_f64.powi(130)),
            exact_factor: 1.5 * 2.0_f64.powi(-131),
            skipped: false,
            scale_at_floor: false,
        };
        assert!(NormOutcome { skipped: true, ..outcome }.record(NonFinite::Propagate).skip());
        let at_floor = NormOutcome { scale_at_floor: true, ..outcome }.record(NonFinite::Propagate);
        assert!(at_floor.scale_at_floor() && !at_floor.skip());
        let record = outcome.record(NonFinite::Skip);
        assert!(record.clipped() && !record.non_finite() && !record.skip());
        assert_eq!((record.norm_significand, record.norm_exponent), (1.0, 130));
        assert_eq!((record.factor_significand, record.factor_exponent), (1.5, -131));
        assert_eq!((record.total_norm, record.max_magnitude), (f32::INFINITY, 3e38));
        assert_eq!(record.first_non_finite(), None);

        let bad = NormOutcome { first_non_finite: Some(7), ..outcome };
        let flags = |policy| {
            let record = bad.record(policy);
            assert!(record.non_finite());
            assert_eq!(record.first_non_finite(), Some(7));
            (record.skip(), record.zeroed())
        };
        assert_eq!(flags(NonFinite::Propagate), (false, false));
        assert_eq!(flags(NonFinite::Skip), (true, false));
        assert_eq!(flags(NonFinite::Error), (true, false));
        assert_eq!(flags(NonFinite::Zero), (false, true));
        assert_eq!(flags(NonFinite::Poison), (false, false));
        let nan = NormOutcome { clip_coef: f32::NAN, ..outcome };
        assert!(nan.record(NonFinite::Propagate).non_finite());
        let supplied = NormOutcome { exact_norm: Some(f64::INFINITY), ..outcome };
        assert!(supplied.record(NonFinite::Propagate).non_finite());

        let empty = NormOutcome {
            total_norm: 0.0,
            clip_coef: 1.0,
            factor: 1.0,
            max_magnitude: 0.0,
            first_non_finite: None,
            exact_norm: None,
            exact_factor: 1.0,
            skipped: false,
            scale_at_floor: false,
        };
        assert_eq!(empty.record(NonFinite::Skip), ClipRecord::UNCLIPPED);
    }
}
