//! Burn's tensors on CubeCL, plain or under fusion. Which of the two `Wgpu` means is decided by the features of the
//! application, so both are served.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::ir::{CustomOpIr, HandleContainer, OperationIr, TensorId, TensorIr};
use burn::backend::{BackendTypes, Device, TensorMetadata, Wgpu};
use burn::tensor::{DType, ExecutionError, Shape};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};
use burn_fusion::stream::{Operation, StreamId};
use burn_fusion::{Fusion, FusionBackend, FusionTensor};

use crate::device::{self, Cache, GradientShape, RECORD_WORDS, STATS_WORDS};
use crate::task::{Method, Task};

/// A tensor of Burn's wgpu runtime.
pub(crate) type WgpuPrimitive = <Wgpu as BackendTypes>::FloatTensorPrimitive;

/// What a clip returns.
pub(crate) struct Clipped<P> {
    pub(crate) gradients: Vec<P>,
    pub(crate) measured: Option<Measured<P>>,
}

/// What a clip by norm measures.
pub(crate) struct Measured<P> {
    /// The norm of each segment, and what its gradients are multiplied by, f32.
    pub(crate) norms: P,
    pub(crate) factors: P,
    /// The record of each segment, as words.
    pub(crate) records: P,
    /// The statistics of each gradient, as words, if they are wanted.
    pub(crate) stats: Option<P>,
}

/// A backend of CubeCL tensors, which kernels can clip.
pub(crate) trait KernelBackend: BackendTypes {
    fn device_of(tensor: &Self::FloatTensorPrimitive) -> CubeDevice;

    /// Clips these, which are as `shapes` say and all on one device; at some time.
    fn clip(
        gradients: Vec<Self::FloatTensorPrimitive>,
        shapes: Vec<GradientShape>,
        task: Arc<Task>,
        cache: Cache,
    ) -> Clipped<Self::FloatTensorPrimitive>;
}

impl KernelBackend for CubeBackend {
    fn device_of(tensor: &CubeTensor) -> CubeDevice {
        tensor.device.clone()
    }

    fn clip(
        gradients: Vec<CubeTensor>,
        shapes: Vec<GradientShape>,
        task: Arc<Task>,
        cache: Cache,
    ) -> Clipped<CubeTensor> {
        device::clip(gradients, &shapes, &task, &cache)
    }
}

/// Under fusion a clip is an operation of its own in the stream of them: it runs when its turn comes, and by then Burn has
/// settled who may write where.
impl<B> KernelBackend for Fusion<B>
where
    B: FusionBackend + BackendTypes<FloatTensorPrimitive = CubeTensor, IntTensorPrimitive = CubeTensor>,
{
    fn device_of(tensor: &FusionTensor<B::FusionRuntime>) -> CubeDevice {
        // The bound that they are the same type is one that Rust cannot see through.
        CubeDevice::from_id(tensor.device().to_id())
    }

    fn clip(
        gradients: Vec<FusionTensor<B::FusionRuntime>>,
        shapes: Vec<GradientShape>,
        task: Arc<Task>,
        cache: Cache,
    ) -> Clipped<FusionTensor<B::FusionRuntime>> {
        let Some(client) = gradients.first().map(|first| first.client.clone()) else {
            return Clipped { gradients, measured: None };
        };
        let inputs: Vec<_> = gradients.into_iter().map(FusionTensor::into_ir).collect();
        let count = inputs.len();
        let mut outputs: Vec<_> = inputs
            .iter()
            .map(|input| TensorIr::uninit(client.create_empty_handle(), input.shape.clone(), input.dtype))
            .collect();
        let mut vector = |elements: usize, dtype| {
            outputs.push(TensorIr::uninit(client.create_empty_handle(), Shape::from([elements]), dtype));
        };
        if let Method::Norm(norm) = task.method {
            let segments = task.segments.len();
            vector(segments, DType::F32);
            vector(segments, DType::F32);
            vector(segments * RECORD_WORDS, DType::U32);
            if norm.tensor_stats {
                vector(count * STATS_WORDS, DType::U32);
            }
        }
        let operation = ClipOperation::<B> {
            inputs: inputs.clone(),
            outputs: outputs.iter().map(|output| output.id).collect(),
            shapes,
            task,
            cache,
            backend: PhantomData,
        };
        let ir = OperationIr::Custom(CustomOpIr::new("gradclip", &inputs, &outputs));
        let mut tensors = client.register(StreamId::current(), ir, operation).into_iter();
        let gradients = tensors.by_ref().take(count).collect();
        let measured = match [tensors.next(), tensors.next(), tensors.next()] {
            [Some(norms), Some(factors), Some(records)] => {
                Some(Measured { norms, factors, records, stats: tensors.next() })
            }
            _ => None,
        };
        Clipped { gradients, measured }
    }
}

/// A clip that waits for its turn.
struct ClipOperation<B> {
    inputs: Vec<TensorIr>,
    /// The gradients, then what is measured.
    outputs: Vec<TensorId>,
    shapes: Vec<GradientShape>,
    task: Arc<Task>,
    cache: Cache,
    backend: PhantomData<fn() -> B>,
}

impl<B> std::fmt::Debug for ClipOperation<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClipOperation({} gradients)", self.inputs.len())
    }
}

impl<B> Operation<B::FusionRuntime> for ClipOperation<B>
where
    B: FusionBackend + BackendTypes<FloatTensorPrimitive = CubeTensor, IntTensorPrimitive = CubeTensor>,
{
    fn execute(&self, handles: &mut HandleContainer<B::Handle>) -> Result<(), ExecutionError> {
        let gradients = self.inputs.iter().map(|input| handles.get_float_tensor::<B>(input)).collect();
        let Clipped { gradients, measured } = device::clip(gradients, &self.shapes, &self.task, &self.cache);
        let (of_gradients, of_measured) = self.outputs.split_at(self.inputs.len());
        for (gradient, id) in gradients.into_iter().zip(of_gradients) {
            handles.register_float_tensor::<B>(id, gradient);
        }
        if let (Some(measured), [norms, factors, words @ ..]) = (measured, of_measured) {
            handles.register_float_tensor::<B>(norms, measured.norms);
            handles.register_float_tensor::<B>(factors, measured.factors);
            for (tensor, id) in [Some(measured.records), measured.stats].into_iter().flatten().zip(words) {
                handles.register_int_tensor::<B>(id, tensor);
            }
        }
        Ok(())
    }
}
