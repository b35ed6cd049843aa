//! The same clip in Burn's own tensor operations, for the devices that the kernels do not run on: the CPU, CUDA, wgpu where
//! it compiles to something else than WGSL, and gradients on several devices.

use burn::tensor::{Bool, DType, Device, Int, Tensor};
use gradclip::operation::ByNorm;
use gradclip::{NonFinite, NormType};

use crate::gradients::Gradient;
use crate::task::{Method, Task};

/// What a clip by norm has measured. All f32, on the device of the first gradient.
///
/// A norm of finite elements may exceed f32, and the factor may be too small for it. So everything that is computed of a segment
/// is computed times its `shift`, which is 1, or 2^-64 where the largest magnitude is above 2^63.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Of each segment.
    pub(crate) norms: Tensor<1>,
    pub(crate) coefs: Tensor<1>,
    pub(crate) factors: Tensor<1>,
    /// The norms times the shifts, and the factors divided by them.
    pub(crate) shifted_norms: Tensor<1>,
    pub(crate) shifted_factors: Tensor<1>,
    pub(crate) shifts: Tensor<1>,
    /// Whether an element, or the norm, is not finite.
    non_finite: Tensor<1, Bool>,
    /// Whether it has no element at all.
    pub(crate) empty: Vec<bool>,
    /// Of each gradient, with the loss scale still in it: without it a finite one may exceed f32.
    pub(crate) gradient_maxima: Tensor<1>,
    /// Of each gradient, if that is wanted.
    pub(crate) stats: Option<Stats>,
}

/// What else is known of each gradient.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    pub(crate) norms: Tensor<1>,
    /// How many of its elements are not finite.
    pub(crate) non_finite: Tensor<1, Int>,
    pub(crate) zeros: Tensor<1, Int>,
}

/// Above this a segment is measured and scaled with [`SHIFT`].
const LARGE: f32 = 9_223_372_036_854_775_808.0;

/// 2^-64.
const SHIFT: f32 = 1.0 / 18_446_744_073_709_551_616.0;

/// Clips these.
pub(crate) fn clip(gradients: Vec<Gradient>, task: &Task) -> (Vec<Gradient>, Option<Measured>) {
    match task.method {
        Method::Norm(norm) => {
            let Some(device) = gradients.first().map(|first| first.flat().device()) else {
                return (gradients, None);
            };
            let measured = measure(&gradients, &norm, task, &device);
            let gradients = if task.writes {
                let each = gradients.into_iter().zip(&task.segment_of);
                each.map(|(gradient, &segment)| scale(gradient, &measured, segment, norm.non_finite))
                    .collect()
            } else {
                gradients
            };
            (gradients, Some(measured))
        }
        Method::Clamp => {
            let each = gradients.into_iter().zip(&task.segment_of);
            (each.map(|(gradient, &segment)| clamp(gradient, task.segments[segment])).collect(), None)
        }
    }
}

