//! The checked form of a [`Clip`](crate::Clip), for packages that execute a clip themselves.
//!
//! [`Clip::checked`](crate::Clip::checked) validates a clip and returns an [`Operation`]. The GPU path and the CPU path execute
//! that operation, and so does `gradclip-burn` on Burn's tensors. Code that clips through gradclip does not need this module.
//!
//! Later versions may add operations, scopes and options. Code that executes an operation must refuse those that it does not
//! know, because an option that is dropped silently gives wrong results.

use crate::float_modes::in_default_modes;
use crate::kernels::Reduction;
use crate::loss_scale::LossScale;
pub use crate::record::NormOutcome;
use crate::shown::Shown;
use crate::{AutoClip, Epsilon, Error, NonFinite, NormHistory, NormType, NormWindow, StepCounts, ZClip};

/// A validated [`Clip`](crate::Clip).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// Scales gradients by a norm.
    Norm(ByNorm),
    /// Clamps every element to `low..=high`; NaN stays NaN. Neither bound is NaN, and `low <= high`.
    Clamp {
        /// The lower bound.
        low: f32,
        /// The upper bound.
        high: f32,
        /// The inverse of the loss scale; `None` without [`Clip::loss_scale`](crate::Clip::loss_scale). Positive and finite.
        /// Each element is multiplied by it, and rounded to the type of the gradient, before it is clamped.
        inverse_scale: Option<f32>,
    },
}

impl Operation {
    /// Returns the limit of a clip by norm, and infinity for a clip by value.
    pub(crate) fn limit(&self) -> f32 {
        match self {
            Self::Norm(norm) => norm.max_norm,
            Self::Clamp { .. } => f32::INFINITY,
        }
    }

    /// Returns the bounds of a clip by value.
    pub(crate) fn bounds(&self) -> Option<[f32; 2]> {
        match *self {
            Self::Norm(_) => None,
            Self::Clamp { low, high, .. } => Some([low, high]),
        }
    }

    /// Refuses options whose results only a plan can return.
    pub(crate) const fn check_stateless(&self) -> Result<(), Error> {
        let option = match self {
            Self::Norm(ByNorm { z_clip: Some(_), .. }) => "z_clip",
            Self::Norm(ByNorm { auto_clip: Some(_), .. }) => "auto_clip",
            Self::Norm(ByNorm { tensor_stats: true, .. }) => "tensor_stats",
            Self::Norm(ByNorm { count_steps: true, .. }) => "count_steps",
            Self::Norm(ByNorm { dynamic_loss_scale: Some(_), .. }) => "dynamic_loss_scale",
            Self::Norm(ByNorm { skip_above: Some(SkipAbove { max_consecutive, .. }), .. })
                if *max_consecutive != u32::MAX =>
            {
                "max_consecutive_skips"
            }
            _ => return Ok(()),
        };
        Err(Error::NeedsPlan { option })
    }

    /// Returns the clip by a norm that is measured, and not supplied.
    pub(crate) const fn measured_norm(&self) -> Option<&ByNorm> {
        match self {
            Self::Norm(ByNorm { scope: Scope::Supplied, .. }) | Self::Clamp { .. } => None,
            Self::Norm(norm) => Some(norm),
        }
    }

    /// Returns whether the operation reads the parameters of the gradients, as AGC does.
    pub(crate) const fn needs_parameters(&self) -> bool {
        matches!(self, Self::Norm(ByNorm { scope: Scope::Parameter { .. }, .. }))
    }

    /// Returns whether the norm is supplied by the caller.
    pub(crate) const fn needs_supplied_norm(&self) -> bool {
        matches!(self, Self::Norm(ByNorm { scope: Scope::Supplied, .. }))
    }

    /// Returns the first option, other than the limit, in which two operations differ, and both values.
    pub(crate) fn difference(&self, other: &Self) -> Option<(&'static str, [String; 2])> {
        match (self, other) {
            (Self::Norm(one), Self::Norm(other)) => one.difference(other),
            (Self::Clamp { inverse_scale: one, .. }, Self::Clamp { inverse_scale: other, .. }) => {
                differ("the inverse of loss_scale", one, other)
            }
            _ => Some((KIND, [self, other].map(Self::kind))),
        }
    }

