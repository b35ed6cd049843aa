//! The GPU rooflines: kernels that read all bytes, or read them and write them back.

use wgpu::{BindingResource, Buffer, BufferBinding, BufferSize, BufferUsages, CommandEncoder, Device};

use gradclip::wgpu;

const WORKGROUP: u32 = 256;
const VECTOR: u64 = 16;
/// The candidate step counts. A thread loads four vectors per step. The fastest count depends on device and size.
pub(crate) const STEPS: [u32; 4] = [1, 2, 4, 8];

/// The roofline kernels, each compiled for every step count.
#[derive(Debug)]
pub struct RooflineKernels {
    device: Device,
    read: Variants,
    in_place: Variants,
    /// A buffer of zeros that no kernel changes.
    zero: Buffer,
    /// The maximum size of a binding, in bytes.
    window: u64,
    /// The maximum number of workgroups per dimension.
    max_workgroups: u32,
}

#[derive(Debug)]
struct Variants {
    layout: wgpu::BindGroupLayout,
    pipelines: Vec<wgpu::ComputePipeline>,
}

/// A roofline kernel bound to buffers.
#[derive(Debug)]
pub struct BoundBuffers {
    read: bool,
    windows: Vec<(wgpu::BindGroup, u64)>,
}

impl RooflineKernels {
    pub(crate) fn new(device: &Device) -> Self {
        let limits = device.limits();
        let zero = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("roofline.zero"),
            size: VECTOR,
            usage: BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        Self {
            device: device.clone(),
            read: Variants::new(device, "roofline.read", true, include_str!("read.wgsl")),
            in_place: Variants::new(device, "roofline.in_place", false, include_str!("in_place.wgsl")),
            zero,
            // The offsets of windows must be aligned, and a binding must have fewer than 2^32 bytes.
            window: limits.max_storage_buffer_binding_size.min(1 << 31) / 4096 * 4096,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
        }
    }

    /// Binds the read kernel to `buffers`. Their sizes must be multiples of 16.
    pub fn read(&self, buffers: &[Buffer]) -> BoundBuffers {
        BoundBuffers { read: true, windows: self.windows(&self.read, buffers) }
    }

    /// Binds the in-place kernel to `buffers`. Their sizes must be multiples of 16.
    pub(crate) fn in_place(&self, buffers: &[Buffer]) -> BoundBuffers {
        BoundBuffers { read: false, windows: self.windows(&self.in_place, buffers) }
    }

    fn windows(&self, variants: &Variants, buffers: &[Buffer]) -> Vec<(wgpu::BindGroup, u64)> {
        let bind = |buffer, offset, size| {
            let data = BufferBinding { buffer, offset, size: BufferSize::new(size) };
            let entries = [BindingResource::Buffer(data), self.zero.as_entire_binding()];
            let entries: Vec<_> = (0..)
                .zip(entries)
                .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
                .collect();
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &variants.layout,
                entries: &entries,
            })
        };
        let mut windows = Vec::new();
        for buffer in buffers {
            let mut offset = 0;
            while offset < buffer.size() {
                let size = self.window.min(buffer.size() - offset);
                windows.push((bind(buffer, offset, size), size / VECTOR));
                offset += size;
            }
        }
        windows
    }

    /// Encodes a kernel. `steps` is the index that
    /// [`GpuDevice::fastest_steps`](crate::device::GpuDevice::fastest_steps) returns.
    pub fn encode(&self, buffers: &BoundBuffers, steps: usize, encoder: &mut CommandEncoder) {
        let variants = if buffers.read { &self.read } else { &self.in_place };
        let tile = u64::from(STEPS[steps] * 4 * WORKGROUP);
        let descriptor = wgpu::ComputePassDescriptor { label: Some("roofline"), timestamp_writes: None };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        pass.set_pipeline(&variants.pipelines[steps]);
        for (bind_group, vectors) in &buffers.windows {
            let workgroups =
                u32::try_from(vectors.div_ceil(tile)).expect("a window has fewer than 2^32 vectors");
            pass.set_bind_group(0, bind_group, &[]);
            pass.dispatch_workgroups(
                workgroups.min(self.max_workgroups),
                workgroups.div_ceil(self.max_workgroups),
                1,
            );
        }
    }
}

impl Variants {
    fn new(device: &Device, label: &str, read_only: bool, source: &str) -> Self {
        let label = Some(label);
        let entry = |binding, read_only| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &[entry(0, read_only), entry(1, false)],
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = |steps| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[("WORKGROUP", WORKGROUP.into()), ("STEPS", f64::from(steps))],
                    ..Default::default()
                },
                cache: None,
            })
        };
        Self { pipelines: STEPS.into_iter().map(pipeline).collect(), layout }
    }
}
