//! A plan as JSON: `PlanData` of `plan_data.ts`.

use std::collections::HashMap;
use std::convert::Infallible;

use gradclip::kernels::{BindingType, Dialect, Kernel};
use gradclip::plan::{self, BoundRange, Plan, PlanBuffer, Source};
use serde::{Deserialize, Serialize};

/// What WebGPU says about a device: its limits, and two facts about its adapter.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    max_bindings_per_bind_group: u32,
    max_storage_buffers_per_shader_stage: u32,
    max_uniform_buffers_per_shader_stage: u32,
    max_storage_buffer_binding_size: u64,
    max_buffer_size: u64,
    min_storage_buffer_offset_alignment: u32,
    max_compute_workgroup_storage_size: u32,
    max_compute_invocations_per_workgroup: u32,
    max_compute_workgroup_size_x: u32,
    max_compute_workgroups_per_dimension: u32,
    is_software: bool,
    is_metal: bool,
}

impl From<Device> for plan::Device {
    fn from(device: Device) -> Self {
        Self {
            min_storage_buffer_offset_alignment: device.min_storage_buffer_offset_alignment,
            max_compute_workgroup_size_x: device.max_compute_workgroup_size_x,
            max_compute_invocations_per_workgroup: device.max_compute_invocations_per_workgroup,
            max_compute_workgroup_storage_size: device.max_compute_workgroup_storage_size,
            max_compute_workgroups_per_dimension: device.max_compute_workgroups_per_dimension,
            max_storage_buffers_per_shader_stage: device.max_storage_buffers_per_shader_stage,
            max_uniform_buffers_per_shader_stage: device.max_uniform_buffers_per_shader_stage,
            max_buffers_per_shader_stage: u32::MAX,
            max_bindings_per_bind_group: device.max_bindings_per_bind_group,
            max_storage_buffer_binding_size: device.max_storage_buffer_binding_size,
            max_buffer_size: device.max_buffer_size,
            is_software: device.is_software,
            has_full_workgroups: !device.is_metal,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlanData {
    buffers: Vec<BufferData>,
    kernels: Vec<KernelData>,
    dispatches: Vec<DispatchData>,
    // The passes, as indices of dispatches.
    parts: Vec<Vec<usize>>,
    /// Absent if the record cannot be encoded on its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Vec<usize>>,
    norm: Vec<usize>,
    scale: Vec<usize>,
    all: Vec<usize>,
    wants_two_passes: bool,
    records: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BufferData {
    label: &'static str,
    usage: u32,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    contents: Option<usize>,
    is_kept: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    readable: Option<usize>,
}

#[derive(Serialize)]
struct KernelData {
    key: String,
    label: &'static str,
    wgsl: String,
    constants: HashMap<&'static str, f64>,
    bindings: Vec<&'static str>,
}

#[derive(Serialize)]
struct DispatchData {
    kernel: usize,
    grid: [u32; 2],
    bindings: Vec<BindingData>,
}

#[derive(Serialize)]
struct BindingData {
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<usize>,
    offset: u64,
    size: u64,
}

/// Describes a plan.
pub(crate) fn plan(plan: &Plan) -> PlanData {
    let mut kernels = Kernels::default();
    let mut dispatches = Vec::new();
    let passes = plan.passes().try_map(|dispatch| {
        let kernel = kernels.index_of(dispatch.kernel);
        let bindings = dispatch.bindings.iter().map(binding).collect();
        dispatches.push(DispatchData { kernel, grid: dispatch.grid, bindings });
        Ok::<_, Infallible>(dispatches.len() - 1)
    });
    let Ok(passes) = passes;
    let mut words = 0;
    let buffers = plan.buffers().iter().map(|buffer| {
        let contents = (!buffer.words.is_empty()).then_some(words);
        words += buffer.words.len();
        let &PlanBuffer { label, usage, bytes: size, is_kept, readable, .. } = buffer;
        BufferData { label, usage, size, contents, is_kept, readable }
    });
    PlanData {
        buffers: buffers.collect(),
        kernels: kernels.described,
        parts: (0..passes.parts()).filter_map(|part| passes.part(part).ok().map(<[_]>::to_vec)).collect(),
        record: passes.record().ok().map(<[_]>::to_vec),
        norm: passes.norm().copied().collect(),
        scale: passes.scale().to_vec(),
        all: passes.all().copied().collect(),
        wants_two_passes: passes.wants_two_passes(),
        records: plan.records(),
        dispatches,
    }
}

fn binding(&BoundRange { source, offset, size }: &BoundRange) -> BindingData {
    let (own, given) = match source {
        Source::Own(own) => (Some(own), None),
        Source::Given(given) => (None, Some(given)),
        Source::Filler => (None, None),
    };
    BindingData { own, given, offset, size }
}

/// The distinct kernels of a plan.
#[derive(Default)]
struct Kernels {
    indices: HashMap<Kernel, usize>,
    described: Vec<KernelData>,
}

impl Kernels {
    fn index_of(&mut self, kernel: Kernel) -> usize {
        let described = &mut self.described;
        *self.indices.entry(kernel).or_insert_with(|| {
            described.push(KernelData {
                key: format!("{kernel:?}"),
                label: kernel.label(),
                wgsl: kernel.source(Dialect::WebGpu),
                constants: kernel.pipeline_constants().into_iter().collect(),
                bindings: kernel.bindings().iter().map(|binding| binding_type(binding.ty)).collect(),
            });
            described.len() - 1
        })
    }
}

const fn binding_type(ty: BindingType) -> &'static str {
    match ty {
        BindingType::Read => "read",
        BindingType::ReadWrite => "readWrite",
        BindingType::Uniform => "uniform",
    }
}
