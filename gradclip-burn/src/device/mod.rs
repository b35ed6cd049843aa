//! The kernels, launched on Burn's own stream: on tensors of CubeCL, by the client that they come from. So they stand in
//! the order of Burn's own work, on memory that CubeCL may share and move as it likes.

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
use gradclip::operation::ByNorm;
use gradclip::stats::TensorStats;
use gradclip::wgsl::{Finding, Kernel, Leaves, Manner};

pub(crate) use layout::Extent;
pub(crate) use tables::Cache;

use crate::primitive::{Clipped, Measured};
use crate::task::{Method, Task};
use gradclip::wgsl::WORKGROUP_SIZE;
use kernels::{Launchable, slots_for, stats_need_owners, to_measure};
use tables::Tables;

/// The most gradients in a dispatch: more would make the shaders' `switch` long, and save few dispatches.
const MOST_SLOTS: usize = 32;

/// The words of a record, and of the statistics of a gradient.
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

fn slots(client: &Client) -> usize {
    // Two bindings are for other things; the kernel without slots has seven.
    let bindings = client.properties().hardware.max_bindings as usize;
    if bindings < 7 { 0 } else { MOST_SLOTS.min(bindings - 2) }
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

/// Clips these gradients, which are as `extents` say and all on one device. Nothing is waited for.
pub(crate) fn clip(
    gradients: Vec<CubeTensor>,
    extents: &[Extent],
    task: &Task,
    cache: &Cache,
) -> Clipped<CubeTensor> {
    let Some((client, device)) = gradients.first().map(|first| (first.client.clone(), first.device.clone()))
    else {
        return Clipped { gradients, measured: None };
    };
    let segmented = task.segments.len() > 1;
    let launch = Launch { client: &client, device: &device };
    let tables = cache.get(&client, &device, extents, task, slots(&client));
    // One after the other: of two gradients that are one buffer the first becomes a copy, and the second is alone.
    let gradients: Vec<_> = gradients
        .into_iter()
        .map(|gradient| if task.writes { own(gradient) } else { dense(gradient) })
        .collect();
    let measured = match task.method {
        Method::Norm(norm) => {
            let measured = launch.measure(&gradients, &tables, &norm, task.segments.len());
            if task.writes {
                launch.apply(
                    &gradients,
                    &tables,
                    |_| &measured.records.handle,
                    |manner, slots| Kernel::Scale { segmented, manner, slots },
                );
            }
            Some(measured)
        }
        Method::Clamp => {
            let bounds = |manner: Manner| tables.limits.of(manner.dtype);
            launch.apply(&gradients, &tables, bounds, |manner, slots| Kernel::Clamp {
                segmented,
                manner,
                slots,
            });
            None
        }
    };
    Clipped { gradients, measured }
}

/// The gradient in memory that nobody else sees, so that it can be changed there.
fn own(gradient: CubeTensor) -> CubeTensor {
    let gradient = dense(gradient);
    if gradient.can_mut() { gradient } else { dense(gradient.copy()) }
}

/// The gradient with its elements side by side, in whatever order.
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
    fn measure(
        &self,
        gradients: &[CubeTensor],
        tables: &Tables,
        norm: &ByNorm,
        segments: usize,
    ) -> Measured<CubeTensor> {
        let finding = Finding::of(norm.norm_type, norm.tensor_stats);
        let partials = self.client.empty((tables.partials * finding.partial_bytes()).max(16));
        for batch in &tables.batches {
            let slots = slots_for(batch.members.len(), slots(self.client));
            let kernel = Kernel::Partials { finding, manner: to_measure(finding, batch.manner), slots };
            let first = [(&batch.to_partials, BufferIOAttr::ReadOnly), (&partials, BufferIOAttr::ReadWrite)];
            self.over(kernel, batch.tiles, first, gradients, &batch.members, slots, BufferIOAttr::ReadOnly);
        }

        let norms = self.output(segments, DType::F32);
        let factors = self.output(segments, DType::F32);
        let records = self.output(segments * RECORD_WORDS, DType::U32);
        let read = |handle: &Handle| (handle.clone(), BufferIOAttr::ReadOnly);
        let written = |tensor: &CubeTensor| (tensor.handle.clone(), BufferIOAttr::ReadWrite);
        self.dispatch(
            Kernel::Finalize { finding, leaves: Leaves::Record, banks: 1, wide: false },
            segments,
            [
                read(&partials),
                read(&tables.measure),
                read(tables.limits.of(gradclip::DType::F32)),
                read(&tables.owners),
                written(&records),
                written(&norms),
                written(&factors),
            ],
        );
        let stats = norm.tensor_stats.then(|| {
            let stats = self.output(gradients.len() * STATS_WORDS, DType::U32);
            let first = [read(&partials), read(&tables.measure), read(&tables.gradients)];
            let owners = stats_need_owners(finding).then(|| read(&tables.owners));
            let buffers = first.into_iter().chain(owners).chain([written(&stats)]);
            self.dispatch(
                Kernel::Finalize { finding, leaves: Leaves::Stats, banks: 1, wide: false },
                gradients.len(),
                buffers,
            );
            stats
        });
        Measured { norms, factors, records, stats }
    }

    /// Changes the gradients in place, by what stands in `by` for each segment. Backwards: what the norm pass has read last
    /// may still be in the cache.
    fn apply<'a>(
        &self,
        gradients: &[CubeTensor],
        tables: &Tables,
        by: impl Fn(Manner) -> &'a Handle,
        kernel: impl Fn(Manner, usize) -> Kernel,
    ) {
        for batch in tables.batches.iter().rev() {
            let slots = slots_for(batch.members.len(), slots(self.client));
            let first =
                [(&batch.of_segments, BufferIOAttr::ReadOnly), (by(batch.manner), BufferIOAttr::ReadOnly)];
            let kernel = kernel(batch.manner, slots);
            self.over(kernel, batch.tiles, first, gradients, &batch.members, slots, BufferIOAttr::ReadWrite);
        }
    }

    /// Dispatches a kernel with slots.
    #[expect(clippy::too_many_arguments, reason = "each is one of what a dispatch is made of")]
    fn over(
        &self,
        kernel: Kernel,
        workgroups: usize,
        first: [(&Handle, BufferIOAttr); 2],
        gradients: &[CubeTensor],
        members: &[usize],
        slots: usize,
        io: BufferIOAttr,
    ) {
        let first = first.map(|(handle, io)| (handle.clone(), io));
        // No tile names the slots beyond the members; something has to be bound there.
        let in_slots = (0..slots).map(|slot| {
            let member = members[slot.min(members.len() - 1)];
            (gradients[member].handle.clone(), io)
        });
        self.dispatch(kernel, workgroups, first.into_iter().chain(in_slots));
    }

    fn dispatch(
        &self,
        kernel: Kernel,
        workgroups: usize,
        buffers: impl IntoIterator<Item = (Handle, BufferIOAttr)>,
    ) {
        // A grid that is too long is folded into two dimensions, evenly.
        let most = self.client.properties().hardware.max_cube_count.0 as usize;
        let rows = workgroups.div_ceil(most).max(1);
        let [x, y] = [workgroups.div_ceil(rows), rows].map(|side| u32::try_from(side).unwrap_or(u32::MAX));
        let arguments = buffers.into_iter().fold(KernelArguments::new(), |arguments, (handle, io)| {
            arguments.with_buffer_io(handle.binding(), io)
        });
        self.client.launch(Box::new(Launchable(kernel)), CubeCount::Static(x, y, 1), arguments);
    }

    /// A tensor that a kernel fills.
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
