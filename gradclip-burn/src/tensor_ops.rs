//! Clips gradients with Burn's tensor operations where the kernels cannot run: on the CPU, on CUDA, on wgpu if CubeCL
//! does not compile WGSL, for f64 gradients, and for gradients on several devices.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Int, Tensor};
use gradclip::kernels::tables::{Bounds, NormParams};
use gradclip::loss_scale::LossScaleState;
use gradclip::operation::{ByNorm, SkipAbove};
use gradclip::{AutoClip, NonFinite, NormType};

use crate::gradients::{Gradient, Split, kernel_dtype};
use crate::loss_scale::{MAX_COUNT, ScaleTensors};
use crate::resolved_clip::{ClipKind, ResolvedClip};
use crate::state::{CountTensors, HistoryTensors, TensorState, WindowTensors};

/// The measurement of a clip by norm. All numbers are f32 on the device of the first gradient.
///
/// The norm of finite elements may overflow f32, and the factor may underflow. Each segment therefore has a shift:
/// 2^-64 if its largest magnitude exceeds 2^63, and 1 otherwise. The norm is computed times the shift, and the factor
/// divided by the shift.
#[derive(Clone, Debug)]
pub(crate) struct TensorOpsMeasurement {
    /// The norm of each segment.
    pub(crate) norms: Tensor<1>,
    /// The clip coefficient of each segment.
    pub(crate) coefs: Tensor<1>,
    /// The factor of each segment.
    pub(crate) factors: Tensor<1>,
    /// The norms times the shifts.
    pub(crate) shifted_norms: Tensor<1>,
    /// The factors divided by the shifts.
    pub(crate) shifted_factors: Tensor<1>,
    /// The shift of each segment.
    pub(crate) shifts: Tensor<1>,
    /// 1 for each segment whose norm exceeds the second limit, so that the step is skipped; 0 for the others.
    pub(crate) is_too_large: Tensor<1>,
    /// 1 for each segment with a non-finite element while the dynamic loss scale is at its floor; 0 for the others.
    pub(crate) is_at_floor: Tensor<1>,
    /// The inverse of the loss scale of this step.
    pub(crate) inverse_scale: InverseScale,
    /// Whether each segment has a non-finite element or a NaN coefficient.
    non_finite: Tensor<1, Bool>,
    /// Whether each segment has no elements.
    pub(crate) empty: Vec<bool>,
    /// The largest magnitude of each gradient, or of each of its units if these are segments, before the loss scale is
    /// removed, which could overflow f32.
    pub(crate) max_magnitudes: Tensor<1>,
    /// The statistics of each gradient, if the clip measures them.
    pub(crate) stats: Option<StatsMeasurement>,
}

/// The inverse of a loss scale.
#[derive(Clone, Debug)]
pub(crate) enum InverseScale {
    /// Of a fixed scale; 1 without a scale.
    Number(f32),
    /// Of a dynamic scale, one element.
    Tensor(Box<Tensor<1>>),
}

impl InverseScale {
    /// Returns the inverse of the loss scale of a step.
    fn new(norm: &ByNorm, state: &TensorState) -> Self {
        match &state.loss_scale {
            None => Self::Number(norm.inverse_scale),
            Some(tensors) => Self::Tensor(Box::new(tensors.scale.clone().recip())),
        }
    }

    /// Returns the factor that removes the loss scale from a norm.
    fn of_norms(&self, norm_type: NormType) -> Self {
        // The 0-norm is a count.
        if norm_type.p() == 0.0 { Self::Number(1.0) } else { self.clone() }
    }

    fn times(&self, numbers: Tensor<1>) -> Tensor<1> {
        match self {
            Self::Number(inverse) => numbers.mul_scalar(*inverse),
            Self::Tensor(inverse) => numbers * Tensor::clone(inverse),
        }
    }
}

/// The statistics of each gradient, besides its largest magnitude.
#[derive(Clone, Debug)]
pub(crate) struct StatsMeasurement {
    pub(crate) norms: Tensor<1>,
    /// The number of non-finite elements.
    pub(crate) non_finite: Tensor<1, Int>,
    /// The number of zeros.
    pub(crate) zeros: Tensor<1, Int>,
}

/// 2^63. Segments with a larger magnitude are measured and scaled with [`SHIFT`].
const LARGE: f32 = 9_223_372_036_854_775_808.0;

/// 2^-64.
const SHIFT: f32 = 1.0 / 18_446_744_073_709_551_616.0;

/// The inputs of a clip besides its gradients, on the device of the first gradient.
#[derive(Default)]
pub(crate) struct Inputs {
    /// The norm of a clip by supplied norm.
    pub(crate) supplied: Option<Tensor<1>>,
    /// The state. The clip replaces it.
    pub(crate) state: TensorState,
}

