//! What to do: the options of a clip, as plain data. Nothing here knows a GPU; the CPU and the GPU path
//! both read these values and mean the same by them.

use std::fmt::Debug;

use crate::float_state::in_default_modes;
use crate::{Epsilon, Error, NonFinite, NormType, ZClip};

/// How gradients are to be clipped.
///
/// ```
/// use gradclip::{Clip, NonFinite, NormType};
///
/// let joint = Clip::by_global_norm(1.0);
/// let largest = Clip::by_global_norm(0.1).norm_type(NormType::Inf).non_finite(NonFinite::Skip);
/// let elementwise = Clip::by_value(0.5);
/// # let _ = (joint, largest, elementwise);
/// ```
///
/// The values are checked where they are used: by [`Clipper::prepare`](crate::Clipper::prepare) and by the
/// functions of [`cpu`](crate::cpu).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    method: Method,
    norm_type: NormType,
    epsilon: Epsilon,
    non_finite: NonFinite,
    loss_scale: Option<f32>,
    coefficient_only: bool,
    tensor_stats: bool,
    count_steps: bool,
    past_norms: Option<ZClip>,
}

/// What the caller asked for, in the caller's words, so that an error can repeat them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Method {
    GlobalNorm { max_norm: f32 },
    Norm { max_norm: f32 },
    Rms { threshold: f32 },
    ParameterNorm { clipping: f32, floor: f32 },
    SuppliedNorm { max_norm: f32 },
    Value { clip_value: f32 },
    ValueRange { low: f32, high: f32 },
}

impl Method {
    const fn constructor(self) -> &'static str {
        match self {
            Self::GlobalNorm { .. } => "Clip::by_global_norm",
            Self::Norm { .. } => "Clip::by_norm",
            Self::Rms { .. } => "Clip::by_rms",
            Self::ParameterNorm { .. } => "Clip::by_parameter_norm",
            Self::SuppliedNorm { .. } => "Clip::by_supplied_norm",
            Self::Value { .. } => "Clip::by_value",
            Self::ValueRange { .. } => "Clip::by_value_range",
        }
    }
}

/// A [`Clip`] whose values have been checked, as plain data: what the GPU path and the CPU path carry out, and what a package
/// reads that clips elsewhere. [`Clip::checked`] makes it.
///
/// There may be more kinds of operations, scopes and options one day. Whoever carries one out must refuse what it does not
/// know: an option that is dropped in silence is worse than none.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// Scale by a norm.
    Norm(ByNorm),
    /// Clamp every element to `low..=high`, where a NaN stays one. Neither bound is NaN, and `low <= high`.
    Clamp {
        /// The lower bound.
        low: f32,
        /// The upper bound.
        high: f32,
    },
}

impl Operation {
    /// The limit of a clip by norm.
    pub(crate) fn limit(&self) -> f32 {
        match self {
            Self::Norm(norm) => norm.max_norm,
            Self::Clamp { .. } => f32::INFINITY,
        }
    }

    /// The bounds of a clip by value.
    pub(crate) fn bounds(&self) -> Option<[f32; 2]> {
        match *self {
            Self::Norm(_) => None,
            Self::Clamp { low, high } => Some([low, high]),
        }
    }

    /// Refuses options whose results only a plan could return.
    pub(crate) const fn check_without_plan(&self) -> Result<(), Error> {
        let option = match self {
            Self::Norm(ByNorm { z_clip: Some(_), .. }) => "z_clip",
            Self::Norm(ByNorm { tensor_stats: true, .. }) => "tensor_stats",
            Self::Norm(ByNorm { count_steps: true, .. }) => "count_steps",
            _ => return Ok(()),
        };
        Err(Error::NeedsPlan { option })
    }

    /// Whether it needs the parameters of the gradients.
    pub(crate) const fn is_relative(&self) -> bool {
        matches!(self, Self::Norm(ByNorm { scope: Scope::Parameter { .. }, .. }))
    }

