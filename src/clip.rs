//! `Clip`: the options of a clip, as plain data. The GPU path and the CPU path both execute them.

use crate::loss_scale::LossScale;
use crate::operation::{ByNorm, Operation, Scope, SkipAbove, inverse_scale};
use crate::{AutoClip, Epsilon, Error, NonFinite, NormType, ZClip};

/// The options of a clip: the method, its limit, the norm type and the policies.
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
/// Every call that takes a clip validates it first, with [`Clip::checked`]. An option that the method cannot honour is an error,
/// such as [`norm_type`](Self::norm_type) with [`by_value`](Self::by_value).
#[expect(clippy::struct_field_names, reason = "each field has the name of its method")]
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "saved::SavedClip", into = "saved::SavedClip"))]
pub struct Clip {
    method: Method,
    norm_type: NormType,
    epsilon: Epsilon,
    non_finite: NonFinite,
    loss_scale: Option<f32>,
    dynamic_loss_scale: Option<LossScale>,
    coefficient_only: bool,
    tensor_stats: bool,
    count_steps: bool,
    z_clip: Option<ZClip>,
    auto_clip: Option<AutoClip>,
    skip_above: Option<f32>,
    max_consecutive_skips: Option<u32>,
}

/// The constructor and its arguments, which errors repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
enum Method {
    #[cfg_attr(feature = "serde", serde(rename = "by_global_norm"))]
    GlobalNorm {
        #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
        max_norm: f32,
    },
    #[cfg_attr(feature = "serde", serde(rename = "by_norm"))]
    Norm {
        #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
        max_norm: f32,
    },
    #[cfg_attr(feature = "serde", serde(rename = "by_rms"))]
    Rms {
        #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
        threshold: f32,
    },
    #[cfg_attr(feature = "serde", serde(rename = "by_parameter_norm"))]
    ParameterNorm {
        #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
        clipping: f32,
        floor: f32,
    },
    #[cfg_attr(feature = "serde", serde(rename = "by_supplied_norm"))]
    SuppliedNorm {
        #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
        max_norm: f32,
    },
    #[cfg_attr(feature = "serde", serde(rename = "by_value"))]
    Value {
        #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
        clip_value: f32,
    },
    #[cfg_attr(feature = "serde", serde(rename = "by_value_range"))]
    ValueRange {
        #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
        low: f32,
        #[cfg_attr(feature = "serde", serde(with = "crate::serde_f32"))]
        high: f32,
    },
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

    /// Returns the epsilon of the method, unless [`Clip::epsilon`] sets another.
    const fn epsilon(self) -> Epsilon {
        match self {
            Self::Rms { .. } | Self::ParameterNorm { .. } => Epsilon::None,
            _ => Epsilon::PyTorch,
        }
    }
}

impl Clip {
    /// Scales all gradients by one factor, so that their joint norm is at most `max_norm`.
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
    /// A `max_norm` of 0 zeroes the gradients. An infinite `max_norm` leaves gradients with a finite norm unchanged. With an infinite
    /// norm the coefficient is then NaN (`∞ · (1/∞)`), as in PyTorch, and all gradients become NaN. To leave a gradient unchanged,
    /// leave it out of the list. A negative or NaN `max_norm` is an [`Error::MaxNorm`] when the clip
    /// is used.
    ///
    /// See [`non_finite`](Self::non_finite) for how infinities and NaNs are handled.
    #[must_use]
    pub const fn by_global_norm(max_norm: f32) -> Self {
        Self::by(Method::GlobalNorm { max_norm })
    }

    /// Scales each gradient by its own factor, so that its norm is at most `max_norm`: `tf.clip_by_norm`, `clipnorm` of Keras,
    /// `GradientClipping::Norm` of Burn.
    ///
    /// The formula and the options are those of [`by_global_norm`](Self::by_global_norm), the usual clip in the literature. A clip by
    /// global norm keeps the direction of the step; this clip changes it.
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

