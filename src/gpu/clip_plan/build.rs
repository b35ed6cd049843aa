//! How a plan is made: its buffers, and a bind group for each of its dispatches.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use wgpu::BufferUsages;

use super::{ClipPlan, Outcome, Step};
use crate::clip::{ByNorm, Limit, Operation, Scope};
use crate::gpu::clipper::Clipper;
use crate::gpu::gradient::Span;
use crate::gpu::kernels::{Compiled, Kernel, NormKind};
use crate::gpu::layout::{self, Batch, Layout, Manner, Request, Tile};
use crate::gpu::read_back::Staging;
use crate::gpu::slots::slots_for;
use crate::{ClipRecord, DType, Error, NonFinite};

const STORAGE: BufferUsages = BufferUsages::STORAGE;
const UNIFORM: BufferUsages = BufferUsages::UNIFORM;
const COPY_SRC: BufferUsages = BufferUsages::COPY_SRC;
const COPY_DST: BufferUsages = BufferUsages::COPY_DST;

/// `Segment` of `segment.wgsl`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Segment {
    pub(in crate::gpu) first: u32,
    pub(in crate::gpu) count: u32,
    pub(in crate::gpu) max_norm: f32,
}

/// `Measure` of `segment.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Measure {
    pub(in crate::gpu) epsilon: f32,
    pub(in crate::gpu) policy: u32,
    pub(in crate::gpu) inverse_scale: f32,
}

impl Measure {
    fn of(norm: &ByNorm) -> Self {
        // The POLICY_* of `segment.wgsl`. What is an error on the host is left alone on the device.
        let policy = match norm.non_finite {
            NonFinite::Propagate => 0,
            NonFinite::Skip | NonFinite::Error => 1,
            NonFinite::Zero => 2,
            NonFinite::Poison => 3,
        };
        Self { epsilon: norm.epsilon, policy, inverse_scale: norm.inverse_scale }
    }
}

/// `Bounds` of `clamp.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(in crate::gpu) struct Bounds {
    pub(in crate::gpu) low: f32,
    pub(in crate::gpu) high: f32,
}

/// Allocates and binds for gradients that have been checked; `order` lists those that are not empty by address. Of
/// the operations, one for each group, only the limits differ.
pub(in crate::gpu) fn build(
    clipper: &Clipper,
    operations: &[Operation],
    buffers: &[&wgpu::Buffer],
    spans: &[Span],
    order: &[usize],
) -> Result<ClipPlan, Error> {
    if let Some(Operation::Norm(norm)) = operations.first() {
        let limits: Vec<f32> = operations.iter().map(Operation::limit).collect();
        return Builder::by_norm(clipper, norm, &limits, buffers, spans, order);
    }
    let bounds = operations.iter().filter_map(Operation::bounds).collect::<Vec<_>>();
    Builder::by_value(clipper, &bounds, buffers, spans, order)
}

/// The buffers of a norm pass.
struct NormParts {
    partials: wgpu::Buffer,
    measure: wgpu::Buffer,
    segments: wgpu::Buffer,
    owners: wgpu::Buffer,
    records: wgpu::Buffer,
    supplied: Option<wgpu::Buffer>,
}

/// Makes the buffers and the steps of one plan.
struct Builder<'a> {
    clipper: &'a Clipper,
    buffers: &'a [&'a wgpu::Buffer],
    tiles: wgpu::Buffer,
    /// Allocated so far.
    bytes: u64,
}

