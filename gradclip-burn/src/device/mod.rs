//! Launches the kernels through the CubeCL client of the tensors, in the same stream as Burn's operations. CubeCL may
//! share the memory of a gradient with other tensors, and may move it.

mod cubecl_kernel;
mod layout;
mod tables;

use std::sync::LazyLock;

use burn::cubecl::CubeCount;
use burn::cubecl::client::Client;
use burn::cubecl::ir::attributes::BufferIOAttr;
use burn::cubecl::server::{Handle, KernelArguments};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use gradclip::kernels::tables::fold_grid;
use gradclip::kernels::{
    Alignment, BindingType, Buffer, FIRST_SLOT, Kernel, Output, Reduction, Slots, TileFormat, WORKGROUP_SIZE,
    slot_count,
};
use gradclip::operation::{ByNorm, Scope};
use gradclip::stats::TensorStats;
use gradclip::{ClipRecord, NormType};

pub(crate) use layout::GradientShape;
pub(crate) use tables::TableCache;

use crate::gradients::Split;
use crate::resolved_clip::{ClipKind, ResolvedClip};
use cubecl_kernel::GradclipKernel;
use tables::{DeviceBatch, DeviceTiles, ParameterTables, Tables};

/// The tensors that a clip takes, as primitives of any backend.
pub(crate) struct ClipPrimitives<P> {
    pub(crate) gradients: Vec<P>,
    /// The parameter of each gradient, for adaptive gradient clipping. Empty for other clips.
    pub(crate) parameters: Vec<P>,
    /// The norm of a clip by supplied norm, f32.
    pub(crate) supplied: Option<P>,
    pub(crate) state: StatePrimitives<P>,
}

impl<P> ClipPrimitives<P> {
    /// Iterates over all tensors.
    pub(crate) fn all(&self) -> impl Iterator<Item = &P> {
        self.gradients.iter().chain(&self.parameters).chain(&self.supplied).chain(self.state.all())
    }
}

/// The state of a clip, as words; one value per segment.
#[derive(Default)]
pub(crate) struct StatePrimitives<P> {
    /// The [`NormHistory`](gradclip::stats::NormHistory) of each segment of a z-clip.
    pub(crate) histories: Option<P>,
    /// The [`NormWindow`](gradclip::stats::NormWindow) of each segment of an auto-clip.
    pub(crate) norm_windows: Option<P>,
    /// The [`StepCounts`](gradclip::stats::StepCounts) of each segment, if the clip counts steps.
    pub(crate) step_counts: Option<P>,
    /// The [`NormParams`](gradclip::kernels::tables::NormParams) of a clip with a dynamic loss scale.
    pub(crate) norm_params: Option<P>,
}

impl<P> StatePrimitives<P> {
    /// Iterates over the tensors that the clip has.
    pub(crate) fn all(&self) -> impl Iterator<Item = &P> {
        let Self { histories, norm_windows, step_counts, norm_params } = self;
        histories.iter().chain(norm_windows).chain(step_counts).chain(norm_params)
    }

    /// Converts each tensor.
    pub(crate) fn map<Q>(self, mut convert: impl FnMut(P) -> Q) -> StatePrimitives<Q> {
        let Self { histories, norm_windows, step_counts, norm_params } = self;
        StatePrimitives {
            histories: histories.map(&mut convert),
            norm_windows: norm_windows.map(&mut convert),
            step_counts: step_counts.map(&mut convert),
            norm_params: norm_params.map(&mut convert),
        }
    }

    /// Borrows each tensor.
    pub(crate) fn as_ref(&self) -> StatePrimitives<&P> {
        let Self { histories, norm_windows, step_counts, norm_params } = self;
        StatePrimitives {
            histories: histories.as_ref(),
            norm_windows: norm_windows.as_ref(),
            step_counts: step_counts.as_ref(),
            norm_params: norm_params.as_ref(),
        }
    }
}

