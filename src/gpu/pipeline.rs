//! A kernel as a pipeline of one device.

use std::num::NonZeroU32;

use crate::kernels::{Binding, BindingType, Buffer, Dialect, Kernel};

/// A compiled kernel.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) compute: wgpu::ComputePipeline,
    pub(super) bind_group_layout: wgpu::BindGroupLayout,
}

impl Pipeline {
    pub(super) fn compile(
        device: &wgpu::Device,
        kernel: Kernel,
        cache: Option<&wgpu::PipelineCache>,
    ) -> Self {
        let label = Some(kernel.label());
        let bindings = kernel.bindings();
        // Set for slots only: wgpu then checks their sizes once per plan, not at every dispatch.
        let min_slot_size =
            kernel.slots().and_then(|(_, access)| wgpu::BufferSize::new(access.element_bytes()));
        let entries: Vec<_> = (0..)
            .zip(&bindings)
            .map(|(binding, Binding { buffer, ty })| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: binding_type(*ty),
                    has_dynamic_offset: false,
                    min_binding_size: min_slot_size
                        .filter(|_| matches!(buffer, Buffer::Slot(_) | Buffer::Slots(_))),
                },
                count: match *buffer {
                    Buffer::Slots(count) => u32::try_from(count).ok().and_then(NonZeroU32::new),
                    _ => None,
                },
            })
            .collect();
        let bind_group_layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&bind_group_layout)],
            immediate_size: 0,
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(kernel.source(Dialect::WebGpu).into()),
        });
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &kernel.pipeline_constants(),
                // Every invocation writes its element before any reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache,
        });
        log::debug!("compiled {}", kernel.label());
        Self { compute, bind_group_layout }
    }
}

pub(super) const fn binding_type(ty: BindingType) -> wgpu::BufferBindingType {
    match ty {
        BindingType::Read => wgpu::BufferBindingType::Storage { read_only: true },
        BindingType::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
        BindingType::Uniform => wgpu::BufferBindingType::Uniform,
    }
}