/// Clips gradients. A clip by norm also returns its measurement.
pub(crate) fn clip(
    gradients: Vec<Gradient>,
    clip: &ResolvedClip,
    inputs: &mut Inputs,
) -> (Vec<Gradient>, Option<TensorOpsMeasurement>) {
    match clip.kind {
        ClipKind::Norm(norm) => {
            let Some(device) = gradients.first().map(Gradient::device) else {
                return (gradients, None);
            };
            let inverse_scale = InverseScale::new(&norm, &inputs.state);
            let norms = match inputs.supplied.take() {
                Some(supplied) => SegmentNorms::supplied(supplied, gradients.len(), clip.segments()),
                None => SegmentNorms::measured(&gradients, &norm, &inverse_scale, clip, &device),
            };
            let parameters =
                clip.reads_parameters().then(|| ParameterNorms::measured(&gradients, &norm, &device));
            let measurement =
                limit(norms, parameters, &norm, inverse_scale, clip, &mut inputs.state, &device);
            let gradients = if clip.writes_gradients() {
                let gradients = gradients.into_iter().zip(&clip.segments_of);
                gradients
                    .map(|(gradient, segments)| scale(gradient, &measurement, segments, norm.non_finite))
                    .collect()
            } else {
                gradients
            };
            (gradients, Some(measurement))
        }
        ClipKind::Clamp { inverse_scale } => {
            let gradients = gradients.into_iter().zip(&clip.segments_of);
            let clamped = gradients
                .map(|(gradient, segments)| clamp(gradient, clip.bounds[segments.start], inverse_scale));
            (clamped.collect(), None)
        }
    }
}

/// The norms of all segments, before their limits apply.
struct SegmentNorms {
    /// The norms times the shifts, without the loss scale.
    shifted_norms: Tensor<1>,
    shifts: Tensor<1>,
    /// Whether each segment has only finite elements, or a finite supplied norm.
    is_finite: Tensor<1, Bool>,
    /// The largest magnitude of each gradient or unit.
    max_magnitudes: Tensor<1>,
    /// Whether each segment has no elements.
    empty: Vec<bool>,
    stats: Option<StatsMeasurement>,
}

impl SegmentNorms {
    /// Makes the norms of all segments from one that the caller supplies, without the loss scale. A negative norm
    /// counts as NaN.
    fn supplied(norm: Tensor<1>, gradients: usize, segments: usize) -> Self {
        let is_negative = norm.clone().lower_elem(0.0);
        // The sign of a zero is ignored.
        let norm = norm.abs().mask_fill(is_negative, f32::NAN);
        Self {
            shifted_norms: norm.clone().expand([segments]),
            shifts: Tensor::ones_like(&norm).expand([segments]),
            max_magnitudes: Tensor::zeros_like(&norm).expand([gradients]),
            is_finite: norm.is_finite().expand([segments]),
            empty: vec![false; segments],
            stats: None,
        }
    }

    /// Measures gradients.
    fn measured(
        gradients: &[Gradient],
        norm: &ByNorm,
        inverse_scale: &InverseScale,
        clip: &ResolvedClip,
        device: &Device,
    ) -> Self {
        let inverse_scale = inverse_scale.of_norms(norm.norm_type);
        let mut norms = Vec::new();
        let mut max_magnitudes = Vec::new();
        let mut non_finite = Vec::new();
        let mut zeros = Vec::new();
        // One list per group, or one per gradient with the norms of its units.
        let lists = if clip.is_per_gradient() { gradients.len() } else { clip.segments() };
        let mut norms_to_join = vec![Vec::new(); lists];
        for (index, (gradient, segments)) in gradients.iter().zip(&clip.segments_of).enumerate() {
            let flat = gradient.flatten().cast(compute_dtype(gradient.info.dtype));
            let measure = |split: Split| {
                norm_of(flat.clone().abs(), norm.norm_type, split)
                    .map(|number| number.cast(DType::F32).to_device(device))
            };
            let gradient_norm = measure(gradient.info.split);
            if norm.tensor_stats {
                let count = |mask: Tensor<1, Bool>| mask.int().sum().to_device(device);
                non_finite.push(count(flat.clone().is_finite().bool_not()));
                zeros.push(count(flat.clone().equal_scalar(0.0)));
                let whole = if segments.len() > 1 { measure(Split::Whole) } else { gradient_norm.clone() };
                norms.push(whole.ratio * whole.unit);
            }
            max_magnitudes.push(gradient_norm.max_magnitude.clone());
            // Empty gradients are left out: even a 0 would change a joint norm of negative p.
            if gradient.info.count > 0 {
                let list = if clip.is_per_gradient() { index } else { segments.start };
                norms_to_join[list].push(gradient_norm);
            }
        }
        let units = |list: usize| if clip.is_per_gradient() { clip.segments_of[list].len() } else { 1 };
        let is_empty =
            |(list, norms): (usize, &Vec<Norm>)| std::iter::repeat_n(norms.is_empty(), units(list));
        let empty = norms_to_join.iter().enumerate().flat_map(is_empty).collect();
        let segments: Vec<_> =
            norms_to_join.iter().map(|norms| join(norms, norm.norm_type, device)).collect();
        let of_segments = |number: fn(&SegmentNorm) -> &Tensor<1>| all(&segments, number);
        Self {
            shifted_norms: inverse_scale.times(of_segments(|segment| &segment.shifted_norm)),
            shifts: of_segments(|segment| &segment.shift),
            is_finite: of_segments(|segment| &segment.max_magnitude).is_finite(),
            max_magnitudes: Tensor::cat(max_magnitudes, 0),
            empty,
            stats: norm.tensor_stats.then(|| StatsMeasurement {
                norms: inverse_scale.times(Tensor::cat(norms, 0)),
                non_finite: Tensor::cat(non_finite, 0),
                zeros: Tensor::cat(zeros, 0),
            }),
        }
    }
}