fn measure(gradients: &[Gradient], norm: &ByNorm, task: &Task, device: &Device) -> Measured {
    let mut norms = Vec::new();
    let mut maxima = Vec::new();
    let mut non_finite = Vec::new();
    let mut zeros = Vec::new();
    let mut members = vec![Vec::new(); task.segments.len()];
    for (gradient, &segment) in gradients.iter().zip(&task.segment_of) {
        let flat = gradient.flat().cast(wide(gradient.dtype));
        let own = norm_of(flat.clone().abs(), norm.norm_type)
            .map(|number| number.cast(DType::F32).to_device(device));
        if norm.tensor_stats {
            let count = |mask: Tensor<1, Bool>| mask.int().sum().to_device(device);
            non_finite.push(count(flat.clone().is_finite().bool_not()));
            zeros.push(count(flat.equal_scalar(0.0)));
            norms.push(own.ratio.clone() * own.unit.clone());
        }
        maxima.push(own.largest.clone());
        // An empty gradient is no member: to the norm of a negative p even a 0 would add something.
        if gradient.count > 0 {
            members[segment].push(own);
        }
    }
    let empty = members.iter().map(Vec::is_empty).collect();
    let segments: Vec<_> = members.iter().map(|members| join(members, norm.norm_type, device)).collect();
    let of_each = |number: fn(&Segment) -> &Tensor<1>| {
        Tensor::cat(segments.iter().map(|segment| number(segment).clone()).collect(), 0)
    };
    let shifts = of_each(|segment| &segment.shift);
    let shifted_norms = of_each(|segment| &segment.norm).mul_scalar(norm.inverse_norm_scale());
    let limits: Vec<f32> = task.segments.iter().map(|bounds| bounds[1]).collect();
    let limits = Tensor::<1>::from_data(limits.as_slice(), (device, DType::F32));

    // min(limit · (1 / (norm + epsilon)), 1), where a NaN stays one.
    let is_shifted = shifts.clone().lower_elem(1.0);
    let one = Tensor::ones_like(&shifts).mask_fill(is_shifted, SHIFT.recip());
    let sum = shifted_norms.clone() + shifts.clone().mul_scalar(norm.epsilon);
    let coefs = limits * sum.clone().recip();
    let nothing_to_divide_by = sum.lower_elem(f32::MIN_POSITIVE);
    let within = coefs.clone().greater(one.clone()).bool_or(nothing_to_divide_by);
    let shifted_coefs = coefs.mask_where(within, one.clone());
    let coefs = shifted_coefs.clone() * shifts.clone();

    let largest = of_each(|segment| &segment.largest);
    let bad = largest.is_finite().bool_not().bool_or(coefs.clone().is_nan());
    // What the policy makes of the factor of gradients that are not finite.
    let shifted_factors = shifted_coefs.mul_scalar(norm.inverse_scale);
    let shifted_factors = match norm.non_finite {
        NonFinite::Propagate => shifted_factors,
        NonFinite::Skip | NonFinite::Error => shifted_factors.mask_where(bad.clone(), one.clone()),
        NonFinite::Zero => shifted_factors.mask_fill(bad.clone(), 0.0),
        NonFinite::Poison => shifted_factors.mask_fill(bad.clone(), f32::NAN),
    };
    Measured {
        norms: shifted_norms.clone() * one,
        coefs,
        factors: shifted_factors.clone() * shifts.clone(),
        shifted_norms,
        shifted_factors,
        shifts,
        non_finite: bad,
        empty,
        gradient_maxima: Tensor::cat(maxima, 0),
        stats: norm.tensor_stats.then(|| Stats {
            norms: Tensor::cat(norms, 0).mul_scalar(norm.inverse_norm_scale()),
            non_finite: Tensor::cat(non_finite, 0),
            zeros: Tensor::cat(zeros, 0),
        }),
    }
}

/// A norm as a product, which may exceed f32, and the largest magnitude. One element each.
#[derive(Clone)]
struct Norm {
    /// At least 1 for p > 0, at most 1 for p < 0. Or the norm itself, of which the unit then is 1.
    ratio: Tensor<1>,
    unit: Tensor<1>,
    largest: Tensor<1>,
}

impl Norm {
    fn map(self, change: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        let Self { ratio, unit, largest } = self;
        Self { ratio: change(ratio), unit: change(unit), largest: change(largest) }
    }
}

/// What has been measured of a segment.
struct Segment {
    /// The joint norm, times the shift.
    norm: Tensor<1>,
    shift: Tensor<1>,
    largest: Tensor<1>,
}

/// The norm of a segment from those of its gradients.
fn join(members: &[Norm], norm_type: NormType, device: &Device) -> Segment {
    let one = Tensor::ones([1], (device, DType::F32));
    if members.is_empty() {
        let zero = Tensor::zeros([1], (device, DType::F32));
        return Segment { norm: zero.clone(), shift: one, largest: zero };
    }
    let of_each = |number: fn(&Norm) -> &Tensor<1>| {
        Tensor::cat(members.iter().map(|own| number(own).clone()).collect(), 0)
    };
    let maxima = of_each(|own| &own.largest);
    let nan = maxima.clone().is_nan().any();
    let largest = maxima.max().mask_fill(nan, f32::NAN);
    let p = norm_type.p();
    // The norm of a negative p is at most the least magnitude, and a count is small: only that of a positive p may exceed f32.
    let is_large = largest.clone().greater_elem(LARGE).bool_and(largest.clone().is_finite());
    let shift = if p > 0.0 { one.mask_fill(is_large, SHIFT) } else { one };
    let norms = of_each(|own| &own.ratio) * (of_each(|own| &own.unit) * shift.clone());
    let norm = match members.len() {
        1 => norms,
        _ if p == 0.0 => norms.sum(),
        _ => {
            let joined = norm_of(norms, norm_type);
            joined.ratio * joined.unit
        }
    };
    Segment { norm, shift, largest }
}