/// The result of a clip, for primitives of any backend.
pub(crate) struct ClippedPrimitives<P> {
    pub(crate) gradients: Vec<P>,
    /// The outputs of a clip by norm; `None` otherwise.
    pub(crate) outputs: Option<NormOutputs<P>>,
}

/// The outputs of the norm kernels.
pub(crate) struct NormOutputs<P> {
    /// The norm of each segment, f32.
    pub(crate) norms: P,
    /// The factor of each segment, f32.
    pub(crate) factors: P,
    /// The record of each segment, as words.
    pub(crate) records: P,
    /// The statistics of each gradient, as words, if the clip measures them.
    pub(crate) stats: Option<P>,
    /// The state after the clip.
    pub(crate) state: StatePrimitives<P>,
    /// The dynamic loss scale after the clip, f32. It shares the memory of the [`NormParams`] in the state.
    ///
    /// [`NormParams`]: gradclip::kernels::tables::NormParams
    pub(crate) loss_scale: Option<P>,
}

/// The maximum number of gradients in one dispatch. A larger number would lengthen the `switch` among slots and save
/// few dispatches.
const MAX_SLOTS: usize = 32;

/// The minimum size of a buffer: an empty one cannot be bound.
const MIN_BYTES: usize = 16;

/// The length of a record, in words.
pub(crate) const RECORD_WORDS: usize = size_of::<ClipRecord>() / 4;

/// The length of the statistics of a gradient, in words.
pub(crate) const STATS_WORDS: usize = size_of::<TensorStats>() / 4;

/// The maximum number of bindings of a finalize kernel.
static FINALIZE_BINDINGS: LazyLock<usize> = LazyLock::new(|| {
    let reduction = Reduction::new(NormType::L2, false);
    finalize(reduction, Output::RecordAndFactor).bindings().len()
});

/// Returns whether the kernels run on a device: CubeCL compiles WGSL for it, and its limits are high enough.
pub(crate) fn runs_kernels(device: &CubeDevice) -> bool {
    // With Burn's feature `vulkan` or `metal`, CubeCL compiles to SPIR-V or MSL on devices that support it.
    matches!(device, CubeDevice::Wgpu(_)) && {
        let client = device.client();
        let hardware = &client.properties().hardware;
        client.name() == "wgpu<wgsl>"
            && hardware.max_units_per_cube >= WORKGROUP_SIZE
            && max_slots(&client) > 0
    }
}

/// Returns the maximum number of slots of a kernel on a device, or 0 if the device allows too few bindings.
fn max_slots(client: &Client) -> usize {
    let bindings = client.properties().hardware.max_bindings as usize;
    if bindings < *FINALIZE_BINDINGS { 0 } else { MAX_SLOTS.min(bindings - FIRST_SLOT as usize) }
}

fn finalize(reduction: Reduction, output: Output) -> Kernel {
    Kernel::Finalize { reduction, output, banks: 1, wide: false, resets: false }
}

