//! Clips gradients with gradclip's kernels: passes their primitives to the backend and wraps the results in tensors.

use std::sync::Arc;

use burn::backend::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Wgpu};
use burn::tensor::{Int, Tensor};

use crate::backend::{KernelBackend, WgpuPrimitive};
use crate::device::{self, GradientShape, TableCache};
use crate::gradients::{Gradient, GradientInfo};
use crate::resolved_clip::ResolvedClip;

/// The outputs of the norm kernels, on the device.
#[derive(Clone, Debug)]
pub(crate) struct KernelMeasurement {
    /// The norm of each segment.
    pub(crate) norms: Tensor<1>,
    /// The factor of each segment.
    pub(crate) factors: Tensor<1>,
    /// The record of each segment, as words.
    pub(crate) records: Tensor<1, Int>,
    /// The statistics of each gradient, as words, if the clip measures them.
    pub(crate) stats: Option<Tensor<1, Int>>,
}

/// Clips gradients. A clip by norm also returns its measurement.
///
/// # Errors
///
/// Returns the gradients unchanged if the kernels cannot clip them.
pub(crate) fn clip(
    gradients: Vec<Gradient>,
    clip: &Arc<ResolvedClip>,
    cache: &TableCache,
) -> Result<(Vec<Gradient>, Option<KernelMeasurement>), Vec<Gradient>> {
    let Some(shapes) = shapes(&gradients, &clip.segment_of) else { return Err(gradients) };
    let mut infos = Vec::with_capacity(gradients.len());
    let mut primitives = Vec::with_capacity(gradients.len());
    for Gradient { info, tensor } in gradients {
        infos.push(info);
        // `shapes` has checked that each tensor has a primitive.
        if let DispatchTensorKind::Cube(BackendTensor::Float(primitive)) = tensor.kind {
            primitives.push(primitive);
        }
    }
    let clipped = Wgpu::clip(primitives, shapes, clip.clone(), cache.clone());
    let gradients =
        infos.into_iter().zip(clipped.gradients).map(|(info, primitive)| from_primitive(info, primitive));
    let measurement = clipped.outputs.map(|outputs| KernelMeasurement {
        norms: Tensor::from_primitive::<Wgpu>(outputs.norms),
        factors: Tensor::from_primitive::<Wgpu>(outputs.factors),
        records: Tensor::from_primitive::<Wgpu>(outputs.records),
        stats: outputs.stats.map(Tensor::from_primitive::<Wgpu>),
    });
    Ok((gradients.collect(), measurement))
}

/// Returns the shapes of the gradients if the kernels can clip them: all are on one device that runs the kernels, and
/// have supported element types.
fn shapes(gradients: &[Gradient], segment_of: &[usize]) -> Option<Vec<GradientShape>> {
    let device = Wgpu::device_of(primitive(gradients.first()?)?);
    if !device::runs_kernels(&device) {
        return None;
    }
    let shapes = gradients.iter().zip(segment_of).map(|(gradient, &segment)| {
        let is_here = Wgpu::device_of(primitive(gradient)?) == device;
        let dtype = gradient.info.kernel_dtype().filter(|_| is_here)?;
        Some(GradientShape { count: gradient.info.count, dtype, segment })
    });
    shapes.collect()
}

/// Returns the primitive of a gradient if its tensor belongs to Burn's wgpu runtime and is not tracked by autodiff.
fn primitive(gradient: &Gradient) -> Option<&WgpuPrimitive> {
    match &gradient.tensor {
        DispatchTensor {
            kind: DispatchTensorKind::Cube(BackendTensor::Float(primitive)),
            autodiff: DispatchAutodiffContext::Disabled,
        } => Some(primitive),
        _ => None,
    }
}

fn from_primitive(info: GradientInfo, primitive: WgpuPrimitive) -> Gradient {
    let tensor = DispatchTensor {
        kind: DispatchTensorKind::Cube(BackendTensor::Float(primitive)),
        autodiff: DispatchAutodiffContext::Disabled,
    };
    Gradient { info, tensor }
}
