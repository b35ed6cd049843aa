//! `ClipPlan`: the bind groups of a set of gradients, ready to be encoded step after step.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use wgpu::{BufferUsages, CommandEncoder};

use super::clipper::Clipper;
use super::gradient::Span;
use super::kernels::{Compiled, Kernel};
use super::layout::{self, Access, Batch, Layout, Tile};
use super::read_back::{ReadBack, Staging};
use super::scope::guarded;
use super::slots::slots_for;
use crate::clip::{EPSILON, Operation};
use crate::{ClipRecord, Error};

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
    /// The record and where it is read back to; none for a clip by value.
    outcome: Option<(wgpu::Buffer, Arc<Staging>)>,
    scratch_bytes: u64,
}

/// One dispatch, bound.
#[derive(Debug)]
struct Step {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    grid: [u32; 2],
}

/// `Partial` of `norm_l2.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Partial {
    pub(super) sum: f32,
    pub(super) largest: u32,
}

/// `Limit` of `finalize.wgsl`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Limit {
    pub(super) max_norm: f32,
    pub(super) epsilon: f32,
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

    /// The buffer with the [`ClipRecord`], for a shader of yours: it can be bound as uniform or as storage, and
    /// copied from. [`RECORD_WGSL`](crate::RECORD_WGSL) declares its type.
    ///
    /// It holds what the last norm pass found. None for a clip by value, which measures nothing.
    #[must_use]
    pub fn record_buffer(&self) -> Option<&wgpu::Buffer> {
        self.outcome.as_ref().map(|(record, _)| record)
    }

    /// Records a copy of the record, taken at this place in the encoder; the ticket gives it to the host once the
    /// encoder has been submitted. Any number of tickets may be under way.
    ///
    /// A staging buffer of 16 bytes is allocated where none of an earlier ticket is free.
    pub fn read_back(&self, encoder: &mut CommandEncoder) -> ReadBack {
        match &self.outcome {
            Some((record, staging)) => staging.read_back(encoder, record),
            None => ReadBack::failed(Error::NothingMeasured),
        }
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

    /// Allocates and binds for gradients that have been checked; `order` lists those that are not empty by address.
    pub(super) fn new(
        clipper: &Clipper,
        operation: Operation,
        buffers: &[&wgpu::Buffer],
        spans: &[Span],
        order: &[usize],
    ) -> Result<Self, Error> {
        let measures = matches!(operation, Operation::GlobalNorm { .. });
        let layout = layout::lay_out(spans, order, clipper.limits(), measures);
        let bytes = (size_of_val(&layout.tiles[..]) + layout.partials * size_of::<Partial>()) as u64;
        clipper.check_scratch(bytes)?;
        clipper.check_grid(layout.largest_batch())?;
        guarded(clipper.device(), "a clip plan", bytes, || {
            let builder = Builder::new(clipper, buffers, &layout.tiles);
            match operation {
                Operation::GlobalNorm { max_norm, coefficient_only } => {
                    builder.global_norm(&layout, max_norm, coefficient_only)
                }
                Operation::Clamp { low, high } => builder.clamp(&layout, low, high),
            }
        })?
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
    fn new(clipper: &'a Clipper, buffers: &'a [&'a wgpu::Buffer], tiles: &[Tile]) -> Self {
        // A buffer of no bytes cannot be bound; nor is it, since no batch is without a tile.
        let bytes = size_of_val(tiles).max(size_of::<Tile>()) as u64;
        let table = filled(
            clipper.device(),
            "gradclip.tiles",
            bytes,
            BufferUsages::STORAGE,
            bytemuck::cast_slice(tiles),
        );
        Self { clipper, buffers, tiles: table, bytes }
    }

    fn global_norm(
        mut self,
        layout: &Layout,
        max_norm: f32,
        coefficient_only: bool,
    ) -> Result<ClipPlan, Error> {
        let limit =
            self.holding("gradclip.limit", BufferUsages::UNIFORM, &Limit { max_norm, epsilon: EPSILON });
        let bytes = (layout.partials.max(1) * size_of::<Partial>()) as u64;
        self.bytes += bytes;
        // Zeroed by wgpu: where there is no tile, one partial says that there is nothing.
        let partials = self.clipper.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("gradclip.partials"),
            size: bytes,
            usage: BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let usage = BufferUsages::STORAGE | BufferUsages::UNIFORM | BufferUsages::COPY_SRC;
        let record = self.holding("gradclip.record", usage, &ClipRecord::UNCLIPPED);

        let mut norm =
            self.steps(&layout.norm, &partials, |access, slots| Kernel::Partials { access, slots })?;
        norm.push(self.finalize(&partials, &limit, &record)?);
        let apply = self.steps(&layout.apply, &record, |access, slots| Kernel::Scale { access, slots })?;
        let staging = Arc::new(Staging::new(self.clipper.device()));
        let outcome = Some((record, staging));
        Ok(ClipPlan { norm, apply, coefficient_only, outcome, scratch_bytes: self.bytes })
    }

    fn clamp(mut self, layout: &Layout, low: f32, high: f32) -> Result<ClipPlan, Error> {
        let bounds = self.holding("gradclip.bounds", BufferUsages::UNIFORM, &Bounds { low, high });
        let apply = self.steps(&layout.apply, &bounds, |access, slots| Kernel::Clamp { access, slots })?;
        Ok(ClipPlan {
            norm: Vec::new(),
            apply,
            coefficient_only: false,
            outcome: None,
            scratch_bytes: self.bytes,
        })
    }

    fn holding<T: Pod>(&mut self, label: &str, usage: BufferUsages, value: &T) -> wgpu::Buffer {
        self.bytes += size_of::<T>() as u64;
        filled(self.clipper.device(), label, size_of::<T>() as u64, usage, bytemuck::bytes_of(value))
    }

    fn finalize(
        &self,
        partials: &wgpu::Buffer,
        limit: &wgpu::Buffer,
        record: &wgpu::Buffer,
    ) -> Result<Step, Error> {
        let kernel = self.clipper.kernel(Kernel::Finalize)?;
        let bindings = [partials, limit, record].map(wgpu::Buffer::as_entire_buffer_binding);
        Ok(self.step(kernel, bindings, 1))
    }

    /// A step for each batch. `second` is what the kernel binds besides tiles and gradients.
    fn steps(
        &self,
        batches: &[Batch],
        second: &wgpu::Buffer,
        kernel: impl Fn(Access, usize) -> Kernel,
    ) -> Result<Vec<Step>, Error> {
        let step = |batch: &Batch| {
            let slots = slots_for(batch.windows.len(), self.clipper.limits().slots);
            let kernel = self.clipper.kernel(kernel(batch.access, slots))?;
            let fixed = [self.tiles_of(batch), second.as_entire_buffer_binding()];
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

/// A buffer with these bytes in it; without a queue, which a clipper does not have.
fn filled(
    device: &wgpu::Device,
    label: &str,
    size: u64,
    usage: BufferUsages,
    contents: &[u8],
) -> wgpu::Buffer {
    let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: true };
    let buffer = device.create_buffer(&descriptor);
    // A buffer that could not be made has no mapped range; the error scope around this knows why.
    if let Ok(mut range) = buffer.get_mapped_range_mut(..) {
        range.slice(..contents.len()).copy_from_slice(contents);
    }
    buffer.unmap();
    buffer
}
