//! The same clip in Burn's own tensor operations, for the devices that the kernels do not run on: the CPU, CUDA, wgpu where
//! it compiles to something else than WGSL, and gradients on several devices.

use burn::tensor::{DType, Device, Int, Tensor};
use gradclip::{ByNorm, NonFinite, NormType};

use crate::gradients::Gradient;
use crate::task::{Method, Task};

/// What a clip by norm has measured. All f32, on the device of the first gradient.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Of each segment.
    pub(crate) norms: Tensor<1>,
    /// The same norms times [`FAR`]: those that exceed f32 are numbers here.
    pub(crate) lowered_norms: Tensor<1>,
    pub(crate) coefs: Tensor<1>,
    pub(crate) factors: Tensor<1>,
    /// Where a factor is below the normal numbers of f32: 1 there, and [`FAR`] must be multiplied by besides.
    pub(crate) far: Tensor<1, Int>,
    /// What is multiplied by: the factor, or what is left of it without [`FAR`].
    pub(crate) multipliers: Tensor<1>,
    /// Where there is an element that is not finite, or no number for a limit.
    pub(crate) bad: Tensor<1, Int>,
    /// Whether it has no element at all.
    pub(crate) empty: Vec<bool>,
    /// Of each gradient.
    pub(crate) gradient_norms: Tensor<1>,
    pub(crate) gradient_maxima: Tensor<1>,
    /// Where there is an element that is not finite.
    pub(crate) gradient_bad: Tensor<1, Int>,
    /// Of each gradient, how many of its elements are not finite and how many are zero; if that is wanted.
    pub(crate) counts: Option<[Tensor<1, Int>; 2]>,
}

/// The power of two that is kept apart of factors which f32 does not hold. An element is multiplied by it first: exactly, or
/// it is less than 1, and its product with such a factor subnormal.
const FAR: f32 = f32::MIN_POSITIVE;

/// [`FAR`] is two to the power of this.
pub(crate) const FAR_EXPONENT: i32 = f32::MIN_EXP - 1;

