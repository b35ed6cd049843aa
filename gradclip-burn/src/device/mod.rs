//! Launches the kernels on Burn's own stream, by the CubeCL client of the tensors. So they run in the order of Burn's own work,
//! on memory that CubeCL shares and moves.

mod kernels;
mod layout;
mod tables;

use burn::cubecl::CubeCount;
use burn::cubecl::client::Client;
use burn::cubecl::ir::attributes::BufferIOAttr;
use burn::cubecl::server::{Handle, KernelArguments};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use gradclip::ClipRecord;
use gradclip::kernels::tables::fold_grid;
use gradclip::kernels::{
    Alignment, BindingType, Buffer, Kernel, Output, Reduction, TileFormat, WORKGROUP_SIZE, slot_count,
};
use gradclip::operation::ByNorm;
use gradclip::stats::TensorStats;

pub(crate) use layout::GradientShape;
pub(crate) use tables::Cache;

use crate::primitive::{Clipped, Measured};
use crate::task::{Method, Task};
use kernels::GradclipKernel;
use tables::{Batch, Tables};

/// The most gradients in one dispatch. More would lengthen the `switch` among slots and save few dispatches.
const MAX_SLOTS: usize = 32;

/// The length of a record and of the statistics of a gradient, in words.
pub(crate) const RECORD_WORDS: usize = size_of::<ClipRecord>() / 4;
pub(crate) const STATS_WORDS: usize = size_of::<TensorStats>() / 4;

/// Whether the kernels run on this device: whether CubeCL takes WGSL there.
pub(crate) fn takes_wgsl(device: &CubeDevice) -> bool {
    // A build with Burn's `vulkan` or `metal` feature compiles to something else, on the devices that take it.
    matches!(device, CubeDevice::Wgpu(_)) && {
        let client = device.client();
        let hardware = &client.properties().hardware;
        client.name() == "wgpu<wgsl>" && hardware.max_units_per_cube >= WORKGROUP_SIZE && slots(&client) > 0
    }
}

/// The most slots of a kernel on this device; 0 if the device is too small for the kernels.
fn slots(client: &Client) -> usize {
    let bindings = client.properties().hardware.max_bindings as usize;
    // Partials, parameters, segments, gradients, records, norms and factors.
    const FINALIZE_BINDINGS: usize = 7;
    // Tiles, and one other buffer.
    const BINDINGS_BESIDES_SLOTS: usize = 2;
    if bindings < FINALIZE_BINDINGS { 0 } else { MAX_SLOTS.min(bindings - BINDINGS_BESIDES_SLOTS) }
}

/// The type of elements, if the kernels take it.
pub(crate) fn elements_of(dtype: DType) -> Option<gradclip::DType> {
    match dtype {
        DType::F32 | DType::Flex32 => Some(gradclip::DType::F32),
        DType::F16 => Some(gradclip::DType::F16),
        DType::BF16 => Some(gradclip::DType::BF16),
        _ => None,
    }
}

/// Clips gradients of these shapes, all on one device, without a host stall.
pub(crate) fn clip(
    gradients: Vec<CubeTensor>,
    shapes: &[GradientShape],
    task: &Task,
    cache: &Cache,
) -> Clipped<CubeTensor> {
    let Some((client, device)) = gradients.first().map(|first| (first.client.clone(), first.device.clone()))
    else {
        return Clipped { gradients, measured: None };
    };
    let segmented = task.segments.len() > 1;
    let launch = Launch { client: &client, device: &device };
    let tables = cache.get(&client, &device, shapes, task, slots(&client));
    // One after the other: of two gradients that are one buffer the first becomes a copy, and the second is alone.
    let gradients: Vec<_> = gradients
        .into_iter()
        .map(|gradient| if task.writes { own(gradient) } else { dense(gradient) })
        .collect();
    let measured = match task.method {
        Method::Norm(norm) => {
            let measured = launch.measure(&gradients, &tables, &norm, task.segments.len());
            if task.writes {
                launch.map(
                    &gradients,
                    &tables,
                    |_| &measured.records.handle,
                    |format, slots| Kernel::Scale { segmented, format, slots },
                );
            }
            Some(measured)
        }
        Method::Clamp => {
            let bounds = |format: TileFormat| tables.limits.of(format.dtype);
            launch.map(&gradients, &tables, bounds, |format, slots| Kernel::Clamp {
                segmented,
                format,
                slots,
            });
            None
        }
    };
    Clipped { gradients, measured }
}

/// Returns the gradient in memory of its own, so that it can be changed in place.
fn own(gradient: CubeTensor) -> CubeTensor {
    let gradient = dense(gradient);
    if gradient.can_mut() { gradient } else { dense(gradient.copy()) }
}

/// Returns the gradient with its elements adjacent in memory, in any order.
fn dense(gradient: CubeTensor) -> CubeTensor {
    if !gradient.meta.is_tiled() && is_dense(gradient.meta.shape(), gradient.meta.strides()) {
        gradient
    } else {
        into_contiguous(gradient)
    }
}

/// Whether these strides are those of a contiguous tensor whose dimensions were permuted.
fn is_dense(shape: &[usize], strides: &[usize]) -> bool {
    let mut dimensions: Vec<_> =
        strides.iter().zip(shape).filter(|&(_, &length)| length != 1).map(|(&s, &l)| (s, l)).collect();
    dimensions.sort_unstable();
    let mut next = 1;
    dimensions.into_iter().all(|(stride, length)| {
        let fits = stride == next;
        next *= length;
        fits
    })
}