/// Computes the coefficients and factors, and updates the state of the clip.
fn limit(
    norms: SegmentNorms,
    parameters: Option<ParameterNorms>,
    norm: &ByNorm,
    inverse_scale: InverseScale,
    clip: &ResolvedClip,
    state: &mut TensorState,
    device: &Device,
) -> TensorOpsMeasurement {
    let SegmentNorms { shifted_norms, shifts, is_finite, max_magnitudes, empty, stats } = norms;
    let limits: Vec<f32> = clip.bounds.iter().map(|bounds| bounds[1]).collect();
    let mut limits = Tensor::<1>::from_data(limits.as_slice(), (device, DType::F32));
    if let Some(histories) = &mut state.histories {
        let follows = z_clip(histories, norm, &shifted_norms, &shifts, &is_finite);
        limits = limits.min_pair(follows);
    }
    if let Some((windows, auto_clip)) = state.norm_windows.as_mut().zip(norm.auto_clip) {
        let follows = auto_clip_limits(windows, auto_clip, &shifted_norms, &shifts, &is_finite);
        limits = limits.min_pair(follows);
    }

    // min(limit · (1 / (norm + epsilon)), 1), but a NaN stays NaN.
    let is_shifted = shifts.clone().lower_elem(1.0);
    let one = Tensor::ones_like(&shifts).mask_fill(is_shifted, SHIFT.recip());
    let sum = shifted_norms.clone() + shifts.clone().mul_scalar(norm.epsilon);
    let inverse = sum.clone().recip();
    let mut is_zero = sum.lower_elem(f32::MIN_POSITIVE);
    let coefs = match parameters {
        None => limits * inverse,
        Some(parameters) => {
            let norms = parameters.without_limit(&limits);
            let shifted_limits = limits.clone() * norms.shifted_norms.clone();
            // A limit that exceeds f32 is finite.
            let is_beyond_f32 = shifted_limits
                .clone()
                .is_inf()
                .bool_and(limits.clone().is_finite())
                .bool_and(norms.shifted_norms.clone().is_finite());
            let shifted_limits = shifted_limits.mask_fill(is_beyond_f32, f32::MAX);
            // A NaN limit makes the coefficient NaN, also for a norm of 0.
            is_zero = is_zero.bool_and(shifted_limits.clone().is_nan().bool_not());
            // A limit below the normal range has lost bits. The ratio of the norms has not.
            let is_tiny = shifted_limits
                .clone()
                .lower_elem(f32::MIN_POSITIVE)
                .bool_and(limits.clone().greater_elem(0.0));
            let by_ratio = limits * (norms.shifted_norms * inverse.clone());
            (shifted_limits * inverse).mask_where(is_tiny, by_ratio) / norms.shifts
        }
    };
    let is_within_limit = coefs.clone().greater(one.clone()).bool_or(is_zero);
    let shifted_coefs = coefs.mask_where(is_within_limit, one.clone());
    let coefs = shifted_coefs.clone() * shifts.clone();

    let is_bad = is_finite.clone().bool_not().bool_or(coefs.clone().is_nan());
    // The policy sets the factor of non-finite gradients.
    let shifted_factors = inverse_scale.times(shifted_coefs);
    let shifted_factors = match norm.non_finite {
        NonFinite::Propagate => shifted_factors,
        NonFinite::Skip | NonFinite::Error => shifted_factors.mask_where(is_bad.clone(), one.clone()),
        NonFinite::Zero => shifted_factors.mask_fill(is_bad.clone(), 0.0),
        NonFinite::Poison => shifted_factors.mask_fill(is_bad.clone(), f32::NAN),
    };
    let norms = shifted_norms.clone() * one.clone();
    let (mut shifted_factors, mut is_too_large) = (shifted_factors, Tensor::zeros_like(&norms));
    if let Some(counts) = &mut state.step_counts {
        if let Some(skip) = norm.skip_above {
            let is_skipped = skip_above(counts, skip, &shifted_norms, &shifts, &is_bad);
            shifted_factors = shifted_factors.mask_where(is_skipped.clone(), shifts.clone().recip());
            is_too_large = is_too_large.mask_fill(is_skipped, 1.0);
        }
        let skips_bad = matches!(norm.non_finite, NonFinite::Skip | NonFinite::Error);
        let is_too_large = is_too_large.clone().equal_scalar(1.0);
        let is_skipped = if skips_bad { is_too_large.bool_or(is_bad.clone()) } else { is_too_large };
        count_step(counts, &norms, &coefs, &is_bad, is_skipped);
    }
    let is_at_floor = match &mut state.loss_scale {
        None => norms.zeros_like(),
        Some(scale) => norms.ones_like().mask_fill(update_loss_scale(scale, &is_finite).bool_not(), 0.0),
    };
    TensorOpsMeasurement {
        norms,
        coefs,
        factors: shifted_factors.clone() * shifts.clone(),
        shifted_norms,
        shifted_factors,
        shifts,
        is_too_large,
        is_at_floor,
        inverse_scale,
        non_finite: is_bad,
        empty,
        max_magnitudes,
        stats,
    }
}

