//! Clips gradients with gradclip's kernels: passes their primitives to the backend and wraps the results in tensors.

use std::sync::Arc;

use burn::backend::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Wgpu};
use burn::tensor::{DType, Int, Tensor};

use crate::backend::{KernelBackend, WgpuPrimitive};
use crate::device::{self, ClipPrimitives, GradientShape, StatePrimitives, TableCache};
use crate::gradients::{Gradient, GradientInfo, kernel_dtype};
use crate::loss_scale::ScaleParams;
use crate::resolved_clip::ResolvedClip;
use crate::state::StateWords;

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

/// The inputs of a clip besides its gradients, on the device of the gradients.
pub(crate) struct Inputs {
    /// The norm of a clip by supplied norm.
    pub(crate) supplied: Option<Tensor<1>>,
    /// The state. The clip replaces it.
    pub(crate) state: StateWords,
}

/// Clips gradients whose [`shapes`] the kernels can clip. A clip by norm also returns its measurement.
pub(crate) fn clip(
    gradients: Vec<Gradient>,
    shapes: Vec<GradientShape>,
    clip: &Arc<ResolvedClip>,
    inputs: &mut Inputs,
    cache: &TableCache,
) -> (Vec<Gradient>, Option<KernelMeasurement>) {
    let mut infos = Vec::with_capacity(gradients.len());
    let mut primitives = Vec::with_capacity(gradients.len());
    let mut parameters = Vec::new();
    for Gradient { info, tensor, parameter } in gradients {
        infos.push(info);
        if let Some(DispatchTensorKind::Cube(BackendTensor::Float(primitive))) =
            parameter.map(|parameter| parameter.tensor.kind)
        {
            parameters.push(primitive);
        }
        // `shapes` has checked that each tensor has a primitive.
        if let DispatchTensorKind::Cube(BackendTensor::Float(primitive)) = tensor.kind {
            primitives.push(primitive);
        }
    }
    // The other inputs were made on the device of the gradients, so they have primitives, too.
    let words = |state: Option<Tensor<1, Int>>| state?.try_into_primitive::<Wgpu>().ok();
    let StateWords { histories, norm_windows, step_counts, scale_params, .. } =
        std::mem::take(&mut inputs.state);
    let (params, uploaded) = scale_params.map(|params| (params.words, params.uploaded)).unzip();
    let primitives = ClipPrimitives {
        gradients: primitives,
        parameters,
        supplied: inputs.supplied.take().and_then(|norm| norm.try_into_primitive::<Wgpu>().ok()),
        state: StatePrimitives {
            histories: words(histories),
            norm_windows: words(norm_windows),
            step_counts: words(step_counts),
            norm_params: words(params),
        },
    };
    let clipped = Wgpu::clip(primitives, shapes, clip.clone(), cache.clone());
    let gradients =
        infos.into_iter().zip(clipped.gradients).map(|(info, primitive)| from_primitive(info, primitive));
    let measurement = clipped.outputs.map(|outputs| {
        let StatePrimitives { histories, norm_windows, step_counts, norm_params } = outputs.state;
        let params = norm_params.map(Tensor::from_primitive::<Wgpu>).zip(uploaded);
        inputs.state = StateWords {
            histories: histories.map(Tensor::from_primitive::<Wgpu>),
            norm_windows: norm_windows.map(Tensor::from_primitive::<Wgpu>),
            step_counts: step_counts.map(Tensor::from_primitive::<Wgpu>),
            scale_params: params.map(|(words, uploaded)| ScaleParams { words, uploaded }),
            loss_scale: outputs.loss_scale.map(Tensor::from_primitive::<Wgpu>),
        };
        KernelMeasurement {
            norms: Tensor::from_primitive::<Wgpu>(outputs.norms),
            factors: Tensor::from_primitive::<Wgpu>(outputs.factors),
            records: Tensor::from_primitive::<Wgpu>(outputs.records),
            stats: outputs.stats.map(Tensor::from_primitive::<Wgpu>),
        }
    });
    (gradients.collect(), measurement)
}

/// Returns the shapes of the gradients, followed by those of the parameters that the clip reads, if the kernels can
/// clip them: all are on one device that runs the kernels, and have supported element types.
pub(crate) fn shapes(gradients: &[Gradient], clip: &ResolvedClip) -> Option<Vec<GradientShape>> {
    let device = Wgpu::device_of(primitive(&gradients.first()?.tensor)?);
    if !device::runs_kernels(&device) {
        return None;
    }
    let shape = |tensor: &DispatchTensor, dtype: DType, info: &GradientInfo, segment: usize| {
        let is_here = Wgpu::device_of(primitive(tensor)?) == device;
        let dtype = kernel_dtype(dtype).filter(|_| is_here)?;
        let GradientInfo { count, split, .. } = *info;
        Some(GradientShape { count, dtype, segment, split, is_parameter: false })
    };
    let all = || gradients.iter().zip(&clip.segments_of);
    let of_gradients = all()
        .map(|(Gradient { info, tensor, .. }, segments)| shape(tensor, info.dtype, info, segments.start));
    let of_parameters = all().filter_map(|(gradient, segments)| {
        let parameter = gradient.parameter.as_ref()?;
        // The segments of the parameters follow those of the gradients.
        let segment = clip.segments() + segments.start;
        let shape = shape(&parameter.tensor, parameter.dtype, &gradient.info, segment);
        Some(shape.map(|shape| GradientShape { is_parameter: true, ..shape }))
    });
    of_gradients.chain(of_parameters).collect()
}

/// Returns the primitive of a tensor that belongs to Burn's wgpu runtime and is not tracked by autodiff.
fn primitive(tensor: &DispatchTensor) -> Option<&WgpuPrimitive> {
    match tensor {
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
    Gradient { info, tensor, parameter: None }
}