/// Clips gradients that are all on one device, without waiting for it. `shapes` holds one shape per gradient, followed
/// by one per parameter.
pub(crate) fn clip(
    inputs: ClipPrimitives<CubeTensor>,
    shapes: &[GradientShape],
    clip: &ResolvedClip,
    cache: &TableCache,
) -> ClippedPrimitives<CubeTensor> {
    let ClipPrimitives { gradients, parameters, supplied, state } = inputs;
    let Some((client, device)) = gradients.first().map(|first| (first.client.clone(), first.device.clone()))
    else {
        return ClippedPrimitives { gradients, outputs: None };
    };
    let segmented = clip.segments() > 1;
    let max_slots = max_slots(&client);
    let tables = cache.get(&client, &device, shapes, clip, max_slots);
    let launcher = Launcher { client: &client, device: &device, tables: &tables, max_slots };
    // In sequence: if two gradients share a buffer, the first is copied, which leaves the second as the only user.
    let make_ready = if clip.writes_gradients() { into_writable } else { into_dense };
    // Rows and columns must be in order; other elements may be in any.
    let in_order = |(tensor, shape): (CubeTensor, &GradientShape)| match shape.split {
        Split::Whole => tensor,
        Split::Rows(_) | Split::Columns(_) => into_contiguous(tensor),
    };
    let count = gradients.len();
    let mut gradients: Vec<_> = gradients.into_iter().zip(shapes).map(in_order).map(make_ready).collect();
    let shapes_of_parameters = &shapes[count..];
    gradients.extend(parameters.into_iter().zip(shapes_of_parameters).map(in_order).map(into_dense));
    let outputs = match clip.kind {
        ClipKind::Norm(norm) => {
            let outputs = launcher.norm_pass(&gradients, count, supplied, state, &norm, clip.segments());
            if clip.writes_gradients() {
                launcher.elementwise_pass(
                    &gradients,
                    |_| &outputs.records.handle,
                    |&DeviceBatch { format, has_columns, .. }, slots| {
                        if has_columns {
                            Kernel::ScaleColumns { format, slots }
                        } else {
                            Kernel::Scale { segmented, format, slots }
                        }
                    },
                );
            }
            Some(outputs)
        }
        ClipKind::Clamp { inverse_scale } => {
            launcher.elementwise_pass(
                &gradients,
                |format| tables.limits.of(format.dtype),
                |&DeviceBatch { format, .. }, slots| match inverse_scale {
                    None => Kernel::Clamp { segmented, format, slots },
                    Some(_) => Kernel::UnscaleClamp { segmented, format, slots },
                },
            );
            None
        }
    };
    gradients.truncate(count);
    ClippedPrimitives { gradients, outputs }
}

/// Returns a gradient that can be written in place: the same tensor, or a copy if another tensor shares its memory.
fn into_writable(gradient: CubeTensor) -> CubeTensor {
    let gradient = into_dense(gradient);
    if gradient.can_mut() { gradient } else { into_dense(gradient.copy()) }
}

/// Returns a gradient whose elements are adjacent in memory, in any order: the same tensor, or a contiguous copy.
fn into_dense(gradient: CubeTensor) -> CubeTensor {
    if !gradient.meta.is_tiled() && is_dense(gradient.meta.shape(), gradient.meta.strides()) {
        gradient
    } else {
        into_contiguous(gradient)
    }
}

/// Returns whether the strides are those of a contiguous tensor with permuted dimensions.
fn is_dense(shape: &[usize], strides: &[usize]) -> bool {
    let mut dimensions: Vec<_> =
        strides.iter().zip(shape).filter(|&(_, &length)| length != 1).map(|(&s, &l)| (s, l)).collect();
    dimensions.sort_unstable();
    let mut dense_stride = 1;
    dimensions.into_iter().all(|(stride, length)| {
        let fits = stride == dense_stride;
        dense_stride *= length;
        fits
    })
}

/// Launches the kernels of one clip.
struct Launcher<'a> {
    client: &'a Client,
    device: &'a CubeDevice,
    tables: &'a Tables,
    max_slots: usize,
}