/// The norms of the parameters, for adaptive gradient clipping.
struct ParameterNorms {
    /// The norm of the parameter of each segment, at least the floor, times the shift.
    shifted_norms: Tensor<1>,
    shifts: Tensor<1>,
}

impl ParameterNorms {
    fn measured(gradients: &[Gradient], norm: &ByNorm, device: &Device) -> Self {
        let of_gradient = |gradient: &Gradient| {
            let parameter = gradient.parameter.as_ref().zip(gradient.flatten_parameter());
            let norms: Vec<_> = parameter
                .filter(|_| gradient.info.count > 0)
                .map(|(parameter, flat)| {
                    let magnitudes = flat.cast(compute_dtype(parameter.dtype)).abs();
                    norm_of(magnitudes, norm.norm_type, gradient.info.split)
                        .map(|number| number.cast(DType::F32).to_device(device))
                })
                .into_iter()
                .collect();
            join(&norms, norm.norm_type, device)
        };
        let segments: Vec<_> = gradients.iter().map(of_gradient).collect();
        let shifts = all(&segments, |segment| &segment.shift);
        let shifted_norms = all(&segments, |segment| &segment.shifted_norm);
        let floors = shifts.clone().mul_scalar(NormParams::new(norm).floor);
        // A NaN stays NaN.
        let is_below = shifted_norms.clone().lower(floors.clone());
        Self { shifted_norms: shifted_norms.mask_where(is_below, floors), shifts }
    }

    /// Sets the norm to 1 where the limit is infinite: it is then infinite for any parameter.
    fn without_limit(self, limits: &Tensor<1>) -> Self {
        let is_infinite = limits.clone().is_inf();
        Self { shifted_norms: self.shifted_norms.mask_fill(is_infinite, 1.0), ..self }
    }
}

/// Adds norms to their histories, and returns the limits that follow from these: infinity without a spike. The same as
/// gradclip's z-clip; `norm_params` has its numbers. Non-finite gradients do not change their history, and neither does
/// a norm beyond f32 without a limit.
fn z_clip(
    histories: &mut HistoryTensors,
    norm: &ByNorm,
    shifted_norms: &Tensor<1>,
    shifts: &Tensor<1>,
    is_finite: &Tensor<1, Bool>,
) -> Tensor<1> {
    let NormParams { rate, threshold, warm_up, .. } = NormParams::new(norm);
    let HistoryTensors { steps, means, deviations } = histories.clone();
    // The counts are signed on some devices.
    let warm_up = i32::try_from(warm_up).unwrap_or(i32::MAX);
    let is_warming_up = |steps: &Tensor<1, Int>| steps.clone().lower_elem(warm_up);
    // A warm-up whose norms were all 0 starts again.
    let is_restart = means
        .clone()
        .equal_scalar(0.0)
        .bool_and(is_warming_up(&steps).bool_not())
        .bool_and(is_finite.clone());
    let steps = steps.mask_fill(is_restart, 0);
    let is_warm_up = is_warming_up(&steps);

    let max_deviations = deviations.clone().mul_scalar(threshold);
    let above = shifted_norms.clone() - means.clone() * shifts.clone();
    let shifted_deviations = max_deviations.clone() * shifts.clone();
    let is_spike = above
        .clone()
        .greater(shifted_deviations.clone())
        .bool_and(is_warm_up.clone().bool_not())
        .bool_and(is_finite.clone());
    let limits = means.clone() + max_deviations * (shifted_deviations / above);
    let counted = (shifted_norms.clone() / shifts.clone()).mask_where(is_spike.clone(), limits.clone());
    let is_counted = counted.clone().is_finite().bool_and(is_finite.clone());

    // During warm-up, mean and deviation are those of all norms so far.
    let next_steps = steps.clone().add_scalar(1).mask_where(is_warm_up.clone().bool_not(), steps.clone());
    let fill = |number: f32| Tensor::ones_like(&means).mul_scalar(number);
    let warm_up_rates = next_steps.clone().float().cast(DType::F32).recip();
    let rates = fill(rate).mask_where(is_warm_up.clone(), warm_up_rates);
    let shares = fill(1.0 - rate).mask_fill(is_warm_up, 1.0);
    let rests = rates.clone().neg().add_scalar(1.0);
    let distances = counted.clone() - means.clone();
    // Interpolates from the nearer end, whose rounding error is smaller.
    let from_norm = counted - rests.clone() * distances.clone();
    let next_means = (means.clone() + rates.clone() * distances.clone())
        .mask_where(rates.clone().greater_elem(0.5), from_norm);
    let next_deviations = rests.sqrt() * hypotenuse(&deviations, (rates * shares).sqrt() * distances);

    histories.steps = steps.mask_where(is_counted.clone(), next_steps);
    histories.means = means.mask_where(is_counted.clone(), next_means);
    histories.deviations = deviations.mask_where(is_counted, next_deviations);
    Tensor::ones_like(&limits).mul_scalar(f32::INFINITY).mask_where(is_spike, limits)
}