    /// The first option besides the limit in which two operations differ, and its two values.
    fn difference(&self, other: &Self) -> Option<(&'static str, [String; 2])> {
        match (self, other) {
            (Self::Norm(one), Self::Norm(other)) => one.difference(other),
            (Self::Clamp { .. }, Self::Clamp { .. }) => None,
            _ => Some(("kind", [self, other].map(|operation| operation.kind().to_owned()))),
        }
    }

    const fn kind(&self) -> &'static str {
        match self {
            Self::Norm(_) => "by norm",
            Self::Clamp { .. } => "by value",
        }
    }
}

/// How the limit of what has a norm of its own follows from that of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// It is that of the group.
    Of { group: usize },
    /// That of the group is one for the root of the mean of so many squares.
    Rms { group: usize, elements: u64 },
    /// There is none: nothing is measured.
    None,
}

impl Limit {
    #[expect(clippy::cast_possible_truncation, reason = "a limit is an f32; too large is infinite")]
    pub(crate) fn among(self, max_norms: &[f32]) -> f32 {
        match self {
            Self::Of { group } => max_norms[group],
            // Nothing at all has no mean, and no limit times zero may become NaN.
            Self::Rms { group, elements } => {
                (f64::from(max_norms[group]) * (elements.max(1) as f64).sqrt()) as f32
            }
            Self::None => f32::INFINITY,
        }
    }
}

/// The values of an option, where they differ.
fn differ<T: PartialEq + Debug>(
    option: &'static str,
    one: &T,
    other: &T,
) -> Option<(&'static str, [String; 2])> {
    (one != other).then(|| (option, [one, other].map(|value| format!("{value:?}"))))
}

/// Checks new limits, one for each group.
pub(crate) fn check_max_norms(max_norms: &[f32], groups: usize) -> Result<(), Error> {
    if groups != max_norms.len() {
        return Err(Error::Limits { given: max_norms.len(), groups });
    }
    let is_invalid = |max_norm: &f32| max_norm.is_nan() || *max_norm < 0.0;
    let Some(group) = max_norms.iter().position(is_invalid) else { return Ok(()) };
    let error = Error::MaxNorm { given: max_norms[group] };
    Err(if max_norms.len() > 1 { Error::in_group(group, error) } else { error })
}

/// What undoes a loss scale.
pub(crate) fn inverse_scale(scale: f32) -> Result<f32, Error> {
    let inverse = in_default_modes(|| scale.recip());
    if scale > 0.0 && scale.is_finite() && inverse.is_finite() {
        Ok(inverse)
    } else {
        Err(Error::LossScale { given: scale })
    }
}

/// A clip by a norm, checked: the options of [`Clip`], each with its meaning there.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ByNorm {
    /// Which norm. 1, 2 and infinity are the variants of their own, never [`NormType::P`].
    pub norm_type: NormType,
    /// What has a norm of its own.
    pub scope: Scope,
    /// The limit, in the words of the scope. Not negative, not NaN; infinity is none.
    pub max_norm: f32,
    /// What is added to a norm before the limit is divided by it. Finite, not negative.
    pub epsilon: f32,
    /// What becomes of gradients that are not finite.
    pub non_finite: NonFinite,
    /// What undoes the loss scale in gradients, and in norms but for a count: see [`inverse_norm_scale`](Self::inverse_norm_scale).
    /// 1 without one. Positive and finite.
    pub inverse_scale: f32,
    /// Whether gradients stay as they are.
    pub coefficient_only: bool,
    /// Whether each gradient gets statistics besides.
    pub tensor_stats: bool,
    /// Whether what the records say is counted over the steps.
    pub count_steps: bool,
    /// What else limits, if it is to adapt to past norms.
    pub z_clip: Option<ZClip>,
}