/// The inverse of [`FAR`].
const NEAR: f32 = 1.0 / FAR;

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
    let mut bad = Vec::new();
    let mut non_finite = Vec::new();
    let mut zeros = Vec::new();
    let mut members = vec![Members::default(); task.segments.len()];
    for (gradient, &segment) in gradients.iter().zip(&task.segment_of) {
        let flat = gradient.flat().cast(wide(gradient.dtype));
        if norm.tensor_stats {
            let count = |mask: Tensor<1, burn::tensor::Bool>| mask.int().sum().to_device(device);
            non_finite.push(count(flat.clone().is_finite().bool_not()));
            zeros.push(count(flat.clone().equal_scalar(0.0)));
        }
        let NormOf { own, lowered, largest } = norm_of(flat.abs(), norm.norm_type);
        // A gradient that is not zero counts once to a norm of p = 0.
        let own = if norm.norm_type.p() == 0.0 { own.clamp_max(1.0) } else { own };
        let own = own.cast(DType::F32).to_device(device);
        let is_bad = largest.clone().is_finite().bool_not().int().to_device(device);
        // An empty gradient is no member: to the norm of a negative p even a 0 would add something.
        if gradient.count > 0 {
            let members = &mut members[segment];
            members.norms.push(own.clone());
            members.lowered.push(lowered.cast(DType::F32).to_device(device));
            members.bad.push(is_bad.clone());
        }
        norms.push(own);
        maxima.push(largest.cast(DType::F32).to_device(device));
        bad.push(is_bad);
    }
    let empty = members.iter().map(|members| members.norms.is_empty()).collect();
    let joined: Vec<_> = members.into_iter().map(|members| members.join(norm.norm_type, device)).collect();
    let all = |of: fn(&Joined) -> Tensor<1>| Tensor::cat(joined.iter().map(of).collect(), 0);
    let inverse = norm.inverse_norm_scale();
    let (plain, lowered) = (all(|joined| joined.norm.clone()), all(|joined| joined.lowered.clone()));
    let lowered = lowered.mul_scalar(inverse);
    // With a loss scale a norm may have exceeded f32, and without it no longer.
    let returned = plain.clone().is_finite().bool_not().bool_and(lowered.clone().is_finite());
    let norms_of_segments = plain.mul_scalar(inverse).mask_where(returned, lowered.clone().mul_scalar(NEAR));
    let limits: Vec<f32> = task.segments.iter().map(|bounds| bounds[1]).collect();
    let limits = Tensor::<1>::from_data(limits.as_slice(), (device, DType::F32));

    // min(limit · (1 / (norm + epsilon)), 1), where a NaN stays one.
    let sum = norms_of_segments.clone().add_scalar(norm.epsilon);
    let coefs = limits.clone() * sum.clone().recip();
    let nothing_to_divide_by = sum.lower_elem(f32::MIN_POSITIVE);
    let coefs = coefs.clone().mask_fill(coefs.greater_elem(1.0).bool_or(nothing_to_divide_by), 1.0);

    // Not whether the norm is a number: one that exceeds f32 is, and one of p <= 0 may be though an element is none.
    let bad_segments = Tensor::cat(joined.into_iter().map(|joined| joined.bad).collect(), 0);
    let bad_segments = bad_segments.greater_elem(0).bool_or(coefs.clone().is_nan());
    // Limit and norm without the range of f32: the coefficient over FAR.
    let far_sum = lowered.clone().add_scalar(norm.epsilon * FAR);
    let far_coefs = limits * far_sum.recip();
    let far = coefs
        .clone()
        .lower_elem(f32::MIN_POSITIVE)
        .bool_and(far_coefs.clone().is_finite())
        .bool_and(far_coefs.clone().greater_elem(0.0))
        .bool_and(bad_segments.clone().bool_not());
    let coefs = coefs.mask_where(far.clone(), far_coefs.clone().mul_scalar(FAR));
    let factors = coefs.clone().mul_scalar(norm.inverse_scale);
    let multipliers = factors.clone().mask_where(far.clone(), far_coefs.mul_scalar(norm.inverse_scale));
    let obeying = |factors: Tensor<1>| match norm.non_finite {
        NonFinite::Propagate => factors,
        NonFinite::Skip | NonFinite::Error => factors.mask_fill(bad_segments.clone(), 1.0),
        NonFinite::Zero => factors.mask_fill(bad_segments.clone(), 0.0),
        NonFinite::Poison => factors.mask_fill(bad_segments.clone(), f32::NAN),
    };
    Measured {
        norms: norms_of_segments,
        lowered_norms: lowered,
        coefs,
        factors: obeying(factors),
        far: far.int(),
        multipliers: obeying(multipliers),
        bad: bad_segments.clone().int(),
        empty,
        gradient_norms: Tensor::cat(norms, 0).mul_scalar(norm.inverse_norm_scale()),
        gradient_maxima: Tensor::cat(maxima, 0).mul_scalar(norm.inverse_scale),
        gradient_bad: Tensor::cat(bad, 0),
        counts: norm.tensor_stats.then(|| [Tensor::cat(non_finite, 0), Tensor::cat(zeros, 0)]),
    }
}

/// What was measured of the gradients of a segment.
#[derive(Clone, Default)]
struct Members {
    norms: Vec<Tensor<1>>,
    lowered: Vec<Tensor<1>>,
    bad: Vec<Tensor<1, Int>>,
}

/// The same of all of them together.
struct Joined {
    norm: Tensor<1>,
    lowered: Tensor<1>,
    bad: Tensor<1, Int>,
}