impl<'a> Builder<'a> {
    fn by_norm(
        clipper: &'a Clipper,
        norm: &ByNorm,
        limits: &[f32],
        buffers: &'a [&'a wgpu::Buffer],
        spans: &[Span],
        order: &[usize],
    ) -> Result<ClipPlan, Error> {
        let kind = NormKind::of(norm.norm_type);
        let together = matches!(norm.scope, Scope::Global | Scope::Supplied);
        let segment_of: Vec<usize> =
            spans.iter().enumerate().map(|(index, span)| if together { span.group } else { index }).collect();
        let layout = layout::lay_out(
            Request {
                spans,
                order,
                segment_of: &segment_of,
                segments: if together { limits.len() } else { spans.len() },
                measures: norm.scope != Scope::Supplied,
                norm_reads_vectors: kind.reads_vectors(),
            },
            clipper.limits(),
        );
        let (table, limits_of) = segments(&layout, norm.scope, limits, spans);
        let scratch = size_of_val(&layout.tiles[..])
            + layout.owners.len() * kind.partial_bytes()
            + table.len() * size_of::<ClipRecord>();
        clipper.guarded(scratch as u64, layout.largest_dispatch(), || {
            let mut builder = Self::new(clipper, buffers, &layout.tiles);
            let records = vec![ClipRecord::UNCLIPPED; table.len()];
            let parts = NormParts {
                partials: builder
                    .zeroed("gradclip.partials", layout.owners.len().max(1) * kind.partial_bytes()),
                measure: builder.holding("gradclip.measure", UNIFORM.union(COPY_DST), &[Measure::of(norm)]),
                segments: builder.holding("gradclip.segments", STORAGE.union(COPY_DST), &table),
                owners: builder.holding("gradclip.owners", STORAGE, or_one(&layout.owners, &0)),
                records: builder.holding(
                    "gradclip.records",
                    STORAGE.union(UNIFORM).union(COPY_SRC),
                    &records,
                ),
                supplied: (norm.scope == Scope::Supplied)
                    .then(|| builder.holding("gradclip.supplied", STORAGE.union(COPY_DST), &[0.0_f32])),
            };
            let mut steps = builder.norm_steps(&layout, kind, &parts, table.len())?;
            let tensors = if norm.tensor_norms && together {
                Some(builder.tensors(&layout, kind, &parts, spans.len(), &mut steps)?)
            } else {
                None
            };
            let segmented = table.len() > 1;
            let scale = |manner, slots| Kernel::Scale { segmented, manner, slots };
            let apply = builder.steps(&layout.apply, |_| &parts.records, scale)?;
            let outcome = Outcome {
                device: clipper.device().clone(),
                staging: Arc::new(Staging::new(clipper.device(), parts.records.size())),
                records: parts.records,
                is_error: norm.non_finite == NonFinite::Error,
                measure: parts.measure,
                segments: parts.segments,
                table,
                limits: limits_of,
                groups: limits.len(),
                together,
                supplied: parts.supplied,
                tensors,
            };
            Ok(ClipPlan {
                norm: steps,
                apply,
                coefficient_only: norm.coefficient_only,
                outcome: Some(outcome),
                scratch_bytes: builder.bytes,
            })
        })
    }

    /// The steps that leave records: partials and their sums, or what a supplied norm means.
    fn norm_steps(
        &self,
        layout: &Layout,
        kind: NormKind,
        parts: &NormParts,
        segments: usize,
    ) -> Result<Vec<Step>, Error> {
        let NormParts { partials, measure, segments: table, owners, records, supplied } = parts;
        let partials_of = |manner, slots| Kernel::Partials { norm: kind, manner, slots };
        let mut steps = self.steps(&layout.norm, |_| partials, partials_of)?;
        let (kernel, source) = match supplied {
            Some(supplied) => (Kernel::Supply, supplied),
            None => (Kernel::Finalize { norm: kind }, partials),
        };
        let bindings = [source, measure, table, owners, records].map(wgpu::Buffer::as_entire_buffer_binding);
        steps.push(self.step(self.clipper.kernel(kernel)?, bindings, segments));
        Ok(steps)
    }

    /// Adds the step that leaves a record for each of so many gradients by itself.
    fn tensors(
        &mut self,
        layout: &Layout,
        kind: NormKind,
        parts: &NormParts,
        gradients: usize,
        steps: &mut Vec<Step>,
    ) -> Result<(wgpu::Buffer, Arc<Staging>), Error> {
        let nothing = Segment { first: 0, count: 0, max_norm: f32::INFINITY };
        let mut table = vec![nothing; gradients.max(1)];
        for (partial, &owner) in (0..).zip(&layout.owners) {
            let segment = &mut table[owner as usize];
            segment.first = if segment.count == 0 { partial } else { segment.first };
            segment.count += 1;
        }
        let records = vec![ClipRecord::UNCLIPPED; table.len()];
        let records = self.holding("gradclip.tensor_records", STORAGE.union(COPY_SRC), &records);
        let segments = self.holding("gradclip.tensor_segments", STORAGE, &table);
        let bindings = [&parts.partials, &parts.measure, &segments, &parts.owners, &records];
        let bindings = bindings.map(wgpu::Buffer::as_entire_buffer_binding);
        steps.push(self.step(self.clipper.kernel(Kernel::Finalize { norm: kind })?, bindings, table.len()));
        let staging = Staging::new(self.clipper.device(), records.size());
        Ok((records, Arc::new(staging)))
    }

    fn by_value(
        clipper: &'a Clipper,
        bounds: &[[f32; 2]],
        buffers: &'a [&'a wgpu::Buffer],
        spans: &[Span],
        order: &[usize],
    ) -> Result<ClipPlan, Error> {
        let segment_of: Vec<usize> = spans.iter().map(|span| span.group).collect();
        let segments = bounds.len();
        let (measures, norm_reads_vectors) = (false, false);
        let request =
            Request { spans, order, segment_of: &segment_of, segments, measures, norm_reads_vectors };
        let layout = layout::lay_out(request, clipper.limits());
        clipper.guarded(size_of_val(&layout.tiles[..]) as u64, layout.largest_dispatch(), || {
            let mut builder = Self::new(clipper, buffers, &layout.tiles);
            let [f32, f16, bf16] = [DType::F32, DType::F16, DType::BF16].map(|dtype| {
                let rounded = |bounds: &[f32; 2]| bounds.map(|bound| dtype.round(bound));
                let bounds: Vec<_> =
                    bounds.iter().map(rounded).map(|[low, high]| Bounds { low, high }).collect();
                builder.holding("gradclip.bounds", STORAGE, &bounds)
            });
            let bounds_of = |manner: Manner| match manner.dtype {
                DType::F32 => &f32,
                DType::F16 => &f16,
                DType::BF16 => &bf16,
            };
            let segmented = segments > 1;
            let clamp = |manner, slots| Kernel::Clamp { segmented, manner, slots };
            let apply = builder.steps(&layout.apply, bounds_of, clamp)?;
            let scratch_bytes = builder.bytes;
            Ok(ClipPlan { norm: Vec::new(), apply, coefficient_only: false, outcome: None, scratch_bytes })
        })
    }

    fn new(clipper: &'a Clipper, buffers: &'a [&'a wgpu::Buffer], tiles: &[Tile]) -> Self {
        // A buffer of no bytes cannot be bound; nor is it, since no batch is without a tile.
        let tiles = or_one(tiles, &Tile { slot: 0, first: 0, count: 0, target_index: 0 });
        let table = filled(clipper.device(), "gradclip.tiles", STORAGE, tiles);
        Self { clipper, buffers, bytes: table.size(), tiles: table }
    }

    fn holding<T: Pod>(&mut self, label: &str, usage: BufferUsages, values: &[T]) -> wgpu::Buffer {
        self.bytes += size_of_val(values) as u64;
        filled(self.clipper.device(), label, usage, values)
    }

    fn zeroed(&mut self, label: &str, size: usize) -> wgpu::Buffer {
        self.bytes += size as u64;
        self.clipper.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: size as u64,
            usage: STORAGE,
            mapped_at_creation: false,
        })
    }

    /// A step for each batch. `second` is what the kernel binds besides tiles and gradients.
    fn steps<'b>(
        &self,
        batches: &[Batch],
        second: impl Fn(Manner) -> &'b wgpu::Buffer,
        kernel: impl Fn(Manner, usize) -> Kernel,
    ) -> Result<Vec<Step>, Error> {
        let step = |batch: &Batch| {
            let slots = slots_for(batch.windows.len(), self.clipper.limits().slots);
            let kernel = self.clipper.kernel(kernel(batch.manner, slots))?;
            let fixed = [self.tiles_of(batch), second(batch.manner).as_entire_buffer_binding()];
            let windows = batch.windows.iter().map(|window| wgpu::BufferBinding {
                buffer: self.buffers[window.buffer],
                offset: window.offset,
                size: wgpu::BufferSize::new(window.size),
            });
            let fillers = (batch.windows.len()..slots).map(|slot| self.clipper.filler(slot));
            Ok(self.step(kernel, fixed.into_iter().chain(windows).chain(fillers), batch.tiles.len()))
        };
        batches.iter().map(step).collect()
    }

    fn tiles_of(&self, batch: &Batch) -> wgpu::BufferBinding<'_> {
        let tile = size_of::<Tile>() as u64;
        wgpu::BufferBinding {
            buffer: &self.tiles,
            offset: batch.tiles.start as u64 * tile,
            size: wgpu::BufferSize::new(batch.tiles.len() as u64 * tile),
        }
    }

    fn step<'b>(
        &self,
        kernel: Compiled,
        bindings: impl IntoIterator<Item = wgpu::BufferBinding<'b>>,
        workgroups: usize,
    ) -> Step {
        let entries: Vec<_> = (0..)
            .zip(bindings)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(buffer),
            })
            .collect();
        let bind_group = self.clipper.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.label),
            layout: &kernel.bind_group_layout,
            entries: &entries,
        });
        Step { pipeline: kernel.pipeline, bind_group, grid: self.clipper.limits().fold(workgroups) }
    }
}