impl ByNorm {
    /// What undoes the loss scale in norms. The 0-norm counts gradients, and a count has no scale: there it is 1.
    #[must_use]
    pub fn inverse_norm_scale(&self) -> f32 {
        if self.norm_type.p() == 0.0 { 1.0 } else { self.inverse_scale }
    }

    /// The first option besides the limit in which two clips differ, and its two values.
    fn difference(&self, other: &Self) -> Option<(&'static str, [String; 2])> {
        // Every field is named, so that a new option cannot be forgotten here.
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
        } = self;
        differ("scope", scope, &other.scope)
            .or_else(|| differ("norm_type", norm_type, &other.norm_type))
            .or_else(|| differ("epsilon", epsilon, &other.epsilon))
            .or_else(|| differ("non_finite", non_finite, &other.non_finite))
            .or_else(|| differ("the inverse of loss_scale", inverse_scale, &other.inverse_scale))
            .or_else(|| differ("coefficient_only", coefficient_only, &other.coefficient_only))
            .or_else(|| differ("tensor_stats", tensor_stats, &other.tensor_stats))
            .or_else(|| differ("count_steps", count_steps, &other.count_steps))
            .or_else(|| differ("z_clip", z_clip, &other.z_clip))
    }

    /// The plain clip by global L2 norm, to a limit that is valid.
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
        }
    }

    /// The limit on the norm of so many elements, which for [`Scope::TensorRms`] grows with their number. That of a
    /// [`Scope::Parameter`] is still to be multiplied by the norm of the parameter.
    ///
    /// ```
    /// use gradclip::{Clip, Operation};
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

/// What has a norm, a limit and a record of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Scope {
    /// All gradients of a group together.
    Global,
    /// Each gradient, or each of its rows.
    Tensor,
    /// The same, and its limit is that for one element times the square root of how many there are.
    TensorRms,
    /// The same, and its limit is relative to the norm of its parameter.
    Parameter {
        /// The least norm of a parameter: what is less counts as this.
        floor: f32,
    },
    /// Nothing: the caller supplies the norm.
    Supplied,
}

impl Scope {
    /// Whether the gradients of a group share a record.
    pub(crate) const fn is_together(self) -> bool {
        matches!(self, Self::Global | Self::Supplied)
    }

    /// The limit of what has a norm of its own.
    pub(crate) fn limit(self, group: usize, elements: u64, measured: bool) -> Limit {
        match self {
            _ if !measured => Limit::None,
            Self::TensorRms => Limit::Rms { group, elements },
            _ => Limit::Of { group },
        }
    }
}

/// The limit of a clip by the norm of a parameter: how large a share of that is allowed. The norm may exceed f32, and the
/// limit too.
pub(crate) fn relative_limit(clipping: f32, parameter_norm: f64, floor: f32) -> f64 {
    let [clipping, floor] = [clipping, floor].map(f64::from);
    // Not `f64::max`, which would lose a NaN.
    let norm = if parameter_norm < floor { floor } else { parameter_norm };
    if clipping == f64::INFINITY { clipping } else { clipping * norm }
}

impl Clip {
    /// Scale all gradients by one factor, so that their joint norm is at most `max_norm`.
    ///
    /// ```text
    /// total_norm = sqrt(Σ g²)                              over every element of every gradient
    /// clip_coef  = min(max_norm · (1 / (total_norm + 1e-6)), 1)
    /// g          = g · clip_coef
    /// ```
    ///
    /// This is `torch.nn.utils.clip_grad_norm_` with its epsilon and its order of operations, and the clipping of
    /// Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013,
    /// arXiv:1211.5063, algorithm 1). Where the coefficient is 1 no gradient is written. [`norm_type`](Self::norm_type)
    /// chooses another norm, [`epsilon`](Self::epsilon) another constant.
    ///
    /// A `max_norm` of 0 zeroes the gradients. An infinite one leaves gradients of a finite norm unchanged, but still multiplies
    /// others: the coefficient of an infinite norm is then NaN (`∞ · (1/∞)`), as in PyTorch, and all gradients become NaN. To
    /// leave gradients alone, leave them out of the list. A negative or NaN `max_norm` is an [`Error::MaxNorm`] when the clip
    /// is used.
    ///
    /// What becomes of gradients that are not finite says [`non_finite`](Self::non_finite).
    #[must_use]
    pub const fn by_global_norm(max_norm: f32) -> Self {
        Self::by(Method::GlobalNorm { max_norm })
    }

