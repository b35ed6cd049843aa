//! The same clip in Burn's own tensor operations, for the devices that the kernels do not run on: the CPU, CUDA, wgpu where
//! it compiles to something else than WGSL, and gradients on several devices.

use burn::tensor::{DType, Device, Int, Tensor};
use gradclip::NonFinite;

use crate::device::Norm;
use crate::gradients::Gradient;
use crate::task::{Method, Task};

/// What a clip by norm has measured. All f32, on the device of the first gradient.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Of each group.
    pub(crate) norms: Tensor<1>,
    pub(crate) coefs: Tensor<1>,
    pub(crate) factors: Tensor<1>,
    /// Of each gradient.
    pub(crate) gradient_norms: Tensor<1>,
    pub(crate) gradient_maxima: Tensor<1>,
    /// Of each gradient, how many of its elements are not finite and how many are zero; if that is wanted.
    pub(crate) counts: Option<[Tensor<1, Int>; 2]>,
}

/// Clips these, in this order of groups.
pub(crate) fn clip(
    gradients: Vec<Gradient>,
    group_of: &[usize],
    task: &Task,
) -> (Vec<Gradient>, Option<Measured>) {
    match task.method {
        Method::Norm(norm) => {
            let Some(device) = gradients.first().map(|first| first.flat().device()) else {
                return (gradients, None);
            };
            let measured = measure(&gradients, group_of, norm, task, &device);
            let gradients = if task.writes {
                let each = gradients.into_iter().zip(group_of);
                each.map(|(gradient, &group)| scale(gradient, &measured, group, task)).collect()
            } else {
                gradients
            };
            (gradients, Some(measured))
        }
        Method::Clamp => {
            let each = gradients.into_iter().zip(group_of);
            (each.map(|(gradient, &group)| clamp(gradient, task.groups[group])).collect(), None)
        }
    }
}

fn measure(gradients: &[Gradient], group_of: &[usize], norm: Norm, task: &Task, device: &Device) -> Measured {
    let mut norms = Vec::new();
    let mut maxima = Vec::new();
    let mut non_finite = Vec::new();
    let mut zeros = Vec::new();
    for gradient in gradients {
        let flat = gradient.flat().cast(wide(gradient.dtype));
        if task.tensor_stats {
            let count = |mask: Tensor<1, burn::tensor::Bool>| mask.int().sum().to_device(device);
            non_finite.push(count(flat.clone().is_finite().bool_not()));
            zeros.push(count(flat.clone().equal_scalar(0.0)));
        }
        let [own, largest] = norm_of(flat.abs(), norm);
        norms.push(own.cast(DType::F32).to_device(device));
        maxima.push(largest.cast(DType::F32).to_device(device));
    }
    let joined = (0..task.groups.len())
        .map(|group| {
            let members: Vec<_> = group_of
                .iter()
                .zip(&norms)
                .filter(|(of, _)| **of == group)
                .map(|(_, norm)| norm.clone())
                .collect();
            if members.is_empty() {
                Tensor::zeros([1], (device, DType::F32))
            } else {
                let [joined, _] = norm_of(Tensor::cat(members, 0), norm);
                joined
            }
        })
        .collect();
    let norms_of_groups = Tensor::cat(joined, 0).mul_scalar(task.inverse_scale);
    let limits: Vec<f32> = task.groups.iter().map(|bounds| bounds[1]).collect();
    let limits = Tensor::<1>::from_data(limits.as_slice(), (device, DType::F32));

    // min(limit · (1 / (norm + epsilon)), 1), where a NaN stays one.
    let sum = norms_of_groups.clone().add_scalar(task.epsilon);
    let coefs = limits.clone() * sum.clone().recip();
    let nothing_to_divide_by = sum.lower_elem(f32::MIN_POSITIVE).bool_and(limits.is_nan().bool_not());
    let coefs = coefs.clone().mask_fill(coefs.greater_elem(1.0).bool_or(nothing_to_divide_by), 1.0);

    let bad = norms_of_groups.clone().is_finite().bool_not().bool_or(coefs.clone().is_nan());
    let factors = coefs.clone().mul_scalar(task.inverse_scale);
    let factors = match task.non_finite {
        NonFinite::Propagate => factors,
        NonFinite::Skip | NonFinite::Error => factors.mask_fill(bad, 1.0),
        NonFinite::Zero => factors.mask_fill(bad, 0.0),
        NonFinite::Poison => factors.mask_fill(bad, f32::NAN),
    };
    Measured {
        norms: norms_of_groups,
        coefs,
        factors,
        gradient_norms: Tensor::cat(norms, 0).mul_scalar(task.inverse_scale),
        gradient_maxima: Tensor::cat(maxima, 0).mul_scalar(task.inverse_scale),
        counts: task.tensor_stats.then(|| [Tensor::cat(non_finite, 0), Tensor::cat(zeros, 0)]),
    }
}

/// The norm of these magnitudes, and the largest of them. Powers of f32 may leave its range; those of ratios to the largest
/// do not.
fn norm_of(magnitudes: Tensor<1>, norm: Norm) -> [Tensor<1>; 2] {
    if magnitudes.shape().num_elements() == 0 {
        let zero = Tensor::zeros([1], (&magnitudes.device(), magnitudes.dtype()));
        return [zero.clone(), zero];
    }
    let nan = magnitudes.clone().is_nan().any();
    let largest = magnitudes.clone().max().mask_fill(nan, f32::NAN);
    let plain = largest.clone().is_finite().bool_and(largest.clone().greater_elem(0.0));
    let unit = largest.clone().mask_fill(plain.bool_not(), 1.0);
    let own = match norm {
        Norm::Inf => largest.clone(),
        Norm::L1 => (magnitudes / unit.clone()).sum() * unit,
        Norm::L2 => (magnitudes / unit.clone()).square().sum().sqrt() * unit,
    };
    [own, largest]
}

/// The type to compute in.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { dtype } else { DType::F32 }
}

fn scale(gradient: Gradient, measured: &Measured, group: usize, task: &Task) -> Gradient {
    if gradient.count == 0 {
        return gradient;
    }
    let flat = gradient.flat();
    let device = flat.device();
    let factor = measured.factors.clone().narrow(0, group, 1).to_device(&device);
    let wide = wide(gradient.dtype);
    let mut scaled = flat.cast(wide) * factor.cast(wide);
    if task.non_finite == NonFinite::Zero {
        // Zero times infinity is none.
        let coef = measured.coefs.clone().narrow(0, group, 1);
        let norm = measured.norms.clone().narrow(0, group, 1);
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