/// The norm of these magnitudes, and the largest of them. Powers of f32 may leave its range; those of ratios to the one that
/// dominates do not.
fn norm_of(magnitudes: Tensor<1>, norm_type: NormType) -> Norm {
    let (device, dtype) = (magnitudes.device(), magnitudes.dtype());
    let one = Tensor::ones([1], (&device, dtype));
    if magnitudes.shape().num_elements() == 0 {
        let zero = Tensor::zeros([1], (&device, dtype));
        return Norm { ratio: zero.clone(), unit: one, largest: zero };
    }
    let p = norm_type.p();
    let nan = magnitudes.clone().is_nan().any();
    let largest = magnitudes.clone().max().mask_fill(nan.clone(), f32::NAN);
    if p == 0.0 {
        // A gradient that is not zero counts once.
        let count = magnitudes.equal_scalar(0.0).bool_not().any().int().float().cast(dtype);
        return Norm { ratio: count, unit: one, largest };
    }
    let dominant = if p > 0.0 { largest.clone() } else { magnitudes.clone().min().mask_fill(nan, f32::NAN) };
    let plain = dominant.clone().is_finite().bool_and(dominant.clone().greater_elem(0.0));
    let unit = dominant.clone().mask_fill(plain.clone().bool_not(), 1.0);
    let ratios = || magnitudes.clone() / unit.clone();
    let ratio = match norm_type {
        NormType::L1 => ratios().sum(),
        NormType::L2 => ratios().square().sum().sqrt(),
        _ if p.is_infinite() => one,
        _ => ratios().powf_scalar(p).sum().powf_scalar(p.recip()),
    };
    // Zero, infinite or NaN: so is the norm, whatever a device makes of powers of that.
    Norm { ratio: ratio.mask_where(plain.bool_not(), dominant), unit, largest }
}

/// The type to compute in.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { dtype } else { DType::F32 }
}

fn scale(gradient: Gradient, measured: &Measured, segment: usize, policy: NonFinite) -> Gradient {
    if gradient.count == 0 {
        return gradient;
    }
    let flat = gradient.flat();
    let device = flat.device();
    let wide = wide(gradient.dtype);
    let of_segment = |number: &Tensor<1>| number.clone().narrow(0, segment, 1).to_device(&device).cast(wide);
    let factor = of_segment(&measured.factors);
    // What f32 does not hold is multiplied by in two steps. (Not by a NaN or a zero that the policy has set.)
    let shifted = of_segment(&measured.shifted_factors);
    let is_tiny = factor.clone().lower_elem(f32::MIN_POSITIVE).bool_and(shifted.clone().greater_elem(0.0));
    let first = factor.mask_where(is_tiny.clone(), shifted);
    let second = Tensor::ones([1], (&device, wide)).mask_where(is_tiny, of_segment(&measured.shifts));
    let mut scaled = flat.cast(wide) * first * second;
    if policy == NonFinite::Zero {
        // Zero times infinity is none.
        let bad = measured.non_finite.clone().narrow(0, segment, 1).to_device(&device);
        scaled = scaled.mask_fill(bad.expand([gradient.count]), 0.0);
    }
    let scaled = scaled.cast(gradient.dtype);
    gradient.replaced(scaled)
}

fn clamp(gradient: Gradient, bounds: [f32; 2]) -> Gradient {
    if gradient.count == 0 {
        return gradient;
    }
    // Rounded first: a bound that became infinite with the elements would let them be infinite.
    let [low, high] = bounds.map(|bound| match gradient.dtype {
        DType::F16 => gradclip::DType::F16.round(bound),
        DType::BF16 => gradclip::DType::BF16.round(bound),
        _ => bound,
    });
    let wide = gradient.flat().cast(wide(gradient.dtype));
    let nan = wide.clone().is_nan();
    let clamped = wide.clone().clamp(low, high).mask_where(nan, wide).cast(gradient.dtype);
    gradient.replaced(clamped)
}