/// Adds norms to their windows, and returns the limits that follow from these: infinity for a norm within its
/// percentile. The same as gradclip's auto-clip. A norm that is zero or not finite does not enter its window; a norm
/// beyond f32 enters as the largest f32.
fn auto_clip_limits(
    windows: &mut WindowTensors,
    auto_clip: AutoClip,
    shifted_norms: &Tensor<1>,
    shifts: &Tensor<1>,
    is_finite: &Tensor<1, Bool>,
) -> Tensor<1> {
    let WindowTensors { counts, latest, sorted } = windows.clone();
    let [records, length] = latest.dims();
    let column = |tensor: Tensor<1>| tensor.reshape([records, 1]);
    let norms = (shifted_norms.clone() / shifts.clone()).clamp_max(f32::MAX);
    let is_counted = norms.clone().greater_elem(0.0).bool_and(is_finite.clone());
    // No number is compared with a NaN.
    let norms = norms.mask_fill(is_counted.clone().bool_not(), 1.0);

    // The oldest norm leaves a full window. If the window is not full, the oldest is infinity, which changes nothing.
    let oldest = latest.clone().narrow(1, 0, 1);
    let infinity = column(Tensor::ones_like(&norms).mul_scalar(f32::INFINITY));
    let without_first = |rows: Tensor<2>, last: Tensor<2>| match length {
        1 => last,
        _ => Tensor::cat(vec![rows.narrow(1, 1, length - 1), last], 1),
    };
    let without_last = |rows: Tensor<2>, first: Tensor<2>| match length {
        1 => first,
        _ => Tensor::cat(vec![first, rows.narrow(1, 0, length - 1)], 1),
    };
    let shifted = without_first(sorted.clone(), infinity);
    let rest = shifted.mask_where(sorted.clone().lower(oldest.expand([records, length])), sorted.clone());
    // Inserts the norm: each place takes the norm, its own number or the number before, whichever is the median.
    let before = without_last(rest.clone(), column(norms.zeros_like()));
    let next_sorted = before.max_pair(rest.min_pair(column(norms.clone()).expand([records, length])));
    let next_latest = without_first(latest.clone(), column(norms.clone()));
    let next_counts = counts.clone().add_scalar(1).clamp_max(auto_clip.window);

    let last = next_counts.clone().sub_scalar(1);
    let (places, shares) = percentile_places(auto_clip, &norms.device());
    let low = places.select(0, last.clone());
    let high = low.clone().add_scalar(1).min_pair(last.clone());
    let share = shares.select(0, last);
    let at =
        |place: Tensor<1, Int>| next_sorted.clone().gather(1, place.reshape([records, 1])).reshape([records]);
    let (low, high) = (at(low), at(high));
    // Rounding may leave the range between the two norms.
    let limits = (low.clone() + share * (high.clone() - low.clone())).max_pair(low).min_pair(high);

    let is_row_counted = is_counted.clone().reshape([records, 1]).expand([records, length]);
    windows.counts = counts.mask_where(is_counted.clone(), next_counts);
    windows.latest = latest.mask_where(is_row_counted.clone(), next_latest);
    windows.sorted = sorted.mask_where(is_row_counted, next_sorted);
    let is_within = norms.greater(limits.clone()).bool_and(is_counted).bool_not();
    limits.mask_fill(is_within, f32::INFINITY)
}

/// Returns the position of the percentile among `n` norms, for each `n` up to the length of the window: the place
/// before it, and the share of the way to the next place. On the host, so that rounding on the device cannot move the
/// position off a norm.
fn percentile_places(auto_clip: AutoClip, device: &Device) -> (Tensor<1, Int>, Tensor<1>) {
    let positions = (0..auto_clip.window).map(|last| {
        let last = f64::from(last);
        (last * f64::from(auto_clip.percentile) / 100.0).clamp(0.0, last)
    });
    #[expect(clippy::cast_possible_truncation, reason = "a place in the window, and an f32")]
    let (places, shares): (Vec<i32>, Vec<f32>) =
        positions.map(|position| (position as i32, position.fract() as f32)).unzip();
    let shares = Tensor::from_data(shares.as_slice(), (device, DType::F32));
    (Tensor::from_data(places.as_slice(), device), shares)
}

