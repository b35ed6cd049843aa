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
    self, ClipPrimitives, ClippedPrimitives, GradientShape, NormOutputs, RECORD_WORDS, STATS_WORDS,
    StatePrimitives, TableCache,
};
use crate::resolved_clip::{ClipKind, ResolvedClip};

/// A tensor of Burn's wgpu runtime.
pub(crate) type WgpuPrimitive = <Wgpu as BackendTypes>::FloatTensorPrimitive;

/// A backend whose tensors the kernels can clip.
pub(crate) trait KernelBackend: BackendTypes {
    /// Returns the device of a tensor.
    fn device_of(tensor: &Self::FloatTensorPrimitive) -> CubeDevice;

    /// Queues a clip of tensors that are all on one device. `shapes` holds one shape per gradient.
    fn clip(
        inputs: ClipPrimitives<Self::FloatTensorPrimitive>,
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
        inputs: ClipPrimitives<CubeTensor>,
        shapes: Vec<GradientShape>,
        clip: Arc<ResolvedClip>,
        cache: TableCache,
    ) -> ClippedPrimitives<CubeTensor> {
        device::clip(inputs, &shapes, &clip, &cache)
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
        inputs: ClipPrimitives<FusionTensor<B::FusionRuntime>>,
        shapes: Vec<GradientShape>,
        clip: Arc<ResolvedClip>,
        cache: TableCache,
    ) -> ClippedPrimitives<FusionTensor<B::FusionRuntime>> {
        let ClipPrimitives { gradients, parameters, supplied, state } = inputs;
        let Some(client) = gradients.first().map(|first| first.client.clone()) else {
            return ClippedPrimitives { gradients, outputs: None };
        };
        let into_ir = |tensor: Option<FusionTensor<_>>| tensor.map(FusionTensor::into_ir);
        let inputs = ClipPrimitives {
            gradients: gradients.into_iter().map(FusionTensor::into_ir).collect(),
            parameters: parameters.into_iter().map(FusionTensor::into_ir).collect(),
            supplied: into_ir(supplied),
            state: state.map(FusionTensor::into_ir),
        };
        let count = inputs.gradients.len();
        let like = |input: &TensorIr| {
            TensorIr::uninit(client.create_empty_handle(), input.shape.clone(), input.dtype)
        };
        let mut outputs: Vec<_> = inputs.gradients.iter().map(like).collect();
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
            outputs.extend(inputs.state.all().map(like));
            if inputs.state.norm_params.is_some() {
                outputs.push(TensorIr::uninit(client.create_empty_handle(), Shape::from([1]), DType::F32));
            }
        }
        let all_inputs: Vec<_> = inputs.all().cloned().collect();
        let has_stats = matches!(clip.kind, ClipKind::Norm(norm) if norm.tensor_stats);
        // Which state there is.
        let has_state = inputs.state.as_ref().map(|_| ());
        let operation = ClipOperation::<B> {
            inputs,
            outputs: outputs.iter().map(|output| output.id).collect(),
            shapes,
            clip,
            cache,
            backend: PhantomData,
        };
        let ir = OperationIr::Custom(CustomOpIr::new("gradclip", &all_inputs, &outputs));
        let mut tensors = client.register(StreamId::current(), ir, operation).into_iter();
        let gradients = tensors.by_ref().take(count).collect();
        let outputs = match [tensors.next(), tensors.next(), tensors.next()] {
            [Some(norms), Some(factors), Some(records)] => {
                let stats = has_stats.then(|| tensors.next()).flatten();
                let mut next = |exists: Option<()>| exists.and_then(|()| tensors.next());
                let state = StatePrimitives {
                    histories: next(has_state.histories),
                    norm_windows: next(has_state.norm_windows),
                    step_counts: next(has_state.step_counts),
                    norm_params: next(has_state.norm_params),
                };
                let loss_scale = next(has_state.norm_params);
                Some(NormOutputs { norms, factors, records, stats, state, loss_scale })
            }
            _ => None,
        };
        ClippedPrimitives { gradients, outputs }
    }
}

/// A clip in Burn's stream of operations.
struct ClipOperation<B> {
    inputs: ClipPrimitives<TensorIr>,
    /// The gradients, followed by the outputs of a clip by norm.
    outputs: Vec<TensorId>,
    shapes: Vec<GradientShape>,
    clip: Arc<ResolvedClip>,
    cache: TableCache,
    backend: PhantomData<fn() -> B>,
}

impl<B> fmt::Debug for ClipOperation<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClipOperation({} gradients)", self.inputs.gradients.len())
    }
}

impl<B> Operation<B::FusionRuntime> for ClipOperation<B>
where
    B: FusionBackend + BackendTypes<FloatTensorPrimitive = CubeTensor, IntTensorPrimitive = CubeTensor>,
{
    fn execute(&self, handles: &mut HandleContainer<B::Handle>) -> Result<(), ExecutionError> {
        let ClipPrimitives { gradients, parameters, supplied, state } = &self.inputs;
        let (gradient_ids, output_ids) = self.outputs.split_at(gradients.len());
        let inputs = ClipPrimitives {
            gradients: gradients.iter().map(|input| handles.get_float_tensor::<B>(input)).collect(),
            parameters: parameters.iter().map(|input| handles.get_float_tensor::<B>(input)).collect(),
            supplied: supplied.as_ref().map(|input| handles.get_float_tensor::<B>(input)),
            state: state.as_ref().map(|input| handles.get_int_tensor::<B>(input)),
        };
        let ClippedPrimitives { gradients, outputs } =
            device::clip(inputs, &self.shapes, &self.clip, &self.cache);
        for (id, gradient) in gradient_ids.iter().zip(gradients) {
            handles.register_float_tensor::<B>(id, gradient);
        }
        if let (Some(outputs), [norms, factors, words @ ..]) = (outputs, output_ids) {
            handles.register_float_tensor::<B>(norms, outputs.norms);
            handles.register_float_tensor::<B>(factors, outputs.factors);
            let StatePrimitives { histories, norm_windows, step_counts, norm_params } = outputs.state;
            let state = [histories, norm_windows, step_counts, norm_params];
            let tensors = [Some(outputs.records), outputs.stats].into_iter().chain(state).flatten();
            let mut ids = words.iter();
            for (tensor, id) in tensors.zip(&mut ids) {
                handles.register_int_tensor::<B>(id, tensor);
            }
            if let (Some(id), Some(scale)) = (ids.next(), outputs.loss_scale) {
                handles.register_float_tensor::<B>(id, scale);
            }
        }
        Ok(())
    }
}