    /// Scales each gradient by its own factor, so that its RMS is at most `threshold`: `optax.clip_by_block_rms`.
    ///
    /// ```text
    /// g = g · min(threshold / sqrt(mean(g²)), 1)
    /// ```
    ///
    /// The default epsilon is 0, as in optax. A negative or NaN `threshold` is an [`Error::MaxNorm`].
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
        Self::by(Method::Rms { threshold })
    }

    /// Scales each gradient by its own factor, so that its norm is at most `clipping` times the norm of its parameter.
    ///
    /// This is adaptive gradient clipping (AGC), `optax.adaptive_grad_clip`: Brock, De, Smith and Simonyan, "High-Performance
    /// Large-Scale Image Recognition Without Normalization" (2021, arXiv:2102.06171).
    ///
    /// ```text
    /// limit = clipping · max(‖parameter‖, floor)
    /// g     = g · min(limit / ‖g‖, 1)
    /// ```
    ///
    /// Each measured gradient needs its parameter: [`Gradient::parameter`](crate::Gradient::parameter),
    /// [`cpu::Gradient::parameter`](crate::cpu::Gradient::parameter). Parameters are only read. If a gradient has
    /// [`rows`](crate::Gradient::rows), each row is limited by the norm of the same row of the parameter;
    /// [`columns`](crate::Gradient::columns) likewise, for weights `[in, out]`. The paper clips unit by unit; a unit is a row of
    /// a weight `[out, in]`, or a filter of a convolution `[out, in, height, width]`. NFNets use 0.01 and a floor of 1e-3, so that the gradients of parameters that start at 0 are not clipped to 0.
    ///
    /// The default epsilon is 0, as in optax. A negative or NaN `clipping` is an [`Error::MaxNorm`]; a floor that is negative
    /// or not finite is an [`Error::ParameterFloor`]. A NaN in a parameter makes the coefficient NaN; see
    /// [`non_finite`](Self::non_finite).
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
        Self::by(Method::ParameterNorm { clipping, floor })
    }

    /// Scales all gradients by one factor, as [`by_global_norm`](Self::by_global_norm), from a norm that the caller supplies:
    /// `torch.nn.utils.clip_grads_with_norm_`, `use_norm` of `tf.clip_by_global_norm`.
    ///
    /// Use it for a norm that another library measured. For gradients that are sharded over several devices or processes, use a
    /// [`ShardedClip`](crate::distributed::ShardedClip), whose norm may exceed f32. On the GPU,
    /// [`ClipPlan::supply_norm`](crate::ClipPlan::supply_norm) or [`copy_norm`](crate::ClipPlan::copy_norm) supplies the norm.
    /// Until then nothing is scaled, and tickets return [`Error::NormNotSupplied`].
    #[must_use]
    pub const fn by_supplied_norm(max_norm: f32) -> Self {
        Self::by(Method::SuppliedNorm { max_norm })
    }

    /// Clamps every element to `[-clip_value, clip_value]`, as `torch.nn.utils.clip_grad_value_`.
    ///
    /// NaN stays NaN, -0.0 stays -0.0, and an infinity becomes the bound. A negative or NaN `clip_value` is an
    /// [`Error::ClipValue`] when the clip is used.
    ///
    /// The only other option that applies is [`loss_scale`](Self::loss_scale):
    ///
    /// ```
    /// use gradclip::{Clip, cpu, cpu::Gradient};
    ///
    /// let mut scaled = [0.25 * 1024.0, -3.0 * 1024.0];
    /// cpu::clip(&mut [Gradient::f32(&mut scaled)], Clip::by_value(1.0).loss_scale(1024.0))?;
    /// assert_eq!(scaled, [0.25, -1.0]);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn by_value(clip_value: f32) -> Self {
        Self::by(Method::Value { clip_value })
    }

    /// Clamps every element to `[low, high]`; otherwise as [`Clip::by_value`].
    ///
    /// A NaN bound, or `low` above `high`, is an [`Error::ClipRange`] when the clip is used.
    #[must_use]
    pub const fn by_value_range(low: f32, high: f32) -> Self {
        Self::by(Method::ValueRange { low, high })
    }

    /// The constructor of the clip, for errors.
    pub(crate) const fn constructor(self) -> &'static str {
        self.method.constructor()
    }

    const fn by(method: Method) -> Self {
        Self {
            method,
            norm_type: NormType::L2,
            epsilon: method.epsilon(),
            non_finite: NonFinite::Propagate,
            loss_scale: None,
            dynamic_loss_scale: None,
            coefficient_only: false,
            tensor_stats: false,
            count_steps: false,
            z_clip: None,
            auto_clip: None,
            skip_above: None,
            max_consecutive_skips: None,
        }
    }

    /// Sets the norm type. The default is [`NormType::L2`], the only one that [`by_rms`](Self::by_rms) takes.
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

    /// Sets the constant that is added to the norm before the limit is divided by it.
    #[must_use]
    pub const fn epsilon(self, epsilon: Epsilon) -> Self {
        Self { epsilon, ..self }
    }

    /// Sets the policy for gradients that hold an infinity or a NaN, or whose supplied norm is not finite.
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

    /// Removes a loss scale in the same pass, for gradients of a loss that was multiplied by `scale`: `GradScaler.unscale_` and
    /// `clip_grad_norm_` of PyTorch in one.
    ///
    /// The norm, the limit and the record are those of the gradients without the scale. The factor in the record includes
    /// `1 / scale`. The scale does not change the 0-norm, which is a count.
    ///
    /// A clip by value multiplies each element by `1 / scale`, rounds the product to the type of the gradient, and clamps it:
    /// `GradScaler.unscale_` and `clip_grad_value_` in one pass. It measures nothing, so an infinity becomes the bound and
    /// a NaN stays NaN.
    ///
    /// A scale that is not positive and finite is an [`Error::LossScale`] when the clip is used. [`LossScale`] is a dynamic loss
    /// scale.
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
    /// [`LossScale`]: crate::loss_scale::LossScale
    #[must_use]
    pub const fn loss_scale(self, scale: f32) -> Self {
        Self { loss_scale: Some(scale), dynamic_loss_scale: None, ..self }
    }

    /// Removes a loss scale, as [`loss_scale`](Self::loss_scale) does, and updates it after every step by the rule of
    /// `torch.amp.GradScaler`. The host decides nothing. This option also sets the policy [`NonFinite::Skip`]; call
    /// [`non_finite`](Self::non_finite) afterwards for another.
    ///
    /// On the device, [`ClipPlan::loss_scale_buffer`](crate::ClipPlan::loss_scale_buffer) holds the scale. The shader of the loss
    /// binds it and multiplies by the scale. The plan also keeps [`StepCounts`](crate::stats::StepCounts), which give an
    /// optimizer the number of steps that were not skipped. On the CPU,
    /// [`cpu::ClipPlan::loss_scale`](crate::cpu::ClipPlan::loss_scale) returns the scale. A call without a plan returns
    /// [`Error::NeedsPlan`].
    ///
    /// All records of a plan belong to one step: the scale shrinks if the gradients of any record are not finite. If the scale is
    /// then at its floor, the records of these gradients say [`scale_at_floor`](crate::ClipRecord::scale_at_floor).
    ///
    /// Device and CPU compute the same scale and inverse, except that the device rounds a result below `2^-126` twice.
    ///
    /// ```
    /// use gradclip::{Clip, cpu, cpu::Gradient, loss_scale::LossScale};
    ///
    /// let clip = Clip::by_global_norm(1.0).dynamic_loss_scale(LossScale::new(1024.0)?);
    /// let mut plan = cpu::ClipPlan::new(&[clip])?;
    /// let mut overflowed = [f32::INFINITY];
    /// assert!(plan.clip(&mut [Gradient::f32(&mut overflowed)])?[0].skip());
    /// assert_eq!(plan.loss_scale().unwrap().scale(), 512.0);
    /// let mut scaled = [0.5 * 512.0];
    /// plan.clip(&mut [Gradient::f32(&mut scaled)])?;
    /// assert_eq!((scaled, plan.step_counts()[0].taken()), ([0.5], 1));
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn dynamic_loss_scale(self, scale: LossScale) -> Self {
        Self { loss_scale: None, dynamic_loss_scale: Some(scale), non_finite: NonFinite::Skip, ..self }
    }

    /// Measures the norm and computes the factor, but does not change the gradients. The optimizer multiplies each gradient by
    /// [`ClipRecord::factor`](crate::ClipRecord::factor) when it reads it, which saves one read and one write of all gradients.
    /// [`CLIP_RECORD_WGSL`](crate::CLIP_RECORD_WGSL) declares a function that also handles factors below the range of f32.
    ///
    /// A clip by value has no factor: there this is an [`Error::NeedsNorm`].
    #[must_use]
    pub const fn coefficient_only(self) -> Self {
        Self { coefficient_only: true, ..self }
    }

    /// Also computes the statistics of each gradient: its norm, its largest magnitude, and the numbers of its zero and
    /// non-finite elements. They show which layer explodes, vanishes, or holds a NaN.
    ///
    /// It adds one small dispatch and no pass over the gradients. [`encode`](crate::ClipPlan::encode) writes the
    /// [`TensorStats`](crate::stats::TensorStats) to [`tensor_stats_buffer`](crate::ClipPlan::tensor_stats_buffer);
    /// [`read_back_tensor_stats`](crate::ClipPlan::read_back_tensor_stats) reads them. On the CPU,
    /// [`cpu::ClipPlan`](crate::cpu::ClipPlan) returns them, and [`cpu::tensor_stats`](crate::cpu::tensor_stats) computes only
    /// them. A clip by value or by a supplied norm measures nothing: there this is an [`Error::NeedsNorm`]. In a call without
    /// a plan it is an [`Error::NeedsPlan`].
    #[must_use]
    pub const fn tensor_stats(self) -> Self {
        Self { tensor_stats: true, ..self }
    }

    /// Also counts steps: how many there were, how many were clipped or non-finite, and the largest norm.
    ///
    /// It adds one small dispatch, or none if the plan has a single record and a fixed limit. The
    /// [`StepCounts`](crate::stats::StepCounts) stay on the device until
    /// [`read_back_step_counts`](crate::ClipPlan::read_back_step_counts) reads them. A [`cpu::ClipPlan`](crate::cpu::ClipPlan)
    /// always counts. In a call without a plan this is an [`Error::NeedsPlan`].
    #[must_use]
    pub const fn count_steps(self) -> Self {
        Self { count_steps: true, ..self }
    }

    /// Adds a limit that follows the norms of past steps. The smaller of the two limits applies. For this limit alone, use
    /// `Clip::by_global_norm(f32::INFINITY)`.
    ///
    /// The plan keeps a [`NormHistory`](crate::stats::NormHistory) for each record. An invalid [`ZClip`] is an
    /// [`Error::ZClip`]; with [`by_parameter_norm`](Self::by_parameter_norm) or [`auto_clip`](Self::auto_clip) it is an
    /// [`Error::ConflictingLimits`].
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
        Self { z_clip: Some(z_clip), ..self }
    }

    /// Adds a limit that is a percentile of the last norms. The smaller of the two limits applies. For this limit alone, use
    /// `Clip::by_global_norm(f32::INFINITY)`.
    ///
    /// The plan keeps a [`NormWindow`](crate::stats::NormWindow) for each record. An invalid [`AutoClip`] is an
    /// [`Error::AutoClip`]; with [`by_parameter_norm`](Self::by_parameter_norm) or [`z_clip`](Self::z_clip) it is an
    /// [`Error::ConflictingLimits`].
    ///
    /// ```
    /// use gradclip::{AutoClip, Clip, Epsilon, cpu};
    ///
    /// let median = AutoClip { percentile: 50.0, window: 100 };
    /// let clip = Clip::by_global_norm(f32::INFINITY).epsilon(Epsilon::None).auto_clip(median);
    /// let mut plan = cpu::ClipPlan::new(&[clip])?;
    /// let mut norms_after = Vec::new();
    /// for norm in [2.0, 1.0, 64.0, 2.0, 8.0] {
    ///     let mut gradient = [norm];
    ///     plan.clip(&mut [cpu::Gradient::f32(&mut gradient)])?;
    ///     norms_after.push(gradient[0]);
    /// }
    /// assert_eq!(norms_after, [2.0, 1.0, 2.0, 2.0, 2.0]);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn auto_clip(self, auto_clip: AutoClip) -> Self {
        Self { auto_clip: Some(auto_clip), ..self }
    }

    /// Adds a second limit: a step whose norm exceeds `norm` is skipped. Its gradients are left unchanged, and its record says
    /// [`skip`](crate::ClipRecord::skip), so that the optimizer skips the step too. Other steps are clipped as usual.
    ///
    /// For [`by_norm`](Self::by_norm), each gradient is skipped on its own. The [policy](Self::non_finite) decides about a
    /// non-finite norm. The norm of a skipped step still enters the history of a [`z_clip`](Self::z_clip) or the window of an
    /// [`auto_clip`](Self::auto_clip).
    ///
    /// A negative or NaN `norm` is an [`Error::SkipAbove`]. [`by_rms`](Self::by_rms) and
    /// [`by_parameter_norm`](Self::by_parameter_norm) do not limit a norm, so with them this option is an [`Error::NeedsNorm`].
    ///
    /// ```
    /// use gradclip::{Clip, cpu, cpu::Gradient};
    ///
    /// let clip = Clip::by_global_norm(1.0).skip_above(100.0);
    /// let clip_one = |gradient: &mut [f32; 1]| Ok::<_, gradclip::Error>(cpu::clip(&mut [Gradient::f32(gradient)], clip)?[0]);
    /// let (mut large, mut absurd) = ([64.0], [1e6]);
    /// assert!(!clip_one(&mut large)?.skip() && large[0] <= 1.0);
    /// assert!(clip_one(&mut absurd)?.skip() && absurd == [1e6]);
    /// # Ok::<(), gradclip::Error>(())
    /// ```
    #[must_use]
    pub const fn skip_above(self, norm: f32) -> Self {
        Self { skip_above: Some(norm), ..self }
    }

    /// Limits the number of steps in a row that [`skip_above`](Self::skip_above) skips. After `count` skipped steps, the next
    /// step above that limit is clipped instead, and counting starts again. So training continues if the norms have grown for
    /// good.
    ///
    /// Steps with non-finite gradients are not counted. The plan keeps the count in
    /// [`StepCounts`](crate::stats::StepCounts); a call without a plan returns [`Error::NeedsPlan`]. A `count` of 0, or a clip
    /// without [`skip_above`](Self::skip_above), is an [`Error::MaxConsecutiveSkips`].
    #[must_use]
    pub const fn max_consecutive_skips(self, count: u32) -> Self {
        Self { max_consecutive_skips: Some(count), ..self }
    }

    /// Validates the clips of several groups, each as [`checked`](Self::checked) does.
    ///
    /// # Errors
    ///
    /// Those of [`checked`](Self::checked); [`Error::GroupsDiffer`] if two clips differ in more than their limits;
    /// [`Error::NoClip`] if `clips` is empty.
    pub fn checked_groups(clips: &[Self]) -> Result<Vec<Operation>, Error> {
        let mut operations = Vec::with_capacity(clips.len());
        for (group, clip) in clips.iter().enumerate() {
            let named = |error| if clips.len() > 1 { Error::in_group(group, error) } else { error };
            operations.push(clip.checked().map_err(named)?);
        }
        let Some(first) = operations.first() else { return Err(Error::NoClip) };
        for (second, operation) in operations.iter().enumerate() {
            if let Some((option, given)) = first.difference(operation) {
                return Err(Error::GroupsDiffer { first: 0, second, option, given });
            }
        }
        Ok(operations)
    }

    /// Validates the options, and returns the [`Operation`] to execute. Every call of gradclip that takes a clip does this. Call
    /// it to validate a clip early, or in a package that executes clips itself, as `gradclip-burn` does.
    ///
    /// ```
    /// use gradclip::operation::{Operation, Scope};
    /// use gradclip::{Clip, Error};
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
    /// [`Error::NormType`], [`Error::ParameterFloor`], [`Error::ZClip`], [`Error::AutoClip`], [`Error::SkipAbove`],
    /// [`Error::MaxConsecutiveSkips`], [`Error::ConflictingLimits`] and [`Error::NeedsNorm`].
    pub fn checked(self) -> Result<Operation, Error> {
        match self.method {
            Method::GlobalNorm { max_norm } => self.norm(Scope::Global, max_norm),
            Method::Norm { max_norm } => self.norm(Scope::Tensor, max_norm),
            Method::SuppliedNorm { max_norm } => self.norm(Scope::Supplied, max_norm),
            Method::ParameterNorm { floor, .. } if floor < 0.0 || !floor.is_finite() => {
                Err(Error::ParameterFloor { given: floor })
            }
            Method::ParameterNorm { clipping, floor } => {
                self.norm(Scope::Parameter { floor: floor.abs() }, clipping)
            }
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
        let Self { dynamic_loss_scale, .. } = self;
        let first_scale = dynamic_loss_scale.map_or(self.loss_scale, |scale| Some(scale.scale()));
        let inverse_scale = inverse_scale(first_scale.unwrap_or(1.0))?;
        let skip_above = self.checked_skip(scope)?;
        let norm_type = self.norm_type.checked()?;
        let z_clip = self.z_clip.map(ZClip::checked).transpose()?;
        let auto_clip = self.auto_clip.map(AutoClip::checked).transpose()?;
        let Self { non_finite, coefficient_only, tensor_stats, count_steps, .. } = self;
        if tensor_stats && scope == Scope::Supplied {
            return Err(Error::NeedsNorm { what: "tensor_stats", clip: self.method.constructor() });
        }
        let moving_limits = [z_clip.is_some(), auto_clip.is_some(), matches!(scope, Scope::Parameter { .. })];
        if moving_limits.into_iter().filter(|is_set| *is_set).count() > 1 {
            return Err(Error::ConflictingLimits);
        }
        Ok(Operation::Norm(ByNorm {
            norm_type,
            scope,
            max_norm,
            epsilon: epsilon.abs(),
            non_finite,
            inverse_scale,
            coefficient_only,
            tensor_stats,
            count_steps,
            z_clip,
            auto_clip,
            skip_above,
            dynamic_loss_scale,
        }))
    }

    fn checked_skip(self, scope: Scope) -> Result<Option<SkipAbove>, Error> {
        let Some(norm) = self.skip_above else {
            return match self.max_consecutive_skips {
                Some(given) => Err(Error::MaxConsecutiveSkips { given, skips: false }),
                None => Ok(None),
            };
        };
        if norm.is_nan() || norm < 0.0 {
            return Err(Error::SkipAbove { given: norm });
        }
        if matches!(scope, Scope::TensorRms | Scope::Parameter { .. }) {
            return Err(Error::NeedsNorm { what: "skip_above", clip: self.method.constructor() });
        }
        match self.max_consecutive_skips {
            Some(0) => Err(Error::MaxConsecutiveSkips { given: 0, skips: true }),
            // Without the sign of -0, which the kernels, working on bits, take for another number.
            count => Ok(Some(SkipAbove { norm: norm.abs(), max_consecutive: count.unwrap_or(u32::MAX) })),
        }
    }

    /// Returns the first option that is set and needs a norm.
    fn norm_option(self) -> Option<&'static str> {
        // The pattern names every field, so that a new option does not compile until it is handled.
        let default = Self::by(self.method);
        let Self {
            method: _,
            norm_type,
            epsilon,
            non_finite,
            loss_scale: _,
            dynamic_loss_scale,
            coefficient_only,
            tensor_stats,
            count_steps,
            z_clip,
            auto_clip,
            skip_above,
            max_consecutive_skips,
        } = self;
        let is_set = [
            ("norm_type", norm_type != default.norm_type),
            ("epsilon", epsilon != default.epsilon),
            // It also sets the policy.
            ("dynamic_loss_scale", dynamic_loss_scale.is_some()),
            ("non_finite", non_finite != default.non_finite),
            ("coefficient_only", coefficient_only),
            ("tensor_stats", tensor_stats),
            ("count_steps", count_steps),
            ("z_clip", z_clip.is_some()),
            ("auto_clip", auto_clip.is_some()),
            ("skip_above", skip_above.is_some()),
            ("max_consecutive_skips", max_consecutive_skips.is_some()),
        ];
        is_set.into_iter().find_map(|(option, is_set)| is_set.then_some(option))
    }

    fn clamp(self, low: f32, high: f32) -> Result<Operation, Error> {
        if let Some(what) = self.norm_option() {
            return Err(Error::NeedsNorm { what, clip: self.method.constructor() });
        }
        let inverse_scale = self.loss_scale.map(inverse_scale).transpose()?;
        Ok(Operation::Clamp { low, high, inverse_scale })
    }
}