/// Returns `sqrt(a² + b²)` for `a >= 0`. The squares may leave the range of f32.
fn hypotenuse(a: &Tensor<1>, b: Tensor<1>) -> Tensor<1> {
    let b = b.abs();
    let large = a.clone().max_pair(b.clone());
    let is_zero = large.clone().equal_scalar(0.0);
    let ratio = a.clone().min_pair(b) / large.clone().mask_fill(is_zero, 1.0);
    large * ratio.square().add_scalar(1.0).sqrt()
}

/// Returns which segments skip their step because the norm exceeds a second limit, and updates the skips in a row. The
/// same rule as gradclip's [`skip_above`](gradclip::Clip::skip_above).
fn skip_above(
    counts: &mut CountTensors,
    SkipAbove { norm, max_consecutive, .. }: SkipAbove,
    shifted_norms: &Tensor<1>,
    shifts: &Tensor<1>,
    is_bad: &Tensor<1, Bool>,
) -> Tensor<1, Bool> {
    let skips = counts.consecutive_skips.clone();
    // The counts are signed on some devices.
    let max_consecutive = i32::try_from(max_consecutive).unwrap_or(i32::MAX);
    let is_skipped = shifted_norms
        .clone()
        .greater(shifts.clone().mul_scalar(norm))
        .bool_and(skips.clone().lower_elem(max_consecutive))
        .bool_and(is_bad.clone().bool_not());
    counts.consecutive_skips = skips
        .clone()
        .zeros_like()
        .mask_where(is_skipped.clone(), skips.clone().add_scalar(1))
        .mask_where(is_bad.clone(), skips);
    is_skipped
}

/// Counts a step by its outcome, as [`StepCounts::add`](gradclip::stats::StepCounts::add).
fn count_step(
    counts: &mut CountTensors,
    norms: &Tensor<1>,
    coefs: &Tensor<1>,
    is_bad: &Tensor<1, Bool>,
    is_skipped: Tensor<1, Bool>,
) {
    let is_clipped = coefs.clone().equal_scalar(1.0).bool_not();
    counts.steps = counts.steps.clone().add_scalar(1);
    counts.clipped = counts.clipped.clone() + is_clipped.int();
    counts.non_finite = counts.non_finite.clone() + is_bad.clone().int();
    counts.skipped = counts.skipped.clone() + is_skipped.int();
    let finite_norms = norms.clone().mask_fill(norms.clone().is_finite().bool_not(), 0.0);
    counts.largest_norms = counts.largest_norms.clone().max_pair(finite_norms);
}

/// Updates a dynamic loss scale by the rule of gradclip's [`LossScale`](gradclip::loss_scale::LossScale). Returns which
/// segments are not finite although the scale is at its floor. A norm of finite elements that exceeds f32 is no
/// overflow.
fn update_loss_scale(tensors: &mut ScaleTensors, is_finite: &Tensor<1, Bool>) -> Tensor<1, Bool> {
    let LossScaleState { growth, backoff, floor, interval, .. } = tensors.options;
    let ScaleTensors { scale, good_steps, .. } = tensors.clone();
    let is_overflow = is_finite.clone().bool_not();
    let any_overflow = is_overflow.clone().any();
    let shrunk = scale.clone().mul_scalar(backoff).clamp_min(floor);
    let is_at_floor = shrunk.clone().lower_equal_elem(floor).expand(is_overflow.dims());

    let good_steps = good_steps.clamp_max(MAX_COUNT - 1).add_scalar(1);
    // A longer interval is never over.
    let is_full = good_steps.clone().greater_elem((interval - 1).min(MAX_COUNT));
    let grown = scale.clone().mul_scalar(growth);
    // An infinite scale would be invalid.
    let grows = is_full.clone().bool_and(grown.clone().is_finite());
    tensors.scale = scale.mask_where(grows, grown).mask_where(any_overflow.clone(), shrunk);
    tensors.good_steps = good_steps.mask_fill(is_full.bool_or(any_overflow), 0);
    is_overflow.bool_and(is_at_floor)
}

/// A norm as the product of `ratio` and `unit`, which may exceed f32, and the largest magnitude. Each tensor has one
/// element, or one per row or column.
#[derive(Clone)]
struct Norm {
    /// The norm divided by `unit`: at least 1 for p > 0, at most 1 for p < 0. The norm itself if it is zero or not
    /// finite.
    ratio: Tensor<1>,
    /// The magnitude that dominates the norm, or 1 if that magnitude is zero or not finite.
    unit: Tensor<1>,
    max_magnitude: Tensor<1>,
}

impl Norm {
    fn map(self, change: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        let Self { ratio, unit, max_magnitude } = self;
        Self { ratio: change(ratio), unit: change(unit), max_magnitude: change(max_magnitude) }
    }
}