impl Members {
    fn join(mut self, norm_type: NormType, device: &Device) -> Joined {
        match self.norms.len() {
            0 => {
                let zero = Tensor::zeros([1], (device, DType::F32));
                Joined { norm: zero.clone(), bad: zero.clone().is_finite().bool_not().int(), lowered: zero }
            }
            1 => Joined {
                norm: self.norms.remove(0),
                lowered: self.lowered.remove(0),
                bad: self.bad.remove(0),
            },
            _ => Joined {
                norm: norm_of(Tensor::cat(self.norms, 0), norm_type).own,
                lowered: norm_of(Tensor::cat(self.lowered, 0), norm_type).own,
                bad: Tensor::cat(self.bad, 0).sum(),
            },
        }
    }
}

/// A norm, the same times [`FAR`], and the largest magnitude.
struct NormOf {
    own: Tensor<1>,
    lowered: Tensor<1>,
    largest: Tensor<1>,
}

/// The norm of these magnitudes. Powers of f32 may leave its range; those of ratios to the one that dominates do not.
fn norm_of(magnitudes: Tensor<1>, norm_type: NormType) -> NormOf {
    if magnitudes.shape().num_elements() == 0 {
        let zero = Tensor::zeros([1], (&magnitudes.device(), magnitudes.dtype()));
        return NormOf { own: zero.clone(), lowered: zero.clone(), largest: zero };
    }
    let p = norm_type.p();
    let nan = magnitudes.clone().is_nan().any();
    let largest = magnitudes.clone().max().mask_fill(nan.clone(), f32::NAN);
    let dominant = if p > 0.0 { largest.clone() } else { magnitudes.clone().min().mask_fill(nan, f32::NAN) };
    let plain = dominant.clone().is_finite().bool_and(dominant.clone().greater_elem(0.0));
    let unit = dominant.clone().mask_fill(plain.clone().bool_not(), 1.0);
    let ratios = || magnitudes.clone() / unit.clone();
    let in_units = match norm_type {
        NormType::L1 => ratios().sum(),
        NormType::L2 => ratios().square().sum().sqrt(),
        NormType::P(0.0) => {
            let dtype = magnitudes.dtype();
            let own = magnitudes.equal_scalar(0.0).bool_not().int().sum().float().cast(dtype);
            return NormOf { lowered: own.clone().mul_scalar(FAR), own, largest };
        }
        _ if p.is_infinite() => unit.ones_like(),
        _ => ratios().powf_scalar(p).sum().powf_scalar(p.recip()),
    };
    // Zero, infinite or NaN: so is the norm, whatever a device makes of powers of that.
    let or_dominant = |norm: Tensor<1>| norm.mask_where(plain.clone().bool_not(), dominant.clone());
    NormOf {
        own: or_dominant(in_units.clone() * unit.clone()),
        lowered: or_dominant(in_units * unit.mul_scalar(FAR)),
        largest,
    }
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
    let of_segment = |of: &Tensor<1>| of.clone().narrow(0, segment, 1).to_device(&device);
    let is_set = |of: &Tensor<1, Int>| of.clone().narrow(0, segment, 1).to_device(&device).greater_elem(0);
    let (wide, multiplier) = (wide(gradient.dtype), of_segment(&measured.multipliers));
    let first = multiplier.ones_like().mask_fill(is_set(&measured.far), FAR);
    let mut scaled = flat.cast(wide) * first.cast(wide) * multiplier.cast(wide);
    if policy == NonFinite::Zero {
        // Zero times infinity is none.
        scaled = scaled.mask_fill(is_set(&measured.bad).expand([gradient.count]), 0.0);
    }
    let scaled = scaled.cast(gradient.dtype);
    gradient.replaced(scaled)
}

fn clamp(gradient: Gradient, [low, high]: [f32; 2]) -> Gradient {
    if gradient.count == 0 {
        return gradient;
    }
    let wide = gradient.flat().cast(wide(gradient.dtype));
    let nan = wide.clone().is_nan();
    let clamped = wide.clone().clamp(low, high).mask_where(nan, wide).cast(gradient.dtype);
    gradient.replaced(clamped)
}
