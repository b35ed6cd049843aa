//! A device of the host, and the description of a plan. `js/src/planner.ts` and `js/src/plan_data.ts` have the same orders.

use gradclip::kernels::{BindingType, Dialect, Kernel};
use gradclip::plan::{BoundRange, Device, Dispatch, Plan, Source};

use crate::message::{Answer, Request};

/// Reads the limits of a device.
pub(crate) fn device(request: &mut Request<'_>) -> Device {
    Device {
        min_storage_buffer_offset_alignment: request.u32(),
        max_compute_workgroup_size_x: request.u32(),
        max_compute_invocations_per_workgroup: request.u32(),
        max_compute_workgroup_storage_size: request.u32(),
        max_compute_workgroups_per_dimension: request.u32(),
        max_storage_buffers_per_shader_stage: request.u32(),
        max_uniform_buffers_per_shader_stage: request.u32(),
        max_buffers_per_shader_stage: u32::MAX,
        max_binding_array_elements_per_shader_stage: 0,
        max_bindings_per_bind_group: request.u32(),
        max_storage_buffer_binding_size: request.u64(),
        max_buffer_size: request.u64(),
        is_software: request.flag(),
        has_full_workgroups: !request.flag(),
    }
}

/// Writes a plan: its buffers, dispatches, passes and kernels.
pub(crate) fn describe(plan: &Plan, answer: &mut Answer) {
    let mut words = 0;
    answer.list(plan.buffers(), |answer, buffer| {
        answer.text(buffer.label);
        answer.number(buffer.usage);
        answer.size(buffer.bytes);
        // Where its contents begin among those of all buffers.
        answer.optional((!buffer.words.is_empty()).then_some(words));
        answer.number(buffer.is_kept);
        answer.optional(buffer.readable);
        words += buffer.words.len();
    });
    let mut dispatches = Vec::new();
    let passes = plan.passes().try_map(|dispatch| {
        dispatches.push(dispatch.clone());
        Ok::<_, std::convert::Infallible>(dispatches.len() - 1)
    });
    let Ok(passes) = passes;
    let mut kernels: Vec<Kernel> = Vec::new();
    answer.list(&dispatches, |answer, dispatch| {
        let known = kernels.iter().position(|&kernel| kernel == dispatch.kernel);
        answer.index(known.unwrap_or_else(|| {
            kernels.push(dispatch.kernel);
            kernels.len() - 1
        }));
        write_dispatch(dispatch, answer);
    });
    let indices =
        |answer: &mut Answer, indices: &[usize]| answer.list(indices, |answer, &index| answer.index(index));
    answer.list(0..passes.parts(), |answer, part| indices(answer, passes.part(part).unwrap_or_default()));
    // A plan that does not reset its partials has no record to encode on its own.
    let record = passes.record();
    answer.number(record.is_ok());
    indices(answer, record.unwrap_or_default());
    indices(answer, &passes.norm().copied().collect::<Vec<_>>());
    indices(answer, passes.scale());
    indices(answer, &passes.all().copied().collect::<Vec<_>>());
    answer.number(passes.wants_two_passes());
    answer.index(plan.records());
    answer.list(kernels, |answer, kernel| write_kernel(kernel, answer));
}

/// Writes the grid and the bindings of a dispatch.
fn write_dispatch(dispatch: &Dispatch, answer: &mut Answer) {
    answer.number(dispatch.grid[0]);
    answer.number(dispatch.grid[1]);
    answer.list(&dispatch.bindings, |answer, &BoundRange { source, offset, size }| {
        // 0 for the plan's own buffers, 1 for the caller's, 2 for the filler.
        let (whose, index) = match source {
            Source::Own(index) => (0, index),
            Source::Given(index) => (1, index),
            Source::Filler => (2, 0),
        };
        answer.number(whose);
        answer.index(index);
        answer.size(offset);
        answer.size(size);
    });
}

/// Writes the label, the text, the constants and the bindings of a kernel.
fn write_kernel(kernel: Kernel, answer: &mut Answer) {
    answer.text(kernel.label());
    answer.text(&kernel.source(Dialect::WebGpu));
    answer.list(kernel.pipeline_constants(), |answer, (name, value)| {
        answer.text(name);
        answer.number(value);
    });
    answer.list(kernel.bindings(), |answer, binding| {
        answer.number(match binding.ty {
            BindingType::Read => 0,
            BindingType::ReadWrite => 1,
            BindingType::Uniform => 2,
        });
    });
}