    fn kind(&self) -> String {
        match self {
            Self::Norm(norm) => norm.scope.shown(),
            Self::Clamp { .. } => "by_value".to_owned(),
        }
    }
}

/// The name of [`Scope`] in messages.
pub(crate) const KIND: &str = "the kind of clip";

/// Validates the clips of the groups for a call that keeps no state between steps and returns only records.
///
/// # Errors
///
/// Those of [`Clip::checked_groups`](crate::Clip::checked_groups); [`Error::NeedsPlan`] for an option that needs a plan.
pub(crate) fn check_stateless(clips: &[crate::Clip]) -> Result<Vec<Operation>, Error> {
    let operations = crate::Clip::checked_groups(clips)?;
    operations.iter().try_for_each(Operation::check_stateless)?;
    Ok(operations)
}

/// A validated clip by norm. The fields are the options of [`Clip`](crate::Clip).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ByNorm {
    /// The norm type. p = 1, 2 and infinity are [`NormType::L1`], [`NormType::L2`] and [`NormType::Inf`], never
    /// [`NormType::P`].
    pub norm_type: NormType,
    /// What each norm, limit and record covers.
    pub scope: Scope,
    /// The limit, as the scope defines it. Not negative and not NaN; infinity means no limit.
    pub max_norm: f32,
    /// The constant that is added to a norm before the limit is divided by it. Finite and not negative.
    pub epsilon: f32,
    /// The policy for non-finite gradients.
    pub non_finite: NonFinite,
    /// The inverse of the loss scale; 1 without a loss scale. Positive and finite. It applies to gradients, and to norms through
    /// [`inverse_norm_scale`](Self::inverse_norm_scale).
    pub inverse_scale: f32,
    /// Whether gradients are measured and not changed.
    pub coefficient_only: bool,
    /// Whether each gradient gets [`TensorStats`](crate::stats::TensorStats).
    pub tensor_stats: bool,
    /// Whether records are counted in [`StepCounts`].
    pub count_steps: bool,
    /// The options of a limit that follows past norms.
    pub z_clip: Option<ZClip>,
    /// The options of a limit that is a percentile of the last norms.
    pub auto_clip: Option<AutoClip>,
    /// The second limit, above which a step is skipped.
    pub skip_above: Option<SkipAbove>,
    /// The loss scale that is updated after each step. [`inverse_scale`](Self::inverse_scale) is its inverse at the first step.
    pub dynamic_loss_scale: Option<LossScale>,
}

/// A second limit: a step whose norm exceeds it is skipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SkipAbove {
    /// The limit. Not negative and not NaN.
    pub norm: f32,
    /// The number of steps in a row that are skipped, before one is clipped instead; at least 1. `u32::MAX` if unlimited.
    pub max_consecutive: u32,
}

impl ByNorm {
    /// Returns the factor that removes the loss scale from a norm. It is 1 for the 0-norm, which counts gradients and has no
    /// scale.
    #[must_use]
    pub fn inverse_norm_scale(&self) -> f32 {
        if self.norm_type.p() == 0.0 { 1.0 } else { self.inverse_scale }
    }

    /// Returns the reduction of the norm pass.
    pub(crate) fn reduction(&self) -> Reduction {
        Reduction::new(self.norm_type, self.tensor_stats)
    }

    /// Returns whether a plan keeps [`StepCounts`]: they are asked for, or a rule needs them.
    #[must_use]
    pub const fn keeps_step_counts(&self) -> bool {
        self.count_steps || self.skip_above.is_some() || self.dynamic_loss_scale.is_some()
    }