/// The serialized form of a [`Clip`]. Options that are absent have the default of the method.
#[cfg(feature = "serde")]
mod saved {
    use super::{Clip, Method};
    use crate::loss_scale::LossScale;
    use crate::{AutoClip, Epsilon, NonFinite, NormType, ZClip};

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct SavedClip {
        method: Method,
        #[serde(default)]
        norm_type: NormType,
        #[serde(default)]
        epsilon: Option<Epsilon>,
        #[serde(default)]
        non_finite: NonFinite,
        #[serde(default)]
        loss_scale: Option<f32>,
        #[serde(default)]
        dynamic_loss_scale: Option<LossScale>,
        #[serde(default)]
        coefficient_only: bool,
        #[serde(default)]
        tensor_stats: bool,
        #[serde(default)]
        count_steps: bool,
        #[serde(default)]
        z_clip: Option<ZClip>,
        #[serde(default)]
        auto_clip: Option<AutoClip>,
        #[serde(default, with = "crate::serde_f32::option")]
        skip_above: Option<f32>,
        #[serde(default)]
        max_consecutive_skips: Option<u32>,
    }

    impl From<Clip> for SavedClip {
        fn from(clip: Clip) -> Self {
            let Clip {
                method,
                norm_type,
                epsilon,
                non_finite,
                loss_scale,
                dynamic_loss_scale,
                coefficient_only,
                tensor_stats,
                count_steps,
                z_clip,
                auto_clip,
                skip_above,
                max_consecutive_skips,
            } = clip;
            let epsilon = Some(epsilon);
            Self {
                method,
                norm_type,
                epsilon,
                non_finite,
                loss_scale,
                dynamic_loss_scale,
                coefficient_only,
                tensor_stats,
                count_steps,
                z_clip,
                auto_clip,
                skip_above,
                max_consecutive_skips,
            }
        }
    }

    impl From<SavedClip> for Clip {
        fn from(saved: SavedClip) -> Self {
            let SavedClip {
                method,
                norm_type,
                epsilon,
                non_finite,
                loss_scale,
                dynamic_loss_scale,
                coefficient_only,
                tensor_stats,
                count_steps,
                z_clip,
                auto_clip,
                skip_above,
                max_consecutive_skips,
            } = saved;
            let epsilon = epsilon.unwrap_or(method.epsilon());
            Self {
                method,
                norm_type,
                epsilon,
                non_finite,
                loss_scale,
                dynamic_loss_scale,
                coefficient_only,
                tensor_stats,
                count_steps,
                z_clip,
                auto_clip,
                skip_above,
                max_consecutive_skips,
            }
        }
    }
}
