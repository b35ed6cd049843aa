//! A device from numbers, and a plan as numbers and texts. `js/src/plan_data.ts` has the same orders.

use gradclip::kernels::{BindingType, Dialect, Kernel};
use gradclip::plan::{BoundRange, Device, Dispatch, Plan, Source};

/// Makes the device of which the host tells the limits.
pub(crate) fn device(numbers: &[f64]) -> Device {
    let &[
        alignment,
        workgroup_size_x,
        invocations,
        workgroup_storage,
        workgroups,
        storage_buffers,
        uniform_buffers,
        bindings,
        binding_size,
        buffer_size,
        is_software,
        is_metal,
    ] = numbers
    else {
        unreachable!("the host hands over twelve numbers")
    };
    Device {
        min_storage_buffer_offset_alignment: alignment as u32,
        max_compute_workgroup_size_x: workgroup_size_x as u32,
        max_compute_invocations_per_workgroup: invocations as u32,
        max_compute_workgroup_storage_size: workgroup_storage as u32,
        max_compute_workgroups_per_dimension: workgroups as u32,
        max_storage_buffers_per_shader_stage: storage_buffers as u32,
        max_uniform_buffers_per_shader_stage: uniform_buffers as u32,
        max_buffers_per_shader_stage: u32::MAX,
        max_bindings_per_bind_group: bindings as u32,
        max_storage_buffer_binding_size: binding_size as u64,
        max_buffer_size: buffer_size as u64,
        is_software: is_software != 0.0,
        has_full_workgroups: is_metal == 0.0,
    }
}

/// A plan in a flat form. Every list begins with its length, and what may be absent is then -1.
#[derive(Debug, Default)]
pub(crate) struct Flat {
    pub(crate) numbers: Vec<f64>,
    pub(crate) texts: Vec<String>,
    kernels: Vec<Kernel>,
}

impl Flat {
    fn number(&mut self, number: u64) {
        self.numbers.push(number as f64);
    }

    fn optional(&mut self, number: Option<usize>) {
        self.numbers.push(number.map_or(-1.0, |number| number as f64));
    }

    fn list(&mut self, indices: &[usize]) {
        self.number(indices.len() as u64);
        self.numbers.extend(indices.iter().map(|&index| index as f64));
    }

    /// A dispatch: the kernel, the grid and the bindings.
    fn dispatch(&mut self, dispatch: &Dispatch) {
        let known = self.kernels.iter().position(|&kernel| kernel == dispatch.kernel);
        let kernel = known.unwrap_or_else(|| {
            self.kernels.push(dispatch.kernel);
            self.kernels.len() - 1
        });
        self.number(kernel as u64);
        self.number(dispatch.grid[0].into());
        self.number(dispatch.grid[1].into());
        self.number(dispatch.bindings.len() as u64);
        for &BoundRange { source, offset, size } in &dispatch.bindings {
            // 0 for the plan's own buffers, 1 for the caller's, 2 for the filler.
            let (whose, index) = match source {
                Source::Own(index) => (0, index),
                Source::Given(index) => (1, index),
                Source::Filler => (2, 0),
            };
            self.number(whose);
            self.number(index as u64);
            self.number(offset);
            self.number(size);
        }
    }

    /// A kernel: its key, label and text; its constants and bindings.
    fn kernel(&mut self, kernel: Kernel) {
        self.texts.push(format!("{kernel:?}"));
        self.texts.push(kernel.label().to_owned());
        self.texts.push(kernel.source(Dialect::WebGpu));
        let constants = kernel.pipeline_constants();
        self.number(constants.len() as u64);
        for (name, value) in constants {
            self.texts.push(name.to_owned());
            self.numbers.push(value);
        }
        let bindings = kernel.bindings();
        self.number(bindings.len() as u64);
        for binding in bindings {
            self.number(match binding.ty {
                BindingType::Read => 0,
                BindingType::ReadWrite => 1,
                BindingType::Uniform => 2,
            });
        }
    }
}

/// Describes a plan: its buffers, dispatches, passes and kernels.
pub(crate) fn describe(plan: &Plan) -> Flat {
    let mut flat = Flat::default();
    flat.number(plan.buffers().len() as u64);
    let mut words = 0;
    for buffer in plan.buffers() {
        flat.texts.push(buffer.label.to_owned());
        flat.number(buffer.usage.into());
        flat.number(buffer.bytes);
        // Where its contents begin among those of all buffers.
        flat.optional((!buffer.words.is_empty()).then_some(words));
        flat.number(buffer.is_kept.into());
        flat.optional(buffer.readable);
        words += buffer.words.len();
    }
    let mut dispatches = Vec::new();
    let passes = plan.passes().try_map(|dispatch| {
        dispatches.push(dispatch.clone());
        Ok::<_, std::convert::Infallible>(dispatches.len() - 1)
    });
    let Ok(passes) = passes;
    flat.number(dispatches.len() as u64);
    for dispatch in &dispatches {
        flat.dispatch(dispatch);
    }
    flat.number(passes.parts() as u64);
    for part in 0..passes.parts() {
        flat.list(passes.part(part).unwrap_or_default());
    }
    // A plan that does not reset its partials has no record to encode on its own.
    let record = passes.record();
    flat.number(record.is_ok().into());
    flat.list(record.unwrap_or_default());
    flat.list(&passes.norm().copied().collect::<Vec<_>>());
    flat.list(passes.scale());
    flat.list(&passes.all().copied().collect::<Vec<_>>());
    flat.number(passes.wants_two_passes().into());
    flat.number(plan.records() as u64);
    let kernels = std::mem::take(&mut flat.kernels);
    flat.number(kernels.len() as u64);
    for kernel in kernels {
        flat.kernel(kernel);
    }
    flat
}
