//! Runs the kernels on Burn's two wgpu backends: plain CubeCL, and CubeCL under fusion. The application's features
//! decide which of the two `Wgpu` is.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::ir::{CustomOpIr, HandleContainer, OperationIr, TensorId, TensorIr};
use burn::backend::{BackendTypes, Device, TensorMetadata, Wgpu};
use burn::tensor::{DType, ExecutionError, Shape};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use burn_fusion::stream::{Operation, StreamId};
use burn_fusion::{Fusion, FusionBackend, FusionTensor};

use crate::device::{
    self, ClippedPrimitives, GradientShape, NormOutputs, RECORD_WORDS, STATS_WORDS, TableCache,
};
use crate::resolved_clip::{ClipKind, ResolvedClip};

/// A tensor of Burn's wgpu runtime.
pub(crate) type WgpuPrimitive = <Wgpu as BackendTypes>::FloatTensorPrimitive;

/// A backend whose tensors the kernels can clip.
pub(crate) trait KernelBackend: BackendTypes {
    /// Returns the device of a tensor.
    fn device_of(tensor: &Self::FloatTensorPrimitive) -> CubeDevice;

    /// Queues a clip of gradients that are all on one device. `shapes` holds one shape per gradient.
    fn clip(
        gradients: Vec<Self::FloatTensorPrimitive>,
        shapes: Vec<GradientShape>,
        clip: Arc<ResolvedClip>,
        cache: TableCache,
    ) -> ClippedPrimitives<Self::FloatTensorPrimitive>;
}

impl KernelBackend for CubeBackend {
    fn device_of(tensor: &CubeTensor) -> CubeDevice {
        tensor.device.clone()
    }

    fn clip(
        gradients: Vec<CubeTensor>,
        shapes: Vec<GradientShape>,
        clip: Arc<ResolvedClip>,
        cache: TableCache,
    ) -> ClippedPrimitives<CubeTensor> {
        device::clip(gradients, &shapes, &clip, &cache)
    }
}

/// Under fusion, a clip is a custom operation in Burn's stream. It runs in stream order, when Burn knows which tensors
/// share memory.
impl<B> KernelBackend for Fusion<B>
where
    B: FusionBackend + BackendTypes<FloatTensorPrimitive = CubeTensor, IntTensorPrimitive = CubeTensor>,
{
    fn device_of(tensor: &FusionTensor<B::FusionRuntime>) -> CubeDevice {
        // Both device types are the same, but the trait bounds do not say so.
        CubeDevice::from_id(tensor.device().to_id())
    }

    fn clip(
        gradients: Vec<FusionTensor<B::FusionRuntime>>,
        shapes: Vec<GradientShape>,
        clip: Arc<ResolvedClip>,
        cache: TableCache,
    ) -> ClippedPrimitives<FusionTensor<B::FusionRuntime>> {
        let Some(client) = gradients.first().map(|first| first.client.clone()) else {
            return ClippedPrimitives { gradients, outputs: None };
        };
        let inputs: Vec<_> = gradients.into_iter().map(FusionTensor::into_ir).collect();
        let count = inputs.len();
        let mut outputs: Vec<_> = inputs
            .iter()
            .map(|input| TensorIr::uninit(client.create_empty_handle(), input.shape.clone(), input.dtype))
            .collect();
        let mut add_vector = |elements: usize, dtype| {
            outputs.push(TensorIr::uninit(client.create_empty_handle(), Shape::from([elements]), dtype));
        };
        if let ClipKind::Norm(norm) = clip.kind {
            let segments = clip.segments();
            add_vector(segments, DType::F32);
            add_vector(segments, DType::F32);
            add_vector(segments * RECORD_WORDS, DType::U32);
            if norm.tensor_stats {
                add_vector(count * STATS_WORDS, DType::U32);
            }
        }
        let operation = ClipOperation::<B> {
            inputs: inputs.clone(),
            outputs: outputs.iter().map(|output| output.id).collect(),
            shapes,
            clip,
            cache,
            backend: PhantomData,
        };
        let ir = OperationIr::Custom(CustomOpIr::new("gradclip", &inputs, &outputs));
        let mut tensors = client.register(StreamId::current(), ir, operation).into_iter();
        let gradients = tensors.by_ref().take(count).collect();
        let outputs = match [tensors.next(), tensors.next(), tensors.next()] {
            [Some(norms), Some(factors), Some(records)] => {
                Some(NormOutputs { norms, factors, records, stats: tensors.next() })
            }
            _ => None,
        };
        ClippedPrimitives { gradients, outputs }
    }
}

/// A clip in Burn's stream of operations.
struct ClipOperation<B> {
    inputs: Vec<TensorIr>,
    /// The gradients, followed by the outputs of a clip by norm.
    outputs: Vec<TensorId>,
    shapes: Vec<GradientShape>,
    clip: Arc<ResolvedClip>,
    cache: TableCache,
    backend: PhantomData<fn() -> B>,
}

impl<B> fmt::Debug for ClipOperation<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClipOperation({} gradients)", self.inputs.len())
    }
}

impl<B> Operation<B::FusionRuntime> for ClipOperation<B>
where
    B: FusionBackend + BackendTypes<FloatTensorPrimitive = CubeTensor, IntTensorPrimitive = CubeTensor>,
{
    fn execute(&self, handles: &mut HandleContainer<B::Handle>) -> Result<(), ExecutionError> {
        let gradients = self.inputs.iter().map(|input| handles.get_float_tensor::<B>(input)).collect();
        let ClippedPrimitives { gradients, outputs } =
            device::clip(gradients, &self.shapes, &self.clip, &self.cache);
        let (gradient_ids, output_ids) = self.outputs.split_at(self.inputs.len());
        for (id, gradient) in gradient_ids.iter().zip(gradients) {
            handles.register_float_tensor::<B>(id, gradient);
        }
        if let (Some(outputs), [norms, factors, words @ ..]) = (outputs, output_ids) {
            handles.register_float_tensor::<B>(norms, outputs.norms);
            handles.register_float_tensor::<B>(factors, outputs.factors);
            for (id, tensor) in words.iter().zip([Some(outputs.records), outputs.stats].into_iter().flatten())
            {
                handles.register_int_tensor::<B>(id, tensor);
            }
        }
        Ok(())
    }
}