/// The norm of a segment, or the norms of several: the rows or columns of a gradient. Each tensor has one element per segment.
struct SegmentNorm {
    /// The joint norm times the shift.
    shifted_norm: Tensor<1>,
    shift: Tensor<1>,
    max_magnitude: Tensor<1>,
}

/// Concatenates a number of all segments.
fn all(segments: &[SegmentNorm], number: fn(&SegmentNorm) -> &Tensor<1>) -> Tensor<1> {
    Tensor::cat(segments.iter().map(|segment| number(segment).clone()).collect(), 0)
}

/// Joins the norms of gradients into the norm of their segment. The norms of the rows or columns of a single gradient
/// stay separate.
fn join(norms: &[Norm], norm_type: NormType, device: &Device) -> SegmentNorm {
    if norms.is_empty() {
        let zero = Tensor::zeros([1], (device, DType::F32));
        return SegmentNorm { shifted_norm: zero.clone(), shift: zero.ones_like(), max_magnitude: zero };
    }
    let of_gradients = |number: fn(&Norm) -> &Tensor<1>| {
        Tensor::cat(norms.iter().map(|norm| number(norm).clone()).collect(), 0)
    };
    let max_magnitude = if let [norm] = norms {
        norm.max_magnitude.clone()
    } else {
        let max_magnitudes = of_gradients(|norm| &norm.max_magnitude);
        let has_nan = max_magnitudes.clone().is_nan().any();
        max_magnitudes.max().mask_fill(has_nan, f32::NAN)
    };
    let p = norm_type.p();
    // Only a norm of positive p may exceed f32: a norm of negative p is at most the smallest magnitude, and a 0-norm is
    // a small count.
    let is_large = max_magnitude.clone().greater_elem(LARGE).bool_and(max_magnitude.clone().is_finite());
    let one = Tensor::ones_like(&max_magnitude);
    let shift = if p > 0.0 { one.mask_fill(is_large, SHIFT) } else { one };
    let shifted = of_gradients(|norm| &norm.ratio) * (of_gradients(|norm| &norm.unit) * shift.clone());
    let shifted_norm = match norms.len() {
        1 => shifted,
        _ if p == 0.0 => shifted.sum(),
        _ => {
            let joined = norm_of(shifted, norm_type, Split::Whole);
            joined.ratio * joined.unit
        }
    };
    SegmentNorm { shifted_norm, shift, max_magnitude }
}

/// The units of a flat tensor: the whole, its rows or its columns.
#[derive(Clone, Copy)]
struct Units {
    split: Split,
    /// The number of elements in each unit.
    length: usize,
}

impl Units {
    fn new(split: Split, count: usize) -> Self {
        Self { split, length: count / split.units() }
    }

    /// Reduces each unit to one element. `whole` reduces a tensor that is not split; `each` reduces a dimension.
    fn reduce(
        self,
        flat: Tensor<1>,
        whole: impl Fn(Tensor<1>) -> Tensor<1>,
        each: impl Fn(Tensor<2>, usize) -> Tensor<2>,
    ) -> Tensor<1> {
        match self.split {
            Split::Whole => whole(flat),
            Split::Rows(rows) => each(flat.reshape([rows, self.length]), 1).reshape([rows]),
            Split::Columns(columns) => each(flat.reshape([self.length, columns]), 0).reshape([columns]),
        }
    }

    fn sum(self, flat: Tensor<1>) -> Tensor<1> {
        self.reduce(flat, Tensor::sum, Tensor::sum_dim)
    }

    fn max(self, flat: Tensor<1>) -> Tensor<1> {
        self.reduce(flat, Tensor::max, Tensor::max_dim)
    }

    fn min(self, flat: Tensor<1>) -> Tensor<1> {
        self.reduce(flat, Tensor::min, Tensor::min_dim)
    }

    fn any(self, flat: Tensor<1, Bool>) -> Tensor<1, Bool> {
        match self.split {
            Split::Whole => flat.any(),
            Split::Rows(rows) => flat.reshape([rows, self.length]).any_dim(1).reshape([rows]),
            Split::Columns(columns) => flat.reshape([self.length, columns]).any_dim(0).reshape([columns]),
        }
    }

    /// Repeats each element for the elements of its unit. The only element of a tensor that is not split stays: it
    /// broadcasts.
    fn spread(self, of_units: Tensor<1>) -> Tensor<1> {
        let Self { split, length } = self;
        match split {
            Split::Whole => of_units,
            Split::Rows(rows) => of_units.reshape([rows, 1]).expand([rows, length]).reshape([rows * length]),
            Split::Columns(columns) => {
                of_units.reshape([1, columns]).expand([length, columns]).reshape([length * columns])
            }
        }
    }

    /// Repeats each element for the elements of its unit.
    fn spread_mask(self, of_units: Tensor<1, Bool>) -> Tensor<1, Bool> {
        let Self { split, length } = self;
        match split {
            Split::Whole => of_units.expand([length]),
            Split::Rows(rows) => of_units.reshape([rows, 1]).expand([rows, length]).reshape([rows * length]),
            Split::Columns(columns) => {
                of_units.reshape([1, columns]).expand([length, columns]).reshape([length * columns])
            }
        }
    }
}

