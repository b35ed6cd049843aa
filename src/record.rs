//! What happened: the record that a clip leaves behind, whose layout Rust and WGSL share.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use crate::clip::ByNorm;
use crate::{Error, GradientId, NonFinite};

/// The WGSL declaration of the record: `struct ClipRecord` and its flag constants, for a shader of yours that binds
/// [`ClipPlan::record_buffer`](crate::ClipPlan::record_buffer).
///
/// ```wgsl
/// @group(0) @binding(0) var<uniform> record: ClipRecord;
/// // ... gradient * record.factor
/// ```
pub const RECORD_WGSL: &str = include_str!("../shaders/record.wgsl");

/// The outcome of a clip by a norm.
///
/// On the device it is 32 bytes, eight little-endian words in the order of the fields below; [`RECORD_WGSL`] declares
/// it for shaders, with their offsets. All of it speaks of the gradients without their loss scale.
#[derive(Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ClipRecord {
    /// The norm before clipping. Infinite where it exceeds `f32::MAX`.
    pub total_norm: f32,
    /// The factor that brings the gradients to the limit; exactly 1 where they are within it.
    pub clip_coef: f32,
    /// What every element is multiplied by: [`clip_coef`](Self::clip_coef) times the inverse of the loss scale, or what
    /// the policy for gradients that are not finite makes of it.
    pub factor: f32,
    /// The largest absolute value of any element: the infinity norm. NaN if any element is NaN.
    pub max_magnitude: f32,
    flags: u32,
    first_non_finite: u32,
    /// The norm once more, as `norm_significand · 2^norm_exponent`: exact where [`total_norm`](Self::total_norm) has left
    /// the range of f32. The significand is 0, infinite, NaN, or in `[1, 2)`.
    pub norm_significand: f32,
    /// See [`norm_significand`](Self::norm_significand). [`EMPTY_EXPONENT`](Self::EMPTY_EXPONENT), beside a significand of 0,
    /// where nothing was measured.
    pub norm_exponent: i32,
}

/// What is known of gradients once they have been read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// With the loss scale still in it. NaN or infinite if they are not finite and the norm says so.
    pub(crate) norm: f64,
    pub(crate) max_magnitude: f32,
    pub(crate) first_non_finite: Option<u32>,
    /// Whether there was no element at all.
    pub(crate) empty: bool,
}

impl ClipRecord {
    const CLIPPED: u32 = 1;
    const NON_FINITE: u32 = 2;
    const SKIP: u32 = 4;
    const ZERO: u32 = 8;
    const UNMEASURED: u32 = 16;
    const NORM_MISSING: u32 = 32;
    const NO_GRADIENT: u32 = u32::MAX;

    /// The [`norm_exponent`](Self::norm_exponent) of no elements at all. Their norm is 0, but unlike another norm of 0 it is no
    /// part of a joint norm of a negative p; [`join_norms`](crate::join_norms) looks for it.
    pub const EMPTY_EXPONENT: i32 = i32::MIN;

    /// The record before anything has been measured: a scale pass, or an optimizer, that reads it changes nothing. It is
    /// also what a shard without a gradient contributes to a joint norm: nothing.
    pub const UNCLIPPED: Self = Self {
        total_norm: 0.0,
        clip_coef: 1.0,
        factor: 1.0,
        max_magnitude: 0.0,
        flags: 0,
        first_non_finite: Self::NO_GRADIENT,
        norm_significand: 0.0,
        norm_exponent: Self::EMPTY_EXPONENT,
    };

    /// The record of a plan until its first norm pass: [`UNCLIPPED`](Self::UNCLIPPED), but no outcome of anything.
    pub(crate) const NOTHING_MEASURED: Self = Self { flags: Self::UNMEASURED, ..Self::UNCLIPPED };

    /// The record of a shard that could not be measured, since its device was lost, say. Joined with the others it makes
    /// the total NaN on every device, so that all of them do what their policy says for gradients that are not finite.
    pub const FAILED: Self = Self {
        total_norm: f32::NAN,
        clip_coef: f32::NAN,
        factor: f32::NAN,
        max_magnitude: f32::NAN,
        flags: Self::CLIPPED | Self::NON_FINITE,
        first_non_finite: Self::NO_GRADIENT,
        norm_significand: f32::NAN,
        norm_exponent: 0,
    };

