//! Gradients on their way to the kernels, and back.

use std::sync::Arc;

use burn::backend::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Wgpu};
use burn::module::ParamId;
use burn::tensor::{DType, Tensor};

use crate::clipped::Words;
use crate::device::{self, Cache, GradientShape};
use crate::gradients::{AnyRank, Gradient};
use crate::primitive::{KernelBackend, WgpuPrimitive};
use crate::task::Task;

/// Clips these, and says what was measured; or gives them back as they are, if the kernels cannot take them.
pub(crate) fn clip(
    gradients: Vec<Gradient>,
    task: &Arc<Task>,
    cache: &Cache,
) -> Result<(Vec<Gradient>, Option<Words>), Vec<Gradient>> {
    let Some(shapes) = shapes(&gradients, &task.segment_of) else { return Err(gradients) };
    let mut shells = Vec::with_capacity(gradients.len());
    let mut primitives = Vec::with_capacity(gradients.len());
    for gradient in gradients {
        let (shell, primitive) = Shell::of(gradient);
        shells.push(shell);
        primitives.extend(primitive);
    }
    let clipped = Wgpu::clip(primitives, shapes, task.clone(), cache.clone());
    let gradients =
        shells.into_iter().zip(clipped.gradients).map(|(shell, tensor)| shell.join(tensor)).collect();
    let words = clipped.measured.map(|measured| Words {
        norms: Tensor::from_primitive::<Wgpu>(measured.norms),
        factors: Tensor::from_primitive::<Wgpu>(measured.factors),
        records: Tensor::from_primitive::<Wgpu>(measured.records),
        stats: measured.stats.map(Tensor::from_primitive::<Wgpu>),
    });
    Ok((gradients, words))
}

/// What the kernels need to know of the gradients, if they can take them: all on one device, which takes WGSL.
fn shapes(gradients: &[Gradient], segment_of: &[usize]) -> Option<Vec<GradientShape>> {
    let device = Wgpu::device_of(primitive(gradients.first()?)?);
    if !device::takes_wgsl(&device) {
        return None;
    }
    let each = gradients.iter().zip(segment_of).map(|(gradient, &segment)| {
        let here = Wgpu::device_of(primitive(gradient)?) == device;
        let dtype = device::elements_of(gradient.dtype).filter(|_| here)?;
        Some(GradientShape { count: gradient.count, dtype, segment })
    });
    each.collect()
}

/// What CubeCL or Burn's fusion knows of a gradient, if it is a plain tensor of theirs.
fn primitive(gradient: &Gradient) -> Option<&WgpuPrimitive> {
    match &gradient.tensor {
        DispatchTensor {
            kind: DispatchTensorKind::Cube(BackendTensor::Float(primitive)),
            autodiff: DispatchAutodiffContext::Disabled,
        } => Some(primitive),
        _ => None,
    }
}

/// A gradient without its tensor.
struct Shell {
    parameter: ParamId,
    path: String,
    dtype: DType,
    count: usize,
    rank: &'static dyn AnyRank,
}

impl Shell {
    /// A gradient, and apart from it its tensor, where it has a [`primitive`].
    fn of(gradient: Gradient) -> (Self, Option<WgpuPrimitive>) {
        let Gradient { parameter, path, dtype, count, tensor, rank } = gradient;
        let primitive = match tensor.kind {
            DispatchTensorKind::Cube(BackendTensor::Float(primitive)) => Some(primitive),
            _ => None,
        };
        (Self { parameter, path, dtype, count, rank }, primitive)
    }

    /// The gradient with this tensor.
    fn join(self, tensor: WgpuPrimitive) -> Gradient {
        let Self { parameter, path, dtype, count, rank } = self;
        let tensor = DispatchTensor {
            kind: DispatchTensorKind::Cube(BackendTensor::Float(tensor)),
            autodiff: DispatchAutodiffContext::Disabled,
        };
        Gradient { parameter, path, dtype, count, tensor, rank }
    }
}