    /// Returns the first option, other than the limit, in which two clips differ, and both values.
    fn difference(&self, other: &Self) -> Option<(&'static str, [String; 2])> {
        // The pattern names every field, so that a new option does not compile until it is compared.
        let Self {
            norm_type,
            scope,
            max_norm: _,
            epsilon,
            non_finite,
            inverse_scale,
            coefficient_only,
            tensor_stats,
            count_steps,
            z_clip,
            auto_clip,
            skip_above,
            dynamic_loss_scale,
        } = self;
        differ(KIND, scope, &other.scope)
            .or_else(|| differ("norm_type", norm_type, &other.norm_type))
            .or_else(|| differ("epsilon", epsilon, &other.epsilon))
            .or_else(|| differ("non_finite", non_finite, &other.non_finite))
            .or_else(|| differ("the inverse of loss_scale", inverse_scale, &other.inverse_scale))
            .or_else(|| differ("coefficient_only", coefficient_only, &other.coefficient_only))
            .or_else(|| differ("tensor_stats", tensor_stats, &other.tensor_stats))
            .or_else(|| differ("count_steps", count_steps, &other.count_steps))
            .or_else(|| differ("z_clip", z_clip, &other.z_clip))
            .or_else(|| differ("auto_clip", auto_clip, &other.auto_clip))
            .or_else(|| differ("skip_above", skip_above, &other.skip_above))
            .or_else(|| differ("dynamic_loss_scale", dynamic_loss_scale, &other.dynamic_loss_scale))
    }

    /// Returns the plain clip by global L2 norm, for a valid limit.
    pub(crate) const fn l2(max_norm: f32) -> Self {
        Self {
            norm_type: NormType::L2,
            scope: Scope::Global,
            max_norm,
            epsilon: Epsilon::PyTorch.value(),
            non_finite: NonFinite::Propagate,
            inverse_scale: 1.0,
            coefficient_only: false,
            tensor_stats: false,
            count_steps: false,
            z_clip: None,
            auto_clip: None,
            skip_above: None,
            dynamic_loss_scale: None,
        }
    }

    /// Returns the limit on the norm of `elements` elements. For [`Scope::TensorRms`] it grows with the square root of
    /// `elements`. For [`Scope::Parameter`] the caller multiplies it by the norm of the parameter.
    ///
    /// ```
    /// use gradclip::{Clip, operation::Operation};
    ///
    /// let Operation::Norm(rms) = Clip::by_rms(0.5).checked()? else { unreachable!() };
    /// assert_eq!(rms.limit_for(9), 1.5);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub fn limit_for(&self, elements: u64) -> f32 {
        self.scope.limit(0, elements, true).among(&[self.max_norm])
    }
}

/// Returns the option and both values if they differ.
fn differ<T: PartialEq + Shown>(
    option: &'static str,
    one: &T,
    other: &T,
) -> Option<(&'static str, [String; 2])> {
    (one != other).then(|| (option, [one, other].map(T::shown)))
}

/// What each norm, limit and record covers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scope {
    /// All gradients of a group together.
    Global,
    /// Each gradient, or each of its rows or columns.
    Tensor,
    /// Each gradient or row. The limit bounds the RMS.
    TensorRms,
    /// Each gradient or row. The limit is a share of the norm of its parameter: adaptive gradient clipping (AGC).
    Parameter {
        /// The lower bound of a parameter's norm. A smaller norm counts as `floor`.
        floor: f32,
    },
    /// All gradients of a group together, by a norm that the caller supplies.
    Supplied,
}

impl Scope {
    /// Returns whether the gradients of a group share a norm, a limit and a record. If not, each gradient or row has its own.
    #[must_use]
    pub const fn is_together(self) -> bool {
        matches!(self, Self::Global | Self::Supplied)
    }

    /// Returns the name of the constructor of [`Clip`](crate::Clip).
    pub(crate) const fn constructor(self) -> &'static str {
        match self {
            Self::Global => "by_global_norm",
            Self::Tensor => "by_norm",
            Self::TensorRms => "by_rms",
            Self::Parameter { .. } => "by_parameter_norm",
            Self::Supplied => "by_supplied_norm",
        }
    }

    /// Returns the limit rule of a gradient or row.
    pub(crate) fn limit(self, group: usize, elements: u64, measured: bool) -> Limit {
        match self {
            _ if !measured => Limit::None,
            Self::TensorRms => Limit::Rms { group, elements },
            _ => Limit::Of { group },
        }
    }
}