/// Computes the norm of the magnitudes in each unit. Powers of magnitudes may leave the range of f32; powers of their
/// ratios to the dominant magnitude do not.
fn norm_of(magnitudes: Tensor<1>, norm_type: NormType, split: Split) -> Norm {
    let (device, dtype) = (magnitudes.device(), magnitudes.dtype());
    let one = Tensor::ones([split.units()], (&device, dtype));
    let count = magnitudes.shape().num_elements();
    let units = Units::new(split, count);
    if count == 0 {
        let zero = Tensor::zeros([1], (&device, dtype));
        return Norm { ratio: zero.clone(), unit: one, max_magnitude: zero };
    }
    let p = norm_type.p();
    let has_nan = units.any(magnitudes.clone().is_nan());
    let max_magnitude = units.max(magnitudes.clone()).mask_fill(has_nan.clone(), f32::NAN);
    if p == 0.0 {
        // The 0-norm counts the gradients with a non-zero element.
        let count = units.any(magnitudes.equal_scalar(0.0).bool_not()).int().float().cast(dtype);
        return Norm { ratio: count, unit: one, max_magnitude };
    }
    let dominant = if p > 0.0 {
        max_magnitude.clone()
    } else {
        units.min(magnitudes.clone()).mask_fill(has_nan, f32::NAN)
    };
    let can_divide = dominant.clone().is_finite().bool_and(dominant.clone().greater_elem(0.0));
    let unit = dominant.clone().mask_fill(can_divide.clone().bool_not(), 1.0);
    let ratios = || magnitudes.clone() / units.spread(unit.clone());
    let ratio = match norm_type {
        NormType::L1 => units.sum(ratios()),
        NormType::L2 => units.sum(ratios().square()).sqrt(),
        _ if p.is_infinite() => one,
        _ => units.sum(ratios().powf_scalar(p)).powf_scalar(p.recip()),
    };
    // A dominant magnitude that is zero, infinite or NaN is the norm. A device may compute a different value from its
    // powers.
    Norm { ratio: ratio.mask_where(can_divide.bool_not(), dominant), unit, max_magnitude }
}

/// Returns the element type of the computation.
fn compute_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { dtype } else { DType::F32 }
}

fn scale(
    gradient: Gradient,
    measurement: &TensorOpsMeasurement,
    segments: &Range<usize>,
    policy: NonFinite,
) -> Gradient {
    if gradient.info.count == 0 {
        return gradient;
    }
    let units = Units::new(gradient.info.split, gradient.info.count);
    let flat = gradient.flatten();
    let device = flat.device();
    let dtype = compute_dtype(gradient.info.dtype);
    let of_segment = |number: &Tensor<1>| {
        let of_units = number.clone().narrow(0, segments.start, segments.len());
        units.spread(of_units.to_device(&device).cast(dtype))
    };
    let factor = of_segment(&measurement.factors);
    // A factor that underflows f32 is applied in two multiplications, unless the policy has set it to NaN or zero.
    let shifted = of_segment(&measurement.shifted_factors);
    let is_tiny = factor.clone().lower_elem(f32::MIN_POSITIVE).bool_and(shifted.clone().greater_elem(0.0));
    let first = factor.mask_where(is_tiny.clone(), shifted);
    let second = Tensor::ones_like(&first).mask_where(is_tiny, of_segment(&measurement.shifts));
    let mut scaled = flat.cast(dtype) * first * second;
    if policy == NonFinite::Zero {
        // Zero times infinity is NaN.
        let is_bad = measurement.non_finite.clone().narrow(0, segments.start, segments.len());
        scaled = scaled.mask_fill(units.spread_mask(is_bad.to_device(&device)), 0.0);
    }
    let scaled = scaled.cast(gradient.info.dtype);
    gradient.with_elements(scaled)
}

fn clamp(gradient: Gradient, bounds: [f32; 2], inverse_scale: Option<f32>) -> Gradient {
    if gradient.info.count == 0 {
        return gradient;
    }
    // As in the kernels, bounds are rounded to the element type. f64 represents every bound exactly.
    let Bounds { low, high } = Bounds::new(bounds, kernel_dtype(gradient.info.dtype).unwrap_or_default());
    let mut elements = gradient.flatten().cast(compute_dtype(gradient.info.dtype));
    if let Some(inverse_scale) = inverse_scale {
        // Rounded to the element type before it is clamped.
        let unscaled = elements.mul_scalar(inverse_scale).cast(gradient.info.dtype);
        elements = unscaled.cast(compute_dtype(gradient.info.dtype));
    }
    let is_nan = elements.clone().is_nan();
    let clamped = elements.clone().clamp(low, high).mask_where(is_nan, elements).cast(gradient.info.dtype);
    gradient.with_elements(clamped)
}
