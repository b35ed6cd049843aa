//! `ClipPlan`: the bind groups of a set of gradients, ready to be encoded step after step.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use wgpu::{BufferUsages, CommandEncoder};

use super::clipper::Clipper;
use super::gradient::Span;
use super::kernels::{Compiled, Kernel, NormKind};
use super::layout::{self, Batch, Layout, Manner, Request, Tile};
use super::read_back::{FromRecords, ReadBack, Staging};
use super::slots::slots_for;
use crate::clip::{Norm, Operation, Scope, rms_limit};
use crate::{ClipRecord, DType, Error, NonFinite};

/// How to clip one set of gradients: made once by [`Clipper::prepare`], encoded at every step.
///
/// Encoding records dispatches and does nothing else: it neither submits, nor waits, nor allocates, nor fails. The
/// encoder must belong to the clipper's device. The dispatches run in the order of the command buffer: after the
/// backward pass that was encoded or submitted before, and before the optimizer that comes after.
#[derive(Debug)]
pub struct ClipPlan {
    /// The norm pass; empty for a clip by value.
    norm: Vec<Step>,
    /// The pass that writes the gradients.
    apply: Vec<Step>,
    coefficient_only: bool,
    /// None for a clip by value.
    outcome: Option<Outcome>,
    scratch_bytes: u64,
}

/// The records of a plan.
#[derive(Debug)]
struct Outcome {
    records: wgpu::Buffer,
    count: usize,
    staging: Arc<Staging>,
    /// Whether gradients that are not finite are an error when the record is read.
    is_error: bool,
}

/// One dispatch, bound.
#[derive(Debug)]
struct Step {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    grid: [u32; 2],
}

/// `Segment` of `segment.wgsl`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Segment {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) max_norm: f32,
}

/// `Measure` of `segment.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Measure {
    pub(super) epsilon: f32,
    pub(super) policy: u32,
    pub(super) inverse_scale: f32,
}

