//! Makes the buffers, pipelines and bind groups of a plan.

use super::{AllocatedBuffer, ClipPlan, Step};
use crate::Error;
use crate::gpu::device_context::DeviceContext;
use crate::gpu::read_back::Results;
use crate::kernels::Buffer;
use crate::plan::{self, BoundRange, Dispatch, Passes, Plan, Source};

/// Makes what a plan needs on a device. `given` has the distinct buffers of the gradients; `moved` is the plan of the same gradients
/// before they moved, whose state the new one takes over. Validation errors surface in the enclosing error scope.
pub(super) fn realize(
    context: &DeviceContext,
    plan: &Plan,
    given: &[&wgpu::Buffer],
    moved: Option<&ClipPlan>,
) -> Result<(Vec<AllocatedBuffer>, Passes<Step>), Error> {
    let mut kept = moved.into_iter().flat_map(|moved| {
        let buffers = moved.plan.buffers().iter().zip(&moved.buffers);
        buffers.filter(|(data, _)| data.is_kept).map(|(_, buffer)| buffer.clone())
    });
    let buffers: Vec<_> = plan
        .buffers()
        .iter()
        .map(|data| {
            kept.by_ref().take(usize::from(data.is_kept)).next().unwrap_or_else(|| make(context, data))
        })
        .collect();
    let steps = plan.passes().try_map(|dispatch| bind(context, dispatch, &buffers, given))?;
    Ok((buffers, steps))
}

/// Creates a buffer of a plan. It maps the buffer at creation, because a context has no queue.
fn make(context: &DeviceContext, data: &plan::PlanBuffer) -> AllocatedBuffer {
    let buffer = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(data.label),
        size: data.bytes,
        usage: wgpu::BufferUsages::from_bits_truncate(data.usage),
        mapped_at_creation: !data.words.is_empty(),
    });
    if !data.words.is_empty() {
        // A failed buffer has no mapped range; the error is in the enclosing error scope.
        if let Ok(mut range) = buffer.get_mapped_range_mut(..) {
            range.slice(..).copy_from_slice(bytemuck::cast_slice(&data.words));
        }
        buffer.unmap();
    }
    match data.readable {
        Some(readable) => {
            AllocatedBuffer::Readable(Results::new(context.checked_device().clone(), buffer, readable))
        }
        None => AllocatedBuffer::Device(buffer),
    }
}

/// Compiles the kernel of a dispatch at its first use, and binds its buffers.
fn bind(
    context: &DeviceContext,
    Dispatch { kernel, bindings, grid }: &Dispatch,
    buffers: &[AllocatedBuffer],
    given: &[&wgpu::Buffer],
) -> Result<Step, Error> {
    let pipeline = context.pipeline(*kernel)?;
    let resource = |&BoundRange { source, offset, size }: &BoundRange| {
        let buffer = match source {
            Source::Own(index) => buffers[index].buffer(),
            Source::Given(index) => given[index],
            Source::Filler => context.filler(),
        };
        wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) }
    };
    let ranges: Vec<_> = bindings.iter().map(resource).collect();
    let mut rest = &ranges[..];
    let mut entries = Vec::new();
    for (binding, buffer) in (0..).zip(kernel.bindings().into_iter().map(|binding| binding.buffer)) {
        let (ranges, after) = rest.split_at(buffer.elements().count());
        rest = after;
        let resource = match buffer {
            Buffer::Slots(_) => wgpu::BindingResource::BufferArray(ranges),
            _ => wgpu::BindingResource::Buffer(ranges[0].clone()),
        };
        entries.push(wgpu::BindGroupEntry { binding, resource });
    }
    let bind_group = context.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(kernel.label()),
        layout: &pipeline.bind_group_layout,
        entries: &entries,
    });
    Ok(Step { pipeline: pipeline.compute, bind_group, grid: *grid })
}

#[cfg(test)]
mod tests {
    use crate::plan::usage;

    #[test]
    fn the_flags_of_usage_are_those_of_wgpu() {
        let flags = usage::COPY_SRC | usage::COPY_DST | usage::UNIFORM | usage::STORAGE;
        let usage = wgpu::BufferUsages::COPY_SRC
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::UNIFORM
            | wgpu::BufferUsages::STORAGE;
        assert_eq!(wgpu::BufferUsages::from_bits(flags), Some(usage));
        for (flag, usage) in [
            (usage::COPY_SRC, wgpu::BufferUsages::COPY_SRC),
            (usage::COPY_DST, wgpu::BufferUsages::COPY_DST),
            (usage::UNIFORM, wgpu::BufferUsages::UNIFORM),
            (usage::STORAGE, wgpu::BufferUsages::STORAGE),
        ] {
            assert_eq!(flag, usage.bits());
        }
    }
}