impl Launcher<'_> {
    /// Launches the kernels that compute partials, records and statistics. `tensors` holds `count` gradients, followed
    /// by their parameters for adaptive gradient clipping.
    fn norm_pass(
        &self,
        tensors: &[CubeTensor],
        count: usize,
        supplied: Option<CubeTensor>,
        state: StatePrimitives<CubeTensor>,
        norm: &ByNorm,
        segments: usize,
    ) -> NormOutputs<CubeTensor> {
        let tables = self.tables;
        let reduction = Reduction::new(norm.norm_type, norm.tensor_stats);
        let norms = self.output(segments, DType::F32);
        let factors = self.output(segments, DType::F32);
        let records = self.output(segments * RECORD_WORDS, DType::U32);
        let partials = match &supplied {
            Some(_) => self.client.empty(MIN_BYTES),
            None => self.partials(tensors, reduction),
        };
        let supplied = supplied.map(into_contiguous);
        // The state may come from another thread, which has a stream of its own. CubeCL orders the streams by the stream
        // that created a buffer, so a buffer of another stream is not updated in place.
        let in_this_stream = |state: CubeTensor| {
            let is_here = state.handle.stream == records.handle.stream;
            if is_here { into_writable(state) } else { into_dense(state.copy()) }
        };
        let state = state.map(in_this_stream);
        let StatePrimitives { histories, norm_windows, step_counts, norm_params } = &state;
        let bound = |buffer| match buffer {
            Buffer::Bank(_) => Some(&partials),
            Buffer::NormParams => match norm_params {
                Some(dynamic) => Some(&dynamic.handle),
                None => tables.norm_params.as_ref(),
            },
            Buffer::GradientOfPartial => Some(&tables.gradient_of_partial),
            Buffer::Segments => Some(tables.limits.of(gradclip::DType::F32)),
            Buffer::Records => Some(&records.handle),
            Buffer::Norms => Some(&norms.handle),
            Buffer::Factors => Some(&factors.handle),
            Buffer::SuppliedNorm => supplied.as_ref().map(|tensor| &tensor.handle),
            Buffer::Histories => histories.as_ref().map(|tensor| &tensor.handle),
            Buffer::NormWindows => norm_windows.as_ref().map(|tensor| &tensor.handle),
            Buffer::StepCounts => step_counts.as_ref().map(|tensor| &tensor.handle),
            _ => None,
        };
        let input = |buffer| bound(buffer).unwrap_or_else(|| unreachable!("no stage binds {buffer:?}"));
        let per_segment =
            |kernel: Kernel| self.launch(kernel, segments.div_ceil(WORKGROUP_SIZE as usize), input);

        // A stage that changes the records comes before the copy of their norms and factors.
        let reads_parameters = matches!(norm.scope, Scope::Parameter { .. });
        let follows_norms = histories.is_some() || norm_windows.is_some();
        let changes_records =
            supplied.is_some() || reads_parameters || follows_norms || norm.skip_above.is_some();
        if supplied.is_some() {
            per_segment(Kernel::SuppliedNorm);
        } else {
            let output = if changes_records { Output::Record } else { Output::RecordAndFactor };
            self.launch(finalize(reduction, output), segments, input);
        }
        // Before a stage that updates the loss scale.
        let stats = norm.tensor_stats.then(|| {
            let stats = self.output(count * STATS_WORDS, DType::U32);
            self.launch(finalize(reduction, Output::TensorStats), count, |buffer| match buffer {
                Buffer::Segments => &tables.gradients,
                Buffer::TensorStats => &stats.handle,
                buffer => input(buffer),
            });
            stats
        });
        if let Some(ParameterTables { segments: table, norm_params }) =
            tables.parameters.as_ref().filter(|_| reads_parameters)
        {
            let parameter_records = self.client.empty(segments * size_of::<ClipRecord>());
            self.launch(finalize(reduction, Output::Record), segments, |buffer| match buffer {
                Buffer::NormParams => norm_params,
                Buffer::Segments => table,
                Buffer::Records => &parameter_records,
                buffer => input(buffer),
            });
            self.launch(Kernel::Agc, segments.div_ceil(WORKGROUP_SIZE as usize), |buffer| match buffer {
                Buffer::ParameterRecords => &parameter_records,
                buffer => input(buffer),
            });
        }
        if histories.is_some() {
            per_segment(Kernel::ZClip);
        }
        if norm_windows.is_some() {
            self.launch(Kernel::AutoClip, segments, input);
        }
        match (step_counts, norm_params) {
            (Some(_), None) => per_segment(Kernel::Conclude),
            // A single workgroup knows when all records are concluded, to update the loss scale.
            (Some(_), Some(_)) => self.launch(Kernel::Conclude, 1, input),
            (None, _) => {}
        }
        if changes_records {
            per_segment(Kernel::NormsAndFactors);
        }
        let loss_scale = norm_params.as_ref().map(|params| self.first_as_f32(params));
        NormOutputs { norms, factors, records, stats, state, loss_scale }
    }

    /// Launches the kernels that reduce the tiles of gradients to partials. Returns these.
    fn partials(&self, gradients: &[CubeTensor], reduction: Reduction) -> Handle {
        let partials = self.client.empty((self.tables.partials * reduction.partial_bytes()).max(MIN_BYTES));
        for batch in &self.tables.batches {
            let format = if reduction.loads_vectors() {
                batch.format
            } else {
                TileFormat { alignment: Alignment::Element, ..batch.format }
            };
            let slots = self.slots(batch);
            let kernel = if batch.has_columns {
                Kernel::PartialsColumns { reduction, dtype: format.dtype, slots }
            } else {
                Kernel::Partials { reduction, format, slots }
            };
            self.launch_batch(kernel, batch, gradients, &batch.norm_tiles, &partials);
        }
        partials
    }

    /// Launches the kernels that scale or clamp the gradients in place. `parameters` returns the records or the bounds
    /// for a format.
    ///
    /// The batches run in reverse order, because the cache may still hold the gradients that the norm pass read last.
    fn elementwise_pass<'a>(
        &self,
        gradients: &[CubeTensor],
        parameters: impl Fn(TileFormat) -> &'a Handle,
        kernel: impl Fn(&DeviceBatch, Slots) -> Kernel,
    ) {
        for batch in self.tables.batches.iter().rev().filter(|batch| !batch.is_parameters) {
            let kernel = kernel(batch, self.slots(batch));
            self.launch_batch(kernel, batch, gradients, &batch.elementwise_tiles, parameters(batch.format));
        }
    }

    fn slots(&self, batch: &DeviceBatch) -> Slots {
        Slots::Separate(slot_count(batch.slots.len(), self.max_slots))
    }

    /// Launches a kernel with one gradient per slot. `other` is the buffer that it binds besides the tiles and the
    /// gradients.
    fn launch_batch(
        &self,
        kernel: Kernel,
        batch: &DeviceBatch,
        gradients: &[CubeTensor],
        tiles: &DeviceTiles,
        other: &Handle,
    ) {
        self.launch(kernel, tiles.count, |buffer| match buffer {
            Buffer::Tiles | Buffer::ColumnTiles => &tiles.table,
            // A kernel may have more slots than the batch has gradients. No tile refers to the extra slots, but each
            // must be bound.
            Buffer::Slot(slot) => &gradients[batch.slots[slot.min(batch.slots.len() - 1)]].handle,
            Buffer::Partials | Buffer::Records | Buffer::Bounds | Buffer::UnscaledBounds => other,
            buffer => unreachable!("no kernel with slots binds {buffer:?}"),
        });
    }

    /// Launches a kernel. `buffer` returns the buffer of each binding.
    fn launch<'a>(&self, kernel: Kernel, workgroups: usize, buffer: impl Fn(Buffer) -> &'a Handle) {
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

    /// Returns the first word of a tensor of words as an f32 in the same memory.
    fn first_as_f32(&self, words: &CubeTensor) -> CubeTensor {
        let others = words.handle.size_in_used().saturating_sub(4);
        CubeTensor::new_contiguous(
            self.client.clone(),
            self.device.clone(),
            Shape::from([1]),
            words.handle.clone().offset_end(others),
            DType::F32,
        )
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
        assert!(is_dense(&[1, 5, 1], &[77, 1, 0]), "the stride of a dimension of length 1 is not used");
        assert!(is_dense(&[], &[]), "a scalar");
        assert!(!is_dense(&[2, 3], &[4, 1]), "padded rows");
        assert!(!is_dense(&[4, 3], &[0, 1]), "a broadcast");
        assert!(!is_dense(&[4], &[2]), "every second element");
    }

    fn reductions() -> impl Iterator<Item = Reduction> {
        let norm_types = [NormType::L1, NormType::L2, NormType::Inf, NormType::P(3.0)];
        norm_types.into_iter().flat_map(|norm| [false, true].map(|counted| Reduction::new(norm, counted)))
    }

    fn buffers(kernel: Kernel) -> Vec<Buffer> {
        kernel.bindings().into_iter().map(|binding| binding.buffer).collect()
    }

    /// A launch panics on CubeCL's thread if a kernel binds a buffer that the launch does not supply.
    #[test]
    fn a_launch_has_every_buffer_that_its_kernel_binds() {
        for reduction in reductions() {
            for output in [Output::Record, Output::RecordAndFactor, Output::TensorStats] {
                let outputs: &[Buffer] = match output {
                    Output::TensorStats => &[Buffer::TensorStats],
                    Output::RecordAndFactor => &[Buffer::Records, Buffer::Norms, Buffer::Factors],
                    _ => &[Buffer::Records],
                };
                let bound = buffers(finalize(reduction, output));
                assert!(bound.len() <= *FINALIZE_BINDINGS, "{reduction:?}, {output:?}");
                assert!(outputs.iter().all(|output| bound.contains(output)), "{reduction:?}, {output:?}");
                let is_input = |buffer: &Buffer| {
                    matches!(
                        buffer,
                        Buffer::Bank(0) | Buffer::NormParams | Buffer::GradientOfPartial | Buffer::Segments
                    )
                };
                let is_known = |buffer: &Buffer| is_input(buffer) || outputs.contains(buffer);
                assert!(bound.iter().all(is_known), "{reduction:?}, {output:?}: {bound:?}");
            }
        }
        let common = [Buffer::Segments, Buffer::NormParams, Buffer::Records];
        for (kernel, other) in [
            (Kernel::SuppliedNorm, &[Buffer::SuppliedNorm][..]),
            (Kernel::ZClip, &[Buffer::Histories]),
            (Kernel::AutoClip, &[Buffer::NormWindows]),
            (Kernel::Agc, &[Buffer::ParameterRecords]),
            (Kernel::Conclude, &[Buffer::StepCounts]),
            (Kernel::NormsAndFactors, &[Buffer::Norms, Buffer::Factors]),
        ] {
            let bound = buffers(kernel);
            assert!(bound.len() <= *FINALIZE_BINDINGS, "{kernel:?}");
            assert!(
                bound.iter().all(|buffer| common.contains(buffer) || other.contains(buffer)),
                "{kernel:?}"
            );
        }
        for alignment in [Alignment::Vector, Alignment::Element] {
            for dtype in [gradclip::DType::F32, gradclip::DType::F16, gradclip::DType::BF16] {
                let format = TileFormat { alignment, dtype };
                let second = |kernel| buffers(kernel)[1];
                for segmented in [false, true] {
                    let scale = Kernel::Scale { segmented, format, slots: Slots::Separate(3) };
                    assert_eq!(second(scale), Buffer::Records);
                    let clamp = Kernel::Clamp { segmented, format, slots: Slots::Separate(3) };
                    assert_eq!(second(clamp), Buffer::Bounds);
                    let unscale_clamp = Kernel::UnscaleClamp { segmented, format, slots: Slots::Separate(3) };
                    assert_eq!(second(unscale_clamp), Buffer::UnscaledBounds);
                }
                let slots = || (0..3).map(Buffer::Slot);
                let with_columns =
                    |other| [Buffer::ColumnTiles, other].into_iter().chain(slots()).collect::<Vec<_>>();
                let scale = Kernel::ScaleColumns { format, slots: Slots::Separate(3) };
                assert_eq!(buffers(scale), with_columns(Buffer::Records));
                for reduction in reductions() {
                    let partials = Kernel::PartialsColumns { reduction, dtype, slots: Slots::Separate(3) };
                    assert_eq!(buffers(partials), with_columns(Buffer::Partials));
                }
                for reduction in reductions().filter(|r| r.loads_vectors() || alignment == Alignment::Element)
                {
                    let partials = Kernel::Partials { reduction, format, slots: Slots::Separate(3) };
                    let expected: Vec<_> =
                        [Buffer::Tiles, Buffer::Partials].into_iter().chain(slots()).collect();
                    assert_eq!(buffers(partials), expected);
                }
            }
        }
    }
}