impl Measure {
    fn of(norm: &Norm) -> Self {
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
pub(super) struct Bounds {
    pub(super) low: f32,
    pub(super) high: f32,
}

impl ClipPlan {
    /// Measures the gradients and clips them, all in one compute pass.
    ///
    /// A clip by global norm reads every gradient once; if the norm exceeds the limit it reads and writes them once
    /// more. With [`Clip::coefficient_only`](crate::Clip::coefficient_only) it only reads them. A clip by value reads
    /// every gradient once and writes what exceeds its bounds.
    pub fn encode(&self, encoder: &mut CommandEncoder) {
        let apply: &[Step] = if self.coefficient_only { &[] } else { &self.apply };
        run(encoder, "gradclip", self.norm.iter().chain(apply));
    }

    /// Only the first half of [`encode`](Self::encode): measures the norm and writes the record. A clip by value
    /// has no such half; nothing is recorded for it.
    pub fn encode_norm(&self, encoder: &mut CommandEncoder) {
        run(encoder, "gradclip.norm", self.norm.iter());
    }

    /// Only the second half: multiplies the gradients by the coefficient that stands in the record, or clamps them. It
    /// does so for a [`coefficient_only`](crate::Clip::coefficient_only) plan too.
    pub fn encode_scale(&self, encoder: &mut CommandEncoder) {
        run(encoder, "gradclip.scale", self.apply.iter());
    }

    /// The buffer with the [`ClipRecord`]s, for a shader of yours: it can be bound as storage (as uniform too, where
    /// there is but one), and copied from. [`RECORD_WGSL`](crate::RECORD_WGSL) declares the type. There is one for each
    /// group, or one for each gradient where each is clipped by itself.
    ///
    /// It holds what the last norm pass found. None for a clip by value, which measures nothing.
    #[must_use]
    pub fn record_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref().map(|outcome| &outcome.records)
    }

    /// Records a copy of the record, taken at this place in the encoder; the ticket gives it to the host once the
    /// encoder has been submitted. Any number of tickets may be under way. Where there are several records, it is the
    /// first.
    ///
    /// A small staging buffer is allocated where none of an earlier ticket is free.
    pub fn read_back(&self, encoder: &mut CommandEncoder) -> ReadBack {
        self.tickets(encoder)
    }

    /// [`read_back`](Self::read_back) of all records: one for each group, or one for each gradient where each is clipped
    /// by itself.
    pub fn read_back_all(&self, encoder: &mut CommandEncoder) -> ReadBack<Vec<ClipRecord>> {
        self.tickets(encoder)
    }

    fn tickets<R: FromRecords>(&self, encoder: &mut CommandEncoder) -> ReadBack<R> {
        match &self.outcome {
            Some(outcome) => outcome.staging.read_back(encoder, &outcome.records, outcome.is_error),
            None => ReadBack::failed(Error::NothingMeasured),
        }
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> usize {
        self.outcome.as_ref().map_or(0, |outcome| outcome.count)
    }

    /// How many dispatches [`encode`](Self::encode) records.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.norm.len() + if self.coefficient_only { 0 } else { self.apply.len() }
    }

    /// What the plan takes of the device's memory, in bytes: tables, partials, parameters and the record.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }

    /// Allocates and binds for gradients that have been checked; `order` lists those that are not empty by address. Of
    /// the operations, one for each group, only the limits differ.
    pub(super) fn new(
        clipper: &Clipper,
        operations: &[Operation],
        buffers: &[&wgpu::Buffer],
        spans: &[Span],
        order: &[usize],
    ) -> Result<Self, Error> {
        match operations.first() {
            None => Err(Error::NoClip),
            Some(Operation::Norm(norm)) => {
                let limits = operations.iter().map(Operation::limit).collect::<Vec<_>>();
                Builder::by_norm(clipper, norm, &limits, buffers, spans, order)
            }
            Some(Operation::Clamp { low, high }) => {
                Builder::by_value(clipper, [*low, *high], buffers, spans, order)
            }
        }
    }
}

fn run<'a>(encoder: &mut CommandEncoder, label: &str, steps: impl Iterator<Item = &'a Step>) {
    let mut steps = steps.peekable();
    if steps.peek().is_none() {
        return;
    }
    let mut pass = encoder
        .begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(label), timestamp_writes: None });
    let mut current = None;
    for Step { pipeline, bind_group, grid: [x, y] } in steps {
        if current != Some(pipeline) {
            pass.set_pipeline(pipeline);
            current = Some(pipeline);
        }
        pass.set_bind_group(0, bind_group, &[]);
        pass.dispatch_workgroups(*x, *y, 1);
    }
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
        norm: &Norm,
        limits: &[f32],
        buffers: &'a [&'a wgpu::Buffer],
        spans: &[Span],
        order: &[usize],
    ) -> Result<ClipPlan, Error> {
        let kind = NormKind::of(norm.norm_type);
        let together = norm.scope == Scope::Global;
        let segment_of: Vec<usize> =
            spans.iter().enumerate().map(|(index, span)| if together { span.group } else { index }).collect();
        let layout = layout::lay_out(
            Request {
                spans,
                order,
                segment_of: &segment_of,
                segments: if together { limits.len() } else { spans.len() },
                measures: true,
                norm_reads_vectors: kind.reads_vectors(),
            },
            clipper.limits(),
        );
        let segments = segments(&layout, norm.scope, limits, spans);
        let scratch = size_of_val(&layout.tiles[..]) + layout.owners.len() * kind.partial_bytes();
        clipper.guarded(scratch as u64, || {
            let mut builder = Self::new(clipper, buffers, &layout.tiles);
            let partials =
                builder.zeroed("gradclip.partials", layout.owners.len().max(1) * kind.partial_bytes());
            let measure = builder.holding("gradclip.measure", BufferUsages::UNIFORM, &[Measure::of(norm)]);
            let table = builder.holding("gradclip.segments", BufferUsages::STORAGE, &segments);
            let owners =
                builder.holding("gradclip.owners", BufferUsages::STORAGE, or_one(&layout.owners, &0));
            let usage = BufferUsages::STORAGE | BufferUsages::UNIFORM | BufferUsages::COPY_SRC;
            let records = vec![ClipRecord::UNCLIPPED; segments.len()];
            let records = builder.holding("gradclip.records", usage, &records);

            let partials_of = |manner, slots| Kernel::Partials { norm: kind, manner, slots };
            let mut steps = builder.steps(&layout.norm, |_| &partials, partials_of)?;
            let bindings = [&partials, &measure, &table, &owners, &records];
            steps.push(builder.finalize(Kernel::Finalize { norm: kind }, bindings, segments.len())?);
            let segmented = segments.len() > 1;
            let scale = |manner, slots| Kernel::Scale { segmented, manner, slots };
            let apply = builder.steps(&layout.apply, |_| &records, scale)?;
            let outcome = Outcome {
                staging: Arc::new(Staging::new(clipper.device(), records.size())),
                records,
                count: segments.len(),
                is_error: norm.non_finite == NonFinite::Error,
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

    fn by_value(
        clipper: &'a Clipper,
        bounds: [f32; 2],
        buffers: &'a [&'a wgpu::Buffer],
        spans: &[Span],
        order: &[usize],
    ) -> Result<ClipPlan, Error> {
        let segment_of = vec![0; spans.len()];
        let request = Request {
            spans,
            order,
            segment_of: &segment_of,
            segments: 1,
            measures: false,
            norm_reads_vectors: false,
        };
        let layout = layout::lay_out(request, clipper.limits());
        clipper.guarded(size_of_val(&layout.tiles[..]) as u64, || {
            let mut builder = Self::new(clipper, buffers, &layout.tiles);
            let mut bounds_of = |dtype: DType| {
                let [low, high] = bounds.map(|bound| dtype.round(bound));
                builder.holding("gradclip.bounds", BufferUsages::UNIFORM, &[Bounds { low, high }])
            };
            let [f32, f16, bf16] = [DType::F32, DType::F16, DType::BF16].map(&mut bounds_of);
            let bounds = |manner: Manner| match manner.dtype {
                DType::F32 => &f32,
                DType::F16 => &f16,
                DType::BF16 => &bf16,
            };
            let apply =
                builder.steps(&layout.apply, bounds, |manner, slots| Kernel::Clamp { manner, slots })?;
            let scratch_bytes = builder.bytes;
            Ok(ClipPlan { norm: Vec::new(), apply, coefficient_only: false, outcome: None, scratch_bytes })
        })
    }

    fn new(clipper: &'a Clipper, buffers: &'a [&'a wgpu::Buffer], tiles: &[Tile]) -> Self {
        // A buffer of no bytes cannot be bound; nor is it, since no batch is without a tile.
        let tiles = or_one(tiles, &Tile { slot: 0, first: 0, count: 0, target_index: 0 });
        let table = filled(clipper.device(), "gradclip.tiles", BufferUsages::STORAGE, tiles);
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
            usage: BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    }

    fn finalize(&self, kernel: Kernel, bindings: [&wgpu::Buffer; 5], segments: usize) -> Result<Step, Error> {
        let bindings = bindings.map(wgpu::Buffer::as_entire_buffer_binding);
        Ok(self.step(self.clipper.kernel(kernel)?, bindings, segments))
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

/// What each segment sums up, and its limit.
fn segments(layout: &Layout, scope: Scope, limits: &[f32], spans: &[Span]) -> Vec<Segment> {
    let limit = |index: usize| match scope {
        Scope::Global => limits[index],
        Scope::Tensor => limits[spans[index].group],
        Scope::TensorRms => rms_limit(limits[spans[index].group], spans[index].len),
    };
    let number = |number: usize| u32::try_from(number).expect("partials are counted in 32 bits");
    let segment = |(index, partials): (usize, &std::ops::Range<usize>)| Segment {
        first: number(partials.start),
        count: number(partials.len()),
        max_norm: limit(index),
    };
    let segments: Vec<_> = layout.segments.iter().enumerate().map(segment).collect();
    or_one(&segments, &Segment { first: 0, count: 0, max_norm: f32::INFINITY }).to_vec()
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