    /// Scale each gradient by a factor of its own, so that its own norm is at most `max_norm`: `tf.clip_by_norm`, the
    /// `clipnorm` of Keras, the `GradientClipping::Norm` of Burn. It changes the direction of the step; the clip of the
    /// literature is [`by_global_norm`](Self::by_global_norm), with whose formula and options this one agrees.
    ///
    /// ```
    /// use gradclip::{Clip, cpu, cpu::Gradient};
    ///
    /// let (mut steep, mut flat) = ([30.0, 40.0], [0.3]);
    /// let mut gradients = [Gradient::f32(&mut steep), Gradient::f32(&mut flat)];
    /// let records = cpu::clip(&mut gradients, Clip::by_norm(5.0))?;
    /// assert_eq!((records[0].total_norm, records[1].clip_coef), (50.0, 1.0));
    /// assert!((steep[0] - 3.0).abs() < 1e-6 && flat == [0.3]);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn by_norm(max_norm: f32) -> Self {
        Self::by(Method::Norm { max_norm })
    }

    /// Scale each gradient by a factor of its own, so that the root of the mean of its squares is at most `threshold`:
    /// `optax.clip_by_block_rms`.
    ///
    /// ```text
    /// g = g · min(threshold / sqrt(mean(g²)), 1)
    /// ```
    ///
    /// Without an epsilon, as in optax, unless one is set. A negative or NaN `threshold` is an [`Error::MaxNorm`].
    ///
    /// ```
    /// use gradclip::{Clip, cpu, cpu::Gradient};
    ///
    /// let mut gradient = [4.0; 9];
    /// cpu::clip(&mut [Gradient::f32(&mut gradient)], Clip::by_rms(1.0))?;
    /// assert_eq!(gradient, [1.0; 9]);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn by_rms(threshold: f32) -> Self {
        Self { epsilon: Epsilon::None, ..Self::by(Method::Rms { threshold }) }
    }

    /// Scale each gradient by a factor of its own, so that its norm is at most the share `clipping` of the norm of its
    /// parameter: adaptive gradient clipping (AGC) of Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image
    /// Recognition Without Normalization" (2021, arXiv:2102.06171), `optax.adaptive_grad_clip`.
    ///
    /// ```text
    /// limit = clipping · max(‖parameter‖, floor)
    /// g     = g · min(limit / ‖g‖, 1)
    /// ```
    ///
    /// Each measured gradient needs its parameter: [`Gradient::parameter`](crate::Gradient::parameter),
    /// [`cpu::Gradient::parameter`](crate::cpu::Gradient::parameter). It is read, and never written. Where a gradient says
    /// how many [`rows`](crate::Gradient::rows) it has, each row has a limit of its own, relative to that row of the
    /// parameter: the paper clips unit by unit, a unit being all that leads to one output (a row of a weight
    /// `[out, in]`, a filter of a convolution `[out, in, height, width]`). NFNets use 0.01 and a floor of 1e-3, so that
    /// parameters which begin at 0 are not clipped to 0.
    ///
    /// Without an epsilon, as in optax, unless one is set. A negative or NaN `clipping` is an [`Error::MaxNorm`], a floor
    /// that is negative or not finite an [`Error::ParameterFloor`]. A parameter that is NaN makes the coefficient NaN, and
    /// [`non_finite`](Self::non_finite) says what becomes of the gradient.
    ///
    /// ```
    /// use gradclip::{Clip, cpu, cpu::{Gradient, Parameter}};
    ///
    /// let weight = [3.0, 4.0, 0.0, 0.0];
    /// let mut gradient = [0.3, 0.4, 0.3, 0.4];
    /// let mut gradients = [Gradient::f32(&mut gradient).rows(2).parameter(Parameter::f32(&weight))];
    /// let records = cpu::clip(&mut gradients, Clip::by_parameter_norm(0.01, 1e-3))?;
    /// // Within 1 % of 5, and within 1 % of the floor.
    /// assert!((gradient[1] - 0.04).abs() < 1e-6 && (gradient[3] - 8e-6).abs() < 1e-9);
    /// assert_eq!(records.len(), 2);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn by_parameter_norm(clipping: f32, floor: f32) -> Self {
        Self { epsilon: Epsilon::None, ..Self::by(Method::ParameterNorm { clipping, floor }) }
    }

    /// Scale all gradients by one factor, as [`by_global_norm`](Self::by_global_norm) does, but for a norm that you
    /// supply: `torch.nn.utils.clip_grads_with_norm_`, the `use_norm` of `tf.clip_by_global_norm`.
    ///
    /// It is for gradients that are spread over several devices: measure each part by a plan of its own, join their
    /// norms with [`join_norms`](crate::join_norms), and scale each part with the total. On the GPU,
    /// [`ClipPlan::supply_norm`](crate::ClipPlan::supply_norm) or [`copy_norm`](crate::ClipPlan::copy_norm) hands it
    /// over; until then nothing is scaled, and tickets fail with [`Error::NormMissing`].
    #[must_use]
    pub const fn by_supplied_norm(max_norm: f32) -> Self {
        Self::by(Method::SuppliedNorm { max_norm })
    }

    /// Clamp every element to `[-clip_value, clip_value]`, as `torch.nn.utils.clip_grad_value_`.
    ///
    /// NaN stays NaN, -0.0 stays -0.0, an infinity goes to its bound. A negative or NaN `clip_value` is an
    /// [`Error::ClipValue`] when the clip is used.
    #[must_use]
    pub const fn by_value(clip_value: f32) -> Self {
        Self::by(Method::Value { clip_value })
    }

    /// Clamp every element to `[low, high]`; otherwise as [`Clip::by_value`].
    ///
    /// A NaN bound, or `low` above `high`, is an [`Error::ClipRange`] when the clip is used.
    #[must_use]
    pub const fn by_value_range(low: f32, high: f32) -> Self {
        Self::by(Method::ValueRange { low, high })
    }

    const fn by(method: Method) -> Self {
        Self {
            method,
            norm_type: NormType::L2,
            epsilon: Epsilon::PyTorch,
            non_finite: NonFinite::Propagate,
            loss_scale: None,
            coefficient_only: false,
            tensor_stats: false,
            count_steps: false,
            past_norms: None,
        }
    }

    /// Which norm is measured; [`NormType::L2`] unless this is called. [`by_rms`](Self::by_rms) has the L2 norm only.
    ///
    /// ```
    /// use gradclip::{Clip, NormType, cpu, cpu::Gradient};
    ///
    /// let norm = |norm_type| {
    ///     let clip = Clip::by_global_norm(1.0).norm_type(norm_type).coefficient_only();
    ///     let (mut weight, mut bias) = ([3.0, -4.0], [12.0]);
    ///     let records = cpu::clip(&mut [Gradient::f32(&mut weight), Gradient::f32(&mut bias)], clip)?;
    ///     Ok::<_, gradclip::Error>(records[0].total_norm)
    /// };
    /// assert_eq!([norm(NormType::L1)?, norm(NormType::L2)?, norm(NormType::Inf)?], [19.0, 13.0, 12.0]);
    /// assert_eq!(norm(NormType::P(0.0))?, 2.0);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn norm_type(self, norm_type: NormType) -> Self {
        Self { norm_type, ..self }
    }

    /// What is added to the norm before the limit is divided by it.
    #[must_use]
    pub const fn epsilon(self, epsilon: Epsilon) -> Self {
        Self { epsilon, ..self }
    }

    /// What becomes of gradients that hold an infinity or a NaN, or whose supplied norm is one.
    ///
    /// ```
    /// use gradclip::{Clip, NonFinite, cpu, cpu::Gradient};
    ///
    /// let (mut good, mut bad) = ([3.0], [f32::NAN, 4.0]);
    /// let clip = Clip::by_global_norm(1.0).non_finite(NonFinite::Skip);
    /// let record = cpu::clip(&mut [Gradient::f32(&mut good), Gradient::f32(&mut bad)], clip)?[0];
    /// assert!(record.skip() && record.first_non_finite() == Some(1));
    /// assert_eq!((good, bad[1]), ([3.0], 4.0));
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn non_finite(self, policy: NonFinite) -> Self {
        Self { non_finite: policy, ..self }
    }

    /// Undoes a loss scale in the same pass, for gradients of a loss that was multiplied by `scale`.
    ///
    /// The norm, the limit and the record are those of the gradients without the scale, and the factor in the record
    /// includes `1 / scale`. The 0-norm is a count, which the scale does not change. PyTorch does the same in two calls,
    /// `GradScaler.unscale_` and `clip_grad_norm_`.
    /// A scale that is not positive and finite is an [`Error::LossScale`] when the clip is used. [`LossScale`] keeps one
    /// that adapts.
    ///
    /// ```
    /// use gradclip::{Clip, cpu, cpu::Gradient};
    ///
    /// let mut scaled = [3.0 * 1024.0, 4.0 * 1024.0];
    /// let clip = Clip::by_global_norm(10.0).loss_scale(1024.0);
    /// let record = cpu::clip(&mut [Gradient::f32(&mut scaled)], clip)?[0];
    /// assert_eq!((record.total_norm, record.factor, scaled), (5.0, 1.0 / 1024.0, [3.0, 4.0]));
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    ///
    /// [`LossScale`]: crate::LossScale
    #[must_use]
    pub const fn loss_scale(self, scale: f32) -> Self {
        Self { loss_scale: Some(scale), ..self }
    }

    /// Measure the norm and compute the factor, but leave the gradients as they are: the optimizer
    /// multiplies by [`ClipRecord::factor`](crate::ClipRecord::factor) where it reads a gradient anyway, which
    /// saves a read and a write of them all. [`RECORD_WGSL`](crate::RECORD_WGSL) has a function for that, also for factors that
    /// f32 does not hold.
    ///
    /// A clip by value has no factor; for it this is an [`Error::NeedsNorm`] when the clip is used.
    #[must_use]
    pub const fn coefficient_only(self) -> Self {
        Self { coefficient_only: true, ..self }
    }

    /// Besides, find what each gradient is by itself: its norm, its largest magnitude, how many of its elements are zero or
    /// not finite. It tells which layer explodes, vanishes, or holds a NaN.
    ///
    /// It takes no further pass over the gradients, only a small dispatch: [`encode`](crate::ClipPlan::encode) leaves the
    /// [`TensorStats`](crate::TensorStats) in [`tensor_stats_buffer`](crate::ClipPlan::tensor_stats_buffer), and
    /// [`read_back_tensor_stats`](crate::ClipPlan::read_back_tensor_stats) reads them. On the CPU,
    /// [`cpu::ClipPlan`](crate::cpu::ClipPlan) has them, and [`cpu::tensor_stats`](crate::cpu::tensor_stats) measures
    /// nothing else. For a clip by value or by a supplied norm, which measures nothing, this is an [`Error::NeedsNorm`];
    /// in a call without a plan, which could not return them, an [`Error::NeedsPlan`].
    #[must_use]
    pub const fn tensor_stats(self) -> Self {
        Self { tensor_stats: true, ..self }
    }

    /// Besides, count over the steps what the records say: how many there were, how often they were clipped and not
    /// finite, and the largest norm. It takes a small dispatch; the [`StepCounts`](crate::StepCounts) stay on the device
    /// until [`read_back_step_counts`](crate::ClipPlan::read_back_step_counts) asks for them. A
    /// [`cpu::ClipPlan`](crate::cpu::ClipPlan) counts without being asked. In a call without a plan this is an
    /// [`Error::NeedsPlan`].
    #[must_use]
    pub const fn count_steps(self) -> Self {
        Self { count_steps: true, ..self }
    }

    /// Besides, let a limit follow the norms of past steps. The smaller of the two limits holds; for this one alone,
    /// `Clip::by_global_norm(f32::INFINITY)`.
    ///
    /// Each record has a [`NormHistory`](crate::NormHistory) of its own, in the plan. A [`ZClip`] that makes no sense is an
    /// [`Error::ZClip`]; with [`by_parameter_norm`](Self::by_parameter_norm) it is an [`Error::TwoLimits`].
    ///
    /// ```
    /// use gradclip::{Clip, ZClip, cpu};
    ///
    /// let clip = Clip::by_global_norm(f32::INFINITY).z_clip(ZClip { warm_up: 4, ..ZClip::default() });
    /// let mut plan = cpu::ClipPlan::new(&[clip])?;
    /// let mut norms_after = Vec::new();
    /// for norm in [1.0, 1.1, 0.9, 1.0, 1.1, 50.0, 1.0] {
    ///     let mut gradient = [norm];
    ///     plan.clip(&mut [cpu::Gradient::f32(&mut gradient)])?;
    ///     norms_after.push(gradient[0]);
    /// }
    /// assert!(norms_after[5] < 1.1 && norms_after[6] == 1.0);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn z_clip(self, z_clip: ZClip) -> Self {
        Self { past_norms: Some(z_clip), ..self }
    }

    /// Checks the clips of groups, as [`checked`](Self::checked) does each.
    ///
    /// # Errors
    ///
    /// Those of [`checked`](Self::checked), [`Error::Groups`] where two differ in more than their limits, and
    /// [`Error::NoClip`] without any.
    pub fn all_checked(clips: &[Self]) -> Result<Vec<Operation>, Error> {
        let of_group =
            |group| move |error| if clips.len() > 1 { Error::in_group(group, error) } else { error };
        let checked = |(group, clip): (usize, &Self)| clip.checked().map_err(of_group(group));
        let operations = clips.iter().enumerate().map(checked).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = operations.first() else { return Err(Error::NoClip) };
        for (second, operation) in operations.iter().enumerate() {
            if let Some((option, given)) = first.difference(operation) {
                return Err(Error::Groups { first: 0, second, option, given });
            }
        }
        Ok(operations)
    }

    /// Checks the values, and says what is to be done. Whoever clips by gradclip need not call it; it is for packages that carry
    /// out a [`Clip`] by themselves, as `gradclip-burn` does.
    ///
    /// ```
    /// use gradclip::{Clip, Error, Operation, Scope};
    ///
    /// let Operation::Norm(norm) = Clip::by_global_norm(1.0).checked()? else { unreachable!() };
    /// assert_eq!((norm.scope, norm.max_norm, norm.epsilon), (Scope::Global, 1.0, 1e-6));
    /// assert_eq!(Clip::by_value(0.5).checked()?, Clip::by_value_range(-0.5, 0.5).checked()?);
    /// assert_eq!(Clip::by_global_norm(-1.0).checked(), Err(Error::MaxNorm { given: -1.0 }));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::MaxNorm`], [`Error::ClipValue`], [`Error::ClipRange`], [`Error::Epsilon`], [`Error::LossScale`],
    /// [`Error::NormType`], [`Error::ParameterFloor`], [`Error::ZClip`], [`Error::TwoLimits`] and [`Error::NeedsNorm`], each for
    /// what it says.
    pub fn checked(self) -> Result<Operation, Error> {
        match self.method {
            Method::GlobalNorm { max_norm } => self.norm(Scope::Global, max_norm),
            Method::Norm { max_norm } => self.norm(Scope::Tensor, max_norm),
            Method::SuppliedNorm { max_norm } => self.norm(Scope::Supplied, max_norm),
            Method::ParameterNorm { floor, .. } if floor < 0.0 || !floor.is_finite() => {
                Err(Error::ParameterFloor { given: floor })
            }
            Method::ParameterNorm { clipping, floor } => self.norm(Scope::Parameter { floor }, clipping),
            Method::Rms { .. } if self.norm_type != NormType::L2 => {
                Err(Error::NormType { given: self.norm_type })
            }
            Method::Rms { threshold } => self.norm(Scope::TensorRms, threshold),
            Method::Value { clip_value } if clip_value.is_nan() || clip_value < 0.0 => {
                Err(Error::ClipValue { given: clip_value })
            }
            Method::Value { clip_value } => self.clamp(-clip_value, clip_value),
            Method::ValueRange { low, high } if low.is_nan() || high.is_nan() || low > high => {
                Err(Error::ClipRange { low, high })
            }
            Method::ValueRange { low, high } => self.clamp(low, high),
        }
    }

    fn norm(self, scope: Scope, max_norm: f32) -> Result<Operation, Error> {
        let is_limit = |value: f32| value >= 0.0;
        if !is_limit(max_norm) {
            return Err(Error::MaxNorm { given: max_norm });
        }
        let epsilon = self.epsilon.value();
        if !is_limit(epsilon) || epsilon.is_infinite() {
            return Err(Error::Epsilon { given: epsilon });
        }
        let inverse_scale = inverse_scale(self.loss_scale.unwrap_or(1.0))?;
        let norm_type = self.norm_type.checked()?;
        let z_clip = self.past_norms.map(ZClip::checked).transpose()?;
        let Self { non_finite, coefficient_only, tensor_stats, count_steps, .. } = self;
        if tensor_stats && scope == Scope::Supplied {
            return Err(Error::NeedsNorm { what: "tensor_stats", clip: self.method.constructor() });
        }
        if z_clip.is_some() && matches!(scope, Scope::Parameter { .. }) {
            return Err(Error::TwoLimits);
        }
        Ok(Operation::Norm(ByNorm {
            norm_type,
            scope,
            max_norm,
            epsilon,
            non_finite,
            inverse_scale,
            coefficient_only,
            tensor_stats,
            count_steps,
            z_clip,
        }))
    }

    /// The first option that was set and speaks of a norm.
    fn norm_option(self) -> Option<&'static str> {
        // Every field is named, so that a new option cannot be dropped in silence.
        let default = Self::by(self.method);
        let Self {
            method: _,
            norm_type,
            epsilon,
            non_finite,
            loss_scale,
            coefficient_only,
            tensor_stats,
            count_steps,
            past_norms,
        } = self;
        let is_set = [
            ("norm_type", norm_type != default.norm_type),
            ("epsilon", epsilon != default.epsilon),
            ("non_finite", non_finite != default.non_finite),
            ("loss_scale", loss_scale.is_some()),
            ("coefficient_only", coefficient_only),
            ("tensor_stats", tensor_stats),
            ("count_steps", count_steps),
            ("z_clip", past_norms.is_some()),
        ];
        is_set.into_iter().find_map(|(option, is_set)| is_set.then_some(option))
    }

    fn clamp(self, low: f32, high: f32) -> Result<Operation, Error> {
        match self.norm_option() {
            Some(what) => Err(Error::NeedsNorm { what, clip: self.method.constructor() }),
            None => Ok(Operation::Clamp { low, high }),
        }
    }
}