/// What each segment sums up, its limit, and how that follows from the limit of its group.
fn segments(layout: &Layout, scope: Scope, limits: &[f32], spans: &[Span]) -> (Vec<Segment>, Vec<Limit>) {
    let limit_of = |index: usize| match scope {
        Scope::Global | Scope::Supplied => Limit::Of { group: index },
        Scope::Tensor | Scope::TensorRms => {
            let Span { group, len, measured, .. } = spans[index];
            scope.limit(group, len, measured)
        }
    };
    let number = |number: usize| u32::try_from(number).expect("partials are counted in 32 bits");
    let segment = |(index, partials): (usize, &Range<usize>)| {
        let limit = limit_of(index);
        let max_norm = limit.among(limits);
        (Segment { first: number(partials.start), count: number(partials.len()), max_norm }, limit)
    };
    if layout.segments.is_empty() {
        // Nothing is clipped by itself where there is nothing; the record says so.
        let nothing = Segment { first: 0, count: 0, max_norm: limits[0] };
        return (vec![nothing], vec![Limit::Of { group: 0 }]);
    }
    layout.segments.iter().enumerate().map(segment).unzip()
}

/// A buffer without any element cannot be bound.
fn or_one<'a, T>(values: &'a [T], one: &'a T) -> &'a [T] {
    if values.is_empty() { std::slice::from_ref(one) } else { values }
}

/// A buffer with these values in it; without a queue, which a clipper does not have.
fn filled<T: Pod>(device: &wgpu::Device, label: &str, usage: BufferUsages, values: &[T]) -> wgpu::Buffer {
    let contents: &[u8] = bytemuck::cast_slice(values);
    let size = contents.len() as u64;
    let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: true };
    let buffer = device.create_buffer(&descriptor);
    // A buffer that could not be made has no mapped range; the error scope around this knows why.
    if let Ok(mut range) = buffer.get_mapped_range_mut(..) {
        range.slice(..).copy_from_slice(contents);
    }
    buffer.unmap();
    buffer
}