    /// The record of gradients of which this was measured, clipped to `max_norm` in this manner.
    pub(crate) fn new(measured: Measured, norm: &ByNorm, max_norm: f32) -> Self {
        let unscaled = measured.norm * f64::from(norm.inverse_norm_scale());
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the norm of f32 gradients is an f32; too large is infinite"
        )]
        let total_norm = unscaled as f32;
        let clip_coef = clip_coef(total_norm, max_norm, norm.epsilon);
        // A coefficient is NaN without a norm or without a limit.
        let non_finite = !total_norm.is_finite() || clip_coef.is_nan() || measured.first_non_finite.is_some();
        let (factor, policy) = match norm.non_finite {
            NonFinite::Skip | NonFinite::Error if non_finite => (1.0, Self::SKIP),
            NonFinite::Zero if non_finite => (0.0, Self::ZERO),
            NonFinite::Poison if non_finite => (f32::NAN, 0),
            _ => (clip_coef * norm.inverse_scale, 0),
        };
        let clipped = if clip_coef == 1.0 { 0 } else { Self::CLIPPED };
        let (norm_significand, norm_exponent) =
            if measured.empty { (0.0, Self::EMPTY_EXPONENT) } else { split(unscaled) };
        Self {
            total_norm,
            clip_coef,
            factor,
            max_magnitude: measured.max_magnitude * norm.inverse_scale,
            flags: clipped | if non_finite { Self::NON_FINITE } else { 0 } | policy,
            first_non_finite: measured.first_non_finite.unwrap_or(Self::NO_GRADIENT),
            norm_significand,
            norm_exponent,
        }
    }

    /// Whether the coefficient differs from 1: the gradients exceed the limit, or are not finite.
    #[must_use]
    pub const fn clipped(&self) -> bool {
        self.flags & Self::CLIPPED != 0
    }

    /// Whether a gradient holds an infinity or a NaN; or, where [`first_non_finite`](Self::first_non_finite) is none, the norm
    /// of finite gradients exceeds `f32::MAX`, or the limit is NaN.
    #[must_use]
    pub const fn non_finite(&self) -> bool {
        self.flags & Self::NON_FINITE != 0
    }

    /// Whether this step is to be left out: the gradients are not finite, and the policy is [`NonFinite::Skip`] or
    /// [`NonFinite::Error`]. An optimizer's shader finds it in the flags.
    #[must_use]
    pub const fn skip(&self) -> bool {
        self.flags & Self::SKIP != 0
    }

    /// Whether every element was made 0, since they are not finite and the policy is [`NonFinite::Zero`].
    #[must_use]
    pub const fn zeroed(&self) -> bool {
        self.flags & Self::ZERO != 0
    }

    /// The index of the first gradient that holds an infinity or a NaN.
    #[must_use]
    pub const fn first_non_finite(&self) -> Option<usize> {
        match self.first_non_finite {
            Self::NO_GRADIENT => None,
            index => Some(index as usize),
        }
    }

    /// Whether it is the outcome of a norm pass.
    pub(crate) const fn check_measured(&self) -> Result<(), Error> {
        match self.flags {
            flags if flags & Self::NORM_MISSING != 0 => Err(Error::NormMissing),
            flags if flags & Self::UNMEASURED != 0 => Err(Error::NothingMeasured),
            _ => Ok(()),
        }
    }

    /// The error that [`NonFinite::Error`] asks for, if this is record `index` of `records`. `label` gives the label of a
    /// gradient by its index.
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

    /// The same outcome, where the gradients were listed in another way: `index_of` says where each stands now.
    pub(crate) fn reindexed(self, index_of: impl FnOnce(usize) -> usize) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "no memory holds a list of 2³² gradients")]
        let first = self.first_non_finite().map_or(Self::NO_GRADIENT, |gradient| index_of(gradient) as u32);
        Self { first_non_finite: first, ..self }
    }

    /// Its fields and their offsets, for the test that compares them with those of the shaders.
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
        ];
        offsets.map(|(name, offset)| (name.to_owned(), offset)).to_vec()
    }
}

/// Shows the flags by name, and no index where no gradient is non-finite.
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
            .field("first_non_finite", &self.first_non_finite())
            .field("norm_significand", &self.norm_significand)
            .field("norm_exponent", &self.norm_exponent)
            .finish()
    }
}

/// The factor that brings a norm to at most `max_norm`, in the order of operations of PyTorch: add epsilon, take
/// the reciprocal, multiply, clamp to 1. (Dividing instead differs by one unit in the last place in a quarter of
/// the cases.) NaN stays NaN. Where norm and epsilon together are less than a normal f32 there is nothing to bring down,
/// and no reciprocal.
fn clip_coef(total_norm: f32, max_norm: f32, epsilon: f32) -> f32 {
    let sum = total_norm + epsilon;
    let coef = sum.recip() * max_norm;
    // Not `min`, which would turn NaN into 1.
    if coef > 1.0 || (sum < f32::MIN_POSITIVE && !max_norm.is_nan()) { 1.0 } else { coef }
}

/// A norm as significand and exponent.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the significand is rounded to f32; the exponent is small"
)]
fn split(norm: f64) -> (f32, i32) {
    if norm == 0.0 || !norm.is_finite() {
        return (norm as f32, 0);
    }
    let exponent = norm.log2().floor() as i32;
    let significand = (norm * f64::from(-exponent).exp2()) as f32;
    // A norm just below a power of two rounds up to it.
    if significand >= 2.0 { (significand / 2.0, exponent + 1) } else { (significand, exponent) }
}