struct Launch<'a> {
    client: &'a Client,
    device: &'a CubeDevice,
}

impl Launch<'_> {
    /// The norm pass: partials, records and statistics.
    fn measure(
        &self,
        gradients: &[CubeTensor],
        tables: &Tables,
        norm: &ByNorm,
        segments: usize,
    ) -> Measured<CubeTensor> {
        let reduction = Reduction::new(norm.norm_type, norm.tensor_stats);
        let partials = self.client.empty((tables.partials * reduction.partial_bytes()).max(16));
        for batch in &tables.batches {
            let format = if reduction.loads_vectors() {
                batch.format
            } else {
                TileFormat { alignment: Alignment::Element, ..batch.format }
            };
            let slots = slot_count(batch.members.len(), slots(self.client));
            let kernel = Kernel::Partials { reduction, format, slots };
            self.dispatch_batch(kernel, batch, gradients, &batch.norm_tiles, &partials);
        }

        let norms = self.output(segments, DType::F32);
        let factors = self.output(segments, DType::F32);
        let records = self.output(segments * RECORD_WORDS, DType::U32);
        let shared = |buffer| match buffer {
            Buffer::Bank(_) => &partials,
            Buffer::NormParams => tables.norm_params.as_ref().expect("a clip by norm has parameters"),
            Buffer::GradientOfPartial => &tables.gradient_of_partial,
            buffer => unreachable!("{buffer:?} is bound by one output only"),
        };
        let finalize = |output| Kernel::Finalize { reduction, output, banks: 1, wide: false };
        self.dispatch(finalize(Output::RecordAndFactor), segments, |buffer| match buffer {
            Buffer::Segments => tables.limits.of(gradclip::DType::F32),
            Buffer::Records => &records.handle,
            Buffer::Norms => &norms.handle,
            Buffer::Factors => &factors.handle,
            buffer => shared(buffer),
        });
        let stats = norm.tensor_stats.then(|| {
            let stats = self.output(gradients.len() * STATS_WORDS, DType::U32);
            self.dispatch(finalize(Output::TensorStats), gradients.len(), |buffer| match buffer {
                Buffer::Segments => &tables.gradients,
                Buffer::TensorStats => &stats.handle,
                buffer => shared(buffer),
            });
            stats
        });
        Measured { norms, factors, records, stats }
    }

    /// The elementwise pass, in place. `other` returns the records or bounds for a format. It runs backwards: the cache may still
    /// have what the norm pass read last.
    fn map<'a>(
        &self,
        gradients: &[CubeTensor],
        tables: &Tables,
        other: impl Fn(TileFormat) -> &'a Handle,
        kernel: impl Fn(TileFormat, usize) -> Kernel,
    ) {
        for batch in tables.batches.iter().rev() {
            let kernel = kernel(batch.format, slot_count(batch.members.len(), slots(self.client)));
            self.dispatch_batch(kernel, batch, gradients, &batch.map_tiles, other(batch.format));
        }
    }

    /// Dispatches a kernel with slots, which binds one `other` buffer besides tiles and gradients.
    fn dispatch_batch(
        &self,
        kernel: Kernel,
        batch: &Batch,
        gradients: &[CubeTensor],
        tiles: &Handle,
        other: &Handle,
    ) {
        self.dispatch(kernel, batch.tiles, |buffer| match buffer {
            Buffer::Tiles => tiles,
            // No tile refers to the slots after the last member, but every slot must be bound.
            Buffer::Slot(slot) => &gradients[batch.members[slot.min(batch.members.len() - 1)]].handle,
            _ => other,
        });
    }

    /// Dispatches a kernel; `buffer` returns the buffer for each of its bindings.
    fn dispatch<'a>(&self, kernel: Kernel, workgroups: usize, buffer: impl Fn(Buffer) -> &'a Handle) {
        let arguments = kernel.bindings().into_iter().fold(KernelArguments::new(), |arguments, binding| {
            let io = match binding.ty {
                BindingType::Read | BindingType::Uniform => BufferIOAttr::ReadOnly,
                BindingType::ReadWrite => BufferIOAttr::ReadWrite,
            };
            arguments.with_buffer_io(buffer(binding.buffer).clone().binding(), io)
        });
        let [x, y] = fold_grid(workgroups, self.client.properties().hardware.max_cube_count.0);
        self.client.launch(Box::new(GradclipKernel(kernel)), CubeCount::Static(x, y, 1), arguments);
    }

    /// Allocates a tensor for a kernel to fill.
    fn output(&self, elements: usize, dtype: DType) -> CubeTensor {
        CubeTensor::new_contiguous(
            self.client.clone(),
            self.device.clone(),
            Shape::from([elements]),
            self.client.empty(elements * dtype.size()),
            dtype,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_dense_if_it_is_a_permutation_without_gaps() {
        assert!(is_dense(&[2, 3, 4], &[12, 4, 1]));
        assert!(is_dense(&[3, 2], &[1, 3]), "transposed");
        assert!(is_dense(&[1, 5, 1], &[77, 1, 0]), "a dimension of one has no stride to speak of");
        assert!(is_dense(&[], &[]), "a scalar");
        assert!(!is_dense(&[2, 3], &[4, 1]), "padded rows");
        assert!(!is_dense(&[4, 3], &[0, 1]), "a broadcast");
        assert!(!is_dense(&[4], &[2]), "every other");
    }
}
