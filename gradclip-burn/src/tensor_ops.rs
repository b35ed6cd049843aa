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
    pub(crate) coefs: Tensor<1>,
    pub(crate) factors: Tensor<1>,
    /// Whether it has no element at all.
    pub(crate) empty: Vec<bool>,
    /// Of each gradient.
    pub(crate) gradient_norms: Tensor<1>,
    pub(crate) gradient_maxima: Tensor<1>,
    /// Of each gradient, how many of its elements are not finite and how many are zero; if that is wanted.
    pub(crate) counts: Option<[Tensor<1, Int>; 2]>,
}

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
    // An empty gradient is no member: to the norm of a negative p even a 0 would add something.
    let mut members = vec![Vec::new(); task.segments.len()];
    for (gradient, &segment) in gradients.iter().zip(&task.segment_of) {
        let flat = gradient.flat().cast(wide(gradient.dtype));
        if norm.tensor_stats {
            let count = |mask: Tensor<1, burn::tensor::Bool>| mask.int().sum().to_device(device);
            non_finite.push(count(flat.clone().is_finite().bool_not()));
            zeros.push(count(flat.clone().equal_scalar(0.0)));
        }
        let [own, largest] = norm_of(flat.abs(), norm.norm_type);
        // A gradient that is not zero counts once to a norm of p = 0.
        let own = if norm.norm_type.p() == 0.0 { own.clamp_max(1.0) } else { own };
        let own = own.cast(DType::F32).to_device(device);
        if gradient.count > 0 {
            members[segment].push(own.clone());
        }
        norms.push(own);
        maxima.push(largest.cast(DType::F32).to_device(device));
    }
    let empty = members.iter().map(Vec::is_empty).collect();
    let joined = members
        .into_iter()
        .map(|mut members| match members.len() {
            0 => Tensor::zeros([1], (device, DType::F32)),
            1 => members.remove(0),
            _ => norm_of(Tensor::cat(members, 0), norm.norm_type)[0].clone(),
        })
        .collect();
    let norms_of_segments = Tensor::cat(joined, 0).mul_scalar(norm.inverse_norm_scale());
    let limits: Vec<f32> = task.segments.iter().map(|bounds| bounds[1]).collect();
    let limits = Tensor::<1>::from_data(limits.as_slice(), (device, DType::F32));

    // min(limit · (1 / (norm + epsilon)), 1), where a NaN stays one.
    let sum = norms_of_segments.clone().add_scalar(norm.epsilon);
    let coefs = limits * sum.clone().recip();
    let nothing_to_divide_by = sum.lower_elem(f32::MIN_POSITIVE);
    let coefs = coefs.clone().mask_fill(coefs.greater_elem(1.0).bool_or(nothing_to_divide_by), 1.0);

    let bad = norms_of_segments.clone().is_finite().bool_not().bool_or(coefs.clone().is_nan());
    let factors = coefs.clone().mul_scalar(norm.inverse_scale);
    let factors = match norm.non_finite {
        NonFinite::Propagate => factors,
        NonFinite::Skip | NonFinite::Error => factors.mask_fill(bad, 1.0),
        NonFinite::Zero => factors.mask_fill(bad, 0.0),
        NonFinite::Poison => factors.mask_fill(bad, f32::NAN),
    };
    Measured {
        norms: norms_of_segments,
        coefs,
        factors,
        empty,
        gradient_norms: Tensor::cat(norms, 0).mul_scalar(norm.inverse_norm_scale()),
        gradient_maxima: Tensor::cat(maxima, 0).mul_scalar(norm.inverse_scale),
        counts: norm.tensor_stats.then(|| [Tensor::cat(non_finite, 0), Tensor::cat(zeros, 0)]),
    }
}

/// The norm of these magnitudes, and the largest of them. Powers of f32 may leave its range; those of ratios to the one that
/// dominates do not.
fn norm_of(magnitudes: Tensor<1>, norm_type: NormType) -> [Tensor<1>; 2] {
    if magnitudes.shape().num_elements() == 0 {
        let zero = Tensor::zeros([1], (&magnitudes.device(), magnitudes.dtype()));
        return [zero.clone(), zero];
    }
    let p = norm_type.p();
    let nan = magnitudes.clone().is_nan().any();
    let largest = magnitudes.clone().max().mask_fill(nan.clone(), f32::NAN);
    let dominant = if p > 0.0 { largest.clone() } else { magnitudes.clone().min().mask_fill(nan, f32::NAN) };
    let plain = dominant.clone().is_finite().bool_and(dominant.clone().greater_elem(0.0));
    let unit = dominant.clone().mask_fill(plain.clone().bool_not(), 1.0);
    let ratios = || magnitudes.clone() / unit.clone();
    let own = match norm_type {
        NormType::L1 => ratios().sum() * unit,
        NormType::L2 => ratios().square().sum().sqrt() * unit,
        NormType::P(0.0) => {
            let dtype = magnitudes.dtype();
            return [magnitudes.equal_scalar(0.0).bool_not().int().sum().float().cast(dtype), largest];
        }
        _ if p.is_infinite() => dominant.clone(),
        _ => ratios().powf_scalar(p).sum().powf_scalar(p.recip()) * unit,
    };
    // Zero, infinite or NaN: so is the norm, whatever a device makes of powers of that.
    [own.mask_where(plain.bool_not(), dominant), largest]
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
    let factor = measured.factors.clone().narrow(0, segment, 1).to_device(&device);
    let wide = wide(gradient.dtype);
    let mut scaled = flat.cast(wide) * factor.cast(wide);
    if policy == NonFinite::Zero {
        // Zero times infinity is none.
        let coef = measured.coefs.clone().narrow(0, segment, 1);
        let norm = measured.norms.clone().narrow(0, segment, 1);
        let bad = norm.is_finite().bool_not().bool_or(coef.is_nan()).to_device(&device);
        scaled = scaled.mask_fill(bad.expand([gradient.count]), 0.0);
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