/// How the limit of a record follows from the limit of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The limit of the group.
    Of { group: usize },
    /// The limit of the group bounds the RMS over `elements`.
    Rms { group: usize, elements: u64 },
    /// No limit, because nothing is measured.
    None,
}

impl Limit {
    /// Returns the limit, given those of all groups.
    #[expect(clippy::cast_possible_truncation, reason = "a limit is an f32; too large is infinite")]
    pub(crate) fn among(self, max_norms: &[f32]) -> f32 {
        match self {
            Self::Of { group } => max_norms[group],
            // At least one element: an infinite limit times 0 would be NaN.
            Self::Rms { group, elements } => {
                (f64::from(max_norms[group]) * (elements.max(1) as f64).sqrt()) as f32
            }
            Self::None => f32::INFINITY,
        }
    }
}

/// Checks new limits, one for each group.
///
/// # Errors
///
/// [`Error::LimitCount`] if their number differs from that of the groups; [`Error::MaxNorm`] for a negative or NaN limit.
pub fn check_max_norms(max_norms: &[f32], groups: usize) -> Result<(), Error> {
    if groups != max_norms.len() {
        return Err(Error::LimitCount { given: max_norms.len(), groups });
    }
    let is_invalid = |max_norm: &f32| max_norm.is_nan() || *max_norm < 0.0;
    let Some(group) = max_norms.iter().position(is_invalid) else { return Ok(()) };
    let error = Error::MaxNorm { given: max_norms[group] };
    Err(if max_norms.len() > 1 { Error::in_group(group, error) } else { error })
}

/// Checks the norm histories of a checkpoint, one for each record.
///
/// # Errors
///
/// [`Error::NormHistory`] for a mean or a deviation that is negative or not finite.
pub fn check_norm_histories(histories: &[NormHistory]) -> Result<(), Error> {
    histories.iter().enumerate().try_for_each(|(record, history)| history.checked(record))
}

/// Checks the norm windows of a checkpoint, one for each record, for a clip with these options.
///
/// # Errors
///
/// [`Error::NormWindow`] for a window that holds more norms than [`AutoClip::window`], or a norm that is not positive and finite.
pub fn check_norm_windows(windows: &[NormWindow], auto_clip: AutoClip) -> Result<(), Error> {
    windows.iter().enumerate().try_for_each(|(record, window)| window.checked(record, auto_clip))
}

/// Checks the step counts of a checkpoint, one for each record.
///
/// # Errors
///
/// [`Error::StepCounts`] for a largest norm that is negative or not finite.
pub fn check_step_counts(counts: &[StepCounts]) -> Result<(), Error> {
    counts.iter().enumerate().try_for_each(|(record, counts)| counts.checked(record))
}

/// Returns the inverse of a loss scale.
///
/// # Errors
///
/// [`Error::LossScale`] if the scale or its inverse is not positive and finite.
pub(crate) fn inverse_scale(scale: f32) -> Result<f32, Error> {
    let inverse = in_default_modes(|| scale.recip());
    if scale > 0.0 && scale.is_finite() && inverse.is_finite() {
        Ok(inverse)
    } else {
        Err(Error::LossScale { given: scale })
    }
}

/// Returns the limit of AGC: `clipping` times the norm of the parameter, which counts as at least `floor`. Both norm and limit
/// may exceed f32.
pub(crate) fn agc_limit(clipping: f32, parameter_norm: f64, floor: f32) -> f64 {
    let [clipping, floor] = [clipping, floor].map(f64::from);
    // `f64::max` would lose a NaN.
    let norm = if parameter_norm < floor { floor } else { parameter_norm };
    if clipping == f64::INFINITY { clipping } else { clipping * norm }
}
