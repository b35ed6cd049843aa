//! `Builder`: the buffers and the bound dispatches of one plan.

use bytemuck::Pod;
use wgpu::BufferUsages;

use super::Step;
use crate::Error;
use crate::gpu::device_context::DeviceContext;
use crate::gpu::layout::{Batch, Window};
use crate::gpu::pipeline::Pipeline;
use crate::gpu::read_back::Results;
use crate::kernels::tables::{Tile, fold_grid};
use crate::kernels::{BindingType, Buffer, Kernel, TileFormat, WORKGROUP_SIZE, slot_count};

/// Creates the buffers and the steps of one plan. Validation errors surface in the enclosing error scope.
pub(super) struct Builder<'a> {
    context: &'a DeviceContext,
    buffers: &'a [&'a wgpu::Buffer],
    tiles: wgpu::Buffer,
    /// The bytes allocated so far.
    pub(super) bytes: u64,
}

impl<'a> Builder<'a> {
    pub(super) fn new(context: &'a DeviceContext, buffers: &'a [&'a wgpu::Buffer], tiles: &[Tile]) -> Self {
        // A buffer of no bytes is invalid. Without tiles there are no batches, so nothing binds this one.
        let tiles = or_one(tiles, &Tile { slot: 0, first: 0, count: 0, target_index: 0 });
        let table = create_buffer(context.device(), "gradclip.tiles", BufferUsages::STORAGE, tiles);
        Self { context, buffers, bytes: table.size(), tiles: table }
    }

    /// Returns whether the device allows the bindings of a kernel.
    pub(super) fn fits(&self, kernel: Kernel) -> bool {
        let bindings = kernel.bindings();
        let storage = bindings.iter().filter(|binding| binding.ty != BindingType::Uniform).count();
        let allowed = self.context.device().limits();
        storage <= allowed.max_storage_buffers_per_shader_stage as usize
            && bindings.len()
                <= allowed
                    .max_bindings_per_bind_group
                    .min(allowed.max_buffers_and_acceleration_structures_per_shader_stage)
                    as usize
    }

    /// Creates a dispatch of `workgroups` workgroups. `binding` returns the binding for each buffer of the kernel.
    pub(super) fn per_workgroup<'b>(
        &self,
        kernel: Kernel,
        workgroups: usize,
        binding: impl Fn(Buffer) -> wgpu::BufferBinding<'b>,
    ) -> Result<Step, Error> {
        let pipeline = self.context.pipeline(kernel)?;
        Ok(self.step(pipeline, binding, workgroups))
    }

