//! What plans are made of: buffers with something in them, and dispatches with their bind groups.

use bytemuck::Pod;
use wgpu::BufferUsages;

use super::Step;
use crate::Error;
use crate::gpu::device_context::DeviceContext;
use crate::gpu::kernels::{Compiled, Kernel, WORKGROUP_SIZE};
use crate::gpu::layout::{Batch, Manner, Tile};
use crate::gpu::read_back::Results;
use crate::gpu::slots::slots_for;

/// Makes the buffers and the steps of one plan. What wgpu has against them, the error scope around it learns.
pub(super) struct Builder<'a> {
    clipper: &'a DeviceContext,
    buffers: &'a [&'a wgpu::Buffer],
    tiles: wgpu::Buffer,
    /// Allocated so far.
    pub(super) bytes: u64,
}

impl<'a> Builder<'a> {
    pub(super) fn new(clipper: &'a DeviceContext, buffers: &'a [&'a wgpu::Buffer], tiles: &[Tile]) -> Self {
        // A buffer of no bytes cannot be bound; nor is it, since no batch is without a tile.
        let tiles = or_one(tiles, &Tile { slot: 0, first: 0, count: 0, target_index: 0 });
        let table = filled(clipper.device(), "gradclip.tiles", BufferUsages::STORAGE, tiles);
        Self { clipper, buffers, bytes: table.size(), tiles: table }
    }

    /// A dispatch of a kernel that binds no gradients, with so many workgroups.
    pub(super) fn per_workgroup(
        &self,
        kernel: Kernel,
        bindings: &[&wgpu::Buffer],
        workgroups: usize,
    ) -> Result<Step, Error> {
        let bindings = bindings.iter().map(|buffer| buffer.as_entire_buffer_binding());
        Ok(self.step(self.clipper.kernel(kernel)?, bindings, workgroups))
    }

    /// The same with so many invocations, or some more.
    pub(super) fn per_invocation(
        &self,
        kernel: Kernel,
        bindings: &[&wgpu::Buffer],
        invocations: usize,
    ) -> Result<Step, Error> {
        self.per_workgroup(kernel, bindings, invocations.div_ceil(WORKGROUP_SIZE as usize))
    }

    /// Something that the host can read, at first so many times the same.
    pub(super) fn results<T: Pod>(
        &mut self,
        label: &str,
        usage: BufferUsages,
        value: T,
        count: usize,
    ) -> Results {
        let checked_device = self.clipper.checked_device().clone();
        Results::new(checked_device, value, count, |contents| self.holding(label, usage, contents))
    }

    pub(super) fn holding<T: Pod>(&mut self, label: &str, usage: BufferUsages, values: &[T]) -> wgpu::Buffer {
        self.bytes += size_of_val(values) as u64;
        filled(self.clipper.device(), label, usage, values)
    }

    pub(super) fn zeroed(&mut self, label: &str, size: usize) -> wgpu::Buffer {
        self.bytes += size as u64;
        self.clipper.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: size as u64,
            usage: BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    }

    /// A step for each batch. `second` is what the kernel binds besides tiles and gradients, by the number of the batch.
    pub(super) fn steps<'b>(
        &self,
        batches: &[Batch],
        second: impl Fn(usize, &Batch) -> &'b wgpu::Buffer,
        kernel: impl Fn(Manner, usize) -> Kernel,
    ) -> Result<Vec<Step>, Error> {
        let step = |(number, batch): (usize, &Batch)| {
            let slots = slots_for(batch.windows.len(), self.clipper.limits().slots);
            let kernel = self.clipper.kernel(kernel(batch.manner, slots))?;
            let fixed = [self.tiles_of(batch), second(number, batch).as_entire_buffer_binding()];
            let windows = batch.windows.iter().map(|window| wgpu::BufferBinding {
                buffer: self.buffers[window.buffer],
                offset: window.offset,
                size: wgpu::BufferSize::new(window.size),
            });
            let fillers = (batch.windows.len()..slots).map(|slot| self.clipper.filler(slot));
            Ok(self.step(kernel, fixed.into_iter().chain(windows).chain(fillers), batch.tiles.len()))
        };
        batches.iter().enumerate().map(step).collect()
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

/// A buffer without any element cannot be bound.
pub(super) fn or_one<'a, T>(values: &'a [T], one: &'a T) -> &'a [T] {
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