    /// Creates a dispatch of at least `invocations` invocations, as [`per_workgroup`](Self::per_workgroup).
    pub(super) fn per_invocation<'b>(
        &self,
        kernel: Kernel,
        invocations: usize,
        binding: impl Fn(Buffer) -> wgpu::BufferBinding<'b>,
    ) -> Result<Step, Error> {
        self.per_workgroup(kernel, invocations.div_ceil(WORKGROUP_SIZE as usize), binding)
    }

    /// Creates a dispatch for each batch. `other` returns the buffer that the kernel binds besides tiles and gradients, by the
    /// index of the batch.
    pub(super) fn batches<'b>(
        &self,
        batches: &[Batch],
        other: impl Fn(usize, &Batch) -> &'b wgpu::Buffer,
        kernel: impl Fn(&Batch, usize) -> Kernel,
    ) -> Result<Vec<Step>, Error> {
        let step = |(index, batch): (usize, &Batch)| {
            let slots = slot_count(batch.windows.len(), self.context.limits().slots);
            let pipeline = self.context.pipeline(kernel(batch, slots))?;
            let binding = |buffer| match buffer {
                Buffer::Tiles | Buffer::ColumnTiles => self.tiles_of(batch),
                Buffer::Slot(slot) => self.slot(batch, slot),
                _ => other(index, batch).as_entire_buffer_binding(),
            };
            Ok(self.step(pipeline, binding, batch.workgroups()))
        };
        batches.iter().enumerate().map(step).collect()
    }

    /// Creates a dispatch of one workgroup for all tiles of a batch, if the device allows its bindings. `other` returns the binding
    /// for each buffer besides tiles and gradients.
    pub(super) fn single_workgroup<'b>(
        &self,
        batch: &Batch,
        kernel: impl Fn(TileFormat, usize) -> Kernel,
        other: impl Fn(Buffer) -> wgpu::BufferBinding<'b>,
    ) -> Result<Option<Step>, Error> {
        let kernel = kernel(batch.format, slot_count(batch.windows.len(), self.context.limits().slots));
        if !self.fits(kernel) {
            return Ok(None);
        }
        let binding = |buffer| match buffer {
            Buffer::Tiles => self.tiles_of(batch),
            Buffer::Slot(slot) => self.slot(batch, slot),
            buffer => other(buffer),
        };
        self.per_workgroup(kernel, 1, binding).map(Some)
    }

    /// Creates a readable buffer initialised to `count` copies of `value`.
    pub(super) fn results<T: Pod>(
        &mut self,
        label: &str,
        usage: BufferUsages,
        value: T,
        count: usize,
    ) -> Results {
        let device = self.context.checked_device().clone();
        Results::new(device, value, count, |contents| self.buffer(label, usage, contents))
    }

    /// Creates a readable buffer of state with the values, or with a single 0 if there are none.
    pub(super) fn state(&mut self, label: &str, usage: BufferUsages, values: &[u32]) -> Results {
        let device = self.context.checked_device().clone();
        let contents = or_one(values, &0);
        Results::of_values(device, contents, values.len(), |contents| self.buffer(label, usage, contents))
    }

    /// Returns the state that a plan keeps, or makes it.
    pub(super) fn kept_or<T: State>(&mut self, kept: Option<&T>, make: impl FnOnce(&mut Self) -> T) -> T {
        let Some(kept) = kept else { return make(self) };
        self.bytes += kept.buffer().size();
        kept.clone()
    }

    pub(super) fn buffer<T: Pod>(&mut self, label: &str, usage: BufferUsages, values: &[T]) -> wgpu::Buffer {
        self.bytes += size_of_val(values) as u64;
        create_buffer(self.context.device(), label, usage, values)
    }

    pub(super) fn zeroed(&mut self, label: &str, usage: BufferUsages, size: usize) -> wgpu::Buffer {
        self.bytes += size as u64;
        self.context.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: size as u64,
            usage,
            mapped_at_creation: false,
        })
    }

    /// The window in a slot, or a filler for a slot without one.
    fn slot(&self, batch: &Batch, slot: usize) -> wgpu::BufferBinding<'_> {
        let Some(window) = batch.windows.get(slot) else { return self.context.filler(slot) };
        self.window(window)
    }

    pub(super) fn window(&self, window: &Window) -> wgpu::BufferBinding<'a> {
        wgpu::BufferBinding {
            buffer: self.buffers[window.buffer],
            offset: window.offset,
            size: wgpu::BufferSize::new(window.size),
        }
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
        pipeline: Pipeline,
        binding: impl Fn(Buffer) -> wgpu::BufferBinding<'b>,
        workgroups: usize,
    ) -> Step {
        let entries: Vec<_> = (0..)
            .zip(pipeline.bindings.iter())
            .map(|(index, described)| wgpu::BindGroupEntry {
                binding: index,
                resource: wgpu::BindingResource::Buffer(binding(described.buffer)),
            })
            .collect();
        let bind_group = self.context.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(pipeline.label),
            layout: &pipeline.bind_group_layout,
            entries: &entries,
        });
        let grid = fold_grid(workgroups, self.context.limits().workgroups_per_dimension);
        Step { pipeline: pipeline.compute, bind_group, grid }
    }
}

/// State that a plan takes over from the plan of the same gradients before they moved.
pub(super) trait State: Clone {
    /// The buffer of the state.
    fn buffer(&self) -> &wgpu::Buffer;
}

impl State for wgpu::Buffer {
    fn buffer(&self) -> &wgpu::Buffer {
        self
    }
}

impl State for Results {
    fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}

/// Returns `values`, or `one` if there are none: a buffer of no bytes cannot be bound.
pub(super) fn or_one<'a, T>(values: &'a [T], one: &'a T) -> &'a [T] {
    if values.is_empty() { std::slice::from_ref(one) } else { values }
}

/// Creates a buffer with these values. It maps the buffer at creation, because a context has no queue.
fn create_buffer<T: Pod>(
    device: &wgpu::Device,
    label: &str,
    usage: BufferUsages,
    values: &[T],
) -> wgpu::Buffer {
    let contents: &[u8] = bytemuck::cast_slice(values);
    let size = contents.len() as u64;
    let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: true };
    let buffer = device.create_buffer(&descriptor);
    // A failed buffer has no mapped range; the error is in the enclosing error scope.
    if let Ok(mut range) = buffer.get_mapped_range_mut(..) {
        range.slice(..).copy_from_slice(contents);
    }
    buffer.unmap();
    buffer
}
